"""One HTTP/1.1 connection of the server, on asyncio's event loop.

Bytes become requests, the sandbox or an injected fault makes the response, and the log gets its
entries. The listening socket, the thread and the handle for tests (`server`), what a response says
(`sandbox`, `page`), and what a fault does to its bytes (`faults`) do not belong here.
"""

import asyncio
import errno
import itertools
import math
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial
from typing import Any, cast

import h11

from creduse_core import HeaderPairs, Request, Response
from creduse_sandbox.faults import Action, CannedResponse, Drop, Fault, Shaped, Stage
from creduse_sandbox.sandbox import Clock, Sandbox, error_response, path_of
from creduse_sandbox.tls import Tls

MAX_REQUEST_BODY = 1024 * 1024
"""Bytes. The server responds with 413 to a request with a longer body."""

PAGE_FILES = "/_page/"
"""The first part of all paths of the page, except ``/``."""

# Browsers ask for these by themselves. No fault meets them, and the log omits them.
_OF_BROWSERS = ("/favicon.ico", "/.well-known/")

_NO_REQUEST = Request("", "", (), b"")
_NO_BODY = {204, 304}  # RFC 9110 6.4.1


@dataclass(frozen=True, slots=True)
class LogEntry:
    """A request as far as the server has received it, and what the server did with it.

    A connection that a fault drops when it connects has no request, and so no entry.
    """

    number: int
    """Counts the server's requests from 1, by their first byte. A reset does not restart it."""
    connection: int
    """Counts the server's connections from 1. A reset does not restart it."""
    method: str | None = None
    """`None` until the server has the whole head."""
    path: str | None = None
    """`None` until the server has the whole head."""
    headers: HeaderPairs = ()
    """As received, without ``Authorization``: the log never holds an API key. Empty until the
    server has the whole head."""
    body: bytes | None = None
    """`None` until the server has the whole body."""
    received: int = 0
    """Bytes of the request that arrived before its response, head and framing included."""
    status: int | None = None
    """The status code of the final response, once the server has begun it. A fault may still
    change the bytes."""
    applied: bool = False
    """Whether the request was a write that the server applied."""
    fault: Fault | None = None
    """The fault that was injected for this request."""
    at: datetime | None = field(default=None, compare=False)
    """When its first byte arrived, in UTC by the system's clock. No comparison uses it."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a server that runs for long keeps at most. A test's server has no such limits."""

    requests: int = 1_000
    """Entries of the log. The oldest goes first."""
    request_body: int = 64 * 1024
    """Bytes. The server responds with 413 to a request with a longer body."""
    logged_body: int = 4 * 1024
    """Bytes. The log does not keep a longer body."""
    connections: int = 900
    """Open ones, fewer than the files that Linux lets a process open. For another one, the server
    closes the one that has been idle for longest."""
    idle_seconds: float = 300.0
    """The server closes a connection that has sent nothing for so long, unless it waits for a
    response or meets a fault that hangs."""


@dataclass(slots=True)
class InjectedFault:
    """A fault, the number of requests that it is still for, and a condition on them."""

    fault: Fault
    times: int
    when: Callable[[Request], bool] | None

    def matches(self, request: Request, stages: set[Stage]) -> bool:
        """Return whether the fault is for this request, at one of these stages."""
        return self.fault.stage in stages and (self.when is None or self.when(request))


