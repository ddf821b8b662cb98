"""Rules, alerts and runbook: held to each other, to Prometheus' own checkers, and to the real
`/metrics`.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.asking import exposed
from tests.deploy.conftest import Installation
from tests.support.compose import ROOT
from worker.cli.group import COMMANDS
from worker.settings import Settings

OPS = ROOT / "ops"
RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((OPS / "prometheus" / "rules.yml").read_text())["groups"]
    for rule in group["rules"]
]
NAMES = [rule["alert"] for rule in RULES]
RULE_TESTS = ["prometheus/rules_test.yml", "prometheus/rules_day_test.yml"]
RUNBOOK = (OPS / "docs" / "operations.md").read_text().split("\n## Runbook\n", 1)[1]
PARTS = ["What it means.", "What to look at.", "What to do.", "When to call whom."]
MADE_BY_PROMETHEUS = {"up": {"job", "instance"}}

_STRING = re.compile(r'"[^"]*"')
_SELECTED = re.compile(r"\b((?:refunds_\w+)|up)\b(?:\{([^}]*)\})?")
_MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"')
_GROUPED = re.compile(r"\b(?:by|on|without|ignoring)\s*\(([^)]*)\)")


def dashboard_queries() -> Iterator[tuple[str, str]]:
    dashboard = json.loads((OPS / "grafana" / "dashboards" / "refunds.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            yield f"{panel['title']} {target['refId']}", target["expr"]


QUERIES = [*((rule["alert"], rule["expr"]) for rule in RULES), *dashboard_queries()]


def unknown_in(query: str, real: Mapping[str, Mapping[str, set[str]]]) -> list[str]:
    """What a query names that the endpoint does not show: a metric, a label, or a value of a
    label.
    """
    found = []
    labels: set[str] = {"le"}
    for name, matchers in _SELECTED.findall(query):
        known = real.get(name)
        if known is None:
            found.append(name)
            continue
        labels |= known.keys()
        for label, how, value in _MATCHER.findall(matchers):
            if label not in known:
                found.append(f"{name}{{{label}}}")
                continue
            wanted = value.split("|") if "~" in how else [value]
            found += [
                f'{name}{{{label}="{one}"}}'
                for one in wanted
                if not any(one == is_ for is_ in known[label])
            ]
    without_strings = _STRING.sub("", query)
    grouped = {
        label.strip() for group in _GROUPED.findall(without_strings) for label in group.split(",")
    } - {""}
    return found + sorted(grouped - labels)


@pytest.fixture(scope="module")
def real(installation: Installation) -> dict[str, dict[str, set[str]]]:
    """The metrics of the running installation.

    Classes of answers that did not occur are those the gateway knows.
    """
    # No shop is part of the installation: its metrics are shown from the moment a worker has it.
    installation.redis.zadd("refunds:callback-endpoints", {"shop": 1})
    # Nor is the API: its metric shows what it has answered.
    installation.redis.hset("refunds:counters", "http:POST /v1/refunds:202", 1)
    found = exposed(installation.stack.url("metrics"))
    found["refunds_http_requests_total"]["status"] |= {"401", "429", "500", "503"}
    found["refunds_provider_calls_total"]["class"] |= {"2xx", "4xx", "5xx", "not_sent", "no_reply"}
    found |= {
        name: {label: {"refunds"} for label in labels}
        for name, labels in MADE_BY_PROMETHEUS.items()
    }
    return found


@pytest.mark.parametrize(("where", "query"), QUERIES, ids=[where for where, _ in QUERIES])
def test_every_metric_and_label_is_one_that_the_real_endpoint_shows(
    real: dict[str, dict[str, set[str]]], where: str, query: str
) -> None:
    assert unknown_in(query, real) == [], where


@pytest.mark.parametrize(
    ("query", "unknown"),
    [
        ("refunds_wrong > 0", ["refunds_wrong"]),
        ('refunds_records{colour="red"}', ["refunds_records{colour}"]),
        ('refunds_records{stage=~"queued|lost"}', ['refunds_records{stage="lost"}']),
        ("sum by (planet) (refunds_workers)", ["planet"]),
    ],
)
def test_a_planted_slip_is_named(
    real: dict[str, dict[str, set[str]]], query: str, unknown: list[str]
) -> None:
    assert unknown_in(query, real) == unknown


def checked(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program, *arguments], check=False, capture_output=True, text=True, timeout=60, cwd=OPS
    )


def test_promtool_accepts_configuration_and_rules(tools: dict[str, Path]) -> None:
    run = checked(tools["promtool"], "check", "config", "prometheus/prometheus.yml")
    assert run.returncode == 0, run.stdout + run.stderr
    assert f"{len(RULES)} rules found" in run.stdout


def test_every_rule_fires_when_it_should_and_is_silent_when_it_should(
    tools: dict[str, Path],
) -> None:
    run = checked(tools["promtool"], "test", "rules", *RULE_TESTS)
    assert run.returncode == 0, run.stdout + run.stderr


@cache
def rule_cases() -> list[dict[str, Any]]:
    """Every case of the rules' tests. Reading the files takes a quarter of a second, so once."""
    tests = [
        test for file in RULE_TESTS for test in yaml.safe_load((OPS / file).read_text())["tests"]
    ]
    return [case for test in tests for case in test["alert_rule_test"]]


