"""One request and its response through httpx, for own connections and for supplied clients.

What is known about a request when it ends, and the result for the core, belong here. I/O does not,
nor how the adapter learns what was sent.
"""

import re
from collections.abc import AsyncIterator, Callable, Mapping
from types import ModuleType
from typing import Any, Final

from creduse_core import (
    MAX_BODY_SIZE,
    Delivery,
    Failure,
    ForeignError,
    Request,
    Response,
    Send,
    forget_frames,
    may_ask_proxy_again,
)
from creduse_core.tls import is_certificate_error

from ._foreign import foreign_cause

# Whether a retry can help, and whether it is a timeout, by the name of the exception's class. httpx
# and httpx2 share the names, but not the classes. The most derived class decides.
_EXCEPTIONS: Final[Mapping[str, tuple[bool, bool]]] = {
    "TimeoutException": (True, True),
    "NetworkError": (True, False),
    "RemoteProtocolError": (True, False),
    "ProxyError": (True, False),  # without a status, as from SOCKS: see `_is_final`
    "TimeoutError": (True, True),  # raised by this adapter, as is the next
    "ConnectionResetError": (True, False),
}

# httpx's text for a proxy that refused a tunnel. No attribute has the status.
_REFUSAL: Final = re.compile(r"([1-5][0-9]{2})( |$)")


def _is_final(error: Exception) -> bool:
    """Return whether no retry can help, though one can after most errors of this class."""
    refusal = _REFUSAL.match(str(error)) if type(error).__name__ == "ProxyError" else None
    return is_certificate_error(error) or (
        refusal is not None and not may_ask_proxy_again(int(refusal[1]))
    )


class HeaderCache:
    """A cache of the URL and headers for each request, as objects of ``library``: httpx or httpx2.

    All calls of a protocol have the same headers, except those with an idempotency key. It has no
    ``repr`` of its own, since the headers hold the API key.
    """

    __slots__ = ("_cached", "_library")

    def __init__(self, library: ModuleType) -> None:
        self._library = library
        self._cached: dict[tuple[str, int], tuple[object, Any, Any]] = {}

    def url_and_headers(self, request: Request) -> tuple[Any, Any]:
        """Return the library's URL and headers for a request."""
        key = (request.url, len(request.body))
        hidden, url, headers = self._cached.get(key, (None, None, None))
        if hidden is not request.hidden_headers:
            url = self._library.URL(request.url)
            headers = self._library.Headers(
                [
                    (b"Host", url.netloc),
                    *((name.encode(), value.encode()) for name, value in request.headers),
                    (b"Content-Length", b"%d" % len(request.body)),
                ]
            )
            self._cached[key] = request.hidden_headers, url, headers
        return url, headers


class BodyIterator(AsyncIterator[bytes]):
    """An asynchronous iterator over a body, in one piece.

    It is not an asynchronous generator, since that stays open if a write fails.
    """

    def __init__(self, body: bytes) -> None:
        self._pieces = [body]

    async def __anext__(self) -> bytes:
        if not self._pieces:
            raise StopAsyncIteration
        return self._pieces.pop()


class Exchange:
    """One request, and what is known about it at each moment."""

    def __init__(self, send: Send, now: Callable[[], float]) -> None:
        """Begin the exchange. ``now`` returns the time on the clock of ``send``."""
        self.send = send
        self.now = now
        self.sent = False
        """Whether a byte of the request can have left."""
        self.sent_is_known = False
        """Whether ``sent`` is reliable. It is not with a mock, which reports nothing."""
        self._request: Any = None
        self._head: tuple[int, list[tuple[bytes, bytes]]] | None = None
        self._chunks: list[bytes] = []
        self._size = 0

    def request(
        self, library: ModuleType, cache: HeaderCache, stream: object, extensions: dict[str, Any]
    ) -> Any:
        """Return the library's request. It has only our headers, not a client's own."""
        url, headers = cache.url_and_headers(self.send.request)
        self._request = library.Request(
            self.send.request.method, url, headers=headers, stream=stream, extensions=extensions
        )
        return self._request

    def time_left(self) -> float:
        """Return the seconds until the deadline, or 0."""
        return max(0.0, self.send.deadline - self.now())

    def receive_head(self, response: Any) -> bool:
        """Store the head of the response, and return whether its body is still to be read.

        A wrapper of a transport can have read the body already. The stream is then at its end.
        """
        self._head = (response.status_code, response.headers.raw)
        if response.is_stream_consumed:
            self.add_chunk(response.content)
        return not response.is_stream_consumed

    def add_chunk(self, chunk: bytes) -> None:
        """Add a piece of the response's body, unless the body is too large already."""
        if not self.too_large:
            self._chunks.append(chunk)
            self._size += len(chunk)

    @property
    def too_large(self) -> bool:
        """Whether the body is larger than `MAX_BODY_SIZE`. The core says what that means."""
        return self._size > MAX_BODY_SIZE

    def response(self) -> Response:
        """Return the response as far as it has arrived. Its head must have arrived."""
        assert self._head is not None  # noqa: S101 - see the docstring
        status, headers = self._head
        return Response.from_raw(status, headers, b"".join(self._chunks))

    def remove_secrets(self, error: BaseException) -> None:
        """Remove the API key from ``error``: from its frames and the library's request."""
        forget_frames(error.error if isinstance(error, ForeignError) else error)
        error.with_traceback(None)
        if self._request is not None:
            self._request.headers.clear()

    def result_of(self, error: Exception) -> Response | Failure:
        """Return the failure, or the partial response if the body was too large.

        Raises:
            ForeignError: ``error`` comes from other code than the libraries.
        """
        foreign = foreign_cause(error)
        self.remove_secrets(error)
        if foreign is not None:
            raise ForeignError(foreign)
        if self.too_large:
            return self.response()
        rows = (_EXCEPTIONS.get(base.__name__) for base in type(error).__mro__)
        transient, timed_out = next((row for row in rows if row), (False, False))
        # Nothing was sent if the library has no request, or if the pool had no connection in time.
        unsent = self._request is None or (
            not self.sent and (self.sent_is_known or type(error).__name__ == "PoolTimeout")
        )
        return Failure(
            Delivery.NOT_SENT if unsent else Delivery.MAYBE_SENT,
            error,
            transient=transient and not _is_final(error),
            timed_out=timed_out or self.now() >= self.send.deadline,
            response=None if self._head is None else self.response(),
        )


NO_CONNECTION: Final = "no connection was available in time"
NO_TIME_TO_SEND: Final = "no time was left to send the request"
NO_WHOLE_RESPONSE: Final = "no whole response arrived in time"


def not_sent(why: str) -> Failure:
    """Return a failure that no retry can help: nothing was sent, because of ``why``."""
    return Failure(Delivery.NOT_SENT, RuntimeError(why), transient=False)
