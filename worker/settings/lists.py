"""Reads the settings that are lists, and says which entry of a wrong list is wrong.

They are the times of the watch, the secrets of webhooks, and the proxies and operators of the page.
"""

from __future__ import annotations

import ipaddress
import re
from datetime import timedelta
from typing import Final

from worker.model.callers import is_token_name
from worker.model.request import shown

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

MOST_SECRETS: Final = 4
"""The most secrets that one webhook is compared with: each costs a hash of its body."""
MOST_RUNGS: Final = 10
"""Maximum times at which one settled refund is read again."""
_OFF: Final = "off"
_RUNG: Final = re.compile(r"([1-9][0-9]{0,3})([hd])")
_SECRET: Final = re.compile(r"[!-+\--~]{8,200}")


def rungs_in(text: str) -> tuple[timedelta | None, ...]:
    """Return the times named in a list such as `1d,12h`, None for each that cannot be read."""
    units = {"h": timedelta(hours=1), "d": timedelta(days=1)}
    matches = (_RUNG.fullmatch(part) for part in _parts(text))
    return tuple(int(match[1]) * units[match[2]] if match else None for match in matches)


def _parts(text: str) -> list[str]:
    if text.strip().lower() in {"", _OFF}:
        return []
    return [part.strip() for part in text.split(",")]


def wrong_rungs(text: str, retention_days: float | None) -> str | None:
    """Return what is wrong with the times of the watch, and which one; None if nothing is."""
    rungs = rungs_in(text)
    if len(rungs) > MOST_RUNGS:
        return f"names {len(rungs)} times"
    before, name_before = timedelta(0), ""
    for part, rung in zip(_parts(text), rungs, strict=True):
        if rung is None:
            return f"{shown(part)} is not a number of hours or days such as 12h or 7d"
        if rung <= before:
            return f"{shown(part)} is not later than {shown(name_before)} before it"
        if retention_days is not None and rung > timedelta(days=retention_days):
            return (
                f"{shown(part)} is after REFUNDS_RETENTION_DAYS ({retention_days:g}), when the"
                " records are gone"
            )
        before, name_before = rung, part
    return None


def wrong_secrets(text: str) -> str | None:
    """Return what is wrong with a list of webhook secrets, and where; None if nothing is.

    A secret is named by its position in the list, never by its value.
    """
    secrets = _entries(text)
    if not secrets:
        return "names no secret"
    for position, secret in enumerate(secrets, 1):
        if (problem := _wrong_secret(secret)) is not None:
            return f"secret {position} of {len(secrets)} {problem}"
    if len(set(secrets)) > MOST_SECRETS:
        return f"names {len(set(secrets))} secrets, so remove those of former endpoints"
    return None


def _wrong_secret(secret: str) -> str | None:
    if secret.startswith(("sk_", "pk_")):
        return "is an API key, not the secret of a webhook endpoint"
    if not (secret.isascii() and secret.isprintable() and " " not in secret):
        return "holds a space or a character that is not printable ASCII"
    return None if is_webhook_secret(secret) else "is shorter than 8 or longer than 200 characters"


def is_webhook_secret(text: str) -> bool:
    """Return whether a text can be the secret of a webhook endpoint; an API key cannot."""
    return _SECRET.fullmatch(text) is not None and not text.startswith(("sk_", "pk_"))


def secrets_in(text: str) -> tuple[str, ...]:
    """Return the secrets of a list, each once."""
    return tuple(dict.fromkeys(_entries(text)))


def _entries(text: str) -> list[str]:
    """Return the entries of a list that are separated by commas or line breaks, without spaces."""
    entries = (entry.strip() for entry in re.split(r"[,\n]", text))
    return [entry for entry in entries if entry]


def wrong_networks(text: str) -> str | None:
    """Return what is wrong with a list of networks, and which one; None if nothing is."""
    for entry in _entries(text):
        try:
            network = ipaddress.ip_network(entry)
        except ValueError:
            return f"{shown(entry)} is not an address or a network such as 10.0.0.0/24"
        if network.prefixlen == 0:
            return f"{shown(entry)} holds every address, so that everyone could send a name"
    return None


def networks_in(text: str) -> tuple[Network, ...]:
    """Return the networks of a list that has nothing wrong."""
    return tuple(ipaddress.ip_network(entry) for entry in _entries(text))


def wrong_names(text: str) -> str | None:
    """Return what is wrong with a list of people's names, and which one; None if nothing is."""
    wrong = (entry for entry in _entries(text) if not is_token_name(entry))
    name = next(wrong, None)
    return None if name is None else f"{shown(name)} is not 1 to 100 of A-Z a-z 0-9 . _ : @ -"


def names_in(text: str) -> frozenset[str]:
    """Return the names of a list."""
    return frozenset(_entries(text))
