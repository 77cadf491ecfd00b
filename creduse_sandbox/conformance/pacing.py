"""Check a client with a `Pace`: what it sends, and that it sends nothing while the pace holds a call.

Which rate a `Pace` finds, how a single call may end (`scenarios`), and what all checks share
(`checks`), do not belong here.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, contextmanager
from functools import partial
from typing import Any, Final, TypeAlias

from creduse_core import (
    AsyncCoreClient,
    Call,
    CoreClient,
    CreduseError,
    CreduseProtocol,
    CreduseTimeoutError,
    Outcome,
    Pace,
    Request,
)
from creduse_sandbox.conformance.checks import (
    false_claims,
    false_claims_when_abandoned,
    is_under_trio,
    left_open,
    make_protocol,
    report,
    run_steps,
    sleep,
    waits_until_closed,
)
from creduse_sandbox.conformance.scenarios import (
    API_KEY,
    LONG_TIMEOUT,
    MAX_SECONDS,
    USER,
    describe,
)
from creduse_sandbox.connection import LogEntry
from creduse_sandbox.faults import FAULTS, CannedResponse
from creduse_sandbox.server import SandboxServer

PacedConnect: TypeAlias = Callable[[CreduseProtocol, Pace], AbstractContextManager[CoreClient]]
AsyncPacedConnect: TypeAlias = Callable[
    [CreduseProtocol, Pace], AbstractAsyncContextManager[AsyncCoreClient]
]

_REFUSAL: Final = FAULTS["429-seconds"]
_PAUSE: Final = 1.0
"""Seconds: its ``Retry-After``."""
_TOO_SHORT: Final = 0.25
"""Seconds: the timeout of a call that should not outlast the pause."""
_EARLY: Final = 0.05
"""Seconds by which a call may come early, as clocks and timers are not exact."""


def check_pace(connect: PacedConnect) -> None:
    """Use one synchronous client with a `Pace` in several threads, and refuse one of its requests.

    After a response 429 with ``Retry-After: 1``, the client must send nothing for this time but what
    it has sent before, not even for calls that begin meanwhile. Then each call must be applied once.
    A call whose timeout ends before the pause must send nothing, and neither must calls that the
    pace holds while the client is closed.

    ``connect`` makes a client with this pace::

        check_pace(lambda protocol, pace: CoreClient(protocol, MyTransport(), pace=pace))

    Raises:
        AssertionError: The client broke a promise. The message says which, and what the server
            received.
    """
    with _pace_run() as run:
        with connect(run.protocol, run.pace) as client:

            def make(call: Call[Any]) -> None:
                with run.recording(call):
                    client.run(call)

            with _in_threads(make, run.first):
                for seconds in run.waits_until_refused():
                    time.sleep(seconds)
                with _in_threads(make, run.meanwhile):
                    pass
            make(run.afterwards)
            run.pace.pause()
            with _in_threads(make, run.last):
                for seconds in run.waits_until_held(run.last):
                    time.sleep(seconds)
                with run.closing():
                    client.close()
        for seconds in waits_until_closed(run.server):
            time.sleep(seconds)
        run.verify()


async def check_async_pace(connect: AsyncPacedConnect) -> None:
    """Use one asynchronous client with a `Pace` in several tasks. See `check_pace`.

    A call that is cancelled while the pace holds it must send nothing, too.
    """
    with _pace_run() as run:
        async with connect(run.protocol, run.pace) as client:

            async def make(call: Call[Any]) -> None:
                with run.recording(call):
                    await client.run(call)

            async def refuse() -> None:
                for seconds in run.waits_until_refused():
                    await sleep(seconds)
                await run_steps([cancel, *(partial(make, call) for call in run.meanwhile)])

            async def cancel() -> None:
                await _cancel_after(run.waits_until_to_cancel(), partial(make, run.cancelled))

            async def close() -> None:
                for seconds in run.waits_until_held(run.last):
                    await sleep(seconds)
                with run.closing():
                    await client.aclose()

            await run_steps([refuse, *(partial(make, call) for call in run.first)])
            await make(run.afterwards)
            run.pace.pause()
            await run_steps([close, *(partial(make, call) for call in run.last)])
        for seconds in waits_until_closed(run.server):
            await sleep(seconds)
        run.verify()


@contextmanager
def _in_threads(
    make: Callable[[Call[Any]], None], calls: Iterable[Call[Any]]
) -> Generator[None, None, None]:
    """Run each call in a thread, and wait for all of them at the end of the ``with`` block."""
    threads = [threading.Thread(target=make, args=(call,), daemon=True) for call in calls]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for thread in threads:
            thread.join()


async def _cancel_after(
    waits: Iterable[float], run: Callable[[], Coroutine[Any, Any, None]]
) -> None:
    """Run a coroutine function in a task, and cancel it after the waits."""
    if is_under_trio():
        import trio  # noqa: PLC0415 - only where it is running

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            for seconds in waits:
                await trio.sleep(seconds)
            nursery.cancel_scope.cancel()
    else:
        task = asyncio.create_task(run())
        for seconds in waits:
            await asyncio.sleep(seconds)
        task.cancel()
        await asyncio.wait({task})


class _RecordingPace(Pace):
    """A pace that records what its client asks for and reports."""

    def __init__(self) -> None:
        super().__init__()
        self._records = threading.RLock()
        self._held: dict[object, float] = {}
        self.refusals = 0
        """How many responses 429 the client has reported."""
        self.releases: dict[object, list[tuple[float, int]]] = {}
        """When each caller could send, and how many refusals the client had reported by then."""
        self.hasty: dict[object, float] = {}
        """The seconds by which callers that had to wait came too early."""

    @property
    def held(self) -> set[object]:
        """The callers that have to wait."""
        with self._records:
            return set(self._held)

    def hold(self, caller: object, now: float) -> float:
        """Record whether the caller has to wait, and whether it has waited."""
        with self._records:
            early = self._held.pop(caller, 0.0) - time.monotonic()
            if early > _EARLY:
                self.hasty.setdefault(caller, early)
            wait = super().hold(caller, now)
            if wait:
                self._held[caller] = time.monotonic() + wait
            else:
                release = time.monotonic(), self.refusals
                self.releases.setdefault(caller, []).append(release)
            return wait

    def ended(
        self, caller: object, status: int | None, retry_after: float | None, now: float
    ) -> None:
        """Record refusals."""
        with self._records:
            if status == 429:
                self.refusals += 1
                self._accept_many(now)
            super().ended(caller, status, retry_after, now)

    def leave(self, caller: object) -> None:
        """Record that the caller does not wait any more."""
        with self._records:
            self._held.pop(caller, None)
            super().leave(caller)

    def pause(self) -> None:
        """Hold all calls, as if another client with this pace had got a response 429."""
        now = time.monotonic()
        self._accept_many(now)
        super().ended(object(), 429, _PAUSE, now)

    def _accept_many(self, now: float) -> None:
        """Make the pace a fast one, so that the calls after a pause do not take long."""
        for _ in range(100):
            super().ended(object(), 200, None, now)


@contextmanager
def _pace_run() -> Generator["_PaceRun", None, None]:
    with SandboxServer(api_key=API_KEY) as server:
        yield _PaceRun(server)


class _PaceRun:
    """One run: the calls, their pace, and the problems found."""

    def __init__(self, server: SandboxServer) -> None:
        self.protocol: CreduseProtocol = make_protocol(server, LONG_TIMEOUT)
        self.server = server
        self.pace = _RecordingPace()
        # Their bodies all differ, so the log tells them apart.
        calls = [self.protocol.add(USER, 1 + number) for number in range(10)]
        self.first, others, self.last = calls[:3], calls[3:6], calls[6:8]
        self.afterwards, self.cancelled = calls[8:]
        self._short_call = self.protocol.add(USER, 1 + len(calls), timeout=_TOO_SHORT)
        self.meanwhile = [self._short_call, *others]
        self._calls = [*calls, self._short_call]
        self._ends: dict[Call[Any], Exception | None] = {}
        self._arrivals: dict[bytes, list[float]] = {}
        self._refused_at = 0.0
        self._known: set[int] = set()
        self._was_held = False
        server.inject(CannedResponse(500), when=self._record_arrival)
        server.inject(_REFUSAL)

    def _record_arrival(self, request: Request) -> bool:
        """Record when the server has a request. Never inject the fault."""
        # The first request is the one that the server refuses.
        self._refused_at = self._refused_at or time.monotonic()
        self._arrivals.setdefault(request.body, []).append(time.monotonic())
        return False

    def waits_until_refused(self) -> Iterator[float]:
        """Yield seconds to sleep until the client has reported the refusal, or its calls ended."""
        return _waits_until(lambda: self.pace.refusals or _have_ended(self.first))

    def waits_until_held(self, calls: Sequence[Call[Any]]) -> Iterator[float]:
        """Yield seconds to sleep until the pace holds all of the calls, or they ended."""
        return _waits_until(lambda: self.pace.held.issuperset(calls) or _have_ended(calls))

    def waits_until_to_cancel(self) -> Iterator[float]:
        """Yield seconds to sleep until the call that is to be cancelled is held."""
        yield from self.waits_until_held([self.cancelled])
        # It is cancelled in this step of the event loop.
        self._was_held = self.cancelled in self.pace.held

    @contextmanager
    def recording(self, call: Call[Any]) -> Generator[None, None, None]:
        """Record how a call ends, unless it is cancelled."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - it is reported
            self._ends[call] = error
        else:
            self._ends[call] = None

    @contextmanager
    def closing(self) -> Generator[None, None, None]:
        """Record what the client has sent before it is closed."""
        yield
        self.server.settle()
        self._known = {entry.number for entry in self.server.log}

    def verify(self) -> None:
        """Raise `AssertionError` with all problems."""
        self.server.settle()
        log = self.server.log
        problems = [*self._problems(log), *left_open(self.server)]
        if problems:
            raise AssertionError(report("pace", f"{describe(_REFUSAL)} once", problems, log))

    def _problems(self, log: Sequence[LogEntry]) -> Iterator[str]:
        if not self.pace.refusals:
            yield "the client did not report the response 429 to its Pace: does connect pass it on?"
            return
        for call in self._calls:
            entries = [entry for entry in log if entry.body == call.request.body]
            claims = false_claims_when_abandoned if call is self.cancelled else false_claims
            yield from claims(call, entries)
            yield from self._sent_early(call)
            if (seconds := self.pace.hasty.get(call)) is not None:
                yield f"{call} came {seconds:.2f} s early after a wait: does sleep() wait?"
            if call in self.pace.held:
                yield f"{call} has ended, and did not give up its place in the Pace"
            yield from self._wrong_end(call, entries)

    def _sent_early(self, call: Call[Any]) -> Iterator[str]:
        """Find requests that the client sent before it could."""
        releases = iter(self.pace.releases.get(call, ()))
        for at in self._arrivals.get(call.request.body, ()):
            released_at, refusals = next(releases, (float("inf"), 0))
            if at < released_at:
                yield f"the client sent a request of {call} that the Pace held"
            elif refusals and at < self._refused_at + _PAUSE - _EARLY:
                seconds = at - self._refused_at
                yield f"the client sent a request of {call} {seconds:.2f} s after the response 429"

    def _wrong_end(self, call: Call[Any], entries: Sequence[LogEntry]) -> Iterator[str]:
        error = self._ends.get(call)
        end = "returned a result" if error is None else f"raised {error!r}"
        if call in self.last:
            late = [entry for entry in entries if entry.number not in self._known]
            if late:
                yield f"the client sent request {late[0].number} after it was closed"
            elif not entries and not _is_not_applied(error):
                yield f"{call} {end}, but its client was closed before it was sent"
        elif call is self.cancelled:
            if self._was_held and call in self._ends:
                yield f"{call} was cancelled while the Pace held it, but {end}"
        elif call is self._short_call:
            # On a slow machine, it can begin so late that the pause is over in time.
            is_held = call not in self.pace.releases
            if is_held and not _is_not_applied(error, CreduseTimeoutError):
                yield f"{call} {end}, but the pause was longer than its timeout"
        elif error is not None:
            yield f"{call} {end}, but must return a result"


def _waits_until(condition: Callable[[], object]) -> Iterator[float]:
    deadline = time.monotonic() + MAX_SECONDS
    while not condition() and time.monotonic() < deadline:
        yield 0.01


def _have_ended(calls: Iterable[Call[Any]]) -> bool:
    return not any(call.state.live for call in calls)


def _is_not_applied(error: Exception | None, wanted: type[CreduseError] = CreduseError) -> bool:
    return isinstance(error, wanted) and error.outcome is Outcome.NOT_APPLIED
