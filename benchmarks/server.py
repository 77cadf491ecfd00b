"""A server that does as little as possible, so that the benchmarks measure the client.

It responds by path, with bytes made beforehand:

- ``/3/subtract`` and ``/3/get-active-balance``: a normal response, with 3 cycles.
- ``/echo/``: a normal response to ``add``: the request's body.
- ``/closed/``: it closes the connection after the response.
- ``/reset/``: it resets the connection and sends no response.
- ``/cancelled/``: it sends nothing.
- ``/held-NAME/``: the response waits. ``count`` returns how many wait, and ``release`` sends them.

It prints its port, and stops when its input ends.
"""

import json
import re
import resource
import select
import socket
import struct
import sys
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from typing import Final

USER: Final = "12345678-1234-4678-9234-567812345678"
"""Of version 4, as the published client takes no other."""
AMOUNT: Final = 5
CYCLES: Final = (1, 3, 100, 5_000)

_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\nDate: Tue, 12 Aug 2025 14:35:55 GMT\r\nServer: minimal\r\n"
    b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n"
)
_OK: Final = b"HTTP/1.1 200 OK\r\n"
_CLOSING: Final = _OK + b"Connection: close\r\n"
_LINGER_0: Final = struct.pack("ii", 1, 0)
_MISSING: Final = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_START: Final = datetime(2025, 8, 12, 14, 35, 55, 423145, tzinfo=UTC)


def subtracted() -> bytes:
    """Return the body of a response to ``subtract``."""
    return json.dumps({"end_user_id": USER, "amount": AMOUNT}).encode()


def balance(cycles: int) -> bytes:
    """Return the body of a response to ``get_balance``. No two cycles are alike.

    It has all fields that any client needs. The published client needs the status.
    """
    parts: list[dict[str, object]] = []
    for number in range(cycles):
        start = _START + timedelta(seconds=number, microseconds=7 * number)
        end = (start + timedelta(days=31)).replace(hour=23, minute=59, second=59)
        parts.append(
            {
                "cycle_start": start.isoformat().replace("+00:00", "Z"),
                "cycle_end": end.replace(microsecond=999_999).isoformat().replace("+00:00", "Z"),
                "amount": number + 3,
                "starting_amount": number + 50,
                "status": "active",
                "cycle_type": "recurring" if number == 0 else "one-time",
            }
        )
    total = sum(range(3, cycles + 3))
    response = {"end_user_id": USER, "active_balance_by_cycle": parts, "active_balance": total}
    return json.dumps(response).encode()


def _response(body: bytes) -> bytes:
    return _HEAD % len(body) + body


def _responses() -> dict[bytes, bytes]:
    responses: dict[bytes, bytes] = {}
    for cycles in CYCLES:
        responses[b"/%d/subtract" % cycles] = _response(subtracted())
        responses[b"/%d/get-active-balance" % cycles] = _response(balance(cycles))
    return responses


def _whole(data: bytes) -> bool:
    head = data.find(b"\r\n\r\n")
    if head < 0:
        return False
    length = _LENGTH.search(data, 0, head)
    return len(data) >= head + 4 + (0 if length is None else int(length[1]))


class Server:
    """All connections, in one thread. Their sockets block, since each client reads its response."""

    def __init__(self) -> None:
        self._responses = _responses()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self._poll = select.epoll()
        self._poll.register(self._listener, select.EPOLLIN)
        self._connections: dict[int, socket.socket] = {}
        self._begun: dict[int, bytes] = {}
        self._held: dict[bytes, list[socket.socket]] = defaultdict(list)

    def serve(self) -> None:
        """Print the port, and serve until the input ends."""
        print(self._listener.getsockname()[1], flush=True)
        self._poll.register(sys.stdin, select.EPOLLIN)
        while True:
            for descriptor, _ in self._poll.poll():
                connection = self._connections.get(descriptor)
                if connection is not None:
                    self._receive(descriptor, connection)
                elif descriptor == self._listener.fileno():
                    self._accept()
                else:
                    return

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connections[connection.fileno()] = connection
        self._poll.register(connection, select.EPOLLIN)

    def _receive(self, descriptor: int, connection: socket.socket) -> None:
        try:
            piece = connection.recv(65536)
        except ConnectionError:
            piece = b""
        data = self._begun.pop(descriptor, b"") + piece
        if not piece:
            self._close(descriptor)
        elif not _whole(data):
            self._begun[descriptor] = data
        elif (path := data.split(b" ", 2)[1]).startswith(b"/echo/"):
            connection.sendall(_response(data.partition(b"\r\n\r\n")[2]))
        else:
            self._response(path, descriptor, connection)

    def _close(self, descriptor: int) -> None:
        self._poll.unregister(descriptor)
        self._connections.pop(descriptor).close()

    def _response(self, path: bytes, descriptor: int, connection: socket.socket) -> None:
        prefix, _, last = path.rpartition(b"/")
        response = self._responses.get(path, _MISSING)
        if prefix == b"/cancelled":
            return
        if prefix == b"/reset":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_0)
            self._close(descriptor)
            return
        if prefix == b"/closed":
            connection.sendall(self._responses[b"/1/subtract"].replace(_OK, _CLOSING))
            self._close(descriptor)
            return
        if prefix.startswith(b"/held-"):
            if last == b"subtract":
                self._held[prefix].append(connection)
                return
            response = _response(b"%d" % len(self._held[prefix]))
            if last == b"release":
                for waiting in self._held.pop(prefix):
                    waiting.sendall(self._responses[b"/1/subtract"])
        connection.sendall(response)


def main() -> None:
    """Serve as many connections as the machine allows."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    Server().serve()
