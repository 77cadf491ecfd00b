"""A journal of calls: a call with an id is sent at most once, across crashes and double deliveries.

Example::

    from creduse import CreduseClient
    from creduse_journal import Journal

    with CreduseClient() as client, Journal("credits.journal") as journal:
        call = client.protocol.subtract(end_user_id, 50)
        journal.run(client, "invoice-42", call)  # sends nothing if invoice-42 was sent before

`AsyncJournal` has the same methods for asynchronous clients, on asyncio and trio. The journal is a
SQLite file on a local disk, which one process has open at a time, or a table in PostgreSQL, which
many processes share.
"""

from ._entries import (
    Entry,
    InUseError,
    JournalError,
    LostError,
    UnavailableError,
    UnclearError,
)
from ._journal import AsyncJournal, Journal
from ._states import RULES, Change, State
from .schema import POSTGRES_SCHEMA

__all__ = [
    "POSTGRES_SCHEMA",
    "RULES",
    "AsyncJournal",
    "Change",
    "Entry",
    "InUseError",
    "Journal",
    "JournalError",
    "LostError",
    "State",
    "UnavailableError",
    "UnclearError",
]
