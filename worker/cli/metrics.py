"""`refunds metrics` serves the figures of all workers to Prometheus."""

from __future__ import annotations

import click

from worker.cli.exits import DONE
from worker.cli.session import note, opened
from worker.monitoring.metrics import serve
from worker.wording.listening import cannot_listen
from worker.wording.ranges import Whole


@click.command(
    epilog="\b\nExamples:\n  refunds metrics\n  refunds metrics --host 0.0.0.0 --port 9464"
)
@click.option(
    "--host",
    metavar="HOST",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on; there is no password.",
)
@click.option(
    "--port",
    metavar="PORT",
    default=9464,
    show_default=True,
    type=Whole(0, 65535),
    help="Port; 0 picks a free one.",
)
def metrics(*, host: str, port: int) -> int:
    """Serve Prometheus metrics, computed from Redis at each scrape.

    One process serves any number of workers.
    """
    with opened() as refunds:
        try:
            serve(
                refunds.store,
                refunds.celery,
                host=host,
                port=port,
                backlog_warning=refunds.settings.backlog_warning,
                rungs=refunds.settings.watch_rungs,
                say=note,
            )
        except OSError as error:
            raise click.ClickException(cannot_listen(host, port, error)) from None
    return DONE
