"""How a refund lies in Redis: the catalogue of keys, and the way between a hash and a `Refund`.

Keys, under the prefix (`refunds:`); only the scripts in `lua/` write them:

    refund:<id>            hash    the record, flat; absent fields are not stored
    body:<id>              string  the bytes to be sent; dropped when the refund settles
    history:<id>           list    one JSON object a move, oldest first, without what its place tells (`Moves`);
                                   at most 500: the first 100, one that counts what is left out, the newest
    due                    zset    every unsettled id, by the epoch ms at which it is looked at next
    index:<bucket>         zset    ids of one stage by that time, or of one final status by when it settled;
                                   queued ones of the bulk lane stand in `queued.bulk`
    payment:<pi>           hash    lock, seq (moves of totals), open (none: absent), seen (the provider showed it),
                                   gone (a person says that it is not there any more), refund:<id> (ours),
                                   owner:<provider id>
    owner:<provider id>    string  the one refund of the whole installation that a provider's refund belongs to
    doubts:<pi>            zset    ids in doubt beside the one that holds the payment's lock, oldest first
    waiters:<pi>           zset    ids held back by the payment's lock, oldest first
    batch:<id>             hash    a file: its name, digest, state, counts by stage and status, amounts by currency
    batch-refunds:<id>     list    the batch's own ids, in row order
    batch-waiters:<id>     zset    rows held back while the batch starts with few at a time, oldest first
    batches                zset    batch ids by creation
    contradicted           zset    ids of records that a refund of the provider contradicts, by when that was seen
    digests                hash    file digest to batch id
    events                 stream  every move, trimmed to about a million
    rejected               list    messages that could not be understood, newest first, the latest 10,000
    rejected-ids           hash    refund id to the latest of them that names it, without what it holds
    counters               hash    moves, settled refunds and amounts, provider calls: what metrics read
    gate                   hash    the provider's rate limit
    clock                  hash    the largest time that a script saw, and how far it is ahead of the server's clock
    meta                   hash    schema, provider host and mode, paused and paused_by, credentials_refused_at,
                                   account_lost_at and account_lost_payment, account, account_vouched, key_salt and
                                   key_prints, suspect_since and suspect_until (a recovery), probe_at, probe_host,
                                   probe_results, confirmed (written so that waiting for the disk has a write to wait
                                   for)
    workers                zset    worker names by their last heartbeat
    outages                zset    workers whose outage breaker is open, by their last heartbeat
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from datetime import datetime
from typing import Any, Final

from worker.model.refund import Baseline, Lane, Refund, Retriable, Stage, Status
from worker.model.request import RefundRequest, idempotency_key, request_body
from worker.model.times import from_ms, to_ms

SCHEMA_VERSION: Final = "1"

_INTEGERS: Final = frozenset(
    (
        "amount",
        "attempts",
        "generation",
        "version",
        "verdicts",
        "lapses",
        "server_errors",
        "looks",
        "resends",
    )
)
_TIMES: Final = frozenset(
    (
        "doubt_since",
        "created_at",
        "updated_at",
        "next_check_at",
        "first_attempt_at",
        "quiet_at",
        "absent_at",
        "proven_absent_at",
        "found_at",
        "processing_since",
        "missing_since",
        "unconfirmed_since",
    )
)
NUMBERS: Final = _INTEGERS | _TIMES
"""Fields that are whole numbers: the scripts write no other into them."""
_ENUMS: Final[Mapping[str, type]] = {"status": Status, "stage": Stage, "lane": Lane, "retriable": Retriable}
_FIELDS: Final = frozenset(field.name for field in fields(Refund))


def records_ms(server_time: tuple[int, int], clock: Sequence[str | None]) -> int:
    """Return the time of the records in epoch ms as a script would see it, by the server's own and by `clock`."""
    seconds, micros = server_time
    told = int(seconds) * 1000 + int(micros) // 1000
    at, ahead = (int(value or 0) for value in clock)
    is_right_again = told >= at and told + ahead - at > _MINUTE_MS
    return told if is_right_again else max(at, told + ahead)


CLOCK: Final = ("at", "ahead")
"""The fields of `clock` that `records_ms` takes."""
_MINUTE_MS: Final = 60_000


def pairs_of(flat: Sequence[str]) -> dict[str, str]:
    """Return a flat reply as a mapping."""
    return dict(zip(flat[::2], flat[1::2], strict=True))


