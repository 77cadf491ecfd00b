"""Calls of the aiohttp client."""

import asyncio
import socket
import ssl
from typing import Any
from uuid import UUID

import aiohttp
import pytest

from creduse import (
    CreduseError,
    InsufficientFundsError,
    Outcome,
    RetryPolicy,
    TransportError,
    UserDoesNotExistError,
)
from creduse_aiohttp import AsyncCreduseClient
from creduse_core import __version__
from creduse_sandbox import FAULTS, SandboxServer
from tests.aiohttp.clients import Connect, Run
from tests.common import KEY, NO_WAIT, USER
from tests.servers import RawServer, Start


def test_five_calls(run: Run, connect: Connect, server: SandboxServer) -> None:
    """Each of the five methods is applied once, on one connection."""

    async def main() -> None:
        async with connect(server.base_url) as client:
            assert (await client.add(USER, 100)).amount == 100
            assert (await client.subtract(USER, 30)).amount == 30
            assert (await client.start_cycle(USER, 5)).amount == 5
            assert (await client.stop_cycle(USER)).end_user_id == USER
            assert (await client.get_balance(USER)).active_balance == 75
            with pytest.raises(InsufficientFundsError) as caught:
                await client.subtract(USER, 76)
            assert caught.value.outcome is Outcome.NOT_APPLIED
            with pytest.raises(UserDoesNotExistError):
                await client.stop_cycle(UUID(int=1))

    run(main)
    assert [entry.path for entry in server.applied] == [
        "/add",
        "/subtract",
        "/start-cycle",
        "/stop-cycle",
    ]
    assert {entry.connection for entry in server.log} == {1}


def test_headers(run: Run, connect: Connect, server: SandboxServer) -> None:
    """A request has the core's headers, Host and Content-Length, each once."""

    async def main() -> None:
        async with connect(server.base_url) as client:
            await client.add(USER, 1)
            await client.get_balance(USER)

    run(main)
    for entry in server.log:
        assert sorted(entry.headers) == [
            ("Accept", "application/json"),
            ("Accept-Encoding", "identity"),
            ("Content-Length", str(len(entry.body or b""))),
            ("Content-Type", "application/json"),
            ("Host", server.base_url.removeprefix("http://")),
            ("User-Agent", f"creduse/{__version__}"),
        ]


def test_body_in_a_mock(
    run: Run, connect: Connect, server: SandboxServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What replaces aiohttp's request can read the body."""
    seen: list[tuple[int | None, str]] = []

    async def mock(_session: aiohttp.ClientSession, *_: object, data: Any, **__: object) -> None:
        seen.append((data.size, data.decode()))
        raise aiohttp.ClientConnectionError

    monkeypatch.setattr(aiohttp.ClientSession, "_request", mock)

    async def main() -> None:
        async with connect(server.base_url, retry=RetryPolicy(max_attempts=1)) as client:
            with pytest.raises(TransportError):
                await client.stop_cycle(USER)

    run(main)
    body = f'{{"end_user_id":"{USER}"}}'
    assert seen == [(len(body), body)]


def test_tasks_share_a_client(run: Run, connect: Connect, server: SandboxServer) -> None:
    """Tasks of one loop can share a client, from its first call on."""

    async def main() -> None:
        async with connect(server.base_url) as client:
            await asyncio.gather(*(client.add(USER, 1) for _ in range(100)))
            assert (await client.get_balance(USER)).active_balance == 100

    run(main)
    assert len(server.applied) == 100


def test_aiohttp_does_not_retry(run: Run, connect: Connect, server: SandboxServer) -> None:
    """A read is not retried by aiohttp itself, on a kept connection either."""
    once = RetryPolicy(max_attempts=1)

    async def main() -> None:
        async with connect(server.base_url, retry=once) as client:
            for fault in ("head-then-close", "request-then-close", "request-then-reset"):
                await client.add(USER, 1)
                server.inject(FAULTS[fault], 3)
                before = len(server.log)
                with pytest.raises(TransportError) as caught:
                    await client.get_balance(USER)
                assert len(caught.value.attempts) == len(server.log) - before == 1
                server.reset()

    run(main)


def test_tls(run: Run, secure_server: SandboxServer, trust: ssl.SSLContext) -> None:
    """Over TLS, calls share a connection, and a connection that must go closes at once."""

    async def main() -> None:
        async with (
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trust)) as session,
            AsyncCreduseClient(KEY, session, base_url=secure_server.base_url) as client,
        ):
            await client.add(USER, 1)
            await client.get_balance(USER)
            secure_server.inject(FAULTS["wrong-user"])
            with pytest.raises(CreduseError):
                await client.add(USER, 1)
            await client.add(USER, 1)

    run(main)
    assert [entry.connection for entry in secure_server.log] == [1, 1, 1, 2]


def test_path_of_the_base_url(run: Run, raw: Start) -> None:
    """A path in the base URL comes before that of the call, unchanged."""

    def behave(connection: socket.socket, server: RawServer) -> None:
        server.request(connection)

    async def main() -> None:
        base_url = server.base_url + "/a%2Fb/v1"
        async with AsyncCreduseClient(KEY, base_url=base_url, retry=NO_WAIT) as client:
            with pytest.raises(CreduseError):
                await client.add(USER, 1)
            assert server.received[0].startswith(b"POST /a%2Fb/v1/add HTTP/1.1\r\n")

    server = raw(behave)
    run(main)
