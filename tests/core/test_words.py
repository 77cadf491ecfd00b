"""What an error says in the words of the response's sender, and the sender's name for the request."""

import json
from encodings.aliases import aliases

import pytest

from creduse_core import (
    APIError,
    CreduseProtocol,
    InvalidResponseError,
    Outcome,
    Response,
    ServerError,
)
from creduse_core.words import words_of
from tests.common import USER_ID
from tests.core.test_errors import fail, lost

WHERE = "api.creduse.com:443"
HTML = [("Content-Type", "text/html")]
TEXT = [("Content-Type", "text/plain; charset=utf-8")]

WORDS: dict[str, tuple[Response, str | None]] = {
    "problem details": (
        Response(503, (), b'{"type": "about:blank", "title": "Busy", "detail": "Try later."}'),
        "Try later.",
    ),
    "a title alone": (Response(503, (), b'{"type": "about:blank", "title": "Busy"}'), "Busy"),
    "FastAPI": (Response(400, (), b'{"detail": "No such path"}'), "No such path"),
    "FastAPI's validation": (
        Response(422, (), b'{"detail": [{"loc": ["body"], "msg": "Field required"}]}'),
        "Field required",
    ),
    "OAuth": (
        Response(401, (), b'{"error": "invalid_token", "error_description": "It has expired"}'),
        "It has expired",
    ),
    "an error's name": (Response(401, (), b'{"error": "invalid_token"}'), "invalid_token"),
    "an error as an object": (Response(500, (), b'{"error": {"message": "oh no"}}'), "oh no"),
    "a list of errors": (Response(500, (), b'{"errors": [{"detail": "oh no"}]}'), "oh no"),
    "JSON text": (Response(500, (), b'"oh no"'), "oh no"),
    "deep JSON": (Response(500, (), b'{"error":' * 9 + b'"x"' + b"}" * 9), None),
    "deepest JSON": (Response(500, (), b"[" * 9000), None),
    "other JSON": (Response(500, (), b'{"message": 7, "errors": []}'), None),
    "a page": (
        Response(502, HTML, b"<html><head>\n<TITLE>502 Bad\n Gateway &amp; more</TITLE></head>"),
        "502 Bad Gateway & more",
    ),
    "a page's heading": (Response(502, (), b'<h1 class="x">Sorry</h1>'), "Sorry"),
    "a page without a title": (Response(502, HTML, b"<p>oh no</p>"), None),
    "an empty title": (Response(502, HTML, b"<title> </title>"), None),
    "plain text": (Response(503, TEXT, b"upstream  connect\nerror"), "upstream connect error"),
    "text of no type": (Response(503, (), b"upstream\n connect error"), "upstream connect error"),
    "broken JSON of no type": (Response(503, (), b'{"message": "x'), None),
    "data of no type": (Response(503, (), b"\x1f\x8b\x08\x00abc"), None),
    "control characters of no type": (Response(503, (), b"up\x1bstream"), None),
    "a file of another type": (Response(503, [("Content-Type", "image/png")], b"PNG"), None),
    "names in another case": (Response(403, (), b'{"Message": "Forbidden"}'), "Forbidden"),
    "XML": (
        Response(503, (), b"<?xml version='1.0'?><Error><Message>Slow &lt; down</Message></Error>"),
        "Slow < down",
    ),
    **{
        f"Content-Type {media_type}": (
            Response(503, [("content-type", f"text/{media_type}")], body),
            "schläft",
        )
        for media_type, body in {
            "plain; charset=iso-8859-1": b"schl\xe4ft",
            'plain; Charset = "Windows-1252"': b"schl\xe4ft",
            "html;charset=latin1": b"<title>schl\xe4ft</title>",
            "plain; charset=UTF-16": "schläft".encode("utf-16"),
            # What Python does not know as a charset is read as UTF-8.
            "plain; charset=utf-99": "schläft".encode(),
            "plain; charset=unicode_escape": "schläft".encode(),
            "plain; charset=zlib": "schläft".encode(),
            "plain; charset=": "schläft".encode(),
        }.items()
    },
    "bytes of another charset": (Response(503, TEXT, b"schl\xe4ft"), "schl\ufffdft"),
    "a large body": (Response(503, (), json.dumps({"detail": "x" * 20_000}).encode()), None),
    "a large page": (Response(503, (), b"<title>Busy</title>" + b" " * 20_000), "Busy"),
    "a byte order mark": (Response(503, (), b'\xef\xbb\xbf{"detail": "Busy"}'), "Busy"),
    "an empty body": (Response(503, (), b""), None),
}


@pytest.mark.parametrize(("response", "words"), WORDS.values(), ids=WORDS)
def test_words(response: Response, words: str | None) -> None:
    """An error has the sender's own words, in whatever format they are."""
    error = fail(response)
    assert isinstance(error, APIError)
    assert error.message == words
    said = str(response.status) if words is None else f"{response.status} {words}"
    said = said.replace("502 502", "502")
    assert str(error).startswith(f"add({USER_ID}, 7): {said} ({WHERE}) [")
    assert error.outcome is (Outcome.UNKNOWN if response.status >= 500 else Outcome.NOT_APPLIED)


