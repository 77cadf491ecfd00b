"""What each event proves, compared with a second table that was written independently.

In every table here the first row that matches decides.
"""

import json
from collections.abc import Container
from itertools import product
from typing import Any

import pytest

from creduse_core import (
    EVENTS,
    ActiveCycleExistsError,
    AmountNegativeError,
    APIError,
    AuthenticationError,
    Call,
    CreditExpiredError,
    CreduseError,
    CreduseProtocol,
    CreduseTimeoutError,
    Delivery,
    Failure,
    InsufficientFundsError,
    InvalidResponseError,
    Kind,
    NoActiveCycleError,
    Outcome,
    RateLimitError,
    Response,
    RetryPolicy,
    ServerError,
    TransportError,
    UserDoesNotExistError,
    Wait,
    may_ask_proxy_again,
)
from creduse_core.retry import event_of_failure, event_of_status, may_retry
from tests.common import USER_ID

NOT, UNKNOWN, APPLIED = Outcome.NOT_APPLIED, Outcome.UNKNOWN, Outcome.APPLIED
YES, NO = True, False

# What each proves of a write, of one with an idempotency key, and whether a retry may help.
ROWS = {
    "done": (APPLIED, APPLIED, NO),
    "not_sent": (NOT, NOT, YES),
    "unsendable": (NOT, NOT, NO),
    "no_response": (UNKNOWN, UNKNOWN, YES),
    "broken": (UNKNOWN, UNKNOWN, NO),
    "abandoned": (UNKNOWN, UNKNOWN, NO),
    "misread": (APPLIED, APPLIED, NO),
    "cut": (UNKNOWN, UNKNOWN, YES),
    "mismatched": (UNKNOWN, UNKNOWN, NO),
    "refused": (NOT, NOT, NO),
    "rejected": (NOT, UNKNOWN, NO),
    "conflict": (UNKNOWN, UNKNOWN, YES),
    "rate_limited": (NOT, UNKNOWN, YES),
    "request_timeout": (UNKNOWN, UNKNOWN, YES),
    "server_error": (UNKNOWN, UNKNOWN, YES),
    "unproven": (UNKNOWN, UNKNOWN, NO),
}

# Statuses that are no 2xx. The second column: the codes that the row asks for.
ALL = {*range(100, 200), *range(300, 600), -1, 0, 99, 600, 999}
KNOWN = {
    *("AMOUNT_NEGATIVE", "INSUFFICIENT_FUNDS", "USER_DOES_NOT_EXIST"),
    *("CREDIT_EXPIRED", "ACTIVE_CYCLE_EXISTS", "NO_ACTIVE_CYCLE"),
}
OTHER = {"SOMETHING_NEW", "insufficient_funds"}
ANY: list[str | None] = [None, *sorted(OTHER), *sorted(KNOWN)]
STATUSES: list[tuple[set[int], Container[str | None], str]] = [
    (set(range(400, 500)), KNOWN, "refused"),
    ({429}, ANY, "rate_limited"),
    ({408}, ANY, "request_timeout"),
    ({409}, ANY, "conflict"),
    (set(range(400, 500)), OTHER, "rejected"),
    ({400, 401, 402, 403, 404, 405, 406, 407}, ANY, "rejected"),
    ({410, 411, 412, 413, 414, 415, 416, 417}, ANY, "rejected"),
    ({421, 422, 423, 424, 425, 426, 428, 431, 451}, ANY, "rejected"),
    ({501, 505}, ANY, "unproven"),
    (set(range(500, 600)), ANY, "server_error"),
    (ALL, ANY, "unproven"),
]

CODES: dict[str, type[APIError]] = {
    "AMOUNT_NEGATIVE": AmountNegativeError,
    "INSUFFICIENT_FUNDS": InsufficientFundsError,
    "USER_DOES_NOT_EXIST": UserDoesNotExistError,
    "CREDIT_EXPIRED": CreditExpiredError,
    "ACTIVE_CYCLE_EXISTS": ActiveCycleExistsError,
    "NO_ACTIVE_CYCLE": NoActiveCycleError,
}
CLASSES: list[tuple[set[int], type[CreduseError]]] = [
    ({401, 403}, AuthenticationError),
    ({429}, RateLimitError),
    (set(range(400, 500)), APIError),
    (set(range(500, 600)), ServerError),
    (ALL | set(range(200, 300)), InvalidResponseError),
]

CUT = (100, 199, 200, 206, 299, 302, 402, 408, 409, 429, 431, 500, 501, 503, 505, 600)
HEADS = (None, *(Response(status, (), b'{"error') for status in CUT))
FAILURES = [
    Failure(delivery, OSError("gone"), transient, timed_out, head)
    for delivery, transient, timed_out, head in product(Delivery, (YES, NO), (YES, NO), HEADS)
]


def row_of_status(status: int, code: str | None) -> str:
    return next(name for statuses, codes, name in STATUSES if status in statuses and code in codes)


