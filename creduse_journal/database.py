"""A SQLite file that one process owns.

`creduse_bulk` uses it, too. Tables, and what their rows mean, do not belong here.
"""

import contextlib
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ._entries import InUseError, JournalError
from ._files import make_private, place_of, prepare
from .committer import Batch, Committer, carry_out, fail

_PATIENCE: Final = 10.0
"""Seconds to wait for a program that reads the file."""
_LOCK_PATIENCE: Final = 0.5
"""Seconds to wait for the lock. `is_in_use` holds it for a moment."""


@dataclass(frozen=True, slots=True)
class Schema:
    """What a file holds."""

    application_id: int
    """In the file's header: whose file it is."""
    statements: tuple[str, ...]
    """They make the tables of a new file."""


class Database(Committer[sqlite3.Connection]):
    """A SQLite file, which is locked until it is closed or the process dies."""

    def __init__(
        self, path: Path, schema: Schema, begin: Callable[[sqlite3.Connection], object]
    ) -> None:
        """Open the file. ``begin`` is the first operation.

        Raises:
            JournalError: The file is in use, is not such a file, or cannot be opened.
        """
        path = place_of(path)
        prepare(path)
        connections = contextlib.ExitStack()
        try:
            writer = _Writer(path, _open(path, schema, begin, connections), connections)
        except BaseException as error:
            connections.close()
            if isinstance(error, sqlite3.Error | OSError):
                raise failure(path, error) from error
            raise
        super().__init__(str(path), writer)


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
    path = place_of(path)
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


class _Writer:
    """Carries out operations. After an error of the file, it refuses all."""

    idle_limit: float | None = None

    def __init__(
        self, path: Path, database: sqlite3.Connection, connections: contextlib.ExitStack
    ) -> None:
        self._path = path
        # The process can change its directory.
        self._log = Path(f"{path.resolve()}-wal")
        self._log_number = self._log.stat().st_ino
        self._database = database
        self._broken: JournalError | None = None
        self.close = connections.close

    def keep_alive(self) -> None:
        """Do nothing: the lock lasts as long as the process."""

    def commit(self, batch: Batch[sqlite3.Connection]) -> None:
        """Carry out operations in one transaction."""
        if self._broken is None:
            try:
                self._database.execute("BEGIN IMMEDIATE")
                ends = carry_out(self._database, batch, sqlite3.Error)
                self._database.execute("COMMIT")
                self._check_log()
            except JournalError as error:
                self._broken = error
            except (sqlite3.Error, OSError) as error:
                with contextlib.suppress(sqlite3.Error):
                    self._database.execute("ROLLBACK")
                self._broken = failure(self._path, error)
            else:
                for end in ends:
                    end()
                return
        fail(batch, self._broken)

    def _check_log(self) -> None:
        """Raise if the file's log has been removed: what is written to it is lost with the process.

        To close any descriptor of the file, as a copy of it does, gives up this process's locks on
        it (POSIX). The next program that has read the file then takes itself for the last one, and
        removes the log.
        """
        try:
            is_there = self._log.stat().st_ino == self._log_number
        except FileNotFoundError:
            is_there = False
        if not is_there:
            raise JournalError(
                f"{self._path}: another program has removed its log (-wal), so the journal does not keep "
                "what is written now: end this process, and do not open or copy the file in a process "
                "that uses it"
            )


def failure(path: Path, error: sqlite3.Error | OSError) -> JournalError:
    """Return what an error of SQLite or of the system means."""
    code = getattr(error, "sqlite_errorname", "")
    if code.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return InUseError(f"{path} is in use: another process, or another Journal, has it open")
    if path.is_dir():
        return JournalError(f"{path} is a directory")
    if code == "SQLITE_NOTADB":
        return JournalError(f"{path} is not a journal")
    if code == "SQLITE_FULL":
        return JournalError(f"{path}: the disk is full")
    return JournalError(f"{path} cannot be used: {error}")
