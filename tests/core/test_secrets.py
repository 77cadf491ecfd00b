"""The API key is sent in one header, and shows nowhere else."""

import base64
import copy
import dataclasses
import html
import json
import pickle
import random
import time
import traceback
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html.entities import html5
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
    Secret,
    TransportError,
    exception_chain,
    forget_frames,
    protocol_from_environment,
)
from tests.common import USER_ID
from tests.core.players import Play

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
    """Return the error of a call that ends like this."""
    call = protocol.subtract(USER_ID, 7)
    call.start(0.0)
    receive: Any = call.receive_failure if isinstance(given, Failure) else call.receive_response
    with pytest.raises(CreduseError) as caught:
        receive(given, 1.0)
    return caught.value


def texts(error: CreduseError) -> Iterator[str]:
    """Return all text that an error shows, and all that can be read from it."""
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
    call = PROTOCOL.subtract(USER_ID, 7)
    call.start(0.0)
    return call


HOLDERS: dict[str, object] = {
    "protocol": PROTOCOL,
    "call": call_in_flight(),
    "request": call_in_flight().request,
    "send": PROTOCOL.subtract(USER_ID, 7).start(0.0),
    "client": CoreClient(PROTOCOL, NO_TRANSPORT),
    "async client": AsyncCoreClient(PROTOCOL, NO_TRANSPORT),
}


@pytest.mark.parametrize("holder", HOLDERS.values(), ids=HOLDERS)
@pytest.mark.parametrize(
    "show", [str, repr, ascii, "{}".format], ids=["str", "repr", "ascii", "format"]
)
def test_holders_do_not_show_it(holder: object, show: Callable[[object], str]) -> None:
    """No object that holds the key shows it."""
    assert KEY not in show(holder)


STORES: dict[str, Callable[[object], object]] = {
    "pickle": pickle.dumps,
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
}


@pytest.mark.parametrize(
    ("holder", "store"),
    [(holder, store) for holder in HOLDERS for store in ("pickle", "deepcopy")]
    + [(holder, "copy") for holder in HOLDERS if holder != "send"],  # it copies a reference
)
def test_holders_do_not_store_it(holder: str, store: str) -> None:
    """No object that holds the key pickles or copies, and the error says why."""
    # From 3.14 on, lines of notes follow: in what the object was.
    why = r"(?m)holds the API key, so it cannot be pickled or copied$"
    with pytest.raises(TypeError, match=why):
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
    """A key that the server repeats is not in the error."""
    error = fail(response)
    assert isinstance(error, APIError | InvalidResponseError)
    assert [text for text in texts(error) if KEY in text] == []


def test_rest_of_the_response_is_kept() -> None:
    """Only the key is removed from a response."""
    body = b'{"error_code": "NEW", "message": "who is ' + KEY.encode() + b'?", "x": "\xff"}'
    error = fail(Response(400, [("A", f"b {KEY} c"), ("D", "e")], body))
    assert isinstance(error, APIError)
    assert error.response is not None
    assert error.response.headers == (("A", "b *** c"), ("D", "e"))
    assert error.response.body == body.replace(KEY.encode(), b"***")


@pytest.mark.parametrize("source", ["a response", "a cause"])
def test_cut_in_a_long_message(source: str) -> None:
    """Where long text is cut, no part of the key is left at the end."""
    for before in range(400 - len(KEY) - 9, 401):
        words = "x" * before + KEY
        given = (
            Response(400, (), b'{"message": "' + words.encode() + b'"}')
            if source == "a response"
            else Failure(Delivery.MAYBE_SENT, OSError(words), transient=False)
        )
        error = fail(given)
        assert KEY[:4] not in f"{error} {error.attempts}", before


@pytest.mark.parametrize("key", ["a\\b-0123456789", "it's-0123456789", 'a"b-0123456789'])
def test_escaped(key: str) -> None:
    """An escaped key is recognized."""
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
    """A library's exception that shows the key is not chained; its class name is shown instead."""
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
    """Such a cause is not chained either where the error is reported while it is handled."""
    call = call_in_flight()
    with pytest.raises(TransportError) as caught:
        report_from_handler(call, OSError(KEY))
    assert [text for text in texts(caught.value) if KEY in text] == []


