"""Planted bugs at the rim: how a worker ends, what holds of batches, what logs, histories and
messages tell.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Final
from unittest import mock

import structlog

from tests.simulation.bugs.planting import Bug, all_scripts, put, rescript
from tests.simulation.files import Door
from tests.simulation.secrets import API_KEY
from worker.broker import queues
from worker.engine.endings import Ending
from worker.engine.service import Service
from worker.model.answers import Outcome
from worker.model.refund import Lane, Refund
from worker.model.request import RefundRequest, scrubbed
from worker.model.steps import Step
from worker.provider.gateway import Gateway
from worker.rules import payloads
from worker.store import saves, scripts

log = structlog.get_logger(__name__)


def ends_without_giving_back(stack: ExitStack) -> None:
    """A worker that is told to end forgets what it has not begun."""
    real = Service.process

    async def forgetful(
        self: Service, refund_ids: Sequence[str], lane: Lane, *, seconds: float
    ) -> list[Ending]:
        run = self.store.run

        async def kept(call: Any) -> Any:
            return (
                len(refund_ids)
                if self.stopping and call.script is scripts.GIVE_BACK
                else await run(call)
            )

        with mock.patch.object(self.store, "run", kept):
            return await real(self, refund_ids, lane, seconds=seconds)

    put(stack, Service, "process", forgetful)


def begins_while_ending(stack: ExitStack) -> None:
    """A worker that is told to end works through all that it holds first."""
    put(stack, Service, "stop", lambda _: None)


def canceled_batch_goes_on(stack: ExitStack) -> None:
    """A batch is canceled row by row, and what is claimed in between is sent."""
    rescript(stack, ("CLAIM",), "if batch[1] == 'canceled' then", "if false then")


def paused_batch_goes_on(stack: ExitStack) -> None:
    """A pause is heeded by whoever hands rows in, and not by who sends them."""
    rescript(stack, ("CLAIM",), "if batch[1] == 'paused' then", "if false then")


def batch_delay_ignored(stack: ExitStack) -> None:
    """Rows of a batch leave before the time that was said."""
    rescript(stack, ("CLAIM",), "if number(batch[2]) > NOW then", "if false then")


def batch_counts_drift(stack: ExitStack) -> None:
    """A batch's counts are raised with each move, and not all lowered."""
    rescript(stack, all_scripts(), "add('stage:' .. was.stage, -1)", "")


def rows_forgotten_at_a_restart(stack: ExitStack) -> None:
    """An import that was killed takes the rows it had begun to hand in for done."""
    real = Door.submit_stream

    def hasty(self: Door, requests: Iterable[RefundRequest], **named: Any) -> Iterator[Any]:
        begun: set[str] = vars(self.given_to).setdefault("begun", set())
        rows = [row for row in requests if row.refund_id not in begun]
        for row in rows:
            begun.add(row.refund_id)
            yield from real(self, [row], **named)

    put(stack, Door, "submit_stream", hasty)


def metadata_logged(stack: ExitStack) -> None:
    """What is sent is logged, for whoever looks for a fault."""
    real = Gateway._try

    async def telling(self: Gateway, refund: Refund, body: bytes, *rest: Any) -> Outcome:
        log.debug("request_sent", refund_id=refund.refund_id, content=body.decode())
        return await real(self, refund, body, *rest)

    put(stack, Gateway, "_try", telling)


def key_logged(stack: ExitStack) -> None:
    """Logs are written as they come, and the client's headers stand in one of them."""
    real = Gateway._try

    async def telling(self: Gateway, refund: Refund, *rest: Any) -> Outcome:
        log.debug(
            "request_sent",
            refund_id=refund.refund_id,
            auth=self._client.headers["Authorization"].split()[1],
        )
        return await real(self, refund, *rest)

    put(stack, Gateway, "_try", telling)


def message_in_history(stack: ExitStack) -> None:
    """What the provider says is noted with each move, as it stands."""
    real = saves.save

    def noting(
        refund: Refund, step: Step, detail: Mapping[str, Any] | None = None, **named: Any
    ) -> Any:
        return real(
            refund, step, {**(detail or {}), "said": step.changes.get("error_message")}, **named
        )

    put(stack, payloads, "_clean", lambda value, _: value if isinstance(value, str) else "")
    put(stack, saves, "save", noting)


def message_kept_as_it_came(stack: ExitStack) -> None:
    """What the provider says of an error is kept with the record, whatever it repeats."""
    put(
        stack,
        payloads,
        "_clean",
        lambda value, _: scrubbed(value) if isinstance(value, str) else "",
    )


def payload_in_message(stack: ExitStack) -> None:
    """A message carries how the provider is to be called."""
    real = queues.nudge

    def loaded(app: Any, refund_ids: Sequence[str], lane: Lane, *, producer: Any = None) -> None:
        send = app.send_task
        with mock.patch.object(
            app, "send_task", lambda *given, **named: send(*given, **named, headers={"k": API_KEY})
        ):
            real(app, refund_ids, lane, producer=producer)

    put(stack, queues, "nudge", loaded)


def events_left_out(stack: ExitStack) -> None:
    """The stream of events is cut to the latest hundredth of what is kept elsewhere."""
    rescript(stack, all_scripts(), "'MAXLEN', '~', '1000000'", "'MAXLEN', '1'")


def callback_left_out(stack: ExitStack) -> None:
    """What needs a person is noted for the endpoints, and what settled is not."""
    rescript(
        stack,
        ("SAVE",),
        "if r.stage ~= 'settled' and r.stage ~= 'review'",
        "if r.stage ~= 'review'",
    )


AT_THE_RIM: Final[tuple[Bug, ...]] = (
    ends_without_giving_back,
    begins_while_ending,
    canceled_batch_goes_on,
    paused_batch_goes_on,
    batch_delay_ignored,
    batch_counts_drift,
    rows_forgotten_at_a_restart,
    metadata_logged,
    key_logged,
    message_in_history,
    message_kept_as_it_came,
    payload_in_message,
    events_left_out,
    callback_left_out,
)
