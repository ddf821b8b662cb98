"""`refunds tokens`: the tokens with which programs call the HTTP API."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import click
from click.core import ParameterSource
from rich.table import Table

from worker.cli import render
from worker.cli.exits import DONE, NOTHING_TO_DO
from worker.cli.session import act, note, opened, operator
from worker.errors import FieldError, InvalidRequest
from worker.model.callers import Scope, is_token_name
from worker.model.request import is_refund_id, shown
from worker.model.times import rfc3339
from worker.store import tokens as stored
from worker.store.tokens import Token
from worker.wording import values

_LIFE: Final = re.compile(r"([1-9][0-9]{0,3})([hd])")
_UNITS: Final = {"h": timedelta(hours=1), "d": timedelta(days=1)}
_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group()
def tokens() -> None:
    """Create, list and revoke the tokens of the HTTP API that 'refunds serve' answers.

    The history of a refund names the token with which something was done.
    """


def _scopes(_ctx: click.Context, _parameter: click.Parameter, text: str) -> frozenset[Scope]:
    names = [name.strip() for name in text.split(",")]
    known = [scope.value for scope in Scope]
    if wrong := [name for name in names if name not in known]:
        raise click.BadParameter(f"{wrong[0]!r} is not one of {', '.join(known)}")
    return frozenset(Scope(name) for name in names)


def _prefix(ctx: click.Context, parameter: click.Parameter, text: str) -> str:
    # An unset variable of a shell would make a token for all refunds.
    is_given = ctx.get_parameter_source(parameter.name or "") is not ParameterSource.DEFAULT
    if is_given and not text:
        raise click.BadParameter("must not be empty: leave --ids out for a token for all refunds")
    return text


def _life(_ctx: click.Context, _parameter: click.Parameter, text: str | None) -> timedelta | None:
    if text is None:
        return None
    found = _LIFE.fullmatch(text)
    if found is None:
        raise click.BadParameter(f"{text!r} must be 1 to 9999 hours or days, such as 12h or 90d")
    return int(found[1]) * _UNITS[found[2]]


@tokens.command(
    epilog="""\b
Examples:
  refunds tokens create shop --scope read,submit --expires 90d
  refunds tokens create shop-a --scope read,submit --ids shop-a-
  refunds tokens create support --scope read,operate

\b
Scopes: read sees refunds and the feed of moves; submit creates and cancels
refunds; operate retries, rechecks, resolves, pauses and resumes.

\b
Exit code: 6 if a token of this name exists."""
)
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    required=True,
    callback=_scopes,
    metavar="NAMES",
    help=f"What it allows, comma-separated: {', '.join(scope.value for scope in Scope)}.",
)
@click.option(
    "--ids",
    metavar="PREFIX",
    default="",
    callback=_prefix,
    help="Only refunds whose ids begin with PREFIX exist.",
)
@click.option(
    "--expires", "life", callback=_life, metavar="TIME", help="How long it is valid: 12h or 90d."
)
@_json_option
def create(
    *, name: str, scopes: frozenset[Scope], ids: str, life: timedelta | None, as_json: bool
) -> int:
    """Create a token and print it, once: only its SHA-256 is kept."""
    _check(name, ids)
    expires_at = None if life is None else datetime.now(UTC) + life
    with opened() as refunds:
        by = operator(refunds.settings)
        token = act(
            refunds,
            "tokens create",
            name,
            lambda: stored.create(
                refunds.store, name, scopes=scopes, ids_prefix=ids, expires_at=expires_at, by=by
            ),
            reason=f"scopes {','.join(sorted(scopes))}",
        )
        ends = None if expires_at is None else rfc3339(expires_at)
        try:
            _show(name, token, scopes, ids, ends, as_json=as_json)
        except OSError:
            # Nobody holds it, and its name would be taken when the command is run again.
            act(refunds, "tokens revoke", name, lambda: stored.revoke(refunds.store, name))
            note(f"the token {name} could not be shown, so it is revoked")
            raise
    note(
        f"this is the token {name}, shown only now: send it as 'Authorization: Bearer rfw_…'"
        + ("" if ends is None else f"; it expires at {ends}")
    )
    return DONE


def _show(
    name: str, token: str, scopes: frozenset[Scope], ids: str, ends: str | None, *, as_json: bool
) -> None:
    if as_json:
        facts: dict[str, Any] = {"name": name, "token": token, "scopes": sorted(scopes)}
        render.as_json({**facts, "ids": ids, "expires_at": ends})
    else:
        click.echo(token)


def _check(name: str, ids: str) -> None:
    errors = []
    if not is_token_name(name):
        rule = "must be 1 to 100 of A-Z a-z 0-9 . _ : @ -"
        errors.append(FieldError(field="name", code="name", value=shown(name), rule=rule))
    if ids and not is_refund_id(ids):
        rule = "must be the beginning of refund ids: A-Z a-z 0-9 . _ : -"
        errors.append(FieldError(field="ids", code="ids", value=shown(ids), rule=rule))
    if errors:
        raise InvalidRequest(errors)


@tokens.command(
    "list",
    short_help="List the tokens.",
    epilog="\b\nExamples:\n  refunds tokens list\n  refunds tokens list --json",
)
@_json_option
def list_tokens(*, as_json: bool) -> int:
    """List the tokens by name: what they allow, and when they were last used, by the hour."""
    with opened() as refunds:
        found = stored.listed(refunds.store)
    if as_json:
        for token in found:
            render.as_json(_as_dict(token))
    elif found:
        render.put(_listing(found))
    else:
        note("no token exists: create one with 'refunds tokens create NAME --scope read,submit'")
    return DONE


def _as_dict(token: Token) -> dict[str, Any]:
    times = {
        "created_at": token.created_at,
        "expires_at": token.expires_at,
        "revoked_at": token.revoked_at,
        "used_at": token.used_at,
    }
    return {
        "name": token.name,
        "token_id": token.token_id,
        "scopes": sorted(token.scopes),
        "ids": token.ids_prefix,
        "created_by": token.created_by,
        **{name: None if value is None else rfc3339(value) for name, value in times.items()},
    }


def _listing(found: list[Token]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("name", "state", "scopes", "ids", "last used"):
        table.add_column(name, no_wrap=True)
    for token in found:
        table.add_row(
            values.plain(token.name),
            _state(token, datetime.now(UTC)),
            ",".join(sorted(token.scopes)),
            values.plain(token.ids_prefix or "all"),
            values.moment(token.used_at),
        )
    return table


def _state(token: Token, now: datetime) -> str:
    if token.revoked_at is not None:
        return "revoked"
    if not token.is_valid(now):
        return "expired"
    return "valid" if token.expires_at is None else f"until {rfc3339(token.expires_at)[:10]}"


@tokens.command(
    epilog="""\b
Example:
  refunds tokens revoke shop

\b
Exit code: 3 if no token has this name; 9 if it was revoked before."""
)
@click.argument("name")
def revoke(*, name: str) -> int:
    """Revoke a token; every server refuses it within five seconds."""
    with opened() as refunds:
        changed = act(refunds, "tokens revoke", name, lambda: stored.revoke(refunds.store, name))
    if not changed:
        note(f"token {name} was already revoked")
        return NOTHING_TO_DO
    note(f"token {name} is revoked: every server refuses it within five seconds")
    return DONE
