"""The Redis users of compose: each can do what its role does, as real processes show, and nothing
else.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.exceptions import NoPermissionError

from tests.deploy.asking import ask
from tests.deploy.conftest import PASSWORD, Installation
from tests.support.cli_runner import Ran
from tests.support.compose import ROOT, until
from tests.support.installation import Installation as Shop
from worker.client import Refunds
from worker.model.callers import Scope
from worker.model.signatures import HEADER, header
from worker.monitoring.check_permissions import TRIALS
from worker.sandbox.config import SandboxConfig
from worker.sandbox.redis_server import running_server
from worker.sandbox.running import running_sandbox
from worker.settings import Settings
from worker.store import tokens
from worker.store.sentinels import SentinelAddress

RULES = ROOT / "ops" / "redis" / "users.acl"
MAKE = ROOT / "ops" / "redis" / "make-users"
ROLES = ["worker", "producer", "metrics", "flower", "keda"]
HARM = [
    "FLUSHALL",
    "KEYS *",
    "CONFIG SET maxmemory 1",
    "SHUTDOWN NOSAVE",
    "SCRIPT FLUSH",
    "ACL LIST",
]
FORBIDDEN = {
    "default": ["HGETALL refunds:meta", "LPUSH refunds x", *HARM],
    "worker": ["SET elsewhere 1", "PUBLISH elsewhere x", *HARM],
    "producer": [
        "BRPOP refunds 1",
        "RPOP refunds",
        "HGETALL unacked",
        "SET elsewhere 1",
        "EVAL return 0",
        *HARM,
    ],
    "metrics": [
        "HSET refunds:meta paused 1",
        "LPUSH refunds x",
        "DEL refunds:due",
        "EVALSHA 0 0",
        *HARM,
    ],
    "keda": ["LPUSH refunds x", "RPOP refunds", "LLEN refunds:rejected", *HARM],
    "flower": [
        "HGETALL refunds:refund:order-0-1",
        "LPUSH refunds x",
        "RPOP refunds",
        "DEL refunds",
        *HARM,
    ],
}


@pytest.fixture
def clean(installation: Installation) -> Iterator[redis.Redis]:
    """The server as the operator sees it.

    At the end nothing may have been denied to whoever worked meanwhile.
    """
    admin = installation.redis
    yield admin
    log: Any = admin.execute_command("ACL LOG")
    assert [(entry["username"], entry["object"]) for entry in log] == []


def as_role(installation: Installation, role: str) -> redis.Redis:
    url = (
        installation.stack.redis_url if role == "default" else installation.stack.redis_url_of(role)
    )
    if role == "default":
        url = re.sub(r"//.*@", "//", url)
    client: redis.Redis = redis.Redis.from_url(url, decode_responses=True)
    return client


def test_a_whole_installation_was_denied_nothing(
    installation: Installation, clean: redis.Redis
) -> None:
    """Worker, metrics and Flower have gone through refunds of every kind by now.

    Their pages are asked once more.
    """
    assert ask(f"{installation.stack.url('metrics')}/metrics")[0] == 200
    for page in ("/workers", "/broker", "/tasks", "/api/workers?refresh=1", "/api/queues/length"):
        assert (
            ask(f"{installation.stack.url('flower')}{page}", user=f"operator:{PASSWORD}")[0] == 200
        )
    listed: Any = clean.client_list()
    assert (
        {"worker", "metrics", "flower", "operator"}
        >= {client["user"] for client in listed}
        >= {"worker", "flower"}
    )


def test_the_webhook_server_receives_an_event_as_a_producer_and_is_denied_nothing(
    installation: Installation, clean: redis.Redis
) -> None:
    stack, secret = installation.stack, "whsec_of_the_stack_4711"
    (stack.folder / "secrets" / "refunds_webhook_secrets").write_text(f"{secret}\n")
    shown = {"id": "re_of_nobody", "object": "refund", "payment_intent": "pi_of_nobody"}
    body = json.dumps({"type": "charge.refund.updated", "data": {"object": shown}}).encode()
    signature = header(secret, str(int(time.time())), body)
    server = stack.start("webhooks")
    try:
        stack.await_healthy("webhooks")
        with closing(HTTPConnection("127.0.0.1", stack.ports["webhooks"], timeout=30)) as client:
            client.request("POST", "/webhooks/wooshpay", body, {HEADER: signature})
            response = client.getresponse()
            assert (response.status, response.read()) == (200, b"{}")
        assert "producer" in {client["user"] for client in clean.client_list()}
    finally:
        assert server.stop() == 0
        del stack.running["webhooks"]
    assert clean.hget("refunds:counters", "webhook:unknown") == "1"


def test_the_api_accepts_a_refund_and_waits_for_it_as_a_producer_and_is_denied_nothing(
    installation: Installation, clean: redis.Redis
) -> None:
    stack = installation.stack
    with Refunds(settings=Settings.load(redis_url=stack.redis_url_of("producer"))) as refunds:
        token = tokens.create(
            refunds.store,
            "api-stack",
            scopes=frozenset(Scope),
            ids_prefix="",
            expires_at=None,
            by="the test",
        )
    body = {"refund_id": "api-stack-1", "payment_intent": "pi_api_stack_1", "amount": 500}
    # The other tests on this installation account for every refund in it.
    installation.ids += ["api-stack-1", "api-stack-2"]
    server = stack.start("api")
    try:
        stack.await_healthy("api")
        with closing(HTTPConnection("127.0.0.1", stack.ports["api"], timeout=60)) as client:
            headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
            client.request("POST", "/v1/refunds?wait=30", json.dumps(body), headers)
            response = client.getresponse()
            assert (response.status, json.load(response)["status"]) == (200, "succeeded")
            headers["Content-Type"] = "text/csv"
            file = "refund_id,payment_intent,amount\napi-stack-2,pi_api_stack_2,500\n"
            client.request("POST", "/v1/batches?name=api-stack", file, headers)
            response = client.getresponse()
            assert (response.status, json.load(response)["batch_id"]) == (202, "api-stack")
            _await_import(client, headers, "api-stack")
            client.request("GET", "/v1/refunds/api-stack-2?wait=30", headers=headers)
            response = client.getresponse()
            assert (response.status, json.load(response)["status"]) == (200, "succeeded")
            client.request("POST", "/v1/batches/api-stack/result", file, headers)
            response = client.getresponse()
            assert (response.status, b"succeeded" in response.read()) == (200, True)
            client.request("POST", "/v1/pause", headers={"Authorization": "Bearer wrong"})
            response = client.getresponse()
            assert (response.status, json.load(response)["code"]) == (401, "unauthorized")
    finally:
        assert server.stop() == 0
        del stack.running["api"]
    assert clean.hmget(
        "refunds:counters", "http:POST /v1/refunds:200", "http:POST /v1/pause:401"
    ) == ["1", "1"]


def _await_import(client: HTTPConnection, headers: dict[str, str], batch_id: str) -> None:
    def is_imported() -> bool:
        client.request("GET", f"/v1/batches/{batch_id}", headers=headers)
        batch = json.load(client.getresponse())
        return batch["imported_at"] is not None

    until(is_imported, "the rows of the file are accepted")


@dataclass
class Roles:
    """A server with the users of the file, and a worker of its own under the worker's user."""

    worker: Shop
    admin: redis.Redis
    producer: dict[str, str]

    def run(self, *arguments: str) -> Ran:
        """A command under the producer's user."""
        return self.worker.cli(*arguments, **self.producer)


