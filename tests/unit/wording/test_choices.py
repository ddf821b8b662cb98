"""What a person can decide about a refund, and what each decision does."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest

from tests.factories import NOW, a_refund
from worker.errors import GuardRefused
from worker.model.refund import Refund, Stage, Status
from worker.rules import decisions
from worker.wording.choices import choices
from worker.wording.decisions import resolutions
from worker.wording.upcoming import next_of


def effects(refund: Refund) -> dict[str, str]:
    return {each.decision: each.effect for each in choices(refund)}


def test_a_doubt_is_looked_for_before_it_is_settled_or_sent_again() -> None:
    found = effects(a_refund(Stage.REVIEW, doubt_since=NOW))
    assert list(found) == ["succeeded", "failed", "resend"]
    for decision in ("failed", "resend"):
        assert found[decision].startswith("A worker first looks for it at the provider.")
    assert found["failed"].endswith("If it is not there, it ends as failed. Nothing is sent.")


@pytest.mark.parametrize(
    "left",
    [{"doubted": True}, {"processing_since": NOW}, {"error_code": "conflict"}],
    ids=["doubted", "pending before", "conflict before"],
)
def test_what_may_have_happened_is_said_to_be_looked_for_as_it_is(left: dict[str, Any]) -> None:
    refund = a_refund(Stage.REVIEW, **left)
    for step in (decisions.resolve_failed(refund, "gone"), decisions.resolve_resend(refund)):
        assert (step.to, step.changes["doubt_since"]) == (Stage.IN_DOUBT, refund.updated_at)
    found, told = effects(refund), resolutions(refund)
    for decision, option in (("failed", "--failed CODE"), ("resend", "--resend")):
        assert found[decision].startswith("A worker first looks for it at the provider.")
        assert "a worker first looks for it at the provider" in told[option]
    upcoming = next_of(refund, paused=False, batch_state=None)
    assert upcoming.endswith("the worker cannot find out whether the money moved.")


def test_what_was_never_in_doubt_is_settled_or_sent_as_decided() -> None:
    found = effects(a_refund(Stage.REVIEW))
    assert found["failed"] == "It ends as failed. Nothing is sent."
    assert found["resend"] == "It is sent again, with the same key and contents."


def test_a_stated_currency_that_was_not_confirmed_is_read_first() -> None:
    found = effects(a_refund(Stage.REVIEW, asked_currency="eur"))
    assert found["resend"].endswith("nothing is sent unless it is in EUR.")


def test_a_contradicted_refund_can_only_be_one_of_the_provider_s() -> None:
    refund = a_refund(Stage.SETTLED, status=Status.FAILED, contradicted_by="re_2")
    found = effects(refund)
    assert list(found) == ["succeeded"]
    assert "re_2 or re_1" in found["succeeded"]


def test_what_was_named_for_it_is_read_before_it_is_settled_or_sent_again() -> None:
    found = effects(a_refund(Stage.REVIEW, prior_refund_ids="re_8", hinted="re_9"))
    for decision in ("failed", "resend"):
        assert found[decision].startswith("A worker first reads re_8 and re_9 at the provider.")
    assert found["failed"].endswith("Otherwise it ends as failed. Nothing is sent.")


@pytest.mark.parametrize(
    ("fields", "possible"),
    [
        ({}, ["succeeded", "failed", "resend"]),
        ({"set_aside_ids": "re_1"}, ["succeeded", "failed"]),
        ({"contradicted_by": "re_2"}, ["succeeded"]),
        ({"contradicted_by": "re_2", "set_aside_ids": "re_1"}, ["succeeded"]),
    ],
)
def test_decisions_that_are_offered_are_those_that_are_accepted(
    fields: dict[str, str], possible: list[str]
) -> None:
    refund = a_refund(Stage.REVIEW, **fields)
    assert list(effects(refund)) == possible
    assert [name.split()[0] for name in resolutions(refund)] == [f"--{name}" for name in possible]
    decide: dict[str, Callable[[], object]] = {
        "succeeded": lambda: decisions.resolve_succeeded(refund, "re_2", NOW),
        "failed": lambda: decisions.resolve_failed(refund, "gone"),
        "resend": lambda: decisions.resolve_resend(refund),
    }
    for name, accepted in decide.items():
        with nullcontext() if name in possible else pytest.raises(GuardRefused):
            accepted()
