"""Flower shows tasks, refund ids and what became of them to whoever has the password, and nothing
else to anyone.
"""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from celery.utils.saferepr import saferepr

from tests.deploy.asking import ask, ask_json
from tests.deploy.conftest import CANARIES, EMAIL, PASSWORD, Installation
from tests.support.compose import ROOT, StackError, until
from tests.unit.engine.test_endings import every_kind
from worker.broker.names import PROCESS_TASK, SUBMIT_TASK
from worker.engine import endings

USER = f"operator:{PASSWORD}"
CONFIG = ROOT / "ops" / "docker" / "flowerconfig.py"
DATATABLE = {
    "draw": "1",
    "start": "0",
    "length": "100",
    "search[value]": "",
    "order[0][column]": "0",
    "order[0][dir]": "asc",
    "columns[0][data]": "name",
}


@pytest.fixture
def tasks(installation: Installation) -> dict[str, Any]:
    """Flower's tasks by id, all of them over; events arrive some time after the refund is
    settled.
    """
    url = f"{installation.stack.url('flower')}/api/tasks"
    seen: dict[str, Any] = {}

    def are_there() -> bool:
        seen.update(ask_json(url, user=USER))
        over = all(task["state"] in {"SUCCESS", "FAILURE"} for task in seen.values())
        return over and all(
            sign in str(seen) for sign in ("raw-1: rejected", "row-4", "(order-401-1)")
        )

    try:
        until(are_there, "Flower has seen the last task", 20)
    except StackError as error:
        states = {(task["name"], task["args"], task["state"]) for task in seen.values()}
        error.add_note(
            f"it has seen {states}, and said {installation.stack.running['flower'].said}"
        )
        raise
    return seen


@pytest.fixture
def worker(installation: Installation) -> str:
    """The name of the worker, once Flower has asked it; what was asked at its start may have been
    asked before the worker was there.
    """
    url = f"{installation.stack.url('flower')}/api/workers?refresh=1"
    until(lambda: bool(ask_json(url, user=USER)), "Flower has an answer of the worker")
    (name,) = ask_json(url, user=USER)
    return str(name)


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/workers",
        "/tasks",
        "/broker",
        "/metrics",
        "/api/tasks",
        "/api/workers",
        "/api/task/types",
    ],
)
def test_no_page_and_no_figure_is_shown_without_the_password(
    installation: Installation, path: str
) -> None:
    url = f"{installation.stack.url('flower')}{path}"
    assert ask(url)[0] == 401
    assert ask(url, user="operator:wrong")[0] == 401
    assert ask(url, user=USER)[0] == 200


def test_the_healthcheck_is_open_and_says_nothing(installation: Installation) -> None:
    assert ask(f"{installation.stack.url('flower')}/healthcheck") == (200, "OK")


def test_tasks_are_shown_by_their_refund_ids(tasks: dict[str, Any]) -> None:
    shown = {(task["name"], task["args"], task["kwargs"]) for task in tasks.values()}
    assert ("refunds.process", "(order-0-1)", "{}") in shown
    assert ("refunds.process", "(row-0, row-1, row-2, row-3, row-4)", "{}") in shown
    # A producer that did not say what may be shown: the id is taken out of the fields.
    assert ("refunds.submit", "()", "raw-1") in shown


def test_a_result_says_what_became_of_the_refunds_while_every_task_is_a_success(
    tasks: dict[str, Any],
) -> None:
    ours = [task for task in tasks.values() if task["name"] in {PROCESS_TASK, SUBMIT_TASK}]
    assert {task["state"] for task in ours} == {"SUCCESS"}
    results = {task["result"] for task in ours}
    assert results >= {
        "order-0-1: succeeded",
        "order-90-1: failed (card_declined)",
        "order-91-1: processing",
        "order-92-1: failed (resource_missing)",
        "order-401-1: waiting (key refused)",
        "raw-1: succeeded",
        "raw-1: rejected (exists with other contents)",
        "raw-2: rejected (amount)",
        "rejected (not a list of ids)",
        "4 succeeded, 1 failed",
    }
    assert any(result.endswith(": in doubt") for result in results)
    assert "…" not in results


def test_pages_show_the_results_too(installation: Installation, tasks: dict[str, Any]) -> None:
    flower = installation.stack.url("flower")
    (declined,) = (task for task in tasks if tasks[task]["args"] == "(order-90-1)")
    assert "order-90-1: failed (card_declined)" in ask(f"{flower}/task/{declined}", user=USER)[1]
    table = "&".join(f"{name}={value}" for name, value in DATATABLE.items())
    rows = ask_json(f"{flower}/tasks/datatable?{table}", user=USER)["data"]
    # A task may have ended since.
    assert {row["result"] for row in rows} >= {task["result"] or "" for task in tasks.values()}
    assert 'data-column="result"' in ask(f"{flower}/tasks", user=USER)[1]


