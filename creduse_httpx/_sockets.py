"""What is asked of a connection below HTTP, and done to it, whoever has opened it.

Both for clients of our own and for supplied ones. When that is done is theirs to say.
"""

import errno
import socket
import ssl
from typing import Any, Final

import httpcore

from creduse_core import is_loopback
from creduse_core.tls import length_of_records

from ._foreign import NETWORK

SHORTEST: Final = 0.001
"""Seconds. A socket takes a timeout of 0 to mean that it should not wait, and says so oddly."""

_PEEK: Final = 64 * 1024
"""Bytes. Session tickets are shorter."""

UNASKED: Final = "the server had sent what nobody had asked for"


def has_record(stream: Any) -> bool:
    """Return whether TLS holds bytes of a stream that nobody has read."""
    ssl_object = None if stream is None else stream.get_extra_info("ssl_object")
    if ssl_object is None:
        return False
    if not isinstance(ssl_object, ssl.SSLObject):  # a socket's own
        return bool(ssl_object.pending())
    try:
        ssl_object.read(1)
    except ssl.SSLError as error:
        return not isinstance(error, ssl.SSLWantReadError)
    return True


def has_unread(stream: Any, *, new: bool = True) -> bool:
    """Return whether something has come on a stream: a response before its request, say.

    Before the first request over TLS that is for `read_ticket` to find on the socket: a ticket may
    come at any moment.
    """
    if not (new and stream.get_extra_info("ssl_object")) and stream.get_extra_info("is_readable"):
        return True
    return has_record(stream)


def read_ticket(stream: Any) -> None:
    """Read what makes the socket of a new TLS stream readable.

    Raises:
        ConnectionResetError: It is more than a session ticket, or part of a record.
    """
    sock = stream.get_extra_info("socket")
    # A read through TLS would take a part off it. An SSLSocket's own method knows no flags.
    begun = b"" if sock is None else socket.socket.recv(sock, _PEEK, socket.MSG_PEEK)
    if length_of_records(begun) < len(begun):
        raise ConnectionResetError(UNASKED)
    try:
        with NETWORK:
            stream.read(1, SHORTEST)
    except Exception as error:  # noqa: BLE001 - it may be raised again
        _raise_unless_over(error)
    else:
        raise ConnectionResetError(UNASKED)


async def read_ticket_async(stream: Any) -> None:
    """Do the same on an event loop, which may be so busy that nothing is read.

    A part of a record is for `creduse_core.tls.WholeRecords` to tell.
    """
    try:
        await stream.read(1, SHORTEST)
    except Exception as error:  # noqa: BLE001 - it may be raised again
        _raise_unless_over(error)
    else:
        raise ConnectionResetError(UNASKED)


def _raise_unless_over(error: Exception) -> None:
    if type(error).__name__ != "ReadTimeout":  # of httpcore's, or httpcore2's
        raise error


def check_loopback(stream: Any) -> None:
    """Raise unless a stream leads to this machine: a name such as ``localhost`` may mislead.

    Raises:
        httpcore.ConnectError: It leads nowhere any more.
        httpcore.LocalProtocolError: It leads elsewhere.
    """
    try:
        address = stream.get_extra_info("server_addr")
    except OSError as error:
        if error.errno != errno.ENOTCONN:  # a signal handler's
            raise
        address = None
    if address is None:
        raise httpcore.ConnectError("the connection was reset as soon as it was made")
    host = str(address[0])
    if not is_loopback(host):
        raise httpcore.LocalProtocolError(
            f"the host of base_url is at {host}, which is not this machine, and over plain http "
            "anyone on the way can read the API key; pass allow_http=True to send it all the same"
        )


def shut_down(sock: Any) -> None:
    """Shut a socket down, of whatever kind, so that nothing is read or written on it any more.

    Not by its own method: an SSLSocket forgets TLS first, and uvloop's has none. Nor through a
    second descriptor, of which there may be no more.
    """
    if sock is None or sock.fileno() < 0:  # it is closed already
        return
    twin = socket.socket(sock.family, sock.type, fileno=sock.fileno())
    try:
        twin.shutdown(socket.SHUT_RDWR)
    finally:
        twin.detach()
