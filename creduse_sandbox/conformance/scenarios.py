"""The table: what a server can do to a call, and how the call may end.

What one fault proves is a row; the endings of each kind of call follow from the row by the rules
that the documentation states, and not from the core's own tables, which they are to test.
"""

import enum
import itertools
from collections.abc import (
    Callable,
    Iterable,
    Iterator,
    Mapping,
)
from dataclasses import dataclass, field, replace
from typing import Any, Final
from uuid import UUID

from creduse_core import (
    MAX_BODY_SIZE,
    APIError,
    AuthenticationError,
    Call,
    CreduseError,
    CreduseProtocol,
    CreduseTimeoutError,
    InsufficientFundsError,
    InvalidResponseError,
    Kind,
    NoActiveCycleError,
    Outcome,
    RateLimitError,
    ServerError,
    TransportError,
    UserDoesNotExistError,
)
from creduse_sandbox.faults import (
    DESCRIPTIONS,
    FAULTS,
    Action,
    CannedResponse,
    Fault,
    Shape,
    Shaped,
    Stage,
)

API_KEY: Final = "sk-conformance-0123456789abcdef"
USER: Final = UUID("12345678-1234-5678-1234-567812345678")
STRANGER: Final = UUID("99999999-9999-5999-8999-999999999999")
AMOUNT: Final = 7
BALANCE: Final = 1000

SOON: Final = 0.5
"""Seconds: a time-out that is meant to run out."""
PLENTY: Final = 20.0
"""Seconds: a time-out that is not."""
WITHIN: Final = 15.0
"""Seconds that any one call may take. Far more than any needs: it is to find what never ends."""
SLACK: Final = 2.5
"""Seconds that a call may go on after its time: a library may give a last read all of it anew,
and machines that run tests are slow."""


HELD: Final = 0.05
"""Seconds that the server takes before it looks at a request, where a surplus may come in between."""


class Limit(enum.Enum):
    """What a library may be unable to do. Whoever uses it has to be told."""

    TIME = "time is bounded for each read, not for a head or a chunk's framing as a whole"
    """Such an answer may then come late, and be believed."""
    INTERIM = "an interim answer other than 100 is taken for the answer"
    """The outcome is then UNKNOWN."""
    SURPLUS = "bytes beyond a response are dropped unseen, and the connection is used again"
    """They are still nobody's response."""
    REUSE = "each request opens a connection of its own"
    """That takes time, and ports."""
    CLOSE = "close() leaves calls that are under way to their own end"
    """Nothing of them is first sent afterwards, all the same."""
    SIGNAL = "what a signal's handler raises may be taken for a failure, or leave locks locked"
    """What the call says is true, all the same."""


@dataclass(frozen=True, slots=True)
class Ending:
    """One way in which a call may end."""

    errors: tuple[type[CreduseError], ...]
    """Of which class the error is, exactly; with none, there is a result."""
    outcome: Outcome
    """What `Call.outcome` is."""
    requests: int
    """How many the server has seen; more if an attempt ran out of time before it was sent."""
    applied: int
    """How many of them it has applied."""

    def __str__(self) -> str:
        what = " or ".join(error.__name__ for error in self.errors) or "a result"
        return f"{what}, {self.outcome}; {self.requests} received, {self.applied} applied"


