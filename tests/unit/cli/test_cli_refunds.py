"""`refunds submit`, `status`, `list`, `cancel` and `retry`."""

from __future__ import annotations

import re
from typing import Any

import pytest
import redis

from tests.support.cli_runner import PAYMENT, Cli, Records, messages
from worker.model.refund import PUBLIC_FIELDS, Lane, Refund, Retriable, Stage, Status
from worker.model.steps import Step
from worker.rules import proofs
from worker.store import saves


def test_a_submitted_refund_is_recorded_and_nudged_for_once(
    cli: Cli, sync_redis: redis.Redis
) -> None:
    ran = cli(
        "submit",
        "order-1",
        "--payment-intent",
        PAYMENT,
        "--amount",
        "500",
        "--metadata",
        "order=a=b",
        "--json",
    )
    assert (ran.code, ran.err) == (0, "")
    assert tuple(ran.object) == PUBLIC_FIELDS
    assert (ran.object["amount"], ran.object["metadata"], ran.object["status"]) == (
        500,
        {"order": "a=b"},
        "pending",
    )
    assert messages(sync_redis, Lane.SINGLE) == 1


def test_the_same_submit_again_shows_the_record_and_sends_nothing(
    cli: Cli, sync_redis: redis.Redis
) -> None:
    first = cli("submit", "order-1", "--payment-intent", PAYMENT, "--json")
    again = cli("submit", "order-1", "--payment-intent", PAYMENT, "--json")
    assert (again.code, again.object) == (0, first.object)
    assert "already accepted" in again.err
    assert messages(sync_redis, Lane.SINGLE) == 1


def test_an_id_with_other_contents_is_refused_and_the_record_stays(
    cli: Cli, records: Records
) -> None:
    cli("submit", "order-1", "--payment-intent", PAYMENT, "--amount", "500")
    ran = cli("submit", "order-1", "--payment-intent", PAYMENT, "--amount", "501")
    assert (ran.code, ran.out) == (6, "")
    assert ran.err.startswith(
        "error: refund order-1 exists with other contents and was not changed"
    )
    assert records.get("order-1").amount == 500


@pytest.mark.parametrize(
    "amount",
    [
        "1e3",
        "5.0",
        " 5",
        "5 ",
        "\u0665\u0660\u0660",
        "5_00",
        "+5",
        "-5",
        "0",
        "",
        "1000000000001",
        "0x5",
    ],
)
def test_an_amount_that_is_not_plain_digits_is_rejected_by_name(
    cli: Cli, records: Records, amount: str
) -> None:
    ran = cli("submit", "order-1", "--payment-intent", PAYMENT, "--amount", amount)
    assert (ran.code, ran.out) == (3, "")
    assert re.match(
        rf"error: amount '?{re.escape(amount)}'?: must be a whole number of minor units", ran.err
    )
    assert records.store.get("order-1") is None


def test_every_broken_rule_is_named_at_once(cli: Cli) -> None:
    ran = cli(
        *(
            "submit",
            "order 1",
            "--payment-intent",
            "pi/../1",
            "--amount",
            "1e3",
            "--reason",
            "because",
        ),
        *(
            "--currency",
            "dollars",
            "--metadata",
            "novalue",
            "--metadata",
            "refund_id=1",
            "--metadata",
            "refund_id=2",
        ),
    )
    assert ran.code == 3
    named = ("refund_id 'order 1'", "payment_intent 'pi/../1'", "amount '1e3'", "reason 'because'")
    for part in (
        *named,
        "currency 'dollars'",
        "KEY=VALUE",
        "reserved for the worker",
        "given twice",
    ):
        assert part in ran.err


def test_waiting_for_a_refund_that_is_done_ends_at_once_with_0(cli: Cli, records: Records) -> None:
    records.succeeded("order-1")
    ran = cli("submit", "order-1", "--payment-intent", PAYMENT, "--amount", "500", "--wait", "60")
    assert (ran.code, "succeeded" in ran.out) == (0, True)


def test_waiting_for_a_refund_that_failed_ends_with_4(cli: Cli, records: Records) -> None:
    records.failed("order-1")
    assert (
        cli(
            "submit", "order-1", "--payment-intent", PAYMENT, "--amount", "500", "--wait", "60"
        ).code
        == 4
    )
    assert cli("status", "order-1", "--wait", "60").code == 4


