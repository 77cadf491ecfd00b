"""Running a scenario over a client, and judging by the server's log what came of it."""

import asyncio
import ssl
import sys
import time
from collections.abc import (
    Awaitable,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    contextmanager,
    nullcontext,
)
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, TypeVar

from creduse_core import (
    AsyncCoreClient,
    Call,
    CoreClient,
    CreduseError,
    CreduseProtocol,
    Outcome,
    Request,
    RetryPolicy,
)
from creduse_sandbox.conformance.scenarios import (
    API_KEY,
    BALANCE,
    HELD,
    PLENTY,
    SOON,
    USER,
    WITHIN,
    Limit,
    Scenario,
)
from creduse_sandbox.connection import LogEntry
from creduse_sandbox.faults import CannedResponse
from creduse_sandbox.server import SandboxServer

T = TypeVar("T")

Certificates: TypeAlias = Mapping[str, ssl.SSLContext]
Connect: TypeAlias = Callable[[CreduseProtocol], AbstractContextManager[CoreClient]]
AsyncConnect: TypeAlias = Callable[[CreduseProtocol], AbstractAsyncContextManager[AsyncCoreClient]]


def check(
    scenario: Scenario,
    connect: Connect,
    *,
    certificates: Certificates | None = None,
    limits: Sequence[Limit] = (),
) -> None:
    """Run a scenario over a synchronous client.

    ``connect`` makes the client from a protocol, for one scenario. ``certificates`` are servers'
    contexts by name, for `TLS_SCENARIOS`: one called ``good``, which the client trusts for
    127.0.0.1, and one each that is ``untrusted``, ``misnamed`` or ``expired``. ``limits`` are
    those that the library is known to have.

    Raises:
        AssertionError: A promise was not kept. It says which, and what the server saw.
    """
    with _trial(scenario, certificates, limits) as trial:
        with connect(trial.protocol) as client:
            for call in trial.calls():
                with trial.watching(call):
                    client.run(call)
                time.sleep(trial.rest)
        for seconds in still_open(trial.server):
            time.sleep(seconds)
        trial.judge()


async def check_async(
    scenario: Scenario,
    connect: AsyncConnect,
    *,
    certificates: Certificates | None = None,
    limits: Sequence[Limit] = (),
) -> None:
    """Run a scenario over an asynchronous client; as `check`."""
    with _trial(scenario, certificates, limits) as trial:
        async with connect(trial.protocol) as client:
            for call in trial.calls():
                with trial.watching(call):
                    await client.run(call)
                await pause(trial.rest)
        for seconds in still_open(trial.server):
            await pause(seconds)
        trial.judge()


def still_open(server: SandboxServer) -> Iterator[float]:
    """Give seconds to wait for, until no connection is open any more or patience has an end."""
    patience = time.monotonic() + WITHIN
    while server.connections and time.monotonic() < patience:
        yield 0.01


def under_trio() -> bool:
    """Say whether it is trio that runs this task."""
    trio = sys.modules.get("trio")
    return trio is not None and trio.lowlevel.in_trio_task()


async def pause(seconds: float) -> None:
    """Wait, under either event loop."""
    if under_trio():
        import trio  # noqa: PLC0415 - only where it is running

        await trio.sleep(seconds)
    else:
        await asyncio.sleep(seconds)


async def at_once(run: Callable[[T], Awaitable[None]], each: Iterable[T]) -> None:
    """Run a coroutine function on each, in a task of its own, under either event loop."""
    if under_trio():
        import trio  # noqa: PLC0415 - only where it is running

        async with trio.open_nursery() as nursery:
            for one in each:
                nursery.start_soon(run, one)
    else:
        await asyncio.gather(*map(run, each))


@dataclass(slots=True)
class _Watched:
    """A call, and how it went."""

    call: Call[Any]
    first: int
    """How many requests were in the log before it."""
    begun: float
    ended: float = 0.0
    error: CreduseError | None = None


def make_protocol(server: SandboxServer, attempt_timeout: float) -> CreduseProtocol:
    """Make calls to this server, tried again at once, as if it were known to replay."""
    policy = RetryPolicy(initial_delay=0, attempt_timeout=attempt_timeout, server_replays=True)
    return CreduseProtocol(API_KEY, server.base_url, retry=policy, timeout=PLENTY)


@contextmanager
def _trial(
    scenario: Scenario, certificates: Certificates | None, limits: Sequence[Limit]
) -> Generator["_Trial", None, None]:
    context = (certificates or {})[scenario.certificate] if scenario.certificate else None
    with SandboxServer(api_key=API_KEY, ssl_context=context) as server:
        yield _Trial(scenario, server, limits)


