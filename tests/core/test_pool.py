"""The pool's bookkeeping, without trio: every short sequence of its operations."""

import itertools
from collections.abc import Callable

import pytest

from creduse_core.pool import Idle, Pool

IDLE_TIMEOUT = 2.0


class Model:
    """A pool written out as lists, and the real pool, which must do the same."""

    def __init__(self, places: int) -> None:
        self.places = places
        self.pool: Pool[int, int] = Pool(places, IDLE_TIMEOUT)
        self.now = 0.0
        self.numbers = itertools.count()
        self.connections = itertools.count()
        self.inside: list[tuple[int, int]] = []  # callers and their connections
        self.queue: list[int] = []
        self.idle: list[tuple[int, float]] = []

    def arrive(self) -> None:
        """Have another caller come."""
        caller = next(self.numbers)
        if len(self.inside) < self.places:
            assert self.pool.enter()
            self.admit(caller)
        else:
            assert not self.pool.enter()
            self.pool.enqueue(caller)
            self.queue.append(caller)

    def admit(self, caller: int) -> None:
        """Supply a connection to a caller who has a place."""
        while self.idle and self.idle[0][1] + IDLE_TIMEOUT <= self.now:
            assert self.pool.take_expired(self.now) == self.idle.pop(0)[0]
        assert self.pool.take_expired(self.now) is None
        taken = self.pool.take()
        assert taken == (self.idle.pop()[0] if self.idle else None)
        self.inside.append((caller, next(self.connections) if taken is None else taken))

    def pass_on(self, woken: int | None) -> None:
        """Check that the right waiter is woken."""
        assert woken == (self.queue.pop(0) if self.queue else None)
        if woken is not None:
            self.admit(woken)

    def keep(self) -> None:
        """Have the first caller finish, and keep the connection."""
        if self.inside:
            _, connection = self.inside.pop(0)
            self.pool.keep(connection, self.now)
            self.idle.append((connection, self.now))
            self.pass_on(self.pool.leave())

    def throw_away(self) -> None:
        """Have the last caller finish, and throw the connection away."""
        if self.inside:
            self.inside.pop()
            self.pass_on(self.pool.leave())

    def first_gives_up(self) -> None:
        """Have the first in the queue leave."""
        if self.queue:
            assert self.pool.give_up(self.queue.pop(0)) is None

    def last_gives_up(self) -> None:
        """Have the last in the queue leave."""
        if self.queue:
            assert self.pool.give_up(self.queue.pop()) is None

    def gives_up_when_woken(self) -> None:
        """Have the first in the queue leave at the moment when it gets the place."""
        if self.inside and self.queue:
            self.inside.pop(0)
            woken = self.queue.pop(0)
            assert self.pool.leave() == woken
            self.pass_on(self.pool.give_up(woken))

    def a_second_passes(self) -> None:
        """Let time pass."""
        self.now += 1.0

    def check(self) -> None:
        """Check the invariants."""
        assert len(self.inside) + len(self.idle) <= self.places
        assert not self.queue or len(self.inside) == self.places


STEPS: list[Callable[[Model], None]] = [
    Model.arrive,
    Model.keep,
    Model.throw_away,
    Model.first_gives_up,
    Model.last_gives_up,
    Model.gives_up_when_woken,
    Model.a_second_passes,
]


@pytest.mark.parametrize("places", [1, 2, 3])
def test_every_sequence(places: int) -> None:
    """The pool serves waiters in order, and reuses the connection that was used last.

    Idle ones are given up in time, and connections are never more than places.
    """
    for steps in itertools.product(STEPS, repeat=5):
        model = Model(places)
        for _ in range(places + 1):  # so that one waits from the beginning
            model.arrive()
        for step in steps:
            step(model)
            model.check()
        # However it went, no place has been lost.
        while model.inside:
            model.throw_away()
        assert model.queue == []
        assert [model.pool.enter() for _ in range(places + 1)] == [True] * places + [False]


class Racing(dict[str, str]):
    """Another thread takes the connection at the moment in which it is noted here."""

    def __init__(self, idle: Idle[str], times: int) -> None:
        super().__init__()
        self._idle, self.times = idle, times

    def __setitem__(self, user: str, connection: str) -> None:
        if self.times:
            self.times -= 1
            assert self._idle.take() == connection
        super().__setitem__(user, connection)


def test_taken_while_it_is_noted() -> None:
    """A connection is noted before it leaves the idle ones, and only if no other thread was faster."""
    idle: Idle[str] = Idle(3.0)
    users: dict[str, str] = {}
    assert idle.take_into(users, "thread") is None
    for connection in ("first", "second", "third"):
        idle.keep(connection, 0.0)
    assert "third" in idle
    assert idle.take_into(users, "thread") == "third"
    assert users == {"thread": "third"}
    assert "third" not in idle
    racing = Racing(idle, 1)
    assert idle.take_into(racing, "thread") == "first"
    assert racing == {"thread": "first"}
    idle.keep("last", 0.0)
    racing = Racing(idle, 1)
    assert idle.take_into(racing, "thread") is None
    assert racing == {}
    idle.keep("last", 0.0)
    racing = Racing(idle, 0)
    racing["thread"] = "outer"
    racing.times = 1
    assert idle.take_into(racing, "thread") is None
    assert racing == {"thread": "outer"}


def test_expired_and_taken_meanwhile() -> None:
    """A connection that another thread takes is not closed as expired."""

    class Late(float):
        """A time that is compared while another thread takes the connection."""

        def __gt__(self, other: object) -> bool:
            taken.append(idle.take())
            return False

    taken: list[str | None] = []
    idle: Idle[str] = Idle(Late(0.0))
    idle.keep("first", 0.0)
    idle._idle[0] = ("first", Late(0.0))  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # the moment between two steps
    assert idle.take_expired(1.0) is None
    assert taken == ["first"]
