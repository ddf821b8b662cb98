"""The sandbox's idempotency layer, like Stripe's.

The first answer under a key is kept and replayed within a window.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from worker.sandbox import shapes

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker.sandbox.config import SandboxConfig
    from worker.sandbox.shapes import Answer


@dataclass(slots=True, kw_only=True)
class _Kept:
    since: float
    body: Any
    answer: Answer | None = None


@dataclass(kw_only=True)
class KeyStore:
    """Keys seen, oldest first, with the answer of their first request.

    None while that is in flight.
    """

    clock: Callable[[], float] = time.monotonic
    replayed: int = 0
    _kept: dict[str, _Kept] = field(default_factory=dict)

    def begin(self, config: SandboxConfig, key: str, body: object) -> Answer | None:
        """Return None if this request is the first with its key and may run, else its answer."""
        self._forget_before(self.clock() - config.key_window_seconds)
        kept = self._kept.get(key)
        if kept is None:
            self._kept[key] = _Kept(since=self.clock(), body=body)
            return None
        if kept.body != body:
            return shapes.error(
                config,
                400,
                "idempotency_error",
                "idempotency_key_in_use",
                "Keys for idempotent requests can only be used with the same parameters they were"
                " first used with.",
            )
        if kept.answer is None:
            return shapes.error(
                config,
                409,
                "idempotency_error",
                "idempotency_key_in_use",
                "There is currently another in-progress request using this Idempotent Key.",
            )
        self.replayed += 1
        return replace(kept.answer, headers={**kept.answer.headers, "Idempotent-Replayed": "true"})

    def finish(self, key: str, answer: Answer | None) -> None:
        """Store the answer of the first request with this key.

        None lets the next one execute again.
        """
        if answer is None:
            self._kept.pop(key, None)
        elif key in self._kept:
            self._kept[key].answer = answer

    def _forget_before(self, limit: float) -> None:
        # Insertion order is age, so the oldest come first. A key in flight is kept however old it
        # is.
        for key, kept in list(self._oldest(limit)):
            if kept.answer is not None:
                del self._kept[key]

    def _oldest(self, limit: float) -> list[tuple[str, _Kept]]:
        old = []
        for key, kept in self._kept.items():
            if kept.since > limit:
                break
            old.append((key, kept))
        return old
