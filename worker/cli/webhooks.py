"""`refunds webhooks setup` registers the webhook endpoint at the provider, once."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import click

from worker.cli import render
from worker.cli.exits import DONE
from worker.cli.session import act, note, opened
from worker.errors import GuardRefused, ProviderMismatch, SettingsError
from worker.model.redaction import remember_key
from worker.model.signatures import PATH
from worker.settings import ENV_PREFIX, Settings, is_loopback
from worker.settings.lists import MOST_SECRETS
from worker.store import flags
from worker.store.store import Store

SECRET_FILE: Final = "refunds_webhook_secrets"  # noqa: S105 - a file's name
"""Name of the file in REFUNDS_SECRETS_DIR: one secret a line."""
_LONGEST_URL: Final = 2000
_VARIABLE: Final = f"{ENV_PREFIX}WEBHOOK_SECRETS"


@click.group()
def webhooks() -> None:
    """Register the webhook endpoint that 'refunds serve' answers."""


@webhooks.command(
    short_help="Register the endpoint, and show its secret once.",
    epilog="""\b
Examples:
  refunds webhooks setup https://refunds.example.com/webhooks/wooshpay --write
  refunds webhooks setup https://refunds.example.com/webhooks/wooshpay

\b
Exit code: 2 wrong settings, or the API key is refused; 3 the provider refuses
the URL; 5 the provider or Redis is unavailable; 6 the URL is registered
already, or the key is live without REFUNDS_LIVE=true.""",
)
@click.argument("url", metavar="URL")
@click.option(
    "--write",
    is_flag=True,
    help="Add the secret to the file refunds_webhook_secrets of REFUNDS_SECRETS_DIR.",
)
@click.option(
    "--again", is_flag=True, help="Register a URL again; each event is then sent twice to it."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def setup(*, url: str, write: bool, again: bool, as_json: bool) -> int:
    """Register URL at the provider for the events of refunds, and show its secret once.

    URL is where the provider reaches 'refunds serve' from outside: its path ends with
    /webhooks/wooshpay.
    """
    settings = Settings.load()
    settings.require_provider()
    _check_url(settings, url)
    file = _writable(settings) if write else None
    with opened(settings) as refunds:
        _require_own(settings, refunds.store)
        known = flags.webhook_endpoints(refunds.store)
        if url in known and not again:
            raise GuardRefused(
                f"{url} is registered already, as {known[url]}, and nothing was registered now: a"
                " URL that is registered twice receives each event twice; add --again if the first"
                " one was deleted at the provider"
            )
        # Only commands that call the provider need its client, so that the others start without it.
        from worker.provider import webhook_endpoints  # noqa: PLC0415 - see above

        made = act(
            refunds,
            "webhooks setup",
            url,
            lambda: asyncio.run(webhook_endpoints.register(settings, url)),
        )
        if made.secret is not None:
            remember_key(made.secret)
        shown: dict[str, Any] = {"url": url, "endpoint_id": made.endpoint_id}
        shown |= _kept(file, made.secret)
        # The secret first: it is shown only now, and the rest can be seen at the provider.
        _show(shown, as_json=as_json)
        flags.keep_webhook_endpoint(refunds.store, url, made.endpoint_id)
    _receipt(shown)
    return DONE


def _check_url(settings: Settings, url: str) -> None:
    try:
        parts = urlsplit(url)
        plain = parts.port is None or parts.port > 0
    except ValueError:
        plain = False
    if not (plain and url.isascii() and url.isprintable() and " " not in url):
        raise click.BadParameter("must be an https:// address", param_hint="URL")
    if parts.scheme not in {"http", "https"} or not parts.hostname or len(url) > _LONGEST_URL:
        raise click.BadParameter(
            f"must be an https:// address of at most {_LONGEST_URL} characters", param_hint="URL"
        )
    if not parts.path.endswith(PATH):
        raise click.BadParameter(
            f"must end with the path {PATH}, where 'refunds serve' receives events",
            param_hint="URL",
        )
    if parts.username or parts.password or parts.fragment or parts.query:
        raise click.BadParameter(
            "must not hold credentials, a query or a fragment", param_hint="URL"
        )
    if parts.scheme == "http" and not settings.allow_http and not is_loopback(parts.hostname):
        raise click.BadParameter(
            "is plain http, which shows each event to the network: use https, or set"
            " REFUNDS_ALLOW_HTTP=true if the network is trusted",
            param_hint="URL",
        )


def _require_own(settings: Settings, store: Store) -> None:
    pinned = flags.read(store)
    ours = (settings.provider_host, settings.mode)
    if pinned.provider_host is not None and (pinned.provider_host, pinned.mode) != ours:
        raise ProviderMismatch(
            f"these records belong to {pinned.provider_host} in {pinned.mode} mode, but the"
            f" settings say {ours[0]} in {ours[1]} mode: use another REFUNDS_PREFIX or database;"
            " nothing was registered"
        )


def _writable(settings: Settings) -> Path:
    """Return the secret file; refuse before anything is registered if it cannot take one more."""
    if settings.secrets_dir is None:
        raise SettingsError(
            "REFUNDS_SECRETS_DIR is not set, so --write has no folder: set it, or leave out --write"
        )
    file = settings.secrets_dir / SECRET_FILE
    if os.environ.get(_VARIABLE):
        raise SettingsError(
            f"{_VARIABLE} is set and hides the file {file}: unset it, or leave out --write"
        )
    if not os.access(settings.secrets_dir, os.W_OK):
        raise SettingsError(
            f"REFUNDS_SECRETS_DIR {settings.secrets_dir} cannot be written: change its owner or its"
            " mode, or leave out --write"
        )
    if len(settings.webhook_keys) >= MOST_SECRETS:
        raise GuardRefused(
            f"{file} holds {MOST_SECRETS} secrets, the most that are allowed: remove the"
            " lines of endpoints that no longer exist; nothing was registered"
        )
    return file


def _kept(file: Path | None, secret: str | None) -> dict[str, Any]:
    """Return where the secret is: in the file, or in the output."""
    if file is not None and secret is not None:
        try:
            return {"secret_file": str(_written(file, secret))}
        except OSError as error:
            # The provider does not show it again.
            note(f"error: {file} cannot be written ({error.strerror}), so the secret is shown")
    return {"secret": secret}


def _written(file: Path, secret: str) -> Path:
    """Add a secret to the file, readable by its owner only; the old ones stay valid."""
    kept = file.read_text("utf-8").splitlines() if file.exists() else []
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as written:
        written.writelines(f"{line}\n" for line in [*kept, secret])
        written.flush()
        os.fsync(written.fileno())
    # In one step, so that no process reads half of it.
    beside.replace(file)
    return file


def _show(shown: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        render.as_json(shown)
    elif shown.get("secret"):
        click.echo(shown["secret"])


def _receipt(shown: dict[str, Any]) -> None:
    note(f"registered {shown['url']} as {shown['endpoint_id']}")
    if "secret_file" in shown:
        note(f"its secret is in {shown['secret_file']}: restart 'refunds serve' to use it")
    elif shown["secret"]:
        note(
            f"its secret is shown above, only now: put it in {_VARIABLE} or in the file"
            f" {SECRET_FILE} of REFUNDS_SECRETS_DIR, and start 'refunds serve'"
        )
    else:
        note(
            "the reply shows no secret: copy it from the provider's dashboard into"
            f" {_VARIABLE}, and start 'refunds serve'"
        )
