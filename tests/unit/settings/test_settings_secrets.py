"""Secrets from files: the folder of secrets, and the secrets of webhooks."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from tests.unit.settings.loading import SECRET, loaded, message
from worker.model.redaction import without_secrets
from worker.settings import Settings


def test_secret_is_read_from_its_file_and_the_environment_comes_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "refunds_api_key").write_text("sk_test_from_file\n", encoding="utf-8")
    (tmp_path / "refunds_redis_url").write_text(f"redis://:{SECRET}@redis/3\n", encoding="utf-8")
    (tmp_path / "unrelated").write_text("x", encoding="utf-8")
    settings = loaded(monkeypatch, SECRETS_DIR=str(tmp_path))
    assert settings.require_provider() == "sk_test_from_file"
    assert settings.redis_url.get_secret_value() == f"redis://:{SECRET}@redis/3"
    assert loaded(monkeypatch, API_KEY="sk_test_from_env").require_provider() == "sk_test_from_env"


def test_wrong_value_in_a_secret_file_is_named_and_not_echoed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "refunds_redis_url").write_text(f"redis+odd://:{SECRET}@redis", encoding="utf-8")
    text = message(monkeypatch, SECRETS_DIR=str(tmp_path))
    assert "REFUNDS_REDIS_URL: must begin with one of redis://" in text
    assert SECRET not in text


def test_webhook_secrets_are_listed_with_commas_or_one_a_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert loaded(monkeypatch).webhook_keys == ()
    listed = loaded(monkeypatch, WEBHOOK_SECRETS="whsec_one, whsec_two,whsec_one,")
    assert listed.webhook_keys == ("whsec_one", "whsec_two")
    monkeypatch.delenv("REFUNDS_WEBHOOK_SECRETS")
    file = tmp_path / "refunds_webhook_secrets"
    file.write_text("whsec_three\r\n\nwhsec_four\n", encoding="utf-8")
    assert loaded(monkeypatch, SECRETS_DIR=str(tmp_path)).webhook_keys == (
        "whsec_three",
        "whsec_four",
    )


def test_each_webhook_secret_is_redacted(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = loaded(monkeypatch, WEBHOOK_SECRETS="whsec_one_4711,whsec_two_0815")
    assert without_secrets("whsec_two_0815 and whsec_one_4711") == "*** and ***"
    assert "whsec" not in repr(settings)
    assert "whsec" not in settings.model_dump_json()


@pytest.mark.parametrize(
    ("listed", "problem"),
    [
        (f"{SECRET}\n\nx\n", "secret 2 of 2 is shorter than 8 or longer than 200 characters"),
        (f"{SECRET * 11},x", "secret 1 of 2 is shorter than 8 or longer than 200 characters"),
        (
            f"{SECRET},{SECRET} {SECRET}",
            "secret 2 of 2 holds a space or a character that is not printable ASCII",
        ),
        (
            f"sk_test_{SECRET}",
            "secret 1 of 1 is an API key, not the secret of a webhook endpoint",
        ),
        (
            ",".join(f"{SECRET}-{number}" for number in range(5)),
            "names 5 secrets, so remove those of former endpoints",
        ),
        (",", "names no secret"),
    ],
)
def test_wrong_webhook_secrets_are_named_by_their_position(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, listed: str, problem: str
) -> None:
    (tmp_path / "refunds_webhook_secrets").write_text(listed, encoding="utf-8")
    text = message(monkeypatch, SECRETS_DIR=str(tmp_path))
    assert text == (
        f"wrong settings: REFUNDS_WEBHOOK_SECRETS: {problem}: list 1 to 4 secrets of 8 to 200"
        " printable ASCII characters without spaces, separated by commas, or one a line in the file"
        " refunds_webhook_secrets of REFUNDS_SECRETS_DIR"
    )
    assert SECRET not in text


def unreadable(file: Path, trouble: str) -> None:
    match trouble:
        case "is a directory":
            file.mkdir()
        case "is not UTF-8 text":
            file.write_bytes(b"whsec_\xff\xfe_4711")
        case _:
            file.symlink_to(file)


@pytest.mark.parametrize(
    "trouble",
    [
        "is a directory",
        "is not UTF-8 text",
        "cannot be read (Too many levels of symbolic links)",
    ],
)
@pytest.mark.filterwarnings("error")
def test_a_secret_file_that_cannot_be_read_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, trouble: str
) -> None:
    file = tmp_path / "refunds_webhook_secrets"
    unreadable(file, trouble)
    text = message(monkeypatch, SECRETS_DIR=str(tmp_path))
    assert text == (
        f"wrong settings: REFUNDS_WEBHOOK_SECRETS: the file {file} {trouble}: replace it by a file"
        " of UTF-8 text that this user may read, or remove it and set the variable"
    )


def test_a_secret_file_that_is_not_needed_is_not_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("refunds_webhook_secrets", "refunds_api_key"):
        unreadable(tmp_path / name, "is a directory")
    monkeypatch.setenv("REFUNDS_SECRETS_DIR", str(tmp_path))
    monkeypatch.setenv("REFUNDS_WEBHOOK_SECRETS", SECRET)
    settings = Settings.load(api_key=None)
    assert (settings.webhook_keys, settings.api_key) == ((SECRET,), None)


@pytest.mark.parametrize(
    ("rungs", "problem"),
    [
        ("1d,1w", "'1w' is not a number of hours or days such as 12h or 7d"),
        ("1d,,7d", "'' is not a number of hours or days such as 12h or 7d"),
        ("0d", "'0d' is not a number of hours or days such as 12h or 7d"),
        ("1d,7d,168h", "'168h' is not later than '7d' before it"),
        (",".join(f"{day}d" for day in range(1, 12)), "names 11 times"),
        ("1d,401d", "'401d' is after REFUNDS_RETENTION_DAYS (400), when the records are gone"),
    ],
)
def test_a_wrong_rung_is_named_with_its_value(
    monkeypatch: pytest.MonkeyPatch, rungs: str, problem: str
) -> None:
    assert message(monkeypatch, WATCH=rungs) == (
        f"wrong settings: REFUNDS_WATCH: {problem}: name up to 10 ascending times since settling,"
        " in hours or days, such as 1d,7d,30d,60d, or off for no watch"
    )


@pytest.mark.parametrize(
    ("hours", "age"), [("96", timedelta(hours=96)), ("0.5", timedelta(minutes=30)), ("0", None)]
)
def test_webhooks_are_limited_in_age_unless_the_limit_is_zero(
    monkeypatch: pytest.MonkeyPatch, hours: str, age: timedelta | None
) -> None:
    assert loaded(monkeypatch, WEBHOOK_MAX_AGE_HOURS=hours).webhook_max_age == age


@pytest.mark.parametrize("kind", ["missing", "a file"])
def test_secrets_folder_that_is_no_folder_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str
) -> None:
    place = tmp_path / "secrets"
    if kind == "a file":
        place.write_text(SECRET, encoding="utf-8")
    text = message(monkeypatch, SECRETS_DIR=str(place))
    assert "REFUNDS_SECRETS_DIR" in text
    assert SECRET not in text
