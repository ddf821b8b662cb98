"""Why a form was not followed: shown on the view that it came from, with what was typed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final

from worker.errors import RefundError
from worker.http import problems
from worker.wording import history

_SHOWN: Final = frozenset({HTTPStatus.CONFLICT, HTTPStatus.UNPROCESSABLE_ENTITY})
_LONGEST_VERSION: Final = 15


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
    return history.clock(entry.get("at")), str(entry.get("to", "")), history.sentence(dict(entry))


def refusal_of(error: RefundError, form: Mapping[str, str]) -> Refusal | None:
    """Return the refusal that an error is, None if it is shown on a page of its own."""
    problem = problems.of_error(error)
    if problem.kind.status not in _SHOWN:
        return None
    rules = [f"{each.field.replace('_', ' ')} {each.rule}" for each in problem.errors]
    return Refusal(
        status=problem.kind.status,
        title=problem.kind.title,
        detail=f"{'; '.join(rules)}." if rules else problem.detail,
        wrong=frozenset(each.field for each in problem.errors),
        form={name: " ".join(text.split()) for name, text in form.items()},
    )
