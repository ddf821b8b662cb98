"""The messages that could not be understood, as they lie in Redis.

Newest first, bounded, found by the refund's id.
"""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
import redis

from tests.factories import NOW
from worker.broker import rejected
from worker.broker.kept import RejectedMessage
from worker.broker.rejected import Refusal
from worker.errors import NotFound, NotStorable
from worker.model.times import to_ms
from worker.store.store import Store


@pytest.fixture
def store(any_redis: redis.Redis) -> Store:
    made = Store(any_redis, durable=False)
    made.now = NOW
    return made


def kept(entry_id: str, *refund_ids: str, **fields: Any) -> RejectedMessage:
    return RejectedMessage(
        **{
            "entry_id": entry_id,
            "reason": "why",
            "message": "what",
            "refund_ids": refund_ids,
            **fields,
        }
    )


def lying(store: Store) -> list[Any]:
    entries: Any = store.redis.lrange("refunds:rejected", 0, -1)
    return [json.loads(entry) for entry in entries]


def found_under(store: Store) -> dict[str, Any]:
    found: Any = store.redis.hgetall("refunds:rejected-ids")
    return {refund_id: json.loads(text) for refund_id, text in found.items()}


def test_a_message_is_kept_with_the_servers_time_and_under_each_refund_it_names(
    store: Store,
) -> None:
    assert store.run(rejected.keep(kept("e1", "r-1", "r-2", reason='a "why" ... é'))) == 1
    at = to_ms(NOW)
    whole = {
        "at": at,
        "id": "e1",
        "reason": 'a "why" ... é',
        "refund_ids": ["r-1", "r-2"],
        "message": "what",
    }
    assert lying(store) == [whole]
    short = {"at": at, "id": "e1", "reason": 'a "why" ... é'}
    assert found_under(store) == {"r-1": short, "r-2": short}
    assert store.redis.hgetall("refunds:counters") == {"rejected": "1"}
    keys = ["refunds:clock", "refunds:counters", "refunds:rejected", "refunds:rejected-ids"]
    assert sorted(store.redis.keys("*")) == keys


def test_the_newest_comes_first_and_is_what_a_refund_is_told(store: Store) -> None:
    store.run(rejected.keep(kept("e1", "r-1", reason="first")))
    store.now = NOW + timedelta(milliseconds=1)
    store.run(rejected.keep(kept("e2", "r-1", reason="second")))
    assert [each.entry_id for each in rejected.listed(store)] == ["e2", "e1"]
    told = rejected.of_refund(store, "r-1")
    assert told == Refusal(
        entry_id="e2", rejected_at=NOW + timedelta(milliseconds=1), reason="second"
    )
    assert rejected.of_refund(store, "r-2") is None
    assert store.redis.hget("refunds:counters", "rejected") == "2"


@pytest.mark.parametrize("given", [3, 4])
def test_the_oldest_go_beyond_the_bound_and_are_found_no_more(
    store: Store, monkeypatch: pytest.MonkeyPatch, given: int
) -> None:
    monkeypatch.setattr(rejected, "MOST", 2)
    for number in range(given):
        store.run(rejected.keep(kept(f"e{number}", f"r-{number}", "r-all")))
    last, before = given - 1, given - 2
    assert [each.entry_id for each in rejected.listed(store)] == [f"e{last}", f"e{before}"]
    assert {name: each["id"] for name, each in found_under(store).items()} == {
        f"r-{before}": f"e{before}",
        f"r-{last}": f"e{last}",
        "r-all": f"e{last}",
    }


def test_ten_thousand_are_kept() -> None:
    assert rejected.keep(kept("e1")).arguments[:2] == ["keep", 10_000]
    assert rejected.keep(kept("e1")).durable


def test_a_list_that_is_too_long_is_brought_to_its_bound_whatever_lies_in_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rejected, "MOST", 2)
    odd = [
        "{no json",
        "5",
        '{"refund_ids": 5}',
        '{"refund_ids": [5, {}, "r-1"]}',
        '{"reason": "old"}',
    ]
    store.redis.rpush("refunds:rejected", *odd)
    store.redis.hset("refunds:rejected-ids", "r-1", "{no json")
    store.run(rejected.keep(kept("e1", "r-2")))
    assert store.redis.lrange("refunds:rejected", 1, -1) == ["{no json"]
    assert found_under(store).keys() == {"r-2"}
    assert found_under(store)["r-2"]["id"] == "e1"


