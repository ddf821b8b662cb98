"""The simulated provider as a server.

`create_app` for an application, `serve` and `run` for a process.

In a test, `worker.sandbox.running.running_sandbox` serves it from a thread.
"""

from __future__ import annotations

import asyncio
import gc
import signal
from typing import TYPE_CHECKING, Final

import click
from aiohttp import web

from worker.sandbox import indiscreet
from worker.sandbox.config import SandboxConfig, SandboxConfigError
from worker.sandbox.control import Control
from worker.sandbox.endpoints import Provider
from worker.sandbox.webhook_endpoints import WebhookEndpoints

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

__all__ = ["SandboxConfig", "SandboxConfigError", "announce", "create_app", "run", "serve"]

STOP_SECONDS: Final = 0.2
BACKLOG: Final = 1024


def create_app(config: SandboxConfig) -> web.Application:
    """Return an application with a new, empty provider.

    Run it without `handler_cancellation`, aiohttp's default: a client that disconnects then stops
    nothing.
    """
    provider = Provider(config=config)
    control = Control(provider)
    app = web.Application(middlewares=[indiscreet.repeating(lambda: provider.config)])
    app.router.add_post("/v1/refunds", provider.create_refund)
    app.router.add_get("/v1/refunds", provider.list_refunds, allow_head=False)
    app.router.add_get("/v1/refunds/{id}", provider.get_refund, allow_head=False)
    app.router.add_get("/v1/payment_intents/{id}", provider.get_payment_intent, allow_head=False)
    app.router.add_get("/v1/charges/{id}", provider.get_charge, allow_head=False)
    app.router.add_get("/v1/account", provider.get_account, allow_head=False)
    app.router.add_post("/v1/webhook_endpoints", WebhookEndpoints(provider).create)
    app.router.add_get("/_sandbox/health", control.health)
    app.router.add_get("/_sandbox/ledger", control.ledger)
    app.router.add_get("/_sandbox/export", control.export)
    app.router.add_get("/_sandbox/requests", control.requests)
    app.router.add_delete("/_sandbox/requests", control.forget_requests)
    app.router.add_get("/_sandbox/webhooks", control.webhooks)
    app.router.add_get("/_sandbox/faults", control.faults)
    app.router.add_post("/_sandbox/faults", control.set_faults)
    app.router.add_delete("/_sandbox/faults", control.clear_faults)
    app.router.add_post("/_sandbox/payment_intents", control.create_payment_intent)
    app.router.add_post("/_sandbox/refunds/{id}", control.move_refund)
    app.router.add_post("/_sandbox/advance", control.advance)
    app.router.add_route("*", "/{anything:.*}", provider.unknown_url)

    async def ledger_open(_app: web.Application) -> AsyncIterator[None]:
        provider.ledger.open()
        yield
        provider.ledger.close()

    async def webhooks_sent(_app: web.Application) -> AsyncIterator[None]:
        async with provider.webhooks.running():
            yield

    app.cleanup_ctx.extend((ledger_open, webhooks_sent))
    return app


def announce(url: str) -> None:
    """Print one line with the address of the sandbox on standard output."""
    click.echo(f"sandbox listening on {url}")


async def serve(
    host: str,
    port: int,
    config: SandboxConfig,
    *,
    on_ready: Callable[[str], None] = announce,
    stop: asyncio.Event | None = None,
) -> None:
    """Serve a new provider until `stop` is set or the coroutine is cancelled.

    Port 0 picks a free one. `on_ready` gets the URL once connections are accepted. Raises `OSError`
    if it cannot listen.
    """
    runner = web.AppRunner(
        create_app(config),
        access_log=None,
        handler_cancellation=False,
        shutdown_timeout=STOP_SECONDS,
    )
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port, backlog=BACKLOG)
        await site.start()
        bound = runner.addresses[0]
        shown = f"[{bound[0]}]" if ":" in bound[0] else bound[0]
        on_ready(f"http://{shown}:{bound[1]}")
        await (stop or asyncio.Event()).wait()
    finally:
        await runner.cleanup()


def run(host: str, port: int, config: SandboxConfig) -> None:
    """Serve in the foreground until SIGTERM or SIGINT."""

    async def until_stopped() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        await serve(host, port, config, stop=stop)

    # The ledger and the log only grow: garbage collections of all of them freed nothing and took 40
    # ms each.
    gc.freeze()
    gc.set_threshold(50_000, 50, 1_000)
    asyncio.run(until_stopped())
