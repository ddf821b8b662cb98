"""A bare loop that does the job without a queue: what no worker can be faster than with its client.

`python -m ops.lab.bench.peers.bare CLIENT COUNT`: `httpx` posts through httpx over aiohttp, as the
peers with coroutines do, `aiohttp` through plain aiohttp. The records of many refunds leave for
Redis together.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import aiohttp
import redis.asyncio

from ops.lab.bench.gathered import Gathered
from ops.lab.bench.peers import job
from ops.lab.bench.peers.jobs import jobs

Post = Callable[[job.Job], Awaitable[dict[str, Any]]]


async def take(ready: Iterator[job.Job], records: Gathered, post: Post) -> None:
    """Take jobs until none is left."""
    for each in ready:
        key = job.record(each.refund_id)
        await records.run("SET", key, job.pending(each.body))
        answer = await post(each)
        settled = job.succeeded(each.body, answer)
        await records.run("SET", key, settled, "EX", job.RETENTION_SECONDS)


async def _all(ready: Iterator[job.Job], post: Post) -> None:
    connected = redis.asyncio.Redis.from_url(job.RECORDS_URL, max_connections=job.CONNECTIONS)
    records = Gathered(connected)
    await asyncio.gather(*(take(ready, records, post) for _ in range(job.IN_FLIGHT)))
    await connected.aclose()


async def by_httpx(ready: Iterator[job.Job]) -> None:
    """Take all jobs with httpx over aiohttp."""
    async with job.client() as client:

        async def post(each: job.Job) -> Any:
            headers = job.headers(each.refund_id)
            reply = await client.post(job.PATH, json=each.body, headers=headers)
            reply.raise_for_status()
            return reply.json()

        await _all(ready, post)


async def by_aiohttp(ready: Iterator[job.Job]) -> None:
    """Take all jobs with plain aiohttp."""
    async with aiohttp.ClientSession(
        job.PROVIDER,
        auth=aiohttp.BasicAuth(job.KEY, ""),
        connector=aiohttp.TCPConnector(limit=job.CONNECTIONS),
        timeout=aiohttp.ClientTimeout(total=job.TIMEOUT_SECONDS),
        raise_for_status=True,
    ) as session:

        async def post(each: job.Job) -> Any:
            headers = job.headers(each.refund_id)
            async with session.post(job.PATH, json=each.body, headers=headers) as reply:
                return await reply.json()

        await _all(ready, post)


if __name__ == "__main__":
    _taken = by_httpx if sys.argv[1] == "httpx" else by_aiohttp
    asyncio.run(_taken(iter(list(jobs(int(sys.argv[2]))))))
