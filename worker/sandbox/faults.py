"""The sandbox's faults: their kinds, the spec that selects them, and which request each one hits.

A spec is a list of faults, each a kind with its parameters:

    spec  = fault ("," fault)*
    fault = kind (":" parameter "=" value)*

`cut_after_effect:p=0.05, http_500_before:n=3:times=2, http_429:on=any:retry_after=date:seconds=2`

When it fires: with `p=`, by probability (0 to 1); with `n=`, from the n-th matching request on
(counted from 1, for this fault alone), once by default; with neither, at every matching request.
`times=` bounds all three. What it matches: `on=` is post (the default), get, list, get_refund,
get_payment_intent, get_charge or any; `pi=` is one payment. If several could fire at one request,
the first in the spec does, and the others stay due.

`_before` means that nothing is executed, `_after` that the reply to an executed request is spoiled;
`_effect` may follow either. A comment in the table says what `seconds=` means for a kind.
"""

from __future__ import annotations

import difflib
import random
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping


class FaultSpecError(ValueError):
    """A fault spec is invalid; `part` is the part that is wrong."""

    def __init__(self, part: str, why: str) -> None:
        super().__init__(f"fault {part!r}: {why}")
        self.part = part


class Endpoint(StrEnum):
    """The provider's endpoints, as faults distinguish them."""

    CREATE = "post"
    LIST = "list"
    REFUND = "get_refund"
    PAYMENT = "get_payment_intent"
    CHARGE = "get_charge"


class Act(StrEnum):
    """What a fault does to the reply."""

    HOLD = "hold"
    RESET = "reset"
    CUT = "cut"
    STATUS = "status"
    HTML = "html"
    RATE_LIMITED = "rate_limited"
    REDIRECT = "redirect"
    EMPTY = "empty"
    OVERSIZED = "oversized"
    DRIP = "drip"
    WRONG = "wrong"
    LATE = "late"


