"""A key, a password and a person's address, planted wherever they could be.

None of them comes out anywhere.
"""

from __future__ import annotations

import base64
import json
import re
from typing import Any

import pytest

from tests.deploy.asking import ask
from tests.deploy.conftest import CANARIES, EMAIL, KEY, PASSWORD, Installation


def planted(text: str, canaries: tuple[str, ...] = CANARIES) -> list[str]:
    """The canaries in a text, be they plain or in base64 within it."""
    inside = [text]
    for word in re.findall(r"[A-Za-z0-9+/]{24,}={0,2}", text):
        try:
            inside.append(
                base64.b64decode(word + "=" * (-len(word) % 4)).decode("utf-8", "replace")
            )
        except ValueError:
            continue
    return [canary for canary in canaries if any(canary in part for part in inside)]


def test_a_canary_is_found_plain_and_in_base64() -> None:
    assert planted(f"said {KEY}") == [KEY]
    hidden = base64.b64encode(json.dumps({"some": "thing", "key": KEY}).encode()).decode()
    assert planted(f'{{"body": "{hidden}"}}') == [KEY]
    assert planted("nothing at all, in many words") == []


@pytest.mark.parametrize("name", ["worker", "metrics", "flower", "redis"])
def test_no_log_holds_a_canary(installation: Installation, name: str) -> None:
    said = installation.stack.running[name].said
    assert said or name == "redis"
    assert planted(said) == []


def test_every_line_of_a_workers_log_is_one_json_object_and_none_comes_twice(
    installation: Installation,
) -> None:
    lines = installation.stack.running["worker"].said.splitlines()
    events: list[dict[str, Any]] = [json.loads(line) for line in lines]
    assert all(event["event"] and event["at"] and event["level"] for event in events)
    assert len(lines) == len(set(lines))
    settled = [event for event in events if event["event"] == "refund_settled"]
    assert sorted(event["refund_id"] for event in settled) == sorted(installation.ids)
    done = [event for event in settled if event.get("seen") == "done"]
    assert len(done) >= 8
    assert all(
        event["ms"] >= 0 and event["attempt"] >= 1 and event["status"] == "succeeded"
        for event in done
    )


def test_the_metrics_hold_neither_canary_nor_id(installation: Installation) -> None:
    _, text = ask(f"{installation.stack.url('metrics')}/metrics")
    assert planted(text) == []
    assert [refund_id for refund_id in installation.ids if refund_id in text] == []


def test_history_and_events_hold_no_canary(installation: Installation) -> None:
    histories = [installation.refunds.store.history(refund_id) for refund_id in installation.ids]
    assert all(histories)
    events: Any = installation.redis.xrange("refunds:events")
    assert len(events) == sum(len(history) for history in histories)
    assert planted(json.dumps([histories, events])) == []


def test_messages_that_were_rejected_are_kept_without_the_key(installation: Installation) -> None:
    kept: Any = installation.redis.lrange("refunds:rejected", 0, -1)
    assert len(kept) >= 7
    assert [entry for entry in kept if planted(entry, (KEY, PASSWORD))] == []
    assert [entry for entry in kept if EMAIL in json.loads(entry)["reason"]] == []
