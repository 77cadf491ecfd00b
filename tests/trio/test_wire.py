"""Reads that do not wait."""

import pytest
import trio

from creduse_trio._wire import Wire, WouldBlockError


def test_nonblocking_reads() -> None:
    """A reader reads twice what has arrived. Then it fails only if there is still more.

    After a TLS handshake, each of two session tickets can need a read.
    """

    async def main() -> None:
        ours, theirs = trio.socket.socketpair()
        with ours, theirs:
            read = Wire(trio.SocketStream(ours), set()).nonblocking_reader()
            for _ in range(2):
                await theirs.send(b"x")
                assert await read() == b"x"
            with pytest.raises(WouldBlockError):
                await read()
            await theirs.send(b"x")
            with pytest.raises(trio.BrokenResourceError):
                await read()

    trio.run(main)
