"""The command line as a process: exit codes, pipes, terminals, signals, and what an import may
load.
"""

from __future__ import annotations

import json
import os
import pkgutil
import pty
import re
import signal
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import redis

import worker.cli
from tests.support.cli_runner import PAYMENT, Cli, Records
from worker.cli.exits import MEANINGS
from worker.cli.group import COMMANDS
from worker.sandbox.redis_server import running_server
from worker.sandbox.running import running_sandbox

SECONDS = 20
LOADED = """
import importlib, json, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
print(json.dumps([*sys.modules]))
"""


def test_the_version_is_the_distributions(cli: Cli) -> None:
    ran = cli.process("--version")
    assert (ran.code, ran.out) == (0, f"refunds {metadata.version('refund-worker')}\n")


def test_help_names_every_command_and_every_exit_code(cli: Cli) -> None:
    ran = cli.process("--help")
    assert (ran.code, ran.err) == (0, "")
    for name in COMMANDS:
        assert re.search(rf"^  {name} +\w", ran.out, re.MULTILINE)
    for code, meaning in MEANINGS.items():
        assert re.search(rf"^    {code}  {re.escape(meaning)}$", ran.out, re.MULTILINE)


@pytest.mark.parametrize("command", [*COMMANDS])
def test_every_command_explains_itself(cli: Cli, command: str) -> None:
    ran = cli(command, "--help")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith(f"Usage: refunds {command}")
    assert len(ran.out.splitlines()) > 5
    assert max(len(line) for line in ran.out.splitlines()) <= 110
    # So ends a line of a list of commands that is cut off.
    assert re.search(r"[a-z,]\.\.\.$", ran.out, re.MULTILINE) is None


@pytest.mark.parametrize(
    "arguments", [("nonsense",), ("submit",), ("submit", "a"), ("status",), ("status", "--what")]
)
def test_wrong_usage_is_2_and_says_where_help_is(cli: Cli, arguments: tuple[str, ...]) -> None:
    ran = cli(*arguments)
    assert (ran.code, ran.out) == (2, "")
    assert "--help" in ran.err
    assert "Error: " in ran.err


@pytest.mark.parametrize(
    "arguments",
    [
        ("submit", "order-1", "--payment-intent", PAYMENT),
        ("status", "order-1"),
        ("status", "order-1", "--wait", "5"),
        ("list",),
        ("list", "--batch", "b-1"),
        ("list", "--payment-intent", PAYMENT),
        ("cancel", "order-1"),
        ("review",),
        ("review", "show", "order-1"),
        ("review", "resolve", "order-1", "--resend", "--note", "x"),
        ("pause",),
        ("pause", "--batch", "b-1"),
        ("resume",),
    ],
)
def test_a_redis_that_is_away_is_5_and_one_sentence(away: Cli, arguments: tuple[str, ...]) -> None:
    ran = away(*arguments)
    sentence = (
        "error: Redis at 127.0.0.1:1 cannot be reached: start it or set REFUNDS_REDIS_URL, then run"
        " this again\n"
    )
    assert (ran.code, ran.out, ran.err) == (5, "", sentence)


def test_wrong_settings_are_2_and_name_every_variable_without_its_secret(away: Cli) -> None:
    ran = away.process(
        *("status", "order-1"),
        REFUNDS_REDIS_URL="ftp://:planted@host",
        REFUNDS_CONCURRENCY="0",
        REFUNDS_READBACK="guess",
    )
    assert (ran.code, ran.out, len(ran.err.splitlines())) == (2, "", 1)
    for name in ("REFUNDS_REDIS_URL", "REFUNDS_CONCURRENCY", "REFUNDS_READBACK"):
        assert name in ran.err
    assert "planted" not in ran.err


