"""The client for trio and its transport. HTTP belongs in `_exchange`, TLS in `_wire`."""

import os
import ssl
from collections.abc import Callable, Mapping
from typing import Final
from urllib.parse import urlsplit

import h11
import trio

from creduse_core import (
    DEFAULT_RETRY,
    AsyncCoreClient,
    Attempt,
    CreduseProtocol,
    Delivery,
    Failure,
    FinishedCall,
    ForeignError,
    Pace,
    Request,
    Response,
    RetryPolicy,
    Secret,
    Send,
    forget_frames,
    is_foreign,
    is_loopback,
    protocol_from_environment,
    proxy_for,
)
from creduse_core.arguments import SHORT_TRACEBACK, check_at_least_one, check_timeout
from creduse_core.error_texts import CLOSED, not_loopback_message
from creduse_core.foreign import members, single_of_group
from creduse_core.pool import IDLE_TIMEOUT, Pool
from creduse_core.tls import check_client_context, client_context, is_certificate_error

from ._exchange import Progress, RequestHead, exchange
from ._proxy import Connect, HttpProxy, ProxyError
from ._wire import Wire, add_tls, check_stream

# The exceptions after which a retry can help.
_TRANSIENT: Final = (OSError, trio.BrokenResourceError, h11.RemoteProtocolError)

# Top-level modules whose exceptions are the transport's own. The module of a stream is added later.
_LIBRARIES: Final = (
    "creduse_core",
    "creduse_trio",
    "trio",
    "h11",
    "ssl",
    "socket",
    "idna",
    "encodings",
)


def _is_transient(error: Exception) -> bool:
    if isinstance(error, ProxyError):
        return error.transient
    return isinstance(error, _TRANSIENT) and not is_certificate_error(error)