@dataclass(frozen=True, slots=True)
class Scenario:
    """One call, what the server does to it, and how that may end."""

    name: str
    make: Callable[[CreduseProtocol], Call[Any]] = field(repr=False)
    """The call."""
    endings: tuple[Ending, ...]
    """It ends in one of these."""
    faults: tuple[Fault, ...] = ()
    """What its requests meet with, in their order. Further ones are served."""
    attempt_timeout: float = PLENTY
    """Seconds, of the `RetryPolicy`."""
    used: bool = False
    """A call comes before it, so that its connection may be one that has served."""
    before: Fault | None = None
    """What that call meets with."""
    refuse: bool = False
    """The server refuses all connections."""
    certificate: str = ""
    """The server's, by its name in what `check` is given; with none, it speaks plain http."""
    fresh: bool = False
    """The connection must not be used again."""
    rest: float = 0.0
    """Seconds until the next call, in which more may come on the connection."""
    at_least: float = 0.0
    """Seconds that the call takes."""
    at_most: float = WITHIN
    """Seconds."""
    reused: bool = False
    """It must be sent on the connection of the call before it."""
    again: Callable[[CreduseProtocol], Call[Any]] | None = field(default=None, repr=False)
    """An equal call that follows at once. The server takes its time with it, so that a client that
    has a result too soon has it from elsewhere."""
    limit: Limit | None = None
    """What may be stated here instead of held to."""
    limited: tuple[Ending, ...] = ()
    """How it may also end, then."""
    words: str = ""
    """What the server does, where the faults are none of `FAULTS`."""

    def __str__(self) -> str:
        return self.name

    @property
    def description(self) -> str:
        """What the server does, in words."""
        faults = self.words or "; then ".join(map(in_words, self.faults))
        return ". ".join(
            text
            for told, text in (
                (self.certificate not in {"", "good"}, f"Its certificate is {self.certificate}"),
                (self.refuse, "It refuses connections"),
                (self.used, "The connection has served a call before"),
                (self.before is not None, f"That call met with this: {in_words(self.before)}"),
                (bool(faults), f"The requests meet with this: {faults}"),
            )
            if told
        )


_WORDS: Final[Mapping[Fault | None, str]] = {
    None: "",
    **{fault: DESCRIPTIONS[name] for name, fault in FAULTS.items()},
}


def in_words(fault: Fault | None) -> str:
    """Return what one of `FAULTS` does, in words."""
    return _WORDS[fault]


# The calls. A later one than the scenario's own reads the balance, and another adds to it.


def _add(protocol: CreduseProtocol) -> Call[Any]:
    return protocol.add(USER, AMOUNT)


def _add_with_key(protocol: CreduseProtocol) -> Call[Any]:
    return protocol.add(USER, AMOUNT, idempotency_key="key-1")


def _add_briefly(protocol: CreduseProtocol) -> Call[Any]:
    return protocol.add(USER, AMOUNT, timeout=2 * SOON)


def _add_at_once(protocol: CreduseProtocol) -> Call[Any]:
    return protocol.add(USER, AMOUNT, timeout=1e-9)


def _subtract(protocol: CreduseProtocol) -> Call[Any]:
    return protocol.subtract(USER, AMOUNT)


def _subtract_too_much(protocol: CreduseProtocol) -> Call[Any]:
    return protocol.subtract(USER, BALANCE + 1)


def _subtract_too_much_with_key(protocol: CreduseProtocol) -> Call[Any]:
    return protocol.subtract(USER, BALANCE + 1, idempotency_key="key-1")


def _start_cycle(protocol: CreduseProtocol) -> Call[Any]:
    return protocol.start_cycle(USER, AMOUNT, None)


def _stop_cycle(protocol: CreduseProtocol) -> Call[Any]:
    return protocol.stop_cycle(USER)


def _get_balance(protocol: CreduseProtocol) -> Call[Any]:
    return protocol.get_balance(USER)


def _get_strangers_balance(protocol: CreduseProtocol) -> Call[Any]:
    return protocol.get_balance(STRANGER)


_CALLS: Final[Mapping[Kind, tuple[str, Callable[[CreduseProtocol], Call[Any]]]]] = {
    Kind.WRITE: ("add", _add),
    Kind.READ: ("get_balance", _get_balance),
    Kind.REPLAYABLE: ("add-with-key", _add_with_key),
}

# A key that comes again would only bring the first response again.
_AGAIN: Final = {Kind.WRITE: _add, Kind.READ: _get_balance, Kind.REPLAYABLE: _add}


# What one fault proves, and the endings that follow from it


@dataclass(frozen=True, slots=True)
class _Row:
    """What may be known after a fault, whichever transport met with it."""

    errors: tuple[type[CreduseError], ...]
    """What a call raises that is not tried again; none if the fault leaves a good answer."""
    evidence: Outcome
    transient: bool
    kinds: tuple[Kind, ...] = (Kind.WRITE, Kind.READ, Kind.REPLAYABLE)
    foreign: bool = False
    """The answer is not the request's own, so its connection is not to be used again."""
    timed: bool = False
    """It is a time-out that ends it."""
    surplus: bool = False
    """More than one response comes."""
    given_up: tuple[type[CreduseError], ...] = ()
    """What a call that could be tried again may raise instead."""


