"""The commands for what is known about the account that the records belong to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from worker.store import scripts
from worker.store.scripts import Command


def payment(
    payment_intent: str, found: Literal["shown", "missing", "certain", "gone"]
) -> Command[str]:
    """Record whether the provider shows a payment.

    Returns `suspect` if it was shown once and is now `missing`.

    `certain` means that it is still missing. This stops all claims, and returns `raised`, or `lost`
    if they were stopped already. `gone` means that a person says that the payment no longer exists.
    The command is not durable, because the next read finds again what a crash undoes.
    """
    return Command(
        script=scripts.PAYMENT, arguments=[payment_intent, found], read=str, durable=False
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class AccountFacts:
    """What is known about the account that the records belong to.

    Its id if the provider shows one, and fingerprints.

    `prints` are fingerprints of API keys of the account. `vouched`: a person says that the next key
    belongs to it.
    """

    salt: str
    account: str | None
    prints: frozenset[str]
    vouched: bool


def account(salt: str, *, known: str = "", account: str = "") -> Command[AccountFacts]:
    """Read what is known about the account.

    `known`, if given, is added as the fingerprint of one of its API keys.
    """

    def read(reply: Any) -> AccountFacts:
        return AccountFacts(
            salt=reply[0],
            account=reply[1] or None,
            prints=frozenset(reply[2].split()),
            vouched=reply[3] == "1",
        )

    return Command(script=scripts.ACCOUNT, arguments=[salt, known, account], read=read)


@dataclass(frozen=True, kw_only=True, slots=True)
class Witnesses:
    """Objects that a key of the records' account can read.

    Refunds by provider id, and payments of refunds in doubt.
    """

    refunds: Sequence[str]
    seen: Sequence[str]
    """Payments that the provider has shown before."""
    unseen: Sequence[str]


def witnesses(most: int) -> Command[Witnesses]:
    """Read at most `most` witnesses of each kind."""

    def read(reply: Any) -> Witnesses:
        return Witnesses(refunds=reply[0], seen=reply[1], unseen=reply[2])

    return Command(script=scripts.WITNESSES, arguments=[most], read=read, durable=False)
