"""How refunds are stored in Redis.

The catalogue of keys, and the conversion between a hash and a `Refund`.

All keys have the prefix (`refunds:`). Only the scripts in `lua/` write refund records:

    refund:<id>            hash    the record, flat; absent fields are not stored
    body:<id>              string  the bytes to be sent; dropped when the refund settles
    history:<id>           list    one JSON object per move, oldest first, without derivable fields
                                   (`Moves`); at most 500: the first 100, one that counts those left
                                   out, the newest
    attempts:<row's id>    string  the latest further attempt at a row of a file (`-a2` and above)
    due                    zset    every unsettled id, by the epoch ms of its next check
    index:<bucket>         zset    ids of one stage by that time, or of one final status by when it
                                   settled; queued ones of the bulk lane are in `queued.bulk`
    payment:<pi>           hash    lock, seq (moves of totals), open (none: absent), seen (the
                                   provider showed it), gone (a person says that it no longer
                                   exists), refund:<id> (ours), owner:<provider id>
    owner:<provider id>    string  the only refund in the installation that owns a provider's
                                   refund; expires with its record
    doubts:<pi>            zset    ids in doubt beside the one that holds the payment's lock, oldest
                                   first
    waiters:<pi>           zset    ids held back by the payment's lock, oldest first
    batch:<id>             hash    a file: its name, digest, state, counts by stage and status,
                                   amounts by currency
    batch-refunds:<id>     list    the batch's own ids, in row order
    batch-waiters:<id>     zset    rows held back while the batch starts with few at a time, oldest
                                   first
    batches                zset    batch ids by creation
    contradicted           zset    ids of records contradicted by a refund of the provider, by when
                                   that was seen
    rechecks               zset    ids to be read again outside their own schedule, by when: named
                                   by a webhook, or due for the watch of settled refunds
    recheck-tries          hash    refund id to the rechecks in a row that were not answered
    hint-times             zset    ids that a webhook made due, by when; of the last half minute.
                                   With a provider's refund: the log says that it is not read
    reversed               zset    ids of refunds that the provider changed from succeeded to
                                   failed, by when that was seen
    settled-again          zset    ids of refunds that changed after they had settled, to or from
                                   succeeded or within it, by when they last did: their history has
                                   the months that they count in
    watch                  hash    how far each rung of the watch has come: <status>:<rung ms>, the
                                   score in the status's index; started_at, spent_at, and blind
                                   (refunds that have no provider id to be read by);
                                   erased:<status>, the score up to which metadata are erased
    callbacks              zset    ids of refunds that settled or need review, and `batch/<id>` of
                                   batches of which nothing moves, by when: to be shared out to the
                                   endpoints
    callbacks:<name>       zset    the same ids that an endpoint does not know in their present
                                   version, by the next try
    callback-since:<name>  zset    the same ids, by since when the endpoint does not know them
    callback-tries:<name>  hash    the same ids to: failed tries, until when no other try begins,
                                   the token of the try that is under way
    callback-dead:<name>   zset    ids that are not sent to an endpoint any more, by when
    callback-log:<name>    stream  the tries to send to an endpoint, trimmed to about 10,000
    callback-endpoint:<name>
                           hash    paused_at, paused_by; failures (in a row), failing_since, probe,
                                   probes and probe_at (the circuit); delivered_at, refused_at
    callback-endpoints     zset    names of endpoints, by when a worker last served them
    digests                hash    file digest to batch id
    token:<id>             hash    a token of the HTTP API: name, SHA-256, scopes, ids (how the ids
                                   begin that it sees), created_at, created_by, expires_at,
                                   revoked_at, used_at (the hour)
    tokens                 hash    name of a token to its id
    events                 stream  every move, trimmed to about a million
    audit                  stream  what people do, and what came of it, trimmed to about 100,000
    session:<sha256>       string  a session of the page: the token that opened it, and when
    person:<sha256>        string  what ties the page's forms to a person whom a proxy signs in
    rejected               list    messages that could not be understood, newest first, the latest
                                   10,000
    rejected-ids           hash    refund id to the latest rejected message that names it, without
                                   its contents
    counters               hash    moves, settled refunds and amounts, provider calls: the source of
                                   the metrics
    gate                   hash    the provider's rate limit
    clock                  hash    the latest time that a script saw, and how far it is ahead of the
                                   server's clock
    meta                   hash    schema, provider host and mode, paused and paused_by,
                                   credentials_refused_at, account_lost_at and account_lost_payment,
                                   account, account_vouched, key_salt and key_prints, recovered_at,
                                   suspect_since and suspect_until (a recovery), probe_at,
                                   probe_host, probe_results, callbacks and callbacks_by (whether
                                   endpoints learn of refunds), confirmed (written so that a wait
                                   for the disk has a write to wait for), run and position (how many
                                   claims were made since the first one or the latest recovery), and
                                   behind_since (the server has forgotten claims)
    positions              hash    the counter and the mark of the latest 8,192 claims, by counter
                                   modulo 8,192: see lua/_position.lua
    workers                zset    worker names by their last heartbeat
    outages                zset    workers whose outage breaker is open, by their last heartbeat
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from worker.model.refund import Baseline, Lane, Refund, Retriable, Stage, Status
from worker.model.request import RefundRequest, idempotency_key, request_body
from worker.model.times import from_ms, rfc3339, to_ms

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
        "reversed_at",
        "metadata_erased_at",
    )
)
NUMBERS: Final = _INTEGERS | _TIMES
"""Fields that hold whole numbers; the scripts write nothing else into them."""


def _one_of(kind: type[StrEnum]) -> Callable[[str], StrEnum]:
    """Return what `kind` does with a text; a call of an enumeration takes four times as long."""
    known: dict[str, StrEnum] = {each.value: each for each in kind}
    return lambda text: known.get(text) or kind(text)


_READERS: Final[Mapping[str, Callable[[str], Any]]] = {
    **dict.fromkeys((field.name for field in fields(Refund)), str),
    **dict.fromkeys(_INTEGERS, int),
    **dict.fromkeys(_TIMES, lambda text: from_ms(int(text))),
    **dict.fromkeys(
        (
            "all_remaining",
            "doubted",
            "operator_unverified",
            "absent_by_word",
            "retry_may_be_lost",
            "currency_checked",
        ),
        "1".__eq__,
    ),
    "status": _one_of(Status),
    "stage": _one_of(Stage),
    "lane": _one_of(Lane),
    "retriable": _one_of(Retriable),
    "metadata": json.loads,
    "baseline": lambda text: Baseline(**json.loads(text)),
}
"""How each field is read."""


def records_ms(server_time: tuple[int, int], clock: Sequence[str | None]) -> int:
    """Return the records' time in epoch ms as scripts compute it, from server time and `clock`."""
    seconds, micros = server_time
    server_ms = int(seconds) * 1000 + int(micros) // 1000
    at, ahead = (int(value or 0) for value in clock)
    is_right_again = server_ms > at - _MINUTE_MS and server_ms + ahead - at > _MINUTE_MS
    return max(at, server_ms if is_right_again else server_ms + ahead)


