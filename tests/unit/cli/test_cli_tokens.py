"""`refunds tokens`: shown once, listed without secrets, revoked for good."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.cli_runner import SECONDS
from worker.model.callers import token_id
from worker.store import tokens

if TYPE_CHECKING:
    import redis

    from tests.support.cli_runner import Cli
    from worker.store.store import Store
    from worker.store.tokens import Token


def create(cli: Cli, name: str = "shop", *more: str) -> str:
    ran = cli("tokens", "create", name, "--scope", "read,submit", *more)
    assert ran.code == 0, ran.err
    assert re.fullmatch(r"rfw_[0-9a-f]{8}_[A-Za-z0-9_-]{43}\n", ran.out)
    return ran.out.strip()


def test_a_token_is_shown_once_and_not_kept(cli: Cli, sync_redis: redis.Redis) -> None:
    token = create(cli, "shop", "--ids", "shop-a-", "--expires", "90d")
    ran = cli("tokens", "list", "--json")
    shown = ran.object
    assert (shown["name"], shown["scopes"], shown["ids"]) == ("shop", ["read", "submit"], "shop-a-")
    assert (shown["token_id"], shown["used_at"]) == (token_id(token), None)
    assert shown["expires_at"] > shown["created_at"]
    kept = "".join(str(sync_redis.hgetall(key)) for key in sync_redis.scan_iter("*token*"))
    for text in (kept, ran.out, cli("tokens", "list").out):
        assert token not in text
        assert token.rpartition("_")[2] not in text


def test_a_name_is_given_once_until_its_token_is_revoked(cli: Cli, sync_redis: redis.Redis) -> None:
    first = create(cli)
    ran = cli("tokens", "create", "shop", "--scope", "read")
    assert (ran.code, ran.out) == (6, "")
    assert "refunds tokens revoke shop" in ran.err
    assert cli("tokens", "revoke", "shop").code == 0
    assert cli("tokens", "revoke", "shop").code == 9
    second = create(cli)
    assert first != second
    assert cli("tokens", "list", "--json").object["token_id"] == token_id(second)
    kept = list(sync_redis.scan_iter("refunds:token:*"))
    assert kept == [f"refunds:token:{token_id(second)}"]


def test_two_who_replace_a_revoked_token_at_once_leave_one_that_can_be_revoked(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    create(cli)
    assert cli("tokens", "revoke", "shop").code == 0
    other: list[str] = []
    real = tokens._named

    def named(store: Store, name: str) -> Token | None:
        found = real(store, name)
        if not other:
            # The other one is made after this one has seen the revoked token.
            other.append("")
            other[0] = create(cli)
        return found

    monkeypatch.setattr(tokens, "_named", named)
    ran = cli("tokens", "create", "shop", "--scope", "read")
    assert (ran.code, ran.out, "was created a moment ago" in ran.err) == (6, "", True)
    assert cli("tokens", "list", "--json").object["token_id"] == token_id(other[0])


@pytest.mark.parametrize(
    ("to", "more"), [(">/dev/full", ""), (">&-", ""), (">/dev/full", "--json")]
)
def test_a_token_that_could_not_be_shown_is_revoked_and_made_again(
    cli: Cli, to: str, more: str
) -> None:
    command = f"exec {sys.executable} -m worker tokens create shop --scope read {more} {to}"
    done = subprocess.run(
        ["/bin/sh", "-c", command],
        env=cli.real(),
        stderr=subprocess.PIPE,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 1
    said, error = done.stderr.splitlines()
    assert said == "the token shop could not be shown, so it is revoked"
    assert error.startswith("error: the output cannot be written")
    assert cli("tokens", "list", "--json").object["revoked_at"] is not None
    # As the error says: run the command again.
    create(cli)


def test_an_unknown_name_is_three_and_no_token_is_a_note(cli: Cli) -> None:
    assert cli("tokens", "revoke", "shop").code == 3
    ran = cli("tokens", "list")
    assert (ran.code, ran.out) == (0, "")
    assert "refunds tokens create" in ran.err


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["shop"], 2),
        (["shop", "--scope", "admin"], 2),
        (["shop", "--scope", ""], 2),
        (["shop", "--scope", "read", "--expires", "soon"], 2),
        (["shop", "--scope", "read", "--expires", "0d"], 2),
        # As with the variable of a shell that is not set: it must not make a token for all ids.
        (["shop", "--scope", "read", "--ids", ""], 2),
        (["a shop", "--scope", "read"], 3),
        (["shop", "--scope", "read", "--ids", "a b"], 3),
    ],
)
def test_a_wrong_option_creates_nothing(cli: Cli, arguments: list[str], code: int) -> None:
    assert cli("tokens", "create", *arguments).code == code
    assert cli("tokens", "list", "--json").out == ""


def test_redis_away_is_five(away: Cli) -> None:
    assert away("tokens", "list").code == 5
    assert away("tokens", "create", "shop", "--scope", "read").code == 5
