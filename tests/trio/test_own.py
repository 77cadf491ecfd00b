"""A client's own connections, and what it imports."""

import asyncio
import gc
import socket
import ssl
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trio
import trustme

from creduse_core import CreduseError, Outcome, RetryPolicy, TransportError
from creduse_sandbox import FAULTS, SandboxServer
from creduse_trio import AsyncCreduseClient
from creduse_trio._exchange import RequestHead
from tests.common import KEY, ONCE, RESPONSE, USER
from tests.trio.wires import Site, Wires, wired


def contexts() -> int:
    gc.collect()
    return sum(isinstance(thing, ssl.SSLContext) for thing in gc.get_objects())


def test_tls_context(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client for https makes one TLS context, before its first call; one for http makes none."""
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    before = contexts()

    async def main() -> None:
        async with AsyncCreduseClient(KEY, base_url="http://127.0.0.1:1"):
            assert contexts() == before
        async with AsyncCreduseClient(
            KEY, base_url="https://127.0.0.1:1", retry=RetryPolicy(initial_delay=0)
        ) as client:
            assert contexts() == before + 1
            with pytest.raises(TransportError):
                await client.add(USER, 1)
            assert contexts() == before + 1

    trio.run(main)


@pytest.mark.parametrize("data", [None, b"not PEM"])
def test_wrong_certificate_file(
    data: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong SSL_CERT_FILE is an error when the client is made, if it is read at all."""
    file = tmp_path / "ca.pem"
    if data is not None:
        file.write_bytes(data)
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    with pytest.raises(
        ValueError, match=r"SSL_CERT_FILE must name a file of certificates, not '.*': .+"
    ):
        AsyncCreduseClient(KEY, base_url="https://api.creduse.com")
    AsyncCreduseClient(KEY, ssl.create_default_context(), base_url="https://api.creduse.com")
    AsyncCreduseClient(KEY, base_url="http://localhost")


def test_certificate_file(
    server_context: ssl.SSLContext,
    authority: trustme.CA,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The certificates in SSL_CERT_FILE are trusted."""
    file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(file))
    monkeypatch.setenv("SSL_CERT_FILE", str(file))

    async def main() -> None:
        with SandboxServer(ssl_context=server_context) as server:
            async with AsyncCreduseClient(KEY, base_url=server.base_url) as client:
                await client.add(USER, 1)

    trio.run(main)


class Elsewhere(trio.socket.SocketType):
    """A socket that connects to anything, and says that its peer is another machine."""

    type = socket.SOCK_STREAM  # pyright: ignore[reportIncompatibleMethodOverride, reportAssignmentType]  # a property
    did_shutdown_SHUT_WR = False  # pyright: ignore[reportIncompatibleMethodOverride, reportAssignmentType]  # noqa: N815 - as above

    def __init__(self) -> None:
        """Not as its base, of which there are no instances."""
        self.closed = False

    async def connect(self, address: object) -> None:  # noqa: ARG002 - trio's signature
        """Connect."""
        await trio.lowlevel.checkpoint()

    def getpeername(self) -> tuple[str, int]:
        """Return an address that is nobody's (RFC 5737)."""
        return "192.0.2.7", 80

    def setsockopt(self, *_: Any, **__: Any) -> None:
        """Ignore it."""

    def is_readable(self) -> bool:
        """Be quiet."""
        return False

    async def send(self, *_: Any, **__: Any) -> int:
        """Fail."""
        await trio.lowlevel.checkpoint()
        raise ConnectionResetError("written to")

    async def recv(self, *_: Any, **__: Any) -> bytes:
        """Fail likewise."""
        await trio.lowlevel.checkpoint()
        raise ConnectionResetError("written to")

    def close(self) -> None:
        """Note it."""
        self.closed = True


class Factory(trio.abc.SocketFactory):
    """A factory of sockets that connect elsewhere."""

    def __init__(self) -> None:
        self.made: list[Elsewhere] = []

    def socket(self, *_: Any, **__: Any) -> trio.socket.SocketType:
        """Make one."""
        self.made.append(Elsewhere())
        return self.made[-1]


@pytest.mark.parametrize(
    ("settings", "said", "outcome"),
    [
        ({}, "localhost is at 192.0.2.7, which is not this machine", Outcome.NOT_APPLIED),
        ({"allow_http": True}, "written to", Outcome.UNKNOWN),
    ],
    ids=["loopback only", "allow_http"],
)
def test_localhost_that_is_elsewhere(settings: dict[str, Any], said: str, outcome: Outcome) -> None:
    """Over plain http, a request to localhost is sent only to this machine."""
    factory = Factory()

    async def main() -> None:
        trio.socket.set_custom_socket_factory(factory)
        async with AsyncCreduseClient(KEY, base_url="http://localhost", **settings) as client:
            with pytest.raises(TransportError, match=said) as caught:
                await client.add(USER, 5)
        assert caught.value.outcome is outcome
        assert len(caught.value.attempts) == 1

    trio.run(main)
    assert factory.made
    assert all(made.closed for made in factory.made)


def test_localhost(server: SandboxServer) -> None:
    """The usual localhost is this machine."""

    async def main() -> None:
        url = server.base_url.replace("127.0.0.1", "localhost")
        async with AsyncCreduseClient(KEY, base_url=url) as client:
            await client.add(USER, 5)

    trio.run(main)
    assert len(server.applied) == 1


GROWING = (
    "apply-then-reset",
    "request-then-close",
    "wrong-user",
    "close-after",
    "cut-body-then-reset",
)


def count_objects() -> int:
    gc.collect()
    return len(gc.get_objects())


async def settled_growth(before: int) -> int:
    """Count the objects that stay. The server, in this process, too, needs time to close its own."""
    for _ in range(20):
        if count_objects() - before < 400:
            break
        await trio.sleep(0.5)
    return count_objects() - before


@pytest.mark.slow
def test_nothing_grows(site: Site) -> None:
    """Connections, failures and cancellations leave no objects."""

    async def once(client: AsyncCreduseClient) -> None:
        for name in GROWING:
            site.server.inject(FAULTS[name])
            with suppress(CreduseError):
                await client.add(USER, 5)
        site.server.inject(FAULTS["request-then-hang"])
        with suppress(CreduseError):
            await client.add(USER, 5, timeout=0.002)
        for checkpoints in range(12):
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(client.add, USER, 5)
                    for _ in range(checkpoints):
                        await trio.lowlevel.checkpoint()
                    scope.cancel()
        site.server.reset()

    async def main() -> None:
        async with site.client(retry=ONCE, max_connections=2) as client:
            for _ in range(5):
                await once(client)
            before = count_objects()
            for _ in range(40):
                await once(client)
            # Each connection has dozens of objects, and there were hundreds.
            assert await settled_growth(before) < 400

    trio.run(main)


def test_closed_client(site: Site) -> None:
    """A closed client sends nothing, and the error says so; it can be closed again."""

    async def main() -> None:
        async with site.client() as client:
            await client.add(USER, 5)
        await client.aclose()
        with pytest.raises(
            TransportError, match="client is closed: was it used after its 'with'"
        ) as caught:
            await client.add(USER, 5)
        assert caught.value.outcome is Outcome.NOT_APPLIED
        assert len(caught.value.attempts) == 1

    trio.run(main)
    assert len(site.server.log) == 1


def test_unused_client() -> None:
    """A client that was never used closes."""

    async def main() -> None:
        async with AsyncCreduseClient(KEY):
            pass

    trio.run(main)


def test_closed_while_calls_are_in_flight() -> None:
    """Closing waits for calls in flight; a call that waits for a place sends nothing."""
    go_on = trio.Event()

    async def serve(stream: trio.abc.Stream, wires: Wires) -> None:
        await wires.request(stream)
        await go_on.wait()
        await stream.send_all(RESPONSE)

    async def main() -> None:
        async with wired(serve, max_connections=1) as (client, wires):
            results: list[object] = []

            async def call() -> None:
                try:
                    results.append(await client.add(USER, 5))
                except TransportError as error:
                    results.append(error)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(call)
                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(call)
                nursery.start_soon(call)
                await trio.testing.wait_all_tasks_blocked()
                await client.aclose()
                go_on.set()
            assert getattr(results[0], "amount", None) == 5
            for refused in results[1:]:
                assert isinstance(refused, TransportError)
                assert refused.outcome is Outcome.NOT_APPLIED
            assert len(wires.received) == wires.opened == len(wires.closed) == 1

    trio.run(main)


def test_closed_while_a_call_connects(server: SandboxServer) -> None:
    """A call that is connecting when the client is closed sends nothing."""
    connecting, go_on = trio.Event(), trio.Event()

    async def connect(host: str, port: int) -> trio.abc.Stream:
        connecting.set()
        await go_on.wait()
        return await trio.open_tcp_stream(host, port)

    async def main() -> None:
        client = AsyncCreduseClient(KEY, base_url=server.base_url, connect=connect)

        async def call() -> None:
            with pytest.raises(TransportError, match="the client is closed") as caught:
                await client.add(USER, 5)
            assert caught.value.outcome is Outcome.NOT_APPLIED

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            await connecting.wait()
            await client.aclose()
            go_on.set()

    trio.run(main)
    server.settle()
    assert server.log == ()


def test_closed_within_a_cancelled_scope() -> None:
    """Leaving ``async with`` by a cancellation closes the connections."""

    async def serve(stream: trio.abc.Stream, wires: Wires) -> None:
        while await wires.request(stream):
            await stream.send_all(RESPONSE)

    async def main() -> None:
        with trio.CancelScope() as scope:
            async with wired(serve) as (client, wires):
                async with trio.open_nursery() as nursery:
                    for _ in range(3):
                        nursery.start_soon(client.add, USER, 5)
                scope.cancel()
                try:
                    await client.aclose()
                finally:
                    assert len(wires.closed) == wires.opened == 3

    trio.run(main)


def test_another_run(server: SandboxServer) -> None:
    """In another trio.run than before, a client sends nothing, and the error says so."""
    client = AsyncCreduseClient(KEY, base_url=server.base_url)

    async def first() -> None:
        await client.add(USER, 1)
        await trio.to_thread.run_sync(trio.run, second)
        await client.add(USER, 1)
        await client.aclose()

    async def second() -> None:
        with pytest.raises(TransportError, match=r"belongs to another trio\.run") as caught:
            await client.add(USER, 1)
        assert caught.value.outcome is Outcome.NOT_APPLIED
        assert len(caught.value.attempts) == 1

    trio.run(first)
    assert [entry.connection for entry in server.log] == [1, 1]


def test_under_asyncio(server: SandboxServer) -> None:
    """Under asyncio a call is NOT_APPLIED, and the error names the right client."""

    async def main() -> None:
        async with AsyncCreduseClient(KEY, base_url=server.base_url) as client:
            with pytest.raises(
                TransportError, match="runs only under trio; for asyncio, use creduse"
            ) as caught:
                await client.add(USER, 5)
            assert caught.value.outcome is Outcome.NOT_APPLIED

    asyncio.run(main())
    assert server.log == ()


def test_closed_in_another_run(server: SandboxServer) -> None:
    """Closing a client in another trio.run leaves its connections open."""
    client = AsyncCreduseClient(KEY, base_url=server.base_url)

    async def main() -> None:
        await client.add(USER, 1)
        await trio.to_thread.run_sync(trio.run, client.aclose)
        with pytest.raises(TransportError, match="the client is closed"):
            await client.add(USER, 1)
        await client.aclose()

    trio.run(main)
    assert len(server.log) == 1


FORK = """
import os, sys, trio
from creduse_core import CreduseError, Outcome, TransportError
from creduse_trio import AsyncCreduseClient
client = AsyncCreduseClient("sk-test", base_url=sys.argv[1])
user = "12345678-1234-5678-1234-567812345678"

async def child():
    try:
        await client.add(user, 1)
    except TransportError as error:
        assert error.outcome is Outcome.NOT_APPLIED
        await client.aclose()
        os._exit(7)

async def main():
    await client.add(user, 1)
    if (pid := os.fork()) == 0:
        await child()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    await client.add(user, 1)
    await client.aclose()

trio.run(main)
"""


def test_fork(server: SandboxServer) -> None:
    """After a fork, the child does not use its parent's connections."""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORK, server.base_url]
    subprocess.run(command, check=True)
    assert [entry.connection for entry in server.log] == [1, 1]


USE = """
import sys
import trio
from creduse_trio import AsyncCreduseClient

async def main():
    async with AsyncCreduseClient("sk-test", base_url=sys.argv[1]) as client:
        await client.add("12345678-1234-5678-1234-567812345678", 1)

trio.run(main)
print(*{name.partition(".")[0] for name in sys.modules})
"""


def test_imports(server: SandboxServer) -> None:
    """The client imports no asyncio, no anyio and no httpx."""
    command = [sys.executable, "-c", USE, server.base_url]
    done = subprocess.run(command, check=True, timeout=60, capture_output=True, text=True)
    loaded = set(done.stdout.split())
    assert "trio" in loaded
    assert not {"asyncio", "anyio", "httpx", "httpcore", "creduse_httpx", "creduse"} & loaded


@pytest.mark.parametrize(("missing", "said"), [("trio", "install 'creduse[trio]'"), ("h11", "h11")])
def test_without_trio(missing: str, said: str) -> None:
    """Without trio, the import error says what to install."""
    program = f"import sys; sys.modules[{missing!r}] = None; import creduse_trio"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, check=False, timeout=60, capture_output=True, text=True)
    assert done.returncode == 1
    assert said in done.stderr.splitlines()[-1]
    if missing == "trio":
        *_, last = done.stderr.splitlines()
        assert last == "ImportError: creduse_trio needs trio: pip install 'creduse[trio]'"
        assert done.stderr.count("Traceback") == 1


