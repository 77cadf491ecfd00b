"""Events between two steps of a call: closing, cancellation, signals, and early bytes.

Such moments are too short to hit, so the test delays a step until the bytes have arrived.
"""

import asyncio
import errno
import json
import select
import signal
import socket
import ssl
import sys
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias

import anyio
import httpcore
import httpx
import pytest
import trio
import trustme

from creduse import (
    AsyncCreduseClient,
    CreduseClient,
    CreduseTimeoutError,
    Outcome,
    RetryPolicy,
    TransportError,
)
from creduse_core import AsyncCoreClient, CreduseProtocol
from creduse_httpx import _network, _supplied
from creduse_httpx._foreign import IGNORE_LIBRARY_ERRORS
from creduse_httpx._httpcore import stream_on
from creduse_httpx._sockets import read_ticket_async
from creduse_sandbox import FAULTS, SandboxServer
from creduse_sandbox.conformance import CANCELLATIONS, check_cancellation
from tests.common import GOOD, KEY, ONCE, RESPONSE, USER
from tests.httpx.harness import Harness, Main
from tests.servers import RawServer, Start, relay
from tests.tls import TlsInParts, client_context, server_context


def wait_for_bytes(stream: Any) -> None:
    """Block, the event loop included, until bytes have arrived on a connection."""
    select.select([stream.get_extra_info("socket")], [], [], 30)


# Bytes that come too soon


def respond_unasked(connection: socket.socket, server: RawServer) -> None:
    connection.sendall(RESPONSE)
    server.request(connection)


