"""How the tests are shared out to several processes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.sharing import Sharing

STACK = ["tests/deploy/test_alerts.py::test_a", "tests/deploy/test_stack.py::test_b[worker]"]
RABBITMQ = ["tests/integration/test_odd.py::test_c[rabbitmq]", "tests/unit/test_d.py::e[rabbitmq]"]
LONG = ["tests/integration/test_f.py::test_g", "tests/integration/test_f.py::test_h"]
UNIT = ["tests/unit/rules/test_i.py::test_j", "tests/unit/rules/test_i.py::test_k"]
ALL = sorted([*STACK, *RABBITMQ, *LONG, *UNIT])


class Process:
    """What the scheduler of pytest-xdist sees of one of its processes."""

    gateway = SimpleNamespace(id="gw")
    shutting_down = False

    def __init__(self) -> None:
        self.given: list[list[str]] = []

    def send_runtest_some(self, places: list[int]) -> None:
        self.given.append([ALL[place] for place in places])

    def shutdown(self) -> None:
        self.shutting_down = True


@pytest.fixture
def given() -> list[list[str]]:
    """What a process is given at a time, if there is one alone and it does all at once."""
    config: Any = SimpleNamespace(
        getvalue=lambda _: ["popen"], option=SimpleNamespace(loadscopereorder=False)
    )
    sharing, process = Sharing(config), Process()
    node: Any = process
    sharing.add_node(node)
    sharing.add_node_collection(node, ALL)
    sharing.schedule()
    for place in range(len(ALL)):
        known = any(ALL[place] in some for some in process.given)
        if known:
            sharing.mark_test_complete(node, place)
    return process.given


def test_what_is_shared_is_started_by_one_process(given: list[list[str]]) -> None:
    assert STACK in given
    assert RABBITMQ in given


def test_tests_of_real_processes_are_given_out_one_by_one(given: list[list[str]]) -> None:
    assert all([test] in given for test in LONG)


def test_unit_tests_are_given_out_file_by_file_after_the_long_ones(given: list[list[str]]) -> None:
    assert given[-1] == UNIT
