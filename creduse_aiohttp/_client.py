"""The client over aiohttp, its transport, and the exchange of one request for one response.

No exception type of aiohttp says whether a request was sent: the body that it is given does.
"""

import asyncio
import os
import random
import ssl
import time
import weakref
from collections.abc import Callable, Mapping
from typing import Any, Final

import aiohttp
from aiohttp.abc import AbstractStreamWriter
from aiohttp.payload import BytesPayload
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from creduse_core import (
    DEFAULT_RETRY,
    MAX_BODY_SIZE,
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
    Secret,
    Send,
    exception_chain,
    forget_frames,
    is_foreign,
    is_loopback,
    protocol_from_environment,
    proxy_from_environment,
)
from creduse_core.pool import IDLE_TIMEOUT
from creduse_core.tls import WholeRecords

from ._below import HeldResponse, close_soon, is_readable, is_usable, leave_idle, proxy_of

# Whether to try again may help, by what went wrong; the most derived class wins.
_TRANSIENT: Final[Mapping[type, bool]] = {
    aiohttp.ClientError: True,
    OSError: True,  # TimeoutError is one
    aiohttp.ClientConnectorCertificateError: False,
    aiohttp.ServerFingerprintMismatch: False,
    aiohttp.InvalidURL: False,
    Exception: False,
}

_LIBRARIES: Final = frozenset(
    {
        *("aiohttp", "creduse_aiohttp", "creduse_core"),
        # What these run on.
        *("aiohappyeyeballs", "idna", "multidict", "uvloop", "yarl"),
        # What stands in for parts of aiohttp: resolvers, connectors to SOCKS proxies, mocks.
        *("aiodns", "pycares", "aiohttp_socks", "python_socks", "aioresponses", "vcr"),
    }
)
"""Top-level modules whose exceptions are this transport's, and with them the standard library's."""

_NO_TIMEOUTS: Final = aiohttp.ClientTimeout()
_NO_HEADERS: Final = CIMultiDictProxy(CIMultiDict[str]())


