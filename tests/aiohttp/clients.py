"""Types and helpers of the tests of the aiohttp client."""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol, TypeAlias

from creduse_aiohttp import AsyncCreduseClient

Main: TypeAlias = Callable[[], Coroutine[Any, Any, None]]
Run: TypeAlias = Callable[[Main], None]


class Connect(Protocol):
    """Makes a client, and closes it at the end."""

    def __call__(
        self, base_url: str, **settings: Any
    ) -> AbstractAsyncContextManager[AsyncCreduseClient]: ...


async def until(condition: Callable[[], object]) -> None:
    """Wait until a condition is true."""
    while not condition():  # noqa: ASYNC110 - any condition
        await asyncio.sleep(0.01)
