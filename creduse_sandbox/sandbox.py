"""The whole API without a socket: a request in, an answer out.

The wire's format, the routes, keys and replays live here. What happens to credits is the
ledger's; bytes and connections are the server's; neither must come in.
"""

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import NoReturn, TypeGuard
from urllib.parse import urlsplit
from uuid import UUID

from creduse_core.messages import HeaderPairs, Request, Response
from creduse_sandbox.ledger import Cycle, Ledger, Refused

Clock = Callable[[], datetime]

_Fields = Mapping[str, object]
_Answer = dict[str, object]

STATUS = {
    "AMOUNT_NEGATIVE": 400,
    "UNAUTHORIZED": 401,
    "CREDIT_EXPIRED": 402,
    "INSUFFICIENT_FUNDS": 402,
    "NOT_FOUND": 404,
    "USER_DOES_NOT_EXIST": 404,
    "METHOD_NOT_ALLOWED": 405,
    "ACTIVE_CYCLE_EXISTS": 409,
    "NO_ACTIVE_CYCLE": 409,
    "IDEMPOTENCY_KEY_REUSED": 422,
    "INVALID_REQUEST": 422,
}
"""The status that goes with each error code. All of them are our reading, and so is every code
that the service's documentation does not name."""

REPLAY_WINDOW = timedelta(hours=24)
"""How long an ``Idempotency-Key`` is remembered: our reading."""

_LARGEST = 2**63 - 1  # keeps every sum printable; that the service counts in 64 bits is our reading


def utc_now() -> datetime:
    """Tell the time by the system's clock."""
    return datetime.now(UTC)


def path_of(url: str) -> str:
    """Give the path of a request's target, be it a whole URL or a path and perhaps a query."""
    if url.startswith("/"):
        return url.partition("?")[0]
    try:
        return urlsplit(url).path
    except ValueError:  # such as a bracket that is never closed
        return ""


def error_response(
    status: int, error_code: str, message: str, now: datetime, headers: HeaderPairs = ()
) -> Response:
    """Put an error into the service's envelope."""
    envelope = {"error_code": error_code, "message": message, "timestamp": _time(now)}
    return _json_response(status, envelope, headers)


def _json_response(status: int, body: Mapping[str, object], headers: HeaderPairs = ()) -> Response:
    headers = (("Content-Type", "application/json"), *headers)
    return Response(status, headers, json.dumps(body).encode())


def _time(moment: datetime) -> str:
    utc = moment.astimezone(UTC).replace(tzinfo=None)
    return f"{utc.isoformat(timespec='microseconds')}Z"


# Reading a request


def _is_object(value: object) -> TypeGuard[dict[str, object]]:
    return isinstance(value, dict)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")  # though Python reads it


def _fields(body: bytes) -> _Fields:
    try:
        fields: object = json.loads(body.decode(), parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise Refused("INVALID_REQUEST", "The body is not JSON.") from None
    if not _is_object(fields):
        raise Refused("INVALID_REQUEST", "The body is not a JSON object.")
    return fields


def _end_user_id(fields: _Fields) -> UUID:
    text = fields.get("end_user_id")
    try:
        user = UUID(text) if isinstance(text, str) else None
    except ValueError:
        user = None
    # UUID() also reads braces, urn: and ids without hyphens, none of which is the wire's form.
    if user is None or str(user) != str(text).lower():
        raise Refused("INVALID_REQUEST", "end_user_id must be a UUID's hyphenated text.")
    return user


def _integer(fields: _Fields, name: str) -> int:
    value = fields.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) > _LARGEST:
        raise Refused("INVALID_REQUEST", f"{name} must be an integer of at most 64 bits.")
    return value


def _validity_days(fields: _Fields) -> int | None:
    if fields.get("validity_days") is None:
        return None
    return _integer(fields, "validity_days")


# The five routes


def _add(ledger: Ledger, fields: _Fields, now: datetime) -> _Answer:
    user = _end_user_id(fields)
    cycle = ledger.add(user, _integer(fields, "amount"), _validity_days(fields), now)
    return {
        "end_user_id": str(user),
        "amount": cycle.amount,
        "validity_days": cycle.validity_days,
    }


def _subtract(ledger: Ledger, fields: _Fields, now: datetime) -> _Answer:
    user = _end_user_id(fields)
    amount = _integer(fields, "amount")
    ledger.subtract(user, amount, now)
    return {"end_user_id": str(user), "amount": amount}


def _start_cycle(ledger: Ledger, fields: _Fields, now: datetime) -> _Answer:
    user = _end_user_id(fields)
    amount = _integer(fields, "amount")
    return _cycle(user, ledger.start_cycle(user, amount, _validity_days(fields), now))


def _stop_cycle(ledger: Ledger, fields: _Fields, now: datetime) -> _Answer:
    user = _end_user_id(fields)
    return _cycle(user, ledger.stop_cycle(user, now))


