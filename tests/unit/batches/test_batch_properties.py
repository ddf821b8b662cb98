"""Files against the records, whatever is in them: moved about they add nothing.

Their results read back as they are.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fakeredis
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.cli_runner import Records
from worker.batches import Comparison, compare, open_batch, read_batch
from worker.file_import import reading_of, stored_reading
from worker.importer import ImportOptions, Source, accepted, open_source, validate, write_result
from worker.importer.cells import guarded, unguarded
from worker.model.refund import Lane, Stage, Status
from worker.model.request import REASONS
from worker.model.steps import Step
from worker.store import creations, saves
from worker.store.store import Store

Cells = dict[str, str]

texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=8)
rows = st.fixed_dictionaries(
    {
        "order": st.sampled_from(["1", "2", "3", "4"]),
        "pi": st.from_regex(r"pi_[a-z0-9]{1,3}", fullmatch=True),
        "amount": st.one_of(
            st.just(""), st.integers(1, 10**12).map(str), st.sampled_from(["1e3", "-5"])
        ),
        "reason": st.sampled_from(["", *REASONS]),
        "metadata.note": st.one_of(texts, texts.map(lambda text: f"={text}")),
    }
)
files = st.lists(rows, min_size=1, max_size=12)
codes = st.sampled_from(["card_gone", "-1", "=HYPERLINK(1)", "+cmd"])
OPTIONS = ImportOptions(id_from=("order", "pi", "amount", "reason", "metadata.note"))


@contextmanager
def records() -> Iterator[Records]:
    with fakeredis.FakeRedis(server=fakeredis.FakeServer(), decode_responses=True) as client:
        yield Records(store=Store(client, durable=False))


@contextmanager
def source_of(content: bytes, name: str, options: ImportOptions) -> Iterator[Source]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        with open_source(path, options) as source:
            yield source


def as_csv(table: list[Cells], delimiter: str = ",") -> bytes:
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=delimiter, lineterminator="\r\n")
    writer.writerow(guarded(name) for name in table[0])
    writer.writerows([guarded(row[name]) for name in table[0]] for row in table)
    return out.getvalue().encode()


def handed_in(
    store: Store, content: bytes, name: str = "season.csv", options: ImportOptions = OPTIONS
) -> Comparison:
    """What an import does with a file whose bad rows are skipped.

    Compare it, begin its batch, accept its rows.
    """
    with source_of(content, name, options) as source:
        validation = validate(source)
        found = compare(store, accepted(source, validation))
        batch = open_batch(
            store, None, file=name, digest=source.digest, rows=validation.summary.rows
        )
        made = store.run_many(
            [
                creations.create(request, Lane.BULK, batch.batch_id)
                for _, request in accepted(source, validation)
            ]
        )
    assert sum(each.result == "created" for each in made) == found.fresh
    assert sum(each.result == "exists" for each in made) == found.same
    return found


def standing(store: Store) -> dict[str, Any]:
    return {str(key): store.redis.hgetall(key) for key in store.redis.scan_iter("refunds:refund:*")}


@settings(max_examples=40, deadline=None)
@given(files, st.lists(rows, max_size=4), st.randoms(use_true_random=False))
def test_a_file_renamed_resorted_or_packed_adds_nothing_and_a_grown_one_only_what_is_new(
    table: list[Cells], more: list[Cells], chance: random.Random
) -> None:
    with records() as made:
        first = handed_in(made.store, as_csv(table))
        assert (first.same, first.conflicting) == (0, 0)
        before = standing(made.store)
        columns = chance.sample(sorted(table[0]), len(table[0]))
        moved = [{name: row[name] for name in columns} for row in chance.sample(table, len(table))]
        lines = "".join(
            json.dumps({name: value for name, value in row.items() if value}) + "\n"
            for row in moved
        )
        for content, name in (
            (as_csv(moved, ";"), "renamed.csv"),
            (gzip.compress(as_csv(moved)), "renamed.csv.gz"),
            (lines.encode(), "renamed.jsonl"),
        ):
            found = handed_in(made.store, content, name)
            assert (found.fresh, found.same, found.conflicting) == (0, first.fresh, 0)
        assert standing(made.store) == before
        grown = handed_in(
            made.store, as_csv(chance.sample(table + more, len(table + more))), "grown.csv"
        )
        assert (grown.same, grown.conflicting) == (first.fresh, 0)
        assert len(standing(made.store)) == first.fresh + grown.fresh


@settings(max_examples=40, deadline=None)
@given(
    files, st.lists(st.one_of(st.none(), codes), min_size=12, max_size=12), st.sampled_from(",;\t")
)
def test_a_result_keeps_rows_and_order_shows_every_record_and_adds_nothing_when_imported(
    table: list[Cells], ends: list[str | None], delimiter: str
) -> None:
    content = as_csv(table, delimiter)
    with records() as made:
        first = handed_in(made.store, content)
        ids = sorted(key.removeprefix("refunds:refund:") for key in standing(made.store))
        for refund_id, code in zip(ids, ends, strict=False):
            if code is not None:
                refund = made.get(refund_id)
                changes = {"error_code": code, "error_message": f"{code}\n\t'"}
                step = Step(to=Stage.SETTLED, status=Status.FAILED, label="failed", changes=changes)
                made.store.run(saves.save(refund, step))
        out = io.StringIO(newline="")
        with source_of(content, "season.csv", OPTIONS) as source:
            stored = stored_reading(source)
            write_result(source, validate(source), made.store.get_many, out)
        written = [
            {name: unguarded(cell) for name, cell in row.items()}
            for row in csv.DictReader(io.StringIO(out.getvalue(), newline=""), delimiter=delimiter)
        ]
        assert [{name: row[name] for name in table[0]} for row in written] == table
        for row in written:
            if row["status"] != "invalid":
                refund = made.get(row["refund_id"])
                assert (row["status"], row["stage"]) == (refund.status, refund.stage)
                assert (row["error_code"], row["error_message"]) == (
                    refund.error_code or "",
                    refund.error_message or "",
                )
        assert {row["refund_id"] for row in written if row["status"] != "invalid"} == set(ids)
        before = standing(made.store)
        again = handed_in(made.store, out.getvalue().encode(), "result.csv", reading_of(stored))
        assert (again.fresh, again.same, again.conflicting) == (0, first.fresh, 0)
        assert standing(made.store) == before
        assert (
            read_batch(made.store, made.get(ids[0]).batch_id or "").rows == len(table)
            if ids
            else True
        )
