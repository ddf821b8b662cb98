"""`refunds reconcile`: compares the provider's file of refunds with the records."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import tzinfo
from pathlib import Path
from typing import Any, Final, cast

import click

from worker.cli import reconcile_report as report
from worker.cli.exits import DONE, INTERNAL, NOTHING_TO_DO, SOME_FAILED
from worker.cli.import_messages import say_hidden
from worker.cli.options import (
    CURRENCY,
    FORM,
    days,
    delimiter_of,
    require_fitting,
    require_major,
    with_options,
)
from worker.cli.outputs import named, output
from worker.cli.session import note, opened
from worker.cli.windows import window_of
from worker.errors import GuardRefused, InputError
from worker.importer import ImportOptions, open_source
from worker.importer.options import DecimalMark
from worker.model.currencies import AmountUnit
from worker.model.times import rfc3339
from worker.model.words import counted
from worker.reconcile import comparing, mapping
from worker.reconcile.books import Books, books
from worker.reconcile.export import MOST_ERRORS, Export, Reading
from worker.reconcile.mapping import CHOICES, FIELDS, STATUSES, ExportMapping, MappingError
from worker.reconcile.window import Window, WindowError, zone_of
from worker.store import rechecks
from worker.store.store import Store

MOST_LOOKED_AT: Final = 5_000
"""Refunds that one run has read again: more of them come from a wrong file, window or unit."""
_AT_ONCE: Final = 100


def _pairs(
    names: tuple[str, ...] | None, values: tuple[str, ...] | None
) -> Callable[[click.Context, click.Parameter, tuple[str, ...]], dict[str, str]]:
    def callback(
        _ctx: click.Context, param: click.Parameter, texts: tuple[str, ...]
    ) -> dict[str, str]:
        try:
            return mapping.pairs(texts, names, values)
        except MappingError as error:
            raise click.BadParameter(str(error), param=param) from None

    return callback


_OPTIONS: Final = (
    *days(required=False),
    click.option(
        "--tz",
        metavar="ZONE",
        help="Zone of times without one, such as Europe/Berlin or +02:00; UTC if omitted.",
    ),
    click.option(
        "--map",
        "columns",
        multiple=True,
        metavar='FIELD="Column"',
        callback=_pairs(FIELDS, None),
        help=f"The file's column for one of {', '.join(FIELDS)}; repeat it for each.",
    ),
    click.option(
        "--map-status",
        "statuses",
        multiple=True,
        metavar='"Word"=STATUS',
        callback=_pairs(None, STATUSES),
        help=f"The status that a word of the file means: {', '.join(STATUSES)}.",
    ),
    click.option(
        "--mapping",
        "mapping_file",
        type=click.Path(path_type=Path),
        help="TOML file that keeps these options; written if it does not exist.",
    ),
    click.option(
        "--amount-unit",
        type=click.Choice(CHOICES["amount_unit"]),
        help="Unit of the amounts; minor if omitted.",
    ),
    click.option(
        "--decimal",
        type=click.Choice(CHOICES["decimal"]),
        help="Decimal mark of amounts in major units; point if omitted.",
    ),
    click.option(
        "--sign",
        type=click.Choice(CHOICES["sign"]),
        help="Sign of refunds in the file; positive if omitted.",
    ),
    CURRENCY,
    click.option("--status", type=click.Choice(STATUSES), help="Status of rows that state none."),
    *FORM,
    click.option(
        "--output",
        "target",
        type=click.Path(path_type=Path),
        callback=named,
        help=(
            "Write every difference to this CSV file. Only such a file of an earlier run is"
            " replaced."
        ),
    ),
    click.option(
        "--look",
        "--recheck",
        "look",
        is_flag=True,
        help="Let the workers read at the provider what differs.",
    ),
    click.option("--json", "as_json", is_flag=True, help="Print one JSON object."),
)


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """What the command line says about the file and the window."""

    file: str
    mapping: ExportMapping
    reading: Reading
    options: ImportOptions
    start: str | None
    end: str | None
    kept_in: Path | None


@click.command(
    epilog="""\b
