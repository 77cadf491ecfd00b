"""The kit reports a transport that several threads or tasks cannot share."""

import pytest

from creduse_sandbox.conformance import (
    CONCURRENCY_LEVELS,
    Limit,
    check_async_concurrency,
    check_concurrency,
)
from tests.sandbox.conformance_kit.broken import (
    LeavesConnectionsOpen,
    MakeTransport,
    NeverReuses,
    OneAtATime,
    WithoutClock,
    altered,
    fabricate,
    over,
    sending,
)
from tests.sandbox.conformance_kit.broken_async import (
    AsyncLeavesConnectionsOpen,
    AsyncOneAtATime,
    async_over,
)
from tests.sandbox.conformance_kit.loops import Run
from tests.sandbox.conformance_kit.transports import AsyncGood, Good

LEVELS = {level.name: level for level in CONCURRENCY_LEVELS}


def check_level(name: str, transport: MakeTransport, *limits: Limit) -> None:
    """Check a transport at one level of concurrency."""
    check_concurrency(LEVELS[name], over(transport), limits=limits)


@pytest.mark.parametrize("name", LEVELS)
def test_good_transport(name: str) -> None:
    """A transport that keeps every promise passes."""
    check_level(name, Good)


@pytest.mark.parametrize(
    ("transport", "found"),
    [
        (OneAtATime, r"raised TransportError\('add\(\S+, \d+\): OSError: two at once"),
        (WithoutClock, r"raised ZeroDivisionError"),
        (NeverReuses, "four-callers:\n  the client opened 100 connections for 4 callers"),
        (LeavesConnectionsOpen, r"did not close all connections: [1-4] are open"),
        (sending(fabricate), "did not apply .*, but its outcome is APPLIED"),
        (
            sending(altered(body=lambda body: body + b" ")),
            "no call had the body that the server received",
        ),
    ],
)
def test_broken_promise(
    transport: MakeTransport, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check of a broken promise fails, and the message names the promise."""
    monkeypatch.setattr("creduse_sandbox.conformance.checks.MAX_SECONDS", 1.0)
    with pytest.raises(AssertionError, match=found):
        check_level("four-callers", transport)


def test_limit_of_reuse() -> None:
    """`Limit.REUSE` allows more connections, and the message names it."""
    with pytest.raises(AssertionError, match=r"allowed with limits=.Limit.REUSE"):
        check_level("four-callers", NeverReuses)
    check_level("four-callers", NeverReuses, Limit.REUSE)


def test_slow_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that takes too long is found out."""
    monkeypatch.setattr("creduse_sandbox.conformance.concurrency.MAX_SECONDS", 0.0)
    with pytest.raises(AssertionError, match=r"succeeded> took \d+\.\d s"):
        check_level("four-callers", Good)


def test_good_async_transport(run: Run) -> None:
    """An asynchronous transport that keeps every promise passes."""

    async def main() -> None:
        await check_async_concurrency(LEVELS["four-callers"], async_over(AsyncGood))

    run(main)


@pytest.mark.parametrize(
    ("transport", "found"),
    [
        (AsyncOneAtATime, "raised TransportError"),
        (AsyncLeavesConnectionsOpen, "did not close all connections: 1 are open"),
    ],
)
def test_async_broken_promise(
    run: Run,
    transport: type[AsyncGood],
    found: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The check of an asynchronous transport finds the same."""
    monkeypatch.setattr("creduse_sandbox.conformance.checks.MAX_SECONDS", 1.0)

    async def main() -> None:
        await check_async_concurrency(LEVELS["four-callers"], async_over(transport))

    with pytest.raises(AssertionError, match=found):
        run(main)
