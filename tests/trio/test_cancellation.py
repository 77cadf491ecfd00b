"""Cancellation that is special to trio: at every step, in the pool, by groups, and by signals.

What holds for every client is in tests/transports/test_cancellation.py.
"""

import signal
import sys
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

import pytest
import trio

from creduse_core import Call, CreditsAdded, CreduseError, Outcome, State
from creduse_sandbox import FAULTS
from creduse_trio import AsyncCreduseClient
from tests.common import KEY, LAST_RESPONSE, ONCE, RESPONSE, USER
from tests.trio.wires import Serve, Site, Steps, Wires, wired

SWEPT = (
    "connect-then-hang",
    "none",
    "head-then-hang",
    "request-then-hang",
    "apply-then-close",
    "cut-body-then-hang",
    "wrong-user",
    "surplus",
)


# The first of them is met with on a new connection alone.
CASES = [*((name, False) for name in SWEPT), *((name, True) for name in SWEPT[1:])]
ENDED = [
    *((*case, "cancelled") for case in CASES),
    *((*case, "interrupted") for case in (CASES[0], CASES[1], CASES[3], CASES[8])),
]


@pytest.mark.parametrize(("name", "warm", "how"), ENDED)
@pytest.mark.parametrize("when", ["before", "after"])
def test_ended_at_every_step(
    site: Site,
    name: str,
    when: str,
    how: str,
    warm: bool,  # noqa: FBT001 - pytest's parameter
) -> None:
    """A call that is cancelled or interrupted at any step says the truth and frees its place.

    What its outcome says is true. No byte of it is first sent afterwards, and no task goes on.
    """
    fault = FAULTS.get(name)

    async def run(client: AsyncCreduseClient, call: Call[CreditsAdded], steps: int) -> bool:
        scope, end = trio.CancelScope(), Ending(how)
        try:
            with scope, Steps(steps, when, lambda: end(scope)):
                try:
                    await client.run(call)
                except trio.Cancelled:  # by itself, in no group
                    end.reached = True
                    raise
                except CreduseError:
                    pass
            await trio.lowlevel.checkpoint()  # where an interrupt comes at the latest
        except KeyboardInterrupt:
            end.reached = True
        assert end.reached is (scope.cancelled_caught or (how == "interrupted" and end.called))
        return end.called

    async def once(steps: int) -> bool:
        server = site.server
        server.reset()
        async with site.client(max_connections=1, retry=ONCE) as client:
            if warm:
                await client.add(USER, 1)
            if fault is not None:
                server.inject(fault)
            tasks = trio.lowlevel.current_statistics().tasks_living
            call = client.protocol.add(USER, 77, timeout=0.05)
            called = await run(client, call, steps)
            assert trio.lowlevel.current_statistics().tasks_living == tasks
            log = server.log
            server.reset()  # so that a fault that was not met with is not left over
            for _ in range(3):
                await client.add(USER, 2, timeout=5)
        entries = {entry.number: entry for entry in (*log, *server.log)}
        later = {number for number, it in entries.items() if b'"amount":2,' in (it.body or b"")}
        reached = [it for number, it in entries.items() if number not in later][int(warm) :]
        assert len(later) == 3
        assert len(reached) <= 1
        assert all(it.number < min(later) for it in reached)
        assert call.outcome is not Outcome.NOT_APPLIED or not any(it.applied for it in reached)
        assert call.outcome is not Outcome.APPLIED or any(it.applied for it in reached)
        return called

    steps = 1
    while trio.run(once, steps):
        steps += 1
    assert steps > 2


class Ending:
    """Cancels or interrupts a call, and notes whether the caller got that."""

    def __init__(self, how: str) -> None:
        self.how = how
        self.called = self.reached = False

    def __call__(self, scope: trio.CancelScope) -> None:
        self.called = True
        if self.how == "cancelled":
            scope.cancel()
        else:
            signal.raise_signal(signal.SIGINT)


class Child(BaseException):
    """Neither an error nor a cancellation."""


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, Child])
def test_what_ends_the_program_comes_alone(kind: type[BaseException]) -> None:
    """A KeyboardInterrupt in an exception group of ``connect`` reaches the caller alone."""

    async def fail(error: BaseException) -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise error

    async def connect(_: str, __: int) -> trio.abc.Stream:
        async with trio.open_nursery(), trio.open_nursery() as inner:
            inner.start_soon(trio.sleep_forever)
            inner.start_soon(fail, OSError())
            inner.start_soon(fail, kind("here"))
        raise AssertionError

    async def main() -> None:
        async with AsyncCreduseClient(KEY, base_url="http://localhost", connect=connect) as client:
            call = client.protocol.add(USER, 5)
            with pytest.raises(kind, match="here"), trio.move_on_after(0.01):
                await client.run(call)
            assert call.outcome is Outcome.UNKNOWN
            assert call.state is State.ABANDONED

    trio.run(main)


