"""A call's state machine: every state with every input."""

import functools
import itertools
import json
import math
import re
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import FrameType
from typing import Any

import pytest

from creduse_core import (
    TRANSITIONS,
    Call,
    CreduseError,
    CreduseProtocol,
    CreduseTimeoutError,
    Delivery,
    Done,
    Failure,
    Input,
    Kind,
    LocalProtocolError,
    Outcome,
    RateLimitError,
    Response,
    RetryPolicy,
    Send,
    State,
    TransportError,
    Wait,
)
from tests.common import USER_ID

PROTOCOL = CreduseProtocol("key", retry=RetryPolicy(server_replays=True))

GOOD = Response(200, (), json.dumps({"end_user_id": USER_ID, "amount": 7}).encode())
BUSY = Response(429, (), b"")
REFUSED = Response(402, (), b"")
NOT_SENT = Failure(Delivery.NOT_SENT, OSError("refused"), transient=True)
LOST = Failure(Delivery.MAYBE_SENT, OSError("reset"), transient=True)

# What may be said to a call, state by state. All else must be refused.
LEGAL = {
    State.READY: {Input.START, Input.ABANDON},
    State.IN_FLIGHT: {Input.RECEIVE_RESPONSE, Input.RECEIVE_FAILURE, Input.ABANDON},
    State.WAITING: {Input.WAKE, Input.ABANDON},
    State.SUCCEEDED: set[Input](),
    State.FAILED: set[Input](),
    State.ABANDONED: set[Input](),
}
ILLEGAL = [
    (state, given) for state, given in itertools.product(State, Input) if given not in LEGAL[state]
]


def subtract() -> Call[Any]:
    """Return a call that is ready, with 30 seconds and three attempts."""
    return PROTOCOL.subtract(USER_ID, 7)


def in_flight() -> Call[Any]:
    call = subtract()
    call.start(0.0)
    return call


def waiting() -> Call[Any]:
    call = in_flight()
    call.receive_response(BUSY, 1.0)
    return call


def succeeded() -> Call[Any]:
    call = in_flight()
    call.receive_response(GOOD, 1.0)
    return call


def failed() -> Call[Any]:
    call = in_flight()
    with pytest.raises(CreduseError):
        call.receive_response(REFUSED, 1.0)
    return call


def abandoned() -> Call[Any]:
    call = in_flight()
    call.abandon(1.0)
    return call


IN_STATE: dict[State, Callable[[], Call[Any]]] = {
    State.READY: subtract,
    State.IN_FLIGHT: in_flight,
    State.WAITING: waiting,
    State.SUCCEEDED: succeeded,
    State.FAILED: failed,
    State.ABANDONED: abandoned,
}

# An input in two ways where what comes of it depends on more than the state.
Act = Callable[[Call[Any]], object]
ROWS: list[tuple[State, Input, State, Act]] = [
    (State.READY, Input.START, State.IN_FLIGHT, lambda c: c.start(2.0)),
    (State.READY, Input.START, State.WAITING, lambda c: c.start(2.0, 5.0)),
    (State.READY, Input.START, State.FAILED, lambda c: c.start(2.0, 30.0)),
    (State.READY, Input.ABANDON, State.ABANDONED, lambda c: c.abandon(2.0)),
    (
        State.IN_FLIGHT,
        Input.RECEIVE_RESPONSE,
        State.SUCCEEDED,
        lambda c: c.receive_response(GOOD, 2.0),
    ),
    (
        State.IN_FLIGHT,
        Input.RECEIVE_RESPONSE,
        State.WAITING,
        lambda c: c.receive_response(BUSY, 2.0),
    ),
    (
        State.IN_FLIGHT,
        Input.RECEIVE_RESPONSE,
        State.FAILED,
        lambda c: c.receive_response(REFUSED, 2.0),
    ),
    (
        State.IN_FLIGHT,
        Input.RECEIVE_FAILURE,
        State.WAITING,
        lambda c: c.receive_failure(NOT_SENT, 2.0),
    ),
    (State.IN_FLIGHT, Input.RECEIVE_FAILURE, State.FAILED, lambda c: c.receive_failure(LOST, 2.0)),
    (State.IN_FLIGHT, Input.ABANDON, State.ABANDONED, lambda c: c.abandon(2.0)),
    (State.WAITING, Input.WAKE, State.IN_FLIGHT, lambda c: c.wake(2.0)),
    (State.WAITING, Input.WAKE, State.WAITING, lambda c: c.wake(2.0, 5.0)),
    (State.WAITING, Input.WAKE, State.FAILED, lambda c: c.wake(30.0)),
    (State.WAITING, Input.ABANDON, State.ABANDONED, lambda c: c.abandon(2.0)),
]
RETURNS: dict[State, type] = {
    State.IN_FLIGHT: Send,
    State.WAITING: Wait,
    State.SUCCEEDED: Done,
    State.ABANDONED: type(None),
}
GIVE: dict[Input, Act] = {
    Input.START: lambda c: c.start(2.0),
    Input.RECEIVE_RESPONSE: lambda c: c.receive_response(GOOD, 2.0),
    Input.RECEIVE_FAILURE: lambda c: c.receive_failure(NOT_SENT, 2.0),
    Input.WAKE: lambda c: c.wake(2.0),
    Input.ABANDON: lambda c: c.abandon(2.0),
}


