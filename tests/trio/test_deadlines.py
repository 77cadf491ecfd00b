"""Timeouts, deadlines and trio's clocks."""

import socket
import time
from collections.abc import Callable, Coroutine
from contextlib import nullcontext
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from creduse_core import CreduseTimeoutError, Outcome, RetryPolicy, ServerError
from creduse_trio import AsyncCreduseClient
from tests.common import KEY, ONCE, RESPONSE, USER
from tests.trio.wires import Serve, Wires, wired

BUSY = b"HTTP/1.1 503 Busy\r\nRetry-After: 600\r\nContent-Length: 2\r\n\r\n{}"


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a test on a clock that jumps when all tasks wait."""
    begun = time.monotonic()
    trio.run(main, clock=MockClock(autojump_threshold=0))
    assert time.monotonic() - begun < 60  # though hours may have passed on that clock


async def respond(stream: trio.abc.Stream, wires: Wires) -> None:
    while await wires.request(stream):
        await stream.send_all(RESPONSE)


async def hang(stream: trio.abc.Stream, wires: Wires) -> None:
    await wires.request(stream)
    await trio.sleep_forever()


def test_an_hour_of_retries() -> None:
    """An hour of waits takes no time on a clock that jumps, and each wait is as long as asked."""

    async def serve(stream: trio.abc.Stream, wires: Wires) -> None:
        while await wires.request(stream):
            await stream.send_all(BUSY)

    async def main() -> None:
        policy = RetryPolicy(max_attempts=7)
        async with wired(serve, retry=policy, timeout=7200) as (client, _):
            begun = trio.current_time()
            with pytest.raises(ServerError) as caught:
                await client.get_balance(USER)
            assert len(caught.value.attempts) == 7
            assert trio.current_time() - begun == pytest.approx(3600)

    run(main)


def test_clock_driven_by_hand() -> None:
    """On a clock that stands still, calls succeed on one connection."""

    async def main() -> None:
        async with wired(respond) as (client, wires):
            for _ in range(3):
                await client.add(USER, 5)
            assert wires.opened == 1

    trio.run(main, clock=MockClock())


async def silent(_: trio.abc.Stream, __: Wires) -> None:
    await trio.sleep_forever()


async def never(_: str, __: int) -> trio.abc.Stream:
    await trio.sleep_forever()
    raise AssertionError


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"connect": never}, "no connection was made"),
        ({"base_url": "https://localhost"}, "the TLS handshake did not end"),
        ({"base_url": "https://localhost", "proxy": "http://proxy"}, "the proxy did not respond"),
        ({"proxy": "https://proxy"}, "the proxy did not respond"),
    ],
    ids=["connecting", "handshake", "tunnel", "handshake with a proxy"],
)
def test_time_to_connect(settings: dict[str, Any], said: str) -> None:
    """Connecting is bounded by the attempt's timeout: NOT_APPLIED. The error says what was awaited."""

    async def main() -> None:
        async with wired(silent, retry=ONCE, **settings) as (client, _):
            begun = trio.current_time()
            with pytest.raises(CreduseTimeoutError, match=f"{said} in time") as caught:
                await client.add(USER, 5)
            assert caught.value.outcome is Outcome.NOT_APPLIED
            assert trio.current_time() - begun == pytest.approx(10)

    run(main)


def test_time_to_wait_for_a_connection() -> None:
    """A call that gets no connection of the pool says so."""

    async def main() -> None:
        async with (
            wired(silent, retry=ONCE, max_connections=1) as (client, _),
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(client.add, USER, 5)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(CreduseTimeoutError, match="no connection was available in time"):
                await client.add(USER, 5)
            nursery.cancel_scope.cancel()

    run(main)


class Slow(trio.abc.Stream):
    """A stream that receives a few bytes at a time, and does something after each."""

    def __init__(self, stream: trio.abc.Stream, do: Callable[[], object]) -> None:
        self.stream = stream
        self.do = do

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self.stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self.stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        piece = await self.stream.receive_some(min(max_bytes or 50, 50))
        self.do()
        return piece

    async def aclose(self) -> None:
        await self.stream.aclose()


class Grouping(Slow):
    """A stream with a nursery of its own, so that a read may raise a group."""

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._fail_at_the_end)
            piece = await super().receive_some(max_bytes)
            nursery.cancel_scope.cancel()
        return piece

    async def _fail_at_the_end(self) -> None:
        try:
            await trio.sleep_forever()
        finally:
            self.do()


def fail_in_the_end() -> None:
    if trio.current_time() >= 5:
        raise OSError("it was not to be")


