"""The tries of one attempt: when the same bytes leave again, how often, and what ends it."""

from __future__ import annotations

from contextlib import AsyncExitStack
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from tests.factories import a_refund
from tests.unit.provider.byte_provider import (
    BODY,
    DONE,
    LEASE,
    ByteProvider,
    HandClock,
    Peer,
    answering,
    bound_socket,
    by_path,
    byte_provider,
    error,
    gateway_to,
    reply,
)
from worker.model.answers import Outcome, TryVerdict
from worker.model.refund import Refund

if TYPE_CHECKING:
    from tests.unit.provider.byte_provider import Script

TROUBLE = reply(500, error("boom", "api_error"))
FORBIDDEN = reply(403, error("not_allowed"))
UNKNOWN = reply(404, error("resource_missing"))
TRUST = {"idempotency": "trust"}


async def break_off(peer: Peer) -> None:
    await peer.read()
    peer.reset()


async def attempt(
    provider: ByteProvider,
    clock: HandClock,
    settings: dict[str, Any] | None = None,
    refund: Refund | None = None,
    **arguments: Any,
) -> Outcome:
    async with gateway_to(
        provider.url, settings, clock=clock, sleep=clock.sleep, jitter=lambda: 0.5
    ) as gateway:
        return await gateway.send(refund or a_refund(), BODY, **({"lease_left": LEASE} | arguments))


@pytest.mark.parametrize("script", [break_off, answering(TROUBLE)], ids=["reset", "500"])
async def test_in_verify_mode_what_may_have_happened_is_sent_once(script: Script) -> None:
    clock = HandClock()
    async with byte_provider(script) as provider:
        outcome = await attempt(provider, clock)
        assert (outcome.verdict, outcome.tries, provider.posts, clock.sleeps) == (
            TryVerdict.MAYBE,
            1,
            1,
            [],
        )


async def test_in_trust_mode_what_may_have_happened_is_sent_again_with_the_same_key_and_bytes() -> (
    None
):
    clock = HandClock()
    refund = a_refund()
    async with byte_provider(break_off, answering(TROUBLE, DONE)) as provider:
        outcome = await attempt(provider, clock, TRUST, refund)
        assert (outcome.verdict, outcome.tries, outcome.doubt) == (TryVerdict.DONE, 3, True)
        assert {request.body for request in provider.requests} == {BODY}
        assert {request.headers["idempotency-key"] for request in provider.requests} == {
            refund.idempotency_key
        }
        assert len(clock.sleeps) == 2


async def test_in_trust_mode_a_key_in_flight_is_waited_for_and_sent_again() -> None:
    clock = HandClock()
    async with byte_provider(
        answering(reply(409, error("in_flight", "api_error")), DONE)
    ) as provider:
        outcome = await attempt(provider, clock, TRUST)
        assert (outcome.verdict, provider.posts) == (TryVerdict.DONE, 2)


async def test_three_server_errors_to_the_same_key_end_the_attempt() -> None:
    async with byte_provider(answering(TROUBLE)) as provider:
        outcome = await attempt(provider, HandClock(), TRUST)
        assert (outcome.verdict, outcome.server_errors, provider.posts) == (TryVerdict.MAYBE, 3, 3)


async def test_server_errors_of_earlier_attempts_count() -> None:
    async with byte_provider(answering(TROUBLE)) as provider:
        await attempt(provider, HandClock(), TRUST, a_refund(server_errors=2))
        assert provider.posts == 1


async def test_four_tries_are_the_most() -> None:
    clock = HandClock()
    async with byte_provider(break_off) as provider:
        outcome = await attempt(provider, clock, TRUST)
        assert (outcome.verdict, outcome.tries, provider.posts) == (TryVerdict.MAYBE, 4, 4)
        # 0.5, 1 and 2 seconds at most, their upper half drawn: here at its middle.
        assert clock.sleeps == [0.375, 0.75, 1.5]


@pytest.mark.parametrize("mode", ["verify", "trust"])
async def test_what_was_never_sent_is_tried_four_times_in_either_mode(mode: str) -> None:
    clock = HandClock()
    with bound_socket() as closed:
        provider = ByteProvider(url=f"http://127.0.0.1:{closed.getsockname()[1]}")
        outcome = await attempt(provider, clock, {"idempotency": mode})
    assert (outcome.verdict, outcome.tries, outcome.doubt) == (TryVerdict.NOT_SENT, 4, False)
    assert clock.sleeps == [0.375, 0.75, 1.5]


