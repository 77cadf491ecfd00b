"""``creduse demo``: all five methods against a sandbox, synchronously and asynchronously."""

import asyncio
from collections.abc import Callable
from typing import Any, Final
from uuid import UUID

from creduse_core import (
    ActiveBalance,
    APIError,
    Attempt,
    CreditsAdded,
    CreditsSubtracted,
    Cycle,
)
from creduse_httpx import AsyncCreduseClient, CreduseClient
from creduse_sandbox import CannedResponse, SandboxServer

_USER: Final = UUID("12345678-1234-5678-1234-567812345678")

# What both clients do, by how it is shown.
_STEPS: Final[dict[str, Callable[[Any], Any]]] = {
    "add(user, 100)": lambda client: client.add(_USER, 100),
    "subtract(user, 50)": lambda client: client.subtract(_USER, 50),
    "start_cycle(user, 1000)": lambda client: client.start_cycle(_USER, 1000),
    "stop_cycle(user)": lambda client: client.stop_cycle(_USER),
    "get_balance(user)": lambda client: client.get_balance(_USER),
    "subtract(user, 9000)": lambda client: client.subtract(_USER, 9000),
    "subtract(user, 25)": lambda client: client.subtract(_USER, 25),
}
_LAST: Final = list(_STEPS)[-1]
_BUSY: Final = CannedResponse(429, (("Retry-After", "1"),))

# How a result is shown, by its type.
_LINES: Final[dict[type, Callable[[Any], list[str]]]] = {
    CreditsAdded: lambda it: [f"{it.amount} credits added, for {it.validity_days} days"],
    CreditsSubtracted: lambda it: [f"{it.amount} credits taken"],
    Cycle: lambda it: [f"{it.amount} credits until {it.current_cycle_end:%d %b %Y}, {it.status}"],
    ActiveBalance: lambda it: [
        f"{it.active_balance} credits:",
        *(
            f"{part.amount:>6} until {part.cycle_end:%d %b %Y}, {part.cycle_type}"
            for part in it.active_balance_by_cycle
        ),
    ],
}


class _Show:
    """Prints each step, in two columns, and lets the last one of a round meet a busy server."""

    def __init__(self, server: SandboxServer, say: Callable[[str], object]) -> None:
        self._server = server
        self._say = say
        self._notes: list[str] = []

    def begin(self, asked: str) -> None:
        if asked == _LAST:
            self._server.inject(_BUSY)

    def on_attempt(self, attempt: Attempt) -> None:
        if attempt.status == _BUSY.status:
            self._notes.append(f"429, {attempt.outcome}: waits as long as asked, tries again")

    def end(self, asked: str, came: object) -> None:
        if isinstance(came, APIError):
            lines = [f"{type(came).__name__}: {came.message}", f"outcome {came.outcome}"]
        else:
            lines = _LINES[type(came)](came)
        for line in (*self._notes, *lines):
            self._say(f"  {asked:<25}{line}")
            asked = ""
        self._notes.clear()


def demo(key: str, say: Callable[[str], object]) -> None:
    """Run it with an API key, and call ``say`` with each line for the reader."""
    with SandboxServer() as server:
        show = _Show(server, say)
        url = server.base_url
        say(f"A Creduse of its own listens on {url} for this demonstration.")
        say(f"user = UUID('{_USER}')")
        say("\nCreduseClient")
        _call_all(CreduseClient(key, base_url=url, on_attempt=show.on_attempt), show)
        say("\nAsyncCreduseClient, which finds what the other left")
        client = AsyncCreduseClient(key, base_url=url, on_attempt=show.on_attempt)
        asyncio.run(_call_all_async(client, show))
        say(f"\nThe server applied {len(server.applied)} writes: each that succeeded, once.")


def _call_all(client: CreduseClient, show: _Show) -> None:
    with client:
        for asked, call in _STEPS.items():
            show.begin(asked)
            try:
                came = call(client)
            except APIError as error:
                came = error
            show.end(asked, came)


async def _call_all_async(client: AsyncCreduseClient, show: _Show) -> None:
    async with client:
        for asked, call in _STEPS.items():
            show.begin(asked)
            try:
                came = await call(client)
            except APIError as error:
                came = error
            show.end(asked, came)
