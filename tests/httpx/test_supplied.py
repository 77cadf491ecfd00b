"""A supplied client of httpx: its settings, its transports, and who closes it."""

import asyncio
import gc
import socket
from typing import Any

import httpx
import httpx2
import pytest
import trustme

from creduse import (
    AsyncCreduseClient,
    CreduseClient,
    CreduseError,
    CreduseTimeoutError,
    InsufficientFundsError,
    InvalidResponseError,
    Outcome,
    RetryPolicy,
    ServerError,
    TransportError,
)
from creduse_core import CreduseProtocol, Request
from creduse_httpx._supplied import SuppliedClient, TracedExchange
from creduse_sandbox import FAULTS, CannedResponse, Sandbox, SandboxServer
from tests.common import KEY, NO_WAIT, USER
from tests.httpx.harness import Harness
from tests.servers import RawServer, Start, raw_servers, wait_for_end
from tests.tls import client_context, server_context


def test_nothing_is_added(supplied: Harness, server: SandboxServer) -> None:
    """Auth, headers, cookies, params and base URL of a supplied client are not sent."""
    settings = {
        "auth": ("somebody", "else"),
        "headers": {"Authorization": "Basic eA==", "X-Theirs": "1"},
        "cookies": {"theirs": "1"},
        "params": {"theirs": "1"},
        "base_url": "http://127.0.0.1:1/elsewhere",
        "follow_redirects": True,
    }

    async def main() -> None:
        async with (
            supplied.http_client_with(**settings) as http_client,
            supplied.connect(server.base_url, http_client=http_client) as client,
        ):
            server.inject(CannedResponse(429, (("Retry-After", "0"), ("Set-Cookie", "ours=1"))))
            await client.add(USER, 10)
            server.inject(CannedResponse(308, (("Location", server.base_url + "/add"),)))
            with pytest.raises(InvalidResponseError):
                await client.add(USER, 10)
            assert dict(http_client.cookies) == {"theirs": "1"}

    supplied.run(main)
    assert [entry.status for entry in server.log] == [429, 200, 308]
    for entry in server.log:
        assert entry.path == "/add"
        names = {name.lower() for name, _ in entry.headers}
        assert not names & {"x-theirs", "cookie"}


def test_event_hooks_do_not_run(supplied: Harness, server: SandboxServer) -> None:
    """Event hooks of a supplied client do not run for our requests."""
    seen: list[object] = []

    def hook(message: Any) -> None:
        seen.append(message)
        message.raise_for_status()

    async def async_hook(message: Any) -> None:
        hook(message)

    hooks = {"request": [hook], "response": [hook]}
    async_hooks = {"request": [async_hook], "response": [async_hook]}

    async def main() -> None:
        async with (
            supplied.http_client_with(
                event_hooks=hooks if supplied.sync else async_hooks
            ) as http_client,
            supplied.connect(server.base_url, http_client=http_client) as client,
        ):
            await client.add(USER, 10)
            with pytest.raises(InsufficientFundsError):
                await client.subtract(USER, 11)
            assert http_client.event_hooks["response"] == [hook if supplied.sync else async_hook]

    supplied.run(main)
    assert seen == []


def test_supplied_client_stays_open(supplied: Harness, server: SandboxServer) -> None:
    """Closing our client leaves the supplied client open."""

    async def main() -> None:
        async with supplied.http_client_with() as http_client:
            async with supplied.connect(server.base_url, http_client=http_client) as client:
                await client.add(USER, 10)
            assert not http_client.is_closed
            async with supplied.connect(server.base_url, http_client=http_client) as client:
                await client.add(USER, 10)

    supplied.run(main)
    assert [entry.connection for entry in server.log] == [1, 1]


def test_supplied_client_closed_by_its_owner(supplied: Harness, server: SandboxServer) -> None:
    """After the owner has closed the supplied client, nothing is sent, and the error says why."""

    async def main() -> None:
        async with supplied.http_client_with() as http_client:
            connected = supplied.connect(server.base_url, http_client=http_client)
        async with connected as client:
            with pytest.raises(TransportError, match="http_client is closed") as caught:
                await client.add(USER, 10)
            assert caught.value.outcome is Outcome.NOT_APPLIED

    supplied.run(main)
    assert server.log == ()


def test_closed_while_a_call_waits_for_a_connection(server: SandboxServer) -> None:
    """A call that waits for a connection sends nothing after its client is closed."""

    async def main() -> None:
        http_client = httpx.AsyncClient()
        client = AsyncCreduseClient("sk-test", http_client, base_url=server.base_url)
        # The call's own task begins after both of these have.
        error, _ = await asyncio.gather(
            client.add(USER, 1), http_client.aclose(), return_exceptions=True
        )
        assert isinstance(error, TransportError)
        assert error.outcome is Outcome.NOT_APPLIED

    asyncio.run(main())
    assert server.log == ()
    assert server.connections == 0


