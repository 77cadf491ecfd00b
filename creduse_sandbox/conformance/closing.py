"""Check a client that is closed while calls are in flight, and a call after that.

How a single call may end (`scenarios`), and what all checks share (`checks`), do not belong here.
"""

import ssl
import threading
import time
from collections.abc import Awaitable, Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from creduse_core import Call, CreduseError, CreduseProtocol, Outcome, TransportError
from creduse_sandbox.conformance.checks import (
    AsyncConnect,
    Connect,
    false_claims,
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
    MAX_OVERRUN,
    MAX_SECONDS,
    SHORT_TIMEOUT,
    USER,
    Limit,
    describe,
)
from creduse_sandbox.connection import LogEntry
from creduse_sandbox.faults import FAULTS, Fault
from creduse_sandbox.server import SandboxServer


@dataclass(frozen=True, slots=True)
class Closing:
    """What the server does to two calls while their client is closed."""

    name: str
    outcome: Outcome
    """The calls' outcome, as none can get a response. A call may also be NOT_APPLIED."""
    fault: Fault | None = None
    """`None`: the server lets connections hang until the client is closed."""

    def __str__(self) -> str:
        return self.name

    @property
    def description(self) -> str:
        """What the server does, in words."""
        return describe(self.fault) or "let connections hang until the client is closed"


CLOSINGS: Final = (
    Closing("close-while-connecting", Outcome.NOT_APPLIED),
    *(
        Closing(f"close-while-meeting-{name}", outcome, FAULTS[name])
        for name, outcome in {
            "head-then-hang": Outcome.UNKNOWN,
            "request-then-hang": Outcome.UNKNOWN,
            "apply-then-hang": Outcome.UNKNOWN,
            "cut-head-then-hang": Outcome.UNKNOWN,
            "cut-body-then-hang": Outcome.UNKNOWN,
            "429-seconds": Outcome.NOT_APPLIED,
        }.items()
    ),
)

_CALLS: Final = 2
"""Two, so that one waits for the connection if the client has only one."""
_HEAD_START: Final = 0.2
"""Seconds in which calls get as far as the fault lets them."""
_MAX_REST: Final = 2.5
"""Seconds that calls may last after the client is closed: fewer than until Linux's second retry to
connect, which shows whether a call that goes on sends its request."""
_CONNECT_RETRIES: Final = (1.0, 3.0, 7.0)
"""Seconds after which Linux retries to connect."""


def check_closing(
    closing: Closing,
    connect: Connect,
    *,
    ssl_context: ssl.SSLContext | None = None,
    limits: Sequence[Limit] = (),
) -> None:
    """Close a synchronous client while two threads make a call each.

    The calls must end at once, with a true outcome. After ``close()`` the client must send no
    request, and a further call must raise a `TransportError` that says so. With ``ssl_context``,
    a server's context, the server speaks TLS.

    Raises:
        AssertionError: The client broke a promise. The message says which, what the server did
            and what it received.
    """
    # With the limit, calls end only by their timeout.
    timeout = 2 * (SHORT_TIMEOUT if Limit.CLOSE in limits else _MAX_REST)
    with _run_of(closing, ssl_context, timeout) as run:
        with connect(run.protocol) as client:

            def make(call: Call[Any]) -> None:
                with run.recording(call):
                    client.run(call)

            threads = [
                threading.Thread(target=make, args=(call,), daemon=True) for call in run.calls
            ]
            with run.stalling():
                for thread in threads:
                    thread.start()
                for seconds in run.waits_until_in_flight():
                    time.sleep(seconds)
                with run.closing():
                    client.close()
                deadline = time.monotonic() + _MAX_REST
                for thread in threads:
                    thread.join(max(0.0, deadline - time.monotonic()))
                run.went_on = any(thread.is_alive() for thread in threads)
            for thread in threads:
                thread.join()
            time.sleep(run.until_connect_retry())
            with run.recording(run.later_call):
                client.run(run.later_call)
        for seconds in waits_until_closed(run.server):
            time.sleep(seconds)
        run.verify(limits)


async def check_async_closing(
    closing: Closing,
    connect: AsyncConnect,
    *,
    ssl_context: ssl.SSLContext | None = None,
) -> None:
    """Close an asynchronous client while two tasks make a call each. See `check_closing`.

    Here the calls may go on until they end by themselves, and ``aclose()`` may wait for them.
    """
    # A call that connects must last until it is connected, which is after the client is closed.
    timeout = SHORT_TIMEOUT if closing.fault is not None else 2 * _MAX_REST
    with _run_of(closing, ssl_context, timeout) as run, ExitStack() as stalling:
        stalling.enter_context(run.stalling())
        async with connect(run.protocol) as client:

            async def make(call: Call[Any]) -> None:
                with run.recording(call):
                    await client.run(call)

            async def close() -> None:
                for seconds in run.waits_until_in_flight():
                    await sleep(seconds)

                async def aclose() -> None:
                    with run.closing():
                        await client.aclose()
                    stalling.close()

                async def let_connect() -> None:  # if the client waits for its calls
                    await sleep(_HEAD_START)
                    stalling.close()

                await run_steps((aclose, let_connect))

            steps: list[Callable[[], Awaitable[None]]] = [
                close,
                *(partial(make, call) for call in run.calls),
            ]
            await run_steps(steps)
            await sleep(run.until_connect_retry())
            with run.recording(run.later_call):
                await client.run(run.later_call)
        for seconds in waits_until_closed(run.server):
            await sleep(seconds)
        run.verify(())


