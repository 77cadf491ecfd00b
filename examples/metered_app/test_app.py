"""The example's tests: the app on one side, a sandbox in the service's place on the other."""

import asyncio
import runpy
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from aiohttp.test_utils import TestClient, TestServer

from creduse import CreduseClient
from creduse_sandbox import FAULTS, SandboxServer

make_app = runpy.run_path(str(Path(__file__).with_name("app.py")))["make_app"]
USER = str(uuid4())

Client = TestClient[Any, Any]


def with_app(
    server: SandboxServer,
    monkeypatch: pytest.MonkeyPatch,
    test: Callable[[Client], Awaitable[None]],
) -> None:
    """Run a test against the app, its credits on ``server``."""
    monkeypatch.setenv("CREDUSE_API_KEY", "any")
    monkeypatch.setenv("CREDUSE_BASE_URL", server.base_url)

    async def main() -> None:
        async with TestClient(TestServer(make_app())) as client:
            await test(client)

    asyncio.run(main())


async def ask(client: Client, user: str = USER) -> tuple[int, Any]:
    async with client.post("/summaries", data="A text.", headers={"End-User": user}) as answer:
        return answer.status, await answer.text()


def test_credits_run_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each summary is paid for, and 402 is the answer when no more can be."""

    async def test(client: Client) -> None:
        assert [(await ask(client))[0] for _ in range(3)] == [200, 200, 402]

    with SandboxServer() as server, CreduseClient("any", base_url=server.base_url) as credit:
        credit.add(USER, 12)
        with_app(server, monkeypatch, test)
        assert credit.get_balance(USER).active_balance == 2


def test_somebody_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has no credits at all has to pay, and who is nobody is refused."""

    async def test(client: Client) -> None:
        assert (await ask(client))[0] == 402
        assert (await ask(client, "nobody"))[0] == 400

    with SandboxServer() as server:
        with_app(server, monkeypatch, test)
        assert server.applied == ()


@pytest.mark.parametrize("fault", ["apply-then-reset", "421"])
def test_no_work_without_certainty(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """When it is not certain that the credits were taken, there is no work and no second try."""

    async def test(client: Client) -> None:
        assert (await ask(client))[0] == 503

    with SandboxServer() as server, CreduseClient("any", base_url=server.base_url) as credit:
        credit.add(USER, 12)
        server.order(FAULTS[fault])
        with_app(server, monkeypatch, test)
        assert [entry.path for entry in server.log] == ["/add", "/subtract"]
