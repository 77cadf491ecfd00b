"""Run a scenario with a client, and compare what the client says with the server's log.

It has `check`, `check_async`, and what the other checks share with them. The scenarios (`scenarios`)
do not belong here.
"""

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
    LONG_TIMEOUT,
    MAX_SECONDS,
    SERVER_DELAY,
    SHORT_TIMEOUT,
    USER,
    Limit,
    Scenario,
    in_numbers,
)
from creduse_sandbox.connection import LogEntry
from creduse_sandbox.faults import CannedResponse
from creduse_sandbox.server import SandboxServer

T = TypeVar("T")

SSLContexts: TypeAlias = Mapping[str, ssl.SSLContext]
Connect: TypeAlias = Callable[[CreduseProtocol], AbstractContextManager[CoreClient]]
AsyncConnect: TypeAlias = Callable[[CreduseProtocol], AbstractAsyncContextManager[AsyncCoreClient]]


def check(
    scenario: Scenario,
    connect: Connect,
    *,
    ssl_contexts: SSLContexts | None = None,
    limits: Sequence[Limit] = (),
) -> None:
    """Run a scenario with a synchronous client.

    ``connect`` makes a client for one scenario. ``ssl_contexts`` are needed for `TLS_SCENARIOS`:
    servers' contexts with the keys ``good``, ``untrusted``, ``misnamed`` and ``expired``. The
    client must trust ``good`` for 127.0.0.1. ``limits`` are the known limits of the HTTP library.

    Raises:
        AssertionError: The client broke a promise. The message says which, what the server did
            and what it received.
        ValueError: ``ssl_contexts`` lack the one that the scenario needs.
    """
    with _run_of(scenario, ssl_contexts, limits) as run:
        with connect(run.protocol) as client:
            for call in run.calls():
                with run.recording(call):
                    client.run(call)
                time.sleep(run.pause_after)
        for seconds in waits_until_closed(run.server):
            time.sleep(seconds)
        run.verify()


async def check_async(
    scenario: Scenario,
    connect: AsyncConnect,
    *,
    ssl_contexts: SSLContexts | None = None,
    limits: Sequence[Limit] = (),
) -> None:
    """Run a scenario with an asynchronous client, on asyncio or trio. See `check`."""
    with _run_of(scenario, ssl_contexts, limits) as run:
        async with connect(run.protocol) as client:
            for call in run.calls():
                with run.recording(call):
                    await client.run(call)
                await sleep(run.pause_after)
        for seconds in waits_until_closed(run.server):
            await sleep(seconds)
        run.verify()


def waits_until_closed(server: SandboxServer) -> Iterator[float]:
    """Yield seconds to sleep until no connection is open, for at most MAX_SECONDS seconds."""
    deadline = time.monotonic() + MAX_SECONDS
    while server.connections and time.monotonic() < deadline:
        yield 0.01


def is_under_trio() -> bool:
    """Return whether trio runs this task."""
    trio = sys.modules.get("trio")
    return trio is not None and trio.lowlevel.in_trio_task()


async def sleep(seconds: float) -> None:
    """Sleep, on asyncio or trio."""
    if is_under_trio():
        import trio  # noqa: PLC0415 - only where it is running

        await trio.sleep(seconds)
    else:
        await asyncio.sleep(seconds)


async def run_concurrently(run: Callable[[T], Awaitable[None]], items: Iterable[T]) -> None:
    """Run a coroutine function on each item, in a task each, on asyncio or trio."""
    if is_under_trio():
        import trio  # noqa: PLC0415 - only where it is running

        async with trio.open_nursery() as nursery:
            for item in items:
                nursery.start_soon(run, item)
    else:
        await asyncio.gather(*map(run, items))


async def run_steps(steps: Iterable[Callable[[], Awaitable[None]]]) -> None:
    """Run coroutine functions concurrently, on asyncio or trio."""
    await run_concurrently(_run, steps)


async def _run(step: Callable[[], Awaitable[None]]) -> None:
    await step()


@dataclass(slots=True)
class _Record:
    """A call and how it went."""

    call: Call[Any]
    first: int
    """The number of log entries before the call."""
    begun: float
    ended: float = 0.0
    error: CreduseError | None = None


def make_protocol(server: SandboxServer, attempt_timeout: float) -> CreduseProtocol:
    """Return a protocol for this server that retries at once and trusts idempotency keys."""
    policy = RetryPolicy(initial_delay=0, attempt_timeout=attempt_timeout, server_replays=True)
    return CreduseProtocol(API_KEY, server.base_url, retry=policy, timeout=LONG_TIMEOUT)


@contextmanager
def _run_of(
    scenario: Scenario, ssl_contexts: SSLContexts | None, limits: Sequence[Limit]
) -> Generator["_ScenarioRun", None, None]:
    name = scenario.certificate
    if name and name not in (ssl_contexts or {}):
        raise ValueError(
            f"{scenario} needs ssl_contexts with the key {name!r}, which is a server's SSLContext"
        )
    context = (ssl_contexts or {})[name] if name else None
    with SandboxServer(api_key=API_KEY, ssl_context=context) as server:
        yield _ScenarioRun(scenario, server, limits)


