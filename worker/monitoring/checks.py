"""The result of one check of `refunds doctor`, and helpers that build it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final
from urllib.parse import unquote, urlsplit

import redis.exceptions

from worker.errors import SettingsError, StoreRefused, StoreUnavailable
from worker.store.connection import is_forbidden, said


class State(StrEnum):
    """The result of a check."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


class Trouble(StrEnum):
    """What kind of failure a failed check is; `refunds doctor` makes its exit code from it."""

    SETTINGS = "settings"
    GUARD = "guard"
    AWAY = "away"


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One check: its result, a sentence, and the command or setting that fixes it."""

    name: str
    state: State
    text: str
    fix: str | None = None
    trouble: Trouble | None = None


def ok(name: str, text: str) -> Check:
    """Return a check that found nothing wrong."""
    return Check(name=name, state=State.OK, text=text)


def warn(name: str, text: str, fix: str) -> Check:
    """Return a check that found something a person should know."""
    return Check(name=name, state=State.WARN, text=text, fix=fix)


def fail(name: str, text: str, fix: str, trouble: Trouble) -> Check:
    """Return a check that found something that stops refunds."""
    return Check(name=name, state=State.FAIL, text=text, fix=fix, trouble=trouble)


_WITH_USER: Final = "redis://USER:PASSWORD@HOST:PORT/0"


def guarded(name: str, cli: str, checks: Callable[[], Iterable[Check]]) -> Iterator[Check]:
    """Yield checks, and yield a check instead of raising an error of the server.

    The server may become unavailable or refuse a command.
    """
    try:
        yield from checks()
    except StoreUnavailable as error:
        cause = error.__cause__
        if cause is not None and is_forbidden(cause):
            fix = f"{cli} ACL SETUSER … +info +time"
            text = (
                f"this user may not run a command that the check needs ({said(cause)}): the rest is"
                " unknown"
            )
            yield warn(name, text, fix)
        else:
            refused = isinstance(error, StoreRefused)
            fix = f"export REFUNDS_REDIS_URL={_WITH_USER}" if refused else f"{cli} PING"
            yield fail(name, str(error), fix, Trouble.SETTINGS if refused else Trouble.AWAY)
    except SettingsError as error:
        text = str(error).removeprefix("wrong settings: ")
        yield fail(name, text, "export REFUNDS_REDIS_URL=redis://HOST:PORT/0", Trouble.SETTINGS)
    except redis.exceptions.ResponseError as error:
        yield fail(
            name, f"Redis answered with an error: {said(error)}", f"{cli} INFO", Trouble.AWAY
        )


def redis_cli(url: str) -> str:
    """Return the `redis-cli` command for the server of an address.

    It never holds a password; use `REDISCLI_AUTH`.
    """
    if url.startswith(("sentinel:", "sentinels:")):
        return "redis-cli -h PRIMARY"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return "redis-cli"
    if "@" in url and "@" not in parts.netloc:
        # A password with reserved characters: parts of it look like a host or a path.
        return "redis-cli"
    if parts.scheme == "unix":
        return f"redis-cli -s {parts.path}"
    database = parts.path.strip("/")
    words = [
        "redis-cli",
        f"-h {host}" if host not in {None, "127.0.0.1", "localhost"} else "",
        f"-p {port}" if port not in {None, 6379} else "",
        f"-n {database}" if database.isdigit() and database != "0" else "",
        "--tls" if parts.scheme == "rediss" else "",
    ]
    return " ".join(word for word in words if word)


def user_of(url: str) -> str:
    """Return the Redis user that an address names, `default` if it names none."""
    try:
        return unquote(urlsplit(url).username or "default")
    except ValueError:
        return "default"


def size(count: int) -> str:
    """Return a number of bytes for a person."""
    for unit, length in (("GB", 2**30), ("MB", 2**20)):
        if count >= length:
            return f"{count / length:.1f} {unit}"
    return f"{count / 2**10:.0f} KB"


def lasting(seconds: float) -> str:
    """Return a duration for a person, in its two largest units."""
    whole, parts = int(seconds), []
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, whole = divmod(whole, length)
        if count:
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2]) or "0 s"
