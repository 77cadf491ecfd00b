"""What a run's journal keeps, whichever database it is in. SQL (`_sqlite`, `_postgres`) does not belong here.

It has a row for each item that was ever claimed. An item without a row is FREE. A row does not repeat what
stands in the file; instead, the journal keeps the file's SHA-256. The states and rules are those of
`creduse_journal`.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol
from uuid import UUID

from creduse_core.secret import Secret
from creduse_journal import Change, JournalError, State
from creduse_journal.future import Future

from ._input import Overview, Shard

_ROUNDS: Final = 100_000
"""Of a key's fingerprint, so that a stolen journal does not help to guess the key."""


class Row(NamedTuple):
    """What the journal knows of an item."""

    number: int
    state: State
    user: UUID
    began_at: float
    changed_at: float
    before: str | None
    event: str | None
    status: int | None
    error_code: str | None
    note: str | None


class Claim(NamedTuple):
    """An item that is about to be sent."""

    number: int
    user: str
    began_at: float
    before: str | None


class Ended(NamedTuple):
    """How the call of an item has ended."""

    number: int
    change: Change
    event: str | None = None
    status: int | None = None
    error_code: str | None = None
    body: bytes | None = None
    """The body of the response. Only the outbox keeps it."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What a journal belongs to: the calls of one file, or of a shard of it, at one service."""

    method: str
    digest: str
    """The SHA-256 of the input file."""
    base_url: str
    shard: str


_DIFFERS: Final = {
    "method": "it is that of {0}, not of {1}",
    "digest": (
        "the file was changed since the run began, and lines of it may have been sent. Restore it to "
        "go on. Put new lines into a file of their own"
    ),
    "base_url": "the run began at {0}, not at {1}",
    "shard": "it is that of {0}, not of {1}",
}
"""How a journal says that it belongs to something else."""


def check_identity(place: object, kept: Identity, wanted: Identity) -> None:
    """Raise `JournalError` if a journal belongs to something else."""
    for name, words in _DIFFERS.items():
        was, is_now = getattr(kept, name), getattr(wanted, name)
        if was != is_now:
            raise JournalError(f"{place}: {words.format(was, is_now)}")


@dataclass(frozen=True, slots=True)
class Begun:
    """What a journal says of its run."""

    identity: Identity
    items: int
    """All items of the file, or of the shard."""
    stopped: str | None
    """Why it does not go on, or ``None`` if it does, or has done what it can."""


class Writer(Protocol):
    """What keeps how items end."""

    def write(self, ended: Sequence[Ended], claims: Sequence[Claim]) -> Future[set[int]]:
        """Write how calls have ended, then claim items. Return the numbers of those that are claimed.

        An item is not claimed if another one of its user is claimed or unclear. Of several items of
        a user, only the first one can be claimed. If another process has taken over, its future has a
        `LostError`: how calls have ended is written, and nothing is claimed.
        """
        ...

    def give_up(self) -> None:
        """Do not wait any more for a database that cannot be reached."""
        ...


class Items(Writer, Protocol):
    """The open journal of a run. Each method returns a future, which ends after the commit."""

    def counts(self) -> Future[dict[State, int]]:
        """Return how many rows there are in each state."""
        ...

    def taken(self, first: int, last: int) -> Future[set[int]]:
        """Return the numbers, from ``first`` to ``last``, of items that must not be sent."""
        ...

    def settle(self, decisions: Sequence[tuple[int, Change, str]]) -> Future[None]:
        """Change the states of items by decisions with notes, if the rules allow all of them."""
        ...

    def set_stopped(self, why: str | None) -> Future[None]:
        """Keep why the run does not go on, or ``None`` if it has done what it can."""
        ...

    def annotate(self, number: int, note: str) -> Future[None]:
        """Keep what is known of an item, without a decision."""
        ...

    def close(self) -> None:
        """Write what has gathered, and close it."""
        ...


class Reader(Protocol):
    """A journal that somebody reads. Another process may be its owner."""

    is_going_on: bool
    """Whether a process has the run open."""

    def begun(self) -> Begun | None:
        """Return what the journal says of its run, or ``None`` if it has not begun."""
        ...

    def counts(self) -> dict[State, int]:
        """Return how many rows there are in each state. Those of a dead process are unclear."""
        ...

    def rows(self) -> Iterator[Row]:
        """Return all rows, in the order of the file."""
        ...

    def unclear_users(self) -> set[UUID]:
        """Return the users who have an unclear item."""
        ...


class Place(Protocol):
    """Where the journal of a run is. Its text is for messages."""

    def open(self, identity: Identity, api_key: Secret, overview: Overview | None) -> Items:
        """Open the journal, or make it. What a dead process has left CLAIMED becomes UNCLEAR.

        ``overview``: what is in the file of a new run.

        Raises:
            JournalError: It is in use, belongs to another run, or cannot be opened.
        """
        ...

    def read(self) -> AbstractContextManager[Reader | None]:
        """Open the journal to read it. It is ``None`` if there is none.

        Raises:
            JournalError: It cannot be read.
        """
        ...


def name_of(shard: Shard | None) -> str:
    """Return what a journal says of a shard."""
    return "the whole file" if shard is None else f"shard {shard}"


def first_of_each_user(claims: Sequence[Claim]) -> list[Claim]:
    """Return the first claim of each user. One statement, which does not see its own rows, would claim more."""
    return list({claim.user: claim for claim in reversed(claims)}.values())


def new_salt() -> str:
    """Return what makes a fingerprint differ from that of the same key in another journal."""
    return os.urandom(16).hex()


def fingerprint(api_key: Secret, salt: str) -> str:
    """Return the fingerprint of an API key."""
    return hashlib.pbkdf2_hmac(
        "sha256", api_key.reveal().encode(), bytes.fromhex(salt), _ROUNDS
    ).hex()


OTHER_KEY: Final = (
    "{0}: the run began with another API key, and some lines were sent. Use that key to go on; or send "
    "the rest as a new file: see creduse bulk report --only waiting"
)
