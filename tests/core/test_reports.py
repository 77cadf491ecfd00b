"""What a client reports of each attempt, to ``on_attempt`` and to the log."""

import contextlib
import json
import logging
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import nullcontext
from enum import Enum
from fractions import Fraction
from functools import partial, wraps
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
from tests.common import USER_ID
from tests.core.players import Play

KEY = "sk-live-0123456789"
BODY = json.dumps({"end_user_id": USER_ID, "amount": 7}).encode()
GOOD = Response(200, [("X-Secret", "header")], BODY)
REFUSED = Response(402, (), b'{"error_code": "INSUFFICIENT_FUNDS"}')
UNSENT = Failure(Delivery.NOT_SENT, OSError("refused"), transient=True)


# Gives a client that plays these events; see conftest.py.
class Cancelled(BaseException):
    """A library's cancellation."""


def attempts_of(log: pytest.LogCaptureFixture) -> list[Attempt]:
    return [vars(record)["attempt"] for record in log.records]


def faults(log: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in log.records if record.levelno > logging.DEBUG]


@pytest.fixture(autouse=True)
def _log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "creduse")


@pytest.mark.parametrize(
    "events",
    [[UNSENT, GOOD], [UNSENT, REFUSED], [Response(500, (), b"")]],
    ids=["done", "refused", "broken"],
)
def test_listener(play: Play, events: list[object], caplog: pytest.LogCaptureFixture) -> None:
    """``on_attempt`` and the log get each attempt once, in order."""
    seen: list[Attempt] = []
    player = play(*events, on_attempt=seen.append)
    call = player.protocol.subtract(USER_ID, 7)
    with contextlib.suppress(CreduseError):
        player.do("run", call)
    assert (*seen,) == (*attempts_of(caplog),) == call.attempts
    assert len(seen) == len(events)


def test_listener_runs_before_the_wait(play: Play) -> None:
    """``on_attempt`` runs when an attempt ends, before the wait for the next."""
    waited: list[list[float]] = []

    def note(_: Attempt) -> None:
        waited.append([*player.script.slept])

    player = play(UNSENT, GOOD, on_attempt=note)
    player.do("subtract", USER_ID, 7)
    assert waited == [[], [0.5]]


def test_cancelled_in_flight(play: Play, caplog: pytest.LogCaptureFixture) -> None:
    """A cancelled attempt is reported once."""
    seen: list[Attempt] = []
    with pytest.raises(Cancelled):
        play(UNSENT, Cancelled(), on_attempt=seen.append).do("subtract", USER_ID, 7)
    assert [attempt.event for attempt in seen] == ["not_sent", "abandoned"]
    assert attempts_of(caplog) == seen


def test_cancelled_asleep(play: Play) -> None:
    """A cancellation between two attempts reports nothing."""
    seen: list[Attempt] = []
    with pytest.raises(Cancelled):
        play(UNSENT, asleep=Cancelled(), on_attempt=seen.append).do("subtract", USER_ID, 7)
    assert [attempt.event for attempt in seen] == ["not_sent"]


@pytest.mark.parametrize("event", [GOOD, REFUSED], ids=["done", "refused"])
def test_listener_that_raises(
    play: Play, event: Response, caplog: pytest.LogCaptureFixture
) -> None:
    """An error of ``on_attempt`` is logged, and the call continues."""

    def fault(_: Attempt) -> None:
        raise LookupError("not mine")

    player = play(UNSENT, event, on_attempt=fault)
    if event is GOOD:
        assert player.do("subtract", USER_ID, 7).amount == 7
    else:
        with pytest.raises(InsufficientFundsError):
            player.do("subtract", USER_ID, 7)
    found = faults(caplog)
    assert [(record.name, record.levelname) for record in found] == [("creduse", "ERROR")] * 2
    assert all(record.exc_info and record.exc_info[0] is LookupError for record in found)
    assert len(player.script.sent) == 2


def test_listener_that_cancels(play: Play) -> None:
    """What ``on_attempt`` raises to stop the program leaves the client, and the call has ended."""

    def stop(_: Attempt) -> None:
        raise KeyboardInterrupt

    player = play(GOOD, on_attempt=stop)
    call = player.protocol.subtract(USER_ID, 7)
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
    """A log record has method, path, status or event, attempt and outcome, at debug level."""
    with contextlib.suppress(CreduseError):
        play(event).do("subtract", USER_ID, 7)
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("creduse", "DEBUG")
    assert record.getMessage() == message


