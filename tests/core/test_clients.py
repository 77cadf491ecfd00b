"""The loop of both clients, driven by one script of events."""

import inspect
import json
import random
import re
import traceback
from typing import Any
from uuid import UUID

import pytest

from creduse_core import (
    ActiveBalance,
    AsyncCoreClient,
    Call,
    CoreClient,
    CreditsAdded,
    CreditsSubtracted,
    CreduseError,
    CreduseProtocol,
    Cycle,
    Delivery,
    Failure,
    ForeignError,
    InsufficientFundsError,
    LocalProtocolError,
    Outcome,
    Pace,
    RateLimitError,
    Response,
    RetryPolicy,
    Send,
    ServerError,
    State,
    TransportError,
    environment,
)
from tests.common import USER_ID
from tests.core.players import Play, Player, Script, SyncTransport

PROTOCOL = CreduseProtocol("key", retry=RetryPolicy(server_replays=True))
MOMENT = "2024-01-01T18:50:22Z"
# A result for each method: what is not known to one is passed over.
RESULT: dict[str, object] = {
    "end_user_id": USER_ID,
    "amount": 7,
    "created_at": MOMENT,
    "current_cycle_start": MOMENT,
    "current_cycle_end": MOMENT,
    "active_balance": 7,
    "active_balance_by_cycle": [],
}
GOOD = Response(200, (), json.dumps(RESULT).encode())
REFUSED = Response(402, (), b'{"error_code": "INSUFFICIENT_FUNDS"}')
BUSY = Response(429, [("Retry-After", "3")], b"")
BROKEN = Response(500, (), b"")
UNSENT = Failure(Delivery.NOT_SENT, OSError("refused"), transient=True)


# Gives a client that plays these events; see conftest.py.
class Cancelled(BaseException):
    """A library's cancellation."""


def subtract() -> Call[CreditsSubtracted]:
    return PROTOCOL.subtract(USER_ID, 7)


def end(player: Player, call: Call[Any]) -> BaseException | None:
    """Run a call, and return what it raises."""
    try:
        player.do("run", call)
    except BaseException as error:  # noqa: BLE001 - cancellation is among what is looked for
        return error
    return None


METHODS: dict[str, tuple[tuple[object, ...], type]] = {
    "add": ((USER_ID, 7, None), CreditsAdded),
    "subtract": ((USER_ID, 7), CreditsSubtracted),
    "start_cycle": ((USER_ID, 7, 5), Cycle),
    "stop_cycle": ((USER_ID,), Cycle),
    "get_balance": ((USER_ID,), ActiveBalance),
    "get_active_balance": ((USER_ID,), ActiveBalance),
}


@pytest.mark.parametrize("method", METHODS)
def test_methods(play: Play, method: str) -> None:
    """Each method sends the protocol's request with the call's options, and returns its result."""
    arguments, result = METHODS[method]
    named: dict[str, object] = {"timeout": 4}
    if not method.startswith("get_"):
        named["idempotency_key"] = "once"
    player = play(GOOD)
    assert type(player.do(method, *arguments, **named)) is result
    made = getattr(player.protocol, method.replace("_active", ""))(*arguments, **named)
    (send,) = player.script.sent
    assert (send.request, send.deadline) == (made.request, 104.0)  # the script begins at 100


def test_days_by_default(play: Play) -> None:
    """Credits last 31 days by default."""
    player = play(GOOD, GOOD)
    player.do("add", USER_ID, 7)
    player.do("start_cycle", USER_ID, 7)
    assert all(b'"validity_days":31' in send.request.body for send in player.script.sent)


def test_wrong_argument(play: Play) -> None:
    """Nothing is sent when an argument is wrong."""
    player = play()
    with pytest.raises(TypeError, match="amount must be int"):
        player.do("subtract", USER_ID, "7")
    with pytest.raises(ValueError, match="end_user_id must be a UUID"):
        player.do("get_balance", "x")
    assert player.script.sent == []


