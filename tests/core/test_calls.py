"""What a client does around its calls: it reports each one, drains, and adds header fields."""

import asyncio
import logging
import math
import re
import traceback
from dataclasses import dataclass
from typing import Any

import pytest

from creduse_core import (
    APIError,
    AsyncCoreClient,
    Attempt,
    CallRecord,
    CoreClient,
    CreduseError,
    CreduseProtocol,
    Delivery,
    Failure,
    FinishedCall,
    InsufficientFundsError,
    LocalProtocolError,
    Outcome,
    Pace,
    Response,
    Secret,
    TransportError,
)
from tests.common import GOOD as BODY
from tests.common import USER, USER_ID
from tests.core.players import Play, Player, Script, SyncTransport, drive

GOOD = Response(200, (), BODY)
REFUSED = Response(402, (), b'{"error_code": "INSUFFICIENT_FUNDS"}')
UNSENT = Failure(Delivery.NOT_SENT, OSError("refused"), transient=True)
LOST = Failure(Delivery.MAYBE_SENT, OSError("reset"), transient=True)


class Cancelled(BaseException):
    """A library's cancellation."""


# on_call


def test_each_call_is_reported_once(play: Play) -> None:
    """``on_call`` gets each call once: its outcome, error, attempts, and time with waits."""
    seen: list[FinishedCall] = []
    player = play(UNSENT, GOOD, REFUSED, LOST, Cancelled(), on_call=seen.append)
    player.do("add", USER_ID, 5)
    for _ in range(2):
        with pytest.raises(CreduseError):
            player.do("subtract", USER_ID, 5)
    with pytest.raises(Cancelled):
        player.do("stop_cycle", USER_ID)
    assert [(it.method, it.amount, it.outcome, it.error, it.seconds) for it in seen] == [
        ("add", 5, Outcome.APPLIED, None, 2.5),
        ("subtract", 5, Outcome.NOT_APPLIED, "InsufficientFundsError", 1.0),
        ("subtract", 5, Outcome.UNKNOWN, "TransportError", 1.0),
        ("stop_cycle", None, Outcome.UNKNOWN, "Cancelled", 1.0),
    ]
    assert [[attempt.event for attempt in it.attempts] for it in seen] == [
        ["not_sent", "done"],
        ["refused"],
        ["no_response"],
        ["abandoned"],
    ]
    assert {it.end_user_id for it in seen} == {USER}
    assert seen[0].as_dict()["attempts"][1]["status"] == 200


def test_call_that_is_held(play: Play) -> None:
    """A call that its pace holds beyond its timeout is reported, too."""
    seen: list[FinishedCall] = []
    busy = Response(429, [("Retry-After", "100")], b"")
    player = play(busy, on_call=seen.append, pace=Pace())
    for _ in range(2):
        with pytest.raises(CreduseError):
            player.do("add", USER_ID, 5)
    assert [(it.outcome, it.error, len(it.attempts), it.seconds) for it in seen] == [
        (Outcome.NOT_APPLIED, "RateLimitError", 1, 1.0),
        (Outcome.NOT_APPLIED, "CreduseTimeoutError", 0, 0.0),
    ]


def test_listener_that_raises(play: Play, caplog: pytest.LogCaptureFixture) -> None:
    """If ``on_call`` raises, the client logs it, and the result is returned."""

    def listener(finished: FinishedCall) -> None:
        raise RuntimeError(finished.method)

    assert play(GOOD, on_call=listener).do("add", USER_ID, 5).amount == 5
    (record,) = [it for it in caplog.records if it.levelno >= logging.ERROR]
    assert record.getMessage() == "on_call raised; the call goes on"


@dataclass(frozen=True)
class FixedError(Exception):
    """An exception whose attributes cannot be set."""

    number: int


