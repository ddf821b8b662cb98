"""Options that are numbers, of every command: what does not fit is answered with what does."""

from __future__ import annotations

from collections.abc import Iterator

import click
import pytest

from worker.cli.group import COMMANDS, refunds
from worker.wording.ranges import SECONDS, Whole

CONTEXT = click.Context(refunds)


def numbers(
    command: click.Command, path: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], click.Option]]:
    if isinstance(command, click.Group):
        for name in command.list_commands(CONTEXT):
            inner = command.get_command(CONTEXT, name)
            assert inner is not None
            yield from numbers(inner, (*path, name))
        return
    for option in command.params:
        if isinstance(option, click.Option) and isinstance(
            option.type, (click.IntRange, click.FloatRange)
        ):
            yield path, option


FOUND = [*numbers(refunds, ())]


def test_there_are_options_with_a_range() -> None:
    assert {path[0] for path, _ in FOUND} >= {
        "list",
        "import",
        "worker",
        "metrics",
        "recover",
        "probe",
        "sandbox",
    }
    assert set(COMMANDS) >= {path[0] for path, _ in FOUND}


@pytest.mark.parametrize("text", ["many", "-1", "1.5.2"])
@pytest.mark.parametrize(
    "option", [pytest.param(option, id=" ".join((*path, option.opts[0]))) for path, option in FOUND]
)
def test_every_option_with_a_range_names_it(option: click.Option, text: str) -> None:
    ranges = r"whole number, (from \d+ to \d+|\d+ or more)|number of seconds, 0 or more"
    with pytest.raises(click.BadParameter, match=f"'{text}' must be a ({ranges})"):
        option.type.convert(text, option, CONTEXT)


def test_both_ends_of_a_range_belong_to_it() -> None:
    assert [Whole(1, 3).convert(text, None, None) for text in ("1", "3")] == [1, 3]
    with pytest.raises(click.BadParameter, match="'4' must be a whole number, from 1 to 3"):
        Whole(1, 3).convert("4", None, None)


@pytest.mark.parametrize("text", ["nan", "inf", "1e999", "soon"])
def test_a_wait_has_an_end(text: str) -> None:
    with pytest.raises(click.BadParameter, match="must be a number of seconds, 0 or more"):
        SECONDS.convert(text, None, None)
