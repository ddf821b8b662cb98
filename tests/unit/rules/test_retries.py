"""A single failed refund that is sent again: which may be, and what is said of the others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.factories import NOW, a_refund
from worker.errors import NotRetriable
from worker.model.refund import Refund, Retriable, Stage, Status
from worker.rules.decisions import retry_failed, retry_one

FAILED = a_refund(
    Stage.SETTLED,
    status=Status.FAILED,
    provider_refund_id=None,
    error_code="card_declined",
    retriable=Retriable.YES,
)
NOBODY_KNOWS = replace(FAILED, retriable=Retriable.UNKNOWN)


@pytest.mark.parametrize(
    ("refund", "unknown"), [(FAILED, False), (FAILED, True), (NOBODY_KNOWS, True)]
)
def test_failed_refund_is_sent_again_if_that_can_help_or_somebody_found_out(
    refund: Refund, *, unknown: bool
) -> None:
    step = retry_one(refund, unknown=unknown)
    assert step == retry_failed(refund)
    assert (step.to, step.changes["generation"]) == (Stage.QUEUED, 2)


@pytest.mark.parametrize(
    ("fields", "unknown", "told"),
    [
        (
            {"status": Status.SUCCEEDED},
            True,
            "refund order-1001-1 is succeeded, not failed: only a failed refund",
        ),
        (
            {"retriable": Retriable.NO},
            True,
            "failed with card_declined, and sending it again cannot help: submit",
        ),
        (
            {"retriable": Retriable.NO, "error_code": None},
            True,
            "order-1001-1 failed with unknown, and sending",
        ),
        (
            {"retriable": Retriable.UNKNOWN},
            False,
            "with card_declined, and it is not known whether sending it again",
        ),
        ({"retriable": None}, False, "run 'refunds retry order-1001-1 --unknown'$"),
    ],
)
def test_any_other_refund_is_not_sent_again_and_the_error_says_why(
    fields: dict[str, Any], *, unknown: bool, told: str
) -> None:
    with pytest.raises(NotRetriable, match=told):
        retry_one(replace(FAILED, **fields), unknown=unknown)


@pytest.mark.parametrize(
    "fields",
    [
        {"amount": 7},
        {"metadata_erased_at": NOW},
        {"set_aside_ids": ("re_1",)},
        {"contradicted_by": "re_1"},
    ],
)
def test_refund_is_not_made_again_if_what_was_asked_or_what_was_done_is_not_known(
    fields: dict[str, Any],
) -> None:
    assert retry_failed(replace(FAILED, **fields)) is None
