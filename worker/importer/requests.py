"""Turns one row into a request, or into an error for every rule it breaks.

See `ids` for ids made from columns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from worker.errors import InvalidRequest
from worker.importer.amounts import AmountProblem, grouping_of, parse_amount
from worker.importer.cells import TIMES, amount_problem, cell_problem, decimal_text, text_of
from worker.importer.columns import columns_of, id_fields, plain_name
from worker.importer.ids import METADATA, MadeId, base_of, made_id, sent_fields
from worker.model.currencies import decimals_of
from worker.model.request import MAX_METADATA_KEYS, MAX_METADATA_VALUE_LENGTH, RefundRequest, shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from worker.importer.columns import ColumnProblem, Columns
    from worker.importer.formats import Row
    from worker.importer.sources import Source

_PLANS: Final = 256
_USES: Final = 500
_ALWAYS_IN_RANGE: Final = 12
_GROUPINGS: Final = {
    ".": "points between thousands",
    " ": "spaces between thousands",
    "": "no thousands separator",
}
_WHOLE_AMOUNT: Final = (
    "must be whole minor units such as 1050; for amounts such as 10.50 use --amount-unit major"
)


class RowError(NamedTuple):
    """A rule that one row breaks. `column` is the file's own name, and `value` is shortened."""

    line: int
    column: str
    code: str
    value: str
    rule: str


class Candidate(NamedTuple):
    """A row that breaks no rule by itself.

    `occurrence` is 0 if the id is the file's own, and None if the rows equal to this one have to be
    counted first. An id that is made from columns is in the request without its occurrence.
    """

    line: int
    request: RefundRequest
    occurrence: int | None


class _Cells(NamedTuple):
    """The cells of one row as texts, and the errors found in the row so far."""

    row: Row
    columns: Columns
    values: Sequence[str]
    errors: list[RowError]

    def text(self, index: int | None) -> str:
        """Return a cell's text, blank if the file has no such column."""
        return "" if index is None else self.values[index]

    def refuse(self, field: str, code: str, value: str, rule: str) -> None:
        """Adds an error about a field, under the file's own name for it."""
        self.errors.append(RowError(self.row.line, self.columns.header(field), code, value, rule))


def requests_of(rows: Iterable[Row], source: Source) -> Iterator[Candidate | tuple[RowError, ...]]:
    """Yield for each row its request or all of its errors; other rows are not considered."""
    reader = RequestReader(source)
    for row in rows:
        yield reader.read(row)


