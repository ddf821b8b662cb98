"""The provider's API: requests, the tries of one attempt, and reads.

`outcomes` decides what an answer means.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from http import HTTPStatus
from typing import Final
from urllib.parse import urlencode

import httpx
from tenacity import AsyncRetrying, RetryCallState, retry_if_result

from worker.model.answers import (
    NO_TOTAL_IN_CHARGE,
    Answer,
    NoReply,
    NotSent,
    Outcome,
    Payload,
    PaymentView,
    ProviderRefund,
    Reply,
    TryVerdict,
)
from worker.model.refund import Refund
from worker.model.request import is_provider_id
from worker.provider.lease_clock import since_boot
from worker.provider.transport import exchange
from worker.rules.attempts import SPARE, Rules, backoff, may_try_again
from worker.rules.outcomes import classify, fold, key_accepted, key_refused

MAX_TRIES: Final = 4
TRY_BACKOFF: Final = timedelta(milliseconds=500)
TRY_BACKOFF_CAP: Final = timedelta(seconds=4)
PAGE_SIZE: Final = 20
"""Refunds per page of a list; with the longest metadata, a page stays below the cap on replies."""
MAX_PAGES: Final = 25
PROBE_ID: Final = "re_credentials_probe"

_JSON: Final = {"Content-Type": "application/json"}
# Replies that may come before the provider checks the API key, or regardless of the check.
_INCONCLUSIVE_FOR_KEY: Final = frozenset({407, 408, 429})

Observer = Callable[[str, str, float], None]
"""Callback per call: operation, outcome class (`2xx` … `5xx`, `not_sent`, `no_reply`), seconds."""
MayGoOn = Callable[[], Awaitable[bool]]
Permit = Callable[[], Awaitable[None]]
"""Awaited before each request of a read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Bounds:
    """The time limits of an attempt, in seconds of the injected clock."""

    call: float
    lease_end: float
    window_end: float | None

    def try_fits_lease(self, start: float) -> bool:
        """Return whether a try from `start` ends before the lease does, with `SPARE` left."""
        return start + self.call + SPARE.total_seconds() <= self.lease_end

    def further_try_fits(self, start: float) -> bool:
        """Return whether a repeat from `start` ends within the lease and the key's window."""
        return self.try_fits_lease(start) and (
            self.window_end is None or start + self.call <= self.window_end
        )

    def left_for_probe(self, start: float) -> float:
        """Return the time limit in seconds for an optional call, whose answer only helps."""
        return min(self.call, self.lease_end - SPARE.total_seconds() - start)


async def _always() -> bool:
    """Return True: the default if the caller passes no `MayGoOn`."""
    return True


async def _at_once() -> None:
    """Return at once: the default if the caller passes no `Permit`."""


