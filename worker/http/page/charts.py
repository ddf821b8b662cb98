"""The geometry of the charts: where each bar is. A template draws them as SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from worker.store.pace import SETTLED_STATUSES, Minute

WIDTH: Final = 600
HEIGHT: Final = 120
_GAP: Final = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """A rectangle of a chart, with what it stands for as a CSS class."""

    x: float
    y: float
    width: float
    height: float
    kind: str


def stacked(minutes: Sequence[Minute]) -> list[Bar]:
    """Return the bars of refunds a minute, the statuses of a minute on top of each other."""
    most = max((sum(minute.settled.values()) for minute in minutes), default=0) or 1
    step = WIDTH / max(len(minutes), 1)
    bars: list[Bar] = []
    for index, minute in enumerate(minutes):
        top = float(HEIGHT)
        for status in SETTLED_STATUSES:
            height = HEIGHT * minute.settled[status.value] / most
            top -= height
            if height:
                bars.append(_bar(index * step, top, step - _GAP, height, status.value))
    return bars


def upright(counts: Mapping[str, int]) -> list[Bar]:
    """Return one bar a name, the largest one as high as the chart."""
    most = max(counts.values(), default=0) or 1
    step = WIDTH / max(len(counts), 1)
    return [
        _bar(index * step, HEIGHT - HEIGHT * count / most, step - _GAP, HEIGHT * count / most, "n")
        for index, count in enumerate(counts.values())
    ]


def lying(lengths: Mapping[str, float], *, thickness: int = 16) -> list[Bar]:
    """Return one horizontal bar a name, the largest one as long as the chart."""
    most = max(lengths.values(), default=0) or 1
    return [
        _bar(0, index * thickness, max(WIDTH * length / most, 1), thickness - _GAP, name)
        for index, (name, length) in enumerate(lengths.items())
    ]


def _bar(x: float, y: float, width: float, height: float, kind: str) -> Bar:
    return Bar(
        x=round(x, 1), y=round(y, 1), width=round(width, 1), height=round(height, 1), kind=kind
    )