def test_not_an_http_client() -> None:
    """An object that is not a client of the right kind is a TypeError that names the right one."""
    key = "sk-test"
    with pytest.raises(TypeError, match=r"httpx\.Client \(or httpx2\.Client\), not AsyncClient"):
        CreduseClient(key, httpx.AsyncClient())  # type: ignore[arg-type]  # what is tested
    with pytest.raises(TypeError, match=r"httpx\.AsyncClient .*, not Client"):
        AsyncCreduseClient(key, httpx2.Client())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # what is tested
    with pytest.raises(TypeError, match="not str"):
        CreduseClient(key, "https://api.creduse.com")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # what is tested


def head_only(connection: socket.socket, server: RawServer) -> None:
    """Respond with headers only, and hold back the body."""
    if server.request(connection):
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")
        server.stopping.wait()


def test_full_pool(supplied: Harness, raw: Start) -> None:
    """A call that gets no connection of a full pool in time is NOT_APPLIED."""
    server = raw(head_only)
    policy = RetryPolicy(initial_delay=0, attempt_timeout=0.05)

    async def main() -> None:
        async with supplied.http_client_with(
            limits=supplied.library.Limits(max_connections=1)
        ) as http_client:
            request = http_client.build_request("GET", server.base_url, content=b"{}")
            held = http_client.send(request, stream=True)
            held = held if supplied.sync else await held
            async with supplied.connect(
                server.base_url, http_client=http_client, retry=policy
            ) as client:
                with pytest.raises(CreduseTimeoutError, match="PoolTimeout") as caught:
                    await client.add(USER, 5)
                assert caught.value.outcome is Outcome.NOT_APPLIED
                assert len(caught.value.attempts) == 3
            if supplied.sync:
                held.close()
            else:
                await held.aclose()

    supplied.run(main)
    assert len(server.received) == 1


def test_time_in_our_own_queue() -> None:
    """The time that an exchange waits for its turn is not given to the pool again."""
    protocol = CreduseProtocol(KEY)
    send = protocol.add(USER, 1).start(0.0)
    moment = 0.0
    with httpx.Client() as http_client:
        supplied = SuppliedClient(http_client, protocol, "Client")
        exchange = TracedExchange(send, supplied, lambda: moment)
        moment = send.connect_by - 1
        request = exchange.traced_request(None)
    timeout = {"pool": 1.0, "connect": 1.0, "write": send.deadline - moment}
    assert request.extensions["timeout"] == {**timeout, "read": timeout["write"]}


def test_stopped_before_its_turn() -> None:
    """An exchange that is stopped before its task runs makes no request."""
    protocol = CreduseProtocol(KEY)
    send = protocol.add(USER, 1).start(0.0)
    with httpx.Client() as http_client:
        exchange = TracedExchange(
            send, SuppliedClient(http_client, protocol, "Client"), lambda: 0.0
        )
        assert exchange.stop() == 0.0
        with pytest.raises(TimeoutError, match="no time was left to send the request"):
            exchange.traced_request(None)


def refuse_connect(connection: socket.socket, server: RawServer) -> None:
    """Act as a proxy that refuses every CONNECT."""
    server.received.append(connection.recv(65536))
    connection.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")


def test_proxy_that_refuses(supplied: Harness, raw: Start) -> None:
    """A proxy that refuses CONNECT never gets the request or the key: NOT_APPLIED."""
    server = raw(refuse_connect)

    async def main() -> None:
        async with (
            supplied.http_client_with(proxy=server.base_url) as http_client,
            supplied.connect(
                "https://service.invalid", http_client=http_client, retry=NO_WAIT
            ) as client,
        ):
            with pytest.raises(TransportError, match=r"403.* through proxy http://127") as caught:
                await client.add(USER, 5)
            assert caught.value.outcome is Outcome.NOT_APPLIED

    supplied.run(main)
    assert len(server.received) == 1  # the proxy would refuse again
    for received in server.received:
        assert received.startswith(b"CONNECT service.invalid:443 ")
        assert b"authorization" not in received.lower()


def over_sandbox(supplied: Harness, sandbox: Sandbox) -> Any:
    """Make a transport of the library that passes each request to a sandbox without a socket."""

    def handle(request: Any) -> Any:
        ours = Request(
            request.method, str(request.url), tuple(request.headers.items()), request.content
        )
        response = sandbox.handle(ours)
        return supplied.library.Response(
            response.status, headers=list(response.headers), content=response.body
        )

    return supplied.library.MockTransport(handle)


