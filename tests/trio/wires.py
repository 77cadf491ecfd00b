"""Sandboxes on sockets, connections without sockets, and steps of a task."""

import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeAlias

import trio
import trio.testing

from creduse_sandbox import SandboxServer
from creduse_trio import AsyncCreduseClient
from tests.common import KEY


class Site:
    """A sandbox on a socket, and clients of it."""

    def __init__(self, server: SandboxServer, ssl_context: ssl.SSLContext | None) -> None:
        self.server = server
        self.ssl_context = ssl_context

    def client(self, **settings: Any) -> AsyncCreduseClient:
        """Make a client."""
        settings = {"base_url": self.server.base_url, "ssl_context": self.ssl_context} | settings
        return AsyncCreduseClient(KEY, **settings)


class End(trio.abc.Stream):
    """A client's end of a stream in memory, which reports that it closes.

    `trio.StapledStream`, which makes it up, closes its halves one after the other. If it is
    interrupted between the two in a cancelled scope, as in `trio.aclose_forcefully`, the Cancelled
    of the second replaces the KeyboardInterrupt.
    """

    def __init__(
        self,
        stream: trio.StapledStream[trio.testing.MemorySendStream, trio.testing.MemoryReceiveStream],
        closed: Callable[[], object],
    ) -> None:
        self.stream = stream
        self.closed = closed

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send."""
        await self.stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        """Wait for room."""
        await self.stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Receive."""
        return await self.stream.receive_some(max_bytes)

    async def aclose(self) -> None:
        """Close both ways, then wait."""
        self.stream.send_stream.close()
        self.stream.receive_stream.close()
        self.closed()
        await trio.lowlevel.checkpoint()


class Wires:
    """Connections without sockets. A task runs ``serve`` on each."""

    def __init__(self, nursery: trio.Nursery, serve: "Serve") -> None:
        self.nursery = nursery
        self.serve = serve
        self.opened = 0
        self.closed: set[int] = set()
        self.asked: list[tuple[str, int]] = []
        self.received: list[bytes] = []

    async def connect(self, host: str, port: int) -> trio.abc.Stream:
        """Be a client's ``connect``."""
        await trio.lowlevel.checkpoint()
        self.asked.append((host, port))
        ours, theirs = trio.testing.memory_stream_pair()
        self.opened += 1
        number = self.opened
        self.nursery.start_soon(self._serve, theirs)
        return End(ours, lambda: self.closed.add(number))

    async def _serve(self, stream: trio.abc.Stream) -> None:
        with suppress(trio.BrokenResourceError):  # the client has hung up
            await self.serve(stream, self)

    async def request(self, stream: trio.abc.Stream) -> bytes:
        """Read one whole request; ``b""`` if the client has hung up."""
        data = b""
        while not data.endswith(b"}"):
            piece = await stream.receive_some()
            if not piece:
                break
            data += piece
        if data:
            self.received.append(data)
        return data


Serve: TypeAlias = Callable[[trio.abc.Stream, Wires], Awaitable[None]]


@asynccontextmanager
async def wired(serve: Serve, **settings: Any) -> AsyncGenerator[tuple[AsyncCreduseClient, Wires]]:
    """Make a client whose streams are in memory."""
    async with trio.open_nursery() as nursery:
        wires = Wires(nursery, serve)
        own: dict[str, Any] = {"base_url": "http://sandbox.localhost", "connect": wires.connect}
        async with AsyncCreduseClient(KEY, **(own | settings)) as client:
            yield client, wires
        assert len(wires.closed) == wires.opened  # whatever happened, none is left open
        nursery.cancel_scope.cancel()


class Steps(trio.abc.Instrument):
    """Does something before or after a certain step of the current task."""

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
        """Count before a step of the task."""
        self._step(task, before=True)

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        """Count after a step of the task."""
        self._step(task, before=False)

    def __enter__(self) -> None:
        trio.lowlevel.add_instrument(self)

    def __exit__(self, *_: object) -> None:
        trio.lowlevel.remove_instrument(self)
