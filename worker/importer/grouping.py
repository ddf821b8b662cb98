"""Finding what stands more than once in a file, in memory that does not grow with the file.

Records of one width go into 256 buckets by the first byte of their key, a digest; beyond `held_bytes` the buckets
move to a temporary file. Equal keys meet in one bucket, which is then read as often as it takes, never held.
"""

from __future__ import annotations

import os
import struct
import tempfile
from functools import partial
from typing import IO, TYPE_CHECKING, Any, Final, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

KEY_BYTES: Final = 16
_BUCKETS: Final = 256

Records = tuple[Any, ...]


class Buckets:
    """Records of a `struct` layout whose first field is the key of 16 bytes; use it in `with`."""

    def __init__(self, layout: str, held_bytes: int) -> None:
        self._layout = struct.Struct(layout)
        self._buckets = [bytearray() for _ in range(_BUCKETS)]
        self._segments: list[list[tuple[int, int]]] = [[] for _ in range(_BUCKETS)]
        self._file: IO[bytes] | None = None
        self._held = 0
        self._most = held_bytes // self._layout.size

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, key: bytes, *fields: object) -> None:
        """Adds one record."""
        self._buckets[key[0]] += self._layout.pack(key, *fields)
        self._held += 1
        if self._held >= self._most:
            self._spill()

    def repeated(self) -> Iterator[tuple[frozenset[bytes], Callable[[], Iterator[Records]]]]:
        """Yield for each bucket with repeated keys those keys, and a way to read its records in the order added."""
        for bucket in range(_BUCKETS):
            seen: set[bytes] = set()
            twice: set[bytes] = set()
            for record in self._records(bucket):
                (twice if record[0] in seen else seen).add(record[0])
            if twice:
                yield frozenset(twice), partial(self._records, bucket)

    def _spill(self) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__
        self._file.seek(0, os.SEEK_END)
        for bucket, held in enumerate(self._buckets):
            if held:
                self._segments[bucket].append((self._file.tell(), len(held)))
                self._file.write(held)
                held.clear()
        self._held = 0

    def _records(self, bucket: int) -> Iterator[Records]:
        for offset, length in self._segments[bucket]:
            if self._file is not None:
                self._file.seek(offset)
                yield from self._layout.iter_unpack(self._file.read(length))
        yield from self._layout.iter_unpack(bytes(self._buckets[bucket]))
