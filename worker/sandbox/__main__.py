"""`python -m worker.sandbox`: the simulated provider as a process."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import click

from worker.sandbox.bank import CAPTURED, CURRENCY, MAGIC
from worker.sandbox.config import SandboxConfig, SandboxConfigError, WebhookMode, WebhookShape
from worker.sandbox.faults import KINDS, FaultSpecError
from worker.sandbox.provider import run
from worker.sandbox.schema import validators
from worker.wording.listening import cannot_listen
from worker.wording.ranges import Whole

EPILOG = f"""Faults: {", ".join(KINDS)}. Each takes :p= or :n=, and :times=, :on=, :pi=.

The beginning of a payment intent's id decides how it behaves: {", ".join(MAGIC)}. Any other pi_… is
a payment captured at {CAPTURED} minor units of {CURRENCY}."""


def _choices(literal: object) -> str:
    return ", ".join(get_args(literal))


@click.command(epilog=EPILOG)
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option(
    "--port", default=4010, show_default=True, type=Whole(0, 65535), help="0 picks a free one."
)
@click.option("--latency", "latency_ms", default=0.0, help="Milliseconds that each request takes.")
@click.option("--faults", default="", help="For instance cut_after:p=0.05,http_500_before:n=3")
@click.option("--seed", default=0, help="Seed of the faults' probabilities.")
@click.option(
    "--idempotency",
    default="honour",
    show_default=True,
    help="honour or ignore the Idempotency-Key.",
)
@click.option(
    "--key-window",
    "key_window_seconds",
    default=86400.0,
    show_default=True,
    help="Seconds for which a key is replayed.",
)
@click.option(
    "--store-5xx", is_flag=True, help="Store and replay the application's own 5xx under a key."
)
@click.option(
    "--list/--no-list", "list_refunds", default=True, help="Whether refunds can be listed."
)
@click.option(
    "--pending-in-totals/--no-pending-in-totals",
    default=True,
    help="Whether amount_refunded counts pending refunds.",
)
@click.option(
    "--envelope", default="nested", show_default=True, help="nested or flat error objects."
)
@click.option("--created-in-ms", is_flag=True, help="Times in milliseconds instead of seconds.")
@click.option(
    "--accounts",
    default="one",
    show_default=True,
    help="one: all keys share it; hidden or shown: each key has its own.",
)
@click.option(
    "--charges/--no-charges",
    "charges_expanded",
    default=True,
    help="Whether a payment shows its charges.",
)
@click.option(
    "--indiscreet", is_flag=True, help="Errors repeat the request, its secret key included."
)
@click.option(
    "--settle",
    "settle_ms",
    default=1000.0,
    show_default=True,
    help="Milliseconds until a pending refund settles.",
)
@click.option("--no-settle", is_flag=True, help="Pending refunds wait for POST /_sandbox/advance.")
@click.option("--rate-limit", default=0, help="Requests allowed per second; 0 for no limit.")
@click.option("--api-key", help="The only test key to accept; any sk_test_… if not given.")
@click.option(
    "--ledger",
    "ledger_file",
    type=click.Path(path_type=Path),
    help="Also append the ledger to this file.",
)
@click.option("--webhook", default="", help="URL that events about refunds are sent to.")
@click.option("--webhook-secret", default="", help="Secret that signs those events.")
@click.option(
    "--webhook-mode",
    default="in_order",
    show_default=True,
    help=f"{_choices(WebhookMode)}. early: before the reply; ms or s: unit of the signed time.",
)
@click.option(
    "--webhook-shape",
    default="refund",
    show_default=True,
    help=f"{_choices(WebhookShape)}: what an event shows.",
)
@click.option(
    "--webhook-tries", default=5, show_default=True, help="Tries at most to deliver an event."
)
@click.option(
    "--webhook-retry",
    "webhook_retry_ms",
    default=500.0,
    show_default=True,
    help="Milliseconds between two tries.",
)
@click.option(
    "--webhook-window",
    "webhook_window_ms",
    default=250.0,
    show_default=True,
    help="Longest delay of a shuffled event in milliseconds.",
)
@click.option(
    "--log-requests", default=10_000, show_default=True, help="Requests to remember; 0 for none."
)
def main(*, host: str, port: int, no_settle: bool, **settings: Any) -> None:
    """Serve a simulated payment provider and print its URL."""
    if no_settle:
        settings["settle_ms"] = None
    try:
        config = SandboxConfig(**settings)
        validators()
    except (SandboxConfigError, FaultSpecError) as error:
        raise click.UsageError(str(error)) from None
    if config.ledger_file is not None:
        try:
            config.ledger_file.open("a").close()
        except OSError as error:
            raise click.UsageError(
                f"--ledger {config.ledger_file} cannot be written: {error.strerror}"
            ) from None
    try:
        run(host, port, config)
    except OSError as error:
        raise click.ClickException(cannot_listen(host, port, error)) from None


if __name__ == "__main__":
    main()
