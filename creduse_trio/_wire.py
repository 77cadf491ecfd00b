"""Bytes to and from a server, with or without TLS, and reads that do not wait.

What the bytes mean in HTTP does not belong here.
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

_READ_SIZE: Final = 16 * 1024
"""Bytes of one read."""

_BUFFERED_READ_SIZE: Final = 32 * 1024
"""Bytes of one read that does not wait."""

_MAX_READS: Final = 2
"""The most reads in a row of data that has arrived on a socket. Each takes a turn of trio's loop,
which is long if many tasks are busy. A server that never stops sending is cut off."""

_MAX_TURNS: Final = 10
"""Turns of the loop in which a stream without a socket can return data, and the most reads of it.
Each read has one turn less."""


class WouldBlockError(Exception):
    """There is nothing to read now."""


class Wire:
    """A stream to a server or a proxy. Exceptions of ``libraries`` are the stream's own. See `check_stream`."""

    def __init__(self, stream: trio.abc.Stream, libraries: set[str]) -> None:
        self._stream = stream
        self._socket = stream.socket if isinstance(stream, trio.SocketStream) else None
        self._libraries = libraries

    @property
    def has_part_of_record(self) -> bool:
        """Whether a record of TLS has arrived only in part."""
        return False

    @contextmanager
    def ignoring_errors(self) -> Generator[None]:
        """Ignore the stream's own exceptions, and raise foreign ones."""
        try:
            yield
        except Exception as error:
            if is_foreign(error, self._libraries):
                raise

    def encrypt(self, data: bytes) -> bytes:
        """Return ``data`` as `send` must send it: encrypted, if the wire has TLS."""
        return data

    def send(self, encrypted: bytes) -> Awaitable[None]:
        """Send all of it, once awaited."""
        return self._stream.send_all(encrypted)

    def read(self) -> Awaitable[bytes | bytearray]:
        """Return the next bytes, or none at the end of the stream."""
        return self._stream.receive_some(_READ_SIZE)

    def nonblocking_reader(self) -> Read:
        """Return a function like `read` that raises `WouldBlockError` instead of waiting."""
        left = _MAX_TURNS if self._socket is None else _MAX_READS

        async def read() -> bytes | bytearray:
            nonlocal left
            if self._socket is not None and not self._socket.is_readable():
                raise WouldBlockError
            if not left:
                raise trio.BrokenResourceError("the server does not stop sending")
            left -= 1
            if self._socket is not None:
                return await self._stream.receive_some(_BUFFERED_READ_SIZE)
            # Not with a deadline: a stream can take turns of the loop before it returns its data, and
            # on a test's clock no time passes.
            with trio.CancelScope() as scope:
                _cancel_after(left, scope)
                return await self._stream.receive_some(_BUFFERED_READ_SIZE)
            raise WouldBlockError

        return read

    async def is_quiet(self) -> bool:
        """Return whether there is nothing to read, not even the end of the stream.

        Over TLS, or without a socket, this reads. So a wire that is not quiet cannot be used any
        more.
        """
        if self._socket is not None:
            return not self._socket.is_readable()
        return await self._has_nothing_to_read()

    async def _has_nothing_to_read(self) -> bool:
        try:
            await self.nonblocking_reader()()
        except WouldBlockError:
            return True
        return False

    async def close(self) -> None:
        """Close at once, and send nothing to the peer.

        A cancellation does not interrupt this, since it would lose a response that has been read.
        """
        with trio.CancelScope(shield=True), self.ignoring_errors():
            await trio.aclose_forcefully(self._stream)


class TlsWire(Wire):
    """TLS on another wire, which can have TLS of its own. Call `handshake` before anything else.

    Unlike `trio.SSLStream`, it can read without waiting and after a failed write. It also detects a
    part of a record. An end without ``close_notify`` is an error, so a response without a length
    cannot be cut and look complete.
    """

    def __init__(self, below: Wire, context: ssl.SSLContext, host: str) -> None:
        super().__init__(below._stream, below._libraries)  # noqa: SLF001 - a wire, too
        self._below = below
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)
        self._partial_record = bytearray()  # the last record, as far as it has arrived

    async def handshake(self) -> None:
        """Do the TLS handshake."""
        await self._run_tls(self._tls.do_handshake, self._flush_and_read)
        await self._flush()
        chosen = self._tls.selected_alpn_protocol()
        if chosen not in {None, "http/1.1"}:
            raise RuntimeError(f"ssl_context must offer only http/1.1 in ALPN, not {chosen}")

    def encrypt(self, data: bytes) -> bytes:
        self._tls.write(data)
        return self._below.encrypt(self._outgoing.read())

    async def read(self) -> bytes | bytearray:
        return await self._run_tls(lambda: self._tls.read(_READ_SIZE), self._flush_and_read)

    def nonblocking_reader(self) -> Read:
        wire = self._below.nonblocking_reader()
        return lambda: self._run_tls(lambda: self._tls.read(_READ_SIZE), wire)

    @property
    def has_part_of_record(self) -> bool:
        return bool(self._partial_record) or self._below.has_part_of_record

    async def is_quiet(self) -> bool:
        # Read through TLS, since a session ticket is no data. Part of a record is.
        return await self._has_nothing_to_read() and not self.has_part_of_record

    async def _run_tls(self, step: Callable[[], T], wire: Read) -> T:
        """Run one operation of TLS. Read as many bytes from ``wire`` as it needs."""
        while True:
            with suppress(ssl.SSLWantReadError):
                return step()
            self._add_encrypted(await wire())

    async def _flush_and_read(self) -> bytes | bytearray:
        await self._flush()
        return await self._below.read()

    async def _flush(self) -> None:
        if self._outgoing.pending:
            await self.send(self._below.encrypt(self._outgoing.read()))

    def _add_encrypted(self, data: bytes | bytearray) -> None:
        if not data:
            self._incoming.write_eof()
            return
        self._incoming.write(data)
        self._partial_record += data
        del self._partial_record[: length_of_records(self._partial_record)]


def _cancel_after(turns: int, scope: trio.CancelScope) -> None:
    if not turns:
        scope.cancel()
        return
    with suppress(trio.RunFinishedError):  # then the read has ended, too
        trio.lowlevel.current_trio_token().run_sync_soon(_cancel_after, turns - 1, scope)


def check_stream(stream: trio.abc.Stream, libraries: set[str]) -> None:
    """Accept a stream, and add the module of its class to ``libraries``."""
    if not isinstance(stream, trio.abc.Stream):  # pyright: ignore[reportUnnecessaryIsInstance]  # callers are not all typed
        raise TypeError(f"connect must return a trio.abc.Stream, not {type(stream).__name__}")
    libraries.add(type(stream).__module__.partition(".")[0])


async def add_tls(wire: Wire, context: ssl.SSLContext, host: str) -> TlsWire:
    """Return a wire with TLS on this one, which is closed on failure."""
    try:
        secured = TlsWire(wire, context, host)
        await secured.handshake()
    except BaseException:
        await wire.close()
        raise
    return secured
