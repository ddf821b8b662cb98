"""`refunds rejected`: what could not be understood is seen and dropped by a person, and found under
its refund's id.
"""

from __future__ import annotations

import pytest

from tests.support.cli_runner import Cli, Records
from worker import MessageRejected, NotFound, Refunds
from worker.broker import rejected
from worker.broker.kept import kept_of
from worker.settings import Settings


def keep(records: Records, refund_id: str, reason: str = "amount: must be a whole number") -> str:
    kept = kept_of(([], {"refund_id": refund_id, "amount": "five"}), reason)
    records.store.run(rejected.keep(kept))
    return kept.entry_id


def test_they_are_listed_newest_first_with_when_why_and_what_they_name(
    cli: Cli, records: Records
) -> None:
    first, second = keep(records, "r-1", "first"), keep(records, "r-2", "second")
    ran = cli("rejected")
    assert ran.code == 0
    head, *lines = ran.out.splitlines()
    assert head.split() == ["id", "rejected", "refund", "reason"]
    assert [line.split()[0] for line in lines] == [second, first]
    assert [line.split()[-2:] for line in lines] == [["r-2", "second"], ["r-1", "first"]]
    assert "refunds rejected show" in ran.err


def test_the_list_for_programs_is_one_object_a_line(cli: Cli, records: Records) -> None:
    entry_id = keep(records, "r-1")
    (shown,) = cli("rejected", "list", "--json").objects
    assert shown.pop("rejected_at").endswith("Z")
    assert shown == {
        "entry_id": entry_id,
        "reason": "amount: must be a whole number",
        "refund_ids": ["r-1"],
    }


def test_the_list_says_if_there_are_more(cli: Cli, records: Records) -> None:
    for number in range(3):
        keep(records, f"r-{number}")
    ran = cli("rejected", "list", "--limit", "2")
    assert (len(ran.out.splitlines()), "more messages than the 2 shown" in ran.err) == (3, True)
    assert len(cli("rejected", "list", "--limit", "0", "--json").objects) == 3


def test_none_at_all_is_said(cli: Cli) -> None:
    assert cli("rejected").err == "no message was rejected\n"
    assert cli("rejected", "drop", "--all").code == 9


def test_one_is_shown_whole(cli: Cli, records: Records) -> None:
    entry_id = keep(records, "r-1")
    ran = cli("rejected", "show", entry_id)
    assert ran.code == 0
    assert ran.out.splitlines()[0] == entry_id
    assert ran.out.splitlines()[-1] == '[[], {"refund_id": "r-1", "amount": "five"}]'
    shown = cli("rejected", "show", entry_id, "--json").object
    assert shown["message"] == '[[], {"refund_id": "r-1", "amount": "five"}]'


@pytest.mark.parametrize("command", ["show", "drop"])
def test_an_id_that_is_not_there_is_rejected(cli: Cli, records: Records, command: str) -> None:
    keep(records, "r-1")
    ran = cli("rejected", command, "5f0c0f3e1a")
    assert (ran.code, ran.err) == (
        3,
        "error: no rejected message has the id 5f0c0f3e1a: see them with 'refunds rejected list'\n",
    )


def test_one_is_dropped(cli: Cli, records: Records) -> None:
    first, second = keep(records, "r-1"), keep(records, "r-2")
    assert cli("rejected", "drop", first).code == 0
    assert [shown["entry_id"] for shown in cli("rejected", "list", "--json").objects] == [second]


def test_all_are_dropped_and_counted(cli: Cli, records: Records) -> None:
    keep(records, "r-1")
    keep(records, "r-2")
    ran = cli("rejected", "drop", "--all", "--yes")
    assert (ran.code, ran.err) == (0, "2 messages are dropped\n")
    assert cli("rejected", "list", "--json").out == ""


@pytest.mark.parametrize("arguments", [(), ("5f0c0f3e1a", "--all")])
def test_a_drop_names_one_or_all(cli: Cli, records: Records, arguments: tuple[str, ...]) -> None:
    keep(records, "r-1")
    assert cli("rejected", "drop", *arguments).code == 2
    assert len(cli("rejected", "list", "--json").objects) == 1


def test_the_status_of_a_refund_whose_message_was_rejected_says_so(
    cli: Cli, records: Records
) -> None:
    entry_id = keep(records, "r-1")
    records.queued("r-2")
    ran = cli("status", "r-1", "r-2", "r-3", "--json")
    assert ran.code == 3
    assert [shown["refund_id"] for shown in ran.objects] == ["r-2"]
    rejected, unknown = ran.err.splitlines()
    assert rejected.startswith(
        "error: refund r-1 was not accepted, because its message was rejected at "
    )
    assert (
        f"(amount: must be a whole number): see the message with 'refunds rejected show {entry_id}'"
        in rejected
    )
    assert unknown.startswith("error: no refund r-3 exists at ")


def test_a_record_counts_more_than_a_message_that_was_rejected(cli: Cli, records: Records) -> None:
    records.queued("r-1")
    keep(records, "r-1")
    ran = cli("status", "r-1")
    assert (ran.code, ran.err) == (0, "")


def test_other_commands_say_so_too(cli: Cli, records: Records) -> None:
    keep(records, "r-1")
    ran = cli("cancel", "r-1")
    assert ran.code == 3
    assert "refund r-1 was not accepted, because its message was rejected at " in ran.err


def test_python_is_told_by_an_error_of_its_own(records: Records, redis_url: str) -> None:
    entry_id = keep(records, "r-1")
    with Refunds(settings=Settings.load(redis_url=redis_url)) as refunds:
        with pytest.raises(MessageRejected, match="amount: must be a whole number") as refused:
            refunds.get("r-1")
        assert (refused.value.refund_id, refused.value.entry_id) == ("r-1", entry_id)
        with pytest.raises(NotFound, match="was rejected at"):
            refunds.wait("r-1", timeout=0)
        with pytest.raises(NotFound) as unknown:
            refunds.get("r-2")
        assert not isinstance(unknown.value, MessageRejected)
        assert refunds.get_many(["r-1"]) == [None]
