"""The group `refunds`: its commands, loaded when they are asked for, and what becomes of their errors."""

from __future__ import annotations

import difflib
import errno
import io
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, Final, NamedTuple, NoReturn

import click

from worker.cli.exits import BROKEN_PIPE, DONE, INTERNAL, INTERRUPTED, MEANINGS, USAGE, Detached, exit_code_of
from worker.errors import RefundError, SettingsError
from worker.model.redaction import without_secrets
from worker.model.request import scrubbed
from worker.settings import Settings

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class Entry(NamedTuple):
    """Where a command lives, and its line in `refunds --help`."""

    module: str
    name: str
    line: str


# One line a command; none is imported before it is run, so that `refunds status` starts fast.
COMMANDS: Final[dict[str, Entry]] = {
    "submit": Entry("worker.cli.refunds", "submit", "Hand in one refund."),
    "status": Entry("worker.cli.refunds", "status", "Show refunds, their history, or wait for them."),
    "list": Entry("worker.cli.listing", "list_refunds", "List refunds by status, stage, batch or payment."),
    "cancel": Entry("worker.cli.refunds", "cancel", "Cancel a refund before anything was sent."),
    "retry": Entry("worker.cli.refunds", "retry", "Send a failed refund again."),
    "import": Entry("worker.cli.import_", "import_file", "Hand in a file of refunds."),
    "batch": Entry("worker.cli.batch", "batch", "See, hold, stop, retry and read back the files handed in."),
    "review": Entry("worker.cli.review", "review", "See and decide the refunds that need a person."),
    "rejected": Entry("worker.cli.rejected", "rejected", "See and drop the messages that could not be understood."),
    "pause": Entry("worker.cli.operate", "pause", "The stop button: no refund is sent until it is resumed."),
    "resume": Entry("worker.cli.operate", "resume", "Let refunds be sent again."),
    "worker": Entry("worker.cli.operate", "worker", "Run a worker in the foreground."),
    "doctor": Entry("worker.cli.doctor", "doctor", "Check settings, Redis, provider and workers."),
    "recover": Entry(
        "worker.cli.recover", "recover", "Put in doubt what may have been sent since a restored snapshot."
    ),
    "metrics": Entry("worker.cli.operate", "metrics", "Serve Prometheus metrics, computed from Redis."),
    "probe": Entry("worker.cli.probe", "probe", "Find out what the provider honours, with small test refunds."),
    "sandbox": Entry("worker.sandbox.__main__", "main", "Serve a simulated provider to try things with."),
}

EPILOG: Final = """\b
Examples:
  refunds submit order-1001-1 --payment-intent pi_3NfK2x --amount 500 --wait 30
  refunds status order-1001-1 --history
  refunds import refunds.csv --dry-run
  refunds batch list
  refunds doctor

\b
Exit codes:
""" + "\n".join(f"  {code}  {meaning}" for code, meaning in MEANINGS.items())


class Commands(click.Group):
    """A group that loads a command when it is named, and ends every run in one of the exit codes."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; of a misspelt name say which one is near."""
        near = difflib.get_close_matches(args[0], COMMANDS, n=1)
        if near and args[0] not in COMMANDS:
            ctx.fail(f"No such command {args[0]!r}. Did you mean {near[0]!r}?")
        return super().resolve_command(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Return the commands in the order in which they are met."""
        return [*COMMANDS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's
        """Return a command, imported now."""
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        command: click.Command = getattr(import_module(entry.module), entry.name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's
        """Write the list of commands without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.line) for name, entry in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command and hand its exit code on."""
        try:
            code = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            _say_no_more()
            return BROKEN_PIPE
        return code

    def main(self, *args: Any, **extra: Any) -> NoReturn:
        """Run and leave with an exit code; a caller's mistake never shows a traceback."""
        extra["standalone_mode"] = False
        sys.exit(_ended(lambda: super(Commands, self).main(*args, **extra)))


def _ended(run: Callable[[], Any]) -> int:
    try:
        code = run()
    except click.ClickException as error:
        # An argument that is wrong is repeated, perhaps before anything knew the secrets.
        with suppress(SettingsError):
            Settings.load()
        told = io.StringIO()
        error.show(file=told)
        click.echo(without_secrets(told.getvalue()), err=True, nl=False)
        return USAGE
    except (click.Abort, KeyboardInterrupt):
        _complain("interrupted: every accepted refund goes its way; see them with 'refunds list'")
        return INTERRUPTED
    except Detached as detached:
        _complain(str(detached))
        return INTERRUPTED
    except RefundError as error:
        if (code := exit_code_of(error)) == INTERNAL:
            return _internal(error)
        _complain(f"error: {error}")
        return code
    except Exception as error:  # noqa: BLE001 - the outermost loop: whatever it is becomes one sentence
        return _foreign(error)
    return code if isinstance(code, int) else DONE


def _say_no_more() -> None:
    """Let stdout lead nowhere: else the interpreter tries once more at its end, complains, and ends with 120."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _complain(sentence: str) -> None:
    click.echo(without_secrets(sentence), err=True)


def _foreign(error: Exception) -> int:
    """Say what is not of our tree: two kinds of it are no fault of the program."""
    if isinstance(error, UnicodeEncodeError) and "\ud800" <= error.object[error.start] <= "\udfff":
        # Python's stand-in for a byte that came from outside and is no text.
        _complain("error: an argument or a variable holds a byte that is no UTF-8: no id has one; type it anew")
        return USAGE
    if isinstance(error, OSError) and error.errno in _FULL:
        _say_no_more()
        _complain(
            f"error: what was to be said cannot be written ({error.strerror}): free space there; what was accepted "
            "stays so, see it with 'refunds list'"
        )
        return INTERNAL
    return _internal(error)


def _internal(error: Exception) -> int:
    if _wants_traceback():
        click.echo(without_secrets("".join(traceback.format_exception(error))), err=True, nl=False)
    _complain(
        f"internal error: {type(error).__name__}: {scrubbed(str(error)) or 'no more is known'}; "
        "this is a fault of the program: run it again with REFUNDS_LOG_LEVEL=debug to see where"
    )
    return INTERNAL


def _wants_traceback() -> bool:
    try:
        return Settings.load().log_level == "debug"
    except SettingsError:
        return False


@click.group(cls=Commands, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="refund-worker", prog_name="refunds", message="%(prog)s %(version)s")
def refunds() -> None:
    """Refunds: accepted once, moved at most once, never lost, never guessed.

    Data goes to stdout, everything else to stderr. Settings come from REFUNDS_… variables; 'refunds doctor' checks
    them.
    """


def main() -> NoReturn:
    """Run the command line and leave with its exit code."""
    for name in ("stdin", "stdout", "stderr"):
        # A daemon may have none of them open.
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("r" if name == "stdin" else "w", encoding="utf-8"))  # noqa: SIM115 - for as long as the process lives
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character gets its number instead of an error.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    refunds.main(prog_name="refunds")
