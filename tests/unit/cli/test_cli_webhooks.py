"""`refunds webhooks setup`: one endpoint for each URL, and a secret that is shown once."""

from __future__ import annotations

import base64
import json
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.support.cli_runner import Cli, Records
from worker.cli.webhooks import SECRET_FILE
from worker.settings import Settings
from worker.store import audit, flags

URL = "https://refunds.example.com/webhooks/wooshpay"
KEY = "sk_test_endpoints_4711"
SECRET = "whsec_4f1c0a8be7d64c2f9b35"


@dataclass
class Provider:
    """A provider that registers endpoints; `answer` is its status and body, or None to hang up."""

    answer: tuple[int, Any] | None = (
        200,
        {"id": "we_1", "object": "webhook_endpoint", "secret": SECRET},
    )
    requests: list[dict[str, Any]] = field(default_factory=list)
    url: str = ""


@contextmanager
def running(provider: Provider) -> Iterator[Provider]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            provider.requests.append(
                {"path": self.path, "key": self.headers["Authorization"], "body": json.loads(body)}
            )
            if provider.answer is None:
                self.close_connection = True
                return
            status, answer = provider.answer
            sent = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent)

        def log_message(self, *_: Any) -> None:
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    provider.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield provider
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def provider() -> Iterator[Provider]:
    with running(Provider()) as started:
        yield started


@pytest.fixture
def shop(cli: Cli, provider: Provider) -> Cli:
    mine = {"REFUNDS_API_URL": provider.url, "REFUNDS_API_KEY": KEY}
    return Cli(environment=cli.environment | mine)


def test_it_registers_the_url_for_refunds_and_shows_the_secret_once(
    shop: Cli, provider: Provider, records: Records
) -> None:
    ran = shop("webhooks", "setup", URL)
    assert (ran.code, ran.out) == (0, f"{SECRET}\n")
    assert SECRET not in ran.err
    assert f"registered {URL} as we_1" in ran.err
    assert provider.requests == [
        {
            "path": "/v1/webhook_endpoints",
            "key": f"Basic {base64.b64encode(f'{KEY}:'.encode()).decode()}",
            "body": {"url": URL, "enabled_events": ["charge.refund.updated"]},
        }
    ]
    assert flags.webhook_endpoints(records.store) == {URL: "we_1"}
    assert SECRET not in str(records.store.redis.hgetall("refunds:meta"))
    (noted,) = audit.entries(records.store)
    assert (noted.deed.action, noted.deed.target, noted.result) == ("webhooks setup", URL, "done")


def test_a_second_time_is_refused_unless_it_is_wanted(shop: Cli, provider: Provider) -> None:
    assert shop("webhooks", "setup", URL).code == 0
    ran = shop("webhooks", "setup", URL)
    assert ran.code == 6
    assert "is registered already, as we_1" in ran.err
    assert len(provider.requests) == 1
    assert shop("webhooks", "setup", URL, "--again").code == 0
    assert shop("webhooks", "setup", URL.replace("/webhooks", "/2/webhooks")).code == 0
    assert len(provider.requests) == 3


def test_write_adds_the_secret_to_the_file_for_its_owner_only(
    shop: Cli, provider: Provider, tmp_path: Path
) -> None:
    folder = {"REFUNDS_SECRETS_DIR": str(tmp_path)}
    file = tmp_path / "refunds_webhook_secrets"
    ran = shop("webhooks", "setup", URL, "--write", **folder)
    assert (ran.code, ran.out) == (0, "")
    assert SECRET not in ran.err
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    provider.answer = (200, {"id": "we_2", "secret": f"{SECRET}-2"})
    ran = shop("webhooks", "setup", URL, "--write", "--again", "--json", **folder)
    assert ran.object == {"url": URL, "endpoint_id": "we_2", "secret_file": str(file)}
    assert file.read_text() == f"{SECRET}\n{SECRET}-2\n"
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_as_json_it_is_one_object(shop: Cli) -> None:
    ran = shop("webhooks", "setup", URL, "--json")
    assert ran.object == {"url": URL, "endpoint_id": "we_1", "secret": SECRET}


def test_write_is_refused_before_anything_is_registered_if_it_cannot_write(
    shop: Cli, provider: Provider, tmp_path: Path
) -> None:
    assert shop("webhooks", "setup", URL, "--write").code == 2
    folder = {"REFUNDS_SECRETS_DIR": str(tmp_path)}
    hidden = shop("webhooks", "setup", URL, "--write", REFUNDS_WEBHOOK_SECRETS=SECRET, **folder)
    assert (hidden.code, "hides the file" in hidden.err) == (2, True)
    lines = "".join(f"{SECRET}-{number}\n" for number in range(4))
    (tmp_path / "refunds_webhook_secrets").write_text(lines)
    full = shop("webhooks", "setup", URL, "--write", **folder)
    assert (full.code, "holds 4 secrets" in full.err) == (6, True)
    assert provider.requests == []


