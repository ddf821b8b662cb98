"""Creates Redis clients from the settings: plain, TLS, unix socket or Sentinel.

Foreign errors become one sentence.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from inspect import signature
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

import redis
import redis.asyncio
import redis.asyncio.sentinel
import redis.sentinel
from redis import exceptions
from redis.sentinel import MasterNotFoundError

from worker.errors import (
    NotStorable,
    RefundError,
    SettingsError,
    StoreFull,
    StoreRefused,
    StoreUnavailable,
)
from worker.model.redaction import without_secrets
from worker.model.request import scrubbed
from worker.store.packing import packing
from worker.store.sentinels import DEFAULT_PORT, SentinelAddress, is_sentinel
from worker.store.unread import without_unread

NEARLY_FULL: Final = "NEARLYFULL"
"""Error code of the script that accepts refunds.

The percentage of its memory that the server uses follows the code.
"""
# Errors of a server that is up and cannot serve us now. The client has a class for some, and leaves
# others as text.
_AWAY: Final = (
    exceptions.ConnectionError,
    exceptions.TimeoutError,
    exceptions.OutOfMemoryError,
    exceptions.ReadOnlyError,
    exceptions.MasterDownError,
    exceptions.ClusterDownError,
    exceptions.TryAgainError,
    exceptions.NoPermissionError,
    # A script that was just loaded is missing, because the server restarted in between.
    exceptions.NoScriptError,
    exceptions.InvalidResponse,
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
    NEARLY_FULL,
)
# Redis before 7 puts the position in the script before the error that stopped it.
_IN_SCRIPT: Final = re.compile(
    r"Error running script \(call to f_[0-9a-f]+\): @user_script:\d+: (?:@user_script: ?\d+: )?-?"
)
# Raised by our own scripts before they write anything; Redis 7 appends the position in the script.
_NOT_STORABLE: Final = re.compile(r"REFUNDS_REFUSED ([^\n]*)")
_WRONG_TYPE: Final = "WRONGTYPE"
# The server's user may not run a command, or not on that key. In a script, Redis 6.2 to 7.0 say it
# with the second text and later ones with the third.
_FORBIDDEN: Final = ("NOPERM", "The user executing the script can't", "ACL failure in script")
# Errors for an address that is wrong, so that neither a restart nor waiting helps.
_NO_DATABASE: Final = (
    "DB index is out of range",
    "invalid DB index",
    "SELECT is not allowed in cluster mode",
)
_NO_SENTINEL: Final = "unknown command 'SENTINEL'"
_CANNOT_READ: Final = (
    "REFUNDS_REDIS_URL is not a valid address: it must read redis://user:password@host:port/0, "
    "with reserved characters of the password percent-encoded"
)

_OF_ADDRESS: Final = frozenset(
    {
        "db",
        "username",
        "password",
        "protocol",
        "client_name",
        "lib_name",
        "lib_version",
        "socket_timeout",
        "socket_connect_timeout",
        "socket_keepalive",
        "retry_on_timeout",
        "health_check_interval",
        "max_connections",
    }
)
"""What an address may hold after its `?`, besides the options of TLS.

Redis-py takes others too, such as `retry`, but not as a text.
"""
_FILES: Final = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_CHECKS: Final = ("none", "optional", "required")
_OPTIONS: Final[dict[str, Any]] = {
    "decode_responses": True,
    "socket_timeout": 10,
    "socket_connect_timeout": 5,
    "socket_keepalive": True,
    "health_check_interval": 25,
    "client_name": "refund-worker",
}
_SENTINEL: Final[dict[str, Any]] = {"socket_timeout": 5}
_UNBOUNDED: Final = 2**31
"""For a blocking client: each thread that waits for a reply has a connection.

