"""Who calls the HTTP API, and how its tokens are written.

A token is `rfw_<id>_<secret>`: eight characters name it, and 43 hold 32 random bytes. It is random,
so its SHA-256 is enough to keep of it.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

_ID_BYTES: Final = 4
_SECRET_BYTES: Final = 32
_TOKEN: Final = re.compile(r"rfw_([0-9a-f]{8})_[A-Za-z0-9_-]{43}")
_NAME: Final = re.compile(r"[A-Za-z0-9._:@\-]{1,100}")


class Scope(StrEnum):
    """What a token allows."""

    READ = "read"
    SUBMIT = "submit"
    OPERATE = "operate"


@dataclass(frozen=True, kw_only=True, slots=True)
class Caller:
    """Who sent a request: the token's name, which the history shows as `by`.

    Only ids that begin with `ids_prefix` exist for it.
    """

    name: str
    scopes: frozenset[Scope]
    ids_prefix: str = ""

    def sees(self, refund_id: str) -> bool:
        """Return whether a refund exists for this caller."""
        return refund_id.startswith(self.ids_prefix)


def is_token_name(text: str) -> bool:
    """Return whether a text can name a token."""
    return _NAME.fullmatch(text) is not None


def new_token() -> str:
    """Return a new random token."""
    return f"rfw_{secrets.token_hex(_ID_BYTES)}_{secrets.token_urlsafe(_SECRET_BYTES)}"


def token_id(token: str) -> str | None:
    """Return the id within a token, None if the text cannot be a token."""
    found = _TOKEN.fullmatch(token)
    return None if found is None else found[1]


def digest(token: str) -> str:
    """Return what is kept of a token."""
    # A header that is not UTF-8 arrives with surrogates: it is a wrong token, not an error.
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()
