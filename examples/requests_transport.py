"""Creduse over requests, whose connections are urllib3's.

    CoreClient(CreduseProtocol("your-api-key"), RequestsTransport())

What sends is an adapter of requests, without a session around it: that would add the credentials
of a netrc, cookies and the environment's proxies, and look into redirects.

Limits: a time-out is for each read, so a head that drips in is not bounded as a whole; looking a
name up takes none; each address of a host, and the TLS handshake, gets the whole
time to connect anew. http.client takes an interim answer other than 100, such as 103, for
the final one, which makes the call UNKNOWN; and what a server sends beyond one response is dropped
unseen, and the connection used again. No proxies, nor those of the environment.
Nor does ``REQUESTS_CA_BUNDLE`` count: set ``session.verify``.
"""

import ssl
import time
from typing import Any

import requests
import requests.adapters
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
from creduse_sandbox import SandboxServer


class RequestsTransport:
    """Sends over requests; see `creduse_core.Transport`. It can be shared between threads.

    Of a session of yours, ``verify`` and ``cert`` are used, and nothing else.
    """

    def __init__(self, session: requests.Session | None = None) -> None:
        self._verify: Any = True if session is None else session.verify
        self._cert = None if session is None else session.cert
        self._adapter = _Adapter(pool_maxsize=100)  # what is more is closed after its call
        self._closed = False

    def send(self, send: Send) -> Response | Failure:
        ours, body = send.request, _Body(send.request.body)
        body.deadline = send.deadline
        timeout: Any = urllib3.Timeout(
            connect=max(send.connect_by - self.now(), 0.001),
            total=max(send.deadline - self.now(), 0.001),
        )
        # Any: the types of requests tell nothing of the one, and not that urllib3's other will do.
        request: Any = requests.PreparedRequest()
        head, read = None, bytearray()
        try:
            if self._closed:  # urllib3 would open new pools
                raise RuntimeError("the transport is closed")
            request.prepare(ours.method, ours.url, headers=dict(ours.headers), data=body)
            head = self._adapter.send(
                request,
                stream=True,
                timeout=timeout,
                verify=self._verify,
                cert=self._cert,
            )
            try:
                while len(read) <= MAX_BODY_SIZE and (piece := head.raw.read1(65536)):
                    read += piece
                    if head.raw.length_remaining != 0 and self.now() >= body.deadline:
                        raise TimeoutError("no time was left for the answer")
            finally:  # its connection is back in the pool if all was read; if not, it is closed
                head.raw.close()
                head.raw.release_conn()
        except Exception as error:
            if request.headers:  # which the exception carries, the key among them
                request.headers.pop("Authorization", None)
            forget_frames(error)  # they hold the API key
            return Failure(
                Delivery.MAYBE_SENT if body.sent else Delivery.NOT_SENT,
                error,
                transient=_may_pass(error),
                timed_out=self.now() >= (body.deadline if body.sent else send.connect_by),
                response=None
                if head is None
                else Response(head.status_code, head.raw.headers.items(), bytes(read)),
            )
        response = Response(head.status_code, head.raw.headers.items(), bytes(read))
        if send.belongs(response):
            body.trusted_until = self.now() + 3  # servers close an idle connection after 5 and more
        return response

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def now(self) -> float:
        return time.monotonic()

    def close(self) -> None:
        self._closed = True
        pools = self._adapter.poolmanager.pools
        for key in pools.keys():  # noqa: SIM118 - it cannot be iterated over itself
            pools[key].close()  # the adapter leaves that to whoever collects the garbage
        self._adapter.close()


class _Adapter(requests.adapters.HTTPAdapter):
    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, **options)
        self.poolmanager.pool_classes_by_scheme = _POOLS


def _may_pass(error: BaseException | None) -> bool:
    """Say whether to send again could help."""
    if isinstance(error, ValueError | RuntimeError):  # a URL that is none, a closed transport
        return False
    while error is not None and not isinstance(error, ssl.SSLCertVerificationError):
        error = error.__cause__ or error.__context__
    return error is None


class _Body(bytes):
    """The body of a request. requests hands it on as it is, so it can carry notes."""

    deadline = 0.0
    sent = False
    trusted_until = 0.0
    """Until when its connection may be used again."""


class _Connection(urllib3.connection.HTTPConnection):
    _body = _Body()

    def request(self, method: str, url: str, body: Any = None, *args: Any, **options: Any) -> None:
        if self.sock is None:  # over TLS it is connected by now
            self.connect()
        if time.monotonic() >= body.deadline:
            raise TimeoutError("no time was left to send the request")
        self._body = body
        body.sent = True  # from here on, though perhaps not a byte gets out
        super().request(method, url, body, *args, **options)

    @property
    def is_connected(self) -> bool:  # asked by the pool before it uses a connection again
        return time.monotonic() < self._body.trusted_until and super().is_connected


class _SecureConnection(_Connection, urllib3.connection.HTTPSConnection):
    pass


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls: Any = _Connection


class _SecurePool(urllib3.HTTPSConnectionPool):
    ConnectionCls: Any = _SecureConnection


_POOLS: Any = {"http": _Pool, "https": _SecurePool}


if __name__ == "__main__":
    with SandboxServer() as server:  # a Creduse of one's own, which takes any key
        protocol = CreduseProtocol("any-key", server.base_url)
        with CoreClient(protocol, RequestsTransport()) as client:
            client.add("12345678-1234-5678-1234-567812345678", 100)
            client.subtract("12345678-1234-5678-1234-567812345678", 30)
            balance = client.get_balance("12345678-1234-5678-1234-567812345678")
            print("left:", balance.active_balance)
