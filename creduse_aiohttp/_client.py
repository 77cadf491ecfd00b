"""The client over aiohttp, its transport, and the exchange of one request for a response.

No exception type of aiohttp says whether a request was sent. The request's body object says it.
Private names of aiohttp do not belong here, but in `_private_api`.
"""

import asyncio
import functools
import ssl
import time
import weakref
from collections.abc import Callable, Mapping
from typing import Any, Final

import aiohttp
from aiohttp.abc import AbstractStreamWriter
from aiohttp.payload import Payload
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from creduse_core import (
    DEFAULT_RETRY,
    MAX_BODY_SIZE,
    AsyncCoreClient,
    Attempt,
    CreduseProtocol,
    Delivery,
    Failure,
    FinishedCall,
    ForeignError,
    Pace,
    Proxy,
    Request,
    Response,
    RetryPolicy,
    Secret,
    Send,
    exception_chain,
    forget_frames,
    is_foreign,
    is_loopback,
    may_ask_proxy_again,
    protocol_from_environment,
    proxy_for,
)
from creduse_core.arguments import SHORT_TRACEBACK, check_not_both
from creduse_core.error_texts import CLOSED, OTHER_EVENT_LOOP, not_loopback_message
from creduse_core.pool import IDLE_TIMEOUT
from creduse_core.tls import check_client_context, client_context, detect_partial_records

from ._deadlines import Deadlines
from ._private_api import (
    HeldResponse,
    is_readable,
    is_usable,
    prepare_for_reuse,
    proxy_of,
    set_tls_shutdown_timeout,
)

# Whether a retry can help, by the exception's class. The most derived class decides.
_TRANSIENT: Final[Mapping[type, bool]] = {
    aiohttp.ClientError: True,
    OSError: True,  # TimeoutError is a subclass
    aiohttp.ClientConnectorCertificateError: False,
    aiohttp.ServerFingerprintMismatch: False,
    aiohttp.InvalidURL: False,
    Exception: False,
}

_LIBRARIES: Final = frozenset(
    {
        *("aiohttp", "creduse_aiohttp", "creduse_core"),
        # Their dependencies.
        *("aiohappyeyeballs", "idna", "multidict", "uvloop", "yarl"),
        # Replacements for parts of aiohttp: resolvers, connectors to SOCKS proxies, mocks.
        *("aiodns", "pycares", "aiohttp_socks", "python_socks", "aioresponses", "vcr"),
    }
)
"""Top-level modules whose exceptions are the transport's own, as are the standard library's."""

# An endless run of interim responses trips none of aiohttp's timeouts.
_NO_TIMEOUTS: Final = aiohttp.ClientTimeout()
_NO_HEADERS: Final = CIMultiDictProxy(CIMultiDict[str]())

# Calls have a few URLs and peers in all.
_url: Final = functools.lru_cache(functools.partial(URL, encoded=True))
_is_loopback: Final = functools.lru_cache(is_loopback)


