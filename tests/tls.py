"""TLS for the servers and the clients of tests."""

import json
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from typing import Any, Self

import trustme


def server_context(
    authority: trustme.CA,
    *names: str,
    not_before: datetime | None = None,
    not_after: datetime | None = None,
) -> ssl.SSLContext:
    """Return a server's context, with a certificate for ``names``, by default 127.0.0.1."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    names = names or ("127.0.0.1",)
    leaf = authority.issue_cert(*names, not_before=not_before, not_after=not_after)
    leaf.configure_cert(context)  # pyright: ignore[reportUnknownMemberType]  # it takes pyOpenSSL's contexts too
    return context


def client_context(authority: trustme.CA) -> ssl.SSLContext:
    """Return a client's context that trusts ``authority``."""
    context = ssl.create_default_context()
    authority.configure_trust(context)  # pyright: ignore[reportUnknownMemberType]  # as above
    return context


class TlsInParts:
    """A server's TLS on a connection, whose records can be sent in parts."""

    def __init__(self, context: ssl.SSLContext, connection: socket.socket | Self) -> None:
        self.connection = connection
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)

    def handshake(self) -> bytes:
        """Complete the handshake, and return its bytes that are still to be sent."""
        self._do(self._tls.do_handshake)
        return self._outgoing.read()

    def recv(self, size: int) -> bytes:
        """Return decrypted bytes."""
        data: bytes = self._do(lambda: self._tls.read(size))
        if not data:
            raise ConnectionResetError
        return data

    def sendall(self, data: bytes) -> None:
        """Send bytes in one record. So this can be the connection of another layer of TLS."""
        self.connection.sendall(self.seal(data))

    def request(self) -> int:
        """Read a request, and return its amount."""
        data = b""
        while not data.endswith(b"}"):
            data += self.recv(65536)
        return int(json.loads(data.partition(b"\r\n\r\n")[2])["amount"])

    def seal(self, data: bytes) -> bytes:
        """Return the TLS records of ``data``."""
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
