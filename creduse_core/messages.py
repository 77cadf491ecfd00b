"""What passes between the core and a transport: a request, a response, or a failure.

These are whole HTTP messages, not bytes. Only plain data belongs here. I/O, types of HTTP libraries
and the meaning of a response do not.
"""

import enum
from collections.abc import Iterable

from .records import dataclass, field_setter
from .secret import Secret, no_pickle

MAX_BODY_SIZE = 1024 * 1024
"""Bytes. A transport stops reading a larger body, and returns what it has read. The core then says
that the response is too large."""

HeaderPairs = tuple[tuple[str, str], ...]

_SECRET_HEADERS = frozenset({"authorization", "proxy-authorization"})


class HiddenHeaders(tuple[tuple[str, str | Secret], ...]):
    """Header fields in which each credential is a `Secret`."""

    __slots__ = ()


def hide_credentials(headers: Iterable[tuple[str, str | Secret]]) -> HiddenHeaders:
    """Return the header fields with each credential hidden. `HiddenHeaders` are returned as they are."""
    if type(headers) is HiddenHeaders:
        return headers
    return HiddenHeaders(
        (name, Secret(value))
        if name.lower() in _SECRET_HEADERS and isinstance(value, str)
        else (name, value)
        for name, value in headers
    )


def with_headers(headers: HiddenHeaders, more: Iterable[tuple[str, Secret]]) -> HiddenHeaders:
    """Return header fields with others added. These replace fields of the same name in any case."""
    more = tuple(more)
    if not more:
        return headers
    replaced = {name.lower() for name, _ in more}
    kept = (field for field in headers if field[0].lower() not in replaced)
    return hide_credentials((*kept, *more))


@dataclass(frozen=True, slots=True)
class Request:
    """A whole HTTP request, ready to be sent.

    ``headers`` has all header fields but ``Host`` and ``Content-Length``. These follow from ``url``
    and ``body``, and some libraries insist on setting them. A request holds the API key, so its
    ``repr`` shows no headers, and it cannot be pickled.
    """

    method: str
    url: str
    hidden_headers: HiddenHeaders
    """The same as ``headers``, but each credential is a `Secret`. All requests of one
    `CreduseProtocol` without an idempotency key share this object."""
    body: bytes

    def __init__(
        self, method: str, url: str, headers: Iterable[tuple[str, str | Secret]], body: bytes
    ) -> None:
        """Hide the credentials among ``headers``."""
        _set_request(self, method, url, hide_credentials(headers), body)

    @property
    def headers(self) -> HeaderPairs:
        """The header fields in their order, with the API key.

        Read them where you make the bytes for the wire, and do not keep them in a variable: tools
        that show the variables of a failure would show the key. Each access makes them anew.
        """
        return tuple(
            (name, value.reveal() if isinstance(value, Secret) else value)
            for name, value in self.hidden_headers
        )

    def __repr__(self) -> str:
        return f"<Request {self.method} {self.url}, {len(self.body)} bytes>"

    __reduce__ = no_pickle


_set_request = field_setter(Request)


@dataclass(frozen=True, slots=True)
class Response:
    """A whole HTTP response: final status code, header fields in their order, undecoded body.

    Its ``repr`` shows only the size of the body, which holds end users' data.
    """

    status: int
    headers: HeaderPairs
    body: bytes

    def __init__(self, status: int, headers: Iterable[tuple[str, str]], body: bytes) -> None:
        """Keep ``headers``, any iterable of pairs, as a tuple."""
        _set_response(self, status, tuple(headers), body)

    @classmethod
    def from_raw(
        cls, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes
    ) -> "Response":
        """Return the response with these header fields as bytes, the way HTTP libraries keep them.

        Latin-1 maps each byte to one character, so every field can be read.
        """
        pairs = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]
        return cls(status, pairs, body)

    def __repr__(self) -> str:
        return f"<Response {self.status}, {len(self.body)} bytes>"

    def header(self, name: str) -> str | None:
        """Return the first value of the header called ``name`` (in any case), or ``None``."""
        wanted = name.lower()
        for key, value in self.headers:
            if key.lower() == wanted:
                return value
        return None


_set_response = field_setter(Response)


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy. An error of a call through it names it."""

    shown: str
    """Its URL without user name and password."""
    url: Secret
    """Its URL, which can hold a password."""

    secrets: tuple[Secret, ...]
    """The password, or a user name without one, such as a token; and both together. No error shows
    them."""

    def __init__(self, shown: str, url: Secret) -> None:
        """Find the login in the URL."""
        from urllib.parse import unquote, urlsplit  # noqa: PLC0415 - only a client with a proxy needs it

        login = urlsplit(url.reveal()).netloc.rpartition("@")[0]
        user, password = (unquote(it) for it in login.partition(":")[::2])
        # A Secret finds itself in Base64, as in a header: a short password only together with the user.
        both = (Secret(password or user), Secret(f"{user}:{password}"))
        _set_proxy(self, shown, url, both if login else ())


_set_proxy = field_setter(Proxy)


class Delivery(enum.Enum):
    """Whether a request can have left the machine."""

    NOT_SENT = "not sent"
    """Not one byte of it has, and none will."""
    MAYBE_SENT = "maybe sent"
    """It can have, or the transport does not know."""


class RefusalError(RuntimeError):
    """Why the client itself sends nothing. Errors quote only its text."""


@dataclass(frozen=True, slots=True)
class Failure:
    """What a transport returns if there is no whole response.

    - ``cause``: the library's exception. It must not hold the API key.
    - ``transient``: whether a retry can help.
    - ``timed_out``: whether the time in `Send` was over.
    - ``response``: the head, and the part of the body that arrived, if a head did.
    """

    delivery: Delivery
    cause: BaseException
    transient: bool
    timed_out: bool = False
    response: Response | None = None

    def __repr__(self) -> str:
        # Without the text of the cause, which can quote the request.
        return f"<Failure {self.delivery.value}, {type(self.cause).__name__}>"
