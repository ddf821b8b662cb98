"""The atomic operations on the records, as data.

The Lua script, its arguments, and how to read its reply.

`Store` (blocking) or `AsyncStore` runs a `Command`, alone or pipelined with others. Every command
is safe to repeat if its reply was lost.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from importlib import resources
from typing import Any, Final, Generic, Literal, TypeVar

from worker.model.currencies import KNOWN as CURRENCIES
from worker.model.refund import Baseline, Lane, Refund, Stage, Status
from worker.model.request import MAX_AMOUNT, REASONS, RefundRequest, idempotency_key, request_body
from worker.model.steps import Step
from worker.model.times import from_ms, to_ms
from worker.rules.attempts import PARKED, REVIEW_REMINDER, VERDICT_LIFE
from worker.rules.codes import CODES
from worker.rules.transitions import sources_of
from worker.store.records import NUMBERS, SCHEMA_VERSION, decode, encode, new_row, pairs_of, text

T = TypeVar("T")
Argument = str | bytes | int | float

NUDGE_GRACE: Final = timedelta(minutes=10)
"""How long a queued refund waits for its nudge before it is nudged again, whatever the queue holds.
"""
LOST_NUDGE: Final = timedelta(seconds=15)
"""Time after which a nudge counts as lost if its lane's queue is empty."""
SWEEP_HOLD: Final = timedelta(seconds=30)
"""How long the next sweeps skip a refund that a sweep has taken."""

MOST_RECHECKS: Final = 100
"""Maximum refunds that one sweep takes to be read again outside their own schedule."""
_RECHECK: Final = "recheck"

CREATED_AT_ONCE: Final = 50
"""Maximum refunds that one script accepts; it blocks the server for about a millisecond."""

MOST_SIBLINGS: Final = 200
"""Maximum refunds of one payment that one script reads.

More would block the server for over a millisecond.
"""

MOST_BACK: Final = timedelta(seconds=1)
"""How far the records' time may go back from one script to the next.

The latest time is stored once a second.
"""

_ms = timedelta(milliseconds=1)
_us = timedelta(microseconds=1)


def beginning() -> str:
    """Return the Lua code that passes the rules' constants to the scripts.

    Bounds, and names between spaces.
    """
    names: dict[str, Iterable[str]] = {
        "STAGES": Stage,
        "STATUSES": Status,
        "LANES": Lane,
        "REASONS": REASONS,
        "CODES": CODES,
        "CURRENCIES": CURRENCIES,
    }
    lists = [f"local {name} = ' {' '.join(sorted(words))} '" for name, words in names.items()]
    numbers = ", ".join(f"'{name}'" for name in sorted(NUMBERS))
    return "\n".join(
        [
            f"local MAX_AMOUNT, MOST_ROWS = {MAX_AMOUNT}, {CREATED_AT_ONCE}",
            f"local function numbers() return {{{numbers}}} end",
            *lists,
        ]
    )


class Script:
    """A Lua script: one file after the shared beginning, identified by its digest.

    `shared` names files that come between the two.
    """

    def __init__(self, name: str, *shared: str) -> None:
        folder = resources.files("worker.store") / "lua"
        self.name = name
        parts = [
            beginning(),
            *((folder / f"{each}.lua").read_text("utf-8") for each in ("_record", *shared, name)),
        ]
        self.text = "\n".join(parts)
        self.sha = hashlib.sha1(self.text.encode("utf-8"), usedforsecurity=False).hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class Command(Generic[T]):
    """One script with its arguments; `read` converts the raw reply to the result.

    A durable command returns only after its writes survive a crash of the server. That is the
    default, because the caller reports the result or depends on it.
    """

    script: Script
    arguments: Sequence[Argument]
    read: Callable[[Any], T]
    durable: bool = True


