"""An installation whose records have replicas and Sentinels, with producers that never pause."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

import redis

from ops.lab.prove.cluster import Cluster, Node
from ops.lab.prove.rabbit import running_rabbitmq
from ops.lab.prove.rig import Rig, RigError
from ops.lab.prove.subjects import Product
from worker.client import Refunds
from worker.settings import Settings

PRODUCERS: Final = 3
PER_SECOND: Final = 30.0
"""Refunds that all producers hand in, if the records answer."""
_JOIN_SECONDS: Final = 120.0


class Replicated(Product):
    """The product, whose writes wait for so many replicas before they count."""

    def __init__(self, name: str, replicas: int) -> None:
        self.name, self.replicas = name, replicas
        self.broker_url: str | None = None

    def open(self, redis_url: str) -> None:
        """Build the producers' client."""
        settings = Settings.load(
            redis_url=redis_url, broker_url=self.broker_url, replicas=self.replicas
        )
        self.refunds = Refunds(settings=settings)


@dataclass(frozen=True, kw_only=True)
class Promotion:
    """One failover: when its fault began, and when another server was the primary (epoch s)."""

    began: float
    ended: float


@dataclass(eq=False)
class FailoverRig(Rig):
    """One installation with a cluster; use it in a `with`."""

    replicas: int = 2
    by_rabbit: bool = False
    acknowledged: list[float] = field(default_factory=list)
    """When a refund of the producers was accepted (epoch s)."""
    promotions: list[Promotion] = field(default_factory=list)
    loads: list[float] = field(default_factory=list)
    """When the load of each failover ended (epoch s)."""
    decided: list[str] = field(default_factory=list)
    """Refunds of which a person's decision was acknowledged."""

    def _start_servers(self, stack: ExitStack) -> None:
        if self.by_rabbit and isinstance(self.subject, Replicated):
            rabbit = stack.enter_context(running_rabbitmq(self.folder / "rabbitmq"))
            self.subject.broker_url = rabbit.url
            self.settings = {**self.settings, "REFUNDS_BROKER_URL": rabbit.url}
        self.cluster = Cluster(fsync=self.fsync, replicas=self.replicas, clock_off=self.clock_off)
        stack.enter_context(self.cluster)
        self.clock_off = abs(self.clock_off)
        # Whatever asks for one server is given the first primary.
        self.server = self.cluster.nodes[0].server

    def _direct(self) -> redis.Redis:
        return self.cluster.client()

    @property
    def url(self) -> str:
        """The address of the records for producers."""
        return self.cluster.url

    @property
    def url_for_workers(self) -> str:
        """The address of the records for workers."""
        return self.cluster.url

    def end(self) -> None:
        """End this one in the midst of whatever it is at."""
        self.cluster.end()
        super().end()

    # Load

    @contextmanager
    def producing(self) -> Iterator[None]:
        """Hand refunds in one by one for as long as this lasts, each until it is acknowledged."""
        over, troubles = threading.Event(), list[Exception]()

        def produce() -> None:
            while not over.wait(PRODUCERS / PER_SECOND):
                try:
                    self.accept(self.drawn(1))
                except Exception as error:  # noqa: BLE001 - told to the run that waits for it
                    troubles.append(error)
                    return
                self.acknowledged.append(time.time())

        threads = [threading.Thread(target=produce, daemon=True) for _ in range(PRODUCERS)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self.loads.append(time.time())
            over.set()
            for thread in threads:
                thread.join(_JOIN_SECONDS)
        if troubles:
            raise RigError(f"a producer gave up: {troubles[0]}")

    def promoted(self, before: Node, began: float) -> Node:
        """Wait until another server is the primary, and note it."""
        after = self.cluster.await_promotion(before)
        self.promotions.append(Promotion(began=began, ended=time.time()))
        return after


def longest_gap(moments: Sequence[float], promotion: Promotion, until: float) -> float:
    """Return the longest time without such a moment, from a failover's fault to the end of the
    load.
    """
    inside = sorted(one for one in moments if promotion.began <= one <= until)
    ends = [promotion.began, *inside, until]
    return max(after - before for before, after in pairwise(ends))
