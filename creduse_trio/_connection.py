"""One HTTP/1.1 connection: h11 over a wire, and what comes of one request on it.

Which connection a request gets, and what a failure means, is not decided here.
"""

from dataclasses import dataclass, field
from typing import Final

import h11
import trio

from creduse_core import MAX_BODY_SIZE, Response

from ._wire import Read, Wire

MAX_HEAD: Final = 64 * 1024
"""Bytes of a response's head, or of its trailers, beyond which no more of it is read. h11 looks at
it between two reads alone."""

MAX_INTERIM: Final = 100
"""How many interim (1xx) responses may come before the final one."""


class Head:
    """A request's head as h11 takes it. It holds the API key, which its ``repr`` hides."""

    __slots__ = ("request",)

    def __init__(self, request: h11.Request) -> None:
        self.request = request


@dataclass(slots=True, repr=False)
class Progress:
    """What is known of one request, wherever it ends. Its ``repr`` hides what the server said."""

    connecting: bool = False
    """Whether the caller's `connect` is running, so that every exception is its own."""
    sent: bool = False
    """Whether a byte of it can have left."""
    head: h11.Response | None = None
    body: bytearray = field(default_factory=bytearray)

    def response(self) -> Response | None:
        """Return the response as far as it came, if its head did."""
        if self.head is None:
            return None
        headers = self.head.headers.raw_items()
        return Response.from_raw(self.head.status_code, headers, bytes(self.body))


class Connection:
    """A wire to the server, and the state of HTTP on it."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)

    async def exchange(self, head: Head, body: bytes, progress: Progress) -> Response:
        """Send a request in one piece and return its response, as far as MAX_BODY_SIZE.

        Raises whatever h11 and the wire do; ``progress`` holds what is known then.
        """
        http = self._http
        data = http.send(head.request) + http.send(h11.Data(data=body))
        sealed = self.wire.sealed(data + http.send(h11.EndOfMessage()))
        # A cancellation that is already there makes `send` write nothing, so it comes first.
        await trio.lowlevel.checkpoint_if_cancelled()
        progress.sent = True
        try:
            await self.wire.send(sealed)
        except trio.BrokenResourceError:
            # The server may have said why before it hung up: that the request is too large, say.
            http.send_failed()
        try:
            return await self._receive(self.wire.read, progress)
        except trio.Cancelled:
            # What has come in by now still counts.
            with trio.CancelScope(shield=True), self.wire.ignoring_errors():
                return await self._receive(self.wire.reader(), progress)
            raise

    async def _receive(self, read: Read, progress: Progress) -> Response:
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
                        raise h11.RemoteProtocolError(f"more than {MAX_INTERIM} interim responses")
                case h11.EndOfMessage():
                    break
                case _:  # h11 needs more
                    piece = await read()
                    if not piece and progress.head is None:  # h11 says this less clearly
                        raise h11.RemoteProtocolError("the server hung up before its response")
                    self._http.receive_data(bytes(piece))
        response = progress.response()
        assert response is not None  # noqa: S101 - h11 returns the head before all else
        return response

    def renew(self) -> bool:
        """Make ready for another request, and return whether that can be.

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
