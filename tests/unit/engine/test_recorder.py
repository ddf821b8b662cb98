"""Saving what was decided: how long it is tried, what is told of it, and who is looked at next."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
import redis.asyncio

from tests.factories import NOW, SECOND, a_refund, a_request, found
from tests.unit.engine.desk import Desk, named
from tests.unit.engine.shop import ID
from worker.engine import endings
from worker.engine.recorder import SAVE_SECONDS, STOPPING_SAVE_SECONDS
from worker.errors import IllegalMove, NotStorable, StoreUnavailable
from worker.model.refund import Lane, Stage, Status
from worker.model.steps import Step
from worker.rules import proofs
from worker.store import claims, creations, saves

WAITING = Step(
    to=Stage.WAITING, status=Status.PENDING, label="not_sent", delay=timedelta(minutes=1)
)


@pytest.fixture
def slept(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between tries: they pass on the recorder's clock alone."""
    pauses: list[float] = []
    sleep, here = asyncio.sleep, threading.get_ident()

    async def passed(seconds: float) -> None:
        if threading.get_ident() != here:
            # A loop of another thread, such as a sandbox's, sleeps as ever.
            await sleep(seconds)
        else:
            pauses.append(seconds)
            desk.seconds += seconds
            await sleep(0)

    monkeypatch.setattr(asyncio, "sleep", passed)
    return pauses


# How long


async def test_step_that_carries_no_reply_is_tried_once(
    desk: Desk, slept: list[float], log: list[Any]
) -> None:
    refund = await desk.claimed()
    desk.store.away = 1
    with pytest.raises(StoreUnavailable):
        await desk.recorder.save(refund, WAITING, {})
    assert (desk.store.tries, slept, desk.again) == (1, [], [])
    (line,) = named(log, "save_failed")
    assert (line["refund_id"], line["to"]) == (ID, "waiting")


async def test_step_that_carries_a_reply_is_tried_until_it_is_in_at_growing_pauses(
    desk: Desk, slept: list[float]
) -> None:
    refund = await desk.claimed()
    desk.store.away = 7
    saved, ending = await desk.recorder.save(refund, WAITING, {}, insist=True)
    assert (saved.result, str(ending)) == ("saved", "waiting")
    assert slept == [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]
    assert (await desk.stored()).stage is Stage.WAITING


@pytest.mark.parametrize(("stopping", "limit"), [(False, 120.0), (True, 15.0)])
async def test_step_that_carries_a_reply_is_given_up_after_two_minutes_or_at_a_stop(
    desk: Desk, slept: list[float], *, stopping: bool, limit: float
) -> None:
    assert (SAVE_SECONDS, STOPPING_SAVE_SECONDS) == (120.0, 15.0)
    refund = await desk.claimed()
    desk.recorder.stopping = desk.recorder.stopping or stopping
    desk.store.away = 10_000
    desk.seconds = 1000.0
    with pytest.raises(StoreUnavailable):
        await desk.recorder.save(refund, WAITING, {}, insist=True)
    assert limit <= sum(slept) < limit + 2.0
    assert desk.store.tries == len(slept) + 1


async def test_step_is_given_up_at_the_very_end_of_its_time(desk: Desk, slept: list[float]) -> None:
    refund = await desk.claimed()
    desk.recorder.stopping = True
    desk.store.away = 10_000
    run = desk.store.run

    async def slow(command: Any) -> Any:
        desk.seconds = 15.0
        return await run(command)

    desk.store.run = slow  # type: ignore[method-assign]
    with pytest.raises(StoreUnavailable):
        await desk.recorder.save(refund, WAITING, {}, insist=True)
    assert slept == []


async def test_save_does_not_wait_for_the_disk(desk: Desk) -> None:
    refund = await desk.claimed()
    ran = watched(desk)
    await desk.recorder.save(refund, WAITING, {}, insist=True)
    assert [command.durable for command in ran] == [False]


def watched(desk: Desk, *, away: tuple[int, ...] = ()) -> list[Any]:
    """Every call from now on; Redis is away for those of these numbers, counted from 0."""
    ran: list[Any] = []
    run = desk.store.run

    async def watching(command: Any) -> Any:
        ran.append(command)
        if len(ran) - 1 in away:
            raise StoreUnavailable("redis is away")
        return await run(command)

    desk.store.run = watching  # type: ignore[method-assign]
    return ran


# What is checked


