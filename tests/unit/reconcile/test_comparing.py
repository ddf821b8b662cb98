"""What is said of each refund of both sides, and what the sides add up to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest

from worker.model.hints import Hint
from worker.model.times import to_ms
from worker.reconcile import comparing
from worker.reconcile.books import Books, Item, Ours, Row, books
from worker.reconcile.comparing import Balance, ClassSum, Outcome
from worker.reconcile.export import Theirs
from worker.reconcile.window import Window, zone_of

JANUARY = Window(start=datetime(2026, 1, 1, tzinfo=UTC), end=datetime(2026, 2, 1, tzinfo=UTC))
START, END = to_ms(JANUARY.start), to_ms(JANUARY.end)
DAY_MS = 86_400_000
INSIDE, OUTSIDE = START + 10 * DAY_MS, START - 10 * DAY_MS


def ours(name: str = "a", **changes: Any) -> Ours:
    usual = Ours(name, "pi_a", 500, "usd", "succeeded", "re_a", INSIDE, True)
    return usual._replace(**changes)


def without_id(name: str = "a", **changes: Any) -> Ours:
    return ours(name, **({"provider_id": None} | changes))


def row(provider_id: str = "re_a", line: int = 1, *, inside: bool = True, **changes: Any) -> Row:
    usual = Theirs(line, provider_id, "pi_a", 500, "usd", "succeeded", INSIDE, None)
    return Row(usual._replace(created=INSIDE if inside else OUTSIDE)._replace(**changes), inside)


def said(items: Iterable[Item]) -> list[tuple[str, str, int | None, str | None]]:
    """The class and the reason of each item, its line, and our refund."""
    return [
        (
            item.kind,
            item.reason,
            None if item.row is None else item.row.theirs.line,
            None if item.ours is None else item.ours.refund_id,
        )
        for item in items
    ]


def compared(
    refunds: Sequence[Ours], rows: Sequence[Row] = (), pairs: Sequence[tuple[str, int]] = ()
) -> tuple[Outcome, list[Item]]:
    """The outcome for January, and its differences."""
    with books() as sides:
        sides.add_ours(refunds)
        for each in rows:
            sides.add_theirs(each.theirs)
        sides.set_window(START, END)
        sides.pair(pairs)
        outcome = comparing.compare(sides, JANUARY)
        assert all(balance.holds for balance in outcome.balances)
        return outcome, list(sides.items())


# A pair


@pytest.mark.parametrize(
    ("mine", "theirs", "kind", "reason"),
    [
        ({}, {}, "matched", ""),
        ({"status": "failed"}, {}, "status_differs", "ours is failed, theirs succeeded"),
        ({"amount": 400}, {}, "amount_differs", "ours is 400, theirs 500"),
        ({"amount": None}, {}, "amount_differs", "ours is None, theirs 500"),
        ({"amount": None, "status": "failed"}, {"status": "failed"}, "matched", ""),
        (
            {"amount": 400, "status": "failed"},
            {"status": "failed"},
            "amount_differs",
            "ours is 400, theirs 500",
        ),
        ({"currency": "eur"}, {}, "currency_differs", "ours is eur, theirs usd"),
        ({"currency": None}, {}, "currency_differs", "ours is None, theirs usd"),
        ({"currency": None, "status": "failed"}, {"status": "failed"}, "matched", ""),
        (
            {"currency": "eur", "status": "failed"},
            {"status": "failed"},
            "currency_differs",
            "ours is eur, theirs usd",
        ),
        (
            {"status": "failed", "amount": 1, "currency": "eur"},
            {},
            "status_differs",
            "ours is failed, theirs succeeded; ours is 1, theirs 500; ours is eur, theirs usd",
        ),
    ],
)
def test_class_is_the_first_field_that_differs_and_the_reason_names_all(
    mine: dict[str, Any], theirs: dict[str, Any], kind: str, reason: str
) -> None:
    assert comparing.difference(ours(**mine), row(**theirs)) == (kind, reason)


@pytest.mark.parametrize(
    ("mine", "theirs", "kind", "reason"),
    [
        (True, True, "matched", ""),
        (
            True,
            False,
            "other_window",
            "ours settled inside the window, theirs was not made inside it",
        ),
        (
            False,
            True,
            "other_window",
            "ours settled outside the window, theirs was not made outside it",
        ),
    ],
)
def test_pair_across_the_edge_says_on_which_side_each_is(
    *,
    mine: bool,
    theirs: bool,
    kind: str,
    reason: str,
) -> None:
    items = comparing.classify(ours(inside=mine), [row(inside=theirs)])
    assert said(items) == [(kind, reason, 1, "a")]


def test_pair_of_another_window_is_not_mentioned_even_if_it_differs() -> None:
    assert said(comparing.classify(ours(inside=False), [row(inside=False, amount=1)])) == []


@pytest.mark.parametrize(
    ("mine", "rows", "names"),
    [
        (ours(), [row("re_a"), row("re_b", 2, status="pending")], "re_a and re_b"),
        (ours(), [row("re_b"), row("re_a", 2)], "re_b and re_a"),
        (ours(), [row("re_b", status="pending")], "re_a and re_b"),
        (
            ours(),
            [row("re_b"), row("re_c", 2), row("re_d", 3, inside=False)],
            "re_a and re_b and re_c and re_d",
        ),
        (without_id(), [row("re_b"), row("re_c", 2)], "re_b and re_c"),
        (without_id(status="failed"), [row("re_b"), row("re_c", 2)], "re_b and re_c"),
        (
            ours(status="pending"),
            [row("re_a", status="pending"), row("re_b", 2, status="pending")],
            "re_a and re_b",
        ),
    ],
)
def test_two_that_stand_are_twice_and_ours_counts_once(
    mine: Ours, rows: list[Row], names: str
) -> None:
    items = list(comparing.classify(mine, rows))
    reason = f"the provider has {names} for one refund: money may have moved twice"
    assert said(items) == [("twice", reason, each.theirs.line, "a") for each in rows]
    assert [item.ours and item.ours.inside for item in items] == [True] + [False] * (len(rows) - 1)


ATTEMPT = "an attempt that moved no money"
ELSEWHERE = "ours settled inside the window, theirs was not made inside it"


@pytest.mark.parametrize(
    ("mine", "rows", "main"),
    [
        # The one that stands.
        (ours(), [row("re_b", status="failed"), row("re_a", 2)], 2),
        (without_id(status="pending"), [row("re_b", status="pending")], 1),
        (
            ours(provider_id="re_b", status="pending"),
            [row("re_a", status="pending"), row("re_b", 2, status="failed")],
            1,
        ),
        # None stands: ours by its id, else the last.
        (
            ours(status="failed"),
            [
                row("re_b", status="failed"),
                row("re_a", 2, status="failed"),
                row("re_c", 3, status="failed"),
            ],
            2,
        ),
        (
            ours(status="failed", provider_id="re_z"),
            [
                row("re_b", status="failed"),
                row("re_a", 2, status="failed"),
                row("re_c", 3, status="failed"),
            ],
            3,
        ),
    ],
)
def test_other_attempts_are_matched_beside_the_one_that_ours_is(
    mine: Ours, rows: list[Row], main: int
) -> None:
    rest = [each.theirs.line for each in rows if each.theirs.line != main]
    assert said(comparing.classify(mine, rows)) == [
        ("matched", "", main, "a"),
        *(("matched", ATTEMPT, line, None) for line in rest),
    ]


def test_attempt_of_another_window_is_not_mentioned() -> None:
    rows = [row("re_b", status="failed", inside=False), row(line=2, inside=False)]
    assert said(comparing.classify(ours(inside=False), rows)) == []
    assert said(comparing.classify(ours(), rows)) == [
        ("other_window", ELSEWHERE, 2, "a"),
    ]


def test_succeeded_refund_whose_only_row_failed_differs_in_status() -> None:
    rows = [row("re_b", status="canceled"), row("re_a", 2, status="failed")]
    assert said(comparing.classify(ours(), rows)) == [
        ("status_differs", "ours is succeeded, theirs failed", 2, "a"),
        ("matched", ATTEMPT, 1, None),
    ]


def test_row_with_our_id_identifies_ours_without_one() -> None:
    reason = "ours has no provider id, and theirs names it"
    assert said(comparing.classify(without_id(), [row()])) == [("identified", reason, 1, "a")]


# Ours without an id

FITS = "ours has no provider id, and theirs alone fits by payment and amount"


@pytest.mark.parametrize(
    ("mine", "theirs", "expected"),
    [
        ({}, row(), [("identified", FITS)]),
        ({"inside": False}, row(), [("identified", FITS)]),
        ({}, row(inside=False), [("identified", FITS)]),
        ({"inside": False}, row(inside=False), []),
        ({}, row(status="pending"), [("status_differs", "ours is succeeded, theirs pending")]),
        ({"currency": None}, row(), [("currency_differs", "ours is None, theirs usd")]),
    ],
)
def test_row_that_alone_fits_is_ours(
    mine: dict[str, Any], theirs: Row, expected: list[tuple[str, str]]
) -> None:
    _, items = compared([without_id(**mine)], [theirs])
    assert said(items) == [(kind, reason, 1, "a") for kind, reason in expected]


@pytest.mark.parametrize(
    ("mine", "theirs", "mentioned"),
    [
        ([False], [False, False], False),
        ([False], [True, False], True),
        ([False], [True, True], True),
        ([True], [False, False], True),
        ([True, False], [False], True),
        ([False, False], [False], False),
    ],
)
def test_several_that_fit_are_all_ambiguous_if_any_is_of_the_window(
    mine: list[bool],
    theirs: list[bool],
    *,
    mentioned: bool,
) -> None:
    refunds = [without_id(f"a{i}", inside=inside) for i, inside in enumerate(mine)]
    rows = [row(f"re_{line}", line, inside=inside) for line, inside in enumerate(theirs, 1)]
    _, items = compared(refunds, rows)
    reason = f"{len(mine)} of ours and {len(theirs)} of theirs fit by payment and amount"
    expected = [
        *(("ambiguous", reason, line, None) for line in range(1, len(rows) + 1)),
        *(("ambiguous", reason, None, refund.refund_id) for refund in refunds),
    ]
    assert said(items) == (expected if mentioned else [])


def test_row_made_after_ours_had_succeeded_is_another_refund() -> None:
    before = without_id("before", at=START - 20 * DAY_MS, inside=False)
    _, items = compared([before], [row()])
    reason = "not a refund of these records"
    assert said(items) == [("missing_here", reason, 1, None)]
    _, items = compared([before, without_id()], [row()])
    assert said(items) == [("identified", FITS, 1, "a")]
    later = row("re_later", 2, created=INSIDE + 2 * DAY_MS)
    _, items = compared([without_id()], [row(), later])
    assert said(items) == [("missing_here", reason, 2, None), ("identified", FITS, 1, "a")]


@pytest.mark.parametrize("created", [INSIDE + DAY_MS, None])
def test_row_whose_time_is_unsure_may_be_ours(created: int | None) -> None:
    _, items = compared([without_id()], [row(created=created)])
    assert said(items) == [("identified", FITS, 1, "a")]


@pytest.mark.parametrize("currencies", [(None, "usd"), ("usd", None)])
def test_ours_of_an_unknown_currency_is_not_chosen_before_one_of_theirs(
    currencies: tuple[str | None, ...],
) -> None:
    refunds = [without_id(f"a{i}", currency=each) for i, each in enumerate(currencies)]
    outcome, _ = compared(refunds, [row()])
    assert outcome.counts() == {"ambiguous": 3}


@pytest.mark.parametrize(
    "changes",
    [
        {"payment": "pi_b"},
        {"amount": 499},
        {"currency": "eur"},
        {"status": "failed"},
        {"named": "b"},
    ],
)
def test_row_that_does_not_fit_is_not_ours(changes: dict[str, Any]) -> None:
    outcome, _ = compared([without_id()], [row(**changes)])
    assert outcome.counts() == {"missing_here": 1, "missing_there": 1}


# One side only


def test_row_that_is_none_of_ours_is_missing_here_and_says_what_it_names() -> None:
    _, items = compared([], [row(), row("re_b", 2, named="b"), row("re_c", 3, inside=False)])
    carries = "carries the id b, which these records do not have on its payment"
    assert said(items) == [
        ("missing_here", "not a refund of these records", 1, None),
        ("missing_here", carries, 2, None),
    ]


@pytest.mark.parametrize(
    ("at", "kind", "reason"),
    [
        (START, "other_window", "not in the file, and near the window's edge"),
        (START + DAY_MS - 1, "other_window", "not in the file, and near the window's edge"),
        (START + DAY_MS, "missing_there", "not in the file"),
        (END - DAY_MS - 1, "missing_there", "not in the file"),
        (END - DAY_MS, "other_window", "not in the file, and near the window's edge"),
        (END - 1, "other_window", "not in the file, and near the window's edge"),
    ],
)
def test_ours_within_a_day_of_the_edge_may_be_in_the_neighbouring_file(
    at: int, kind: str, reason: str
) -> None:
    _, items = compared([ours(at=at)])
    assert said(items) == [(kind, reason, None, "a")]


def test_ours_of_another_window_and_ours_that_did_not_succeed_are_not_missing() -> None:
    outcome, _ = compared([ours(inside=False), ours("b", status="failed")])
    assert outcome == Outcome()


# Sums


def test_each_side_counts_in_its_own_currency() -> None:
    outcome = Outcome()
    outcome.add(Item("currency_differs", "", row(amount=400), ours(currency="eur")))
    outcome.add(Item("missing_there", "", None, ours(currency=None)))
    outcome.add(Item("missing_there", "", None, ours(amount=None)))
    outcome.add(Item("missing_here", "", row(inside=False), None))
    assert outcome == Outcome(
        sums={
            ("currency_differs", "usd"): ClassSum(refunds=1, theirs=400),
            ("currency_differs", "eur"): ClassSum(ours=500),
            ("missing_there", ""): ClassSum(refunds=1, ours=500),
            ("missing_there", "usd"): ClassSum(refunds=1),
            ("missing_here", "usd"): ClassSum(refunds=1),
        },
        balances=[],
    )


def test_balance_explains_each_currency_by_class() -> None:
    outcome, _ = compared(
        [ours(), ours("b", provider_id="re_b"), ours("c", currency=None)],
        [
            row(amount=450),
            row("re_b", 2, currency="eur"),
            row("re_d", 3, currency="gbp", status="failed"),
        ],
        [("a", 1), ("b", 2)],
    )
    assert outcome.balances == [
        Balance(currency="", theirs=0, ours=500, explained={"missing_there": -500}),
        Balance(currency="eur", theirs=500, ours=0, explained={"currency_differs": 500}),
        Balance(currency="gbp", theirs=0, ours=0, explained={}),
        Balance(
            currency="usd",
            theirs=450,
            ours=1000,
            explained={"amount_differs": -50, "currency_differs": -500},
        ),
    ]


def test_sum_of_a_currency_that_no_class_has_does_not_hold(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sums = {"theirs": {"usd": 1}, "ours": {"eur": 2}}
    monkeypatch.setattr(Books, "sums", lambda _, table: sums[table])
    with books() as sides:
        outcome = comparing.compare(sides, JANUARY)
    assert outcome.balances == [
        Balance(currency="eur", theirs=0, ours=2, explained={}),
        Balance(currency="usd", theirs=1, ours=0, explained={}),
    ]
    assert not any(balance.holds for balance in outcome.balances)


# Looking again

PAIR = Hint(provider_refund_id="re_b", refund_id="a", payment_intent="pi_a")


@pytest.mark.parametrize(
    ("item", "hint"),
    [
        (Item("status_differs", "", row("re_b"), ours()), PAIR),
        (Item("amount_differs", "", row("re_b"), ours()), PAIR),
        (Item("currency_differs", "", row("re_b"), ours()), PAIR),
        (Item("identified", "", row("re_b"), without_id()), PAIR),
        (Item("identified", "", row("re/b"), without_id()), None),
        (Item("twice", "", row("re_b"), ours()), None),
        (Item("other_window", "", row("re_b"), ours()), None),
        (Item("other_window", "", None, ours()), None),
        (Item("ambiguous", "", row(), None), None),
        (Item("ambiguous", "", None, ours()), None),
        (
            Item("missing_there", "", None, ours()),
            Hint(provider_refund_id="re_a", refund_id="a", payment_intent="pi_a"),
        ),
        (Item("missing_there", "", None, without_id()), None),
        (
            Item("missing_here", "", row(), None),
            Hint(provider_refund_id="re_a", payment_intent="pi_a"),
        ),
        (Item("missing_here", "", row("re/a"), None), Hint(payment_intent="pi_a")),
        (Item("missing_here", "", row(payment=None), None), None),
        (Item("missing_here", "", row(named="b"), None), None),
    ],
)
def test_look_reads_only_what_the_providers_answer_can_decide(
    item: Item, hint: Hint | None
) -> None:
    assert comparing.hint_of(item) == hint


# The window of a file


@pytest.mark.parametrize(
    ("zone", "first", "last", "start", "end"),
    [
        (
            "UTC",
            "2026-01-05T13:14:15.678Z",
            "2026-01-06T13:14:15.678Z",
            "2026-01-05T00:00:00Z",
            "2026-01-07T00:00:00Z",
        ),
        (
            "UTC",
            "2026-01-05T00:00:00Z",
            "2026-01-05T00:00:00Z",
            "2026-01-05T00:00:00Z",
            "2026-01-06T00:00:00Z",
        ),
        # A day of 23 hours, and one of 25.
        (
            "Europe/Berlin",
            "2026-03-28T23:30:00Z",
            "2026-03-29T20:00:00Z",
            "2026-03-28T23:00:00Z",
            "2026-03-29T22:00:00Z",
        ),
        (
            "Europe/Berlin",
            "2026-10-25T22:30:00Z",
            "2026-10-25T22:30:00Z",
            "2026-10-24T22:00:00Z",
            "2026-10-25T23:00:00Z",
        ),
    ],
)
def test_window_of_a_file_is_the_whole_days_of_its_zone(
    zone: str, first: str, last: str, start: str, end: str
) -> None:
    begin, finish = (to_ms(datetime.fromisoformat(text)) for text in (first, last))
    window = comparing.day_window(begin, finish, zone_of(zone))
    expected = Window(start=datetime.fromisoformat(start), end=datetime.fromisoformat(end))
    assert window == expected
    assert window.end.tzinfo is window.start.tzinfo is UTC


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        (datetime(2026, 1, 3, tzinfo=UTC), False),
        (datetime(2026, 1, 3, 0, 0, 0, 1000, tzinfo=UTC), True),
    ],
)
def test_nothing_can_be_missing_in_a_window_of_two_days(end: datetime, *, expected: bool) -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    assert comparing.can_miss(Window(start=start, end=end)) is expected
