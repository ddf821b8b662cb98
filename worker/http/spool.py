"""Files that were sent over HTTP: streamed to disk, never held in memory.

They hold customers' data, so only their owner may read them. A file in use is locked, so that
processes that share the folder leave it alone.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import math
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

import aiohttp
from aiohttp import web

from worker.errors import SettingsError
from worker.http import problems
from worker.http.problems import Problem

MAX_FILE: Final = 2**30
IDLE_SECONDS: Final = 30.0
"""How long a client may send nothing."""
WHOLE_SECONDS: Final = 3600.0
MOST_UPLOADS: Final = 8
KEPT_SECONDS: Final = 7 * 86_400.0
CHECKED_SECONDS: Final = 8 * 3600.0
"""How long a file that was checked waits for its confirmation: as long as a session of the page."""
_STALE_SECONDS: Final = 60.0
_BLOCK: Final = 2**20
_CHECK_EVERY: Final = 16 * 2**20
_PART: Final = "upload-"
_BATCH: Final = "batch-"
CHECKED: Final = "checked-"
"""How the name of a file begins that waits for its confirmation, and of what is known about it."""
_GZIP: Final = b"\x1f\x8b"


@dataclass(kw_only=True)
class Kept:
    """A file in the folder, open and locked; `digest` is None if it is not known.

    `is_old` if it came so long ago that it is kept only until its rows are accepted.
    """

    path: Path
    file: IO[bytes]
    digest: str | None = None
    is_old: bool = False

    def keep_for(self, batch_id: str) -> None:
        """Name the file after its batch, so that a later start finds it."""
        self.path = self.path.rename(self.path.with_name(f"{_BATCH}{batch_id}"))

    def sync(self) -> None:
        """Return once the contents are on disk. Blocks."""
        os.fsync(self.file.fileno())

    def remove(self) -> None:
        """Delete and close the file."""
        self.path.unlink(missing_ok=True)
        # On a full disk the rest of the buffer cannot be written. It is not needed.
        with suppress(OSError):
            self.file.close()


class Spool:
    """The folder of the files. For one event loop."""

    def __init__(self, folder: Path | None, *, limit: int = MAX_FILE) -> None:
        self._folder, self._limit = folder, limit
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._uploads = 0

    def require_usable(self) -> None:
        """Raise `SettingsError` if no file can be written to the folder."""
        try:
            self.scratch().close()
        except OSError as error:
            raise SettingsError(
                f"no file can be written to REFUNDS_SPOOL_DIR={self._folder}"
                f" ({error.strerror or error}): name a folder that this user may write to"
            ) from None

    async def receive(self, request: web.Request) -> Kept:
        """Write the body of a request to a new file. Raises `Problem`."""
        kept = await self.write(request.content.readany, request.content_length)
        is_packed = os.pread(kept.file.fileno(), len(_GZIP), 0) == _GZIP
        if is_packed != ("Content-Encoding" in request.headers):
            kept.remove()
            said = "says gzip, but the body is not" if not is_packed else "must say gzip"
            raise Problem(problems.BAD_REQUEST, f"The header Content-Encoding {said}.")
        return kept

    async def write(self, read: Callable[[], Awaitable[bytes]], announced: int | None) -> Kept:
        """Write what `read` returns, until it returns nothing, to a new file. Raises `Problem`.

        `announced` is its length, None if it is not known.
        """
        if self._uploads >= MOST_UPLOADS:
            raise Problem(problems.BUSY, ends=True)
        if (announced or 0) > self._limit:
            raise _too_large(self._limit)
        self._uploads += 1
        kept: Kept | None = None
        try:
            self._require_room(announced or _BLOCK)
            kept = await asyncio.to_thread(self._new)
            async with asyncio.timeout(WHOLE_SECONDS):
                await self._fill(kept, read)
            done, kept = kept, None
        except (OSError, TimeoutError, aiohttp.ClientError, web.RequestPayloadError) as error:
            raise _answer(error) from None
        finally:
            self._uploads -= 1
            if kept is not None:
                kept.remove()
        return done

    async def _fill(self, kept: Kept, read: Callable[[], Awaitable[bytes]]) -> None:
        digest, size, checked, block = hashlib.sha256(), 0, 0, bytearray()

        def write(part: bytes) -> None:
            digest.update(part)
            kept.file.write(part)

        while True:
            async with asyncio.timeout(IDLE_SECONDS):
                chunk = await read()
            block += chunk
            size += len(chunk)
            if size > self._limit:
                raise _too_large(self._limit)
            if len(block) >= _BLOCK or (block and not chunk):
                await asyncio.to_thread(write, bytes(block))
                block.clear()
            if size - checked >= _CHECK_EVERY:
                self._require_room(_CHECK_EVERY)
                checked = size
            if not chunk:
                break
        await asyncio.to_thread(kept.file.flush)
        kept.digest = digest.hexdigest()

    def waiting(self) -> Iterator[tuple[str, Kept]]:
        """Yield the files of batches that no process uses, each with its batch; drop leftovers."""
        for path in sorted(self.place().iterdir()):
            try:
                age = time.time() - path.stat().st_mtime
            except FileNotFoundError:
                continue
            is_batch = path.name.startswith(_BATCH)
            if not is_batch and age < _longest(path):
                continue
            kept = locked(path)
            if kept is None:
                continue
            if not is_batch:
                kept.remove()
                continue
            kept.is_old = age > KEPT_SECONDS
            yield path.name.removeprefix(_BATCH), kept

    def of_batch(self, batch_id: str) -> IO[bytes] | None:
        """Return the file of a batch, None if it is not kept here."""
        with suppress(OSError):
            return (self.place() / f"{_BATCH}{batch_id}").open("rb")
        return None

    def has_batch(self, batch_id: str) -> bool:
        """Return whether the file of a batch is kept here. Blocks."""
        with suppress(OSError):
            return (self.place() / f"{_BATCH}{batch_id}").exists()
        return False

    def sync(self) -> None:
        """Return once the names of the files are on disk, where the disk can tell. Blocks."""
        with suppress(OSError):
            descriptor = os.open(self.place(), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def scratch(self) -> IO[bytes]:
        """Return a new file without a name."""
        return tempfile.TemporaryFile(dir=self.place())

    def close(self) -> None:
        """Remove a temporary folder."""
        if self._temporary is not None:
            self._temporary.cleanup()
            self._temporary = None

    def _new(self) -> Kept:
        path = self.place() / f"{_PART}{secrets.token_hex(8)}"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        file = os.fdopen(descriptor, "r+b")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return Kept(path=path, file=file)

    def place(self) -> Path:
        """Return the folder, which is made if it does not exist."""
        if self._folder is not None:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            return self._folder
        if self._temporary is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="refunds-")
        return Path(self._temporary.name)

    def _require_room(self, size: int) -> None:
        if size > shutil.disk_usage(self.place()).free // 2:
            raise Problem(problems.NO_SPACE, ends=True)


def _longest(path: Path) -> float:
    """Return for how many seconds a file that is not a batch's may be left, if it is not in use."""
    if path.name.startswith(CHECKED):
        return CHECKED_SECONDS
    return _STALE_SECONDS if path.name.startswith(_PART) else math.inf


def locked(path: Path) -> Kept | None:
    """Return a file of the folder, None if it does not exist or another one uses it."""
    try:
        file = path.open("r+b")
    except OSError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return Kept(path=path, file=file)


def _too_large(limit: int) -> Problem:
    sentence = f"The file is larger than {limit:,} bytes: split it. Nothing was accepted."
    return Problem(problems.TOO_LARGE, sentence, ends=True)


def _answer(error: Exception) -> Problem:
    if isinstance(error, TimeoutError):
        return Problem(
            problems.TIMEOUT, "The file arrived too slowly. Nothing was accepted.", ends=True
        )
    if isinstance(error, OSError) and not isinstance(error, ConnectionError):
        return Problem(problems.NO_SPACE, ends=True)
    return Problem(problems.BAD_REQUEST, "The file is not complete.", ends=True)
