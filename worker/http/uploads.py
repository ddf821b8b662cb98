"""Imports files that were sent over HTTP: the code of `refunds import`, in threads, two at once."""

from __future__ import annotations

import asyncio
import io
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import IO, Any, Final, TypeVar

import structlog
from aiohttp import web

from worker import batches
from worker.client import Refunds
from worker.errors import (
    GuardRefused,
    InputError,
    NotDurable,
    NotFound,
    NotStorable,
    RefundError,
    StoreFull,
    StoreUnavailable,
)
from worker.file_import import (
    BatchCanceled,
    ImportSettings,
    Refusal,
    SubmitCounts,
    begin,
    broken_limits,
    draft,
    facts_of,
    of_file,
    of_rows,
    prepare,
    reading_of,
    records_of,
    submit,
    unfitting,
)
from worker.http import problems
from worker.http.problems import Problem, in_addresses, wrong_field
from worker.http.spool import Kept, Spool
from worker.importer import (
    Accepted,
    ImportOptions,
    Source,
    Validation,
    accepted,
    refused,
    validate,
)
from worker.model.callers import Caller
from worker.model.words import counted
from worker.store.audit import Deed, carry_out

log = structlog.get_logger(__name__)
T = TypeVar("T")

MOST_READ: Final = 2
FIRST_ERRORS: Final = 100
AGAIN_SECONDS: Final = 5.0
"""How long an import waits after Redis did not reply."""
FULL_SECONDS: Final = 300.0
"""How long an import waits while the records have too little memory.

Each try first submits again every row that was accepted, and the server writes all of them again.
"""
CLEAN_SECONDS: Final = 3600.0
_END_SECONDS: Final = 10.0
_OPTION: Final = re.compile(r"--([a-z]+(?:-[a-z]+)*)")
_FLAGS: Final = frozenset({"again", "all_remaining", "allow_repeat", "dry_run", "ignore_extra"})
_RENAMED: Final = {"batch": "name"}
_TYPE: Final = "correct its Content-Type"
"""What to do about another format than the stated one."""


class Stopped(Exception):
    """The process ends; the file is kept and its import goes on at the next start."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Opening:
    """How the batch of a file is opened: `sync` has the file on disk, and `deed` is noted."""

    sync: Callable[[], None]
    deed: Deed


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What a file and the records say. `begun` is its batch if its rows are to be submitted.

    `no_batch` is why no batch can be opened, if only that was asked, and `continues` whether an
    import would end an unfinished batch.
    """

    report: dict[str, Any]
    refusals: list[Refusal]
    begun: str | None = None
    validation: Validation | None = None
    no_batch: str = ""
    continues: bool = False


