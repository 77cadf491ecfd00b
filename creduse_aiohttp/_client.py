"""The client over aiohttp, its transport, and the exchange of one request for one answer.

No exception type of aiohttp says whether a request was sent: the body that it is given does.
"""

import asyncio
import random
import ssl
import time
import weakref
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

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
    Response,
    RetryPolicy,
    Send,
    forget_frames,
    protocol_from_environment,
)

# Whether to try again may help, by what went wrong; the most derived class wins.
_TRANSIENT: Final[Mapping[type, bool]] = {
    aiohttp.ClientError: True,
    OSError: True,  # TimeoutError is one
    aiohttp.ClientConnectorCertificateError: False,
    aiohttp.ServerFingerprintMismatch: False,
    aiohttp.InvalidURL: False,
    Exception: False,
}

_KEEPALIVE: Final = 3.0
"""Seconds. Servers close an idle connection after 5 and more; a request that meets a closing
connection ends as UNKNOWN, so ours go first."""

_NO_TIMEOUTS: Final = aiohttp.ClientTimeout()
_NO_HEADERS: Final = CIMultiDictProxy(CIMultiDict[str]())


_USERS: Final[weakref.WeakKeyDictionary[object, object]] = weakref.WeakKeyDictionary()
"""By connection (aiohttp's protocol), the exchange that was the last to write on it. aiohttp gives a
connection to the next as soon as an answer is in, which may be before its own exchange goes on."""


class _Exchange(BytesPayload):
    """One request, and what comes of it. It is itself the body that aiohttp writes.

    So it is told of the moment of writing and of the connection, whatever carries the request:
    ``consumed`` says that it may have been sent. aiohttp sends a GET a second time by itself when
    its connection is lost (aio-libs/aiohttp, issue 10790), but not one whose body is consumed.
    """

    _transport: asyncio.WriteTransport | None = None
    _connection: object
    _response: aiohttp.ClientResponse | None = None
    _refused: Exception | None = None
    """Why nothing was written. aiohttp would only say that it was not."""

    def __init__(self, send: Send) -> None:
        super().__init__(send.request.body)
        self._send = send
        self._chunks: list[bytes] = []
        now = time.monotonic()  # the clock of uvloop's loops is too coarse to tell
        self._by = now + send.connect_timeout  # and from when it is written:
        self._answer_by = now + send.timeout
        self._deadline = asyncio.timeout(None)
        self._set_timer(now)

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
        transport = writer.transport
        if (
            self.consumed
            or transport is None
            or transport.is_closing()
            # What comes in on an idle connection is kept, and would be taken for our answer.
            or transport.get_protocol().should_close  # type: ignore[attr-defined]  # it is aiohttp's
        ):
            self._refused = ConnectionResetError(
                "the connection was lost, or held what nobody had asked for"
            )
            raise self._refused
        now = time.monotonic()
        if now >= self._by:
            raise TimeoutError("no time was left to send the request")
        self._deadline.reschedule(None)  # raises if the exchange is over
        self._by = self._answer_by
        self._consumed, self._transport = True, transport
        self._connection = transport.get_protocol()
        _USERS[self._connection] = self
        await writer.write(self._send.request.body)

    write_with_length = write

    # What we do.

    async def run(self, session: aiohttp.ClientSession, url: URL) -> Response | Failure:
        """Send, and read the answer."""
        whole = keep = False
        try:
            async with self._deadline:
                self._response = await self._request(session, url)
                answer = await self._read(self._response)
            whole, keep = True, self._send.belongs(answer)
        except Exception as error:  # noqa: BLE001 - none of a library's leaves as itself
            return self._failed(error)
        else:
            return answer
        finally:
            self._timer.cancel()
            # First, since to close a connection waits for TLS to be closed on the other side.
            if (
                self._transport is not None
                and not keep
                and (whole or _USERS[self._connection] is self)
            ):
                self._transport.abort()
            if self._response is not None:
                self._response.close()

    async def _request(self, session: aiohttp.ClientSession, url: URL) -> aiohttp.ClientResponse:
        request = self._send.request
        cancellations = _cancellations()
        if cancellations:
            await asyncio.sleep(0)  # where one that is still to be delivered is
        try:
            response = await session.request(
                request.method,
                url,
                headers=request.headers,
                data=self,
                allow_redirects=False,
                timeout=_NO_TIMEOUTS,
            )
        except ValueError as error:
            if "AUTHORIZATION" not in str(error):
                raise
            raise RuntimeError(
                f"netrc has a login for {url.host}, which the session reads for its trust_env=True, "
                "but a request has one Authorization, which is our API key: "
                "hand in a session without; it can share the connector"
            ) from None
        except asyncio.CancelledError:
            if not session.closed or _cancellations() > cancellations:
                raise
            # Nobody has cancelled us: aiohttp ends the wait for a connection in this way.
            raise RuntimeError("the session was closed") from None
        # An answer without a version has come over no connection: a mock in aiohttp's place made it.
        if not self.consumed and response.version is not None:
            # Before Python 3.12 aiohttp writes in a task, which it may find no reason to wait for.
            response.close()
            raise ConnectionResetError("the connection held an answer that nobody had asked for")
        return response

    async def _read(self, response: aiohttp.ClientResponse) -> Response:
        size = 0
        async for chunk in response.content.iter_any():
            self._chunks.append(chunk)
            size += len(chunk)
            if size > MAX_BODY_SIZE:
                break
        return self._answer(response)

    def _answer(self, response: aiohttp.ClientResponse) -> Response:
        pairs = (
            (name.decode("latin-1"), value.decode("latin-1"))
            for name, value in response.raw_headers
        )
        return Response(response.status, pairs, b"".join(self._chunks))

    def _failed(self, error: Exception) -> Failure:
        if self._refused is not None and not self.consumed:
            error = self._refused
        forget_frames(error)
        if isinstance(error, aiohttp.ClientResponseError):
            # It is what aiohttp makes of bytes that are no answer, and it carries the key; or of a
            # proxy's refusal, and then the proxy's password.
            told, url = error.request_info, error.request_info.real_url
            error.request_info = told._replace(
                headers=_NO_HEADERS,
                real_url=url.with_user(None) if url.absolute else url,  # as a mock's may not be
            )
            error.args = (error.request_info, error.history)
        return Failure(
            Delivery.MAYBE_SENT if self.consumed else Delivery.NOT_SENT,
            error,
            transient=next(_TRANSIENT[base] for base in type(error).__mro__ if base in _TRANSIENT),
            timed_out=self._deadline.expired() or time.monotonic() >= self._by,
            response=None if self._response is None else self._answer(self._response),
        )


