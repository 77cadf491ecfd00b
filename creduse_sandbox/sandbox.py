"""Creduse's API without a socket: a request in, a response out.

It has the wire's format, routes, API keys and idempotency keys. What happens to credits (`ledger`),
and bytes or connections (`connection`), do not belong here.
"""

import hashlib
import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import takewhile
from typing import Any, NoReturn, TypeGuard
from urllib.parse import urlsplit
from uuid import UUID

from creduse_core import HeaderPairs, Request, Response
from creduse_sandbox.ledger import Cycle, Ledger, Refused
from creduse_sandbox.state import StateError, StateFile

Clock = Callable[[], datetime]

_Fields = Mapping[str, object]
_Result = dict[str, object]

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
"""The status code for each error code. Every status code is our reading, and so is every error
code that the service's documentation does not name."""

REPLAY_WINDOW = timedelta(hours=24)
"""How long the sandbox remembers an ``Idempotency-Key``: our reading."""

_LARGEST = 2**63 - 1  # our reading; Python cannot print integers of any size


def utc_now() -> datetime:
    """Return the system's time."""
    return datetime.now(UTC)


def path_of(url: str) -> str:
    """Return the path of a request's target, which is a URL, or a path with or without a query."""
    if url.startswith("/"):
        return url.partition("?")[0]
    try:
        return urlsplit(url).path
    except ValueError:  # such as an unclosed bracket
        return ""


def error_response(
    status: int, error_code: str, message: str, now: datetime, headers: HeaderPairs = ()
) -> Response:
    """Return an error response in the service's format."""
    envelope = {"error_code": error_code, "message": message, "timestamp": _time(now)}
    return _json_response(status, envelope, headers)


def _json_response(status: int, body: Mapping[str, object], headers: HeaderPairs = ()) -> Response:
    headers = (("Content-Type", "application/json"), *headers)
    return Response(status, headers, json.dumps(body).encode())


def _time(moment: datetime) -> str:
    utc = moment.astimezone(UTC).replace(tzinfo=None)
    return f"{utc.isoformat(timespec='microseconds')}Z"


# Reading requests


def _is_object(value: object) -> TypeGuard[dict[str, object]]:
    return isinstance(value, dict)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")  # Python accepts NaN and Infinity


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
    # UUID() also accepts braces, urn: and no hyphens. The wire's format does not.
    if user is None or str(user) != str(text).lower():
        raise Refused("INVALID_REQUEST", "end_user_id must be a UUID with hyphens.")
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


def _add(ledger: Ledger, fields: _Fields, now: datetime) -> _Result:
    user = _end_user_id(fields)
    cycle = ledger.add(user, _integer(fields, "amount"), _validity_days(fields), now)
    return {
        "end_user_id": str(user),
        "amount": cycle.amount,
        "validity_days": cycle.validity_days,
    }


def _subtract(ledger: Ledger, fields: _Fields, now: datetime) -> _Result:
    user = _end_user_id(fields)
    amount = _integer(fields, "amount")
    ledger.subtract(user, amount, now)
    return {"end_user_id": str(user), "amount": amount}


def _start_cycle(ledger: Ledger, fields: _Fields, now: datetime) -> _Result:
    user = _end_user_id(fields)
    amount = _integer(fields, "amount")
    return _cycle(user, ledger.start_cycle(user, amount, _validity_days(fields), now))


def _stop_cycle(ledger: Ledger, fields: _Fields, now: datetime) -> _Result:
    user = _end_user_id(fields)
    return _cycle(user, ledger.stop_cycle(user, now))


def _get_active_balance(ledger: Ledger, fields: _Fields, now: datetime) -> _Result:
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


def _cycle(user: UUID, cycle: Cycle) -> _Result:
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
    operate: Callable[[Ledger, _Fields, datetime], _Result]
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
    """A request that had an ``Idempotency-Key``, and its response."""

    digest: str
    """The digest of its path and body: a body can be long."""
    response: Response
    at: datetime


def _digest(text: str, more: bytes) -> str:
    parts = text.encode("utf-8", "surrogatepass"), more
    return hashlib.sha256(b"\n".join(parts)).hexdigest()


def _exported(remembered: _Remembered) -> list[object]:
    response = remembered.response
    at = remembered.at.isoformat()
    return [remembered.digest, at, response.status, response.headers, response.body.decode()]


def _restored(exported: list[Any]) -> _Remembered:
    digest, at, status, headers, body = exported
    pairs = tuple((name, value) for name, value in headers)
    return _Remembered(digest, Response(status, pairs, body.encode()), datetime.fromisoformat(at))


