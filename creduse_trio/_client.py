"""The client for trio and its transport."""

import os
import random
import ssl
from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias
from urllib.parse import urlsplit

import h11
import trio

from creduse_core import (
    DEFAULT_RETRY,
    TIMEOUT,
    AsyncCoreClient,
    Attempt,
    CreduseProtocol,
    Delivery,
    Failure,
    ForeignError,
    Request,
    Response,
    RetryPolicy,
    Send,
    forget_frames,
    is_foreign,
    is_loopback,
    protocol_from_environment,
)
from creduse_core.arguments import check_timeout
from creduse_core.pool import IDLE_TIMEOUT, Pool
from creduse_core.tls import is_certificate_error

from ._connection import Connection, Head, Progress
from ._wire import open_wire

Connect: TypeAlias = Callable[[str, int], Awaitable[trio.abc.Stream]]
"""Opens a stream to a host and a port, as `trio.open_tcp_stream` does."""

# Worth a retry. All else stays as it is.
_TRANSIENT: Final = (OSError, trio.BrokenResourceError, h11.RemoteProtocolError)

# Whose exceptions are the transport's. Those of a stream that `connect` returns come in addition.
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


class TrioTransport:
    """Sends over connections of its own, opened when they are needed, to the protocol's host."""

    def __init__(
        self,
        protocol: CreduseProtocol,
        ssl_context: ssl.SSLContext | None,
        *,
        max_connections: int,
        idle_timeout: float,
        connect: Connect | None,
    ) -> None:
        parts = urlsplit(protocol.base_url)
        self._origin = f"{parts.scheme}://{parts.netloc}"
        self._host_header = parts.netloc
        self._host = parts.hostname or ""
        secure = parts.scheme == "https"
        self._port = parts.port or (443 if secure else 80)
        # Here, as it takes longer than many a call may.
        self._ssl_context = (ssl_context or _system_context()) if secure else None
        self._connect = connect
        self._open: Connect = _open_loopback if protocol.plain_loopback else trio.open_tcp_stream
        self._pool: Pool[Connection, trio.Event] = Pool(max_connections, idle_timeout)
        self._heads: dict[tuple[str, int], tuple[object, Head]] = {}
        self._libraries: set[str] = set(_LIBRARIES)
        self._home: object = None
        self._closed = False

    def _is_current_loop(self) -> bool:
        """Return whether this is the run and the process of the first call.

        Sockets belong to the run that opened them. A child that is forked shares them with its
        parent, and two processes on one connection read each other's responses.
        """
        if not trio.lowlevel.in_trio_run():
            return False
        here = (trio.lowlevel.current_trio_token(), os.getpid())
        self._home = self._home or here
        return self._home == here

    # A KeyboardInterrupt is raised between any two instructions, unless it is kept for the next
    # checkpoint, where it unwinds as a cancellation does.
    @trio.lowlevel.enable_ki_protection
    async def send(self, send: Send) -> Response | Failure:
        """Send once. See `creduse_core.AsyncTransport`.

        Whatever is raised has no frames below this one, for those hold the request.
        """
        progress = Progress()
        try:
            self._check()
            with trio.CancelScope(deadline=send.deadline) as scope:
                try:
                    return await self._attempt(send, scope, progress)
                except BaseExceptionGroup as group:
                    if (plain := _plain(group)) is group:
                        raise
                    raise plain from None
        except BaseException as error:
            foreign = None if progress.connecting else self._foreign(error)
            forget_frames(error)
            if foreign is not None:
                raise ForeignError(foreign) from None
            if not isinstance(error, Exception):
                raise
            transient = isinstance(error, _TRANSIENT) and not is_certificate_error(error)
            return _failure(progress, error, transient=transient)
        # Only this scope's own deadline leads here: what else cancels goes on to its own scope.
        what = "no whole response came" if progress.sent else "no connection stood"
        late = TimeoutError(f"{what} in time")
        return _failure(progress, late, transient=True, timed_out=True)

    async def _attempt(self, send: Send, scope: trio.CancelScope, progress: Progress) -> Response:
        """Get a place and a connection, and exchange the messages on it."""
        head = self._head(send.request)
        if not self._pool.enter():
            scope.deadline = send.connect_by
            await self._wait()
        try:
            connection = await self._idle()
            if connection is None:
                scope.deadline = send.connect_by
                connection = await self._new(progress)
            if scope.deadline != send.deadline:  # setting it takes time
                scope.deadline = send.deadline
            return await self._exchange(connection, head, send, progress)
        finally:
            _wake(self._pool.leave())

    def _foreign(self, error: BaseException) -> Exception | None:
        """Return the exception, or that of a group, that is neither ours nor a library's."""
        for leaf in _leaves(error):
            if isinstance(leaf, Exception) and is_foreign(leaf, self._libraries):
                return leaf
        return None

    def _head(self, request: Request) -> Head:
        """Return the head for h11, whose checks of one cost as much as a write to the network.

        One is kept for each path and length: the calls of a protocol have the same headers, but
        for those with an idempotency key.
        """
        key = (request.url, len(request.body))
        headers, head = self._heads.get(key, (None, None))
        if head is not None and headers is request.hidden_headers:
            return head
        head = Head(
            h11.Request(
                method=request.method,
                target=request.url.removeprefix(self._origin),
                headers=[
                    ("Host", self._host_header),
                    *request.headers,
                    ("Content-Length", str(len(request.body))),
                ],
            )
        )
        self._heads[key] = request.hidden_headers, head
        return head

    async def _wait(self) -> None:
        """Wait for a place in the pool."""
        waiter = trio.Event()
        self._pool.wait(waiter)
        try:
            await waiter.wait()
            self._check()
        except BaseException:
            _wake(self._pool.give_up(waiter))
            raise

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the client is closed")

    def _check(self) -> None:
        self._check_open()
        if not self._is_current_loop():
            if not trio.lowlevel.in_trio_run():
                raise RuntimeError(
                    "creduse_trio is for trio; under asyncio use creduse's own client"
                )
            raise RuntimeError(
                "the client belongs to another trio.run, or to the process that was forked: "
                "make one client for each"
            )

    async def _idle(self) -> Connection | None:
        """Return an idle connection that is fit for use, if there is one."""
        while (stale := self._pool.expired(trio.current_time())) is not None:
            await stale.wire.close()
        while (idle := self._pool.take()) is not None:
            with idle.wire.ignoring_errors():  # however it is broken, it is not used again
                if await _is_fit(idle):
                    return idle
        return None

    async def _new(self, progress: Progress) -> Connection:
        """Open a connection."""
        progress.connecting = self._connect is not None
        stream = await (self._connect or self._open)(self._host, self._port)
        progress.connecting = False
        wire = await open_wire(stream, self._host, self._ssl_context, self._libraries)
        new = Connection(wire)
        if not await _is_fit(new):
            raise h11.RemoteProtocolError("the server spoke or hung up before it was asked")
        return new

    async def _exchange(
        self, connection: Connection, head: Head, send: Send, progress: Progress
    ) -> Response:
        """Send on this connection, and keep it if it is fit for another request."""
        keep = False
        try:
            self._check_open()  # it can be closed while this call connects
            response = await connection.exchange(head, send.request.body, progress)
            keep = not self._closed and send.belongs(response) and connection.renew()
            return response
        finally:
            if keep:
                self._pool.keep(connection, trio.current_time())
            else:
                await connection.wire.close()

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await trio.sleep(seconds)

    def now(self) -> float:
        """Return the time on the clock of this run, in seconds."""
        try:
            return trio.current_time()
        except RuntimeError:  # outside of a run, where nothing is sent
            return 0.0

    @trio.lowlevel.enable_ki_protection
    async def aclose(self) -> None:
        """Close the idle connections. A call that has begun to send goes on to its end."""
        self._closed = True
        if (
            self._is_current_loop()
        ):  # elsewhere they are not ours to touch, nor is a forked child's loop
            while (idle := self._pool.take()) is not None:
                await idle.wire.close()
            await trio.lowlevel.checkpoint()  # as all of trio's functions do


