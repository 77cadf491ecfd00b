"""Transports that keep every promise. The broken ones replace parts of them."""

import select
import socket
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, TypeAlias
from urllib.parse import urlsplit

import anyio
import anyio.abc
import h11

from creduse_core import (
    MAX_BODY_SIZE,
    CreduseProtocol,
    Delivery,
    Failure,
    ForeignError,
    Response,
    Send,
    forget_frames,
    is_foreign,
)

Result: TypeAlias = Response | Failure
LIBRARIES: Final = frozenset({"h11", __name__.partition(".")[0]})


@dataclass(eq=False)
class Link:
    """A connection and the state of HTTP on it."""

    sock: socket.socket
    http: h11.Connection = field(default_factory=lambda: h11.Connection(h11.CLIENT))


@dataclass
class Progress:
    """The progress of one request: whether it was sent, and what has arrived."""

    sent: bool = False
    head: h11.Response | None = None
    body: bytearray = field(default_factory=bytearray)

    def response(self) -> Response | None:
        """Return what has arrived, even if it is not whole."""
        if self.head is None:
            return None
        pairs = self.head.headers.raw_items()
        headers = [(name.decode(), value.decode("latin-1")) for name, value in pairs]
        return Response(self.head.status_code, headers, bytes(self.body))

    def read(self, http: h11.Connection, limit: int) -> bool:
        """Read what h11 has, and return whether the response is whole."""
        while len(self.body) <= limit:
            match http.next_event():
                case h11.Response() as head:
                    self.head = head
                case h11.Data(data=data):
                    self.body += data
                case h11.EndOfMessage():
                    return True
                case h11.NEED_DATA:
                    return False
                case _:
                    pass
        return True

    def failure(self, error: Exception, *, timed_out: bool) -> Failure:
        """Return the failure that ``error`` is."""
        forget_frames(error)
        return Failure(
            Delivery.MAYBE_SENT if self.sent else Delivery.NOT_SENT,
            error,
            transient=not isinstance(error, RuntimeError),
            timed_out=timed_out,
            response=self.response(),
        )


def request_bytes(http: h11.Connection, send: Send) -> bytes:
    """Return the request on the wire."""
    request = send.request
    length = ("Content-Length", str(len(request.body)))
    host = ("Host", urlsplit(request.url).netloc)
    headers = [(name.encode(), value.encode()) for name, value in (host, *request.headers, length)]
    target = "/" + request.url.split("/", 3)[3]
    head = h11.Request(method=request.method, target=target, headers=headers)
    parts = (head, h11.Data(data=request.body), h11.EndOfMessage())
    return b"".join(http.send(part) or b"" for part in parts)


class Good:
    """A synchronous transport, which threads can share."""

    longest = MAX_BODY_SIZE
    libraries = LIBRARIES

    def __init__(self, protocol: CreduseProtocol) -> None:
        parts = urlsplit(protocol.base_url)
        assert parts.hostname is not None
        assert parts.port is not None
        self.where = parts.hostname, parts.port
        self.idle: list[Link] = []
        self.busy: set[Link] = set()
        self.closed = False

    def send(self, send: Send) -> Result:
        progress = Progress()
        by, link = send.connect_by, None
        try:
            self.check()
            link = self.take() or self.open(by)
            by = send.deadline
            response = self.exchange(link, send, by, progress)
            if send.allows_reuse(response) and self.is_clean(link):
                link.http.start_next_cycle()
                self.keep(link)
                link = None
        except Exception as error:  # noqa: BLE001 - an exception of a library is a failure
            return self.failed(progress, error, by)
        finally:
            if link is not None:
                self.busy.discard(link)
                link.sock.close()
        return response

    def check(self) -> None:
        if self.closed:
            raise RuntimeError("the transport is closed")

    def failed(self, progress: Progress, error: Exception, by: float) -> Result:
        if is_foreign(error, LIBRARIES):
            raise ForeignError(error) from None
        return progress.failure(error, timed_out=self.now() >= by)

    def take(self) -> Link | None:
        while self.idle:
            link = self.idle.pop()
            self.busy.add(link)
            if self.is_quiet(link):
                return link
            self.busy.discard(link)
            link.sock.close()
        return None

    def open(self, by: float) -> Link:
        link = Link(socket.socket())
        self.busy.add(link)
        try:
            link.sock.settimeout(self.left(by))
            link.sock.connect(self.where)
        except BaseException:
            self.busy.discard(link)
            link.sock.close()
            raise
        return link

    def exchange(self, link: Link, send: Send, by: float, progress: Progress) -> Response:
        data = request_bytes(link.http, send)
        link.sock.settimeout(self.left(by))
        self.check()  # from here on, close() shuts the socket down
        progress.sent = True
        link.sock.sendall(data)
        while not progress.read(link.http, self.longest):
            link.sock.settimeout(self.left(by))
            link.http.receive_data(link.sock.recv(65536))
        response = progress.response()
        assert response is not None
        return response

    def left(self, by: float) -> float:
        """Return the seconds that are left."""
        if by <= self.now():
            raise TimeoutError("time is up")
        return by - self.now()

    def is_clean(self, link: Link) -> bool:
        """Return whether both sides are done, and no surplus has arrived."""
        http = link.http
        return http.our_state is http.their_state is h11.DONE and http.trailing_data == (b"", False)

    def is_quiet(self, link: Link) -> bool:
        """Return whether nothing has arrived since."""
        return not select.select([link.sock], [], [], 0)[0]

    def keep(self, link: Link) -> None:
        self.idle.append(link)
        self.busy.discard(link)

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def now(self) -> float:
        return time.monotonic()

    def close(self) -> None:
        self.closed = True
        for link in list(self.busy):
            with suppress(OSError):
                link.sock.shutdown(socket.SHUT_RDWR)
        self.close_idle()

    def close_idle(self) -> None:
        while self.idle:
            self.idle.pop().sock.close()


