"""Errors as objects: attributes, messages, pickling and copying."""

import copy
import json
import pickle
from base64 import b64encode
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

import creduse_core
from creduse_core import (
    APIError,
    Attempt,
    CreduseError,
    CreduseProtocol,
    CreduseTimeoutError,
    Delivery,
    Failure,
    InvalidResponseError,
    LocalProtocolError,
    Outcome,
    Proxy,
    Response,
    RetryPolicy,
    Secret,
    TransportError,
)
from tests.common import USER_ID

ATTEMPT = Attempt(1, "POST", "/add", 402, "refused", Outcome.NOT_APPLIED, "402", 0.0, 1.5)
RESPONSE = Response(402, [("A", "b")], b"{}")

ERRORS: list[type[CreduseError]] = [
    value
    for value in vars(creduse_core).values()
    if isinstance(value, type) and issubclass(value, CreduseError)
]
# What makes each error, all of its arguments given.
COMMON: dict[str, object] = {"outcome": Outcome.NOT_APPLIED, "attempts": (ATTEMPT,)}
WITH_RESPONSE = COMMON | {"response": RESPONSE}
REFUSED = WITH_RESPONSE | {
    "error_code": "X",
    "error_message": "y",
    "timestamp": datetime(2025, 1, 1, tzinfo=UTC),
    "retry_after": 2.5,
}


def pickled(protocol: int) -> Callable[[Any], Any]:
    return lambda error: pickle.loads(pickle.dumps(error, protocol))  # noqa: S301 - our own pickle


