"""The asynchronous client and its transport, on asyncio and on trio alike."""

import asyncio
import random
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, Protocol

import httpx

from creduse_core import (
    DEFAULT_RETRY,
    TIMEOUT,
    AsyncCoreClient,
    Attempt,
    CreduseProtocol,
    Failure,
    Response,
    RetryPolicy,
    Send,
    protocol_from_environment,
)

from ._exchange import Exchange, borrow, discard, no_client, not_sent, settings

if TYPE_CHECKING:
    from types import ModuleType

    import trio


class AsyncHTTPXClient(Protocol):
    """An `httpx.AsyncClient` or an `httpx2.AsyncClient`: what is asked of one."""

    @property
    def is_closed(self) -> bool: ...

    async def send(
        self, request: Any, *, stream: bool, auth: None, follow_redirects: bool
    ) -> Any: ...


class AsyncHTTPXTransport:
    """Sends over an `httpx.AsyncClient` of its own, made at the first call, or one it is given."""

    def __init__(self, protocol: CreduseProtocol, http_client: AsyncHTTPXClient | None) -> None:
        self._protocol = protocol
        self._given = http_client
        self._library: ModuleType = httpx
        self._closed = False
        self._urls: dict[str, Any] = {}
        self._loop: object = None
        self._client: Any = None
        self._tasks: set[asyncio.Task[Response | Failure]] = set()
        self._events: set[trio.Event] = set()
        if http_client is not None:
            self._library, self._client = borrow(http_client, "AsyncClient")

    def _open(self) -> Failure | None:
        """Make the client ready, or say why it cannot be."""
        if self._closed or (self._given is not None and self._given.is_closed):
            return not_sent("the client is closed")
        loop = _running_loop()
        if self._loop is None:
            if self._client is None:
                try:
                    self._client = httpx.AsyncClient(**settings(self._protocol))
                except Exception as error:  # noqa: BLE001 - whatever a setting brings about
                    return no_client(error)
            self._loop = loop
        elif self._loop is not loop:
            return not_sent("the client belongs to another event loop: make one client for each")
        return None

    async def send(self, send: Send) -> Response | Failure:
        """Send once. See `creduse_core.AsyncTransport`."""
        if (problem := self._open()) is not None:
            return problem
        exchange = Exchange(send, self._library, self.now)
        if _under_trio():
            return await self._send_trio(exchange)
        return await self._send_asyncio(exchange)

    # An exchange runs in a task of its own, which a cancellation of the caller's does not reach
    # but where that is safe: at other points httpcore would lose the connection's place in its
    # pool for good, on asyncio and on trio alike (encode/httpcore, issue 1093).

    async def _send_asyncio(self, exchange: Exchange) -> Response | Failure:
        task = asyncio.create_task(self._exchange(exchange))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            await asyncio.wait({task}, timeout=exchange.send.timeout)
            if not task.done():
                _cancel_later(task, exchange.stop())
                await asyncio.wait({task})
        except asyncio.CancelledError:
            _cancel_later(task, exchange.stop())
            raise
        return exchange.failed(_too_slow()) if task.cancelled() else task.result()

    async def _send_trio(self, exchange: Exchange) -> Response | Failure:
        import trio  # noqa: PLC0415 - only where it is running

        scope, done = trio.CancelScope(), trio.Event()
        answer: Response | Failure | None = None

        async def run() -> None:
            nonlocal answer
            with scope:
                answer = await self._exchange(exchange)
            self._events.discard(done)
            done.set()

        self._events.add(done)
        trio.lowlevel.spawn_system_task(run, context=copy_context())
        try:
            with trio.move_on_after(exchange.send.timeout):
                await done.wait()
            if not done.is_set():
                _cancel_scope_later(scope, exchange.stop())
                await done.wait()
        except trio.Cancelled:
            _cancel_scope_later(scope, exchange.stop())
            raise
        return exchange.failed(_too_slow()) if answer is None else answer

    async def _exchange(self, exchange: Exchange) -> Response | Failure:
        async def trace(name: str, info: dict[str, Any]) -> None:
            exchange.trace(name, info)

        try:
            request = exchange.request(self._urls, trace)
            response = await self._client.send(
                request, stream=True, auth=None, follow_redirects=False
            )
            try:
                return await self._read(response, exchange)
            finally:
                # What there is of the answer is there by now; closing cannot change it.
                with suppress(Exception):
                    await response.aclose()
        except Exception as error:  # noqa: BLE001 - none of a library's leaves as itself
            return exchange.failed(error)
        finally:
            # httpcore leaves the socket open when it is cancelled while TLS is being agreed.
            if exchange.connected is not None:
                with suppress(Exception):
                    await exchange.connected.aclose()

    async def _read(self, response: Any, exchange: Exchange) -> Response:
        exchange.head(response)
        async for chunk in response.stream:
            if not exchange.body(chunk):
                discard(response)
        answer = exchange.whole()
        if not exchange.send.belongs(answer):
            discard(response)
        return answer

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        if _under_trio():
            import trio  # noqa: PLC0415 - only where it is running

            await trio.sleep(seconds)
        else:
            await asyncio.sleep(seconds)

    def now(self) -> float:
        """Give the time in seconds: trio's, so that its test clocks work, or the monotonic."""
        if _under_trio():
            import trio  # noqa: PLC0415 - only where it is running

            return trio.current_time()
        return time.monotonic()

    async def aclose(self) -> None:
        """Wait for what cancelled calls have left behind, then close the client made here."""
        self._closed = True
        if self._loop is not None and self._loop is not _running_loop():
            return  # what it had has gone with its loop
        try:
            if self._tasks:
                await asyncio.wait(self._tasks)
            for done in tuple(self._events):
                await done.wait()
        finally:
            if self._given is None and self._client is not None:
                await self._client.aclose()


