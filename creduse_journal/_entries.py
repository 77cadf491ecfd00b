"""What a journal returns and raises, and how an entry is written as a row. SQL does not belong here."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, TypeAlias
from uuid import UUID

from creduse_core import (
    ActiveBalance,
    BalanceReading,
    CallRecord,
    CreduseError,
    Outcome,
)
from creduse_core.decoding import active_balance

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
    "changed_at": "REAL NOT NULL",
}
"""The columns of the table, with their types."""


class JournalError(RuntimeError):
    """The journal cannot be used: it is locked, on a full disk, or not a journal. Nothing was sent."""


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
        "before": None if before is None else _written(before),
    }


def is_same_call(row: Row, other: Row) -> bool:
    """Return whether two rows are of the same call of the same service."""
    names = ("base_url", "method", "end_user_id", "amount", "validity_days")
    return all(row[name] == other[name] for name in names)


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
            _moment(row["began_at"]),
            None if row["before"] is None else _read(row["before"], UUID(row["end_user_id"])),
        ),
        row["event"],
        row["status"],
        row["error_code"],
        row["note"],
        _moment(row["changed_at"]),
    )


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _written(reading: BalanceReading) -> str:
    """Return a reading as JSON, with the balance as the service sends it."""
    balance = reading.balance
    return json.dumps(
        {
            "asked_at": reading.asked_at.isoformat(),
            "received_at": reading.received_at.isoformat(),
            "date": None if reading.date is None else reading.date.isoformat(),
            "balance": None if balance is None else _balance_as_sent(balance),
        }
    )


def _balance_as_sent(balance: ActiveBalance) -> dict[str, Any]:
    return {
        "active_balance": balance.active_balance,
        "active_balance_by_cycle": [
            {
                "cycle_start": cycle.cycle_start.isoformat(),
                "cycle_end": cycle.cycle_end.isoformat(),
                "amount": cycle.amount,
                "starting_amount": cycle.starting_amount,
                "status": cycle.status,
                "cycle_type": cycle.cycle_type,
            }
            for cycle in balance.active_balance_by_cycle
        ],
    }


def _read(text: str, user: UUID) -> BalanceReading:
    data = json.loads(text)
    return BalanceReading(
        None if data["balance"] is None else active_balance(data["balance"], user),
        datetime.fromisoformat(data["asked_at"]),
        datetime.fromisoformat(data["received_at"]),
        None if data["date"] is None else datetime.fromisoformat(data["date"]),
    )
