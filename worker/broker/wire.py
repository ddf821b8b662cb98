"""Broker connections: each process has its own, and over AMQP every wait has a time limit.

A message is delivered even if its AMQP properties are unreadable: py-amqp would end the worker, and
then the next one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import celery.app.amqp
from amqp.exceptions import RecoverableConnectionError
from amqp.method_framing import frame_handler
from amqp.serialization import decode_properties_basic
from kombu.connection import Connection as KombuConnection
from kombu.connection import ConnectionPool, PooledConnection
from kombu.transport import pyamqp
from kombu.utils.collections import HashedSeq

from worker.broker import forks

REPLY_SECONDS: Final = 5.0
"""Read and write timeout for RabbitMQ: for a confirm, the reply to a declaration, or room to write.
"""
BLOCKED: Final = "takes no messages now, since its memory or disk is nearly full"
"""What RabbitMQ announces to a connection that sends; it reads nothing more from it then."""

_HEADER_FRAME: Final = 2
_BEFORE_PROPERTIES: Final = 12
_NO_PROPERTIES: Final = b"\0\0"


def forgiving_frames(connection: Any, callback: Callable[..., Any]) -> Callable[[Any], Any]:
    """Return py-amqp's frame reader, changed to treat unreadable properties as absent."""
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
        super().__init__(
            *arguments, frame_handler=forgiving_frames, on_blocked=self._give_up, **named
        )

    def _give_up(self, _: str) -> None:
        # Without the handshake of a close, since nothing is answered either.
        self.collect()
        raise RecoverableConnectionError(f"the broker {BLOCKED}")

    def connect(self, callback: Any = None) -> Any:
        connected = super().connect(callback)
        # py-amqp's own timeouts end with the handshake: a hanging broker would block a caller that
        # awaits a confirm.
        self.transport.sock.settimeout(REPLY_SECONDS)
        return connected


class AmqpTransport(pyamqp.Transport):
    """kombu's AMQP transport with the time limit and the frame reader above."""

    Connection = _AmqpConnection


class AmqpsTransport(pyamqp.SSLTransport):
    """`AmqpTransport` over TLS."""

    Connection = _AmqpConnection


_TRANSPORTS: Final = {"amqp": AmqpTransport, "pyamqp": AmqpTransport, "amqps": AmqpsTransport}


class _Ours:
    """Mixin for kombu's connections."""

    transport_cls: Any

    def __eqhash__(self) -> Any:
        """Return the key of kombu's pools, one per process.

        A child must not write to its parent's sockets.
        """
        return HashedSeq(*super().__eqhash__(), forks.process())  # type: ignore[misc]  # kombu carries no types

    def get_transport_cls(self) -> Any:
        """Return the transport: for AMQP this module's, also after failover to another address."""
        return _TRANSPORTS.get(self.transport_cls) or super().get_transport_cls()  # type: ignore[misc]  # as above


class _PooledConnection(_Ours, PooledConnection):
    """A connection that belongs to a pool."""


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
    """The factory of a Celery app's connections."""

    Connection = Connection
