"""The kit reports a transport that breaks a promise when its client is closed."""

import pytest

from creduse_sandbox.conformance import CLOSINGS, Limit, check_async_closing, check_closing
from tests.sandbox.conformance_kit.broken import (
    AcceptsCallsAfterClose,
    LeavesConnectionsOpen,
    LetsCallsGoOn,
    MakeTransport,
    SendsAfterClose,
    fabricate,
    over,
    raise_failures,
    report_maybe_sent,
    report_not_sent,
    sending,
)
from tests.sandbox.conformance_kit.broken_async import (
    AsyncChecksOnce,
    AsyncLeavesConnectionsOpen,
    AsyncLetsCallsGoOn,
    async_over,
)
from tests.sandbox.conformance_kit.loops import Run
from tests.sandbox.conformance_kit.transports import AsyncGood, Good

CLOSED = {closing.name: closing for closing in CLOSINGS}


def check_end(name: str, transport: MakeTransport, *limits: Limit) -> None:
    """Check a transport whose client is closed at one moment."""
    check_closing(CLOSED[name], over(transport), limits=limits)


@pytest.mark.parametrize("name", CLOSED)
def test_good_transport(name: str) -> None:
    """A transport that keeps every promise passes."""
    check_end(name, Good)


@pytest.mark.parametrize(
    ("transport", "name", "found"),
    [
        (
            LetsCallsGoOn,
            "close-while-meeting-request-then-hang",
            "calls were still in flight 2.5 s after",
        ),
        (
            SendsAfterClose,
            "close-while-connecting",
            r"the client sent request \d+ after it was closed",
        ),
        (
            AcceptsCallsAfterClose,
            "close-while-meeting-429-seconds",
            r"the client sent request \d+ after it was closed",
        ),
        (
            AcceptsCallsAfterClose,
            "close-while-meeting-429-seconds",
            r"a call after close\(\) returned a result",
        ),
        (
            sending(report_not_sent),
            "close-while-meeting-apply-then-hang",
            "applied .*, but its outcome is NOT_APPLIED",
        ),
        (
            sending(report_maybe_sent),
            "close-while-connecting",
            "the outcome of .* is UNKNOWN, not NOT_APPLIED",
        ),
        (
            sending(raise_failures),
            "close-while-meeting-request-then-hang",
            "must raise a TransportError with outcome NOT_APPLIED",
        ),
        (
            sending(fabricate),
            "close-while-meeting-apply-then-hang",
            "returned a result, but must raise a CreduseError",
        ),
    ],
)
def test_broken_promise(
    transport: MakeTransport, name: str, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check of a broken promise fails, and the message names the promise."""
    monkeypatch.setattr("creduse_sandbox.conformance.closing.MAX_SECONDS", 1.0)
    with pytest.raises(AssertionError, match=found) as caught:
        check_end(name, transport)
    assert "What the server does: " in str(caught.value)


def test_limit_of_closing() -> None:
    """`Limit.CLOSE` allows calls to go on, and the message names it."""
    with pytest.raises(AssertionError, match=r"allowed with limits=.Limit.CLOSE"):
        check_end("close-while-meeting-request-then-hang", LetsCallsGoOn)
    check_end("close-while-meeting-request-then-hang", LetsCallsGoOn, Limit.CLOSE)


def test_slow_close(monkeypatch: pytest.MonkeyPatch) -> None:
    """A `close()` that takes too long is found out."""
    monkeypatch.setattr("creduse_sandbox.conformance.closing.MAX_OVERRUN", 0.0)
    with pytest.raises(AssertionError, match=r"close\(\) took \d+\.\d s"):
        check_end("close-while-meeting-request-then-hang", Good, Limit.CLOSE)


def test_open_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """A closed client that leaves a connection open is found out."""
    monkeypatch.setattr("creduse_sandbox.conformance.checks.MAX_SECONDS", 0.3)
    with pytest.raises(AssertionError, match=r"did not close all connections: [12] are open"):
        check_end("close-while-meeting-429-seconds", LeavesConnectionsOpen)


@pytest.mark.parametrize("name", CLOSED)
def test_good_async_transport(run: Run, name: str) -> None:
    """An asynchronous transport that keeps every promise passes."""

    async def main() -> None:
        await check_async_closing(CLOSED[name], async_over(AsyncGood))

    run(main)


@pytest.mark.parametrize(
    ("transport", "name", "found"),
    [
        (
            AsyncLetsCallsGoOn,
            "close-while-connecting",
            r"the client sent request \d+ after it was closed",
        ),
        (
            AsyncChecksOnce,
            "close-while-connecting",
            r"the client sent request \d+ after it was closed",
        ),
        (
            AsyncLetsCallsGoOn,
            "close-while-meeting-429-seconds",
            r"a call after close\(\) returned a result",
        ),
        (
            AsyncLeavesConnectionsOpen,
            "close-while-meeting-429-seconds",
            "did not close all connections: 1 are open",
        ),
    ],
)
def test_async_broken_promise(
    run: Run,
    transport: type[AsyncGood],
    name: str,
    found: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The check of an asynchronous transport finds the same."""
    monkeypatch.setattr("creduse_sandbox.conformance.checks.MAX_SECONDS", 1.0)

    async def main() -> None:
        await check_async_closing(CLOSED[name], async_over(transport))

    with pytest.raises(AssertionError, match=found):
        run(main)
