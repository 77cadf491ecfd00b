"""The network below a client of ours: httpcore's own, which tells what happens on a connection.

When bytes may be written, how long each step may take, and whether something has come that nobody
asked for is decided here, for both kinds of streams. HTTP is httpcore's and h11's.
"""

import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import suppress
from threading import RLock
from typing import Any, Final

import httpcore

from creduse_core import is_loopback

from ._exchange import Exchange
from ._foreign import NETWORK
from ._httpcore import stream_on

_SHORTEST: Final = 0.001
"""Seconds. A socket takes a timeout of 0 to mean that it should not wait, and says so oddly."""

_LATE: Final = 0.05
"""Seconds in which, after the deadline, what has come by then may still be read."""


class Line:
    """What is known of one connection, and the rules for what is done on it.

    Pure but for a look at whether something has come. One exchange at a time has it.
    """

    def __init__(self, is_closed: Callable[[], bool], *, loopback_only: bool) -> None:
        """Send nothing once ``is_closed``; with ``loopback_only`` to nobody but this machine."""
        self.stream: Any = None
        """The stream as it is now, TLS included."""
        self.connecting: socket.socket | None = None
        """The socket that is being connected."""
        self._is_closed = is_closed
        self._loopback_only = loopback_only
        self._exchange: Exchange
        self._used = False
        self._may_hide = False
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
            raise httpcore.LocalProtocolError("the client is closed")
        if left <= 0:
            raise httpcore.ConnectTimeout("no time was left to connect")
        return left

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
        # A request begins with its method. What goes to a proxy before it begins with CONNECT, or
        # is SOCKS's.
        if exchange.sent or not data.startswith(exchange.send.request.method.encode()):
            by = exchange.deadline if exchange.sent else exchange.connect_by
            return max(by - exchange.now(), _SHORTEST)
        left = exchange.left()
        if self._is_closed():
            raise httpcore.LocalProtocolError("the client is closed")
        if left <= 0:
            raise httpcore.WriteTimeout("no time was left to send the request")
        if self._has_unread():
            raise httpcore.RemoteProtocolError("the server had sent what nobody had asked for")
        self._used = exchange.sent = True
        return left

    def _has_unread(self) -> bool:
        """Return whether something has come, a response that is there before its request, say."""
        if has_record(self.stream):  # which the socket does not show
            return True
        # On a new connection the socket may show a session ticket.
        looks_at_socket = self._used or self.stream.get_extra_info("ssl_object") is None
        return looks_at_socket and bool(self.stream.get_extra_info("is_readable"))

    def time_to_read(self) -> float:
        """Return how many seconds a read may take."""
        exchange = self._exchange
        now = exchange.now()
        if not exchange.sent:
            return max(exchange.connect_by - now, _SHORTEST)
        left = exchange.deadline - now
        if left > _SHORTEST:
            return left
        # What has come in by now still counts, but only that: it does not take long.
        if self._late_until is None:
            self._late_until = now + _LATE
        if now > self._late_until or exchange.too_large:
            raise httpcore.ReadTimeout("no whole response came in time")
        return _SHORTEST

    def has_read(self, size: int, most: int) -> None:
        """Take note of a read of ``size`` bytes, of which there could have been ``most``."""
        # An asyncio stream may keep what goes beyond that, where nobody can see it.
        self._may_hide = self._may_hide or size >= most

    def is_reusable(self) -> bool:
        """Return whether all that has come on the connection is known."""
        return self.stream is not None and not self._may_hide

    def give_up(self) -> None:
        """Read no more of this response."""
        self._exchange.deadline = self._late_until = 0.0


def has_record(stream: Any) -> bool:
    """Return whether TLS holds bytes of a stream that nobody has read."""
    ssl_object = None if stream is None else stream.get_extra_info("ssl_object")
    if ssl_object is None:
        return False
    if not isinstance(ssl_object, ssl.SSLObject):  # a socket's own, which keeps no second record
        return bool(ssl_object.pending())
    try:
        ssl_object.read(1)
    except ssl.SSLWantReadError:
        return False
    except ssl.SSLError:
        pass
    return True


def check_loopback(stream: Any) -> None:
    """Raise unless a stream leads to this machine: a name such as ``localhost`` may mislead.

    Raises:
        httpcore.LocalProtocolError: It leads elsewhere.
    """
    address = stream.get_extra_info("server_addr")
    host = str(address[0]) if isinstance(address, tuple) else str(address)
    if not is_loopback(host):
        raise httpcore.LocalProtocolError(
            f"the host of base_url is at {host}, which is not this machine, and over plain http "
            "anyone on the way can read the API key; pass allow_http=True to send it all the same"
        )


class Pieces(AsyncIterator[bytes]):
    """Gives pieces. An asynchronous generator would be left open where writing fails."""

    def __init__(self, pieces: list[bytes]) -> None:
        """Give the last piece first."""
        self._pieces = pieces

    async def __anext__(self) -> bytes:
        if not self._pieces:
            raise StopAsyncIteration
        return self._pieces.pop()


