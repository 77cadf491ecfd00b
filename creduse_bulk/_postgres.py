"""The journal of a run in PostgreSQL. What it keeps, in any database, is in `_items`.

Runs are known by the names of their files. A process owns a shard of a run, or all of them. It sends only
what it has claimed, and a claim succeeds only if the row is free. So even two processes that believe to own
a shard do not send an item twice. How a process connects (`creduse_journal.postgres`) does not belong here.
"""

import hmac
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from functools import partial
from typing import Any, Final, NamedTuple, TypeAlias
from uuid import UUID

from creduse_core.secret import Secret
from creduse_journal import RULES, Change, InUseError, JournalError, LostError, State
from creduse_journal._states import is_settled, state_after
from creduse_journal.future import Future
from creduse_journal.postgres import (
    IS_ALIVE,
    Connection,
    Lock,
    Postgres,
    Schema,
    as_journal_errors,
    connect,
    is_locked,
    lock_key,
    make_tables,
    scalar,
    table_number,
)
from creduse_journal.urls import without_password

from ._input import Overview, Shard, shard_of
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
    name_of,
    new_salt,
)
from ._records import InputError

PATIENCE: Final = 300.0
"""Seconds to try again when the connection is lost. Then what is in flight becomes unclear."""

_SHOWN: Final = 5
"""Shards that a message names."""

_SCHEMA: Final = Schema(
    "creduse_items",
    (
        """CREATE TABLE IF NOT EXISTS creduse_runs (
            run integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            name text NOT NULL UNIQUE,
            method text NOT NULL,
            digest text NOT NULL,
            base_url text NOT NULL,
            shards integer NOT NULL,
            salt text NOT NULL,
            key text NOT NULL
        )""",
        """CREATE TABLE IF NOT EXISTS creduse_shards (
            run integer NOT NULL REFERENCES creduse_runs ON DELETE CASCADE,
            shard integer NOT NULL,
            items bigint NOT NULL,
            stopped text,
            owner bigint,
            PRIMARY KEY (run, shard)
        )""",
        """CREATE TABLE IF NOT EXISTS creduse_items (
            run integer NOT NULL REFERENCES creduse_runs ON DELETE CASCADE,
            number bigint NOT NULL,
            shard integer NOT NULL,
            state text NOT NULL,
            end_user_id uuid NOT NULL,
            owner bigint NOT NULL,
            began_at double precision NOT NULL,
            changed_at double precision NOT NULL,
            before text,
            event text,
            status integer,
            error_code text,
            note text,
            PRIMARY KEY (run, number)
        )""",
        # One item at a time for a user, and none after an unclear one.
        """CREATE INDEX IF NOT EXISTS creduse_items_open ON creduse_items (run, end_user_id)
            WHERE state IN ('claimed', 'unclear')""",
    ),
)

# A late end is written, too, unless somebody has claimed the item since.
_END: Final = """
    UPDATE creduse_items AS it SET
        state = new.state, event = new.event, status = new.status, error_code = new.error_code,
        changed_at = %(now)s, before = CASE new.state WHEN 'unclear' THEN it.before END
    FROM unnest(
        %(numbers)s::bigint[], %(states)s::text[], %(events)s::text[], %(statuses)s::integer[],
        %(codes)s::text[]
    ) AS new(number, state, event, status, error_code)
    WHERE it.run = %(run)s AND it.number = new.number AND it.owner = %(owner)s
    AND it.state IN ('claimed', 'unclear', 'free')
"""
_CLAIM: Final = """
    INSERT INTO creduse_items AS it (
        run, number, shard, state, end_user_id, owner, began_at, before, changed_at
    )
    SELECT %(run)s, number, shard, 'claimed', end_user_id, %(owner)s, began_at, before, began_at
    FROM unnest(
        %(numbers)s::bigint[], %(shards)s::integer[], %(users)s::uuid[],
        %(began)s::double precision[], %(before)s::text[]
    ) AS new(number, shard, end_user_id, began_at, before)
    WHERE NOT EXISTS (
        SELECT 1 FROM creduse_items AS other WHERE other.run = %(run)s
        AND other.end_user_id = new.end_user_id AND other.state IN ('claimed', 'unclear')
    )
    ON CONFLICT (run, number) DO UPDATE SET
        state = excluded.state, owner = excluded.owner, began_at = excluded.began_at,
        before = excluded.before, changed_at = excluded.changed_at,
        event = NULL, status = NULL, error_code = NULL
    WHERE it.state = 'free'
"""
# Those, too, that were claimed before the connection was lost during the commit.
_CLAIMED: Final = """
    SELECT it.number FROM creduse_items AS it
    JOIN unnest(%(numbers)s::bigint[], %(began)s::double precision[]) AS new(number, began_at)
    ON it.number = new.number AND it.began_at = new.began_at
    WHERE it.run = %(run)s AND it.owner = %(owner)s AND it.state = 'claimed'
"""


