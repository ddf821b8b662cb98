"""Checks that the records' Redis server keeps every accepted refund, now and after a crash."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import redis.exceptions

from worker.errors import NotDurable, SettingsError
from worker.model.times import from_ms
from worker.monitoring.check_permissions import permissions
from worker.monitoring.checks import (
    Check,
    Trouble,
    fail,
    guarded,
    lasting,
    ok,
    redis_cli,
    size,
    user_of,
    warn,
)
from worker.monitoring.replicas import replicas
from worker.settings import Settings
from worker.store import durability, flags
from worker.store.connection import redis_errors
from worker.store.store import Store

OLDEST_VERSION: Final = (6, 2)
"""Celery's transport uses commands that this version added."""
WAITAOF_VERSION: Final = (7, 2)
FULL: Final = 90
"""Percentage of its memory limit from which `create.lua` accepts no new refunds."""
LIMIT: Final = 100
"""Percentage from which the server refuses commands that take memory, those of a broker among them.
"""
NEARLY_FULL: Final = 80
SHARE_OF_HOST: Final = 0.5
"""Share of the machine's memory. Rewriting the append-only file may need as much memory again."""
SKEW: Final = timedelta(seconds=2)
LEAD: Final = timedelta(minutes=1)
"""How far the records' time may be ahead of the server's clock before the check warns."""
MORE: Final = "move the server to a machine with more memory"
UPGRADE: Final = "upgrade the server to Redis 7.2, Valkey 8 or later"

Info = Mapping[str, Any]


