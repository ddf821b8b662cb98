"""`python -m worker.process.supervising`: the supervisor alone, in the place of `refunds worker`.

`refunds worker` checks the settings first, and for that it loads most of the product. It then
becomes this process, which loads none of it and needs a third of the memory.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Final, NoReturn

from worker.errors import SettingsError
from worker.model.times import rfc3339
from worker.process.supervisor import STOPS, Supervisor

# As in `cli.exits`, which this process does not load.
_USAGE: Final = 2


def become_supervisor(
    command: Sequence[str], *, environment: Mapping[str, str], final: frozenset[int], as_text: bool
) -> NoReturn:
    """Become the supervisor of a command; raises `SettingsError` if that cannot be started.

    It exits as `Supervisor.run` says. The process id stays the same.
    """
    # A signal that comes while the new program is loading waits for its handlers.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    codes = ",".join(str(code) for code in sorted(final))
    form = "text" if as_text else "json"
    started = [sys.executable, "-m", __name__, form, codes, *command]
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        os.execve(sys.executable, started, dict(environment))  # noqa: S606 - ourselves
    except OSError as error:
        raise SettingsError(f"the worker process cannot be started: {error.strerror}") from None


def _sayer(*, as_text: bool) -> Callable[[str], None]:
    def say(sentence: str) -> None:
        if not as_text:
            line = {
                "at": rfc3339(datetime.now(UTC)),
                "level": "info",
                "event": "supervisor",
                "message": sentence,
            }
            sentence = json.dumps(line)
        # The worker must not end because the reader of its log has closed the pipe.
        with suppress(OSError):
            sys.stderr.write(f"{sentence}\n")
            sys.stderr.flush()

    return say


def main() -> int:
    """Supervise a command; return the exit code.

    The arguments are `text` or `json`, the final codes between commas, then the command.
    """
    form, codes, *command = sys.argv[1:]
    say = _sayer(as_text=form == "text")
    final = frozenset(int(code) for code in codes.split(","))
    supervisor = Supervisor(command, say=say, environment=os.environ, final=final)
    try:
        return supervisor.run()
    except SettingsError as error:
        say(f"refunds: {error}")
        return _USAGE


if __name__ == "__main__":
    sys.exit(main())
