"""The report of one probe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from worker.probing.advice import advise
from worker.probing.questions import Findings, Order, Problem


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """The results of one probe. `spent` is known to have moved.

    `uncertain` may have, both in minor units.
    """

    order: Order
    host: str
    posts: int
    refunds: tuple[str, ...]
    spent: int
    uncertain: int
    currency: str | None
    findings: Findings
    problem: Problem | None

    def as_dict(self) -> dict[str, Any]:
        """Return the report for JSON."""
        return {
            "run": self.order.run,
            "host": self.host,
            "payment_intent": self.order.payment_intent,
            "amount": self.order.amount,
            "currency": self.currency,
            "posts": self.posts,
            "refunds": list(self.refunds),
            "spent": self.spent,
            "may_have_been_spent": self.uncertain,
            "findings": {
                question.value: {"answer": found.verdict.value, "evidence": found.evidence}
                for question, found in self.findings.items()
            },
            "settings": {advice.variable: advice.value for advice in advise(self.findings)},
            "problem": None if self.problem is None else self.problem.text,
        }