def test_if_the_file_cannot_be_written_after_all_the_secret_is_shown(
    shop: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("worker.cli.webhooks.os.fsync", full)
    ran = shop("webhooks", "setup", URL, "--write", REFUNDS_SECRETS_DIR=str(tmp_path))
    assert (ran.code, ran.out) == (0, f"{SECRET}\n")
    assert "cannot be written (No space left on device)" in ran.err


def test_a_reply_without_a_secret_is_registered_and_says_where_to_find_it(
    shop: Cli, provider: Provider, records: Records
) -> None:
    for secret in (None, "x", 7):
        provider.answer = (200, {"id": "we_1", "secret": secret})
        ran = shop("webhooks", "setup", URL, "--again")
        assert (ran.code, ran.out) == (0, "")
        assert "copy it from the provider's dashboard" in ran.err
    assert flags.webhook_endpoints(records.store) == {URL: "we_1"}


@pytest.mark.parametrize(
    ("answer", "code", "words"),
    [
        ((401, {}), 2, "refuses the API key"),
        ((403, {}), 2, "refuses the API key"),
        ((400, {"error": {"message": "Invalid\nURL"}}), 3, "HTTP 400, Invalid URL"),
        ((422, b"<html>"), 3, "HTTP 422)"),
        ((429, {}), 5, "registered nothing now"),
        ((500, {}), 5, "may be registered"),
        ((302, {}), 5, "may be registered"),
        ((200, b"{"), 5, "may be registered"),
        ((200, []), 5, "may be registered"),
        ((200, {"id": "../we"}), 5, "may be registered"),
        ((200, b"x" * 2_000_000), 5, "may be registered"),
        (None, 5, "may be registered"),
    ],
)
def test_an_answer_that_registers_nothing_for_sure_is_one_sentence(
    shop: Cli, provider: Provider, records: Records, answer: Any, code: int, words: str
) -> None:
    provider.answer = answer
    ran = shop("webhooks", "setup", URL)
    assert (ran.code, ran.out, words in ran.err) == (code, "", True), ran.err
    assert len(provider.requests) == 1
    assert flags.webhook_endpoints(records.store) == {}


def test_a_provider_away_registers_nothing(cli: Cli) -> None:
    ran = cli("webhooks", "setup", URL, REFUNDS_API_KEY=KEY, REFUNDS_API_URL="http://127.0.0.1:1")
    assert (ran.code, "nothing was registered" in ran.err) == (5, True)


def test_redis_away_registers_nothing(away: Cli, provider: Provider) -> None:
    mine = {"REFUNDS_API_URL": provider.url, "REFUNDS_API_KEY": KEY}
    assert away("webhooks", "setup", URL, **mine).code == 5
    assert provider.requests == []


@pytest.mark.parametrize(
    ("more", "code"),
    [
        ({"REFUNDS_API_KEY": ""}, 2),
        ({"REFUNDS_API_KEY": "sk_live_endpoints_4711"}, 6),
        ({"REFUNDS_API_URL": "http://provider.example.com"}, 6),
    ],
)
def test_the_guards_on_the_key_hold_here_too(
    shop: Cli, provider: Provider, more: dict[str, str], code: int
) -> None:
    assert shop("webhooks", "setup", URL, **more).code == code
    assert provider.requests == []


def test_records_of_another_provider_are_refused(
    shop: Cli, provider: Provider, records: Records
) -> None:
    records.store.redis.hset("refunds:meta", mapping={"provider_host": "other", "mode": "test"})
    ran = shop("webhooks", "setup", URL)
    assert (ran.code, "belong to other in test mode" in ran.err) == (6, True)
    assert provider.requests == []


@pytest.mark.parametrize(
    "url",
    [
        "refunds.example.com/webhooks",
        "ftp://refunds.example.com/",
        "http://refunds.example.com/webhooks/wooshpay",
        "https://user:password@refunds.example.com/",
        "https://refunds.example.com/?secret=1",
        "https://refunds.example.com/#top",
        "https://refunds.example.com:99999/",
        "https://re funds.example.com/",
        "https://",
        "https://refunds.example.com/" + "x" * 2000,
    ],
)
def test_an_address_that_cannot_be_one_is_refused_unsent(
    shop: Cli, provider: Provider, url: str
) -> None:
    assert shop("webhooks", "setup", url).code == 2
    assert provider.requests == []


def test_the_file_is_the_one_that_the_settings_read() -> None:

    assert SECRET_FILE.removeprefix("refunds_") in Settings.model_fields


@pytest.mark.parametrize("wrong", [f"{URL}/", "https://example.com/foo", "https://example.com"])
def test_a_path_at_which_no_events_are_received_is_refused(
    shop: Cli, provider: Provider, wrong: str
) -> None:
    ran = shop("webhooks", "setup", wrong)
    assert ran.code == 2
    assert "must end with the path /webhooks/wooshpay" in ran.err
    assert provider.requests == []
