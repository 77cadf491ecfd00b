"""Responses that prove nothing, and responses that prove the write but cannot be read."""

import json
import math
import sys
import time
from collections.abc import Mapping
from typing import Any

import pytest

from creduse_core import (
    MAX_BODY_SIZE,
    APIError,
    Call,
    CreduseError,
    CreduseProtocol,
    Done,
    InsufficientFundsError,
    InvalidResponseError,
    Outcome,
    Response,
)
from tests.common import USER_ID

OTHER = "12345678-1234-5678-1234-567812345679"
PROTOCOL = CreduseProtocol("key")
NOT, UNKNOWN, APPLIED = Outcome.NOT_APPLIED, Outcome.UNKNOWN, Outcome.APPLIED

CREDITS: dict[str, object] = {"end_user_id": USER_ID, "amount": 7}
CYCLE = CREDITS | {
    "created_at": "2024-01-01T18:50:22",
    "current_cycle_start": "2024-01-31T23:59:59",
    "current_cycle_end": "2024-02-29T23:59:59",
    "status": "active",
    "cycle_type": "recurring",
}
PART: dict[str, object] = {
    "cycle_start": "2025-08-12T14:35:55.423145Z",
    "cycle_end": "2025-08-14T23:59:59.999999Z",
    "amount": 43,
    "starting_amount": 50,
    "status": "active",
    "cycle_type": "recurring",
}
RESPONSES: dict[str, dict[str, object]] = {
    "add": CREDITS | {"validity_days": 31},
    "subtract": CREDITS,
    "start_cycle": CYCLE,
    "stop_cycle": CYCLE,
    "get_balance": {
        "end_user_id": USER_ID,
        "active_balance": 53,
        "active_balance_by_cycle": [PART],
    },
}
ARGUMENTS: dict[str, tuple[object, ...]] = {
    "add": (USER_ID, 7),
    "subtract": (USER_ID, 7),
    "start_cycle": (USER_ID, 7),
    "stop_cycle": (USER_ID,),
    "get_balance": (USER_ID,),
}

# What may stand in each field; all else is of the wrong type.
KINDS = {
    "amount": "integer",
    "active_balance": "integer",
    "validity_days": "integer or nothing",
    "starting_amount": "integer or nothing",
    "created_at": "time",
    "current_cycle_start": "time",
    "current_cycle_end": "time",
    "cycle_start": "time",
    "cycle_end": "time",
    "active_balance_by_cycle": "list",
    "status": "text or nothing",
    "cycle_type": "text or nothing",
}
VALUES: dict[str, object] = {
    "nothing": None,
    "integer": 7,
    "7.0": 7.0,
    "7e0": float("7e0"),
    "7.5": 7.5,
    "2e53": 2e53,
    "infinity": math.inf,
    "true": True,
    "NaN": math.nan,
    "'7'": "7",
    "time": "2024-01-01T18:50:22",
    "a day": "2024-01-31",
    "a time of no day": "2024-02-30T18:50:22",
    "list": [],
    "object": {},
}
FITTING = {
    "integer": {"integer", "7.0", "7e0"},
    "integer or nothing": {"integer", "7.0", "7e0", "nothing"},
    "time": {"time", "a day"},
    "list": {"list", "nothing"},
    "text or nothing": {"'7'", "time", "a day", "a time of no day", "nothing"},
}

# The fields that prove whose response it is: without them there is no telling.
PROOF = {("add", "end_user_id"), ("add", "amount"), ("subtract", "end_user_id")} | {
    ("subtract", "amount"),
    ("start_cycle", "end_user_id"),
    ("stop_cycle", "end_user_id"),
    ("get_balance", "end_user_id"),
}
FIELDS = [
    (method, field)
    for method, body in RESPONSES.items()
    for field in body
    if (method, field) not in PROOF
]


def start(method: str) -> Call[Any]:
    call: Call[Any] = getattr(PROTOCOL, method)(*ARGUMENTS[method])
    call.start(0.0)
    return call


