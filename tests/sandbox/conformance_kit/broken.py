"""Synchronous transports that break a promise. The kit must report each.

Some only send in another way than `Good`: a `Behavior` says how. The others are subclasses.
"""

import json
import socket
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final, TypeAlias
from urllib.parse import urlsplit

import h11

from creduse_core import CoreClient, CreduseProtocol, Delivery, Failure, Request, Response, Send
from creduse_sandbox import Sandbox
from creduse_sandbox.conformance import Connect
from creduse_sandbox.conformance.scenarios import API_KEY, USER
from tests.sandbox.conformance_kit.transports import Good, Link, Progress, Result

MakeTransport: TypeAlias = Callable[[CreduseProtocol], Good]


class SendsOtherwise(Good):
    """Sends as its behavior does, and records the results."""

    def __init__(self, protocol: CreduseProtocol, behavior: "Behavior") -> None:
        super().__init__(protocol)
        self.behavior = behavior
        self.results: list[Result] = []

    def send_normally(self, send: Send) -> Result:
        """Send as a good transport does."""
        return super().send(send)

    def send(self, send: Send) -> Result:
        """Send as the behavior does."""
        self.results.append(self.behavior(self, send))
        return self.results[-1]


Behavior: TypeAlias = Callable[[SendsOtherwise, Send], Result]


def altered(**changes: Callable[[Any], Any]) -> Behavior:
    """Change parts of each request, each with a function."""

    def send_altered(transport: SendsOtherwise, send: Send) -> Result:
        parts = {
            name: changes.get(name, lambda value: value)(getattr(send.request, name))
            for name in ("method", "url", "headers", "body")
        }
        return transport.send_normally(replace(send, request=Request(**parts)))

    return send_altered


def without(name: str) -> Callable[[Any], Any]:
    """Return a function that removes a header."""
    return lambda headers: tuple(pair for pair in headers if pair[0] != name)


def plus(name: str, value: str) -> Callable[[Any], Any]:
    """Return a function that adds a header."""
    return lambda headers: (*headers, (name, value))


def alter_failure(result: Result, **changes: Any) -> Result:
    """Change fields of a failure, and return other results unchanged."""
    return replace(result, **changes) if isinstance(result, Failure) else result


def report_not_sent(transport: SendsOtherwise, send: Send) -> Result:
    """Report each failure as not sent."""
    return alter_failure(transport.send_normally(send), delivery=Delivery.NOT_SENT)


def report_maybe_sent(transport: SendsOtherwise, send: Send) -> Result:
    """Report each failure as maybe sent."""
    return alter_failure(transport.send_normally(send), delivery=Delivery.MAYBE_SENT)


def report_reads_not_sent(transport: SendsOtherwise, send: Send) -> Result:
    """Report each failure of a read as not sent."""
    changes = {"delivery": Delivery.NOT_SENT} if send.request.method == "GET" else {}
    return alter_failure(transport.send_normally(send), **changes)


def retry_failures(transport: SendsOtherwise, send: Send) -> Result:
    """Send again after a failure."""
    response = transport.send_normally(send)
    return transport.send_normally(send) if isinstance(response, Failure) else response


def send_twice(transport: SendsOtherwise, send: Send) -> Result:
    """Send each request twice."""
    transport.send_normally(send)
    return transport.send_normally(send)


def begin_on_another_connection(transport: SendsOtherwise, send: Send) -> Result:
    """Send part of a head on a connection, close it, and send the request on another one."""
    parts = urlsplit(send.request.url)
    with socket.create_connection((parts.hostname, parts.port)) as stream:
        stream.sendall(b"POST /add HT")
    return transport.send_normally(send)


def follow_redirects(transport: SendsOtherwise, send: Send) -> Result:
    """Send the request again to the address of a redirect."""
    response = transport.send_normally(send)
    if isinstance(response, Failure) or (target := response.header("Location")) is None:
        return response
    origin = send.request.url.rpartition("/")[0]
    return altered(url=lambda _: origin + target)(transport, send)


