"""All uses of private names of aiohttp, each with its reason. No other module uses any.

If a name is missing, its use does nothing, and the problem that it prevents can occur. Then tests
in tests/aiohttp fail. Only `proxy_of` raises. Checked with aiohttp 3.14.4 and 3.14.5:
https://github.com/aio-libs/aiohttp/tree/v3.14.4/aiohttp, client_proto.py, client_reqrep.py and
client.py.
"""

import asyncio
import select
from typing import Any

import aiohttp

from creduse_core.tls import has_unread


class HeldResponse(aiohttp.ClientResponse):
    """A response that keeps its connection until it is released or closed.

    aiohttp gives the connection to the next request as soon as a response ends. Only after that can
    the adapter check whether the response belongs to its request. Without the private name, the
    adapter aborts a connection that must not be reused, and a request that uses it meanwhile fails.
    """

    def _response_eof(self) -> None:
        """Do nothing at the end of the body."""


def is_usable(transport: asyncio.BaseTransport) -> bool:
    """Return whether a connection is open and holds no unrequested bytes.

    aiohttp would read those bytes as the next response. Its compiled parser knows whether a
    response has begun. The parser in Python, which replaces it, shows that only by its lines.
    """
    # asyncio's TLS transport raises in get_extra_info if it has been closed twice.
    if transport.is_closing():
        return False
    ssl_object = transport.get_extra_info("ssl_object")
    # Part of a record has not reached the parser. Only the TLS object can show it.
    if ssl_object is not None and (has_unread(ssl_object) or _has_part_of_proxy_record(transport)):
        return False
    protocol: Any = transport.get_protocol()
    parser = getattr(protocol, "_parser", None)
    return not protocol.should_close and (
        parser is None or not (parser.feed_eof() or getattr(parser, "_lines", None))
    )


def _has_part_of_proxy_record(transport: asyncio.BaseTransport) -> bool:
    """Return whether the TLS of a proxy below a connection's own TLS holds part of a record.

    asyncio has no public name for what is below TLS:
    https://github.com/python/cpython/blob/v3.13.0/Lib/asyncio/sslproto.py#L298. Without the private
    names, as on uvloop, return ``False``.
    """
    below = getattr(getattr(transport, "_ssl_protocol", None), "_transport", None)
    proxy = None if below is None else below.get_extra_info("ssl_object")
    return bool(getattr(proxy, "has_part", False))


def prepare_for_reuse(transport: asyncio.WriteTransport) -> bool:
    """Return whether a connection can serve another request. Until then, reject incoming bytes.

    Any bytes abort the connection. Otherwise part of a response's head would be lost, since each
    request gets a new parser.
    """
    if not is_usable(transport):
        return False
    protocol: Any = transport.get_protocol()
    protocol._parser = _RejectingParser(transport)  # noqa: SLF001  # see the docstring
    return True


class _RejectingParser:
    """A parser that takes any incoming bytes as an error."""

    def __init__(self, transport: asyncio.WriteTransport) -> None:
        self._transport = transport

    def feed_data(self, data: bytes) -> None:
        self._transport.abort()
        raise ConnectionResetError(f"the server sent {len(data)} unrequested bytes")

    def feed_eof(self) -> None:
        """Accept that the connection is closed."""


def is_readable(transport: asyncio.BaseTransport) -> bool:
    """Return whether the socket has something to read, which can be its end."""
    sock = transport.get_extra_info("socket")
    if not hasattr(select, "poll"):  # as on Windows, where select takes sockets of any number
        return bool(select.select([sock], [], [], 0)[0])
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))


def set_tls_shutdown_timeout(connector: aiohttp.TCPConnector) -> None:
    """Abort a TLS connection if its peer does not end TLS within a second of its close.

    asyncio waits for 30 seconds, and holds the socket and its buffers. aiohttp's public argument
    for this is deprecated.
    """
    connector._ssl_shutdown_timeout = 1.0  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # see the docstring


def proxy_of(session: aiohttp.ClientSession) -> tuple[Any, Any]:
    """Return the URL of a session's proxy, or ``None``, and the login for it.

    Raise if the names are missing, since a connection without the proxy would be wrong.
    """
    return (
        session._default_proxy,  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # see the docstring
        session._default_proxy_auth,  # noqa: SLF001  # pyright: ignore[reportPrivateUsage, reportUnknownMemberType]  # see the docstring
    )
