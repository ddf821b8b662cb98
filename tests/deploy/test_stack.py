"""The containers' own commands and healthchecks, as processes.

A day in the life of the installation.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.deploy.asking import exposed
from tests.deploy.conftest import Installation
from tests.support.compose import until


@pytest.mark.parametrize("name", ["worker", "metrics", "flower", "sandbox"])
def test_every_healthcheck_passes_while_its_service_runs(
    installation: Installation, name: str
) -> None:
    assert installation.stack.is_healthy(name)


def test_a_worker_whose_loop_hangs_is_not_healthy(
    installation: Installation, tmp_path: Path
) -> None:
    stale = tmp_path / "heartbeat"
    stale.touch()
    assert installation.stack.is_healthy("worker", REFUNDS_HEARTBEAT_FILE=str(stale))
    long_ago = time.time() - 60
    os.utime(stale, (long_ago, long_ago))
    assert not installation.stack.is_healthy("worker", REFUNDS_HEARTBEAT_FILE=str(stale))
    stale.unlink()
    assert not installation.stack.is_healthy("worker", REFUNDS_HEARTBEAT_FILE=str(stale))


def test_a_running_workers_heartbeat_goes_on(installation: Installation) -> None:
    file = installation.stack.folder / "heartbeat"
    before = file.stat().st_mtime
    until(lambda: file.stat().st_mtime > before, "the loop has touched its file again", 15)


def test_every_refund_moved_once_and_the_records_agree_with_the_provider(
    installation: Installation,
) -> None:
    records = [
        record for record in installation.refunds.get_many(installation.ids) if record is not None
    ]
    assert len(records) == len(installation.ids)
    effects = {effect["refund_id"] for effect in installation.sandbox.effects()}
    assert len(effects) == len(installation.sandbox.effects())
    assert effects == {record.refund_id for record in records if record.status == "succeeded"}
    assert {r.refund_id for r in records if r.status == "failed"} == {
        "order-90-1",
        "order-92-1",
        "row-0",
    }


def test_figures_are_the_same_after_the_metrics_were_started_anew(
    installation: Installation,
) -> None:
    stack = installation.stack
    before = exposed(stack.url("metrics"))
    assert stack.running["metrics"].stop() == 0
    stack.start("metrics")
    stack.await_healthy("metrics")
    assert exposed(stack.url("metrics")).keys() == before.keys()
