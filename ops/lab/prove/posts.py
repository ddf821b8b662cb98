"""The rules of `prove` about repeated POSTs: each follows a proof of absence, or a claim of its own
within the window of its key.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

from ops.lab.prove.evidence import Evidence, Post
from ops.lab.prove.violation import CLOCK_SLACK, Violation
from worker.provider.gateway import MAX_TRIES

NOT_DONE: Final = frozenset({401, 403, 429})
"""Whole answers after which a refund is sent again without any read-back."""
PROVEN: Final = frozenset({"absence_proven", "operator_says_absent"})


def sent_past_the_window(evidence: Evidence) -> bool:
    """Tell whether any key that may have been at work was sent once more after its window."""
    first: dict[str | None, float] = {}
    for post in evidence.posts:
        if post.key in first and post.at - first[post.key] > evidence.key_window:
            return True
        if post.answered not in NOT_DONE:
            first.setdefault(post.key, post.at)
    return False


def proof_before_post(
    evidence: Evidence, histories: Mapping[str, Sequence[Mapping[str, Any]]]
) -> Iterator[Violation]:
    """Yield POSTs that followed a doubt with no proof of absence, by the history and by the
    provider's request log.
    """
    posts: dict[str | None, list[Post]] = defaultdict(list)
    for post in sorted(evidence.posts, key=lambda post: post.at):
        posts[post.refund_id].append(post)
    for refund_id, entries in histories.items():
        if evidence.verify:
            yield from _resends_by_history(refund_id, entries)
        if evidence.history_lost:
            continue
        if evidence.verify:
            yield from _posts_by_claims(refund_id, entries, posts[refund_id], evidence.slack)
        else:
            yield from _posts_by_tries(refund_id, entries, posts[refund_id])
            yield from _past_the_window(refund_id, entries, posts[refund_id], evidence.key_window)


def _resends_by_history(
    refund_id: str, entries: Sequence[Mapping[str, Any]]
) -> Iterator[Violation]:
    doubt, label = False, ""
    for entry in entries:
        if entry["to"] == "in_doubt":
            doubt = True
        elif entry["to"] == "sending":
            proven = entry["label"] == "resend" and label in PROVEN
            if doubt and not proven:
                fact = f"claimed as {entry['label']} after {label}, with the doubt standing"
                yield Violation(rule="unproven", about=refund_id, fact=fact)
            doubt = False
        label = entry["label"]


def _posts_by_claims(
    refund_id: str, entries: Sequence[Mapping[str, Any]], posts: Sequence[Post], slack: float
) -> Iterator[Violation]:
    claims = [entry for entry in entries if entry["to"] == "sending"]
    for number, post in enumerate(posts, 1):
        standing = [claim for claim in claims if claim["at"] / 1000 <= post.at + slack]
        if len(standing) < number:
            fact = f"POST {number} came when {len(standing)} claims had been recorded"
            yield Violation(rule="unproven", about=refund_id, fact=fact)
        elif (
            number > 1
            and standing[-1]["label"] == "send"
            and posts[number - 2].answered not in NOT_DONE
        ):
            before = posts[number - 2]
            fact = (
                f"POST {number} follows one answered {before.answered} ({before.fault}) with no"
                " look between"
            )
            yield Violation(rule="unproven", about=refund_id, fact=fact)


def _posts_by_tries(
    refund_id: str, entries: Sequence[Mapping[str, Any]], posts: Sequence[Post]
) -> Iterator[Violation]:
    """Yield POSTs beyond the tries of all claims so far.

    A further try inside an attempt needs no claim of its own.
    """
    ends = [*entries[1:], None]
    claims = [
        (entry, end) for entry, end in zip(entries, ends, strict=True) if entry["to"] == "sending"
    ]
    for number, post in enumerate(posts, 1):
        before = [end for claim, end in claims if claim["at"] / 1000 <= post.at + CLOCK_SLACK]
        # Of an attempt whose claimant did not end it itself nobody knows how often it tried.
        tries = sum(
            end.get("tries", 1) if end is not None and "ms" in end else MAX_TRIES for end in before
        )
        if tries < number:
            fact = (
                f"POST {number} came when {len(before)} claims had been recorded, with {tries}"
                " tries"
            )
            yield Violation(rule="unclaimed", about=refund_id, fact=fact)


def _past_the_window(
    refund_id: str, entries: Sequence[Mapping[str, Any]], posts: Sequence[Post], window: float
) -> Iterator[Violation]:
    """Yield POSTs under a key first sent longer ago that may have been at work, with no absence
    proven since.
    """
    proven = [
        claim["at"] / 1000
        for before, claim in pairwise(entries)
        if claim["label"] == "resend" and before["label"] in PROVEN
    ]
    first: dict[str | None, float] = {}
    doubtful: set[str | None] = set()
    for post in posts:
        age = post.at - first.setdefault(post.key, post.at)
        claims = [at for at in proven if at <= post.at + CLOCK_SLACK]
        if claims:
            # A proof is good for one POST: that one may have happened again.
            del proven[: len(claims)]
            doubtful.discard(post.key)
        if age > window + CLOCK_SLACK and post.key in doubtful:
            fact = (
                f"sent under its key {age:.1f} s after the first time, of {window:g}, with no"
                " absence proven"
            )
            yield Violation(rule="window", about=refund_id, fact=fact)
        if post.answered not in NOT_DONE:
            doubtful.add(post.key)