def _cancellations() -> int:
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()


def _proxy(base_url: str) -> str | None:
    """Give the proxy that the environment names for a URL, from the variables that httpx reads."""
    proxies, parts = getproxies(), urlsplit(base_url)
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or proxy_bypass(parts.netloc):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


class AiohttpTransport:
    """Sends over a session of its own, made at the first call.

    One that it is given lends its connector to that: all that a session adds to requests, and does
    with answers, is its own, and there is no public way to turn all of it off for one request.
    """

    def __init__(self, protocol: CreduseProtocol, session: aiohttp.ClientSession | None) -> None:
        if session is not None and not isinstance(session, aiohttp.ClientSession):  # pyright: ignore[reportUnnecessaryIsInstance]  # callers are not all typed
            raise TypeError(
                f"session must be an aiohttp.ClientSession, not {type(session).__name__}"
            )
        self._protocol = protocol
        self._given = session
        self._closed = False
        self._session: aiohttp.ClientSession | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._urls: dict[str, URL] = {}

    def _open(self) -> aiohttp.ClientSession:
        """Give the session, or raise why there is none to send with."""
        if self._closed:
            raise RuntimeError("the client is closed")
        if self._given is not None and self._given.closed:
            raise RuntimeError("the session is closed")
        loop = asyncio.get_running_loop()
        if self._session is None:
            self._session = self._make() if self._given is None else self._borrow(self._given)
            self._loop = loop
        elif loop is not self._loop:
            raise RuntimeError("the client belongs to another event loop: make one client for each")
        return self._session

    def _make(self) -> aiohttp.ClientSession:
        # What goes to this machine does not leave it for a proxy, the less so as the key may be in
        # the clear. Not by trust_env, which also reads netrc, and looks for it anew at each call.
        proxy = None if self._protocol.loopback else _proxy(self._protocol.base_url)
        if proxy is not None and urlsplit(proxy).scheme not in {"http", "https"}:
            raise RuntimeError(
                f"no proxy of this kind can be used: {urlsplit(proxy).scheme}; "
                "see HTTPS_PROXY, HTTP_PROXY, ALL_PROXY"
            )
        # aiohttp's own context is as the environment was when aiohttp was imported.
        secure = self._protocol.base_url.startswith("https:")
        context = ssl.create_default_context() if secure else True
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=100, keepalive_timeout=_KEEPALIVE, ssl=context),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            proxy=proxy,
        )

    def _borrow(self, given: aiohttp.ClientSession) -> aiohttp.ClientSession:
        """Make a session of ours over the connector and the proxies of ``given``."""
        if given.auth is not None:
            raise RuntimeError(
                "the session has auth=, but a request has one Authorization, which is our API key: "
                "hand in a session without; it can share the connector"
            )
        # What a session has for a proxy cannot be read otherwise, and to go past it would be wrong.
        proxy = given._default_proxy  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # see above
        auth: Any = given._default_proxy_auth  # noqa: SLF001  # pyright: ignore[reportPrivateUsage, reportUnknownMemberType]  # see above
        if proxy is not None and auth is not None:
            proxy = URL(proxy).with_user(auth.login).with_password(auth.password)
        try:
            session = aiohttp.ClientSession(
                connector=given.connector,
                connector_owner=False,
                loop=asyncio.get_running_loop(),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                proxy=proxy,
                # As in _make. With it comes netrc; see _request.
                trust_env=given.trust_env
                and not (self._protocol.loopback and _proxy(self._protocol.base_url)),
            )
        except RuntimeError:
            raise RuntimeError(
                "the session belongs to another event loop: make it on the one that uses it"
            ) from None
        # A session that is not closed complains when it is deleted; this one has nothing to close.
        weakref.finalize(self, session.detach)
        return session

    async def send(self, send: Send) -> Response | Failure:
        """Send once. See `creduse_core.AsyncTransport`."""
        try:
            session = self._open()
            url = self._urls.get(send.request.url) or self._urls.setdefault(
                send.request.url, URL(send.request.url, encoded=True)
            )
        except Exception as error:  # noqa: BLE001 - whatever keeps it from being sent
            return Failure(Delivery.NOT_SENT, error, transient=False)
        return await _Exchange(send).run(session, url)

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)

    def now(self) -> float:
        """Give the time in seconds on the monotonic clock."""
        return time.monotonic()

    async def aclose(self) -> None:
        """Close the session made here, and leave one that was lent as it is."""
        self._closed = True
        # On another loop: what it had has gone with its own. One over a connector that was lent has
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
      connections and TLS settings, and its proxies. Its headers, cookies, middlewares, trace
      configs, time-outs and what else it would do to a request or an answer are not used. One that
      has ``auth=``, or that finds a login for the host in netrc, is refused at the first call. It
      is never closed here.
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
        api_key: str | None = None,
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
            jitter=random.random,
        )
