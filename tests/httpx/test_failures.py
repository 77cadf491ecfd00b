"""Failures over every httpx client: the errors say the truth."""

import logging
import pickle
import select
import socket
import struct
import threading
import traceback
from collections.abc import Callable
from typing import Any

import pytest

from creduse import (
    CreduseError,
    Outcome,
    TransportError,
)
from creduse_httpx._sockets import check_loopback
from creduse_sandbox import SandboxServer
from tests.common import GOOD, NO_WAIT, ONCE, USER
from tests.httpx.harness import Harness
from tests.servers import RawServer, Start


def disconnect(connection: socket.socket, server: RawServer) -> None:
    """Read the request, and close the connection."""
    server.request(connection)


def cut_body(connection: socket.socket, server: RawServer) -> None:
    """Respond with less of a body than its length says."""
    if server.request(connection):
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n" + GOOD)


def garbage(connection: socket.socket, server: RawServer) -> None:
    """Respond with bytes that are not HTTP."""
    server.request(connection)
    connection.sendall(b"\x00\x01\x02 what?\r\n\r\n")


def test_closed_client(harness: Harness, server: SandboxServer) -> None:
    """A closed client sends nothing, and the error says so."""

    async def main() -> None:
        async with harness.connect(server.base_url) as client:
            pass
        with pytest.raises(
            TransportError, match="client is closed: was it used after its 'with'"
        ) as caught:
            await client.add(USER, 5)
        assert caught.value.outcome is Outcome.NOT_APPLIED
        assert len(caught.value.attempts) == 1

    harness.run(main)
    assert server.log == ()


def test_url_that_httpx_rejects(harness: Harness) -> None:
    """A URL that only the library rejects is NOT_APPLIED, and not retried."""

    async def main() -> None:
        async with harness.connect("https://localhost/" + 70_000 * "a") as client:
            with pytest.raises(TransportError) as caught:
                await client.add(USER, 5)
            assert caught.value.outcome is Outcome.NOT_APPLIED
            assert len(caught.value.attempts) == 1

    harness.run(main)


BEHAVIOURS: dict[str, Callable[[socket.socket, Any], None]] = {
    "disconnect": disconnect,
    "cut": cut_body,
    "garbage": garbage,
}


@pytest.mark.parametrize("behave", BEHAVIOURS.values(), ids=BEHAVIOURS)
def test_no_key_anywhere(
    harness: Harness,
    raw: Start,
    behave: Callable[[socket.socket, Any], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The key is in no repr, error, traceback, pickle, or debug log."""
    server = raw(behave)
    caplog.set_level(logging.DEBUG)

    async def main() -> None:
        async with harness.connect(server.base_url, retry=ONCE) as client:
            key = client.protocol.api_key.reveal()
            with pytest.raises(CreduseError) as caught:
                await client.add(USER, 5)
            error = caught.value
            text = "".join(traceback.format_exception(error))
            texts = [repr(client), str(error), repr(error), repr(vars(error)), text, caplog.text]
            assert not any(key in text for text in texts)
            assert key.encode() not in pickle.dumps(error)
            assert "POST /add" in caplog.text
            assert key.encode() in server.received[0]

    harness.run(main)


def test_reset_as_soon_as_connected(
    harness: Harness, raw: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that is reset as soon as it is made is retried."""
    connected = threading.Semaphore(0)

    def reset(connection: socket.socket, _: RawServer) -> None:
        connected.acquire()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def check_late(stream: Any) -> None:
        connected.release()
        select.select([stream.get_extra_info("socket")], [], [], 30)
        check_loopback(stream)

    for module in ("_network", "_supplied"):
        monkeypatch.setattr(f"creduse_httpx.{module}.check_loopback", check_late)

    async def main() -> None:
        async with harness.connect(raw(reset).base_url, retry=NO_WAIT) as client:
            with pytest.raises(TransportError, match="reset") as caught:
                await client.add(USER, 1)
        assert caught.value.outcome is Outcome.NOT_APPLIED
        assert len(caught.value.attempts) == 3

    harness.run(main)
