"""All exceptions that the product raises on purpose, in one tree.

RefundError
├── SettingsError            a variable is wrong                          exit 2
├── InvalidRequest           a refund breaks a rule of its fields         exit 3
├── InputError               a file cannot be read as its format          exit 3
├── NotFound                 no record under that id                      exit 3
│   └── MessageRejected      and the message that named it was refused
├── GuardRefused             a guard refuses; nothing was changed         exit 6
│   ├── IdempotencyConflict  the id exists with another body
│   ├── KnownFile            the file was imported before
│   ├── NotCancelable        something may have been sent already
│   ├── NotInReview          only a refund in review can be resolved
│   ├── NotRetriable         it has not failed, or sending it again cannot help
│   ├── Changed              it changed after the version on which a person decided
│   ├── NotDurable           the server may forget what it acknowledged
│   ├── NotStorable          a value that the records cannot hold
│   └── ProviderMismatch     the records belong to another provider, mode or account
├── StoreUnavailable         Redis did not reply                          exit 5
│   ├── StoreFull            its memory is too full to accept refunds
│   ├── TooFewReplicas       fewer replicas than demanded have a write
│   └── StoreRefused         it refuses the user or the password          exit 2
├── ProviderUnavailable      the provider did not give a needed fact      exit 5
└── IllegalMove              a move that is not in TRANSITIONS            exit 1
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class RefundError(Exception):
    """Base class of all errors raised on purpose; its text is one sentence for the user."""


class SettingsError(RefundError):
    """One or more variables are wrong; the text names every one of them and echoes no secret."""


@dataclass(frozen=True, kw_only=True)
class FieldError:
    """One broken rule: the field, the value (shortened), a stable code, and the rule in words."""

    field: str
    code: str
    value: str
    rule: str

    def __str__(self) -> str:
        return f"{self.field} {self.value}: {self.rule}"


class InvalidRequest(RefundError):
    """A refund request breaks at least one rule; `errors` holds every broken one."""

    def __init__(self, errors: Sequence[FieldError]) -> None:
        super().__init__("; ".join(str(error) for error in errors))
        self.errors = tuple(errors)

    def __reduce__(self) -> tuple[type[InvalidRequest], tuple[tuple[FieldError, ...]]]:
        return (InvalidRequest, (self.errors,))


class InputError(RefundError):
    """A file cannot be read as what it claims to be; the text names the position and the fix."""


class NotFound(RefundError):
    """No record exists under that id."""


class MessageRejected(NotFound):
    """No record has that id, and the latest message that names it was refused for `reason`."""

    def __init__(self, refund_id: str, reason: str, rejected_at: str, entry_id: str) -> None:
        super().__init__(
            f"refund {refund_id} was not accepted, because its message was rejected at"
            f" {rejected_at} ({reason}): fix the sender and send the refund again with the same id,"
            f" or see the message with 'refunds rejected show {entry_id}'"
        )
        self.refund_id, self.reason, self.rejected_at, self.entry_id = (
            refund_id,
            reason,
            rejected_at,
            entry_id,
        )

    def __reduce__(self) -> tuple[type[MessageRejected], tuple[str, str, str, str]]:
        return (MessageRejected, (self.refund_id, self.reason, self.rejected_at, self.entry_id))


class GuardRefused(RefundError):
    """A guard refused; nothing was changed."""


class KnownFile(GuardRefused):
    """The file was imported, or canceled, as the batch `batch_id`; nothing was imported."""

    def __init__(self, sentence: str, batch_id: str) -> None:
        super().__init__(sentence)
        self.batch_id = batch_id

    def __reduce__(self) -> tuple[type[KnownFile], tuple[str, str]]:
        return (KnownFile, (str(self), self.batch_id))


class IdempotencyConflict(GuardRefused):
    """The refund id exists with another body; the record is unchanged."""

    def __init__(self, refund_id: str) -> None:
        super().__init__(
            f"refund {refund_id} exists with other contents and was not changed: use a new id for a"
            f" new refund, or see the existing one with 'refunds status {refund_id}'"
        )
        self.refund_id = refund_id

    def __reduce__(self) -> tuple[type[IdempotencyConflict], tuple[str]]:
        return (IdempotencyConflict, (self.refund_id,))


class NotCancelable(GuardRefused):
    """The refund may have been sent already, or is settled, and cannot be canceled."""


class NotInReview(GuardRefused):
    """The refund is not in the stage `review`, so it cannot be resolved."""


class NotRetriable(GuardRefused):
    """A refund can be sent again only if it has failed and another attempt can help."""


class Changed(GuardRefused):
    """The refund has changed since it was read, so a decision about it was not applied."""


class NotDurable(GuardRefused):
    """The server may forget a write that it has acknowledged."""


class NotStorable(GuardRefused):
    """A value that was given, or one already stored, cannot be held by the records.

    Nothing was changed.
    """


class ProviderMismatch(GuardRefused):
    """The records in Redis belong to another provider host, mode or account."""


class StoreUnavailable(RefundError):
    """Redis did not reply; nothing is known to have changed, and repeating is safe."""


class StoreFull(StoreUnavailable):
    """The Redis server has too little memory to accept new refunds; accepted refunds continue."""


class TooFewReplicas(StoreUnavailable):
    """Fewer replicas than `REFUNDS_REPLICAS` confirmed a write in time, so it may be lost."""

    def __init__(self, wanted: int, confirmed: int, address: str) -> None:
        super().__init__(
            f"a write at {address} has reached {confirmed} replicas in time, and REFUNDS_REPLICAS"
            f" demands {wanted}: see 'refunds doctor', connect the missing ones, run this again"
        )
        self.wanted, self.confirmed, self.address = wanted, confirmed, address

    def __reduce__(self) -> tuple[type[TooFewReplicas], tuple[int, int, str]]:
        return (TooFewReplicas, (self.wanted, self.confirmed, self.address))


class StoreRefused(StoreUnavailable):
    """The Redis server refuses the address's user or password: another setting is needed."""


class ProviderUnavailable(RefundError):
    """The provider did not give a fact needed before anything is sent; repeating is safe."""


class IllegalMove(RefundError):
    """A move between stages that is not in TRANSITIONS."""

    def __init__(self, refund_id: str, source: str, target: str) -> None:
        super().__init__(f"refund {refund_id} cannot move from {source} to {target}")
        self.refund_id, self.source, self.target = refund_id, source, target

    def __reduce__(self) -> tuple[type[IllegalMove], tuple[str, str, str]]:
        return (IllegalMove, (self.refund_id, self.source, self.target))
