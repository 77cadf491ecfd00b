"""Unrequested bytes that are special to trio: cut at each place, on plain wires and within TLS.

What holds for every client is in the conformance kit.
"""

import itertools
import ssl
from contextlib import nullcontext, suppress

import pytest
import trio

from creduse_core import InsufficientFundsError
from creduse_trio import AsyncCreduseClient
from tests.common import KEY, ONCE, RESPONSE, USER, response

REFUSED = response(b'{"error_code":"INSUFFICIENT_FUNDS","message":"no"}', 402)

# What comes with the first response, later than it, and in response to the second request. Where
# the surplus says one thing, the true response says the other. The conformance kit proves whole
# responses and one and a half, without TLS and in one record.
FORMS: dict[str, tuple[bytes, bytes, bytes]] = {
    "twice": (RESPONSE + RESPONSE, b"", REFUSED),
    "half a refusal": (RESPONSE + REFUSED[:-1], b"", RESPONSE),
    "half later": (RESPONSE, RESPONSE[:-1], REFUSED),
    "one byte later": (RESPONSE, b"H", REFUSED),
}


class Server:
    """Sends the bytes of one form, in TLS records if so, and records its requests."""

    def __init__(self, form: str, records: int, context: ssl.SSLContext) -> None:
        self.first, self.later, self.second = FORMS[form]
        self.records = records
        self.context = context
        self.received: list[int] = []
        self.responded = trio.Event()
        self._accepted = itertools.count(1)

    async def serve(self, raw: trio.SocketStream) -> None:
        number = next(self._accepted)
        gathered = _Gathered(raw)
        stream: trio.abc.Stream = gathered
        if self.records:
            stream = trio.SSLStream(gathered, self.context, server_side=True)
        async with raw:
            with suppress(trio.BrokenResourceError):  # the client closes without a word
                while await stream.receive_some():
                    self.received.append(number)
                    await self._respond(stream, gathered)

    async def _respond(self, stream: trio.abc.Stream, gathered: "_Gathered") -> None:
        if len(self.received) > 1:
            await stream.send_all(self.second)
            return
        gathered.held = b""
        cut = len(RESPONSE) if self.records == 2 else len(self.first)
        for piece in filter(None, (self.first[:cut], self.first[cut:])):
            await stream.send_all(piece)
        await gathered.flush()
        if self.later:
            await self.responded.wait()
            await stream.send_all(self.later)


@pytest.mark.parametrize(
    ("form", "records"),
    [
        ("twice", 2),
        ("half a refusal", 2),
        ("half later", 0),
        ("half later", 1),
        ("one byte later", 0),
        ("one byte later", 1),
    ],
)
def test_surplus(
    form: str, records: int, server_context: ssl.SSLContext, trust: ssl.SSLContext
) -> None:
    """After a surplus, the next equal request uses another connection and gets its own response."""
    server = Server(form, records, server_context)
    streams: list[trio.SocketStream] = []

    async def connect(host: str, port: int) -> trio.abc.Stream:
        streams.append(await trio.open_tcp_stream(host, port))
        return streams[-1]

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            nursery.start_soon(trio.serve_listeners, server.serve, listeners)
            port = listeners[0].socket.getsockname()[1]
            url = f"{'https' if records else 'http'}://127.0.0.1:{port}"
            async with AsyncCreduseClient(
                KEY, trust, base_url=url, connect=connect, retry=ONCE
            ) as client:
                assert (await client.subtract(USER, 5)).amount == 5
                server.responded.set()
                if server.later:
                    await trio.lowlevel.wait_readable(streams[0].socket)
                with (
                    pytest.raises(InsufficientFundsError)
                    if server.second is REFUSED
                    else nullcontext()
                ):
                    await client.subtract(USER, 5)
            nursery.cancel_scope.cancel()

    trio.run(main)
    assert server.received == [1, 2]


class _Gathered(trio.abc.Stream):
    """Sends in one segment what it gets while ``held`` is not None."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.held: bytes | None = None

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if self.held is None:
            await self.stream.send_all(data)
        else:
            self.held += bytes(data)

    async def flush(self) -> None:
        held, self.held = self.held, None
        await self.stream.send_all(held or b"")

    async def wait_send_all_might_not_block(self) -> None:
        await self.stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self.stream.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self.stream.aclose()