COPIES: dict[str, Callable[[Any], Any]] = {
    f"pickle {protocol}": pickled(protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
} | {"copy": copy.copy, "deepcopy": copy.deepcopy}


def whole(error_class: type[CreduseError]) -> CreduseError:
    """Make an error with all its attributes."""
    arguments: dict[str, Any] = COMMON
    if issubclass(error_class, APIError):
        arguments = REFUSED
    elif issubclass(error_class, InvalidResponseError):
        arguments = WITH_RESPONSE
    return error_class("what was wrong", **arguments)


def fail(given: Response | Failure) -> CreduseError:
    """Return the error of a call to ``add`` that has one attempt and ends like this."""
    policy = RetryPolicy(max_attempts=1)
    call = CreduseProtocol("sk-live-0123456789", retry=policy).add(USER_ID, 7)
    call.start(0.0)
    receive: Any = call.receive_failure if isinstance(given, Failure) else call.receive_response
    with pytest.raises(CreduseError) as caught:
        receive(given, 1.0)
    return caught.value


def test_tree() -> None:
    """The error classes form this tree."""
    parents = {error.__name__: error.__base__.__name__ for error in ERRORS if error.__base__}
    cannot_pay = ["InsufficientFundsError", "UserDoesNotExistError", "CreditExpiredError"]
    responded = [
        "CannotPayError",
        "AmountNegativeError",
        "ActiveCycleExistsError",
        "NoActiveCycleError",
        "AuthenticationError",
        "RateLimitError",
        "ServerError",
    ]
    assert parents == {
        "CreduseError": "Exception",
        "APIError": "CreduseError",
        **dict.fromkeys(responded, "APIError"),
        **dict.fromkeys(cannot_pay, "CannotPayError"),
        "InvalidResponseError": "CreduseError",
        "TransportError": "CreduseError",
        "CreduseTimeoutError": "TransportError",
    }


@pytest.mark.parametrize("duplicate", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("error_class", ERRORS)
def test_errors_pickle_and_copy(
    error_class: type[CreduseError], duplicate: Callable[[Any], Any]
) -> None:
    """Every error pickles and copies with all its attributes."""
    error = whole(error_class)
    found = duplicate(error)
    assert found is not error
    assert type(found) is error_class
    assert str(found) == "what was wrong"
    assert vars(found) == vars(error)
    assert vars(error).keys() >= {"outcome", "attempts"}


@pytest.mark.parametrize("duplicate", COPIES.values(), ids=COPIES)
def test_misuse_pickles_and_copies(duplicate: Callable[[Any], Any]) -> None:
    """The error for wrong use of the core pickles and copies."""
    found = duplicate(LocalProtocolError("start is not for this"))
    assert type(found) is LocalProtocolError
    assert str(found) == "start is not for this"


@pytest.mark.parametrize("error_class", ERRORS)
def test_errors_made_by_hand(error_class: type[CreduseError]) -> None:
    """An error can be made without arguments, for an app's tests. Its outcome is UNKNOWN."""
    error = error_class()
    assert (str(error), error.outcome, error.attempts) == ("", Outcome.UNKNOWN, ())
    rest = {name: value for name, value in vars(error).items() if name not in COMMON}
    assert set(rest.values()) <= {None}


def test_api_error() -> None:
    """An error response's status, code and message are in the error."""
    body = b'{"error_code": "ODD", "message": "no, %s", "timestamp": "2025-08-12T14:35:55Z"}'
    response = Response(418, [("Retry-After", "4")], body)
    error = fail(response)
    assert isinstance(error, APIError)
    assert (error.status_code, error.error_code, error.message) == (418, "ODD", "no, %s")
    assert error.timestamp == datetime(2025, 8, 12, 14, 35, 55, tzinfo=UTC)
    assert (error.retry_after, error.response) == (4.0, response)


MISTYPED = b'{"end_user_id": "%b", "amount": 7, "validity_days": 1.5}' % USER_ID.encode()


def lost(cause: Exception, **more: Any) -> Failure:
    return Failure(Delivery.MAYBE_SENT, cause, transient=True, **more)


@pytest.mark.parametrize(
    ("given", "said", "meant"),
    [
        (
            Response(402, (), b'{"error_code": "INSUFFICIENT_FUNDS", "message": "too little"}'),
            "402 INSUFFICIENT_FUNDS: too little",
            "not applied",
        ),
        (Response(400, (), b""), "400", "not applied"),
        (Response(500, (), b'{"message": "oh\\nno"}'), "500 oh no", "may have been applied"),
        (Response(302, (), b""), "302 as the final response", "may have been applied"),
        (
            Response(200, (), MISTYPED),
            "200, but the response has validity_days of another type than integer",
            "applied",
        ),
        (
            Failure(Delivery.NOT_SENT, OSError("no route"), transient=False),
            "OSError: no route",
            "not applied",
        ),
        (
            lost(TimeoutError(), timed_out=True),
            "timed out: TimeoutError",
            "may have been applied",
        ),
        (
            lost(TimeoutError("timed out"), timed_out=True),
            "timed out: TimeoutError",
            "may have been applied",
        ),
        (
            lost(OSError("Cancelled via cancel scope 7f62; reason: deadline"), timed_out=True),
            "timed out: OSError",
            "may have been applied",
        ),
        (
            lost(OSError("reset"), response=Response(200, (), b"{")),
            "200, but the response was cut off (OSError: reset)",
            "may have been applied",
        ),
    ],
    ids=[
        "code",
        "empty",
        "two lines",
        "redirect",
        "mistyped",
        "unsent",
        "timeout",
        "said twice",
        "of a library",
        "cut",
    ],
)
def test_message(given: Response | Failure, said: str, meant: str) -> None:
    """A message says in one line what was called, what happened, and whether credits moved."""
    error = fail(given)
    took = said.replace("timed out", "timed out after 1 s")
    assert str(error) == f"add({USER_ID}, 7): {took} (api.creduse.com:443) [{meant}; 1 attempt]"
    assert error.attempts[0].error == said


@pytest.mark.parametrize(
    ("base_url", "proxy", "where"),
    [
        ("https://api.creduse.com/v1", None, "api.creduse.com:443"),
        ("https://API.example:8443", None, "API.example:8443"),
        ("http://localhost", None, "localhost:80"),
        ("http://[::1]:8000/x", None, "[::1]:8000"),
        (
            "https://api.creduse.com",
            "http://proxy.example:3128",
            "api.creduse.com:443 through proxy http://proxy.example:3128",
        ),
        (
            "https://api.creduse.com",
            "http://sk-live-0123456789:3128",
            "api.creduse.com:443 through proxy http://***:3128",
        ),
        (
            "https://api.creduse.com",
            "http://\x1b[31m:3128",
            "api.creduse.com:443 through proxy http://\\x1b[31m:3128",
        ),
    ],
)
@pytest.mark.parametrize("delivery", Delivery)
def test_where_it_failed(base_url: str, proxy: str | None, where: str, delivery: Delivery) -> None:
    """The message names host, port and proxy."""
    protocol = CreduseProtocol("sk-live-0123456789", base_url, retry=RetryPolicy(max_attempts=1))
    call = protocol.get_balance(USER_ID)
    call.start(0.0, proxy=None if proxy is None else Proxy(proxy, Secret("")))
    failure = Failure(delivery, OSError("x" * 10_000), transient=True)
    with pytest.raises(TransportError) as caught:
        call.receive_failure(failure, 1.0)
    words = "OSError: " + "x" * 391 + "…"
    assert str(caught.value) == f"get_balance({USER_ID}): {words} ({where}) [1 attempt]"


@pytest.mark.parametrize(
    ("scheme", "given", "named"),
    [
        ("https", Failure(Delivery.MAYBE_SENT, OSError("x"), transient=False), True),
        ("https", Response(402, [], b""), False),
        ("https", Response(200, [], b"{"), False),
        ("http", Failure(Delivery.NOT_SENT, OSError("x"), transient=False), True),
        ("http", Response(502, [], b""), True),
        ("http", Response(200, [], b"{"), True),
    ],
)
def test_proxy_is_named(scheme: str, given: Response | Failure, named: bool) -> None:  # noqa: FBT001
    """The message names the proxy, unless a whole response came through its tunnel."""
    shown = "http://proxy.example:3128"
    call = CreduseProtocol("key", f"{scheme}://a.example", allow_http=True).add(USER_ID, 7)
    call.start(0.0, proxy=Proxy(shown, Secret("")))
    receive: Any = call.receive_failure if isinstance(given, Failure) else call.receive_response
    with pytest.raises(CreduseError) as caught:
        receive(given, 1.0)
    assert (f" through proxy {shown}) [" in str(caught.value)) is named


@pytest.mark.parametrize(
    ("url", "repeated"),
    [
        ("http://user:p%40ssw0rd:x@h:1", "p@ssw0rd:x"),
        ("http://user:p%40ssw0rd@h:1", "p%40ssw0rd"),
        ("http://user:p%40ssw0rd@h:1", b64encode(b"user:p@ssw0rd").decode()),
        ("http://0123456789abcdef@h:1", "0123456789abcdef"),
        ("http://0123456789abcdef:@h:1", "0123456789abcdef"),
        ("http://user:hunter2@h:1", b64encode(b"user:hunter2").decode()),
        ("http://us%3Aer:hunter2@h:1", "hunter2"),
    ],
)
def test_password_of_a_proxy(url: str, repeated: str) -> None:
    """A password that a proxy repeats is in no error."""
    call = CreduseProtocol("key", retry=RetryPolicy(1)).add(USER_ID, 7)
    call.start(0.0, proxy=Proxy("http://h:1", Secret(url)))
    cause = OSError(f"denied to {repeated}, sorry")
    with pytest.raises(TransportError) as caught:
        call.receive_failure(Failure(Delivery.NOT_SENT, cause, transient=False), 1.0)
    error = caught.value
    assert error.__cause__ is None
    for text in (str(error), str(error.attempts[0].error)):
        assert "denied to" in text
        assert "***" in text
        assert repeated not in text


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.0001, "0.0001"), (0.25, "0.25"), (2.5, "2.5"), (30.04, "30"), (1234.5, "1234.5")],
)
def test_seconds_of_the_last_attempt(seconds: float, shown: str) -> None:
    """The message of a timeout says how long the last attempt took, and that it was the last."""
    call = CreduseProtocol("key").get_balance(USER_ID)
    call.start(0.0)
    call.receive_failure(lost(TimeoutError(), timed_out=True), 7.0)
    call.wake(8.0)
    with pytest.raises(CreduseTimeoutError) as caught:
        call.receive_failure(
            Failure(Delivery.MAYBE_SENT, TimeoutError(), transient=False, timed_out=True),
            8.0 + seconds,
        )
    said = f"the last attempt timed out after {shown} s: TimeoutError"
    assert str(caught.value) == f"get_balance({USER_ID}): {said} (api.creduse.com:443) [2 attempts]"


