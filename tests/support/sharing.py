"""Which tests run in one process, and in which order they are begun.

Tests that share what takes seconds to start run in one process, so that it is started once. All
others of real processes are given out one by one, and begun first: they are the long ones, and
half of their time is waiting. Those under `tests/unit` fill the rest, file by file.
"""

from __future__ import annotations

import re
from typing import Final

from xdist.scheduler import LoadScopeScheduling

TOGETHER: Final = {
    "the stack of tests/deploy": (
        r"tests/deploy/test_(alerts|canaries|dashboard|flower|redis_users|stack)\.py::"
    ),
    "the session's RabbitMQ": r"rabbitmq",
    "the browser": r"tests/integration/test_page_in_browser\.py::",
    "the processes of the simulation": r"tests/simulation/",
    "the wheel": r"tests/deploy/test_package\.py::",
}
"""What is shared, and what the names of its tests have in common."""


def scope_of(test: str) -> str:
    """Return what a test belongs to: all of one scope run in one process."""
    for shared, names in TOGETHER.items():
        if re.search(names, test):
            return shared
    return test.partition("::")[0] if test.startswith("tests/unit/") else test


class Sharing(LoadScopeScheduling):  # type: ignore[misc]  # pytest-xdist carries no types
    """`--dist loadscope` with scopes of our own, of which each process is given the next."""

    def _split_scope(self, nodeid: str) -> str:
        return scope_of(nodeid)
