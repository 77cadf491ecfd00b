"""Which item comes next, whatever ends in whichever order."""

import itertools
from uuid import UUID

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from creduse_bulk._input import Item
from creduse_bulk._queue import Queue


def item(number: int, user: int) -> Item:
    """Return an item."""
    return Item(number, "add", UUID(int=user), 1, None)


class Model(RuleBasedStateMachine):
    """A queue, and lists that say what must be in it."""

    taken = Bundle[Item]("taken")

    def __init__(self) -> None:
        super().__init__()
        self.queue = Queue()
        self.number = 0
        self.waiting: list[Item] = []
        self.busy: list[Item] = []
        self.done: list[Item] = []

    @rule(user=st.integers(0, 3))
    def put(self, user: int) -> None:
        """Add the next line of the file."""
        self.number += 1
        self.waiting.append(item(self.number, user))
        self.queue.put(self.waiting[-1])

    @rule(target=taken)
    def take(self) -> Item:
        """Take the next item, if there is one whose user has none taken."""
        busy = {it.user for it in self.busy}
        free = [it for it in self.waiting if it.user not in busy]
        found = self.queue.take()
        assert (found is None) == (not free)
        if found is None:
            return item(0, 0)
        # The user's first one that waits.
        assert found == next(it for it in free if it.user == found.user)
        self.waiting.remove(found)
        self.busy.append(found)
        return found

    @rule(it=consumes(taken))
    def end(self, it: Item) -> None:
        """End an item that was taken."""
        if it.number:
            self.busy.remove(it)
            self.done.append(it)
            self.queue.done(it)

    @rule(it=consumes(taken))
    def put_back(self, it: Item) -> None:
        """Put an item back, which is the next one then."""
        if it.number:
            self.busy.remove(it)
            self.waiting = sorted([*self.waiting, it])
            self.queue.put_back(it)
            assert self.take() == it
            self.busy.remove(it)
            self.waiting = sorted([*self.waiting, it])
            self.queue.put_back(it)

    @invariant()
    def nothing_is_lost(self) -> None:
        """Each item is in one place, and no user has two items taken."""
        assert len(self.queue) == len(self.waiting)
        assert len({it.user for it in self.busy}) == len(self.busy)
        numbers = [it.number for it in (*self.waiting, *self.busy, *self.done)]
        assert sorted(numbers) == list(range(1, self.number + 1))
        for user in {it.user for it in self.done}:
            own = [it.number for it in self.done if it.user == user]
            assert own == sorted(own)


TestModel = Model.TestCase


def test_every_order() -> None:
    """Whichever of the items in flight ends first, all are taken, each user's in the file's order."""
    for users in itertools.product(range(2), repeat=5):
        for choices in itertools.product(range(3), repeat=5):
            queue = Queue()
            for number, name in enumerate(users):
                queue.put(item(number, name))
            order: list[Item] = []
            busy: list[Item] = []
            for choice in choices:
                while (found := queue.take()) is not None:
                    order.append(found)
                    busy.append(found)
                assert len({it.user for it in busy}) == len(busy) > 0
                queue.done(busy.pop(choice % len(busy)))
            assert len(queue) == len(busy) == 0
            assert sorted(it.number for it in order) == [0, 1, 2, 3, 4]
            for user in {it.user for it in order}:
                own = [it.number for it in order if it.user == user]
                assert own == sorted(own)


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.integers(0, 5), max_size=30), st.data())
def test_put_back_many(users: list[int], data: st.DataObject) -> None:
    """Items that are put back, the last one first, are taken again in the same order."""
    queue = Queue()
    for number, user in enumerate(users):
        queue.put(item(number, user))
    taken = [it for _ in range(data.draw(st.integers(0, 6))) if (it := queue.take()) is not None]
    for it in reversed(taken):
        queue.put_back(it)
    assert [queue.take() for _ in taken] == taken


def test_in_the_order_of_the_file() -> None:
    """Items of different users are taken as they stand in the file, those behind another's later."""
    queue = Queue()
    for number, user in enumerate([1, 1, 2, 1, 3]):
        queue.put(item(number, user))
    assert len(queue) == 5
    first = [queue.take() for _ in range(4)]
    assert [it and it.number for it in first] == [0, 2, 4, None]
    queue.done(item(0, 1))
    queue.put(item(5, 1))
    queue.put(item(6, 4))
    assert [it and it.number for it in (queue.take(), queue.take())] == [1, 6]
