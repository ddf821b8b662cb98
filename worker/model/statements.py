"""Checks of what a person states about a refund: a note, an id at the provider, an error code."""

from __future__ import annotations

import re
import unicodedata
from typing import Final

from worker.errors import FieldError, InvalidRequest
from worker.model.redaction import without_secrets
from worker.model.request import is_provider_id, shown

MAX_NOTE: Final = 500
_CODE: Final = re.compile(r"[a-z][a-z0-9_]{0,59}")


def checked_note(text: str) -> str:
    """Return a note for the history, without secrets. Raises `InvalidRequest`."""
    if not text.strip():
        rule = "must not be empty: say how you know, for those who read the history"
    elif len(text) > MAX_NOTE:
        rule = f"must be at most {MAX_NOTE} characters"
    elif any(unicodedata.category(character) in {"Cc", "Cs"} for character in text):
        rule = "must not contain control characters or broken Unicode"
    else:
        return without_secrets(text.strip())
    raise InvalidRequest([FieldError(field="note", code="note", value=shown(text), rule=rule)])


def checked_provider_id(text: str) -> str:
    """Return the id of a provider's refund. Raises `InvalidRequest`."""
    if is_provider_id(text):
        return text
    rule = "must be the provider's refund id: 1 to 200 of A-Z a-z 0-9 _ -"
    raise InvalidRequest(
        [FieldError(field="provider_refund_id", code="provider_id", value=shown(text), rule=rule)]
    )


def checked_code(text: str) -> str:
    """Return the error code with which a person settles a refund. Raises `InvalidRequest`."""
    if _CODE.fullmatch(text):
        return text
    rule = (
        "must be a code such as customer_paid_in_cash: 1 to 60 of a-z 0-9 _, starting with a letter"
    )
    raise InvalidRequest(
        [FieldError(field="code", code="error_code", value=shown(text), rule=rule)]
    )
