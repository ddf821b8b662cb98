"""Names for the audit what a caller does by a request."""

from __future__ import annotations

from typing import Literal

from aiohttp import web

from worker.model.callers import Caller
from worker.store.audit import Deed


def deed_of(
    request: web.Request,
    caller: Caller,
    action: str,
    target: str = "",
    *,
    note: str = "",
    via: Literal["page", "api"] = "api",
) -> Deed:
    """Return what a caller does; its address is that of the proxy, if there is one."""
    address = request.remote or ""
    return Deed(by=caller.name, via=via, address=address, action=action, target=target, note=note)
