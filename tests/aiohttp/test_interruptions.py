"""Interrupted calls: the caller's timeout, Ctrl-C, closing, and signal handlers."""

import asyncio
import contextlib
import os
import resource
import signal
import socket
import ssl
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Iterator
from types import FrameType
from typing import Any

import aiohttp
import pytest
import uvloop

from creduse import CreduseError, Outcome, RetryPolicy, TransportError
from creduse_aiohttp import AsyncCreduseClient
from creduse_core import Call, exception_chain
from creduse_sandbox import FAULTS, SandboxServer
from tests.aiohttp.clients import Connect, Run, until
from tests.common import KEY, RESPONSE, USER
from tests.servers import RawServer, Start, never_respond

pytestmark = pytest.mark.slow


def frames_that_show(error: BaseException, secret: str) -> list[str]:
    """Return the functions whose variables, or their attributes, show ``secret``."""
    return [
        frame.name
        for link in exception_chain(error)
        for frame in traceback.TracebackException.from_exception(link, capture_locals=True).stack
        if frame.filename != __file__ and secret in repr(frame.locals)
    ]


# What leaves a call has no frame that holds the key.


async def time_out(client: AsyncCreduseClient, _: RawServer) -> None:
    async with asyncio.timeout(0.1):
        await client.add(USER, 5)


async def cancel(client: AsyncCreduseClient, server: RawServer) -> None:
    task = asyncio.create_task(client.add(USER, 5))
    await until(lambda: server.received)
    task.cancel()
    await task


Leave = Callable[[AsyncCreduseClient, RawServer], Awaitable[None]]


@pytest.mark.parametrize("leave", [time_out, cancel])
def test_no_key_in_frames(run: Run, connect: Connect, raw: Start, leave: Leave) -> None:
    """No frame of the caller's timeout or cancellation shows the key."""

    async def main() -> None:
        async with connect(server.base_url) as client:
            with pytest.raises((TimeoutError, asyncio.CancelledError)) as caught:
                await leave(client, server)
            assert caught.value.__traceback__ is not None
            assert frames_that_show(caught.value, KEY) == []

    server = raw(never_respond)
    run(main)


# Ctrl-C and closing, at every step of the loop.


@pytest.fixture(params=["plain", "tls"])
def sandbox(
    request: pytest.FixtureRequest, server: SandboxServer, secure_server: SandboxServer
) -> SandboxServer:
    return server if request.param == "plain" else secure_server


def numbers_of(sandbox: SandboxServer, amount: int) -> list[int]:
    """Return the positions in the server's log of the requests for an amount."""
    return [n for n, it in enumerate(sandbox.log) if f":{amount}," in str(it.body)]


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_ctrl_c(
    sandbox: SandboxServer, trust: ssl.SSLContext, factory: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """After a KeyboardInterrupt nothing is first sent, no frame shows the key, the session works."""

    async def make() -> aiohttp.ClientSession:
        return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1, ssl=trust))

    async def call(session: aiohttp.ClientSession, amount: int) -> None:
        client = AsyncCreduseClient(KEY, session, base_url=sandbox.base_url)
        await client.add(USER, amount)

    async def interrupted(session: aiohttp.ClientSession, steps: int) -> None:
        interrupt_after(asyncio.get_running_loop(), steps)
        await call(session, 1000 + steps)
        await asyncio.sleep(60)

    def interrupt_after(loop: asyncio.AbstractEventLoop, steps: int) -> None:
        if steps:
            loop.call_soon(interrupt_after, loop, steps - 1)
        else:
            signal.raise_signal(signal.SIGINT)

    with asyncio.Runner(loop_factory=factory) as runner:
        session = runner.run(make())
        for steps in range(0, 60, 3):
            with pytest.raises(KeyboardInterrupt) as caught:
                runner.run(interrupted(session, steps))
            assert frames_that_show(caught.value, KEY) == []
            sandbox.settle()  # what was sent before is in the log
            before = len(sandbox.log)
            runner.run(call(session, 2))
            runner.run(call(session, 3))
            assert all(number < before for number in numbers_of(sandbox, 1000 + steps))
        runner.run(session.close())
        runner.run(asyncio.sleep(0.02))
    assert len([it for it in sandbox.log if ":3," in str(it.body)]) == 20