class _Exchange(Payload):
    """One request and its response. It is also the body that aiohttp writes.

    So it learns when the request is written and on which connection, over any connector.
    ``consumed`` says that the request may have been sent. aiohttp itself resends a GET whose
    connection is lost (aio-libs/aiohttp, issue 10790), but not if its body is consumed.
    """

    _connection: asyncio.WriteTransport | None = None
    _response: aiohttp.ClientResponse | None = None
    _write_error: Exception | None = None
    """Why nothing was written. aiohttp's own exception does not say why."""

    def __init__(self, transport: "AiohttpTransport", send: Send) -> None:
        super().__init__(send.request.body)
        self._transport = transport
        self._send = send
        self._chunks: list[bytes] = []
        self._deadline = send.connect_by  # then, once the request is written, send.deadline
        self._timeout = asyncio.timeout_at(None)

    @property
    def size(self) -> int:
        """The length of the body."""
        return len(self._send.request.body)

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Return the body as text. Mocks show it."""
        return self._send.request.body.decode(encoding, errors)

    def __reduce__(self) -> tuple[type[bytes], tuple[bytes]]:
        """Copy this as the bytes of the body. vcrpy copies what it records."""
        return bytes, (self._send.request.body,)

    # Methods that aiohttp calls.

    async def write(
        self,
        writer: AbstractStreamWriter,
        content_length: int | None = None,  # noqa: ARG002 - it is the body's length
    ) -> None:
        """Write the head and the body, or raise before anything is sent."""
        self._connection = writer.transport
        try:
            await self._check_before_write(writer.transport)
        except Exception as error:
            self._write_error = error
            raise
        self._deadline = self._send.deadline
        self._transport.deadlines.set(self._timeout, self._deadline)
        self._consumed = True
        await writer.write(self._send.request.body)

    write_with_length = write

    async def _check_before_write(self, connection: asyncio.WriteTransport | None) -> None:
        """Raise if the request must not be written on the connection now."""
        while True:
            if self.consumed or connection is None or not is_usable(connection):
                raise ConnectionResetError(
                    "the connection was lost, or the server had sent data before the request"
                )
            if not is_readable(connection):
                break
            await asyncio.sleep(0)  # the loop reads it: the end, unrequested data, or a TLS ticket
        self._transport.check_connection(connection)
        if time.monotonic() >= self._deadline:
            raise TimeoutError("no time was left to send the request")
        self._timeout.reschedule(None)  # raises if the exchange is over

    # Methods that the transport uses.

    async def run(self) -> Response | Failure:
        """Send the request and return the response or the failure."""
        try:
            return await self._exchange()
        except Exception as error:  # noqa: BLE001 - the libraries' become failures
            return self._failure_of(error)

    async def _exchange(self) -> Response:
        keep = False
        session, deadlines = self._transport.get_session(), self._transport.deadlines
        try:
            async with self._timeout:
                deadlines.set(self._timeout, self._deadline)
                self._response = await self._request(session)
                response = await self._read(self._response)
            keep = self._send.allows_reuse(response)
            return response
        finally:
            deadlines.discard(self._timeout)
            self._release(keep=keep)

    def _release(self, *, keep: bool) -> None:
        response, connection = self._response, self._connection
        # If vcrpy has read the response before, the connection is released already.
        if connection is not None and response is not None and response.connection is not None:
            keep = keep and prepare_for_reuse(connection)
        if connection is not None and not keep:
            # A close would wait until the peer ends TLS.
            connection.abort()
        if response is not None:
            (response.release if keep else response.close)()

    async def _request(self, session: aiohttp.ClientSession) -> aiohttp.ClientResponse:
        request, transport = self._send.request, self._transport
        cancellations = _cancellation_count()
        if cancellations:
            await asyncio.sleep(0)  # so that a pending cancellation is delivered here
        try:
            response = await session.request(
                request.method,
                _url(request.url),
                headers=transport.headers(request),
                proxy_headers=transport.proxy_headers(),
                data=self,
                allow_redirects=False,
                timeout=_NO_TIMEOUTS,
            )
        except asyncio.CancelledError:
            if not session.closed or _cancellation_count() > cancellations:
                raise
            # aiohttp ends the wait for a connection this way. Nobody cancelled this task.
            raise RuntimeError("the session was closed") from None
        # A response without a version is a mock's, and came over no connection.
        if not self.consumed and response.version is not None:
            # Before Python 3.12 aiohttp writes in a task, and does not always wait for it.
            response.close()
            raise ConnectionResetError("the server had sent data before the request")
        return response

    async def _read(self, response: aiohttp.ClientResponse) -> Response:
        size = 0
        while size <= MAX_BODY_SIZE and not response.content.at_eof():
            chunk = await response.content.readany()
            self._chunks.append(chunk)
            size += len(chunk)
        return self._response_so_far(response)

    def _response_so_far(self, response: aiohttp.ClientResponse) -> Response:
        return Response.from_raw(response.status, response.raw_headers, b"".join(self._chunks))

    def _failure_of(self, error: Exception) -> Failure:
        for link in exception_chain(error, contexts=False):  # aiohttp chains with ``from``
            if isinstance(link, Exception) and is_foreign(link, _LIBRARIES):
                raise link from None
        if self._write_error is not None and not self.consumed:
            error = self._write_error
        forget_frames(error)
        if isinstance(error, aiohttp.ClientResponseError):
            # aiohttp raises it for an invalid response or a proxy's refusal. It holds the API key, and
            # a status of aiohttp's own, which is not to be trusted.
            if error.request_info is not None:  # pyright: ignore[reportUnnecessaryComparison]  # a mock's can be None
                error.request_info = error.request_info._replace(headers=_NO_HEADERS)
            error.args = (error.request_info, error.history)
        return Failure(
            Delivery.MAYBE_SENT if self.consumed else Delivery.NOT_SENT,
            error,
            transient=_is_transient(error),
            timed_out=self._timeout.expired() or time.monotonic() >= self._deadline,
            response=None if self._response is None else self._response_so_far(self._response),
        )


def _is_transient(error: Exception) -> bool:
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return may_ask_proxy_again(error.status)
    return next(_TRANSIENT[base] for base in type(error).__mro__ if base in _TRANSIENT)


def _cancellation_count() -> int:
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()


def _split_login(proxy: str | URL, login: Any) -> tuple[URL, dict[str, str], Proxy] | None:
    """Return a proxy's URL without login, its auth header, and all of it; or ``None`` if it is invalid.

    Then no exception of aiohttp can hold the password. This function does not raise, since its
    frame holds the password.
    """
    headers: dict[str, str] = {}
    try:
        url = URL(proxy)
        if login is not None:
            headers["Proxy-Authorization"] = login.encode()
            url = url.with_user(login.login).with_password(login.password)
        elif url.raw_user is not None or url.raw_password is not None:
            headers["Proxy-Authorization"] = aiohttp.encode_basic_auth(
                url.user or "", url.password or ""
            )
        bare = url.with_user(None)
        usable = bare.scheme in {"http", "https"} and str(bare.relative()) in {"", "/"}
    except ValueError:
        return None
    shown = str(bare).rstrip("/")
    return (bare, headers, Proxy(shown, Secret(str(url)))) if usable else None


class AiohttpTransport:
    """A transport over its own session, which it makes at the first call.

    It uses the connector of a supplied session, but not the session itself. A session changes
    requests and handles responses, and has no public way to turn all of that off.
    """

    libraries = _LIBRARIES

    def __init__(
        self,
        protocol: CreduseProtocol,
        session: aiohttp.ClientSession | None,
        ssl_context: ssl.SSLContext | None = None,
        proxy: str | None = None,
    ) -> None:
        if session is not None and not isinstance(session, aiohttp.ClientSession):  # pyright: ignore[reportUnnecessaryIsInstance]  # callers are not all typed
            raise TypeError(
                f"session must be an aiohttp.ClientSession, not {type(session).__name__}"
            )
        if session is not None and session.auth is not None:
            raise ValueError(
                "the session has auth=, but the Authorization header is for the API key: pass a "
                "session without auth=, which can share the connector"
            )
        self._protocol = protocol
        self._supplied = session
        self._secure = protocol.base_url.startswith("https:")
        if session is not None:
            check_not_both("session", ssl_context=ssl_context, proxy=proxy)
        check_client_context(ssl_context)
        self._proxy, self._proxy_auth, self.proxy = self._find_proxy(proxy)
        self._ssl: ssl.SSLContext | bool = True
        proxy_is_secure = self._proxy is not None and self._proxy.scheme == "https"
        if session is None and (self._secure or proxy_is_secure):
            self._ssl = ssl_context or client_context()
            detect_partial_records(self._ssl)
        self._closed = False
        self._session: aiohttp.ClientSession | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self.deadlines = Deadlines()
        self._headers: tuple[object, CIMultiDict[str]] = None, CIMultiDict()

    def _find_proxy(self, given: str | None) -> tuple[URL | None, dict[str, str], Proxy | None]:
        """Return the session's proxy, the given one or the environment's, and its auth header."""
        supplied = self._supplied
        if supplied is not None and proxy_of(supplied)[0] is not None:
            found = _split_login(*proxy_of(supplied))
        elif supplied is not None and not supplied.trust_env:
            return None, {}, None
        else:
            # Not with aiohttp's trust_env, which also reads netrc, and reads both at each call.
            proxy = proxy_for(self._protocol, given)
            if proxy is None:
                return None, {}, None
            found = _split_login(proxy.url.reveal(), None)
        if found is None:
            raise ValueError(
                "the proxy must be an http or https URL such as http://proxy.example:3128; for "
                "SOCKS, pass a session with a SOCKS connector. The URL is not shown here, since it "
                "can hold a password, in which %23 stands for #, %2F for /, %3F for ? and %40 for @"
            )
        return found

    # Methods that an exchange uses.

    def get_session(self) -> aiohttp.ClientSession:
        """Return the session, or raise if the client cannot send."""
        if self._closed:
            raise RuntimeError(CLOSED)
        if self._supplied is not None and self._supplied.closed:
            raise RuntimeError("the session is closed")
        loop = asyncio.get_running_loop()
        if self._session is None:
            self._session = self._new_session()
            self._loop = loop
        elif loop is not self._loop:
            raise RuntimeError(OTHER_EVENT_LOOP)
        return self._session

    def headers(self, request: Request) -> CIMultiDict[str]:
        """Return the header fields of a request. They are made again only if they change.

        Do not keep them in a variable: tools that show the variables of a failure would show the
        API key.
        """
        if self._headers[0] is not request.hidden_headers:
            self._headers = request.hidden_headers, CIMultiDict(request.headers)
            if not self._secure:
                self._headers[1].update(self._proxy_auth)
        return self._headers[1]

    def proxy_headers(self) -> dict[str, str] | None:
        """Return the headers for the proxy's CONNECT request, if it makes a tunnel."""
        return self._proxy_auth if self._secure else None

    def check_connection(self, connection: asyncio.WriteTransport) -> None:
        """Raise if a request must not be written on ``connection``."""
        if self._closed:
            raise RuntimeError(CLOSED)
        peer: tuple[str, ...] | str | None = connection.get_extra_info("peername")
        # A session's proxy can be on another machine. A Unix socket's peer is not a tuple.
        if (
            self._protocol.plain_loopback
            and self._proxy is None
            and isinstance(peer, tuple)
            and not _is_loopback(peer[0])
        ):
            raise RuntimeError(not_loopback_message(self._protocol.base_url, peer[0]))

    # Opening, sending and closing.

    def _new_session(self) -> aiohttp.ClientSession:
        loop, supplied = asyncio.get_running_loop(), self._supplied
        connector = None if supplied is None else supplied.connector
        if connector is None:
            connector = aiohttp.TCPConnector(
                limit=100, keepalive_timeout=IDLE_TIMEOUT, ssl=self._ssl
            )
            set_tls_shutdown_timeout(connector)
        try:
            session = aiohttp.ClientSession(
                connector=connector,
                connector_owner=supplied is None,
                loop=loop,
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                proxy=self._proxy,
                response_class=HeldResponse,
            )
        except RuntimeError:
            raise RuntimeError(
                "the session belongs to another event loop: make it on the loop that uses it"
            ) from None
        if supplied is not None:
            # aiohttp warns when a session is deleted before it is closed. This one owns nothing.
            weakref.finalize(self, session.detach)
        return session

    async def send(self, send: Send) -> Response | Failure:
        """Send once. See `creduse_core.AsyncTransport`."""
        try:
            return await _Exchange(self, send).run()
        except Exception as error:  # noqa: BLE001 - run() handles the libraries'
            forget_frames(error)  # aiohttp's frames hold the headers
            raise ForeignError(error) from None
        except BaseException as error:
            forget_frames(error)
            raise

    async def sleep(self, seconds: float) -> None:
        """Wait for this time."""
        await asyncio.sleep(seconds)

    def now(self) -> float:
        """Return the time in seconds on the monotonic clock."""
        return time.monotonic()

    async def aclose(self) -> None:
        """Close the transport's own session. A supplied one stays open."""
        self._closed = True
        # Only its own loop can close a session.
        if self._session is None or self._loop is not asyncio.get_running_loop():
            return
        self.deadlines.close()
        # A session over a supplied connector owns nothing, and to close it would cancel the calls
        # that wait for a connection.
        if self._supplied is None:
            await self._session.close()


