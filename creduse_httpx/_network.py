"""The network below a client of ours: httpcore's own, which tells what happens on a connection.

When bytes may be written, how long each step may take, and whether something has come that nobody
asked for is decided here, for both kinds of streams. HTTP is httpcore's and h11's.
"""

import socket
import ssl
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from threading import RLock
from typing import Any, Final

import httpcore

from ._clocks import under_trio
from ._exchange import CLOSED, Exchange
from ._foreign import NETWORK
from ._httpcore import are_buffers_empty, stream_on
from ._sockets import SHORTEST, UNASKED, check_loopback, has_unread, read_ticket, read_ticket_async

_LATE: Final = 0.05
"""Seconds in which, after the deadline, what has come by then may still be read."""


class Line:
    """What is known of one connection, and the rules for what is done on it.

    Pure but for a look at whether something has come. One exchange at a time has it.
    """

    def __init__(self, is_closed: Callable[[], bool], *, loopback_only: bool) -> None:
        """Send nothing once ``is_closed``; with ``loopback_only`` to nobody but this machine."""
        self.stream: Any = None
        """httpcore's stream as it is now, TLS included. Not ours, which refers to this object: without
        that cycle, Python closes a connection at once when a signal has lost it."""
        self.connecting: socket.socket | None = None
        """The socket that is being connected."""
        self._is_closed = is_closed
        self._loopback_only = loopback_only
        self._exchange: Exchange
        self._used = False
        self._late_until: float | None = None

    def begin(self, exchange: Exchange) -> None:
        """Serve this exchange from now on."""
        self._exchange = exchange
        self._late_until = None

    def time_to_connect(self) -> float:
        """Return how many seconds connecting, or a step of it, may take."""
        exchange = self._exchange
        exchange.observed = True
        left = exchange.connect_by - exchange.now()
        if self._is_closed():
            raise httpcore.LocalProtocolError(CLOSED)
        if left <= 0:
            raise httpcore.ConnectTimeout("no time was left to connect")
        return left

    def prepare(
        self, sock: socket.socket, step: Callable[[], object], lock: RLock, share: float = 1.0
    ) -> None:
        """Take a step of connecting with a socket, which another thread may shut down meanwhile.

        Within a ``share`` of the time that is left. The socket is closed if it fails.
        """
        self.connecting = sock
        try:
            sock.settimeout(self.time_to_connect() * share)
            step()
        except BaseException:
            with lock:
                self.connecting = None
                sock.close()
            raise
        with lock:
            self.connecting = None

    def connected(self, stream: Any) -> None:
        """Take the stream that has been connected, or that TLS has been put on."""
        self.stream = stream
        self._used = False
        if self._loopback_only:
            check_loopback(stream)

    def time_to_write(self, data: bytes) -> float:
        """Return how many seconds writing ``data`` may take; raise where it must not be written.

        Not `httpcore.WriteError`, after which httpcore looks for a response all the same.
        """
        exchange = self._exchange
        exchange.observed = True
        if not self._begins(data):
            return max(exchange.left(), SHORTEST) if exchange.sent else self.time_to_connect()
        left = exchange.left()
        if self._is_closed():
            raise httpcore.LocalProtocolError(CLOSED)
        if left <= 0:
            raise httpcore.WriteTimeout("no time was left to send the request")
        if has_unread(self.stream, new=not self._used) or not are_buffers_empty(self.stream):
            raise httpcore.RemoteProtocolError(UNASKED)
        self._used = exchange.sent = True
        return left

    def may_show_ticket(self, data: bytes) -> bool:
        """Return whether the socket of a new TLS connection is readable, before its first request.

        A session ticket makes it so, which only a read through TLS tells from a response.
        """
        return (
            not self._used
            and self._begins(data)
            and self._exchange.left() > 0
            and self.stream.get_extra_info("ssl_object") is not None
            and bool(self.stream.get_extra_info("is_readable"))
        )

    def _begins(self, data: bytes) -> bool:
        # A request begins with its method. What goes to a proxy before it begins with CONNECT, or
        # is SOCKS's.
        exchange = self._exchange
        return not exchange.sent and data.startswith(exchange.send.request.method.encode())

    def time_to_read(self) -> float:
        """Return how many seconds a read may take."""
        exchange = self._exchange
        if exchange.too_large:
            raise httpcore.ReadTimeout("no more of the response is read")
        now = exchange.now()
        if not exchange.sent:
            return self.time_to_connect()
        left = exchange.deadline - now
        if left > SHORTEST:
            return left
        # What has come in by now still counts, but only that: it does not take long.
        if self._late_until is None:
            self._late_until = now + _LATE
        if now > self._late_until:
            raise httpcore.ReadTimeout("no whole response came in time")
        return SHORTEST

    def is_reusable(self) -> bool:
        """Return whether all that has come on the connection has been read as HTTP."""
        return self.stream is not None and are_buffers_empty(self.stream)


