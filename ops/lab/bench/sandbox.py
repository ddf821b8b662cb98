"""`python -m ops.lab.bench.sandbox`.

How many refunds a second the sandbox really makes on this machine.

The sandbox runs as a process of its own. The client, in this process, speaks the least HTTP it can
over keep-alive connections, one request at a time on each, so that the figure is the server's. The
run is bounded by its count, and it fails if the ledger does not hold exactly one effect for each
request.
"""

from __future__ import annotations

import asyncio
import base64
import json
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import click

from ops.lab.bench.posting import message, posted
from worker.sandbox.installation import sandbox_process
from worker.wording.ranges import Whole

if TYPE_CHECKING:
    from collections.abc import Iterator

AUTHORIZATION: Final = "Basic " + base64.b64encode(b"sk_test_bench:").decode()


def _messages(host: str, requests: int) -> Iterator[bytes]:
    headers = {
        "Host": host,
        "Authorization": AUTHORIZATION,
        "Accept": "application/json",
        "Content-Type": "application/json",
    }
    for number in range(requests):
        body = {
            "payment_intent": f"pi_bench{number}",
            "amount": "500",
            "metadata": {"refund_id": f"bench-{number}"},
        }
        yield message(
            "POST",
            "/v1/refunds",
            headers | {"Idempotency-Key": f"bench-{number}"},
            json.dumps(body, separators=(",", ":")).encode("ascii"),
        )


@click.command()
@click.option("--requests", default=20_000, show_default=True, type=Whole(1, 500_000))
@click.option("--connections", default=32, show_default=True, type=Whole(1, 1_000))
@click.option(
    "--rounds", default=3, show_default=True, type=Whole(1, 20), help="Each with a fresh sandbox."
)
@click.option(
    "--log-requests", default=0, show_default=True, help="How many requests the sandbox remembers."
)
def main(*, requests: int, connections: int, rounds: int, log_requests: int) -> None:
    """Measure refunds a second against a sandbox in another process."""
    for place in range(1, rounds + 1):
        with sandbox_process("--log-requests", str(log_requests)) as provider:
            url = provider.sandbox.url
            messages = _messages(urlsplit(url).netloc, requests)
            load = asyncio.run(posted(url, messages, connections=connections))
            summary = provider.sandbox.summary()
        if load.refused or summary["effects"] != requests or summary["repeated"]:
            raise click.ClickException(
                f"{load.refused} refused, {summary['effects']} effects of {requests} requests"
            )
        click.echo(
            f"round {place}: {requests} refunds in {load.seconds:.2f} s,"
            f" {requests / load.seconds:.0f} a second"
        )


if __name__ == "__main__":
    main()
