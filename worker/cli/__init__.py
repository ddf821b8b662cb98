"""The command line `refunds`."""

import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

_INTERRUPTED = 130


def main() -> "NoReturn":
    """Run the command line and exit with its code.

    While the command line is loading, Ctrl-C ends it at once and prints nothing, because nothing
    has started.
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
