"""The same refunds from every format, and the detected format."""

from __future__ import annotations

import io
import json
import sys
from datetime import date
from pathlib import Path

import pytest

from tests.support.files import Files, packed, workbook
from worker.errors import InputError
from worker.importer import ImportOptions, accepted, describe, open_source, read_rows, validate
from worker.model.request import RefundRequest

ROWS = [
    ["refund_id", "payment_intent", "amount", "reason", "metadata.order"],
    ["a-1", "pi_1", "500", "duplicate", "1001"],
    ["a-2", "pi_2", "", "", "Größe, „XL“"],
]
EXPECTED = [
    RefundRequest(
        refund_id="a-1",
        payment_intent="pi_1",
        amount=500,
        reason="duplicate",
        metadata={"order": "1001"},
    ),
    RefundRequest(refund_id="a-2", payment_intent="pi_2", metadata={"order": "Größe, „XL“"}),
]


def as_csv(delimiter: str = ",", end: str = "\n") -> str:
    return "".join(
        delimiter.join(f'"{cell}"' if "," in cell else cell for cell in row) + end for row in ROWS
    )


def as_json_lines() -> str:
    return "".join(json.dumps(dict(zip(ROWS[0], row, strict=True))) + "\n" for row in ROWS[1:])


CONTENTS: dict[str, tuple[str | bytes, str, str]] = {
    "comma": (as_csv(), "csv", "CSV, comma-separated"),
    "semicolon": (as_csv(";"), "csv", "CSV, semicolon-separated"),
    "tab": (as_csv("\t"), "tsv", "CSV, tab-separated"),
    "carriage returns": (as_csv(end="\r\n"), "csv", "CSV, comma-separated"),
    "old line ends": (as_csv(end="\r"), "csv", "CSV, comma-separated"),
    "no last line end": (as_csv().rstrip("\n"), "csv", "CSV, comma-separated"),
    "byte order mark": ("\ufeff" + as_csv(), "csv", "CSV, comma-separated"),
    "json lines": (as_json_lines(), "jsonl", "JSON lines"),
    "json lines with a mark": ("\ufeff" + as_json_lines(), "data", "JSON lines"),
    "workbook": (workbook(ROWS), "xlsx", "XLSX"),
    "misnamed workbook": (workbook(ROWS), "csv", "XLSX"),
    "unnamed csv": (as_csv(), "export", "CSV, comma-separated"),
}


@pytest.mark.parametrize("way", ["plain", "gzip", "stdin", "gzip on stdin"])
@pytest.mark.parametrize("kind", CONTENTS)
def test_every_format_gives_the_same_requests_and_is_described(
    kind: str, way: str, tmp_path: Path
) -> None:
    text, suffix, words = CONTENTS[kind]
    content = text.encode() if isinstance(text, str) else text
    content = packed(content) if "gzip" in way else content
    path = tmp_path / f"refunds.{suffix}{'.gz' if 'gzip' in way else ''}"
    path.write_bytes(content)
    stdin = "stdin" in way
    with open_source(
        "-" if stdin else path, ImportOptions(), io.BytesIO(content) if stdin else None
    ) as source:
        assert describe(source) == (f"{words}, gzipped" if "gzip" in way else words)
        assert source.name == ("stdin" if stdin else path.name)
        assert [each.request for each in accepted(source, validate(source))] == EXPECTED


def test_a_stated_delimiter_wins_over_the_detected_one(files: Files) -> None:
    with pytest.raises(InputError, match="payment_intent"):
        files.take(as_csv(";"), delimiter=",")


def test_quoted_line_ends_belong_to_their_cell_and_lines_are_counted_physically(
    files: Files,
) -> None:
    text = 'refund_id,pi,amount,note\n\na,pi_1,1,"x\ny\r\nz"\nb,pi_2,0,\n,,,\nc,pi_3,3,""\n'
    taken = files.take(text, ignore_extra=True)
    assert taken.lines == [3, 8]
    assert [error.line for error in taken.errors] == [6]


def test_a_delimiter_inside_a_quoted_header_does_not_mislead(files: Files) -> None:
    text = 'refund_id;pi;amount;"a,b,c,d,e,f"\nx;pi_1;5;1\n'
    assert files.take(text, ignore_extra=True).requests[0].amount == 5


