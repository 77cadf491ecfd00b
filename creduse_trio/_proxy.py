"""Connections through an HTTP proxy: its TLS, and the tunnel for an https server.

Which proxy is used (`creduse_core.environment`), and requests on the connection, do not belong here.
"""

import ssl
from base64 import b64encode
from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias
from urllib.parse import unquote_to_bytes, urlsplit

import h11
import trio

from creduse_core import Proxy, Secret, may_ask_proxy_again
from creduse_core.tls import client_context

from ._wire import Wire, add_tls

Connect: TypeAlias = Callable[[str, int], Awaitable[trio.abc.Stream]]
"""Opens a stream to a host and a port, as `trio.open_tcp_stream` does."""

_PORTS: Final = {"http": 80, "https": 443}
_MAX_HEAD_SIZE: Final = 64 * 1024
_MAX_QUOTED: Final = 100
"""Bytes of a proxy's reason phrase in an error. A traceback prints them."""


class ProxyError(OSError):
    """The proxy made no tunnel. Nothing was sent to the server."""

    def __init__(self, why: str, *, transient: bool = True) -> None:
        super().__init__(why)
        self.transient = transient
        """Whether a retry can help."""


class HttpProxy:
    """An HTTP proxy, spoken to over TCP or TLS."""

    def __init__(self, proxy: Proxy, ssl_context: ssl.SSLContext | None) -> None:
        """Read the proxy's URL. ``ssl_context``: for an https proxy, by default the system's.

        Raises:
            ValueError: It is neither http nor https.
        """
        scheme = proxy.shown.partition(":")[0]
        if scheme not in _PORTS:
            raise ValueError(
                f"the proxy must be an http or https URL, not {scheme}; for SOCKS, pass connect="
            )
        parts = urlsplit(proxy.shown)
        self.address = (parts.hostname or "", parts.port or _PORTS[scheme])
        self._login = _login_of(proxy.url)
        # Made here, since it takes longer than some timeouts.
        self._ssl_context = (ssl_context or client_context()) if scheme == "https" else None

    def credentials(self) -> list[tuple[str, str]]:
        """Return the header field for the proxy, if its URL has a user name."""
        return [] if self._login is None else [("Proxy-Authorization", self._login.reveal())]

    async def open(self, wire: Wire, target: tuple[str, int] | None) -> Wire:
        """Return a wire to a server, or one on which the proxy accepts requests for it.

        - ``wire``: is connected to the proxy. It is closed on failure.
        - ``target``: a host and a port to make a tunnel to, or ``None`` for no tunnel.
        """
        if self._ssl_context is not None:
            wire = await add_tls(wire, self._ssl_context, self.address[0])
        if target is not None:
            try:
                await self._make_tunnel(wire, *target)
            except BaseException:
                await wire.close()
                raise
        return wire

    async def _make_tunnel(self, wire: Wire, host: str, port: int) -> None:
        authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_HEAD_SIZE)
        request = h11.Request(
            method="CONNECT",
            target=authority,
            headers=[("Host", authority), *self.credentials()],
        )
        await wire.send(wire.encrypt(http.send(request) + http.send(h11.EndOfMessage())))
        while True:
            event = http.next_event()
            if event is h11.NEED_DATA:
                received = await wire.read()
                if not received:
                    raise ProxyError("the proxy closed the connection")
                http.receive_data(bytes(received))
            elif isinstance(event, h11.Response):
                break
        if not 200 <= event.status_code < 300:
            status = event.status_code
            reason = event.reason[:_MAX_QUOTED].decode("ascii", "backslashreplace")
            raise ProxyError(
                f"the proxy responded {status} {' '.join(reason.split())}".strip(),
                transient=may_ask_proxy_again(status),
            )
        if http.trailing_data[0]:
            raise ProxyError("the proxy sent data before the request")


def _login_of(url: Secret) -> Secret | None:
    """Return the value of ``Proxy-Authorization`` (RFC 7617), if the URL has a user name."""
    login, at, _ = urlsplit(url.reveal()).netloc.rpartition("@")
    if not at:
        return None
    user, _, password = login.partition(":")
    text = unquote_to_bytes(user) + b":" + unquote_to_bytes(password)
    return Secret(f"Basic {b64encode(text).decode('ascii')}")
