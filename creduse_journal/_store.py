"""The entries of a journal: its table, and what operations do.

The file and its thread (`database`), and what changes mean (`_states`), do not belong here.
"""

import sqlite3
import time
from pathlib import Path
from typing import Any, Final

from ._entries import COLUMNS, Row, check_same_call
from ._states import Change, State, state_after
from .database import Database, Schema
from .future import Future

_SCHEMA: Final = Schema(
    0x43524A31,
    (
        "CREATE TABLE entries ("
        + ", ".join(f"{name} {kind}" for name, kind in COLUMNS.items())
        + ") WITHOUT ROWID",
    ),
)


class Store:
    """The entries. Each method returns a future, which ends when the change is on the disk."""

    def __init__(self, path: Path) -> None:
        """Open the file. What another process has left CLAIMED becomes UNCLEAR.

        Raises:
            JournalError: It is in use, is not a journal, or cannot be opened.
        """
        self._database = Database(path, _SCHEMA, _doubt)
        self.close = self._database.close
        self.close_soon = self._database.close_soon

    def claim(self, row: Row) -> Future[Row]:
        """Claim an entry, and return it as it was before.

        Its state is FREE if the claim succeeded. An id of another call raises ``ValueError``.
        """
        return self._database.submit(lambda database: _claim(database, row))

    def end(self, entry_id: str, change: Change, claim: str, **columns: Any) -> Future[None]:
        """Change the state of an entry, if it is still claimed by this claim."""
        return self._database.submit(
            lambda database: _end(database, entry_id, change, claim, columns)
        )

    def settle(self, entry_id: str, change: Change, note: str) -> Future[Row]:
        """Change the state of an entry by a decision. An unknown id raises ``KeyError``."""
        return self._database.submit(lambda database: _settle(database, entry_id, change, note))

    def get(self, entry_id: str) -> Future[Row | None]:
        """Return an entry."""
        return self._database.submit(lambda database: _get(database, entry_id))

    def unclear(self) -> Future[list[Row]]:
        """Return all unclear entries, in the order in which they changed."""
        return self._find("WHERE state = ? ORDER BY changed_at", State.UNCLEAR)

    def of_user(self, user: str) -> Future[list[Row]]:
        """Return all entries of a user."""
        return self._find("WHERE end_user_id = ?", user)

    def _find(self, rest: str, *values: object) -> Future[list[Row]]:
        return self._database.submit(lambda database: _rows(database, rest, values))


def _doubt(database: sqlite3.Connection) -> None:
    database.execute(
        "UPDATE entries SET state = ?, changed_at = ? WHERE state = ?",
        (state_after(State.CLAIMED, Change.DOUBT), time.time(), State.CLAIMED),
    )


def _get(database: sqlite3.Connection, entry_id: str) -> Row | None:
    found = _rows(database, "WHERE id = ?", (entry_id,))
    return found[0] if found else None


def _rows(database: sqlite3.Connection, rest: str, values: tuple[object, ...]) -> list[Row]:
    found = database.execute(f"SELECT * FROM entries {rest}", values)  # noqa: S608 - ours
    return [dict(row) for row in found]


def _claim(database: sqlite3.Connection, row: Row) -> Row:
    found = _get(database, row["id"])
    if found is not None:
        check_same_call(found, row)
    before = {"state": State.FREE} if found is None else found
    state = State(before["state"])
    if state is State.FREE:
        claimed = dict.fromkeys(COLUMNS) | row
        claimed |= {"state": state_after(state, Change.CLAIM), "changed_at": time.time()}
        claimed["note"] = before.get("note")
        names, places = ", ".join(claimed), ", ".join(f":{name}" for name in claimed)
        database.execute(f"INSERT OR REPLACE INTO entries ({names}) VALUES ({places})", claimed)  # noqa: S608 - ours
    return before


def _end(
    database: sqlite3.Connection, entry_id: str, change: Change, claim: str, columns: Row
) -> None:
    found = _get(database, entry_id)
    if found is not None and (found["claim"], found["state"]) == (claim, State.CLAIMED):
        _update(database, found, change, columns)


def _settle(database: sqlite3.Connection, entry_id: str, change: Change, note: str) -> Row:
    found = _get(database, entry_id)
    if found is None:
        raise KeyError(entry_id)
    return _update(database, found, change, {"note": note, "ended_at": time.time()})


def _update(database: sqlite3.Connection, row: Row, change: Change, columns: Row) -> Row:
    state = state_after(State(row["state"]), change)
    changed = columns | {"state": state, "changed_at": time.time()}
    names = ", ".join(f"{name} = :{name}" for name in changed)
    database.execute(f"UPDATE entries SET {names} WHERE id = :id", changed | {"id": row["id"]})  # noqa: S608 - ours
    return row | changed