CREATE: Final = Script("create")
LOAD: Final = Script("load")
CLAIM: Final = Script("claim", "_position")
STANDS: Final = Script("stands")
SAVE: Final = Script("save")
SWEEP: Final = Script("sweep")
GIVE_BACK: Final = Script("give_back")
SIBLINGS: Final = Script("siblings")
GATE: Final = Script("gate")
BLOCK_GATE: Final = Script("block_gate")
PIN: Final = Script("pin")
FLAG: Final = Script("flag")
CLOCK: Final = Script("clock")
CONFIRM: Final = Script("confirm")
POSITION: Final = Script("position", "_position")
PAYMENT: Final = Script("payment")
ACCOUNT: Final = Script("account")
WITNESSES: Final = Script("witnesses")
EVERY: Final = (
    *(
        CREATE,
        LOAD,
        CLAIM,
        STANDS,
        SAVE,
        SWEEP,
        GIVE_BACK,
        SIBLINGS,
        GATE,
        BLOCK_GATE,
        PIN,
        FLAG,
        CLOCK,
    ),
    *(PAYMENT, ACCOUNT, WITNESSES, POSITION),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Created:
    """The result of a request: `created`, `exists` (with the record), or `conflict`."""

    result: Literal["created", "exists", "conflict"]
    now: datetime
    refund: Refund | None = None


def create(
    request: RefundRequest, lane: Lane, batch_id: str | None = None, *, by: str = ""
) -> Command[Created]:
    """Accept a refund once; `by` names who submits it, for the history.

    The same id changes nothing with the same contents, and conflicts with other contents.
    """
    several = create_several([request], lane, batch_id, by=by)
    return Command(
        script=CREATE, arguments=several.arguments, read=lambda reply: several.read(reply)[0]
    )


def create_several(
    requests: Sequence[RefundRequest], lane: Lane, batch_id: str | None = None, *, by: str = ""
) -> Command[Sequence[Created]]:
    """Accept refunds in one script, each as `create` does.

    At most `CREATED_AT_ONCE`, so that others wait little.
    """

    def read(reply: Any) -> Sequence[Created]:
        now = from_ms(int(reply[0]))
        new, conflict = Created(result="created", now=now), Created(result="conflict", now=now)
        return [
            (
                (new if result == "created" else conflict)
                if isinstance(result, str)
                else Created(result="exists", now=now, refund=decode(pairs_of(result)))
            )
            for result in reply[1:]
        ]

    arguments: list[Argument] = [NUDGE_GRACE // _ms, lane.value, batch_id or "", by]
    for request in requests:
        arguments += new_row(request)
    return Command(script=CREATE, arguments=arguments, read=read)


@dataclass(frozen=True, kw_only=True, slots=True)
class Loaded:
    """A record and the records' time, `now`.

    `seq` counts the moves that may change its payment's totals.
    """

    now: datetime
    seq: str
    refund: Refund | None
    recheck: str = ""
    """When the refund is to be read again outside its own schedule, '' if it is not."""


def load(refund_id: str) -> Command[Loaded]:
    """Read a refund and the records' time."""

    def read(reply: Any) -> Loaded:
        refund = decode(pairs_of(reply[2])) if reply[2] else None
        return Loaded(
            now=from_ms(int(reply[0])), seq=str(reply[1]), refund=refund, recheck=str(reply[3])
        )

    # It only reads.
    return Command(script=LOAD, arguments=[refund_id], read=read, durable=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """A claim's result: `claimed` with body and lease, or the reason why not.

    Also the current record.
    """

    result: str
    now: datetime
    refund: Refund | None = None
    token: str = ""
    body: bytes = b""
    lease_left: timedelta = timedelta(0)
    recheck: str = ""
    """As in `Loaded`, for a claim that was refused."""
    position: str = ""
    """The claim's position among all claims, '' for a repeated or refused one."""

    @property
    def claimed(self) -> bool:
        """Return whether the claim was granted, so that this worker may send the refund."""
        return self.result == "claimed"


def shorter(claim: Claim, spent: timedelta) -> Claim:
    """Return the claim as it is `spent` after the request.

    With the lease shortened and the time advanced by that.

    The server granted the claim between request and reply, so counting from the request errs on the
    safe side.
    """
    return replace(claim, now=claim.now + spent, lease_left=claim.lease_left - spent)


ClaimKind = Literal["send", "replay", "resend"]


def claim(
    refund_id: str,
    kind: ClaimKind,
    *,
    token: str,
    lease: timedelta,
    replay_window: timedelta = timedelta(0),
    version: int | None = None,
    seq: str | None = None,
    baseline: Baseline | None = None,
    currency_checked: bool = False,
    payment_shown: bool = False,
    prior_read_at: datetime | None = None,
    position: str = "",
) -> Command[Claim]:
    """Claim a refund for one attempt.

    Durable, so no byte is sent before body, key and attempt are safe.

    `payment_shown` says that the payment was read just now, and `currency_checked` that it is in
    the currency stated by the refund. `prior_read_at` is when the provider's refunds of earlier
    generations were read, and had moved nothing. `position` is the latest one that this worker
    remembers: a server that lacks it grants no claim (`behind`). `token` identifies this claim: a
    repeated claim with it, after a lost reply, returns the same claim.
    """

    def read(reply: Any) -> Claim:
        now = from_ms(int(reply[1]))
        if reply[0] != "claimed":
            return Claim(
                result=reply[0],
                now=now,
                refund=decode(pairs_of(reply[2])) if reply[2] else None,
                recheck=str(reply[3]),
            )
        refund = decode(pairs_of(reply[4]))
        body = reply[3] if isinstance(reply[3], bytes) else reply[3].encode("ascii")
        return Claim(
            result="claimed",
            now=now,
            refund=refund,
            token=token,
            body=body,
            lease_left=int(reply[2]) * _ms,
            position=str(reply[5]),
        )

    noted: dict[str, Any] = {}
    if baseline is not None:
        noted["baseline"] = baseline
    if currency_checked:
        noted["currency_checked"] = True
    if payment_shown:
        noted["payment_shown"] = True
    if prior_read_at is not None:
        noted["prior_read_at"] = prior_read_at
    arguments: list[Argument] = [
        refund_id,
        kind,
        token,
        lease // _ms,
        "" if version is None else str(version),
        seq or "",
        max(0, replay_window // _ms),
        VERDICT_LIFE // _ms,
        PARKED // _ms,
        *encode(noted),
        *(["position", position] if position else []),
    ]
    return Command(script=CLAIM, arguments=arguments, read=read)


def claimed(refund_id: str, token: str) -> Command[Claim]:
    """Check a claim whose reply was lost.

    The result is `claimed` if the claim was granted and is still valid.

    This never makes a claim, because no record has the version 0 that it requires.
    """
    made = claim(refund_id, "send", token=token, lease=SWEEP_HOLD, version=0)
    # The caller only concludes that nothing was sent, which is true whatever the server forgets.
    return replace(made, durable=False)


def stands(refund_id: str, token: str) -> Command[str]:
    """Return '' if the holder of a claim may send once more under it, else the obstacle.

    The obstacle is `overtaken` if a result was saved meanwhile, `lapsed`, or the reason that holds
    back every claim.
    """
    # It only reads.
    return Command(script=STANDS, arguments=[refund_id, token], read=str, durable=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Saved:
    """A save's result: `saved`, or the reason why nothing changed.

    `woken` is a refund that waited for the payment and is due now. `rows` are refunds that waited
    for room in the batch and are due now.
    """

    result: Literal[
        "saved", "missing", "stale", "illegal", "already", "owned", "contradicts", "attempted"
    ]
    now: datetime
    woken: str | None = None
    rows: tuple[str, ...] = ()
    other: str | None = None

    @property
    def due_now(self) -> tuple[str, ...]:
        """Return the ids of all refunds that are due because of this save."""
        return self.rows if self.woken is None else (self.woken, *self.rows)


def save(
    refund: Refund, step: Step, detail: Mapping[str, Any] | None = None, *, durable: bool = True
) -> Command[Saved]:
    """Apply a step decided on `refund`, by compare-and-set on its version.

    A step that is a proof of done applies to any version. `detail` is added to the history entry
    unchanged, so it holds JSON values only. A save need not be `durable` if it is not reported
    before a later write is on disk. The append-only file is in order, so that write keeps this one
    too.
    """
    noted = _noted(step, detail or {})
    fragment = "".join(f",{json.dumps(name)}:{json.dumps(value)}" for name, value in noted.items())
    body: bytes | str = ""
    changes = dict(step.changes)
    retried = step.to is Stage.QUEUED and not step.quiet
    if retried:
        generation = int(changes["generation"])
        body = request_body(refund.as_request(), generation)
        changes["idempotency_key"] = idempotency_key(refund.refund_id, generation)
    texts = {name: text(name, value) for name, value in changes.items()}
    delay = step.delay or (NUDGE_GRACE if retried else timedelta(0))
    arguments: list[Argument] = [
        refund.refund_id,
        str(refund.version),
        "1" if step.proof else "",
        str(refund.generation),
        step.to.value,
        step.status.value,
        max(0, delay // _ms),
        "1" if step.quiet else "",
        json.dumps(step.label),
        fragment,
        f",{','.join(stage.value for stage in sources_of(step.to))},",
        body,
        refund.stage.value,
        # Most steps remove many fields: as one argument they cost the client and the server less.
        " ".join([name for name, value in texts.items() if not value]),
    ]
    for name, value in texts.items():
        if value:
            arguments += (name, value)

    def read(reply: Any) -> Saved:
        result, now = reply[0], from_ms(int(reply[1]))
        if result == "saved":
            return Saved(result="saved", now=now, woken=reply[2] or None, rows=tuple(reply[3:]))
        return Saved(result=result, now=now, other=reply[2] or None)

    return Command(script=SAVE, arguments=arguments, read=read, durable=durable)


def _noted(step: Step, detail: Mapping[str, Any]) -> dict[str, Any]:
    """Return the extra fields of a history entry.

    `detail`, and the source and person that the step is based on.
    """
    noted = dict(detail)
    # An HTTP status implies the source `reply`. Most entries have one, and records are kept for
    # long, so omit it.
    if step.source is not None and not (step.source == "reply" and "http_status" in noted):
        noted["source"] = step.source
    if step.by is not None:
        noted["by"] = step.by
    return noted


@dataclass(frozen=True, kw_only=True, slots=True)
class Due:
    """A due refund that a sweep took, or that a webhook made due."""

    refund_id: str
    lane: Lane
    stage: Stage | None
    """None if it is to be read again outside its own schedule."""


def sweep(limit: int, *, dry: frozenset[Lane]) -> Command[tuple[Due, ...]]:
    """Take at most `limit` due refunds, lapsed leases and doubts first.

    `dry` names the lanes with an empty queue.
    """

    def read(reply: Any) -> tuple[Due, ...]:
        rows = reply[1:]
        return tuple(
            Due(
                refund_id=rows[i],
                lane=Lane(rows[i + 1]),
                stage=None if rows[i + 2] == _RECHECK else Stage(rows[i + 2]),
            )
            for i in range(0, len(rows), 3)
        )

    arguments = [
        limit,
        SWEEP_HOLD // _ms,
        NUDGE_GRACE // _ms,
        LOST_NUDGE // _ms,
        "1" if Lane.SINGLE in dry else "",
        "1" if Lane.BULK in dry else "",
        REVIEW_REMINDER // _ms,
        MOST_RECHECKS,
    ]
    # If a crash undoes a sweep, it is repeated.
    return Command(script=SWEEP, arguments=arguments, read=read, durable=False)


def give_back(refund_ids: Sequence[str]) -> Command[int]:
    """Make queued refunds due at once that a task received and has not claimed."""
    # It only brings a time forward: without it the refund is still swept in the end.
    return Command(script=GIVE_BACK, arguments=list(refund_ids), read=int, durable=False)


def siblings(
    payment_intent: str, without: str, *, most: int = MOST_SIBLINGS
) -> Command[tuple[Refund, ...] | None]:
    """Read our other refunds on a payment.

    If there are more than `most`, read none and return None.
    """

    def read(reply: Any) -> tuple[Refund, ...] | None:
        return tuple(decode(pairs_of(flat)) for flat in reply[1:]) if reply[0] == "1" else None

    # It only reads.
    return Command(
        script=SIBLINGS, arguments=[payment_intent, without, most], read=read, durable=False
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Permits:
    """Reserved send times per lane from now, and the delay until it is useful to request more."""

    moments: Sequence[tuple[Lane, timedelta]]
    wait: timedelta


def permits(
    wanted: Mapping[Lane, int], *, rate: float, ahead: timedelta, bulk_share: float
) -> Command[Permits]:
    """Reserve up to `wanted` send times in all workers' schedule, at most `ahead` in advance."""

    def read(reply: Any) -> Permits:
        moments = [(Lane(reply[i]), int(reply[i + 1]) * _us) for i in range(1, len(reply), 2)]
        return Permits(moments=moments, wait=int(reply[0]) * _ms)

    arguments = [
        rate,
        ahead // _ms,
        wanted.get(Lane.SINGLE, 0),
        wanted.get(Lane.BULK, 0),
        bulk_share,
    ]
    # These are send times within the next fraction of a second, and a crash lasts longer.
    return Command(script=GATE, arguments=arguments, read=read, durable=False)


def block_gate(wait: timedelta) -> Command[timedelta]:
    """Close the rate gate for all workers, as a 429 demands.

    Afterwards the rate is lower for a while.
    """
    # If a crash undoes this, it costs one more 429.
    return Command(
        script=BLOCK_GATE,
        arguments=[wait // _ms],
        read=lambda reply: int(reply) * _ms,
        durable=False,
    )


def pin(host: str, mode: str) -> Command[tuple[str, str, str]]:
    """Pin these records to the provider's host and mode on first use; return the pinned values."""
    return Command(
        script=PIN,
        arguments=[host, mode, SCHEMA_VERSION],
        read=lambda reply: (str(reply[0]), str(reply[1]), str(reply[2])),
    )


def flag(name: str, *, once: bool, by: str = "") -> Command[bool]:
    """Set a flag in `meta`, even if memory is full.

    With `once` an existing flag is kept and False is returned.
    """
    return Command(script=FLAG, arguments=[name, "1" if once else "", by], read=bool, durable=False)


def payment(
    payment_intent: str, found: Literal["shown", "missing", "certain", "gone"]
) -> Command[str]:
    """Record whether the provider shows a payment.

    Returns `suspect` if it was shown once and is now `missing`.

    `certain` means that it is still missing. This stops all claims, and returns `raised`, or `lost`
    if they were stopped already. `gone` means that a person says that the payment no longer exists.
    The command is not durable, because the next read finds again what a crash undoes.
    """
    return Command(script=PAYMENT, arguments=[payment_intent, found], read=str, durable=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class AccountFacts:
    """What is known about the account that the records belong to.

    Its id if the provider shows one, and fingerprints.

    `prints` are fingerprints of API keys of the account. `vouched`: a person says that the next key
    belongs to it.
    """

    salt: str
    account: str | None
    prints: frozenset[str]
    vouched: bool


def account(salt: str, *, known: str = "", account: str = "") -> Command[AccountFacts]:
    """Read what is known about the account.

    `known`, if given, is added as the fingerprint of one of its API keys.
    """

    def read(reply: Any) -> AccountFacts:
        return AccountFacts(
            salt=reply[0],
            account=reply[1] or None,
            prints=frozenset(reply[2].split()),
            vouched=reply[3] == "1",
        )

    return Command(script=ACCOUNT, arguments=[salt, known, account], read=read)


@dataclass(frozen=True, kw_only=True, slots=True)
class Witnesses:
    """Objects that a key of the records' account can read.

    Refunds by provider id, and payments of refunds in doubt.
    """

    refunds: Sequence[str]
    seen: Sequence[str]
    """Payments that the provider has shown before."""
    unseen: Sequence[str]


def witnesses(most: int) -> Command[Witnesses]:
    """Read at most `most` witnesses of each kind."""

    def read(reply: Any) -> Witnesses:
        return Witnesses(refunds=reply[0], seen=reply[1], unseen=reply[2])

    return Command(script=WITNESSES, arguments=[most], read=read, durable=False)


def position(remembered: str) -> Command[datetime | None]:
    """Compare the server with the latest position that a worker remembers, '' for none.

    If the server lacks it, all claims are stopped. Returns since when they are, None if they are
    not. The command is not durable, because each worker that remembers finds the same again.
    """
    return Command(
        script=POSITION,
        arguments=[remembered],
        read=lambda reply: from_ms(int(reply)) if reply else None,
        durable=False,
    )


def clock() -> Command[int]:
    """Read the records' time in epoch ms."""
    return Command(script=CLOCK, arguments=[], read=int, durable=False)


def confirm() -> Command[datetime]:
    """Wait for the disk, and return a time of the records.

    Everything written up to that time is on disk.
    """
    return Command(script=CONFIRM, arguments=[], read=lambda reply: from_ms(int(reply)) - MOST_BACK)


def at(now: datetime | None) -> str:
    """Return the clock argument of a script: '' for the server's own clock."""
    return "" if now is None else str(to_ms(now))