def test_one_is_dropped_and_the_others_stay(store: Store) -> None:
    for number in range(3):
        store.run(rejected.keep(kept(f"e{number}", f"r-{number}", "r-all")))
    rejected.drop(store, "e1")
    assert [each.entry_id for each in rejected.listed(store)] == ["e2", "e0"]
    assert {name: each["id"] for name, each in found_under(store).items()} == {
        "r-0": "e0",
        "r-2": "e2",
        "r-all": "e2",
    }
    rejected.drop(store, "e2")
    assert found_under(store).keys() == {"r-0"}


def test_one_that_is_not_there_is_not_dropped(store: Store) -> None:
    store.run(rejected.keep(kept("e1", "r-1")))
    for call in (rejected.drop, rejected.find):
        with pytest.raises(NotFound, match="no rejected message has the id e2"):
            call(store, "e2")
    assert store.run(rejected._dropping('{"id": "e1"}')) == 0
    assert len(lying(store)) == 1
    assert found_under(store).keys() == {"r-1"}


def test_one_of_two_that_are_the_same_is_dropped(store: Store) -> None:
    store.run(rejected.keep(kept("e1")))
    (entry,) = (json.dumps(each) for each in lying(store))
    store.redis.delete("refunds:rejected")
    store.redis.rpush("refunds:rejected", entry, entry)
    rejected.drop(store, "e1")
    assert store.redis.lrange("refunds:rejected", 0, -1) == [entry]


def test_one_that_is_dropped_already_is_not_forgotten_where_it_is_kept_again(
    store: Store,
) -> None:
    store.run(rejected.keep(kept("e1", "r-1")))
    before = found_under(store)
    assert store.run(rejected._dropping('{"id": "e1", "refund_ids": ["r-1"]}')) == 0
    assert found_under(store) == before


@pytest.mark.parametrize("which", [2, 3])
@pytest.mark.parametrize("text", ["{}", "text", ""])
def test_what_is_not_an_object_is_not_kept(store: Store, which: int, text: str) -> None:
    command = rejected.keep(kept("e1", "r-1"))
    arguments = [*command.arguments[:which], text, *command.arguments[which + 1 :]]
    with pytest.raises(NotStorable, match="is not a JSON object with a field"):
        store.run(replace(command, arguments=arguments))
    assert (lying(store), found_under(store)) == ([], {})


def test_all_are_dropped(store: Store) -> None:
    for number in range(3):
        store.run(rejected.keep(kept(f"e{number}", f"r-{number}")))
    assert rejected.drop_all(store) == 3
    assert store.redis.exists("refunds:rejected", "refunds:rejected-ids") == 0
    assert rejected.drop_all(store) == 0
    assert rejected._dropping("").durable


def test_a_page_is_read_as_far_as_it_is_asked_for(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rejected, "PAGE", 2)
    for number in range(5):
        store.run(rejected.keep(kept(f"e{number}")))
    for limit in range(7):
        assert [each.entry_id for each in rejected.listed(store, limit)] == [
            f"e{n}" for n in range(4, -1, -1)
        ][:limit]
    assert len(list(rejected.listed(store))) == 5


def test_entries_of_an_earlier_version_have_an_id_that_stays(store: Store) -> None:
    old = {"at": to_ms(NOW), "reason": "why", "message": "what"}
    store.redis.lpush(
        "refunds:rejected", json.dumps(old), "{no json", "[1]", json.dumps({"at": "x", "id": 5})
    )
    found = list(rejected.listed(store))
    assert len({each.entry_id for each in found}) == 4
    assert found == list(rejected.listed(store))
    assert (found[3].reason, found[3].message, found[3].rejected_at) == ("why", "what", NOW)
    for each in found:
        rejected.drop(store, each.entry_id)
    assert lying(store) == []


def test_a_key_of_another_type_ends_the_script_before_it_writes(store: Store) -> None:
    store.redis.set("refunds:rejected-ids", "x")
    with pytest.raises(NotStorable, match="a key of the records holds a value of another type"):
        store.run(rejected.keep(kept("e1", "r-1")))
    assert store.redis.exists("refunds:rejected", "refunds:counters") == 0


def test_message_without_all_that_is_kept_of_it_is_refused(store: Store) -> None:
    command = rejected.keep(kept("e1"))
    cut = replace(command, arguments=command.arguments[:3])
    with pytest.raises(NotStorable, match=r"too few arguments: 6 of 7$"):
        store.run(cut)
    assert lying(store) == []


def test_secrets_that_an_earlier_version_kept_are_not_shown(store: Store) -> None:
    store.redis.lpush(
        "refunds:rejected",
        json.dumps({"id": "e1", "reason": "sk_test_planted", "message": "sk_test_planted"}),
    )
    assert "planted" not in str(rejected.find(store, "e1"))
