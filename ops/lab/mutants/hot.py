"""A server inside a pytest session.

Everything is imported and collected once, each mutant gets a fork of that.

Run as `python -m ops.lab.mutants.hot TEST…` in a copy of the checkout. Requests and replies are
lines of JSON:

    {"measure": [nodeid…]} →
        {nodeid: {"seconds", "failed", "lines": {file: [line or block…] or null for all}}}
    {"file", "function", "text", "tests": [[nodeid, seconds]…], "spare": seconds}
        → {"verdict": "killed" | "survived" | "timeout" | "cold" | "broken", "by": nodeid}
    the same without "file" and with "text" null: as things are, without any mutant

The first line that it writes tells the tests that it has collected, and the lines that ran while it
did: {"tests": [nodeid…], "imported": {file: [line…]}}. It ends with its input.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import signal
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from inspect import CO_OPTIMIZED
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import IO, Any, Final

import pytest

from ops.lab.mutants.scripts import Scripts, live_scripts, read_again

FLAGS: Final = (
    "-q",
    "-s",
    "--assert=plain",
    "--tb=no",
    "-p",
    "no:cacheprovider",
    "-p",
    "no:xdist",
    "-o",
    "timeout=0",
)
"""The limit of pytest-timeout is set with the same alarm as ours, and would take its place."""
PATIENCE: Final = 20
"""A test may take so many times as long as without a mutant, and the plan's spare time, before it
counts as hanging.
"""
LONG_PATIENCE: Final = 40.0, 3
"""For a long one these seconds and so many times as long are enough.

