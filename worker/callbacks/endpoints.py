"""The endpoints of callbacks, read once from `REFUNDS_CALLBACKS_FILE` and the secrets directory.

    [[endpoints]]
    name = "shop"
    url = "https://shop.example.com/refunds"
    events = ["refund.succeeded", "refund.failed"]    # all without it
    ids = "shop-"                                     # only refund ids that begin so
    timeout_s = 15
    in_flight = 8                                     # requests at once, of each worker
    metadata = true                                   # whether bodies hold the caller's metadata
    allow_private = false                             # whether the address may be a private one

The secrets of `shop` are in the file `callback_shop`, one a line, each `whsec_` and base64.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import SplitResult, urlsplit

from worker.callbacks.addresses import is_allowed
from worker.callbacks.signing import LONGEST, SHORTEST, secret_bytes
from worker.errors import SettingsError
from worker.model.redaction import remember_key, without_secrets
from worker.model.request import shown
from worker.settings import ENV_PREFIX, Settings, is_loopback
from worker.store.callbacks import BATCH

EVENTS: Final = (
    "refund.succeeded",
    "refund.failed",
    "refund.canceled",
    "refund.reversed",
    "refund.in_review",
    "batch.finished",
)
MOST_ENDPOINTS: Final = 50
MOST_SECRETS: Final = 4
LONGEST_TIMEOUT: Final = 60.0
MOST_IN_FLIGHT: Final = 100
_VARIABLE: Final = f"{ENV_PREFIX}CALLBACKS_FILE"
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")
_IDS: Final = re.compile(r"[A-Za-z0-9._:\-]{1,200}")
_LONGEST_URL: Final = 2000
_LONGEST_FILE: Final = 1_000_000
_IS_ADDRESS: Final = re.compile(r"[0-9.]+|.*:.*")
_KNOWN: Final = frozenset(
    (
        "name",
        "url",
        "events",
        "ids",
        "timeout_s",
        "in_flight",
        "metadata",
        "allow_private",
    )
)


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class Endpoint:
    """Where callbacks are sent, which, and how. It has no `repr`, because it holds secrets."""

    name: str
    url: str
    keys: tuple[bytes, ...]
    events: frozenset[str] = frozenset(EVENTS)
    ids: str = ""
    """What the wanted refund ids begin with; '' for all, and for batches."""
    timeout_seconds: float = 15
    in_flight: int = 8
    """Requests at once, of each worker process."""
    metadata: bool = True
    allow_private: bool = False

    def wants(self, member: str, event: str | None = None) -> bool:
        """Return whether a refund or a batch may be sent here, as that event if one is given."""
        has_id = not self.ids if member.startswith(BATCH) else member.startswith(self.ids)
        return has_id and (event is None or event in self.events)

    @property
    def shown_url(self) -> str:
        """The URL as people may read it: its query may hold a secret."""
        address, mark, _ = self.url.partition("?")
        return without_secrets(f"{address}?…" if mark else address)


def load(settings: Settings) -> tuple[Endpoint, ...]:
    """Return the endpoints, none if `REFUNDS_CALLBACKS_FILE` is not set.

    Raises `SettingsError` with one message that names every mistake and holds no secret.
    """
    if settings.callbacks_file is None:
        return ()
    tables = _tables(settings.callbacks_file)
    reader = _Reader(settings)
    endpoints = tuple(reader.endpoint(number, table) for number, table in enumerate(tables, 1))
    if reader.mistakes:
        raise SettingsError(f"{_VARIABLE} {settings.callbacks_file}: {'; '.join(reader.mistakes)}")
    return endpoints


def _tables(path: Path) -> Sequence[Mapping[str, Any]]:
    try:
        with path.open("rb") as file:
            text = file.read(_LONGEST_FILE + 1)
        if len(text) > _LONGEST_FILE:
            raise SettingsError(f"{_VARIABLE} {path} is longer than {_LONGEST_FILE:,} bytes")
        found = tomllib.loads(text.decode("utf-8"))
    except OSError as error:
        raise SettingsError(
            f"{_VARIABLE} {path} cannot be read ({error.strerror}): create it or unset it"
        ) from None
    except (UnicodeDecodeError, RecursionError):
        raise SettingsError(f"{_VARIABLE} {path} is not TOML in UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{_VARIABLE} {path} is not TOML: {error}") from None
    except ValueError:
        # Python's limit of digits, which is not an error of TOML.
        raise SettingsError(f"{_VARIABLE} {path} is not TOML: a number is too long") from None
    tables = found.pop("endpoints", [])
    if found:
        raise SettingsError(
            f"{_VARIABLE} {path}: nothing is named {', '.join(sorted(map(shown, found)))}: write"
            " each endpoint under [[endpoints]]"
        )
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise SettingsError(f"{_VARIABLE} {path}: write each endpoint under [[endpoints]]")
    if len(tables) > MOST_ENDPOINTS:
        raise SettingsError(f"{_VARIABLE} {path}: at most {MOST_ENDPOINTS} endpoints are allowed")
    return tables


class _Reader:
    """Reads endpoints one by one, and collects every mistake.

    If there is one, no endpoint that was read is used.
    """

    def __init__(self, settings: Settings) -> None:
        self.mistakes: list[str] = []
        self._names: set[str] = set()
        self._secrets_dir = settings.secrets_dir
        self._ports = _ports_of(settings)
        self._where: str

    def _wrong(self, field: str, rule: str) -> None:
        self.mistakes.append(f"{self._where}: {field} {rule}")

    def endpoint(self, number: int, table: Mapping[str, Any]) -> Endpoint:
        """Return an endpoint."""
        self._where = f"endpoint {number}"
        name = self._name(table.get("name"))
        if unknown := sorted(table.keys() - _KNOWN):
            self._wrong(", ".join(map(shown, unknown)), f"is none of {', '.join(sorted(_KNOWN))}")
        private = self._flag(table, "allow_private", usual=False)
        return Endpoint(
            name=name,
            url=self._url(table.get("url"), private=private),
            keys=self._keys(name),
            events=self._events(table.get("events", [*EVENTS])),
            ids=self._ids(table.get("ids", "")),
            timeout_seconds=self._number(table, "timeout_s", 15, LONGEST_TIMEOUT, whole=False),
            in_flight=int(self._number(table, "in_flight", 8, MOST_IN_FLIGHT, whole=True)),
            metadata=self._flag(table, "metadata", usual=True),
            allow_private=private,
        )

    def _name(self, value: object) -> str:
        if not isinstance(value, str) or _NAME.fullmatch(value) is None:
            self._wrong("name", "must be 1 to 40 of a-z 0-9 _ -")
            return ""
        self._where = f"endpoint {value}"
        if value in self._names:
            self._wrong("name", "is used twice: give each endpoint its own name")
        self._names.add(value)
        return value

    def _url(self, value: object, *, private: bool) -> str:
        parts = _split(value)
        if parts is None or not isinstance(value, str):
            self._wrong("url", "must be an address such as https://shop.example.com/refunds")
            return ""
        host = parts.hostname or ""
        if parts.username is not None or parts.password is not None or parts.fragment:
            self._wrong("url", "must not hold credentials or a fragment")
        if parts.scheme == "http" and not (private and is_loopback(host)):
            self._wrong(
                "url",
                "must begin with https://; http:// is only for this machine, with"
                " allow_private = true",
            )
        if parts.port in self._ports:
            self._wrong("url", f"must not name the port of Redis or the broker, {parts.port}")
        if _IS_ADDRESS.fullmatch(host) and not is_allowed(host, private=private):
            self._wrong(
                "url",
                "must not name an inner address; one of a private network or of this machine is"
                " only for allow_private = true",
            )
        return value

    def _keys(self, name: str) -> tuple[bytes, ...]:
        file = f"callback_{name}"
        if not name:
            return ()
        if self._secrets_dir is None:
            self._wrong("secrets", f"are read from the file {file} of REFUNDS_SECRETS_DIR: set it")
            return ()
        path = self._secrets_dir / file
        try:
            lines = path.read_text("ascii").split()
        except (OSError, UnicodeDecodeError):
            self._wrong("secrets", f"cannot be read from the file {path}")
            return ()
        for line in lines:
            remember_key(line)
        keys = [key for key in map(secret_bytes, dict.fromkeys(lines)) if key is not None]
        if not 0 < len(keys) <= MOST_SECRETS or len(keys) != len(dict.fromkeys(lines)):
            self._wrong(
                "secrets",
                f"in the file {path} must be 1 to {MOST_SECRETS} lines, each whsec_ and the base64"
                f" of {SHORTEST} to {LONGEST} random bytes",
            )
        return tuple(keys)

    def _events(self, value: object) -> frozenset[str]:
        if not isinstance(value, list) or not value or any(each not in EVENTS for each in value):
            self._wrong("events", f"must be a list of {', '.join(EVENTS)}")
            return frozenset()
        return frozenset(value)

    def _ids(self, value: object) -> str:
        if value == "":
            return ""
        if not isinstance(value, str) or _IDS.fullmatch(value) is None:
            self._wrong("ids", "must be the beginning of refund ids: A-Z a-z 0-9 . _ : -")
            return ""
        return value

    def _flag(self, table: Mapping[str, Any], field: str, *, usual: bool) -> bool:
        value = table.get(field, usual)
        if not isinstance(value, bool):
            self._wrong(field, "must be true or false")
            return usual
        return value

    def _number(
        self,
        table: Mapping[str, Any],
        field: str,
        usual: float,
        most: float,
        *,
        whole: bool,
    ) -> float:
        value = table.get(field, usual)
        kinds = (int,) if whole else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds) or not 1 <= value <= most:
            self._wrong(field, f"must be a {'whole ' if whole else ''}number from 1 to {most:g}")
            return usual
        return float(value)


def _split(value: object) -> SplitResult | None:
    """Return the parts of a URL that a request can be sent to, None if it is not one."""
    if not isinstance(value, str) or len(value) > _LONGEST_URL:
        return None
    if not value.isascii() or not value.isprintable() or " " in value or "\\" in value:
        return None
    try:
        parts = urlsplit(value)
        port = parts.port
        (parts.hostname or "").encode("idna")
    except ValueError:
        return None
    return parts if parts.scheme in {"https", "http"} and parts.hostname and port != 0 else None


def _ports_of(settings: Settings) -> frozenset[int]:
    """Return the ports of Redis and of the broker."""
    found = {6379}
    for url in (settings.redis_url.get_secret_value(), settings.broker):
        try:
            port = urlsplit(url).port
        except ValueError:
            # The addresses of several Sentinels.
            continue
        if port is not None:
            found.add(port)
    return frozenset(found)
