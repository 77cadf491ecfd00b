"""The pytest plugin: the fixture ``creduse_sandbox``.

pytest loads this in every run wherever creduse is installed. So it is a package of its own, which
loads nothing of ours, and no event loop, before a test asks for the fixture.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from creduse_sandbox import SandboxServer

__all__ = ["creduse_sandbox"]


@pytest.fixture(scope="session")
def _creduse_sandbox_server() -> Iterator["SandboxServer"]:  # pyright: ignore[reportUnusedFunction]  # pytest finds it by its name
    from creduse_sandbox import SandboxServer  # noqa: PLC0415 - see above

    with SandboxServer() as server:
        yield server


@pytest.fixture
def creduse_sandbox(
    _creduse_sandbox_server: "SandboxServer", monkeypatch: pytest.MonkeyPatch
) -> Iterator["SandboxServer"]:
    """A Creduse of your own, empty in each test: a running creduse_sandbox.SandboxServer.

    CREDUSE_BASE_URL and CREDUSE_API_KEY are set, so that clients reach it and not the service.
    """
    server = _creduse_sandbox_server
    monkeypatch.setenv("CREDUSE_BASE_URL", server.base_url)
    monkeypatch.setenv("CREDUSE_API_KEY", "any")
    yield server
    server.settle()  # what the test has left under way is still its own
    server.reset()