_Shards: TypeAlias = tuple[int, list[int]]
"""A run, and the numbers of some of its shards."""


class _Run(NamedTuple):
    """A row of the runs."""

    run: int
    method: str
    digest: str
    base_url: str
    shards: int
    salt: str
    key: str


class PostgresPlace:
    """The journal of a run in PostgreSQL, or of a shard of it."""

    def __init__(self, url: str, name: str, shard: Shard | None) -> None:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise InputError(f"{name!r}: the name of the file must be valid Unicode") from None
        self.url = url
        self._name = name
        self._shard = shard

    def __str__(self) -> str:
        return f"{self._name} in {without_password(self.url)}"

    def open(
        self, identity: Identity, api_key: Secret, overview: Overview | None
    ) -> "PostgresItems":
        """Open the journal, or make it."""
        with as_journal_errors(self.url), closing(connect(self.url)) as connection:
            table = make_tables(self.url, connection, _SCHEMA)
            with connection.transaction():
                if overview is not None:
                    self._make(connection, identity, api_key, overview)
                run = self.find(connection)
                if run is None:
                    raise JournalError(f"{self}: somebody has deleted the run")
                check_identity(self, self.identity_of(run), identity)
                self._check_key(connection, table, run, api_key)
        return PostgresItems(self.url, run, self.numbers(run), self.locks(run))

    def _make(
        self, connection: Connection, identity: Identity, api_key: Secret, overview: Overview
    ) -> None:
        """Make a run, unless another process does at the same time."""
        salt, count = new_salt(), 1 if self._shard is None else self._shard.count
        made = scalar(
            connection,
            "INSERT INTO creduse_runs (name, method, digest, base_url, shards, salt, key) "
            "VALUES (%s, %s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING RETURNING run",
            (
                self._name,
                identity.method,
                identity.digest,
                identity.base_url,
                count,
                salt,
                fingerprint(api_key, salt),
            ),
        )
        if made is not None:
            with connection.cursor() as cursor:
                cursor.executemany(
                    "INSERT INTO creduse_shards VALUES (%s, %s, %s, %s)",
                    [
                        (made, part, overview.parts.get(part, (0, 0))[0], "it has not begun")
                        for part in range(1, count + 1)
                    ],
                )

    def _check_key(self, connection: Connection, table: int, run: _Run, api_key: Secret) -> None:
        key = fingerprint(api_key, run.salt)
        if hmac.compare_digest(run.key, key):
            return
        keys = [lock_key(table, _lock_name(run, it + 1)) for it in range(run.shards)]
        if any(is_locked(connection, key) for key in keys):
            raise InUseError(f"{self} is in use: another process sends it, with another API key")
        query = "SELECT EXISTS (SELECT 1 FROM creduse_items WHERE run = %s AND state <> 'free')"
        if scalar(connection, query, (run.run,)):
            raise JournalError(OTHER_KEY.format(self))
        # That key was rejected, or nothing was sent yet.
        connection.execute("UPDATE creduse_runs SET key = %s WHERE run = %s", (key, run.run))

    def find(self, connection: Connection) -> _Run | None:
        """Return the run, if it has begun."""
        names = ", ".join(_Run._fields)
        found = connection.execute(
            f"SELECT {names} FROM creduse_runs WHERE name = %s".encode(),  # noqa: S608 - ours
            (self._name,),
        ).fetchone()
        return None if found is None else _Run(*found)

    def identity_of(self, run: _Run) -> Identity:
        """Return what a run is, and which shard of it this place is."""
        shard = name_of(self._shard)
        if self._shard is not None and self._shard.count != run.shards:
            shard = name_of(None) if run.shards == 1 else f"{run.shards} shards"
        return Identity(run.method, run.digest, run.base_url, shard)

    def numbers(self, run: _Run) -> list[int]:
        """Return the numbers of the shards that belong to this place: one, or all."""
        return [*range(1, run.shards + 1)] if self._shard is None else [self._shard.number]

    def locks(self, run: _Run) -> list[Lock]:
        """Return the locks of these shards."""
        return [
            Lock(
                _lock_name(run, number),
                f"{self}" if run.shards == 1 else f"shard {number}/{run.shards} of {self}",
            )
            for number in self.numbers(run)
        ]

    @contextmanager
    def read(self) -> "Generator[PostgresReader | None]":
        """Open the journal to read it."""
        with as_journal_errors(self.url), closing(connect(self.url)) as connection:
            table = table_number(connection, _SCHEMA)
            with connection.transaction():
                # All that is read is of the same moment.
                connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
                run = None if table is None else self.find(connection)
                if table is None or run is None:
                    yield None
                    return
                owned = {
                    number
                    for number in self.numbers(run)
                    if is_locked(connection, lock_key(table, _lock_name(run, number)))
                }
                yield PostgresReader(
                    connection,
                    run.run,
                    self.numbers(run),
                    self._begun(connection, run, owned),
                    is_going_on=bool(owned),
                )

    def _begun(self, connection: Connection, run: _Run, owned: set[int]) -> Begun:
        shards = connection.execute(
            "SELECT shard, items, stopped FROM creduse_shards "
            "WHERE run = %s AND shard = ANY(%s) ORDER BY shard",
            (run.run, self.numbers(run)),
        ).fetchall()
        stopped: dict[str, list[str]] = {}
        for number, _, why in shards:
            if why is not None and number not in owned:
                stopped.setdefault(why, []).append(f"{number}/{run.shards}")
        return Begun(
            self.identity_of(run),
            sum(items for _, items, _ in shards),
            _reasons(stopped, len(shards)),
        )


