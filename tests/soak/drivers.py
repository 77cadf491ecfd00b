"""Three ways to run the calls: in threads, in tasks of asyncio and in tasks of trio."""

import asyncio
import math
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import Any, Final, NamedTuple

import trio
import uvloop

from creduse_core import Call, CreduseError
from tests.soak import judge
from tests.soak.plans import Cancel
from tests.soak.run import Block, CallRecord, Run

Job = Callable[[], Awaitable[None]]

SETTLING: Final = 5.0
"""Seconds in which a closed client must release its sockets and tasks."""
IDLE_FAULTS: Final = 0.1
"""Seconds in which the server ends its faults of idle connections."""


class EventLoop(ABC):
    """An event loop. It hides the differences between asyncio and trio."""

    cancelled: type[BaseException]

    @abstractmethod
    def run(self, main: Callable[[], Any], run: Run) -> None:
        """Run the coroutine function."""

    @abstractmethod
    async def run_all(self, jobs: Iterable[Job]) -> None:
        """Run all jobs at once."""

    @abstractmethod
    async def run_beside(self, tick: Callable[[], float], job: Job) -> None:
        """Run the job. Beside it, call ``tick`` again and again, after the seconds that it returns."""

    @abstractmethod
    async def run_and_cancel(self, job: Job, cancel: Cancel, record: CallRecord) -> None:
        """Run the job, and cancel it."""

    @abstractmethod
    async def sleep(self, seconds: float) -> None:
        """Wait."""

    @abstractmethod
    def tasks(self) -> int:
        """Return the number of tasks."""


