"""How many items may be in flight, and when to stop sending. It is pure.

A service that fails must not make all items unclear. So few items are sent at first, and sending stops
after some failures in a row. Then a balance, which moves nothing, finds out whether the service is back.
"""

import enum
from typing import Final

FIRST: Final = 4
"""Items in flight at the beginning."""
FAILURES: Final = 10
"""Failures in a row after which sending stops."""
ROUNDS: Final = 5
"""Times that the service seems to be back, and fails again, after which the run ends."""


class End(enum.Enum):
    """How a call ended, as far as the window is concerned."""

    GOOD = enum.auto()
    """The service has carried it out, or refused it for the item's sake."""
    NEUTRAL = enum.auto()
    """It says nothing, such as a 429."""
    FAILED = enum.auto()
    """Nobody knows, or the service could not be reached."""


class Window:
    """The limit of items in flight. It grows by one with each success, and is halved by a failure."""

    def __init__(self, largest: int) -> None:
        self._largest = largest
        self._failures = 0
        self._rounds = 0
        self.size = min(FIRST, largest)
        """How many items may be in flight."""
        self.is_closed = False
        """Whether nothing may be sent until `reopen`."""

    @property
    def is_hopeless(self) -> bool:
        """Whether the service failed each time that it seemed to be back."""
        return self._rounds >= ROUNDS

    def ended(self, end: End) -> None:
        """Report how a call ended."""
        if end is End.GOOD:
            self._failures = self._rounds = 0
            self.size = min(self.size + 1, self._largest)
        elif end is End.FAILED:
            self._failures += 1
            self.size = max(self.size // 2, 1)
            if self._failures >= FAILURES and not self.is_closed:
                self.is_closed = True
                self._rounds += 1

    def reopen(self) -> None:
        """Send again, one item at first. Another failure closes the window at once."""
        self.is_closed = False
        self._failures = FAILURES - 1
        self.size = 1
