"""A transport over urllib3, with its connection pools.

    CoreClient(CreduseProtocol("your-api-key"), Urllib3Transport())

Limits:

- A timeout applies to each read, so nothing bounds a head that arrives byte by byte.
- Name lookup has no timeout. Each address of a host, and the TLS handshake, gets the
  whole time to connect again.
- http.client takes an interim response other than 100, such as 103, for the final one. The outcome
  is then UNKNOWN.
- Bytes after a response are dropped unseen, and the connection is reused.
- No proxies, not even those of the environment.

For `creduse_sandbox.conformance`, its limits are ``TIME``, ``INTERIM``, ``SURPLUS``, ``CLOSE`` and
``SIGNAL``.
"""

import time
from typing import Any

import urllib3
import urllib3.connection

from creduse_core import (
    MAX_BODY_SIZE,
    CoreClient,
    CreduseProtocol,
    Delivery,
    Failure,
    Response,
    Send,
    forget_frames,
)
from creduse_core.tls import is_certificate_error
from creduse_sandbox import SandboxServer


class Urllib3Transport:
    """Sends over urllib3; see `creduse_core.Transport`. Threads can share it.

    ``settings`` are the arguments of a `urllib3.PoolManager`: ``ssl_context``, ``maxsize`` and so on.
    """

    def __init__(self, **settings: Any) -> None:
        self._pools = urllib3.PoolManager(**settings)
        self._pools.pool_classes_by_scheme = _POOLS
        self._closed = False

    def send(self, send: Send) -> Response | Failure:
        ours, body = send.request, _Body(send.request.body)
        body.deadline = send.deadline
        timeout = urllib3.Timeout(
            connect=max(send.connect_by - self.now(), 0.001),
            total=max(send.deadline - self.now(), 0.001),
        )
        head, read = None, bytearray()
        try:
            if self._closed:  # urllib3 would open new pools
                raise RuntimeError("the transport is closed")
            head = self._pools.urlopen(
                ours.method,
                ours.url,
                body=body,
                headers=dict(ours.headers),
                timeout=timeout,
                retries=False,
                redirect=False,
                preload_content=False,
                decode_content=False,
            )
            try:
                while len(read) <= MAX_BODY_SIZE and (piece := head.read1(65536)):
                    read += piece
                    if head.length_remaining != 0 and self.now() >= body.deadline:
                        raise TimeoutError("no whole response arrived in time")
            finally:  # returns the connection to the pool if all was read; closes it if not
                head.close()
                head.release_conn()
        except Exception as error:
            forget_frames(error)  # they hold the API key
            return Failure(
                Delivery.MAYBE_SENT if body.sent else Delivery.NOT_SENT,
                error,
                transient=_is_transient(error),
                timed_out=self.now() >= (body.deadline if body.sent else send.connect_by),
                response=None
                if head is None
                else Response(head.status, head.headers.items(), bytes(read)),
            )
        response = Response(head.status, head.headers.items(), bytes(read))
        if send.allows_reuse(response):
            body.trusted_until = self.now() + 3  # servers close idle connections after 5 or more
        return response

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def now(self) -> float:
        return time.monotonic()

    def close(self) -> None:
        self._closed = True
        pools = self._pools.pools
        for key in pools.keys():  # noqa: SIM118 - the container itself is not iterable
            pools[key].close()  # clear() leaves that to the garbage collector
        self._pools.clear()


def _is_transient(error: Exception) -> bool:
    """Return whether a retry could help, by the exception.

    - ``ValueError``: no. The URL cannot be used, and the next attempt has the same one.
    - ``RuntimeError``: no. The transport is closed, and stays so.
    - One about the certificate: no. The next connection gets the same certificate.
    - Any other, such as urllib3's ``HTTPError`` and ``OSError``: yes. A name is not found for a
      while, a connection breaks, a response is cut off. The client retries a write only if nothing
      was sent.
    """
    return not isinstance(error, ValueError | RuntimeError) and not is_certificate_error(error)


class _Body(bytes):
    """The body of a request. urllib3 passes it on unchanged, so it can carry our notes."""

    deadline = 0.0
    sent = False
    trusted_until = 0.0
    """The time until which its connection may be reused."""


class _Connection(urllib3.connection.HTTPConnection):
    _body = _Body()

    def request(self, method: str, url: str, body: Any = None, *args: Any, **options: Any) -> None:
        if self.sock is None:  # over TLS, urllib3 has connected it already
            self.connect()
        if time.monotonic() >= body.deadline:
            raise TimeoutError("no time was left to send the request")
        self._body = body
        body.sent = True  # from here on, even if no byte gets out
        super().request(method, url, body, *args, **options)

    @property
    def is_connected(self) -> bool:  # the pool asks before it reuses a connection
        return time.monotonic() < self._body.trusted_until and super().is_connected


class _SecureConnection(_Connection, urllib3.connection.HTTPSConnection):
    pass


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls: Any = _Connection


class _SecurePool(urllib3.HTTPSConnectionPool):
    ConnectionCls: Any = _SecureConnection


_POOLS: Any = {"http": _Pool, "https": _SecurePool}


if __name__ == "__main__":
    with SandboxServer() as server:  # a local Creduse server, which accepts any key
        protocol = CreduseProtocol("any-key", server.base_url)
        with CoreClient(protocol, Urllib3Transport()) as client:
            client.add("12345678-1234-5678-1234-567812345678", 100)
            client.subtract("12345678-1234-5678-1234-567812345678", 30)
            balance = client.get_balance("12345678-1234-5678-1234-567812345678")
            print("left:", balance.active_balance)
