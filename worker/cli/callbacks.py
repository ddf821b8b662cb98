"""`refunds callbacks`: shows, switches, tests and replays the callbacks to a shop's endpoints."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any, Final

import click
from rich.table import Table

from worker.callbacks import endpoints
from worker.callbacks.endpoints import Endpoint
from worker.cli import render
from worker.cli.exits import DONE, NOTHING_TO_DO, SOME_FAILED
from worker.cli.session import act, note, opened, operator
from worker.cli.values import checked_moment
from worker.client import Refunds
from worker.errors import FieldError, GuardRefused, InputError, InvalidRequest, NotFound
from worker.model.request import scrubbed, shown
from worker.model.times import rfc3339
from worker.model.words import counted, verb
from worker.settings import Settings
from worker.store import callback_state
from worker.store.callback_state import CallbackState, DeadLetter, EndpointState
from worker.store.callbacks import BATCH
from worker.wording import values

_json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object per line."
)
_name = click.argument("name", metavar="NAME")
_NOT_SET: Final = "REFUNDS_CALLBACKS_FILE is not set here, so no worker with these settings sends"


@click.group(
    epilog="""\b
Examples:
  refunds callbacks list
  refunds callbacks test shop
  refunds callbacks on
  refunds callbacks replay shop --dead
"""
)
def callbacks() -> None:
    """Show, switch, test and replay callbacks: signed POSTs about refunds and batches.

    REFUNDS_CALLBACKS_FILE names the endpoints. Switch callbacks on once all
    workers have that file.
    """


def _endpoint(settings: Settings, name: str) -> Endpoint:
    """Return the endpoint of that name in the file. Raises `InvalidRequest`."""
    known = endpoints.load(settings)
    found = next((each for each in known if each.name == name), None)
    if found is not None:
        return found
    rule = "must be an endpoint of REFUNDS_CALLBACKS_FILE, "
    if settings.callbacks_file is None:
        rule += "which is not set here: set it as it is set for the workers"
    else:
        rule += f"which has: {', '.join(each.name for each in known) or 'none'}"
    raise InvalidRequest([FieldError(field="name", code="endpoint", value=shown(name), rule=rule)])


def _is_set(refunds: Refunds, name: str) -> bool:
    """Return whether the endpoint is in the file, or only in the records.

    Raises `InvalidRequest` if it is in neither.
    """
    known = {each.name for each in endpoints.load(refunds.settings)}
    if name not in known and not _in_records(refunds, name):
        _endpoint(refunds.settings, name)
    return name in known


def _in_records(refunds: Refunds, name: str) -> EndpointState | None:
    found = callback_state.read_callbacks(refunds.store).endpoints
    return next((each for each in found if each.name == name), None)


@callbacks.command(
    "list",
    short_help="List the endpoints and what waits for them.",
    epilog="\b\nExample:\n  refunds callbacks list --json\n\n\b\nExit code: 9 if there is none.",
)
@_json_option
def list_endpoints(*, as_json: bool) -> int:
    """List the endpoints: what waits, since when, dead letters, and whether they answer."""
    with opened() as refunds:
        known = {each.name: each for each in endpoints.load(refunds.settings)}
        state = callback_state.read_callbacks(refunds.store, known)
    if as_json:
        for each in state.endpoints:
            render.as_json(_as_dict(each, known.get(each.name), state))
    elif state.endpoints:
        render.put(_table(state.endpoints, known))
    if state.on_since is None:
        note("callbacks are off: no refund is noted for them until 'refunds callbacks on'")
    if not known:
        note(f"{_NOT_SET} a callback" if state.endpoints else "there is no endpoint")
    return DONE if state.endpoints else NOTHING_TO_DO


def _as_dict(each: EndpointState, known: Endpoint | None, state: CallbackState) -> dict[str, Any]:
    return {
        "name": each.name,
        "url": None if known is None else known.shown_url,
        "on": state.on_since is not None,
        "waiting": each.waiting,
        "waiting_since": _text(each.waiting_since),
        "dead": each.dead,
        "paused_at": _text(each.paused_at),
        "paused_by": each.paused_by,
        "failures": each.failures,
        "failing_since": _text(each.failing_since),
        "delivered_at": _text(each.delivered_at),
    }


def _text(moment: datetime | None) -> str | None:
    return None if moment is None else rfc3339(moment)


def _table(states: Sequence[EndpointState], known: dict[str, Endpoint]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("endpoint", "state"):
        table.add_column(name, no_wrap=True)
    for name in ("waiting", "dead"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("oldest", "last arrived"):
        table.add_column(name, no_wrap=True)
    table.add_column("url", overflow="fold")
    for each in states:
        found = known.get(each.name)
        table.add_row(
            each.name,
            _state(each),
            f"{each.waiting:,}",
            f"{each.dead:,}",
            "-" if each.waiting_since is None else values.moment(each.waiting_since),
            "-" if each.delivered_at is None else values.moment(each.delivered_at),
            "not in REFUNDS_CALLBACKS_FILE" if found is None else values.plain(found.shown_url),
        )
    return table


def _state(each: EndpointState) -> str:
    if each.paused_at is not None:
        return f"paused by {values.plain(each.paused_by or '-')}"
    return f"failing, {counted(each.failures, 'try', 'tries')}" if each.failures else "ok"


@callbacks.command(
    "on",
    short_help="Switch callbacks on, for what settles from now on.",
    epilog="\b\nExample:\n  refunds callbacks on\n\n\b\nExit code: 9 if they were on already.",
)
def turn_on() -> int:
    """Switch callbacks on: from now on, what settles or needs review is sent.

    Do so once every worker has REFUNDS_CALLBACKS_FILE. For what settled
    before, see 'refunds callbacks replay'.
    """
    with opened() as refunds:
        if not endpoints.load(refunds.settings):
            note(f"warning: {_NOT_SET} a callback")
        by = operator(refunds.settings)
        changed = act(
            refunds, "callbacks on", "", lambda: callback_state.turn_on(refunds.store, by)
        )
    note("callbacks are on" if changed else "callbacks were on already")
    return DONE if changed else NOTHING_TO_DO


@callbacks.command(
    "off",
    epilog="\b\nExample:\n  refunds callbacks off\n\n\b\nExit code: 9 if they were off already.",
)
def turn_off() -> int:
    """Switch callbacks off: nothing more is noted for them. What waits is still sent."""
    with opened() as refunds:
        changed = act(refunds, "callbacks off", "", lambda: callback_state.turn_off(refunds.store))
    note("callbacks are off" if changed else "callbacks were off already")
    return DONE if changed else NOTHING_TO_DO


@callbacks.command(
    epilog="\b\nExample:\n  refunds callbacks pause shop\n\n\b\nExit code: 9 if it was paused."
)
@_name
def pause(*, name: str) -> int:
    """Send nothing to an endpoint until 'refunds callbacks resume'. Everything is kept."""
    with opened() as refunds:
        _endpoint(refunds.settings, name)
        store, by = refunds.store, operator(refunds.settings)
        changed = act(
            refunds, "callbacks pause", name, lambda: callback_state.pause(store, name, by)
        )
    note(
        f"{name} is paused: send again with 'refunds callbacks resume {name}'"
        if changed
        else f"{name} was already paused"
    )
    return DONE if changed else NOTHING_TO_DO


@callbacks.command(
    epilog="\b\nExample:\n  refunds callbacks resume shop\n\n\b\nExit code: 9 if it was not paused."
)
@_name
def resume(*, name: str) -> int:
    """Send to an endpoint again, at once also if it kept failing."""
    with opened() as refunds:
        _endpoint(refunds.settings, name)
        changed = act(
            refunds, "callbacks resume", name, lambda: callback_state.resume(refunds.store, name)
        )
    note(f"{name} is resumed" if changed else f"{name} was not paused; it is tried at once")
    return DONE if changed else NOTHING_TO_DO


@callbacks.command(
    "test",
    short_help="Send one test callback, from here.",
    epilog="""\b
