"""What each operation hands its script, argument by argument, and how it reads each reply."""

from __future__ import annotations

import hashlib
import json
from datetime import timedelta
from typing import Any

import pytest
import redis

from tests.factories import HOUR, NOW, PAYMENT, SECOND, a_refund, a_request
from worker.model.refund import Baseline, Lane, Stage, Status
from worker.model.request import idempotency_key, request_body
from worker.model.steps import Step
from worker.store import (
    account_facts,
    claims,
    creations,
    gate,
    meta,
    reads,
    record_time,
    saves,
    scripts,
    sweeps,
)
from worker.store.account_facts import AccountFacts, Witnesses
from worker.store.claims import Claim
from worker.store.creations import Created
from worker.store.gate import Permits
from worker.store.reads import Loaded
from worker.store.records import decode
from worker.store.saves import Saved
from worker.store.scripts import Command, Script
from worker.store.store import Store
from worker.store.sweeps import Due

MS = timedelta(milliseconds=1)
AT = int(NOW.timestamp() * 1000)
RECORD = [
    *(
        "refund_id",
        "a",
        "status",
        "pending",
        "stage",
        "queued",
        "payment_intent",
        PAYMENT,
        "amount",
        "500",
    ),
    *("created_at", str(AT), "updated_at", str(AT), "version", "1", "fingerprint", "f"),
]
REFUND = decode(dict(zip(RECORD[::2], RECORD[1::2], strict=True)))


def handed(call: Command[Any]) -> list[str]:
    """The arguments as they are written: 45000 is not 45000.0."""
    return [repr(one) for one in call.arguments]


def written(*arguments: Any) -> list[str]:
    return [repr(one) for one in arguments]


def test_script_is_its_file_with_the_shared_beginning_in_front_known_by_its_digest() -> None:
    one, other = Script("load"), Script("claim")
    assert one.name == "load"
    beginning = one.text[: one.text.index("-- Read a refund")]
    assert beginning.startswith(f"{scripts.beginning()}\n-- Comes before every script")
    assert beginning.endswith("\n")
    assert other.text.startswith(beginning)
    assert len(one.sha) == 40
    assert one.sha != other.sha
    assert one.sha == scripts.LOAD.sha


def test_times_that_calls_go_by_are_those_of_the_design() -> None:
    assert timedelta(minutes=10) == sweeps.NUDGE_GRACE
    assert timedelta(seconds=15) == sweeps.LOST_NUDGE
    assert timedelta(seconds=30) == sweeps.SWEEP_HOLD
    assert scripts.CREATED_AT_ONCE == 50


def test_what_a_server_is_given_before_the_first_refund_is_every_script_that_a_worker_runs() -> (
    None
):
    names = {script.name for script in scripts.EVERY}
    assert names >= {
        "create",
        "load",
        "claim",
        "stands",
        "save",
        "sweep",
        "give_back",
        "siblings",
        "gate",
        "block_gate",
        "pin",
    }


@pytest.mark.parametrize(
    ("call", "durable"),
    [
        (creations.create(a_request(), Lane.SINGLE), True),
        (creations.create_several([a_request()], Lane.SINGLE), True),
        (reads.load("a"), False),
        (claims.claim("a", "send", token="t", lease=SECOND), True),
        (claims.stands("a", "t"), False),
        (saves.save(a_refund(), Step(to=Stage.SETTLED, status=Status.FAILED, label="x")), True),
        (
            saves.save(
                a_refund(), Step(to=Stage.SETTLED, status=Status.FAILED, label="x"), durable=False
            ),
            False,
        ),
        (
            saves.save(
                a_refund(Stage.SETTLED),
                Step(
                    to=Stage.QUEUED,
                    status=Status.PENDING,
                    label="retried",
                    changes={"generation": 2},
                ),
            ),
            True,
        ),
        (
            saves.save(
                a_refund(Stage.QUEUED),
                Step(to=Stage.QUEUED, status=Status.PENDING, label="x", quiet=True),
            ),
            True,
        ),
        (sweeps.sweep(1, dry=frozenset()), False),
        (sweeps.give_back(["a"]), False),
        (reads.siblings("pi", "a"), False),
        (gate.permits({}, rate=1, ahead=SECOND, bulk_share=0.5), False),
        (gate.block_gate(SECOND), False),
        (meta.pin("host", "mode"), True),
        (account_facts.account("salt"), True),
        (account_facts.payment("pi_1", "certain"), False),
        (account_facts.witnesses(3), False),
        (record_time.clock(), False),
    ],
    ids=lambda value: value.script.name if isinstance(value, Command) else str(value),
)
def test_what_must_not_be_forgotten_is_durable(call: Command[Any], *, durable: bool) -> None:
    assert call.durable is durable


