"""The worker's Redis transport: one round trip fetches messages and sends the acknowledgements.

kombu makes three round trips for a message: to fetch it, to note it as unacknowledged, and to
acknowledge it. While messages wait, one script does all three here, for as many as may be started;
otherwise kombu's blocking read waits.

It overrides private parts of kombu, which is a risk; `tests/unit/broker/test_kombu_internals.py`
fails if one of them changes. What it is worth, by `./ops/dev bench transport` on 2026-11-28 with
the provider at 50 ms and one refund a message: 949 refunds a second instead of 394, 1.01 ms of the
worker's processor time a refund instead of 2.18, and 320 µs of the server's instead of 895.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import resources
from queue import Empty
from time import monotonic, time
from typing import Any, Final
from uuid import uuid4

import kombu.transport
import kombu.transport.redis as kombu_redis
from kombu.transport import virtual
from redis.exceptions import NoScriptError

from worker.broker import envelope
from worker.broker.envelope import Unreadable
from worker.broker.inbox import rejected
from worker.broker.names import CALLBACK_QUEUE, PROCESS_TASK
from worker.model.refund import Lane

AT_ONCE: Final = 32
"""Single messages fetched in one round trip.

Bulk ones are fetched one by one: each carries up to 100 refunds.
"""

_TASK_QUEUES: Final = frozenset((*(lane.value for lane in Lane), CALLBACK_QUEUE))
LONGEST_ITEM: Final = 2_000_000
"""Maximum bytes of an item: the longest body in base64, with room for the rest."""
_SCRIPTS: Final = resources.files("worker.broker") / "lua"
_FETCH: Final = (_SCRIPTS / "fetch.lua").read_text("utf-8")
_NOTE: Final = (_SCRIPTS / "note.lua").read_text("utf-8")
_FETCH_SHA: Final = hashlib.sha1(_FETCH.encode("utf-8"), usedforsecurity=False).hexdigest()


class Unacknowledged(kombu_redis.QoS):
    """The unacknowledged messages of a worker. Acknowledgements are sent with the next round trip.

    If an acknowledgement is lost, its message is redelivered. That is harmless, since a claim is
    atomic.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)  # type: ignore[no-untyped-call]  # kombu carries no types
        self.noted: set[str] = set()
        self._to_note: dict[str, Any] = {}
        self._done: list[str] = []
        self._on_the_way: list[str] = []

    def append(self, message: Any, delivery_tag: str) -> None:
        """Hold a message, and note it on the server unless the script that fetched it did so.

        Noting waits for the server's disk. A nudge is handed on before: should the worker die in
        between, its refunds have a due time of their own.
        """
        if delivery_tag in self.noted:
            self.noted.discard(delivery_tag)
        elif message.headers.get("task") == PROCESS_TASK:
            self._to_note[delivery_tag] = message
        else:
            self._note(message, delivery_tag)
        virtual.QoS.append(self, message, delivery_tag)

    def note(self) -> None:
        """Note on the server what was handed on before, unless it is acknowledged already."""
        while self._to_note:
            self._note(*reversed(self._to_note.popitem()))

    def _note(self, message: Any, delivery_tag: str) -> None:
        delivery = message.delivery_info
        item = [message._raw, delivery["exchange"], delivery["routing_key"]]  # noqa: SLF001 - as kombu's own does
        keys = [
            f"{self.channel.global_keyprefix}{key}"
            for key in (self.unacked_key, self.unacked_index_key)
        ]
        with self.channel.conn_or_acquire() as client:
            client.eval(_NOTE, len(keys), *keys, time(), delivery_tag, json.dumps(item))

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:  # noqa: FBT001, FBT002 - kombu's own
        """Return a message to its queue from where it is noted, or drop it."""
        if requeue:
            self.note()
        self._to_note.pop(delivery_tag, None)
        super().reject(delivery_tag, requeue)  # type: ignore[no-untyped-call]  # as above

    def ack(self, delivery_tag: str) -> None:
        """Acknowledge a message; the server learns of it with the next round trip."""
        self._to_note.pop(delivery_tag, None)
        virtual.QoS.ack(self, delivery_tag)
        # A closed channel has returned its messages.
        if not self.channel.closed:
            self.forget(delivery_tag)
            if not self.channel.gathers:
                self.flush()

    def forget(self, delivery_tag: str) -> None:
        """Remove a message from the server's unacknowledged ones with the next round trip."""
        self._done.append(delivery_tag)

    @property
    def waits(self) -> bool:
        """Return whether an acknowledgement has yet to be sent."""
        return bool(self._done or self._on_the_way)

    def leaving(self) -> Sequence[str]:
        """Return the tags to acknowledge; they are sent again unless `arrived` is called."""
        self._on_the_way += self._done
        self._done = []
        return self._on_the_way

    def arrived(self) -> None:
        """Note that the server has replied, so the tags are acknowledged."""
        self._on_the_way = []

    @contextmanager
    def pipe_or_acquire(self, pipe: Any = None, client: Any = None) -> Iterator[Any]:
        """Yield a pipeline, as kombu does; a new one also sends the acknowledgements."""
        with super().pipe_or_acquire(pipe, client) as given:
            if pipe is None and self._done:
                done, self._done = self._done, []
                given.zrem(self.unacked_index_key, *done).hdel(self.unacked_key, *done)
            yield given

    def flush(self) -> None:
        """Send acknowledgements now; the messages are redelivered if the server is unavailable."""
        self._done, self._on_the_way = self._on_the_way + self._done, []
        if self._done and self.channel.reaches_server:
            try:
                with self.pipe_or_acquire() as pipe:
                    pipe.execute()
            except self.channel.connection_errors:
                kombu_redis.logger.debug("acknowledgements lost", exc_info=True)

    def restore_unacked_once(self, stderr: Any = None) -> None:
        """Return unacknowledged messages to their queues, after sending the acknowledgements.

        If the server is unavailable when a worker ends, the visibility timeout returns them.
        """
        self.flush()
        if not self.channel.reaches_server:
            self._on_collect.cancel()
            return
        super().restore_unacked_once(stderr)  # type: ignore[no-untyped-call]  # kombu carries no types

    def restore_by_tag(self, tag: Any, client: Any = None, leftmost: Any = False) -> None:  # noqa: FBT002 - kombu's own
        """Return a message to its queue; an unreadable one is stored, and does not stop others."""
        try:
            super().restore_by_tag(tag, client, leftmost)  # type: ignore[no-untyped-call]  # kombu carries no types
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
            with self.channel.conn_or_acquire(client) as connected:
                kept = rejected(
                    connected.hget(self.unacked_key, tag),
                    "an unacknowledged message cannot be read",
                )
            # A message that could not be stored stays noted, and is checked again.
            if kept:
                self._remove_from_indices(tag).execute()  # type: ignore[no-untyped-call]  # kombu carries no types