class Stream(httpcore.NetworkStream):
    """A stream of httpcore's, with the rules of its line."""

    def __init__(self, stream: httpcore.NetworkStream, line: Line, lock: RLock) -> None:
        """Close, and let close, under ``lock`` alone: a descriptor may be another's by then."""
        self._stream = stream
        self._line = line
        self._lock = lock
        self._closed = False

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002 - the line knows better
        """Read, as far as the deadline allows."""
        with NETWORK:
            data = self._stream.read(max_bytes, self._line.time_to_read())
        self._line.has_read(len(data), max_bytes)
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002 - see read
        """Write, if that is allowed."""
        with NETWORK:
            self._stream.write(buffer, self._line.time_to_write(buffer))

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ARG002 - see read
    ) -> "Stream":
        """Agree on TLS."""
        with NETWORK:
            secure = self._stream.start_tls(
                ssl_context, server_hostname, self._line.time_to_connect()
            )
        stream = Stream(secure, self._line, self._lock)
        self._line.connected(stream)
        return stream

    def get_extra_info(self, info: str) -> Any:
        """Return what the stream knows."""
        return self._stream.get_extra_info(info)

    def close(self) -> None:
        """Close the socket."""
        with self._lock:
            self._closed = True
            self._stream.close()

    def shut_down(self) -> None:
        """End what another thread is doing on this stream, from this one."""
        with self._lock, suppress(OSError):  # it has hung up already
            if not self._closed:
                shut_down(self._stream.get_extra_info("socket"))


def shut_down(sock: Any) -> None:
    """Shut a socket down, of whatever kind, so that nothing is read or written on it any more.

    Not by its own method: an SSLSocket forgets TLS first, and uvloop's has none. Nor through a
    second descriptor, of which there may be no more.
    """
    twin = socket.socket(sock.family, sock.type, fileno=sock.fileno())
    try:
        twin.shutdown(socket.SHUT_RDWR)
    finally:
        twin.detach()


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
            stream = Stream(stream_on(self._connect_to_any(host, port)), self._line, self._lock)
        self._line.connected(stream)
        return stream

    def _connect_to_any(self, host: str, port: int) -> socket.socket:
        self._line.time_to_connect()
        failure = OSError(f"{host} has no address")
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise httpcore.ConnectError(error) from error
        for family, kind, protocol, _, address in found:
            try:
                return self._connect(socket.socket(family, kind, protocol), address)
            except TimeoutError as error:
                raise httpcore.ConnectTimeout(error) from error
            except OSError as error:
                failure = error
        raise httpcore.ConnectError(failure) from failure

    def _connect(self, sock: socket.socket, address: Any) -> socket.socket:
        """Connect a socket, which another thread may shut down meanwhile."""
        line = self._line
        line.connecting = sock
        try:
            sock.settimeout(line.time_to_connect())
            sock.connect(address)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except BaseException:
            with self._lock:
                line.connecting = None
                sock.close()
            raise
        line.connecting = None
        return sock


class AsyncStream(httpcore.AsyncNetworkStream):
    """As `Stream`, for asyncio and trio."""

    def __init__(self, stream: httpcore.AsyncNetworkStream, line: Line) -> None:
        """Have the rules of ``line``."""
        self._stream = stream
        self._line = line

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002 - httpcore's
        """Read, as far as the deadline allows."""
        with NETWORK:
            data = await self._stream.read(max_bytes, self._line.time_to_read())
        self._line.has_read(len(data), max_bytes)
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002 - httpcore's
        """Write, if that is allowed."""
        with NETWORK:
            await self._stream.write(buffer, self._line.time_to_write(buffer))

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ARG002 - httpcore's
    ) -> "AsyncStream":
        """Agree on TLS."""
        with NETWORK:
            secure = await self._stream.start_tls(
                ssl_context, server_hostname, self._line.time_to_connect()
            )
        stream = AsyncStream(secure, self._line)
        self._line.connected(stream)
        return stream

    def get_extra_info(self, info: str) -> Any:
        """Return what the stream knows."""
        return self._stream.get_extra_info(info)

    async def aclose(self) -> None:
        """Close the connection."""
        await self._stream.aclose()


class AsyncBackend(httpcore.AsyncNetworkBackend):
    """Connects over asyncio or trio."""

    def __init__(self, line: Line, *, under_trio: bool) -> None:
        """Tell the line of what is connected."""
        self._line = line
        self._httpcore = httpcore.TrioBackend() if under_trio else httpcore.AnyIOBackend()

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
            connected = await self._httpcore.connect_tcp(
                host, port, line.time_to_connect(), local_address, socket_options
            )
        stream = AsyncStream(connected, line)
        line.connected(stream)
        return stream
