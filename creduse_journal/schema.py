"""The table of entries in PostgreSQL. It needs no driver. What is done with it does not belong here.

`Journal` and ``creduse bulk follow`` make it if it is not there. An app that inserts entries can make it in
a migration of its own.
"""

from typing import Final

TABLE: Final = "creduse_entries"
TABLES_LOCK: Final = "pg_advisory_xact_lock(hashtext('creduse tables'))"
"""The lock of a transaction that makes tables."""

STATEMENTS: Final = (
    """CREATE TABLE IF NOT EXISTS creduse_entries (
    id text PRIMARY KEY CHECK (id ~ '\\S'),
    method text NOT NULL CHECK (method IN ('add', 'subtract', 'start_cycle', 'stop_cycle')),
    end_user_id uuid NOT NULL,
    amount numeric CHECK (amount >= 0 AND amount < 1e3000 AND amount = trunc(amount)),
    validity_days numeric DEFAULT 31 CHECK (
        validity_days >= 0 AND validity_days < 1e3000 AND validity_days = trunc(validity_days)
    ),
    queued boolean NOT NULL DEFAULT true,  -- whether follow sends it
    number bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
    state text NOT NULL DEFAULT 'free'
        CHECK (state IN ('free', 'claimed', 'applied', 'refused', 'unclear')),
    claim text,
    owner bigint,
    base_url text,
    began_at double precision,
    before text,
    event text,
    status integer,
    error_code text,
    body bytea,
    note text,
    ended_at double precision,
    changed_at double precision NOT NULL DEFAULT extract(epoch FROM clock_timestamp()),
    CONSTRAINT creduse_entries_amount_except_for_stop_cycle
        CHECK ((amount IS NULL) = (method = 'stop_cycle'))
)""",
    # Those that wait, in the order in which they were inserted.
    """CREATE INDEX IF NOT EXISTS creduse_entries_queue ON creduse_entries (number)
    WHERE state = 'free' AND queued""",
    """CREATE INDEX IF NOT EXISTS creduse_entries_queue_of_user
    ON creduse_entries (end_user_id, number) WHERE state = 'free' AND queued""",
    # Two processes cannot send for a user at the same time.
    """CREATE UNIQUE INDEX IF NOT EXISTS creduse_entries_sending ON creduse_entries (end_user_id)
    WHERE state = 'claimed' AND queued""",
    # None for a user after an unclear one.
    """CREATE INDEX IF NOT EXISTS creduse_entries_open ON creduse_entries (end_user_id)
    WHERE state IN ('claimed', 'unclear')""",
    "CREATE INDEX IF NOT EXISTS creduse_entries_users ON creduse_entries (end_user_id)",
)

# One statement, since some drivers accept only one at a time.
POSTGRES_SCHEMA: Final = "\n".join(
    ["DO $$ BEGIN", f"PERFORM {TABLES_LOCK};", *(f"{it};" for it in STATEMENTS), "END $$"]
)
"""SQL that makes the table ``creduse_entries``, if it is not there. `Journal` keeps its entries in it, and
``follow`` sends those that an app inserts."""
