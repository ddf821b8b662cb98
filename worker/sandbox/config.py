"""Settings of one sandbox provider.

Some are fixed at its start; the others can change while it runs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from worker.sandbox.faults import parse_faults

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

Idempotency = Literal["honour", "ignore"]
Envelope = Literal["nested", "flat"]
Accounts = Literal["one", "hidden", "shown"]

FIXED_AT_START = frozenset({"api_key", "faults", "seed", "ledger_file", "log_requests"})


class SandboxConfigError(ValueError):
    """A setting of the sandbox is wrong; `field` names it."""

    def __init__(self, field: str, rule: str) -> None:
        super().__init__(f"{field}: {rule}")
        self.field = field


@dataclass(frozen=True, kw_only=True)
class SandboxConfig:
    """Settings of one sandbox provider.

    `api_key` None accepts every `sk_test_…`. `settle_ms` None leaves pending refunds to `POST
    /_sandbox/advance`. If `accounts` is not `one`, each key has an account of its own, which does
    not see the payments of others; with `shown`, `GET /v1/account` returns its id. `faults` is a
    spec as in `worker.sandbox.faults`. With `indiscreet`, errors repeat the request, its key
    included. `rate_limit` is the number of requests allowed per second, 0 for no limit.
    `log_requests` is how many requests are remembered, 0 for none.
    """

    api_key: str | None = None
    latency_ms: float = 0
    idempotency: Idempotency = "honour"
    key_window_seconds: float = 86_400
    store_5xx: bool = False
    list_refunds: bool = True
    pending_in_totals: bool = True
    envelope: Envelope = "nested"
    created_in_ms: bool = False
    charges_expanded: bool = True
    accounts: Accounts = "one"
    indiscreet: bool = False
    settle_ms: float | None = 1_000
    rate_limit: int = 0
    faults: str = ""
    seed: int = 0
    ledger_file: Path | None = None
    log_requests: int = 10_000

    def __post_init__(self) -> None:
        if self.idempotency not in get_args(Idempotency):
            raise SandboxConfigError(
                "idempotency", f"must be one of {', '.join(get_args(Idempotency))}"
            )
        if self.envelope not in get_args(Envelope):
            raise SandboxConfigError("envelope", f"must be one of {', '.join(get_args(Envelope))}")
        if self.accounts not in get_args(Accounts):
            raise SandboxConfigError("accounts", f"must be one of {', '.join(get_args(Accounts))}")
        for name in ("latency_ms", "key_window_seconds", "rate_limit", "log_requests"):
            if not 0 <= getattr(self, name) < math.inf:
                raise SandboxConfigError(name, "must be a number, 0 or more")
        if self.settle_ms is not None and not 0 <= self.settle_ms < math.inf:
            raise SandboxConfigError("settle_ms", "must be a number, 0 or more")
        if self.api_key is not None and not self.api_key:
            raise SandboxConfigError("api_key", "must not be empty")
        parse_faults(self.faults)

    def with_modes(self, modes: Mapping[str, Any]) -> SandboxConfig:
        """Return these settings with some changed by name.

        Raises `SandboxConfigError` for a setting that is unknown, fixed or wrong.
        """
        known = {field.name for field in fields(self)}
        for name, value in modes.items():
            if name not in known:
                raise SandboxConfigError(name, "is not a setting of the sandbox")
            if name in FIXED_AT_START:
                raise SandboxConfigError(name, "cannot change while the sandbox runs")
            if not _same_sort(getattr(SandboxConfig, name), value, nullable=name == "settle_ms"):
                raise SandboxConfigError(name, f"cannot be {value!r}")
        return replace(self, **modes)

    def modes(self) -> dict[str, Any]:
        """Return the settings that `with_modes` can change."""
        return {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.name not in FIXED_AT_START
        }


def _same_sort(default: object, value: object, *, nullable: bool) -> bool:
    if value is None:
        return nullable
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(default, bool) and isinstance(value, bool)
    if isinstance(default, str):
        return isinstance(value, str)
    return isinstance(value, (int, float))
