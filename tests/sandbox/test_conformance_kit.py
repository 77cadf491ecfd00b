"""The kit itself: a transport that breaks a promise is found out, and the tables are whole."""

import asyncio
import gc
import inspect
import json
import re
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar
from urllib.parse import urlsplit

import anyio
import anyio.abc
import h11
import pytest
import trio

from creduse_core import (
    MAX_BODY_SIZE,
    AsyncCoreClient,
    Call,
    CoreClient,
    CreduseProtocol,
    Delivery,
    Failure,
    ForeignError,
    Outcome,
    Request,
    Response,
    Send,
    State,
    TransportError,
    forget_frames,
    is_foreign,
)
from creduse_core.decoding import Expected, read_response
from creduse_core.retry import Event
from creduse_sandbox import FAULTS, Sandbox
from creduse_sandbox.conformance import (
    CANCELLATIONS,
    CLOSINGS,
    CONCURRENCY_LEVELS,
    INTERRUPTIONS,
    SCENARIOS,
    TLS_SCENARIOS,
    Cancellation,
    Limit,
    Scenario,
    check,
    check_async,
    check_async_closing,
    check_async_concurrency,
    check_cancellation,
    check_closing,
    check_concurrency,
    check_interruption,
    check_interruption_on_asyncio,
    check_interruption_on_trio,
)
from creduse_sandbox.conformance.scenarios import API_KEY, USER

NAMED = {scenario.name: scenario for scenario in SCENARIOS}
CANCELLED = {cancellation.name: cancellation for cancellation in CANCELLATIONS}
CLOSED = {closing.name: closing for closing in CLOSINGS}
LEVELS = {level.name: level for level in CONCURRENCY_LEVELS}
INTERRUPTED = {interruption.name: interruption for interruption in INTERRUPTIONS}
SendResult = Response | Failure


# Good transports, whose parts the bad ones below replace


@dataclass(eq=False)
class Link:
    """A connection and the state of HTTP on it."""

    sock: socket.socket
    http: h11.Connection = field(default_factory=lambda: h11.Connection(h11.CLIENT))


@dataclass
class Progress:
    """What is known of one request on its way."""

    sent: bool = False
    head: h11.Response | None = None
    body: bytearray = field(default_factory=bytearray)

    def response(self) -> Response | None:
        if self.head is None:
            return None
        pairs = self.head.headers.raw_items()
        headers = [(name.decode(), value.decode("latin-1")) for name, value in pairs]
        return Response(self.head.status_code, headers, bytes(self.body))

    def read(self, http: h11.Connection, limit: int) -> bool:
        """Take what h11 has, and return whether the response is whole."""
        while len(self.body) <= limit:
            match http.next_event():
                case h11.Response() as head:
                    self.head = head
                case h11.Data(data=data):
                    self.body += data
                case h11.EndOfMessage():
                    return True
                case h11.NEED_DATA:
                    return False
                case _:
                    pass
        return True

    def failure(self, error: Exception, *, timed_out: bool) -> Failure:
        forget_frames(error)
        return Failure(
            Delivery.MAYBE_SENT if self.sent else Delivery.NOT_SENT,
            error,
            transient=not isinstance(error, RuntimeError),
            timed_out=timed_out,
            response=self.response(),
        )


def written(http: h11.Connection, send: Send) -> bytes:
    request = send.request
    length = ("Content-Length", str(len(request.body)))
    host = ("Host", urlsplit(request.url).netloc)
    headers = [(name.encode(), value.encode()) for name, value in (host, *request.headers, length)]
    target = "/" + request.url.split("/", 3)[3]
    head = h11.Request(method=request.method, target=target, headers=headers)
    parts = (head, h11.Data(data=request.body), h11.EndOfMessage())
    return b"".join(http.send(part) or b"" for part in parts)


LIBRARIES = frozenset({"h11", __name__.partition(".")[0]})


class Raw:
    """Sends over sockets of its own. It can be shared between threads."""

    longest = MAX_BODY_SIZE
    libraries = LIBRARIES

    def __init__(self, protocol: CreduseProtocol) -> None:
        parts = urlsplit(protocol.base_url)
        assert parts.hostname is not None
        assert parts.port is not None
        self.where = parts.hostname, parts.port
        self.idle: list[Link] = []
        self.busy: set[Link] = set()
        self.closed = False

    def send(self, send: Send) -> SendResult:
        progress = Progress()
        by, link = send.connect_by, None
        try:
            self.check()
            link = self.take() or self.open(by)
            by = send.deadline
            response = self.exchange(link, send, by, progress)
            if send.belongs(response) and self.is_clean(link):
                link.http.start_next_cycle()
                self.keep(link)
                link = None
        except Exception as error:  # noqa: BLE001 - none of a library's leaves as itself
            return self.failed(progress, error, by)
        finally:
            if link is not None:
                self.busy.discard(link)
                link.sock.close()
        return response

    def check(self) -> None:
        if self.closed:
            raise RuntimeError("the transport is closed")

    def failed(self, progress: Progress, error: Exception, by: float) -> SendResult:
        if is_foreign(error, LIBRARIES):
            raise ForeignError(error) from None
        return progress.failure(error, timed_out=self.now() >= by)

    def take(self) -> Link | None:
        while self.idle:
            link = self.idle.pop()
            self.busy.add(link)
            if self.is_quiet(link):
                return link
            self.busy.discard(link)
            link.sock.close()
        return None

    def open(self, by: float) -> Link:
        link = Link(socket.socket())
        self.busy.add(link)
        try:
            link.sock.settimeout(self.left(by))
            link.sock.connect(self.where)
        except BaseException:
            self.busy.discard(link)
            link.sock.close()
            raise
        return link

    def exchange(self, link: Link, send: Send, by: float, progress: Progress) -> Response:
        data = written(link.http, send)
        link.sock.settimeout(self.left(by))
        self.check()  # who closes it afterwards shuts the socket down
        progress.sent = True
        link.sock.sendall(data)
        while not progress.read(link.http, self.longest):
            link.sock.settimeout(self.left(by))
            link.http.receive_data(link.sock.recv(65536))
        response = progress.response()
        assert response is not None
        return response

    def left(self, by: float) -> float:
        """Return the seconds that are left."""
        if by <= self.now():
            raise TimeoutError("time is up")
        return by - self.now()

    def is_clean(self, link: Link) -> bool:
        """Say whether both sides are done and nothing came that nobody asked for."""
        http = link.http
        return http.our_state is http.their_state is h11.DONE and http.trailing_data == (b"", False)

    def is_quiet(self, link: Link) -> bool:
        """Say whether nothing has come since."""
        return not select.select([link.sock], [], [], 0)[0]

    def keep(self, link: Link) -> None:
        self.idle.append(link)
        self.busy.discard(link)

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def now(self) -> float:
        return time.monotonic()

    def close(self) -> None:
        self.closed = True
        for link in list(self.busy):
            with suppress(OSError):
                link.sock.shutdown(socket.SHUT_RDWR)
        self.close_idle()

    def close_idle(self) -> None:
        while self.idle:
            self.idle.pop().sock.close()


