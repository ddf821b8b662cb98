"""Free ports of this machine, for servers that others start."""

from __future__ import annotations

import random
import socket
from pathlib import Path
from typing import Final

HOST: Final = "127.0.0.1"
_FIRST: Final = 10_000
_TRIES: Final = 1_000
_RANGE: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")
_draw = random.SystemRandom()
_returned: Final[set[int]] = set()


def free_port() -> int:
    """Return a port of loopback that is free now; no process is given the same one twice.

    It is one that the system never gives to a connection by itself, if that can be known. A port
    of those may be taken before the server that is to have it has started. A port that was given
    before may belong to a server that is down and comes back.
    """
    last = _first_given() - 1
    for _ in range(_TRIES if last > _FIRST else 0):
        port = _draw.randint(_FIRST, last)
        if port not in _returned and _is_free(port):
            _returned.add(port)
            return port
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _first_given() -> int:
    """Return the first port that the system gives to a connection by itself, 0 if not known."""
    try:
        return int(_RANGE.read_text(encoding="ascii").split()[0])
    except (OSError, ValueError, IndexError):
        return 0


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True
