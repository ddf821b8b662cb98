"""What the tests of rechecks share: named, settled and retried refunds, and one that reads again.

Each read, answer, trouble and result is counted.
"""

from __future__ import annotations

from typing import Any

from tests.factories import PAYMENT, refund_payload
from tests.unit.engine.shop import ID, POST, Given, Shop, error, says
from worker.engine.candidates import CandidateReader
from worker.engine.endings import Ending
from worker.engine.rechecker import Rechecker
from worker.engine.recorder import Recorder
from worker.model.answers import Outcome, Readback
from worker.model.hints import Hint
from worker.rules import decisions
from worker.store import reads, rechecks, saves

NAMED = "GET /v1/refunds/re_9"
OWN = "GET /v1/refunds/re_1"
RETRIED = "GET /v1/refunds/re_2"


def of_generation(generation: int, **fields: Any) -> dict[str, Any]:
    """The provider's refund `re_9` with our id and a generation."""
    metadata = {"refund_id": ID, "refund_generation": str(generation)}
    return refund_payload(id="re_9", metadata=metadata, **fields)


async def hint(shop: Shop, name: str = "re_9", status: str | None = None) -> None:
    named = Hint(provider_refund_id=name, refund_id=ID, payment_intent=PAYMENT, status=status)
    await shop.store.run(rechecks.hint(named))


async def settle(shop: Shop, status: str = "succeeded") -> None:
    await shop.accept()
    shop.provider.will(POST, says(200, refund_payload(status=status)))
    await shop.handle()
    shop.provider.asked.clear()


async def retry(shop: Shop) -> None:
    failed = await shop.stored()
    step = decisions.retry_failed(failed)
    assert step is not None
    assert (await shop.store.run(saves.save(failed, step))).result == "saved"


async def failed_and_retried(shop: Shop) -> None:
    await settle(shop, "failed")
    await retry(shop)


async def retried_and_refused(shop: Shop, own: str | None = None) -> None:
    """A refund whose retry was refused, or failed or succeeded with an id of its own."""
    await failed_and_retried(shop)
    shop.provider.will(OWN, says(200, refund_payload(status="failed")))
    metadata = {"refund_id": ID, "refund_generation": "2"}
    answer = says(200, refund_payload(id="re_2", metadata=metadata, status=own or "failed"))
    shop.provider.will(POST, error(402) if own is None else answer)
    await shop.handle()
    if own is not None:
        shop.provider.will(RETRIED, answer)
    shop.provider.asked.clear()
    await shop.store.redis.zadd("refunds:rechecks", {ID: 1})


def posts(shop: Shop) -> int:
    return shop.provider.asked.count(POST)


class Rereads:
    """A `Rechecker` over a shop's records, with what it reported of the provider."""

    def __init__(self, shop: Shop) -> None:
        self.shop = shop
        self.trouble: list[Outcome] = []
        self.answers = 0
        self.counts: list[str] = []
        self.candidates = CandidateReader(
            shop.store,
            shop.gateway,
            account=shop.service.account,
            note_trouble=self._note_trouble,
            note_answer=self._note_answer,
        )
        self.rechecker = Rechecker(
            shop.gateway,
            Recorder(shop.store, clock=shop.clock, handle_again=lambda *_: None),
            self.candidates,
            clock=shop.clock,
            note_trouble=self._note_trouble,
            note_answer=self._note_answer,
            on_recheck=self.counts.append,
        )

    async def _note_trouble(self, outcome: Outcome) -> None:
        self.trouble.append(outcome)

    def _note_answer(self) -> None:
        self.answers += 1

    async def _permit(self) -> None:
        """The rate is not what these tests are about."""

    async def run(self) -> Ending | None:
        """Recheck the refund as it stands; the ending, with only this recheck's counts."""
        self.trouble.clear()
        self.counts.clear()
        self.answers = 0
        self.shop.provider.asked.clear()
        loaded = await self.shop.store.run(reads.load(ID))
        ending: Ending | None = await self.rechecker.run(
            loaded.refund, loaded.recheck, loaded.now, self._permit
        )
        return ending

    async def read_back(self) -> Readback | None:
        """Read back the refund's candidates, as for a refund in doubt."""
        return await self.candidates.read_back(await self.shop.refund(), self._permit)

    async def named(self, answer: Given, name: str = "re_9") -> None:
        """Let a webhook name a refund that the provider shows so."""
        await hint(self.shop, name)
        self.shop.provider.will(f"GET /v1/refunds/{name}", answer)

    @property
    def codes(self) -> list[str]:
        """The codes of the trouble that was noted."""
        return [outcome.code for outcome in self.trouble]


async def labels(rereads: Rereads) -> list[str]:
    return [entry["label"] for entry in await rereads.shop.history()]