# Bad ones that send something else, or tell something else


class Bent(Raw):
    """Does with a `Send` what its bend says, which may send it plainly, and knows the responses."""

    def __init__(self, protocol: CreduseProtocol, bend: "Bend") -> None:
        super().__init__(protocol)
        self.bend = bend
        self.responses: list[SendResult] = []

    def plainly(self, send: Send) -> SendResult:
        """Send as a good transport does."""
        return super().send(send)

    def send(self, send: Send) -> SendResult:
        """Send as the bend says."""
        self.responses.append(self.bend(self, send))
        return self.responses[-1]


Bend = Callable[[Bent, Send], SendResult]


def run(scenario: str, bend: Bend = Bent.plainly, *limits: Limit) -> None:
    """Check a transport with this bend."""
    check(NAMED[scenario], lambda to: CoreClient(to, Bent(to, bend)), limits=limits)


def altered(**changes: Callable[[Any], Any]) -> Bend:
    """Change parts of each request, each by a function."""

    def bend(bent: Bent, send: Send) -> SendResult:
        parts = {
            name: changes.get(name, lambda value: value)(getattr(send.request, name))
            for name in ("method", "url", "headers", "body")
        }
        return bent.plainly(replace(send, request=Request(**parts)))

    return bend


def without(name: str) -> Callable[[Any], Any]:
    return lambda headers: tuple(pair for pair in headers if pair[0] != name)


def plus(name: str, value: str) -> Callable[[Any], Any]:
    return lambda headers: (*headers, (name, value))


def deny(bent: Bent, send: Send) -> SendResult:
    """Say of all that fails that it was not sent."""
    response = bent.plainly(send)
    return (
        replace(response, delivery=Delivery.NOT_SENT) if isinstance(response, Failure) else response
    )


def doubt(bent: Bent, send: Send) -> SendResult:
    """Say of all that fails that it may have been sent."""
    response = bent.plainly(send)
    return (
        replace(response, delivery=Delivery.MAYBE_SENT)
        if isinstance(response, Failure)
        else response
    )


def deny_the_read(bent: Bent, send: Send) -> SendResult:
    return deny(bent, send) if send.request.method == "GET" else bent.plainly(send)


def insist(bent: Bent, send: Send) -> SendResult:
    """Send a second time after a failure."""
    response = bent.plainly(send)
    return bent.plainly(send) if isinstance(response, Failure) else response


def repeat(bent: Bent, send: Send) -> SendResult:
    bent.plainly(send)
    return bent.plainly(send)


def stammer(bent: Bent, send: Send) -> SendResult:
    """Begin the head on a connection that comes to nothing, and send on another."""
    parts = urlsplit(send.request.url)
    with socket.create_connection((parts.hostname, parts.port)) as stream:
        stream.sendall(b"POST /add HT")
    return bent.plainly(send)


def follow(bent: Bent, send: Send) -> SendResult:
    response = bent.plainly(send)
    if isinstance(response, Failure) or (target := response.header("Location")) is None:
        return response
    origin = send.request.url.rpartition("/")[0]
    return altered(url=lambda _: origin + target)(bent, send)


def keep_cookies(bent: Bent, send: Send) -> SendResult:
    for response in bent.responses:
        if isinstance(response, Response) and (cookie := response.header("Set-Cookie")):
            return altered(headers=plus("Cookie", cookie.partition(";")[0]))(bent, send)
    return bent.plainly(send)


def trust(bent: Bent, send: Send) -> SendResult:
    """Use every connection again."""

    def belongs(_: Response) -> bool:
        return True

    return bent.plainly(replace(send, belongs=belongs))


def adopt(bent: Bent, send: Send) -> SendResult:
    """Put the user that was asked for in place of another's."""
    response = bent.plainly(send)
    if isinstance(response, Failure):
        return response
    fields = json.loads(response.body) | {"end_user_id": str(USER)}
    return replace(response, body=json.dumps(fields).encode())


def make_up(_: Bent, send: Send) -> SendResult:
    """SendResult without sending."""
    return Sandbox(api_key=API_KEY).handle(send.request)


def break_down(bent: Bent, send: Send) -> SendResult:
    """Send nothing any more after a failure."""
    broken = any(isinstance(response, Failure) for response in bent.responses)
    return failure(Delivery.NOT_SENT) if broken else bent.plainly(send)


def failure(delivery: Delivery, *, transient: bool = False) -> Failure:
    return Failure(delivery, OSError("bent"), transient=transient)


def forget_the_head(bent: Bent, send: Send) -> SendResult:
    """Keep back what there is of a response that was cut."""
    response = bent.plainly(send)
    return replace(response, response=None) if isinstance(response, Failure) else response


def never_again(bent: Bent, send: Send) -> SendResult:
    """Say of all that fails that no second attempt mends it."""
    response = bent.plainly(send)
    return replace(response, transient=False) if isinstance(response, Failure) else response


def lose_fields(bent: Bent, send: Send) -> SendResult:
    response = bent.plainly(send)
    return replace(response, headers=()) if isinstance(response, Response) else response


def hurry(bent: Bent, send: Send) -> SendResult:
    """Bound the whole by what is for connecting."""
    return bent.plainly(replace(send, deadline=send.connect_by))


def leak(bent: Bent, send: Send) -> SendResult:
    """Raise where a failure is to be given."""
    response = bent.plainly(send)
    if isinstance(response, Failure):
        raise response.cause
    return response