What hangs there would hold all others up.
"""
MOST_MEMORY: Final = 4 << 30
"""Bytes that a mutant may ask for: one that never ends gathers what the machine has."""
STORE: Final = "worker/store/commands.py"
"""What runs this runs scripts."""
_UNMEASURED: Final = 0.5

Json = dict[str, Any]
Held = tuple[CodeType, list[FunctionType]]


class Server:
    """The plugin that answers requests in the place of pytest's own loop."""

    def __init__(self, requests: IO[str], replies: IO[str], targets: Sequence[str]) -> None:
        self._requests = requests
        self._replies = replies
        self._targets = {str(Path(name).resolve()): name for name in targets}
        self._failed = False
        self._shared: dict[str, Any] = {}
        """The fixtures that live as long as the session, as they are set up."""
        self._imported = ExitStack()
        self._seen: _Seen | None = None
        self._loaded: dict[tuple[str, str], list[Held]] = {}
        self._scripts: list[Any] = []

    def pytest_configure(self, config: pytest.Config) -> None:
        """Make Hypothesis repeatable and stop at its first failure."""
        del config
        repeatable()
        self._seen = self._imported.enter_context(_watched(self._targets))

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Leave out what runs on the fake as well: the real server judges."""
        names = {item.nodeid for item in items}
        items[:] = [item for item in items if not _has_real_twin(item.nodeid, names)]

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[Any]) -> Generator[None, Any, Any]:
        """Note what lives as long as the session."""
        made = yield
        if fixturedef.scope == "session":
            self._shared[fixturedef.argname] = made
        return made

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note a failure."""
        self._failed = self._failed or report.failed

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Answer until the input ends."""
        if session.testsfailed:
            raise session.Failed("the tests could not be collected")
        self._imported.close()
        imported = {} if self._seen is None else self._seen.told()
        items = {item.nodeid: item for item in session.items}
        self._reply({"tests": list(items), "imported": imported})
        warm = False
        for line in self._requests:
            request: Json = json.loads(line)
            if "measure" in request:
                self._reply(self._measure([items[name] for name in request["measure"]], session))
                continue
            if not warm:
                self._warm(session)
                warm = True
            if missing := [name for name, _ in request["tests"] if name not in items]:
                self._reply({"verdict": "broken", "by": f"no such test: {missing[0]}"})
                continue
            self._reply(self._try(request, items, session))
        return True

    def _reply(self, value: Any) -> None:
        self._replies.write(json.dumps(value) + "\n")
        self._replies.flush()

    def _run(self, item: pytest.Item, after: pytest.Item) -> bool:
        """Run one test; return whether it passed. `after` is what pytest believes to come next."""
        self._failed = False
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=after)
        return not self._failed

    # What each test runs, without any mutant

    def _measure(self, items: Sequence[pytest.Item], session: pytest.Session) -> Json:
        found: Json = {}
        scripts = Scripts([name for name in self._targets.values() if name.endswith(".lua")])
        for item, after in zip(items, [*items[1:], session.items[0]], strict=True):
            with scripts.marked(), _watched(self._targets) as seen:
                seconds, passed = self._timed(item, after)
                entered: dict[str, Any] = scripts.entered(self._shared)
                # What runs scripts on a server of its own leaves no account here.
                lines = seen.told() | (
                    entered or dict.fromkeys(scripts.files if STORE in seen.lines else ())
                )
            if not passed:
                # The marks in the scripts may be what it stumbles over.
                session._setupstate.teardown_exact(item)  # noqa: SLF001 - it may be set up for the next one
                seconds, passed = self._timed(item, after)
                lines = seen.told() | dict.fromkeys(scripts.files)
            found[item.nodeid] = {"seconds": seconds, "failed": not passed, "lines": lines}
        return found

    def _timed(self, item: pytest.Item, after: pytest.Item) -> tuple[float, bool]:
        began = time.monotonic()
        passed = self._run(item, after)
        return time.monotonic() - began, passed

    def _warm(self, session: pytest.Session) -> None:
        """Set up what lives as long as the session, such as servers, for every fork to find it."""
        wanted: dict[str, pytest.Item] = {}
        for item in session.items:
            for name in session_fixtures(item):
                wanted.setdefault(name, item)
        for item in dict.fromkeys(wanted.values()):
            session._setupstate.teardown_exact(item)  # noqa: SLF001 - what the last test left set up
            self._run(item, session.items[0])
        self._loaded = held_functions(set(self._targets))
        self._scripts = live_scripts()
        gc.collect()
        # What a fork never frees it need not copy.
        gc.freeze()

    # One mutant

    def _try(self, request: Json, items: dict[str, pytest.Item], session: pytest.Session) -> Json:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            self._judge(request, items, session, writing)
        os.close(writing)
        with os.fdopen(reading) as answer:
            *begun, told = answer.read().split("\n")
        _, status = os.waitpid(child, 0)
        # A test that was killed may have left processes of its own.
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        if os.WIFSIGNALED(status) or not told:
            return {"verdict": "timeout", "by": begun[-1] if begun else None}
        result: Json = json.loads(told)
        return result

    def _judge(
        self, request: Json, items: dict[str, pytest.Item], session: pytest.Session, writing: int
    ) -> None:
        """Run the tests in a fork until one fails; never returns."""
        os.setpgid(0, 0)
        resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
        verdict: Json = {"verdict": "cold", "by": None}
        try:
            if self._apply(request):
                verdict = {"verdict": "survived", "by": None}
                for name, seconds in request["tests"]:
                    os.write(writing, f"{name}\n".encode())
                    signal.setitimer(
                        signal.ITIMER_REAL, request["spare"] + _most_seconds(seconds or _UNMEASURED)
                    )
                    session._setupstate.teardown_exact(items[name])  # noqa: SLF001 - what the last test left set up
                    if not self._run(items[name], session.items[0]):
                        verdict = {"verdict": "killed", "by": name}
                        break
        except (KeyboardInterrupt, SystemExit, pytest.exit.Exception) as error:
            verdict = {"verdict": "killed", "by": repr(error)[:200]}
        except BaseException as error:  # noqa: BLE001 - nothing may come back out of a fork
            verdict = {"verdict": "broken", "by": repr(error)[:500]}
        finally:
            os.write(writing, json.dumps(verdict).encode())
            os._exit(0)

    def _apply(self, request: Json) -> bool:
        """Put a mutant's text into what is loaded, if there is one.

        Return whether that can be done.
        """
        if request["text"] is None:
            return True
        path = str(Path(request["file"]).resolve())
        if path.endswith(".lua"):
            # Its file holds the mutant while this fork lives.
            read_again(self._scripts)
            return True
        new = [
            code
            for name, code in functions_of(compile(request["text"], path, "exec"))
            if name == request["function"]
        ]
        return exchanged(self._loaded.get((path, request["function"]), []), new)


def _most_seconds(usual: float) -> float:
    spare, times = LONG_PATIENCE
    return min(PATIENCE * usual, spare + times * usual)


def repeatable() -> None:
    """Make Hypothesis give the same examples each time, and not look for simpler failures."""
    from hypothesis import Phase, settings  # noqa: PLC0415 - only where tests run

    phases = (Phase.explicit, Phase.generate)
    settings.register_profile(
        "mutants", derandomize=True, database=None, phases=phases, deadline=None
    )
    settings.load_profile("mutants")


def session_fixtures(item: pytest.Item) -> Iterator[str]:
    """Yield the names of the fixtures of a test that live as long as the session."""
    info: Any = getattr(item, "_fixtureinfo", None)
    for name, definitions in info.name2fixturedefs.items() if info is not None else ():
        if definitions[-1].scope == "session":
            yield name


def _has_real_twin(nodeid: str, names: set[str]) -> bool:
    return "fake" in nodeid and nodeid.replace("fake", "real") in names


class _Seen:
    def __init__(self) -> None:
        self.lines: dict[str, set[int]] = defaultdict(set)

    def told(self) -> dict[str, Any]:
        return {file: sorted(numbers) for file, numbers in self.lines.items()}


@contextmanager
def _watched(targets: dict[str, str]) -> Iterator[_Seen]:
    """Note the lines of the targets that run."""
    seen = _Seen()

    def inside(frame: FrameType, event: str, _: Any) -> Any:
        if event == "line":
            seen.lines[targets[frame.f_code.co_filename]].add(frame.f_lineno)
        return inside

    def called(frame: FrameType, event: str, _: Any) -> Any:
        del event
        code = frame.f_code
        # What stands outside of functions runs once, whichever test comes first.
        return inside if code.co_filename in targets and code.co_flags & CO_OPTIMIZED else None

    threading.settrace(called)
    sys.settrace(called)
    try:
        yield seen
    finally:
        sys.settrace(None)
        threading.settrace(None)


def held_functions(paths: set[str]) -> dict[tuple[str, str], list[Held]]:
    """Return, by file and name, the codes in the order of the file, each with the functions that
    hold it.
    """
    holders: dict[CodeType, list[FunctionType]] = defaultdict(list)
    # The collector does not list what was frozen, and the tests freeze what was loaded before them.
    gc.unfreeze()
    for one in gc.get_objects():
        if isinstance(one, FunctionType) and one.__code__.co_filename in paths:
            holders[one.__code__].append(one)
    found: dict[tuple[str, str], list[Held]] = defaultdict(list)
    for code, functions in sorted(holders.items(), key=lambda pair: pair[0].co_firstlineno):
        found[code.co_filename, code.co_qualname].append((code, functions))
    return found


def exchanged(old: Sequence[Held], new: Sequence[CodeType]) -> bool:
    """Give functions new code; return whether that could be done."""
    if not new or len(new) != len(old):
        return False
    if any(
        after.co_freevars != before.co_freevars for after, (before, _) in zip(new, old, strict=True)
    ):
        return False
    for code, (_, functions) in zip(new, old, strict=True):
        for function in functions:
            function.__code__ = code
    return True


def functions_of(module: CodeType) -> Iterator[tuple[str, CodeType]]:
    """Yield the functions of a module and of its classes, with their names."""
    for constant in module.co_consts:
        if isinstance(constant, CodeType):
            if constant.co_flags & CO_OPTIMIZED:  # which a class's body is not
                yield constant.co_qualname, constant
            else:
                yield from functions_of(constant)


def main() -> None:
    """Serve on standard input and output; what tests print goes with the errors."""
    targets, tests = json.loads(sys.argv[1]), sys.argv[2:]
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    server = Server(sys.stdin, replies, targets)
    sys.exit(pytest.main([*FLAGS, *tests], plugins=[server]))


if __name__ == "__main__":
    main()
