"""One row to one request, or to every rule it breaks; how ids are made from columns says `ids`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from worker.errors import InvalidRequest
from worker.importer.amounts import AmountProblem, decimals_of, grouping_of, parse_amount
from worker.importer.cells import cell_problem, decimal_text, text_of
from worker.importer.columns import columns_of, id_fields, plain_name
from worker.importer.ids import METADATA, MadeId, base_of, made_id, sent_fields
from worker.model.request import MAX_METADATA_KEYS, MAX_METADATA_VALUE_LENGTH, RefundRequest, shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from worker.importer.columns import ColumnProblem, Columns
    from worker.importer.formats import Row
    from worker.importer.sources import Source

_PLANS: Final = 256
_USES: Final = 500
_ALWAYS_IN_RANGE: Final = 12
_GROUPINGS: Final = {".": "points between its thousands", " ": "spaces between its thousands", "": "nothing there"}
_WHOLE_AMOUNT: Final = "must be whole minor units such as 1050; for amounts such as 10.50 say --amount-unit major"


class RowError(NamedTuple):
    """One broken rule of one row: `column` is the file's own name for it, `value` is shortened."""

    line: int
    column: str
    code: str
    value: str
    rule: str


class Candidate(NamedTuple):
    """A row that breaks no rule by itself. `occurrence` is None where rows equal to it have to be counted first.

    `occurrence` 0 says that the id is the file's own. Otherwise the request carries the derived id without its
    occurrence.
    """

    line: int
    request: RefundRequest
    occurrence: int | None


def requests_of(rows: Iterable[Row], source: Source) -> Iterator[Candidate | tuple[RowError, ...]]:
    """Yield for each row its request or all of its errors, knowing nothing of the other rows."""
    reader = RequestReader(source)
    for row in rows:
        yield reader.read(row)


class RequestReader:
    """Makes requests of a source's rows; what the columns mean is found out once for each header."""

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
        """What each column is used as, of all headers so far; of very many names the first ones."""
        self._unmet = {plain_name(header): header for _, header in source.options.columns}
        self._columns: Columns | None = None

    def columns(self, names: tuple[str, ...]) -> Columns:
        """Return where the fields stand under these names."""
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
        """Refuse a column that was named for a field and is in no line; raises `InputError`."""
        for header in self._unmet.values():
            raise self._source.problem(f"no line has {header.strip()!r}, which --column names: name it as the lines do")

    def read(self, row: Row) -> Candidate | tuple[RowError, ...]:
        """Return the row's request, or every rule that the row breaks by itself."""
        columns = self.columns(row.names)
        errors = [_column_error(row, problem) for problem in columns.problems]
        values: Sequence[str] = row.values if self._plain else self._texts(row, columns, errors)  # type: ignore[assignment]
        currency = (values[columns.currency] if columns.currency is not None else "") or self._default_currency
        amount = None
        if columns.amount is not None and (text := values[columns.amount]):
            # Twelve digits are always in range; everything else is looked at slowly.
            if self._minor and len(text) <= _ALWAYS_IN_RANGE and text.isascii() and text.isdigit() and int(text):
                amount = int(text)
            else:
                parsed = self._amount(row, columns.amount, text, currency)
                if isinstance(parsed, int):
                    amount = parsed
                else:
                    errors.append(RowError(row.line, columns.header("amount"), parsed.code, shown(text), parsed.rule))
        metadata = {key: value for key, place in columns.metadata if (value := values[place])}
        if columns.metadata_object is not None:
            metadata = _with_object(metadata, row, columns, errors)
        refund_id = values[columns.refund_id] if columns.refund_id is not None else ""
        payment = values[columns.payment_intent] if columns.payment_intent is not None else ""
        reason = values[columns.reason] if columns.reason is not None else ""
        occurrence: int | None = 0
        if self._id_fields:
            sent = sent_fields(payment, amount, currency, reason)
            pairs = self._id_pairs(row.line, columns, values, sent, metadata, errors)
            refund_id, occurrence = self._identified(row.line, columns, refund_id, pairs, errors)
            if columns.sent_along:
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

    def _amount(self, row: Row, place: int, text: str, currency: str) -> int | AmountProblem:
        """Return an amount in minor units; raises `InputError` if the file writes its thousands in two ways."""
        options = self._options
        if self._plain or isinstance(row.values[place], str):
            parsed = parse_amount(text, options.amount_unit, currency or None, options.decimal)
            if options.decimal == "comma" and isinstance(parsed, int):
                self._require_one_grouping(row, place, text)
            return parsed
        # A number is not written in any way: its decimals are known, and none of them separates thousands.
        parsed = parse_amount(text, options.amount_unit, currency or None)
        if isinstance(parsed, AmountProblem) and parsed.code == "amount_decimals":
            exact = f"{decimals_of(currency.lower())} decimals of {currency.upper()}"
            return parsed._replace(rule=f"is more exact than the {exact}: round it in the file, or give it as text")
        return parsed

    def _require_one_grouping(self, row: Row, place: int, text: str) -> None:
        if (grouping := grouping_of(text)) is None:
            return
        if self._grouping is None:
            self._grouping = grouping, row.line, text
        first, line, before = self._grouping
        if grouping != first:
            raise self._source.problem(
                f"the amount {shown(text)} has {_GROUPINGS[grouping]}, and {shown(before)} on line {line} has "
                f"{_GROUPINGS[first]}: write all of them in one way; nothing is guessed",
                line=row.line,
                column=place + 1,
            )

    def _texts(self, row: Row, columns: Columns, errors: list[RowError]) -> Sequence[str]:
        texts = [""] * len(row.values)
        places = [columns.refund_id, columns.payment_intent, columns.amount, columns.currency, columns.reason]
        places += [place for _, place in (*columns.metadata, *columns.id_parts)]
        for place in places:
            if place is None:
                continue
            value = row.values[place]
            problem = cell_problem(value)
            if place == columns.amount and type(value) is float:
                text = None if self._minor else decimal_text(value)
                if text is not None:
                    texts[place] = text
                    continue
                if problem is not None and problem[0] == "not_whole":
                    problem = problem[0], _WHOLE_AMOUNT
            if problem is not None:
                errors.append(RowError(row.line, row.names[place].strip(), problem[0], shown(value), problem[1]))
            else:
                texts[place] = text_of(value) or ""
        return texts

    def _id_pairs(
        self,
        line: int,
        columns: Columns,
        values: Sequence[str],
        sent: Mapping[str, str],
        metadata: Mapping[str, str],
        errors: list[RowError],
    ) -> list[tuple[str, str]]:
        pairs = []
        own = dict(columns.id_parts)
        for name in self._id_fields:
            if name in own:
                value = values[own[name]]
            elif name.startswith(METADATA):
                value = metadata.get(name[len(METADATA) :], "")
            else:
                value = sent.get(name, "")
            if not value and all(error.column != columns.header(name) for error in errors):
                rule = "must not be blank: the refund's id is made from it"
                errors.append(RowError(line, columns.header(name), "id_missing", "''", rule))
            pairs.append((name, value))
        return pairs

    def _identified(
        self, line: int, columns: Columns, stated: str, pairs: list[tuple[str, str]], errors: list[RowError]
    ) -> tuple[str, int | None]:
        """Return the id that the pairs make, and the occurrence if the row states it; a stated id must be this one.

        The id of an earlier attempt, as a result file states it, becomes that of the attempt that is made now.
        """
        made = MadeId(base_of(pairs), self._options.attempt)
        if not stated:
            return made.text, None
        said = made_id(stated)
        if said is not None and said.base == made.base:
            return made._replace(attempt=max(said.attempt, made.attempt)).text, said.occurrence
        # What the id is made from may itself be what is wrong: then nothing can be said of the id.
        if not errors:
            rule = f"is not the id made from the columns, {made.text}: clear it, or import without making ids"
            errors.append(RowError(line, columns.header("refund_id"), "refund_id_mismatch", shown(stated), rule))
        return made.text, None


