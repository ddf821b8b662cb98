"""A TCP proxy that spoils what passes.

Closed or reset connections, latency, silence, replies cut after some bytes.

It stands between a worker and Redis, and between a worker and the provider; both sides stay real
and unaware.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Literal, Self, TypeVar

T = TypeVar("T")

HOST: Final = "127.0.0.1"
CHUNK: Final = 1 << 16
CALL_SECONDS: Final = 10.0
_VERBS: Final = (b"POST ", b"GET ")
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)

Silence = Literal["none", "requests", "replies", "both"]


@dataclass(frozen=True, kw_only=True)
class SeenRequest:
    """One HTTP request that came to the proxy, by its first line; `at` is monotonic."""

    at: float
    method: str
    path: str


@dataclass(eq=False)
class _Passage:
    """One connection with its two sides.

    `reply_left` is how many bytes of the next reply still pass.
    """

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    source: str
    """The address from which its client connected."""
    reply_left: int | None = None
    spoiled: bool = False

    def end(self, *, reset: bool) -> None:
        for writer in (self.client, self.server):
            if reset:
                _reset(writer)
            else:
                writer.close()


@dataclass
class FaultProxy:
    """A proxy to a loopback port, on a loop and thread of its own; use it in a `with`.

    The faults may be set from any thread. `fired` counts what they did, by name.
    """

    target_port: int
    port: int = 0
    delay: float = 0.0
    """Seconds that every piece of data is held back, each way."""
    fired: Counter[str] = field(default_factory=Counter)
    requests: list[SeenRequest] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._silence: Silence = "none"
        self._silenced: frozenset[str] = frozenset()
        self._cuts: list[int] = []
        self._passages: set[_Passage] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="fault-proxy", daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        self.open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.refuse()
        self._on_loop(self._cancel)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CALL_SECONDS)
        self._loop.close()

    # Faults

    def open(self) -> None:
        """Listen, on the same port as before if there was one."""
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(CALL_SECONDS)

    def refuse(self) -> None:
        """Listen no more and reset what is connected: the next connection is refused."""
        self._on_loop(self._close_listener)
        self.reset()
        self.fired["refused"] += 1

    def cut(self) -> int:
        """Close every connection in good order, with what is under way; return how many."""
        return self._end_all("cut", reset=False)

    def reset(self) -> int:
        """Close every connection with RST; return how many."""
        return self._end_all("reset", reset=True)

    def silence(self, what: Silence, *sources: str) -> None:
        """Swallow requests, replies, or both ways, with the connections left standing.

        Given sources, only what clients at these addresses send and receive. `none` resets the
        connections that lost data.
        """
        self._silence, self._silenced = what, frozenset(sources)
        if what == "none":
            self._on_loop(self._end_spoiled)

    def cut_replies(self, *sizes: int) -> None:
        """Reset the connection of each of the next POSTs after so many bytes of its reply."""
        self._cuts.extend(sizes)

    @property
    def cuts_left(self) -> int:
        """How many of the replies to be cut have not come yet."""
        return len(self._cuts)

    # The loop

    def _on_loop(self, work: Callable[[], T]) -> T:
        async def done() -> T:
            return work()

        return asyncio.run_coroutine_threadsafe(done(), self._loop).result(CALL_SECONDS)

    def _end_all(self, name: str, *, reset: bool) -> int:
        def end() -> int:
            passages = list(self._passages)
            for passage in passages:
                passage.end(reset=reset)
            return len(passages)

        ended = self._on_loop(end)
        self.fired[name] += ended
        return ended

    def _end_spoiled(self) -> None:
        for passage in [one for one in self._passages if one.spoiled]:
            passage.end(reset=True)

    async def _listen(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._accepted, HOST, self.port, backlog=512)
            self.port = int(self._server.sockets[0].getsockname()[1])

    def _close_listener(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    def _cancel(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        try:
            back, forth = await asyncio.open_connection(HOST, self.target_port)
        except OSError:
            self.fired["target_away"] += 1
            _reset(writer)
            return
        passage = _Passage(writer, forth, writer.get_extra_info("peername")[0])
        self._passages.add(passage)
        try:
            await asyncio.gather(
                self._pump(passage, reader, forth, is_reply=False),
                self._pump(passage, back, writer, is_reply=True),
            )
        finally:
            self._passages.discard(passage)
            passage.end(reset=False)

    async def _pump(
        self,
        passage: _Passage,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        *,
        is_reply: bool,
    ) -> None:
        with suppress(OSError):
            while data := await source.read(CHUNK):
                if not is_reply:
                    self._note(passage, data)
                if self.delay > 0:
                    self.fired["delayed"] += 1
                    await asyncio.sleep(self.delay)
                if self._swallows(passage, is_reply=is_reply):
                    self.fired["swallowed"] += 1
                    passage.spoiled = True
                    continue
                if is_reply and passage.reply_left is not None:
                    data = data[: passage.reply_left]
                    passage.reply_left -= len(data)
                sink.write(data)
                await sink.drain()
                if is_reply and passage.reply_left == 0:
                    self.fired["reply_cut"] += 1
                    passage.end(reset=True)
        sink.close()

    def _swallows(self, passage: _Passage, *, is_reply: bool) -> bool:
        if self._silenced and passage.source not in self._silenced:
            return False
        return self._silence in ("both", "replies" if is_reply else "requests")

    def _note(self, passage: _Passage, data: bytes) -> None:
        if not data.startswith(_VERBS):
            return
        method, path = data.split(b" ", 2)[:2]
        self.requests.append(
            SeenRequest(at=time.monotonic(), method=method.decode(), path=path.decode())
        )
        if method == b"POST" and self._cuts:
            passage.reply_left = self._cuts.pop(0)


def _reset(writer: asyncio.StreamWriter) -> None:
    raw = writer.get_extra_info("socket")
    if raw is not None and raw.fileno() >= 0:
        # Lingering for no time makes the kernel send RST in the place of FIN.
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    writer.transport.abort()
