"""Checks that the Redis user may run every command that refunds need.

Each command is run on short-lived keys.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from hashlib import sha1
from typing import Any, Final

from redis import exceptions

from worker.errors import StoreUnavailable
from worker.monitoring.checks import Check, Trouble, fail, ok
from worker.store.connection import is_forbidden, redis_errors
from worker.store.store import Store

_HASH, _LIST, _ZSET, _STREAM, _TEXT = "hash", "list", "zset", "stream", "text"
_NAMES: Final = (_HASH, _LIST, _ZSET, _STREAM, _TEXT)
_LIFE_MS: Final = 60_000
"""The trial's keys expire, in case the user may not delete them."""

# Every command of the scripts and the stores, with the key to try it on. Earlier rows write what
# later ones need.
TRIALS: Final[tuple[tuple[str, str | None, tuple[str | int, ...]], ...]] = (
    ("TIME", None, ()),
    ("HSET", _HASH, ("f", "1", "g", "1")),
    ("PEXPIRE", _HASH, (_LIFE_MS,)),
    ("HSETNX", _HASH, ("h", "1")),
    ("HINCRBY", _HASH, ("f", 1)),
    ("HGET", _HASH, ("f",)),
    ("HMGET", _HASH, ("f",)),
    ("HGETALL", _HASH, ()),
    ("HKEYS", _HASH, ()),
    ("HLEN", _HASH, ()),
    ("HEXISTS", _HASH, ("f",)),
    ("HSCAN", _HASH, (0,)),
    ("HDEL", _HASH, ("g",)),
    ("RPUSH", _LIST, ("1",)),
    ("PEXPIRE", _LIST, (_LIFE_MS,)),
    ("LPUSH", _LIST, ("0",)),
    ("LLEN", _LIST, ()),
    ("LRANGE", _LIST, (0, -1)),
    ("LTRIM", _LIST, (0, 0)),
    ("LREM", _LIST, (1, "2")),
    ("ZADD", _ZSET, (1, "a", 2, "b", 3, "c")),
    ("PEXPIRE", _ZSET, (_LIFE_MS,)),
    ("ZCARD", _ZSET, ()),
    ("ZCOUNT", _ZSET, (0, 9)),
    ("ZRANK", _ZSET, ("a",)),
    ("ZREVRANK", _ZSET, ("a",)),
    ("ZSCORE", _ZSET, ("a",)),
    ("ZRANGE", _ZSET, (0, -1)),
    ("ZREVRANGE", _ZSET, (0, -1)),
    ("ZRANGEBYSCORE", _ZSET, (0, 9)),
    ("ZREVRANGEBYSCORE", _ZSET, (9, 0)),
    ("ZREM", _ZSET, ("a",)),
    ("ZPOPMIN", _ZSET, ()),
    ("ZREMRANGEBYSCORE", _ZSET, (9, 9)),
    ("XADD", _STREAM, ("MAXLEN", "~", 1, "*", "f", "1")),
    ("PEXPIRE", _STREAM, (_LIFE_MS,)),
    ("SET", _TEXT, ("1", "PX", _LIFE_MS)),
    ("GET", _TEXT, ()),
    ("EXISTS", _TEXT, ()),
    ("PERSIST", _TEXT, ()),
    *(("DEL", name, ()) for name in _NAMES),
)

_WAIT: Final = ("WAIT", None, (0, 0))
"""Needed only with `REFUNDS_REPLICAS`; for 0 replicas it answers at once."""


def permissions(store: Store, cli: str, user: str) -> Iterator[Check]:
    """Try every command, and report those that are forbidden. Raises `StoreUnavailable`."""
    forbidden = _refused(store)
    if any(_is_about_keys(error) for error in forbidden.values()):
        text = (
            f"the user {user} may not use keys that begin with {store.prefix}: no refund is"
            " accepted"
        )
        yield fail(
            "permissions", text, f"{cli} ACL SETUSER {user} '~{store.prefix}*'", Trouble.SETTINGS
        )
        return
    names = [*forbidden, *_scripts_refused(store)]
    if not names:
        yield ok("permissions", "this user may run every command that refunds need")
        return
    grants = " ".join(f"+{name.lower().replace(' ', '|')}" for name in names)
    text = f"the user {user} may not run {', '.join(names)}: no refund is accepted"
    yield fail("permissions", text, f"{cli} ACL SETUSER {user} {grants}", Trouble.SETTINGS)


def _refused(store: Store) -> dict[str, Exception]:
    """Return the error of each command that is forbidden."""
    trial = store.key(f"trial:{secrets.token_hex(4)}")
    trials = (*TRIALS, _WAIT) if store.replicas else TRIALS
    with redis_errors(store.address), store.redis.pipeline(transaction=False) as pipeline:
        for command, name, arguments in trials:
            pipeline.execute_command(
                command, *([] if name is None else [f"{trial}:{name}"]), *arguments
            )
        replies: list[Any] = pipeline.execute(raise_on_error=False)
    return {
        trial[0]: reply
        for trial, reply in zip(trials, replies, strict=True)
        if isinstance(reply, exceptions.ResponseError) and is_forbidden(reply)
    }


def _scripts_refused(store: Store) -> list[str]:
    """Return which commands that run a script are forbidden.

    `TRIALS` tries the commands inside the scripts.
    """
    refused = []
    for name, ask in (
        ("SCRIPT LOAD", lambda: store.redis.script_load("return 1")),
        (
            "EVALSHA",
            lambda: store.redis.evalsha(sha1(b"return 1", usedforsecurity=False).hexdigest(), 0),
        ),
    ):
        try:
            with redis_errors(store.address):
                ask()
        except StoreUnavailable as error:
            cause = error.__cause__ or error
            if isinstance(cause, exceptions.NoScriptError):
                # EVALSHA is allowed; only loading the script failed.
                continue
            if not is_forbidden(cause):
                raise
            refused.append(name)
    return refused


def _is_about_keys(error: Exception) -> bool:
    return re.search(r"access .*\bkeys?\b", str(error)) is not None
