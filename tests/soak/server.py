"""The server of a soak run: raw sockets, faults at every stage, and its own record.

It runs in its own process and uses no code of creduse. It prints its port, and stops when its input
ends. Each line of input is a command: "stats", "record", "faults-off" (new connections have no
faults) and "faults-on" (they have some again). The server responds to each with a line of JSON.

    python -m tests.soak.server SEED SHARE [CERTIFICATE]

The kernel adds a timestamp to incoming bytes. So the record says when a request was sent, even if this
process reads it late.
"""

import heapq
import itertools
import json
import math
import random
import re
import resource
import select
import socket
import ssl
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Final, NamedTuple

from tests.soak.plans import FAULTS, FULL_POOL, MAX_CONCURRENT, Script

_SO_TIMESTAMPNS: Final = 35  # from Linux's asm-generic/socket.h: the socket module lacks it
_TIMESPEC: Final = struct.Struct("qq")
_ESTABLISHED: Final = 1  # from linux/tcp.h, like the offsets in its struct tcp_info
_JIFFY: Final = 0.01
"""The lowest resolution of the kernel's coarse clock, in seconds."""
_LINGER_0: Final = struct.pack("ii", 1, 0)
_HANG: Final = 7.0
"""Seconds after which the server ends a hanging request. No client should wait so long."""

_PATIENCE: Final = 5.0
"""Seconds for which a request waits until the pool is full. Its client waits longer."""

_REQUEST: Final = re.compile(rb"(\w+) /([a-z-]+) HTTP/1\.1\r\n")
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_KEY: Final = re.compile(rb"\r\nidempotency-key: *([!-~]+)", re.IGNORECASE)
_PHRASE: Final = b"HTTP/1.1 %d Whatever\r\nDate: Tue, 12 Aug 2025 14:35:55 GMT\r\n"
_JSON: Final = b"Content-Type: application/json\r\n"