class AsyncCreduseClient(AsyncCoreClient):
    """A Creduse client over aiohttp. Tasks of one event loop can share it.

    Example::

        async with AsyncCreduseClient() as client:
            await client.add(end_user_id, 100)

    - ``api_key``: the API key. Default: ``CREDUSE_API_KEY`` from the environment.
    - ``session``: an `aiohttp.ClientSession`. The client uses its connector, with its connections
      and TLS settings, and its proxy. With ``trust_env=True``, that can be the environment's proxy.
      The client uses nothing else of the session, such as headers, cookies, middlewares or
      timeouts, and never closes it. A session with ``auth=`` is rejected. Default: the client makes
      its own session.
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
      that trusts the system's certificates, and those in ``SSL_CERT_FILE``. The
      client sets its ``sslobject_class``.
    - ``proxy``: the URL of an http or https proxy, such as
      ``http://user:password@proxy.example:3128``. Default: that of ``HTTPS_PROXY`` and the like; none
      for calls to this machine.
    - ``extra_headers``: further header fields of each request, such as a gateway's token. The client's
      own are rejected. Reprs hide the values. Errors hide those that are a `Secret`.

    A wrong argument raises ``TypeError`` or ``ValueError``, here and in each method, before
    anything is sent. A call that fails raises a `CreduseError`, whose ``outcome`` says whether
    credits moved. A client belongs to the event loop of its session, or of its first call. If you
    fork, make the client after the fork.
    """

    def __init__(  # noqa: PLR0913 - each has a default
        self,
        api_key: str | Secret | None = None,
        session: aiohttp.ClientSession | None = None,
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
                AiohttpTransport(protocol, session, ssl_context, proxy),
                on_attempt=on_attempt,
                on_call=on_call,
                pace=pace,
            )
