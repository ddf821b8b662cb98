"""Finds values that occur more than once in a file, in memory that does not grow with the file.

Records of one size go into 256 buckets by the first byte of their key, a digest. Beyond
`held_bytes` the buckets move to a temporary file. Equal keys meet in one bucket, which is read as
often as needed and never held as a whole.
"""

from __future__ import annotations

import os
import struct
import tempfile
from typing import IO, TYPE_CHECKING, Any, Final, Self

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

KEY_BYTES: Final = 16
_BUCKETS: Final = 256

Fields = tuple[Any, ...]
"""The fields of one record, the key first."""


class Buckets:
    """Records of a `struct` layout whose first field is a key of 16 bytes; use it in `with`.

    Iterating yields the buckets. Each of them yields its records in the order in which they were
    added, any number of times.
    """

    def __init__(self, layout: str, held_bytes: int) -> None:
        self._layout = struct.Struct(layout)
        self._buckets = [bytearray() for _ in range(_BUCKETS)]
        self._segments: list[list[tuple[int, int]]] = [[] for _ in range(_BUCKETS)]
        self._file: IO[bytes] | None = None
        self._held = 0
        self._most_held = held_bytes // self._layout.size

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, key: bytes, *fields: object) -> None:
        """Adds one record."""
        self._buckets[key[0]] += self._layout.pack(key, *fields)
        self._held += 1
        if self._held >= self._most_held:
            self._spill()

    def __iter__(self) -> Iterator[Bucket]:
        for number in range(_BUCKETS):
            yield Bucket(self, number)

    def records(self, bucket: int) -> Iterator[Fields]:
        """Yield the records of one bucket in the order in which they were added."""
        for offset, length in self._segments[bucket]:
            if self._file is not None:
                self._file.seek(offset)
                yield from self._layout.iter_unpack(self._file.read(length))
        yield from self._layout.iter_unpack(bytes(self._buckets[bucket]))

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


class Bucket:
    """The records of one bucket, read again by each iteration."""

    def __init__(self, buckets: Buckets, number: int) -> None:
        self._buckets = buckets
        self._number = number

    def __iter__(self) -> Iterator[Fields]:
        return self._buckets.records(self._number)


def repeated(keys: Iterable[bytes]) -> set[bytes]:
    """Return the keys that occur more than once."""
    seen: set[bytes] = set()
    again: set[bytes] = set()
    for key in keys:
        (again if key in seen else seen).add(key)
    return again
