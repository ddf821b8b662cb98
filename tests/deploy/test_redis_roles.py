"""How `ops/redis/serve` and `watch` start: in the role, and with the knowledge, of their end."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support.compose import ROOT

PROGRAMS = ROOT / "ops" / "redis"
LOGIN = "sentinel auth-pass refunds word"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a server, the secrets, and a program in the place of the server."""
    for name in ("data", "secrets", "programs"):
        (tmp_path / name).mkdir()
    (tmp_path / "secrets" / "redis_replication").write_text("masteruser replica\nmasterauth word\n")
    (tmp_path / "secrets" / "sentinel_login").write_text(f"{LOGIN}\n")
    program = tmp_path / "programs" / "redis-server"
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    program.chmod(0o755)
    return tmp_path


def started(folder: Path, program: str, self_: str) -> tuple[list[str], list[str]]:
    """Return what the server is given: its words, and the lines of its file."""
    run = subprocess.run(
        [PROGRAMS / program, "--port", "7"],
        env={
            "PATH": f"{folder}/programs:/usr/bin:/bin",
            "REDIS_DATA": f"{folder}/data",
            "REDIS_SECRETS": f"{folder}/secrets",
            "REDIS_FIRST": "one:6379",
            "REDIS_SELF": self_,
        },
        check=True,
        capture_output=True,
        text=True,
        timeout=30,
    )
    file, *words = run.stdout.splitlines()
    return words, [line for line in Path(file).read_text().splitlines() if line]


def roles(folder: Path, self_: str) -> list[str]:
    words, lines = started(folder, "serve", self_)
    assert words == ["--port", "7"]
    host, _, port = self_.partition(":")
    assert {f"replica-announce-ip {host}", f"replica-announce-port {port}"} <= set(lines)
    assert {"masteruser replica", "masterauth word"} <= set(lines)
    return [line for line in lines if line.startswith("replicaof")]


def rewritten(folder: Path, name: str, *lines: str) -> None:
    (folder / "data" / name).write_text("\n".join([*lines, ""]))


def test_at_its_first_start_a_server_is_the_first_primary_or_its_replica(folder: Path) -> None:
    assert roles(folder, "one:6379") == []
    (folder / "data" / "server.conf").unlink()
    assert roles(folder, "two:6380") == ["replicaof one 6379"]


def test_a_promoted_replica_stays_the_primary_however_often_it_starts(folder: Path) -> None:
    assert roles(folder, "two:6380") == ["replicaof one 6379"]
    rewritten(folder, "server.conf", "masteruser replica", 'masterauth "old"')
    assert roles(folder, "two:6380") == []
    assert roles(folder, "two:6380") == []


def test_an_old_primary_stays_the_replica_that_it_was_made(folder: Path) -> None:
    assert roles(folder, "one:6379") == []
    rewritten(folder, "server.conf", "replicaof two 6380", 'masterauth "old"')
    assert roles(folder, "one:6379") == ["replicaof two 6380"]
    assert roles(folder, "one:6379") == ["replicaof two 6380"]


def test_nothing_that_holds_a_password_is_read_by_others(folder: Path) -> None:
    started(folder, "serve", "one:6379")
    started(folder, "watch", "three:26379")
    modes = {path.stat().st_mode & 0o777 for path in (folder / "data").iterdir()}
    assert modes == {0o600}


def test_a_sentinel_keeps_what_it_has_learned_and_takes_new_settings(folder: Path) -> None:
    words, lines = started(folder, "watch", "three:26379")
    assert words == ["--port", "7", "--sentinel"]
    assert "sentinel monitor refunds one 6379 2" in lines
    assert {LOGIN, "sentinel announce-ip three", "sentinel announce-port 26379"} <= set(lines)
    assert set((PROGRAMS / "sentinel.conf").read_text().split("\n")) - {""} <= set(lines)
    learned = [
        "sentinel myid 9f0c",
        "sentinel monitor refunds two 6380 2",
        "sentinel current-epoch 4",
        "sentinel config-epoch refunds 4",
        "sentinel leader-epoch refunds 4",
        "sentinel known-replica refunds one 6379",
        "sentinel known-sentinel refunds four 26379 8a1d",
    ]
    old = ["sentinel auth-pass refunds old", "sentinel down-after-milliseconds refunds 9"]
    rewritten(folder, "sentinel.conf", *learned, *old)
    (folder / "secrets" / "sentinel_login").write_text("sentinel auth-pass refunds new\n")
    _, again = started(folder, "watch", "three:26379")
    assert [line for line in again if line in learned] == learned
    assert "sentinel monitor refunds one 6379 2" not in again
    assert not set(old) & set(again)
    assert "sentinel auth-pass refunds new" in again
