"""A balance reading as text, for a database. `creduse_bulk` uses it, too. SQL does not belong here."""

import json
from datetime import datetime
from typing import Any
from uuid import UUID

from creduse_core import ActiveBalance, BalanceReading
from creduse_core.decoding import active_balance


def to_json(reading: BalanceReading) -> str:
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


def from_json(text: str, user: UUID) -> BalanceReading:
    """Return the reading that `to_json` has written."""
    data = json.loads(text)
    return BalanceReading(
        None if data["balance"] is None else active_balance(data["balance"], user),
        datetime.fromisoformat(data["asked_at"]),
        datetime.fromisoformat(data["received_at"]),
        None if data["date"] is None else datetime.fromisoformat(data["date"]),
    )