def test_sandbox_without_a_socket(supplied: Harness) -> None:
    """`Sandbox.handle` works behind a mock transport."""

    async def main() -> None:
        async with (
            supplied.http_client_with(transport=over_sandbox(supplied, Sandbox())) as http_client,
            supplied.connect("https://api.creduse.com", http_client=http_client) as client,
        ):
            await client.add(USER, 10)
            with pytest.raises(InsufficientFundsError):
                await client.subtract(USER, 11)
            assert (await client.get_balance(USER)).active_balance == 10

    supplied.run(main)


@pytest.mark.parametrize(
    ("name", "outcome"),
    [
        ("ReadTimeout", Outcome.UNKNOWN),
        ("ConnectError", Outcome.UNKNOWN),
        ("PoolTimeout", Outcome.NOT_APPLIED),
    ],
)
def test_transport_that_does_not_trace(supplied: Harness, name: str, outcome: Outcome) -> None:
    """Without trace events, the outcome of a failure is UNKNOWN, whatever its class.

    PoolTimeout alone is raised before a transport begins.
    """

    def handle(request: Any) -> Any:
        raise getattr(supplied.library, name)("simulated", request=request)

    async def main() -> None:
        async with (
            supplied.http_client_with(
                transport=supplied.library.MockTransport(handle)
            ) as http_client,
            supplied.connect(
                "https://api.creduse.com", http_client=http_client, retry=NO_WAIT
            ) as client,
        ):
            with pytest.raises(TransportError, match="simulated") as caught:
                await client.add(USER, 10)
            assert caught.value.outcome is outcome

    supplied.run(main)


def test_too_large_without_a_socket(supplied: Harness) -> None:
    """A response larger than the limit is rejected on a transport without sockets, too."""

    def handle(_: Any) -> Any:
        return supplied.library.Response(200, content=b" " * (17 * 1024 * 1024))

    async def main() -> None:
        async with (
            supplied.http_client_with(
                transport=supplied.library.MockTransport(handle)
            ) as http_client,
            supplied.connect("https://api.creduse.com", http_client=http_client) as client,
        ):
            with pytest.raises(InvalidResponseError, match="larger than"):
                await client.add(USER, 10)

    supplied.run(main)


def test_class_that_closes_when_it_is_deleted(supplied: Harness, server: SandboxServer) -> None:
    """A supplied client whose class closes itself in ``__del__`` stays open."""
    closed: list[object] = []
    library_class = supplied.library.Client if supplied.sync else supplied.library.AsyncClient

    class Closing(library_class):  # type: ignore[misc,valid-type]  # pyright: ignore[reportUntypedBaseClass]  # it is of one library or the other
        def __del__(self) -> None:
            closed.append(self)

    async def main() -> None:
        http_client = Closing()
        async with supplied.connect(server.base_url, http_client=http_client) as client:
            await client.add(USER, 1)
        del client
        gc.collect()
        assert closed == []
        if supplied.sync:
            http_client.close()
        else:
            await http_client.aclose()

    supplied.run(main)
    assert len(server.applied) == 1


