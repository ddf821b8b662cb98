"""Why a form was not followed: shown on the view that it came from, with what was typed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final

from worker.errors import RefundError
from worker.http import problems
from worker.http.page.pagewords import entry_on_page, on_page
from worker.wording import history

_SHOWN: Final = frozenset({HTTPStatus.CONFLICT, HTTPStatus.UNPROCESSABLE_ENTITY})
_LONGEST_VERSION: Final = 15
_FIELDS: Final = {
    "note": "“How you know”",
    "code": "the reason of the failure",
    "provider_refund_id": "the id of the provider's refund",
    "typed": "what you typed",
    "decision": "your decision",
}
"""The words for the fields of forms; a field without one is named as it is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """The reason, the names of wrong fields, and the form as it was sent."""

    status: HTTPStatus
    title: str
    detail: str
    wrong: frozenset[str] = frozenset()
    form: Mapping[str, str] = field(default_factory=dict)

    def moves_since(self, entries: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
        """Return what happened to a refund since its form was shown, if the form says when."""
        version = self.form.get("version", "")
        if self.status is not HTTPStatus.CONFLICT or not is_version(version):
            return []
        return [move_of(entry) for entry in entries if entry["version"] > int(version)]


def is_version(text: str) -> bool:
    """Return whether a text of a form can be the version of a refund."""
    return text.isascii() and text.isdigit() and len(text) <= _LONGEST_VERSION


def move_of(entry: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return the time, the stage and the sentence of an entry of the history."""
    said = entry_on_page(entry)
    return history.clock(entry.get("at")), str(entry.get("to", "")), history.sentence(said)


def refusal_of(error: RefundError, form: Mapping[str, str]) -> Refusal | None:
    """Return the refusal that an error is, None if it is shown on a page of its own."""
    problem = problems.of_error(error)
    if problem.kind.status not in _SHOWN:
        return None
    rules = [f"{_FIELDS.get(each.field, each.field)} {each.rule}" for each in problem.errors]
    broken = "; ".join(rules)
    return Refusal(
        status=problem.kind.status,
        # Of a form, this says more than what kind of problem it is.
        title="Nothing was changed.",
        detail=f"{broken[0].upper()}{broken[1:]}." if broken else on_page(problem.detail),
        wrong=frozenset(each.field for each in problem.errors),
        form={name: " ".join(text.split()) for name, text in form.items()},
    )
