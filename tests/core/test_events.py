"""The judgement of each event, against a second statement of the table, written without the first.

In every table here the first row that matches decides.
"""

import json
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
)
from creduse_core.retry import event_of_failure, event_of_status, may_retry

USER = "12345678-1234-5678-1234-567812345678"
NOT, UNKNOWN, APPLIED = Outcome.NOT_APPLIED, Outcome.UNKNOWN, Outcome.APPLIED
YES, NO = True, False

ROWS = {
    "done": (APPLIED, NO),
    "not_sent": (NOT, YES),
    "unsendable": (NOT, NO),
    "no_answer": (UNKNOWN, YES),
    "broken": (UNKNOWN, NO),
    "abandoned": (UNKNOWN, NO),
    "misread": (APPLIED, NO),
    "cut": (UNKNOWN, YES),
    "not_ours": (UNKNOWN, NO),
    "refused": (NOT, NO),
    "rate_limited": (NOT, YES),
    "request_timeout": (UNKNOWN, YES),
    "server_error": (UNKNOWN, YES),
    "unproven": (UNKNOWN, NO),
}

# Statuses that are no 2xx. The second column: whether the row asks for an error_code.
ALL = {*range(100, 200), *range(300, 600), -1, 0, 99, 600, 999}
STATUSES: list[tuple[set[int], bool, str]] = [
    ({429}, NO, "rate_limited"),
    ({408}, NO, "request_timeout"),
    (set(range(400, 500)), YES, "refused"),
    ({400, 401, 402, 403, 404, 405, 406, 407}, NO, "refused"),
    ({410, 411, 412, 413, 414, 415, 416, 417}, NO, "refused"),
    ({421, 422, 423, 424, 425, 426, 428, 431, 451}, NO, "refused"),
    ({501, 505}, NO, "unproven"),
    (set(range(500, 600)), NO, "server_error"),
    (ALL, NO, "unproven"),
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


def row_of_status(status: int, *, has_code: bool) -> str:
    return next(
        name
        for statuses, asks_code, name in STATUSES
        if status in statuses and (has_code or not asks_code)
    )


def row_of_failure(failure: Failure) -> str:
    if failure.delivery is Delivery.NOT_SENT:
        return "not_sent" if failure.transient else "unsendable"
    if failure.response is None:
        return "no_answer" if failure.transient else "broken"
    if 200 <= failure.response.status <= 299:
        return "cut" if failure.transient else "not_ours"
    return row_of_status(failure.response.status, has_code=False)


def class_of_status(status: int) -> type[CreduseError]:
    return next(found for statuses, found in CLASSES if status in statuses)


def class_of_failure(failure: Failure) -> type[CreduseError]:
    if failure.timed_out:
        return CreduseTimeoutError
    return TransportError if head_of(failure) is None else InvalidResponseError


def head_of(failure: Failure) -> Response | None:
    """Give the head that counts: what answers a request that was not sent is not its answer."""
    return None if failure.delivery is Delivery.NOT_SENT else failure.response


def begin(kind: Kind) -> Call[Any]:
    """Give a call in flight that has one attempt."""
    policy = RetryPolicy(max_attempts=1, server_replays=True)
    protocol = CreduseProtocol("key", retry=policy)
    call: Call[Any]
    if kind is Kind.READ:
        call = protocol.get_balance(USER)
    else:
        key = "again" if kind is Kind.REPLAYABLE else None
        call = protocol.subtract(USER, 7, idempotency_key=key)
    call.start(0.0)
    return call


def answer(status: int, **fields: object) -> Response:
    return Response(status, (), json.dumps(fields).encode())


def evidence(row: str, kind: Kind) -> Outcome:
    return NOT if kind is Kind.READ else ROWS[row][0]


def test_rows() -> None:
    """The table has these rows, and each proves and allows this."""
    assert {name: (row.evidence, row.transient) for name, row in EVENTS.items()} == ROWS


def test_rows_are_described() -> None:
    """Each row bears the name that it is found under, and says what it is about."""
    assert all(row.name == name and row.description for name, row in EVENTS.items())


@pytest.mark.parametrize("has_code", [True, False], ids=["code", "no code"])
def test_row_of_each_status(has_code: bool) -> None:  # noqa: FBT001 - a column
    """Every status that is no 2xx finds its row, with and without an ``error_code``."""
    found = {status: event_of_status(status, has_code=has_code).name for status in ALL}
    assert found == {status: row_of_status(status, has_code=has_code) for status in ALL}


def test_row_of_each_failure() -> None:
    """Every failure finds its row: delivery, transience, time-out and head in any mixture."""
    found = [event_of_failure(failure).name for failure in FAILURES]
    assert found == [row_of_failure(failure) for failure in FAILURES]


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("code", [None, "SOMETHING_NEW", *CODES])
def test_error_of_each_answer(code: str | None, kind: Kind) -> None:
    """A known code picks the error whatever the status, else the status does; the row, the rest."""
    for status in (*ALL, *range(200, 300)):
        call = begin(kind)
        fields = {} if code is None else {"error_code": code}
        with pytest.raises(CreduseError) as caught:
            call.receive_response(answer(status, **fields), 1.0)
        error, (attempt,) = caught.value, call.attempts
        row = (
            "not_ours" if 200 <= status <= 299 else row_of_status(status, has_code=code is not None)
        )
        proved = evidence(row, kind)
        assert type(error) is CODES.get(code or "", class_of_status(status)), status
        assert (attempt.event, attempt.status, attempt.outcome) == (row, status, proved)
        assert (error.outcome, call.outcome, error.attempts) == (proved, proved, (attempt,))


@pytest.mark.parametrize("kind", Kind)
def test_error_of_each_failure(kind: Kind) -> None:
    """A time-out, no answer and a cut one raise their errors, caused by the library's own."""
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
        (answer(200, end_user_id=USER, amount=7), "done"),
        (answer(299, end_user_id=USER, amount=7), "done"),
        (answer(200, end_user_id=USER, amount=8), "not_ours"),
        (answer(200, end_user_id=USER, amount=7, error_code="NEW"), "not_ours"),
        (answer(200, end_user_id=USER, amount=7, error_code=5), "not_ours"),
        (answer(200, end_user_id=USER, amount=7, error_code=None), "done"),
        (answer(200, end_user_id=USER, amount=7, error_code=""), "done"),
        (answer(409, error_code=None), "unproven"),
        (answer(409, error_code=""), "unproven"),
        (answer(409, error_code=5), "unproven"),
        (answer(409, error_code="x"), "refused"),
        (answer(409, end_user_id=USER, amount=7), "unproven"),
        (Response(409, (), b"error_code"), "unproven"),
        (Response(200, (), b"ok"), "not_ours"),
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
        "409 with a code",
        "409 that looks like a result",
        "409 that is not JSON",
        "200 that is not JSON",
    ],
)
def test_row_of_an_answer(given: Response, row: str, kind: Kind) -> None:
    """An answer is judged by what it proves, and an ``error_code`` counts if it is text."""
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
    """No row of the table is there in vain."""
    begun = begin(Kind.WRITE)
    begun.abandon(1.0)
    misread = begin(Kind.READ)
    with pytest.raises(InvalidResponseError):
        misread.receive_response(answer(200, end_user_id=USER), 1.0)
    done = begin(Kind.WRITE)
    done.receive_response(answer(200, end_user_id=USER, amount=7), 1.0)
    reached = {call.attempts[0].event for call in (begun, misread, done)}
    reached |= {event_of_status(status, has_code=False).name for status in ALL}
    reached |= {event_of_failure(failure).name for failure in FAILURES}
    assert reached == set(EVENTS)


@pytest.mark.parametrize("kind", Kind)
def test_what_may_be_sent_again(kind: Kind) -> None:
    """Only a transient event is tried again, and a write only if nothing can have been applied."""
    allowed = {
        (name, proved)
        for name, proved in product(EVENTS, Outcome)
        if may_retry(EVENTS[name], kind, proved)
    }
    so_far = [NOT] if kind is Kind.WRITE else list(Outcome)
    transient = [name for name, (_, again) in ROWS.items() if again]
    assert allowed == set(product(transient, so_far))
