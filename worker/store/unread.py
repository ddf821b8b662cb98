"""A kind of connection that is never used again with replies that were not read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from redis.connection import AbstractConnection
from redis.exceptions import ResponseError


def without_unread(kind: type[AbstractConnection]) -> type[AbstractConnection]:
    """Return a kind of connection that is opened again if an earlier command was interrupted.

    A Ctrl-C or a time limit by a signal may come between a command and its reply. The pool looks
    whether a reply waits on the connection, but it may arrive later, and would then be taken for
    that of the next command: another refund's record.
    """

    class WithoutUnread(kind):  # type: ignore[valid-type,misc] # TCP, TLS, unix socket or Sentinel
        unread = 0
        """Commands that were sent, less the replies that were read."""

        def connect(self) -> None:
            """Connect if need be; the pool calls this before each use."""
            if self.unread > 0:
                self.disconnect()
            super().connect()

        def disconnect(self, *args: Any, **kwargs: Any) -> None:
            """Close the connection, and forget what was not read."""
            self.unread = 0
            super().disconnect(*args, **kwargs)

        def send_command(self, *args: Any, **kwargs: Any) -> None:
            """Send one command."""
            self.unread += 1
            super().send_command(*args, **kwargs)

        def pack_commands(self, commands: Iterable[Any]) -> Any:
            """Return several commands as the bytes to send, which follows at once."""
            every = list(commands)
            self.unread += len(every)
            return super().pack_commands(every)

        def send_packed_command(self, *args: Any, **kwargs: Any) -> None:
            """Send what was counted already."""
            counted = self.unread
            super().send_packed_command(*args, **kwargs)
            # The check before the send may have failed and opened another connection.
            self.unread = counted

        def read_response(self, *args: Any, **kwargs: Any) -> Any:
            """Return the reply of a command, or raise it if it is an error."""
            try:
                reply = super().read_response(*args, **kwargs)
            except ResponseError:
                self.unread -= 1
                raise
            self.unread -= 1
            return reply

    WithoutUnread.__name__ = f"WithoutUnread{kind.__name__}"
    return WithoutUnread
