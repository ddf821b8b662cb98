"""Options that several commands have: how a file is written, and when something was made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import click

from worker.file_import import DELIMITER_OF, unfitting
from worker.importer import FORMATS, Source

F = TypeVar("F", bound=Callable[..., Any])

Option = Callable[[Any], Any]

FORM: Final[Sequence[Option]] = (
    click.option(
        "--format",
        "format_",
        type=click.Choice(FORMATS),
        help="Format of the file; detected if omitted.",
    ),
    click.option(
        "--delimiter",
        type=click.Choice([*DELIMITER_OF]),
        help="Delimiter of a CSV file; detected if omitted.",
    ),
    click.option("--sheet", metavar="NAME", help="Sheet to read, if a workbook has several."),
)
"""How a file is written."""
CURRENCY: Final[Option] = click.option(
    "--currency", metavar="ISO", help="Currency of rows that state none."
)


def days(*, required: bool) -> Sequence[Option]:
    """Return the options --from and --to."""
    return (
        click.option(
            "--from", "start", required=required, metavar="DATE", help="First day, or a time."
        ),
        click.option(
            "--to",
            "end",
            required=required,
            metavar="DATE",
            help="Last day, which counts as a whole; or a time, which does not count.",
        ),
    )


def with_options(options: Sequence[Option]) -> Callable[[F], F]:
    """Return a decorator that adds options to a command, in the order of its help."""

    def add(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def delimiter_of(name: str | None) -> str | None:
    """Return the delimiter that `--delimiter` names, None if it is to be detected."""
    return None if name is None else DELIMITER_OF[name]


def require_major(decimal: str, unit: str) -> None:
    """Refuse a decimal mark other than the point for amounts that have none."""
    if decimal != "point" and unit != "major":
        raise click.UsageError(
            "--decimal comma needs amounts in major units: add --amount-unit major"
        )


def require_fitting(source: Source) -> None:
    """Refuse an option that does not apply to the file's format."""
    if (sentence := unfitting(source)) is not None:
        raise click.UsageError(sentence)
