"""Reading ahead: rows are made ready in a thread of their own while the server is at work on those before."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Final, TypeVar

T = TypeVar("T")

_CHUNK: Final = 250
_CHUNKS: Final = 8
"""How far ahead it reads, in chunks: enough for a server's pause, and no memory to speak of."""
_POLL_SECONDS: Final = 0.1


class _Reader(threading.Thread):
    def __init__(self, items: Iterable[object]) -> None:
        super().__init__(name="rows-ahead", daemon=True)
        self._items = iter(items)
        self.ready: queue.Queue[list[object] | BaseException] = queue.Queue(_CHUNKS)
        self.over = threading.Event()

    def run(self) -> None:
        try:
            while chunk := list(islice(self._items, _CHUNK)):
                if not self._put(chunk):
                    return
            self._put([])
        except Exception as error:  # noqa: BLE001 - whatever it is belongs to the one who iterates
            self._put(error)

    def _put(self, chunk: list[object] | BaseException) -> bool:
        while not self.over.is_set():
            try:
                self.ready.put(chunk, timeout=_POLL_SECONDS)
            except queue.Full:
                continue
            return True
        return False


@contextmanager
def ahead(items: Iterable[T]) -> Iterator[Iterator[T]]:
    """Give the items in their order, read ahead by a thread that ends with the block; what it raises is raised here."""
    reader = _Reader(items)

    def ready() -> Iterator[T]:
        while chunk := reader.ready.get():
            if isinstance(chunk, BaseException):
                raise chunk
            yield from chunk  # type: ignore[misc]  # what goes in comes out

    reader.start()
    try:
        yield ready()
    finally:
        reader.over.set()
        reader.join()
