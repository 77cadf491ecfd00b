"""The entries of a journal in PostgreSQL, which many processes share.

Connections and locks (`postgres`), the table (`schema`), and what changes mean (`_states`), do not belong
here.
"""

import time
from typing import Any, Final, LiteralString

from ._entries import Row, check_same_call
from ._states import RULES, Change, State, is_settled, state_after
from .future import Future
from .postgres import IS_ALIVE, Connection, Postgres, Schema, rows
from .schema import STATEMENTS, TABLE

SCHEMA: Final = Schema(TABLE, STATEMENTS)

_COLUMNS: Final = """
    id, state, claim, base_url, method, end_user_id::text AS end_user_id,
    trim_scale(amount)::text AS amount,
    CASE WHEN method IN ('add', 'start_cycle') THEN trim_scale(validity_days)::text END
        AS validity_days,
    began_at, before, event, status, error_code, body, note, ended_at, changed_at
"""
_INSERT: Final = """
    INSERT INTO creduse_entries (
        id, method, end_user_id, amount, validity_days, queued,
        state, claim, owner, base_url, began_at, before, changed_at
    ) VALUES (
        %(id)s, %(method)s, %(end_user_id)s, %(amount)s::numeric, %(validity_days)s::numeric, false,
        'claimed', %(claim)s, %(owner)s, %(base_url)s, %(began_at)s, %(before)s, %(now)s
    )
    ON CONFLICT (id) DO NOTHING
"""
_CLAIM: Final = """
    UPDATE creduse_entries SET
        queued = false, state = 'claimed', claim = %(claim)s, owner = %(owner)s,
        base_url = %(base_url)s, began_at = %(began_at)s, before = %(before)s, changed_at = %(now)s,
        event = NULL, status = NULL, error_code = NULL, body = NULL, ended_at = NULL
    WHERE id = %(id)s
"""
_END: Final = """
    UPDATE creduse_entries SET
        state = %(state)s, event = %(event)s, status = %(status)s, error_code = %(error_code)s,
        body = %(body)s, ended_at = %(ended_at)s, changed_at = %(now)s
    WHERE id = %(id)s AND claim = %(claim)s AND state IN ('claimed', 'unclear', 'free')
"""
_DOUBT: Final = f"""
    UPDATE creduse_entries SET state = 'unclear', changed_at = extract(epoch FROM clock_timestamp())
    WHERE state = 'claimed' AND NOT {IS_ALIVE}
"""  # noqa: S608 - ours


class PostgresStore:
    """The entries. Each method returns a future, which ends after the commit."""

    def __init__(self, url: str) -> None:
        """Connect to the server.

        Raises:
            JournalError: It cannot be used.
        """
        self._database = Postgres(url, SCHEMA, doubt)
        self.close = self._database.close
        self.close_soon = self._database.close_soon

    def claim(self, row: Row) -> Future[Row]:
        """Claim an entry. See `Store.claim`."""
        return self._database.submit(
            lambda connection: _claim(connection, self._database.owner, row)
        )

    def end(self, entry_id: str, change: Change, claim: str, **columns: Any) -> Future[None]:
        """Change the state of an entry, if no other claim has followed this one.

        Others may have taken it for unclear meanwhile. This process knows better.
        """
        values = columns | {
            "id": entry_id,
            "claim": claim,
            "state": RULES[State.CLAIMED][change],
            "now": time.time(),
        }

        def act(connection: Connection) -> None:
            connection.execute(_END, values)

        return self._database.submit(act)

    def settle(self, entry_id: str, change: Change, note: str) -> Future[Row]:
        """Change the state of an entry by a decision. An unknown id raises ``KeyError``."""
        return self._database.submit(lambda connection: _settle(connection, entry_id, change, note))

    def get(self, entry_id: str) -> Future[Row | None]:
        """Return an entry."""

        def act(connection: Connection) -> Row | None:
            doubt(connection)
            return _get(connection, entry_id)

        return self._database.submit(act)

    def unclear(self) -> Future[list[Row]]:
        """Return all unclear entries, in the order in which they changed."""
        return self._find("WHERE state = 'unclear' ORDER BY changed_at")

    def of_user(self, user: str) -> Future[list[Row]]:
        """Return all entries of a user."""
        return self._find("WHERE end_user_id = %s", user)

    def _find(self, rest: LiteralString, *values: object) -> Future[list[Row]]:
        def act(connection: Connection) -> list[Row]:
            doubt(connection)
            return _rows(connection, rest, *values)

        return self._database.submit(act)


def doubt(connection: Connection, _: object = None) -> None:
    """Make entries unclear whose process was sending them, and lives no more."""
    connection.execute(_DOUBT)


def _rows(connection: Connection, rest: LiteralString, *values: object) -> list[Row]:
    return rows(connection, f"SELECT {_COLUMNS} FROM creduse_entries {rest}", values)  # noqa: S608 - ours


def _get(connection: Connection, entry_id: str, *, lock: bool = False) -> Row | None:
    rest: LiteralString = "WHERE id = %s FOR UPDATE" if lock else "WHERE id = %s"
    return next(iter(_rows(connection, rest, entry_id)), None)


def _claim(connection: Connection, owner: int, row: Row) -> Row:
    values = row | {"owner": owner, "now": time.time()}
    connection.execute(_INSERT, values)
    found = _get(connection, row["id"], lock=True)
    assert found is not None  # noqa: S101 - it was inserted, or was there
    check_same_call(found, row)
    # It is new, or was claimed before the connection was lost during the commit.
    if (found["claim"], found["state"]) == (row["claim"], State.CLAIMED):
        return found | {"state": State.FREE}
    if found["state"] == State.FREE:
        connection.execute(_CLAIM, values)
    return found


def _settle(connection: Connection, entry_id: str, change: Change, note: str) -> Row:
    doubt(connection)
    found = _get(connection, entry_id, lock=True)
    if found is None:
        raise KeyError(entry_id)
    state = State(found["state"])
    if found["note"] == note and is_settled(state, change):
        return found  # the connection was lost after the commit
    now = time.time()
    changed = {"state": state_after(state, change), "note": note, "ended_at": now}
    connection.execute(
        "UPDATE creduse_entries SET state = %s, note = %s, ended_at = %s, changed_at = %s WHERE id = %s",
        (*changed.values(), now, entry_id),
    )
    return found | changed | {"changed_at": now}
