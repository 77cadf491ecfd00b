"""Failures over trio: responses that are not whole, not ours or not requested."""

import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest
import trio
import trio.testing

from creduse_core import (
    APIError,
    CreduseError,
    CreduseTimeoutError,
    InvalidResponseError,
    Outcome,
    RetryPolicy,
    TransportError,
)
from creduse_sandbox import FAULTS, CannedResponse, SandboxServer
from creduse_trio import AsyncCreduseClient
from tests.common import GOOD, KEY, NO_WAIT, ONCE, RESPONSE, USER
from tests.trio.wires import Serve, Site, Wires, wired


def says(data: bytes, *, close: bool = False) -> Serve:
    """Make a server that sends this to each request, and may then close."""

    async def serve(stream: trio.abc.Stream, wires: Wires) -> None:
        while await wires.request(stream):
            await stream.send_all(data)
            if close:
                await stream.aclose()
                return

    return serve


KEPT: dict[str, Any] = {
    **{name: FAULTS[name] for name in ("100-first", "103-first", "chunks", "429", "missing-field")},
    "402": CannedResponse(402, (), b'{"error_code": "INSUFFICIENT_FUNDS"}'),
}
THROWN_AWAY = {name: FAULTS[name] for name in ("close-after", "no-length")}


@pytest.mark.parametrize("name", [*KEPT, *THROWN_AWAY])
def test_which_connections_are_used_again(site: Site, name: str) -> None:
    """A connection is used again after a whole response, unless either side must close it."""

    async def main() -> None:
        async with site.client(retry=ONCE) as client:
            site.server.inject((KEPT | THROWN_AWAY)[name])
            call = client.protocol.add(USER, 5)
            try:
                await client.run(call)
            except CreduseError:
                assert call.response is not None
            await trio.sleep(0.01)  # for what the server does behind its response
            await client.add(USER, 5)

    trio.run(main)
    expected = [1, 1] if name in KEPT else [1, 2]
    assert [entry.connection for entry in site.server.log] == expected


def test_length_beside_chunks() -> None:
    """A response with two framings counts, and its connection is not used again."""
    length = b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n"

    async def main() -> None:
        response = b"HTTP/1.1 200 OK\r\n" + length % (len(GOOD), GOOD)
        async with wired(says(response)) as (client, wires):
            for _ in range(2):
                await client.add(USER, 5)
            assert wires.opened == 2

    trio.run(main)


def test_discarding_without_descriptors(site: Site) -> None:
    """A connection can be closed when the process may open no file."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    async def main() -> None:
        async with site.client(retry=ONCE) as client:
            await client.add(USER, 5)
            site.server.inject(FAULTS["wrong-user"])
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
            try:
                with pytest.raises(InvalidResponseError):
                    await client.add(USER, 5)
                with pytest.raises(OSError, match="Too many open files"):
                    trio.socket.socket()
                with pytest.raises(TransportError, match="EMFILE") as caught:
                    await client.add(USER, 5)
                assert caught.value.outcome is Outcome.NOT_APPLIED
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            await client.add(USER, 5)

    trio.run(main)
    assert [entry.connection for entry in site.server.log] == [1, 1, 2]


@pytest.mark.parametrize("secure", [False, True])
def test_surplus_in_one_segment(
    secure: bool,  # noqa: FBT001 - pytest's parameter
    server_context: ssl.SSLContext,
    trust: ssl.SSLContext,
) -> None:
    """A surplus in the response's own segment is found, in a TLS record of its own too."""

    async def serve(stream: trio.abc.Stream, wires: Wires) -> None:
        gathered = stream = _Gathered(stream)
        if secure:
            stream = trio.SSLStream(gathered, server_context, server_side=True)
            await stream.do_handshake()
        while await wires.request(stream):
            gathered.gather = True
            await stream.send_all(RESPONSE)
            if len(wires.received) == 1:
                await stream.send_all(RESPONSE)
            await gathered.flush()

    async def main() -> None:
        scheme = "https" if secure else "http"
        context = trust if secure else None
        async with wired(serve, base_url=f"{scheme}://localhost", ssl_context=context) as (
            client,
            wires,
        ):
            for _ in range(3):
                await client.add(USER, 5)
            assert wires.opened == 2

    trio.run(main)