def test_timed_out_with_a_request_id() -> None:
    """If only the head of a response has arrived in time, the error has the request's id from it."""
    head = Response(200, [("X-Request-Id", "7f3a")], b"{")
    error = fail(lost(TimeoutError(), response=head, timed_out=True))
    assert isinstance(error, CreduseTimeoutError)
    assert error.request_id == "7f3a"
    assert str(error).endswith("; request ID 7f3a]")


def test_cause_that_says_nothing() -> None:
    """A message uses the words of the cause's own cause if the cause has none."""
    cause = ConnectionError()
    cause.__cause__ = OSError()
    cause.__cause__.__context__ = OSError("no route")
    assert fail(lost(cause)).attempts[0].error == "ConnectionError: no route"


class NumberedError(OSError):
    """A library's exception, whose numbers are not those of the operating system."""


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def dropped(error: Exception, cause: Exception) -> Exception:
    """Return an error as it is after ``raise error from None``."""
    error.__context__, error.__suppress_context__ = cause, True
    return error


UNREACHED = ExceptionGroup("all", [OSError("odd"), ConnectionRefusedError(111, "no")])


@pytest.mark.parametrize(
    ("cause", "said"),
    [
        (caused(OSError("all failed"), UNREACHED), "all failed: ECONNREFUSED"),
        (
            dropped(OSError("All connection attempts failed"), UNREACHED),
            "All connection attempts failed: ECONNREFUSED",
        ),
        (OSError(104, "Connection reset by peer"), "[Errno 104] Connection reset by peer"),
        (caused(OSError("odd"), NumberedError(1, "certificate")), "odd"),
        (OSError(12345, "odd"), "[Errno 12345] odd"),
        (OSError([], "odd"), "[Errno []] odd"),
    ],
    ids=["group", "dropped", "said", "another's number", "unknown number", "no number"],
)
def test_system_error(cause: Exception, said: str) -> None:
    """A message names the errno of a cause if its words do not."""
    error = fail(lost(cause)).attempts[0].error
    assert error == f"{type(cause).__name__}: {said}"


