"""``creduse demo``: all five methods on a sandbox, with both clients.

Arguments and exit statuses (`__main__`) do not belong here.
"""

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

# The calls that both clients make, by their text in the output.
_STEPS: Final[dict[str, Callable[[Any], Any]]] = {
    "add(user, 100)": lambda client: client.add(_USER, 100),
    "subtract(user, 50)": lambda client: client.subtract(_USER, 50),
    "start_cycle(user, 1000)": lambda client: client.start_cycle(_USER, 1000),
    "stop_cycle(user)": lambda client: client.stop_cycle(_USER),
    "get_balance(user)": lambda client: client.get_balance(_USER),
    "subtract(user, 9000)": lambda client: client.subtract(_USER, 9000),
    "subtract(user, 25)": lambda client: client.subtract(_USER, 25),
}
_LAST_STEP: Final = list(_STEPS)[-1]
_BUSY: Final = CannedResponse(429, (("Retry-After", "1"),))

# The output for a result, by its type.
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


class _Printer:
    """Prints each step in two columns, and injects a 429 before the last step."""

    def __init__(self, server: SandboxServer, print_line: Callable[[str], object]) -> None:
        self._server = server
        self._print_line = print_line
        self._notes: list[str] = []

    def begin(self, step: str) -> None:
        if step == _LAST_STEP:
            self._server.inject(_BUSY)

    def on_attempt(self, attempt: Attempt) -> None:
        if attempt.status == _BUSY.status:
            self._notes.append(f"429, {attempt.outcome}: the client waits 1 s and retries")

    def end(self, step: str, result: object) -> None:
        if isinstance(result, APIError):
            lines = [f"{type(result).__name__}: {result.message}", f"outcome {result.outcome}"]
        else:
            lines = _LINES[type(result)](result)
        for line in (*self._notes, *lines):
            self._print_line(f"  {step:<25}{line}")
            step = ""
        self._notes.clear()


def demo(key: str, print_line: Callable[[str], object]) -> None:
    """Run the demonstration with an API key, and call ``print_line`` for each line of output."""
    with SandboxServer() as server:
        printer = _Printer(server, print_line)
        url = server.base_url
        print_line(f"A local Creduse server listens on {url} for this demonstration.")
        print_line(f"user = UUID('{_USER}')")
        print_line("\nCreduseClient")
        _call_all(CreduseClient(key, base_url=url, on_attempt=printer.on_attempt), printer)
        print_line("\nAsyncCreduseClient, with the same user")
        client = AsyncCreduseClient(key, base_url=url, on_attempt=printer.on_attempt)
        asyncio.run(_call_all_async(client, printer))
        applied = len(server.applied)
        print_line(f"\nThe server applied {applied} writes: each that succeeded, once.")


def _call_all(client: CreduseClient, printer: _Printer) -> None:
    with client:
        for step, call in _STEPS.items():
            printer.begin(step)
            try:
                result = call(client)
            except APIError as error:
                result = error
            printer.end(step, result)


async def _call_all_async(client: AsyncCreduseClient, printer: _Printer) -> None:
    async with client:
        for step, call in _STEPS.items():
            printer.begin(step)
            try:
                result = await call(client)
            except APIError as error:
                result = error
            printer.end(step, result)