def test_waiting_for_a_refund_that_needs_a_person_does_not_wait_on(
    cli: Cli, records: Records
) -> None:
    records.in_review("order-1")
    ran = cli("status", "order-1", "--wait", "60")
    assert ran.code == 4
    assert "needs review: see why with 'refunds review show order-1'" in ran.err


def test_a_refund_still_on_its_way_after_the_wait_is_no_failure(cli: Cli) -> None:
    ran = cli("submit", "order-1", "--payment-intent", PAYMENT, "--wait", "0.01")
    assert ran.code == 0
    assert (
        "still pending after 0.01 s, which is not a failure: see it later with 'refunds status"
        " order-1'" in ran.err
    )


def test_a_wait_that_ends_while_all_is_paused_says_so(cli: Cli) -> None:
    words = ("submit", "order-1", "--payment-intent", PAYMENT, "--wait", "0.01")
    assert "paused" not in cli(*words).err
    cli("pause")
    for again in (words, ("status", "order-1", "--wait", "0.01")):
        ran = cli(*again)
        assert ran.code == 0
        assert "all sending is still paused: start it with 'refunds resume'" in ran.err


def test_a_refund_is_shown_with_what_became_of_it(cli: Cli, records: Records) -> None:
    records.failed("order-1", reason="duplicate", metadata={"order": "7"})
    ran = cli("status", "order-1")
    assert ran.code == 0
    for part in ("order-1", "failed", PAYMENT, "500", "duplicate", "order=7", "card_gone"):
        assert part in ran.out
    assert all(line == line.rstrip() for line in ran.out.splitlines())


def test_a_history_reads_from_the_first_move_to_the_last(cli: Cli, records: Records) -> None:
    records.succeeded("order-1")
    moves = [
        line
        for line in cli("status", "order-1", "--history").out.splitlines()
        if line.startswith("  2")
    ]
    assert [
        re.sub(r"^  [0-9-]{10} [0-9:.]{12}Z +([+][0-9.]+ m?s)? +", "", line) for line in moves
    ] == [
        "queued     accepted",
        "sending    attempt 1",
        "succeeded  the provider made it",
    ]


def test_a_history_as_json_has_times_that_a_program_reads(cli: Cli, records: Records) -> None:
    records.succeeded("order-1")
    shown = cli("status", "order-1", "--history", "--json").object
    assert [(move["from"], move["to"]) for move in shown["history"]] == [
        (None, "queued"),
        ("queued", "sending"),
        ("sending", "settled"),
    ]
    assert all(
        re.fullmatch(r"[0-9-]{10}T[0-9:]{8}\.[0-9]{3}Z", move["at"]) for move in shown["history"]
    )


def test_known_refunds_are_shown_beside_an_unknown_id(cli: Cli, records: Records) -> None:
    records.queued("order-1")
    ran = cli("status", "order-1", "nobody", "--json")
    assert (ran.code, ran.object["refund_id"]) == (3, "order-1")
    assert ran.err.startswith("error: no refund nobody exists at 127.0.0.1:")


def test_several_refunds_are_one_object_a_line_in_the_order_asked_for(
    cli: Cli, records: Records
) -> None:
    for refund_id in ("a", "b", "c"):
        records.queued(refund_id, payment_intent=f"pi_{refund_id}")
    ran = cli("status", "c", "a", "b", "a", "--json")
    assert [shown["refund_id"] for shown in ran.objects] == ["c", "a", "b"]


def test_a_canceled_refund_says_who_canceled_it(cli: Cli, records: Records) -> None:
    records.queued("order-1")
    ran = cli("cancel", "order-1", "--json")
    assert (ran.code, ran.object["status"]) == (0, "canceled")
    again = cli("cancel", "order-1")
    assert (again.code, again.err) == (
        9,
        "refund order-1 was already canceled: nothing was changed\n",
    )
    last = cli("status", "order-1", "--history", "--json").object["history"][-1]
    assert (last["label"], bool(last["by"])) == ("canceled", True)


