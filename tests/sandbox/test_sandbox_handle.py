"""The API without a socket: the response to each request."""

import json
import threading
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from creduse_core.messages import Request, Response
from creduse_sandbox import Sandbox

USER = "12345678-1234-5678-1234-567812345678"
NOW = datetime(2025, 8, 12, 14, 35, 55, 423145, tzinfo=UTC)
KEY = ("Authorization", "Bearer k")
METHODS = {
    "/add": "POST",
    "/subtract": "POST",
    "/start-cycle": "POST",
    "/stop-cycle": "POST",
    "/get-active-balance": "GET",
}
PATHS = sorted(METHODS)
GOOD = {"end_user_id": USER, "amount": 5, "validity_days": 2}


@dataclass
class Clock:
    """A clock that a test sets."""

    now: datetime = NOW


def ask(
    path: str,
    body: object = GOOD,
    *headers: tuple[str, str],
    method: str | None = None,
    authorization: tuple[str, str] | None = KEY,
) -> Request:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    fields = headers if authorization is None else (authorization, *headers)
    return Request(method or METHODS.get(path, "POST"), path, fields, content)


def read(response: Response) -> dict[str, Any]:
    assert response.header("content-type") == "application/json"
    body: dict[str, Any] = json.loads(response.body)
    return body


def refused(response: Response, status: int, error_code: str) -> None:
    body = read(response)
    assert (response.status, body["error_code"]) == (status, error_code)
    assert body["message"]
    assert body["timestamp"] == "2025-08-12T14:35:55.423145Z"
    assert set(body) == {"error_code", "message", "timestamp"}


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sandbox(clock: Clock) -> Sandbox:
    return Sandbox(clock=lambda: clock.now)


def test_add(sandbox: Sandbox) -> None:
    """The response to ``add`` has the user, the amount and the days."""
    response = sandbox.handle(ask("/add"))
    assert response.status == 200
    assert read(response) == {"end_user_id": USER, "amount": 5, "validity_days": 2}


@pytest.mark.parametrize("body", [{"validity_days": None}, {}])
def test_days_not_given_are_31(sandbox: Sandbox, body: dict[str, None]) -> None:
    """Without days, or with null, the validity is 31 days."""
    response = sandbox.handle(ask("/add", {"end_user_id": USER, "amount": 5, **body}))
    assert read(response)["validity_days"] == 31


def test_subtract(sandbox: Sandbox) -> None:
    """The response to ``subtract`` has the user and the amount."""
    sandbox.handle(ask("/add"))
    response = sandbox.handle(ask("/subtract", {"end_user_id": USER, "amount": 3}))
    assert response.status == 200
    assert read(response) == {"end_user_id": USER, "amount": 3}


def test_start_and_stop_cycle(sandbox: Sandbox, clock: Clock) -> None:
    """Both responses have the cycle. Its amount is the rest of its credits."""
    expected = {
        "end_user_id": USER,
        "amount": 5,
        "created_at": "2025-08-12T14:35:55.423145Z",
        "current_cycle_start": "2025-08-12T14:35:55.423145Z",
        "current_cycle_end": "2025-08-14T23:59:59.999999Z",
        "status": "active",
        "cycle_type": "recurring",
    }
    response = sandbox.handle(ask("/start-cycle"))
    assert response.status == 200
    assert read(response) == expected
    clock.now = NOW + timedelta(days=3)
    response = sandbox.handle(ask("/stop-cycle", {"end_user_id": USER}))
    assert response.status == 200
    assert read(response) == {
        **expected,
        "current_cycle_start": "2025-08-14T23:59:59.999999Z",
        "current_cycle_end": "2025-08-16T23:59:59.999999Z",
        "status": "canceled",
    }


def test_get_active_balance(sandbox: Sandbox) -> None:
    """The balance lists the active cycles by their end, and their sum."""
    sandbox.handle(ask("/add", {"end_user_id": USER, "amount": 15, "validity_days": 3}))
    sandbox.handle(ask("/start-cycle", {"end_user_id": USER, "amount": 50, "validity_days": 2}))
    sandbox.handle(ask("/subtract", {"end_user_id": USER, "amount": 7}))
    response = sandbox.handle(ask("/get-active-balance", {"end_user_id": USER}))
    assert response.status == 200
    start = "2025-08-12T14:35:55.423145Z"
    assert read(response) == {
        "end_user_id": USER,
        "active_balance": 58,
        "active_balance_by_cycle": [
            {
                "cycle_start": start,
                "cycle_end": "2025-08-14T23:59:59.999999Z",
                "amount": 43,
                "starting_amount": 50,
                "status": "active",
                "cycle_type": "recurring",
            },
            {
                "cycle_start": start,
                "cycle_end": "2025-08-15T23:59:59.999999Z",
                "amount": 15,
                "starting_amount": 15,
                "status": "active",
                "cycle_type": "one-time",
            },
        ],
    }