def _sent_along(columns: Columns, values: Sequence[str], metadata: dict[str, str]) -> dict[str, str]:
    """Return what the id is made from as metadata: all of it, or nothing where part of it does not fit.

    It depends on nothing but what the id and the row's own metadata are made from, so that the same row says the same
    in any file; and it makes no row invalid that was valid without it.
    """
    added: dict[str, str] = {}
    for key, place in columns.sent_along:
        value = values[place]
        if not value or len(value) > MAX_METADATA_VALUE_LENGTH or not value.isprintable():
            return {}
        if key not in metadata:
            added[key] = value
        elif metadata[key] != value:
            return {}
    return added if len(metadata) + len(added) <= MAX_METADATA_KEYS else {}


def _broken_rules(
    line: int, columns: Columns, invalid: InvalidRequest, metadata: Mapping[str, str], told: Sequence[RowError]
) -> Iterator[RowError]:
    """Yield what the request's own rules say, under the file's names, of columns of which nothing was told yet."""
    told_columns = {error.column for error in told}
    # A rule about a key names the key as its value; here each key is a column of its own.
    keys = {shown(key): f"{METADATA}{key}" for key in metadata}
    for error in invalid.errors:
        column = columns.header(keys.get(error.value, error.field) if error.field == "metadata" else error.field)
        if column not in told_columns:
            yield RowError(line, column, error.code, error.value, error.rule)


def _column_error(row: Row, problem: ColumnProblem) -> RowError:
    value = row.values[problem.place - 1] if problem.place is not None else ""
    return RowError(row.line, problem.column, problem.code, shown(value), problem.rule)


def _with_object(metadata: dict[str, str], row: Row, columns: Columns, errors: list[RowError]) -> dict[str, str]:
    place = columns.metadata_object
    found = row.values[place] if place is not None else None
    if found is None or found == "":
        return metadata
    if not isinstance(found, dict):
        rule = "must be an object of text values"
        errors.append(RowError(row.line, columns.header("metadata"), "metadata_type", shown(found), rule))
        return metadata
    merged = dict(metadata)
    for key, value in found.items():
        name = f"{METADATA}{key}"
        if key in metadata:
            rule = "is given twice, in the object and beside it: keep one"
            errors.append(RowError(row.line, name, "duplicate_column", shown(value), rule))
        elif (problem := cell_problem(value)) is not None:
            errors.append(RowError(row.line, name, problem[0], shown(value), problem[1]))
        elif (text := text_of(value)) is not None:
            merged[key] = text
    return dict(sorted(merged.items()))
