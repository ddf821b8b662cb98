"""Settings of one sandbox provider.

Some are fixed at its start; the others can change while it runs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Final, Literal, get_args
from urllib.parse import urlsplit

from worker.sandbox.faults import parse_faults

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

Idempotency = Literal["honour", "ignore"]
Envelope = Literal["nested", "flat"]
Accounts = Literal["one", "hidden", "shown"]
WebhookMode = Literal["in_order", "shuffled", "early", "twice", "never", "ms", "s"]
WebhookShape = Literal["refund", "charge", "bare"]

FIXED_AT_START = frozenset({"api_key", "faults", "seed", "ledger_file", "log_requests"})
WRITE_ONLY: Final = frozenset({"webhook_secret"})
"""Settings that can change while the sandbox runs, and that it never shows."""
WEBHOOK_TRIES_LIMIT: Final = 100
_CHOICES: Final[dict[str, tuple[str, ...]]] = {
    "idempotency": get_args(Idempotency),
    "envelope": get_args(Envelope),
    "accounts": get_args(Accounts),
    "webhook_mode": get_args(WebhookMode),
    "webhook_shape": get_args(WebhookShape),
}
_NUMBERS: Final = (
    "latency_ms",
    "key_window_seconds",
    "rate_limit",
    "log_requests",
    "webhook_retry_ms",
    "webhook_window_ms",
)


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

    `webhook` is the URL that events go to, "" for none, and `webhook_secret` signs them. A delivery
    has at most `webhook_tries` tries, `webhook_retry_ms` apart. Mode `shuffled` delays each event
    by up to `webhook_window_ms`.
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
    webhook: str = ""
    webhook_secret: str = field(default="", repr=False)
    webhook_mode: WebhookMode = "in_order"
    webhook_shape: WebhookShape = "refund"
    webhook_tries: int = 5
    webhook_retry_ms: float = 500
    webhook_window_ms: float = 250

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise SandboxConfigError(name, f"must be one of {', '.join(allowed)}")
        for name in _NUMBERS:
            if not 0 <= getattr(self, name) < math.inf:
                raise SandboxConfigError(name, "must be a number, 0 or more")
        if self.settle_ms is not None and not 0 <= self.settle_ms < math.inf:
            raise SandboxConfigError("settle_ms", "must be a number, 0 or more")
        if self.api_key is not None and not self.api_key:
            raise SandboxConfigError("api_key", "must not be empty")
        self._check_webhook()
        parse_faults(self.faults)

    def _check_webhook(self) -> None:
        if self.webhook and not is_webhook_url(self.webhook):
            raise SandboxConfigError("webhook", "must be a URL such as http://127.0.0.1:8080/hook")
        if self.webhook and not self.webhook_secret:
            raise SandboxConfigError("webhook_secret", "must not be empty if webhook is set")
        tries = self.webhook_tries
        if not (isinstance(tries, int) and 1 <= tries <= WEBHOOK_TRIES_LIMIT):
            raise SandboxConfigError(
                "webhook_tries", f"must be a whole number from 1 to {WEBHOOK_TRIES_LIMIT}"
            )

    def with_modes(self, modes: Mapping[str, Any]) -> SandboxConfig:
        """Return these settings with some changed by name.

        Raises `SandboxConfigError` for a setting that is unknown, fixed or wrong.
        """
        known = {setting.name for setting in fields(self)}
        for name, value in modes.items():
            if name not in known:
                raise SandboxConfigError(name, "is not a setting of the sandbox")
            if name in FIXED_AT_START:
                raise SandboxConfigError(name, "cannot change while the sandbox runs")
            if not _same_sort(getattr(SandboxConfig, name), value, nullable=name == "settle_ms"):
                raise SandboxConfigError(
                    name, "must be a text" if name in WRITE_ONLY else f"cannot be {value!r}"
                )
        return replace(self, **modes)

    def modes(self) -> dict[str, Any]:
        """Return the settings that `with_modes` can change, without those that are secret."""
        return {
            known.name: getattr(self, known.name)
            for known in fields(self)
            if known.name not in FIXED_AT_START | WRITE_ONLY
        }


def is_webhook_url(text: str) -> bool:
    """Return whether events can be sent to that URL."""
    try:
        parts = urlsplit(text)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _same_sort(default: object, value: object, *, nullable: bool) -> bool:
    if value is None:
        return nullable
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(default, bool) and isinstance(value, bool)
    if isinstance(default, str):
        return isinstance(value, str)
    return isinstance(value, (int, float))