def encode(body: object) -> bytes:
    return body if isinstance(body, bytes) else json.dumps(body).encode()


def reject(method: str, response: Response, proved: Outcome) -> CreduseError:
    """Return the error for a response, whose outcome for a write must be this."""
    call = start(method)
    with pytest.raises(CreduseError) as caught:
        call.receive_response(response, 1.0)
    error = caught.value
    assert error.outcome is (NOT if method == "get_balance" else proved)
    assert call.outcome is error.outcome
    return error


def misread(method: str, body: object, proved: Outcome, status: int = 200) -> str:
    """Return the message of the error for a response that breaks the contract."""
    response = Response(status, (), encode(body))
    error = reject(method, response, proved)
    assert type(error) is InvalidResponseError
    assert error.response == response
    return str(error)


def without(body: Mapping[str, object], field: str) -> dict[str, object]:
    return {name: value for name, value in body.items() if name != field}


@pytest.mark.parametrize(("method", "field"), FIELDS)
def test_missing_field(method: str, field: str) -> None:
    """A response of ours without a required field is APPLIED, and the error names the field."""
    body = without(RESPONSES[method], field)
    if "or nothing" in KINDS[field]:
        assert isinstance(start(method).receive_response(Response(200, (), encode(body)), 1), Done)
    else:
        assert f"200, but the response lacks {field} " in misread(method, body, APPLIED)


@pytest.mark.parametrize(("method", "field"), FIELDS)
def test_mistyped_field(method: str, field: str) -> None:
    """A response of ours with a field of the wrong type is APPLIED, and the error names the field."""
    for name, value in VALUES.items():
        body = RESPONSES[method] | {field: value}
        if name in FITTING[KINDS[field]]:
            response = Response(200, (), encode(body))
            assert isinstance(start(method).receive_response(response, 1.0), Done)
        else:
            assert f"has {field} of another type" in misread(method, body, APPLIED), name


@pytest.mark.parametrize("field", PART)
def test_cycle_of_a_balance(field: str) -> None:
    """A balance's cycles must have their fields, with the right types."""
    bodies: list[tuple[str, object]] = [("nothing", without(PART, field))]
    bodies += [(name, PART | {field: value}) for name, value in VALUES.items()]
    for name, part in bodies:
        body = RESPONSES["get_balance"] | {"active_balance_by_cycle": [PART, part]}
        if name in FITTING[KINDS[field]]:
            response = Response(200, (), encode(body))
            assert isinstance(start("get_balance").receive_response(response, 1.0), Done)
        else:
            assert field in misread("get_balance", body, UNKNOWN), name


@pytest.mark.parametrize("part", [None, 7, "x", [], [PART]], ids=repr)
def test_cycle_that_is_not_an_object(part: object) -> None:
    """A balance whose cycles are not objects is not read."""
    body = RESPONSES["get_balance"] | {"active_balance_by_cycle": [part]}
    assert "a cycle that is not an object" in misread("get_balance", body, UNKNOWN)


@pytest.mark.parametrize("method", RESPONSES)
@pytest.mark.parametrize(
    "user",
    [OTHER, "", "x", f"{USER_ID}0", f" {USER_ID}", None, 7, True, [USER_ID], {"id": USER_ID}],
    ids=str,
)
def test_another_user(method: str, user: object) -> None:
    """A response that names another user is mismatched."""
    body = RESPONSES[method] | {"end_user_id": user}
    assert "does not name the end user" in misread(method, body, UNKNOWN)


@pytest.mark.parametrize("method", RESPONSES)
def test_no_user(method: str) -> None:
    """A response that names no user is mismatched."""
    body = without(RESPONSES[method], "end_user_id")
    assert "does not name the end user" in misread(method, body, UNKNOWN)


