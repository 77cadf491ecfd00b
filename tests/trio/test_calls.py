"""Calls of the trio client, plain and over TLS."""

import socket
import ssl
from pathlib import Path
from typing import Any

import pytest
import trio
import trustme

from creduse_core import (
    CycleStatus,
    Outcome,
    RetryPolicy,
    TransportError,
)
from creduse_sandbox import CannedResponse, SandboxServer
from creduse_trio import AsyncCreduseClient
from tests.common import KEY, LAST_RESPONSE, NO_WAIT, ONCE, RESPONSE, USER
from tests.tls import client_context, server_context
from tests.trio.wires import Site, Wires, wired


async def respond(stream: trio.abc.Stream, wires: Wires) -> None:
    """Send the same response to every request."""
    while await wires.request(stream):
        await stream.send_all(RESPONSE)


def test_five_calls(site: Site) -> None:
    """Each of the five methods is applied once, on one connection."""

    async def main() -> None:
        async with site.client() as client:
            added = await client.add(USER, 100)
            assert (added.end_user_id, added.amount, added.validity_days) == (USER, 100, 31)
            assert (await client.subtract(str(USER), 50)).amount == 50
            assert (await client.start_cycle(USER, 1000)).status is CycleStatus.ACTIVE
            assert (await client.stop_cycle(USER)).status is CycleStatus.CANCELED
            balance = await client.get_balance(USER)
            assert balance.active_balance == 1050
            assert await client.get_active_balance(USER) == balance

    trio.run(main)
    applied = [entry.path for entry in site.server.applied]
    assert applied == ["/add", "/subtract", "/start-cycle", "/stop-cycle"]
    assert {entry.connection for entry in site.server.log} == {1}


def test_headers_of_a_request(server: SandboxServer) -> None:
    """A request has the core's headers, Host and Content-Length, and no others."""

    async def main() -> None:
        async with AsyncCreduseClient(KEY, base_url=server.base_url + "/") as client:
            await client.add(USER, 1)

    trio.run(main)
    (entry,) = server.log
    assert [name for name, _ in entry.headers] == [
        "Host",
        "Content-Type",
        "Accept",
        "Accept-Encoding",
        "User-Agent",
        "Content-Length",
    ]
    assert dict(entry.headers)["Host"] == server.base_url.removeprefix("http://")


def test_one_write() -> None:
    """A request is sent in one write, to the path below the base URL's, with its key."""

    async def serve(stream: trio.abc.Stream, wires: Wires) -> None:
        wires.received.append(bytes(await stream.receive_some()))
        await stream.send_all(RESPONSE)

    async def main() -> None:
        base_url = "http://api.localhost:8080/prefix"
        async with wired(serve, base_url=base_url) as (client, wires):
            await client.add(USER, 5)
        assert wires.asked == [("api.localhost", 8080)]
        (received,) = wires.received
        head, _, body = received.partition(b"\r\n\r\n")
        assert head.startswith(b"POST /prefix/add HTTP/1.1\r\nHost: api.localhost:8080\r\n")
        assert b"\r\nAuthorization: Bearer " + KEY.encode() in head
        assert body.endswith(b"}")

    trio.run(main)


WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "context": (
        {"ssl_context": True},
        TypeError,
        "ssl_context must be an ssl.SSLContext, such as ",
    ),
    "server's": (
        {"ssl_context": ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)},
        ValueError,
        "ssl_context must be a client's",
    ),
    "float": ({"max_connections": 1.0}, TypeError, "max_connections must be int, not float"),
    "bool": ({"max_connections": True}, TypeError, "max_connections must be int, not bool"),
    "none": ({"max_connections": 0}, ValueError, "max_connections must be at least 1, not 0"),
    "idle": ({"idle_timeout": 0}, ValueError, "idle_timeout must be above 0"),
    "connect": ({"connect": "unix:/x"}, TypeError, "connect must be a coroutine function"),
    "key": ({"api_key": " "}, ValueError, "is blank"),
}


