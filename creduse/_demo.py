"""``creduse demo``: all methods on a sandbox, with a refusal, a retry and a lost response.

Arguments and exit statuses (`__main__`) do not belong here.
"""

import asyncio
from collections.abc import Callable
from textwrap import wrap
from typing import Any, Final
from uuid import UUID

from creduse_core import (
    ActiveBalance,
    APIError,
    Attempt,
    CreditsAdded,
    CreditsSubtracted,
    CreduseError,
    Cycle,
    Evidence,
    Outcome,
    Verdict,
)
from creduse_httpx import AsyncCreduseClient, CreduseClient
from creduse_sandbox import FAULTS, CannedResponse, Fault, SandboxServer

_USER: Final = UUID("12345678-1234-5678-1234-567812345678")

_BUSY: Final = CannedResponse(429, (("Retry-After", "1"),))
_LOST: Final = FAULTS["apply-then-reset"]

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
_OUTCOMES: Final = {
    Outcome.NOT_APPLIED: ["no credits moved"],
    Outcome.UNKNOWN: [
        "the response is lost",
        "credits may have moved, so the client does not retry",
    ],
}
_VERDICTS: Final = {
    Verdict.APPLIED: "do not call again",
    Verdict.NOT_YET: "wait, and check again",
    Verdict.OPEN: "ask a person, or check again later",
}


class _Printer:
    """Prints each step in two columns."""

    def __init__(self, server: SandboxServer, print_line: Callable[[str], object]) -> None:
        self._server = server
        self.print_line = print_line
        self._step = ""

    def begin(self, step: str, fault: Fault | None = None) -> None:
        self._step = step
        if fault is not None:
            self._server.inject(fault)

    def on_attempt(self, attempt: Attempt) -> None:
        if attempt.status == _BUSY.status:
            self._show([f"429, {attempt.outcome.name}: the client waits 1 s and retries"])

    def end(self, result: object) -> None:
        self._show(_LINES[type(result)](result))

    def fail(self, error: CreduseError) -> None:
        first, *more = _OUTCOMES[error.outcome]
        self._show([f"{type(error).__name__}, {error.outcome.name}: {first}", *more])

    def conclude(self, evidence: Evidence) -> None:
        advice = f"{evidence.verdict.name}: {_VERDICTS[evidence.verdict]}"
        assumed = [] if evidence.assumption is None else wrap(f"if {evidence.assumption}", 52)
        self._show([advice, *assumed])

    def _show(self, lines: list[str]) -> None:
        for line in lines:
            self.print_line(f"  {self._step:<25}{line}")
            self._step = ""


def demo(key: str, print_line: Callable[[str], object]) -> None:
    """Run the demonstration with an API key, and call ``print_line`` for each line of output."""
    with SandboxServer() as server:
        printer = _Printer(server, print_line)
        url = server.base_url
        print_line(f"A local Creduse server for this demonstration: {url}")
        print_line("\nCreduseClient")
        _spend(CreduseClient(key, base_url=url, on_attempt=printer.on_attempt), printer)
        print_line("\nAsyncCreduseClient has the same methods")
        client = AsyncCreduseClient(key, base_url=url)
        asyncio.run(_renew(client, printer))
        applied = len(server.applied)
        print_line(f"The server applied {applied} writes, each once.")


def _spend(client: CreduseClient, printer: _Printer) -> None:
    with client:
        printer.begin("add(user, 100)")
        printer.end(client.add(_USER, 100))
        printer.begin("subtract(user, 25)", _BUSY)
        printer.end(client.subtract(_USER, 25))
        printer.begin("subtract(user, 9000)")
        try:
            client.subtract(_USER, 9000)
        except APIError as error:
            printer.fail(error)
        printer.begin("add(user, 50)", _LOST)
        try:
            client.add(_USER, 50)
        except CreduseError as error:
            printer.fail(error)
            printer.begin("check(error)")
            printer.conclude(client.check(error))


async def _renew(client: AsyncCreduseClient, printer: _Printer) -> None:
    async with client:
        printer.begin("start_cycle(user, 1000)")
        printer.end(await client.start_cycle(_USER, 1000))
        printer.begin("stop_cycle(user)")
        printer.end(await client.stop_cycle(_USER))
        printer.begin("get_balance(user)")
        printer.end(await client.get_balance(_USER))
