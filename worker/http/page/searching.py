"""Finds what a person types into the search: an exact id, or an order number in made ids."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Final

from worker.batches import is_batch_id, list_batches
from worker.client import Refunds
from worker.file_import import UnknownReading, reading_of
from worker.importer.columns import id_fields
from worker.importer.ids import MadeId, base_of
from worker.model.refund import Refund
from worker.model.request import is_provider_id, is_refund_id

MOST_BATCHES: Final = 100
"""The latest batches whose files' ways to make ids are tried."""
MOST_NUMBERED: Final = 9
"""The highest number of a refund, an attempt or an equal row that is tried."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """Where an exact search leads: to one refund, a payment or a batch; or nowhere."""

    refund_id: str | None = None
    payment: str | None = None
    batch: str | None = None


def search(refunds: Refunds, text: str) -> Found:
    """Find what has exactly this id.

    A refund by its own id, else a batch, else a payment with refunds, else the refund that a refund
    of the provider belongs to.
    """
    store = refunds.store
    if is_refund_id(text) and store.get(text) is not None:
        return Found(refund_id=text)
    if is_batch_id(text) and store.batch_state(text) is not None:
        return Found(batch=text)
    if is_provider_id(text) and store.ids_on_payment(text):
        return Found(payment=text)
    owner = store.owner_of(text) if is_provider_id(text) else None
    return Found(refund_id=owner if owner is not None and store.get(owner) is not None else None)


def of_order(refunds: Refunds, number: str) -> list[Refund]:
    """Return the refunds whose ids are made from an order number.

    Their ids are numbered after it, as `order-1001-1` after `order-1001`, or a file of one of the
    latest batches made them from one column. Only exact ids are read, so nothing is scanned.
    """
    numbers = range(1, MOST_NUMBERED + 1)
    ids = [f"{number}-{each}" for each in numbers]
    for field in _columns(refunds):
        base = base_of([(field, number)])
        ids += [MadeId(base, attempt=each).text for each in numbers]
        ids += [MadeId(base, occurrence=each).text for each in numbers[1:]]
    found = refunds.store.get_many([each for each in ids if is_refund_id(each)])
    return [refund for refund in found if refund is not None]


def _columns(refunds: Refunds) -> list[str]:
    """Return each column that alone made the ids of a recent file."""
    batches = islice(list_batches(refunds.store), MOST_BATCHES)
    made: set[tuple[str, ...]] = set()
    for batch in batches:
        with suppress(UnknownReading):
            made.add(id_fields(reading_of(batch.options)))
    return sorted(fields[0] for fields in made if len(fields) == 1)
