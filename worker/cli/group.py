"""The group `refunds`: loads commands when they run; turns errors into messages and exit codes."""

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
from typing import Any, Final, NamedTuple, NoReturn, TextIO, cast

import click

from worker.cli.exits import (
    BROKEN_PIPE,
    DONE,
    INTERNAL,
    INTERRUPTED,
    MEANINGS,
    USAGE,
    Detached,
    exit_code_of,
)
from worker.errors import RefundError, SettingsError
from worker.model.redaction import without_secrets
from worker.model.request import scrubbed
from worker.settings import Settings

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_CLOSED: Final = "standard output is closed"


class _ClosedOutput(io.TextIOBase):
    """Replaces a closed standard output.

    A daemon writes nothing to it, and a command whose data is lost fails.
    """

    def __init__(self) -> None:
        # Takes the number of the closed stream, which the next socket would get otherwise.
        self._place = Path(os.devnull).open("wb")  # noqa: SIM115 - for as long as the process lives

    def write(self, _: str) -> int:
        raise OSError(errno.EBADF, _CLOSED)

    def reconfigure(self, **_: Any) -> None:
        """Do nothing: there is no encoding to change."""


class Entry(NamedTuple):
    """The module and name of a command, and its line in `refunds --help`."""

    module: str
    name: str
    line: str