CLOCK: Final = ("at", "ahead")
"""The fields of `clock` that `records_ms` needs."""
_MINUTE_MS: Final = 60_000


def pairs_of(flat: Sequence[str]) -> dict[str, str]:
    """Return a flat reply of fields and values as a mapping."""
    return dict(zip(flat[::2], flat[1::2], strict=True))


def decode(stored: Mapping[str, str]) -> Refund:
    """Return the record in a hash; fields that this version does not know are ignored."""
    values = {name: _READERS[name](text) for name, text in stored.items() if name in _READERS}
    if "idempotency_key" not in values:
        values["idempotency_key"] = idempotency_key(
            values["refund_id"], values.get("generation", 1)
        )
    values.setdefault("fingerprint", "")
    refund = Refund.of(values)
    # A settled record omits the fingerprint if its other fields hold the request. A record whose
    # metadata were erased has it.
    return (
        refund
        if refund.fingerprint
        else replace(refund, fingerprint=refund.as_request().fingerprint)
    )


class Moves:
    """Reads a refund's history from its first entry on, in one or more batches of entries.

    Entries omit fields that can be derived:

    - `version` is the entry's number, and `from` is the previous entry's stage.
    - Only the first entry has `at`. The others have the milliseconds `after` the previous entry.
    - Without `status` it is pending, and without `to` it is settled.
    - Without `label` it is `accepted` for the first entry, `send` for a claim, else the status's
      name.
    - Without `attempt`, a move in or out of `sending` belongs to the attempt that was claimed.
    - Without `source`, a move out of `sending` with an HTTP status was concluded from the reply,
      and a resend is based on the conclusion of the previous entry.

    One entry may replace many moves: `left_out` is their number, and `claims` is the number of
    claims among them.
    """

    def __init__(self) -> None:
        self._version = 0
        self._at = 0
        self._stage: str | None = None
        self._attempts = 0
        self._concluded: dict[str, Any] = {}

    def read(self, entries: Iterable[str]) -> list[dict[str, Any]]:
        """Return the next entries in full.

        Version, at (epoch ms), from, to, status, label, and any further fields.
        """
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


def history_as_json(entries: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the moves with their times as RFC 3339 UTC."""
    return [{**entry, "at": rfc3339(from_ms(entry["at"]))} for entry in entries]


def encode(changes: Mapping[str, Any]) -> list[str]:
    """Return changes as field and value pairs for a script, as `text` writes them."""
    flat: list[str] = []
    for name, value in changes.items():
        flat.append(name)
        flat.append(text(name, value))
    return flat


def text(name: str, value: Any) -> str:
    """Return a field's value as it is stored; None, False and zero counters become '' (remove)."""
    if value is None or value is False or (value == 0 and name != "amount"):
        return ""
    if value is True:
        return "1"
    if isinstance(value, datetime):
        return str(to_ms(value))
    if isinstance(value, Baseline):
        return json.dumps(asdict(value), separators=(",", ":"))
    if isinstance(value, Mapping):
        return json.dumps(dict(value), separators=(",", ":")) if value else ""
    return str(value)


def new_row(request: RefundRequest) -> tuple[str | bytes | int, ...]:
    """Return a request as a row of arguments for `create.lua`.

    '' means that a field was not stated.
    """
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
        text("metadata", metadata) if metadata else "",
    )


def new_record(
    request: RefundRequest, lane: Lane, created_at: datetime, next_check_at: datetime
) -> Refund:
    """Return the record of a refund that was just accepted."""
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