def test_harmless_cause_is_chained() -> None:
    """An exception without the key is chained unchanged."""
    cause = chained(OSError("odd"), ValueError("even"))
    error = fail(Failure(Delivery.MAYBE_SENT, cause, transient=False))
    assert error.__cause__ is cause
    assert "even" in "".join(traceback.format_exception(error))


def test_cyclic_causes() -> None:
    """A cycle of causes is followed once."""
    first, second = OSError("odd"), OSError("even")
    first.__context__, second.__context__ = second, first
    error = fail(Failure(Delivery.MAYBE_SENT, first, transient=False))
    assert error.__cause__ is first


def test_frames_are_forgotten() -> None:
    """The cause of a failure keeps no frames."""

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
    """An exception whose attributes cannot be set."""

    why: str


def test_frozen_exception() -> None:
    """An exception that cannot be changed is still the cause."""
    with pytest.raises(Frozen) as caught:
        raise Frozen("odd")
    assert caught.value.__traceback__ is not None
    forget_frames(caught.value)
    assert caught.value.__traceback__ is None


@pytest.mark.parametrize("key", ["k", "key", "S", "4"])
def test_short_key(key: str) -> None:
    """A short key is removed only as a whole word."""
    protocol = CreduseProtocol(key, retry=RetryPolicy(max_attempts=1))
    body = b'{"error_code": "SOME_KEYS", "message": "the key %b, kept in 404"}' % key.encode()
    error = fail(Response(404, (), body), protocol)
    assert isinstance(error, APIError)
    words = {"key": "the *** ***, kept in 404"}
    assert error.error_code == "SOME_KEYS"
    assert error.message == words.get(key, "the key ***, kept in 404")


def test_empty_secret() -> None:
    """An empty secret is in no text, so redaction changes nothing."""
    assert Secret("").redact("a text\n") == "a text\n"


def test_response_to_be_stored() -> None:
    """The redacted response holds neither the key nor other secrets that a server repeats."""
    protocol = CreduseProtocol(KEY, extra_headers={"X-Gateway-Token": Secret("gateway-token")})
    assert protocol.subtract(USER_ID, 7).redacted_response is None
    call = protocol.subtract(USER_ID, 7)
    call.start(0.0)
    with pytest.raises(APIError):
        call.receive_response(Response(400, (), f"{KEY} gateway-token".encode()), 1.0)
    assert call.redacted_response is not None
    assert call.redacted_response.body == b"*** ***"


def test_raw_response_is_unchanged() -> None:
    """The raw response, for debugging, is unchanged."""
    call = call_in_flight()
    response = ECHOES["a refusal's body"]
    with pytest.raises(APIError):
        call.receive_response(response, 1.0)
    assert call.response is response


# In whatever spelling it comes.

ODD_KEY = "sk-live+a/b=c&d<e>f'g~h%i;0123456789"


def each(spell: str) -> Callable[[str], str]:
    """Write each character in one way: a format with its number, or another with itself."""
    return lambda key: "".join(spell.format(character, ord(character)) for character in key)


def beside_letters(spell: str) -> Callable[[str], str]:
    """Write so all characters but letters and digits."""
    write = each(spell)
    return lambda key: "".join(it if it.isalnum() else write(it) for it in key)


def broken(end: str) -> Callable[[str], str]:
    """Write it in lines of five characters."""
    return lambda key: end.join(key[start : start + 5] for start in range(0, len(key), 5))


