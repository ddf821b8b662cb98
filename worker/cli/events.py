"""`refunds events` prints the moves of all refunds in order, and follows them."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Final

import click

from worker.cli import render
from worker.cli.exits import DONE, NOTHING_TO_DO
from worker.cli.session import note
from worker.cli.values import checked_moment
from worker.errors import StoreUnavailable
from worker.model.times import to_ms
from worker.settings import Settings
from worker.store import moves
from worker.store.async_store import AsyncStore
from worker.store.connection import address_of, connect_async
from worker.store.moves import Moves
from worker.wording import values

NOW: Final = "now"
BLOCK_MS: Final = 1000
"""How long one read waits for the next move: so long Ctrl-C takes at most."""
_LAST: Final = 2**64 - 1
"""The largest number of a move within its millisecond."""


@click.command(
    epilog="""\b
Examples:
  refunds events --since 2026-01-31T09:00:00Z
  refunds events --follow --json
  refunds events --follow --since 1769850000000-0 --json

\b
Exit code: 0 after Ctrl-C; 5 if Redis is unavailable; 9 if there is no move."""
)
@click.option("--follow", is_flag=True, help="Go on with the moves that come, until Ctrl-C.")
@click.option(
    "--since",
    metavar="now|ID|TIME",
    help="After the move ID, or from a time on; if omitted all that are kept, with --follow now.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
def events(*, follow: bool, since: str | None, as_json: bool) -> int:
    """Print the moves of all refunds, oldest first. About a million are kept.

    If moves after ID are not kept any more, a line says so first, in JSON
    {"gap": {"from": …, "to": …}}. A program that acts on moves reads the
    record of each refund, and continues after the last ID that it handled.
    """
    start = since or (NOW if follow else moves.BEGINNING)
    if start != NOW and not moves.is_move_id(start):
        moment = checked_moment(
            start,
            "must be in the past, or now, or the id of a move",
            others="now, the id of a move such as 1769850000000-0, or ",
        )
        before = to_ms(moment) - 1
        start = f"{before}-{_LAST}" if before >= 0 else moves.BEGINNING
    try:
        count = asyncio.run(_print(start, follow=follow, as_json=as_json))
    except KeyboardInterrupt:
        return DONE
    if not count:
        note("no move was made since then")
    return DONE if count else NOTHING_TO_DO


@asynccontextmanager
async def _opened(settings: Settings) -> AsyncIterator[AsyncStore]:
    url = settings.redis_url.get_secret_value()
    store = AsyncStore(
        connect_async(url),
        prefix=settings.prefix,
        retention=timedelta(days=settings.retention_days),
        durable=settings.durability == "disk",
        replicas=settings.replicas,
        address=address_of(url),
    )
    try:
        yield store
    finally:
        await store.close()


async def _print(start: str, *, follow: bool, as_json: bool) -> int:
    """Print moves until there is no further one, or for ever; return how many."""
    count, stopped = 0, _interrupted()
    async with _opened(Settings.load()) as store:
        after = await moves.latest(store) if start == NOW else start
        while True:
            page = await moves.read(store, after)
            # A person may state a position that no move has.
            if page.lost and after != start:
                raise _restored()
            if page.gap and await _is_missing(store, after):
                _print_gap(after, page, as_json=as_json)
            for move in page.moves:
                _print_move(move, as_json=as_json)
            count += len(page.moves)
            after = page.last
            if stopped.is_set() or not (page.moves or follow):
                return count or int(stopped.is_set())
            if page.moves:
                continue
            if not await moves.follow(store, after, BLOCK_MS) and await moves.went_back(
                store, after
            ):
                raise _restored()


def _restored() -> StoreUnavailable:
    return StoreUnavailable(
        "the records hold older moves than before, as after a restored snapshot: run the command"
        " again"
    )


def _interrupted() -> asyncio.Event:
    """Return an event that the first Ctrl-C sets.

    It is not left to asyncio, which cancels a task: redis-py may swallow a cancellation.
    """
    stopped, loop = asyncio.Event(), asyncio.get_running_loop()

    def stop() -> None:
        stopped.set()
        # The next one ends the command at once.
        loop.remove_signal_handler(signal.SIGINT)

    loop.add_signal_handler(signal.SIGINT, stop)
    return stopped


async def _is_missing(store: AsyncStore, after: str) -> bool:
    """Return whether moves after a position were removed; before a time there may be none."""
    return not after.endswith(f"-{_LAST}") or (await moves.read(store, moves.BEGINNING, 1)).gap


def _print_gap(after: str, page: Moves, *, as_json: bool) -> None:
    first = page.moves[0].move_id if page.moves else page.last
    if as_json:
        render.as_json({"gap": {"from": after, "to": first}})
    else:
        note(f"moves between {after} and {first} are not kept any more")


def _print_move(move: moves.Move, *, as_json: bool) -> None:
    if as_json:
        render.as_json(move.as_dict())
        return
    source = move.source or "new"
    click.echo(
        f"{move.moved_at}  {values.plain(move.refund_id)}  {source} -> {move.to}  {move.status}"
    )
