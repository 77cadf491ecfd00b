"""The sandbox on a socket: an HTTP/1.1 server for tests and for the command line.

Connections, the log and the orders live here. What an answer says must not: that is the
sandbox's, or the fault's that was ordered.
"""

import asyncio
import errno
import itertools
import signal
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Coroutine, Generator, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from types import TracebackType
from typing import Any, Self, cast

import h11

from creduse_core import CoreClient, CreduseProtocol, Send
from creduse_core.messages import HeaderPairs, Request, Response
from creduse_sandbox.faults import FAULTS, Action, Answer, Drop, Fault, Shaped, Stage
from creduse_sandbox.sandbox import Clock, Sandbox, error_response, path_of, utc_now
from creduse_sandbox.tls import Tls

MAX_REQUEST_BODY = 1024 * 1024
"""Bytes. A request with a longer body is answered with 413."""

_NO_REQUEST = Request("", "", (), b"")
_NO_BODY = {204, 304}  # RFC 9110 6.4.1


@dataclass(frozen=True, slots=True)
class LogEntry:
    """A request, as far as it has come, and what was done about it.

    ``number`` counts the server's requests from 1, by their first byte, and ``connection`` its
    connections; a `SandboxServer.reset` does not start either anew. Until the head is whole,
    ``method`` and ``path`` are `None` and ``headers`` is empty; until the body is, ``body`` is
    `None`. ``headers`` are as they came, without ``Authorization``: the log never holds a key.
    ``received`` counts the request's bytes, head and framing included, up to its answer.
    ``status`` is that of the final answer, once one has been begun; a fault may spoil its bytes.
    ``applied`` says that it was a write and has been carried out.
    ``fault`` is what was ordered for it, if anything was. A connection that is dropped at once has
    no request, so that fault stands in no entry.
    """

    number: int
    connection: int
    method: str | None = None
    path: str | None = None
    headers: HeaderPairs = ()
    body: bytes | None = None
    received: int = 0
    status: int | None = None
    applied: bool = False
    fault: Fault | None = None


def _check_fault(fault: object) -> None:
    if not isinstance(fault, Fault):
        hint = f': try FAULTS["{fault}"]' if isinstance(fault, str) and fault in FAULTS else ""
        raise TypeError(
            "fault must be one of FAULTS, or an Answer, Drop or Shaped of your own, "
            f"not {type(fault).__name__}{hint}"
        )


@dataclass(slots=True)
class _Injected:
    fault: Fault
    times: int
    when: Callable[[Request], bool] | None

    def matches(self, request: Request, stages: set[Stage]) -> bool:
        return (
            self.times > 0
            and self.fault.stage in stages
            and (self.when is None or self.when(request))
        )


