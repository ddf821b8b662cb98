"""`refunds serve` runs the HTTP server: the API, the operator's page, the receiver of webhooks."""

from __future__ import annotations

import asyncio
import os
import ssl
from pathlib import Path
from typing import Final

import click

from worker.cli.exits import DONE
from worker.cli.session import note
from worker.errors import GuardRefused, SettingsError
from worker.process import collector, logs
from worker.settings import ENV_PREFIX, Settings, is_loopback
from worker.wording.listening import cannot_listen
from worker.wording.ranges import Whole

PARTS: Final = ("api", "page", "webhooks")
_KEY: Final = f"{ENV_PREFIX}API_KEY"


def _parts(
    _ctx: click.Context, _parameter: click.Parameter, text: str | None
) -> tuple[str, ...] | None:
    if text is None:
        return None
    names = [name.strip() for name in text.split(",")]
    if wrong := [name for name in names if name not in PARTS]:
        raise click.BadParameter(f"{wrong[0]!r} is not one of {', '.join(PARTS)}")
    return tuple(dict.fromkeys(names))


@click.command(
    epilog="""\b
Examples:
  refunds serve
  refunds serve --parts webhooks
  refunds serve --parts api,page
  refunds serve --port 8443 --tls-cert cert.pem --tls-key key.pem

\b
Exit code: 0 after SIGTERM or Ctrl-C; 2 wrong settings, or the port is in use;
5 Redis is unavailable; 6 a guard refused."""
)
@click.option(
    "--host",
    metavar="HOST",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on; beyond this machine only with TLS or REFUNDS_ALLOW_HTTP=true.",
)
@click.option(
    "--port",
    metavar="PORT",
    default=8080,
    show_default=True,
    type=Whole(0, 65535),
    help="Port; 0 picks a free one.",
)
@click.option(
    "--parts",
    metavar="NAMES",
    callback=_parts,
    help=(
        f"Parts to serve, comma-separated: {', '.join(PARTS)}. If omitted, api, and webhooks if"
        " REFUNDS_WEBHOOK_SECRETS is set."
    ),
)
@click.option("--tls-cert", metavar="FILE", help="Certificate chain in PEM; needs --tls-key.")
@click.option("--tls-key", metavar="FILE", help="Private key in PEM; needs --tls-cert.")
def serve(
    *,
    host: str,
    port: int,
    parts: tuple[str, ...] | None,
    tls_cert: str | None,
    tls_key: str | None,
) -> int:
    """Serve the API of refunds under /v1, as /openapi.json describes it.

    Callers need a token: see 'refunds tokens create'. The part page is the
    operator's page, at /page. The part webhooks receives the provider's events
    at POST /webhooks/wooshpay, and needs the secret of the webhook endpoint. No
    part needs the API key. /health and
    /ready are for a proxy. On SIGTERM or Ctrl-C, /ready answers 503 for five
    seconds, and then the server ends.
    """
    # This process is public: what it does not hold, it cannot lose.
    os.environ.pop(_KEY, None)
    settings = Settings.load(api_key=None)
    if parts is None:
        parts = ("api", "webhooks") if settings.webhook_keys else ("api",)
    if "webhooks" in parts and not settings.webhook_keys:
        raise SettingsError(_no_secret(settings))
    tls = _tls(tls_cert, tls_key)
    _require_private(settings, host, tls)
    if "api" in parts:
        _require_tokens(settings, host)
    if "page" in parts and settings.http_auth == "off":
        raise GuardRefused(
            "the page asks each person for a token, and REFUNDS_HTTP_AUTH is off: unset it, or"
            " leave the part page out"
        )
    if "page" in parts and settings.http_user_header and not settings.http_proxies:
        note(
            "warning: REFUNDS_HTTP_USER_HEADER is ignored, because REFUNDS_HTTP_PROXIES names no"
            " proxy that may send it"
        )
    from worker.http.running import run  # noqa: PLC0415 - no other command needs aiohttp

    logs.configure(settings)
    logs.log_crashes()
    collector.settle_down()
    try:
        asyncio.run(run(settings, parts=parts, host=host, port=port, tls=tls, say=note))
    except OSError as error:
        raise click.ClickException(cannot_listen(host, port, error)) from None
    return DONE


def _no_secret(settings: Settings) -> str:
    folder = settings.secrets_dir or "REFUNDS_SECRETS_DIR"
    return (
        "REFUNDS_WEBHOOK_SECRETS is not set, so every webhook would be refused: export it, or put"
        f" the endpoint's secret in the file {folder}/refunds_webhook_secrets; 'refunds webhooks"
        " setup URL --write' does that"
    )


def _tls(cert: str | None, key: str | None) -> ssl.SSLContext | None:
    if cert is None and key is None:
        return None
    if cert is None or key is None:
        missing = "--tls-key" if key is None else "--tls-cert"
        raise click.UsageError(f"--tls-cert and --tls-key belong together: add {missing}")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        # A key with a passphrase is refused here; without this, OpenSSL would ask on the terminal.
        context.load_cert_chain(Path(cert), Path(key), password=lambda: "")
    except (OSError, ValueError) as error:
        # OpenSSL's own words name a line of its source.
        reason = "they are not a certificate and its key"
        if isinstance(error, OSError) and not isinstance(error, ssl.SSLError):
            reason = error.strerror or str(error)
        raise click.UsageError(
            f"--tls-cert {cert} and --tls-key {key} cannot be used ({reason}): name a certificate"
            " in PEM and its private key without a passphrase"
        ) from None
    return context


def _require_tokens(settings: Settings, host: str) -> None:
    if settings.http_auth == "off" and not is_loopback(host):
        raise GuardRefused(
            f"--host {host} would let other machines send refunds without a token: unset"
            " REFUNDS_HTTP_AUTH, or listen on 127.0.0.1"
        )


def _require_private(settings: Settings, host: str, tls: ssl.SSLContext | None) -> None:
    if tls is None and not settings.allow_http and not is_loopback(host):
        raise GuardRefused(
            f"--host {host} would receive plain http from other machines: add --tls-cert and"
            " --tls-key, or set REFUNDS_ALLOW_HTTP=true if a proxy in front of it ends TLS"
        )
