"""One HTTP/1.1 connection: h11 over a trio stream, and what becomes of one request on it.

Which connection a request gets, and what a failure means, is not decided here.
"""

import ssl
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import h11
import trio

from creduse_core import MAX_BODY_SIZE, Response

Connect: TypeAlias = Callable[[str, int], Awaitable[trio.abc.Stream]]
"""Opens a stream to a host and a port, as `trio.open_tcp_stream` does."""

MAX_HEAD: Final = 64 * 1024
"""Bytes of an answer's head, or of its trailers, beyond which no more of it is read."""

MAX_INTERIM: Final = 100
"""How many interim (1xx) answers may come before the final one."""

_PIECE: Final = 16 * 1024
"""Bytes that are read at a time. h11 looks at MAX_HEAD between two reads alone."""

_ROOM: Final = 256 * 1024
"""Bytes that are read without waiting, in one go: a server that sends without end is left behind."""

_TURNS: Final = 10
"""Turns of trio's loop in which a stream without a socket hands over what it has, if anything."""


@dataclass(slots=True)
class Progress:
    """What is known of one request on its way, wherever it ends."""

    sent: bool = False
    """Whether a byte of it can have left."""
    head: h11.Response | None = None
    body: bytearray = field(default_factory=bytearray)

    def response(self) -> Response | None:
        """Give the answer as far as it came, if its head did."""
        if self.head is None:
            return None
        pairs = self.head.headers.raw_items()
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in pairs]
        return Response(self.head.status_code, headers, bytes(self.body))


class _QuietError(Exception):
    """There is nothing to be read now."""


class _Wire(trio.abc.Stream):
    """The stream to the server, below TLS, which can be read without waiting.

    Only a read through TLS tells whether something has come: a session ticket makes the socket
    readable and is nothing, and a record that came with the last answer waits in TLS's buffer
    while the socket is silent.
    """

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._socket = stream.socket if isinstance(stream, trio.SocketStream) else None
        self._room: int | None = None

    def is_readable(self) -> bool:
        """Say whether something has come, or may have."""
        return self._socket is None or self._socket.is_readable()

    @contextmanager
    def probing(self) -> Generator[None]:
        """Raise `_QuietError` where a read would wait."""
        self._room = _ROOM
        try:
            yield
        finally:
            self._room = None

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:  # pragma: no cover - nobody calls it
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        if self._room is None:
            return await self._stream.receive_some(max_bytes)
        if self._room <= 0:
            raise trio.BrokenResourceError("the server sends without end")
        data = await self._receive_now(max_bytes)
        self._room -= len(data)
        return data

    async def _receive_now(self, max_bytes: int | None) -> bytes | bytearray:
        if self._socket is not None:
            if self._socket.is_readable():
                return await self._stream.receive_some(max_bytes)
            raise _QuietError
        # Not with a deadline: a stream may let the loop turn before it looks for what it has, and
        # on a clock that is driven by hand no time passes.
        with trio.CancelScope() as scope:
            _cancel_after(_TURNS, scope)
            return await self._stream.receive_some(max_bytes)
        raise _QuietError

    async def aclose(self) -> None:
        await self._stream.aclose()


def _cancel_after(turns: int, scope: trio.CancelScope) -> None:
    if not turns:
        scope.cancel()
        return
    with suppress(trio.RunFinishedError):  # then the read is over, too
        trio.lowlevel.current_trio_token().run_sync_soon(_cancel_after, turns - 1, scope)


