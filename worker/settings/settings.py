"""All settings, read once from the environment and a directory of secret files.

No other module reads them.
"""

from __future__ import annotations

import ipaddress
import math
import os
import re
from collections.abc import Collection
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, SettingsConfigDict

from worker.errors import GuardRefused, SettingsError
from worker.model.redaction import remember_address, remember_key
from worker.rules.attempts import SPARE, Rules
from worker.settings import lists
from worker.settings.secret_files import read_secrets

LIVE_HOST: Final = "api.wooshpay.com"
ENV_PREFIX: Final = "REFUNDS_"
KEPT_BEYOND_KEYS_DAYS: Final = 60
"""Days that an id is kept after the provider's key window ends.

Without them a late repeat would be sent as new.
"""
LEAST_RATE: Final = 0.01
"""The lowest rate limit in calls a second: a lower one stops all refunds in effect."""
LEAST_WEBHOOK_HOURS: Final = 0.1
"""The lowest age limit of a webhook: below it the provider's first delivery may be too old."""
LEAST_SETTLE_SECONDS: Final = 5.0
"""Shortest settle time with real money: every limit of a doubt is counted in settle times."""
WATCH_RATE: Final = 5.0
"""Settled refunds per second that are read again if no rate limit is set."""
# The supervisor sets it for its child process.
_OTHER_VARIABLES: Final = frozenset({"REFUNDS_SUPERVISOR_PID"})
_BROKER_SCHEMES: Final = frozenset({"redis", "rediss", "sentinel", "sentinels", "amqp", "amqps"})
_KEY: Final = re.compile(r"[A-Za-z0-9_.-]{1,500}")
_PLAIN: Final = re.compile(r"[!-~]+")
_HOST: Final = re.compile(r"[A-Za-z0-9._-]+|[0-9A-Fa-f:.]+")
_NUMBERED_SCHEMES: Final = frozenset({"redis", "rediss"})
_NUMBERED: Final = re.compile(r"(?:/[0-9]{0,9})?")
_REDIS_SCHEMES: Final = frozenset({"redis", "rediss", "sentinel", "sentinels", "unix"})
_WHOLE: Final = "must be a whole number in digits, such as 5"
_NUMBER: Final = "must be a number, such as 5 or 0.5"
_RULES: Final = {
    "int_parsing": _WHOLE,
    "int_from_float": _WHOLE,
    "int_type": _WHOLE,
    "float_parsing": _NUMBER,
    "float_type": _NUMBER,
    "greater_than": "must be more than {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than_equal": "must be at most {le:g}",
    "literal_error": "must be {expected}",
    "string_too_long": "must have at most {max_length} characters",
}
"""The words for kinds of errors that pydantic finds by itself."""
_SPELLINGS: Final = {
    "prefix": "must be 1 to 64 of A-Z a-z 0-9 _ : . { } -",
    "http_user_header": "must be a header's name: a letter, then up to 99 of A-Z a-z 0-9 -",
}


