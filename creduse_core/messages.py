"""What passes between the core and a transport: a request, an answer, or a failure.

The cut is at HTTP messages, not bytes. Only plain data lives here: no library's types, no I/O,
and nothing that knows what Creduse means by an answer.
"""

import enum
import sys
from collections.abc import Container, Iterable
from dataclasses import dataclass

from .secret import Secret, no_pickle

MAX_BODY_SIZE = 1024 * 1024
"""Bytes. A transport stops reading a response's body once it has more than this, and returns what
it has; the core then says that the response was too large."""

HeaderPairs = tuple[tuple[str, str], ...]

_SECRET_HEADERS = frozenset({"authorization", "proxy-authorization"})


@dataclass(frozen=True, init=False, slots=True, repr=False)
class Request:
    """A whole HTTP request, ready to be sent.

    ``Host`` and ``Content-Length`` are not among ``headers``: they follow from ``url`` and
    ``body``, and some libraries insist on setting them. Everything else is there.
    It holds the API key, so it neither shows its headers nor pickles.
    """

    method: str
    url: str
    hidden_headers: tuple[tuple[str, str | Secret], ...]
    """As ``headers``, in which credentials are a `Secret`. All requests of one `CreduseProtocol`
    without an idempotency key share this very object."""
    body: bytes

    def __init__(
        self, method: str, url: str, headers: Iterable[tuple[str, str | Secret]], body: bytes
    ) -> None:
        """Hide those of ``headers`` that are credentials."""
        object.__setattr__(self, "method", method)
        object.__setattr__(self, "url", url)
        object.__setattr__(self, "hidden_headers", _hide(headers))
        object.__setattr__(self, "body", body)

    @property
    def headers(self) -> HeaderPairs:
        """The header fields in their order, the API key among them.

        They are made each time. Read them where the bytes for the wire are made, and do not keep
        them in a variable: tools that show the variables of a failure would show the key.
        """
        return tuple(
            (name, value.reveal() if isinstance(value, Secret) else value)
            for name, value in self.hidden_headers
        )

    def __repr__(self) -> str:
        return f"<Request {self.method} {self.url}, {len(self.body)} bytes>"

    __reduce__ = no_pickle


def _hide(headers: Iterable[tuple[str, str | Secret]]) -> tuple[tuple[str, str | Secret], ...]:
    given = headers if isinstance(headers, tuple) else tuple(headers)
    if any(name.lower() in _SECRET_HEADERS and isinstance(value, str) for name, value in given):
        return tuple(
            (
                name,
                Secret(value)
                if name.lower() in _SECRET_HEADERS and isinstance(value, str)
                else value,
            )
            for name, value in given
        )
    return given


@dataclass(frozen=True, init=False, slots=True, repr=False)
class Response:
    """A whole HTTP response: final status code, header fields in their order, undecoded body.

    Its ``repr`` shows sizes alone, since bodies hold end users' data.
    """

    status: int
    headers: HeaderPairs
    body: bytes

    def __init__(self, status: int, headers: Iterable[tuple[str, str]], body: bytes) -> None:
        """Keep ``headers``, any iterable of pairs, as a tuple."""
        object.__setattr__(self, "status", status)
        object.__setattr__(self, "headers", tuple(headers))
        object.__setattr__(self, "body", body)

    def __repr__(self) -> str:
        return f"<Response {self.status}, {len(self.body)} bytes>"

    def header(self, name: str) -> str | None:
        """Return the first value of the header called ``name`` (in any case), or ``None``."""
        wanted = name.lower()
        for key, value in self.headers:
            if key.lower() == wanted:
                return value
        return None


class Delivery(enum.Enum):
    """How much of a request can have left the machine."""

    NOT_SENT = "not sent"
    """Not one byte of it, and none will."""
    MAYBE_SENT = "maybe sent"
    """All else. When in doubt, this."""


@dataclass(frozen=True, slots=True, repr=False)
class Failure:
    """What a transport reports when there is no whole answer.

    ``cause`` is the library's exception; it must not carry the request's key.
    ``transient`` says whether sending again could help.
    ``timed_out`` says that the time given in `Send` ran out.
    ``response`` is the head and what there is of the body, if a head came.
    ``via`` is the proxy that the request went to or was to go to, such as
    ``http://proxy.example:3128``: without a user name or password, as it stands in errors.
    """

    delivery: Delivery
    cause: BaseException
    transient: bool
    timed_out: bool = False
    response: Response | None = None
    via: str | None = None

    def __repr__(self) -> str:
        # Without the words of the cause, which may quote the request.
        return f"<Failure {self.delivery.value}, {type(self.cause).__name__}>"


class ForeignError(BaseException):
    """Raised out of a transport's ``send``: carries an exception that is not the transport's.

    A signal handler, such as a task runner's time limit, raises in whatever runs just then. The
    client abandons the call and raises ``error`` itself. No library catches this class, which is
    no `Exception`.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


def is_foreign(error: BaseException, libraries: Container[str]) -> bool:
    """Return whether ``error`` comes from neither of ``libraries``, nor from Python itself for them.

    ``libraries`` are top-level names of modules, such as ``"httpx"``. The class of an exception
    decides. For one of Python's own it is the innermost frame of the traceback that is not the
    standard library's: a handler may raise out of there, as a library may.
    """
    defined_in = type(error).__module__.partition(".")[0]
    if defined_in in libraries:
        return False
    if defined_in not in sys.stdlib_module_names:
        return True
    raised_in = (
        None  # without a traceback it was never raised: somebody made it to report something
    )
    traceback = error.__traceback__
    while traceback is not None:
        module = str(traceback.tb_frame.f_globals.get("__name__")).partition(".")[0]
        if module not in sys.stdlib_module_names:
            raised_in = module
        traceback = traceback.tb_next
    return raised_in is not None and raised_in not in libraries


def chain(error: BaseException, *, contexts: bool = True) -> list[BaseException]:
    """Return an exception and all that it came of, members of groups included.

    Without ``contexts``, only what was named as a cause. What a caller is just handling is left out
    in any case: Python makes it a context, but it has nothing to do with the error.
    """
    running = _running_frames() if contexts else set[object]()
    links: list[BaseException] = []
    found: list[BaseException | None] = [error]
    for link in found:
        if link is not None and not any(link is other for other in links):
            links.append(link)
            found += [link.__cause__, *getattr(link, "exceptions", ())]
            context = link.__context__ if contexts else None
            if context is not None and _caught_in(context) not in running:
                found.append(context)
    return links


def _caught_in(error: BaseException) -> object:
    return None if error.__traceback__ is None else error.__traceback__.tb_frame


def _running_frames() -> set[object]:
    """Return the frames of the callers: what one of them has caught, it is just handling."""
    # Not at the top: it loads much that only a failure wants.
    from inspect import currentframe  # noqa: PLC0415

    frames: set[object] = set()
    frame = currentframe()
    while frame is not None:
        frames.add(frame)
        frame = frame.f_back
    return frames


def forget_frames(error: BaseException) -> None:
    """Take the tracebacks off what is to be the cause of a `Failure`.

    Frames of a library hold the request, and some tools print what frames hold.
    """
    for link in chain(error):
        link.with_traceback(None)  # an exception's own __setattr__ may refuse
