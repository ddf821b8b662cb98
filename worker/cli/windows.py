"""The options that name a window of time."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, tzinfo
from typing import Any, TypeVar

import click

from worker.cli.options import days, with_options
from worker.cli.session import note
from worker.model.times import rfc3339
from worker.reconcile.window import Window, WindowError, end_of, start_of, zone_of

F = TypeVar("F", bound=Callable[..., Any])


def window_options(*, required: bool) -> Callable[[F], F]:
    """Return a decorator that adds --from, --to and --tz."""
    zone = click.option(
        "--tz",
        "zone",
        default="UTC",
        show_default=True,
        metavar="ZONE",
        callback=_zone,
        help="Zone of times without one, such as Europe/Berlin or +02:00.",
    )
    return with_options((*days(required=required), zone))


def _zone(_ctx: click.Context, param: click.Parameter, text: str) -> tzinfo:
    try:
        return zone_of(text)
    except WindowError as error:
        raise click.BadParameter(str(error), param=param) from None


def window_of(start: str, end: str, zone: tzinfo) -> Window:
    """Return the window that was typed, and print how it was read."""
    name = "'--from'"
    try:
        first = start_of(start, zone)
        name = "'--to'"
        window = Window(start=first, end=end_of(end, zone))
    except WindowError as error:
        raise click.BadParameter(str(error), param_hint=name) from None
    note(f"from {rfc3339(window.start)} up to {rfc3339(window.end)}")
    return window


def zone_name(zone: tzinfo) -> str:
    """Return a zone as it may be typed."""
    return "UTC" if zone is UTC else str(zone)
