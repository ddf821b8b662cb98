"""Supervisor of one child process: restarts it after a crash, and stops it gracefully on a signal.

A child that ends with 0 was stopped on purpose, and is not restarted.

The child runs in its own session, so that Ctrl-C at the terminal reaches the supervisor only:
Celery would treat a second Ctrl-C as an order to drop the work in flight.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

from worker.errors import SettingsError

SUPERVISOR_VARIABLE: Final = "REFUNDS_SUPERVISOR_PID"
"""Variable with the supervisor's process id: the child ends by itself once its parent changes."""

STOPS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

Say = Callable[[str], None]


class Supervisor:
    """Runs `command` until a stop signal, or until it ends with 0 or a code in `final`."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        say: Say,
        environment: Mapping[str, str],
        final: frozenset[int] = frozenset(),
        first_pause: float = 0.5,
        longest_pause: float = 4.0,
        steady_seconds: float = 30.0,
    ) -> None:
        self.command = list(command)
        self.say = say
        self.environment = dict(environment) | {SUPERVISOR_VARIABLE: str(os.getpid())}
        self.final = final
        self.first_pause = first_pause
        self.longest_pause = longest_pause
        self.steady_seconds = steady_seconds
        self._stopping = False
        self._wakeup = -1

    def run(self) -> int:
        """Supervise until the end; return the exit code.

        Call it from the main thread: it owns the signals.
        """
        with _signals() as self._wakeup:
            pause = self.first_pause
            while True:
                started = time.monotonic()
                code = self._run_once()
                if self._stopping:
                    return self._ended(code)
                if code in self.final:
                    return code
                if code == 0:
                    self.say(
                        "the worker process has ended, as a signal or a remote control command"
                        " requested"
                    )
                    return 0
                if time.monotonic() - started >= self.steady_seconds:
                    pause = self.first_pause
                self.say(
                    f"the worker process ended unexpectedly ({_how(code)}): restarting it in"
                    f" {pause:g} s"
                )
                if self._rest(pause):
                    return 0
                pause = min(pause * 2, self.longest_pause)

    def _run_once(self) -> int:
        try:
            child = subprocess.Popen(  # noqa: S603 - the command is our own
                self.command,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                # stdout is for data, and a worker produces none.
                stdout=sys.stderr.fileno(),
                start_new_session=True,
            )
        except OSError as error:
            raise SettingsError(f"the worker process cannot be started: {error.strerror}") from None
        while (code := child.poll()) is None:
            for number in self._caught(None):
                self._pass_on(child, number)
        return code

    def _pass_on(self, child: subprocess.Popen[bytes], number: int) -> None:
        if number not in STOPS:
            return
        if self._stopping:
            self.say(
                f"still waiting: worker process {child.pid} is finishing its calls in flight, each"
                " of which may move money; no new refund is started"
            )
            return
        self._stopping = True
        self.say("stopping: no new refund is started, and those in flight are finished first")
        child.send_signal(signal.SIGTERM)

    def _ended(self, code: int) -> int:
        # The signal itself ended the child: it had not begun any work that it would have to finish.
        if code in {0, -signal.SIGTERM}:
            self.say("stopped: nothing is in flight")
            return 0
        self.say(
            f"the worker process did not end cleanly ({_how(code)}): the next worker reads its"
            " refunds in flight back once their leases have lapsed"
        )
        return 1

    def _rest(self, seconds: float) -> bool:
        """Wait before a restart; return whether a signal ended it."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if any(number in STOPS for number in self._caught(left)):
                self.say("stopped: nothing is in flight")
                return True
        return False

    def _caught(self, seconds: float | None) -> bytes:
        """Return the numbers of the received signals, waiting at most `seconds` for the first."""
        ready, _, _ = select.select([self._wakeup], [], [], seconds)
        return os.read(self._wakeup, 64) if ready else b""


def _how(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


@contextmanager
def _signals() -> Iterator[int]:
    """Deliver signals as bytes on a pipe, so that one loop decides.

    Restores the handlers afterwards.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    # An ignored signal stays ignored: under nohup a worker outlives its terminal. But not that of a
    # child's end: a process that ignores it, as its parent may have done, learns of no exit code.
    numbers = [
        signal.SIGCHLD,
        *(number for number in STOPS if signal.getsignal(number) is not signal.SIG_IGN),
    ]
    before = {number: signal.signal(number, lambda *_: None) for number in numbers}
    old = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    # The stops were held back while this program was loading, and its parent may hold back any.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (*STOPS, signal.SIGCHLD))
    try:
        yield reader
    finally:
        signal.set_wakeup_fd(old)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(reader)
        os.close(writer)
