"""What is asked of a connection below HTTP, and done to it, whoever has opened it.

Both for clients of our own and for supplied ones. When that is done is theirs to say.
"""

import errno
import socket
import ssl
from collections.abc import Callable
from typing import Any, Final

import httpcore

from creduse_core import is_loopback

SHORTEST: Final = 0.001
"""Seconds. A socket takes a timeout of 0 to mean that it should not wait, and says so oddly."""

UNASKED: Final = "the server had sent what nobody had asked for"


def has_record(stream: Any) -> bool:
    """Return whether TLS holds bytes of a stream that nobody has read."""
    ssl_object = None if stream is None else stream.get_extra_info("ssl_object")
    if ssl_object is None:
        return False
    if not isinstance(ssl_object, ssl.SSLObject):  # a socket's own
        return bool(ssl_object.pending())
    return _says_something(ssl_object.read)


def has_unread(stream: Any, *, new: bool = True) -> bool:
    """Return whether something has come on a stream: a response before its request, say."""
    secure = stream.get_extra_info("ssl_object")
    if not (new and secure is not None):
        # Before a read through TLS, which may take half of a record off the socket.
        return bool(stream.get_extra_info("is_readable")) or has_record(stream)
    # The socket of a new connection may show a session ticket.
    sock = stream.get_extra_info("socket")
    # Within a proxy's TLS, the proxy's socket would show the ticket as something said.
    if isinstance(sock, ssl.SSLSocket) and not isinstance(secure, ssl.SSLObject):
        sock.settimeout(0.0)  # each step sets it anew
        return _says_something(sock.recv)
    return has_record(stream)


async def read_tickets(stream: Any) -> None:
    """Read what makes the socket of a new TLS stream readable, on an event loop.

    Again where it still is: a busy loop may not have come to read anything.

    Raises:
        ConnectionResetError: It is more than session tickets.
    """
    try:
        await stream.read(1, SHORTEST)
    except Exception as error:
        if type(error).__name__ != "ReadTimeout":  # of httpcore's, or httpcore2's
            raise
    else:
        raise ConnectionResetError(UNASKED)


def _says_something(read: Callable[[int], object]) -> bool:
    try:
        read(1)
    except ssl.SSLWantReadError:
        return False
    except (ssl.SSLError, ConnectionError):  # but no alarm's TimeoutError
        pass
    return True


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