def test_a_refund_that_may_have_been_sent_cannot_be_canceled(cli: Cli, records: Records) -> None:
    records.sending("order-1")
    ran = cli("cancel", "order-1")
    assert (ran.code, ran.out) == (6, "")
    assert ran.err.startswith("error: refund order-1 is in stage sending: it may have reached")
    assert records.get("order-1").status is Status.PENDING


def test_canceling_an_unknown_refund_is_an_input_error(cli: Cli) -> None:
    ran = cli("cancel", "nobody")
    assert (ran.code, ran.err.startswith("error: no refund nobody was accepted here")) == (3, True)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), {"queued-1", "bulk-1", "sending-1", "review-1", "done-1", "failed-1"}),
        (("--status", "pending"), {"queued-1", "bulk-1", "sending-1", "review-1"}),
        (("--status", "succeeded"), {"done-1"}),
        (("--stage", "queued"), {"queued-1", "bulk-1"}),
        (("--stage", "settled"), {"done-1", "failed-1"}),
        (("--stage", "settled", "--status", "failed"), {"failed-1"}),
        (("--stage", "queued", "--status", "failed"), set()),
        (("--batch", "b-1"), {"bulk-1"}),
        (("--payment-intent", "pi_done"), {"done-1"}),
        (("--payment-intent", "pi_done", "--status", "failed"), set()),
    ],
)
def test_a_list_holds_what_matches_and_nothing_else(
    cli: Cli, records: Records, options: tuple[str, ...], expected: set[str]
) -> None:
    records.queued("queued-1", payment_intent="pi_queued")
    records.queued("bulk-1", batch_id="b-1", payment_intent="pi_bulk")
    records.sending("sending-1", payment_intent="pi_sending")
    records.in_review("review-1", payment_intent="pi_review")
    records.succeeded("done-1", payment_intent="pi_done")
    records.failed("failed-1", payment_intent="pi_failed")
    ran = cli("list", *options, "--json")
    assert (ran.code, {shown["refund_id"] for shown in ran.objects}) == (0, expected)
    assert ("no refund matches" in ran.err) == (not expected)


def test_newest_failure_is_not_behind_older_successes(cli: Cli, records: Records) -> None:
    for number in range(2):
        records.succeeded(f"done-{number}", f"re_{number}", payment_intent=f"pi_{number}")
    records.failed("failed-1", payment_intent="pi_failed")
    records.store.redis.zadd("refunds:index:succeeded", {"done-0": 1000, "done-1": 3000})
    records.store.redis.zadd("refunds:index:failed", {"failed-1": 2000})
    records.queued("queued-1", payment_intent="pi_queued")
    ran = cli("list", "--json")
    assert [shown["refund_id"] for shown in ran.objects] == [
        "queued-1",
        "done-1",
        "failed-1",
        "done-0",
    ]


def test_a_list_that_is_cut_says_so(cli: Cli, records: Records) -> None:
    for number in range(3):
        records.queued(f"order-{number}", payment_intent=f"pi_{number}")
    cut = cli("list", "--limit", "2")
    assert (len(cut.out.splitlines()), "--limit 0 to list all" in cut.err) == (3, True)
    assert (
        len(cli("list", "--limit", "3", "--json").objects),
        cli("list", "--limit", "3").err,
    ) == (3, "")
    assert len(cli("list", "--limit", "0", "--json").objects) == 3


def test_control_characters_that_reached_a_record_do_not_reach_the_terminal(
    cli: Cli, records: Records
) -> None:
    records.queued("order-1")
    records.store.redis.hset("refunds:refund:order-1", "error_code", "\x1b[2Jgone[bold]")
    for command in (("status", "order-1"), ("list",), ("status", "order-1", "--json")):
        ran = cli(*command)
        assert "\x1b" not in ran.out
        assert "gone[bold]" in ran.out


def test_a_broker_that_is_away_does_not_undo_an_accepted_refund(cli: Cli, records: Records) -> None:
    ran = cli(
        "submit", "order-1", "--payment-intent", PAYMENT, REFUNDS_BROKER_URL="redis://127.0.0.1:1/0"
    )
    assert ran.code == 0
    assert ran.err.startswith("warning: accepted, but the message to the workers was not sent")
    assert records.get("order-1").stage is Stage.QUEUED


