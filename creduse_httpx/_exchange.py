"""One request on its way through httpx: what the sync and the async client have in common.

What httpx tells of a request's progress decides what a failure means. No exception type does: the
same `httpx.ReadError` comes of a connection that died before and after the request was written.
"""

import socket
import ssl
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from functools import cache
from types import ModuleType
from typing import Any, Final, TypeAlias

import httpx

from creduse_core import (
    MAX_BODY_SIZE,
    CreduseProtocol,
    Delivery,
    Failure,
    Response,
    Send,
    forget_frames,
)

LIMITS: Final = httpx.Limits(
    max_connections=100,
    # httpx's own number. Beyond so many in all httpcore closes what becomes idle; with more its pool
    # takes far longer than to connect anew: for each that is idle it looks at all, at each request.
    max_keepalive_connections=20,
    # Seconds. Servers close an idle connection after 5 and more; a request that meets a closing
    # connection ends as UNKNOWN, so ours go first.
    keepalive_expiry=3.0,
)

# The parts of an exchange in which it waits for the network: within one of them it can be
# cancelled, and at the beginning of one it can be refused, without httpcore losing track of the
# connection. Elsewhere it cannot: encode/httpcore, issue 1093.
_STEPS: Final = frozenset(
    {
        "connect_tcp",
        "connect_unix_socket",
        "start_tls",
        "setup_socks5_connection",
        "retry",
        "send_request_headers",
        "send_request_body",
        "receive_response_headers",
        "receive_response_body",
    }
)

# What an exception of httpx or httpx2 says, by its class's name, as the two share the names but
# not the classes: whether to try again may help, and whether time ran out. The most derived wins.
_EXCEPTIONS: Final[Mapping[str, tuple[bool, bool]]] = {
    "TimeoutException": (True, True),
    "NetworkError": (True, False),
    "RemoteProtocolError": (True, False),
    "ProxyError": (True, False),
    "TimeoutError": (True, True),  # our own, below
}


class _TimeOuts(dict[str, float]):
    """httpx's time-outs for one request, which tell whether httpcore's pool has looked at them."""

    asked = False

    def get(self, key: str, default: Any = None) -> Any:
        """Give a time-out. httpcore asks for ``pool`` first, and before it waits for anything."""
        self.asked = True
        return super().get(key, default)


@cache
def _stream_class(library: ModuleType) -> Any:
    """Give the library's class of a request's body, which is then read as we want it."""

    class Body(library.ByteStream):  # type: ignore[misc,name-defined]  # of one library or the other
        def __init__(self, body: bytes) -> None:
            super().__init__(body)  # pyright: ignore[reportUnknownMemberType]  # as above
            self._body = body

        def __aiter__(self) -> AsyncIterator[bytes]:
            return _Once(self._body)

    return Body


class _Once(AsyncIterator[bytes]):
    """Gives its bytes. An asynchronous generator would be left open where writing fails."""

    def __init__(self, body: bytes) -> None:
        self._pieces = [body]

    async def __anext__(self) -> bytes:
        if not self._pieces:
            raise StopAsyncIteration
        return self._pieces.pop()


Heads: TypeAlias = "dict[tuple[str, int], tuple[object, Any, Any]]"
"""By URL and length of the body: our headers, and the library's URL and headers for them."""

_NOTHING: Final = (None, None, None)

_NO_HEAD: Final[tuple[int, list[tuple[bytes, bytes]]]] = (0, [])


@cache
def _step(name: str) -> tuple[str, str]:
    """Give the step and the stage of it that a trace's name, one of a few, tells of."""
    step, stage = name.split(".")[-2:]
    return step, stage