def seen(call: Call[Any]) -> tuple[object, ...]:
    """Return all public state of a call."""
    return call.state, call.attempts, call.outcome, call.response, call.request, repr(call)


def rest(call: Call[Any]) -> list[str]:
    """Drive a call to its end, and return all its actions as text. They show hidden state."""
    responses: list[object] = []
    if call.state is State.READY:
        responses.append(call.start(0.0))
    if call.state is State.IN_FLIGHT:
        responses.append(call.receive_failure(NOT_SENT, 3.0))
    if call.state is State.WAITING:
        responses += [call.wake(4.0), call.receive_response(GOOD, 5.0), call.attempts]
    return [*map(repr, responses)]


def test_table() -> None:
    """The table has these moves and no others."""
    moves = [
        (state, given, after)
        for state, inputs in TRANSITIONS.items()
        for given, states in inputs.items()
        for after in states
    ]
    assert sorted(moves) == sorted(row[:3] for row in ROWS)
    assert TRANSITIONS.keys() == set(State)


@pytest.mark.parametrize(
    ("state", "given", "after", "act"),
    [pytest.param(*row, id=f"{row[0]}-{row[1]}-{row[2]}") for row in ROWS],
)
def test_each_move(state: State, given: Input, after: State, act: Act) -> None:
    """Each move of the table happens, and the method returns what belongs to the next state."""
    call = IN_STATE[state]()
    assert call.state is state
    assert given in LEGAL[state]
    if after is State.FAILED:
        with pytest.raises(CreduseError):
            act(call)
    else:
        assert type(act(call)) is RETURNS[after]
    assert call.state is after


def test_moves_are_held_to_the_table() -> None:
    """A move outside the table raises."""
    call = subtract()
    with pytest.raises(AssertionError, match="start does not lead from ready to succeeded"):
        call._move(Input.START, State.SUCCEEDED)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # nothing else can make a wrong move


@pytest.mark.parametrize(("state", "given"), ILLEGAL)
def test_each_rejected_input(state: State, given: Input) -> None:
    """An input that the state does not allow is rejected, and changes nothing."""
    call, untouched = IN_STATE[state](), IN_STATE[state]()
    before = seen(call)
    message = f"{given}() is not allowed while the call is {state}"
    if given is Input.START:
        message = f"a call runs only once, and this one is already {state}: make a new call"
    with pytest.raises(LocalProtocolError, match=f"^{re.escape(message)}$"):
        GIVE[given](call)
    assert seen(call) == before
    assert rest(call) == rest(untouched)


@pytest.mark.parametrize(
    ("given", "value", "jitter", "message"),
    [
        (Input.RECEIVE_RESPONSE, LOST, 1.0, "needs a Response, not a Failure"),
        (Input.RECEIVE_RESPONSE, None, 1.0, "needs a Response, not None"),
        (Input.RECEIVE_RESPONSE, b"{}", 1.0, "needs a Response, not a bytes"),
        (Input.RECEIVE_FAILURE, GOOD, 1.0, "needs a Failure, not a Response"),
        (Input.RECEIVE_FAILURE, OSError(), 1.0, "needs a Failure, not a OSError"),
        (Input.RECEIVE_RESPONSE, GOOD, -0.01, "jitter must be a number from 0 to 1, not -0.01"),
        (Input.RECEIVE_RESPONSE, BUSY, 1.01, "jitter must be a number from 0 to 1, not 1.01"),
        (Input.RECEIVE_RESPONSE, BUSY, math.nan, "jitter must be a number from 0 to 1, not nan"),
        (Input.RECEIVE_FAILURE, LOST, -1, "jitter must be a number from 0 to 1, not -1"),
        (Input.RECEIVE_FAILURE, LOST, math.inf, "jitter must be a number from 0 to 1, not inf"),
    ],
)
def test_wrong_value(given: Input, value: object, jitter: float, message: str) -> None:
    """A value of the wrong type is rejected, and changes nothing."""
    call = in_flight()
    before = seen(call)
    with pytest.raises(LocalProtocolError, match=f"{message}$"):
        getattr(call, given)(value, 1.0, jitter)
    assert seen(call) == before
    assert rest(call) == rest(in_flight())


