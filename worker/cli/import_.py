"""`refunds import`: its options and help.

Checks every row of the file before `import_run` goes further.
"""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import click

from worker import batches
from worker.cli.import_guards import parsed
from worker.cli.import_options import READING, reading
from worker.cli.import_run import ImportCommand, process
from worker.cli.options import require_fitting, with_options
from worker.cli.outputs import ERRORS, RESULTS, forget, named, output
from worker.cli.progress import progress
from worker.file_import import Limits, each_sum, length_of_time, most_errors, sums_or_one
from worker.importer import open_source, validate
from worker.settings import Settings
from worker.wording.ranges import Whole

_target = click.Path(dir_okay=False, path_type=Path)


def _is_one_file(one: Path, other: Path) -> bool:
    """Return whether two outputs would replace each other.

    Two links may lead to one terminal or pipe, as /dev/stdout and /dev/stderr do: it takes both.
    """
    if one.absolute() == other.absolute():
        return True
    is_replaced = one.is_file() or not one.exists()
    return is_replaced and os.path.realpath(one) == os.path.realpath(other)


@click.command(
    "import",
    epilog="""\b
Examples:
  refunds import refunds.csv --dry-run
  refunds import refunds.csv --expect-rows 120 --expect-total usd=1234500 --wait
  refunds import refunds.csv --id-from order_id,payment_intent
  refunds import payouts.xlsx --column payment_intent="Payment ID" --amount-unit major
  refunds import refunds.csv --on-error skip --max-errors 1% --errors bad.csv
  zcat season.csv.gz | refunds import - --delay 70m --json

\b
The first line names the columns, in any order: refund_id, payment_intent,
amount (minor units; blank for all that is left, with --all-remaining), currency,
reason, metadata.KEY.

\b
Exit codes: 3 rows are invalid, and nothing was imported; 6 a guard refused, and
nothing was imported, unless the batch was canceled or rows lost their ids during
the import; 9 every row was accepted before. With --wait: 0 all succeeded; 4 some
failed or need review, or the batch has paused itself.

\b
If an import is interrupted, run the same command again: it continues where it
stopped, and no refund is made twice.""",
)
@click.argument("file", metavar="FILE|-")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Check the file and compare it with the records; import nothing.",
)
@click.option(
    "--wait",
    is_flag=True,
    help=(
        "Show progress until every refund is settled or needs review, or the batch has paused"
        " itself."
    ),
)
@click.option(
    "--result",
    type=_target,
    callback=named,
    metavar="FILE",
    help="Write all rows with their results. Only such a FILE of an earlier run is replaced.",
)
@click.option(
    "--errors",
    type=_target,
    callback=named,
    metavar="FILE",
    help=(
        "Write the invalid rows with their errors. Only such a FILE of an earlier run is replaced,"
        " or removed if no row is invalid."
    ),
)
@click.option(
    "--on-error",
    type=click.Choice(["abort", "skip"]),
    default="abort",
    show_default=True,
    help="If rows are invalid: import nothing, or skip them.",
)
@click.option(
    "--max-errors",
    metavar="N|P%",
    callback=parsed(most_errors),
    help="With --on-error skip: how many rows may be invalid.",
)
@click.option(
    "--expect-rows",
    type=Whole(min=1),
    metavar="N",
    help="Refuse a file with another number of rows.",
)
@click.option(
    "--expect-total",
    "totals",
    metavar="CUR=MINOR",
    multiple=True,
    callback=parsed(each_sum),
    help="Refuse a file with another total; repeat it for each currency.",
)
@click.option(
    "--max-total",
    "most_totals",
    metavar="[CUR=]MINOR",
    multiple=True,
    callback=parsed(sums_or_one),
    help="Refuse a file with a larger total; MINOR alone applies to each currency.",
)
@click.option(
    "--allow-repeat", is_flag=True, help="Allow the same payment and amount under another id."
)
@click.option(
    "--all-remaining",
    is_flag=True,
    help="A row without an amount refunds all that is left of its payment.",
)
@click.option(
    "--again", is_flag=True, help="Import the new rows of a file that was imported before."
)
@click.option(
    "--delay",
    metavar="TIME",
    callback=parsed(length_of_time),
    help="Send nothing for this long: 70m, 1h30m.",
)
@click.option("--batch", metavar="NAME", help="Name of the batch; generated if omitted.")
@with_options(READING)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def import_file(
    *,
    file: str,
    result: Path | None,
    errors: Path | None,
    expect_rows: int | None,
    totals: dict[str | None, int],
    most_totals: dict[str | None, int],
    **values: Any,
) -> int:
    """Import a file of refunds.

    Every row is checked first; if one is invalid, nothing is imported. FILE may be CSV, JSON lines
    or XLSX, also gzipped; - is standard input.
    """
    names = (
        *("dry_run", "wait", "again", "allow_repeat", "all_remaining", "delay"),
        *("on_error", "max_errors", "as_json", "batch"),
    )
    given = {name: values.pop(name) for name in names}
    if given["max_errors"] is not None and given["on_error"] != "skip":
        raise click.UsageError(
            "--max-errors needs --on-error skip: without it, any invalid row stops the import"
        )
    if given["batch"] is not None:
        given["batch"] = batches.checked_batch_id(given["batch"])
    if result is not None and errors is not None and _is_one_file(result, errors):
        raise click.UsageError(f"--result and --errors both name {result}: give each its own file")
    given["delay"] = given["delay"] or timedelta(0)
    settings = Settings.load()
    limits = Limits(
        rows=expect_rows,
        totals=totals,
        most_totals=most_totals,
        most_amount=settings.max_amount,
        unit=values["amount_unit"],
    )
    options = ImportCommand(**given, limits=limits)
    with (
        open_source(file, reading(**values), sys.stdin.buffer) as source,
        output(file, result, RESULTS) as write_all,
        output(file, errors, ERRORS) as write_refused,
    ):
        require_fitting(source)
        with progress("rows checked", None) as show:
            validation = validate(source, show)
        if not validation.summary.refused:
            forget(errors)
        return process(settings, source, validation, options, write_all, write_refused)
