"""The bookkeeping of a connection pool: which caller gets a connection, and which one.

I/O, waiting and clocks do not belong here. So nothing here can be cancelled, and a test can run
every sequence of operations. There is no background task: each call first takes the connections that
have been idle for too long, and closes them.
"""

from collections import deque
from typing import Final, Generic, TypeVar

C = TypeVar("C")
K = TypeVar("K")
W = TypeVar("W")


IDLE_TIMEOUT: Final = 3.0
"""Seconds for which a client keeps an idle connection. Most servers keep one for at least 5. The
client closes it earlier, because a request on a connection that is closing ends as UNKNOWN."""


class Idle(Generic[C]):
    """The idle connections. Threads and signal handlers can share it without a lock.

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
        """Return the connection that was used last. It is the least likely to have been closed."""
        try:
            return self._idle.pop()[0]
        except IndexError:
            return None

    def take_into(self, users: dict[K, C], user: K) -> C | None:
        """Return the same connection, and put it into ``users`` before it is removed from here.

        So no connection is lost if a signal handler raises in between.
        """
        before = users.get(user)
        while self._idle:
            try:
                last = self._idle[-1]
                users[user] = last[0]
                self._idle.remove(last)
            except (IndexError, ValueError):  # another thread has taken it
                if before is None:
                    users.pop(user, None)
                else:
                    users[user] = before
            else:
                return last[0]
        return None

    def __contains__(self, connection: C) -> bool:
        """Return whether a connection is idle."""
        return any(connection is other for other, _ in tuple(self._idle))

    def take_expired(self, now: float) -> C | None:
        """Take a connection that has been idle for too long, to be closed. Repeat until ``None``."""
        try:
            oldest = self._idle[0]
            if oldest[1] > now:
                return None
            self._idle.remove(oldest)
        except (IndexError, ValueError):  # another thread has taken it
            return None
        return oldest[0]


class Pool(Idle[C], Generic[C, W]):
    """A number of places, a queue for them, and the idle connections. For one thread.

    A place is the right to have one connection. The caller with a place takes an idle connection
    first, and opens a new one only if there is none. So there are never more connections than places.
    Waiters (``W``) are objects that the caller can wake. Keep a connection before you leave its
    place.
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

    def enqueue(self, waiter: W) -> None:
        """Queue for a place, if `enter` found none."""
        self._queue[waiter] = None

    def leave(self) -> W | None:
        """Leave a place to the first waiter in the queue. Return that waiter, to be woken."""
        for waiter in self._queue:
            del self._queue[waiter]
            return waiter
        self._free += 1
        return None

    def give_up(self, waiter: W) -> W | None:
        """Leave the queue; or the place, if the waiter has got one already. Return as `leave` does."""
        if waiter not in self._queue:
            return self.leave()
        del self._queue[waiter]
        return None
