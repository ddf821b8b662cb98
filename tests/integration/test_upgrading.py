"""What ops/docs/upgrading.md says of other schemas and of newer versions beside this one."""

from __future__ import annotations

from tests.support.compose import ROOT
from tests.support.installation import Installation
from worker import RefundRequest
from worker.store.records import SCHEMA_VERSION


def test_a_worker_refuses_records_of_another_schema_and_sends_nothing(
    installation: Installation,
) -> None:
    with installation.refunds() as refunds:
        refunds.submit(RefundRequest(refund_id="order-1-1", payment_intent="pi_1", amount=100))
        refunds.store.redis.hset("refunds:meta", "schema", "99")
        worker = installation.start("worker", "worker")
        assert worker.process.wait(30) == 6
        assert (
            f"these records have schema 99 and this worker supports {SCHEMA_VERSION}" in worker.said
        )
        assert refunds.get("order-1-1").stage == "queued"
    assert installation.sandbox.effects() == []


def test_a_worker_leaves_alone_what_a_newer_version_wrote_into_a_record(
    installation: Installation,
) -> None:
    with installation.refunds() as refunds:
        refunds.submit(RefundRequest(refund_id="order-1-1", payment_intent="pi_1", amount=100))
        refunds.store.redis.hset("refunds:refund:order-1-1", "of_a_newer_version", "kept")
        installation.start("worker", "worker")
        (record,) = installation.settled(refunds, ["order-1-1"])
        assert record.status == "succeeded"
        assert refunds.store.redis.hget("refunds:refund:order-1-1", "of_a_newer_version") == "kept"
    assert len(installation.sandbox.effects()) == 1


def test_the_page_and_the_changelog_name_the_schema() -> None:
    docs = ROOT / "ops" / "docs"
    assert f"It is **{SCHEMA_VERSION}**" in (docs / "upgrading.md").read_text("utf-8")
    assert f"Schema of the records: {SCHEMA_VERSION}." in (docs / "CHANGELOG.md").read_text("utf-8")
