"""A decision through the client: on the version that a person read, with what belongs to it."""

from __future__ import annotations

from datetime import datetime, timedelta, tzinfo
from typing import TYPE_CHECKING, Any, Self

import pytest

from tests.support.cli_runner import Records
from worker import client
from worker.client import Refunds
from worker.errors import Changed, InvalidRequest, NotInReview
from worker.settings import Settings
from worker.store.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator

    import redis


@pytest.fixture
def refunds(redis_url: str) -> Iterator[Refunds]:
    with Refunds(settings=Settings.load(redis_url=redis_url)) as door:
        yield door


@pytest.fixture
def records(sync_redis: redis.Redis) -> Records:
    return Records(store=Store(sync_redis))


@pytest.mark.parametrize(
    ("decision", "stated", "stage"),
    [
        ("succeeded", {"provider_refund_id": "re_9"}, "processing"),
        ("failed", {"code": "paid_in_cash"}, "in_doubt"),
        ("resend", {}, "in_doubt"),
    ],
)
def test_a_decision_moves_the_refund_and_names_its_author(
    refunds: Refunds, records: Records, decision: Any, stated: dict[str, Any], stage: str
) -> None:
    version = records.in_review("order-1").version
    after = refunds.resolve(
        "order-1", decision, note="seen there", by="ann", version=version, **stated
    )
    assert (after.stage, after.version) == (stage, version + 1)
    last = refunds.history("order-1")[-1]
    assert (last["by"], last["note"]) == ("ann", "seen there")
    with pytest.raises(NotInReview):
        refunds.resolve("order-1", decision, note="seen there", **stated)


def test_the_time_of_a_decision_is_that_of_the_records_whatever_the_clock_here_shows(
    refunds: Refunds, records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Late(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Self:
            return super().now(tz) - timedelta(days=40)

    monkeypatch.setattr(client, "datetime", Late, raising=False)
    records.in_review("order-1")
    after = refunds.resolve("order-1", "succeeded", note="seen", provider_refund_id="re_9")
    assert after.processing_since is not None
    assert after.updated_at - after.processing_since < timedelta(minutes=1)


def test_another_version_is_not_resolved(refunds: Refunds, records: Records) -> None:
    before = records.in_review("order-1")
    with pytest.raises(Changed, match="read it again"):
        refunds.resolve("order-1", "resend", note="seen", version=before.version + 1)
    assert refunds.get("order-1") == before


@pytest.mark.parametrize(
    ("decision", "stated"),
    [
        ("succeeded", {"note": "seen"}),
        ("failed", {"note": "seen", "code": "Not A Code"}),
        ("resend", {"note": "\n"}),
    ],
)
def test_what_is_stated_is_checked_first(
    refunds: Refunds, records: Records, decision: Any, stated: dict[str, Any]
) -> None:
    before = records.in_review("order-1")
    with pytest.raises(InvalidRequest):
        refunds.resolve("order-1", decision, **stated)
    assert refunds.get("order-1") == before
