"""Refunds of concurrent requests share a script, and the fate of one is not that of another."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from tests.factories import a_request
from tests.support.api_door import Door
from worker.errors import NotStorable, RefundError, StoreFull, StoreUnavailable
from worker.http.creations import SCRIPTS_AT_ONCE, Creations
from worker.model.request import RefundRequest
from worker.model.times import from_ms
from worker.store.creations import Created
from worker.store.scripts import CREATED_AT_ONCE, Command

ROW, FIRST, BY = 10, 6, 3
NEW = [f"order-{each}" for each in (0, 1, 2, 5, 6, 7)]


class Records:
    """Runs scripts: which ids they held, and by whom. It refuses the ids in `refused`."""

    def __init__(self) -> None:
        self.scripts: list[tuple[str, list[str]]] = []
        self.refused: dict[str, RefundError] = {}
        self.under_way = self.most = 0

    async def run(self, command: Command[Sequence[Created]]) -> Sequence[Created]:
        arguments: list[Any] = list(command.arguments)
        ids = arguments[FIRST::ROW]
        self.scripts.append((arguments[BY], ids))
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        await asyncio.sleep(0)
        self.under_way -= 1
        for refund_id in ids:
            if refund_id in self.refused:
                raise self.refused[refund_id]
        return [Created(result="created", now=from_ms(1)) for _ in ids]


def wanted(number: int) -> RefundRequest:
    return a_request(f"order-{number}")


async def all_of(
    creations: Creations, count: int, *, by: str = "shop"
) -> list[Created | BaseException]:
    return await asyncio.gather(
        *(creations.create(wanted(each), by=by) for each in range(count)), return_exceptions=True
    )


async def test_requests_that_come_together_share_scripts() -> None:
    records = Records()
    assert len(await all_of(Creations(records.run), 40)) == 40
    assert sum(len(ids) for _, ids in records.scripts) == 40
    assert len(records.scripts) <= SCRIPTS_AT_ONCE


async def test_a_script_holds_a_limited_number_and_few_are_under_way() -> None:
    records = Records()
    count = 5 * CREATED_AT_ONCE
    await all_of(Creations(records.run), count)
    assert sorted(each for _, ids in records.scripts for each in ids) == sorted(
        wanted(number).refund_id for number in range(count)
    )
    assert max(len(ids) for _, ids in records.scripts) == CREATED_AT_ONCE
    assert records.most == SCRIPTS_AT_ONCE == 2


async def test_a_script_holds_the_requests_of_one_caller() -> None:
    records = Records()
    creations = Creations(records.run)
    await asyncio.gather(*(all_of(creations, 3, by=name) for name in ("ann", "bob", "cleo")))
    assert sorted(records.scripts) == [
        (name, [f"order-{number}" for number in range(3)]) for name in ("ann", "bob", "cleo")
    ]


async def test_a_caller_of_many_requests_does_not_keep_another_waiting() -> None:
    records = Records()
    creations = Creations(records.run)
    many = asyncio.create_task(all_of(creations, 10 * CREATED_AT_ONCE, by="many"))
    await asyncio.sleep(0)
    await all_of(creations, 1, by="few")
    await many
    assert [by for by, _ in records.scripts].index("few") <= 2 * SCRIPTS_AT_ONCE


@pytest.mark.parametrize("error", [NotStorable("a wrong key"), StoreFull("nearly full")])
async def test_a_request_that_is_refused_refuses_no_other(error: RefundError) -> None:
    records = Records()
    records.refused["order-3"] = error
    results = await all_of(Creations(records.run), 6)
    assert [result for result in results if isinstance(result, BaseException)] == [error]
    assert results[3] is error


async def test_if_the_records_are_away_no_request_is_accepted_and_none_is_repeated() -> None:
    records = Records()
    records.refused["order-3"] = away = StoreUnavailable("Redis is away")
    assert await all_of(Creations(records.run), 6) == [away] * 6
    assert len(records.scripts) == 1
    records.refused.clear()
    assert all(isinstance(each, Created) for each in await all_of(Creations(records.run), 2))


async def test_a_client_that_has_gone_changes_nothing_for_the_others() -> None:
    creations = Creations(Records().run)
    gone = asyncio.create_task(creations.create(wanted(1), by="shop"))
    other = asyncio.create_task(creations.create(wanted(2), by="shop"))
    await asyncio.sleep(0)
    gone.cancel()
    assert (await other).result == "created"


async def test_one_id_that_is_sent_many_times_at_once_is_one_refund(api: Door) -> None:
    answers = await asyncio.gather(*(api.create("order-1") for _ in range(20)))
    assert {(answer.status, answer.json["version"]) for answer in answers} == {(202, 1)}
    assert api.nudged == ["order-1"]
    assert len(api.refunds.history("order-1")) == 1


async def test_of_requests_sent_at_once_each_is_judged_on_its_own(api: Door) -> None:
    """One has the id of another with other contents, and the record of one holds what it cannot."""
    store = api.refunds.store
    store.redis.set(store.key("refund:order-3"), "not a record")
    await api.create("order-4", amount=700)
    answers = await asyncio.gather(*(api.create(f"order-{each}") for each in range(8)))
    statuses = [answer.status for answer in answers]
    assert statuses == [202, 202, 202, 409, 422, 202, 202, 202]
    assert (answers[3].code, answers[4].code) == ("not_storable", "idempotency_conflict")
    queued = {refund.refund_id for refund in api.refunds.get_many(NEW) if refund is not None}
    assert queued == set(NEW) <= set(api.nudged)
