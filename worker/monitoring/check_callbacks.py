"""The check of callbacks: switched on, an endpoint that answers, and nothing old or dead."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Final

from worker.callbacks import endpoints
from worker.callbacks.endpoints import Endpoint
from worker.errors import SettingsError
from worker.monitoring.checks import Check, Trouble, fail, lasting, ok, warn
from worker.settings import Settings
from worker.store import callback_state
from worker.store.callback_state import CallbackState, EndpointState
from worker.store.callbacks import OPEN_FROM
from worker.store.store import Store

NAME: Final = "callbacks"
LATE: Final = timedelta(hours=1)
"""How long a callback may wait before it is reported."""
SERVED: Final = timedelta(minutes=1)
"""How recently a worker must have served an endpoint."""
_GUIDE: Final = "ops/docs/callbacks.md"


def callbacks(settings: Settings, store: Store) -> Iterator[Check]:
    """Yield whether callbacks work. They are an offer, so without them nothing is wrong."""
    try:
        known = endpoints.load(settings)
    except SettingsError as error:
        yield fail(NAME, str(error), f"correct the file: see {_GUIDE}", Trouble.SETTINGS)
        return
    state = callback_state.read_callbacks(store, (each.name for each in known))
    now = store.time()
    yield _switch(known, state, now)
    names = {each.name for each in known}
    for each in state.endpoints:
        is_left = each.name not in names and not _is_served(each, now, callback_state.UNSERVED)
        is_set = each.name in names
        yield from _left(each) if is_left else _endpoint(each, now, is_set=is_set)


def _switch(known: Sequence[Endpoint], state: CallbackState, now: datetime) -> Check:
    if state.on_since is None and not known:
        return ok(NAME, f"off: with them, no shop has to poll (see {_GUIDE})")
    if state.on_since is None:
        text = "endpoints are set, and callbacks are off, so nothing is noted for them"
        return warn(NAME, text, "refunds callbacks on")
    if not any(_is_served(each, now) for each in state.endpoints):
        text = "on, and no worker has sent any in the last minute"
        fix = "export REFUNDS_CALLBACKS_FILE=… for every worker and restart"
        return warn(NAME, text, fix)
    names = ", ".join(each.name for each in state.endpoints if _is_served(each, now))
    return ok(NAME, f"on, for {names}")


def _is_served(each: EndpointState, now: datetime, since: timedelta = SERVED) -> bool:
    return each.served_at is not None and now - each.served_at < since


def _left(each: EndpointState) -> Iterator[Check]:
    """Yield what a removed endpoint has left behind."""
    if each.waiting or each.dead:
        text = (
            "not in REFUNDS_CALLBACKS_FILE, and no worker has served it for an hour:"
            f" {each.waiting} wait, {each.dead} are not sent any more"
        )
        yield warn(f"callbacks {each.name}", text, f"refunds callbacks forget {each.name}")


def _endpoint(each: EndpointState, now: datetime, *, is_set: bool) -> Iterator[Check]:
    name = f"callbacks {each.name}"
    # Without the endpoint in the file here, 'test' and 'resume' would refuse its name.
    before = "" if is_set else "export REFUNDS_CALLBACKS_FILE=… as the workers have it; then "
    if each.paused_at is not None:
        text = f"paused by {each.paused_by}, and {each.waiting} wait"
        yield warn(name, text, f"{before}refunds callbacks resume {each.name}")
    elif each.failures >= OPEN_FROM:
        text = f"the last {each.failures} tries failed, and {each.waiting} wait"
        yield warn(name, text, f"{before}refunds callbacks test {each.name}")
    elif each.waiting_since is not None and now - each.waiting_since > LATE:
        age = lasting((now - each.waiting_since).total_seconds())
        text = f"the oldest of {each.waiting} has been waiting for {age}"
        yield warn(name, text, f"{before}refunds callbacks test {each.name}")
    if each.dead:
        text = f"not sent any more after three days of tries: {each.dead}"
        yield warn(name, text, f"refunds callbacks dead {each.name}")
