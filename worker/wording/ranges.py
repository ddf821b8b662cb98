"""click number types whose error messages state the allowed range."""

from __future__ import annotations

import math
from typing import Any, Final

import click


class Whole(click.IntRange):
    """A whole number from `min` to `max`, both included."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number. click's own message omits the range if the text is not a number."""
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter:
            allowed = (
                f"{self.min} or more" if self.max is None else f"from {self.min} to {self.max}"
            )
            self.fail(f"{value!r} must be a whole number, {allowed}", param, ctx)


class _Seconds(click.FloatRange):
    """A finite number of seconds, 0 or more."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the seconds."""
        try:
            seconds = super().convert(value, param, ctx)
        except click.BadParameter:
            seconds = math.nan
        if not math.isfinite(seconds):
            self.fail(f"{value!r} must be a number of seconds, 0 or more", param, ctx)
        return seconds


SECONDS: Final = _Seconds(min=0)
