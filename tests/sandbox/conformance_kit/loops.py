"""Event loops that run the coroutine of a test."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias

import trio

from tests.sandbox.conformance_kit.broken_async import ASYNC_LEFT_OPEN

Main: TypeAlias = Callable[[], Coroutine[Any, Any, None]]
Run: TypeAlias = Callable[[Main], None]


def run_asyncio(main: Main) -> None:
    """Run a coroutine function on asyncio."""
    asyncio.run(closing(main))


def run_trio(main: Main) -> None:
    """Run a coroutine function on trio."""
    trio.run(closing, main)


async def closing(main: Main) -> None:
    """Close what a broken transport left open, on its own loop."""
    try:
        await main()
    finally:
        while ASYNC_LEFT_OPEN:
            await ASYNC_LEFT_OPEN.pop().close_idle()
