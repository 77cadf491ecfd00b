"""Entries that apps insert into the table of `creduse_journal` in PostgreSQL, and how they are claimed.

How they are sent (`_driver`) does not belong here.
"""

from collections.abc import Sequence
from decimal import Decimal
from typing import Any, Final
from uuid import uuid4

from creduse_journal import Change
from creduse_journal._postgres_store import SCHEMA, doubt
from creduse_journal.committer import wait_for
from creduse_journal.future import Future
from creduse_journal.postgres import Connection, Lock, Postgres
from creduse_journal.urls import without_password

from ._input import Item, Shard
from ._items import Claim, Ended, first_of_each_user
from ._postgres import PATIENCE, columns_of

_MOST: Final = 1000
"""Entries at a time."""

# The shard is that of `Shard`: the first 8 bytes of a hash, as a number without a sign.
_WAITING: Final = """
    SELECT number, method, end_user_id, trim_scale(amount), trim_scale(validity_days)
    FROM creduse_entries AS it
    WHERE state = 'free' AND queued AND number <> ALL(%(known)s)
    AND coalesce(base_url, %(base_url)s) = %(base_url)s
    AND (%(count)s = 1 OR mod(
        ('x' || encode(substr(sha256(uuid_send(end_user_id)), 1, 4), 'hex'))::bit(32)::bigint
            * 4294967296::numeric
        + ('x' || encode(substr(sha256(uuid_send(end_user_id)), 5, 4), 'hex'))::bit(32)::bigint,
        %(count)s
    ) = %(shard)s - 1)
    AND NOT EXISTS (
        SELECT 1 FROM creduse_entries AS other
        WHERE other.end_user_id = it.end_user_id AND other.state IN ('claimed', 'unclear')
    )
    ORDER BY number LIMIT %(most)s
"""
_CLAIM: Final = """
    UPDATE creduse_entries AS it SET
        state = 'claimed', claim = %(claim)s, owner = %(owner)s, base_url = %(base_url)s,
        began_at = new.began_at, before = new.before, changed_at = new.began_at,
        event = NULL, status = NULL, error_code = NULL, body = NULL, ended_at = NULL
    FROM unnest(
        %(numbers)s::bigint[], %(began)s::double precision[], %(before)s::text[],
        %(methods)s::text[], %(users)s::uuid[], %(amounts)s::numeric[], %(days)s::numeric[]
    ) AS new(number, began_at, before, method, end_user_id, amount, validity_days)
    WHERE it.number = new.number AND it.state = 'free' AND it.queued
    -- An app may have changed it since it was read.
    AND (it.method, it.end_user_id) = (new.method, new.end_user_id)
    AND it.amount IS NOT DISTINCT FROM new.amount
    AND it.validity_days IS NOT DISTINCT FROM new.validity_days
    AND coalesce(it.base_url, %(base_url)s) = %(base_url)s
    -- A user's entries are sent in their order, even if an earlier one was skipped.
    AND NOT EXISTS (
        SELECT 1 FROM creduse_entries AS other
        WHERE other.end_user_id = it.end_user_id AND other.state IN ('claimed', 'unclear')
    )
    AND NOT EXISTS (
        SELECT 1 FROM creduse_entries AS other
        WHERE other.end_user_id = it.end_user_id AND other.number < it.number
        AND other.state = 'free' AND other.queued
        AND coalesce(other.base_url, %(base_url)s) = %(base_url)s
    )
    -- An entry that an app has locked waits, and holds up no others.
    AND it.number IN (
        SELECT number FROM creduse_entries WHERE number = ANY(%(numbers)s) AND state = 'free'
        FOR UPDATE SKIP LOCKED
    )
"""
# Those, too, that were claimed before the connection was lost during the commit.
_CLAIMED: Final = """
    SELECT it.number FROM creduse_entries AS it
    JOIN unnest(%(numbers)s::bigint[], %(began)s::double precision[]) AS new(number, began_at)
    ON it.number = new.number AND it.began_at = new.began_at
    WHERE it.claim = %(claim)s AND it.state = 'claimed'
"""
# A late end is written, too, unless somebody has claimed the entry since.
_END: Final = """
    UPDATE creduse_entries AS it SET
        state = new.state, event = new.event, status = new.status, error_code = new.error_code,
        body = new.body, ended_at = %(now)s, changed_at = %(now)s
    FROM unnest(
        %(numbers)s::bigint[], %(states)s::text[], %(events)s::text[], %(statuses)s::integer[],
        %(codes)s::text[], %(bodies)s::bytea[]
    ) AS new(number, state, event, status, error_code, body)
    WHERE it.number = new.number AND it.claim = %(claim)s
    AND it.state IN ('claimed', 'unclear', 'free')
"""


