"""How a file is read: by options, or as detected from the file.

It is stored with the batch, so that the file can be read the same way again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import fields
from difflib import get_close_matches
from typing import Any, Final

from worker.errors import GuardRefused, InputError
from worker.file_import.limits import Unusable
from worker.importer import (
    DELIMITERS,
    FIELDS,
    ImportOptions,
    Source,
    delimiter_of,
    describe,
    field_of,
    is_settable,
)
from worker.model.currencies import AmountUnit

DELIMITER_OF: Final = {name: character for character, name in DELIMITERS.items()}
_OPTIONS: Final = frozenset(field.name for field in fields(ImportOptions))
_KINDS: Final = {"xlsx": "a workbook", "csv": "a CSV"}


class UnknownReading(GuardRefused):
    """A newer version began a batch, whose file this version cannot read in the same way."""

    def __init__(self) -> None:
        super().__init__(
            "a newer version began this batch, and reads its file in a way that this version does"
            " not know: use the newer version"
        )


def columns_of(texts: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """Return `FIELD="Header"`, once for each field, as pairs. Raises `Unusable`."""
    pairs: dict[str, str] = {}
    for text in texts:
        name, equals, header = text.partition("=")
        field = field_of(name)
        if not equals or not is_settable(field):
            near = get_close_matches(field, FIELDS, n=1)
            meant = f"; did you mean {near[0]}?" if near and equals else ""
            rule = (
                f'must be FIELD="Header", with FIELD one of {", ".join(FIELDS)} or'
                f" metadata.KEY{meant}"
            )
            raise Unusable(repr(text), rule)
        if field in pairs:
            raise Unusable(f"{text!r}:", f"{field} is given twice, name one column for it")
        pairs[field] = header.strip()
    return tuple(pairs.items())


def unfitting(source: Source) -> str | None:
    """Return why an option does not apply to the file's format, None if all do.

    The user meant another file or format.
    """
    options = source.options
    for option, value, fitting in (
        ("--sheet", options.sheet, "xlsx"),
        ("--delimiter", options.delimiter, "csv"),
    ):
        if value is not None and source.format != fitting:
            return (
                f"{option} applies only to {_KINDS[fitting]}, but {source.name} is read as"
                f" {describe(source)}: leave the option out, or name another file"
            )
    return None


def stored_reading(source: Source) -> str:
    """Return as JSON how a file was read, detected values included, to read the same rows again."""
    options = source.options
    kept: dict[str, Any] = {
        "format": source.format,
        "delimiter": delimiter_of(source),
        "sheet": options.sheet,
        "columns": options.columns,
        "id_from": list(options.id_from),
        "attempt": options.attempt if options.attempt > 1 else None,
        "amount_unit": options.amount_unit if options.amount_unit != "minor" else None,
        "decimal": options.decimal if options.decimal != "point" else None,
        "default_currency": options.default_currency,
        "ignore_extra": options.ignore_extra,
    }
    return json.dumps({name: value for name, value in kept.items() if value}, sort_keys=True)


def reading_of(stored: str) -> ImportOptions:
    """Return how to read the file of a batch, from what the batch stored.

    Raises `UnknownReading`.
    """
    kept: dict[str, Any] = json.loads(stored) if stored else {}
    if not _OPTIONS.issuperset(kept):
        raise UnknownReading
    columns = tuple((field, header) for field, header in kept.pop("columns", ()))
    try:
        return ImportOptions(
            **{**kept, "columns": columns, "id_from": tuple(kept.get("id_from", ()))}
        )
    except InputError:
        raise UnknownReading from None


def unit_of(stored: str) -> AmountUnit:
    """Return the unit in which to show the amounts of a batch: minor if that is not known."""
    try:
        return reading_of(stored).amount_unit
    except UnknownReading:
        return "minor"
