"""The provider's own books: a file with every refund, as it stands now."""

from __future__ import annotations

import csv
import io

from tests.unit.sandbox.asking import PAYMENT, asking


def test_export_has_each_refund_with_its_present_status() -> None:
    with asking() as provider:
        first = provider.refund(amount="5", metadata={"refund_id": "order-1"}).json
        second = provider.refund(amount="7").json
        provider.sandbox.move_refund(second["id"], "failed")
        seen = provider.ask("GET", "/_sandbox/export", headers={})
        assert seen.headers["Content-Type"].startswith("text/csv")
        rows = list(csv.DictReader(io.StringIO(seen.body.decode())))
    assert [(row["id"], row["amount"], row["status"]) for row in rows] == [
        (first["id"], "5", "succeeded"),
        (second["id"], "7", "failed"),
    ]
    assert [row["metadata.refund_id"] for row in rows] == ["order-1", ""]
    assert {row["payment_intent"] for row in rows} == {PAYMENT}
    assert rows[0]["created"] == str(first["created"])
