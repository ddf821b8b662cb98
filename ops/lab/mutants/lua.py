"""Mutants of a Lua script, proposed over its tokens: the scripts are plain enough for that.

A statement ends where the next one begins, and in Lua that is wherever a name follows the end of an
operand. Never proposed: comments, command names, and texts that are no field's name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import lupa.lua51  # type: ignore[import-untyped]  # it carries no types

from ops.lab.mutants.change import Mutant, lines_around

_TOKEN: Final = re.compile(
    r"""(?P<gap>\s+|--[^\n]*)
    |(?P<text>'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*")
    |(?P<number>\d+(?:\.\d+)?(?:e[-+]?\d+)?)
    |(?P<name>[A-Za-z_]\w*)
    |(?P<sign>\.\.\.|\.\.|==|~=|<=|>=|[-+*/%^\#<>=(){}\[\];:,.])""",
    re.VERBOSE,
)
_OPERATORS: Final = frozenset({"and", "or", "not"})
_VALUES: Final = frozenset({"true", "false", "nil"})
_STATEMENTS: Final = frozenset(
    {
        "break",
        "do",
        "else",
        "elseif",
        "end",
        "for",
        "function",
        "if",
        "in",
        "local",
        "repeat",
        "return",
        "then",
    }
)
_WORDS: Final = _OPERATORS | _VALUES | _STATEMENTS | {"until", "while"}
_ENDS_OPERAND: Final = frozenset({"end", "true", "false", "nil", ")", "}", "]", "..."})
_OPENS: Final = {"(": ")", "{": "}", "[": "]"}
_BINARY: Final = frozenset(
    {"and", "or", "..", "==", "~=", "<", "<=", ">", ">=", "+", "-", "*", "/", "%", "^"}
)
_SWAPPED: Final = {
    "==": ("~=",),
    "~=": ("==",),
    "<": ("<=", ">="),
    "<=": ("<", ">"),
    ">": (">=", "<="),
    ">=": (">", "<"),
    "and": ("or",),
    "or": ("and",),
    "not": ("",),
    "+": ("-",),
    "-": ("+",),
    "*": ("/",),
    "/": ("*",),
    "true": ("false",),
    "false": ("true",),
}
_CALLED: Final = {"min": "max", "max": "min", "floor": "ceil", "ceil": "floor"}
_FIELD: Final = re.compile(r"[a-z][a-z0-9_.:-]*")


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    start: int
    end: int

    @property
    def ends_operand(self) -> bool:
        if self.kind == "name":
            return self.text not in _WORDS or self.text in _ENDS_OPERAND
        return self.kind in {"text", "number"} or self.text in _ENDS_OPERAND

    @property
    def is_name(self) -> bool:
        return self.kind == "name" and self.text not in _WORDS


def lua_mutants(source: str, file: str, beginning: str = "") -> list[Mutant]:
    """Return every mutant of a script that still compiles behind `beginning`, in the order of the
    file.
    """
    found = {(one.start, one.end, one.text): one for one in _Script(source, file).every()}
    compiles = _compiler()
    return sorted(
        (one for one in found.values() if compiles(f"{beginning}\n{one.applied(source)}")),
        key=lambda one: (one.start, one.end),
    )


def marked(source: str, mark: Callable[[int], str]) -> str:
    """Return a script in which each block, when it is entered, runs the statement that `mark` makes
    of its number.

    Numbers are those in `Mutant.touched`; the top of the file is block 0.
    """
    starts = _Script(source, "").block_starts()
    text = source
    for number, offset in sorted(enumerate(starts, 1), key=lambda pair: -pair[1]):
        text = f"{text[:offset]} {mark(number)} {text[offset:]}"
    return f"{mark(0)}\n{text}"


@cache
def _compiler() -> Callable[[str], bool]:
    runtime: Any = lupa.lua51.LuaRuntime()
    compiles: Callable[[str], bool] = runtime.eval(
        "function(text) return loadstring(text) ~= nil end"
    )
    return compiles


class _Script:
    def __init__(self, source: str, file: str) -> None:
        self._source = source
        self._file = file
        self._tokens = [
            _Token(match.lastgroup or "", match.group(), *match.span())
            for match in _TOKEN.finditer(source)
            if match.lastgroup != "gap"
        ]
        self._functions, self._blocks = self._places()

    def block_starts(self) -> list[int]:
        """Return where each block begins, in the order of their numbers."""
        return [token.end for index, token in enumerate(self._tokens) if self._opens_block(index)]

    def every(self) -> Iterator[Mutant]:
        """Propose every change."""
        for index, token in enumerate(self._tokens):
            yield from self._word(index, token)
            if token.kind == "number":
                yield from self._change(
                    index, index, str(int(token.text) + 1) if token.text.isdigit() else "0"
                )
                if token.text == "1" and self._tokens[index - 1].text != "[":
                    yield from self._change(index, index, "0")
            elif token.kind == "text" and _FIELD.fullmatch(token.text[1:-1]):
                yield from self._change(index, index, f"'{token.text[1:-1]}x'")
            if self._begins_statement(index):
                yield from self._change(index, self._statement_end(index), "do end")
            if token.text in {"if", "elseif"}:
                last = self._find(index, "then")
                yield from self._change(index + 1, last, "true")
                yield from self._change(index + 1, last, "false")
            elif token.text == "while":
                yield from self._change(index + 1, self._find(index, "do"), "false")
            elif token.text == "return" and self._tokens[index + 1].text not in {
                "nil",
                "false",
                "end",
            }:
                yield from self._change(index + 1, self._expressions_end(index + 1), "nil")

    def _word(self, index: int, token: _Token) -> Iterator[Mutant]:
        if token.text in {"+", "-"} and not self._tokens[index - 1].ends_operand:
            return
        if token.kind in {"name", "sign"}:
            for other in _SWAPPED.get(token.text, ()):
                yield from self._change(index, index, other)
            if token.text in _CALLED and index > 1 and self._tokens[index - 2].text == "math":
                yield from self._change(index, index, _CALLED[token.text])

    def _change(self, first: int, last: int, text: str) -> Iterator[Mutant]:
        start, end = self._tokens[first].start, self._tokens[last].end
        before, after = lines_around(self._source, start, end, text)
        if before != after:
            line = self._source.count("\n", 0, start) + 1
            yield Mutant(
                file=self._file,
                function=self._functions[first],
                line=line,
                before=before,
                after=after,
                start=start,
                end=end,
                text=text,
                touched=(self._blocks[first], self._blocks[first]),
                hot=True,
            )

    def _places(self) -> tuple[list[str], list[int]]:
        """Return for each token the function and the number of the block that it stands in, '' and
        0 at the top.
        """
        names, numbers = [], []
        functions, blocks, count = [""], [0], 0
        for index, token in enumerate(self._tokens):
            if token.text in {"elseif", "else", "end"}:
                blocks.pop()
            names.append(functions[-1])
            numbers.append(blocks[-1])
            if token.text == "function":
                follows = self._tokens[index + 1]
                functions.append(follows.text if follows.is_name else functions[-1])
            elif token.text in {"if", "do"}:
                functions.append(functions[-1])
            elif token.text == "end":
                functions.pop()
            if self._opens_block(index):
                count += 1
                blocks.append(count)
        return names, numbers

    def _opens_block(self, index: int) -> bool:
        if self._tokens[index].text in {"then", "else", "do"}:
            return True
        if self._tokens[index].text != ")":
            return False
        while self._tokens[index].text != "(":
            index -= 1
        # The parameters of a function, with a name or without.
        return "function" in {self._tokens[index - 1].text, self._tokens[index - 2].text}

    def _find(self, index: int, word: str) -> int:
        """Return the token before the next such word."""
        while self._tokens[index].text != word:
            index += 1
        return index - 1

    def _begins_statement(self, index: int) -> bool:
        if not self._tokens[index].is_name:
            return False
        if index == 0:
            return True
        before = self._tokens[index - 1]
        return before.ends_operand or before.text in {"then", "else", "do", ";"}

    # Where things end: each returns the last token

    def _statement_end(self, index: int) -> int:
        end = self._primary_end(index)
        while self._text(end + 1) == ",":
            end = self._primary_end(end + 2)
        return self._expressions_end(end + 2) if self._text(end + 1) == "=" else end

    def _expressions_end(self, index: int) -> int:
        end = self._expression_end(index)
        while self._text(end + 1) == ",":
            end = self._expression_end(end + 2)
        return end

    def _expression_end(self, index: int) -> int:
        while self._text(index) in {"not", "#", "-"}:
            index += 1
        end = self._primary_end(index)
        return self._expression_end(end + 2) if self._text(end + 1) in _BINARY else end

    def _primary_end(self, index: int) -> int:
        end = self._closing(index) if self._text(index) in _OPENS else index
        while True:
            if self._text(end + 1) in {".", ":"}:
                end += 2
            elif self._text(end + 1) in {"(", "["}:
                end = self._closing(end + 1)
            else:
                return end

    def _closing(self, index: int) -> int:
        depth = 0
        while True:
            depth += self._text(index) in _OPENS
            depth -= self._text(index) in _OPENS.values()
            if not depth:
                return index
            index += 1

    def _text(self, index: int) -> str:
        token = self._tokens[index] if index < len(self._tokens) else None
        return token.text if token is not None and token.kind != "text" else ""
