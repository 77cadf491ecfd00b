"""Connections of our own: an httpx transport for each, and what makes them.

Which connection a request gets is the pool's, what a failure means is the exchange's; neither is
decided here. httpcore's own pool is not used for more than one connection: it closes connections
that it has just assigned, loses places when it is cancelled (encode/httpcore, issue 1093), and its cost
grows with the square of the requests that wait.
"""

import os
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from threading import RLock, get_ident
from typing import Any, Final

import anyio
import httpx

from creduse_core import (
    CreduseProtocol,
    Failure,
    ForeignError,
    Proxy,
    Response,
    Send,
    proxy_from_environment,
)
from creduse_core.pool import IDLE_TIMEOUT, Idle, Pool
from creduse_core.tls import WholeRecords

from ._clocks import AsyncClock, Clock, current_loop, keep_interrupts_out
from ._exchange import CLOSED, Exchange, Heads, Pieces, not_sent
from ._foreign import CLOSING, LIBRARIES
from ._httpcore import is_drained, set_backend, unlock
from ._network import AsyncBackend, Backend, Line
from ._sockets import shut_down

_ONE: Final = httpx.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=None)


class Settings:
    """What all connections of a client share: one TLS context, one proxy, one cache of heads."""

    def __init__(self, protocol: CreduseProtocol) -> None:
        """Make the TLS context, and find the proxy that the environment names.

        Calls to this machine do not leave it for a proxy, the less so as the key may be in the
        clear.

        Raises:
            ValueError: The environment names certificates that cannot be read, or no proxy's URL.
        """
        self.loopback_only = protocol.plain_loopback
        self.proxy: Proxy | None = None
        if not protocol.loopback:
            self.proxy = proxy_from_environment(protocol.base_url)
        self.heads = Heads(httpx)
        wrong = ""
        try:
            self._context = (
                httpx.create_ssl_context()
                if protocol.base_url.startswith("https:")
                else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # not used, but httpx wants one
            )
            self._context.sslobject_class = WholeRecords
            self.transport(httpx.HTTPTransport)  # now rather than within a call
        except Exception as error:  # noqa: BLE001 - whatever a setting brings about
            wrong = f"{type(error).__name__}: {error}"
        if wrong:
            # Not within the handler: the exception's frames show the proxy's password.
            raise ValueError(
                "no HTTP transport can be made; see SSL_CERT_FILE, SSL_CERT_DIR, HTTPS_PROXY, "
                f"HTTP_PROXY, ALL_PROXY: {wrong}"
            )

    def transport(self, kind: Callable[..., Any]) -> Any:
        """Return a new transport, for one connection."""
        return kind(verify=self._context, trust_env=False, limits=_ONE, proxy=self._httpx_proxy())

    def _httpx_proxy(self) -> httpx.Proxy | None:
        if self.proxy is None:
            return None
        url = httpx.URL(self.proxy.url.reveal())
        return httpx.Proxy(url, ssl_context=self._context if url.scheme == "https" else None)

    def request(self, exchange: Exchange, stream: object) -> Any:
        """Return httpx's request."""
        exchange.via = None if self.proxy is None else self.proxy.shown
        timeouts = dict.fromkeys(("connect", "pool", "read", "write"), exchange.left())
        return exchange.request(httpx, self.heads, stream, {"timeout": timeouts})


class _Body(httpx.SyncByteStream, httpx.AsyncByteStream):
    """The body of a request."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    def __iter__(self) -> Iterator[bytes]:
        return iter((self._body,))

    def __aiter__(self) -> AsyncIterator[bytes]:
        return Pieces(self._body)


class Connection:
    """One connection to the server, for the synchronous client."""

    def __init__(self, settings: Settings, is_closed: Callable[[], bool], lock: RLock) -> None:
        """Connect when there is a request."""
        self._settings = settings
        self._lock = lock
        self._line = Line(is_closed, loopback_only=settings.loopback_only)
        self._transport = settings.transport(httpx.HTTPTransport)
        unlock(self._transport)
        self._is_known = set_backend(self._transport, Backend(self._line, lock))

    def exchange(self, exchange: Exchange) -> Response:
        """Send the request and return its response, whatever raises in between."""
        self._line.begin(exchange)
        request = self._settings.request(exchange, _Body(exchange.send.request.body))
        response = self._transport.handle_request(request)
        try:
            if exchange.begin_response(response):
                for chunk in response.stream:
                    exchange.add(chunk)
        finally:
            # What there is of the response is there by now; closing cannot change it.
            with CLOSING:
                response.stream.close()
        return exchange.response()

    def is_fit(self) -> bool:
        """Return whether the connection can serve another request."""
        return self._line.is_reusable() and is_drained(self._transport)

    def shut_down(self) -> None:
        """End the exchange of another thread, or its connecting."""
        line = self._line
        with self._lock, suppress(OSError):  # it has hung up already
            shut_down(line.connecting)
            if line.stream is not None:
                shut_down(line.stream.get_extra_info("socket"))

    def forget(self) -> None:
        """Close the descriptor of an idle connection that is the parent process's."""
        self._line.stream.get_extra_info("socket").close()

    def close(self) -> None:
        """Close the connection, however its exchange has ended.

        Not by the transport: a signal's exception may have left a lock of its pool locked.
        """
        with CLOSING, self._lock:  # a descriptor may be another's once it is closed
            if self._line.stream is not None:
                self._line.stream.close()
            elif not self._is_known:
                self._transport.close()


