"""Time and event loops: how each kind of transport waits, and which loop it is on.

Nothing here sends.
"""

import sys
import time
from typing import Any

import anyio


class Clock:
    """How a synchronous transport waits, and tells the time."""

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)

    def now(self) -> float:
        """Return the time on the system's monotonic clock, in seconds."""
        return time.monotonic()


class AsyncClock:
    """How an asynchronous transport waits, and tells the time, on asyncio and on trio."""

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await anyio.sleep(seconds)

    def now(self) -> float:
        """Return the time in seconds: trio's, so that its test clocks work, or the monotonic."""
        return sys.modules["trio"].current_time() if under_trio() else time.monotonic()


def under_trio() -> bool:
    """Return whether it is trio that runs, and not asyncio."""
    trio = sys.modules.get("trio")
    return trio is not None and bool(trio.lowlevel.in_trio_task())


def keep_interrupts_out(*functions: Any) -> None:
    """Have trio keep a KeyboardInterrupt for the next checkpoint while one of these runs.

    Else it strikes between any two instructions, and a connection's place is lost.
    """
    trio = sys.modules.get("trio")
    if trio is not None:
        for function in functions:
            trio.lowlevel.enable_ki_protection(function)


def current_loop() -> object:
    """Return what stands for the event loop that is running."""
    if under_trio():
        return sys.modules["trio"].lowlevel.current_trio_token()
    import asyncio  # noqa: PLC0415 - the synchronous client has no use for it

    return asyncio.get_running_loop()