@dataclass(slots=True)
class _Desk:
    """What the connections of one server share with it.

    ``sandbox``, ``injected`` and ``log`` are touched under the lock alone; a connection holds it for
    as long as it works on what it received, so whoever has read an answer finds it in the log.
    It is reentrant for the sake of the orders' predicates. The rest is the loop's thread's.
    """

    sandbox: Sandbox
    clock: Clock
    ssl_context: ssl.SSLContext | None
    lock: threading.RLock = field(default_factory=threading.RLock)
    injected: list[_Injected] = field(default_factory=list[_Injected])
    log: dict[int, LogEntry] = field(default_factory=dict[int, LogEntry])
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    connection_numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    connections: set["_Connection"] = field(default_factory=set["_Connection"])
    errors: list[Exception] = field(default_factory=list[Exception])

    def take_order(self, request: Request, stages: set[Stage]) -> Fault | None:
        for injected in self.injected:
            if injected.matches(request, stages):
                injected.times -= 1
                return injected.fault
        return None

    def failed(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Keep what no client should have to find out, for `SandboxServer.close` to raise.

        A peer may have hung up by the time asyncio ends the stream, what was written being out.
        """
        if getattr(context.get("exception"), "errno", None) == errno.ENOTCONN:
            return
        loop.default_exception_handler(context)
        self.errors.append(context.get("exception") or RuntimeError(context["message"]))


class _Connection(asyncio.Protocol):
    """One connection: bytes go to h11, whole requests to the desk, answers back.

    The peer's end of stream is not told to h11. asyncio closes the transport then, once what
    has been written is out; a request that was not whole stays so in the log.
    """

    _transport: asyncio.Transport

    def __init__(self, desk: _Desk) -> None:
        self._desk = desk
        self._number = next(desk.connection_numbers)
        self._http = h11.Connection(h11.SERVER)
        self._tls = Tls(desk.ssl_context) if desk.ssl_context else None
        self._busy = False  # an answer is being written, piece by piece
        self._done = False  # nothing that still comes is read
        self._timer: asyncio.TimerHandle | None = None
        self.lost = asyncio.get_running_loop().create_future()
        self._begin()

    def _begin(self) -> None:
        self._entry = LogEntry(0, self._number)
        self._request = _NO_REQUEST
        self._body = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # What create_server makes reads and writes; asyncio's types do not say so.
        self._transport = cast("asyncio.Transport", transport)
        self._desk.connections.add(self)
        with self._desk.lock:
            fault = self._desk.take_order(_NO_REQUEST, {Stage.CONNECTED})
        if isinstance(fault, Drop):
            self._end(fault.action)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self._stop_writing()
        self._desk.connections.discard(self)
        self.lost.set_result(None)

    def abort(self) -> None:
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._done:
            return
        if self._tls is None:
            self._receive(data)
            return
        try:
            data, goes_on = self._tls.receive(data)
        except ssl.SSLError:
            self._transport.write(self._tls.to_send())  # why, if there is a way to say it
            self._end(Action.CUT)
            return
        self._transport.write(self._tls.to_send())
        if data:
            self._receive(data)
        if not goes_on and not self._done:
            self._end(Action.CLOSE)

    def _write(self, pieces: Iterable[bytes]) -> None:
        """Write them all at once, though over TLS each in a record of its own."""
        if self._tls is None:
            self._transport.write(b"".join(pieces))
            return
        for piece in pieces:
            self._tls.send(piece)
        self._transport.write(self._tls.to_send())

    def _end(self, action: Action) -> None:
        """Read no more, and end the connection so."""
        self._done = True
        self._stop_writing()
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
                # Closing while bytes still come in would reset the connection, and the answer
                # might be lost with it (RFC 9112 9.6). So what comes is read and dropped until
                # the peer hangs up.
                with suppress(OSError):  # it has hung up already
                    self._transport.write_eof()
            case _:  # nothing more to be done
                pass

    def _stop_writing(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _receive(self, data: bytes) -> None:
        with self._desk.lock:
            self._http.receive_data(data)
            if not self._busy:
                self._count(len(data))
                self._read()

    def _note(self, entry: LogEntry) -> None:
        self._entry = entry
        self._desk.log[entry.number] = entry

    def _count(self, size: int) -> None:
        entry = self._entry
        number = entry.number or next(self._desk.numbers)
        self._note(replace(entry, number=number, received=entry.received + size))

    def _read(self) -> None:
        try:
            while not self._done and not self._busy:
                match self._http.next_event():
                    case h11.Request() as head:
                        self._receive_head(head)
                    case h11.Data(data=data):
                        self._receive_body(data)
                    case h11.EndOfMessage():
                        self._receive_end()
                    case _:  # no more can be made of what is here
                        break
        except h11.RemoteProtocolError as error:
            # Not the error's own text: it quotes the line, and that may hold the key.
            self._reject(error.error_status_hint, "BAD_REQUEST", "This is not HTTP/1.1.")
        if self._http.they_are_waiting_for_100_continue and not self._done:
            go_on = h11.InformationalResponse(status_code=100, headers=[])
            self._write([self._http.send(go_on)])

    def _receive_head(self, head: h11.Request) -> None:
        raw_headers = head.headers.raw_items()
        headers = tuple((name.decode(), value.decode("latin-1")) for name, value in raw_headers)
        self._request = Request(head.method.decode(), head.target.decode(), headers, b"")
        fault = self._desk.take_order(self._request, {Stage.HEAD})
        self._note(
            replace(
                self._entry,
                method=self._request.method,
                path=path_of(self._request.url),
                headers=tuple(pair for pair in headers if pair[0].lower() != "authorization"),
                fault=fault,
            )
        )
        if isinstance(fault, Drop):
            self._end(fault.action)

    def _receive_body(self, data: bytes) -> None:
        self._body += data
        if len(self._body) > MAX_REQUEST_BODY:
            message = f"A body has at most {MAX_REQUEST_BODY} bytes here."
            self._reject(413, "CONTENT_TOO_LARGE", message)

    def _receive_end(self) -> None:
        surplus = len(self._http.trailing_data[0])
        head = self._request
        request = Request(head.method, head.url, head.hidden_headers, bytes(self._body))
        fault = self._desk.take_order(request, {Stage.REQUEST, Stage.APPLIED})
        received = self._entry.received - surplus
        self._note(replace(self._entry, body=request.body, received=received, fault=fault))
        match fault:
            case Drop(action=action):
                if fault.stage is Stage.APPLIED:
                    self._process(request)
                self._end(action)
            case Answer():
                self._respond(Shaped(), _response(fault))
            case Shaped(answer=Answer() as answer):
                self._respond(fault, _response(answer))
            case Shaped():
                self._respond(fault, fault.edit(self._process(request)))
            case _:
                self._respond(Shaped(), self._process(request))

    def _process(self, request: Request) -> Response:
        response, applied = self._desk.sandbox.process(request)
        self._note(replace(self._entry, applied=applied))
        return response

    def _reject(self, status: int, error_code: str, message: str) -> None:
        """Answer a request that is not whole and never will be, and hang up."""
        close = (("Connection", "close"),)
        response = error_response(status, error_code, message, self._desk.clock(), close)
        self._respond(Shaped(then=Action.CLOSE), response)

    def _respond(self, shaped: Shaped, response: Response) -> None:
        headers = [*response.headers]
        if response.header("date") is None:
            now = self._desk.clock().astimezone(UTC)
            headers.append(("Date", format_datetime(now, usegmt=True)))
        if response.status not in _NO_BODY:
            headers.append(("Content-Length", str(len(response.body))))
        head = self._http.send(h11.Response(status_code=response.status, headers=headers))
        body = b""
        if self._request.method != "HEAD" and response.status not in _NO_BODY:
            body = self._http.send(h11.Data(data=response.body))
        self._http.send(h11.EndOfMessage())  # with a length given it is no bytes
        self._note(replace(self._entry, status=response.status))
        pieces = shaped.shape(head, body)
        if shaped.pause is None:
            self._write(pieces)
            self._finish(shaped.then)
        else:
            self._busy = True
            self._go_on(iter(pieces), shaped.pause, shaped.then)

    def _go_on(self, pieces: Iterator[bytes], pause: float, then: Action) -> None:
        for piece in pieces:
            self._write([piece])
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(pause, self._woken, pieces, pause, then)
            return
        self._busy = False
        self._finish(then)

    def _woken(self, pieces: Iterator[bytes], pause: float, then: Action) -> None:
        with self._desk.lock:
            try:
                self._go_on(pieces, pause, then)
                if not self._busy:
                    self._read()
            except Exception:
                self.abort()
                raise

    def _finish(self, then: Action) -> None:
        """Go on to the next request if the connection is to be kept, and can be."""
        if then is not Action.KEEP:
            self._end(then)
        elif self._http.our_state is self._http.their_state is h11.DONE:
            self._http.start_next_cycle()
            self._begin()
            surplus = len(self._http.trailing_data[0])
            if surplus:
                self._count(surplus)
        else:
            self._end(Action.CLOSE)


def _response(answer: Answer) -> Response:
    return Response(answer.status, answer.headers, answer.body)


@dataclass(frozen=True, slots=True)
class _Direct:
    """A transport without a socket."""

    handle: Callable[[Request], Response]

    def send(self, send: Send) -> Response:
        return self.handle(send.request)

    def sleep(self, seconds: float) -> None:
        """Not wait: the sandbox gives no answer after which one would."""

    def now(self) -> float:
        return 0.0  # no time passes in a call

    def close(self) -> None:
        """Leave all as it is: there is nothing to close."""


class SandboxServer:
    """A sandbox behind HTTP, on an event loop in a daemon thread of its own.

    It listens from `start` to `close`, or for as long as a ``with`` block lasts, and runs once.
    ``port`` 0 lets the system choose; ``api_key`` and ``clock`` are the `Sandbox`'s. With
    ``ssl_context``, a server's one with its certificate, it speaks TLS.
    All its methods may be called from any thread.

    ``direct`` is a client that needs no socket, for what a test gives to its users beforehand and
    asks afterwards. It has the five methods and their errors; it never waits, so it can be called
    from a coroutine; it meets with no fault, and what it does is not in the `log`.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        api_key: str | None = None,
        clock: Clock = utc_now,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self._host = host
        self._port = port
        self._api_key = api_key
        self._clock = clock
        self._ahead = timedelta()
        self._desk = _Desk(self._fresh(), self._now, ssl_context)
        protocol = CreduseProtocol("any" if api_key is None else api_key, "http://127.0.0.1")
        self.direct = CoreClient(protocol, _Direct(self.handle))
        self._base_url: str | None = None
        self._listener: socket.socket
        self._listening: asyncio.Server
        self._loop: Future[asyncio.AbstractEventLoop] = Future()
        self._stop: Future[None] = Future()
        self._own_tasks: set[asyncio.Task[Any] | None] = set()
        self._thread: threading.Thread | None = None

    def _fresh(self) -> Sandbox:
        return Sandbox(api_key=self._api_key, clock=self._now)

    def _now(self) -> datetime:
        return self._clock() + self._ahead

    @property
    def base_url(self) -> str:
        """Where it listens, or has listened. `RuntimeError` before `start`."""
        if self._base_url is None:
            raise RuntimeError("the server has not been started")
        return self._base_url

    @property
    def log(self) -> tuple[LogEntry, ...]:
        """Every request of which a byte has been received since the last `reset`, in order.

        Whoever has read an answer finds it in here.
        """
        with self._desk.lock:
            return tuple(self._desk.log.values())

    @property
    def applied(self) -> tuple[LogEntry, ...]:
        """The part of the `log` that was applied."""
        return tuple(entry for entry in self.log if entry.applied)

    @property
    def connections(self) -> int:
        """How many connections are open now, as far as the server has noticed."""
        return len(self._desk.connections)

    def settle(self) -> None:
        """Wait until what has left its peers by now stands in the `log`.

        So whoever stops a client and calls this can say what was first sent afterwards.
        """
        self._call(_go_round())

    def handle(self, request: Request) -> Response:
        """Answer a request without a socket, as `Sandbox.handle` does. It is not in the `log`."""
        with self._desk.lock:
            return self._desk.sandbox.handle(request)

    def inject(
        self, fault: Fault, times: int = 1, when: Callable[[Request], bool] | None = None
    ) -> None:
        """Have the next ``times`` requests for which ``when`` holds meet with ``fault``.

        Without ``when``, any whole request will do. Of several orders for a request, the first
        one given that is not used up applies. ``when`` runs in the server's thread; if it
        raises, the client loses its connection and `close` raises the error.

        A `Drop` has its own time. At HEAD it is looked for once the head is there, and ``when``
        sees a request without a body; at CONNECTED the next connection meets with it.

        Raises:
            TypeError: ``fault`` is none, such as the name of one.
            ValueError: There is a ``when`` for a `Drop` at CONNECTED, which comes before any
                request.
        """
        _check_fault(fault)
        if fault.stage is Stage.CONNECTED and when is not None:
            raise ValueError("there is no request yet when a connection is dropped at CONNECTED")
        with self._desk.lock:
            self._desk.injected.append(_Injected(fault, times, when))

    def advance(self, *, days: float) -> None:
        """Move the sandbox's clock ahead, and no other: credits expire, cycles are renewed.

        It goes on from there, until a `reset` puts it back.

        Raises:
            OverflowError: That would be past the year 9999.
            ValueError: ``days`` is negative. The ledger does not go back.
        """
        if days < 0:
            raise ValueError("the clock cannot go back: days must not be negative")
        with self._desk.lock:
            ahead = self._ahead + timedelta(days=days)
            _ = self._clock() + ahead  # what is wrong with it is raised here, not in the server
            self._ahead = ahead

    def reset(self) -> None:
        """Begin again with an empty ledger, no orders, an empty log and the clock as it was.

        Connections stay open; a request that is still coming in enters the log again when more
        of it comes.

        Raises:
            ExceptionGroup: As in `close`, which does not raise it again.
        """
        with self._desk.lock:
            self._ahead = timedelta()
            self._desk.sandbox = self._fresh()
            self._desk.injected.clear()
            self._desk.log.clear()
        self._raise_errors()

    def _raise_errors(self) -> None:
        errors, self._desk.errors = self._desk.errors, []
        if errors:
            raise ExceptionGroup("the sandbox server failed", errors)

    def start(self) -> None:
        """Listen. On return, connections are accepted.

        Raises:
            OSError: The address is in use, or not one of this machine's.
            RuntimeError: It has been started before.
        """
        if self._base_url is not None:
            raise RuntimeError("a SandboxServer runs once")
        # In the caller's thread, so that an address in use is the caller's exception.
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        self._listener = socket.create_server((self._host, self._port), family=family)
        scheme = "http" if self._desk.ssl_context is None else "https"
        host = f"[{self._host}]" if ":" in self._host else self._host
        self._base_url = f"{scheme}://{host}:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._run, name="creduse-sandbox", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening, drop every connection and wait for the thread's end.

        Without effect when it does not run.

        Raises:
            ExceptionGroup: Something went wrong inside the server; no client should have to
                guess it from a lost connection.
        """
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._stop.set_result(None)
        thread.join()
        self._raise_errors()

    @contextmanager
    def refusing(self) -> Generator[None, None, None]:
        """Refuse connections inside a ``with`` block, and drop those there are when it begins.

        The port stays taken. Afterwards it listens there again, unless it was closed meanwhile.

        Raises:
            RuntimeError: It does not run, or refuses already.
        """
        if not self._runs():
            raise RuntimeError("the server does not run")
        self._call(self._refuse())
        try:
            yield
        finally:
            if self._runs():
                self._call(self._listen())

    @contextmanager
    def stalling(self) -> Generator[None, None, None]:
        """Leave connections waiting inside a ``with`` block, and drop those there are as it begins.

        Nobody gets a connection, and nobody is told so. Whoever still waits afterwards gets one
        when its system tries again: on Linux one, three or seven seconds after it began to.

        Raises:
            RuntimeError: It does not run, or refuses already.
        """
        with self.refusing():
            _may_share(self._listener, reuse_address=True, reuse_port=False)
            self._listener.listen(0)
            # The queue has one place. Nobody takes from it, so whoever comes later is not heard.
            with socket.create_connection(self._listener.getsockname()):
                yield

    def _runs(self) -> bool:
        return self._thread is not None

    def _call(self, task: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(task, self._loop.result()).result()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _run(self) -> None:
        # On a loop of asyncio's own, whatever policy a test may have set for its loops.
        with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._desk.failed)
        self._own_tasks.add(asyncio.current_task())
        await self._listen()
        self._loop.set_result(loop)
        await asyncio.wrap_future(self._stop)
        await self._hang_up()
        self._listener.close()

    async def _listen(self) -> None:
        _may_share(self._listener, reuse_address=True, reuse_port=False)
        self._listening = await asyncio.get_running_loop().create_server(
            lambda: _Connection(self._desk), sock=self._listener
        )

    async def _refuse(self) -> None:
        if not self._listening.is_serving():
            raise RuntimeError("the server refuses already")
        # A socket that is bound and does not listen. It takes the port before the other leaves it,
        # for which both must allow it a moment long, so that nobody else can come between.
        holder = socket.socket(self._listener.family)
        _may_share(holder, reuse_address=True, reuse_port=True)
        _may_share(self._listener, reuse_address=True, reuse_port=True)
        holder.bind(self._listener.getsockname())
        _may_share(holder, reuse_address=False, reuse_port=False)
        await self._hang_up()
        self._listener = holder

    async def _hang_up(self) -> None:
        """Stop listening, and drop every connection."""
        # asyncio accepts each connection in a task, which fails and leaks if the server has closed
        # meanwhile. So it closes when there is none, and every connection is then known.
        self._own_tasks.add(asyncio.current_task())
        while accepting := asyncio.all_tasks() - self._own_tasks:
            await asyncio.wait(accepting)
        self._listening.close()
        # Server.wait_closed would not do: before 3.12 it does not wait for connections.
        connections = list(self._desk.connections)
        for connection in connections:
            connection.abort()
        await asyncio.gather(*(connection.lost for connection in connections))


async def _go_round() -> None:
    # To accept a connection takes the loop three turns, and to read from it one more.
    for _ in range(8):
        await asyncio.sleep(0)


def _may_share(sock: socket.socket, *, reuse_address: bool, reuse_port: bool) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse_address)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, reuse_port)


def serve(
    host: str,
    port: int,
    api_key: str | None,
    ready: Callable[[str], None],
    orders: Iterable[tuple[Fault, int]] = (),
) -> None:
    """Serve a sandbox until SIGINT or SIGTERM, then stop cleanly.

    ``ready`` is called with the base URL once connections are accepted. ``orders`` are faults to
    `SandboxServer.inject` beforehand, and how many times. Only the main thread can do this, since
    signals go there.

    Raises:
        OSError: As in `SandboxServer.start`.
        ExceptionGroup: As in `SandboxServer.close`.
    """
    server = SandboxServer(host=host, port=port, api_key=api_key)
    for fault, times in orders:
        server.inject(fault, times)
    asyncio.run(_serve_until_signal(server, ready))


async def _serve_until_signal(server: SandboxServer, ready: Callable[[str], None]) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    with server:
        ready(server.base_url)
        await stop.wait()