@pytest.mark.parametrize("method", ["add", "subtract"])
@pytest.mark.parametrize(
    "amount", [8, -7, 0, "7", 7.5, True, None, [7], math.nan, math.inf, 2**70, 1e400], ids=repr
)
def test_another_amount(method: str, amount: object) -> None:
    """A response that does not name our amount, as an integer, is mismatched."""
    body = RESPONSES[method] | {"amount": amount}
    assert "does not name the amount" in misread(method, body, UNKNOWN)


@pytest.mark.parametrize("method", ["add", "subtract"])
def test_no_amount(method: str) -> None:
    """A response that names no amount is mismatched."""
    body = without(RESPONSES[method], "amount")
    assert "does not name the amount" in misread(method, body, UNKNOWN)


def test_an_amount_of_one() -> None:
    """A value that equals 1 in Python but is not a JSON number is not the amount 1."""
    call = PROTOCOL.subtract(USER_ID, 1)
    call.start(0.0)
    with pytest.raises(InvalidResponseError, match="does not name the amount"):
        call.receive_response(Response(200, (), encode(CREDITS | {"amount": True})), 1.0)


def test_an_amount_beyond_exact_floats() -> None:
    """A float too large to be exact is not our amount, though it equals it."""
    call = PROTOCOL.subtract(USER_ID, 10**20)
    call.start(0.0)
    with pytest.raises(InvalidResponseError, match="does not name the amount"):
        call.receive_response(Response(200, (), encode(CREDITS | {"amount": 1e20})), 1.0)


NO_JSON = {
    "empty": b"",
    "text": b"<html>ok</html>",
    "cut": b'{"end_user_id": "1234',
    "two": b"{}{}",
    "bad UTF-8 in its structure": encode(CREDITS).replace(b"7}", b"7\xff}"),
    "UTF-16": json.dumps(CREDITS).encode("utf-16"),
    "100000 brackets": b"[" * 100_000,
    "100000 objects": b'{"a":' * 100_000,
    "deep within ours": encode(CREDITS)[:-1] + b', "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "5000 digits": encode(CREDITS)[:-1] + b', "x": ' + b"9" * 5000 + b"}",
}


def credits_with(field: bytes) -> bytes:
    """Return a good response to ``subtract`` with one more field."""
    return encode(CREDITS)[:-1] + b", " + field + b"}"


@pytest.mark.parametrize("limit", [0, MAX_BODY_SIZE], ids=["no limit", "a high limit"])
def test_digits_without_limit(limit: int) -> None:
    """A very long integer is rejected quickly, even without Python's own limit."""
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(limit)
    try:
        digits = b"9" * (MAX_BODY_SIZE - 100)
        started = time.process_time()
        assert "is not JSON" in misread("subtract", credits_with(b'"x": ' + digits), UNKNOWN)
        assert time.process_time() - started < 1  # seconds: without the limit it takes many
        most = credits_with(b'"x": ' + b"9" * 4000 + b', "y": "' + b"." * 5000 + b'"')
        assert isinstance(start("subtract").receive_response(Response(200, (), most), 1.0), Done)
    finally:
        sys.set_int_max_str_digits(before)


def test_digits_behind_a_point() -> None:
    """A float of any length is read, since that takes no longer than the length asks for."""
    body = credits_with(b'"x": 0.' + b"9" * (MAX_BODY_SIZE - 100))
    assert isinstance(start("subtract").receive_response(Response(200, (), body), 1.0), Done)


NO_OBJECT = {"null": b"null", "list": b"[{}]", "text": b'"ok"', "7": b"7", "NaN": b"NaN"}


@pytest.mark.parametrize("method", RESPONSES)
@pytest.mark.parametrize("body", NO_JSON.values(), ids=NO_JSON)
def test_not_json(method: str, body: bytes) -> None:
    """Bytes that are not JSON prove nothing."""
    assert "200, but the response is not JSON" in misread(method, body, UNKNOWN)


