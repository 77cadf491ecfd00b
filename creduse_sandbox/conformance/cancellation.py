"""Check calls that are cancelled at every step of the event loop, on asyncio and trio.

How a single call may end (`scenarios`), and what all checks share (`checks`), do not belong here.
"""

import asyncio
import itertools
import ssl
from collections.abc import (
    AsyncIterator,
    Callable,
    Coroutine,
)
from dataclasses import dataclass
from typing import Any, Final

from creduse_core import (
    AsyncCoreClient,
    Call,
    CreduseError,
)
from creduse_sandbox.conformance.checks import (
    AsyncConnect,
    false_claims_when_abandoned,
    is_under_trio,
    left_open,
    make_protocol,
    report,
    sleep,
    waits_until_closed,
)
from creduse_sandbox.conformance.scenarios import AMOUNT, API_KEY, LONG_TIMEOUT, USER, describe
from creduse_sandbox.faults import FAULTS, Fault
from creduse_sandbox.server import SandboxServer


@dataclass(frozen=True, slots=True)
class Cancellation:
    """What the server does to the calls that are cancelled."""

    name: str
    fault: Fault | None = None
    new_connection: bool = False
    """Each call opens a new connection."""

    def __str__(self) -> str:
        return self.name


CANCELLATIONS: Final = (
    Cancellation("meeting-with-nothing"),
    Cancellation("on-a-new-connection", new_connection=True),
    Cancellation(
        "meeting-with-connect-then-hang", FAULTS["connect-then-hang"], new_connection=True
    ),
    *(
        Cancellation(f"meeting-with-{name}", FAULTS[name])
        for name in (
            *("head-then-hang", "request-then-hang", "apply-then-hang", "apply-then-close"),
            *("cut-head-then-hang", "cut-body-then-hang", "cut-body-then-close"),
            *("wrong-user", "chunks", "429", "503"),
        )
    ),
)

_MAX_STEPS: Final = 10_000
"""The steps that a call may take. Calls take some dozens."""


async def check_cancellation(
    cancellation: Cancellation,
    connect: AsyncConnect,
    *,
    ssl_context: ssl.SSLContext | None = None,
) -> tuple[Call[Any], ...]:
    """Cancel one call at its first step, the next at its second, until calls end before that.

    Each call must obey the cancellation, with a true outcome. The client must send no request
    after that. A hundred calls at the end must succeed, and the client must close all connections.

    ``connect`` makes a client with at most one connection: if the client loses its only
    connection slot, later calls fail. With ``ssl_context``, a server's context, the server speaks
    TLS.

    Returns:
        The calls that were cancelled or ended before.

    Raises:
        AssertionError: The client broke a promise. The message says which, what the server did
            and what it received.
    """
    calls: list[Call[Any]] = []
    with SandboxServer(api_key=API_KEY, ssl_context=ssl_context) as server:
        protocol = make_protocol(server, LONG_TIMEOUT)
        async with connect(protocol) as client:
            uncancelled = 0
            for step in range(_MAX_STEPS):
                if cancellation.new_connection:
                    with server.refusing():
                        pass
                calls.append(protocol.add(USER, AMOUNT, timeout=_TIMEOUT))
                cancelled = await _cancel_one(cancellation, server, client, calls[-1], step)
                uncancelled = 0 if cancelled else uncancelled + 1
                if uncancelled == _UNCANCELLED:
                    break
            else:
                raise AssertionError(f"{cancellation}: no call ended within {_MAX_STEPS} steps")
            await _make_a_hundred(cancellation, server, client)
        for seconds in waits_until_closed(server):
            await sleep(seconds)
        for problem in left_open(server):
            raise AssertionError(f"{cancellation}: {problem}")
    return tuple(calls)


async def _cancel_one(
    cancellation: Cancellation,
    server: SandboxServer,
    client: AsyncCoreClient,
    call: Call[Any],
    step: int,
) -> bool:
    server.reset()
    if cancellation.fault is not None:
        server.inject(cancellation.fault)
    cancelled, obeyed = await _cancel_at(step, lambda: client.run(call))
    server.settle()
    before = server.log
    problems = [*false_claims_when_abandoned(call, before)]
    if not obeyed:
        problems.append(f"{call} swallowed the cancellation and went on")
    server.reset()
    later_call = client.protocol.add(USER, 1)
    problems += [problem async for problem in _failure(client, later_call)]
    server.settle()
    known = {entry.number for entry in before}
    problems += [
        f"the client sent request {entry.number} after the call was cancelled"
        for entry in server.log
        if entry.number not in known and entry.body != later_call.request.body
    ]
    if problems:
        title = f"cancelled at step {step}, {cancellation}"
        log = (*before, *server.log)
        raise AssertionError(report(title, describe(cancellation.fault), problems, log))
    return cancelled