def decode(stored: Mapping[str, str]) -> Refund:
    """Return the record in a hash; fields this version does not know are left alone."""
    values: dict[str, Any] = {}
    for name, text in stored.items():
        if name not in _FIELDS:
            continue
        if name in _INTEGERS:
            values[name] = int(text)
        elif name in _TIMES:
            values[name] = from_ms(int(text))
        elif name in _ENUMS:
            values[name] = _ENUMS[name](text)
        elif name in {"metadata", "baseline"}:
            loaded = json.loads(text)
            values[name] = Baseline(**loaded) if name == "baseline" else loaded
        elif name in {"all_remaining", "doubted", "operator_unverified", "currency_checked"}:
            values[name] = text == "1"
        else:
            values[name] = text
    if "idempotency_key" not in values:
        values["idempotency_key"] = idempotency_key(values["refund_id"], values.get("generation", 1))
    values.setdefault("fingerprint", "")
    refund = Refund(**values)
    # A settled record leaves it out, since what was asked for stands in the rest of it.
    return refund if refund.fingerprint else replace(refund, fingerprint=refund.as_request().fingerprint)


class Moves:
    """Reads a refund's history from its first entry on, as many entries at a time as there are.

    An entry leaves out what its place tells: `version` is its number, `from` where the one before led to; only the
    first says `at`, and the others the milliseconds `after` the one before; without `status` it is pending, and without
    `to` settled; without `label` it is the first (`accepted`), a claim (`send`) or bears its status's name; without
    `attempt` a move in or out of `sending` is of the attempt that was claimed. One entry may stand for many moves that
    were `left_out`, of which it tells how many, and the `claims` among them. Without `source` a move out of `sending`
    that has a status of HTTP was concluded from the reply, and a resend rests on what the entry before it concluded.
    """

    def __init__(self) -> None:
        self._version = 0
        self._at = 0
        self._stage: str | None = None
        self._attempts = 0
        self._concluded: dict[str, Any] = {}

    def read(self, entries: Iterable[str]) -> list[dict[str, Any]]:
        """Return the next entries whole: version, at (epoch ms), from, to, status, label, and what else was noted."""
        return [self._whole(json.loads(entry)) for entry in entries]

    def _whole(self, noted: dict[str, Any]) -> dict[str, Any]:
        source, target = self._stage, noted.pop("to", Stage.SETTLED.value)
        status = noted.pop("status", Status.PENDING.value)
        left_out = noted.get("left_out")
        self._version += left_out or 1
        self._at = noted.pop("at", None) or self._at + noted.pop("after")
        self._stage = target
        usual = "accepted" if source is None else "send" if target == Stage.SENDING else status
        whole = {
            "version": self._version,
            "at": self._at,
            "from": source,
            "to": target,
            "status": status,
            "label": noted.pop("label", usual),
        }
        if left_out is not None:
            self._attempts += noted.pop("claims")
            whole["label"] = "left_out"
        else:
            self._attempts += target == Stage.SENDING
            if Stage.SENDING in {source, target}:
                whole["attempt"] = self._attempts
        if whole["label"] == "resend":
            whole |= self._concluded
        elif source == Stage.SENDING and "http_status" in noted:
            whole["source"] = "reply"
        whole |= noted
        self._concluded = {name: whole[name] for name in ("source", "by") if name in whole}
        return whole


def encode(changes: Mapping[str, Any]) -> list[str]:
    """Return changes as field, value pairs for a script; None, False and zero counters become '' (remove)."""
    flat: list[str] = []
    for name, value in changes.items():
        flat.append(name)
        flat.append(_text(name, value))
    return flat


def _text(name: str, value: Any) -> str:
    if value is None or value is False or (value == 0 and name != "amount"):
        return ""
    if value is True:
        return "1"
    if isinstance(value, datetime):
        return str(to_ms(value))
    if isinstance(value, Baseline):
        contents = {"refunded": value.refunded, "currency": value.currency, "remaining": value.remaining}
        return json.dumps(contents, separators=(",", ":"))
    if isinstance(value, Mapping):
        return json.dumps(dict(value), separators=(",", ":")) if value else ""
    return str(value)


def new_row(request: RefundRequest) -> tuple[str | bytes | int, ...]:
    """Return the row with which `create.lua` accepts a request: '' stands for what was not stated."""
    metadata = request.metadata
    return (
        request.refund_id,
        request.fingerprint,
        request_body(request, 1),
        request.payment_intent,
        idempotency_key(request.refund_id, 1),
        request.amount or "",
        request.currency or "",
        request.reason or "",
        _text("metadata", metadata) if metadata else "",
    )


def new_record(request: RefundRequest, lane: Lane, created_at: datetime, next_check_at: datetime) -> Refund:
    """Return the record of a refund as it was just accepted."""
    return Refund(
        refund_id=request.refund_id,
        status=Status.PENDING,
        stage=Stage.QUEUED,
        payment_intent=request.payment_intent,
        amount=request.amount,
        currency=request.currency,
        reason=request.reason,
        metadata=dict(request.metadata),
        created_at=created_at,
        updated_at=created_at,
        next_check_at=next_check_at,
        version=1,
        lane=lane,
        fingerprint=request.fingerprint,
        idempotency_key=idempotency_key(request.refund_id, 1),
        all_remaining=request.amount is None,
        asked_currency=request.currency,
    )
