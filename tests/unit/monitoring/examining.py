"""What the doctor says, by the names of its checks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tests.support.cli_runner import Cli


@dataclass(frozen=True, kw_only=True)
class Said:
    """One run of the doctor: its exit code and its checks by name."""

    code: int
    checks: dict[str, dict[str, Any]]

    def of(self, name: str) -> tuple[str, str, str]:
        """State, text and fix of one check; the fix of a sound one is empty."""
        check = self.checks[name]
        return check["state"], check["text"], check["fix"] or ""


def examined(doctor: Cli, **settings: str) -> Said:
    """Run it; whatever it finds, each flaw names what mends it and no secret is shown."""
    ran = doctor("doctor", "--json", **settings)
    assert "planted" not in ran.out + ran.err
    checks = {check["name"]: check for check in ran.object["checks"]}
    assert len(checks) == len(ran.object["checks"])
    for check in checks.values():
        assert (check["fix"] is None) == (check["state"] == "ok")
        assert (check["trouble"] is not None) == (check["state"] == "fail")
    return Said(code=ran.code, checks=checks)
