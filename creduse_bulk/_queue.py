"""Which item comes next: one at a time for a user, in the order of the file. It is pure."""

from collections import deque

from ._input import Item


class Queue:
    """Items that wait. A user whose item was taken has no other one taken until it is done."""

    def __init__(self) -> None:
        self._next: deque[Item] = deque()
        # By the user's number, which is hashed faster. Few users have several items.
        self._behind: dict[int, deque[Item] | None] = {}
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def put(self, item: Item) -> None:
        """Add an item at the end."""
        self._size += 1
        user = item.user.int
        if user not in self._behind:
            self._behind[user] = None
            self._next.append(item)
        elif behind := self._behind[user]:
            behind.append(item)
        else:
            self._behind[user] = deque([item])

    def take(self) -> Item | None:
        """Return the next item whose user has none taken, or ``None``."""
        if not self._next:
            return None
        self._size -= 1
        return self._next.popleft()

    def put_back(self, item: Item) -> None:
        """Put back an item that was taken. It is the next one."""
        self._size += 1
        self._next.appendleft(item)

    def done(self, item: Item) -> None:
        """End an item that was taken. The user's next one can be taken."""
        behind = self._behind[item.user.int]
        if behind:
            self._next.append(behind.popleft())
        else:
            del self._behind[item.user.int]