Redis-py 8 allows 100, and tells the next thread that there are too many.
"""
_NOTICES: Final = "maint_notifications_config"


def _options_for(url: str) -> dict[str, Any]:
    """Return the client options for an address.

    Redis-py rejects the keepalive option for a unix socket.
    """
    return {
        name: _OPTIONS[name]
        for name in _OPTIONS
        if name != "socket_keepalive" or not url.startswith("unix://")
    }


def _without_notices(client: Callable[..., object]) -> dict[str, Any]:
    """Return the option that turns maintenance notifications off, none if the client has no such.

    While they are on, which is the default from redis-py 8 on, a pool does not check whether an
    unread reply waits on a connection, or its server has closed it. After a command that was
    interrupted, the next one would get its reply: the record of another refund.
    """
    if _NOTICES not in signature(client).parameters:
        return {}
    from redis.maint_notifications import MaintNotificationsConfig  # noqa: PLC0415 - see above

    return {_NOTICES: MaintNotificationsConfig(enabled=False)}


def connect(url: str) -> redis.Redis:
    """Return a blocking client, which connects at its first command."""
    if is_sentinel(url):
        address = SentinelAddress.parse(url)
        _require_tls(address.to_sentinels)
        _require_tls(address.to_server)
        sentinel = redis.sentinel.Sentinel(
            list(address.hosts), sentinel_kwargs=_SENTINEL | address.to_sentinels
        )
        client: redis.Redis = sentinel.master_for(
            address.master,
            max_connections=_UNBOUNDED,
            **_OPTIONS,
            **_without_notices(redis.Redis),
            **address.to_server,
        )
        return _without_unread(client)
    _require_known(url)
    with _readable():
        plain = redis.Redis.from_url(
            url,
            max_connections=_UNBOUNDED,
            **_options_for(url),
            **_without_notices(redis.Redis),
        )
        _try_options(plain.connection_pool)
        return _without_unread(plain)


def _without_unread(client: redis.Redis) -> redis.Redis:
    pool = client.connection_pool
    pool.connection_class = without_unread(pool.connection_class)
    return client


def ask_sentinels_again(client: redis.Redis) -> None:
    """Close a client's idle connections if Sentinels name its server.

    Each then asks the Sentinels before its next command. A server without replicas may be one that
    they have replaced: it keeps its clients until they reach it.
    """
    if isinstance(client.connection_pool, redis.sentinel.SentinelConnectionPool):
        client.connection_pool.disconnect(inuse_connections=False)


async def ask_sentinels_again_async(client: redis.asyncio.Redis) -> None:
    """As `ask_sentinels_again`, for a client of the event loop."""
    if isinstance(client.connection_pool, redis.asyncio.sentinel.SentinelConnectionPool):
        with suppress(exceptions.RedisError):
            await client.connection_pool.disconnect(inuse_connections=False)


def connect_async(url: str, *, max_connections: int = 64) -> redis.asyncio.Redis:
    """Return a client for the event loop, which connects at its first command."""
    if is_sentinel(url):
        address = SentinelAddress.parse(url)
        _require_tls(address.to_sentinels)
        _require_tls(address.to_server)
        sentinel = redis.asyncio.sentinel.Sentinel(
            list(address.hosts), sentinel_kwargs=_SENTINEL | address.to_sentinels
        )
        client: redis.asyncio.Redis = sentinel.master_for(
            address.master,
            **_OPTIONS,
            **_without_notices(redis.asyncio.Redis),
            **address.to_server,
        )
    else:
        _require_known(url)
        with _readable():
            client = redis.asyncio.Redis.from_url(
                url,
                max_connections=max_connections,
                **_options_for(url),
                **_without_notices(redis.asyncio.Redis),
            )
            _try_options(client.connection_pool)
    pool = client.connection_pool
    pool.connection_class = packing(pool.connection_class)
    return client


def _require_known(url: str) -> None:
    """Raise `SettingsError` if an address has an option that no text can set."""
    with suppress(ValueError):
        for name in dict(parse_qsl(urlsplit(url).query, keep_blank_values=True)):
            if name not in _OF_ADDRESS and not name.startswith("ssl_"):
                raise _unknown_option(repr(name))


def _unknown_option(name: str) -> SettingsError:
    return SettingsError(f"REFUNDS_REDIS_URL has an unknown option, {name}: remove it")


@contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except ValueError:
        raise SettingsError(_CANNOT_READ) from None
    except TypeError as error:
        # redis-py passes on every option after the `?`. Report only the option's name, never its
        # value.
        name = str(error).rpartition("argument ")[2]
        raise _unknown_option(name) from None


def _try_options(pool: Any) -> None:
    """Create a connection object without connecting.

    An unknown option is found now and not at the first command.
    """
    _require_tls(pool.connection_kwargs)
    pool.connection_class(**pool.connection_kwargs)


def _require_tls(options: Mapping[str, Any]) -> None:
    """Raise `SettingsError` if a TLS option of the address cannot be used.

    Without this, the client would report a server that is away or does not speak TLS, or would fail
    on a word such as CERT_REQUIRED, which is Celery's.
    """
    checks = options.get("ssl_cert_reqs")
    if isinstance(checks, str) and checks not in _CHECKS:
        raise SettingsError(
            f"ssl_cert_reqs={checks} of REFUNDS_REDIS_URL is not one of {', '.join(_CHECKS)}"
        )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for name in _FILES:
        if (path := options.get(name)) is None:
            continue
        try:
            Path(path).read_bytes()
            if name == "ssl_ca_certs":
                context.load_verify_locations(path)
        except (OSError, ValueError) as error:
            why = "holds no certificate in PEM"
            if isinstance(error, OSError) and not isinstance(error, ssl.SSLError):
                why = f"cannot be read ({error.strerror})"
            raise SettingsError(
                f"{name}={path} of REFUNDS_REDIS_URL {why}: name a file of PEM that this user may"
                " read"
            ) from None


def address_of(url: str) -> str:
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
    """Return whether the error means that Redis is unavailable.

    Gone, loading, full, read-only or refusing.
    """
    if isinstance(error, _AWAY):
        return True
    return isinstance(error, exceptions.ResponseError) and (
        said(error).startswith(_AWAY_WORDS) or is_forbidden(error)
    )


def is_forbidden(error: BaseException) -> bool:
    """Return whether the server's user may not run a command, or not on that key."""
    if isinstance(error, exceptions.NoPermissionError):
        return True
    return isinstance(error, exceptions.ResponseError) and said(error).startswith(_FORBIDDEN)


