"""What a seed stands for: settings, refunds, faults and their rates, all drawn before the world
begins.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from tests.simulation.odd import NOTHING, Odd
from tests.simulation.provider_seam import BROKEN, MADE_UP, REFUSED, UNSENT, WRONG
from tests.simulation.reversals import UNWATCHED, Watch
from worker.model.request import RefundRequest
from worker.rules.attempts import Rules
from worker.sandbox.bank import Outcome
from worker.sandbox.config import SandboxConfig

# Family → the faults that a request may meet when its family is drawn for a seed.
FAMILIES: Final[dict[str, tuple[str, ...]]] = {
    "unsent": tuple(UNSENT),
    "broken": (*BROKEN, "reply_cut"),
    "late": ("late_effect",),
    "status": tuple(name for name in MADE_UP if name not in {"http_401", "http_403"}),
    "refused": (*REFUSED, "http_403"),
    "rate": ("http_429",),
    "credentials": ("http_401",),
    "wrong": WRONG,
}
LOST: Final = tuple(name for name in FAMILIES["broken"] if name.startswith("request_lost"))
UNHEARD: Final = tuple(name for name in FAMILIES["broken"] if name.startswith("reply_lost"))
MAIN: Final = ("broken", "late", "status")
REDIS_FAULTS: Final = ("redis_lost", "redis_reply_lost", "redis_late", "redis_refuses")
MESSAGE_FAULTS: Final = ("message_lost", "message_doubled", "message_delayed")
SILENT: Final = frozenset({"people", "power", "clock", "stubborn", "webhooks", "reversals"})
"""Families of what is odd that change nothing of what a list shows."""
BEFALLS: Final = ("killed", "stopped", "terminated")
"""SIGKILL, SIGSTOP and SIGTERM."""

FILES_RATE: Final = 0.35
HEARD_RATE: Final = 0.15
FIRST_LOOKS: Final = 0.25
ERASING: Final = 7
"""One world in so many erases the metadata of settled refunds."""

FAILING: Final = (Outcome.FAILED, Outcome.PENDING_THEN_FAILED)
RUNGS: Final = (
    (),
    tuple(timedelta(hours=hours) for hours in (1, 6, 24)),
    tuple(timedelta(hours=hours) for hours in (2, 12)),
    tuple(timedelta(days=days) for days in (1, 7, 30, 60)),
)
"""The rungs of the watch, one of these."""

OPEN: Final = (
    (
        "found in totals that count pending refunds: recorded as succeeded while the provider still"
        " says pending"
    ),
)
"""What the product is known to get wrong, and only `--wide` worlds show."""
Seconds = float


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """One refund that a caller asks for, and what callers do with it later."""

    request: RefundRequest
    at: Seconds
    again_at: tuple[Seconds, ...] = ()
    cancel_at: Seconds | None = None
    retry_at: Seconds | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class File:
    """One file that is handed in as a batch, and what people do with the batch later."""

    batch_id: str
    rows: tuple[RefundRequest, ...]
    at: Seconds
    delay: Seconds = 0.0
    """For so long nothing of it is to be sent."""
    cancel_at: Seconds | None = None
    pause_at: Seconds | None = None
    resume_at: Seconds | None = None
    retry_at: Seconds | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Everything about one world that is fixed before it begins.

    What is drawn on the way comes from `seed` too.
    """

    seed: int
    rules: Rules
    sandbox: SandboxConfig
    machines: int
    slots: int
    """Calls in flight of one worker."""
    rate: float
    payments: dict[str, dict[str, Any]]
    asked: tuple[Asked, ...]
    files: tuple[File, ...]
    faults_end: Seconds
    post_faults: tuple[str, ...]
    post_rate: float
    read_rate: float
    redis_rate: float
    message_rate: float
    befalls_rate: float
    skewed: bool
    list_lag: float
    outages: tuple[tuple[str, Seconds, Seconds], ...]
    pauses: tuple[tuple[Seconds, Seconds], ...]
    people_every: Seconds
    script_flushes: tuple[Seconds, ...]
    foreign: tuple[tuple[str, int, Seconds], ...]
    """Refunds made elsewhere: payment, amount, when."""
    slow_redis: bool
    heard: bool
    """Whether what is logged and put into the queue is read."""
    odd: Odd = NOTHING
    watch: Watch = UNWATCHED

    @property
    def erases(self) -> bool:
        """Whether the metadata of settled refunds are erased soon. Nothing is drawn for it."""
        return self.seed % ERASING == 0

    @property
    def reads_well(self) -> bool:
        """Whether whatever is read back shows, to its end and truly, what the provider has made."""
        return (
            self.rules.readback == "list"
            and not self.read_rate
            and not self.list_lag
            and not self.outages
            and not self.odd.families - SILENT
        )

    @property
    def identifies(self) -> bool:
        """Whether webhooks are all that can identify a refund, and what they name can be read."""
        return (
            self.rules.readback == "none"
            and self.sandbox.idempotency == "ignore"
            and "webhooks" in self.odd
            and not self.read_rate
            and not self.outages
            and not self.odd.families - SILENT
        )

    def summary(self) -> str:
        """Return the plan in one line."""
        rules = self.rules
        return (
            f"{rules.idempotency}/{rules.readback}/{'proof' if rules.totals_proof else 'hint'}"
            f"{'/first' if rules.first_look else ''}"
            f" keys={self.sandbox.idempotency} settle={rules.settle.total_seconds():g}s"
            f" lease={rules.lease.total_seconds():g}s window={rules.key_window.total_seconds():g}s"
            f" machines={self.machines} refunds={len(self.asked)}"
            f" rows={sum(len(file.rows) for file in self.files)}"
            f" faults={','.join(self.post_faults)}@{self.post_rate}"
            f" odd={','.join(sorted(self.odd.families)) or '-'}@{self.odd.rate}"
        )