def _leaves(error: BaseException) -> list[BaseException]:
    """Return the members of a group, however deep; else the exception itself."""
    members: tuple[BaseException, ...] = getattr(error, "exceptions", ())
    return [leaf for member in members for leaf in _leaves(member)] or [error]


def _plain(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return what is raised in place of a group, which nobody who catches its members expects.

    A nursery, such as that of `trio.open_tcp_stream`, may group a cancellation. What ends the
    program comes first, then what cancels; a group of mere errors stays.
    """
    ends = [leaf for leaf in _leaves(group) if not isinstance(leaf, Exception)]
    return min(ends, key=lambda leaf: isinstance(leaf, trio.Cancelled), default=group)


async def _is_fit(connection: Connection) -> bool:
    """Return whether a connection is fit for a request; close it if not."""
    quiet = False
    try:
        quiet = await connection.wire.is_quiet()
    finally:
        if not quiet:
            await connection.wire.close()
    return quiet


def _wake(waiter: trio.Event | None) -> None:
    if waiter is not None:
        waiter.set()


def _failure(
    progress: Progress, error: Exception, *, transient: bool, timed_out: bool = False
) -> Failure:
    return Failure(
        Delivery.MAYBE_SENT if progress.sent else Delivery.NOT_SENT,
        error,
        transient=transient,
        timed_out=timed_out,
        response=progress.response(),
    )


async def _open_loopback(host: str, port: int) -> trio.SocketStream:
    """Connect to this machine, and raise if a name such as ``localhost`` leads to another."""
    stream = await trio.open_tcp_stream(host, port)
    try:
        _check_loopback(host, stream.socket.getpeername()[0])
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return stream


def _check_loopback(host: str, address: str) -> None:
    if not is_loopback(address):
        raise RuntimeError(
            f"{host} is {address}, which is not this machine: over http, anyone on the way could "
            "read the API key. Use https, or pass allow_http=True"
        )


def _system_context() -> ssl.SSLContext:
    """Return a context that trusts what the system does, or what ``SSL_CERT_FILE`` names."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    if file := os.environ.get("SSL_CERT_FILE"):  # OpenSSL says nothing if it is wrong
        try:
            context.load_verify_locations(file)
        except OSError as error:
            raise ValueError(
                f"SSL_CERT_FILE is {file!r}, which holds no certificates: {error}"
            ) from None
    return context


class AsyncCreduseClient(AsyncCoreClient):
    """The Creduse client for trio. All tasks of one run can share it.

        async with AsyncCreduseClient() as client:
            await client.add(end_user_id, 100)

    - ``api_key``: else ``CREDUSE_API_KEY`` from the environment.
    - ``ssl_context``: for https, of your own. Else one that trusts what the system trusts, or what
      ``SSL_CERT_FILE`` names.
    - ``base_url``: else ``CREDUSE_BASE_URL``, else the service. Plain http is for loopback hosts,
      unless ``allow_http=True``, or ``CREDUSE_ALLOW_HTTP=1`` and it is not given.
    - ``timeout``: seconds for a whole call, its retries and waits included.
    - ``retry``: when a call is retried; never where that could apply it twice.
    - ``on_attempt``: called with an `Attempt` after each.
    - ``max_connections``: at a time. Further calls wait, first come first served.
    - ``idle_timeout``: seconds that a connection may be idle and still be used again.
    - ``connect``: called as ``await connect(host, port)``, returns the stream to the server, such
      as one to a Unix socket or in memory; `trio.open_tcp_stream` by default. If ``base_url`` is
      https, TLS goes on top. Whatever it raises means that nothing was sent; after an `OSError` the
      call is retried.

    Wrong arguments raise ``TypeError`` or ``ValueError``, here and in each method, before anything
    is sent. A call that fails raises a `CreduseError`, whose ``outcome`` says whether the credits
    moved. A client belongs to the ``trio.run`` of its first call; make it after a fork.
    ``aclose()`` lets calls in flight go on to their end. It supports no proxies.
    """

    def __init__(  # noqa: PLR0913 - its arguments are its documentation
        self,
        api_key: str | None = None,
        ssl_context: ssl.SSLContext | None = None,
        *,
        base_url: str | None = None,
        timeout: float = TIMEOUT,
        retry: RetryPolicy = DEFAULT_RETRY,
        on_attempt: Callable[[Attempt], object] | None = None,
        allow_http: bool | None = None,
        max_connections: int = 100,
        idle_timeout: float = IDLE_TIMEOUT,
        connect: Connect | None = None,
    ) -> None:
        protocol = protocol_from_environment(
            api_key, base_url=base_url, retry=retry, timeout=timeout, allow_http=allow_http
        )
        _check_settings(ssl_context, max_connections, connect)
        check_timeout("idle_timeout", idle_timeout)
        super().__init__(
            protocol,
            TrioTransport(
                protocol,
                ssl_context,
                max_connections=max_connections,
                idle_timeout=idle_timeout,
                connect=connect,
            ),
            on_attempt=on_attempt,
            jitter=random.SystemRandom().random,  # not a program's own, nor alike after a fork
        )


def _check_settings(ssl_context: object, max_connections: object, connect: object) -> None:
    if not isinstance(ssl_context, ssl.SSLContext | None):
        raise TypeError(f"ssl_context must be an SSLContext, not {type(ssl_context).__name__}")
    if ssl_context is not None and ssl_context.protocol is ssl.PROTOCOL_TLS_SERVER:
        raise ValueError("ssl_context must be a client's, not one made with PROTOCOL_TLS_SERVER")
    if isinstance(max_connections, bool) or not isinstance(max_connections, int):
        raise TypeError(f"max_connections must be an int, not {type(max_connections).__name__}")
    if max_connections < 1:
        raise ValueError(f"max_connections must be at least 1, not {max_connections}")
    if connect is not None and not callable(connect):
        raise TypeError("connect must be a coroutine function that takes a host and a port")
