"""The table of figures: one row a figure and setting, medians with their spread, as Markdown that
reads as text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

from ops.lab.tables import aligned

HEAD: Final = ("figure", "setting", "measured", "its floor", "ratio", "to reach", "")
STANDINGS: Final = (
    "who",
    "refunds a second",
    "CPU a refund",
    "accepted a second",
    "of the loop with httpx",
    "of plain aiohttp",
)
_MANY: Final = 100
_FEW: Final = 10


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure: what was measured, what it is held against, and whether that was reached (None:
    beside it).
    """

    figure: str
    setting: str
    measured: str
    floor: str = ""
    ratio: str = ""
    to_reach: str = ""
    reached: bool | None = None

    @property
    def cells(self) -> tuple[str, ...]:
        """The row's texts in the order of `HEAD`."""
        verdict = "" if self.reached is None else "reached" if self.reached else "**not reached**"
        return (
            self.figure,
            self.setting,
            self.measured,
            self.floor,
            self.ratio,
            self.to_reach,
            verdict,
        )


@dataclass(frozen=True, kw_only=True)
class Standing:
    """What one way of doing a job reached, beside others that did the same job in the same run."""

    name: str
    rate: str
    cpu: str
    accepted: str
    of_httpx: str
    of_aiohttp: str

    @property
    def cells(self) -> tuple[str, ...]:
        """The texts in the order of `STANDINGS`."""
        return (self.name, self.rate, self.cpu, self.accepted, self.of_httpx, self.of_aiohttp)


def number(value: float) -> str:
    """Return a number with no more digits than its size bears."""
    if abs(value) >= _MANY:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= _FEW else f"{value:.2f}"


def spread(values: Sequence[float], unit: str = "") -> str:
    """Return the median and, where there are several, the least and the most."""
    shown = number(median(values)) + (f" {unit}" if unit else "")
    return (
        shown if len(values) == 1 else f"{shown} ({number(min(values))} to {number(max(values))})"
    )


def at_least(values: Sequence[float], least: float) -> bool:
    """Tell whether the median reaches a floor."""
    return median(values) >= least


def at_most(values: Sequence[float], most: float) -> bool:
    """Tell whether the median stays under a ceiling."""
    return median(values) <= most


def quantile(values: Sequence[float], part: float) -> float:
    """Return the value below which so large a part of the others lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


def rendered(rows: Iterable[Row | Standing]) -> str:
    """Return a table of the standings and one of the figures, with aligned columns."""
    taken = list(rows)
    kinds = ((Standing, STANDINGS), (Row, HEAD))
    tables = [(head, [row.cells for row in taken if isinstance(row, kind)]) for kind, head in kinds]
    return "\n\n".join(aligned([head, *cells]) for head, cells in tables if cells)