@pytest.mark.parametrize("when", ["connecting", "reading"])
@pytest.mark.parametrize("whose", ["call", "caller"])
def test_cancellation_grouped_with_an_error(when: str, whose: str) -> None:
    """A cancellation in a group with an error works like a cancellation alone."""

    async def main() -> None:
        async with wired(hang) as (_, wires):

            async def connect(host: str, port: int) -> trio.abc.Stream:
                stream = Grouping(await wires.connect(host, port), fail_in_the_end)
                if when == "connecting":
                    try:
                        await stream.receive_some()
                    finally:
                        await trio.aclose_forcefully(stream)
                return stream

            async with wired(hang, connect=connect, retry=ONCE) as (client, _):
                call = client.protocol.add(USER, 5)
                with trio.move_on_after(5 if whose == "caller" else 60) as scope:
                    with pytest.raises(CreduseTimeoutError) if whose == "call" else nullcontext():
                        await client.run(call)
                    await trio.lowlevel.checkpoint()
                assert scope.cancelled_caught is (whose == "caller")
                assert call.outcome is (
                    Outcome.UNKNOWN
                    if when == "reading" or whose == "caller"
                    else Outcome.NOT_APPLIED
                )

    run(main)


def test_time_for_a_place() -> None:
    """Waiting for a place in the pool counts as connecting, and the order is kept."""
    done: list[int] = []

    async def slow(stream: trio.abc.Stream, wires: Wires) -> None:
        while await wires.request(stream):
            await trio.sleep(4)
            await stream.send_all(RESPONSE)

    async def main() -> None:
        async with wired(slow, retry=ONCE, max_connections=1) as (client, wires):

            async def call(number: int) -> None:
                await client.add(USER, 5)
                done.append(number)

            async def call_in_vain() -> None:
                begun = trio.current_time()
                with pytest.raises(CreduseTimeoutError) as caught:
                    await client.add(USER, 6)
                assert caught.value.outcome is Outcome.NOT_APPLIED
                assert trio.current_time() - begun == pytest.approx(10)

            async with trio.open_nursery() as nursery:
                for number in range(3):
                    nursery.start_soon(call, number)
                    await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(call_in_vain)
            assert done == [0, 1, 2]
            assert wires.opened == 1
            assert not any(b'"amount":6' in received for received in wires.received)

    run(main)


async def drip_interim(stream: trio.abc.Stream, wires: Wires) -> None:
    await wires.request(stream)
    while True:
        await stream.send_all(b"HTTP/1.1 103 Early Hints\r\n\r\n")
        await trio.sleep(1)


async def drip_head(stream: trio.abc.Stream, wires: Wires) -> None:
    await wires.request(stream)
    await stream.send_all(b"HTTP/1.1 200 OK\r\nA: ")
    while True:
        await stream.send_all(b"b")
        await trio.sleep(1)


