"""Logging to stderr: one JSON object (or coloured line) per event, also for libraries.

Secrets are removed last.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Mapping, MutableMapping
from types import TracebackType
from typing import Any, Final

import structlog
from redis.exceptions import OutOfMemoryError

from worker.model.redaction import without_secrets
from worker.model.request import scrubbed
from worker.settings import Settings

_SECRET_NAMES: Final = frozenset(
    {"authorization", "api_key", "password", "secret", "body", "metadata"}
)
_LONGEST_TEXT: Final = 4_000
# These loggers write two lines per message, which add nothing to the refund's own lines.
_CHATTY: Final = ("celery.worker.strategy", "celery.app.trace", "kombu", "httpx", "asyncio")


# Celery's lines that carry the whole body of a message it cannot use; `message_rejected` reports it
# without the body.
_WITH_BODIES: Final = (
    "Received and deleted unknown message",
    "Received unregistered task of type",
    "Received invalid task message",
    "Can't decode message body",
)


# Lines of Celery and kombu about a broker that is lost or full, several a second and each with a
# traceback; `broker_lost` and `background_deferred` report the same.
_LOSSES: Final = (
    "consumer: Connection to broker lost",
    "Frequent restarts detected",
    "maybe_refresh_binding_expiry: Redis error",
)


class _Unwanted(logging.Filter):
    """Drops lines that would show a message's contents, and tracebacks that our lines replace."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a line may be written; removes the traceback of a server that is full."""
        if record.exc_info and isinstance(record.exc_info[1], OutOfMemoryError):
            record.exc_info = None
        return not str(record.msg).startswith((*_WITH_BODIES, *_LOSSES))


def redact(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Remove secrets from an event, whatever their origin; the last step before it is written."""
    return {name: _clean(name, value) for name, value in event.items()}


def _clean(name: str, value: Any) -> Any:
    if name.lower() in _SECRET_NAMES:
        return "***"
    if type(value) is int:
        return value
    if isinstance(value, str):
        return _clean_text(value)
    if isinstance(value, Mapping):
        return {_clean_text(str(key)): _clean(str(key), inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_clean("", inner) for inner in value]
    if value is None or isinstance(value, (bool, int, float)):
        return value
    return _clean_text(str(value))


def _clean_text(text: str) -> str:
    # One word, as most values are, comes to itself.
    text = without_secrets(text)
    if text.isprintable() and " " not in text:
        return text[:_LONGEST_TEXT]
    # A traceback keeps its lines; any other text becomes one line.
    return "\n".join(
        scrubbed(line, _LONGEST_TEXT) if line.strip() else line for line in text.split("\n")
    )


def _as_json(_logger: Any, _method: str, event: Mapping[str, Any]) -> str:
    """Return an event that `redact` left as a line; structlog would make an encoder for each."""
    return _ENCODER.encode(event)


_ENCODER: Final = json.JSONEncoder(ensure_ascii=False)


class _StderrWriter:
    """Writes whole lines to a handler's stream, between those of `logging`, never within one."""

    def __init__(self, handler: logging.StreamHandler[Any]) -> None:
        self._handler = handler

    def msg(self, line: str) -> None:
        """Write one line."""
        self._handler.acquire()
        try:
            self._handler.stream.write(line + "\n")
            self._handler.stream.flush()
        finally:
            self._handler.release()

    debug = info = warning = error = critical = msg


def configure(settings: Settings) -> None:
    """Send all logging of this process, including that of libraries, to stderr in one form.

    The worker's own lines bypass `logging`: a log record for each would double the cost.
    """
    as_text = settings.log_format == "text" or (settings.log_format is None and sys.stderr.isatty())
    writer: Any = structlog.dev.ConsoleRenderer() if as_text else _as_json
    shared: list[Any] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
        structlog.processors.format_exc_info,
    ]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.ExtraAdder(), *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, redact, writer],
        )
    )
    handler.addFilter(_Unwanted())
    structlog.configure(
        processors=[*shared, redact, writer],
        wrapper_class=structlog.make_filtering_bound_logger(settings.log_level),
        logger_factory=lambda *_: _StderrWriter(handler),
        cache_logger_on_first_use=True,
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level.upper())
    for name in _CHATTY:
        logging.getLogger(name).setLevel("DEBUG" if settings.log_level == "debug" else "WARNING")


def log_crashes() -> None:
    """Log an error that ends a thread or this process like any other event.

    Python would write it unredacted.
    """
    sys.excepthook = lambda kind, error, trace: _crashed((kind, error, trace))
    threading.excepthook = lambda crash: _crashed(
        (crash.exc_type, crash.exc_value or crash.exc_type(), crash.exc_traceback)
    )


def _crashed(error: tuple[type[BaseException], BaseException, TracebackType | None]) -> None:
    if not issubclass(error[0], (SystemExit, KeyboardInterrupt)):
        logging.getLogger(__name__).critical("crashed", exc_info=error)
