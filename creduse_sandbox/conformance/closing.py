"""Closing a client while its calls are under way, and calling one that is closed."""

import ssl
import threading
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Final

from creduse_core import Call, CreduseError, CreduseProtocol, Outcome, TransportError
from creduse_sandbox.conformance.checks import (
    AsyncConnect,
    Connect,
    at_once,
    make_protocol,
    pause,
    report,
    still_open,
    untrue,
)
from creduse_sandbox.conformance.scenarios import (
    API_KEY,
    PLENTY,
    SLACK,
    SOON,
    USER,
    WITHIN,
    Limit,
    in_words,
)
from creduse_sandbox.connection import LogEntry
from creduse_sandbox.faults import FAULTS, Fault
from creduse_sandbox.server import SandboxServer


@dataclass(frozen=True, slots=True)
class Closing:
    """What two calls meet with during which their client is closed."""

    name: str
    outcome: Outcome
    """What they say afterwards: none of them can get a response."""
    fault: Fault | None = None
    """With none, the server does not let them connect until the client is closed."""

    def __str__(self) -> str:
        return self.name

    @property
    def description(self) -> str:
        """What the server does, in words."""
        return in_words(self.fault) or "leave connections waiting, until the client is closed"


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
"""So that in a client that has one connection one of them waits for it."""
_BEGUN: Final = 0.2
"""Seconds in which calls get as far as they can."""
_AGAIN: Final = (1.0, 3.0, 7.0)
"""Seconds after which Linux tries once more to connect."""


def check_closing(
    closing: Closing,
    connect: Connect,
    *,
    certificate: ssl.SSLContext | None = None,
    limits: Sequence[Limit] = (),
) -> None:
    """Close a synchronous client while two threads call.

    Their calls must end at once, and what they say must be true. Nothing of them may be first sent
    once ``close()`` has returned; nor of a call that is made afterwards, which says that nothing
    was sent. With ``certificate``, a server's context, it is over TLS.

    Raises:
        AssertionError: A promise was not kept. It says which, and what the server saw.
    """
    # With the limit, calls end by themselves.
    timeout = 2 * (SOON if Limit.CLOSE in limits else SLACK)
    with _ending(closing, certificate, timeout) as ending:
        with connect(ending.protocol) as client:

            def run(call: Call[Any]) -> None:
                with ending.watching(call):
                    client.run(call)

            threads = [
                threading.Thread(target=run, args=(call,), daemon=True) for call in ending.calls
            ]
            with ending.stalling():
                for thread in threads:
                    thread.start()
                for seconds in ending.until_under_way():
                    time.sleep(seconds)
                with ending.closing():
                    client.close()
                patience = time.monotonic() + SLACK
                for thread in threads:
                    thread.join(max(0.0, patience - time.monotonic()))
                if any(thread.is_alive() for thread in threads):
                    ending.late()
            for thread in threads:
                thread.join()
            time.sleep(ending.rest())
            with ending.watching(ending.after):
                client.run(ending.after)
        for seconds in still_open(ending.server):
            time.sleep(seconds)
        ending.judge(limits)


async def check_async_closing(
    closing: Closing,
    connect: AsyncConnect,
    *,
    certificate: ssl.SSLContext | None = None,
) -> None:
    """Close an asynchronous client while two tasks call; as `check_closing`.

    Here calls may also go on to their own end, for which ``aclose()`` may wait.
    """
    with _ending(closing, certificate, SOON) as ending:
        async with connect(ending.protocol) as client:

            async def run(call: Call[Any] | None) -> None:
                if call is not None:
                    with ending.watching(call):
                        await client.run(call)
                    return
                with ending.stalling():
                    for seconds in ending.until_under_way():
                        await pause(seconds)
                    with ending.closing():
                        await client.aclose()

            await at_once(run, (*ending.calls, None))
            await pause(ending.rest())
            with ending.watching(ending.after):
                await client.run(ending.after)
        for seconds in still_open(ending.server):
            await pause(seconds)
        ending.judge(())


