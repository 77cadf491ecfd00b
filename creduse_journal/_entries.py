"""What a journal returns and raises, and how an entry is written as a row. SQL does not belong here."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, TypeAlias
from uuid import UUID

from creduse_core import (
    BalanceReading,
    CallRecord,
    CreduseError,
    Outcome,
)

from . import readings
from ._states import State

Row: TypeAlias = dict[str, Any]

COLUMNS: Final = {
    "id": "TEXT PRIMARY KEY",
    "state": "TEXT NOT NULL",
    "claim": "TEXT NOT NULL",
    "base_url": "TEXT NOT NULL",
    "method": "TEXT NOT NULL",
    "end_user_id": "TEXT NOT NULL",
    # As text, since integers of any size are allowed.
    "amount": "TEXT",
    "validity_days": "TEXT",
    "began_at": "REAL NOT NULL",
    "before": "TEXT",
    "event": "TEXT",
    "status": "INTEGER",
    "error_code": "TEXT",
    "body": "BLOB",
    "note": "TEXT",
    # When the caller knew the end; for one that was settled, when it was.
    "ended_at": "REAL",
    "changed_at": "REAL NOT NULL",
}
"""The columns of the table, with their types."""


class JournalError(RuntimeError):
    """The journal cannot be used: it is locked, on a full disk, or not a journal.

    `Journal.run` raises it before it sends anything.
    """


class InUseError(JournalError):
    """Another process, or another object of this one, has the journal open."""


class LostError(InUseError):
    """Another process has taken over what this one has owned, such as after this one was frozen."""


class UnavailableError(JournalError):
    """The database cannot be used at the moment. Try again later."""


class UnclearError(CreduseError):
    """A call with this id was sent before, and it is not known whether it was applied."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What a journal knows of a call."""

    id: str
    state: State
    call: CallRecord
    """What the call is. Its ``outcome`` says the same as ``state``."""
    event: str | None
    """What ended the last attempt, a key of ``creduse_core.EVENTS``."""
    status: int | None
    """The status code of the last response."""
    error_code: str | None
    """The service's own code."""
    note: str | None
    """Who has settled the entry, and why."""
    changed_at: datetime
    """When the state last changed, by this machine's clock."""


_OUTCOMES: Final = {
    State.FREE: Outcome.NOT_APPLIED,
    State.CLAIMED: Outcome.UNKNOWN,
    State.APPLIED: Outcome.APPLIED,
    State.REFUSED: Outcome.NOT_APPLIED,
    State.UNCLEAR: Outcome.UNKNOWN,
}


def row_of_call(call: CallRecord, began_at: datetime, before: BalanceReading | None) -> Row:
    """Return the columns that say what a call is."""
    return {
        "method": call.method,
        "end_user_id": str(call.end_user_id),
        "amount": None if call.amount is None else str(call.amount),
        "validity_days": None if call.validity_days is None else str(call.validity_days),
        "began_at": began_at.timestamp(),
        "before": None if before is None else readings.to_json(before),
    }


def check_same_call(found: Row, row: Row) -> None:
    """Raise ``ValueError`` if an entry is that of another call, or of another service."""
    names = ("method", "end_user_id", "amount", "validity_days")
    is_same = all(found[name] == row[name] for name in names)
    # An app that inserts an entry need not say at which service.
    if not is_same or (found["base_url"] or row["base_url"]) != row["base_url"]:
        amount = "" if found["amount"] is None else f", {found['amount']} credits"
        place = "" if found["base_url"] is None else f", at {found['base_url']}"
        raise ValueError(
            f"{row['id']!r} is the id of another call: {found['method']} for {found['end_user_id']}"
            f"{amount}{place}"
        )


def entry_of(row: Row) -> Entry:
    """Return the entry in a row."""
    state = State(row["state"])
    return Entry(
        row["id"],
        state,
        CallRecord(
            row["method"],
            UUID(row["end_user_id"]),
            None if row["amount"] is None else int(row["amount"]),
            None if row["validity_days"] is None else int(row["validity_days"]),
            _OUTCOMES[state],
            # An entry of an app's own has not begun.
            None if row["began_at"] is None else _moment(row["began_at"]),
            None
            if row["before"] is None
            else readings.from_json(row["before"], UUID(row["end_user_id"])),
        ),
        row["event"],
        row["status"],
        row["error_code"],
        row["note"],
        _moment(row["changed_at"]),
    )


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