class _ScenarioRun:
    """One run of a scenario: its calls, how they went, and the problems found."""

    def __init__(self, scenario: Scenario, server: SandboxServer, limits: Sequence[Limit]) -> None:
        self.protocol = make_protocol(server, scenario.attempt_timeout)
        self._unhurried = make_protocol(server, LONG_TIMEOUT)
        self._scenario = scenario
        self.server = server
        self.pause_after = scenario.pause_after
        self._limits = limits
        self._records: list[_Record] = []
        self._requests: list[tuple[Request, float]] = []
        server.inject(CannedResponse(500), when=self._record_request)
        server.handle(self.protocol.add(USER, BALANCE).request)

    def _record_request(self, request: Request) -> bool:
        """Record the API key and the query, which the log omits. Never inject the fault."""
        if self._scenario.followed_by is not None and self._requests:
            time.sleep(SERVER_DELAY)
        self._requests.append((request, time.monotonic()))
        return False

    def calls(self) -> Iterator[Call[Any]]:
        """Yield the calls to run, one after the other, and inject the faults of each."""
        scenario, server = self._scenario, self.server
        if scenario.on_used_connection:
            if scenario.before is not None:
                server.inject(scenario.before)
            yield self._unhurried.get_balance(USER)
        for fault in scenario.faults:
            server.inject(fault)
        with server.refusing() if scenario.refuse else nullcontext():
            yield scenario.make(self.protocol)
        if scenario.followed_by is not None:
            yield scenario.followed_by(self._unhurried)
        # The client must work after any fault.
        if not scenario.certificate or scenario.certificate == "good":
            yield self._unhurried.get_balance(USER)
            yield self._unhurried.add(USER, 1)

    @contextmanager
    def recording(self, call: Call[Any]) -> Generator[None, None, None]:
        """Record how a call goes. Only exceptions other than `CreduseError` propagate."""
        record = _Record(call, len(self.server.log), time.monotonic())
        self._records.append(record)
        try:
            yield
        except CreduseError as error:
            record.error = error
        finally:
            record.ended = time.monotonic()
            self.server.settle()

    def verify(self) -> None:
        """Raise `AssertionError` with all problems, and with the limit that would excuse them."""
        log, limit = self.server.log, self._scenario.limit
        stated = limit in self._limits
        problems = self._problems(log, limit if stated else None)
        if not problems:
            return
        if limit is not None and not stated and not self._problems(log, limit):
            problems.append(f"This is allowed with limits=[Limit.{limit.name}]: {limit.value}.")
        raise AssertionError(report(self._scenario.name, self._scenario.description, problems, log))

    def _problems(self, log: Sequence[LogEntry], limit: Limit | None) -> list[str]:
        ends = [record.first for record in self._records[1:]] + [len(log)]
        received = [
            log[record.first : end] for record, end in zip(self._records, ends, strict=True)
        ]
        main = int(self._scenario.on_used_connection)
        problems = [*self._wrong_ending(self._records[main], received[main], limit)]
        for number, (record, entries) in enumerate(zip(self._records, received, strict=True)):
            call, error, seconds = record.call, record.error, record.ended - record.begun
            problems += false_claims(call, entries)
            problems += _changed_requests(call, entries)
            problems += self._premature_responses(record)
            if seconds > MAX_SECONDS:
                problems.append(f"{call} took {seconds:.1f} s, more than {MAX_SECONDS:g} s")
            response = call.response
            if error is None and (response is None or response.header("Date") is None):
                problems.append(
                    f"the response of {call} lacks the Date header that the server sent"
                )
            if error is not None and number != main:
                problems.append(f"another call, {call}, raised {error!r}")
        if self._scenario.must_not_reuse and limit is None:
            faulty = {
                entry.connection: entry for entry in received[main] if entry.fault is not None
            }
            problems += [
                f"request {entry.number} reused a connection that the client must not reuse"
                for entry in log
                if entry.connection in faulty and entry.number > faulty[entry.connection].number
            ]
        if self._scenario.must_reuse and limit is None:
            used = {entry.connection for entry in log[: ends[main]]}
            if len(used) > 1:
                problems.append("the client did not reuse the connection of the call before")
        problems += _wrong_keys_and_queries(request for request, _ in self._requests)
        problems += left_open(self.server)
        return problems

    def _premature_responses(self, record: _Record) -> Iterator[str]:
        """Find more responses than requests that the server had processed by then."""
        responses = sum(attempt.status is not None for attempt in record.call.attempts)
        processed = sum(record.begun <= at <= record.ended for _, at in self._requests)
        if responses > processed:
            yield (
                f"{record.call} took an earlier response for its own: it had {responses} when the "
                f"server had processed {processed} of its requests"
            )

    def _wrong_ending(
        self, record: _Record, entries: Sequence[LogEntry], limit: Limit | None
    ) -> Iterator[str]:
        call, error = record.call, record.error
        requests, applied = len(entries), sum(entry.applied for entry in entries)
        endings = self._scenario.endings + (self._scenario.endings_at_limit if limit else ())
        if not any(
            (type(error) in ending.errors if ending.errors else error is None)
            and call.outcome is ending.outcome
            and applied == ending.applied
            and (
                requests == ending.requests
                or (requests > ending.requests and self._scenario.attempt_timeout == SHORT_TIMEOUT)
            )
            for ending in endings
        ):
            end = "returned a result" if error is None else f"raised {error!r}"
            yield f"the call {end}, {in_numbers(call.outcome, requests, applied)}"
            yield "it must " + ", or ".join(map(str, endings))
        low, high = self._scenario.at_least, MAX_SECONDS if limit else self._scenario.at_most
        seconds = record.ended - record.begun
        if not low <= seconds <= high:
            yield f"the call took {seconds:.2f} s, but must take from {low:g} to {high:g} s"
        if error is not None and error.outcome is not call.outcome:
            yield f"the error's outcome is {error.outcome}, but the call's is {call.outcome}"