def test_no_secret_in_the_log(play: Play, caplog: pytest.LogCaptureFixture) -> None:
    """The log has no key, no header and no body, even if the server or a cause repeats them."""
    echo = Response(429, [("X-Secret", f"header {KEY}")], b'{"message": "%b"}' % KEY.encode())
    cause = Failure(Delivery.NOT_SENT, OSError(f"with {KEY}"), transient=True)
    play(echo, cause, GOOD).do("subtract", USER_ID, 7)
    text = " ".join(f"{record.getMessage()} {vars(record)!r}" for record in caplog.records)
    assert len(caplog.records) == 3
    assert KEY not in text
    assert "header" not in text
    assert USER_ID not in text


def test_silent_above_debug(play: Play, caplog: pytest.LogCaptureFixture) -> None:
    """A successful call logs nothing above debug level."""
    caplog.set_level(logging.INFO, "creduse")
    play(UNSENT, GOOD).do("subtract", USER_ID, 7)
    assert caplog.records == []


async def listen(attempt: Attempt) -> None:
    """Never run: nobody would await it."""
    raise AssertionError(attempt)


def listen_piecemeal(attempt: Attempt) -> Iterator[Attempt]:
    """Never run: nobody would iterate."""
    yield attempt


async def listen_piecemeal_later(attempt: Attempt) -> AsyncIterator[Attempt]:
    """Never run: nobody would iterate."""
    yield attempt


class Listener:
    """Its methods are never run: nobody would await them."""

    async def __call__(self, attempt: Attempt) -> None:
        raise AssertionError(attempt)

    async def listen(self, attempt: Attempt) -> None:
        raise AssertionError(attempt)


LISTENERS = {
    "a number": 5,
    "a coroutine function": listen,
    "a partial of one": partial(partial(listen)),
    "a coroutine method": Listener().listen,
    "an object with an asynchronous call": Listener(),
    "a partial of such an object": partial(Listener()),
    "a generator function": listen_piecemeal,
    "an asynchronous generator function": listen_piecemeal_later,
}


@pytest.mark.parametrize("listener", LISTENERS.values(), ids=LISTENERS)
def test_listener_that_cannot_be_called(play: Play, listener: object) -> None:
    """A listener that cannot be called, or would not run, is rejected at once."""
    with pytest.raises(TypeError, match="on_attempt must be a plain function"):
        play(GOOD, on_attempt=listener)


def test_listeners_that_can_be_called(play: Play) -> None:
    """A function, a partial, a method and a class are accepted as listeners."""
    seen: list[Attempt] = []
    listeners: list[Callable[[Attempt], object]] = [seen.append, partial(seen.append), repr]
    for listener in listeners:
        play(GOOD, on_attempt=listener).do("subtract", USER_ID, 7)
    assert len(seen) == 2


def test_listener_that_returns_a_coroutine(play: Play, caplog: pytest.LogCaptureFixture) -> None:
    """A coroutine that a listener returns is closed, and an error is logged."""
    coroutines: list[Any] = []

    def listener(attempt: Attempt) -> object:
        coroutines.append(listen(attempt))
        return coroutines[-1]

    assert play(GOOD, on_attempt=listener).do("subtract", USER_ID, 7).amount == 7
    (fault,) = faults(caplog)
    assert fault.exc_info is not None
    assert "which the client does not await" in str(fault.exc_info[1])
    with pytest.raises(RuntimeError, match="cannot reuse already awaited coroutine"):
        coroutines[0].send(None)


class Broken(logging.Handler):
    """A filter and handler that raises."""

    def __init__(self, error: BaseException, below: int) -> None:
        super().__init__()
        self.error = error
        self.below = below

    def filter(self, record: logging.LogRecord) -> bool:
        """Raise for what is below a level."""
        if record.levelno < self.below:
            raise self.error
        return True

    def emit(self, record: logging.LogRecord) -> None:
        """Do nothing."""


@pytest.fixture
def broken() -> Iterator[Callable[[str, Broken], None]]:
    """Attach a filter or handler to the log, for a test."""
    logger, added = logging.getLogger("creduse"), list[Broken]()

    def attach(how: str, what: Broken) -> None:
        added.append(what)
        if how == "filter":
            logger.addFilter(what)
        else:
            logger.addHandler(what)

    yield attach
    for what in added:
        logger.removeFilter(what)
        logger.removeHandler(what)