NAMES = {it: f"&{name}" for name, it in html5.items() if name.endswith(";") and len(it) == 1}
SPELLINGS: dict[str, Callable[[str], str]] = {
    "plain": str,
    "JSON": beside_letters("\\u{1:04X}"),
    "JSON in lower case": each("\\u{1:04x}"),
    "JSON twice": each("\\\\u{1:04x}"),
    "JSON in an URL": each("%5Cu{1:04x}"),
    "JavaScript": each("\\u{{{1:x}}}"),
    "long escapes": each("\\U{1:08X}"),
    "source": each("\\x{1:02x}"),
    "octal": each("\\{1:03o}"),
    "short octal": beside_letters("\\{1:o}"),
    "backslashes": beside_letters("\\{0}"),
    "backslashes, three": beside_letters("\\\\\\{0}"),
    "URL": lambda key: urllib.parse.quote(key, safe=""),
    "URL in lower case": each("%{1:02x}"),
    "URL twice": each("%25{1:02X}"),
    "URL nine times": each("%" + "25" * 9 + "{1:02X}"),
    "HTML": html.escape,
    "HTML twice": lambda key: html.escape(html.escape(key)),
    "HTML with names": lambda key: "".join(NAMES.get(it, it) for it in key),
    "HTML with numbers": each("&#{1};"),
    "HTML with padded numbers": each("&#0{1:03};"),
    "HTML with hexadecimal numbers": each("&#x{1:x};"),
    "HTML with capital numbers": each("&#X{1:X};"),
    "HTML in JSON": lambda key: html.escape(key).replace("&", "\\u0026"),
    "HTML in an URL": lambda key: urllib.parse.quote(html.escape(key)),
    "JSON in HTML": lambda key: html.escape(json.dumps(key)[1:-1]),
    "quoted-printable": each("={1:02X}"),
    "source of source": lambda key: repr(repr(key))[2:-2],
    "hexadecimal": lambda key: key.encode().hex(),
    "capital hexadecimal": lambda key: key.encode().hex().upper(),
    "lines": broken("\n"),
    "indented lines": broken("\r\n\t "),
    "lines in JSON": broken("\\r\\n"),
    "lines of quoted-printable": broken("=\r\n"),
    "UTF-16": "\0".join,
    "UTF-32": "\0\0\0".join,
}


@pytest.mark.parametrize("spell", SPELLINGS.values(), ids=SPELLINGS)
def test_every_spelling(spell: Callable[[str], str]) -> None:
    """Every character of a key is found in every spelling, and nothing around it changes."""
    for key in (KEY, ODD_KEY):
        assert Secret(key).redact(f"x {spell(key)} y") == "x *** y"
        assert Secret(key).redact(f"{spell(key)} {spell(key)}") == "*** ***"
        assert Secret(key).redact(spell(f"x{key[::-1]}y")) == spell(f"x{key[::-1]}y")


@pytest.mark.parametrize("seed", range(4))
def test_any_mixture_of_spellings(seed: int) -> None:
    """Every character may have its own spelling, in a key of any characters."""
    dice = random.Random(seed)  # noqa: S311 - it guards nothing
    whole = {"hexadecimal", "capital hexadecimal", "source of source"}
    one_by_one = [spell for name, spell in SPELLINGS.items() if name not in whole]
    letters = [chr(code) for code in range(33, 127) if chr(code) != "\\"]
    for _ in range(8):
        key = "".join(dice.choices(letters, k=dice.randint(8, 40)))
        text = "".join(dice.choice(one_by_one)(character) for character in key)
        assert Secret(key).redact(f"x {text} y") == "x *** y", (key, text)


BACKSLASHES: dict[str, Callable[[str], str]] = {
    "plain": str,
    "doubled": each("\\\\{0}"),
    "URL": each("%5C"),
    "HTML": each("&#92;"),
    "JSON": lambda key: json.dumps(key)[1:-1],
}


@pytest.mark.parametrize("spell", BACKSLASHES.values(), ids=BACKSLASHES)
def test_backslashes_in_a_key(spell: Callable[[str], str]) -> None:
    """Backslashes in a key are found, escaped or not."""
    for key in ("\\0123456789", "a\\b\\\\c-0123456789", "0123456789\\\\\\"):
        text = "".join(spell(it) if it == "\\" else it for it in key)
        assert Secret(key).redact(f"x {text} y") == "x *** y"


