"""Heartbeat file: shows the machine's liveness probe whether the event loop runs or hangs."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

import structlog

from worker.errors import SettingsError

log = structlog.get_logger(__name__)


class Heartbeat:
    """Touches the file of `REFUNDS_HEARTBEAT_FILE`; does nothing if it is not set."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._written = True

    def begin(self) -> None:
        """Touch the file for the first time; raises `SettingsError` if that fails."""
        if (reason := self._touched()) is not None:
            raise SettingsError(
                f"REFUNDS_HEARTBEAT_FILE {self._path} cannot be written ({reason}): name a file in"
                " a directory that the worker may write to, or unset it"
            )

    def beat(self) -> None:
        """Touch the file again; logs once if it cannot be written, and once if it can again."""
        reason = self._touched()
        if reason is not None and self._written:
            log.warning("heartbeat_not_written", file=str(self._path), reason=reason)
        elif reason is None and not self._written:
            log.warning("heartbeat_written_again", file=str(self._path))
        self._written = reason is None

    def _touched(self) -> str | None:
        """Touch the file; return the reason for a failure, None on success."""
        if self._path is None:
            return None
        try:
            with suppress(FileExistsError):
                os.close(
                    os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                )
                return None
            mode = self._path.lstat().st_mode
            if stat.S_ISDIR(mode):
                # A directory can be touched, too, and any program that writes in it would keep it
                # fresh.
                return "it is a directory"
            if stat.S_ISLNK(mode):
                # A link may lead to a file that another user chose.
                return "it is a symbolic link"
            os.utime(self._path, follow_symlinks=False)
        except OSError as error:
            return error.strerror or str(error)
        return None
