"""One handle for both journals and all clients, so that the same tests run over each."""

from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from anyio.from_thread import start_blocking_portal

import creduse_aiohttp
import creduse_trio
from creduse import AsyncCreduseClient, CreduseClient
from creduse_core import Call, CreduseProtocol
from creduse_journal import AsyncJournal, Entry, Journal
from creduse_sandbox import SandboxServer
from tests.common import KEY, USER

ASYNC: dict[str, tuple[str, Any]] = {
    "httpx-asyncio": ("asyncio", AsyncCreduseClient),
    "httpx-trio": ("trio", AsyncCreduseClient),
    "aiohttp": ("asyncio", creduse_aiohttp.AsyncCreduseClient),
    "trio": ("trio", creduse_trio.AsyncCreduseClient),
}


@dataclass(frozen=True)
class Handle:
    """A journal and its client. Calls block until they end, on an event loop too."""

    client: Any
    invoke: Callable[[str, tuple[Any, ...], dict[str, Any]], Any]
    """Calls a method of the journal."""

    @property
    def protocol(self) -> CreduseProtocol:
        """What makes calls."""
        protocol: CreduseProtocol = self.client.protocol
        return protocol

    def do(self, method: str, *given: Any, **options: Any) -> Any:
        """Call a method of the journal."""
        return self.invoke(method, given, options)

    def run(self, entry_id: str, call: Call[Any], **options: Any) -> Any:
        """Run a call."""
        return self.do("run", self.client, entry_id, call, **options)

    def check(self, entry_id: str, **options: Any) -> Any:
        """Weigh an entry."""
        return self.do("check", self.client, entry_id, **options)

    def settle(self, entry_id: str, **options: Any) -> Entry:
        """Settle an entry."""
        entry: Entry = self.do("settle", entry_id, **options)
        return entry

    def state(self, entry_id: str) -> str | None:
        """Return the state of an entry."""
        entry = self.do("get", entry_id)
        return None if entry is None else entry.state

    def unclear(self) -> list[str]:
        """Return the ids of all unclear entries."""
        return [entry.id for entry in self.do("unclear")]


Open: TypeAlias = Callable[[], AbstractContextManager[Handle]]


@pytest.fixture
def server() -> Iterator[SandboxServer]:
    """A sandbox whose user has credits, and an emptied cycle."""
    with SandboxServer() as server:
        server.direct.add(USER, 5, 300)
        server.direct.subtract(USER, 5)
        server.direct.add(USER, 1000)
        yield server


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A journal's file."""
    return tmp_path / "credits.journal"


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest, path: Path) -> str:
    """Where the journal is: each test runs in both databases."""
    if request.param == "sqlite":
        return str(path)
    url: str = request.getfixturevalue("postgres_url")
    return url


@pytest.fixture(params=["sync", *ASYNC])
def open_journal(request: pytest.FixtureRequest, server: SandboxServer, place: str) -> Open:
    """Open the journal, with a client of each kind. It can be opened again."""

    @contextmanager
    def open_sync() -> Generator[Handle]:
        with CreduseClient(KEY, base_url=server.base_url) as client, Journal(place) as journal:

            def invoke(method: str, given: tuple[Any, ...], options: dict[str, Any]) -> Any:
                return getattr(journal, method)(*given, **options)

            yield Handle(client, invoke)

    @contextmanager
    def open_async() -> Generator[Handle]:
        backend, client_class = ASYNC[request.param]
        with start_blocking_portal(backend) as portal:

            async def make() -> tuple[Any, AsyncJournal]:
                return client_class(KEY, base_url=server.base_url), AsyncJournal(place)

            client, journal = portal.call(make)

            def invoke(method: str, given: tuple[Any, ...], options: dict[str, Any]) -> Any:
                async def main() -> Any:
                    return await getattr(journal, method)(*given, **options)

                return portal.call(main)

            try:
                yield Handle(client, invoke)
            finally:
                portal.call(journal.aclose)
                portal.call(client.aclose)

    return open_sync if request.param == "sync" else open_async