class Server:
    """The checks of the server that holds the records.

    After them, `answers` is whether the server is available.
    """

    def __init__(self, settings: Settings, store: Store) -> None:
        self.cli = redis_cli(settings.redis_url.get_secret_value())
        self.answers = False
        self._settings = settings
        self._store = store

    def checks(self) -> Iterator[Check]:
        """Yield the checks; raises `StoreUnavailable` if the server is unavailable."""
        with redis_errors(self._store.address):
            self._store.redis.ping()
        self.answers = True
        yield ok("redis", f"{self._store.address} answers")
        yield from guarded("clock", self.cli, lambda: [self._clock()])
        yield from guarded("time", self.cli, self._time)
        user = user_of(self._settings.redis_url.get_secret_value())
        yield from guarded(
            "permissions", self.cli, lambda: permissions(self._store, self.cli, user)
        )
        yield from guarded("disk", self.cli, self._disk)
        yield from guarded("eviction", self.cli, lambda: [self._eviction()])
        yield from guarded("server", self.cli, self._told_by_info)

    def _told_by_info(self) -> Iterator[Check]:
        with redis_errors(self._store.address):
            info: Any = self._store.redis.info()
        yield version(info)
        if info.get("role") not in {None, "master"}:
            fix = "point REFUNDS_REDIS_URL at the primary, or use sentinel://"
            yield fail(
                "role", f"this server is a {info['role']} and takes no writes", fix, Trouble.AWAY
            )
        yield from replicas(info, self._settings.replicas)
        yield from evictions(info)
        if self._settings.durability == "disk":
            yield from disk_write(info, self.cli)
        yield memory(info, self.cli)

    def _clock(self) -> Check:
        before = datetime.now(UTC)
        server = self._server_time()
        after = datetime.now(UTC)
        # The server's time is in whole milliseconds, and was read at some moment between the two.
        skew = max(before - server, server - after, timedelta(0))
        if skew > SKEW:
            ahead = "ahead of" if server > after else "behind"
            text = (
                f"the server's clock, which counts, is {skew.total_seconds():.1f} s {ahead} this"
                " machine's"
            )
            return warn("clock", text, "timedatectl set-ntp true, on both machines")
        return ok("clock", "the server's clock and this machine's agree")

    def _time(self) -> Iterator[Check]:
        lead = flags.now(self._store) - self._server_time()
        if lead > LEAD:
            text = (
                "the server's clock went back, so the records' time is"
                f" {lasting(lead.total_seconds())} ahead of it: recorded times are too late by that"
                " much, and no money is at risk"
            )
            yield warn(
                "time",
                text,
                "timedatectl set-ntp true, on the server; for other fixes see"
                " ops/docs/operations.md",
            )

    def _server_time(self) -> datetime:
        with redis_errors(self._store.address):
            seconds, micros = self._store.redis.time()
        return from_ms(int(seconds) * 1000 + int(micros) // 1000)

    def _disk(self) -> Iterator[Check]:
        if self._settings.durability == "memory":
            text = "REFUNDS_DURABILITY=memory: a crash of the server may lose accepted refunds"
            yield warn("disk", text, "unset REFUNDS_DURABILITY for anything but a trial")
            return
        always = (
            f"{self.cli} CONFIG SET appendfsync always && {self.cli} CONFIG SET"
            f" {durability.ON_REWRITE} no"
        )
        keep = "; and in its redis.conf"
        try:
            self._store.check_flushing()
        except SettingsError as error:
            user = user_of(self._settings.redis_url.get_secret_value())
            grant = "+waitaof" if "may not wait" in str(error) else "'+config|get'"
            yield fail(
                "disk", str(error), f"{self.cli} ACL SETUSER {user} {grant}", Trouble.SETTINGS
            )
            return
        except NotDurable as error:
            # What such a server holds is older than the file, which the command would replace.
            fix = (
                "if it was restarted without its file: see RefundsAofFailing in"
                f" ops/docs/operations.md; else {self.cli} CONFIG SET appendonly yes &&"
                f" {always}{keep}"
            )
            yield fail("disk", str(error), fix, Trouble.GUARD)
            return
        yield self._flushing(f"{always}{keep}")

    def _flushing(self, fix: str) -> Check:
        if not self._store.wait_for_disk:
            return ok("disk", "append-only file on, appendfsync always")
        how = self._appendfsync()
        if how == "no":
            text = (
                "appendfsync no: the server never confirms that a write is on disk, so no refund"
                " can be accepted"
            )
            return fail("disk", text, fix, Trouble.GUARD)
        if how is None:
            user = user_of(self._settings.redis_url.get_secret_value())
            fix = f"{self.cli} ACL SETUSER {user} '+config|get'"
            text = (
                "append-only file on; this user may not read appendfsync, so each acceptance waits"
                " for the disk"
            )
            return warn("disk", text, fix)
        if how == "always":
            how = f"always, but not '{durability.ON_REWRITE} no'"
        text = (
            f"appendfsync {how}: safe, but each acceptance and each claim waits up to a second for"
            " the disk (WAITAOF)"
        )
        return warn("disk", text, fix)

    def _eviction(self) -> Check:
        user = user_of(self._settings.redis_url.get_secret_value())
        return eviction(self._store.ask(durability.eviction()), self.cli, user)

    def _appendfsync(self) -> str | None:
        with redis_errors(self._store.address):
            try:
                config: Any = self._store.redis.config_get("appendfsync")
            except redis.exceptions.ResponseError:
                return None
        return str(config["appendfsync"]) if "appendfsync" in config else None


def version(info: Info) -> Check:
    """Check the server's version."""
    product = "Valkey" if "valkey_version" in info else "Redis"
    shown = str(info.get("valkey_version") or info.get("redis_version", "0"))
    # Valkey also reports the version of Redis that it is compatible with.
    digits = str(info.get("redis_version", "0")).split(".")[:2]
    number = tuple(int(part) for part in digits if part.isdigit())
    if number < OLDEST_VERSION:
        text = f"{product} {shown} is older than 6.2 and lacks commands that refunds need"
        return fail("version", text, UPGRADE, Trouble.GUARD)
    if number < WAITAOF_VERSION:
        text = (
            f"{product} {shown} has no WAITAOF: only 'appendfsync always' makes an accepted refund"
            " safe"
        )
        return warn("version", text, UPGRADE)
    return ok("version", f"{product} {shown}")


def eviction(found: durability.Eviction | None, cli: str, user: str) -> Check:
    """Check that the server never evicts records.

    `found` is None if its user may not read what it evicts.
    """
    if found is None:
        text = (
            "this user may not read maxmemory-policy: if the server evicts records, their refunds"
            " can be paid twice"
        )
        return warn("eviction", text, f"{cli} ACL SETUSER {user} '+config|get'")
    if found.policy == durability.KEEPS_ALL:
        return ok("eviction", found.policy)
    fix = f"{cli} CONFIG SET maxmemory-policy {durability.KEEPS_ALL}; and in its redis.conf"
    if found.may_happen:
        text = f"maxmemory-policy {found.policy} may evict refunds once memory is full"
        return fail("eviction", text, fix, Trouble.GUARD)
    return warn(
        "eviction",
        f"maxmemory-policy is {found.policy}: harmless only while there is no maxmemory",
        fix,
    )


def evictions(info: Info) -> Iterator[Check]:
    """Report keys that the server has already evicted."""
    if int(info.get("evicted_keys", 0)):
        text = (
            f"{info['evicted_keys']} keys were evicted since the server started: refunds may be"
            " missing"
        )
        yield warn(
            "evictions", text, "see RefundsEvictions in ops/docs/operations.md before anything else"
        )


def disk_write(info: Info, cli: str) -> Iterator[Check]:
    """Report an append-only file that cannot be written."""
    if info.get("aof_last_write_status", "ok") != "ok":
        text = "the last write to the append-only file failed: no refund is accepted"
        yield fail("disk write", text, "free space on the server's disk (df -h)", Trouble.AWAY)
    elif info.get("aof_last_bgrewrite_status", "ok") != "ok":
        text = "the last rewrite of the append-only file failed: the file grows until one succeeds"
        yield warn(
            "disk write", text, f"free space on the server's disk (df -h), then {cli} BGREWRITEAOF"
        )


def memory(info: Info, cli: str) -> Check:
    """Check the memory left: below the server's limit, or on its machine if it has no limit."""
    most, used = int(info.get("maxmemory", 0)), int(info.get("used_memory", 0))
    host = int(info.get("total_system_memory", 0))
    if most:
        percentage = used * 100 // most
        share = f"{percentage} % of its limit is used ({size(used)} of {size(most)})"
        wanted = -(-max(most, used) * 2 // 2**20)
        # More than the machine has would end the server. A shorter REFUNDS_RETENTION_DAYS frees
        # nothing: what has settled keeps the end of its life.
        fix = f"{cli} CONFIG SET maxmemory {wanted}mb; and in its redis.conf"
        if host and wanted * 2**20 > host:
            fix = MORE
        if percentage >= LIMIT:
            text = (
                f"{share}: no new refund is accepted and Redis as a broker takes no message, so"
                " accepted refunds may wait until there is room; what is in flight is recorded"
            )
            return fail("memory", text, fix, Trouble.AWAY)
        if percentage >= FULL:
            text = f"{share}: no new refund is accepted, and those already accepted are finished"
            return fail("memory", text, fix, Trouble.AWAY)
        if percentage >= NEARLY_FULL:
            return warn("memory", f"{share}; from {FULL} % on, no new refund is accepted", fix)
        return ok("memory", share)
    if host and used > host * SHARE_OF_HOST:
        text = (
            f"{size(used)} used, no limit set, of {size(host)} on its machine: a rewrite may need"
            " as much again"
        )
        return warn("memory", text, MORE)
    room = f", {size(host)} on its machine" if host else ""
    return ok("memory", f"{size(used)} used, no limit set{room}")
