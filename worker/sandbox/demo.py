"""The demo: imports a file of refunds with a real Redis server and worker.

The provider is simulated, with faults. `./ops/dev demo` exits with 0 only if the sandbox's ledger
and the records agree on every refund.
"""

from __future__ import annotations

import csv
import secrets
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from worker.client import Refunds
from worker.errors import RefundError, StoreUnavailable
from worker.model.refund import Refund, Stage, Status
from worker.sandbox.installation import environment, process, sandbox_process
from worker.sandbox.judging import (
    false_failed,
    false_id,
    false_succeeded,
    made_beside_another,
    made_by,
)
from worker.sandbox.redis_server import running_server
from worker.settings import Settings
from worker.wording.ranges import Whole

FAULTS: Final = ",".join(  # noqa: FLY002 - one fault a line, easy to compare with the table
    (
        "http_500_before:n=4",
        "http_503_after:n=9",
        "cut_after:n=14",
        "html_502_after:n=19",
        "reset_before:n=23",
        "http_429:n=27:retry_after=seconds",
    )
)
KEY: Final = "sk_test_demo"
PENDING_MS: Final = 800
_PATIENCE: Final = 60.0


@dataclass(frozen=True)
class Row:
    """One row of the demo's file, with the final status it must reach."""

    refund_id: str
    payment_intent: str
    amount: str
    story: str
    expected: Status


def rows(count: int) -> list[Row]:
    """Return the file's rows: plain ones, and one for each way a refund can end."""
    plain = [
        Row(
            f"order-{1001 + number}-1",
            f"pi_demo{1001 + number}",
            str(500 + 25 * number),
            "plain",
            Status.SUCCEEDED,
        )
        for number in range(count)
    ]
    special = [
        Row("order-2001-1", "pi_declined_2001", "1200", "declined card", Status.FAILED),
        Row(
            "order-2002-1",
            "pi_pending_succeeded_2002",
            "900",
            "pending, then succeeded",
            Status.SUCCEEDED,
        ),
        Row("order-2003-1", "pi_pending_failed_2003", "700", "pending, then failed", Status.FAILED),
        Row("order-2004-1", "pi_demo2004", "250000", "more than was paid", Status.FAILED),
        Row("order-2005-1", "pi_missing_2005", "300", "no such payment", Status.FAILED),
        Row("order-2006-1", "pi_demo2006", "60000", "first part", Status.SUCCEEDED),
        Row("order-2006-2", "pi_demo2006", "40000", "second part, same payment", Status.SUCCEEDED),
        Row("order-2007-1", "pi_demo2007", "", "all that is left", Status.SUCCEEDED),
    ]
    return plain + special


def _environment(redis_url: str, prefix: str, api_url: str) -> dict[str, str]:
    variables = {
        "REFUNDS_REDIS_URL": redis_url,
        "REFUNDS_PREFIX": prefix,
        "REFUNDS_API_URL": api_url,
        "REFUNDS_API_KEY": KEY,
        # The sandbox ignores keys here, as an untested provider might. So nothing is sent again
        # without proof.
        "REFUNDS_IDEMPOTENCY": "verify",
        "REFUNDS_READBACK": "list",
        # A real provider gets five minutes; this one is never late.
        "REFUNDS_SETTLE_SECONDS": "0.3",
        "REFUNDS_REQUEST_TIMEOUT_SECONDS": "3",
        "REFUNDS_LEASE_SECONDS": "10",
        "REFUNDS_LOG_FORMAT": "json",
    }
    return environment(variables)


def _write(path: Path, wanted: Sequence[Row]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["refund_id", "payment_intent", "amount", "reason", "metadata.story"])
        writer.writerows(
            [row.refund_id, row.payment_intent, row.amount, "requested_by_customer", row.story]
            for row in wanted
        )


def _wait_for_all(refunds: Refunds, ids: Sequence[str]) -> list[Refund]:
    end = time.monotonic() + _PATIENCE
    while True:
        records = [record for record in refunds.get_many(ids) if record is not None]
        if len(records) == len(ids) and all(
            record.settled or record.stage is Stage.REVIEW for record in records
        ):
            return records
        if time.monotonic() > end:
            raise RefundError(
                "the refunds did not settle within a minute: see the worker's log above"
            )
        time.sleep(0.1)


def _table(wanted: Sequence[Row], records: Sequence[Refund], effects: Counter[str]) -> Table:
    table = Table(title="Results", title_justify="left", box=SIMPLE_HEAD)
    for name in ("refund", "story", "amount", "status", "attempts", "evidence or reason", "moved"):
        table.add_column(
            name,
            justify="right" if name in {"amount", "attempts", "moved"} else "left",
            no_wrap=True,
        )
    by_id = {record.refund_id: record for record in records}
    eventful = [row for row in wanted if row.story != "plain" or by_id[row.refund_id].attempts > 1]
    eventful += [
        row for row in wanted if row.story == "plain" and by_id[row.refund_id].evidence == "list"
    ]
    chosen = list(dict.fromkeys(eventful))
    plain = [row for row in wanted if row not in chosen]
    for row in [*plain[:3], *chosen]:
        record = by_id[row.refund_id]
        why = record.error_code or (f"{record.evidence}" if record.evidence else "")
        amount = row.amount or "the rest"
        moved = str(effects[row.refund_id])
        table.add_row(
            row.refund_id, row.story, amount, str(record.status), str(record.attempts), why, moved
        )
    if len(plain) > 3:  # noqa: PLR2004 - the three shown above
        table.caption = f"and {len(plain) - 3} more like the first three"
    return table