@pytest.mark.parametrize("hold", [-1.0, math.nan])
@pytest.mark.parametrize(("make", "given"), [(subtract, Input.START), (waiting, Input.WAKE)])
def test_wrong_hold(make: Callable[[], Call[Any]], given: Input, hold: float) -> None:
    """A hold that is not a time is rejected, and changes nothing."""
    call = make()
    before = seen(call)
    message = f"hold must be a number of seconds, at least 0, not {hold}"
    with pytest.raises(LocalProtocolError, match=f"{message}$"):
        getattr(call, given)(1.0, hold)
    assert seen(call) == before
    assert rest(call) == rest(make())


def held() -> Call[Any]:
    """Return a call that waits before its first request."""
    call = subtract()
    assert call.start(0.0, 5.0) == Wait(5.0)
    return call


def test_held() -> None:
    """A held call has sent nothing. After the wait it can be held again, and then it sends."""
    call = held()
    assert (call.state, call.outcome, call.attempts) == (State.WAITING, Outcome.NOT_APPLIED, ())
    assert call.wake(5.0, 2.5) == Wait(2.5)
    send = call.wake(7.5)
    assert (send.connect_by, send.deadline) == (17.5, 30.0)
    assert type(call.receive_response(GOOD, 8.0)) is Done
    assert [(it.number, it.started, it.ended) for it in call.attempts] == [(1, 7.5, 8.0)]


@pytest.mark.parametrize(
    "act",
    [lambda: subtract().start(0.0, 30.0), lambda: held().wake(5.0, 25.0)],
    ids=["at once", "again"],
)
def test_held_too_long(act: Callable[[], object]) -> None:
    """A hold that outlasts the call's time ends it at once, with nothing sent."""
    with pytest.raises(CreduseTimeoutError) as caught:
        act()
    assert caught.value.outcome is Outcome.NOT_APPLIED
    assert caught.value.attempts == ()
    assert re.fullmatch(
        rf"subtract\({USER_ID}, 7\): not sent: the pace would hold the request beyond the call's timeout of 30 s "
        r"\[not applied; 0 attempts\]",
        str(caught.value),
    )


def test_held_until_the_deadline() -> None:
    """A call that is woken after its deadline, still without an attempt, has timed out, too."""
    with pytest.raises(CreduseTimeoutError, match="not applied; 0 attempts"):
        held().wake(30.0)


def test_held_before_a_retry() -> None:
    """A retry that is held for too long raises the last attempt's error."""
    call = waiting()
    assert call.wake(2.0, 5.0) == Wait(5.0)
    with pytest.raises(RateLimitError):
        call.wake(7.0, 23.0)
    assert len(call.attempts) == 1


@pytest.mark.parametrize("jitter", [0.0, 1.0, 0, 1])
def test_jitter_at_its_bounds(jitter: float) -> None:
    """Jitter may be 0 and 1."""
    assert in_flight().receive_failure(NOT_SENT, 1.0, jitter) == Wait(0.5 * jitter)


def test_misuse_is_not_a_creduse_error() -> None:
    """Wrong use of the core is not a `CreduseError`."""
    assert issubclass(LocalProtocolError, RuntimeError)
    assert not issubclass(LocalProtocolError, CreduseError)


@pytest.mark.parametrize("state", State)
def test_live_states(state: State) -> None:
    """A call is live as long as it accepts an input."""
    assert state.live is bool(LEGAL[state])


@pytest.mark.parametrize(
    ("kind", "outcome"),
    [
        (Kind.READ, Outcome.NOT_APPLIED),
        (Kind.WRITE, Outcome.UNKNOWN),
        (Kind.REPLAYABLE, Outcome.UNKNOWN),
    ],
)
def test_outcome_in_flight(kind: Kind, outcome: Outcome) -> None:
    """The outcome is UNKNOWN during a request, and after it is abandoned."""
    calls: dict[Kind, Call[Any]] = {
        Kind.READ: PROTOCOL.get_balance(USER_ID),
        Kind.WRITE: PROTOCOL.subtract(USER_ID, 7),
        Kind.REPLAYABLE: PROTOCOL.subtract(USER_ID, 7, idempotency_key="again"),
    }
    call = calls[kind]
    assert call.outcome is Outcome.NOT_APPLIED
    call.start(0.0)
    assert call.outcome is outcome
    call.abandon(1.0)
    assert call.outcome is outcome
    assert [(a.event, a.outcome, a.status, a.error) for a in call.attempts] == [
        ("abandoned", outcome, None, "abandoned by the caller")
    ]