class _Exchange(BytesPayload):
    """One request, and what comes of it. It is itself the body that aiohttp writes.

    So it learns the moment of writing and the connection, whatever carries the request:
    ``consumed`` says that it may have been sent. aiohttp sends a GET a second time by itself when
    its connection is lost (aio-libs/aiohttp, issue 10790), but not one whose body is consumed.
    """

    _connection: asyncio.WriteTransport | None = None
    _response: aiohttp.ClientResponse | None = None
    _timer: asyncio.TimerHandle | None = None
    _refused: Exception | None = None
    """Why nothing was written. aiohttp would only say that it was not."""

    def __init__(self, transport: "AiohttpTransport", send: Send) -> None:
        super().__init__(send.request.body)
        self._transport = transport
        self._send = send
        self._chunks: list[bytes] = []
        self._by = send.connect_by  # until the request is written; then send.deadline
        self._deadline = asyncio.timeout_at(None)

    def __reduce__(self) -> tuple[type[bytes], tuple[bytes]]:
        """Be copied as the bytes of the body: vcrpy copies what it records."""
        return bytes, (self._send.request.body,)

    def _set_timer(self, now: float) -> None:
        # Not by the deadline's own timer: what has come in by then still counts, and whoever waits
        # for it is called before a deadline that is set only when it is over.
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._by - now, self._look_at_the_time)

    def _look_at_the_time(self) -> None:
        now = time.monotonic()
        if now < self._by:
            self._set_timer(now)
        else:
            self._deadline.reschedule(0.0)

    # What aiohttp calls.

    async def write(
        self,
        writer: AbstractStreamWriter,
        content_length: int | None = None,  # noqa: ARG002 - the body's, as we never set another
    ) -> None:
        """Write the body, and before it the head; or refuse to, so that nothing is sent."""
        self._connection = writer.transport
        try:
            await self._check(writer.transport)
        except Exception as error:
            self._refused = error
            raise
        self._by = self._send.deadline
        self._consumed = True
        await writer.write(self._send.request.body)

    write_with_length = write

    async def _check(self, connection: asyncio.WriteTransport | None) -> None:
        """Raise if the request must not be written on the connection now."""
        while True:
            if self.consumed or connection is None or not is_usable(connection):
                raise ConnectionResetError(
                    "the connection was lost, or held what no request had asked for"
                )
            if not is_readable(connection):
                break
            await asyncio.sleep(0)  # for the loop to read it: the end, a surplus, or a TLS ticket
        self._transport.check(connection)
        if time.monotonic() >= self._by:
            raise TimeoutError("no time was left to send the request")
        self._deadline.reschedule(None)  # raises if the exchange is over

    # What we do.

    async def run(self) -> Response | Failure:
        """Send, and read the response. Raise no exception of the library's."""
        try:
            return await self._exchange()
        except Exception as error:  # noqa: BLE001 - none of a library's leaves as itself
            return self._failed(error)

    async def _exchange(self) -> Response:
        keep = False
        try:
            self._set_timer(time.monotonic())
            async with self._deadline:
                self._response = await self._request()
                response = await self._read(self._response)
            keep = self._send.belongs(response)
            return response
        finally:
            if self._timer is not None:
                self._timer.cancel()
            self._end(keep=keep)

    def _end(self, *, keep: bool) -> None:
        response, connection = self._response, self._connection
        # vcrpy, which reads a response before us, has given its connection back.
        if connection is not None and response is not None and response.connection is not None:
            keep = keep and leave_idle(connection)
        if connection is not None and not keep:
            # To close a connection waits for TLS to be closed on the other side.
            connection.abort()
        if response is not None:
            (response.release if keep else response.close)()

    async def _request(self) -> aiohttp.ClientResponse:
        request, transport = self._send.request, self._transport
        session = transport.open()
        cancellations = _cancellations()
        if cancellations:
            await asyncio.sleep(0)  # where one that is still to be delivered is
        try:
            response = await session.request(
                request.method,
                transport.url(request),
                headers=transport.headers(request),
                proxy_headers=transport.proxy_headers(),
                data=self,
                allow_redirects=False,
                timeout=_NO_TIMEOUTS,
            )
        except asyncio.CancelledError:
            if not session.closed or _cancellations() > cancellations:
                raise
            # Nobody has cancelled us: aiohttp ends the wait for a connection in this way.
            raise RuntimeError("the session was closed") from None
        # A response without a version has come over no connection: a mock made it.
        if not self.consumed and response.version is not None:
            # Before Python 3.12 aiohttp writes in a task, which it may find no reason to wait for.
            response.close()
            raise ConnectionResetError("the connection held what no request had asked for")
        return response

    async def _read(self, response: aiohttp.ClientResponse) -> Response:
        size = 0
        while size <= MAX_BODY_SIZE and not response.content.at_eof():
            chunk = await response.content.readany()
            self._chunks.append(chunk)
            size += len(chunk)
        return self._whole(response)

    def _whole(self, response: aiohttp.ClientResponse) -> Response:
        return Response.from_raw(response.status, response.raw_headers, b"".join(self._chunks))

    def _failed(self, error: Exception) -> Failure:
        for link in exception_chain(
            error, contexts=False
        ):  # aiohttp raises its own from what it caught
            if isinstance(link, Exception) and is_foreign(link, _LIBRARIES):
                raise link from None
        if self._refused is not None and not self.consumed:
            error = self._refused
        forget_frames(error)
        if isinstance(error, aiohttp.ClientResponseError):
            # It is what aiohttp makes of bytes that are no response, and it carries the key; or of
            # a proxy's refusal.
            error.request_info = error.request_info._replace(headers=_NO_HEADERS)
            error.args = (error.request_info, error.history)
        return Failure(
            Delivery.MAYBE_SENT if self.consumed else Delivery.NOT_SENT,
            error,
            transient=next(_TRANSIENT[base] for base in type(error).__mro__ if base in _TRANSIENT),
            timed_out=self._deadline.expired() or time.monotonic() >= self._by,
            response=None if self._response is None else self._whole(self._response),
            via=self._transport.via,
        )


def _cancellations() -> int:
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()


def _tls_context() -> ssl.SSLContext:
    """Return a context as the environment is now: aiohttp's own is as it was at its import."""
    context = ssl.create_default_context()
    context.sslobject_class = WholeRecords
    file = os.environ.get("SSL_CERT_FILE")
    if file:
        # OpenSSL would trust nobody, and not say why.
        try:
            context.load_verify_locations(file)
        except OSError as error:
            raise ValueError(f"SSL_CERT_FILE is {file!r}, which cannot be used: {error}") from None
    return context