ENDINGS: dict[str, tuple[list[Any], Any, Outcome]] = {
    "done": ([GOOD], nullcontext(), Outcome.APPLIED),
    "retried": ([Response(429, (), b""), UNSENT, GOOD], nullcontext(), Outcome.APPLIED),
    "refused": ([UNSENT, REFUSED], pytest.raises(InsufficientFundsError), Outcome.NOT_APPLIED),
}


@pytest.mark.parametrize("how", ["filter", "handler"])
@pytest.mark.parametrize("below", [logging.ERROR, logging.CRITICAL], ids=["once", "always"])
@pytest.mark.parametrize("ending", ENDINGS)
def test_logging_that_raises(
    play: Play, broken: Callable[[str, Broken], None], ending: str, below: int, how: str
) -> None:
    """A filter or handler that raises changes neither results nor retries."""
    broken(how, Broken(LookupError("odd"), below))
    events, expected, outcome = ENDINGS[ending]
    seen: list[Attempt] = []
    player = play(*events, on_attempt=seen.append)
    call = player.protocol.subtract(USER_ID, 7)
    with expected:
        player.do("run", call)
    assert call.outcome is outcome
    assert len(player.script.sent) == len(seen) == len(events)


def test_fault_in_logging_is_logged(
    play: Play, broken: Callable[[str, Broken], None], caplog: pytest.LogCaptureFixture
) -> None:
    """If logging raises for one record and not for the next, the next one says so."""
    broken("filter", Broken(LookupError("odd"), logging.ERROR))
    play(GOOD).do("subtract", USER_ID, 7)
    assert [fault.getMessage() for fault in faults(caplog)] == ["logging raised; the call goes on"]


def raising() -> float:
    raise LookupError("odd")


JITTERS: dict[str, Any] = {
    "raises": raising,
    "1.5": lambda: 1.5,
    "-1": lambda: -1,
    "nan": lambda: float("nan"),
    "text": lambda: "0.5",
    "None": lambda: None,
}


@pytest.mark.parametrize("jitter", JITTERS.values(), ids=JITTERS)
def test_jitter_that_fails(
    play: Play, jitter: Callable[[], float], caplog: pytest.LogCaptureFixture
) -> None:
    """Jitter that raises or returns a wrong value shortens no wait, and an error is logged."""
    player = play(Response(429, (), b""), UNSENT, GOOD, jitter=jitter)
    assert player.do("subtract", USER_ID, 7).amount == 7
    assert player.script.slept == [0.5, 1.0]
    assert [fault.getMessage() for fault in faults(caplog)] == [
        "jitter failed; the client waits for the whole delay"
    ] * 2


@pytest.mark.parametrize("jitter", [0, 1, 0.25, True, Fraction(1, 4)], ids=repr)
def test_jitter_of_any_kind(play: Play, jitter: float) -> None:
    """Jitter may be any number from 0 to 1."""
    player = play(UNSENT, GOOD, jitter=lambda: jitter)
    player.do("subtract", USER_ID, 7)
    assert player.script.slept == [0.5 * float(jitter)]


def test_jitter_is_drawn_when_it_is_needed(play: Play, caplog: pytest.LogCaptureFixture) -> None:
    """A call that succeeds at once draws no jitter."""
    assert play(GOOD, jitter=raising).do("subtract", USER_ID, 7).amount == 7
    assert faults(caplog) == []


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), SystemExit(3)], ids=repr)
@pytest.mark.parametrize(
    ("events", "outcome"), [([GOOD], Outcome.APPLIED), ([REFUSED], Outcome.NOT_APPLIED)]
)
def test_program_stopped_in_the_log(
    play: Play,
    broken: Callable[[str, Broken], None],
    events: list[Any],
    outcome: Outcome,
    stop: BaseException,
) -> None:
    """What stops the program in a handler leaves the client, and the call knows its outcome."""
    broken("handler", Broken(stop, logging.ERROR))
    player = play(*events)
    call = player.protocol.subtract(USER_ID, 7)
    with pytest.raises(type(stop)):
        player.do("run", call)
    assert (call.outcome, len(call.attempts)) == (outcome, 1)