class Asyncio(EventLoop):
    """asyncio, on its own event loop or uvloop."""

    cancelled = asyncio.CancelledError

    def __init__(self, new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
        self._new_loop = new_loop

    def run(self, main: Callable[[], Any], run: Run) -> None:
        def complain(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
            run.count_complaint(f"asyncio: {context['message']}: {context.get('exception')!r}")

        with asyncio.Runner(loop_factory=self._new_loop) as runner:
            runner.get_loop().set_exception_handler(complain)
            runner.run(main())

    async def run_all(self, jobs: Iterable[Job]) -> None:
        async with asyncio.TaskGroup() as group:
            for job in jobs:
                group.create_task(_coroutine(job))

    async def run_beside(self, tick: Callable[[], float], job: Job) -> None:
        async def ticking() -> None:
            while True:  # noqa: ASYNC110 - it waits only for the time
                await asyncio.sleep(tick())

        task = asyncio.create_task(ticking())
        await job()
        task.cancel()

    async def run_and_cancel(self, job: Job, cancel: Cancel, record: CallRecord) -> None:
        if cancel.way == "timeout":
            record.cancelled = time.monotonic() + cancel.after
            with suppress(TimeoutError):
                async with asyncio.timeout(cancel.after):
                    await job()
            return
        task, loop = asyncio.create_task(_coroutine(job)), asyncio.get_running_loop()

        def step(left: float) -> None:
            if left > 0:
                loop.call_soon(step, left - 1)
            elif not task.done():
                record.cancelled = time.monotonic()
                task.cancel()

        if cancel.way == "steps":
            step(cancel.after)
        else:
            loop.call_later(cancel.after, step, 0)
        await asyncio.wait([task])

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def tasks(self) -> int:
        return len(asyncio.all_tasks())


async def _coroutine(job: Job) -> None:
    await job()


class Trio(EventLoop):
    """trio."""

    cancelled = trio.Cancelled

    def run(self, main: Callable[[], Any], run: Run) -> None:  # noqa: ARG002 - only asyncio uses it
        trio.run(main)

    async def run_all(self, jobs: Iterable[Job]) -> None:
        async with trio.open_nursery() as nursery:
            for job in jobs:
                nursery.start_soon(job)

    async def run_beside(self, tick: Callable[[], float], job: Job) -> None:
        async def ticking() -> None:
            while True:  # noqa: ASYNC110 - it waits only for the time
                await trio.sleep(tick())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ticking)
            await job()
            nursery.cancel_scope.cancel()

    async def run_and_cancel(self, job: Job, cancel: Cancel, record: CallRecord) -> None:
        if cancel.way == "timeout":
            record.cancelled = time.monotonic() + cancel.after
            with trio.move_on_after(cancel.after):
                await job()
            return
        scope = trio.CancelScope()

        async def later() -> None:
            if cancel.way == "seconds":
                await trio.sleep(cancel.after)
            else:
                for _ in range(int(cancel.after)):
                    await trio.lowlevel.checkpoint()
            record.cancelled = time.monotonic()
            scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(later)
            with scope:
                await job()
            nursery.cancel_scope.cancel()

    async def sleep(self, seconds: float) -> None:
        await trio.sleep(seconds)

    def tasks(self) -> int:
        return trio.lowlevel.current_statistics().tasks_living


def _foreign(record: CallRecord, error: BaseException) -> None:
    if isinstance(error, KeyboardInterrupt | SystemExit):
        raise error
    record.foreign = error


class AsyncDriver:
    """Runs the calls of an asynchronous client."""

    def __init__(self, loop: EventLoop) -> None:
        self._loop = loop

    def __call__(self, run: Run) -> None:
        """Run all calls."""
        self._loop.run(lambda: self._loop.run_beside(run.lag.tick, lambda: self._all(run)), run)

    async def _all(self, run: Run) -> None:
        loop = self._loop
        client = run.open()
        await self._block(run, client, run.first())
        await client.aclose()
        for _ in range(run.generations):
            before = run.resources(loop.tasks())
            client = run.open()
            for block in run.blocks():
                await self._block(run, client, block)
            for block in run.full_pools():
                await loop.sleep(IDLE_FAULTS)
                await self._block(run, client, block)
            block, seconds = run.last()

            async def close(client: Any = client, seconds: float = seconds) -> None:
                await loop.sleep(seconds)
                await client.aclose()
                run.closed()

            await loop.run_all([*self._workers(run, client, block), close])
            del client, close
            after = await self._settled(run, before)
            run.wrong += judge.leftovers(before, after)
            run.samples.append(after)

    def _workers(self, run: Run, client: Any, block: Block) -> list[Job]:
        async def work() -> None:
            for number in block.numbers:
                await self._one(run, client, number)

        return [work] * block.at_once

    async def _block(self, run: Run, client: Any, block: Block) -> None:
        await self._loop.run_all(self._workers(run, client, block))

    async def _settled(self, run: Run, before: judge.Resources) -> judge.Resources:
        until = time.monotonic() + SETTLING
        while True:
            await self._loop.sleep(0.02)
            after = run.resources(self._loop.tasks())
            if not [*judge.leftovers(before, after)] or time.monotonic() > until:
                return after

    async def _one(self, run: Run, client: Any, number: int) -> None:
        record, call = run.begin(number, client.protocol)
        if record.plan.cancel is None:
            await self._call(client, call, record)
        else:
            await self._loop.run_and_cancel(
                lambda: self._call(client, call, record), record.plan.cancel, record
            )
        run.end(number, record, call)

    async def _call(self, client: Any, call: Call[Any], record: CallRecord) -> None:
        try:
            record.result = await client.run(call)
        except CreduseError as error:
            record.error = error
        except self._loop.cancelled:
            record.silent_from = min(record.silent_from, time.monotonic())
            if record.cancelled == math.inf:
                record.foreign = RuntimeError("cancelled, but the run did not cancel it")
            raise
        except BaseException as error:  # noqa: BLE001 - the run must find these
            record.silent_from = min(record.silent_from, time.monotonic())
            _foreign(record, error)


def run_in_threads(run: Run) -> None:
    """Run all calls of a synchronous client."""

    def tick() -> None:
        while True:
            time.sleep(run.lag.tick())

    threading.Thread(target=tick, daemon=True).start()
    client = run.open()
    _join(_threads(run, client, run.first()))
    client.close()
    for _ in range(run.generations):
        before = run.resources(0)
        client = run.open()
        for block in run.blocks():
            _join(_threads(run, client, block))
        for block in run.full_pools():
            time.sleep(IDLE_FAULTS)
            _join(_threads(run, client, block))
        block, seconds = run.last()
        threads = _threads(run, client, block)
        time.sleep(seconds)
        client.close()
        run.closed()
        _join(threads)
        del client
        after = _settled(run, before)
        run.wrong += judge.leftovers(before, after)
        run.samples.append(after)


def _threads(run: Run, client: Any, block: Block) -> list[threading.Thread]:
    lock = threading.Lock()

    def work() -> None:
        while True:
            with lock:
                number = next(block.numbers, None)
            if number is None:
                return
            record, call = run.begin(number, client.protocol)
            try:
                record.result = client.run(call)
            except CreduseError as error:
                record.error = error
            except BaseException as error:  # noqa: BLE001 - the run must find these
                _foreign(record, error)
            with lock:
                run.end(number, record, call)

    threads = [threading.Thread(target=work) for _ in range(block.at_once)]
    for thread in threads:
        thread.start()
    return threads


def _join(threads: Iterable[threading.Thread]) -> None:
    for thread in threads:
        thread.join()


def _settled(run: Run, before: judge.Resources) -> judge.Resources:
    until = time.monotonic() + SETTLING
    while True:
        time.sleep(0.02)
        after = run.resources(0)
        if not [*judge.leftovers(before, after)] or time.monotonic() > until:
            return after


class Client(NamedTuple):
    """A client under test, and how to run its calls."""

    made_by: str
    drive: Callable[[Run], None]
    complaints: str = r"(?!)"
    """A pattern of the known issues of its event loop."""


_UVLOOPS: Final = (
    # See docs/limits.md.
    r"warning: unclosed <socket"
    # uvloop writes the rest of TLS after data_received has aborted the transport.
    r"|asyncio: Fatal error on SSL protocol: RuntimeError\('unable to perform operation on"
    # Seen on a busy machine after an abort. The cause is not known.
    r"|asyncio: Future exception was never retrieved: (?:ConnectionReset|SSL)Error\("
)
_ASYNCIO: Final = AsyncDriver(Asyncio(asyncio.new_event_loop))
_UVLOOP: Final = AsyncDriver(Asyncio(uvloop.new_event_loop))
_TRIO: Final = AsyncDriver(Trio())
CLIENTS: Final = {
    "httpx": Client("creduse_httpx:CreduseClient", run_in_threads),
    "httpx-asyncio": Client("creduse_httpx:AsyncCreduseClient", _ASYNCIO),
    "httpx-uvloop": Client("creduse_httpx:AsyncCreduseClient", _UVLOOP, _UVLOOPS),
    "httpx-trio": Client("creduse_httpx:AsyncCreduseClient", _TRIO),
    "aiohttp": Client("creduse_aiohttp:AsyncCreduseClient", _ASYNCIO),
    "aiohttp-uvloop": Client("creduse_aiohttp:AsyncCreduseClient", _UVLOOP, _UVLOOPS),
    "trio": Client("creduse_trio:AsyncCreduseClient", _TRIO),
}
