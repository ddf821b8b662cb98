"""The bench's peers do the same job, and each of their runs is counted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
import redis
from click.testing import CliRunner

from ops.lab.bench import plan
from ops.lab.bench.__main__ import main
from ops.lab.bench.machine import Cores, cpu_seconds, cpu_seconds_of_family, family
from ops.lab.bench.peers import compared
from ops.lab.bench.peers.job import records_url
from ops.lab.bench.rig import Window, WrongCountError
from ops.lab.bench.table import Row, Standing, rendered

BURNS = """
import subprocess, sys, time
if len(sys.argv) == 1:
    child = subprocess.Popen([sys.executable, "-c", sys.stdin.read(), "child"], stdout=sys.stdout)
    child.wait()
else:
    while time.process_time() < 0.3:
        pass
    print("burnt", flush=True)
    time.sleep(600)  # until the rig ends it
"""


@pytest.mark.parametrize(
    "contender", [compared.HTTPX, *compared.PEERS], ids=lambda contender: contender.name
)
def test_a_peer_and_a_bare_loop_do_the_job_and_their_ledger_is_counted(
    contender: compared.Contender,
) -> None:
    # Raises if a refund moved no money, or twice.
    taken = compared.measured(plan.quick(Cores.split(are_kept=False)), contender)
    assert taken.window.refunds > 0
    assert taken.window.worker_cpu > 0
    assert (taken.accepted or 0) > 0 or not contender.has_queue


def test_the_worker_is_held_against_the_loops_and_the_best_peer_of_each_round(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rates = {
        compared.AIOHTTP: 1000,
        compared.HTTPX: 500,
        compared.FILES: 480,
        compared.SINGLE: 300,
        compared.PEERS[0]: 150,
        compared.PEERS[1]: 100,
    }

    def measured(_plan: plan.Plan, contender: compared.Contender) -> compared.Taken:
        rate = rates.get(contender, 50)
        window = Window(
            refunds=rate, seconds=1, worker_cpu=rate / 1000, server_cpu=0, sandbox_cpu=0
        )
        return compared.Taken(window=window, accepted=2.0 * rate if contender.has_queue else None)

    monkeypatch.setattr(compared, "measured", measured)
    taken = list(compared.peers(plan.quick(Cores.split(are_kept=False)), frozenset()))
    standings = [each for each in taken if isinstance(each, Standing)]
    assert [each.name for each in standings] == [each.name for each in compared.CONTENDERS]
    assert [each.of_aiohttp for each in standings[:4]] == ["1.00", "0.50", "0.48", "0.30"]
    figures = [each for each in taken if isinstance(each, Row)]
    assert [(each.ratio, each.reached) for each in figures] == [
        *(("0.96", True), ("0.48", False)),
        *(("2.00", True), ("1.00", False)),
        ("2.00", None),
    ]


def test_a_peer_whose_records_or_ledger_lack_a_refund_counts_for_nothing() -> None:
    with compared.PeerRig(Cores.split(are_kept=False)) as rig:
        rig.count(0)
        with pytest.raises(WrongCountError, match="expected 1 refunds settled"):
            rig.count(1)
        with redis.Redis.from_url(records_url(rig.server.url)) as records:
            records.set("refund:tour-0-1", '{"status": "pending"}')
            assert rig.settled() == 0
            records.set("refund:tour-0-1", '{"status": "succeeded"}', ex=60)
            assert rig.settled() == 1
        with pytest.raises(WrongCountError, match="'effects': 0"):
            rig.count(1)


def test_a_peer_that_is_not_installed_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compared, "find_spec", lambda name: None if name == "dramatiq" else name)
    ended = CliRunner().invoke(main, ["peers"])
    assert ended.exit_code == 1
    assert "measures dramatiq, which this environment does not have" in ended.stderr
    assert "pip install -e .[bench]" in ended.stderr


def test_the_processor_time_of_a_worker_includes_the_processes_below_it() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", BURNS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        parent.stdin.write(BURNS)
        parent.stdin.close()
        assert parent.stdout.readline() == "burnt\n"
        alone, together = cpu_seconds(parent.pid), cpu_seconds_of_family(parent.pid)
        (child,) = family(parent.pid) - {parent.pid}
        os.kill(child, signal.SIGTERM)
    assert together - alone >= 0.25


def test_the_table_of_those_who_did_the_same_job_comes_before_the_figures() -> None:
    standing = Standing(
        name="peer", rate="400", cpu="2 ms", accepted="", of_httpx="0.5", of_aiohttp="0.3"
    )
    row = Row(figure="figure", setting="s", measured="1")
    first, second = rendered([row, standing]).split("\n\n")
    assert "peer" in first
    assert "figure" in second
    assert rendered([row]) == second