def test_times_are_written_in_utc() -> None:
    """Times are in UTC with microseconds, whatever the clock's zone."""
    east = datetime(2025, 8, 13, 1, 0, tzinfo=timezone(timedelta(hours=9)))
    sandbox = Sandbox(clock=lambda: east)
    body = read(sandbox.handle(ask("/start-cycle")))
    assert body["created_at"] == "2025-08-12T16:00:00.000000Z"


def test_default_clock() -> None:
    """The default clock is the system's."""
    before = datetime.now(UTC)
    created_at = read(Sandbox().handle(ask("/start-cycle")))["created_at"]
    assert before <= datetime.fromisoformat(created_at) <= datetime.now(UTC)


@pytest.mark.parametrize(
    "url",
    ["/add", "/add?x=/y", "http://127.0.0.1:1/add", "https://[::1]/add?x#y"],
)
def test_url_may_be_whole_or_a_path(sandbox: Sandbox, url: str) -> None:
    """Only the path of a URL counts."""
    assert sandbox.handle(ask(url)).status == 200


@pytest.mark.parametrize(
    "url",
    [
        "/",
        "",
        "/add/",
        "/ADD",
        "/v1/add",
        "//add",
        "//x/add",
        "*",
        "http://x/v1/add",
        "http://[/add",
    ],
)
def test_unknown_paths(sandbox: Sandbox, url: str) -> None:
    """A path must match exactly. Others get a 404."""
    refused(sandbox.handle(ask(url)), 404, "NOT_FOUND")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", ["GET", "POST", "HEAD", "PUT", "get"])
def test_other_methods(sandbox: Sandbox, path: str, method: str) -> None:
    """A path accepts one method. For others the 405 names it."""
    if method != METHODS[path]:
        response = sandbox.handle(ask(path, method=method))
        refused(response, 405, "METHOD_NOT_ALLOWED")
        assert response.header("allow") == METHODS[path]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("value", [None, "", "Bearer", "Bearer  ", "Basic k", "Bearer wrong", "k"])
def test_rejected_keys(clock: Clock, path: str, value: str | None) -> None:
    """If an API key is set, a request must have it."""
    authorization = None if value is None else ("Authorization", value)
    response = Sandbox(api_key="k", clock=lambda: clock.now).handle(
        ask(path, authorization=authorization)
    )
    refused(response, 401, "UNAUTHORIZED")
    assert response.header("www-authenticate") == "Bearer"
    assert b"wrong" not in response.body


def test_any_key(sandbox: Sandbox) -> None:
    """If no API key is set, any key is accepted, but a request must have one."""
    assert sandbox.handle(ask("/add", authorization=("authorization", "bearer x"))).status == 200
    refused(sandbox.handle(ask("/add", authorization=None)), 401, "UNAUTHORIZED")


def test_accepted_key() -> None:
    """The API key that is set is accepted."""
    assert Sandbox(api_key="k").handle(ask("/add")).status == 200


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"7",
        b'"text"',
        b"[]",
        b"\xff\xfe",
        b"\xef\xbb\xbf{}",
        json.dumps(GOOD).encode("utf-16"),
        b"[" * 500_000,
        b'{"a":' * 500_000,
        b'{"end_user_id": "' + USER.encode() + b'", "amount": 5, "other": NaN}',
        b'{"end_user_id": "' + USER.encode() + b'", "amount": 5, "other": -Infinity}',
        b'{"end_user_id": "' + USER.encode() + b'", "amount": ' + b"9" * 5000 + b"}",
    ],
    ids=lambda body: repr(body[:16]),
)
def test_bodies_that_are_not_json_objects(sandbox: Sandbox, path: str, body: bytes) -> None:
    """A body that is not a JSON object is rejected."""
    refused(sandbox.handle(ask(path, body)), 422, "INVALID_REQUEST")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "user",
    [
        None,
        7,
        True,
        [],
        {},
        "",
        "nobody",
        USER.replace("-", ""),
        "{" + USER + "}",
        "urn:uuid:" + USER,
        USER + " ",
        USER.replace("8", "\uff18"),
        USER[:-1] + "g",
        "\ud800",
    ],
)
def test_rejected_ids(sandbox: Sandbox, path: str, user: object) -> None:
    """A user id must be the hyphenated text of a UUID."""
    response = sandbox.handle(ask(path, {**GOOD, "end_user_id": user}))
    refused(response, 422, "INVALID_REQUEST")


@pytest.mark.parametrize("path", PATHS)
def test_missing_id(sandbox: Sandbox, path: str) -> None:
    """A request without a user id is rejected."""
    refused(sandbox.handle(ask(path, {"amount": 5})), 422, "INVALID_REQUEST")


