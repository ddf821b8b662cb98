"""Whatever a command reports is on disk first.

On a server whose disk does not confirm, no command reports a change.

Nor does one that reads report an end: whoever acts on it would act on what a power cut may take
back.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import click
import pytest
import redis

from tests.support.cli_runner import PAYMENT, Cli, Records
from worker import batches
from worker.batches import BatchDraft
from worker.broker import rejected
from worker.broker.kept import kept_of
from worker.cli.group import refunds as program
from worker.model.refund import Lane, Retriable, Stage, Status
from worker.model.request import RefundRequest
from worker.model.steps import Step
from worker.model.times import rfc3339, to_ms
from worker.rules import decisions
from worker.sandbox.redis_server import ThrowawayServer, running_server
from worker.store import callback_state, claims, creations, flags, saves, sweeps
from worker.store.store import Store

BATCH: Final = "b-1"
Prepare = Callable[[Records, Path], list[str]]


def _queued(records: Records, _: Path) -> list[str]:
    records.queued("order-1")
    return ["order-1"]


def _canceled(records: Records, _: Path) -> list[str]:
    refund = records.queued("order-1")
    records.store.run(saves.save(refund, decisions.cancel(refund)))
    return ["order-1"]


def _in_doubt(records: Records, _: Path) -> list[str]:
    records.in_review("order-1")
    return ["order-1"]


def _never_in_doubt(records: Records, _: Path) -> list[str]:
    records.in_review("order-1", doubt=False)
    return ["order-1"]


def _batch(records: Records, _: Path) -> list[str]:
    batches.open_batch(
        records.store, BATCH, file="season.csv", digest="d", rows=2, opening=BatchDraft()
    )
    for name in ("row-1", "row-2"):
        request = RefundRequest(refund_id=name, payment_intent=f"{PAYMENT}{name[-1]}", amount=500)
        records.store.run(creations.create(request, Lane.BULK, BATCH))
    batches.close_batch(records.store, BATCH, handed_in=2, conflicting=0)
    return [BATCH]


def _paused_batch(records: Records, folder: Path) -> list[str]:
    _batch(records, folder)
    batches.pause_batch(records.store, BATCH)
    return [BATCH]


def _canceled_batch(records: Records, folder: Path) -> list[str]:
    _batch(records, folder)
    batches.cancel_batch(records.store, BATCH, "ann")
    return [BATCH]


def _failed_batch(records: Records, folder: Path) -> list[str]:
    _batch(records, folder)
    claim = records.store.run(
        claims.claim("row-1", "send", token="t", lease=sweeps.SWEEP_HOLD, seq="0")
    )
    assert claim.refund is not None
    changes = {"error_code": "balance_insufficient", "retriable": Retriable.YES}
    step = Step(to=Stage.SETTLED, status=Status.FAILED, label="x", changes=changes)
    assert records.store.run(saves.save(claim.refund, step)).result == "saved"
    return [BATCH]


def _failed(records: Records, _: Path) -> list[str]:
    records.failed("order-1")
    return ["order-1"]


def _failed_unnamed(records: Records, folder: Path) -> list[str]:
    return _failed(records, folder)[:0]


def _beside_a_failed_one(records: Records, _: Path) -> list[str]:
    records.failed("order-1")
    records.queued("order-2")
    return ["order-2"]


def _contradicted(records: Records, _: Path) -> list[str]:
    records.failed("order-1")
    records.store.redis.zadd("refunds:contradicted", {"order-1": 1})
    return []


def _imported(records: Records, folder: Path) -> list[str]:
    (file,) = _file(records, folder)
    digest = hashlib.sha256(Path(file).read_bytes()).hexdigest()
    batches.open_batch(
        records.store, BATCH, file="season.jsonl", digest=digest, rows=1, opening=BatchDraft()
    )
    records.failed("row-1", batch_id=BATCH)
    return [BATCH, "--input", file]


def _imported_before(records: Records, folder: Path) -> list[str]:
    records.failed("row-1")
    return _file(records, folder)


def _going_again(records: Records, _: Path) -> list[str]:
    refund = records.failed("order-1")
    records.store.run(saves.save(refund, decisions.retry_one(refund, unknown=True)))
    return ["order-1"]


def _reversed(records: Records, _: Path) -> list[str]:
    refund = records.succeeded("order-1")
    changes = {"error_code": "expired_card", "reversed_at": refund.updated_at}
    step = Step(to=Stage.SETTLED, status=Status.FAILED, label="reversed", changes=changes)
    assert records.store.run(saves.save(refund, step)).result == "saved"
    return []


def _settled_long_ago(records: Records, _: Path) -> list[str]:
    records.succeeded("order-1")
    long_ago = records.store.time() - timedelta(days=90)
    records.store.redis.zadd("refunds:index:succeeded", {"order-1": to_ms(long_ago)})
    return []


def _paused(records: Records, _: Path) -> list[str]:
    flags.pause(records.store, "ann")
    return []


def _callbacks_on(records: Records, _: Path) -> list[str]:
    callback_state.turn_on(records.store, "ann")
    return []


def _rejected(records: Records, _: Path) -> list[str]:
    kept = kept_of(([], {"refund_id": "order-1"}), "payment_intent is missing")
    records.store.run(rejected.keep(kept))
    return [kept.entry_id]


def _nothing(_: Records, __: Path) -> list[str]:
    return []


def _file(_: Records, folder: Path) -> list[str]:
    file = folder / "season.jsonl"
    file.write_text(
        json.dumps({"refund_id": "row-1", "payment_intent": PAYMENT, "amount": 500}) + "\n"
    )
    return [str(file)]


WRITING: Final[dict[str, list[tuple[Prepare, list[str]]]]] = {
    "submit": [
        (lambda *_: ["order-1", "--payment-intent", PAYMENT], []),
        (
            lambda records, folder: [
                *_queued(records, folder),
                "--payment-intent",
                PAYMENT,
                "--amount",
                "500",
            ],
            [],
        ),
    ],
    "cancel": [(_queued, []), (_canceled, [])],
    "retry": [(_failed, ["--unknown"]), (_going_again, [])],
    "import": [(_file, [])],
    "batch cancel": [(_batch, []), (_canceled_batch, [])],
    "batch pause": [(_batch, []), (_paused_batch, [])],
    "batch resume": [(_paused_batch, []), (_batch, [])],
    "batch retry": [(_failed_batch, []), (_batch, [])],
    "review resolve": [
        (_in_doubt, ["--succeeded", "re_1", "--note", "n"]),
        (_in_doubt, ["--failed", "gone", "--note", "n"]),
        (_in_doubt, ["--resend", "--note", "n"]),
        (_never_in_doubt, ["--failed", "gone", "--note", "n"]),
    ],
    "pause": [
        (_nothing, []),
        (_paused, []),
        (lambda records, folder: ["--batch", *_batch(records, folder)], []),
        (lambda records, folder: ["--batch", *_paused_batch(records, folder)], []),
    ],
    "resume": [
        (_paused, []),
        (_nothing, []),
        (lambda records, folder: ["--batch", *_paused_batch(records, folder)], []),
    ],
    "callbacks on": [(_nothing, []), (_callbacks_on, [])],
    "callbacks off": [(_callbacks_on, []), (_nothing, [])],
    "rejected drop": [(_rejected, []), (_nothing, ["--all", "--yes"])],
    "watch backfill": [
        (_settled_long_ago, ["--since", "2020-01-01"]),
        (_nothing, ["--since", rfc3339(datetime.now(UTC))]),
    ],
    "recover": [(lambda *given: _queued(*given)[:0], ["--since", "2026-01-31T09:00:00Z", "--yes"])],
}
"""Every command that changes a record, a batch or a flag, in every state in which it answers in a
way of its own.
"""

ENDS: Final[dict[str, list[tuple[Prepare, list[str]]]]] = {
    "status": [
        (_failed, []),
        (_failed, ["--history"]),
        (_failed, ["--wait", "1"]),
        (_canceled, ["--json"]),
    ],
    "list": [
        (_failed_unnamed, []),
        (_failed_unnamed, ["--status", "failed", "--json"]),
        (_reversed, ["--reversed"]),
    ],
    "batch list": [
        (lambda *given: _failed_batch(*given)[:0], []),
        (lambda *given: _failed_batch(*given)[:0], ["--json"]),
    ],
    "batch show": [(_failed_batch, []), (_canceled_batch, ["--wait"])],
    "batch result": [(_imported, [])],
    "review list": [(_contradicted, []), (_contradicted, ["--json"])],
    "review show": [(_failed, []), (_beside_a_failed_one, ["--json"])],
    "import": [(_imported_before, [])],
}
"""Every command that reads how refunds ended."""

READING: Final = {
    "callbacks list": "counts",
    "callbacks dead": "shows tries that are over, and no status of a refund",
    "callbacks test": "knows no records",
    "callbacks pause": "waits as callbacks on does, see tests/unit/store/test_callback_state.py",
    "callbacks resume": "likewise",
    "callbacks replay": "its writes are durable",
    "callbacks forget": "waits as callbacks off does",
    "audit": "a deed on disk has its beginning there; an end that is lost reads as unknown",
    "events": "waits for the disk in `moves.read`, see tests/unit/http",
    "reconcile": "confirms what it has read, see tests/unit/reconcile",
    "totals": "confirms what it has read, see tests/unit/reconcile",
    "rejected list": "reads",
    "rejected show": "reads",
    "doctor": "reads what moves, and counts",
    "serve": "reads settled records as `AsyncStore.load` does, and its writes are durable",
    "tokens create": "knows no refund",
    "tokens list": "knows no refund",
    "tokens revoke": "knows no refund",
    "webhooks setup": "the provider shows the secret once, so it is shown before all else",
    "watch status": "counts, and what it shows of cursors is read again by the next sweep",
    "metrics": "counts, with a user that may not write: ops/docs/design.md says so",
    "worker": (
        "reports nothing: its claims and acceptances are durable, see"
        " tests/unit/store/test_scripts.py"
    ),
    "probe": "its refunds are outside the records; what it found is confirmed where it is kept",
    "sandbox": "knows no records",
}
"""Every other command, and why it has nothing to wait for."""


def every_command(group: click.Group, names: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield the path of every command that does something of its own."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from every_command(command, (*names, name))
        else:
            yield " ".join((*names, name))


def test_every_command_is_known_to_change_something_or_to_only_read() -> None:
    assert sorted({*WRITING, *ENDS, *READING}) == sorted(every_command(program))


@pytest.fixture(scope="module")
def lazy() -> Iterator[ThrowawayServer]:
    """A server that puts its writes on disk once a second."""
    with running_server(appendfsync="everysec") as server:
        yield server


@pytest.fixture
def lazy_records(lazy: ThrowawayServer) -> Iterator[Records]:
    """Records on that server, emptied; what a test prepares is not waited for."""
    with redis.Redis.from_url(lazy.url, decode_responses=True) as client:
        client.flushall()
        yield Records(store=Store(client, durable=False))


@pytest.fixture
def lazy_cli(lazy: ThrowawayServer, lazy_records: Records) -> Cli:  # noqa: ARG001 - emptied before
    return Cli(environment={"REFUNDS_REDIS_URL": lazy.url})


def _waits(client: redis.Redis) -> int:
    statistics: Any = client.info("commandstats")
    return int(statistics.get("cmdstat_waitaof", {"calls": 0})["calls"])


ANSWERS: Final = (
    "accepted",
    "already canceled",
    "paused since",
    "already paused",
    "is resumed",
    "resumed",
    "not paused",
    "already being sent again",
)
CASES: Final = [
    pytest.param(name, prepare, options, id=f"{name}-{place}")
    for name, cases in (*WRITING.items(), *ENDS.items())
    for place, (prepare, options) in enumerate(cases)
]


@pytest.mark.parametrize(("name", "prepare", "options"), CASES)
def test_a_command_waits_for_the_disk_before_it_answers(
    lazy_cli: Cli,
    lazy_records: Records,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    name: str,
    prepare: Prepare,
    options: list[str],
) -> None:
    arguments = prepare(lazy_records, tmp_path)
    client = lazy_records.store.redis
    # This disk never confirms: whatever was reported all the same was reported too early.
    monkeypatch.setattr("worker.store.commands.WAITAOF_MS", 10)
    monkeypatch.setattr(Store, "_probe_disk", lambda _: True)
    client.config_set("appendfsync", "no")
    client.config_resetstat()
    try:
        ran = lazy_cli(*name.split(), *arguments, *options)
    finally:
        client.config_set("appendfsync", "everysec")
    assert _waits(client) >= 1
    assert (ran.code, ran.out) == (5, "")
    assert "did not answer in time" in ran.err
    assert not any(sentence in ran.err for sentence in ANSWERS)


@pytest.mark.parametrize(("name", "prepare", "options"), CASES)
def test_a_command_answers_once_the_disk_has_confirmed(
    lazy_cli: Cli,
    lazy_records: Records,
    tmp_path: Path,
    *,
    name: str,
    prepare: Prepare,
    options: list[str],
) -> None:
    ran = lazy_cli(*name.split(), *prepare(lazy_records, tmp_path), *options)
    assert ran.code in {0, 4, 9}
    assert _waits(lazy_records.store.redis) >= 1
