"""Clients with their own connections: signals, closing, proxies and misleading names."""

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import httpx
import pytest
import trustme

from creduse import (
    CreduseClient,
    CreduseError,
    CreduseTimeoutError,
    Outcome,
    RetryPolicy,
    TransportError,
)
from creduse_core import State
from creduse_httpx._network import ConnectionState
from creduse_sandbox import FAULTS, SandboxServer, Shaped
from tests.common import KEY, ONCE, RESPONSE, USER
from tests.httpx.harness import Harness
from tests.servers import RawServer, Start
from tests.tls import server_context


class SoftTimeLimitError(Exception):
    """A task runner's exception for a job that takes too long."""


@contextmanager
def alarm(ring: Callable[[], object], when: Callable[[], object]) -> Generator[None]:
    """Call ``ring`` from a signal handler of this thread, soon after a condition is true."""

    def handle(*_: object) -> None:
        ring()

    def wait() -> None:
        while not when():
            time.sleep(0.001)
        time.sleep(0.05)
        signal.pthread_kill(main, signal.SIGALRM)

    main = threading.get_ident()
    before = signal.signal(signal.SIGALRM, handle)
    waiting = threading.Thread(target=wait)
    waiting.start()
    try:
        yield
    finally:
        waiting.join()
        signal.signal(signal.SIGALRM, before)


def raising(error: Exception) -> Callable[[], NoReturn]:
    def ring() -> NoReturn:
        raise error

    return ring


def has_request(server: SandboxServer) -> bool:
    """Return whether the server has received a request."""
    return bool(server.log) and server.log[0].body is not None


@pytest.mark.parametrize(
    "error", [SoftTimeLimitError("over"), TimeoutError("over"), OSError("over"), KeyError("over")]
)
@pytest.mark.parametrize("name", ["request-then-hang", "cut-head-then-hang", "cut-body-then-hang"])
def test_signal_handler_that_raises(server: SandboxServer, error: Exception, name: str) -> None:
    """An exception of a signal handler abandons the call, and leaves the client unchanged."""
    with CreduseClient(KEY, base_url=server.base_url) as client:
        server.inject(FAULTS[name])
        call = client.protocol.get_balance(USER)
        with (
            pytest.raises(type(error)) as caught,
            alarm(raising(error), when=lambda: has_request(server)),
        ):
            client.run(call)
        assert caught.value is error
        assert [attempt.event for attempt in call.attempts] == ["abandoned"]
        server.direct.add(USER, 1)
        assert client.get_balance(USER).active_balance == 1


def test_alarm_while_connecting() -> None:
    """An alarm's TimeoutError during connecting is not the socket's."""
    with full_backlog() as port, CreduseClient(KEY, base_url=f"http://127.0.0.1:{port}") as client:
        call = client.protocol.add(USER, 1)
        error = TimeoutError("over")
        with (
            pytest.raises(TimeoutError) as caught,
            alarm(raising(error), when=lambda: call.state is State.IN_FLIGHT),
        ):
            client.run(call)
        assert caught.value is error
        assert call.outcome is Outcome.UNKNOWN


