"""Maps the columns of a file to fields.

Names in any order, known by documented aliases, mapped once for a whole file.

| field | names a file may use |
|---|---|
| refund_id | refund_id, refund, id |
| payment_intent | payment_intent, payment_intent_id, payment, pi |
| amount | amount, amount_minor |
| currency | currency, currency_code |
| reason | reason, refund_reason |
| metadata | metadata.KEY, one column a key; in JSON lines also an object |

Case does not matter, and spaces or hyphens may replace underscores, except in a metadata key.
`ImportOptions.columns` names the column of a field, whatever it is called. The columns that a
result file adds are skipped, and so are those that a file of failed rows begins with, because both
files are valid input.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Final, NamedTuple

from worker.importer.naming import candidates, column_option, field_like
from worker.model.request import MAX_METADATA_KEY_LENGTH, RESERVED_METADATA

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from worker.importer.options import ImportOptions

ALIASES: Final = {
    "refund_id": "refund_id",
    "refund": "refund_id",
    "id": "refund_id",
    "payment_intent": "payment_intent",
    "payment_intent_id": "payment_intent",
    "payment": "payment_intent",
    "pi": "payment_intent",
    "amount": "amount",
    "amount_minor": "amount",
    "currency": "currency",
    "currency_code": "currency",
    "reason": "reason",
    "refund_reason": "reason",
    "metadata": "metadata",
}
FIELDS: Final = ("refund_id", "payment_intent", "amount", "currency", "reason")
RESULT_COLUMNS: Final = (
    "refund_id",
    "status",
    "stage",
    "provider_refund_id",
    "error_code",
    "error_message",
    "attempts",
    "updated_at",
    "amount_refunded",
    "currency_refunded",
)
# Other exports have columns with these names, too. They are a result's columns only if all the
# others are present.
_REFUNDED: Final = frozenset({"amount_refunded", "currency_refunded"})
_SIGN_OF_RESULT: Final = frozenset(RESULT_COLUMNS) - _REFUNDED - {"refund_id"}
FAILED_COLUMNS: Final = ("line", "column", "code", "value", "rule")
OWN_COLUMN: Final = " (file)"
"""Appended to the name of the input's own column if a column with that name is written beside it.
"""
_METADATA: Final = "metadata."
_ANOTHER: Final = "another"
_BRACKET: Final = re.compile(r"[\[\]]")
_LISTED: Final = 20


USED_FOR_ID: Final = "id"
USED_BY_RESULT: Final = "result"
IGNORED: Final = "ignored"


class Use(NamedTuple):
    """A column's use: a field, `metadata.KEY`, `USED_FOR_ID`, `USED_BY_RESULT` or `IGNORED`.

    The use of a column that only makes the id and is sent along is `id, metadata.KEY`.
    """

    column: str
    use: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ColumnProblem:
    """Why a header is unusable: its name in the file, position from 1, a stable code, the rule."""

    column: str
    position: int | None = None
    code: str
    rule: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Columns:
    """The index of each field in a row.

    `names` are the file's own; `id_parts` are columns that only make the id.
    """

    names: tuple[str, ...]
    refund_id: int | None
    payment_intent: int | None
    amount: int | None
    currency: int | None
    reason: int | None
    metadata: tuple[tuple[str, int], ...]
    metadata_object: int | None
    id_parts: tuple[tuple[str, int], ...]
    sent_along: tuple[tuple[str, int], ...]
    """The `id_parts` if they are sent as metadata, which shows what made the id; else none."""
    indexes: Mapping[str, int]
    """Each used column's index, by field, `metadata.KEY`, or name if it only makes the id."""
    uses: tuple[Use, ...]
    """Every column in the file's order, without the leading columns of a file of failed rows."""
    problems: tuple[ColumnProblem, ...]

    def header(self, field: str) -> str:
        """Return the file's name for a field, or the field's own if the file has no such column."""
        return self.names[self.indexes[field]].strip() if field in self.indexes else field


def plain_name(name: str) -> str:
    """Return a column's name for comparison: lower case, underscores for spaces and hyphens."""
    return "_".join(name.lower().replace("-", " ").split())


def field_of(name: str) -> str:
    """Return the field, `metadata.KEY`, or normalized name that a column's name means by itself."""
    name = name.strip()
    if name[: len(_METADATA)].lower() == _METADATA:
        return _METADATA + name[len(_METADATA) :]
    plain = plain_name(name)
    return ALIASES.get(plain, plain)


def is_settable(field: str) -> bool:
    """Return whether a column can be named for this field: one of `FIELDS`, or `metadata.KEY`."""
    return field in FIELDS or (field.startswith(_METADATA) and len(field) > len(_METADATA))