def row_of_failure(failure: Failure) -> str:
    if failure.delivery is Delivery.NOT_SENT:
        return "not_sent" if failure.transient else "unsendable"
    if failure.response is None:
        return "no_response" if failure.transient else "broken"
    if 200 <= failure.response.status <= 299:
        return "cut" if failure.transient else "mismatched"
    return row_of_status(failure.response.status, None)


def class_of_status(status: int) -> type[CreduseError]:
    return next(found for statuses, found in CLASSES if status in statuses)


def class_of_failure(failure: Failure) -> type[CreduseError]:
    if failure.timed_out:
        return CreduseTimeoutError
    return TransportError if head_of(failure) is None else InvalidResponseError


def head_of(failure: Failure) -> Response | None:
    """Return the head that counts: a request that was not sent has no response."""
    return None if failure.delivery is Delivery.NOT_SENT else failure.response


def begin(kind: Kind) -> Call[Any]:
    """Return a call in flight that has one attempt."""
    policy = RetryPolicy(max_attempts=1, server_replays=True)
    protocol = CreduseProtocol("key", retry=policy)
    call: Call[Any]
    if kind is Kind.READ:
        call = protocol.get_balance(USER_ID)
    else:
        key = "again" if kind is Kind.REPLAYABLE else None
        call = protocol.subtract(USER_ID, 7, idempotency_key=key)
    call.start(0.0)
    return call


def response(status: int, **fields: object) -> Response:
    return Response(status, (), json.dumps(fields).encode())


def evidence(row: str, kind: Kind) -> Outcome:
    proved, with_key, _ = ROWS[row]
    return {Kind.READ: NOT, Kind.WRITE: proved, Kind.REPLAYABLE: with_key}[kind]


def test_rows() -> None:
    """The table has these rows, with these outcomes and retries."""
    assert {
        name: (row.evidence, row.evidence_with_key, row.transient) for name, row in EVENTS.items()
    } == ROWS


def test_rows_are_described() -> None:
    """Each row has a name and a description."""
    assert all(row.name == name and row.description for name, row in EVENTS.items())


@pytest.mark.parametrize("code", ANY)
def test_row_of_each_status(code: str | None) -> None:
    """Every status outside 2xx has its row, with and without an ``error_code``."""
    found = {status: event_of_status(status, code).name for status in ALL}
    assert found == {status: row_of_status(status, code) for status in ALL}


def test_row_of_each_failure() -> None:
    """Every failure has its row, for all combinations of delivery, transience, timeout and head."""
    found = [event_of_failure(failure).name for failure in FAILURES]
    assert found == [row_of_failure(failure) for failure in FAILURES]


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("code", [None, "SOMETHING_NEW", *CODES])
def test_error_of_each_response(code: str | None, kind: Kind) -> None:
    """A known code under 4xx chooses the class, else the status does; the row decides the rest."""
    for status in (*ALL, *range(200, 300)):
        call = begin(kind)
        fields = {} if code is None else {"error_code": code}
        with pytest.raises(CreduseError) as caught:
            call.receive_response(response(status, **fields), 1.0)
        error, (attempt,) = caught.value, call.attempts
        row = "mismatched" if 200 <= status <= 299 else row_of_status(status, code)
        proved = evidence(row, kind)
        by_code = CODES.get(code or "") if 400 <= status <= 499 else None
        assert type(error) is (by_code or class_of_status(status)), status
        assert code is None or f"{status}" in str(error)
        assert code is None or code in str(error)
        assert (attempt.event, attempt.status, attempt.outcome) == (row, status, proved)
        assert (error.outcome, call.outcome, error.attempts) == (proved, proved, (attempt,))


@pytest.mark.parametrize("kind", Kind)
def test_error_of_each_failure(kind: Kind) -> None:
    """Each failure raises its class of error, caused by the library's exception."""
    for failure in FAILURES:
        call = begin(kind)
        with pytest.raises(CreduseError) as caught:
            call.receive_failure(failure, 1.0)
        error, (attempt,) = caught.value, call.attempts
        row = row_of_failure(failure)
        proved = evidence(row, kind)
        head = head_of(failure)
        assert type(error) is class_of_failure(failure), failure
        assert error.__cause__ is failure.cause
        assert (attempt.event, attempt.outcome) == (row, proved)
        assert attempt.status == (None if head is None else head.status)
        assert (error.outcome, call.outcome, error.attempts) == (proved, proved, (attempt,))
        assert getattr(error, "response", head) == call.response == head


