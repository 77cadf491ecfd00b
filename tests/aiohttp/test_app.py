"""A client in an aiohttp.web application."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

import creduse_aiohttp
from creduse import Outcome, TransportError
from creduse_aiohttp import CLIENT, AsyncCreduseClient
from creduse_sandbox import SandboxServer
from tests.aiohttp.clients import Run
from tests.common import KEY, USER

SECOND = web.AppKey("SECOND", AsyncCreduseClient)
SESSION = web.AppKey("SESSION", aiohttp.ClientSession)


async def get(app: web.Application, path: str) -> None:
    """Start an app, make one request, and shut it down."""
    async with (
        TestClient[Any, Any](TestServer(app)) as client,
        client.get(path) as response,
    ):
        assert response.status == 200


async def add(request: web.Request) -> web.Response:
    await request.app[CLIENT].add(USER, 1)
    return web.Response()


def test_client_lives_with_the_app(run: Run, server: SandboxServer) -> None:
    """Handlers find the client under its key, and the app closes it."""

    async def main() -> None:
        app = web.Application()
        creduse_aiohttp.setup(app, KEY, base_url=server.base_url)
        app.router.add_get("/", add)
        await get(app, "/")
        with pytest.raises(TransportError, match="the client is closed") as caught:
            await app[CLIENT].add(USER, 1)
        assert caught.value.outcome is Outcome.NOT_APPLIED

    run(main)
    assert len(server.log) == 1


def test_several_clients(run: Run, server: SandboxServer) -> None:
    """Two keys make two clients, each with its own settings."""

    async def both(request: web.Request) -> web.Response:
        await request.app[CLIENT].add(USER, 1)
        await request.app[SECOND].add(USER, 2)
        return web.Response()

    async def main() -> None:
        app = web.Application()
        creduse_aiohttp.setup(app, KEY, base_url=server.base_url)
        creduse_aiohttp.setup(app, KEY, base_url=server.base_url, key=SECOND, timeout=5)
        app.router.add_get("/", both)
        await get(app, "/")
        assert (app[CLIENT].protocol.timeout, app[SECOND].protocol.timeout) == (30, 5)

    run(main)
    assert {entry.connection for entry in server.log} == {1, 2}


def test_sub_applications(run: Run, server: SandboxServer) -> None:
    """A sub-application can have its own client, or use that of its parent."""

    async def outer(request: web.Request) -> web.Response:
        await request.config_dict[CLIENT].add(USER, 2)
        return web.Response()

    async def main() -> None:
        app, own, none = (web.Application() for _ in range(3))
        creduse_aiohttp.setup(app, KEY, base_url=server.base_url)
        creduse_aiohttp.setup(own, KEY, base_url=server.base_url)
        own.router.add_get("/", add)
        none.router.add_get("/", outer)
        app.add_subapp("/own", own)
        app.add_subapp("/none", none)
        async with TestClient[Any, Any](TestServer(app)) as client:
            for path in ("/own/", "/none/"):
                async with client.get(path) as response:
                    assert response.status == 200
        assert app[CLIENT] is not own[CLIENT]

    run(main)
    assert [b'"amount":2' in (entry.body or b"") for entry in server.applied] == [False, True]


@pytest.mark.parametrize("by_key", [False, True])
def test_session_of_the_app(run: Run, server: SandboxServer, by_key: bool) -> None:  # noqa: FBT001 - a test's parameter
    """The client can share the app's session, and does not close it."""

    async def own(app: web.Application) -> AsyncIterator[None]:
        async with aiohttp.ClientSession() as app[SESSION]:
            yield
            with pytest.raises(TransportError, match="the client is closed"):
                await app[CLIENT].add(USER, 1)
            async with app[SESSION].get(f"{server.base_url}/nowhere") as response:
                assert response.status == 404

    async def main() -> None:
        app = web.Application()
        app.router.add_get("/", add)
        if by_key:
            app.cleanup_ctx.append(own)
            creduse_aiohttp.setup(app, KEY, SESSION, base_url=server.base_url)
            await get(app, "/")
        else:
            async with aiohttp.ClientSession() as session:
                creduse_aiohttp.setup(app, KEY, session, base_url=server.base_url)
                await get(app, "/")
                assert not session.closed

    run(main)
    assert {entry.connection for entry in server.log} == {1}


def test_wrong_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """An app whose client cannot be made does not start, and says why."""
    monkeypatch.delenv("CREDUSE_API_KEY", raising=False)

    async def main() -> None:
        app = web.Application()
        creduse_aiohttp.setup(app)
        with pytest.raises(ValueError, match="no API key"):
            async with TestServer(app):
                pass

    asyncio.run(main())


def test_two_clients_under_one_key() -> None:
    """A second client under the same key is an error."""

    async def main() -> None:
        app = web.Application()
        creduse_aiohttp.setup(app, KEY)
        creduse_aiohttp.setup(app, "sk-test-another")
        with pytest.raises(RuntimeError, match="a key for each client"):
            async with TestServer(app):
                pass

    asyncio.run(main())


def test_missing_session() -> None:
    """A session key that the app does not have is an error that names it."""

    async def main() -> None:
        app = web.Application()
        creduse_aiohttp.setup(app, KEY, SESSION)
        with pytest.raises(RuntimeError, match=r"no session under .*SESSION.* before setup"):
            async with TestServer(app):
                pass

    asyncio.run(main())