@pytest.mark.parametrize("before", range(7))
@pytest.mark.parametrize("url_safe", [False, True])
def test_base64(before: int, url_safe: bool) -> None:  # noqa: FBT001 - a column
    """A key is found in Base64, at any offset and in both alphabets."""
    for key in (KEY, ODD_KEY, "~~~???>>>~~~???", "12345678"):
        data = b"user:pw"[:before] + key.encode() + b"\n more"
        encode = base64.urlsafe_b64encode if url_safe else base64.b64encode
        text = encode(data).decode()
        whole = text[-(-before * 8 // 6) : (before + len(key)) * 8 // 6]
        assert Secret(key).redact(text) == text.replace(whole, "***")
        escaped = urllib.parse.quote(text, safe="")
        assert Secret(key).redact(escaped) == urllib.parse.quote(text.replace(whole, "***"), "*")
        assert Secret(key).redact(text.replace("/", "\\/")).count("***") == 1


def test_base64_in_lines() -> None:
    """A key is found in MIME's Base64, wherever its lines end."""
    for before in range(80):
        text = base64.encodebytes(b"x" * before + ODD_KEY.encode() + b"\n more").decode()
        whole = text.replace("\n", "")
        start, end = -(-before * 8 // 6), (before + len(ODD_KEY)) * 8 // 6
        redacted = Secret(ODD_KEY).redact(text).replace("\n", "")
        assert redacted == f"{whole[:start]}***{whole[end:]}"


@pytest.mark.parametrize("spell", [str, SPELLINGS["JSON in lower case"], SPELLINGS["hexadecimal"]])
def test_cut(spell: Callable[[str], str]) -> None:
    """The beginning of a key is found: 8 characters anywhere, 4 at the end of a text."""
    secret = Secret(ODD_KEY)
    for length in range(1, len(ODD_KEY) + 1):
        begun = spell(ODD_KEY[:length])
        assert secret.redact(f"x {begun}") == ("x ***" if length >= 4 else f"x {begun}")
        assert secret.redact(f"{begun}… y") == ("***… y" if length >= 8 else f"{begun}… y")


def test_cut_base64() -> None:
    """The beginning of a key is found in Base64."""
    secret = Secret(ODD_KEY)
    text = base64.b64encode(ODD_KEY.encode()).decode().rstrip("=")
    assert secret.redact(text[:10] + " y") == "*** y"
    assert secret.redact("x " + text[:5]) == "x ***"


WILD = {
    "backslashes": "\\",
    "percent signs": "%25",
    "ampersands": "&amp;",
    "equals signs": "=3D",
    "a key's beginning": KEY[:7],
    "its first character": KEY[:1],
    "its beginning, escaped": "\\\\u0073",
    "its beginning in Base64": base64.b64encode(KEY.encode()).decode()[:9],
    "whole keys": KEY,
}


def seconds(secret: Secret, text: str) -> float:
    """Return the processor time, the least of three. Other processes do not add to it."""
    found: list[float] = []
    for _ in range(3):
        started = time.process_time()
        secret.redact(text)
        found.append(time.process_time() - started)
    return min(found)


@pytest.mark.parametrize("piece", WILD.values(), ids=WILD)
def test_search_time_is_linear(piece: str) -> None:
    """The time to search for a key is linear in the text."""
    secret = Secret(KEY)
    size = 2**15 // len(piece)
    small, large = seconds(secret, piece * size), seconds(secret, piece * size * 8)
    assert large < 0.01 + 24 * small  # the square would be 64 times


# Wherever tools look.


def attributes(value: object) -> dict[str, object]:
    """Return the attributes of an object, as tools that show or serialize objects do."""
    names = [*getattr(value, "__dict__", ())]
    for kind in type(value).__mro__:
        slots = getattr(kind, "__slots__", ())
        names += [slots] if isinstance(slots, str) else slots
    return {name: getattr(value, name, None) for name in names if not name.startswith("_")}


@pytest.mark.parametrize("holder", HOLDERS.values(), ids=HOLDERS)
def test_attributes_do_not_show_it(holder: object) -> None:
    """No attribute of an object that holds the key shows it."""
    assert KEY not in repr(attributes(holder))
    for value in attributes(holder).values():
        assert KEY not in repr(attributes(value))


def test_dataclasses_do_not_store_it() -> None:
    """A request and a protocol cannot be turned into dictionaries."""
    for holder in (PROTOCOL, call_in_flight().request):
        with pytest.raises(TypeError, match=r"a Secret holds the API key"):
            dataclasses.asdict(holder)


def test_comparisons_do_not_show_it() -> None:
    """What pytest prints of two unequal objects does not show the key."""
    one, other = PROTOCOL, CreduseProtocol(KEY + "x")
    pairs: list[tuple[object, object]] = [
        (one, other),
        (one.add(USER_ID, 7).request, other.add(USER_ID, 7).request),
        (one.add(USER_ID, 7).request, one.add(USER_ID, 8).request),
        (one.api_key, other.api_key),
        ({"key": one.api_key}, {"key": KEY[:0]}),
    ]
    for left, right in pairs:
        with pytest.raises(AssertionError) as caught:
            assert left == right
        assert KEY not in str(caught.value)


HALF_MADE: list[Any] = [CreduseProtocol, CoreClient, AsyncCoreClient]


@pytest.mark.parametrize("kind", HALF_MADE)
def test_partly_initialized_objects(kind: Any) -> None:
    """An object whose ``__init__`` has not ended has a repr, which tools show."""
    assert repr(kind.__new__(kind)) == f"<{kind.__name__} not initialized>"


def test_failure() -> None:
    """A failure does not show the text of its cause."""
    failure = Failure(Delivery.MAYBE_SENT, OSError(KEY), transient=False)
    assert repr(failure) == "<Failure maybe sent, OSError>"


# Frames: what an error tracker shows that leaves out the variables with these names.

DENIED = {
    *("api_key", "apikey", "auth", "authorization", "cookie", "credentials", "csrftoken"),
    *("passwd", "password", "private_key", "privatekey", "secret", "sessionid", "set-cookie"),
    *("token", "x_api_key"),
}


def shown_by(error: BaseException) -> Iterator[tuple[str, str]]:
    """Return the variables of all frames below a test's, of an error and its causes."""
    for link in exception_chain(error):
        traceback = link.__traceback__
        while traceback is not None:
            frame = traceback.tb_frame
            for name, value in frame.f_locals.items():
                if frame.f_code.co_filename != __file__ and name not in DENIED:
                    yield f"{frame.f_code.co_name}: {name}", repr(value)
            traceback = traceback.tb_next


@pytest.mark.parametrize("spell", SPELLINGS.values(), ids=SPELLINGS)
@pytest.mark.parametrize("status", [200, 302, 402, 429, 500])
def test_frames_of_a_refusal(play: Play, status: int, spell: Callable[[str], str]) -> None:
    """No frame shows a response that repeats the key, with any status and spelling."""
    echoed = spell(KEY)
    body = json.dumps({"error_code": "INSUFFICIENT_FUNDS", "message": f"bad key {echoed}."})
    response = Response(status, [("X-Key", f"Bearer {echoed}")], body.encode())
    with pytest.raises(CreduseError) as caught:
        play(*[response] * 3).do("subtract", USER_ID, 7)
    written = json.dumps(echoed)[1:-1]  # in a body
    found = [*shown_by(caught.value)]
    assert any(name == "run: call" for name, _ in found)
    assert [name for name, text in found if echoed in text or written in text or KEY in text] == []
    assert [
        text for text in texts(caught.value) if echoed in text or written in text or KEY in text
    ] == []


def raising(cause: Exception) -> Callable[[], None]:
    """Return a transport's method that raises with the key in a variable."""

    def send() -> None:
        header = f"Bearer {KEY}"
        raise cause from LookupError(len(header))

    return send


@pytest.mark.parametrize(
    "event",
    [
        Failure(Delivery.MAYBE_SENT, OSError(f"with {KEY}"), transient=False),
        Failure(
            Delivery.MAYBE_SENT,
            OSError("cut"),
            transient=False,
            response=Response(402, [("X", KEY)], KEY.encode()),
        ),
        ValueError(f"with {KEY}"),
        raising(ValueError("odd")),
        raising(ValueError(f"with {KEY}")),
        KEY,
    ],
    ids=["cause", "head", "raised", "frame", "both", "nonsense"],
)
def test_frames_of_a_failure(play: Play, event: object) -> None:
    """No frame shows a key that a transport reports or raises."""
    with pytest.raises(CreduseError) as caught:
        play(event).do("subtract", USER_ID, 7)
    assert [name for name, text in shown_by(caught.value) if KEY in text] == []
    assert [text for text in texts(caught.value) if KEY in text] == []


def test_frames_of_a_wait_that_is_too_long(play: Play) -> None:
    """No frame shows the key where a call ends after a wait."""
    echo = Response(429, [("X", KEY)], b'{"message": "%b"}' % KEY.encode())
    with pytest.raises(APIError) as caught:
        play(echo, oversleep=60.0).do("subtract", USER_ID, 7)
    assert [name for name, text in shown_by(caught.value) if KEY in text] == []


WRONG: dict[str, tuple[str, tuple[Any, ...], dict[str, Any]]] = {
    "id": ("subtract", (7, 7), {}),
    "amount": ("subtract", (USER_ID, "7"), {}),
    "negative amount": ("add", (USER_ID, -7), {}),
    "days": ("start_cycle", (USER_ID, 7, 1.5), {}),
    "timeout": ("stop_cycle", (USER_ID,), {"timeout": -1}),
    "idempotency key": ("add", (USER_ID, 7), {"idempotency_key": "a b"}),
    "idempotency key of another type": ("add", (USER_ID, 7), {"idempotency_key": 7}),
}


@pytest.mark.parametrize(("method", "arguments", "named"), WRONG.values(), ids=WRONG)
def test_frames_of_a_wrong_argument(
    play: Play, method: str, arguments: tuple[Any, ...], named: dict[str, Any]
) -> None:
    """No frame shows the key where an argument is wrong."""
    with pytest.raises((TypeError, ValueError)) as caught:
        play().do(method, *arguments, **named)
    found = [*shown_by(caught.value)]
    assert found
    assert [name for name, text in found if KEY in text] == []


BAD_KEYS: dict[str, Any] = {
    "bytes": KEY.encode(),
    "a list": [KEY],
    "a line": f"{KEY}\n",
    "not ASCII": f"{KEY}\u00e9",
    "two words": f"{KEY} {KEY}",
    "a secret": Secret(f"{KEY}\n"),
}


def check_wrong_key(make: Callable[[], object]) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        make()
    found = [*shown_by(caught.value)]
    assert any(name.endswith(": self") for name, _ in found)
    assert [name for name, text in found if KEY in text] == []


@pytest.mark.parametrize("api_key", BAD_KEYS.values(), ids=BAD_KEYS)
def test_frames_of_a_wrong_key(api_key: Any) -> None:
    """No frame shows a rejected key, except under a name that tools leave out."""
    options: dict[str, Any] = {"retry": RetryPolicy(), "timeout": 30.0, "allow_http": None}
    check_wrong_key(lambda: CreduseProtocol(api_key))
    check_wrong_key(lambda: protocol_from_environment(api_key, base_url=None, **options))


def test_frames_of_a_wrong_key_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No frame shows a rejected key of the environment."""
    monkeypatch.setenv("CREDUSE_API_KEY", f"{KEY}\n")
    options: dict[str, Any] = {"retry": RetryPolicy(), "timeout": 30.0, "allow_http": None}
    check_wrong_key(lambda: protocol_from_environment(None, base_url=None, **options))


@pytest.mark.parametrize("url", ["http://example.com", "ftp://example.com", 7])
def test_frames_of_a_wrong_url(url: Any) -> None:
    """No frame shows the key where the base URL is rejected."""
    with pytest.raises((TypeError, ValueError)) as caught:
        CreduseProtocol(KEY, url)
    assert [name for name, text in shown_by(caught.value) if KEY in text] == []


def test_what_the_caller_is_handling_is_left_alone() -> None:
    """An exception that the caller is handling keeps its traceback, and is not the cause."""

    def fail() -> None:
        raise OSError("odd")

    handled = ValueError("the caller's")
    try:
        raise handled
    except ValueError:
        with pytest.raises(OSError, match="odd") as caught:
            fail()
        assert caught.value.__context__ is handled
        forget_frames(caught.value)
        assert caught.value.__traceback__ is None
        assert handled.__traceback__ is not None