def test_cached_heads_are_bounded(server: SandboxServer) -> None:
    """The number of cached request heads is bounded."""

    def heads() -> int:
        gc.collect()
        return sum(isinstance(thing, RequestHead) for thing in gc.get_objects())

    async def main() -> None:
        policy = RetryPolicy(server_replays=True)
        async with AsyncCreduseClient(KEY, base_url=server.base_url, retry=policy) as client:
            before = heads()
            for number in range(300):
                await client.add(USER, 1, idempotency_key=f"order-{number}")
            assert heads() - before == 1

    trio.run(main)


def test_many_tasks_share_a_client(site: Site) -> None:
    """Tasks can share a client; connections never exceed the maximum."""

    async def main() -> None:
        async with site.client(max_connections=5) as client, trio.open_nursery() as nursery:
            for _ in range(100):
                nursery.start_soon(client.add, USER, 1)

    trio.run(main)
    assert len(site.server.applied) == 100
    assert len({entry.connection for entry in site.server.log}) <= 5


def test_default_max_connections() -> None:
    """By default a client has up to 100 connections."""
    opened: list[int] = []

    async def connect(_: str, __: int) -> trio.abc.Stream:
        opened.append(1)
        await trio.sleep_forever()
        raise AssertionError

    async def main() -> None:
        async with (
            AsyncCreduseClient(KEY, base_url="http://localhost", connect=connect) as client,
            trio.open_nursery() as nursery,
        ):
            for _ in range(101):
                nursery.start_soon(client.add, USER, 1)
            await trio.testing.wait_all_tasks_blocked()
            assert len(opened) == 100
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_session_tickets(server_context: ssl.SSLContext, trust: ssl.SSLContext) -> None:
    """TLS session tickets do not cost the connection."""

    async def main() -> None:
        with SandboxServer(ssl_context=server_context) as server:
            async with AsyncCreduseClient(KEY, trust, base_url=server.base_url) as client:
                for _ in range(3):
                    await client.add(USER, 1)
                    await trio.sleep(0.01)
            assert {entry.connection for entry in server.log} == {1}

    trio.run(main)