def judge(
    wanted: Sequence[Row], records: Sequence[Refund], ledger: Sequence[dict[str, Any]]
) -> list[str]:
    """Compare the ledger with the records and return each disagreement as a sentence."""
    made = made_by(ledger)
    wrong = [f"{refund_id}: {fact}" for refund_id, fact in made_beside_another(ledger)]
    by_id = {record.refund_id: record for record in records}
    for row in wanted:
        record, own = by_id[row.refund_id], made.get(row.refund_id, [])
        good = [one for one in own if one.status == "succeeded"]
        if record.status is Status.SUCCEEDED:
            fact = false_succeeded(own, good) or false_id(record.provider_refund_id, good)
        else:
            fact = false_failed(str(record.status), own)
        if fact is not None:
            wrong.append(f"{row.refund_id} is recorded {record.status}: {fact}")
        if record.status is not row.expected:
            wrong.append(f"{row.refund_id} ended {record.status}, expected {row.expected}")
    if strangers := set(made) - set(by_id):
        wrong.append(f"the ledger holds effects of unknown refunds: {sorted(strangers)}")
    recorded = sum(record.amount or 0 for record in records if record.status is Status.SUCCEEDED)
    moved = sum(one.amount for each in made.values() for one in each if one.status == "succeeded")
    if recorded != moved:
        wrong.append(f"the records add up to {recorded} and the ledger to {moved}")
    return wrong


class _WrongServer(click.ClickException):
    exit_code = 2


def _server(stack: ExitStack, given: str | None) -> tuple[str, str]:
    """Return the URL of the server for the demo and the prefix of its keys.

    Start a server unless one is given.
    """
    if given is not None:
        return given, f"demo-{secrets.token_hex(3)}:"
    try:
        return stack.enter_context(running_server()).url, "refunds:"
    except StoreUnavailable as error:
        raise _WrongServer(str(error)) from None


@click.command(
    help="Import refunds on a throw-away server with the sandbox provider, and count the money."
)
@click.option(
    "--redis-url",
    "given",
    metavar="URL",
    help=(
        "Use this server instead of a throw-away one; the demo's keys remain there."
        " REFUNDS_REDIS_URL is not read."
    ),
)
@click.option(
    "--refunds",
    "count",
    default=32,
    show_default=True,
    type=Whole(1, 10_000),
    help="Number of plain rows.",
)
@click.option("--faults", default=FAULTS, show_default=True, help="Faults of the sandbox provider.")
def main(given: str | None, count: int, faults: str) -> None:
    """Run the demo; exit 0 only if ledger and records agree."""
    console = Console(soft_wrap=not sys.stdout.isatty(), width=None if sys.stdout.isatty() else 110)
    started = time.monotonic()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="refunds-demo-")))
        redis_url, prefix = _server(stack, given)
        server = (
            f"the server of --redis-url; the keys {prefix}… remain there"
            if given
            else "a throw-away server"
        )
        console.print(f"[bold]1.[/] Redis: {server}")
        options = ["--latency", "20", "--settle", str(PENDING_MS), "--idempotency", "ignore"]
        provider = sandbox_process(*options, "--faults", faults, log=folder / "sandbox.log")
        try:
            sandbox = stack.enter_context(provider).sandbox
        except RefundError as error:
            raise click.ClickException(str(error)) from None
        console.print(
            f"[bold]2.[/] Sandbox provider: {sandbox.url}; it ignores idempotency keys, and has the"
            f" faults {faults}"
        )
        variables = _environment(redis_url, prefix, sandbox.url)
        cli = [sys.executable, "-m", "worker"]
        stack.enter_context(process([*cli, "worker"], variables, folder / "worker.log"))
        console.print("[bold]3.[/] Worker: 'refunds worker', a separate Celery process")
        wanted = rows(count)
        path = folder / "refunds.csv"
        _write(path, wanted)
        console.print(
            f"[bold]4.[/] File: {len(wanted)} rows of refunds, imported with 'refunds import'"
        )
        handed_in = [*cli, "import", str(path), "--all-remaining", "--wait"]
        imported = subprocess.run(handed_in, env=variables, check=False)  # noqa: S603 - ours
        settings = Settings.load(redis_url=redis_url, prefix=prefix, api_url=sandbox.url)
        refunds = stack.enter_context(Refunds(settings=settings))
        try:
            records = _wait_for_all(refunds, [row.refund_id for row in wanted])
        except RefundError as error:
            sys.stderr.write((folder / "worker.log").read_text()[-4000:])
            raise click.ClickException(str(error)) from None
        ledger = sandbox.ledger()
        effects = Counter(entry["refund_id"] for entry in ledger if entry["event"] == "effect")
        console.print(_table(wanted, records, effects))
        wrong = judge(wanted, records, ledger)
        fired = sum(int(fault["fired"]) for fault in sandbox.faults()["faults"])
    seconds = time.monotonic() - started
    statuses = Counter(str(record.status) for record in records)
    console.print(
        f"[bold]5.[/] {len(records)} refunds: "
        + ", ".join(f"{number} {status}" for status, number in sorted(statuses.items()))
        + f"; {sum(effects.values())} effects in the ledger, {fired} faults fired, {seconds:.1f} s"
    )
    if wrong or imported.returncode not in {0, 4}:
        for sentence in wrong:
            console.print(f"[red]✗[/] {sentence}")
        raise SystemExit(1)
    console.print(
        "[green]✓[/] ledger and records agree: every refund moved money at most once, and none is"
        " lost"
    )


if __name__ == "__main__":
    main()