def test_what_the_caller_was_handling() -> None:
    """An exception that the caller is handling is not the cause."""
    cause = OSError("lost")
    cause.__context__ = FileNotFoundError(2, "No such file or directory")
    assert fail(lost(cause)).attempts[0].error == "OSError: lost"


def test_message_of_a_read() -> None:
    """The message of a read does not say whether anything was applied."""
    call = CreduseProtocol("key").get_balance(USER_ID)
    call.start(0.0)
    call.receive_failure(Failure(Delivery.MAYBE_SENT, OSError("reset"), transient=True), 1.0)
    call.wake(2.0)
    with pytest.raises(TransportError) as caught:
        call.receive_failure(Failure(Delivery.MAYBE_SENT, OSError("mud"), transient=False), 3.0)
    where = "(api.creduse.com:443)"
    assert str(caught.value) == f"get_balance({USER_ID}): OSError: mud {where} [2 attempts]"


@pytest.mark.parametrize("length", [396, 397, 100_000])
def test_long_words(length: int) -> None:
    """Long text of others is cut in a message, and whole in the response."""
    body = b'{"message": "%b"}' % (b"x" * length)
    error = fail(Response(400, (), body))
    assert isinstance(error, APIError)
    assert error.message == ("x" * length if length <= 400 else "x" * 400 + "…")
    assert error.response is not None
    assert error.response.body == body
    shown = "400 " + "x" * 396 + ("" if length == 396 else "…")
    assert (
        str(error) == f"add({USER_ID}, 7): {shown} (api.creduse.com:443) [not applied; 1 attempt]"
    )
    assert error.attempts[0].error == shown


