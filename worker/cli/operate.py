"""`refunds pause` and `resume` stop and start sending."""

from __future__ import annotations

import click

from worker.batches import pause_batch, resume_batch
from worker.cli.batch import paused_sentence, resumed_sentence
from worker.cli.exits import DONE, NOTHING_TO_DO
from worker.cli.session import ALL_PAUSED, act, note, opened, operator
from worker.client import Refunds
from worker.store import flags
from worker.wording import values

batch_option = click.option("--batch", metavar="ID", help="Only the refunds of this batch.")


@click.command(
    epilog="""\b
Examples:
  refunds pause
  refunds pause --batch b-20260131-4f1c2a

\b
Exit code: 9 if it was already paused, or the batch is finished."""
)
@batch_option
def pause(*, batch: str | None) -> int:
    """Stop sending refunds, until 'refunds resume'.

    Refunds in flight finish, and the provider is still asked about those that may have happened.
    New refunds are still accepted, and wait.
    """
    with opened() as refunds:
        store, by = refunds.store, operator(refunds.settings)
        if batch is not None:
            changed = act(refunds, "batch pause", batch, lambda: pause_batch(store, batch, by))
            note(paused_sentence(store, batch, changed=changed))
            return DONE if changed else NOTHING_TO_DO
        changed, state = act(refunds, "pause", "", lambda: flags.pause(store, by))
    since = f"since {values.moment(state.paused_at)} by {values.plain(state.paused_by)}"
    note(f"{'paused' if changed else 'already paused'} {since}: send again with 'refunds resume'")
    return DONE if changed else NOTHING_TO_DO


@click.command(
    epilog="""\b
Examples:
  refunds resume
  refunds resume --batch b-20260131-4f1c2a
  refunds resume --account

\b
Exit code: 9 if it was not paused; with --account 9 if there is nothing to
confirm."""
)
@batch_option
@click.option(
    "--account",
    is_flag=True,
    help=(
        "Confirm that the API key belongs to the account of these records. A payment missing there"
        " counts as gone."
    ),
)
@click.option("--force", is_flag=True, help="With --account: also if no payment is missing.")
def resume(*, batch: str | None, account: bool, force: bool) -> int:
    """Start sending refunds again; those held back are sent within half a minute."""
    if account and batch is not None:
        raise click.UsageError(
            f"--account applies to all refunds, not to one batch: leave out --batch {batch}"
        )
    if force and not account:
        raise click.UsageError(
            "--force only applies to --account: add --account, or leave out --force"
        )
    with opened() as refunds:
        if account:
            if not force and (why := _needless(refunds)) is not None:
                note(why)
                return NOTHING_TO_DO
            before = act(
                refunds, "resume --account", "", lambda: flags.vouch_for_account(refunds.store)
            )
            return _account_confirmed(before)
        if batch is not None:
            changed = act(
                refunds, "batch resume", batch, lambda: resume_batch(refunds.store, batch)
            )
            note(resumed_sentence(refunds.store, batch, changed=changed))
            if flags.read(refunds.store).paused_at is not None:
                note(ALL_PAUSED)
            return DONE if changed else NOTHING_TO_DO
        changed, before = act(refunds, "resume", "", lambda: flags.resume(refunds.store))
    if before.account_lost_at is not None:
        note(
            "still nothing is sent, because the API key may belong to another account: see 'refunds"
            " doctor'"
        )
    elif before.stopped:
        note("still nothing is sent: see why with 'refunds doctor'")
    if not changed:
        note("nothing was paused")
        return NOTHING_TO_DO
    note(
        f"resumed; sending had been paused since {values.moment(before.paused_at)} by"
        f" {values.plain(before.paused_by)}"
    )
    return DONE


def _needless(refunds: Refunds) -> str | None:
    """Return why there is nothing to confirm about the account, None if there is something."""
    seen, key = flags.read(refunds.store), refunds.settings.api_key
    if seen.account_lost_at is not None:
        return None
    if key is None:
        return (
            "nothing was changed: no payment is missing, and no API key is set here that could be"
            " unknown; if a worker refused to start with its key, and the key is of the same"
            " account, run 'refunds resume --account --force'"
        )
    if seen.knows(key.get_secret_value()):
        return "nothing was changed: no payment is missing, and the records know this API key"
    return None


def _account_confirmed(before: flags.Switches) -> int:
    if before.account_lost_payment is not None:
        note(f"payment {before.account_lost_payment} counts as gone, and refunds are sent again")
    note(
        "the API key of the next worker that starts within an hour is accepted for the account of"
        " these records"
    )
    if before.paused_at is not None:
        note(ALL_PAUSED)
    return DONE
