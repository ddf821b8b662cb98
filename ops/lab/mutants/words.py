"""Which tests speak of what a mutant changes.

A line that every refund runs is run by thousands of tests. The few that are about it mostly use its
words.
"""

from __future__ import annotations

import ast
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Final

from ops.lab.mutants.change import Mutant

_WORD: Final = re.compile(r"[A-Za-z]{4,}")
_LETTERS: Final = 4
"""By these first letters "expire" and "expires" are one word."""
_BY_NAME: Final = 3
"""A test whose file is named like the changed file is as near as by so many words of its own."""


class Words:
    """The words of tests, by their plain names; those that few tests use count most."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        self._tests = {name: _words(text) for name, text in texts.items()}
        self._used: Counter[str] = Counter()
        for words in self._tests.values():
            self._used.update(words)
        self._files = {name: _stem(name.partition("::")[0]) for name in texts}

    def nearness(self, mutant: Mutant) -> dict[str, float]:
        """Return for each test how near it is to a mutant: 0 if they share no word that tells."""
        words = _words(f"{mutant.function} {mutant.before}") & self._used.keys()
        weights = {word: math.log(len(self._tests) / self._used[word]) for word in words}
        stem = _stem(mutant.file)
        namesakes = {name for name, words in self._files.items() if words & stem}
        by_name = _BY_NAME * math.log(len(self._tests) / len(namesakes)) if namesakes else 0.0
        return {
            name: sum(weights[word] for word in known & weights.keys())
            + (by_name if name in namesakes else 0.0)
            for name, known in self._tests.items()
        }


def texts_of(files: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return the text of each test by its name without parameters, of (path, text) of files."""
    return {
        f"{path}::{node.name}": ast.get_source_segment(text, node) or ""
        for path, text in files
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def plain(test: str) -> str:
    """Return a test's name without its class and parameters."""
    file, _, name = test.partition("::")
    return f"{file}::{name.partition('[')[0].rpartition('::')[2]}"


def _stem(path: str) -> set[str]:
    return _words(PurePath(path).stem.removeprefix("test"))


def _words(text: str) -> set[str]:
    return {word[:_LETTERS].lower() for word in _WORD.findall(text)}
