"""Timeouts, deadlines and waits between attempts."""

import json
from typing import Any

import pytest

from creduse_core import (
    APIError,
    Call,
    CreditsSubtracted,
    CreduseError,
    CreduseProtocol,
    Delivery,
    Done,
    Failure,
    Kind,
    Outcome,
    RateLimitError,
    Response,
    RetryPolicy,
    State,
    Wait,
)
from creduse_core.retry import retry_after
from tests.common import USER_ID

UNSENT = Failure(Delivery.NOT_SENT, OSError("refused"), transient=True)
DATE = ("Date", "Sun, 06 Nov 1994 08:49:37 GMT")


def make(kind: Kind, *, timeout: float = 30.0, **policy: Any) -> Call[Any]:
    protocol = CreduseProtocol(
        "key", timeout=timeout, retry=RetryPolicy(server_replays=True, **policy)
    )
    if kind is Kind.READ:
        return protocol.get_balance(USER_ID)
    return protocol.subtract(USER_ID, 7, idempotency_key="k" if kind is Kind.REPLAYABLE else None)


def asking(value: str, status: int = 429, date: str | None = DATE[1]) -> Response:
    """Return a response that asks for a wait."""
    dated = [] if date is None else [("Date", date)]
    return Response(status, [*dated, ("Retry-After", value)], b"")


def waits(policy: RetryPolicy, jitter: float) -> list[float]:
    """Return the wait after each attempt that fails."""
    call = CreduseProtocol("key", retry=policy, timeout=1_000_000).get_balance(USER_ID)
    call.start(0.0)
    found: list[float] = []
    while True:
        try:
            found.append(call.receive_failure(UNSENT, 0.0, jitter).seconds)
        except CreduseError:
            return found
        call.wake(0.0)


@pytest.mark.parametrize(
    ("kind", "timeout", "connecting", "responding"),
    [
        (Kind.READ, 30.0, 10.0, 10.0),
        (Kind.REPLAYABLE, 30.0, 10.0, 10.0),
        (Kind.WRITE, 30.0, 10.0, 30.0),
        (Kind.READ, 4.0, 4.0, 4.0),
        (Kind.REPLAYABLE, 4.0, 4.0, 4.0),
        (Kind.WRITE, 4.0, 4.0, 4.0),
    ],
)
def test_first_attempt(kind: Kind, timeout: float, connecting: float, responding: float) -> None:
    """Connecting is bounded for all calls; the response only where a retry is possible."""
    send = make(kind, timeout=timeout).start(1000.0)
    assert (send.connect_by, send.deadline) == (1000.0 + connecting, 1000.0 + responding)


@pytest.mark.parametrize(
    ("kind", "connecting", "responding"),
    [(Kind.READ, 10.0, 10.0), (Kind.REPLAYABLE, 10.0, 10.0), (Kind.WRITE, 10.0, 18.0)],
)
def test_later_attempts(kind: Kind, connecting: float, responding: float) -> None:
    """All attempts and waits share the deadline of the call."""
    call = make(kind)
    call.start(1000.0)
    call.receive_failure(UNSENT, 1011.0)
    send = call.wake(1012.0)
    assert (send.connect_by, send.deadline) == (1012.0 + connecting, 1012.0 + responding)
    call.receive_failure(UNSENT, 1020.0)
    last = call.wake(1025.0)
    assert (last.connect_by, last.deadline) == (1030.0, 1030.0)


def test_timeout_of_one_call() -> None:
    """A call's own timeout replaces the protocol's."""
    protocol = CreduseProtocol("key", timeout=30.0)
    assert protocol.subtract(USER_ID, 7, timeout=2).start(0.0).deadline == 2
    assert protocol.subtract(USER_ID, 7, timeout=99.5).start(0.0).deadline == 99.5
    assert protocol.subtract(USER_ID, 7).start(0.0).deadline == 30.0


@pytest.mark.parametrize("now", [30.0, 31.0])
def test_woken_too_late(now: float) -> None:
    """A call that is woken after its deadline raises its last error and sends nothing."""
    call = make(Kind.WRITE)
    call.start(0.0)
    call.receive_failure(UNSENT, 1.0)
    call.wake(2.0)
    call.receive_response(asking("1"), 3.0)
    with pytest.raises(RateLimitError) as caught:
        call.wake(now)
    assert caught.value.retry_after == 1.0
    assert caught.value.attempts == call.attempts
    assert [attempt.event for attempt in call.attempts] == ["not_sent", "rate_limited"]
    assert (call.state, call.outcome) == (State.FAILED, Outcome.NOT_APPLIED)


def test_woken_just_in_time() -> None:
    """An attempt gets the time that is left after a wait."""
    call = make(Kind.WRITE)
    call.start(0.0)
    call.receive_failure(UNSENT, 1.0)
    send = call.wake(29.5)
    assert (send.connect_by, send.deadline) == (30.0, 30.0)


