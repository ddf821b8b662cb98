"""`refunds callbacks`: endpoints, switches, the test callback, dead letters and replays."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import redis

from tests.support.cli_runner import Cli, Records
from worker.store import audit, callback_state, callbacks
from worker.store.callbacks import Wanted

SHOP = Wanted(name="shop", ids="", most=100)
LEASE = timedelta(seconds=30)


class Shop(BaseHTTPRequestHandler):
    """Answers 204, or 500 at /broken."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.types.append(self.headers["webhook-signature"])  # type: ignore[attr-defined]
        self.send_response(500 if self.path == "/broken" else 204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def shop() -> Iterator[HTTPServer]:
    with HTTPServer(("127.0.0.1", 0), Shop) as server:
        server.types = []  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def with_file(cli: Cli, shop: HTTPServer, tmp_path: Path) -> Cli:
    """A command line that has the endpoints `shop` and `broken`."""
    text = ""
    for name in ("shop", "broken"):
        key = base64.b64encode(b"k" * 32).decode()
        (tmp_path / f"callback_{name}").write_text(f"whsec_{key}\n")
        url = f"http://127.0.0.1:{shop.server_port}/{name}"
        text += f'[[endpoints]]\nname = "{name}"\nurl = "{url}"\nallow_private = true\n'
    (tmp_path / "callbacks.toml").write_text(text)
    return Cli(
        environment=cli.environment
        | {
            "REFUNDS_CALLBACKS_FILE": str(tmp_path / "callbacks.toml"),
            "REFUNDS_SECRETS_DIR": str(tmp_path),
            "REFUNDS_ACTOR": "ann",
        }
    )


def kill(records: Records, member: str) -> None:
    """Let a refund be a dead letter of the endpoint `shop`."""
    store = records.store
    store.run(callbacks.outbox([SHOP]))
    assert store.run(callbacks.take("shop", member, token="t", lease=LEASE)).result == "taken"
    version = str(records.get(member).version)
    log = {"member": member, "event": "refund.succeeded", "version": version, "status": "500"}
    ended = store.run(
        callbacks.ended(
            "shop", member, token="t", result="failed", version=version, log=log | {"reply": "no"}
        )
    )
    assert ended == "dead"


def test_only_a_removed_endpoint_that_nobody_serves_is_forgotten_with_all_it_left(
    with_file: Cli, records: Records
) -> None:
    with_file("callbacks", "on")
    records.succeeded("order-1", "re_1", payment_intent="pi_1")
    kill(records, "order-1")
    no_file = {"REFUNDS_CALLBACKS_FILE": ""}
    shown = with_file("callbacks", "dead", "shop", **no_file)
    assert "'refunds callbacks forget shop'" in " ".join(shown.err.split())
    kept = with_file("callbacks", "forget", "shop")
    served = with_file("callbacks", "forget", "shop", **no_file)
    assert (kept.code, served.code) == (6, 6)
    assert "remove it from the file of every worker" in kept.err
    assert "a worker served shop at" in served.err
    store = records.store
    assert callback_state.read_callbacks(store).endpoints[0].dead == 1
    an_hour_ago = int(store.time().timestamp() * 1000) - 3_600_000
    store.redis.zadd(store.key("callback-endpoints"), {"shop": an_hour_ago})
    codes = [with_file("callbacks", "forget", "shop", **no_file).code for _ in range(2)]
    assert codes == [0, 9]
    assert callback_state.read_callbacks(store).endpoints == ()
    assert list(store.redis.scan_iter(store.key("callback*:shop"))) == []
    assert with_file("callbacks", "dead", "shop", **no_file).code == 3
    forgotten = [each.result for each in audit.entries(store) if "forget" in each.deed.action]
    assert forgotten == ["unchanged", "done"]


def test_switch_is_on_once_and_off_once(with_file: Cli) -> None:
    assert [with_file("callbacks", "on").code for _ in range(2)] == [0, 9]
    assert with_file("callbacks", "list", "--json").objects[0]["on"] is True
    assert [with_file("callbacks", "off").code for _ in range(2)] == [0, 9]
    assert "callbacks are off" in with_file("callbacks", "list").err


def test_list_without_an_endpoint_is_nothing(cli: Cli) -> None:
    ran = cli("callbacks", "list")
    assert (ran.code, ran.out) == (9, "")
    assert "there is no endpoint" in ran.err


def test_list_shows_what_waits_and_what_is_dead(with_file: Cli, records: Records) -> None:
    with_file("callbacks", "on")
    records.succeeded("order-1", "re_1", payment_intent="pi_1")
    kill(records, "order-1")
    records.succeeded("order-2", "re_2", payment_intent="pi_2")
    records.store.run(callbacks.outbox([SHOP]))
    found = {each["name"]: each for each in with_file("callbacks", "list", "--json").objects}
    assert (found["shop"]["waiting"], found["shop"]["dead"]) == (1, 1)
    assert found["shop"]["waiting_since"] is not None
    assert found["broken"]["waiting"] == 0
    assert "failing, 1 try " in with_file("callbacks", "list").out
    kill(records, "order-2")
    assert "failing, 2 tries " in with_file("callbacks", "list").out


def test_list_shows_no_secret_of_an_address(with_file: Cli) -> None:
    path = Path(with_file.environment["REFUNDS_CALLBACKS_FILE"])
    path.write_text(path.read_text().replace("/shop", "/shop?key=s3cret"))
    (shown,) = (
        each["url"]
        for each in with_file("callbacks", "list", "--json").objects
        if each["name"] == "shop"
    )
    assert shown.endswith("/shop?…")
    assert "s3cret" not in with_file("callbacks", "list").out


def test_pause_and_resume_are_kept_with_their_author(with_file: Cli) -> None:
    assert [with_file("callbacks", "pause", "shop").code for _ in range(2)] == [0, 9]
    assert "paused by ann" in with_file("callbacks", "list").out
    assert [with_file("callbacks", "resume", "shop").code for _ in range(2)] == [0, 9]


def test_unknown_endpoint_is_refused_with_the_known_names(with_file: Cli) -> None:
    for command in ("test", "dead", "pause", "resume"):
        ran = with_file("callbacks", command, "shoq")
        assert ran.code == 3
        assert "shop, broken" in ran.err


def test_without_a_file_an_endpoint_is_refused_with_the_variable_to_set(cli: Cli) -> None:
    for command in ("test", "dead", "pause", "resume"):
        ran = cli("callbacks", command, "shop")
        assert ran.code == 3
        assert "REFUNDS_CALLBACKS_FILE, which is not set here: set it as" in ran.err


def test_wrong_file_is_exit_2(with_file: Cli, tmp_path: Path) -> None:
    (tmp_path / "callback_broken").unlink()
    for arguments in (("callbacks", "list"), ("worker",)):
        ran = with_file(*arguments, REFUNDS_API_KEY="sk_test_x")
        assert ran.code == 2
        assert "endpoint broken: secrets cannot be read" in ran.err


def test_queue_of_callbacks_needs_the_file(cli: Cli) -> None:
    ran = cli("worker", "--queues", "refunds.callbacks", REFUNDS_API_KEY="sk_test_x")
    assert ran.code == 2
    assert "REFUNDS_CALLBACKS_FILE is not set" in ran.err


def test_test_callback_is_sent_once_and_needs_no_redis(with_file: Cli, shop: HTTPServer) -> None:
    away = {"REFUNDS_REDIS_URL": "redis://127.0.0.1:1/0"}
    assert with_file("callbacks", "test", "shop", "--json", **away).object["status"] == 204
    ran = with_file("callbacks", "test", "broken", **away)
    assert (ran.code, "broken: HTTP 500, after " in ran.out) == (4, True)
    signatures: list[str] = shop.types  # type: ignore[attr-defined]
    assert [text.startswith("v1,") for text in signatures] == [True, True]


def test_dead_letters_are_listed_and_sent_again(with_file: Cli, records: Records) -> None:
    with_file("callbacks", "on")
    assert with_file("callbacks", "dead", "shop").code == 9
    records.succeeded("order-1", "re_1", payment_intent="pi_1")
    kill(records, "order-1")
    (seen,) = with_file("callbacks", "dead", "shop", "--json").objects
    assert (seen["refund_id"], seen["status"], seen["reply"]) == ("order-1", 500, "no")
    assert "HTTP 500" in with_file("callbacks", "dead", "shop").out
    assert [with_file("callbacks", "replay", "shop", "--dead").code for _ in range(2)] == [0, 9]
    assert records.store.run(callbacks.outbox([SHOP])).due == {"shop": ["order-1"]}
    replays = [each for each in audit.entries(records.store) if "replay" in each.deed.action]
    assert [each.result for each in replays] == ["unchanged", "done: 1"]


def test_replay_since_takes_what_settled_or_needs_review(
    with_file: Cli, records: Records, sync_redis: redis.Redis
) -> None:
    records.succeeded("order-1", "re_1", payment_intent="pi_1")
    records.succeeded("order-0", "re_0", payment_intent="pi_0")
    records.in_review("order-2", payment_intent="pi_2")
    sync_redis.zadd("refunds:index:succeeded", {"order-0": 1000})
    assert with_file("callbacks", "replay", "shop", "--since", "2026-01-01").code == 0
    assert records.store.run(callbacks.outbox([SHOP])).due == {"shop": ["order-1", "order-2"]}


def test_replay_of_single_refunds_checks_them_first(with_file: Cli, records: Records) -> None:
    records.succeeded("order-1", "re_1", payment_intent="pi_1")
    ran = with_file("callbacks", "replay", "shop", "order-1", "order-9")
    assert (ran.code, "no refund order-9" in ran.err) == (3, True)
    assert records.store.run(callbacks.outbox([SHOP])).due == {}
    assert with_file("callbacks", "replay", "shop", "order-1").code == 0
    assert records.store.run(callbacks.outbox([SHOP])).due == {"shop": ["order-1"]}


def test_replay_needs_one_choice(with_file: Cli) -> None:
    assert with_file("callbacks", "replay", "shop").code == 2
    assert with_file("callbacks", "replay", "shop", "x", "--dead").code == 2


def test_replay_sends_no_refund_that_the_endpoint_must_not_see(
    with_file: Cli, records: Records, tmp_path: Path
) -> None:
    with_file("callbacks", "on")
    for refund_id in ("a-1", "b-1"):
        records.succeeded(refund_id, f"re_{refund_id}", payment_intent=f"pi_{refund_id}")
        kill(records, refund_id)
    file = tmp_path / "callbacks.toml"
    file.write_text(file.read_text().replace('name = "shop"', 'name = "shop"\nids = "a-"'))
    ran = with_file("callbacks", "replay", "shop", "a-1", "b-1")
    assert (ran.code, "refund b-1" in ran.err, "'a-'" in ran.err) == (3, True, True)
    assert records.store.run(callbacks.outbox([SHOP])).due == {}
    # A worker drops that of b-1: else it would be a dead letter for as long as its record.
    ran = with_file("callbacks", "replay", "shop", "--dead")
    assert (ran.code, ran.err.splitlines()) == (
        0,
        [
            "1 dead letter is not for shop any more, and is dropped",
            "1 callback to shop will be sent",
        ],
    )
    assert records.store.run(callbacks.outbox([SHOP])).due == {"shop": ["a-1", "b-1"]}
    assert with_file("callbacks", "dead", "shop").code == 9
