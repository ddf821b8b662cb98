"""What the walk over a Python source asks of a statement: its lines, its names, whether it is left
alone.
"""

from __future__ import annotations

import ast
from typing import Final

FUNCTIONS: Final = (ast.FunctionDef, ast.AsyncFunctionDef)


def header(node: ast.stmt) -> tuple[int, int]:
    """Return the lines that run when a statement is reached.

    All of a plain one, the head of a compound one.
    """
    head: ast.AST = node
    if isinstance(node, (ast.If, ast.While)):
        head = node.test
    elif isinstance(node, (ast.For, ast.AsyncFor)):
        head = node.iter
    elif isinstance(node, (ast.With, ast.AsyncWith)):
        return node.lineno, node.items[-1].context_expr.end_lineno or node.lineno
    elif isinstance(node, ast.Match):
        head = node.subject
    elif isinstance(node, (*FUNCTIONS, ast.ClassDef, ast.Try)):
        return node.lineno, node.lineno
    found = vars(head)
    return node.lineno, found["end_lineno"]


def can_be_dropped(node: ast.stmt, bound: set[str]) -> bool:
    """Return whether a file without this statement still could run; `bound` has the names that were
    bound before it.
    """
    if isinstance(node, ast.Assign):
        return all(_is_kept_elsewhere(target, bound) for target in node.targets)
    return isinstance(node, (ast.Expr, ast.AugAssign, ast.Continue, ast.Break, ast.Delete))


def _is_kept_elsewhere(target: ast.expr, bound: set[str]) -> bool:
    """Tell whether dropping an assignment leaves the name bound: else it could only break."""
    if isinstance(target, ast.Tuple):
        return all(_is_kept_elsewhere(one, bound) for one in target.elts)
    return isinstance(target, (ast.Attribute, ast.Subscript)) or (
        isinstance(target, ast.Name) and target.id in bound
    )


def note_names(node: ast.stmt, bound: set[str]) -> None:
    """Add the names that a statement binds."""
    bound.update(
        one.id
        for one in ast.walk(node)
        if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)
    )


def is_left_alone(node: ast.stmt, *, top: bool) -> bool:
    """Return whether nothing of a statement is changed: imports, log lines, docstrings, types."""
    match node:
        case ast.Import() | ast.ImportFrom() | ast.Pass() | ast.Global() | ast.Nonlocal():
            return True
        case ast.Expr(value=ast.Constant()):
            return True
        case ast.Expr(value=ast.Call(func=ast.Attribute(value=ast.Name(id="log")))):
            return True
        case ast.If(test=ast.Name(id="TYPE_CHECKING")):
            return True
        case ast.Assign(targets=[ast.Name(id="__slots__" | "__all__" | "log")]):
            return True
        case ast.Assign(value=value) if top:
            return _is_type(value)
        case _:
            return False


def _is_type(node: ast.expr) -> bool:
    """Tell whether a value at the top of a file is a type alias."""
    match node:
        case ast.BinOp(op=ast.BitOr()) | ast.Subscript():
            return True
        case ast.Call(func=ast.Name(id="TypeVar" | "ParamSpec" | "NewType")):
            return True
        case _:
            return False
