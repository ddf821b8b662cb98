"""`refunds review`: shows the refunds that need review with their evidence, and resolves them."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, Final

import click
from rich.console import RenderableType

from worker.cli import render
from worker.cli.exits import DONE
from worker.cli.session import act, note, opened, operator
from worker.client import Decision, Refunds
from worker.errors import NotInReview
from worker.model.refund import Refund, Stage
from worker.model.statements import checked_code, checked_note, checked_provider_id
from worker.store import reads
from worker.store.listing import Filter, matching
from worker.store.records import history_as_json
from worker.wording import history, reasons
from worker.wording.decisions import evidence, resolutions
from worker.wording.ranges import Whole
from worker.wording.values import plain

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
    """Show and resolve the refunds that need review; without a command, list them.

    A refund needs review if the worker cannot find out whether its money has moved. Nothing more is
    sent for it until a person decides.
    """
    return ctx.invoke(list_review) if ctx.invoked_subcommand is None else None


@review.command("list", short_help="List the refunds that need review.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
def list_review(*, as_json: bool = False) -> int:
    """List the refunds that need review, first those that the provider contradicts."""
    with opened() as refunds:
        found = chain(_contradicted(refunds), matching(refunds.store, Filter(stage=Stage.REVIEW)))
        if as_json:
            for refund in found:
                render.as_json(refund.as_dict())
            return DONE
        waiting = list(found)
    if waiting:
        render.put(render.listing(waiting))
        note("see the evidence for a refund with 'refunds review show REFUND_ID'")
    else:
        note("no refunds need review")
    return DONE


def _contradicted(refunds: Refunds) -> Iterator[Refund]:
    """Yield settled refunds that the provider contradicts; those in review are listed there."""
    for refund in refunds.get_many(refunds.store.ids_contradicted()):
        if refund is not None and refund.settled:
            yield refund


@review.command(
    short_help="Show the evidence for a refund.",
    epilog="\b\nExample:\n  refunds review show order-1001-1",
)
@click.argument("refund_id")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def show(*, refund_id: str, as_json: bool) -> int:
    """Show the evidence for a refund.

    What was sent and when, what was read, and what each decision would do.
    """
    with opened() as refunds:
        refund = refunds.get(refund_id)
        entries = refunds.history(refund_id)
        siblings = refunds.store.run(reads.siblings(refund.payment_intent, refund_id))
        refunds.store.confirm_final(
            sibling.updated_at for sibling in siblings or () if sibling.settled
        )
    why = reasons.review_reason(entries)
    if as_json:
        render.as_json(
            {
                "refund": refund.as_dict(),
                "why": None if why is None else why[1],
                "review_reason": None if why is None else why[0],
                "evidence": evidence(refund, entries),
                "history": history_as_json(entries),
                "siblings": (
                    None if siblings is None else [sibling.as_dict() for sibling in siblings]
                ),
                "resolutions": resolutions(refund),
            }
        )
        return DONE
    marks = [
        (name.replace("_", " "), _flat(value)) for name, value in evidence(refund, entries).items()
    ]
    if reasons.shortened(entries):
        marks.append(
            (
                "incomplete",
                "moves are missing from this long history: there may be more answers and lapses",
            )
        )
    render.put(
        render.heading(refund.refund_id),
        render.block(refund),
        render.heading("\nwhy it needs review"),
        f"  {plain('no review was requested' if why is None else ': '.join(why))}",
        render.heading("\nwhat was sent"),
        _lines(history.sent(entries), "nothing"),
        render.heading("\nwhat was read"),
        _lines(history.read(entries), "nothing"),
        render.heading("\nhow to find it at the provider"),
        render.facts(marks),
        render.heading(f"\nyour other refunds on {refund.payment_intent}"),
        _listed(siblings, refund),
    )
    if refund.stage is Stage.REVIEW or (refund.settled and refund.contradicted_by is not None):
        render.put(
            render.heading("\nwhat you can decide"),
            render.facts(resolutions(refund).items()),
            f"\n  refunds review resolve {shlex.quote(refund.refund_id)} {_choice(refund)}"
            f" --version {refund.version} --note 'how you know'",
        )
    else:
        note(f"refund {refund_id} is {refund.stage}, not in review: there is nothing to decide")
    note(f"see every move with 'refunds status {refund_id} --history'")
    return DONE


def _choice(refund: Refund) -> str:
    """Return the decision to be typed; a possible provider refund is filled in."""
    possible = refund.possible_refund_id
    return "…" if possible is None else f"--succeeded {shlex.quote(possible)}"


def _lines(rows: list[tuple[int | None, str]], otherwise: str) -> RenderableType:
    return render.timed(rows) if rows else f"  {otherwise}"


def _listed(siblings: Sequence[Refund] | None, refund: Refund) -> RenderableType:
    if siblings is None:
        return (
            "  too many to show here: see them with 'refunds list --payment-intent"
            f" {refund.payment_intent}'"
        )
    return render.listing(siblings) if siblings else "  none"


def _flat(value: object) -> object:
    if isinstance(value, list):
        return reasons.in_words(value)
    if isinstance(value, dict):
        return ", ".join(f"{name} {inner}" for name, inner in value.items() if inner is not None)
    return value


@review.command(
    short_help="Resolve a refund in review.",
    epilog="""\b
