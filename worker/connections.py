"""Redis clients from the settings: plain, TLS, unix socket or Sentinel; foreign errors become one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import redis
import redis.asyncio
import redis.asyncio.sentinel
import redis.sentinel
from redis import exceptions

from worker.errors import NotDurable, SettingsError, StoreUnavailable

_DEFAULT_SENTINEL_PORT: Final = 26379
# Said by a server that is up and will not serve us now: the client makes a class of some, and leaves others as text.
_AWAY: Final = (
    exceptions.ConnectionError,
    exceptions.TimeoutError,
    exceptions.OutOfMemoryError,
    exceptions.ReadOnlyError,
    exceptions.MasterDownError,
    exceptions.ClusterDownError,
    exceptions.TryAgainError,
    exceptions.NoPermissionError,
    OSError,
)
_AWAY_WORDS: Final = (
    "MISCONF",
    "NOREPLICAS",
    "UNKILLABLE",
    "BUSY",
    "NOAUTH",
    "OOM",
    "READONLY",
    "LOADING",
    "MASTERDOWN",
)
_CANNOT_READ: Final = (
    "REFUNDS_REDIS_URL cannot be read as an address: it reads redis://user:password@host:port/0, "
    "with reserved characters of the password percent-encoded"
)

_OPTIONS: Final[dict[str, Any]] = {
    "decode_responses": True,
    "socket_timeout": 10,
    "socket_connect_timeout": 5,
    "socket_keepalive": True,
    "health_check_interval": 25,
    "client_name": "refund-worker",
}


@dataclass(frozen=True, kw_only=True)
class SentinelAddress:
    """`sentinel://[user:password@]host:port[,host:port]/db?master=NAME`, taken apart."""

    hosts: tuple[tuple[str, int], ...]
    master: str
    database: int
    username: str | None
    password: str | None

    @classmethod
    def parse(cls, url: str) -> SentinelAddress:
        """Read the address; raises `SettingsError` where the master's name or a port is missing."""
        rest = url.removeprefix("sentinel://")
        credentials, _, places = rest.rpartition("@") if "@" in rest else ("", "", rest)
        parts = urlsplit(f"x://{places.replace(';sentinel://', ',')}")
        master = parse_qs(parts.query).get("master", [""])[0]
        if not master:
            raise SettingsError("a sentinel:// address needs the master's name: add ?master=NAME")
        username, _, password = credentials.partition(":")
        try:
            hosts = tuple(_host_and_port(place) for place in parts.netloc.split(",") if place)
            database = int(parts.path.strip("/") or 0)
        except ValueError:
            raise SettingsError("a sentinel:// address reads sentinel://host:port,host:port/db?master=NAME") from None
        return cls(hosts=hosts, master=master, database=database, username=username or None, password=password or None)


def _host_and_port(place: str) -> tuple[str, int]:
    host, _, port = place.rpartition(":") if ":" in place else (place, "", "")
    return host, int(port or _DEFAULT_SENTINEL_PORT)


def _options_for(url: str) -> dict[str, Any]:
    """Return the options of a client; a unix socket has no keepalive, and redis-py refuses to hear of one."""
    return {name: _OPTIONS[name] for name in _OPTIONS if name != "socket_keepalive" or not url.startswith("unix://")}


def connect(url: str) -> redis.Redis:
    """Return a blocking client; nothing is connected before its first command."""
    if url.startswith("sentinel://"):
        address = SentinelAddress.parse(url)
        sentinel = redis.sentinel.Sentinel(list(address.hosts), socket_timeout=5, password=address.password)
        client: redis.Redis = sentinel.master_for(
            address.master, db=address.database, username=address.username, password=address.password, **_OPTIONS
        )
        return client
    try:
        return redis.Redis.from_url(url, **_options_for(url))
    except ValueError:
        raise SettingsError(_CANNOT_READ) from None


def connect_async(url: str, *, max_connections: int = 64) -> redis.asyncio.Redis:
    """Return a client for the event loop; nothing is connected before its first command."""
    if url.startswith("sentinel://"):
        address = SentinelAddress.parse(url)
        sentinel = redis.asyncio.sentinel.Sentinel(list(address.hosts), socket_timeout=5, password=address.password)
        client: redis.asyncio.Redis = sentinel.master_for(
            address.master, db=address.database, username=address.username, password=address.password, **_OPTIONS
        )
        return client
    try:
        return redis.asyncio.Redis.from_url(url, max_connections=max_connections, **_options_for(url))
    except ValueError:
        raise SettingsError(_CANNOT_READ) from None


def place_of(url: str) -> str:
    """Return the host and port of an address, without its credentials."""
    try:
        parts = urlsplit(url)
        if parts.scheme == "unix":
            return parts.path
        if "@" in url and "@" not in parts.netloc:
            return "REFUNDS_REDIS_URL"
    except ValueError:
        return "REFUNDS_REDIS_URL"
    return parts.netloc.rpartition("@")[2] or "127.0.0.1:6379"


def is_away(error: BaseException) -> bool:
    """Tell whether Redis itself is the trouble: gone, loading, full, read-only or refusing."""
    if isinstance(error, _AWAY):
        return True
    return isinstance(error, exceptions.ResponseError) and str(error).startswith(_AWAY_WORDS)


def unavailable(error: BaseException, place: str) -> StoreUnavailable:
    """Return the one sentence for a Redis that is away."""
    if isinstance(error, exceptions.AuthenticationError) or str(error).startswith(("NOAUTH", "WRONGPASS")):
        return StoreUnavailable(f"Redis at {place} refuses the credentials: check REFUNDS_REDIS_URL")
    if isinstance(error, exceptions.ResponseError) and not isinstance(error, exceptions.ConnectionError):
        reason = str(error).split(". ")[0].split("\n")[0][:120]
        return StoreUnavailable(f"Redis at {place} will not serve now ({reason}): mend it and run this again")
    kind = "did not answer in time" if isinstance(error, exceptions.TimeoutError) else "cannot be reached"
    return StoreUnavailable(f"Redis at {place} {kind}: start it or set REFUNDS_REDIS_URL, then run this again")


@contextmanager
def redis_errors(place: str) -> Iterator[None]:
    """Turn a Redis that is away into `StoreUnavailable`."""
    try:
        yield
    except (exceptions.RedisError, OSError) as error:
        if is_away(error):
            raise unavailable(error, place) from error
        raise


def must_wait_for_disk(settings: dict[str, str] | None, *, aof: bool, has_waitaof: bool) -> bool:
    """Tell whether a durable write needs `WAITAOF`: False where each reply already follows its fsync.

    `settings` is what CONFIG GET said, None where it is forbidden. Raises `NotDurable` where the server may forget
    what it acknowledged.
    """
    if not aof:
        raise NotDurable(
            "this Redis has no append-only file and may forget an accepted refund: start it with "
            "'--appendonly yes --appendfsync always', or set REFUNDS_DURABILITY=memory for a trial"
        )
    flush = None if settings is None else settings.get("appendfsync")
    if flush == "always":
        return False
    if has_waitaof and flush != "no":
        return True
    raise NotDurable(
        "this Redis flushes its append-only file only now and then, and cannot be waited for: "
        "set 'appendfsync always', or 'everysec' on Redis 7.2 or Valkey"
    )