def test_any_version_of_id_in_any_case(sandbox: Sandbox) -> None:
    """A user id may be a UUID of any version in any case. Responses have it in lower case."""
    user = "ABCDEF01-1234-1678-C234-567812345678"
    body = read(sandbox.handle(ask("/add", {**GOOD, "end_user_id": user})))
    assert body["end_user_id"] == user.lower()


@pytest.mark.parametrize("path", ["/add", "/subtract", "/start-cycle"])
@pytest.mark.parametrize("amount", [None, True, False, 5.0, 1e300, "5", [], {}, 2**63, -(2**63)])
def test_rejected_amounts(sandbox: Sandbox, path: str, amount: object) -> None:
    """An amount must be a JSON integer of at most 64 bits."""
    response = sandbox.handle(ask(path, {**GOOD, "amount": amount}))
    refused(response, 422, "INVALID_REQUEST")


@pytest.mark.parametrize("path", ["/add", "/subtract", "/start-cycle"])
def test_missing_amount(sandbox: Sandbox, path: str) -> None:
    """A request without an amount is rejected."""
    refused(sandbox.handle(ask(path, {"end_user_id": USER})), 422, "INVALID_REQUEST")


@pytest.mark.parametrize("path", ["/add", "/start-cycle"])
@pytest.mark.parametrize("days", [True, 1.0, "1", [], -1, 10**7, 2**62, 2**63])
def test_rejected_days(sandbox: Sandbox, path: str, days: object) -> None:
    """Days must be a JSON integer, not negative, and end within the calendar."""
    response = sandbox.handle(ask(path, {**GOOD, "validity_days": days}))
    refused(response, 422, "INVALID_REQUEST")


def test_largest_amounts_add_up(sandbox: Sandbox) -> None:
    """A balance has no upper limit."""
    for _ in range(3):
        sandbox.handle(ask("/add", {**GOOD, "amount": 2**63 - 1}))
    assert read(sandbox.handle(ask("/get-active-balance")))["active_balance"] == 3 * (2**63 - 1)


@pytest.mark.parametrize("path", ["/add", "/subtract", "/start-cycle"])
def test_negative_amount(sandbox: Sandbox, path: str) -> None:
    """A negative amount gets a 400 with AMOUNT_NEGATIVE."""
    refused(sandbox.handle(ask(path, {**GOOD, "amount": -1})), 400, "AMOUNT_NEGATIVE")


@pytest.mark.parametrize("path", ["/subtract", "/stop-cycle", "/get-active-balance"])
def test_unknown_user(sandbox: Sandbox, path: str) -> None:
    """An unknown user gets a 404 with USER_DOES_NOT_EXIST."""
    refused(sandbox.handle(ask(path)), 404, "USER_DOES_NOT_EXIST")


def test_insufficient_funds(sandbox: Sandbox) -> None:
    """Too few credits get a 402 with INSUFFICIENT_FUNDS."""
    sandbox.handle(ask("/add"))
    response = sandbox.handle(ask("/subtract", {"end_user_id": USER, "amount": 6}))
    refused(response, 402, "INSUFFICIENT_FUNDS")


def test_credit_expired(sandbox: Sandbox, clock: Clock) -> None:
    """Expired credits get a 402 with CREDIT_EXPIRED."""
    clock.now = NOW - timedelta(days=30)
    sandbox.handle(ask("/add"))
    clock.now = NOW
    response = sandbox.handle(ask("/subtract", {"end_user_id": USER, "amount": 1}))
    refused(response, 402, "CREDIT_EXPIRED")


def test_active_cycle_exists(sandbox: Sandbox) -> None:
    """A second recurring cycle gets a 409 with ACTIVE_CYCLE_EXISTS."""
    sandbox.handle(ask("/start-cycle"))
    refused(sandbox.handle(ask("/start-cycle")), 409, "ACTIVE_CYCLE_EXISTS")


def test_no_active_cycle(sandbox: Sandbox) -> None:
    """Without a recurring cycle to stop, the response is a 409 with NO_ACTIVE_CYCLE."""
    sandbox.handle(ask("/add"))
    refused(sandbox.handle(ask("/stop-cycle")), 409, "NO_ACTIVE_CYCLE")


def test_applied(sandbox: Sandbox) -> None:
    """The four writes count as applied. A balance and a rejected request do not."""
    assert sandbox.process(ask("/add"))[1]
    assert sandbox.process(ask("/subtract"))[1]
    assert sandbox.process(ask("/start-cycle"))[1]
    assert sandbox.process(ask("/stop-cycle"))[1]
    assert not sandbox.process(ask("/get-active-balance"))[1]
    assert not sandbox.process(ask("/stop-cycle"))[1]
    assert not sandbox.process(ask("/add", b""))[1]
    assert not sandbox.process(ask("/add", authorization=None))[1]
    assert not sandbox.process(ask("/nowhere"))[1]
    assert not sandbox.process(ask("/add", method="PUT"))[1]