@pytest.mark.parametrize("method", RESPONSES)
@pytest.mark.parametrize("body", NO_OBJECT.values(), ids=NO_OBJECT)
def test_not_an_object(method: str, body: bytes) -> None:
    """JSON that is not an object proves nothing."""
    assert "is JSON, but not an object" in misread(method, body, UNKNOWN)


@pytest.mark.parametrize("method", RESPONSES)
def test_no_content(method: str) -> None:
    """A response without content proves nothing."""
    assert "204, but the response is not JSON" in misread(method, b"", UNKNOWN, status=204)


@pytest.mark.parametrize(
    ("coding", "said"),
    [("gzip", "is compressed"), ("br", "is compressed"), ("Identity", "is not JSON")],
)
def test_compressed(coding: str, said: str) -> None:
    """A compressed response, which was not requested, is named as such."""
    response = Response(200, [("content-encoding", coding)], b"\x1f\x8b\x08\x00")
    assert said in str(reject("subtract", response, UNKNOWN))


def test_too_large() -> None:
    """A response larger than the limit is not read, even if all of it came."""
    whole = encode(CREDITS).ljust(MAX_BODY_SIZE)
    assert isinstance(start("subtract").receive_response(Response(200, (), whole), 1.0), Done)
    assert "is larger than" in misread("subtract", whole + b" ", UNKNOWN)


@pytest.mark.parametrize("method", RESPONSES)
def test_error_under_200(method: str) -> None:
    """A known error code under 200 proves nothing."""
    body = RESPONSES[method] | {"error_code": "NO_ACTIVE_CYCLE", "message": "none"}
    error = reject(method, Response(200, (), encode(body)), UNKNOWN)
    assert type(error) is InvalidResponseError
    assert "200, but the response carries an error: NO_ACTIVE_CYCLE: none" in str(error)


@pytest.mark.parametrize("code", ["NEW", 7, ["x"]], ids=repr)
@pytest.mark.parametrize("method", RESPONSES)
def test_unknown_error_under_200(method: str, code: object) -> None:
    """An unknown error code under 200 breaks the contract."""
    body = RESPONSES[method] | {"error_code": code}
    assert "200, but the response carries an error" in misread(method, body, UNKNOWN)


def test_lone_surrogates() -> None:
    """Text that cannot be encoded can be shown in an error."""
    body = b'{"error_code": "INSUFFICIENT_FUNDS", "message": "too \\ud800 little"}'
    error = reject("subtract", Response(402, (), body), NOT)
    assert isinstance(error, InsufficientFundsError)
    assert error.message == "too \\ud800 little"
    assert "too \\ud800 little" in str(error).encode().decode()


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        (b"", None, None),
        (b"<html>", None, None),
        (b"[]", None, None),
        (b"[" * 100_000, None, None),
        (b"{}", None, None),
        (b'{"error_code": "X", "message": "y"}', "X", "y"),
        (b'\xef\xbb\xbf{"error_code": "X", "message": "y"}', "X", "y"),
        (b'{"error_code": "X", "message": "\xe9\xff"}', "X", "\ufffd\ufffd"),
        (b'{"error_code": "X", "message": "y", "x": NaN, "y": -Infinity}', "X", "y"),
        (b'{"error_code": "X"}', "X", None),
        (b'{"message": "y"}', None, "y"),
        (b'{"error_code": "", "message": ""}', None, None),
        (b'{"error_code": 7, "message": ["y"]}', None, "y"),
        (b'{"error_code": null, "message": null, "timestamp": null}', None, None),
        (b'{"error_code": "X", "message": "y", "timestamp": "soon"}', "X", "y"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_error_body(body: bytes, code: str | None, message: str | None) -> None:
    """Any part of an error's body may be missing or mistyped, and the body need not be JSON."""
    response = Response(400, (), body)
    error = reject("subtract", response, NOT)
    assert isinstance(error, APIError)
    assert (error.status_code, error.error_code, error.message) == (400, code, message)
    assert (error.timestamp, error.retry_after, error.response) == (None, None, response)
