"""Reads rows ahead in a separate thread while the server works on earlier ones."""

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
"""The most chunks read ahead: enough to bridge a pause of the server, in little memory."""
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
        except Exception as error:  # noqa: BLE001 - every error is raised again where the items are iterated
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
    """Return an iterator over items that a thread reads ahead; errors are raised by the iterator.

    The thread ends with the `with` block.
    """
    reader = _Reader(items)

    def ready() -> Iterator[T]:
        while chunk := reader.ready.get():
            if isinstance(chunk, BaseException):
                raise chunk
            yield from chunk  # type: ignore[misc]  # a chunk holds items of the iterable

    reader.start()
    try:
        yield ready()
    finally:
        reader.over.set()
        reader.join()
