"""What a seed has beyond the ordinary faults.

An odd provider, others who refund, servers and people that err.

Each kind is a family that can be switched on alone. All of it is drawn on dice of its own, so that
a seed without a family plays as it would if there were none.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from worker.rules.attempts import Rules

Seconds = float

FAMILIES: Final[Mapping[str, str]] = {
    "others": (
        "refunds made at the dashboard or by a dispute, and refunds that fall back, at any moment"
    ),
    "adopted": "a reply is another payment's refund and does not say whose it is",
    "numbers": "amounts that are no amounts: beyond 64 bits, below zero, fractions, text",
    "words": "statuses in other spellings, and words that no list knows",
    "texts": "a megabyte of text, control characters, the key and a customer's address",
    "codes": "a new code for every error and every reason of a failure",
    "shapes": "any JSON value in any field, and bodies that are no object",
    "lag": "refunds that are not found for a while, totals and statuses as they were a moment ago",
    "unlabelled": "lists that leave metadata out and date entries by another clock",
    "currency": (
        "refunds that state a currency, and payments that do not show it, or another, or not at all"
    ),
    "clock": "a promoted server whose clock is hours behind",
    "people": (
        "decisions that are wrong and insisted on: failed though money moved, sent again, another's"
        " refund"
    ),
    "power": (
        "a power cut of the server that flushes once a second, mostly right after somebody was told"
        " of something"
    ),
    "short": (
        "lists that leave out what has succeeded, for an hour, while the payment's total shows it"
    ),
    "stubborn": "one payment that answers 429 with `Retry-After: 0` for as long as the faults last",
    "webhooks": (
        "an event for each refund and each change: early, late, twice, shuffled, never, or forged"
    ),
    "reversals": (
        "refunds that change after they have settled: minutes or weeks later, or before a retry"
    ),
    "forgets": (
        "a server that lacks confirmed writes takes over, and a person recovers: a replica that was"
        " behind, or an older copy"
    ),
}
"""Every family, with what it does."""

ON: Final = frozenset(FAMILIES)
"""Families that every run plays; one whose faults are known to be open would be left out."""

SHARE: Final = 0.6
"""Of seeds with any family at all."""
OFTEN: Final[Mapping[str, int]] = {"others": 4, "people": 2}
"""How much oftener than another a family is drawn."""
MOST_AT_ONCE: Final = 4
ALONE: Final = "forgets"
"""Drawn for seeds without any other family, since it changes what is asked for."""
ALONE_SHARE: Final = 0.3
BESIDE: Final[Mapping[str, float]] = {"short": 0.15, "webhooks": 0.35, "reversals": 0.2}
"""Families drawn on dice of their own, each with its share of seeds.

So seeds with pinned faults play as they did before there were these.
"""
SHORT_SECONDS: Final = 3600.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Takeover:
    """A server that lacks confirmed writes takes the place of the one that has them."""

    at: Seconds
    lacks: Seconds
    """It lacks what was written in so many seconds before."""
    claims: int
    """If it is not 0, it lacks all from so many claims on instead."""
    frozen: Seconds
    """If it is not 0, a worker that remembers a lost claim is frozen for so long, and the others
    are killed.
    """


@dataclass(frozen=True, kw_only=True, slots=True)
class Odd:
    """What is odd about one seed; with no family, nothing is."""

    families: frozenset[str] = frozenset()
    rate: float = 0.0
    """Of replies that are odd, for each family of replies."""
    lag: Seconds = 0.0
    """Totals and statuses are shown as they were so long ago at most."""
    missing: Seconds = 0.0
    """For so long after it was made a refund may not be found by its id."""
    unlisted: Seconds = 0.0
    """For so long after it was made a refund that has succeeded is not listed, though the total
    counts it.
    """
    stubborn: str | None = None
    """The payment that answers 429."""
    known_first: bool = False
    """Whether somebody else has refunded before the first of ours."""
    falls_back: bool = False
    """Whether all that others have refunded before falls back during our doubts."""
    cuts: tuple[Seconds, ...] = ()
    """When the server's power is cut, beside those cuts that somebody's word tempts."""
    takeover: Takeover | None = None
    back: tuple[tuple[Seconds, Seconds], ...] = ()
    """When another server is promoted, and by how much its clock is behind."""
    shown: Mapping[str, str] = field(default_factory=dict)
    """Payment → what is odd about what it shows: see `SHOWN`."""
    alone: bool = False
    """Whether each refund has a payment of its own, so that nothing of ours is in the way of what
    others do.
    """

    def __contains__(self, family: str) -> bool:
        return family in self.families


NOTHING: Final = Odd()
SHOWN: Final = ("refused", "silent", "another", "contradicts", "plain")
"""A payment is not shown at all (403), without its currency, under another's id, with a charge in
another currency; or
as it is."""
CURRENCIES: Final = ("usd", "jpy")


def odd_for(
    seed: int,
    rules: Rules,
    payments: Mapping[str, Any],
    *,
    late: bool,
    families: Collection[str],
) -> Odd:
    """Return what is odd about a seed, of these families.

    `late` tells of effects that come after the connection.
    """
    dice = random.Random(f"odd:{seed}")  # noqa: S311 - repeatable, not secret
    beside = frozenset(
        name
        for name, share in BESIDE.items()
        if name in families and random.Random(f"{name}:{seed}").random() < share  # noqa: S311 - as above
    )
    unlisted = SHORT_SECONDS if "short" in beside else 0.0
    if dice.random() >= SHARE:
        if beside:
            return Odd(families=beside, unlisted=unlisted)
        return _forgetting(seed) if ALONE in families else NOTHING
    every = sorted(FAMILIES.keys() - BESIDE.keys() - {ALONE})
    drawn = frozenset(
        dice.sample(
            every, dice.randint(1, MOST_AT_ONCE), counts=[OFTEN.get(name, 1) for name in every]
        )
    )
    drawn = (drawn & frozenset(families)) | beside
    settle = rules.settle.total_seconds()
    # A read that is late by a settle time, of an effect that is late by two, is outside the
    # promise.
    lag = 0.0 if late or "lag" not in drawn else dice.uniform(0.1, 0.95) * settle
    return Odd(
        families=drawn,
        rate=dice.choice((0.15, 0.4, 0.8)),
        lag=lag,
        unlisted=unlisted,
        missing=dice.choice((5.0, 120.0, 1800.0)) if "lag" in drawn else 0.0,
        cuts=(
            tuple(dice.uniform(0, 1200) for _ in range(dice.randint(0, 2)))
            if "power" in drawn
            else ()
        ),
        stubborn=dice.choice(sorted(payments)) if "stubborn" in drawn else None,
        back=(
            ((dice.uniform(200, 1500), dice.choice((900.0, 10_800.0))),) if "clock" in drawn else ()
        ),
        shown=(
            {payment: dice.choice(SHOWN) for payment in sorted(payments)}
            if "currency" in drawn
            else {}
        ),
        known_first=dice.random() < 0.3,
        alone="others" in drawn and dice.random() < 0.5,
    )


def _forgetting(seed: int) -> Odd:
    dice = random.Random(f"forgets:{seed}")  # noqa: S311 - repeatable, not secret
    if dice.random() >= ALONE_SHARE:
        return NOTHING
    takeover = Takeover(
        at=dice.uniform(20, 120),
        lacks=dice.choice((1.0, 5.0, 30.0, 600.0)),
        claims=dice.choice((0, 1, 2, 3)),
        frozen=dice.choice((0.0, 0.0, 60.0, 150.0, 300.0)),
    )
    return Odd(families=frozenset({ALONE}), takeover=takeover)