def test_two_readers_of_one_source_are_independent(files: Files) -> None:
    text = "refund_id,pi\n" + "".join(f"r-{number},pi_{number}\n" for number in range(20_000))
    with open_source(files.write(text), ImportOptions()) as source:
        pairs = zip(read_rows(source), read_rows(source), strict=True)
        assert sum(one == other for one, other in pairs) == 20_000


def test_json_lines_accept_numbers_as_ids_only_if_they_are_whole(files: Files) -> None:
    lines = [
        {"id": 1001, "pi": "pi_1", "amount": 500, "metadata": {"order": 7, "none": None}},
        {"id": "x", "pi": "pi_1", "amount": 5.0},
        {"id": 1.5, "pi": "pi_1"},
        {"id": "y", "pi": "pi_1", "amount": True},
        {"id": "z", "pi": "pi_1", "metadata": {"order": ["a"]}},
        {"id": "q", "pi": "pi_1", "metadata": "text"},
        {"id": "d", "pi": "pi_1", "metadata": {"a": "1"}, "metadata.a": "2"},
        {"id": "n", "pi": None},
        {"id": "u", "pi": "pi_1", "colour": "red"},
        {"id": "t", "pi": "pi_1", "payment": "pi_2"},
    ]
    taken = files.take("".join(json.dumps(line) + "\n\n" for line in lines), "refunds.jsonl")
    assert taken.requests == [
        RefundRequest(refund_id="1001", payment_intent="pi_1", amount=500, metadata={"order": "7"})
    ]
    assert [(error.line, error.column, error.code) for error in taken.errors] == [
        (3, "amount", "not_whole"),
        (5, "id", "not_whole"),
        (7, "amount", "cell_type"),
        (9, "metadata.order", "cell_type"),
        (11, "metadata", "metadata_type"),
        (13, "metadata.a", "duplicate_column"),
        (15, "pi", "payment_intent"),
        (17, "colour", "unknown_column"),
        (19, "payment", "duplicate_column"),
    ]


def test_a_workbooks_numbers_are_read_only_if_whole_and_exact(files: Files) -> None:
    rows: list[list[object]] = [
        ["id", "pi", "amount", "metadata.order"],
        [1001.0, "pi_1", 500, 7.0],
        [None, None, None, None],
        [1001.5, "pi_1", 500, None],
        ["x", 1787730829493927936, 500, None],
        ["y", "pi_1", 5.5, None],
        ["z", "pi_1", True, None],
    ]
    taken = files.take(workbook(rows), "refunds.xlsx")
    assert taken.requests == [
        RefundRequest(refund_id="1001", payment_intent="pi_1", amount=500, metadata={"order": "7"})
    ]
    assert [(error.line, error.column, error.code) for error in taken.errors] == [
        (4, "id", "not_whole"),
        (5, "pi", "not_exact"),
        (6, "amount", "not_whole"),
        (7, "amount", "cell_type"),
    ]


def test_a_date_in_a_workbook_is_shown_as_people_write_it(files: Files) -> None:
    rows: list[list[object]] = [
        ["id", "pi", "amount"],
        ["x", "pi_1", date(2026, 5, 1)],
    ]
    (error,) = files.take(workbook(rows), "refunds.xlsx").errors
    assert (error.code, error.value[:11]) == ("cell_type", "'2026-05-01")
    assert error.rule.startswith("is a date or a time in the workbook: format the column as text")


def test_of_several_sheets_with_rows_one_must_be_named(files: Files) -> None:
    book = workbook(ROWS, [["refund_id", "pi"], ["b", "pi_9"]], [])
    with pytest.raises(InputError, match=r"several sheets with rows.*Sheet1, Sheet2"):
        files.take(book, "refunds.xlsx")
    assert files.take(book, "refunds.xlsx", sheet="Sheet2").ids == ["b"]
    assert files.take(workbook([], ROWS), "refunds.xlsx").requests == EXPECTED
    with pytest.raises(InputError, match="no sheet 'May'"):
        files.take(book, "refunds.xlsx", sheet="May")


def test_without_the_extra_a_workbook_is_refused_with_what_to_do(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "python_calamine", None)
    with pytest.raises(InputError, match=r"refund-worker\[xlsx\].*or save the sheet as CSV"):
        files.take(workbook(ROWS), "refunds.xlsx")
