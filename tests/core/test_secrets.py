"""The API key: it goes out in one header, and shows nowhere else."""

import copy
import pickle
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest

from creduse_core import (
    APIError,
    AsyncCoreClient,
    Call,
    CoreClient,
    CreduseError,
    CreduseProtocol,
    Delivery,
    Failure,
    InvalidResponseError,
    Response,
    RetryPolicy,
    TransportError,
    forget_frames,
)

USER = "12345678-1234-5678-1234-567812345678"
KEY = "sk-live-0123456789"
PROTOCOL = CreduseProtocol(KEY, retry=RetryPolicy(max_attempts=1))
NO_TRANSPORT: Any = None


E = TypeVar("E", bound=BaseException)


def chained(error: E, cause: BaseException) -> E:
    error.__cause__ = cause
    return error


def during(error: E, context: BaseException) -> E:
    error.__context__ = context
    return error


def noted(error: E, note: str) -> E:
    error.add_note(note)
    return error


def fail(given: Response | Failure, protocol: CreduseProtocol = PROTOCOL) -> CreduseError:
    """Give the error of a call that ends in this."""
    call = protocol.subtract(USER, 7)
    call.start(0.0)
    receive: Any = call.receive_failure if isinstance(given, Failure) else call.receive_response
    with pytest.raises(CreduseError) as caught:
        receive(given, 1.0)
    return caught.value


def texts(error: CreduseError) -> Iterator[str]:
    """Give all that an error shows of itself, and all that can be read from it."""
    yield str(error)
    yield repr(error)
    yield "".join(traceback.format_exception(error))
    yield repr(vars(error))
    yield pickle.dumps(error).decode("latin-1")
    yield repr(vars(copy.deepcopy(error)))
    response = getattr(error, "response", None)
    if isinstance(response, Response):
        yield repr(response.headers)
        yield response.body.decode("latin-1")
    for attempt in error.attempts:
        yield repr(attempt)


def call_in_flight() -> Call[Any]:
    call = PROTOCOL.subtract(USER, 7)
    call.start(0.0)
    return call


HOLDERS: dict[str, object] = {
    "protocol": PROTOCOL,
    "call": call_in_flight(),
    "request": call_in_flight().request,
    "send": PROTOCOL.subtract(USER, 7).start(0.0),
    "client": CoreClient(PROTOCOL, NO_TRANSPORT),
    "async client": AsyncCoreClient(PROTOCOL, NO_TRANSPORT),
}


@pytest.mark.parametrize("holder", HOLDERS.values(), ids=HOLDERS)
@pytest.mark.parametrize(
    "show", [str, repr, ascii, "{}".format], ids=["str", "repr", "ascii", "format"]
)
def test_holders_do_not_show_it(holder: object, show: Callable[[object], str]) -> None:
    """What holds the key does not show it."""
    assert KEY not in show(holder)


STORES: dict[str, Callable[[object], object]] = {
    "pickle": pickle.dumps,
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
}


@pytest.mark.parametrize(
    ("holder", "store"),
    [(holder, store) for holder in HOLDERS for store in ("pickle", "deepcopy")]
    + [(holder, "copy") for holder in ("protocol", "call", "request")],
)
def test_holders_do_not_store_it(holder: str, store: str) -> None:
    """What holds the key is neither pickled nor copied, and the refusal says why."""
    with pytest.raises(TypeError, match=r"holds the API key, so it cannot be pickled or copied$"):
        STORES[store](HOLDERS[holder])


ECHOES = {
    "a refusal's body": Response(401, (), b'{"message": "bad key ' + KEY.encode() + b'"}'),
    "a code": Response(401, (), b'{"error_code": "' + KEY.encode() + b'"}'),
    "no JSON": Response(500, (), b"<h1>" + KEY.encode() + b"</h1>" + KEY.encode()),
    "a field's value": Response(403, [("X-Key", f"Bearer {KEY}")], b""),
    "a field's name": Response(403, [(KEY, "1")], b""),
    "Retry-After": Response(429, [("Retry-After", KEY)], b""),
    "a redirect": Response(302, [("Location", f"https://example.com/?key={KEY}")], KEY.encode()),
    "a result": Response(200, (), b'{"end_user_id": "' + KEY.encode() + b'"}'),
    "bytes that are no text": Response(200, (), b"\xff" + KEY.encode() + b"\xfe"),
    "a control character before it": Response(
        400, (), b'{"message": "\\u0000\\n' + KEY.encode() + b'"}'
    ),
    "all of it in the timestamp": Response(400, (), b'{"timestamp": "' + KEY.encode() + b'"}'),
}


@pytest.mark.parametrize("response", ECHOES.values(), ids=ECHOES)
def test_repeated_by_the_server(response: Response) -> None:
    """A server that repeats the key finds it nowhere in the error."""
    error = fail(response)
    assert isinstance(error, APIError | InvalidResponseError)
    assert [text for text in texts(error) if KEY in text] == []


def test_rest_of_the_answer_is_kept() -> None:
    """The key is taken out of an answer, and all else is left as it came."""
    body = b'{"error_code": "NEW", "message": "who is ' + KEY.encode() + b'?", "x": "\xff"}'
    error = fail(Response(400, [("A", f"b {KEY} c"), ("D", "e")], body))
    assert isinstance(error, APIError)
    assert error.response is not None
    assert error.response.headers == (("A", "b *** c"), ("D", "e"))
    assert error.response.body == body.replace(KEY.encode(), b"***")


