"""Reads the provider's file of refunds: one row a refund, in columns that are known or mapped.

Unit, sign, currency and time zone are stated, and never guessed. A row that cannot be read is
refused with its line and column, and so is a refund that is in the file twice.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, tzinfo
from itertools import islice
from typing import Any, Final, NamedTuple

from worker.importer import Row, RowError, Source, read_rows
from worker.importer.amounts import AmountProblem, parse_amount
from worker.importer.cells import (
    BLANKS,
    amount_problem,
    cell_problem,
    decimal_text,
    is_blank,
    text_of,
)
from worker.importer.columns import plain_name
from worker.importer.formats import Layout
from worker.importer.options import DecimalMark
from worker.model.currencies import AmountUnit
from worker.model.request import shown
from worker.reconcile.mapping import FIELDS, STATUSES, ExportMapping

_NEEDED: Final = ("id", "amount")
_NAMED: Final = "metadata.refund_id"
# As an export of the dashboard writes a key of the metadata.
_OTHER_NAMES: Final = {"refund_id_(metadata)": _NAMED, "metadata[refund_id]": _NAMED}
_SPELLINGS: Final = {"cancelled": "canceled", "requires_action": "pending"}
_SECONDS: Final = 10
_MILLISECONDS: Final = 13
_MINUSES: Final = ("-", "\u2212")
# Zero has no sign.
_ZERO: Final = re.compile(r"0+(?:[.,]0+)?")
_LONGEST: Final = 200
# JSON can write half a surrogate pair, which no file or database takes.
_HALVES: Final = re.compile("[\ud800-\udfff]")
MOST_ERRORS: Final = 20
"""Errors of rows that are kept to be shown; the others are counted."""


class Theirs(NamedTuple):
    """A refund in the provider's file: `named` is our id in its metadata; `created` in epoch ms."""

    line: int
    id: str
    payment: str | None
    amount: int
    currency: str
    status: str
    created: int | None
    named: str | None


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How amounts, times and statuses are written in the file."""

    mapping: ExportMapping
    zone: tzinfo
    unit: AmountUnit
    decimal: DecimalMark
    negative: bool
    currency: str | None
    status: str | None
    """The currency and the status of rows that state none."""


@dataclass(kw_only=True)
class Export:
    """A file of the provider, its columns, and the errors of its rows."""

    source: Source
    reading: Reading
    errors: list[RowError] = field(default_factory=list)
    broken: int = 0
    """The number of errors; the first of them are in `errors`."""
    unused: tuple[str, ...] = ()
    columns: dict[str, str] = field(default_factory=dict)
    """The file's own name of each field."""
    _refused: set[str] = field(default_factory=set, init=False)
    """The fields of the row that is read whose cells are not blank, and not texts either."""
    _untimed: list[int] = field(default_factory=list, init=False)
    _more_untimed: int = field(default=0, init=False)
    """The first lines that have no key for the time, and the number of all others."""

    def rows(self) -> Iterator[Theirs]:
        """Yield the rows that can be read. Raises `InputError` if the columns cannot be used."""
        layout = Layout(header=self._header, least=self._least, may_be_empty=True)
        for row in read_rows(self.source, layout):
            if (read := self._read(row)) is not None:
                yield read
        if self.source.format == "jsonl" and self._plan is not None:
            # Each line names its own fields, so only now is it known what none has.
            self._check_all(self.columns, [*self.columns.values(), *self.unused], None)
        if "created" in self.columns:
            # A line of JSON lines may lack the key; no window would hold or leave out its refund.
            self._refused.clear()
            for line in self._untimed:
                self._missing(line, "created")
            self.broken += self._more_untimed

    def refuse(self, line: int, column: str, code: str, value: object, rule: str) -> None:
        """Note why a row cannot be read."""
        self.broken += 1
        if len(self.errors) < MOST_ERRORS:
            self.errors.append(RowError(line, column, code, shown(value), rule))

    # Columns

    def _header(self, _source: Source, names: Sequence[str], line: int) -> tuple[str, ...]:
        cells = [*names]
        while cells and is_blank(cells[-1]):
            cells.pop()
        fields = self._fields(tuple(cells))
        self._check_all(fields.values(), cells, line)
        self._check_once(fields, line)
        self._note(tuple(cells), fields)
        return tuple(cells)

    def _check_all(self, fields: Collection[str], names: Sequence[str], line: int | None) -> None:
        """Raise `InputError` if a field has no column although it is mapped or needed."""
        for field_, header in self.reading.mapping.columns.items():
            if field_ not in fields:
                raise self.source.problem(
                    f"has no column {header!r}, which is mapped to {field_}: its columns are"
                    f" {_listed(names)}",
                    line=line,
                )
        missing = [name for name in self._needed() if name not in fields]
        if missing:
            raise self.source.problem(
                f"has no column {' and '.join(missing)}: its columns are {_listed(names)}; name"
                f' the right one with --map {missing[0]}="Column"',
                line=line,
            )

    def _check_once(self, fields: Mapping[int, str], line: int) -> None:
        if (twice := _twice(fields.values())) is not None:
            raise self.source.problem(
                f'has several columns for {twice}: name the right one with --map {twice}="Column"',
                line=line,
            )

    def _needed(self) -> list[str]:
        needed = [*_NEEDED]
        needed += ["currency"] if self.reading.currency is None else []
        needed += ["status"] if self.reading.status is None else []
        return needed

    def _least(self, _source: Source, names: tuple[str, ...]) -> int:
        fields = self._fields(names)
        return 1 + max(index for index, name in fields.items() if name in self._needed())

    def _fields(self, names: tuple[str, ...]) -> dict[int, str]:
        """Return the field of each column that has one, by the column's index."""
        mapped = {plain_name(header): name for name, header in self.reading.mapping.columns.items()}
        found: dict[int, str] = {}
        for index, name in enumerate(names):
            plain = plain_name(name)
            field_ = mapped.get(plain)
            if field_ is None:
                known = _OTHER_NAMES.get(plain, plain)
                if known in FIELDS and known not in mapped.values():
                    field_ = known
            if field_ is not None:
                found[index] = field_
        return found

    def _note(self, names: tuple[str, ...], fields: Mapping[int, str]) -> None:
        self.columns |= {field_: names[index].strip() for index, field_ in fields.items()}
        unused = [
            name.strip()
            for index, name in enumerate(names)
            if index not in fields and (self.source.format, name) != ("jsonl", "metadata")
        ]
        self.unused = tuple(dict.fromkeys((*self.unused, *filter(None, unused))))

    # Rows

    _plan: tuple[tuple[str, ...], dict[str, int]] | None = field(default=None, init=False)

    def _indexes(self, row: Row) -> dict[str, int]:
        """Return the index of each field in a row; JSON lines name their fields in each row."""
        if self._plan is None or self._plan[0] is not row.names:
            fields = self._fields(row.names)
            self._check_once(fields, row.line)
            self._note(row.names, fields)
            self._plan = row.names, {name: index for index, name in fields.items()}
        return self._plan[1]

    def _read(self, row: Row) -> Theirs | None:
        broken = self.broken
        texts = self._texts(row)
        refund = self._text(row, texts, "id")
        currency = self._currency(row, texts)
        amount = self._amount(row, texts, currency)
        status = self._status(row, texts)
        created = self._created(row, texts)
        if self.broken > broken or amount is None:
            return None
        payment, named = texts.get("payment_intent"), texts.get(_NAMED)
        return Theirs(row.line, refund, payment, amount, currency, status, created, named)

    def _texts(self, row: Row) -> dict[str, str]:
        """Return the filled cells of a row as texts, by field."""
        self._refused.clear()
        texts: dict[str, str] = {}
        for name, index in self._indexes(row).items():
            value = row.values[index]
            if not is_blank(value) and (text := self._cell(row, name, value)) is not None:
                texts[name] = text
        self._add_metadata(row, texts)
        for name in ("id", "payment_intent", _NAMED):
            if _HALVES.search(texts.get(name, "")):
                rule = "must not hold broken Unicode"
                self.refuse(row.line, self._column(name), "broken_text", texts[name], rule)
        return texts

    def _cell(self, row: Row, name: str, value: object) -> str | None:
        """Return the text of a cell that is not blank, None if it is refused."""
        if name == "created" and isinstance(value, date):
            return value.isoformat()
        if name == "created" and isinstance(value, float):
            # No time is written so, and the rule of times says how one is.
            return str(value)
        if name == "amount" and type(value) is float and (text := decimal_text(value)) is not None:
            return text
        problem = cell_problem(value)
        if name == "amount":
            index = self._indexes(row).get("currency")
            stated = None if index is None else text_of(row.values[index])
            problem = amount_problem(
                value, stated or self.reading.currency, is_minor=self.reading.unit == "minor"
            )
        if problem is not None:
            self.refuse(row.line, self._column(name), problem[0], value, problem[1])
            self._refused.add(name)
            return None
        return str(value).strip(BLANKS)

    def _add_metadata(self, row: Row, texts: dict[str, str]) -> None:
        """Take our id from a metadata object, as JSON lines have it."""
        if self.source.format != "jsonl" or _NAMED in texts or "metadata" not in row.names:
            return
        metadata: Any = row.values[row.names.index("metadata")]
        named = metadata.get("refund_id") if isinstance(metadata, dict) else None
        if isinstance(named, str) and named:
            texts[_NAMED] = named

    def _column(self, name: str) -> str:
        return self.columns.get(name, name)

    def _text(self, row: Row, texts: Mapping[str, str], name: str) -> str:
        text = texts.get(name, "")
        if not text:
            self._missing(row.line, name)
        elif len(text) > _LONGEST:
            rule = f"must have at most {_LONGEST} characters"
            self.refuse(row.line, self._column(name), "too_long", text, rule)
        return text

    def _missing(self, line: int, name: str) -> None:
        if name not in self._refused:
            self.refuse(line, self._column(name), "missing", "", "must not be blank")

    def _currency(self, row: Row, texts: Mapping[str, str]) -> str:
        text = texts.get("currency") or self.reading.currency or ""
        if not text:
            self._missing(row.line, "currency")
        elif not (len(text) == len("usd") and text.isascii() and text.isalpha()):
            rule = "must be a three-letter ISO code such as usd"
            self.refuse(row.line, self._column("currency"), "currency", text, rule)
        return text.lower()

    def _amount(self, row: Row, texts: Mapping[str, str], currency: str) -> int | None:
        text = texts.get("amount", "")
        if not text:
            self._missing(row.line, "amount")
            return None
        reading = self.reading
        positive = _without_sign(text)
        if reading.negative != (positive is not None) and _ZERO.fullmatch(text) is None:
            rule = (
                "must be negative, because --sign negative says that all refunds are"
                if reading.negative
                else "must not be negative: if refunds are negative in this file, use"
                " --sign negative"
            )
            self.refuse(row.line, self._column("amount"), "amount_sign", text, rule)
            return None
        text = text if positive is None else positive
        is_float = type(row.values[self._indexes(row)["amount"]]) is float
        mark: DecimalMark = "point" if is_float else reading.decimal
        parsed = parse_amount(text, reading.unit, currency or None, mark)
        if isinstance(parsed, AmountProblem) and parsed.code == "amount_zero":
            # A refund that moved nothing, such as a canceled one, does not make the file wrong.
            return 0
        if isinstance(parsed, AmountProblem):
            self.refuse(row.line, self._column("amount"), parsed.code, text, parsed.rule)
            return None
        return parsed

    def _status(self, row: Row, texts: Mapping[str, str]) -> str:
        text = texts.get("status") or self.reading.status or ""
        mapped = self.reading.mapping.statuses
        word = mapped.get(text) or text.lower()
        word = _SPELLINGS.get(word, word)
        if not text:
            self._missing(row.line, "status")
        elif word not in STATUSES:
            rule = (
                f"is not one of {', '.join(STATUSES)}: state which one it means with --map-status"
                f' "{text}"=…'
            )
            self.refuse(row.line, self._column("status"), "status", text, rule)
        return word

    def _created(self, row: Row, texts: Mapping[str, str]) -> int | None:
        if "created" not in self._indexes(row):
            if len(self._untimed) < MOST_ERRORS:
                self._untimed.append(row.line)
            else:
                self._more_untimed += 1
            return None
        text = texts.get("created", "")
        if not text:
            self._missing(row.line, "created")
            return None
        at = moment_of(text, self.reading.zone)
        if at is None:
            rule = (
                "must be a time such as 2026-01-31T09:00:00Z, a date such as 2026-01-31, or whole"
                " seconds or milliseconds since 1970"
            )
            self.refuse(row.line, self._column("created"), "created", text, rule)
        return at


