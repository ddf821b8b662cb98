"""Where each planted bug was seen.

Threads of real projects, and by which rule of the judge it is caught here.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

SEEN_IN: Final[Mapping[str, str]] = MappingProxyType(
    {
        "new_key_on_retry": (
            "square/square-mcp-server#31: a key for each request, so a repeated call pays twice"
        ),
        "body_built_anew": (
            "Adyen/adyen-commercetools#1305: the same key with other contents is refused"
        ),
        "record_deleted_on_error": (
            "aws-powertools/powertools-lambda-typescript#5675: an error drops a run's record"
        ),
        "check_then_insert": (
            "Automattic/woocommerce-payments#3520: two look, neither sees the other, both complete"
        ),
        "lapsed_lease_is_unsent": (
            "OptimalBits/bull#308: a slow worker's lock lapses, another does the job too"
        ),
        "connect_timeout_at_its_word": (
            "psf/requests#5430: a read timeout comes as a ConnectionError"
        ),
        "doubt_forgotten": (
            "getlago/lago-api#6443: 'already refunded' is recorded as a failed refund"
        ),
        "timeout_is_failure": (
            "alphagov/pay-connector#5912: the provider did not answer in time, and had done it"
        ),
        "server_error_is_not_done": (
            "mollie/mollie-api-php#642: repeated after a 500 behind which a payment stood"
        ),
        "redelivery_without_claim": (
            "celery/kombu#337: past the visibility timeout a message runs again"
        ),
        "key_from_amount": (
            "HealthByRo/aa-stripe#68: a key made from the order, which may be charged several times"
        ),
        "stale_write_accepted": (
            "woocommerce/woocommerce-gateway-stripe#905: an older notice overwrites a newer status"
        ),
        "totals_beside_another": (
            "juspay/hyperswitch#13182: two refunds at once, each within the total, not together"
        ),
        "absence_from_one_look": (
            "LIT-Protocol/chipotle#555: a search misses what was just made, and it is made again"
        ),
        "absence_unsettled": (
            "stripe/stripe-go#1891: right after its making a thing is not found, a moment later"
            " it is"
        ),
        "lock_not_held_in_doubt": (
            "vendurehq/vendure#5389: a timeout frees the lock while the work goes on"
        ),
        "worker_clock_trusted": (
            "johanhaleby/occurrent#662: a fast clock takes a healthy lease for lapsed"
        ),
        "key_window_ignored": (
            "crbnos/carbon#252: keys are kept for a day, and a later repetition is a new request"
        ),
        "any_success_believed": "Expensify/App#97568: an error inside a 200 is taken for success",
        "lapsed_leases_not_swept": (
            "Automattic/kue#391: a process dies, and its job is active for ever"
        ),
        "cancel_in_flight": "octos-org/octos#700: canceled, and completed by whoever was at it",
        "further_try_unasked": (
            "EventKit/eventkit-cloud#768: retries go on for what was canceled meanwhile"
        ),
        "ends_without_giving_back": (
            "getsentry/taskbroker#791: what a worker held at its end waits for a deadline"
        ),
        "begins_while_ending": (
            "OptimalBits/bull#447: a read under way hands out one more job after the stop"
        ),
        "canceled_batch_goes_on": (
            "opensensor/lightNVR#171: canceled half way, and all of it was done"
        ),
        "paused_batch_goes_on": "OptimalBits/bull#247: a paused queue goes on handing out jobs",
        "batch_delay_ignored": (
            "laravel/framework#41783: the jobs of a batch are run without their delay"
        ),
        "batch_counts_drift": (
            "sidekiq/sidekiq#5524: a job counted twice, and a batch that is never complete"
        ),
        "rows_forgotten_at_a_restart": (
            "lensesio/stream-reactor#448: going on behind rows that were never sent"
        ),
        "metadata_logged": "woocommerce/woocommerce#19914: customers' data in logs",
        "key_logged": "AuthorizeNet/sdk-node#13: the key in a debug file",
        "message_in_history": (
            "reactioncommerce/reaction#2483: a provider's error kept as it came, with what it"
            " quotes"
        ),
        "message_kept_as_it_came": (
            "fazer-ai/agents#211: a provider's error that quotes a customer, kept verbatim"
        ),
        "payload_in_message": "novacode-nl/odoo-celery#17: a password among a task's arguments",
        "events_left_out": "taskforcesh/bullmq#4136: a stream is cut before its reader has read it",
        "pause_ignored": "sidekiq/sidekiq#4975: a paused queue works on in a new process",
        "rate_not_shared": "celery/celery#5732: a rate for each worker, so that several exceed it",
        "owner_is_kept_per_payment": (
            "angelleye/paypal-woocommerce#97: a reply names another order's transaction"
        ),
        "all_that_was_left_is_ours": (
            "openfoodfoundation/openfoodnetwork#5449: refunds that only the provider knows of"
        ),
        "settled_keeps_its_lock": (
            "ionelmc/python-redis-lock#6: a lock that nobody holds any more, for ever"
        ),
        "script_fails_half_way": (
            "redis/redis#10576: a script that aborts keeps what it has written so far"
        ),
        "not_found_is_gone": (
            "philips-software/terraform-provider-hsdp#222: right after its making it is not found"
        ),
        "time_goes_back": (
            "redis/redis#6416: the clock is set back, another server is promoted, and nothing holds"
        ),
        "older_event_wins": (
            "mollie/WooCommerce#1252: a late 'paid' turns a refunded order back to processing"
        ),
        "early_event_recorded_twice": (
            "antiwork/gumroad#6193: an event comes before the refund is saved: twice saved"
        ),
        "final_state_skipped": (
            "juspay/hyperswitch#13680: a forced read of a refund that has ended reads nothing"
        ),
        "plain_words_only": (
            "stripe/stripe-go#1592: a refund requires_action, and the client has no such status"
        ),
        "texts_kept_whole": "prometheus/prometheus#496: a label for each error text, whole",
        "refused_key_fails_refunds": (
            "freedomofpress/securedrop-client#517: a refused login fails whatever is queued"
        ),
        "marks_not_compared": (
            "Actyx/Actyx#33: a restored node numbers other data as its peers know from before"
        ),
        "claim_asks_nothing": (
            "redis/redis#6062: a key is ten seconds older after a failover, and no client is told"
        ),
        "recovered_as_they_are": (
            "3scale/3scale-Operations#1: jobs of a restored queue run twice, payments among them"
        ),
    }
)
"""owner/repository#number: what the thread shows, in our words.

