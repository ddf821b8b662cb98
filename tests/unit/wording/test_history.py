"""A history in words: what was sent on whose word, where something was read, and who decided."""

from __future__ import annotations

from typing import Any

import pytest

from tests.factories import NOW
from worker.model.times import to_ms
from worker.wording import history

AT = to_ms(NOW)
SENT = {
    "from": "queued",
    "to": "sending",
    "status": "pending",
    "label": "send",
    "attempt": 1,
    "at": AT,
}
AGAIN = SENT | {"from": "in_doubt", "label": "resend", "attempt": 2}
LOOKED = {"from": "in_doubt", "to": "in_doubt", "status": "pending", "at": AT}
DECIDED = {
    "from": "review",
    "to": "in_doubt",
    "status": "pending",
    "source": "operator",
    "by": "ann",
    "at": AT,
}


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (SENT, "attempt 1"),
        (SENT | {"label": "replay"}, "attempt 1, the same key and bytes again"),
        (
            AGAIN | {"source": "list"},
            "attempt 2, because the payment's list showed that it never happened",
        ),
        (
            AGAIN | {"source": "totals", "by": "ann"},
            "attempt 2, because the payment's totals showed that it never happened",
        ),
        (
            AGAIN | {"source": "operator", "by": "ann"},
            "attempt 2, because ann said that it never happened",
        ),
        (AGAIN | {"source": "operator"}, "attempt 2, because a person said that it never happened"),
        (AGAIN, "attempt 2, because it was considered absent"),
        (
            LOOKED | {"label": "absent", "look": "absent", "source": "list", "reason": "so"},
            "read the payment's list: absent (so)",
        ),
        (
            LOOKED | {"label": "absence_proven", "look": "absent", "source": "totals"},
            "read the payment's totals: absent, absence proven",
        ),
        (LOOKED | {"label": "absent", "look": "absent"}, "read back: absent"),
        (
            LOOKED
            | {
                "to": "settled",
                "status": "succeeded",
                "label": "succeeded",
                "look": "found",
                "source": "lookup",
            },
            "read the refund itself: found",
        ),
        (
            LOOKED
            | {
                "label": "operator_says_absent",
                "look": "inconclusive",
                "source": "operator",
                "by": "ann",
            },
            "read back: inconclusive, decided to send it again, by ann",
        ),
        (
            DECIDED | {"label": "operator_says_failed", "note": "so"},
            "decided as failed, by ann “so”",
        ),
        (DECIDED | {"label": "operator_says_absent"}, "decided to send it again, by ann"),
        (
            DECIDED | {"label": "operator_says_succeeded"},
            "decided which provider refund it is, by ann",
        ),
        (
            LOOKED | {"to": "settled", "status": "canceled", "label": "canceled", "by": "ann"},
            "canceled, by ann",
        ),
    ],
)
def test_a_move_is_told_with_what_it_rests_on(entry: dict[str, Any], words: str) -> None:
    assert history.sentence(entry) == words


def test_what_was_sent_is_told_with_what_came_of_it() -> None:
    answered = {
        "from": "sending",
        "to": "waiting",
        "status": "pending",
        "label": "rate_limited",
        "at": AT + 5,
    }
    answered |= {"seen": "not_done", "http_status": 429, "ms": 5, "source": "reply"}
    assert history.sent([SENT, answered, AGAIN | {"at": AT + 9, "source": "list"}]) == [
        (AT, "attempt 1: provably not done: rate_limited, HTTP 429, after 5 ms"),
        (AT + 9, "attempt 2, because the payment's list showed that it never happened"),
    ]
    assert history.sent([answered]) == []


def test_what_was_read_is_looks_and_polls_and_nothing_else() -> None:
    looked = LOOKED | {"label": "absent", "look": "absent", "source": "list"}
    polled = {
        "from": "processing",
        "to": "settled",
        "status": "succeeded",
        "label": "succeeded",
        "at": AT,
    }
    polled |= {"seen": "http_200", "source": "lookup"}
    assert history.read([SENT, looked, DECIDED | {"label": "operator_says_failed"}, polled]) == [
        (AT, "read the payment's list: absent"),
        (AT, "read at the provider"),
    ]