@pytest.mark.parametrize(
    ("bend", "scenario", "found"),
    [
        (deny, "add-meets-apply-then-close", r"applied .* 2 times"),
        (
            deny,
            "add-meets-request-then-close",
            "received attempt 1 of .*, but its event is not_sent",
        ),
        (
            deny_the_read,
            "get_balance-meets-request-then-close",
            "received attempt 1 of .*, but its event is not_sent",
        ),
        (doubt, "add-is-refused-a-connection", "the call raised TransportError"),
        (insist, "add-meets-apply-then-close", r"applied .* 2 times"),
        (
            insist,
            "get_balance-meets-request-then-close",
            "received 2 requests of .*, but call.attempts has 1",
        ),
        (insist, "add-meets-request-then-close-on-a-used-connection", "but call.attempts has 1"),
        (repeat, "add", r"applied .* 2 times"),
        (stammer, "add", "received 2 requests of .*, but call.attempts has 1"),
        (follow, "add-meets-307", "request 2 was POST /moved, not <Request POST"),
        (follow, "add-meets-302", "the server received 2 requests and applied"),
        (
            keep_cookies,
            "add-is-given-a-cookie",
            r"request 2 had headers of the library's own: \['cookie'\]",
        ),
        (
            altered(headers=without("Accept-Encoding")),
            "add",
            r"had the header Accept-Encoding: \[\], not",
        ),
        (altered(headers=without("Authorization")), "get_balance", "raised AuthenticationError"),
        (
            altered(headers=without("Idempotency-Key")),
            "add-with-key-is-lost-twice",
            "requests and applied 3",
        ),
        (
            altered(headers=plus("User-Agent", "x")),
            "add",
            "had the header User-Agent: .*'x'.*, not",
        ),
        (
            altered(headers=plus("Expect", "100-continue")),
            "add",
            r"the library's own: \['expect'\]",
        ),
        (altered(headers=plus("Authorization", "x")), "add", "had 2 Authorization headers"),
        (altered(url=lambda url: url + "?x=1"), "add", "had a query"),
        (altered(body=lambda body: body + b" "), "add", "request 1 had the body .*, not"),
        (altered(url=lambda url: url + "/"), "get_balance", "request 1 was GET /get-active-bal"),
        (altered(method=lambda _: "PUT"), "add", "request 1 was PUT /add"),
        (
            trust,
            "add-meets-wrong-user",
            "request 2 reused a connection that the client must not reuse",
        ),
        (adopt, "add-meets-wrong-user", "the call returned a result"),
        (make_up, "add", "did not apply .*, but its outcome is APPLIED"),
        (make_up, "get_balance", "the server received 0 requests"),
        (break_down, "add-meets-apply-then-close", "another call, .*, raised TransportError"),
        (forget_the_head, "add-meets-cut-body-then-close", "the call raised TransportError"),
        (never_again, "get_balance-meets-head-then-close", "the call raised TransportError"),
        (lose_fields, "add", "lacks the Date header that the server sent"),
        (leak, "add-is-refused-a-connection", "the call raised TransportError"),
        (hurry, "add-waits-for-its-response", "the call raised CreduseTimeoutError"),
        (trust, "add-meets-408", "request 2 reused a connection that the client must not reuse"),
    ],
)
def test_broken_promise_is_found_out(bend: Bend, scenario: str, found: str) -> None:
    """The scenario fails, and what is said about it names the promise."""
    with pytest.raises(AssertionError, match=found) as caught:
        run(scenario, bend)
    assert str(caught.value).startswith(f"{scenario}:\n")
    assert "What the server received:" in str(caught.value)


def test_kit_passes_what_is_good() -> None:
    """The same transport, unbent."""
    for name in (
        "add",
        "add-meets-apply-then-close",
        "add-with-key-is-lost-twice",
        "add-meets-307",
    ):
        run(name)


# Bad ones that are careless with their connections, or with time


class Careless(Raw):
    """Uses a connection again whatever has come on it."""

    def is_clean(self, link: Link) -> bool:
        return link.http.our_state is link.http.their_state is h11.DONE

    def is_quiet(self, link: Link) -> bool:
        return bool(link)


class Trusting(Careless):
    """Does so after a server error, too."""

    def send(self, send: Send) -> SendResult:
        def belongs(_: Response) -> bool:
            return True

        return super().send(replace(send, belongs=belongs))


class Forgetful(Careless):
    """Drops what has come in excess, as http.client does with what is in its buffer."""

    def keep(self, link: Link) -> None:
        super().keep(Link(link.sock))
        self.busy.discard(link)


class Wasteful(Raw):
    """Uses no connection again."""

    def keep(self, link: Link) -> None:
        self.busy.discard(link)
        link.sock.close()


class Patient(Raw):
    """Gives each read all of the time."""

    def left(self, by: float) -> float:
        super().left(by + 60)
        return 3.0


Client = Callable[[CreduseProtocol], Raw]


def hold(scenario: str, transport: Client, *limits: Limit) -> None:
    check(NAMED[scenario], lambda to: CoreClient(to, transport(to)), limits=limits)


@pytest.mark.parametrize(
    ("transport", "scenario", "limit", "found"),
    [
        (Careless, "add-meets-surplus-whole", None, "took an earlier response for its own"),
        (Careless, "add-meets-surplus-whole-later", None, "took an earlier response for its own"),
        (Careless, "add-meets-surplus", None, "applied .*, but its outcome is NOT_APPLIED"),
        (Careless, "add-meets-surplus-later", None, "applied .*, but its outcome is NOT_APPLIED"),
        (Careless, "add-meets-surplus-half", None, "another call, .*, raised InvalidResponseErr"),
        (Careless, "get_balance-meets-surplus-whole", None, "took an earlier response for its own"),
        (
            Careless,
            "add-with-key-meets-surplus-whole",
            None,
            "took an earlier response for its own",
        ),
        (Trusting, "add-meets-stray-503", None, "took an earlier response for its own"),
        (Trusting, "get_balance-meets-stray-503", None, "request 2 reused a connection"),
        (
            Forgetful,
            "add-meets-surplus-whole",
            Limit.SURPLUS,
            "reused a connection that the client must not reuse",
        ),
        (
            Forgetful,
            "add-meets-surplus-half",
            Limit.SURPLUS,
            "reused a connection that the client must not reuse",
        ),
        (
            Wasteful,
            "add-on-a-used-connection",
            Limit.REUSE,
            "did not reuse the connection of the call before",
        ),
        (Patient, "add-meets-a-head-that-drips-too-long", Limit.TIME, "the call returned a result"),
        (
            Patient,
            "add-meets-a-100-that-drips-too-long",
            Limit.TIME,
            "the call took [5-9].* from 1 to 3.5 s",
        ),
        (Patient, "add-meets-a-body-that-trickles", None, "the call took"),
    ],
)
def test_carelessness_is_found_out(
    transport: Client, scenario: str, limit: Limit | None, found: str
) -> None:
    """A limit that would allow it is named, and allows it; it allows no wrong outcome."""
    with pytest.raises(AssertionError, match=found) as caught:
        hold(scenario, transport)
    named = re.findall(r"This is allowed with limits=\[Limit\.(\w+)\]", str(caught.value))
    assert named == ([] if limit is None else [limit.name])
    if limit is not None:
        hold(scenario, transport, limit)


def test_limit_that_is_not_there_may_be_stated() -> None:
    """Who is better than what is said of them passes as well."""
    run("add-meets-103-first", Bent.plainly, Limit.INTERIM)


def test_limit_excuses_nothing_else() -> None:
    """A scenario of another limit, or of none, is judged as ever."""
    with pytest.raises(AssertionError, match=r"applied .* 2 times"):
        run("add-meets-surplus", repeat, *Limit)


def test_report_says_what_the_server_does() -> None:
    """In words, whether or not the fault is one of the ready-made."""
    for scenario, words in {
        "add": "What the server does: no fault.",
        "add-is-refused-a-connection": "What the server does: It refuses connections.",
        "get_balance-meets-421": "For the call's requests: send 421 Misdirected Request.",
        "add-is-limited-then-lost": "send 429 Too Many Requests; then apply the request and ",
        "add-right-after-close-after": "The client may have an idle connection of another call. For that call: send a k",
        "add-meets-a-chunk-that-drips-too-long": "send a chunk's size digit by digit, for more than 5.5 s",
    }.items():
        with pytest.raises(AssertionError, match=re.escape(words)):
            check(replace(NAMED[scenario], endings=()), lambda to: CoreClient(to, Raw(to)))


