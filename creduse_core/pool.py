"""Who may have a connection, and which: bookkeeping alone.

Nothing here does I/O, waits, reads a clock or knows trio. So nothing here can be cancelled, and
every sequence of what can happen to a pool runs in a test.
"""

from collections import deque
from typing import Generic, TypeVar

C = TypeVar("C")
W = TypeVar("W")


class Pool(Generic[C, W]):
    """So many places, a queue for them, and the connections that are idle.

    A place is the right to have one connection: an idle one if there is one, else a new one. As
    whoever has a place takes an idle connection first, places and idle connections together are
    never more than there are places. Waiters (``W``) are whatever can be woken by the caller.
    """

    def __init__(self, places: int, idle_timeout: float) -> None:
        self._free = places
        self._idle_timeout = idle_timeout
        self._queue: dict[W, None] = {}
        self._idle: deque[tuple[C, float]] = deque()

    def enter(self) -> bool:
        """Take a place if one is free, and say so."""
        if not self._free:
            return False
        self._free -= 1
        return True

    def wait(self, waiter: W) -> None:
        """Queue for a place, where none is free."""
        self._queue[waiter] = None

    def leave(self) -> W | None:
        """Give a place back. It belongs to the first in the queue then, who is to be woken."""
        for waiter in self._queue:
            del self._queue[waiter]
            return waiter
        self._free += 1
        return None

    def give_up(self, waiter: W) -> W | None:
        """Leave the queue, or the place if it has come meanwhile; then as `leave`."""
        if waiter not in self._queue:
            return self.leave()
        del self._queue[waiter]
        return None

    def keep(self, connection: C, now: float) -> None:
        """Keep a connection that is idle from now on; for before its place is given back."""
        self._idle.append((connection, now + self._idle_timeout))

    def take(self) -> C | None:
        """Give the connection that was used last: it is the least likely to have been closed."""
        return self._idle.pop()[0] if self._idle else None

    def expired(self, now: float) -> C | None:
        """Give a connection that has been idle for too long, to be closed; call until none is."""
        return self._idle.popleft()[0] if self._idle and self._idle[0][1] <= now else None
