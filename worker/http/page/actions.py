"""What a person who may act can do: each is an ordinary form, and ends at a view.

The rules of the command line and of the API decide; nothing is decided here.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Final, TypeVar
from urllib.parse import quote

from aiohttp import web

from worker import batches
from worker.client import Refunds
from worker.http import problems
from worker.http.context import Threads
from worker.http.control import pause_all
from worker.http.deeds import deed_of
from worker.http.nudges import from_thread
from worker.http.page.refusals import is_version
from worker.http.page.rendering import PATH
from worker.http.page.sessions import Session
from worker.http.problems import Problem
from worker.model.hints import Hint
from worker.model.refund import Retriable
from worker.model.request import is_refund_id
from worker.store import callback_state, flags, rechecks
from worker.store.audit import Deed, carry_out
from worker.store.sweeps import Due

T = TypeVar("T")
Form = Mapping[str, str]
Action = Callable[[web.Request, Session, Form], Awaitable[str]]
"""Does something and returns the address of the view that shows the result."""
_CODE: Final = re.compile(r"[a-z][a-z0-9_]{0,59}")


class Actions:
    """Answers the forms. For one event loop."""

    def __init__(
        self, refunds: Refunds, threads: Threads, nudge: Callable[[Iterable[Due]], None]
    ) -> None:
        self._refunds, self._threads, self._nudge = refunds, threads, nudge

    def routes(self) -> dict[str, Action]:
        """Return the actions by their addresses."""
        one, batch = f"{PATH}/refunds/{{refund_id}}", f"{PATH}/batches/{{batch_id}}"
        return {
            f"{PATH}/pause": self.pause,
            f"{PATH}/resume": self.resume,
            f"{one}/resolve": self.resolve,
            f"{one}/cancel": self.cancel,
            f"{one}/retry": self.retry,
            f"{one}/recheck": self.recheck,
            f"{batch}/pause": self.pause_batch,
            f"{batch}/resume": self.resume_batch,
            f"{batch}/cancel": self.cancel_batch,
            f"{batch}/retry": self.retry_batch,
            f"{PATH}/callbacks/{{endpoint}}/replay": self.replay,
        }

    async def pause(self, request: web.Request, session: Session, _form: Form) -> str:
        """Stop sending; refunds in flight finish, and new ones are still accepted."""
        deed, store = _deed(request, session, "pause"), self._refunds.store
        await self._threads.run(lambda: pause_all(store, deed))
        return PATH

    async def resume(self, request: web.Request, session: Session, _form: Form) -> str:
        """Start sending again."""
        deed = _deed(request, session, "resume")
        await self._do(deed, lambda client: flags.resume(client.store))
        return PATH

    async def resolve(self, request: web.Request, session: Session, form: Form) -> str:
        """Decide about a refund in review, on the version that the form shows."""
        refund_id, decision = _refund_in(request), _decision_in(form)
        action = f"resolve as {decision['decision']}"
        deed = _deed(request, session, action, refund_id, note=decision["note"])
        await self._do(
            deed, lambda client: client.resolve(refund_id, by=session.caller.name, **decision)
        )
        return _refund_at(refund_id)

    async def cancel(self, request: web.Request, session: Session, _form: Form) -> str:
        """Cancel a refund that was not sent."""
        refund_id = _refund_in(request)
        deed = _deed(request, session, "cancel", refund_id)
        await self._do(deed, lambda client: client.cancel_once(refund_id, by=session.caller.name))
        return _refund_at(refund_id)

    async def retry(self, request: web.Request, session: Session, form: Form) -> str:
        """Send a failed refund again, as the form shows it."""
        refund_id, anyway = _refund_in(request), _is_ticked(form, "unknown")
        version = _version_in(form)
        await self._do(
            _deed(request, session, "retry", refund_id),
            lambda client: client.retry_once(
                refund_id, unknown=anyway, by=session.caller.name, version=version
            ),
        )
        return _refund_at(refund_id)

    async def recheck(self, request: web.Request, session: Session, _form: Form) -> str:
        """Have a worker read the refund from the provider now."""
        refund_id = _refund_in(request)

        def note(client: Refunds) -> Iterable[Due]:
            named = client.get(refund_id).provider_refund_id
            hint = Hint(provider_refund_id=named, refund_id=refund_id)
            return client.store.run(rechecks.hint(hint)).due

        self._nudge(await self._do(_deed(request, session, "recheck", refund_id), note))
        return _refund_at(refund_id)

    async def pause_batch(self, request: web.Request, session: Session, _form: Form) -> str:
        """Send no more refunds of a batch until it is resumed."""
        batch_id = _batch_in(request)
        await self._do(
            _deed(request, session, "batch pause", batch_id),
            lambda client: batches.pause_batch(client.store, batch_id, session.caller.name),
        )
        return _batch_at(batch_id)

    async def resume_batch(self, request: web.Request, session: Session, _form: Form) -> str:
        """Send the refunds of a paused batch again."""
        batch_id = _batch_in(request)
        deed = _deed(request, session, "batch resume", batch_id)
        await self._do(deed, lambda client: batches.resume_batch(client.store, batch_id))
        return _batch_at(batch_id)

    async def cancel_batch(self, request: web.Request, session: Session, form: Form) -> str:
        """Cancel what a batch has not sent, for good, if its id was typed."""
        batch_id = _batch_in(request)
        if form.get("typed") != batch_id:
            rule = f"must be {batch_id}, because a batch that is canceled cannot be resumed"
            raise problems.wrong_field("typed", "typed", "", rule)
        await self._do(
            _deed(request, session, "batch cancel", batch_id),
            lambda client: batches.cancel_batch(client.store, batch_id, session.caller.name),
        )
        return _batch_at(batch_id)

    async def retry_batch(self, request: web.Request, session: Session, form: Form) -> str:
        """Send the failed refunds of a batch again, where that can help."""
        batch_id = _batch_in(request)
        also = {Retriable.UNKNOWN} if _is_ticked(form, "unknown") else set()
        nudge = from_thread(self._nudge, asyncio.get_running_loop())
        await self._do(
            _deed(request, session, "batch retry", batch_id),
            lambda client: batches.retry_batch(
                client.store,
                batch_id,
                session.caller.name,
                kinds=frozenset({Retriable.YES} | also),
                nudge=nudge,
            ),
        )
        return _batch_at(batch_id)

    async def replay(self, request: web.Request, session: Session, _form: Form) -> str:
        """Send to an endpoint again what is not sent to it any more."""
        name = request.match_info["endpoint"]

        def replay(client: Refunds) -> int:
            letters = callback_state.dead_letters(client.store, name)
            members = [each.member for each in letters]
            return callback_state.replay(client.store, name, members, only_dead=True)

        await self._do(_deed(request, session, "callbacks replay", name), replay)
        return f"{PATH}/callbacks"

    async def _do(self, deed: Deed, work: Callable[[Refunds], T]) -> T:
        """Do something that the audit notes."""
        client = self._refunds
        return await self._threads.run(lambda: carry_out(client.store, deed, lambda: work(client)))


def _deed(
    request: web.Request, session: Session, action: str, target: str = "", *, note: str = ""
) -> Deed:
    return deed_of(request, session.caller, action, target, note=note, via="page")


def _refund_in(request: web.Request) -> str:
    refund_id = request.match_info["refund_id"]
    if not is_refund_id(refund_id):
        raise Problem(problems.NOT_FOUND, "No refund can have this id.")
    return refund_id


def _batch_in(request: web.Request) -> str:
    return batches.checked_batch_id(request.match_info["batch_id"])


def _refund_at(refund_id: str) -> str:
    return f"{PATH}/refunds/{quote(refund_id, safe=':')}"


def _batch_at(batch_id: str) -> str:
    return f"{PATH}/batches/{quote(batch_id, safe=':')}"


def _is_ticked(form: Form, name: str) -> bool:
    return form.get(name) == "yes"


def _version_in(form: Form) -> int:
    """Return the version of the refund that a form shows. Raises `InvalidRequest`."""
    version = form.get("version", "")
    if not is_version(version):
        raise problems.wrong_field("version", "version", "", "must be the one of the form")
    return int(version)


def _decision_in(form: Form) -> dict[str, Any]:
    """Return the decision in a form, as `Refunds.resolve` takes it. Raises `InvalidRequest`."""
    decision = form.get("decision", "")
    if decision not in {"succeeded", "failed", "resend"}:
        rule = "must be chosen: one of the three"
        raise problems.wrong_field("decision", "choice", "", rule)
    version = _version_in(form)
    code = _code_in(form.get("code", ""))
    if decision == "failed" and not _CODE.fullmatch(code):
        rule = (
            "must be a few words such as “paid in cash”: at most 60 letters, digits and spaces, the"
            " first a letter"
        )
        raise problems.wrong_field("code", "code", "", rule)
    # A field of another decision may be filled in: it does not count.
    return {
        "decision": decision,
        "provider_refund_id": form.get("provider_refund_id", ""),
        "code": code,
        # The field has several lines, and a note has one.
        "note": " ".join(form.get("note", "").split()),
        "unverified": _is_ticked(form, "unverified"),
        "version": version,
    }


def _code_in(words: str) -> str:
    """Return a reason in a person's words as a code: `paid_in_cash` for `Paid in cash`."""
    return re.sub(r"[^a-z0-9]+", "_", words.lower()).strip("_")
