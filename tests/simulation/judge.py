"""The judge: what must hold after every step, told by the provider's own ledger and by the records
as they lie.

It trusts nothing that the worker says of itself. `violations` holds one sentence for each breach,
and a run is lost at its first.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from tests.simulation.batch_judge import BatchJudge
from tests.simulation.bounds_judge import BoundsJudge
from tests.simulation.brakes_judge import BrakesJudge
from tests.simulation.effects_judge import EffectsJudge
from tests.simulation.history_judge import HistoryJudge
from tests.simulation.known import Known, Post
from tests.simulation.money_judge import MoneyJudge
from tests.simulation.places_judge import PlacesJudge
from tests.simulation.posts_judge import PostsJudge
from tests.simulation.secrets import leaks
from tests.simulation.snapshot import BUCKETS, FIELDS
from tests.simulation.webhooks_judge import WebhooksJudge
from tests.simulation.words_judge import WordsJudge
from worker.rules.attempts import Rules
from worker.sandbox.judging import FALSE_FAILED

if TYPE_CHECKING:
    from worker.model.request import RefundRequest
    from worker.sandbox.bank import Bank

EXCUSED: Final = frozenset({"money twice", "unproven", FALSE_FAILED})
"""What is not promised of a refund that is claimed on a server which lacks an earlier claim of it,
before a worker asks there that remembers a lost claim: it may be sent twice, and the second request
refused.
"""
PAYMENT_ROWS: Final = 3
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
    due: dict[str, float] = field(default_factory=dict)
    rechecks: dict[str, float] = field(default_factory=dict)
    """When refunds are to be read outside their own schedule."""
    batches: BatchJudge = field(init=False)
    brakes: BrakesJudge = field(init=False)
    money: MoneyJudge = field(init=False)
    bounds: BoundsJudge = field(init=False)
    words: WordsJudge = field(init=False)
    webhooks: WebhooksJudge = field(init=False)
    effects: EffectsJudge = field(init=False)
    history: HistoryJudge = field(init=False)
    _places: PlacesJudge = field(init=False)
    _posts: PostsJudge = field(init=False)
    _snapshot: Sequence[Any] = ()
    _clock: tuple[int, int] = (0, 0)
    """What the records hold of their time.

    The largest that was seen, and by how much that was ahead.
    """
    _before_the_cut: dict[str, str | None] | None = None
    """Between a power cut and the next look: the state of each batch before it."""

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
        self.effects = EffectsJudge(
            broken=self.broken,
            bank=self.bank,
            rules=self.rules,
            now_ms=self.now_ms,
            money=self.money,
            refunds=self.refunds,
            reads_well=self.reads_well,
        )
        self.history = HistoryJudge(
            broken=self.broken,
            tells_no_secret=self.tells_no_secret,
            rules=self.rules,
            now_ms=self.now_ms,
            bounds=self.bounds,
            effects=self.effects,
            money=self.money,
            webhooks=self.webhooks,
            words=self.words,
        )

    def now_ms(self) -> int:
        """Return the time as the records see it, which never goes back."""
        at, ahead = self._clock
        return max(at, self.server_ms() + ahead)

    def broken(self, rule: str, refund_id: str, fact: str) -> None:
        """Note a violation."""
        known = self.refunds.get(refund_id)
        if known is not None and known.exposed and rule in EXCUSED:
            return
        self.violations.append(f"{rule}: {refund_id}: {fact}")

    def tells_no_secret(self, where: str, about: str, text: str) -> None:
        """Judge a text that is kept or sent somewhere."""
        for secret in leaks(text):
            self.broken("secret", about, f"{secret} stands in {where}: {text[:200]}")

    # Accepting

    def accepted(self, request: RefundRequest, *, said: bool = True) -> None:
        """Note that a caller was told that its refund is accepted.

        Not `said`, that it may be by now.
        """
        payment = request.payment_intent
        known = self.refunds.setdefault(request.refund_id, Known(payment=payment))
        known.said = known.said or said
        if request not in known.asked:
            known.asked.append(request)
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
        self.history.after_a_cut = True
        self.brakes.power_was_cut()
        for known in self.refunds.values():
            known.forget()

    def server_forgot(self) -> None:
        """Forget what was read of Redis, and who depends on it: another server has taken over."""
        self.power_was_cut()
        for known in self.refunds.values():
            known.told_version = 0

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
        self.effects.read_ledger()
        at, ahead = snapshot[-len(BUCKETS) - 3]
        self._clock = (int(at or 0), int(ahead or 0))
        if snapshot == self._snapshot:
            # Most commands change nothing: sweeps that find nothing, claims that are refused.
            return
        self._snapshot = snapshot
        noted, place = frozenset(snapshot[0]), 1
        claimed = []
        self.history.moves.clear()
        for refund_id, known in self.refunds.items():
            record = dict(zip(FIELDS, snapshot[place], strict=True))
            is_new = record["version"] != known.record.get("version")
            if is_new and record["stage"] == "sending" and not self.history.after_a_cut:
                claimed.append(refund_id)
                self.webhooks.claimed(refund_id, record)
            self.history.look(refund_id, known, record, snapshot[place + 1])
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
        self.history.after_a_cut = False
        if cut is not None:
            self.history.moves.clear()
        self.batches.look(snapshot[of_batches:], self.history.moves, self.refunds)
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
        self.effects.read_ledger()
        known = self.refunds.get(post.refund_id)
        if known is None:
            self.broken("unasked", post.refund_id, "sent, and never accepted")
            return
        if self.mode == "ours":
            # A lost claim is still good for the request that was about to leave under it.
            if known.forgotten_at is None or post.asked_at > known.forgotten_at:
                self._posts.leaves(post, known, durable_body, now_ms)
            self.webhooks.sent(post.refund_id, known)
            self.money.sends(post.refund_id, known.payment, known.record.get("asked_currency"))
            self.told(post.refund_id, known.moves if known.stage == "sending" else 0)
        known.posts.append(post)

    # The end

    def finish(self) -> None:
        """Judge what is left when the backlog has had its time."""
        self.effects.read_ledger()
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
                self.money.untold(refund_id, known, self.effects.made(refund_id))

    def identified(self, tampered: Collection[str]) -> None:
        """Judge that nobody is asked about a refund that a webhook has named, `tampered` ones
        apart.
        """
        for refund_id, known in self.refunds.items():
            if known.record and refund_id not in tampered:
                self.webhooks.unidentified(refund_id, known, self.effects.made(refund_id))

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
