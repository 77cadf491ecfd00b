"""`SandboxServer`: the handle by which a test starts a server, injects faults and reads the log.

It has the thread, its event loop, the listening socket and the handle's methods. What happens on a
connection (`connection`) does not belong here.
"""

import asyncio
import signal
import socket
import ssl
import threading
from collections.abc import Callable, Coroutine, Generator, Iterable
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Self

from creduse_core import CoreClient, CreduseProtocol, Request, Response, Send
from creduse_core.arguments import check_at_least_one, check_seconds
from creduse_sandbox import page
from creduse_sandbox.connection import Connection, InjectedFault, Limits, LogEntry, ServerState
from creduse_sandbox.faults import FAULTS, Fault, Shaped, Stage
from creduse_sandbox.sandbox import Clock, Sandbox, utc_now
from creduse_sandbox.state import StateFile
from creduse_sandbox.wording import action_line, line


def _checked_fault(fault: object) -> Fault:
    if not isinstance(fault, Fault):
        hint = f': try FAULTS["{fault}"]' if isinstance(fault, str) and fault in FAULTS else ""
        raise TypeError(
            f"fault must be one of FAULTS, a CannedResponse, a Drop or a Shaped, not "
            f"{type(fault).__name__}{hint}"
        )
    return fault


def _check_when(when: object) -> None:
    if when is not None and not callable(when):
        raise TypeError(
            "when must be a function of a Request, such as "
            f"lambda request: request.url == '/add', not {type(when).__name__}"
        )


@dataclass(frozen=True, slots=True)
class _DirectTransport:
    """A transport that calls the sandbox without a socket."""

    handle: Callable[[Request], Response]

    def send(self, send: Send) -> Response:
        return self.handle(send.request)

    def sleep(self, seconds: float) -> None:
        """Return at once: no response of the sandbox asks the client to wait."""

    def now(self) -> float:
        return 0.0  # no call takes time

    def close(self) -> None:
        """Do nothing: there is no connection to close."""