def test_late_result() -> None:
    """A result after the deadline is a result."""
    call = make(Kind.WRITE)
    call.start(0.0)
    body = json.dumps({"end_user_id": USER_ID, "amount": 7}).encode()
    done = call.receive_response(Response(200, (), body), 99.0)
    assert isinstance(done, Done)
    assert isinstance(done.result, CreditsSubtracted)


def test_late_refusal() -> None:
    """A refusal after the deadline is as certain as one in time."""
    call = make(Kind.WRITE)
    call.start(0.0)
    with pytest.raises(APIError) as caught:
        call.receive_response(Response(402, (), b""), 99.0)
    assert caught.value.outcome is Outcome.NOT_APPLIED


@pytest.mark.parametrize(
    ("policy", "jitter", "expected"),
    [
        (RetryPolicy(), 1.0, [0.5, 1.0]),
        (RetryPolicy(max_attempts=1), 1.0, []),
        (RetryPolicy(max_attempts=8), 1.0, [0.5, 1, 2, 4, 8, 8, 8]),
        (RetryPolicy(max_attempts=4, initial_delay=1), 0.5, [0.5, 1, 2]),
        (RetryPolicy(max_attempts=4), 0.0, [0, 0, 0]),
        (RetryPolicy(max_attempts=4, initial_delay=0), 1.0, [0, 0, 0]),
        (RetryPolicy(max_attempts=4, initial_delay=3, max_delay=5), 1.0, [3, 5, 5]),
        (RetryPolicy(max_attempts=4, initial_delay=3, max_delay=5), 0.5, [1.5, 2.5, 2.5]),
        (RetryPolicy(max_attempts=3, initial_delay=3, max_delay=1), 1.0, [1, 1]),
        (RetryPolicy(max_attempts=3, max_delay=0), 1.0, [0, 0]),
    ],
    ids=str,
)
def test_backoff(policy: RetryPolicy, jitter: float, expected: list[float]) -> None:
    """Delays double up to the maximum, then jitter shortens them."""
    assert waits(policy, jitter) == expected


def test_backoff_of_a_great_many_attempts() -> None:
    """The delay stays at the maximum, however many attempts there were."""
    policy = RetryPolicy(max_attempts=1200, max_delay=1)
    assert set(waits(policy, 1.0)[1:]) == {1.0}


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0),
        ("7", 7.0),
        (" 7 ", 7.0),
        ("007", 7.0),
        ("1.5", 1.5),
        ("0.0", 0.0),
        ("9" * 400, 1e9),
        ("9" * 9000 + ".5", 1e9),
        ("Sun, 06 Nov 9994 08:49:37 GMT", 1e9),
        ("Sun, 06 Nov 1994 08:49:47 GMT", 10.0),
        ("Mon, 07 Nov 1994 08:49:37 GMT", 86400.0),
        (" Sun, 06 Nov 1994 08:49:47 GMT ", 10.0),
        ("Sun Nov  6 08:49:47 1994", 10.0),
        ("Wed Nov 16 08:49:37 1994", 864000.0),
        ("Sun, 06 Nov 1994 08:50:60 GMT", 82.0),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 0.0),
        ("Sun, 06 Nov 1994 08:49:27 GMT", 0.0),
        ("Sat Nov  5 08:49:37 1994", 0.0),
        ("", None),
        ("soon", None),
        ("-1", None),
        ("+1", None),
        ("-0", None),
        ("-1.5", None),
        (".5", None),
        ("1.", None),
        ("1.5.0", None),
        ("1,5", None),
        ("1.5s", None),
        ("inf", None),
        ("nan", None),
        ("1e3", None),
        ("1e999", None),
        ("0x10", None),
        ("1_0", None),
        ("1, 2", None),
        ("\u0667", None),
        ("\u00b2", None),
        ("Sun, 06 Nov 1994 08:49:47 CET", None),
        ("Sun, 06 Nov 1994 08:49:47", None),
        ("Sun, 6 Nov 1994 08:49:47 GMT", None),
        ("Sun, 31 Feb 1994 08:49:47 GMT", None),
        ("Sun, 06 Nix 1994 08:49:47 GMT", None),
        ("Sun, 06 Nov 1994 24:49:47 GMT", None),
        ("Sun, 06 Nov 1994 08:60:47 GMT", None),
        ("1994-11-06T08:49:47Z", None),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_retry_after(value: str, seconds: float | None) -> None:
    """Seconds and the three forms of a date are read; a past date means 0."""
    assert retry_after(asking(value)) == seconds


@pytest.mark.parametrize(
    "date",
    [
        "Sat, 06 Nov 2094 08:49:37 GMT",
        "Saturday, 06-Nov-94 08:49:37 GMT",
        "Sat Nov  6 08:49:37 2094",
    ],
    ids=["IMF-fixdate", "RFC 850", "asctime"],
)
def test_date_against_any_date(date: str) -> None:
    """Each form of a date is measured against each; a two-digit year is in this century."""
    forms = (
        "Sat, 06 Nov 2094 08:50:07 GMT",
        "Saturday, 06-Nov-94 08:50:07 GMT",
        "Sat Nov  6 08:50:07 2094",
    )
    assert [retry_after(asking(form, date=date)) for form in forms] == [30.0, 30.0, 30.0]


