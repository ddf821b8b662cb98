"""What messages are called and hold: a task's name, a queue, and how many ids.

The queues of refunds are named by lane.
"""

from __future__ import annotations

from typing import Final

PROCESS_TASK: Final = "refunds.process"
SUBMIT_TASK: Final = "refunds.submit"
CALLBACK_TASK: Final = "refunds.callback"
CALLBACK_QUEUE: Final = "refunds.callbacks"
"""The queue of callbacks; used if `REFUNDS_CALLBACKS_FILE` is set."""
BULK_IDS: Final = 100
"""Refund ids in one bulk message: a message costs about 2.5 ms, so the rows of a file share one."""
MOST_IDS: Final = 1_000
"""Maximum refund ids in one message; the workers' own have at most `BULK_IDS`.

All of a message are begun at once, at 3 kB each, and a body has room for 100,000.
"""
_DEFAULT_PREFIX: Final = "refunds:"


def prefix_of_queues(prefix: str) -> str:
    """Return what precedes the name of a queue in Redis: nothing by default.

    Two installations on one server must not take each other's messages.
    """
    return "" if prefix == _DEFAULT_PREFIX else prefix