class SandboxServer:
    """A `Sandbox` behind HTTP/1.1, on an event loop in a daemon thread of its own.

    The server listens from `start` to `close`, or inside a ``with`` block, and only once. With
    ``port`` 0 the system chooses a port. ``api_key`` and ``clock`` are those of `Sandbox`. With
    ``ssl_context``, a server's context with its certificate, the server speaks TLS. Every method
    is safe to call from any thread. Those that wait for the server raise ``RuntimeError`` in a
    ``when`` function, which runs in the server's own thread.

    ``direct`` is a client for the test itself, to add credits before and read balances after. It
    has the five methods and their errors. It needs no socket and never waits, so a coroutine can
    call it too. No fault affects it, and its calls are not in the `log`.

    A browser shows a page at the server's address, with users, requests and buttons. Its requests
    are not in the `log`, but they count in `LogEntry.number`.

    With ``state``, the server begins with the users, the clock and the idempotency keys in that
    file, and keeps changes there.

    Raises:
        StateError: The file of ``state`` holds something else.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        api_key: str | None = None,
        clock: Clock = utc_now,
        ssl_context: ssl.SSLContext | None = None,
        state: StateFile | None = None,
    ) -> None:
        self._host = host
        self._port = port
        self._api_key = api_key
        self._clock = clock
        self._file = state
        sandbox = self._make_sandbox()
        self._state = ServerState(
            sandbox,
            self._now,
            ssl_context,
            page=page.respond,
            host=host,
            api_key=api_key,
            advanced=sandbox.advanced,
        )
        protocol = CreduseProtocol("any" if api_key is None else api_key, "http://127.0.0.1")
        self.direct = CoreClient(protocol, _DirectTransport(self.handle))
        self._base_url: str | None = None
        self._listener: socket.socket
        self._listening: asyncio.Server
        self._loop: Future[asyncio.AbstractEventLoop] = Future()
        self._stop: Future[None] = Future()
        self._own_tasks: set[asyncio.Task[Any] | None] = set()
        self._thread: threading.Thread | None = None
        self._sweep_every: float | None = None  # seconds between two looks for idle connections

    def _make_sandbox(self) -> Sandbox:
        return Sandbox(api_key=self._api_key, clock=self._now, state=self._file)

    def _now(self) -> datetime:
        return self._clock() + self._state.advanced

    @property
    def base_url(self) -> str:
        """The URL for a client's ``base_url``, even after `close`.

        Raises:
            RuntimeError: The server has not been started.
        """
        if self._base_url is None:
            raise RuntimeError("the server has not been started; call start() or use 'with'")
        return self._base_url

    @property
    def log(self) -> tuple[LogEntry, ...]:
        """Every request since the last `reset`, in the order of their first bytes.

        A client that has read a response finds its request here.
        """
        with self._state.lock:
            return tuple(self._state.log.values())

    @property
    def applied(self) -> tuple[LogEntry, ...]:
        """The entries of the `log` whose requests the server applied."""
        return tuple(entry for entry in self.log if entry.applied)

    @property
    def connections(self) -> int:
        """The number of open connections, as far as the server has noticed."""
        return len(self._state.connections)

    def settle(self) -> None:
        """Wait until everything that clients have sent so far is in the `log`.

        Stop a client and call this, and what appears in the log later was sent later.
        """
        self._call(_run_loop_turns)

    def handle(self, request: Request) -> Response:
        """Return the response to a request, as `Sandbox.handle` does. The `log` omits it."""
        with self._state.lock:
            return self._state.sandbox.handle(request)

    def inject(
        self,
        fault: Fault | None = None,
        times: int = 1,
        when: Callable[[Request], bool] | None = None,
        *,
        delay: float | None = None,
    ) -> None:
        """Inject ``fault`` for the next ``times`` requests for which ``when`` returns true.

        With ``delay``, the fault's response or action comes that many seconds later. Without a
        fault, the right response does. The server applies the request before it waits.

        Without ``when``, the fault is for the next ``times`` requests. If several faults match a
        request, the server uses the first injected one. Each attempt of a call is a request, so a
        retry needs a fault of its own. ``when`` runs in the server's thread. If it raises, the
        client loses its connection and `close` raises the error.

        For a `Drop` at HEAD, ``when`` gets a request without a body. A `Drop` at CONNECTED is for
        the next ``times`` connections.

        Raises:
            TypeError: ``fault`` is not a fault, such as a fault's name. Or there is neither a fault
                nor a ``delay``. Or ``times`` is not an ``int``, ``when`` not a function, or
                ``delay`` not a number.
            ValueError: ``when`` is supplied for a `Drop` at CONNECTED, before any request. Or
                ``times`` is below 1. Or ``delay`` is negative or too long.
        """
        fault = _checked_fault(Shaped() if fault is None and delay is not None else fault)
        if delay is not None:
            check_seconds("delay", delay)
            fault = replace(fault, delay=delay)
        check_at_least_one("times", times)
        _check_when(when)
        if fault.stage is Stage.CONNECTED and when is not None:
            raise ValueError(
                "when must be None for a Drop at CONNECTED: the connection has no request yet"
            )
        with self._state.lock:
            self._state.injected.append(InjectedFault(fault, times, when))

    def advance(self, *, days: float) -> None:
        """Move the sandbox's clock ahead, so that credits expire and cycles renew.

        The clock runs on from there. `reset` puts it back. No other clock moves.

        Raises:
            OverflowError: The new time would be past the year 9999.
            ValueError: ``days`` is negative. The ledger cannot go back.
        """
        if days < 0:
            raise ValueError(f"days must not be negative, not {days}: the clock cannot go back")
        self._state.advance(timedelta(days=days))

    def reset(self) -> None:
        """Empty the ledger and the log, remove all faults and put the clock back.

        Connections stay open. A request that is still arriving enters the log again with its next
        byte.

        Raises:
            ExceptionGroup: As `close`. Each error is raised once.
        """
        with self._state.lock:
            if self._file is not None:
                self._file.clear()
            self._state.advanced = timedelta()
            self._state.sandbox = self._make_sandbox()
            self._state.injected.clear()
            self._state.log.clear()
        self._raise_errors()

    def _raise_errors(self) -> None:
        errors, self._state.errors = self._state.errors, []
        if errors:
            raise ExceptionGroup("the sandbox server failed", errors)

    def start(self) -> None:
        """Listen, and return once clients can connect.

        Raises:
            OSError: The address is in use, or is not one of this machine's.
            RuntimeError: The server has been started before.
        """
        if self._base_url is not None:
            raise RuntimeError("a SandboxServer starts only once; make another one")
        # In the caller's thread, so that the caller gets the OSError.
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        self._listener = socket.create_server((self._host, self._port), family=family)
        scheme = "http" if self._state.ssl_context is None else "https"
        host = f"[{self._host}]" if ":" in self._host else self._host
        self._base_url = self._state.base_url = (
            f"{scheme}://{host}:{self._listener.getsockname()[1]}"
        )
        self._thread = threading.Thread(target=self._run, name="creduse-sandbox", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening, close every connection and wait for the thread to end.

        Do nothing if the server does not run.

        Raises:
            ExceptionGroup: The server's own code, a ``when`` or a fault's function raised. Clients
                only saw a lost connection.
        """
        self._check_thread()
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._stop.set_result(None)
        thread.join()
        self._raise_errors()

    @contextmanager
    def refusing(self) -> Generator[None, None, None]:
        """Close every connection, and refuse new ones inside the ``with`` block.

        The server keeps its port. After the block it listens there again, unless it was closed.

        Raises:
            RuntimeError: The server does not run, or already refuses connections.
        """
        if not self._is_running():
            raise RuntimeError("the server does not run; call start() or use 'with'")
        self._call(self._refuse)
        try:
            yield
        finally:
            if self._is_running():
                self._call(self._listen)

    @contextmanager
    def stalling(self) -> Generator[None, None, None]:
        """Close every connection, and let new ones hang inside the ``with`` block.

        The server neither accepts nor refuses them. A client that still waits after the block
        connects when its system retries: on Linux 1, 3 or 7 seconds after its first try.

        Raises:
            RuntimeError: The server does not run, or already refuses connections.
        """
        with self.refusing():
            _set_reuse(self._listener, address=True, port=False)
            self._listener.listen(0)
            # This fills the queue of connections to accept, so the system ignores later ones.
            with socket.create_connection(self._listener.getsockname()):
                yield

    def _is_running(self) -> bool:
        return self._thread is not None

    def _check_thread(self) -> None:
        if threading.current_thread() is self._thread:
            raise RuntimeError(
                "a when function runs in the server's thread, so it cannot wait for the server: "
                "settle(), refusing(), stalling() and close() would never return"
            )

    def _call(self, task: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._check_thread()
        asyncio.run_coroutine_threadsafe(task(), self._loop.result()).result()

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
        # A test may have set another event loop policy.
        with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._state.record_error)
        self._own_tasks.add(asyncio.current_task())
        await self._listen()
        self._loop.set_result(loop)
        stop = asyncio.wrap_future(self._stop)
        while not (await asyncio.wait([stop], timeout=self._sweep_every))[0]:
            self._state.close_idle(loop.time())
        await self._drop_connections()
        self._listener.close()

    async def _listen(self) -> None:
        _set_reuse(self._listener, address=True, port=False)
        self._listening = await asyncio.get_running_loop().create_server(
            lambda: Connection(self._state), sock=self._listener
        )

    async def _refuse(self) -> None:
        if not self._listening.is_serving():
            raise RuntimeError("the server already refuses connections")
        # A socket that is bound but does not listen keeps the port. It must bind before the
        # listener closes, or another process could take the port. So both share it for a moment.
        holder = socket.socket(self._listener.family)
        _set_reuse(holder, address=True, port=True)
        _set_reuse(self._listener, address=True, port=True)
        holder.bind(self._listener.getsockname())
        _set_reuse(holder, address=False, port=False)
        await self._drop_connections()
        self._listener = holder

    async def _drop_connections(self) -> None:
        """Stop listening, and close every connection."""
        # asyncio accepts each connection in a task. Such a task fails and leaks its socket if the
        # server closes first.
        self._own_tasks.add(asyncio.current_task())
        while accepting := asyncio.all_tasks() - self._own_tasks:
            await asyncio.wait(accepting)
        self._listening.close()
        # Before Python 3.12, Server.wait_closed does not wait for connections.
        connections = list(self._state.connections)
        for connection in connections:
            connection.abort()
        await asyncio.gather(*(connection.lost for connection in connections))


