"""The signature of a webhook: the header `t=…,v1=…`, an HMAC-SHA256 over `t`, a dot and the body.

The provider repeats a delivery for 72 hours and keeps its first `t`, in seconds or milliseconds.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Literal

from worker.model.times import to_ms

Verdict = Literal["valid", "malformed", "forged", "stale"]

PATH: Final = "/webhooks/wooshpay"
"""Path at which the webhook server receives events."""
HEADER: Final = "Wooshpay-Signature"
MOST_SIGNATURES: Final = 10
AHEAD: Final = timedelta(hours=1)
"""How far ahead of our clock a `t` may be."""
_MILLISECONDS_FROM: Final = 10**11
"""A `t` of at least this number is in milliseconds: in seconds it would be the year 5138."""
_TIME: Final = re.compile(r"[0-9]{1,16}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Signature:
    """A header's parts: `time` as it was signed, and the signatures in hex."""

    time: str
    signatures: tuple[str, ...]

    @property
    def time_ms(self) -> int:
        """Return the signed time as epoch milliseconds."""
        number = int(self.time)
        return number if number >= _MILLISECONDS_FROM else number * 1000


def parse(headers: Sequence[str]) -> Signature | None:
    """Return the signature in a request's `HEADER` values, None unless there is exactly one.

    The first `t` counts. Elements of other names are ignored.
    """
    if len(headers) != 1:
        return None
    pairs = [element.strip().partition("=")[::2] for element in headers[0].split(",")]
    time = next((value for name, value in pairs if name == "t"), "")
    found = tuple(value for name, value in pairs if name == "v1")
    if _TIME.fullmatch(time) is None or not 0 < len(found) <= MOST_SIGNATURES:
        return None
    return Signature(time=time, signatures=found)


def digest(secret: str, time: str, body: bytes) -> str:
    """Return the signature in hex of a body at a time, for an endpoint's secret."""
    signed = time.encode("ascii") + b"." + body
    return hmac.new(secret.encode("utf-8"), signed, hashlib.sha256).hexdigest()


def header(secret: str, time: str, body: bytes) -> str:
    """Return the value of `HEADER` for a body."""
    return f"t={time},v1={digest(secret, time, body)}"


def check(
    headers: Sequence[str],
    body: bytes,
    *,
    secrets: Sequence[str],
    now: datetime,
    max_age: timedelta | None,
) -> Verdict:
    """Return whether a body was signed with one of the secrets, and recently.

    `max_age` None: of any age.
    """
    signature = parse(headers)
    if signature is None:
        return "malformed"
    if not _signed(signature, body, secrets):
        return "forged"
    early = to_ms(now + AHEAD) < signature.time_ms
    late = max_age is not None and signature.time_ms < to_ms(now - max_age)
    return "stale" if early or late else "valid"


def _signed(signature: Signature, body: bytes, secrets: Sequence[str]) -> bool:
    # Bytes, because a header may hold characters that `compare_digest` refuses in a text.
    given = [value.encode("utf-8", "surrogateescape") for value in signature.signatures]
    wanted = [
        digest(secret, signature.time, body).encode("ascii")
        # Anyone can sign with an empty secret.
        for secret in secrets
        if secret
    ]
    return any(hmac.compare_digest(ours, theirs) for ours in wanted for theirs in given)
