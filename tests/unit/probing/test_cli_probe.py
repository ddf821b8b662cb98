"""`refunds probe`: what it says, asks, spends and keeps, and what it refuses before a byte is
sent.
"""

from __future__ import annotations

import http.server
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import pytest
import redis

from tests.support.cli_runner import SECONDS, Cli, Records
from tests.unit.probing.asking import KEY, moved, posts
from worker.probing import kept as probing_kept
from worker.sandbox.running import Sandbox
from worker.settings import Settings
from worker.store.store import Store

PI = ("--payment-intent", "pi_1")
RUN = (
    "from worker.cli import group\ngroup.COMMANDS['probe'] = group.Entry('worker.cli.probe',"
    " 'probe', '')\ngroup.main()"
)
QUICK = "from worker.probing import probe\nprobe.PAUSE_SECONDS = 0.01\n" + RUN
WATCHED = (
    "import sys\nsys.addaudithook(lambda event, _: event in {'socket.connect',"
    " 'socket.getaddrinfo', 'socket.sendto'} and print('TOUCHED', event, flush=True))\n" + RUN
)


def test_it_says_what_it_will_spend_shows_what_it_saw_and_keeps_the_answers(
    cli: Cli, sandbox: Sandbox, sync_redis: redis.Redis
) -> None:
    ran = cli("probe", *PI, "--yes", "--amount", "2")
    assert ran.code == 0
    for part in (
        "2 minor units in total if idempotency keys work",
        "6 minor units if they do not",
        "never more than 12",
    ):
        assert part in ran.err
    for part in (
        "what was seen",
        "recommended settings",
        "REFUNDS_IDEMPOTENCY=trust",
        "now verify",
        "not seen",
    ):
        assert part in ran.out
    assert (moved(sandbox), "2 minor units of usd refunded with 3 requests: re_" in ran.err) == (
        2,
        True,
    )
    assert KEY not in ran.out + ran.err
    # Nothing but the answers is written: the test refunds stand in no record.
    assert [*sync_redis.scan_iter("*")] == ["refunds:meta"]
    kept: Any = sync_redis.hgetall("refunds:meta")
    assert set(kept) == {"probe_at", "probe_host", "probe_results"}
    assert kept["probe_host"] == sandbox.url.removeprefix("http://")
    assert abs(time.time() - int(kept["probe_at"]) / 1000) < SECONDS
    assert KEY not in str(kept)


def test_the_answers_are_one_object_for_programs_and_can_be_read_again(
    cli: Cli, sync_redis: redis.Redis
) -> None:
    shown = cli("probe", *PI, "--yes", "--json").object
    assert shown["findings"]["key_honoured"]["answer"] == "yes"
    assert shown["settings"] == {
        "REFUNDS_IDEMPOTENCY": "trust",
        "REFUNDS_READBACK": "list",
        "REFUNDS_TOTALS": "hint",
        "REFUNDS_KEY_WINDOW_HOURS": "23",
    }
    assert (shown["spent"], shown["may_have_been_spent"], shown["posts"], shown["kept"]) == (
        1,
        0,
        3,
        True,
    )
    kept = probing_kept.read(Store(sync_redis))
    assert kept is not None
    assert {question.value: found.evidence for question, found in kept.findings.items()} == {
        name: found["evidence"] for name, found in shown["findings"].items()
    }


@pytest.mark.parametrize(
    ("payment", "faults", "code"),
    [
        ("pi_declined", "", 3),
        ("pi_1", "http_401:on=any", 2),
        ("pi_1", "http_500_before", 5),
        ("../x", "", 3),
    ],
)
def test_what_came_to_no_end_is_not_kept(
    cli: Cli, sandbox: Sandbox, sync_redis: redis.Redis, payment: str, faults: str, code: int
) -> None:
    sandbox.set_faults(faults)
    ran = cli("probe", "--payment-intent", payment, "--yes")
    assert (ran.code, moved(sandbox)) == (code, 0)
    assert "error: " in ran.err or "payment_intent" in ran.err
    assert not sync_redis.exists("refunds:meta")


def test_an_earlier_answer_outlives_a_probe_that_came_to_no_end(
    cli: Cli, sandbox: Sandbox, sync_redis: redis.Redis
) -> None:
    cli("probe", *PI, "--yes")
    before = sync_redis.hgetall("refunds:meta")
    sandbox.set_faults("http_500_before")
    assert cli("probe", *PI, "--yes").code == 5
    assert sync_redis.hgetall("refunds:meta") == before