async def _run_loop_turns() -> None:
    # The loop takes three turns to accept a connection, and one more to read from it.
    for _ in range(8):
        await asyncio.sleep(0)


def _set_reuse(sock: socket.socket, *, address: bool, port: bool) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, address)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, port)


class LongRunningServer(SandboxServer):
    """A server with limits, so that its memory does not grow with the number of requests."""

    def __init__(
        self,
        limits: Limits,
        on_request: Callable[[LogEntry], None] | None = None,
        on_action: Callable[[str], None] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self._sweep_every = limits.idle_seconds / 30
        self._state.limits = limits
        self._state.on_request = on_request
        self._state.on_action = on_action


def _show_nothing(_: str) -> None:
    pass


def serve(
    host: str,
    port: int,
    api_key: str | None,
    ready: Callable[[str], None],
    faults: Iterable[tuple[Fault, int]] = (),
    *,
    state: StateFile | None = None,
    show: Callable[[str], None] = _show_nothing,
) -> None:
    """Serve a sandbox until SIGINT or SIGTERM, then close it.

    ``ready`` gets the base URL once clients can connect. ``faults`` are arguments for
    `SandboxServer.inject`: each a fault and a number of times. ``state`` is that of `SandboxServer`.
    ``show`` gets a line for each request, when its response begins or will never come, for each
    connection that a fault drops when it connects, and for what a button of the page has done. Call
    this in the main thread, as Python handles signals there.

    Unlike a `SandboxServer`, it keeps only the last 1,000 requests and rejects bodies of more than
    64 KiB. It keeps at most 900 connections, and closes one that has been idle for 5 minutes.

    Raises:
        OSError: As `SandboxServer.start`.
        ExceptionGroup: As `SandboxServer.close`.
        StateError: As `SandboxServer`.
    """
    settings = {"host": host, "port": port, "api_key": api_key, "state": state}
    server = LongRunningServer(
        Limits(), lambda entry: show(line(entry)), lambda what: show(action_line(what)), **settings
    )
    for fault, times in faults:
        server.inject(fault, times)
    asyncio.run(_serve_until_signal(server, ready))


async def _serve_until_signal(server: SandboxServer, ready: Callable[[str], None]) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    with server:
        ready(server.base_url)
        await stop.wait()
