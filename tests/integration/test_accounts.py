"""Keys of one account and of another.

What a worker does with a key that the records do not know yet.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.installation import Installation, Worker, until
from worker.model.refund import Stage, Status
from worker.model.request import RefundRequest
from worker.sandbox.config import SandboxConfig
from worker.store import flags

OURS, THEIRS = "sk_test_canary_of_ours", "sk_test_canary_of_theirs"


def request(refund_id: str = "order-1-1", payment_intent: str = "pi_1") -> RefundRequest:
    return RefundRequest(refund_id=refund_id, payment_intent=payment_intent, amount=500)


def start(installation: Installation, key: str) -> Worker:
    installation.settings["REFUNDS_API_KEY"] = key
    return installation.start()


def looks(installation: Installation) -> int:
    """How often the list of the payment was asked for."""
    return sum(seen["path"].startswith("/v1/refunds?") for seen in installation.sandbox.requests())


@pytest.mark.parametrize("sandbox_config", [SandboxConfig(idempotency="ignore", accounts="hidden")])
def test_key_of_another_account_proves_no_absence_and_moves_no_money_twice(
    installation: Installation,
) -> None:
    installation.sandbox.set_faults("cut_after:n=1,http_500_before:p=1:on=list")
    first = start(installation, OURS)
    with installation.refunds() as refunds:
        refunds.submit(request())
        until(lambda: refunds.get("order-1-1").stage is Stage.IN_DOUBT, "the refund is in doubt")
        first.stop()
        installation.sandbox.set_faults("")
        refused = start(installation, THEIRS)
        assert refused.process.wait(20) == 6
        assert "most likely belongs to another account" in refused.said
        assert "canary" not in refused.said
        # A person insists: then at least nothing is concluded from what the key cannot see.
        flags.vouch_for_account(refunds.store)
        second = start(installation, THEIRS)
        before = looks(installation)
        until(lambda: looks(installation) >= before + 3, "the doubt was looked at three times")
        doubtful = refunds.get("order-1-1")
        assert (doubtful.stage, doubtful.attempts) == (Stage.IN_DOUBT, 1)
        second.stop()
        start(installation, OURS)
        settled = refunds.wait("order-1-1", timeout=40)
    assert (settled.status, settled.attempts) == (Status.SUCCEEDED, 1)
    assert len(installation.sandbox.effects()) == 1


def test_key_that_was_rotated_within_its_account_works_without_a_person(
    installation: Installation,
) -> None:
    for number, key in enumerate((OURS, "sk_test_canary_rotated")):
        worker = start(installation, key)
        with installation.refunds() as refunds:
            refunds.submit(request(f"order-{number}-1", f"pi_{number}"))
            assert refunds.wait(f"order-{number}-1", timeout=20).status is Status.SUCCEEDED
        worker.stop()


@pytest.mark.parametrize(
    ("sandbox_config", "words"),
    [
        (SandboxConfig(accounts="hidden"), "none of 1 refunds and payments"),
        (SandboxConfig(accounts="shown"), "these records belong to the account acct_"),
    ],
)
def test_worker_with_a_key_of_another_account_does_not_start(
    installation: Installation, words: str
) -> None:
    first = start(installation, OURS)
    with installation.refunds() as refunds:
        refunds.submit(request())
        assert refunds.wait("order-1-1", timeout=20).status is Status.SUCCEEDED
        first.stop()
        refused = start(installation, THEIRS)
        assert (refused.process.wait(20), words in refused.said) == (6, True)
        assert start(installation, OURS).process.poll() is None


@pytest.mark.parametrize("sandbox_config", [SandboxConfig(accounts="hidden")])
def test_a_worker_that_does_not_come_to_work_leaves_no_heartbeat(
    installation: Installation, tmp_path: Path
) -> None:
    """A cluster would replace workers that work by it, and have none left."""
    heartbeat = tmp_path / "heartbeat"
    first = start(installation, OURS)
    with installation.refunds() as refunds:
        refunds.submit(request())
        assert refunds.wait("order-1-1", timeout=20).status is Status.SUCCEEDED
    first.stop()
    installation.settings["REFUNDS_HEARTBEAT_FILE"] = str(heartbeat)
    assert start(installation, THEIRS).process.wait(20) == 6
    assert not heartbeat.exists()
    start(installation, OURS)
    assert heartbeat.exists()
