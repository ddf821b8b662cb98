"""What the doctor says of key, address, and settings that assume more than a probe has shown."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from tests.support.cli_runner import Cli, Records
from tests.unit.monitoring.examining import examined
from worker.monitoring.check_provider import key_and_address, what_was_probed
from worker.probing import kept
from worker.probing.questions import Finding, Order, Question, Verdict
from worker.probing.report import Report
from worker.sandbox.running import Sandbox
from worker.settings import Settings

LIVE = {"api_key": "sk_live_x", "live": True, "api_url": "https://api.wooshpay.com"}
BOLD = {"REFUNDS_IDEMPOTENCY": "trust", "REFUNDS_TOTALS": "proof", "REFUNDS_READBACK": "list"}
ALL = dict.fromkeys(Question, Verdict.YES)


def keep(records: Records, host: str, verdicts: dict[Question, Verdict]) -> None:
    """Keep answers as a probe of that host would have."""
    report = Report(
        order=Order.new("pi_1", 1),
        host=host,
        posts=3,
        refunds=("re_1",),
        spent=1,
        uncertain=0,
        currency="usd",
        findings={
            name: Finding(verdict=verdict, evidence=f"seen: {verdict}")
            for name, verdict in verdicts.items()
        },
        problem=None,
    )
    kept.keep(records.store, report, datetime(2026, 1, 31, tzinfo=UTC))


def host_of(sandbox: Sandbox) -> str:
    return sandbox.url.removeprefix("http://")


@pytest.mark.parametrize(
    ("settings", "state", "words"),
    [
        ({"api_key": "sk_test_x"}, "ok", "test mode at apitest.wooshpay.com"),
        (LIVE, "ok", "live mode at api.wooshpay.com"),
        ({**LIVE, "api_key": "sk_test_x"}, "fail", "a test key for the live address"),
        (
            {**LIVE, "api_url": "https://apitest.wooshpay.com"},
            "fail",
            "a live key for the test address",
        ),
        ({**LIVE, "api_url": "https://proxy.example"}, "warn", "not the provider's live address"),
        ({"api_key": "plain"}, "warn", "neither a test nor a live prefix"),
        ({**LIVE, "live": False}, "fail", "moves real money"),
    ],
)
def test_key_and_address_are_of_one_kind(
    settings: dict[str, object], state: str, words: str
) -> None:
    check = key_and_address(Settings.load(**settings))
    assert (check.state.value, words in check.text, "_x" in check.text) == (state, True, False)


@pytest.mark.parametrize(("seconds", "warned"), [("4.9", True), ("5", False), ("300", False)])
def test_a_settle_time_for_a_trial_is_a_warning(doctor: Cli, *, seconds: str, warned: bool) -> None:
    said = examined(doctor, REFUNDS_SETTLE_SECONDS=seconds)
    assert said.code == 0
    assert ("settle" in said.checks) is warned
    if warned:
        state, text, fix = said.of("settle")
        assert (state, "REFUNDS_SETTLE_SECONDS=4.9 is for a trial" in text) == ("warn", True)
        assert fix.startswith("unset REFUNDS_SETTLE_SECONDS")


def test_cautious_settings_need_no_probe(doctor: Cli) -> None:
    state, text, _ = examined(doctor).of("probe")
    assert (state, "never run" in text) == ("ok", True)


def test_bold_settings_without_a_probe_are_warned_of(doctor: Cli) -> None:
    said = examined(doctor, **BOLD)
    assert said.code == 0
    for name, cautious in (("idempotency", "verify"), ("totals", "hint"), ("readback", "totals")):
        state, text, fix = said.of(f"probe {name}")
        assert (state, "no probe has shown" in text, f"={cautious} and restart" in fix) == (
            "warn",
            True,
            True,
        )
        assert fix.startswith("refunds probe --payment-intent")


def test_bold_settings_that_a_probe_supports_are_sound(
    doctor: Cli, records: Records, health_sandbox: Sandbox
) -> None:
    keep(records, host_of(health_sandbox), ALL)
    state, text, _ = examined(doctor, **BOLD).of("probe")
    assert (state, "7 of 7 questions answered yes" in text, "would allow" in text) == (
        "ok",
        True,
        False,
    )
    text = examined(doctor).of("probe")[1]
    assert text.endswith(
        "it would allow REFUNDS_IDEMPOTENCY=trust, REFUNDS_READBACK=list, REFUNDS_TOTALS=proof"
    )


def test_settings_that_a_probe_contradicts_are_a_failure(
    doctor: Cli, records: Records, health_sandbox: Sandbox
) -> None:
    keep(records, host_of(health_sandbox), dict.fromkeys(Question, Verdict.NO))
    said = examined(doctor, **BOLD)
    assert said.code == 2
    assert said.of("probe idempotency")[0] == "fail"
    assert said.of("probe totals")[0] == "fail"
    # A list that is not there moves nothing twice: a person decides.
    assert said.of("probe readback")[0] == "warn"
    assert (
        said.of("probe idempotency")[2]
        == "export REFUNDS_IDEMPOTENCY=verify and restart the workers"
    )


def test_a_probe_of_another_provider_shows_nothing(doctor: Cli, records: Records) -> None:
    keep(records, "elsewhere.example", ALL)
    said = examined(doctor, **BOLD)
    assert said.of("probe idempotency")[0] == "warn"
    assert "shows nothing about" in examined(doctor).of("probe")[1]


def test_live_trust_needs_a_probe_of_the_test_system(records: Records) -> None:
    settings = Settings.load(**LIVE, idempotency="trust")
    (loud,) = what_was_probed(settings, records.store)
    assert (loud.state.value, loud.text.startswith("REAL MONEY MAY MOVE TWICE")) == ("warn", True)
    assert "REFUNDS_API_URL=https://apitest.wooshpay.com refunds probe" in (loud.fix or "")
    keep(records, "127.0.0.1:8080", ALL)
    assert next(what_was_probed(settings, records.store)).state.value == "warn"
    keep(records, "apitest.wooshpay.com", ALL)
    assert [check.state.value for check in what_was_probed(settings, records.store)] == ["ok"]
    assert kept.live_warning(settings, kept.read(records.store)) is None


def test_the_doctor_moves_and_writes_nothing(
    doctor: Cli, records: Records, health_sandbox: Sandbox
) -> None:
    records.queued("order-1")
    before = sorted(records.store.redis.scan_iter("refunds:*"))
    examined(doctor, **BOLD)
    assert sorted(records.store.redis.scan_iter("refunds:*")) == before
    assert health_sandbox.ledger() == []


@pytest.mark.parametrize(
    ("variable", "value"),
    [("SSL_CERT_FILE", "/missing/roots.pem"), ("HTTPS_PROXY", "http://proxy:port")],
)
def test_a_way_to_the_provider_that_cannot_be_used_is_a_failure_among_the_others(
    doctor: Cli, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    said = examined(doctor, REFUNDS_API_URL="https://provider.invalid")
    state, text, _ = said.of("provider")
    assert (said.code, state) == (2, "fail")
    assert variable in text
    assert "queue refunds" in said.checks