@pytest.mark.usefixtures("trusted")
def test_close_during_a_call(run: Run, sandbox: SandboxServer) -> None:
    """`aclose` ends calls in bounded time, and nothing is first sent after it."""

    async def main() -> None:
        async with AsyncCreduseClient(KEY, base_url=sandbox.base_url) as witness:
            steps = in_time = 0
            while in_time < 3:
                client = AsyncCreduseClient(
                    KEY, base_url=sandbox.base_url, retry=RetryPolicy(initial_delay=0)
                )
                task = asyncio.create_task(client.add(USER, 1000 + steps))
                for _ in range(steps):
                    await asyncio.sleep(0)
                await asyncio.wait_for(client.aclose(), 10)
                await asyncio.wait({task}, timeout=10)
                sandbox.settle()  # as above
                before = len(sandbox.log)
                await witness.add(USER, 2)
                await witness.add(USER, 3)
                reached = numbers_of(sandbox, 1000 + steps)
                assert all(number < before for number in reached)
                error = task.exception()
                if error is None:
                    in_time += 1
                else:
                    assert isinstance(error, TransportError)
                    assert error.outcome is Outcome.UNKNOWN or not reached
                    in_time = 0
                steps += 1 + steps // 16

    run(main)


@pytest.mark.usefixtures("trusted")
def test_close_while_a_call_waits(run: Run, plain_and_tls: Start) -> None:
    """`aclose` ends a call that waits for its response: UNKNOWN."""

    async def main() -> None:
        client = AsyncCreduseClient(KEY, base_url=server.base_url)
        task = asyncio.create_task(client.add(USER, 5))
        await until(lambda: server.received)
        await asyncio.wait_for(client.aclose(), 10)
        with pytest.raises(TransportError) as caught:
            await asyncio.wait_for(task, 10)
        assert caught.value.outcome is Outcome.UNKNOWN
        assert len(server.received) == 1

    server = plain_and_tls(never_respond)
    run(main)


# Exceptions that come from elsewhere.


class SoftTimeLimitError(Exception):
    """A task runner's exception for a job that takes too long."""


class Interrupting(aiohttp.TCPConnector):
    """A connector that raises a signal while aiohttp connects, or right after."""

    after = False

    async def connect(self, *args: Any, **kwargs: Any) -> Any:
        if not self.after:
            signal.raise_signal(signal.SIGUSR1)
        connection = await super().connect(*args, **kwargs)
        try:
            signal.raise_signal(signal.SIGUSR1)
        except BaseException:
            connection.close()
            raise
        return connection


@pytest.fixture(params=[SoftTimeLimitError, TimeoutError, ValueError])
def foreign(request: pytest.FixtureRequest) -> Iterator[type[Exception]]:
    """Raise an exception of this class from a handler of SIGUSR1."""

    def handle(_: int, __: FrameType | None) -> None:
        raise request.param("from a signal handler")

    before = signal.signal(signal.SIGUSR1, handle)
    yield request.param
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("moment", ["before connecting", "after connecting"])
@pytest.mark.parametrize("name", ["add", "get_balance"])
def test_foreign_exception(
    run: Run, server: SandboxServer, foreign: type[Exception], name: str, moment: str
) -> None:
    """An exception of a signal handler leaves the client unchanged; the call is not retried."""

    async def main() -> None:
        connector = Interrupting()
        connector.after = moment == "after connecting"
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            AsyncCreduseClient(KEY, session, base_url=server.base_url) as client,
        ):
            protocol = client.protocol
            call: Call[Any] = protocol.add(USER, 5) if name == "add" else protocol.get_balance(USER)
            with pytest.raises(foreign, match="from a signal handler") as caught:
                await client.run(call)
            assert frames_that_show(caught.value, KEY) == []
            assert [attempt.event for attempt in call.attempts] == ["abandoned"]

    run(main)
    assert server.log == ()


# Closing.


