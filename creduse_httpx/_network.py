"""The network backend below own connections. It wraps httpcore's streams.

When bytes may be written, the timeout of each operation, and the check for unrequested bytes belong
here. HTTP does not: httpcore and h11 do that.
"""

import socket
import ssl
from collections.abc import Callable, Iterable
from functools import partial
from threading import RLock
from typing import Any, Final

import anyio
import httpcore

from creduse_core.error_texts import CLOSED
from creduse_core.foreign import single_of_group

from ._exchange import NO_CONNECTION, NO_TIME_TO_SEND, NO_WHOLE_RESPONSE, Exchange
from ._foreign import RAISE_FOREIGN
from ._httpcore import are_buffers_empty, stream_on
from ._sockets import (
    MIN_TIMEOUT,
    UNREQUESTED_DATA,
    check_loopback,
    has_unread_data,
    is_readable,
    read_ticket,
    read_ticket_async,
)

_READ_GRACE: Final = 0.05
"""Seconds after the deadline in which bytes that have arrived can still be read."""


class ConnectionState:
    """The state and the rules of one connection. It serves one exchange at a time.

    Its only I/O is to check whether bytes have arrived. Once ``is_closed()``, nothing is sent. With
    ``loopback_only``, the peer must be this machine.
    """

    def __init__(self, is_closed: Callable[[], bool], *, loopback_only: bool) -> None:
        self.stream: Any = None
        """httpcore's current stream, TLS included. It is not our `Stream`, which refers to this
        object: without that cycle, Python closes a connection at once if a signal handler's
        exception drops it."""
        self.connecting: socket.socket | None = None
        """The socket that is being connected."""
        self._is_closed = is_closed
        self._loopback_only = loopback_only
        self._exchange: Exchange
        self._used = False
        self._head = b""
        self._grace_until: float | None = None

    def begin(self, exchange: Exchange) -> None:
        """Serve this exchange from now on."""
        self._exchange = exchange
        self._head = b""
        self._grace_until = None

    def end(self) -> None:
        """Forget the exchange, which has a user's request and response."""
        del self._exchange

    def connect_timeout(self) -> float:
        """Return the seconds that connecting, or a step of it, may take."""
        exchange = self._exchange
        exchange.sent_is_known = True
        left = exchange.send.connect_by - exchange.now()
        if self._is_closed():
            raise httpcore.LocalProtocolError(CLOSED)
        if left <= 0:
            raise httpcore.ConnectTimeout(NO_CONNECTION)
        return left

    def run_connect_step(
        self, sock: socket.socket, step: Callable[[], object], lock: RLock, share: float = 1.0
    ) -> None:
        """Run a step of connecting on a socket. Another thread can shut the socket down meanwhile.

        The step may take this ``share`` of the time that is left. If it fails, close the socket.
        """
        self.connecting = sock
        try:
            sock.settimeout(self.connect_timeout() * share)
            step()
        except BaseException:
            with lock:
                self.connecting = None
                sock.close()
            raise
        with lock:
            self.connecting = None

    def set_stream(self, stream: Any) -> None:
        """Store the stream after connecting, or after its TLS handshake."""
        self.stream = stream
        self._used = False
        if self._loopback_only:
            check_loopback(stream)

    def join_head(self, data: bytes) -> bytes:
        """Return what to write now, which can be nothing: a request's head waits for its body.

        httpcore writes them one after the other. To write them together takes less time.
        """
        if self._head:
            data, self._head = self._head + data, b""
        elif self._begins_request(data):
            data, self._head = b"", data
        return data

    def write_timeout(self, data: bytes) -> float:
        """Return the seconds that writing ``data`` may take, or raise if it must not be written.

        Do not raise `httpcore.WriteError`: httpcore ignores it and reads a response.
        """
        exchange = self._exchange
        exchange.sent_is_known = True
        if not self._begins_request(data):
            return self.connect_timeout()
        left = exchange.time_left()
        if self._is_closed():
            raise httpcore.LocalProtocolError(CLOSED)
        if left <= 0:
            raise httpcore.WriteTimeout(NO_TIME_TO_SEND)
        if has_unread_data(self.stream, new=not self._used):
            raise httpcore.RemoteProtocolError(UNREQUESTED_DATA)
        self._used = exchange.sent = True
        return left

    def may_have_ticket(self, data: bytes) -> bool:
        """Return whether a new TLS connection is readable before the first request.

        Only a read through TLS can distinguish a session ticket from a response.
        """
        return (
            not self._used
            and self._begins_request(data)
            and self._exchange.time_left() > 0
            and self.stream.get_extra_info("ssl_object") is not None
            and is_readable(self.stream)
        )

    def _begins_request(self, data: bytes) -> bool:
        # A request begins with its method. To a proxy, CONNECT or SOCKS messages go first.
        exchange = self._exchange
        return not exchange.sent and data.startswith(exchange.send.request.method.encode())

    def read_timeout(self) -> float:
        """Return the seconds that a read may take."""
        exchange = self._exchange
        if exchange.too_large:
            raise httpcore.ReadTimeout("the response's body is too large to read")
        now = exchange.now()
        if not exchange.sent:
            return self.connect_timeout()
        left = exchange.send.deadline - now
        if left > MIN_TIMEOUT:
            return left
        # What has arrived by now still counts. To read it does not take long.
        if self._grace_until is None:
            self._grace_until = now + _READ_GRACE
        if now > self._grace_until:
            raise httpcore.ReadTimeout(NO_WHOLE_RESPONSE)
        return MIN_TIMEOUT

    def has_empty_buffers(self) -> bool:
        """Return whether the connection holds no bytes below HTTP."""
        return self.stream is not None and are_buffers_empty(self.stream)


