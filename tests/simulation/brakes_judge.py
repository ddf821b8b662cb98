"""What may not leave now: the stop button, a refused key, a 429's wait, and the rate that all
workers share.

Judged at the moment at which a worker was told that it may send: what comes after that no worker
can know of.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final

Broken = Callable[[str, str, str], None]

FLAGS: Final = (("meta", "paused"), ("meta", "credentials_refused_at"), ("gate", "blocked_until"))
NEAR: Final = 0.995
"""Moments of the schedule are whole microseconds: so much of the distance between two is enough."""


class BrakesJudge:
    """Follows the questions and permits of one world's workers."""

    def __init__(self, broken: Broken, rate: float) -> None:
        self._broken = broken
        self._rate = rate
        self._permits: Counter[str] = Counter()
        """Moments given to each worker, less the requests that it has made."""
        self._last_moment = -1e18

    def power_was_cut(self) -> None:
        """Forget the schedule: a server that starts again begins another."""
        self._last_moment = -1e18

    def told_it_may(self, refund_id: str, flags: Sequence[str | None], now_ms: int) -> None:
        """Judge a worker's being told that it may send, by what stood in Redis in that moment."""
        paused, refused, blocked = flags
        if paused:
            self._broken("brake", refund_id, "claimed while everything was paused")
        if refused:
            self._broken("brake", refund_id, "claimed while the key was refused")
        if blocked and int(blocked) > now_ms:
            self._broken(
                "brake",
                refund_id,
                f"claimed {int(blocked) - now_ms} ms before a 429's wait was over",
            )

    def given(self, worker: str, reply: Sequence[Any], now_ms: int) -> None:
        """Judge the moments that the schedule gave to a worker.

        Never closer to one another than the rate allows.
        """
        if self._rate <= 0:
            return
        for away in reply[2::2]:
            moment = now_ms * 1000 + int(away)
            if moment - self._last_moment < NEAR * 1_000_000 / self._rate:
                self._broken(
                    "rate", worker, f"two moments {moment - self._last_moment:.0f} µs apart"
                )
            self._last_moment = moment
            self._permits[worker] += 1

    def requests(self, worker: str, what: str) -> None:
        """Judge a request by the moments that its worker was given."""
        if self._rate <= 0:
            return
        self._permits[worker] -= 1
        if self._permits[worker] < 0:
            self._broken("rate", worker, f"{what} without a moment of the schedule")
