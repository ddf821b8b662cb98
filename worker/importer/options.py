"""The options of an import, checked before the file is opened."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal, get_args

from worker.errors import InputError
from worker.importer.columns import FIELDS, RESULT_COLUMNS, id_fields, is_settable, plain_name
from worker.importer.ids import MOST_ATTEMPTS
from worker.model.currencies import AmountUnit

Format = Literal["csv", "jsonl", "xlsx"]
DecimalMark = Literal["point", "comma"]

FORMATS: Final[tuple[Format, ...]] = get_args(Format)
DELIMITERS: Final = {",": "comma", ";": "semicolon", "\t": "tab"}
# Blank, the id itself, columns that a result adds to a file, or many values in one.
_NO_IDENTITY: Final = frozenset({"", "metadata", *RESULT_COLUMNS})
_CURRENCY: Final = re.compile(r"[A-Za-z]{3}")


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """How a file is read; a `format` or `delimiter` of None is detected from the file and reported.

    `columns` are pairs of a field and the name of its column, for names that are not known.
    `id_from` names the columns that make a refund's id if the file has no ids of its own. `attempt`
    2 makes new ids from the same columns, for rows that failed and were fixed. With `decimal`
    "comma" amounts in major units are written as `10,50`, `1.234,50` or `1 234,50`.
    `default_currency` replaces a blank currency cell. `sheet` names a sheet of a workbook; it can
    be None if only one sheet has rows.

    `max_unpacked_bytes` limits the unpacked size of a gzipped file, a workbook or stdin;
    `max_row_bytes` limits one row. A workbook is held in memory while it is read:
    `max_workbook_bytes` limits its unpacked size, and `max_workbook_cells` the rectangle from A1 to
    its last cell.
    """

    format: Format | None = None
    delimiter: str | None = None
    sheet: str | None = None
    columns: tuple[tuple[str, str], ...] = ()
    id_from: tuple[str, ...] = ()
    attempt: int = 1
    amount_unit: AmountUnit = "minor"
    decimal: DecimalMark = "point"
    default_currency: str | None = None
    ignore_extra: bool = False
    max_unpacked_bytes: int = 2**30
    max_row_bytes: int = 2**20
    max_workbook_bytes: int = 96 * 2**20
    max_workbook_cells: int = 1_500_000

    def __post_init__(self) -> None:
        if self.format is not None and self.format not in FORMATS:
            raise InputError(
                f"the format {self.format!r} is unknown: use one of {', '.join(FORMATS)}"
            )
        if self.delimiter is not None and self.delimiter not in DELIMITERS:
            raise InputError(
                f"the delimiter {self.delimiter!r} is not supported: use comma, semicolon or tab"
            )
        if self.amount_unit not in get_args(AmountUnit):
            raise InputError(f"the amount unit {self.amount_unit!r} is unknown: use minor or major")
        if self.decimal not in get_args(DecimalMark):
            raise InputError(f"the decimal mark {self.decimal!r} is unknown: use point or comma")
        if self.decimal != "point" and self.amount_unit != "major":
            raise InputError(
                "a decimal comma needs amounts in major units (--amount-unit major): minor units"
                " have no decimals"
            )
        self._check_columns()
        self._check_ids()
        if self.default_currency is not None:
            if _CURRENCY.fullmatch(self.default_currency) is None:
                raise InputError(
                    f"the currency {self.default_currency!r} is not a three-letter ISO code such"
                    " as usd"
                )
            object.__setattr__(self, "default_currency", self.default_currency.lower())

    def _check_ids(self) -> None:
        if not 1 <= self.attempt <= MOST_ATTEMPTS:
            raise InputError(
                f"the attempt {self.attempt} is out of range: use 1 to {MOST_ATTEMPTS}"
            )
        if self.attempt > 1 and not self.id_from:
            raise InputError(
                f"attempt {self.attempt} needs ids made from columns: use --id-from, or give the"
                " rows new ids"
            )
        for name in id_fields(self):
            if name in _NO_IDENTITY:
                raise InputError(f"a refund's id cannot be made from the column {name!r}")

    def _check_columns(self) -> None:
        for index, (field, header) in enumerate(self.columns):
            name = plain_name(header)
            if not is_settable(field):
                raise InputError(
                    f"the field {field!r} is unknown: use one of {', '.join(FIELDS)} or"
                    " metadata.KEY"
                )
            if not name:
                raise InputError(
                    f'the name of the column for {field} is empty: use --column {field}="Name in'
                    ' the file"'
                )
            # Each result overwrites these columns, so the file's own values would be lost.
            if name in RESULT_COLUMNS and name != "refund_id":
                raise InputError(
                    f"the column {header!r} has the name of a result column: rename it in the file"
                )
            for other, taken in self.columns[:index]:
                if other == field or plain_name(taken) == name:
                    raise InputError(
                        f"{field} or the column {header!r} is named twice: name one column for each"
                        " field"
                    )
