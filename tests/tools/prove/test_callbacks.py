"""The rules by which runs with callbacks are judged, each with an arrival that breaks it."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from ops.lab.prove import callbacks, shop
from ops.lab.prove.evidence import Evidence
from ops.lab.prove.faulty_worker import shorten_callback_waits
from ops.lab.prove.shops import SHOPS, Arrival
from worker.callbacks import delivery, retries, signing
from worker.model.request import RefundRequest
from worker.sandbox.ports import free_port
from worker.store import callbacks as stored

RECORD = {
    "refund_id": "p1-1-1",
    "payment_intent": "pi_a",
    "amount": "100",
    "stage": "settled",
    "status": "succeeded",
    "lane": "refunds",
    "version": "3",
    "generation": "1",
    "created_at": "1700000000000",
    "updated_at": "1700000003000",
}
NAME = RECORD["refund_id"]
STEADY = SHOPS[0]
HELD = Arrival(
    at=1_700_000_004.0,
    webhook_id="msg_3",
    verified=True,
    type="refund.succeeded",
    member=NAME,
    version=3,
    status="succeeded",
    path="/callbacks",
    way="ok",
    held=True,
)


def evidence(**changes: Any) -> Evidence:
    moves = [{"at": 1_700_000_000_000 + 1000 * number} for number in (1, 2, 3)]
    return Evidence(
        accepted={NAME: RefundRequest(refund_id=NAME, payment_intent="pi_a", amount=100)},
        records={NAME: RECORD | changes},
        histories={NAME: moves},
    )


def unheld(*arrivals: Arrival, dead: int | None = None) -> list[str]:
    letters = {} if dead is None else {NAME: dead}
    return [one.rule for one in callbacks.unheld(STEADY, "", arrivals, evidence(), letters)]


def test_a_shop_that_holds_the_last_state_breaks_no_rule() -> None:
    assert unheld(replace(HELD, version=2, type="refund.in_review"), HELD, HELD) == []
    assert list(callbacks.wrong(STEADY, "", [HELD, HELD])) == []


@pytest.mark.parametrize(
    "arrivals",
    [
        (),
        (replace(HELD, held=False, way="error"),),
        (replace(HELD, version=2),),
        (replace(HELD, type="refund.failed"),),
    ],
)
def test_a_shop_without_the_last_state_is_a_violation(arrivals: tuple[Arrival, ...]) -> None:
    assert unheld(*arrivals) == ["callback lost"]


def test_a_dead_letter_needs_every_try() -> None:
    assert unheld(dead=12) == []
    assert unheld(dead=11) == ["dead early"]


def test_a_refund_under_way_has_no_callback() -> None:
    waiting = evidence(stage="processing", status="pending")
    assert list(callbacks.unheld(STEADY, "", [], waiting, {})) == []


@pytest.mark.parametrize(
    ("arrivals", "rule"),
    [
        ([replace(HELD, verified=False)], "signature"),
        ([replace(HELD, member="p2-1-1")], "callback unwanted"),
        ([replace(HELD, path="/elsewhere")], "callback redirected"),
        ([HELD, replace(HELD, version=2, webhook_id="msg_2")], "callback out of date"),
        ([replace(HELD, version=2), HELD], "callback id"),
    ],
)
def test_what_a_shop_may_not_receive_is_a_violation(arrivals: list[Arrival], rule: str) -> None:
    assert [one.rule for one in callbacks.wrong(STEADY, "p1-", arrivals)] == [rule]


def test_a_delay_counts_from_the_last_move_or_from_the_end_of_the_faults() -> None:
    failed = replace(HELD, at=HELD.at - 0.5, held=False)
    assert callbacks.delays([failed, HELD], evidence(), 1_700_000_003.5) == {NAME: 1.0}
    killed = replace(evidence(), kills=[1_700_000_001.0])
    assert callbacks.delays([HELD], killed, 1_700_000_003.5) == {NAME: 0.5}


def test_a_quick_run_is_part_of_the_full_one() -> None:
    def named(*, quick: bool) -> set[str]:
        found = callbacks.runs(size=1, keep=Path(), quick=quick, seconds=1)
        return {name for name, _ in found}

    assert named(quick=True) < named(quick=False)
    assert {"callbacks: secrets replaced", "callbacks: a shop away"} <= named(quick=False)


def test_waits_are_shortened_in_one_relation_and_left_alone_without_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = ((stored, "HOLD"), (stored, "FIRST_PROBE"), (stored, "MOST_PROBE"))
    before = {name: getattr(module, name) for module, name in names}
    # Set, so that they are put back.
    for module, name in (*names, (retries, "WAITS"), (delivery, "SPARE")):
        monkeypatch.setattr(module, name, getattr(module, name))
    waits, spare = retries.WAITS, delivery.SPARE
    shorten_callback_waits(1, None)
    assert {name: getattr(module, name) for module, name in names} == before
    assert (waits, spare) == (retries.WAITS, delivery.SPARE)
    shorten_callback_waits(1 / 10, 2.0)
    assert before["FIRST_PROBE"] / 10 == stored.FIRST_PROBE
    assert max(retries.WAITS) == timedelta(seconds=2)


# The shop itself


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """A shop as a process, which knows one secret."""
    (tmp_path / "a.keys").write_text("whsec_" + base64.b64encode(b"k" * 32).decode())
    (tmp_path / "a.ways").write_text('{"ok": 1, "never": 3}')
    port = free_port()
    command = [sys.executable, "-m", "ops.lab.prove.shop", str(port), str(tmp_path), "a"]
    with subprocess.Popen(command) as process:
        try:
            yield f"http://127.0.0.1:{port}/callbacks"
        finally:
            process.kill()


def post(url: str, member: str, key: bytes) -> httpx.Response:
    data = {"refund_id": member, "version": 3, "status": "succeeded"}
    body = json.dumps({"type": "refund.succeeded", "data": data}).encode()
    fields = signing.headers([key], "msg_1", int(time.time()), body)
    with httpx.Client(transport=httpx.HTTPTransport(retries=20), trust_env=False) as client:
        return client.post(url, content=body, headers=fields)


def test_a_shop_notes_what_arrives_and_whether_it_is_genuine(url: str, tmp_path: Path) -> None:
    statuses = [
        post(url, "p1-1-1", b"k" * 32).status_code,
        post(url, "p1-3-1", b"k" * 32).status_code,
        post(url, "p1-1-1", b"x" * 32).status_code,
    ]
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    noted = [(one["member"], one["verified"], one["held"]) for one in lines]
    assert statuses == [204, 500, 204]
    assert noted == [("p1-1-1", True, True), ("p1-3-1", True, False), ("p1-1-1", False, True)]


def test_every_way_of_a_shop_is_known_to_its_process() -> None:
    used = {way for one in SHOPS for way in (*one.ways, *one.afterwards)} - {"never"}
    assert used == {*shop.WAYS}