Examples:
  refunds reconcile january.csv --from 2026-01-01 --to 2026-01-31
  refunds reconcile january.csv --output differences.csv --look
  refunds reconcile export.xlsx --map id="Refund ID" --map amount="Net" \\
      --amount-unit major --sign negative --mapping provider.toml

\b
Exit code: 0 if all agrees; 1 if the classes do not add up; 3 if the file
cannot be read; 4 if something differs; 5 if Redis is unavailable; 6 if
--look would read too much; 9 if neither side has a refund in the window."""
)
@click.argument("file", metavar="FILE|-")
@with_options(_OPTIONS)
def reconcile(
    *,
    file: str,
    start: str | None,
    end: str | None,
    mapping_file: Path | None,
    target: Path | None,
    look: bool,
    as_json: bool,
    **how: Any,
) -> int:
    """Compare the provider's file of refunds with the records, for a window of time.

    Each refund gets one class, and the classes add up to the difference of the sums. Nothing is
    changed. With --look the workers read again what differs: the provider's answer decides, never
    the file.
    """
    if (start is None) != (end is None):
        raise click.UsageError("--from and --to belong together: give both, or neither")
    asked = _asked(file, start, end, mapping_file, how)
    return _run(asked, target, look=look, as_json=as_json)


def _asked(
    file: str, start: str | None, end: str | None, mapping_file: Path | None, how: dict[str, Any]
) -> _Asked:
    """Return what is asked for: the options, after those of the mapping's file."""
    kept = ExportMapping()
    if mapping_file is not None and mapping_file.exists():
        kept = mapping.read(mapping_file)
    settings = ("amount_unit", "decimal", "sign", "currency", "status", "tz")
    whole = kept.with_(
        columns=how["columns"],
        statuses=how["statuses"],
        file={name: how[name] for name in settings if how[name] is not None},
    )
    stated = whole.file
    unit, decimal = stated.get("amount_unit", "minor"), stated.get("decimal", "point")
    require_major(decimal, unit)
    options = ImportOptions(
        format=how["format_"],
        delimiter=delimiter_of(how["delimiter"]),
        sheet=how["sheet"],
        amount_unit=cast("AmountUnit", unit),
        decimal=cast("DecimalMark", decimal),
        default_currency=stated.get("currency"),
    )
    reading = Reading(
        mapping=whole,
        zone=_zone(stated),
        unit=options.amount_unit,
        decimal=options.decimal,
        negative=stated.get("sign") == "negative",
        currency=options.default_currency,
        status=stated.get("status"),
    )
    return _Asked(
        file=file,
        mapping=whole,
        reading=reading,
        options=options,
        start=start,
        end=end,
        kept_in=mapping_file,
    )


def _zone(stated: Mapping[str, str]) -> tzinfo:
    try:
        return zone_of(stated.get("tz", "UTC"))
    except WindowError as error:
        raise click.BadParameter(str(error), param_hint="'--tz'") from None


def _run(asked: _Asked, target: Path | None, *, look: bool, as_json: bool) -> int:
    # A mistyped window is reported before a long file is read.
    window = None
    if asked.start is not None and asked.end is not None:
        window = window_of(asked.start, asked.end, asked.reading.zone)
    with output(asked.file, target, report.DIFFERENCES) as write, books() as sides:
        export, window = _load(asked, sides, window)
        _keep(asked)
        with opened() as refunds:
            comparing.gather(refunds.store, sides, window)
            outcome = comparing.compare(sides, window)
            if not outcome.sums:
                note("neither the file nor the records have a refund in this window")
                return NOTHING_TO_DO
            looked = _look(refunds.store, sides) if look else None
        if target is not None:
            write(lambda out: report.write_csv(sides.items(), out), "with differences")
        if as_json:
            report.put_json(export, window, outcome, looked)
        else:
            report.put(sides, outcome, listed=target is None)
    if broken := [balance for balance in outcome.balances if not balance.holds]:
        for balance in broken:
            note(f"error: {report.sentence(balance)}: this is a bug, please report it")
        return INTERNAL
    if twice := outcome.counts().get("twice"):
        note(
            f"alarm: money may have moved twice, by {counted(twice, 'refund')} of the provider: see"
            " them first in the differences, and check them in its dashboard"
        )
    if outcome.counts().get(comparing.OTHER_WINDOW) and not comparing.can_miss(window):
        note(
            "the window is so short that no refund of ours can be missing there: name a longer one,"
            " of three days or more, to find those that the file does not have"
        )
    if outcome.differs and looked is None:
        note("let the workers read at the provider what differs: run it again with --look")
    return SOME_FAILED if outcome.differs else DONE


