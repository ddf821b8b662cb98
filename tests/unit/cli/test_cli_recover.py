"""`refunds recover`: says which instant it understood, and asks where a person can answer."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
from typing import Any

import pytest
import redis

from tests.support.cli_runner import SECONDS, Cli, Records
from worker.store import recovery


@pytest.mark.parametrize(
    ("typed", "understood"),
    [
        ("2026-01-31", "since 2026-01-31T00:00:00.000Z (no time zone was given: UTC is assumed)"),
        (
            "2026-01-31 09:30",
            "since 2026-01-31T09:30:00.000Z (no time zone was given: UTC is assumed)",
        ),
        ("2026-01-31T09:30:00+02:00", "since 2026-01-31T07:30:00.000Z"),
        ("2026-01-31T09:30:00Z", "since 2026-01-31T09:30:00.000Z"),
    ],
)
def test_the_instant_is_told_as_it_was_understood(cli: Cli, typed: str, understood: str) -> None:
    ran = cli("recover", "--since", typed, "--json")
    assert (ran.code, ran.err.splitlines()[0]) == (0, understood)


def test_a_time_that_utc_does_not_reach_is_refused_in_a_sentence(cli: Cli) -> None:
    ran = cli("recover", "--since", "0001-01-01T00:00:00+05:00")
    assert (ran.code, "must be a time such as 2026-01-31T09:00:00Z" in ran.err) == (3, True)


def test_without_a_terminal_nothing_is_asked(cli: Cli, sync_redis: redis.Redis) -> None:
    ran = cli.process("recover", "--since", "2026-01-31", REFUNDS_ACTOR="ann")
    assert (ran.code, "[y/N]" in ran.err, paused_by(sync_redis)) == (0, False, "ann (recover)")


def paused_by(client: redis.Redis) -> Any:
    return client.hget("refunds:meta", "paused_by")


def test_the_history_says_who_recovered(cli: Cli, records: Records) -> None:
    records.queued("order-1")
    assert cli("recover", "--since", "2026-01-31", REFUNDS_ACTOR="ann").code == 0
    last = records.store.history("order-1")[-1]
    assert (last["label"], last["by"]) == ("recovered", "ann")


def test_a_repeat_tells_nothing_again_of_a_refund_in_review(
    cli: Cli, records: Records, sync_redis: redis.Redis
) -> None:
    sync_redis.hset("refunds:meta", "callbacks", "1")
    records.in_review("order-1")
    assert cli("recover", "--since", "2026-01-31").code == 0
    last = records.store.history("order-1")[-1]
    assert (last["label"], last["to"]) == ("recovered", "review")
    before = records.get("order-1")
    kept = ("refunds:history:order-1", "refunds:events", "refunds:counters")
    stored = [sync_redis.dump(key) for key in kept]
    assert sync_redis.zrem("refunds:callbacks", "order-1") == 1
    assert cli("recover", "--since", "2026-01-31").code == 0
    assert records.get("order-1").version == before.version
    assert [sync_redis.dump(key) for key in kept] == stored
    assert not sync_redis.zscore("refunds:callbacks", "order-1")
    # The decision that follows does not count what was read before the repeat.
    quiet, first = records.get("order-1").quiet_at, before.quiet_at
    assert quiet is not None
    assert first is not None
    assert quiet >= first


def on_terminal(cli: Cli, answer: bytes, *options: str) -> tuple[int, str]:
    """Run it on a terminal, answer once it asks, and return its exit code and what it said
    there.
    """
    terminal, inside = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "worker", "recover", "--since", "2026-01-31", *options],
        env=cli.real(REFUNDS_ACTOR="ann"),
        stdin=inside,
        stdout=subprocess.DEVNULL,
        stderr=inside,
    )
    os.close(inside)
    said, answered = b"", False
    try:
        while select.select([terminal], [], [], SECONDS)[0]:
            try:
                said += os.read(terminal, 4096)
            except OSError:
                break
            if b"[y/N]" in said and not answered:
                answered = True
                os.write(terminal, answer)
        return process.wait(SECONDS), said.decode()
    finally:
        process.kill()
        process.wait()
        os.close(terminal)


def test_on_a_terminal_nothing_happens_before_a_yes(cli: Cli, sync_redis: redis.Redis) -> None:
    code, said = on_terminal(cli, b"n\n")
    assert (code, "pause all sending at 127.0.0.1" in said, "nothing was changed" in said) == (
        9,
        True,
        True,
    )
    assert not sync_redis.exists("refunds:meta")
    code, _ = on_terminal(cli, b"y\n")
    assert (code, paused_by(sync_redis)) == (0, "ann (recover)")


def test_yes_skips_the_question(cli: Cli, sync_redis: redis.Redis) -> None:
    code, said = on_terminal(cli, b"", "--yes")
    assert (code, "[y/N]" in said, paused_by(sync_redis)) == (0, False, "ann (recover)")


def test_an_interrupted_recovery_is_to_be_run_again_before_sending(
    cli: Cli, sync_redis: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(recovery, "_pages", interrupted)
    ran = cli("recover", "--since", "2026-01-31T09:00:00Z")
    assert (ran.code, "continue" in ran.err) == (130, False)
    assert "run the same command again before 'refunds resume'" in ran.err
    assert sync_redis.hget("refunds:meta", "paused") is not None
