"""`refunds serve` as a process on a real Redis: who may start it, what it answers and leaves."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.message import Message
from http.client import HTTPConnection, HTTPSConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis

from tests.support.cli_runner import PAYMENT, Cli, Records
from worker.http import running
from worker.http.webhooks import Result
from worker.model.refund import Stage, Status
from worker.model.signatures import HEADER, header
from worker.model.steps import Step
from worker.sandbox.redis_server import running_server
from worker.settings import Settings
from worker.store import saves
from worker.store.counters import WEBHOOK_RESULTS

SECRET = "whsec_4f1c0a8be7d64c2f9b35"
KEY = "sk_test_of_the_workers_only_4711"
CANARY = "canary-7f3a-customer"
SECONDS = 20


@dataclass
class Server:
    """A running `refunds serve`."""

    process: subprocess.Popen[str]
    url: str
    lines: list[str] = field(default_factory=list)

    def ask(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> tuple[int, bytes, Message]:
        parts = urlsplit(self.url)
        context = ssl._create_unverified_context()  # noqa: S323 - the test's own certificate
        client = (
            HTTPSConnection(parts.netloc, timeout=SECONDS, context=context)
            if parts.scheme == "https"
            else HTTPConnection(parts.netloc, timeout=SECONDS)
        )
        with closing(client):
            client.request(method, path, body, dict(headers or {}))
            response = client.getresponse()
            return response.status, response.read(), response.headers

    def get(self, path: str) -> int:
        return self.ask("GET", path)[0]

    def post(self, body: bytes, secret: str = SECRET) -> tuple[int, bytes, Message]:
        signature = header(secret, str(int(datetime.now(UTC).timestamp())), body)
        return self.ask("POST", "/webhooks/wooshpay", body, {HEADER: signature})

    def end(self) -> int:
        """End it without its grace period: a second signal ends that."""
        self.process.terminate()
        eventually(lambda: self.get("/ready"), 503)
        self.process.terminate()
        return self.process.wait(SECONDS)


@contextmanager
def serving(cli: Cli, *arguments: str, **more: str) -> Iterator[Server]:
    more = {"REFUNDS_WEBHOOK_SECRETS": SECRET, "REFUNDS_LOG_LEVEL": "debug", **more}
    command = [sys.executable, "-m", "worker", "serve", "--port", "0", *arguments]
    process = subprocess.Popen(command, env=cli.real(**more), stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    lines: list[str] = []
    found = threading.Event()

    def read() -> None:
        for line in process.stderr or ():
            lines.append(line)
            if "listening at" in line:
                found.set()
        found.set()

    reader = threading.Thread(target=read)
    reader.start()
    try:
        assert found.wait(SECONDS)
        address = re.search(r"listening at (\S+)", "".join(lines))
        assert address is not None, "".join(lines)
        yield Server(process, address.group(1), lines)
    finally:
        process.kill()
        process.wait()
        reader.join()
        process.stderr.close()


def an_event(refund_id: str, **fields: Any) -> bytes:
    shown = {
        "id": "re_77",
        "object": "refund",
        "payment_intent": PAYMENT,
        "status": "succeeded",
        "metadata": {"refund_id": refund_id, "refund_generation": "1"},
        "description": CANARY,
        **fields,
    }
    return json.dumps({"type": "charge.refund.updated", "data": {"object": shown}}).encode()


def in_doubt(records: Records, refund_id: str) -> None:
    """Put a refund in doubt whose reply was lost, to be read back in an hour."""
    refund = records.sending(refund_id)
    step = Step(
        to=Stage.IN_DOUBT, status=Status.PENDING, label="no_reply", delay=timedelta(hours=1)
    )
    assert records.store.run(saves.save(refund, step)).result == "saved"


def everything(url: str) -> dict[str, Any]:
    """Every key of the records and the broker, as the server would save it."""
    with redis.Redis.from_url(url) as raw:
        names = [name for name in raw.scan_iter() if name != b"refunds:counters"]
        return {name.decode(): raw.dump(name) for name in names}


def eventually(reach: Any, wanted: object) -> None:
    end = time.monotonic() + SECONDS
    while reach() != wanted and time.monotonic() < end:
        time.sleep(0.02)
    assert reach() == wanted


def test_an_event_is_noted_and_its_refund_nudged_and_nothing_settles_it(
    cli: Cli, records: Records, sync_redis: redis.Redis
) -> None:
    in_doubt(records, "order-1")
    assert sync_redis.llen("refunds") == 0
    with serving(cli) as server:
        assert server.post(an_event("order-1"))[:2] == (200, b"{}")
        eventually(lambda: sync_redis.llen("refunds"), 1)
        after = records.get("order-1")
        assert (after.status.value, after.stage.value) == ("pending", "in_doubt")
        assert sync_redis.hget("refunds:refund:order-1", "hinted") == "re_77"
        # Copies leave one candidate, and read the refund no more often.
        for _ in range(17):
            assert server.post(an_event("order-1"))[0] == 200
        assert sync_redis.hget("refunds:refund:order-1", "hinted") == "re_77"
        assert server.post(an_event("elsewhere", payment_intent="pi_other"))[0] == 200
        assert server.end() == 0
    assert sync_redis.llen("refunds") == 1
    counted = sync_redis.hmget("refunds:counters", [f"webhook:{name}" for name in WEBHOOK_RESULTS])
    assert counted == ["18", None, "1", None, None, None, None]


def test_what_is_refused_leaves_records_and_broker_equal_to_the_byte(
    cli: Cli, records: Records, sync_redis: redis.Redis
) -> None:
    in_doubt(records, "order-1")
    with serving(cli) as server:
        before = everything(cli.environment["REFUNDS_REDIS_URL"])
        assert server.post(an_event("order-1"), "whsec_of_somebody_else")[:2] == (400, b"")
        assert server.post(b"[" * 100_000)[:2] == (400, b"")
        assert server.post(b"x" * 300_000)[:2] == (413, b"")
        assert server.end() == 0
        assert everything(cli.environment["REFUNDS_REDIS_URL"]) == before
    assert sync_redis.hget("refunds:counters", "webhook:forged") == "1"
    assert sync_redis.hget("refunds:counters", "webhook:malformed") == "2"


def test_no_key_no_secret_and_no_body_is_logged_or_kept(
    cli: Cli, records: Records, tmp_path: Path
) -> None:
    in_doubt(records, "order-1")
    (tmp_path / "refunds_api_key").write_text(KEY)
    (tmp_path / "refunds_webhook_secrets").write_text(f"{SECRET}\n")
    more = {
        "REFUNDS_API_KEY": KEY,
        "REFUNDS_SECRETS_DIR": str(tmp_path),
        "REFUNDS_WEBHOOK_SECRETS": "",
        "REFUNDS_LOG_FORMAT": "json",
    }
    with serving(cli, **more) as server:
        server.post(an_event("order-1"))
        server.post(an_event("order-1"), "whsec_of_somebody_else")
        server.post(CANARY.encode())
        assert server.end() == 0
        log = "".join(server.lines)
    assert "webhook_received" in log
    assert '"result": "forged"' in log
    for secret in (KEY, SECRET, CANARY):
        assert secret not in log


def test_while_redis_is_away_the_provider_is_asked_to_repeat() -> None:
    with running_server() as redis_server:
        cli = Cli(environment={"REFUNDS_REDIS_URL": redis_server.url})
        with serving(cli) as server:
            assert (server.get("/ready"), server.get("/health")) == (200, 200)
            redis_server.kill()
            status, body, headers = server.post(an_event("order-1"))
            assert (status, body, headers["Retry-After"]) == (503, b"", "30")
            assert (server.get("/ready"), server.get("/health")) == (503, 200)
            redis_server.restart()
            assert server.post(an_event("order-1"))[0] == 200
            assert server.get("/ready") == 200


def test_at_sigterm_it_is_unready_and_still_serves_for_five_seconds(cli: Cli) -> None:
    with serving(cli) as server:
        server.process.send_signal(signal.SIGTERM)
        eventually(lambda: server.get("/ready"), 503)
        begun = time.monotonic()
        assert server.post(an_event("order-1"))[0] == 200
        assert server.process.wait(SECONDS) == 0
        assert 3 < time.monotonic() - begun < 12


def test_without_a_secret_it_names_the_setting_and_the_file(cli: Cli, tmp_path: Path) -> None:
    ran = cli("serve", "--parts", "webhooks", REFUNDS_SECRETS_DIR=str(tmp_path))
    assert (ran.code, ran.out) == (2, "")
    assert "REFUNDS_WEBHOOK_SECRETS is not set" in ran.err
    assert f"{tmp_path}/refunds_webhook_secrets" in ran.err
    (tmp_path / "refunds_webhook_secrets").write_text(f"{SECRET}\nx\n")
    ran = cli("serve", REFUNDS_SECRETS_DIR=str(tmp_path))
    assert (ran.code, "the file refunds_webhook_secrets" in ran.err) == (2, True)
    assert SECRET not in ran.err


def test_redis_away_at_the_start_is_five_and_one_that_may_forget_is_six(away: Cli) -> None:
    assert away("serve", REFUNDS_WEBHOOK_SECRETS=SECRET).code == 5
    with running_server(appendonly="no") as forgetful:
        cli = Cli(environment={"REFUNDS_REDIS_URL": forgetful.url})
        assert cli("serve", REFUNDS_WEBHOOK_SECRETS=SECRET).code == 6


def test_plain_http_for_other_machines_needs_a_decision(cli: Cli) -> None:
    ran = cli("serve", "--host", "0.0.0.0", REFUNDS_WEBHOOK_SECRETS=SECRET)  # noqa: S104 - to be refused
    assert (ran.code, "REFUNDS_ALLOW_HTTP=true" in ran.err) == (6, True)


def test_a_spool_folder_that_cannot_be_written_to_is_named(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        ran = cli("serve", "--parts", "api", REFUNDS_SPOOL_DIR=str(folder))
        assert (ran.code, ran.out) == (2, "")
        assert f"no file can be written to REFUNDS_SPOOL_DIR={folder} (" in ran.err


def test_no_tokens_are_only_allowed_on_this_machine(cli: Cli) -> None:
    more = {"REFUNDS_HTTP_AUTH": "off", "REFUNDS_ALLOW_HTTP": "true"}
    ran = cli("serve", "--host", "0.0.0.0", **more)  # noqa: S104 - to be refused
    assert (ran.code, "REFUNDS_HTTP_AUTH" in ran.err) == (6, True)


@pytest.mark.parametrize(
    ("secret", "arguments", "api", "webhooks"),
    [
        ("", [], 401, 404),
        (SECRET, [], 401, 400),
        (SECRET, ["--parts", "webhooks"], 404, 400),
        (SECRET, ["--parts", "api"], 401, 404),
        (SECRET, ["--parts", "api,webhooks"], 401, 400),
    ],
)
def test_the_parts_are_api_and_with_a_secret_webhooks(
    cli: Cli, secret: str, arguments: list[str], api: int, webhooks: int
) -> None:
    with serving(cli, *arguments, REFUNDS_WEBHOOK_SECRETS=secret) as server:
        assert server.get("/v1/refunds/order-1") == api
        assert server.ask("POST", "/webhooks/wooshpay")[0] == webhooks


def test_a_port_in_use_is_one_sentence(cli: Cli) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ran = cli.process(
            "serve", "--parts", "webhooks", "--port", port, REFUNDS_WEBHOOK_SECRETS=SECRET
        )
    assert ran.code == 2
    assert ran.err == (
        f"Error: cannot listen on 127.0.0.1:{port} (Address already in use): choose another --host"
        " or --port\n"
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["--parts", "pages"],
        ["--parts", ""],
        ["--tls-cert", "cert.pem"],
        ["--tls-key", "key.pem"],
        ["--tls-cert", "nowhere.pem", "--tls-key", "nowhere.pem"],
        ["--port", "65536"],
    ],
)
def test_a_wrong_option_is_named(cli: Cli, arguments: list[str]) -> None:
    ran = cli("serve", *arguments, REFUNDS_WEBHOOK_SECRETS=SECRET)
    assert ran.code == 2
    assert arguments[0] in ran.err


def test_the_page_without_tokens_is_refused(cli: Cli) -> None:
    ran = cli("serve", "--parts", "page", REFUNDS_HTTP_AUTH="off")
    assert (ran.code, "REFUNDS_HTTP_AUTH is off: unset it" in ran.err) == (6, True)


def test_a_header_that_no_proxy_may_send_is_warned_of(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run(_: Settings, **__: Any) -> None:
        return None

    monkeypatch.setattr(running, "run", run)
    monkeypatch.setattr("worker.process.logs.configure", lambda _: None)
    monkeypatch.setattr("worker.process.logs.log_crashes", lambda: None)
    header = {"REFUNDS_HTTP_USER_HEADER": "X-User"}
    ran = cli("serve", "--parts", "page", **header)
    assert (ran.code, "REFUNDS_HTTP_USER_HEADER is ignored" in ran.err) == (0, True)
    ran = cli("serve", "--parts", "page", **header, REFUNDS_HTTP_PROXIES="10.0.0.7")
    assert (ran.code, "is ignored" in ran.err) == (0, False)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"-----BEGIN CERTIFICATE-----\nx\n"])
def test_a_certificate_that_is_none_is_one_sentence(
    cli: Cli, tmp_path: Path, content: bytes
) -> None:
    file = tmp_path / "cert.pem"
    file.write_bytes(content)
    ran = cli(
        "serve", "--tls-cert", f"{file}", "--tls-key", f"{file}", REFUNDS_WEBHOOK_SECRETS=SECRET
    )
    assert ran.code == 2
    assert ran.err.splitlines()[-1] == (
        f"Error: --tls-cert {file} and --tls-key {file} cannot be used (they are not a certificate"
        " and its key): name a certificate in PEM and its private key without a passphrase"
    )


def test_it_speaks_tls(cli: Cli) -> None:
    pem = str(Path(__file__).parents[2] / "support" / "loopback.pem")
    with serving(cli, "--tls-cert", pem, "--tls-key", pem) as server:
        assert server.url.startswith("https://")
        assert server.get("/health") == 200
        assert server.post(an_event("order-1"))[0] == 200


def test_the_server_holds_no_api_key(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[Any] = []

    async def run(settings: Settings, **_: Any) -> None:
        held.extend([settings.api_key, os.environ.get("REFUNDS_API_KEY")])

    monkeypatch.setattr(running, "run", run)
    monkeypatch.setattr("worker.process.logs.configure", lambda _: None)
    monkeypatch.setattr("worker.process.logs.log_crashes", lambda: None)
    assert cli("serve", REFUNDS_WEBHOOK_SECRETS=SECRET, REFUNDS_API_KEY=KEY).code == 0
    assert held == [None, None]


def test_every_result_of_a_webhook_has_its_counter() -> None:
    assert [str(result) for result in Result] == [*WEBHOOK_RESULTS]
