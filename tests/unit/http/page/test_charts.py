"""The charts: every bar lies within its chart and is as large as its figure."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from worker.http.page import charts
from worker.store.pace import SETTLED_STATUSES, Minute

ROUNDED = 0.2
minutes = st.lists(
    st.builds(
        lambda counts: Minute(
            start_ms=0,
            settled={
                status.value: count for status, count in zip(SETTLED_STATUSES, counts, strict=True)
            },
        ),
        st.tuples(*[st.integers(0, 10**6)] * 3),
    ),
    min_size=1,
    max_size=30,
)


@given(minutes)
def test_stacked_bars_lie_within_the_chart(found: list[Minute]) -> None:
    for bar in charts.stacked(found):
        assert bar.x >= -ROUNDED
        assert bar.x + bar.width <= charts.WIDTH + ROUNDED
        assert bar.y >= -ROUNDED
        assert bar.y + bar.height <= charts.HEIGHT + ROUNDED


def test_the_bars_of_a_minute_are_as_high_as_its_figures() -> None:
    found = [
        Minute(start_ms=0, settled={"succeeded": 2, "failed": 1, "canceled": 1}),
        Minute(start_ms=60_000, settled={"succeeded": 1, "failed": 0, "canceled": 0}),
    ]
    heights = [(bar.kind, bar.height, bar.y) for bar in charts.stacked(found)]
    assert heights == [
        ("succeeded", 60, 60),
        ("failed", 30, 30),
        ("canceled", 30, 0),
        ("succeeded", 30, 90),
    ]


def test_a_chart_without_figures_has_no_bar_to_see() -> None:
    assert charts.stacked([]) == []
    assert [bar.height for bar in charts.upright({"0 to 1 s": 0})] == [0]
    assert charts.lying({}) == []


def test_lying_bars_are_as_long_as_their_figures() -> None:
    bars = charts.lying({"queued": 10, "review": 40})
    assert [(bar.kind, bar.width, bar.y) for bar in bars] == [
        ("queued", 150, 0),
        ("review", 600, 16),
    ]
