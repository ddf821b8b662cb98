"""Tests that speak of what a mutant changes are tried first."""

from __future__ import annotations

from ops.lab.mutants.change import Mutant
from ops.lab.mutants.crew import Choice
from ops.lab.mutants.words import Words, plain, texts_of

FILE = "tests/unit/store/test_marks.py"
TEXT = """\
def test_mark_expires(world):
    assert world.expires("mark")


class TestOthers:
    async def test_refund_is_settled(self, world):
        assert world.settled("refund")
"""
MUTANT = Mutant(
    file="worker/store/lua/_rows.lua",
    function="let_mark_expire",
    line=9,
    before="if stage == 'settled' then expire(mark) end",
    after="if true then expire(mark) end",
    start=0,
    end=1,
    text="",
    touched=(9, 9),
)


def test_text_of_each_test_is_found_by_its_plain_name() -> None:
    texts = texts_of([(FILE, TEXT)])
    assert list(texts) == [f"{FILE}::test_mark_expires", f"{FILE}::test_refund_is_settled"]
    assert plain(f"{FILE}::TestOthers::test_refund_is_settled[a::b]") in texts
    assert "world.expires" in texts[plain(f"{FILE}::test_mark_expires")]


def test_words_that_few_tests_use_bring_a_test_nearer() -> None:
    near = Words(
        {
            "both": "stage settled mark expires",
            "rare": "marks that expire",
            "common": "stage settled",
            "others": "stage settled",
            "none": "if a is so",
        }
    ).nearness(MUTANT)
    assert near["both"] > near["rare"] > near["common"] == near["others"] > near["none"] == 0


def test_tests_of_the_changed_file_come_before_those_that_use_a_word_of_the_change() -> None:
    texts = {
        "tests/unit/store/test_rows_lua.py::test_one": "",
        "tests/unit/store/test_marks.py::test_one": "expire",
        "tests/unit/store/test_marks.py::test_two": "expire",
        "tests/unit/store/test_marks.py::test_three": "",
    }
    near = Words(texts).nearness(MUTANT)
    assert max(near, key=near.__getitem__) == "tests/unit/store/test_rows_lua.py::test_one"
    assert near["tests/unit/store/test_marks.py::test_three"] == 0


def test_test_with_the_words_of_a_mutant_is_tried_before_cheaper_ones() -> None:
    seen = {"lines": {MUTANT.file: [9]}}
    measured = {
        f"{FILE}::TestOthers::test_refund_is_settled": {**seen, "seconds": 0.1},
        f"{FILE}::test_mark_expires": {**seen, "seconds": 0.12},
    }
    others, mark = measured

    def names(words: Words) -> list[str]:
        choice = Choice(measured, [], words=words)
        return [name for name, _ in choice.tests(MUTANT, at_import=False)]

    assert names(Words({})) == [others, mark]
    assert names(Words(texts_of([(FILE, TEXT)]))) == [mark, others]
