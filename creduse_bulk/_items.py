"""The journal of a run: what was sent to whom, in a SQLite file. How it is sent does not belong here.

It has a row for each item that was ever claimed. An item without a row is FREE. The states and rules are
those of `creduse_journal`.
"""

import hashlib
import hmac
import json
import os
import sqlite3
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Final, NamedTuple
from uuid import UUID

from creduse_core.secret import Secret
from creduse_journal import RULES, Change, JournalError, State
from creduse_journal._states import state_after
from creduse_journal.database import Database, Schema, check_owner, failure

_SCHEMA: Final = Schema(
    0x43524231,
    (
        "CREATE TABLE run (name TEXT PRIMARY KEY, value) WITHOUT ROWID",
        """CREATE TABLE items (
            number INTEGER PRIMARY KEY,
            state TEXT NOT NULL,
            user TEXT NOT NULL,
            began_at REAL NOT NULL,
            changed_at REAL NOT NULL,
            before TEXT,
            event TEXT,
            status INTEGER,
            error_code TEXT,
            note TEXT
        )""",
        # One item at a time for a user, and none after an unclear one.
        "CREATE INDEX open_items ON items (user) WHERE state IN ('claimed', 'unclear')",
    ),
)
_LEAST_SQLITE: Final = (3, 33)
"""It knows UPDATE with FROM."""
_ROUNDS: Final = 100_000
"""Of the key's fingerprint, so that a stolen journal does not help to guess a key."""

# One statement for all rows: Python's other threads go on meanwhile. {} has a row of ? for each.
_END: Final = """
    UPDATE items SET
        state = column2, event = column3, status = column4, error_code = column5,
        changed_at = column6, before = CASE column2 WHEN 'unclear' THEN before END
    FROM (VALUES {})
    WHERE number = column1 AND state = 'claimed'
"""
_CLAIM: Final = """
    INSERT INTO items (number, state, user, began_at, before, changed_at)
    SELECT column1, 'claimed', column2, column3, column4, column3
    FROM (VALUES {})
    WHERE NOT EXISTS (
        SELECT 1 FROM items WHERE user = column2 AND state IN ('claimed', 'unclear')
    )
    ON CONFLICT (number) DO UPDATE SET
        state = excluded.state, began_at = excluded.began_at, before = excluded.before,
        changed_at = excluded.changed_at, event = NULL, status = NULL, error_code = NULL
    WHERE state = 'free'
"""
# Not those that were claimed before.
_CLAIMED: Final = """
    SELECT json_group_array(number) FROM items JOIN (VALUES {}) ON number = column1
    WHERE state = 'claimed' AND began_at = column3
"""


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
    event: str | None
    status: int | None
    error_code: str | None


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
        "the file was changed since the run began. Restore it to go on. To send another file, "
        "give it another name"
    ),
    "base_url": "the run began at {0}, not at {1}",
    "shard": "it is that of {0}, not of {1}",
}
"""How a journal says that it belongs to something else."""


def check_identity(path: Path, kept: Identity, wanted: Identity) -> None:
    """Raise `JournalError` if a journal belongs to something else."""
    for name, words in _DIFFERS.items():
        was, is_now = getattr(kept, name), getattr(wanted, name)
        if was != is_now:
            raise JournalError(f"{path}: {words.format(was, is_now)}")


def check_shard(path: Path, kept: Identity, wanted: str) -> None:
    """Raise `JournalError` if a journal belongs to another part of the file."""
    check_identity(path, kept, replace(kept, shard=wanted))


class Items:
    """The open journal of a run. Each method returns a future, which ends after the commit."""

    def __init__(
        self, path: Path, identity: Identity, api_key: Secret, found: Mapping[str, object]
    ) -> None:
        """Open it, or make it. What another process has left CLAIMED becomes UNCLEAR.

        ``found``: what a new run keeps of its input.

        Raises:
            JournalError: It is in use, belongs to another run, or cannot be opened.
        """
        if sqlite3.sqlite_version_info < _LEAST_SQLITE:
            raise JournalError(
                f"bulk runs need SQLite 3.33 or later; this Python has {sqlite3.sqlite_version}"
            )
        self._database = Database(path, _SCHEMA, partial(_begin, path, identity, api_key, found))
        self.close = self._database.close

    def write(self, ended: Sequence[Ended], claims: Sequence[Claim]) -> Future[set[int]]:
        """Write how calls have ended, then claim items. Return the numbers of those that are claimed.

        An item is not claimed if another one of its user is claimed or unclear. Of several items of
        a user, only the first one can be claimed.
        """
        return self._database.submit(lambda database: _write(database, ended, claims))

    def counts(self) -> Future[dict[State, int]]:
        """Return how many rows there are in each state."""
        return self._database.submit(counts)

    def taken(self, first: int, last: int) -> Future[set[int]]:
        """Return the numbers, from ``first`` to ``last``, of items that must not be sent."""
        return self._database.submit(lambda database: _taken(database, first, last))

    def settle(self, decisions: Sequence[tuple[int, Change, str]]) -> Future[None]:
        """Change the states of items by decisions with notes, if the rules allow all of them."""
        return self._database.submit(lambda database: _settle(database, decisions))

    def set_stopped(self, why: str | None) -> Future[None]:
        """Keep why the run does not go on, or ``None`` if it has done what it can."""
        return self._database.submit(
            lambda database: _execute(
                database, "UPDATE run SET value = ? WHERE name = 'stopped'", (why,)
            )
        )

    def annotate(self, number: int, note: str) -> Future[None]:
        """Keep what is known of an item, without a decision."""
        return self._database.submit(
            lambda database: _execute(
                database, "UPDATE items SET note = ? WHERE number = ?", (note, number)
            )
        )


