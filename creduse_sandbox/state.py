"""A file that keeps what a sandbox holds: small JSON values, each with a kind and a name.

It has SQLite, and the errors of opening and writing. What the values say (`ledger`, `sandbox`) does
not belong here.
"""

import json
import os
import sqlite3
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

_APPLICATION: Final = 0x43726473  # "Crds", in the header of each such file
_VERSION: Final = 1
_IN_USE: Final = "another process uses the file; choose another one"
_NOT_ONE: Final = "the file is not the state of a creduse sandbox; choose another one"
_DAMAGED: Final = "the file's content is damaged; choose another one"
# What SQLite's error codes mean here. The extended ones come first.
_REASONS: Final = {
    sqlite3.SQLITE_READONLY_DIRECTORY: "the file's directory is not writable",
    sqlite3.SQLITE_BUSY: _IN_USE,
    sqlite3.SQLITE_LOCKED: _IN_USE,
    sqlite3.SQLITE_NOTADB: _NOT_ONE,
    sqlite3.SQLITE_CORRUPT: _DAMAGED,
    sqlite3.SQLITE_ERROR: _DAMAGED,  # such as a missing table
}


class StateError(ValueError):
    """A file cannot keep a sandbox's state. The message says why, without the file's name."""


@contextmanager
def _explained(failure: str) -> Generator[None, None, None]:
    """Raise an error of SQLite as a `StateError`."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0)  # Python's own errors have none
        reason = _REASONS.get(code) or _REASONS.get(code & 0xFF)
        raise StateError(reason or f"{failure}: {error}") from error


def _make_file(path: Path) -> bool:
    """Make a file if there is none, and return whether it is new. SQLite says little about failures.

    A file that exists is not opened: a pipe would hang, and to close it would lose the locks that
    another sandbox of this process has.

    Raises:
        OSError: It cannot be made, or what is there cannot be used.
    """
    try:
        path.open("xb").close()
    except FileExistsError:
        for is_wrong, reason in (
            (path.is_dir(), "it is a directory"),
            (not path.is_file(), "it is not a regular file"),
            (not os.access(path, os.R_OK | os.W_OK), "Permission denied"),
        ):
            if is_wrong:
                raise OSError(0, reason) from None
        return False
    return True


class StateFile:
    """A file that keeps a sandbox's users, clock and idempotency keys. No other process can use it.

    The file is an SQLite database; a new one is made where there is none. Each change is in the
    file before the server responds, so a kill loses nothing that a client knows of. A power cut
    can lose the last changes, but leaves a whole file.

    Raises:
        StateError: The file is not such a file, is in use, or cannot be opened.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        if not os.fspath(path):
            raise StateError("it must be the name of a file, not an empty text")
        try:
            # SQLite gives a meaning of its own to ":memory:" and to names that begin with "file:".
            self._path = Path(path).resolve()
            is_new = _make_file(self._path)
            self._found = self._path.stat()
        except OSError as error:
            raise StateError(f"cannot open the file: {error.strerror}") from None
        except ValueError:  # a null character
            raise StateError("cannot open the file: its name is invalid") from None
        try:
            # Several threads use it, each with the sandbox's lock.
            with _explained("cannot open the file"):
                self._file = sqlite3.connect(self._path, timeout=0, check_same_thread=False)
        except StateError:
            if is_new:
                self._path.unlink()
            raise
        try:
            self._prepare()
        except BaseException:
            self._file.close()
            raise

    def _prepare(self) -> None:
        with _explained("cannot use the file"):
            self._file.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._file.execute("BEGIN IMMEDIATE")
            is_new = not self._value("PRAGMA schema_version")
            if is_new:
                self._file.execute(f"PRAGMA application_id = {_APPLICATION}")
                self._file.execute(f"PRAGMA user_version = {_VERSION}")
                self._file.execute(
                    "CREATE TABLE kept (kind TEXT, name TEXT, value TEXT, PRIMARY KEY (kind, name))"
                )
            elif self._value("PRAGMA application_id") != _APPLICATION:
                raise StateError(_NOT_ONE)
            elif self._value("PRAGMA user_version") != _VERSION:
                raise StateError("another version of creduse wrote this file; choose another one")
            self._file.commit()
            # A change need not wait for the disk, and a power cut leaves a whole file.
            self._file.execute("PRAGMA journal_mode = WAL")
            self._file.execute("PRAGMA synchronous = NORMAL")

    def _value(self, statement: str) -> Any:
        return self._file.execute(statement).fetchone()[0]

    def values(self, kind: str) -> Iterator[tuple[str, Any]]:
        """Return the names and values of a kind, the one that was put last at the end.

        Raises:
            StateError: The file cannot be read.
        """
        select = "SELECT name, value FROM kept WHERE kind = ? ORDER BY rowid"
        with _explained("cannot read the state's file"):
            rows = self._file.execute(select, (kind,)).fetchall()
        return ((name, json.loads(value)) for name, value in rows)

    def put(self, kind: str, name: str, value: object) -> None:
        """Keep a value once `transaction` ends."""
        self._file.execute("REPLACE INTO kept VALUES (?, ?, ?)", (kind, name, json.dumps(value)))

    def remove(self, kind: str, name: str) -> None:
        """Remove a value once `transaction` ends."""
        self._file.execute("DELETE FROM kept WHERE kind = ? AND name = ?", (kind, name))

    @contextmanager
    def transaction(self) -> Generator[None, None, None]:
        """Write all changes of the ``with`` block at its end, or none.

        Raises:
            StateError: The file cannot be written.
        """
        with _explained("cannot write the state's file"), self._file:
            yield
            if self._file.in_transaction:
                self._check_place()

    def _check_place(self) -> None:
        """Raise a `StateError` if nobody would find the changes in the file that SQLite has open."""
        with suppress(OSError):
            if os.path.samestat(self._path.stat(), self._found):
                return
        raise StateError(
            "cannot write the state's file: it was removed, moved or replaced; start the sandbox again"
        )

    def clear(self) -> None:
        """Remove everything.

        Raises:
            StateError: The file cannot be written.
        """
        with self.transaction():
            self._file.execute("DELETE FROM kept")

    def close(self) -> None:
        """Close the file. Another process can use it then."""
        self._file.close()
