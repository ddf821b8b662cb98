"""Compares files of refunds with the records; opens, pauses, cancels, retries and reads batches.

A batch is one imported file. A batch owns only the refunds it created; rows whose ids existed in
the records before are `known` and are not changed.
"""

from worker.batches.compare import Comparison, Conflict, Repeat, compare
from worker.batches.interrupted import interrupted_imports
from worker.batches.moves import Canceled, Retried, cancel_batch, retry_batch
from worker.batches.opening import (
    BatchDraft,
    BegunFile,
    OpenedBatch,
    close_batch,
    earlier_batch,
    foresee_batch,
    open_batch,
)
from worker.batches.record import (
    NAME_RULE,
    Batch,
    BatchProgress,
    checked_batch_id,
    is_batch_id,
    is_batch_name,
    list_batches,
    look_at_batch,
    pause_batch,
    read_batch,
    resume_batch,
    state_of_batch,
    unknown,
)

__all__ = [
    "NAME_RULE",
    "Batch",
    "BatchDraft",
    "BatchProgress",
    "BegunFile",
    "Canceled",
    "Comparison",
    "Conflict",
    "OpenedBatch",
    "Repeat",
    "Retried",
    "cancel_batch",
    "checked_batch_id",
    "close_batch",
    "compare",
    "earlier_batch",
    "foresee_batch",
    "interrupted_imports",
    "is_batch_id",
    "is_batch_name",
    "list_batches",
    "look_at_batch",
    "open_batch",
    "pause_batch",
    "read_batch",
    "resume_batch",
    "retry_batch",
    "state_of_batch",
    "unknown",
]
