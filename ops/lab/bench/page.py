"""How long the operator's page takes to show the overview, of many refunds and of few.

The server has a core of its own. Redis and the client share the other.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Final

import httpx

from ops.lab.bench.plan import Plan
from ops.lab.bench.rig import Rig, WrongCountError
from ops.lab.bench.serving import prepared
from ops.lab.bench.table import Row, number, quantile
from ops.lab.bench.watch import settle
from worker.model.refund import Lane

LONGEST_MS: Final = 50.0
FEW: Final = 1_000
WAITING: Final = 1_000
"""Refunds that wait to be sent; all others are settled."""
PAGE: Final = (sys.executable, "-m", "worker", "serve", "--parts", "page", "--port", "0")
_WARM: Final = 10


def page(plan: Plan, _wanted: frozenset[str]) -> Iterator[Row]:
    """Yield the time from the request for the overview to the whole page."""
    with Rig(plan.cores) as rig:
        token = prepared(rig)["Authorization"].partition(" ")[2]
        rig.fill(WAITING, Lane.SINGLE)
        process, url = rig.serve(PAGE)
        with httpx.Client(base_url=url) as client:
            sign_in(client, token)
            few, many = (
                _shown(rig, client, count, plan.idle) for count in (FEW, plan.shown - WAITING)
            )
        rig.stop_serving(process)
    yield Row(
        figure="page: the overview, p50 and p99",
        setting=f"{plan.shown:,} refunds, one request at a time",
        measured=f"{number(quantile(many, 0.5))} and {number(quantile(many, 0.99))} ms",
        floor=(
            f"{number(quantile(few, 0.5))} and {number(quantile(few, 0.99))} ms with"
            f" {FEW + WAITING:,}"
        ),
        ratio=number(quantile(many, 0.5) / quantile(few, 0.5)),
        to_reach=f"p99 under {LONGEST_MS:g} ms",
        reached=quantile(many, 0.99) < LONGEST_MS,
    )


def _shown(rig: Rig, client: httpx.Client, settled: int, times: int) -> list[float]:
    """Return the milliseconds of each answer while so many refunds are settled."""
    settle(rig.refunds.store, settled)
    return [wait * 1000 for wait in asked(client, settled, _WARM + times)][_WARM:]


def sign_in(client: httpx.Client, token: str) -> None:
    """Sign in as a browser does. Raises `WrongCountError` if the page refuses the token."""
    form = {"token": token, "to": "/page"}
    answer = client.post("/page/sign-in", data=form, headers={"Sec-Fetch-Site": "same-origin"})
    if not answer.has_redirect_location:
        raise WrongCountError(f"signing in was answered with {answer.status_code}")


def asked(client: httpx.Client, settled: int, times: int) -> Iterator[float]:
    """Yield the seconds of each answer, which must show that so many refunds are settled."""
    figure = f'<span class="figure">{settled:,}</span> succeeded'
    for _ in range(times):
        begun = time.perf_counter()
        answer = client.get("/page")
        wait = time.perf_counter() - begun
        if figure not in answer.text:
            raise WrongCountError(f"the overview, HTTP {answer.status_code}, lacks {figure}")
        yield wait
