"""Calls from many threads, or many tasks, on one client, while the server is healthy."""

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
    at_once,
    make_protocol,
    pause,
    report,
    still_open,
    untrue,
)
from creduse_sandbox.conformance.scenarios import API_KEY, PLENTY, USER, WITHIN, Limit
from creduse_sandbox.faults import Shaped
from creduse_sandbox.server import SandboxServer

if TYPE_CHECKING:
    from creduse_sandbox.connection import LogEntry


@dataclass(frozen=True, slots=True)
class Crowd:
    """So many callers at once, each of which makes so many calls, one after the other."""

    name: str
    callers: int
    calls: int

    def __str__(self) -> str:
        return self.name


CROWDS: Final = (Crowd("four-callers", 4, 25), Crowd("fifty-callers", 50, 5))
"""Fifty, as some pools keep no more than ten or twenty idle connections."""


def check_crowd(
    crowd: Crowd,
    connect: Connect,
    *,
    certificate: ssl.SSLContext | None = None,
    limits: Sequence[Limit] = (),
) -> None:
    """Call from many threads at once, over a synchronous client.

    All calls must end in results, over no more connections than there are threads. ``connect``
    makes a client that may have as many. With ``certificate``, a server's context, it is over TLS.

    Raises:
        AssertionError: A promise was not kept. It says which, and what the server saw.
    """
    with _gathering(crowd, certificate, limits) as gathering:
        with connect(gathering.protocol) as client:
            start = threading.Barrier(crowd.callers)

            def make(calls: Iterable[Call[Any]]) -> None:
                start.wait()
                for call in calls:
                    with gathering.watching(call):
                        client.run(call)

            threads = [
                threading.Thread(target=make, args=(calls,), daemon=True)
                for calls in gathering.calls()
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        for seconds in still_open(gathering.server):
            time.sleep(seconds)
        gathering.judge()


async def check_async_crowd(
    crowd: Crowd,
    connect: AsyncConnect,
    *,
    certificate: ssl.SSLContext | None = None,
    limits: Sequence[Limit] = (),
) -> None:
    """Call from many tasks at once, over an asynchronous client; as `check_crowd`."""
    with _gathering(crowd, certificate, limits) as gathering:
        async with connect(gathering.protocol) as client:

            async def make(calls: Iterable[Call[Any]]) -> None:
                for call in calls:
                    with gathering.watching(call):
                        await client.run(call)

            await at_once(make, gathering.calls())
        for seconds in still_open(gathering.server):
            await pause(seconds)
        gathering.judge()


def _a_moment_later(head: bytes, body: bytes) -> Iterable[bytes]:
    return (b"", head + body)


_LATER: Final = Shaped(_a_moment_later, pause=0.02)
"""So all callers' requests are under way at once."""

_IDLE: Final = 2.5
"""Seconds. A client may close a connection that has been idle for so long."""


@contextmanager
def _gathering(
    crowd: Crowd, certificate: ssl.SSLContext | None, limits: Sequence[Limit]
) -> Generator["_Gathering", None, None]:
    with SandboxServer(api_key=API_KEY, ssl_context=certificate) as server:
        server.inject(_LATER, crowd.callers * crowd.calls)
        yield _Gathering(crowd, server, limits)


class _Gathering:
    """The calls of a crowd, and what is to be said of them afterwards."""

    def __init__(self, crowd: Crowd, server: SandboxServer, limits: Sequence[Limit]) -> None:
        self.protocol: CreduseProtocol = make_protocol(server, PLENTY)
        self.server = server
        self._crowd = crowd
        self._limits = limits
        self._made: list[Call[Any]] = []
        self._problems: list[str] = []
        self._begun = time.monotonic()

    def calls(self) -> Iterator[list[Call[Any]]]:
        """Return each caller's calls. No two have the same body."""
        crowd = self._crowd
        for caller in range(crowd.callers):
            first = 1 + caller * crowd.calls
            calls = [self.protocol.add(USER, first + number) for number in range(crowd.calls)]
            self._made += calls
            yield calls

    @contextmanager
    def watching(self, call: Call[Any]) -> Generator[None, None, None]:
        """Take note of what a call raises, whatever it is."""
        begun = time.monotonic()
        try:
            yield
        except Exception as error:  # noqa: BLE001 - it is reported
            self._problems.append(f"{call} raised {error!r}")
        seconds = time.monotonic() - begun
        if seconds > WITHIN:
            self._problems.append(f"{call} took {seconds:.1f} s")

    def judge(self) -> None:
        """Say all that is wrong."""
        seconds, log = time.monotonic() - self._begun, self.server.log
        by_body: dict[bytes | None, list[LogEntry]] = {}
        for entry in log:
            by_body.setdefault(entry.body, []).append(entry)
        problems = self._problems
        for call in self._made:
            problems += untrue(call, by_body.pop(call.request.body, []))
        problems += [f"nobody made the call with {body!r}" for body in by_body]
        problems += self._wasted(len({entry.connection for entry in log}), seconds)
        if self.server.connections:
            problems.append(f"{self.server.connections} connections are left open")
        if problems:
            raise AssertionError(report(str(self._crowd), "", problems, log))

    def _wasted(self, connections: int, seconds: float) -> Iterator[str]:
        callers = self._crowd.callers
        # Where a machine is slow, a connection may be idle for so long that it is closed.
        if connections <= callers * (1 + int(seconds / _IDLE)):
            return
        if Limit.REUSE not in self._limits:
            yield f"{callers} callers took {connections} connections"
            yield f"This is allowed with limits=[Limit.REUSE]: {Limit.REUSE.value}."
