"""Checks whether a Redis server keeps what it acknowledged, and whether a durable write must wait for the disk."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Final

from redis import exceptions

from worker.errors import NotDurable, SettingsError
from worker.store.connection import is_away

RawCommand = tuple[str | int, ...]

ON_REWRITE: Final = "no-appendfsync-on-rewrite"
"""With 'yes' the server flushes nothing while it rewrites its file, whatever `appendfsync` says."""
SETTINGS: Final = "*append*"
"""The pattern for CONFIG GET; it matches `appendonly`, `appendfsync` and `ON_REWRITE`, among others."""

_NO_FILE: Final = (
    "this Redis has no append-only file and may lose an accepted refund: start it with "
    "'--appendonly yes --appendfsync always', or set REFUNDS_DURABILITY=memory for a trial"
)
_LAZY: Final = (
    "this Redis does not flush its append-only file at each write, and cannot confirm when it has: "
    "set 'appendfsync always', or 'everysec' on Redis 7.2 or Valkey"
)
_UNSEEN: Final = (
    "this Redis user may not read 'appendfsync', and WAITAOF, which waits for the disk, is missing or forbidden: grant "
    "it '+config|get' or '+waitaof', or use Redis 7.2 or Valkey"
)
_MAY_NOT_WAIT: Final = (
    "this Redis does not flush its append-only file at each write, and its user may not wait for the disk: "
    "set 'appendfsync always', or grant the user '+waitaof'"
)
_NOT_IN_REWRITE: Final = (
    "this Redis is not set to 'no-appendfsync-on-rewrite no': while it rewrites its append-only file it "
    "may answer before a write is on disk, and {why}: set 'no-appendfsync-on-rewrite no', {else_}"
)
_REWRITE: Final = _NOT_IN_REWRITE.format(why="has no WAITAOF to wait for the disk", else_="or use Redis 7.2 or Valkey")
_REWRITE_MAY_NOT_WAIT: Final = _NOT_IN_REWRITE.format(
    why="its user may not wait for the disk", else_="or grant the user '+waitaof'"
)


def probe() -> Generator[RawCommand, Any, bool]:
    """Find out, command by command, whether a durable write needs `WAITAOF`; return False if it does not.

    The owner of the connection drives the generator. It yields a command and receives the reply, or the `ResponseError`
    that came instead. CONFIG may be forbidden or unknown, as on a managed server; INFO and COMMAND are not used. Raises
    `NotDurable` if the server may forget what it acknowledged, `SettingsError` if its user may not find out, and any
    error that is not about the commands themselves.
    """
    settings = yield "CONFIG GET", SETTINGS
    if isinstance(settings, exceptions.ResponseError):
        if is_away(settings) and not isinstance(settings, exceptions.NoPermissionError):
            raise settings
        settings = {}  # forbidden for this user, or for every user as on managed servers, each with its own error text
    if settings.get("appendonly") == "no":
        raise NotDurable(_NO_FILE)
    flush = settings.get("appendfsync")
    # If the server does not report the setting, assume that it does not flush while it rewrites its file.
    if flush == "always" and settings.get(ON_REWRITE) == "no":
        return False
    if flush == "no":
        raise NotDurable(_LAZY)
    return _can_wait((yield "WAITAOF", 0, 0, 0), flush)


def _can_wait(reply: Any, flush: str | None) -> bool:
    """Judge the reply to WAITAOF; `flush` is the server's `appendfsync`, None if it cannot be read.

    COMMAND INFO would answer the same question, but a server before 7.2 replies with a nil that the client cannot read.
    """
    if isinstance(reply, exceptions.ResponseError):
        if is_replica(reply):
            return True  # the write itself will fail with READONLY
        forbidden = isinstance(reply, exceptions.NoPermissionError)
        if not forbidden and "unknown command" not in str(reply).lower():
            raise reply
        if flush is None:
            raise SettingsError(_UNSEEN) from reply
        if flush == "always":
            raise (SettingsError(_REWRITE_MAY_NOT_WAIT) if forbidden else NotDurable(_REWRITE)) from reply
        raise (SettingsError(_MAY_NOT_WAIT) if forbidden else NotDurable(_LAZY)) from reply
    if flush is None and int(reply[0]) < 1:
        raise NotDurable(_NO_FILE)
    return True


def is_replica(error: exceptions.ResponseError) -> bool:
    """Return whether `WAITAOF` was refused because the server is a replica."""
    return "replica instances" in str(error)
