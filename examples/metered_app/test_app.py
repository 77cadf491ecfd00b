"""Test the example app with a sandbox in place of the service."""

import asyncio
import runpy
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from aiohttp.test_utils import TestClient, TestServer

from creduse_sandbox import FAULTS, SandboxServer

make_app = runpy.run_path(str(Path(__file__).with_name("app.py")))["make_app"]
USER = str(uuid4())

Client = TestClient[Any, Any]


def with_app(test: Callable[[Client], Awaitable[None]]) -> None:
    """Run a test against the app."""

    async def main() -> None:
        async with TestClient(TestServer(make_app())) as client:
            await test(client)

    asyncio.run(main())


async def ask(client: Client, user: str = USER) -> tuple[int, Any]:
    async with client.post("/summaries", data="A text.", headers={"End-User": user}) as response:
        return response.status, await response.text()


def test_credits_run_out(creduse_sandbox: SandboxServer) -> None:
    """Each summary costs credits, and the app returns 402 when none are left."""

    async def test(client: Client) -> None:
        assert [(await ask(client))[0] for _ in range(3)] == [200, 200, 402]

    creduse_sandbox.direct.add(USER, 12)
    with_app(test)
    assert creduse_sandbox.direct.get_balance(USER).active_balance == 2


def test_somebody_unknown(creduse_sandbox: SandboxServer) -> None:
    """A user without credits gets 402, and an id that is not a UUID gets 400."""

    async def test(client: Client) -> None:
        assert (await ask(client))[0] == 402
        assert (await ask(client, "nobody"))[0] == 400

    with_app(test)
    assert creduse_sandbox.applied == ()


@pytest.mark.parametrize(("fault", "status"), [("apply-then-reset", 500), ("421", 503)])
def test_no_work_without_certainty(
    fault: str, status: int, creduse_sandbox: SandboxServer, caplog: pytest.LogCaptureFixture
) -> None:
    """If it is not certain that the credits were taken, the app does no work, and logs the call."""

    async def test(client: Client) -> None:
        assert (await ask(client))[0] == status

    creduse_sandbox.direct.add(USER, 12)
    creduse_sandbox.inject(FAULTS[fault])
    with_app(test)
    assert [entry.path for entry in creduse_sandbox.log] == ["/subtract"]
    assert f"creduse: subtract({USER}, 5): " in caplog.text
