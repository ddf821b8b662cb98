"""The client for producers: submit refunds and read their records.

It needs no API key and no HTTP client.
"""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Literal, Self

from worker.broker import direct, forks, rejected
from worker.broker.backlog import BacklogWatch
from worker.broker.names import BULK_IDS
from worker.broker.together import Together
from worker.errors import (
    Changed,
    GuardRefused,
    IdempotencyConflict,
    MessageRejected,
    NotFound,
    NotStorable,
    StoreFull,
    StoreUnavailable,
)
from worker.model import statements
from worker.model.refund import Lane, Refund, Status
from worker.model.request import RefundRequest, shown
from worker.model.steps import Step
from worker.model.times import rfc3339
from worker.rules import decisions
from worker.settings import Settings
from worker.store import creations, saves, scripts, sweeps
from worker.store.connection import address_of, connect
from worker.store.creations import Created
from worker.store.records import new_record
from worker.store.scripts import Command
from worker.store.store import Store

if TYPE_CHECKING:
    from celery import Celery

log = logging.getLogger(__name__)

Decision = Literal["succeeded", "failed", "resend"]
"""What a person may decide about a refund in review."""

CHUNK: Final = 500
_CONFLICTS_KEPT: Final = 1000
_SAVE_TRIES: Final = 20
_FIRST_POLL: Final = 0.02
_LONGEST_POLL: Final = 1.0
_TAKEN: Final = {
    "owned": (
        "that provider refund already belongs to refund {other}: {refund_id} was left as it is"
    ),
    "attempted": (
        "refund {refund_id} was submitted again as {other}, which is unsettled, or has or may have"
        " moved the money: it was left as it is, since both would be paid; see the other with"
        " 'refunds status {other}'"
    ),
    "repeated": (
        "refund {refund_id} was not sent again, since refund {other} of the same payment and amount"
        " is unsettled, or has or may have moved the money, and the file of {refund_id} was"
        " imported without allowing repeats: both would be paid; if both are meant, submit a new"
        " refund under a new id"
    ),
}


@dataclass(kw_only=True)
class Submitted:
    """The result of `submit_many`; `conflicts` holds the first thousand refused ids."""

    created: int = 0
    existing: int = 0
    conflicting: int = 0
    conflicts: list[str] = field(default_factory=list)


