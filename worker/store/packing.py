"""Packs the calls of scripts in C: in Python, a call's arguments take longer than its reply."""

from __future__ import annotations

from typing import Any

import hiredis
from redis.asyncio.connection import AbstractConnection


def packing(kind: type[AbstractConnection]) -> type[AbstractConnection]:
    """Return a kind of connection that packs `EVALSHA` with hiredis, to the same bytes.

    Its text arguments are UTF-8, the encoding of all our clients. Any other command is left to
    `kind`, which splits names such as `CONFIG GET`.
    """

    class Packing(kind):  # type: ignore[valid-type,misc] # TCP, TLS, unix socket or Sentinel
        def pack_command(self, *args: Any) -> list[bytes]:
            """Return a command as the bytes to send."""
            if args[0] != "EVALSHA":
                packed: list[bytes] = super().pack_command(*args)
                return packed
            return [hiredis.pack_command(args)]

    Packing.__name__ = f"Packing{kind.__name__}"
    return Packing
