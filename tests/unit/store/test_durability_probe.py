"""What a server must say before a write is relied on.

By the bytes that servers of each kind really answer.
"""

from __future__ import annotations

import pytest

from tests.unit.store.byte_redis import byte_redis, config
from worker.errors import NotDurable, SettingsError, StoreUnavailable
from worker.store.async_store import AsyncStore
from worker.store.connection import connect, connect_async
from worker.store.store import Store

# As Redis 6.2.14, Redis 7.0.15 and Valkey 9.1.2 wrote them.
UNKNOWN_62 = b"-ERR unknown command `WAITAOF`, with args beginning with: `0`, `0`, `0`, \r\n"
UNKNOWN_70 = b"-ERR unknown command 'WAITAOF', with args beginning with: '0' '0' '0' \r\n"
KNOWN, KNOWN_WITHOUT_FILE = b"*2\r\n:1\r\n:0\r\n", b"*2\r\n:0\r\n:0\r\n"
FORBIDDEN = b"-NOPERM User producer has no permissions to run the 'waitaof' command\r\n"
FORBIDDEN_62 = (
    b"-NOPERM this user has no permissions to run the 'config' command or its subcommand\r\n"
)
REPLICA = (
    b"-ERR WAITAOF cannot be used with replica instances. Please also note that writes to replicas"
    b" are just local and are not propagated.\r\n"
)
# What the client's parser stumbles over: COMMAND INFO on a server before 7.2. INFO as far as it
# matters.
OLD = {"COMMAND INFO WAITAOF": b"*1\r\n*-1\r\n", "INFO": b"$15\r\naof_enabled:1\r\n\r\n"}
HIDDEN = b"-ERR Command is not available: 'CONFIG'\r\n"
NO_INFO = b"-NOPERM this user has no permissions to run the 'info' command or its subcommand\r\n"
LIMITS = "CONFIG GET maxmemory*"
"""Before "CONFIG GET", which it begins with."""


def set_to(appendfsync: str, **on_rewrite: str) -> bytes:
    told = {name.replace("_", "-"): value for name, value in on_rewrite.items()}
    return config(**{"appendonly": "yes", "appendfsync": appendfsync} | told)


def always(no_appendfsync_on_rewrite: str = "no") -> bytes:
    return set_to("always", no_appendfsync_on_rewrite=no_appendfsync_on_rewrite)


def everysec() -> bytes:
    return set_to("everysec", no_appendfsync_on_rewrite="no")


def evicting(policy: str, maxmemory: str | None = "62914560") -> bytes:
    return config(
        **{"maxmemory-policy": policy} | ({} if maxmemory is None else {"maxmemory": maxmemory})
    )


def memory(**said: str) -> bytes:
    """The reply to INFO memory."""
    text = "".join(
        f"{name}:{value}\r\n" for name, value in ({"used_memory": "1"} | said).items()
    ).encode()
    return b"$%d\r\n%s\r\n" % (len(text), text)


def ask_blocking(url: str) -> bool | None:
    with connect(url) as client:
        store = Store(client)
        store.require_durable()
        return store.wait_for_disk


async def ask_on_the_loop(url: str) -> bool | None:
    async with connect_async(url) as client:
        store = AsyncStore(client)
        await store.require_durable()
        return store.wait_for_disk


