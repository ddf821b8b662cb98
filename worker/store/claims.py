"""The commands that decide whether a refund may be sent: claims, and their positions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Literal

from worker.model.refund import Baseline, Refund
from worker.model.times import from_ms
from worker.rules.attempts import PARKED, VERDICT_LIFE
from worker.store import scripts
from worker.store.records import decode, encode, pairs_of
from worker.store.scripts import Argument, Command
from worker.store.sweeps import SWEEP_HOLD

_ms = timedelta(milliseconds=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """A claim's result: `claimed` with body and lease, or the reason why not.

    Also the current record.
    """

    result: str
    now: datetime
    refund: Refund | None = None
    token: str = ""
    body: bytes = b""
    lease_left: timedelta = timedelta(0)
    recheck: str = ""
    """As in `Loaded`, for a claim that was refused."""
    position: str = ""
    """The claim's position among all claims, '' for a repeated or refused one."""

    @property
    def claimed(self) -> bool:
        """Return whether the claim was granted, so that this worker may send the refund."""
        return self.result == "claimed"


def shorter(claim: Claim, spent: timedelta) -> Claim:
    """Return the claim as it is `spent` after the request.

    With the lease shortened and the time advanced by that.

    The server granted the claim between request and reply, so counting from the request errs on the
    safe side.
    """
    return replace(claim, now=claim.now + spent, lease_left=claim.lease_left - spent)


ClaimKind = Literal["send", "replay", "resend"]


def claim(
    refund_id: str,
    kind: ClaimKind,
    *,
    token: str,
    lease: timedelta,
    replay_window: timedelta = timedelta(0),
    version: int | None = None,
    seq: str | None = None,
    baseline: Baseline | None = None,
    currency_checked: bool = False,
    payment_shown: bool = False,
    prior_read_at: datetime | None = None,
    remembered: Callable[[], str] = str,
) -> Command[Claim]:
    """Claim a refund for one attempt.

    Durable, so no byte is sent before body, key and attempt are safe.

    `payment_shown` says that the payment was read just now, and `currency_checked` that it is in
    the currency stated by the refund. `prior_read_at` is when the provider's refunds of earlier
    generations were read, and had moved nothing. `remembered` returns the latest position that this
    worker remembers, '' for none: a server that lacks it grants no claim (`behind`). It is asked
    when the claim is sent, since claims that waited for it may have been confirmed by a server that
    was lost meanwhile. `token` identifies this claim: a repeated claim with it, after a lost reply,
    returns the same claim.
    """

    def read(reply: Any) -> Claim:
        now = from_ms(int(reply[1]))
        if reply[0] != "claimed":
            return Claim(
                result=reply[0],
                now=now,
                refund=decode(pairs_of(reply[2])) if reply[2] else None,
                recheck=str(reply[3]),
            )
        refund = decode(pairs_of(reply[4]))
        body = reply[3] if isinstance(reply[3], bytes) else reply[3].encode("ascii")
        return Claim(
            result="claimed",
            now=now,
            refund=refund,
            token=token,
            body=body,
            lease_left=int(reply[2]) * _ms,
            position=str(reply[5]),
        )

    noted: dict[str, Any] = {}
    if baseline is not None:
        noted["baseline"] = baseline
    if currency_checked:
        noted["currency_checked"] = True
    if payment_shown:
        noted["payment_shown"] = True
    if prior_read_at is not None:
        noted["prior_read_at"] = prior_read_at
    arguments: list[Argument] = [
        refund_id,
        kind,
        token,
        lease // _ms,
        "" if version is None else str(version),
        seq or "",
        max(0, replay_window // _ms),
        VERDICT_LIFE // _ms,
        PARKED // _ms,
        *encode(noted),
    ]

    def compared() -> list[Argument]:
        position = remembered()
        return ["position", position] if position else []

    return Command(script=scripts.CLAIM, arguments=arguments, read=read, latest=compared)


def claimed(refund_id: str, token: str) -> Command[Claim]:
    """Check a claim whose reply was lost.

    The result is `claimed` if the claim was granted and is still valid.

    This never makes a claim, because no record has the version 0 that it requires.
    """
    made = claim(refund_id, "send", token=token, lease=SWEEP_HOLD, version=0)
    # The caller only concludes that nothing was sent, which is true whatever the server forgets.
    return replace(made, durable=False)


def stands(refund_id: str, token: str) -> Command[str]:
    """Return '' if the holder of a claim may send once more under it, else the obstacle.

    The obstacle is `overtaken` if a result was saved meanwhile, `lapsed`, or the reason that holds
    back every claim.
    """
    # It only reads.
    return Command(script=scripts.STANDS, arguments=[refund_id, token], read=str, durable=False)


def position(remembered: str) -> Command[datetime | None]:
    """Compare the server with the latest position that a worker remembers, '' for none.

    If the server lacks it, all claims are stopped. Returns since when they are, None if they are
    not. The command is not durable, because each worker that remembers finds the same again.
    """
    return Command(
        script=scripts.POSITION,
        arguments=[remembered],
        read=lambda reply: from_ms(int(reply)) if reply else None,
        durable=False,
    )
