"""`./ops/dev page`: the operator's page with a season of refunds, for a look at it."""

from __future__ import annotations

import asyncio
import signal
import sys
import tempfile
import threading
from itertools import count
from pathlib import Path

import click

from ops.lab.page import shots
from ops.lab.page.browser import BrowserMissingError, program
from ops.lab.page.season import ACTOR, READER, Season, SeasonError, request, running_season
from worker.errors import RefundError
from worker.wording.ranges import Whole


@click.command()
@click.option(
    "--port", default=8080, show_default=True, type=Whole(0, 65535), help="0 picks a free one."
)
@click.option(
    "--traffic",
    default=1.0,
    show_default=True,
    type=click.FloatRange(0, 100),
    help="Refunds a second.",
)
@click.option(
    "--screenshots", is_flag=True, help="Write the pictures of ops/docs/page.md instead, and end."
)
@click.option(
    "--into",
    default=shots.FOLDER,
    type=click.Path(file_okay=False, exists=True, path_type=Path),
    help="With --screenshots: the folder to write to, if not the document's.",
)
def main(*, port: int, traffic: float, screenshots: bool, into: Path) -> None:
    """Serve the operator's page over a season of refunds in the sandbox, until Ctrl-C."""
    ended = threading.Event()
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, lambda *_: ended.set())
    try:
        if screenshots:
            program()
        with tempfile.TemporaryDirectory(prefix="refunds-page-") as folder:
            click.echo("starting the season", err=True)
            with running_season(Path(folder), port=0 if screenshots else port) as season:
                if screenshots:
                    asyncio.run(_write(season, into))
                else:
                    click.echo(_shown(season))
                    _run(season, traffic, ended)
    except (SeasonError, BrowserMissingError, RefundError) as error:
        raise click.ClickException(str(error)) from None


async def _write(season: Season, into: Path) -> None:
    total = 0
    async for path in shots.take(season, into):
        total += path.stat().st_size
        click.echo(f"{path.name}  {path.stat().st_size // 1000} kB")
    click.echo(f"{total // 1000} kB in all")


def _shown(season: Season) -> str:
    return "\n".join(
        [
            f"page       {season.page}",
            f"{ACTOR}        {season.actor_token}  reads and acts",
            f"{READER}        {season.reader_token}  reads only",
            f"records    {season.redis_url}",
            f"provider   {season.sandbox.url}  (the sandbox: no money anywhere)",
            "",
            "Sign in with a token. Ctrl-C ends all of it.",
        ]
    )


def _run(season: Season, traffic: float, ended: threading.Event) -> None:
    """Hand in refunds until told to end."""
    for number in count(1):
        if ended.wait(1 / traffic if traffic else None):
            return
        try:
            season.refunds.submit(request(f"order-{9000 + number}-1", f"pi_{9000 + number}"))
        except RefundError as error:
            click.echo(f"a refund was not accepted: {error}", err=True)


if __name__ == "__main__":
    sys.exit(main())
