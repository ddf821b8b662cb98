"""What a person finds by an order number alone."""

from __future__ import annotations

import json

import pytest

from tests.support.page_door import PageDoor
from worker.batches import BatchDraft, open_batch
from worker.importer.ids import base_of


async def test_one_refund_whose_id_is_numbered_after_an_order_is_shown(reader: PageDoor) -> None:
    reader.records.queued("order-7-2")
    shown = await reader.get("/page/refunds?q=order-7")
    assert (shown.status, shown.location) == (303, "/page/refunds/order-7-2")


async def test_several_refunds_of_an_order_are_listed(reader: PageDoor) -> None:
    for refund_id in ("order-7-1", "order-7-2", "order-71"):
        reader.records.queued(refund_id)
    shown = await reader.get("/page/refunds?q=order-7")
    assert "These refunds have ids that are made from “order-7”." in shown.text
    assert [refund_id in shown.text for refund_id in ("order-7-1", "order-7-2", "order-71")] == [
        True,
        True,
        False,
    ]


@pytest.mark.parametrize("ending", ["", "-a2", "-3"])
async def test_refund_of_a_file_is_found_by_the_column_that_made_its_id(
    reader: PageDoor, ending: str
) -> None:
    newer = {"option_of_a_newer_version": True}
    for batch_id, read in (
        ("b-1", {"id_from": ["order_id"]}),
        ("b-2", {"id_from": ["order_id", "sku"]}),
        ("b-3", newer),
    ):
        options = json.dumps({"format": "csv"} | read)
        open_batch(
            reader.records.store,
            batch_id,
            file="season.csv",
            digest=f"of {batch_id}",
            rows=1,
            opening=BatchDraft(options=options),
        )
    refund_id = base_of([("order_id", "1001")]) + ending
    reader.records.queued(refund_id)
    shown = await reader.get("/page/refunds?q=1001")
    assert (shown.status, shown.location) == (303, f"/page/refunds/{refund_id}")


async def test_what_is_part_of_an_id_finds_nothing(reader: PageDoor) -> None:
    reader.records.queued("order-71-1")
    shown = await reader.get("/page/refunds?q=order-7")
    assert "no id is made from it as an order number" in shown.text
