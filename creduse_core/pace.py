"""`Pace`: one brake for all calls of a client, or of several, at a service that limits requests.

It decides when the next request may leave, by what the service refused before. It is pure: the time
is an argument, and the caller waits. What a refusal means for the call itself does not belong here.
"""

from bisect import bisect
from contextlib import suppress
from heapq import heappop, heappush
from itertools import accumulate
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Hashable

PAUSE: Final = 1.0
"""Seconds for which nothing is sent after a refusal without ``Retry-After``."""
MAX_PAUSE: Final = 60.0
"""Seconds. After a longer ``Retry-After``, the next request leaves after this time."""

_FIRST_RATE: Final = 10.0
"""Requests a second. A service that refuses sooner has seldom shown its limit: the client was idle, or
others have used it up."""
_LEAST_RATE: Final = 0.1
"""Requests a second. A lower rate would find out too late that it can grow."""
_SHORTEST_WAIT: Final = 1e-3
"""Seconds. Shorter waits are not worth it."""


class _Stages:
    """What follows a pause: for so many seconds, this part of the rate at which the service refused.

    After the last stage, there is no limit.
    """

    def __init__(self, *stages: tuple[float, float]) -> None:
        # The rate doubles every 5 seconds: what the service refused may be no limit any more.
        growth = ((1.0, 1.15**second) for second in range(1, 31))
        whole = (*stages, *growth)
        self._parts = [part for _, part in whole]
        self._times = list(accumulate((seconds for seconds, _ in whole), initial=0.0))
        requests = (seconds * part for seconds, part in whole)
        self._requests = list(accumulate(requests, initial=0.0))
        self.end = self._times[-1]

    def part(self, since: float) -> float:
        """Return the part of the rate, so many seconds after the pause."""
        return self._parts[self._stage(self._times, since)]

    def requests(self, since: float) -> float:
        """Return how many requests have left by then, for a refused rate of one a second."""
        stage = self._stage(self._times, since)
        return self._requests[stage] + (since - self._times[stage]) * self._parts[stage]

    def time(self, requests: float) -> float:
        """Return when so many requests have left, in seconds after the pause."""
        stage = self._stage(self._requests, requests)
        seconds = (requests - self._requests[stage]) / self._parts[stage]
        return min(self._times[stage] + seconds, self.end)

    def _stage(self, begins: list[float], value: float) -> int:
        return min(bisect(begins, value), len(self._parts)) - 1


_AFTER_THE_FIRST: Final = _Stages((1.0, 0.7))
"""The first refusal tells little of the limit, so the rate grows until there is a second one."""
_AFTER_ANOTHER: Final = _Stages((1.0, 0.7), (5.0, 0.9), (5.0, 0.95), (5.0, 1.0))
"""Most time is spent a little below the refused rate."""