class Outbox:
    """The entries that wait for a process that follows. It is the source of items, and keeps them.

    Raises:
        JournalError: Another process follows, or the server cannot be used.
    """

    interval = 0.5
    """Seconds until it looks again for entries."""

    def __init__(self, url: str, base_url: str, shard: Shard) -> None:
        self._shard = shard
        what = "" if shard.count == 1 else f"shard {shard} of "
        lock = Lock(f"follow {shard}", f"{what}{without_password(url)}")
        self._database = Postgres(url, SCHEMA, doubt, [lock], patience=PATIENCE)
        self.close = self._database.close
        self.give_up = self._database.give_up
        self._claim = uuid4().hex
        self._base_url = base_url
        # Those that were returned, and have not ended.
        self._known: dict[int, Item] = {}

    def _ours(self) -> dict[str, Any]:
        return {
            "owner": self._database.owner,
            "claim": self._claim,
            "base_url": self._base_url,
        }

    async def more(self) -> list[Item]:
        """Return entries that wait, and whose users have none that is being sent or unclear."""
        found = await wait_for(self._database.submit(self._find))
        self._known |= {item.number: item for item in found}
        return found

    def _find(self, connection: Connection) -> list[Item]:
        values = self._ours() | {
            "known": list(self._known),
            "count": self._shard.count,
            "shard": self._shard.number,
            "most": _MOST,
        }
        return [
            Item(
                number,
                method,
                user,
                None if amount is None else int(amount),
                None if days is None else int(days),
            )
            for number, method, user, amount, days in connection.execute(_WAITING, values)
        ]

    def write(self, ended: Sequence[Ended], claims: Sequence[Claim]) -> Future[set[int]]:
        """Write how calls have ended, then claim entries. See `Items.write`."""
        firsts = first_of_each_user(claims)

        def act(connection: Connection) -> set[int]:
            if ended:
                connection.execute(
                    _END, self._ours() | columns_of(ended) | {"bodies": [it.body for it in ended]}
                )
            if not firsts:
                return set()
            self._database.check_owner()
            items = [self._known[it.number] for it in firsts]
            values = self._ours() | {
                "numbers": [it.number for it in firsts],
                "began": [it.began_at for it in firsts],
                "before": [it.before for it in firsts],
                "methods": [it.method for it in items],
                "users": [it.user for it in items],
                "amounts": [None if it.amount is None else Decimal(it.amount) for it in items],
                "days": [
                    None if it.validity_days is None else Decimal(it.validity_days) for it in items
                ],
            }
            connection.execute(_CLAIM, values)
            return {number for (number,) in connection.execute(_CLAIMED, values)}

        future = self._database.submit(act)
        future.add_done_callback(lambda it: self._forget(it, ended, claims))
        return future

    def _forget(
        self, future: Future[set[int]], ended: Sequence[Ended], claims: Sequence[Claim]
    ) -> None:
        """Forget entries that the driver does not hold any more. They can be returned again."""
        claimed: set[int] = set() if future.exception() else future.result()
        gone = {it.number for it in ended if it.change is not Change.RELEASE}
        for number in gone | ({it.number for it in claims} - claimed):
            self._known.pop(number, None)
