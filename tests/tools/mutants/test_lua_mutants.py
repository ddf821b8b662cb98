"""Which changes of a Lua script are tried."""

from __future__ import annotations

import gc

import lupa.lua51  # type: ignore[import-untyped]  # it carries no types
import pytest

from ops.lab.mutants.lua import lua_mutants, marked
from ops.lab.mutants.scripts import live_scripts, read_again
from worker.store import callbacks, scripts
from worker.store.scripts import Script


def changed(source: str) -> list[str]:
    """The changed lines of every mutant, in the order of the file."""
    return [" ".join(mutant.after.split()) for mutant in lua_mutants(source, "one.lua")]


@pytest.mark.parametrize(
    ("line", "mutants"),
    [
        ("local a = b < c", ["local a = b <= c", "local a = b >= c"]),
        ("local a = b == c", ["local a = b ~= c"]),
        ("local a = b and c or d", ["local a = b or c or d", "local a = b and c and d"]),
        ("local a = not b", ["local a = b"]),
        ("local a = b + c", ["local a = b - c"]),
        ("local a = -b * c", ["local a = -b / c"]),
        ("local a = 1", ["local a = 2", "local a = 0"]),
        ("local a = b[1]", ["local a = b[2]"]),
        ("local a = true", ["local a = false"]),
        ("local a = math.min(b, c)", ["local a = math.max(b, c)"]),
        ("local a = 'stage'", ["local a = 'stagex'"]),
        ("local a = 'HSET'", []),
        ("redis.call('HSET', key, name)", ["do end"]),
        ("set.stage, set.status = to, #b", ["do end"]),
        ("a = b .. c[d]; e(f)", ["do end; e(f)", "a = b .. c[d]; do end"]),
        (
            "if a then return b end",
            ["if true then return b end", "if false then return b end", "if a then return nil end"],
        ),
        ("while a do b() end", ["while false do b() end", "while a do do end end"]),
        ("return {a, b}", ["return nil"]),
        ("return nil", []),
        ("-- a + 1 == b", []),
    ],
)
def test_a_line_is_changed_in_these_ways(line: str, mutants: list[str]) -> None:
    assert sorted(changed(line)) == sorted(mutants)


def test_a_statement_ends_where_the_next_one_begins() -> None:
    source = "a = b\nc('x',\n  d)\nlocal e = f(g)\nh.i[j](k)\n"
    assert changed(source)[0] == "do end"
    assert [
        (one.line, one.before) for one in lua_mutants(source, "one.lua") if one.after == "do end"
    ] == [
        (1, "a = b"),
        (2, "c('x', d)"),
        (5, "h.i[j](k)"),
    ]


def test_a_mutant_names_the_function_it_stands_in() -> None:
    source = (
        "local function f(a)\n  for _, b in ipairs(a) do g(b) end\n  if a then return end\n "
        " g(a)\nend\ng(1)\n"
    )
    found = {(one.line, one.function) for one in lua_mutants(source, "one.lua")}
    assert found == {(2, "f"), (3, "f"), (4, "f"), (6, "")}


def test_what_the_shared_beginning_declares_is_known() -> None:
    assert lua_mutants("return int(NOW)", "one.lua", "local NOW = 1") != []


BRANCHES = """\
local function f(a)
  if a then g(1) elseif b then g(2) else g(3) end
  for _, c in ipairs(d) do g(4) end
  h(function(e) g(5) end)
end
g(6)
"""


def test_a_mutant_names_the_block_that_a_test_must_enter() -> None:
    at = {one.start: one.touched[0] for one in lua_mutants(BRANCHES, "one.lua")}
    blocks = [at[BRANCHES.index(f"g({number})") + 2] for number in range(1, 7)]
    assert blocks == [2, 3, 4, 5, 6, 0]


def test_each_block_bears_its_mark_and_the_script_still_runs() -> None:
    text = marked(BRANCHES, lambda number: f"enter({number})")
    runtime = lupa.lua51.LuaRuntime()
    entered: list[int] = []
    runtime.globals().enter = entered.append
    runtime.globals().g = lambda _: None
    runtime.globals().d = runtime.table(1)
    runtime.globals().h = lambda function: function(None)
    runtime.execute(f"{text}\nf(true) f(nil) b = 1 f(nil)")
    assert entered == [0, 1, 2, 5, 6, 1, 4, 5, 6, 1, 3, 5, 6]


@pytest.mark.parametrize("script", [scripts.LOAD, scripts.CLAIM, callbacks.OUTBOX])
def test_a_script_that_is_read_again_keeps_the_files_it_shares(script: Script) -> None:
    text, digest = script.text, script.sha
    read_again([script])
    assert (script.text, script.sha) == (text, digest)


def test_scripts_are_found_although_the_collector_does_not_list_what_was_loaded_before() -> None:
    gc.freeze()
    found = {script.name for script in live_scripts()}
    assert {script.name for script in scripts.EVERY} <= found
