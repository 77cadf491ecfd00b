"""A file that keeps what a sandbox holds: small JSON values, each with a kind and a name.

It has SQLite, and the errors of opening and writing. What the values say (`ledger`, `sandbox`) does
not belong here.
"""

import json
import sqlite3
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import os

_APPLICATION: Final = 0x43726473  # "Crds", in the header of each such file
_VERSION: Final = 1
_BUSY: Final = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_NOT_ONE: Final = "the file is not the state of a creduse sandbox; choose another one"


class StateError(ValueError):
    """A file cannot keep a sandbox's state. The message says why, without the file's name."""


class StateFile:
    """A file that keeps a sandbox's users, clock and idempotency keys. No other process can use it.

    The file is an SQLite database; a new one is made where there is none. Each change is in the
    file before the server responds, so a kill loses nothing that a client knows of. A power cut
    can lose the last changes, but leaves a whole file.

    Raises:
        StateError: The file is not such a file, is in use, or cannot be opened.
    """

    def __init__(self, path: "str | os.PathLike[str]") -> None:
        try:
            # SQLite opens a directory or a device in vain, and says little about it.
            with Path(path).open("ab"):
                pass
            # Several threads use it, each with the sandbox's lock.
            self._file = sqlite3.connect(path, timeout=0, check_same_thread=False)
        except (OSError, ValueError) as error:  # ValueError: a null character
            reason = error.strerror if isinstance(error, OSError) else None
            raise StateError(f"cannot open the file: {reason or 'its name is invalid'}") from None
        try:
            self._prepare()
        except BaseException:
            self._file.close()
            raise

    def _prepare(self) -> None:
        try:
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
        except sqlite3.Error as error:
            if error.sqlite_errorcode & 0xFF in _BUSY:
                raise StateError("another process uses the file; choose another one") from None
            if error.sqlite_errorcode == sqlite3.SQLITE_NOTADB:
                raise StateError(_NOT_ONE) from None
            raise StateError(f"cannot use the file: {error}") from None

    def _value(self, statement: str) -> Any:
        return self._file.execute(statement).fetchone()[0]

    def values(self, kind: str) -> Iterator[tuple[str, Any]]:
        """Return the names and values of a kind, the one that was put last at the end."""
        rows = self._file.execute(
            "SELECT name, value FROM kept WHERE kind = ? ORDER BY rowid", (kind,)
        )
        return ((name, json.loads(value)) for name, value in rows.fetchall())

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
        try:
            with self._file:
                yield
        except sqlite3.Error as error:
            raise StateError(f"cannot write the state's file: {error}") from error

    def clear(self) -> None:
        """Remove everything."""
        with self._file:
            self._file.execute("DELETE FROM kept")

    def close(self) -> None:
        """Close the file. Another process can use it then."""
        self._file.close()
