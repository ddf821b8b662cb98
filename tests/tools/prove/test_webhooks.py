"""The rules by which runs with webhooks are judged, each with evidence that breaks it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ops.lab.prove import webhooks
from ops.lab.prove.evidence import Evidence
from worker.model.request import RefundRequest


def delivery(refund: str, state: str = "delivered") -> dict[str, Any]:
    return {"event": "evt_1", "refund": refund, "state": state, "tries": 3, "status": 503}


def evidence(**stages: tuple[str, str]) -> Evidence:
    """Refunds of one payment by their stage and status."""
    return Evidence(
        accepted={
            name: RefundRequest(refund_id=name, payment_intent="pi_a", amount=100)
            for name in stages
        },
        records={
            name: {"stage": stage, "status": status} for name, (stage, status) in stages.items()
        },
        histories={
            name: [{"to": stage, "label": "conflict"}] for name, (stage, _) in stages.items()
        },
    )


DONE = ("settled", "succeeded")
FAILED = ("settled", "failed")
IN_REVIEW = ("review", "pending")


def test_an_event_that_was_never_accepted_is_a_violation() -> None:
    found = list(webhooks.lost([delivery("re_1"), delivery("re_2", "given_up")]))
    assert [(one.rule, one.about) for one in found] == [("event lost", "re_2")]


def test_a_refund_in_review_whose_event_was_delivered_is_a_violation() -> None:
    made = {"a": ["re_1"], "b": ["re_2"], "c": []}
    events = [delivery("re_1"), delivery("re_2", "given_up"), delivery("re_3")]
    found = list(webhooks.reviewed_despite(made, events))
    assert [(one.rule, one.about) for one in found] == [("event unused", "a")]


def test_a_refund_that_ended_otherwise_than_without_webhooks_is_a_violation() -> None:
    usual = webhooks.ends(evidence(a=DONE, b=FAILED))
    for other in (FAILED, IN_REVIEW, ("in_doubt", "pending")):
        (found,) = webhooks.other_ends(webhooks.ends(evidence(a=other, b=FAILED)), usual)
        assert (found.rule, found.about) == ("other end", "pi_a")


def test_which_refund_of_a_payment_failed_is_not_compared() -> None:
    usual = webhooks.ends(evidence(a=DONE, b=FAILED))
    assert not list(webhooks.other_ends(webhooks.ends(evidence(a=FAILED, b=DONE)), usual))


def test_a_payment_with_more_refunds_in_one_run_is_not_compared() -> None:
    usual = webhooks.ends(evidence(a=DONE, b=FAILED))
    assert not list(webhooks.other_ends(webhooks.ends(evidence(a=FAILED)), usual))


@pytest.mark.parametrize(
    ("move", "end"),
    [
        ({"label": "declined", "seen": "refused"}, "failed"),
        ({"label": "resends_spent"}, "failed"),
        ({"label": "conflict"}, "review"),
    ],
)
def test_a_review_because_of_a_refusal_counts_as_the_refusal(
    move: dict[str, Any], end: str
) -> None:
    reviewed = replace(evidence(a=IN_REVIEW), histories={"a": [{"to": "review", **move}]})
    assert webhooks.ends(reviewed) == {"pi_a": (("a",), (end,))}


def test_a_refund_without_a_record_has_not_ended() -> None:
    lost = replace(evidence(a=DONE), records={}, histories={})
    assert webhooks.ends(lost) == {"pi_a": (("a",), ("lost",))}


def names(*, quick: bool) -> set[str]:
    return {name for name, _ in webhooks.runs(size=1, keep=Path(), quick=quick)}


@pytest.mark.parametrize("readback", ["list", "totals as a hint", "none"])
def test_every_event_mode_meets_every_way_to_read_back(readback: str) -> None:
    modes = ["in_order", "shuffled", "early", "twice", "never", "ms", "s", "of charges"]
    wanted = {f"webhooks {mode} (verify, {readback}; keys ignored)" for mode in modes}
    assert wanted <= names(quick=False)


def test_a_quick_run_compares_each_of_its_modes_with_one_without_webhooks() -> None:
    quick = names(quick=True)
    assert quick < names(quick=False)
    for readback in ("list", "none"):
        of_mode = {name for name in quick if f"verify, {readback};" in name}
        assert f"webhooks never (verify, {readback}; keys ignored)" in of_mode
        assert len(of_mode) > 1
