"""What a client tells of each attempt: to its listener, and to the log."""

import contextlib
import json
import logging
from collections.abc import Callable
from typing import Any

import pytest

from creduse_core import (
    Attempt,
    CreduseError,
    Delivery,
    Failure,
    InsufficientFundsError,
    Outcome,
    Response,
)

USER = "12345678-1234-5678-1234-567812345678"
KEY = "sk-live-0123456789"
BODY = json.dumps({"end_user_id": USER, "amount": 7}).encode()
GOOD = Response(200, [("X-Secret", "header")], BODY)
REFUSED = Response(402, (), b'{"error_code": "INSUFFICIENT_FUNDS"}')
UNSENT = Failure(Delivery.NOT_SENT, OSError("refused"), transient=True)

# Gives a client that plays these events; see conftest.py.
Play = Callable[..., Any]


class Cancelled(BaseException):
    """Stands for what a library cancels with."""


def attempts_of(log: pytest.LogCaptureFixture) -> list[Attempt]:
    return [vars(record)["attempt"] for record in log.records]


@pytest.fixture(autouse=True)
def _log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "creduse")


@pytest.mark.parametrize(
    "events",
    [[UNSENT, GOOD], [UNSENT, REFUSED], [Response(500, (), b"")]],
    ids=["done", "refused", "broken"],
)
def test_listener(play: Play, events: list[object], caplog: pytest.LogCaptureFixture) -> None:
    """The listener and the log are told of each attempt, in order, once."""
    seen: list[Attempt] = []
    player = play(*events, on_attempt=seen.append)
    call = player.protocol.subtract(USER, 7)
    with contextlib.suppress(CreduseError):
        player.do("run", call)
    assert (*seen,) == (*attempts_of(caplog),) == call.attempts
    assert len(seen) == len(events)


def test_listener_is_told_before_the_wait(play: Play) -> None:
    """An attempt is told of when it ends, not when the call does."""
    waited: list[list[float]] = []

    def note(_: Attempt) -> None:
        waited.append([*player.script.slept])

    player: Any = play(UNSENT, GOOD, on_attempt=note)
    player.do("subtract", USER, 7)
    assert waited == [[], [0.5]]


def test_cancelled_in_flight(play: Play, caplog: pytest.LogCaptureFixture) -> None:
    """An attempt that is given up is told of, once."""
    seen: list[Attempt] = []
    with pytest.raises(Cancelled):
        play(UNSENT, Cancelled(), on_attempt=seen.append).do("subtract", USER, 7)
    assert [attempt.event for attempt in seen] == ["not_sent", "abandoned"]
    assert attempts_of(caplog) == seen


def test_cancelled_asleep(play: Play) -> None:
    """Between two attempts there is none to tell of."""
    seen: list[Attempt] = []
    with pytest.raises(Cancelled):
        play(UNSENT, asleep=Cancelled(), on_attempt=seen.append).do("subtract", USER, 7)
    assert [attempt.event for attempt in seen] == ["not_sent"]


@pytest.mark.parametrize("event", [GOOD, REFUSED], ids=["done", "refused"])
def test_listener_that_raises(
    play: Play, event: Response, caplog: pytest.LogCaptureFixture
) -> None:
    """A listener's fault is logged as an error, and the call goes on to its own end."""

    def fault(_: Attempt) -> None:
        raise LookupError("not mine")

    player = play(UNSENT, event, on_attempt=fault)
    if event is GOOD:
        assert player.do("subtract", USER, 7).amount == 7
    else:
        with pytest.raises(InsufficientFundsError):
            player.do("subtract", USER, 7)
    faults = [record for record in caplog.records if record.levelno > logging.DEBUG]
    assert [(record.name, record.levelname) for record in faults] == [("creduse", "ERROR")] * 2
    assert all(record.exc_info and record.exc_info[0] is LookupError for record in faults)
    assert len(player.script.sent) == 2


def test_listener_that_cancels(play: Play) -> None:
    """What a listener raises to stop the program stops it, and the call has ended all the same."""

    def stop(_: Attempt) -> None:
        raise KeyboardInterrupt

    player = play(GOOD, on_attempt=stop)
    call = player.protocol.subtract(USER, 7)
    with pytest.raises(KeyboardInterrupt):
        player.do("run", call)
    assert call.outcome is Outcome.APPLIED
    assert len(call.attempts) == 1


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (GOOD, "POST /subtract attempt 1: 200, APPLIED"),
        (REFUSED, "POST /subtract attempt 1: 402, NOT_APPLIED"),
        (
            Failure(Delivery.MAYBE_SENT, OSError("reset"), transient=False),
            "POST /subtract attempt 1: broken, UNKNOWN",
        ),
    ],
    ids=["done", "refused", "broken"],
)
def test_record(play: Play, event: object, message: str, caplog: pytest.LogCaptureFixture) -> None:
    """A record of the log names method, path, status or event, attempt and outcome, for debugging."""
    with contextlib.suppress(CreduseError):
        play(event).do("subtract", USER, 7)
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("creduse", "DEBUG")
    assert record.getMessage() == message


def test_no_secret_in_the_log(play: Play, caplog: pytest.LogCaptureFixture) -> None:
    """The log has no key, no header and no body, even where the server or a cause repeats them."""
    echo = Response(429, [("X-Secret", f"header {KEY}")], b'{"message": "%b"}' % KEY.encode())
    cause = Failure(Delivery.NOT_SENT, OSError(f"with {KEY}"), transient=True)
    play(echo, cause, GOOD).do("subtract", USER, 7)
    text = " ".join(f"{record.getMessage()} {vars(record)!r}" for record in caplog.records)
    assert len(caplog.records) == 3
    assert KEY not in text
    assert "header" not in text
    assert USER not in text


def test_nothing_is_logged_unasked(play: Play, caplog: pytest.LogCaptureFixture) -> None:
    """Above debugging, a call that goes as it should leaves no word."""
    caplog.set_level(logging.INFO, "creduse")
    play(UNSENT, GOOD).do("subtract", USER, 7)
    assert caplog.records == []


async def listen(attempt: Attempt) -> None:
    """Never run: nobody would await it."""
    raise AssertionError(attempt)


@pytest.mark.parametrize("listener", [5, listen], ids=["a number", "a coroutine function"])
def test_listener_that_cannot_be_called(play: Play, listener: object) -> None:
    """A listener that could not be called, or would not be awaited, is refused at once."""
    with pytest.raises(TypeError, match="on_attempt must be a plain function"):
        play(GOOD, on_attempt=listener)
