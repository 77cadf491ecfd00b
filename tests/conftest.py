"""What all tests need of the process they run in."""

import json
import signal
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest


@pytest.fixture(autouse=True, scope="session")
def interruptible() -> Iterator[None]:
    """Let SIGINT be heard, here and in subprocesses: a shell has background jobs ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class TlsInParts:
    """A server's TLS on a connection, whose records can be sent in parts."""

    def __init__(self, context: ssl.SSLContext, connection: socket.socket) -> None:
        self.connection = connection
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)

    def handshake(self) -> bytes:
        """Agree on TLS, and return what of that is still to be sent."""
        self._do(self._tls.do_handshake)
        return self._outgoing.read()

    def request(self) -> int:
        """Read a request, and return its amount."""
        data = b""
        while not data.endswith(b"}"):
            piece = self._do(lambda: self._tls.read(65536))
            if not piece:
                raise ConnectionResetError
            data += piece
        return int(json.loads(data.partition(b"\r\n\r\n")[2])["amount"])

    def seal(self, data: bytes) -> bytes:
        """Return the records of some data."""
        self._tls.write(data)
        return self._outgoing.read()

    def _do(self, step: Callable[[], Any]) -> Any:
        while True:
            with suppress(ssl.SSLWantReadError):
                return step()
            self.connection.sendall(self._outgoing.read())
            data = self.connection.recv(65536)
            if not data:
                raise ConnectionResetError
            self._incoming.write(data)


@pytest.fixture
def tls_in_parts() -> type[TlsInParts]:
    return TlsInParts