@pytest.mark.parametrize(("settings", "kind", "said"), WRONG.values(), ids=WRONG)
def test_wrong_settings(settings: dict[str, Any], kind: type[Exception], said: str) -> None:
    """A wrong setting of the client is named in the error."""
    settings = {"api_key": KEY} | settings
    with pytest.raises(kind, match=said):
        AsyncCreduseClient(**settings)


def test_environment(server: SandboxServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The key and the URL come from the environment; repr shows no key."""
    monkeypatch.setenv("CREDUSE_API_KEY", KEY)
    monkeypatch.setenv("CREDUSE_BASE_URL", server.base_url)

    async def main() -> None:
        async with AsyncCreduseClient() as client:
            await client.add(USER, 1)
            assert repr(client) == f"<AsyncCreduseClient {server.base_url}>"

    trio.run(main)
    assert len(server.applied) == 1


def test_idempotency_key(server: SandboxServer) -> None:
    """A retried write has the same key, and each call its own."""
    policy = RetryPolicy(initial_delay=0, server_replays=True)

    async def main() -> None:
        async with AsyncCreduseClient(KEY, base_url=server.base_url, retry=policy) as client:
            server.inject(CannedResponse(500))
            for number in range(300):  # more than are kept ready
                await client.add(USER, 10, idempotency_key=f"order-{number}")

    trio.run(main)
    sent = [dict(entry.headers)["Idempotency-Key"] for entry in server.log]
    assert sent == ["order-0", *(f"order-{number}" for number in range(300))]
    assert len(server.applied) == 300


@pytest.mark.parametrize("secure", [False, True])
def test_ipv6(secure: bool, server_context: ssl.SSLContext, trust: ssl.SSLContext) -> None:  # noqa: FBT001 - pytest's parameter
    """An IPv6 literal is connected to, named in Host, and checked in the certificate."""

    async def main() -> None:
        with SandboxServer(host="::1", ssl_context=server_context if secure else None) as server:
            async with AsyncCreduseClient(KEY, trust, base_url=server.base_url) as client:
                await client.add(USER, 1)
            (entry,) = server.log
            assert dict(entry.headers)["Host"] == server.base_url.partition("//")[2]

    trio.run(main)


def test_several_addresses(server: SandboxServer) -> None:
    """If one address of a host refuses, the next is tried."""
    port = int(server.base_url.rpartition(":")[2])
    found = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", (it, port)) for it in ("127.0.0.9", "127.0.0.1")
    ]

    class Resolver(trio.abc.HostnameResolver):
        async def getaddrinfo(self, *_: Any, **__: Any) -> Any:
            return found

        async def getnameinfo(self, *_: Any, **__: Any) -> Any:
            raise AssertionError

    async def main() -> None:
        trio.socket.set_custom_hostname_resolver(Resolver())
        base_url = f"http://several.invalid:{port}"
        async with AsyncCreduseClient(KEY, base_url=base_url, allow_http=True) as client:
            await client.add(USER, 1)

    trio.run(main)
    assert len(server.applied) == 1


def test_unix_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With ``connect=`` a client uses a Unix socket, and reuses the connection."""
    monkeypatch.chdir(
        tmp_path
    )  # a Unix socket's path may be 107 bytes long, and pytest's are longer
    path = "socket"
    connections: list[int] = []

    async def serve(stream: trio.abc.Stream) -> None:
        connections.append(0)
        async for data in stream:
            connections[-1] += data.count(b"}")
            await stream.send_all(RESPONSE)

    async def connect(host: str, port: int) -> trio.abc.Stream:
        assert (host, port) == ("localhost", 80)
        return await trio.open_unix_socket(path)

    async def main() -> None:
        listening = trio.socket.socket(trio.socket.AF_UNIX)
        await listening.bind(path)
        listening.listen()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, serve, [trio.SocketListener(listening)])
            async with AsyncCreduseClient(
                KEY, base_url="http://localhost", connect=connect
            ) as client:
                for _ in range(3):
                    await client.add(USER, 5)
            nursery.cancel_scope.cancel()

    trio.run(main)
    assert connections == [3]