def said(error: BaseException) -> str:
    """Return a server's error text, without secrets and without the position in a script."""
    return without_secrets(_IN_SCRIPT.sub("", str(error), count=1))


def _discreet(error: BaseException) -> None:
    """Redact the secrets in a foreign error.

    It remains the cause of our error and may appear in a crash report. A server that does not know
    a command repeats its arguments, including those of AUTH and HELLO.
    """
    error.args = tuple(
        without_secrets(each) if isinstance(each, str) else each for each in error.args
    )


def unavailable(error: BaseException, address: str) -> StoreUnavailable:
    """Return the error to raise if Redis is unavailable, as one sentence.

    Also redacts the secrets in `error`.
    """
    _discreet(error)
    if isinstance(error, exceptions.AuthenticationError) or str(error).startswith(
        ("NOAUTH", "WRONGPASS")
    ):
        return StoreRefused(
            f"Redis at {address} refuses the credentials: set the user and the password in"
            " REFUNDS_REDIS_URL"
        )
    if isinstance(error, exceptions.InvalidResponse):
        return StoreUnavailable(
            f"the server at {address} does not speak the Redis protocol: check host and port of"
            " REFUNDS_REDIS_URL, and use rediss:// for a server with TLS"
        )
    if isinstance(error, MasterNotFoundError):
        return StoreUnavailable(
            f"the Sentinels at {address} do not answer, or know no running primary of that name:"
            " check the hosts and ?master= of REFUNDS_REDIS_URL, then run this again"
        )
    if (trouble := _tls_trouble(error)) is not None:
        return StoreUnavailable(f"the server at {address} {trouble}")
    if said(error).startswith(NEARLY_FULL):
        return StoreFull(
            f"Redis at {address} uses {said(error).split()[-1]} % of its maxmemory, and from 90 %"
            " on no new refund is accepted, so that those already accepted can finish: raise"
            " maxmemory, then run this again"
        )
    if is_forbidden(error):
        reason = said(error).removeprefix("ACL failure in script: ").split(" script: ")[0]
        return StoreUnavailable(
            f"the Redis user at {address} lacks a permission that refunds need ({reason[:120]}):"
            " run 'refunds doctor' to see what to grant"
        )
    if isinstance(error, exceptions.ResponseError) and not isinstance(
        error, exceptions.ConnectionError
    ):
        reason = said(error).split(". ")[0].split("\n")[0][:120]
        return StoreUnavailable(
            f"Redis at {address} refuses commands now ({reason}): fix that, then run this again"
        )
    kind = (
        "did not answer in time"
        if isinstance(error, exceptions.TimeoutError)
        else "cannot be reached"
    )
    return StoreUnavailable(
        f"Redis at {address} {kind}: start it or set REFUNDS_REDIS_URL, then run this again"
    )


