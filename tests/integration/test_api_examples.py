"""The examples of the HTTP API in ops/examples and the pages' curl lines, each run against a real
server, worker and provider.
"""

from __future__ import annotations

import base64
import json
import os
import re
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.compose import ROOT
from tests.support.installation import Worker, until
from tests.support.serving import a_token, serving
from worker.callbacks.signing import headers, secret_bytes
from worker.sandbox.ports import free_port
from worker.store import callback_state

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.installation import Installation

EXAMPLES = ROOT / "ops" / "examples"
TELLING = b'{"data":{"refund_id":"order-7","status":"succeeded","version":1}}'


def installed(*programs: str) -> str:
    """The path of the first program; skips with what to install if one is missing."""
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed here: apt-get install {program}")
    return str(shutil.which(programs[0]))


def curl() -> list[str]:
    installed("curl")
    return [str(EXAMPLES / "api_refund.sh")]


def php() -> list[str]:
    return [installed("php"), str(EXAMPLES / "api_refund.php")]


def node() -> list[str]:
    return [installed("node"), str(EXAMPLES / "api_refund.js")]


@pytest.fixture(params=[curl, php, node], ids=lambda made: made.__name__)
def example(request: pytest.FixtureRequest) -> list[str]:
    command: Callable[[], list[str]] = request.param
    return command()


def run(
    command: list[str], *arguments: str, url: str, token: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*command, *arguments],
        env=os.environ | {"REFUNDS_API": url, "REFUNDS_TOKEN": token},
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_an_example_hands_in_a_refund_once_and_waits_however_often_it_runs(
    installation: Installation, example: list[str]
) -> None:
    installation.start("worker", "worker")
    token = a_token(installation)
    with serving(installation) as (_, url):
        for _ in range(2):
            ran = run(example, "order-1001-1", "pi_1001", "500", url=url, token=token)
            assert (ran.returncode, ran.stderr) == (0, "")
            refund = json.loads(ran.stdout)
            assert (refund["status"], refund["amount"]) == ("succeeded", 500)
    assert [effect["amount"] for effect in installation.sandbox.effects()] == [500]


def test_an_example_reports_what_is_refused_and_what_is_not_known_to_be_accepted(
    installation: Installation, example: list[str]
) -> None:
    token = a_token(installation)
    order = ("order-1001-1", "pi_1001", "500")
    # It tries again for seconds, and the others run meanwhile.
    with (
        ThreadPoolExecutor() as beside,
        serving(installation) as (_, url),
    ):
        away = beside.submit(run, example, *order, url="http://127.0.0.1:1", token=token)
        ran = run(example, "order-1001-1", "pi_1001", "-5", url=url, token=token)
        assert (ran.returncode, ran.stdout) == (3, "")
        assert json.loads(ran.stderr)["errors"][0]["field"] == "amount"
        ran = run(example, *order, url=url, token="rfw_wrong")
        assert (ran.returncode, json.loads(ran.stderr)["status"]) == (3, 401)
        ran = away.result()
    assert (ran.returncode, ran.stdout) == (5, "")
    assert ran.stderr
    assert installation.sandbox.effects() == []


@pytest.mark.parametrize("amount", ["12,50", "12.50", ""])
def test_an_example_sends_no_other_amount_for_one_that_is_not_a_whole_number(
    installation: Installation, example: list[str], amount: str
) -> None:
    token = a_token(installation)
    with serving(installation) as (_, url):
        ran = run(example, "order-1001-1", "pi_1001", amount, url=url, token=token)
    assert (ran.returncode, ran.stdout) == (3, "")
    with installation.refunds() as refunds:
        assert refunds.get_many(["order-1001-1"]) == [None]


class BreaksOff(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.send_response(202)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b'{"refund_id": "order-1001-1", "sta')
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


def test_an_example_whose_answer_breaks_off_says_that_nothing_is_known(example: list[str]) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), BreaksOff) as server, ThreadPoolExecutor() as beside:
        beside.submit(server.serve_forever)
        url = f"http://127.0.0.1:{server.server_port}"
        try:
            ran = run(example, "order-1001-1", "pi_1001", "500", url=url, token="rfw_any")
        finally:
            server.shutdown()
    assert (ran.returncode, ran.stdout) == (5, "")
    assert ran.stderr
    assert "stack trace" not in ran.stderr.lower()


def a_secret() -> str:
    return "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()


def signed(*keys: str, body: bytes = TELLING, age: int = 0) -> dict[str, str]:
    made = [secret_bytes(key) for key in keys]
    return dict(headers([key for key in made if key], "msg_example", int(time.time()) - age, body))