class Connection:
    """A stream to the server, TLS included, and the state of HTTP on it."""

    def __init__(self, wire: _Wire, stream: trio.abc.Stream) -> None:
        self._wire = wire
        self._stream = stream
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)

    async def exchange(self, request: h11.Request, body: bytes, progress: Progress) -> Response:
        """Send a request in one piece and read its answer, as far as MAX_BODY_SIZE.

        Raises whatever h11 and the stream do; ``progress`` holds what is known then.
        """
        http = self._http
        data = http.send(request) + http.send(h11.Data(data=body)) + http.send(h11.EndOfMessage())
        # A cancellation that is already there makes send_all write nothing, so it comes first.
        await trio.lowlevel.checkpoint_if_cancelled()
        progress.sent = True
        try:
            await self._stream.send_all(data)
        except trio.BrokenResourceError:
            # The server may have answered before it hung up: that the request is too large, say.
            http.send_failed()
            with suppress(Exception):
                return await self._receive(progress)
            raise
        try:
            return await self._receive(progress)
        except trio.Cancelled:
            # What has come in by now still counts.
            with trio.CancelScope(shield=True), suppress(Exception), self._wire.probing():
                return await self._receive(progress)
            raise

    async def _receive(self, progress: Progress) -> Response:
        interim = 0
        while len(progress.body) <= MAX_BODY_SIZE:
            match self._http.next_event():
                case h11.Data(data=data):
                    progress.body += data
                case h11.Response() as head:
                    progress.head = head
                case h11.InformationalResponse():
                    interim += 1
                    if interim > MAX_INTERIM:
                        raise h11.RemoteProtocolError(f"more than {MAX_INTERIM} interim answers")
                case h11.EndOfMessage():
                    break
                case _:  # h11 needs more
                    piece = await self._stream.receive_some(_PIECE)
                    if not piece and progress.head is None:  # h11 says this less clearly
                        raise h11.RemoteProtocolError("the server hung up before its answer")
                    self._http.receive_data(bytes(piece))
        answer = progress.response()
        assert answer is not None  # noqa: S101 - h11 gives the head before all else
        return answer

    def renew(self) -> bool:
        """Make ready for another request, and say whether that can be.

        It cannot if either side has said that it will close, if there is more to be sent or read
        of what was, or if bytes came that nobody asked for.
        """
        http = self._http
        if (http.our_state, http.their_state) != (h11.DONE, h11.DONE):
            return False
        if http.trailing_data != (b"", False):
            return False
        http.start_next_cycle()
        return True

    async def quiet(self) -> bool:
        """Say whether nothing has come since the last answer, an end of the stream included."""
        try:
            if self._stream is self._wire and not self._wire.is_readable():
                return True  # without TLS, this says it all
            with self._wire.probing():
                await self._stream.receive_some(1)
        except _QuietError:
            return True
        except Exception:  # noqa: BLE001 - however it is broken, it is not used again
            return False
        return False

    async def close(self) -> None:
        """Close at once; see `close`."""
        await close(self._stream)


async def open_connection(
    connect: Connect, host: str, port: int, ssl_context: ssl.SSLContext | None
) -> Connection:
    """Connect, and agree on TLS if there is a context for it.

    Raises whatever does not let that be; nothing is left open then.
    """
    given = await connect(host, port)
    if not isinstance(given, trio.abc.Stream):  # pyright: ignore[reportUnnecessaryIsInstance]  # callers are not all typed
        raise TypeError(f"connect must give a trio.abc.Stream, not {type(given).__name__}")
    wire = _Wire(given)
    if ssl_context is None:
        return Connection(wire, wire)
    try:
        # Not https_compatible: then an answer that only the end of the stream ends would count as
        # whole wherever it was cut.
        stream = trio.SSLStream(wire, ssl_context, server_hostname=host)
        await stream.do_handshake()
        _check_protocol(stream.selected_alpn_protocol())
    except BaseException:
        await close(wire)
        raise
    return Connection(wire, stream)


def _check_protocol(chosen: str | None) -> None:
    if chosen not in {None, "http/1.1"}:
        raise RuntimeError(f"the ssl_context offers {chosen}, which is not spoken here")


async def close(stream: trio.abc.Stream) -> None:
    """Close a stream without a word to the peer, and without waiting for it.

    Shielded, as a cancellation that comes just now must not take away the answer in hand.
    """
    with trio.CancelScope(shield=True), suppress(Exception):
        await trio.aclose_forcefully(stream)
