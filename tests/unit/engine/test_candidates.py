"""Reads of what webhooks named: what they report, what need not be read again, and the doubt."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from tests.factories import MINUTE, PAYMENT, SECOND, refund_payload
from tests.unit.engine.rereads import NAMED, OWN, Rereads, posts, settle
from tests.unit.engine.shop import GONE, ID, PAID, PROBE, error, in_doubt, says
from worker.model.answers import ReadbackVerdict
from worker.rules.rechecks import WAITS

UNNAMED = refund_payload(id="re_9", metadata={})


async def tries(rereads: Rereads) -> str | None:
    """How many rechecks in a row were not answered, as it is stored."""
    stored: Any = await rereads.shop.store.redis.hget("refunds:recheck-tries", ID)
    return None if stored is None else str(stored)


async def hinted(rereads: Rereads) -> str | None:
    return (await rereads.shop.stored()).hinted


async def to_the_last_wait(rereads: Rereads) -> None:
    """Read back so often that the next one is the last."""
    for wait in WAITS:
        read_back = await rereads.read_back()
        assert read_back is not None
        assert read_back.retry_after == wait
        rereads.shop.pass_time(wait)


# What a read reports


async def test_candidate_that_is_not_known_is_an_answer_and_no_trouble(rereads: Rereads) -> None:
    await rereads.shop.accept()
    await rereads.named(GONE)
    await rereads.run()
    assert (rereads.answers, rereads.trouble, rereads.counts) == (1, [], ["again"])


async def test_candidate_that_cannot_be_read_is_trouble_and_no_answer(rereads: Rereads) -> None:
    await rereads.shop.accept()
    await rereads.named(error(503, "away"))
    await rereads.run()
    assert (rereads.answers, rereads.codes, rereads.counts) == (0, ["away"], ["again"])


@pytest.mark.parametrize(("probe", "of_the_key"), [(404, False), (401, True)])
async def test_403_of_a_candidate_is_told_as_the_probe_of_the_key_shows_it(
    rereads: Rereads, probe: int, *, of_the_key: bool
) -> None:
    await in_doubt(rereads.shop)
    await rereads.named(error(403, "forbidden"))
    rereads.shop.provider.will(PROBE, error(probe))
    read_back = await rereads.read_back()
    assert read_back is not None
    assert read_back.credentials is of_the_key
    assert [outcome.credentials for outcome in rereads.trouble] == [of_the_key]


async def test_candidate_that_is_shown_raises_no_question_about_the_payment(
    rereads: Rereads,
) -> None:
    await rereads.shop.accept()
    await rereads.shop.service.account.shown(PAYMENT)
    await rereads.named(says(200, UNNAMED))
    assert await rereads.run() is None
    assert rereads.shop.provider.asked == [NAMED]


async def test_candidate_that_is_missing_with_its_payment_is_told_as_a_matter_of_the_key(
    rereads: Rereads,
) -> None:
    await in_doubt(rereads.shop)
    await rereads.shop.service.account.shown(PAYMENT)
    rereads.shop.provider.will(PAID, GONE)
    await rereads.named(GONE)
    read_back = await rereads.read_back()
    assert read_back is not None
    assert (read_back.reason, read_back.credentials) == (
        "re_9, which a webhook named, was not shown: account_lost",
        True,
    )


# What need not be read again


async def test_candidate_of_another_refund_is_never_shown_as_one_that_may_be_ours(
    rereads: Rereads,
) -> None:
    await rereads.shop.accept()
    other = refund_payload(id="re_9", metadata={"refund_id": "other"})
    await rereads.named(says(200, other))
    await rereads.run()
    refund = await rereads.shop.stored()
    assert (refund.possible_refund_id, refund.hinted) == (None, None)


async def test_candidate_that_stays_unknown_is_dropped_and_the_refund_is_due_at_once(
    rereads: Rereads,
) -> None:
    await rereads.shop.accept()
    await rereads.named(GONE)
    for wait in WAITS:
        await rereads.run()
        assert await hinted(rereads) == "re_9"
        rereads.shop.pass_time(wait)
    assert await rereads.run() is None
    refund = await rereads.shop.stored()
    assert (refund.hinted, await tries(rereads)) == (None, None)
    assert refund.next_check_at is not None
    assert refund.next_check_at <= rereads.shop.now
    assert rereads.counts == ["given_up"]


async def test_candidate_of_a_settled_refund_that_stays_unknown_is_not_read_again(
    rereads: Rereads,
) -> None:
    await settle(rereads.shop)
    rereads.shop.provider.will(OWN, says())
    await rereads.named(GONE)
    for wait in WAITS:
        await rereads.run()
        rereads.shop.pass_time(wait)
    await rereads.run()
    assert (await hinted(rereads), await tries(rereads)) == (None, None)
    assert await rereads.shop.store.redis.zcard("refunds:rechecks") == 0


# A refund in doubt


async def test_candidate_that_ends_a_doubt_is_kept_until_that_is_saved(rereads: Rereads) -> None:
    await in_doubt(rereads.shop)
    await rereads.named(says(200, refund_payload(id="re_9")))
    read_back = await rereads.read_back()
    assert read_back is not None
    assert (read_back.verdict, read_back.source) == (ReadbackVerdict.FOUND, "lookup")
    assert await hinted(rereads) == "re_9"


async def test_candidate_that_is_not_ours_ends_no_doubt_and_is_not_read_again(
    rereads: Rereads,
) -> None:
    await in_doubt(rereads.shop)
    await rereads.named(says(200, UNNAMED))
    assert await rereads.read_back() is None
    refund = await rereads.shop.stored()
    assert (refund.hinted, refund.possible_refund_id) == (None, "re_9")


@pytest.mark.parametrize(
    ("retry_after", "wait"), [(None, MINUTE), ("30", MINUTE), ("120", 2 * MINUTE)]
)
async def test_doubt_waits_as_long_as_the_recheck_or_longer_if_the_provider_asks_for_it(
    rereads: Rereads, retry_after: str | None, wait: timedelta
) -> None:
    await in_doubt(rereads.shop)
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    await rereads.named(error(503, "away", **headers))
    read_back = await rereads.read_back()
    assert read_back is not None
    assert (read_back.verdict, read_back.retry_after) == (ReadbackVerdict.UNREADABLE, wait)
    assert (rereads.codes, await hinted(rereads)) == (["away"], "re_9")


async def test_doubt_waits_for_a_candidate_that_is_not_shown_and_is_then_read_back_as_usual(
    rereads: Rereads,
) -> None:
    await in_doubt(rereads.shop)
    await rereads.named(GONE)
    await to_the_last_wait(rereads)
    assert await rereads.read_back() is None
    assert (await hinted(rereads), rereads.trouble) == (None, [])


async def test_doubt_is_not_read_back_as_usual_while_a_candidate_cannot_be_read(
    rereads: Rereads,
) -> None:
    await in_doubt(rereads.shop)
    sent = posts(rereads.shop)
    await rereads.named(GONE)
    await rereads.named(error(503, "away", **{"Retry-After": "5"}), "re_8")
    await to_the_last_wait(rereads)
    read_back = await rereads.read_back()
    assert read_back is not None
    assert (read_back.verdict, read_back.retry_after) == (
        ReadbackVerdict.UNREADABLE,
        timedelta(0),
    )
    # Only the one that was not shown is dropped.
    assert await hinted(rereads) == "re_8"
    assert posts(rereads.shop) == sent


async def test_last_wait_of_a_doubt_is_what_the_provider_asks_for(rereads: Rereads) -> None:
    await in_doubt(rereads.shop)
    await rereads.named(error(503, "away", **{"Retry-After": "5"}))
    await to_the_last_wait(rereads)
    read_back = await rereads.read_back()
    assert read_back is not None
    assert (read_back.verdict, read_back.retry_after) == (ReadbackVerdict.UNREADABLE, 5 * SECOND)
    assert await hinted(rereads) == "re_9"


async def test_doubt_whose_candidates_were_all_read_counts_no_recheck_in_vain(
    rereads: Rereads,
) -> None:
    await in_doubt(rereads.shop)
    await rereads.named(says(200, refund_payload(id="re_9", metadata={"refund_id": "other"})))
    assert await rereads.read_back() is None
    assert (await hinted(rereads), await tries(rereads)) == (None, None)
