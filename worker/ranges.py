"""Numbers as options: what is none, or lies outside, is answered with the range that holds."""

from __future__ import annotations

import math
from typing import Any, Final

import click


class Whole(click.IntRange):
    """A whole number from `min` to `max`, both allowed."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number; click's own words name no range for what is no number."""
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter:
            end = "or more" if self.max is None else f"to {self.max}"
            self.fail(f"{value!r} is no whole number of {self.min} {end}", param, ctx)


class _Seconds(click.FloatRange):
    """A number of seconds, 0 or more; of `inf` and `nan` no end could be told."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the seconds."""
        try:
            seconds = super().convert(value, param, ctx)
        except click.BadParameter:
            seconds = math.nan
        if not math.isfinite(seconds):
            self.fail(f"{value!r} is no number of seconds, 0 or more", param, ctx)
        return seconds


SECONDS: Final = _Seconds(min=0)
