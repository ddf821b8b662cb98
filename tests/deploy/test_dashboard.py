"""A real Prometheus scrapes the real endpoint.

Every panel's query is answered, and an alert comes and goes.
"""

from __future__ import annotations

import json
import shutil
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.asking import ask, ask_json
from tests.deploy.conftest import Installation
from tests.support.compose import ROOT, Service, until

DASHBOARD = json.loads((ROOT / "ops" / "grafana" / "dashboards" / "refunds.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
TARGETS = [
    (f"{panel['title']} {target['refId']}", target["expr"])
    for panel in PANELS
    for target in panel["targets"]
]
# What a healthy day does not have: a panel that stays empty then is right.
MAY_BE_EMPTY: set[str] = set()


@pytest.fixture(scope="module")
def prometheus(installation: Installation, tools: dict[str, Path]) -> Iterator[str]:
    """Prometheus on the project's own configuration, in haste.

    It looks every second, and no alert waits minutes.
    """
    stack = installation.stack
    stack.tools = tools
    for file in ("prometheus.yml", "rules.yml"):
        text = (ROOT / "ops" / "prometheus" / file).read_text()
        hasty = text.replace(": 15s", ": 1s").replace("for: 1m", "for: 2s")
        (stack.folder / "etc" / file).write_text(stack.here(hasty))
    running = stack.start("prometheus")
    try:
        yield begun(stack.url("prometheus"), running)
    finally:
        code = stack.running.pop("prometheus").stop()
        shutil.rmtree(stack.folder / "tsdb")
    assert code == 0


def begun(url: str, running: Service) -> str:
    """Wait until it has scraped often enough for a rate."""

    def often() -> bool:
        assert running.process.poll() is None, running.said
        try:
            return (
                ask(f"{url}/-/ready")[0] == 200
                and value_of(url, "count_over_time(refunds_workers[1m])") >= 4
            )
        except OSError:
            return False

    until(often, "Prometheus has scraped four times", 30)
    return url


def query(url: str, expression: str) -> list[dict[str, Any]]:
    status, text = ask(f"{url}/api/v1/query?{urllib.parse.urlencode({'query': expression})}")
    assert status == 200, text
    found: list[dict[str, Any]] = json.loads(text)["data"]["result"]
    return found


def value_of(url: str, expression: str) -> float:
    series = query(url, expression)
    return float(series[0]["value"][1]) if series else 0.0


@pytest.mark.parametrize(("where", "expression"), TARGETS, ids=[where for where, _ in TARGETS])
def test_every_panels_query_is_answered_with_a_series(
    prometheus: str, where: str, expression: str
) -> None:
    assert query(prometheus, expression) or where in MAY_BE_EMPTY


def test_prometheus_sees_what_happened(prometheus: str, installation: Installation) -> None:
    settled = installation.refunds.get_many(installation.ids)
    refunded = sum(r.amount or 0 for r in settled if r is not None and r.status == "succeeded")
    assert (
        value_of(prometheus, 'refunds_amount_minor{status="succeeded",currency="usd"}')
        == refunded
        > 0
    )
    assert value_of(prometheus, 'refunds_records{status="failed"}') == 3
    assert value_of(prometheus, 'refunds_failures_total{error_code="card_declined"}') == 2
    assert value_of(prometheus, "refunds_workers") == 1


def firing(url: str) -> set[str]:
    alerts = ask_json(f"{url}/api/v1/alerts")["data"]["alerts"]
    return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}


def test_a_refused_key_fires_its_alert_which_clears_once_the_key_is_accepted(
    prometheus: str, installation: Installation
) -> None:
    assert "RefundsCredentialsRefused" not in firing(prometheus)
    installation.sandbox.set_faults("http_401")
    installation.submit("order-refused-1", "pi_refused1")
    until(lambda: "RefundsCredentialsRefused" in firing(prometheus), "the alert fires", 30)
    installation.sandbox.set_faults("")
    until(lambda: "RefundsCredentialsRefused" not in firing(prometheus), "the alert clears", 40)
    installation.settled()
    assert installation.refunds.get("order-refused-1").status == "succeeded"


def test_money_comes_first_and_every_row_is_there() -> None:
    rows = [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"]
    assert rows == ["Money", "Flow", "Provider", "Workers", "Redis"]
    assert DASHBOARD["panels"][0]["title"] == "Money"
    assert [panel["title"] for panel in PANELS[:5:2]] == ["Refunded", "Pending", "In review"]


def test_every_panel_has_a_place_of_its_own_and_a_source_that_is_provisioned() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    provisioned = (ROOT / "ops/grafana/provisioning/datasources/prometheus.yml").read_text()
    assert {panel["datasource"]["uid"] for panel in PANELS} == {"prometheus"}
    assert "uid: prometheus" in provisioned
