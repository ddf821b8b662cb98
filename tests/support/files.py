"""Files to import for tests: written to a folder, opened and validated.

And workbooks made from rows.
"""

from __future__ import annotations

import gzip
import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from worker.importer import (
    ImportOptions,
    RowError,
    Summary,
    Validation,
    accepted,
    judged,
    open_source,
    refused,
    validate,
    write_failed_rows,
    write_result,
)
from worker.model.refund import Refund
from worker.model.request import RefundRequest

HEADER = "refund_id,payment_intent,amount,currency,reason,metadata.order\n"

_MAIN = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
_RELATIONS = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
_PACKAGE = "http://schemas.openxmlformats.org/package/2006"
_SHEET_TYPE = "application/vnd.openxmlformats-officedocument.spreadsheetml"


@dataclass(frozen=True)
class Taken:
    """The result of a file: its requests in order, their lines, its errors, and its summary."""

    requests: list[RefundRequest] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    errors: list[RowError] = field(default_factory=list)
    summary: Summary = field(kw_only=True)

    @property
    def codes(self) -> list[str]:
        return [error.code for error in self.errors]

    @property
    def ids(self) -> list[str]:
        return [request.refund_id for request in self.requests]


@dataclass
class Files:
    """A folder of files to import."""

    folder: Path

    def write(self, content: str | bytes, name: str = "refunds.csv") -> Path:
        path = self.folder / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def take(self, content: str | bytes, name: str = "refunds.csv", **options: Any) -> Taken:
        """Judges a file and reads it again, as an import does."""
        with open_source(self.write(content, name), ImportOptions(**options)) as source:
            validation = validate(source)
            found = list(accepted(source, validation))
            errors = [error for _, errors in refused(source, validation) for error in errors]
        return Taken(
            requests=[each.request for each in found],
            lines=[each.line for each in found],
            errors=errors,
            summary=validation.summary,
        )

    def result(
        self,
        content: str | bytes,
        records: Sequence[Refund] = (),
        name: str = "refunds.csv",
        **options: Any,
    ) -> str:
        """The result file of an import for these records, as if made from the rows."""
        out = io.StringIO(newline="")
        with open_source(self.write(content, name), ImportOptions(**options)) as source:
            validation = validate(source)
            asked = {each.request.refund_id: each.request for each in accepted(source, validation)}
            by_id = {
                refund.refund_id: replace(refund, fingerprint=asked[refund.refund_id].fingerprint)
                for refund in records
                if refund.refund_id in asked
            }
            write_result(
                source, validation, lambda ids: [by_id.get(refund_id) for refund_id in ids], out
            )
        return out.getvalue()

    def failed_rows(self, content: str | bytes, name: str = "refunds.csv", **options: Any) -> str:
        out = io.StringIO(newline="")
        with open_source(self.write(content, name), ImportOptions(**options)) as source:
            write_failed_rows(source, validate(source), out)
        return out.getvalue()

    def duplicates(self, content: str, **options: Any) -> list[tuple[int, int]]:
        """Lines of duplicates, each with the line it repeats."""
        with open_source(self.write(content), ImportOptions(**options)) as source:
            verdicts = judged(source, validate(source))
            return [
                (each.row.line, each.duplicate_of)
                for each in verdicts
                if each.duplicate_of is not None
            ]

    def validated(self, content: str, **options: Any) -> Validation:
        with open_source(self.write(content), ImportOptions(**options)) as source:
            return validate(source)


def packed(content: str | bytes) -> bytes:
    return gzip.compress(content.encode() if isinstance(content, str) else content)


def _cell(reference: str, value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return f'<c r="{reference}" t="b"><v>{int(value)}</v></c>'
    if isinstance(value, int | float):
        return f'<c r="{reference}"><v>{value!r}</v></c>'
    if isinstance(value, date):
        return f'<c r="{reference}" t="d"><v>{value.isoformat()}</v></c>'
    text = escape(str(value))
    return f'<c r="{reference}" t="inlineStr"><is><t xml:space="preserve">{text}</t></is></c>'


def _sheet(rows: Sequence[Sequence[object]]) -> str:
    lines = [
        f'<row r="{number}">'
        + "".join(_cell(f"{chr(65 + at)}{number}", value) for at, value in enumerate(row))
        + "</row>"
        for number, row in enumerate(rows, 1)
    ]
    return f'<worksheet xmlns="{_MAIN}"><sheetData>{"".join(lines)}</sheetData></worksheet>'


def workbook(*sheets: Sequence[Sequence[object]]) -> bytes:
    """An XLSX workbook with these sheets, `Sheet1` first; numbers and times stay what they are."""
    numbers = range(1, len(sheets) + 1)
    overrides = "".join(
        f'<Override PartName="/xl/worksheets/sheet{n}.xml"'
        f' ContentType="{_SHEET_TYPE}.worksheet+xml"/>'
        for n in numbers
    )
    members = {
        "[Content_Types].xml": (
            f'<Types xmlns="{_PACKAGE}/content-types"><Default Extension="rels"'
            ' ContentType="application/vnd.openxmlformats-package.relationships+xml"/><Default'
            ' Extension="xml" ContentType="application/xml"/><Override PartName="/xl/workbook.xml"'
            f' ContentType="{_SHEET_TYPE}.sheet.main+xml"/>{overrides}</Types>'
        ),
        "_rels/.rels": (
            f'<Relationships xmlns="{_PACKAGE}/relationships"><Relationship Id="r1"'
            f' Type="{_RELATIONS}/officeDocument" Target="xl/workbook.xml"/></Relationships>'
        ),
        "xl/workbook.xml": (
            f'<workbook xmlns="{_MAIN}" xmlns:r="{_RELATIONS}"><sheets>'
            + "".join(f'<sheet name="Sheet{n}" sheetId="{n}" r:id="r{n}"/>' for n in numbers)
            + "</sheets></workbook>"
        ),
        "xl/_rels/workbook.xml.rels": (
            f'<Relationships xmlns="{_PACKAGE}/relationships">'
            + "".join(
                f'<Relationship Id="r{n}" Type="{_RELATIONS}/worksheet"'
                f' Target="worksheets/sheet{n}.xml"/>'
                for n in numbers
            )
            + "</Relationships>"
        ),
        **{
            f"xl/worksheets/sheet{n}.xml": _sheet(rows)
            for n, rows in zip(numbers, sheets, strict=True)
        },
    }
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in members.items():
            archive.writestr(name, f'<?xml version="1.0" encoding="UTF-8"?>{text}')
    return out.getvalue()