class Exchange:
    """Keeps what httpx's trace tells of one request, and what comes of it.

    The trace is an extension of the request, so it works on a caller's client too. httpcore calls
    it with the name of a step, such as ``http11.send_request_headers.started``.
    """

    def __init__(self, send: Send, library: ModuleType, now: Callable[[], float]) -> None:
        self.send = send
        self.connected: Any = None
        """The network stream that was connected for this exchange, until it carries it."""
        self._library = library
        self._now = now
        begun = now()
        self._connect_by = begun + send.connect_timeout
        self._answer_by = begun + send.timeout
        self._timeouts = _TimeOuts(
            pool=send.connect_timeout,
            connect=send.connect_timeout,
            write=send.timeout,
            read=send.timeout,
        )
        self._stopped = False
        self._step: str | None = None
        self._traced = False
        self._sent = False
        self._head: tuple[int, list[tuple[bytes, bytes]]] = _NO_HEAD
        self._chunks: list[bytes] = []
        self._size = 0
        self._request: Any = None

    def request(self, heads: Heads, trace: object) -> Any:
        """Make the library's request. What a client would add to one is not added to it.

        ``heads`` keeps what the library makes of a URL and of headers, one for each path and
        length: the calls of a protocol have the same, but for those with an idempotency key.
        """
        if self._stopped:
            raise TimeoutError("no time was left to send the request")
        ours = self.send.request
        pairs, url, headers = heads.get((ours.url, len(ours.body)), _NOTHING)
        if pairs is not ours.hidden_headers:
            url = self._library.URL(ours.url)
            headers = self._library.Headers(
                [
                    (b"Host", url.netloc),
                    *((name.encode(), value.encode()) for name, value in ours.headers),
                    (b"Content-Length", b"%d" % len(ours.body)),
                ]
            )
            heads[ours.url, len(ours.body)] = ours.hidden_headers, url, headers
        self._request = self._library.Request(
            ours.method,
            url,
            headers=headers,
            stream=_stream_class(self._library)(ours.body),
            extensions={"trace": trace, "timeout": self._timeouts},
        )
        return self._request

    def left(self) -> float:
        """Give the seconds that are left for the answer."""
        return max(0.0, self._answer_by - self._now())

    def stop(self) -> float:
        """End it, and say how many seconds to leave it before it is cancelled.

        None where that is safe, or where httpcore is not at work. Else it ends at its next step,
        or when its time in the pool is over; but if it does not, a place in the pool is less than
        a call that does not end.
        """
        self._stopped = True
        if self._step is not None or not self._timeouts.asked:
            return 0.0
        return max(self._connect_by - self._now(), _GRACE)

    def trace(self, name: str, info: dict[str, Any]) -> None:
        """Take note of a step; raise where the next one must not be taken."""
        self._traced = True
        step, stage = _step(name)
        if step not in _STEPS:
            self._step = None
        elif stage == "started":
            self._begin(step, info)
        else:
            self._step = None
            if stage == "complete":
                self._complete(step, info["return_value"])
                # Under trio a task that was ready to go on is cancelled at its next checkpoint,
                # and that is no longer within the step. The last step leads to a safe one.
                if self._stopped and step != "receive_response_body":
                    raise TimeoutError("no time was left to go on")

    def _begin(self, step: str, info: dict[str, Any]) -> None:
        # A time-out of httpx's is for one step; what is left of the whole goes to each anew.
        # ``info`` holds the arguments of the step, a time-out among them if it has been read.
        now = self._now()
        left = self._answer_by - now
        if self._stopped or (left <= 0 and not self._sent):
            raise TimeoutError("no time was left to send the request")
        self._timeouts["write"] = self._timeouts["read"] = max(left, _SHORTEST)
        if "timeout" in info:
            info["timeout"] = max(self._connect_by - now, _SHORTEST)
        # CONNECT goes to a proxy and carries nothing of the request.
        if step == "send_request_headers" and info["request"].method != b"CONNECT":
            self._sent = True
            self.connected = None
        self._step = step

    def _complete(self, step: str, value: Any) -> None:
        if step in {"connect_tcp", "connect_unix_socket"}:
            self.connected = value
        elif self._sent and step == "receive_response_headers" and len(value) == 4:
            # As HTTP/1.1 reports it, and not a proxy's answer to CONNECT.
            _, status, _, headers = value
            self._head = (status, headers)

    def head(self, response: Any) -> None:
        """Take the head from the library's response, which may have come without a trace."""
        self._head = (response.status_code, response.headers.raw)

    def body(self, chunk: bytes) -> bool:
        """Take a piece of the body; say whether to wait for more.

        If not, `discard` the connection and go on: what has arrived by now still counts, and
        behind it is the end. To leave the iterator where it is would leave it open.
        """
        if not self.too_large:
            self._chunks.append(chunk)
            self._size += len(chunk)
        return not self.too_large and self._now() < self._answer_by

    @property
    def too_large(self) -> bool:
        """Whether there is more of a body than is read; the core says what that means."""
        return self._size > MAX_BODY_SIZE

    def whole(self) -> Response:
        """Give the answer as far as it came; for when its head has come."""
        status, headers = self._head
        pairs = ((name.decode("latin-1"), value.decode("latin-1")) for name, value in headers)
        return Response(status, pairs, b"".join(self._chunks))

    def failed(self, error: Exception) -> Response | Failure:
        """Report that no whole answer came, unless that is for its size."""
        if self.too_large:
            return self.whole()
        forget_frames(error)
        if self._request is not None:  # an exception may carry it, and with it the key
            self._request.headers.pop("Authorization", None)
        rows = (_EXCEPTIONS.get(base.__name__) for base in type(error).__mro__)
        transient, timed_out = next((row for row in rows if row), (False, False))
        # A transport that does not trace tells nothing, except that PoolTimeout comes before all.
        unsent = self._request is None or (
            not self._sent and (self._traced or type(error).__name__ == "PoolTimeout")
        )
        return Failure(
            Delivery.NOT_SENT if unsent else Delivery.MAYBE_SENT,
            error,
            transient=transient and not _is_certificate(error),
            timed_out=timed_out or self._now() >= self._answer_by,
            response=None if self._head is _NO_HEAD else self.whole(),
        )


