"""Cancelling a call at every step that an event loop takes for it, on asyncio and on trio."""

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
    make_protocol,
    pause,
    report,
    still_open,
    under_trio,
    untrue_when_left,
)
from creduse_sandbox.conformance.scenarios import AMOUNT, API_KEY, PLENTY, USER, in_words
from creduse_sandbox.faults import FAULTS, Fault
from creduse_sandbox.server import SandboxServer


@dataclass(frozen=True, slots=True)
class Cancellation:
    """What a call meets with that is cancelled at every step, one after the other."""

    name: str
    fault: Fault | None = None
    new: bool = False
    """Each time on a connection that is yet to be made."""

    def __str__(self) -> str:
        return self.name


CANCELLATIONS: Final = (
    Cancellation("meeting-with-nothing"),
    Cancellation("on-a-new-connection", new=True),
    Cancellation("meeting-with-connect-then-hang", FAULTS["connect-then-hang"], new=True),
    *(
        Cancellation(f"meeting-with-{name}", FAULTS[name])
        for name in (
            *("head-then-hang", "request-then-hang", "apply-then-hang", "apply-then-close"),
            *("cut-head-then-hang", "cut-body-then-hang", "cut-body-then-close"),
            *("wrong-user", "chunks", "429", "503"),
        )
    ),
)

_LONGEST: Final = 10_000
"""Steps. A call has some dozens."""


async def check_cancellation(
    cancellation: Cancellation,
    connect: AsyncConnect,
    *,
    certificate: ssl.SSLContext | None = None,
) -> tuple[Call[Any], ...]:
    """Cancel a call at every step of the event loop, until it is through before that.

    On asyncio and on trio, for each of `CANCELLATIONS`. ``connect`` makes a client that has one
    connection at most, so that one that is lost is missed. With ``certificate``, a server's
    context, it is over TLS. What each call says must be true; nothing may be first sent once its
    caller has the cancellation; and afterwards a hundred calls succeed, and no connection is left
    open.

    Returns:
        The calls that were to be cancelled.

    Raises:
        AssertionError: A promise was not kept. It says which, and what the server saw.
    """
    calls: list[Call[Any]] = []
    with SandboxServer(api_key=API_KEY, ssl_context=certificate) as server:
        protocol = make_protocol(server, PLENTY)
        async with connect(protocol) as client:
            through = 0
            for step in range(_LONGEST):
                if cancellation.new:
                    with server.refusing():
                        pass
                calls.append(protocol.add(USER, AMOUNT, timeout=_BRIEFLY))
                asked = await _cancel_once(cancellation, server, client, calls[-1], step)
                # A step more or less is chance.
                through = 0 if asked else through + 1
                if through == _THROUGH:
                    break
            else:
                raise AssertionError(f"{cancellation}: no call was through after {_LONGEST} steps")
            await _go_on(cancellation, server, client)
        for seconds in still_open(server):
            await pause(seconds)
        if server.connections:
            raise AssertionError(f"{cancellation}: {server.connections} connections are left open")
    return tuple(calls)


async def _cancel_once(
    cancellation: Cancellation,
    server: SandboxServer,
    client: AsyncCoreClient,
    call: Call[Any],
    step: int,
) -> bool:
    server.reset()
    if cancellation.fault is not None:
        server.inject(cancellation.fault)
    asked, obeyed = await _cancel_at(step, lambda: client.run(call))
    server.settle()
    before = server.log
    problems = [*untrue_when_left(call, before)]
    if not obeyed:
        problems.append(f"{call} went on, though it was cancelled: the cancellation was swallowed")
    server.reset()
    after = client.protocol.add(USER, 1)
    problems += [problem async for problem in _succeed(client, after)]
    server.settle()
    known = {entry.number for entry in before}
    problems += [
        f"request {entry.number} was first sent after its caller was cancelled"
        for entry in server.log
        if entry.number not in known and entry.body != after.request.body
    ]
    if problems:
        title = f"cancelled at step {step}, {cancellation}"
        log = (*before, *server.log)
        raise AssertionError(report(title, in_words(cancellation.fault), problems, log))
    return asked


async def _go_on(
    cancellation: Cancellation, server: SandboxServer, client: AsyncCoreClient
) -> None:
    """Make a hundred calls, all of which must succeed."""
    server.reset()
    problems: list[str] = []
    for _ in range(100):
        problems += [it async for it in _succeed(client, client.protocol.add(USER, 1))]
    if len(server.applied) != 100:
        problems.append(f"of a hundred calls afterwards, {len(server.applied)} were applied")
    if problems:
        words = in_words(cancellation.fault)
        raise AssertionError(report(str(cancellation), words, problems, server.log))


async def _succeed(client: AsyncCoreClient, call: Call[Any]) -> AsyncIterator[str]:
    """Run a call that nothing stands in the way of, and say if it failed all the same."""
    try:
        await client.run(call)
    except CreduseError as error:
        yield f"{call}, a call afterwards, raised {error!r}"


_THROUGH: Final = 6
"""So many times in a row a call must have come through before it could be cancelled."""

_BRIEFLY: Final = 0.1
"""Seconds: what the calls have that are to be cancelled before."""


async def _cancel_at(
    step: int, run: Callable[[], Coroutine[Any, Any, object]]
) -> tuple[bool, bool]:
    """Run it, cancel it at a step; say whether that was before its end, and whether it obeyed.

    A step is what a task does between two checkpoints, be it the task itself or one that it has
    made.
    """
    return await (_cancel_on_trio if under_trio() else _cancel_on_asyncio)(step, run)


async def _cancel_on_asyncio(
    step: int, run: Callable[[], Coroutine[Any, Any, object]]
) -> tuple[bool, bool]:
    loop = asyncio.get_running_loop()
    # Of each step, what is done before it, and what up to two turns of the loop later: a task
    # that is ready to go on is told so in one turn, and goes on in the next.
    steps, (at, turns) = itertools.count(), divmod(step, 3)
    asked = told = False

    def tick() -> None:
        if next(steps) == at:
            cancel(turns)

    def cancel(turns: int) -> None:
        nonlocal asked, told
        if turns:
            loop.call_soon(cancel, turns - 1)
        else:
            asked = task.cancel()
            # In a step of its own, which may be its last, it is not told before the next one.
            told = asked and asyncio.current_task() is not task

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
    return asked, task.cancelled() or not told


class _Stepped(Coroutine[Any, Any, Any]):
    """A coroutine that tells before each of its steps."""

    __await__: Any = None  # a task asks for neither
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
    # Between its last checkpoint and its end it is not told, so going on means nothing here.
    return scope.cancel_called, True
