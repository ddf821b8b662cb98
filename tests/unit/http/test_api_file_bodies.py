"""Bodies of files that are large, end early, stand still or lie about their length."""

from __future__ import annotations

import asyncio
import shutil
import tracemalloc
from io import BufferedRandom, FileIO
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.api_door import Door
from worker.http import spool
from worker.http.spool import Kept

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

from tests.unit.http.file_api import CSV, PATH, imported, names, rows, send, until


async def test_a_large_file_is_streamed_to_disk_and_not_held(api: Door) -> None:
    block = b"x,y\n" * 64 * 1024
    size = 96 * len(block)

    async def body() -> AsyncIterator[bytes]:
        for _ in range(96):
            yield block

    tracemalloc.start()
    try:
        got = await send(api, body())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (got.status, got.code) == (422, "invalid_file")
    assert size > 20_000_000
    assert peak < 8_000_000


async def test_a_file_that_is_too_large_or_has_no_room_leaves_nothing(
    api: Door, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api.part.uploads.spool, "_limit", 100)

    async def body() -> AsyncIterator[bytes]:
        yield rows(10)

    for data in (rows(10), body()):
        got = await send(api, data)
        assert (got.status, got.code) == (413, "too_large")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10}))
    assert (await send(api, rows(1))).code == "no_space"
    assert names(folder) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has it")
async def test_a_disk_that_is_full_before_its_free_space_says_so_is_named(
    api: Door, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As with a quota. What is in the buffer cannot be written as the file is closed, either.
    full = Kept(path=folder / "upload-full", file=BufferedRandom(FileIO("/dev/full", "r+")))
    monkeypatch.setattr(api.part.uploads.spool, "_new", lambda: full)
    got = await send(api, rows(1))
    assert (got.status, got.code) == (503, "no_space")
    assert full.file.closed


def head(api: Door, *lines: str) -> bytes:
    own = (f"POST {PATH} HTTP/1.1", "Host: x", f"Authorization: Bearer {api.token}")
    return "\r\n".join((*own, f"Content-Type: {CSV}", *lines, "", "")).encode()


async def test_a_body_that_ends_early_leaves_nothing(api: Door, folder: Path) -> None:
    _, writer = await api.raw(head(api, "Content-Length: 1000") + rows(1))
    writer.close()
    await writer.wait_closed()
    await until(lambda: folder.exists() and not names(folder))
    assert (await api.get(PATH)).json["data"] == []


async def test_a_client_that_sends_nothing_more_is_cut_off_and_others_are_served(
    api: Door, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "IDLE_SECONDS", 0.5)
    reader, writer = await api.raw(head(api, "Content-Length: 1000") + rows(1))
    await until(lambda: bool(names(folder)))
    assert (await send(api, rows(3), "name=other")).status == 202
    async with asyncio.timeout(10):
        answer = await reader.read()
    writer.close()
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert (await imported(api, "other"))["accepted"] == 3
    assert names(folder) == []


@pytest.mark.parametrize(
    ("lines", "body"),
    [
        (["Content-Length: 10", "Transfer-Encoding: chunked"], b"0\r\n\r\n"),
        (["Content-Length: 10", "Content-Length: 11"], b"refund_id,p"),
        (["Content-Length: -1"], b""),
        (["Transfer-Encoding: chunked"], b"zz\r\nrefund_id\r\n0\r\n\r\n"),
        (["Transfer-Encoding: chunked"], b"5\r\nrefund_id,payment_intent\r\n0\r\n\r\n"),
    ],
)
async def test_a_wrong_length_ends_its_own_connection_only(
    api: Door, folder: Path, lines: list[str], body: bytes
) -> None:
    reader, writer = await api.raw(head(api, *lines) + body)
    async with asyncio.timeout(10):
        answer = await reader.read()
    writer.close()
    assert answer.split(b" ")[1] == b"400"
    await until(lambda: not names(folder))
    assert (await api.get(PATH)).json["data"] == []