async def drip_body(stream: trio.abc.Stream, wires: Wires) -> None:
    await wires.request(stream)
    await stream.send_all(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        await stream.send_all(b" ")
        await trio.sleep(1)


@pytest.mark.parametrize("serve", [hang, drip_interim, drip_head, drip_body])
def test_time_for_the_response(serve: Serve) -> None:
    """A response that is late or drips ends with the timeout: UNKNOWN."""

    async def main() -> None:
        async with wired(serve, retry=ONCE) as (client, _):
            begun = trio.current_time()
            call = client.protocol.add(USER, 5)
            with pytest.raises(CreduseTimeoutError, match="no whole response") as caught:
                await client.run(call)
            assert caught.value.outcome is Outcome.UNKNOWN
            assert trio.current_time() - begun == pytest.approx(30)
            # What has come is handed over.
            assert (call.response is not None) == (serve is drip_body)
            assert call.response is None or call.response.body.isspace()

    run(main)


@pytest.mark.parametrize("data", [RESPONSE, RESPONSE[:-1]], ids=["whole", "cut"])
@pytest.mark.parametrize("whose", ["call", "caller"])
def test_response_at_the_deadline(whose: str, data: bytes) -> None:
    """A response that has arrived by the deadline counts, though it has not been read."""
    whole = data == RESPONSE

    async def serve(stream: trio.abc.Stream, wires: Wires) -> None:
        await wires.request(stream)
        await stream.send_all(data)
        await trio.sleep_forever()

    async def main() -> None:
        scope, clock = trio.CancelScope(), trio.lowlevel.current_clock()
        assert isinstance(clock, MockClock)
        jump = clock.jump
        end = {"call": lambda: jump(30), "caller": scope.cancel}[whose]

        async with wired(serve) as (_, wires):

            async def connect(host: str, port: int) -> trio.abc.Stream:
                return Slow(await wires.connect(host, port), end)

            async with wired(serve, connect=connect) as (client, _):
                call = client.protocol.add(USER, 5)
                timed_out = False
                with scope:
                    try:
                        await client.run(call)
                    except CreduseTimeoutError:
                        timed_out = True
                assert (timed_out, scope.cancelled_caught) == (
                    not whole and whose == "call",
                    not whole and whose == "caller",
                )
                assert call.outcome is (Outcome.APPLIED if whole else Outcome.UNKNOWN)

    run(main)


def test_server_that_sends_without_end() -> None:
    """After the deadline, a server that sends without end is not read to its end."""
    pieces = 0

    class Endless(Slow):
        """A stream that always has more to read, and needs 30 seconds for the first piece."""

        asked = False

        async def send_all(self, data: bytes | bytearray | memoryview) -> None:
            self.asked = True
            await super().send_all(data)

        async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
            nonlocal pieces
            if not self.asked:
                return await self.stream.receive_some(max_bytes)
            await trio.lowlevel.checkpoint()
            pieces += 1
            if pieces == 1:
                return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
            self.do()
            return b"1\r\nx\r\n" * 2000

    async def main() -> None:
        clock = trio.lowlevel.current_clock()
        assert isinstance(clock, MockClock)
        jump = clock.jump

        async with wired(hang) as (_, wires):

            async def connect(host: str, port: int) -> trio.abc.Stream:
                return Endless(await wires.connect(host, port), lambda: jump(30))

            async with wired(hang, connect=connect, retry=ONCE) as (client, _):
                with pytest.raises(CreduseTimeoutError) as caught:
                    await client.add(USER, 5)
                assert caught.value.outcome is Outcome.UNKNOWN
        assert pieces < 100

    run(main)


def test_more_than_is_read() -> None:
    """Of a long response at the deadline, a bounded part is read."""

    async def main() -> None:
        clock = trio.lowlevel.current_clock()
        assert isinstance(clock, MockClock)
        with socket.create_server(("127.0.0.1", 0)) as listener:

            async def serve() -> None:
                accepted, _ = await trio.to_thread.run_sync(listener.accept)
                with accepted:
                    await trio.lowlevel.wait_readable(accepted)
                    accepted.settimeout(0)
                    head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n"
                    # In one step, so that it is there and unread when the time is over.
                    assert accepted.send(head + bytes(1_000_000)) > 100_000
                    clock.jump(30)
                    await trio.sleep_forever()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(serve)
                url = f"http://127.0.0.1:{listener.getsockname()[1]}"
                async with AsyncCreduseClient(KEY, base_url=url, retry=ONCE) as client:
                    call = client.protocol.add(USER, 5)
                    with pytest.raises(CreduseTimeoutError):
                        await client.run(call)
                nursery.cancel_scope.cancel()
        assert call.response is not None
        assert 40_000 < len(call.response.body) < 100_000

    trio.run(main, clock=MockClock())


@pytest.mark.parametrize("seconds", [5, 30])
def test_limit_of_the_caller(seconds: float) -> None:
    """A limit of the caller's ends in the caller's scope, even with the same deadline."""

    async def main() -> None:
        async with wired(hang) as (client, _):
            call = client.protocol.add(USER, 5)
            with trio.move_on_after(seconds) as scope:
                await client.run(call)
            assert scope.cancelled_caught
            assert call.outcome is Outcome.UNKNOWN
            with pytest.raises(trio.TooSlowError), trio.fail_after(seconds):
                await client.add(USER, 5)

    run(main)


def test_longer_limit_of_the_caller() -> None:
    """The call's timeout raises an error, and leaves the caller's longer limit alone."""

    async def main() -> None:
        async with wired(hang) as (client, _):
            with trio.move_on_after(60) as scope:
                with pytest.raises(CreduseTimeoutError):
                    await client.add(USER, 5)
                await trio.lowlevel.checkpoint()
            assert not scope.cancel_called

    run(main)


@pytest.mark.parametrize(("pause", "opened"), [(2.9, 1), (3.0, 2), (3600, 2)])
def test_idle_connections(pause: float, opened: int) -> None:
    """A connection that was idle for three seconds is closed."""

    async def main() -> None:
        async with wired(respond) as (client, wires):
            await client.add(USER, 5)
            await trio.sleep(pause)
            await client.add(USER, 5)
            assert wires.opened == opened
            assert len(wires.closed) == opened - 1

    run(main)


def test_last_in_first_out() -> None:
    """The connection used last is used first; the others expire."""

    async def main() -> None:
        async with wired(respond, idle_timeout=1) as (client, wires):
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(client.add, USER, 5)
            assert wires.opened == 3
            for _ in range(4):
                await trio.sleep(0.5)
                await client.add(USER, 5)
            assert wires.opened == 3
            assert len(wires.closed) == 2

    run(main)
