"""A mutant as data: one small change of one source file, in the words of a diff."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Key(NamedTuple):
    """What a mutant is known by: no line number, so that it outlives changes elsewhere in its
    file.
    """

    file: str
    function: str
    before: str
    after: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Mutant:
    """One change: `text` in the place of `source[start:end]`, inside `function` ('' at the top of
    the file).
    """

    file: str
    function: str
    line: int
    before: str
    """The lines that change, stripped."""
    after: str
    start: int
    end: int
    text: str
    touched: tuple[int, int]
    """A test that runs none of these lines of Python, or blocks of Lua, first to last, cannot
    notice.
    """
    hot: bool = False
    """Inside one function's body: its code can be exchanged while everything else stays loaded."""

    @property
    def key(self) -> Key:
        """Return what this mutant is known by."""
        return Key(self.file, self.function, self.before, self.after)

    @property
    def place(self) -> str:
        """Return the place as an editor takes it."""
        return f"{self.file}:{self.line}"

    def applied(self, source: str) -> str:
        """Return the source with the change in it."""
        return source[: self.start] + self.text + source[self.end :]

    def diff(self) -> str:
        """Return the change in diff form."""
        return f"- {self.before}\n+ {self.after}" if self.after else f"- {self.before}"


def lines_around(source: str, start: int, end: int, text: str) -> tuple[str, str]:
    """Return the lines that a change touches as they were and as they become, joined and
    stripped.
    """
    first = source.rfind("\n", 0, start) + 1
    last = source.find("\n", end)
    last = len(source) if last < 0 else last
    before, after = source[first:last], source[first:start] + text + source[end:last]
    return _joined(before), _joined(after)


def _joined(text: str) -> str:
    return " ".join(line.strip() for line in text.splitlines() if line.strip())
