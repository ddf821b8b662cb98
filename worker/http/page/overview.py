"""What the overview shows: what holds refunds, how many there are, how fast they settle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from worker.batches import Batch, interrupted_imports
from worker.errors import NotDurable, SettingsError, TooFewReplicas
from worker.http.page import charts
from worker.model.currencies import KNOWN as CURRENCIES
from worker.model.refund import Stage
from worker.model.times import from_ms
from worker.model.words import counted, money, verb
from worker.monitoring.check_server import FULL, LIMIT
from worker.monitoring.fleet import read_fleet
from worker.monitoring.snapshot import Snapshot, snapshot
from worker.store import callback_state, flags, pace
from worker.store.callback_state import CallbackState
from worker.store.counters import BOUNDS, INFINITE
from worker.store.flags import Switches
from worker.store.pace import Minute
from worker.store.store import SETTLED, Store
from worker.wording.batches import command_to_continue, progress_of_import
from worker.wording.history import lasting
from worker.wording.values import moment, plain

MINUTES: Final = 30
FAILURES: Final = 10
"""An endpoint of callbacks that failed so often in a row is a finding."""
LATE_MS: Final = 60_000
"""A refund that has been due for longer is late: a sweep finds it within half a minute."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """Something that a person should know: `stops`, `looks` or `fine`, and where to look."""

    level: str
    text: str
    address: str | None = None


def read_overview(store: Store) -> dict[str, Any]:
    """Return what the template of the overview needs. Raises `StoreUnavailable`."""
    seen, switches = snapshot(store), flags.read(store)
    callbacks = callback_state.read_callbacks(store)
    minutes = pace.settled_by_minute(store, seen.now_ms, MINUTES)
    ages = {
        bucket: seen.now_ms - since
        for bucket, since in seen.oldest_ms.items()
        if seen.cards[bucket]
    }
    latencies = _latencies(seen.counters)
    return {
        "now": from_ms(seen.now_ms),
        "findings": findings(
            seen,
            switches,
            callbacks,
            interrupted_imports(store, from_ms(seen.now_ms)),
            is_durable=_is_durable(store),
        ),
        "cards": seen.cards,
        "settled": SETTLED,
        "workers": seen.workers,
        "fleet": read_fleet(store, seen.now_ms),
        "money": _money(seen.counters),
        "paused": switches.paused_at is not None,
        "minutes": _rows(minutes),
        "minute_bars": charts.stacked(minutes),
        "most_in_a_minute": max(sum(each.settled.values()) for each in minutes),
        "ages": {_words(bucket): lasting(age) for bucket, age in ages.items()},
        "age_bars": charts.lying({_words(bucket): float(age) for bucket, age in ages.items()}),
        "latencies": latencies,
        "latency_bars": charts.upright(latencies),
    }


def _is_durable(store: Store) -> bool:
    """Return whether the server keeps what it acknowledges; without that nothing is accepted."""
    try:
        store.require_durable()
    except (NotDurable, TooFewReplicas):
        return False
    except SettingsError:
        # This process may not find out, and says nothing about the others.
        pass
    return True


def _money(counters: Mapping[str, int]) -> list[tuple[str, str, str]]:
    """Return the currencies of refunds that are not settled: on the way, and in review."""
    sums: dict[str, list[int]] = {}
    for name, amount in counters.items():
        kind, _, rest = name.partition(":")
        stage, _, currency = rest.partition(":")
        if kind == "open" and currency:
            sums.setdefault(currency, [0, 0])[stage == Stage.REVIEW.value] += amount
    return [
        (_currency(currency), _amount(moving, currency), _amount(review, currency))
        for currency, (moving, review) in sorted(sums.items())
        if moving or review
    ]


def _currency(name: str) -> str:
    """Return a currency of the counters in words; their names are bounded."""
    others = {"unknown": "not known yet", "other": "other currencies"}
    return others.get(name, name.upper())


def _amount(amount: int, currency: str) -> str:
    return money(amount, currency if currency in CURRENCIES else None, "major")


def _rows(minutes: Sequence[Minute]) -> list[tuple[str, Mapping[str, int]]]:
    return [(f"{from_ms(each.start_ms):%H:%M}", each.settled) for each in minutes]


def _words(bucket: str) -> str:
    name, _, lane = bucket.partition(".")
    words = name.replace("_", " ")
    return f"{words} (files)" if lane else words


def _latencies(counters: Mapping[str, int]) -> dict[str, int]:
    """Return how many calls to the provider took how long, since the counters began."""
    found = dict.fromkeys((*map(str, BOUNDS), INFINITE), 0)
    for name, count in counters.items():
        kind, _, rest = name.partition(":")
        bound = rest.rpartition(":")[2]
        if kind == "call_le" and bound in found:
            found[bound] += count
    lower = "0"
    named: dict[str, int] = {}
    for bound, count in found.items():
        words = f"over {lower} s" if bound == INFINITE else f"{lower} to {bound} s"
        named[words], lower = count, bound
    return named


def findings(
    seen: Snapshot,
    switches: Switches,
    callbacks: CallbackState,
    interrupted: Sequence[Batch],
    *,
    is_durable: bool,
) -> list[Finding]:
    """Return what holds refunds or needs a person, or one finding that all is well."""
    server = _server(seen, is_durable=is_durable)
    found = [
        *_stops(seen, switches),
        *server,
        *_looks(seen, switches),
        *map(_interrupted, interrupted),
        *_unheard(callbacks),
    ]
    if found:
        return found
    waiting = _waiting(seen)
    moving = f"{counted(waiting, 'refund')} {verb(waiting, 'is', 'are')} on the way."
    text = f"No action is needed. {moving}"
    return [Finding(level="fine", text=text)]


def _waiting(seen: Snapshot) -> int:
    return sum(count for bucket, count in seen.cards.items() if bucket not in {*SETTLED, "review"})


def _stops(seen: Snapshot, switches: Switches) -> Iterator[Finding]:
    def stops(text: str) -> Finding:
        return Finding(level="stops", text=text)

    if switches.paused_at is not None:
        by = plain(switches.paused_by or "a person")
        yield stops(
            f"Everything has been paused since {moment(switches.paused_at)} by {by}: nothing is"
            " sent until it is resumed."
        )
    if switches.credentials_refused_at is not None:
        since = moment(switches.credentials_refused_at)
        yield stops(
            f"The provider has refused the API key since {since}: nothing is sent. Tell the people"
            " who run this server: 'refunds doctor' says what to do."
        )
    if switches.account_lost_at is not None:
        since = moment(switches.account_lost_at)
        yield stops(
            f"The API key may belong to another account (noticed {since}): nothing is sent."
            " Tell the people who run this server: 'refunds doctor' says what to do."
        )
    if switches.behind_since is not None:
        since = moment(switches.behind_since)
        yield stops(
            f"The records lack what was sent last (noticed {since}), as after a failover or on an"
            " older copy: nothing is sent. Tell the people who run this server: 'refunds doctor'"
            " says what to do."
        )
    if seen.outages:
        yield stops(
            f"The provider does not answer {counted(seen.outages, 'worker')}: they try again by"
            " themselves."
        )
    if not seen.workers:
        waiting = _waiting(seen)
        yield stops(
            f"No worker runs, and {counted(waiting, 'refund')} {verb(waiting, 'waits', 'wait')}."
        )


def _server(seen: Snapshot, *, is_durable: bool) -> Iterator[Finding]:
    """Yield why the server of the records lets no refund be accepted."""
    tell = "Tell the people who run this server: 'refunds doctor' says what to do."
    if not is_durable:
        text = "The records may lose what they acknowledge: no refund is accepted or sent."
        yield Finding(level="stops", text=f"{text} {tell}")
    most, used = int(seen.info.get("maxmemory", 0)), int(seen.info.get("used_memory", 0))
    percentage = used * 100 // most if most else 0
    if percentage >= FULL:
        rest = "nothing is sent" if percentage >= LIMIT else "those already accepted are finished"
        text = f"The records have too little memory: no new refund is accepted, and {rest}."
        yield Finding(level="stops", text=f"{text} {tell}")


def _looks(seen: Snapshot, switches: Switches) -> Iterator[Finding]:
    def looks(text: str, address: str | None = None) -> Finding:
        return Finding(level="looks", text=text, address=address)

    if seen.gate_blocked_until_ms > seen.now_ms:
        until = moment(from_ms(seen.gate_blocked_until_ms))
        yield looks(f"The provider asked to slow down: sending continues at {until}.")
    late = seen.now_ms - (seen.first_due_ms or seen.now_ms)
    if late > LATE_MS and switches.paused_at is None:
        yield looks(f"A refund has been due for {lasting(late)}.", "/page/refunds?status=pending")
    if count := seen.cards["review"]:
        yield looks(
            f"{counted(count, 'refund')} {verb(count, 'needs', 'need')} review: a person decides.",
            "/page/review",
        )
    if seen.contradicted:
        yield looks(
            f"The provider contradicts {counted(seen.contradicted, 'record')}: a person decides.",
            "/page/review",
        )
    if seen.rejected:
        yield looks(
            f"{counted(seen.rejected, 'message')} could not be understood. Tell the"
            " people who run this server: 'refunds rejected list' shows them."
        )


def _interrupted(batch: Batch) -> Finding:
    text = (
        f"{plain(batch.file)} was imported only in part: {progress_of_import(batch)}. Import the"
        " same file here again, or with the same options on the command line by"
        f" {command_to_continue(batch)}: no refund is made twice."
    )
    return Finding(level="looks", text=text, address=f"/page/batches/{batch.batch_id}")


def _unheard(callbacks: CallbackState) -> Iterator[Finding]:
    """Yield the endpoints that do not learn what became of refunds."""
    for each in callbacks.endpoints:
        if each.dead or (each.failures >= FAILURES and each.waiting):
            text = (
                f"Callbacks do not reach {plain(each.name)}: {each.waiting:,}"
                f" {verb(each.waiting, 'waits', 'wait')}, and {each.dead:,}"
                f" {verb(each.dead, 'was', 'were')} given up. No money depends on them."
            )
            yield Finding(level="looks", text=text, address="/page/callbacks")