class Sandbox:
    """Creduse's API without a socket, with a ledger that starts empty. It is thread-safe.

    ``api_key`` is the only key that the sandbox accepts. With `None` it accepts any key, but
    rejects a request without one. ``clock`` returns the time as an aware `datetime`. With ``state``,
    the sandbox begins with what that file holds, and writes each change into it.

    The four writes accept an ``Idempotency-Key``, as in the IETF's draft of that header. For 24
    hours, a request with the same key gets the stored response, errors included, and is not
    applied again. A different request with that key is rejected. All this is our reading: Creduse
    does not document idempotency keys.

    Raises:
        StateError: The file of ``state`` holds something else.
    """

    def __init__(
        self,
        *,
        api_key: str | None = None,
        clock: Clock = utc_now,
        state: StateFile | None = None,
    ) -> None:
        self._api_key = api_key
        self._clock = clock
        self._ledger = Ledger()
        # Digests, as a key should be in no file. The oldest comes first.
        self._remembered: dict[str, _Remembered] = {}
        self._lock = threading.Lock()
        self._state = state
        self.advanced = timedelta()
        """By how much the clock was ahead when the state was written."""
        if state is not None:
            try:
                self._restore(state)
            except StateError:
                raise
            except (ArithmeticError, LookupError, TypeError, ValueError, AttributeError) as error:
                raise StateError("the file's content is damaged; choose another one") from error

    def _restore(self, state: StateFile) -> None:
        for user, exported in state.values("user"):
            self._ledger.restore(UUID(user), exported)
        for key, exported in state.values("idempotency key"):
            self._remembered[key] = _restored(exported)
        for _, seconds in state.values("clock"):
            self.advanced = timedelta(seconds=seconds)

    def keep_advanced(self, advanced: timedelta) -> None:
        """Write into the state by how much the clock is ahead of the system's."""
        if self._state is not None:
            with self._lock, self._state.transaction():
                self._state.put("clock", "advanced", advanced.total_seconds())

    def _keep(self, kind: str, name: str, value: object) -> None:
        if self._state is not None:
            self._state.put(kind, name, value)

    def users(self) -> dict[UUID, tuple[Cycle, ...]]:
        """Return every user's active cycles, as of the clock's time."""
        with self._lock:
            return self._ledger.users(self._clock())

    def handle(self, request: Request) -> Response:
        """Return the service's response to a request.

        The path must be one of the API's five, without a prefix. A bad request gets an error
        response, never an exception.
        """
        return self.process(request)[0]

    def process(self, request: Request) -> tuple[Response, bool]:
        """Return the response to a request, and whether the request was a write and was applied.

        An error, a balance and a replayed response apply nothing. If the state cannot be written,
        the response has status 500 and the sandbox forgets the change.
        """
        with self._lock:
            if self._state is None:
                return self._process(request)
            try:
                with self._state.transaction():
                    return self._process(request)
            except StateError as error:
                # The file has what was before. So must the memory.
                self._ledger, self._remembered = Ledger(), {}
                self._restore(self._state)
                now = self._clock()
                return error_response(500, "STATE_NOT_WRITTEN", f"{error}", now), False

    def _process(self, request: Request) -> tuple[Response, bool]:
        now = self._clock()
        path = path_of(request.url)
        route = _ROUTES.get(path)
        if route is None:
            return _refusal("NOT_FOUND", "There is no such path.", now), False
        if request.method != route.method:
            allow = (("Allow", route.method),)  # RFC 9110 15.5.6
            message = f"This path accepts only {route.method}."
            return _refusal("METHOD_NOT_ALLOWED", message, now, allow), False
        api_key = _bearer(request)
        if not api_key or self._api_key not in {None, api_key}:
            challenge = (("WWW-Authenticate", "Bearer"),)  # RFC 9110 15.5.2
            return _refusal("UNAUTHORIZED", "The API key is unknown.", now, challenge), False
        idempotency_key = _header(request, "idempotency-key")
        if route.writes and idempotency_key:
            key = _digest(f"{api_key}\n{idempotency_key}", b"")
            digest = _digest(path, request.body)
            return self._operate_once(key, digest, route, request.body, now)
        return self._operate(route, request.body, now)

    def _operate_once(
        self, key: str, digest: str, route: _Route, body: bytes, now: datetime
    ) -> tuple[Response, bool]:
        self._forget(now)
        remembered = self._remembered.get(key)
        # A clock of a test can run back, so a key that is not the oldest can be too old.
        if remembered is None or now - remembered.at >= REPLAY_WINDOW:
            response, applied = self._operate(route, body, now)
            self._remembered[key] = _Remembered(digest, response, now)
            self._keep("idempotency key", key, _exported(self._remembered[key]))
            return response, applied
        if remembered.digest != digest:
            message = "This Idempotency-Key belongs to another request."
            return _refusal("IDEMPOTENCY_KEY_REUSED", message, now), False
        return remembered.response, False

    def _forget(self, now: datetime) -> None:
        """Forget the keys that are too old."""
        old = takewhile(
            lambda key: now - self._remembered[key].at >= REPLAY_WINDOW, self._remembered
        )
        for key in [*old]:
            del self._remembered[key]
            if self._state is not None:
                self._state.remove("idempotency key", key)

    def _operate(self, route: _Route, body: bytes, now: datetime) -> tuple[Response, bool]:
        try:
            result = route.operate(self._ledger, _fields(body), now)
        except Refused as refused:
            return _refusal(refused.error_code, refused.message, now), False
        if route.writes and self._state is not None:
            user = str(result["end_user_id"])
            self._keep("user", user, self._ledger.export(UUID(user)))
        return _json_response(200, result), route.writes


def _refusal(error_code: str, message: str, now: datetime, headers: HeaderPairs = ()) -> Response:
    return error_response(STATUS[error_code], error_code, message, now, headers)
