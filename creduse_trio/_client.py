"""The client for trio and its transport."""

import os
import random
import ssl
from collections.abc import Callable
from typing import Final
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
    Request,
    Response,
    RetryPolicy,
    Send,
    forget_frames,
    protocol_from_environment,
)
from creduse_core.pool import Pool
from creduse_core.retry import check_timeout

from ._connection import Connect, Connection, Progress, open_connection

# What may pass: whether to try again may help. All else is a fault that stays.
_TRANSIENT: Final = (OSError, trio.BrokenResourceError, h11.RemoteProtocolError)


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
        self._secure = parts.scheme == "https"
        self._port = parts.port or (443 if self._secure else 80)
        self._ssl_context = ssl_context
        self._connect: Connect = connect or trio.open_tcp_stream
        self._pool: Pool[Connection, trio.Event] = Pool(max_connections, idle_timeout)
        self._heads: dict[tuple[str, int], tuple[object, h11.Request]] = {}
        self._home: object = None
        self._closed = False

    def _at_home(self) -> bool:
        """Say whether this is the run and the process of the first call.

        Sockets belong to the run that opened them. A child that is forked shares them with its
        parent, and two processes on one connection read each other's answers.
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
        """Send once. See `creduse_core.AsyncTransport`."""
        progress = Progress()
        begun = self.now()
        try:
            self._check()
            answer_by, connect_by = begun + send.timeout, begun + send.connect_timeout
            with trio.CancelScope(deadline=answer_by) as scope:
                head = self._head(send.request)
                if not self._pool.enter():
                    scope.deadline = connect_by
                    await self._wait()
                try:
                    connection = await self._idle()
                    if connection is None:
                        scope.deadline = connect_by
                        connection = await self._new()
                    if scope.deadline != answer_by:  # to set it takes its time
                        scope.deadline = answer_by
                    return await self._exchange(connection, head, send, progress)
                except BaseExceptionGroup as group:
                    # Of a stream that has a nursery of its own: what cancels goes on by itself.
                    if (cancelled := group.split(Exception)[1]) is None:
                        raise
                    raise cancelled from None
                finally:
                    _wake(self._pool.leave())
        except Exception as error:  # noqa: BLE001 - none leaves as itself
            transient = isinstance(error, _TRANSIENT) and not _is_certificate(error)
            return _failure(progress, error, transient=transient)
        # Only this scope's own deadline leads here: what else cancels goes on to its own scope.
        host = f"{self._host}:{self._port}"
        what = "no whole answer came" if progress.sent else f"no connection to {host} stood"
        late = TimeoutError(f"{what} in time")
        return _failure(progress, late, transient=True, timed_out=True)

    def _head(self, request: Request) -> h11.Request:
        """Give the head for h11, whose checks of one cost as much as a write to the network.

        One is kept for each path and length: the calls of a protocol have the same headers, but
        for those with an idempotency key.
        """
        key = (request.url, len(request.body))
        headers, head = self._heads.get(key, (None, None))
        if head is not None and headers is request.hidden_headers:
            return head
        head = h11.Request(
            method=request.method,
            target=request.url.removeprefix(self._origin),
            headers=[
                ("Host", self._host_header),
                *request.headers,
                ("Content-Length", str(len(request.body))),
            ],
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

    def _check(self) -> None:
        if self._closed:
            raise RuntimeError("the client is closed")
        if not self._at_home():
            if not trio.lowlevel.in_trio_run():
                raise RuntimeError(
                    "creduse_trio is for trio; under asyncio use creduse's own client"
                )
            raise RuntimeError(
                "the client belongs to another trio.run, or to the process that was forked: "
                "make one client for each"
            )

    async def _idle(self) -> Connection | None:
        """Give an idle connection that is fit for use, if there is one."""
        while (stale := self._pool.expired(trio.current_time())) is not None:
            await stale.close()
        while (idle := self._pool.take()) is not None:
            if await _is_fit(idle):
                return idle
        return None

    async def _new(self) -> Connection:
        """Open a connection."""
        if self._secure and self._ssl_context is None:
            self._ssl_context = ssl.create_default_context()
            self._ssl_context.set_alpn_protocols(["http/1.1"])
        context = self._ssl_context if self._secure else None
        new = await open_connection(self._connect, self._host, self._port, context)
        if not await _is_fit(new):
            raise h11.RemoteProtocolError("the server spoke or hung up before it was asked")
        return new

    async def _exchange(
        self, connection: Connection, head: h11.Request, send: Send, progress: Progress
    ) -> Response:
        """Send on this connection, and keep it if it is fit for another request."""
        keep = False
        try:
            response = await connection.exchange(head, send.request.body, progress)
            keep = not self._closed and send.belongs(response) and connection.renew()
            return response
        finally:
            if keep:
                self._pool.keep(connection, trio.current_time())
            else:
                await connection.close()

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await trio.sleep(seconds)

    def now(self) -> float:
        """Give the time on the clock of this run, in seconds."""
        try:
            return trio.current_time()
        except RuntimeError:  # outside of a run, where nothing is sent
            return 0.0

    @trio.lowlevel.enable_ki_protection
    async def aclose(self) -> None:
        """Close the idle connections. Calls in flight go on to their end, and close theirs then."""
        self._closed = True
        if self._at_home():  # elsewhere they are not ours to touch, nor is a forked child's loop
            while (idle := self._pool.take()) is not None:
                await idle.close()
            await trio.lowlevel.checkpoint()  # as all of trio's functions do


async def _is_fit(connection: Connection) -> bool:
    """Say whether a connection is fit for a request; close it if not."""
    quiet = False
    try:
        quiet = await connection.quiet()
    finally:
        if not quiet:
            await connection.close()
    return quiet


def _wake(waiter: trio.Event | None) -> None:
    if waiter is not None:
        waiter.set()


def _failure(
    progress: Progress, error: Exception, *, transient: bool, timed_out: bool = False
) -> Failure:
    forget_frames(error)
    return Failure(
        Delivery.MAYBE_SENT if progress.sent else Delivery.NOT_SENT,
        error,
        transient=transient,
        timed_out=timed_out,
        response=progress.response(),
    )


def _is_certificate(error: Exception) -> bool:
    """Say whether a certificate was refused, which no second attempt mends."""
    return isinstance(error.__cause__, ssl.SSLCertVerificationError)


class AsyncCreduseClient(AsyncCoreClient):
    """The Creduse client for trio. All tasks of one run can share it.

        async with AsyncCreduseClient() as client:
            await client.add(end_user_id, 100)

    - ``api_key``: else ``CREDUSE_API_KEY`` from the environment.
    - ``ssl_context``: for https, of your own. Else one that trusts what the system trusts.
    - ``base_url``: else ``CREDUSE_BASE_URL``, else the service. Plain http is for loopback hosts,
      unless ``allow_http=True``, or ``CREDUSE_ALLOW_HTTP=1`` and it is not given.
    - ``timeout``: seconds for a whole call, its retries and waits included.
    - ``retry``: when a call is tried again; never where that could apply it twice.
    - ``on_attempt``: called with an `Attempt` after each.
    - ``max_connections``: how many there are at a time. Further calls wait, first come first
      served.
    - ``idle_timeout``: seconds that a connection may be idle and still be used again.
    - ``connect``: called as ``await connect(host, port)``, gives the stream to the server, such as
      one to a Unix socket or in memory; `trio.open_tcp_stream` by default. If ``base_url`` is
      https, TLS goes on top. It raises `OSError` for what may pass; anything else is not tried
      again.

    Wrong arguments raise ``TypeError`` or ``ValueError``, here and in each method, before anything
    is sent. A call that fails raises a `CreduseError`, whose ``outcome`` says whether the credits
    moved. A client belongs to the ``trio.run`` of its first call; make it after a fork.
    ``aclose()`` lets calls in flight go on to their end. There are no proxies.
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
        allow_http: bool = False,
        max_connections: int = 100,
        idle_timeout: float = 3.0,
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
            jitter=random.random,
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
