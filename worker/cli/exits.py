"""The exit codes of all commands, and the one place that maps errors to them."""

from __future__ import annotations

from typing import Final

from worker.errors import (
    GuardRefused,
    InputError,
    InvalidRequest,
    NotFound,
    ProviderUnavailable,
    RefundError,
    SettingsError,
    StoreRefused,
    StoreUnavailable,
)

DONE: Final = 0
INTERNAL: Final = 1
USAGE: Final = 2
REJECTED: Final = 3
SOME_FAILED: Final = 4
AWAY: Final = 5
REFUSED: Final = 6
NOTHING_TO_DO: Final = 9
INTERRUPTED: Final = 130
BROKEN_PIPE: Final = 141
"""The code that a shell reports if a program's reader closes the pipe, as in `refunds list | head`.
"""

MEANINGS: Final = {
    DONE: "done",
    INTERNAL: "internal error, or the output cannot be written",
    USAGE: "wrong usage or settings",
    REJECTED: "input rejected; nothing was changed",
    SOME_FAILED: "finished, and some refund failed, needs review or differs",
    AWAY: "Redis or the provider is unavailable: run the command again",
    REFUSED: "refused by a guard; nothing was changed",
    NOTHING_TO_DO: "nothing to do",
    INTERRUPTED: "interrupted by Ctrl-C; what was accepted continues",
}

_CODES: Final[tuple[tuple[type[RefundError], int], ...]] = (
    (SettingsError, USAGE),
    (InvalidRequest, REJECTED),
    (InputError, REJECTED),
    (NotFound, REJECTED),
    (GuardRefused, REFUSED),
    (StoreRefused, USAGE),
    (StoreUnavailable, AWAY),
    (ProviderUnavailable, AWAY),
)


class Detached(Exception):
    """The user pressed Ctrl-C; the text says what continues and how to follow it."""


def exit_code_of(error: RefundError) -> int:
    """Return the exit code for a `RefundError`; an error that is not in the table is a bug."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), INTERNAL)
