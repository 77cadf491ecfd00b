"""Measures one subject in a process of its own.

It reads commands and writes numbers, each a line of JSON. ``["one", "subtract", 1, 400]`` asks for the
seconds of a call, measured over 400 calls. Between two commands the process sleeps.
"""

import asyncio
import gc
import importlib.metadata
import inspect
import json
import math
import socket
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache, partial
from typing import Any, Final
from urllib.parse import urlsplit

from benchmarks.server import AMOUNT, USER
from benchmarks.subjects import SUBJECTS

Call = Callable[[], Any]
Styled = Mapping[str, Callable[..., Any]]

# One class for each style. The loops of calls are timed, so they do as little as possible.


def _run(coroutine: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine of a synchronous subject, which never waits."""
    try:
        coroutine.send(None)
    except StopIteration:
        return
    raise RuntimeError("a synchronous subject has waited")


def _trio_run(coroutine: Coroutine[Any, Any, None]) -> None:
    import trio

    async def main() -> None:
        await coroutine

    trio.run(main)


def _repeat(call: Call, times: int) -> None:
    for _ in range(times):
        call()


async def _repeat_async(call: Callable[[], Awaitable[Any]], times: int) -> None:
    for _ in range(times):
        await call()


_threads: Final = cache(ThreadPoolExecutor)


def _in_threads(call: Call, at_once: int, times: int) -> None:
    jobs = [_threads(at_once).submit(_repeat, call, times) for _ in range(at_once)]
    for job in jobs:
        job.result()


async def _in_tasks(call: Call, at_once: int, times: int) -> None:
    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(_repeat_async(call, times))


async def _in_nursery(call: Call, at_once: int, times: int) -> None:
    import trio

    async with trio.open_nursery() as nursery:
        for _ in range(at_once):
            nursery.start_soon(_repeat_async, call, times)


RUN: Final[Styled] = {"sync": _run, "asyncio": asyncio.run, "trio": _trio_run}
REPEAT: Final[Styled] = {"sync": _repeat, "asyncio": _repeat_async, "trio": _repeat_async}
TOGETHER: Final[Styled] = {"sync": _in_threads, "asyncio": _in_tasks, "trio": _in_nursery}


# Calls that fail or are cancelled. Their timeout is short, since event loops keep each deadline.

_SOON: Final = 0.5


def _fail(call: Callable[..., Any], fate: str) -> Call:
    seconds = 0.002 if fate == "cancelled" else _SOON  # nobody can cancel it

    def fail() -> None:
        with suppress(Exception):
            call(timeout=seconds)

    return fail


def _fail_in_asyncio(call: Callable[..., Any], fate: str) -> Call:
    async def fail() -> None:
        with suppress(Exception):
            async with asyncio.timeout(0.002 if fate == "cancelled" else None):
                await call(timeout=_SOON)

    return fail


def _fail_in_trio(call: Callable[..., Any], fate: str) -> Call:
    import trio

    async def fail() -> None:
        with suppress(Exception), trio.move_on_after(0.002 if fate == "cancelled" else math.inf):
            await call(timeout=_SOON)

    return fail


async def _trio_sleep(seconds: float) -> None:
    import trio

    await trio.sleep(seconds)


FAIL: Final[Styled] = {"sync": _fail, "asyncio": _fail_in_asyncio, "trio": _fail_in_trio}
SLEEP: Final[Styled] = {"sync": time.sleep, "asyncio": asyncio.sleep, "trio": _trio_sleep}


async def _value(given: Any) -> Any:
    return await given if inspect.isawaitable(given) else given


async def _close(client: Any) -> None:
    close = getattr(client, "aclose", None) or getattr(client, "close", None)
    if close is not None:  # the published client has none
        await _value(close())


def _import(names: str) -> float:
    timed = f"begun = time.perf_counter(); import {names}; print(time.perf_counter() - begun)"
    command = [sys.executable, "-P", "-c", f"import time; {timed}"]
    return float(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def _traced() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


def _blocks() -> int:
    gc.collect()
    return sys.getallocatedblocks()


def _versions() -> str:
    names = ("aiohttp", "anyio", "creduse", "h11", "httpcore", "httpx", "pydantic", "trio")
    there = {it.name: it.version for it in importlib.metadata.distributions()}
    return ", ".join(f"{name} {there[name]}" for name in names if name in there)


class Worker:
    """Its public methods are the commands. Each returns seconds, bytes or blocks for one of ``times``."""

    def __init__(self, name: str, server: str) -> None:
        self._name = name
        self._held = f"held-{name}"
        self._server = server
        self._subject = SUBJECTS[name]
        self._repeat = REPEAT[self._subject.style]
        self._sleep = SLEEP[self._subject.style]
        self._together = TOGETHER[self._subject.style]
        self._clients: dict[str, Any] = {}

    def _make(self, prefix: str) -> Any:
        return self._subject.make(f"{self._server}/{prefix}")

    def _call(self, method: str, prefix: str) -> Call:
        """Return a call of the client that this process keeps for the prefix."""
        client = self._clients.get(prefix)
        if client is None:
            client = self._clients[prefix] = self._make(prefix)
        if method == "subtract":
            return partial(client.subtract, USER, AMOUNT)
        return partial(client.get_balance, USER)

    async def one(self, method: str, cycles: int, times: int) -> float:
        """Call one after the other, after two calls to warm up and open the connection."""
        call = self._call(method, str(cycles))
        await _value(self._repeat(call, 2))
        begun = time.perf_counter()
        await _value(self._repeat(call, times))
        return (time.perf_counter() - begun) / times

    async def promise(self, promise: str, times: int) -> float:
        """Measure the time that a call spends in the functions that keep a promise."""
        from benchmarks.promises import Stopwatch, timing

        call, nothing = self._call("subtract", "1"), Stopwatch()
        await _value(self._repeat(call, 2))
        with timing(self._name, promise) as stopwatch:
            await _value(self._repeat(call, times))
        # To look at the clock takes time, too.
        _repeat(nothing.timed(lambda: None), stopwatch.count)
        return (stopwatch.seconds - nothing.seconds) / times

    async def together(self, at_once: int, times: int) -> float:
        """Call so many at a time, after at most a hundred calls to open the connections."""
        call, each = self._call("subtract", "1"), max(1, times // at_once)
        await _value(self._together(call, min(at_once, 100), 1))
        begun = time.perf_counter()
        await _value(self._together(call, at_once, each))
        return (time.perf_counter() - begun) / (at_once * each)

    async def make(self, times: int) -> float:
        """Make a client."""
        return (await self._make_and_call(times))[0]

    async def first(self, times: int) -> float:
        """Call a new client for the first time."""
        return (await self._make_and_call(times))[1]

    async def _make_and_call(self, times: int) -> tuple[float, float]:
        making = calling = 0.0
        for _ in range(times):
            begun = time.perf_counter()
            client = self._make("1")
            made = time.perf_counter()
            await _value(client.subtract(USER, AMOUNT))
            calling += time.perf_counter() - made
            making += made - begun
            await _close(client)
            del client
            gc.collect()  # or the next call would pay for it
        return making / times, calling / times

    async def imports(self, times: int) -> float:
        """Import the modules of this subject, each time in a new process."""
        return sum(_import(self._subject.imports) for _ in range(times)) / times

    async def client_memory(self, times: int) -> float:
        """Measure the memory of a client that has called once and keeps its connection."""
        await self._make_and_call(2)  # the first client loads modules for all
        tracemalloc.start()
        before, clients = _traced(), [self._make("1") for _ in range(times)]
        for client in clients:
            await _value(client.subtract(USER, AMOUNT))
        size = _traced() - before
        tracemalloc.stop()
        for client in clients:
            await _close(client)
        return size / times

    async def call_memory(self, times: int) -> float:
        """Measure the memory of a call in flight, without that of its connection."""
        tracemalloc.start()
        await self._in_flight(times)
        before = _traced()
        size = await self._in_flight(times) - before
        tracemalloc.stop()
        return size / times

    async def _in_flight(self, times: int) -> int:
        """Return the memory that is traced while so many calls are in flight."""
        watching = _threads(1).submit(self._watch, times)
        await _value(self._together(self._call("subtract", self._held), times, 1))
        return watching.result()

    def _watch(self, times: int) -> int:
        parts = urlsplit(self._server)
        with socket.create_connection((parts.hostname, parts.port)) as connection:

            def held(what: str) -> int:
                connection.sendall(f"GET /{self._held}/{what} HTTP/1.1\r\n\r\n".encode())
                return int(connection.recv(1024).rpartition(b"\r\n")[2])

            while held("count") < times:
                time.sleep(0.01)
            size = _traced()
            held("release")
        return size

    async def growth(self, fate: str, times: int) -> float:
        """Return how many blocks of memory the last nine tenths of the calls have added.

        The size of the process would depend on when the garbage collector runs.
        """
        call, warm = self._call("subtract", fate), times // 10
        if fate != "1":
            call = FAIL[self._subject.style](call, fate)
        await _value(self._repeat(call, warm))
        await _value(self._sleep(2 * _SOON))
        before = _blocks()
        await _value(self._repeat(call, times - warm))
        await _value(self._sleep(2 * _SOON))
        return (_blocks() - before) / (times - warm)

    async def serve(self) -> None:
        """Print the libraries' versions, and run commands until the input ends."""
        print(json.dumps(_versions()), flush=True)
        for line in sys.stdin:
            command, *arguments = json.loads(line)
            print(json.dumps(await getattr(self, command)(*arguments)), flush=True)
        for client in self._clients.values():
            await _close(client)


def main() -> None:
    """Serve the commands for a subject, against the server at the URL."""
    name, server = sys.argv[1:]
    RUN[SUBJECTS[name].style](Worker(name, server).serve())