def fields_of(names: Iterable[str], options: ImportOptions) -> list[str]:
    """Return the field, `metadata.KEY` or normalized name that each name means by the options."""
    named = _field_by_column(options)
    taken = set(named.values())
    fields = []
    for name in names:
        field = named.get(plain_name(name)) or field_of(name)
        # If another column was named for this field, this one gets a name that no column can have:
        # it has a space.
        fields.append(
            f"{_ANOTHER} {field}" if field in taken and plain_name(name) not in named else field
        )
    return fields


def _field_by_column(options: ImportOptions) -> Mapping[str, str]:
    return {plain_name(header): field for field, header in options.columns}


def id_fields(options: ImportOptions) -> tuple[str, ...]:
    """Return the fields and columns that make the id, in the order of the digest."""
    named = _field_by_column(options)
    return tuple(
        sorted({named.get(plain_name(name)) or field_of(name) for name in options.id_from})
    )


def columns_of(names: tuple[str, ...], options: ImportOptions, *, objects: bool) -> Columns:
    """Return the index of each field under these names, and every problem of the names.

    `objects` means that each row names its own fields, as JSON lines do: a field may then be
    missing, and a column `metadata` holds an object.
    """
    fields = _fields_in(names, options)
    skipped, ours = _skipped(fields), result_columns(fields)
    wanted = id_fields(options)
    sent_along = _sent_along(wanted)
    indexes: dict[str, int] = {}
    problems: list[ColumnProblem] = []
    extra: dict[str, int] = {}
    uses: list[Use] = []
    for index, (name, field) in enumerate(zip(names, fields, strict=True)):
        if field is None:
            continue
        usable = (
            field in FIELDS
            or (objects and field == "metadata")
            or field.startswith(_METADATA)
            or field in wanted
        )
        known = usable or field in skipped
        unused = USED_BY_RESULT if field in ours else IGNORED
        uses.append(Use(name.strip(), _use(field, sent_along) if usable else unused))
        if not known and options.ignore_extra:
            continue
        if not field:
            rule = "has no name: name it, or remove it"
            problems.append(
                ColumnProblem(column=name, position=index + 1, code="unnamed_column", rule=rule)
            )
        elif (first := (indexes | extra).get(field)) is not None:
            rule = f"has the same meaning as column {names[first]!r}: keep one of them"
            problems.append(
                ColumnProblem(column=name, position=index + 1, code="duplicate_column", rule=rule)
            )
        elif not known:
            rule = _unknown(name, field, fields, options)
            rule += f"; {IGNORE_HINT}" if objects else ""
            problems.append(
                ColumnProblem(column=name, position=index + 1, code="unknown_column", rule=rule)
            )
        elif usable:
            indexes[field] = index
        else:
            extra[field] = index
    problems += _unit_problem(names, fields, options)
    problems += _missing(names, indexes, options, wanted, objects=objects)
    return Columns(
        names=names,
        refund_id=indexes.get("refund_id"),
        payment_intent=indexes.get("payment_intent"),
        amount=indexes.get("amount"),
        currency=indexes.get("currency"),
        reason=indexes.get("reason"),
        metadata=tuple(
            sorted(
                (f[len(_METADATA) :], at) for f, at in indexes.items() if f.startswith(_METADATA)
            )
        ),
        metadata_object=indexes.get("metadata"),
        id_parts=tuple((f, indexes[f]) for f in wanted if f in indexes and not _sent(f)),
        sent_along=tuple((f, indexes[f]) for f in sent_along if f in indexes),
        indexes=indexes,
        uses=tuple(uses),
        problems=tuple(problems),
    )


def result_columns(fields: Iterable[str | None]) -> frozenset[str]:
    """Return the columns that a result wrote into a file with these fields.

    The others are the file's own.
    """
    return frozenset(RESULT_COLUMNS) if set(fields) >= _SIGN_OF_RESULT else frozenset({"refund_id"})


def is_of_errors(names: Sequence[str]) -> bool:
    """Return whether columns with these names are those of a file of failed rows."""
    return tuple(map(field_of, names[: len(FAILED_COLUMNS)])) == FAILED_COLUMNS


def is_of_results(names: Sequence[str]) -> bool:
    """Return whether columns with these names are those of a result file."""
    return set(map(field_of, names)) >= _SIGN_OF_RESULT


def _skipped(fields: Iterable[str | None]) -> frozenset[str]:
    """Return the columns skipped in a file with these fields, even without `ignore_extra`."""
    fields = set(fields)
    if fields >= _SIGN_OF_RESULT:
        return frozenset(RESULT_COLUMNS) | {
            plain_name(f"{column}{OWN_COLUMN}") for column in RESULT_COLUMNS
        }
    return frozenset(RESULT_COLUMNS) - _REFUNDED


