"""The journal of a run in a SQLite file.

What it keeps, in any database (`_items`), and how a process owns a file (`creduse_journal.database`), do not
belong here.
"""

import hmac
import json
import sqlite3
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from creduse_core.secret import Secret
from creduse_journal import RULES, Change, JournalError, State
from creduse_journal._states import state_after
from creduse_journal.database import Database, Schema, check_owner, failure, is_in_use
from creduse_journal.future import Future

from ._input import Overview
from ._items import (
    OTHER_KEY,
    Begun,
    Claim,
    Ended,
    Identity,
    Row,
    check_identity,
    fingerprint,
    first_of_each_user,
    new_salt,
)

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


class SqliteItems:
    """The open journal of a run. See `Items`."""

    def __init__(
        self, path: Path, identity: Identity, api_key: Secret, overview: Overview | None
    ) -> None:
        """Open it. See `Place.open`."""
        if sqlite3.sqlite_version_info < _LEAST_SQLITE:
            raise JournalError(
                f"bulk runs need SQLite 3.33 or later; this Python has {sqlite3.sqlite_version}"
            )
        self._database = Database(path, _SCHEMA, partial(_begin, path, identity, api_key, overview))
        self.close = self._database.close

    def write(self, ended: Sequence[Ended], claims: Sequence[Claim]) -> Future[set[int]]:
        """Write how calls have ended, then claim items."""
        return self._database.submit(lambda database: _write(database, ended, claims))

    def give_up(self) -> None:
        """Do nothing: a file is there or not."""

    def counts(self) -> Future[dict[State, int]]:
        """Return how many rows there are in each state."""
        return self._database.submit(_counts)

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
    overview: Overview | None,
    database: sqlite3.Connection,
) -> None:
    kept: dict[str, Any] = dict(database.execute("SELECT name, value FROM run").fetchall())
    if not kept:
        assert overview is not None  # noqa: S101 - a new run has examined its file
        salt = new_salt()
        begun = asdict(identity) | {
            "items": overview.items,
            "salt": salt,
            "key": fingerprint(api_key, salt),
            "stopped": None,
        }
        database.executemany("INSERT INTO run VALUES (?, ?)", begun.items())
        return
    check_identity(path, _identity(kept), identity)
    key = fingerprint(api_key, kept["salt"])
    if not hmac.compare_digest(kept["key"], key):
        if database.execute("SELECT 1 FROM items WHERE state <> 'free' LIMIT 1").fetchone():
            raise JournalError(OTHER_KEY.format(path))
        # That key was rejected, or nothing was sent yet.
        database.execute("UPDATE run SET value = ? WHERE name = 'key'", (key,))
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
    firsts = first_of_each_user(claims)
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


class SqlitePlace:
    """A journal in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def open(self, identity: Identity, api_key: Secret, overview: Overview | None) -> SqliteItems:
        """Open the journal, or make it."""
        return SqliteItems(self.path, identity, api_key, overview)

    @contextmanager
    def read(self) -> Generator["SqliteReader | None"]:
        """Open the journal to read it."""
        if not self.path.exists():
            yield None
            return
        is_going_on = is_in_use(self.path)
        try:
            # A connection that can write removes the log when it takes itself for the last one. But if
            # its owner was killed while it made the file, only one that can write can undo that.
            half_made = self.path.with_name(f"{self.path.name}-journal").exists()
            url = f"{self.path.resolve().as_uri()}?mode={'rw' if half_made else 'ro'}"
            # A web framework streams a report from several threads, one after the other.
            with closing(
                sqlite3.connect(url, isolation_level=None, check_same_thread=False, uri=True)
            ) as database:
                if _has_tables(database):  # else its owner was killed before it made them
                    check_owner(database, self.path, _SCHEMA)
                yield SqliteReader(database, is_going_on=is_going_on)
        except sqlite3.Error as error:
            raise failure(self.path, error) from error


def _has_tables(database: sqlite3.Connection) -> bool:
    return database.execute("SELECT 1 FROM sqlite_master").fetchone() is not None


class SqliteReader:
    """A journal that somebody reads. See `Reader`."""

    def __init__(self, database: sqlite3.Connection, *, is_going_on: bool) -> None:
        self._database = database
        self.is_going_on = is_going_on

    def begun(self) -> Begun | None:
        """Return what the journal says of its run."""
        if not _has_tables(self._database):
            return None
        kept = dict(self._database.execute("SELECT name, value FROM run").fetchall())
        stopped = None if self.is_going_on else kept["stopped"]
        return Begun(_identity(kept), kept["items"], stopped)

    def counts(self) -> dict[State, int]:
        """Return how many rows there are in each state."""
        found = _counts(self._database)
        if not self.is_going_on:  # the process that sent them is dead
            found[State.UNCLEAR] += found[State.CLAIMED]
            found[State.CLAIMED] = 0
        return found

    def rows(self) -> Iterator[Row]:
        """Return all rows."""
        names = ", ".join(Row._fields)
        for row in self._database.execute(f"SELECT {names} FROM items ORDER BY number"):  # noqa: S608 - ours
            yield Row(*row)._replace(state=State(row[1]), user=UUID(row[2]))

    def unclear_users(self) -> set[UUID]:
        """Return the users who have an unclear item."""
        found = self._database.execute(
            "SELECT user FROM items WHERE state IN ('claimed', 'unclear')"
        )
        return {UUID(user) for (user,) in found}


def _identity(kept: Mapping[str, Any]) -> Identity:
    return Identity(kept["method"], kept["digest"], kept["base_url"], kept["shard"])


def _counts(database: sqlite3.Connection) -> dict[State, int]:
    found = dict(database.execute("SELECT state, count(*) FROM items GROUP BY state").fetchall())
    return {state: found.get(state, 0) for state in State}