class AsyncConnection:
    """One connection to the server, for the asynchronous client."""

    def __init__(self, settings: Settings, is_closed: Callable[[], bool]) -> None:
        """Connect when there is a request."""
        self._settings = settings
        self._line = Line(is_closed, loopback_only=settings.loopback_only)
        self._transport = settings.transport(httpx.AsyncHTTPTransport)
        set_backend(self._transport, AsyncBackend(self._line))

    async def exchange(self, exchange: Exchange) -> Response:
        """Send the request and return its response, whatever raises in between."""
        self._line.begin(exchange)
        request = self._settings.request(exchange, _Body(exchange.send.request.body))
        response = await self._transport.handle_async_request(request)
        try:
            if exchange.begin_response(response):
                async for chunk in response.stream:
                    exchange.add(chunk)
        finally:
            with CLOSING:
                await response.stream.aclose()
        return exchange.response()

    def is_fit(self) -> bool:
        """Return whether the connection can serve another request."""
        return self._line.is_reusable() and is_drained(self._transport)

    async def aclose(self) -> None:
        """Close the connection, however its exchange has ended, and though it was cancelled."""
        with anyio.CancelScope(shield=True):
            with CLOSING:
                await self._transport.aclose()
            # httpcore leaves the socket open when it is cancelled while TLS is being agreed.
            if self._line.stream is not None:
                with CLOSING:
                    await self._line.stream.aclose()


class _Process:
    """The connections of one process. A fork copies them, and sockets cannot be shared."""

    def __init__(self) -> None:
        self.idle: Idle[Connection] = Idle(IDLE_TIMEOUT)
        self.active: dict[int, Connection] = {}
        """By thread, so that it stays small whatever a signal interrupts."""
        self.lock = RLock()
        """For closing what another thread uses, and held while nothing waits. Reentrant, since a
        signal handler may close, too."""

    def close_idle(self) -> None:
        """Close the idle connections."""
        while (connection := self.idle.take()) is not None:
            connection.close()


class OwnTransport(Clock):
    """Sends over connections of its own: as many as there are threads that send.

    No call waits for another one, and a signal's exception leaves nothing locked.
    """

    libraries = LIBRARIES

    def __init__(self, protocol: CreduseProtocol) -> None:
        """Make ready what connections share; they are opened when they are needed.

        Raises:
            ValueError: The environment names certificates or a proxy that cannot be used.
        """
        self._settings = Settings(protocol)
        self._closed = False
        self._processes = {os.getpid(): _Process()}

    def _is_closed(self) -> bool:
        return self._closed

    def _process(self) -> _Process:
        """Return what is this process's own; after a fork, without the parent's connections."""
        number = os.getpid()
        if (process := self._processes.get(number)) is not None:
            return process
        for other in tuple(self._processes):
            parent = self._processes.pop(other, None)
            while parent is not None and (connection := parent.idle.take()) is not None:
                connection.forget()
        return self._processes.setdefault(number, _Process())

    def send(self, send: Send) -> Response | Failure:
        """Send once. See `creduse_core.Transport`."""
        if self._closed:
            return not_sent(CLOSED)
        exchange = Exchange(send, self.now)
        try:
            return self._send(exchange)
        except Exception as error:  # noqa: BLE001 - none of a library's leaves as itself
            return exchange.failed(error)
        except BaseException as error:
            exchange.forget(error)
            raise

    def _send(self, exchange: Exchange) -> Response:
        process, thread = self._process(), get_ident()
        while (stale := process.idle.expired(self.now())) is not None:
            stale.close()
        # A signal handler may call within a call of this thread.
        before, users = process.active.get(thread), process.active
        keep = False
        try:
            connection = process.idle.take_into(users, thread)
            if connection is None:
                connection = users[thread] = Connection(
                    self._settings, self._is_closed, process.lock
                )
            response = connection.exchange(exchange)
            keep = exchange.send.belongs(response) and connection.is_fit()
            return response
        finally:
            # By what is noted: an exception may have come before ``connection`` was set.
            used = users.get(thread)
            if before is None:
                users.pop(thread, None)
            else:
                users[thread] = before
            if used is not None and used is not before:
                if keep:
                    process.idle.keep(used, self.now())
                elif used not in process.idle:
                    used.close()
            if self._closed:
                process.close_idle()

    def close(self) -> None:
        """Close all connections. A call in flight ends at once, and nothing of it is sent later."""
        self._closed = True
        process = self._process()
        try:
            for connection in tuple(process.active.copy().values()):
                connection.shut_down()
            process.close_idle()
        except ForeignError as foreign:
            raise foreign.error from None


