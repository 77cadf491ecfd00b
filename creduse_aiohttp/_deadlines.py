"""The deadlines of a client's exchanges, with one timer for all. It knows nothing of HTTP."""

import asyncio
import math
import time
from contextlib import suppress


class Deadlines:
    """Ends each `asyncio.Timeout` after its deadline.

    A timer for each would cost more, since the event loop keeps cancelled timers in its heap. If a
    signal handler raises while the timer runs, deadlines are checked again later.
    """

    def __init__(self) -> None:
        self._deadlines: dict[asyncio.Timeout, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._due = math.inf  # when the timer runs

    def set(self, timeout: asyncio.Timeout, deadline: float) -> None:
        """Set or change a deadline."""
        self._deadlines[timeout] = deadline
        now = time.monotonic()
        if deadline < self._due or self._due < now:  # the latter after a signal handler's exception
            self._schedule(min(deadline, self._due), now)

    def discard(self, timeout: asyncio.Timeout) -> None:
        """Forget a deadline. The timer stays for the next one."""
        self._deadlines.pop(timeout, None)

    def close(self) -> None:
        """Cancel the timer, unless an exchange needs it."""
        if self._timer is not None and not self._deadlines:
            self._due = math.inf
            self._timer.cancel()

    def _schedule(self, due: float, now: float) -> None:
        # The old timer is cancelled last, so there is always one.
        timer, self._timer = (
            self._timer,
            asyncio.get_running_loop().call_later(due - now, self._check),
        )
        self._due = due
        if timer is not None:
            timer.cancel()

    def _check(self) -> None:
        now = time.monotonic()
        try:
            for timeout in [it for it, deadline in self._deadlines.items() if deadline <= now]:
                # It ends one turn of the loop later. A task that has received its data by then runs
                # first, and the data still counts.
                with suppress(RuntimeError):  # the exchange has been interrupted
                    timeout.reschedule(0.0)
                self.discard(timeout)
        finally:
            self._due = math.inf
            if self._deadlines:
                self._schedule(min(self._deadlines.values()), now)