SERVES = {
    "6.2, always": ({"CONFIG GET": always(), "WAITAOF": UNKNOWN_62}, False),
    "7.0, always": ({"CONFIG GET": always(), "WAITAOF": UNKNOWN_70}, False),
    "9.1, always": ({"CONFIG GET": always(), "WAITAOF": KNOWN}, False),
    "9.1, always, but not while it rewrites its file": (
        {"CONFIG GET": always("yes"), "WAITAOF": KNOWN},
        True,
    ),
    "9.1, always, and nothing is known of a rewrite": (
        {"CONFIG GET": set_to("always"), "WAITAOF": KNOWN},
        True,
    ),
    "9.1, everysec": ({"CONFIG GET": everysec(), "WAITAOF": KNOWN}, True),
    "9.1, everysec, its file is being begun": (
        {"CONFIG GET": everysec(), "WAITAOF": KNOWN_WITHOUT_FILE},
        True,
    ),
    "CONFIG is forbidden": ({"CONFIG GET": FORBIDDEN_62, "WAITAOF": KNOWN}, True),
    "CONFIG is hidden by a managed server": (
        {"CONFIG GET": b"-ERR Command is not available: 'CONFIG'\r\n"},
        True,
    ),
    "always, WAITAOF is forbidden": ({"CONFIG GET": always(), "WAITAOF": FORBIDDEN}, False),
    "a replica, whose writes say READONLY": ({"CONFIG GET": everysec(), "WAITAOF": REPLICA}, True),
    "nothing is evicted": ({LIMITS: evicting("noeviction"), "CONFIG GET": always()}, False),
    "it would evict, and has no limit": (
        {LIMITS: evicting("allkeys-lru", "0"), "CONFIG GET": always()},
        False,
    ),
    "CONFIG is forbidden, and INFO knows of no eviction": (
        {
            "CONFIG GET": FORBIDDEN_62,
            "INFO memory": memory(maxmemory="9", maxmemory_policy="noeviction"),
        },
        True,
    ),
    "CONFIG is forbidden, and INFO knows of no limit": (
        {
            "CONFIG GET": FORBIDDEN_62,
            "INFO memory": memory(maxmemory="0", maxmemory_policy="volatile-lru"),
        },
        True,
    ),
    "CONFIG and INFO are forbidden": ({"CONFIG GET": FORBIDDEN_62, "INFO": NO_INFO}, True),
    "CONFIG is hidden, and INFO says nothing of it": (
        {"CONFIG GET": HIDDEN, "INFO memory": memory()},
        True,
    ),
}
REFUSED = {
    "6.2, everysec": (
        {"CONFIG GET": everysec(), "WAITAOF": UNKNOWN_62},
        "cannot confirm when it has: set 'appendfsync",
    ),
    "7.0, everysec": (
        {"CONFIG GET": everysec(), "WAITAOF": UNKNOWN_70},
        "cannot confirm when it has: set 'appendfsync",
    ),
    "6.2, always, but not in a rewrite": (
        {"CONFIG GET": always("yes"), "WAITAOF": UNKNOWN_62},
        "has no WAITAOF to wait for the disk: set 'no-appendfsync-on-rewrite no', or use Redis 7.2",
    ),
    "7.0, always, but not in a rewrite": (
        {"CONFIG GET": always("yes"), "WAITAOF": UNKNOWN_70},
        "not set to 'no-appendfsync-on-rewrite no'",
    ),
    "7.0, always, and nothing is known of a rewrite": (
        {"CONFIG GET": set_to("always"), "WAITAOF": UNKNOWN_70},
        "not set to 'no-appendfsync-on-rewrite no'",
    ),
    "9.1, no": (
        {"CONFIG GET": config(appendonly="yes", appendfsync="no"), "WAITAOF": KNOWN},
        "cannot confirm when it has",
    ),
    "no file": (
        {"CONFIG GET": config(appendonly="no", appendfsync="always")},
        "has no append-only file",
    ),
    **{
        f"{policy} with a limit": (
            {LIMITS: evicting(policy), "CONFIG GET": always()},
            f"'{policy}' with a maxmemory",
        )
        for policy in ("volatile-lru", "volatile-ttl", "allkeys-lru", "allkeys-random")
    },
    "it would evict, and its limit cannot be read": (
        {LIMITS: evicting("volatile-lru", None), "CONFIG GET": always()},
        "run 'redis-cli CONFIG SET maxmemory-policy noeviction', the only policy allowed",
    ),
    "it evicts, as only INFO may say": (
        {
            "CONFIG GET": FORBIDDEN_62,
            "WAITAOF": KNOWN,
            "INFO memory": memory(maxmemory="9", maxmemory_policy="allkeys-lfu"),
        },
        "'allkeys-lfu' with a maxmemory",
    ),
    "it evicts, as only INFO says, and CONFIG is hidden": (
        {
            "CONFIG GET": HIDDEN,
            "WAITAOF": KNOWN,
            "INFO memory": memory(maxmemory="9", maxmemory_policy="volatile-lru"),
        },
        "'volatile-lru' with a maxmemory",
    ),
    "no file, CONFIG is forbidden": (
        {"CONFIG GET": FORBIDDEN_62, "WAITAOF": KNOWN_WITHOUT_FILE},
        "no append-only",
    ),
}
MAY_NOT_ASK = {
    "always, but not in a rewrite, WAITAOF is forbidden": (
        {"CONFIG GET": always("yes"), "WAITAOF": FORBIDDEN},
        r"set 'no-appendfsync-on-rewrite no', or grant the user '\+waitaof'",
    ),
    "7.0, CONFIG is forbidden": (
        {"CONFIG GET": FORBIDDEN_62, "WAITAOF": UNKNOWN_70},
        r"grant it '\+config\|get'",
    ),
    "everysec, WAITAOF is forbidden": (
        {"CONFIG GET": everysec(), "WAITAOF": FORBIDDEN},
        r"grant the user '\+waitaof'",
    ),
}


