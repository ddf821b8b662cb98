"""Free ports of this machine, for servers that others start."""

from __future__ import annotations

import random
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

HOST: Final = "127.0.0.1"
_FIRST: Final = 10_000
_TRIES: Final = 1_000
_RANGE: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")
_draw = random.SystemRandom()
_returned: Final[set[int]] = set()


def free_port() -> int:
    """Return a port of loopback that is free now, and keep it for the server that is to have it.

    It is one that the system never gives to a connection by itself, if that can be known. No port
    is given twice, since one that was given may belong to a server that is down and comes back. On
    Linux it is held until this process ends, so that no other process gets it either.
    """
    last = _first_given() - 1
    for _ in range(_TRIES if last > _FIRST else 0):
        port = _draw.randint(_FIRST, last)
        if port not in _returned:
            with suppress(OSError):
                return _bound(port)
    return _bound(0)


def _first_given() -> int:
    """Return the first port that the system gives to a connection by itself, 0 if not known."""
    try:
        return int(_RANGE.read_text(encoding="ascii").split()[0])
    except (OSError, ValueError, IndexError):
        return 0


def _bound(wished: int) -> int:
    """Bind a port, or any free one for 0, and keep it bound; `OSError` if it is in use."""
    with socket.socket() as held:
        held.bind((HOST, wished))
        port = int(held.getsockname()[1])
        _returned.add(port)
        # A server that reuses addresses, as all do, may listen beside a socket that does not. Only
        # Linux allows that.
        if sys.platform == "linux":
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            held.detach()
        return port