async def test_step_that_the_records_cannot_hold_is_tried_once_and_told(
    desk: Desk, log: list[Any]
) -> None:
    refund = await desk.claimed()
    step = proofs.done(refund, found(), "reply", NOW)
    unheard_of = replace(step, changes={**step.changes, "amount": 10**19})
    ran = watched(desk)
    with pytest.raises(NotStorable, match="amount 10000000000000000000 is not a whole number"):
        await desk.recorder.save(refund, unheard_of, {}, insist=True)
    assert len(ran) == 1
    (line,) = named(log, "save_refused")
    assert (line["refund_id"], line["alarm"], line["to"], line["provider_refund_id"]) == (
        ID,
        True,
        "settled",
        "re_1",
    )
    assert "is not a whole number" in line["error"]


async def test_move_that_is_not_in_the_table_is_not_even_asked_for(desk: Desk) -> None:
    refund = a_refund(Stage.SETTLED)
    with pytest.raises(IllegalMove):
        await desk.recorder.save(refund, WAITING, {})
    assert desk.store.tries == 0


@pytest.mark.parametrize("kind", ["quiet", "proof"])
async def test_quiet_step_and_proof_are_for_the_records_to_judge(desk: Desk, kind: str) -> None:
    refund = a_refund(Stage.SETTLED)
    step = Step(
        to=Stage.WAITING,
        status=Status.PENDING,
        label="x",
        quiet=kind == "quiet",
        proof=kind == "proof",
    )
    saved, ending = await desk.recorder.save(refund, step, {})
    assert (saved.result, ending) == ("missing", endings.UNKNOWN)


async def test_move_that_the_records_call_illegal_is_raised(desk: Desk) -> None:
    refund = await desk.claimed()
    step = Step(to=Stage.WAITING, status=Status.PENDING, label="x", quiet=True, delay=SECOND)
    with pytest.raises(IllegalMove) as caught:
        await desk.recorder.save(refund, step, {})
    assert (caught.value.refund_id, caught.value.source, caught.value.target) == (
        ID,
        "sending",
        "waiting",
    )


# What is told


async def test_move_is_told_with_what_is_known_of_it_and_noted_in_the_history(
    desk: Desk, async_redis: redis.asyncio.Redis, log: list[Any]
) -> None:
    refund = await desk.claimed()
    step = proofs.to_review({}, "why", "a person must")
    await desk.recorder.save(refund, step, {"seen": "x", "reason": "so"})
    (line,) = named(log, "refund_sent_to_review")
    assert line == {
        "event": "refund_sent_to_review",
        "log_level": "info",
        "refund_id": ID,
        "stage": "review",
        "status": "pending",
        "label": "why",
        "seen": "x",
    }
    (alarm,) = named(log, "refund_needs_attention")
    assert (alarm["refund_id"], alarm["alarm"], alarm["reason"]) == (ID, True, "a person must")
    last: Any = await async_redis.lindex(f"refunds:history:{ID}", -1)
    assert '"alarm":"a person must"' in last
    assert '"seen":"x"' in last
    assert '"reason":"so"' in last


@pytest.mark.parametrize(
    ("step", "event"),
    [
        (WAITING, "refund_waiting"),
        (proofs.done(a_refund(), found(), "reply", NOW), "refund_settled"),
        (proofs.to_review({}, "x", "y"), "refund_sent_to_review"),
    ],
)
async def test_each_move_has_its_event(desk: Desk, log: list[Any], step: Step, event: str) -> None:
    refund = await desk.claimed()
    await desk.recorder.save(refund, step, {})
    assert event in [line["event"] for line in log]


async def test_step_without_an_alarm_notes_none(
    desk: Desk, async_redis: redis.asyncio.Redis
) -> None:
    refund = await desk.claimed()
    await desk.recorder.save(refund, WAITING, {})
    last: Any = await async_redis.lindex(f"refunds:history:{ID}", -1)
    assert "alarm" not in last


async def test_quiet_step_is_not_told(desk: Desk, log: list[Any]) -> None:
    refund = await desk.claimed()
    step = Step(
        to=Stage.SENDING, status=Status.PENDING, label="x", quiet=True, delay=timedelta(minutes=1)
    )
    await desk.recorder.save(refund, step, {})
    assert [line["event"] for line in log] == []


async def test_save_that_came_too_late_is_told_and_changes_nothing(
    desk: Desk, log: list[Any]
) -> None:
    refund = await desk.claimed()
    await desk.recorder.save(refund, WAITING, {})
    again, ending = await desk.recorder.save(refund, WAITING, {})
    assert (again.result, ending) == ("stale", endings.OVERTAKEN)
    (line,) = named(log, "save_superseded")
    assert (line["refund_id"], line["result"], line["label"]) == (ID, "stale", "not_sent")


async def test_proof_that_is_saved_already_is_not_one_without_a_record(
    desk: Desk, log: list[Any]
) -> None:
    refund = await desk.claimed()
    proof = proofs.done(refund, found(), "reply", NOW)
    await desk.recorder.save(refund, proof, {})
    again, _ = await desk.recorder.save(refund, proof, {})
    assert again.result == "already"
    assert named(log, "proof_without_record") == []
    (line,) = named(log, "save_superseded")
    assert line["result"] == "already"