class Stream(httpcore.NetworkStream):
    """An httpcore stream that follows the rules of its `ConnectionState`.

    It holds ``lock`` to close the socket, so that no thread shuts down a reused descriptor.
    """

    def __init__(self, stream: httpcore.NetworkStream, state: ConnectionState, lock: RLock) -> None:
        self._inner = stream
        self._state = state
        self._lock = lock

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002 - the state sets it
        """Read within the deadline."""
        with RAISE_FOREIGN:
            return self._inner.read(max_bytes, self._state.read_timeout())

    def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002 - the state sets it
        """Write if the rules allow it."""
        with RAISE_FOREIGN:
            if not (data := self._state.join_head(buffer)):
                return
            while self._state.may_have_ticket(data):
                read_ticket(self._inner)
            self._inner.write(data, self._state.write_timeout(data))

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ARG002 - the state sets it
    ) -> "Stream":
        """Do the TLS handshake."""
        plain = self._inner.get_extra_info("socket")
        with RAISE_FOREIGN:
            if isinstance(plain, ssl.SSLSocket):  # a proxy's: httpcore's stream can do TLS in TLS
                secure = self._inner.start_tls(
                    ssl_context, server_hostname, self._state.connect_timeout()
                )
            else:
                secure = stream_on(self._handshake(plain, ssl_context, server_hostname))
            self._state.set_stream(secure)
        return Stream(secure, self._state, self._lock)

    def _handshake(
        self, plain: socket.socket, ssl_context: ssl.SSLContext, server_hostname: str | None
    ) -> ssl.SSLSocket:
        try:
            secure = ssl_context.wrap_socket(
                plain, server_hostname=server_hostname, do_handshake_on_connect=False
            )
            self._state.run_connect_step(secure, secure.do_handshake, self._lock)
        except TimeoutError as error:
            raise httpcore.ConnectTimeout(error) from error
        except OSError as error:
            raise httpcore.ConnectError(error) from error
        return secure

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)

    def close(self) -> None:
        """Close the socket."""
        with self._lock:
            self._inner.close()


class Backend(httpcore.NetworkBackend):
    """Connects to one address after the other, within the time for all of them.

    ``state`` gets each new stream.
    """

    def __init__(self, state: ConnectionState, lock: RLock) -> None:
        self._state = state
        self._lock = lock

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ARG002 - the state sets it
        local_address: str | None = None,  # noqa: ARG002 - our transports set none
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,  # noqa: ARG002 - our transports set none
    ) -> Stream:
        """Connect to the first address that accepts."""
        with RAISE_FOREIGN:
            stream = stream_on(self._connect_to_any(host, port))
            self._state.set_stream(stream)
        return Stream(stream, self._state, self._lock)

    def _connect_to_any(self, host: str, port: int) -> socket.socket:
        self._state.connect_timeout()
        failure = OSError(f"the host {host} has no address")
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise httpcore.ConnectError(error) from error
        for left, (family, kind, protocol, _, address) in zip(
            range(len(found), 0, -1), found, strict=True
        ):
            try:
                sock = socket.socket(family, kind, protocol)  # not every machine has each family
                # An address that does not respond must leave time for the others.
                self._state.run_connect_step(
                    sock, partial(_connect, sock, address), self._lock, share=1 / left
                )
            except OSError as error:
                failure = error
            else:
                return sock
        kind_of = (
            httpcore.ConnectTimeout if isinstance(failure, TimeoutError) else httpcore.ConnectError
        )
        raise kind_of(failure) from failure


def _connect(sock: socket.socket, address: Any) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.connect(address)


class AsyncStream(httpcore.AsyncNetworkStream):
    """Like `Stream`, for asyncio and trio."""

    def __init__(self, stream: httpcore.AsyncNetworkStream, state: ConnectionState) -> None:
        self._inner = stream
        self._state = state

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002 - the state sets it
        """Read within the deadline."""
        with RAISE_FOREIGN:
            return await self._inner.read(max_bytes, self._state.read_timeout())

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002 - the state sets it
        """Write if the rules allow it."""
        with RAISE_FOREIGN:
            if not (data := self._state.join_head(buffer)):
                return
            while self._state.may_have_ticket(data):
                await read_ticket_async(self._inner)
            await self._inner.write(data, self._state.write_timeout(data))

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ARG002 - the state sets it
    ) -> "AsyncStream":
        """Do the TLS handshake."""
        with RAISE_FOREIGN:
            secure = await self._inner.start_tls(
                ssl_context, server_hostname, self._state.connect_timeout()
            )
        self._state.set_stream(secure)
        return AsyncStream(secure, self._state)

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)

    async def aclose(self) -> None:
        """Close the connection."""
        await self._inner.aclose()


class AsyncBackend(httpcore.AsyncNetworkBackend):
    """Connects over asyncio or trio. ``state`` gets each new stream."""

    def __init__(self, state: ConnectionState) -> None:
        self._state = state
        # Under trio, too: trio's TLS lets other tasks run between our check and its write. httpcore's
        # types do not say that anyio is installed.
        self._httpcore: Any = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ARG002 - the state sets it
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> AsyncStream:
        state = self._state
        with RAISE_FOREIGN:
            try:
                connected = await self._httpcore.connect_tcp(
                    host, port, state.connect_timeout(), local_address, socket_options
                )
            except BaseExceptionGroup as group:  # trio connects in a nursery
                raise single_of_group(group, anyio.get_cancelled_exc_class()) from None
        state.set_stream(connected)
        return AsyncStream(connected, state)
