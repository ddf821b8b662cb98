"""The rules by which runs over HTTP are judged, each with an answer that breaks it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ops.lab.prove import door, faulty_door
from ops.lab.prove.clients import Exchange
from ops.lab.prove.evidence import Evidence
from worker.model.refund import Lane, Refund, Stage, Status
from worker.model.request import RefundRequest
from worker.model.times import from_ms
from worker.store.records import decode

RECORD = {
    "refund_id": "a",
    "payment_intent": "pi_a",
    "amount": "100",
    "stage": "settled",
    "status": "succeeded",
    "lane": Lane.SINGLE.value,
    "version": "3",
    "generation": "1",
    "created_at": "1700000000000",
    "updated_at": "1700000000900",
}


def refund() -> Refund:
    return decode(dict(RECORD))


def answer(code: int, /, **changes: Any) -> Exchange:
    return Exchange(refund_id="a", server=0, status=code, answer=refund().as_dict() | changes)


PENDING: dict[str, Any] = {"status": "pending", "stage": "queued", "version": 1}


def broken(*exchanges: Exchange, known: bool = True) -> list[str]:
    evidence = Evidence(
        accepted={"a": RefundRequest(refund_id="a", payment_intent="pi_a", amount=100)},
        records={"a": RECORD} if known else {},
        histories={},
    )
    return [one.rule for one in door.answers(exchanges, evidence)]


def test_answers_that_the_record_confirms_break_no_rule() -> None:
    unanswered = Exchange(refund_id="a", server=1)
    away = Exchange(refund_id="a", server=1, status=503)
    assert broken(answer(202, **PENDING), answer(200), unanswered, away) == []
    assert refund().status is Status.SUCCEEDED
    assert refund().stage is Stage.SETTLED
    assert refund().created_at == from_ms(1_700_000_000_000)


def test_a_202_without_a_record_is_a_violation() -> None:
    assert broken(answer(202, **PENDING), known=False) == ["lost"]


@pytest.mark.parametrize(
    "wrong",
    [
        answer(202, **PENDING | {"refund_id": "b"}),
        answer(202, **PENDING | {"payment_intent": "pi_b"}),
        answer(202, **PENDING | {"created_at": "2023-11-14T22:13:21.000Z"}),
        answer(202, **PENDING | {"version": 4}),
        answer(200, **PENDING),
        answer(202),
        answer(200, status="failed"),
    ],
)
def test_an_answer_that_the_record_contradicts_is_a_violation(wrong: Exchange) -> None:
    assert broken(wrong) == ["false answer"]


@pytest.mark.parametrize("status", [400, 401, 404, 409, 422, 500])
def test_an_error_that_no_valid_request_may_get_is_a_violation(status: int) -> None:
    assert broken(Exchange(refund_id="a", server=0, status=status)) == ["odd answer"]


def test_other_contents_under_the_same_key_may_be_refused_and_not_accepted() -> None:
    refused = Exchange(refund_id="a", server=0, status=422, differs=True)
    assert broken(refused) == []
    assert broken(replace(answer(202, **PENDING), differs=True)) == ["conflict accepted"]


def test_a_quick_run_is_part_of_the_full_one_and_every_point_is_met() -> None:
    quick = {name for name, _ in door.runs(size=1, keep=Path(), quick=True)}
    full = {name for name, _ in door.runs(size=1, keep=Path(), quick=False)}
    assert quick < full
    assert {*faulty_door.POINTS} == {"read", "written"}
    assert {"door: killed before the write", "door: killed after the write"} <= full