async def test_proof_of_a_refund_whose_record_is_gone_rings_an_alarm(
    desk: Desk, log: list[Any], async_redis: redis.asyncio.Redis
) -> None:
    refund = await desk.claimed()
    await async_redis.flushdb()
    saved, _ = await desk.recorder.save(refund, proofs.done(refund, found(), "reply", NOW), {})
    assert saved.result == "missing"
    (line,) = named(log, "proof_without_record")
    assert (line["refund_id"], line["alarm"], line["provider_refund_id"]) == (ID, True, "re_1")


async def test_note_of_what_a_reply_showed_does_not_wait_for_the_disk_nor_the_save_behind_it(
    desk: Desk, log: list[Any]
) -> None:
    refund = await desk.claimed()
    ran = watched(desk)
    await desk.recorder.name(refund, WAITING, "re_9", is_kept=False)
    await desk.recorder.save(refund, WAITING, {})
    assert [(command.script.name, command.durable) for command in ran] == [
        ("hint", False),
        ("save", False),
    ]
    assert (await desk.stored()).prior_ids == ()
    assert named(log, "proof_without_record") == []


async def test_proof_against_a_settled_refund_rings_an_alarm(desk: Desk, log: list[Any]) -> None:
    refund = await desk.claimed()
    await desk.recorder.save(refund, proofs.done(refund, found(), "reply", NOW), {})
    saved, ending = await desk.recorder.save(
        refund, proofs.done(refund, found(id="re_2"), "reply", NOW), {}
    )
    assert (saved.result, ending) == ("contradicts", endings.CONTRADICTED)
    (line,) = named(log, "proof_against_settled")
    assert (line["refund_id"], line["alarm"], line["provider_refund_id"]) == (ID, True, "re_2")


async def test_proof_against_a_settled_refund_is_kept_though_redis_is_away_meanwhile(
    desk: Desk, slept: list[float]
) -> None:
    refund = await desk.claimed()
    await desk.recorder.save(refund, proofs.done(refund, found(), "reply", NOW), {})
    # The proof itself, then the record as it is now, then what is kept of the proof.
    ran = watched(desk, away=(1, 3))
    await desk.recorder.save(refund, proofs.done(refund, found(id="re_2"), "reply", NOW), {})
    assert [command.script.name for command in ran] == ["save", "load", "load", "save", "save"]
    assert slept == [0.1, 0.1]
    assert (await desk.stored()).contradicted_by == "re_2"


async def test_proof_is_given_up_after_twenty_tries_if_the_record_changes_each_time(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    refund = await desk.claimed()
    await desk.recorder.save(refund, proofs.done(refund, found(), "reply", NOW), {})
    tries = []

    async def overtaken(*_: Any, **__: Any) -> Any:
        tries.append(1)
        return saves.Saved(result="stale", now=NOW), endings.OVERTAKEN

    monkeypatch.setattr(desk.recorder, "save", overtaken)
    proof = proofs.done(refund, found(id="re_2"), "reply", NOW)
    await desk.recorder.contradict(refund, proof)
    assert len(tries) == 20


# Who is next


async def test_refund_that_waited_for_the_payment_is_looked_at_at_once(desk: Desk) -> None:
    refund = await desk.claimed()
    await desk.store.run(creations.create(a_request("b"), Lane.SINGLE))
    refused = await desk.store.run(claims.claim("b", "send", token="b", lease=SECOND))
    assert refused.result == "locked"
    await desk.recorder.save(refund, WAITING, {})
    assert desk.again == [("b", Lane.BULK, timedelta(0))]


@pytest.mark.parametrize(
    ("delay", "taken"),
    [
        (timedelta(0), True),
        (5 * SECOND, True),
        (5 * SECOND + timedelta(milliseconds=1), False),
        (None, False),
    ],
)
async def test_refund_that_is_due_within_five_seconds_is_looked_at_by_this_worker(
    desk: Desk, delay: timedelta | None, *, taken: bool
) -> None:
    refund = await desk.claimed()
    await desk.recorder.save(
        refund, Step(to=Stage.WAITING, status=Status.PENDING, label="x", delay=delay), {}
    )
    assert desk.again == ([(ID, Lane.BULK, delay)] if taken else [])


async def test_settled_refund_is_not_looked_at_again(desk: Desk) -> None:
    refund = await desk.claimed()
    step = Step(to=Stage.SETTLED, status=Status.FAILED, label="x", delay=timedelta(0))
    await desk.recorder.save(refund, step, {})
    assert desk.again == []