def _taken_apart(proxy: str | URL, login: Any) -> tuple[URL, dict[str, str]] | None:
    """Return a proxy's URL without login, and the header for that; ``None`` if it is unusable.

    No error of aiohttp's can hold the password then. It must not be in a frame of ours either, so
    this does not raise.
    """
    headers: dict[str, str] = {}
    try:
        url = URL(proxy)
        if login is not None:
            headers["Proxy-Authorization"] = login.encode()
        elif url.raw_user is not None or url.raw_password is not None:
            headers["Proxy-Authorization"] = aiohttp.encode_basic_auth(
                url.user or "", url.password or ""
            )
        bare = url.with_user(None)
        usable = bare.scheme in {"http", "https"} and str(bare.relative()) in {"", "/"}
    except ValueError:
        return None
    return (bare, headers) if usable else None


class AiohttpTransport:
    """Sends over a session of its own, made at the first call.

    Of a supplied session it uses the connector for that: all that a session adds to requests, and
    does with responses, is its own, and there is no public way to turn all of it off for a request.
    """

    libraries = _LIBRARIES

    def __init__(self, protocol: CreduseProtocol, session: aiohttp.ClientSession | None) -> None:
        if session is not None and not isinstance(session, aiohttp.ClientSession):  # pyright: ignore[reportUnnecessaryIsInstance]  # callers are not all typed
            raise TypeError(
                f"session must be an aiohttp.ClientSession, not {type(session).__name__}"
            )
        if session is not None and session.auth is not None:
            raise ValueError(
                "the session has auth=, but a request has one Authorization, which is our API key: "
                "supply a session without; it can share the connector"
            )
        self._protocol = protocol
        self._given = session
        self._secure = protocol.base_url.startswith("https:")
        self._tls = _tls_context() if self._secure and session is None else True
        self._proxy, self._login = self._find_proxy()
        self.via = None if self._proxy is None else str(self._proxy).rstrip("/")
        self._closed = False
        self._session: aiohttp.ClientSession | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._urls: dict[str, URL] = {}
        self._headers: tuple[object, CIMultiDict[str]] = None, CIMultiDict()

    def _find_proxy(self) -> tuple[URL | None, dict[str, str]]:
        """Return the session's proxy, or the environment's if it is for us; and its header."""
        given = self._given
        if given is not None and proxy_of(given)[0] is not None:
            found = _taken_apart(*proxy_of(given))
        elif self._protocol.loopback or (given is not None and not given.trust_env):
            # What goes to this machine does not leave it for a proxy of the environment, the less
            # so as the key may be in the clear.
            return None, {}
        else:
            # Not by aiohttp's trust_env, which reads netrc, too, and both anew at each call.
            proxy = proxy_from_environment(self._protocol.base_url)
            if proxy is None:
                return None, {}
            found = _taken_apart(proxy.url.reveal(), None)
        if found is None:
            raise ValueError(
                "a proxy's URL must be such as http://proxy.example:3128, for http or https; SOCKS "
                "needs a session with a connector for it. The URL is not shown here, since it may "
                "hold a password, in which %23 stands for #, %2F for /, %3F for ? and %40 for @"
            )
        return found

    # What an exchange asks for.

    def open(self) -> aiohttp.ClientSession:
        """Return the session, or raise why there is none to send with."""
        if self._closed:
            raise RuntimeError("the client is closed")
        if self._given is not None and self._given.closed:
            raise RuntimeError("the session is closed")
        loop = asyncio.get_running_loop()
        if self._session is None:
            self._session = self._make()
            self._loop = loop
        elif loop is not self._loop:
            raise RuntimeError("the client belongs to another event loop: make one client for each")
        return self._session

    def url(self, request: Request) -> URL:
        """Return the URL of a request."""
        return self._urls.get(request.url) or self._urls.setdefault(
            request.url, URL(request.url, encoded=True)
        )

    def headers(self, request: Request) -> CIMultiDict[str]:
        """Return the header fields of a request, made anew only where they differ.

        No variable that an exception could pass may hold them, as they hold the API key.
        """
        if self._headers[0] is not request.hidden_headers:
            self._headers = request.hidden_headers, CIMultiDict(request.headers)
            if not self._secure:
                self._headers[1].update(self._login)
        return self._headers[1]

    def proxy_headers(self) -> dict[str, str] | None:
        """Return what to tell a proxy that is asked for a tunnel."""
        return self._login if self._secure else None

    def check(self, connection: asyncio.WriteTransport) -> None:
        """Raise if a request must not be written on ``connection``, be it connected or not."""
        if self._closed:
            raise RuntimeError("the client is closed")
        peer: tuple[str, ...] | str | None = connection.get_extra_info("peername")
        # One that a session was made with may stand elsewhere: a proxy, and what it connects to. A
        # Unix socket has no pair for its peer.
        if (
            self._protocol.plain_loopback
            and self.via is None
            and isinstance(peer, tuple)
            and not is_loopback(peer[0])
        ):
            raise RuntimeError(
                f"{self._protocol.base_url} is at {peer[0]}, which is not this machine: plain http "
                "would show the API key on the way there; use https, or pass allow_http=True"
            )

    # What opens and closes.

    def _make(self) -> aiohttp.ClientSession:
        loop, given = asyncio.get_running_loop(), self._given
        connector = None if given is None else given.connector
        if connector is None:
            connector = aiohttp.TCPConnector(
                limit=100, keepalive_timeout=IDLE_TIMEOUT, ssl=self._tls
            )
            close_soon(connector)
        try:
            session = aiohttp.ClientSession(
                connector=connector,
                connector_owner=given is None,
                loop=loop,
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                proxy=self._proxy,
                response_class=HeldResponse,
            )
        except RuntimeError:
            raise RuntimeError(
                "the session belongs to another event loop: make it on the one that uses it"
            ) from None
        if given is not None:
            # A session that is not closed complains when it is deleted; this one has nothing to
            # close.
            weakref.finalize(self, session.detach)
        return session

    async def send(self, send: Send) -> Response | Failure:
        """Send once. See `creduse_core.AsyncTransport`."""
        try:
            return await _Exchange(self, send).run()
        except Exception as error:  # noqa: BLE001 - it is nobody's that is known here
            forget_frames(error)  # those of aiohttp hold the headers
            raise ForeignError(error) from None
        except BaseException as error:
            forget_frames(error)
            raise

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)

    def now(self) -> float:
        """Return the time in seconds on the monotonic clock."""
        return time.monotonic()

    async def aclose(self) -> None:
        """Close the session made here, and leave one that was supplied as it is."""
        self._closed = True
        # On another loop: what it had has gone with its own. One over a supplied connector has
        # nothing to close, and those that wait for a connection would lose their place in there.
        if (
            self._given is None
            and self._session is not None
            and self._loop is asyncio.get_running_loop()
        ):
            await self._session.close()


