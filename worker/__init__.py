"""Refunds: accepted once, moved at most once, never lost, never guessed.

The names below are imported when they are first asked for: a command line that is interrupted while
it starts then ends without a traceback.
"""

from importlib import import_module

TYPE_CHECKING = False  # as in typing, whose import would take longer than all of this
if TYPE_CHECKING:
    from worker.client import Refunds
    from worker.errors import (
        Changed,
        GuardRefused,
        IdempotencyConflict,
        IllegalMove,
        InputError,
        InvalidRequest,
        KnownFile,
        MessageRejected,
        NotCancelable,
        NotDurable,
        NotFound,
        NotInReview,
        NotRetriable,
        NotStorable,
        ProviderMismatch,
        ProviderUnavailable,
        RefundError,
        SettingsError,
        StoreFull,
        StoreRefused,
        StoreUnavailable,
        TooFewReplicas,
    )
    from worker.model.refund import Refund
    from worker.model.request import RefundRequest

    __version__: str

__all__ = [
    "Changed",
    "GuardRefused",
    "IdempotencyConflict",
    "IllegalMove",
    "InputError",
    "InvalidRequest",
    "KnownFile",
    "MessageRejected",
    "NotCancelable",
    "NotDurable",
    "NotFound",
    "NotInReview",
    "NotRetriable",
    "NotStorable",
    "ProviderMismatch",
    "ProviderUnavailable",
    "Refund",
    "RefundError",
    "RefundRequest",
    "Refunds",
    "SettingsError",
    "StoreFull",
    "StoreRefused",
    "StoreUnavailable",
    "TooFewReplicas",
]

_HOMES = {
    "Refunds": "worker.client",
    "Refund": "worker.model.refund",
    "RefundRequest": "worker.model.request",
}

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name == "__version__":
            # pyproject.toml states it, and an installation keeps it.
            return import_module("importlib.metadata").version("refund-worker")
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(_HOMES.get(name, "worker.errors")), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__, "__version__"})
