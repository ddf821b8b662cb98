"""Runs the checks of `refunds doctor`: settings, Redis, the provider and the workers.

No check moves money.

A check's `fix` is the command or setting that fixes the problem. If Redis is unavailable, one check
reports that, and the checks that need Redis are left out.
"""

from __future__ import annotations

from collections.abc import Iterator

from celery import Celery

from worker.monitoring.check_callbacks import callbacks
from worker.monitoring.check_provider import (
    ask_provider,
    key_and_address,
    settling,
    what_was_probed,
)
from worker.monitoring.check_records import queues, under_way
from worker.monitoring.check_server import Server
from worker.monitoring.checks import Check, State, Trouble, guarded, ok, warn
from worker.settings import Settings, unknown_variables
from worker.store.connection import address_of
from worker.store.store import Store

__all__ = ["Check", "State", "Trouble", "examine"]


def examine(settings: Settings, store: Store, app: Celery) -> Iterator[Check]:
    """Yield every check as it is made; if Redis is unavailable, those that need it are left out."""
    if unknown := unknown_variables():
        yield warn(
            "settings",
            f"no setting is named {', '.join(unknown)}",
            f"unset {' '.join(unknown)}, or correct the name",
        )
    else:
        yield ok("settings", "valid")
    yield from settling(settings)
    provider = key_and_address(settings)
    yield provider
    server = Server(settings, store)
    yield from guarded("redis", server.cli, server.checks)
    if provider.state is not State.FAIL:
        yield ask_provider(settings)
    if server.answers:
        yield from guarded("in progress", server.cli, lambda: under_way(settings, store))
        yield from guarded("callbacks", server.cli, lambda: callbacks(settings, store))
        yield from guarded("probe", server.cli, lambda: what_was_probed(settings, store))
    yield from queues(app, address_of(settings.broker))