def test_tls_over_connect(server_context: ssl.SSLContext, trust: ssl.SSLContext) -> None:
    """TLS runs over the stream of ``connect``, and checks the name in the URL."""

    async def serve(stream: trio.abc.Stream, wires: Wires) -> None:
        secure = trio.SSLStream(stream, server_context, server_side=True)
        await secure.do_handshake()
        await respond(secure, wires)

    async def main() -> None:
        async with wired(serve, base_url="https://localhost", ssl_context=trust) as (client, wires):
            for _ in range(3):
                await client.add(USER, 5)
            assert wires.asked == [("localhost", 443)]
        async with wired(serve, base_url="https://elsewhere.invalid", ssl_context=trust) as (
            client,
            wires,
        ):
            with pytest.raises(TransportError, match="Hostname mismatch") as caught:
                await client.add(USER, 5)
            assert caught.value.outcome is Outcome.NOT_APPLIED
            assert len(caught.value.attempts) == 1
            assert wires.received == []

    trio.run(main)


def test_memory_stream_is_used_again() -> None:
    """A stream without a socket is used again."""

    async def main() -> None:
        async with wired(respond) as (client, wires):
            for _ in range(3):
                await client.add(USER, 5)
            assert wires.opened == 1

    trio.run(main)


def test_untrusted_certificate(site: Site, server_context: ssl.SSLContext) -> None:
    """An untrusted certificate is NOT_APPLIED, and not retried."""
    stranger = client_context(trustme.CA())

    async def main() -> None:
        with SandboxServer(ssl_context=server_context) as server:
            for context in (None, stranger):
                async with site.client(base_url=server.base_url, ssl_context=context) as client:
                    with pytest.raises(TransportError, match="CERTIFICATE_VERIFY_FAILED") as caught:
                        await client.add(USER, 5)
                    assert caught.value.outcome is Outcome.NOT_APPLIED
                    assert [it.event for it in caught.value.attempts] == ["unsendable"]
            assert server.log == ()

    trio.run(main)


def test_other_protocol(server_context: ssl.SSLContext, authority: trustme.CA) -> None:
    """If ALPN selects another protocol, nothing is sent, and the error says so."""
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(server_context)  # pyright: ignore[reportUnknownMemberType]  # it takes pyOpenSSL's contexts too
    server_context.set_alpn_protocols(["h2", "http/1.1"])
    context = ssl.create_default_context()
    authority.configure_trust(context)  # pyright: ignore[reportUnknownMemberType]  # as above
    context.set_alpn_protocols(["h2", "http/1.1"])

    async def serve(stream: trio.abc.Stream, wires: Wires) -> None:
        secure = trio.SSLStream(stream, server_context, server_side=True)
        await secure.do_handshake()
        await respond(secure, wires)

    async def main() -> None:
        async with wired(serve, base_url="https://localhost", ssl_context=context) as (
            client,
            wires,
        ):
            with pytest.raises(TransportError, match="not h2") as caught:
                await client.add(USER, 5)
            assert caught.value.outcome is Outcome.NOT_APPLIED
            assert wires.received == []

    trio.run(main)


def test_plain_server_for_https(server: SandboxServer) -> None:
    """A server that does not speak TLS is NOT_APPLIED, and retried."""

    async def main() -> None:
        base_url = server.base_url.replace("http:", "https:")
        async with AsyncCreduseClient(KEY, base_url=base_url, retry=NO_WAIT) as client:
            with pytest.raises(TransportError) as caught:
                await client.add(USER, 5)
            assert caught.value.outcome is Outcome.NOT_APPLIED
            assert len(caught.value.attempts) == 3

    trio.run(main)
    assert server.applied == ()


