"""Which changes of a Python source are tried, and which never are."""

from __future__ import annotations

import pytest

from ops.lab.mutants.python import python_mutants


def changed(source: str) -> list[str]:
    """The changed lines of every mutant, in the order of the file."""
    return [mutant.after for mutant in python_mutants(source, "one.py")]


def inside(line: str) -> list[str]:
    """The mutants of one line in a function's body."""
    return changed(f"def f(a, b, c, d, log):\n    {line}\n")


@pytest.mark.parametrize(
    ("line", "mutants"),
    [
        ("d = a < b", ["d = a <= b", "d = a >= b", "pass"]),
        ("e = a == b", ["e = a != b"]),
        ("e = a in b", ["e = a not in b"]),
        ("e = a not in b", ["e = a in b"]),
        ("e = a is not None", ["e = a is None"]),
        ("e = a < b < c", ["e = a <= b < c", "e = a >= b < c", "e = a < b <= c", "e = a < b >= c"]),
        ("e = a and b and c", ["e = a or b or c"]),
        ("e = a or b", ["e = a and b"]),
        ("e = not a", ["e = a"]),
        ("e = -a", ["e = a"]),
        ("e = a + b", ["e = a - b"]),
        ("e = a // b", ["e = a / b"]),
        ("e = a * (b + c)", ["e = a / (b + c)", "e = a * (b - c)"]),
        ("e = a | b", ["e = a", "e = b"]),
        ("e = 1", ["e = 0", "e = 2"]),
        ("e = 0.5", ["e = 1.5"]),
        ("e = True", ["e = False"]),
        ("e = max(a, b)", ["e = min(a, b)"]),
        ("e = any(a)", ["e = all(a)"]),
        ("e = a(b, c=d)", ["e = a(b)"]),
        ("e = {a: b, **c}", ["e = {**c}", "e = {a: b}"]),
        ("e = {a, b}", ["e = {b}", "e = {a}"]),
        (
            "e = frozenset((a, b, c))",
            ["e = frozenset((b, c))", "e = frozenset((a, c))", "e = frozenset((a, b))"],
        ),
        ("e = [x for x in a if x]", ["e = [x for x in a if False]", "e = [x for x in a if True]"]),
        ("e = b if a else c", ["e = b if False else c", "e = b if True else c"]),
        ("return a", ["return None"]),
        ("a(b)", ["pass"]),
        ("a.b = c", ["pass"]),
        ("a += b", ["pass", "a -= b"]),
        ("a = b", ["pass"]),
        ("raise ValueError(f'{a + 1}')", ["pass"]),
    ],
)
def test_a_line_is_changed_in_these_ways(line: str, mutants: list[str]) -> None:
    assert sorted(inside(line)) == sorted(mutants)


@pytest.mark.parametrize(
    "line",
    [
        "'A text that nobody reads.'",
        "log.info('told', a=1, b=a + 1)",
        "e = f'{a + 1}'",
        "e = zip(a, b, strict=True)",
        "e = 'text'",
        "e = None",
        "e = b",
        "return None",
        "return False",
        "import sys",
        "pass",
    ],
)
def test_a_line_that_nothing_could_notice_is_left_alone(line: str) -> None:
    assert [text for text in inside(line) if text != "return True"] == []


def test_a_condition_is_made_always_and_never_true() -> None:
    source = "def f(a, b):\n    if a:\n        b()\n    while b:\n        continue\n"
    assert sorted(changed(source)) == sorted(
        ["if True:", "if False:", "pass", "while False:", "pass"]
    )


def test_each_arm_of_a_match_is_dropped_and_its_guard_changed() -> None:
    source = (
        "def f(a, b):\n    match a:\n        case 1 if b:\n            b()\n        case _:\n      "
        "      a()\n"
    )
    mutants = python_mutants(source, "one.py")
    assert {(one.before, one.after) for one in mutants} == {
        ("case 1 if b: b()", ""),
        ("case _: a()", ""),
        ("case 1 if b:", "case 1 if True:"),
        ("case 1 if b:", "case 1 if False:"),
        ("b()", "pass"),
        ("a()", "pass"),
    }


def test_defaults_become_none_and_annotations_stay() -> None:
    source = (
        "class C:\n    a: int | None = 3\n    def f(self, b: str | None = 'x') -> str | bytes:\n   "
        "     ...\n"
    )
    assert sorted(changed(source)) == [
        "a: int | None = 4",
        "a: int | None = None",
        "def f(self, b: str | None = None) -> str | bytes:",
    ]


def test_type_aliases_and_decorators_stay() -> None:
    assert (
        changed(
            "Alias = int | str\nT = TypeVar('T', bound=int)\n@d(a=1)\nclass C:\n    __slots__ ="
            " ('a',)\n"
        )
        == []
    )


def test_only_what_stands_in_a_functions_body_can_be_exchanged_while_loaded() -> None:
    source = (
        "LIMIT = 3\nclass C:\n    def f(self, a=1):\n        def g(b=2):\n            return b\n   "
        "     return a\n"
    )
    found = {(one.function, one.before, one.hot) for one in python_mutants(source, "one.py")}
    assert found == {
        ("", "LIMIT = 3", False),
        ("", "def f(self, a=1):", False),
        ("C.f", "def g(b=2):", True),
        ("C.f", "return b", True),
        ("C.f", "return a", True),
    }


def test_a_mutant_names_the_lines_that_a_test_must_run() -> None:
    source = "def f(a):\n    if a:\n        return g(\n            1,\n        )\n"
    spans = {(one.before, one.touched) for one in python_mutants(source, "one.py")}
    assert ("if a:", (2, 2)) in spans
    assert ("1,", (3, 5)) in spans


def test_no_mutant_is_proposed_that_is_no_program() -> None:
    for mutant in python_mutants("def f(a):\n    return g((a), b=1)\n", "one.py"):
        compile(mutant.applied("def f(a):\n    return g((a), b=1)\n"), "one.py", "exec")


def test_a_mutants_place_survives_letters_of_several_bytes() -> None:
    source = "def f(a):\n    return a['é'] + 'ü' + a\n"
    assert "return a['é'] + 'ü' - a" in changed(source)
