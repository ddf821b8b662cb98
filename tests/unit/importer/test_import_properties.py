"""Properties of the importer: results read back as the same refunds, and a changed file order adds
nothing.
"""

from __future__ import annotations

import csv
import io
import random
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.factories import a_refund
from tests.support.files import Files, Taken
from worker.importer.cells import guarded, unguarded
from worker.model.request import REASONS

FORMULA_STARTS = "=+-@\t\r\n'\uff1d\uff0b\uff0d\uff20"

ids = st.from_regex(r"[A-Za-z0-9._:\-]{1,12}", fullmatch=True)
payments = st.from_regex(r"[A-Za-z0-9_\-]{1,12}", fullmatch=True)
amounts = st.one_of(
    st.just(""), st.integers(1, 10**12).map(str), st.sampled_from(["1e3", "-5", "=1", "+5"])
)
texts = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12),
    st.builds(
        str.__add__, st.sampled_from(FORMULA_STARTS), st.text("=+-@'\r\n\t,;\"ab ", max_size=6)
    ),
)
COLUMNS: dict[str, st.SearchStrategy[str]] = {
    "refund_id": ids,
    "pi": payments,
    "amount": amounts,
    "reason": st.sampled_from(["", *REASONS]),
    "metadata.-note": texts,
    "=extra": texts,
}
tables = st.lists(st.fixed_dictionaries(COLUMNS), min_size=1, max_size=12)

Cells = dict[str, str]


def as_csv(rows: list[Cells], delimiter: str = ",") -> str:
    """A file as the result writer would write it: guarded, so that it reads as exactly these
    cells.
    """
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=delimiter, lineterminator="\r\n")
    writer.writerow(guarded(name) for name in rows[0])
    writer.writerows([guarded(row[name]) for name in rows[0]] for row in rows)
    return out.getvalue()


def taken(text: str, name: str = "refunds.csv", **options: Any) -> Taken:
    with tempfile.TemporaryDirectory() as folder:
        return Files(Path(folder)).take(text, name, ignore_extra=True, **options)


def result_of(text: str, **options: Any) -> str:
    with tempfile.TemporaryDirectory() as folder:
        files = Files(Path(folder))
        records = [
            a_refund(refund_id=refund_id, error_code="-1", error_message='=HYPERLINK("x";"y")\n')
            for refund_id in files.take(text, ignore_extra=True, **options).ids[::2]
        ]
        return files.result(text, records, ignore_extra=True, **options)


@given(texts)
def test_a_guarded_cell_is_not_a_formula_and_reads_back(text: str) -> None:
    assert guarded(text)[:1] not in set("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")
    assert unguarded(guarded(text)) == text


@settings(max_examples=60, deadline=None)
@given(tables, st.sampled_from(",;\t"))
def test_a_result_file_reads_back_as_the_same_refunds_and_the_same_cells(
    rows: list[Cells], delimiter: str
) -> None:
    text = as_csv(rows, delimiter)
    before = taken(text, delimiter=delimiter)
    result = result_of(text, delimiter=delimiter)
    after = taken(result, delimiter=delimiter)
    assert after.requests == before.requests
    assert after.summary.errors_by_code == before.summary.errors_by_code
    written = list(csv.reader(io.StringIO(result, newline=""), delimiter=delimiter))
    assert [[unguarded(cell) for cell in row[: len(COLUMNS)]] for row in written[1:]] == [
        [row[name] for name in rows[0]] for row in rows
    ]
    assert not any(cell[:1] in set("=+-@\t\r\n") - {""} for row in written for cell in row if cell)


few = st.fixed_dictionaries(
    {
        "order": st.sampled_from(["1", "2", "3"]),
        "pi": st.sampled_from(["pi_1", "pi_2"]),
        "amount": st.sampled_from(["", "5", "700"]),
        "metadata.k": st.sampled_from(["", "x"]),
    }
)
ALL = ("order", "pi", "amount", "metadata.k")


def sent(found: Taken) -> Counter[tuple[str, str]]:
    return Counter((request.refund_id, request.fingerprint) for request in found.requests)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(few, min_size=1, max_size=15),
    st.lists(few, max_size=5),
    st.randoms(use_true_random=False),
)
def test_a_file_renamed_resorted_or_grown_gives_its_rows_the_same_ids(
    rows: list[Cells], more: list[Cells], chance: random.Random
) -> None:
    options: dict[str, Any] = {"id_from": ("order", "pi")}
    before = taken(as_csv(rows), **options)
    moved = chance.sample(rows, len(rows))
    columns = chance.sample(ALL, len(ALL))
    shuffled = [{name: row[name] for name in columns} for row in moved]
    assert sent(taken(as_csv(shuffled), "other.csv", **options)) == sent(before)
    # A grown file may have new conflicts; the refunds that it still gives keep their ids.
    every = [{**row, "n": str(n)} for n, row in enumerate(rows + more)]
    grown = taken(as_csv(chance.sample(every, len(every))), **options)
    contradicted = {error.value for error in grown.errors}
    kept = [request for request in before.requests if not contradicted]
    assert {request.refund_id for request in kept} <= set(grown.ids)


@settings(max_examples=60, deadline=None)
@given(st.lists(few, min_size=1, max_size=15))
def test_a_result_with_made_ids_and_new_rows_keeps_every_id(rows: list[Cells]) -> None:
    options: dict[str, Any] = {"id_from": ("order", "pi", "metadata.k")}
    before = taken(as_csv([{**row, "metadata.k": "x"} for row in rows]), **options)
    result = result_of(as_csv([{**row, "metadata.k": "x"} for row in rows]), **options)
    assert sent(taken(result, **options)) == sent(before)
    assert len(set(before.ids)) == len(before.ids)
    assert (
        before.summary.rows
        == before.summary.accepted + before.summary.refused + before.summary.duplicates
    )