class Settings(BaseSettings):
    """The `REFUNDS_…` variables, without the prefix; frozen. Create it with `Settings.load()`."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, frozen=True, extra="ignore", env_ignore_empty=True
    )

    redis_url: SecretStr = SecretStr("redis://127.0.0.1:6379/0")
    broker_url: SecretStr | None = None
    api_url: str = "https://apitest.wooshpay.com"
    api_key: SecretStr | None = None
    live: bool = False
    allow_http: bool = False
    idempotency: Literal["verify", "trust"] = "verify"
    key_window_hours: float = Field(default=23, ge=0.001, le=24 * 30)
    readback: Literal["list", "totals", "none"] = "totals"
    first_look: bool = False
    totals: Literal["hint", "proof"] = "hint"
    settle_seconds: float = Field(default=300, ge=0.001, le=86400)
    durability: Literal["disk", "memory"] = "disk"
    replicas: int = Field(default=0, ge=0, le=9)
    secrets_dir: Path | None = None
    request_timeout_seconds: float = Field(default=20, ge=0.1, le=300)
    max_attempts: int = Field(default=12, ge=1, le=1000)
    max_age_hours: float = Field(default=72, ge=0.01, le=24 * 90)
    concurrency: int = Field(default=64, ge=1, le=1024)
    rate_limit: float = Field(default=0, ge=0, le=100_000)
    bulk_share: float = Field(default=0.7, ge=0.001, le=1)
    lease_seconds: float = Field(default=45, gt=0, le=3600, validate_default=True)
    retention_days: float = Field(default=400, gt=0, le=36500)
    metadata_days: float | None = Field(default=None, ge=1)
    prefix: str = Field(
        default="refunds:", min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_:.{}-]+$"
    )
    log_format: Literal["json", "text"] | None = None
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    max_amount: int | None = Field(default=None, gt=0)
    heartbeat_file: Path | None = None
    backlog_warning: int = Field(default=100_000, gt=0)
    remote_control: bool = False
    watch: str = "1d,7d,30d,60d"
    watch_share: float = Field(default=0.1, ge=0.001, le=1)
    actor: str | None = Field(default=None, min_length=1, max_length=100)
    callbacks_file: Path | None = None
    webhook_secrets: SecretStr | None = None
    webhook_max_age_hours: float = Field(default=96, ge=0, le=24 * 365)
    http_rate: float = Field(default=200, ge=0, le=100_000)
    http_auth: Literal["on", "off"] = "on"
    http_user_header: str | None = Field(default=None, pattern=r"^[A-Za-z][A-Za-z0-9-]{0,99}$")
    http_proxies: str | None = None
    http_operators: str | None = None
    spool_dir: Path | None = None

    def model_post_init(self, _context: Any) -> None:
        """Register every secret setting, so that this process redacts it from all later output."""
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, SecretStr):
                remember = remember_address if name.endswith("_url") else remember_key
                remember(value.get_secret_value())
        for secret in self.webhook_keys:
            remember_key(secret)

    @field_validator("actor")
    @classmethod
    def _fit_to_be_kept(cls, value: str | None) -> str | None:
        if value is not None and (not value.isprintable() or not value.strip()):
            raise PydanticCustomError("actor", "must be a name of printable characters")
        return value

    @field_validator("webhook_secrets")
    @classmethod
    def _few_and_plain(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None:
            return None
        if (problem := lists.wrong_secrets(value.get_secret_value())) is not None:
            rule = (
                "{problem}: list 1 to {most} secrets of 8 to 200 printable ASCII characters without"
                " spaces, separated by commas, or one a line in the file refunds_webhook_secrets"
                " of REFUNDS_SECRETS_DIR"
            )
            raise PydanticCustomError(
                "webhook_secrets", rule, {"problem": problem, "most": lists.MOST_SECRETS}
            )
        return value

    @field_validator("watch")
    @classmethod
    def _ascending_rungs(cls, value: str, info: Any) -> str:
        kept = info.data.get("retention_days")
        if (problem := lists.wrong_rungs(value, kept)) is not None:
            rule = (
                "{problem}: name up to {most} ascending times since settling, in hours or days,"
                " such as 1d,7d,30d,60d, or off for no watch"
            )
            raise PydanticCustomError("rungs", rule, {"problem": problem, "most": lists.MOST_RUNGS})
        return value

    @field_validator("http_proxies", "http_operators")
    @classmethod
    def _known_entries(cls, value: str | None, info: Any) -> str | None:
        are_networks = info.field_name == "http_proxies"
        problem = (lists.wrong_networks if are_networks else lists.wrong_names)(value or "")
        if problem is not None:
            rule = "{problem}: list them separated by commas"
            raise PydanticCustomError("entries", rule, {"problem": problem})
        return value

    @field_validator("rate_limit")
    @classmethod
    def _none_or_some_rate(cls, value: float) -> float:
        if 0 < value < LEAST_RATE:
            rule = "must be 0 for no limit, or at least {least} calls a second"
            raise PydanticCustomError("rate", rule, {"least": f"{LEAST_RATE:g}"})
        return value

    @field_validator("webhook_max_age_hours")
    @classmethod
    def _none_or_some_age(cls, value: float) -> float:
        if 0 < value < LEAST_WEBHOOK_HOURS:
            rule = "must be 0 for no limit, or at least {least} hours for a slow webhook"
            raise PydanticCustomError("age", rule, {"least": f"{LEAST_WEBHOOK_HOURS:g}"})
        return value

    @field_validator("redis_url", "broker_url")
    @classmethod
    def _known_scheme(cls, value: SecretStr | None, info: Any) -> SecretStr | None:
        if value is None:
            return None
        allowed = _REDIS_SCHEMES if info.field_name == "redis_url" else _BROKER_SCHEMES
        url = value.get_secret_value()
        scheme = url.partition("://")[0]
        if scheme not in allowed:
            rule = "must begin with one of {schemes}"
            raise PydanticCustomError(
                "scheme", rule, {"schemes": ", ".join(f"{name}://" for name in sorted(allowed))}
            )
        if not _is_address(url):
            rule = (
                "must read scheme://user:password@host:port/0, reserved characters percent-encoded"
            )
            raise PydanticCustomError("address", rule)
        # A Redis client reads a path that is not a number as database 0.
        if scheme in _NUMBERED_SCHEMES and not _NUMBERED.fullmatch(urlsplit(url).path):
            raise PydanticCustomError("database", "must end with a database number, such as /0")
        if scheme == "unix" and not urlsplit(url).path.strip("/"):
            raise PydanticCustomError(
                "socket", "must name the socket's file, as in unix:///run/redis.sock"
            )
        return value

    @field_validator("live", "allow_http", "remote_control", "first_look", mode="before")
    @classmethod
    def _true_or_false(cls, value: Any) -> Any:
        # These settings allow real money, a key in clear text or stopping a worker, or keep money
        # from moving twice. Only `true` and `false` are accepted, never a 1.
        if isinstance(value, str):
            value = {"true": True, "false": False}.get(value.lower())
        if not isinstance(value, bool):
            raise PydanticCustomError("true_or_false", "must be true or false")
        return value

    @field_validator("api_url")
    @classmethod
    def _plain_url(cls, value: str) -> str:
        if (
            not value.startswith(("http://", "https://"))
            or not _is_address(value)
            or not urlsplit(value).hostname
        ):
            raise PydanticCustomError("url", "must be an http:// or https:// address")
        parts = urlsplit(value)
        # The HTTP client reads other characters in its own way, and may come to the live host by a
        # name that is not the one that the guards compare.
        if not _PLAIN.fullmatch(value) or not _HOST.fullmatch(parts.hostname or ""):
            rule = (
                "must hold no spaces, and a host of ASCII letters, digits, dots, - and _"
                " (write an international name as xn--…)"
            )
            raise PydanticCustomError("url", rule)
        if parts.username or parts.password or parts.query or parts.fragment:
            raise PydanticCustomError("url", "must not hold credentials, a query or a fragment")
        # A wrong address answers 404, as an unknown refund does, so nothing later would notice it.
        if parts.path.rstrip("/").endswith("/v1"):
            raise PydanticCustomError("url", "must not end with /v1, which each call adds")
        return value.rstrip("/")

    @field_validator(
        "log_level",
        "log_format",
        "idempotency",
        "readback",
        "totals",
        "durability",
        "http_auth",
        mode="before",
    )
    @classmethod
    def _any_case(cls, value: Any) -> Any:
        return value.lower() if isinstance(value, str) else value

    @field_validator("first_look")
    @classmethod
    def _reads_a_list(cls, value: bool, info: Any) -> bool:  # noqa: FBT001 - pydantic calls it
        if value and info.data.get("readback", "list") != "list":
            rule = (
                "may be true only with REFUNDS_READBACK=list, since only a list shows a refund by"
                " its id"
            )
            raise PydanticCustomError("first_look", rule)
        return value

    @field_validator("settle_seconds")
    @classmethod
    def _long_enough_for_money(cls, value: float, info: Any) -> float:
        if value < LEAST_SETTLE_SECONDS and _is_live(
            info.data.get("api_key"), info.data.get("api_url", "")
        ):
            rule = (
                "must be at least {least} where real money moves, since every limit of a doubt is"
                " counted in it"
            )
            raise PydanticCustomError("settle", rule, {"least": f"{LEAST_SETTLE_SECONDS:g}"})
        return value

    @field_validator("lease_seconds")
    @classmethod
    def _lease_outlives_a_call(cls, value: float, info: Any) -> float:
        timeout = info.data.get("request_timeout_seconds")
        if timeout is not None and value < timeout + 5:
            raise PydanticCustomError(
                "lease", "must be at least REFUNDS_REQUEST_TIMEOUT_SECONDS plus 5"
            )
        return value

    @field_validator("retention_days")
    @classmethod
    def _records_outlive_keys(cls, value: float, info: Any) -> float:
        window = info.data.get("key_window_hours")
        if window is not None and value < window / 24 + KEPT_BEYOND_KEYS_DAYS:
            rule = (
                "must be at least REFUNDS_KEY_WINDOW_HOURS plus {beyond} days, which is {least}"
                " days now"
            )
            least = math.ceil((window / 24 + KEPT_BEYOND_KEYS_DAYS) * 100) / 100
            raise PydanticCustomError(
                "retention", rule, {"beyond": KEPT_BEYOND_KEYS_DAYS, "least": f"{least:g}"}
            )
        return value

    @field_validator("metadata_days")
    @classmethod
    def _metadata_go_before_the_record(cls, value: float | None, info: Any) -> float | None:
        retention = info.data.get("retention_days")
        if value is not None and retention is not None and value > retention:
            rule = "must be at most REFUNDS_RETENTION_DAYS, which is {most} now"
            raise PydanticCustomError("metadata", rule, {"most": f"{retention:g}"})
        return value

    @classmethod
    def load(cls, **overrides: Any) -> Settings:
        """Read the environment; `overrides` (by field name) take precedence.

        Raises `SettingsError` with one message that names every wrong variable and echoes no
        secret.
        """
        try:
            settings = cls(**overrides)
            if settings.secrets_dir is None:
                return settings
            return cls(**_from_files(settings.secrets_dir, overrides), **overrides)
        except ValidationError as error:
            raise SettingsError(_sentence(error)) from None

    @property
    def webhook_keys(self) -> tuple[str, ...]:
        """Return the secrets of the webhook endpoints; several while one is being replaced."""
        held = self.webhook_secrets
        return () if held is None else lists.secrets_in(held.get_secret_value())

    @property
    def webhook_max_age(self) -> timedelta | None:
        """Return the age up to which a webhook's signature counts, None for any age."""
        hours = self.webhook_max_age_hours
        return timedelta(hours=hours) if hours else None

    @property
    def broker(self) -> str:
        """Return the Celery broker's URL, with its credentials."""
        return (self.broker_url or self.redis_url).get_secret_value()

    @property
    def is_live(self) -> bool:
        """Return whether the key or the URL moves real money."""
        return _is_live(self.api_key, self.api_url)

    @property
    def mode(self) -> str:
        """Return `live` or `test`; pinned in Redis with the provider's host."""
        return "live" if self.is_live else "test"

    @property
    def provider_host(self) -> str:
        """Return the provider's host in lower case, with any port not the scheme's default."""
        parts = urlsplit(self.api_url)
        host = (parts.hostname or "").rstrip(".")
        usual = {"https": 443, "http": 80}[parts.scheme]
        return host if parts.port in {None, usual} else f"{host}:{parts.port}"

    @property
    def rules(self) -> Rules:
        """Return the settings that the rules depend on."""
        return Rules(
            idempotency=self.idempotency,
            readback=self.readback,
            totals_proof=self.totals == "proof",
            first_look=self.first_look,
            settle=timedelta(seconds=self.settle_seconds),
            key_window=timedelta(hours=self.key_window_hours),
            request_timeout=timedelta(seconds=self.request_timeout_seconds),
            lease=timedelta(seconds=self.lease_seconds),
            max_attempts=self.max_attempts,
            max_age=timedelta(hours=self.max_age_hours),
        )

    @property
    def watch_rungs(self) -> tuple[timedelta, ...]:
        """Return the times since settling at which settled refunds are read again; () if off."""
        return tuple(rung for rung in lists.rungs_in(self.watch) if rung is not None)

    @property
    def watch_rate(self) -> float:
        """Return how many settled refunds per second all workers together read again at most."""
        return self.rate_limit * self.watch_share if self.rate_limit else WATCH_RATE

    @property
    def lease_spare(self) -> timedelta:
        """Return the time that a lease must have left when an attempt starts."""
        return timedelta(seconds=self.request_timeout_seconds) + SPARE

    def require_provider(self) -> str:
        """Return the secret key after checking the guards on live money and plain http.

        Raises `SettingsError` without a key, `GuardRefused` if a guard refuses.
        """
        if self.api_key is None:
            raise SettingsError(
                "REFUNDS_API_KEY is not set: export it, or put it in the file refunds_api_key of"
                " REFUNDS_SECRETS_DIR"
            )
        if self.is_live and not self.live:
            raise GuardRefused(
                "the key or the address is a live one, which moves real money: "
                "set REFUNDS_LIVE=true if you want that, or use a test key with the test address"
            )
        parts = urlsplit(self.api_url)
        if parts.scheme == "http" and not self.allow_http and not is_loopback(parts.hostname or ""):
            raise GuardRefused(
                f"REFUNDS_API_URL is plain http to {parts.hostname}, which would send the key"
                " unencrypted: use https, or set REFUNDS_ALLOW_HTTP=true if the network is trusted"
            )
        key = self.api_key.get_secret_value()
        if _KEY.fullmatch(key) is None:
            raise SettingsError(
                "REFUNDS_API_KEY holds characters that a key cannot have: check it for quotes and"
                " line breaks"
            )
        return key


