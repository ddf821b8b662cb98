"""The error text of a server that cannot listen on its port."""

from __future__ import annotations

import os
import socket


def cannot_listen(host: str, port: int, error: OSError) -> str:
    """Return one sentence for the user, with the system's words for the error."""
    # asyncio's text for a port in use repeats the address as a tuple. The number of a name that
    # cannot be resolved is not one of the system's.
    reason: str | None = error.strerror
    if error.errno is not None and not isinstance(error, socket.gaierror):
        reason = os.strerror(error.errno)
    shown = f"[{host}]" if ":" in host else host
    return f"cannot listen on {shown}:{port} ({reason or error}): choose another --host or --port"
