"""`./ops/dev stack`: the installation of docker-compose.yml as processes, for a look at it or a
drill.

The same commands as the containers', against the sandbox provider, on loopback, in a throw-away
folder; Prometheus too, where it can be had. It runs until Ctrl-C or SIGTERM and ends what it
started.
"""

from __future__ import annotations

import json
import secrets
import signal
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import click
import redis
import yaml

from tests.support import monitoring
from tests.support.compose import ROOT, Stack, StackError, until, variables_of
from worker import RefundRequest, Refunds
from worker.errors import RefundError
from worker.settings import Settings

KEY: Final = "sk_test_stack"
SERVICES: Final = ("sandbox", "worker", "metrics", "flower")
WATCH_SECONDS: Final = 1.0
ALERT_SECONDS: Final = 5.0


@click.command()
@click.option(
    "--traffic",
    default=1.0,
    show_default=True,
    type=click.FloatRange(0, 100),
    help="Refunds a second.",
)
@click.option(
    "--prometheus/--no-prometheus", "monitored", default=True, help="Debian's, fetched if need be."
)
def main(*, traffic: float, monitored: bool) -> None:
    """Run the whole installation as processes against the sandbox, until Ctrl-C."""
    ended = threading.Event()
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, lambda *_: ended.set())
    password = secrets.token_hex(4)
    with tempfile.TemporaryDirectory(prefix="refunds-stack-") as folder:
        stack = Stack(
            Path(folder), variables_of(ROOT / "ops" / "docker" / "demo.env"), usual_ports=True
        )
        (stack.folder / "secrets" / "refunds_api_key").write_text(f"{KEY}\n")
        (stack.folder / "secrets" / "flower_basic_auth").write_text(f"operator:{password}\n")
        stack.extra |= {"FLOWER_PORT": str(stack.ports["flower"])}
        try:
            _start(stack, ended)
            prometheus = monitored and _monitored(stack)
            click.echo(_shown(stack, password, prometheus=prometheus))
            _run(stack, traffic, ended, Alerts(stack.url("prometheus")) if prometheus else None)
        except StackError as error:
            raise click.ClickException(str(error)) from None
        finally:
            # A second Ctrl-C must not leave processes behind.
            click.echo("ending what was started", err=True)
            stack.stop()


def _start(stack: Stack, ended: threading.Event) -> None:
    stack.start("redis")
    with redis.Redis.from_url(stack.redis_url) as client:
        until(lambda: _answers(client), "the server answers")
    for name in SERVICES:
        if not ended.is_set():
            stack.start(name)
    stack.await_healthy(*(name for name in SERVICES if name in stack.running))


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False


def _monitored(stack: Stack) -> bool:
    """Start Prometheus on the project's own rules; say why where it cannot be had."""
    try:
        stack.tools = monitoring.programs()
    except monitoring.ToolsMissingError as error:
        click.echo(f"no Prometheus: {error}", err=True)
        return False
    folder = ROOT / "ops" / "prometheus"
    config: dict[str, Any] = yaml.safe_load((folder / "prometheus.yml").read_text())
    del config["alerting"]  # no Alertmanager here: its page shows what fires
    (stack.folder / "etc" / "prometheus.yml").write_text(stack.here(yaml.safe_dump(config)))
    (stack.folder / "etc" / "rules.yml").write_text((folder / "rules.yml").read_text())
    stack.start("prometheus")
    return True


def _shown(stack: Stack, password: str, *, prometheus: bool) -> str:
    sandbox = stack.url("sandbox")
    lines = [
        f"records      {stack.redis_url}",
        f"provider     {sandbox}  (the sandbox: no money anywhere)",
        f"Flower       {stack.url('flower')}  user operator, password {password}",
        f"metrics      {stack.url('metrics')}/metrics",
        *(
            [f"Prometheus   {stack.url('prometheus')}/api/v1/alerts; what fires is said here too"]
            if prometheus
            else []
        ),
        f"logs         {stack.folder}/worker.log and its neighbours",
        "",
        "In another terminal:",
        f"  export REFUNDS_REDIS_URL={stack.redis_url} REFUNDS_API_URL={sandbox} \\",
        f"    REFUNDS_API_KEY={KEY} REFUNDS_READBACK={stack.variables['REFUNDS_READBACK']}",
        "  ./ops/dev refunds doctor",
        "Break the provider, and mend it:",
        f"""  curl -d '{{"spec": "http_401:p=1:on=any"}}' {sandbox}/_sandbox/faults""",
        f"  curl -X DELETE {sandbox}/_sandbox/faults",
        "",
        "Ctrl-C ends all of it.",
    ]
    return "\n".join(lines)


class Alerts:
    """Says which of Prometheus' alerts begin to fire, and which are over."""

    def __init__(self, url: str) -> None:
        self._url = f"{url}/api/v1/alerts"
        self._firing: frozenset[str] = frozenset()
        self._looked_at = 0.0

    def look(self) -> None:
        """Ask Prometheus, every few seconds at most, and print what changed."""
        if time.monotonic() < self._looked_at + ALERT_SECONDS:
            return
        self._looked_at = time.monotonic()
        try:
            with urllib.request.urlopen(self._url, timeout=ALERT_SECONDS) as answer:  # noqa: S310 - loopback, our own
                alerts = json.load(answer)["data"]["alerts"]
        except (OSError, ValueError):
            return
        texts = {
            each["labels"]["alertname"]: each["annotations"]
            for each in alerts
            if each["state"] == "firing"
        }
        for name in sorted(texts.keys() - self._firing):
            click.echo(
                f"{_time()} {name} fires: {texts[name]['summary']} ({texts[name]['runbook']})"
            )
        for name in sorted(self._firing - texts.keys()):
            click.echo(f"{_time()} {name} is over")
        self._firing = frozenset(texts)


def _time() -> str:
    return time.strftime("%H:%M:%S")


def _run(stack: Stack, traffic: float, ended: threading.Event, alerts: Alerts | None) -> None:
    """Hand in refunds and watch processes and alerts until told to end."""
    with Refunds(settings=Settings.load(redis_url=stack.redis_url)) as refunds:
        for request in _requests():
            if ended.wait(1 / traffic if traffic else WATCH_SECONDS):
                return
            if alerts is not None:
                alerts.look()
            for name, service in stack.running.items():
                if service.process.poll() is not None:
                    raise StackError(
                        f"{name} ended with {service.process.returncode}: {service.said[-2000:]}"
                    )
            if traffic:
                try:
                    refunds.submit(request)
                except RefundError as error:
                    click.echo(f"{request.refund_id} was not accepted: {error}", err=True)


def _requests() -> Iterator[RefundRequest]:
    started, number = int(time.time()), 0
    while True:
        number += 1
        yield RefundRequest(
            refund_id=f"stack-{started}-{number}",
            payment_intent=f"pi_stack{started}n{number}",
            amount=500,
        )


if __name__ == "__main__":
    sys.exit(main())