class _BatchedChannel:
    """Mixin for kombu's Redis channel: fetches messages in batches and stores malformed ones."""

    QoS = Unacknowledged
    _kept_client: Any = None
    _more = False
    """Whether the last read returned a message, so that the next read need not block."""
    _fetched_from: Sequence[str] | None = None
    """The queues that a running script fetches from; None during a blocking read."""
    _server_has_script = False

    def _create_client(self, asynchronous: bool = False) -> Any:  # noqa: FBT001, FBT002 - kombu's own signature
        """Reuse the client that notes and acknowledges messages.

        Kombu creates one for each message.
        """
        if asynchronous:
            return super()._create_client(asynchronous=True)  # type: ignore[misc]  # kombu's channel is the next base
        if self._kept_client is None or self._kept_client.connection_pool is not self.pool:  # type: ignore[attr-defined]  # as above
            self._kept_client = super()._create_client()  # type: ignore[misc]  # as above
        return self._kept_client

    @property
    def gathers(self) -> bool:
        """Return whether a later loop iteration will send the acknowledgements."""
        return self.connection is not None and self.connection.gathers  # type: ignore[attr-defined]  # as above

    @property
    def reaches_server(self: Any) -> bool:
        """Return whether the server can be reached.

        Kombu drops the address of an abandoned connection.
        """
        return self._pool is not None or (
            self.connection is not None and self.connection.client is not None
        )

    def settle(self) -> None:
        """Send the acknowledgements if no running read will end soon and send them."""
        if not self._in_poll and self._qos is not None:  # type: ignore[attr-defined]  # as above
            self._qos.flush()  # type: ignore[attr-defined]  # as above

    def _brpop_start(self: Any, timeout: float | None = None) -> None:
        self._fetched_from = None
        if not self._more and not self.qos.waits:
            super()._brpop_start(timeout)  # type: ignore[misc]  # kombu's channel is the next base class
            return
        queues = list(self._queue_cycle.consume(len(self.active_queues)))
        if not queues:
            return
        self._fetched_from = queues
        self._in_poll = self.client.connection
        self._brpop_sent_at = monotonic()
        credit = self.qos.can_consume_max_estimate()
        script = ("EVALSHA", _FETCH_SHA) if self._server_has_script else ("EVAL", _FETCH)
        keys = [self.unacked_key, self.unacked_index_key]
        keys += [
            self._q_for_pri(queue, priority) for priority in self.priority_steps for queue in queues
        ]
        self.client.connection.send_command(
            *script,
            len(keys),
            *(f"{self.global_keyprefix}{key}" for key in keys),
            time(),
            AT_ONCE if credit is None else credit,
            uuid4().hex,
            len(queues),
            *(AT_ONCE if queue == Lane.SINGLE.value else 1 for queue in queues),
            *queues,
            *self.qos.leaving(),
        )

    def _brpop_read(self: Any, **options: Any) -> bool:
        try:
            taken = self._taken(options)
            self._more = bool(taken)
            for queue, tag, item in taken:
                self._queue_cycle.rotate(queue)
                self._hand_over(queue, tag, item)
        finally:
            self._in_poll = None
            # Runs between two reads, as in kombu.
            self._flush_brpop_reauth()
        if not taken:
            raise Empty
        return True

    def _do_restore_message(
        self: Any,
        payload: Any,
        exchange: Any,
        routing_key: Any,
        pipe: Any,
        leftmost: Any = False,  # noqa: FBT002 - kombu's own
    ) -> None:
        """Return a message to its queue unchanged.

        Kombu adds a redelivery mark, and drops one without room for it.
        """
        push = pipe.lpush if leftmost else pipe.rpush
        for queue in self._lookup(exchange, routing_key):
            push(self._q_for_pri(queue, self._get_message_priority(payload)), json.dumps(payload))

    def _receive_one(self: Any, client: Any) -> Any:
        try:
            return super()._receive_one(client)  # type: ignore[misc]  # kombu's channel is the next base class
        except RecursionError:
            kombu_redis.logger.warning("a broadcast that is nested too deeply was dropped")
            return None

    def _taken(self: Any, options: dict[str, Any]) -> list[tuple[str, str, bytes]]:
        """Return the result of the running read.

        Queue, tag ('' if it is not noted) and item of each message.
        """
        queues = self._fetched_from
        try:
            reply = self.client.parse_response(
                self.client.connection, "BRPOP" if queues is None else "EVALSHA", **options
            )
        except NoScriptError:
            self._server_has_script = False
            return []
        except self.connection_errors:
            # The next loop iteration reconnects.
            self.client.connection.disconnect()
            raise
        if queues is None:
            return [(_text(reply[0]).rsplit(self.sep, 1)[0], "", reply[1])] if reply else []
        self._server_has_script = True
        self.qos.arrived()
        thirds = zip(reply[::3], reply[1::3], reply[2::3], strict=True)
        return [
            (queues[int(queue_number) - 1], _text(tag), item) for queue_number, tag, item in thirds
        ]

    def _hand_over(self: Any, queue: str, tag: str, item: bytes) -> None:
        noted = self.qos.noted
        if tag:
            noted.add(tag)
        try:
            message = envelope.wire_of(_read(item), queue, tag or uuid4().hex)
        except Unreadable as reason:
            # A message that cannot be stored either stays noted, and is redelivered.
            kept = rejected(item, str(reason))
        else:
            kept = True
            self.connection._deliver(message, queue)  # noqa: SLF001 - kombu's own way in
            self.qos.note()
        if tag in noted:
            # The message is not held: it was stored, or returned to its queue.
            noted.discard(tag)
            if kept:
                self.qos.forget(tag)