class _Gathered(trio.abc.Stream):
    """A stream that collects what is sent, to send it in one piece."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.gather = False
        self.held = b""

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if self.gather:
            self.held += bytes(data)
        else:
            await self.stream.send_all(data)

    async def flush(self) -> None:
        held, self.held, self.gather = self.held, b"", False
        await self.stream.send_all(held)

    async def wait_send_all_might_not_block(self) -> None:
        await self.stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self.stream.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self.stream.aclose()


def test_idle_connection_that_was_closed() -> None:
    """An idle connection that the server has closed is not used."""

    async def serve(stream: trio.abc.Stream, wires: Wires) -> None:
        await wires.request(stream)
        await stream.send_all(RESPONSE)
        await stream.aclose()

    async def main() -> None:
        async with wired(serve) as (client, wires):
            for _ in range(3):
                await client.add(USER, 5)
                await trio.testing.wait_all_tasks_blocked()
            assert wires.opened == 3

    trio.run(main)


CUT = "cut"
WHOLE = "whole"
FRAMES: dict[str, tuple[bytes, str]] = {
    "length": (RESPONSE, WHOLE),
    "chunked": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\nA: b\r\n\r\n"
        % (len(GOOD), GOOD),
        WHOLE,
    ),
    "close": (b"HTTP/1.1 200 OK\r\n\r\n" + GOOD, WHOLE),
    "1.0": (b"HTTP/1.0 200 OK\r\n\r\n" + GOOD, WHOLE),
    "short": (RESPONSE[:-1], CUT),
    "chunked, short": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", CUT),
    "trailers": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nA: " + 99_999 * b"b",
        CUT,
    ),
    "chunks": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfive", CUT),
    "nothing": (b"", "the server closed the connection before its response"),
    "half a head": (RESPONSE[:20], "the server closed the connection before its response"),
    "no HTTP": (b"SSH-2.0\r\n\r\n", "illegal status line"),
    "lengths": (
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        "conflicting",
    ),
    "large head": (
        b"HTTP/1.1 200 OK\r\nA: " + 99_999 * b"b" + b"\r\n\r\n",
        "Receive buffer too long",
    ),
    "101": (b"HTTP/1.1 101 Switching\r\nUpgrade: h2c\r\n\r\n", "SWITCH"),
    "interim": (
        101 * b"HTTP/1.1 100 Continue\r\n\r\n" + RESPONSE,
        "more than 100 interim responses",
    ),
}


@pytest.mark.parametrize(("data", "said"), FRAMES.values(), ids=FRAMES)
def test_framing(data: bytes, said: str) -> None:
    """A response that is whole by its framing counts; else the error says what came."""

    async def main() -> None:
        async with wired(says(data, close=True), retry=ONCE) as (client, _):
            call = client.protocol.add(USER, 5)
            if said == WHOLE:
                await client.run(call)
                return
            kind = InvalidResponseError if said == CUT else TransportError
            with pytest.raises(kind, match=said) as caught:
                await client.run(call)
            assert caught.value.outcome is Outcome.UNKNOWN
            assert caught.value.attempts[0].event == ("cut" if said == CUT else "no_response")

    trio.run(main)


@pytest.mark.parametrize("polite", [True, False])
def test_cut_over_tls(
    polite: bool,  # noqa: FBT001 - pytest's parameter
    server_context: ssl.SSLContext,
    trust: ssl.SSLContext,
) -> None:
    """A response that ends with the connection is whole with a close_notify, and cut without."""

    async def serve(stream: trio.abc.Stream, wires: Wires) -> None:
        secure = trio.SSLStream(stream, server_context, server_side=True)
        await secure.do_handshake()
        await wires.request(secure)
        await secure.send_all(b"HTTP/1.1 200 OK\r\n\r\n" + GOOD)
        await (secure if polite else stream).aclose()

    async def main() -> None:
        async with wired(serve, base_url="https://localhost", ssl_context=trust) as (client, _):
            call = client.protocol.add(USER, 5)
            if polite:
                await client.run(call)
                return
            with pytest.raises(InvalidResponseError, match="cut") as caught:
                await client.run(call)
            assert caught.value.outcome is Outcome.UNKNOWN
            assert caught.value.response is not None
            assert caught.value.response.body == GOOD

    trio.run(main)


@pytest.mark.parametrize("secure", [False, True])
def test_early_response(
    secure: bool,  # noqa: FBT001 - pytest's parameter
    server_context: ssl.SSLContext,
    trust: ssl.SSLContext,
) -> None:
    """A response to a request that the server does not read to its end is read."""
    early = b"HTTP/1.1 413 Content Too Large\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}"

    async def serve(socket: trio.SocketStream) -> None:
        stream: trio.abc.Stream = socket
        if secure:
            stream = trio.SSLStream(socket, server_context, server_side=True)
        await stream.receive_some(100)
        await stream.send_all(early)
        await socket.aclose()  # with bytes unread, which resets the connection

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            nursery.start_soon(trio.serve_listeners, serve, listeners)
            port = listeners[0].socket.getsockname()[1]
            # Far more than the kernel takes at once.
            base_url = f"{'https' if secure else 'http'}://127.0.0.1:{port}/" + "a" * 20_000_000
            async with AsyncCreduseClient(KEY, trust, base_url=base_url) as client:
                with pytest.raises(APIError, match="413") as caught:
                    await client.add(USER, 5)
                assert caught.value.outcome is Outcome.NOT_APPLIED
            nursery.cancel_scope.cancel()

    trio.run(main)


class Broken(trio.abc.Stream):
    """A stream that fails only when it is written to."""

    written = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:  # noqa: ARG002 - trio's signature
        self.written = True
        raise trio.BrokenResourceError

    async def wait_send_all_might_not_block(self) -> None:
        raise AssertionError

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:  # noqa: ARG002 - as above
        if not self.written:
            await trio.sleep_forever()
        raise trio.BrokenResourceError

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


def test_write_that_fails() -> None:
    """After a failed write the outcome is UNKNOWN: the server may have part of the request."""

    async def connect(_: str, __: int) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        return Broken()

    async def main() -> None:
        client = AsyncCreduseClient(KEY, base_url="http://localhost", connect=connect)
        with pytest.raises(TransportError, match="BrokenResourceError") as caught:
            await client.add(USER, 5)
        assert caught.value.outcome is Outcome.UNKNOWN
        assert len(caught.value.attempts) == 1

    trio.run(main)


@pytest.mark.parametrize("speaks", [b"", RESPONSE], ids=["hangs up", "speaks"])
def test_new_connection_that_is_not_quiet(speaks: bytes) -> None:
    """A server that sends or closes before a request gets none, and the client retries."""

    async def main() -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listeners[0].socket.getsockname()[1]
        seen: list[bytes] = []

        async def serve(stream: trio.SocketStream) -> None:
            async with stream:
                if speaks:
                    await stream.send_all(speaks)
                else:
                    await stream.send_eof()
                with suppress(trio.BrokenResourceError):
                    seen.append(await stream.receive_some())

        async def connect(_: str, __: int) -> trio.abc.Stream:
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            await trio.lowlevel.wait_readable(stream.socket)
            return stream

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, serve, listeners)
            async with AsyncCreduseClient(
                KEY, base_url="http://localhost", connect=connect, retry=NO_WAIT
            ) as client:
                with pytest.raises(TransportError, match="sent data or closed") as caught:
                    await client.add(USER, 5)
            assert caught.value.outcome is Outcome.NOT_APPLIED
            assert len(caught.value.attempts) == 3
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert not any(seen)

    trio.run(main)


def test_socket_that_its_owner_has_closed(server: SandboxServer) -> None:
    """A connection whose socket other code has closed is not used."""
    streams: list[trio.SocketStream] = []

    async def connect(host: str, port: int) -> trio.abc.Stream:
        streams.append(await trio.open_tcp_stream(host, port))
        return streams[-1]

    async def main() -> None:
        async with AsyncCreduseClient(KEY, base_url=server.base_url, connect=connect) as client:
            await client.add(USER, 5)
            streams[0].socket.close()
            await client.add(USER, 5)

    trio.run(main)
    assert len(streams) == len(server.applied) == 2


def raising(error: Exception) -> Callable[[str, int], Awaitable[trio.abc.Stream]]:
    async def connect(_: str, __: int) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        raise error

    return connect


CONNECT_ERRORS: dict[str, tuple[Exception, int]] = {
    "refused": (ConnectionRefusedError("no"), 3),
    "dns": (OSError("no such host"), 3),
    "broken": (trio.BrokenResourceError("no"), 3),
    "url": (UnicodeError("label too long"), 1),
    "a bug": (AttributeError("x"), 1),
    "several": (ExceptionGroup("all", [OSError("no")]), 1),
}


@pytest.mark.parametrize(("error", "attempts"), CONNECT_ERRORS.values(), ids=CONNECT_ERRORS)
def test_no_connection(error: Exception, attempts: int) -> None:
    """Without a connection the outcome is NOT_APPLIED, and transient causes are retried."""

    async def main() -> None:
        policy = RetryPolicy(initial_delay=0)
        async with AsyncCreduseClient(
            KEY, base_url="http://localhost", retry=policy, connect=raising(error)
        ) as client:
            with pytest.raises(TransportError) as caught:
                await client.add(USER, 5)
            assert caught.value.outcome is Outcome.NOT_APPLIED
            assert caught.value.__cause__ is error
            assert len(caught.value.attempts) == attempts

    trio.run(main)


def test_refused_and_unknown_hosts() -> None:
    """A refused connection and an unknown host are NOT_APPLIED, and retried."""

    class Resolver(trio.abc.HostnameResolver):
        async def getaddrinfo(self, *_: Any, **__: Any) -> Any:
            await trio.lowlevel.checkpoint()
            raise trio.socket.gaierror(-2, "Name or service not known")

        async def getnameinfo(self, *_: Any, **__: Any) -> Any:
            raise AssertionError

    async def main() -> None:
        trio.socket.set_custom_hostname_resolver(Resolver())
        policy = RetryPolicy(initial_delay=0)
        for host in ("127.0.0.1:1", "nowhere.invalid"):
            async with AsyncCreduseClient(
                KEY, base_url=f"http://{host}", retry=policy, allow_http=True
            ) as client:
                with pytest.raises(TransportError) as caught:
                    await client.add(USER, 5)
                assert caught.value.outcome is Outcome.NOT_APPLIED
                assert [it.event for it in caught.value.attempts] == ["not_sent"] * 3

    trio.run(main)


def test_connect_that_returns_no_stream() -> None:
    """A return value of ``connect`` that is not a stream is named, and nothing is sent."""

    async def connect(_: str, __: int) -> Any:
        await trio.lowlevel.checkpoint()
        return "a stream"

    async def main() -> None:
        async with AsyncCreduseClient(KEY, base_url="http://localhost", connect=connect) as client:
            with pytest.raises(TransportError, match=r"a trio\.abc\.Stream, not str") as caught:
                await client.add(USER, 5)
            assert caught.value.outcome is Outcome.NOT_APPLIED
            assert len(caught.value.attempts) == 1

    trio.run(main)


def test_no_time_to_send(server: SandboxServer) -> None:
    """A call whose timeout passes before it is sent is NOT_APPLIED."""

    async def main() -> None:
        async with AsyncCreduseClient(KEY, base_url=server.base_url) as client:
            for _ in range(2):  # on a new connection, and on an idle one
                with pytest.raises(CreduseTimeoutError) as caught:
                    await client.add(USER, 5, timeout=1e-9)
                assert caught.value.outcome is Outcome.NOT_APPLIED
                await client.add(USER, 6)

    trio.run(main)
    assert [b'"amount":6' in (entry.body or b"") for entry in server.log] == [True, True]
