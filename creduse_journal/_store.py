"""The SQLite file of a journal. One thread writes, and commits what has gathered in the meantime.

What changes mean (`_states`) does not belong here.
"""

import contextlib
import os
import queue
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar

from ._entries import COLUMNS, JournalError, Row, is_same_call
from ._files import prepare
from ._states import Change, State, state_after

T = TypeVar("T")

_APPLICATION_ID: Final = 0x43524A31
"""In the file's header: a journal of this package."""
_MAX_BATCH: Final = 1000
"""Operations in a transaction."""

_Operation: TypeAlias = tuple[Callable[[sqlite3.Connection], Any], "Future[Any]"]


class Store:
    """The entries. Each method returns a future, which ends when the change is on the disk."""

    def __init__(self, path: Path) -> None:
        """Open the file, and lock it. What another process has left CLAIMED becomes UNCLEAR.

        Raises:
            JournalError: It is in use, is not a journal, or cannot be opened.
        """
        prepare(path)
        self._path = path
        self._process = os.getpid()
        self._queue: queue.SimpleQueue[_Operation | None] = queue.SimpleQueue()
        # Nothing may be queued behind the end. Reentrant, since a signal handler can make a call.
        self._lock = threading.RLock()
        try:
            database = _open(path)
        except sqlite3.Error as error:
            raise _error(path, error) from error
        thread = threading.Thread(
            target=_write, args=(path, database, self._queue), name="creduse_journal", daemon=True
        )
        thread.start()
        # At the end of the program, too.
        self._finalize = weakref.finalize(self, _stop, self._queue, thread, self._process)

    def close(self) -> None:
        """Write what has gathered, and close the file."""
        with self._lock:
            self._finalize()

    def claim(self, row: Row) -> "Future[Row]":
        """Claim an entry, and return it as it was before.

        Its state is FREE if the claim succeeded. An id of another call raises ``ValueError``.
        """
        return self._submit(lambda database: _claim(database, row))

    def end(self, entry_id: str, change: Change, claim: str, **columns: Any) -> "Future[None]":
        """Change the state of an entry, if it is still claimed by this claim."""
        return self._submit(lambda database: _end(database, entry_id, change, claim, columns))

    def settle(self, entry_id: str, change: Change, note: str) -> "Future[Row]":
        """Change the state of an entry by a decision. An unknown id raises ``KeyError``."""
        return self._submit(lambda database: _settle(database, entry_id, change, note))

    def get(self, entry_id: str) -> "Future[Row | None]":
        """Return an entry."""
        return self._submit(lambda database: _get(database, entry_id))

    def find(self, where: str, *values: object) -> "Future[list[Row]]":
        """Return all entries for which this is true, in the order in which they changed."""
        return self._submit(
            lambda database: _rows(database, f"WHERE {where} ORDER BY changed_at", values)
        )

    def _submit(self, act: Callable[[sqlite3.Connection], T]) -> "Future[T]":
        if os.getpid() != self._process:
            raise JournalError(
                f"{self._path} was opened in another process: open it after the fork"
            )
        future: Future[T] = Future()
        with self._lock:
            if not self._finalize.alive:
                raise JournalError(f"{self._path} is closed")
            self._queue.put((act, future))
        return future


def _stop(
    waiting: "queue.SimpleQueue[_Operation | None]", thread: threading.Thread, process: int
) -> None:
    if os.getpid() == process:  # a forked child has no such thread
        waiting.put(None)
        thread.join()