MAX_CONNECTIONS: Final = 100
"""Connections of an asynchronous client at most. Further calls wait for one, within their time."""


class AsyncOwnTransport(AsyncClock):
    """Sends over connections of its own, on the event loop of its first call."""

    libraries = LIBRARIES

    def __init__(self, protocol: CreduseProtocol, max_connections: int = MAX_CONNECTIONS) -> None:
        """Make ready what connections share; they are opened when they are needed.

        Raises:
            ValueError: The environment names certificates or a proxy that cannot be used.
        """
        keep_interrupts_out(AsyncOwnTransport.send, AsyncOwnTransport.aclose)
        self._settings = Settings(protocol)
        self._closed = False
        self._cut = False
        self._loop: object = None
        self._pool: Pool[AsyncConnection, anyio.Event] = Pool(max_connections, IDLE_TIMEOUT)
        self._active = 0
        self._drained: anyio.Event | None = None

    def _is_closed(self) -> bool:
        return self._cut

    def _refusal(self) -> Failure | None:
        if self._closed:
            return not_sent(CLOSED)
        loop = current_loop()
        self._loop = self._loop or loop
        if self._loop is not loop:
            return not_sent("the client belongs to another event loop: make one client for each")
        return None

    async def send(self, send: Send) -> Response | Failure:
        """Send once. See `creduse_core.AsyncTransport`."""
        if (refusal := self._refusal()) is not None:
            return refusal
        exchange = Exchange(send, self.now)
        self._active += 1
        try:
            return await self._send(exchange)
        except Exception as error:  # noqa: BLE001 - none of a library's leaves as itself
            return exchange.failed(error)
        except BaseException as error:
            exchange.forget(error)
            raise
        finally:
            self._active -= 1
            if self._drained is not None and not self._active:
                self._drained.set()

    async def _send(self, exchange: Exchange) -> Response:
        if not self._pool.enter():
            await self._wait(exchange)
        try:
            connection = await self._connection()
            keep = False
            try:
                response = await connection.exchange(exchange)
                keep = exchange.send.belongs(response) and connection.is_fit() and not self._closed
                return response
            finally:
                if keep:
                    self._pool.keep(connection, self.now())
                else:
                    await connection.aclose()
        finally:
            _wake(self._pool.leave())

    async def _wait(self, exchange: Exchange) -> None:
        """Wait for a place in the pool."""
        waiter = anyio.Event()
        self._pool.wait(waiter)
        try:
            with anyio.move_on_after(exchange.connect_by - self.now()):
                await waiter.wait()
        except BaseException:
            _wake(self._pool.give_up(waiter))
            raise
        if waiter.is_set() and not self._closed:
            return
        _wake(self._pool.give_up(waiter))
        if self._closed:
            raise RuntimeError(CLOSED)
        raise TimeoutError("no connection was free in time")

    async def _connection(self) -> AsyncConnection:
        while (stale := self._pool.expired(self.now())) is not None:
            await stale.aclose()
        return self._pool.take() or AsyncConnection(self._settings, self._is_closed)

    async def aclose(self) -> None:
        """Send nothing any more but what is in flight, wait for that, and close all connections."""
        self._closed = True
        if self._loop is None or self._loop is not current_loop():
            self._cut = True  # what it had has gone with its loop, unless that runs elsewhere
            return
        try:
            if self._active:
                self._drained = self._drained or anyio.Event()
                await self._drained.wait()
        finally:
            self._cut = True
            while (connection := self._pool.take()) is not None:
                await connection.aclose()


def _wake(waiter: anyio.Event | None) -> None:
    if waiter is not None:
        waiter.set()
