"""The supervisor: brings a child back, ends it in good order, and says what it does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from queue import Queue

# Supervises the script given as its argument, with pauses short enough for a test; says on stderr
# what it says.
SUPERVISE = """
import os, sys
from worker.process.supervisor import Supervisor
def say(sentence):
    print(sentence, file=sys.stderr, flush=True)
supervisor = Supervisor(
    [sys.executable, "-u", "-c", sys.argv[1]], say=say, environment=os.environ,
    final=frozenset({2, 6}), first_pause=float(sys.argv[2]), longest_pause=float(sys.argv[2]) * 4,
)
sys.exit(supervisor.run())
"""

# Obeys SIGTERM by finishing what it has: it ends only once a line comes through the pipe named to
# it.
FINISHES = """
import os, signal, sys
def stop(*_):
    print("finishing", flush=True)
    open(os.environ["GATE"]).read()
    print("finished", flush=True)
    os._exit(0)
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, lambda *_: os._exit(99))
print("ready", os.getpid(), flush=True)
while True:
    signal.pause()
"""


@dataclass(kw_only=True)
class Watched:
    """A supervisor in a process of its own, and the lines it and its children wrote."""

    process: subprocess.Popen[str]
    lines: Queue[str] = field(default_factory=Queue)
    seen: list[str] = field(default_factory=list)

    def line(self, beginning: str) -> str:
        """Wait for a line that begins so, and return it."""
        while True:
            line = self.lines.get(timeout=10)
            self.seen.append(line)
            if line.startswith(beginning):
                return line

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def ended(self) -> int:
        """Wait for its end and return its exit code."""
        return self.process.wait(10)


@contextmanager
def supervising(script: str, *, pause: float = 0.01, **environment: str) -> Iterator[Watched]:
    process = subprocess.Popen(
        [sys.executable, "-c", SUPERVISE, script, str(pause)],
        env=dict(os.environ) | environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    watched = Watched(process=process)

    def read() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            watched.lines.put(line.rstrip())

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield watched
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        reader.join(10)
        assert process.stderr is not None
        process.stderr.close()


def test_a_child_that_dies_is_started_again() -> None:
    with supervising(
        "import os, signal; print('ready', flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    ) as watched:
        watched.line("ready")
        assert "killed by SIGKILL): restarting it in 0.01 s" in watched.line(
            "the worker process ended"
        )
        watched.line("ready")
        assert "restarting it in 0.02 s" in watched.line("the worker process ended")
        watched.signal(signal.SIGTERM)
        assert watched.ended() == 0


def test_a_child_that_dies_is_started_again_though_the_parent_ignored_its_children() -> None:
    ignored = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        supervised = supervising("print('ready', flush=True); raise SystemExit(1)", pause=60)
        with supervised as watched:
            signal.signal(signal.SIGCHLD, ignored)
            watched.line("ready")
            assert "(exit code 1): restarting it" in watched.line("the worker process ")
            watched.signal(signal.SIGTERM)
            assert watched.ended() == 0
    finally:
        signal.signal(signal.SIGCHLD, ignored)


def test_a_child_that_dies_is_started_again_though_the_parent_held_signals_back() -> None:
    held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    try:
        supervised = supervising("print('ready', flush=True); raise SystemExit(1)", pause=60)
        with supervised as watched:
            signal.pthread_sigmask(signal.SIG_SETMASK, held)
            watched.line("ready")
            assert "(exit code 1): restarting it" in watched.line("the worker process ")
            watched.signal(signal.SIGTERM)
            assert watched.ended() == 0
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)


def test_the_pause_between_starts_grows_to_its_limit() -> None:
    with supervising("raise SystemExit(1)") as watched:
        pauses = [watched.line("the worker process ended").split()[-2] for _ in range(5)]
        assert pauses == ["0.01", "0.02", "0.04", "0.04", "0.04"]


def test_a_child_that_was_told_to_end_is_not_started_again() -> None:
    with supervising("print('ready', flush=True)") as watched:
        watched.line("ready")
        watched.line("the worker process has ended")
        assert watched.ended() == 0
        assert watched.seen.count("ready") == 1


def test_a_child_that_found_wrong_settings_or_a_guard_is_not_started_again() -> None:
    for code in (2, 6):
        with supervising(f"print('ready', flush=True); raise SystemExit({code})") as watched:
            watched.line("ready")
            assert watched.ended() == code


def test_sigterm_lets_the_child_finish_and_ends_with_0(tmp_path: object) -> None:
    gate = f"{tmp_path}/gate"
    os.mkfifo(gate)
    with supervising(FINISHES, GATE=gate) as watched:
        watched.line("ready")
        watched.signal(signal.SIGTERM)
        watched.line("stopping: no new refund is started")
        watched.line("finishing")
        with open(gate, "w"):  # noqa: PTH123 - opening the pipe is the permission
            pass
        watched.line("finished")
        watched.line("stopped: nothing is in flight")
        assert watched.ended() == 0


def test_a_second_interrupt_still_waits_and_says_what_for(tmp_path: object) -> None:
    gate = f"{tmp_path}/gate"
    os.mkfifo(gate)
    with supervising(FINISHES, GATE=gate) as watched:
        watched.line("ready")
        watched.signal(signal.SIGINT)
        watched.line("finishing")
        watched.signal(signal.SIGINT)
        assert "is finishing its calls in flight" in watched.line("still waiting: worker process")
        with open(gate, "w"):  # noqa: PTH123 - opening the pipe is the permission
            pass
        assert watched.ended() == 0
        assert watched.seen.count("finishing") == 1


def test_an_interrupt_at_the_terminal_does_not_reach_the_child_itself() -> None:
    with supervising(
        "import os; print('ready', os.getsid(0), os.getpid(), flush=True); input()"
    ) as watched:
        _, session, pid = watched.line("ready").split()
        assert session == pid


def test_a_child_that_is_killed_while_it_finishes_is_no_good_order(tmp_path: object) -> None:
    gate = f"{tmp_path}/gate"
    os.mkfifo(gate)
    with supervising(FINISHES, GATE=gate) as watched:
        child = int(watched.line("ready").split()[1])
        watched.signal(signal.SIGTERM)
        watched.line("finishing")
        os.kill(child, signal.SIGKILL)
        watched.line("the worker process did not end cleanly (killed by SIGKILL)")
        assert watched.ended() == 1


def test_a_stop_between_two_children_starts_no_third() -> None:
    with supervising("print('ready', flush=True); raise SystemExit(1)", pause=60) as watched:
        watched.line("the worker process ended")
        watched.signal(signal.SIGTERM)
        assert watched.ended() == 0
        assert watched.seen.count("ready") == 1


def test_the_child_knows_whose_it_is() -> None:
    script = (
        "import os; print('ready', os.environ['REFUNDS_SUPERVISOR_PID'], os.getppid(), flush=True);"
        " input()"
    )
    with supervising(script) as watched:
        _, told, parent = watched.line("ready").split()
        assert told == parent == str(watched.process.pid)
