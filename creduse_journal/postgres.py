"""A PostgreSQL database that many processes share. Each says by locks that it lives, and what it owns.

A lock ends with its connection, and the server ends the connection of a process that does not show that
it lives. So a lost lock proves nothing about requests: they may still leave, and a late owner may still
write how they have ended. That nothing is sent twice rests on the rows: a claim succeeds only on a free
one, and is committed before its request leaves.

`creduse_bulk` uses this module, too. Tables do not belong here.
"""

import contextlib
import hashlib
import secrets
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Final, LiteralString, NamedTuple, TypeAlias

try:
    import psycopg
except ImportError as error:
    raise ImportError(
        "a journal in PostgreSQL needs psycopg: pip install 'creduse[postgres]>=0.2'"
    ) from error
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import dict_row

from ._entries import InUseError, JournalError, LostError, UnavailableError
from .committer import Batch, Committer, carry_out, fail
from .schema import TABLES_LOCK
from .urls import without_password

Connection: TypeAlias = "psycopg.Connection[tuple[Any, ...]]"

LEASE: Final = 30
"""Seconds after which a process that is frozen, or cut off, loses its locks."""
PATIENCE: Final = 30.0
"""Seconds to try again when a connection is lost, by default."""
_LOCK_PATIENCE: Final = 1.0
"""Seconds to wait for a lock. The server may need a moment to see that its owner has died."""
_BETWEEN_TRIES: Final = 0.1
"""Seconds."""
_OLDEST: Final = 140000
"""Version 14: it has idle_session_timeout."""
_AGAIN: Final = (
    psycopg.errors.DeadlockDetected,
    psycopg.errors.SerializationFailure,
    psycopg.errors.UniqueViolation,
)
"""Errors of a transaction that met with another one."""
_PASSES: Final = ("08", "40", "53", "55P03", "57")
"""What the codes of errors that pass begin with. Class 53 is a full disk or too little memory."""

