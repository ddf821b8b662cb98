"""Checks that the API key belongs to the provider account of the records, by what the key can read.

A key of another account can read nothing of ours: it would show every refund in doubt as absent and
every payment as missing. So a key that the records do not know yet is confirmed before it is used.
A payment that was shown once and is missing now stops everything.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Sequence
from http import HTTPStatus
from typing import Final

import structlog

from worker.errors import ProviderMismatch, ProviderUnavailable
from worker.model.answers import Answer, Reply
from worker.provider.gateway import Gateway, Permit, is_missing, shows
from worker.store import account_facts
from worker.store.async_store import AsyncStore
from worker.store.flags import key_print

log = structlog.get_logger(__name__)

WITNESSES: Final = 3
"""Number of refunds, and of payments, that are read to confirm a key."""
_OTHER: Final = (
    "with this key the provider shows none of {count} refunds and payments that these records know,"
    " so it most likely belongs to another account: set REFUNDS_API_KEY to a key of the records'"
    " account, or use another REFUNDS_PREFIX or database; if it certainly is the same account, run"
    " 'refunds resume --account'"
)


class Account:
    """Confirms API keys, and detects payments that have disappeared.

    A refused key calls `refuse_credentials`.
    """

    def __init__(
        self,
        store: AsyncStore,
        gateway: Gateway,
        *,
        refuse_credentials: Callable[[], Awaitable[None]],
    ) -> None:
        self._store = store
        self._gateway = gateway
        self._refuse_credentials = refuse_credentials

    # A key at its start

    async def confirm(self, key: str) -> None:
        """Return if the key belongs to the records' account, or if nothing shows that account yet.

        Raises `ProviderMismatch` if it belongs to another account, `ProviderUnavailable` if that is
        not known now.
        """
        facts = await self._store.run(account_facts.account(secrets.token_hex(16)))
        known = key_print(key, facts.salt)
        if known in facts.prints:
            return
        account = await self._gateway.account()
        if not facts.vouched:
            await self._compare(facts, account)
        await self._store.run(account_facts.account(facts.salt, known=known, account=account or ""))
        log.info("key_confirmed", account=account, first=not facts.prints)

    async def _compare(self, facts: account_facts.AccountFacts, account: str | None) -> None:
        if facts.account is None or account is None:
            await self._ask_witnesses(rotated=bool(facts.prints))
        elif account != facts.account:
            raise ProviderMismatch(
                f"these records belong to the account {facts.account}, and the key belongs to"
                f" {account}: set REFUNDS_API_KEY to a key of the records' account, or use another"
                " REFUNDS_PREFIX or database"
            )

    async def _ask_witnesses(self, *, rotated: bool) -> None:
        witnesses = await self._store.run(account_facts.witnesses(WITNESSES))
        answers = [
            (name, await self._gateway.get_refund(name, about=None)) for name in witnesses.refunds
        ]
        if not any(shows(answer, name) for name, answer in answers):
            answers += await self._payments(witnesses.seen)
        if not answers and rotated:
            # Nothing was shown yet, so the new key must read at least the payment of one refund in
            # doubt.
            answers = await self._payments(witnesses.unseen)
        await self._judge(answers)

    async def _payments(self, payments: Sequence[str]) -> list[tuple[str, Answer]]:
        return [
            (name, await self._gateway.get_payment_intent(name, about=None)) for name in payments
        ]

    async def _judge(self, answers: Sequence[tuple[str, Answer]]) -> None:
        if not answers or any(shows(answer, name) for name, answer in answers):
            return
        if all(is_missing(answer) for _, answer in answers):
            raise ProviderMismatch(_OTHER.format(count=len(answers)))
        if any(
            isinstance(answer, Reply) and answer.http_status == HTTPStatus.UNAUTHORIZED
            for _, answer in answers
        ):
            await self._refuse_credentials()
            raise ProviderUnavailable(
                "the provider refuses the key, which these records do not know: set another"
                " REFUNDS_API_KEY"
            )
        raise ProviderUnavailable(
            "these records do not know the key, and the provider does not show whether it belongs"
            " to the same account: nothing is sent until it does, or until you confirm it with"
            " 'refunds resume --account'"
        )

    # Payments

    async def shown(self, payment_intent: str) -> None:
        """Record that the provider shows a payment."""
        await self._store.run(account_facts.payment(payment_intent, "shown"))

    async def is_lost(self, payment_intent: str, permit: Permit) -> bool:
        """Return whether a payment that is missing now was shown once.

        If so, stop everything and raise an alarm.

        First the payment is read once more, after `permit`, so that one lagging replica of the
        provider stops nothing.
        """
        result = await self._store.run(account_facts.payment(payment_intent, "missing"))
        if result == "suspect" and is_missing(
            await self._gateway.get_payment_intent(payment_intent, permit, about=None)
        ):
            result = await self._store.run(account_facts.payment(payment_intent, "certain"))
        if result == "raised":
            log.critical("account_lost", alarm=True, payment_intent=payment_intent)
        return result in {"raised", "lost"}

    async def probe(self) -> bool:
        """Resume if the missing payment is shown again; return whether nothing is stopped now."""
        (payment_intent,) = await self._store.meta("account_lost_payment")
        if payment_intent is None:
            return True
        if not shows(
            await self._gateway.get_payment_intent(payment_intent, about=None), payment_intent
        ):
            return False
        await self._store.unflag("account_lost_at", "account_lost_payment")
        log.info("account_found_again", payment_intent=payment_intent)
        return True
