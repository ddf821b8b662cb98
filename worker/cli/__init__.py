"""The command line `refunds`."""

import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

_INTERRUPTED = 130


def main() -> "NoReturn":
    """Run the command line and leave with its exit code.

    While it is being loaded Ctrl-C ends it at once and without a word: nothing has begun.
    """
    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if ours:
        signal.signal(signal.SIGINT, lambda *_: sys.exit(_INTERRUPTED))
    try:
        from worker.cli.group import main as run  # noqa: PLC0415 - a third of a second, see above
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
    run()


__all__ = ["main"]