def _load(asked: _Asked, sides: Books, window: Window | None) -> tuple[Export, Window]:
    """Read the file into the books; return it, and the window. Raises `InputError`."""
    with open_source(asked.file, asked.options, sys.stdin.buffer) as source:
        require_fitting(source)
        export = Export(source=source, reading=asked.reading)
        for row in export.rows():
            if (line := sides.add_theirs(row)) is not None:
                rule = f"is on line {line} too: export each refund once"
                export.refuse(row.line, export.columns.get("id", "id"), "twice", row.id, rule)
        if export.unused:
            names = ", ".join(repr(name) for name in export.unused[:MOST_ERRORS])
            note(f"columns that are not used: {names}")
        if export.broken:
            raise _unreadable(export)
        say_hidden(source)
        if window is None:
            window = _window_of_file(export, sides)
    if left_out := sides.set_window(*report.as_ms(window)):
        note(f"made outside this window: {counted(left_out, 'row')} of the file")
    return export, window


def _keep(asked: _Asked) -> None:
    """Keep the options in the file that was named for them, once they are known to fit."""
    if asked.kept_in is not None and not asked.kept_in.exists():
        mapping.write(asked.kept_in, asked.mapping)
        note(f"these options are kept in {asked.kept_in}")


def _unreadable(export: Export) -> InputError:
    lines = [
        f"line {error.line}, {error.column} {error.value}: {error.rule}" for error in export.errors
    ]
    more = export.broken - len(lines)
    lines += [f"and {more:,} more"] if more > 0 else []
    return export.source.problem(
        "\n  ".join([f"{counted(export.broken, 'cell')} cannot be read:", *lines])
    )


def _window_of_file(export: Export, sides: Books) -> Window:
    span = sides.span()
    if span is None:
        what = "does not say when its refunds were made" if sides.has_rows() else "has no rows"
        raise click.UsageError(f"{export.source.name} {what}: give --from and --to")
    try:
        window = comparing.day_window(*span, export.reading.zone)
    except OverflowError:
        raise click.UsageError(
            f"the days of {export.source.name} go beyond the years 1 to 9999: give --from and --to"
        ) from None
    note(
        f"from {rfc3339(window.start)} up to {rfc3339(window.end)}, the days of the file's rows:"
        " --from and --to name another window"
    )
    return window


def _look(store: Store, sides: Books) -> int:
    """Have what differs read again; return how many refunds were named. Raises `GuardRefused`."""
    hints, without_id, without_payment = [], 0, 0
    for item in sides.items():
        hint = comparing.hint_of(item)
        without_id += hint is None and item.kind == "missing_there"
        if item.kind == "missing_here" and item.row is not None:
            without_payment += item.row.theirs.payment is None
        if hint is not None:
            hints.append(hint)
        if len(hints) > MOST_LOOKED_AT:
            raise GuardRefused(
                f"--look would have more than {MOST_LOOKED_AT:,} refunds read again: check the"
                " file, the window and the unit first; nothing was read"
            )
    for start in range(0, len(hints), _AT_ONCE):
        store.run_many([rechecks.hint(hint) for hint in hints[start : start + _AT_ONCE]])
    if hints:
        note(f"{counted(len(hints), 'refund')} will be read again: run the same command afterwards")
    else:
        note("nothing is read again: no difference names a refund that can be read")
    if without_id:
        note(f"missing there, without a provider id to be read by: {counted(without_id, 'refund')}")
    if without_payment:
        rows = counted(without_payment, "refund")
        note(f"missing here, without a payment to be read by: {rows}")
    return len(hints)
