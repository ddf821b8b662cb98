"""Checks whether a Redis server keeps what it acknowledged.

Also checks whether a durable write must wait for the disk. Each check is a generator of commands.
The owner of the connection drives it: it receives a command, and sends the reply or the
`ResponseError` that came instead. CONFIG may be forbidden or unknown, as on a managed server.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from redis import exceptions

from worker.errors import NotDurable, SettingsError
from worker.store.connection import is_away

RawCommand = tuple[str | int, ...]

ON_REWRITE: Final = "no-appendfsync-on-rewrite"
"""With 'yes' the server flushes nothing while it rewrites its file, whatever `appendfsync` says."""
SETTINGS: Final = "*append*"
"""Pattern for CONFIG GET; it matches `appendonly`, `appendfsync` and `ON_REWRITE`, among others."""
LIMITS: Final = "maxmemory*"
"""The pattern for CONFIG GET; it matches `maxmemory` and `maxmemory-policy`, among others."""
KEEPS_ALL: Final = "noeviction"
"""The only `maxmemory-policy` under which a full server refuses writes instead of removing keys."""

_NO_FILE: Final = (
    "this Redis has no append-only file and may lose an accepted refund: start it with "
    "'--appendonly yes --appendfsync always', or set REFUNDS_DURABILITY=memory for a trial"
)
_LAZY: Final = (
    "this Redis does not flush its append-only file at each write, and cannot confirm when it has: "
    "set 'appendfsync always', or 'everysec' on Redis 7.2 or Valkey"
)
_NOT_WRITTEN_YET: Final = (
    "this Redis rewrites its append-only file after a fault, and a crash before the end would lose"
    " an accepted refund: wait until 'redis-cli INFO persistence' shows aof_rewrite_in_progress:0"
)
_EVICTS: Final = (
    "maxmemory-policy '{policy}' with a maxmemory lets this Redis evict records, and an evicted"
    " refund would be accepted and paid again: run 'redis-cli CONFIG SET maxmemory-policy"
    " {allowed}', the only policy allowed, and set the same in the server's configuration"
)
_UNSEEN: Final = (
    "this Redis user may not read 'appendfsync', and WAITAOF, which waits for the disk, is missing"
    " or forbidden: grant it '+config|get' or '+waitaof', or use Redis 7.2 or Valkey"
)
_MAY_NOT_WAIT: Final = (
    "this Redis does not flush its append-only file at each write, and its user may not wait for"
    " the disk: set 'appendfsync always', or grant the user '+waitaof'"
)
_NOT_IN_REWRITE: Final = (
    "this Redis is not set to 'no-appendfsync-on-rewrite no': while it rewrites its append-only"
    " file it may answer before a write is on disk, and {why}: set 'no-appendfsync-on-rewrite no',"
    " {else_}"
)
_REWRITE: Final = _NOT_IN_REWRITE.format(
    why="has no WAITAOF to wait for the disk", else_="or use Redis 7.2 or Valkey"
)
_REWRITE_MAY_NOT_WAIT: Final = _NOT_IN_REWRITE.format(
    why="its user may not wait for the disk", else_="or grant the user '+waitaof'"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Eviction:
    """Which keys a server removes if its memory is full."""

    policy: str
    limit: int | None
    """The server's `maxmemory` in bytes, 0 for none; None if it cannot be read."""

    @property
    def may_happen(self) -> bool:
        """Return whether the server may remove a record now.

        Without a limit, no policy removes anything.
        """
        return self.policy != KEEPS_ALL and self.limit != 0


def probe(*, after_fault: bool) -> Generator[RawCommand, Any, bool]:
    """Find out whether a durable write needs `WAITAOF`; return False if it does not.

    Set `after_fault` if the latest check of this server failed: see `flushing`. Raises `NotDurable`
    if the server may forget what it acknowledged, `SettingsError` if its user may not find out, and
    any error that is not about the commands themselves. A server that does not report what it
    evicts is accepted.
    """
    waits = yield from flushing(after_fault=after_fault)
    yield from keeping()
    return waits


def flushing(*, after_fault: bool) -> Generator[RawCommand, Any, bool]:
    """Find out whether a durable write needs `WAITAOF`, whatever the server evicts.

    Raises as `probe` does.

    After `CONFIG SET appendonly yes` a server reports the file at once, and has nothing in it until
    it has rewritten it. So `after_fault` also waits for the end of a rewrite.
    """
    waits = yield from _flushing()
    if after_fault and (yield from _rewriting()):
        raise NotDurable(_NOT_WRITTEN_YET)
    return waits


def _flushing() -> Generator[RawCommand, Any, bool]:
    settings = _readable((yield "CONFIG GET", SETTINGS))
    if settings.get("appendonly") == "no":
        raise NotDurable(_NO_FILE)
    flush = settings.get("appendfsync")
    # If the server does not report the setting, assume that it does not flush while it rewrites its
    # file.
    if flush == "always" and settings.get(ON_REWRITE) == "no":
        return False
    if flush == "no":
        raise NotDurable(_LAZY)
    return _can_wait((yield "WAITAOF", 0, 0, 0), flush)


def keeping() -> Generator[RawCommand, Any, None]:
    """Raise `NotDurable` if the server may remove records when its memory is full."""
    found = yield from eviction()
    if found is not None and found.may_happen:
        raise NotDurable(_EVICTS.format(policy=found.policy, allowed=KEEPS_ALL))


def eviction() -> Generator[RawCommand, Any, Eviction | None]:
    """Find out which keys the server removes if its memory is full.

    Return None if its user may not read that.
    """
    settings = _readable((yield "CONFIG GET", LIMITS))
    policy, limit = settings.get("maxmemory-policy"), settings.get("maxmemory")
    if policy is None:
        memory = _readable((yield "INFO", "memory"))
        policy, limit = memory.get("maxmemory_policy"), memory.get("maxmemory")
    return (
        None
        if policy is None
        else Eviction(policy=str(policy), limit=None if limit is None else int(limit))
    )


def _rewriting() -> Generator[RawCommand, Any, bool]:
    """Return whether the append-only file is being rewritten; False if the user may not see it."""
    persistence = _readable((yield "INFO", "persistence"))
    return any(
        int(persistence.get(f"aof_rewrite_{state}", 0)) for state in ("in_progress", "scheduled")
    )


def _readable(reply: Any) -> Mapping[str, Any]:
    """Return the reply to CONFIG GET or INFO, empty if the command is forbidden.

    Raises any other error.
    """
    if not isinstance(reply, exceptions.ResponseError):
        return dict(reply)
    if is_away(reply) and not isinstance(reply, exceptions.NoPermissionError):
        raise reply
    # Forbidden for this user, or for every user on managed servers, each with its own error text.
    return {}


def _can_wait(reply: Any, flush: str | None) -> bool:
    """Judge the reply to WAITAOF; `flush` is the server's `appendfsync`, None if it cannot be read.

    COMMAND INFO would answer the same question, but a server before 7.2 replies with a nil that the
    client cannot read.
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
            raise (
                SettingsError(_REWRITE_MAY_NOT_WAIT) if forbidden else NotDurable(_REWRITE)
            ) from reply
        raise (SettingsError(_MAY_NOT_WAIT) if forbidden else NotDurable(_LAZY)) from reply
    if flush is None and int(reply[0]) < 1:
        raise NotDurable(_NO_FILE)
    return True


def is_replica(error: exceptions.ResponseError) -> bool:
    """Return whether waiting was refused because the server is a replica.

    `UNBLOCKED` is the error if it became one while it waited.
    """
    return "replica instances" in str(error) or str(error).startswith("UNBLOCKED")
