"""One HTTP/1.1 exchange on a `Wire`: a request, its response, and what is known meanwhile.

Which connection a request gets, and what a failure means, do not belong here.
"""

from dataclasses import dataclass, field
from typing import Final

import h11
import trio

from creduse_core import MAX_BODY_SIZE, Response
from creduse_core.secret import no_pickle

from ._plain import Head, read_plain
from ._wire import Read, Wire

MAX_HEAD_SIZE: Final = 64 * 1024
"""Bytes of a response's head, or of its trailers, after which no more is read. h11 checks the size
only between two reads."""

MAX_INTERIM: Final = 100
"""The most interim (1xx) responses before the final one."""


_ANY_REQUEST: Final = h11.Request(method="POST", target="/", headers=[("Host", "")])
"""h11 reads the responses to all our requests like those to this one. It reads others differently only
after HEAD, CONNECT, HTTP/1.0, and requests with Connection, Expect or Upgrade."""


class RequestHead:
    """A request's head, as h11 checks and writes it. Its ``repr`` hides the API key."""

    __slots__ = ("data",)

    def __init__(self, request: h11.Request) -> None:
        self.data = h11.Connection(h11.CLIENT).send(request)

    __reduce__ = no_pickle


@dataclass(slots=True, repr=False)
class Progress:
    """What is known about one request at each moment. Its ``repr`` hides the server's data."""

    connecting: bool = False
    """Whether the caller's `connect` runs. All exceptions are then its own."""
    sent: bool = False
    """Whether a byte of the request can have left."""
    missing: str = "no connection was available"
    """What has not happened yet."""
    http: h11.Connection | None = None
    """What reads the response, unless it is plain."""
    head: Head | None = None
    body: bytearray = field(default_factory=bytearray)

    def response(self) -> Response | None:
        """Return the response as far as it has arrived, or ``None`` without a head."""
        if self.head is None:
            return None
        return Response.from_raw(*self.head, bytes(self.body))

    def allows_reuse(self) -> bool:
        """Return whether the connection can be used again after the response.

        It cannot if one side wants to close, if a message is not complete, or if unrequested bytes
        have arrived.
        """
        http = self.http
        return http is None or (
            (http.our_state, http.their_state) == (h11.DONE, h11.DONE)
            and http.trailing_data == (b"", False)
        )


async def exchange(wire: Wire, head: RequestHead, body: bytes, progress: Progress) -> Response:
    """Send a request and return its response. Stop reading once the body is too large.

    This raises the exceptions of h11 and of the wire. ``progress`` then holds what is known.
    """
    encrypted = wire.encrypt(head.data + body)
    # If the caller is cancelled already, nothing is written, and ``sent`` must stay false.
    await trio.lowlevel.checkpoint_if_cancelled()
    progress.sent = True
    progress.missing = "no whole response arrived"
    try:
        await wire.send(encrypted)
    except trio.BrokenResourceError:
        # The server can have sent a response before it closed: 413, for example.
        progress.http = _after_request()
        progress.http.send_failed()
    del encrypted  # it can hold the API key
    try:
        return await _receive(wire.read, progress)
    except trio.Cancelled:
        # A response that has arrived by now still counts.
        with trio.CancelScope(shield=True), wire.ignoring_errors():
            return await _receive(wire.nonblocking_reader(), progress)
        raise


async def _receive(read: Read, progress: Progress) -> Response:
    if progress.http is None:
        received = _checked(await read(), progress)
        plain = read_plain(received)
        if plain is None:
            progress.http = _after_request()
            progress.http.receive_data(received)
        else:
            progress.head, body = plain
            progress.body += body
    if progress.http is not None:
        await _receive_with_h11(progress.http, read, progress)
    response = progress.response()
    assert response is not None  # noqa: S101 - both ways of reading end after the head
    return response


async def _receive_with_h11(http: h11.Connection, read: Read, progress: Progress) -> None:
    interim = 0
    while len(progress.body) <= MAX_BODY_SIZE:
        match http.next_event():
            case h11.Data(data=data):
                progress.body += data
            case h11.Response() as head:
                progress.head = head.status_code, head.headers.raw_items()
            case h11.InformationalResponse():
                interim += 1
                if interim > MAX_INTERIM:
                    raise h11.RemoteProtocolError(f"more than {MAX_INTERIM} interim responses")
            case h11.EndOfMessage():
                break
            case _:  # h11 needs more data
                http.receive_data(_checked(await read(), progress))


def _checked(received: bytes | bytearray, progress: Progress) -> bytes:
    if not received and progress.head is None:  # h11's own message is less clear
        raise h11.RemoteProtocolError("the server closed the connection before its response")
    return bytes(received)


def _after_request() -> h11.Connection:
    """Return h11's state after a request, in which it reads the response."""
    http = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD_SIZE)
    http.send(_ANY_REQUEST)
    http.send(h11.EndOfMessage())
    return http