Example:
  refunds callbacks test shop

\b
Exit code: 4 if the endpoint does not answer with 2xx.""",
)
@_name
@_json_option
def test_endpoint(*, name: str, as_json: bool) -> int:
    """Send a callback of the type refunds.test to an endpoint, signed as all others.

    It is sent once, from this machine. Redis is not needed.
    """
    from worker.callbacks.trial import send_test  # noqa: PLC0415 - no other command needs aiohttp

    reply = send_test(_endpoint(Settings.load(), name))
    answered = reply.result == "delivered"
    if as_json:
        render.as_json(
            {
                "name": name,
                "ok": answered,
                "status": reply.status,
                "error": reply.error or None,
                "reply": scrubbed(reply.reply),
                "ms": round(reply.seconds * 1000),
            }
        )
    else:
        answer = reply.error if reply.status is None else f"HTTP {reply.status}"
        click.echo(f"{name}: {answer}, after {reply.seconds * 1000:.0f} ms")
    return DONE if answered else SOME_FAILED


@callbacks.command(
    short_help="List what is not sent to an endpoint any more.",
    epilog="""\b
Example:
  refunds callbacks dead shop

\b
Exit code: 9 if there are none.""",
)
@_name
@_json_option
def dead(*, name: str, as_json: bool) -> int:
    """List the dead letters of an endpoint: what was tried for three days in vain, and why."""
    with opened() as refunds:
        is_set = _is_set(refunds, name)
        found = callback_state.dead_letters(refunds.store, name)
    if as_json:
        for each in found:
            render.as_json(_dead_as_dict(each))
    elif found:
        render.put(_dead_table(found))
        note(
            f"send them again with 'refunds callbacks replay {name} --dead'"
            if is_set
            else f"{name} is not in REFUNDS_CALLBACKS_FILE: if it was removed for good, run"
            f" 'refunds callbacks forget {name}'"
        )
    if not found:
        note(f"{name} has no dead letters")
    return DONE if found else NOTHING_TO_DO


def _dead_as_dict(each: DeadLetter) -> dict[str, Any]:
    status = each.last.get("status", "")
    return {
        "refund_id": None if each.member.startswith(BATCH) else each.member,
        "batch_id": each.member.removeprefix(BATCH) if each.member.startswith(BATCH) else None,
        "died_at": rfc3339(each.died_at),
        "event": each.last.get("event"),
        "version": int(each.last["version"]) if "version" in each.last else None,
        "status": int(status) if status else None,
        "error": each.last.get("error") or None,
        "reply": each.last.get("reply"),
    }


def _dead_table(found: Sequence[DeadLetter]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("refund", "since", "event", "answer"):
        table.add_column(name, no_wrap=True)
    table.add_column("reply", overflow="fold")
    for each in found:
        answer = each.last.get("error") or f"HTTP {each.last.get('status', '-')}"
        cells = (each.last.get("event", "-"), answer, each.last.get("reply", ""))
        table.add_row(
            values.plain(each.member.replace(BATCH, "batch ")),
            values.moment(each.died_at),
            *map(values.plain, cells),
        )
    return table


@callbacks.command(
    short_help="Delete what the records hold about a removed endpoint.",
    epilog="""\b