@pytest.mark.parametrize("field", ["message", "error_code"])
@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("caf\u00e9 \U0001f600", "caf\u00e9 \U0001f600"),
        ("\x1b[2Jcaf\u00e9\n", "\\x1b[2Jcaf\u00e9"),
        ("a\u202eb\ud800", "a\\u202eb\\ud800"),
        ("\x1b" * 100_000, "\\x1b" * 100 + "…"),
    ],
    ids=["printable", "escape", "direction", "long"],
)
def test_words_of_the_service(field: str, said: str, shown: str) -> None:
    """The service's text is printable and short in the attributes of an error, too."""
    error = fail(Response(400, (), json.dumps({field: said}).encode()))
    assert vars(error)[field] == shown
    assert str(error).isprintable()
    assert len(str(error)) < 500


class Mute(Exception):  # noqa: N818 - an exception that cannot even say so
    """It has no words."""

    def __str__(self) -> str:
        raise ValueError(self)


def test_cause_without_words() -> None:
    """A cause that cannot be printed does not hide the outcome."""
    error = fail(Failure(Delivery.MAYBE_SENT, Mute(), transient=False))
    assert str(error) == (
        f"add({USER_ID}, 7): Mute (api.creduse.com:443) [may have been applied; 1 attempt]"
    )
    assert isinstance(error.__cause__, Mute)


def test_time_out_with_a_head() -> None:
    """A response that the timeout cuts is a CreduseTimeoutError, and its attempt has the status."""
    cut = Failure(Delivery.MAYBE_SENT, TimeoutError(), True, True, RESPONSE)  # noqa: FBT003 - a Failure's fields in their order
    error = fail(cut)
    assert type(error) is CreduseTimeoutError
    assert error.attempts[0].status == 402
    assert error.__cause__ is cut.cause


def test_json_form() -> None:
    """``as_dict`` has all that an error says, and ``json.dumps`` accepts it."""
    body = b'{"error_code": "INSUFFICIENT_FUNDS", "message": "too little"}'
    error = fail(Response(402, [("Retry-After", "4"), ("X-Request-Id", "7f3a")], body))
    found = json.loads(json.dumps(error.as_dict()))
    attempts, call = found.pop("attempts"), found.pop("call")
    assert found == {
        "error": "InsufficientFundsError",
        "message": str(error),
        "outcome": "NOT_APPLIED",
        "request_id": "7f3a",
        "status_code": 402,
        "error_code": "INSUFFICIENT_FUNDS",
        "error_message": "too little",
        "retry_after": 4.0,
        "timestamp": None,
    }
    assert [(it["event"], it["outcome"], it["seconds"]) for it in attempts] == [
        ("refused", "NOT_APPLIED", 1.0)
    ]
    assert (call["method"], call["end_user_id"], call["amount"]) == ("add", USER_ID, 7)


def test_json_form_without_a_response() -> None:
    """The ``as_dict`` of an error without a response has no fields of one."""
    found = fail(lost(OSError("reset"))).as_dict()
    assert found.keys() == {"error", "message", "outcome", "call", "attempts", "request_id"}


@pytest.mark.parametrize("error_class", ERRORS)
def test_rebuilt_from_args(error_class: type[CreduseError]) -> None:
    """The class and its ``args`` as JSON keep the message and the outcome, as Celery keeps them."""
    error = error_class("what was wrong", outcome=Outcome.APPLIED)
    rebuilt = error_class(*json.loads(json.dumps(error.args)))
    assert (str(rebuilt), rebuilt.outcome) == ("what was wrong", Outcome.APPLIED)
    assert repr(rebuilt) == f"{error_class.__name__}('what was wrong', <Outcome.APPLIED: 2>)"


class WithoutArgumentsError(TransportError):
    """An app's error with an ``__init__`` of its own."""

    def __init__(self) -> None:
        super().__init__("what was wrong", Outcome.APPLIED)


class WithoutSuperError(CreduseError):
    """An app's error whose ``__init__`` does not call ours."""

    def __init__(self) -> None:
        pass


@pytest.mark.parametrize("duplicate", COPIES.values(), ids=COPIES)
def test_errors_of_an_app(duplicate: Callable[[Any], Any]) -> None:
    """An app's own subclass can have other arguments, and pickles and copies all the same."""
    found = duplicate(WithoutArgumentsError())
    assert (str(found), found.outcome, found.attempts) == ("what was wrong", Outcome.APPLIED, ())
    assert str(duplicate(WithoutSuperError())) == ""