class Refunds:
    """Client that submits, reads, awaits and cancels refunds.

    Safe to share between threads and across forks.

    A child process opens its own connections at its first call; a closed client stays closed in
    child processes.

    Raises `StoreUnavailable` if Redis is unavailable: then nothing is known to be accepted, and
    repeating is safe. Raises `TypeError` if an id is not a text, or a request not a
    `RefundRequest`.
    """

    def __init__(
        self,
        *,
        redis_url: str | None = None,
        broker_url: str | None = None,
        settings: Settings | None = None,
    ) -> None:
        if settings is None:
            given = {"redis_url": redis_url, "broker_url": broker_url}
            settings = Settings.load(
                **{name: value for name, value in given.items() if value is not None}
            )
        self.settings = settings
        self._process: object = None
        self._closed = False
        self._backlog = BacklogWatch(settings.backlog_warning)
        self._store: Store | None = None
        self._celery: Celery | None = None
        self._queues = {lane: direct.queue_of(settings, lane) for lane in Lane}
        self._together: Mapping[Lane, Together[RefundRequest, Created]] = {}
        _doors.add(self)

    @classmethod
    def from_env(cls) -> Self:
        """Return a client configured by the `REFUNDS_…` environment variables."""
        return cls()

    @property
    def store(self) -> Store:
        """The records, for reading."""
        # Sockets and locks do not survive a fork: a child process creates its own.
        if self._process != forks.process():
            with forks.building():
                if self._process != forks.process() and not self._closed:
                    self._store, self._celery = open_store(self.settings), None
                    self._together = _together()
                    self._process = forks.process()
        store = self._store
        if self._closed or store is None:
            raise _closed_error()
        return store

    @property
    def celery(self) -> Celery:
        """The Celery app that sends the nudges."""
        return self.ready_to_nudge()

    def ready_to_nudge(self) -> Celery:
        """Return the Celery app; call it before a write, because its settings may be wrong."""
        store = self.store
        if self._celery is None:
            with forks.building():
                # Celery and kombu are a quarter of what is imported, and reading needs neither.
                from worker.broker import queues  # noqa: PLC0415 - see above

                if self._celery is None and self._store is store:
                    made = queues.make_celery(self.settings)
                    queues.prepare(made)
                    self._celery = made
        celery = self._celery
        if self._closed or celery is None:
            raise _closed_error()
        return celery

    def close(self) -> None:
        """Close the connections; the client cannot be used afterwards."""
        self._closed = True
        if self._process == forks.process():
            if self._store is not None:
                self._store.redis.close()
            if self._celery is not None:
                self._celery.close()
        self._store = self._celery = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(self, request: RefundRequest, *, lane: Lane = Lane.SINGLE) -> Refund:
        """Accept one refund and return its record.

        The same request again returns the existing record.

        The refund is accepted once this returns: if its message cannot be sent, the workers' sweep
        finds the record. No failure after the record is written raises. Raises
        `IdempotencyConflict` if the id exists with other contents.
        """
        self.ready_to_nudge()
        created = self._together[lane].run(partial(self._accept, lane), _checked(request))
        return record_of(request, lane, created)

    def _accept(self, lane: Lane, requests: Sequence[RefundRequest]) -> Sequence[Created]:
        """Accept the refunds that threads submit at once, in one script."""
        results = self.store.run(self._creation(requests, lane))
        self._announce(requests, results, lane, are_queued=self._queues[lane] != "")
        return results

    def _creation(
        self,
        requests: Sequence[RefundRequest],
        lane: Lane,
        batch_id: str | None = None,
        *,
        refuse_repeats: bool = False,
    ) -> Command[Sequence[Created]]:
        """Return the command that accepts refunds; where Redis can, it queues their messages."""
        queue = self._queues[lane]
        messages = [direct.nudge(each.refund_id, lane) for each in requests] if queue else ()
        return creations.create_several(
            requests,
            lane,
            batch_id,
            queue=queue,
            messages=messages,
            refuse_repeats=refuse_repeats,
        )

    def submit_many(
        self, requests: Iterable[RefundRequest], *, lane: Lane = Lane.BULK
    ) -> Submitted:
        """Accept a stream of refunds in constant memory.

        Conflicts are counted, and their records stay unchanged.
        """
        report = Submitted()
        for request, created in self.submit_stream(requests, lane=lane):
            if created.result == "created":
                report.created += 1
            elif created.result == "exists":
                report.existing += 1
            else:
                report.conflicting += 1
                if len(report.conflicts) < _CONFLICTS_KEPT:
                    report.conflicts.append(request.refund_id)
        return report

    def submit_stream(
        self,
        requests: Iterable[RefundRequest],
        *,
        lane: Lane = Lane.BULK,
        batch_id: str | None = None,
        refuse_repeats: bool = False,
    ) -> Iterator[tuple[RefundRequest, Created]]:
        """Accept refunds in pipelined chunks during iteration.

        Each chunk is recorded before its nudges are sent. With `refuse_repeats`, a new id is not
        accepted if another refund of the same payment and amount is pending or has succeeded.
        """
        self.ready_to_nudge()
        iterator = map(_checked, requests)
        # The rows of a file share a message, which holds only those that turn out to be new.
        are_queued = lane is Lane.SINGLE and self._queues[lane] != ""
        create = partial(
            self._creation if are_queued else creations.create_several,
            refuse_repeats=refuse_repeats,
        )
        while chunk := list(islice(iterator, CHUNK)):
            parts = [
                create(chunk[start : start + scripts.CREATED_AT_ONCE], lane, batch_id)
                for start in range(0, len(chunk), scripts.CREATED_AT_ONCE)
            ]
            results = [created for part in self.store.run_many(parts) for created in part]
            self._announce(chunk, results, lane, are_queued=are_queued)
            yield from zip(chunk, results, strict=True)

    def _announce(
        self,
        requests: Sequence[RefundRequest],
        results: Sequence[Created],
        lane: Lane,
        *,
        are_queued: bool,
    ) -> None:
        """Nudge the workers about those that are new, unless Redis has queued their messages."""
        new = [
            request.refund_id
            for request, created in zip(requests, results, strict=True)
            if created.result == "created"
        ]
        if new and not are_queued:
            self._nudge(new, lane, per_message=BULK_IDS if lane is Lane.BULK else 1)
        if new:
            self._watch_backlog(lane)

    def _watch_backlog(self, lane: Lane) -> None:
        self._backlog.look(lane, lambda: self.store.backlog(lane))

    def _nudge(self, refund_ids: Sequence[str], lane: Lane, *, per_message: int = 1) -> None:
        """Send messages until one cannot be sent: a broker that hangs would delay each of them."""
        celery = self.celery
        from worker.broker import queues  # noqa: PLC0415 - imported when the app was made

        left = refund_ids
        try:
            while left:
                queues.nudge(celery, left[:per_message], lane)
                left = left[per_message:]
        except queues.PUBLISH_ERRORS as error:
            log.warning(
                "nudge_not_sent",
                extra={
                    "refund_id": left[0],
                    "count": len(left),
                    "error": type(error).__name__,
                },
            )
            # The messages are known to be lost, so the next sweep can act at once; without this
            # mark it acts later.
            pages = [left[start : start + BULK_IDS] for start in range(0, len(left), BULK_IDS)]
            with suppress(StoreUnavailable):
                self.store.run_many([sweeps.give_back(page) for page in pages])

    def get(self, refund_id: str) -> Refund:
        """Return a refund's record.

        Raises `NotFound`, or `MessageRejected` if a message naming the id was refused.
        """
        refund = self.store.get(_checked_id(refund_id))
        if refund is None:
            if (refused := rejected.of_refund(self.store, refund_id)) is not None:
                at = rfc3339(refused.rejected_at)
                raise MessageRejected(refund_id, refused.reason, at, refused.entry_id)
            raise NotFound(
                f"no refund {refund_id} was accepted here: check the id, REFUNDS_REDIS_URL and"
                " REFUNDS_PREFIX"
            )
        return refund

    def get_many(self, refund_ids: Sequence[str]) -> list[Refund | None]:
        """Return records in the order of the ids, None for each that was never accepted."""
        if isinstance(refund_ids, str):
            raise TypeError(
                f"refund_ids must be a list of refund ids, not the one text {shown(refund_ids)}"
            )
        return self.store.get_many([_checked_id(refund_id) for refund_id in refund_ids])

    def history(self, refund_id: str) -> list[dict[str, Any]]:
        """Return a refund's history of moves, oldest first."""
        return self.store.history(_checked_id(refund_id))

    def wait(self, refund_id: str, timeout: float = 30) -> Refund:
        """Poll until the refund is settled or `timeout` seconds have passed.

        Return its latest record.
        """
        end = time.monotonic() + timeout
        pause = _FIRST_POLL
        while True:
            refund = self.get(refund_id)
            left = end - time.monotonic()
            if refund.settled or left <= 0:
                return refund
            time.sleep(min(pause, left))
            pause = min(pause * 1.5, _LONGEST_POLL)

    def cancel(self, refund_id: str, *, by: str = decisions.CALLER) -> Refund:
        """Cancel a refund that was never sent, or was provably never done.

        Raises `NotCancelable` or `NotFound`.
        """
        return self.cancel_once(refund_id, by=by)[1]

    def cancel_once(self, refund_id: str, *, by: str) -> tuple[bool, Refund]:
        """Do the same as `cancel`; return also whether that changed anything."""
        return self._apply(refund_id, decisions.cancel, {"by": by})

    def retry(
        self,
        refund_id: str,
        *,
        unknown: bool = False,
        by: str = decisions.CALLER,
        version: int | None = None,
    ) -> Refund:
        """Send a failed refund again: same id, new generation with an idempotency key of its own.

        `unknown`: also if it is not known whether that can help. One already being sent again is
        returned unchanged. With `version`, only the failure that this version shows is sent again.
        Raises `NotRetriable`, `Changed`, `NotFound`, and `GuardRefused` if its batch was canceled
        or if it seems to be submitted again as another refund.
        """
        return self.retry_once(refund_id, unknown=unknown, by=by, version=version)[1]

    def retry_once(
        self, refund_id: str, *, unknown: bool, by: str, version: int | None = None
    ) -> tuple[bool, Refund]:
        """Do the same as `retry`; return also whether that changed anything."""
        refund = self.get(refund_id)
        if not refund.settled and refund.generation > 1:
            # Perhaps by another caller a moment ago.
            self.store.confirm()
            return False, refund
        if refund.batch_id is not None and self.store.batch_state(refund.batch_id) == "canceled":
            raise GuardRefused(
                f"refund {refund_id} belongs to batch {refund.batch_id}, which was canceled: none"
                " of its refunds is sent again; submit a new refund under a new id"
            )
        decide = _at_version(version, partial(decisions.retry_one, unknown=unknown))
        return self._apply(refund_id, decide, {"by": by})

    def resolve(
        self,
        refund_id: str,
        decision: Decision,
        *,
        note: str,
        by: str = decisions.CALLER,
        provider_refund_id: str = "",
        code: str = "",
        unverified: bool = False,
        version: int | None = None,
    ) -> Refund:
        """Resolve a refund in review by a person's decision, which a worker verifies.

        `succeeded` names the provider's refund, `failed` the error code, `resend` neither. With
        `version`, only that version of the record is resolved. Raises `NotInReview`, `Changed`,
        `InvalidRequest`, `GuardRefused`, `NotFound`.
        """
        detail = {"note": statements.checked_note(note)}
        if decision == "succeeded":
            provider_id = statements.checked_provider_id(provider_refund_id)
            decide: Callable[..., Step] = partial(
                decisions.resolve_succeeded,
                provider_refund_id=provider_id,
                now=self.store.time(),
            )
        elif decision == "failed":
            decide = partial(decisions.resolve_failed, code=statements.checked_code(code))
        else:
            decide = decisions.resolve_resend

        decide = partial(decide, by=by, unverified=unverified)
        return self._apply(refund_id, _at_version(version, decide), detail)[1]

    def _apply(
        self, refund_id: str, decide: Callable[[Refund], Step], detail: dict[str, Any]
    ) -> tuple[bool, Refund]:
        """Decide a step on the current record and save it; repeat if another writer was faster.

        Return whether that changed anything, and the record.
        """
        self.ready_to_nudge()
        for _ in range(_SAVE_TRIES):
            refund = self.get(refund_id)
            if refund.status is Status.CANCELED and decide is decisions.cancel:
                # Perhaps by another caller a moment ago.
                self.store.confirm()
                return False, refund
            step = decide(refund)
            saved = self.store.run(saves.save(refund, step, detail))
            if saved.result == "saved":
                after = self.get(refund_id)
                if not after.settled and (step.delay or timedelta(0)) == timedelta(0):
                    self._nudge([refund_id], Lane.SINGLE)
                if saved.woken:
                    self._nudge([saved.woken], Lane.SINGLE)
                return True, after
            if saved.result in _TAKEN:
                raise GuardRefused(
                    _TAKEN[saved.result].format(refund_id=refund_id, other=saved.other)
                )
        raise StoreUnavailable(
            f"refund {refund_id} keeps changing while this command decides: try again in a moment"
        )