def _tls_trouble(error: BaseException) -> str | None:
    """Return what went wrong in the TLS handshake, None if it succeeded or was never tried."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return (
                f"shows a certificate that is not trusted here ({cause.verify_message}): add"
                " ?ssl_ca_certs=FILE to REFUNDS_REDIS_URL, or use the host name that the"
                " certificate names"
            )
        # A server without TLS reads our handshake as the beginning of a command, and waits for the
        # rest.
        if isinstance(cause, ssl.SSLError) or (
            isinstance(cause, TimeoutError) and "handshake" in str(cause)
        ):
            return (
                "does not speak TLS, which rediss:// requires: use its TLS port, or redis:// if it"
                " has none"
            )
        cause = cause.__cause__ or cause.__context__
    return None


def _wrong_address(error: BaseException, address: str) -> SettingsError | None:
    """Return the error for an address that waiting cannot fix, as one sentence.

    None for any other error.
    """
    if not isinstance(error, exceptions.ResponseError):
        return None
    said = str(error)
    if said.startswith(_NO_DATABASE):
        return SettingsError(
            f"Redis at {address} does not have the database in REFUNDS_REDIS_URL: use one that it"
            " has, on most servers 0 to 15, in a cluster only 0"
        )
    if said.startswith(_NO_SENTINEL):
        return SettingsError(
            f"the server at {address} is not a Sentinel: name the Sentinels in REFUNDS_REDIS_URL"
            f" (their usual port is {DEFAULT_PORT}), or use redis:// for a single server"
        )
    return None


def _not_storable(error: BaseException, address: str) -> NotStorable | None:
    """Return the error if a script refused to write, or found a key of another type.

    None for any other error.
    """
    if not isinstance(error, exceptions.ResponseError):
        return None
    text = said(error)
    if (found := _NOT_STORABLE.search(text)) is not None:
        reason = scrubbed(found.group(1).partition(" script: ")[0])
    elif text.startswith(_WRONG_TYPE):
        reason = "a key of the records holds a value of another type"
    else:
        return None
    return NotStorable(
        f"nothing was changed at {address}, since the records cannot hold this: {reason}"
    )


def ours(error: BaseException, address: str) -> RefundError | None:
    """Return our own error for an error of Redis, None if we have none for it."""
    _discreet(error)
    if isinstance(error, (exceptions.RedisError, OSError)) and is_away(error):
        return unavailable(error, address)
    return _wrong_address(error, address) or _not_storable(error, address)


@contextmanager
def redis_errors(address: str) -> Iterator[None]:
    """Convert errors of Redis into our own.

    They become `StoreUnavailable` if Redis is away, `SettingsError` if the address is wrong, and
    `NotStorable` if the records cannot hold a value.
    """
    try:
        yield
    except (exceptions.RedisError, OSError) as error:
        if (known := ours(error, address)) is not None:
            raise known from error
        raise
