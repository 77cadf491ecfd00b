"""Drive one call by hand over http.client: no client, no transport, no class.

`CoreClient.run` is the same loop. Two things are simpler than in the transports beside this file:

- Each read of a response gets the full timeout again.
- An empty response without a length counts as cut off.
"""

import http.client
import time
from typing import TypeVar
from urllib.parse import urlsplit

from creduse_core import (
    MAX_BODY_SIZE,
    Call,
    CreduseError,
    CreduseProtocol,
    Delivery,
    Done,
    Failure,
    Response,
    Send,
    Wait,
)
from creduse_sandbox import FAULTS, SandboxServer

T = TypeVar("T")


def drive(call: Call[T]) -> T:
    """Return the result of a call, or raise its error."""
    action: Send | Wait | Done[T] = call.start(time.monotonic())
    while not isinstance(action, Done):
        if isinstance(action, Wait):
            time.sleep(action.seconds)
            action = call.wake(time.monotonic())
            continue
        reply = exchange(action)
        if isinstance(reply, Response):
            action = call.receive_response(reply, time.monotonic())
        else:
            action = call.receive_failure(reply, time.monotonic())
    return action.result


def exchange(send: Send) -> Response | Failure:
    """Send once, on a new connection, and read the response."""
    request, url = send.request, urlsplit(send.request.url)
    secure = url.scheme == "https"
    kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
    connection = kind(url.netloc, timeout=left(send.connect_by))
    by = send.connect_by
    delivery, response = Delivery.NOT_SENT, None
    try:
        connection.connect()
        by = send.deadline
        connection.sock.settimeout(left(by))
        delivery = Delivery.MAYBE_SENT  # from here on, even if no byte gets out
        connection.request(request.method, url.path, request.body, dict(request.headers))
        with connection.getresponse() as reply:
            body = reply.read(MAX_BODY_SIZE + 1)
        # http.client takes a cut head for a complete one, and of a body it reads what there is.
        if body or reply.length == 0 or reply.chunked:
            response = Response(reply.status, reply.getheaders(), body)
        if response is None or (reply.length and len(body) <= MAX_BODY_SIZE):
            raise http.client.IncompleteRead(body, reply.length)
    except Exception as error:
        return Failure(
            delivery,
            error,
            # A rejected certificate is a ValueError too.
            transient=not isinstance(error, ValueError),
            timed_out=time.monotonic() >= by,
            response=response,
        )
    finally:
        connection.close()
    return response


def left(by: float) -> float:
    """Return the seconds until a deadline. 0 would mean not to wait at all."""
    return max(by - time.monotonic(), 0.001)


if __name__ == "__main__":
    user = "12345678-1234-5678-1234-567812345678"
    with SandboxServer() as server:  # a local Creduse server, which accepts any key
        protocol = CreduseProtocol("any-key", server.base_url)
        drive(protocol.add(user, 100))

        server.inject(FAULTS["429"])  # too many requests, once
        call = protocol.subtract(user, 30)
        print("taken:", drive(call).amount, "attempts:", len(call.attempts))

        server.inject(FAULTS["apply-then-reset"])  # the response is lost
        try:
            drive(protocol.subtract(user, 30))
        except CreduseError as error:
            print("outcome:", error.outcome)