def false_claims(call: Call[Any], entries: Sequence[LogEntry]) -> Iterator[str]:
    """Find what a call says about itself and the log disproves."""
    applied = sum(entry.applied for entry in entries)
    if applied > 1:
        yield f"the server applied {call} {applied} times"
    if applied and call.outcome is Outcome.NOT_APPLIED:
        yield f"the server applied {call}, but its outcome is NOT_APPLIED"
    if not applied and call.outcome is Outcome.APPLIED:
        yield f"the server did not apply {call}, but its outcome is APPLIED"
    if len(entries) > len(call.attempts):
        yield (
            f"the server received {len(entries)} requests of {call}, but call.attempts has "
            f"{len(call.attempts)}"
        )
    for attempt in call.attempts:
        if attempt.event in {"not_sent", "unsendable"} and len(entries) == len(call.attempts):
            yield (
                f"the server received attempt {attempt.number} of {call}, but its event is "
                f"{attempt.event}"
            )


def false_claims_when_abandoned(call: Call[Any], entries: Sequence[LogEntry]) -> Iterator[str]:
    """Find what an abandoned call says about itself and the log disproves, or does not prove."""
    yield from false_claims(call, entries)
    refused = [
        it for it in call.attempts if it.status is not None and it.outcome is Outcome.NOT_APPLIED
    ]
    if call.outcome is Outcome.NOT_APPLIED and len(entries) > len(refused):
        yield (
            f"the server received bytes of {call} without refusing it, but its outcome is "
            "NOT_APPLIED"
        )


def left_open(server: SandboxServer) -> Iterator[str]:
    """Find connections that the client did not close."""
    if server.connections:
        yield f"the client did not close all connections: {server.connections} are open"


_LIBRARY_HEADERS: Final = {"host", "content-length", "connection"}
"""The headers that a library may set. The core sets all others."""


def _changed_requests(call: Call[Any], entries: Sequence[LogEntry]) -> Iterator[str]:
    """Find requests that arrived otherwise than the core made them."""
    request = call.request
    for entry in entries:
        if entry.method is None:
            continue
        received = [(name.lower(), value) for name, value in entry.headers]
        for name, value in request.headers:
            values = [it for header, it in received if header == name.lower()]
            # The log omits the key. _wrong_keys_and_queries checks it.
            if name != "Authorization" and values != [value]:
                yield f"request {entry.number} had the header {name}: {values}, not [{value!r}]"
        expected = {name.lower() for name, _ in request.headers} | _LIBRARY_HEADERS
        if unexpected := {name for name, _ in received} - expected:
            yield f"request {entry.number} had headers of the library's own: {sorted(unexpected)}"
        if not request.url.endswith(f"{entry.path}") or entry.method != request.method:
            yield f"request {entry.number} was {entry.method} {entry.path}, not {request}"
        if entry.body not in {None, request.body}:
            yield f"request {entry.number} had the body {entry.body!r}, not {request.body!r}"


def _wrong_keys_and_queries(requests: Iterable[Request]) -> Iterator[str]:
    """Find changes to what the log omits."""
    for request in requests:
        keys = [value for name, value in request.headers if name.lower() == "authorization"]
        if keys != [f"Bearer {API_KEY}"]:
            yield f"{request} had {len(keys)} Authorization headers, or a wrong API key"
        if "?" in request.url:
            yield f"{request} had a query, which the core does not send"


def report(
    title: str, server_behavior: str, problems: Sequence[str], log: Sequence[LogEntry]
) -> str:
    """Return a report: the problems, what the server did and what it received."""
    lines = (
        f"request {entry.number} on connection {entry.connection}: {entry.method} {entry.path}, "
        f"{entry.received} bytes, response {entry.status}, {'' if entry.applied else 'not '}applied"
        for entry in log
    )
    return "\n  ".join(
        [
            f"{title}:",
            *problems,
            f"What the server does: {server_behavior or 'no fault'}.",
            "What the server received:",
            *lines,
        ]
    )