class Retrying:
    """A transport that itself retries after a 502 or a failure."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport

    def handle_request(self, request: Any) -> Any:
        for _ in range(2):
            try:
                response = self._transport.handle_request(request)
                response.read()
            except Exception:  # noqa: BLE001, S112 - whatever it is
                continue
            if response.status_code != 502:
                return response
        return self._transport.handle_request(request)

    async def handle_async_request(self, request: Any) -> Any:
        for _ in range(2):
            try:
                response = await self._transport.handle_async_request(request)
                await response.aread()
            except Exception:  # noqa: BLE001, S112 - whatever it is
                continue
            if response.status_code != 502:
                return response
        return await self._transport.handle_async_request(request)

    def close(self) -> None:
        self._transport.close()

    async def aclose(self) -> None:
        await self._transport.aclose()


def retrying(supplied: Harness) -> Any:
    library = supplied.library
    base = library.BaseTransport if supplied.sync else library.AsyncBaseTransport
    made = library.HTTPTransport() if supplied.sync else library.AsyncHTTPTransport()
    return type("Transport", (Retrying, base), {})(made)


@pytest.mark.parametrize("name", ["502", "apply-then-reset", "apply-then-close"])
def test_transport_that_retries(supplied: Harness, server: SandboxServer, name: str) -> None:
    """A supplied transport that retries by itself sends a write once."""
    server.inject(FAULTS[name])

    async def main() -> None:
        async with (
            supplied.http_client_with(transport=retrying(supplied)) as http_client,
            supplied.connect(server.base_url, http_client=http_client, retry=NO_WAIT) as client,
        ):
            with pytest.raises(CreduseError, match="tried to send the request twice") as caught:
                await client.add(USER, 10)
            assert caught.value.outcome is Outcome.UNKNOWN
            assert len(caught.value.attempts) == 1
            await client.add(USER, 1)

    supplied.run(main)
    assert len(server.log) == 2


def test_transport_that_reads_before_it_sends(supplied: Harness, server: SandboxServer) -> None:
    """A supplied transport may read the body before it sends the request."""
    library = supplied.library
    base = library.BaseTransport if supplied.sync else library.AsyncBaseTransport
    made = library.HTTPTransport() if supplied.sync else library.AsyncHTTPTransport()

    class Reading(base):  # type: ignore[misc,valid-type]  # pyright: ignore[reportUntypedBaseClass]  # it is of one library or the other
        def handle_request(self, request: Any) -> Any:
            assert request.read().startswith(b"{")
            return made.handle_request(request)

        async def handle_async_request(self, request: Any) -> Any:
            assert (await request.aread()).startswith(b"{")
            return await made.handle_async_request(request)

        def close(self) -> None:
            made.close()

        async def aclose(self) -> None:
            await made.aclose()

    async def main() -> None:
        async with (
            supplied.http_client_with(transport=Reading()) as http_client,
            supplied.connect(server.base_url, http_client=http_client) as client,
        ):
            await client.add(USER, 10)

    supplied.run(main)
    assert len(server.applied) == 1


def test_body_is_read_once(supplied: Harness) -> None:
    """A transport without trace events cannot read the body twice."""
    if not supplied.sync:
        pytest.skip("the body is the same")

    class Twice(supplied.library.BaseTransport):  # type: ignore[misc,name-defined]  # pyright: ignore[reportUntypedBaseClass]  # it is of one library or the other
        def handle_request(self, request: Any) -> Any:
            return b"".join([*request.stream, *request.stream])

    async def main() -> None:
        async with (
            supplied.http_client_with(transport=Twice()) as http_client,
            supplied.connect("https://api.creduse.com", http_client=http_client) as client,
        ):
            with pytest.raises(TransportError, match="tried to send the request twice") as caught:
                await client.add(USER, 10)
            assert caught.value.outcome is Outcome.UNKNOWN

    supplied.run(main)


def test_http2_is_rejected(supplied: Harness) -> None:
    """A client that may use HTTP/2 is a ValueError."""

    async def main() -> None:
        async with supplied.http_client_with(http2=True) as http_client:
            with pytest.raises(ValueError, match="HTTP/2 is not supported"):
                async with supplied.connect("https://api.creduse.com", http_client=http_client):
                    pass

    supplied.run(main)


def read_all(connection: socket.socket, _: RawServer) -> None:
    wait_for_end(connection)


def not_seen(_transport: object) -> bool:
    return False


def test_http2_is_rejected_at_the_first_call(
    supplied: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If HTTP/2 is found only at the first call, nothing is sent, and the error says why."""
    monkeypatch.setattr("creduse_httpx._supplied.speaks_http2", not_seen)
    authority = trustme.CA()
    context = server_context(authority)
    context.set_alpn_protocols(["h2"])

    async def main() -> None:
        trust = client_context(authority)
        async with (
            supplied.http_client_with(http2=True, verify=trust) as http_client,
            supplied.connect(server.base_url, http_client=http_client, retry=NO_WAIT) as client,
        ):
            with pytest.raises(TransportError, match="HTTP/2 is not supported") as caught:
                await client.add(USER, 10)
            assert caught.value.outcome is Outcome.NOT_APPLIED
            assert len(caught.value.attempts) == 1

    with raw_servers(context) as start:
        server = start(read_all)
        supplied.run(main)


def be_a_proxy(connection: socket.socket, server: RawServer) -> None:
    """Act as a proxy that responds to every request with a 502."""
    if server.request(connection):
        connection.sendall(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")


def test_no_proxy_of_the_environment_to_this_machine(
    supplied: Harness, server: SandboxServer, raw: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests to this machine do not use the environment's proxy."""
    proxy = raw(be_a_proxy)
    monkeypatch.setenv("HTTP_PROXY", proxy.base_url)

    async def main() -> None:
        async with (
            supplied.http_client_with() as http_client,
            supplied.connect(server.base_url, http_client=http_client) as client,
        ):
            await client.add(USER, 10)

    supplied.run(main)
    assert proxy.received == []
    assert len(server.applied) == 1


def test_own_proxy_to_this_machine(supplied: Harness, server: SandboxServer, raw: Start) -> None:
    """A proxy that the supplied client was made with is used, for this machine too."""
    proxy = raw(be_a_proxy)

    async def main() -> None:
        async with (
            supplied.http_client_with(proxy=proxy.base_url) as http_client,
            supplied.connect(server.base_url, http_client=http_client) as client,
        ):
            with pytest.raises(ServerError):
                await client.add(USER, 10)

    supplied.run(main)
    assert len(proxy.received) == 1
    assert server.log == ()
