"""Which batch a file goes into: one until it is whole, none after that, and never one that is not
its own.
"""

from __future__ import annotations

from datetime import timedelta

import pytest
import redis

from tests.support.cli_runner import Records
from worker.batches import (
    BatchDraft,
    cancel_batch,
    close_batch,
    earlier_batch,
    foresee_batch,
    list_batches,
    open_batch,
    pause_batch,
    read_batch,
    resume_batch,
)
from worker.errors import GuardRefused
from worker.model.refund import Stage
from worker.model.times import to_ms

PLAIN = BatchDraft()
AGAIN = BatchDraft(again=True)


def begun(
    records: Records, batch_id: str | None = "b-1", opening: BatchDraft = PLAIN, digest: str = "d1"
) -> str:
    return open_batch(
        records.store, batch_id, file="season.csv", digest=digest, rows=3, opening=opening
    ).batch_id


def test_a_batch_keeps_what_its_file_comes_to(records: Records) -> None:
    begun(
        records,
        opening=BatchDraft(
            options='{"format": "csv"}', invalid=1, duplicates=2, totals={"usd": 1500}
        ),
    )
    batch = read_batch(records.store, "b-1")
    assert (batch.file, batch.digest, batch.rows, batch.invalid, batch.duplicates) == (
        "season.csv",
        "d1",
        3,
        1,
        2,
    )
    assert (batch.totals, batch.options, batch.state) == (
        {"usd": 1500},
        '{"format": "csv"}',
        "running",
    )
    assert (batch.imported_at, batch.known, batch.finished, batch.not_before) == (
        None,
        None,
        False,
        None,
    )


def test_an_unfinished_batch_is_gone_on_with_and_a_whole_one_is_refused(records: Records) -> None:
    begun(records)
    assert not open_batch(records.store, None, file="renamed.csv", digest="d1", rows=3).fresh
    assert read_batch(records.store, "b-1").file == "season.csv"
    close_batch(records.store, "b-1", handed_in=3, conflicting=0)
    for batch_id in (None, "b-1", "b-2"):
        with pytest.raises(GuardRefused, match=r"imported as batch b-1 on .*--again"):
            begun(records, batch_id)
    assert [batch.batch_id for batch in list_batches(records.store)] == ["b-1"]


def test_again_begins_a_new_batch_that_the_file_is_then_known_by(records: Records) -> None:
    begun(records)
    assert begun(records, None, AGAIN) == "b-1"
    close_batch(records.store, "b-1", handed_in=3, conflicting=0)
    with pytest.raises(GuardRefused, match="name this one with another --batch"):
        begun(records, "b-1", AGAIN)
    assert begun(records, "b-2", AGAIN) == "b-2"
    earlier = earlier_batch(records.store, "d1")
    assert earlier is not None
    assert earlier.batch_id == "b-2"
    assert begun(records, None) == "b-2"


def test_a_canceled_batch_is_not_gone_on_with(records: Records) -> None:
    begun(records)
    cancel_batch(records.store, "b-1", "kim")
    with pytest.raises(GuardRefused, match="was canceled"):
        begun(records, None)
    assert begun(records, "b-2", AGAIN) == "b-2"


@pytest.mark.parametrize("end", ["begun", "canceled", "imported"])
def test_rows_of_a_file_begun_before_a_recovery_begin_in_doubt_in_its_later_batches_too(
    records: Records, end: str
) -> None:
    """The restored server knows the file, and may have lost rows of it after they were sent."""
    begun(records)
    at = str(to_ms(records.store.time()))
    for name in ("suspect_since", "suspect_until", "recovered_at"):
        records.store.redis.hset("refunds:meta", name, at)
    records.store.redis.hincrby("refunds:clock", "at", 1000)
    if end == "canceled":
        cancel_batch(records.store, "b-1", "kim")
    elif end == "imported":
        close_batch(records.store, "b-1", handed_in=0, conflicting=0)
    for number, options in enumerate(("by order", "by id")):
        batch_id = begun(records, None, BatchDraft(options=options, again=True))
        assert records.queued(f"row-{number}", batch_id=batch_id).stage is Stage.IN_DOUBT
    other = begun(records, None, digest="d2")
    assert records.queued("other", batch_id=other).stage is Stage.QUEUED


