# ruff: noqa: PLC0415 - as in the faulty worker, the seams are put in before the command is imported
"""A `refunds serve` that dies at a named point of a request, or that has a planted bug.

`python -m ops.lab.prove.faulty_door '{"point": "written", "after": 3}' serve …`. The seams are put
into this process before the command's own main runs in it; the product holds none of them.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

from ops.lab.prove.faulty_worker import Strike

LATE_SECONDS: Final = 0.3
"""How long after its answer a planted bug writes a refund."""


def read(strike: Strike) -> None:
    """Whole requests were read, and nothing of them was written."""

    async def run(original: Any, store: Any, call: Any) -> Any:
        strike.at()
        return await original(store, call)

    _around_create(run)


def written(strike: Strike) -> None:
    """The records are written and on disk, and not one byte of an answer is."""

    async def run(original: Any, store: Any, call: Any) -> Any:
        result = await original(store, call)
        strike.at()
        return result

    _around_create(run)


def _around_create(run: Callable[[Any, Any, Any], Any]) -> None:
    from worker.store import scripts
    from worker.store.async_store import AsyncStore

    original: Any = AsyncStore.run

    async def around(self: Any, call: Any) -> Any:
        if call.script is scripts.CREATE:
            return await run(original, self, call)
        return await original(self, call)

    AsyncStore.run = around  # type: ignore[method-assign]  # a seam


def answered_before_the_write() -> None:
    """Plant: a refund is answered with 202 first, and written a moment later."""
    from worker.http.creations import Creations
    from worker.store.creations import Created

    original: Any = Creations.create
    late: set[asyncio.Task[None]] = set()

    async def create(self: Any, wanted: Any, *, by: str) -> Any:
        async def write() -> None:
            await asyncio.sleep(LATE_SECONDS)
            await original(self, wanted, by=by)

        task = asyncio.create_task(write())
        late.add(task)
        task.add_done_callback(late.discard)
        return Created(result="created", now=datetime.now(UTC))

    Creations.create = create  # type: ignore[method-assign]  # a seam


POINTS: Final[dict[str, Callable[[Strike], None]]] = {"read": read, "written": written}
BUGS: Final[dict[str, Callable[[], None]]] = {
    answered_before_the_write.__name__: answered_before_the_write
}


def main() -> None:
    """Put the seams in, then be `refunds`."""
    asked = json.loads(sys.argv[1])
    if "point" in asked:
        POINTS[asked["point"]](Strike(asked.get("after", 1), signal.SIGKILL))
    if "bug" in asked:
        BUGS[asked["bug"]]()
    sys.argv = sys.argv[1:]
    from worker.cli import main as refunds

    refunds()


if __name__ == "__main__":
    main()
