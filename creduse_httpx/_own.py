"""Transports that open their own connections. Each connection has an httpx transport to itself.

`creduse_core.pool` decides which connection a request gets, and `_exchange` what a failure means.
Neither belongs here.

Each httpcore pool has only one connection. A shared one closes connections that it has just
assigned. It loses places when it is cancelled (encode/httpcore, issue 1093). Its cost grows with
the square of the waiting requests.

An exchange runs in the caller's own task or thread. If it ends without a whole response of its own,
the connection is closed. Mocks and instrumentation that patch httpx's transports or httpcore see
each call.
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
    Response,
    Send,
    proxy_for,
)
from creduse_core.environment import is_secure
from creduse_core.error_texts import CLOSED
from creduse_core.pool import IDLE_TIMEOUT, Idle, Pool
from creduse_core.tls import check_client_context, detect_partial_records, load_cert_file

from ._clocks import AsyncClock, Clock, current_loop, protect_from_interrupts
from ._exchange import NO_CONNECTION, BodyIterator, Exchange, HeaderCache, not_sent
from ._foreign import IGNORE_LIBRARY_ERRORS, LIBRARIES
from ._httpcore import is_drained, remove_lock, set_backend
from ._network import AsyncBackend, Backend, ConnectionState
from ._sockets import shut_down

_ONE_CONNECTION: Final = httpx.Limits(
    max_connections=1, max_keepalive_connections=1, keepalive_expiry=None
)

_SCHEMES: Final = ("http://", "https://", "socks5://", "socks5h://")


class TransportFactory:
    """Makes a client's httpx transports, which share a TLS context, a proxy and a cache."""

    def __init__(
        self,
        protocol: CreduseProtocol,
        ssl_context: ssl.SSLContext | None = None,
        proxy: str | None = None,
    ) -> None:
        """Use these TLS settings and this proxy, or the environment's.

        Raises:
            TypeError: An argument has the wrong type.
            ValueError: An argument or the environment names certificates that cannot be read, or an
                invalid proxy URL.
        """
        check_client_context(ssl_context)
        self.proxy = proxy_for(protocol, proxy)
        if self.proxy is not None and not self.proxy.shown.startswith(_SCHEMES):
            scheme = self.proxy.shown.partition(":")[0]
            raise ValueError(
                f"the proxy must be an http, https or socks5 URL, not {scheme}: check proxy, "
                "HTTPS_PROXY, HTTP_PROXY and ALL_PROXY"
            )
        # A proxy that the caller names can be another machine.
        self.loopback_only = protocol.plain_loopback and self.proxy is None
        self.header_cache = HeaderCache(httpx)
        problem = ""
        try:
            self._context = ssl_context or (
                httpx.create_ssl_context()
                if protocol.base_url.startswith("https:") or is_secure(self.proxy)
                else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # not used, but httpx requires one
            )
            detect_partial_records(self._context)
            self.new_transport(httpx.HTTPTransport)  # so that it fails now and not in a call
        except Exception as error:  # noqa: BLE001 - a setting can cause any
            problem = f"{type(error).__name__}: {error}"
        for secret in () if self.proxy is None else self.proxy.secrets:
            problem = secret.redact(problem)
        if problem:
            # Not in the except block, since that exception's frames show the proxy's password.
            if ssl_context is None:  # httpx does not name the file
                load_cert_file(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
            raise ValueError(
                "httpx cannot use the settings; check SSL_CERT_FILE, SSL_CERT_DIR, proxy, "
                f"HTTPS_PROXY, HTTP_PROXY and ALL_PROXY: {problem}"
            )

    def new_transport(self, kind: Callable[..., Any]) -> Any:
        """Return a new transport, for one connection."""
        return kind(
            verify=self._context, trust_env=False, limits=_ONE_CONNECTION, proxy=self._httpx_proxy()
        )

    def _httpx_proxy(self) -> httpx.Proxy | None:
        if self.proxy is None:
            return None
        url = httpx.URL(self.proxy.url.reveal())
        return httpx.Proxy(url, ssl_context=self._context if url.scheme == "https" else None)

    def new_request(self, exchange: Exchange, stream: object) -> Any:
        """Return httpx's request."""
        timeouts = dict.fromkeys(("connect", "pool", "read", "write"), exchange.time_left())
        return exchange.request(httpx, self.header_cache, stream, {"timeout": timeouts})


class _Body(httpx.SyncByteStream, httpx.AsyncByteStream):
    """The body of a request."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    def __iter__(self) -> Iterator[bytes]:
        return iter((self._body,))

    def __aiter__(self) -> AsyncIterator[bytes]:
        return BodyIterator(self._body)


class Connection:
    """A connection to the server, for the synchronous client. The first request opens it."""

    def __init__(
        self, factory: TransportFactory, is_closed: Callable[[], bool], lock: RLock
    ) -> None:
        self._factory = factory
        self._lock = lock
        self._state = ConnectionState(is_closed, loopback_only=factory.loopback_only)
        self._transport = factory.new_transport(httpx.HTTPTransport)
        remove_lock(self._transport)
        self._uses_backend = set_backend(self._transport, Backend(self._state, lock))

    def exchange(self, exchange: Exchange) -> Response:
        """Send the request and return its response."""
        self._state.begin(exchange)
        request = self._factory.new_request(exchange, _Body(exchange.send.request.body))
        response = self._transport.handle_request(request)
        try:
            if exchange.receive_head(response):
                for chunk in response.stream:
                    exchange.add_chunk(chunk)
        finally:
            # An error in closing does not change what has been read.
            with IGNORE_LIBRARY_ERRORS:
                response.stream.close()
        self._state.end()
        return exchange.response()

    def is_reusable(self) -> bool:
        """Return whether the connection can serve another request."""
        return self._state.has_empty_buffers() and is_drained(self._transport)

    def shut_down(self) -> None:
        """End another thread's exchange on this connection, or its connecting."""
        state = self._state
        with self._lock, suppress(OSError):  # the peer has closed it already
            shut_down(state.connecting)
            if state.stream is not None:
                shut_down(state.stream.get_extra_info("socket"))

    def close_after_fork(self) -> None:
        """Close this process's descriptor of an idle connection of the parent process."""
        self._state.stream.get_extra_info("socket").close()

    def close(self) -> None:
        """Close the connection in any state.

        The transport's own method is not used: a signal handler's exception can leave a lock of its
        pool acquired.
        """
        # With the lock, since the descriptor can be another socket's once it is closed.
        with IGNORE_LIBRARY_ERRORS, self._lock:
            if self._state.stream is not None:
                self._state.stream.close()
            elif not self._uses_backend:
                self._transport.close()


class AsyncConnection:
    """A connection to the server, for the asynchronous client. The first request opens it."""

    def __init__(self, factory: TransportFactory, is_closed: Callable[[], bool]) -> None:
        self._factory = factory
        self._state = ConnectionState(is_closed, loopback_only=factory.loopback_only)
        self._transport = factory.new_transport(httpx.AsyncHTTPTransport)
        set_backend(self._transport, AsyncBackend(self._state))

    async def exchange(self, exchange: Exchange) -> Response:
        """Send the request and return its response."""
        self._state.begin(exchange)
        request = self._factory.new_request(exchange, _Body(exchange.send.request.body))
        response = await self._transport.handle_async_request(request)
        try:
            if exchange.receive_head(response):
                async for chunk in response.stream:
                    exchange.add_chunk(chunk)
        finally:
            with IGNORE_LIBRARY_ERRORS:
                await response.stream.aclose()
        self._state.end()
        return exchange.response()

    def is_reusable(self) -> bool:
        """Return whether the connection can serve another request."""
        return self._state.has_empty_buffers() and is_drained(self._transport)

    async def aclose(self) -> None:
        """Close the connection in any state, even if the caller was cancelled."""
        with anyio.CancelScope(shield=True):
            with IGNORE_LIBRARY_ERRORS:
                await self._transport.aclose()
            # httpcore leaves the socket open if it is cancelled in a TLS handshake.
            if self._state.stream is not None:
                with IGNORE_LIBRARY_ERRORS:
                    await self._state.stream.aclose()


class _ProcessConnections:
    """The connections of one process.

    A fork copies them, but two processes cannot share a socket.
    """

    def __init__(self) -> None:
        self.idle: Idle[Connection] = Idle(IDLE_TIMEOUT)
        self.active: dict[int, Connection] = {}
        """The connection of each thread that sends. A key for each thread bounds its size."""
        self.lock = RLock()
        """Held to close what another thread uses, and never while something waits. It is reentrant,
        since a signal handler can close, too."""

    def close_idle(self) -> None:
        """Close the idle connections."""
        while (connection := self.idle.take()) is not None:
            connection.close()


class OwnTransport(Clock):
    """A synchronous transport with own connections: as many as there are threads that send.

    No call waits for another one, and a signal handler's exception leaves no lock acquired.
    """

    libraries = LIBRARIES

    def __init__(self, factory: TransportFactory) -> None:
        """Prepare what connections share. They are opened when they are needed."""
        self._factory = factory
        self.proxy = factory.proxy
        self._closed = False
        self._processes = {os.getpid(): _ProcessConnections()}

    def _is_closed(self) -> bool:
        return self._closed

    def _process(self) -> _ProcessConnections:
        """Return this process's connections. After a fork, close those of the parent."""
        number = os.getpid()
        if (process := self._processes.get(number)) is not None:
            return process
        for other in tuple(self._processes):
            parent = self._processes.pop(other, None)
            while parent is not None and (connection := parent.idle.take()) is not None:
                connection.close_after_fork()
        return self._processes.setdefault(number, _ProcessConnections())

    def send(self, send: Send) -> Response | Failure:
        """Send once. See `creduse_core.Transport`."""
        if self._closed:
            return not_sent(CLOSED)
        exchange = Exchange(send, self.now)
        try:
            return self._send(exchange)
        except Exception as error:  # noqa: BLE001 - the libraries' become failures
            return exchange.result_of(error)
        except BaseException as error:
            exchange.remove_secrets(error)
            raise

    def _send(self, exchange: Exchange) -> Response:
        process, thread = self._process(), get_ident()
        while (stale := process.idle.take_expired(self.now())) is not None:
            stale.close()
        # A signal handler can make a call within this thread's call.
        before, users = process.active.get(thread), process.active
        keep = False
        try:
            connection = process.idle.take_into(users, thread)
            if connection is None:
                connection = users[thread] = Connection(
                    self._factory, self._is_closed, process.lock
                )
            response = connection.exchange(exchange)
            keep = exchange.send.allows_reuse(response) and connection.is_reusable()
            return response
        finally:
            # Not ``connection``: a signal handler can raise before it is assigned.
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
        """Close all connections. Calls in flight end at once and send nothing more."""
        self._closed = True
        process = self._process()
        try:
            # A copy, since other threads change it.
            for connection in process.active.copy().values():
                connection.shut_down()
            process.close_idle()
        except ForeignError as foreign:
            raise foreign.error from None


MAX_CONNECTIONS: Final = 100
"""The most connections of an asynchronous client. Further calls wait for one."""


class AsyncOwnTransport(AsyncClock):
    """An asynchronous transport with own connections, on the event loop of its first call."""

    libraries = LIBRARIES

    def __init__(self, factory: TransportFactory, max_connections: int = MAX_CONNECTIONS) -> None:
        """Prepare what connections share. They are opened when they are needed."""
        protect_from_interrupts(AsyncOwnTransport.send, AsyncOwnTransport.aclose)
        self._factory = factory
        self.proxy = factory.proxy
        self._closed = False
        self._sending_stopped = False
        self._pool: Pool[AsyncConnection, anyio.Event] = Pool(max_connections, IDLE_TIMEOUT)
        self._active = 0
        self._drained: anyio.Event | None = None

    def _is_sending_stopped(self) -> bool:
        return self._sending_stopped

    async def send(self, send: Send) -> Response | Failure:
        """Send once. See `creduse_core.AsyncTransport`."""
        if self._closed:
            return not_sent(CLOSED)
        if (problem := self.loop_problem()) is not None:
            return not_sent(problem)
        exchange = Exchange(send, self.now)
        self._active += 1
        try:
            return await self._send(exchange)
        except Exception as error:  # noqa: BLE001 - the libraries' become failures
            return exchange.result_of(error)
        except BaseException as error:
            exchange.remove_secrets(error)
            raise
        finally:
            self._active -= 1
            if self._drained is not None and not self._active:
                self._drained.set()

    async def _send(self, exchange: Exchange) -> Response:
        if not self._pool.enter():
            await self._wait_for_place(exchange)
        try:
            connection = await self._take_connection()
            keep = False
            try:
                response = await connection.exchange(exchange)
                keep = (
                    exchange.send.allows_reuse(response)
                    and connection.is_reusable()
                    and not self._closed
                )
                return response
            finally:
                if keep:
                    self._pool.keep(connection, self.now())
                else:
                    await connection.aclose()
        finally:
            _wake(self._pool.leave())

    async def _wait_for_place(self, exchange: Exchange) -> None:
        """Wait for a place in the pool."""
        waiter = anyio.Event()
        self._pool.enqueue(waiter)
        try:
            with anyio.move_on_after(exchange.send.connect_by - self.now()):
                await waiter.wait()
        except BaseException:
            _wake(self._pool.give_up(waiter))
            raise
        if waiter.is_set() and not self._closed:
            return
        _wake(self._pool.give_up(waiter))
        if self._closed:
            raise RuntimeError(CLOSED)
        raise TimeoutError(NO_CONNECTION)

    async def _take_connection(self) -> AsyncConnection:
        while (stale := self._pool.take_expired(self.now())) is not None:
            await stale.aclose()
        return self._pool.take() or AsyncConnection(self._factory, self._is_sending_stopped)

    async def aclose(self) -> None:
        """Let calls in flight end, send nothing else, and close all connections."""
        self._closed = True
        if self._loop is None or self._loop is not current_loop():
            self._sending_stopped = True  # only its own loop can close its connections
            return
        try:
            if self._active:
                self._drained = self._drained or anyio.Event()
                await self._drained.wait()
        finally:
            self._sending_stopped = True
            while (connection := self._pool.take()) is not None:
                await connection.aclose()


def _wake(waiter: anyio.Event | None) -> None:
    if waiter is not None:
        waiter.set()
