"""The page of error codes says what the table says, and the table knows every code that the worker
gives.
"""

from __future__ import annotations

import re
from pathlib import Path

from ops.lab.tools.error_codes import PAGE, page
from worker.rules.codes import CODES, DONE, OTHER, counted

WORKER = Path(__file__).parents[3] / "worker"
GIVEN = re.compile(
    r'(?:"error_code": |_told\(|_poll_failed\(refund, |refused_unsent\(refund,'
    r" |to_review\([^,(){]*, |_maybe\()"
    r'"([a-z0-9_]+)"'
)


def sources() -> str:
    """The package's code, with the arguments of every call on the line of its bracket."""
    texts = (file.read_text("utf-8") for file in WORKER.rglob("*.py"))
    return re.sub(r"\(\s+", "(", "".join(texts))


def test_page_of_error_codes_is_made_of_the_table() -> None:
    assert PAGE.read_text("utf-8") == page(), "run ./ops/dev python -m ops.lab.tools.error_codes"


def test_table_knows_every_code_that_the_worker_gives() -> None:
    given = set(GIVEN.findall(sources()))
    assert {"found_late", "budget_spent", "no_reply", "currency_mismatch"} <= given
    assert given - CODES.keys() == set()


def test_page_sends_a_reader_to_the_stage_first_and_promises_nobody_to_a_refund_in_review() -> None:
    before, table = page().split("\n## ", 1)
    assert "Read `stage` first" in before
    assert "| `review` | what was seen last;" in before
    refused = table.split("\n## ")[0]
    assert "echo" in refused.split("| code |")[0]


def test_every_label_of_a_review_is_a_code_of_the_table() -> None:
    # Such a label is the reason for the review, also where the record keeps the code of its last
    # attempt.
    labels = set(
        re.findall(r'(?:to_review\([^()]*?,\s*|_take_word\(refund, )"([a-z0-9_]+)",', sources())
    )
    assert {"inconclusive", "no_readback", "contradicted", "unreadable"} <= labels
    assert labels - CODES.keys() == set()
    kept = {"inconclusive", "unreadable", "resends_spent", "no_readback", "contradicted"}
    assert not any(CODES[label].is_stored for label in kept)


def test_every_code_says_what_to_do_and_answers_each_question_with_yes_or_no() -> None:
    for code in CODES.values():
        assert code.advice.endswith(".")
        assert {type(code.is_stored), type(code.never_an_echo), type(code.of_one_payment)} == {bool}


def test_answer_counts_under_its_code_if_that_is_known_and_under_other_if_not() -> None:
    names = ["card_declined", DONE, "made_up", ""]
    assert [counted(name) for name in names] == ["card_declined", "done", OTHER, OTHER]


def test_codes_that_settle_a_doubted_refund_are_these() -> None:
    of_the_request = {"amount_too_small", "currency_mismatch", "parameter_invalid_integer"}
    of_the_card = {"expired_or_canceled_card", "lost_or_stolen_card"}
    known = CODES.values()
    assert {code.name for code in known if code.is_of_the_request} == of_the_request
    assert {code.name for code in known if code.never_an_echo} == of_the_request | of_the_card
    assert {code.name for code in known if code.of_one_payment} == {"lock_timeout"}
    assert all(code.is_of_the_request is False for code in known if code.name in of_the_card)
