"""What must never be told: planted where it belongs, and looked for wherever a line, an entry or a
message is kept.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, Final

import structlog

from worker.process import logs

API_KEY: Final = "sk_test_canary51HxSimulated"
EMAIL: Final = "canary@customer.example"
_SECRETS: Final = {
    "the API key": API_KEY,
    "the API key in base64": base64.b64encode(f"{API_KEY}:".encode()).decode(),
    "a customer's e-mail address": EMAIL,
}

HEARD: Final[list[str]] = []
"""Errors that the product logged as unforeseen, in this process."""
LINES: Final[list[str]] = []
"""Log lines as the product wrote them, of the world that is listened to."""


def leaks(text: str) -> list[str]:
    """Return what of the secrets a text tells."""
    return [name for name, secret in _SECRETS.items() if secret in text]


class _Sink:
    """In the place of stderr."""

    def write(self, text: str) -> int:
        LINES.append(text)
        return len(text)

    def flush(self) -> None:
        """Nothing is held back."""


def _heed(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Keep what the product calls unforeseen."""
    error = event.get("exc_info")
    if isinstance(error, Exception):
        HEARD.append(f"{event['event']}: {error!r}")
    return event


@contextmanager
def log_taken() -> Iterator[None]:
    """Let the product's own logging write into `LINES`, and put everything back at the end."""
    root, before = logging.getLogger(), structlog.get_config()
    handlers, levels = (
        root.handlers[:],
        {name: logging.getLogger(name).level for name in ("", *logs._CHATTY)},
    )
    settings: Any = SimpleNamespace(log_format="json", log_level="debug")
    logs.configure(settings)
    written: Any = root.handlers[0]
    written.setStream(_Sink())
    processors = [_heed, *structlog.get_config()["processors"]]
    # Not cached: each world listens or does not.
    structlog.configure(processors=processors, cache_logger_on_first_use=False)
    listen(wanted=False)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        root.handlers[:] = handlers
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        structlog.reset_defaults()
        structlog.configure(**before)


def listen(*, wanted: bool) -> None:
    """Have every line of the next world written and kept, or only heed its errors.

    Most worlds are not listened to.
    """
    LINES.clear()
    HEARD.clear()
    logging.disable(logging.NOTSET if wanted else logging.WARNING)
    level = logging.DEBUG if wanted else logging.ERROR
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(level))