def _reasons(stopped: Mapping[str, Sequence[str]], count: int) -> str | None:
    """Return why shards have stopped, and which ones if others have not, or for another reason."""
    parts: list[str] = []
    for why, shards in stopped.items():
        more = ", …" if len(shards) > _SHOWN else ""
        which = "" if len(shards) == count else f"shard {', '.join(shards[:_SHOWN])}{more}: "
        parts.append(f"{which}{why}")
    return "; ".join(parts) or None


def _lock_name(run: _Run, number: int) -> str:
    return f"run {run.run}, shard {number}"


class PostgresReader:
    """A journal that somebody reads. See `Reader`."""

    def __init__(
        self,
        connection: Connection,
        run: int,
        shards: list[int],
        begun: Begun,
        *,
        is_going_on: bool,
    ) -> None:
        self._connection = connection
        self._key = (run, shards)
        self._begun = begun
        self.is_going_on = is_going_on

    def begun(self) -> Begun:
        """Return what the journal says of its run."""
        return self._begun

    def counts(self) -> dict[State, int]:
        """Return how many rows there are in each state."""
        return _counts(self._connection, self._key)

    def rows(self) -> Iterator[Row]:
        """Return all rows."""
        names = ", ".join("end_user_id" if it == "user" else it for it in Row._fields)
        # Not all at once.
        with self._connection.cursor("creduse_rows") as cursor:
            cursor.itersize = 1000
            cursor.execute(
                f"SELECT {names} FROM creduse_items WHERE run = %s AND shard = ANY(%s) "  # noqa: S608 - ours
                "ORDER BY number".encode(),
                self._key,
            )
            for row in cursor:
                yield Row(*row)._replace(state=State(row[1]))

    def unclear_users(self) -> set[UUID]:
        """Return the users who have an unclear item."""
        found = self._connection.execute(
            "SELECT DISTINCT end_user_id FROM creduse_items WHERE run = %s AND shard = ANY(%s) "
            "AND state IN ('claimed', 'unclear')",
            self._key,
        )
        return {user for (user,) in found}


