"""How results are shown: as text, in notebooks, and as JSON."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from creduse_core import (
    ActiveBalance,
    Attempt,
    BalanceReading,
    CallRecord,
    CreditsAdded,
    CreditsSubtracted,
    Cycle,
    CycleBalance,
    CycleStatus,
    CycleType,
    Evidence,
    Outcome,
    Verdict,
)
from tests.common import USER, USER_ID

START = datetime(2026, 1, 1, tzinfo=UTC)
END = datetime(2026, 2, 28, 23, 59, 59, 999999, tzinfo=UTC)
LATER = datetime(2026, 12, 31, 23, 59, 59, tzinfo=UTC)
BALANCE = ActiveBalance(
    USER,
    1010,
    (
        CycleBalance(START, LATER, 1000, None, CycleStatus.ACTIVE, CycleType.RECURRING),
        CycleBalance(START, END, 10, 15, None, "odd\x1b<b>"),
    ),
)

TEXTS: dict[str, tuple[object, str]] = {
    "added": (CreditsAdded(USER, 100, 31), "Added 100 credits, valid for 31 days."),
    "one": (CreditsAdded(USER, 1, 1), "Added 1 credit, valid for 1 day."),
    "days unsaid": (CreditsAdded(USER, 100), "Added 100 credits."),
    "taken": (CreditsSubtracted(USER, 50), "Took 50 credits."),
    "cycle": (
        Cycle(USER, 9, START, START, END, CycleStatus.ACTIVE, "re\ncurring"),
        "A cycle of 9 credits until 2026-02-28 23:59:59 UTC, re\\ncurring, active.",
    ),
    "cycle of no kind": (
        Cycle(USER, 9, START, START, END),
        "A cycle of 9 credits until 2026-02-28 23:59:59 UTC.",
    ),
    "no cycles": (ActiveBalance(USER, 1, ()), "1 credit"),
    "balance": (
        BALANCE,
        (
            "1010 credits:\n"
            "AMOUNT  UNTIL                    CYCLE\n"
            "    10  2026-02-28 23:59:59 UTC  odd\\x1b<b>\n"
            "  1000  2026-12-31 23:59:59 UTC  recurring, active"
        ),
    ),
}


@pytest.mark.parametrize(("result", "text"), TEXTS.values(), ids=TEXTS)
def test_text(result: object, text: str) -> None:
    """``print`` shows a result as words, and a balance as a table of printable text."""
    assert str(result) == f"{result}" == text


@pytest.mark.parametrize(("result", "text"), TEXTS.values(), ids=TEXTS)
def test_notebook(result: Any, text: str) -> None:
    """A notebook shows a result's words; a balance's as a table, in which HTML is escaped."""
    shown = result._repr_html_()
    if result is not BALANCE:
        assert shown == f"<p>{text}</p>"
        return
    assert shown == (
        "<table>\n<caption>1010 credits:</caption>\n"
        "<tr><th>AMOUNT</th><th>UNTIL</th><th>CYCLE</th></tr>\n"
        "<tr><td>10</td><td>2026-02-28 23:59:59 UTC</td><td>odd\\x1b&lt;b&gt;</td></tr>\n"
        "<tr><td>1000</td><td>2026-12-31 23:59:59 UTC</td><td>recurring, active</td></tr>\n"
        "</table>"
    )


RECORD = CallRecord("add", USER, 7, None, Outcome.UNKNOWN, START, BalanceReading(None, START, END))

DICTS: dict[str, tuple[Any, dict[str, object]]] = {
    "added": (
        CreditsAdded(USER, 100, 31),
        {"end_user_id": USER_ID, "amount": 100, "validity_days": 31},
    ),
    "balance": (
        BALANCE,
        {
            "end_user_id": USER_ID,
            "active_balance": 1010,
            "active_balance_by_cycle": [
                {
                    "cycle_start": "2026-01-01T00:00:00+00:00",
                    "cycle_end": "2026-12-31T23:59:59+00:00",
                    "amount": 1000,
                    "starting_amount": None,
                    "status": "active",
                    "cycle_type": "recurring",
                },
                {
                    "cycle_start": "2026-01-01T00:00:00+00:00",
                    "cycle_end": "2026-02-28T23:59:59.999999+00:00",
                    "amount": 10,
                    "starting_amount": 15,
                    "status": None,
                    "cycle_type": "odd\x1b<b>",
                },
            ],
        },
    ),
    "attempt": (
        Attempt(2, "POST", "/add", 503, "server_error", Outcome.UNKNOWN, "503", 1.25, 2.5),
        {
            "number": 2,
            "method": "POST",
            "path": "/add",
            "status": 503,
            "event": "server_error",
            "outcome": "UNKNOWN",
            "error": "503",
            "seconds": 1.25,
        },
    ),
    "record": (
        RECORD,
        {
            "method": "add",
            "end_user_id": USER_ID,
            "amount": 7,
            "validity_days": None,
            "outcome": "UNKNOWN",
            "began_at": "2026-01-01T00:00:00+00:00",
            "before": {
                "balance": None,
                "asked_at": "2026-01-01T00:00:00+00:00",
                "received_at": "2026-02-28T23:59:59.999999+00:00",
                "date": None,
            },
        },
    ),
    "evidence": (
        Evidence(Verdict.OPEN, "no reading"),
        {"verdict": "OPEN", "reason": "no reading", "assumption": None},
    ),
}


@pytest.mark.parametrize(("value", "found"), DICTS.values(), ids=DICTS)
def test_json_form(value: Any, found: dict[str, object]) -> None:
    """``as_dict`` returns what ``json.dumps`` and ``json.loads`` return unchanged."""
    assert value.as_dict() == found
    assert json.loads(json.dumps(value.as_dict())) == found
