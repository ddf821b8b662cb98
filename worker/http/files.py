"""The routes that receive files: an import, its results, and its rows with errors."""

from __future__ import annotations

import asyncio
from functools import partial
from http import HTTPStatus
from typing import Any, Final

from aiohttp import web

from worker.batches import BegunFile
from worker.errors import GuardRefused, InputError, KnownFile, RefundError
from worker.http import problems
from worker.http.batches import NDJSON, PATH, batch_of, own_batch
from worker.http.context import Context
from worker.http.deeds import deed_of
from worker.http.problems import Problem
from worker.http.queries import Query
from worker.http.rowfiles import RowFiles
from worker.http.uploads import Judged, Opening, Uploads, in_parameters, opened, sentence_of
from worker.http.wanted import Wanted
from worker.importer import Format, Source
from worker.model.callers import Caller, Scope
from worker.model.words import counted, verb
from worker.settings import Settings

TYPES: Final[dict[str, Format]] = {
    "text/csv": "csv",
    NDJSON: "jsonl",
    "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet": "xlsx",
}


class FileRoutes:
    """Answers the requests that send files, or read those sent."""

    def __init__(self, context: Context, uploads: Uploads, settings: Settings) -> None:
        self._context, self._uploads, self._settings = context, uploads, settings
        self._rows = RowFiles(context.refunds, context.threads, uploads)

    def add(self, application: web.Application) -> None:
        """Add the routes."""
        router, allowed = application.router, self._context.allowed
        router.add_post(PATH, allowed(Scope.SUBMIT, self.create))
        router.add_post(f"{PATH}/{{batch_id}}/result", allowed(Scope.READ, self.result))
        router.add_get(f"{PATH}/{{batch_id}}/errors", allowed(Scope.READ, self.errors))

    async def create(self, request: web.Request, caller: Caller) -> web.Response:
        """Import a file, or only check it."""
        form = _type_of(request)
        try:
            wanted = Wanted(request, form, caller, self._settings)
        except InputError as error:
            raise _answer(error, caller) from None
        self._uploads.require_room()
        kept = await self._uploads.spool.receive(request)
        source: Source | None = None
        is_followed = False
        try:
            name = f"{wanted.settings.batch or 'upload'}.{form}"
            source = await asyncio.to_thread(opened, kept, name, wanted.reading)
            opening = Opening(
                sync=kept.sync, deed=deed_of(request, caller, "import", note=source.name)
            )
            judged = await self._uploads.read(
                partial(
                    self._uploads.judge,
                    source,
                    wanted.settings,
                    caller,
                    None if wanted.dry_run else opening,
                )
            )
            if wanted.dry_run:
                return web.json_response(judged.report | {"batch_id": None})
            if judged.refusals:
                raise _refusal(judged)
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
        stored = await self._rows.stored(batch_of(request, caller))
        self._uploads.require_room()
        kept = await self._uploads.spool.receive(request)
        try:
            return await self._rows.results(request, stored, kept, caller)
        finally:
            kept.remove()

    async def errors(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        """Return the rows that were left out of a batch, with their errors."""
        Query(request, ()).check()
        batch_id = await own_batch(self._context, request, caller)
        return await self._rows.errors(request, await self._rows.stored(batch_id))


def _refusal(judged: Judged) -> Problem:
    """Return the answer to a file that is refused."""
    report, more = judged.report, {"report": judged.report}
    if judged.refusals[0].reason == "invalid_rows":
        rows = f"{report['invalid']:,} of {counted(report['rows'], 'row')}"
        are = verb(report["invalid"], "is", "are")
        return Problem(
            problems.INVALID_ROWS, f"{rows} {are} invalid: nothing was imported.", more=more
        )
    sentences = [sentence_of(refusal, report) for refusal in judged.refusals]
    return Problem(problems.REFUSED, f"{'; '.join(sentences)}: nothing was imported.", more=more)


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
    if isinstance(error, KnownFile | BegunFile) and not caller.sees(error.batch_id):
        return Problem(problem.kind, "This file was imported before.")
    problem.detail = in_parameters(problem.detail)
    return problem