@pytest.fixture
def roles(tmp_path: Path) -> Iterator[Roles]:
    with (
        running_server() as server,
        running_sandbox(SandboxConfig(idempotency="ignore")) as sandbox,
    ):
        made_in = tmp_path / "secrets"
        subprocess.run(
            [MAKE, made_in],
            check=True,
            env={**os.environ, "REDIS_ADDRESS": f"127.0.0.1:{server.port}"},
        )
        urls = {
            file.name.partition("_")[0]: file.read_text().strip()
            for file in made_in.glob("*_redis_url")
        }
        shop = Shop(server.url, sandbox, tmp_path, settings={"REFUNDS_REDIS_URL": urls["worker"]})
        with redis.Redis.from_url(server.url, decode_responses=True) as admin:
            for line in (made_in / "redis_users").read_text().splitlines():
                _, name, *rules = re.findall(r"\([^)]*\)|\S+", line)
                if name != "default":
                    admin.execute_command("ACL", "SETUSER", name, *rules)
            shop.start("worker", "worker")
            try:
                yield Roles(shop, admin, {"REFUNDS_REDIS_URL": urls["producer"]})
            finally:
                codes = [worker.stop() for worker in shop.workers]
            assert codes == [0]
            log: Any = admin.execute_command("ACL LOG")
            assert [(entry["username"], entry["object"]) for entry in log] == []


def test_a_producer_hands_in_reads_cancels_imports_and_asks_the_doctor(
    roles: Roles, tmp_path: Path
) -> None:
    file = tmp_path / "refunds.csv"
    rows = [f"row-{number},pi_row{number},100" for number in range(3)]
    file.write_text("\n".join(["refund_id,payment_intent,amount", *rows]))
    submit = ["submit", "order-1-1", "--payment-intent", "pi_1", "--amount", "5"]
    assert roles.run(*submit, "--wait", "30").code == 0
    assert roles.run("status", "order-1-1", "--history").code == 0
    assert roles.run("import", str(file), "--wait").code == 0
    assert roles.run("list").code == 0
    assert roles.run("batch", "list").code == 0
    assert roles.run("pause").code == 0
    assert roles.run("submit", "order-2-1", "--payment-intent", "pi_2", "--amount", "5").code == 0
    assert roles.run("cancel", "order-2-1").code == 0
    assert roles.run("resume").code == 0
    assert roles.run("review", "list").code in {0, 9}
    doctor = roles.run("doctor")
    assert doctor.code == 0, doctor.out
    assert "permissions" in doctor.out
    effects = [effect["refund_id"] for effect in roles.worker.sandbox.effects()]
    assert sorted(effects) == ["order-1-1", "row-0", "row-1", "row-2"]


