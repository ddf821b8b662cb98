"""Celery remote control: workers answer inspection, with no customers' data or passwords.

Celery's remote control stops workers, changes what they read, and drops messages by their ids, for
anyone who reaches the broker. That is refused unless `REFUNDS_REMOTE_CONTROL` is true.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, Final

import structlog
from celery.worker import state as worker_state
from celery.worker.control import Panel

log = structlog.get_logger(__name__)

INSPECTION: Final = frozenset(
    (
        "ping",
        "stats",
        "active",
        "reserved",
        "scheduled",
        "registered",
        "active_queues",
        "revoked",
        "conf",
        "clock",
        # Flower requests both; they change nothing here, since events are on.
        "enable_events",
        "heartbeat",
    )
)
_BROKER_SHOWN: Final = (
    "hostname",
    "port",
    "virtual_host",
    "transport",
    "connect_timeout",
    "heartbeat",
)

Command = Callable[..., Any]


def commands(*, control: bool) -> dict[str, Command]:
    """Return this worker's version of every Celery command, by name."""
    return {name: _answer(name, command, control=control) for name, command in Panel.data.items()}


def restrict(*, control: bool) -> None:
    """Limit this worker process to inspection commands; with `control`, it answers all commands."""
    Panel.data.update(commands(control=control))


def _answer(name: str, command: Command, *, control: bool) -> Command:
    # An alias is the same function under another name.
    known = getattr(command, "__name__", name)
    if known in _DISCREET:
        return _DISCREET[known](command)
    return command if control or known in INSPECTION else _refusal(name)


def _refusal(name: str) -> Command:
    def refuse(_state: Any, **_: Any) -> dict[str, str]:
        log.warning("remote_control_refused", command=name)
        return {
            "error": (
                f"{name} is refused: set REFUNDS_REMOTE_CONTROL=true on the workers to allow it"
            )
        }

    return refuse


def _stats(command: Command) -> Command:
    def stats(state: Any, **named: Any) -> Any:
        shown = dict(command(state, **named))
        broker = shown.get("broker")
        if isinstance(broker, dict):
            # The other parts hold the Sentinels' password and the URLs of other brokers with their
            # passwords.
            shown["broker"] = {part: broker.get(part) for part in _BROKER_SHOWN}
        return shown

    return stats


def _conf(command: Command) -> Command:
    def conf(state: Any, **named: Any) -> Any:
        return {
            key: value
            for key, value in command(state, **named).items()
            if not key.startswith("broker_")
        }

    return conf


def _tasks(held: Callable[[], Collection[Any]]) -> Callable[[Command], Command]:
    """Return a command that lists tasks with the text that senders chose to show, not arguments."""

    def discreet(_command: Command) -> Command:
        def tasks(_state: Any, **_: Any) -> list[Any]:
            return [request.info(safe=True) for request in list(held())]

        return tasks

    return discreet


_DISCREET: Final[dict[str, Callable[[Command], Command]]] = {
    "stats": _stats,
    "conf": _conf,
    "active": _tasks(lambda: worker_state.active_requests),
    "reserved": _tasks(
        lambda: set(worker_state.reserved_requests) - set(worker_state.active_requests)
    ),
}
