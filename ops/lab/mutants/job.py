"""One copy of the checkout with a server of mutants in it.

Edits of the checkout meanwhile change nothing.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from itertools import accumulate
from pathlib import Path
from typing import Any, Final

from ops.lab.mutants.change import Mutant
from ops.lab.mutants.hot import FLAGS, PATIENCE
from ops.lab.mutants.targets import ROOT, Plan

STARTING_SECONDS: Final = 60.0
ENDING_SECONDS: Final = 60.0
QUICK_SECONDS: Final = 5.0
MOST_DOUBTED: Final = 20
Tests = Sequence[tuple[str, float]]
"""Names and the seconds that each is known to take, 0 where nobody knows."""


class JobFailedError(Exception):
    """The machinery failed, not a test: what it says is no verdict."""


class Job:
    """Judges mutants one after another; made again inside after a mutant that hung."""

    def __init__(self, plan: Plan, folder: Path, number: int) -> None:
        self._plan = plan
        self._tree = folder / f"job{number}"
        self._log = folder / f"job{number}.log"
        for name in plan.copied:
            _copy(plan.root / name, self._tree / name)
        self._server: subprocess.Popen[str] | None = None
        self.doubted: set[str] = set()
        """Tests that failed here without any mutant: what they say is no verdict."""
        self.tests: list[str] = []
        self.imported: dict[str, list[int]] = {}
        """The lines of each file that run while it is imported, outside of all tests."""

    def start(self) -> None:
        """Start the server; `tests` and `imported` are then known."""
        with self._log.open("a") as log:
            self._server = subprocess.Popen(  # noqa: S603 - our own module
                [
                    sys.executable,
                    "-m",
                    "ops.lab.mutants.hot",
                    json.dumps(self._plan.targets),
                    *self._plan.tests,
                ],
                cwd=self._tree,
                env=self._environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        heard = self._heard()
        self.tests, self.imported = heard["tests"], heard["imported"]

    def end(self) -> None:
        """End the server, which ends what it has started."""
        server, self._server = self._server, None
        if server is None or server.stdin is None:
            return
        with suppress(BrokenPipeError):
            server.stdin.close()
        try:
            server.wait(ENDING_SECONDS)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        if server.stdout is not None:
            server.stdout.close()

    def measure(self, tests: Sequence[str]) -> dict[str, Any]:
        """Run tests without any mutant; return what each ran and how long it took."""
        measured: dict[str, Any] = self._asked({"measure": list(tests)}) if tests else {}
        return measured

    def judge(self, mutant: Mutant, running: Tests, beside: Tests) -> tuple[str, str | None]:
        """Return a mutant's verdict, `killed`, `survived` or `timeout`, and the test that
        noticed.

        `running` are the tests that run what it changes. `beside` are those of the files that run
        it while they are imported, if any do: they judge what the others let pass.
        """
        text = mutant.applied(self._source(mutant.file))
        verdict = "cold"
        if mutant.hot and running:
            verdict, by = self._judge_hot(mutant, text, running)
            if verdict in {"killed", "timeout"} or (verdict == "survived" and not beside):
                return verdict, by
        return self._judge_cold(mutant, text, beside or running)

    def runs_at_import(self, mutant: Mutant) -> bool:
        """Tell whether what a mutant changes has done its work before any test begins."""
        first, last = mutant.touched
        return not mutant.hot or any(
            first <= line <= last for line in self.imported.get(mutant.file, ())
        )

    def _judge_hot(self, mutant: Mutant, text: str, tests: Tests) -> tuple[str, str | None]:
        is_new = False
        while True:
            verdict, by = self._tried(mutant, text, tests)
            seconds = dict(tests)
            if verdict == "timeout":
                # It may have left anything behind, such as a script that never ends.
                if by not in seconds or not self._holds(by, seconds[by]):
                    self._make_anew()
                return verdict, by
            if verdict != "killed" or by not in seconds or self._holds(by, seconds[by]):
                return verdict, by
            # Without the mutant the test fails here, too. It was always so, or a mutant has left
            # something behind: this one if everything was new, else perhaps one before it.
            self._make_anew()
            if not self._holds(by, seconds[by]):
                self._doubt(by)
                tests = [one for one in tests if one[0] != by]
            elif is_new:
                return verdict, by
            is_new = True

    def _tried(self, mutant: Mutant, text: str, tests: Tests) -> tuple[str, str | None]:
        """Run tests against one mutant until one fails; return a verdict and that test."""
        request = {
            "file": mutant.file,
            "function": mutant.function,
            "text": text,
            "tests": list(tests),
            "spare": self._plan.spare_seconds,
        }
        is_script = mutant.file.endswith(".lua")
        with self._rewritten(mutant.file, text) if is_script else nullcontext():
            reply = self._asked(request)
        if reply["verdict"] == "broken":
            raise JobFailedError(f"{mutant.place}: {reply['by']}")
        return reply["verdict"], reply["by"]

    def _make_anew(self) -> None:
        self.end()
        self.start()

    def _holds(self, test: str, seconds: float) -> bool:
        """Return whether a test passes here without any mutant.

        It is asked each time that a test speaks against a mutant: what a mutant has left behind
        would else speak against all that come after it.
        """
        request = {"text": None, "tests": [(test, seconds)], "spare": self._plan.spare_seconds}
        verdict: str = self._asked(request)["verdict"]
        return verdict == "survived"

    def _doubt(self, test: str) -> None:
        self.doubted.add(test)
        if len(self.doubted) > MOST_DOUBTED:
            raise JobFailedError(f"too many tests fail without any mutant: {sorted(self.doubted)}")

    def _judge_cold(self, mutant: Mutant, text: str, tests: Tests) -> tuple[str, str | None]:
        """Run pytest anew, quick files first.

        What changes at import cannot be exchanged in what is loaded.
        """
        seconds: defaultdict[str, float] = defaultdict(float)
        for name, known in tests:
            seconds[file_of(name)] += known
        spent = accumulate(sorted(seconds.values()))
        count = sum(so_far <= QUICK_SECONDS for so_far in spent)
        quick = set(sorted(seconds, key=seconds.__getitem__)[:count])
        first = [one for one in tests if file_of(one[0]) in quick]
        rest = [one for one in tests if file_of(one[0]) not in quick]
        with self._rewritten(mutant.file, text):
            for part in filter(None, (first, rest)):
                fate = self._run_cold(part)
                if fate != "survived":
                    return fate, "a session of its own"
        return "survived", None

    def _run_cold(self, tests: Tests) -> str:
        command = [sys.executable, "-m", "pytest", "-x", "-p", "ops.lab.mutants.repeatable", *FLAGS]
        try:
            done = subprocess.run(  # noqa: S603 - our own tests
                [*command, *(name for name, _ in tests)],
                cwd=self._tree,
                env=self._environment() | {"PYTHONDONTWRITEBYTECODE": "1"},
                capture_output=True,
                timeout=STARTING_SECONDS
                + self._plan.spare_seconds
                + PATIENCE * sum(known for _, known in tests),
                check=False,
            )
        except subprocess.TimeoutExpired:
            return "timeout"
        return "killed" if done.returncode else "survived"

    def _source(self, file: str) -> str:
        return (self._tree / file).read_text("utf-8")

    @contextmanager
    def _rewritten(self, file: str, text: str) -> Iterator[None]:
        path = self._tree / file
        before, times = path.read_bytes(), path.stat()
        path.write_text(text, "utf-8")
        try:
            yield
        finally:
            path.write_bytes(before)
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))

    def _asked(self, request: Any) -> dict[str, Any]:
        if self._server is None or self._server.stdin is None:
            raise JobFailedError("the server of mutants is not running")
        with suppress(BrokenPipeError):
            self._server.stdin.write(json.dumps(request) + "\n")
            self._server.stdin.flush()
        reply: dict[str, Any] = self._heard()
        return reply

    def _heard(self) -> Any:
        if self._server is None or self._server.stdout is None:
            raise JobFailedError("the server of mutants is not running")
        line = self._server.stdout.readline()
        if not line:
            raise JobFailedError(
                f"the server of mutants has ended: {self._log.read_text()[-2000:]}"
            )
        return json.loads(line)

    def _environment(self) -> dict[str, str]:
        return os.environ | {"PYTHONPATH": os.pathsep.join((str(self._tree), str(ROOT)))}


def file_of(test: str) -> str:
    """Return the file of a test by its name."""
    return test.partition("::")[0]


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy2(source, target)
