"""The client and the output that all commands share.

Opens the records, and prints notes and warnings.
"""

from __future__ import annotations

import getpass
import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

import click

from worker.client import Refunds
from worker.model.redaction import without_secrets
from worker.model.request import scrubbed
from worker.settings import Settings
from worker.store.audit import Deed, carry_out

T = TypeVar("T")

ALL_PAUSED: Final = "all sending is still paused: start it with 'refunds resume'"
_EVENTS: Final = {
    "nudge_not_sent": (
        "accepted, but the message to the workers was not sent: their next sweep finds the refund"
    ),
    "backlog_deep": (
        "accepted, but refunds arrive faster than they are sent: see why with 'refunds doctor'"
    ),
}
"""The sentences for events of the library's log."""
_OWN: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class _Sentences(logging.Handler):
    """Log handler that prints each warning of the library as one line on stderr.

    A sentence and its facts.
    """

    def emit(self, record: logging.LogRecord) -> None:
        facts = " ".join(
            f"{name}={scrubbed(str(value))}"
            for name, value in vars(record).items()
            if name not in _OWN
        )
        event = record.getMessage()
        sentence = (
            f"{_EVENTS[event]} ({facts})" if event in _EVENTS else f"{event} {facts}".rstrip()
        )
        click.echo(without_secrets(f"{record.levelname.lower()}: {sentence}"), err=True)


@contextmanager
def opened(settings: Settings | None = None) -> Iterator[Refunds]:
    """Yield a client with the environment's settings, and close it at the end."""
    log = logging.getLogger("worker")
    handler = _Sentences(logging.WARNING)
    log.addHandler(handler)
    try:
        with Refunds(settings=settings or Settings.load()) as refunds:
            yield refunds
    finally:
        log.removeHandler(handler)


def operator(settings: Settings) -> str:
    """Return the name for the history of a decision: REFUNDS_ACTOR, else the system's user name."""
    if settings.actor is not None:
        return settings.actor
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        # A container may run under a user id that has no name.
        return f"uid {os.getuid()}"


def act(
    refunds: Refunds,
    action: str,
    target: str,
    work: Callable[[], T],
    *,
    reason: str = "",
    named: Callable[[T], str] | None = None,
) -> T:
    """Do something that the audit notes. Raises what the work does.

    `named` returns the target of what has none before it is done.
    """
    deed = Deed(
        by=operator(refunds.settings),
        via="command line",
        address=socket.gethostname(),
        action=action,
        target=target,
        note=reason,
    )
    return carry_out(refunds.store, deed, work, named)


def note(sentence: str) -> None:
    """Print a sentence for the user on stderr, apart from the data on stdout."""
    click.echo(without_secrets(sentence), err=True)