def test_retry_of_a_lost_write_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The core is held to its promise as well."""

    def whenever_transient(event: Event, *_: object) -> bool:
        return event.transient

    monkeypatch.setattr("creduse_core.call.may_retry", whenever_transient)
    with pytest.raises(AssertionError, match=r"applied .* 2 times"):
        run("add-meets-apply-then-close")


def test_lowered_outcome_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """That an attempt was refused says nothing of the one before."""

    def last_of(_: Outcome, last: Outcome) -> Outcome:
        return last

    monkeypatch.setattr("creduse_core.call.max", last_of, raising=False)
    with pytest.raises(AssertionError, match=r"applied .*, but its outcome is NOT_APPLIED"):
        run("add-with-key-is-lost-then-refused")


def test_foreign_answer_that_is_believed_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who reads a response has to look at whom it names."""

    def believe(response: Response, expected: Expected[Any]) -> Any:
        fields = json.loads(response.body) | {"end_user_id": str(USER)}
        return read_response(replace(response, body=json.dumps(fields).encode()), expected)

    monkeypatch.setattr("creduse_core.call.read_response", believe)
    with pytest.raises(AssertionError, match="the call returned a result, with outcome APPLIED"):
        run("add-meets-wrong-user")


def test_error_at_odds_with_its_call_is_found_out() -> None:
    """What is raised says of the outcome what the call does."""

    class Client(CoreClient):
        def run(self, call: Call[Any]) -> Any:
            try:
                return super().run(call)
            except TransportError:
                raise TransportError("bent", outcome=Outcome.NOT_APPLIED) from None

    with pytest.raises(
        AssertionError, match="the error's outcome is NOT_APPLIED, but the call's is UNKNOWN"
    ):
        check(NAMED["add-meets-apply-then-close"], lambda to: Client(to, Raw(to)))


def test_slowness_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call may take so many seconds and no more."""
    monkeypatch.setattr("creduse_sandbox.conformance.checks.WITHIN", 0.0)
    with pytest.raises(
        AssertionError, match=r"<Call POST /add, succeeded> took 0\.\d s, more than 0 s"
    ):
        run("add")


def test_time_that_is_not_the_scenario_s_is_found_out() -> None:
    """A scenario may say what time its call must take."""
    hurried = replace(NAMED["add"], at_most=0.0)
    with pytest.raises(
        AssertionError, match=r"the call took 0\.\d\d s, but must take from 0 to 0 s"
    ):
        check(hurried, lambda to: CoreClient(to, Raw(to)))


def test_reading_on_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A body that is too large need not be read to its end, which may never come."""
    monkeypatch.setattr(Raw, "longest", 10**9)

    def briefly(protocol: CreduseProtocol) -> Call[Any]:
        return protocol.add(USER, 7, timeout=1)

    scenario = replace(NAMED["add-meets-a-body-without-end"], make=briefly)
    with pytest.raises(AssertionError, match="the call raised CreduseTimeoutError"):
        check(scenario, lambda to: CoreClient(to, Raw(to)))


def test_open_connection_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that is closed leaves none."""
    monkeypatch.setattr("creduse_sandbox.conformance.checks.WITHIN", 0.3)
    with pytest.raises(AssertionError, match="did not close all connections: 1 are open"):
        hold("add", Open)


def test_foreign_exception_comes_through() -> None:
    """What a transport's clock or sleep raises is nobody's to swallow."""
    with pytest.raises(ZeroDivisionError):
        hold("add", Clockless)


# Bad ones that are not for threads, or not to be closed


def use_concurrently(name: str, transport: Client, *limits: Limit) -> None:
    check_concurrency(LEVELS[name], lambda to: CoreClient(to, transport(to)), limits=limits)


def close(name: str, transport: Client, *limits: Limit) -> None:
    check_closing(CLOSED[name], lambda to: CoreClient(to, transport(to)), limits=limits)


def bent(bend: Bend) -> Client:
    return lambda to: Bent(to, bend)


class Alone(Raw):
    """Sends one request at a time."""

    def exchange(self, link: Link, send: Send, by: float, progress: Progress) -> Response:
        if len(self.busy) > 1:
            raise OSError("two at once")
        return super().exchange(link, send, by, progress)


class Clockless(Raw):
    """Does not know the time."""

    def now(self) -> float:
        raise ZeroDivisionError


class Open(Raw):
    """Leaves its connections to the test, when it is closed."""

    def close(self) -> None:
        self.closed = True
        OPEN.append(self)


OPEN: list[Raw] = []


@pytest.fixture(autouse=True)
def left_open() -> Iterator[None]:
    """Close what is left open."""
    yield
    while OPEN:
        OPEN.pop().close_idle()


class Lasting(Raw):
    """Leaves what is under way to its own end, when it is closed."""

    def close(self) -> None:
        self.closed = True
        self.close_idle()


class Heedless(Lasting):
    """Sends whatever it has begun to send, closed or not."""

    def exchange(self, link: Link, send: Send, by: float, progress: Progress) -> Response:
        self.closed = False
        return super().exchange(link, send, by, progress)


class Reopening(Raw):
    """Can be used again."""

    def check(self) -> None:
        pass


def test_kit_passes_good_threads_and_ends() -> None:
    """The good transport, shared and closed."""
    for name in LEVELS:
        use_concurrently(name, Raw)
    for name in CLOSED:
        close(name, Raw)


@pytest.mark.parametrize(
    ("transport", "found"),
    [
        (Alone, r"raised TransportError\('POST /add: OSError: two at once"),
        (Clockless, r"raised ZeroDivisionError"),
        (Wasteful, "four-callers:\n  the client opened 100 connections for 4 callers"),
        (Open, r"did not close all connections: [1-4] are open"),
        (bent(make_up), "did not apply .*, but its outcome is APPLIED"),
        (
            bent(altered(body=lambda body: body + b" ")),
            "no call had the body that the server received",
        ),
    ],
)
def test_bad_concurrency_is_found_out(
    transport: Client, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads that get into each other's way are."""
    monkeypatch.setattr("creduse_sandbox.conformance.checks.WITHIN", 1.0)
    with pytest.raises(AssertionError, match=found):
        use_concurrently("four-callers", transport)


def test_limit_of_reuse_excuses_more_connections() -> None:
    """It is named, and allows what it says."""
    with pytest.raises(AssertionError, match=r"allowed with limits=.Limit.REUSE"):
        use_concurrently("four-callers", Wasteful)
    use_concurrently("four-callers", Wasteful, Limit.REUSE)


