"""`refunds probe`: finds out what a provider supports, and advises settings.

It makes a few small test refunds.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Final

import click
from rich.table import Table
from rich.text import Text

from worker.cli import render
from worker.cli.exits import AWAY, DONE, NOTHING_TO_DO, REJECTED, USAGE, Detached
from worker.cli.session import note, opened
from worker.errors import GuardRefused
from worker.probing import advice as probing_advice
from worker.probing import kept as probing_kept
from worker.probing import questions
from worker.probing.questions import (
    MAX_AMOUNT,
    MAX_POSTS,
    POSTS_WITHOUT_KEYS,
    FailureKind,
    Order,
    Verdict,
)
from worker.probing.report import Report
from worker.settings import Settings
from worker.store import flags
from worker.store.store import Store
from worker.wording import values
from worker.wording.ranges import Whole

_STYLES: Final = {
    Verdict.YES: "green",
    Verdict.NO: "red",
    Verdict.UNCLEAR: "yellow",
    Verdict.NOT_SEEN: "dim",
}
_CODES: Final[dict[FailureKind, int]] = {"key": USAGE, "refused": REJECTED, "away": AWAY}


@click.command(
    epilog="""\b
Examples:
  refunds probe --payment-intent pi_3NfK2x
  refunds probe --payment-intent pi_3NfK2x --yes --json | jq .settings

\b
Use a captured test payment that nothing else uses. Best is one whose refunds
stay pending for a while: only those show whether pending refunds are counted.

\b
Exit code: 0 all questions have an answer, whatever it is; 9 you answered no;
2 the API key is refused; 3 a test refund is refused; 5 the provider or Redis is
unavailable; 6 the key, address or payment is live: nothing was sent."""
)
@click.option(
    "--payment-intent", required=True, metavar="PI", help="A captured test payment of yours."
)
@click.option(
    "--amount",
    type=Whole(1, MAX_AMOUNT),
    default=1,
    show_default=True,
    metavar="MINOR",
    help=f"Amount of each test refund in minor units, at most {MAX_AMOUNT}.",
)
@click.option(
    "--yes", is_flag=True, help="Do not ask for confirmation; required without a terminal."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def probe(*, payment_intent: str, amount: int, yes: bool, as_json: bool) -> int:
    """Find out what the provider supports, with a few small test refunds (test mode only).

    The test refunds are really made, but not recorded here; their metadata.refund_id begins with
    probe-. The answers are stored, and 'refunds doctor' checks the settings against them.
    """
    settings = Settings.load()
    questions.guard(settings)
    order = Order.new(payment_intent, amount)
    with opened(settings) as refunds:
        _require_free(refunds.store, order)
        note(_price(order, settings))
        if not yes and not _agreed():
            note("nothing was sent")
            return NOTHING_TO_DO
        report = _asked(settings, order)
        kept = report.problem is None
        if kept:
            probing_kept.keep(refunds.store, report, flags.now(refunds.store))
    if as_json:
        render.as_json(report.as_dict() | {"kept": kept})
    else:
        _put(report, settings)
    note(_receipt(report))
    if report.problem is None:
        return DONE
    note(f"error: {report.problem.text}; the answers were not stored")
    return _CODES[report.problem.sort]


def _require_free(store: Store, order: Order) -> None:
    """Refuse a payment with refunds of this installation in progress.

    The probe would disturb their read-backs.
    """
    ours = store.get_many(store.ids_on_payment(order.payment_intent))
    moving = [refund.refund_id for refund in ours if refund is not None and not refund.settled]
    if moving:
        raise GuardRefused(
            f"refund {moving[0]} is in progress on {order.payment_intent}, and a probe would"
            " disturb its read-backs: use a payment that nothing else uses; nothing was sent"
        )


def _price(order: Order, settings: Settings) -> str:
    each, most = order.amount, MAX_POSTS * order.amount
    return (
        f"this makes real test refunds on {order.payment_intent} at {settings.provider_host},"
        f" outside the records:\n  {_units(each)} in total if idempotency keys work,"
        f" {_units(POSTS_WITHOUT_KEYS * each)} if they do not,\n  and never more than"
        f" {_units(most)} (if some replies are 5xx)\n  their metadata.refund_id begins with"
        f" {order.run}-"
    )


def _units(amount: int) -> str:
    return f"{amount} minor unit" if amount == 1 else f"{amount} minor units"


def _agreed() -> bool:
    if not sys.stdin.isatty():
        raise click.UsageError(
            "no terminal to ask for confirmation: add --yes to make these test refunds"
        )
    try:
        return click.confirm("make these refunds?", err=True)
    except click.Abort:
        note("")
        raise Detached("nothing was sent") from None


def _asked(settings: Settings, order: Order) -> Report:
    # Only commands that call the provider need its client, so that the others start without it.
    from worker.probing.probe import Probe  # noqa: PLC0415 - see above

    asking = Probe(settings, order)
    note("running; if refunds stay pending, this takes some seconds …")
    try:
        return asyncio.run(asking.run())
    except KeyboardInterrupt:
        spent = (
            f"up to {_units(asking.posts * order.amount)} may have been refunded, under"
            f" {order.run}-…"
        )
        raise Detached(
            f"stopped, and no answer was stored; {spent if asking.posts else 'nothing was sent'}"
        ) from None


def _put(report: Report, settings: Settings) -> None:
    findings = Table.grid(padding=(0, 2))
    findings.add_column()
    findings.add_column(no_wrap=True)
    findings.add_column(overflow="fold")
    for question, found in report.findings.items():
        verdict = Text(found.verdict.value, style=_STYLES[found.verdict])
        findings.add_row(f"  {questions.WORDS[question]}", verdict, values.plain(found.evidence))
    if report.findings:
        render.put(render.heading("what was seen"), findings)
    if report.problem is not None:
        return
    chosen = {
        "REFUNDS_IDEMPOTENCY": settings.idempotency,
        "REFUNDS_READBACK": settings.readback,
        "REFUNDS_TOTALS": settings.totals,
        "REFUNDS_KEY_WINDOW_HOURS": f"{settings.key_window_hours:g}",
    }
    advised = Table.grid(padding=(0, 2))
    advised.add_column(no_wrap=True)
    advised.add_column(no_wrap=True)
    advised.add_column(overflow="fold")
    for advice in probing_advice.advise(report.findings):
        now = chosen[advice.variable]
        mark = (
            Text("as set", style="dim")
            if now == advice.value
            else Text(f"now {now}", style="yellow")
        )
        advised.add_row(f"  {advice.variable}={advice.value}", mark, advice.why)
    render.put(render.heading("\nrecommended settings"), advised)


def _receipt(report: Report) -> str:
    """Return in a sentence what was refunded."""
    currency = f" of {values.plain(report.currency)}" if report.currency else ""
    requests = f"{report.posts} request" if report.posts == 1 else f"{report.posts} requests"
    doubt = (
        f", and {_units(report.uncertain)} more may have been refunded" if report.uncertain else ""
    )
    names = (
        f": {', '.join(values.plain(name) for name in report.refunds)}" if report.refunds else ""
    )
    return f"{_units(report.spent)}{currency} refunded with {requests}{doubt}{names}"