def test_close_on_a_supplied_session(run: Run, raw: Start) -> None:
    """A call that waits for a connection of a supplied session sends nothing after `aclose`."""

    async def main() -> None:
        connector = aiohttp.TCPConnector(limit=1)
        async with aiohttp.ClientSession(connector=connector) as session:
            holder = AsyncCreduseClient(KEY, session, base_url=server.base_url)
            holding = asyncio.create_task(holder.add(USER, 1))
            await until(lambda: server.received)
            client = AsyncCreduseClient(KEY, session, base_url=server.base_url)
            waiting = asyncio.create_task(client.add(USER, 2))
            await asyncio.sleep(0.05)
            await client.aclose()
            holding.cancel()
            with pytest.raises(TransportError, match="the client is closed") as caught:
                await waiting
            assert caught.value.outcome is Outcome.NOT_APPLIED
            assert len(server.received) == 1

    server = raw(never_respond)
    run(main)


@pytest.mark.usefixtures("trusted")
def test_cancelled_as_the_handshake_ends(run: Run, secure_context: ssl.SSLContext) -> None:
    """A call that is cancelled as its handshake ends leaves no socket open.

    asyncio closes that connection and waits for its peer to close TLS, too, for half a minute.
    """
    hello, gone = threading.Event(), threading.Event()

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        connection.settimeout(10)
        connection.recv(1, socket.MSG_PEEK)
        hello.set()
        time.sleep(0.2)  # for the client's loop to be busy
        wrapped = secure_context.wrap_socket(connection, server_side=True)
        with wrapped, socket.socket(fileno=os.dup(wrapped.fileno())) as raw:
            raw.settimeout(10)
            while raw.recv(65536):  # the closing of TLS is not responded
                pass
            gone.set()

    async def main() -> None:
        async with AsyncCreduseClient(KEY, base_url=url) as client:
            task = asyncio.create_task(client.add(USER, 5))
            await until(hello.is_set)
            # While the loop is busy, first the end of the handshake comes, then the cancellation.
            asyncio.get_running_loop().call_later(0.1, task.cancel)
            time.sleep(0.5)  # noqa: ASYNC251 - as it says
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.wait_for(until(gone.is_set), 20)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        run(main)
        thread.join()


@pytest.mark.parametrize("moment", ["while idle", "while busy"])
def test_a_peer_that_does_not_close_tls(
    run: Run, secure_context: ssl.SSLContext, trust: ssl.SSLContext, moment: str
) -> None:
    """A connection with a surplus is closed at once, though its peer does not close TLS."""
    gone = threading.Event()

    def serve(listener: socket.socket) -> None:
        wrapped = secure_context.wrap_socket(listener.accept()[0], server_side=True)
        with wrapped, socket.socket(fileno=os.dup(wrapped.fileno())) as raw:
            wrapped.recv(65536)
            wrapped.sendall(RESPONSE)
            time.sleep(0.05)
            wrapped.sendall(RESPONSE)
            raw.settimeout(10)
            with contextlib.suppress(ConnectionResetError):
                while raw.recv(65536):
                    pass
            gone.set()
        listener.close()

    async def main() -> None:
        async with (
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trust)) as session,
            AsyncCreduseClient(
                KEY, session, base_url=url, retry=RetryPolicy(max_attempts=1)
            ) as client,
        ):
            await client.subtract(USER, 5)
            if moment == "while busy":
                time.sleep(0.2)  # noqa: ASYNC251 - so that the surplus is not read
                with pytest.raises(TransportError) as caught:
                    await client.subtract(USER, 5)
                assert caught.value.outcome is Outcome.NOT_APPLIED
            await asyncio.wait_for(until(gone.is_set), 20)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        run(main)
        thread.join()


# A process that has run out of file descriptors.


def test_without_file_descriptors(run: Run, connect: Connect, server: SandboxServer) -> None:
    """A connection is closed without opening a file, and no new one can be made."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    async def main() -> None:
        async with connect(server.base_url, retry=RetryPolicy(max_attempts=1)) as client:
            await client.add(USER, 1)
            server.inject(FAULTS["wrong-user"])
            resource.setrlimit(resource.RLIMIT_NOFILE, (1, hard))  # less than there are
            try:
                with pytest.raises(CreduseError):
                    await client.add(USER, 2)
                with pytest.raises(TransportError) as caught:
                    await client.add(USER, 3)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            assert caught.value.outcome is Outcome.NOT_APPLIED
            assert "Too many open files" in str(caught.value)
            await client.add(USER, 4)

    run(main)
    assert [entry.connection for entry in server.log] == [1, 1, 2]
