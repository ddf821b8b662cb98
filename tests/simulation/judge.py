"""The judge: what must hold after every step, told by the provider's own ledger and by the records
as they lie.

It trusts nothing that the worker says of itself. `violations` holds one sentence for each breach,
and a run is lost at its first.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, Literal

from tests.simulation.batch_judge import BatchJudge, Move
from tests.simulation.bounds_judge import TEXTS, BoundsJudge
from tests.simulation.brakes_judge import BrakesJudge
from tests.simulation.failing_judge import VERDICTS, why_it_may_not_fail
from tests.simulation.known import Known, Post
from tests.simulation.money_judge import MoneyJudge, as_made
from tests.simulation.places_judge import PlacesJudge
from tests.simulation.posts_judge import PostsJudge
from tests.simulation.secrets import leaks
from tests.simulation.snapshot import BUCKETS, FIELDS
from tests.simulation.webhooks_judge import WebhooksJudge
from tests.simulation.words_judge import WordsJudge
from worker.model.refund import Stage
from worker.rules.attempts import Rules
from worker.rules.transitions import TRANSITIONS
from worker.sandbox.judging import (
    FALSE_FAILED,
    FALSE_SUCCEEDED,
    false_failed,
    false_id,
    false_succeeded,
)
from worker.sandbox.ledger import STANDING

if TYPE_CHECKING:
    from worker.sandbox.bank import Bank, SandboxRefund

AFTER_FORGETTING: Final = frozenset(
    {"money twice", "over", FALSE_FAILED, FALSE_SUCCEEDED, "lost", "stranded"}
)
"""What is judged of refunds on a server that forgot: what money did, and that each has an end."""
ALWAYS: Final = frozenset({"behind", "error", "forgot", "secret"})
PAYMENT_ROWS: Final = 3
STIRRED: Final = frozenset({"operator_says_absent", "operator_says_failed", "first_look"})
"""What puts a refund in doubt beside others of its payment."""
"""Rows of the snapshot for each payment."""


@dataclass(kw_only=True)
class Judge:
    """Judges one world; `mode` is which promise is being judged.

    The product's, or only what money did.
    """

    rules: Rules
    bank: Bank
    mode: Literal["ours", "effects"]
    server_ms: Callable[[], int]
    """The server's clock."""
    rate: float = 0.0
    """Calls a second that all workers may make, 0 for any number."""
    pending_in_totals: bool = False
    lag: float = 0.0
    """Seconds by which what the provider shows may be late, within its guarantee."""
    reads_well: bool = False
    """Whether every read-back shows what the provider has made, so that no word of a person
    outweighs it.
    """
    oddly_shown: bool = False
    """Whether not every payment shows its currency as it is."""
    violations: list[str] = field(default_factory=list)
    refunds: dict[str, Known] = field(default_factory=dict)
    payments: list[str] = field(default_factory=list)
    effects: dict[str, list[str]] = field(default_factory=dict)
    """Our id → the provider's refunds made for it."""
    due: dict[str, float] = field(default_factory=dict)
    rechecks: dict[str, float] = field(default_factory=dict)
    """When refunds are to be read outside their own schedule."""
    remade: int = 0
    """Refunds made again after the first one of the same generation had failed at the provider by
    itself.
    """
    batches: BatchJudge = field(init=False)
    brakes: BrakesJudge = field(init=False)
    money: MoneyJudge = field(init=False)
    bounds: BoundsJudge = field(init=False)
    words: WordsJudge = field(init=False)
    webhooks: WebhooksJudge = field(init=False)
    _places: PlacesJudge = field(init=False)
    _posts: PostsJudge = field(init=False)
    past_window: set[str] = field(default_factory=set)
    """Refunds that were not settled when their key's window had passed."""
    forgot: bool = False
    """Whether a server was promoted that lacks what was confirmed."""
    _snapshot: Sequence[Any] = ()
    _clock: tuple[int, int] = (0, 0)
    """What the records hold of their time.

    The largest that was seen, and by how much that was ahead.
    """
    _before_the_cut: dict[str, str | None] | None = None
    """Between a power cut and the next look: the state of each batch before it."""
    _moves: list[Move] = field(default_factory=list)
    _seen_entries: int = 0
    _statuses: dict[str, set[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.batches = BatchJudge(self.broken)
        self.brakes = BrakesJudge(self.broken, self.rate)
        self.bounds = BoundsJudge(self.broken)
        self.words = WordsJudge(self.broken, self.bank)
        self.webhooks = WebhooksJudge(self.broken)
        self._places = PlacesJudge(self.broken, self.refunds)
        self._posts = PostsJudge(self.broken, self.rules)
        self.money = MoneyJudge(
            broken=self.broken,
            bank=self.bank,
            rules=self.rules,
            pending_in_totals=self.pending_in_totals,
            lag=self.lag,
            oddly_shown=self.oddly_shown,
        )

    def now_ms(self) -> int:
        """Return the time as the records see it, which never goes back."""
        at, ahead = self._clock
        return max(at, self.server_ms() + ahead)

    def broken(self, rule: str, refund_id: str, fact: str) -> None:
        """Note a violation."""
        if self.forgot and rule not in ALWAYS:
            known = self.refunds.get(refund_id)
            if rule not in AFTER_FORGETTING or (known is not None and known.exposed):
                return
        self.violations.append(f"{rule}: {refund_id}: {fact}")

    def tells_no_secret(self, where: str, about: str, text: str) -> None:
        """Judge a text that is kept or sent somewhere."""
        for secret in leaks(text):
            self.broken("secret", about, f"{secret} stands in {where}: {text[:200]}")

    # Accepting

    def accepted(self, refund_id: str, payment: str, *, said: bool = True) -> None:
        """Note that a caller was told that its refund is accepted.

        Not `said`, that it may be by now.
        """
        known = self.refunds.setdefault(refund_id, Known(payment=payment))
        known.said = known.said or said
        if not known.record:
            # A file with other words of it was refused as a whole: what is handed in now may be
            # accepted.
            known.payment = payment
        if payment not in self.payments:
            self.payments.append(payment)

    def told(self, refund_id: str, version: int) -> None:
        """Note that somebody was told of a refund's move, or depends on it.

        That version is not to be forgotten.
        """
        known = self.refunds[refund_id]
        known.told_version = max(known.told_version, version)

    def power_was_cut(self) -> None:
        """Forget what was read of Redis: the next look reads histories from their beginning."""
        self._snapshot, self._before_the_cut = (), self.batches.states()
        self.brakes.power_was_cut()
        for known in self.refunds.values():
            known.forget()

    def server_forgot(self) -> None:
        """Forget what was read of Redis, and judge from now on what money does."""
        self.power_was_cut()
        self.forgot = True

    def may_send(self, refund_id: str, worker: str, flags: Sequence[str | None]) -> None:
        """Note that a worker was told that it may send, and judge that by the flags that stood in
        Redis.
        """
        if refund_id in self.refunds:
            self.refunds[refund_id].asked_at[worker] = self.now_ms()
            self.brakes.told_it_may(refund_id, flags, self.now_ms())

    def question(self) -> list[Any]:
        """Return the arguments of the snapshot script."""
        arguments: list[Any] = [len(self.refunds), len(self.payments), len(self.batches.ids)]
        for refund_id, known in self.refunds.items():
            arguments += [refund_id, known.moves]
        return [*arguments, *self.payments, *self.batches.ids]

    # Redis

    def look(self, snapshot: Sequence[Any]) -> None:
        """Judge the records as they lie now."""
        self.read_ledger()
        at, ahead = snapshot[-len(BUCKETS) - 3]
        self._clock = (int(at or 0), int(ahead or 0))
        if snapshot == self._snapshot:
            # Most commands change nothing: sweeps that find nothing, claims that are refused.
            return
        self._snapshot = snapshot
        noted, place = frozenset(snapshot[0]), 1
        claimed = []
        self._moves.clear()
        for refund_id, known in self.refunds.items():
            record = dict(zip(FIELDS, snapshot[place], strict=True))
            is_new = self._before_the_cut is None and record["version"] != known.record.get(
                "version"
            )
            if is_new and record["stage"] == "sending":
                claimed.append(refund_id)
                self.webhooks.claimed(refund_id, record)
            self._judge_record(refund_id, known, record, snapshot[place + 1])
            # Nothing takes it out of the outbox in a world.
            if record["stage"] in {"settled", "review"} and refund_id not in noted:
                self.broken(
                    "callback", refund_id, f"no endpoint learns that it is {record['stage']}"
                )
            place += 2
        of_batches = place + PAYMENT_ROWS * len(self.payments)
        indexes = snapshot[of_batches + 2 * len(self.batches.ids) :]
        self.due, self.rechecks = _scores(indexes[1]), _scores(indexes[-1])
        buckets = {name: _scores(flat) for name, flat in zip(BUCKETS, indexes[2:-1], strict=True)}
        self._places.indexes(self.due, buckets)
        for payment in self.payments:
            self._places.payment(payment, snapshot[place : place + PAYMENT_ROWS], claimed)
            place += PAYMENT_ROWS
        self.money.owners(self.refunds)
        cut, self._before_the_cut = self._before_the_cut, None
        if cut is not None:
            self._moves.clear()
        self.batches.look(snapshot[of_batches:], self._moves, self.refunds)
        if cut is not None:
            self._judge_promises(cut)

    def _judge_promises(self, states: Mapping[str, str | None]) -> None:
        """Judge that a power cut has undone nothing that somebody was told of."""
        self.batches.power_was_cut(states)
        for refund_id, known in self.refunds.items():
            if known.moves < known.told_version:
                fact = (
                    f"somebody was told of version {known.told_version}, and now it is"
                    f" {known.moves}"
                )
                self.broken("told", refund_id, fact)

    def _judge_record(
        self, refund_id: str, known: Known, record: dict[str, str | None], entries: Sequence[str]
    ) -> None:
        if record["stage"] is None:
            if known.record:
                self.broken("lost", refund_id, "its record is gone")
            return
        before = known.record
        known.record = record
        for text in entries:
            self.tells_no_secret("history", refund_id, text)
        for name in TEXTS:
            self.tells_no_secret(name, refund_id, record[name] or "")
        self.bounds.record(refund_id, record, entries)
        for entry in known.told.read(entries):
            self._replay(refund_id, known, entry)
            self._note_prior(known, before)
        self._judge_replay(refund_id, known)
        if before and before["generation"] == record["generation"]:
            # A settled record may drop both: nothing of its generation is sent again, and it tells
            # what was asked.
            settled = record["stage"] == "settled"
            dropped = settled and record["idempotency_key"] is None
            if before["idempotency_key"] != record["idempotency_key"] and not dropped:
                self.broken("key", refund_id, "the key of a generation changed")
            self._judge_contents(refund_id, known, before)
        if (
            self._before_the_cut is None
            and record["stage"] == "settled"
            and (not before or before["version"] != record["version"])
        ):
            self.judge_settled(refund_id, record)
            self._judge_failed(refund_id, known)

    def _note_prior(self, known: Known, before: Mapping[str, str | None]) -> None:
        """Note which refunds of the provider are to be read before a retry is sent."""
        if known.label == "retried" and before:
            known.priors += [before["provider_refund_id"] or ""]
            self.webhooks.forget(known.priors)
        elif known.by_person and known.record["prior_refund_ids"] is None:
            # A person has insisted that they moved nothing.
            known.priors.clear()

    def _judge_contents(
        self, refund_id: str, known: Known, before: Mapping[str, str | None]
    ) -> None:
        """Judge that a record still tells what was asked for, also once its metadata are erased."""
        record = known.record
        known.fingerprint = known.fingerprint or before["fingerprint"]
        erased = record["metadata_erased_at"] is not None
        # A settled record may drop it, because its other fields tell the same, but not without its
        # metadata.
        told = record["fingerprint"]
        dropped = record["stage"] == "settled" or before["fingerprint"] is None
        if told != known.fingerprint and (told is not None or erased or not dropped):
            self.broken("body", refund_id, "what was asked for changed")
        # A person who ends a contradiction lets a settled record be read again, and sends nothing.
        if erased and (record["metadata"] is not None or record["stage"] in {"queued", "sending"}):
            self.broken("erased", refund_id, f"erased, and it is {record['stage']} again")

    def _judge_replay(self, refund_id: str, known: Known) -> None:
        """Judge whether the history leads to the record."""
        record = known.record
        told = (
            str(known.moves),
            known.stage,
            known.status,
            str(known.attempts),
            str(known.generations),
        )
        stands = (record["version"], record["stage"], record["status"])
        if told != (*stands, record["attempts"] or "0", record["generation"] or "1"):
            self.broken("history", refund_id, f"history ends in {told}, the record says {record}")
        if record["first_attempt_at"] is not None:
            known.first_attempt_at = int(record["first_attempt_at"])
            if self.now_ms() - known.first_attempt_at > self.rules.key_window / timedelta(
                milliseconds=1
            ):
                self.past_window.add(refund_id)

    def _replay(self, refund_id: str, known: Known, entry: Mapping[str, Any]) -> None:
        source, target = entry["from"], entry["to"]
        if entry["version"] != known.moves + 1 or source != known.stage:
            self.broken(
                "history", refund_id, f"{entry} follows version {known.moves} in {known.stage}"
            )
        legal = source is None or Stage(target) in TRANSITIONS[Stage(source)]
        if not legal:
            self.broken("transition", refund_id, f"{source} to {target} stands in no table")
        known.moves, known.stage, known.status = known.moves + 1, target, entry["status"]
        known.label = entry["label"]
        known.attempts += target == "sending"
        known.verdicts += source == "sending" and entry.get("seen") in VERDICTS
        if known.label == "retried":
            known.generations, known.verdicts = known.generations + 1, 0
        if known.last:
            self.webhooks.repeated(refund_id, known.last, entry)
        known.by_person, known.last = entry.get("by") == "person", entry
        known.path.append(f"{known.moves} {target} {known.status}")
        self._judge_move(refund_id, known, entry)
        if target == "sending":
            known.lease_end = entry["at"] + self.rules.lease // timedelta(milliseconds=1)
        elif target not in {"processing", "settled"}:
            known.lease_end = None
        elif source == "sending":
            known.proven_at = entry["at"]
        self._moves.append((refund_id, entry))
        known.stirred = known.stirred or known.label in STIRRED
        if known.label == "resend":
            for post in known.posts:
                post.cleared = True

    def _judge_move(self, refund_id: str, known: Known, entry: Mapping[str, Any]) -> None:
        """Judge what a move concludes from what was read."""
        if self._before_the_cut is None:
            self.webhooks.move(refund_id, known, entry)
        if entry["to"] == "in_doubt":
            self._judge_doubt(refund_id, known, entry)
        elif entry["to"] == "review" and self._before_the_cut is None:
            self.words.review(refund_id, known, entry, self.effects.get(refund_id, ()))
            if entry["label"] == "refund_missing":
                self.money.missing(refund_id, known)

    def _judge_doubt(self, refund_id: str, known: Known, entry: Mapping[str, Any]) -> None:
        """Note when a doubt began and what was found of it.

        Judge the conclusion that there is nothing to be found.
        """
        if entry["from"] == "sending":
            lapsed = known.lease_end if entry["label"] == "lease_lapsed" else None
            known.quiet_at = min(entry["at"], lapsed or entry["at"])
        elif entry["label"] == "found_in_totals":
            known.found_at = entry["at"]
        elif entry["label"] == "absence_proven" and self._before_the_cut is None:
            self.money.absence(refund_id, self._made(refund_id), known.generations)

    def _made(self, refund_id: str) -> list[SandboxRefund]:
        """Return what the provider has made for a refund, oldest first."""
        return [self.bank.refunds[identity] for identity in self.effects.get(refund_id, ())]

    def judge_settled(self, refund_id: str, record: Mapping[str, str | None]) -> None:
        """Judge a status that is said to be final, at the moment at which it is said."""
        made, known = self._made(refund_id), self.refunds[refund_id]
        if known.misled and not self.reads_well:
            self.money.misled(refund_id, record, made)
            return
        if record["status"] in {"failed", "canceled"}:
            if record["contradicted_by"] in known.priors:
                # An earlier refund succeeded since, and the record names it for a person.
                return
            if (fact := false_failed(str(record["status"]), as_made(made))) is not None:
                self.broken(FALSE_FAILED, refund_id, fact)
            return
        succeeded = [refund for refund in made if "succeeded" in self._statuses[refund.id]]
        if (fact := false_succeeded(as_made(made), as_made(succeeded))) is not None:
            if not self.money.may_be_others(known):
                self.broken(FALSE_SUCCEEDED, refund_id, fact)
            return
        self.money.stands(refund_id, known, succeeded)
        if (fact := false_id(record["provider_refund_id"], as_made(succeeded))) is not None:
            self.broken(FALSE_SUCCEEDED, refund_id, fact)
        self.money.amount(refund_id, record, succeeded)
        if record["currency"] is not None and record["currency"] != succeeded[-1].payment.currency:
            self.broken("currency", refund_id, f"recorded {record['currency']}")

    def _judge_failed(self, refund_id: str, known: Known) -> None:
        # A proof that comes later is kept with the record, which has ended already.
        if known.status != "failed" or known.by_person or known.last["label"] == "contradicted":
            return
        # What failed at once moved nothing and is no effect, but the provider's books show it.
        made = [
            refund
            for refund in self.bank.refunds.values()
            if refund.metadata.get("refund_id") == refund_id
        ]
        if known.misled and self.money.is_fallen(known.record):
            return
        posts = [post for post in known.posts if post.generation == str(known.generations)]
        age_ms = None if known.first_attempt_at is None else self.now_ms() - known.first_attempt_at
        answered, statuses = [post.answered for post in posts], [refund.status for refund in made]
        mismatch = self.money.is_mismatch(known)
        fact = why_it_may_not_fail(
            known.last, answered, statuses, known.verdicts, age_ms, self.rules, mismatch=mismatch
        )
        if fact is not None:
            self.broken("false failed", refund_id, fact)

    # The provider

    def tries(self, refund_id: str, worker: str) -> int:
        """Judge a try as it begins; return when its worker had been told that it may send."""
        known = self.refunds.get(refund_id)
        asked = known.asked_at.pop(worker, None) if known is not None else None
        if asked is None and known is not None and self.mode == "ours":
            self.broken(
                "claim",
                refund_id,
                f"{worker} tries again and has not asked whether its claim stands",
            )
        return asked or 0

    def bytes_left(self, post: Post, durable_body: str | None, now_ms: int) -> None:
        """Judge a request at the moment at which its first byte leaves."""
        self.read_ledger()
        known = self.refunds.get(post.refund_id)
        if known is None:
            self.broken("unasked", post.refund_id, "sent, and never accepted")
            return
        if self.mode == "ours":
            self._posts.leaves(post, known, durable_body, now_ms)
            self.webhooks.sent(post.refund_id, known)
            self.money.sends(post.refund_id, known.payment, known.record.get("asked_currency"))
            self.told(post.refund_id, known.moves if known.stage == "sending" else 0)
        known.posts.append(post)

    def read_ledger(self) -> None:
        """Judge what the provider has done since the last time."""
        self.bank.settle_due()
        entries = self.bank.ledger.entries
        for entry in entries[self._seen_entries :]:
            self._statuses.setdefault(entry["refund"], set()).add(entry["status"])
            self.money.entered(entry)
            if entry["event"] == "effect" and entry["refund_id"] is not None:
                self._judge_effect(
                    entry["refund_id"],
                    entry["refund"],
                    entry["payment_intent"],
                    turned="was" in entry,
                )
        self._seen_entries = len(entries)

    def _judge_effect(
        self, refund_id: str, identity: str, payment_id: str, *, turned: bool
    ) -> None:
        """Judge an effect; `turned` is one that the provider made of a failed refund by itself."""
        made = self.effects.setdefault(refund_id, [])
        if turned:
            made.append(identity)
            return
        refund = self.bank.refunds[identity]
        generation = refund.metadata.get("refund_generation")
        known = self.refunds.get(refund_id)
        if any(self.bank.refunds[one].status in STANDING for one in made):
            if known is None or not known.misled or self.reads_well:
                self.broken(
                    "money twice", refund_id, f"{identity} was made while {made[-1]} stands"
                )
        elif any(
            self.bank.refunds[one].metadata.get("refund_generation") == generation for one in made
        ):
            self.remade += 1
        made.append(identity)
        payment = self.bank.payments[payment_id]
        if payment.succeeded + payment.pending > payment.amount:
            self.broken("over", refund_id, f"{payment_id} gave back more than was captured")
        record = known.record if known is not None else {}
        if record.get("stage") == "settled" and record.get("status") in {"failed", "canceled"}:
            self.broken("false failed", refund_id, f"{record['status']} before {identity} was made")

    # The end

    def finish(self) -> None:
        """Judge what is left when the backlog has had its time."""
        self.read_ledger()
        self.batches.finish(self.refunds)
        for refund_id, known in self.refunds.items():
            if not known.record and not known.said:
                continue
            if not known.record:
                self.broken("lost", refund_id, "accepted, and no record stands")
            elif known.record["stage"] not in {"settled", "review"}:
                self.broken(
                    "stranded",
                    refund_id,
                    f"still {known.record['stage']} long after the faults stopped",
                )
            else:
                self.money.untold(refund_id, known, self._made(refund_id))

    def identified(self, tampered: Collection[str]) -> None:
        """Judge that nobody is asked about a refund that a webhook has named, `tampered` ones
        apart.
        """
        for refund_id, known in self.refunds.items():
            if known.record and refund_id not in tampered:
                self.webhooks.unidentified(refund_id, known, self._made(refund_id))

    def judge_counters(self, flat: Sequence[str]) -> None:
        """Judge what the counters are called, and what they say."""
        stored = dict(zip(flat[::2], flat[1::2], strict=True))
        self.bounds.counters(stored)
        self._places.counters(stored)

    def judge_events(self, events: Sequence[tuple[str, Sequence[str]]]) -> None:
        """Judge the stream of events: every move of every history, in order, and no secret."""
        told: dict[str, list[str]] = {refund_id: [] for refund_id in self.refunds}
        for _, flat in events:
            event = dict(zip(flat[::2], flat[1::2], strict=True))
            self.tells_no_secret("an event", event["refund_id"], str(flat))
            told[event["refund_id"]].append(f"{event['version']} {event['to']} {event['status']}")
        for refund_id, known in self.refunds.items():
            if told[refund_id] != known.path:
                self.broken(
                    "events",
                    refund_id,
                    f"the stream tells {told[refund_id]}, the history {known.path}",
                )

    def given_back(self, refund_ids: Sequence[str], now_ms: int) -> None:
        """Judge what a worker has just given back: what was never begun is due for others at
        once.
        """
        for refund_id in refund_ids:
            record = self.refunds[refund_id].record if refund_id in self.refunds else {}
            if (
                record.get("stage") == "queued"
                and not record.get("held")
                and self.due[refund_id] > now_ms
            ):
                self.broken(
                    "given back",
                    refund_id,
                    "nobody will look at it before its nudge counts as lost",
                )

    def overdue(self, now_ms: int, grace_ms: int) -> list[str]:
        """Return the refunds at which nobody looked though they were due for longer than the
        grace.
        """
        return [
            refund_id
            for refund_id, score in (*self.due.items(), *self.rechecks.items())
            if refund_id in self.refunds
            and score < now_ms - grace_ms
            and (
                self.refunds[refund_id].record.get("stage") != "review"
                or score == self.rechecks.get(refund_id)
            )
        ]


def _scores(flat: Sequence[str]) -> dict[str, float]:
    return {flat[place]: float(flat[place + 1]) for place in range(0, len(flat), 2)}