class Gateway:
    """The provider's API over one shared client of `transport.build_client`.

    Safe for concurrent calls.
    """

    def __init__(
        self,
        client: httpx.AsyncClient,
        rules: Rules,
        *,
        clock: Callable[[], float] = since_boot,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
        observer: Observer | None = None,
    ) -> None:
        self._client = client
        self._rules = rules
        self._clock = clock
        self._sleep = sleep
        self._jitter = jitter
        self._observer = observer
        self._limit = rules.request_timeout.total_seconds()
        # Build once what all POSTs have in common; each has its own body and key.
        self._pattern = client.build_request("GET", "/v1/refunds", headers=_JSON)

    async def send(
        self,
        refund: Refund,
        body: bytes,
        *,
        lease_left: timedelta,
        window_left: timedelta | None = None,
        may_go_on: MayGoOn = _always,
    ) -> Outcome:
        """Make one attempt: POST the stored bytes under the stored key, and fold the tries.

        The POST is repeated if the rules allow. `lease_left` and `window_left` (how long a replay
        still counts as the same request) count from this call. Without `window_left`, a first
        attempt has the whole window, and a later one repeats nothing in trust mode. `may_go_on` is
        called before every further try, and False ends the attempt. After this returns or is
        cancelled, nothing of a try without a reply can still be sent.
        """
        bounds = self._bounds(refund, lease_left, window_left)
        if not bounds.try_fits_lease(self._clock()):
            return fold(
                [classify(NotSent(reason="the lease had too little time left to send"), refund)]
            )
        outcomes = [await self._try(refund, body, bounds)]
        # Most attempts need one try, for which tenacity would double the cost of this method.
        if may_try_again(outcomes, refund, self._rules):
            await self._try_further(refund, body, bounds, outcomes, may_go_on)
        return fold(outcomes)

    async def _try_further(
        self,
        refund: Refund,
        body: bytes,
        bounds: _Bounds,
        outcomes: list[Outcome],
        may_go_on: MayGoOn,
    ) -> None:
        """Append the outcomes of the tries after the first, which was made before."""

        async def make_try() -> bool:
            """Make one try; return whether another may follow."""
            # Check again after the wait: it may have taken longer than planned, and a pause may
            # have begun.
            if not (await may_go_on() and bounds.further_try_fits(self._clock())):
                return False
            outcomes.append(await self._try(refund, body, bounds))
            return may_try_again(outcomes, refund, self._rules)

        def wait(state: RetryCallState) -> float:
            own = backoff(
                state.attempt_number, base=TRY_BACKOFF, cap=TRY_BACKOFF_CAP, jitter=self._jitter()
            )
            return max(own, outcomes[-1].retry_after or timedelta(0)).total_seconds()

        def is_over(state: RetryCallState) -> bool:
            after_wait = self._clock() + state.upcoming_sleep
            return state.attempt_number >= MAX_TRIES or not bounds.further_try_fits(after_wait)

        tries = AsyncRetrying(
            sleep=self._sleep,
            wait=wait,
            stop=is_over,
            retry=retry_if_result(bool),
            retry_error_callback=lambda _: None,
        )
        async for each in tries:
            # The first try counts, so that the wait before the second and the limit are right.
            state = each.retry_state
            state.set_result(state.attempt_number == 1 or await make_try())

    def _bounds(
        self, refund: Refund, lease_left: timedelta, window_left: timedelta | None
    ) -> _Bounds:
        now = self._clock()
        window_end = None
        if self._rules.idempotency == "trust":
            if window_left is None:
                window_left = self._rules.key_window if refund.attempts <= 1 else timedelta(0)
            window_end = now + window_left.total_seconds()
        return _Bounds(
            call=self._limit, lease_end=now + lease_left.total_seconds(), window_end=window_end
        )

    async def _try(self, refund: Refund, body: bytes, bounds: _Bounds) -> Outcome:
        # A stream, so that httpx looks for no headers to add: the pattern and aiohttp have them.
        request = httpx.Request(
            "POST",
            self._pattern.url,
            headers=self._pattern.headers,
            stream=httpx.ByteStream(body),
        )
        request.read()
        request.headers["Idempotency-Key"] = refund.idempotency_key
        outcome = classify(await self._call("create_refund", request, self._limit, refund), refund)
        return await self._whose_refusal(outcome, lambda: bounds.left_for_probe(self._clock()))

    async def whose_refusal(self, outcome: Outcome) -> Outcome:
        """Return a 403 as a refusal of the key or of this call, as a harmless GET shows.

        Other outcomes unchanged.

        If the GET does not show which, the outcome becomes "not done": a final decision on a guess
        would be wrong.
        """
        return await self._whose_refusal(outcome, lambda: self._limit)

    async def _whose_refusal(self, outcome: Outcome, seconds: Callable[[], float]) -> Outcome:
        if not outcome.credentials or outcome.verdict is not TryVerdict.REFUSED:
            return outcome
        left = seconds()
        accepted = await self._key_is_accepted(left) if left > 0 else None
        if accepted is None:
            return replace(outcome, verdict=TryVerdict.NOT_DONE, credentials=False)
        return key_accepted(outcome) if accepted else key_refused(outcome)

    async def key_is_accepted(self) -> bool | None:
        """Check the API key by a harmless GET.

        False for 401 and 403, True for an answer that a refused key cannot get.

        The result is None if neither is certain: no reply, no JSON object, 5xx, a redirect, a rate
        limit. The GET takes no permit of the rate gate: probes are few, and the breakers that make
        them hold back everything else.
        """
        return await self._key_is_accepted(self._limit)

    async def _key_is_accepted(self, limit: float) -> bool | None:
        answer = await self._call(
            "probe_key", self._client.build_request("GET", f"/v1/refunds/{PROBE_ID}"), limit
        )
        if not isinstance(answer, Reply):
            return None
        status = answer.http_status
        if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
            return False
        is_conclusive = httpx.codes.is_success(status) or httpx.codes.is_client_error(status)
        return (
            True
            if is_conclusive and status not in _INCONCLUSIVE_FOR_KEY and answer.payload is not None
            else None
        )

    async def get_refund(
        self, provider_refund_id: str, permit: Permit = _at_once, *, about: Refund | None
    ) -> Answer:
        """Read a refund by the provider's id; an id that would alter the URL is not requested.

        For this and every other read, no text of the answer repeats the metadata of the refund in
        `about`; None if nothing of a caller can be in the answer.
        """
        return await self._get("get_refund", "/v1/refunds", provider_refund_id, permit, about)

    async def account(self) -> str | None:
        """Return the id of the API key's account, None if the provider does not show it.

        Few providers do.
        """
        request = self._client.build_request("GET", "/v1/account")
        payload = _object_in(await self._call("get_account", request, self._limit))
        return payload.id or None if payload is not None and payload.kind == "account" else None

    async def get_payment_intent(
        self, payment_intent: str, permit: Permit = _at_once, *, about: Refund | None
    ) -> Answer:
        """Read a payment and return the answer.

        `shows` and `is_missing` say whether the provider knows the payment.
        """
        return await self._get("get_payment", "/v1/payment_intents", payment_intent, permit, about)

    async def get_payment(
        self, payment_intent: str, permit: Permit = _at_once, *, about: Refund | None
    ) -> PaymentView | Answer:
        """Read a payment's totals, from its one charge if it has none itself.

        Return the answer if it is unreadable.
        """
        answer = await self.get_payment_intent(payment_intent, permit, about=about)
        payload = _object_in(answer)
        if payload is None:
            return answer
        # An object requested by its id must show that id.
        if payload.id != payment_intent:
            return PaymentView(problem="the provider showed another payment")
        return await self.totals_of(payload, permit, about=about)

    async def totals_of(
        self, payment: Payload, permit: Permit = _at_once, *, about: Refund | None
    ) -> PaymentView | Answer:
        """Return the totals of a payment that was read, as `get_payment` does.

        They come from its one charge if it has none itself.
        """
        view = replace(payment.payment, shown=True)
        if view.charge is None:
            return view
        return await self._get_charge(view.charge, payment.id or "", view.currency, permit, about)

    async def _get_charge(
        self,
        charge: str,
        payment_intent: str,
        currency: str | None,
        permit: Permit,
        about: Refund | None,
    ) -> PaymentView | Answer:
        answer = await self._get("get_charge", "/v1/charges", charge, permit, about)
        payload = _object_in(answer)
        if payload is None:
            return answer
        if payload.id != charge or _differs(payload.payment_intent, payment_intent):
            return PaymentView(problem="the provider showed another charge", shown=True)
        view = payload.payment
        # A charge has its payment's currency only if it does not show one itself.
        own = currency if view.currency is None else view.currency
        if own and currency not in {None, own}:
            return PaymentView(
                currency="", problem="payment and charge differ in currency", shown=True
            )
        if view.charge is not None:
            return PaymentView(currency=own, problem=NO_TOTAL_IN_CHARGE, shown=True)
        return replace(view, currency=own, shown=True)

    async def list_refunds(
        self, payment_intent: str, permit: Permit = _at_once, *, about: Refund | None
    ) -> tuple[Sequence[ProviderRefund], bool] | Answer:
        """Read the list of a payment's refunds.

        Also return whether it was read without gaps to its stated end.

        Returns the answer instead if a page could not be read or was not a list.
        """
        found: dict[str, ProviderRefund] = {}
        query = {"payment_intent": payment_intent, "limit": str(PAGE_SIZE)}
        gaps = False
        for _ in range(MAX_PAGES):
            request = self._client.build_request("GET", f"/v1/refunds?{urlencode(query)}")
            await permit()
            answer = await self._call("list_refunds", request, self._limit, about)
            payload = _object_in(answer)
            page = None if payload is None else payload.page
            if page is None:
                return answer
            gaps = gaps or None in page.entries
            fresh = {
                entry.id: entry
                for entry in page.entries
                if entry is not None and entry.id not in found
            }
            found |= fresh
            if page.more is False:
                return [*found.values()], not gaps
            last = page.entries[-1] if page.entries else None
            # A page with nothing new is the same page again: stop, or this loop would not end.
            if page.more is not True or last is None or not fresh:
                break
            query["starting_after"] = last.id
        return [*found.values()], False

    async def _get(
        self, operation: str, path: str, identity: str, permit: Permit, about: Refund | None
    ) -> Answer:
        if not is_provider_id(identity):
            return NotSent(reason="the id cannot be part of a URL")
        await permit()
        return await self._call(
            operation, self._client.build_request("GET", f"{path}/{identity}"), self._limit, about
        )

    async def _call(
        self, operation: str, request: httpx.Request, limit: float, about: Refund | None = None
    ) -> Answer:
        started = self._clock()
        hide = () if about is None else about.metadata.values()
        answer = await exchange(self._client, request, limit, hide=hide)
        if self._observer is not None:
            self._observer(operation, _outcome_class(answer), self._clock() - started)
        return answer


def shows(answer: Answer, identity: str) -> bool:
    """Return whether an answer shows the object that was requested by this id."""
    payload = _object_in(answer)
    return payload is not None and payload.id == identity


def is_missing(answer: Answer) -> bool:
    """Return whether the provider says that it does not know the requested object."""
    if not isinstance(answer, Reply) or answer.http_status != HTTPStatus.NOT_FOUND:
        return False
    return answer.payload is not None and answer.payload.error is not None


def _outcome_class(answer: Answer) -> str:
    match answer:
        case NotSent():
            return "not_sent"
        case NoReply():
            return "no_reply"
        case Reply(http_status=status):
            return f"{status // 100}xx"


def _differs(shown: str | None, requested: str) -> bool:
    """Return whether a reference is present and differs from the requested one."""
    return shown is not None and shown != requested


def _object_in(answer: Answer) -> Payload | None:
    """Return the payload of a 200 with a JSON object, None for any other answer."""
    if isinstance(answer, Reply) and answer.http_status == HTTPStatus.OK:
        return answer.payload
    return None
