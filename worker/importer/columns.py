"""Which column is which: names in any order, known by documented aliases, told once for a whole file.

| field | names a file may use |
|---|---|
| refund_id | refund_id, refund, id |
| payment_intent | payment_intent, payment_intent_id, payment, pi |
| amount | amount, amount_minor |
| currency | currency, currency_code |
| reason | reason, refund_reason |
| metadata | metadata.KEY, one column a key; in JSON lines also an object |

Case, and spaces or hyphens for underscores, make no difference, except in a metadata key. The columns that a result
file adds are read over, and those that a file of failed rows begins with: both are themselves valid input.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

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
)
FAILED_COLUMNS: Final = ("line", "column", "code", "value", "rule")
OWN_COLUMN: Final = " (file)"
"""What a file of failed rows appends to the input's own column where it is called like one of `FAILED_COLUMNS`."""
_METADATA: Final = "metadata."


@dataclass(frozen=True, kw_only=True, slots=True)
class ColumnProblem:
    """Why a header cannot be used: the name as the file has it, its place from 1, a stable code, and the rule."""

    column: str
    place: int | None = None
    code: str
    rule: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Columns:
    """Where each field stands in a row. `names` are the file's own; `id_parts` are columns that only make the id."""

    names: tuple[str, ...]
    refund_id: int | None
    payment_intent: int | None
    amount: int | None
    currency: int | None
    reason: int | None
    metadata: tuple[tuple[str, int], ...]
    metadata_object: int | None
    id_parts: tuple[tuple[str, int], ...]
    places: Mapping[str, int]
    """Every column in use: by field, `metadata.KEY`, or the name of a column that only makes the id."""
    problems: tuple[ColumnProblem, ...]

    def header(self, field: str) -> str:
        """Return the file's own name for a field, or the field's name if the file has no such column."""
        return self.names[self.places[field]].strip() if field in self.places else field


def field_of(name: str) -> str:
    """Return the field, `metadata.KEY`, or normalized name that a column's name stands for."""
    name = name.strip()
    if name[: len(_METADATA)].lower() == _METADATA:
        return _METADATA + name[len(_METADATA) :]
    plain = "_".join(name.lower().replace("-", " ").split())
    return ALIASES.get(plain, plain)


def id_fields(options: ImportOptions) -> tuple[str, ...]:
    """Return the fields and columns that make the id, in the order in which they are digested."""
    return tuple(sorted({field_of(name) for name in options.id_from}))


def columns_of(names: tuple[str, ...], options: ImportOptions, *, objects: bool) -> Columns:
    """Return where the fields stand under these names, with every problem of the names.

    `objects` says that each row names its own fields, as JSON lines do: then a field may be missing, and a column
    `metadata` holds an object.
    """
    fields = _fields_of(names)
    wanted = id_fields(options)
    places: dict[str, int] = {}
    problems: list[ColumnProblem] = []
    extra: dict[str, int] = {}
    for place, (name, field) in enumerate(zip(names, fields, strict=True)):
        if field is None:
            continue
        usable = field in FIELDS or (objects and field == "metadata") or field.startswith(_METADATA) or field in wanted
        known = usable or field in RESULT_COLUMNS
        if not known and options.ignore_extra:
            continue
        if not field:
            rule = "has no name: name it, or remove it"
            problems.append(ColumnProblem(column=name, place=place + 1, code="unnamed_column", rule=rule))
        elif (first := (places | extra).get(field)) is not None:
            rule = f"says the same as column {names[first]!r}: keep one of them"
            problems.append(ColumnProblem(column=name, place=place + 1, code="duplicate_column", rule=rule))
        elif not known:
            hint = "give one column metadata.KEY for each key" if field == "metadata" else _KNOWN
            rule = f"is no known column: {hint}, or ignore extra columns (--ignore-extra)"
            problems.append(ColumnProblem(column=name, place=place + 1, code="unknown_column", rule=rule))
        elif usable:
            places[field] = place
        else:
            extra[field] = place
    problems += _unit_problem(names, fields, options)
    problems += _missing(places, options, wanted, objects=objects)
    return Columns(
        names=names,
        refund_id=places.get("refund_id"),
        payment_intent=places.get("payment_intent"),
        amount=places.get("amount"),
        currency=places.get("currency"),
        reason=places.get("reason"),
        metadata=tuple(sorted((f[len(_METADATA) :], at) for f, at in places.items() if f.startswith(_METADATA))),
        metadata_object=places.get("metadata"),
        id_parts=tuple((f, places[f]) for f in wanted if f in places and not _sent(f)),
        places=places,
        problems=tuple(problems),
    )


def _fields_of(names: tuple[str, ...]) -> tuple[str | None, ...]:
    """Return the field of each name; None for what a file of failed rows tells of its rows."""
    fields = tuple(map(field_of, names))
    told = len(FAILED_COLUMNS)
    if fields[:told] != FAILED_COLUMNS:
        return fields
    # A line of an order must not be mistaken for the line of a file: an id may be made from it.
    return (*[None] * told, *(field_of(name.strip().removesuffix(OWN_COLUMN)) for name in names[told:]))


_KNOWN: Final = "known are refund_id, payment_intent, amount, currency, reason and metadata.KEY"


def _sent(field: str) -> bool:
    return field in FIELDS or field.startswith(_METADATA)


def _unit_problem(
    names: tuple[str, ...], fields: tuple[str | None, ...], options: ImportOptions
) -> list[ColumnProblem]:
    if options.amount_unit != "major":
        return []
    rule = "states minor units, and amounts were said to be in major units"
    return [
        ColumnProblem(column=name, place=place, code="amount_unit", rule=rule)
        for place, (name, field) in enumerate(zip(names, fields, strict=True), 1)
        if field == "amount" and "minor" in name.lower()
    ]


def _missing(
    places: Mapping[str, int], options: ImportOptions, wanted: tuple[str, ...], *, objects: bool
) -> list[ColumnProblem]:
    if objects:
        return []
    problems = []
    if "payment_intent" not in places:
        rule = "is missing: a refund needs the payment's id, in a column payment_intent"
        problems.append(ColumnProblem(column="payment_intent", code="missing_column", rule=rule))
    if "refund_id" not in places and not options.id_from:
        rule = "is missing: give each refund its own id, or say from which columns to make it (--id-from)"
        problems.append(ColumnProblem(column="refund_id", code="missing_column", rule=rule))
    for field in wanted:
        if field not in places:
            rule = "is missing: the refund's id is to be made from it"
            problems.append(ColumnProblem(column=field, code="missing_column", rule=rule))
    return problems
