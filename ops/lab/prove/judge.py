"""The judge: the provider's own ledger and request log against what the subject recorded.

The same for every subject.

Rules about histories bind only who keeps one.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

from ops.lab.prove.evidence import Evidence, Post
from ops.lab.prove.founded import unfounded
from ops.lab.prove.missing import waits_for_the_missing
from ops.lab.prove.posts import proof_before_post
from ops.lab.prove.violation import CLOCK_SLACK, Violation
from worker.model.refund import Stage
from worker.rules.transitions import TRANSITIONS
from worker.sandbox.judging import (
    FALSE_FAILED,
    FALSE_SUCCEEDED,
    Made,
    false_amount,
    false_failed,
    false_id,
    false_request,
    false_succeeded,
    made_beside_another,
    made_by,
)
from worker.sandbox.ledger import STANDING

TAKEN_UP_SECONDS: Final = 60.0


def judged(evidence: Evidence) -> list[Violation]:
    """Return every violation."""
    found = [*_money(evidence), *_records(evidence), *_requests(evidence)]
    found += [Violation(rule="secret", about="-", fact=leak) for leak in evidence.leaks]
    if evidence.histories is not None:
        found += _held(evidence, evidence.histories)
        found += _failures(evidence, evidence.histories)
        found += _histories(evidence, evidence.histories)
        found += _events(evidence, evidence.histories)
        found += _taken_up(evidence, evidence.histories)
        found += proof_before_post(evidence, evidence.histories)
    return found


def recoveries(evidence: Evidence, fault_end: float) -> list[float]:
    """Return, for each refund unsettled when the faults stopped, how many seconds it took from then
    on; none if the records' time is not this process's.
    """
    if evidence.histories is None or evidence.clock_off:
        return []
    ends = (entries[-1] for entries in evidence.histories.values() if entries)
    return [entry["at"] / 1000 - fault_end for entry in ends if entry["at"] / 1000 > fault_end]


def taken_up(evidence: Evidence) -> list[float]:
    """Return, for each refund whose claimant was killed, how many seconds after the kill it moved
    again.
    """
    found = []
    for kill in evidence.kills:
        for entries in (evidence.histories or {}).values():
            after = _first_move_after(entries, kill)
            if after is not None and after["label"] == "lease_lapsed":
                found.append(after["at"] / 1000 - kill)
    return found


def _first_move_after(
    entries: Sequence[Mapping[str, Any]], kill: float
) -> Mapping[str, Any] | None:
    """Return how a refund that was being sent at that moment went on, None where it was not or did
    not.
    """
    for before, after in pairwise(entries):
        if before["to"] == "sending" and before["at"] / 1000 <= kill < after["at"] / 1000:
            return after
    return None


# What the provider did


def _money(evidence: Evidence) -> Iterator[Violation]:
    last = {entry["refund"]: entry["status"] for entry in evidence.ledger}
    totals: Counter[str] = Counter()
    for refund_id, fact in made_beside_another(evidence.ledger):
        yield Violation(rule="money twice", about=refund_id, fact=fact)
    for refund_id in made_by(evidence.ledger):
        if refund_id not in evidence.accepted:
            yield Violation(
                rule="unasked",
                about=refund_id,
                fact="money moved for a refund that nobody asked for",
            )
    for entry in evidence.ledger:
        if entry["event"] == "effect" and last[entry["refund"]] in STANDING:
            totals[entry["payment_intent"]] += entry["amount"]
    for payment, captured in evidence.captured.items():
        if totals[payment] > captured:
            yield Violation(
                rule="over", about=payment, fact=f"{totals[payment]} of {captured} given back"
            )


# What the subject says of it


def _records(evidence: Evidence) -> Iterator[Violation]:
    effects = made_by(evidence.ledger)
    lied_to = {post.refund_id for post in evidence.posts if post.fault == "wrong_resource_after"}
    for refund_id in evidence.accepted:
        record = evidence.records.get(refund_id)
        if record is None:
            yield Violation(rule="lost", about=refund_id, fact="accepted, and no record stands")
            continue
        made = effects.get(refund_id, [])
        if record["stage"] == "settled":
            found = _verdict(refund_id, record, made)
            # A lie about a single field that nothing else contradicts is the provider's word for
            # what it did: in the reply to a POST, or in a list about the amount of a refund for
            # which none was asked.
            untold = {"amount", "false id"} if refund_id in lied_to else set()
            if evidence.accepted[refund_id].amount is None and record.get("evidence") == "list":
                untold.add("amount")
            yield from (one for one in found if one.rule not in untold)
        elif record["stage"] != "review" and not (
            # Money that moved must be found, unless the reply itself named a refund that never was.
            waits_for_the_missing(record) and (not made or refund_id in lied_to)
        ):
            yield Violation(
                rule="stranded",
                about=refund_id,
                fact=f"still {record['stage']} when all was long over",
            )
        if evidence.histories is not None and (refund_id in evidence.due) == (
            record["stage"] == "settled"
        ):
            yield Violation(
                rule="index",
                about=refund_id,
                fact=f"{record['stage']}, and wrongly in or out of due",
            )


def _verdict(
    refund_id: str, record: Mapping[str, str], made: Sequence[Made]
) -> Iterator[Violation]:
    if record["status"] != "succeeded":
        facts = {FALSE_FAILED: false_failed(record["status"], made)}
    elif not (good := [one for one in made if one.status == "succeeded"]):
        facts = {FALSE_SUCCEEDED: false_succeeded(made, good)}
    else:
        is_unknown = record.get("evidence") == "totals" and record.get("all_remaining") == "1"
        facts = {
            "amount": false_amount(record.get("amount"), good, is_unknown=is_unknown),
            "false id": false_id(record.get("provider_refund_id"), good),
        }
    for rule, fact in facts.items():
        if fact is not None:
            yield Violation(rule=rule, about=refund_id, fact=fact)


def _failures(
    evidence: Evidence, histories: Mapping[str, Sequence[Mapping[str, Any]]]
) -> Iterator[Violation]:
    """Yield refunds that ended failed although nobody had refused them.

    Who keeps no history can show no reason.
    """
    if not evidence.alarmed:
        yield Violation(
            rule="credentials", about="-", fact="no breaker was open soon after the key was refused"
        )
    for refund_id, record in evidence.records.items():
        entries = histories.get(refund_id, ())
        if record["stage"] != "settled" or record["status"] == "succeeded" or not entries:
            continue
        fact = unfounded(evidence, refund_id, entries)
        if fact is not None:
            at = entries[-1]["at"] / 1000
            by_key = any(
                begin - CLOCK_SLACK <= at <= end + CLOCK_SLACK for begin, end in evidence.refused
            )
            yield Violation(
                rule="credentials" if by_key else "false failed", about=refund_id, fact=fact
            )


# What was sent


def _requests(evidence: Evidence) -> Iterator[Violation]:
    seen: dict[tuple[str | None, str | None], Post] = {}
    by_key: dict[str | None, str | None] = {}
    for post in evidence.posts:
        first = seen.setdefault((post.refund_id, post.generation), post)
        about = post.refund_id or "-"
        asked = evidence.accepted.get(post.refund_id or "")
        if asked is None:
            yield Violation(rule="unasked", about=about, fact="sent, and never accepted")
        elif fact := false_request(post.body, asked.payment_intent, asked.amount):
            yield Violation(rule="unasked", about=about, fact=fact)
        if (first.key, first.body) != (post.key, post.body):
            yield Violation(
                rule="body", about=about, fact="key or body differ from the first attempt's"
            )
        if by_key.setdefault(post.key, post.refund_id) != post.refund_id:
            yield Violation(
                rule="key", about=about, fact=f"its key was another refund's: {by_key[post.key]}"
            )


def _held(
    evidence: Evidence, histories: Mapping[str, Sequence[Mapping[str, Any]]]
) -> Iterator[Violation]:
    """Yield what was claimed or sent between a recovery and the word of a person to go on."""
    for begin, end in evidence.held:
        for post in evidence.posts:
            if begin <= post.at <= end:
                yield Violation(
                    rule="held", about=post.refund_id or "-", fact="sent with everything paused"
                )
        for refund_id, entries in histories.items():
            if any(
                entry["to"] == "sending" and begin <= entry["at"] / 1000 <= end for entry in entries
            ):
                yield Violation(rule="held", about=refund_id, fact="claimed with everything paused")


# Histories


def _histories(
    evidence: Evidence, histories: Mapping[str, Sequence[Mapping[str, Any]]]
) -> Iterator[Violation]:
    for refund_id, record in evidence.records.items():
        entries = histories.get(refund_id, ())
        stage: str | None = None
        for number, entry in enumerate(entries, 1):
            if entry["version"] != number or entry["from"] != stage:
                fact = f"{entry} follows version {number - 1} in {stage}"
                yield Violation(rule="history", about=refund_id, fact=fact)
            source, stage = entry["from"], entry["to"]
            if source is not None and Stage(stage) not in TRANSITIONS[Stage(source)]:
                yield Violation(
                    rule="transition",
                    about=refund_id,
                    fact=f"{source} to {stage} is not a move of the table",
                )
            if (
                not evidence.started - evidence.slack
                <= entry["at"] / 1000
                <= evidence.ended + evidence.slack
            ):
                yield Violation(
                    rule="clock",
                    about=refund_id,
                    fact=f"{entry} is not of this run by the server's time",
                )
        told = (len(entries), stage, entries[-1]["status"] if entries else None)
        if told != (int(record["version"]), record["stage"], record["status"]):
            yield Violation(
                rule="history",
                about=refund_id,
                fact=f"it ends in {told}, the record in {dict(record)}",
            )


def _events(
    evidence: Evidence, histories: Mapping[str, Sequence[Mapping[str, Any]]]
) -> Iterator[Violation]:
    told: dict[str, list[tuple[str, str, str]]] = defaultdict(list)
    for event in evidence.events:
        told[event["refund_id"]].append((event["version"], event["to"], event["status"]))
    for refund_id, entries in histories.items():
        if told[refund_id] != [
            (str(entry["version"]), entry["to"], entry["status"]) for entry in entries
        ]:
            yield Violation(
                rule="events", about=refund_id, fact=f"the stream tells {told[refund_id]}"
            )


def _taken_up(
    evidence: Evidence, histories: Mapping[str, Sequence[Mapping[str, Any]]]
) -> Iterator[Violation]:
    for kill in evidence.kills:
        for refund_id, entries in histories.items():
            before = [entry for entry in entries if entry["at"] / 1000 <= kill]
            if not before or before[-1]["to"] != "sending":
                continue
            after = entries[len(before) :]
            if not after or after[0]["at"] / 1000 > kill + TAKEN_UP_SECONDS:
                fact = (
                    "in flight when a worker was killed, and looked at"
                    f" {after[0] if after else 'never'}"
                )
                yield Violation(rule="taken up late", about=refund_id, fact=fact)
