"""Check one client that many threads or tasks use at once, without faults.

How a single call may end (`scenarios`), and what all checks share (`checks`), do not belong here.
"""

import ssl
import threading
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from creduse_core import Call, CreduseProtocol
from creduse_sandbox.conformance.checks import (
    AsyncConnect,
    Connect,
    false_claims,
    left_open,
    make_protocol,
    report,
    run_concurrently,
    sleep,
    waits_until_closed,
)
from creduse_sandbox.conformance.scenarios import API_KEY, LONG_TIMEOUT, MAX_SECONDS, USER, Limit
from creduse_sandbox.faults import Shaped
from creduse_sandbox.server import SandboxServer

if TYPE_CHECKING:
    from creduse_sandbox.connection import LogEntry


@dataclass(frozen=True, slots=True)
class ConcurrencyLevel:
    """A number of concurrent callers, and of calls that each makes one after the other."""

    name: str
    callers: int
    """Threads or tasks."""
    calls: int
    """The calls of each."""

    def __str__(self) -> str:
        return self.name


CONCURRENCY_LEVELS: Final = (
    ConcurrencyLevel("four-callers", 4, 25),
    # Some pools keep no more than ten or twenty idle connections.
    ConcurrencyLevel("fifty-callers", 50, 5),
)
"""The levels to check."""


def check_concurrency(
    level: ConcurrencyLevel,
    connect: Connect,
    *,
    ssl_context: ssl.SSLContext | None = None,
    limits: Sequence[Limit] = (),
) -> None:
    """Use one synchronous client in many threads at once.

    Each call must return a result, and the client must open no more connections than there are
    threads. ``connect`` makes a client that may open as many. With ``ssl_context``, a server's
    context, the server speaks TLS.

    Raises:
        AssertionError: The client broke a promise. The message says which, and what the server
            received.
    """
    with _run_of(level, ssl_context, limits) as run:
        with connect(run.protocol) as client:
            start = threading.Barrier(level.callers)

            def make(calls: Iterable[Call[Any]]) -> None:
                start.wait()
                for call in calls:
                    with run.recording(call):
                        client.run(call)

            threads = [
                threading.Thread(target=make, args=(calls,), daemon=True) for calls in run.calls()
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        for seconds in waits_until_closed(run.server):
            time.sleep(seconds)
        run.verify()


async def check_async_concurrency(
    level: ConcurrencyLevel,
    connect: AsyncConnect,
    *,
    ssl_context: ssl.SSLContext | None = None,
    limits: Sequence[Limit] = (),
) -> None:
    """Use one asynchronous client in many tasks at once. See `check_concurrency`."""
    with _run_of(level, ssl_context, limits) as run:
        async with connect(run.protocol) as client:

            async def make(calls: Iterable[Call[Any]]) -> None:
                for call in calls:
                    with run.recording(call):
                        await client.run(call)

            await run_concurrently(make, run.calls())
        for seconds in waits_until_closed(run.server):
            await sleep(seconds)
        run.verify()


def _after_nothing(head: bytes, body: bytes) -> Iterable[bytes]:
    return (b"", head + body)


_DELAYED: Final = Shaped(_after_nothing, pause=0.02)
"""Delays each response, so that the requests of all callers are in flight at once."""

_IDLE: Final = 2.5
"""Seconds after which a client may close an idle connection."""


@contextmanager
def _run_of(
    level: ConcurrencyLevel, ssl_context: ssl.SSLContext | None, limits: Sequence[Limit]
) -> Generator["_ConcurrencyRun", None, None]:
    with SandboxServer(api_key=API_KEY, ssl_context=ssl_context) as server:
        server.inject(_DELAYED, level.callers * level.calls)
        yield _ConcurrencyRun(level, server, limits)


class _ConcurrencyRun:
    """One run at a level: its calls, and the problems found."""

    def __init__(
        self, level: ConcurrencyLevel, server: SandboxServer, limits: Sequence[Limit]
    ) -> None:
        self.protocol: CreduseProtocol = make_protocol(server, LONG_TIMEOUT)
        self.server = server
        self._level = level
        self._limits = limits
        self._calls: list[Call[Any]] = []
        self._problems: list[str] = []
        self._begun = time.monotonic()

    def calls(self) -> Iterator[list[Call[Any]]]:
        """Yield each caller's calls. Their bodies all differ, so the log tells them apart."""
        level = self._level
        for caller in range(level.callers):
            first = 1 + caller * level.calls
            calls = [self.protocol.add(USER, first + number) for number in range(level.calls)]
            self._calls += calls
            yield calls

    @contextmanager
    def recording(self, call: Call[Any]) -> Generator[None, None, None]:
        """Record any exception of a call, and a call that takes too long."""
        begun = time.monotonic()
        try:
            yield
        except Exception as error:  # noqa: BLE001 - it is reported
            self._problems.append(f"{call} raised {error!r}")
        seconds = time.monotonic() - begun
        if seconds > MAX_SECONDS:
            self._problems.append(f"{call} took {seconds:.1f} s, more than {MAX_SECONDS:g} s")

    def verify(self) -> None:
        """Raise `AssertionError` with all problems."""
        seconds, log = time.monotonic() - self._begun, self.server.log
        by_body: dict[bytes | None, list[LogEntry]] = {}
        for entry in log:
            by_body.setdefault(entry.body, []).append(entry)
        problems = self._problems
        for call in self._calls:
            problems += false_claims(call, by_body.pop(call.request.body, []))
        problems += [f"no call had the body that the server received: {body!r}" for body in by_body]
        problems += self._too_many(len({entry.connection for entry in log}), seconds)
        problems += left_open(self.server)
        if problems:
            raise AssertionError(report(str(self._level), "", problems, log))

    def _too_many(self, connections: int, seconds: float) -> Iterator[str]:
        callers = self._level.callers
        # On a slow machine, connections may be idle until the client closes them.
        if connections <= callers * (1 + int(seconds / _IDLE)):
            return
        if Limit.REUSE not in self._limits:
            yield f"the client opened {connections} connections for {callers} callers"
            yield f"This is allowed with limits=[Limit.REUSE]: {Limit.REUSE.value}."
