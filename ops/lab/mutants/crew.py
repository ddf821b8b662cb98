"""The work shared out: each mutant to the tests that run what it changes, the likeliest to notice
first.
"""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from queue import Empty, SimpleQueue
from tempfile import TemporaryDirectory
from typing import Any, Literal, cast

from ops.lab.mutants.change import Key, Mutant
from ops.lab.mutants.job import Job, file_of
from ops.lab.mutants.measured import Kept
from ops.lab.mutants.targets import SEEDS, Plan
from ops.lab.mutants.words import Words, plain, texts_of

Fate = Literal["killed", "timeout", "survived", "unreached"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What became of a mutant: `unreached` where no test runs its lines, `by` the test that
    noticed.
    """

    mutant: Mutant
    fate: Fate
    by: str | None = None

    @property
    def killed(self) -> bool:
        """Tell whether some test failed or hung."""
        return self.fate in {"killed", "timeout"}


class Choice:
    """Which tests judge a mutant, from what each was seen to run; learns which ones notice."""

    def __init__(
        self,
        measured: dict[str, Any],
        rest: Sequence[str],
        seconds: float = math.inf,
        first: Sequence[str] = (),
        words: Words | None = None,
        noticed: Mapping[Key, str] | None = None,
    ) -> None:
        self._measured = measured
        self._noticed = noticed or {}
        """The test that noticed the same change of an earlier state of the code."""
        self._words = Words({}) if words is None else words
        self._seconds = seconds
        self._first = first
        """Parts of the names of tests that somebody expects to notice."""
        self._rest = rest if math.isinf(seconds) else []
        """Worlds that are played only for what has survived all else."""
        self._kills = Counter((key.file, key.function, by) for key, by in self._noticed.items())
        self._guard = threading.Lock()

    def tests(self, mutant: Mutant, *, at_import: bool) -> list[tuple[str, float]]:
        """Return the tests that run what a mutant changes.

        Those that somebody expects to notice come first, then the one that noticed the same change
        before, then the cheapest for its promise: what has noticed before in this function, and
        what uses the mutant's words, promise most.
        """
        reaching = [
            name
            for name, seen in self._measured.items()
            if _reaches(seen, mutant, at_import=at_import)
        ]
        if at_import:
            # Whatever stands beside what runs the file may look at it without running any of its
            # lines.
            files = {file_of(name) for name in reaching}
            reaching = [name for name in self._measured if file_of(name) in files]
        near = self._words.nearness(mutant)
        with self._guard:
            cost = {
                name: (
                    self._measured[name]["seconds"]
                    / (1 + 4 * self._kills[mutant.file, mutant.function, name])
                    / (1 + near.get(plain(name), 0.0)) ** 2
                )
                for name in reaching
            }
        known = self._noticed.get(mutant.key)
        reaching.sort(key=lambda name: (not self._is_first(name), name != known, cost[name]))
        tests = [(name, self._measured[name]["seconds"]) for name in reaching]
        spent = accumulate(seconds for _, seconds in tests)
        return [
            one for one, so_far in zip(tests, spent, strict=True) if so_far <= self._seconds
        ] or tests[:1]

    def _is_first(self, name: str) -> bool:
        return any(part in name for part in self._first)

    def more(self) -> list[tuple[str, float]]:
        """Return the worlds that are played for a mutant which nothing else has noticed."""
        return [(name, 0.0) for name in self._rest]

    def note(self, verdict: Verdict) -> None:
        """Learn which test noticed."""
        if verdict.by is not None:
            with self._guard:
                self._kills[verdict.mutant.file, verdict.mutant.function, verdict.by] += 1


def _reaches(seen: dict[str, Any], mutant: Mutant, *, at_import: bool) -> bool:
    lines = seen["lines"].get(mutant.file, ())
    if lines is None:
        return True
    if at_import:
        return bool(lines)
    first, last = mutant.touched
    return any(first <= line <= last for line in lines)


class Crew:
    """Some copies of the checkout at work side by side; made by `crew_for`."""

    def __init__(self, plan: Plan, jobs: Sequence[Job], tell: Callable[[str], None]) -> None:
        self._plan = plan
        self._jobs = jobs
        self._tell = tell
        self.choice = Choice({}, [])

    def measure(
        self,
        kept: Kept,
        seconds: float,
        first: Sequence[str] = (),
        noticed: Mapping[Key, str] | None = None,
    ) -> None:
        """Run every test once without any mutant.

        Those that fail so can judge nothing and are left out.

        Each mutant is later tried for `seconds` of tests at most, and with the tests in whose names
        is a part of `first` before all others, then with the one that `noticed` it before.
        """
        every = self._jobs[0].tests
        worlds = [name for name in every if name.startswith(SEEDS)]
        rest = worlds[self._plan.few :]
        wanted = [name for name in every if name not in set(rest)]
        measured = kept.known(wanted)
        unknown = [name for name in wanted if name not in measured]
        shares = [unknown[place :: len(self._jobs)] for place in range(len(self._jobs))]
        with ThreadPoolExecutor(len(self._jobs)) as pool:
            for part in pool.map(
                lambda pair: pair[0].measure(pair[1]), zip(self._jobs, shares, strict=True)
            ):
                measured |= part
        kept.keep(measured)
        for name in [name for name, seen in measured.items() if seen["failed"]]:
            self._tell(f"fails without any mutant and is left out: {name}")
            del measured[name]
        files = {file_of(name) for name in measured}
        words = Words(
            texts_of((file, (self._plan.root / file).read_text("utf-8")) for file in files)
        )
        self.choice = Choice(measured, rest, seconds, first, words, noticed)

    def judge(self, mutants: Iterable[Mutant], told: Callable[[Verdict], None]) -> None:
        """Judge all mutants; `told` hears each verdict, in whatever order they come."""
        queue: SimpleQueue[Mutant] = SimpleQueue()
        for mutant in mutants:
            queue.put(mutant)
        with ThreadPoolExecutor(len(self._jobs)) as pool:
            work = [pool.submit(self._work, job, queue, told) for job in self._jobs]
            try:
                for done in work:
                    done.result()
            except BaseException:
                # What is under way ends by itself, and nothing more is begun.
                with suppress(Empty):
                    while True:
                        queue.get_nowait()
                raise

    def _work(self, job: Job, queue: SimpleQueue[Mutant], told: Callable[[Verdict], None]) -> None:
        while True:
            try:
                mutant = queue.get_nowait()
            except Empty:
                return
            verdict = self._verdict(job, mutant)
            self.choice.note(verdict)
            told(verdict)

    def _tests(self, job: Job, mutant: Mutant, *, at_import: bool) -> list[tuple[str, float]]:
        return [
            one
            for one in self.choice.tests(mutant, at_import=at_import)
            if one[0] not in job.doubted
        ]

    def _verdict(self, job: Job, mutant: Mutant) -> Verdict:
        at_import = job.runs_at_import(mutant)
        running = self._tests(job, mutant, at_import=False)
        # What runs at import runs in tests too, mostly, where it is quicker to notice.
        beside = self._tests(job, mutant, at_import=True) if at_import else ()
        if not running and not beside:
            return Verdict(mutant=mutant, fate="unreached")
        more = () if at_import else self.choice.more()
        fate, by = job.judge(mutant, (*running, *more), beside)
        return Verdict(mutant=mutant, fate=cast("Fate", fate), by=by)


@contextmanager
def crew_for(
    plan: Plan,
    *,
    jobs: int,
    tell: Callable[[str], None],
    measured: Path | None = None,
    seconds: float = math.inf,
    first: Sequence[str] = (),
    noticed: Mapping[Key, str] | None = None,
) -> Iterator[Crew]:
    """Start copies of the checkout with servers in them and measure the tests.

    All are ended with the block.

    Measurements are kept in the file `measured`; the others are as in `Crew.measure`.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="mutants-")))
        made = [Job(plan, folder, number) for number in range(jobs)]
        for job in made:
            stack.callback(job.end)
        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(Job.start, made))
        crew = Crew(plan, made, tell)
        crew.measure(Kept(plan, measured), seconds, first, noticed)
        yield crew