def test_a_call_is_durable_unless_it_says_that_it_need_not_be() -> None:
    assert Command(script=Script("load"), arguments=[], read=list).durable


class _Clock(Script):
    """The shared beginning, and what it takes the time to be beside what the server says in the
    same moment.
    """

    def __init__(self) -> None:
        super().__init__("load")
        self.name = "clock"
        beginning = self.text[: self.text.index("-- Read a refund")]
        self.text = f"{beginning}\nlocal t = redis.call('TIME') return {{int(NOW), t[1], t[2]}}"
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


def test_script_takes_the_servers_time_in_whole_milliseconds_or_the_one_that_it_is_given(
    sync_redis: redis.Redis,
) -> None:
    records = Store(sync_redis, durable=False)
    clock: Command[Any] = Command(
        script=_Clock(), arguments=[], read=lambda reply: [int(one) for one in reply]
    )
    # Time stands still in a script since Redis 7.2; before, the second question comes later.
    late = [
        seconds * 1000 + micros // 1000 - now
        for now, seconds, micros in records.run_many([clock] * 300)
    ]
    assert min(late) == 0
    server: Any = sync_redis.info("server")
    if tuple(map(int, server["redis_version"].split(".")[:2])) >= (7, 2):
        assert set(late) == {0}
    sync_redis.delete("refunds:clock")
    records.now = NOW
    assert records.run(clock)[0] == AT


# Accepting


@pytest.mark.parametrize(("batch", "named"), [(None, ""), ("b", "b")])
def test_accepting_hands_over_grace_lane_batch_and_the_row(batch: str | None, named: str) -> None:
    call = creations.create(a_request(), Lane.BULK, batch)
    assert handed(call)[:4] == written(600_000, "refunds.bulk", named, "")
    assert handed(creations.create(a_request(), Lane.SINGLE, by="shop"))[3] == repr("shop")
    assert call.script is scripts.CREATE
    several = creations.create_several([a_request("a"), a_request("b")], Lane.BULK, batch)
    rows = (len(several.arguments) - 4) // 2
    assert len(call.arguments) == 4 + rows
    assert several.script is scripts.CREATE


def test_reply_to_accepting_is_read_row_by_row() -> None:
    reply = [AT, "created", RECORD, "conflict"]
    assert creations.create_several([a_request()] * 3, Lane.SINGLE).read(reply) == [
        Created(result="created", now=NOW),
        Created(result="exists", now=NOW, refund=REFUND),
        Created(result="conflict", now=NOW),
    ]
    assert creations.create(a_request(), Lane.SINGLE).read([AT, "created"]) == Created(
        result="created", now=NOW
    )


def test_reply_to_loading_is_read_with_the_servers_time_and_the_payments_counter() -> None:
    call = reads.load("a")
    assert handed(call) == written("a")
    assert call.read([AT, 7, RECORD, ""]) == Loaded(now=NOW, seq="7", refund=REFUND)
    assert call.read([AT, "0", [], ""]) == Loaded(now=NOW, seq="0", refund=None)
    assert call.read([AT, "0", RECORD, "5"]) == Loaded(now=NOW, seq="0", refund=REFUND, recheck="5")


# Claiming


def test_claim_hands_over_everything_that_it_rests_on() -> None:
    plain = claims.claim("a", "send", token="t", lease=45 * SECOND)
    assert handed(plain) == written("a", "send", "t", 45_000, "", "", 0, 30_000, 15_000)
    full = claims.claim(
        "a",
        "resend",
        token="t",
        lease=SECOND,
        replay_window=2 * SECOND,
        version=0,
        seq="9",
        baseline=Baseline(refunded=1, currency="usd", remaining=2),
        currency_checked=True,
        payment_shown=True,
    )
    assert handed(full)[:9] == written("a", "resend", "t", 1_000, "0", "9", 2_000, 30_000, 15_000)
    assert full.arguments[9] == "baseline"
    assert json.loads(str(full.arguments[10])) == {
        "refunded": 1,
        "currency": "usd",
        "remaining": 2,
        "shown_by": None,
    }
    assert full.arguments[11:] == ["currency_checked", "1", "payment_shown", "1"]
    assert (
        handed(claims.claim("a", "replay", token="t", lease=SECOND, replay_window=-SECOND))[6]
        == "0"
    )
    assert full.script is scripts.CLAIM