@pytest.mark.parametrize(
    ("location", "shown"),
    [
        ("https://login.example/in?next=%2Fadd&token=abc#top", "https://login.example/in"),
        ("https://user:password@login.example/in", "https://login.example/in"),
        ("//login.example", "//login.example"),
        ("https://user:password@login.example//in//x", "https://login.example//in//x"),
        ("in", "in"),
        ("/v2/add?x", "/v2/add"),
        ("/v2/a@b", "/v2/a@b"),
    ],
)
def test_redirect(location: str, shown: str) -> None:
    """The error for a redirect says where it leads, without what can be secret."""
    error = fail(Response(302, [("Location", location)], b"<title>Found</title>"))
    assert isinstance(error, InvalidResponseError)
    assert f": 302 as the final response: redirects to {shown} ({WHERE}) [may" in str(error)


def test_page_in_place_of_a_result() -> None:
    """The error for a page with the status 200 says its title."""
    error = fail(Response(200, HTML, b"<title>Log in to the Wi-Fi</title>"))
    said = ": 200, but the response is not JSON: Log in to the Wi-Fi"
    assert f"{said} ({WHERE}) [may" in str(error)


@pytest.mark.parametrize(
    "body", [b'{"detail": "of a user"}', b"of a user", b"<message>of a user</message>"]
)
@pytest.mark.parametrize("headers", [(), TEXT])
def test_data_in_a_result(headers: list[tuple[str, str]], body: bytes) -> None:
    """The error for a 2xx response does not quote its data."""
    assert "of a user" not in str(fail(Response(200, headers, body)))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("502 Bad Gateway", "502 Bad Gateway"),
        (" 502: Bad gateway", "502: Bad gateway"),
        ("502", "502"),
        ("5020 errors", "502 5020 errors"),
        ("504 Gateway Timeout", "502 504 Gateway Timeout"),
    ],
)
def test_status_in_the_words(words: str, said: str) -> None:
    """An error says the status code once, also if the sender's words begin with it."""
    response = Response(502, HTML, f"<title>{words}</title>".encode())
    assert f": {said} ({WHERE}) [" in str(fail(response))
    cut = fail(lost(OSError("reset"), response=response))
    assert f": {said}, but the response was cut off (OSError: reset)" in str(cut)


def test_charsets() -> None:
    """Whatever charset a response names, its words are read."""
    others = ("idna", "raw_unicode_escape", "undefined", "unicode_escape")
    for charset in (*aliases, *aliases.values(), *others):
        media_type = f"text/plain; charset={charset}"
        assert words_of(Response(503, [("Content-Type", media_type)], bytes(range(256)) * 2))


@pytest.mark.parametrize(
    ("headers", "name"),
    [
        ([("X-Request-Id", "7f3a")], "7f3a"),
        ([("CF-Ray", "9"), ("x-request-id", "7f3a")], "7f3a"),
        ([("X-Request-Id", ""), ("x-amzn-RequestId", "7f3a")], "7f3a"),
        ([("X-Request-Id", "7f\x1b3a")], "7f\\x1b3a"),
        ([("X-Request-Id", "sk-live-0123456789")], "***"),
        ([("X-Request-Id", "7" * 500)], "7" * 400 + "…"),
    ],
)
@pytest.mark.parametrize("status", [402, 503, 302])
def test_request_id(status: int, headers: list[tuple[str, str]], name: str) -> None:
    """An error names the request as the server does, printable and without the API key."""
    error = fail(Response(status, headers, b""))
    assert error.request_id == name
    assert str(error).endswith(f"; 1 attempt; request ID {name}]")


def test_no_request_id() -> None:
    """Without a header that names the request, the error has none."""
    error = fail(Response(503, [("Server", "x")], b""))
    assert isinstance(error, ServerError)
    assert error.request_id is None
    assert str(error).endswith("; 1 attempt]")


def test_long_amount() -> None:
    """An amount that is too long to read is not in the message, but in the error's call."""
    call = CreduseProtocol("sk-live-0123456789").add(USER_ID, 10**50)
    call.start(0.0)
    with pytest.raises(APIError) as caught:
        call.receive_response(Response(400, (), b""), 1.0)
    assert str(caught.value).startswith(f"add({USER_ID}, …): 400 ({WHERE}) [")
    assert caught.value.call is not None
    assert caught.value.call.amount == 10**50


@pytest.mark.parametrize("gap", ["\n", "\r\n    ", "=\r\n", "&#10;", "&#x6c;"])
@pytest.mark.parametrize("page", [False, True], ids=["text", "page"])
def test_key_in_the_words(gap: str, *, page: bool) -> None:
    """The API key is removed from the sender's words, even if it is broken into lines or escaped."""
    if not page and gap.startswith("&"):
        gap = "\n"
    key = "sk-live-0123456789"
    shown = key.replace("l", gap, 1) if gap == "&#x6c;" else key[:9] + gap + key[9:]
    body = f"<title>bad {shown} key</title>" if page else f"bad {shown} key"
    error = fail(Response(403, HTML if page else TEXT, body.encode()))
    for text in (str(error), str(error.as_dict())):
        assert "bad *** key" in text
        assert "012345" not in text
