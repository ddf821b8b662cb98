"""Rules before a send: what must be known about a payment, and the step if it is not.

Pure functions, as in `attempts`.

A missing fact confirms nothing, and a refund that cannot be confirmed is not sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final

from worker.model.answers import (
    Outcome,
    PaymentView,
    ProviderRefund,
    Readback,
    ReadbackVerdict,
    TryVerdict,
)
from worker.model.refund import Refund, Retriable, Stage, Status
from worker.model.request import scrubbed
from worker.model.steps import Step
from worker.rules.attempts import MAX_SERVER_ERRORS, PARKED, Rules, backoff, refused_unsent
from worker.rules.outcomes import FINAL_STATUSES, contradiction, is_anothers, is_not_ours
from worker.rules.payloads import STATUSES
from worker.rules.proofs import NO_READBACKS, NO_WORD, to_review
from worker.rules.rechecks import MAX_UNREAD, is_insisted, prior_done

UNCONFIRMED_FOR: Final = timedelta(hours=1)
"""How long a payment is read again for what it must confirm, before the refund goes to review."""
UNREADABLE: Final = "payment_unreadable"
PRIOR_DONE: Final = frozenset({"prior_succeeded", "conflict"})
"""Labels of the steps after a retry's earlier provider refund that moved money, or may."""
_LONGEST_WAIT: Final = timedelta(minutes=10)
_FIRST_WAIT: Final = timedelta(seconds=5)


def wants_currency(refund: Refund) -> bool:
    """Return whether the payment must be read before a send, to confirm the stated currency."""
    return refund.asked_currency is not None and not refund.currency_checked


def after_view(refund: Refund, view: PaymentView, now: datetime, jitter: float) -> Step | None:
    """Return the step that holds back a refund whose payment was read, None if it may be sent."""
    if not wants_currency(refund) or view.currency == refund.asked_currency:
        return None
    if not view.currency:
        return _unconfirmed(refund, view.problem or "the payment shows no currency", now, jitter)
    message = f"the payment is in {view.currency}, the refund states {refund.asked_currency}"
    if refund.doubt_since is None:
        return refused_unsent(refund, "currency_mismatch", f"{message}: nothing was sent")
    # It may have been sent by a record that a restored server has lost. A person must find out what
    # happened.
    return _asks("currency_mismatch", message)


def after_no_view(
    refund: Refund, outcome: Outcome, rules: Rules, now: datetime, jitter: float
) -> Step | None:
    """Return the step that holds a refund back if its payment could not be read.

    Returns None if the refund may be sent anyway. A refusal to show the payment holds back only a
    refund that states a currency. For any other, the POST's answer will say why.
    """
    if not wants_currency(refund):
        return (
            None
            if outcome.verdict is TryVerdict.REFUSED
            else _unreadable(refund, outcome, rules, now, jitter)
        )
    if outcome.verdict is TryVerdict.NOT_DONE or _is_silence(outcome):
        return _unreadable(refund, outcome, rules, now, jitter)
    return _unconfirmed(
        refund, f"the provider does not show the payment ({outcome.code})", now, jitter
    )


def after_first_readback(
    refund: Refund, read_back: Readback, rules: Rules, now: datetime, jitter: float
) -> Step | None:
    """Return the step that holds back a refund's first send after a read-back.

    Returns None if the payment shows that the refund is absent. A refund that exists at the
    provider, or could exist, is in doubt like any other. It is read back again at once, and the
    rules for doubts decide. A person who had it sent did not know of that.
    """
    match read_back.verdict:
        case ReadbackVerdict.ABSENT:
            return None
        case ReadbackVerdict.UNREADABLE:
            if not read_back.credentials and _waits_too_long(refund, rules, now):
                return _payment_unreadable(read_back.reason)
            delay = (
                PARKED
                if read_back.credentials
                else _unread_wait(refund, read_back.retry_after, jitter)
            )
            return _postponed(refund, UNREADABLE, {"looks": refund.looks + 1}, delay)
    changes = {
        "doubt_since": now,
        "first_attempt_at": now,
        "quiet_at": now,
        "retriable": Retriable.NO,
        # No replay before a read-back: a refund that may exist was sent by records that are not
        # known here.
        "server_errors": MAX_SERVER_ERRORS,
        **NO_WORD,
    } | NO_READBACKS
    return Step(
        to=Stage.IN_DOUBT,
        status=Status.PENDING,
        label="first_look",
        changes=changes,
        delay=timedelta(0),
    )


def after_prior(
    refund: Refund,
    found: ProviderRefund,
    now: datetime,
    *,
    may_have_left: bool,
    owner: str | None = None,
) -> Step | None:
    """Return the step that holds a retry back after its earlier provider refund was read.

    None if that refund moved nothing, so that the retry may be sent. `may_have_left` says that the
    retry itself may have been sent before, `owner` whose record has the earlier refund. A person
    who insists outweighs only what else differs in an earlier refund that is shown as failed, and
    one that is not ours, as one is whose id was mistyped.
    """
    wrong = contradiction(found, refund)
    moved_nothing = FINAL_STATUSES.get(found.status or "") in {Status.FAILED, Status.CANCELED}
    if moved_nothing and wrong is None:
        return None
    # Nothing is sent beside one that was ours and is shown as another's now. It can be given up.
    is_left = refund.operator_says == "failed" and is_anothers(found, refund)
    if is_insisted(refund) and (moved_nothing or is_left or is_not_ours(found, refund, owner)):
        return None
    if wrong is not None or found.status not in STATUSES:
        reason = f"the earlier provider refund {found.id} shows another {wrong or 'status'}"
        return _asks("prior_contradicts", reason)
    if may_have_left:
        # The retry may have been sent too, so neither of the two may be taken for the only one.
        reason = (
            f"the provider's refund {found.id} of an earlier generation was done after all, and"
            " the retry may have been sent too: money may move twice"
        )
        return _asks("conflict", reason)
    is_known = refund.refund_id in {found.refund_id, owner}
    return prior_done(refund, found, now, "lookup" if is_known else "operator")