@pytest.mark.parametrize(("replies", "waits"), SERVES.values(), ids=SERVES.keys())
async def test_a_server_serves_if_a_reply_can_be_relied_on(
    replies: dict[str, bytes],
    waits: bool,  # noqa: FBT001 - a parameter of the table
) -> None:
    with byte_redis(replies | OLD | {"WAITAOF": KNOWN} | replies) as server:
        assert ask_blocking(server.url) is waits
        assert await ask_on_the_loop(server.url) is waits


@pytest.mark.parametrize(("replies", "why"), REFUSED.values(), ids=REFUSED.keys())
async def test_a_server_is_refused_with_what_to_change(replies: dict[str, bytes], why: str) -> None:
    with byte_redis(replies | OLD | replies) as server:
        with pytest.raises(NotDurable, match=why):
            ask_blocking(server.url)
        with pytest.raises(NotDurable, match=why):
            await ask_on_the_loop(server.url)


@pytest.mark.parametrize(("replies", "why"), MAY_NOT_ASK.values(), ids=MAY_NOT_ASK.keys())
async def test_a_user_who_may_not_find_out_is_a_setting_to_change(
    replies: dict[str, bytes], why: str
) -> None:
    with byte_redis(replies | OLD | replies) as server:
        with pytest.raises(SettingsError, match=why):
            ask_blocking(server.url)
        with pytest.raises(SettingsError, match=why):
            await ask_on_the_loop(server.url)


async def test_any_other_answer_is_passed_on() -> None:
    busy = (
        b"-BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN"
        b" NOSAVE.\r\n"
    )
    for replies in (
        {"CONFIG GET": busy},
        {"CONFIG GET": everysec(), "WAITAOF": busy},
        {LIMITS: busy, "CONFIG GET": always()},
        {"CONFIG GET": FORBIDDEN_62, "WAITAOF": KNOWN, "INFO": busy},
    ):
        with byte_redis(replies) as server:
            with pytest.raises(StoreUnavailable, match="BUSY"):
                ask_blocking(server.url)
            with pytest.raises(StoreUnavailable, match="BUSY"):
                await ask_on_the_loop(server.url)


def test_question_whether_the_server_can_be_waited_for_waits_for_nothing() -> None:
    with byte_redis({"CONFIG GET": everysec(), "WAITAOF": b"*2\r\n:1\r\n:0\r\n"}) as server:
        ask_blocking(server.url)
        assert server.asked[1] == "WAITAOF 0 0 0"


def test_with_always_and_no_eviction_two_commands_are_asked() -> None:
    with byte_redis({LIMITS: evicting("noeviction"), "CONFIG GET": always()}) as server:
        ask_blocking(server.url)
        assert server.asked == ["CONFIG GET *append*", LIMITS]