def test_a_fault_of_the_program_is_1_and_one_sentence_until_debug_is_asked_for(
    cli: Cli, sync_redis: redis.Redis
) -> None:
    sync_redis.set("refunds:refund:order-1", "no hash: only a fault could write this")
    ran = cli.process("status", "order-1")
    assert (ran.code, ran.out, len(ran.err.splitlines())) == (1, "", 1)
    assert ran.err.startswith("internal error: ResponseError: ")
    assert "REFUNDS_LOG_LEVEL=debug" in ran.err
    done = subprocess.run(
        [sys.executable, "-m", "worker", "status", "order-1"],
        env=cli.real(REFUNDS_LOG_LEVEL="debug"),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert (done.returncode, "Traceback (most recent call last)" in done.stderr) == (1, True)


def test_a_reader_that_goes_away_ends_the_command_without_a_word(
    cli: Cli, records: Records
) -> None:
    for number in range(100):
        records.queued(f"order-{number}", payment_intent=f"pi_{number}")
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "worker", "list", "--json"],
            env=cli.real(),
            stdout=writer,
            stderr=subprocess.PIPE,
            timeout=SECONDS,
            check=False,
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_an_interrupted_wait_says_that_nothing_stopped_and_how_to_look_again(
    cli: Cli, records: Records, sync_redis: redis.Redis
) -> None:
    records.queued("order-1")
    with sync_redis.monitor() as monitor:
        process = subprocess.Popen(
            [sys.executable, "-m", "worker", "status", "order-1", "--wait", "60"],
            env=cli.real(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        # The third look: it is waiting now.
        looks = (
            seen for seen in monitor.listen() if "HGETALL refunds:refund:order-1" in seen["command"]
        )
        for _ in range(3):
            next(looks)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=SECONDS)
    sentence = "stopped watching; the refunds continue: see them with 'refunds status order-1'\n"
    assert (process.returncode, out, err) == (130, "", sentence)


def on_terminal(cli: Cli, *arguments: str, **more: str) -> str:
    """What a command writes to a terminal of 80 columns."""
    terminal, inside = pty.openpty()
    environment = cli.real(TERM="xterm-256color", COLUMNS="80", **more)
    process = subprocess.Popen(
        [sys.executable, "-m", "worker", *arguments],
        env=environment,
        stdin=inside,
        stdout=inside,
        stderr=inside,
    )
    os.close(inside)
    shown = b""
    while True:
        try:
            part = os.read(terminal, 4096)
        except OSError:  # a terminal whose last writer has gone reads as an error
            break
        if not part:
            break
        shown += part
    os.close(terminal)
    assert process.wait(SECONDS) == 0
    return shown.decode()


def test_colour_is_for_terminals_and_not_where_no_color_is_set(cli: Cli, records: Records) -> None:
    records.succeeded("order-1")
    plain = cli.process("status", "order-1").out
    assert "\x1b[" in on_terminal(cli, "status", "order-1")
    without = on_terminal(cli, "status", "order-1", NO_COLOR="1")
    assert "\x1b[" not in without + plain
    assert "succeeded" in without


def test_a_narrow_terminal_cuts_no_id_short(cli: Cli, records: Records) -> None:
    refund_id = "order-" + "0123456789" * 12
    records.queued(refund_id)
    shown = on_terminal(cli, "list", NO_COLOR="1")
    assert "".join(line.split(" ")[0] for line in shown.splitlines()[1:]) == refund_id
    assert refund_id in cli.process("list").out


def test_a_screen_without_a_character_gets_its_number_instead_of_an_error(
    cli: Cli, records: Records
) -> None:
    records.queued("order-1")
    ran = cli.process(
        "status", "order-1", "--history", PYTHONIOENCODING="iso8859-5", PYTHONUTF8="0"
    )
    assert (ran.code, "pending \\xb7 queued" in ran.out) == (0, True)


def test_the_command_line_loads_no_provider_client() -> None:
    folder = Path(worker.cli.__file__).parent
    names = [f"worker.cli.{module.name}" for module in pkgutil.iter_modules([str(folder)])]
    assert "worker.cli.doctor" in names
    done = subprocess.run(
        [sys.executable, "-c", LOADED, *names], check=True, capture_output=True, text=True
    )
    loaded = set(json.loads(done.stdout))
    assert not loaded & {
        "httpx",
        "httpx_aiohttp",
        "aiohttp",
        "worker.provider.gateway",
        "worker.process.runtime",
    }


def test_a_worker_in_the_foreground_settles_a_refund_and_ends_with_0(
    cli: Cli, tmp_path: Path
) -> None:
    with running_sandbox() as sandbox, (tmp_path / "log").open("w+") as log:
        settings = {
            "REFUNDS_API_KEY": "sk_test_planted",
            "REFUNDS_API_URL": sandbox.url,
            "REFUNDS_READBACK": "list",
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "worker", "worker", "--concurrency", "2"],
            env=cli.real(**settings),
            stdout=subprocess.PIPE,
            stderr=log,
        )
        try:
            ran = cli(
                "submit",
                "order-1",
                "--payment-intent",
                PAYMENT,
                "--amount",
                "500",
                "--wait",
                "20",
                "--json",
            )
            assert (ran.code, ran.object["status"]) == (0, "succeeded")
            assert len(sandbox.effects("order-1")) == 1
        finally:
            process.send_signal(signal.SIGTERM)
            out, _ = process.communicate(timeout=SECONDS)
        log.seek(0)
        written = log.read()
    assert (process.returncode, out) == (0, b"")
    assert "stopped: nothing is in flight" in written
    assert "planted" not in written


