"""How a file is read, as the options of a command say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

from worker.cli.import_guards import parsed
from worker.importer import FORMATS, MOST_ATTEMPTS, ImportOptions, Source
from worker.imports import DELIMITER_OF, columns_of, unfitting
from worker.ranges import Whole

F = TypeVar("F", bound=Callable[..., Any])


_OPTIONS: Final = (
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
    click.option(
        "--column",
        "columns",
        metavar='FIELD="Header"',
        multiple=True,
        callback=parsed(columns_of),
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
        delimiter=None if delimiter is None else DELIMITER_OF[delimiter],
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
    """Refuse an option that does not apply to the file's format."""
    if (sentence := unfitting(source)) is not None:
        raise click.UsageError(sentence)