def response(status: int, body: object, *fields: bytes) -> bytes:
    """Return the bytes of a response."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = _PHRASE % status + _JSON + b"".join(field + b"\r\n" for field in fields)
    return head + b"Content-Length: %d\r\n\r\n" % len(data) + data


def refusal(status: int, code: str | None, *fields: bytes) -> bytes:
    """Return the bytes of an error response."""
    error = {"message": "no", "timestamp": "2025-08-12T14:35:55Z"}
    return response(status, error if code is None else {"error_code": code, **error}, *fields)


NO_FUNDS: Final = refusal(402, "INSUFFICIENT_FUNDS")


class Entry:
    """A whole request in the record."""

    def __init__(self, number: int, sent: float, connection: int, fault: str) -> None:
        self.number = number
        self.sent = sent
        """When its first byte was sent, in monotonic seconds."""
        self.connection = connection
        self.fault = fault
        self.stray = math.inf
        """Seconds from a stray response on the connection to the request, or negative."""
        self.applied = False

    def row(self) -> tuple[int, float, int, str, bool, float]:
        """Return the entry as JSON data."""
        return self.number, self.sent, self.connection, self.fault, self.applied, self.stray


class Exchange:
    """One request and its response."""

    def __init__(
        self,
        server: "Server",
        connection: "Connection",
        entry: Entry,
        script: Script,
        path: str,
        body: dict[str, object],
        key: bytes | None,
    ) -> None:
        self.server = server
        self.connection = connection
        self.entry = entry
        self.pause = script.fraction
        self.path = path
        self.body = body
        self.key = key
        self.send = connection.send

    def apply(self) -> bytes:
        """Apply the request, unless its key was used before, and return its response."""
        responses = self.server.responses
        self.server.running.discard(self.key)
        if self.key is not None and self.key in responses:
            return responses[self.key]
        self.entry.applied = self.path != "get-active-balance"
        made = response(200, self.result())
        if self.key is not None:
            responses[self.key] = made
        return made

    def result(self) -> dict[str, object]:
        """Return the body of the response to an applied request."""
        if self.path != "get-active-balance":
            return self.body
        return {**self.body, "active_balance": self.entry.number, "active_balance_by_cycle": []}

    def hold_key(self) -> None:
        """Reject other requests with the same key until this one is applied."""
        if self.key is not None and self.key not in self.server.responses:
            self.server.running.add(self.key)

    def close(self) -> None:
        """Close the connection. Over TLS, every second time without close_notify."""
        self.connection.close(polite=self.entry.number % 2 == 0)

    def reset(self) -> None:
        """Reset the connection."""
        self.connection.reset()


Steps = Iterator[float]
"""The steps of a fault. Between two steps it yields seconds to wait."""


def none(x: Exchange) -> Steps:
    x.send(x.apply())
    yield from ()


def close(x: Exchange) -> Steps:
    x.close()
    yield from ()


def reset(x: Exchange) -> Steps:
    x.reset()
    yield from ()


def hang(x: Exchange) -> Steps:
    yield _HANG
    x.reset()


def apply_later(x: Exchange) -> Steps:
    x.hold_key()
    yield x.pause
    x.apply()
    yield _HANG
    x.close()


def reset_then_apply(x: Exchange) -> Steps:
    x.hold_key()
    x.reset()
    yield x.pause
    x.apply()


def apply_then_close(x: Exchange) -> Steps:
    x.apply()
    x.close()
    yield from ()


def apply_then_reset(x: Exchange) -> Steps:
    x.apply()
    x.reset()
    yield from ()


def apply_then_hang(x: Exchange) -> Steps:
    x.apply()
    yield _HANG
    x.reset()


def cut_in_head(x: Exchange) -> bytes:
    head = x.apply().partition(b"\r\n\r\n")[0]
    return head[: 1 + int(x.pause * (len(head) - 1))]


def cut_in_body(x: Exchange) -> bytes:
    head, end, body = x.apply().partition(b"\r\n\r\n")
    return head + end + body[: int(x.pause * (len(body) - 1))]


def cut(where: Callable[[Exchange], bytes], then: Callable[[Exchange], None]) -> "Fault":
    def steps(x: Exchange) -> Steps:
        x.send(where(x))
        # A reset at once would discard the bytes that were just sent.
        yield 0.001
        then(x)

    return steps


def drip(x: Exchange, data: bytes, seconds: float) -> Steps:
    for number in range(len(data)):
        x.send(data[number : number + 1])
        yield seconds


def drip_head(x: Exchange) -> Steps:
    yield from drip(x, x.apply(), 0.05)


def drip_body(x: Exchange) -> Steps:
    head, end, body = x.apply().partition(b"\r\n\r\n")
    x.send(head + end)
    yield from drip(x, body, 0.15)


def drip_quickly(x: Exchange) -> Steps:
    made = x.apply()
    size = len(made) // 8 + 1
    for start in range(0, len(made), size):
        x.send(made[start : start + size])
        yield 0.002


def endless_interim(x: Exchange) -> Steps:
    x.apply()
    for _ in range(700):
        x.send(b"HTTP/1.1 102 Processing\r\n\r\n")
        yield 0.01
    x.close()


def endless_head(x: Exchange) -> Steps:
    x.apply()
    x.send(_PHRASE % 200)
    for number in range(700):
        x.send(b"X-%d: %s\r\n" % (number, 1000 * b"x"))
        yield 0.01
    x.close()


def endless_body(x: Exchange) -> Steps:
    x.apply()
    x.send(_PHRASE % 200 + _JSON + b"Transfer-Encoding: chunked\r\n\r\n")
    for _ in range(50):
        x.send(b"10000\r\n" + 0x10000 * b" " + b"\r\n")
        yield 0.01
    x.close()


def slow(x: Exchange) -> Steps:
    x.hold_key()
    yield 0.3 * x.pause
    x.send(x.apply())


def split(x: Exchange) -> Steps:
    made = x.apply()
    middle = 1 + int(x.pause * (len(made) - 2))
    x.send(made[:middle])
    yield 0.05 * x.pause
    x.send(made[middle:])


def interim(x: Exchange) -> Steps:
    x.send(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
    yield 0.01 * x.pause
    x.send(b"HTTP/1.1 102 Processing\r\n\r\n" + x.apply())


def chunked(x: Exchange, *fields: bytes) -> Steps:
    x.apply()
    body = json.dumps(x.result()).encode()
    head = _PHRASE % 200 + _JSON + b"".join(fields) + b"Transfer-Encoding: chunked\r\n\r\n"
    x.send(head + b"5\r\n" + body[:5] + b"\r\n")
    yield 0.02 * x.pause
    x.send(b"%x\r\n" % (len(body) - 5) + body[5:] + b"\r\n0\r\n\r\n")


def chunked_with_length(x: Exchange) -> Steps:
    yield from chunked(x, b"Content-Length: 10\r\n")


def until_close(x: Exchange) -> Steps:
    x.apply()
    x.send(_PHRASE % 200 + _JSON + b"Connection: close\r\n\r\n" + json.dumps(x.result()).encode())
    yield 0.01 * x.pause
    x.close()


def refuse(status: int, code: str | None, *fields: bytes) -> "Fault":
    """Respond with an error, and do not apply the request."""
    made = refusal(status, code, *fields)

    def steps(x: Exchange) -> Steps:
        x.send(made)
        yield from ()

    return steps


def key_in_use(x: Exchange) -> Steps:
    """Respond that the key is in use."""
    x.send(refusal(409 + 13 * (x.entry.number % 2), "IDEMPOTENCY_KEY_IN_USE"))
    yield from ()


def time_out_and_close(x: Exchange) -> Steps:
    x.send(refusal(408, None, b"Connection: close"))
    x.close()
    yield from ()


def apply_then(made: bytes) -> "Fault":
    """Apply the request, and respond with something other than its result."""

    def steps(x: Exchange) -> Steps:
        x.apply()
        x.send(made)
        yield from ()

    return steps


def surplus(more: bytes | None, seconds: float = 0, part: float = 1) -> "Fault":
    """Respond, and send ``more`` after it. ``None`` repeats the response. ``part`` cuts that."""

    def steps(x: Exchange) -> Steps:
        made = x.apply()
        extra = made if more is None else more
        extra = extra[: int(part * len(extra))]
        if seconds:
            x.send(made)
            requests = x.connection.requests
            yield seconds * x.pause
            if x.connection.requests == requests:
                x.connection.out_of_step = True
                x.send(extra)
        else:
            x.send(made + extra)

    return steps


def surplus_drip(x: Exchange) -> Steps:
    x.send(x.apply() + b"H")
    for _ in range(200):
        yield 0.03
        x.send(b"x")
    x.close()


def then_close(x: Exchange) -> Steps:
    x.send(x.apply())
    x.close()
    yield from ()


def then_reset(x: Exchange) -> Steps:
    x.send(x.apply())
    yield 0.005 * x.pause
    x.reset()


def connection_close(x: Exchange) -> Steps:
    made = x.apply()
    x.send(made.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
    x.close()
    yield from ()


def close_when_idle(x: Exchange) -> Steps:
    x.send(x.apply())
    requests = x.connection.requests
    yield 0.03 * x.pause
    if x.connection.requests == requests:
        x.close()


def full_pool(x: Exchange) -> Steps:
    server = x.server
    server.waiting.append(x)
    if sum(each.connection.open for each in server.waiting) == MAX_CONCURRENT:
        server.full_pools += 1
        for each in server.waiting:
            each.send(each.apply())
        server.waiting.clear()
    # One of them can have failed. The client keeps the connections of the others for the next try.
    yield _PATIENCE
    if x in server.waiting:
        server.waiting.remove(x)
        x.send(x.apply())


Fault = Callable[[Exchange], Steps]
KEY_IN_USE: Final = "key-in-use"
_OTHER_USER: Final = {"end_user_id": "12345678-1234-5678-1234-567812345678", "amount": 1}
DO: Final[dict[str, Fault]] = {
    "none": none,
    "close": close,
    "reset": reset,
    "hang": hang,
    "apply-later": apply_later,
    "reset-then-apply": reset_then_apply,
    "apply-then-close": apply_then_close,
    "apply-then-reset": apply_then_reset,
    "apply-then-hang": apply_then_hang,
    "cut-head-then-close": cut(cut_in_head, Exchange.close),
    "cut-head-then-reset": cut(cut_in_head, Exchange.reset),
    "cut-body-then-close": cut(cut_in_body, Exchange.close),
    "cut-body-then-reset": cut(cut_in_body, Exchange.reset),
    "drip-head": drip_head,
    "drip-body": drip_body,
    "endless-interim": endless_interim,
    "endless-head": endless_head,
    "endless-body": endless_body,
    "slow": slow,
    "split": split,
    "drip-quickly": drip_quickly,
    "interim": interim,
    "chunked": chunked,
    "chunked-with-length": chunked_with_length,
    "until-close": until_close,
    "402": refuse(402, "INSUFFICIENT_FUNDS"),
    "404": refuse(404, "USER_DOES_NOT_EXIST"),
    "408": refuse(408, None),
    "408-then-close": time_out_and_close,
    "409": refuse(409, None),
    "429": refuse(429, None),
    "429-retry-after-0": refuse(429, None, b"Retry-After: 0"),
    "429-retry-after-1": refuse(429, None, b"Retry-After: 1"),
    "500": refuse(500, None),
    "503": refuse(503, None),
    "302": refuse(302, None, b"Location: /elsewhere"),
    "apply-then-408": apply_then(refusal(408, None)),
    "apply-then-500": apply_then(refusal(500, "INTERNAL")),
    "apply-then-502-html": apply_then(response(502, b"<html>Bad Gateway</html>")),
    "apply-then-503": apply_then(refusal(503, None, b"Retry-After: 0")),
    "apply-then-not-json": apply_then(response(200, b"{")),
    "apply-then-other-user": apply_then(response(200, _OTHER_USER)),
    "twice": surplus(None),
    "twice-a-moment-later": surplus(None, seconds=0.02),
    "half-a-surplus": surplus(None, part=0.5),
    "surplus-402": surplus(NO_FUNDS),
    "surplus-402-a-moment-later": surplus(NO_FUNDS, seconds=0.02),
    "surplus-429-a-moment-later": surplus(refusal(429, None), seconds=0.02),
    "surplus-503-a-moment-later": surplus(refusal(503, None), seconds=0.02),
    "surplus-drip": surplus_drip,
    "then-close": then_close,
    "then-reset": then_reset,
    "connection-close": connection_close,
    "close-when-idle": close_when_idle,
    FULL_POOL: full_pool,
    KEY_IN_USE: key_in_use,
}
assert [*DO] == [*FAULTS, FULL_POOL, KEY_IN_USE]


class ConnectionFault(NamedTuple):
    """A fault of a connection before its first whole request."""

    name: str
    reads_nothing: bool = False
    wait: float = 0
    """Seconds to wait before the end."""
    read: int = 0
    """Bytes to read before the fault."""
    send: bytes = b""
    reset: bool = True
    after_handshake: bool = False


CONNECTION_FAULTS: Final = (
    ConnectionFault("accept-then-close", reads_nothing=True, reset=False),
    ConnectionFault("accept-then-reset", reads_nothing=True),
    ConnectionFault("accept-then-hang", reads_nothing=True, wait=1.0),
    ConnectionFault("a-moment-then-reset", reads_nothing=True, wait=0.002),
    ConnectionFault("read-a-little-then-close", read=20, reset=False),
    ConnectionFault("read-a-little-then-reset", read=20),
    ConnectionFault("read-then-close", read=65536, reset=False),
    ConnectionFault("read-then-hang", read=65536, wait=1.0),
    ConnectionFault("not-http", read=65536, send=b"220 mail.invalid ESMTP\r\n", wait=0.001),
    ConnectionFault(
        "early-400", read=20, send=refusal(400, None, b"Connection: close"), wait=0.001
    ),
    ConnectionFault("handshake-then-close", after_handshake=True, reset=False),
    ConnectionFault("handshake-then-reset", after_handshake=True),
)
"""The faults of connections. The server applies no request on such a connection."""


class Connection:
    """One accepted connection."""

    def __init__(
        self, server: "Server", accepted: socket.socket, number: int, tls: ssl.SSLContext | None
    ) -> None:
        self._server = server
        self._socket = accepted
        self.number = number
        self.requests = 0
        self.sent_at = -math.inf
        """When the server last sent something."""
        self.out_of_step = False
        """Whether the server has sent a stray response when the client may already have sent its next
        request. From then on the client cannot know which response belongs to a request."""
        self.fault: ConnectionFault | None = None
        self._buffer = b""
        self._began = 0.0
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = (
            None if tls is None else tls.wrap_bio(self._incoming, self._outgoing, server_side=True)
        )
        self._handshake_done = False

    @property
    def open(self) -> bool:
        """Whether the server has not closed it."""
        return self._socket.fileno() >= 0

    def send(self, data: bytes) -> None:
        """Send bytes. The kernel must accept all of them at once."""
        if not self.open:
            return
        if self._tls is not None:
            self._tls.write(data)
            data = self._outgoing.read()
        self._push(data)
        self.sent_at = time.monotonic()

    def _push(self, data: bytes) -> None:
        try:
            sent = self._socket.send(data) if data else 0
        except OSError:
            sent = -1
        if sent < len(data):  # the client has closed it, or has read nothing for a long time
            self.close(polite=False)

    def close(self, *, polite: bool) -> None:
        """Close it. If ``polite``, send close_notify over TLS."""
        if not self.open:
            return
        if polite and self._tls is not None and self._handshake_done:
            with suppress(ssl.SSLError):
                self._tls.unwrap()
            with suppress(OSError):
                self._socket.send(self._outgoing.read())
        self._server.forget(self._socket.fileno())
        self._socket.close()

    def reset(self) -> None:
        """Reset it."""
        if self.open:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_0)
            self.close(polite=False)

    def readable(self) -> None:
        """Read the bytes that have arrived."""
        fault = self.fault
        try:
            data, stamps, _, _ = self._socket.recvmsg(
                fault.read if fault is not None and fault.read else 65536, 64
            )
        except BlockingIOError:  # the descriptor belonged to another connection before
            return
        except OSError:
            data, stamps = b"", []
        if not data:
            self.close(polite=False)
        elif fault is not None and fault.read:
            self._server.run_steps(self.run_fault(fault))
        else:
            try:
                self._take(self._decrypted(data), self._sent(data, stamps[0][2]))
            except ssl.SSLError:
                self.close(polite=False)

    def _sent(self, data: bytes, stamp: bytes) -> float:
        """Return when the first of the bytes was sent, or an earlier time.

        The kernel joins unread segments and keeps only the last timestamp, which can be that of the
        end of the connection.
        """
        info = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 56)
        state, last_data = info[0], int.from_bytes(info[52:56], sys.byteorder) / 1000
        whole = self._tls is None or len(data) == 5 + int.from_bytes(data[3:5])
        if whole and state == _ESTABLISHED:
            seconds, nanoseconds = _TIMESPEC.unpack(stamp)
            return float(seconds + nanoseconds / 1e9 - self._server.clock_offset)
        return time.monotonic() - last_data - _JIFFY if whole else 0.0

    def run_fault(self, fault: ConnectionFault) -> Steps:
        """Run the fault of the connection."""
        self._server.hits[fault.name] += 1
        self._server.ignore(self._socket.fileno())
        if fault.wait:
            if fault.send:
                self._push(fault.send)
            yield fault.wait
        if fault.reset:
            self.reset()
        else:
            self.close(polite=True)

    def _decrypted(self, data: bytes) -> bytes:
        if self._tls is None:
            return data
        self._incoming.write(data)
        plain = b""
        try:
            if not self._handshake_done:
                self._tls.do_handshake()
                self._handshake_done = True
            while piece := self._tls.read(65536):
                plain += piece
        except ssl.SSLWantReadError:
            pass
        self._push(self._outgoing.read())
        return plain

    def _take(self, data: bytes, sent: float) -> None:
        if not self.open:
            return
        fault = self.fault
        if (
            fault is not None
            and fault.after_handshake
            and (self._handshake_done or self._tls is None)
        ):
            self._server.run_steps(self.run_fault(fault))
            return
        if not self._buffer:
            self._began = sent
        self._buffer += data
        head = self._buffer.find(b"\r\n\r\n")
        if head < 0:
            return
        length = _LENGTH.search(self._buffer, 0, head)
        end = head + 4 + (0 if length is None else int(length[1]))
        if len(self._buffer) >= end:
            request, self._buffer = self._buffer[:end], self._buffer[end:]
            self.requests += 1
            self._server.receive(self, request, head, self._began)


class Server:
    """All connections, in one thread."""

    def __init__(self, seed: int, share: float, tls: ssl.SSLContext | None) -> None:
        self._dice = random.Random(seed)  # noqa: S311 - nothing is secret here
        self._share = share
        self._faults_off = False
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
        # Accepted sockets inherit the option, so the first byte has a timestamp, too.
        self._listener.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        self._listener.settimeout(0)
        self._epoll = select.epoll()
        self._epoll.register(self._listener, select.EPOLLIN)
        self._connections: dict[int, Connection] = {}
        self._accepted = 0
        self._timers: list[tuple[float, int, Steps]] = []
        self._order = itertools.count()
        self._record: list[Entry] = []
        self._seen: Counter[int] = Counter()
        # A delay between the two calls makes the difference smaller.
        self.clock_offset = max(time.time() - time.monotonic() for _ in range(100))
        self.hits: Counter[str] = Counter()
        self.responses: dict[bytes, bytes] = {}
        """By idempotency key."""
        self.running: set[bytes | None] = set()
        self.waiting: list[Exchange] = []
        self.full_pools = 0
        """How often a client used all of its connections at the same time."""

    def serve(self) -> None:
        """Print the port, and serve until the input ends."""
        print(self._listener.getsockname()[1], flush=True)
        self._epoll.register(sys.stdin, select.EPOLLIN)
        while True:
            for descriptor, _ in self._epoll.poll(self._time_to_wait()):
                connection = self._connections.get(descriptor)
                if connection is not None:
                    connection.readable()
                elif descriptor == self._listener.fileno():
                    self._accept()
                elif descriptor == sys.stdin.fileno() and not self._run_command(
                    sys.stdin.readline()
                ):
                    return
            now = time.monotonic()
            while self._timers and self._timers[0][0] <= now:
                self._step(heapq.heappop(self._timers)[2])

    def _time_to_wait(self) -> float | None:
        return max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None

    def _run_command(self, command: str) -> bool:
        response: object
        if command == "stats\n":
            response = {
                "accepted": self._accepted,
                "open": len(self._connections),
                "requests": len(self._record),
                "hits": self.hits,
                "full_pools": self.full_pools,
            }
        elif command == "record\n":
            response = [entry.row() for entry in self._record]
        elif command == "faults-off\n":
            self._faults_off, response = True, None
        elif command == "faults-on\n":
            self._faults_off, response = False, None
        else:
            return False
        print(json.dumps(response), flush=True)
        return True

    def run_steps(self, steps: Steps) -> None:
        """Run the first step, and schedule the others."""
        self._step(steps)

    def _step(self, steps: Steps) -> None:
        seconds = next(steps, None)
        if seconds is not None:
            heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._order), steps))

    def _accept(self) -> None:
        with suppress(BlockingIOError):
            while True:
                accepted, _ = self._listener.accept()
                accepted.settimeout(0)
                accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection = Connection(self, accepted, self._accepted, self._tls)
                self._accepted += 1
                self._connections[accepted.fileno()] = connection
                self._epoll.register(accepted, select.EPOLLIN)
                if self._dice.random() < self._share / 3 and not self._faults_off:
                    fault = connection.fault = self._dice.choice(CONNECTION_FAULTS)
                    if fault.reads_nothing:
                        self.run_steps(connection.run_fault(fault))

    def ignore(self, descriptor: int) -> None:
        """Stop reading from a connection."""
        self._epoll.unregister(descriptor)

    def forget(self, descriptor: int) -> None:
        """Remove a connection that closes."""
        del self._connections[descriptor]
        with suppress(FileNotFoundError):  # ignored before
            self._epoll.unregister(descriptor)

    def receive(self, connection: Connection, request: bytes, head: int, sent: float) -> None:
        """Record a whole request, and run its script."""
        line = _REQUEST.match(request)
        assert line is not None, request
        body: dict[str, object] = json.loads(request[head + 4 :])
        found = _KEY.search(request, 0, head)
        key = None if found is None else found[1]
        script = Script.decode(str(body["end_user_id"]) if key is None else key.decode())
        attempt = self._seen[script.number]
        self._seen[script.number] += 1
        fault = script.faults[min(attempt, 2)]
        if key is not None and key in self.running:
            fault = KEY_IN_USE
        self.hits[fault] += 1
        entry = Entry(script.number, sent, connection.number, fault)
        if connection.out_of_step:
            entry.stray = sent - connection.sent_at
        self._record.append(entry)
        exchange = Exchange(self, connection, entry, script, line[2].decode(), body, key)
        self._step(DO[fault](exchange))


def main() -> None:
    """Serve as many connections as the machine allows."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    seed, share, *certificate = sys.argv[1:]
    tls = None
    if certificate:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(certificate[0])
    Server(int(seed), float(share), tls).serve()


if __name__ == "__main__":
    main()