@pytest.mark.parametrize(
    ("year", "seconds"), [("76", 1e9), ("75", 1e9), ("77", 0.0), ("94", 0.0), ("26", 0.0)]
)
def test_two_digit_year(year: str, seconds: float) -> None:
    """A two-digit year that seems more than 50 years ahead has passed (RFC 9110, 5.6.7)."""
    response = asking(f"Sunday, 06-Nov-{year} 08:49:37 GMT", date="Fri, 06 Nov 2026 08:49:37 GMT")
    assert retry_after(response) == seconds


@pytest.mark.parametrize("date", [None, "", "yesterday", "1994"])
def test_date_without_date(date: str | None) -> None:
    """A date is ignored if the response has no Date."""
    assert retry_after(asking("Sun, 06 Nov 1994 08:49:47 GMT", date=date)) is None


def test_seconds_without_date() -> None:
    """Seconds need no Date."""
    assert retry_after(asking("7", date=None)) == 7.0


def test_field_names_in_any_case() -> None:
    """Header names are case-insensitive."""
    fields = [("date", DATE[1]), ("RETRY-after", "Sun, 06 Nov 1994 08:49:47 GMT")]
    assert retry_after(Response(429, fields, b"")) == 10.0
    assert retry_after(Response(429, [DATE], b"")) is None


@pytest.mark.parametrize("jitter", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(
    ("kind", "status", "value", "seconds"),
    [
        (Kind.WRITE, 429, "7", 7.0),
        (Kind.WRITE, 429, "1.5", 1.5),
        (Kind.WRITE, 429, "Sun, 06 Nov 1994 08:49:47 GMT", 10.0),
        (Kind.READ, 503, "7", 7.0),
        (Kind.REPLAYABLE, 503, "12", 12.0),
        (Kind.READ, 408, "7", 7.0),
    ],
)
def test_asked_to_wait(kind: Kind, status: int, value: str, seconds: float, jitter: float) -> None:
    """The client waits as long as the server asks, regardless of jitter and maximum delay."""
    call = make(kind, max_delay=1)
    call.start(0.0)
    assert call.receive_response(asking(value, status), 1.0, jitter) == Wait(seconds)


@pytest.mark.parametrize("value", ["0", "0.1", "Sun, 06 Nov 1994 08:49:27 GMT"])
@pytest.mark.parametrize("jitter", [0.5, 1.0])
def test_asked_for_less_than_the_backoff(value: str, jitter: float) -> None:
    """A server that asks for no wait, or a past date, gets the policy's delay."""
    call = make(Kind.WRITE, initial_delay=2)
    call.start(0.0)
    assert call.receive_response(asking(value), 1.0, jitter) == Wait(2 * jitter)
    call.wake(4.0)
    assert call.receive_response(asking(value), 5.0, jitter) == Wait(4 * jitter)
    call.wake(10.0)
    with pytest.raises(RateLimitError) as caught:
        call.receive_response(asking(value), 11.0, jitter)
    assert caught.value.retry_after == float(value if value.startswith("0") else 0)


def test_asked_by_a_cut_response() -> None:
    """Retry-After counts in a response whose body was cut."""
    call = make(Kind.READ)
    call.start(0.0)
    cut = Failure(Delivery.MAYBE_SENT, OSError(), transient=True, response=asking("7", 503))
    assert call.receive_failure(cut, 1.0) == Wait(7.0)


@pytest.mark.parametrize("value", ["29", "3600", "9" * 400])
@pytest.mark.parametrize("kind", Kind)
def test_asked_to_wait_too_long(kind: Kind, value: str) -> None:
    """A wait that would reach the deadline is not begun, and the error has its length."""
    call = make(kind)
    call.start(0.0)
    with pytest.raises(RateLimitError) as caught:
        call.receive_response(asking(value), 1.0)
    assert caught.value.retry_after == min(float(value), 1e9)
    assert len(caught.value.attempts) == 1


@pytest.mark.parametrize("status", [429, 503, 402])
def test_error_says_what_was_asked(status: int) -> None:
    """Every error for a response has its Retry-After."""
    call = make(Kind.WRITE, max_attempts=1)
    call.start(0.0)
    with pytest.raises(APIError) as caught:
        call.receive_response(asking("7", status), 1.0)
    assert caught.value.retry_after == 7.0


@pytest.mark.parametrize(("now", "goes_on"), [(28.9, True), (29.0, False), (29.5, False)])
def test_no_time_for_the_backoff(now: float, goes_on: bool) -> None:  # noqa: FBT001 - a column
    """A delay that would reach the deadline is not begun either."""
    call = make(Kind.WRITE, initial_delay=1)
    call.start(0.0)
    if goes_on:
        assert call.receive_failure(UNSENT, now) == Wait(1.0)
    else:
        with pytest.raises(CreduseError):
            call.receive_failure(UNSENT, now)
