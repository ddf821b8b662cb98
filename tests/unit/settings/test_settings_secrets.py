"""Secrets from files: the folder of secrets, and the secrets of webhooks."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from tests.unit.settings.loading import SECRET, loaded, message
from worker.model.redaction import without_secrets


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


def test_wrong_webhook_secrets_in_a_file_are_named_with_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "refunds_webhook_secrets").write_text(f"{SECRET}\nx\n", encoding="utf-8")
    text = message(monkeypatch, SECRETS_DIR=str(tmp_path))
    assert "REFUNDS_WEBHOOK_SECRETS: must hold 1 to 4 secrets" in text
    assert "the file refunds_webhook_secrets" in text
    assert SECRET not in text


def test_a_secret_file_that_is_not_text_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "refunds_webhook_secrets").write_bytes(b"whsec_\xff\xfe_4711")
    text = message(monkeypatch, SECRETS_DIR=str(tmp_path))
    assert text == (
        "wrong settings: REFUNDS_WEBHOOK_SECRETS: the file refunds_webhook_secrets of"
        " REFUNDS_SECRETS_DIR is not text"
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
