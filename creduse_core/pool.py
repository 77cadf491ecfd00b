"""Who may have a connection, and which: the bookkeeping of a connection pool.

Nothing here does I/O, waits or reads a clock. So nothing here can be cancelled, and every sequence
of what can happen to a pool runs in a test.
"""

from collections import deque
from typing import Generic, TypeVar

C = TypeVar("C")
K = TypeVar("K")
W = TypeVar("W")


class Idle(Generic[C]):
    """The idle connections. Threads, and signal handlers within one, may share it without a lock.

    Each change is one operation of a `collections.deque`, which nothing can interrupt.
    """

    def __init__(self, idle_timeout: float) -> None:
        """Keep connections for ``idle_timeout`` seconds."""
        self._idle_timeout = idle_timeout
        self._idle: deque[tuple[C, float]] = deque()

    def keep(self, connection: C, now: float) -> None:
        """Keep a connection that is idle from now on."""
        self._idle.append((connection, now + self._idle_timeout))

    def take(self) -> C | None:
        """Return the connection that was used last: it is the least likely to have been closed."""
        try:
            return self._idle.pop()[0]
        except IndexError:
            return None

    def take_into(self, users: dict[K, C], user: K) -> C | None:
        """Return the same, noted in ``users`` before it leaves here.

        So an exception that a signal handler raises in between loses no connection.
        """
        while self._idle:
            last = self._idle[-1]
            users[user] = last[0]
            try:
                self._idle.remove(last)
            except ValueError:  # another thread has taken it meanwhile
                continue
            return last[0]
        return None

    def __contains__(self, connection: C) -> bool:
        """Return whether a connection is idle."""
        return any(connection is other for other, _ in tuple(self._idle))

    def expired(self, now: float) -> C | None:
        """Return a connection that has been idle for too long, to be closed; call until none is."""
        try:
            oldest = self._idle[0]
            if oldest[1] > now:
                return None
            self._idle.remove(oldest)
        except (IndexError, ValueError):  # somebody else has taken it meanwhile
            return None
        return oldest[0]


class Pool(Idle[C], Generic[C, W]):
    """So many places, a queue for them, and the connections that are idle; for one thread.

    A place is the right to have one connection: an idle one if there is one, else a new one. As
    whoever has a place takes an idle connection first, places and idle connections together are
    never more than there are places. Waiters (``W``) are whatever can be woken by the caller.
    Keep a connection before its place is given back.
    """

    def __init__(self, places: int, idle_timeout: float) -> None:
        """Have ``places`` connections at most."""
        super().__init__(idle_timeout)
        self._free = places
        self._queue: dict[W, None] = {}

    def enter(self) -> bool:
        """Take a place if one is free, and return whether one was."""
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
