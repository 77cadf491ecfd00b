"""The kit reports a transport that breaks a promise when a call is cancelled."""

import pytest

from creduse_core import State
from creduse_sandbox.conformance import CANCELLATIONS, Cancellation, check_cancellation
from tests.sandbox.conformance_kit.broken_async import (
    AsyncCannotSleep,
    AsyncFabricatesEveryThird,
    AsyncLeavesConnectionsOpen,
    AsyncLosesItsPlace,
    AsyncReportsNotSent,
    InspectsItsTask,
    SendsLate,
    SwallowsCancellation,
    async_over,
)
from tests.sandbox.conformance_kit.loops import Run, run_asyncio
from tests.sandbox.conformance_kit.transports import AsyncGood

CANCELLED = {cancellation.name: cancellation for cancellation in CANCELLATIONS}


@pytest.mark.parametrize(
    ("transport", "cancellation", "found"),
    [
        (
            SendsLate,
            "meeting-with-nothing",
            r"the client sent request \d+ after the call was cancelled",
        ),
        (AsyncLosesItsPlace, "meeting-with-nothing", "a later call, .*, raised TransportError"),
        (
            AsyncReportsNotSent,
            "meeting-with-head-then-hang",
            "without refusing it, but its outcome is NOT_APPLIED",
        ),
        (
            AsyncFabricatesEveryThird,
            "meeting-with-nothing",
            r"the server applied \d of a hundred later calls",
        ),
    ],
)
def test_broken_promise(
    run: Run, transport: type[AsyncGood], cancellation: str, found: str
) -> None:
    """The check of a broken promise fails, and the message names the promise."""

    async def main() -> None:
        await check_cancellation(CANCELLED[cancellation], async_over(transport))

    with pytest.raises(AssertionError, match=found):
        run(main)


def test_swallowed_cancellation() -> None:
    """A swallowed cancellation is found out on asyncio.

    trio cancels a task again at its next checkpoint.
    """

    async def main() -> None:
        await check_cancellation(
            CANCELLED["meeting-with-nothing"], async_over(SwallowsCancellation)
        )

    with pytest.raises(AssertionError, match="swallowed the cancellation and went on"):
        run_asyncio(main)


def test_task_can_be_inspected() -> None:
    """A transport can inspect its task while the check counts its steps."""

    async def main() -> None:
        calls = await check_cancellation(
            CANCELLED["meeting-with-nothing"], async_over(InspectsItsTask)
        )
        assert {call.state for call in calls} == {State.ABANDONED, State.SUCCEEDED}

    run_asyncio(main)


def test_exception_of_sleep(run: Run) -> None:
    """An exception of a transport's sleep passes through the check."""

    async def main() -> None:
        await check_cancellation(CANCELLED["meeting-with-429"], async_over(AsyncCannotSleep))

    with pytest.raises(ZeroDivisionError):
        run(main)


def test_call_without_end(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that takes too many steps is found out."""
    monkeypatch.setattr("creduse_sandbox.conformance.cancellation._MAX_STEPS", 2)

    async def main() -> None:
        await check_cancellation(CANCELLED["meeting-with-nothing"], async_over(AsyncGood))

    with pytest.raises(AssertionError, match="no call ended within 2 steps"):
        run(main)


def test_open_connection(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A closed client that leaves a connection open is found out."""
    monkeypatch.setattr("creduse_sandbox.conformance.checks.MAX_SECONDS", 0.3)

    async def main() -> None:
        never = Cancellation("meeting-with-nothing")
        await check_cancellation(never, async_over(AsyncLeavesConnectionsOpen))

    with pytest.raises(AssertionError, match="did not close all connections: 1 are open"):
        run(main)