_NOT, _UNKNOWN, _APPLIED = Outcome.NOT_APPLIED, Outcome.UNKNOWN, Outcome.APPLIED

_GOOD = _Row((), _APPLIED, transient=False)
_SURPLUS = replace(_GOOD, foreign=True, surplus=True)
_SILENT = _Row((CreduseTimeoutError,), _UNKNOWN, transient=True, timed=True)
_LOST = _Row((TransportError,), _UNKNOWN, transient=True)
_CUT = _Row((InvalidResponseError,), _UNKNOWN, transient=True)
# A reset may overtake what was sent before it.
_CUT_OR_LOST = replace(_CUT, errors=(InvalidResponseError, TransportError))
# http.client takes a head that ends with the stream for a whole one, without a body.
_HALF_A_HEAD = replace(_CUT_OR_LOST, given_up=(InvalidResponseError,))
_FOREIGN = _Row((InvalidResponseError,), _UNKNOWN, transient=False, foreign=True)
_MISREAD = _Row((InvalidResponseError,), _APPLIED, transient=False)
_REFUSED = _Row((APIError,), _NOT, transient=False)
_LIMITED = _Row((RateLimitError,), _NOT, transient=True)
# After what should be rare, it is safer to leave the connection: bytes that nobody asked for may
# have shifted the responses on it.
_FAILED = _Row((ServerError,), _UNKNOWN, transient=True, foreign=True)
_UNABLE = replace(_FAILED, transient=False)
_STRAY = replace(_FAILED, surplus=True)

_WRITES = (Kind.WRITE, Kind.REPLAYABLE)
_ONE_WRITE = (Kind.WRITE,)

_ROWS: Final[Mapping[str, _Row]] = {
    **dict.fromkeys(("head-then-hang", "request-then-hang", "apply-then-hang"), _SILENT),
    **dict.fromkeys(("cut-head-then-hang", "cut-body-then-hang"), _SILENT),
    **dict.fromkeys(("head-then-close", "request-then-close", "apply-then-close"), _LOST),
    **dict.fromkeys(("head-then-reset", "request-then-reset", "apply-then-reset"), _LOST),
    "cut-head-then-close": _HALF_A_HEAD,
    "cut-head-then-reset": _HALF_A_HEAD,
    "cut-body-then-close": _CUT,
    "cut-body-then-reset": _CUT_OR_LOST,
    "not-http": _LOST,
    **dict.fromkeys(("drip", "drip-body", "drip-chunks", "chunks", "no-length"), _GOOD),
    **dict.fromkeys(("100-first", "close-after", "cut-after", "bad-utf8"), _GOOD),
    **dict.fromkeys(("surplus", "surplus-later"), _SURPLUS),
    **dict.fromkeys(("surplus-whole", "surplus-whole-later", "surplus-half"), _SURPLUS),
    "stray-503": _STRAY,
    "wrong-user": _FOREIGN,
    "wrong-amount": replace(_FOREIGN, kinds=_WRITES),
    "mistyped-field": _MISREAD,
    **dict.fromkeys(("deep", "not-json", "gzip", "gzip-unsaid"), _FOREIGN),
    **dict.fromkeys(("huge-body", "huge-chunks"), replace(_FOREIGN, kinds=_ONE_WRITE)),
    **dict.fromkeys(("200-error", "204", "301", "302", "303", "307", "308"), _FOREIGN),
    "408": replace(_FAILED, errors=(APIError,)),
    **dict.fromkeys(("421", "425"), _REFUSED),
    "429": _LIMITED,
    **dict.fromkeys(("429-seconds", "429-date"), replace(_LIMITED, kinds=_ONE_WRITE)),
    **{
        f"{status}{page}": _UNABLE if status in {501, 505} else _FAILED
        for status in range(500, 512)
        for page in ("", "-page")
    },
}


def _endings(kind: Kind, row: _Row, fault: Fault) -> tuple[Ending, ...]:
    """Give the ways in which a call may end of which the first request meets with ``fault``."""
    received = 0 if fault.stage is Stage.CONNECTED else 1
    applied = int(fault.stage is Stage.APPLIED and kind is not Kind.READ)
    outcome = _NOT if kind is Kind.READ else row.evidence
    if received and outcome is _NOT and kind is Kind.REPLAYABLE:
        # Another request with this key may be under way.
        outcome = _UNKNOWN
    once = Ending(row.errors, outcome, received, applied)
    again = row.transient and (kind is not Kind.WRITE or row.evidence is _NOT)
    if not again:
        return (once,)
    writes = int(kind is not Kind.READ)
    served = Ending((), _NOT if kind is Kind.READ else _APPLIED, received + 1, writes)
    return (served, replace(once, errors=row.given_up)) if row.given_up else (served,)


