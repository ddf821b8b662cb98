"""Heartbeat file: shows the machine's liveness probe whether the event loop runs or hangs."""

from __future__ import annotations

from pathlib import Path

import structlog

from worker.process.heartbeat_file import begin, touch

log = structlog.get_logger(__name__)


class Heartbeat:
    """Touches the file of `REFUNDS_HEARTBEAT_FILE`; does nothing if it is not set."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._written = True

    def begin(self) -> None:
        """Touch the file for the first time; raises `SettingsError` if that fails."""
        begin(self._path)

    def beat(self) -> None:
        """Touch the file again; logs once if it cannot be written, and once if it can again."""
        reason = touch(self._path)
        if reason is not None and self._written:
            log.warning("heartbeat_not_written", file=str(self._path), reason=reason)
        elif reason is None and not self._written:
            log.warning("heartbeat_written_again", file=str(self._path))
        self._written = reason is None