class _Trial:
    """One run of a scenario: what is called, and what is to be said of it afterwards."""

    def __init__(self, scenario: Scenario, server: SandboxServer, limits: Sequence[Limit]) -> None:
        self.protocol = make_protocol(server, scenario.attempt_timeout)
        self._calm = make_protocol(server, PLENTY)
        self._scenario = scenario
        self.server = server
        self.rest = scenario.rest
        self._limits = limits
        self._watched: list[_Watched] = []
        self._requests: list[tuple[Request, float]] = []
        server.inject(CannedResponse(500), when=self._look)
        server.handle(self.protocol.add(USER, BALANCE).request)

    def _look(self, request: Request) -> bool:
        """See a request as it came, with the key and the query that the log does without."""
        if self._scenario.again is not None and self._requests:
            time.sleep(HELD)
        self._requests.append((request, time.monotonic()))
        return False

    def calls(self) -> Iterator[Call[Any]]:
        """Give the calls to be run, one after the other, and order what they are to meet."""
        scenario, server = self._scenario, self.server
        if scenario.used:
            if scenario.before is not None:
                server.inject(scenario.before)
            yield self._calm.get_balance(USER)
        for fault in scenario.faults:
            server.inject(fault)
        with server.refusing() if scenario.refuse else nullcontext():
            yield scenario.make(self.protocol)
        if scenario.again is not None:
            yield scenario.again(self._calm)
        # Whatever that was, the client can go on.
        if not scenario.certificate or scenario.certificate == "good":
            yield self._calm.get_balance(USER)
            yield self._calm.add(USER, 1)

    @contextmanager
    def watching(self, call: Call[Any]) -> Generator[None, None, None]:
        """Take note of how a call goes. Only what is no `CreduseError` comes through."""
        watched = _Watched(call, len(self.server.log), time.monotonic())
        self._watched.append(watched)
        try:
            yield
        except CreduseError as error:
            watched.error = error
        finally:
            watched.ended = time.monotonic()
            self.server.settle()

    def judge(self) -> None:
        """Say all that is wrong, and whether to state a limit would allow it."""
        log, limit = self.server.log, self._scenario.limit
        stated = limit in self._limits
        problems = self._problems(log, limit if stated else None)
        if not problems:
            return
        if limit is not None and not stated and not self._problems(log, limit):
            problems.append(f"This is allowed with limits=[Limit.{limit.name}]: {limit.value}.")
        raise AssertionError(report(self._scenario.name, self._scenario.description, problems, log))

    def _problems(self, log: Sequence[LogEntry], limit: Limit | None) -> list[str]:
        ends = [watched.first for watched in self._watched[1:]] + [len(log)]
        seen = [log[watched.first : end] for watched, end in zip(self._watched, ends, strict=True)]
        main = int(self._scenario.used)
        problems = [*self._in_the_end(self._watched[main], seen[main], limit)]
        for number, (watched, entries) in enumerate(zip(self._watched, seen, strict=True)):
            problems += untrue(watched.call, entries)
            problems += _altered(watched.call, entries)
            problems += self._too_soon(watched)
            if watched.ended - watched.begun > WITHIN:
                problems.append(f"{watched.call} took {watched.ended - watched.begun:.1f} s")
            answer = watched.call.response
            if watched.error is None and (answer is None or answer.header("Date") is None):
                problems.append(f"the answer to {watched.call} has lost its header fields")
            if watched.error is not None and number != main:
                problems.append(f"{watched.call}, a call beside it, raised {watched.error!r}")
        if self._scenario.fresh and limit is None:
            spoilt = {entry.connection: entry for entry in seen[main] if entry.fault is not None}
            problems += [
                f"the connection was used again, by request {entry.number}"
                for entry in log
                if entry.connection in spoilt and entry.number > spoilt[entry.connection].number
            ]
        if self._scenario.reused and limit is None:
            used = {entry.connection for entry in log[: ends[main]]}
            if len(used) > 1:
                problems.append("the connection of the call before was not used again")
        problems += _disguised(request for request, _ in self._requests)
        if self.server.connections:
            problems.append(f"{self.server.connections} connections are left open")
        return problems

    def _too_soon(self, watched: _Watched) -> Iterator[str]:
        """Hold the responses that a call has had against those that the server had begun by then."""
        had = sum(attempt.status is not None for attempt in watched.call.attempts)
        begun = sum(watched.begun <= at <= watched.ended for _, at in self._requests)
        if had > begun:
            yield (
                f"{watched.call} took for its own a response that was there before: it had {had}, "
                f"and the server had let {begun} of its requests through"
            )

    def _in_the_end(
        self, watched: _Watched, entries: Sequence[LogEntry], limit: Limit | None
    ) -> Iterator[str]:
        call, error = watched.call, watched.error
        requests, applied = len(entries), sum(entry.applied for entry in entries)
        endings = self._scenario.endings + (self._scenario.limited if limit else ())
        if not any(
            (type(error) in ending.errors if ending.errors else error is None)
            and call.outcome is ending.outcome
            and applied == ending.applied
            and (
                requests == ending.requests
                or (requests > ending.requests and self._scenario.attempt_timeout == SOON)
            )
            for ending in endings
        ):
            what = "a result" if error is None else repr(error)
            yield f"it ended in {what}, {call.outcome}; {requests} received, {applied} applied"
            yield "which should have been: " + ", or: ".join(map(str, endings))
        low, high = self._scenario.at_least, WITHIN if limit else self._scenario.at_most
        seconds = watched.ended - watched.begun
        if not low <= seconds <= high:
            yield f"it took {seconds:.2f} s, which should have been {low:g} to {high:g}"
        if error is not None and error.outcome is not call.outcome:
            yield f"its error says {error.outcome}, and the call {call.outcome}"