# One entry per command. A command is imported only when it runs, so that `refunds status` starts
# fast.
COMMANDS: Final[dict[str, Entry]] = {
    "submit": Entry("worker.cli.refunds", "submit", "Submit one refund."),
    "status": Entry(
        "worker.cli.refunds", "status", "Show refunds and their history, or wait for them."
    ),
    "list": Entry(
        "worker.cli.listing", "list_refunds", "List refunds by status, stage, batch or payment."
    ),
    "cancel": Entry("worker.cli.refunds", "cancel", "Cancel a refund that was not sent yet."),
    "retry": Entry("worker.cli.refunds", "retry", "Send a failed refund again."),
    "import": Entry("worker.cli.import_", "import_file", "Import a file of refunds."),
    "batch": Entry("worker.cli.batch", "batch", "Show, pause, cancel and retry imported files."),
    "review": Entry(
        "worker.cli.review", "review", "Show and resolve the refunds that need review."
    ),
    "watch": Entry(
        "worker.cli.watch", "watch", "Show how settled refunds are read again for reversals."
    ),
    "reconcile": Entry(
        "worker.cli.reconcile", "reconcile", "Compare the provider's file with the records."
    ),
    "totals": Entry(
        "worker.cli.totals", "totals_of", "Sum up what succeeded and what was reversed by month."
    ),
    "rejected": Entry(
        "worker.cli.rejected", "rejected", "Show and drop messages that could not be understood."
    ),
    "pause": Entry(
        "worker.cli.operate", "pause", "Stop sending: no refund is sent until 'refunds resume'."
    ),
    "resume": Entry("worker.cli.operate", "resume", "Start sending refunds again."),
    "worker": Entry("worker.cli.worker", "worker", "Run a worker in the foreground."),
    "doctor": Entry("worker.cli.doctor", "doctor", "Check settings, Redis, provider and workers."),
    "recover": Entry(
        "worker.cli.recover",
        "recover",
        "After restoring a Redis snapshot: put in doubt what may have been sent since.",
    ),
    "metrics": Entry(
        "worker.cli.metrics", "metrics", "Serve Prometheus metrics, computed from Redis."
    ),
    "serve": Entry(
        "worker.cli.serve", "serve", "Serve the HTTP API and the page, and receive webhooks."
    ),
    "tokens": Entry(
        "worker.cli.tokens", "tokens", "Create, list and revoke the tokens of the HTTP API."
    ),
    "webhooks": Entry(
        "worker.cli.webhooks", "webhooks", "Register the webhook endpoint at the provider."
    ),
    "callbacks": Entry(
        "worker.cli.callbacks",
        "callbacks",
        "Show, switch, test and replay callbacks to a shop's endpoints.",
    ),
    "audit": Entry("worker.cli.audit", "audit", "Show who did what, and what came of it."),
    "events": Entry(
        "worker.cli.events", "events", "Print the moves of all refunds, and follow them."
    ),
    "probe": Entry(
        "worker.cli.probe", "probe", "Find out what the provider supports, with small test refunds."
    ),
    "sandbox": Entry(
        "worker.sandbox.__main__", "main", "Run a simulated provider for trials and tests."
    ),
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
    """A click group: imports a command when it runs, ends every run with one of the exit codes."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; for a misspelled name, suggest the nearest one."""
        near = difflib.get_close_matches(args[0], COMMANDS, n=1)
        if near and args[0] not in COMMANDS:
            ctx.fail(f"No such command {args[0]!r}. Did you mean 'refunds {near[0]}'?")
        return super().resolve_command(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Return the commands in the order in which a user needs them."""
        return [*COMMANDS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's
        """Import and return a command."""
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
        """Run the command and return its exit code."""
        try:
            code = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            _silence_stdout()
            return BROKEN_PIPE
        return code

    def main(self, *args: Any, **extra: Any) -> NoReturn:
        """Run the command and exit with its code; a user's mistake never shows a traceback."""
        extra["standalone_mode"] = False
        sys.exit(_ended(lambda: super(Commands, self).main(*args, **extra)))


def _ended(run: Callable[[], Any]) -> int:
    try:
        code = run()
    except click.ClickException as error:
        # click repeats the wrong argument. Loading the settings registers the secrets that must not
        # be shown in it.
        with suppress(SettingsError):
            Settings.load()
        text = io.StringIO()
        error.show(file=text)
        click.echo(without_secrets(text.getvalue()), err=True, nl=False)
        return USAGE
    except (click.Abort, KeyboardInterrupt):
        _complain("interrupted: refunds that were accepted continue; see them with 'refunds list'")
        return INTERRUPTED
    except Detached as detached:
        _complain(str(detached))
        return INTERRUPTED
    except RefundError as error:
        if (code := exit_code_of(error)) == INTERNAL:
            return _internal(error)
        _complain(f"error: {error}")
        return code
    except Exception as error:  # noqa: BLE001 - the outermost loop: every error becomes one sentence
        return _foreign(error)
    return code if isinstance(code, int) else DONE


def _silence_stdout() -> None:
    """Redirect stdout to /dev/null, so that the flush at exit does not fail with code 120."""
    if isinstance(sys.stdout, _ClosedOutput):
        return
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _complain(sentence: str) -> None:
    click.echo(without_secrets(sentence), err=True)


def _foreign(error: Exception) -> int:
    """Report an error that is not a `RefundError`; three kinds are not bugs."""
    if isinstance(error, UnicodeEncodeError) and "\ud800" <= error.object[error.start] <= "\udfff":
        # Python represents a byte of an argument that is not UTF-8 by one of these characters.
        _complain(
            "error: an argument or an environment variable contains a byte that is not UTF-8:"
            " retype it; ids contain ASCII characters only"
        )
        return USAGE
    if isinstance(error, OSError) and error.errno in _FULL:
        _silence_stdout()
        _complain(
            f"error: the output cannot be written ({error.strerror}): free some space and run the"
            " command again; refunds that were accepted continue, see them with 'refunds list'"
        )
        return INTERNAL
    if isinstance(error, OSError) and error.strerror == _CLOSED:
        _complain(
            f"error: the output cannot be written ({_CLOSED}): open it, or redirect it to a file or"
            " to /dev/null, and run the command again; refunds that were accepted continue, see"
            " them with 'refunds list'"
        )
        return INTERNAL
    return _internal(error)


def _internal(error: Exception) -> int:
    if _wants_traceback():
        click.echo(without_secrets("".join(traceback.format_exception(error))), err=True, nl=False)
    _complain(
        f"internal error: {type(error).__name__}: {scrubbed(str(error)) or 'no details'}; "
        "this is a bug: run the command again with REFUNDS_LOG_LEVEL=debug to see the traceback"
    )
    return INTERNAL


def _wants_traceback() -> bool:
    try:
        return Settings.load().log_level == "debug"
    except SettingsError:
        return False


@click.group(cls=Commands, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(
    package_name="refund-worker", prog_name="refunds", message="%(prog)s %(version)s"
)
def refunds() -> None:
    """Send refunds: each is accepted once, moves money at most once, and is never lost.

    A refund's status is never a guess. Data goes to stdout, everything else to stderr. Settings
    come from REFUNDS_… variables; 'refunds doctor' checks them.
    """


def main() -> NoReturn:
    """Run the command line and exit with its code."""
    # In a daemon these streams may be closed.
    if sys.stdout is None:
        sys.stdout = cast("TextIO", _ClosedOutput())
    for name in ("stdin", "stderr"):
        if getattr(sys, name) is None:
            setattr(
                sys,
                name,
                Path(os.devnull).open("r" if name == "stdin" else "w", encoding="utf-8"),  # noqa: SIM115 - for as long as the process lives
            )
    for stream in (sys.stdout, sys.stderr):
        # If the terminal's encoding lacks a character, print its number instead of failing.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    refunds.main(prog_name="refunds")
