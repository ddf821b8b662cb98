"""What the judge knows of one refund.

Its record and history as last seen, and each request that left for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from worker.store.records import Moves

if TYPE_CHECKING:
    from tests.simulation.clock import Machine
    from worker.model.request import RefundRequest

# Whole, readable answers after which nothing of that request can have happened.
DEFINITIVE: Final = frozenset({400, 401, 402, 403, 404, 422, 429})


@dataclass(slots=True, kw_only=True)
class Post:
    """One request whose bytes left a worker."""

    refund_id: str
    generation: str
    key: str
    body: bytes
    left_at: float
    asked_at: int
    """When its worker had been told that it may send, in the server's milliseconds."""
    answered: int | None = None
    """The status of the whole reply that reached the worker, None where none did."""
    cleared: bool = False
    """Proven absent since, or said to be by a person."""

    @property
    def is_doubtful(self) -> bool:
        """Whether the worker cannot know that nothing happened."""
        return not self.cleared and self.answered not in DEFINITIVE


@dataclass(slots=True, kw_only=True)
class Known:
    """A refund as last seen in Redis, with what its history told so far."""

    payment: str
    asked: list[RefundRequest] = field(default_factory=list)
    """What was handed in under this id; of other contents at most one is accepted."""
    record: dict[str, str | None] = field(default_factory=dict)
    said: bool = False
    """Whether its caller was told that it is accepted."""
    path: list[str] = field(default_factory=list)
    """Each move in few words, as the stream of events should tell it."""
    fingerprint: str | None = None
    """Of what was asked for, once a record has shown it."""
    moves: int = 0
    stage: str | None = None
    status: str | None = None
    label: str = ""
    told: Moves = field(default_factory=Moves)
    posts: list[Post] = field(default_factory=list)
    stirred: bool = False
    """Whether a person, or a look before its first send, has put it in doubt."""
    lease_end: int | None = None
    """Of the last claim, None once anything but a proof of done has followed it.

    Like the next two on the server's
    clock, in milliseconds."""
    proven_at: int = 0
    """When a proof of done last ended a claim."""
    asked_at: dict[str, int] = field(default_factory=dict)
    """When each worker was told by the records that it may send, by its name; good for one try."""
    attempts: int = 0
    generations: int = 1
    verdicts: int = 0
    """Attempts of this generation that are taken off its budget."""
    last: Mapping[str, Any] = field(default_factory=dict)
    """The last move, as its history tells it."""
    by_person: bool = False
    """Whether the last move was a person's."""
    first_attempt_at: int | None = None
    quiet_at: int = 0
    """When the last attempt that may have happened had ended, and when a total first showed its
    amount: on the
    server's clock, in milliseconds."""
    found_at: int | None = None

    forgotten_at: int | None = None
    """When a server took over that lacks a claim of it, in the server's milliseconds."""
    exposed: bool = False
    """Whether it was claimed there before a worker had asked that remembers a lost claim: outside
    the promise.
    """
    misled: bool = False
    """Whether a person has insisted on what is not so."""
    insisted: bool = False
    """Whether a person has had it sent even if nothing can be read of it."""
    late_proofs: list[Machine] = field(default_factory=list)
    """Workers that have come with a proof that the record does not allow for."""
    priors: list[str] = field(default_factory=list)
    """The provider's refunds of earlier generations."""
    told_version: int = 0
    """The version that somebody was told of, or that bytes have left under."""

    def forget(self) -> None:
        """Forget what was read of its record and history."""
        self.record, self.told, self.path = {}, Moves(), []
        self.moves = self.attempts = self.verdicts = self.proven_at = self.quiet_at = 0
        self.generations, self.label, self.last, self.by_person = 1, "", {}, False
        self.stage = self.status = self.lease_end = self.found_at = self.first_attempt_at = None

    @property
    def asked_amount(self) -> int | None:
        """What was asked for, None for all that is left."""
        record = self.record
        return None if record["all_remaining"] == "1" else int(record["amount"] or 0)

    @property
    def is_owner(self) -> bool:
        """Whether the record says that a refund of the provider is its own, and not only a
        person.
        """
        record = self.record
        return (
            record.get("provider_refund_id") is not None
            and record["operator_says"] is None
            and record["stage"] in {"settled", "processing"}
        )
