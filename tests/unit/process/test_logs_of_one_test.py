"""How one test sets up logging says nothing about what the next one hears."""

from __future__ import annotations

import structlog

from worker.process import logs
from worker.settings import Settings

log = structlog.get_logger(__name__)


def test_logger_of_a_module_keeps_nothing_of_an_earlier_setup() -> None:
    logs.configure(Settings(log_level="error"))
    log.debug("not written")
    structlog.reset_defaults()
    with structlog.testing.capture_logs() as heard:
        log.debug("written")
    assert [entry["event"] for entry in heard] == ["written"]