class TrioTransport:
    """A transport with its own connections to the host of ``protocol``."""

    def __init__(
        self,
        protocol: CreduseProtocol,
        ssl_context: ssl.SSLContext | None,
        *,
        max_connections: int,
        idle_timeout: float,
        connect: Connect | None,
        proxy: str | None,
    ) -> None:
        # A caller who opens the streams decides where they lead, unless he names a proxy, too.
        found = proxy_for(protocol, proxy) if connect is None or proxy is not None else None
        parts = urlsplit(protocol.base_url)
        self._origin = f"{parts.scheme}://{parts.netloc}"
        self._host_header = parts.netloc
        self._host = parts.hostname or ""
        secure = parts.scheme == "https"
        self._port = parts.port or (443 if secure else 80)
        # Made here, since it takes longer than some timeouts.
        self._ssl_context = (ssl_context or _system_context()) if secure else None
        self._connect = connect
        self._default_connect: Connect = (
            _open_loopback if protocol.plain_loopback and not found else trio.open_tcp_stream
        )
        self.proxy = found
        self._proxy = None if found is None else HttpProxy(found, ssl_context)
        # Without a tunnel, the proxy gets the whole URL (RFC 9112, 3.2.2), and its own credentials.
        self._sends_url = self._proxy is not None and not secure
        self._pool: Pool[Wire, trio.Event] = Pool(max_connections, idle_timeout)
        self._request_heads: dict[tuple[str, int], tuple[object, RequestHead]] = {}
        self._libraries: set[str] = set(_LIBRARIES)
        self._owner: object = None
        self._closed = False

    # With this, trio raises a KeyboardInterrupt only at checkpoints, like a cancellation. Without
    # it, one can strike between any two instructions.
    @trio.lowlevel.enable_ki_protection
    async def send(self, send: Send) -> Response | Failure:
        """Send once. See `creduse_core.AsyncTransport`.

        The exceptions have no frames below this one, since those hold the request.
        """
        progress = Progress()
        try:
            self._check_usable()
            with trio.CancelScope(deadline=send.deadline) as scope:
                try:
                    return await self._attempt(send, scope, progress)
                except BaseExceptionGroup as group:
                    raise single_of_group(group, trio.Cancelled) from None
        except BaseException as error:
            foreign = None if progress.connecting else self._foreign_error(error)
            forget_frames(error)
            if foreign is not None:
                raise ForeignError(foreign) from None
            if not isinstance(error, Exception):
                raise
            return self._failure(progress, error, transient=_is_transient(error))
        # Only this scope's deadline leads here. Other cancellations propagate.
        late = TimeoutError(f"{progress.missing} in time")
        return self._failure(progress, late, transient=True, timed_out=True)

    def _failure(
        self, progress: Progress, error: Exception, *, transient: bool, timed_out: bool = False
    ) -> Failure:
        return Failure(
            Delivery.MAYBE_SENT if progress.sent else Delivery.NOT_SENT,
            error,
            transient=transient,
            timed_out=timed_out,
            response=progress.response(),
        )

    async def _attempt(self, send: Send, scope: trio.CancelScope, progress: Progress) -> Response:
        """Wait for a connection, and exchange a request and a response on it."""
        head = self._head(send.request)
        if not self._pool.enter():
            scope.deadline = send.connect_by
            await self._wait_for_place()
        try:
            wire = await self._take_idle()
            if wire is None:
                scope.deadline = send.connect_by
                wire = await self._open_connection(progress)
            if scope.deadline != send.deadline:  # it is slow to set
                scope.deadline = send.deadline
            return await self._exchange(wire, head, send, progress)
        finally:
            _wake(self._pool.leave())

    def _foreign_error(self, error: BaseException) -> Exception | None:
        """Return the first foreign exception, even inside a group, or ``None``."""
        for leaf in members(error):
            if isinstance(leaf, Exception) and is_foreign(leaf, self._libraries):
                return leaf
        return None

    def _head(self, request: Request) -> RequestHead:
        """Return a request's head. To make it with h11 takes longer than a write to the network.

        The cache has one for each path and length of a body. All calls of a protocol have the same
        headers, except those with an idempotency key.
        """
        key = (request.url, len(request.body))
        headers, head = self._request_heads.get(key, (None, None))
        if head is not None and headers is request.hidden_headers:
            return head
        head = RequestHead(
            h11.Request(
                method=request.method,
                target=request.url.removeprefix("" if self._sends_url else self._origin),
                headers=[
                    ("Host", self._host_header),
                    *request.headers,
                    *(self._proxy.credentials() if self._proxy and self._sends_url else ()),
                    ("Content-Length", str(len(request.body))),
                ],
            )
        )
        self._request_heads[key] = request.hidden_headers, head
        return head

    async def _wait_for_place(self) -> None:
        """Wait for a place in the pool."""
        waiter = trio.Event()
        self._pool.enqueue(waiter)
        try:
            await waiter.wait()
            self._check_usable()
        except BaseException:
            _wake(self._pool.give_up(waiter))
            raise

    def _check_usable(self) -> None:
        """Raise if the client is closed, or if the first call had another run or process.

        Sockets belong to the run that opened them. A forked child shares them with its parent. If
        both used a connection, each could read the other's responses.
        """
        if self._closed:
            raise RuntimeError(CLOSED)
        run = _current_run()
        if run is None:
            raise RuntimeError(
                "creduse_trio runs only under trio; for asyncio, use creduse.AsyncCreduseClient"
            )
        if self._owner is None:
            self._owner = run
        if self._owner != run:
            raise RuntimeError(
                "the client belongs to another trio.run or process: make one client for each"
            )

    async def _take_idle(self) -> Wire | None:
        """Return an idle connection that can be used again, or ``None``."""
        while (stale := self._pool.take_expired(trio.current_time())) is not None:
            await stale.close()
        while (idle := self._pool.take()) is not None:
            try:
                if await _close_unless_quiet(idle):
                    return idle
            except Exception as error:
                if is_foreign(error, self._libraries):
                    raise  # else it is the connection that is broken, and is not used
        return None

    async def _open_connection(self, progress: Progress) -> Wire:
        """Open a connection, and reject one on which the server spoke first."""
        connect, proxy = self._connect or self._default_connect, self._proxy
        progress.missing = "no connection was made"
        progress.connecting = self._connect is not None
        stream = await connect(*(proxy.address if proxy else (self._host, self._port)))
        progress.connecting = False
        check_stream(stream, self._libraries)
        wire = Wire(stream, self._libraries)
        if proxy is not None:
            progress.missing = "the proxy did not respond"
            target = None if self._ssl_context is None else (self._host, self._port)
            wire = await proxy.open(wire, target)
        if self._ssl_context is not None:
            progress.missing = "the TLS handshake did not end"
            wire = await add_tls(wire, self._ssl_context, self._host)
        if not await _close_unless_quiet(wire):
            raise h11.RemoteProtocolError(
                "the server sent data or closed the connection before the request"
            )
        return wire

    async def _exchange(
        self, wire: Wire, head: RequestHead, send: Send, progress: Progress
    ) -> Response:
        """Send the request on this connection, and keep the connection if it is reusable."""
        keep = False
        try:
            self._check_usable()  # again, since the client can close while this call connects
            response = await exchange(wire, head, send.request.body, progress)
            keep = not self._closed and send.allows_reuse(response) and progress.allows_reuse()
            return response
        finally:
            if keep:
                self._pool.keep(wire, trio.current_time())
            else:
                await wire.close()

    async def sleep(self, seconds: float) -> None:
        """Wait for this time."""
        await trio.sleep(seconds)

    def now(self) -> float:
        """Return the time on the clock of this run, in seconds."""
        try:
            return trio.current_time()
        except RuntimeError:  # outside of a run, nothing is sent
            return 0.0

    @trio.lowlevel.enable_ki_protection
    async def aclose(self) -> None:
        """Close the idle connections. Calls that have begun to send continue."""
        self._closed = True
        if self._owner == _current_run():  # another run or process must not use these sockets
            while (idle := self._pool.take()) is not None:
                await idle.close()
        if trio.lowlevel.in_trio_run():
            await trio.lowlevel.checkpoint()  # as in each of trio's own async functions


def _current_run() -> object:
    """Return what identifies the running ``trio.run`` and this process, or ``None`` outside."""
    if not trio.lowlevel.in_trio_run():
        return None
    return trio.lowlevel.current_trio_token(), os.getpid()


