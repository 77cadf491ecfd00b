"""Checks and operations on a connection below HTTP, for own connections and supplied clients.

When the adapter runs them does not belong here.
"""

import errno
import socket
import ssl
from typing import Any, Final

import httpcore

from creduse_core import is_loopback
from creduse_core.error_texts import not_loopback_message
from creduse_core.tls import has_unread, length_of_records

from ._foreign import RAISE_FOREIGN
from ._httpcore import has_part_of_record, has_read_ahead

MIN_TIMEOUT: Final = 0.001
"""Seconds. A socket takes a timeout of 0 as a request not to wait at all."""

_PEEK_SIZE: Final = 64 * 1024
"""Bytes. Session tickets are shorter."""

UNREQUESTED_DATA: Final = "the server had sent data before the request"


def has_unread_tls_data(stream: Any) -> bool:
    """Return whether a stream's TLS object holds unread bytes."""
    ssl_object = None if stream is None else stream.get_extra_info("ssl_object")
    if ssl_object is None:
        return False
    if not isinstance(ssl_object, ssl.SSLObject):  # an SSLSocket
        return bool(ssl_object.pending())
    return has_unread(ssl_object)


def has_unread_data(stream: Any, *, new: bool = True) -> bool:
    """Return whether unread bytes have arrived on a stream, such as a response before its request.

    On a ``new`` TLS connection, a session ticket can make the socket readable. `read_ticket` reads
    it, so this function checks only what has been read from the socket then.
    """
    if new and stream.get_extra_info("ssl_object"):
        if has_part_of_record(stream) or has_read_ahead(stream):
            return True
    elif is_readable(stream):
        return True
    return has_unread_tls_data(stream)


def is_readable(stream: Any) -> bool:
    """Return whether bytes have arrived below a stream's TLS, also where the event loop has them."""
    return bool(stream.get_extra_info("is_readable")) or has_read_ahead(stream)


def read_ticket(stream: Any) -> None:
    """Read the session ticket that makes the socket of a new TLS stream readable.

    Raises:
        ConnectionResetError: The bytes are more than a session ticket, or part of a record.
    """
    sock = stream.get_extra_info("socket")
    # A read through TLS would remove part of a record. SSLSocket.recv accepts no flags.
    begun = b"" if sock is None else socket.socket.recv(sock, _PEEK_SIZE, socket.MSG_PEEK)
    if length_of_records(begun) < len(begun):
        raise ConnectionResetError(UNREQUESTED_DATA)
    try:
        with RAISE_FOREIGN:
            # Without waiting: of a record that arrives meanwhile, TLS would remove the first part.
            stream.read(1, 0.0)
    except Exception as error:
        if not isinstance(error.__cause__, ssl.SSLWantReadError):
            raise
    else:
        raise ConnectionResetError(UNREQUESTED_DATA)


async def read_ticket_async(stream: Any) -> None:
    """Do the same on an event loop. A busy loop can read nothing in this time.

    `creduse_core.tls.WholeRecords` detects a part of a record.
    """
    try:
        await stream.read(1, MIN_TIMEOUT)
    except Exception as error:
        if type(error).__name__ != "ReadTimeout":  # httpcore's or httpcore2's
            raise
    else:
        raise ConnectionResetError(UNREQUESTED_DATA)


def check_loopback(stream: Any) -> None:
    """Raise if a stream's peer is not this machine. A name such as ``localhost`` can be misleading.

    Raises:
        httpcore.ConnectError: The stream is not connected any more.
        httpcore.LocalProtocolError: The peer is another machine.
    """
    try:
        address = stream.get_extra_info("server_addr")
    except OSError as error:
        if error.errno != errno.ENOTCONN:  # a signal handler raised it
            raise
        address = None
    if address is None:
        raise httpcore.ConnectError("the server reset the connection as soon as it was open")
    host = str(address[0])
    if not is_loopback(host):
        raise httpcore.LocalProtocolError(not_loopback_message("the host of base_url", host))


def shut_down(sock: Any) -> None:
    """Shut down a socket of any kind, so that nothing can read or write on it.

    The socket's own method is not used: an SSLSocket drops TLS first, and uvloop's sockets have
    none. A second descriptor is not used either, since the process can be at its limit of them.
    """
    if sock is None or sock.fileno() < 0:  # already closed
        return
    twin = socket.socket(sock.family, sock.type, fileno=sock.fileno())
    try:
        twin.shutdown(socket.SHUT_RDWR)
    finally:
        twin.detach()