class Pace:
    """Keeps calls below the limit of a service that refuses too many requests.

    Pass it to a client as ``pace=Pace()``, or to several clients that share a limit. Threads can share
    it. It has no limit until the service refuses a request: with 429, or with 503 and ``Retry-After``.
    Then nothing is sent for the time that ``Retry-After`` asks for, and afterwards requests leave one
    by one, in the order in which they came. They begin at 0.7 of the rate at which the service refused.
    After the first refusal, the rate grows until the second one. From then on it stays a little below
    the refused rate for some time, and then grows again.

    A call waits within its own timeout. If it would wait longer, it raises `CreduseTimeoutError` at
    once, with the outcome NOT_APPLIED.

    If you drive calls yourself, call ``hold`` before each request, with an object that stands for the
    call, and ``ended`` after it; or ``leave``, if there is no request or its end is not known. ``now``
    is in seconds, on one clock for all.
    """

    __slots__ = (
        "_accepted",
        "_cut_at",
        "_freed",
        "_is_limited",
        "_lock",
        "_next",
        "_places",
        "_refused_rate",
        "_resumes_at",
        "_sent_at",
        "_stages",
        "_turn_in_pause",
    )

    def __init__(self) -> None:
        # Imported here to keep the import of the core fast. A lock does no I/O.
        from threading import RLock  # noqa: PLC0415, TID251

        # Reentrant, since a signal handler can make a call of its own.
        self._lock = RLock()
        self._is_limited = False
        # It stays when the limit is forgotten. The next places are counted from those that were taken
        # until then, and a signal handler's call can forget it while another call computes with it.
        self._refused_rate = 0.0
        self._resumes_at = self._cut_at = float("-inf")
        # Requests have places in a line: ascending numbers. The number whose turn it is stands still in
        # a pause, and then grows as the stages say.
        self._turn_in_pause = self._next = 0.0
        self._places: dict[Hashable, float] = {}
        self._freed: list[float] = []
        self._sent_at: dict[Hashable, float] = {}
        self._accepted = _Counter()
        self._stages = _AFTER_THE_FIRST

    def __repr__(self) -> str:
        limit = "no limit"
        if self._is_limited:
            limit = f"refused at {self._refused_rate:.1f} requests a second"
        return f"<Pace {limit}, {len(self._places)} waiting>"

    def hold(self, caller: "Hashable", now: float) -> float:
        """Return the seconds to wait before the caller's next request. With 0, send it now.

        After the wait, call it again: the service may have refused others meanwhile. The caller keeps
        its place.
        """
        with self._lock:
            if self._resumes_at - now > MAX_PAUSE:  # the clock was set back
                self._resumes_at = self._cut_at = float("-inf")
            if now - self._resumes_at >= self._stages.end:
                self._is_limited = False
            if self._is_limited:
                place = self._places.get(caller)
                if place is None:
                    place = self._places[caller] = self._new_place(now)
                wait = self._time_of(place) - now
                if wait > _SHORTEST_WAIT:
                    return wait
            self._places.pop(caller, None)
            self._sent_at[caller] = now
            return 0.0

    def ended(
        self, caller: "Hashable", status: int | None, retry_after: float | None, now: float
    ) -> None:
        """Report the status code of the response and its ``Retry-After``; or ``None`` without one."""
        with self._lock:
            sent_at = self._sent_at.pop(caller, now)
            if status == 429 or (status == 503 and retry_after is not None):
                self._refuse(sent_at, retry_after, now, is_limit=status == 429)
            elif status is not None:
                self._accepted.add(now)
                if self._stages is _AFTER_THE_FIRST and sent_at < self._cut_at:
                    # A refusal can overtake the responses to requests that left before.
                    self._refused_rate = max(self._refused_rate, self._accepted.last_second(now))

    def leave(self, caller: "Hashable") -> None:
        """Give up the caller's place. It sends nothing more, or the end of its request is not known."""
        with self._lock:
            self._sent_at.pop(caller, None)
            place = self._places.pop(caller, None)
            if place is None:
                return
            if place == self._next - 1:
                self._next = place
            else:
                heappush(self._freed, place)

    def _new_place(self, now: float) -> float:
        """Return the first place that is free."""
        turn = self._turn(now)
        with suppress(IndexError):  # none is free, or a signal handler's call has just taken it
            while (place := heappop(self._freed)) < turn:
                pass
            return place
        # Time without requests saves up nothing.
        place = max(self._next, turn)
        self._next = place + 1
        return place

    def _turn(self, now: float) -> float:
        """Return the place whose turn it is."""
        if not self._refused_rate:
            return self._turn_in_pause
        since = max(0.0, now - self._resumes_at)
        return self._turn_in_pause + self._stages.requests(since) * self._refused_rate

    def _time_of(self, place: float) -> float:
        """Return when it is a place's turn."""
        requests = max(0.0, place - self._turn_in_pause) / self._refused_rate
        return self._resumes_at + self._stages.time(requests)

    def _refuse(
        self, sent_at: float, retry_after: float | None, now: float, *, is_limit: bool
    ) -> None:
        """Pause, and cut the rate, unless the request left before the last cut.

        ``is_limit``: whether the service refuses for the rate's sake. After any other refusal, the rate
        that is known stays as it is.
        """
        turn = self._turn(now)
        if sent_at >= self._cut_at and (is_limit or not self._is_limited):
            rate = max(self._accepted.last_second(now), _FIRST_RATE)
            since = now - self._resumes_at
            stages = _AFTER_THE_FIRST
            if self._is_limited:
                allowed = self._refused_rate * self._stages.part(since)
                # What was not used was not refused. In the first second, the pause counts, too.
                rate = min(allowed, rate) if since >= 1.0 else allowed
                stages = _AFTER_ANOTHER
            self._stages = stages
            self._refused_rate = max(rate, _LEAST_RATE)
            self._cut_at = now
        self._turn_in_pause = turn
        self._resumes_at = max(self._resumes_at, now + min(retry_after or PAUSE, MAX_PAUSE))
        self._is_limited = True


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
        return self._count + self._before * (1.0 - min(max(now - self._second, 0.0), 1.0))

    def _roll(self, now: float) -> None:
        passed = now - self._second
        if passed >= 1.0:
            self._before = self._count if passed < 2.0 else 0
            self._count = 0
            self._second = now if passed >= 2.0 else self._second + 1.0
