"""Erases the metadata of refunds that settled long enough ago (`REFUNDS_METADATA_DAYS`).

Any number of workers may do this at once: each refund is changed by compare-and-set.
"""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import Final

import structlog

from worker.errors import NotStorable
from worker.model.refund import Status
from worker.store import erasure, reads
from worker.store.async_store import AsyncStore

log = structlog.get_logger(__name__)

MOST: Final = 100
"""Maximum refunds of one list, which one script reads."""
PAGES: Final = 10
"""Maximum lists of one final status in one pass."""


async def erase_metadata(store: AsyncStore, age: timedelta) -> int:
    """Erase the metadata of refunds that settled more than `age` ago; return how many.

    At most `PAGES` lists per final status, so that a large backlog does not hold up other work.
    Raises `StoreUnavailable`; the next pass erases what is left.
    """
    total = 0
    for status in erasure.FINAL:
        total += await _erase_settled(store, status, age)
    if total:
        log.info("metadata_erased", count=total)
    return total


async def _erase_settled(store: AsyncStore, status: Status, age: timedelta) -> int:
    total = 0
    listed = await store.run(erasure.erasable(status, age, most=MOST))
    for left in reversed(range(PAGES)):
        if listed.until is None:
            break
        erased = await asyncio.gather(
            *(_erase(store, refund_id, listed.now) for refund_id in listed.refund_ids)
        )
        total += sum(erased)
        # The cursor moves only after the list is erased, so a crash between leaves nothing out.
        most = MOST if left else 0
        listed = await store.run(erasure.erasable(status, age, done=listed.until, most=most))
    return total


async def _erase(store: AsyncStore, refund_id: str, now: datetime) -> bool:
    try:
        refund = (await store.run(reads.load(refund_id))).refund
        if refund is None or not refund.settled or not refund.metadata:
            return False
        # If another writer was faster, the refund was erased, is sent again, or has settled with a
        # later time: then it is listed again.
        return (await store.run(erasure.erase(refund, now))).result == "saved"
    except (ValueError, NotStorable) as error:
        # The record cannot be read, so its fingerprint is not known, or it cannot be written. The
        # other refunds go on.
        log.error(  # noqa: TRY400 - the error of this record, not of the worker
            "metadata_not_erased", refund_id=refund_id, error=type(error).__name__, alarm=True
        )
        return False