@contextmanager
def full_backlog() -> Generator[int]:
    """Listen on a port where connecting never succeeds."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.setblocking(False)  # noqa: FBT003 - as it is
            one.connect_ex(("127.0.0.1", port))
        time.sleep(0.05)
        try:
            yield port
        finally:
            for one in waiting:
                one.close()


@pytest.mark.parametrize("name", ["request-then-hang", "cut-head-then-hang", "cut-body-then-hang"])
def test_close_ends_a_call(server: SandboxServer, name: str) -> None:
    """``close()`` ends a call in another thread before its timeout."""
    client = CreduseClient(KEY, base_url=server.base_url, timeout=60, retry=ONCE)
    server.inject(FAULTS[name])
    ended: list[CreduseError] = []

    def call() -> None:
        with pytest.raises(CreduseError) as caught:
            client.add(USER, 1)
        ended.append(caught.value)

    thread = threading.Thread(target=call)
    thread.start()
    while not has_request(server):
        time.sleep(0.01)
    time.sleep(0.05)
    client.close()
    thread.join()
    assert not thread.is_alive()
    assert ended[0].outcome is Outcome.UNKNOWN


def test_close_while_connecting() -> None:
    """After ``close()`` has returned, a call that was connecting sends nothing."""
    with full_backlog() as port:
        client = CreduseClient(
            KEY, base_url=f"http://127.0.0.1:{port}", retry=RetryPolicy(1, attempt_timeout=2.0)
        )
        ended: list[CreduseError] = []

        def call() -> None:
            with pytest.raises(CreduseError) as caught:
                client.add(USER, 1)
            ended.append(caught.value)

        thread = threading.Thread(target=call)
        thread.start()
        time.sleep(0.1)
        client.close()
    thread.join()
    assert not thread.is_alive()
    assert ended[0].outcome is Outcome.NOT_APPLIED


def silent(connection: socket.socket, server: RawServer) -> None:
    """Act as a proxy that never responds."""
    server.received.append(connection.recv(65536))
    server.stopping.wait()


@pytest.mark.parametrize("scheme", ["http", "socks5"])
def test_silent_proxy(
    own: Harness, scheme: str, raw: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A silent proxy is bounded by the time to connect, and the error names it."""
    proxy = raw(silent)
    where = proxy.base_url.removeprefix("http://")
    monkeypatch.setenv("HTTPS_PROXY", f"{scheme}://user:pass%23word@{where}")
    policy = RetryPolicy(max_attempts=1, attempt_timeout=0.2)

    async def main() -> None:
        async with own.connect("https://service.invalid", retry=policy, timeout=600) as client:
            with pytest.raises(CreduseTimeoutError) as caught:
                await client.add(USER, 1)
        assert caught.value.outcome is Outcome.NOT_APPLIED
        assert f"{scheme}://{where}" in str(caught.value)
        assert "pass" not in str(caught.value)

    own.run(main)


def here() -> str:
    """Return an address of this machine that is not a loopback address."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has loopback addresses only")
        address: str = probe.getsockname()[0]
    return address


@pytest.mark.parametrize("allow_http", [None, True])
def test_localhost_that_is_elsewhere(
    own: Harness,
    allow_http: bool | None,  # noqa: FBT001 - a column
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Plain http to ``localhost`` sends the key to this machine only, unless ``allow_http`` is set."""
    address, look_up = here(), socket.getaddrinfo

    def mislead(host: Any, *args: Any, **kwargs: Any) -> Any:
        host = address if host in {"localhost", b"localhost"} else host
        return look_up(host, *args, **kwargs)

    async def main() -> None:
        async with own.connect(url, retry=ONCE, allow_http=allow_http) as client:
            if allow_http:
                await client.add(USER, 1)
                return
            with pytest.raises(TransportError, match="which is not this machine") as caught:
                await client.add(USER, 1)
            assert caught.value.outcome is Outcome.NOT_APPLIED

    monkeypatch.setattr(socket, "getaddrinfo", mislead)
    with SandboxServer(host=address) as server:
        url = server.base_url.replace(address, "localhost")
        own.run(main)
    assert len(server.log) == bool(allow_http)


FORK = """
import os, sys, threading, time
from creduse import CreduseClient, CreduseError
client = CreduseClient("sk-test", base_url=sys.argv[1], timeout=60)
user = "12345678-1234-5678-1234-567812345678"
results = []
def call():
    try:
        results.append(client.add(user, 1).amount)
    except CreduseError as error:
        results.append(error.outcome)
thread = threading.Thread(target=call)
thread.start()
time.sleep(0.5)
child = os.fork()
if not child:
    client.close()
    os._exit(0)
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
thread.join()
client.close()
os._exit(status or (results != [1]))
"""


def later(head: bytes, body: bytes) -> tuple[bytes, ...]:
    return (b"", head + body)


def test_fork_during_a_call(server: SandboxServer) -> None:
    """A child process that closes the client does not disturb the parent's call in flight."""
    server.inject(Shaped(later, pause=2.0))
    subprocess.run([sys.executable, "-c", FORK, server.base_url], check=True)
    assert len(server.applied) == 1


