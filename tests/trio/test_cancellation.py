"""A cancelled call: nothing is first sent afterwards, nothing is lost, nothing is left behind."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import FrameType
from typing import Any
from uuid import UUID

import pytest
import trio

from creduse_core import CreduseError, Outcome, RetryPolicy
from creduse_sandbox import FAULTS

USER = UUID("12345678-1234-5678-1234-567812345678")
ONCE = RetryPolicy(max_attempts=1)
GOOD = b'{"end_user_id":"12345678-1234-5678-1234-567812345678","amount":5,"validity_days":31}'
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(GOOD), GOOD)


class Steps(trio.abc.Instrument):
    """Does something before, or after, a certain step of the present task."""

    def __init__(self, at: int, when: str, do: Callable[[], object]) -> None:
        self.task = trio.lowlevel.current_task()
        self.left = at
        self.before = when == "before"
        self.do = do

    def _step(self, task: trio.lowlevel.Task, *, before: bool) -> None:
        if task is self.task and before is self.before:
            self.left -= 1
            if self.left == 0:
                self.do()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """As the task is about to run on."""
        self._step(task, before=True)

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        """As the task waits for something."""
        self._step(task, before=False)

    def __enter__(self) -> None:
        trio.lowlevel.add_instrument(self)

    def __exit__(self, *_: object) -> None:
        trio.lowlevel.remove_instrument(self)


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


@pytest.mark.parametrize(("name", "warm"), CASES)
@pytest.mark.parametrize("when", ["before", "after"])
def test_cancelled_at_every_step(site: Any, name: str, when: str, warm: bool) -> None:  # noqa: FBT001 - pytest's parameter
    """Wherever a call is cancelled, what it says is true, and the only place is free again.

    No byte of it is first sent afterwards, and no task goes on.
    """
    fault = FAULTS.get(name)

    async def once(steps: int) -> bool:
        server = site.server
        server.reset()
        async with site.client(max_connections=1, retry=ONCE) as client:
            if warm:
                await client.add(USER, 1)
            if fault is not None:
                server.order(fault)
            tasks = trio.lowlevel.current_statistics().tasks_living
            call = client.protocol.add(USER, 77, timeout=0.05)
            scope = trio.CancelScope()
            with scope, Steps(steps, when, scope.cancel), suppress(CreduseError):
                await client.run(call)
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
        if scope.cancelled_caught:
            assert call.outcome is Outcome.UNKNOWN
        assert call.outcome is not Outcome.NOT_APPLIED or not any(it.applied for it in reached)
        assert call.outcome is not Outcome.APPLIED or any(it.applied for it in reached)
        return scope.cancel_called

    async def main() -> None:
        steps = 1
        while await once(steps):
            steps += 1
        assert steps > 2

    trio.run(main)


def test_a_hundred_calls_after_many_cancellations(site: Any) -> None:
    """After calls cancelled at all times, each of a hundred goes well over one connection."""

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


async def answer(stream: trio.abc.Stream, wires: Any) -> None:
    while await wires.request(stream):
        await stream.send_all(ANSWER)


def test_cancelled_while_others_wait(wire: Any) -> None:
    """Whichever of many calls are cancelled, and when, the others are served."""

    async def main() -> None:
        for steps in range(1, 25):
            async with wire(answer, max_connections=2) as (client, wires):
                served: list[int] = []

                async def call(number: int, client: Any, served: list[int], steps: int) -> None:
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


def test_place_that_comes_with_the_cancellation(wire: Any) -> None:
    """A place that comes to a call in the moment of its cancellation goes on to the next."""

    async def main() -> None:
        async with wire(answer, max_connections=1) as (client, wires):
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


def test_answer_is_not_lost_to_a_cancellation(wire: Any) -> None:
    """A whole answer counts, though time runs out while its connection is being closed."""

    class Closing(trio.abc.Stream):
        """Takes its time to close, as far as it is allowed to."""

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

    async def serve(stream: trio.abc.Stream, wires: Any) -> None:
        while await wires.request(stream):
            await stream.send_all(ANSWER.replace(b"OK\r\n", b"OK\r\nConnection: close\r\n"))

    async def main() -> None:
        scope = trio.CancelScope()

        async with wire(serve) as (_, wires):

            async def connect(host: str, port: int) -> trio.abc.Stream:
                return Closing(await wires.connect(host, port), scope)

            async with wire(serve, connect=connect) as (client, _):
                with scope:
                    assert (await client.add(USER, 5)).amount == 5
                assert scope.cancel_called
                assert not scope.cancelled_caught

    trio.run(main)


class Lines:
    """Does something at a certain line of the client's code that the present task comes to."""

    def __init__(self, at: int, do: Callable[[], object]) -> None:
        self.left = at
        self.do = do

    def _trace(self, frame: FrameType, event: str, _: object) -> Any:
        if "/creduse_trio/" not in frame.f_code.co_filename:
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


async def answer_twice(stream: trio.abc.Stream, wires: Any) -> None:
    """Answer, and once more where nobody asked."""
    while await wires.request(stream):
        await stream.send_all(ANSWER)
        await trio.lowlevel.checkpoint()
        await stream.send_all(ANSWER)


WHERE: dict[str, Callable[[int, Callable[[], object]], Any]] = {
    "before a step": lambda at, do: Steps(at, "before", do),
    "after a step": lambda at, do: Steps(at, "after", do),
    "at a line": Lines,
}


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Have SIGINT heard: a shell has it ignored by what it runs in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("where", WHERE.values(), ids=WHERE)
@pytest.mark.parametrize("serve", [answer, answer_twice])
def test_interrupted_anywhere(wire: Any, where: Any, serve: Any) -> None:
    """Wherever a KeyboardInterrupt comes, no connection is left open and no place is lost."""

    async def once(at: int) -> bool:
        interrupts: list[int] = []

        def interrupt() -> None:
            interrupts.append(at)
            signal.raise_signal(signal.SIGINT)

        caught = False
        async with wire(serve, max_connections=1) as (client, wires):
            await client.add(USER, 5)
            try:
                with where(at, interrupt):
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
