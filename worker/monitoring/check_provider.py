"""Checks of the provider: key and address, and whether the key is accepted.

The settings are checked against the latest probe.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Final
from urllib.parse import urlsplit

from worker.errors import GuardRefused, SettingsError
from worker.monitoring.checks import Check, Trouble, fail, ok, warn
from worker.probing import advice as probing_advice
from worker.probing import kept as probing_kept
from worker.probing.kept import KeptAnswers, UnprovenSetting
from worker.probing.questions import TEST_HOST, TEST_KEYS, Verdict
from worker.provider.gateway import Gateway
from worker.provider.transport import build_client
from worker.settings import LEAST_SETTLE_SECONDS, LIVE_HOST, Settings
from worker.store.store import Store

_PATIENCE: Final = timedelta(seconds=10)
_LIVE_KEYS: Final = ("sk_live_", "rk_live_")
_ASK: Final = "refunds probe --payment-intent pi_…"


def key_and_address(settings: Settings) -> Check:
    """Check that the key and the address are set, are allowed, and are both test or both live."""
    name = "key and address"
    try:
        key = settings.require_provider()
    except SettingsError as error:
        return fail(name, str(error), "export REFUNDS_API_KEY=sk_test_…", Trouble.SETTINGS)
    except GuardRefused as error:
        fix = (
            f"export REFUNDS_API_URL=https://{TEST_HOST} with a test key; only to move real money:"
            " REFUNDS_LIVE=true"
        )
        if not settings.is_live:
            fix = "export REFUNDS_API_URL=https://… in place of http://"
        return fail(name, str(error), fix, Trouble.GUARD)
    host = (urlsplit(settings.api_url).hostname or "").rstrip(".")
    if host == LIVE_HOST and key.startswith(TEST_KEYS):
        fix = f"export REFUNDS_API_URL=https://{TEST_HOST}, or use the live key"
        return fail(
            name, f"a test key for the live address {settings.provider_host}", fix, Trouble.SETTINGS
        )
    if key.startswith(_LIVE_KEYS) and host == TEST_HOST:
        fix = f"export REFUNDS_API_KEY=sk_test_…, or REFUNDS_API_URL=https://{LIVE_HOST}"
        return fail(
            name, f"a live key for the test address {settings.provider_host}", fix, Trouble.SETTINGS
        )
    if settings.is_live and host != LIVE_HOST:
        return warn(
            name,
            f"a live key for {settings.provider_host}, which is not the provider's live address",
            f"export REFUNDS_API_URL=https://{LIVE_HOST}, or use a test key",
        )
    if not key.startswith((*TEST_KEYS, *_LIVE_KEYS)):
        text = (
            f"the key for {settings.provider_host} has neither a test nor a live prefix (sk_test_,"
            " sk_live_)"
        )
        return warn(
            name,
            text,
            "copy the secret key again from the provider's dashboard: export REFUNDS_API_KEY=…",
        )
    return ok(name, f"{settings.mode} mode at {settings.provider_host}")


def settling(settings: Settings) -> Iterator[Check]:
    """Report a settle time that only a trial may have.

    With a live key no settings are loaded with it.
    """
    if settings.settle_seconds < LEAST_SETTLE_SECONDS:
        text = (
            f"REFUNDS_SETTLE_SECONDS={settings.settle_seconds:g} is for a trial: a provider that"
            " carries a request out later than that could pay a refund twice"
        )
        yield warn("settle", text, "unset REFUNDS_SETTLE_SECONDS, which is 300 then")


def ask_provider(settings: Settings) -> Check:
    """Check with a GET, which moves no money, that the provider answers and accepts the key."""
    try:
        accepted = asyncio.run(_is_accepted(settings))
    except SettingsError as error:
        # Of the way to the provider: a proxy, or the certificates to trust.
        fix = "correct that variable, or unset it, and restart the workers"
        return fail("provider", str(error), fix, Trouble.SETTINGS)
    host = settings.provider_host
    if accepted is None:
        fix = f"curl -sS -o /dev/null -w '%{{http_code}}' {settings.api_url}/v1/refunds/x"
        return fail(
            "provider", f"no answer from {host} shows whether it accepts the key", fix, Trouble.AWAY
        )
    if not accepted:
        return fail(
            "provider", f"{host} refuses the key", "export REFUNDS_API_KEY=…", Trouble.SETTINGS
        )
    return ok("provider", f"{host} answers and accepts the key; no money was moved")


async def _is_accepted(settings: Settings) -> bool | None:
    async with build_client(settings) as client:
        rules = replace(
            settings.rules, request_timeout=min(settings.rules.request_timeout, _PATIENCE)
        )
        return await Gateway(client, rules).key_is_accepted()


def what_was_probed(settings: Settings, store: Store) -> Iterator[Check]:
    """Compare the settings with the findings of the latest probe; raises `StoreUnavailable`."""
    kept = probing_kept.read(store)
    lacking = list(probing_kept.gaps(settings, kept))
    for gap in lacking:
        yield _lacking(gap, settings)
    if not lacking:
        yield ok("probe", _told(settings, kept))


def _told(settings: Settings, kept: KeptAnswers | None) -> str:
    if kept is None:
        return f"never run, and the settings are the cautious ones; to run it in test mode: {_ASK}"
    when = f"run on {kept.at:%Y-%m-%d} at {kept.host}"
    if not kept.speaks_for(settings):
        return (
            f"{when}, which shows nothing about {settings.provider_host}; the settings are the"
            " cautious ones"
        )
    shown = sum(found.verdict is Verdict.YES for found in kept.findings.values())
    chosen = {settings.idempotency, settings.readback, settings.totals}
    more = [
        f"{advice.variable}={advice.value}"
        for advice in probing_advice.advise(kept.findings)
        if advice.value in {"trust", "list", "proof"} - chosen
    ]
    would = f"; it would allow {', '.join(more)}" if more else ""
    return (
        f"{when}: {shown} of {len(kept.findings)} questions answered yes, and the settings assume"
        f" no more{would}"
    )


def _lacking(gap: UnprovenSetting, settings: Settings) -> Check:
    name = f"probe {gap.setting.removeprefix('REFUNDS_').partition('=')[0].lower()}"
    loud = (
        settings.is_live
        and settings.idempotency == "trust"
        and gap.setting == "REFUNDS_IDEMPOTENCY=trust"
    )
    text = f"REAL MONEY MAY MOVE TWICE: {gap.text}" if loud else gap.text
    cautious = f"export {gap.cautious} and restart the workers"
    if gap.denied and gap.setting != "REFUNDS_READBACK=list":
        return fail(name, text, cautious, Trouble.SETTINGS)
    if gap.denied:
        return warn(name, text, cautious)
    asking = (
        f"REFUNDS_API_KEY=sk_test_… REFUNDS_API_URL=https://{TEST_HOST} {_ASK}"
        if settings.is_live
        else _ASK
    )
    return warn(name, text, f"{asking}; until then {cautious}")