@pytest.mark.parametrize("mode", ["verify", "trust"])
async def test_what_was_not_sent_is_sent_once_it_can_be(mode: str) -> None:
    bound = bound_socket()
    url = f"http://127.0.0.1:{bound.getsockname()[1]}"
    async with AsyncExitStack() as stack:
        opened: list[ByteProvider] = []

        async def open_the_door(_: float) -> None:
            opened.append(
                await stack.enter_async_context(byte_provider(answering(DONE), bound=bound))
            )

        gateway = await stack.enter_async_context(
            gateway_to(url, {"idempotency": mode}, sleep=open_the_door)
        )
        outcome = await gateway.send(a_refund(), BODY, lease_left=LEASE)
        assert (outcome.verdict, outcome.tries, outcome.doubt) == (TryVerdict.DONE, 2, False)
        assert [provider.posts for provider in opened] == [1]


@pytest.mark.parametrize(
    ("final", "seen"),
    [
        (reply(429, error("rate")), TryVerdict.MAYBE),
        (reply(400, error("amount_too_large")), TryVerdict.MAYBE),
    ],
)
async def test_an_answer_after_a_doubt_ends_the_tries_and_not_the_doubt(
    final: bytes, seen: TryVerdict
) -> None:
    async with byte_provider(break_off, answering(final)) as provider:
        outcome = await attempt(provider, HandClock(), TRUST)
        assert (outcome.verdict, outcome.doubt, outcome.tries, provider.posts) == (seen, True, 2, 2)


async def test_a_rate_limit_ends_the_attempt_and_hands_the_wait_on() -> None:
    async with byte_provider(answering(reply(429, error("rate"), Retry_After="7"))) as provider:
        outcome = await attempt(provider, HandClock(), TRUST)
        assert (outcome.verdict, outcome.retry_after, provider.posts) == (
            TryVerdict.NOT_DONE,
            timedelta(seconds=7),
            1,
        )


async def test_a_wait_that_the_provider_asks_for_is_kept_between_tries() -> None:
    clock = HandClock()
    async with byte_provider(
        answering(reply(503, error("away"), Retry_After="3"), DONE)
    ) as provider:
        outcome = await attempt(provider, clock, TRUST)
        assert (outcome.verdict, clock.sleeps) == (TryVerdict.DONE, [3.0])


async def test_a_wait_that_outlasts_the_lease_ends_the_attempt() -> None:
    clock = HandClock()
    async with byte_provider(
        answering(reply(503, error("away"), Retry_After="600"), DONE)
    ) as provider:
        outcome = await attempt(provider, clock, TRUST)
        assert (outcome.verdict, provider.posts, clock.sleeps) == (TryVerdict.MAYBE, 1, [])
        assert outcome.retry_after == timedelta(seconds=600)


@pytest.mark.parametrize(("left", "posts"), [(7.99, 0), (8.0, 1), (8.37, 1), (8.38, 2), (9.13, 3)])
async def test_a_try_starts_only_while_the_lease_has_the_calls_limit_and_three_seconds_left(
    left: float, posts: int
) -> None:
    clock = HandClock()
    async with byte_provider(break_off) as provider:
        outcome = await attempt(provider, clock, TRUST, lease_left=timedelta(seconds=left))
        assert provider.posts == posts
        assert outcome.verdict is (TryVerdict.MAYBE if posts else TryVerdict.NOT_SENT)


async def test_time_that_the_first_try_took_is_gone_from_the_lease() -> None:
    clock = HandClock()

    async def take_long(peer: Peer) -> None:
        await peer.read()
        clock.now += 25
        peer.reset()

    async with byte_provider(take_long) as provider:
        await attempt(provider, clock, TRUST)
        assert provider.posts == 1


async def test_a_sleep_that_took_longer_than_asked_for_ends_the_attempt() -> None:
    clock = HandClock()

    async def oversleep(_: float) -> None:
        clock.now += 60

    async with (
        byte_provider(break_off) as provider,
        gateway_to(provider.url, TRUST, clock=clock, sleep=oversleep) as gateway,
    ):
        await gateway.send(a_refund(), BODY, lease_left=LEASE)
        assert provider.posts == 1