_SECONDS: Final = {"429-seconds": 1.0, "429-date": 1.0}
"""What an answer asks to wait."""


def _scenario(kind: Kind, name: str, row: _Row) -> Scenario:
    fault = FAULTS[name]
    said, make = _CALLS[kind]
    at_least, at_most = _SECONDS.get(name, 0.0), WITHIN
    if row.timed and kind is Kind.WRITE:
        make = _add_briefly
        # To give up early would only make an UNKNOWN.
        at_least, at_most = 2 * SOON, 2 * SOON + SLACK
    return Scenario(
        f"{said}-meets-{name}",
        make,
        _endings(kind, row, fault),
        (fault,),
        attempt_timeout=SOON if row.timed else PLENTY,
        fresh=row.foreign,
        rest=0.1 if name.endswith("-later") else 0.0,
        at_least=at_least,
        at_most=at_most,
        again=_AGAIN[kind] if row.surplus else None,
        limit=Limit.SURPLUS if row is _SURPLUS else None,
    )


def _on_a_used_connection(scenario: Scenario) -> Scenario:
    return replace(scenario, name=f"{scenario.name}-on-a-used-connection", used=True)


_BY_FAULT: Final = tuple(
    _scenario(kind, name, row) for name, row in _ROWS.items() for kind in row.kinds
)
# Where a library notices something odd on a connection that has served, it may send again by
# itself, which nobody wants here.
_USED: Final = tuple(
    _on_a_used_connection(_scenario(kind, name, _ROWS[name]))
    for name in (
        *("head-then-close", "request-then-close", "apply-then-close"),
        *("head-then-reset", "request-then-reset", "apply-then-reset"),
        *("cut-head-then-close", "cut-body-then-close", "not-http", "wrong-user", "503"),
        "request-then-hang",
    )
    for kind in Kind
)


# What takes more than one fault, or another call


def _failed(outcome: Outcome, requests: int, applied: int, *errors: type[CreduseError]) -> Ending:
    return Ending(errors, outcome, requests, applied)


def _done(requests: int = 1, applied: int = 1) -> Ending:
    return Ending((), _APPLIED if applied else _NOT, requests, applied)


def _faults(*names: str) -> tuple[Fault, ...]:
    return tuple(FAULTS[name] for name in names)


_LONG: Final = 2 * SOON + SLACK + 2.0
"""Seconds that a drip lasts at least, which is far longer than a call that meets it may."""
_PAUSE: Final = 0.05
"""Seconds between two pieces of a drip."""


def _drops(piece: bytes) -> Iterable[bytes]:
    return itertools.repeat(piece, int(_LONG / _PAUSE))


def _drip_head(head: bytes, body: bytes) -> Iterable[bytes]:
    return itertools.chain((head[:-2] + b"Padding: ",), _drops(b"x"), (b"\r\n\r\n" + body,))


def _drip_interim_head(head: bytes, body: bytes) -> Iterable[bytes]:
    begun = b"HTTP/1.1 100 Continue\r\nPadding: "
    return itertools.chain((begun,), _drops(b"x"), (b"\r\n\r\n" + head + body,))


def _drip_interim(head: bytes, body: bytes) -> Iterable[bytes]:
    return itertools.chain(_drops(b"HTTP/1.1 100 Continue\r\n\r\n"), (head + body,))


def _drip_body(head: bytes, body: bytes) -> Iterable[bytes]:
    padding = [*_drops(b" ")]
    longer = b"Content-Length: %d\r\n" % (len(body) + len(padding))
    return (head.replace(b"Content-Length: %d\r\n" % len(body), longer), *padding, body)


def _drip_chunk_size(head: bytes, body: bytes) -> Iterable[bytes]:
    length = b"Content-Length: %d\r\n" % len(body)
    head = head.replace(length, b"Transfer-Encoding: chunked\r\n")
    return (head, *_drops(b"0"), b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))


