"""The routes that receive files: an import, its results, and its rows with errors."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import partial
from http import HTTPStatus
from typing import IO, Any, Final, TypeVar, get_args

from aiohttp import web

from worker import batches
from worker.batches import Batch
from worker.errors import GuardRefused, InputError, KnownFile, RefundError
from worker.http import problems
from worker.http.batches import NDJSON, PATH, batch_of
from worker.http.context import Context
from worker.http.problems import Problem
from worker.http.queries import Query
from worker.http.spool import Kept
from worker.http.streams import streamed
from worker.http.uploads import Uploads, in_parameters, refusal_of
from worker.importer import (
    MOST_ATTEMPTS,
    AmountUnit,
    Format,
    ImportOptions,
    Source,
    Validation,
    write_failed_rows,
    write_result,
)
from worker.imports import (
    DELIMITER_OF,
    ImportSettings,
    Limits,
    Unusable,
    columns_of,
    each_sum,
    length_of_time,
    most_errors,
    reading_of,
    sums_or_one,
    unfitting,
)
from worker.model.callers import Caller, Scope
from worker.model.refund import Refund
from worker.model.request import shown
from worker.settings import Settings

T = TypeVar("T")

TYPES: Final[dict[str, Format]] = {
    "text/csv": "csv",
    NDJSON: "jsonl",
    "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet": "xlsx",
}
_REPEATABLE: Final = ("column", "expect_total", "max_total")
_FLAGS: Final = ("dry_run", "allow_repeat", "all_remaining", "again", "ignore_extra")
_ONCE: Final = (
    *("name", "on_error", "max_errors", "expect_rows", "delay"),
    *("delimiter", "sheet", "id_from", "attempt", "amount_unit", "decimal", "currency"),
)
_MOST_ROWS: Final = 10**8
_BLOCK: Final = 256 * 1024


class FileRoutes:
    """Answers the requests that send files, or read those sent."""

    def __init__(self, context: Context, uploads: Uploads, settings: Settings) -> None:
        self._context, self._uploads, self._settings = context, uploads, settings
        self._taking_up: asyncio.Task[None] | None = None

    def add(self, application: web.Application) -> None:
        """Add the routes."""
        router, allowed = application.router, self._context.allowed
        router.add_post(PATH, allowed(Scope.SUBMIT, self.create))
        router.add_post(f"{PATH}/{{batch_id}}/result", allowed(Scope.READ, self.result))
        router.add_get(f"{PATH}/{{batch_id}}/errors", allowed(Scope.READ, self.errors))
        application.on_startup.append(self._start)
        application.on_cleanup.append(self._stop)

    async def create(self, request: web.Request, caller: Caller) -> web.Response:
        """Import a file, or only check it."""
        form = _type_of(request)
        wanted = _Wanted(request, form, caller, self._settings)
        self._uploads.require_room()
        kept = await self._uploads.spool.receive(request)
        source: Source | None = None
        is_followed = False
        try:
            source = await asyncio.to_thread(_opened, kept, wanted.settings.batch, wanted.reading)
            judged = await self._uploads.read(
                partial(
                    self._uploads.judge,
                    source,
                    wanted.settings,
                    caller,
                    None if wanted.dry_run else kept.sync,
                )
            )
            if wanted.dry_run:
                return web.json_response(judged.report | {"batch_id": None})
            if judged.refusals:
                raise refusal_of(judged)
            if judged.begun is None or judged.validation is None:
                # Every row was accepted before.
                return web.json_response(judged.report | {"batch_id": None})
            self._uploads.follow(judged.begun, kept, source, judged.validation)
            is_followed = True
            await asyncio.to_thread(self._uploads.spool.sync)
            return _begun(judged.begun, judged.report)
        except (InputError, GuardRefused) as error:
            raise _answer(error, caller) from None
        finally:
            if not is_followed:
                kept.remove()
                if source is not None:
                    source.close()

    async def result(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        """Return the rows of an imported file, which is sent again, with their results."""
        _type_of(request)
        Query(request, ()).check()
        batch_id = batch_of(request, caller)
        stored = await self._stored(batch_id)
        self._uploads.require_room()
        kept = await self._uploads.spool.receive(request)
        try:
            if kept.digest != stored.digest:
                raise InputError(
                    f"This is not the file that was imported as batch {batch_id}: send it byte for"
                    " byte as it was sent then"
                )
            rows = partial(write_result, lookup=partial(self._seen, caller))
            return await self._rows(
                request,
                stored,
                kept.path.open("rb"),
                lambda source, validation, out: rows(source, validation, out=out),
            )
        finally:
            kept.remove()

    async def errors(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        """Return the rows that were left out of a batch, with their errors."""
        Query(request, ()).check()
        batch_id = batch_of(request, caller)
        stored = await self._stored(batch_id)
        file = await asyncio.to_thread(self._uploads.spool.of_batch, batch_id)
        if file is None:
            raise Problem(
                problems.NOT_FOUND,
                f"No file of batch {batch_id} is kept here: rows with errors are kept for 7 days"
                " after the upload.",
            )
        return await self._rows(request, stored, file, write_failed_rows)

    async def _rows(
        self,
        request: web.Request,
        stored: Batch,
        file: IO[bytes],
        write: Callable[[Source, Validation, IO[str]], int],
    ) -> web.StreamResponse:
        """Stream the rows of a batch's file."""

        def work() -> tuple[Format, IO[bytes]]:
            with Source(name=stored.file, file=file, options=reading_of(stored.options)) as source:
                return source.format, self._uploads.write_rows(source, write)

        form, rows = await self._uploads.read(work)
        with rows:
            return await streamed(
                request,
                NDJSON if form == "jsonl" else "text/csv",
                lambda: asyncio.to_thread(lambda: rows.read(_BLOCK) or None),
            )

    async def _stored(self, batch_id: str) -> Batch:
        store = self._context.refunds.store
        return await self._context.threads.run(lambda: batches.read_batch(store, batch_id))

    def _seen(self, caller: Caller, ids: Sequence[str]) -> list[Refund | None]:
        found = self._context.refunds.get_many(ids)
        return [
            each if each is not None and caller.sees(each.refund_id) else None for each in found
        ]

    async def _start(self, _application: web.Application) -> None:
        self._taking_up = asyncio.create_task(self._uploads.keep_taking_up())

    async def _stop(self, _application: web.Application) -> None:
        if self._taking_up is not None:
            self._taking_up.cancel()
            with suppress(asyncio.CancelledError):
                await self._taking_up