def _sent_along(wanted: tuple[str, ...]) -> tuple[str, ...]:
    """Return the columns that only make the id if all of them can be metadata keys, else none."""
    keys = tuple(field for field in wanted if not _sent(field))
    fit = all(
        len(key) <= MAX_METADATA_KEY_LENGTH and key.isprintable() and not _BRACKET.search(key)
        for key in keys
    )
    return keys if fit and RESERVED_METADATA.isdisjoint(keys) else ()


def _use(field: str, sent_along: tuple[str, ...]) -> str:
    if _sent(field) or field == "metadata":
        return field
    return f"{USED_FOR_ID}, {_METADATA}{field}" if field in sent_along else USED_FOR_ID


def _fields_in(names: tuple[str, ...], options: ImportOptions) -> tuple[str | None, ...]:
    """Return the field of each name, None for the leading columns of a file of failed rows."""
    if not is_of_errors(names):
        return tuple(fields_of(names, options))
    leading = len(FAILED_COLUMNS)
    return (*[None] * leading, *fields_of(map(_own, names[leading:]), options))


def _own(name: str) -> str:
    """Return the name that the input's own column had before rows with errors were written.

    An id may be made from its column `line`, which is not the file's line number.
    """
    before = name.strip().removesuffix(OWN_COLUMN)
    return before if field_of(before) in FAILED_COLUMNS else name


IGNORE_HINT: Final = (
    f"known columns are {', '.join(FIELDS)} and metadata.KEY; to skip other columns, use"
    " --ignore-extra"
)


def _unknown(name: str, field: str, fields: tuple[str | None, ...], options: ImportOptions) -> str:
    """Return why a column with an unknown name is refused, and which field it may be."""
    if field.startswith(_ANOTHER):
        found = field.removeprefix(_ANOTHER).strip()
        header = next(header for named, header in options.columns if named == found)
        return f"is not used because --column names {header.strip()!r} for the {found}"
    if field == "metadata":
        return "is not a known column: use one column metadata.KEY for each key"
    like = field_like(name)
    if like is not None and like not in fields:
        return f"is not a known column: if it is the {like}, use {column_option(like, name)}"
    return "is not a known column"


def _sent(field: str) -> bool:
    return field in FIELDS or field.startswith(_METADATA)


def _unit_problem(
    names: tuple[str, ...], fields: tuple[str | None, ...], options: ImportOptions
) -> list[ColumnProblem]:
    if options.amount_unit != "major":
        return []
    rule = (
        "states minor units, but the option is --amount-unit major: rename the column if its"
        " amounts are in major units"
    )
    return [
        ColumnProblem(column=name, position=position, code="amount_unit", rule=rule)
        for position, (name, field) in enumerate(zip(names, fields, strict=True), 1)
        if field == "amount" and "minor" in name.lower()
    ]


def _missing(
    names: tuple[str, ...],
    indexes: Mapping[str, int],
    options: ImportOptions,
    wanted: tuple[str, ...],
    *,
    objects: bool,
) -> list[ColumnProblem]:
    if objects:
        return []
    rules: dict[str, str] = {}
    headers = {plain_name(name) for name in names}
    for field, header in options.columns:
        if plain_name(header) not in headers:
            near = get_close_matches(plain_name(header), headers, n=1)
            found = next(
                (name.strip() for name in names if near and plain_name(name) == near[0]), None
            )
            rules[header] = f"is not in the file, but --column names it for the {field}"
            rules[header] += (
                f"; did you mean {found!r}?" if found else f": the columns are {_listed(names)}"
            )
    named = {field for field, _ in options.columns}
    if "payment_intent" not in indexes and "payment_intent" not in named:
        rules["payment_intent"] = "is missing: a refund needs the payment's id"
    if "refund_id" not in indexes and "refund_id" not in named and not options.id_from:
        rules["refund_id"] = (
            "is missing: give each refund its own id, or make ids from columns with --id-from"
        )
    for field in wanted:
        if field not in indexes and field not in rules:
            rules[field] = "is missing: --id-from makes the refund's id from it"
    unused = [name for name in names if field_of(name) not in FIELDS]
    for field, rule in rules.items():
        if options.ignore_extra and (like := candidates(field, unused)):
            rules[field] = (
                f"{rule}; if it is {like[0].strip()!r}, use {column_option(field, like[0])}"
            )
    return [
        ColumnProblem(column=column, code="missing_column", rule=rule)
        for column, rule in rules.items()
    ]


def _listed(names: tuple[str, ...]) -> str:
    shown = ", ".join(repr(name.strip()) for name in names[:_LISTED])
    return f"{shown} and {len(names) - _LISTED} more" if len(names) > _LISTED else shown