def test_the_scaler_can_ask_for_the_length_of_a_queue(
    installation: Installation, clean: redis.Redis
) -> None:
    """As KEDA does: by a script that first asks what kind of list it is."""
    assert clean.ping()
    script = "local kind = redis.call('TYPE', KEYS[1]).ok return redis.call('LLEN', KEYS[1])"
    with as_role(installation, "keda") as client:
        assert client.eval(script, 1, "refunds") == client.eval(script, 1, "refunds.bulk") == 0


@pytest.mark.parametrize(
    ("role", "command"), [(role, each) for role, all_ in FORBIDDEN.items() for each in all_]
)
def test_no_role_can_do_what_is_not_its_own(
    installation: Installation, role: str, command: str
) -> None:
    with as_role(installation, role) as client, pytest.raises(NoPermissionError):
        client.execute_command(*command.split())
    installation.redis.execute_command("ACL LOG RESET")


@pytest.mark.parametrize("role", ["worker", "producer"])
def test_whoever_keeps_records_is_granted_every_command_that_they_need(role: str) -> None:
    rule = next(line for line in RULES.read_text().splitlines() if line.startswith(f"user {role} "))
    granted = {word[1:] for word in rule.split() if word.startswith("+")}
    assert {trial[0].lower() for trial in TRIALS} <= granted
    assert not {word for word in rule.split() if word.startswith("+@")}


def made(folder: Path, sentinels: str = "") -> dict[str, str]:
    addresses = {"REDIS_ADDRESS": "redis.example:6380", "REDIS_SENTINELS": sentinels}
    subprocess.run([MAKE, folder], check=True, env={**os.environ, **addresses})
    return {file.name: file.read_text() for file in folder.iterdir()}


def test_each_role_has_an_address_and_the_server_knows_no_password(tmp_path: Path) -> None:
    files = made(tmp_path / "one")
    assert set(files) == {
        "redis_users",
        "redis_replication",
        "sentinel_users",
        "sentinel_login",
        "sentinel_operator_url",
        "operator_redis_url",
        *(f"{role}_redis_url" for role in ROLES),
    }
    passwords = set()
    for role in [*ROLES, "operator"]:
        found = re.fullmatch(
            rf"redis://{role}:([0-9a-f]{{48}})@redis\.example:6380/0\n", files[f"{role}_redis_url"]
        )
        assert found is not None
        passwords.add(found[1])
    assert len(passwords) == len(ROLES) + 1
    assert not [password for password in passwords if password in files["redis_users"]]
    assert "PASSWORD" not in files["redis_users"]
    assert passwords & set(made(tmp_path / "two").values()) == set()
    assert stat.S_IMODE((tmp_path / "one").stat().st_mode) == 0o711


def test_servers_and_sentinels_know_each_other_by_users_of_their_own(tmp_path: Path) -> None:
    files = made(tmp_path, "one.example:26379,two.example:26380")
    login = re.fullmatch(
        r"sentinel sentinel-user peer\nsentinel sentinel-pass ([0-9a-f]{48})\n"
        r"sentinel auth-user refunds sentinel\nsentinel auth-pass refunds ([0-9a-f]{48})\n",
        files["sentinel_login"],
    )
    replication = re.fullmatch(
        r"masteruser replica\nmasterauth ([0-9a-f]{48})\n", files["redis_replication"]
    )
    assert login is not None
    assert replication is not None
    for user, password, file in (
        ("peer", login[1], "sentinel_users"),
        ("sentinel", login[2], "redis_users"),
        ("replica", replication[1], "redis_users"),
    ):
        digest = hashlib.sha256(password.encode()).hexdigest()
        assert f"user {user} on #{digest} " in files[file]
        assert password not in files[file]


def test_with_sentinels_each_role_asks_them_for_the_server(tmp_path: Path) -> None:
    files = made(tmp_path, "one.example:26379,two.example:26380")
    for role in ROLES:
        address = SentinelAddress.parse(files[f"{role}_redis_url"].strip())
        assert address.hosts == (("one.example", 26379), ("two.example", 26380))
        assert (address.master, address.username) == ("refunds", role)
        assert address.sentinel_username == "client"
        digest = hashlib.sha256(str(address.sentinel_password).encode()).hexdigest()
        assert f"user client on #{digest} " in files["sentinel_users"]
    # redis-cli reads no address of Sentinels.
    assert "@redis.example:6380/0" in files["operator_redis_url"]
    assert "@one.example:26379" in files["sentinel_operator_url"]


def test_users_that_are_there_are_not_replaced(tmp_path: Path) -> None:
    before = made(tmp_path)
    again = subprocess.run([MAKE, tmp_path], check=False, capture_output=True, text=True)
    assert (again.returncode, "is there already: remove it" in again.stderr) == (2, True)
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == before