def _without_sign(text: str) -> str | None:
    """Return a negative amount without its sign: -5, 5- or (5). None if it is not negative."""
    if text.startswith(_MINUSES):
        return text[1:]
    if text.endswith(_MINUSES):
        return text[:-1]
    return text[1:-1] if text.startswith("(") and text.endswith(")") else None


def moment_of(text: str, zone: tzinfo) -> int | None:
    """Return a time in epoch ms, None if it is not written in a way that has one meaning."""
    if text.isascii() and text.isdigit():
        # Seconds have ten digits from 2001 to 2286, and milliseconds thirteen.
        scale = {_SECONDS: 1000, _MILLISECONDS: 1}.get(len(text))
        return None if scale is None else int(text) * scale
    if len(text) < len("2026-01-31") or text[4:5] != "-" or text[7:8] != "-":
        return None
    try:
        typed = datetime.fromisoformat(text)
        at = typed if typed.tzinfo else typed.replace(tzinfo=zone)
        return int(at.astimezone(UTC).timestamp() * 1000)
    except (ValueError, OverflowError):
        return None


def _twice(names: Any) -> str | None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return str(name)
        seen.add(name)
    return None


def _listed(names: Sequence[str]) -> str:
    shown_names = ", ".join(repr(name.strip()) for name in islice(names, MOST_ERRORS))
    more = len(names) - MOST_ERRORS
    return f"{shown_names} and {more} more" if more > 0 else shown_names