def test_response_before_the_first_request(
    harness: Harness, raw: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes that arrive on a new connection before the request are not its response."""
    for module in (_network, _supplied):
        monkeypatch.setattr(module, "check_loopback", wait_for_bytes)

    async def main() -> None:
        async with harness.connect(server.base_url, retry=ONCE) as client:
            with pytest.raises(TransportError, match="data before the request") as caught:
                await client.add(USER, 5)
            assert caught.value.outcome is Outcome.NOT_APPLIED

    server = raw(respond_unasked)
    harness.run(main)
    assert server.received == []


def test_response_before_a_later_request(
    supplied: Harness, raw: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor are bytes that arrive on an idle connection when the pool has looked at it."""
    real_trace = _supplied.TracedExchange.trace
    go = threading.Event()
    streams: list[Any] = []

    def trace(exchange: _supplied.TracedExchange, name: str, info: dict[str, Any]) -> None:
        if name.endswith("connect_tcp.complete"):
            streams.append(info["return_value"])
        if name.endswith("send_request_headers.started") and server.received:
            go.set()
            wait_for_bytes(streams[0])
        real_trace(exchange, name, info)

    def respond_twice(connection: socket.socket, server: RawServer) -> None:
        server.request(connection)
        connection.sendall(RESPONSE)
        go.wait()
        connection.sendall(RESPONSE)
        server.request(connection)

    async def main() -> None:
        async with supplied.connect(server.base_url, retry=ONCE) as client:
            await client.add(USER, 5)
            with pytest.raises(TransportError, match="data before the request") as caught:
                await client.add(USER, 5)
            assert caught.value.outcome is Outcome.NOT_APPLIED

    monkeypatch.setattr(_supplied.TracedExchange, "trace", trace)
    server = raw(respond_twice)
    supplied.run(main)
    assert len(server.received) == 1


@pytest.fixture
def authority(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> trustme.CA:
    """Make an authority, and have the environment name it."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    return authority


def delay_after_handshake(monkeypatch: pytest.MonkeyPatch) -> None:
    """Delay the client after a handshake, so that early bytes have arrived."""
    real_set_stream = _network.ConnectionState.set_stream
    real_complete_step = _supplied.TracedExchange._complete_step  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # a moment too short to hit

    def set_stream(state: _network.ConnectionState, stream: Any) -> None:
        real_set_stream(state, stream)
        if stream.get_extra_info("ssl_object") is not None:
            wait_for_bytes(stream)

    def complete_step(exchange: _supplied.TracedExchange, step: str, value: Any) -> None:
        real_complete_step(exchange, step, value)
        if step == "start_tls":
            wait_for_bytes(value)

    reads: list[object] = []

    async def read_ticket_late(stream: Any) -> None:
        reads.append(stream)
        if len(reads) > 1:  # at first, as on a busy loop, nothing is read in time
            await read_ticket_async(stream)

    for module in (_network, _supplied):
        monkeypatch.setattr(module, "read_ticket_async", read_ticket_late)
    monkeypatch.setattr(_network.ConnectionState, "set_stream", set_stream)
    monkeypatch.setattr(_supplied.TracedExchange, "_complete_step", complete_step)


def test_plain_bytes_after_a_handshake(
    harness: Harness, raw: Start, authority: trustme.CA, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes after a handshake that are not TLS are no response, and nothing is sent."""
    delay_after_handshake(monkeypatch)
    context = server_context(authority)
    context.num_tickets = 0  # they would be readable, too

    def speak_plainly(connection: socket.socket, server: RawServer) -> None:
        secure = context.wrap_socket(connection.dup(), server_side=True)
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        with suppress(OSError), secure:
            server.received += filter(None, [secure.recv(65536)])

    async def main() -> None:
        settings: dict[str, Any] = {"base_url": url, "retry": ONCE}
        if harness.supplied:
            settings["http_client"] = harness.http_client(verify=client_context(authority))
        async with harness.connect(**settings) as client:
            with pytest.raises(TransportError) as caught:
                await client.add(USER, 5)
            assert caught.value.outcome is Outcome.NOT_APPLIED
        if harness.supplied:
            closing = getattr(settings["http_client"], "close" if harness.sync else "aclose")()
            await closing if closing is not None else None

    server = raw(speak_plainly)
    url = server.base_url.replace("http:", "https:")
    harness.run(main)
    assert server.received == []


# Closing


def test_closed_while_a_name_is_looked_up(
    server: SandboxServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that is closed during a name look-up does not connect."""
    look_up = socket.getaddrinfo

    def close_first(*arguments: Any, **settings: Any) -> Any:
        client.close()
        return look_up(*arguments, **settings)

    client = CreduseClient(KEY, base_url=server.base_url)
    monkeypatch.setattr(socket, "getaddrinfo", close_first)
    with pytest.raises(TransportError, match="closed") as caught:
        client.add(USER, 1)
    assert caught.value.outcome is Outcome.NOT_APPLIED
    server.settle()
    assert server.connections == 0


def test_closed_as_soon_as_it_is_connected(
    server: SandboxServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that is closed right after connecting sends nothing."""

    def close(_: object) -> None:
        client.close()

    client = CreduseClient(KEY, base_url=server.base_url)
    monkeypatch.setattr(_network, "check_loopback", close)
    with pytest.raises(TransportError, match="closed") as caught:
        client.add(USER, 1)
    assert caught.value.outcome is Outcome.NOT_APPLIED
    assert server.log == ()


def test_name_without_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name without an address is NOT_APPLIED, and is retried."""

    def find_nothing(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", find_nothing)
    with (
        CreduseClient(KEY, base_url="https://nowhere.invalid", retry=RetryPolicy(2, 0)) as client,
        pytest.raises(TransportError, match="not known") as caught,
    ):
        client.add(USER, 1)
    assert caught.value.outcome is Outcome.NOT_APPLIED
    assert len(caught.value.attempts) == 2


def test_what_closing_suppresses() -> None:
    """Closing suppresses network errors, and not KeyboardInterrupt."""
    with IGNORE_LIBRARY_ERRORS:
        raise httpx.CloseError("reset")
    with pytest.raises(KeyboardInterrupt), IGNORE_LIBRARY_ERRORS:
        raise KeyboardInterrupt


def test_alarm_within_close(server: SandboxServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception of a signal handler during ``close()`` leaves it unchanged."""
    error = TimeoutError("over")

    def ring(*_: object) -> None:
        raise error

    client = CreduseClient(KEY, base_url=server.base_url)
    client.add(USER, 1)
    close = socket.socket.close

    def close_late(sock: socket.socket) -> None:
        close(sock)
        if threading.current_thread() is threading.main_thread():
            monkeypatch.undo()
            signal.raise_signal(signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, ring)
    try:
        monkeypatch.setattr(socket.socket, "close", close_late)
        with pytest.raises(TimeoutError) as caught:
            client.close()
        assert caught.value is error
    finally:
        signal.signal(signal.SIGUSR1, before)
    client.close()


# Signals


def test_interrupted_as_it_takes_a_connection(server: SandboxServer) -> None:
    """A signal while an idle connection is taken leaves the connection idle."""

    class Interrupting(dict[int, Any]):
        def __setitem__(self, key: int, value: Any) -> None:
            super().__setitem__(key, value)
            process.active = {}
            raise KeyboardInterrupt

    with CreduseClient(KEY, base_url=server.base_url) as client:
        client.add(USER, 1)
        transport: Any = client._transport  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # as above
        (process,) = transport._processes.values()  # noqa: SLF001 - as above
        process.active = Interrupting()
        with pytest.raises(KeyboardInterrupt):
            client.add(USER, 2)
        client.add(USER, 3)
    assert [entry.connection for entry in server.log] == [1, 1]


def test_interrupted_over_a_supplied_client(server: SandboxServer) -> None:
    """Ctrl-C abandons the call: UNKNOWN, and the connection is not used again."""
    server.inject(FAULTS["apply-then-hang"])

    def interrupt() -> None:
        while not server.log or server.log[0].body is None:
            threading.Event().wait(0.01)
        signal.pthread_kill(main, signal.SIGINT)

    main = threading.get_ident()
    with (
        ThreadPoolExecutor(1) as threads,
        httpx.Client() as http_client,
        CreduseClient(KEY, http_client, base_url=server.base_url) as client,
    ):
        call = client.protocol.add(USER, 1)
        threads.submit(interrupt)
        with pytest.raises(KeyboardInterrupt):
            client.run(call)
        assert call.outcome is Outcome.UNKNOWN
        assert client.add(USER, 1).amount == 1
    assert len({entry.connection for entry in server.log}) == 2


def test_alarm_as_a_peer_is_looked_up(
    server: SandboxServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An OSError of a signal handler is not a reset of the connection."""
    error = OSError(errno.EIO, "over")
    with socket.socket() as sock:
        stream_class = type(stream_on(sock))

    def get_extra_info(stream: Any, name: str) -> Any:
        if name == "server_addr":
            raise error
        return real(stream, name)

    real = stream_class.get_extra_info
    monkeypatch.setattr(stream_class, "get_extra_info", get_extra_info)
    with (
        CreduseClient(KEY, base_url=server.base_url) as client,
        pytest.raises(OSError, match="over") as caught,
    ):
        client.add(USER, 1)
    assert caught.value is error
    assert server.log == ()


def test_called_while_something_is_handled(server: SandboxServer) -> None:
    """An exception that the caller is handling is not the cause of a failure."""
    with server.refusing(), CreduseClient(KEY, base_url=server.base_url, retry=ONCE) as client:
        try:
            dict[str, int]()["the caller's own"]
        except KeyError:
            with pytest.raises(TransportError, match="refused"):
                client.add(USER, 1)


# The tasks in which exchanges over a supplied client run


Run: TypeAlias = Callable[[Main], None]


async def both(first: Main, second: Main) -> None:
    """Run both at the same time."""
    if trio.lowlevel.in_trio_task():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(first)
            nursery.start_soon(second)
    else:
        await asyncio.gather(first(), second())


async def pause(seconds: float) -> None:
    if trio.lowlevel.in_trio_task():
        await trio.sleep(seconds)
    else:
        await asyncio.sleep(seconds)


async def until_received(server: SandboxServer) -> None:
    """Wait until the server has received a request."""
    while not server.log or server.log[0].body is None:
        await pause(0.01)


@pytest.fixture(params=["asyncio", "trio"])
def run_async(request: pytest.FixtureRequest) -> Run:
    """Run a coroutine function on one of the event loops."""
    return trio.run if request.param == "trio" else lambda main: asyncio.run(main())


def test_wait_for_a_connection(
    run_async: Run, server: SandboxServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call that gets no connection in time is NOT_APPLIED; one that gets it succeeds."""
    monkeypatch.setattr("creduse_httpx._tasks.MAX_CONCURRENT", 1)
    server.inject(FAULTS["apply-then-hang"])

    async def main() -> None:
        async with (
            httpx.AsyncClient() as http_client,
            AsyncCreduseClient(KEY, http_client, base_url=server.base_url, retry=ONCE) as client,
        ):

            async def hang() -> None:
                with pytest.raises(CreduseTimeoutError):
                    await client.add(USER, 1, timeout=6.0)

            async def wait() -> None:
                await until_received(server)
                with pytest.raises(CreduseTimeoutError, match="connection was available") as caught:
                    await client.add(USER, 2, timeout=0.2)
                assert caught.value.outcome is Outcome.NOT_APPLIED
                assert (await client.add(USER, 3, timeout=60)).amount == 3

            await both(hang, wait)

    run_async(main)
    assert [json.loads(entry.body or b"")["amount"] for entry in server.applied] == [1, 3]


def test_cancelled_in_the_pool(run_async: Run, server: SandboxServer) -> None:
    """A call that is cancelled in httpcore's pool sends nothing, and loses no place."""
    server.inject(FAULTS["apply-then-hang"])

    async def main() -> None:
        limits = httpx.Limits(max_connections=1)
        async with (
            httpx.AsyncClient(limits=limits) as http_client,
            AsyncCreduseClient(KEY, http_client, base_url=server.base_url, retry=ONCE) as client,
        ):

            async def hang() -> None:
                with pytest.raises(CreduseTimeoutError):
                    await client.add(USER, 1, timeout=6.0)

            async def leave() -> None:
                await until_received(server)
                if trio.lowlevel.in_trio_task():
                    with trio.move_on_after(0.1):
                        await client.add(USER, 2)
                else:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(0.1):
                            await client.add(USER, 2)
                await client.aclose()  # which waits for what is left

            await both(hang, leave)
            async with AsyncCreduseClient(KEY, http_client, base_url=server.base_url) as another:
                assert (await another.add(USER, 3)).amount == 3

    run_async(main)
    assert [json.loads(entry.body or b"")["amount"] for entry in server.applied] == [1, 3]


def test_cancelled_at_each_step(run_async: Run) -> None:
    """A cancelled call over a supplied client says the truth, and the next call succeeds."""

    @asynccontextmanager
    async def connect(protocol: CreduseProtocol) -> AsyncGenerator[AsyncCoreClient]:
        async with httpx.AsyncClient() as http_client:
            transport = _supplied.AsyncSuppliedTransport(protocol, http_client)
            async with AsyncCoreClient(protocol, transport) as client:
                yield client

    async def main() -> None:
        await check_cancellation(CANCELLATIONS[0], connect)

    run_async(main)


def test_no_time_before_its_task_begins(
    run_async: Run, server: SandboxServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call whose timeout passes before its task starts is NOT_APPLIED."""

    def none_left(_: object) -> float:
        return 0.0

    monkeypatch.setattr(_supplied.TracedExchange, "time_left", none_left)

    async def main() -> None:
        async with (
            httpx.AsyncClient() as http_client,
            AsyncCreduseClient(KEY, http_client, base_url=server.base_url, retry=ONCE) as client,
        ):
            with pytest.raises(TransportError) as caught:
                await client.add(USER, 1)
            assert caught.value.outcome is Outcome.NOT_APPLIED

    run_async(main)
    assert server.log == ()


def test_cancelled_as_a_step_ends(
    run_async: Run, server: SandboxServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call that is cancelled as its connection is made goes no further."""
    trace = _supplied.TracedExchange.trace

    def stop_at(exchange: _supplied.TracedExchange, name: str, info: dict[str, Any]) -> None:
        if name == "connection.connect_tcp.complete":
            exchange.stop()
        trace(exchange, name, info)

    monkeypatch.setattr(_supplied.TracedExchange, "trace", stop_at)

    async def main() -> None:
        async with (
            httpx.AsyncClient() as http_client,
            AsyncCreduseClient(KEY, http_client, base_url=server.base_url, retry=ONCE) as client,
        ):
            with pytest.raises(TransportError, match="no time was left") as caught:
                await client.add(USER, 1)
            assert caught.value.outcome is Outcome.NOT_APPLIED

    run_async(main)
    assert server.log == ()


def test_another_loop_of_a_supplied_client() -> None:
    """On another event loop than before, a supplied client sends nothing, and the error says so."""
    requests: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        return httpx.Response(200, content=GOOD)

    http_client = httpx.AsyncClient(transport=httpx.MockTransport(handle))
    client = AsyncCreduseClient(KEY, http_client, base_url="https://api.creduse.com")
    asyncio.run(client.add(USER, 5))
    with pytest.raises(TransportError, match="another event loop"):
        asyncio.run(client.add(USER, 5))
    assert len(requests) == 1


def test_supplied_transport_with_an_error_of_its_own(supplied: Harness) -> None:
    """An exception of other code is not a network failure, and leaves the client unchanged."""
    error = ZeroDivisionError("not the network's")

    def handle(_: Any) -> Any:
        raise error

    async def main() -> None:
        async with (
            supplied.http_client_with(
                transport=supplied.library.MockTransport(handle)
            ) as http_client,
            supplied.connect("https://api.creduse.com", http_client=http_client) as client,
        ):
            call = client.protocol.add(USER, 1)
            with pytest.raises(ZeroDivisionError) as caught:
                await client.run(call)
            assert caught.value is error

    supplied.run(main)


class Endless(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body without end and without a socket."""

    def __iter__(self) -> Iterator[bytes]:
        while True:
            threading.Event().wait(0.01)
            yield b" "

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            await pause(0.01)
            yield b" "


def test_endless_body_without_a_socket() -> None:
    """Without a socket to shut down, the call ends at the next late piece."""
    transport = httpx.MockTransport(lambda _: httpx.Response(200, stream=Endless()))
    with (
        httpx.Client(transport=transport) as http_client,
        CreduseClient(KEY, http_client, base_url="https://api.creduse.com") as client,
        pytest.raises(CreduseTimeoutError) as caught,
    ):
        client.add(USER, 1, timeout=0.2)
    assert caught.value.outcome is Outcome.UNKNOWN


# Where something else is in the way


def test_response_that_instrumentation_has_read(
    on_a_loop: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A response that instrumentation has read is accepted."""

    async def handle(*_: Any) -> httpx.Response:
        return httpx.Response(200, content=GOOD)

    monkeypatch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", handle)

    async def main() -> None:
        async with AsyncCreduseClient(KEY, base_url="https://api.creduse.com") as client:
            assert (await client.add(USER, 5)).amount == 5

    on_a_loop.run(main)


def test_without_trio(server: SandboxServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client on asyncio works without trio installed."""
    monkeypatch.delitem(sys.modules, "trio")

    async def main() -> None:
        async with AsyncCreduseClient(KEY, base_url=server.base_url) as client:
            assert (await client.add(USER, 5)).amount == 5

    asyncio.run(main())


def is_elsewhere(_: str) -> bool:
    return False


def tunnel(target: tuple[str, int], context: ssl.SSLContext) -> Callable[..., None]:
    """Act as a proxy over TLS that connects to ``target`` for every request."""

    def behave(connection: socket.socket, server: RawServer) -> None:
        with (
            context.wrap_socket(connection.dup(), server_side=True) as near,
            socket.create_connection(target) as far,
        ):
            server.received.append(near.recv(65536))
            near.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            relay(near, far)

    return behave


def test_proxy_over_tls(
    own: Harness, raw: Start, authority: trustme.CA, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy that is itself reached over TLS is used, and never gets the key."""

    async def main() -> None:
        async with own.connect(sandbox.base_url) as client:
            assert (await client.add(USER, 5)).amount == 5

    with SandboxServer(api_key=KEY, ssl_context=server_context(authority)) as sandbox:
        port = int(sandbox.base_url.rpartition(":")[2])
        proxy = raw(tunnel(("127.0.0.1", port), server_context(authority)))
        monkeypatch.setenv("HTTPS_PROXY", proxy.base_url.replace("http:", "https:"))
        # The certificates are for 127.0.0.1, which gets no proxy otherwise.
        monkeypatch.setattr("creduse_core.arguments.is_loopback", is_elsewhere)
        own.run(main)
    assert len(sandbox.applied) == 1
    assert proxy.received[0].startswith(b"CONNECT 127.0.0.1:")
    assert KEY.encode() not in proxy.received[0]


@pytest.mark.parametrize("part", [None, 1], ids=["whole", "a byte"])
def test_response_before_the_first_request_through_a_proxy_over_tls(
    own: Harness,
    part: int | None,
    raw: Start,
    authority: trustme.CA,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Bytes that arrive through two layers of TLS before the request are not its response."""
    real_begins_request = _network.ConnectionState._begins_request  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # a moment too short to hit
    sent = threading.Event()
    waited: list[bool] = []
    requests: list[int] = []
    contexts = [server_context(authority), server_context(authority)]
    for context in contexts:
        context.num_tickets = 0

    reads: list[object] = []

    async def read_too_late(stream: Any) -> None:
        reads.append(stream)
        if len(reads) > 1:
            await read_ticket_async(stream)
        else:
            # As on a busy machine: the time is over before the read begins.
            with pytest.raises(httpcore.ReadTimeout):
                await stream.read(1, 0.0)

    def begins_request(state: _network.ConnectionState, data: bytes) -> bool:
        if data.startswith(b"POST") and not waited:
            sent.wait()
            wait_for_bytes(state.stream)
            waited.append(True)
        return real_begins_request(state, data)

    def respond_early(connection: socket.socket, _: RawServer) -> None:
        tls = TlsInParts(contexts[0], connection)
        connection.sendall(tls.handshake())
        sealed = tls.seal(RESPONSE)
        connection.sendall(sealed[:part])
        sent.set()
        requests.append(tls.request())
        connection.sendall(sealed[part:])

    async def main() -> None:
        async with own.connect(url, retry=ONCE) as client:
            with pytest.raises(TransportError, match="data before the request") as caught:
                await client.add(USER, 5)
            assert caught.value.outcome is Outcome.NOT_APPLIED

    monkeypatch.setattr(_network, "read_ticket_async", read_too_late)
    monkeypatch.setattr(_network.ConnectionState, "_begins_request", begins_request)
    server = raw(respond_early)
    url = server.base_url.replace("http:", "https:")
    proxy = raw(tunnel(("127.0.0.1", int(url.rpartition(":")[2])), contexts[1]))
    monkeypatch.setenv("HTTPS_PROXY", proxy.base_url.replace("http:", "https:"))
    # The certificates are for 127.0.0.1, which gets no proxy otherwise.
    monkeypatch.setattr("creduse_core.arguments.is_loopback", is_elsewhere)
    own.run(main)
    assert requests == []


def test_nothing_runs_between_the_check_and_the_write(
    on_a_loop: Harness, raw: Start, authority: trustme.CA, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When another task runs after the check for unrequested bytes, the request has been written."""
    context = server_context(authority)
    context.num_tickets = 0
    real_write_timeout = _network.ConnectionState.write_timeout
    checked: list[bool] = []
    shaken, go, looked = threading.Event(), threading.Event(), threading.Event()
    first: list[bytes] = []

    def write_timeout(state: _network.ConnectionState, data: bytes) -> float:
        result = real_write_timeout(state, data)
        shaken.wait()
        checked.append(True)
        return result

    def look(connection: socket.socket, _: RawServer) -> None:
        tls = TlsInParts(context, connection)
        connection.sendall(tls.handshake())
        shaken.set()
        go.wait()
        connection.settimeout(5)  # what has been written arrives
        with suppress(TimeoutError):
            first.append(connection.recv(1, socket.MSG_PEEK))
        looked.set()
        connection.settimeout(None)
        tls.request()
        connection.sendall(tls.seal(RESPONSE))

    async def run_beside() -> None:
        while not checked:
            await pause(0)
        go.set()
        looked.wait()  # the loop, too

    async def main() -> None:
        async with on_a_loop.connect(url, retry=ONCE) as client, anyio.create_task_group() as group:
            group.start_soon(run_beside)
            await client.add(USER, 5)

    monkeypatch.setattr(_network.ConnectionState, "write_timeout", write_timeout)
    url = raw(look).base_url.replace("http:", "https:")
    for number in range(1, 21):  # trio runs tasks in any order
        for each in (checked, shaken, go, looked):
            each.clear()
        on_a_loop.run(main)
        assert len(first) == number
