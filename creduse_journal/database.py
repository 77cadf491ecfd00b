"""A SQLite file that one process owns. One thread writes, and commits what has gathered in the meantime.

`creduse_bulk` uses it, too. Tables, and what their rows mean, do not belong here.
"""

import contextlib
import os
import queue
import sqlite3
import sys
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar

from ._entries import InUseError, JournalError
from ._files import make_private, prepare

T = TypeVar("T")

_MAX_BATCH: Final = 1000
"""Operations in a transaction."""
_PATIENCE: Final = 10.0
"""Seconds to wait for a program that reads the file."""
_LOCK_PATIENCE: Final = 0.5
"""Seconds to wait for the lock. `is_in_use` holds it for a moment."""

_Operation: TypeAlias = tuple[Callable[[sqlite3.Connection], Any], "Future[Any]"]
_Queue: TypeAlias = "queue.SimpleQueue[_Operation | None]"


@dataclass(frozen=True, slots=True)
class Schema:
    """What a file holds."""

    application_id: int
    """In the file's header: whose file it is."""
    statements: tuple[str, ...]
    """They make the tables of a new file."""


class Database:
    """A SQLite file, which is locked until it is closed or the process dies."""

    def __init__(
        self, path: Path, schema: Schema, begin: Callable[[sqlite3.Connection], object]
    ) -> None:
        """Open the file. ``begin`` is the first operation.

        Raises:
            JournalError: The file is in use, is not such a file, or cannot be opened.
        """
        prepare(path)
        self._path = path
        self._process = os.getpid()
        self._queue: _Queue = queue.SimpleQueue()
        # Nothing may be queued behind the end. Reentrant, since a signal handler can make a call.
        self._lock = threading.RLock()
        connections = contextlib.ExitStack()
        try:
            database = _open(path, schema, begin, connections)
        except BaseException as error:
            connections.close()
            if isinstance(error, sqlite3.Error):
                raise failure(path, error) from error
            raise
        thread = threading.Thread(
            target=_write,
            args=(path, database, connections, self._queue),
            name="creduse_journal",
            daemon=True,
        )
        thread.start()
        # At the end of the program, too.
        self._finalize = weakref.finalize(self, _stop, self._queue, thread, self._process)

    def close(self) -> None:
        """Write what has gathered, and close the file."""
        with self._lock:
            self._finalize()

    def submit(self, act: Callable[[sqlite3.Connection], T]) -> "Future[T]":
        """Carry out an operation in the next transaction. Its future ends after the commit."""
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


def _stop(waiting: _Queue, thread: threading.Thread, process: int) -> None:
    if os.getpid() == process:  # a forked child has no such thread
        waiting.put(None)
        thread.join()


def _open(
    path: Path,
    schema: Schema,
    begin: Callable[[sqlite3.Connection], object],
    connections: contextlib.ExitStack,
) -> sqlite3.Connection:
    database = _connect(path, _PATIENCE, connections)
    if not _is_new(database):
        check_owner(database, path, schema)
    # The lock is on a file of its own, so that other processes can read the database. SQLite's lock
    # works on each system, and ends with the process.
    lock = _lock_of(path)
    make_private(lock)
    _connect(lock, _LOCK_PATIENCE, connections).execute("BEGIN EXCLUSIVE")
    mode = database.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    if mode != "wal":
        raise JournalError(f"{path} cannot be a journal: SQLite cannot use a write-ahead log here")
    # Under NORMAL, a commit is not synced: after a power cut, a call could be sent twice.
    database.execute("PRAGMA synchronous = FULL")
    database.execute("PRAGMA fullfsync = 1")
    database.execute("BEGIN IMMEDIATE")
    if _is_new(database):
        database.execute(f"PRAGMA application_id = {schema.application_id}")
        for statement in schema.statements:
            database.execute(statement)
    begin(database)
    database.execute("COMMIT")
    return database


def _lock_of(path: Path) -> Path:
    return path.with_name(f"{path.name}-lock")


def is_in_use(path: Path) -> bool:
    """Return whether a process owns the file now."""
    if not _lock_of(path).exists():
        return False
    with contextlib.ExitStack() as connections:
        try:
            _connect(_lock_of(path), 0, connections).execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            return isinstance(failure(path, error), InUseError)
    return False


def _connect(path: Path, patience: float, connections: contextlib.ExitStack) -> sqlite3.Connection:
    database = connections.enter_context(
        contextlib.closing(
            sqlite3.connect(path, timeout=patience, isolation_level=None, check_same_thread=False)
        )
    )
    database.row_factory = sqlite3.Row
    return database


def _is_new(database: sqlite3.Connection) -> bool:
    return not database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]


def check_owner(database: sqlite3.Connection, path: Path, schema: Schema) -> None:
    """Raise `JournalError` if the file is another program's, or of another kind."""
    if database.execute("PRAGMA application_id").fetchone()[0] != schema.application_id:
        raise JournalError(f"{path} cannot be a journal: another program made it")


def _write(
    path: Path,
    database: sqlite3.Connection,
    connections: contextlib.ExitStack,
    waiting: _Queue,
) -> None:
    """Carry out operations until ``None`` comes. After an error of the file, refuse all."""
    broken: JournalError | None = None
    with connections:
        stopped = False
        while not stopped:
            batch, stopped = _next_batch(waiting)
            if broken is None and batch:
                broken = _commit(path, database, batch)
            elif broken is not None:
                for _, future in batch:
                    future.set_exception(broken)


def _next_batch(waiting: _Queue) -> tuple[list[_Operation], bool]:
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
        broken = failure(path, error)
        for _, future in batch:
            future.set_exception(broken)
        return broken
    for end in ends:
        end()
    return None


async def wait_for(future: Future[T]) -> T:
    """Wait for a future of the writing thread, on asyncio or trio."""
    trio = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_run():
        token, done = trio.lowlevel.current_trio_token(), trio.Event()

        def wake(_: object) -> None:
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(done.set)

        future.add_done_callback(wake)
        await done.wait()
    else:
        import asyncio  # noqa: PLC0415 - only where it is running

        # If the caller is cancelled, the operation goes on.
        await asyncio.shield(asyncio.wrap_future(future))
    return future.result()


def failure(path: Path, error: sqlite3.Error) -> JournalError:
    """Return what an error of SQLite means."""
    code = getattr(error, "sqlite_errorname", "")
    if code.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return InUseError(f"{path} is in use: another process, or another Journal, has it open")
    if code == "SQLITE_NOTADB":
        return JournalError(f"{path} is not a journal")
    if code == "SQLITE_FULL":
        return JournalError(f"{path}: the disk is full")
    return JournalError(f"{path} cannot be used: {error}")
