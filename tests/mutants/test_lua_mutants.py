"""Which changes of a Lua script are tried."""

from __future__ import annotations

import pytest

from ops.mutants.lua import lua_mutants


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
    assert [(one.line, one.before) for one in lua_mutants(source, "one.lua") if one.after == "do end"] == [
        (1, "a = b"),
        (2, "c('x', d)"),
        (5, "h.i[j](k)"),
    ]


def test_a_mutant_names_the_function_it_stands_in() -> None:
    source = "local function f(a)\n  for _, b in ipairs(a) do g(b) end\n  if a then return end\n  g(a)\nend\ng(1)\n"
    found = {(one.line, one.function) for one in lua_mutants(source, "one.lua")}
    assert found == {(2, "f"), (3, "f"), (4, "f"), (6, "")}


def test_what_the_shared_beginning_declares_is_known() -> None:
    assert lua_mutants("return int(NOW)", "one.lua", "local NOW = 1") != []