def test_a_misspelt_command_is_2_and_names_the_one_that_is_near(cli: Cli) -> None:
    ran = cli("submti")
    assert (ran.code, "Did you mean 'refunds submit'?" in ran.err) == (2, True)


def test_a_sandbox_whose_ledger_cannot_be_written_is_2_and_says_so(
    cli: Cli, tmp_path: Path
) -> None:
    ran = cli("sandbox", "--ledger", str(tmp_path))
    assert (ran.code, f"--ledger {tmp_path} cannot be written" in ran.err) == (2, True)


def test_a_sandbox_is_served_with_its_own_options(cli: Cli) -> None:
    ran = cli("sandbox", "--faults", "nonsense")
    assert (ran.code, ran.out) == (2, "")
    with subprocess.Popen(
        [sys.executable, "-m", "worker", "sandbox", "--port", "0", "--latency", "1"],
        env=cli.real(),
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        stdout: Any = process.stdout
        assert stdout.readline().startswith("sandbox listening on http://127.0.0.1:")
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) == 0


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_finds_no_room_is_no_fault_of_the_program(cli: Cli, unbuffered: str) -> None:
    env = cli.real() | {"PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "w") as full:  # noqa: PTH123 - a device, and no path to be joined
        command = [sys.executable, "-m", "worker", "list", "--help"]
        done = subprocess.run(
            command,
            env=env,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: the output cannot be written (No space left on device)")


def without_stdout(cli: Cli, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command whose standard output is closed."""
    script = f'exec {sys.executable} -m worker "$@" >&-'
    command = ["/bin/sh", "-c", script, "sh", *arguments]
    return subprocess.run(
        command, env=cli.real(), stderr=subprocess.PIPE, text=True, timeout=SECONDS, check=False
    )


@pytest.mark.parametrize(
    "arguments", [("status", "order-1"), ("status", "order-1", "--json"), ("list",), ("--help",)]
)
def test_data_that_cannot_be_written_to_a_closed_output_is_an_error(
    cli: Cli, records: Records, arguments: tuple[str, ...]
) -> None:
    records.queued("order-1")
    done = without_stdout(cli, *arguments)
    assert done.returncode == 1
    assert done.stderr.startswith("error: the output cannot be written (standard output is closed)")
    assert done.stderr.count("\n") == 1


def test_command_that_writes_no_data_needs_no_output(cli: Cli) -> None:
    done = without_stdout(cli, "pause")
    assert (done.returncode, done.stderr.startswith("paused since")) == (0, True)


def test_wrong_password_is_a_setting() -> None:
    with running_server() as server, redis.Redis.from_url(server.url) as client:
        client.config_set("requirepass", "right-one")
        for url in (server.url, server.url.replace("redis://", "redis://:wrong-one@")):
            ran = Cli(environment={"REFUNDS_REDIS_URL": url})("list")
            assert (ran.code, "set the user and the password in REFUNDS_REDIS_URL" in ran.err) == (
                2,
                True,
            )


@pytest.mark.parametrize(
    "command", ["status", "cancel", "list --batch", "batch show", "pause --batch", "review show"]
)
def test_an_id_that_is_no_text_is_wrong_usage(cli: Cli, command: str) -> None:
    ran = cli(*command.split(), os.fsdecode(b"order-\xff"))
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith(
        "error: an argument or an environment variable contains a byte that is not UTF-8"
    )