def test_a_hundred_calls_after_many_cancellations(site: Site) -> None:
    """After calls cancelled at many times, a hundred calls share one connection."""

    async def main() -> None:
        async with site.client(max_connections=1) as client:
            for steps in range(60):
                with trio.CancelScope() as scope, Steps(steps, "after", scope.cancel):
                    await client.add(USER, 77)
            for _ in range(100):
                await client.add(USER, 5)
        log = [entry for entry in site.server.applied if b'"amount":5,' in (entry.body or b"")]
        assert len(log) == 100
        assert len({entry.connection for entry in log}) == 1

    trio.run(main)


async def respond(stream: trio.abc.Stream, wires: Wires) -> None:
    while await wires.request(stream):
        await stream.send_all(RESPONSE)


def test_cancelled_while_others_wait() -> None:
    """Whichever calls are cancelled, and when, the others succeed."""

    async def main() -> None:
        for steps in range(1, 25):
            async with wired(respond, max_connections=2) as (client, wires):
                served: list[int] = []

                async def call(
                    number: int, client: AsyncCreduseClient, served: list[int], steps: int
                ) -> None:
                    with trio.CancelScope() as scope:
                        if number % 2:
                            with Steps(steps, "after", scope.cancel):
                                await client.add(USER, 5)
                        else:
                            await client.add(USER, 5)
                            served.append(number)

                with trio.fail_after(10):
                    async with trio.open_nursery() as nursery:
                        for number in range(10):
                            nursery.start_soon(call, number, client, served, steps)
                assert sorted(served) == [0, 2, 4, 6, 8]
                assert len(wires.closed) >= wires.opened - 2

    trio.run(main)


def test_place_that_comes_with_the_cancellation() -> None:
    """A place that a cancelled call gets goes to the next call."""

    async def main() -> None:
        async with wired(respond, max_connections=1) as (client, wires):
            done: list[str] = []
            scope = trio.CancelScope()

            async def first() -> None:
                await client.add(USER, 5)
                # Now the second has been given the place, and has not run yet.
                scope.cancel()

            async def second() -> None:
                with scope:
                    await client.add(USER, 6)
                    done.append("second")

            async def third() -> None:
                await client.add(USER, 5)
                done.append("third")

            with trio.fail_after(10):
                async with trio.open_nursery() as nursery:
                    for call in (first, second, third):
                        nursery.start_soon(call)
                        await trio.lowlevel.checkpoint()
            assert "third" in done
            sent = sum(b'"amount":6' in received for received in wires.received)
            assert sent == done.count("second") or scope.cancelled_caught

    trio.run(main)


def test_response_is_not_lost_to_a_cancellation() -> None:
    """A whole response counts, though its connection is cancelled while it closes."""

    class Closing(trio.abc.Stream):
        """A stream whose close takes as long as it may."""

        def __init__(self, stream: trio.abc.Stream, scope: trio.CancelScope) -> None:
            self.stream = stream
            self.scope = scope

        async def send_all(self, data: bytes | bytearray | memoryview) -> None:
            await self.stream.send_all(data)

        async def wait_send_all_might_not_block(self) -> None:
            await self.stream.wait_send_all_might_not_block()

        async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
            return await self.stream.receive_some(max_bytes)

        async def aclose(self) -> None:
            self.scope.cancel()
            try:
                await trio.sleep_forever()
            finally:
                await self.stream.aclose()

    async def serve(stream: trio.abc.Stream, wires: Wires) -> None:
        while await wires.request(stream):
            await stream.send_all(LAST_RESPONSE)

    async def main() -> None:
        scope = trio.CancelScope()

        async with wired(serve) as (_, wires):

            async def connect(host: str, port: int) -> trio.abc.Stream:
                return Closing(await wires.connect(host, port), scope)

            async with wired(serve, connect=connect) as (client, _):
                with scope:
                    assert (await client.add(USER, 5)).amount == 5
                assert scope.cancel_called
                assert not scope.cancelled_caught

    trio.run(main)


class Lines:
    """Does something at a certain line of the client's code in the current task."""

    def __init__(self, at: int, do: Callable[[], object], *, below: str = "") -> None:
        self.left = at
        self.do = do
        self.below = below

    def _trace(self, frame: FrameType, event: str, _: object) -> Any:
        if "/creduse_trio/" not in frame.f_code.co_filename:
            return None
        if frame.f_code.co_name == self.below:
            return None
        if event == "line":
            self.left -= 1
            if self.left == 0:
                self.do()
        return self._trace

    def __enter__(self) -> None:
        self.before = sys.gettrace()  # coverage's
        sys.settrace(self._trace)

    def __exit__(self, *_: object) -> None:
        sys.settrace(self.before)