class RequestReader:
    """Turns the rows of a source into requests; the columns are mapped once for each header."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._options = source.options
        self._objects = source.format == "jsonl"
        self._plain = source.format == "csv"
        self._id_fields = id_fields(source.options)
        self._default_currency = source.options.default_currency or ""
        self._minor = source.options.amount_unit == "minor"
        self._grouping: tuple[str, int, str] | None = None
        self._plans: dict[tuple[str, ...], Columns] = {}
        self.uses: dict[str, str] = {}
        """The use of each column, from all headers so far.

        Limited to the first names if there are very many.
        """
        self._unmet = {plain_name(header): header for _, header in source.options.columns}
        self._columns: Columns | None = None

    def columns(self, names: tuple[str, ...]) -> Columns:
        """Return the index of each field under these names."""
        columns = self._columns
        if columns is not None and columns.names is names:
            return columns
        columns = self._plans.get(names)
        if columns is None:
            columns = columns_of(names, self._options, objects=self._objects)
            if len(self._plans) >= _PLANS:
                self._plans.clear()
            self._plans[names] = columns
            for column, use in columns.uses:
                self._unmet.pop(plain_name(column), None)
                if len(self.uses) < _USES:
                    self.uses.setdefault(column, use)
        self._columns = columns
        return columns

    def require_columns(self) -> None:
        """Raises `InputError` if a column that was named for a field is in no line."""
        for header in self._unmet.values():
            raise self._source.problem(
                f"no line has {header.strip()!r}, which --column names: use the name in the file"
            )

    def read(self, row: Row) -> Candidate | tuple[RowError, ...]:
        """Return the row's request, or every rule that the row breaks by itself."""
        columns = self.columns(row.names)
        errors = [_column_error(row, problem) for problem in columns.problems]
        values: Sequence[str] = row.values if self._plain else self._texts(row, columns, errors)  # type: ignore[assignment]
        cells = _Cells(row, columns, values, errors)
        payment, reason = cells.text(columns.payment_intent), cells.text(columns.reason)
        currency = cells.text(columns.currency) or self._default_currency
        amount = self._amount(cells, currency)
        metadata = _metadata(cells)
        refund_id = cells.text(columns.refund_id)
        occurrence: int | None = 0
        if self._id_fields:
            sent = sent_fields(payment, amount, currency, reason)
            refund_id, occurrence = self._identity(cells, refund_id, sent, metadata)
            metadata |= _sent_along(columns, values, metadata)
        try:
            request = RefundRequest(
                refund_id=refund_id,
                payment_intent=payment,
                amount=amount,
                currency=currency or None,
                reason=reason or None,
                metadata=metadata,
            )
        except InvalidRequest as invalid:
            return (*errors, *_broken_rules(row.line, columns, invalid, metadata, errors))
        return tuple(errors) if errors else Candidate(row.line, request, occurrence)

    def _amount(self, cells: _Cells, currency: str) -> int | None:
        """Return the amount in minor units, None if the cell is blank or refused."""
        index = cells.columns.amount
        if index is None or not (text := cells.values[index]):
            return None
        # Twelve digits are always in range, so most amounts need none of the slower checks.
        if (
            self._minor
            and len(text) <= _ALWAYS_IN_RANGE
            and text.isascii()
            and text.isdigit()
            and (amount := int(text))
        ):
            return amount
        parsed = self._parsed_amount(cells.row, index, text, currency)
        if isinstance(parsed, int):
            return parsed
        cells.refuse("amount", parsed.code, shown(text), parsed.rule)
        return None

    def _parsed_amount(self, row: Row, index: int, text: str, currency: str) -> int | AmountProblem:
        """Return an amount in minor units.

        Raises `InputError` if the file writes its thousands in two ways.
        """
        options = self._options
        if self._plain or isinstance(row.values[index], str):
            parsed = parse_amount(text, options.amount_unit, currency or None, options.decimal)
            if options.decimal == "comma" and isinstance(parsed, int):
                self._require_one_grouping(row, index, text)
            return parsed
        # The options say how text is written. A number has known decimals and no thousands
        # separators.
        parsed = parse_amount(text, options.amount_unit, currency or None)
        if isinstance(parsed, AmountProblem) and parsed.code == "amount_decimals":
            exact = f"{decimals_of(currency.lower())} decimals of {currency.upper()}"
            return parsed._replace(
                rule=f"is more exact than the {exact}: round it in the file, or write it as text"
            )
        return parsed

    def _require_one_grouping(self, row: Row, index: int, text: str) -> None:
        if (grouping := grouping_of(text)) is None:
            return
        if self._grouping is None:
            self._grouping = grouping, row.line, text
        first, line, before = self._grouping
        if grouping != first:
            raise self._source.problem(
                f"the amount {shown(text)} has {_GROUPINGS[grouping]}, but {shown(before)} on line"
                f" {line} has {_GROUPINGS[first]}: write all amounts in the same way; the importer"
                " does not guess",
                line=row.line,
                column=index + 1,
            )

    def _texts(self, row: Row, columns: Columns, errors: list[RowError]) -> Sequence[str]:
        """Return the used cells as texts; add an error for each value not readable as text."""
        texts = [""] * len(row.values)
        stated = None if columns.currency is None else text_of(row.values[columns.currency])
        currency = stated or self._default_currency
        indexes = [
            columns.refund_id,
            columns.payment_intent,
            columns.amount,
            columns.currency,
            columns.reason,
        ]
        indexes += [index for _, index in (*columns.metadata, *columns.id_parts)]
        for index in indexes:
            if index is None:
                continue
            value = row.values[index]
            is_amount = index == columns.amount
            problem = (
                amount_problem(value, currency, is_minor=self._minor)
                if is_amount
                else cell_problem(value)
            )
            if is_amount and type(value) is float:
                text = None if self._minor else decimal_text(value)
                if text is not None:
                    texts[index] = text
                    continue
                if problem is not None and problem[0] == "not_whole":
                    problem = problem[0], _WHOLE_AMOUNT
            if problem is not None:
                found = shown(text_of(value) if isinstance(value, TIMES) else value)
                errors.append(
                    RowError(row.line, row.names[index].strip(), problem[0], found, problem[1])
                )
            else:
                texts[index] = text_of(value) or ""
        return texts

    def _identity(
        self, cells: _Cells, stated: str, sent: Mapping[str, str], metadata: Mapping[str, str]
    ) -> tuple[str, int | None]:
        """Return the id made from the row's columns, and the occurrence if the row states it.

        An id that the row states must be the one made from its columns. The id of an earlier
        attempt, as a result file states it, becomes that of the current attempt.
        """
        made = MadeId(base_of(self._id_pairs(cells, sent, metadata)), self._options.attempt)
        if not stated:
            return made.text, None
        found = made_id(stated)
        if found is not None and found.base == made.base:
            return made._replace(attempt=max(found.attempt, made.attempt)).text, found.occurrence
        # The error may be in a column that the id is made from: then the stated id cannot be
        # checked.
        if not cells.errors:
            rule = (
                f"is not the id made from the columns, {made.text}: clear the cell, or import"
                " without --id-from"
            )
            cells.refuse("refund_id", "refund_id_mismatch", shown(stated), rule)
        return made.text, None

    def _id_pairs(
        self, cells: _Cells, sent: Mapping[str, str], metadata: Mapping[str, str]
    ) -> list[tuple[str, str]]:
        """Return the id's columns with their values, and add an error for each blank one."""
        pairs = []
        own = dict(cells.columns.id_parts)
        for name in self._id_fields:
            if name in own:
                value = cells.values[own[name]]
            elif name.startswith(METADATA):
                value = metadata.get(name[len(METADATA) :], "")
            else:
                value = sent.get(name, "")
            header = cells.columns.header(name)
            if not value and all(error.column != header for error in cells.errors):
                cells.refuse(
                    name, "id_missing", "''", "must not be blank: the refund's id is made from it"
                )
            pairs.append((name, value))
        return pairs


