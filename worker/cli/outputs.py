"""Files that a command writes: checked as writable before all else, never visible half written.

The files hold customers' data, so only their owner may read them. Rows go to a new file with a
random name, which no other user can have created before. A file of another kind, which somebody
named by mistake, is never replaced or removed.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Final, NamedTuple

import click

from worker.cli.session import note
from worker.errors import InputError
from worker.importer.columns import is_of_errors, is_of_results
from worker.model.words import counted

_NAME: Final = 40
# The first row of a file can be longer than that of the input, whose limit is 1 MiB.
_HEAD: Final = 8 * 1024 * 1024
_SEPARATOR: Final = re.compile(r"sep=(.)\r?\n")
# Names of open files: the file behind them may be a plain one, but is not replaced by its name.
_OPEN_FILES: Final = re.compile(r"/dev/(?:std(?:in|out|err)|fd/\d+)|/proc/(?:self|\d+)/fd/\d+")
RESULT_ROWS: Final = "with results"
Fill = Callable[[IO[str]], int]
"""Writes rows and returns their number."""
Write = Callable[[Fill, str], None]
"""Writes a whole file, and reports the number of rows; the text describes the rows."""


class Kind(NamedTuple):
    """A kind of file that commands write; a file of the same kind may be replaced."""

    name: str
    has_columns: Callable[[Sequence[str]], bool]
    """Returns whether columns with these names are those of this kind."""


ERRORS: Final = Kind("a file of errors", is_of_errors)
RESULTS: Final = Kind("a file of results", is_of_results)


@contextmanager
def output(file: str, target: Path | None, kind: Kind) -> Iterator[Write]:
    """Yield the function that writes `target`, which may not be the input `file`.

    Without a target it does nothing. If nothing is written, a file of an earlier run stays, and a
    note says so.

    Raises `InputError` at once if `target` cannot be written, or is a file of another kind.
    """
    if target is None:
        yield lambda *_: None
        return
    try:
        if file != "-" and target.exists() and target.samefile(file):
            raise InputError(f"{target} is the input file: choose another file for the output")
        # A device or a pipe, such as the shell's >(…), is written to directly and never replaced.
        plain = target.is_file() or not target.exists()
        _require_kind(target, kind)
        out, part = (
            _part(target) if plain else (target.open("w", encoding="utf-8", newline=""), target)
        )
    except OSError as error:
        raise InputError(
            f"{target} cannot be written ({error.strerror}): choose another file"
        ) from None

    is_written = False

    def write(fill: Fill, what: str) -> None:
        nonlocal is_written
        try:
            rows = fill(out)
            out.close()
            if plain:
                # It may have come while the command ran.
                _require_kind(target, kind)
                # In one step, so that no reader ever sees half a file.
                part.replace(target)
            is_written = True
        except OSError as error:
            raise InputError(
                f"{target} cannot be written ({error.strerror}): choose another file"
            ) from None
        note(f"{counted(rows, 'row')} {what}: {target}")

    try:
        yield write
    finally:
        # On a full disk the rest of the buffer cannot be written. It is not needed.
        with suppress(OSError):
            out.close()
        if plain:
            part.unlink(missing_ok=True)
            if not is_written and target.is_file() and target.stat().st_size:
                note(f"{target} was left as it was: nothing in it is from this run")


def _part(target: Path) -> tuple[IO[str], Path]:
    """Open a new file beside the target, under a random name, which only its owner may read."""
    descriptor, name = tempfile.mkstemp(
        prefix=f"{target.name[:_NAME]}.", suffix=".part", dir=target.parent
    )
    return os.fdopen(descriptor, "w", encoding="utf-8", newline=""), Path(name)


def forget(target: Path | None) -> None:
    """Remove an earlier run's file of errors if this run has nothing to write: it would mislead.

    Raises `InputError` if it is another file, or cannot be removed.
    """
    if target is None or not target.is_file():
        return
    try:
        _require_kind(target, ERRORS)
        target.unlink()
    except OSError as error:
        raise InputError(
            f"{target} is from an earlier run and cannot be removed ({error.strerror}): choose"
            " another file"
        ) from None
    note(f"no row is invalid: {target} from an earlier run was removed")


def _require_kind(target: Path, kind: Kind) -> None:
    """Raise `InputError` if a plain file has other contents than an earlier run has written.

    An empty file has nothing to lose.
    """
    if not target.is_file():
        return
    if _OPEN_FILES.fullmatch(str(target)):
        raise InputError(f"{target} leads to a plain file here: name that file itself")
    with target.open("rb") as file:
        head = file.read(_HEAD).decode("utf-8-sig", errors="replace")
    if head and not any(map(kind.has_columns, _headers(head))):
        raise InputError(
            f"{target} exists and is not {kind.name}, so it is not replaced: choose another name,"
            " or move that file away"
        )


def _headers(head: str) -> Iterator[Sequence[str]]:
    """Yield the names of the columns of a file that begins so, by every delimiter it may have."""
    if head.startswith("{"):
        with suppress(ValueError, RecursionError):
            yield list(json.loads(head.partition("\n")[0]))
        return
    named = _SEPARATOR.match(head)
    rest = head[named.end() :] if named else head
    for delimiter in named[1] if named else ",;\t":
        try:
            yield next(csv.reader(io.StringIO(rest, newline=""), delimiter=delimiter))
        except (csv.Error, StopIteration, ValueError):
            continue


def named(_ctx: click.Context, param: click.Parameter, target: Path | None) -> Path | None:
    """Return the file to write; this click callback refuses `-`: the summary goes to stdout."""
    if target == Path("-"):
        raise click.BadParameter(
            "'-' must be a file, because the summary goes to standard output", param=param
        )
    return target


@contextmanager
def standard_output() -> Iterator[Write]:
    """Yield the function that writes to stdout, without changing line ends."""

    def write(fill: Fill, _what: str) -> None:
        sys.stdout.reconfigure(encoding="utf-8", newline="")  # type: ignore[union-attr]
        fill(sys.stdout)

    yield write
