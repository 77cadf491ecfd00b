"""One HTTP/1.1 connection: h11 over a `Wire`, and the progress of one request on it.

Which connection a request gets, and what a failure means, do not belong here.
"""

from dataclasses import dataclass, field
from typing import Final

import h11
import trio

from creduse_core import MAX_BODY_SIZE, Response

from ._wire import Read, Wire

MAX_HEAD_SIZE: Final = 64 * 1024
"""Bytes of a response's head, or of its trailers, after which no more is read. h11 checks the size
only between two reads."""

MAX_INTERIM: Final = 100
"""The most interim (1xx) responses before the final one."""


class RequestHead:
    """A request's head for h11. Its ``repr`` hides the API key."""

    __slots__ = ("request",)

    def __init__(self, request: h11.Request) -> None:
        self.request = request


@dataclass(slots=True, repr=False)
class Progress:
    """What is known about one request at each moment. Its ``repr`` hides the server's data."""

    connecting: bool = False
    """Whether the caller's `connect` runs. All exceptions are then its own."""
    sent: bool = False
    """Whether a byte of the request can have left."""
    head: h11.Response | None = None
    body: bytearray = field(default_factory=bytearray)

    def response(self) -> Response | None:
        """Return the response as far as it has arrived, or ``None`` without a head."""
        if self.head is None:
            return None
        headers = self.head.headers.raw_items()
        return Response.from_raw(self.head.status_code, headers, bytes(self.body))


class Connection:
    """A wire to the server, and the state of HTTP on it."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD_SIZE)

    async def exchange(self, head: RequestHead, body: bytes, progress: Progress) -> Response:
        """Send a request and return its response. Stop reading once the body is too large.

        This raises the exceptions of h11 and of the wire. ``progress`` then holds what is known.
        """
        http = self._http
        data = http.send(head.request) + http.send(h11.Data(data=body))
        encrypted = self.wire.encrypt(data + http.send(h11.EndOfMessage()))
        # If the caller is cancelled already, nothing is written, and ``sent`` must stay false.
        await trio.lowlevel.checkpoint_if_cancelled()
        progress.sent = True
        try:
            await self.wire.send(encrypted)
        except trio.BrokenResourceError:
            # The server can have sent a response before it closed: 413, for example.
            http.send_failed()
        try:
            return await self._receive(self.wire.read, progress)
        except trio.Cancelled:
            # A response that has arrived by now still counts.
            with trio.CancelScope(shield=True), self.wire.ignoring_errors():
                return await self._receive(self.wire.nonblocking_reader(), progress)
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
                case _:  # h11 needs more data
                    received = await read()
                    if not received and progress.head is None:  # h11's own message is less clear
                        raise h11.RemoteProtocolError(
                            "the server closed the connection before its response"
                        )
                    self._http.receive_data(bytes(received))
        response = progress.response()
        assert response is not None  # noqa: S101 - h11 returns the head first
        return response

    def prepare_for_reuse(self) -> bool:
        """Prepare for another request, and return whether that is possible.

        It is not possible if one side wants to close, if a message is not complete, or if
        unrequested bytes have arrived.
        """
        http = self._http
        if (http.our_state, http.their_state) != (h11.DONE, h11.DONE):
            return False
        if http.trailing_data != (b"", False):
            return False
        http.start_next_cycle()
        return True
