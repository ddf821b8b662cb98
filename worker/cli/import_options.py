"""How a file is read: by options, or as detected from the file.

It is stored with the batch, so that the file can be read the same way again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import Any, Final, TypeVar

import click

from worker.importer import (
    DELIMITERS,
    FIELDS,
    FORMATS,
    MOST_ATTEMPTS,
    ImportOptions,
    Source,
    delimiter_of,
    describe,
    field_of,
    is_settable,
)
from worker.ranges import Whole

F = TypeVar("F", bound=Callable[..., Any])

_DELIMITERS: Final = {name: character for character, name in DELIMITERS.items()}
_KINDS: Final = {"xlsx": "a workbook", "csv": "a CSV"}


def _each_column(
    _ctx: click.Context, param: click.Parameter, texts: Iterable[str]
) -> tuple[tuple[str, str], ...]:
    """Return `FIELD="Header"`, once for each field, as pairs; a click callback."""
    pairs: dict[str, str] = {}
    for text in texts:
        name, equals, header = text.partition("=")
        field = field_of(name)
        if not equals or not is_settable(field):
            near = get_close_matches(field, FIELDS, n=1)
            meant = f"; did you mean {near[0]}?" if near and equals else ""
            rule = (
                f'must be FIELD="Header", with FIELD one of {", ".join(FIELDS)} or'
                f" metadata.KEY{meant}"
            )
            raise click.BadParameter(f"{text!r} {rule}", param=param)
        if field in pairs:
            raise click.BadParameter(
                f"{text!r}: {field} is given twice, name one column for it", param=param
            )
        pairs[field] = header.strip()
    return tuple(pairs.items())


_OPTIONS: Final = (
    click.option(
        "--format",
        "format_",
        type=click.Choice(FORMATS),
        help="Format of the file; detected if omitted.",
    ),
    click.option(
        "--delimiter",
        type=click.Choice([*_DELIMITERS]),
        help="Delimiter of a CSV file; detected if omitted.",
    ),
    click.option("--sheet", metavar="NAME", help="Sheet to read, if a workbook has several."),
    click.option(
        "--column",
        "columns",
        metavar='FIELD="Header"',
        multiple=True,
        callback=_each_column,
        help="The column that holds a field, if it has another name; repeat it for each field.",
    ),
    click.option(
        "--id-from",
        metavar="COLUMNS",
        help="Make each refund's id from these columns, comma-separated.",
    ),
    click.option(
        "--attempt",
        type=Whole(min=1, max=MOST_ATTEMPTS),
        default=1,
        show_default=True,
        metavar="N",
        help=(
            "With --id-from: 2 makes new ids from the same columns, for corrected rows of failed"
            " refunds."
        ),
    ),
    click.option(
        "--amount-unit",
        type=click.Choice(["minor", "major"]),
        default="minor",
        show_default=True,
        help="Unit of the amounts: 500 in minor units is 5.00 in major units.",
    ),
    click.option(
        "--decimal",
        type=click.Choice(["point", "comma"]),
        default="point",
        show_default=True,
        help="Decimal mark of amounts in major units: comma for 1.234,50.",
    ),
    click.option("--currency", metavar="ISO", help="Currency of rows that state none."),
    click.option("--ignore-extra", is_flag=True, help="Ignore columns with unknown names."),
)


def reading_options(command: F) -> F:
    """Add to a command the options that `reading` takes."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def reading(
    *,
    format_: Any,
    delimiter: str | None,
    sheet: str | None,
    columns: tuple[tuple[str, str], ...],
    id_from: str | None,
    attempt: int,
    amount_unit: Any,
    decimal: Any,
    currency: str | None,
    ignore_extra: bool,
) -> ImportOptions:
    """Return how the command line says to read a file. Raises `InputError`."""
    if attempt > 1 and id_from is None:
        raise click.UsageError(
            f"--attempt {attempt} needs --id-from: in a file with its own ids, give a corrected row"
            " a new id"
        )
    if decimal != "point" and amount_unit != "major":
        raise click.UsageError(
            "--decimal comma needs amounts in major units: add --amount-unit major"
        )
    return ImportOptions(
        format=format_,
        delimiter=None if delimiter is None else _DELIMITERS[delimiter],
        sheet=sheet,
        columns=columns,
        id_from=tuple(name.strip() for name in id_from.split(",")) if id_from is not None else (),
        attempt=attempt,
        amount_unit=amount_unit,
        decimal=decimal,
        default_currency=currency,
        ignore_extra=ignore_extra,
    )


def require_fitting(source: Source) -> None:
    """Refuse an option that does not apply to the file's format.

    The user meant another file or format.
    """
    options = source.options
    for option, value, fitting in (
        ("--sheet", options.sheet, "xlsx"),
        ("--delimiter", options.delimiter, "csv"),
    ):
        if value is not None and source.format != fitting:
            raise click.UsageError(
                f"{option} applies only to {_KINDS[fitting]}, but {source.name} is read as"
                f" {describe(source)}: leave the option out, or name another file"
            )


def stored_reading(source: Source) -> str:
    """Return as JSON how a file was read, detected values included, to read the same rows again."""
    options = source.options
    kept: dict[str, Any] = {
        "format": source.format,
        "delimiter": delimiter_of(source),
        "sheet": options.sheet,
        "columns": options.columns,
        "id_from": list(options.id_from),
        "attempt": options.attempt if options.attempt > 1 else None,
        "amount_unit": options.amount_unit if options.amount_unit != "minor" else None,
        "decimal": options.decimal if options.decimal != "point" else None,
        "default_currency": options.default_currency,
        "ignore_extra": options.ignore_extra,
    }
    return json.dumps({name: value for name, value in kept.items() if value}, sort_keys=True)


def reading_of(stored: str) -> ImportOptions:
    """Return how to read the file of a batch, from what the batch stored."""
    kept: dict[str, Any] = json.loads(stored) if stored else {}
    columns = tuple((field, header) for field, header in kept.pop("columns", ()))
    return ImportOptions(**{**kept, "columns": columns, "id_from": tuple(kept.get("id_from", ()))})