def test_a_provider_or_a_redis_that_is_away_is_5_and_spends_nothing(
    cli: Cli, sandbox: Sandbox
) -> None:
    assert cli("probe", *PI, "--yes", REFUNDS_API_URL="http://127.0.0.1:9").code == 5
    assert cli("probe", *PI, "--yes", REFUNDS_REDIS_URL="redis://127.0.0.1:1/0").code == 5
    assert posts(sandbox) == []


@pytest.mark.parametrize("amount", ["0", "4", "-1", "1.5"])
def test_no_more_than_a_few_minor_units_can_be_asked_for(
    cli: Cli, sandbox: Sandbox, amount: str
) -> None:
    assert (cli("probe", *PI, "--yes", "--amount", amount).code, sandbox.requests()) == (2, [])


def test_a_payment_of_our_own_is_not_disturbed(
    cli: Cli, sandbox: Sandbox, sync_redis: redis.Redis
) -> None:
    records = Records(store=Store(sync_redis))
    records.queued("order-1", payment_intent="pi_1")
    ran = cli("probe", *PI, "--yes")
    assert (ran.code, "order-1 is in progress on pi_1" in ran.err, sandbox.requests()) == (
        6,
        True,
        [],
    )
    records.succeeded("order-2", payment_intent="pi_2")
    assert cli("probe", "--payment-intent", "pi_2", "--yes").code == 0


def test_without_a_terminal_it_wants_to_be_told(cli: Cli, sandbox: Sandbox) -> None:
    ran = cli("probe", *PI)
    assert (ran.code, "add --yes" in ran.err, sandbox.requests()) == (2, True, [])


REAL_MONEY = (
    {"REFUNDS_API_KEY": "sk_live_planted", "REFUNDS_LIVE": "true"},
    {"REFUNDS_API_URL": "https://api.wooshpay.com", "REFUNDS_LIVE": "true"},
    {"REFUNDS_API_URL": "https://API.wooshpay.com:8443/", "REFUNDS_LIVE": "true"},
    {"REFUNDS_API_KEY": "sk_live_planted"},
    {"REFUNDS_API_KEY": "rk_live_planted", "REFUNDS_LIVE": "true"},
    {"REFUNDS_API_URL": "https://api.wooshpay.com.", "REFUNDS_LIVE": "true"},
    {"REFUNDS_API_URL": "https://api.wooshpay.com"},
    {"REFUNDS_API_KEY": "planted"},
)


@pytest.mark.parametrize("settings", REAL_MONEY)
def test_what_could_move_real_money_is_refused(
    cli: Cli, sandbox: Sandbox, settings: dict[str, str]
) -> None:
    ran = cli("probe", *PI, "--yes", **settings)
    assert (ran.code, ran.out, "nothing was sent" in ran.err, sandbox.requests()) == (
        6,
        "",
        True,
        [],
    )


@pytest.mark.parametrize("settings", REAL_MONEY[:3])
def test_nothing_is_touched_with_what_could_move_real_money(
    cli: Cli, settings: dict[str, str]
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, "probe", *PI, "--yes"],
        env=cli.real(**settings),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert (done.returncode, done.stdout) == (6, "")
    assert "nothing was sent" in done.stderr
    assert "planted" not in done.stderr


def test_the_watch_of_the_test_before_sees_a_probe_that_may_run(cli: Cli) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, "probe", *PI, "--yes"],
        env=cli.real(REFUNDS_REDIS_URL="redis://127.0.0.1:1/0"),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert (done.returncode, "TOUCHED socket.connect" in done.stdout) == (5, True)


class LivePayment(http.server.BaseHTTPRequestHandler):
    """A provider whose payments say that they are live."""

    methods: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.methods.append("GET")
        body = json.dumps(
            {"id": "pi_1", "livemode": True, "currency": "usd", "amount_refunded": 0}
        ).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.methods.append("POST")
        self.send_error(500)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def test_a_payment_that_says_it_is_live_is_refused_unsent(cli: Cli) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), LivePayment) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            ran = cli(
                "probe", *PI, "--yes", REFUNDS_API_URL=f"http://127.0.0.1:{server.server_port}"
            )
        finally:
            server.shutdown()
            thread.join()
    assert (ran.code, "as live, and a probe" in ran.err) == (6, True)
    assert set(LivePayment.methods) == {"GET"}


