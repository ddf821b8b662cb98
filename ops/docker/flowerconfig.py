"""Flower's settings: read only, behind a password; of a refund only its id, and what became of it.

`celery --app worker.app flower --conf=ops/docker/flowerconfig.py`. The password is `user:password`
in FLOWER_BASIC_AUTH, or in the file `flower_basic_auth` of REFUNDS_SECRETS_DIR; without one Flower
does not start. FLOWER_ADDRESS and FLOWER_PORT say where to listen (loopback unless told otherwise),
FLOWER_DB names a file that outlives a restart.

Two things are not left to Flower: its REST API shows a task's arguments and result as they were
sent, whatever `format_task` does, so they are cut down where an event comes in; and its `/metrics`
asks for no password, so here it does. Only `/healthcheck` is open, and says no more than OK.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Final

import tornado.web
from flower.events import EventsState
from flower.views.monitor import Metrics

_ID: Final = r"[A-Za-z0-9_.:-]{1,200}"
_IDS: Final = re.compile(rf"\(?(?:{_ID}(?:, {_ID})*(?:,? and \d+ more)?)?,?\)?")
_NAMED: Final = re.compile(rf"'refund_id': '({_ID})'")
_ENDING: Final = r"[a-z][a-z ]{1,30}(?: \([A-Za-z0-9_., -]{1,200}\))?"
_RESULT: Final = re.compile(rf"(?:{_ID}: )?{_ENDING}|\d+ {_ENDING}(?:, \d+ {_ENDING})*")
HIDDEN: Final = "…"


def shown(arguments: object) -> str:
    """Return arguments as they may be seen.

    Refund ids, the id out of a request's fields, or nothing.
    """
    text = str(arguments or "")
    if text in {"", "()", "{}"} or _IDS.fullmatch(text):
        return text
    named = _NAMED.search(text)
    return named.group(1) if named else HIDDEN


def became(result: object) -> str:
    """Return a task's result as it may be seen.

    What became of its refunds, in the words of `worker.engine.endings`.
    """
    # Celery sends a text as Python would write it.
    text = str(result or "").strip("'")
    return text if text == "" or _RESULT.fullmatch(text) else HIDDEN


def cleaned(event: dict[str, Any]) -> dict[str, Any]:
    """Return a task's event without bodies and errors: of an error only its kind.

    The worker's log has it.
    """
    clean = dict(event)
    for name in ("args", "kwargs"):
        if name in clean:
            clean[name] = shown(clean[name])
    if "result" in clean:
        clean["result"] = became(clean["result"])
    if "exception" in clean:
        clean["exception"] = re.split(r"\W", str(clean["exception"]), maxsplit=1)[0]
    clean.pop("traceback", None)
    return clean


def format_task(task: Any) -> Any:
    """Show no more in the pages than in the API.

    A database of an older Flower may still hold such events.
    """
    task.args, task.kwargs = shown(task.args), shown(task.kwargs)
    task.result, task.traceback = became(task.result), None
    return task


_take = EventsState.event


def _take_cleaned(self: EventsState, event: dict[str, Any]) -> Any:
    return _take(self, cleaned(event))


EventsState.event = _take_cleaned
if not hasattr(Metrics.get, "__wrapped__"):
    Metrics.get = tornado.web.authenticated(Metrics.get)


def _password() -> str:
    if given := os.environ.get("FLOWER_BASIC_AUTH"):
        return given
    folder = os.environ.get("REFUNDS_SECRETS_DIR")
    file = Path(folder) / "flower_basic_auth" if folder else None
    if file is not None and file.is_file():
        return file.read_text(encoding="utf-8").strip()
    raise SystemExit(
        "flower: no password is set: put user:password into FLOWER_BASIC_AUTH, or into the file"
        " flower_basic_auth of REFUNDS_SECRETS_DIR"
    )


basic_auth = [_password()]
if ":" not in basic_auth[0].strip(":"):
    raise SystemExit("flower: the password must read user:password")

address = os.environ.get("FLOWER_ADDRESS", "127.0.0.1")
port = int(os.environ.get("FLOWER_PORT", "5555"))
read_only = True
max_tasks = 10_000
purge_offline_workers = 300
tasks_columns = "name,args,result,state,received,runtime,kwargs"
if "FLOWER_DB" in os.environ:
    persistent = True
    db = os.environ["FLOWER_DB"]
    state_save_interval = 30_000