class Uploads:
    """Reads and imports the files: a part of the server, shared by those that receive files.

    For one event loop.
    """

    def __init__(self, refunds: Refunds, spool: Spool) -> None:
        self._refunds, self.spool = refunds, spool
        self._pool = ThreadPoolExecutor(MOST_READ, thread_name_prefix="files")
        self._reading = 0
        self._active: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._ended = threading.Event()
        self._taking_up: asyncio.Task[None] | None = None

    def add(self, application: web.Application) -> None:
        """Go on with files of earlier servers while the application runs; it adds no route."""
        application.on_startup.append(self._start)
        application.on_cleanup.append(self._stop)

    def require_room(self) -> None:
        """Raise `Problem` if as many files are read as may be at once."""
        if self._reading >= MOST_READ or self._ended.is_set():
            raise Problem(problems.BUSY, ends=True)

    async def read(self, work: Callable[[], T]) -> T:
        """Read a file in a thread. Raises `Problem` if it cannot now, and what the work raises."""
        self.require_room()
        self._reading += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, work)
        except Stopped:
            raise Problem(problems.BUSY, ends=True) from None
        except OSError:
            # Errors of Redis are `RefundError`s: this is the disk.
            raise Problem(problems.NO_SPACE, ends=True) from None
        finally:
            self._reading -= 1

    def progress(self, _done: int) -> None:
        """Raise `Stopped` at the end of the process."""
        if self._ended.is_set():
            raise Stopped

    def submitted(self, done: int) -> None:
        """Note that so many rows were accepted."""
        self.progress(done)

    @property
    def active(self) -> frozenset[str]:
        """Return the batches whose rows are being submitted."""
        return frozenset(self._active)

    def judge(
        self,
        source: Source,
        options: ImportSettings,
        caller: Caller,
        opening: Opening | None,
    ) -> Judged:
        """Check a file, and open its batch if nothing is refused and it has something new.

        Without an `opening` nothing is opened. Blocks. Raises `InputError`, `GuardRefused`,
        `InvalidRequest`.
        """
        validation = validate(source, self.progress)
        summary, store = validation.summary, self._refunds.store
        report = facts_of(source, summary)
        if summary.refused:
            report["error_rows"] = _errors(source, validation)
        refusals = of_file(summary, options)
        if refusals and opening is not None:
            return _judged(report, refusals)

        def compare() -> batches.Comparison:
            rows = _seen(accepted(source, validation), caller)
            return batches.compare(store, rows, self.progress)

        if opening is None:
            compared = compare()
            refusals, no_batch = refusals + of_rows(source, summary, compared, options), ""
            continues = False
            try:
                drafted = draft(source, summary, options)
                foreseen = batches.foresee_batch(store, options.batch, source.digest, drafted)
                continues = not foreseen.fresh
            except GuardRefused as error:
                refusals.append(Refusal("batch"))
                no_batch = str(error)
            earlier = batches.earlier_batch(store, source.digest)
            if earlier is not None and caller.sees(earlier.batch_id):
                report["earlier_batch"] = earlier.batch_id
            judged = _judged(report | records_of(compared) | _lines(compared), refusals)
            return replace(judged, no_batch=no_batch, continues=continues)
        prepared = prepare(store, source, summary, options, compare)
        compared = prepared.compared
        report |= records_of(compared) | _lines(compared)
        if prepared.refusals or prepared.has_nothing_new:
            return _judged(report, prepared.refusals)
        opening.sync()
        batch = carry_out(
            store,
            opening.deed,
            lambda: begin(store, source, summary, options),
            lambda begun: begun.batch_id,
        )
        return replace(_judged(report, []), begun=batch.batch_id, validation=validation)

    def follow(self, batch_id: str, kept: Kept, source: Source, validation: Validation) -> None:
        """Submit the rows of a batch that was opened, after the answer."""
        if batch_id in self._active:
            # The same file was sent twice at the same time.
            kept.remove()
            source.close()
            return
        kept.keep_for(batch_id)
        work = partial(self._submit, batch_id, source, validation)
        self._begin(batch_id, kept, work, source)

    async def take_up(self) -> None:
        """Go on with the batches that were not completely imported, and drop old files."""
        for batch_id, kept in await asyncio.to_thread(lambda: list(self.spool.waiting())):
            if batch_id in self._active:
                kept.file.close()
                continue
            self._begin(batch_id, kept, partial(self._resume, batch_id, kept))

    async def keep_taking_up(self) -> None:
        """Take up what is left at the start and every hour after it."""
        while True:
            try:
                await self.take_up()
            except OSError as error:
                log.warning("spool_unreadable", error=type(error).__name__)
            await asyncio.sleep(CLEAN_SECONDS)

    def end(self) -> None:
        """Stop soon: what is not complete goes on at the next start."""
        self._ended.set()

    async def close(self) -> None:
        """Wait until the threads have stopped."""
        self.end()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_END_SECONDS)
        self._pool.shutdown(wait=False, cancel_futures=True)
        self.spool.close()

    def write_rows(
        self, source: Source, write: Callable[[Source, Validation, IO[str]], int]
    ) -> IO[bytes]:
        """Return a file with the rows of a file as `write` writes them. Blocks."""
        validation = validate(source, self.progress)
        out = self.spool.scratch()
        text = io.TextIOWrapper(out, encoding="utf-8", newline="")
        write(source, validation, text)
        text.flush()
        text.detach()
        out.seek(0)
        return out

    async def _start(self, _application: web.Application) -> None:
        self._taking_up = asyncio.create_task(self.keep_taking_up())

    async def _stop(self, _application: web.Application) -> None:
        if self._taking_up is not None:
            self._taking_up.cancel()
            with suppress(asyncio.CancelledError):
                await self._taking_up

    def _begin(
        self, batch_id: str, kept: Kept, work: Callable[[], bool], source: Source | None = None
    ) -> None:
        self._active.add(batch_id)
        self._reading += 1
        task = asyncio.create_task(self._import(batch_id, kept, work, source))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _import(
        self, batch_id: str, kept: Kept, work: Callable[[], bool], source: Source | None
    ) -> None:
        try:
            loop = asyncio.get_running_loop()
            is_needed = await loop.run_in_executor(self._pool, self._lasting, batch_id, kept, work)
            if not is_needed:
                kept.remove()
        finally:
            self._reading -= 1
            self._active.discard(batch_id)
            kept.file.close()
            if source is not None:
                source.close()

    def _lasting(self, batch_id: str, kept: Kept, work: Callable[[], bool]) -> bool:
        """Work until Redis has kept all of it; return whether the file is needed later.

        However old it is, it is needed until its rows are accepted or its batch is canceled.
        """
        while True:
            try:
                return work() and not kept.is_old
            except (StoreUnavailable, NotDurable) as error:
                log.warning("import_deferred", batch_id=batch_id, error=str(error))
                is_full = isinstance(error, StoreFull)
                if self._ended.wait(FULL_SECONDS if is_full else AGAIN_SECONDS):
                    return True
            except Stopped:
                return True
            except NotStorable as error:
                return _failed(batch_id, str(error))
            except NotFound:
                # Its record outlives its file. So it was lost, or the file is another server's.
                is_needed = _failed(
                    batch_id,
                    "the records do not know the batch of this file, as after a restored snapshot:"
                    " the file is kept until 7 days after its upload; send it again while new ids"
                    " begin in doubt, since its rows may have been paid ('refunds doctor' says"
                    " until when)",
                )
                return is_needed and not kept.is_old
            except RefundError as error:
                return _failed(batch_id, str(error))
            except Exception as error:  # noqa: BLE001 - an outermost loop; its text may repeat rows
                return _failed(batch_id, type(error).__name__)

    def _submit(self, batch_id: str, source: Source, validation: Validation) -> bool:
        counts = SubmitCounts()
        try:
            submit(self._refunds, batch_id, source, validation, counts, self.submitted)
        except BatchCanceled as error:
            log.info("import_ended", batch_id=batch_id, error=str(error))
        else:
            log.info(
                "file_imported",
                batch_id=batch_id,
                created=counts.created,
                known=counts.known,
                conflicting=counts.conflicting,
                repeating=counts.repeating,
            )
        # The invalid rows are read again for /errors.
        return validation.summary.refused > 0

    def _resume(self, batch_id: str, kept: Kept) -> bool:
        stored = batches.read_batch(self._refunds.store, batch_id)
        if stored.imported_at is not None or stored.state == "canceled":
            return stored.invalid > 0
        file = kept.path.open("rb")
        with Source(name=stored.file, file=file, options=reading_of(stored.options)) as source:
            if source.digest != stored.digest:
                raise NotFound(f"batch {batch_id} is that of another file")
            validation = validate(source, self.progress)
            _require_same(stored, validation)
            return self._submit(batch_id, source, validation)