@pytest.mark.parametrize("source", ["an answer", "a cause"])
def test_cut_in_a_long_message(source: str) -> None:
    """Where somebody's long words are cut, no part of the key is left at the end."""
    for before in range(400 - len(KEY) - 9, 401):
        words = "x" * before + KEY
        given = (
            Response(400, (), b'{"message": "' + words.encode() + b'"}')
            if source == "an answer"
            else Failure(Delivery.MAYBE_SENT, OSError(words), transient=False)
        )
        error = fail(given)
        assert KEY[:4] not in f"{error} {error.attempts}", before


@pytest.mark.parametrize("key", ["a\\b-0123456789", "it's-0123456789", 'a"b-0123456789'])
def test_escaped(key: str) -> None:
    """A key is recognised where its characters had to be escaped to be shown."""
    protocol = CreduseProtocol(key, retry=RetryPolicy(max_attempts=1))
    lost = Failure(Delivery.MAYBE_SENT, OSError(f"bad value\n{key}"), transient=False)
    error = fail(lost, protocol)
    assert "0123456789" not in str(error)
    assert "0123456789" not in "".join(traceback.format_exception(error))


CAUSES: dict[str, BaseException] = {
    "its text": ValueError(f"Illegal header value {KEY.encode()!r}"),
    "an argument": UnicodeDecodeError("utf-8", KEY.encode(), 0, 1, "odd"),
    "its cause": chained(OSError("odd"), ValueError(KEY)),
    "its cause's cause": chained(OSError("odd"), chained(OSError("even"), ValueError(KEY))),
    "its context": during(OSError("odd"), ValueError(KEY)),
    "a member of its group": ExceptionGroup("odd", [OSError("even"), ValueError(KEY)]),
    "a member's cause": ExceptionGroup("odd", [chained(ValueError("even"), OSError(KEY))]),
    "a note": noted(OSError("odd"), f"while sending {KEY}"),
}


@pytest.mark.parametrize("cause", CAUSES.values(), ids=CAUSES)
def test_in_the_cause(cause: BaseException) -> None:
    """A library's exception that would show the key is not chained; its name stands in."""
    error = fail(Failure(Delivery.MAYBE_SENT, cause, transient=False))
    assert type(error) is TransportError
    assert [text for text in texts(error) if KEY in text] == []
    assert error.__cause__ is None
    assert type(cause).__name__ in str(error)


def report_from_handler(call: Call[Any], cause: Exception) -> None:
    try:
        raise cause
    except OSError as error:
        call.receive_failure(Failure(Delivery.MAYBE_SENT, error, transient=False), 1.0)


def test_cause_that_is_being_handled() -> None:
    """A cause that is not chained stays out, even if it is reported from where it was caught."""
    call = call_in_flight()
    with pytest.raises(TransportError) as caught:
        report_from_handler(call, OSError(KEY))
    assert [text for text in texts(caught.value) if KEY in text] == []


def test_harmless_cause_is_chained() -> None:
    """An exception without the key is chained as it is, with all that it is chained to."""
    cause = chained(OSError("odd"), ValueError("even"))
    error = fail(Failure(Delivery.MAYBE_SENT, cause, transient=False))
    assert error.__cause__ is cause
    assert "even" in "".join(traceback.format_exception(error))


def test_cause_that_goes_round() -> None:
    """A chain of exceptions that leads back to itself is followed once."""
    first, second = OSError("odd"), OSError("even")
    first.__context__, second.__context__ = second, first
    error = fail(Failure(Delivery.MAYBE_SENT, first, transient=False))
    assert error.__cause__ is first


def test_frames_are_forgotten() -> None:
    """What is to be the cause of a failure keeps no frame, nor does what it came of."""

    def deep(secret: str) -> None:
        raise ExceptionGroup("odd", [ValueError(len(secret))]) from OSError("even")

    with pytest.raises(ExceptionGroup) as caught:
        deep(KEY)
    told = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
    assert KEY in "".join(told.format())
    forget_frames(caught.value)
    told = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
    assert KEY not in "".join(told.format())
    assert isinstance(caught.value.__cause__, OSError)


@dataclass(frozen=True)
class Frozen(Exception):  # noqa: N818 - an exception of somebody else's making
    """It lets nobody set an attribute of it."""

    why: str


def test_frames_of_a_frozen_exception_are_forgotten() -> None:
    """An exception that refuses to be changed does not become another."""
    with pytest.raises(Frozen) as caught:
        raise Frozen("odd")
    assert caught.value.__traceback__ is not None
    forget_frames(caught.value)
    assert caught.value.__traceback__ is None


@pytest.mark.parametrize("key", ["k", "key", "S", "4"])
def test_short_key(key: str) -> None:
    """A short key, such as a test's, is taken out as a word, and leaves other words whole."""
    protocol = CreduseProtocol(key, retry=RetryPolicy(max_attempts=1))
    body = b'{"error_code": "SOME_KEYS", "message": "the key %b, kept in 404"}' % key.encode()
    error = fail(Response(404, (), body), protocol)
    assert isinstance(error, APIError)
    words = {"key": "the *** ***, kept in 404"}
    assert error.error_code == "SOME_KEYS"
    assert error.message == words.get(key, "the key ***, kept in 404")


def test_last_answer_is_as_it_came() -> None:
    """The raw answer, which is for debugging, is not touched."""
    call = call_in_flight()
    response = ECHOES["a refusal's body"]
    with pytest.raises(APIError):
        call.receive_response(response, 1.0)
    assert call.response is response