Bugs that are not here are variations of these.
"""

CAUGHT_BY: Final[Mapping[str, frozenset[str]]] = MappingProxyType(
    {
        "new_key_on_retry": frozenset({"key"}),
        "body_built_anew": frozenset({"body", "key"}),
        "record_deleted_on_error": frozenset({"lost"}),
        "check_then_insert": frozenset({"history", "money_twice"}),
        "lapsed_lease_is_unsent": frozenset({"unproven", "money_twice"}),
        "connect_timeout_at_its_word": frozenset({"unproven", "money_twice", "false_failed"}),
        "doubt_forgotten": frozenset({"false_failed"}),
        "timeout_is_failure": frozenset({"false_failed"}),
        "server_error_is_not_done": frozenset({"unproven", "money_twice"}),
        "redelivery_without_claim": frozenset({"transition", "money_twice", "claim"}),
        "key_from_amount": frozenset({"body"}),
        "stale_write_accepted": frozenset(
            {"claim", "transition", "false_failed", "history", "unproven"}
        ),
        "totals_beside_another": frozenset({"false_succeeded", "amount"}),
        "absence_from_one_look": frozenset({"absence", "false_failed", "money_twice"}),
        "absence_against_the_total": frozenset({"absence", "false_failed", "money_twice"}),
        "absence_unsettled": frozenset({"absence", "false_failed", "money_twice"}),
        "lock_not_held_in_doubt": frozenset({"lock"}),
        "worker_clock_trusted": frozenset({"claim", "window", "history", "forgotten"}),
        "key_window_ignored": frozenset({"window", "money_twice"}),
        "any_success_believed": frozenset({"amount", "false_succeeded"}),
        "lapsed_leases_not_swept": frozenset({"forgotten", "stranded"}),
        "cancel_in_flight": frozenset({"false_failed"}),
        "further_try_unasked": frozenset({"claim"}),
        "person_believed_unread": frozenset({"false_failed"}),
        "person_believed_unproven": frozenset({"false_failed", "money_twice", "unproven"}),
        "ends_without_giving_back": frozenset({"kept", "given_back"}),
        "begins_while_ending": frozenset({"began"}),
        "canceled_batch_goes_on": frozenset({"batch"}),
        "paused_batch_goes_on": frozenset({"batch"}),
        "batch_delay_ignored": frozenset({"batch"}),
        "batch_counts_drift": frozenset({"batch"}),
        "rows_forgotten_at_a_restart": frozenset({"lost"}),
        "metadata_logged": frozenset({"secret"}),
        "key_logged": frozenset({"secret"}),
        "message_in_history": frozenset({"secret"}),
        "message_kept_as_it_came": frozenset({"secret"}),
        "payload_in_message": frozenset({"secret"}),
        "events_left_out": frozenset({"events"}),
        "callback_left_out": frozenset({"callback"}),
        "pause_ignored": frozenset({"brake"}),
        "refused_key_ignored": frozenset({"brake"}),
        "retry_after_ignored": frozenset({"brake"}),
        "rate_ignored": frozenset({"rate"}),
        "rate_not_shared": frozenset({"rate"}),
        "refused_key_fails_refunds": frozenset({"false_failed"}),
        "rate_limit_fails_refunds": frozenset({"false_failed"}),
        "unsent_fails_refunds": frozenset({"false_failed"}),
        "given_up_early": frozenset({"false_failed"}),
        "attempts_miscounted": frozenset({"history"}),
        "others_never_fall_back": frozenset({"absence", "money_twice"}),
        "rise_believed_whenever": frozenset({"false_succeeded"}),
        "all_that_was_left_is_ours": frozenset({"amount"}),
        "older_entries_are_not_ours": frozenset({"absence", "money_twice"}),
        "owner_is_kept_per_payment": frozenset({"adopted", "false_succeeded"}),
        "echo_settles": frozenset({"false_failed"}),
        "settled_keeps_its_lock": frozenset({"lock"}),
        "sums_counted_once_only": frozenset({"counters"}),
        "request_forgotten": frozenset({"body"}),
        "script_fails_half_way": frozenset({"script", "history", "index"}),
        "unconfirmed_currency_will_do": frozenset({"currency"}),
        "not_found_is_gone": frozenset({"hasty"}),
        "word_not_on_disk": frozenset({"told"}),
        "time_goes_back": frozenset({"window", "money_twice"}),
        "proof_against_settled_dropped": frozenset({"untold"}),
        "amount_of_any_size": frozenset({"amount", "script", "lock", "open"}),
        "texts_kept_whole": frozenset({"bounds", "secret"}),
        "counted_as_they_come": frozenset({"bounds"}),
        "plain_words_only": frozenset({"word"}),
        "word_not_told": frozenset({"word"}),
        "body_believed": frozenset({"event"}),
        "older_event_wins": frozenset({"reverted"}),
        "early_event_recorded_twice": frozenset({"twice"}),
        "hint_sent_again": frozenset({"hinted"}),
        "guard_removed": frozenset({"guard"}),
        "tie_at_the_cursor_lost": frozenset({"unnoticed"}),
        "cursor_moved_first": frozenset({"unnoticed"}),
        "final_state_skipped": frozenset({"unnoticed"}),
        "earlier_refunds_forgotten": frozenset({"unnoticed"}),
        "marks_not_compared": frozenset({"forgot"}),
        "stop_ends_when_caught_up": frozenset({"forgot"}),
        "claim_asks_nothing": frozenset({"forgot"}),
        "stop_not_kept": frozenset({"forgot"}),
        "memory_outlives_recovery": frozenset({"behind"}),
        "recovered_as_they_are": frozenset({"money_twice", "unproven"}),
        "resubmitted_as_new": frozenset({"money_twice", "unproven"}),
    }
)
"""The rules by which a bug is to be caught.

