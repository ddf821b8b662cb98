"""The simulation's worlds as tests, for mutants to be tried in.

One seed each, a server for all of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.simulation.records_seam import Wire
from tests.simulation.runner import play, running_socket
from tests.simulation.secrets import log_taken

WORLDS = int(os.environ.get("MUTANTS_WORLDS", "150"))


@pytest.fixture(scope="session")
def socket() -> Iterator[Path]:
    """A server that writes nothing to disk."""
    with running_socket() as path:
        yield path


@pytest.mark.parametrize("seed", range(WORLDS))
def test_no_promise_is_broken_in_the_world_of(seed: int, socket: Path) -> None:
    """Nothing is lost, sent twice or guessed."""
    # A connection of its own: one that a killed test left behind may hold half a reply.
    wire = Wire(socket)
    try:
        with log_taken():
            assert play(seed, wire).violations == []  # noqa: S101 - this is a test
    finally:
        wire.close()
