"""TLS on one connection, without a socket: bytes in, bytes out.

asyncio's own TLS would do for a server that behaves. It hides a connection until its handshake is
over, reports every failed one as an error, and cannot leave out a ``close_notify``.
"""

import ssl
from contextlib import suppress


class Tls:
    """The server's side of a TLS connection."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._greeted = False

    def receive(self, data: bytes) -> tuple[bytes, bool]:
        """Take what the peer sent; give what is in it, and whether the peer's stream goes on.

        Raises:
            ssl.SSLError: It is not TLS, or none that the peer and the context agree on.
        """
        self._incoming.write(data)
        plain = bytearray()
        try:
            if not self._greeted:
                self._tls.do_handshake()
                self._greeted = True
            while piece := self._tls.read(64 * 1024):
                plain += piece
        except ssl.SSLWantReadError:
            return bytes(plain), True
        return bytes(plain), False

    def send(self, data: bytes) -> None:
        """Put data into a record of its own, or into several if it is too long for one."""
        rest = memoryview(data)
        while rest:
            rest = rest[self._tls.write(rest) :]

    def end(self) -> None:
        """Say with a ``close_notify`` that nothing more will be sent."""
        with suppress(ssl.SSLError):  # it is not there to answer, or there was no handshake
            self._tls.unwrap()

    def to_send(self) -> bytes:
        """Give the bytes that are now to be sent to the peer."""
        return self._outgoing.read()
