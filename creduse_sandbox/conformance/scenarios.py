"""The scenarios: one call each, what the server does to it, and how the call may end.

It has the table of faults, and the rules that turn a fault into a scenario for each kind of call.
How a scenario runs (`checks`) does not belong here. The rules come from the documentation, not from
the core's own tables, because these scenarios test those tables.
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

SHORT_TIMEOUT: Final = 1.0
"""Seconds: a timeout that should expire."""
LONG_TIMEOUT: Final = 20.0
"""Seconds: a timeout that should not expire."""
MAX_SECONDS: Final = 15.0
"""Seconds that a call may take. No call needs nearly as many, so this finds calls that never end."""
MAX_OVERRUN: Final = 5.0
"""Seconds that a call may exceed its timeout: a library may give the last read the whole timeout
again, and test machines are slow."""
SERVER_DELAY: Final = 0.05
"""Seconds that the server waits before it processes a request, so that a surplus arrives first."""


class Limit(enum.Enum):
    """What an HTTP library cannot do. A transport over it must document this.

    A check with this limit in ``limits`` accepts it, and still checks everything else.
    """

    TIME = "the timeout bounds each read, not a response's head or a chunk's framing as a whole"
    """A slow response may arrive after the timeout and be accepted."""
    INTERIM = "the library takes an interim response other than 100 for the final response"
    """The outcome is then UNKNOWN."""
    SURPLUS = "the library drops bytes after a response unseen, and reuses the connection"
    """No later request gets these bytes as its response."""
    REUSE = "the library opens a connection for each request"
    """This takes time and ports."""
    CLOSE = "close() does not end calls in flight"
    """Such a call sends no request after close()."""
    SIGNAL = "an exception from a signal handler may be taken for a failure, or leave a lock locked"
    """The call's outcome is still true."""


@dataclass(frozen=True, slots=True)
class Ending:
    """One way in which a call may end."""

    errors: tuple[type[CreduseError], ...]
    """The classes of the error, without subclasses. If this is empty, the call returns a result."""
    outcome: Outcome
    """The value of `Call.outcome`."""
    requests: int
    """How many requests the server receives. It may receive more if an attempt's timeout expires
    before the attempt is sent."""
    applied: int
    """How many requests the server applies."""

    def __str__(self) -> str:
        errors = " or ".join(error.__name__ for error in self.errors)
        end = f"raise {errors}" if errors else "return a result"
        return f"{end}, {in_numbers(self.outcome, self.requests, self.applied)}"


def in_numbers(outcome: Outcome, requests: int, applied: int) -> str:
    """Return how a call ended, apart from its result or error, in words."""
    return (
        f"with outcome {outcome}; the server received {requests} "
        f"{'request' if requests == 1 else 'requests'} and applied {applied}"
    )


@dataclass(frozen=True, slots=True)
class Scenario:
    """One call, what the server does to it, and how the call may end."""

    name: str
    make: Callable[[CreduseProtocol], Call[Any]] = field(repr=False)
    """Makes the call."""
    endings: tuple[Ending, ...]
    """The call must end in one of these ways."""
    faults: tuple[Fault, ...] = ()
    """The faults of the call's first requests, in order. No fault affects further requests."""
    attempt_timeout: float = LONG_TIMEOUT
    """Seconds, for the `RetryPolicy`."""
    on_used_connection: bool = False
    """Another call runs before it, so the client may have an idle connection."""
    before: Fault | None = None
    """The fault of that other call."""
    refuse: bool = False
    """The server refuses connections."""
    certificate: str = ""
    """The key of the server's certificate in `check`'s ``ssl_contexts``. Empty: plain HTTP."""
    must_not_reuse: bool = False
    """The client must not reuse the connection of a request with a fault."""
    pause_after: float = 0.0
    """Seconds between calls, in which a surplus may arrive."""
    at_least: float = 0.0
    """Seconds that the call must take."""
    at_most: float = MAX_SECONDS
    """Seconds that the call may take."""
    must_reuse: bool = False
    """The client must reuse the connection of the call before."""
    followed_by: Callable[[CreduseProtocol], Call[Any]] | None = field(default=None, repr=False)
    """Makes an equal call that follows at once. The server delays its response, so a client that
    has a result earlier took another response for it."""
    limit: Limit | None = None
    """A limit that excuses what this scenario would find."""
    endings_at_limit: tuple[Ending, ...] = ()
    """Further ways in which the call may end under that limit."""
    fault_description: str = ""
    """What the server does, in words, if ``faults`` are not in `FAULTS`."""

    def __str__(self) -> str:
        return self.name

    @property
    def description(self) -> str:
        """What the server does, in words."""
        faults = self.fault_description or "; then ".join(map(describe, self.faults))
        return ". ".join(
            text
            for applies, text in (
                (self.certificate not in {"", "good"}, f"Its certificate is {self.certificate}"),
                (self.refuse, "It refuses connections"),
                (self.on_used_connection, "The client may have an idle connection of another call"),
                (self.before is not None, f"For that call: {describe(self.before)}"),
                (bool(faults), f"For the call's requests: {faults}"),
            )
            if applies
        )


