"""A logged request in words, for the terminal and the page.

What the server did (`connection`), and what the page looks like (`page`), do not belong here.
"""

import json
from datetime import UTC, datetime
from typing import Any, Final, cast

from creduse_sandbox.connection import LogEntry
from creduse_sandbox.faults import name_of

_LONGEST: Final = 60  # characters of a text that a client chose
_CALLS: Final = {
    "/add": "add",
    "/subtract": "subtract",
    "/start-cycle": "start-cycle",
    "/stop-cycle": "stop-cycle",
    "/get-active-balance": "balance",
}


def _shown(value: object) -> str:
    """Return a client's text or number without what a terminal could take for a command."""
    text = "".join(it if it.isprintable() else "?" for it in str(value))
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _fields(entry: LogEntry) -> dict[str, Any]:
    try:
        fields: Any = json.loads(entry.body or b"")
    except (ValueError, RecursionError):
        return {}
    return cast("dict[str, Any]", fields) if isinstance(fields, dict) else {}


def _call(entry: LogEntry, fields: dict[str, Any]) -> str:
    if entry.path is None:
        return "(incomplete)" if entry.number else "(connection)"
    name = _CALLS.get(entry.path)
    if name is None:
        return f"{_shown(entry.method)} {_shown(entry.path)}"
    return f"{name} {_shown(fields['amount'])}" if "amount" in fields else name


def _applied(entry: LogEntry) -> str:
    if entry.applied:
        return "applied"
    if entry.path == "/get-active-balance":
        return "read"
    is_replay = entry.status == 200 and entry.fault is None
    return "replayed" if is_replay else "not applied"


def words(entry: LogEntry) -> dict[str, str]:
    """Return what to show of a request: call, user, status, applied, fault. Empty: there is none.

    ``applied`` is "applied", "not applied", "read", or "replayed": an ``Idempotency-Key`` came
    again, and got the stored response. A call or a user that a client made up is cut, and has no
    control characters. It can be any text.
    """
    fields = _fields(entry)
    return {
        "call": _call(entry, fields),
        "user": _shown(fields.get("end_user_id", "")),
        "status": "" if entry.status is None else str(entry.status),
        "applied": _applied(entry),
        "fault": "" if entry.fault is None else name_of(entry.fault),
    }


def _time(at: datetime | None) -> str:
    return f"{at.astimezone():%H:%M:%S}" if at else ""


def action_line(what: str) -> str:
    """Return a line for a terminal on what a button of the page has just done."""
    return f"{_time(datetime.now(UTC))}  page: {what}"


def line(entry: LogEntry) -> str:
    """Return a line for a terminal, with the local time."""
    shown = words(entry)
    status = shown["status"] or "no response"
    fault = f"  fault {shown['fault']}" if shown["fault"] else ""
    return f"{_time(entry.at)}  {shown['call']:<18} {shown['user']:<36}  {status:<11}  {shown['applied']}{fault}"