def test_the_shell_example_accepts_a_genuine_callback_and_no_other() -> None:
    installed("openssl")
    secret, other = a_secret(), a_secret()

    def verified(given: dict[str, str], body: bytes = TELLING) -> bool:
        return (
            subprocess.run(
                [EXAMPLES / "api_refund.sh", "verify", *given.values()],
                env=os.environ | {"CALLBACK_SECRET": secret},
                input=body,
                check=False,
                timeout=30,
            ).returncode
            == 0
        )

    assert verified(signed(secret))
    assert verified(signed(other, secret)), "while a secret is replaced"
    assert not verified(signed(other))
    assert not verified(signed(secret), TELLING + b" ")
    assert not verified(signed(secret, age=400))


def php_receiver(port: int) -> list[str]:
    return [installed("php"), "-S", f"127.0.0.1:{port}", str(EXAMPLES / "api_refund.php")]


def node_receiver(port: int) -> list[str]:
    return [*node(), "receive", str(port)]


@contextmanager
def receiving(command: list[str], port: int, secret: str, folder: Path) -> Iterator[Worker]:
    log = folder / "shop.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, env=os.environ | {"CALLBACK_SECRETS": secret}, stdout=file, stderr=file
        )
    shop = Worker(process, log)
    try:
        until(lambda: posted(port, {}) == 400, "the receiver answers")
        yield shop
    finally:
        shop.kill()


def posted(port: int, given: dict[str, str], body: bytes = TELLING) -> int:
    """Return the status of a callback's answer; 0 if there is none."""
    with closing(HTTPConnection("127.0.0.1", port, timeout=30)) as client:
        try:
            client.request("POST", "/", body, given)
            return client.getresponse().status
        except ConnectionError:
            return 0


@pytest.mark.parametrize("receiver", [php_receiver, node_receiver])
def test_a_receiver_learns_of_a_refund_and_refuses_what_is_not_genuine(
    installation: Installation, receiver: Callable[[int], list[str]]
) -> None:
    port, secret, folder = free_port(), a_secret(), installation.folder
    command = receiver(port)
    (folder / "callback_shop").write_text(secret)
    (folder / "callbacks.toml").write_text(
        f'[[endpoints]]\nname = "shop"\nurl = "http://127.0.0.1:{port}/"\nallow_private = true\n'
    )
    installation.settings |= {
        "REFUNDS_CALLBACKS_FILE": str(folder / "callbacks.toml"),
        "REFUNDS_SECRETS_DIR": str(folder),
    }
    token = a_token(installation)
    with installation.refunds() as refunds:
        callback_state.turn_on(refunds.store, "ann")
    with receiving(command, port, secret, folder) as shop:
        installation.start("worker", "worker")
        with serving(installation) as (_, url):
            ran = run(curl(), "order-1001-1", "pi_1001", "500", url=url, token=token)
            assert ran.returncode == 0
        until(lambda: "order-1001-1 succeeded version" in shop.said, "the shop holds the refund")
        assert posted(port, signed(secret)) == 204
        assert posted(port, signed(a_secret(), secret)) == 204
        assert posted(port, signed(a_secret())) == 400
        assert posted(port, signed(secret), TELLING + b" ") == 400
        assert posted(port, signed(secret, age=400)) == 400


def curl_lines() -> list[str]:
    """The curl commands of the first block of them in the page about HTTP."""
    text = (ROOT / "ops" / "docs" / "http.md").read_text("utf-8").replace("\\\n", " ")
    block = next(
        block
        for block in re.findall(r"^```sh$(.+?)^```$", text, re.DOTALL | re.MULTILINE)
        if "curl " in block
    )
    return re.findall(r"^curl .+$", block, re.MULTILINE)


def test_the_four_curl_lines_of_the_page_create_a_refund_and_show_it(
    installation: Installation,
) -> None:
    installed("curl")
    installation.start("worker", "worker")
    token = a_token(installation)
    lines = curl_lines()
    with serving(installation) as (_, url):

        def answer(line: str) -> Any:
            ran = subprocess.run(
                ["/bin/sh", "-c", line.replace("http://127.0.0.1:8080", url)],
                env=os.environ | {"TOKEN": token},
                check=True,
                capture_output=True,
                timeout=60,
            )
            return json.loads(ran.stdout)

        created, read, history, canceled = map(answer, lines)
    assert created["refund_id"] == read["refund_id"] == "order-1001-1"
    assert read["status"] == "succeeded"
    assert history["data"][-1]["to"] == "settled"
    assert canceled["code"] == "not_cancelable", "it has been paid"
    assert [effect["amount"] for effect in installation.sandbox.effects()] == [500]