_WORDS: Final[Mapping[Fault | None, str]] = {
    None: "",
    **{fault: DESCRIPTIONS[name] for name, fault in FAULTS.items()},
}


def describe(fault: Fault | None) -> str:
    """Return what the server does for one of `FAULTS`, in words."""
    return _WORDS[fault]


# The calls


def _add(protocol: CreduseProtocol) -> Call[Any]:
    return protocol.add(USER, AMOUNT)


def _add_with_key(protocol: CreduseProtocol) -> Call[Any]:
    return protocol.add(USER, AMOUNT, idempotency_key="key-1")


def _add_briefly(protocol: CreduseProtocol) -> Call[Any]:
    return protocol.add(USER, AMOUNT, timeout=2 * SHORT_TIMEOUT)


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

# The same idempotency key would get the stored response.
_FOLLOWING_CALLS: Final = {Kind.WRITE: _add, Kind.READ: _get_balance, Kind.REPLAYABLE: _add}


# What each fault proves, and how a call may then end


@dataclass(frozen=True, slots=True)
class _Row:
    """What a client can know after a fault, with any transport."""

    errors: tuple[type[CreduseError], ...]
    """What a call without a retry raises. Empty: it returns a result."""
    evidence: Outcome
    transient: bool
    """A retry can help."""
    kinds: tuple[Kind, ...] = (Kind.WRITE, Kind.READ, Kind.REPLAYABLE)
    """The kinds of call to test."""
    must_not_reuse: bool = False
    """The response may belong to another request, so the client must not reuse the connection."""
    timed: bool = False
    """The attempt ends by its timeout."""
    surplus: bool = False
    """The server sends more than one response."""
    given_up: tuple[type[CreduseError], ...] = ()
    """What a call may raise in place of a retry."""


_NOT, _UNKNOWN, _APPLIED = Outcome.NOT_APPLIED, Outcome.UNKNOWN, Outcome.APPLIED

_GOOD = _Row((), _APPLIED, transient=False)
_SURPLUS = replace(_GOOD, must_not_reuse=True, surplus=True)
_SILENT = _Row((CreduseTimeoutError,), _UNKNOWN, transient=True, timed=True)
_LOST = _Row((TransportError,), _UNKNOWN, transient=True)
_CUT = _Row((InvalidResponseError,), _UNKNOWN, transient=True)
# A reset may overtake bytes that were sent before it.
_CUT_OR_LOST = replace(_CUT, errors=(InvalidResponseError, TransportError))
# http.client accepts a head that the end of the stream cuts.
_HALF_A_HEAD = replace(_CUT_OR_LOST, given_up=(InvalidResponseError,))
_MISMATCHED = _Row((InvalidResponseError,), _UNKNOWN, transient=False, must_not_reuse=True)
_MISREAD = _Row((InvalidResponseError,), _APPLIED, transient=False)
_REFUSED = _Row((APIError,), _NOT, transient=False)
_LIMITED = _Row((RateLimitError,), _NOT, transient=True)
# The response may belong to an earlier request on the connection. Such responses are rare, so the
# client can afford a new connection.
_FAILED = _Row((ServerError,), _UNKNOWN, transient=True, must_not_reuse=True)
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
    "wrong-user": _MISMATCHED,
    "wrong-amount": replace(_MISMATCHED, kinds=_WRITES),
    "mistyped-field": _MISREAD,
    **dict.fromkeys(("deep", "not-json", "gzip", "gzip-undeclared"), _MISMATCHED),
    **dict.fromkeys(("huge-body", "huge-chunks"), replace(_MISMATCHED, kinds=_ONE_WRITE)),
    **dict.fromkeys(("200-error", "204", "301", "302", "303", "307", "308"), _MISMATCHED),
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
    """Return how a call may end if ``fault`` affects its first request."""
    received = 0 if fault.stage is Stage.CONNECTED else 1
    applied = int(fault.stage is Stage.APPLIED and kind is not Kind.READ)
    outcome = _NOT if kind is Kind.READ else row.evidence
    if received and outcome is _NOT and kind is Kind.REPLAYABLE:
        # Another request with this key may be in flight.
        outcome = _UNKNOWN
    without_retry = Ending(row.errors, outcome, received, applied)
    if not (row.transient and (kind is not Kind.WRITE or row.evidence is _NOT)):
        return (without_retry,)
    writes = int(kind is not Kind.READ)
    retried = Ending((), _NOT if kind is Kind.READ else _APPLIED, received + 1, writes)
    return (retried, replace(without_retry, errors=row.given_up)) if row.given_up else (retried,)


