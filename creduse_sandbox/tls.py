"""The server's side of TLS on one connection, without a socket.

The faults need more than asyncio's TLS can do. That hides a connection until its handshake ends,
reports each failed handshake as an error, and always sends ``close_notify``. What the
bytes mean (`connection`) does not belong here.
"""

import ssl
from contextlib import suppress


class Tls:
    """The server's side of a TLS connection."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._shook_hands = False

    def receive(self, data: bytes) -> tuple[bytes, bool]:
        """Decrypt what the peer sent. Return it, and whether the peer's stream is still open.

        Raises:
            ssl.SSLError: The bytes are not TLS, or the handshake failed.
        """
        self._incoming.write(data)
        plain = bytearray()
        try:
            if not self._shook_hands:
                self._tls.do_handshake()
                self._shook_hands = True
            while piece := self._tls.read(64 * 1024):
                plain += piece
        except ssl.SSLWantReadError:
            return bytes(plain), True
        return bytes(plain), False

    def send(self, data: bytes) -> None:
        """Encrypt data as a record, or as several if it is too long for one."""
        rest = memoryview(data)
        while rest:
            rest = rest[self._tls.write(rest) :]

    def end(self) -> None:
        """Encrypt a ``close_notify``, which ends our stream."""
        with suppress(ssl.SSLError):  # the peer's own is missing, or there was no handshake
            self._tls.unwrap()

    def to_send(self) -> bytes:
        """Return the encrypted bytes to send to the peer."""
        return self._outgoing.read()
