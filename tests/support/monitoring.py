"""Prometheus, Alertmanager and their checkers for the tests.

Those on PATH, else Debian's packages, unpacked.

Nothing is installed and no root is needed: packages are fetched by apt into a folder of our own and
unpacked there. `./ops/dev python tests/support/monitoring.py` fetches them and prints where they
are.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

PROGRAMS: Final[Mapping[str, str]] = {
    "prometheus": "prometheus",
    "promtool": "prometheus",
    "alertmanager": "prometheus-alertmanager",
    "amtool": "prometheus-alertmanager",
}
"""Each program and the Debian package it comes from."""
_DEBIAN_NAMES: Final[Mapping[str, str]] = {"alertmanager": "prometheus-alertmanager"}
_FETCH_SECONDS: Final = 300


class ToolsMissingError(RuntimeError):
    """The programs are neither here nor to be had; the text says why."""


def cache() -> Path:
    """Return where packages are unpacked.

    Inside the environment, so that they are made anew with it.
    """
    return Path(os.environ.get("OPS_TOOLS_DIR") or Path(sys.prefix) / "tools")


def programs() -> dict[str, Path]:
    """Return the path of each of `PROGRAMS`, fetched on the first call; raises
    `ToolsMissingError`.
    """
    on_path = {
        name: shutil.which(name) or shutil.which(_DEBIAN_NAMES.get(name, name)) for name in PROGRAMS
    }
    if all(on_path.values()):
        return {name: Path(str(found)) for name, found in on_path.items()}
    folder = cache()
    folder.mkdir(parents=True, exist_ok=True)
    unpacked = folder / "monitoring"
    # Two runs of the tests at once: one fetches, the other waits for it.
    with (folder / ".fetching").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not unpacked.is_dir():
            _fetch(unpacked)
    return {name: unpacked / "usr" / "bin" / _DEBIAN_NAMES.get(name, name) for name in PROGRAMS}


def _fetch(unpacked: Path) -> None:
    if missing := [tool for tool in ("apt-get", "dpkg-deb") if shutil.which(tool) is None]:
        raise ToolsMissingError(
            f"there is no {missing[0]} here to fetch {', '.join(sorted(set(PROGRAMS.values())))}"
        )
    with tempfile.TemporaryDirectory(dir=unpacked.parent) as name:
        work = Path(name)
        try:
            _download(work, [])
        except ToolsMissingError:
            # The machine's own lists are absent or old: fetch lists into our folder, which needs no
            # root.
            own = [
                *("-o", f"Dir::State={work / 'state'}", "-o", f"Dir::Cache={work / 'cache'}"),
                *("-o", "Dir::State::status=/var/lib/dpkg/status"),
            ]
            for part in ("state/lists/partial", "cache/archives/partial"):
                (work / part).mkdir(parents=True)
            _run(work, "apt-get", *own, "-q", "update")
            _download(work, own)
        root = work / "root"
        for package in work.glob("*.deb"):
            _run(work, "dpkg-deb", "--extract", str(package), str(root))
        absent = [
            name
            for name in PROGRAMS
            if not (root / "usr" / "bin" / _DEBIAN_NAMES.get(name, name)).is_file()
        ]
        if absent:
            raise ToolsMissingError(f"the packages hold no {', '.join(absent)}")
        # The last step, in one: a killed run leaves nothing that looks whole.
        root.rename(unpacked)


def _download(work: Path, options: list[str]) -> None:
    _run(work, "apt-get", *options, "-q", "download", *sorted(set(PROGRAMS.values())))


def _run(work: Path, *command: str) -> None:
    # As root, apt would drop to a user who may not write to our folder.
    asked = (
        [command[0], "-o", "APT::Sandbox::User=root", *command[1:]]
        if command[0] == "apt-get"
        else [*command]
    )
    try:
        done = subprocess.run(
            asked, cwd=work, check=False, capture_output=True, text=True, timeout=_FETCH_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise ToolsMissingError(f"{command[0]} took over {_FETCH_SECONDS} s") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise ToolsMissingError(f"{command[0]} failed: {last}")


if __name__ == "__main__":
    try:
        for program, path in programs().items():
            sys.stdout.write(f"{program}\t{path}\n")
    except ToolsMissingError as error:
        sys.exit(f"tests/support/monitoring.py: {error}")
