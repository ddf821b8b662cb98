"""A file's valid rows handed in as refunds of a batch, in any number of runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from worker import batches
from worker.cli.exits import REFUSED, Detached
from worker.cli.progress import progress
from worker.cli.session import note
from worker.cli.words import counted, verb
from worker.client import Refunds
from worker.errors import GuardRefused, StoreUnavailable
from worker.importer import SameRefund, Source, Validation, accepted
from worker.importer.prefetch import ahead
from worker.model.refund import Lane
from worker.model.request import RefundRequest

_CHECK_EVERY: Final = 10_000
"""Rows after which an import looks whether its batch was canceled meanwhile."""
_SHOW_EVERY: Final = 500
_ODD_AT_ONCE: Final = 500


@dataclass(kw_only=True)
class SubmitCounts:
    """What became of a file's rows."""

    created: int = 0
    known: int = 0
    conflicting: int = 0

    @property
    def rows(self) -> int:
        """Return how many rows an answer came for."""
        return self.created + self.known + self.conflicting


def late_conflicts(handed: SubmitCounts) -> int:
    """Say that ids were taken while the import ran, and return the exit code."""
    count = handed.conflicting
    note(
        f"error: {counted(count, 'id')} {verb(count, 'was', 'were')} taken by another refund meanwhile: such a row was "
        "left out, and a dry run with --again names it"
    )
    return REFUSED


def submit(refunds: Refunds, batch_id: str, source: Source, validation: Validation) -> SubmitCounts:
    """Accept every row that is not yet there, and note at the end that the file is whole."""
    handed = SubmitCounts()
    odd: list[RefundRequest] = []
    same_refund = SameRefund()
    total = validation.summary.accepted
    requests: Iterator[RefundRequest] = (row.request for row in accepted(source, validation))
    try:
        with progress("accepted", total) as show, ahead(requests) as ready:
            for request, made in refunds.submit_stream(ready, lane=Lane.BULK, batch_id=batch_id):
                if made.result == "created":
                    handed.created += 1
                elif made.result == "exists":
                    handed.known += 1
                else:
                    handed.conflicting += 1
                    odd.append(request)
                    if len(odd) >= _ODD_AT_ONCE:
                        _look_at(refunds, odd, handed, same_refund)
                done = handed.rows
                if done % _SHOW_EVERY == 0:
                    show(done)
                if done % _CHECK_EVERY == 0:
                    _refuse_canceled(refunds, batch_id, handed)
        _look_at(refunds, odd, handed, same_refund)
        rows_in = handed.created + handed.known
        batches.close_batch(refunds.store, batch_id, handed_in=rows_in, conflicting=handed.conflicting)
    except KeyboardInterrupt:
        raise Detached(
            f"interrupted after {handed.rows:,} of {total:,} rows, which stay accepted as batch {batch_id}: "
            "the same command goes on with the rest"
        ) from None
    except StoreUnavailable as error:
        raise StoreUnavailable(
            f"{error}; at least {handed.rows:,} of {total:,} rows are accepted as batch {batch_id}, and the same "
            "command goes on with the rest"
        ) from None
    return replace(handed)


def _look_at(refunds: Refunds, odd: list[RefundRequest], handed: SubmitCounts, same_refund: SameRefund) -> None:
    """Count rows as known that differ from their refund only in metadata that says what the id was made from."""
    found = refunds.get_many([request.refund_id for request in odd]) if odd else []
    same = sum(
        refund is not None and same_refund(request, refund.as_request())
        for request, refund in zip(odd, found, strict=True)
    )
    handed.known += same
    handed.conflicting -= same
    odd.clear()


def _refuse_canceled(refunds: Refunds, batch_id: str, handed: SubmitCounts) -> None:
    if batches.state_of_batch(refunds.store, batch_id) == "canceled":
        raise GuardRefused(
            f"batch {batch_id} was canceled after {handed.rows:,} rows were accepted: the rest was left out, and "
            "nothing that was not sent will be"
        )
