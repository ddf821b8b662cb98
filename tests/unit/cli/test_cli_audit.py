"""`refunds audit`: what people did with the command line, each action with its result."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    import redis

    from tests.support.cli_runner import Cli, Records

ACTOR = {"REFUNDS_ACTOR": "ann"}


def done(cli: Cli, *arguments: str) -> list[tuple[str, str, str]]:
    """Action, target and result, oldest first."""
    found = cli("audit", "--json", "--limit", "0", *arguments).objects
    assert {(each["via"], each["address"]) for each in found} <= {
        ("command line", socket.gethostname())
    }
    return [(each["action"], each["target"], each["result"]) for each in reversed(found)]


def test_each_action_is_noted_with_who_did_it(
    cli: Cli, records: Records, sync_redis: redis.Redis
) -> None:
    fields: dict[Any, Any] = {"rows": 1, "state": "running", "imported_at": 1787730829000}
    sync_redis.hset("refunds:batch:b-1", mapping=fields)
    records.queued("order-1")
    records.queued("order-4", batch_id="b-1", payment_intent="pi_4")
    records.failed("order-2", payment_intent="pi_2")
    records.in_review("order-3", doubt=False, payment_intent="pi_3")
    for arguments in (
        ("pause",),
        ("pause",),
        ("pause", "--batch", "b-1"),
        ("resume", "--batch", "b-1"),
        ("batch", "pause", "b-1"),
        ("batch", "resume", "b-1"),
        ("resume",),
        ("resume",),
        ("cancel", "order-1"),
        ("retry", "order-2", "--unknown"),
        ("review", "resolve", "order-3", "--failed", "paid_in_cash", "--note", "by post"),
        ("tokens", "create", "shop", "--scope", "read"),
        ("tokens", "revoke", "shop"),
        ("tokens", "revoke", "shop"),
        ("callbacks", "on"),
        ("callbacks", "off"),
        ("rejected", "drop", "--all"),
        ("batch", "retry", "b-1"),
        ("batch", "cancel", "b-1"),
        ("recover", "--since", "2026-01-31T09:00:00Z"),
    ):
        ran = cli(*arguments, **ACTOR)
        assert ran.code in {0, 9}, ran.err
    assert done(cli, "--by", "ann") == [
        ("pause", "", "done"),
        ("pause", "", "unchanged"),
        ("batch pause", "b-1", "done"),
        ("batch resume", "b-1", "done"),
        ("batch pause", "b-1", "done"),
        ("batch resume", "b-1", "done"),
        ("resume", "", "done"),
        ("resume", "", "unchanged"),
        ("cancel", "order-1", "done"),
        ("retry", "order-2", "done"),
        ("resolve as failed", "order-3", "done"),
        ("tokens create", "shop", "done"),
        ("tokens revoke", "shop", "done"),
        ("tokens revoke", "shop", "unchanged"),
        ("callbacks on", "", "done"),
        ("callbacks off", "", "done"),
        ("rejected drop", "all", "unchanged"),
        ("batch retry", "b-1", "unchanged"),
        ("batch cancel", "b-1", "done: 1"),
        ("recover", "", "done"),
    ]
    (decision,) = cli("audit", "--target", "order-3", "--json").objects
    assert decision["note"] == "by post"


def test_what_was_done_to_several_is_noted_with_its_number(
    cli: Cli, records: Records, sync_redis: redis.Redis
) -> None:
    fields: dict[Any, Any] = {"rows": 2, "state": "running", "imported_at": 1787730829000}
    for batch_id in ("b-1", "b-2"):
        sync_redis.hset(f"refunds:batch:{batch_id}", mapping=fields)
    for row in ("1", "2"):
        records.failed(f"order-{row}", payment_intent=f"pi_{row}", batch_id="b-1")
    records.sending("order-3", payment_intent="pi_3", batch_id="b-2")
    sync_redis.rpush("refunds:rejected", "odd", "odder")
    for arguments in (
        ("batch", "retry", "b-1"),
        ("batch", "retry", "b-1", "--unknown"),
        ("batch", "retry", "b-1", "--unknown"),
        ("batch", "cancel", "b-1"),
        ("batch", "cancel", "b-1"),
        ("batch", "cancel", "b-2"),
        ("rejected", "drop", "--all"),
        ("rejected", "drop", "--all"),
    ):
        ran = cli(*arguments, **ACTOR)
        assert ran.code in {0, 9}, ran.err
    assert done(cli) == [
        ("batch retry", "b-1", "unchanged"),
        ("batch retry", "b-1", "done: 2"),
        ("batch retry", "b-1", "unchanged"),
        ("batch cancel", "b-1", "done: 2"),
        ("batch cancel", "b-1", "unchanged"),
        ("batch cancel", "b-2", "done"),
        ("rejected drop", "all", "done: 2"),
        ("rejected drop", "all", "unchanged"),
    ]


def test_an_import_is_noted_with_its_batch(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "season.csv"
    file.write_text("refund_id,payment_intent,amount\na-1,pi_1,500\n")
    assert cli("import", str(file), "--dry-run", **ACTOR).code == 0
    assert cli("import", str(file), "--batch", "season", **ACTOR).code == 0
    assert done(cli) == [("import", "season", "done")]
    (entry,) = cli("audit", "--target", "season", "--json").objects
    assert (entry["by"], entry["note"]) == ("ann", "season.csv")


def test_a_refused_action_is_noted_with_the_reason(cli: Cli, records: Records) -> None:
    records.sending("order-1")
    assert cli("cancel", "order-1", **ACTOR).code == 6
    ((action, target, result),) = done(cli)
    assert (action, target) == ("cancel", "order-1")
    assert result.startswith("refused: refund order-1 ")


def test_the_table_shows_the_latest_and_says_that_there_are_more(cli: Cli) -> None:
    assert cli("audit").code == 9
    for _ in range(3):
        cli("pause", **ACTOR)
    ran = cli("audit", "--limit", "2")
    assert (ran.code, ran.out.count("ann")) == (0, 2)
    assert "more actions than the 2 shown" in ran.err
    assert cli("audit", "--by", "bob").code == 9
