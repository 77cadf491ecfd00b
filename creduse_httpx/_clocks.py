"""Clocks and event loops: how each kind of transport waits, and which event loop it runs on.

Sending does not belong here.
"""

import sys
import time
from typing import Any

import anyio

from creduse_core.error_texts import OTHER_EVENT_LOOP


class Clock:
    """The clock of a synchronous transport."""

    def sleep(self, seconds: float) -> None:
        """Wait for this time."""
        time.sleep(seconds)

    def now(self) -> float:
        """Return the time on the system's monotonic clock, in seconds."""
        return time.monotonic()


class AsyncClock:
    """The clock and the event loop of an asynchronous transport, on asyncio and on trio."""

    _loop: object = None

    def loop_problem(self) -> str | None:
        """Return why the client cannot be used here, or `None`. The first call decides its loop."""
        loop = current_loop()
        if loop is None:
            return "no event loop runs: await the call in asyncio or trio"
        self._loop = self._loop or loop
        if self._loop is not loop:
            return OTHER_EVENT_LOOP
        return None

    async def sleep(self, seconds: float) -> None:
        """Wait for this time."""
        await anyio.sleep(seconds)

    def now(self) -> float:
        """Return the time in seconds, under trio on its clock, so that its test clocks work."""
        return sys.modules["trio"].current_time() if under_trio() else time.monotonic()


def under_trio() -> bool:
    """Return whether trio runs the current task, and not asyncio."""
    trio = sys.modules.get("trio")
    return trio is not None and bool(trio.lowlevel.in_trio_task())


def protect_from_interrupts(*functions: Any) -> None:
    """Make trio delay a KeyboardInterrupt in these functions until their next checkpoint.

    Without this, it can strike between any two instructions, and the pool loses a connection's
    place.
    """
    trio = sys.modules.get("trio")
    if trio is not None:
        for function in functions:
            trio.lowlevel.enable_ki_protection(function)


def current_loop() -> object:
    """Return an object that identifies the running event loop, or `None` if none runs."""
    if under_trio():
        return sys.modules["trio"].lowlevel.current_trio_token()
    import asyncio  # noqa: PLC0415 - the synchronous client does not need it

    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
