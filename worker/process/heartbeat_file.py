"""The file of `REFUNDS_HEARTBEAT_FILE`: made and touched, never followed if it is a link."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

from worker.errors import SettingsError


def begin(path: Path | None) -> None:
    """Touch the file for the first time; raises `SettingsError` if that fails."""
    if (reason := touch(path)) is not None:
        raise SettingsError(
            f"REFUNDS_HEARTBEAT_FILE {path} cannot be written ({reason}): name a file in"
            " a directory that the worker may write to, or unset it"
        )


def check(path: Path | None) -> None:
    """Raise `SettingsError` if the file cannot be written.

    Make none, and leave that of an earlier run as old as it is: nothing beats yet.
    """
    if path is None:
        return
    before = None
    with suppress(OSError):
        before = path.lstat()
    begin(path)
    with suppress(OSError):
        if before is None:
            path.unlink()
        else:
            times = before.st_atime_ns, before.st_mtime_ns
            os.utime(path, ns=times, follow_symlinks=False)


def touch(path: Path | None) -> str | None:
    """Touch the file, if there is one; return the reason for a failure, None on success."""
    if path is None:
        return None
    try:
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            return None
        mode = path.lstat().st_mode
        if stat.S_ISDIR(mode):
            # A directory can be touched, too, and any program that writes in it would keep it
            # fresh.
            return "it is a directory"
        if stat.S_ISLNK(mode):
            # A link may lead to a file that another user chose.
            return "it is a symbolic link"
        os.utime(path, follow_symlinks=False)
    except OSError as error:
        return error.strerror or str(error)
    return None