Example:
  refunds callbacks forget old-shop

\b
Exit code: 6 if it is still in the file, or was served in the last hour; 9 if
nothing is known about it.""",
)
@_name
def forget(*, name: str) -> int:
    """Delete what waits for an endpoint that was removed, its dead letters and its log.

    First remove it from the file of every worker, and restart them. The refunds
    themselves are not concerned.
    """
    with opened() as refunds:
        if any(each.name == name for each in endpoints.load(refunds.settings)):
            raise GuardRefused(
                f"{name} is in REFUNDS_CALLBACKS_FILE: remove it from the file of every worker and"
                " restart them first; nothing was changed"
            )
        found = _in_records(refunds, name)
        served = None if found is None else found.served_at
        if served is not None and refunds.store.time() - served < callback_state.UNSERVED:
            raise GuardRefused(
                f"a worker served {name} at {values.moment(served)}: remove it from the file of"
                " every worker, restart them, and run this again an hour later; nothing was changed"
            )
        changed = act(
            refunds, "callbacks forget", name, lambda: callback_state.forget(refunds.store, name)
        )
    note(f"{name} is forgotten" if changed else f"nothing is known about {shown(name)}")
    return DONE if changed else NOTHING_TO_DO


@callbacks.command(
    short_help="Send again: dead letters, what settled since a time, or single refunds.",
    epilog="""\b
Examples:
  refunds callbacks replay shop --dead
  refunds callbacks replay shop --since 2026-01-31T09:00:00Z
  refunds callbacks replay shop order-1001-1

\b
Exit code: 3 if a refund does not exist, or is not for the endpoint; 9 if there is
nothing to send.""",
)
@_name
@click.argument("refund_ids", metavar="[REFUND_ID]…", nargs=-1)
@click.option("--dead", "only_dead", is_flag=True, help="All dead letters.")
@click.option("--since", metavar="TIME", help="What settled since then; in UTC unless it says so.")
def replay(*, name: str, refund_ids: tuple[str, ...], only_dead: bool, since: str | None) -> int:
    """Send to an endpoint again what it may have missed, in the present version.

    A receiver that has the version already drops it.
    """
    if [bool(refund_ids), only_dead, since is not None].count(True) != 1:
        raise click.UsageError("give refund ids, --dead, or --since TIME: one of them")
    moment = None if since is None else checked_moment(since, "must be in the past")
    with opened() as refunds:
        endpoint, store = _endpoint(refunds.settings, name), refunds.store
        members: Iterable[str] = _members(refunds, endpoint, refund_ids, moment)
        dropped = 0
        if only_dead:
            # A worker drops one that is not for the endpoint any more. Left out here, it would be a
            # dead letter, with an alert, until its record expires.
            members = [letter.member for letter in callback_state.dead_letters(store, name)]
            dropped = sum(not endpoint.wants(member) for member in members)
        count = act(
            refunds,
            "callbacks replay",
            name,
            lambda: callback_state.replay(store, name, members, only_dead=only_dead),
        )
    if dropped:
        note(
            f"{counted(dropped, 'dead letter')} {verb(dropped, 'is', 'are')} not for {name} any"
            f" more, and {verb(dropped, 'is', 'are')} dropped"
        )
    sent = max(0, count - dropped)
    note(f"{counted(sent, 'callback')} to {name} will be sent" if sent else "nothing is to be sent")
    return DONE if count else NOTHING_TO_DO


def _members(
    refunds: Refunds, endpoint: Endpoint, refund_ids: Sequence[str], since: datetime | None
) -> Iterator[str]:
    if refund_ids:
        for refund_id, refund in zip(refund_ids, refunds.get_many(refund_ids), strict=True):
            if refund is None:
                raise NotFound(f"no refund {refund_id} was accepted here: nothing is sent again")
            if not endpoint.wants(refund_id):
                raise InputError(
                    f"refund {refund_id} is not for endpoint {endpoint.name}, whose ids begin with"
                    f" {endpoint.ids!r}: nothing is sent again"
                )
        yield from refund_ids
    elif since is not None:
        found = callback_state.ended_since(refunds.store, since)
        yield from filter(endpoint.wants, found)
