"""What one scrape costs against the number of records.

`./ops/dev python ops/lab/bench/scrape.py --records 200000`.

Entries are planted straight into the indexes of a throw-away server, with a record behind those
that a scrape may read.
"""

from __future__ import annotations

import time
from statistics import median
from typing import Final

import click
import redis

from worker.broker import queues
from worker.monitoring import metrics, snapshot
from worker.sandbox.redis_server import running_server
from worker.settings import Settings
from worker.store.store import BUCKETS, Store

CHUNK: Final = 10_000
SCRAPES: Final = 20


def plant(store: Store, records: int) -> None:
    """Spread so many entries over all indexes."""
    now = int(time.time() * 1000)
    each = records // len(BUCKETS)
    for bucket in BUCKETS:
        for start in range(0, each, CHUNK):
            scores = {
                f"{bucket}-{number}": now + number
                for number in range(start, min(start + CHUNK, each))
            }
            with store.redis.pipeline(transaction=False) as pipeline:
                pipeline.zadd(store.key(f"index:{bucket}"), scores)
                pipeline.zadd(store.key("due"), scores)
                pipeline.execute()
        ends = [*range(min(snapshot.SAMPLE, each)), *range(max(0, each - snapshot.SAMPLE), each)]
        with store.redis.pipeline(transaction=False) as pipeline:
            for number in ends:
                pipeline.hset(
                    store.key(f"refund:{bucket}-{number}"), "created_at", str(now - 60_000)
                )
            pipeline.execute()
    with store.redis.pipeline(transaction=False) as pipeline:
        for number in range(snapshot.LATEST_BATCHES * 5):
            pipeline.zadd(store.key("batches"), {f"b-{number}": now + number})
            pipeline.hset(
                store.key(f"batch:b-{number}"), mapping={"state": "running", "status:pending": "1"}
            )
        pipeline.execute()


def scrape_ms(store: Store, redis_url: str) -> list[float]:
    """Return how long each of some scrapes took, the queues' depths included.

    The first warms connections up.
    """
    app = queues.make_celery(Settings.load(redis_url=redis_url))
    taken = []
    for _ in range(SCRAPES + 1):
        started = time.perf_counter()
        metrics.render(store, app)
        taken.append((time.perf_counter() - started) * 1000)
    return taken[1:]


@click.command()
@click.option(
    "--records", default=200_000, show_default=True, help="Entries in the indexes, all told."
)
def main(*, records: int) -> None:
    """Print the median and the worst of some scrapes, for an empty server and for the wanted number
    of records.
    """
    with (
        running_server(appendfsync="no") as server,
        redis.Redis.from_url(server.url, decode_responses=True) as client,
    ):
        store = Store(client, durable=False)
        for wanted in (0, records):
            plant(store, wanted)
            taken = scrape_ms(store, server.url)
            click.echo(
                f"{wanted:>9} records: {median(taken):5.1f} ms a scrape, worst of {SCRAPES}:"
                f" {max(taken):5.1f} ms"
            )


if __name__ == "__main__":
    main()