@pytest.mark.parametrize("name", ["on_call", "on_attempt"])
def test_listener_raises_after_a_failure(
    play: Play, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """What is logged is the listener's own exceptions, without that of the call."""

    def listener(_: object) -> None:
        try:
            raise FixedError(1)  # noqa: TRY301 - the test is about contexts
        except FixedError:
            raise FixedError(2)  # noqa: B904 - the test is about contexts

    listeners: dict[str, Any] = {name: listener}
    player = play(REFUSED, **listeners)
    with pytest.raises(InsufficientFundsError):
        player.do("subtract", USER_ID, 5)
    (record,) = [it for it in caplog.records if it.levelno >= logging.ERROR]
    assert record.exc_info
    shown = "".join(traceback.format_exception(record.exc_info[1]))
    assert re.findall(r"^\w.*Error: .*", shown, re.MULTILINE) == [
        f"{__name__}.FixedError: {number}" for number in (1, 2)
    ]
    assert USER_ID not in shown


def test_clock_that_raises(play: Play) -> None:
    """If the clock fails, the call is reported without a time, and the failure propagates."""
    seen: list[FinishedCall] = []
    player = play(GOOD, on_call=seen.append)

    def now() -> float:
        if player.script.sent:
            raise ZeroDivisionError
        return 0.0

    player.transport.now = now  # type: ignore[method-assign]  # a broken clock
    with pytest.raises(ZeroDivisionError):
        player.do("add", USER_ID, 5)
    assert (seen[0].outcome, seen[0].error) == (Outcome.UNKNOWN, "ZeroDivisionError")
    assert math.isnan(seen[0].seconds)


@pytest.mark.parametrize("pace", [None, Pace()], ids=["bare", "paced"])
def test_call_that_runs_already(
    play: Play, monkeypatch: pytest.MonkeyPatch, pace: Pace | None
) -> None:
    """To run a call a second time raises, and changes neither its first run nor its report."""
    seen: list[FinishedCall] = []

    def run_again() -> Response:
        monkeypatch.setattr(player.client, "_check_call", print)  # as if both had passed
        with pytest.raises(LocalProtocolError, match="a call runs only once"):
            drive_or_return(player.client.run(call))
        return GOOD

    player: Player = play(run_again, on_call=seen.append, pace=pace)
    call = player.protocol.add(USER_ID, 5)
    assert player.do("run", call).amount == 5
    assert [(it.outcome, it.error) for it in seen] == [(Outcome.APPLIED, None)]
    assert len(player.script.sent) == 1


# drain


def drain(player: Player, timeout: float = 2.0) -> tuple[CallRecord, ...]:
    """Drain a client, even from within one of its calls, as a signal handler can."""
    client = player.client
    if isinstance(client, AsyncCoreClient):
        return drive(client.drain(timeout))
    return client.drain(timeout)


def test_drained_client(play: Play) -> None:
    """A client that has drained sends nothing, and its calls say so with NOT_APPLIED."""
    player = play(GOOD)
    assert drain(player) == ()
    assert player.script.slept == []
    with pytest.raises(TransportError, match=r"the client drains: it sends nothing more") as caught:
        player.do("add", USER_ID, 5)
    assert caught.value.outcome is Outcome.NOT_APPLIED
    assert [attempt.event for attempt in caught.value.attempts] == ["unsendable"]
    assert player.script.sent == []


def test_call_in_flight(play: Play) -> None:
    """A drain returns a call that is in flight when its time is over. The call can still end well."""
    unclear: list[CallRecord] = []

    def respond() -> Response:
        unclear.extend(drain(player))
        return GOOD

    player = play(respond)
    assert player.do("add", USER_ID, 5).amount == 5
    assert [(it.method, it.end_user_id, it.amount, it.outcome) for it in unclear] == [
        ("add", USER, 5, Outcome.UNKNOWN)
    ]
    assert 2.0 <= sum(player.script.slept) < 2.02


def test_call_that_waits(play: Play) -> None:
    """A call that waits for a retry when a drain ends sends nothing more, and nothing is unclear."""
    found: list[object] = []

    def look(_: Attempt) -> None:
        found.append(drain(player))

    player: Player = play(UNSENT, GOOD, on_attempt=look)
    with pytest.raises(TransportError) as caught:
        player.do("add", USER_ID, 5)
    assert found == [(), ()]
    assert caught.value.outcome is Outcome.NOT_APPLIED
    assert [attempt.event for attempt in caught.value.attempts] == ["not_sent", "unsendable"]
    assert len(player.script.sent) == 1


def test_calls_that_end_in_a_drain() -> None:
    """A drain ends with the last call, and returns those that have ended as UNKNOWN."""

    class Transport:
        """A transport that responds when it is told to."""

        def __init__(self) -> None:
            self.go_on = asyncio.Event()

        async def send(self, send: Any) -> Response | Failure:
            await self.go_on.wait()
            return LOST if b'"amount":7' in send.request.body else GOOD

        async def sleep(self, seconds: float) -> None:
            self.go_on.set()
            await asyncio.sleep(seconds)

        def now(self) -> float:
            return 0.0  # so that no time passes

        async def aclose(self) -> None:
            """Close nothing."""

    async def main() -> None:
        client = AsyncCoreClient(CreduseProtocol("key"), Transport())
        calls = [asyncio.create_task(client.add(USER_ID, amount)) for amount in (5, 7)]
        await asyncio.sleep(0)
        assert [it.amount for it in await client.drain(0.5)] == [7]
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(it).__name__ for it in results] == ["CreditsAdded", "TransportError"]

    asyncio.run(main())


