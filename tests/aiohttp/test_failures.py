"""Failures over aiohttp: the errors say the truth."""

import asyncio
import gc
import logging
import os
import pickle
import socket
import ssl
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path

import aiohttp
import pytest

from creduse import (
    CreduseError,
    CreduseTimeoutError,
    InvalidResponseError,
    Outcome,
    RetryPolicy,
    TransportError,
)
from creduse_aiohttp import AsyncCreduseClient
from creduse_aiohttp._private_api import prepare_for_reuse
from creduse_sandbox import FAULTS, SandboxServer
from tests.aiohttp.clients import Connect, Run, until
from tests.common import GOOD, KEY, NO_WAIT, ONCE, RESPONSE, USER
from tests.servers import RawServer, Start, never_respond, wait_for_end


def test_unknown_host(run: Run, connect: Connect) -> None:
    """A host name without an address is NOT_APPLIED and retried."""

    async def main() -> None:
        async with connect("https://service.invalid", retry=NO_WAIT) as client:
            with pytest.raises(TransportError) as caught:
                await client.add(USER, 5, timeout=20)
            assert caught.value.outcome is Outcome.NOT_APPLIED
            assert len(caught.value.attempts) == 3

    run(main)


def test_certificates_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of certificates that OpenSSL would silently ignore is rejected with the client."""
    for name in ("missing.pem", "empty.pem"):
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / name))
        with pytest.raises(ValueError, match=f"SSL_CERT_FILE .*{name}"):
            AsyncCreduseClient(KEY, base_url="https://api.creduse.com")
        AsyncCreduseClient(KEY, base_url="http://localhost")
        tmp_path.joinpath("empty.pem").touch()
    monkeypatch.delenv("SSL_CERT_FILE")
    AsyncCreduseClient(KEY, base_url="https://api.creduse.com")


@pytest.mark.usefixtures("trusted")
def test_certificates_are_read_once(
    run: Run, secure_server: SandboxServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The certificates are read when the client is made."""

    async def main() -> None:
        async with AsyncCreduseClient(KEY, base_url=secure_server.base_url) as client:
            monkeypatch.delenv("SSL_CERT_FILE")
            await client.add(USER, 5)

    run(main)


def test_fingerprint_that_does_not_match(run: Run, secure_server: SandboxServer) -> None:
    """A certificate with another fingerprint is NOT_APPLIED, and not retried."""

    async def main() -> None:
        connector = aiohttp.TCPConnector(ssl=aiohttp.Fingerprint(bytes(32)))
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            AsyncCreduseClient(KEY, session, base_url=secure_server.base_url) as client,
        ):
            with pytest.raises(TransportError) as caught:
                await client.add(USER, 5)
            assert caught.value.outcome is Outcome.NOT_APPLIED
            assert [attempt.event for attempt in caught.value.attempts] == ["unsendable"]
            await asyncio.sleep(0.1)  # aiohttp leaves such a connection to close by itself

    run(main)
    assert secure_server.log == ()


def test_plain_server_for_https(run: Run, connect: Connect, server: SandboxServer) -> None:
    """A server that does not speak TLS is NOT_APPLIED."""

    async def main() -> None:
        async with connect(server.base_url.replace("http:", "https:"), retry=ONCE) as client:
            with pytest.raises(TransportError) as caught:
                await client.add(USER, 5)
            assert caught.value.outcome is Outcome.NOT_APPLIED

    run(main)
    assert server.applied == ()


def test_no_time_to_send(run: Run, connect: Connect, server: SandboxServer) -> None:
    """A call whose timeout passes before it is sent sends nothing, on a kept connection either."""

    async def main() -> None:
        async with connect(server.base_url) as client:
            for amount in (6, 7):
                with pytest.raises(CreduseTimeoutError) as caught:
                    await client.add(USER, 5, timeout=1e-9)
                assert caught.value.outcome is Outcome.NOT_APPLIED
                await client.add(USER, amount)

    run(main)
    assert [b'"amount":5' in (entry.body or b"") for entry in server.log] == [False, False]


