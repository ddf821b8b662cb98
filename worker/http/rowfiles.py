"""The rows of an imported file as an answer: with their results, or those with errors."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import IO, Final

from aiohttp import web

from worker import batches
from worker.batches import Batch
from worker.client import Refunds
from worker.errors import InputError
from worker.file_import import reading_of
from worker.http import problems
from worker.http.batches import NDJSON
from worker.http.context import Threads
from worker.http.problems import Problem
from worker.http.spool import Kept
from worker.http.streams import streamed
from worker.http.uploads import Uploads
from worker.importer import Format, Source, Validation, write_failed_rows, write_result
from worker.model.callers import Caller
from worker.model.refund import Refund

_BLOCK: Final = 256 * 1024
_NAMES: Final[dict[Format, str]] = {"csv": "csv", "jsonl": "jsonl", "xlsx": "csv"}
"""How the names of the answered rows end: those of a workbook are written as CSV."""


class RowFiles:
    """Answers with the rows of files. For one event loop.

    `saved` is the name under which a browser keeps an answer, without its ending; without it the
    answer is not for keeping.
    """

    def __init__(self, refunds: Refunds, threads: Threads, uploads: Uploads) -> None:
        self._refunds, self._threads, self._uploads = refunds, threads, uploads

    async def stored(self, batch_id: str) -> Batch:
        """Return a batch. Raises `NotFound`."""
        return await self._threads.run(lambda: batches.read_batch(self._refunds.store, batch_id))

    async def results(
        self,
        request: web.Request,
        stored: Batch,
        kept: Kept,
        caller: Caller,
        saved: str | None = None,
    ) -> web.StreamResponse:
        """Return the rows of a batch's file, which was sent again, with their results.

        Raises `InputError` if it is another file.
        """
        batch_id = stored.batch_id
        if kept.digest != stored.digest:
            raise InputError(
                f"This is not the file that was imported as batch {batch_id}: send it byte for"
                " byte as it was sent then"
            )
        rows = partial(write_result, lookup=partial(self._seen, caller))
        return await self._of_batch(
            request,
            stored,
            kept.path.open("rb"),
            lambda source, validation, out: rows(source, validation, out=out),
            saved,
        )

    async def errors(
        self,
        request: web.Request,
        stored: Batch,
        saved: str | None = None,
        *,
        write: Callable[[Source, Validation, IO[str]], int] = write_failed_rows,
    ) -> web.StreamResponse:
        """Return the rows that were left out of a batch, with their errors. Raises `Problem`."""
        file = await asyncio.to_thread(self._uploads.spool.of_batch, stored.batch_id)
        if file is None:
            raise _not_kept(stored)
        return await self._of_batch(request, stored, file, write, saved)

    async def send(
        self,
        request: web.Request,
        opened: Callable[[], Source],
        write: Callable[[Source, Validation, IO[str]], int],
        saved: str | None = None,
    ) -> web.StreamResponse:
        """Stream rows of a file as `write` writes them."""

        def work() -> tuple[Format, IO[bytes]]:
            with opened() as source:
                return source.format, self._uploads.write_rows(source, write)

        form, rows = await self._uploads.read(work)
        with rows:
            return await streamed(
                request,
                NDJSON if form == "jsonl" else "text/csv",
                lambda: asyncio.to_thread(lambda: rows.read(_BLOCK) or None),
                saved=None if saved is None else f"{saved}.{_NAMES[form]}",
            )

    async def _of_batch(
        self,
        request: web.Request,
        stored: Batch,
        file: IO[bytes],
        write: Callable[[Source, Validation, IO[str]], int],
        saved: str | None,
    ) -> web.StreamResponse:
        options = reading_of(stored.options)

        def opened() -> Source:
            source = Source(name=stored.file, file=file, options=options)
            if source.digest != stored.digest:
                # The one kept here is of a batch of this id that the records have lost.
                source.close()
                raise _not_kept(stored)
            return source

        return await self.send(request, opened, write, saved)

    def _seen(self, caller: Caller, ids: Sequence[str]) -> list[Refund | None]:
        found = self._refunds.get_many(ids)
        return [
            each if each is not None and caller.sees(each.refund_id) else None for each in found
        ]


def _not_kept(stored: Batch) -> Problem:
    return Problem(
        problems.NOT_FOUND,
        f"No file of batch {stored.batch_id} is kept here: rows with errors are kept for 7 days"
        " after the upload.",
    )