async def _close_unless_quiet(wire: Wire) -> bool:
    """Return whether a connection holds no unread data. If it does, close it."""
    quiet = False
    try:
        quiet = await wire.is_quiet()
    finally:
        if not quiet:
            await wire.close()
    return quiet


def _wake(waiter: trio.Event | None) -> None:
    if waiter is not None:
        waiter.set()


async def _open_loopback(host: str, port: int) -> trio.SocketStream:
    """Connect to this machine. Raise if a name such as ``localhost`` leads to another machine."""
    stream = await trio.open_tcp_stream(host, port)
    try:
        _check_loopback(host, stream.socket.getpeername()[0])
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return stream


def _check_loopback(host: str, address: str) -> None:
    if not is_loopback(address):
        raise RuntimeError(not_loopback_message(host, address))


def _system_context() -> ssl.SSLContext:
    """Return a context for the current environment."""
    context = client_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


class AsyncCreduseClient(AsyncCoreClient):
    """A Creduse client for trio. Tasks of one ``trio.run`` can share it.

    Example::

        async with AsyncCreduseClient() as client:
            await client.add(end_user_id, 100)

    - ``api_key``: the API key. Default: ``CREDUSE_API_KEY`` from the environment.
    - ``ssl_context``: the TLS settings for https. Default: a context that trusts the system's
      certificates, and those in ``SSL_CERT_FILE``. To trust only your own, set ``SSL_CERT_DIR`` to
      an empty directory too, or pass a context.
    - ``base_url``: the URL of the API. Default: ``CREDUSE_BASE_URL`` from the environment, or else
      Creduse's own service.
    - ``timeout``: seconds for a whole call, with its retries and waits. Default: ``CREDUSE_TIMEOUT``
      from the environment, or else 30.
    - ``retry``: when the client retries a call. It never retries if that could apply the call
      twice.
    - ``on_attempt``: is called with an `Attempt` after each attempt.
    - ``on_call``: is called with a `FinishedCall` after each call.
    - ``allow_http``: whether plain http is accepted for hosts other than this machine. Default:
      ``True`` if ``CREDUSE_ALLOW_HTTP`` is ``1`` in the environment.
    - ``pace``: a `Pace` that keeps calls below the service's limit of requests. Clients can share one.
    - ``proxy``: the URL of an http or https proxy, such as
      ``http://user:password@proxy.example:3128``. Default: that of ``HTTPS_PROXY`` and the like; none
      for calls to this machine, or with ``connect``.
    - ``extra_headers``: further header fields of each request, such as a gateway's token. The client's
      own are rejected. Reprs hide the values. Errors hide those that are a `Secret`.
    - ``max_connections``: the most connections at a time. Further calls wait in the order in which
      they come.
    - ``idle_timeout``: seconds for which the client keeps an idle connection.
    - ``connect``: is called as ``await connect(host, port)`` and returns a stream to the server, or to
      the proxy if there is one. It can lead to a Unix socket or stay in memory. For https, TLS runs
      over this stream. If ``connect`` raises, nothing was sent, and the client retries after an
      `OSError`. Default: `trio.open_tcp_stream`.

    A wrong argument raises ``TypeError`` or ``ValueError``, here and in each method, before
    anything is sent. A call that fails raises a `CreduseError`, whose ``outcome`` says whether
    credits moved. A client belongs to the ``trio.run`` of its first call. If you fork, make the
    client after the fork. ``aclose()`` lets calls in flight end.
    """

    def __init__(  # noqa: PLR0913 - each has a default
        self,
        api_key: str | Secret | None = None,
        ssl_context: ssl.SSLContext | None = None,
        *,
        base_url: str | None = None,
        timeout: float | None = None,
        retry: RetryPolicy = DEFAULT_RETRY,
        on_attempt: Callable[[Attempt], object] | None = None,
        on_call: Callable[[FinishedCall], object] | None = None,
        allow_http: bool | None = None,
        max_connections: int = 100,
        idle_timeout: float = IDLE_TIMEOUT,
        connect: Connect | None = None,
        pace: Pace | None = None,
        proxy: str | None = None,
        extra_headers: Mapping[str, str | Secret] | None = None,
    ) -> None:
        with SHORT_TRACEBACK:
            protocol = protocol_from_environment(
                api_key,
                base_url=base_url,
                retry=retry,
                timeout=timeout,
                allow_http=allow_http,
                extra_headers=extra_headers,
            )
            _check_arguments(max_connections, connect)
            check_client_context(ssl_context)
            check_timeout("idle_timeout", idle_timeout)
            super().__init__(
                protocol,
                TrioTransport(
                    protocol,
                    ssl_context,
                    max_connections=max_connections,
                    idle_timeout=idle_timeout,
                    connect=connect,
                    proxy=proxy,
                ),
                on_attempt=on_attempt,
                on_call=on_call,
                pace=pace,
            )


def _check_arguments(max_connections: object, connect: object) -> None:
    check_at_least_one("max_connections", max_connections)
    if connect is not None and not callable(connect):
        raise TypeError(
            "connect must be a coroutine function that takes a host and a port, "
            f"not {type(connect).__name__}"
        )