def test_cut_response(run: Run, connect: Connect, raw: Start) -> None:
    """A cut response is UNKNOWN, even with a whole JSON body, and the error has what came."""

    def behave(connection: socket.socket, server: RawServer) -> None:
        server.request(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n" + GOOD)

    async def main() -> None:
        async with connect(server.base_url) as client:
            with pytest.raises(InvalidResponseError, match="cut") as caught:
                await client.add(USER, 5)
            assert caught.value.outcome is Outcome.UNKNOWN
            assert caught.value.response is not None
            assert caught.value.response.body == GOOD
            assert len(server.received) == 1

    server = raw(behave)
    run(main)


@pytest.mark.parametrize("lines", [b"", b"Upgrade: x\r\nConnection: upgrade\r\n"])
def test_switching_protocols(run: Run, connect: Connect, raw: Start, lines: bytes) -> None:
    """A 101 is UNKNOWN, in time, and its connection is not used again."""

    def behave(connection: socket.socket, server: RawServer) -> None:
        server.request(connection)
        if server.connections == 1:
            connection.sendall(b"HTTP/1.1 101 Switching Protocols\r\n" + lines + b"\r\n")
            wait_for_end(connection)
        else:
            connection.sendall(RESPONSE)

    async def main() -> None:
        async with connect(server.base_url, retry=ONCE) as client:
            with pytest.raises(CreduseError) as caught:
                await client.add(USER, 5, timeout=5)
            assert caught.value.outcome is Outcome.UNKNOWN
            await client.add(USER, 5)
            assert server.connections == 2

    server = raw(behave)
    run(main)


def test_response_at_the_deadline(run: Run, connect: Connect, raw: Start) -> None:
    """A response that has arrived by the deadline counts, though the loop was blocked."""
    blocked, sent = threading.Event(), threading.Event()

    def respond_when_blocked(connection: socket.socket, server: RawServer) -> None:
        server.request(connection)
        connection.sendall(RESPONSE)
        server.request(connection)
        blocked.wait()
        connection.sendall(RESPONSE)
        sent.set()

    async def main() -> None:
        async with connect(server.base_url, retry=ONCE) as client:
            await client.add(USER, 5)
            call = asyncio.create_task(client.add(USER, 5, timeout=4))
            while len(server.received) < 2:  # noqa: ASYNC110 - a thread adds it
                await asyncio.sleep(0)
            blocked.set()
            sent.wait()
            time.sleep(4)  # noqa: ASYNC251 - block the loop until the deadline has passed
            assert (await call).amount == 5

    server = raw(respond_when_blocked)
    run(main)


def test_full_pool(run: Run, raw: Start) -> None:
    """A call that gets no connection of a full pool in time is NOT_APPLIED."""

    async def main() -> None:
        policy = RetryPolicy(initial_delay=0, attempt_timeout=0.3)
        async with (
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as session,
            AsyncCreduseClient(KEY, session, base_url=server.base_url, retry=policy) as client,
        ):
            holding = asyncio.create_task(client.add(USER, 1))
            await until(lambda: server.received)
            with pytest.raises(CreduseTimeoutError) as caught:
                await client.add(USER, 2)
            assert caught.value.outcome is Outcome.NOT_APPLIED
            assert len(caught.value.attempts) == 3
            holding.cancel()
            await asyncio.wait({holding})
            assert len(server.received) == 1

    server = raw(never_respond)
    run(main)


def test_closed_while_a_call_waits(run: Run, raw: Start) -> None:
    """Closing the session ends a call that waits for a connection, with an error of ours."""

    async def main() -> None:
        async with (
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as session,
            AsyncCreduseClient(KEY, session, base_url=server.base_url) as client,
        ):
            holding = asyncio.create_task(client.add(USER, 1))
            await until(lambda: server.received)
            waiting = asyncio.create_task(client.add(USER, 2))
            await asyncio.sleep(0.05)
            await session.close()
            with pytest.raises(TransportError, match="the session was closed") as caught:
                await waiting
            assert caught.value.outcome is Outcome.NOT_APPLIED
            with pytest.raises(TransportError) as caught:
                await asyncio.wait_for(holding, 30)
            assert caught.value.outcome is Outcome.UNKNOWN

    server = raw(never_respond)
    run(main)


def test_closed_client(run: Run, connect: Connect, server: SandboxServer) -> None:
    """A closed client sends nothing, and the error says so."""

    async def main() -> None:
        async with connect(server.base_url) as client:
            pass
        with pytest.raises(
            TransportError, match="client is closed: was it used after its 'with'"
        ) as caught:
            await client.add(USER, 5)
        assert caught.value.outcome is Outcome.NOT_APPLIED
        assert len(caught.value.attempts) == 1

    run(main)
    assert server.log == ()


def test_url_that_aiohttp_rejects(run: Run, connect: Connect) -> None:
    """A URL that only the library rejects is NOT_APPLIED, and not retried."""

    async def main() -> None:
        async with connect("https://a..b") as client:
            with pytest.raises(TransportError) as caught:
                await client.add(USER, 5)
            assert caught.value.outcome is Outcome.NOT_APPLIED
            assert len(caught.value.attempts) == 1

    run(main)


@pytest.mark.parametrize("fault", ["not-http", "cut-body-then-close", "apply-then-reset", "500"])
def test_no_key_anywhere(
    run: Run, connect: Connect, server: SandboxServer, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The key is in no repr, error, traceback, pickle, or debug log."""
    caplog.set_level(logging.DEBUG)
    server.inject(FAULTS[fault])

    async def main() -> None:
        async with connect(server.base_url, retry=ONCE) as client:
            with pytest.raises(CreduseError) as caught:
                await client.add(USER, 5)
            error = caught.value
            text = "".join(traceback.format_exception(error))
            texts = [repr(client), str(error), repr(error), repr(vars(error)), text, caplog.text]
            texts.append(repr(error.__cause__))
            assert not any(KEY in text for text in texts)
            assert KEY.encode() not in pickle.dumps(error)
            assert "POST /add" in caplog.text
            if fault == "not-http":
                assert isinstance(error.__cause__, aiohttp.ClientResponseError)

    run(main)


def test_another_loop(server: SandboxServer) -> None:
    """On another event loop than before, a client sends nothing, and the error says so."""

    async def first(client: AsyncCreduseClient) -> None:
        await client.add(USER, 1)

        def in_a_thread() -> None:
            async def second() -> None:
                with pytest.raises(TransportError, match="belongs to another event loop") as caught:
                    await client.add(USER, 1)
                assert caught.value.outcome is Outcome.NOT_APPLIED
                assert len(caught.value.attempts) == 1

            asyncio.run(second())

        await asyncio.to_thread(in_a_thread)
        await client.aclose()

    client = AsyncCreduseClient(KEY, base_url=server.base_url)
    asyncio.run(first(client))
    asyncio.run(client.aclose())  # without effect
    assert len(server.log) == 1


def test_without_asyncio(server: SandboxServer) -> None:
    """Without a running asyncio loop, nothing is sent, and the error says so."""
    client = AsyncCreduseClient(KEY, base_url=server.base_url)
    with pytest.raises(TransportError, match="no running event loop") as caught:
        client.add(USER, 1).send(None)
    assert caught.value.outcome is Outcome.NOT_APPLIED
    assert server.log == ()


@pytest.mark.usefixtures("leaks")
def test_unclosed_client(run: Run, server: SandboxServer) -> None:
    """A client that was not closed warns as aiohttp does."""

    async def main() -> None:
        said: list[str] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: said.append(context["message"]))
        client = AsyncCreduseClient(KEY, base_url=server.base_url)
        await client.add(USER, 1)
        del client
        gc.collect()
        assert said == ["Unclosed client session", "Unclosed connector"]

    run(main)


PROGRAM = """
import sys
sys.modules[sys.argv[1]] = None
try:
    import creduse_aiohttp
except ImportError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("aiohttp", "creduse_aiohttp needs aiohttp: pip install 'creduse[aiohttp]'\n"),
        ("multidict", "import of multidict halted; None in sys.modules\n"),
    ],
)
def test_without_aiohttp(missing: str, said: str) -> None:
    """Without aiohttp, the import error says what to install."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, missing], capture_output=True, check=True, env=os.environ
    )
    assert done.stdout.decode() == said


@pytest.mark.usefixtures("trusted")
def test_result_over_a_lost_connection(
    run: Run, secure_context: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole response counts, even if its TLS connection is lost before it could be reused.

    aiohttp and the loss can both close the transport. asyncio's TLS transport then has no state left.
    """

    def lose(transport: asyncio.WriteTransport) -> bool:
        transport.abort()
        transport.close()
        return prepare_for_reuse(transport)

    monkeypatch.setattr("creduse_aiohttp._client.prepare_for_reuse", lose)

    async def main() -> None:
        async with AsyncCreduseClient(KEY, base_url=server.base_url) as client:
            assert (await client.add(USER, 5)).amount == 5
            assert (await client.add(USER, 6)).amount == 6

    with SandboxServer(ssl_context=secure_context) as server:
        run(main)
        assert [entry.connection for entry in server.applied] == [1, 2]
