"""A return season from end to end.

Files validated, skipped over, imported, killed, gone on with, canceled, sent again.

`./ops/dev python -m ops.lab.bench.season --rows 100000` runs it on a throw-away server, two worker
processes and the sandbox provider with faults on, and prints the count as JSON. Exit 0 only if
every row is accounted for, in its order, and the ledger agrees with the records.
`tests/integration/test_batches.py` runs the same with 2,000 rows.
"""

from __future__ import annotations

import argparse
import csv
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from ops.lab.bench.season_count import Report, count
from ops.lab.bench.season_rows import BAD_EVERY, HEADER, rows
from worker.batches import read_batch
from worker.client import Refunds
from worker.model.refund import Stage, Status
from worker.sandbox.installation import end, environment, sandbox_process
from worker.sandbox.redis_server import running_server
from worker.sandbox.running import Sandbox
from worker.settings import Settings

FAULTS: Final = ",".join(  # noqa: FLY002 - one fault a line is what a reader compares with the sandbox's table
    (
        "http_500_before:p=0.01",
        "http_503_after:p=0.01",
        "cut_after:p=0.01",
        "reset_before:p=0.01",
        "html_502_after:p=0.005",
        "http_429:p=0.001:retry_after=seconds",
    )
)
SPARE_SHARE: Final = 0.2
"""How many of the rows go into the second file, the one that is canceled."""
_MOST_SECONDS: Final = 900.0
_POLL: Final = 0.005


class SeasonError(RuntimeError):
    """The season did not come to its end."""


@dataclass(frozen=True, kw_only=True)
class Ran:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def facts(self) -> dict[str, Any]:
        """The one object that it wrote."""
        found: dict[str, Any] = json.loads(self.out)
        return found


