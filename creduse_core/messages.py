"""What passes between the core and a transport: a request, an answer, or a failure.

The cut is at HTTP messages, not bytes. Only plain data lives here: no library's types, no I/O,
and nothing that knows what Creduse means by an answer.
"""

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NoReturn

MAX_BODY_SIZE = 16 * 1024 * 1024
"""Bytes. A transport stops reading an answer's body once it has more than this, and hands over
what it has; the core then says that the answer was too large."""

HeaderPairs = tuple[tuple[str, str], ...]


def no_pickle(self: object) -> NoReturn:
    """Stand in as ``__reduce__`` for whatever holds the API key, since a pickle would store it."""
    raise TypeError(f"a {type(self).__name__} holds the API key, so it cannot be pickled or copied")


@dataclass(frozen=True, slots=True, repr=False)
class Request:
    """A whole HTTP request, ready to be sent.

    ``Host`` and ``Content-Length`` are not among ``headers``: they follow from ``url`` and
    ``body``, and some libraries insist on setting them. Everything else is there.
    It holds the API key, so it neither shows its headers nor pickles.
    """

    method: str
    url: str
    headers: HeaderPairs
    body: bytes

    def __repr__(self) -> str:
        return f"<Request {self.method} {self.url}, {len(self.body)} bytes>"

    __reduce__ = no_pickle


@dataclass(frozen=True, slots=True, repr=False)
class Response:
    """A whole HTTP answer: final status, header fields in their order, undecoded body.

    ``headers`` may be given as any iterable of pairs; it is kept as a tuple.
    Its ``repr`` shows sizes alone, since bodies hold end users' data.
    """

    status: int
    headers: Iterable[tuple[str, str]]
    body: bytes

    def __post_init__(self) -> None:
        """Freeze the headers, so that a generator is read once and a list cannot change."""
        object.__setattr__(self, "headers", tuple(self.headers))

    def __repr__(self) -> str:
        return f"<Response {self.status}, {len(self.body)} bytes>"

    def header(self, name: str) -> str | None:
        """Give the first value of the field called ``name`` (in any case), or ``None``."""
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


@dataclass(frozen=True, slots=True)
class Failure:
    """What a transport reports when there is no whole answer.

    ``cause`` is the library's exception; it must not carry the request's key.
    ``transient`` says whether sending again could help.
    ``timed_out`` says that the time given in `Send` ran out.
    ``response`` is the head and what there is of the body, if a head came.
    """

    delivery: Delivery
    cause: BaseException
    transient: bool
    timed_out: bool = False
    response: Response | None = None


def chain(error: BaseException, *, contexts: bool = True) -> list[BaseException]:
    """Give an exception and all that it came of, members of groups included.

    Without ``contexts``, only what was named as a cause: a context may be what the caller was just
    handling, and has nothing to do with it.
    """
    links: list[BaseException] = []
    found: list[BaseException | None] = [error]
    for link in found:
        if link is not None and not any(link is other for other in links):
            links.append(link)
            found += [link.__cause__, *getattr(link, "exceptions", ())]
            if contexts:
                found.append(link.__context__)
    return links


def forget_frames(error: BaseException) -> None:
    """Take the tracebacks off what is to be the cause of a `Failure`.

    Frames of a library hold the request, and some tools print what frames hold.
    """
    for link in chain(error):
        link.with_traceback(None)  # an exception's own __setattr__ may refuse
