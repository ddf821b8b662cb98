"""The throw-away server and the clients that tests are given."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import redis
import redis.asyncio

from worker.errors import StoreUnavailable
from worker.sandbox import ports
from worker.sandbox import redis_server as server_module
from worker.sandbox.redis_server import ThrowawayServer, find_server, running_server


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def data_folder(server: ThrowawayServer) -> Path:
    with redis.Redis.from_url(server.url, decode_responses=True) as client:
        return Path(client.config_get("dir")["dir"])


def test_started_server_answers_as_the_process_that_was_started() -> None:
    with running_server() as server, redis.Redis.from_url(server.url) as client:
        assert client.info("server")["process_id"] == server.pid


def test_server_keeps_every_write_on_disk_and_evicts_nothing_unless_told_otherwise() -> None:
    expected = {
        "appendonly": "yes",
        "appendfsync": "always",
        "maxmemory-policy": "noeviction",
        "save": "",
    }
    with (
        running_server() as server,
        redis.Redis.from_url(server.url, decode_responses=True) as client,
    ):
        # One by one: Redis before 7 takes one pattern at a time.
        kept = {
            k: v for name in (*expected, "databases") for k, v in client.config_get(name).items()
        }
    assert kept | expected == kept
    assert kept["databases"] == "16"


def test_an_option_replaces_a_default() -> None:
    with (
        running_server(appendonly="no", hz="50") as server,
        redis.Redis.from_url(server.url, decode_responses=True) as client,
    ):
        assert client.config_get("appendonly") | client.config_get("hz") == {
            "appendonly": "no",
            "hz": "50",
        }


@pytest.mark.parametrize("allocator", [Path("/nowhere/malloc.so"), None])
def test_server_takes_its_memory_from_the_library_that_is_named_and_else_from_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allocator: Path | None
) -> None:
    # It keeps no environment to be read later; and the loader passes over a library that is not
    # there.
    noting = tmp_path / "valkey-server"
    noting.write_text(
        f'#!/bin/sh\nprintf %s "$LD_PRELOAD" >preloads\nexec {find_server()} "$@"\n',
        encoding="utf-8",
    )
    noting.chmod(0o755)
    monkeypatch.setenv(server_module.VARIABLE, str(noting))
    with ThrowawayServer(allocator) as server:
        assert server._folder is not None
        assert (server._folder / "preloads").read_text(encoding="utf-8") == str(allocator or "")


def test_killed_and_restarted_server_still_has_every_acknowledged_write() -> None:
    with (
        running_server() as server,
        redis.Redis.from_url(server.url, decode_responses=True) as client,
    ):
        url, first = server.url, server.pid
        for number in range(100):
            client.set(f"key:{number}", number)
        server.kill()
        assert not is_running(first)
        server.restart()
        assert server.url == url
        assert server.pid != first
        assert client.mget([f"key:{number}" for number in range(100)]) == [
            str(number) for number in range(100)
        ]


def test_a_running_server_restarts_with_its_data() -> None:
    with (
        running_server() as server,
        redis.Redis.from_url(server.url, decode_responses=True) as client,
    ):
        first = server.pid
        client.set("key", "kept")
        server.restart()
        assert not is_running(first)
        assert client.get("key") == "kept"


def test_stop_leaves_neither_process_nor_data() -> None:
    server = ThrowawayServer().start()
    pid, folder = server.pid, data_folder(server)
    assert folder.is_dir()
    server.stop()
    server.stop()
    assert not is_running(pid)
    assert not folder.exists()


def test_stop_ends_only_the_server_it_belongs_to(redis_server: ThrowawayServer) -> None:
    with running_server() as other:
        assert other.url != redis_server.url
    assert is_running(redis_server.pid)


def test_a_frozen_server_is_stopped_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "_STOP_SECONDS", 0.05)
    with running_server() as server:
        pid = server.pid
        os.kill(pid, signal.SIGSTOP)
    assert not is_running(pid)


def test_a_server_is_left_without_process_when_the_body_of_the_block_fails() -> None:
    def fail_inside(started: list[int]) -> None:
        with running_server() as server:
            started.append(server.pid)
            raise LookupError

    started: list[int] = []
    with pytest.raises(LookupError):
        fail_inside(started)
    assert not is_running(started[0])


def test_a_directive_the_server_does_not_know_is_told_in_its_own_words() -> None:
    with pytest.raises(StoreUnavailable, match=r"ended with 1: .*[Bb]ad directive"):
        ThrowawayServer(no_such_directive="1").start()


def test_a_port_taken_in_between_is_replaced_by_another(
    monkeypatch: pytest.MonkeyPatch, redis_server: ThrowawayServer
) -> None:
    free_port = ports.free_port
    offered = iter([redis_server.port])
    monkeypatch.setattr(server_module, "free_port", lambda: next(offered, None) or free_port())
    with running_server() as server:
        assert server.port != redis_server.port


def test_a_stopped_server_has_no_pid_and_cannot_restart() -> None:
    server = ThrowawayServer()
    with pytest.raises(StoreUnavailable, match="not running"):
        _ = server.pid
    with pytest.raises(StoreUnavailable, match="start it first"):
        server.restart()


def test_a_running_server_is_not_started_twice(redis_server: ThrowawayServer) -> None:
    with pytest.raises(StoreUnavailable, match="is already started"):
        redis_server.start()


def planted(folder: Path, name: str) -> Path:
    executable = folder / name
    executable.write_text("#!/bin/sh\n", encoding="utf-8")
    executable.chmod(0o755)
    return executable


@pytest.fixture
def unnamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The matrix of servers names one for the tests; these are about what is taken without."""
    monkeypatch.delenv(server_module.VARIABLE, raising=False)