@contextmanager
def on_terminal(
    cli: Cli, *arguments: str
) -> Iterator[tuple[subprocess.Popen[bytes], Callable[[str], str], int]]:
    """A command on a terminal: the process, what reads until words are shown ('' for its end), and
    the terminal.
    """
    terminal, inside = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", QUICK, *arguments],
        env=cli.real(TERM="xterm", COLUMNS="100", NO_COLOR="1"),
        stdin=inside,
        stdout=inside,
        stderr=inside,
        start_new_session=True,
    )
    os.close(inside)
    shown = bytearray()

    def read_until(words: str) -> str:
        while not words or words.encode() not in shown:
            assert select.select([terminal], [], [], SECONDS)[0], (
                f"said nothing more after {shown.decode()!r}"
            )
            try:
                part = os.read(terminal, 4096)
            except OSError:  # a terminal whose last writer has gone reads as an error
                break
            if not part:
                break
            shown.extend(part)
        return shown.decode().replace("\r\n", "\n")

    try:
        yield process, read_until, terminal
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(SECONDS)
        os.close(terminal)


def test_yes_on_a_terminal_spends_and_no_does_not(
    cli: Cli, sandbox: Sandbox, sync_redis: redis.Redis
) -> None:
    with on_terminal(cli, "probe", *PI) as (process, read_until, terminal):
        read_until("[y/N]")
        assert sandbox.requests() == []
        os.write(terminal, b"n\n")
        assert read_until("").endswith("nothing was sent\n")
        assert process.wait(SECONDS) == 9
    assert (sandbox.requests(), sync_redis.exists("refunds:meta")) == ([], 0)
    with on_terminal(cli, "probe", *PI) as (process, read_until, terminal):
        read_until("[y/N]")
        os.write(terminal, b"y\n")
        assert "REFUNDS_IDEMPOTENCY=trust" in read_until("")
        assert process.wait(SECONDS) == 0
    assert (moved(sandbox), sync_redis.exists("refunds:meta")) == (1, 1)


def test_ctrl_c_at_the_question_leaves_nothing(
    cli: Cli, sandbox: Sandbox, sync_redis: redis.Redis
) -> None:
    with on_terminal(cli, "probe", *PI) as (process, read_until, terminal):
        read_until("[y/N]")
        process.send_signal(signal.SIGINT)
        # Noted between the question and the read, the key ends nothing yet: a person presses it
        # again.
        while not select.select([terminal], [], [], 1)[0]:
            process.send_signal(signal.SIGINT)
        assert read_until("").endswith("nothing was sent\n")
        assert process.wait(SECONDS) == 130
    assert (sandbox.requests(), sync_redis.exists("refunds:meta")) == ([], 0)


def test_ctrl_c_on_the_way_says_what_may_have_been_spent(
    cli: Cli, sandbox: Sandbox, sync_redis: redis.Redis
) -> None:
    sandbox.set_faults("timeout_after:times=1")
    with on_terminal(cli, "probe", *PI, "--yes") as (process, read_until, _):
        end = time.monotonic() + SECONDS
        while not sandbox.effects() and time.monotonic() < end:
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        said = read_until("")
        assert process.wait(SECONDS) == 130
    assert re.search(r"up to 1 minor unit may have been refunded, under probe-\S+-…\n$", said), said
    assert (moved(sandbox), sync_redis.exists("refunds:meta")) == (1, 0)


def test_answers_of_another_version_show_nothing(sync_redis: redis.Redis) -> None:
    store = Store(sync_redis)
    assert probing_kept.read(store) is None
    for results in (
        "{}",
        "nonsense",
        '{"findings": {"unheard_of": {"answer": "yes", "evidence": ""}}}',
        "[]",
    ):
        sync_redis.hset(
            "refunds:meta", mapping={"probe_at": "1", "probe_host": "x", "probe_results": results}
        )
        assert probing_kept.read(store) is None


def test_live_trust_without_answers_is_warned_of_and_test_trust_is_not() -> None:
    live = Settings.load(
        api_key="sk_live_x", live=True, api_url="https://api.wooshpay.com", idempotency="trust"
    )
    assert "REAL MONEY" in (probing_kept.live_warning(live, None) or "")
    assert (
        probing_kept.live_warning(Settings.load(api_key="sk_test_x", idempotency="trust"), None)
        is None
    )
    careful = Settings.load(api_key="sk_live_x", live=True, api_url="https://api.wooshpay.com")
    assert probing_kept.live_warning(careful, None) is None
