"""What sweeps, the account, payments and the gate hand their scripts, argument by argument, and
how they read each reply.
"""

from __future__ import annotations

from datetime import timedelta

import pytest

from tests.factories import NOW, SECOND
from tests.unit.store.handing import AT, MS, RECORD, REFUND, handed, written
from worker.model.refund import Lane, Stage
from worker.store import (
    account_facts,
    gate,
    meta,
    reads,
    record_time,
    scripts,
    sweeps,
)
from worker.store.account_facts import AccountFacts, Witnesses
from worker.store.gate import Permits
from worker.store.sweeps import Due


@pytest.mark.parametrize(
    ("dry", "single", "bulk"),
    [(set(), "", ""), ({Lane.SINGLE}, "1", ""), ({Lane.BULK}, "", "1"), (set(Lane), "1", "1")],
)
def test_sweep_hands_over_its_times_and_the_lanes_that_are_dry(
    dry: set[Lane], single: str, bulk: str
) -> None:
    call = sweeps.sweep(50, dry=frozenset(dry))
    assert handed(call) == written(50, 30_000, 600_000, 15_000, single, bulk, 86_400_000, 100)
    assert call.script is scripts.SWEEP


def test_heartbeat_does_not_wait_for_the_disk() -> None:
    call = meta.beat("here")
    assert (call.script, call.durable) == (scripts.BEAT, False)


def test_reply_to_a_sweep_is_read_in_threes() -> None:
    call = sweeps.sweep(50, dry=frozenset())
    assert call.read([AT]) == ()
    rows = ["a", "refunds", "queued", "b", "refunds.bulk", "in_doubt", "c", "refunds.bulk"]
    assert call.read([AT, *rows, "recheck"]) == (
        Due(refund_id="a", lane=Lane.SINGLE, stage=Stage.QUEUED),
        Due(refund_id="b", lane=Lane.BULK, stage=Stage.IN_DOUBT),
        Due(refund_id="c", lane=Lane.BULK, stage=None),
    )


def test_account_is_told_and_a_key_handed_over() -> None:
    assert handed(account_facts.account("salt")) == written("salt", "", "")
    call = account_facts.account("salt", known="p1", account="acct_1")
    assert handed(call) == written("salt", "p1", "acct_1")
    assert call.script is scripts.ACCOUNT
    told = call.read(["old", "acct_1", "p1 p2", "1"])
    assert told == AccountFacts(
        salt="old", account="acct_1", prints=frozenset({"p1", "p2"}), vouched=True
    )
    told = call.read(["old", "", "", ""])
    assert told == AccountFacts(salt="old", account=None, prints=frozenset(), vouched=False)


def test_payment_and_witnesses_are_asked_for_by_name() -> None:
    call = account_facts.payment("pi_1", "missing")
    assert (handed(call), call.script, call.read("suspect")) == (
        written("pi_1", "missing"),
        scripts.PAYMENT,
        "suspect",
    )
    asking = account_facts.witnesses(3)
    assert (handed(asking), asking.script) == (written(3), scripts.WITNESSES)
    assert asking.read([["re_1"], [], ["pi_1"]]) == Witnesses(
        refunds=["re_1"], seen=[], unseen=["pi_1"]
    )
    assert (record_time.clock().script, record_time.clock().read("5")) == (scripts.CLOCK, 5)


def test_smaller_operations_hand_over_what_they_are_given_and_read_it_back() -> None:
    assert handed(sweeps.give_back(("a", "b"))) == written("a", "b")
    assert sweeps.give_back(["a"]).read("2") == 2
    assert sweeps.give_back(["a"]).script is scripts.GIVE_BACK
    siblings = reads.siblings("pi", "a")
    assert (handed(siblings), siblings.script) == (written("pi", "a", 200), scripts.SIBLINGS)
    assert siblings.read(["1", RECORD]) == (REFUND,)
    assert siblings.read(["0"]) is None
    blocked = gate.block_gate(1500 * MS)
    assert (handed(blocked), blocked.script) == (written(1_500), scripts.BLOCK_GATE)
    assert blocked.read("1500") == 1500 * MS
    pinned = meta.pin("host", "mode")
    assert (handed(pinned), pinned.script) == (written("host", "mode", "1"), scripts.PIN)
    assert pinned.read(["h", "m", 1]) == ("h", "m", "1")
    assert (scripts.at(None), scripts.at(NOW)) == ("", str(AT))


def test_permits_are_asked_for_by_lane_and_read_as_moments() -> None:
    call = gate.permits({Lane.BULK: 3}, rate=5.0, ahead=100 * MS, bulk_share=0.7)
    assert handed(call) == written(5.0, 100, 0, 3, 0.7)
    assert handed(
        gate.permits({Lane.SINGLE: 2}, rate=5.0, ahead=SECOND, bulk_share=0.7)
    ) == written(5.0, 1_000, 2, 0, 0.7)
    assert call.script is scripts.GATE
    assert call.read([1_500]) == Permits(moments=[], wait=1500 * MS)
    assert call.read([0, "refunds", 250, "refunds.bulk", 1_000_000]) == Permits(
        moments=[(Lane.SINGLE, timedelta(microseconds=250)), (Lane.BULK, SECOND)], wait=timedelta(0)
    )