def _read(item: bytes) -> object:
    if len(item) > LONGEST_ITEM:
        raise Unreadable(f"the message is longer than {LONGEST_ITEM:,} bytes")
    try:
        return json.loads(item.decode("utf-8"))
    except UnicodeDecodeError:
        raise Unreadable("the message is not UTF-8 text") from None
    except ValueError:
        raise Unreadable("the message is not JSON") from None
    except RecursionError:
        raise Unreadable("the message is nested too deeply") from None


def _text(value: bytes | str) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


class _BatchedTransport:
    """Mixin for kombu's Redis transport.

    Survives malformed broadcasts, and makes one round trip per loop iteration.
    """

    gathers = False

    def _deliver(self: Any, message: Any, queue: Any) -> None:
        try:
            super()._deliver(message, queue)  # type: ignore[misc]  # kombu's transport is the next base class
        except Exception as error:
            # Celery's control and event messages: anyone may publish them, and kombu trusts their
            # parts.
            if queue in _TASK_QUEUES or (
                isinstance(error, self.connection_errors) and not isinstance(error, KeyError)
            ):
                raise
            kombu_redis.logger.warning("a broadcast that is not a message was dropped")

    def register_with_event_loop(self: Any, connection: Any, loop: Any) -> None:
        """Register this transport's sockets with the loop.

        Kombu registers every socket again in each iteration.
        """
        others = set(loop.on_tick)
        super().register_with_event_loop(connection, loop)  # type: ignore[misc]  # as above
        loop.on_tick -= loop.on_tick - others
        cycle = self.cycle

        def turn() -> None:
            if not cycle._channels:  # noqa: SLF001 - kombu's own poller
                # This connection is closed. Kombu leaves its part in the loop for ever.
                loop.on_tick.discard(turn)
                return
            cycle.on_poll_start()
            for descriptor in cycle.fds:
                if descriptor not in loop.readers:
                    loop.add_reader(descriptor, self.on_readable, descriptor)
            for channel in cycle._channels:  # noqa: SLF001 - kombu's own poller
                channel.settle()

        loop.on_tick.add(turn)
        self.gathers = True


class Channel(_BatchedChannel, kombu_redis.Channel):  # type: ignore[misc]  # kombu carries no types
    """kombu's Redis channel, with batched fetches."""


class Transport(_BatchedTransport, kombu_redis.Transport):
    """kombu's Redis transport with `Channel`."""

    Channel = Channel


class SentinelChannel(_BatchedChannel, kombu_redis.SentinelChannel):  # type: ignore[misc]  # as above
    """kombu's Sentinel channel, with batched fetches."""


class SentinelTransport(_BatchedTransport, kombu_redis.SentinelTransport):
    """kombu's Sentinel transport with `SentinelChannel`."""

    Channel = SentinelChannel


def install() -> None:
    """Register these transports for this process's Redis connections.

    Only the worker process calls it.
    """
    aliases = kombu.transport.TRANSPORT_ALIASES
    aliases["redis"] = aliases["rediss"] = "worker.broker.kombu_transport:Transport"
    aliases["sentinel"] = "worker.broker.kombu_transport:SentinelTransport"