def _get_active_balance(ledger: Ledger, fields: _Fields, now: datetime) -> _Answer:
    user = _end_user_id(fields)
    cycles = ledger.balance(user, now)
    return {
        "end_user_id": str(user),
        "active_balance": sum(cycle.amount for cycle in cycles),
        "active_balance_by_cycle": [
            {
                "cycle_start": _time(cycle.start),
                "cycle_end": _time(cycle.end),
                "amount": cycle.amount,
                "starting_amount": cycle.starting_amount,
                **_kind(cycle),
            }
            for cycle in cycles
        ],
    }


def _cycle(user: UUID, cycle: Cycle) -> _Answer:
    return {
        "end_user_id": str(user),
        "amount": cycle.amount,
        "created_at": _time(cycle.created_at),
        "current_cycle_start": _time(cycle.start),
        "current_cycle_end": _time(cycle.end),
        **_kind(cycle),
    }


def _kind(cycle: Cycle) -> dict[str, str]:
    return {
        "status": "canceled" if cycle.canceled else "active",
        "cycle_type": "recurring" if cycle.recurring else "one-time",
    }


@dataclass(frozen=True, slots=True)
class _Route:
    method: str
    operate: Callable[[Ledger, _Fields, datetime], _Answer]
    writes: bool = True


_ROUTES = {
    "/add": _Route("POST", _add),
    "/subtract": _Route("POST", _subtract),
    "/start-cycle": _Route("POST", _start_cycle),
    "/stop-cycle": _Route("POST", _stop_cycle),
    "/get-active-balance": _Route("GET", _get_active_balance, writes=False),
}


def _header(request: Request, name: str) -> str:
    values = (value for key, value in request.headers if key.lower() == name)
    return next(values, "").strip()


def _bearer(request: Request) -> str:
    scheme, _, token = _header(request, "authorization").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


@dataclass(frozen=True, slots=True)
class _Remembered:
    """A call that came with an ``Idempotency-Key``, and its answer."""

    path: str
    body: bytes
    response: Response
    at: datetime


class Sandbox:
    """A Creduse of one's own, with a ledger that begins empty.

    ``api_key`` is the one key it takes; with `None`, any will do, but there must be one.
    ``clock`` tells the time, as an aware `datetime`. It is safe to share between threads.

    An ``Idempotency-Key`` on the four writes is honoured as the IETF's draft of that header field
    has it: for 24 hours the same request under the same key gets the stored answer, a refusal
    included, and changes nothing; another request under it is refused. All this is our reading:
    the service is not known to do so.
    """

    def __init__(self, *, api_key: str | None = None, clock: Clock = utc_now) -> None:
        self._api_key = api_key
        self._clock = clock
        self._ledger = Ledger()
        self._remembered: dict[tuple[str, str], _Remembered] = {}
        self._lock = threading.Lock()

    def handle(self, request: Request) -> Response:
        """Answer a request, as the service would.

        Its path must be one of the five, with no prefix. Whatever the request holds ends in an
        answer and not in an exception.
        """
        return self.process(request)[0]

    def process(self, request: Request) -> tuple[Response, bool]:
        """Answer a request, and say whether it was applied: that is, a write carried out now.

        A refusal, a balance and a replayed answer are not.
        """
        with self._lock:
            now = self._clock()
            path = path_of(request.url)
            route = _ROUTES.get(path)
            if route is None:
                return _refusal("NOT_FOUND", "There is no such path.", now), False
            if request.method != route.method:
                allow = (("Allow", route.method),)  # RFC 9110 15.5.6
                message = f"This path takes {route.method}."
                return _refusal("METHOD_NOT_ALLOWED", message, now, allow), False
            api_key = _bearer(request)
            if not api_key or self._api_key not in {None, api_key}:
                challenge = (("WWW-Authenticate", "Bearer"),)  # RFC 9110 15.5.2
                return _refusal("UNAUTHORIZED", "The API key is not known.", now, challenge), False
            idempotency_key = _header(request, "idempotency-key")
            if route.writes and idempotency_key:
                return self._once((api_key, idempotency_key), route, path, request.body, now)
            return self._operate(route, request.body, now)

    def _once(
        self, name: tuple[str, str], route: _Route, path: str, body: bytes, now: datetime
    ) -> tuple[Response, bool]:
        remembered = self._remembered.get(name)
        if remembered is None or now - remembered.at >= REPLAY_WINDOW:
            response, applied = self._operate(route, body, now)
            self._remembered[name] = _Remembered(path, body, response, now)
            return response, applied
        if (remembered.path, remembered.body) != (path, body):
            message = "This Idempotency-Key came with another request."
            return _refusal("IDEMPOTENCY_KEY_REUSED", message, now), False
        return remembered.response, False

    def _operate(self, route: _Route, body: bytes, now: datetime) -> tuple[Response, bool]:
        try:
            answer = route.operate(self._ledger, _fields(body), now)
        except Refused as refused:
            return _refusal(refused.error_code, refused.message, now), False
        return _json_response(200, answer), route.writes


def _refusal(error_code: str, message: str, now: datetime, headers: HeaderPairs = ()) -> Response:
    return error_response(STATUS[error_code], error_code, message, now, headers)
