"""How a file is read, as the options of a command say."""

from __future__ import annotations

from typing import Any, Final

import click

from worker.cli.import_guards import parsed
from worker.cli.options import CURRENCY, FORM, delimiter_of, require_major
from worker.file_import import columns_of
from worker.importer import MOST_ATTEMPTS, ImportOptions
from worker.wording.ranges import Whole

READING: Final = (
    *FORM,
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
    CURRENCY,
    click.option("--ignore-extra", is_flag=True, help="Ignore columns with unknown names."),
)
"""The options that `reading` takes."""


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
    require_major(decimal, amount_unit)
    return ImportOptions(
        format=format_,
        delimiter=delimiter_of(delimiter),
        sheet=sheet,
        columns=columns,
        id_from=tuple(name.strip() for name in id_from.split(",")) if id_from is not None else (),
        attempt=attempt,
        amount_unit=amount_unit,
        decimal=decimal,
        default_currency=currency,
        ignore_extra=ignore_extra,
    )