_GRACE: Final = 0.2
"""Seconds for what takes none: what httpcore does between two steps."""

_SHORTEST: Final = 0.001
"""Seconds. A socket takes a time-out of 0 to mean that it should not wait, and says so oddly."""


def _is_certificate(error: BaseException | None) -> bool:
    """Say whether a certificate was refused, which no second attempt mends."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return True
        error = error.__cause__ or error.__context__
    return False


def not_sent(why: str) -> Failure:
    """Report that nothing was sent, nor can be: a closed client, another event loop."""
    return Failure(Delivery.NOT_SENT, RuntimeError(why), transient=False)


def library_of(http_client: object, name: str) -> ModuleType:
    """Give the library of a client, httpx or httpx2; refuse what is no client of either."""
    for base in type(http_client).__mro__:
        if base.__module__ in {"httpx", "httpx2"} and base.__name__ == name:
            return sys.modules[base.__module__]
    raise TypeError(
        f"http_client must be an httpx.{name} (or httpx2.{name}), not {type(http_client).__name__}"
    )


def way(client: Any, request: Any) -> Any:
    """Give the transport that a client has for a request: its connections, or those to a proxy.

    Not the client itself: its auth, cookies and redirects would change what is sent, and its event
    hooks, of which ``raise_for_status`` is a common one, would take the answer away from us. It
    has no public name for this, and httpx and httpx2 the same.
    """
    return client._transport_for_url(request.url)  # noqa: SLF001 - see above


def settings(protocol: CreduseProtocol) -> dict[str, Any]:
    """Give what a client of ours is made with. One TLS context serves it; plain http needs none.

    ``SSL_CERT_FILE``, ``SSL_CERT_DIR`` and the variables for proxies are httpx's to read; but what
    goes to this machine does not leave it for a proxy, the less so as the key may be in the clear.
    """
    secure = protocol.base_url.startswith("https:")
    return {
        "verify": httpx.create_ssl_context() if secure else None,
        "limits": LIMITS,
        "trust_env": not protocol.loopback,
    }


def no_client(error: Exception) -> Failure:
    """Report that no client could be made, for which the environment is the only reason."""
    why = f"no HTTP client could be made; see SSL_CERT_FILE, SSL_CERT_DIR, *_PROXY: {error}"
    return not_sent(why)


def discard(response: Any) -> bool:
    """See to it that the connection of this response is not used again; for before its close.

    Say whether there was one to be seen.

    Shutting down the socket is the way that works on every backend: the pool finds the connection
    at its end. Closing the network stream itself makes httpcore raise under trio. Through a
    duplicate of the descriptor, since uvloop's sockets have no ``shutdown``.
    """
    stream = response.extensions.get("network_stream")
    ours = None if stream is None else stream.get_extra_info("socket")
    if ours is not None:
        with (
            suppress(OSError),  # it is closed already
            socket.fromfd(ours.fileno(), ours.family, ours.type) as twin,
        ):
            twin.shutdown(socket.SHUT_RDWR)
    return ours is not None
