"""A Redis of bytes: answers each command by a table, so that a server that is not at hand can be
asked as well.
"""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

OK = b"+OK\r\n"
GREETING = b"%1\r\n$5\r\nproto\r\n:3\r\n"


@dataclass
class ByteRedis:
    """One that runs: where it is reached, and the commands that it was sent, but for the
    greeting.
    """

    url: str
    asked: list[str] = field(default_factory=list)


def _answering(
    replies: Mapping[str, bytes], told: ByteRedis
) -> type[socketserver.StreamRequestHandler]:
    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while line := self.rfile.readline():
                words = []
                for _ in range(int(line[1:])):
                    length = int(self.rfile.readline()[1:])
                    words.append(self.rfile.read(length + 2)[:-2].decode())
                command = " ".join(words)
                self.wfile.write(self._reply(command))

        @staticmethod
        def _reply(command: str) -> bytes:
            if command.startswith("HELLO"):
                return GREETING
            if command == "PING":
                return b"+PONG\r\n"
            if command.startswith(("CLIENT ", "SELECT ")):
                return OK
            told.asked.append(command)
            for start, reply in replies.items():
                if command.startswith(start):
                    return reply
            return (
                f"-ERR unknown command '{command.split(maxsplit=1)[0]}', with args beginning with:"
                " \r\n".encode()
            )

    return Handler


@contextmanager
def byte_redis(replies: Mapping[str, bytes]) -> Iterator[ByteRedis]:
    """Serve on a free loopback port; a command is answered by the first entry that it begins with,
    else as unknown.
    """
    told = ByteRedis(url="")
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _answering(replies, told)) as server:
        server.daemon_threads = True
        told.url = f"redis://127.0.0.1:{server.server_address[1]}/0"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield told
        finally:
            server.shutdown()
            thread.join()


def config(**settings: str) -> bytes:
    """The reply to CONFIG GET."""
    parts = [f"%{len(settings)}\r\n"]
    for name, value in settings.items():
        parts += [f"${len(word)}\r\n{word}\r\n" for word in (name, value)]
    return "".join(parts).encode()
