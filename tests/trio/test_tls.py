"""TLS: records, alerts, and its own end."""

import socket
import ssl
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext, suppress
from typing import Any

import pytest
import trio
import trustme

from creduse_core import CreduseTimeoutError, Outcome, TransportError
from creduse_trio import AsyncCreduseClient
from tests.common import GOOD, KEY, ONCE, RESPONSE, USER
from tests.trio.wires import Wires, wired


@asynccontextmanager
async def served(
    serve: Callable[[trio.abc.Stream], Awaitable[None]], trust: ssl.SSLContext
) -> AsyncGenerator[tuple[AsyncCreduseClient, None]]:
    """Make a client of a server on a socket, both in this run."""
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, serve, listeners)
        base_url = f"https://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        async with AsyncCreduseClient(KEY, trust, base_url=base_url, retry=ONCE) as client:
            yield client, None
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("whose", ["call", "caller"])
@pytest.mark.parametrize("over", ["socket", "memory"])
def test_records_without_end(
    over: str, whose: str, server_context: ssl.SSLContext, trust: ssl.SSLContext
) -> None:
    """A timeout of the call or its caller ends a response of endless records."""
    later: list[int] = []
    scope = trio.CancelScope()

    async def serve(raw: trio.abc.Stream, _: Any = None) -> None:
        stream = trio.SSLStream(raw, server_context, server_side=True)
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        end = trio.current_time() + 0.2
        with suppress(trio.BrokenResourceError):
            while len(later) < 5000:
                await stream.send_all(b"1\r\nx\r\n")
                if trio.current_time() >= end:
                    later.append(1)
                    if whose == "caller":
                        scope.cancel()

    async def main() -> None:
        async with (
            served(serve, trust)
            if over == "socket"
            else wired(serve, base_url="https://localhost", ssl_context=trust, retry=ONCE)
        ) as (client, _):
            call = client.protocol.add(USER, 5, timeout=0.2 if whose == "call" else 60)
            with scope, pytest.raises(CreduseTimeoutError) if whose == "call" else nullcontext():
                await client.run(call)
            assert scope.cancelled_caught is (whose == "caller")
            assert call.outcome is Outcome.UNKNOWN

    trio.run(main)
    assert len(later) < 200


@pytest.mark.parametrize("after", [1, 4, 5, 6, 40], ids=lambda after: f"after {after}")
def test_half_a_record(after: int, server_context: ssl.SSLContext, trust: ssl.SSLContext) -> None:
    """Part of a record before the next request is not its response."""

    async def serve(stream: trio.abc.Stream, wires: Wires) -> None:
        split = _Split(stream)
        secure = trio.SSLStream(split, server_context, server_side=True)
        while await wires.request(secure):
            await secure.send_all(RESPONSE)
            if len(wires.received) > 1:
                continue
            split.after = after
            await secure.send_all(RESPONSE)
            await stream.receive_some()  # the next request, or the end
            await stream.send_all(split.rest)

    async def main() -> None:
        async with wired(serve, base_url="https://localhost", ssl_context=trust) as (client, wires):
            for _ in range(3):
                await client.add(USER, 5)
                await trio.testing.wait_all_tasks_blocked()
            assert (wires.opened, len(wires.received)) == (2, 3)

    trio.run(main)


class _Split(trio.abc.Stream):
    """Holds back what is sent after so many bytes."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.after: int | None = None
        self.rest = b""

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self.stream.send_all(data[: self.after])
        if self.after is not None:
            self.rest = bytes(data[self.after :])

    async def wait_send_all_might_not_block(self) -> None:
        await self.stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self.stream.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self.stream.aclose()


@pytest.mark.parametrize(
    ("version", "reason"),
    [
        (ssl.TLSVersion.TLSv1_2, "handshake failure"),
        (ssl.TLSVersion.TLSv1_3, "certificate required"),
    ],
    ids=["1.2", "1.3"],
)
def test_missing_client_certificate(
    authority: trustme.CA, trust: ssl.SSLContext, version: ssl.TLSVersion, reason: str
) -> None:
    """The error of a server that requires a client certificate has its alert."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)  # pyright: ignore[reportUnknownMemberType]  # it takes pyOpenSSL's contexts too
    authority.configure_trust(context)  # pyright: ignore[reportUnknownMemberType]  # as above
    context.verify_mode = ssl.CERT_REQUIRED
    context.maximum_version = version
    count = 30
    received: list[bytes] = []

    # Not of trio's making: its TLS sends no alert.
    def serve(listener: socket.socket) -> None:
        for _ in range(count):
            raw, _ = listener.accept()
            with raw, suppress(OSError), context.wrap_socket(raw, server_side=True) as stream:
                received.append(stream.recv(65536))

    async def main(port: int) -> None:
        base_url = f"https://127.0.0.1:{port}"
        async with AsyncCreduseClient(KEY, trust, base_url=base_url, retry=ONCE) as client:
            for _ in range(count):
                with pytest.raises(TransportError, match=reason):
                    await client.add(USER, 5)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=serve, args=[listener], daemon=True)
        server.start()
        trio.run(main, listener.getsockname()[1])
        server.join()
    assert not received


def test_end_that_leaves_the_socket_open(
    server_context: ssl.SSLContext, trust: ssl.SSLContext
) -> None:
    """A response that a close_notify ends is whole, though the stream stays open."""

    async def serve(stream: trio.abc.Stream, _: Wires) -> None:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = server_context.wrap_bio(incoming, outgoing, server_side=True)

        async def step(do: Callable[[], object]) -> object:
            while True:
                try:
                    return do()
                except ssl.SSLWantReadError:
                    if outgoing.pending:
                        await stream.send_all(outgoing.read())
                    incoming.write(await stream.receive_some())

        await step(tls.do_handshake)
        await step(lambda: tls.read(65536))
        tls.write(b"HTTP/1.1 200 OK\r\n\r\n" + GOOD)
        with suppress(ssl.SSLWantReadError):
            tls.unwrap()
        await stream.send_all(outgoing.read())
        await trio.sleep_forever()

    async def main() -> None:
        async with wired(serve, base_url="https://localhost", ssl_context=trust) as (client, _):
            await client.add(USER, 5, timeout=5)

    trio.run(main)