def test_an_unfinished_batch_is_refused_under_another_name_or_read_in_another_way(
    records: Records,
) -> None:
    begun(records, opening=BatchDraft(options="by id"))
    with pytest.raises(GuardRefused, match="leave out --batch"):
        begun(records, "b-2", BatchDraft(options="by id"))
    with pytest.raises(GuardRefused, match="started with other options"):
        begun(records, None, BatchDraft(options="by order"))


def test_who_continues_a_batch_says_anew_whether_repeats_are_allowed_and_what_is_invalid(
    records: Records,
) -> None:
    for invalid, is_allowed in enumerate((False, True, False)):
        begun(records, opening=BatchDraft(allow_repeat=is_allowed, invalid=invalid))
        batch = read_batch(records.store, "b-1")
        assert (batch.allow_repeat, batch.invalid) == (is_allowed, invalid)
        foresee_batch(records.store, None, "d1", BatchDraft(allow_repeat=not is_allowed))
        assert read_batch(records.store, "b-1").allow_repeat is is_allowed
    records.store.redis.hdel("refunds:batch:b-1", "allow_repeat")
    # A version before this one began it.
    assert read_batch(records.store, "b-1").allow_repeat


def test_looking_ahead_tells_the_same_and_writes_nothing(records: Records) -> None:
    assert foresee_batch(records.store, "b-1", "d1").fresh
    # The time that a script sees is all that is kept.
    assert records.store.redis.keys() == ["refunds:clock"]
    begun(records)
    assert not foresee_batch(records.store, None, "d1").fresh
    with pytest.raises(GuardRefused, match=r"belongs to another file, 'season\.csv'"):
        foresee_batch(records.store, "b-1", "d2")


def test_what_a_batch_did_not_create_is_known(records: Records) -> None:
    begun(records)
    records.queued("row-1")
    records.queued("row-2", batch_id="b-1")
    close_batch(records.store, "b-1", handed_in=2, conflicting=1)
    close_batch(records.store, "b-1", handed_in=2, conflicting=0)
    batch = read_batch(records.store, "b-1")
    assert (batch.accepted, batch.known, batch.conflicting, batch.finished) == (1, 1, 1, False)


def test_a_delay_is_counted_from_the_servers_time_and_holds_every_claim(records: Records) -> None:
    begun(records, opening=BatchDraft(delay=timedelta(minutes=70)))
    batch = read_batch(records.store, "b-1")
    assert batch.created_at is not None
    assert batch.not_before == batch.created_at + timedelta(minutes=70)
    with pytest.raises(AssertionError, match=r"^batch"):
        records.sending("row-1", batch_id="b-1")
    due = records.get("row-1").next_check_at
    assert due is not None
    assert to_ms(due) == to_ms(batch.not_before)


def test_a_pause_tells_when_and_by_whom_and_its_end_forgets_it(records: Records) -> None:
    begun(records)
    assert pause_batch(records.store, "b-1", "kim")
    batch = read_batch(records.store, "b-1")
    assert (batch.state, batch.paused_by, batch.paused_at is not None) == ("paused", "kim", True)
    assert resume_batch(records.store, "b-1")
    batch = read_batch(records.store, "b-1")
    assert (batch.state, batch.paused_by, batch.paused_at) == ("running", None, None)


def test_twenty_failures_in_a_row_with_one_code_pause_a_batch_and_a_resume_counts_anew(
    records: Records,
) -> None:
    begun(records)
    for number in range(20):
        records.failed(f"row-{number}", payment_intent=f"pi_{number}", batch_id="b-1")
    batch = read_batch(records.store, "b-1")
    assert (batch.state, batch.paused_reason) == ("paused", "card_gone")
    resume_batch(records.store, "b-1")
    records.failed("row-20", payment_intent="pi_20", batch_id="b-1")
    batch = read_batch(records.store, "b-1")
    assert (batch.state, batch.paused_reason) == ("running", None)


def test_batches_are_listed_newest_first_without_those_whose_record_has_expired(
    records: Records, any_redis: redis.Redis
) -> None:
    for number in range(250):
        begun(records, f"b-{number}", digest=f"d{number}")
        any_redis.zadd("refunds:batches", {f"b-{number}": number})
    any_redis.delete("refunds:batch:b-249", "refunds:batch:b-100")
    found = [batch.batch_id for batch in list_batches(records.store)]
    assert found == [f"b-{number}" for number in reversed(range(250)) if number not in {100, 249}]
