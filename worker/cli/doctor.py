"""`refunds doctor`: prints each check on a line, with the command that fixes a problem."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import click
from rich.table import Table
from rich.text import Text

from worker.cli import render
from worker.cli.exits import AWAY, DONE, REFUSED, USAGE
from worker.cli.session import opened
from worker.errors import SettingsError
from worker.settings import Settings
from worker.wording import values

_STYLES: Final = {"ok": "green", "warn": "yellow", "fail": "bold red"}
# In the order in which to fix them: if the settings are wrong, nothing else can be checked.
ORDER: Final = (("settings", USAGE), ("guard", REFUSED), ("away", AWAY))


@click.command(
    epilog="""\b
Examples:
  refunds doctor
  refunds doctor --json | jq '.checks[] | select(.state != "ok")'

\b
Exit code: 0 if no check failed (warnings do not count); otherwise the first that
applies of 2 wrong settings, 6 a guard refuses, 5 Redis or the provider is
unavailable."""
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor(*, as_json: bool) -> int:
    """Check settings, Redis, provider and workers. No money is spent and no refund is changed."""
    checks = _checks()
    code = exit_code(checks)
    if as_json:
        render.as_json({"ok": code == DONE, "exit_code": code, "checks": checks})
        return code
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for check in checks:
        grid.add_row(
            Text(check["state"], style=_STYLES[check["state"]]),
            check["name"],
            values.plain(check["text"]),
        )
        if check["fix"]:
            grid.add_row("", "", Text(f"→ {values.plain(check['fix'])}", style="dim"))
    render.put(grid)
    return code


def _checks() -> list[dict[str, Any]]:
    try:
        return _examined(Settings.load())
    except SettingsError as error:
        # An address may be readable, and its options or files of no use.
        fix = "fix the variables named here; ops/docs/settings.md lists the allowed values"
        return [
            {
                "name": "settings",
                "state": "fail",
                "text": str(error).removeprefix("wrong settings: "),
                "fix": fix,
                "trouble": "settings",
            }
        ]


def _examined(settings: Settings) -> list[dict[str, Any]]:
    # Only this command needs the provider's client, so that other commands start without it.
    from worker.monitoring import doctor  # noqa: PLC0415 - see above

    with opened(settings) as refunds:
        return [
            {
                "name": check.name,
                "state": check.state.value,
                "text": check.text,
                "fix": check.fix,
                "trouble": check.trouble.value if check.trouble else None,
            }
            for check in doctor.examine(settings, refunds.store, refunds.celery)
        ]


def exit_code(checks: Sequence[dict[str, Any]]) -> int:
    """Return 0 if no check failed, else the code of the problem to fix first."""
    troubles = {check["trouble"] for check in checks if check["state"] == "fail"}
    return next((code for trouble, code in ORDER if trouble in troubles), DONE)