def untrue(call: Call[Any], entries: Sequence[LogEntry]) -> Iterator[str]:
    """Hold what a call says against what the server saw."""
    applied = sum(entry.applied for entry in entries)
    if applied > 1:
        yield f"{call} was applied {applied} times"
    if applied and call.outcome is Outcome.NOT_APPLIED:
        yield f"{call} says NOT_APPLIED, and was applied"
    if not applied and call.outcome is Outcome.APPLIED:
        yield f"{call} says APPLIED, and was not"
    if len(entries) > len(call.attempts):
        yield f"{call} made {len(call.attempts)} attempts, and the server saw {len(entries)}"
    for attempt in call.attempts:
        if attempt.event in {"not_sent", "unsendable"} and len(entries) == len(call.attempts):
            yield f"{call} says that attempt {attempt.number} was not sent, and it was received"


def untrue_when_left(call: Call[Any], entries: Sequence[LogEntry]) -> Iterator[str]:
    """Hold what a call says that its caller has left against what the server saw."""
    yield from untrue(call, entries)
    proved = [
        it for it in call.attempts if it.status is not None and it.outcome is Outcome.NOT_APPLIED
    ]
    if call.outcome is Outcome.NOT_APPLIED and len(entries) > len(proved):
        yield f"{call} says NOT_APPLIED, and bytes of it were received that nothing says no to"


_BY_THE_LIBRARY: Final = {"host", "content-length", "connection"}
"""Header fields that a library sets. All others are the core's to set."""


def _altered(call: Call[Any], entries: Sequence[LogEntry]) -> Iterator[str]:
    """Hold what has arrived against what was to be sent."""
    request = call.request
    for entry in entries:
        if entry.method is None:
            continue
        came = [(name.lower(), value) for name, value in entry.headers]
        for name, value in request.headers:
            values = [it for field, it in came if field == name.lower()]
            # The log holds no key; that the right one came, the server has seen to.
            if name != "Authorization" and values != [value]:
                yield f"request {entry.number} had {name}: {values}, not [{value!r}]"
        wanted = {name.lower() for name, _ in request.headers} | _BY_THE_LIBRARY
        if unwanted := {name for name, _ in came} - wanted:
            yield f"request {entry.number} had {sorted(unwanted)}"
        if not request.url.endswith(f"{entry.path}") or entry.method != request.method:
            yield f"request {entry.number} was {entry.method} {entry.path}, not {request}"
        if entry.body not in {None, request.body}:
            yield f"request {entry.number} had another body: {entry.body!r}"


def _disguised(requests: Iterable[Request]) -> Iterator[str]:
    """Hold whole requests against what the log does not tell of them."""
    for request in requests:
        keys = [value for name, value in request.headers if name.lower() == "authorization"]
        if keys != [f"Bearer {API_KEY}"]:
            yield f"{request} had {len(keys)} Authorization fields, or another key"
        if "?" in request.url:
            yield f"{request} had a query"


def report(name: str, words: str, problems: Sequence[str], log: Sequence[LogEntry]) -> str:
    """Put what is wrong into words, with what the server did and what it saw."""
    lines = (
        f"request {entry.number} on connection {entry.connection}: {entry.method} {entry.path}, "
        f"{entry.received} bytes, answered {entry.status}, {'' if entry.applied else 'not '}applied"
        for entry in log
    )
    return "\n  ".join(
        [
            f"{name}:",
            *problems,
            f"What the server was to do: {words or 'serve'}.",
            "What the server saw:",
            *lines,
        ]
    )
