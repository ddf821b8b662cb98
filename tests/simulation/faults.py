"""Every kind of fault that a run must have met; one that never fired proves nothing."""

from __future__ import annotations

from typing import Final

from tests.simulation.clock import FROZEN
from tests.simulation.odd import ON
from tests.simulation.plan import BEFALLS, FAMILIES, MESSAGE_FAULTS, REDIS_FAULTS
from tests.simulation.provider_seam import READS
from tests.simulation.reversals import KILLED, REVERSALS
from tests.simulation.webhooks import FATES

POINTS: Final = (
    "received",
    "before redis",
    "after redis",
    "before bytes",
    "bytes left",
    "reply begins",
    "half a reply",
    "before ack",
)
"""The places at which a worker may be killed or stopped.

Each await that matters outside lies at one of them.
"""
OTHERS: Final = (
    "clock_skewed",
    "key_window_passed",
    "list_lag",
    "message_redelivered",
    "outage_hangs",
    "outage_http_401",
    "outage_http_503",
    "outage_refuses",
    "paused",
    "redis_slow",
    "refunded_elsewhere",
    "resumed",
    "scripts_flushed",
    "stopped_past_lease",
    "terminated_while_some_waited",
)
PEOPLE: Final = (
    "batch_canceled_midway",
    "batch_delayed",
    "batch_paused",
    "batch_retried",
    "cancel_killed",
    "canceled_by_caller",
    "import_killed",
    "import_refused",
    "resolved_failed",
    "resolved_in_error",
    "resolved_resend",
    "resolved_succeeded",
    "retried_by_caller",
)
ODD: Final = {
    "others": (
        "others_before",
        "others_between",
        "others_meanwhile",
        "others_fell_back",
        "ours_fell_back",
    ),
    "adopted": ("reply_of_another",),
    "numbers": ("odd_number",),
    "words": ("other_spelling", "unknown_word"),
    "texts": ("odd_text",),
    "codes": ("made_up_code",),
    "shapes": ("odd_shape",),
    "lag": ("missing_for_a_while", "stale_status", "stale_totals"),
    "unlabelled": ("list_unlabelled",),
    "short": ("list_short",),
    "currency": ("payment_not_shown", "payment_shown_oddly"),
    "clock": ("clock_went_back",),
    "people": ("misled_failed", "misled_resend", "misled_succeeded", FROZEN),
    "power": ("power_cut", "writes_lost"),
    "stubborn": ("stubborn_429",),
    "webhooks": (
        "webhook_early",
        "webhook_late",
        "webhook_twice",
        "webhook_shuffled",
        "webhook_never",
        "webhook_charge",
        "webhook_bare",
        "webhook_unnamed",
        "webhook_forged",
        *FATES,
    ),
    "reversals": (*REVERSALS, KILLED),
    "forgets": (
        "forgot_acceptances",
        "forgot_claims",
        "claimed_unnoticed",
        "counter_caught_up",
        "records_behind",
        "recovered",
    ),
}
"""What fires in a world of each family of `odd`."""
EVERY_FAULT: Final = (
    *(name for family in FAMILIES.values() for name in family),
    *(f"read_{name}" for name in READS),
    *REDIS_FAULTS,
    *MESSAGE_FAULTS,
    *BEFALLS,
    *(f"{what} {where}" for what in BEFALLS for where in POINTS),
    *OTHERS,
    *PEOPLE,
    *(name for family in sorted(ON) for name in ODD[family]),
)