def _open(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
    try:
        database.row_factory = sqlite3.Row
        # The lock stays until the file is closed, or the process dies.
        database.execute("PRAGMA locking_mode = EXCLUSIVE")
        is_new = database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
        found = database.execute("PRAGMA application_id").fetchone()[0]
        mode = (
            database.execute("PRAGMA journal_mode = WAL").fetchone()[0]
            if is_new or (found == _APPLICATION_ID)
            else ""
        )
        if mode != "wal":
            reason = (
                "SQLite cannot use a write-ahead log here" if mode else "another program made it"
            )
            raise JournalError(f"{path} cannot be a journal: {reason}")  # noqa: TRY301 - closed below
        # Under NORMAL, a commit is not synced: after a power cut, a call could be sent twice.
        database.execute("PRAGMA synchronous = FULL")
        database.execute("PRAGMA fullfsync = 1")
        database.execute("BEGIN IMMEDIATE")
        if is_new:
            database.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            columns = ", ".join(f"{name} {kind}" for name, kind in COLUMNS.items())
            database.execute(f"CREATE TABLE entries ({columns}) WITHOUT ROWID")
        database.execute(
            "UPDATE entries SET state = ?, changed_at = ? WHERE state = ?",
            (state_after(State.CLAIMED, Change.DOUBT), time.time(), State.CLAIMED),
        )
        database.execute("COMMIT")
    except BaseException:
        database.close()
        raise
    return database


def _write(
    path: Path, database: sqlite3.Connection, waiting: "queue.SimpleQueue[_Operation | None]"
) -> None:
    """Carry out operations until ``None`` comes. After an error of the file, refuse all."""
    broken: JournalError | None = None
    with contextlib.closing(database):
        stopped = False
        while not stopped:
            batch, stopped = _next_batch(waiting)
            if broken is None and batch:
                broken = _commit(path, database, batch)
            elif broken is not None:
                for _, future in batch:
                    future.set_exception(broken)


def _next_batch(waiting: "queue.SimpleQueue[_Operation | None]") -> tuple[list[_Operation], bool]:
    """Return what has gathered, at least one operation, and whether it was the last."""
    batch: list[_Operation] = []
    operation = waiting.get()
    while operation is not None:
        batch.append(operation)
        if len(batch) == _MAX_BATCH:
            return batch, False
        try:
            operation = waiting.get_nowait()
        except queue.Empty:
            return batch, False
    return batch, True


def _commit(
    path: Path, database: sqlite3.Connection, batch: list[_Operation]
) -> JournalError | None:
    """Carry out operations in one transaction. Return the error if the file fails."""
    ends: list[Callable[[], object]] = []
    try:
        database.execute("BEGIN IMMEDIATE")
        for act, future in batch:
            try:
                result = act(database)
            except sqlite3.Error:
                raise
            except Exception as error:  # noqa: BLE001 - it is the caller's
                ends.append(partial(future.set_exception, error))
            else:
                ends.append(partial(future.set_result, result))
        database.execute("COMMIT")
    except sqlite3.Error as error:
        with contextlib.suppress(sqlite3.Error):
            database.execute("ROLLBACK")
        broken = _error(path, error)
        for _, future in batch:
            future.set_exception(broken)
        return broken
    for end in ends:
        end()
    return None


def _error(path: Path, error: sqlite3.Error) -> JournalError:
    code = getattr(error, "sqlite_errorname", "")
    if code.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return JournalError(f"{path} is in use: another process, or another Journal, has it open")
    if code == "SQLITE_NOTADB":
        return JournalError(f"{path} is not a journal")
    if code == "SQLITE_FULL":
        return JournalError(f"{path}: the disk is full")
    return JournalError(f"{path} cannot be used: {error}")


# What operations do. Each changes one entry with one statement.


def _get(database: sqlite3.Connection, entry_id: str) -> Row | None:
    found = _rows(database, "WHERE id = ?", (entry_id,))
    return found[0] if found else None


def _rows(database: sqlite3.Connection, rest: str, values: tuple[object, ...]) -> list[Row]:
    found = database.execute(f"SELECT * FROM entries {rest}", values)  # noqa: S608 - ours
    return [dict(row) for row in found]


def _claim(database: sqlite3.Connection, row: Row) -> Row:
    found = _get(database, row["id"])
    if found is not None and not is_same_call(found, row):
        raise ValueError(
            f"{row['id']!r} is the id of another call: {found['method']} for {found['end_user_id']}"
            + ("" if found["amount"] is None else f", {found['amount']} credits")
            + f", at {found['base_url']}"
        )
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
    return _update(database, found, change, {"note": note})


def _update(database: sqlite3.Connection, row: Row, change: Change, columns: Row) -> Row:
    state = state_after(State(row["state"]), change)
    changed = columns | {"state": state, "changed_at": time.time()}
    names = ", ".join(f"{name} = :{name}" for name in changed)
    database.execute(f"UPDATE entries SET {names} WHERE id = :id", changed | {"id": row["id"]})  # noqa: S608 - ours
    return row | changed
