"""The kit reports a client that sends while its `Pace` holds a call, or keeps its place."""

import time
from typing import TypeVar

import pytest

from creduse_core import AsyncCoreClient, Attempt, Call, CoreClient, CreduseProtocol, Pace
from creduse_sandbox.conformance import check_async_pace, check_pace
from tests.sandbox.conformance_kit.broken import (
    AcceptsCallsAfterClose,
    CannotSleep,
    LeavesConnectionsOpen,
    MakeTransport,
    SkipsTime,
    SleepsTooLittle,
)
from tests.sandbox.conformance_kit.broken_async import (
    AsyncCannotSleep,
    AsyncFabricates,
    AsyncLetsCallsGoOn,
    AsyncSkipsTime,
    SwallowsCancellationAsleep,
)
from tests.sandbox.conformance_kit.loops import Run, run_asyncio
from tests.sandbox.conformance_kit.transports import AsyncGood, Good

T = TypeVar("T")


def check_transport(transport: MakeTransport) -> None:
    """Check a transport."""
    check_pace(lambda protocol, pace: CoreClient(protocol, transport(protocol), pace=pace))


def test_good_transport() -> None:
    """A transport that keeps every promise passes."""
    check_transport(Good)


@pytest.mark.parametrize(
    ("transport", "found"),
    [
        (SkipsTime, r"sent a request of .* 0\.\d\d s after the response 429"),
        (SleepsTooLittle, r"came \d\.\d\d s early after a wait: does sleep\(\) wait\?"),
        (CannotSleep, r"raised ZeroDivisionError\(.*\), but must return a result"),
        (AcceptsCallsAfterClose, r"sent request \d+ after it was closed"),
        (LeavesConnectionsOpen, r"did not close all connections: \d are open"),
    ],
)
def test_broken_promise(
    transport: MakeTransport, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check of a broken promise fails, and the message names the promise."""
    monkeypatch.setattr("creduse_sandbox.conformance.checks.MAX_SECONDS", 1.0)
    with pytest.raises(AssertionError, match=found) as caught:
        check_transport(transport)
    assert "What the server does: send 429 with Retry-After: 1 once." in str(caught.value)


def test_lost_pace() -> None:
    """A function that does not pass the pace on to the client is found out."""
    with pytest.raises(AssertionError, match="pace:\n  the client did not report the response 429"):
        check_pace(lambda protocol, _: CoreClient(protocol, Good(protocol)))


class IgnoresHolds(CoreClient):
    """Asks the pace and reports refusals to it, but sends without waiting."""

    def __init__(self, protocol: CreduseProtocol, pace: Pace) -> None:
        super().__init__(protocol, Good(protocol), on_attempt=self.report)
        self.pace = pace

    def run(self, call: Call[T], *, balance_first: bool = False) -> T:
        self.pace.hold(call, time.monotonic())
        return super().run(call, balance_first=balance_first)

    def report(self, attempt: Attempt) -> None:
        self.pace.ended(object(), attempt.status, 1.0, time.monotonic())


@pytest.mark.parametrize(
    "found",
    [
        "sent a request of .* that the Pace held",
        "has ended, and did not give up its place in the Pace",
        "returned a result, but the pause was longer than its timeout",
    ],
)
def test_client_that_ignores_holds(found: str) -> None:
    """So is a client that sends while it is held."""
    with pytest.raises(AssertionError, match=found):
        check_pace(IgnoresHolds)


def check_async_transport(run: Run, transport: type[AsyncGood]) -> None:
    """Check an asynchronous transport."""

    async def main() -> None:
        await check_async_pace(
            lambda protocol, pace: AsyncCoreClient(protocol, transport(protocol), pace=pace)
        )

    run(main)


def test_good_async_transport(run: Run) -> None:
    """An asynchronous transport that keeps every promise passes."""
    check_async_transport(run, AsyncGood)


@pytest.mark.parametrize(
    ("transport", "found"),
    [
        (AsyncSkipsTime, r"sent a request of .* 0\.\d\d s after the response 429"),
        (AsyncCannotSleep, r"raised ZeroDivisionError\(.*\), but must return a result"),
        (AsyncLetsCallsGoOn, r"sent request \d+ after it was closed"),
        (AsyncFabricates, "returned a result, but its client was closed before it was sent"),
    ],
)
def test_async_broken_promise(run: Run, transport: type[AsyncGood], found: str) -> None:
    """The check of an asynchronous transport finds the same."""
    with pytest.raises(AssertionError, match=found):
        check_async_transport(run, transport)


def test_swallowed_cancellation() -> None:
    """A transport whose sleep swallows a cancellation is found out."""
    found = "was cancelled while the Pace held it, but returned a result"
    with pytest.raises(AssertionError, match=found):
        check_async_transport(run_asyncio, SwallowsCancellationAsleep)
