"""Probes of a sandbox, run to their end without waiting: a pause settles what is pending
instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from worker.probing.advice import advise
from worker.probing.probe import Probe
from worker.probing.questions import Order, Question
from worker.probing.report import Report
from worker.sandbox.config import SandboxConfig
from worker.sandbox.running import Sandbox, running_sandbox
from worker.settings import Settings

KEY = "sk_test_planted"


def settings(url: str, **more: Any) -> Settings:
    """The settings of a probe; none of this machine's environment counts, since all that matter are
    given.
    """
    return Settings.load(api_url=url, api_key=KEY, request_timeout_seconds=5, **more)


async def probed(
    sandbox: Sandbox, payment: str = "pi_1", amount: int = 1, *, settles: bool = True
) -> Report:
    """What a probe reports; with `settles` a pause lets pending refunds settle."""

    async def pause(_: float) -> None:
        if settles:
            sandbox.advance()

    return await Probe(settings(sandbox.url), Order.new(payment, amount), sleep=pause).run()


@contextmanager
def provider(**modes: Any) -> Iterator[Sandbox]:
    """A sandbox with these modes, whose pending refunds settle only when told."""
    with running_sandbox(SandboxConfig(api_key=KEY, settle_ms=None, **modes)) as running:
        yield running


def answers(report: Report) -> dict[Question, str]:
    """The verdicts by question."""
    return {question: found.verdict.value for question, found in report.findings.items()}


def advised(report: Report) -> dict[str, str]:
    """The settings that follow, by the variable without its prefix."""
    return {
        advice.variable.removeprefix("REFUNDS_"): advice.value for advice in advise(report.findings)
    }


def moved(sandbox: Sandbox) -> int:
    """How many minor units the ledger says were refunded or reserved."""
    return sum(entry["amount"] for entry in sandbox.effects())


def posts(sandbox: Sandbox) -> list[dict[str, Any]]:
    """The requests that asked for a refund."""
    return [request for request in sandbox.requests() if request["method"] == "POST"]
