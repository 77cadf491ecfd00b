"""A transport over urllib, which every Python has. Each request opens its own connection.

    CoreClient(CreduseProtocol("your-api-key"), UrllibTransport())

Limits:

- A timeout applies to each read, so nothing bounds a head that arrives byte by byte.
- Name lookup has no timeout. Each address of a host, and the TLS handshake, gets the
  whole time to connect again.
- http.client takes an interim response other than 100, such as 103, for the final one. The outcome
  is then UNKNOWN.
- No proxies, not even those of the environment.

For `creduse_sandbox.conformance`, its limits are ``TIME``, ``INTERIM``, ``REUSE``, ``CLOSE`` and
``SIGNAL``.
"""

import http.client
import ssl
import time
import urllib.request
from typing import Any

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


class UrllibTransport:
    """Sends over urllib; see `creduse_core.Transport`. Threads can share it."""

    def __init__(self, ssl_context: ssl.SSLContext | None = None) -> None:
        # An opener with no other handlers: no redirects, proxies, cookies or errors by status code.
        self._opener = urllib.request.OpenerDirector()
        self._opener.add_handler(_Handler(ssl_context or ssl.create_default_context()))
        self._closed = False

    def send(self, send: Send) -> Response | Failure:
        ours, body = send.request, _Body(send.request.body)
        body.deadline = send.deadline
        connect_timeout = max(send.connect_by - self.now(), 0.001)
        head, read = None, bytearray()
        try:
            if self._closed:
                raise RuntimeError("the transport is closed")
            request = urllib.request.Request(  # noqa: S310 - the core accepts only http and https
                ours.url, body, dict(ours.headers), method=ours.method
            )
            with self._opener.open(request, timeout=connect_timeout) as response:
                head = response
                while len(read) <= MAX_BODY_SIZE and (piece := response.read1(65536)):
                    read += piece
                    if response.length != 0 and self.now() >= body.deadline:
                        raise TimeoutError("no whole response arrived in time")
                # read1 does not report a cut body.
                if response.length and len(read) <= MAX_BODY_SIZE:
                    raise http.client.IncompleteRead(b"", response.length)
        except Exception as error:
            forget_frames(error)  # they hold the API key
            return Failure(
                Delivery.MAYBE_SENT if body.sent else Delivery.NOT_SENT,
                error,
                transient=_is_transient(error),
                timed_out=self.now() >= (body.deadline if body.sent else send.connect_by),
                response=None
                if head is None
                else Response(head.status, head.getheaders(), bytes(read)),
            )
        return Response(head.status, head.getheaders(), bytes(read))

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def now(self) -> float:
        return time.monotonic()

    def close(self) -> None:
        self._closed = True  # there are no open connections to close


class _Handler(urllib.request.AbstractHTTPHandler):
    http_request = https_request = urllib.request.AbstractHTTPHandler.do_request_

    def __init__(self, context: ssl.SSLContext) -> None:
        super().__init__()
        self._context = context

    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_Connection, request)

    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_SecureConnection, request, context=self._context)


def _is_transient(error: Exception) -> bool:
    """Return whether a retry could help, by the exception.

    - ``ValueError``: no. The URL cannot be used, and the next attempt has the same one.
    - ``RuntimeError``: no. The transport is closed, and stays so.
    - One about the certificate: no. The next connection gets the same certificate.
    - Any other, such as ``OSError`` and ``HTTPException``: yes. A name is not found for a while, a
      connection breaks, a response is cut off. The client retries a write only if nothing was
      sent.
    """
    return not isinstance(error, ValueError | RuntimeError) and not is_certificate_error(error)


class _Body(bytes):
    """The body of a request. urllib passes it on unchanged, so it can carry our notes."""

    deadline = 0.0
    sent = False


class _Connection(http.client.HTTPConnection):
    def request(self, method: str, url: str, body: Any = None, *args: Any, **options: Any) -> None:
        self.connect()
        left = body.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("no time was left to send the request")
        self.sock.settimeout(left)
        body.sent = True  # from here on, even if no byte gets out
        super().request(method, url, body, *args, **options)


class _SecureConnection(_Connection, http.client.HTTPSConnection):
    pass


if __name__ == "__main__":
    with SandboxServer() as server:  # a local Creduse server, which accepts any key
        protocol = CreduseProtocol("any-key", server.base_url)
        with CoreClient(protocol, UrllibTransport()) as client:
            client.add("12345678-1234-5678-1234-567812345678", 100)
            client.subtract("12345678-1234-5678-1234-567812345678", 30)
            balance = client.get_balance("12345678-1234-5678-1234-567812345678")
            print("left:", balance.active_balance)