class AsyncCreduseClient(AsyncCoreClient):
    """The Creduse client over aiohttp. Tasks of one event loop can share it.

        async with AsyncCreduseClient() as client:
            await client.add(end_user_id, 100)

    - ``api_key``: else ``CREDUSE_API_KEY`` from the environment.
    - ``session``: an `aiohttp.ClientSession` of your own, for its connector, which has the
      connections and TLS settings, and its proxy: its own, or with ``trust_env=True`` the
      environment's. Its headers, cookies, middlewares, trace configs, timeouts, netrc, and what
      else it would do to a request or a response, are not used. One that has ``auth=`` is rejected.
      It is never closed here.
    - ``base_url``: else ``CREDUSE_BASE_URL``, else the service. Plain http is for loopback hosts,
      unless ``allow_http=True``, or ``CREDUSE_ALLOW_HTTP=1`` and it is not given.
    - ``timeout``: seconds for a whole call, its retries and waits included.
    - ``retry``: when a call is tried again; never where that could apply it twice.
    - ``on_attempt``: called with an `Attempt` after each.

    Wrong arguments raise ``TypeError`` or ``ValueError``, here and in each method, before anything
    is sent. A call that fails raises a `CreduseError`, whose ``outcome`` says whether the credits
    moved. A client belongs to the event loop of its first call, or of its session; make it after a
    fork.
    """

    def __init__(
        self,
        api_key: str | Secret | None = None,
        session: aiohttp.ClientSession | None = None,
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
            AiohttpTransport(protocol, session),
            on_attempt=on_attempt,
            jitter=random.SystemRandom().random,  # not a program's own, nor alike after a fork
        )
