"""What is asked of a connection below HTTP, and done to it, whoever has opened it.

Both for clients of our own and for supplied ones. When that is done is theirs to say.
"""

import socket
import ssl
from typing import Any, Final

import httpcore

from creduse_core import is_loopback

SHORTEST: Final = 0.001
"""Seconds. A socket takes a timeout of 0 to mean that it should not wait, and says so oddly."""


def has_record(stream: Any) -> bool:
    """Return whether bytes of a TLS stream are there that nobody has read.

    On the event loops, whether TLS has them in its buffer; on a socket of its own, whether they have
    come. A session ticket is none.
    """
    ssl_object = None if stream is None else stream.get_extra_info("ssl_object")
    if ssl_object is None:
        return False
    sock = stream.get_extra_info("socket")
    try:
        if isinstance(sock, ssl.SSLSocket):
            sock.settimeout(0.0)  # each step sets it anew
            sock.recv(1)
        else:
            ssl_object.read(1)
    except ssl.SSLWantReadError:
        return False
    except OSError:
        pass
    return True


def check_loopback(stream: Any) -> None:
    """Raise unless a stream leads to this machine: a name such as ``localhost`` may mislead.

    Raises:
        httpcore.LocalProtocolError: It leads elsewhere.
    """
    try:
        address = stream.get_extra_info("server_addr")
    except OSError as error:  # it has been reset meanwhile
        raise httpcore.ConnectError(error) from error
    host = str(address[0]) if isinstance(address, tuple) else str(address)
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