def _under_trio() -> bool:
    trio = sys.modules.get("trio")
    return trio is not None and trio.lowlevel.in_trio_task()


def _running_loop() -> object:
    """Give what stands for the loop that is running: it is the same object as long as it runs."""
    if _under_trio():
        import trio  # noqa: PLC0415 - only where it is running

        return trio.lowlevel.current_trio_token()
    return asyncio.get_running_loop()


def _cancel_later(task: asyncio.Task[Any], seconds: float) -> None:
    if seconds:
        asyncio.get_running_loop().call_later(seconds, task.cancel)
    else:
        task.cancel()


def _cancel_scope_later(scope: "trio.CancelScope", seconds: float) -> None:
    if seconds:
        import trio  # noqa: PLC0415 - only where it is running

        scope.deadline = trio.current_time() + seconds
    else:
        scope.cancel()  # a deadline of now would leave the task another step, which may send


def _too_slow() -> TimeoutError:
    return TimeoutError("no whole answer came in time")


class AsyncCreduseClient(AsyncCoreClient):
    """The Creduse client, asynchronous: for asyncio and for trio. Tasks of one loop can share it.

        async with AsyncCreduseClient() as client:
            await client.add(end_user_id, 100)

    - ``api_key``: else ``CREDUSE_API_KEY`` from the environment.
    - ``http_client``: an `httpx.AsyncClient` (or httpx2's) of your own, for its connections,
      proxies and TLS settings. Its auth, headers, cookies, event hooks and redirects are not
      used. It is never closed here.
    - ``base_url``: else ``CREDUSE_BASE_URL``, else the service. Plain http is for loopback hosts,
      unless ``allow_http=True`` or ``CREDUSE_ALLOW_HTTP=1``.
    - ``timeout``: seconds for a whole call, its retries and waits included.
    - ``retry``: when a call is tried again; never where that could apply it twice.
    - ``on_attempt``: called with an `Attempt` after each.

    Wrong arguments raise ``TypeError`` or ``ValueError``, here and in each method, before anything
    is sent. A call that fails raises a `CreduseError`, whose ``outcome`` says whether the credits
    moved. A client belongs to the event loop of its first call; make it after a fork.
    """

    def __init__(
        self,
        api_key: str | None = None,
        http_client: AsyncHTTPXClient | None = None,
        *,
        base_url: str | None = None,
        timeout: float = TIMEOUT,
        retry: RetryPolicy = DEFAULT_RETRY,
        on_attempt: Callable[[Attempt], object] | None = None,
        allow_http: bool = False,
    ) -> None:
        protocol = protocol_from_environment(
            api_key, base_url=base_url, retry=retry, timeout=timeout, allow_http=allow_http
        )
        super().__init__(
            protocol,
            AsyncHTTPXTransport(protocol, http_client),
            on_attempt=on_attempt,
            jitter=random.random,
        )
