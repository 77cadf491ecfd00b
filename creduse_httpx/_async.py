"""The asynchronous client and its transport, on asyncio and on trio alike."""

import random
from collections.abc import Callable
from contextlib import suppress
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

from ._exchange import Exchange, Heads, discard, library_of, no_client, not_sent, settings, way
from ._tasks import Tasks, new_tasks, now, sleep

if TYPE_CHECKING:
    from types import ModuleType


class AsyncHTTPXClient(Protocol):
    """An `httpx.AsyncClient` or an `httpx2.AsyncClient`, by what tells them from other things."""

    @property
    def is_closed(self) -> bool: ...

    async def send(self, request: Any) -> Any: ...

    async def aclose(self) -> None: ...


class AsyncHTTPXTransport:
    """Sends over an `httpx.AsyncClient` of its own, made at the first call, or one it is given."""

    def __init__(self, protocol: CreduseProtocol, http_client: AsyncHTTPXClient | None) -> None:
        self._protocol = protocol
        self._given = http_client
        self._library: ModuleType = httpx
        self._closed = False
        self._heads: Heads = {}
        self._tasks: Tasks | None = None
        self._client: AsyncHTTPXClient | None = http_client
        if http_client is not None:
            self._library = library_of(http_client, "AsyncClient")

    def _is_closed(self) -> bool:
        return self._closed or (self._given is not None and self._given.is_closed)

    def _open(self) -> Tasks | Failure:
        """Make the client ready, and give what runs its exchanges; or say why it cannot be."""
        if self._is_closed():
            return not_sent("the client is closed")
        if self._tasks is None:
            if self._client is None:
                try:
                    self._client = httpx.AsyncClient(**settings(self._protocol))
                except Exception as error:  # noqa: BLE001 - whatever a setting brings about
                    return no_client(error)
            self._tasks = new_tasks()
        elif not self._tasks.is_here():
            return not_sent("the client belongs to another event loop: make one client for each")
        return self._tasks

    async def send(self, send: Send) -> Response | Failure:
        """Send once. See `creduse_core.AsyncTransport`."""
        tasks = self._open()
        if isinstance(tasks, Failure):
            return tasks
        exchange = Exchange(send, self._library, tasks.now)
        return await tasks.run(exchange, lambda: self._exchange(exchange))

    async def _exchange(self, exchange: Exchange) -> Response | Failure:
        if self._is_closed():  # while it waited for its turn
            return not_sent("the client is closed")

        async def trace(name: str, info: dict[str, Any]) -> None:
            exchange.trace(name, info)

        try:
            request = exchange.request(self._heads, trace)
            response = await way(self._client, request).handle_async_request(request)
            try:
                return await self._read(response, exchange)
            finally:
                # What there is of the answer is there by now; closing cannot change it.
                with suppress(Exception):
                    await response.stream.aclose()
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
        await sleep(seconds)

    def now(self) -> float:
        """Give the time in seconds: trio's, so that its test clocks work, or the monotonic."""
        return now()

    async def aclose(self) -> None:
        """Wait for what cancelled calls have left behind, then close the client made here."""
        self._closed = True
        if self._tasks is not None and not self._tasks.is_here():
            return  # what it had has gone with its loop
        try:
            if self._tasks is not None:
                await self._tasks.drain()
        finally:
            if self._given is None and self._client is not None:
                await self._client.aclose()


class AsyncCreduseClient(AsyncCoreClient):
    """The Creduse client, asynchronous: for asyncio and for trio. Tasks of one loop can share it.

        async with AsyncCreduseClient() as client:
            await client.add(end_user_id, 100)

    - ``api_key``: else ``CREDUSE_API_KEY`` from the environment.
    - ``http_client``: an `httpx.AsyncClient` (or httpx2's) of your own, for its connections,
      proxies and TLS settings. Its auth, headers, cookies, event hooks and redirects are not
      used. It is never closed here.
    - ``base_url``: else ``CREDUSE_BASE_URL``, else the service. Plain http is for loopback hosts,
      unless ``allow_http=True``, or ``CREDUSE_ALLOW_HTTP=1`` and it is not given.
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
        allow_http: bool | None = None,
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