def test_no_canary_is_shown_on_any_page_or_in_the_api(
    installation: Installation, tasks: dict[str, Any], worker: str
) -> None:
    flower = installation.stack.url("flower")
    paths = [
        "/",
        "/workers",
        f"/worker/{worker}",
        "/tasks",
        "/broker",
        "/metrics",
        "/api/tasks",
        "/api/workers",
    ]
    paths += [f"/{kind}/{task}" for kind in ("task", "api/task/info") for task in tasks]
    read = {path: ask(f"{flower}{path}", user=USER) for path in paths}
    table = "&".join(f"{name}={value}" for name, value in DATATABLE.items())
    read["datatable"] = ask(f"{flower}/tasks/datatable?{table}", user=USER)
    assert "order-0-1" in read["datatable"][1]
    assert {path: status for path, (status, _) in read.items() if status != 200} == {}
    assert [
        (path, canary) for path, (_, text) in read.items() for canary in CANARIES if canary in text
    ] == []


def test_nothing_can_be_changed_through_flower(installation: Installation, worker: str) -> None:
    flower = installation.stack.url("flower")
    for path in (
        f"worker/shutdown/{worker}",
        "task/async-apply/refunds.process",
        "task/send-task/refunds.process",
    ):
        status, _ = ask(f"{flower}/api/{path}", user=USER, data={"args": "[]"})
        assert status in {403, 405}, path
    assert installation.stack.is_healthy("worker")


def test_flower_does_not_start_without_a_password(installation: Installation) -> None:
    environment = installation.stack.environment("flower")
    environment.pop("REFUNDS_SECRETS_DIR")
    command = [sys.executable, "-m", "celery", "--app", "worker.app", "flower", f"--conf={CONFIG}"]
    ended = subprocess.run(
        command, env=environment, check=False, capture_output=True, text=True, timeout=30, cwd=ROOT
    )
    assert ended.returncode != 0
    assert "password" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.fixture
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of the variables that the settings read."""
    for name in [name for name in os.environ if name.startswith("FLOWER_")]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("REFUNDS_SECRETS_DIR", raising=False)


@pytest.mark.usefixtures("unset")
@pytest.mark.parametrize("given", [None, "", "only-a-name", ":"])
def test_settings_without_a_user_and_a_password_are_refused_in_one_sentence(
    given: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if given is not None:
        monkeypatch.setenv("FLOWER_BASIC_AUTH", given)
    with pytest.raises(SystemExit, match=r"^flower: [^\n]*password[^\n]*$"):
        runpy.run_path(str(CONFIG))


@pytest.fixture
def config(unset: None, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    del unset
    monkeypatch.setenv("FLOWER_BASIC_AUTH", "operator:secret")
    return runpy.run_path(str(CONFIG))


def test_it_listens_on_loopback_and_reads_only_unless_told_otherwise(
    config: dict[str, Any],
) -> None:
    assert (config["address"], config["read_only"], config.get("persistent")) == (
        "127.0.0.1",
        True,
        None,
    )


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        ("(order-1)", "(order-1)"),
        ("(a, b, c, d, e, and 95 more)", "(a, b, c, d, e, and 95 more)"),
        ("order-1", "order-1"),
        ("()", "()"),
        ("", ""),
        ("{'refund_id': 'order-1', 'metadata': {'email': 'a@b.c'}}", "order-1"),
        (f"('order-1', '{EMAIL}')", "…"),
        (EMAIL, "…"),
        ("['order-1']", "…"),
    ],
)
def test_of_arguments_only_refund_ids_are_shown(
    config: dict[str, Any], sent: str, shown: str
) -> None:
    assert config["shown"](sent) == shown


def test_every_ending_of_a_refund_is_shown_as_celery_sends_it(config: dict[str, Any]) -> None:
    refund_id = "Order_1001.1:a-b" * 12
    for ending in [
        *every_kind(),
        endings.CONFLICT,
        endings.NO_IDS,
        endings.rejected(["amount", "unknown_field"]),
    ]:
        for told in (endings.summary({refund_id: ending}), str(ending)):
            assert config["became"](saferepr(told, 1024)) == told
    together = endings.summary({f"r{number}": ending for number, ending in enumerate(every_kind())})
    assert config["became"](saferepr(together, 1024)) == together
    assert config["became"]("") == ""
    assert config["became"](None) == ""


@pytest.mark.parametrize(
    "result",
    [
        EMAIL,
        f"order-1: failed ({EMAIL})",
        "order-1: {'metadata': 1}",
        "Jane Roe",
        "order-1: a\nb",
        "None",
        "[1]",
    ],
)
def test_of_a_result_in_other_words_nothing_is_shown(config: dict[str, Any], result: str) -> None:
    assert config["became"](repr(result)) == "…"


def test_of_an_error_only_its_kind_is_shown(config: dict[str, Any]) -> None:
    event = {
        "type": "task-failed",
        "exception": f"ValueError('{EMAIL}')",
        "traceback": EMAIL,
        "result": EMAIL,
    }
    cleaned = config["cleaned"](event)
    assert cleaned["exception"] == "ValueError"
    assert EMAIL not in str(cleaned)
    task = config["format_task"](
        SimpleNamespace(args=EMAIL, kwargs="{}", result=EMAIL, traceback=EMAIL)
    )
    assert EMAIL not in str(task)