@pytest.mark.usefixtures("unnamed")
@pytest.mark.parametrize("name", ["valkey-server", "redis-server"])
def test_a_server_on_path_changes_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = find_server()
    planted(tmp_path, name)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_server() == before
    assert before.name == "valkey-server"
    assert before.parent != tmp_path
    assert os.access(before, os.X_OK)


@pytest.mark.usefixtures("unnamed")
@pytest.mark.parametrize("name", ["valkey-server", "redis-server"])
def test_without_the_wheel_a_server_on_path_is_taken(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_path = planted(tmp_path, name)
    monkeypatch.setattr(server_module, "WHEEL", "no-such-distribution")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_server() == on_path


def test_the_server_that_is_named_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = planted(tmp_path, "redis-server")
    monkeypatch.setenv(server_module.VARIABLE, str(named))
    assert find_server() == named
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv(server_module.VARIABLE, named.name)
    assert find_server() == named


def test_a_bare_name_means_the_installed_server_and_not_one_of_a_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("scripts", "system"):
        (tmp_path / folder).mkdir()
    of_a_wheel, installed = (
        planted(tmp_path / folder, "redis-server") for folder in ("scripts", "system")
    )
    monkeypatch.setattr("worker.sandbox.redis_server.sys.prefix", "/venv")
    monkeypatch.setattr(
        "worker.sandbox.redis_server.sysconfig.get_path", lambda _: str(tmp_path / "scripts")
    )
    monkeypatch.setenv(
        "PATH", f"{tmp_path / 'scripts'}:{tmp_path / 'system'}:{tmp_path / 'missing'}"
    )
    monkeypatch.setenv(server_module.VARIABLE, "redis-server")
    assert find_server() == installed
    monkeypatch.setenv(server_module.VARIABLE, str(of_a_wheel))
    assert find_server() == of_a_wheel


def test_a_named_server_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(server_module.VARIABLE, "/nowhere/redis-server")
    with pytest.raises(
        StoreUnavailable, match="THROWAWAY_SERVER is '/nowhere/redis-server', which is not an"
    ):
        find_server()


@pytest.mark.usefixtures("unnamed")
def test_with_no_server_anywhere_the_error_names_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(server_module, "WHEEL", "no-such-distribution")
    with pytest.raises(StoreUnavailable, match=r"install redis or valkey.*refund-worker\[demo\]"):
        find_server()


@pytest.mark.parametrize("round_", [1, 2])
def test_every_test_gets_an_empty_server_that_runs_lua(round_: int, any_redis: redis.Redis) -> None:
    assert any_redis.dbsize() == 0
    assert any_redis.eval(
        "redis.call('SET', KEYS[1], ARGV[1]) return redis.call('GET', KEYS[1])", 1, "k", round_
    ) == (str(round_))


@pytest.mark.parametrize("round_", [1, 2])
async def test_every_asyncio_test_gets_an_empty_server_that_runs_lua(
    round_: int, async_any_redis: redis.asyncio.Redis
) -> None:
    assert await async_any_redis.dbsize() == 0
    script = async_any_redis.register_script(
        "redis.call('SET', KEYS[1], ARGV[1]) return redis.call('GET', KEYS[1])"
    )
    assert await script(keys=["k"], args=[round_]) == str(round_)