def test_response_before_the_first_request_over_tls(
    own: Harness, raw: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes that arrive on a new TLS connection before the request are not its response."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    context = server_context(authority)
    sent = threading.Event()
    begins_request = ConnectionState._begins_request  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # the moment before a write

    def wait_first(state: ConnectionState, data: bytes) -> bool:
        sent.wait()
        time.sleep(0.05)
        return begins_request(state, data)

    def respond_first(connection: socket.socket, server: RawServer) -> None:
        with context.wrap_socket(connection, server_side=True) as secure:
            secure.sendall(RESPONSE)
            sent.set()
            server.received.append(secure.recv(65536))

    async def main() -> None:
        async with own.connect(base_url, retry=ONCE) as client:
            with pytest.raises(TransportError, match="data before the request") as caught:
                await client.add(USER, 5)
            assert caught.value.outcome is Outcome.NOT_APPLIED

    monkeypatch.setattr(ConnectionState, "_begins_request", wait_first)
    base_url = raw(respond_first).base_url.replace("http:", "https:")
    own.run(main)


def test_close_during_a_handshake() -> None:
    """``close()`` ends a TLS handshake in another thread, and the other calls."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        client = CreduseClient(KEY, base_url=url, timeout=60, retry=RetryPolicy(1))
        ended: list[CreduseError] = []

        def call() -> None:
            with pytest.raises(CreduseError) as caught:
                client.add(USER, 1)
            ended.append(caught.value)

        threads = [threading.Thread(target=call) for _ in range(3)]
        for thread in threads:
            thread.start()
        accepted = [listener.accept()[0] for _ in threads]
        for connection in accepted:
            assert connection.recv(1)  # the handshake has begun
        client.close()
        for thread in threads:
            thread.join()
            assert not thread.is_alive()
        for connection in accepted:
            connection.close()
    assert [error.outcome for error in ended] == [Outcome.NOT_APPLIED] * 3


def test_silent_address_before_a_good_one(
    server: SandboxServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A silent address of a host leaves time for the next one."""
    port = int(server.base_url.rpartition(":")[2])
    with full_backlog() as silent_port:
        addresses = [("127.0.0.1", silent_port), ("127.0.0.1", port)]

        def find(*_: object, **__: object) -> Any:
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", it) for it in addresses]

        monkeypatch.setattr(socket, "getaddrinfo", find)
        policy = RetryPolicy(max_attempts=1, attempt_timeout=4.0)
        with CreduseClient(KEY, base_url=server.base_url, retry=policy) as client:
            assert client.add(USER, 1).amount == 1


def test_address_of_an_unknown_family(
    server: SandboxServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an address of an unknown family, the next one is tried."""
    port = int(server.base_url.rpartition(":")[2])

    def find(*_: object, **__: object) -> Any:
        good = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))
        return [(9999, socket.SOCK_STREAM, 6, "", ("nowhere", port)), good]

    monkeypatch.setattr(socket, "getaddrinfo", find)
    with CreduseClient(KEY, base_url=server.base_url) as client:
        assert client.add(USER, 1).amount == 1


@pytest.mark.parametrize("supplied", [False, True])
def test_response_that_has_been_read(
    supplied: bool,  # noqa: FBT001 - a column
    server: SandboxServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A response that was already read, on a connection that closes, is the response."""
    handle = httpx.HTTPTransport.handle_request

    def handle_and_read(transport: httpx.HTTPTransport, request: httpx.Request) -> httpx.Response:
        response = handle(transport, request)
        response.read()
        return response

    monkeypatch.setattr(httpx.HTTPTransport, "handle_request", handle_and_read)
    server.inject(Shaped(edit=lambda it: replace(it, headers=(*it.headers, CLOSE))))
    with (
        httpx.Client() as http_client,
        CreduseClient(KEY, http_client if supplied else None, base_url=server.base_url) as client,
    ):
        assert client.add(USER, 1).amount == 1


CLOSE = ("Connection", "close")


def test_call_within_a_call(server: SandboxServer) -> None:
    """A signal handler may call the same client during a call, and closing still ends both."""
    with CreduseClient(KEY, base_url=server.base_url, timeout=60) as client:
        server.inject(FAULTS["request-then-hang"])
        within: list[int] = []

        def ring() -> None:
            within.append(client.add(USER, 2).amount)
            threading.Timer(0.1, client.close).start()

        with (
            pytest.raises(TransportError) as caught,
            alarm(ring, when=lambda: has_request(server)),
        ):
            client.add(USER, 1)
        assert within == [2]
        assert caught.value.outcome is Outcome.UNKNOWN
