"""In which seeds a planted bug can show: in a hunt the others need not be played."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tests.simulation.bugs.planted_forgetting import OF_FORGETTING
from tests.simulation.drawing import plan_for
from tests.simulation.plan import Plan
from tests.simulation.provider_seam import WRONG

_SHOWS_ONLY: Final[dict[str, Callable[[Plan], bool]]] = {
    "totals_beside_another": lambda plan: plan.rules.readback == "totals" and "lag" in plan.odd,
    "key_window_ignored": lambda plan: plan.rules.idempotency == "trust",
    "any_success_believed": lambda plan: bool({*WRONG} & {*plan.post_faults}),
    **dict.fromkeys(
        ("canceled_batch_goes_on", "paused_batch_goes_on", "batch_delay_ignored"),
        lambda plan: bool(plan.files),
    ),
    "pause_ignored": lambda plan: bool(plan.pauses),
    "others_never_fall_back": lambda plan: plan.rules.totals_proof and "others" in plan.odd,
    **dict.fromkeys(
        ("rise_believed_whenever", "all_that_was_left_is_ours"),
        lambda plan: plan.rules.readback == "totals" and "others" in plan.odd,
    ),
    "older_entries_are_not_ours": lambda plan: (
        plan.rules.readback == "list" and "unlabelled" in plan.odd
    ),
    "owner_is_kept_per_payment": lambda plan: "adopted" in plan.odd,
    "unconfirmed_currency_will_do": lambda plan: "currency" in plan.odd,
    "not_found_is_gone": lambda plan: "lag" in plan.odd,
    "word_not_on_disk": lambda plan: "power" in plan.odd,
    "time_goes_back": lambda plan: "clock" in plan.odd,
    **dict.fromkeys(
        ("echo_settles", "proof_against_settled_dropped"), lambda plan: "people" in plan.odd
    ),
    **dict.fromkeys(
        ("body_believed", "older_event_wins", "early_event_recorded_twice", "hint_sent_again"),
        lambda plan: "webhooks" in plan.odd,
    ),
    **dict.fromkeys((bug.__name__ for bug in OF_FORGETTING), lambda plan: "forgets" in plan.odd),
    "guard_removed": lambda plan: "reversals" in plan.odd,
    "tie_at_the_cursor_lost": lambda plan: plan.watch.lockstep and bool(plan.watch.rungs),
    **dict.fromkeys(
        ("cursor_moved_first", "final_state_skipped", "earlier_refunds_forgotten"),
        lambda plan: bool(plan.watch.rungs),
    ),
    "amount_of_any_size": lambda plan: "numbers" in plan.odd,
    "counted_as_they_come": lambda plan: "codes" in plan.odd,
    "texts_kept_whole": lambda plan: "texts" in plan.odd,
    **dict.fromkeys(("plain_words_only", "word_not_told"), lambda plan: "words" in plan.odd),
    **dict.fromkeys(("rate_ignored", "rate_not_shared"), lambda plan: plan.rate > 0),
    **dict.fromkeys(
        ("metadata_logged", "key_logged", "payload_in_message"), lambda plan: plan.heard
    ),
}


def may_show(bug: str | None, seed: int) -> bool:
    """Tell whether a bug can show in a seed at all."""
    return bug not in _SHOWS_ONLY or _SHOWS_ONLY[bug](plan_for(seed))