def record_of(request: RefundRequest, lane: Lane, created: Created) -> Refund:
    """Return the record of a request that was accepted, now or before.

    Raises `IdempotencyConflict`.
    """
    if created.result == "conflict":
        raise IdempotencyConflict(request.refund_id)
    return created.refund or new_record(
        request, lane, created.now, created.now + sweeps.NUDGE_GRACE
    )


def _at_version(version: int | None, decide: Callable[[Refund], Step]) -> Callable[[Refund], Step]:
    """Return a decision about one version of a record only, about any if it is None."""

    def at_version(refund: Refund) -> Step:
        if version is not None and version != refund.version:
            is_older = version < refund.version
            found = f"has changed since version {version}, and was not changed now"
            ahead = f"is at version {refund.version}, not {version}, and was not changed"
            raise Changed(
                f"refund {refund.refund_id} {found if is_older else ahead}: read it again and"
                " decide on what it shows"
            )
        return decide(refund)

    return at_version


def _together() -> Mapping[Lane, Together[RefundRequest, Created]]:
    """Return what gathers the refunds that the threads of one process submit at once."""
    single = (NotStorable, StoreFull)
    return {lane: Together(most=scripts.CREATED_AT_ONCE, single=single) for lane in Lane}


def _checked(request: RefundRequest) -> RefundRequest:
    if not isinstance(request, RefundRequest):
        raise TypeError(
            f"a request must be a RefundRequest, not {type(request).__name__}:"
            " RefundRequest(**fields)"
        )
    return request


def _checked_id(refund_id: str) -> str:
    if not isinstance(refund_id, str):
        raise TypeError(f"a refund id must be a text, not {type(refund_id).__name__}")
    return refund_id


def _closed_error() -> StoreUnavailable:
    return StoreUnavailable("this Refunds object is closed: create a new one")


_doors: Final[weakref.WeakSet[Refunds]] = weakref.WeakSet()


def _in_child() -> None:
    """Renew locks in a forked child, so that no call waits for one that a parent's thread held."""
    for door in list(_doors):
        inherited = door._store  # noqa: SLF001 - of this module's own class
        if inherited is not None:
            forks.renew_locks(inherited.redis)


forks.in_child(_in_child)


def open_store(settings: Settings) -> Store:
    """Return the store of records over a blocking Redis client, connected at the first command."""
    url = settings.redis_url.get_secret_value()
    return Store(
        connect(url),
        prefix=settings.prefix,
        retention=timedelta(days=settings.retention_days),
        durable=settings.durability == "disk",
        replicas=settings.replicas,
        address=address_of(url),
    )
