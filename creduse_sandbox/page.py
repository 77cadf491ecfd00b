"""The page at the server's address: its files, what it shows as JSON, and its actions.

The page is in the folder ``page_files``. Bytes and connections (`connection`), and a request in
words (`wording`), do not belong here.

Any web page that a browser shows can send requests to this machine. So the page responds only under
a name that no other site can have, and acts only for itself: see `_refusal`.
"""

import json
import re
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import cache
from ipaddress import ip_address
from itertools import islice
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit
from uuid import UUID

from creduse_core import Request, Response
from creduse_core.tables import counted
from creduse_sandbox.connection import PAGE_FILES, InjectedFault, LogEntry, ServerState
from creduse_sandbox.faults import DESCRIPTIONS, FAULTS, FIRST, OUTCOMES, name_of
from creduse_sandbox.ledger import Cycle
from creduse_sandbox.sandbox import path_of
from creduse_sandbox.wording import words

MOST_REQUESTS: Final = 100
"""The page shows so many requests, the newest ones."""
MOST_USERS: Final = 50
"""The page shows so many users, those who changed last."""
MOST_CYCLES: Final = 20
"""The page shows so many cycles of a user, those that end first."""

_FOLDER: Final = Path(__file__).with_name("page_files")
_HEADERS: Final = (
    ("Cache-Control", "no-store"),
    ("Content-Security-Policy", "default-src 'self'; base-uri 'none'; frame-ancestors 'none'"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Referrer-Policy", "no-referrer"),
    ("X-Content-Type-Options", "nosniff"),
)
_Act = Callable[[ServerState, Request], Response]


def respond(state: ServerState, request: Request) -> Response:
    """Return the response to a request of the page. Hold the state's lock."""
    path = path_of(request.url)
    if refusal := _refusal(state, request):
        return _message(403, refusal)
    if path not in _PATHS:
        return _message(404, "The page has no such path.")
    method, act = _PATHS[path]
    if request.method != method:
        return _message(405, f"This path accepts only {method}.", ("Allow", method))
    try:
        return act(state, request)
    except (LookupError, TypeError, ValueError, OverflowError) as error:
        return _message(422, f"This is not possible: {error}")


@cache
def _read(name: str) -> bytes:
    return (_FOLDER / name).read_bytes()


def _file(name: str, kind: str) -> _Act:
    return lambda _, __: _response(200, f"{kind}; charset=utf-8", _read(name))


def _response(status: int, kind: str, body: bytes, *headers: tuple[str, str]) -> Response:
    return Response(status, (("Content-Type", kind), *_HEADERS, *headers), body)


def _json(status: int, body: object, *headers: tuple[str, str]) -> Response:
    return _response(status, "application/json", json.dumps(body).encode(), *headers)


def _message(status: int, message: str, *headers: tuple[str, str]) -> Response:
    return _json(status, {"message": message}, *headers)


# Who may see the page and act


def _header(request: Request, wanted: str) -> str:
    return next((value for name, value in request.headers if name.lower() == wanted), "")


def _is_own_name(state: ServerState, host: str) -> bool:
    """Return whether a ``Host`` names this machine in a way that no other site can.

    A site can have its own name resolve to this machine (DNS rebinding), but no other's address.
    """
    try:
        name = urlsplit(f"//{host}").hostname or ""
        if name in {"localhost", state.host.lower()}:
            return True
        ip_address(name)
    except ValueError:
        return False
    return True


def _refusal(state: ServerState, request: Request) -> str | None:
    """Return why the page does not respond to this request, or `None` if it does."""
    host = _header(request, "host")
    if not _is_own_name(state, host):
        return f"This page is only for this machine. Open {state.base_url}/"
    scheme = "https" if state.ssl_context else "http"
    # A browser says which site's page sends a POST.
    if request.method == "POST" and _header(request, "origin") != f"{scheme}://{host}":
        return "Only the page itself can act."
    return None


# What the page shows


# Credits are text, as JavaScript rounds large numbers of JSON.


def _cycle(cycle: Cycle) -> dict[str, object]:
    return {
        "start": cycle.start.isoformat(),
        "end": cycle.end.isoformat(),
        "amount": str(cycle.amount),
        "starting_amount": str(cycle.starting_amount),
        "recurring": cycle.recurring,
        "canceled": cycle.canceled,
    }


def _user(user: UUID, cycles: tuple[Cycle, ...]) -> dict[str, object]:
    return {
        "id": str(user),
        "balance": str(sum(cycle.amount for cycle in cycles)),
        "cycles": [_cycle(cycle) for cycle in cycles[:MOST_CYCLES]],
        "all_cycles": len(cycles),
    }


def _request(entry: LogEntry, *, is_pending: bool) -> dict[str, object]:
    at = entry.at.isoformat() if entry.at else None
    return {"number": entry.number, "at": at, "pending": is_pending, **words(entry)}


def _injected(injected: InjectedFault) -> dict[str, object]:
    return {
        "fault": name_of(injected.fault),
        "times": injected.times if injected.times < 1_000_000 else None,
        "conditional": injected.when is not None,
    }


def _view(state: ServerState, _: Request) -> Response:
    users = state.sandbox.users()
    view = {
        "now": state.clock().isoformat(),
        "advanced": state.advanced.total_seconds(),
        "has_api_key": state.api_key is not None,
        "all_users": len(users),
        "users": [_user(user, users[user]) for user in islice(reversed(users), MOST_USERS)],
        "requests": [
            _request(state.log[number], is_pending=number in state.pending)
            for number in islice(reversed(state.log), MOST_REQUESTS)
        ],
        "injected": [_injected(it) for it in state.injected],
    }
    return _json(200, view)


def _faults(_: ServerState, __: Request) -> Response:
    faults = [
        {
            "name": name,
            "does": DESCRIPTIONS[name],
            "outcome": "succeeds" if OUTCOMES[name] is None else str(OUTCOMES[name]),
            "first": name in FIRST,
        }
        for name in (*FIRST, *(name for name in FAULTS if name not in FIRST))
    ]
    return _json(200, faults)


# What its buttons do


def _advance(state: ServerState, request: Request) -> Response:
    by = timedelta(hours=json.loads(request.body)["hours"])
    if by < timedelta():
        raise ValueError("the clock cannot go back")
    state.advance(by)
    state.report_action(f"the clock goes ahead by {by}")
    return _json(200, {})


def _whole_number(name: str, text: str) -> int:
    if not re.fullmatch("[0-9]{1,3000}", text):
        raise ValueError(f"{name} must be a whole number in digits alone, such as 100")
    return int(text)


def _give(state: ServerState, request: Request) -> Response:
    asked = dict(json.loads(request.body))
    for name in ("amount", "validity_days"):
        if isinstance(asked.get(name), str):
            asked[name] = _whole_number(name, asked[name])
    key = "any" if state.api_key is None else state.api_key
    headers = (("Authorization", f"Bearer {key}"),)
    response = state.sandbox.handle(Request("POST", "/add", headers, json.dumps(asked).encode()))
    if response.status == 200:
        given = json.loads(response.body)
        user, amount = given["end_user_id"], counted(given["amount"], "credit")
        state.report_action(f"user {user} gets {amount}")
    return response


def _inject(state: ServerState, request: Request) -> Response:
    name = json.loads(request.body)["fault"]
    state.injected.append(InjectedFault(FAULTS[name], 1, None))
    state.report_action(f"the next request meets the fault {name}")
    return _json(200, {})


def _clear(state: ServerState, _: Request) -> Response:
    state.injected.clear()
    state.report_action("no further request meets a fault")
    return _json(200, {})


_PATHS: Final[Mapping[str, tuple[str, _Act]]] = {
    "/": ("GET", _file("page.html", "text/html")),
    f"{PAGE_FILES}page.css": ("GET", _file("page.css", "text/css")),
    f"{PAGE_FILES}page.js": ("GET", _file("page.js", "text/javascript")),
    f"{PAGE_FILES}icon.svg": ("GET", _file("icon.svg", "image/svg+xml")),
    f"{PAGE_FILES}view": ("GET", _view),
    f"{PAGE_FILES}faults": ("GET", _faults),
    f"{PAGE_FILES}advance": ("POST", _advance),
    f"{PAGE_FILES}give": ("POST", _give),
    f"{PAGE_FILES}inject": ("POST", _inject),
    f"{PAGE_FILES}clear": ("POST", _clear),
}
