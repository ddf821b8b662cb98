"""Tables on a terminal that is too narrow for them: text may wrap, an id never does."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.factories import a_refund
from tests.support.cli_runner import Cli
from worker.batches import Batch
from worker.cli import batch_tables, import_messages, render
from worker.importer import ImportOptions, open_source, validate
from worker.model.refund import Refund, Stage

REFUND = "f-1b68f62b40c680c7812e0cdc5ab4f227-a2-17"
PAYMENT = "pi_1787730829493927936_abcdefghijklmnop"
PROVIDER = "re_1787730829493927936_abcdefghijklmnop"


class Terminal(io.StringIO):
    """A terminal as narrow as COLUMNS says."""

    def isatty(self) -> bool:
        """Tell that it is one."""
        return True


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    return Terminal()


def test_no_id_is_wrapped_in_a_list_of_refunds(narrow: Terminal) -> None:
    refund = a_refund(
        Stage.PROCESSING, refund_id=REFUND, payment_intent=PAYMENT, provider_refund_id=PROVIDER
    )
    render.put(render.listing([refund]), stream=narrow)
    (line,) = [line for line in narrow.getvalue().splitlines() if REFUND in line]
    assert PAYMENT in line
    assert PROVIDER in line
    assert "…" not in narrow.getvalue()


def test_long_list_is_put_out_page_by_page_and_reads_as_one_table(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(render, "_PAGE", 2)
    ids = ["order-1", "order-2-long", "order-3", "order-4", "order-5-that-is-the-longest"]
    taken: list[str] = []

    def read() -> Iterator[Refund]:
        for refund_id in ids:
            taken.append(refund_id)
            yield a_refund(Stage.PROCESSING, refund_id=refund_id, payment_intent=PAYMENT)

    out = io.StringIO()
    tables = render.listings(read())
    render.put(next(tables), stream=out)
    assert taken == ids[:2]
    render.put(*tables, stream=out)
    head, *lines = out.getvalue().splitlines()
    assert [line.split()[0] for line in lines] == ids
    assert {line.index(PAYMENT) for line in lines[:4]} == {head.index("payment")}


def test_no_id_is_wrapped_where_one_refund_is_shown(narrow: Terminal) -> None:
    refund = a_refund(
        Stage.PROCESSING, refund_id=REFUND, payment_intent=PAYMENT, provider_refund_id=PROVIDER
    )
    message = (
        "a sentence of many words that is wrapped between its words, and nowhere else, however"
        " narrow it is"
    )
    refund = replace(refund, error_code="x", error_message=message, metadata={"order": REFUND})
    render.put(render.heading(f"refund {REFUND}"), render.block(refund), stream=narrow)
    lines = narrow.getvalue().splitlines()
    for text in (f"refund {REFUND}", PAYMENT, PROVIDER, f"order={REFUND}"):
        assert any(text in line for line in lines)
    assert len([line for line in lines if set(line.split()) & set(message.split())]) > 1


def test_no_id_is_wrapped_in_a_list_of_batches(narrow: Terminal) -> None:
    name = "season-2026-returns-of-the-second-half-of-january"
    found = Batch(
        batch_id=name, file=f"{name}.csv", digest="", rows=3, created_at=None, state="running"
    )
    render.put(batch_tables.listing([found]), stream=narrow)
    assert f"{name} " in narrow.getvalue()


def test_no_column_or_value_is_wrapped_in_a_table_of_errors(
    narrow: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "season.csv"
    path.write_text(f"refund_id,payment_intent,amount\n{REFUND},{PAYMENT}/{PAYMENT[:12]},5\n")
    monkeypatch.setattr("sys.stderr", narrow)
    with open_source(path, ImportOptions()) as source:
        import_messages.say_errors(source, validate(source).summary, "nothing was imported")
    (line,) = [
        line for line in narrow.getvalue().splitlines() if "payment_intent" in line and "2 " in line
    ]
    assert f"{PAYMENT}/{PAYMENT[:12]}" in line


def test_a_pipe_gets_whole_lines(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    assert cli("submit", REFUND, "--payment-intent", PAYMENT, "--amount", "500").code == 0
    (line,) = [line for line in cli("list").out.splitlines() if REFUND in line]
    assert PAYMENT in line