def test_second_drain(play: Play) -> None:
    """A second drain waits for the calls of the first one, returns them again, and allows no more."""
    found: list[tuple[CallRecord, ...]] = []

    def respond() -> Failure:
        found.extend([drain(player), drain(player)])
        with pytest.raises(TransportError, match="the client drains"):
            drive_or_return(player.client.add(USER_ID, 6))
        return UNSENT

    player = play(respond, GOOD)
    with pytest.raises(TransportError) as caught:
        player.do("add", USER_ID, 5)
    assert [[it.amount for it in records] for records in found] == [[5], [5]]
    assert caught.value.outcome is Outcome.NOT_APPLIED
    assert len(player.script.sent) == 1


def test_drain_that_is_cancelled(play: Play) -> None:
    """If a drain is cancelled, no call sends any more. A later drain returns what is unclear."""

    def respond() -> Response:
        player.script.asleep = Cancelled()
        with pytest.raises(Cancelled):
            drain(player)
        player.script.asleep = None
        for _ in range(100):
            with pytest.raises(TransportError, match="the client drains"):
                drive_or_return(player.client.add(USER_ID, 6))
        assert [it.amount for it in drain(player, 0)] == [5]
        return GOOD

    player = play(respond)
    assert player.do("add", USER_ID, 5).amount == 5
    assert len(player.script.sent) == 1


def test_call_that_begins_with_a_drain() -> None:
    """A call that begins in the same moment as a drain is refused, or the drain waits for it."""
    client: Any = CoreClient(CreduseProtocol("key"), SyncTransport(Script((), 0.0, None)))
    call = client.protocol.add(USER_ID, 5)
    calls = client._begin_drain(1.0)  # noqa: SLF001 - the other thread has read ``_running`` before
    call.start(0.0)
    calls[id(call)] = call
    assert client._refusal(call) is None  # noqa: SLF001
    assert client._refusal(client.protocol.add(USER_ID, 6)) is not None  # noqa: SLF001
    assert [it.amount for it in client.drain(0.5)] == [5]


@pytest.mark.parametrize("timeout", [-1, True, "1"])
def test_wrong_timeout(play: Play, timeout: Any) -> None:
    """A drain's timeout must be a number of seconds, and a wrong one changes nothing."""
    player = play(GOOD)
    with pytest.raises((TypeError, ValueError), match="timeout must be"):
        drain(player, timeout)
    assert player.do("add", USER_ID, 5).amount == 5


def drive_or_return(returned: Any) -> Any:
    return drive(returned) if hasattr(returned, "send") else returned


# Header fields

METHODS = {
    "add": (USER_ID, 5),
    "subtract": (USER_ID, 5),
    "start_cycle": (USER_ID, 5),
    "stop_cycle": (USER_ID,),
    "get_balance": (USER_ID,),
    "get_active_balance": (USER_ID,),
}


@pytest.mark.parametrize("method", METHODS)
def test_extra_headers_of_a_call(play: Play, method: str) -> None:
    """Each method adds header fields to the requests of its call alone."""
    player = play(UNSENT, REFUSED, REFUSED)
    with pytest.raises(InsufficientFundsError):
        player.do(method, *METHODS[method], extra_headers={"X-Tenant": "7"})
    with pytest.raises(InsufficientFundsError):
        player.do(method, *METHODS[method])
    with_it, again, without = (dict(send.request.headers) for send in player.script.sent)
    assert with_it == again == without | {"X-Tenant": "7"}


def test_headers_that_replace_others() -> None:
    """A call's header fields replace those of its client in any case, and nothing else."""
    protocol = CreduseProtocol("key", extra_headers={"X-Tenant": "7", "X-Other": Secret("o")})
    call = protocol.add(USER, 5, extra_headers={"x-tenant": "8"})
    headers = dict(call.request.headers)
    assert headers == dict(CreduseProtocol("key").add(USER, 5).request.headers) | {
        "X-Other": "o",
        "x-tenant": "8",
    }
    assert headers["Authorization"] == "Bearer key"
    for shown in (repr(call.request.hidden_headers), repr(protocol), repr(call)):
        assert "'8'" not in shown


def test_headers_of_a_made_call() -> None:
    """``add_headers`` adds header fields to a call that has not started, and only to that."""
    protocol = CreduseProtocol("key")
    call, other = protocol.add(USER, 5), protocol.add(USER, 5)
    call.add_headers({"traceparent": "00-1-2-01"})
    call.add_headers({})
    assert dict(call.request.headers)["traceparent"] == "00-1-2-01"
    assert "traceparent" not in dict(other.request.headers)
    call.start(0.0)
    with pytest.raises(LocalProtocolError, match="add_headers"):
        call.add_headers({"traceparent": "00-1-2-01"})