def _begin(
    path: Path,
    identity: Identity,
    api_key: Secret,
    found: Mapping[str, object],
    database: sqlite3.Connection,
) -> None:
    kept: dict[str, Any] = dict(database.execute("SELECT name, value FROM run").fetchall())
    salt = bytes.fromhex(kept.get("salt", "")) or os.urandom(16)
    key = hashlib.pbkdf2_hmac("sha256", api_key.reveal().encode(), salt, _ROUNDS).hex()
    if not kept:
        begun = asdict(identity) | dict(found) | {"salt": salt.hex(), "key": key, "stopped": None}
        database.executemany("INSERT INTO run VALUES (?, ?)", begun.items())
        return
    check_identity(path, _identity(kept), identity)
    if not hmac.compare_digest(kept["key"], key):
        if database.execute("SELECT 1 FROM items WHERE state <> 'free' LIMIT 1").fetchone():
            raise JournalError(
                f"{path}: the run began with another API key, and some lines were sent. Use that key to "
                "go on; or send the rest as a new file: see creduse bulk report --only waiting"
            )
        # That key was rejected, or nothing was sent yet.
        new = ((salt.hex(), "salt"), (key, "key"))
        database.executemany("UPDATE run SET value = ? WHERE name = ?", new)
    database.execute(
        "UPDATE items SET state = ?, changed_at = ? WHERE state = 'claimed'",
        (RULES[State.CLAIMED][Change.DOUBT], time.time()),
    )


def _execute(database: sqlite3.Connection, statement: str, values: Sequence[object]) -> None:
    database.execute(statement, values)


def _write(
    database: sqlite3.Connection, ended: Sequence[Ended], claims: Sequence[Claim]
) -> set[int]:
    if ended:
        after, now = RULES[State.CLAIMED], time.time()
        ends = [
            (it.number, after[it.change], it.event, it.status, it.error_code, now) for it in ended
        ]
        _execute_many(database, _END, ends)
    if not claims:
        return set()
    # The statement does not see its own rows, so it would claim two items of a user.
    firsts = list({claim.user: claim for claim in reversed(claims)}.values())
    if _execute_many(database, _CLAIM, firsts).rowcount == len(firsts):
        return {claim.number for claim in firsts}
    ((found,),) = _execute_many(database, _CLAIMED, firsts)
    return set(json.loads(found))


def _execute_many(
    database: sqlite3.Connection, statement: str, rows: Sequence[tuple[object, ...]]
) -> sqlite3.Cursor:
    row = f"({', '.join('?' * len(rows[0]))})"
    return database.execute(
        statement.format(", ".join([row] * len(rows))), list(chain.from_iterable(rows))
    )


def _taken(database: sqlite3.Connection, first: int, last: int) -> set[int]:
    ((found,),) = database.execute(
        "SELECT json_group_array(number) FROM items "
        "WHERE number BETWEEN ? AND ? AND state <> 'free'",
        (first, last),
    )
    return set(json.loads(found))


def _settle(database: sqlite3.Connection, decisions: Sequence[tuple[int, Change, str]]) -> None:
    settled: list[tuple[State, str, float, int]] = []
    for number, change, note in decisions:
        found = database.execute("SELECT state FROM items WHERE number = ?", (number,)).fetchone()
        state = State.FREE if found is None else State(found[0])
        settled.append((state_after(state, change), note, time.time(), number))
    database.executemany(
        "UPDATE items SET state = ?, note = ?, changed_at = ? WHERE number = ?", settled
    )


# Reading, by any process.


@contextmanager
def open_to_read(path: Path) -> Generator[sqlite3.Connection]:
    """Open a journal, of which another process may be the owner.

    Raises:
        JournalError: It is another program's file, or cannot be read.
    """
    try:
        with closing(sqlite3.connect(path, isolation_level=None)) as database:
            if _has_tables(database):  # else its owner was killed before it made them
                check_owner(database, path, _SCHEMA)
            database.execute("PRAGMA query_only = 1")
            yield database
    except sqlite3.Error as error:
        raise failure(path, error) from error


def _has_tables(database: sqlite3.Connection) -> bool:
    return database.execute("SELECT 1 FROM sqlite_master").fetchone() is not None


@dataclass(frozen=True, slots=True)
class Begun:
    """What a journal says of its run."""

    identity: Identity
    items: int
    """All items of the file, or of the shard."""
    total: int
    """The sum of their amounts."""
    stopped: str | None
    """Why the run does not go on, or ``None`` if it has done what it can."""


def begun(database: sqlite3.Connection) -> Begun | None:
    """Return what a journal says of its run, or ``None`` if it has not begun."""
    if not _has_tables(database):
        return None
    kept = dict(database.execute("SELECT name, value FROM run").fetchall())
    return Begun(_identity(kept), kept["items"], int(kept["total"]), kept["stopped"])


def _identity(kept: Mapping[str, Any]) -> Identity:
    return Identity(kept["method"], kept["digest"], kept["base_url"], kept["shard"])


def counts(database: sqlite3.Connection) -> dict[State, int]:
    """Return how many rows there are in each state."""
    found = dict(database.execute("SELECT state, count(*) FROM items GROUP BY state").fetchall())
    return {state: found.get(state, 0) for state in State}


def rows(database: sqlite3.Connection) -> Iterator[Row]:
    """Return all rows, in the order of the file."""
    for row in database.execute(f"SELECT {', '.join(Row._fields)} FROM items ORDER BY number"):  # noqa: S608 - ours
        yield Row(*row)._replace(state=State(row[1]), user=UUID(row[2]))


def unclear_users(database: sqlite3.Connection) -> set[UUID]:
    """Return the users who have an unclear item."""
    found = database.execute("SELECT user FROM items WHERE state IN ('claimed', 'unclear')")
    return {UUID(user) for (user,) in found}