def fail(records: Records, kind: Retriable | None, **fields: Any) -> Refund:
    refund = records.sending("order-1", **fields)
    changes = {"error_code": "balance_insufficient", "retriable": kind}
    step = Step(
        to=Stage.SETTLED, status=Status.FAILED, label="balance_insufficient", changes=changes
    )
    assert records.store.run(saves.save(refund, step)).result == "saved"
    return records.get("order-1")


def test_retry_sends_a_failed_refund_again_as_a_new_generation(
    cli: Cli, records: Records, sync_redis: redis.Redis
) -> None:
    before = fail(records, Retriable.YES)
    ran = cli("retry", "order-1", "--json", REFUNDS_ACTOR="ann")
    assert (ran.code, ran.object["status"], ran.object["stage"], ran.object["generation"]) == (
        0,
        "pending",
        "queued",
        2,
    )
    assert records.get("order-1").idempotency_key != before.idempotency_key
    assert messages(sync_redis, Lane.SINGLE) == 1
    assert records.store.history("order-1")[-1]["by"] == "ann"


def test_retry_of_what_goes_again_already_changes_nothing(
    cli: Cli, records: Records, sync_redis: redis.Redis
) -> None:
    fail(records, Retriable.YES)
    cli("retry", "order-1")
    ran = cli("retry", "order-1")
    assert (ran.code, ran.err) == (
        9,
        "refund order-1 is already being sent again: nothing was changed\n",
    )
    assert (records.get("order-1").generation, messages(sync_redis, Lane.SINGLE)) == (2, 1)


def test_retry_of_what_needs_review_after_an_earlier_retry_says_so(
    cli: Cli, records: Records
) -> None:
    records.failed("order-1")
    assert cli("retry", "order-1", "--unknown").code == 0
    claimed = records.claimed("order-1")
    step = proofs.to_review({"doubt_since": claimed.updated_at}, "inconclusive", "it is open")
    records.store.run(saves.save(claimed, step))
    ran = cli("retry", "order-1", "--unknown")
    assert (ran.code, "being sent again" in ran.err) == (9, False)
    assert "refund order-1 needs review (see 'refunds review show order-1')" in ran.err


@pytest.mark.parametrize("kind", [Retriable.UNKNOWN, None])
def test_retry_that_may_not_help_is_asked_for_by_name(
    cli: Cli, records: Records, kind: Retriable | None
) -> None:
    fail(records, kind)
    ran = cli("retry", "order-1")
    assert (ran.code, ran.out) == (6, "")
    assert "failed with balance_insufficient, and it is not known whether" in ran.err
    assert "'refunds retry order-1 --unknown'" in ran.err
    assert cli("retry", "order-1", "--unknown").code == 0
    assert records.get("order-1").generation == 2


def test_retry_that_cannot_help_is_refused_whatever_is_asked(cli: Cli, records: Records) -> None:
    fail(records, Retriable.NO)
    ran = cli("retry", "order-1", "--unknown")
    assert (ran.code, ran.out) == (6, "")
    assert "and sending it again cannot help: submit a new refund under a new id" in ran.err
    assert records.get("order-1").generation == 1


@pytest.mark.parametrize("status", ["pending", "succeeded"])
def test_retry_of_what_has_not_failed_is_refused(cli: Cli, records: Records, status: str) -> None:
    before = records.queued("order-1") if status == "pending" else records.succeeded("order-1")
    ran = cli("retry", "order-1", "--unknown")
    assert (ran.code, ran.err) == (
        6,
        f"error: refund order-1 is {status}, not failed: only a failed refund can be sent again\n",
    )
    assert records.get("order-1") == before


def test_retry_in_a_canceled_batch_is_refused(cli: Cli, records: Records) -> None:
    before = fail(records, Retriable.YES, batch_id="b-1")
    records.store.redis.hset("refunds:batch:b-1", "state", "canceled")
    ran = cli("retry", "order-1")
    assert (ran.code, "belongs to batch b-1, which was canceled" in ran.err) == (6, True)
    assert records.get("order-1") == before


def test_retry_of_an_unknown_id_is_rejected(cli: Cli) -> None:
    ran = cli("retry", "order-9")
    assert (ran.code, "no refund order-9 was accepted here" in ran.err) == (3, True)