def _require_same(stored: batches.Batch, validation: Validation) -> None:
    """Raise `GuardRefused` if a file is read otherwise than it was when its batch was opened.

    The sender was told which rows are invalid, and may have submitted them corrected.
    """
    refused_now = validation.summary.refused
    if refused_now != stored.invalid:
        raise GuardRefused(
            f"{counted(stored.invalid, 'row')} of the file of batch {stored.batch_id} had errors"
            f" when it was received, and {refused_now:,} by the rules of this version: send the"
            " file again, and compare the report, or cancel the batch"
        )


def _failed(batch_id: str, error: str) -> bool:
    """Report an import that a person must see to; its file is needed later."""
    log.error("import_failed", batch_id=batch_id, error=error, alarm=True)
    return True


def opened(kept: Kept, name: str, reading: ImportOptions) -> Source:
    """Return a received file as one to import. Blocks; raises `InputError`."""
    source = Source(name=name, file=kept.path.open("rb"), options=reading, digest=kept.digest)
    if (sentence := unfitting(source)) is not None:
        source.close()
        raise InputError(sentence)
    return source


def in_parameters(sentence: str) -> str:
    """Return a sentence of the importer with the names of parameters instead of options."""

    def parameter(found: re.Match[str]) -> str:
        name = found[1].replace("-", "_")
        return f"{name}=true" if name in _FLAGS else _RENAMED.get(name, name)

    sentence = in_addresses(sentence.replace("leave out --format", _TYPE))
    return _OPTION.sub(parameter, sentence)


def _judged(report: dict[str, Any], refusals: list[Refusal]) -> Judged:
    refusals = [each._replace(limit=each.limit and in_parameters(each.limit)) for each in refusals]
    reasons = [refusal.reason for refusal in refusals]
    return Judged(report=report | broken_limits(refusals) | {"refused": reasons}, refusals=refusals)


def _errors(source: Source, validation: Validation) -> list[dict[str, Any]]:
    found = (error for _, errors in refused(source, validation) for error in errors)
    most = min(FIRST_ERRORS, validation.summary.errors)
    return [error._asdict() for error in islice(found, most)]


def _seen(rows: Iterator[Accepted], caller: Caller) -> Iterator[Accepted]:
    """Yield the rows. Raises `InvalidRequest` at one that the caller may not submit."""
    for row in rows:
        if not caller.sees(row.request.refund_id):
            rule = f"must begin with {caller.ids_prefix} for this token (line {row.line})"
            raise wrong_field("refund_id", "refund_id", "", rule)
        yield row


def _lines(compared: batches.Comparison) -> dict[str, Any]:
    """Return the first lines of each kind of row that is refused."""
    return {
        "lines": {
            "all_remaining": compared.first_all_remaining,
            "repeats": [each.row.line for each in compared.first_repeats],
            "not_failed": [each.row.line for each in compared.first_not_failed],
            "conflicting": [each.row.line for each in compared.first_conflicts],
        }
    }


def sentence_of(refusal: Refusal, report: dict[str, Any]) -> str:
    """Return why a file is refused that has no invalid rows, in the words of the API."""
    repeats = report["repeats"] + report.get("repeats_of_records", 0)
    return {
        "all_remaining": f"{refusal.limit}; add all_remaining=true if that is meant",
        "repeats": f"{counted(repeats, 'row')} with the payment and amount of another refund under"
        " another id; add allow_repeat=true if each is meant",
        "not_failed": f"{counted(report.get('not_failed', 0), 'row')} that attempt a refund again"
        " which is in progress, or has or may have moved the money",
        "conflicting": f"{counted(report.get('conflicting', 0), 'row')} with the id of a refund"
        " with other contents",
    }.get(refusal.reason, refusal.limit or "")