def send_cookies(transport: SendsOtherwise, send: Send) -> Result:
    """Send the cookies that earlier responses set."""
    for response in transport.results:
        if isinstance(response, Response) and (cookie := response.header("Set-Cookie")):
            return altered(headers=plus("Cookie", cookie.partition(";")[0]))(transport, send)
    return transport.send_normally(send)


def reuse_every_connection(transport: SendsOtherwise, send: Send) -> Result:
    """Reuse every connection."""

    def allows_reuse(_: Response) -> bool:
        return True

    return transport.send_normally(replace(send, allows_reuse=allows_reuse))


def replace_user(transport: SendsOtherwise, send: Send) -> Result:
    """Replace the user in a response by the one in the request."""
    response = transport.send_normally(send)
    if isinstance(response, Failure):
        return response
    fields = json.loads(response.body) | {"end_user_id": str(USER)}
    return replace(response, body=json.dumps(fields).encode())


def fabricate(_: SendsOtherwise, send: Send) -> Result:
    """Return a response without sending anything."""
    return Sandbox(api_key=API_KEY).handle(send.request)


def stop_after_failure(transport: SendsOtherwise, send: Send) -> Result:
    """Send nothing after a failure."""
    broken = any(isinstance(result, Failure) for result in transport.results)
    return failure(Delivery.NOT_SENT) if broken else transport.send_normally(send)


def failure(delivery: Delivery, *, transient: bool = False) -> Failure:
    return Failure(delivery, OSError("broken"), transient=transient)


def drop_partial_response(transport: SendsOtherwise, send: Send) -> Result:
    """Report no part of a response that was cut."""
    return alter_failure(transport.send_normally(send), response=None)


def report_permanent(transport: SendsOtherwise, send: Send) -> Result:
    """Report each failure as permanent."""
    return alter_failure(transport.send_normally(send), transient=False)


def drop_headers(transport: SendsOtherwise, send: Send) -> Result:
    """Report no headers of a response."""
    response = transport.send_normally(send)
    return replace(response, headers=()) if isinstance(response, Response) else response


def shorten_deadline(transport: SendsOtherwise, send: Send) -> Result:
    """Limit the whole attempt to the time for connecting."""
    return transport.send_normally(replace(send, deadline=send.connect_by))


def raise_failures(transport: SendsOtherwise, send: Send) -> Result:
    """Raise the cause of a failure instead of returning the failure."""
    response = transport.send_normally(send)
    if isinstance(response, Failure):
        raise response.cause
    return response


class IgnoresSurplus(Good):
    """Reuses a connection on which a surplus has arrived."""

    def is_clean(self, link: Link) -> bool:
        return link.http.our_state is link.http.their_state is h11.DONE

    def is_quiet(self, link: Link) -> bool:
        return bool(link)


class ReusesEveryConnection(IgnoresSurplus):
    """Reuses a connection also after a server error."""

    def send(self, send: Send) -> Result:
        def allows_reuse(_: Response) -> bool:
            return True

        return super().send(replace(send, allows_reuse=allows_reuse))


class DropsSurplus(IgnoresSurplus):
    """Drops a surplus, as http.client drops what is in its buffer."""

    def keep(self, link: Link) -> None:
        super().keep(Link(link.sock))
        self.busy.discard(link)


class NeverReuses(Good):
    """Reuses no connection."""

    def keep(self, link: Link) -> None:
        self.busy.discard(link)
        link.sock.close()


class RestartsTimeout(Good):
    """Gives each read the whole timeout."""

    def left(self, by: float) -> float:
        super().left(by + 60)
        return 3.0


def over(transport: MakeTransport) -> Connect:
    """Return a function that makes a client over this transport."""
    return lambda protocol: CoreClient(protocol, transport(protocol))


def sending(behavior: Behavior) -> MakeTransport:
    """Return a constructor of transports that send in this way."""
    return lambda protocol: SendsOtherwise(protocol, behavior)


class OneAtATime(Good):
    """Fails if two threads send at the same time."""

    def exchange(self, link: Link, send: Send, by: float, progress: Progress) -> Response:
        if len(self.busy) > 1:
            raise OSError("two at once")
        return super().exchange(link, send, by, progress)