SCOPES: Final[dict[str, frozenset[Endpoint]]] = {
    "post": frozenset({Endpoint.CREATE}),
    "list": frozenset({Endpoint.LIST}),
    "get": frozenset({Endpoint.REFUND, Endpoint.PAYMENT, Endpoint.CHARGE}),
    "get_refund": frozenset({Endpoint.REFUND}),
    "get_payment_intent": frozenset({Endpoint.PAYMENT}),
    "get_charge": frozenset({Endpoint.CHARGE}),
    "any": frozenset(Endpoint),
}
RETRY_AFTER: Final = ("seconds", "date", "absent", "garbage")
WRONG_FIELDS: Final = ("payment_intent", "amount", "currency", "id", "refund_id")


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of fault; `takes` are its parameters beyond when and where it fires."""

    name: str
    act: Act
    before: bool
    status: int = 200
    takes: frozenset[str] = frozenset()
    seconds: float | None = None

    @property
    def is_application_error(self) -> bool:
        """Whether an API would store this answer under its key.

        An error of its own, not of a proxy in front of it.
        """
        return self.act is Act.STATUS and self.status >= 500  # noqa: PLR2004 - the class of server errors


def _pair(
    name: str, act: Act, *, status: int = 200, takes: Iterable[str] = ()
) -> tuple[Kind, Kind]:
    return (
        Kind(name=f"{name}_before", act=act, before=True, status=status, takes=frozenset(takes)),
        Kind(name=f"{name}_after", act=act, before=False, status=status, takes=frozenset(takes)),
    )


_SECONDS: Final = frozenset({"seconds"})
_TABLE: Final = (
    # seconds: how long the connection is held before it is closed; without it, until the client
    # disconnects.
    *_pair("timeout", Act.HOLD, takes=_SECONDS),
    *_pair("reset", Act.RESET),
    *(
        kind
        for status in (408, 409, 500, 502, 503, 504)
        for kind in _pair(f"http_{status}", Act.STATUS, status=status)
    ),
    *(
        kind
        for status in (502, 503, 504)
        for kind in _pair(f"html_{status}", Act.HTML, status=status)
    ),
    *_pair("redirect", Act.REDIRECT, status=307),
    *_pair("empty_200", Act.EMPTY),
    Kind(name="http_401", act=Act.STATUS, before=True, status=401),
    Kind(name="http_403", act=Act.STATUS, before=True, status=403),
    # seconds: the value of Retry-After.
    Kind(
        name="http_429",
        act=Act.RATE_LIMITED,
        before=True,
        status=429,
        takes=frozenset({"seconds", "retry_after"}),
        seconds=1,
    ),
    Kind(name="cut_after", act=Act.CUT, before=False),
    Kind(name="oversized_after", act=Act.OVERSIZED, before=False),
    # seconds: how long the body takes to send.
    Kind(name="slow_drip_after", act=Act.DRIP, before=False, takes=_SECONDS, seconds=30),
    Kind(name="wrong_resource_after", act=Act.WRONG, before=False, takes=frozenset({"field"})),
    # seconds: how long the server waits before it executes the request, even if the client has
    # disconnected.
    Kind(name="late_effect", act=Act.LATE, before=False, takes=_SECONDS, seconds=1),
)
KINDS: Final[dict[str, Kind]] = {kind.name: kind for kind in _TABLE}
_SHORT: Final = {
    "slow_drip": "slow_drip_after",
    "wrong_resource": "wrong_resource_after",
    "oversized": "oversized_after",
}


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One fault of a spec: its kind, when and where it fires."""

    kind: Kind
    p: float | None = None
    n: int | None = None
    times: int | None = None
    on: str = "post"
    pi: str | None = None
    seconds: float | None = None
    retry_after: str = "seconds"
    field: str = "payment_intent"

    def as_dict(self) -> dict[str, Any]:
        """Return the parameters of this fault, as JSON values."""
        shown: dict[str, Any] = {"kind": self.kind.name, "on": self.on}
        for name in ("p", "n", "times", "pi", "seconds"):
            if getattr(self, name) is not None:
                shown[name] = getattr(self, name)
        for name in self.kind.takes & {"retry_after", "field"}:
            shown[name] = getattr(self, name)
        return shown


def parse_faults(spec: str) -> tuple[Fault, ...]:
    """Return the faults of a spec, none for an empty one.

    Raises `FaultSpecError` with the wrong part.
    """
    if not spec.strip():
        return ()
    return tuple(_parse_fault(text.strip()) for text in spec.split(","))


def _parse_fault(text: str) -> Fault:
    if not text:
        raise FaultSpecError(text, "is empty: remove the extra comma")
    name, *parts = (part.strip() for part in text.split(":"))
    asked: dict[str, str] = {}
    for part in parts:
        key, equals, value = part.partition("=")
        if not equals or not value:
            raise FaultSpecError(part, f"in {text!r} is not parameter=value")
        if key in asked:
            raise FaultSpecError(part, f"in {text!r} is given twice")
        asked[key] = value
    return fault_from({"kind": name, **asked})


def fault_from(asked: Mapping[str, object]) -> Fault:
    """Return one fault from its parameters, as text or JSON values.

    Raises `FaultSpecError` with the wrong part.
    """
    name = str(asked.get("kind", ""))
    kind = KINDS.get(name) or KINDS.get(_SHORT.get(name, name.removesuffix("_effect")))
    if kind is None:
        near = difflib.get_close_matches(name, KINDS, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(KINDS)}"
        raise FaultSpecError(name, f"is not a kind of fault; {hint}")
    words: dict[str, Any] = {"kind": kind, "seconds": kind.seconds}
    for key, value in asked.items():
        if key == "kind":
            continue
        part = f"{key}={value}"
        if key not in _READERS:
            raise FaultSpecError(part, f"unknown parameter; known are {', '.join(_READERS)}")
        if key in _EXTRAS and key not in kind.takes:
            raise FaultSpecError(part, f"{kind.name} does not take {key}")
        try:
            words[key] = _READERS[key](value)
        except ValueError as error:
            raise FaultSpecError(part, str(error)) from None
    if "p" in words and "n" in words:
        raise FaultSpecError(f"n={words['n']}", "p and n cannot be combined")
    if "n" in words:
        words.setdefault("times", 1)
    return Fault(**words)


