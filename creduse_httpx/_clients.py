"""The clients, and the one choice that each makes: connections of its own, or a supplied client's.

How requests are sent must not come in here. httpx loads httpcore when a client is made, since it is
slow to load; so do these.
"""

import random
from collections.abc import Callable
from typing import Any, Protocol

from creduse_core import (
    DEFAULT_RETRY,
    TIMEOUT,
    AsyncCoreClient,
    AsyncTransport,
    Attempt,
    CoreClient,
    CreduseProtocol,
    RetryPolicy,
    Transport,
    protocol_from_environment,
)


class HTTPXClient(Protocol):
    """An `httpx.Client` or an `httpx2.Client`, by what tells them from other things."""

    @property
    def is_closed(self) -> bool: ...

    def send(self, request: Any) -> Any: ...

    def close(self) -> None: ...


class AsyncHTTPXClient(Protocol):
    """An `httpx.AsyncClient` or an `httpx2.AsyncClient`, by what tells them from other things."""

    @property
    def is_closed(self) -> bool: ...

    async def send(self, request: Any) -> Any: ...

    async def aclose(self) -> None: ...


class CreduseClient(CoreClient):
    """The Creduse client, synchronous. Threads can share it.

        with CreduseClient() as client:
            client.add(end_user_id, 100)

    - ``api_key``: else ``CREDUSE_API_KEY`` from the environment.
    - ``http_client``: an `httpx.Client` (or httpx2's) of your own, for its connections, proxies
      and TLS settings. Its auth, headers, cookies, event hooks and redirects are not used, and it
      must not speak HTTP/2. It is never closed here.
    - ``base_url``: else ``CREDUSE_BASE_URL``, else the service. Plain http is for loopback hosts,
      unless ``allow_http=True``, or ``CREDUSE_ALLOW_HTTP=1`` and it is not given.
    - ``timeout``: seconds for a whole call, its retries and waits included.
    - ``retry``: when a call is retried; never where that could apply it twice.
    - ``on_attempt``: called with an `Attempt` after each.

    Wrong arguments raise ``TypeError`` or ``ValueError``, here and in each method, before anything
    is sent. A call that fails raises a `CreduseError`, whose ``outcome`` says whether the credits
    moved. After a fork, the child opens connections of its own, but not a supplied client's.
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
            _transport(protocol, http_client),
            on_attempt=on_attempt,
            jitter=random.SystemRandom().random,  # not a program's own, nor alike after a fork
        )


class AsyncCreduseClient(AsyncCoreClient):
    """The Creduse client, asynchronous: for asyncio and for trio. Tasks of one loop can share it.

        async with AsyncCreduseClient() as client:
            await client.add(end_user_id, 100)

    - ``api_key``: else ``CREDUSE_API_KEY`` from the environment.
    - ``http_client``: an `httpx.AsyncClient` (or httpx2's) of your own, for its connections,
      proxies and TLS settings. Its auth, headers, cookies, event hooks and redirects are not
      used, and it must not speak HTTP/2. It is never closed here.
    - ``base_url``: else ``CREDUSE_BASE_URL``, else the service. Plain http is for loopback hosts,
      unless ``allow_http=True``, or ``CREDUSE_ALLOW_HTTP=1`` and it is not given.
    - ``timeout``: seconds for a whole call, its retries and waits included.
    - ``retry``: when a call is retried; never where that could apply it twice.
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
            _async_transport(protocol, http_client),
            on_attempt=on_attempt,
            jitter=random.SystemRandom().random,  # not a program's own, nor alike after a fork
        )


def _transport(protocol: CreduseProtocol, http_client: HTTPXClient | None) -> Transport:
    if http_client is None:
        from ._own import OwnTransport  # noqa: PLC0415 - see above

        return OwnTransport(protocol)
    from ._supplied import SuppliedTransport  # noqa: PLC0415 - see above

    return SuppliedTransport(protocol, http_client)


def _async_transport(
    protocol: CreduseProtocol, http_client: AsyncHTTPXClient | None
) -> AsyncTransport:
    if http_client is None:
        from ._own import AsyncOwnTransport  # noqa: PLC0415 - see above

        return AsyncOwnTransport(protocol)
    from ._supplied import AsyncSuppliedTransport  # noqa: PLC0415 - see above

    return AsyncSuppliedTransport(protocol, http_client)