@pytest.mark.parametrize("name", NAMES)
def test_every_rule_has_a_test_that_fires_and_one_that_does_not(name: str) -> None:
    own = [case for case in rule_cases() if case["alertname"] == name]
    assert {bool(case["exp_alerts"]) for case in own} == {True, False}


def test_amtool_accepts_the_routes_and_a_page_goes_to_the_pager(tools: dict[str, Path]) -> None:
    config = "alertmanager/alertmanager.yml"
    run = checked(tools["amtool"], "check-config", config)
    assert run.returncode == 0, run.stdout + run.stderr
    for severity, receiver in [("page", "page"), ("ticket", "ticket")]:
        told = checked(
            tools["amtool"],
            "config",
            "routes",
            "test",
            f"--config.file={config}",
            f"severity={severity}",
        )
        assert told.stdout.strip() == receiver


def test_every_alert_that_another_one_silences_exists() -> None:
    config = yaml.safe_load((OPS / "alertmanager" / "alertmanager.yml").read_text())
    for rule in config["inhibit_rules"]:
        for matcher in rule["source_matchers"] + rule["target_matchers"]:
            for pattern in _MATCHER.findall(matcher)[0][2].split("|"):
                assert any(re.fullmatch(pattern, name) for name in NAMES), pattern


@pytest.mark.parametrize(
    "cause",
    [
        "RefundsPaused",
        "RefundsCredentialsRefused",
        "RefundsAccountLost",
        "RefundsRecordsBehind",
        "RefundsReplicasMissing",
    ],
)
def test_what_stops_all_sending_silences_what_follows_from_it(cause: str) -> None:
    config = yaml.safe_load((OPS / "alertmanager" / "alertmanager.yml").read_text())
    silenced = {
        name
        for rule in config["inhibit_rules"]
        for name in NAMES
        if all(
            re.fullmatch(_MATCHER.findall(each)[0][2], cause) for each in rule["source_matchers"]
        )
        and all(
            re.fullmatch(_MATCHER.findall(each)[0][2], name) for each in rule["target_matchers"]
        )
    }
    follow = {"RefundsQueueOld", "RefundsQueueStuck", "RefundsBacklogDeep", "RefundsOldestPending"}
    assert silenced >= follow


def headings() -> dict[str, str]:
    parts = re.split(r"^### (\w+)$", RUNBOOK, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_every_rule_names_its_heading_which_says_all_four_things(rule: dict[str, Any]) -> None:
    assert rule["annotations"]["runbook"] == f"ops/docs/operations.md#{rule['alert'].lower()}"
    assert rule["labels"]["severity"] in {"page", "ticket"}
    assert re.findall(r"^\*\*(.+?)\*\*", headings()[rule["alert"]], flags=re.MULTILINE) == PARTS


def test_the_runbook_speaks_of_no_alert_that_does_not_exist() -> None:
    assert [*headings()] == sorted(headings(), key=[*headings()].index)
    assert headings().keys() == set(NAMES)
    assert {link.lower() for link in re.findall(r"\(#(\w+)\)", RUNBOOK)} <= {
        name.lower() for name in NAMES
    }


def test_every_command_and_setting_in_the_runbook_exists() -> None:
    commands = set(re.findall(r"`(?:docker compose exec worker )?refunds ([a-z]+)", RUNBOOK))
    assert commands >= {"doctor", "pause", "resume", "review", "status", "list"}
    assert commands <= COMMANDS.keys()
    settings = {
        name.removeprefix("REFUNDS_").lower() for name in re.findall(r"REFUNDS_[A-Z_]+", RUNBOOK)
    }
    assert settings <= Settings.model_fields.keys()
