"""`refunds review`: the refunds that a person must decide, with the evidence and what each decision does."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

import click

from worker import calls, decisions, preflight
from worker.cli import render
from worker.cli.exits import DONE
from worker.cli.listing import matching
from worker.cli.session import note, opened, operator
from worker.cli.values import checked_code, checked_note, checked_provider_id
from worker.client import Refunds
from worker.errors import NotInReview
from worker.model import Refund, Stage, Step, rfc3339

CHOICES: Final = "--succeeded RE_ID, --failed CODE or --resend"


@click.group(
    invoke_without_command=True,
    epilog="""\b
Examples:
  refunds review
  refunds review show order-1001-1
  refunds review resolve order-1001-1 --succeeded re_7Yk --note "seen in the provider's dashboard"
""",
)
@click.pass_context
def review(ctx: click.Context) -> int | None:
    """See and decide the refunds that need a person; without a command, list them.

    A refund comes here when it cannot be told whether money has moved. Nothing is sent for it until it is decided.
    """
    return ctx.invoke(list_review) if ctx.invoked_subcommand is None else None


@review.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def list_review(*, as_json: bool = False) -> int:
    """List the refunds that need a person, with why."""
    with opened() as refunds:
        found = matching(refunds.store, stage=Stage.REVIEW)
        if as_json:
            for refund in found:
                render.as_json(refund.as_dict())
            return DONE
        waiting = list(found)
    if waiting:
        render.put(render.listing(waiting))
        note("see the evidence of one with 'refunds review show ID'")
    else:
        note("no refund waits for a person")
    return DONE


@review.command(epilog="\b\nExample:\n  refunds review show order-1001-1")
@click.argument("refund_id")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def show(*, refund_id: str, as_json: bool) -> int:
    """Lay out what is known of a refund, and what each decision would do."""
    with opened() as refunds:
        refund = refunds.get(refund_id)
        entries = refunds.history(refund_id)
        siblings = refunds.store.run(calls.siblings(refund.payment_intent, refund_id))
    if as_json:
        render.as_json(
            {
                "refund": refund.as_dict(),
                "evidence": evidence(refund),
                "history": render.history_as_json(entries),
                "siblings": None if siblings is None else [sibling.as_dict() for sibling in siblings],
                "resolutions": resolutions(refund),
            }
        )
        return DONE
    seen = ((name.replace("_", " "), _told(value)) for name, value in evidence(refund).items())
    render.put(
        render.heading(refund.refund_id),
        render.block(refund),
        render.heading("\nwhat was seen"),
        render.facts(seen),
        render.heading("\nhistory"),
        render.history(entries),
        render.heading(f"\nour other refunds on {refund.payment_intent}"),
        _listed(siblings, refund.payment_intent),
    )
    if refund.stage is Stage.REVIEW:
        render.put(
            render.heading("\nwhat you can decide"),
            render.facts(resolutions(refund).items()),
            f"\n  refunds review resolve {shlex.quote(refund.refund_id)} … --note 'how you know'",
        )
    else:
        note(f"refund {refund_id} is {refund.stage}, not in review: there is nothing to decide")
    return DONE


def _listed(siblings: Sequence[Refund] | None, payment_intent: str) -> Any:
    if siblings is None:
        return f"  more than {calls.MOST_SIBLINGS}: see 'refunds list --payment-intent {payment_intent}'"
    return render.listing(siblings) if siblings else "  none"


def _told(value: object) -> object:
    if isinstance(value, dict):
        return ", ".join(f"{name} {inner}" for name, inner in value.items() if inner is not None)
    return value


def evidence(refund: Refund) -> dict[str, Any]:
    """Return the worker's own marks on a refund: what a person needs to find it on the provider's side."""
    times = {
        "first_attempt_at": refund.first_attempt_at,
        "doubt_since": refund.doubt_since,
        "quiet_at": refund.quiet_at,
        "absent_at": refund.absent_at,
        "found_at": refund.found_at,
        "processing_since": refund.processing_since,
    }
    baseline = refund.baseline
    return {
        "idempotency_key": refund.idempotency_key,
        **{name: None if value is None else rfc3339(value) for name, value in times.items()},
        "attempts": refund.attempts,
        "attempts_with_an_answer": refund.verdicts,
        "lapsed_leases": refund.lapses,
        "server_errors_in_a_row": refund.server_errors,
        "inconclusive_looks": refund.looks,
        "resends": refund.resends,
        "baseline": None
        if baseline is None
        else {"refunded": baseline.refunded, "remaining": baseline.remaining, "currency": baseline.currency},
        "operator_says": refund.operator_says,
    }


def resolutions(refund: Refund) -> dict[str, str]:
    """Return what each decision does to a refund in review."""
    succeeded = "says that RE_ID at the provider is this refund: it is read there, and settles as the provider shows it"
    failed = "says that it never happened and never shall: settled as failed with CODE, nothing is sent"
    if refund.doubt_since is None:
        resend = "lets it go again with the same key and contents; it was never in doubt"
        if preflight.wants_currency(refund):
            resend += f"; the payment is read first, and nothing is sent unless it is in {refund.asked_currency}"
    else:
        resend = (
            "says that it never happened: looked for once more, and sent again with the same key and contents unless "
            "it is found; if it did happen unseen, the money moves twice where the provider ignores keys"
        )
    return {"--succeeded RE_ID": succeeded, "--failed CODE": failed, "--resend": resend}


@review.command(
    epilog="""\b
