"""kombu's connections as this product uses them: a process's own, and over AMQP with an end to every wait.

A message whose AMQP properties cannot be read is a message still: py-amqp would end the worker, and then the next one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import celery.app.amqp
from amqp.method_framing import frame_handler
from amqp.serialization import decode_properties_basic
from kombu.connection import Connection as KombuConnection
from kombu.connection import ConnectionPool, PooledConnection
from kombu.transport import pyamqp
from kombu.utils.collections import HashedSeq

from worker.broker import forks

REPLY_SECONDS: Final = 5.0
"""How long to wait for RabbitMQ's next byte: a confirm, the answer to a declaration, room to write."""

_HEADER_FRAME: Final = 2
_BEFORE_PROPERTIES: Final = 12
_NO_PROPERTIES: Final = b"\0\0"


def forgiving_frames(connection: Any, callback: Callable[..., Any]) -> Callable[[Any], Any]:
    """Return py-amqp's reader of frames, which takes properties that it cannot read for none."""
    read = frame_handler(connection, callback)

    def on_frame(frame: Any) -> Any:
        kind, channel, buffer = frame
        if kind == _HEADER_FRAME and not _readable(buffer):
            frame = (kind, channel, bytes(buffer[:_BEFORE_PROPERTIES]) + _NO_PROPERTIES)
        return read(frame)

    return on_frame


def _readable(buffer: Any) -> bool:
    try:
        decode_properties_basic(buffer, _BEFORE_PROPERTIES)
    except Exception:  # noqa: BLE001 - whatever foreign bytes make of it
        return False
    return True


class _AmqpConnection(pyamqp.Connection):
    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, frame_handler=forgiving_frames, **named)

    def connect(self, callback: Any = None) -> Any:
        connected = super().connect(callback)
        # py-amqp's own limits end with the handshake: a broker that hangs would hold whoever waits for a confirm.
        self.transport.sock.settimeout(REPLY_SECONDS)
        return connected


class AmqpTransport(pyamqp.Transport):
    """kombu's AMQP transport with these bounds."""

    Connection = _AmqpConnection


class AmqpsTransport(pyamqp.SSLTransport):
    """The same over TLS."""

    Connection = _AmqpConnection


_TRANSPORTS: Final = {"amqp": AmqpTransport, "pyamqp": AmqpTransport, "amqps": AmqpsTransport}


class _Ours:
    """Put before a kombu connection."""

    transport_cls: Any

    def __eqhash__(self) -> Any:
        """Return what kombu keys its pools by: a child that took its parent's would write into the parent's sockets."""
        return HashedSeq(*super().__eqhash__(), forks.process())  # type: ignore[misc]  # kombu carries no types

    def get_transport_cls(self) -> Any:
        """Return the transport: ours for AMQP, also after a failover to another address."""
        return _TRANSPORTS.get(self.transport_cls) or super().get_transport_cls()  # type: ignore[misc]  # as above


class _PooledConnection(_Ours, PooledConnection):
    """One of a pool."""


class _Pool(ConnectionPool):
    def new(self) -> Any:
        parts = dict(self.connection._info(resolve=False))  # noqa: SLF001 - as kombu's own does
        return _PooledConnection(self, **parts)  # type: ignore[no-untyped-call]  # as above


class Connection(_Ours, KombuConnection):
    """A connection to the broker, whatever its scheme."""

    def Pool(self, limit: Any = None, **named: Any) -> Any:  # noqa: N802 - kombu's own name
        """Return a pool of such connections."""
        return _Pool(self, limit, **named)  # type: ignore[no-untyped-call]  # as above


class AMQP(celery.app.amqp.AMQP):  # type: ignore[misc]  # celery carries no types
    """What a Celery app makes its connections with."""

    Connection = Connection
