"""Where a refund's microseconds go.

`./ops/dev python -m ops.lab.bench.sampling bulk` (or single, or floor).

Samples the thread that holds the interpreter in a worker with a full queue. The measured processor
time of the process is divided by these samples; time inside the kernel is spread over all of them.
The first table is by the package whose code ran; a frame of the standard library counts for its
caller. The second is by the worker's own function, with everything below it. A third shows the
server's time for each command.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import click

from ops.lab.bench.machine import Cores
from ops.lab.bench.rig import Mode, Rig, Window
from worker.model.refund import Lane

SAMPLES_A_SECOND: Final = 250
SHOWN: Final = 22
_FRAME: Final = re.compile(r"(?P<function>.+) \((?P<file>[^():]+)(?::\d+)?\)")
_PACKAGES: Final[Mapping[str, str]] = {
    "httpx": "httpx: client layer",
    "httpx_aiohttp": "httpx-aiohttp: transport",
    "aiohttp": "aiohttp",
    "yarl": "aiohttp",
    "multidict": "aiohttp",
    "redis": "redis-py",
    "hiredis": "redis-py",
    "kombu": "kombu",
    "amqp": "kombu",
    "vine": "kombu",
    "celery": "celery",
    "billiard": "celery",
    "structlog": "structlog",
    "tenacity": "tenacity",
    "uvloop": "event loop",
    "ops": "the floor's own code",
}


def stacks(raw: str) -> Iterator[tuple[list[tuple[str, str]], int]]:
    """Yield each stack of a folded file, root first, as (function, file) pairs with its count."""
    for line in raw.splitlines():
        text, _, count = line.rpartition(" ")
        frames = [_FRAME.fullmatch(part) for part in text.split(";")]
        yield [(frame["function"], frame["file"]) for frame in frames if frame], int(count)


def owner(stack: Iterable[tuple[str, str]]) -> str:
    """Return whose code the top of a stack is, past the standard library."""
    for _, file in reversed(list(stack)):
        package, _, rest = file.partition("/")
        if package == "worker":
            return f"worker/{rest}"
        if package == "logging":
            return "logging"
        if package in _PACKAGES:
            return _PACKAGES[package]
    return "event loop and threads"


def inclusive(stack: Iterable[tuple[str, str]]) -> set[str]:
    """Return the worker's own functions that a stack passes through."""
    return {
        f"{file}: {function}"
        for function, file in stack
        if file.startswith(("worker/", "celery/", "kombu/"))
    }


def report(raw: str, window: Window) -> str:
    """Return the two lists, in microseconds of one refund."""
    by_owner: Counter[str] = Counter()
    by_function: Counter[str] = Counter()
    for stack, count in stacks(raw):
        by_owner[owner(stack)] += count
        by_function.update(dict.fromkeys(inclusive(stack), count))
    total = by_owner.total()
    each = window.cpu_ms * 1000 / total
    lines = [
        (
            f"{window.cpu_ms * 1000:.0f} µs of processor time a refund, "
            f"{window.rate:.0f} refunds a second, {total} samples"
        )
    ]
    lines += ["", "whose code (self)"]
    lines += [
        f"{count * each:8.1f} µs  {count / total:5.1%}  {name}"
        for name, count in by_owner.most_common(SHOWN)
    ]
    lines += ["", "for which function (with all below it)"]
    lines += [
        f"{count * each:8.1f} µs  {count / total:5.1%}  {name}"
        for name, count in by_function.most_common(2 * SHOWN)
    ]
    return "\n".join(lines)


def commands(before: Mapping[str, Any], after: Mapping[str, Any], refunds: int) -> str:
    """Return what the server did for each refund: calls and microseconds by command."""
    lines = [
        "on the server, a refund: calls, microseconds (a script's time includes its commands')"
    ]
    spent = {
        name: facts["usec"] - before.get(name, {"usec": 0})["usec"] for name, facts in after.items()
    }
    for name in sorted(spent, key=lambda name: -spent[name]):
        made = after[name]["calls"] - before.get(name, {"calls": 0})["calls"]
        if made / refunds >= 0.01:  # noqa: PLR2004 - one in a hundred is noise of the driver
            lines.append(
                f"{made / refunds:8.2f}  {spent[name] / refunds:7.1f} µs "
                f" {name.removeprefix('cmdstat_')}"
            )
    return "\n".join(lines)


@click.command()
@click.argument("what", type=click.Choice(["bulk", "single", "floor"]))
@click.option("--refunds", "count", default=6_000, show_default=True, type=click.IntRange(500))
@click.option(
    "--latency",
    "latency_ms",
    default=50,
    show_default=True,
    help="Of the provider, in milliseconds.",
)
@click.option(
    "--readback", default="list", show_default=True, type=click.Choice(["list", "totals"])
)
@click.option(
    "--keep",
    type=click.Path(path_type=Path),
    help="Keep the folded stacks here, for a flame graph.",
)
def main(*, what: str, count: int, latency_ms: int, readback: str, keep: Path | None) -> None:
    """Profile one worker process on one core."""
    spy = shutil.which("py-spy", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if spy is None:
        raise click.ClickException("py-spy is not installed: pip install py-spy")
    cores = Cores.split()
    cores.take_rest()
    with Rig(cores, Mode(latency_ms=latency_ms, readback=readback)) as rig:
        redis: Any = rig.refunds.store.redis
        rig.fill(count, Lane.SINGLE if what == "single" else Lane.BULK)
        process = rig.start_floor(count) if what == "floor" else rig.start_worker()
        rig.until(lambda: rig.settled() >= count // 10, "it is under way")
        folded = rig.folder / "stacks"
        watching = [
            spy,
            "record",
            "--pid",
            str(process.pid),
            "--format",
            "raw",
            "--output",
            str(folded),
        ]
        watching += ["--rate", str(SAMPLES_A_SECOND), "--duration", "600", "--gil"]
        before = redis.info("commandstats")
        with subprocess.Popen(  # noqa: S603 - found above
            watching, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as sampler:
            window = rig.window(count // 10, int(count * 0.95))
            after = redis.info("commandstats")
            sampler.send_signal(signal.SIGINT)
        rig.until(lambda: rig.settled() >= count, "all are settled")
        rig.stop()
        rig.count(count)
        raw = folded.read_text(encoding="utf-8")
    if keep is not None:
        keep.write_text(raw, encoding="utf-8")
    click.echo(f"{what}, {latency_ms} ms, verify with {readback}\n{report(raw, window)}\n")
    click.echo(commands(before, after, window.refunds))


if __name__ == "__main__":
    main()