@pytest.mark.parametrize("kind", [Kind.WRITE, Kind.REPLAYABLE])
@pytest.mark.parametrize(
    ("given", "row"),
    [
        (response(200, end_user_id=USER_ID, amount=7), "done"),
        (response(299, end_user_id=USER_ID, amount=7), "done"),
        (response(200, end_user_id=USER_ID, amount=8), "mismatched"),
        (response(200, end_user_id=USER_ID, amount=7, error_code="NEW"), "mismatched"),
        (response(200, end_user_id=USER_ID, amount=7, error_code=5), "mismatched"),
        (response(200, end_user_id=USER_ID, amount=7, error_code=None), "done"),
        (response(200, end_user_id=USER_ID, amount=7, error_code=""), "done"),
        (response(409, error_code=None), "conflict"),
        (response(409, error_code=""), "conflict"),
        (response(409, error_code=5), "conflict"),
        (response(409, error_code="x"), "conflict"),
        (response(409, error_code="NO_ACTIVE_CYCLE"), "refused"),
        (response(409, end_user_id=USER_ID, amount=7), "conflict"),
        (Response(409, (), b"error_code"), "conflict"),
        (response(418, error_code=""), "unproven"),
        (response(418, error_code="x"), "rejected"),
        (Response(200, (), b"ok"), "mismatched"),
    ],
    ids=[
        "ours",
        "ours under 299",
        "another amount",
        "ours with a code",
        "ours with a number for a code",
        "ours with null for a code",
        "ours with an empty code",
        "409 with null for a code",
        "409 with an empty code",
        "409 with a number for a code",
        "409 with another code",
        "409 with a known code",
        "409 that looks like a result",
        "409 that is not JSON",
        "418 with an empty code",
        "418 with another code",
        "200 that is not JSON",
    ],
)
def test_row_of_each_response(given: Response, row: str, kind: Kind) -> None:
    """A response gets the row of what it proves; an ``error_code`` counts only if it is text."""
    call = begin(kind)
    if row == "done":
        call.receive_response(given, 1.0)
    else:
        with pytest.raises(CreduseError) as caught:
            call.receive_response(given, 1.0)
        assert caught.value.outcome is evidence(row, kind)
    assert call.attempts[0].event == row
    assert call.outcome is evidence(row, kind)


def test_every_row_is_reached() -> None:
    """Every row of the table can occur."""
    begun = begin(Kind.WRITE)
    begun.abandon(1.0)
    misread = begin(Kind.READ)
    with pytest.raises(InvalidResponseError):
        misread.receive_response(response(200, end_user_id=USER_ID), 1.0)
    done = begin(Kind.WRITE)
    done.receive_response(response(200, end_user_id=USER_ID, amount=7), 1.0)
    reached = {call.attempts[0].event for call in (begun, misread, done)}
    reached |= {event_of_status(status, code).name for status in ALL for code in ANY}
    reached |= {event_of_failure(failure).name for failure in FAILURES}
    assert reached == set(EVENTS)


@pytest.mark.parametrize("kind", Kind)
def test_retried_events(kind: Kind) -> None:
    """Only a transient event is retried, and a write only if nothing can have been applied."""
    allowed = {
        (name, proved)
        for name, proved in product(EVENTS, Outcome)
        if may_retry(EVENTS[name], kind, proved)
    }
    so_far = [NOT] if kind is Kind.WRITE else list(Outcome)
    transient = [name for name, (*_, again) in ROWS.items() if again]
    assert allowed == set(product(transient, so_far))


@pytest.mark.parametrize(
    ("last", "error_class"),
    [
        (response(402, error_code="INSUFFICIENT_FUNDS"), APIError),
        (response(409, error_code="ACTIVE_CYCLE_EXISTS"), APIError),
        (response(401, error_code="USER_DOES_NOT_EXIST"), AuthenticationError),
    ],
    ids=["402", "409", "401"],
)
@pytest.mark.parametrize(
    ("first", "error"),
    [(response(503), None), (FAILURES[0], OSError("unsent"))],
    ids=["may have been applied", "not sent"],
)
def test_known_code_after_an_attempt(
    first: Any, error: object, last: Response, error_class: type[APIError]
) -> None:
    """The class of a known code, which says that nothing moved, is not raised if that is not sure."""
    policy = RetryPolicy(server_replays=True)
    call = CreduseProtocol("key", retry=policy).subtract(USER_ID, 7, idempotency_key="once")
    call.start(0.0)
    if error is None:
        call.receive_response(first, 1.0)
    else:
        assert first.delivery is Delivery.NOT_SENT
        call.receive_failure(first, 1.0)
    call.wake(2.0)
    with pytest.raises(APIError) as caught:
        call.receive_response(last, 3.0)
    code = json.loads(last.body)["error_code"]
    assert caught.value.error_code == code
    assert caught.value.outcome is (UNKNOWN if error is None else NOT)
    assert type(caught.value) is (error_class if error is None else CODES[code])


@pytest.mark.parametrize("status", [409, 429])
def test_key_in_use(status: int) -> None:
    """The client retries while the server still works on the key; the outcome is UNKNOWN until then."""
    policy = RetryPolicy(server_replays=True)
    call = CreduseProtocol("key", retry=policy).subtract(USER_ID, 7, idempotency_key="once")
    call.start(0.0)
    assert isinstance(call.receive_response(response(status, error_code="KEY_IN_USE"), 1.0), Wait)
    assert call.outcome is UNKNOWN
    call.wake(2.0)
    call.receive_response(response(200, end_user_id=USER_ID, amount=7), 3.0)
    assert call.outcome is APPLIED


@pytest.mark.parametrize("status", sorted(ALL))
def test_proxy_that_refuses(status: int) -> None:
    """A proxy's refusal says of a retry what the same status of the service says."""
    assert may_ask_proxy_again(status) is (ROWS[row_of_status(status, None)][2] is YES)