class PostgresItems:
    """The open journal of a run. See `Items`."""

    def __init__(self, url: str, run: _Run, shards: list[int], locks: Sequence[Lock]) -> None:
        self._run = run
        self._shards = shards
        self._key = (run.run, shards)
        self._database = Postgres(
            url,
            _SCHEMA,
            partial(_begin, self._key),
            locks,
            is_owner=partial(_is_owner, self._key),
            patience=PATIENCE,
        )
        self.close = self._database.close
        self.give_up = self._database.give_up

    def write(self, ended: Sequence[Ended], claims: Sequence[Claim]) -> Future[set[int]]:
        """Write how calls have ended, then claim items."""
        return self._database.submit(lambda connection: self._write(connection, ended, claims))

    def _write(
        self, connection: Connection, ended: Sequence[Ended], claims: Sequence[Claim]
    ) -> set[int]:
        ours = {"run": self._run.run, "owner": self._database.owner}
        if ended:
            connection.execute(_END, ours | columns_of(ended))
        if not claims:
            return set()
        self._database.check_owner()
        firsts = first_of_each_user(claims)
        values = ours | {
            "numbers": [it.number for it in firsts],
            "shards": [self._shard_of(it.user) for it in firsts],
            "users": [it.user for it in firsts],
            "began": [it.began_at for it in firsts],
            "before": [it.before for it in firsts],
        }
        connection.execute(_CLAIM, values)
        return {number for (number,) in connection.execute(_CLAIMED, values)}

    def _shard_of(self, user: str) -> int:
        return self._shards[0] if len(self._shards) == 1 else shard_of(UUID(user), self._run.shards)

    def counts(self) -> Future[dict[State, int]]:
        """Return how many rows there are in each state."""
        return self._database.submit(lambda connection: _counts(connection, self._key))

    def taken(self, first: int, last: int) -> Future[set[int]]:
        """Return the numbers, from ``first`` to ``last``, of items that must not be sent."""

        def act(connection: Connection) -> set[int]:
            found = connection.execute(
                "SELECT number FROM creduse_items "
                "WHERE run = %s AND number BETWEEN %s AND %s AND state <> 'free'",
                (self._run.run, first, last),
            )
            return {number for (number,) in found}

        return self._database.submit(act)

    def settle(self, decisions: Sequence[tuple[int, Change, str]]) -> Future[None]:
        """Change the states of items by decisions with notes, if the rules allow all of them."""
        return self._database.submit(lambda connection: self._settle(connection, decisions))

    def _settle(self, connection: Connection, decisions: Sequence[tuple[int, Change, str]]) -> None:
        self._database.check_owner()
        run, now = self._run.run, time.time()
        found: dict[int, tuple[State, str | None]] = {
            number: (State(state), note)
            for number, state, note in connection.execute(
                "SELECT number, state, note FROM creduse_items "
                "WHERE run = %s AND number = ANY(%s) FOR UPDATE",
                (run, [number for number, _, _ in decisions]),
            )
        }
        settled: list[tuple[State, str, float, int, int]] = []
        for number, change, note in decisions:
            state, noted = found.get(number, (State.FREE, None))
            # The second time if the connection was lost during the commit.
            if noted != note or not is_settled(state, change):
                settled.append((state_after(state, change), note, now, run, number))
        with connection.cursor() as cursor:
            cursor.executemany(
                "UPDATE creduse_items SET state = %s, note = %s, changed_at = %s "
                "WHERE run = %s AND number = %s",
                settled,
            )

    def set_stopped(self, why: str | None) -> Future[None]:
        """Keep why the run does not go on, or ``None`` if it has done what it can."""

        def act(connection: Connection) -> None:
            with suppress(LostError):  # the new owner knows
                self._database.check_owner()
                connection.execute(
                    "UPDATE creduse_shards SET stopped = %s WHERE run = %s AND shard = ANY(%s)",
                    (why, *self._key),
                )

        return self._database.submit(act)

    def annotate(self, number: int, note: str) -> Future[None]:
        """Keep what is known of an item, without a decision."""

        def act(connection: Connection) -> None:
            self._database.check_owner()
            connection.execute(
                "UPDATE creduse_items SET note = %s WHERE run = %s AND number = %s",
                (note, self._run.run, number),
            )

        return self._database.submit(act)


def columns_of(ended: Sequence[Ended]) -> dict[str, Any]:
    """Return how calls have ended, a list for each column."""
    after = RULES[State.CLAIMED]
    return {
        "now": time.time(),
        "numbers": [it.number for it in ended],
        "states": [after[it.change] for it in ended],
        "events": [it.event for it in ended],
        "statuses": [it.status for it in ended],
        "codes": [it.error_code for it in ended],
    }


def _begin(shards: _Shards, connection: Connection, owner: int) -> None:
    connection.execute(
        "UPDATE creduse_shards SET owner = %s WHERE run = %s AND shard = ANY(%s)", (owner, *shards)
    )
    # Those of a dead process, or of one that has lost its locks.
    connection.execute(
        "UPDATE creduse_items SET state = 'unclear', changed_at = %s "
        "WHERE run = %s AND shard = ANY(%s) AND state = 'claimed' AND owner <> %s",
        (time.time(), *shards, owner),
    )


def _is_owner(shards: _Shards, connection: Connection, owner: int) -> bool:
    others: int = scalar(
        connection,
        "SELECT count(*) FROM creduse_shards WHERE run = %s AND shard = ANY(%s) AND owner <> %s",
        (*shards, owner),
    )
    return not others


def _counts(connection: Connection, shards: _Shards) -> dict[State, int]:
    query = f"""
        SELECT CASE WHEN state = 'claimed' AND NOT {IS_ALIVE} THEN 'unclear' ELSE state END, count(*)
        FROM creduse_items WHERE run = %s AND shard = ANY(%s) GROUP BY 1
    """  # noqa: S608 - ours
    found: dict[str, int] = dict(connection.execute(query, shards).fetchall())
    return {state: found.get(state, 0) for state in State}
