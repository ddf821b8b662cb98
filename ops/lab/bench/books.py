"""Plants differences of each class between the sandbox's books and the records.

Each one is on a payment of its own, so a payment tells which was found.
"""

from __future__ import annotations

import base64
import csv
import http.client
import io
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Final
from urllib.parse import urlsplit

from ops.lab.bench.rig import Rig, WrongCountError
from worker.model.times import rfc3339, to_ms
from worker.sandbox.export import COLUMNS
from worker.sandbox.running import Sandbox
from worker.store.flags import now

PLANTED: Final = 20
"""Differences of each class."""
_FOREIGN: Final = 30
_NAMED: Final = "metadata.refund_id"
_EDGE: Final = timedelta(days=3)
"""How long before now the window begins in which the books are compared."""

Entry = dict[str, Any]


@dataclass(kw_only=True)
class Planted:
    """What was planted: by class the payments; and what the first file says otherwise."""

    foreign: ClassVar[int] = _FOREIGN
    classes: dict[str, set[str]] = field(default_factory=dict)
    edits: dict[str, Callable[[Entry], Entry]] = field(default_factory=dict)
    """How the rows of a payment differ in the first file from the provider's books."""
    left_out: set[str] = field(default_factory=set)
    """Payments whose rows the first file lacks."""

    def in_the_file(self, rows: Iterable[Entry]) -> Iterator[Entry]:
        """Yield the rows of the first file."""
        for row in self.in_the_books(rows):
            payment = row["payment_intent"]
            if payment not in self.left_out:
                yield self.edits.get(payment, _same)(row)

    def in_the_books(self, rows: Iterable[Entry]) -> Iterator[Entry]:
        """Yield the provider's rows without what no file of it has.

        The metadata of ambiguous ones, and those of the neighbouring window.
        """
        for row in rows:
            payment = row["payment_intent"]
            if payment in self.classes["ambiguous"]:
                row[_NAMED] = ""
            if payment not in self.classes["other_window"]:
                yield row


def _same(row: Entry) -> Entry:
    return row


def sandbox_rows(sandbox: Sandbox) -> Iterator[Entry]:
    """Yield the rows of the sandbox's own export."""
    _, text = _ask(sandbox, "GET", "/_sandbox/export")
    yield from csv.DictReader(io.StringIO(text))


def old_rows(count: int, at: datetime) -> Iterator[Entry]:
    """Yield the rows of the refunds that `watch.settle` writes, made at this time."""
    created = rfc3339(at)
    for one in range(count):
        yield {
            "id": f"re_old{one}",
            "payment_intent": f"pi_old{one}",
            "amount": 500,
            "currency": "usd",
            "status": "succeeded",
            "created": created,
            _NAMED: f"old-{one}",
        }


def write(target: Path, rows: Iterable[Entry]) -> None:
    """Write rows as the sandbox's export has them."""
    with target.open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, COLUMNS, restval="")
        writer.writeheader()
        writer.writerows(rows)


def plant(rig: Rig, count: int) -> Planted:
    """Plant the differences among the first refunds of a settled season."""
    return _Planting(rig, count).run()


class _Planting:
    def __init__(self, rig: Rig, count: int) -> None:
        self._sandbox = rig.sandbox
        self._store = rig.refunds.store
        self._client: Any = rig.refunds.store.redis
        self._rows = {row[_NAMED]: row for row in sandbox_rows(rig.sandbox)}
        self._ids = (f"tour-{one}-1" for one in range(count))
        self._planted = Planted()

    def run(self) -> Planted:
        """Plant all classes, each on refunds of its own."""
        self._differ()
        self._be_missing()
        self._be_unclear()
        near = to_ms(now(self._store) - _EDGE + timedelta(hours=1))
        for row in self._each("other_window"):
            self._client.zadd("refunds:index:succeeded", {row[_NAMED]: near})
        return self._planted

    def _each(self, kind: str, many: int = PLANTED) -> Iterator[Entry]:
        for refund_id in islice(self._ids, many):
            row = self._rows[refund_id]
            self._planted.classes.setdefault(kind, set()).add(row["payment_intent"])
            yield row

    def _differ(self) -> None:
        for row in self._each("status_differs"):
            self._sandbox.move_refund(row["id"], "failed")
        edits = self._planted.edits
        for row in self._each("amount_differs"):
            edits[row["payment_intent"]] = lambda row: row | {"amount": int(row["amount"]) + 1}
        for row in self._each("currency_differs"):
            edits[row["payment_intent"]] = lambda row: row | {"currency": "eur"}

    def _be_missing(self) -> None:
        for row in self._each("missing_there"):
            # The file has only what succeeded, say.
            self._sandbox.move_refund(row["id"], "failed")
            self._planted.left_out.add(row["payment_intent"])
        for row in self._each("missing_here", _FOREIGN):
            _refund(self._sandbox, row, {})

    def _be_unclear(self) -> None:
        for row in self._each("twice"):
            named = {"refund_id": row[_NAMED], "refund_generation": "1"}
            _refund(self._sandbox, row, named)
        for row in self._each("identified"):
            _forget_id(self._client, row)
        for row in self._each("ambiguous"):
            _forget_id(self._client, row)
            _refund(self._sandbox, row, {})


def _forget_id(client: Any, row: Entry) -> None:
    """Leave a record as one that only the payment's totals proved."""
    refund_id = row[_NAMED]
    client.hdel(f"refunds:refund:{refund_id}", "provider_refund_id", "provider_status")
    client.hset(f"refunds:refund:{refund_id}", "evidence", "totals")
    client.delete(f"refunds:owner:{row['id']}")
    client.hdel(f"refunds:payment:{row['payment_intent']}", f"owner:{row['id']}")


def _refund(sandbox: Sandbox, row: Entry, metadata: dict[str, str]) -> None:
    """Make another refund on a payment, as a person in the provider's dashboard would."""
    body = {"payment_intent": row["payment_intent"], "amount": row["amount"], "metadata": metadata}
    status, text = _ask(sandbox, "POST", "/v1/refunds", body)
    if status != http.HTTPStatus.OK:
        raise WrongCountError(f"the sandbox refused a foreign refund: {text}")


def _ask(sandbox: Sandbox, method: str, path: str, body: Any = None) -> tuple[int, str]:
    parts = urlsplit(sandbox.url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
    key = base64.b64encode(b"sk_test_bench:").decode()
    headers = {
        "Authorization": f"Basic {key}",
        "Accept": "application/json",
        "Content-Type": "application/json",
    }
    try:
        connection.request(
            method, path, None if body is None else json.dumps(body), headers=headers
        )
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()
