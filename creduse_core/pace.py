"""`Pace`: one brake for all calls of a client, or of several, at a service that limits requests.

It decides when the next request may leave, by what the service refused before. It is pure: the time
is an argument, and the caller waits. What a refusal means for the call itself does not belong here.
"""

from heapq import heappop, heappush
from typing import Final

PAUSE: Final = 1.0
"""Seconds for which nothing is sent after a refusal without ``Retry-After``."""
MAX_PAUSE: Final = 60.0
"""Seconds. After a longer ``Retry-After``, the next request leaves after this time."""

# The rate after a pause, as a part of the rate at which the service refused.
_CUT: Final = 0.7
"""At once."""
_REGAINED: Final = 0.9
"""A second later."""
_FELT_AFTER: Final = 16.0
"""Seconds after which the rate is the refused one. Most time is spent a little below it."""
_DOUBLED_EVERY: Final = 5.0
"""Seconds, from then on: the refused rate may be no limit any more."""
_FORGOTTEN: Final = 64.0
"""From this part on, there is no limit."""

_LEAST_RATE: Final = 0.1
"""Requests a second. A lower rate would find out too late that it can grow."""
_SHORTEST_WAIT: Final = 1e-3
"""Seconds. Shorter waits are not worth it."""


class Pace:
    """Keeps calls below the limit of a service that refuses too many requests.

    Pass it to a client as ``pace=Pace()``, or to several clients that share a limit. Threads can share
    it. It has no limit until the service refuses a request: with 429, or with 503 and ``Retry-After``.
    Then nothing is sent for the time that ``Retry-After`` asks for, and afterwards requests leave one
    by one, in the order in which they came: at 0.7 of the rate at which the service refused, a second
    later at 0.9, and then slowly faster, until it refuses again.

    A driver of its own calls ``hold`` before each request, with the call or any other object that
    stands for it, and then either ``ended`` or ``leave``. ``now`` is in seconds, on one clock for all.
    """

    __slots__ = (
        "_accepted",
        "_cut_at",
        "_freed",
        "_is_estimate",
        "_lock",
        "_next",
        "_places",
        "_refused_rate",
        "_resumes_at",
        "_sent_at",
        "_turn",
        "_updated_at",
    )

    def __init__(self) -> None:
        # Imported here to keep the import of the core fast. A lock does no I/O.
        from threading import RLock  # noqa: PLC0415, TID251

        # Reentrant, since a signal handler can make a call of its own.
        self._lock = RLock()
        self._refused_rate: float | None = None
        self._resumes_at = self._cut_at = self._updated_at = float("-inf")
        # Requests have places in a line: ascending numbers. The place whose turn it is grows with the
        # time and the rate, and stands still in a pause.
        self._turn = self._next = 0.0
        self._places: dict[object, float] = {}
        self._freed: list[float] = []
        self._sent_at: dict[object, float] = {}
        self._accepted = _Counter()
        self._is_estimate = False

    def __repr__(self) -> str:
        rate = self._refused_rate
        limit = "no limit" if rate is None else f"refused at {rate:.1f} requests a second"
        return f"<Pace {limit}, {len(self._places)} waiting>"

    def hold(self, caller: object, now: float) -> float:
        """Return the seconds to wait before the caller's next request. With 0, send it now.

        After the wait, call it again: the service may have refused others meanwhile. The caller keeps
        its place.
        """
        with self._lock:
            self._advance(now)
            if self._refused_rate is not None:
                place = self._places.get(caller)
                if place is None:
                    place = self._places[caller] = self._new_place()
                wait = self._wait_for(place, now)
                if wait > _SHORTEST_WAIT:
                    return wait
            self._places.pop(caller, None)
            self._sent_at[caller] = now
            return 0.0

    def ended(
        self, caller: object, status: int | None, retry_after: float | None, now: float
    ) -> None:
        """Report the status code of the response and its ``Retry-After``; or ``None`` without one."""
        with self._lock:
            sent_at = self._sent_at.pop(caller, now)
            if status == 429 or (status == 503 and retry_after is not None):
                self._refuse(sent_at, retry_after, now)
            elif status is not None:
                self._accepted.add(now)
                if self._refused_rate is not None and self._is_estimate and sent_at < self._cut_at:
                    # A refusal can overtake the responses to requests that left before.
                    self._refused_rate = max(self._refused_rate, self._accepted.last_second(now))

    def leave(self, caller: object) -> None:
        """Give up the caller's place. It sends nothing, or nobody knows what came of its request."""
        with self._lock:
            self._sent_at.pop(caller, None)
            place = self._places.pop(caller, None)
            if place is None:
                return
            if place == self._next - 1:
                self._next = place
            else:
                heappush(self._freed, place)

    def _new_place(self) -> float:
        """Return the first place that is free."""
        while self._freed:
            place = heappop(self._freed)
            if place >= self._turn:
                return place
        # Time without requests saves up nothing.
        place = max(self._next, self._turn)
        self._next = place + 1
        return place

    def _wait_for(self, place: float, now: float) -> float:
        """Return the seconds until it is a place's turn, or somewhat less."""
        resumes_at = max(now, self._resumes_at)
        ahead = max(0.0, place - self._turn)
        # The rate grows, so the place comes sooner than by the rate of now. With that of then, the
        # caller wakes a little early, and is told the rest.
        then = resumes_at + ahead / self._rate(resumes_at)
        return resumes_at - now + ahead / self._rate(then)

    def _advance(self, now: float) -> None:
        """Let the time since the last change pass."""
        if self._refused_rate is None:
            return
        if self._rate(now) > _FORGOTTEN * self._refused_rate:
            self._refused_rate = None
            return
        since = max(self._updated_at, self._resumes_at)
        if now > since:
            self._turn += (now - since) * self._rate(now)
            self._updated_at = now

    def _rate(self, now: float) -> float:
        """Return how many requests a second may leave."""
        assert self._refused_rate is not None  # noqa: S101 - callers have checked it
        since = max(0.0, now - self._resumes_at)
        if since < 1.0:
            part = _CUT + (_REGAINED - _CUT) * since
        elif since < _FELT_AFTER:
            part = _REGAINED + (1.0 - _REGAINED) * (since - 1.0) / (_FELT_AFTER - 1.0)
        else:
            # The exponent is bounded, since 2.0**1024 raises OverflowError.
            part = 2.0 ** min((since - _FELT_AFTER) / _DOUBLED_EVERY, 64.0)
        return part * self._refused_rate

    def _refuse(self, sent_at: float, retry_after: float | None, now: float) -> None:
        self._advance(now)
        resumes_at = now + min(retry_after or PAUSE, MAX_PAUSE)
        if sent_at < self._cut_at:
            # It left before the last refusal, and says nothing new about the rate.
            self._resumes_at = max(self._resumes_at, resumes_at)
            return
        accepted = self._accepted.last_second(now)
        self._is_estimate = self._refused_rate is None
        if self._refused_rate is None:
            rate = accepted
        else:
            rate = self._rate(now)
            if now - self._resumes_at >= 1.0:
                rate = min(rate, accepted)
        self._refused_rate = max(rate, _LEAST_RATE)
        self._updated_at = self._cut_at = now
        self._resumes_at = resumes_at


class _Counter:
    """Counts what happened in about the last second."""

    __slots__ = ("_before", "_count", "_second")

    def __init__(self) -> None:
        self._second = float("-inf")
        self._before = self._count = 0

    def add(self, now: float) -> None:
        self._roll(now)
        self._count += 1

    def last_second(self, now: float) -> float:
        """Return the count of this second, and the part of the one before that is no longer ago."""
        self._roll(now)
        return self._count + self._before * (1.0 - min(now - self._second, 1.0))

    def _roll(self, now: float) -> None:
        passed = now - self._second
        if passed >= 1.0:
            self._before = self._count if passed < 2.0 else 0
            self._count = 0
            self._second = now if passed >= 2.0 else self._second + 1.0
