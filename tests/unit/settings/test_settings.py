"""The environment: each variable, its default, and each wrong value named without its secret."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tests.unit.settings.loading import SECRET, loaded, message
from worker.errors import SettingsError
from worker.settings import Settings, lists


def test_defaults_are_the_contracts() -> None:
    settings = Settings.load()
    assert settings.broker == "redis://127.0.0.1:6379/0"
    assert settings.api_url == "https://apitest.wooshpay.com"
    assert settings.api_key is None
    assert (settings.live, settings.allow_http, settings.mode) == (False, False, "test")
    assert (settings.idempotency, settings.readback, settings.totals) == (
        "verify",
        "totals",
        "hint",
    )
    assert (settings.durability, settings.prefix, settings.log_level, settings.log_format) == (
        "disk",
        "refunds:",
        "info",
        None,
    )
    assert (settings.concurrency, settings.rate_limit, settings.bulk_share) == (64, 0, 0.7)
    assert (settings.retention_days, settings.max_attempts, settings.max_age_hours) == (400, 12, 72)
    rules = settings.rules
    assert (rules.settle, rules.key_window, rules.lease) == (
        timedelta(seconds=300),
        timedelta(hours=23),
        timedelta(seconds=45),
    )
    assert (rules.request_timeout, rules.totals_proof, rules.first_look) == (
        timedelta(seconds=20),
        False,
        False,
    )
    assert settings.lease_spare == timedelta(seconds=23)


def test_rules_follow_the_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = loaded(
        monkeypatch,
        IDEMPOTENCY="trust",
        READBACK="list",
        FIRST_LOOK="true",
        TOTALS="proof",
        SETTLE_SECONDS="1.5",
        KEY_WINDOW_HOURS="0.5",
        REQUEST_TIMEOUT_SECONDS="2",
        LEASE_SECONDS="7",
        MAX_ATTEMPTS="3",
        MAX_AGE_HOURS="1",
    )
    rules = settings.rules
    assert (rules.idempotency, rules.readback, rules.totals_proof) == ("trust", "list", True)
    assert (rules.settle, rules.key_window) == (timedelta(seconds=1.5), timedelta(minutes=30))
    assert (rules.request_timeout, rules.lease, rules.max_attempts) == (
        timedelta(seconds=2),
        timedelta(seconds=7),
        3,
    )
    assert (rules.max_age, rules.first_look) == (timedelta(hours=1), True)


@pytest.mark.parametrize(
    ("idempotency", "readback", "wanted"),
    [
        ("verify", "totals", True),
        ("verify", "list", False),
        ("verify", "none", False),
        ("trust", "totals", False),
    ],
)
def test_totals_are_read_before_the_first_send_only_where_they_will_be_compared(
    monkeypatch: pytest.MonkeyPatch,
    idempotency: str,
    readback: str,
    wanted: bool,  # noqa: FBT001 - a table's column
) -> None:
    assert (
        loaded(monkeypatch, IDEMPOTENCY=idempotency, READBACK=readback).rules.wants_baseline
        is wanted
    )


WRONG = [
    ("REDIS_URL", f"http://:{SECRET}@redis"),
    ("REDIS_URL", SECRET),
    ("REDIS_URL", f"amqp://:{SECRET}@rabbit"),
    ("REDIS_URL", f"redis://:p[{SECRET}]s@redis/0"),
    ("REDIS_URL", f"redis://user:sec/{SECRET}@redis/0"),
    ("REDIS_URL", f"redis://:{SECRET}@redis:66000/0"),
    ("REDIS_URL", f"redis://:{SECRET}@redis/first"),
    ("REDIS_URL", f"rediss://:{SECRET}@redis/-1"),
    ("REDIS_URL", f"redis://:{SECRET}@re..dis/0"),
    ("REDIS_URL", "unix://"),
    ("BROKER_URL", f"redis://:{SECRET}@redis/first"),
    ("BROKER_URL", f"amqp://user:p[{SECRET}@rabbit"),
    ("BROKER_URL", f"sqs://:{SECRET}@queue"),
    ("API_URL", SECRET),
    ("API_URL", "ftp://provider.test"),
    ("API_URL", "https://"),
    ("API_URL", "https://provider.test:99999"),
    ("API_URL", "https://provider.test:0"),
    ("API_URL", "https://[provider"),
    ("API_URL", f"https://user:{SECRET}@provider.test"),
    ("API_URL", f"https://provider.test/?key={SECRET}"),
    ("API_URL", f"https://provider.test/#{SECRET}"),
    # The HTTP client would call the live host, which no guard has read.
    ("API_URL", "https://api\uff0ewooshpay.com"),
    ("API_URL", "https://api.wooshpay.com "),
    ("API_URL", "https://api%2ewooshpay.com"),
    ("API_URL", "https://provider.test/a b"),
    ("API_URL", "https://pro\tvider.test"),
    ("API_URL", "https://\uff50rovider.test"),
    *(
        (name, value)
        for name in ("LIVE", "ALLOW_HTTP", "FIRST_LOOK")
        for value in ("maybe", "2", "1", "yes", "on", "t", "0", "off")
    ),
    ("IDEMPOTENCY", "hope"),
    ("READBACK", "all"),
    ("TOTALS", "maybe"),
    ("DURABILITY", "ram"),
    ("KEY_WINDOW_HOURS", "0"),
    ("KEY_WINDOW_HOURS", "1e-9"),
    ("SETTLE_SECONDS", "-1"),
    ("SETTLE_SECONDS", "0"),
    ("SETTLE_SECONDS", "0.0000001"),
    ("SETTLE_SECONDS", "nan"),
    ("REQUEST_TIMEOUT_SECONDS", "0"),
    ("REQUEST_TIMEOUT_SECONDS", "1e-9"),
    ("REQUEST_TIMEOUT_SECONDS", "soon"),
    ("MAX_ATTEMPTS", "0"),
    ("MAX_ATTEMPTS", "1.5"),
    ("MAX_AGE_HOURS", "0"),
    ("MAX_AGE_HOURS", "1e-9"),
    ("CONCURRENCY", "0"),
    ("CONCURRENCY", "many"),
    ("RATE_LIMIT", "-1"),
    ("RATE_LIMIT", "inf"),
    ("RATE_LIMIT", "1e-9"),
    ("REPLICAS", "-1"),
    ("REPLICAS", "10"),
    ("REPLICAS", "1.5"),
    ("BULK_SHARE", "0"),
    ("BULK_SHARE", "1e-9"),
    ("WATCH_SHARE", "1e-9"),
    ("BULK_SHARE", "1.1"),
    ("LEASE_SECONDS", "0"),
    ("LEASE_SECONDS", "24"),
    ("RETENTION_DAYS", "0"),
    ("METADATA_DAYS", "0"),
    ("METADATA_DAYS", "-1"),
    ("METADATA_DAYS", "1e-9"),
    ("METADATA_DAYS", "0.9"),
    ("METADATA_DAYS", "400.5"),
    ("METADATA_DAYS", "never"),
    ("PREFIX", "a b"),
    ("PREFIX", "refunds*"),
    ("LOG_FORMAT", "xml"),
    ("LOG_LEVEL", "loud"),
    ("MAX_AMOUNT", "0"),
    ("MAX_AMOUNT", "1e3"),
    ("WEBHOOK_SECRETS", ","),
    ("WEBHOOK_SECRETS", "short"),
    ("WEBHOOK_SECRETS", f"{SECRET} {SECRET}"),
    ("WEBHOOK_SECRETS", f"{SECRET}\N{EURO SIGN}"),
    ("WEBHOOK_SECRETS", ",".join(f"{SECRET}-{number}" for number in range(5))),
    ("WEBHOOK_SECRETS", SECRET * 11),
    ("WEBHOOK_MAX_AGE_HOURS", "-1"),
    ("WEBHOOK_MAX_AGE_HOURS", "nan"),
    ("WEBHOOK_MAX_AGE_HOURS", "1e-9"),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_wrong_value_is_named_and_not_echoed(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    text = message(monkeypatch, **{name: value})
    assert text.startswith(f"wrong settings: REFUNDS_{name}: ")
    assert "\n" not in text
    assert SECRET not in text


def test_every_wrong_variable_is_named_in_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {
        "REDIS_URL": f"x://:{SECRET}@y",
        "BROKER_URL": f"x://:{SECRET}@y",
        "READBACK": "x",
        "MAX_ATTEMPTS": "x",
        "LIVE": "x",
        "LEASE_SECONDS": "3",
    }
    text = message(monkeypatch, API_KEY=f"sk_test_{SECRET}", **wrong)
    assert all(f"REFUNDS_{name}: " in text for name in wrong)
    assert SECRET not in text


@pytest.mark.parametrize(
    "live",
    [{"API_KEY": f"sk_live_{SECRET}"}, {"API_KEY": SECRET, "API_URL": "https://api.wooshpay.com"}],
)
def test_real_money_needs_five_seconds_to_settle(
    monkeypatch: pytest.MonkeyPatch, live: dict[str, str]
) -> None:
    text = message(monkeypatch, SETTLE_SECONDS="4.9", **live)
    assert text.startswith(
        "wrong settings: REFUNDS_SETTLE_SECONDS: must be at least 5 where real money moves"
    )
    assert SECRET not in text
    assert loaded(monkeypatch, SETTLE_SECONDS="5", **live).settle_seconds == 5
    assert (
        loaded(monkeypatch, SETTLE_SECONDS="0.2", API_KEY="sk_test_x", API_URL="").settle_seconds
        == 0.2
    )


def test_lease_must_outlive_a_call_by_five_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    assert loaded(monkeypatch, LEASE_SECONDS="25").rules.lease == timedelta(seconds=25)
    text = message(monkeypatch, LEASE_SECONDS="24.9")
    assert "REFUNDS_LEASE_SECONDS" in text
    assert "REFUNDS_REQUEST_TIMEOUT_SECONDS" in text


@pytest.mark.parametrize("readback", ["totals", "none", None])
def test_first_look_needs_a_list(monkeypatch: pytest.MonkeyPatch, readback: str | None) -> None:
    others = {} if readback is None else {"READBACK": readback}
    text = message(monkeypatch, FIRST_LOOK="true", **others)
    assert text.startswith(
        "wrong settings: REFUNDS_FIRST_LOOK: may be true only with REFUNDS_READBACK=list"
    )
    assert not loaded(monkeypatch, FIRST_LOOK="false", **others).first_look


def test_first_look_says_nothing_of_a_readback_that_is_wrong_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = message(monkeypatch, FIRST_LOOK="true", READBACK="all")
    assert ("REFUNDS_READBACK: " in text, "REFUNDS_FIRST_LOOK" in text) == (True, False)


def test_records_outlive_the_key_window_by_sixty_days(monkeypatch: pytest.MonkeyPatch) -> None:
    # A repeat in doubt may ask for its record for so long; one that is forgotten would be sent as
    # new.
    assert loaded(monkeypatch, RETENTION_DAYS="61", KEY_WINDOW_HOURS="24").retention_days == 61
    for retention, window in (("60.9", "24"), ("60", "1"), ("89", "720"), ("1", "23")):
        with pytest.raises(
            SettingsError, match=r"REFUNDS_RETENTION_DAYS: .*REFUNDS_KEY_WINDOW_HOURS plus 60 days"
        ):
            loaded(monkeypatch, RETENTION_DAYS=retention, KEY_WINDOW_HOURS=window)


def test_metadata_are_kept_at_most_as_long_as_the_record(monkeypatch: pytest.MonkeyPatch) -> None:
    assert loaded(monkeypatch).metadata_days is None
    assert loaded(monkeypatch, METADATA_DAYS="1").metadata_days == 1
    assert loaded(monkeypatch, METADATA_DAYS="90", RETENTION_DAYS="90").metadata_days == 90
    with pytest.raises(
        SettingsError,
        match=r"REFUNDS_METADATA_DAYS: must be at most REFUNDS_RETENTION_DAYS, which is 90 now",
    ):
        loaded(monkeypatch, METADATA_DAYS="91", RETENTION_DAYS="90")


def test_lease_left_at_its_default_must_outlive_a_longer_call_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert "REFUNDS_LEASE_SECONDS" in message(monkeypatch, REQUEST_TIMEOUT_SECONDS="41")


def test_empty_variable_is_an_unset_one_and_case_of_a_word_does_not_matter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = loaded(
        monkeypatch, LEASE_SECONDS="", READBACK="LIST", LOG_LEVEL="Warning", LIVE="TRUE"
    )
    assert not loaded(monkeypatch, LIVE="False").live
    assert (settings.lease_seconds, settings.readback, settings.log_level, settings.live) == (
        45,
        "list",
        "warning",
        True,
    )


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("CONCURRENCY", "x", "must be a whole number in digits, such as 5"),
        ("CONCURRENCY", "1.5", "must be a whole number in digits, such as 5"),
        ("CONCURRENCY", "0", "must be at least 1"),
        ("REPLICAS", "12", "must be at most 9"),
        ("MAX_AMOUNT", "0", "must be more than 0"),
        ("RATE_LIMIT", "x", "must be a number, such as 5 or 0.5"),
        ("RATE_LIMIT", "nan", "must be at most 100000"),
        ("READBACK", "lists", "must be 'list', 'totals' or 'none'"),
        ("ACTOR", "x" * 101, "must have at most 100 characters"),
        ("PREFIX", "a b", "must be 1 to 64 of A-Z a-z 0-9 _ : . { } -"),
        ("HTTP_USER_HEADER", "X User", "must be a header's name: a letter, then up to 99 of"),
    ],
)
def test_what_is_allowed_is_said_in_plain_words(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, says: str
) -> None:
    assert f"REFUNDS_{name}: {says}" in message(monkeypatch, **{name: value})


@pytest.mark.parametrize("path", ["/v1", "/v1/", "/wooshpay/v1"])
def test_the_address_does_not_hold_what_each_call_adds(
    monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    said = message(monkeypatch, API_URL=f"https://apitest.wooshpay.com{path}")
    assert "REFUNDS_API_URL: must not end with /v1, which each call adds" in said
    assert loaded(monkeypatch, API_URL="https://proxy/v1/wooshpay/").api_url.endswith("/wooshpay")


def test_broker_is_the_records_server_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert loaded(monkeypatch, REDIS_URL="rediss://redis:6380/2").broker == "rediss://redis:6380/2"
    assert loaded(monkeypatch, BROKER_URL="amqp://rabbit//").broker == "amqp://rabbit//"


@pytest.mark.parametrize(
    "variables",
    [
        {"REDIS_URL": f"redis://user:a%2Fb%5B{SECRET}@redis:6379/0"},
        {"REDIS_URL": "unix:///run/redis.sock?db=1"},
        {"REDIS_URL": f"sentinel://:{SECRET}@one:26379,two:26379/0?master=refunds"},
        {"BROKER_URL": "amqp://guest@one:5672//;amqp://guest@two:5672//"},
        {"BROKER_URL": "sentinel://one:26379;sentinel://two:26379"},
    ],
    ids=["encoded password", "socket", "sentinels", "rabbits", "celery's sentinels"],
)
def test_address_of_every_kind_that_can_be_taken_apart_is_accepted(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    settings = loaded(monkeypatch, **variables)
    given = settings.redis_url if "REDIS_URL" in variables else settings.broker_url
    assert given is not None
    assert [given.get_secret_value()] == list(variables.values())


def test_settings_are_frozen_and_show_no_secret_when_printed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = loaded(
        monkeypatch, API_KEY=f"sk_test_{SECRET}", REDIS_URL=f"redis://:{SECRET}@redis/0"
    )
    assert SECRET not in repr(settings)
    assert SECRET not in settings.model_dump_json()
    with pytest.raises(ValueError, match="frozen"):
        settings.live = True


def test_argument_comes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFUNDS_CONCURRENCY", "5")
    assert Settings.load(concurrency=7).concurrency == 7
    with pytest.raises(SettingsError, match="REFUNDS_CONCURRENCY: "):
        Settings.load(concurrency=0)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("HTTP_PROXIES", "10.0.0.7, proxy.internal", "'proxy.internal' is not an address"),
        ("HTTP_PROXIES", "10.0.0.1/24", "'10.0.0.1/24' is not an address"),
        ("HTTP_PROXIES", "0.0.0.0/0", "holds every address"),
        ("HTTP_PROXIES", "::/0", "holds every address"),
        ("HTTP_OPERATORS", "ann, bob smith", "'bob smith' is not 1 to 100 of"),
        ("HTTP_USER_HEADER", "X User", "REFUNDS_HTTP_USER_HEADER"),
    ],
)
def test_who_may_sign_people_in_is_stated_exactly(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, says: str
) -> None:
    assert says in message(monkeypatch, **{name: value})


def test_networks_and_names_are_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = loaded(monkeypatch, HTTP_PROXIES="10.0.0.7,fd00::/8", HTTP_OPERATORS="ann, bob")
    networks = lists.networks_in(settings.http_proxies or "")
    assert [str(network) for network in networks] == ["10.0.0.7/32", "fd00::/8"]
    assert lists.names_in(settings.http_operators or "") == {"ann", "bob"}