def test_server_that_repeats_a_secret() -> None:
    """A header's value that was passed as a `Secret` is in no error, even if a server repeats it."""
    client_token, call_token = "gateway-token-0123", "call-token-4567"
    protocol = CreduseProtocol(
        "key", extra_headers={"X-Token": Secret(client_token), "X-A": "open"}
    )
    call = protocol.add(USER, 5, extra_headers={"X-Call": Secret(call_token)})
    call.add_headers({"X-Late": Secret("late-token-89")})
    call.start(0.0)
    body = f"bad {client_token} {call_token} late-token-89 open".encode()
    with pytest.raises(APIError) as caught:
        call.receive_response(Response(403, [("Content-Type", "text/plain")], body), 1.0)
    error = caught.value
    assert error.response is not None
    assert error.message == "bad *** *** *** open"
    for text in (str(error), repr(error.attempts), repr(error.response.body), str(error.as_dict())):
        assert "token" not in text


WRONG_HEADERS: dict[str, tuple[Any, type[Exception], str]] = {
    "a list": ([("X", "1")], TypeError, "must be a mapping of names to values, such as "),
    "a name of bytes": ({b"X": "1"}, TypeError, "must have names that are str, not bytes"),
    "a number": ({"X": 1}, TypeError, r"extra_headers\['X'\] must be str, not int"),
    "a space": ({"X y": "1"}, ValueError, "has 'X y', which is not the name of a header"),
    "an empty name": ({"": "1"}, ValueError, "has '', which is not"),
    "a second header": ({"X": "1\r\nY: 2"}, ValueError, r"\['X'\] must be printable ASCII"),
    "white space": ({"X": " 1"}, ValueError, "without white space at an end"),
    "another script": ({"X": "ü"}, ValueError, "must be printable ASCII"),
    "a secret": ({"X": Secret("s3cret\n")}, ValueError, "must be printable ASCII"),
    "twice": ({"X-Y": "1", "x-y": "2"}, ValueError, "has x-y twice"),
    "the key": ({"authorization": "x"}, ValueError, "must not have authorization.*use api_key"),
    "a replay": ({"Idempotency-Key": "x"}, ValueError, "use idempotency_key"),
    "a proxy": ({"Proxy-Authorization": "x"}, ValueError, "a password in proxy"),
    "a length": ({"Content-Length": "0"}, ValueError, "which the client sets itself"),
}


@pytest.mark.parametrize(("headers", "error", "words"), WRONG_HEADERS.values(), ids=WRONG_HEADERS)
def test_wrong_headers(headers: Any, error: type[Exception], words: str) -> None:
    """Header fields that could change the request, or another one, are rejected."""
    with pytest.raises(error, match=words) as caught:
        CreduseProtocol("key", extra_headers=headers)
    assert "s3cret" not in str(caught.value)
    with pytest.raises(error, match=words):
        CreduseProtocol("key").add(USER, 5, extra_headers=headers)


@pytest.mark.parametrize("value", ["", "a", "a b\tc", "!~", Secret("token")])
def test_right_headers(value: Any) -> None:
    """Any printable ASCII value is sent as it is."""
    text = value.reveal() if isinstance(value, Secret) else value
    protocol = CreduseProtocol("key", extra_headers={"X": value})
    assert dict(protocol.add(USER, 5).request.headers)["X"] == text


# Wrong arguments


@pytest.mark.parametrize("method", METHODS)
def test_traceback_of_a_wrong_argument(play: Play, method: str) -> None:
    """The traceback of a wrong argument ends at the line that passed it."""
    player = play(GOOD)
    with pytest.raises(ValueError, match="end_user_id must be a UUID") as caught:
        player.do(method, "x", *METHODS[method][1:])
    files = [frame.filename for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert not [name for name in files if "creduse_core" in name]


def test_traceback_of_other_code() -> None:
    """An exception that a caller's own mapping raises keeps its frames."""

    class Theirs(dict[str, str]):
        """A mapping that fails."""

        def items(self) -> Any:
            """Raise."""
            raise ValueError("theirs")

    client = CoreClient(CreduseProtocol("key"), SyncTransport(Script((), 0.0, None)))
    with pytest.raises(ValueError, match="theirs") as caught:
        client.add(USER, 5, extra_headers=Theirs())
    assert traceback.extract_tb(caught.value.__traceback__)[-1].name == "items"


def test_ending_that_is_interrupted(play: Play) -> None:
    """A call whose ending raises does not count as running: a drain does not wait for it."""

    def listener(_: Attempt) -> None:
        raise Cancelled

    player = play(Cancelled(), on_attempt=listener)
    with pytest.raises(Cancelled):
        player.do("add", USER_ID, 5)
    assert drain(player) == ()
    assert player.script.slept == []