@pytest.mark.parametrize("make", [subtract, waiting], ids=["ready", "waiting"])
def test_abandoned_with_nothing_out(make: Callable[[], Call[Any]]) -> None:
    """Abandoning a call between requests adds no attempt and keeps the outcome."""
    call = make()
    attempts = call.attempts
    call.abandon(2.0)
    assert (call.state, call.outcome) == (State.ABANDONED, Outcome.NOT_APPLIED)
    assert call.attempts == attempts


def test_refused_after_being_in_flight() -> None:
    """The outcome is NOT_APPLIED again once the response proves it."""
    assert in_flight().outcome is Outcome.UNKNOWN
    assert failed().outcome is Outcome.NOT_APPLIED


def test_last_response() -> None:
    """``call.response`` is the last response as it came, also if it was cut."""
    call = PROTOCOL.get_balance(USER_ID)
    call.start(0.0)
    before = call.response
    head = Response(200, [("A", "b")], b'{"end_us')
    call.receive_failure(replace(LOST, response=head), 1.0)
    last = [call.response]
    call.wake(2.0)
    call.receive_failure(LOST, 3.0)
    last.append(call.response)
    call.wake(4.0)
    with pytest.raises(CreduseError):
        call.receive_response(REFUSED, 5.0)
    last.append(call.response)
    assert [before, *last] == [None, head, head, REFUSED]


def test_history() -> None:
    """An attempt says what was sent when, what happened, and what that proves."""
    call = subtract()
    call.start(10.0)
    call.receive_failure(NOT_SENT, 11.0)
    call.wake(12.0)
    with pytest.raises(TransportError) as caught:
        call.receive_failure(LOST, 13.5)
    first, second = call.attempts
    assert (first.number, first.method, first.path, first.status) == (1, "POST", "/subtract", None)
    assert (first.event, first.outcome) == ("not_sent", Outcome.NOT_APPLIED)
    assert (first.error, first.started, first.ended) == ("OSError: refused", 10.0, 11.0)
    assert (second.number, second.event, second.outcome) == (2, "no_response", Outcome.UNKNOWN)
    assert (second.started, second.ended) == (12.0, 13.5)
    assert caught.value.attempts == (first, second)


def test_repr() -> None:
    """A call's repr shows its request and its state."""
    assert repr(waiting()) == "<Call POST /subtract, waiting>"


class Interrupt(BaseException):
    """What a signal handler raises."""


def interrupted_at(step: int, act: Callable[[], object]) -> bool:
    """Raise before this line of the core runs. Return whether there are that many."""
    left = step

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal left
        if "creduse_core" not in frame.f_code.co_filename:
            return None
        if event == "line":
            left -= 1
            if left < 0:
                raise Interrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        act()
    except (Interrupt, CreduseError):
        pass
    finally:
        sys.settrace(before)
    return left < 0


@pytest.mark.parametrize(
    ("reported", "proved"),
    [(GOOD, "done"), (BUSY, "rate_limited"), (REFUSED, "rejected"), (NOT_SENT, "not_sent")],
)
def test_interrupted_anywhere(reported: Response | Failure, proved: str) -> None:
    """Wherever a signal handler raises, an attempt is recorded once, and as what is known of it."""
    names: list[str] = []
    for step in itertools.count():
        call = in_flight()
        is_failure = isinstance(reported, Failure)
        give: Any = call.receive_failure if is_failure else call.receive_response
        # In a thread of its own: before Python 3.13, an exception of a trace function in an ``except``
        # block leaves that block's exception behind, as the context of all later ones in the thread.
        with ThreadPoolExecutor(1) as pool:
            act = functools.partial(give, reported, 1.0)
            interrupted = pool.submit(interrupted_at, step, act).result()
        if not interrupted:
            break
        if call.state.live:
            call.abandon(2.0)
        (attempt,) = call.attempts
        assert call.outcome >= attempt.outcome
        names.append(attempt.event)
    assert names == sorted(names, key=["abandoned", proved].index)
    assert set(names) == {"abandoned", proved}


def test_interrupted_while_it_is_abandoned() -> None:
    """A second exception, such as SIGINT after a time limit, leaves the call unknown."""
    for step in itertools.count():
        call = in_flight()
        with ThreadPoolExecutor(1) as pool:
            act = functools.partial(call.abandon, 2.0)
            interrupted = pool.submit(interrupted_at, step, act).result()
        assert call.outcome is Outcome.UNKNOWN
        if not interrupted:
            assert call.state is State.ABANDONED
            break