class TimeLimitError(Exception):
    """A task runner's exception."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", [TimeoutError, ValueError, TimeLimitError])
# The signal can interrupt the lines that close a connection.
@pytest.mark.usefixtures("leaks")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_exception_of_a_signal_handler(site: Site, kind: type[Exception]) -> None:
    """An exception of a signal handler ends the call at any line, and reaches the caller."""

    async def once(at: int, *, warm: bool) -> bool:
        error = kind("the time limit")

        def handle(_: int, __: object) -> None:
            raise error

        before = signal.signal(signal.SIGTERM, handle)
        try:
            async with site.client(max_connections=1) as client:
                if warm:
                    await client.add(USER, 5)
                call = client.protocol.get_balance(USER)
                ended: Exception | None = None
                try:
                    with Lines(at, lambda: signal.raise_signal(signal.SIGTERM), below="send"):
                        await client.run(call)
                except Exception as caught:  # noqa: BLE001 - which one is the question
                    ended = caught
        finally:
            signal.signal(signal.SIGTERM, before)
        assert ended is None or ended is error
        assert (call.state is State.SUCCEEDED) is (ended is None)
        assert call.state is not State.FAILED
        return ended is not None

    site.server.direct.add(USER, 5)
    for warm in (False, True):
        at = 1
        while trio.run(partial(once, at, warm=warm)):
            at += 1
        assert at > 30


RUNNER: dict[str, Any] = {"__name__": "task_runner"}
exec("def limit(): raise TimeoutError('the time limit')", RUNNER)  # noqa: S102 - a module of somebody else's


class Struck(trio.abc.Stream):
    """A stream in one of whose methods a task runner's exception is raised."""

    def __init__(self, stream: trio.abc.Stream, where: str, after: int) -> None:
        self.stream = stream
        self.where = where
        self.after = after

    def _strike(self, where: str) -> None:
        if where == self.where:
            self.after -= 1
            if self.after == 0:
                RUNNER["limit"]()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        self._strike("sending")
        await self.stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self.stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        self._strike("reading")
        return await self.stream.receive_some(max_bytes)

    async def aclose(self) -> None:
        try:
            await self.stream.aclose()
        finally:
            self._strike("closing")


async def attempt(client: AsyncCreduseClient) -> str:
    try:
        await client.add(USER, 5)
    except TimeoutError as error:
        return str(error)
    return "added"


@pytest.mark.parametrize(
    ("where", "after"),
    [
        *(("sending", after) for after in (1, 2)),
        # Twice for each call: to look whether something is there, then for the response.
        *(("reading", after) for after in (1, 2, 3, 4)),
        ("closing", 1),
    ],
)
def test_time_limit_of_a_task_runner(where: str, after: int) -> None:
    """An exception that other code raises within a stream reaches the caller; the place is free."""

    async def serve(stream: trio.abc.Stream, wires: Wires) -> None:
        while await wires.request(stream):
            await stream.send_all(LAST_RESPONSE if len(wires.received) == 2 else RESPONSE)

    async def main() -> None:
        async with wired(serve) as (_, wires):

            async def connect(host: str, port: int) -> trio.abc.Stream:
                stream = await wires.connect(host, port)
                return Struck(stream, where, after) if wires.opened == 1 else stream

            async with wired(serve, connect=connect, max_connections=1) as (client, _):
                results = [await attempt(client) for _ in range(4)]
                assert results.count("the time limit") == 1
                assert "the time limit" in results[:2]
                assert len(wires.closed) >= wires.opened - 1

    trio.run(main)


async def respond_twice(stream: trio.abc.Stream, wires: Wires) -> None:
    """Send a response, and another one that nobody requested."""
    while await wires.request(stream):
        await stream.send_all(RESPONSE)
        await trio.lowlevel.checkpoint()
        await stream.send_all(RESPONSE)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["before", "after", "at a line"])
@pytest.mark.parametrize("serve", [respond, respond_twice])
def test_interrupted_anywhere(where: str, serve: Serve) -> None:
    """A KeyboardInterrupt at any line leaves no connection open and loses no place."""

    async def once(at: int) -> bool:
        interrupts: list[int] = []

        def interrupt() -> None:
            interrupts.append(at)
            signal.raise_signal(signal.SIGINT)

        caught = False
        async with wired(serve, max_connections=1) as (client, wires):
            await client.add(USER, 5)
            try:
                with Lines(at, interrupt) if where == "at a line" else Steps(at, where, interrupt):
                    await client.add(USER, 5)
                await trio.lowlevel.checkpoint()  # where it comes at the latest
            except KeyboardInterrupt:
                caught = True
            for _ in range(3):
                await client.add(USER, 5, timeout=5)
            assert len(wires.closed) >= wires.opened - 1
        assert caught == bool(interrupts)
        return caught

    at = 1
    while trio.run(once, at):
        at += 1
    assert at > 3