def test_program_stopped_in_the_jitter(play: Play) -> None:
    """What stops the program in ``jitter`` leaves the call abandoned, with the outcome UNKNOWN."""

    def stop() -> float:
        raise KeyboardInterrupt

    player = play(Response(429, (), b""), jitter=stop)
    call = player.protocol.subtract(USER_ID, 7)
    with pytest.raises(KeyboardInterrupt):
        player.do("run", call)
    assert call.outcome is Outcome.UNKNOWN
    assert [attempt.event for attempt in call.attempts] == ["abandoned"]


class TimeLimitError(Exception):
    """What a task runner's signal handler raises."""


class Limit:
    """Signal handlers of all kinds."""

    def method(self, number: int, frame: object) -> None:
        raise TimeLimitError(number, frame)

    def __call__(self, number: int, frame: object) -> None:
        self.method(number, frame)


def limit(number: int, frame: object) -> None:
    raise TimeLimitError(number, frame)


def limit_once(*given: Any) -> None:
    signal.signal(given[0], signal.SIG_IGN)
    raise TimeLimitError(*given)


def interrupt(*_: object) -> float:
    """Get a signal, as any line of any code can."""
    signal.raise_signal(signal.SIGUSR1)
    return 1.0


def fail(attempt: Attempt) -> None:
    raise LookupError(attempt)


class Interrupted(logging.Handler):
    """A handler of logs in which a signal arrives."""

    def emit(self, record: logging.LogRecord) -> None:
        interrupt(record)


@pytest.mark.parametrize(
    "handler",
    [limit, Limit().method, Limit(), partial(limit), limit_once],
    ids=["function", "method", "object", "partial", "once"],
)
@pytest.mark.parametrize("where", ["jitter", "on_attempt", "on_call", "log", "log of a fault"])
def test_signal_in_other_code(
    play: Play, caplog: pytest.LogCaptureFixture, handler: Any, where: str
) -> None:
    """What a signal handler raises leaves the call, even if the signal arrives in a listener.

    It has nothing to do with the listener, and a task runner's limit must end its task.
    """
    before = signal.signal(signal.SIGUSR1, handler)
    logger = logging.getLogger("creduse")
    logs = Interrupted(logging.ERROR if where == "log of a fault" else logging.DEBUG)
    options: dict[str, Any] = {where: interrupt} if "log" not in where else {}
    if where == "log of a fault":
        options = {"on_attempt": fail}
    if "log" in where:
        logger.addHandler(logs)
    try:
        player = play(Response(429, (), b""), GOOD, **options)
        call = player.protocol.subtract(USER_ID, 7)
        with caplog.at_level(logging.DEBUG, "creduse"), pytest.raises(TimeLimitError):
            player.do("run", call)
    finally:
        logger.removeHandler(logs)
        signal.signal(signal.SIGUSR1, before)
    assert not call.state.live
    assert len(player.script.sent) == (2 if where == "on_call" else 1)
    assert call.outcome is (Outcome.UNKNOWN if where == "jitter" else call.outcome)


class Known(Enum):
    """What a listener looks up."""

    ADD = "add"


@pytest.mark.parametrize("option", ["on_attempt", "on_call"])
def test_listener_that_only_fails(
    play: Play, caplog: pytest.LogCaptureFixture, option: str
) -> None:
    """An exception of a listener's own changes nothing, though a handler of the same kind is set."""

    def traced(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def wrapper(*given: object) -> object:
            return function(*given)

        return wrapper

    def look_up(it: Attempt) -> Known:
        return Known(it.method)

    before = signal.signal(signal.SIGUSR1, traced(limit))
    options: dict[str, Any] = {option: traced(look_up)}
    try:
        assert play(GOOD, **options).do("subtract", USER_ID, 7).amount == 7
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert len(faults(caplog)) == 1


def test_signal_in_the_report_of_an_abandoned_call(play: Play) -> None:
    """``on_call`` is called, too, if a signal handler raises in the ``on_attempt`` before it."""
    before = signal.signal(signal.SIGUSR1, limit)
    ended: list[object] = []
    try:
        player = play(KeyboardInterrupt(), on_attempt=interrupt, on_call=ended.append)
        with pytest.raises(TimeLimitError):
            player.do("subtract", USER_ID, 7)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert len(ended) == 1
