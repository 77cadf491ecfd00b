"""The kit reports a transport that breaks a promise when a signal interrupts a call."""

import gc
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from creduse_core import CreduseProtocol
from creduse_sandbox.conformance import (
    INTERRUPTIONS,
    AsyncConnect,
    Interruption,
    Limit,
    check_interruption,
    check_interruption_on_asyncio,
    check_interruption_on_trio,
)
from tests.sandbox.conformance_kit.broken import (
    CannotSleep,
    FabricatesEveryThird,
    FinishesInAThread,
    KeepsItsLock,
    LeavesConnectionsOpen,
    LosesItsPlace,
    MakeTransport,
    NeverCloses,
    RetriesAfterAlarm,
    SendsWithTheNextCall,
    SwallowsSignals,
    TakesSignalsForFailures,
    over,
)
from tests.sandbox.conformance_kit.broken_async import (
    AsyncFabricatesEveryThird,
    AsyncLosesItsPlace,
    CrashesTrio,
    HangsWhenInterrupted,
    SwallowsCancellation,
    async_over,
)
from tests.sandbox.conformance_kit.transports import AsyncGood, Good

# An interrupted transport can leak the connection that it was opening.
pytestmark = pytest.mark.usefixtures("leaks")

INTERRUPTED = {interruption.name: interruption for interruption in INTERRUPTIONS}


def check_signal(name: str, transport: MakeTransport, *limits: Limit) -> None:
    """Check a transport under one interruption."""
    interruption = INTERRUPTED[name]
    check_interruption(interruption, over(transport), limits=limits)


@pytest.mark.parametrize("name", ["ctrl-c-on-a-new-connection", "alarm-meeting-with-429"])
def test_good_transport(name: str) -> None:
    """A transport that keeps every promise passes."""
    check_signal(name, Good)


def test_collector_stays_off() -> None:
    """The check does not turn on a garbage collector that was off."""
    gc.disable()
    try:
        check_signal("ctrl-c-on-a-new-connection", Good)
        assert not gc.isenabled()
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("transport", "name", "found"),
    [
        (
            SwallowsSignals,
            "ctrl-c-meeting-with-nothing",
            "must raise the KeyboardInterrupt of the signal",
        ),
        (
            TakesSignalsForFailures,
            "alarm-meeting-with-nothing",
            "must raise the TimeoutError of the signal",
        ),
        (LosesItsPlace, "ctrl-c-meeting-with-nothing", "a later call, .*, raised TransportError"),
        (
            FinishesInAThread,
            "ctrl-c-meeting-with-nothing",
            "received 2 requests of .*, but call.attempts has 1",
        ),
        (
            SendsWithTheNextCall,
            "ctrl-c-meeting-with-nothing",
            r"the client sent request \d+ after the call was interrupted",
        ),
        (
            FabricatesEveryThird,
            "ctrl-c-meeting-with-429",
            r"the server applied \d of a hundred later calls",
        ),
        (KeepsItsLock, "ctrl-c-meeting-with-nothing", "a later call, .*, raised this .* in time"),
        (NeverCloses, "ctrl-c-meeting-with-nothing", r"close\(\) raised this .* in time"),
        (
            RetriesAfterAlarm,
            "alarm-meeting-with-nothing",
            "received 2 requests of .*, but call.attempts has 1",
        ),
        (
            LeavesConnectionsOpen,
            "ctrl-c-meeting-with-nothing",
            r"did not close all connections: \d are open",
        ),
    ],
)
def test_broken_promise(
    transport: MakeTransport, name: str, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check of a broken promise fails, and the message names the promise."""
    monkeypatch.setattr("creduse_sandbox.conformance.checks.MAX_SECONDS", 1.0)
    if "in time" in found:
        monkeypatch.setattr("creduse_sandbox.conformance.interruption.MAX_SECONDS", 1.0)
    with pytest.raises(AssertionError, match=found):
        check_signal(name, transport)


@pytest.mark.parametrize(
    ("transport", "name"),
    [
        (TakesSignalsForFailures, "alarm-meeting-with-nothing"),
        (KeepsItsLock, "ctrl-c-meeting-with-nothing"),
    ],
)
def test_limit_of_signals(
    transport: MakeTransport, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`Limit.SIGNAL` allows a lost alarm or a deadlock, and no Ctrl-C without an effect."""
    monkeypatch.setattr("creduse_sandbox.conformance.interruption.SHORT_TIMEOUT", 0.5)
    check_signal(name, transport, Limit.SIGNAL)
    with pytest.raises(AssertionError, match="must raise the KeyboardInterrupt"):
        check_signal("ctrl-c-meeting-with-nothing", SwallowsSignals, Limit.SIGNAL)


def test_limit_of_signals_is_named() -> None:
    """The message names `Limit.SIGNAL` where it allows the behavior."""
    with pytest.raises(AssertionError, match=r"allowed with limits=.Limit.SIGNAL"):
        check_signal("alarm-meeting-with-nothing", TakesSignalsForFailures)


def test_late_signal_of_the_kit() -> None:
    """The kit's own signal, which ends a call that hangs, has no effect after that call."""

    def late(protocol: CreduseProtocol) -> Good:
        signal.raise_signal(signal.SIGUSR2)
        return Good(protocol)

    check_signal("ctrl-c-meeting-with-nothing", late)


def test_exception_of_sleep() -> None:
    """An exception of a transport's sleep passes through the check."""
    with pytest.raises(ZeroDivisionError):
        check_signal("ctrl-c-meeting-with-429", CannotSleep)


def test_other_threads_are_rejected() -> None:
    """The check must run in the main thread, which handles signals."""
    with ThreadPoolExecutor(1) as threads, pytest.raises(ValueError, match="main thread"):
        threads.submit(check_signal, "ctrl-c-meeting-with-nothing", Good).result()


def test_good_async_transport() -> None:
    """An asynchronous transport that keeps every promise passes."""
    check_interruption_on_asyncio(INTERRUPTED["ctrl-c-meeting-with-429"], async_over(AsyncGood))


# An event loop that was interrupted fails again when it is collected.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("check", "transport", "found"),
    [
        (
            check_interruption_on_asyncio,
            SwallowsCancellation,
            "must raise the KeyboardInterrupt of the signal",
        ),
        (
            check_interruption_on_asyncio,
            AsyncLosesItsPlace,
            "a later call, .*, raised TransportError",
        ),
        (check_interruption_on_trio, AsyncLosesItsPlace, "a later call, .*, raised TransportError"),
        (
            check_interruption_on_trio,
            CrashesTrio,
            "the interruption ended trio's event loop: TrioInternalError",
        ),
        (
            check_interruption_on_trio,
            HangsWhenInterrupted,
            "the interruption ended trio's event loop: this .* in time",
        ),
        (
            check_interruption_on_asyncio,
            AsyncFabricatesEveryThird,
            r"the server applied \d of a hundred later calls",
        ),
    ],
)
def test_async_broken_promise(
    check: Callable[[Interruption, AsyncConnect], None],
    transport: type[AsyncGood],
    found: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The check of a broken promise fails, and the message names the promise."""
    if "in time" in found:
        monkeypatch.setattr("creduse_sandbox.conformance.interruption.MAX_SECONDS", 1.0)
    with pytest.raises(AssertionError, match=found):
        check(INTERRUPTED["ctrl-c-meeting-with-nothing"], async_over(transport))