@pytest.mark.parametrize("body", ["body", b"body"])
def test_reply_to_a_claim_is_read_with_body_lease_and_record(body: Any) -> None:
    call = claims.claim("a", "send", token="t", lease=SECOND)
    claimed = call.read(["claimed", AT, 1_500, body, RECORD, "0-a:1:b"])
    assert claimed == Claim(
        result="claimed",
        now=NOW,
        refund=REFUND,
        token="t",
        body=b"body",
        lease_left=1500 * MS,
        position="0-a:1:b",
    )
    assert claimed.claimed
    refused = call.read(["stage", AT, RECORD, "5"])
    assert refused == Claim(
        result="stage", now=NOW, refund=REFUND, body=b"", lease_left=timedelta(0), recheck="5"
    )
    assert not refused.claimed
    missing = call.read(["missing", AT, [], ""])
    assert (missing, refused.token) == (Claim(result="missing", now=NOW), "")


def test_claim_grows_shorter_by_the_time_that_was_spent_asking() -> None:
    claim = Claim(result="claimed", now=NOW, lease_left=HOUR)
    assert claims.shorter(claim, SECOND) == Claim(
        result="claimed", now=NOW + SECOND, lease_left=HOUR - SECOND
    )


def test_standing_claim_is_asked_for_by_id_and_token() -> None:
    call = claims.stands("a", "t")
    assert handed(call) == written("a", "t")
    assert (call.read(""), call.read("overtaken")) == ("", "overtaken")


# Saving


def test_save_hands_over_the_step_and_what_it_was_decided_on() -> None:
    refund = a_refund(Stage.SENDING, version=7, generation=3)
    step = Step(
        to=Stage.SETTLED,
        status=Status.FAILED,
        label='a "label"',
        changes={"amount": 0, "lapses": 0, "error_code": "x", "seen": None},
        proof=True,
    )
    call = saves.save(refund, step, {"seen": "done", "ms": 3})
    assert call.script is scripts.SAVE
    arguments = handed(call)
    assert arguments[:10] == written(
        "order-1001-1",
        "7",
        "1",
        "3",
        "settled",
        "failed",
        0,
        "",
        '"a \\"label\\""',
        ',"seen":"done","ms":3',
    )
    sources = str(call.arguments[10]).strip(",").split(",")
    assert str(call.arguments[10]) == f",{','.join(sources)},"
    assert set(sources) == {
        "queued",
        "sending",
        "waiting",
        "in_doubt",
        "processing",
        "review",
        "settled",
    }
    assert arguments[11:] == written("", "sending", "lapses seen", "amount", "0", "error_code", "x")


@pytest.mark.parametrize(
    ("delay", "milliseconds"),
    [(None, 0), (timedelta(0), 0), (1500 * MS, 1_500), (-SECOND, 0), (0.4 * MS, 0)],
)
def test_save_hands_over_when_the_refund_is_looked_at_next(
    delay: timedelta | None, milliseconds: int
) -> None:
    step = Step(to=Stage.WAITING, status=Status.PENDING, label="x", delay=delay, quiet=True)
    arguments = handed(saves.save(a_refund(Stage.WAITING), step))
    assert arguments[2] == repr("")
    assert arguments[6:8] == written(milliseconds, "1")
    assert arguments[9] == repr("")


def test_retry_brings_a_new_body_and_key_and_waits_for_its_nudge() -> None:
    refund = a_refund(Stage.SETTLED, generation=1)
    step = Step(to=Stage.QUEUED, status=Status.PENDING, label="retried", changes={"generation": 2})
    call = saves.save(refund, step)
    assert call.arguments[6] == 600_000
    assert call.arguments[11] == request_body(refund.as_request(), 2)
    assert call.arguments[13] == ""
    changes = dict(zip(call.arguments[14::2], call.arguments[15::2], strict=True))
    assert changes == {"generation": "2", "idempotency_key": idempotency_key(refund.refund_id, 2)}
    soon = Step(
        to=Stage.QUEUED, status=Status.PENDING, label="x", changes={"generation": 2}, delay=SECOND
    )
    assert saves.save(refund, soon).arguments[6] == 1_000


def test_quiet_step_of_a_queued_refund_is_no_retry() -> None:
    step = Step(to=Stage.QUEUED, status=Status.PENDING, label="x", changes={"looks": 1}, quiet=True)
    call = saves.save(a_refund(Stage.QUEUED), step)
    assert call.arguments[6] == 0
    assert list(call.arguments[11:]) == ["", "queued", "", "looks", "1"]


def test_reply_to_a_save_is_read_with_who_was_woken_or_is_in_the_way() -> None:
    call = saves.save(a_refund(), Step(to=Stage.WAITING, status=Status.PENDING, label="x"))
    assert call.read(["saved", AT, "b"]) == Saved(result="saved", now=NOW, woken="b", other=None)
    assert call.read(["saved", AT, ""]) == Saved(result="saved", now=NOW, woken=None, other=None)
    assert call.read(["owned", AT, "b"]) == Saved(result="owned", now=NOW, woken=None, other="b")
    assert call.read(["stale", AT, ""]) == Saved(result="stale", now=NOW, woken=None, other=None)


# The rest


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
