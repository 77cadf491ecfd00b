"""``python -m benchmarks.lines``: counts the lines of our code that a call on a warm connection runs.

The count grows where work is added to the path of every call. No time is measured, so a busy machine
gives the same counts. The command fails if a count is above its limit.
"""

import asyncio
import sys
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import CodeType
from typing import Any, Final, Protocol, Self, TypeAlias
from uuid import UUID

import trio

import creduse_aiohttp
import creduse_core
import creduse_trio
from creduse import AsyncCreduseClient, CreduseClient
from creduse_core import AsyncCoreClient
from creduse_sandbox import SandboxServer

LIMITS: Final = {
    "httpx": 390,
    "httpx-asyncio": 425,
    "httpx-trio": 423,
    "aiohttp": 321,
    "trio": 313,
}
"""Lines of one ``subtract`` on CPython 3.13. Lower a limit when a call runs fewer lines."""
TOLERANCE: Final = 0.05
"""A response that arrives in two pieces runs some more lines, and so does another Python."""
CALLS: Final = 10
"""Calls to count. The result is that of the call with the fewest lines."""

USER: Final = UUID("12345678-1234-5678-1234-567812345678")
ROOT: Final = Path(creduse_core.__file__).parents[1]
OURS: Final = {
    str(ROOT / name)
    for name in ("creduse_aiohttp", "creduse_core", "creduse_httpx", "creduse_trio")
}

Main: TypeAlias = Callable[[], Coroutine[Any, Any, None]]
monitoring: Final[Any] = getattr(sys, "monitoring", None)  # since Python 3.12


class MakeClient(Protocol):
    """One of the asynchronous client classes."""

    def __call__(self, api_key: str, *, base_url: str) -> AsyncCoreClient: ...


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


def count_sync(base_url: str) -> int:
    """Return the lines of a call of the synchronous client."""
    counts: list[int] = []
    with CreduseClient("any", base_url=base_url) as client:
        client.subtract(USER, 1)
        for _ in range(CALLS):
            with Lines() as lines:
                client.subtract(USER, 1)
            counts.append(lines.count)
    return min(counts)


def count_async(run: Callable[[Main], object], make: MakeClient, base_url: str) -> int:
    """Return the lines of a call of an asynchronous client."""
    counts: list[int] = []

    async def main() -> None:
        async with make("any", base_url=base_url) as client:
            await client.subtract(USER, 1)
            for _ in range(CALLS):
                with Lines() as lines:
                    await client.subtract(USER, 1)
                counts.append(lines.count)

    run(main)
    return min(counts)


def run_asyncio(main: Main) -> None:
    """Run a coroutine function on asyncio."""
    asyncio.run(main())


def count_all(base_url: str) -> dict[str, int]:
    """Return the lines of a call, by client."""
    return {
        "httpx": count_sync(base_url),
        "httpx-asyncio": count_async(run_asyncio, AsyncCreduseClient, base_url),
        "httpx-trio": count_async(trio.run, AsyncCreduseClient, base_url),
        "aiohttp": count_async(run_asyncio, creduse_aiohttp.AsyncCreduseClient, base_url),
        "trio": count_async(trio.run, creduse_trio.AsyncCreduseClient, base_url),
    }


def main() -> None:
    """Print the counts, and fail if one is above its limit."""
    if monitoring is None:
        sys.exit("benchmarks.lines needs Python 3.12 or later")
    with SandboxServer() as server:
        server.direct.add(USER, 1000)
        counts = count_all(server.base_url)
    for name, count in counts.items():
        print(f"{name:13} {count} lines, limit {LIMITS[name]}")
    above = [name for name, count in counts.items() if count > LIMITS[name] * (1 + TOLERANCE)]
    if above:
        sys.exit(f"above the limit: {', '.join(above)}")


if __name__ == "__main__":
    main()