def _from_files(folder: Path, overrides: Collection[str]) -> dict[str, Any]:
    """Return the settings from secret files, without those that are set otherwise."""
    # A file that is not needed is not read: this user may not be allowed to.
    otherwise = {name.lower() for name, value in os.environ.items() if value}
    known = {name for name in Settings.model_fields if f"{ENV_PREFIX}{name}".lower() in otherwise}
    needless = {"secrets_dir", *overrides, *known}
    names = [name for name in Settings.model_fields if name not in needless]
    return read_secrets(folder, prefix=ENV_PREFIX, names=names)


def unknown_variables() -> list[str]:
    """Return the `REFUNDS_…` variables of the environment that match no setting.

    Most likely misspelt.
    """
    known = {ENV_PREFIX + name.upper() for name in Settings.model_fields} | _OTHER_VARIABLES
    return sorted(name for name in os.environ if name.startswith(ENV_PREFIX) and name not in known)


def _is_live(key: SecretStr | None, url: str) -> bool:
    named = key.get_secret_value() if key else ""
    return "_live_" in named or (urlsplit(url).hostname or "").rstrip(".") == LIVE_HOST


def _is_address(url: str) -> bool:
    """Return whether a URL can be parsed.

    A `/` or `[` of a password must not be read as part of the host.
    """
    try:
        parts = urlsplit(url)
        # A list of hosts (Sentinels, or a broker's cluster) has more than one port.
        one_host = "," not in parts.netloc and ";" not in url
        port = parts.port if one_host else None
        if one_host:
            # The resolver fails on an empty or overlong label, and on a byte that is not text.
            (parts.hostname or "").encode("idna")
    except ValueError:
        return False
    return port != 0 and not ("@" in url and "@" not in parts.netloc)


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _sentence(error: ValidationError) -> str:
    problems = []
    for item in error.errors(include_input=False, include_url=False):
        if not item["loc"]:
            problems.append(item["msg"])
            continue
        field = str(item["loc"][0])
        rule = _RULES.get(item["type"])
        plain = item["msg"] if rule is None else rule.format(**item.get("ctx", {}))
        said = _SPELLINGS.get(field, plain)
        problems.append(f"{ENV_PREFIX}{field.upper()}: {said[:1].lower()}{said[1:]}")
    return f"wrong settings: {'; '.join(problems)}"
