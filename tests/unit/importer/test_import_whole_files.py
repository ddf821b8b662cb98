"""Rows with one id: the same refund twice, one of several equal rows, or a conflict."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

import pytest

from tests.support.files import HEADER, Files
from worker.importer import ImportOptions, Summary, open_source, validate
from worker.importer.grouping import Buckets, repeated

ROW = "a,pi_1,500,usd,,1\n"


def test_an_id_twice_with_the_same_contents_is_one_refund(files: Files) -> None:
    text = HEADER + ROW + "b,pi_2,5,usd,,2\n" + ROW + "a,pi_1,0500,USD,,1\n"
    taken = files.take(text)
    assert (taken.ids, taken.errors) == (["a", "b"], [])
    assert files.duplicates(text) == [(4, 2), (5, 2)]
    summary = taken.summary
    assert (summary.rows, summary.accepted, summary.duplicates, summary.refused) == (4, 2, 2, 0)
    assert summary.first_duplicates == ((4, 2), (5, 2))
    assert summary.totals["usd"].amount == 505


def test_an_id_with_two_contents_is_refused_on_all_its_lines(files: Files) -> None:
    taken = files.take(HEADER + ROW + "b,pi_2,5,usd,,2\n" + ROW + "a,pi_1,501,usd,,1\n")
    assert taken.ids == ["b"]
    assert [(error.line, error.column, error.code, error.value) for error in taken.errors] == [
        (2, "refund_id", "duplicate_id", "'a'"),
        (4, "refund_id", "duplicate_id", "'a'"),
        (5, "refund_id", "duplicate_id", "'a'"),
    ]
    assert ["line 5" in taken.errors[0].rule, "line 2" in taken.errors[2].rule] == [True, True]
    assert taken.summary.errors_by_code == {"duplicate_id": 3}
    assert taken.summary.first_errors == tuple(taken.errors)
    assert taken.summary.totals["usd"].rows == 1


@pytest.mark.parametrize(
    "other",
    [
        "a,pi_2,500,usd,,1\n",
        "a,pi_1,,usd,,1\n",
        "a,pi_1,500,eur,,1\n",
        "a,pi_1,500,usd,duplicate,1\n",
        "a,pi_1,500,usd,,\n",
    ],
)
def test_contents_are_every_field_that_is_sent(other: str, files: Files) -> None:
    assert files.take(HEADER + ROW + other).codes == ["duplicate_id", "duplicate_id"]


def test_rows_equal_in_every_sent_field_are_numbered(files: Files) -> None:
    text = "order,pi,amount,note\n7,pi_1,500,x\n8,pi_1,500,x\n7,pi_1,500,y\n7,pi_1,500,x\n"
    taken = files.take(text, id_from=("order",), ignore_extra=True)
    first, other, second, third = taken.ids
    assert (second, third) == (f"{first}-2", f"{first}-3")
    assert other not in {first, second, third}
    assert taken.summary.accepted == 4


def test_rows_equal_only_in_the_id_columns_are_ambiguous(files: Files) -> None:
    text = "order,pi,amount\n7,pi_1,500\n8,pi_1,500\n7,pi_1,300\n"
    taken = files.take(text, id_from=("order", "pi"))
    assert [(error.line, error.column, error.code) for error in taken.errors] == [
        (2, "order, pi", "ambiguous_id"),
        (4, "order, pi", "ambiguous_id"),
    ]
    assert "line 4" in taken.errors[0].rule
    assert taken.errors[0].value == "'7', 'pi_1'"
    assert taken.errors[0].rule.endswith("such as --id-from order,pi,amount")
    assert len(taken.ids) == 1
    taken = files.take(text.replace("300", "500") + "9,pi_1,1\n", id_from=("order", "amount"))
    assert (len(taken.ids), taken.errors) == (4, [])
    (error, _) = files.take(
        "order,pi,amount\n7,pi_1,5\n7,pi_2,5\n", id_from=("order", "amount")
    ).errors
    assert error.rule.endswith("make the id from more columns")


def test_a_new_equal_row_gets_the_next_free_number(files: Files) -> None:
    (own,) = files.take("order,pi,id\n7,pi_1,\n", id_from=("order",)).ids
    text = f"order,pi,id\n7,pi_1,\n7,pi_1,{own}-2\n7,pi_1,{own}\n7,pi_1,{own}-2\n7,pi_1,\n"
    taken = files.take(text, id_from=("order",))
    assert taken.ids == [f"{own}-3", f"{own}-2", own, f"{own}-4"]
    assert taken.summary.first_duplicates == ((5, 3),)


def test_the_same_payment_and_amount_under_another_id_is_reported_and_accepted(
    files: Files,
) -> None:
    text = HEADER + ROW + "b,pi_1,500,,,9\n" + ROW + "c,pi_1,501,,,1\nd,pi_2,,,,\ne,pi_2,,,,\n"
    taken = files.take(text)
    assert taken.ids == ["a", "b", "c", "d", "e"]
    assert taken.summary.repeats == 2
    assert taken.summary.first_repeats == ((3, 2), (7, 6))


def test_a_summary_adds_up_by_currency_and_names_the_largest_amount(files: Files) -> None:
    text = HEADER + ROW + "b,pi_2,900,eur,,\nc,pi_3,70,,,\nd,pi_4,,eur,,\ne,pi_5,x,eur,,\n"
    summary = files.take(text).summary
    sums = {
        currency: (total.rows, total.amount, total.all_remaining)
        for currency, total in summary.totals.items()
    }
    assert sums == {"usd": (1, 500, 0), "eur": (2, 900, 1), None: (1, 70, 0)}
    assert (summary.largest_amount, summary.largest_line) == (900, 3)
    assert (summary.rows, summary.accepted, summary.refused, summary.duplicates) == (5, 4, 1, 0)


def test_a_summary_keeps_error_counts_and_the_first_twenty_errors(files: Files) -> None:
    rows = "".join(
        f"r-{number},pi_1,{'x' if number % 2 else '-1'},usd,,\n" for number in range(10_000)
    )
    summary = files.take(HEADER + rows).summary
    assert summary.errors_by_code == {"amount_negative": 5_000, "amount_format": 5_000}
    assert [error.line for error in summary.first_errors] == [*range(2, 22)]


def test_progress_is_reported_up_to_the_last_row(files: Files) -> None:
    rows = "".join(f"r-{number},pi_1,5,usd,,\n" for number in range(25_000))
    reported: list[int] = []
    with open_source(files.write(HEADER + rows), ImportOptions()) as source:
        validate(source, reported.append)
    assert reported == [10_000, 20_000, 25_000]


def test_records_on_disk_are_read_in_the_order_added() -> None:
    layout = ">16sI"
    with Buckets(layout, held_bytes=200) as buckets:
        for number in range(1_000):
            buckets.add((number % 700).to_bytes(2, "little") + bytes(14), number)
        found = {
            key: [number for other, number in bucket if other == key]
            for bucket in buckets
            for key in repeated(other for other, _ in bucket)
        }
    assert {tuple(numbers) for numbers in found.values()} == {
        (number, number + 700) for number in range(300)
    }


def lines(count: int) -> Iterator[str]:
    yield HEADER
    for number in range(count):
        yield f"r-{number},pi_{number},5,usd,,{number}\n"


def judged_peak(files: Files, count: int) -> tuple[int, Summary]:
    """The peak of the memory that validation allocates."""
    with open_source(files.write("".join(lines(count))), ImportOptions()) as source:
        tracemalloc.start()
        try:
            summary = validate(source).summary
            return tracemalloc.get_traced_memory()[1], summary
        finally:
            tracemalloc.stop()


def test_six_times_the_rows_need_hardly_more_memory(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.importer.validation._HELD_BYTES", 2**18)
    small, _ = judged_peak(files, 5_000)
    large, summary = judged_peak(files, 30_000)
    assert summary.accepted == 30_000
    # A row's verdict has four bytes; the rows themselves would need hundreds.
    assert large - small < 25_000 * 30