@contextmanager
def _ending(
    closing: Closing, certificate: ssl.SSLContext | None, timeout: float
) -> Generator["_Ending", None, None]:
    with SandboxServer(api_key=API_KEY, ssl_context=certificate) as server:
        if closing.fault is not None:
            server.inject(closing.fault, _CALLS)
        yield _Ending(closing, server, timeout)


class _Ending:
    """The calls of a client that is closed, and what is to be said of them afterwards."""

    def __init__(self, closing: Closing, server: SandboxServer, timeout: float) -> None:
        self.protocol: CreduseProtocol = make_protocol(server, PLENTY)
        self.server = server
        self.calls = [
            self.protocol.add(USER, 1 + number, timeout=timeout) for number in range(_CALLS)
        ]
        self.after = self.protocol.add(USER, 1 + _CALLS)
        self._closing = closing
        self._errors: dict[Call[Any], BaseException] = {}
        self._late = False
        self._begun = time.monotonic()
        self._seconds = 0.0
        self._known: set[int] = set()

    def stalling(self) -> Any:
        """Keep connections waiting, if it is that which the calls meet with."""
        return self.server.stalling() if self._closing.fault is None else nullcontext()

    def until_under_way(self) -> Iterator[float]:
        """Give seconds to wait for, until the calls are where they are to be."""
        patience = time.monotonic() + WITHIN
        while self._closing.fault is not None and time.monotonic() < patience:
            if any(entry.fault is not None for entry in self.server.log):
                break
            yield 0.01
        yield _BEGUN

    @contextmanager
    def watching(self, call: Call[Any]) -> Generator[None, None, None]:
        """Take note of what a call raises, whatever it is."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - it is judged
            self._errors[call] = error

    @contextmanager
    def closing(self) -> Generator[None, None, None]:
        """Take note of what had been sent when the client was closed, and how long that took."""
        begun = time.monotonic()
        yield
        self._seconds = time.monotonic() - begun
        self.server.settle()
        self._known = {entry.number for entry in self.server.log}

    def late(self) -> None:
        """Take note that calls go on."""
        self._late = True

    def rest(self) -> float:
        """Return the seconds until connections that were being made would stand."""
        if self._closing.fault is not None:
            return 0.0
        seconds = time.monotonic() - self._begun
        return next(at for at in _AGAIN if at > seconds) + 0.3 - seconds

    def judge(self, limits: Sequence[Limit]) -> None:
        """Say all that is wrong."""
        self.server.settle()
        log = self.server.log
        problems = [
            *self._untrue(log),
            *(
                f"request {entry.number} was first sent after the client had been closed"
                for entry in log
                if entry.number not in self._known
            ),
        ]
        if self._seconds > SLACK:
            problems.append(f"to close it took {self._seconds:.1f} s")
        if self.server.connections:
            problems.append(f"{self.server.connections} connections are left open")
        if self._late and Limit.CLOSE not in limits:
            if not problems:
                hint = f"This is allowed with limits=[Limit.CLOSE]: {Limit.CLOSE.value}."
                problems.append(hint)
            problems.insert(0, f"calls went on for {SLACK} s after the client had been closed")
        if problems:
            name, words = str(self._closing), self._closing.description
            raise AssertionError(report(name, words, problems, log))

    def _untrue(self, log: Sequence[LogEntry]) -> Iterator[str]:
        for call in (*self.calls, self.after):
            yield from untrue(call, _of(call, log))
            error = self._errors.get(call)
            if not isinstance(error, CreduseError):
                yield f"{call} ended in {'a result' if error is None else repr(error)}"
        for call in self.calls:
            if call.outcome not in {self._closing.outcome, Outcome.NOT_APPLIED}:
                yield f"{call} says {call.outcome}, not {self._closing.outcome}"
        error, attempts = self._errors.get(self.after), self.after.attempts
        if not (
            isinstance(error, TransportError)
            and error.outcome is Outcome.NOT_APPLIED
            and [attempt.event for attempt in attempts] == ["unsendable"]
        ):
            yield f"a call of a closed client raised {error!r}, not that nothing can be sent"


def _of(call: Call[Any], log: Iterable[LogEntry]) -> list[LogEntry]:
    """Return what the server saw of a call, as far as it knows whose it was."""
    return [entry for entry in log if entry.body == call.request.body]