Examples:
  refunds review resolve order-1001-1 --succeeded re_7Yk --note "seen in the dashboard"
  refunds review resolve order-1001-1 --failed paid_in_cash --note "agreed with the customer"
  refunds review resolve order-1001-1 --resend --note "the provider's support says it never arrived"

\b
Exit code: 6 if the refund is not in review, if it has moved since --version, if
the provider's refund belongs to another of your refunds, or if the provider has
shown one meanwhile.""",
)
@click.argument("refund_id")
@click.option(
    "--succeeded",
    metavar="RE_ID",
    help="The provider's refund RE_ID is this refund. A worker verifies it.",
)
@click.option(
    "--failed", metavar="CODE", help="The refund did not happen and must not; CODE is the reason."
)
@click.option("--resend", is_flag=True, help="The refund did not happen: send it again.")
@click.option(
    "--unverified",
    is_flag=True,
    help="Your decision counts if nothing at the provider contradicts it.",
)
@click.option(
    "--version",
    type=Whole(min=1),
    metavar="N",
    help="Only if nothing has moved it since version N, as 'refunds review show' prints it.",
)
@click.option(
    "--note", "reason", required=True, metavar="TEXT", help="How you know; stored in the history."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def resolve(
    *,
    refund_id: str,
    succeeded: str | None,
    failed: str | None,
    resend: bool,
    unverified: bool,
    version: int | None,
    reason: str,
    as_json: bool,
) -> int:
    """Resolve a refund in review; your name and the note are stored in its history.

    A refund that may have happened is first looked for at the provider. What the provider shows
    outweighs a decision.
    """
    # Wrong values are reported before Redis is contacted.
    checked_note(reason)
    decision, stated = _decision(succeeded, failed, resend=resend)
    with opened() as refunds:
        try:
            by = operator(refunds.settings)
            refund = act(
                refunds,
                f"resolve as {decision}",
                refund_id,
                lambda: refunds.resolve(
                    refund_id,
                    decision,
                    note=reason,
                    by=by,
                    unverified=unverified,
                    version=version,
                    **stated,
                ),
                reason=reason,
            )
        except NotInReview:
            # Another person may have been faster, so the message states the current stage.
            raise NotInReview(
                f"refund {refund_id} is {refunds.get(refund_id).stage}, not in review, and was not"
                " changed: see the refunds that can be resolved with 'refunds review list'"
            ) from None
    if as_json:
        render.as_json(refund.as_dict())
        return DONE
    render.put(render.heading(refund.refund_id), render.block(refund))
    if not refund.settled:
        note(
            "a worker takes this refund next, and it settles or returns to review: follow it with"
            f" 'refunds status {refund_id} --history --wait 60'"
        )
    return DONE


def _decision(
    succeeded: str | None, failed: str | None, *, resend: bool
) -> tuple[Decision, dict[str, Any]]:
    """Return the decision that the options name, and the id or the code that belongs to it."""
    if (succeeded is not None) + (failed is not None) + resend != 1:
        raise click.UsageError(f"give exactly one of {CHOICES}")
    if succeeded is not None:
        return "succeeded", {"provider_refund_id": checked_provider_id(succeeded)}
    if failed is not None:
        return "failed", {"code": checked_code(failed)}
    return "resend", {}
