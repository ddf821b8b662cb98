"""What `files.md` shows is what the command line takes.

And a start that is interrupted says nothing.
"""

from __future__ import annotations

import gzip
import re
import subprocess
import sys
from pathlib import Path

import pytest

import worker
from tests.support.cli_runner import SECONDS, Cli

PAGE = (Path(__file__).parents[3] / "ops" / "docs" / "files.md").read_text("utf-8")

INTERRUPTED_WHILE = """
import os, signal, sys
wanted = sys.argv[1]
class Interrupting:
    def find_spec(self, name, path, target=None):
        if name == wanted:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupting())
import runpy
sys.argv[1:] = ["status", "order-1"]
runpy.run_module("worker", run_name="__main__", alter_sys=True)
"""


def example(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    assert found is not None
    return found[1]


def test_the_csv_shown_is_imported_as_it_is(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "season.csv"
    path.write_text(example("csv"))
    ran = cli("import", str(path), "--id-from", "order_id", "--json")
    assert (ran.code, ran.object["created"], ran.object["format"]) == (
        0,
        2,
        "CSV, semicolon-separated",
    )


def test_the_json_lines_shown_are_imported_packed_and_through_a_pipe(
    cli: Cli, tmp_path: Path
) -> None:
    path = tmp_path / "season.jsonl.gz"
    path.write_bytes(gzip.compress(example("json").encode()))
    ran = cli("import", str(path), "--json")
    assert (ran.code, ran.object["created"], ran.object["format"]) == (0, 2, "JSON lines, gzipped")
    ran = cli("import", "-", "--json", stdin=example("json"))
    assert (ran.code, ran.object["known"]) == (9, 2)


@pytest.mark.parametrize(
    "option", sorted(set(re.findall(r"--[a-z][a-z-]+", PAGE)) - {"--ignore-extra"})
)
def test_every_option_shown_is_one_of_a_command(cli: Cli, option: str) -> None:
    commands = (("import",), *(("batch", name) for name in ("list", "show", "retry", "result")))
    assert any(option in cli(*command, "--help").out for command in commands)


@pytest.mark.parametrize(
    "module", ["worker.cli.group", "worker.client", "pydantic", "redis", "rich"]
)
def test_ctrl_c_while_the_command_line_is_loaded_is_no_traceback(cli: Cli, module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_WHILE, module],
        env=cli.real(),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert (done.returncode, done.stdout) == (130, "")
    assert "Traceback" not in done.stderr


def test_nothing_slow_is_loaded_before_an_interrupt_is_understood() -> None:
    code = "import sys, worker, worker.cli; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert not set(done.stdout.split()) & {
        "celery",
        "redis",
        "pydantic",
        "click",
        "rich",
        "asyncio",
    }


def test_the_package_gives_every_name_it_promises_and_no_other() -> None:
    for name in worker.__all__:
        assert getattr(worker, name).__name__ == name
        assert name in dir(worker)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = worker.nothing  # type: ignore[attr-defined]
