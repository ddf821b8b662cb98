"""The odd provider: replies that are another's, arbitrary within JSON, late, unlabelled, or always
the same 429.

It never tells a plausible lie: what it shows is true, late within its guarantee, or such that
nobody can believe it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from tests.simulation.bounds_judge import MADE_UP
from tests.simulation.clock import EPOCH
from tests.simulation.power import FLUSH_SECONDS
from tests.simulation.secrets import API_KEY, EMAIL
from worker.sandbox import shapes
from worker.sandbox.shapes import Answer

if TYPE_CHECKING:
    import random

    import httpx

    from tests.simulation.world import World
    from worker.sandbox.bank import SandboxPayment, SandboxRefund

OK: Final = 200
CAPPED: Final = 1 << 20
"""Replies beyond this are not read at all, so the longest texts stay below."""
LONG: Final = 900_000
LEAST_WAIT: Final = 1.0
"""Seconds that a refund waits at least after a 429 of its own, whatever it was told."""
FREEZES: Final = 0.25
"""Of replies to requests for a refund, if people decide in the meantime."""

NUMBERS: Final[tuple[Any, ...]] = (
    10**19,
    2**63,
    2**63 - 1,
    2**53 + 1,
    10**16,
    -1,
    -(10**19),
    0,
    1.5,
    1e300,
    float("inf"),
    float("nan"),
    True,
    "1e3",
    "\u0665\u0660\u0660",
    " 500",
    "9" * 40,
    10**4200,
    [],
    {},
)
"""What no amount of money can be."""
UNREADABLE: Final = (b"1" * 5000, b"[" * 200_000, b'"\\ud800"', b"nul", b"\xff\xfe")
"""Bytes of a value that no reader of JSON takes."""
SPELLINGS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "pending": ("Pending", "PENDING", "requires_action", "processing"),
        "succeeded": ("SUCCEEDED", "Succeeded"),
        "failed": ("FAILED",),
        "canceled": ("cancelled", "CANCELED", "Cancelled"),
    }
)
"""Other words for the four statuses."""
UNKNOWN_WORDS: Final = ("on_hold", "reversed_by_bank", "in_transit", "weird \u001b[31mword")
VALUES: Final[tuple[Any, ...]] = (
    None,
    True,
    False,
    0,
    -7,
    1.25,
    "",
    [],
    {},
    [[]],
    {"id": None},
    [None, {"a": 1}],
)
"""Values of every JSON type, none of which is a plausible word, id or amount."""
FIELDS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "refund": (
            "id",
            "object",
            "amount",
            "created",
            "currency",
            "metadata",
            "payment_intent",
            "status",
            "failure_reason",
            "reason",
            "charge",
            "description",
        ),
        "payment_intent": (
            "id",
            "object",
            "amount",
            "amount_received",
            "currency",
            "latest_charge",
            "charges",
        ),
        "charge": (
            "id",
            "object",
            "amount",
            "amount_captured",
            "amount_refunded",
            "currency",
            "payment_intent",
        ),
        "list": ("object", "data", "has_more", "url"),
        "error": ("type", "code", "message", "param"),
    }
)


class OddReplies:
    """What is odd about the provider of one world."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._dice: random.Random = world.odd_dice
        self._made_up = 0
        self._turned_away: dict[str, float] = {}
        """When the last 429 reached a worker, for refunds of the stubborn payment."""
        self._is_stubborn: set[str] = set()

    @property
    def _odd(self) -> bool:
        return bool(self._world.plan.odd.families) and self._world.faulty

    @property
    def is_late(self) -> bool:
        """Whether what is read may be out of date."""
        return self._odd and self._world.plan.odd.lag > 0

    def freezes(self) -> bool:
        """Tell whether a worker is to freeze over a reply.

        It saves what that proves when a person has decided.
        """
        return self._odd and "people" in self._world.plan.odd and self._dice.random() < FREEZES

    # Before anything is done

    def instead(self, request: httpx.Request) -> Answer | None:
        """Return what is answered in the place of whatever was asked for, None where that is
        done.
        """
        odd = self._world.plan.odd
        if not self._odd:
            return None
        if request.method == "GET":
            return self._not_shown(request)
        if odd.stubborn is None:
            return None
        asked = json.loads(request.content)
        if asked["payment_intent"] != odd.stubborn:
            return None
        refund_id, now = asked["metadata"]["refund_id"], self._world.loop.time()
        if now - self._turned_away.get(refund_id, -LEAST_WAIT) < LEAST_WAIT:
            self._world.judge.broken(
                "bounds", refund_id, "sent again at once after a 429 of its own"
            )
        self._turned_away.pop(refund_id, None)
        self._is_stubborn.add(refund_id)
        self._world.happens("stubborn_429")
        config = self._world.seam.provider.config
        return shapes.error(
            config,
            429,
            "invalid_request_error",
            "lock_timeout",
            "In use.",
            headers={"Retry-After": "0"},
        )

    def _not_shown(self, request: httpx.Request) -> Answer | None:
        """Return the refusal to show a payment, None if it is shown."""
        _, _, kind, identity = (
            request.url.path.split("/", 3) if request.url.path.count("/") > 2 else ("", "", "", "")
        )
        payment = identity if kind == "payment_intents" else f"pi_{identity.removeprefix('ch_')}"
        if (
            kind not in {"payment_intents", "charges"}
            or self._world.plan.odd.shown.get(payment) != "refused"
        ):
            return None
        self._world.happens("payment_not_shown")
        config = self._world.seam.provider.config
        return shapes.error(
            config, 403, "invalid_request_error", "permission_denied", "Not yours to see."
        )

    # Late reads

    def lag(self) -> float:
        """Return how old what is read now may be, in seconds."""
        most = self._world.plan.odd.lag
        return self._dice.uniform(0, most) if most and self._odd else 0.0

    @property
    def is_short(self) -> bool:
        """Whether lists leave out what the totals show."""
        return self._odd and self._world.plan.odd.unlisted > 0

    def is_unlisted(self, refund: SandboxRefund) -> bool:
        """Return whether a list leaves a refund out.

        Of what no total shows, such a list would be the only word.
        """
        if not self.is_short or refund.status != "succeeded" or refund.payment.charges != 1:
            return False
        age = self._world.loop.time() - (refund.created - EPOCH.timestamp())
        if age >= self._world.plan.odd.unlisted:
            return False
        self._world.happens("list_short")
        return True

    def is_missing(self, refund: SandboxRefund) -> bool:
        """Tell whether a refund is not found by its id yet."""
        odd, loop = self._world.plan.odd, self._world.loop
        if (
            not self._odd
            or refund.created < EPOCH.timestamp() + loop.time() - odd.missing
            or self._dice.random() < 0.3
        ):
            return False
        self._world.happens("missing_for_a_while")
        return True

    def refund_as_it_was(self, refund: SandboxRefund) -> SandboxRefund:
        """Return a refund as it was shown a moment ago."""
        lag = self.lag()
        if not lag:
            return refund
        status = refund.status
        for entry in reversed(self._world.seam.bank.ledger.entries):
            if entry["refund"] == refund.id:
                if entry["time"] <= self._since(lag) or entry["event"] == "effect":
                    status = entry["status"]
                    break
                status = entry["was"]
        if status != refund.status:
            self._world.happens("stale_status")
        return replace(refund, status=status)

    def payment_as_it_was(self, payment: SandboxPayment) -> SandboxPayment:
        """Return a payment with its totals as they were a moment ago."""
        lag = self.lag()
        if not lag:
            return payment
        was = replace(payment)
        for entry in reversed(self._world.seam.bank.ledger.entries):
            if entry["payment_intent"] == payment.id and entry["time"] > self._since(lag):
                was.count(entry["status"], -entry["amount"])
                if entry["event"] == "status":
                    was.count(entry["was"], entry["amount"])
        if (was.succeeded, was.pending) != (payment.succeeded, payment.pending):
            self._world.happens("stale_totals")
        return was

    def _since(self, lag: float) -> float:
        return float(EPOCH.timestamp() + self._world.loop.time() - lag)

    # Answers

    def spoiled(self, request: httpx.Request, answer: Answer) -> Answer:
        """Return an answer as this provider words it."""
        odd = self._world.plan.odd
        if not odd.families or not answer.body.startswith(b"{"):
            return answer
        shape = json.loads(answer.body)
        kind = shape.get("object") if answer.status == OK else "error"
        if kind in {"payment_intent", "charge"} and odd.shown:
            self._oddly_shown(shape)
        if not self._odd:
            return answer
        if "unlabelled" in odd and kind == "list":
            self._leave_labels_out(shape)
        if "adopted" in odd and request.method == "POST" and kind == "refund":
            shape = self._anothers(shape)
        for family in ("words", "codes", "numbers", "texts", "shapes"):
            if family in odd and self._dice.random() < odd.rate:
                change: Callable[[dict[str, Any], str], bytes | None] = getattr(self, f"_{family}")
                whole = change(shape, str(kind))
                if whole is not None:
                    return replace(answer, body=whole)
        return shapes.as_json(shape, status=answer.status, headers=answer.headers)

    def turned_away(self, refund_id: str) -> None:
        """Note that a worker has a 429 in hand: one that was lost on its way tells nobody to
        wait.
        """
        if refund_id in self._is_stubborn:
            self._turned_away[refund_id] = self._world.loop.time()

    def delivered(self, answer: Answer) -> None:
        """Let the judge know of the words, the payments and the owners of refunds that a worker was
        shown.
        """
        odd = self._world.plan.odd
        listens = "words" in odd or "people" in odd or odd.shown
        if not listens or answer.status != OK or not answer.body.startswith(b"{"):
            return
        try:
            shape = json.loads(answer.body)
        except (ValueError, RecursionError):
            return
        self._world.judge.money.payment_shown(shape)
        self._world.judge.money.refund_shown(shape)
        items = shape.get("data") if shape.get("object") == "list" else [shape]
        if isinstance(items, list) and "words" in odd:
            self._world.judge.words.shown(
                [item for item in items if isinstance(item, dict)], SPELLINGS
            )

    def _oddly_shown(self, shape: dict[str, Any]) -> None:
        """Show a payment, or its charge, in the way that is its own."""
        payment = shape["id"] if shape["object"] == "payment_intent" else shape["payment_intent"]
        match self._world.plan.odd.shown.get(payment) if self._odd else None:
            case "silent":
                for item in _items(shape, shape["object"]):
                    item["currency"] = None
            case "another":
                shape["id"] = "pi_somebody_elses"
            case "contradicts":
                for item in _items(shape, shape["object"]):
                    if item["object"] == "charge":
                        item["currency"] = "eur"
            case _:
                self._world.judge.money.confirmed.add(payment)
                return
        self._world.happens("payment_shown_oddly")

    def _leave_labels_out(self, shape: dict[str, Any]) -> None:
        """Return a list's entries without metadata, dated by the day or by a clock that is
        behind.
        """
        for item in shape["data"]:
            item["metadata"] = {}
            scale = 1000 if item["created"] > 10**11 else 1
            day, behind = 86_400 * scale, 660 * scale
            item["created"] = (
                item["created"] // day * day
                if self._dice.random() < 0.5
                else item["created"] - behind
            )
            self._world.happens("list_unlabelled")

    def _anothers(self, shape: dict[str, Any]) -> dict[str, Any]:
        """Return another payment's refund that says neither whose it is nor of which payment."""
        world = self._world
        # One that a record has: what nothing contradicts is the provider's word for what it did.
        # One that a power cut may still take from its record would be nobody's.
        since = world.judge.now_ms() - 1000 * FLUSH_SECONDS
        taken = {
            known.record["provider_refund_id"]
            for known in world.judge.refunds.values()
            if known.is_owner and int(known.record["updated_at"] or 0) < since
        }
        others = [
            refund
            for refund in world.seam.bank.refunds.values()
            if refund.id in taken and refund.id != shape["id"] and refund.amount == shape["amount"]
        ]
        if not others or self._dice.random() >= world.plan.odd.rate:
            return shape
        world.happens("reply_of_another")
        other = shapes.refund(world.seam.provider.config, self._dice.choice(others))
        return {
            name: value
            for name, value in other.items()
            if name not in {"payment_intent", "metadata", "charge"}
        }

    def _numbers(self, shape: dict[str, Any], kind: str) -> bytes | None:
        world, dice = self._world, self._dice
        items = [item for item in _items(shape, kind) if "amount" in item]
        if not items:
            return None
        item = dice.choice(items)
        name = dice.choice(
            [name for name in ("amount", "amount_refunded", "amount_captured") if name in item]
        )
        item[name] = dice.choice([value for value in NUMBERS if not _would_lie(name, value)])
        world.happens("odd_number")
        return None

    def _words(self, shape: dict[str, Any], kind: str) -> bytes | None:
        world, dice = self._world, self._dice
        for item in _items(shape, kind):
            if item.get("object") == "refund" and item.get("status") in SPELLINGS:
                known = dice.random() < 0.7
                world.happens("other_spelling" if known else "unknown_word")
                item["status"] = dice.choice(SPELLINGS[item["status"]] if known else UNKNOWN_WORDS)
        return None

    def _codes(self, shape: dict[str, Any], kind: str) -> bytes | None:
        """Give each refusal, and each reason of a failure, a code that is not in any table."""
        for item in _items(shape, kind):
            if kind == "error" or item.get("failure_reason"):
                self._made_up += 1
                item["code" if kind == "error" else "failure_reason"] = f"{MADE_UP}{self._made_up}"
                self._world.happens("made_up_code")
        return None

    def _texts(self, shape: dict[str, Any], kind: str) -> bytes | None:
        world, dice = self._world, self._dice
        long = dice.choice((50, 300, LONG))
        text = dice.choice(
            (
                f"{'x' * long} {API_KEY}",
                f"{API_KEY}{EMAIL}\u001b]0;pwned\u0007{'y' * long}",
                f"\u0000\u009b31m{EMAIL} \ud800 \U0010ffff",
                f"code-{'z' * long}",
            )
        )
        if kind == "error":
            told = shape.get("error", shape)
            told[dice.choice(("code", "message", "type"))] = text
        elif kind in {"refund", "list"}:
            for item in _items(shape, kind)[:1]:
                item[dice.choice(("failure_reason", "currency", "description", "reason"))] = text
        else:
            shape["currency"] = text
        world.happens("odd_text")
        body = json.dumps(shape).encode()
        return body if len(body) < CAPPED else None

    def _shapes(self, shape: dict[str, Any], kind: str) -> bytes | None:
        world, dice = self._world, self._dice
        world.happens("odd_shape")
        if dice.random() < 0.2:
            return dice.choice(
                (b"[]", b"null", b"17", b'"ok"', b"{}", b'{"id":1}', b"[" * 200_000, b"\xff", b"")
            )
        items = [item for item in _items(shape, kind) if item.get("object", kind) in FIELDS] or [
            shape
        ]
        item = dice.choice(items)
        names = FIELDS.get(str(item.get("object", kind)), FIELDS["error"])
        name = dice.choice(names)
        item[name] = dice.choice([value for value in VALUES if not _would_lie(name, value)])
        if dice.random() < 0.2:
            # A value that cannot be read makes the whole body unreadable.
            item[name] = "@"
            return json.dumps(shape).encode().replace(b'"@"', dice.choice(UNREADABLE), 1)
        return None


def _would_lie(name: str, value: Any) -> bool:
    """Tell whether a value in a field is what a truthful provider might say of another state of
    things.
    """
    empty = {"amount_refunded": 0, "data": [], "has_more": False}
    return name in empty and value == empty[name] and type(value) is type(empty[name])


def _items(shape: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    """Return the objects in a shape that have fields of their own.

    A list's entries, a payment and its charges.
    """
    if kind == "list":
        return [item for item in shape["data"] if isinstance(item, dict)]
    charges = shape.get("charges")
    inner = charges.get("data", []) if isinstance(charges, dict) else []
    if kind == "error":
        told = shape.get("error")
        return [told if isinstance(told, dict) else shape]
    return [shape, *inner]