def test_slow_concurrency_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call may take so many seconds and no more."""
    monkeypatch.setattr("creduse_sandbox.conformance.concurrency.WITHIN", 0.0)
    with pytest.raises(AssertionError, match=r"succeeded> took 0\.\d s"):
        use_concurrently("four-callers", Raw)


@pytest.mark.parametrize(
    ("transport", "name", "found"),
    [
        (
            Lasting,
            "close-while-meeting-request-then-hang",
            "calls were still in flight 2.5 s after",
        ),
        (Heedless, "close-while-connecting", r"the client sent request \d+ after it was closed"),
        (
            Reopening,
            "close-while-meeting-429-seconds",
            r"the client sent request \d+ after it was closed",
        ),
        (
            Reopening,
            "close-while-meeting-429-seconds",
            r"a call after close\(\) returned a result",
        ),
        (
            bent(deny),
            "close-while-meeting-apply-then-hang",
            "applied .*, but its outcome is NOT_APPLIED",
        ),
        (bent(doubt), "close-while-connecting", "the outcome of .* is UNKNOWN, not NOT_APPLIED"),
        (
            bent(leak),
            "close-while-meeting-request-then-hang",
            "must raise a TransportError with outcome NOT_APPLIED",
        ),
        (
            bent(make_up),
            "close-while-meeting-apply-then-hang",
            "returned a result, but must raise a CreduseError",
        ),
    ],
)
def test_bad_end_is_found_out(
    transport: Client, name: str, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So is what goes on when a client is closed, or says what is not so."""
    monkeypatch.setattr("creduse_sandbox.conformance.closing.WITHIN", 1.0)
    with pytest.raises(AssertionError, match=found) as caught:
        close(name, transport)
    assert "What the server does: " in str(caught.value)


def test_limit_of_closing_is_not_held_against_a_transport() -> None:
    """It is named, and allows what it says."""
    with pytest.raises(AssertionError, match=r"allowed with limits=.Limit.CLOSE"):
        close("close-while-meeting-request-then-hang", Lasting)
    close("close-while-meeting-request-then-hang", Lasting, Limit.CLOSE)


def test_slow_end_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """To close a client takes no longer than a call may last beyond its time."""
    monkeypatch.setattr("creduse_sandbox.conformance.closing.SLACK", 0.0)
    with pytest.raises(AssertionError, match=r"close\(\) took 0\.\d s"):
        close("close-while-meeting-request-then-hang", Raw, Limit.CLOSE)


def test_connections_that_outlast_their_client_are_found_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A client that is closed leaves none, whatever it met with."""
    monkeypatch.setattr("creduse_sandbox.conformance.checks.WITHIN", 0.3)
    with pytest.raises(AssertionError, match=r"did not close all connections: [12] are open"):
        close("close-while-meeting-429-seconds", Open)


# Bad ones that do not stand it when a signal's handler raises


def interrupt(name: str, transport: Client, *limits: Limit) -> None:
    interruption = INTERRUPTED[name]
    check_interruption(interruption, lambda to: CoreClient(to, transport(to)), limits=limits)


class Swallowing(Raw):
    """Takes whatever is raised for a failure."""

    def send(self, send: Send) -> SendResult:
        try:
            return super().send(send)
        except BaseException as error:  # noqa: BLE001 - that is what is wrong with it
            return Failure(Delivery.MAYBE_SENT, OSError(str(error)), transient=False)


class Trustful(Raw):
    """Takes all exceptions for its own."""

    def failed(self, progress: Progress, error: Exception, by: float) -> SendResult:
        return progress.failure(error, timed_out=self.now() >= by)


class Locking(Raw):
    """Has a lock, which stays locked where it is interrupted."""

    def __init__(self, protocol: CreduseProtocol) -> None:
        super().__init__(protocol)
        self.lock = threading.Lock()

    def send(self, send: Send) -> SendResult:
        self.lock.acquire()
        response = super().send(send)
        self.lock.release()
        return response


class Placeless(Raw):
    """Has one place, which whoever is interrupted does not give back."""

    count = 0

    def send(self, send: Send) -> SendResult:
        if self.count:
            return failure(Delivery.NOT_SENT)
        self.count = 1
        response = super().send(send)
        self.count = 0
        return response


class Undead(Raw):
    """Sends in a thread what it was interrupted in."""

    def send(self, send: Send) -> SendResult:
        try:
            return super().send(send)
        except KeyboardInterrupt:
            # The thread is done before anybody looks.
            thread = threading.Thread(target=super().send, args=(send,))
            thread.start()
            thread.join()
            raise


class Later(Raw):
    """Sends with the next call what it was interrupted in."""

    missed: Send | None = None

    def send(self, send: Send) -> SendResult:
        if (missed := self.missed) is not None:
            self.missed = None
            super().send(missed)
        try:
            return super().send(send)
        except KeyboardInterrupt:
            self.missed = send
            raise


class Restive(Raw):
    """Takes an alarm for a failure, and sends twice again."""

    def send(self, send: Send) -> SendResult:
        try:
            return super().send(send)
        except TimeoutError as error:
            super().send(send)
            super().send(send)
            return Failure(Delivery.MAYBE_SENT, OSError(str(error)), transient=False)


class Unending(Raw):
    """Has no end to its closing."""

    def close(self) -> None:
        super().close()
        threading.Event().wait()


class Neglectful(Raw):
    """Leaves its connections open."""

    forgotten: ClassVar[list[Link]] = []

    def close(self) -> None:
        self.forgotten.extend(self.idle)


class Fanciful(Raw):
    """Makes up the response of every third call of the same kind in a row."""

    count = 0

    def send(self, send: Send) -> SendResult:
        self.count = self.count + 1 if b'"amount":1,' in send.request.body else 0
        if self.count < 3:
            return super().send(send)
        return Sandbox(api_key=API_KEY).handle(send.request)


class Restless(Raw):
    """Cannot wait."""

    def sleep(self, seconds: float) -> None:
        raise ZeroDivisionError(seconds)


@pytest.mark.parametrize("name", ["ctrl-c-on-a-new-connection", "alarm-meeting-with-429"])
def test_kit_passes_what_stands_a_signal(name: str) -> None:
    """The good transport, interrupted at each place."""
    interrupt(name, Raw)


@pytest.mark.parametrize(
    ("transport", "name", "found"),
    [
        (
            Swallowing,
            "ctrl-c-meeting-with-nothing",
            "must raise the KeyboardInterrupt of the signal",
        ),
        (Trustful, "alarm-meeting-with-nothing", "must raise the TimeoutError of the signal"),
        (Placeless, "ctrl-c-meeting-with-nothing", "a later call, .*, raised TransportError"),
        (
            Undead,
            "ctrl-c-meeting-with-nothing",
            "received 2 requests of .*, but call.attempts has 1",
        ),
        (
            Later,
            "ctrl-c-meeting-with-nothing",
            r"the client sent request \d+ after the call was interrupted",
        ),
        (Fanciful, "ctrl-c-meeting-with-429", r"the server applied \d of a hundred later calls"),
        (Locking, "ctrl-c-meeting-with-nothing", "a later call, .*, raised this .* in time"),
        (Unending, "ctrl-c-meeting-with-nothing", r"close\(\) raised this .* in time"),
        (
            Restive,
            "alarm-meeting-with-nothing",
            "received 2 requests of .*, but call.attempts has 1",
        ),
        (Neglectful, "ctrl-c-meeting-with-nothing", r"did not close all connections: \d are open"),
    ],
)
# What it lost where it was interrupted goes with the error, whose traceback holds the transport.
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_bad_interruption_is_found_out(
    transport: Client, name: str, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is said about it names the promise, and the place at which it was broken."""
    monkeypatch.setattr("creduse_sandbox.conformance.checks.WITHIN", 1.0)
    if "in time" in found:
        monkeypatch.setattr("creduse_sandbox.conformance.interruption.WITHIN", 1.0)
    with pytest.raises(AssertionError, match=found):
        interrupt(name, transport)
    while Neglectful.forgotten:
        Neglectful.forgotten.pop().sock.close()


