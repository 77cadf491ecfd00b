"""Every sequence of events over three attempts, with the promises that hold in all of them.

Each step states what it proves and whether a retry may follow. The test keeps its own time and
outcome, so it does not rely on the core's tables.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest

from creduse_core import (
    EVENTS,
    ActiveCycleExistsError,
    APIError,
    Call,
    CreduseError,
    CreduseProtocol,
    CreduseTimeoutError,
    Delivery,
    Done,
    Failure,
    InvalidResponseError,
    Kind,
    LocalProtocolError,
    Outcome,
    RateLimitError,
    Response,
    RetryPolicy,
    Send,
    ServerError,
    State,
    TransportError,
    Wait,
)
from tests.common import USER_ID

NOT, UNKNOWN, APPLIED = Outcome.NOT_APPLIED, Outcome.UNKNOWN, Outcome.APPLIED
AGAIN, FINAL = True, False
DEADLINE, ATTEMPTS, JITTER = 30.0, 3, 0.5
WAITS = [0.25, 0.5]  # after the first attempt and the second, with that jitter
# Two long attempts pass the deadline, one and a short one do not.
SHORT, LONG = 1.0, 16.0
PROTOCOL = CreduseProtocol(
    "key", timeout=DEADLINE, retry=RetryPolicy(max_attempts=ATTEMPTS, server_replays=True)
)
# Two results in one: a response to add, and a balance.
RESULT: dict[str, object] = {
    "end_user_id": USER_ID,
    "amount": 7,
    "active_balance": 7,
    "active_balance_by_cycle": [],
}


@dataclass(frozen=True)
class Step:
    """The end of one attempt, and what must follow from it."""

    row: str
    evidence: Outcome
    """What it proves of a write."""
    transient: bool
    error: type[CreduseError] | None
    """What is raised if it is the last step; ``None`` if none is."""
    received: Response | Failure | None
    """``None``: the caller is cancelled."""
    asked: float | None = None
    """Seconds that its ``Retry-After`` asks for."""
    with_key: Outcome | None = None
    """What it proves of a write with an idempotency key, where that is something else."""

    def proves(self, kind: Kind) -> Outcome:
        """Return the outcome that this step proves for a call of this kind."""
        if kind is Kind.READ:
            return NOT
        with_key = self.with_key if kind is Kind.REPLAYABLE else None
        return self.evidence if with_key is None else with_key


def response(status: int, body: object = None, asked: float | None = None) -> Response:
    headers = [] if asked is None else [("Retry-After", f"{asked:.0f}")]
    return Response(status, headers, json.dumps(body).encode())


def lost(*, transient: bool, timed_out: bool = False, head: Response | None = None) -> Failure:
    return Failure(Delivery.MAYBE_SENT, OSError("lost"), transient, timed_out, head)


def unsent(*, transient: bool, timed_out: bool = False) -> Failure:
    return Failure(Delivery.NOT_SENT, OSError("unsent"), transient, timed_out)


STEPS = (
    Step("done", APPLIED, FINAL, None, response(200, RESULT)),
    Step(
        "misread",
        APPLIED,
        FINAL,
        InvalidResponseError,
        response(200, RESULT | {"validity_days": "7", "active_balance": "7"}),
    ),
    Step("mismatched", UNKNOWN, FINAL, InvalidResponseError, response(200, "ok")),
    Step("cut", UNKNOWN, AGAIN, InvalidResponseError, lost(transient=True, head=response(200))),
    Step(
        "cut",
        UNKNOWN,
        AGAIN,
        CreduseTimeoutError,
        lost(transient=True, timed_out=True, head=response(200, asked=2)),
        2.0,
    ),
    Step("not_sent", NOT, AGAIN, TransportError, unsent(transient=True)),
    Step("not_sent", NOT, AGAIN, CreduseTimeoutError, unsent(transient=True, timed_out=True)),
    Step("unsendable", NOT, FINAL, TransportError, unsent(transient=False)),
    Step("no_response", UNKNOWN, AGAIN, TransportError, lost(transient=True)),
    Step("no_response", UNKNOWN, AGAIN, CreduseTimeoutError, lost(transient=True, timed_out=True)),
    Step("broken", UNKNOWN, FINAL, TransportError, lost(transient=False)),
    Step("refused", NOT, FINAL, APIError, response(409, {"error_code": "ACTIVE_CYCLE_EXISTS"})),
    Step("rejected", NOT, FINAL, APIError, response(404), with_key=UNKNOWN),
    Step("conflict", UNKNOWN, AGAIN, APIError, response(409)),
    Step("rate_limited", NOT, AGAIN, RateLimitError, response(429), with_key=UNKNOWN),
    Step("rate_limited", NOT, AGAIN, RateLimitError, response(429, asked=2), 2.0, UNKNOWN),
    Step("rate_limited", NOT, AGAIN, RateLimitError, response(429, asked=900), 900.0, UNKNOWN),
    Step("request_timeout", UNKNOWN, AGAIN, APIError, response(408)),
    Step("server_error", UNKNOWN, AGAIN, ServerError, response(500)),
    Step("server_error", UNKNOWN, AGAIN, ServerError, response(503, asked=0), 0.0),
    Step("server_error", UNKNOWN, AGAIN, ServerError, response(503, asked=29), 29.0),
    Step(
        "server_error",
        UNKNOWN,
        AGAIN,
        InvalidResponseError,
        lost(transient=False, head=response(503, asked=2)),
        2.0,
    ),
    Step("unproven", UNKNOWN, FINAL, InvalidResponseError, response(302)),
    Step("abandoned", UNKNOWN, FINAL, None, None),
)
# How long each request is held before it is sent: not at all, or twice.
HOLDS = ((), (0.5, 0.25))
# A step and how long its attempt takes. Where nothing can follow, the time tells nothing more.
Beat = tuple[Step, float]
BEATS: tuple[Beat, ...] = tuple(
    (step, took) for step in STEPS for took in ((SHORT, LONG) if step.transient else (LONG,))
)


@dataclass
class Play:
    """The state of a call after a script, as the call reports it and as the test computes it."""

    call: Call[Any]
    now: float
    proved: Outcome
    """By ours."""
    ended: object
    """What came last: `Wait` if the call goes on."""


def make(kind: Kind) -> Call[Any]:
    if kind is Kind.READ:
        return PROTOCOL.get_balance(USER_ID)
    return PROTOCOL.add(USER_ID, 7, idempotency_key="once" if kind is Kind.REPLAYABLE else None)


def give(call: Call[Any], step: Step, now: float) -> object:
    """Pass a step to a call, and return its action or its error."""
    try:
        if isinstance(step.received, Response):
            return call.receive_response(step.received, now, JITTER)
        if isinstance(step.received, Failure):
            return call.receive_failure(step.received, now, JITTER)
        call.abandon(now)
    except CreduseError as error:
        return error
    return None


def must_go_on(kind: Kind, step: Step, proved: Outcome, sent: int, now: float) -> float | None:
    """Return the seconds to wait for the next attempt, or ``None`` if there must be none."""
    if not step.transient or sent == ATTEMPTS or (kind is Kind.WRITE and proved is not NOT):
        return None
    delay = max(WAITS[sent - 1], step.asked or 0.0)
    return delay if now + delay < DEADLINE else None


def check_end(step: Step, ended: object, play: Play) -> None:
    """Check that a call ends as its last step says, and that it sends nothing afterwards."""
    if isinstance(ended, CreduseError):
        refused = step.row == "refused" and play.proved is NOT
        assert type(ended) is (ActiveCycleExistsError if refused else step.error)
        assert (ended.outcome, ended.attempts) == (play.proved, play.call.attempts)
        if isinstance(step.received, Failure):
            assert ended.__cause__ is step.received.cause
        if isinstance(ended, APIError | InvalidResponseError):
            received = step.received
            assert ended.response == (
                received.response if isinstance(received, Failure) else received
            )
        if isinstance(ended, APIError):
            assert ended.retry_after == step.asked
    else:
        assert step.error is None
        assert isinstance(ended, Done) is (step.row == "done")
    for again in (play.call.start, play.call.wake):
        with pytest.raises(LocalProtocolError):
            again(play.now)


def go(play: Play, holds: tuple[float, ...], step: Step | None) -> object:
    """Go on with a call that is ready or waits, and return its action, or ``None`` if it is over.

    It is held before it sends. ``step``: its last step, if there was one.
    """
    go_on: Any = play.call.wake if step is not None else play.call.start
    action: object = None
    for hold in (*holds, 0.0):
        if play.now + hold >= DEADLINE:
            with pytest.raises(CreduseError) as caught:
                go_on(play.now, hold)
            assert step is not None  # the first request is not held for so long
            check_end(step, caught.value, play)
            return None
        action = go_on(play.now, hold)
        if hold:
            assert action == Wait(hold)
            assert play.call.state is State.WAITING
            play.now += hold
            go_on = play.call.wake
    return action


def run(kind: Kind, script: tuple[Beat, ...], holds: tuple[float, ...] = ()) -> Play:
    """Play a script from its beginning, and check every step."""
    call = make(kind)
    play = Play(call, 0.0, NOT, None)
    action = go(play, holds, None)
    last: Step | None = None
    for sent, (step, took) in enumerate(script, 1):
        if isinstance(action, Wait):
            assert action.seconds >= 0
            play.now += action.seconds
            action = go(play, holds, last)
            if action is None:
                break
        # Sent only in time, at most so often, and a write only while nothing can have moved.
        assert isinstance(action, Send)
        assert play.now < DEADLINE
        assert sent <= ATTEMPTS
        assert kind is not Kind.WRITE or play.proved is NOT
        assert action.request == call.request
        settled, last = play.proved, step

        play.now += took
        play.proved = max(play.proved, step.proves(kind))
        action = give(call, step, play.now)

        assert call.outcome is play.proved
        assert call.outcome >= settled
        assert len(call.attempts) == sent
        assert call.attempts[-1].event == step.row
        seconds = must_go_on(kind, step, play.proved, sent, play.now)
        if seconds is None:
            check_end(step, action, play)
        else:
            assert action == Wait(seconds)
            assert play.now + seconds < DEADLINE
    play.ended = action
    return play


def plays(
    kind: Kind, *, longest: int, holds: tuple[float, ...] = ()
) -> Iterator[tuple[tuple[Beat, ...], Play]]:
    """Yield every script of at most so many steps, and the state of its call."""
    pending: list[tuple[Beat, ...]] = [()]
    while pending:
        begun = pending.pop()
        for beat in BEATS:
            script = (*begun, beat)
            play = run(kind, script, holds)
            yield script, play
            if isinstance(play.ended, Wait) and len(script) < longest:
                pending.append(script)


def waits(kind: Kind) -> list[tuple[tuple[Beat, ...], Play]]:
    """Yield every script that ends in a wait."""
    found = [
        (script, play)
        for script, play in plays(kind, longest=ATTEMPTS - 1)
        if isinstance(play.ended, Wait)
    ]
    assert {len(script) for script, _ in found} == {1, ATTEMPTS - 1}
    return found


@pytest.mark.slow
@pytest.mark.parametrize("holds", HOLDS, ids=["", "held"])
@pytest.mark.parametrize("kind", Kind)
def test_every_sequence(kind: Kind, holds: tuple[float, ...]) -> None:
    """In every sequence of events, a write is sent once, the outcome is true, and time is kept."""
    lengths: set[int] = set()
    rows: set[str] = set()
    for script, play in plays(kind, longest=ATTEMPTS + 1, holds=holds):
        lengths.add(len(script))
        rows |= {step.row for step, _ in script}
        if isinstance(play.ended, CreduseError) and kind is not Kind.READ:
            doubtful = any(step.proves(kind) is not NOT for step, _ in script)
            assert (play.ended.outcome is NOT) is not doubtful
    assert lengths == {1, 2, 3}
    assert rows == set(EVENTS)


@pytest.mark.parametrize("kind", Kind)
def test_every_wait_that_lasts_too_long(kind: Kind) -> None:
    """A call that is woken after its deadline raises its last error."""
    for script, play in waits(kind):
        play.now = DEADLINE
        with pytest.raises(CreduseError) as caught:
            play.call.wake(play.now)
        assert len(play.call.attempts) == len(script)
        check_end(script[-1][0], caught.value, play)


@pytest.mark.parametrize("kind", Kind)
def test_every_hold_that_is_too_long(kind: Kind) -> None:
    """A retry that is held until the deadline raises the last error at once."""
    for script, play in waits(kind):
        with pytest.raises(CreduseError) as caught:
            play.call.wake(play.now, DEADLINE - play.now)
        assert len(play.call.attempts) == len(script)
        check_end(script[-1][0], caught.value, play)


@pytest.mark.parametrize("kind", Kind)
def test_every_wait_that_is_left(kind: Kind) -> None:
    """A call that is abandoned during a wait sends nothing more and keeps its outcome."""
    for script, play in waits(kind):
        play.call.abandon(play.now)
        assert play.call.outcome is play.proved
        assert len(play.call.attempts) == len(script)
        for again in (play.call.start, play.call.wake):
            with pytest.raises(LocalProtocolError):
                again(play.now)


def test_the_request_of_every_attempt() -> None:
    """Body and idempotency key are the same on every attempt."""
    call = make(Kind.REPLAYABLE)
    action: object = call.start(0.0)
    requests = [call.request]
    for now in (1.0, 2.0):
        assert isinstance(action, Send)
        requests.append(action.request)
        call.receive_failure(lost(transient=True), now)
        action = call.wake(now + 0.9)
    assert isinstance(action, Send)
    requests.append(action.request)
    assert len(requests) == 1 + ATTEMPTS
    assert all(first == second for first, second in pairwise(requests))
    assert ("Idempotency-Key", "once") in requests[-1].headers
