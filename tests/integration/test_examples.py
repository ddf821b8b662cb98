"""The examples in ops/examples, each run as its first lines say, against a real worker."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from tests.support.compose import ROOT
from tests.support.installation import Installation, until
from worker import RefundRequest
from worker.sandbox.ports import free_port

EXAMPLES = ROOT / "ops" / "examples"
# Where Debian's packages for Node are; its own Node looks there without being told.
NODE_MODULES = "/usr/share/nodejs"


def installed(name: str, program: str, check: list[str], wanted: str) -> str:
    """The path of a program that passes a check; skips with what to install if there is none."""
    path = shutil.which(program)
    environment = {**os.environ, "NODE_PATH": NODE_MODULES}
    if (
        path is None
        or subprocess.run(
            [path, *check], env=environment, check=False, capture_output=True
        ).returncode
    ):
        pytest.skip(f"{name} is not installed here: 'apt-get install {wanted}' brings it")
    return path


def celery_producer() -> list[str]:
    return [sys.executable, str(EXAMPLES / "celery_producer.py")]


def php_producer() -> list[str]:
    check = ["-r", "exit(extension_loaded('redis') ? 0 : 1);"]
    php = installed("PHP with its Redis extension", "php", check, "php-cli php-redis")
    return [php, str(EXAMPLES / "php_producer.php")]


def node_producer() -> list[str]:
    check = ["-e", "require('redis')"]
    node = installed("Node with its package redis", "node", check, "nodejs node-redis")
    return [node, str(EXAMPLES / "node_producer.js")]


@pytest.fixture(
    params=[celery_producer, php_producer, node_producer], ids=lambda made: made.__name__
)
def producer(request: pytest.FixtureRequest) -> list[str]:
    """The command of a producer without this package."""
    command: Callable[[], list[str]] = request.param
    return command()


@pytest.fixture
def producer_url(installation: Installation, tmp_path: Path) -> Iterator[str]:
    """The address of the Redis user that producers are given.

    At the end nothing may have been denied to it.
    """
    made, port = tmp_path / "users", installation.redis_url.rpartition(":")[2].partition("/")[0]
    make = [ROOT / "ops" / "redis" / "make-users", made]
    subprocess.run(
        make,
        check=True,
        env={**os.environ, "REDIS_ADDRESS": f"127.0.0.1:{port}"},
        capture_output=True,
    )
    users = (made / "redis_users").read_text("utf-8")
    (rules,) = re.findall(r"^user producer (.+)$", users, re.MULTILINE)
    with redis.Redis.from_url(installation.redis_url, decode_responses=True) as admin:
        admin.execute_command("ACL", "LOG", "RESET")
        admin.execute_command("ACL", "SETUSER", "producer", *re.findall(r"\([^)]*\)|\S+", rules))
        yield (made / "producer_redis_url").read_text("utf-8").strip()
        log: Any = admin.execute_command("ACL", "LOG")
        admin.execute_command("ACL", "DELUSER", "producer")
    assert [(entry["username"], entry["object"]) for entry in log] == []


def run(command: list[str], *arguments: str, url: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "NODE_PATH": NODE_MODULES, "REFUNDS_REDIS_URL": url}
    command = [*command, *arguments]
    return subprocess.run(
        command, env=environment, check=False, capture_output=True, text=True, timeout=120
    )


def test_a_producer_hands_in_a_refund_once_however_often_it_runs(
    installation: Installation, producer: list[str], producer_url: str
) -> None:
    installation.start("worker", "worker")
    for _ in range(2):
        ran = run(producer, "order-1001-1", "pi_1001", "500", url=producer_url)
        assert (ran.returncode, ran.stderr) == (0, "")
        record = json.loads(ran.stdout)
        assert (record["status"], record["amount"]) == ("succeeded", "500")
    assert [effect["refund_id"] for effect in installation.sandbox.effects()] == ["order-1001-1"]


def test_a_producer_reports_a_refund_that_is_rejected(
    installation: Installation, producer: list[str], producer_url: str
) -> None:
    installation.start("worker", "worker")
    ran = run(producer, "order-1001-1", "pi_1001", "-5", url=producer_url)
    assert (ran.returncode, ran.stdout) == (3, "")
    assert "amount" in ran.stderr
    assert run(producer, "order-1001-1", "pi_1001", "500", url=producer_url).returncode == 0
    ran = run(producer, "order-1001-1", "pi_1001", "700", url=producer_url)
    assert (ran.returncode, ran.stdout) == (3, "")
    assert "exists with" in ran.stderr
    assert [effect["amount"] for effect in installation.sandbox.effects()] == [500]


@pytest.mark.parametrize("amount", ["12,50", "12.50", ""])
def test_a_producer_sends_no_other_amount_for_one_that_is_not_a_whole_number(
    installation: Installation, producer: list[str], producer_url: str, amount: str
) -> None:
    installation.start("worker", "worker")
    ran = run(producer, "order-1001-1", "pi_1001", amount, url=producer_url)
    assert (ran.returncode, ran.stdout) == (3, "")
    assert "amount" in ran.stderr
    with installation.refunds() as refunds:
        assert refunds.get_many(["order-1001-1"]) == [None]


def test_a_producer_without_redis_says_that_nothing_is_known_to_be_accepted(
    producer: list[str],
) -> None:
    ran = run(producer, "order-1001-1", "pi_1001", "500", url="redis://127.0.0.1:1/0")
    assert (ran.returncode, ran.stdout) == (5, "")
    assert ran.stderr


@contextmanager
def served(
    command: list[str], environment: Mapping[str, str], port: int, folder: Path
) -> Iterator[httpx.Client]:
    """A web server that has begun to answer; ended by its id."""
    log = folder / "web.log"
    with (
        log.open("wb") as file,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client,
    ):
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=file)

        def answers() -> bool:
            assert process.poll() is None, log.read_text()
            try:
                client.get("/")
            except httpx.TransportError:
                return False
            return True

        try:
            until(answers, "the web server answers")
            yield client
        finally:
            process.terminate()
            process.wait(30)


def django_view(port: int) -> list[str]:
    return [sys.executable, str(EXAMPLES / "django_view.py"), "runserver", "--noreload", str(port)]


def flask_view(port: int) -> list[str]:
    app = str(EXAMPLES / "flask_view.py")
    return [sys.executable, "-m", "flask", "--app", app, "run", "--port", str(port)]


@pytest.mark.parametrize("view", [django_view, flask_view])
def test_a_view_hands_in_the_refund_of_an_order_once_and_shows_it(
    installation: Installation, view: Callable[[int], list[str]], tmp_path: Path
) -> None:
    installation.start("worker", "worker")
    port = free_port()
    environment = {
        name: value for name, value in installation.environment.items() if name != "REFUNDS_API_KEY"
    }
    with served(view(port), environment, port, tmp_path) as client:
        for _ in range(2):
            accepted = client.post("/orders/1001/refund")
            assert (accepted.status_code, accepted.json()["refund_id"]) == (202, "order-1001-1")
        until(
            lambda: client.get("/refunds/order-1001-1").json()["stage"] == "settled",
            "the refund is settled",
        )
        assert client.get("/refunds/order-1001-1").json()["status"] == "succeeded"
        assert client.post("/orders/9999/refund").status_code == 404
        assert client.get("/refunds/order-9999-1").status_code == 404
        assert client.get("/orders/1001/refund").status_code == 405
    assert [effect["amount"] for effect in installation.sandbox.effects()] == [500]


@pytest.mark.parametrize("view", [django_view, flask_view])
def test_a_view_reports_other_contents_and_an_absent_redis(
    installation: Installation, view: Callable[[int], list[str]], tmp_path: Path
) -> None:
    with installation.refunds() as refunds:
        refunds.submit(RefundRequest(refund_id="order-1001-1", payment_intent="pi_other", amount=1))
    port = free_port()
    with served(view(port), installation.environment, port, tmp_path) as client:
        assert client.post("/orders/1001/refund").status_code == 409
    away = installation.environment | {"REFUNDS_REDIS_URL": "redis://127.0.0.1:1/0"}
    with served(view(port), away, port, tmp_path) as client:
        for answer in (client.post("/orders/1001/refund"), client.get("/refunds/order-1001-1")):
            assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")


def cron_import(
    installation: Installation, folder: Path, url: str = "", commands: Path | None = None
) -> int:
    installed("flock, which cron_import.sh needs,", "flock", ["--version"], "util-linux")
    tools = {"PATH": f"{commands or Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment = installation.environment | tools | ({"REFUNDS_REDIS_URL": url} if url else {})
    return subprocess.run(
        [EXAMPLES / "cron_import.sh", folder], env=environment, check=False, timeout=120
    ).returncode


def names(folder: Path) -> list[str]:
    """What is in a folder, without the time that the script puts before each name."""
    return sorted(re.sub(r"^\d{8}T\d{6}Z-", "", path.name) for path in folder.iterdir())


def test_the_cron_import_hands_in_good_files_and_sets_the_others_aside(
    installation: Installation, tmp_path: Path
) -> None:
    incoming = tmp_path / "incoming"
    incoming.mkdir()
    header = "order_id,payment_intent,amount,currency\n"
    (incoming / "good.csv").write_text(header + "1,pi_1,500,usd\n2,pi_2,700,usd\n")
    (incoming / "invalid.csv").write_text(header + "3,pi_3,-5,usd\n")
    (incoming / "large.csv").write_text(header + "4,pi_4,99999999,usd\n")
    assert cron_import(installation, tmp_path) == 6
    assert names(incoming) == []
    assert names(tmp_path / "done") == ["good.csv"]
    assert names(tmp_path / "rejected") == ["invalid.csv", "invalid.csv.errors.csv"]
    assert names(tmp_path / "held") == ["large.csv"]
    installation.start("worker", "worker")
    until(
        lambda: len(installation.sandbox.effects()) == 2, "both rows of the good file are refunded"
    )
    assert sorted(effect["amount"] for effect in installation.sandbox.effects()) == [500, 700]


def test_the_cron_import_leaves_a_file_for_the_next_run_if_redis_is_away(
    installation: Installation, tmp_path: Path
) -> None:
    incoming = tmp_path / "incoming"
    incoming.mkdir()
    (incoming / "good.csv").write_text("order_id,payment_intent,amount,currency\n1,pi_1,500,usd\n")
    assert cron_import(installation, tmp_path, url="redis://127.0.0.1:1/0") == 5
    assert names(tmp_path / "working") == ["good.csv"]
    assert cron_import(installation, tmp_path) == 0
    assert names(tmp_path / "working") == []
    assert names(tmp_path / "done") == ["good.csv"]


def test_the_cron_import_loses_no_file_that_comes_under_the_name_of_the_one_it_imports(
    installation: Installation, tmp_path: Path
) -> None:
    incoming, following, commands = (tmp_path / name for name in ("incoming", "next", "bin"))
    for folder in (incoming, commands):
        folder.mkdir()
    header = "order_id,payment_intent,amount,currency\n"
    (incoming / "refunds.csv").write_text(f"{header}1,pi_1,500,usd\n")
    following.write_text(f"{header}2,pi_2,700,usd\n")
    during = f'{sys.executable} -m worker "$@" && mv {following} {incoming}/refunds.csv'
    (commands / "refunds").write_text(f"#!/bin/sh\n{during}\n")
    (commands / "refunds").chmod(0o755)
    assert cron_import(installation, tmp_path, commands=commands) == 0
    assert names(incoming) == ["refunds.csv"]
    assert cron_import(installation, tmp_path) == 0
    installation.start("worker", "worker")
    until(lambda: len(installation.sandbox.effects()) == 2, "both files are refunded")


def test_every_example_is_run_here() -> None:
    beside = Path(__file__).with_name("test_api_examples.py")
    run_here = Path(__file__).read_text("utf-8") + beside.read_text("utf-8")
    assert [
        path.name for path in EXAMPLES.iterdir() if path.is_file() and path.name not in run_here
    ] == []