def _metadata(cells: _Cells) -> dict[str, str]:
    """Return the row's own metadata: its columns, and the object that a JSON line may have."""
    metadata = {
        key: value for key, index in cells.columns.metadata if (value := cells.values[index])
    }
    if (index := cells.columns.metadata_object) is None:
        return metadata
    return _with_object(cells, metadata, cells.row.values[index])


def _with_object(cells: _Cells, metadata: dict[str, str], found: object) -> dict[str, str]:
    if found is None or found == "":
        return metadata
    if not isinstance(found, dict):
        cells.refuse(
            "metadata", "metadata_type", shown(found), "must be an object with text values"
        )
        return metadata
    merged = dict(metadata)
    for key, value in found.items():
        problem = cell_problem(value)
        if key in metadata:
            problem = (
                "duplicate_column",
                "occurs twice, in the metadata object and beside it: keep one",
            )
        if problem is not None:
            cells.errors.append(
                RowError(cells.row.line, f"{METADATA}{key}", problem[0], shown(value), problem[1])
            )
        elif (text := text_of(value)) is not None:
            merged[key] = text
    return dict(sorted(merged.items()))


def _sent_along(
    columns: Columns, values: Sequence[str], metadata: dict[str, str]
) -> dict[str, str]:
    """Return the columns that only make the id as metadata.

    All of them, or none if one does not fit.

    The result depends only on the columns of the id and on the row's own metadata, so equal rows
    have equal metadata in any file. It never makes a valid row invalid.
    """
    added: dict[str, str] = {}
    for key, index in columns.sent_along:
        value = values[index]
        if not value or len(value) > MAX_METADATA_VALUE_LENGTH or not value.isprintable():
            return {}
        if key not in metadata:
            added[key] = value
        elif metadata[key] != value:
            return {}
    return added if len(metadata) + len(added) <= MAX_METADATA_KEYS else {}


def _broken_rules(
    line: int,
    columns: Columns,
    invalid: InvalidRequest,
    metadata: Mapping[str, str],
    known: Sequence[RowError],
) -> Iterator[RowError]:
    """Yield the request's errors under the file's column names, unless a column already has one."""
    columns_with_error = {error.column for error in known}
    # A rule about a key names the key as its value; here each key is a column of its own.
    keys = {shown(key): f"{METADATA}{key}" for key in metadata}
    for error in invalid.errors:
        column = columns.header(
            keys.get(error.value, error.field) if error.field == "metadata" else error.field
        )
        if column not in columns_with_error:
            yield RowError(line, column, error.code, error.value, error.rule)


def _column_error(row: Row, problem: ColumnProblem) -> RowError:
    value = row.values[problem.position - 1] if problem.position is not None else ""
    return RowError(row.line, problem.column, problem.code, shown(value), problem.rule)