An error, or a rule that happens to be in its way, is not enough.
"""

CAUGHT_AT: Final[Mapping[str, int]] = MappingProxyType(
    {
        "absence_against_the_total": 17,
        "absence_from_one_look": 104,
        "absence_unsettled": 32,
        "all_that_was_left_is_ours": 278,
        "amount_of_any_size": 134,
        "any_success_believed": 48,
        "attempts_miscounted": 0,
        "batch_counts_drift": 1,
        "batch_delay_ignored": 25,
        "begins_while_ending": 18,
        "body_believed": 1,
        "body_built_anew": 2,
        "callback_left_out": 0,
        "cancel_in_flight": 50,
        "canceled_batch_goes_on": 18,
        "check_then_insert": 0,
        "claim_asks_nothing": 111,
        "connect_timeout_at_its_word": 0,
        "counted_as_they_come": 51,
        "cursor_moved_first": 27,
        "doubt_forgotten": 17,
        "earlier_refunds_forgotten": 26,
        "early_event_recorded_twice": 31,
        "echo_settles": 202,
        "ends_without_giving_back": 3,
        "events_left_out": 0,
        "final_state_skipped": 27,
        "further_try_unasked": 7,
        "given_up_early": 26,
        "guard_removed": 11,
        "hint_sent_again": 67,
        "key_from_amount": 1,
        "key_logged": 3,
        "key_window_ignored": 50,
        "lapsed_lease_is_unsent": 8,
        "lapsed_leases_not_swept": 13,
        "lock_not_held_in_doubt": 0,
        "marks_not_compared": 209,
        "memory_outlives_recovery": 83,
        "message_in_history": 2,
        "message_kept_as_it_came": 1,
        "metadata_logged": 3,
        "new_key_on_retry": 2,
        "not_found_is_gone": 23,
        "older_entries_are_not_ours": 8,
        "older_event_wins": 15,
        "others_never_fall_back": 689,
        "owner_is_kept_per_payment": 149,
        "pause_ignored": 8,
        "paused_batch_goes_on": 41,
        "payload_in_message": 3,
        "person_believed_unproven": 36,
        "person_believed_unread": 36,
        "plain_words_only": 46,
        "proof_against_settled_dropped": 872,
        "rate_ignored": 4,
        "rate_limit_fails_refunds": 9,
        "rate_not_shared": 4,
        "record_deleted_on_error": 0,
        "recovered_as_they_are": 156,
        "redelivery_without_claim": 8,
        "refused_key_fails_refunds": 2,
        "refused_key_ignored": 82,
        "request_forgotten": 0,
        "resubmitted_as_new": 156,
        "retry_after_ignored": 26,
        "rise_believed_whenever": 167,
        "rows_forgotten_at_a_restart": 1,
        "script_fails_half_way": 0,
        "server_error_is_not_done": 11,
        "settled_keeps_its_lock": 8,
        "stale_write_accepted": 37,
        "stop_ends_when_caught_up": 111,
        "stop_not_kept": 83,
        "sums_counted_once_only": 4,
        "texts_kept_whole": 9,
        "tie_at_the_cursor_lost": 103,
        "time_goes_back": 226,
        "timeout_is_failure": 0,
        "totals_beside_another": 643,
        "unconfirmed_currency_will_do": 7,
        "unsent_fails_refunds": 12,
        "word_not_on_disk": 44,
        "word_not_told": 140,
        "worker_clock_trusted": 0,
    }
)
"""A seed that caught a bug quickly, when that was last looked up.

It is played before all others. A seed that catches it no longer costs only time.
"""
