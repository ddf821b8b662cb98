"""A season of refunds in files, from end to end with faults on.

What goes in comes out, in its order, once.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from ops.lab.bench.season import FAULTS, play
from tests.support.installation import Installation, hasty, until
from worker import batches
from worker.model.refund import Lane
from worker.model.request import RefundRequest
from worker.sandbox.config import SandboxConfig
from worker.sandbox.running import running_sandbox

ROWS = 2_000


def test_every_row_of_a_killed_resumed_canceled_and_retried_season_is_accounted_for(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in hasty().items():
        monkeypatch.setenv(name, text)
    config = SandboxConfig(idempotency="ignore", latency_ms=5, settle_ms=200, faults=FAULTS, seed=7)
    with running_sandbox(config) as sandbox:
        report = play(redis_url=redis_url, sandbox=sandbox, folder=tmp_path, count=ROWS)
    facts = report.facts
    assert report.wrong == [], facts
    # Each part of the story did happen.
    assert 0 < facts["killed_after_rows"] < facts["dry_run"]["valid"] == facts["dry_run"]["new"]
    assert facts["resumed"]["created"] + facts["resumed"]["known"] == facts["dry_run"]["valid"]
    assert facts["worker_killed_after"] > 0
    assert facts["canceled"] > 0
    assert facts["retried"] > facts["mended"] > 0
    assert facts["faults_fired"] > 0
    assert sum(facts["all"].values()) == ROWS
    assert facts["all"]["invalid"] == ROWS // 100


@pytest.mark.parametrize("sandbox_config", [SandboxConfig(latency_ms=50)])
def test_a_wrong_account_costs_about_thirty_rows_however_many_workers_send(
    installation: Installation,
) -> None:
    with installation.refunds() as refunds:
        batches.open_batch(refunds.store, "b-1", file="season.csv", digest="d", rows=400)
        requests = [
            RefundRequest(refund_id=f"row-{n}", payment_intent=f"pi_{n}", amount=10**6)
            for n in range(400)
        ]
        created = [
            made.result
            for _, made in refunds.submit_stream(requests, lane=Lane.BULK, batch_id="b-1")
        ]
        assert created == ["created"] * len(requests)
        for _ in range(2):
            installation.start()
        until(
            lambda: batches.state_of_batch(refunds.store, "b-1") == "paused",
            "the batch has paused itself",
        )

        def resting() -> bool:
            stages = batches.read_batch(refunds.store, "b-1").stages
            return not stages.get("sending")

        until(resting, "what was in flight has ended")
        batch = batches.read_batch(refunds.store, "b-1")
    assert 20 <= batch.statuses["failed"] <= 30
    assert batch.statuses["failed"] + batch.statuses["pending"] == len(requests)
    assert batch.paused_reason == "amount_too_large"