@pytest.mark.parametrize(("window", "posts"), [(0, 1), (5.37, 1), (5.38, 2), (3600, 4)])
async def test_in_trust_mode_a_further_try_must_end_inside_the_keys_window(
    window: float, posts: int
) -> None:
    async with byte_provider(break_off) as provider:
        await attempt(provider, HandClock(), TRUST, window_left=timedelta(seconds=window))
        assert provider.posts == posts


@pytest.mark.parametrize(("attempts", "posts"), [(1, 4), (2, 1)])
async def test_without_a_stated_window_only_a_first_attempt_is_repeated(
    attempts: int, posts: int
) -> None:
    async with byte_provider(break_off) as provider:
        await attempt(provider, HandClock(), TRUST, a_refund(attempts=attempts))
        assert provider.posts == posts


async def test_permission_is_asked_before_every_further_try_and_its_refusal_ends_the_attempt() -> (
    None
):
    clock = HandClock()
    asked: list[int] = []

    async with byte_provider(break_off) as provider:

        async def may_go_on() -> bool:
            asked.append(provider.posts)
            return len(asked) < 2

        outcome = await attempt(provider, clock, TRUST, may_go_on=may_go_on)
        assert (asked, provider.posts, outcome.tries, outcome.verdict) == (
            [1, 2],
            2,
            2,
            TryVerdict.MAYBE,
        )


async def test_a_forbidden_refund_under_an_accepted_key_is_this_refunds_own_refusal() -> None:
    async with byte_provider(by_path(refunds=FORBIDDEN, _=UNKNOWN)) as provider:
        outcome = await attempt(provider, HandClock())
        assert (outcome.verdict, outcome.code, outcome.credentials) == (
            TryVerdict.REFUSED,
            "not_allowed",
            False,
        )
        assert [request.line.split(" ")[0] for request in provider.requests] == ["POST", "GET"]


@pytest.mark.parametrize("status", [401, 403])
async def test_a_forbidden_refund_under_a_refused_key_is_everyones_trouble(status: int) -> None:
    async with byte_provider(by_path(refunds=FORBIDDEN, _=reply(status, error("key")))) as provider:
        outcome = await attempt(provider, HandClock())
        assert (outcome.verdict, outcome.code, outcome.credentials) == (
            TryVerdict.NOT_DONE,
            "credentials_refused",
            True,
        )


@pytest.mark.parametrize(
    "probe",
    [
        reply(500, error("boom")),
        reply(429, error("rate")),
        reply(404, body=b"<html>"),
        reply(302, {}),
    ],
)
async def test_a_forbidden_refund_fails_nothing_while_the_key_cannot_be_judged(
    probe: bytes,
) -> None:
    async with byte_provider(by_path(refunds=FORBIDDEN, _=probe)) as provider:
        outcome = await attempt(provider, HandClock())
        assert (outcome.verdict, outcome.credentials, provider.posts) == (
            TryVerdict.NOT_DONE,
            False,
            1,
        )


async def test_no_probe_is_sent_once_the_lease_is_nearly_over() -> None:
    clock = HandClock()

    async def take_long(peer: Peer) -> None:
        await peer.read()
        clock.now += 28
        await peer.send(FORBIDDEN)

    async with byte_provider(take_long) as provider:
        outcome = await attempt(provider, clock)
        assert (outcome.verdict, len(provider.requests)) == (TryVerdict.NOT_DONE, 1)


async def test_every_call_is_told_to_the_observer() -> None:
    told: list[tuple[str, str]] = []
    clock = HandClock()

    def observe(operation: str, outcome: str, seconds: float) -> None:
        assert seconds == 0
        told.append((operation, outcome))

    async with (
        byte_provider(break_off, by_path(refunds=FORBIDDEN, _=UNKNOWN)) as provider,
        gateway_to(
            provider.url, TRUST, clock=clock, sleep=clock.sleep, observer=observe
        ) as gateway,
    ):
        await gateway.send(a_refund(), BODY, lease_left=LEASE)
        await gateway.get_refund("re_1", about=None)
    assert told == [
        ("create_refund", "no_reply"),
        ("create_refund", "4xx"),
        ("probe_key", "4xx"),
        ("get_refund", "4xx"),
    ]
