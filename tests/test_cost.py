"""The lines of our code that a call on a warm connection runs. No time is measured.

It grows where work is added to the path of every call. `nox -s bench` measures what that takes.
"""

import asyncio
import sys
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import CodeType
from typing import Any, Self
from uuid import UUID

import pytest
import trio

import creduse_aiohttp
import creduse_core
import creduse_trio
from creduse import AsyncCreduseClient, CreduseClient
from creduse_sandbox import SandboxServer

monitoring: Any = getattr(sys, "monitoring", None)
USER = UUID("12345678-1234-5678-1234-567812345678")
HOME = Path(creduse_core.__file__).parents[1]
OURS = {
    str(HOME / name)
    for name in ("creduse_aiohttp", "creduse_core", "creduse_httpx", "creduse_trio")
}

# Lines that a `subtract` runs. Lower a number when you have found a way; to raise one is to say
# that every call is worth it.
LINES = {
    "httpx": 362,
    "httpx-asyncio": 402,
    "httpx-trio": 401,
    "aiohttp": 290,
    "trio": 299,
}
MARGIN = 0.05
"""A few lines more or less are chance: a response that comes in two pieces, a busy loop."""


class Lines:
    """Counts the lines of our code that this thread runs."""

    def __enter__(self) -> Self:
        self.count = 0
        self._thread = threading.get_ident()
        monitoring.use_tool_id(monitoring.PROFILER_ID, "lines")
        monitoring.register_callback(monitoring.PROFILER_ID, monitoring.events.LINE, self._line)
        monitoring.set_events(monitoring.PROFILER_ID, monitoring.events.LINE)
        return self

    def _line(self, code: CodeType, _: int) -> object:
        if str(Path(code.co_filename).parent) not in OURS:
            return monitoring.DISABLE
        self.count += threading.get_ident() == self._thread
        return None

    def __exit__(self, *_: object) -> None:
        monitoring.set_events(monitoring.PROFILER_ID, 0)
        monitoring.free_tool_id(monitoring.PROFILER_ID)


def sync(base_url: str) -> list[int]:
    counts: list[int] = []
    with CreduseClient("any", base_url=base_url) as client:
        client.subtract(USER, 1)
        for _ in range(5):
            with Lines() as lines:
                client.subtract(USER, 1)
            counts.append(lines.count)
    return counts


def under(
    run: Callable[[Callable[[], Coroutine[Any, Any, None]]], object], kind: Callable[..., Any]
) -> Callable[[str], list[int]]:
    def count(base_url: str) -> list[int]:
        counts: list[int] = []

        async def main() -> None:
            async with kind("any", base_url=base_url) as client:
                await client.subtract(USER, 1)
                for _ in range(5):
                    with Lines() as lines:
                        await client.subtract(USER, 1)
                    counts.append(lines.count)

        run(main)
        return counts

    return count


def on_asyncio(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(main())


COUNTS: dict[str, Callable[[str], list[int]]] = {
    "httpx": sync,
    "httpx-asyncio": under(on_asyncio, AsyncCreduseClient),
    "httpx-trio": under(trio.run, AsyncCreduseClient),
    "aiohttp": under(on_asyncio, creduse_aiohttp.AsyncCreduseClient),
    "trio": under(trio.run, creduse_trio.AsyncCreduseClient),
}


@pytest.mark.skipif(monitoring is None, reason="sys.monitoring came with Python 3.12")
@pytest.mark.parametrize("name", COUNTS)
def test_lines_of_a_warm_call(name: str) -> None:
    """A call runs no more lines than before."""
    with SandboxServer() as server:
        server.direct.add(USER, 100)
        fewest = min(COUNTS[name](server.base_url))
    assert fewest <= LINES[name] * (1 + MARGIN), f"{name}: {fewest} lines, and not {LINES[name]}"
