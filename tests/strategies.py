"""Arbitrary records, answers and outcomes for property tests.

All that the types allow, likely or not.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

from hypothesis import strategies as st

from tests.factories import NOW, a_refund, found, refund_payload
from worker.model.answers import (
    Answer,
    NoReply,
    NotSent,
    Outcome,
    Readback,
    ReadbackVerdict,
    Reply,
    TryVerdict,
)
from worker.model.refund import Baseline, Refund, Retriable, Stage
from worker.rules.attempts import Rules
from worker.rules.outcomes import fold
from worker.rules.payloads import read as read_payload

jitters = st.floats(0, 1, exclude_max=True)
spans = st.timedeltas(timedelta(0), timedelta(days=40)).map(
    lambda span: span - span % timedelta(milliseconds=1)
)
moments = spans.map(lambda span: NOW - span)

json_scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**20), 10**20),
    st.floats(),
    st.text(max_size=20),
    st.just("re_1"),
)
json_values = st.recursive(
    json_scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)
_known_names = st.sampled_from(
    [
        *refund_payload(),
        "error",
        "type",
        "code",
        "message",
        "failure_reason",
        "refund_id",
        "refund_generation",
    ]
)


@st.composite
def payloads(draw: st.DrawFn) -> dict[str, Any]:
    """A reply's JSON object: our refund with some fields broken, an error, or anything at all."""
    start = draw(st.sampled_from(["refund", "error", "flat error", "nothing"]))
    base: dict[str, Any] = {
        "refund": refund_payload(),
        "error": {"error": {"type": "card_error", "code": "declined", "message": "no"}},
        "flat error": {"type": "api_error", "code": "x", "message": "no"},
        "nothing": {},
    }[start]
    return base | draw(st.dictionaries(_known_names, json_values, max_size=4))


def replies() -> st.SearchStrategy[Reply]:
    """A whole reply with any HTTP status and any JSON object, or none."""
    statuses = st.one_of(
        st.integers(100, 599), st.sampled_from([200, 201, 400, 401, 403, 404, 409, 422, 429, 500])
    )
    waits = st.one_of(st.none(), st.timedeltas(timedelta(0), timedelta(days=1)))
    read = st.one_of(st.none(), payloads()).map(read_payload)
    return st.builds(Reply, http_status=statuses, payload=read, retry_after=waits)


def answers() -> st.SearchStrategy[Answer]:
    """Whatever one call can end in."""
    reasons = st.text(max_size=20)
    return st.one_of(
        replies(), st.builds(NotSent, reason=reasons), st.builds(NoReply, reason=reasons)
    )


@st.composite
def tries(draw: st.DrawFn) -> Outcome:
    """What one try says: doubt and proof as `classify` would set them."""
    seen = draw(st.sampled_from(TryVerdict))
    server_error = seen is TryVerdict.MAYBE and draw(st.booleans())
    status = draw(st.sampled_from(["pending", "succeeded", "failed", "canceled"]))
    return Outcome(
        verdict=seen,
        code=draw(st.sampled_from(["amount_too_large", "lock_timeout", "some_code"])),
        http_status=500 if server_error else None,
        found=found(status=status) if seen is TryVerdict.DONE else None,
        retry_after=draw(st.one_of(st.none(), st.timedeltas(timedelta(0), timedelta(days=1)))),
        doubt=seen is TryVerdict.MAYBE,
        server_error=server_error,
        server_errors=int(server_error),
        credentials=seen is TryVerdict.NOT_DONE and draw(st.booleans()),
    )


attempts = st.lists(tries(), min_size=1, max_size=6)
outcomes = attempts.map(fold)


@st.composite
def looks(draw: st.DrawFn) -> Readback:
    """What a read-back may show."""
    verdict = draw(st.sampled_from(ReadbackVerdict))
    status = draw(st.sampled_from(["pending", "succeeded", "failed", "canceled"]))
    return Readback(
        verdict=verdict,
        reason="so",
        found=found(status=status) if verdict is ReadbackVerdict.FOUND else None,
        retry_after=draw(st.one_of(st.none(), st.timedeltas(timedelta(0), timedelta(days=1)))),
        credentials=verdict is ReadbackVerdict.UNREADABLE and draw(st.booleans()),
    )


rules = st.builds(
    Rules,
    idempotency=st.sampled_from(["verify", "trust"]),
    readback=st.sampled_from(["list", "totals", "none"]),
    totals_proof=st.booleans(),
    settle=st.sampled_from([timedelta(0), timedelta(seconds=300), timedelta(days=1)]),
    key_window=st.sampled_from([timedelta(seconds=1), timedelta(hours=23)]),
    max_attempts=st.integers(1, 20),
    max_age=st.sampled_from([timedelta(seconds=1), timedelta(hours=72)]),
)


@st.composite
def refunds(draw: st.DrawFn, stage: Stage | None = None) -> Refund:
    """A record in `stage` (any, unless told) with arbitrary counters, times and doubts that the
    stage allows.
    """
    stage = stage or draw(st.sampled_from(Stage))
    refund = a_refund(stage)
    counters: dict[str, Any] = {
        name: draw(st.integers(0, 20))
        for name in ("verdicts", "lapses", "server_errors", "looks", "resends")
    }
    doubtful = stage is Stage.IN_DOUBT or (
        stage in {Stage.SENDING, Stage.REVIEW} and draw(st.booleans())
    )
    moment = st.one_of(st.none(), moments)
    amount = draw(st.one_of(st.none(), st.just(500)))
    return replace(
        refund,
        **counters,
        attempts=draw(st.integers(1, 30)),
        generation=draw(st.integers(1, 3)),
        first_attempt_at=draw(moment),
        doubt_since=draw(moments) if doubtful else None,
        quiet_at=draw(moment),
        absent_at=draw(moment),
        found_at=draw(moment),
        proven_absent_at=draw(moment),
        processing_since=draw(moment),
        missing_since=draw(moment),
        next_check_at=None if stage is Stage.SETTLED else draw(moments),
        operator_says=draw(st.sampled_from([None, "absent", "succeeded"])),
        baseline=draw(st.sampled_from([None, Baseline(refunded=0, currency="usd", remaining=500)])),
        amount=amount,
        all_remaining=amount is None,
        currency=draw(st.sampled_from([None, "usd"])),
        asked_currency=draw(st.sampled_from([None, "usd"])),
        currency_checked=draw(st.booleans()),
        unconfirmed_since=draw(moment),
        retriable=draw(st.sampled_from([None, *Retriable])),
    )
