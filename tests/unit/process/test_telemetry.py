"""Every line that leaves a worker is one object (or one line) on stderr, and no secret is in it."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from worker.model.request import scrubbed
from worker.process import logs
from worker.settings import Settings

KEY = "sk_test_planted_1234"
AUTHORIZATION = "Basic c2tfdGVzdF9wbGFudGVk"


@pytest.fixture
def lines() -> Callable[..., list[Any]]:
    """Configure the logging of this process into a stream, and return what was written to it."""
    stream = io.StringIO()
    root = logging.getLogger()

    def written(**settings: Any) -> list[Any]:
        if settings:
            logs.configure(Settings.load(**settings))
            ours: Any = root.handlers[0]
            ours.setStream(stream)
        return stream.getvalue().splitlines()

    return written


def test_our_lines_and_the_libraries_lines_come_in_one_form(
    lines: Callable[..., list[Any]],
) -> None:
    lines(log_format="json")
    structlog.get_logger("a").info("refund_settled", refund_id="order-1-1", ms=51)
    logging.getLogger("celery.x").warning("gone for %s s", 5, extra={"queue": "refunds"})
    ours, theirs = (json.loads(line) for line in lines())
    assert (ours["event"], ours["level"], ours["refund_id"], ours["ms"]) == (
        "refund_settled",
        "info",
        "order-1-1",
        51,
    )
    assert (theirs["event"], theirs["level"], theirs["queue"]) == (
        "gone for 5 s",
        "warning",
        "refunds",
    )
    assert ours["at"].endswith("Z")
    assert theirs["at"].endswith("Z")


def test_json_lines_keep_words_of_any_language(lines: Callable[..., list[Any]]) -> None:
    lines(log_format="json")
    structlog.get_logger("a").info("refund_settled", reason="größer als «alles»")
    (line,) = lines()
    assert '"reason": "größer als «alles»"' in line


@pytest.mark.parametrize("form", ["json", "text"])
def test_no_secret_is_written_whoever_logs_it_and_however_deep_it_lies(
    lines: Callable[..., list[Any]], form: str
) -> None:
    lines(log_format=form)
    facts: dict[str, Any] = {
        "why": f"key {KEY}",
        "deep": [{"x": (AUTHORIZATION,)}],
        "api_key": "plain",
        "own": KEY,
    }
    structlog.get_logger("a").error("failed", exc_info=ValueError(KEY), **facts)
    structlog.get_logger("a").info(f"said {AUTHORIZATION}")
    logging.getLogger("b").error("said %s", KEY, extra=facts)
    said = "\n".join(lines())
    assert "failed" in said
    assert [word for word in (KEY, "planted", AUTHORIZATION, "plain") if word in said] == []


def test_what_is_below_the_level_is_not_written(lines: Callable[..., list[Any]]) -> None:
    lines(log_format="json", log_level="warning")
    structlog.get_logger("a").info("refund_settled")
    logging.getLogger("b").info("started")
    structlog.get_logger("a").warning("rate_limited")
    assert [json.loads(line)["event"] for line in lines()] == ["rate_limited"]


def test_every_way_of_logging_is_a_line(lines: Callable[..., list[Any]]) -> None:
    lines(log_format="json", log_level="debug")
    log = structlog.get_logger("a")
    for level in ("debug", "info", "warning", "error", "critical", "exception"):
        getattr(log, level)("said")
    levels = [json.loads(line)["level"] for line in lines()]
    assert levels == ["debug", "info", "warning", "error", "critical", "error"]


words = st.one_of(
    st.text(max_size=30),
    st.text(alphabet="sk_testlive_-.* BasicQ=\n\u00a0\u200b", max_size=60),
    st.sampled_from(
        [KEY, AUTHORIZATION, f"x{KEY}", f"-{KEY}", "rk_live_x", "a" * 5_000, "order-1001-1", ""]
    ),
)


@given(st.lists(words, max_size=3).map("".join))
def test_the_short_way_for_plain_words_comes_to_the_same(text: str) -> None:
    long_way = "\n".join(
        scrubbed(line, logs._LONGEST_TEXT) if line.strip() else line for line in text.split("\n")
    )
    assert logs._clean_text(text) == long_way