@pytest.mark.parametrize("pace", [None, Pace()], ids=["bare", "paced"])
def test_blocked(
    play: Play,
    pace: Pace | None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """When tests block other machines, a call fails before it is sent. Its error and the log say why."""
    monkeypatch.setattr(environment, "blocked", "the reason")
    player = play(pace=pace)
    call = subtract()
    error = end(player, call)
    assert isinstance(error, TransportError)
    text = f"subtract({USER_ID}, 7): the reason (api.creduse.com:443) [not applied; 1 attempt]"
    assert str(error) == text
    assert error.outcome is call.outcome is Outcome.NOT_APPLIED
    assert [attempt.event for attempt in error.attempts] == ["unsendable"]
    assert player.script.sent == []
    assert "RefusalError: the reason" in caplog.text


def test_protocol(play: Play) -> None:
    """``client.protocol`` is the protocol of the client, and makes calls for ``run``."""
    player = play(GOOD)
    call = player.client.protocol.subtract(USER_ID, 7)
    assert player.client.protocol is player.protocol
    assert player.do("run", call) == CreditsSubtracted(UUID(USER_ID), 7)
    assert (call.state, call.response) == (State.SUCCEEDED, GOOD)


def test_retries(play: Play) -> None:
    """The client retries after the waits that the policy and the server ask for."""
    player = play(UNSENT, BUSY, GOOD, jitter=lambda: 0.5)
    call = subtract()
    assert player.do("run", call).amount == 7
    assert player.script.slept == [0.25, 3.0]
    assert [send.deadline for send in player.script.sent] == [130.0] * 3
    assert [attempt.event for attempt in call.attempts] == ["not_sent", "rate_limited", "done"]


def test_jitter_by_default() -> None:
    """Without ``jitter``, clients wait for random parts of the delay, whatever an app's seed is."""
    slept: list[float] = []
    for _ in range(20):
        random.seed(0)
        script = Script((UNSENT, GOOD), 0.0, None)
        CoreClient(PROTOCOL, SyncTransport(script)).run(subtract())
        slept += script.slept
    assert len(set(slept)) == 20
    assert 0.0 <= min(slept) < max(slept) <= 0.5


@pytest.mark.parametrize(
    ("events", "error", "outcome"),
    [
        ([REFUSED], InsufficientFundsError, Outcome.NOT_APPLIED),
        ([BROKEN], ServerError, Outcome.UNKNOWN),
        ([UNSENT, BROKEN], ServerError, Outcome.UNKNOWN),
        ([UNSENT, UNSENT, UNSENT], TransportError, Outcome.NOT_APPLIED),
        ([BUSY, UNSENT, REFUSED], InsufficientFundsError, Outcome.NOT_APPLIED),
    ],
    ids=["refused", "broken", "unsent then broken", "unsent", "busy, unsent, refused"],
)
def test_final_errors(
    play: Play, events: list[object], error: type[CreduseError], outcome: Outcome
) -> None:
    """A call without a result raises its last error, which lists all attempts."""
    call = subtract()
    with pytest.raises(CreduseError) as caught:
        play(*events).do("run", call)
    assert type(caught.value) is error
    assert (caught.value.outcome, caught.value.attempts) == (outcome, call.attempts)
    assert len(call.attempts) == len(events)


def test_sleep_past_the_deadline(play: Play) -> None:
    """A sleep past the deadline ends the call with the previous error."""
    player = play(BUSY, oversleep=30.0)
    with pytest.raises(RateLimitError):
        player.do("run", subtract())
    assert len(player.script.sent) == 1


@pytest.mark.parametrize(
    "fault", [ValueError("bug"), TimeoutError(), StopAsyncIteration()], ids=repr
)
def test_transport_that_raises(play: Play, fault: Exception) -> None:
    """An exception of a transport means "maybe sent", and becomes the error's cause."""
    with pytest.raises(TransportError) as caught:
        play(fault).do("run", subtract())
    assert type(caught.value) is TransportError
    assert caught.value.__cause__ is fault
    assert caught.value.outcome is Outcome.UNKNOWN
    assert [attempt.event for attempt in caught.value.attempts] == ["broken"]


def test_fault_of_a_transport_is_shown(play: Play) -> None:
    """A note shows where a transport raised; no traceback shows its variables."""

    def faulty() -> None:
        raise LookupError("odd")

    with pytest.raises(TransportError) as caught:
        play(faulty).do("run", subtract())
    cause = caught.value.__cause__
    assert isinstance(cause, LookupError)
    assert cause.__traceback__ is None
    assert "in faulty\n" in cause.__notes__[0]


NOTHING: Any = None
TEXT: Any = "200"
NONSENSE: dict[str, tuple[object, str]] = {
    "None": (None, "TypeError: the transport returned None, not a Response or a Failure"),
    "a dict": ({}, "TypeError: the transport returned a dict, not a Response or a Failure"),
    "a class": (
        Response,
        "TypeError: the transport returned a type, not a Response or a Failure",
    ),
    "a status that is text": (Response(TEXT, (), b""), "TypeError: "),
    "no body": (Response(200, (), NOTHING), "TypeError: "),
    "headers that are no pairs": (Response(429, [NOTHING], b""), "TypeError: "),
}


@pytest.mark.parametrize(("returned", "words"), NONSENSE.values(), ids=NONSENSE)
def test_transport_that_returns_nonsense(play: Play, returned: object, words: str) -> None:
    """A wrong return value of a transport makes the outcome UNKNOWN."""
    call = subtract()
    with pytest.raises(TransportError) as caught:
        play(UNSENT, returned).do("run", call)
    assert str(caught.value).startswith(f"subtract({USER_ID}, 7): {words}")
    assert (call.state, call.outcome) == (State.FAILED, Outcome.UNKNOWN)
    assert caught.value.outcome is Outcome.UNKNOWN
    assert [attempt.event for attempt in call.attempts] == ["not_sent", "broken"]


@pytest.mark.parametrize("cause", [None, ValueError("why")], ids=["alone", "with a cause"])
def test_foreign_error(play: Play, cause: Exception | None) -> None:
    """An exception of a signal handler leaves the client unchanged, and the call is abandoned."""
    call = subtract()
    error = TimeoutError("the task's time is over")
    error.__cause__ = cause
    assert end(play(UNSENT, ForeignError(error)), call) is error
    assert error.__cause__ is cause
    assert "ForeignError" not in "".join(traceback.format_exception(error))
    assert (call.state, call.outcome) == (State.ABANDONED, Outcome.UNKNOWN)
    assert [attempt.event for attempt in call.attempts] == ["not_sent", "abandoned"]


@pytest.mark.parametrize(
    ("libraries", "foreign"),
    [(None, False), (["json"], True), ([__name__.partition(".")[0]], False)],
)
def test_libraries_of_a_transport(play: Play, libraries: list[str] | None, foreign: bool) -> None:  # noqa: FBT001 - a column
    """Where a transport names its libraries, exceptions of other code leave unchanged."""

    def interrupt() -> None:
        raise LookupError("the task's time is over")

    player = play(interrupt)
    if libraries is not None:
        player.transport.libraries = libraries
    call = subtract()
    error = end(player, call)
    assert type(error) is (LookupError if foreign else TransportError)
    assert call.outcome is Outcome.UNKNOWN
    assert [attempt.event for attempt in call.attempts] == ["abandoned" if foreign else "broken"]


class InterruptedBody(bytes):
    """A body during whose reading a signal handler raises."""

    __slots__ = ()

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Be interrupted."""
        raise LookupError(encoding, errors)


def test_interrupted_reading(play: Play) -> None:
    """An exception of a signal handler that runs while a response is read leaves unchanged."""
    call = subtract()
    assert isinstance(end(play(Response(200, (), InterruptedBody())), call), LookupError)
    assert (call.state, call.outcome) == (State.ABANDONED, Outcome.UNKNOWN)


@pytest.mark.parametrize("after", [1, 2], ids=["at the first attempt", "at the second"])
def test_clock_that_fails(play: Play, after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that raises ends the call with its exception."""
    player = play(UNSENT, GOOD)
    script = player.script

    def failing() -> float:
        if len(script.sent) == after:
            raise LookupError("no time")
        return 100.0

    monkeypatch.setattr(player.transport, "now", failing)
    call = subtract()
    assert isinstance(end(player, call), LookupError)
    assert (call.state, call.outcome) == (State.ABANDONED, Outcome.UNKNOWN)


@pytest.mark.parametrize("cancelled", [KeyboardInterrupt(), SystemExit(1), Cancelled()], ids=repr)
def test_cancelled_in_flight(play: Play, cancelled: BaseException) -> None:
    """A cancellation leaves unchanged, and the outcome of the call is UNKNOWN."""
    call = subtract()
    assert end(play(UNSENT, cancelled), call) is cancelled
    assert (call.state, call.outcome) == (State.ABANDONED, Outcome.UNKNOWN)
    assert [attempt.event for attempt in call.attempts] == ["not_sent", "abandoned"]


@pytest.mark.parametrize("cancelled", [KeyboardInterrupt(), Cancelled(), OSError("bug")], ids=repr)
def test_cancelled_asleep(play: Play, cancelled: BaseException) -> None:
    """A cancellation during a wait leaves unchanged, and the outcome stays known."""
    call = subtract()
    assert end(play(UNSENT, asleep=cancelled), call) is cancelled
    assert (call.state, call.outcome) == (State.ABANDONED, Outcome.NOT_APPLIED)
    assert [attempt.event for attempt in call.attempts] == ["not_sent"]


def test_read_that_is_cancelled(play: Play) -> None:
    """A cancelled read is NOT_APPLIED."""
    call = PROTOCOL.get_balance(USER_ID)
    assert isinstance(end(play(Cancelled()), call), Cancelled)
    assert call.outcome is Outcome.NOT_APPLIED


class Hanging:
    """An asynchronous transport whose responses never come."""

    async def send(self, send: Send) -> Response | Failure:
        """Wait for ever."""
        await self
        raise AssertionError(send)

    async def sleep(self, seconds: float) -> None:
        """Never get here."""
        raise AssertionError(seconds)

    def __await__(self) -> Any:
        yield

    def now(self) -> float:
        """Stand still."""
        return 0.0

    async def aclose(self) -> None:
        """Have nothing to close."""


@pytest.mark.parametrize("how", ["cancelled", "dropped"])
def test_left_by_the_loop(how: str) -> None:
    """A task that is cancelled or dropped during a request abandons its call."""
    call = subtract()
    coroutine = AsyncCoreClient(PROTOCOL, Hanging()).run(call)
    coroutine.send(None)
    if how == "dropped":
        coroutine.close()
    else:
        with pytest.raises(Cancelled):
            coroutine.throw(Cancelled())
    assert (call.state, call.outcome) == (State.ABANDONED, Outcome.UNKNOWN)


@pytest.mark.parametrize("event", [GOOD, REFUSED, Cancelled()], ids=["done", "failed", "left"])
def test_call_that_has_run(play: Play, event: object) -> None:
    """A call runs once; running it again sends nothing and changes nothing."""
    player = play(event, GOOD)
    call = subtract()
    end(player, call)
    before = call.attempts, call.outcome, call.state
    with pytest.raises(LocalProtocolError, match=f"^a call runs only once, and .* {call.state}: "):
        player.do("run", call)
    assert (call.attempts, call.outcome, call.state) == before
    assert len(player.script.sent) == 1


@pytest.mark.parametrize("given", [RESULT, None, "add"], ids=lambda it: type(it).__name__)
def test_run_of_another_object(play: Play, given: Any) -> None:
    """``run`` rejects what is not a call, such as a result, and says what to pass."""
    player = play(GOOD)
    message = f"call must be Call, such as client.protocol.add(…), not {type(given).__name__}"
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        player.do("run", given)
    assert not player.script.sent


@pytest.mark.parametrize("kind", [CoreClient, AsyncCoreClient])
def test_client_without_a_protocol(kind: Any) -> None:
    """A client rejects an API key in place of a protocol, and does not show it."""
    message = 'protocol must be CreduseProtocol, such as CreduseProtocol("your-api-key"), not str'
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        kind("sk-secret-0123", object())


def test_close(play: Play) -> None:
    """Closing a client closes its transport."""
    player = play()
    player.do("close")
    assert player.script.closed == 1


def test_with(play: Play) -> None:
    """A client is closed at the end of ``with``, also after an exception."""
    player = play(GOOD, REFUSED)
    assert player.within(subtract()).amount == 7
    assert player.script.closed == 1
    with pytest.raises(InsufficientFundsError):
        player.within(subtract())
    assert player.script.closed == 2


def test_repr(play: Play) -> None:
    """A client's repr shows its URL."""
    player = play()
    name = type(player.client).__name__
    assert repr(player.client) == f"<{name} https://api.creduse.com>"


@pytest.mark.parametrize("method", [*METHODS, "run"])
def test_both_alike(method: str) -> None:
    """Both clients have the same signatures and docstrings."""
    one, other = getattr(CoreClient, method), getattr(AsyncCoreClient, method)
    assert inspect.signature(one) == inspect.signature(other)
    assert inspect.getdoc(one) == inspect.getdoc(other)
    assert inspect.iscoroutinefunction(other)


def test_call_for_another_url(play: Play) -> None:
    """A call that was made for another base URL is rejected, and nothing is sent."""
    for other in ("https://api.creduse.com.example", "http://localhost"):
        player = play(GOOD)
        call = CreduseProtocol("key", other).add(USER_ID, 7)
        with pytest.raises(ValueError, match=f"the call is for {other}/add, but the client for"):
            player.do("run", call)
        assert call.state is State.READY
        assert not player.script.sent


@pytest.mark.parametrize("client", [CoreClient, AsyncCoreClient])
def test_proxy_of_a_wrong_type(play: Play, client: type[Any]) -> None:
    """A transport whose ``proxy`` is a URL is refused when its client is made."""
    transport: Any = play().transport
    transport.proxy = "http://someone:secret@proxy.example:3128"
    told = r"^transport\.proxy must be Proxy, such as that of proxy_for, not str$"
    with pytest.raises(TypeError, match=told):
        client(PROTOCOL, transport)
