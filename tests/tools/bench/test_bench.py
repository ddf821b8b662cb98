"""The bench counts before it measures; how fast anything is, no test asks."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from ops.lab.bench.door import accepted, creations
from ops.lab.bench.gentle import busiest_second, pace, passed
from ops.lab.bench.machine import Cores
from ops.lab.bench.payment import compared
from ops.lab.bench.rig import ROOT, Rig, WrongCountError
from ops.lab.bench.sampling import owner, stacks
from ops.lab.bench.serving import DOOR
from ops.lab.bench.table import Row, quantile, rendered, spread
from tests.support.installation import hasty
from worker.model.refund import Lane, Refund
from worker.model.steps import Step
from worker.store import saves, scripts


def measured(*figures: str) -> subprocess.CompletedProcess[str]:
    """Measure these figures as the command does, with workers in haste."""
    return subprocess.run(
        [sys.executable, "-m", "ops.lab.bench", "--quick", *figures],
        cwd=ROOT,
        env=os.environ | hasty(),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_the_command_measures_a_figure_against_its_floor_and_counts_the_ledger() -> None:
    ended = measured("bulk", "handing", "replicas", "page")
    assert ended.returncode == 0, ended.stderr
    assert "bulk: refunds a second" in ended.stdout
    assert "handing in: single refunds a second" in ended.stdout
    assert "handing in: one submit alone, p50" in ended.stdout
    assert "a replica: refunds of a file a second" in ended.stdout
    assert "a replica: single idle latency, p50" in ended.stdout
    assert "page: the overview, p50 and p99" in ended.stdout
    assert "each refund moved money once, none is missing" in ended.stdout


def test_the_command_compares_a_payment_of_many_refunds_with_payments_of_few() -> None:
    ended = measured("payment")
    assert ended.returncode == 0, ended.stderr
    assert "400 refunds of one payment" in ended.stdout
    assert "at most 1.5" in ended.stdout


def test_the_command_measures_what_the_watch_of_settled_refunds_costs() -> None:
    ended = measured("watch")
    assert ended.returncode == 0, ended.stderr
    assert "8,000 settled, 5,000 rechecks waiting" in ended.stdout
    assert "under 2 MB    | reached" in ended.stdout


def test_the_command_finds_what_was_planted_between_the_books() -> None:
    ended = measured("reconcile")
    assert ended.returncode == 0, ended.stderr
    assert "190 of 190, no other" in ended.stdout
    assert "ambiguous, missing_here, twice | reached" in ended.stdout
    assert "under 150 MB" in ended.stdout


def test_the_command_measures_posts_beside_a_bare_handler_and_counts_the_records() -> None:
    ended = measured("door", "callbacks")
    assert ended.returncode == 0, ended.stderr
    assert "door: POSTs a second" in ended.stdout
    assert "door: from settled to the answer of wait" in ended.stdout
    assert "door: memory of an upload" in ended.stdout
    assert "callbacks: refunds a second of a file" in ended.stdout
    assert "callbacks: a second to one endpoint beside a dead one" in ended.stdout


def test_a_server_whose_posts_are_refused_counts_for_nothing() -> None:
    with Rig(Cores.split(are_kept=False)) as rig:
        server, url = rig.serve(DOOR)
        with pytest.raises(WrongCountError, match="3 of 3 POSTs were not accepted"):
            accepted(url, creations({"Host": "127.0.0.1", "Content-Type": "application/json"}, 3))
        rig.stop_serving(server)


def test_a_payment_whose_refunds_were_not_all_saved_counts_for_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    save = saves.save

    def stale(
        refund: Refund, step: Step, detail: Mapping[str, Any]
    ) -> scripts.Command[saves.Saved]:
        return save(replace(refund, version=99), replace(step, proof=False), detail)

    monkeypatch.setattr(saves, "save", stale)
    with pytest.raises(WrongCountError, match="0 of 400 refunds were saved as done"):
        compared(200)


def test_a_payment_that_takes_too_long_is_measured_as_far_as_it_came() -> None:
    # A turn of each phase, of both sizes.
    cut = compared(300, seconds=0)
    assert cut.many > 0
    assert cut.few > 0
    assert not cut.whole


def test_a_run_whose_refunds_were_not_all_sent_counts_for_nothing() -> None:
    with Rig(Cores.split(are_kept=False)) as rig:
        rig.fill(3, Lane.BULK)
        rig.count(0, unsent=3)
        with pytest.raises(WrongCountError, match="expected 3 refunds settled"):
            rig.count(3)


def test_the_busiest_second_is_found_wherever_it_begins() -> None:
    assert busiest_second([0.0, 0.9, 1.1, 1.2, 1.89, 3.0]) == 4
    assert busiest_second([0.0, 1.0]) == 1


def test_calls_that_were_refused_for_the_rate_do_not_count_as_used() -> None:
    requests = [
        {"monotonic": number / 10, "status": 429 if number % 2 else 200} for number in range(200)
    ]
    assert passed(requests) == [number / 5 for number in range(100)]
    assert pace(passed(requests)) == pytest.approx(5)


def test_rounds_are_told_by_their_median_and_their_extremes() -> None:
    assert spread([0.5, 0.25, 0.75], "ms") == "0.50 ms (0.25 to 0.75)"
    assert spread([1234.0]) == "1,234"
    assert quantile([float(value) for value in range(100)], 0.99) == 99.0


def test_the_table_says_what_was_reached_and_what_was_not() -> None:
    reached = Row(figure="a", setting="s", measured="1", reached=True)
    missed = Row(figure="b", setting="s", measured="2", reached=False)
    lines = rendered([reached, missed, Row(figure="c", setting="s", measured="3")]).splitlines()
    assert [line.count("reached") for line in lines[2:]] == [1, 1, 0]
    assert "not reached" in lines[3]


def test_a_sample_in_the_standard_library_counts_for_whoever_called_it() -> None:
    raw = (
        "loop;run (asyncio/events.py:80);save (worker/store/saves.py:205);dumps"
        " (json/__init__.py:231) 3\nloop;run (asyncio/events.py:80) 2\nloop;send"
        " (httpx/_client.py:1629);send (aiohttp/client.py:662) 4\n"
    )
    counted: Counter[str] = Counter()
    for stack, count in stacks(raw):
        counted[owner(stack)] += count
    assert counted == {"worker/store/saves.py": 3, "event loop and threads": 2, "aiohttp": 4}
