"""What a test changes of this process's logging is put back at its end."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING

import structlog

from worker.process import logs

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def logging_kept() -> Iterator[None]:
    """Put logging back at the end: its handlers, its levels, and how structlog is set up.

    Otherwise the tests that follow in this process would not hear what the product logs.
    """
    root, before = logging.getLogger(), structlog.get_config()
    handlers = root.handlers[:]
    levels = {name: logging.getLogger(name).level for name in ("", *logs._CHATTY)}
    try:
        yield
    finally:
        root.handlers[:] = handlers
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        structlog.reset_defaults()
        structlog.configure(**before)
