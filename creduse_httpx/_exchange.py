"""One request on its way through httpx: what all clients have in common, ours and supplied ones.

What is known of a request when it ends lives here, and what that means for the core. How it is
known, and any I/O, must not.
"""

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
)
from creduse_core.tls import is_certificate_error

from ._foreign import foreign_cause

# What an exception of httpx or httpx2 says, by its class's name, as the two share the names but
# not the classes: whether a retry can help, and whether time ran out. The most derived wins.
_EXCEPTIONS: Final[Mapping[str, tuple[bool, bool]]] = {
    "TimeoutException": (True, True),
    "NetworkError": (True, False),
    "RemoteProtocolError": (True, False),
    "ProxyError": (True, False),
    "TimeoutError": (True, True),  # our own, as is the next
    "ConnectionResetError": (True, False),
}

_NO_HEAD: Final[tuple[int, list[tuple[bytes, bytes]]]] = (0, [])


class Heads:
    """Keeps what the library makes of a URL and of headers: the calls of a protocol share them.

    Not so those with an idempotency key. It shows nothing, since the headers hold the API key.
    """

    __slots__ = ("_library", "_made")

    def __init__(self, library: ModuleType) -> None:
        """Make them for httpx or httpx2."""
        self._library = library
        self._made: dict[tuple[str, int], tuple[object, Any, Any]] = {}

    def of(self, request: Request) -> tuple[Any, Any]:
        """Return the library's URL and headers for a request."""
        key = (request.url, len(request.body))
        hidden, url, headers = self._made.get(key, (None, None, None))
        if hidden is not request.hidden_headers:
            url = self._library.URL(request.url)
            headers = self._library.Headers(
                [
                    (b"Host", url.netloc),
                    *((name.encode(), value.encode()) for name, value in request.headers),
                    (b"Content-Length", b"%d" % len(request.body)),
                ]
            )
            self._made[key] = request.hidden_headers, url, headers
        return url, headers


class Pieces(AsyncIterator[bytes]):
    """Gives a body. An asynchronous generator would be left open where writing fails."""

    def __init__(self, body: bytes) -> None:
        """Give ``body`` as one piece."""
        self._pieces = [body]

    async def __anext__(self) -> bytes:
        if not self._pieces:
            raise StopAsyncIteration
        return self._pieces.pop()


class Exchange:
    """One request, and what is known of it wherever it ends."""

    def __init__(self, send: Send, now: Callable[[], float]) -> None:
        """Begin: the request's time runs from here."""
        self.send = send
        self.now = now
        self.connect_by = send.connect_by
        self.deadline = send.deadline
        self.sent = False
        """Whether a byte of the request can have left."""
        self.observed = False
        """Whether ``sent`` can be trusted: a mock, or a transport that reports nothing, cannot."""
        self.via: str | None = None
        """The proxy that it goes through."""
        self._request: Any = None
        self._head: tuple[int, list[tuple[bytes, bytes]]] = _NO_HEAD
        self._chunks: list[bytes] = []
        self._size = 0

    def request(
        self, library: ModuleType, heads: Heads, stream: object, extensions: dict[str, Any]
    ) -> Any:
        """Return the library's request. What a client would add to one is not added to it."""
        url, headers = heads.of(self.send.request)
        self._request = library.Request(
            self.send.request.method, url, headers=headers, stream=stream, extensions=extensions
        )
        return self._request

    def left(self) -> float:
        """Return the seconds that are left for the response."""
        return max(0.0, self.deadline - self.now())

    def begin_response(self, response: Any) -> bool:
        """Take the head of the response, and return whether its body is still to be read.

        What stands in front of a transport may have read it, and then its stream is at its end.
        """
        self._head = (response.status_code, response.headers.raw)
        if response.is_stream_consumed:
            self.add(response.content)
        return not response.is_stream_consumed

    def add(self, chunk: bytes) -> None:
        """Take a piece of the body."""
        if not self.too_large:
            self._chunks.append(chunk)
            self._size += len(chunk)

    @property
    def too_large(self) -> bool:
        """Whether there is more of a body than is read; the core says what that means."""
        return self._size > MAX_BODY_SIZE

    def response(self) -> Response:
        """Return the response as far as it came; for when its head has come."""
        status, headers = self._head
        return Response.from_raw(status, headers, b"".join(self._chunks))

    def forget(self, error: BaseException) -> None:
        """Take the API key off what leaves with ``error``: frames, and the library's request."""
        forget_frames(error.error if isinstance(error, ForeignError) else error)
        error.with_traceback(None)
        if self._request is not None:
            self._request.headers.pop("Authorization", None)

    def failed(self, error: Exception) -> Response | Failure:
        """Report that no whole response came, unless that is for its size.

        Raises:
            ForeignError: ``error`` is not the library's.
        """
        foreign = foreign_cause(error)
        self.forget(error)
        if foreign is not None:
            raise ForeignError(foreign)
        if self.too_large:
            return self.response()
        rows = (_EXCEPTIONS.get(base.__name__) for base in type(error).__mro__)
        transient, timed_out = next((row for row in rows if row), (False, False))
        # What was not given to the library is not sent. A mock raises PoolTimeout in place of it.
        unsent = self._request is None or (
            not self.sent and (self.observed or type(error).__name__ == "PoolTimeout")
        )
        return Failure(
            Delivery.NOT_SENT if unsent else Delivery.MAYBE_SENT,
            error,
            transient=transient and not is_certificate_error(error),
            timed_out=timed_out or self.now() >= self.deadline,
            response=None if self._head is _NO_HEAD else self.response(),
            via=self.via,
        )


CLOSED: Final = "the client is closed"


def not_sent(why: str) -> Failure:
    """Report that nothing was sent, nor can be: a closed client, another event loop."""
    return Failure(Delivery.NOT_SENT, RuntimeError(why), transient=False)
