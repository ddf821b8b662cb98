"""Parses Sentinel addresses: `sentinel://`, or `sentinels://` for TLS to Sentinels and server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

from worker.errors import SettingsError

SCHEMES: Final = ("sentinel://", "sentinels://")
DEFAULT_PORT: Final = 26379
_TLS_OPTIONS: Final = (
    "ssl_ca_certs",
    "ssl_certfile",
    "ssl_keyfile",
    "ssl_cert_reqs",
    "ssl_check_hostname",
)
_OTHER_OPTIONS: Final = ("master", "sentinel_username", "sentinel_password", "protocol")
_FALSE: Final = frozenset({"0", "f", "false", "n", "no"})
_SHAPE: Final = "a {scheme} address must read {scheme}host:port,host:port/db?master=NAME"


@dataclass(frozen=True, kw_only=True)
class SentinelAddress:
    """A parsed address `sentinel[s]://[user:password@]host:port[,host:port]/db?master=NAME`.

    User and password are the server's. Those of the Sentinels are options after the `?`:
    `sentinel_username`, `sentinel_password`. `tls` holds the TLS options under redis-py's names,
    and is empty without TLS.
    """

    hosts: tuple[tuple[str, int], ...]
    master: str
    database: int
    username: str | None
    password: str | None
    sentinel_username: str | None = None
    sentinel_password: str | None = None
    tls: Mapping[str, Any] = field(default_factory=dict)
    protocol: int | None = None

    @classmethod
    def parse(cls, url: str) -> SentinelAddress:
        """Parse an address; raises `SettingsError` for a missing master name or unknown part."""
        scheme = next(each for each in SCHEMES if url.startswith(each))
        rest = url.removeprefix(scheme)
        credentials, _, places = (
            rest.rpartition("@") if "@" in rest.partition("?")[0] else ("", "", rest)
        )
        parts = urlsplit(f"x://{places.replace(f';{scheme}', ',')}")
        options = dict(parse_qsl(parts.query))
        if unknown := sorted(options.keys() - {*_OTHER_OPTIONS, *_TLS_OPTIONS}):
            known = ", ".join((*_OTHER_OPTIONS, *_TLS_OPTIONS))
            raise SettingsError(
                f"a {scheme} address has an unknown option, {unknown[0]}: the options are {known}"
            )
        if not options.get("master"):
            raise SettingsError(f"a {scheme} address needs the master's name: add ?master=NAME")
        tls = _tls(options)
        if tls and scheme == SCHEMES[0]:
            raise SettingsError(
                f"a sentinel:// address is without TLS and has {min(tls)}: use sentinels:// instead"
            )
        username, _, password = credentials.partition(":")
        try:
            hosts = tuple(_host_and_port(address) for address in parts.netloc.split(",") if address)
            database = int(parts.path.strip("/") or 0)
            protocol = int(options["protocol"]) if "protocol" in options else None
        except ValueError:
            hosts, database, protocol = (), 0, None
        if not hosts:
            raise SettingsError(_SHAPE.format(scheme=scheme))
        return cls(
            hosts=hosts,
            master=options["master"],
            database=database,
            username=unquote(username) or None,
            password=unquote(password) or None,
            sentinel_username=options.get("sentinel_username"),
            sentinel_password=options.get("sentinel_password"),
            tls={"ssl": True, **tls} if scheme != SCHEMES[0] else {},
            protocol=protocol,
        )

    @property
    def to_sentinels(self) -> dict[str, Any]:
        """Return the options for a connection to a Sentinel."""
        named = {
            "username": self.sentinel_username,
            "password": self.sentinel_password,
            "protocol": self.protocol,
        }
        return {name: value for name, value in named.items() if value is not None} | dict(self.tls)

    @property
    def to_server(self) -> dict[str, Any]:
        """Return the options for a connection to the server that the Sentinels name."""
        named = {"username": self.username, "password": self.password, "protocol": self.protocol}
        given = {name: value for name, value in named.items() if value is not None}
        return {"db": self.database, **given} | dict(self.tls)


def is_sentinel(url: str) -> bool:
    """Return whether an address names Sentinels."""
    return url.startswith(SCHEMES)


def _tls(options: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {name: options[name] for name in _TLS_OPTIONS if name in options}
    if "ssl_check_hostname" in found:
        found["ssl_check_hostname"] = found["ssl_check_hostname"].lower() not in _FALSE
    return found


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":") if ":" in address else (address, "", "")
    return host, int(port or DEFAULT_PORT)