def prior_missing(refund: Refund, provider_refund_id: str) -> Step | None:
    """Return the step for a retry whose earlier provider refund is not known any more.

    None if a person insists on a decision, which counts then.
    """
    if is_insisted(refund):
        return None
    reason = f"the provider does not know the earlier provider refund {provider_refund_id}"
    return _asks("prior_missing", reason)


def prior_unreadable(
    refund: Refund, outcome: Outcome, rules: Rules, now: datetime, jitter: float
) -> Step | None:
    """Return the step for a retry whose earlier provider refund could not be read.

    It waits, even if a person insists on it: what cannot be read may have been done after all. One
    that may have happened returns to a person after the allowed age, since nothing else ends it.
    None if a person insists that nothing is sent and it was read in vain often enough. A refused
    API key concerns every refund, and is not counted.
    """
    if is_insisted(refund):
        if outcome.credentials:
            return _postponed(refund, UNREADABLE, {}, PARKED)
        if refund.operator_says == "failed" and refund.looks + 1 >= MAX_UNREAD:
            return None
    if not outcome.credentials and _waits_too_long(refund, rules, now):
        reason = f"its earlier refund could not be read within the allowed age: {outcome.code}"
        return to_review(NO_WORD, "unreadable", reason)
    delay = _unread_wait(refund, outcome.retry_after, jitter)
    return _postponed(refund, UNREADABLE, {"looks": refund.looks + 1}, delay)


def _waits_too_long(refund: Refund, rules: Rules, now: datetime) -> bool:
    """Return whether a refund that may have happened has waited beyond the allowed age.

    While it waits, neither a cancel nor a decision is accepted. One that was never sent counts from
    the decision.
    """
    may_have_happened = refund.doubt_since is not None or refund.is_only_said_absent
    return may_have_happened and now - (refund.tried_since or refund.updated_at) >= rules.max_age


def _payment_unreadable(code: str) -> Step:
    reason = f"its payment could not be read within the allowed age: {code}"
    return to_review(NO_WORD, UNREADABLE, reason)


def account_lost(refund: Refund) -> Step:
    """Return the step for a refund whose payment was shown once and is missing now.

    All sends have stopped by then.
    """
    return _postponed(refund, "account_lost", {}, PARKED)


def _is_silence(outcome: Outcome) -> bool:
    """Return whether the provider itself did not answer, which says nothing about the payment."""
    return outcome.http_status is None or outcome.server_error


def _unconfirmed(refund: Refund, problem: str, now: datetime, jitter: float) -> Step:
    since = refund.unconfirmed_since or now
    message = (
        f"not sent, since it is not confirmed that the payment is in {refund.asked_currency}:"
        f" {problem}"
    )
    changes = {"unconfirmed_since": since, **_told("currency_unconfirmed", message)}
    if now - since >= UNCONFIRMED_FOR:
        return to_review({**changes, **NO_WORD}, "currency_unconfirmed", changes["error_message"])
    delay = min(max((now - since) / 2, _FIRST_WAIT), _LONGEST_WAIT) * (1 + jitter / 4)
    return _postponed(refund, "currency_unconfirmed", changes, delay)


def _unreadable(
    refund: Refund, outcome: Outcome, rules: Rules, now: datetime, jitter: float
) -> Step:
    """Return the step if the payment could not be read.

    A refund that provably never happened waits, however long that lasts.
    """
    delay = _unread_wait(refund, outcome.retry_after, jitter)
    is_in_doubt = refund.stage is Stage.IN_DOUBT
    if (is_in_doubt or not outcome.credentials) and _waits_too_long(refund, rules, now):
        return _payment_unreadable(outcome.code)
    # A refund in doubt counts its own read-backs, and ends in review.
    changes = {} if is_in_doubt else {"looks": refund.looks + 1}
    return _postponed(refund, UNREADABLE, changes, delay)


def _unread_wait(refund: Refund, retry_after: timedelta | None, jitter: float) -> timedelta:
    return max(
        backoff(refund.looks + 1, base=_FIRST_WAIT, cap=_LONGEST_WAIT, jitter=jitter),
        retry_after or timedelta(0),
    )


def _postponed(refund: Refund, label: str, changes: Mapping[str, Any], delay: timedelta) -> Step:
    return Step(
        to=refund.stage, status=refund.status, label=label, changes=changes, delay=delay, quiet=True
    )


def _asks(code: str, message: str) -> Step:
    """Return the step to review. A decision that came before it does not count any more."""
    return to_review({**_told(code, message), **NO_WORD}, code, message)


def _told(code: str, message: str) -> dict[str, Any]:
    return {"error_code": code, "error_message": scrubbed(message)}