def test_default_context(authority: trustme.CA, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default context offers http/1.1, and all connections share it."""
    made: list[ssl.SSLContext] = []
    create = ssl.create_default_context

    def trusting() -> ssl.SSLContext:
        context = create()
        authority.configure_trust(context)  # pyright: ignore[reportUnknownMemberType]  # it takes pyOpenSSL's contexts too
        made.append(context)
        return context

    monkeypatch.setattr(ssl, "create_default_context", trusting)
    offered: list[str | None] = []
    context = server_context(authority, "localhost")
    context.set_alpn_protocols(["h2", "http/1.1"])

    async def serve(stream: trio.SocketStream) -> None:
        secure = trio.SSLStream(stream, context, server_side=True)
        await secure.do_handshake()
        offered.append(secure.selected_alpn_protocol())
        await secure.receive_some()
        await secure.send_all(LAST_RESPONSE)
        await trio.aclose_forcefully(secure)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            nursery.start_soon(trio.serve_listeners, serve, listeners)
            base_url = f"https://localhost:{listeners[0].socket.getsockname()[1]}"
            async with AsyncCreduseClient(KEY, base_url=base_url) as client:
                for _ in range(2):
                    await client.add(USER, 5)
            nursery.cancel_scope.cancel()

    trio.run(main)
    assert offered == ["http/1.1"] * 2
    assert len(made) == 1


def test_no_proxy_of_the_environment_with_connect(monkeypatch: pytest.MonkeyPatch) -> None:
    """With ``connect``, the environment's proxy is not used. A ``proxy`` of the client's own is."""
    asked: list[tuple[str, int]] = []

    async def connect(host: str, port: int) -> trio.abc.Stream:
        asked.append((host, port))
        raise OSError("unreachable")

    async def main() -> None:
        for proxy in (None, "http://own.example:3128"):
            client = AsyncCreduseClient(
                KEY, base_url="https://service.invalid", connect=connect, proxy=proxy, retry=ONCE
            )
            with pytest.raises(TransportError):
                await client.add(USER, 5)

    monkeypatch.setenv("HTTPS_PROXY", "socks5://proxy.example:1080")
    trio.run(main)
    assert asked == [("service.invalid", 443), ("own.example", 3128)]


class BrokenStreamError(Exception):
    """A stream's own exception."""


class BrokenStream(trio.abc.Stream):
    """A stream that raises an exception of its own module."""

    async def send_all(self, data: object) -> None:  # noqa: ARG002 - it always fails
        """Raise."""
        raise BrokenStreamError

    async def aclose(self) -> None:
        """Close nothing."""

    wait_send_all_might_not_block: Any = send_all
    receive_some: Any = send_all


@pytest.mark.parametrize("stream", [BrokenStream(), None], ids=["broken", "none"])
def test_stream_to_a_proxy(stream: Any) -> None:
    """A stream of ``connect`` that fails on the way to a proxy makes the call fail as NOT_APPLIED."""

    async def connect(*_: object) -> trio.abc.Stream:
        result: trio.abc.Stream = stream
        return result

    async def main() -> None:
        client = AsyncCreduseClient(
            KEY,
            base_url="https://service.invalid",
            connect=connect,
            proxy="http://own.example:3128",
            retry=ONCE,
        )
        with pytest.raises(TransportError) as caught:
            await client.add(USER, 5)
        assert caught.value.outcome is Outcome.NOT_APPLIED
        assert said in str(caught.value)

    said = "BrokenStreamError" if stream else "connect must return a trio.abc.Stream, not NoneType"
    trio.run(main)


def test_reason_of_a_proxy() -> None:
    """A traceback shows a proxy's reason phrase without control characters, and cut."""

    async def refuse(stream: trio.abc.Stream, _: Wires) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 407 Who\tare \x9b31m" + b"x" * 5000 + b"\r\n\r\n")

    async def main() -> None:
        settings = {"base_url": "https://service.invalid", "proxy": "http://proxy.invalid"}
        async with wired(refuse, **settings) as (client, _):
            with pytest.raises(TransportError) as caught:
                await client.add(USER, 5)
        said = str(caught.value.__cause__)
        assert said.startswith(r"the proxy responded 407 Who are \x9b31mxxx")
        assert said.isprintable()
        assert len(said) < 200

    trio.run(main)
