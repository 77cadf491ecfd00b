"""Bytes to and from a server, over TLS or not, and whether some are there without waiting.

What they mean to HTTP must not come in here.
"""

import ssl
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager, suppress
from typing import Final, TypeAlias, TypeVar

import trio

from creduse_core import is_foreign
from creduse_core.tls import length_of_records

Read: TypeAlias = Callable[[], Awaitable[bytes | bytearray]]

T = TypeVar("T")

_PIECE: Final = 16 * 1024
"""Bytes that are read at a time."""

_THERE: Final = 32 * 1024
"""Bytes that are read at a time of what is there."""

_READS: Final = 2
"""How often in a row what is there is read from a socket. Each takes a turn of trio's loop, which is
long if many tasks are busy; a server that sends without end is left behind."""

_TURNS: Final = 10
"""Turns in which a stream without a socket gives what it has, if anything, and how often it is read;
each time in one turn less."""


class QuietError(Exception):
    """There is nothing to be read now."""


class Wire:
    """A stream to a server. ``libraries`` are the modules whose exceptions are its own."""

    def __init__(self, stream: trio.abc.Stream, libraries: set[str]) -> None:
        self._stream = stream
        self._socket = stream.socket if isinstance(stream, trio.SocketStream) else None
        libraries.add(type(stream).__module__.partition(".")[0])
        self._libraries = libraries

    @contextmanager
    def ignoring_errors(self) -> Generator[None]:
        """Ignore its own exceptions, but none that a signal handler raises meanwhile."""
        try:
            yield
        except Exception as error:
            if is_foreign(error, self._libraries):
                raise

    def sealed(self, data: bytes) -> bytes:
        """Return what `send` is to send for these bytes."""
        return data

    async def send(self, sealed: bytes) -> None:
        """Send what `sealed` has returned."""
        await self._stream.send_all(sealed)

    async def read(self) -> bytes | bytearray:
        """Return what comes next; nothing at the end of the stream."""
        return await self._stream.receive_some(_PIECE)

    def reader(self) -> Read:
        """Return a function like `read` that raises `QuietError` where it would have to wait."""
        left = _TURNS if self._socket is None else _READS

        async def read() -> bytes | bytearray:
            nonlocal left
            if not left:
                raise trio.BrokenResourceError("the server sends without end")
            left -= 1
            if self._socket is not None:
                if self._socket.is_readable():
                    return await self._stream.receive_some(_THERE)
                raise QuietError
            # Not with a deadline: a stream may let the loop turn before it looks for what it has,
            # and on a clock that is driven by hand no time passes.
            with trio.CancelScope() as scope:
                _cancel_after(left, scope)
                return await self._stream.receive_some(_THERE)
            raise QuietError

        return read

    async def is_quiet(self) -> bool:
        """Return whether nothing has come that was not read, not even the end of the stream."""
        if self._socket is not None:
            return not self._socket.is_readable()
        return await self._reads_nothing()

    async def _reads_nothing(self) -> bool:
        try:
            await self.reader()()
        except QuietError:
            return True
        return False

    async def close(self) -> None:
        """Close at once, without a word to the peer.

        Shielded, as a cancellation that comes just now must not take away the response in hand.
        """
        with trio.CancelScope(shield=True), self.ignoring_errors():
            await trio.aclose_forcefully(self._stream)


class TlsWire(Wire):
    """A stream to a server with TLS on top. Only after `handshake` may it be used.

    Unlike `trio.SSLStream`, it can be read without waiting, and after a write that failed; and it
    sees half a record.
    """

    def __init__(
        self, stream: trio.abc.Stream, libraries: set[str], context: ssl.SSLContext, host: str
    ) -> None:
        super().__init__(stream, libraries)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)
        self._record = bytearray()  # the last one, as far as it has come

    async def handshake(self) -> None:
        """Agree on TLS, and raise whatever does not let that be."""
        await self._step(self._tls.do_handshake, self._wait)
        await self._flush()
        chosen = self._tls.selected_alpn_protocol()
        if chosen not in {None, "http/1.1"}:
            raise RuntimeError(f"the ssl_context offers {chosen}, which is not spoken here")

    def sealed(self, data: bytes) -> bytes:
        self._tls.write(data)
        return self._outgoing.read()

    async def read(self) -> bytes | bytearray:
        return await self._step(lambda: self._tls.read(_PIECE), self._wait)

    def reader(self) -> Read:
        wire = super().reader()
        return lambda: self._step(lambda: self._tls.read(_PIECE), wire)

    async def is_quiet(self) -> bool:
        # Through TLS: a session ticket is nothing, and half a record is something.
        return await self._reads_nothing() and not self._record

    async def _step(self, step: Callable[[], T], wire: Read) -> T:
        """Do a step of TLS, with as many bytes of the wire as it needs."""
        while True:
            with suppress(ssl.SSLWantReadError):
                return step()
            self._feed(await wire())

    async def _wait(self) -> bytes | bytearray:
        await self._flush()
        return await super().read()

    async def _flush(self) -> None:
        if self._outgoing.pending:
            await super().send(self._outgoing.read())

    def _feed(self, data: bytes | bytearray) -> None:
        if not data:
            self._incoming.write_eof()
            return
        self._incoming.write(data)
        self._record += data
        del self._record[: length_of_records(self._record)]


def _cancel_after(turns: int, scope: trio.CancelScope) -> None:
    if not turns:
        scope.cancel()
        return
    with suppress(trio.RunFinishedError):  # then the read is over, too
        trio.lowlevel.current_trio_token().run_sync_soon(_cancel_after, turns - 1, scope)


async def open_wire(
    stream: trio.abc.Stream, host: str, context: ssl.SSLContext | None, libraries: set[str]
) -> Wire:
    """Agree on TLS over a stream if there is a context for it. If that fails, close the stream."""
    if not isinstance(stream, trio.abc.Stream):  # pyright: ignore[reportUnnecessaryIsInstance]  # callers are not all typed
        raise TypeError(f"connect must return a trio.abc.Stream, not {type(stream).__name__}")
    wire = Wire(stream, libraries)
    if context is None:
        return wire
    try:
        secured = TlsWire(stream, libraries, context, host)
        await secured.handshake()
    except BaseException:
        await wire.close()
        raise
    return secured
