"""The deadlines of a client's exchanges, with one timer for all. It knows nothing of HTTP."""

import asyncio
import math
import time
from contextlib import suppress


class Deadlines:
    """Ends each `asyncio.Timeout` after its deadline.

    A timer for each would cost more, since the event loop keeps cancelled timers in its heap.
    """

    def __init__(self) -> None:
        self._deadlines: dict[asyncio.Timeout, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._due = math.inf  # when the timer runs
        self._closed = False

    def set(self, timeout: asyncio.Timeout, deadline: float) -> None:
        """Set or change a deadline."""
        self._deadlines[timeout] = deadline
        now = time.monotonic()
        if self._due < now:
            # The timer is late, or a signal handler's exception has ended it.
            self._check()
        elif deadline < self._due:
            self._schedule(deadline, now)

    def discard(self, timeout: asyncio.Timeout) -> None:
        """Forget a deadline. The timer stays for the next one."""
        self._deadlines.pop(timeout, None)
        if self._closed:
            self.close()

    def close(self) -> None:
        """Cancel the timer as soon as no exchange needs it."""
        self._closed = True
        if self._timer is not None and not self._deadlines:
            self._timer.cancel()

    def _schedule(self, due: float, now: float) -> None:
        loop = asyncio.get_running_loop()
        old, self._timer = self._timer, loop.call_later(due - now, self._check)
        self._due = due
        if old is not None:
            old.cancel()

    def _check(self) -> None:
        now = time.monotonic()
        for timeout in [it for it, deadline in self._deadlines.items() if deadline <= now]:
            # It ends one turn of the loop later. A task that has received its data by then runs
            # first, and the data still counts.
            with suppress(RuntimeError):  # the exchange has been interrupted
                timeout.reschedule(0.0)
            self.discard(timeout)
        if self._deadlines:
            self._schedule(min(self._deadlines.values()), now)
        else:
            self._due = math.inf
