"""Probes the provider with small test refunds.

The worker's own client sends them exactly as the worker sends refunds. The number of test refunds
is bounded, and each is counted before it is sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Any, Final, TypeVar

import httpx

from worker.errors import GuardRefused
from worker.model.answers import (
    Answer,
    NoReply,
    NotSent,
    Outcome,
    PaymentView,
    ProviderRefund,
    Reply,
    TryVerdict,
)
from worker.model.refund import Refund, Stage, Status
from worker.model.request import idempotency_key, request_body
from worker.probing import judging
from worker.probing.fields import moved, numbers
from worker.probing.questions import MAX_POSTS, Finding, Order, Problem, Question, Verdict, guard
from worker.probing.report import Report
from worker.provider.gateway import Gateway
from worker.provider.transport import build_client
from worker.settings import Settings

LOOKS: Final = 6
"""Most reads of a value that may appear late.

A total, an entry of the list, the end of a pending refund.
"""
PAUSE_SECONDS: Final = 1.0
_LEASE: Final = timedelta(minutes=10)

T = TypeVar("T")
Sleep = Callable[[float], Awaitable[None]]


class Probe:
    """One probe of one provider. Call `run` once.

    `posts` is the number of test refunds that may have been sent so far.

    Raises `GuardRefused` if the settings could move real money.
    """

    def __init__(self, settings: Settings, order: Order, *, sleep: Sleep = asyncio.sleep) -> None:
        guard(settings)
        self.order = order
        self.posts = 0
        self._settings = settings
        # Each attempt makes one POST: a retry could hide a second effect.
        self._rules = replace(settings.rules, idempotency="verify", lease=_LEASE)
        self._sleep = sleep
        self._client: httpx.AsyncClient
        self._gateway: Gateway
        self._findings: dict[Question, Finding] = {}
        self._made: dict[str, ProviderRefund] = {}
        self._uncertain = 0
        self._currency: str | None = None

    async def run(self) -> Report:
        """Ask every question and return the report.

        Raises `GuardRefused`, unsent, if the payment is live.
        """
        async with build_client(self._settings) as client:
            self._client = client
            self._gateway = Gateway(client, self._rules, sleep=self._sleep)
            problem = await self._ask()
        amounts = [
            made.amount or self.order.amount
            for made in self._made.values()
            if made.is_pending or made.status == "succeeded"
        ]
        return Report(
            order=self.order,
            host=self._settings.provider_host,
            posts=self.posts,
            refunds=tuple(self._made),
            spent=sum(amounts),
            uncertain=self._uncertain * self.order.amount,
            currency=self._currency,
            findings={
                question: self._findings[question]
                for question in Question
                if question in self._findings
            },
            problem=problem,
        )

    async def _ask(self) -> Problem | None:
        before = await self._total()
        if isinstance(before, Problem):
            return before
        self._currency = before.currency or None
        names = await self._numbers()
        if names.get("payment_intent.livemode") is True:
            raise GuardRefused(
                f"the provider reports {self.order.payment_intent} as live, and a probe is for test"
                " payments only: nothing was sent; name a test payment with --payment-intent"
            )
        if any(path.startswith("payment_intent.charges.data[1].") for path in names):
            return Problem(
                sort="refused",
                text="the payment has several charges: name one with a single charge",
            )
        left = None if before.baseline is None else before.baseline.remaining
        if left is not None and left < MAX_POSTS * self.order.amount:
            text = (
                f"only {left} minor units are left to refund, and a probe may need"
                f" {MAX_POSTS * self.order.amount}"
            )
            return Problem(sort="refused", text=f"{text}: name another payment")
        first = await self._first()
        if isinstance(first, Problem):
            return first
        number, found, replayed = first
        after = await self._judge_total(found, before, names)
        refund_id = self.order.request(number).refund_id
        read = await self._read_refund(found.id)
        self._findings[Question.REFUND] = judging.reading(read, found.id, refund_id)
        self._findings[Question.LIST] = await self._judge_list(refund_id, found)
        return await self._judge_key(number, found, before, after, replayed=replayed)

    async def _first(self) -> tuple[int, ProviderRefund, bool] | Problem:
        """Make the first refund.

        Returns its number, the provider's refund, and whether it came as a replay after a 5xx. A
        5xx shows whether the provider stores it under its key. A refund under another key then
        distinguishes a stored error from a broken provider.
        """
        outcome = await self._post(1)
        if outcome.found is not None:
            self._note(Question.ERROR, Verdict.NOT_SEEN, "the provider answered no 5xx")
            return 1, outcome.found, False
        if not outcome.server_error:
            return judging.problem(outcome)
        error = f"HTTP {outcome.http_status}"
        again = await self._post(1)
        if again.found is not None:
            self._note(
                Question.ERROR, Verdict.NO, f"{error}, then the same key gave {again.found.id}"
            )
            return 1, again.found, True
        if not again.server_error:
            return judging.problem(again)
        control = await self._post(2)
        if control.found is None:
            return judging.problem(control)
        last = await self._post(1)
        if last.server_error:
            text = (
                f"{error} three times under one key, while another key gave {control.found.id} in"
                " between"
            )
            self._note(Question.ERROR, Verdict.YES, text)
        elif last.found is not None:
            self._note(
                Question.ERROR, Verdict.NO, f"{error} twice, then the same key gave {last.found.id}"
            )
        else:
            self._note(
                Question.ERROR, Verdict.UNCLEAR, f"{error} twice, then {judging.words(last)}"
            )
        return 2, control.found, False

    async def _post(self, number: int, *, key_of: int | None = None) -> Outcome:
        """Make one test refund, under the key of refund `key_of` if that is given."""
        request = self.order.request(number)
        now = datetime.now(UTC)
        refund = Refund(
            refund_id=request.refund_id,
            status=Status.PENDING,
            stage=Stage.SENDING,
            payment_intent=request.payment_intent,
            amount=request.amount,
            attempts=1,
            created_at=now,
            updated_at=now,
            version=1,
            fingerprint=request.fingerprint,
            idempotency_key=idempotency_key(self.order.request(key_of or number).refund_id, 1),
        )
        self.posts += 1
        outcome = await self._gateway.send(refund, request_body(request, 1), lease_left=_LEASE)
        # A reply to other bytes that shows the first refund contradicts the request, but no second
        # refund was made.
        first_again = key_of is not None and outcome.code == "contradictory_reply"
        if outcome.verdict is TryVerdict.NOT_SENT:
            self.posts -= 1
        elif (
            outcome.verdict is TryVerdict.MAYBE
            and not first_again
            and not judging.is_guarded(outcome)
        ):
            self._uncertain += 1
        if outcome.found is not None:
            self._made[outcome.found.id] = outcome.found
        return outcome

    async def _total(self) -> PaymentView | Problem:
        """Read the refunded total as the worker does. An unreadable payment has no total."""
        view = await self._steady(
            lambda: self._gateway.get_payment(self.order.payment_intent, about=None)
        )
        if isinstance(view, PaymentView):
            return view
        if not isinstance(view, Reply):
            return Problem(sort="away", text=f"the provider is unavailable: {view.reason}")
        if view.http_status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
            return Problem(sort="key", text=f"the key is refused (HTTP {view.http_status})")
        return PaymentView(
            problem=f"GET of the payment or its charge answered HTTP {view.http_status}"
        )

    async def _numbers(self) -> Mapping[str, Any]:
        limit = self._rules.request_timeout.total_seconds()
        return await numbers(self._client, self.order.payment_intent, limit)

    async def _judge_total(
        self, found: ProviderRefund, before: PaymentView, names: Mapping[str, Any]
    ) -> PaymentView | None:
        """Judge whether the total moved, and whether it moved while the refund was pending.

        Return the last view.
        """
        if found.is_pending:
            view = await self._look_for_rise(before, looks=1)
            now = await self._read_refund(found.id)
            still = now is not None and now.is_pending
            self._findings[Question.PENDING] = judging.pending(
                before, view, self.order.amount, still=still
            )
            found = await self._wait_for_end(found)
        else:
            text = (
                f"the refund was {found.status} at once: a payment whose refunds stay pending would"
                " show it"
            )
            self._note(Question.PENDING, Verdict.NOT_SEEN, text)
        view = await self._look_for_rise(before, looks=LOOKS)
        fields = moved(names, await self._numbers(), self.order.amount)
        also_moved = f"; what moved: {', '.join(fields)}" if fields else ""
        self._findings[Question.TOTALS] = judging.total(
            found, before, view, self.order.amount, also_moved
        )
        return view

    async def _look_for_rise(self, before: PaymentView, *, looks: int) -> PaymentView | None:
        """Return the payment once its total moved, else as read last of `looks` times.

        None if it cannot be read.
        """
        view: PaymentView | None = None
        for look in range(1 if before.refunded is None else looks):
            if look:
                await self._sleep(PAUSE_SECONDS)
            read = await self._total()
            view = read if isinstance(read, PaymentView) else None
            if judging.rise(before, view):
                break
        return view

    async def _wait_for_end(self, found: ProviderRefund) -> ProviderRefund:
        for _ in range(LOOKS):
            if not found.is_pending:
                break
            await self._sleep(PAUSE_SECONDS)
            found = await self._read_refund(found.id) or found
        self._made[found.id] = found
        return found

    async def _read_refund(self, provider_refund_id: str) -> ProviderRefund | None:
        answer = await self._steady(
            lambda: self._gateway.get_refund(provider_refund_id, about=None)
        )
        if (
            not isinstance(answer, Reply)
            or answer.http_status != HTTPStatus.OK
            or answer.payload is None
        ):
            return None
        found = answer.payload.refund
        return found if found is not None and found.id == provider_refund_id else None

    async def _judge_list(self, refund_id: str, found: ProviderRefund) -> Finding:
        for look in range(LOOKS):
            if look:
                await self._sleep(PAUSE_SECONDS)
            shown = await self._list()
            if isinstance(shown, (Reply, NoReply, NotSent)):
                return judging.no_list(shown)
            entries, complete = shown
            finding = judging.listed(
                entries,
                complete=complete,
                found=found,
                refund_id=refund_id,
                payment_intent=self.order.payment_intent,
            )
            if finding is not None:
                return finding
        return Finding(verdict=Verdict.NO, evidence=f"it does not show {found.id}")

    async def _listed_under(self, refund_id: str, *, looks: int) -> int | None:
        """Return how many refunds the list shows under our id; None if the list cannot be used.

        It is read until it shows several, at most `looks` times. If it could not be read to its
        end, it may hold more.
        """
        if self._findings[Question.LIST].verdict is not Verdict.YES:
            return None
        count: int | None = None
        for look in range(looks):
            if look:
                await self._sleep(PAUSE_SECONDS)
            shown = await self._list()
            if isinstance(shown, (Reply, NoReply, NotSent)):
                return None
            entries, is_whole = shown
            found = sum(entry.refund_id == refund_id for entry in entries)
            count = found if is_whole or found > 1 else None
            if found > 1:
                break
        return count

    async def _list(self) -> tuple[Sequence[ProviderRefund], bool] | Answer:
        return await self._steady(
            lambda: self._gateway.list_refunds(self.order.payment_intent, about=None)
        )

    async def _judge_key(
        self,
        number: int,
        found: ProviderRefund,
        before: PaymentView,
        after: PaymentView | None,
        *,
        replayed: bool,
    ) -> Problem | None:
        """Send the same request again, then other bytes under the same key.

        The verdict depends on how often money moved.
        """
        again = await self._post(number)
        if judging.is_no_answer(again):
            return judging.problem(again)
        other = await self._post(number + 1, key_of=number)
        if judging.is_no_answer(other):
            return judging.problem(other)
        await self._sleep(PAUSE_SECONDS)
        moves = self._findings[Question.TOTALS].verdict is Verdict.YES
        # A second effect may show as late as the first did.
        last = await self._look_for_rise(after or before, looks=LOOKS if moves else 1)
        refund_id = self.order.request(number).refund_id
        count = await self._listed_under(refund_id, looks=1 if moves else LOOKS)
        finding = judging.key(
            again, other, found, rose=judging.rise(after, last) if moves else None, count=count
        )
        since_start = judging.rise(before, last)
        if (
            finding.verdict is Verdict.YES
            and replayed
            and count is None
            and since_start != self.order.amount
        ):
            # The request that got the 5xx may have moved money as well.
            text = (
                f"after a 5xx and its replay the total had moved by {since_start}, not by"
                f" {self.order.amount}"
            )
            finding = Finding(verdict=Verdict.NO, evidence=text)
        self._findings[Question.GUARD] = judging.other_bytes(other, found)
        self._findings[Question.KEY] = finding
        return None

    async def _steady(self, read: Callable[[], Awaitable[T]]) -> T:
        """Read, and repeat if the provider is unavailable or failing: reads move no money."""
        answer = await read()
        for _ in range(2):
            if not _is_passing(answer):
                break
            await self._sleep(PAUSE_SECONDS)
            answer = await read()
        return answer

    def _note(self, question: Question, verdict: Verdict, evidence: str) -> None:
        self._findings[question] = Finding(verdict=verdict, evidence=evidence)


def _is_passing(answer: object) -> bool:
    if isinstance(answer, Reply):
        status = answer.http_status
        return status >= HTTPStatus.INTERNAL_SERVER_ERROR or status == HTTPStatus.TOO_MANY_REQUESTS
    return isinstance(answer, (NoReply, NotSent))
