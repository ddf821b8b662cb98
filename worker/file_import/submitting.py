"""Submits the valid rows of a file as the refunds of a batch.

An interrupted import can be run again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from worker import batches
from worker.client import Refunds
from worker.errors import GuardRefused
from worker.importer import SameRefund, Source, Validation, accepted
from worker.importer.prefetch import ahead
from worker.model.refund import Lane
from worker.model.request import RefundRequest

_SHOW_EVERY: Final = 500
"""Rows after which an import shows its progress, and checks whether its batch was canceled."""
_COMPARED_AT_ONCE: Final = 500


class BatchCanceled(GuardRefused):
    """The batch was canceled during its import; its further rows were not imported."""


@dataclass(kw_only=True)
class SubmitCounts:
    """How many rows of a file were accepted, were known before, or conflict with a refund.

    `repeating` rows were left out because of a refund of the same payment and amount, which was not
    there when the file was compared with the records.
    """

    created: int = 0
    known: int = 0
    conflicting: int = 0
    repeating: int = 0

    @property
    def rows(self) -> int:
        """Return how many rows have a result."""
        return self.created + self.known + self.left_out

    @property
    def left_out(self) -> int:
        """Return how many rows were valid and not accepted."""
        return self.conflicting + self.repeating


def submit(
    refunds: Refunds,
    batch_id: str,
    source: Source,
    validation: Validation,
    counts: SubmitCounts,
    on_progress: Callable[[int], None],
) -> None:
    """Accept every row that has no refund yet; record at the end that the import is complete.

    `counts` grow on the way, so that they say after an error what is accepted. `on_progress`
    receives the number of rows now and then. Raises `BatchCanceled`, `NotFound`.
    """
    batch = batches.read_batch(refunds.store, batch_id)
    # An import that was deferred submits its rows long after its batch was opened.
    _refuse_canceled(batch_id, batch.state, batch.accepted)
    # Since the comparison, another file may have been imported, perhaps for days.
    is_guarded = not batch.allow_repeat
    differing: list[RefundRequest] = []
    same_refund = SameRefund()
    requests: Iterator[RefundRequest] = (row.request for row in accepted(source, validation))
    with ahead(requests) as ready:
        for request, made in refunds.submit_stream(
            ready, lane=Lane.BULK, batch_id=batch_id, refuse_repeats=is_guarded
        ):
            if made.result == "created":
                counts.created += 1
            elif made.result == "exists":
                counts.known += 1
            elif made.result == "repeat":
                counts.repeating += 1
            else:
                counts.conflicting += 1
                differing.append(request)
                if len(differing) >= _COMPARED_AT_ONCE:
                    _count_known(refunds, differing, counts, same_refund)
            done = counts.rows
            if done % _SHOW_EVERY == 0:
                on_progress(done)
                _refuse_canceled(batch_id, _state(refunds, batch_id), counts.rows)
    _count_known(refunds, differing, counts, same_refund)
    _state(refunds, batch_id)
    rows_in = counts.created + counts.known
    batches.close_batch(refunds.store, batch_id, handed_in=rows_in, conflicting=counts.left_out)


def _count_known(
    refunds: Refunds, differing: list[RefundRequest], counts: SubmitCounts, same_refund: SameRefund
) -> None:
    """Count a row as known if it differs from its refund only in metadata that made its id."""
    found = refunds.get_many([request.refund_id for request in differing]) if differing else []
    same = sum(
        refund is not None
        and refund.metadata_erased_at is None
        and same_refund(request, refund.as_request())
        for request, refund in zip(differing, found, strict=True)
    )
    counts.known += same
    counts.conflicting -= same
    differing.clear()


def _state(refunds: Refunds, batch_id: str) -> str:
    """Return the state of the batch.

    Raises `NotFound` if it has none: a server that was restored meanwhile counts the rows that came
    since, and has lost the others.
    """
    state = batches.state_of_batch(refunds.store, batch_id)
    if state is None:
        raise batches.unknown(batch_id)
    return state


def _refuse_canceled(batch_id: str, state: str, rows: int) -> None:
    if state == "canceled":
        raise BatchCanceled(
            f"batch {batch_id} was canceled after {rows:,} rows were accepted: the rest was not"
            " imported, and refunds that were not sent are canceled; see 'refunds batch show"
            f" {batch_id}'"
        )
