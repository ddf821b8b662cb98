"""Mutants of a Python source: a walk over its syntax tree that proposes changes of its text.

Never proposed, for nothing could or should notice: docstrings, annotations and type aliases,
imports, decorators, `__slots__`, log lines, what stands in f-strings and in raised errors, `zip`'s
`strict` (it guards against mistakes that are not there).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Final, NamedTuple, TypeGuard

from ops.lab.mutants.change import Mutant, lines_around
from ops.lab.mutants.statements import FUNCTIONS, can_be_dropped, header, is_left_alone, note_names

_COMPARED: Final[dict[type[ast.cmpop], tuple[str, tuple[str, ...]]]] = {
    ast.Eq: (r"==", ("!=",)),
    ast.NotEq: (r"!=", ("==",)),
    ast.Lt: (r"<", ("<=", ">=")),
    ast.LtE: (r"<=", ("<", ">")),
    ast.Gt: (r">", (">=", "<=")),
    ast.GtE: (r">=", (">", "<")),
    ast.In: (r"\bin\b", ("not in",)),
    ast.NotIn: (r"\bnot\s+in\b", ("in",)),
    ast.Is: (r"\bis\b", ("is not",)),
    ast.IsNot: (r"\bis\s+not\b", ("is",)),
}
_CALCULATED: Final[dict[type[ast.operator], tuple[str, str]]] = {
    ast.Add: (r"\+", "-"),
    ast.Sub: (r"-", "+"),
    ast.Mult: (r"\*", "/"),
    ast.Div: (r"/", "*"),
    ast.FloorDiv: (r"//", "/"),
    ast.Mod: (r"%", "//"),
    ast.Pow: (r"\*\*", "*"),
    ast.LShift: (r"<<", ">>"),
}
_SWAPPED: Final = {"min": "max", "max": "min", "any": "all", "all": "any"}
_UNCHANGED_KEYWORDS: Final = {"strict", "usedforsecurity"}
_FEWEST_ELEMENTS: Final = 3

Function = ast.FunctionDef | ast.AsyncFunctionDef


class Span(NamedTuple):
    """A part of the source, by offsets."""

    start: int
    end: int


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where the walk is."""

    function: str = ""
    """The outermost function, with its classes."""
    within: tuple[str, ...] = ()
    hot: bool = False
    touched: tuple[int, int] = (1, 1)
    bound: set[str] = field(default_factory=set)
    """Names that were bound before in this function."""


def python_mutants(source: str, file: str) -> list[Mutant]:
    """Return every mutant of a source that is still a program, in the order of the file."""
    found = {
        (one.start, one.end, one.text): one
        for one in _Walk(source, file).module()
        if _is_program(one, source)
    }
    return sorted(found.values(), key=lambda one: (one.start, one.end))


def _is_program(mutant: Mutant, source: str) -> bool:
    try:
        compile(mutant.applied(source), mutant.file, "exec")
    except SyntaxError:
        return False
    return True


