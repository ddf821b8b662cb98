"""Refunds: accepted once, moved at most once, never lost, never guessed."""

from worker.client import Refunds
from worker.errors import (
    GuardRefused,
    IdempotencyConflict,
    InvalidRequest,
    NotCancelable,
    NotFound,
    RefundError,
    SettingsError,
    StoreUnavailable,
)
from worker.model import Refund, RefundRequest

__all__ = [
    "GuardRefused",
    "IdempotencyConflict",
    "InvalidRequest",
    "NotCancelable",
    "NotFound",
    "Refund",
    "RefundError",
    "RefundRequest",
    "Refunds",
    "SettingsError",
    "StoreUnavailable",
]
