"""Files that break their format: one sentence with line and column, and nothing is imported."""

from __future__ import annotations

import errno
import io
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.support.files import HEADER, Files, packed, workbook
from worker.errors import InputError
from worker.importer import ImportOptions, accepted, open_source, validate

MANY = HEADER + "".join(f"r-{n},pi_{n},5,usd,,{n}\n" for n in range(20_000))


@pytest.mark.parametrize(
    ("content", "name", "says"),
    [
        pytest.param("", "f.csv", r"f\.csv: the file is empty: export it again", id="empty"),
        pytest.param("\ufeff", "f.csv", "is empty", id="only a mark"),
        pytest.param(" \n\n\t\n", "f.csv", "is empty", id="only blanks"),
        pytest.param(packed(""), "f.csv.gz", "is empty", id="empty when unpacked"),
        pytest.param(HEADER, "f.csv", "but no rows: export it again", id="header only"),
        pytest.param(
            workbook([["refund_id", "pi"]]),
            "f.xlsx",
            "a header but no rows",
            id="sheet with header only",
        ),
        pytest.param(workbook([]), "f.xlsx", "no sheet has cells", id="empty workbook"),
        pytest.param(b"%PDF-1.7 \x00", "f.csv", "a PDF", id="pdf"),
        pytest.param(
            "\n<HTML><table><tr><td>id</td>", "f.xls", "it is a web page: save", id="web page"
        ),
        pytest.param("<!doctype html>", "f.csv", "it is a web page", id="page instead of a file"),
        pytest.param('\ufeff<?xml version="1.0"?>', "f.xml", "it is XML", id="xml"),
        pytest.param(b"\xd0\xcf\x11\xe0\xa1\xb1", "f.xls", "old Excel workbook", id="old workbook"),
        pytest.param(HEADER.encode("utf-16"), "f.csv", "UTF-16", id="utf-16"),
        pytest.param(packed(packed(HEADER)), "f.csv.gz", "twice", id="packed twice"),
        pytest.param(
            bytes(range(1, 256)),
            "f.bin",
            r"line 2, column 118: byte 0x80 is not UTF-8",
            id="binary",
        ),
        pytest.param(
            f"{HEADER}a,pi_\0,1,,,\n", "f.csv", r"line 2, column 6: a NUL byte", id="NUL byte"
        ),
        pytest.param(
            f"{MANY}a,pi_1,1,,,Gr".encode() + b"\xf6\xdfe\n",
            "f.csv",
            r"line 20002, column 14: byte 0xF6",
            id="latin-1",
        ),
        pytest.param(
            f"{MANY}a,pi_1,1,,,G".encode() + b"\xc3",
            "f.csv",
            r"line 20002, column 13",
            id="cut character",
        ),
        pytest.param(
            f"{HEADER}a,pi_1,1,,,1\nb,pi_2\n",
            "f.csv",
            r"line 3, column 3: .* 2 of 6.*'amount'",
            id="short",
        ),
        pytest.param(
            f"{HEADER}a,pi_1,1,5,,,x\n", "f.csv", r"line 2, column 7: .* 7 cells.* 6", id="long row"
        ),
        pytest.param(
            f'{HEADER}a,pi_1,1,,,"x\nb,pi', "f.csv", r"line 2: .* never closed", id="open quote"
        ),
        pytest.param(
            f'{HEADER}a,pi_1,1,,,"x"y\n', "f.csv", r"line 2: .* must be doubled", id="loose quote"
        ),
        pytest.param(
            f"{HEADER}a,pi_1,1,,,{'x' * 131_073}\n",
            "f.csv",
            r"line 2: is not valid CSV: a cell is longer than 131,072 characters: shorten it, or",
            id="long cell",
        ),
        pytest.param(
            f"{HEADER}a,pi_1,1,,,{'x' * 10_000_000}\n",
            "f.csv",
            r"line 2: .*longer than",
            id="10 MB line",
        ),
        pytest.param(
            HEADER + 'a,pi_1,1,,,"' + "x,\n" * 3_000_000,
            "f.csv",
            r"line \d+: .*(longer than|never)",
            id="10 MB row",
        ),
        pytest.param(
            HEADER + '"x\n",' * 2_000_000,
            "f.csv",
            r"line \d+: the row is longer than",
            id="10 MB of small cells",
        ),
        pytest.param(
            '{"id":"' + "x" * 10_000_000, "f.jsonl", r"line 1: .* longer than", id="10 MB of JSON"
        ),
        pytest.param(
            "id,refund_id,pi\n1,2,3\n",
            "f.csv",
            r"line 1, column 2: .*same meaning as column 'id'",
            id="two ids",
        ),
        pytest.param(
            "id,pi,amount,amount\n",
            "f.csv",
            r"line 1, column 4: .*'amount' has the same meaning",
            id="twice",
        ),
        pytest.param(
            "id,,pi\n1,2,3\n", "f.csv", r"line 1, column 2: .* has no name", id="unnamed column"
        ),
        pytest.param(
            "id,pi,\n1,2,3\n",
            "f.csv",
            r"line 2, column 3: .* name every column",
            id="unnamed last column",
        ),
        pytest.param(
            "\nid,pi,colour\n1,2,3\n",
            "f.csv",
            r"line 2, column 3: .*'colour' is not a known.*--ignore-extra",
            id="unknown",
        ),
        pytest.param(
            "pi,amount\n1,2\n", "f.csv", r"line 1: column 'refund_id' is missing", id="no id"
        ),
        pytest.param(
            "id|pi|amount\n1|2|3\n",
            "f.csv",
            r"line 1: the columns are separated by '\|': use commas, semicolons or tabs$",
            id="other delimiter",
        ),
        pytest.param(
            "id,amount\n1,2\n",
            "f.csv",
            r"line 1: column 'payment_intent' is missing",
            id="no payment",
        ),
        pytest.param(
            '{"id":"a","pi":"pi_1"}\n[1]\n',
            "f.jsonl",
            "line 2: each line must be one",
            id="no object",
        ),
        pytest.param(
            '{"id":"a","id":"b"}\n',
            "f.jsonl",
            "line 1: the key 'id' occurs twice in one object",
            id="key twice",
        ),
        pytest.param(
            '{"metadata":{"a":"1","a":"2"}}\n',
            "f.jsonl",
            "line 1: the key 'a'",
            id="inner key twice",
        ),
        pytest.param(
            '{"id":"a",}\n', "f.jsonl", r"line 1, column \d+: is not valid JSON", id="broken JSON"
        ),
        pytest.param('{"id":NaN}\n', "f.jsonl", "line 1: NaN is not valid JSON", id="NaN"),
        pytest.param(
            '{"id":1e999}\n', "f.jsonl", "line 1: the number 1e999 is too large", id="infinite"
        ),
        pytest.param(
            '{"id":' + "9" * 5000 + "}\n",
            "f.jsonl",
            r"line 1: a number has too many digits$",
            id="endless number",
        ),
        pytest.param(
            '{"id":' + "[" * 200_000 + "\n", "f.jsonl", "line 1: is nested too deeply", id="deep"
        ),
        pytest.param(
            '{\n "id": "a"\n}\n',
            "f.jsonl",
            r"line 1: the JSON does not end on this line: write one object per line, or",
            id="object on several lines",
        ),
        pytest.param(
            '{"id":"a",\n',
            "f.jsonl",
            r"line 1: the JSON does not end on this line",
            id="cut object",
        ),
        pytest.param('[{"id":"a"}]', "f.json", r"line 1: is a JSON array", id="array"),
        pytest.param(
            "\n\npayment_intent,refund_id\n",
            "f.jsonl",
            "line 3, column 1: is not valid JSON",
            id="misnamed",
        ),
        pytest.param(
            b"PK\x03\x04junk",
            "f.xlsx",
            r"is not a complete XLSX workbook \(File is not a zip file\): save it again as",
            id="broken workbook",
        ),
        pytest.param(
            workbook([["a"]])[:-30], "f.xlsx", "not a complete XLSX workbook", id="cut workbook"
        ),
        pytest.param(
            HEADER,
            "f.xlsx",
            "not an XLSX workbook.*; save it as .xlsx or CSV",
            id="text named workbook",
        ),
        pytest.param(packed(MANY)[:-20], "f.csv.gz", "cut off: copy it again", id="cut gzip"),
        pytest.param(
            packed(MANY)[:90] + b"\xff" * 60, "f.csv.gz", "cannot be unpacked", id="damaged gzip"
        ),
    ],
)
def test_a_file_that_breaks_its_format_is_refused_with_the_position(
    content: str | bytes, name: str, says: str, files: Files
) -> None:
    with pytest.raises(InputError, match=says) as refusal:
        files.take(content, name)
    assert str(refusal.value).startswith(name)
    assert "\n" not in str(refusal.value)


