"""The public clients. Each chooses between its own connections and those of a supplied client.

Sending does not belong here. `_own` and `_supplied` load httpcore, which is slow to load, so a
client imports them only when it is made.
"""

import ssl
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from creduse_core import (
    DEFAULT_RETRY,
    AsyncCoreClient,
    AsyncTransport,
    Attempt,
    CoreClient,
    CreduseProtocol,
    FinishedCall,
    Pace,
    RetryPolicy,
    Secret,
    Transport,
    protocol_from_environment,
)
from creduse_core.arguments import SHORT_TRACEBACK, check_not_both


class HTTPXClient(Protocol):
    """An `httpx.Client` or an `httpx2.Client`."""

    @property
    def is_closed(self) -> bool: ...

    def send(self, request: Any) -> Any: ...

    def close(self) -> None: ...


class AsyncHTTPXClient(Protocol):
    """An `httpx.AsyncClient` or an `httpx2.AsyncClient`."""

    @property
    def is_closed(self) -> bool: ...

    async def send(self, request: Any) -> Any: ...

    async def aclose(self) -> None: ...


class CreduseClient(CoreClient):
    """A synchronous Creduse client. Threads can share it.

    Example::

        with CreduseClient() as client:
            client.add(end_user_id, 100)

    - ``api_key``: the API key. Default: ``CREDUSE_API_KEY`` from the environment.
    - ``http_client``: an `httpx.Client`, or httpx2's. The client uses its connections, proxies and
      TLS settings. It does not use its auth, headers, cookies, event hooks and redirects, and never
      closes it. HTTP/2 is rejected. Default: the client opens its own connections.
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
    - ``ssl_context``: the TLS settings for https, such as your own certificates. Default: a context
      that trusts certifi's certificates, or those of ``SSL_CERT_FILE`` and ``SSL_CERT_DIR``. The
      client sets its ``sslobject_class``.
    - ``proxy``: the URL of a proxy, such as ``http://user:password@proxy.example:3128``. Default: that
      of ``HTTPS_PROXY`` and the like; none for calls to this machine.
    - ``extra_headers``: further header fields of each request, such as a gateway's token. The client's
      own are rejected. Reprs hide the values. Errors hide those that are a `Secret`.

    A wrong argument raises ``TypeError`` or ``ValueError``, here and in each method, before
    anything is sent. A call that fails raises a `CreduseError`, whose ``outcome`` says whether
    credits moved. After a fork, the child process opens its own connections, but not those of a
    supplied client.
    """

    def __init__(  # noqa: PLR0913 - each has a default
        self,
        api_key: str | Secret | None = None,
        http_client: HTTPXClient | None = None,
        *,
        base_url: str | None = None,
        timeout: float | None = None,
        retry: RetryPolicy = DEFAULT_RETRY,
        on_attempt: Callable[[Attempt], object] | None = None,
        on_call: Callable[[FinishedCall], object] | None = None,
        allow_http: bool | None = None,
        pace: Pace | None = None,
        ssl_context: ssl.SSLContext | None = None,
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
            super().__init__(
                protocol,
                _transport(protocol, http_client, ssl_context, proxy),
                on_attempt=on_attempt,
                on_call=on_call,
                pace=pace,
            )


class AsyncCreduseClient(AsyncCoreClient):
    """An asynchronous Creduse client for asyncio and trio. Tasks of one event loop can share it.

    Example::

        async with AsyncCreduseClient() as client:
            await client.add(end_user_id, 100)

    - ``api_key``: the API key. Default: ``CREDUSE_API_KEY`` from the environment.
    - ``http_client``: an `httpx.AsyncClient`, or httpx2's. The client uses its connections, proxies
      and TLS settings. It does not use its auth, headers, cookies, event hooks and redirects, and
      never closes it. HTTP/2 is rejected. Default: the client opens its own connections.
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
    - ``ssl_context``: the TLS settings for https, such as your own certificates. Default: a context
      that trusts certifi's certificates, or those of ``SSL_CERT_FILE`` and ``SSL_CERT_DIR``. The
      client sets its ``sslobject_class``.
    - ``proxy``: the URL of a proxy, such as ``http://user:password@proxy.example:3128``. Default: that
      of ``HTTPS_PROXY`` and the like; none for calls to this machine.
    - ``extra_headers``: further header fields of each request, such as a gateway's token. The client's
      own are rejected. Reprs hide the values. Errors hide those that are a `Secret`.

    A wrong argument raises ``TypeError`` or ``ValueError``, here and in each method, before
    anything is sent. A call that fails raises a `CreduseError`, whose ``outcome`` says whether
    credits moved. A client belongs to the event loop of its first call. If you fork, make the
    client after the fork.
    """

    def __init__(  # noqa: PLR0913 - each has a default
        self,
        api_key: str | Secret | None = None,
        http_client: AsyncHTTPXClient | None = None,
        *,
        base_url: str | None = None,
        timeout: float | None = None,
        retry: RetryPolicy = DEFAULT_RETRY,
        on_attempt: Callable[[Attempt], object] | None = None,
        on_call: Callable[[FinishedCall], object] | None = None,
        allow_http: bool | None = None,
        pace: Pace | None = None,
        ssl_context: ssl.SSLContext | None = None,
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
            super().__init__(
                protocol,
                _async_transport(protocol, http_client, ssl_context, proxy),
                on_attempt=on_attempt,
                on_call=on_call,
                pace=pace,
            )


def _transport(
    protocol: CreduseProtocol,
    http_client: HTTPXClient | None,
    ssl_context: ssl.SSLContext | None,
    proxy: str | None,
) -> Transport:
    if http_client is None:
        from ._own import OwnTransport, TransportFactory  # noqa: PLC0415 - see the module's docstring

        return OwnTransport(TransportFactory(protocol, ssl_context, proxy))
    from ._supplied import SuppliedTransport  # noqa: PLC0415 - see the module's docstring

    check_not_both("http_client", ssl_context=ssl_context, proxy=proxy)
    return SuppliedTransport(protocol, http_client)


def _async_transport(
    protocol: CreduseProtocol,
    http_client: AsyncHTTPXClient | None,
    ssl_context: ssl.SSLContext | None,
    proxy: str | None,
) -> AsyncTransport:
    if http_client is None:
        from ._own import AsyncOwnTransport, TransportFactory  # noqa: PLC0415 - see the module's docstring

        return AsyncOwnTransport(TransportFactory(protocol, ssl_context, proxy))
    from ._supplied import AsyncSuppliedTransport  # noqa: PLC0415 - see the module's docstring

    check_not_both("http_client", ssl_context=ssl_context, proxy=proxy)
    return AsyncSuppliedTransport(protocol, http_client)