Examples:
  refunds review resolve order-1001-1 --succeeded re_7Yk --note "seen in the dashboard"
  refunds review resolve order-1001-1 --failed paid_in_cash --note "agreed with the customer"
  refunds review resolve order-1001-1 --resend --note "the provider's support says it never arrived"

\b
Exit code: 6 if the refund is not in review, or if the provider's refund
belongs to another of ours."""
)
@click.argument("refund_id")
@click.option("--succeeded", metavar="RE_ID", help="It is this refund at the provider; verified by reading it there.")
@click.option("--failed", metavar="CODE", help="It never happened and never shall; CODE says why.")
@click.option("--resend", is_flag=True, help="It never happened: look once more, then send it again.")
@click.option("--note", "reason", required=True, metavar="TEXT", help="How you know; kept in the history.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def resolve(
    *, refund_id: str, succeeded: str | None, failed: str | None, resend: bool, reason: str, as_json: bool
) -> int:
    """Decide a refund in review; your name and the note go into its history."""
    decide = _decision(succeeded, failed, resend=resend)
    detail = {"by": operator(), "note": checked_note(reason)}
    with opened() as refunds:
        refund = _apply(refunds, refund_id, decide, detail)
    if as_json:
        render.as_json(refund.as_dict())
        return DONE
    render.put(render.heading(refund.refund_id), render.block(refund))
    if not refund.settled:
        note(f"a worker looks at it next: follow it with 'refunds status {refund_id} --history --wait 60'")
    return DONE


def _apply(refunds: Refunds, refund_id: str, decide: Callable[[Refund], Step], detail: dict[str, Any]) -> Refund:
    try:
        return refunds.apply(refund_id, decide, detail)
    except NotInReview:
        # Another person may have been faster: say what stands now.
        raise NotInReview(
            f"refund {refund_id} is {refunds.get(refund_id).stage}, not in review, and was left as it is: "
            "'refunds review list' names those that can be resolved"
        ) from None


def _decision(succeeded: str | None, failed: str | None, *, resend: bool) -> Callable[[Refund], Step]:
    if (succeeded is not None) + (failed is not None) + resend != 1:
        raise click.UsageError(f"Say exactly one of {CHOICES}.")
    if succeeded is not None:
        provider_refund_id = checked_provider_id(succeeded)
        return lambda refund: decisions.resolve_succeeded(refund, provider_refund_id, datetime.now(UTC))
    if failed is not None:
        return partial(decisions.resolve_failed, code=checked_code(failed))
    return decisions.resolve_resend