def test_a_zip_file_that_is_not_a_workbook_is_refused(files: Files) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("refunds.csv", MANY)
    with pytest.raises(InputError, match="not a complete XLSX workbook"):
        files.take(out.getvalue(), "refunds.zip")


@pytest.mark.parametrize("name", ["bomb.csv.gz", "bomb.xlsx"])
def test_a_file_that_unpacks_beyond_the_limit_is_refused(name: str, files: Files) -> None:
    rows = [["refund_id", "pi"], *([f"r-{number}", "pi_1"] for number in range(5_000))]
    content = workbook(rows) if name.endswith("xlsx") else packed(MANY)
    assert len(content) < 200_000
    with pytest.raises(InputError, match="unpacks to more than 200,000 bytes"):
        files.take(content, name, max_unpacked_bytes=200_000)


def test_endless_standard_input_is_refused_at_the_limit() -> None:
    with pytest.raises(InputError, match="more than 1,000 bytes"):
        open_source("-", ImportOptions(max_unpacked_bytes=1_000), io.BytesIO(b"x" * 5_000))


def test_an_unknown_column_can_be_ignored(files: Files) -> None:
    text = "id,pi,colour,,colour\na,pi_1,red,,blue\n"
    assert files.take(text, ignore_extra=True).ids == ["a"]