IDEMPOTENCY_KEY = ("Idempotency-Key", '"8e03978e"')


@pytest.mark.parametrize("path", ["/add", "/subtract", "/start-cycle", "/stop-cycle"])
def test_replay(sandbox: Sandbox, clock: Clock, path: str) -> None:
    """A repeated request with the same idempotency key gets the same response, and is applied once."""
    sandbox.handle(ask("/add", {**GOOD, "validity_days": 99}))
    if path == "/stop-cycle":
        sandbox.handle(ask("/start-cycle"))
    first, applied = sandbox.process(ask(path, GOOD, IDEMPOTENCY_KEY))
    assert applied
    assert first.status == 200
    clock.now += timedelta(hours=24) - timedelta(microseconds=1)
    after_first = sandbox.handle(ask("/get-active-balance"))
    assert sandbox.process(ask(path, GOOD, IDEMPOTENCY_KEY)) == (first, False)
    assert sandbox.handle(ask("/get-active-balance")) == after_first


def test_replay_is_forgotten_after_24_hours(sandbox: Sandbox, clock: Clock) -> None:
    """After 24 hours an idempotency key can be used again, also for another request."""
    assert sandbox.process(ask("/add", GOOD, IDEMPOTENCY_KEY))[1]
    clock.now += timedelta(hours=24)
    assert sandbox.process(ask("/subtract", GOOD, IDEMPOTENCY_KEY))[1]
    assert not sandbox.process(ask("/subtract", GOOD, IDEMPOTENCY_KEY))[1]


def test_refusal_is_replayed(sandbox: Sandbox) -> None:
    """A rejected request with an idempotency key gets the same response again."""
    refusal = sandbox.handle(ask("/subtract", GOOD, IDEMPOTENCY_KEY))
    refused(refusal, 404, "USER_DOES_NOT_EXIST")
    sandbox.handle(ask("/add"))
    assert sandbox.handle(ask("/subtract", GOOD, IDEMPOTENCY_KEY)) == refusal


@pytest.mark.parametrize(("path", "body"), [("/subtract", GOOD), ("/add", {**GOOD, "amount": 6})])
def test_key_with_another_request(sandbox: Sandbox, path: str, body: object) -> None:
    """An idempotency key with another path or body is rejected."""
    sandbox.handle(ask("/add", GOOD, IDEMPOTENCY_KEY))
    response, applied = sandbox.process(ask(path, body, IDEMPOTENCY_KEY))
    refused(response, 422, "IDEMPOTENCY_KEY_REUSED")
    assert not applied
    assert sandbox.process(ask("/add", GOOD, IDEMPOTENCY_KEY))[0].status == 200


def test_idempotency_keys_belong_to_an_api_key(sandbox: Sandbox) -> None:
    """Two API keys can use the same idempotency key."""
    sandbox.handle(ask("/add", GOOD, IDEMPOTENCY_KEY))
    other = ask("/add", GOOD, IDEMPOTENCY_KEY, authorization=("Authorization", "Bearer other"))
    assert sandbox.process(other)[1]


def test_empty_idempotency_key(sandbox: Sandbox) -> None:
    """An empty idempotency key counts as none. A balance ignores the key."""
    for _ in range(2):
        assert sandbox.process(ask("/add", GOOD, ("Idempotency-Key", " ")))[1]
    balances = set[bytes]()
    for _ in range(2):
        balances.add(sandbox.handle(ask("/get-active-balance", GOOD, IDEMPOTENCY_KEY)).body)
        sandbox.handle(ask("/add"))
    assert len(balances) == 2


def test_unauthorized_is_not_remembered(clock: Clock) -> None:
    """A request with a wrong API key does not use its idempotency key."""
    sandbox = Sandbox(api_key="k", clock=lambda: clock.now)
    bad = ask("/add", GOOD, IDEMPOTENCY_KEY, authorization=("Authorization", "Bearer bad"))
    refused(sandbox.handle(bad), 401, "UNAUTHORIZED")
    assert sandbox.process(ask("/add", GOOD, IDEMPOTENCY_KEY))[1]


def test_threads(sandbox: Sandbox) -> None:
    """Threads can share a sandbox. No credit is lost."""

    def add_often() -> None:
        for _ in range(50):
            sandbox.handle(ask("/add", {**GOOD, "amount": 1}))

    threads = [threading.Thread(target=add_often) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read(sandbox.handle(ask("/get-active-balance")))["active_balance"] == 200
