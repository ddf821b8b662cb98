"""A server that will not serve is called away, however its version puts it.

A script's errors among them.
"""

from __future__ import annotations

import pytest
from redis import exceptions

from worker.store.connection import is_away, unavailable

SHA = "f_f72f62a2332890119c45ac830ece9f0b7f7bf222"
# As Redis 6.2.14, 7.0.15 and Valkey 8.1.8 wrote them, less the code that the client takes off.
IN_62 = f"Error running script (call to {SHA}): @user_script:374: @user_script: 374: "
FULL = "OOM command not allowed when used memory > 'maxmemory'."
READ_ONLY = "READONLY You can't write against a read only replica."
FORBIDDEN_70 = "The user executing the script can't run this command or subcommand"
FORBIDDEN_8 = "ACL failure in script: User app has no permissions to run the 'hset' command"


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (f"{IN_62}-{FULL}", "refuses commands now (OOM command not allowed"),
        (f"{IN_62}-{READ_ONLY}", "refuses commands now (READONLY You can't write"),
        (
            f"{READ_ONLY} script: {SHA}, on @user_script:374.",
            "refuses commands now (READONLY You can't write",
        ),
        (
            f"{IN_62}{FORBIDDEN_70}",
            "lacks a permission that refunds need (The user executing the script can't run",
        ),
        (
            f"{FORBIDDEN_70} script: {SHA}, on @user_script:1.",
            "lacks a permission that refunds need (The user executing",
        ),
        (
            f"{FORBIDDEN_8} script: on @user_script:1.",
            "need (User app has no permissions to run the 'hset' command)",
        ),
    ],
)
def test_what_a_script_met_is_told_without_its_place(said: str, told: str) -> None:
    error = exceptions.ResponseError(said)
    assert is_away(error)
    sentence = str(unavailable(error, "127.0.0.1:6379"))
    assert told in sentence
    assert "user_script" not in sentence
    assert SHA not in sentence


@pytest.mark.parametrize(
    "said",
    [
        f"{IN_62}Unknown Redis command called from Lua script",
        f"Unknown command called from script script: {SHA}, on @user_script:1.",
        "WRONGTYPE Operation against a key holding the wrong kind of value",
        f"{IN_62}attempt to compare nil with number",
    ],
)
def test_a_fault_of_a_script_is_not_called_away(said: str) -> None:
    assert not is_away(exceptions.ResponseError(said))