def test_a_file_that_cannot_be_opened_is_refused_in_a_sentence(tmp_path: Path) -> None:
    says_of = {
        tmp_path / "none.csv": "does not exist",
        tmp_path: "is a folder",
        Path("a\0b"): r"cannot be opened \(embedded null byte\): check its name, and that you may",
        tmp_path / ("n" * 300): r"cannot be opened \(File name too long\): check its name",
    }
    for path, says in says_of.items():
        with pytest.raises(InputError, match=says):
            open_source(path, ImportOptions())


def _broken(*_: object) -> bytes:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_a_file_on_a_broken_disk_is_refused_in_a_sentence(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = files.write(MANY, "f.csv")
    with open_source(path, ImportOptions()) as source:
        monkeypatch.setattr(os, "pread", _broken)
        with pytest.raises(
            InputError, match=r"f\.csv: cannot be read \(Input/output error\): name"
        ):
            validate(source)


def test_standard_input_that_breaks_off_is_refused_in_a_sentence() -> None:
    class Broken(io.BytesIO):
        read = _broken

    stream = Broken(b"x")
    with pytest.raises(InputError, match=r"standard input cannot be read \(Input/output error\)"):
        open_source("-", ImportOptions(), stream)


def test_a_file_that_changes_between_two_readings_is_refused(files: Files) -> None:
    path = files.write(MANY)
    with open_source(path, ImportOptions()) as source:
        validation = validate(source)
        files.write(MANY + "late,pi_1,5,usd,,1\n")
        with pytest.raises(InputError, match="changed while it was being read"):
            list(accepted(source, validation))


@pytest.mark.parametrize("late", ["", "late,pi_1,5,usd,,1\n"])
@pytest.mark.parametrize("packs", [False, True])
def test_no_row_is_taken_from_what_was_written_while_the_file_is_read(
    files: Files, late: str, *, packs: bool
) -> None:
    """Such rows were neither checked nor compared, and their amounts are in no limit."""
    other = MANY.replace(",5,usd", ",9,usd") + late
    pack = packed if packs else str.encode
    path = files.write(pack(MANY), "f.csv.gz" if packs else "f.csv")
    os.utime(path, (1, 1))
    with open_source(path, ImportOptions()) as source:
        rows = accepted(source, validate(source))
        taken = [next(rows)]
        path.write_bytes(pack(other))
        with pytest.raises(InputError, match="changed while it was being read"):
            taken += rows
    assert len(taken) <= 20_000
    assert {row.request.amount for row in taken} == {5}


def test_a_validation_of_one_file_is_not_used_for_another(files: Files) -> None:
    validation = files.validated(MANY)
    with (
        open_source(files.write(HEADER + "a,pi_1,1,,,\n"), ImportOptions()) as source,
        pytest.raises(InputError, match="not the file that was validated"),
    ):
        list(accepted(source, validation))


@pytest.mark.parametrize(
    "options",
    [
        {"format": "parquet"},
        {"delimiter": "|"},
        {"amount_unit": "cents"},
        {"default_currency": "dollar"},
        {"id_from": ("order", "Refund ID")},
        {"id_from": ("status",)},
    ],
)
def test_meaningless_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        ImportOptions(**options)
