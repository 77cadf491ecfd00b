"""What reaches below the public API of aiohttp: nothing else does.

Each use has its reason. Where aiohttp no longer has a name, that use does nothing, and what it
prevents becomes a limit; tests/aiohttp fails then. Only without a session's proxy it goes no further.
Checked with aiohttp 3.14.4 and 3.14.5: https://github.com/aio-libs/aiohttp/tree/v3.14.4/aiohttp,
client_proto.py, client_reqrep.py and client.py.
"""

import asyncio
import select
from typing import Any

import aiohttp


class HeldResponse(aiohttp.ClientResponse):
    """A response that keeps its connection until it is released or closed.

    aiohttp gives a connection to the next request as soon as a response ends, and only then can
    anybody see whether that response belongs to the request. Without the name, too, a connection
    that must go is aborted; a request that has got hold of it meanwhile goes with it.
    """

    def _response_eof(self) -> None:
        """Do nothing at the end of the body."""


def is_usable(transport: asyncio.BaseTransport) -> bool:
    """Return whether a connection is there, and holds no bytes that no request has asked for.

    aiohttp takes those for the next response. Its parser says whether a response has begun; the one
    in Python, which stands in for the compiled one, only by its lines.
    """
    if transport.is_closing() or getattr(transport.get_extra_info("ssl_object"), "has_part", False):
        return False
    protocol: Any = transport.get_protocol()
    parser = getattr(protocol, "_parser", None)
    return not protocol.should_close and (
        parser is None or not (parser.feed_eof() or getattr(parser, "_lines", None))
    )


def leave_idle(transport: asyncio.WriteTransport) -> bool:
    """Return whether a connection is fit for another request; until it gets that, expect nothing.

    It is lost as soon as anything comes in. Else half of a head would be lost with the parser,
    which each request has anew.
    """
    if not is_usable(transport):
        return False
    protocol: Any = transport.get_protocol()
    protocol._parser = _NoParser(transport)  # noqa: SLF001  # see above
    return True


class _NoParser:
    """A parser to which whatever comes in is an error."""

    def __init__(self, transport: asyncio.WriteTransport) -> None:
        self._transport = transport

    def feed_data(self, data: bytes) -> None:
        self._transport.abort()
        raise ConnectionResetError(f"{len(data)} bytes came in that no request had asked for")

    def feed_eof(self) -> None:
        """Accept that the connection is closed."""


def is_readable(transport: asyncio.BaseTransport) -> bool:
    """Return whether the socket has something to read, be it the end."""
    poll = select.poll()
    poll.register(transport.get_extra_info("socket"), select.POLLIN)
    return bool(poll.poll(0))


def close_soon(connector: aiohttp.TCPConnector) -> None:
    """Have a connection over TLS closed for good when its peer does not join in within a second.

    asyncio waits for 30, with the socket and its buffers, also where nobody has it any more: after
    a cancellation in a handshake, say. aiohttp's argument for it is deprecated.
    """
    connector._ssl_shutdown_timeout = 1.0  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # see above


def proxy_of(session: aiohttp.ClientSession) -> tuple[Any, Any]:
    """Return the URL of the proxy that a session was made with, or ``None``, and the login for it.

    To connect without it would be wrong, so this raises where the names are gone.
    """
    return (
        session._default_proxy,  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # see above
        session._default_proxy_auth,  # noqa: SLF001  # pyright: ignore[reportPrivateUsage, reportUnknownMemberType]  # as above
    )