# They notice a dead network. Without them, that takes hours.
_CONNECTION: Final = {
    "connect_timeout": "10",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": f"{1000 * LEASE}",
    # After a failover, the old standby may not have been promoted yet.
    "target_session_attrs": "read-write",
    "application_name": "creduse",
}
_SESSION: Final = f"""
    SET idle_session_timeout = '{LEASE}s';
    SET idle_in_transaction_session_timeout = '{LEASE}s';
    SET lock_timeout = '{LEASE}s';
    SET tcp_keepalives_idle = '10s';
    SET tcp_keepalives_interval = '5s';
    SET tcp_keepalives_count = 3;
    SET tcp_user_timeout = '{LEASE}s';
    SET client_min_messages = warning;
    SELECT set_config('synchronous_commit', 'on', false)
    WHERE current_setting('synchronous_commit') IN ('off', 'local');
"""
_LOCKED: Final = """
    pg_locks WHERE locktype = 'advisory' AND objsubid = 1 AND granted
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
"""The locks of this kind that are held."""
_KEY: Final = "(classid::bigint << 32) | objid::bigint"
IS_ALIVE: Final = f"owner IN (SELECT {_KEY} FROM {_LOCKED})"  # noqa: S608 - ours
"""Whether the owner of a row lives, in SQL."""


@dataclass(frozen=True, slots=True)
class Schema:
    """Tables. They are made in the first schema of the search path, if they are not there."""

    table: str
    """One of them, which is there if all are."""
    statements: tuple[str, ...]


class Lock(NamedTuple):
    """What a process wants to own."""

    name: str
    description: str
    """What it is, for messages."""


def connect(url: str) -> Connection:
    """Connect to a server.

    Raises:
        JournalError: The URL is wrong.
        psycopg.Error: The server cannot be used.
    """
    try:
        parameters = _CONNECTION | conninfo_to_dict(url)
        texts = {name: str(value) for name, value in parameters.items()}
        return psycopg.connect(make_conninfo("", **texts), autocommit=True)
    except (psycopg.ProgrammingError, UnicodeError):
        # The message can show a part of the password.
        raise JournalError(
            f"{without_password(url)} is not a URL such as postgresql://user@host/database; "
            "special characters must be percent-encoded"
        ) from None


@contextlib.contextmanager
def as_journal_errors(url: str) -> Generator[None]:
    """Raise errors of PostgreSQL as `JournalError`."""
    try:
        yield
    except psycopg.Error as error:
        raise failure(url, error) from error


def make_tables(url: str, connection: Connection, schema: Schema) -> int:
    """Make the tables if they are not there, and return the number of ``schema.table``.

    Raises:
        JournalError: The server is too old, or does not sync.
    """
    version = connection.info.server_version
    if version < _OLDEST:
        raise JournalError(
            f"a journal needs PostgreSQL 14 or later; {without_password(url)} has {version // 10000}"
        )
    if scalar(connection, "SHOW fsync") != "on":
        raise JournalError(
            f"{without_password(url)} cannot keep a journal: fsync is off there, so a crash would "
            "forget what was sent"
        )
    if table_number(connection, schema) is None:
        # Two processes can begin at the same time. An app can make them in a transaction of its own.
        with connection.transaction():
            connection.execute(f"SET LOCAL lock_timeout = '{LEASE}s'".encode())
            connection.execute(f"SELECT {TABLES_LOCK}")
            for statement in schema.statements:
                connection.execute(statement.encode())
    number = table_number(connection, schema)
    assert number is not None  # noqa: S101 - it was made
    return number


def table_number(connection: Connection, schema: Schema) -> int | None:
    """Return the number of ``schema.table``, or ``None`` if it is not there."""
    number: int | None = scalar(connection, "SELECT to_regclass(%s)::oid::bigint", (schema.table,))
    return number


def lock_key(table: int, name: str) -> int:
    """Return the key of a lock. ``table``: the number of a table, since all schemas share locks."""
    digest = hashlib.sha256(f"{table} {name}".encode()).digest()
    return int.from_bytes(digest[:8]) >> 1  # it is signed there


def is_locked(connection: Connection, key: int) -> bool:
    """Return whether somebody holds this lock."""
    found: int = scalar(
        connection,
        f"SELECT count(*) FROM {_LOCKED} AND {_KEY} = %s",  # noqa: S608 - ours
        (key,),
    )
    return found > 0


class Postgres(Committer[Connection]):
    """A connection, its thread, and what this process owns. Its locks last until it is closed."""

    def __init__(
        self,
        url: str,
        schema: Schema,
        begin: Callable[[Connection, int], object],
        locks: Sequence[Lock] = (),
        *,
        is_owner: Callable[[Connection, int], bool] | None = None,
        patience: float | None = None,
    ) -> None:
        """Connect. ``begin`` is the first operation, with the number of the new owner.

        ``is_owner``: whether nobody else has owned the locks since, when the connection was lost.
        ``patience``: seconds to try again then.

        Raises:
            JournalError: Another process owns one of the locks, or the server cannot be used.
        """
        patience = PATIENCE if patience is None else patience
        session = self._session = _Session(url, is_owner, patience)
        with as_journal_errors(url):
            try:
                session.open(schema, begin, locks)
            except BaseException:
                session.close()
                raise
        super().__init__(without_password(url), session)

    @property
    def owner(self) -> int:
        """The number of this process as an owner, which rows have. For operations."""
        return self._session.owner

    def check_owner(self) -> None:
        """Raise `LostError` if another process owns what this one has owned. For operations."""
        if self._session.lost is not None:
            raise LostError(self._session.lost)

    def give_up(self) -> None:
        """Do not wait any more for a connection that is lost."""
        self._session.patience = 0.0


class _Session:
    """Carries out operations, and connects again when a connection is lost."""

    idle_limit: float | None = LEASE / 3

    def __init__(
        self, url: str, is_owner: Callable[[Connection, int], bool] | None, patience: float
    ) -> None:
        self._url = url
        self._is_owner = is_owner
        self.owner = secrets.randbits(62)
        self.patience = patience
        self._locks: list[tuple[int, str]] = []
        self._connection: Connection | None = None
        self._process = 0
        self.lost: str | None = None

    def open(
        self,
        schema: Schema,
        begin: Callable[[Connection, int], object],
        locks: Sequence[Lock],
    ) -> None:
        connection = self._connection = connect(self._url)
        connection.execute(_SESSION.encode())
        table = make_tables(self._url, connection, schema)
        self._locks = [(lock_key(table, lock.name), lock.description) for lock in locks]
        if (taken := self._own(connection)) is not None:
            raise InUseError(f"{taken} is in use: another process sends it")
        with connection.transaction():
            begin(connection, self.owner)

    def _own(self, connection: Connection) -> str | None:
        """Take all locks. Return what another process owns, if it does."""
        # The server may not have seen that an earlier connection has ended.
        ended = connection.execute(
            f"SELECT pg_terminate_backend(pid, 5000) FROM {_LOCKED} AND {_KEY} = %s",  # noqa: S608 - ours
            (self.owner,),
        ).fetchall()
        if not all(it for (it,) in ended):  # nobody else has taken over, so try again
            raise psycopg.OperationalError("an earlier connection of this process has not ended")
        until = time.monotonic() + _LOCK_PATIENCE
        for key, description in self._locks:
            while not _try_lock(connection, key):
                if time.monotonic() > until:
                    return description
                time.sleep(_BETWEEN_TRIES)
        # The last one: a process that takes over leaves the rows of an owner that has its lock.
        _try_lock(connection, self.owner)
        self._process = scalar(connection, "SELECT pg_backend_pid()")
        return None

    def _connected(self) -> Connection:
        """Return the connection. If it was lost, make another one, and take the locks again."""
        if self._connection is None or self._connection.closed:
            self._connection = None
            connection = connect(self._url)
            try:
                connection.execute(_SESSION.encode())
                if self.lost is None and (taken := self._own_again(connection)) is not None:
                    self.lost = f"another process has taken over {taken}"
                    connection.execute("SELECT pg_advisory_unlock_all()")
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    def _own_again(self, connection: Connection) -> str | None:
        taken = self._own(connection)
        if taken is None and self._is_owner and not self._is_owner(connection, self.owner):
            return self._locks[0][1]  # another process had it, and has ended since
        return taken

    def commit(self, batch: Batch[Connection]) -> None:
        """Carry out operations in a transaction.

        If the connection is lost, even during the commit, they are carried out again, so a second time
        must change nothing. If one of them fails, the others are carried out alone.
        """
        began = time.monotonic()
        while True:
            try:
                ends = self._transaction(batch)
            except JournalError as error:
                self.close()
                return fail(batch, error)
            except psycopg.Error as error:
                if self._roll_back(error):
                    if len(batch) > 1:
                        for operation in batch:
                            self.commit([operation])
                        return None
                    return fail(batch, failure(self._url, error))
                if time.monotonic() > began + self.patience:
                    # Nobody will write how those calls have ended, so their rows need a dead owner.
                    self.close()
                    self.owner = secrets.randbits(62)
                    return fail(batch, failure(self._url, error))
                time.sleep(_BETWEEN_TRIES)
            else:
                for end in ends:
                    end()
                return None

    def _transaction(self, batch: Batch[Connection]) -> list[Callable[[], object]]:
        connection = self._connected()
        connection.execute("BEGIN")
        if self.lost is None and scalar(connection, "SELECT pg_backend_pid()") != self._process:
            raise JournalError(
                f"{without_password(self._url)} is a pooler that changes connections between "
                "transactions, so locks are lost there: connect to the server itself"
            )
        ends = carry_out(connection, batch, psycopg.Error)
        connection.execute("COMMIT")
        return ends

    def _roll_back(self, error: psycopg.Error) -> bool:
        """End a transaction that failed. Return whether an operation is wrong, and would fail again."""
        if self._connection is None or self._connection.closed:
            return False
        with contextlib.suppress(psycopg.Error):
            self._connection.execute("ROLLBACK")
        return not isinstance(error, _AGAIN)

    def keep_alive(self) -> None:
        """Show the server that this process lives."""
        with contextlib.suppress(psycopg.Error):  # the next operation tries again
            self._connected().execute("SELECT 1")

    def close(self) -> None:
        """Give up all locks."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(psycopg.Error):
                connection.execute("SELECT pg_advisory_unlock_all()")
            connection.close()


def _try_lock(connection: Connection, key: int) -> bool:
    taken: bool = scalar(connection, "SELECT pg_try_advisory_lock(%s)", (key,))
    return taken


def scalar(connection: Connection, query: LiteralString, values: Sequence[object] = ()) -> Any:
    """Return the first value of the first row."""
    found = connection.execute(query, values).fetchone()
    return None if found is None else found[0]


def rows(
    connection: Connection, query: LiteralString, values: Sequence[object]
) -> list[dict[str, Any]]:
    """Return rows by the names of their columns."""
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(query, values).fetchall()


def failure(url: str, error: psycopg.Error) -> JournalError:
    """Return what an error of PostgreSQL means."""
    text = error.diag.message_primary or next(iter(str(error).splitlines()), "no connection")
    # libpq gives no code if it cannot connect.
    code = error.sqlstate or ("08000" if isinstance(error, psycopg.OperationalError) else "")
    kind = UnavailableError if code.startswith(_PASSES) else JournalError
    return kind(f"{without_password(url)} cannot be used: {text}")