@dataclass(slots=True)
class ServerState:
    """What a server's connections share with each other and with its handle.

    Hold ``lock`` to use ``sandbox``, ``injected``, ``log`` or ``advanced``. A connection holds it while it
    processes what it received, so a client that has a response finds the request in the log. The
    lock is reentrant because ``when`` functions may use the handle. Only the event loop's thread
    uses the other fields.
    """

    sandbox: Sandbox
    clock: Clock
    """With the time by which it was advanced."""
    ssl_context: ssl.SSLContext | None
    page: "Callable[[ServerState, Request], Response]"
    """Responds to a request of the page."""
    host: str = "127.0.0.1"
    """What the server listens on."""
    base_url: str | None = None
    api_key: str | None = None
    limits: Limits | None = None
    on_request: Callable[[LogEntry], None] | None = None
    """Gets each request once, when its response begins or will never come."""
    on_action: Callable[[str], None] | None = None
    """Gets in words what a button of the page has done."""
    advanced: timedelta = timedelta()
    lock: threading.RLock = field(default_factory=threading.RLock)
    injected: list[InjectedFault] = field(default_factory=list[InjectedFault])
    log: dict[int, LogEntry] = field(default_factory=dict[int, LogEntry])
    pending: set[int] = field(default_factory=set[int])
    """The numbers of requests whose responses are still to begin."""
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    connection_numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    connections: set["Connection"] = field(default_factory=set["Connection"])
    errors: list[Exception] = field(default_factory=list[Exception])

    def advance(self, by: timedelta) -> None:
        """Move the sandbox's clock ahead, or raise as `SandboxServer.advance` does."""
        with self.lock:
            _ = self.clock() + by  # an OverflowError must rise here, not in the server
            self.sandbox.keep_advanced(self.advanced + by)
            self.advanced += by

    def record(self, entry: LogEntry) -> None:
        """Put an entry into the log, as far as the limits allow."""
        limits = self.limits
        if limits and entry.body is not None and len(entry.body) > limits.logged_body:
            entry = replace(entry, body=None)
        self.log[entry.number] = entry
        if limits and len(self.log) > limits.requests:
            del self.log[next(iter(self.log))]

    def report(self, entry: LogEntry) -> None:
        """Tell that no more will become of a request than its entry says."""
        self.pending.discard(entry.number)
        if self.on_request is not None:
            self.on_request(entry)

    def report_action(self, what: str) -> None:
        """Tell what a button of the page has done."""
        if self.on_action is not None:
            self.on_action(what)

    def make_room(self) -> None:
        """Close the connection that has been idle for longest, if there are too many."""
        if self.limits and len(self.connections) > self.limits.connections:
            min(self.connections, key=lambda it: it.idle_since).abort()

    def close_idle(self, now: float) -> None:
        """Close connections that have been idle for too long, by the event loop's clock."""
        longest = self.limits.idle_seconds if self.limits else math.inf
        for connection in [*self.connections]:
            if now - connection.idle_since > longest:
                connection.abort()

    def take_fault(self, request: Request, stages: set[Stage]) -> Fault | None:
        """Return the first fault that is for this request, and count it as used once."""
        for injected in self.injected:
            if injected.matches(request, stages):
                injected.times -= 1
                self.injected[:] = [it for it in self.injected if it.times]
                return injected.fault
        return None

    def record_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Keep an error of the event loop for `SandboxServer.close` to raise."""
        # asyncio ends the stream once it has written everything. The peer may be gone by then.
        if getattr(context.get("exception"), "errno", None) == errno.ENOTCONN:
            return
        loop.default_exception_handler(context)
        self.errors.append(context.get("exception") or RuntimeError(context["message"]))


class Connection(asyncio.Protocol):
    """One connection: h11 parses the bytes, the sandbox or a fault makes each response.

    This class does not tell h11 that the peer has ended its stream. asyncio closes the transport
    after it has written everything, so the log shows an incomplete request as incomplete.
    """

    _transport: asyncio.Transport

    def __init__(self, state: ServerState) -> None:
        self._state = state
        self._number = next(state.connection_numbers)
        self._http = h11.Connection(h11.SERVER)
        self._tls = Tls(state.ssl_context) if state.ssl_context else None
        self._responding = False  # a response, or pieces of one, are still to be written
        self._done = False  # ignore what the peer still sends
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self.lost = self._loop.create_future()
        self._idle_from_now()
        self._await_request()

    def _idle_from_now(self) -> None:
        self.idle_since = self._loop.time()

    def _await_request(self) -> None:
        self._entry = LogEntry(0, self._number)
        self._request = _NO_REQUEST
        self._body = bytearray()
        self._is_page = False  # the request is the page's: it is not in the log, and meets no fault
        self._reported = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Register the connection, or drop it if a fault says so."""
        # The transports of create_server read and write. asyncio's types do not say so.
        self._transport = cast("asyncio.Transport", transport)
        self._state.connections.add(self)
        with self._state.lock:
            fault = self._state.take_fault(_NO_REQUEST, {Stage.CONNECTED})
        if isinstance(fault, Drop):
            self._reported = True
            self._state.report(replace(self._entry, fault=fault, at=datetime.now(UTC)))
            self._drop(fault)
        self._state.make_room()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """Unregister the connection."""
        self._cancel_timer()
        self._state.connections.discard(self)
        if self._entry.number:
            self._report()
        self.lost.set_result(None)

    def abort(self) -> None:
        """Close the connection at once, and drop what is not yet written."""
        self.idle_since = math.inf  # so that no limit chooses this connection again
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Decrypt what the peer sent, and process it."""
        if self._done:
            return
        if self.idle_since != math.inf:
            self._idle_from_now()
        if self._tls is None:
            self._receive(data)
            return
        try:
            data, is_open = self._tls.receive(data)
        except ssl.SSLError:
            self._transport.write(self._tls.to_send())  # TLS's alert, if there is one
            self._end(Action.CUT)
            return
        self._transport.write(self._tls.to_send())
        if data:
            self._receive(data)
        if not is_open and not self._done:
            self._end(Action.CLOSE)

    def _write(self, pieces: Iterable[bytes]) -> None:
        """Write all pieces at once. Over TLS, each becomes a record."""
        if self._tls is None:
            self._transport.write(b"".join(pieces))
            return
        for piece in pieces:
            self._tls.send(piece)
        self._transport.write(self._tls.to_send())

    def _drop(self, drop: Drop) -> None:
        """Ignore what the peer still sends, and do the action of ``drop`` after its delay."""
        self._done = True
        if drop.delay:
            self.idle_since = math.inf
            self._later(drop.delay, partial(self._end, drop.action))
        else:
            self._end(drop.action)

    def _end(self, action: Action) -> None:
        """Ignore what the peer still sends, and do ``action`` with the connection."""
        self._done = True
        self._idle_from_now()
        self._cancel_timer()
        match action:
            case Action.RESET:
                linger = struct.pack("ii", 1, 0)
                sock = self._transport.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                self._transport.abort()
            case Action.CLOSE | Action.CUT:
                if self._tls is not None and action is Action.CLOSE:
                    self._tls.end()
                    self._transport.write(self._tls.to_send())
                # To close the socket while bytes arrive would reset the connection, and the peer
                # could lose the response (RFC 9112 9.6). So only our stream ends.
                with suppress(OSError):  # the peer is gone
                    self._transport.write_eof()
            case _:  # HANG: the connection stays open
                self.idle_since = math.inf

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _receive(self, data: bytes) -> None:
        with self._state.lock:
            self._http.receive_data(data)
            if not self._responding:
                self._count(len(data))
                self._read()

    def _update_log(self, **changes: Any) -> None:
        self._entry = replace(self._entry, **changes)
        if not self._is_page:
            self._state.record(self._entry)

    def _report(self) -> None:
        if not (self._reported or self._is_page):
            self._reported = True
            self._state.report(self._entry)

    def _count(self, size: int) -> None:
        if self._entry.number:
            self._update_log(received=self._entry.received + size)
            return
        number = next(self._state.numbers)
        self._state.pending.add(number)
        self._update_log(number=number, at=datetime.now(UTC), received=size)

    def _read(self) -> None:
        try:
            while not self._done and not self._responding:
                match self._http.next_event():
                    case h11.Request() as head:
                        self._receive_head(head)
                    case h11.Data(data=data):
                        self._receive_body(data)
                    case h11.EndOfMessage():
                        self._receive_end()
                    case _:  # h11 needs more bytes
                        break
        except h11.RemoteProtocolError as error:
            # The error's own text quotes the line, which may hold the API key.
            self._reject(error.error_status_hint, "BAD_REQUEST", "This is not HTTP/1.1.")
        if self._http.they_are_waiting_for_100_continue and not self._done:
            go_on = h11.InformationalResponse(status_code=100, headers=[])
            self._write([self._http.send(go_on)])

    def _receive_head(self, head: h11.Request) -> None:
        raw_headers = head.headers.raw_items()
        headers = tuple((name.decode(), value.decode("latin-1")) for name, value in raw_headers)
        self._request = Request(head.method.decode(), head.target.decode(), headers, b"")
        self._is_page = is_page(self._request)
        if self._is_page:
            self._state.log.pop(self._entry.number, None)
            self._state.pending.discard(self._entry.number)
            return
        fault = self._state.take_fault(self._request, {Stage.HEAD})
        self._update_log(
            method=self._request.method,
            path=path_of(self._request.url),
            headers=tuple(pair for pair in headers if pair[0].lower() != "authorization"),
            fault=fault,
        )
        if isinstance(fault, Drop):
            self._report()
            self._drop(fault)

    def _receive_body(self, data: bytes) -> None:
        self._body += data
        limit = self._state.limits.request_body if self._state.limits else MAX_REQUEST_BODY
        if len(self._body) > limit:
            message = f"The body is longer than {limit} bytes."
            self._reject(413, "CONTENT_TOO_LARGE", message)

    def _receive_end(self) -> None:
        trailing = len(self._http.trailing_data[0])
        head = self._request
        request = Request(head.method, head.url, head.hidden_headers, bytes(self._body))
        if self._is_page:
            self._respond(Shaped(), self._state.page(self._state, request))
            return
        fault = self._state.take_fault(request, {Stage.REQUEST, Stage.APPLIED})
        received = self._entry.received - trailing
        self._update_log(body=request.body, received=received, fault=fault)
        match fault:
            case Drop():
                if fault.stage is Stage.APPLIED:
                    self._process(request)
                self._report()
                self._drop(fault)
            case CannedResponse():
                self._respond(Shaped(delay=fault.delay), _to_response(fault))
            case Shaped(response=CannedResponse() as canned):
                self._respond(fault, _to_response(canned))
            case Shaped():
                self._respond(fault, fault.edit(self._process(request)))
            case _:
                self._respond(Shaped(), self._process(request))

    def _process(self, request: Request) -> Response:
        response, applied = self._state.sandbox.process(request)
        self._update_log(applied=applied)
        return response

    def _reject(self, status: int, error_code: str, message: str) -> None:
        """Respond to a request that cannot be read to its end, and close."""
        close = (("Connection", "close"),)
        response = error_response(status, error_code, message, self._state.clock(), close)
        self._respond(Shaped(then=Action.CLOSE), response)

    def _respond(self, shaped: Shaped, response: Response) -> None:
        headers = [*response.headers]
        if response.header("date") is None:
            now = self._state.clock().astimezone(UTC)
            headers.append(("Date", format_datetime(now, usegmt=True)))
        if response.status not in _NO_BODY:
            headers.append(("Content-Length", str(len(response.body))))
        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
        head = self._http.send(h11.Response(status_code=response.status, headers=raw))
        body = b""
        if self._request.method != "HEAD" and response.status not in _NO_BODY:
            body = self._http.send(h11.Data(data=response.body))
        self._http.send(h11.EndOfMessage())  # no bytes, as there is a Content-Length
        pieces = shaped.shape(head, body)
        # One step writes all pieces, unless there are pauses between them.
        steps = ((it,) for it in pieces) if shaped.pause is not None else (pieces,)
        self._responding = True
        start = partial(self._start, response.status, iter(steps), shaped)
        if shaped.delay:
            self.idle_since = math.inf
            self._later(shaped.delay, start)
        else:
            start()

    def _start(self, status: int, steps: Iterator[Iterable[bytes]], shaped: Shaped) -> None:
        self._update_log(status=status)
        self._report()
        self._write_next(steps, shaped)

    def _write_next(self, steps: Iterator[Iterable[bytes]], shaped: Shaped) -> None:
        for pieces in steps:
            self._write(pieces)
            if shaped.pause is not None:
                self._later(shaped.pause, partial(self._write_next, steps, shaped))
                return
        self._responding = False
        self._idle_from_now()
        self._finish(shaped.then)

    def _later(self, seconds: float, act: Callable[[], None]) -> None:
        self._timer = self._loop.call_later(seconds, self._resume, act)

    def _resume(self, act: Callable[[], None]) -> None:
        with self._state.lock:
            try:
                act()
                if not self._responding:
                    self._read()
            except Exception:
                self.abort()
                raise

    def _finish(self, then: Action) -> None:
        """Wait for the next request, if ``then`` and HTTP let the connection stay open."""
        if then is not Action.KEEP:
            self._end(then)
        elif self._http.our_state is self._http.their_state is h11.DONE:
            self._http.start_next_cycle()
            self._await_request()
            trailing = len(self._http.trailing_data[0])
            if trailing:
                self._count(trailing)
        else:
            self._end(Action.CLOSE)


def is_page(request: Request) -> bool:
    """Return whether a request is the page's, not the API's."""
    path = path_of(request.url)
    return path.startswith((PAGE_FILES, *_OF_BROWSERS)) or (path == "/" and request.method == "GET")


def _to_response(canned: CannedResponse) -> Response:
    return Response(canned.status, canned.headers, canned.body)