class Season:
    """One run: two files, two workers, and the commands a person would give.

    Ends what it started by its id.
    """

    def __init__(self, *, redis_url: str, sandbox: Sandbox, folder: Path, count: int) -> None:
        self.sandbox = sandbox
        self.folder = folder
        self.report = Report()
        spare = max(BAD_EVERY, round(count * SPARE_SHARE))
        self.files = {"main": rows("main", count - spare), "spare": rows("spare", spare)}
        variables = {
            "REFUNDS_REDIS_URL": redis_url,
            "REFUNDS_API_URL": sandbox.url,
            "REFUNDS_API_KEY": "sk_test_season",
            "REFUNDS_READBACK": "list",
            # A real provider is given five minutes; this one is known never to be late.
            "REFUNDS_SETTLE_SECONDS": "0.3",
            "REFUNDS_REQUEST_TIMEOUT_SECONDS": "3",
            "REFUNDS_LEASE_SECONDS": "8",
            "REFUNDS_LOG_LEVEL": "warning",
        }
        self.environment = environment(variables)
        self.refunds = Refunds(settings=Settings.load(redis_url=redis_url))
        self._started: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        end(self._started)
        self.refunds.close()

    # The commands

    def run(self, *arguments: str) -> Ran:
        """Give a command and return what it left behind."""
        done = subprocess.run(  # noqa: S603 - our own module
            [sys.executable, "-m", "worker", *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=_MOST_SECONDS,
            check=False,
        )
        if "Traceback" in done.stderr:
            raise SeasonError(f"refunds {' '.join(arguments)}: {done.stderr[-2000:]}")
        return Ran(code=done.returncode, out=done.stdout, err=done.stderr)

    def start(self, *arguments: str, log: str) -> subprocess.Popen[bytes]:
        """Start a command that goes on beside."""
        with (self.folder / log).open("ab") as out:
            process = subprocess.Popen(  # noqa: S603 - our own modules
                [sys.executable, "-m", *arguments], env=self.environment, stdout=out, stderr=out
            )
        self._started.append(process)
        return process

    def worker(self) -> subprocess.Popen[bytes]:
        """Start a worker process without a supervisor, so that it can be killed for good."""
        celery = ("celery", "-q", "-A", "worker.app", "worker", "-P", "threads", "-l", "warning")
        number = len(self._started)
        return self.start(
            *celery,
            "--without-gossip",
            "--without-mingle",
            "-n",
            f"w{number}@%h",
            log=f"{number}.log",
        )

    def file(self, name: str) -> str:
        """Return where a file lies."""
        return str(self.folder / f"{name}.csv")

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for what another process does."""
        end = time.monotonic() + _MOST_SECONDS
        while not condition():
            if time.monotonic() > end:
                raise SeasonError(f"waited in vain until {what}")
            time.sleep(_POLL)

    def batch(self, name: str) -> dict[str, Any]:
        """Return a batch as `refunds batch show` tells it."""
        return self.run("batch", "show", name, "--json").facts

    def accepted(self, name: str) -> int:
        """Return how many refunds a batch has so far."""
        return int(self.refunds.store.redis.llen(f"refunds:batch-refunds:{name}"))

    def settled(self, name: str) -> int:
        """Return how many refunds of a batch have settled so far."""
        return int(self.refunds.store.redis.hget(f"refunds:batch:{name}", "stage:settled") or 0)

    # The story

    def play(self) -> Report:
        """Run the whole season and return its report."""
        story: tuple[tuple[str, Callable[[], None]], ...] = (
            ("validate", self._validate),
            ("import, killed", self._import_and_kill),
            ("a worker killed", self._kill_a_worker),
            ("import, resumed", self._resume),
            ("the rest canceled", self._cancel_the_rest),
            ("settled", lambda: self._finish("main")),
            ("retried and settled", self._retry),
            ("the canceled one settled", lambda: self._finish("spare")),
            ("counted", self._count),
        )
        self.report.facts["seconds"] = {}
        for name, part in story:
            started = time.monotonic()
            part()
            self.report.facts["seconds"][name] = round(time.monotonic() - started, 1)
        return self.report

    def _options(self, name: str) -> tuple[str, ...]:
        errors = str(self.folder / f"{name}-bad.csv")
        return (
            *(
                "import",
                self.file(name),
                "--batch",
                name,
                "--on-error",
                "skip",
                "--max-errors",
                "2%",
            ),
            *("--errors", errors, "--json"),
        )

    def _validate(self) -> None:
        for name, table in self.files.items():
            with Path(self.file(name)).open("w", newline="", encoding="utf-8") as out:
                writer = csv.writer(out, delimiter=";")
                writer.writerow(HEADER)
                writer.writerows(table)
            for more in ((), ("--dry-run",)):
                refused = self.run("import", self.file(name), "--ignore-extra", "--json", *more)
                self.report.hold(
                    holds=refused.code == 3,  # noqa: PLR2004 - the exit code
                    sentence=f"{name} with bad rows ended with {refused.code}",
                )
        held = not self.refunds.store.redis.exists("refunds:batches")
        self.report.hold(holds=held, sentence="a file with bad rows enqueued something")
        dry = self.run(*(*self._options("main"), "--ignore-extra", "--dry-run"))
        self.report.facts["dry_run"] = {
            name: dry.facts[name] for name in ("rows", "valid", "invalid", "new")
        }

    def _import_and_kill(self) -> None:
        self.worker()
        self.victim = self.worker()
        half = len(self.files["main"]) // 3
        killed = self.start("worker", *self._options("main"), "--ignore-extra", log="import.log")
        self.until(
            lambda: self.accepted("main") >= half or killed.poll() is not None,
            "a third is accepted",
        )
        killed.kill()
        killed.wait()
        accepted = self.accepted("main")
        self.report.facts["killed_after_rows"] = accepted
        half_way = killed.returncode == -signal.SIGKILL and accepted < len(self.files["main"])
        self.report.hold(holds=half_way, sentence="the import was not killed half way")

    def _resume(self) -> None:
        before = self.accepted("main")
        ran = self.run(*self._options("main"), "--ignore-extra")
        self.report.hold(
            holds=ran.code == 0,
            sentence=f"the same command again ended with {ran.code}: {ran.err[-500:]}",
        )
        if ran.code == 0:
            self.report.facts["resumed"] = {
                name: ran.facts[name] for name in ("created", "known", "invalid")
            }
            self.report.hold(
                holds=ran.facts["known"] == before,
                sentence="what was accepted before was not known",
            )
        again = self.run(*self._options("main"), "--ignore-extra")
        self.report.hold(
            holds=again.code == 6,  # noqa: PLR2004 - the exit code
            sentence=f"a file that is whole was taken once more: {again.code}",
        )

    def _kill_a_worker(self) -> None:
        at = len(self.files["main"]) // 10
        self.until(lambda: self.settled("main") >= at, "a tenth has settled")
        self.victim.kill()
        self.victim.wait()
        self.report.facts["worker_killed_after"] = self.settled("main")
        self.worker()

    def _cancel_the_rest(self) -> None:
        handed = self.run(*self._options("spare"), "--ignore-extra")
        self.report.hold(
            holds=handed.code == 0, sentence=f"the second file ended with {handed.code}"
        )
        # Held, so that there is a rest to be canceled however fast the workers are.
        self.until(lambda: self.settled("spare") >= 1, "the second file has begun to settle")
        self.run("batch", "pause", "spare")
        ran = self.run("batch", "cancel", "spare", "--json")
        self.report.facts["canceled"] = ran.facts["canceled"]
        self.report.hold(holds=ran.code == 0, sentence="nothing was left to cancel")

    def _finish(self, name: str) -> None:
        def rests() -> bool:
            found = read_batch(self.refunds.store, name)
            if found.state == "paused":
                # Retried refunds that fail once more come one after the other: a person looks, and
                # lets them go on.
                self.report.facts["paused_itself"] = self.report.facts.get("paused_itself", 0) + 1
                self.run("batch", "resume", name)
            return found.moving == self._waiting(name)

        self.until(rests, f"batch {name} has come to its end")

    def _waiting(self, name: str) -> int:
        """Return how many doubts wait for a payment that does not exist.

        For an hour, before a person is asked.
        """
        asked = [
            refund_id
            for _, payment, refund_id, *_ in self.files[name]
            if payment.startswith("pi_missing")
        ]
        found = self.refunds.get_many(asked)
        return sum(refund is not None and refund.stage is Stage.IN_DOUBT for refund in found)

    def _retry(self) -> None:
        before = self.batch("main")
        self.report.facts["before_retry"] = before["statuses"]
        nothing = self.run("batch", "retry", "main", "--json")
        self.report.hold(
            holds=nothing.code == 9,  # noqa: PLR2004 - the exit code
            sentence="a retry sent what is not known to be retriable",
        )
        declined = self._declined()
        for payment in declined[::2]:
            self.sandbox.create_payment_intent(payment, outcome="succeeded")
        ran = self.run("batch", "retry", "main", "--unknown", "--json")
        self.report.facts["retried"] = ran.facts["retried"]
        self._finish("main")
        after = self.batch("main")["statuses"]
        self.report.facts["mended"] = len(declined[::2])
        gained = after["succeeded"] - before["statuses"]["succeeded"]
        self.report.hold(
            holds=gained == len(declined[::2]), sentence=f"the retry settled {gained}: {after}"
        )

    def _declined(self) -> list[str]:
        """Return the payments whose refund failed.

        One declined after a doubt is for a person, not for a retry.
        """
        rows = [(payment, refund_id) for _, payment, refund_id, *_ in self.files["main"]]
        asked = [
            (payment, refund_id) for payment, refund_id in rows if payment.startswith("pi_declined")
        ]
        found = self.refunds.get_many([refund_id for _, refund_id in asked])
        return [
            payment
            for (payment, _), refund in zip(asked, found, strict=True)
            if refund is not None and refund.status is Status.FAILED
        ]

    # The count

    def _count(self) -> None:
        count(self.files, self._result, self.batch, self.sandbox, self.report)

    def _result(self, name: str) -> list[dict[str, str]]:
        """Return the rows of a file with their results."""
        target = self.folder / f"{name}-result.csv"
        self.run("batch", "result", name, "--input", self.file(name), "--output", str(target))
        with target.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file, delimiter=";"))


def play(*, redis_url: str, sandbox: Sandbox, folder: Path, count: int) -> Report:
    """Run a season of so many rows and return its report."""
    with Season(redis_url=redis_url, sandbox=sandbox, folder=folder, count=count) as season:
        return season.play()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a season on a server and a provider of its own; 0 if all agrees."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--faults", default=FAULTS)
    asked = parser.parse_args(arguments)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="refunds-season-")))
        server = stack.enter_context(running_server())
        options = ["--latency", "5", "--settle", "500", "--idempotency", "ignore"]
        options += ["--log-requests", "0", "--faults", asked.faults]
        sandbox = stack.enter_context(sandbox_process(*options)).sandbox
        report = play(redis_url=server.url, sandbox=sandbox, folder=folder, count=asked.rows)
    sys.stdout.write(json.dumps(report.facts, indent=1) + "\n")
    for sentence in report.wrong:
        sys.stderr.write(f"wrong: {sentence}\n")
    return 1 if report.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
