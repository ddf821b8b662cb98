"""Commands run as a person runs them, in this process or in one of their own, and records in every
stage.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import redis
from click.testing import CliRunner

from worker.cli.group import refunds
from worker.model.answers import ProviderRefund
from worker.model.refund import Lane, Refund, Stage, Status
from worker.model.request import RefundRequest
from worker.model.steps import Step
from worker.rules import proofs
from worker.store import claims, creations, reads, saves
from worker.store.store import Store

PAYMENT = "pi_1787730829493927936"
SECONDS = 20


@dataclass(frozen=True, kw_only=True)
class Ran:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def objects(self) -> list[dict[str, Any]]:
        """Every line of stdout as the JSON object it must be."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def object(self) -> dict[str, Any]:
        """The one object of stdout."""
        (only,) = self.objects
        return only


@dataclass(frozen=True, kw_only=True)
class Cli:
    """The command line with its environment; no variable of ours leaks in from outside."""

    environment: dict[str, str] = field(default_factory=dict)

    def __call__(self, *arguments: str, stdin: str | None = None, **more: str) -> Ran:
        """Run in this process."""
        foreign: dict[str, str | None] = {
            name: None for name in os.environ if name.startswith("REFUNDS_")
        }
        environment = foreign | self.environment | more
        result = CliRunner().invoke(
            refunds, arguments, input=stdin, env=environment, prog_name="refunds"
        )
        ran = Ran(code=result.exit_code, out=result.stdout, err=result.stderr)
        assert "Traceback" not in ran.out + ran.err
        return ran

    def real(self, **more: str) -> dict[str, str]:
        """The environment of a process of its own."""
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith("REFUNDS_")
        }
        return kept | self.environment | more

    def process(self, *arguments: str, **more: str) -> Ran:
        """Run in a process of its own, without a terminal."""
        done = subprocess.run(
            [sys.executable, "-m", "worker", *arguments],
            env=self.real(**more),
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert "Traceback" not in done.stdout + done.stderr
        return Ran(code=done.returncode, out=done.stdout, err=done.stderr)


@dataclass(frozen=True, kw_only=True)
class Records:
    """Puts refunds into the stages a worker would bring them to."""

    store: Store

    def queued(self, refund_id: str, *, batch_id: str | None = None, **fields: Any) -> Refund:
        """A refund that was accepted."""
        values: dict[str, Any] = {"payment_intent": PAYMENT, "amount": 500, **fields}
        lane = Lane.BULK if batch_id else Lane.SINGLE
        self.store.run(
            creations.create(RefundRequest(refund_id=refund_id, **values), lane, batch_id)
        )
        return self.get(refund_id)

    def sending(self, refund_id: str, **fields: Any) -> Refund:
        """A refund that a worker has claimed."""
        self.queued(refund_id, **fields)
        return self.claimed(refund_id)

    def claimed(self, refund_id: str) -> Refund:
        """An accepted refund, claimed by a worker that has just read its payment."""
        loaded = self.store.run(reads.load(refund_id))
        seen: dict[str, Any] = {"seq": loaded.seq}
        if loaded.refund is not None and loaded.refund.asked_currency is not None:
            seen["currency_checked"] = True
        claim = self.store.run(
            claims.claim(refund_id, "send", token="t-1", lease=timedelta(seconds=45), **seen)
        )
        assert claim.claimed, claim.result
        return self.get(refund_id)

    def succeeded(
        self, refund_id: str, provider_refund_id: str = "re_1", *, shown: str = "usd", **fields: Any
    ) -> Refund:
        """A refund that the provider has done, in the currency it shows."""
        refund = self.sending(refund_id, **fields)
        found = ProviderRefund(
            id=provider_refund_id, status="succeeded", amount=500, currency=shown
        )
        return self._saved(refund, proofs.done(refund, found, "reply", refund.updated_at))

    def failed(self, refund_id: str, **fields: Any) -> Refund:
        """A refund that the provider has refused."""
        self.queued(refund_id, **fields)
        return self.failed_again(refund_id)

    def failed_again(self, refund_id: str) -> Refund:
        """An accepted refund, or one that is sent again, which the provider has refused."""
        refund = self.claimed(refund_id)
        return self._saved(
            refund,
            Step(
                to=Stage.SETTLED,
                status=Status.FAILED,
                label="card_gone",
                changes={"error_code": "card_gone"},
            ),
        )

    def in_review(self, refund_id: str, *, doubt: bool = True, **fields: Any) -> Refund:
        """A refund that a person must decide."""
        refund = self.sending(refund_id, **fields)
        changes: dict[str, Any] = {"error_code": "no_reply", "error_message": "the reply was cut"}
        if doubt:
            changes |= {"doubt_since": refund.updated_at, "looks": 5}
        return self._saved(refund, proofs.to_review(changes, "inconclusive", "it cannot be told"))

    def _saved(self, refund: Refund, step: Step) -> Refund:
        # As a worker's recorder does.
        detail = {"seen": "done"} | ({"alarm": step.alarm} if step.alarm else {})
        assert self.store.run(saves.save(refund, step, detail)).result == "saved"
        return self.get(refund.refund_id)

    def get(self, refund_id: str) -> Refund:
        """The record as it stands."""
        refund = self.store.get(refund_id)
        assert refund is not None
        return refund


def messages(client: redis.Redis, lane: Lane) -> int:
    """How many messages wait in a lane's queue."""
    depth: Any = client.llen(lane.value)
    return int(depth)
