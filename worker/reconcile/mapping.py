"""How the provider's file is to be read: stated once, and kept in a TOML file.

[columns]                    # our field = the file's column
id = "Refund ID"
[status]                     # the file's word = ours
"Paid out" = "succeeded"
[file]
amount_unit = "major"
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from worker.errors import InputError

FIELDS: Final = (
    "id",
    "payment_intent",
    "amount",
    "currency",
    "status",
    "created",
    "metadata.refund_id",
)
STATUSES: Final = ("succeeded", "pending", "failed", "canceled")
CHOICES: Final[Mapping[str, tuple[str, ...]]] = {
    "amount_unit": ("minor", "major"),
    "decimal": ("point", "comma"),
    "sign": ("positive", "negative"),
}
"""The values that each setting of `[file]` may have."""
_TEXTS: Final = ("currency", "tz", "status")
_LONGEST: Final = 100_000


class MappingError(ValueError):
    """A mapping that cannot be used; its text is the rule."""


@dataclass(frozen=True, kw_only=True)
class ExportMapping:
    """Columns by our field, statuses by the file's word, and how amounts and times are written."""

    columns: Mapping[str, str] = field(default_factory=dict)
    statuses: Mapping[str, str] = field(default_factory=dict)
    file: Mapping[str, str] = field(default_factory=dict)

    def with_(
        self,
        *,
        columns: Mapping[str, str],
        statuses: Mapping[str, str],
        file: Mapping[str, str],
    ) -> ExportMapping:
        """Return this mapping with others before it."""
        return ExportMapping(
            columns={**self.columns, **columns},
            statuses={**self.statuses, **statuses},
            file={**self.file, **file},
        )


def pairs(
    texts: Iterable[str], names: Iterable[str] | None, values: Iterable[str] | None
) -> dict[str, str]:
    """Return `our=theirs` or `theirs=ours` texts as pairs. Raises `MappingError`."""
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not equals or not name or not value:
            raise MappingError(f"{text!r} must be written as NAME=VALUE")
        _check(name, names, text)
        _check(value, values, text)
        if name in found:
            raise MappingError(f"{text!r}: {name} is given twice, give it once")
        found[name] = value
    return found


def _check(name: str, known: Iterable[str] | None, text: str) -> None:
    if known is not None and name not in known:
        raise MappingError(f"{text!r}: {name!r} is not one of {', '.join(known)}")


def read(path: Path) -> ExportMapping:
    """Return the mapping in a file. Raises `InputError` if it cannot be used."""
    try:
        with path.open("rb") as file:
            text = file.read(_LONGEST + 1)
        if len(text) > _LONGEST:
            raise _wrong(path, f"is longer than {_LONGEST:,} bytes: is it the mapping?")
        tables = tomllib.loads(text.decode("utf-8"))
    except OSError as error:
        raise _wrong(path, f"cannot be read ({error.strerror}): name another file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise _wrong(path, f"is not valid TOML: {error}") from None
    except (ValueError, RecursionError):
        # Python's limits, which are not errors of TOML.
        rule = "is not valid TOML: it has a number of too many digits, or is nested too deeply"
        raise _wrong(path, rule) from None
    for name in tables:
        if name not in {"columns", "status", "file"}:
            raise _wrong(path, f"{name!r} is not one of its tables columns, status and file")
    found = ExportMapping(
        columns=_table(path, tables, "columns"),
        statuses=_table(path, tables, "status"),
        file=_table(path, tables, "file"),
    )
    _check_names(path, found)
    return found


def _table(path: Path, tables: Mapping[str, Any], name: str) -> dict[str, str]:
    table = tables.get(name, {})
    if not isinstance(table, dict):
        raise _wrong(path, f"[{name}] must be a table")
    # A dot in a bare key makes a table of its own: metadata.refund_id is meant as one name.
    flat = {}
    for key, value in table.items():
        inner = value.items() if isinstance(value, dict) else [(None, value)]
        for part, text in inner:
            whole = key if part is None else f"{key}.{part}"
            if not isinstance(text, str) or not text.strip():
                raise _wrong(path, f"[{name}] {whole} must be a text that is not empty")
            flat[whole] = text.strip()
    return flat


def _check_names(path: Path, found: ExportMapping) -> None:
    rules: list[tuple[str, str, tuple[str, ...]]] = [
        ("columns", name, FIELDS) for name in found.columns
    ]
    rules += [("file", name, (*CHOICES, *_TEXTS)) for name in found.file]
    rules += [("status", word, STATUSES) for word in found.statuses.values()]
    rules += [
        (f"file] {name} [", value, CHOICES[name])
        for name, value in found.file.items()
        if name in CHOICES
    ]
    if (status := found.file.get("status")) is not None:
        rules.append(("file] status [", status, STATUSES))
    for table, name, known in rules:
        if name not in known:
            place = f"[{table}]".removesuffix(" []")
            raise _wrong(path, f"{place}: {name!r} is not one of {', '.join(known)}")


def write(path: Path, mapping: ExportMapping) -> None:
    """Write a mapping to a file that does not exist yet. Raises `InputError`."""
    lines = ["# How 'refunds reconcile --mapping' reads this provider's file."]
    for name, table in (
        ("columns", mapping.columns),
        ("status", mapping.statuses),
        ("file", mapping.file),
    ):
        if table:
            lines += ["", f"[{name}]"]
            lines += [f"{_text(key)} = {_text(value)}" for key, value in table.items()]
    try:
        with path.open("xb") as file:
            file.write(("\n".join(lines) + "\n").encode())
    except OSError as error:
        raise _wrong(path, f"cannot be written ({error.strerror}): name another file") from None


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _wrong(path: Path, rule: str) -> InputError:
    return InputError(f"{path}: {rule}")
