"""Exchanges over a supplied client in tasks of their own, on asyncio and on trio.

A cancellation of the caller's does not reach such a task but where that is safe: at other points
httpcore would lose the connection's place in its pool for good (encode/httpcore, issue 1093).

At most `MAX_CONCURRENT` run at a time, and others wait here for their turn: the time that httpcore spends
on each grows with the number of those that wait in its pool.
"""

from collections.abc import Callable, Coroutine
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

from creduse_core import Failure, ForeignError, Response

from ._clocks import under_trio

# asyncio and trio are loaded where they run: asyncio takes a seventh of what it takes to load this
# package with httpx, and the synchronous client has no use for it.
if TYPE_CHECKING:
    import asyncio

    import trio

    from ._supplied import TracedExchange

MAX_CONCURRENT: Final = 100

End: TypeAlias = Response | Failure | ForeignError
Run: TypeAlias = Callable[[], Coroutine[Any, Any, End]]


class Tasks(Protocol):
    """The tasks of one client, on the loop that was running when this was made."""

    async def run(self, exchange: "TracedExchange", run: Run) -> End:
        """Run an exchange in a task, and return what comes of it."""
        ...

    async def drain(self) -> None:
        """Wait until no task is left."""
        ...


class AsyncioTasks:
    """On asyncio; see `Tasks`."""

    def __init__(self) -> None:
        import asyncio  # noqa: PLC0415 - see above

        self._asyncio = asyncio
        self._loop = asyncio.get_running_loop()
        self._places = asyncio.Semaphore(MAX_CONCURRENT)
        self._tasks: set[asyncio.Task[End]] = set()

    async def run(self, exchange: "TracedExchange", run: Run) -> End:
        asyncio = self._asyncio
        if self._places.locked():
            try:
                async with asyncio.timeout(exchange.connect_by - exchange.now()):
                    await self._places.acquire()
            except TimeoutError:
                return exchange.failed(_no_place())
        else:
            await self._places.acquire()  # at once
        task = asyncio.create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._done)
        try:
            await asyncio.wait({task}, timeout=exchange.left())
            if not task.done():
                self._cancel(task, exchange.stop())
                await asyncio.wait({task})
        except BaseException:
            self._cancel(task, exchange.stop())
            raise
        return exchange.failed(_too_slow()) if task.cancelled() else task.result()

    def _done(self, task: "asyncio.Task[End]") -> None:
        self._tasks.discard(task)
        self._places.release()

    def _cancel(self, task: "asyncio.Task[Any]", seconds: float) -> None:
        if seconds:
            self._loop.call_later(seconds, task.cancel)
        else:
            task.cancel()

    async def drain(self) -> None:
        while self._tasks:
            await self._asyncio.wait(self._tasks)


class TrioTasks:
    """On trio; see `Tasks`."""

    def __init__(self) -> None:
        import trio  # noqa: PLC0415 - see above

        self._trio = trio
        self._places = trio.Semaphore(MAX_CONCURRENT)
        self._events: set[trio.Event] = set()

    async def run(self, exchange: "TracedExchange", run: Run) -> End:
        trio = self._trio
        with trio.move_on_at(exchange.connect_by) as waiting:
            await self._places.acquire()
        if waiting.cancelled_caught:
            return exchange.failed(_no_place())
        scope, done = trio.CancelScope(), trio.Event()
        end: End | None = None

        async def main() -> None:
            nonlocal end
            with scope:
                end = await run()
            self._events.discard(done)
            self._places.release()
            done.set()

        self._events.add(done)
        # trio does not keep a KeyboardInterrupt out of a system task, which would end all.
        protected = trio.lowlevel.enable_ki_protection(main)
        trio.lowlevel.spawn_system_task(protected, context=copy_context())
        try:
            with trio.move_on_after(exchange.left()):
                await done.wait()
            if not done.is_set():
                self._cancel(scope, exchange.stop())
                await done.wait()
        except BaseException:  # a KeyboardInterrupt, too, must leave no task that sends
            self._cancel(scope, exchange.stop())
            raise
        return exchange.failed(_too_slow()) if end is None else end

    def _cancel(self, scope: "trio.CancelScope", seconds: float) -> None:
        if seconds:
            scope.deadline = self._trio.current_time() + seconds
        else:
            scope.cancel()  # a deadline of now would leave the task another step, which may send

    async def drain(self) -> None:
        for done in tuple(self._events):
            await done.wait()


def _no_place() -> TimeoutError:
    return TimeoutError("no connection was free in time")


def _too_slow() -> TimeoutError:
    return TimeoutError("no whole response came in time")


def new_tasks() -> Tasks:
    """Return what runs the exchanges on the loop that is running."""
    return TrioTasks() if under_trio() else AsyncioTasks()
