"""Every state of an entry with every change."""

import itertools
from typing import Any

import pytest

from creduse_core import (
    Call,
    CreduseError,
    CreduseProtocol,
    Delivery,
    Failure,
    LocalProtocolError,
    Response,
)
from creduse_journal import RULES, Change, State
from creduse_journal._states import change_of, state_after
from tests.common import USER, credits_body

# What the rules must be, written out once more.
LEGAL = {
    (State.FREE, Change.CLAIM): State.CLAIMED,
    (State.CLAIMED, Change.APPLY): State.APPLIED,
    (State.CLAIMED, Change.REFUSE): State.REFUSED,
    (State.CLAIMED, Change.RELEASE): State.FREE,
    (State.CLAIMED, Change.DOUBT): State.UNCLEAR,
    (State.UNCLEAR, Change.SETTLE_APPLIED): State.APPLIED,
    (State.UNCLEAR, Change.SETTLE_FREE): State.FREE,
    (State.REFUSED, Change.SETTLE_FREE): State.FREE,
}


@pytest.mark.parametrize(("state", "change"), [*itertools.product(State, Change)])
def test_every_change(state: State, change: Change) -> None:
    """A change leads to the state that the rules name, or is rejected."""
    if (state, change) in LEGAL:
        assert state_after(state, change) is LEGAL[state, change]
    else:
        with pytest.raises(LocalProtocolError, match=f"cannot {change} an entry that is {state}"):
            state_after(state, change)
    assert RULES.keys() == set(State)


def test_sent_again_only_from_free() -> None:
    """Whatever happens, an entry is claimed again only after it was free, and never once applied."""
    for length in range(1, 6):
        for changes in itertools.product(Change, repeat=length):
            state, claims = State.FREE, 0
            for change in changes:
                after = RULES[state].get(change)
                if after is None:
                    break
                claims += after is State.CLAIMED
                assert (after is State.CLAIMED) is (state is State.FREE)
                assert state is not State.APPLIED
                state = after


PROTOCOL = CreduseProtocol("key", timeout=1)


def ended(event: Response | Failure | None) -> Call[Any]:
    """Return a call that ended so. ``None``: it was abandoned in flight."""
    call = PROTOCOL.add(USER, 7)
    call.start(0.0)
    try:
        if isinstance(event, Response):
            call.receive_response(event, 1.0)
        elif event is not None:
            call.receive_failure(event, 1.0)
        else:
            call.abandon(1.0)
    except CreduseError:
        pass
    return call


@pytest.mark.parametrize(
    ("event", "change"),
    [
        (Response(200, (), credits_body(7)), Change.APPLY),
        (Response(200, (), credits_body(7)[:-3] + b'"x"}'), Change.APPLY),  # misread
        (Response(402, (), b'{"error_code": "INSUFFICIENT_FUNDS"}'), Change.REFUSE),
        (Response(409, (), b'{"error_code": "ACTIVE_CYCLE_EXISTS"}'), Change.REFUSE),
        (Response(402, (), b""), Change.RELEASE),
        (Response(401, (), b""), Change.RELEASE),
        (Response(429, (), b""), Change.RELEASE),
        (Failure(Delivery.NOT_SENT, OSError("refused"), transient=True), Change.RELEASE),
        (Failure(Delivery.NOT_SENT, OSError("certificate"), transient=False), Change.RELEASE),
        (Failure(Delivery.MAYBE_SENT, OSError("reset"), transient=True), Change.DOUBT),
        (Response(500, (), b""), Change.DOUBT),
        (Response(200, (), b"?"), Change.DOUBT),
        (None, Change.DOUBT),
    ],
)
def test_change_of_a_call(event: Response | Failure | None, change: Change) -> None:
    """The outcome of a call decides, and the service's own codes say that it refuses."""
    assert change_of(ended(event)) is change


def test_change_of_a_call_without_attempts() -> None:
    """A call that was not sent is released."""
    call = PROTOCOL.add(USER, 7)
    assert change_of(call) is Change.RELEASE
    call.abandon(0.0)
    assert change_of(call) is Change.RELEASE