_RETRY_AFTER: Final = {"429-seconds": 1.0, "429-date": 1.0}
"""Seconds that a response asks the client to wait."""


def _scenario(kind: Kind, name: str, row: _Row) -> Scenario:
    fault = FAULTS[name]
    call, make = _CALLS[kind]
    at_least, at_most = _RETRY_AFTER.get(name, 0.0), MAX_SECONDS
    if row.timed and kind is Kind.WRITE:
        make = _add_briefly
        # No earlier: each timeout of a write is an UNKNOWN.
        at_least, at_most = 2 * SHORT_TIMEOUT, 2 * SHORT_TIMEOUT + MAX_OVERRUN
    return Scenario(
        f"{call}-meets-{name}",
        make,
        _endings(kind, row, fault),
        (fault,),
        attempt_timeout=SHORT_TIMEOUT if row.timed else LONG_TIMEOUT,
        must_not_reuse=row.must_not_reuse,
        pause_after=0.1 if name.endswith("-later") else 0.0,
        at_least=at_least,
        at_most=at_most,
        followed_by=_FOLLOWING_CALLS[kind] if row.surplus else None,
        limit=Limit.SURPLUS if row is _SURPLUS else None,
    )


def _on_a_used_connection(scenario: Scenario) -> Scenario:
    return replace(scenario, name=f"{scenario.name}-on-a-used-connection", on_used_connection=True)


_BY_FAULT: Final = tuple(
    _scenario(kind, name, row) for name, row in _ROWS.items() for kind in row.kinds
)
# A library may retry by itself when an idle connection fails. Here it must not.
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


# Scenarios of more than one fault, or of other calls


def _failed(outcome: Outcome, requests: int, applied: int, *errors: type[CreduseError]) -> Ending:
    return Ending(errors, outcome, requests, applied)


def _done(requests: int = 1, applied: int = 1) -> Ending:
    return Ending((), _APPLIED if applied else _NOT, requests, applied)


def _faults(*names: str) -> tuple[Fault, ...]:
    return tuple(FAULTS[name] for name in names)


_LONG: Final = 2 * SHORT_TIMEOUT + MAX_OVERRUN + 2.0
"""Seconds that a slow response lasts at least. A call must end far earlier."""
_PAUSE: Final = 0.05
"""Seconds between the pieces of a slow response."""


_FOR_LONG: Final = f"for more than {_LONG:g} s"


def _slow_pieces(piece: bytes) -> Iterable[bytes]:
    return itertools.repeat(piece, int(_LONG / _PAUSE))


def _drip_head(head: bytes, body: bytes) -> Iterable[bytes]:
    return itertools.chain((head[:-2] + b"Padding: ",), _slow_pieces(b"x"), (b"\r\n\r\n" + body,))


def _drip_interim_head(head: bytes, body: bytes) -> Iterable[bytes]:
    begun = b"HTTP/1.1 100 Continue\r\nPadding: "
    return itertools.chain((begun,), _slow_pieces(b"x"), (b"\r\n\r\n" + head + body,))


def _drip_interim(head: bytes, body: bytes) -> Iterable[bytes]:
    return itertools.chain(_slow_pieces(b"HTTP/1.1 100 Continue\r\n\r\n"), (head + body,))


def _drip_body(head: bytes, body: bytes) -> Iterable[bytes]:
    padding = [*_slow_pieces(b" ")]
    longer = b"Content-Length: %d\r\n" % (len(body) + len(padding))
    return (head.replace(b"Content-Length: %d\r\n" % len(body), longer), *padding, body)


