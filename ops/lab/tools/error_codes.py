"""Writes `ops/docs/error-codes.md` from the table of error codes.

`./ops/dev python -m ops.lab.tools.error_codes`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from worker.rules.codes import CODES, Code, Section

PAGE: Final = Path(__file__).parents[2] / "docs" / "error-codes.md"

_INTRODUCTION: Final = """\
# Error codes

`error_code` of a refund, who acts on it, and what a caller does. Made from `worker/rules/codes.py` by
`./ops/dev python -m ops.lab.tools.error_codes`; a test holds it to that table.

**Read `stage` first.** Only in stage `settled` does `error_code` say how the refund ended. Before that it is what the
last attempt or read-back showed.

| `stage` | what `error_code` is | who acts |
|---|---|---|
"""
_STAGES: Final = (
    (
        "`settled`",
        (
            "why it failed or was canceled: [the provider](#refused-by-the-provider), [the"
            " worker](#ended-by-the-worker)"
        ),
        "as the table says",
    ),
    (
        "`queued`, `sending`, `waiting`, `in_doubt`, `processing`",
        "what was seen last; [the worker continues](#the-worker-continues)",
        "nobody, unless the table names someone",
    ),
    (
        "`review`",
        "what was seen last; often not [the reason for the review](#reasons-for-review)",
        "**always a person**: the worker sends nothing more before `refunds review resolve`",
    ),
)
_RETRIABLE: Final = """
*Retriable* says whether sending it again can help: `yes`, `no` or `unknown`; empty if no refund ends as
failed with the code. A provider may send any other code: it is kept as it came, is retriable `unknown`, and
counts as `other`.
"""

_REFUSED: Final = """\
In stage `settled`: the refund has failed, and the provider's reply says that nothing of it moved money. In stage
`review`: an earlier attempt may have moved the money, and the refusal may be an echo of it. Such a case is
`charge_already_refunded` after a reply that was lost. A person decides.
"""
_GOING: Final = """\
What the last attempt or read-back showed. The advice holds until the refund is settled or in `review`. In `review` the
worker has stopped, and a person decides, whatever the code is.
"""
_REVIEW: Final = """\
A refund in stage `review` waits for a person, without a time limit. `refunds status ID` shows the reason,
`refunds review show ID` the evidence too, and what can be decided. For programs, the reason is `label` of the last move
that has an `alarm` in `refunds status ID --history --json`. *Unchanged* means: the record's `error_code` is still that
of the last attempt, such as `no_reply` or `lease_lapsed`.
"""
_SECTIONS: Final[dict[Section, tuple[str, str]]] = {
    "refused": ("Refused by the provider", _REFUSED),
    "ended": ("Ended by the worker", "The worker ended the refund, for a reason of its own.\n"),
    "going": ("The worker continues", _GOING),
    "review": ("Reasons for review", _REVIEW),
}
_OTHER_REASON: Final = (
    "| any other code | As the tables above say, and one of: nothing may be read back"
    " (`REFUNDS_READBACK=none`); a refusal that may be the echo of an earlier attempt; three leases"
    " in a row that lapsed. The message says which. | the same |"
)


def page() -> str:
    """Return the whole page."""
    return "\n".join(_lines())


def _lines() -> Iterator[str]:
    yield from _INTRODUCTION.splitlines()
    yield from (f"| {' | '.join(cells)} |" for cells in _STAGES)
    yield from _RETRIABLE.splitlines()
    for section, (title, words) in _SECTIONS.items():
        rows = [code for code in CODES.values() if code.section == section]
        yield from ("", f"## {title}", "", *words.splitlines(), "")
        if section == "review":
            yield from (
                "| reason | meaning | `error_code` |",
                "|---|---|---|",
                *map(_reason, rows),
                _OTHER_REASON,
            )
        else:
            yield from (
                "| code | meaning | who acts | retriable | what to do |",
                "|---|---|---|---|---|",
            )
            yield from map(_row, rows)
    yield ""


def _row(code: Code) -> str:
    retriable = "" if code.retriable is None else code.retriable.value
    return f"| `{code.name}` | {code.meaning} | {code.actor} | {retriable} | {code.advice} |"


def _reason(code: Code) -> str:
    return f"| `{code.name}` | {code.meaning} | {'the same' if code.is_stored else 'unchanged'} |"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"wrote {PAGE.name}: {len(CODES)} codes\n")
