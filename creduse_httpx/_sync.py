"""The synchronous client and its transport."""

import os
import random
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

import httpx

from creduse_core import (
    DEFAULT_RETRY,
    TIMEOUT,
    Attempt,
    CoreClient,
    CreduseProtocol,
    Failure,
    Response,
    RetryPolicy,
    Send,
    protocol_from_environment,
)

from ._exchange import Exchange, Heads, discard, library_of, no_client, not_sent, settings, way

if TYPE_CHECKING:
    from types import ModuleType


class HTTPXClient(Protocol):
    """An `httpx.Client` or an `httpx2.Client`, by what tells them from other things."""

    @property
    def is_closed(self) -> bool: ...

    def send(self, request: Any) -> Any: ...

    def close(self) -> None: ...


class HTTPXTransport:
    """Sends over an `httpx.Client` of its own, made at the first call, or over one it is given."""

    def __init__(self, protocol: CreduseProtocol, http_client: HTTPXClient | None) -> None:
        self._protocol = protocol
        self._given = http_client
        self._library: ModuleType = httpx
        self._closed = False
        self._heads: Heads = {}
        # By process: a fork shares the sockets, and two processes on one connection read each
        # other's answers. The parent's client is kept, since closing it would say goodbye for it.
        self._clients: dict[int, HTTPXClient] = {}
        if http_client is not None:
            self._library = library_of(http_client, "Client")

    def _is_closed(self) -> bool:
        return self._closed or (self._given is not None and self._given.is_closed)

    def _client(self) -> HTTPXClient:
        if self._given is not None:
            return self._given
        process = os.getpid()
        # Threads may meet here at the first call: setdefault lets one win, without a lock that a
        # fork could leave locked.
        return self._clients.get(process) or self._clients.setdefault(
            process, httpx.Client(**settings(self._protocol))
        )

    def send(self, send: Send) -> Response | Failure:
        """Send once. See `creduse_core.Transport`."""
        if self._is_closed():
            return not_sent("the client is closed")
        try:
            client = self._client()
        except Exception as error:  # noqa: BLE001 - whatever a setting brings about
            return no_client(error)
        if self._closed:  # meanwhile, by another thread, which may not have seen this client
            self.close()
            return not_sent("the client is closed")
        exchange = Exchange(send, self._library, time.monotonic)
        try:
            request = exchange.request(self._heads, exchange.trace)
            response = way(client, request).handle_request(request)
            try:
                return self._read(response, exchange)
            finally:
                # What there is of the answer is there by now; closing cannot change it.
                with suppress(Exception):
                    response.stream.close()
        except Exception as error:  # noqa: BLE001 - none of a library's leaves as itself
            return exchange.failed(error)

    def _read(self, response: Any, exchange: Exchange) -> Response:
        exchange.head(response)
        for chunk in response.stream:
            if not exchange.body(chunk) and not discard(response):
                raise TimeoutError("no time was left for the answer, or no room")
        answer = exchange.whole()
        if not exchange.send.belongs(answer):
            discard(response)
        return answer

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)

    def now(self) -> float:
        """Give the time on the system's monotonic clock, in seconds."""
        return time.monotonic()

    def close(self) -> None:
        """Close the client that was made here."""
        self._closed = True
        client = self._clients.pop(os.getpid(), None)
        if client is not None:
            client.close()


class CreduseClient(CoreClient):
    """The Creduse client, synchronous. It can be shared between threads.

        with CreduseClient() as client:
            client.add(end_user_id, 100)

    - ``api_key``: else ``CREDUSE_API_KEY`` from the environment.
    - ``http_client``: an `httpx.Client` (or httpx2's) of your own, for its connections, proxies
      and TLS settings. Its auth, headers, cookies, event hooks and redirects are not used. It is
      never closed here.
    - ``base_url``: else ``CREDUSE_BASE_URL``, else the service. Plain http is for loopback hosts,
      unless ``allow_http=True``, or ``CREDUSE_ALLOW_HTTP=1`` and it is not given.
    - ``timeout``: seconds for a whole call, its retries and waits included.
    - ``retry``: when a call is tried again; never where that could apply it twice.
    - ``on_attempt``: called with an `Attempt` after each.

    Wrong arguments raise ``TypeError`` or ``ValueError``, here and in each method, before anything
    is sent. A call that fails raises a `CreduseError`, whose ``outcome`` says whether the credits
    moved. After a fork, the child opens connections of its own, but not a lent client's.
    """

    def __init__(
        self,
        api_key: str | None = None,
        http_client: HTTPXClient | None = None,
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
            HTTPXTransport(protocol, http_client),
            on_attempt=on_attempt,
            jitter=random.random,
        )
