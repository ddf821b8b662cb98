"""What every command opens first: the settings, the records, and where warnings go."""

from __future__ import annotations

import getpass
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import click

from worker.client import Refunds
from worker.model.redaction import without_secrets
from worker.model.request import scrubbed
from worker.settings import Settings

_EVENTS: Final = {
    "nudge_not_sent": "accepted, but the message to the workers could not be sent: their next sweep finds it",
    "backlog_deep": "accepted, but refunds come in faster than they go out: 'refunds doctor' says what holds them",
}
"""The library's events, as a person is told of them."""
_OWN: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class _Sentences(logging.Handler):
    """Warnings of the library as one line on stderr: a sentence and its facts."""

    def emit(self, record: logging.LogRecord) -> None:
        facts = " ".join(f"{name}={scrubbed(str(value))}" for name, value in vars(record).items() if name not in _OWN)
        event = record.getMessage()
        told = f"{_EVENTS[event]} ({facts})" if event in _EVENTS else f"{event} {facts}".rstrip()
        click.echo(without_secrets(f"{record.levelname.lower()}: {told}"), err=True)


@contextmanager
def opened(settings: Settings | None = None) -> Iterator[Refunds]:
    """The producer's door on the environment's settings, closed at the end."""
    log = logging.getLogger("worker")
    handler = _Sentences(logging.WARNING)
    log.addHandler(handler)
    try:
        with Refunds(settings=settings or Settings.load()) as refunds:
            yield refunds
    finally:
        log.removeHandler(handler)


def operator(settings: Settings) -> str:
    """Return who decides here: REFUNDS_ACTOR, else who is at the keyboard as the system knows it."""
    if settings.actor is not None:
        return settings.actor
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        # A container may run under a number that has no name.
        return f"uid {os.getuid()}"


def note(sentence: str) -> None:
    """Say something to the person, beside the data."""
    click.echo(without_secrets(sentence), err=True)