class Stream(httpcore.NetworkStream):
    """A stream of httpcore's, with the rules of its line."""

    def __init__(self, stream: httpcore.NetworkStream, line: Line, lock: RLock) -> None:
        """Close, and let close, under ``lock`` alone: a descriptor may be another's by then."""
        self._inner = stream
        self._line = line
        self._lock = lock

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002 - the line knows better
        """Read, as far as the deadline allows."""
        with NETWORK:
            return self._inner.read(max_bytes, self._line.time_to_read())

    def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002 - see read
        """Write, if that is allowed."""
        with NETWORK:
            while self._line.may_show_ticket(buffer):
                read_ticket(self._inner)
            self._inner.write(buffer, self._line.time_to_write(buffer))

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ARG002 - see read
    ) -> "Stream":
        """Agree on TLS."""
        plain = self._inner.get_extra_info("socket")
        with NETWORK:
            if isinstance(plain, ssl.SSLSocket):  # to a proxy; httpcore has TLS within TLS
                secure = self._inner.start_tls(
                    ssl_context, server_hostname, self._line.time_to_connect()
                )
            else:
                secure = stream_on(self._handshake(plain, ssl_context, server_hostname))
            self._line.connected(secure)
        return Stream(secure, self._line, self._lock)

    def _handshake(
        self, plain: socket.socket, ssl_context: ssl.SSLContext, server_hostname: str | None
    ) -> ssl.SSLSocket:
        try:
            secure = ssl_context.wrap_socket(
                plain, server_hostname=server_hostname, do_handshake_on_connect=False
            )
            self._line.prepare(secure, secure.do_handshake, self._lock)
        except TimeoutError as error:
            raise httpcore.ConnectTimeout(error) from error
        except OSError as error:
            raise httpcore.ConnectError(error) from error
        return secure

    def get_extra_info(self, info: str) -> Any:
        """Return what the stream knows."""
        return self._inner.get_extra_info(info)

    def close(self) -> None:
        """Close the socket."""
        with self._lock:
            self._inner.close()


class Backend(httpcore.NetworkBackend):
    """Connects, one address after the other, within the time for all of them."""

    def __init__(self, line: Line, lock: RLock) -> None:
        """Tell the line of what is connected."""
        self._line = line
        self._lock = lock

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ARG002 - the line knows better
        local_address: str | None = None,  # noqa: ARG002 - a transport of ours has none
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,  # noqa: ARG002 - as above
    ) -> Stream:
        """Connect to the first address that takes it."""
        with NETWORK:
            stream = stream_on(self._connect_to_any(host, port))
            self._line.connected(stream)
        return Stream(stream, self._line, self._lock)

    def _connect_to_any(self, host: str, port: int) -> socket.socket:
        self._line.time_to_connect()
        failure = OSError(f"{host} has no address")
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise httpcore.ConnectError(error) from error
        for left, (family, kind, protocol, _, address) in zip(
            range(len(found), 0, -1), found, strict=True
        ):
            try:
                sock = socket.socket(family, kind, protocol)  # a machine may not know the family
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                # A silent address must leave time for the others.
                self._line.prepare(sock, partial(sock.connect, address), self._lock, share=1 / left)
            except OSError as error:
                failure = error
            else:
                return sock
        kind_of = (
            httpcore.ConnectTimeout if isinstance(failure, TimeoutError) else httpcore.ConnectError
        )
        raise kind_of(failure) from failure


class AsyncStream(httpcore.AsyncNetworkStream):
    """As `Stream`, for asyncio and trio."""

    def __init__(self, stream: httpcore.AsyncNetworkStream, line: Line) -> None:
        """Have the rules of ``line``."""
        self._inner = stream
        self._line = line

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002 - httpcore's
        """Read, as far as the deadline allows."""
        with NETWORK:
            return await self._inner.read(max_bytes, self._line.time_to_read())

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002 - httpcore's
        """Write, if that is allowed."""
        with NETWORK:
            while self._line.may_show_ticket(buffer):
                await read_ticket_async(self._inner)
            await self._inner.write(buffer, self._line.time_to_write(buffer))

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ARG002 - httpcore's
    ) -> "AsyncStream":
        """Agree on TLS."""
        with NETWORK:
            secure = await self._inner.start_tls(
                ssl_context, server_hostname, self._line.time_to_connect()
            )
        self._line.connected(secure)
        return AsyncStream(secure, self._line)

    def get_extra_info(self, info: str) -> Any:
        """Return what the stream knows."""
        return self._inner.get_extra_info(info)

    async def aclose(self) -> None:
        """Close the connection."""
        await self._inner.aclose()


def _innermost(error: BaseException) -> BaseException:
    """Return one member of a group, since who waits for a cancellation expects no group."""
    members: Sequence[BaseException] = getattr(error, "exceptions", ())
    return _innermost(members[0]) if members else error


class AsyncBackend(httpcore.AsyncNetworkBackend):
    """Connects over asyncio or trio."""

    def __init__(self, line: Line) -> None:
        """Tell the line of what is connected, on the event loop that is running."""
        self._line = line
        # Its types do not say that anyio is always there.
        self._httpcore: Any = httpcore.TrioBackend() if under_trio() else httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ARG002 - httpcore's
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> AsyncStream:
        """Connect."""
        line = self._line
        with NETWORK:
            try:
                connected = await self._httpcore.connect_tcp(
                    host, port, line.time_to_connect(), local_address, socket_options
                )
            except BaseExceptionGroup as group:  # of the nursery in which trio connects
                raise _innermost(group.split(Exception)[1] or group) from None
        line.connected(connected)
        return AsyncStream(connected, line)