def _drip_chunk_size(head: bytes, body: bytes) -> Iterable[bytes]:
    length = b"Content-Length: %d\r\n" % len(body)
    head = head.replace(length, b"Transfer-Encoding: chunked\r\n")
    return (head, *_slow_pieces(b"0"), b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))


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


def _drips(what: str, description: str, shape: Shape, pause: float = _PAUSE) -> Scenario:
    return Scenario(
        f"add-meets-{what}-that-drips-too-long",
        _add_briefly,
        (_LATE,),
        (Shaped(shape, pause=pause),),
        at_least=2 * SHORT_TIMEOUT,
        at_most=2 * SHORT_TIMEOUT + MAX_OVERRUN,
        limit=Limit.TIME,
        endings_at_limit=(_done(),),
        fault_description=description,
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
_CHALLENGED: Final = "send 401 with a WWW-Authenticate challenge"
_CHALLENGE: Final = CannedResponse(401, (("WWW-Authenticate", 'Basic realm="x"'),))
_LAST_OF_ITS_CONNECTION: Final = CannedResponse(503, (("Connection", "close"),))

_OTHER_SCENARIOS: Final = (
    # No fault
    Scenario("add", _add, (_done(),)),
    Scenario("subtract", _subtract, (_done(),)),
    Scenario("start_cycle", _start_cycle, (_done(),)),
    Scenario("get_balance", _get_balance, (_done(applied=0),)),
    Scenario(
        "add-on-a-used-connection",
        _add,
        (_done(),),
        on_used_connection=True,
        must_reuse=True,
        limit=Limit.REUSE,
    ),
    # The service refuses.
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
        fault_description=_CHALLENGED,
    ),
    # A refusal proves nothing about an earlier request with the same idempotency key.
    Scenario(
        "add-with-key-is-challenged",
        _add_with_key,
        (_failed(_UNKNOWN, 1, 0, AuthenticationError),),
        (_CHALLENGE,),
        fault_description=_CHALLENGED,
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
        fault_description="send 409 with the error that the idempotency key is in use",
    ),
    Scenario(
        "add-with-key-is-in-use-to-the-end",
        _add_with_key,
        (_failed(_UNKNOWN, 3, 0, APIError),),
        (_KEY_IN_USE,) * 3,
        fault_description="send 409 three times, with the error that the idempotency key is in use",
    ),
    # The client cannot send a request.
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
    # A success must repeat the user, and the amount of a write. All else may be missing.
    Scenario(
        "subtract-meets-missing-field",
        _subtract,
        (_failed(_UNKNOWN, 1, 1, InvalidResponseError),),
        _faults("missing-field"),
        must_not_reuse=True,
    ),
    Scenario(
        "get_balance-meets-missing-field",
        _get_balance,
        (_failed(_NOT, 1, 0, InvalidResponseError),),
        _faults("missing-field"),
    ),
    Scenario("add-meets-missing-field", _add, (_done(),), _faults("missing-field")),
    # More than one fault
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
        # InsufficientFundsError would say that no credits moved. They may have.
        (_failed(_UNKNOWN, 2, 1, APIError),),
        (FAULTS["apply-then-close"], _NO_FUNDS),
        fault_description=(
            "apply the request and send no response, then close the connection; then send 402 with "
            "the error that funds are insufficient"
        ),
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
    # What libraries may do by themselves
    Scenario(
        "add-is-given-a-cookie",
        _add,
        (_done(2),),
        (_COOKIE,),
        fault_description="send 429 with a cookie",
    ),
    Scenario(
        "get_balance-meets-a-503-that-closes",
        _get_balance,
        (_done(2, 0),),
        (_LAST_OF_ITS_CONNECTION,),
        fault_description="send 503 with Connection: close",
    ),
    Scenario(
        "add-meets-101",
        _add,
        (_failed(_UNKNOWN, 1, 1, InvalidResponseError, TransportError),),
        (Shaped(_switching),),
        must_not_reuse=True,
        fault_description="send 101 Switching Protocols",
    ),
    Scenario(
        "add-right-after-close-after",
        _add,
        # The client may or may not notice the end of the connection in time.
        (_done(), _failed(_UNKNOWN, 0, 0, TransportError), _failed(_UNKNOWN, 1, 0, TransportError)),
        on_used_connection=True,
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
        must_not_reuse=True,
        fault_description=f"send more than {MAX_BODY_SIZE} bytes of a body and never its end",
    ),
    # RFC 9112, 6.3: the client may accept or reject it, and must not reuse the connection.
    Scenario(
        "add-meets-framed-twice",
        _add,
        (_done(), _failed(_UNKNOWN, 1, 1, TransportError, InvalidResponseError)),
        _faults("framed-twice"),
        must_not_reuse=True,
    ),
    Scenario(
        "add-meets-103-first",
        _add,
        (_done(),),
        _faults("103-first"),
        limit=Limit.INTERIM,
        endings_at_limit=(_failed(_UNKNOWN, 1, 1, InvalidResponseError),),
    ),
    # For a write, the attempt's timeout bounds connecting, not the wait for the response.
    Scenario(
        "add-waits-for-its-response",
        _add,
        (_done(),),
        (Shaped(_body_later, pause=1.5 * SHORT_TIMEOUT),),
        attempt_timeout=SHORT_TIMEOUT,
        fault_description=f"send the head, and {1.5 * SHORT_TIMEOUT:g} s later the body",
    ),
    # The timeout expires while bytes still arrive.
    _drips("a-head", f"send the head byte by byte, {_FOR_LONG}", _drip_head),
    _drips("a-100", f"send 100 Continue byte by byte, {_FOR_LONG}", _drip_interim_head),
    replace(
        _drips("100s", f"send 100 Continue again and again, {_FOR_LONG}", _drip_interim),
        # A client may limit their number.
        endings=(_LATE, _failed(_UNKNOWN, 1, 1, TransportError)),
        at_least=0.0,
    ),
    _drips("a-chunk", f"send a chunk's size digit by digit, {_FOR_LONG}", _drip_chunk_size),
    # No limit: a transport that reads a body piece by piece can check the time.
    replace(
        _drips("a-body", f"send the head, then the body byte by byte, {_FOR_LONG}", _drip_body),
        limit=None,
        endings_at_limit=(),
    ),
    replace(
        _drips("a-body", "send the head, then the body byte by byte, endlessly", _trickle_body, 0),
        name="add-meets-a-body-that-trickles",
        limit=None,
        endings_at_limit=(),
    ),
    Scenario(
        "get_balance-meets-a-head-that-drips-too-long",
        _get_balance,
        (_done(2, 0),),
        (Shaped(_drip_head, pause=_PAUSE),),
        attempt_timeout=SHORT_TIMEOUT,
        at_least=SHORT_TIMEOUT,
        at_most=SHORT_TIMEOUT + MAX_OVERRUN,
        limit=Limit.TIME,
        endings_at_limit=(_done(1, 0),),
        fault_description=f"send the head byte by byte, {_FOR_LONG}",
    ),
)