def _probability(value: object) -> float:
    number = _number(value, "p")
    if not 0 < number <= 1:
        raise ValueError("p must be above 0 and at most 1")
    return number


def _number(value: object, name: str) -> float:
    try:
        # Through text, so that a JSON true or list is not a number.
        return float(str(value))
    except ValueError:
        raise ValueError(f"{name} must be a number") from None


def _positive(name: str) -> Callable[[object], int]:
    def read(value: object) -> int:
        text = str(value)
        if not (text.isascii() and text.isdigit()) or int(text) < 1:
            raise ValueError(f"{name} must be a whole number, 1 or more")
        return int(text)

    return read


def _one_of(name: str, allowed: Collection[object]) -> Callable[[object], str]:
    def read(value: object) -> str:
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(map(str, allowed))}")
        return str(value)

    return read


def _seconds(value: object) -> float:
    number = _number(value, "seconds")
    if not 0 <= number <= 3600:  # noqa: PLR2004 - an hour is longer than any test waits
        raise ValueError("seconds must be from 0 to 3600")
    return number


def _payment(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("pi must be the id of a payment intent")
    return value


_READERS: Final[dict[str, Callable[[object], object]]] = {
    "p": _probability,
    "n": _positive("n"),
    "times": _positive("times"),
    "on": _one_of("on", SCOPES),
    "pi": _payment,
    "seconds": _seconds,
    "retry_after": _one_of("retry_after", RETRY_AFTER),
    "field": _one_of("field", WRONG_FIELDS),
}
_EXTRAS: Final = frozenset({"seconds", "retry_after", "field"})


@dataclass(kw_only=True)
class _Armed:
    fault: Fault
    dice: random.Random
    seen: int = 0
    fired: int = 0

    def is_due(self) -> bool:
        """Count one matching request and return whether the fault may fire at it."""
        self.seen += 1
        # The dice are rolled even after `times` is used up, so that a bound does not change later
        # rolls.
        wanted = self.fault.p is None or self.dice.random() < self.fault.p
        if self.fault.times is not None and self.fired >= self.fault.times:
            return False
        return wanted and self.seen >= (self.fault.n or 1)


@dataclass(kw_only=True)
class FaultBook:
    """The active faults, with the requests each has seen and how often it fired.

    The same seed and the same requests fire the same faults.
    """

    seed: int
    _armed: list[_Armed] = field(default_factory=list)

    def replace(self, faults: Iterable[Fault]) -> None:
        """Replace all faults by these, with their counts at zero."""
        self._armed = [
            _Armed(
                fault=fault,
                dice=random.Random(f"{self.seed}:{index}:{fault.kind.name}"),  # noqa: S311 - repeatable, not secret
            )
            for index, fault in enumerate(faults)
        ]

    def draw(self, endpoint: Endpoint, payment: Callable[[], str | None]) -> Fault | None:
        """Return the fault that hits this request, if any.

        `payment` is called only if a fault is limited to one.
        """
        drawn: _Armed | None = None
        for armed in self._armed:
            fault = armed.fault
            if endpoint not in SCOPES[fault.on] or (fault.pi is not None and payment() != fault.pi):
                continue
            if armed.is_due() and drawn is None:
                drawn = armed
        if drawn is None:
            return None
        drawn.fired += 1
        return drawn.fault

    def report(self) -> list[dict[str, Any]]:
        """Return each fault's parameters, with the requests it has seen and how often it fired."""
        return [
            {**armed.fault.as_dict(), "seen": armed.seen, "fired": armed.fired}
            for armed in self._armed
        ]