def _trickle_body(head: bytes, body: bytes) -> Iterable[bytes]:
    longer = b"Content-Length: 99999999\r\n"
    head = head.replace(b"Content-Length: %d\r\n" % len(body), longer)
    return itertools.chain((head,), itertools.repeat(b" "))


def _body_without_end(head: bytes, body: bytes) -> Iterable[bytes]:
    head = head.replace(b"Content-Length: %d\r\n" % len(body), b"Content-Length: 99999999\r\n")
    return (head, body, b" " * MAX_BODY_SIZE)


def _body_later(head: bytes, body: bytes) -> Iterable[bytes]:
    return (head, body)


def _switching(_: bytes, __: bytes) -> Iterable[bytes]:
    return (b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",)


_LATE: Final = Ending((CreduseTimeoutError,), _UNKNOWN, 1, 1)


def _drips(what: str, words: str, shape: Shape, pause: float = _PAUSE) -> Scenario:
    return Scenario(
        f"add-meets-{what}-that-drips-too-long",
        _add_briefly,
        (_LATE,),
        (Shaped(shape, pause=pause),),
        at_least=2 * SOON,
        at_most=2 * SOON + SLACK,
        limit=Limit.TIME,
        limited=(_done(),),
        words=words,
    )


_KEY_IN_USE: Final = CannedResponse(
    409,
    (("Content-Type", "application/json"),),
    b'{"error_code": "KEY_IN_USE", "message": "Wait."}',
)
_NO_FUNDS: Final = CannedResponse(
    402, (("Content-Type", "application/json"),), b'{"error_code": "INSUFFICIENT_FUNDS"}'
)
_COOKIE: Final = CannedResponse(429, (("Set-Cookie", "session=1; Path=/"), ("Retry-After", "0")))
_CHALLENGED: Final = "a 401 with a challenge"
_CHALLENGE: Final = CannedResponse(401, (("WWW-Authenticate", 'Basic realm="x"'),))
_LAST_OF_ITS_CONNECTION: Final = CannedResponse(503, (("Connection", "close"),))

_FURTHER: Final = (
    # Nothing goes wrong.
    Scenario("add", _add, (_done(),)),
    Scenario("subtract", _subtract, (_done(),)),
    Scenario("start_cycle", _start_cycle, (_done(),)),
    Scenario("get_balance", _get_balance, (_done(applied=0),)),
    Scenario(
        "add-on-a-used-connection",
        _add,
        (_done(),),
        used=True,
        reused=True,
        limit=Limit.REUSE,
    ),
    # The service says no.
    Scenario(
        "subtract-too-much", _subtract_too_much, (_failed(_NOT, 1, 0, InsufficientFundsError),)
    ),
    Scenario("stop_cycle-without-one", _stop_cycle, (_failed(_NOT, 1, 0, NoActiveCycleError),)),
    Scenario(
        "get_balance-of-a-stranger",
        _get_strangers_balance,
        (_failed(_NOT, 1, 0, UserDoesNotExistError),),
    ),
    Scenario(
        "subtract-with-key-too-much",
        _subtract_too_much_with_key,
        (_failed(_NOT, 1, 0, InsufficientFundsError),),
    ),
    Scenario(
        "add-is-challenged",
        _add,
        (_failed(_NOT, 1, 0, AuthenticationError),),
        (_CHALLENGE,),
        words=_CHALLENGED,
    ),
    # Under a key, a refusal of the request proves nothing of an earlier one with the same key.
    Scenario(
        "add-with-key-is-challenged",
        _add_with_key,
        (_failed(_UNKNOWN, 1, 0, AuthenticationError),),
        (_CHALLENGE,),
        words=_CHALLENGED,
    ),
    Scenario(
        "add-with-key-is-limited-to-the-end",
        _add_with_key,
        (_failed(_UNKNOWN, 3, 0, RateLimitError),),
        _faults("429", "429", "429"),
    ),
    Scenario(
        "add-with-key-is-in-use",
        _add_with_key,
        (_done(2),),
        (_KEY_IN_USE,),
        words="a 409, which says that the key is in use",
    ),
    Scenario(
        "add-with-key-is-in-use-to-the-end",
        _add_with_key,
        (_failed(_UNKNOWN, 3, 0, APIError),),
        (_KEY_IN_USE,) * 3,
        words="a 409 each, which says that the key is in use",
    ),
    # Nothing is sent.
    Scenario(
        "add-is-refused-a-connection", _add, (_failed(_NOT, 0, 0, TransportError),), refuse=True
    ),
    Scenario(
        "get_balance-is-refused-a-connection",
        _get_balance,
        (_failed(_NOT, 0, 0, TransportError),),
        refuse=True,
    ),
    Scenario("add-has-no-time", _add_at_once, (_failed(_NOT, 0, 0, CreduseTimeoutError),)),
    # Half of what a success must repeat is missing, or all that it may say besides.
    Scenario(
        "subtract-meets-missing-field",
        _subtract,
        (_failed(_UNKNOWN, 1, 1, InvalidResponseError),),
        _faults("missing-field"),
        fresh=True,
    ),
    Scenario(
        "get_balance-meets-missing-field",
        _get_balance,
        (_failed(_NOT, 1, 0, InvalidResponseError),),
        _faults("missing-field"),
    ),
    Scenario("add-meets-missing-field", _add, (_done(),), _faults("missing-field")),
    # More than one goes wrong.
    Scenario(
        "add-is-limited-to-the-end",
        _add,
        (_failed(_NOT, 3, 0, RateLimitError),),
        _faults("429", "429", "429"),
    ),
    Scenario(
        "get_balance-fails-to-the-end",
        _get_balance,
        (_failed(_NOT, 3, 0, ServerError),),
        _faults("503", "500", "502"),
    ),
    Scenario(
        "get_balance-is-lost-to-the-end",
        _get_balance,
        (_failed(_NOT, 3, 0, TransportError),),
        _faults("request-then-close", "head-then-close", "apply-then-close"),
    ),
    Scenario(
        "add-is-limited-then-lost",
        _add,
        (_failed(_UNKNOWN, 2, 1, TransportError),),
        _faults("429", "apply-then-close"),
    ),
    Scenario(
        "add-is-limited-then-fails",
        _add,
        (_failed(_UNKNOWN, 2, 0, ServerError),),
        _faults("429", "500"),
    ),
    Scenario(
        "add-with-key-is-lost-then-refused",
        _add_with_key,
        # The class that says that none were taken would not be true.
        (_failed(_UNKNOWN, 2, 1, APIError),),
        (FAULTS["apply-then-close"], _NO_FUNDS),
        words="apply the request, then close; then a 402, which says that funds are insufficient",
    ),
    Scenario(
        "add-with-key-is-lost-then-limited",
        _add_with_key,
        (_failed(_UNKNOWN, 3, 1, RateLimitError),),
        _faults("apply-then-reset", "429", "429"),
    ),
    Scenario(
        "add-with-key-is-lost-twice",
        _add_with_key,
        (_done(3),),
        _faults("apply-then-close", "cut-body-then-close"),
    ),
    Scenario(
        "add-with-key-is-lost-to-the-end",
        _add_with_key,
        (_failed(_UNKNOWN, 3, 1, TransportError),),
        _faults("apply-then-close", "apply-then-reset", "apply-then-close"),
    ),
    # What libraries like to do by themselves.
    Scenario("add-is-given-a-cookie", _add, (_done(2),), (_COOKIE,), words="a 429 with a cookie"),
    Scenario(
        "get_balance-meets-a-503-that-closes",
        _get_balance,
        (_done(2, 0),),
        (_LAST_OF_ITS_CONNECTION,),
        words="a 503 that closes the connection",
    ),
    Scenario(
        "add-meets-101",
        _add,
        (_failed(_UNKNOWN, 1, 1, InvalidResponseError, TransportError),),
        (Shaped(_switching),),
        fresh=True,
        words="101 Switching Protocols",
    ),
    Scenario(
        "add-right-after-close-after",
        _add,
        # Whether the end of the connection is noticed in time is a race.
        (_done(), _failed(_UNKNOWN, 0, 0, TransportError), _failed(_UNKNOWN, 1, 0, TransportError)),
        used=True,
        before=FAULTS["close-after"],
    ),
    Scenario(
        "add-meets-huge-head",
        _add,
        (_done(), _failed(_UNKNOWN, 1, 1, TransportError)),
        _faults("huge-head"),
    ),
    Scenario(
        "add-meets-a-body-without-end",
        _add,
        (_failed(_UNKNOWN, 1, 1, InvalidResponseError),),
        (Shaped(_body_without_end, then=Action.HANG),),
        fresh=True,
        words=f"more than {MAX_BODY_SIZE} bytes of a body that never ends",
    ),
    # RFC 9112, 6.3: it may be read, or taken for an error; the connection is not used again.
    Scenario(
        "add-meets-framed-twice",
        _add,
        (_done(), _failed(_UNKNOWN, 1, 1, TransportError, InvalidResponseError)),
        _faults("framed-twice"),
        fresh=True,
    ),
    Scenario(
        "add-meets-103-first",
        _add,
        (_done(),),
        _faults("103-first"),
        limit=Limit.INTERIM,
        limited=(_failed(_UNKNOWN, 1, 1, InvalidResponseError),),
    ),
    # An attempt's time bounds the connecting of a write, and not its answer.
    Scenario(
        "add-waits-for-its-answer",
        _add,
        (_done(),),
        (Shaped(_body_later, pause=1.5 * SOON),),
        attempt_timeout=SOON,
        words="the head, a while later the body",
    ),
    # Time is up, though something always comes.
    _drips("a-head", "the head byte by byte, for far too long", _drip_head),
    _drips("a-100", "a 100 Continue byte by byte, for far too long", _drip_interim_head),
    replace(
        _drips("100s", "one 100 Continue after the other, for far too long", _drip_interim),
        # Their number may be bounded.
        endings=(_LATE, _failed(_UNKNOWN, 1, 1, TransportError)),
        at_least=0.0,
    ),
    _drips("a-chunk", "the size of a chunk digit by digit, for far too long", _drip_chunk_size),
    # What reads a body piece by piece can look at the time.
    replace(
        _drips("a-body", "the head, then the body byte by byte, for far too long", _drip_body),
        limit=None,
        limited=(),
    ),
    replace(
        _drips("a-body", "the head, then the body byte by byte without a pause", _trickle_body, 0),
        name="add-meets-a-body-that-trickles",
        limit=None,
        limited=(),
    ),
    Scenario(
        "get_balance-meets-a-head-that-drips-too-long",
        _get_balance,
        (_done(2, 0),),
        (Shaped(_drip_head, pause=_PAUSE),),
        attempt_timeout=SOON,
        at_least=SOON,
        at_most=SOON + SLACK,
        limit=Limit.TIME,
        limited=(_done(1, 0),),
        words="the head byte by byte, for far too long",
    ),
)


def _connecting(*, secure: bool) -> Iterator[Scenario]:
    """Give what happens to connections that nothing is read from.

    Over TLS the request is not sent before the server has answered the handshake.
    """
    unsent = _Row((), _NOT, transient=True)
    for name, plain in {
        "connect-then-hang": _SILENT,
        "connect-then-close": _LOST,
        "connect-then-reset": _LOST,
    }.items():
        row = replace(unsent, timed=plain.timed) if secure else plain
        for kind in Kind:
            scenario = _scenario(kind, name, row)
            if secure and row.timed:
                scenario = replace(scenario, make=_CALLS[kind][1], at_least=SOON, at_most=WITHIN)
            elif not secure and not row.timed and kind is Kind.WRITE:
                # Some find out before they write.
                endings = (*scenario.endings, *_endings(kind, unsent, FAULTS[name]))
                scenario = replace(scenario, endings=endings)
            yield scenario


_EVERYWHERE: Final = (*_FURTHER, *_BY_FAULT, *_USED)

SCENARIOS: Final[tuple[Scenario, ...]] = (*_EVERYWHERE, *_connecting(secure=False))
"""All scenarios over plain http."""

TLS_SCENARIOS: Final[tuple[Scenario, ...]] = (
    *(
        replace(scenario, name=f"{scenario.name}-over-tls", certificate="good")
        for scenario in (*_EVERYWHERE, *_connecting(secure=True))
    ),
    *(
        Scenario(
            f"{said}-meets-{certificate}-certificate",
            make,
            (_failed(_NOT, 0, 0, TransportError),),
            certificate=certificate,
        )
        for certificate in ("untrusted", "misnamed", "expired")
        for said, make in _CALLS.values()
    ),
)
"""All scenarios over TLS. The last ones need a server's context each, of the name they bear."""
