"""Files that were checked and wait for a person's confirmation, beside those of the uploads.

What is known about a file is kept in a file of its own, so a restart loses neither.
"""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any, Final

from multidict import MultiDict

from worker.http import problems
from worker.http.page.importwords import AMOUNTS
from worker.http.problems import Problem, wrong_field
from worker.http.spool import CHECKED, Kept, Spool, locked

_ID: Final = re.compile(r"[0-9a-f]{32}")
_ID_BYTES: Final = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """What is known about a file that was checked.

    `version` changes with each check. `report` is None if the file cannot be read, and `error` says
    why. `reasons` are the sentences why it must not be imported. `batch_id` is set once it was.
    """

    check_id: str
    file: str
    by: str
    fields: Mapping[str, str]
    version: str = ""
    report: dict[str, Any] | None = None
    reasons: tuple[str, ...] = ()
    error: str = ""
    batch_id: str | None = None

    @property
    def is_importable(self) -> bool:
        """Return whether the file may be imported, and has something new or ends its batch."""
        if self.report is None or self.reasons:
            return False
        # A version before this one did not keep the latter.
        return self.report["new"] > 0 or bool(self.report.get("continues"))

    def options(self) -> MultiDict[str]:
        """Return the options as the API takes them: without blank ones, a column an entry.

        Raises `InvalidRequest` if it was not chosen how amounts are written.
        """
        amounts = AMOUNTS.get(self.fields.get("amounts", ""))
        if amounts is None:
            raise wrong_field("amounts", "amounts", "", "must be chosen")
        found: MultiDict[str] = MultiDict(amounts)
        for name, value in self.fields.items():
            if name == "amounts":
                continue
            for each in value.splitlines() if name == "column" else [value]:
                if each.strip():
                    found.add(name, each.strip())
        return found


class Checks:
    """The files in the spool's folder that wait. Its methods block."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool

    def keep(self, kept: Kept) -> str:
        """Name a received file so that it waits for its confirmation, and return its id."""
        check_id = secrets.token_hex(_ID_BYTES)
        kept.path = kept.path.rename(self._file(check_id))
        return check_id

    def write(self, check: Check) -> Check:
        """Keep what is known about a file, as a new version, and return that."""
        check = replace(check, version=secrets.token_hex(8))
        path = self._facts(check.check_id)
        fresh = path.with_suffix(f".{check.version}")
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as out:
            json.dump(asdict(check), out)
        fresh.replace(path)
        return check

    def read(self, check_id: str) -> Check:
        """Return what is known about a file. Raises `Problem`."""
        if not _ID.fullmatch(check_id):
            raise _gone()
        try:
            facts = json.loads(self._facts(check_id).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise _gone() from None
        return Check(**{**facts, "reasons": tuple(facts["reasons"])})

    def open(self, check_id: str) -> Kept:
        """Return the file, open and locked. Raises `Problem` if it is gone or in use."""
        path = self._file(check_id)
        kept = locked(path)
        if kept is None and path.exists():
            raise Problem(
                problems.REFUSED, "This file is being read by another request: try again."
            )
        if kept is None or not path.exists():
            # It may have been removed between opening and locking.
            if kept is not None:
                kept.file.close()
            raise _gone()
        return kept

    def reader(self, check_id: str) -> IO[bytes]:
        """Return the file to be read only, whether it is in use or not. Raises `Problem`."""
        try:
            return self._file(check_id).open("rb")
        except FileNotFoundError:
            raise _gone() from None

    def drop(self, check_id: str) -> None:
        """Remove a file and what is known about it."""
        self.open(check_id).remove()
        self._facts(check_id).unlink(missing_ok=True)

    def _file(self, check_id: str) -> Path:
        return self._spool.place() / f"{CHECKED}{check_id}"

    def _facts(self, check_id: str) -> Path:
        return self._spool.place() / f"{CHECKED}{check_id}.json"


def _gone() -> Problem:
    return Problem(
        problems.NOT_FOUND,
        "This file is not kept here: it was imported, discarded, or not confirmed within eight"
        " hours. Batches shows what was imported; to import the file, send it again.",
    )