def _opened(kept: Kept, name: str | None, reading: ImportOptions) -> Source:
    """Return a received file as one to import. Blocks; raises `InputError`."""
    source = Source(
        name=f"{name or 'upload'}.{reading.format}",
        file=kept.path.open("rb"),
        options=reading,
        digest=kept.digest,
    )
    if (sentence := unfitting(source)) is not None:
        source.close()
        raise InputError(sentence)
    return source


def _begun(batch_id: str, report: dict[str, Any]) -> web.Response:
    place = f"{PATH}/{batch_id}"
    body = {
        "batch_id": batch_id,
        "state": "reading",
        "errors": f"{place}/errors" if report["invalid"] else None,
        "report": report,
    }
    return web.json_response(body, status=HTTPStatus.ACCEPTED, headers={"Location": place})


def _type_of(request: web.Request) -> Format:
    """Return the format that the headers name. Raises `Problem`."""
    form = TYPES.get(request.content_type)
    encodings = [each.strip().lower() for each in request.headers.getall("Content-Encoding", [])]
    if form is None or (request.charset or "utf-8").lower() not in {"utf-8", "utf8"}:
        raise Problem(
            problems.UNSUPPORTED, f"The Content-Type must be one of {', '.join(TYPES)}.", ends=True
        )
    if encodings not in ([], ["gzip"]):
        raise Problem(problems.UNSUPPORTED, "The Content-Encoding may only be gzip.", ends=True)
    return form


def _answer(error: RefundError, caller: Caller) -> Problem:
    """Return the answer to a refused file, which names parameters instead of options."""
    problem = problems.of_error(error)
    if isinstance(error, KnownFile) and not caller.sees(error.batch_id):
        return Problem(problem.kind, "This file was imported before.")
    problem.detail = in_parameters(problem.detail)
    return problem


class _Wanted:
    """What the query of an import says: the same options as those of `refunds import`.

    Raises `InvalidRequest` with every wrong one.
    """

    def __init__(
        self, request: web.Request, form: Format, caller: Caller, settings: Settings
    ) -> None:
        query = self._query = Query(request, (*_ONCE, *_FLAGS, *_REPEATABLE), _REPEATABLE)
        flags = {name: query.one_of(name, ("true", "false")) == "true" for name in _FLAGS}
        self.dry_run = flags["dry_run"]
        name = query.text("name")
        rule = "must be 1 to 100 of A-Z a-z 0-9 . _ : -"
        query.matching("name", batches.is_batch_id(name or ""), rule)
        if caller.ids_prefix and not caller.sees(name or "") and not self.dry_run:
            query.refuse("name", "name", shown(name), f"must begin with {caller.ids_prefix}")
        on_error = query.one_of("on_error", ("abort", "skip")) or "abort"
        if on_error != "skip" and query.text("max_errors") is not None:
            query.refuse("max_errors", "max_errors", "", "needs on_error=skip")
        unit: Any = query.one_of("amount_unit", get_args(AmountUnit)) or "minor"
        columns = self._parsed("column", columns_of, query.texts("column")) or ()
        has_rows = query.text("expect_rows") is not None
        self.settings = ImportSettings(
            batch=name,
            again=flags["again"],
            allow_repeat=flags["allow_repeat"],
            all_remaining=flags["all_remaining"],
            delay=self._one("delay", length_of_time) or timedelta(0),
            on_error=on_error,
            max_errors=self._one("max_errors", most_errors),
            limits=Limits(
                rows=query.whole("expect_rows", default=1, most=_MOST_ROWS) if has_rows else None,
                totals=self._parsed("expect_total", each_sum, query.texts("expect_total")) or {},
                most_totals=self._parsed("max_total", sums_or_one, query.texts("max_total")) or {},
                most_amount=settings.max_amount,
                unit=unit,
            ),
        )
        delimiter = query.one_of("delimiter", tuple(DELIMITER_OF))
        decimal: Any = query.one_of("decimal", ("point", "comma")) or "point"
        id_from = query.text("id_from")
        attempt = query.whole("attempt", default=1, most=MOST_ATTEMPTS)
        query.check()
        try:
            self.reading = ImportOptions(
                format=form,
                delimiter=None if delimiter is None else DELIMITER_OF[delimiter],
                sheet=query.text("sheet"),
                columns=columns,
                id_from=() if id_from is None else tuple(map(str.strip, id_from.split(","))),
                attempt=attempt,
                amount_unit=unit,
                decimal=decimal,
                default_currency=query.text("currency"),
                ignore_extra=flags["ignore_extra"],
            )
        except InputError as error:
            raise _answer(error, caller) from None

    def _one(self, name: str, parse: Callable[[str], T]) -> T | None:
        text = self._query.text(name)
        return None if text is None else self._parsed(name, parse, text)

    def _parsed(self, name: str, parse: Callable[[Any], T], given: Any) -> T | None:
        try:
            return parse(given)
        except Unusable as error:
            self._query.refuse(name, name, "", error.rule)
            return None
