"""A broken promise, as the judge of `prove` states it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

CLOCK_SLACK: Final = 0.05
"""Seconds by which the clocks of the server and of this process may differ."""


@dataclass(frozen=True, kw_only=True)
class Violation:
    """One promise broken: by which rule, on which refund (or payment), and what was seen."""

    rule: str
    about: str
    fact: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.about}: {self.fact}"
