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

    def set(self, timeout: asyncio.Timeout, deadline: float) -> None:
        """Set or change a deadline."""
        self._deadlines[timeout] = deadline
        if deadline < self._due:
            self._schedule(deadline)

    def discard(self, timeout: asyncio.Timeout) -> None:
        """Forget a deadline. The timer stays for the next one."""
        self._deadlines.pop(timeout, None)

    def close(self) -> None:
        """Cancel the timer, unless an exchange needs it."""
        if not self._deadlines:
            self._schedule(math.inf)

    def _schedule(self, due: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._due = due
        if due < math.inf:
            delay = due - time.monotonic()
            self._timer = asyncio.get_running_loop().call_later(delay, self._check)

    def _check(self) -> None:
        now = time.monotonic()
        for timeout in [it for it, deadline in self._deadlines.items() if deadline <= now]:
            self.discard(timeout)
            # It ends one turn of the loop later. A task that has received its data by then runs
            # first, and the data still counts.
            with suppress(RuntimeError):  # the exchange has been interrupted
                timeout.reschedule(0.0)
        self._schedule(min(self._deadlines.values(), default=math.inf))