def _connecting(*, secure: bool) -> Iterator[Scenario]:
    """Return the scenarios in which the server reads nothing from the connection.

    Over TLS the client sends no request before the server's part of the handshake.
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
                scenario = replace(
                    scenario, make=_CALLS[kind][1], at_least=SHORT_TIMEOUT, at_most=MAX_SECONDS
                )
            elif not secure and not row.timed and kind is Kind.WRITE:
                # The client may notice before it sends the request.
                endings = (*scenario.endings, *_endings(kind, unsent, FAULTS[name]))
                scenario = replace(scenario, endings=endings)
            yield scenario


_EVERYWHERE: Final = (*_OTHER_SCENARIOS, *_BY_FAULT, *_USED)

SCENARIOS: Final[tuple[Scenario, ...]] = (*_EVERYWHERE, *_connecting(secure=False))
"""All scenarios over plain HTTP."""

TLS_SCENARIOS: Final[tuple[Scenario, ...]] = (
    *(
        replace(scenario, name=f"{scenario.name}-over-tls", certificate="good")
        for scenario in (*_EVERYWHERE, *_connecting(secure=True))
    ),
    *(
        Scenario(
            f"{call}-meets-{certificate}-certificate",
            make,
            (_failed(_NOT, 0, 0, TransportError),),
            certificate=certificate,
        )
        for certificate in ("untrusted", "misnamed", "expired")
        for call, make in _CALLS.values()
    ),
)
"""All scenarios over TLS. `Scenario.certificate` says which of ``ssl_contexts`` each needs."""
