"""`./ops/dev page`: the season that it shows, and the pictures of the page's document."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import redis

from ops.lab.page import shots
from ops.lab.page.browser import SCHEMES
from tests.support.installation import hasty
from worker.client import Refunds
from worker.model.refund import Stage, Status
from worker.sandbox.installation import environment
from worker.settings import Settings
from worker.store.listing import Filter, matching

ROOT = Path(__file__).parents[3]
TEMPLATES = ROOT / "worker" / "http" / "page" / "templates"
PAGE = ROOT / "ops" / "docs" / "page.md"
MOST_BYTES = 1_000_000


def test_every_view_has_its_pictures() -> None:
    views = {
        path.stem for path in TEMPLATES.glob("*.html") if 'extends "base.html"' in path.read_text()
    }
    assert views - set(shots.VIEWS) == {"error"}


def test_command_shows_refunds_in_every_state_and_ends_what_it_started() -> None:
    command = [sys.executable, "-m", "ops.lab.page", "--port", "0", "--traffic", "0"]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment(hasty()), stdout=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None
        said = dict(line.split()[:2] for line in iter(running.stdout.readline, "\n"))
        try:
            with Refunds(settings=Settings.load(redis_url=said["records"])) as refunds:
                found = list(matching(refunds.store, Filter()))
        finally:
            running.send_signal(signal.SIGTERM)
        assert running.wait(60) == 0
    assert {refund.stage for refund in found} == set(Stage) - {Stage.SENDING}
    assert {refund.status for refund in found} == set(Status)
    assert any(refund.reversed_at for refund in found)
    reviewed = [refund for refund in found if refund.stage is Stage.REVIEW]
    assert {"order-3001-1", "order-5001-1"} <= {refund.refund_id for refund in reviewed}
    assert any(refund.contradicted_by for refund in found)
    with pytest.raises(redis.ConnectionError), redis.Redis.from_url(said["records"]) as client:
        client.ping()


def test_document_shows_every_picture_and_they_are_small() -> None:
    shown = re.findall(r"\]\(page/([^)]+)\)", PAGE.read_text("utf-8"))
    pictures = list(shots.FOLDER.iterdir())
    wanted = [f"{name}-{scheme}.webp" for name in shots.VIEWS for scheme in SCHEMES]
    assert sorted(wanted) == sorted(path.name for path in pictures)
    assert sorted(shown) == sorted(path.name for path in pictures)
    assert sum(path.stat().st_size for path in pictures) < MOST_BYTES