class WithoutClock(Good):
    """Has a clock that raises."""

    def now(self) -> float:
        raise ZeroDivisionError


LEFT_OPEN: Final[list[Good]] = []


class LeavesConnectionsOpen(Good):
    """Leaves its connections open when it is closed. The test closes them."""

    def close(self) -> None:
        self.closed = True
        LEFT_OPEN.append(self)


class LetsCallsGoOn(Good):
    """Does not end calls in flight when it is closed."""

    def close(self) -> None:
        self.closed = True
        self.close_idle()


class SendsAfterClose(LetsCallsGoOn):
    """Sends the request of a call that has begun before it was closed."""

    def exchange(self, link: Link, send: Send, by: float, progress: Progress) -> Response:
        self.closed = False
        return super().exchange(link, send, by, progress)


class AcceptsCallsAfterClose(Good):
    """Accepts calls after it was closed."""

    def check(self) -> None:
        pass


class SwallowsSignals(Good):
    """Reports the exception of a signal handler as a failure."""

    def send(self, send: Send) -> Result:
        try:
            return super().send(send)
        except BaseException as error:  # noqa: BLE001 - the broken promise
            return Failure(Delivery.MAYBE_SENT, OSError(str(error)), transient=False)


class TakesSignalsForFailures(Good):
    """Reports each `Exception` as a failure, also that of a signal handler."""

    def failed(self, progress: Progress, error: Exception, by: float) -> Result:
        return progress.failure(error, timed_out=self.now() >= by)


class KeepsItsLock(Good):
    """Does not release its lock when it is interrupted."""

    def __init__(self, protocol: CreduseProtocol) -> None:
        super().__init__(protocol)
        self.lock = threading.Lock()

    def send(self, send: Send) -> Result:
        self.lock.acquire()
        response = super().send(send)
        self.lock.release()
        return response


class LosesItsPlace(Good):
    """Has one place in its pool, and loses it when it is interrupted."""

    count = 0

    def send(self, send: Send) -> Result:
        if self.count:
            return failure(Delivery.NOT_SENT)
        self.count = 1
        response = super().send(send)
        self.count = 0
        return response


class FinishesInAThread(Good):
    """When it is interrupted, sends the request again in a thread."""

    def send(self, send: Send) -> Result:
        try:
            return super().send(send)
        except KeyboardInterrupt:
            thread = threading.Thread(target=super().send, args=(send,))
            thread.start()
            thread.join()
            raise


class SendsWithTheNextCall(Good):
    """When it is interrupted, sends the request again before that of the next call."""

    missed: Send | None = None

    def send(self, send: Send) -> Result:
        if (missed := self.missed) is not None:
            self.missed = None
            super().send(missed)
        try:
            return super().send(send)
        except KeyboardInterrupt:
            self.missed = send
            raise


class RetriesAfterAlarm(Good):
    """After an alarm, sends twice again and reports a failure."""

    def send(self, send: Send) -> Result:
        try:
            return super().send(send)
        except TimeoutError as error:
            super().send(send)
            super().send(send)
            return Failure(Delivery.MAYBE_SENT, OSError(str(error)), transient=False)


class NeverCloses(Good):
    """Hangs when it is closed."""

    def close(self) -> None:
        super().close()
        threading.Event().wait()


class FabricatesEveryThird(Good):
    """Returns every third response without sending anything."""

    count = 0

    def send(self, send: Send) -> Result:
        self.count = self.count + 1 if b'"amount":1,' in send.request.body else 0
        if self.count < 3:
            return super().send(send)
        return Sandbox(api_key=API_KEY).handle(send.request)


class CannotSleep(Good):
    """Raises instead of waiting."""

    def sleep(self, seconds: float) -> None:
        raise ZeroDivisionError(seconds)


class SleepsTooLittle(Good):
    """Sleeps for a fraction of the time."""

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds / 10)


class SkipsTime(Good):
    """Puts its clock forward instead of waiting."""

    skipped = 0.0

    def sleep(self, seconds: float) -> None:
        self.skipped += seconds

    def now(self) -> float:
        return super().now() + self.skipped
