"""The count at the end of a season: every row in its order, ledger and records compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from worker.sandbox.running import Sandbox


@dataclass(kw_only=True)
class Report:
    """What came of a season: figures, and a sentence for everything that is not as it must be."""

    facts: dict[str, Any] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def hold(self, *, holds: bool, sentence: str) -> None:
        """Note a sentence unless it holds."""
        if not holds:
            self.wrong.append(sentence)


def count(
    files: Mapping[str, Sequence[tuple[str, ...]]],
    result: Callable[[str], Sequence[Mapping[str, str]]],
    batch: Callable[[str], Mapping[str, Any]],
    sandbox: Sandbox,
    report: Report,
) -> None:
    """Count every row by its result, and compare the results with the ledger and each other."""
    records: dict[str, str] = {}
    tally: Counter[str] = Counter()
    amounts = 0
    for name, table in files.items():
        written = result(name)
        order = [row["order"] for row in written] == [row[0] for row in table]
        report.hold(holds=order, sentence=f"the result of {name} has lost its order")
        # A doubt about a payment that does not exist is for a person, an hour later.
        unknown = {"review", "in_doubt"}
        counts = Counter("review" if row["stage"] in unknown else row["status"] for row in written)
        report.facts[name] = dict(counts)
        ended = sum(
            counts[status] for status in ("succeeded", "failed", "invalid", "canceled", "review")
        )
        report.hold(
            holds=ended == len(table),
            sentence=f"{name}: {len(table)} rows in, {dict(counts)} out",
        )
        invalid = sum(row[0].endswith("13") for row in table)
        report.hold(
            holds=counts["invalid"] == invalid,
            sentence=f"{name}: {counts['invalid']} rows invalid",
        )
        shown = batch(name)
        kept = Counter(shown["statuses"]) + Counter({"invalid": shown["invalid"]})
        # A refund in review is pending to its caller.
        told = (
            counts + Counter({"pending": counts["review"]}) - Counter({"review": counts["review"]})
        )
        report.hold(
            holds=kept == told,
            sentence=f"batch {name} counts {dict(kept)}, its result {dict(told)}",
        )
        tally += counts
        records |= {
            row["refund_id"]: row["status"] for row in written if row["status"] != "invalid"
        }
        amounts += sum(int(row["amount"]) for row in written if row["status"] == "succeeded")
    report.facts["all"] = dict(tally)
    _compare(records, amounts, sandbox, report)


def _compare(records: dict[str, str], amounts: int, sandbox: Sandbox, report: Report) -> None:
    last: dict[str, dict[str, Any]] = {entry["refund"]: entry for entry in sandbox.ledger()}
    standing = Counter(
        entry["refund_id"] for entry in last.values() if entry["status"] == "succeeded"
    )
    for refund_id, times in standing.items():
        report.hold(holds=times == 1, sentence=f"{refund_id} moved money {times} times")
    moved = set(standing)
    succeeded = {refund_id for refund_id, status in records.items() if status == "succeeded"}
    # What a person must decide may have moved or not; everything else is known.
    undecided = {refund_id for refund_id, status in records.items() if status == "pending"}
    odd = sorted((moved ^ succeeded) - undecided)
    report.hold(holds=not odd, sentence=f"ledger and records disagree on {len(odd)}: {odd[:10]}")
    total = sum(
        int(entry["amount"])
        for entry in last.values()
        if entry["status"] == "succeeded" and entry["refund_id"] not in undecided
    )
    report.hold(
        holds=total == amounts, sentence=f"the ledger moved {total}, the records say {amounts}"
    )
    faults = sum(int(fault["fired"]) for fault in sandbox.faults()["faults"])
    report.facts |= {"effects": len(last), "faults_fired": faults, "amount": amounts}