@contextmanager
def _run_of(
    closing: Closing, ssl_context: ssl.SSLContext | None, timeout: float
) -> Generator["_ClosingRun", None, None]:
    with SandboxServer(api_key=API_KEY, ssl_context=ssl_context) as server:
        if closing.fault is not None:
            server.inject(closing.fault, _CALLS)
        yield _ClosingRun(closing, server, timeout)


class _ClosingRun:
    """One run: the calls of a client that is closed, and the problems found."""

    def __init__(self, closing: Closing, server: SandboxServer, timeout: float) -> None:
        self.protocol: CreduseProtocol = make_protocol(server, LONG_TIMEOUT)
        self.server = server
        self.calls = [
            self.protocol.add(USER, 1 + number, timeout=timeout) for number in range(_CALLS)
        ]
        self.later_call = self.protocol.add(USER, 1 + _CALLS)
        self.went_on = False
        """Whether calls were still in flight _MAX_REST seconds after the client was closed."""
        self._closing = closing
        self._errors: dict[Call[Any], BaseException] = {}
        self._begun = time.monotonic()
        self._seconds = 0.0
        self._known: set[int] = set()

    def stalling(self) -> Any:
        """Let connections hang inside a ``with`` block if there is no fault."""
        return self.server.stalling() if self._closing.fault is None else nullcontext()

    def waits_until_in_flight(self) -> Iterator[float]:
        """Yield seconds to sleep until the calls are in flight."""
        deadline = time.monotonic() + MAX_SECONDS
        while self._closing.fault is not None and time.monotonic() < deadline:
            if any(entry.fault is not None for entry in self.server.log):
                break
            yield 0.01
        yield _HEAD_START

    @contextmanager
    def recording(self, call: Call[Any]) -> Generator[None, None, None]:
        """Record any exception of a call."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - it is reported
            self._errors[call] = error

    @contextmanager
    def closing(self) -> Generator[None, None, None]:
        """Record how long the client takes to close, and what it has sent by then."""
        begun = time.monotonic()
        yield
        self._seconds = time.monotonic() - begun
        self.server.settle()
        self._known = {entry.number for entry in self.server.log}

    def until_connect_retry(self) -> float:
        """Return the seconds until connections that hung would be open."""
        if self._closing.fault is not None:
            return 0.0
        seconds = time.monotonic() - self._begun
        return next(at for at in _CONNECT_RETRIES if at > seconds) + 0.3 - seconds

    def verify(self, limits: Sequence[Limit]) -> None:
        """Raise `AssertionError` with all problems."""
        self.server.settle()
        log = self.server.log
        problems = [
            *self._false_claims(log),
            *(
                f"the client sent request {entry.number} after it was closed"
                for entry in log
                if entry.number not in self._known
            ),
        ]
        if self._seconds > MAX_OVERRUN:
            problems.append(f"close() took {self._seconds:.1f} s, more than {MAX_OVERRUN:g} s")
        problems += left_open(self.server)
        if self.went_on and Limit.CLOSE not in limits:
            if not problems:
                hint = f"This is allowed with limits=[Limit.CLOSE]: {Limit.CLOSE.value}."
                problems.append(hint)
            problems.insert(0, f"calls were still in flight {_MAX_REST:g} s after close()")
        if problems:
            title, behavior = str(self._closing), self._closing.description
            raise AssertionError(report(title, behavior, problems, log))

    def _may_succeed(self, entries: Sequence[LogEntry]) -> bool:
        """Return whether the client sent a call before it was closed, with no fault to meet."""
        sent = [entry.number in self._known for entry in entries]
        return self._closing.fault is None and bool(sent) and all(sent)

    def _false_claims(self, log: Sequence[LogEntry]) -> Iterator[str]:
        for call in (*self.calls, self.later_call):
            # An incomplete request has no body in the log, so it counts for no call.
            entries = [entry for entry in log if entry.body == call.request.body]
            yield from false_claims(call, entries)
            error = self._errors.get(call)
            if error is None and self._may_succeed(entries):
                continue
            if not isinstance(error, CreduseError):
                end = "returned a result" if error is None else f"raised {error!r}"
                yield f"{call} {end}, but must raise a CreduseError"
            allowed = self._closing.outcome, Outcome.NOT_APPLIED
            if call is not self.later_call and call.outcome not in allowed:
                yield f"the outcome of {call} is {call.outcome}, not {self._closing.outcome}"
        error, attempts = self._errors.get(self.later_call), self.later_call.attempts
        if not (
            isinstance(error, TransportError)
            and error.outcome is Outcome.NOT_APPLIED
            and [attempt.event for attempt in attempts] == ["unsendable"]
        ):
            end = "returned a result" if error is None else f"raised {error!r}"
            yield (
                f"a call after close() {end}, but must raise a TransportError with outcome "
                "NOT_APPLIED and the event unsendable"
            )