class _Walk:
    def __init__(self, source: str, file: str) -> None:
        self._source = source
        self._file = file
        self._lines = source.splitlines(keepends=True)
        self._begins = [0]
        for line in self._lines:
            self._begins.append(self._begins[-1] + len(line))

    def module(self) -> Iterator[Mutant]:
        """Walk the whole file."""
        for statement in ast.parse(self._source).body:
            yield from self._statement(statement, _Place())

    # Places

    def _offset(self, line: int, column: int) -> int:
        return self._begins[line - 1] + len(self._lines[line - 1].encode()[:column].decode())

    def _span(self, node: ast.AST) -> Span:
        found = vars(node)
        return Span(
            self._offset(found["lineno"], found["col_offset"]),
            self._offset(found["end_lineno"], found["end_col_offset"]),
        )

    def _text(self, node: ast.AST) -> str:
        start, end = self._span(node)
        return self._source[start:end]

    def _change(self, place: _Place, span: Span, text: str) -> Iterator[Mutant]:
        before, after = lines_around(self._source, *span, text)
        if before != after:
            yield Mutant(
                file=self._file,
                function=place.function,
                line=self._source.count("\n", 0, span.start) + 1,
                before=before,
                after=after,
                start=span.start,
                end=span.end,
                text=text,
                touched=place.touched,
                hot=place.hot,
            )

    # Statements

    def _statement(self, node: ast.stmt, place: _Place) -> Iterator[Mutant]:
        if is_left_alone(node, top=not place.function):
            return
        place = replace(place, touched=header(node))
        if isinstance(node, FUNCTIONS):
            yield from self._function(node, place)
        elif isinstance(node, ast.ClassDef):
            inner = replace(place, within=(*place.within, node.name))
            for statement in node.body:
                yield from self._statement(statement, inner)
        elif isinstance(node, ast.Match):
            yield from self._match(node, place)
        elif isinstance(node, ast.Raise):
            yield from self._change(place, self._span(node), "pass")
        else:
            if can_be_dropped(node, place.bound):
                yield from self._change(place, self._span(node), "pass")
            yield from self._parts(node, place)
            note_names(node, place.bound)

    def _function(self, node: Function, place: _Place) -> Iterator[Mutant]:
        values = [*node.args.defaults, *(one for one in node.args.kw_defaults if one is not None)]
        for default in values:
            yield from self._default(default, place)
        names = {
            argument.arg
            for argument in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        }
        name = place.function if place.hot else ".".join((*place.within, node.name))
        inner = replace(place, function=name, hot=True, bound=names)
        for statement in node.body:
            yield from self._statement(statement, inner)

    def _default(self, node: ast.expr, place: _Place) -> Iterator[Mutant]:
        if not _is_none(node):
            yield from self._change(place, self._span(node), "None")
        yield from self._expression(node, place)

    def _match(self, node: ast.Match, place: _Place) -> Iterator[Mutant]:
        yield from self._expression(node.subject, place)
        for case in node.cases:
            last = case.body[-1].end_lineno or case.body[-1].lineno
            if len(node.cases) > 1:
                lines = Span(self._begins[case.pattern.lineno - 1], self._begins[last] - 1)
                reached = replace(place, touched=(case.body[0].lineno, last))
                yield from self._change(reached, lines, "")
            if case.guard is not None:
                here = replace(
                    place, touched=(case.pattern.lineno, case.guard.end_lineno or case.guard.lineno)
                )
                yield from self._condition(case.guard, here)
                yield from self._expression(case.guard, here)
            for statement in case.body:
                yield from self._statement(statement, place)

    def _parts(self, node: ast.stmt, place: _Place) -> Iterator[Mutant]:
        if isinstance(node, ast.AnnAssign):
            if node.value is not None:
                in_class = bool(place.within) and not place.hot
                yield from (self._default if in_class else self._expression)(node.value, place)
            return
        if isinstance(node, (ast.If, ast.While)):
            yield from self._condition(node.test, place, always=isinstance(node, ast.If))
        elif (
            isinstance(node, ast.Return) and node.value is not None and not _is_nothing(node.value)
        ):
            yield from self._change(place, self._span(node.value), "None")
        elif isinstance(node, ast.AugAssign):
            yield from self._operator(
                node.op, self._span(node.target).end, self._span(node.value).start, place
            )
        yield from self._children(node, place)

    def _children(self, node: ast.AST, place: _Place) -> Iterator[Mutant]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.stmt):
                yield from self._statement(child, place)
            elif isinstance(child, ast.expr):
                yield from self._expression(child, place)
            elif isinstance(child, ast.comprehension):
                for test in child.ifs:
                    yield from self._condition(test, place)
                yield from self._children(child, place)
            elif isinstance(child, ast.keyword) and child.arg in _UNCHANGED_KEYWORDS:
                continue
            elif isinstance(child, (ast.ExceptHandler, ast.keyword, ast.withitem)):
                yield from self._children(child, place)

    # Expressions

    def _expression(self, node: ast.expr, place: _Place) -> Iterator[Mutant]:
        if isinstance(node, ast.JoinedStr):
            return
        yield from self._operation(node, place)
        if isinstance(node, ast.Constant):
            yield from self._constant(node, place)
        elif isinstance(node, ast.Dict):
            yield from self._entries(node, place)
        elif isinstance(node, ast.Set):
            yield from self._without_each(place, [self._span(one) for one in node.elts])
        elif isinstance(node, ast.Call):
            yield from self._call(node, place)
        elif isinstance(node, ast.Lambda):
            yield from self._expression(node.body, place)
            return
        yield from self._children(node, place)

    def _operation(self, node: ast.expr, place: _Place) -> Iterator[Mutant]:
        match node:
            case ast.Compare():
                yield from self._comparison(node, place)
            case ast.BoolOp():
                yield from self._and_or(node, place)
            case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=operand):
                yield from self._change(place, self._span(node), self._text(operand))
            case ast.BinOp(op=ast.BitOr(), left=left, right=right):
                yield from self._change(place, self._span(node), self._text(left))
                yield from self._change(place, self._span(node), self._text(right))
            case ast.BinOp():
                yield from self._operator(
                    node.op, self._span(node.left).end, self._span(node.right).start, place
                )
            case ast.IfExp(test=test):
                yield from self._condition(test, place)

    def _condition(self, test: ast.expr, place: _Place, *, always: bool = True) -> Iterator[Mutant]:
        for text in ("True", "False") if always else ("False",):
            yield from self._change(place, self._span(test), text)

    def _comparison(self, node: ast.Compare, place: _Place) -> Iterator[Mutant]:
        left: ast.expr = node.left
        for operator, right in zip(node.ops, node.comparators, strict=True):
            pattern, others = _COMPARED[type(operator)]
            gap = Span(self._span(left).end, self._span(right).start)
            between = self._source[gap.start : gap.end]
            for other in others:
                yield from self._change(place, gap, re.sub(pattern, other, between, count=1))
            left = right

    def _and_or(self, node: ast.BoolOp, place: _Place) -> Iterator[Mutant]:
        old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        spans = [self._span(value) for value in node.values]
        text = ""
        for before, after in pairwise(spans):
            text += re.sub(rf"\b{old}\b", new, self._source[before.end : after.start], count=1)
            if after is not spans[-1]:
                text += self._source[after.start : after.end]
        yield from self._change(place, Span(spans[0].end, spans[-1].start), text)

    def _operator(
        self, operator: ast.operator, start: int, end: int, place: _Place
    ) -> Iterator[Mutant]:
        if type(operator) in _CALCULATED:
            pattern, other = _CALCULATED[type(operator)]
            yield from self._change(
                place, Span(start, end), re.sub(pattern, other, self._source[start:end], count=1)
            )

    def _constant(self, node: ast.Constant, place: _Place) -> Iterator[Mutant]:
        if isinstance(node.value, bool):
            yield from self._change(place, self._span(node), str(not node.value))
        elif isinstance(node.value, (int, float)):
            yield from self._change(place, self._span(node), str(node.value + 1))
            if node.value == 1:
                yield from self._change(place, self._span(node), "0")

    def _entries(self, node: ast.Dict, place: _Place) -> Iterator[Mutant]:
        spans = []
        for key, value in zip(node.keys, node.values, strict=True):
            start, end = self._span(value)
            spans.append(
                Span(
                    self._source.rindex("**", 0, start) if key is None else self._span(key).start,
                    end,
                )
            )
        yield from self._without_each(place, spans)

    def _call(self, node: ast.Call, place: _Place) -> Iterator[Mutant]:
        if isinstance(node.func, ast.Name) and node.func.id in _SWAPPED:
            yield from self._change(place, self._span(node.func), _SWAPPED[node.func.id])
        given: list[ast.AST] = sorted(
            [*node.args, *node.keywords], key=lambda one: self._span(one).start
        )
        spans = [self._span(one) for one in given]
        droppable = {
            index
            for index, one in enumerate(given)
            if isinstance(one, ast.keyword)
            and one.arg is not None
            and one.arg not in _UNCHANGED_KEYWORDS
        }
        yield from self._without_each(place, spans, droppable)
        if len(given) == 1 and _is_collection(given[0]):
            yield from self._without_each(place, [self._span(one) for one in given[0].elts])

    def _without_each(
        self, place: _Place, spans: Sequence[Span], droppable: set[int] | None = None
    ) -> Iterator[Mutant]:
        """Drop each of what commas part, with the comma that belongs to it."""
        for index, span in enumerate(spans):
            if droppable is not None and index not in droppable:
                continue
            if index + 1 < len(spans):
                gone = Span(span.start, spans[index + 1].start)
            elif index:
                gone = Span(spans[index - 1].end, span.end)
            else:
                gone = span
            yield from self._change(place, gone, "")


def _is_none(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _is_nothing(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and (node.value is None or node.value is False)


def _is_collection(node: ast.AST) -> TypeGuard[ast.Tuple | ast.List]:
    return isinstance(node, (ast.Tuple, ast.List)) and len(node.elts) >= _FEWEST_ELEMENTS
