"""The import on the page: a file is sent, checked, confirmed by typing its sums, and imported.

It is the import of the API, in two requests. What is confirmed is checked again as it is imported.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any, Final
from weakref import WeakValueDictionary

from aiohttp import web

from worker.batches import Batch, is_batch_id
from worker.client import Refunds
from worker.errors import FieldError, GuardRefused, InputError, InvalidRequest
from worker.file_import import ImportSettings
from worker.http import problems
from worker.http.batches import unknown
from worker.http.context import Threads
from worker.http.deeds import deed_of
from worker.http.page import importwords
from worker.http.page.actions import Action, Form
from worker.http.page.checks import Check, Checks
from worker.http.page.fileforms import TOKEN, read_file_form
from worker.http.page.refusals import Refusal
from worker.http.page.rendering import PATH, Renderer
from worker.http.page.sessions import Session, require_form_token
from worker.http.page.views import View
from worker.http.problems import Problem
from worker.http.queries import Query
from worker.http.rowfiles import RowFiles
from worker.http.spool import Kept
from worker.http.uploads import Judged, Opening, Uploads, opened
from worker.http.wanted import Wanted
from worker.importer import Source, write_failed_rows
from worker.model.callers import Caller
from worker.settings import Settings
from worker.store.audit import Deed

Report = Mapping[str, Any]
IMPORT: Final = f"{PATH}/import"
_ONE: Final = f"{IMPORT}/{{check_id}}"
_BATCH: Final = f"{PATH}/batches/{{batch_id}}"
_write_failed_rows: Final = partial(write_failed_rows, say=importwords.in_labels)
"""Writes the rows with errors as a person of the page reads them."""


class Imports:
    """Answers what a person does with a file. For one event loop."""

    def __init__(
        self,
        refunds: Refunds,
        threads: Threads,
        renderer: Renderer,
        uploads: Uploads,
        settings: Settings,
    ) -> None:
        self._renderer, self._uploads, self._settings = renderer, uploads, settings
        self._checks, self._rows = Checks(uploads.spool), RowFiles(refunds, threads, uploads)
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def views(self) -> dict[str, View]:
        """Return the views of those who may import, by their addresses."""
        return {IMPORT: self.show_form, _ONE: self.show, f"{_ONE}/errors": self.errors}

    def open_to_all(self) -> tuple[dict[str, View], dict[str, View]]:
        """Return what all may see: by addresses, and by those that take a form with a file."""
        return {f"{_BATCH}/errors": self.batch_errors}, {f"{_BATCH}/result": self.results}

    def receiving(self) -> dict[str, View]:
        """Return what reads a form with a file by itself, for those who may import."""
        return {IMPORT: self.receive}

    def actions(self) -> dict[str, Action]:
        """Return the actions of those who may import, by their addresses."""
        return {
            f"{_ONE}/check": self.check_again,
            f"{_ONE}/confirm": self.confirm,
            f"{_ONE}/drop": self.drop,
        }

    async def show_form(self, request: web.Request, session: Session) -> web.Response:
        """Ask for a file."""
        Query(request, ()).check()
        return self._renderer.page("import", session, labels=importwords.LABELS, fields={})

    async def receive(self, request: web.Request, session: Session) -> web.StreamResponse:
        """Receive and check a file, and show what was found."""
        form = await read_file_form(request, partial(require_form_token, request, session))
        self._uploads.require_room()
        kept = await self._uploads.spool.write(form.read, request.content_length)
        is_checked = False
        try:
            check_id = await asyncio.to_thread(self._checks.keep, kept)
            fields = {name: value for name, value in form.fields.items() if name != TOKEN}
            check = Check(check_id=check_id, file=form.name, by=session.caller.name, fields=fields)
            await self._checked(check, kept, session)
            is_checked = True
        finally:
            if is_checked:
                kept.file.close()
            else:
                kept.remove()
        return web.Response(status=303, headers={"Location": f"{IMPORT}/{check_id}"})

    async def show(self, request: web.Request, session: Session) -> web.Response:
        """Show what was found in a file, and ask for its confirmation."""
        Query(request, ()).check()
        return self._shown(await self._read(request), session)

    async def refused(
        self, request: web.Request, session: Session, refusal: Refusal
    ) -> web.Response:
        """Show the file whose form was not followed, and why."""
        return self._shown(await self._read(request), session, refusal)

    def _shown(
        self, check: Check, session: Session, refusal: Refusal | None = None
    ) -> web.Response:
        if check.batch_id is not None:
            address = f"{PATH}/batches/{check.batch_id}"
            return web.Response(status=303, headers={"Location": address})
        report = check.report or {}
        typed = {} if refusal is None else refusal.form
        return self._renderer.page(
            "checked",
            session,
            refusal=refusal,
            here=f"{IMPORT}/{check.check_id}" if refusal else "",
            typed=typed,
            wrong=importwords.wrong_in(report, typed) if report and typed else {},
            check=check,
            report=report,
            rows=importwords.rows_of(report) if report else [],
            errors=importwords.errors_of(report) if report else [],
            warnings=importwords.warnings_of(report) if report else [],
            sums=importwords.sums_of(report) if report else [],
            open_rows=importwords.without_amount(report) if report else 0,
            labels=importwords.LABELS,
            fields=_fields_of(check),
        )

    async def errors(self, request: web.Request, session: Session) -> web.StreamResponse:
        """Return every invalid row of a file, with its errors."""
        Query(request, ()).check()
        check = await self._read(request)
        wanted = Wanted(check.options(), None, session.caller, self._settings)

        def source() -> Source:
            file = self._checks.reader(check.check_id)
            return Source(name=check.file, file=file, options=wanted.reading)

        return await self._rows.send(request, source, _write_failed_rows, "invalid-rows")

    async def check_again(self, request: web.Request, session: Session, form: Form) -> str:
        """Check a file with other options."""
        check_id = request.match_info["check_id"]
        fields = {name: value for name, value in form.items() if name != TOKEN}
        async with self._alone(check_id):
            check = await self._read(request)
            kept = await asyncio.to_thread(self._checks.open, check_id)
            try:
                await self._checked(replace(check, fields=fields), kept, session)
            finally:
                kept.file.close()
        return f"{IMPORT}/{check_id}"

    async def confirm(self, request: web.Request, session: Session, form: Form) -> str:
        """Import a file, if what a person typed is what was found in it."""
        async with self._alone(request.match_info["check_id"]):
            check = await self._read(request)
            if check.batch_id is None:
                deed = deed_of(request, session.caller, "import", note=check.file, via="page")
                check = await self._imported(check, _confirmed(check, form), session.caller, deed)
        return f"{PATH}/batches/{check.batch_id}"

    async def drop(self, request: web.Request, _session: Session, _form: Form) -> str:
        """Remove a file that is not to be imported."""
        check_id = request.match_info["check_id"]
        async with self._alone(check_id):
            await self._read(request)
            await asyncio.to_thread(self._checks.drop, check_id)
        return IMPORT

    async def results(self, request: web.Request, session: Session) -> web.StreamResponse:
        """Return the rows of a batch's file, which is sent again, with their results."""
        stored = await self._rows.stored(_batch_in(request))
        form = await read_file_form(request, partial(require_form_token, request, session))
        self._uploads.require_room()
        kept = await self._uploads.spool.write(form.read, request.content_length)
        try:
            saved = f"{stored.batch_id}-result"
            return await self._rows.results(request, stored, kept, session.caller, saved)
        except InputError:
            raise _another_file(stored, form.name) from None
        finally:
            kept.remove()

    async def batch_errors(self, request: web.Request, _session: Session) -> web.StreamResponse:
        """Return the rows that were left out of a batch, with their errors."""
        Query(request, ()).check()
        stored = await self._rows.stored(_batch_in(request))
        return await self._rows.errors(
            request, stored, f"{stored.batch_id}-errors", write=_write_failed_rows
        )

    async def _read(self, request: web.Request) -> Check:
        return await asyncio.to_thread(self._checks.read, request.match_info["check_id"])

    @asynccontextmanager
    async def _alone(self, check_id: str) -> AsyncIterator[None]:
        """Let a second click on a button wait for the first: it then finds what that did."""
        lock = self._locks.get(check_id) or self._locks.setdefault(check_id, asyncio.Lock())
        async with lock:
            yield

    async def _checked(self, check: Check, kept: Kept, session: Session) -> None:
        """Check a file, and keep what is found."""
        found = replace(check, report=None, reasons=(), error="")
        try:
            judged, hidden = await self._judged(check, kept, session)
        except InputError as error:
            found = replace(found, error=importwords.in_labels(str(error)))
        except InvalidRequest as error:
            found = replace(found, error="; ".join(map(importwords.of_field, error.errors)))
        else:
            report = judged.report | {"hidden_rows": hidden, "continues": judged.continues}
            found = replace(found, report=report, reasons=importwords.reasons_of(judged))
        try:
            await asyncio.to_thread(self._checks.write, found)
        except OSError:
            raise Problem(problems.NO_SPACE) from None

    async def _judged(self, check: Check, kept: Kept, session: Session) -> tuple[Judged, int]:
        """Check a file, and return what is found, and how many of its rows are hidden."""
        wanted = Wanted(check.options(), None, session.caller, self._settings)
        source = await asyncio.to_thread(opened, kept, check.file, wanted.reading)
        with source:
            judged = await self._uploads.read(
                partial(self._uploads.judge, source, wanted.settings, session.caller, None)
            )
            return judged, source.hidden_rows

    async def _imported(self, check: Check, report: Report, caller: Caller, deed: Deed) -> Check:
        """Open the batch of a file, whose rows are submitted after the answer."""
        wanted = Wanted(check.options(), None, caller, self._settings)
        settings = _as_confirmed(wanted.settings, report)
        kept = await asyncio.to_thread(self._checks.open, check.check_id)
        source: Source | None = None
        is_followed = False
        try:
            source = await asyncio.to_thread(opened, kept, check.file, wanted.reading)
            if source.digest != report["digest"]:
                raise source.problem("was changed since it was checked: send it again")
            judged = await self._uploads.read(
                partial(
                    self._uploads.judge,
                    source,
                    settings,
                    caller,
                    Opening(sync=kept.sync, deed=deed),
                )
            )
            if judged.begun is None or judged.validation is None:
                raise _not_imported(judged)
            self._uploads.follow(judged.begun, kept, source, judged.validation)
            is_followed = True
            await asyncio.to_thread(self._uploads.spool.sync)
            done = replace(check, batch_id=judged.begun)
            # It only leads from the report to the batch, and the import has begun.
            with suppress(OSError):
                await asyncio.to_thread(self._checks.write, done)
        except (InputError, GuardRefused) as error:
            problem = problems.of_error(error)
            problem.detail = importwords.in_labels(problem.detail)
            raise problem from None
        finally:
            if not is_followed:
                kept.file.close()
                if source is not None:
                    source.close()
        return done


