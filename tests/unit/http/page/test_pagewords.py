"""The page's own words: no option, no setting and no command where a person has none."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.factories import a_refund
from worker.http.page.importwords import in_labels
from worker.http.page.pagewords import amount_of, batch_facts, facts, on_page
from worker.http.page.refusals import move_of
from worker.model.refund import Baseline, Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WORKER = Path(__file__).parents[4] / "worker"
FOR_A_SHELL = re.compile(r"--[a-z]|'refunds |REFUNDS_")
SAID = {
    "client.py": on_page,
    "rules/contradictions.py": on_page,
    "rules/decisions.py": on_page,
    "rules/evidence.py": on_page,
    "rules/polls.py": on_page,
    "rules/readback.py": on_page,
    "wording/batches.py": on_page,
    "wording/held.py": on_page,
    "wording/history.py": on_page,
    "wording/refunds.py": on_page,
    "wording/upcoming.py": on_page,
    "batches/opening.py": in_labels,
    "batches/record.py": on_page,
    "importer/amounts.py": in_labels,
    "importer/cells.py": in_labels,
    "importer/columns.py": in_labels,
    "importer/naming.py": in_labels,
    "importer/requests.py": in_labels,
    "importer/sources.py": in_labels,
    "importer/workbook.py": in_labels,
    "file_import/limits.py": in_labels,
    "file_import/submitting.py": on_page,
}
"""The files whose sentences reach the page, and what puts them into its words."""


def sentences(path: Path) -> Iterator[str]:
    """The texts of a file, with X for what a text fills in; docstrings are not texts."""
    tree = ast.parse(path.read_text("utf-8"))
    parts = {
        each for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for each in node.values
    }
    documents = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(
                str(each.value) if isinstance(each, ast.Constant) else "X" for each in node.values
            )
        elif (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and node not in parts | documents
        ):
            yield node.value


@pytest.mark.parametrize("name", SAID)
def test_no_sentence_that_reaches_the_page_is_for_a_shell(name: str) -> None:
    said: Callable[[str], str] = SAID[name]
    found = [each for each in map(said, sentences(WORKER / name)) if FOR_A_SHELL.search(each)]
    assert found == []


def test_a_decision_that_comes_back_says_which_box_makes_it_count() -> None:
    alarm = (
        "the decision could not be verified (so): decide again with --unverified if it must count"
    )
    entry = {
        "at": 0,
        "to": "review",
        "label": "inconclusive",
        "alarm": alarm,
        "look": "inconclusive",
    }
    said = move_of(entry)[2]
    assert "tick “My word counts if the provider shows nothing either way”" in said
    assert FOR_A_SHELL.search(said) is None


def test_what_a_person_wrote_is_shown_as_it_was_written() -> None:
    note = "decide again with --unverified if it must count"
    entry = {"at": 0, "to": "in_doubt", "label": "operator_says_failed", "by": "ann", "note": note}
    assert f"“{note}”" in move_of(entry)[2]


@pytest.mark.parametrize(
    ("fields", "shown"),
    [
        ({"amount": 1040}, "10.40 USD"),
        ({"amount": 1040, "currency": "jpy"}, "1,040 JPY"),
        ({"amount": 1040, "currency": None}, "1,040 minor units"),
        ({"amount": 1, "currency": None}, "1 minor unit"),
        ({"amount": 1040, "currency": None, "asked_currency": "eur"}, "10.40 EUR"),
        ({"amount": 1040, "currency": None, "baseline": "usd"}, "10.40 USD"),
        ({"amount": 1040, "currency": "xxx"}, "1,040 minor units"),
        ({"amount": None}, "all that is left"),
    ],
)
def test_an_amount_is_shown_in_the_currency_that_is_known(
    fields: dict[str, Any], shown: str
) -> None:
    if "baseline" in fields:
        fields["baseline"] = Baseline(refunded=0, remaining=5000, currency=fields["baseline"])
    assert amount_of(a_refund(**fields)) == shown


def test_facts_are_named_in_the_page_s_words() -> None:
    refund = a_refund(Stage.SETTLED, evidence="operator", amount=500)
    rows = [("amount", "500 usd"), ("evidence", "operator"), ("retriable", "no"), ("why", None)]
    assert facts(refund, rows) == [
        ("amount", "5.00 USD"),
        ("known from", "a person's decision"),
        ("sending it again helps", "no"),
    ]
    found = batch_facts([("total usd", "1.00 USD"), ("rows", "2"), ("canceled", None)])
    assert found == [("total USD", "1.00 USD"), ("rows", "2")]
