"""Three ways to run the calls: in threads, in asyncio's tasks and in trio's."""

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
from tests.soak.run import Block, Note, Run

Job = Callable[[], Awaitable[None]]

SETTLING: Final = 5.0
"""Seconds that a closed client may take until its sockets and tasks are gone."""
CALM: Final = 0.1
"""Seconds until what the server still does to idle connections is over."""


class Style(ABC):
    """The differences between asyncio and trio."""

    cancelled: type[BaseException]

    @abstractmethod
    def run(self, main: Callable[[], Any], run: Run) -> None:
        """Run the coroutine function."""

    @abstractmethod
    async def together(self, jobs: Iterable[Job]) -> None:
        """Run all jobs at once."""

    @abstractmethod
    async def beside(self, tick: Callable[[], float], job: Job) -> None:
        """Run the job, and call ``tick`` beside it, each time after the seconds that it returns."""

    @abstractmethod
    async def cancelling(self, job: Job, cancel: Cancel, note: Note) -> None:
        """Run the job, and cancel it."""

    @abstractmethod
    async def sleep(self, seconds: float) -> None:
        """Wait."""

    @abstractmethod
    def tasks(self) -> int:
        """Return the number of tasks."""


class Asyncio(Style):
    """asyncio, on a loop of its own or uvloop's."""

    cancelled = asyncio.CancelledError

    def __init__(self, new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
        self._new_loop = new_loop

    def run(self, main: Callable[[], Any], run: Run) -> None:
        def complain(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
            run.hear(f"asyncio: {context['message']}: {context.get('exception')!r}")

        with asyncio.Runner(loop_factory=self._new_loop) as runner:
            runner.get_loop().set_exception_handler(complain)
            runner.run(main())

    async def together(self, jobs: Iterable[Job]) -> None:
        async with asyncio.TaskGroup() as group:
            for job in jobs:
                group.create_task(_coroutine(job))

    async def beside(self, tick: Callable[[], float], job: Job) -> None:
        async def ticking() -> None:
            while True:  # noqa: ASYNC110 - it waits for nothing but the time
                await asyncio.sleep(tick())

        task = asyncio.create_task(ticking())
        await job()
        task.cancel()

    async def cancelling(self, job: Job, cancel: Cancel, note: Note) -> None:
        if cancel.way == "timeout":
            note.cancelled = time.monotonic() + cancel.after
            with suppress(TimeoutError):
                async with asyncio.timeout(cancel.after):
                    await job()
            return
        task, loop = asyncio.create_task(_coroutine(job)), asyncio.get_running_loop()

        def step(left: float) -> None:
            if left > 0:
                loop.call_soon(step, left - 1)
            elif not task.done():
                note.cancelled = time.monotonic()
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


class Trio(Style):
    """trio."""

    cancelled = trio.Cancelled

    def run(self, main: Callable[[], Any], run: Run) -> None:  # noqa: ARG002 - as in asyncio's
        trio.run(main)

    async def together(self, jobs: Iterable[Job]) -> None:
        async with trio.open_nursery() as nursery:
            for job in jobs:
                nursery.start_soon(job)

    async def beside(self, tick: Callable[[], float], job: Job) -> None:
        async def ticking() -> None:
            while True:  # noqa: ASYNC110 - it waits for nothing but the time
                await trio.sleep(tick())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ticking)
            await job()
            nursery.cancel_scope.cancel()

    async def cancelling(self, job: Job, cancel: Cancel, note: Note) -> None:
        if cancel.way == "timeout":
            note.cancelled = time.monotonic() + cancel.after
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
            note.cancelled = time.monotonic()
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


def _foreign(note: Note, error: BaseException) -> None:
    if isinstance(error, KeyboardInterrupt | SystemExit):
        raise error
    note.foreign = error


class AsyncDriver:
    """Runs the calls of an asynchronous client."""

    def __init__(self, style: Style) -> None:
        self._style = style

    def __call__(self, run: Run) -> None:
        """Run all calls."""
        self._style.run(lambda: self._style.beside(run.lag.tick, lambda: self._all(run)), run)

    async def _all(self, run: Run) -> None:
        style = self._style
        client = run.open()
        await self._block(run, client, run.first())
        await client.aclose()
        for _ in range(run.generations):
            before = run.resources(style.tasks())
            client = run.open()
            for block in run.blocks():
                await self._block(run, client, block)
            for block in run.musters():
                await style.sleep(CALM)
                await self._block(run, client, block)
            block, seconds = run.last()

            async def close(client: Any = client, seconds: float = seconds) -> None:
                await style.sleep(seconds)
                await client.aclose()
                run.closed()

            await style.together([*self._workers(run, client, block), close])
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
        await self._style.together(self._workers(run, client, block))

    async def _settled(self, run: Run, before: judge.Resources) -> judge.Resources:
        until = time.monotonic() + SETTLING
        while True:
            await self._style.sleep(0.02)
            after = run.resources(self._style.tasks())
            if not [*judge.leftovers(before, after)] or time.monotonic() > until:
                return after

    async def _one(self, run: Run, client: Any, number: int) -> None:
        note, call = run.begin(number, client.protocol)
        if note.plan.cancel is None:
            await self._call(client, call, note)
        else:
            await self._style.cancelling(
                lambda: self._call(client, call, note), note.plan.cancel, note
            )
        run.end(number, note, call)

    async def _call(self, client: Any, call: Call[Any], note: Note) -> None:
        try:
            note.result = await client.run(call)
        except CreduseError as error:
            note.error = error
        except self._style.cancelled:
            note.silent_from = min(note.silent_from, time.monotonic())
            if note.cancelled == math.inf:
                note.foreign = RuntimeError("cancelled, though nobody had asked for that")
            raise
        except BaseException as error:  # noqa: BLE001 - to find such is what this is for
            note.silent_from = min(note.silent_from, time.monotonic())
            _foreign(note, error)


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
        for block in run.musters():
            time.sleep(CALM)
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
            note, call = run.begin(number, client.protocol)
            try:
                note.result = client.run(call)
            except CreduseError as error:
                note.error = error
            except BaseException as error:  # noqa: BLE001 - to find such is what this is for
                _foreign(note, error)
            with lock:
                run.end(number, note, call)

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
    """A client under test, and the way to run it."""

    made_by: str
    drive: Callable[[Run], None]
    complaints: str = r"(?!)"
    """What its event loop is known to complain of, as a pattern."""


_UVLOOPS: Final = (
    # See docs/limits.md.
    r"warning: unclosed <socket"
    # It writes what TLS has still to say, though the transport was aborted in data_received.
    r"|asyncio: Fatal error on SSL protocol: RuntimeError\('unable to perform operation on"
    # Seen on a busy machine, after an abort. Where it comes from is not known.
    r"|asyncio: Future exception was never retrieved: ConnectionResetError\(\)"
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