def _fields_of(check: Check) -> Mapping[str, str]:
    """Return the options to show: those of the check, or the columns that its error proposes."""
    columns = check.fields.get("column") or importwords.proposed_columns(check.error)
    return {**check.fields, "column": columns} if columns else check.fields


def _another_file(stored: Batch, name: str) -> Problem:
    return Problem(
        replace(problems.REFUSED, title="This is another file."),
        f"{name} is not the file that was imported as batch {stored.batch_id}, or was changed"
        f" since: choose {stored.file}, just as it was imported.",
    )


def _batch_in(request: web.Request) -> str:
    batch_id = request.match_info["batch_id"]
    if not is_batch_id(batch_id):
        raise unknown(batch_id)
    return batch_id


def _confirmed(check: Check, form: Form) -> Report:
    """Return the report that a person confirmed. Raises `Problem`, `InvalidRequest`."""
    if form.get("version") != check.version:
        raise Problem(
            problems.REFUSED,
            "The file was checked again after this form was shown: nothing was imported. Look at"
            " what was found now.",
        )
    if check.report is None or not check.is_importable:
        raise Problem(problems.REFUSED, "This file must not be imported: its report says why.")
    if wrong := importwords.wrong_in(check.report, form):
        raise InvalidRequest(
            [
                FieldError(
                    field=label,
                    code="typed",
                    value="",
                    rule="must be the same as in the file",
                )
                for label in wrong.values()
            ]
        )
    return check.report


def _as_confirmed(settings: ImportSettings, report: Report) -> ImportSettings:
    """Return the options of an import that refuses any other rows and sums than those confirmed."""
    totals = {currency: total["amount"] for currency, total in report["totals"].items()}
    # The sum is not known if a row refunds all that is left.
    known = {} if importwords.without_amount(report) else totals
    limits = replace(settings.limits, rows=report["rows"], totals=known)
    return replace(settings, limits=limits)


def _not_imported(judged: Judged) -> Problem:
    reasons = importwords.reasons_of(judged) or ("Every row was accepted meanwhile.",)
    return Problem(problems.REFUSED, f"{' '.join(reasons)} Nothing was imported.")