@dataclass(eq=False)
class AsyncLink:
    """A connection and the state of HTTP on it."""

    stream: anyio.abc.SocketStream
    http: h11.Connection = field(default_factory=lambda: h11.Connection(h11.CLIENT))


class AsyncGood:
    """An asynchronous transport with one connection, on asyncio or trio."""

    libraries = LIBRARIES | {"anyio", "trio"}

    def __init__(self, protocol: CreduseProtocol) -> None:
        parts = urlsplit(protocol.base_url)
        assert parts.hostname is not None
        assert parts.port is not None
        self.where = parts.hostname, parts.port
        self.place = anyio.Semaphore(1)
        self.idle: list[AsyncLink] = []
        self.closed = False
        self.active = 0
        self.count = 0

    async def send(self, send: Send) -> Result:
        progress = Progress()
        self.active += 1
        try:
            with anyio.fail_after(send.deadline - self.now()):
                self.check()
                async with self.place:
                    return await self.send_alone(send, progress)
        except Exception as error:  # noqa: BLE001 - an exception of a library is a failure
            return progress.failure(error, timed_out=isinstance(error, TimeoutError))
        finally:
            self.active -= 1

    async def send_alone(self, send: Send, progress: Progress) -> Result:
        link = None
        try:
            with anyio.fail_after(send.connect_by - self.now()):
                link = self.idle.pop() if self.idle else await self.open()
            response = await self.exchange(link, send, progress)
            if send.allows_reuse(response) and self.is_clean(link):
                link.http.start_next_cycle()
                self.keep(link)
                link = None
        finally:
            if link is not None:
                with anyio.CancelScope(shield=True), suppress(Exception):
                    await anyio.aclose_forcefully(link.stream)
        return response

    def check(self) -> None:
        if self.closed:
            raise RuntimeError("the transport is closed")

    def keep(self, link: AsyncLink) -> None:
        self.idle.append(link)

    async def open(self) -> AsyncLink:
        return AsyncLink(await anyio.connect_tcp(*self.where))

    async def exchange(self, link: AsyncLink, send: Send, progress: Progress) -> Response:
        data = request_bytes(link.http, send)
        await anyio.lowlevel.checkpoint()
        self.check()
        progress.sent = True
        await link.stream.send(data)
        while not progress.read(link.http, MAX_BODY_SIZE):
            try:
                link.http.receive_data(await link.stream.receive())
            except anyio.EndOfStream:
                link.http.receive_data(b"")
        response = progress.response()
        assert response is not None
        return response

    def is_clean(self, link: AsyncLink) -> bool:
        """Return whether both sides are done, and no surplus has arrived."""
        http = link.http
        return http.our_state is http.their_state is h11.DONE and http.trailing_data == (b"", False)

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(seconds)

    def now(self) -> float:
        return anyio.current_time()

    async def aclose(self) -> None:
        self.closed = True
        while self.active:  # noqa: ASYNC110 - simple, and fast enough for a test
            await anyio.sleep(0.01)
        await self.close_idle()

    async def close_idle(self) -> None:
        while self.idle:
            await anyio.aclose_forcefully(self.idle.pop().stream)
