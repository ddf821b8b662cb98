"""Files for the HTTP API, and what is asked of it about them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from tests.support.api_door import Door

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


PATH = "/v1/batches"
CSV = "text/csv"
HEAD = "refund_id,payment_intent,amount,currency\n"


def rows(count: int, prefix: str = "order") -> bytes:
    lines = (f"{prefix}-{number},pi_{number},{500 + number},usd\n" for number in range(count))
    return (HEAD + "".join(lines)).encode()


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()] if folder.exists() else []


async def until(is_over: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        for _ in range(3000):
            if is_over():
                return
            await asyncio.sleep(0.01)


async def send(api: Door, data: Any, query: str = "", **more: str) -> Any:
    return await api.post(f"{PATH}?{query}", data=data, **{"Content_Type": CSV, **more})


async def imported(api: Door, batch_id: str) -> dict[str, Any]:
    """Return the batch once all of its rows are imported and its file is let go."""
    async with asyncio.timeout(30):
        while True:
            batch: dict[str, Any] = (await api.get(f"{PATH}/{batch_id}")).json
            if batch["imported_at"] is not None and not api.part.uploads.active:
                return batch
            await asyncio.sleep(0.02)
