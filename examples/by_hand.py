"""One call driven by hand over http.client: no client, no transport, no class.

`CoreClient.run` is the same loop. Simpler here than in the transports beside this: each read of an
answer has its whole time-out anew, and an empty answer that states no length counts as cut.
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
    """Give what a call results in, or raise its error."""
    action: Send | Wait | Done[T] = call.start(time.monotonic())
    while not isinstance(action, Done):
        if isinstance(action, Wait):
            time.sleep(action.seconds)
            action = call.wake(time.monotonic())
            continue
        answer = exchange(action)
        if isinstance(answer, Response):
            action = call.receive_response(answer, time.monotonic())
        else:
            action = call.receive_failure(answer, time.monotonic())
    return action.result


def exchange(send: Send) -> Response | Failure:
    """Send once, on a connection of its own, and read the answer."""
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
        delivery = Delivery.MAYBE_SENT  # from here on, though perhaps not a byte gets out
        connection.request(request.method, url.path, request.body, dict(request.headers))
        with connection.getresponse() as answer:
            body = answer.read(MAX_BODY_SIZE + 1)
        # http.client takes a head that was cut for a whole one, and of a body it reads what comes.
        if body or answer.length == 0 or answer.chunked:
            response = Response(answer.status, answer.getheaders(), body)
        if response is None or (answer.length and len(body) <= MAX_BODY_SIZE):
            raise http.client.IncompleteRead(body, answer.length)
    except Exception as error:
        return Failure(
            delivery,
            error,
            # A certificate that is refused, too, is a ValueError.
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
    with SandboxServer() as server:  # a Creduse of one's own, which takes any key
        protocol = CreduseProtocol("any-key", server.base_url)
        drive(protocol.add(user, 100))

        server.inject(FAULTS["429"])  # too many requests, once
        call = protocol.subtract(user, 30)
        print("taken:", drive(call).amount, "attempts:", len(call.attempts))

        server.inject(FAULTS["apply-then-reset"])  # the answer gets lost
        try:
            drive(protocol.subtract(user, 30))
        except CreduseError as error:
            print("outcome:", error.outcome)
