"""Callbacks in the records, as the tests of them take and end tries."""

from __future__ import annotations

from datetime import timedelta

import redis

from tests.factories import HOUR, REFUSED, SECOND, found
from tests.support.store_world import ID, World, at_stage
from worker.batches.opening import open_batch
from worker.model.refund import Lane, Stage
from worker.rules.rechecks import changed_by_provider
from worker.store import callbacks, meta
from worker.store.callbacks import Ended, Taken, Wanted

SHOP, BOOKS = Wanted(name="shop", ids="", most=100), Wanted(name="books", ids="b", most=100)
LEASE = timedelta(seconds=30)


def switched_on(client: redis.Redis) -> World:
    world = World(client)
    world.store.run(meta.flag("callbacks", once=True))
    return world


def settle(world: World, refund_id: str = ID) -> None:
    at_stage(world, Stage.SETTLED, refund_id, payment_intent=f"pi_{refund_id}")


def change(world: World, refund_id: str = ID) -> None:
    """Let the provider change a settled refund to its opposite end."""
    refund = world.get(refund_id)
    status = "failed" if refund.status == "succeeded" else "succeeded"
    shown = found(
        id=f"re_{refund_id}",
        refund_id=refund_id,
        payment_intent=refund.payment_intent,
        status=status,
    )
    step = changed_by_provider(refund, shown, "list", world.now)
    assert step is not None
    assert world.save(refund, step).result == "saved"


def due(world: World, *endpoints: Wanted) -> dict[str, list[str]]:
    taken = world.store.run(callbacks.outbox(endpoints or (SHOP,)))
    return {name: list(members) for name, members in taken.due.items()}


def take(world: World, holder: str = "t1", *, name: str = "shop", member: str = ID) -> Taken:
    return world.store.run(callbacks.take(name, member, token=holder, lease=LEASE))


def end(
    world: World,
    result: callbacks.Result,
    *,
    holder: str = "t1",
    member: str = ID,
    version: int | str | None = None,
    wait: timedelta | None = 5 * SECOND,
) -> Ended:
    said = str(world.get(member).version if version is None else version)
    return world.store.run(
        callbacks.ended(
            "shop", member, token=holder, result=result, version=said, wait=wait, log={"ms": "3"}
        )
    )


def fail_times(world: World, times: int) -> None:
    """Let as many refunds fail at the endpoint, one try each, none due again within the hour."""
    for number in range(times):
        settle(world, f"f{number}")
        due(world)
        assert take(world, member=f"f{number}").result == "taken"
        assert end(world, "failed", member=f"f{number}", wait=HOUR) == "again"


def endpoint(world: World) -> dict[str, str]:
    return world.hash("callback-endpoint:shop")


def a_batch(world: World, *refund_ids: str) -> None:
    open_batch(world.store, "b-1", file="season.csv", digest="d1", rows=len(refund_ids))
    for refund_id in refund_ids:
        world.accept(refund_id, lane=Lane.BULK, batch="b-1", payment_intent=f"pi_{refund_id}")


def fail(world: World, refund_id: str) -> None:
    world.attempt(REFUSED, refund_id)
