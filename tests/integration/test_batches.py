"""A season of refunds in files, from end to end with faults on: what goes in comes out, in its order, once."""

from __future__ import annotations

from pathlib import Path

from ops.bench.season import FAULTS, play
from worker.sandbox.config import SandboxConfig
from worker.sandbox.running import running_sandbox

ROWS = 2_000


def test_every_row_of_a_killed_resumed_canceled_and_retried_season_is_accounted_for(
    redis_url: str, tmp_path: Path
) -> None:
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
