"""What the doctor says of a server's user who may not do all that refunds need.

The grant it names is carried out.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import redis

import worker
from tests.support.cli_runner import Cli
from tests.unit.monitoring.examining import examined
from worker.monitoring.check_permissions import TRIALS
from worker.sandbox.redis_server import ThrowawayServer, running_server

PACKAGE = Path(worker.__file__).parent
EVERYTHING = ("on", ">planted", "~*", "&*", "+@all")
# The broker's and the connection's own, the ones asked elsewhere in the doctor, and what ends a
# client.
NOT_TRIED = {
    "RPOP",
    "PING",
    "INFO",
    "PIPELINE",
    "CLOSE",
    "ACLOSE",
    "CONFIG_GET",
    "EXECUTE_COMMAND",
    "EXECUTE",
    # Only the feed of events reads the stream, and no refund waits for it.
    "XREAD",
    "XRANGE",
    "XREVRANGE",
    "XLEN",
}
SPELT = {"DELETE": "DEL", "SCRIPT_LOAD": "SCRIPT LOAD", "HSCAN_ITER": "HSCAN"}


@pytest.fixture(scope="module")
def server() -> Iterator[ThrowawayServer]:
    with running_server() as running:
        yield running


@pytest.fixture
def admin(server: ThrowawayServer) -> Iterator[redis.Redis]:
    """The server's all-powerful user, with `app` able to do everything; the server is empty."""
    with redis.Redis.from_url(server.url, decode_responses=True) as client:
        client.flushall()
        client.script_flush()
        client.execute_command("ACL", "SETUSER", "app", "reset", *EVERYTHING)
        yield client


@pytest.fixture
def address(server: ThrowawayServer) -> str:
    return server.url.replace("redis://", "redis://app:planted@")


def grant(client: redis.Redis, fix: str) -> None:
    """Carry out the grant of a fix, as a person would with redis-cli."""
    words = re.search(r"ACL SETUSER (.+)$", fix)
    assert words is not None, fix
    client.execute_command("ACL", "SETUSER", *(word.strip("'") for word in words[1].split()))


def test_a_user_who_may_do_all_is_said_to_and_the_trial_leaves_nothing(
    doctor: Cli, admin: redis.Redis, address: str
) -> None:
    said = examined(doctor, REFUNDS_REDIS_URL=address)
    assert (said.of("permissions")[0], said.code) == ("ok", 0)
    assert [*admin.scan_iter("*trial*")] == []


@pytest.mark.parametrize(
    "command", [*sorted({trial[0].lower() for trial in TRIALS}), "evalsha", "script"]
)
def test_a_command_that_is_kept_from_the_user_is_named_and_the_fix_grants_it(
    doctor: Cli, admin: redis.Redis, address: str, command: str
) -> None:
    admin.execute_command("ACL", "SETUSER", "app", f"-{command}")
    said = examined(doctor, REFUNDS_REDIS_URL=address)
    state, text, fix = said.of("permissions")
    assert (state, said.code) == ("fail", 2)
    assert command.upper() in text
    assert "no refund is accepted" in text
    grant(admin, fix)
    assert examined(doctor, REFUNDS_REDIS_URL=address).code == 0


def test_a_user_of_other_keys_is_told_which_ones_are_needed(
    doctor: Cli, admin: redis.Redis, address: str
) -> None:
    admin.execute_command("ACL", "SETUSER", "app", "resetkeys", "~other:*")
    said = examined(doctor, REFUNDS_REDIS_URL=address)
    state, text, fix = said.of("permissions")
    assert (state, said.code, "keys that begin with refunds:" in text) == ("fail", 2, True)
    grant(admin, fix)
    assert examined(doctor, REFUNDS_REDIS_URL=address).of("permissions")[0] == "ok"


def test_without_info_and_command_all_is_well_and_the_rest_is_not_known(
    doctor: Cli, admin: redis.Redis, address: str
) -> None:
    admin.execute_command("ACL", "SETUSER", "app", "-info", "-command")
    said = examined(doctor, REFUNDS_REDIS_URL=address)
    assert (said.code, said.of("server")[0], said.of("disk")[0]) == (0, "warn", "ok")


def test_a_disk_that_cannot_be_asked_about_fails_and_the_fix_grants_it(
    doctor: Cli, admin: redis.Redis, address: str
) -> None:
    admin.execute_command("ACL", "SETUSER", "app", "-config")
    with suppress(redis.ResponseError):  # a server before 7.2 does not know it
        admin.execute_command("ACL", "SETUSER", "app", "-waitaof")
    said = examined(doctor, REFUNDS_REDIS_URL=address)
    state, text, fix = said.of("disk")
    assert (state, said.code, "may not read 'appendfsync'" in text) == ("fail", 2, True)
    grant(admin, fix)
    assert examined(doctor, REFUNDS_REDIS_URL=address).code == 0


@pytest.mark.usefixtures("waitaof")
def test_a_disk_that_may_not_be_waited_for_fails_and_the_fix_grants_it(
    doctor: Cli, admin: redis.Redis, address: str
) -> None:
    admin.execute_command("ACL", "SETUSER", "app", "-waitaof")
    admin.config_set("appendfsync", "everysec")
    try:
        said = examined(doctor, REFUNDS_REDIS_URL=address)
        state, text, fix = said.of("disk")
        assert (state, said.code, "may not wait for the disk" in text) == ("fail", 2, True)
        grant(admin, fix)
        assert examined(doctor, REFUNDS_REDIS_URL=address).code == 0
    finally:
        admin.config_set("appendfsync", "always")


def in_scripts() -> set[str]:
    """Every command that a script of the records calls, but for the one it can do without."""
    texts = (path.read_text("utf-8") for path in (PACKAGE / "store" / "lua").glob("*.lua"))
    return {name for text in texts for name in re.findall(r"redis\.p?call\('([A-Z]+)'", text)} - {
        "INFO"
    }


def in_python() -> set[str]:
    """Every command that is sent by a method of a store's client or of a pipeline."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        if path.is_relative_to(PACKAGE / "sandbox") or path.stem == "kombu_transport":
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                owner = node.func.value
                name = owner.attr if isinstance(owner, ast.Attribute) else getattr(owner, "id", "")
                if name == "pipeline" or (name == "redis" and isinstance(owner, ast.Attribute)):
                    found.add(node.func.attr.upper())
    return {SPELT.get(name, name) for name in found}


def test_every_command_of_scripts_and_stores_is_tried() -> None:
    tried = {trial[0] for trial in TRIALS} | {"EVALSHA", "SCRIPT LOAD"}
    used = in_scripts() | in_python() - NOT_TRIED
    assert used - tried == set()
    assert tried - used - {"EVALSHA", "ZREVRANGE"} == set()