async def _make_a_hundred(
    cancellation: Cancellation, server: SandboxServer, client: AsyncCoreClient
) -> None:
    """Make a hundred calls, all of which must succeed."""
    server.reset()
    problems: list[str] = []
    for _ in range(100):
        problems += [it async for it in _failure(client, client.protocol.add(USER, 1))]
    if len(server.applied) != 100:
        problems.append(f"the server applied {len(server.applied)} of a hundred later calls")
    if problems:
        behavior = describe(cancellation.fault)
        raise AssertionError(report(str(cancellation), behavior, problems, server.log))


async def _failure(client: AsyncCoreClient, call: Call[Any]) -> AsyncIterator[str]:
    """Run a call without a fault, and yield how it failed, if it did."""
    try:
        await client.run(call)
    except CreduseError as error:
        yield f"a later call, {call}, raised {error!r}"


_UNCANCELLED: Final = 6
"""The calls in a row that must end before their step. The number of steps varies a little."""

_TIMEOUT: Final = 0.1
"""Seconds: the timeout of the calls that are cancelled."""


async def _cancel_at(
    step: int, run: Callable[[], Coroutine[Any, Any, object]]
) -> tuple[bool, bool]:
    """Run a task and cancel it at a step. Return whether it was cancelled, and whether it obeyed.

    A step is what the task, or one that it started, does between two checkpoints.
    """
    return await (_cancel_on_trio if is_under_trio() else _cancel_on_asyncio)(step, run)


async def _cancel_on_asyncio(
    step: int, run: Callable[[], Coroutine[Any, Any, object]]
) -> tuple[bool, bool]:
    loop = asyncio.get_running_loop()
    # Cancel before each step, and one and two turns of the loop later: a task whose future is done
    # is scheduled in one turn and goes on in the next.
    steps, (at, turns) = itertools.count(), divmod(step, 3)
    cancelled = delivered = False

    def tick() -> None:
        if next(steps) == at:
            cancel(turns)

    def cancel(turns: int) -> None:
        nonlocal cancelled, delivered
        if turns:
            loop.call_soon(cancel, turns - 1)
        else:
            cancelled = task.cancel()
            # During the task's own step, asyncio delivers the cancellation only at its next step,
            # and there may be none.
            delivered = cancelled and asyncio.current_task() is not task

    def stepped(
        loop: asyncio.AbstractEventLoop, coroutine: Any, **settings: Any
    ) -> asyncio.Task[Any]:
        return asyncio.Task(_Stepped(coroutine, tick), loop=loop, **settings)

    usual = loop.get_task_factory()
    loop.set_task_factory(stepped)
    try:
        task = asyncio.create_task(run())
        await asyncio.wait({task})
    finally:
        loop.set_task_factory(usual)
    if not task.cancelled() and not isinstance(task.exception(), CreduseError | None):
        task.result()
    return cancelled, task.cancelled() or not delivered


class _Stepped(Coroutine[Any, Any, Any]):
    """A coroutine that calls ``tick`` before each of its steps."""

    __await__: Any = None  # a task uses neither
    close: Any = None

    def __init__(self, coroutine: Coroutine[Any, Any, Any], tick: Callable[[], None]) -> None:
        self._coroutine = coroutine
        self._tick = tick

    def __getattr__(self, name: str) -> Any:
        return getattr(self._coroutine, name)

    def send(self, value: Any) -> Any:
        self._tick()
        return self._coroutine.send(value)

    def throw(self, *error: Any) -> Any:
        self._tick()
        return self._coroutine.throw(*error)


async def _cancel_on_trio(
    step: int, run: Callable[[], Coroutine[Any, Any, object]]
) -> tuple[bool, bool]:
    import trio  # noqa: PLC0415 - only where it is running

    scope, ticks = trio.CancelScope(), itertools.count()

    class Steps(trio.abc.Instrument):
        def before_task_step(self, task: object) -> None:  # noqa: ARG002 - trio's signature
            if next(ticks) == step:
                scope.cancel()

        after_task_step = before_task_step

    steps = Steps()
    trio.lowlevel.add_instrument(steps)
    try:
        with scope:
            await run()
    except CreduseError:
        pass
    finally:
        trio.lowlevel.remove_instrument(steps)
    # After its last checkpoint a task never gets the cancellation, so it cannot disobey.
    return scope.cancel_called, True
