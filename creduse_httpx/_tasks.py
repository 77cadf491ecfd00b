"""Run each exchange over a supplied asynchronous client in a task of its own.

When a caller is cancelled, its task is cancelled only where that is safe. Elsewhere httpcore would
lose the connection's place in its pool for good (encode/httpcore, issue 1093).

At most `MAX_CONCURRENT` exchanges run at a time, because httpcore's cost for each grows with the
number that waits in its pool. The others wait here. The steps of an exchange do not belong here.
"""

from collections.abc import Callable, Coroutine
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

from creduse_core import Failure, ForeignError, Response
from creduse_core.foreign import single_of_group

from ._clocks import under_trio
from ._exchange import NO_CONNECTION, NO_WHOLE_RESPONSE

# asyncio and trio are imported where they run. asyncio takes a seventh of the time to import this
# package with httpx, and the synchronous client does not need it.
if TYPE_CHECKING:
    import asyncio

    import trio

    from ._supplied import TracedExchange

MAX_CONCURRENT: Final = 100

Result: TypeAlias = Response | Failure | ForeignError
RunExchange: TypeAlias = Callable[[], Coroutine[Any, Any, Result]]


class Tasks(Protocol):
    """The tasks of one client, on the event loop that runs when this is made."""

    async def run(self, exchange: "TracedExchange", run: RunExchange) -> Result:
        """Run an exchange in a task, and return its result."""
        ...

    async def drain(self) -> None:
        """Wait until all tasks have ended."""
        ...


class AsyncioTasks:
    """`Tasks` on asyncio."""

    def __init__(self) -> None:
        import asyncio  # noqa: PLC0415 - see the module's comment

        self._asyncio = asyncio
        self._loop = asyncio.get_running_loop()
        self._limit = asyncio.Semaphore(MAX_CONCURRENT)
        self._tasks: set[asyncio.Task[Result]] = set()

    async def run(self, exchange: "TracedExchange", run: RunExchange) -> Result:
        asyncio = self._asyncio
        if self._limit.locked():
            try:
                async with asyncio.timeout(exchange.send.connect_by - exchange.now()):
                    await self._limit.acquire()
            except TimeoutError:
                return exchange.result_of(_pool_timeout())
        else:
            await self._limit.acquire()  # does not wait
        task = asyncio.create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._done)
        try:
            await asyncio.wait({task}, timeout=exchange.time_left())
            if not task.done():
                self._cancel(task, exchange.stop())
                await asyncio.wait({task})
        except BaseException:
            self._cancel(task, exchange.stop())
            raise
        return exchange.result_of(_response_timeout()) if task.cancelled() else task.result()

    def _done(self, task: "asyncio.Task[Result]") -> None:
        self._tasks.discard(task)
        self._limit.release()

    def _cancel(self, task: "asyncio.Task[Any]", seconds: float) -> None:
        if seconds:
            self._loop.call_later(seconds, task.cancel)
        else:
            task.cancel()

    async def drain(self) -> None:
        while self._tasks:
            await self._asyncio.wait(self._tasks)


class TrioTasks:
    """`Tasks` on trio."""

    def __init__(self) -> None:
        import trio  # noqa: PLC0415 - see the module's comment

        self._trio = trio
        self._limit = trio.Semaphore(MAX_CONCURRENT)
        self._events: set[trio.Event] = set()
        # A KeyboardInterrupt then comes only while it waits. At any other moment it could leave a task
        # that sends, or a place that nobody gives back.
        self._run_protected = trio.lowlevel.enable_ki_protection(TrioTasks._run)

    async def run(self, exchange: "TracedExchange", run: RunExchange) -> Result:
        return await self._run_protected(self, exchange, run)

    async def _run(self, exchange: "TracedExchange", run: RunExchange) -> Result:
        trio = self._trio
        with trio.move_on_at(exchange.send.connect_by) as waiting:
            await self._limit.acquire()
        if waiting.cancelled_caught:
            return exchange.result_of(_pool_timeout())
        scope, done = trio.CancelScope(), trio.Event()
        result: Result | None = None
        interrupts: list[BaseException] = []

        async def main() -> None:
            nonlocal result
            try:
                with scope:
                    result = await run()
            except trio.Cancelled:  # trio's run ends
                raise
            except BaseException as error:  # noqa: BLE001 - the caller raises it
                # A KeyboardInterrupt in a task in which httpcore connects, or what a signal handler
                # raises. Here it would end trio's event loop.
                interrupts.append(error)
            self._events.discard(done)
            self._limit.release()
            done.set()

        protected = trio.lowlevel.enable_ki_protection(main)
        trio.lowlevel.spawn_system_task(protected, context=copy_context())
        self._events.add(done)
        try:
            with trio.move_on_after(exchange.time_left()):
                await done.wait()
            if not done.is_set():
                self._cancel(scope, exchange.stop())
                await done.wait()
        except BaseException:  # after a KeyboardInterrupt, too, no task may send
            self._cancel(scope, exchange.stop())
            raise
        if interrupts:
            raise single_of_group(interrupts[0], trio.Cancelled) from None
        return exchange.result_of(_response_timeout()) if result is None else result

    def _cancel(self, scope: "trio.CancelScope", seconds: float) -> None:
        if seconds:
            scope.deadline = self._trio.current_time() + seconds
        else:
            scope.cancel()  # with a deadline of now, the task could still take a step and send

    async def drain(self) -> None:
        for done in tuple(self._events):
            await done.wait()


def _pool_timeout() -> TimeoutError:
    return TimeoutError(NO_CONNECTION)


def _response_timeout() -> TimeoutError:
    return TimeoutError(NO_WHOLE_RESPONSE)


def new_tasks() -> Tasks:
    """Return the `Tasks` for the running event loop."""
    return TrioTasks() if under_trio() else AsyncioTasks()
