"""A simulated service that limits requests, and workers that call it, each one call after the other.

Time is simulated, and the calls are the core's own state machines, so a minute takes a moment. What
the workers share, such as a `Pace`, is an argument.
"""

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any, Protocol

from creduse_core import Call, CreduseError, Done, Response, Send, Wait
from creduse_core.retry import retry_after
from tests.common import USER, credits_body
from tests.core.players import PROTOCOL

GOOD = Response(200, (), credits_body(1))
BUSY = Response(429, [("Retry-After", "1")], b"")


class Brake(Protocol):
    """What holds requests back. A `Pace` is one."""

    def hold(self, caller: object, now: float, /) -> float: ...

    def ended(
        self, caller: object, status: int | None, retry_after: float | None, now: float, /
    ) -> None: ...

    def leave(self, caller: object, /) -> None: ...


class SharedPause:
    """Holds all back for as long as any ``Retry-After`` asks, and then lets all go at once.

    Without a pause, each call heeds only its own ``Retry-After``.
    """

    def __init__(self, *, pauses: bool = True) -> None:
        self.pauses, self.until = pauses, 0.0

    def hold(self, _: object, now: float) -> float:
        """Return the rest of the pause."""
        return max(0.0, self.until - now)

    def ended(self, _: object, __: int | None, retry_after: float | None, now: float) -> None:
        """Begin a pause."""
        if self.pauses and retry_after is not None:
            self.until = max(self.until, now + retry_after)

    def leave(self, _: object) -> None:
        """Do nothing."""


class Bucket:
    """A limit of so many requests a second on average, and so many at once."""

    def __init__(self, rate: float, burst: float) -> None:
        self.rate, self.burst = rate, burst
        self.tokens, self.at = burst, 0.0

    def accepts(self, now: float) -> bool:
        """Return whether a request is carried out now."""
        self.tokens = min(self.burst, self.tokens + (now - self.at) * self.rate)
        self.at = now
        if self.tokens < 1.0:
            return False
        self.tokens -= 1.0
        return True


class Window:
    """A limit of so many requests in each second of the clock."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.second, self.count = -1, 0

    def accepts(self, now: float) -> bool:
        """Return whether a request is carried out now."""
        if int(now) != self.second:
            self.second, self.count = int(now), 0
        self.count += 1
        return self.count <= self.rate


@dataclass
class Run:
    """How a simulation went."""

    seconds: float = 0.0
    sent: int = 0
    refused: int = 0
    applied: int = 0
    failed: int = 0

    def __str__(self) -> str:
        return (
            f"{self.applied / self.seconds:.0f} applied a second, "
            f"{self.refused / self.sent:.1%} of the requests refused, {self.failed} calls failed"
        )


class Simulation:
    """Workers that make so many calls in all."""

    def __init__(self, limit: Bucket | Window, brake: Brake, *, calls: int, latency: float) -> None:
        self.limit, self.brake, self.latency = limit, brake, latency
        self.left = itertools.repeat(None, calls)
        self.found = Run()
        self.dice = Random(1)  # noqa: S311 - nothing is secret here
        self.order = itertools.count()
        self.events: list[tuple[float, int, Callable[[float], None]]] = []

    def run(self, workers: int) -> Run:
        """Let time pass until all calls have ended."""
        for _ in range(workers):
            self.at(0.0, self.begin)
        while self.events:
            self.found.seconds, _, act = heapq.heappop(self.events)
            act(self.found.seconds)
        return self.found

    def at(self, time: float, act: Callable[[float], None]) -> None:
        """Let something happen at this time."""
        heapq.heappush(self.events, (time, next(self.order), act))

    def on_the_way(self) -> float:
        """Return how long a message takes, about half of the latency."""
        return self.latency * self.dice.uniform(0.25, 0.75)

    def begin(self, now: float) -> None:
        """Make a worker's next call, if calls are left."""
        for _ in self.left:
            call = PROTOCOL.add(USER, 1)
            self.follow(call, now, lambda: call.start(now, self.brake.hold(call, now)))  # noqa: B023 - called at once
            return

    def follow(
        self, call: Call[Any], now: float, act: Callable[[], Send | Wait | Done[Any]]
    ) -> None:
        """Do what the call says after an input."""
        try:
            action = act()
        except CreduseError:
            self.brake.leave(call)
            self.found.failed += 1
            self.at(now, self.begin)
            return
        if isinstance(action, Wait):
            self.at(now + action.seconds, lambda then: self.wake(call, then))
        elif isinstance(action, Send):
            self.at(now + self.on_the_way(), lambda then: self.arrive(call, then))
        else:
            self.found.applied += 1
            self.at(now, self.begin)

    def wake(self, call: Call[Any], now: float) -> None:
        """Go on after a wait."""
        self.follow(call, now, lambda: call.wake(now, self.brake.hold(call, now)))

    def arrive(self, call: Call[Any], now: float) -> None:
        """Carry out a request, or refuse it."""
        self.found.sent += 1
        response = GOOD if self.limit.accepts(now) else BUSY
        self.found.refused += response is BUSY
        self.at(now + self.on_the_way(), lambda then: self.receive(call, response, then))

    def receive(self, call: Call[Any], response: Response, now: float) -> None:
        """Take a response."""
        self.brake.ended(call, response.status, retry_after(response), now)
        self.follow(call, now, lambda: call.receive_response(response, now, self.dice.random()))