@pytest.mark.parametrize(
    ("transport", "name"),
    [
        (Trustful, "alarm-meeting-with-nothing"),
        (Locking, "ctrl-c-meeting-with-nothing"),
    ],
)
def test_limit_of_signals_is_not_held_against_a_transport(
    transport: Client, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It allows what it says, and no Ctrl-C that comes to nothing."""
    monkeypatch.setattr("creduse_sandbox.conformance.interruption.SOON", 0.5)
    interrupt(name, transport, Limit.SIGNAL)
    with pytest.raises(AssertionError, match="must raise the KeyboardInterrupt"):
        interrupt("ctrl-c-meeting-with-nothing", Swallowing, Limit.SIGNAL)


def test_limit_of_signals_is_named() -> None:
    """Where it would allow what is found."""
    with pytest.raises(AssertionError, match=r"allowed with limits=.Limit.SIGNAL"):
        interrupt("alarm-meeting-with-nothing", Trustful)


def test_late_signal_of_the_kits_own_is_ignored() -> None:
    """What would end a call that hangs may come when that call is over."""

    def late(protocol: CreduseProtocol) -> Raw:
        signal.raise_signal(signal.SIGUSR2)
        return Raw(protocol)

    interrupt("ctrl-c-meeting-with-nothing", late)


def test_foreign_exception_comes_through_an_interruption() -> None:
    """It is neither a call's failure nor what was raised."""
    with pytest.raises(ZeroDivisionError):
        interrupt("ctrl-c-meeting-with-429", Restless)


def test_interruption_is_for_the_main_thread() -> None:
    """Signals go there."""
    with ThreadPoolExecutor(1) as threads, pytest.raises(ValueError, match="main thread"):
        threads.submit(interrupt, "ctrl-c-meeting-with-nothing", Raw).result()


# Under an event loop


Main = Callable[[], Coroutine[Any, Any, None]]


def run_asyncio(main: Main) -> None:
    asyncio.run(main())


def run_trio(main: Main) -> None:
    trio.run(main)


@pytest.fixture(params=[run_asyncio, run_trio])
def run_loop(request: pytest.FixtureRequest) -> Callable[[Main], None]:
    loop: Callable[[Main], None] = request.param
    return loop


async def turns(number: int) -> None:
    """Give way so many times."""
    for _ in range(number):
        if trio.lowlevel.in_trio_task():
            await trio.lowlevel.checkpoint()
        else:
            await asyncio.sleep(0)


@dataclass(eq=False)
class AsyncLink:
    """A connection and the state of HTTP on it."""

    stream: anyio.abc.SocketStream
    http: h11.Connection = field(default_factory=lambda: h11.Connection(h11.CLIENT))


class AsyncRaw:
    """Sends over one connection. All bad transports below are made of it."""

    libraries = LIBRARIES | {"anyio", "trio"}

    def __init__(self, protocol: CreduseProtocol) -> None:
        parts = urlsplit(protocol.base_url)
        assert parts.hostname is not None
        assert parts.port is not None
        self.where = parts.hostname, parts.port
        self.place = anyio.Semaphore(1)
        self.idle: list[AsyncLink] = []
        self.closed = False
        self.active = 0
        self.count = 0

    async def send(self, send: Send) -> SendResult:
        progress = Progress()
        self.active += 1
        try:
            with anyio.fail_after(send.deadline - self.now()):
                self.check()
                async with self.place:
                    return await self.send_alone(send, progress)
        except Exception as error:  # noqa: BLE001 - none of a library's leaves as itself
            return progress.failure(error, timed_out=isinstance(error, TimeoutError))
        finally:
            self.active -= 1

    async def send_alone(self, send: Send, progress: Progress) -> SendResult:
        link = None
        try:
            with anyio.fail_after(send.connect_by - self.now()):
                link = self.idle.pop() if self.idle else await self.open()
            response = await self.exchange(link, send, progress)
            if send.belongs(response) and self.is_clean(link):
                link.http.start_next_cycle()
                self.keep(link)
                link = None
        finally:
            if link is not None:
                with anyio.CancelScope(shield=True), suppress(Exception):
                    await anyio.aclose_forcefully(link.stream)
        return response

    def check(self) -> None:
        if self.closed:
            raise RuntimeError("the transport is closed")

    def keep(self, link: AsyncLink) -> None:
        self.idle.append(link)

    async def open(self) -> AsyncLink:
        return AsyncLink(await anyio.connect_tcp(*self.where))

    async def exchange(self, link: AsyncLink, send: Send, progress: Progress) -> Response:
        data = written(link.http, send)
        await anyio.lowlevel.checkpoint()
        self.check()
        progress.sent = True
        await link.stream.send(data)
        while not progress.read(link.http, MAX_BODY_SIZE):
            try:
                link.http.receive_data(await link.stream.receive())
            except anyio.EndOfStream:
                link.http.receive_data(b"")
        response = progress.response()
        assert response is not None
        return response

    def is_clean(self, link: AsyncLink) -> bool:
        """Say whether both sides are done and nothing came that nobody asked for."""
        http = link.http
        return http.our_state is http.their_state is h11.DONE and http.trailing_data == (b"", False)

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(seconds)

    def now(self) -> float:
        return anyio.current_time()

    async def aclose(self) -> None:
        self.closed = True
        while self.active:  # noqa: ASYNC110 - it is a test's
            await anyio.sleep(0.01)
        await self.close_idle()

    async def close_idle(self) -> None:
        while self.idle:
            await anyio.aclose_forcefully(self.idle.pop().stream)


class AsyncCareless(AsyncRaw):
    """Uses a connection again whatever has come on it."""

    def is_clean(self, link: AsyncLink) -> bool:
        return link.http.our_state is link.http.their_state is h11.DONE


class AsyncDenying(AsyncRaw):
    """Says of all that fails that it was not sent."""

    async def send(self, send: Send) -> SendResult:
        """Send, and deny."""
        response = await super().send(send)
        return (
            replace(response, delivery=Delivery.NOT_SENT)
            if isinstance(response, Failure)
            else response
        )


class Late(AsyncRaw):
    """Sends a few turns after it is asked to, whatever became of its caller meanwhile."""

    async def send(self, send: Send) -> SendResult:
        """Send in a task that a cancellation does not reach."""
        responses: list[SendResult] = []
        ready = trio.Event() if trio.lowlevel.in_trio_task() else asyncio.Event()

        async def late() -> None:
            await turns(5)
            responses.append(await super(Late, self).send(send))
            ready.set()
            self.count -= 1

        self.count += 1
        if trio.lowlevel.in_trio_task():
            trio.lowlevel.spawn_system_task(late)
        else:
            self.task = asyncio.create_task(late())  # referred to, lest it be collected
        await ready.wait()
        return responses[0]

    async def aclose(self) -> None:
        """Wait for what is under way."""
        while self.count:
            await turns(1)
        await super().aclose()


class Losing(AsyncRaw):
    """Has one place, which whoever is cancelled does not give back."""

    async def send(self, send: Send) -> SendResult:
        """Send if there is a place."""
        if self.count:
            return failure(Delivery.NOT_SENT)
        self.count = 1
        response = await super().send(send)
        self.count = 0
        return response


class Deaf(AsyncRaw):
    """Takes a cancellation for a failure."""

    async def send(self, send: Send) -> SendResult:
        """Send, and swallow."""
        try:
            return await super().send(send)
        except (asyncio.CancelledError, trio.Cancelled):
            return failure(Delivery.MAYBE_SENT)


class Inventive(AsyncRaw):
    """Makes up the response of every third call of the same kind in a row."""

    async def send(self, send: Send) -> SendResult:
        """Send, or pretend to."""
        self.count = self.count + 1 if b'"amount":1,' in send.request.body else 0
        if self.count < 3:
            return await super().send(send)
        return Sandbox(api_key=API_KEY).handle(send.request)


class Sleepless(AsyncRaw):
    """Cannot wait."""

    async def sleep(self, seconds: float) -> None:
        """Fail in a way that is no failure of a call."""
        raise ZeroDivisionError(seconds)


class Curious(AsyncRaw):
    """Looks at the coroutines of its tasks, as anyio does."""

    async def send(self, send: Send) -> SendResult:
        """Send, unless this task does not run."""
        task = asyncio.current_task()
        assert task is not None
        coroutine: Any = task.get_coro()
        assert inspect.getcoroutinestate(coroutine) == inspect.CORO_RUNNING
        return await super().send(send)


def narrow(transport: type[AsyncRaw]) -> Any:
    """Give what makes a client over this transport, with one connection."""

    def connect(protocol: CreduseProtocol) -> AsyncCoreClient:
        return AsyncCoreClient(protocol, transport(protocol))

    return connect


@pytest.mark.parametrize(
    ("transport", "scenario", "found"),
    [
        (AsyncDenying, "add-meets-apply-then-close", r"applied .* 2 times"),
        (AsyncCareless, "add-meets-surplus-whole", "took an earlier response for its own"),
    ],
)
def test_async_broken_promise_is_found_out(
    run_loop: Callable[[Main], None], transport: type[AsyncRaw], scenario: str, found: str
) -> None:
    """Under an event loop it is judged alike."""

    async def main() -> None:
        await check_async(NAMED[scenario], narrow(transport))

    with pytest.raises(AssertionError, match=found):
        run_loop(main)


class AsyncAlone(AsyncRaw):
    """Fails where another call is under way."""

    async def send(self, send: Send) -> SendResult:
        if self.active:
            return failure(Delivery.NOT_SENT)
        return await super().send(send)


class AsyncHeedless(AsyncRaw):
    """Does not mind whether it is closed, nor wait for what is under way."""

    def check(self) -> None:
        pass

    async def aclose(self) -> None:
        await self.close_idle()


class AsyncHasty(AsyncRaw):
    """Looks whether it is closed before it connects, and not again."""

    async def exchange(self, link: AsyncLink, send: Send, progress: Progress) -> Response:
        closed, self.closed = self.closed, False
        try:
            return await super().exchange(link, send, progress)
        finally:
            self.closed = closed

    async def aclose(self) -> None:
        self.closed = True
        await self.close_idle()


class AsyncOpen(AsyncRaw):
    """Leaves its connections to the test, when it is closed."""

    async def aclose(self) -> None:
        self.closed = True
        ASYNC_OPEN.append(self)


ASYNC_OPEN: list[AsyncRaw] = []


def finally_closed(check: Callable[[], Coroutine[Any, Any, None]]) -> Main:
    """Close what is left open, on its loop."""

    async def main() -> None:
        try:
            await check()
        finally:
            while ASYNC_OPEN:
                await ASYNC_OPEN.pop().close_idle()

    return main


def test_kit_passes_good_tasks(run_loop: Callable[[Main], None]) -> None:
    """The good transport, shared."""

    async def main() -> None:
        await check_async_concurrency(LEVELS["four-callers"], narrow(AsyncRaw))

    run_loop(main)


@pytest.mark.parametrize("name", CLOSED)
def test_kit_passes_good_ends_of_tasks(run_loop: Callable[[Main], None], name: str) -> None:
    """The good transport, closed."""

    async def main() -> None:
        await check_async_closing(CLOSED[name], narrow(AsyncRaw))

    run_loop(main)


@pytest.mark.parametrize(
    ("transport", "found"),
    [
        (AsyncAlone, "raised TransportError"),
        (AsyncOpen, "did not close all connections: 1 are open"),
    ],
)
def test_bad_concurrency_of_tasks_is_found_out(
    run_loop: Callable[[Main], None],
    transport: type[AsyncRaw],
    found: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Tasks that get into each other's way are."""
    monkeypatch.setattr("creduse_sandbox.conformance.checks.WITHIN", 1.0)

    async def main() -> None:
        await check_async_concurrency(LEVELS["four-callers"], narrow(transport))

    with pytest.raises(AssertionError, match=found):
        run_loop(finally_closed(main))


@pytest.mark.parametrize(
    ("transport", "name", "found"),
    [
        (
            AsyncHeedless,
            "close-while-connecting",
            r"the client sent request \d+ after it was closed",
        ),
        (AsyncHasty, "close-while-connecting", r"the client sent request \d+ after it was closed"),
        (
            AsyncHeedless,
            "close-while-meeting-429-seconds",
            r"a call after close\(\) returned a result",
        ),
        (AsyncOpen, "close-while-meeting-429-seconds", "did not close all connections: 1 are open"),
    ],
)
def test_bad_end_of_tasks_is_found_out(
    run_loop: Callable[[Main], None],
    transport: type[AsyncRaw],
    name: str,
    found: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So is what goes on when a client is closed."""
    monkeypatch.setattr("creduse_sandbox.conformance.checks.WITHIN", 1.0)

    async def main() -> None:
        await check_async_closing(CLOSED[name], narrow(transport))

    with pytest.raises(AssertionError, match=found):
        run_loop(finally_closed(main))


INTERRUPT: dict[Callable[[Main], None], Callable[..., None]] = {
    run_asyncio: check_interruption_on_asyncio,
    run_trio: check_interruption_on_trio,
}


class TrioBreaking(AsyncRaw):
    """Breaks a system task of trio's when it is interrupted."""

    async def send(self, send: Send) -> SendResult:
        """Send, or break."""
        try:
            return await super().send(send)
        except KeyboardInterrupt:
            trio.lowlevel.spawn_system_task(self.fail)
            raise

    async def fail(self) -> None:
        """Fail."""
        raise ZeroDivisionError


class TrioHanging(AsyncRaw):
    """Goes on for ever when it is interrupted."""

    async def send(self, send: Send) -> SendResult:
        """Send, or hang."""
        try:
            return await super().send(send)
        except KeyboardInterrupt:
            await trio.sleep_forever()
            raise


def test_kit_passes_what_stands_ctrl_c_on_asyncio() -> None:
    """The good transport, interrupted at each place."""
    check_interruption_on_asyncio(INTERRUPTED["ctrl-c-meeting-with-429"], narrow(AsyncRaw))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("loop", "transport", "found"),
    [
        (run_asyncio, Deaf, "must raise the KeyboardInterrupt of the signal"),
        (run_asyncio, Losing, "a later call, .*, raised TransportError"),
        (run_trio, Losing, "a later call, .*, raised TransportError"),
        (run_trio, TrioBreaking, "the interruption ended trio's event loop: TrioInternalError"),
        (run_trio, TrioHanging, "the interruption ended trio's event loop: this .* in time"),
        (run_asyncio, Inventive, r"the server applied \d of a hundred later calls"),
    ],
)
def test_bad_ctrl_c_is_found_out(
    loop: Callable[[Main], None],
    transport: type[AsyncRaw],
    found: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is said about it names the promise, and the place at which it was broken."""
    if "in time" in found:
        monkeypatch.setattr("creduse_sandbox.conformance.interruption.WITHIN", 1.0)
    with pytest.raises(AssertionError, match=found):
        INTERRUPT[loop](INTERRUPTED["ctrl-c-meeting-with-nothing"], narrow(transport))
    gc.collect()  # what a loop that is broken leaves behind warns here, not in another test


@pytest.mark.parametrize(
    ("transport", "cancellation", "found"),
    [
        (Late, "meeting-with-nothing", r"the client sent request \d+ after the call was cancelled"),
        (Losing, "meeting-with-nothing", "a later call, .*, raised TransportError"),
        (
            AsyncDenying,
            "meeting-with-head-then-hang",
            "without refusing it, but its outcome is NOT_APPLIED",
        ),
        (Inventive, "meeting-with-nothing", r"the server applied \d of a hundred later calls"),
    ],
)
def test_bad_cancellation_is_found_out(
    run_loop: Callable[[Main], None], transport: type[AsyncRaw], cancellation: str, found: str
) -> None:
    """What is said about it names the promise, and the step at which it was broken."""

    async def main() -> None:
        await check_cancellation(CANCELLED[cancellation], narrow(transport))

    with pytest.raises(AssertionError, match=found):
        run_loop(main)


def test_swallowed_cancellation_is_found_out() -> None:
    """Under asyncio. Under trio a task that goes on is cancelled again at its next checkpoint."""

    async def main() -> None:
        await check_cancellation(CANCELLED["meeting-with-nothing"], narrow(Deaf))

    with pytest.raises(AssertionError, match="swallowed the cancellation and went on"):
        run_asyncio(main)


def test_tasks_can_be_looked_at() -> None:
    """A library does not notice that its steps are counted."""

    async def main() -> None:
        calls = await check_cancellation(CANCELLED["meeting-with-nothing"], narrow(Curious))
        assert {call.state for call in calls} == {State.ABANDONED, State.SUCCEEDED}

    run_asyncio(main)


def test_foreign_exception_comes_through_a_cancellation(run_loop: Callable[[Main], None]) -> None:
    """It is neither a call's failure nor its cancellation."""

    async def main() -> None:
        await check_cancellation(CANCELLED["meeting-with-429"], narrow(Sleepless))

    with pytest.raises(ZeroDivisionError):
        run_loop(main)


@pytest.mark.parametrize("cancelled", [False, True])
def test_async_open_connection_is_found_out(
    run_loop: Callable[[Main], None], monkeypatch: pytest.MonkeyPatch, *, cancelled: bool
) -> None:
    """A client that is closed leaves none, whether or not its calls were cancelled."""
    monkeypatch.setattr("creduse_sandbox.conformance.checks.WITHIN", 0.3)

    async def main() -> None:
        if cancelled:
            await check_cancellation(Cancellation("meeting-with-nothing"), narrow(AsyncOpen))
        else:
            await check_async(NAMED["add"], narrow(AsyncOpen))

    with pytest.raises(AssertionError, match="did not close all connections: 1 are open"):
        run_loop(finally_closed(main))


def test_call_without_end_is_found_out(
    run_loop: Callable[[Main], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The steps of a call are bounded."""
    monkeypatch.setattr("creduse_sandbox.conformance.cancellation._MAX_STEPS", 2)

    async def main() -> None:
        await check_cancellation(CANCELLED["meeting-with-nothing"], narrow(AsyncRaw))

    with pytest.raises(AssertionError, match="no call ended within 2 steps"):
        run_loop(main)


# The tables


ALL = (*SCENARIOS, *TLS_SCENARIOS)
UNMET = {
    "endless-100": "it has no end that is the same for all; add-meets-100-too-long has one",
}


def test_names_are_unique_and_readable() -> None:
    """A name is what is said on the command line to run one scenario."""
    names = [str(scenario) for scenario in (*ALL, *CANCELLATIONS)]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]+", name) for name in names)


def test_every_fault_is_met() -> None:
    """Or there is a reason why it is not."""
    met = [fault for scenario in SCENARIOS for fault in (*scenario.faults, scenario.before)]
    assert {name for name, fault in FAULTS.items() if fault not in met} == set(UNMET)


@pytest.mark.parametrize("scenario", ALL, ids=str)
def test_endings_are_said(scenario: Scenario) -> None:
    """A scenario may end in some way, and what its limit allows besides has a limit."""
    assert scenario.endings
    assert len(set(map(str, scenario.endings))) == len(scenario.endings)
    assert scenario.limit or not scenario.endings_at_limit
    for ending in (*scenario.endings, *scenario.endings_at_limit):
        assert ending.applied <= 1
        assert ending.applied <= ending.requests
        assert ending.outcome is not Outcome.APPLIED or ending.applied
        assert not ending.applied or ending.outcome is not Outcome.NOT_APPLIED


def test_tls_scenarios_are_the_plain_ones() -> None:
    """Except for what happens before a request can be sent, which TLS changes."""
    over_tls = {scenario.name: scenario for scenario in TLS_SCENARIOS}
    for scenario in SCENARIOS:
        twin = over_tls.pop(f"{scenario.name}-over-tls")
        assert twin.certificate == "good"
        if "-meets-connect-then-" not in scenario.name:
            assert replace(twin, name=scenario.name, certificate="") == scenario
    assert {scenario.certificate for scenario in over_tls.values()} == {
        "untrusted",
        "misnamed",
        "expired",
    }
    assert len(over_tls) == 9
