"""Reads the limits of an import on the command line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from worker.file_import import Unusable


def parsed(
    parse: Callable[[Any], Any],
) -> Callable[[click.Context, click.Parameter, Any], Any]:
    """Return a click callback that reads an option; one that is absent stays None."""

    def callback(_ctx: click.Context, param: click.Parameter, given: Any) -> Any:
        if given is None:
            return None
        try:
            return parse(given)
        except Unusable as error:
            raise click.BadParameter(str(error), param=param) from None

    return callback
