"""Signs callbacks as Standard Webhooks describes, with every secret of an endpoint.

So a receiver may verify with the old secret or with the new one while they are exchanged.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Mapping, Sequence
from typing import Final

PREFIX: Final = "whsec_"
SHORTEST: Final = 24
LONGEST: Final = 64
"""Bytes of a secret, as Standard Webhooks demands."""
_ID_CHARACTERS: Final = 26


def secret_bytes(secret: str) -> bytes | None:
    """Return the key that a secret `whsec_<base64>` stands for, None if it is not one."""
    if not secret.startswith(PREFIX):
        return None
    try:
        key = base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    except (binascii.Error, ValueError):
        return None
    return key if SHORTEST <= len(key) <= LONGEST else None


def message_id(prefix: str, member: str, version: str) -> str:
    """Return the id of a callback: the same for each try to send one version of a member.

    It holds no dot, because dots separate the parts that are signed.
    """
    parts = f"{prefix}\n{member}\n{version}".encode()
    digest = base64.b32encode(hashlib.sha256(parts).digest()).decode("ascii")
    return f"msg_{digest[:_ID_CHARACTERS]}"


def headers(keys: Sequence[bytes], identity: str, seconds: int, body: bytes) -> Mapping[str, str]:
    """Return the three headers of a callback that is sent at `seconds` since the epoch."""
    signed = f"{identity}.{seconds}.".encode("ascii") + body
    signatures = (
        base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode("ascii")
        for key in keys
    )
    return {
        "webhook-id": identity,
        "webhook-timestamp": str(seconds),
        "webhook-signature": " ".join(f"v1,{signature}" for signature in signatures),
    }
