"""How runs with failovers are judged and told, and what they demand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ops.lab.prove import cluster, failover
from ops.lab.prove.evidence import Evidence
from ops.lab.prove.failover import CONTROL, COURSES, PREFIX, QUICK
from ops.lab.prove.failover_rig import Promotion, longest_gap
from ops.lab.prove.judge import judged, recoveries
from ops.lab.prove.scenarios import Result
from ops.lab.prove.table import control_was_caught, exit_code, fewer_were_caught, rows_of, summary
from ops.lab.prove.violation import Violation
from worker.model.request import RefundRequest

LOST = Violation(rule="lost", about="a", fact="accepted, and no record stands")
OURS = Result(name=PREFIX + "killed", subject="ours", refunds=10)


def fewer(*violations: Violation) -> Result:
    return replace(OURS, subject=CONTROL, violations=[*violations])


@pytest.mark.parametrize(
    ("control", "code"),
    [
        (fewer(LOST), 0),
        (fewer(replace(LOST, rule="money twice")), 0),
        (fewer(replace(LOST, rule="unproven")), 1),
        (fewer(), 1),
    ],
)
def test_a_control_that_loses_nothing_fails_the_whole(control: Result, code: int) -> None:
    rows = rows_of([OURS, control])
    assert fewer_were_caught(rows) == (code == 0)
    assert exit_code(rows) == code


def test_a_loss_of_ours_fails_the_whole() -> None:
    assert exit_code(rows_of([replace(OURS, violations=[LOST]), fewer(LOST)])) == 1


def test_runs_without_failovers_need_no_control_with_fewer_replicas() -> None:
    assert fewer_were_caught(rows_of([OURS]))


def test_the_control_with_fewer_replicas_does_not_pass_for_the_naive_worker() -> None:
    naive = Result(name="message lost", subject="control")
    rows = rows_of([OURS, fewer(LOST), naive])
    assert not control_was_caught(rows, whole=False)
    assert "with fewer replicas 1 lost, 0 money twice of 10 refunds" in summary(rows)


def test_a_decision_that_was_acknowledged_must_stay() -> None:
    records = {
        "a": {"stage": "settled", "status": "succeeded"},
        "b": {"stage": "review", "status": "pending"},
    }
    evidence = Evidence(accepted={}, records=records, histories={})
    found = [*failover.undecided(["a", "b", "gone"], evidence)]
    assert [(one.rule, one.about) for one in found] == [
        ("decision lost", "b"),
        ("decision lost", "gone"),
    ]


def test_a_gap_is_counted_from_the_fault_to_the_end_of_the_load() -> None:
    promotion = Promotion(began=10, ended=13)
    assert longest_gap([9, 10.5, 11, 16, 17, 40], promotion, until=20) == 5
    assert longest_gap([14], promotion, until=20) == 6
    assert longest_gap([9], promotion, until=20) == 10


def test_a_wrong_clock_of_a_server_is_no_violation_of_its_run() -> None:
    at = 3_700_000
    entry = {"at": at, "from": None, "to": "queued", "status": "pending", "version": 1}
    record = {"stage": "queued", "status": "pending", "version": "1"}
    right = Evidence(
        accepted={"a": RefundRequest(refund_id="a", payment_intent="pi_a", amount=100)},
        records={"a": record},
        histories={"a": [{**entry, "label": "accepted"}]},
        due=frozenset({"a"}),
        started=99,
        ended=101,
    )
    assert "clock" in {one.rule for one in judged(right)}
    wrong = replace(right, clock_off=3600)
    assert "clock" not in {one.rule for one in judged(wrong)}
    assert recoveries(right, 101) == [3599]
    assert recoveries(wrong, 101) == []


def test_each_run_with_a_control_demands_one_replica_more_than_it() -> None:
    whole = [name for name, _ in failover.runs(keep=Path(), quick=False, control=True)]
    for name, course in COURSES.items():
        assert whole.count(PREFIX + name) == 1 + (
            course.controlled and not failover.missing(course)
        )
        assert 1 <= course.demanded <= course.replicas
    quick = [name for name, _ in failover.runs(keep=Path(), quick=True, control=True)]
    assert quick == [PREFIX + name for name in QUICK for _ in range(2)]


def test_a_run_names_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "FAKE_CLOCK", ("/nowhere/libfaketime.so.1",))
    monkeypatch.setenv("RABBITMQ_SERVER", "/nowhere/rabbitmq-server")
    needy = {PREFIX + name for name, one in COURSES.items() if one.by_rabbit or one.clock_off}
    works = dict(failover.runs(keep=Path(), quick=False, control=True))
    notes = {name: works[name](1).note for name in needy}
    assert len(needy) == 3
    assert all("left out" in note and "apt-get install" in note for note in notes.values())
