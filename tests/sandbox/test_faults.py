"""Each fault: its bytes on a socket, and its entry in the log."""

import gzip
import http.client
import json
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import pytest

from creduse_core.messages import MAX_BODY_SIZE, Request
from creduse_sandbox import (
    DESCRIPTIONS,
    FAULTS,
    Action,
    CannedResponse,
    Drop,
    Fault,
    SandboxServer,
    Shaped,
    Stage,
    serve,
)
from tests.common import wait_until

USER = "12345678-1234-5678-1234-567812345678"
OTHER = "99999999-9999-4999-8999-999999999999"
NOW = datetime(2025, 8, 12, 14, 35, 55, tzinfo=UTC)
GOOD = json.dumps({"end_user_id": USER, "amount": 5, "validity_days": 2}).encode()
TRUE = GOOD  # the response to `add` says the same
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
LINGER = b"\1\0\0\0\0\0\0\0"


@pytest.fixture
def server() -> Iterator[SandboxServer]:
    with SandboxServer(clock=lambda: NOW) as server:
        yield server


def where(server: SandboxServer) -> tuple[str, int]:
    parts = urlsplit(server.base_url)
    assert parts.hostname is not None
    assert parts.port is not None
    return parts.hostname, parts.port


def dial(server: SandboxServer) -> socket.socket:
    return socket.create_connection(where(server), timeout=20)


def message(path: str = "/add", *fields: str) -> bytes:
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: sandbox",
        "Authorization: Bearer key",
        f"Content-Length: {len(GOOD)}",
        *fields,
    ]
    return "\r\n".join([*lines, "", ""]).encode() + GOOD


def response(
    body: bytes = TRUE,
    *fields: str,
    status: int = 200,
    kind: str = "application/json",
    framing: str | None = None,
) -> bytes:
    """Return the bytes of the server's response."""
    lines = [
        f"HTTP/1.1 {status} ",
        *([f"Content-Type: {kind}"] if kind else ()),
        *fields,
        *(() if "Date: " in "".join(fields) else ("Date: Tue, 12 Aug 2025 14:35:55 GMT",)),
        *(
            (f"Content-Length: {len(body)}" if framing is None else framing,)
            if framing != ""
            else ()
        ),
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


LAST = response().replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
"""The response to a request with ``Connection: close``."""


def send(stream: socket.socket, data: bytes) -> None:
    """Send to a server that may have closed the connection."""
    with suppress(ConnectionError):
        stream.sendall(data)


def read(stream: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = stream.recv(size - len(data))
        assert piece
        data += piece
    return bytes(data)


def read_all(stream: socket.socket) -> tuple[bytes, Action]:
    """Read to the end, and return the bytes and how the connection ended."""
    data = bytearray()
    try:
        while piece := stream.recv(1024 * 1024):
            data += piece
    except ConnectionResetError:
        return bytes(data), Action.RESET
    except TimeoutError:
        return bytes(data), Action.HANG
    return bytes(data), Action.CLOSE


def changed(**fields: object) -> bytes:
    return response(json.dumps(json.loads(GOOD) | fields).encode())


def added(value: bytes) -> bytes:
    return response(GOOD[:-1] + b', "added": ' + value + b"}")


def chunks(body: bytes, size: int) -> bytes:
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    framed = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)
    return response(framed + b"0\r\n\r\n", framing="Transfer-Encoding: chunked")


def envelope(status: int, shown: int | None = None, *fields: str) -> bytes:
    error = {
        "error_code": f"STATUS_{status}",
        "message": "This response is an injected fault.",
        "timestamp": "2025-08-12T14:35:55.000000Z",
    }
    return response(json.dumps(error).encode(), *fields, status=shown or status)


def page(status: int) -> bytes:
    return response(
        b"<html>This response is an injected fault.</html>", status=status, kind="text/html"
    )


def redirect(status: int) -> bytes:
    return response(b"", "Location: /moved", status=status, kind="")


WHOLE = response()
HEAD_SIZE = len(WHOLE) - len(TRUE)
PADDED = TRUE + b" " * MAX_BODY_SIZE
HALF_HEAD = WHOLE[: HEAD_SIZE // 2]
HALF_BODY = WHOLE[: HEAD_SIZE + len(TRUE) // 2]
DATE = b"Date: Tue, 12 Aug 2025 14:35:55 GMT\r\n"
SURPLUS = envelope(402).replace(DATE, b"")
STRAY = envelope(503).replace(DATE, b"")
ENDS = {"hang": Action.HANG, "close": Action.CLOSE, "reset": Action.RESET}

Expected = tuple[bytes, Action, bool]  # the bytes, the end, whether applied


def drops() -> Iterator[tuple[str, Expected]]:
    for name, action in ENDS.items():
        if action is not Action.RESET:  # has a test of its own
            yield f"connect-then-{name}", (b"", action, False)
        yield f"head-then-{name}", (b"", action, False)
        yield f"request-then-{name}", (b"", action, False)
        yield f"apply-then-{name}", (b"", action, True)
        yield f"cut-head-then-{name}", (HALF_HEAD, action, True)
        yield f"cut-body-then-{name}", (HALF_BODY, action, True)


SHAPES: dict[str, tuple[bytes, Action]] = {
    "slow": (WHOLE, Action.KEEP),
    "drip": (WHOLE, Action.KEEP),
    "drip-body": (WHOLE, Action.KEEP),
    "drip-chunks": (chunks(TRUE, 16), Action.KEEP),
    "chunks": (chunks(TRUE, 1), Action.KEEP),
    "no-length": (response(framing=""), Action.CLOSE),
    "100-first": (CONTINUE + WHOLE, Action.KEEP),
    "103-first": (
        b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n" + WHOLE,
        Action.KEEP,
    ),
    "not-http": (b"SSH-2.0-OpenSSH_9.9\r\n", Action.CLOSE),
    "surplus": (WHOLE + SURPLUS, Action.KEEP),
    "surplus-later": (WHOLE + SURPLUS, Action.KEEP),
    "surplus-whole": (WHOLE + WHOLE, Action.KEEP),
    "surplus-whole-later": (WHOLE + WHOLE, Action.KEEP),
    "surplus-half": (WHOLE + HALF_BODY, Action.KEEP),
    "stray-503": (STRAY + WHOLE, Action.KEEP),
    "framed-twice": (
        chunks(TRUE, len(TRUE)).replace(
            b"Transfer-Encoding", b"Content-Length: %d\r\nTransfer-Encoding" % len(TRUE)
        ),
        Action.KEEP,
    ),
    "close-after": (WHOLE, Action.CLOSE),
    "cut-after": (WHOLE, Action.CLOSE),
    "wrong-user": (changed(end_user_id=OTHER), Action.KEEP),
    "wrong-amount": (changed(amount=6), Action.KEEP),
    "missing-field": (response(b'{"end_user_id": "%b", "amount": 5}' % USER.encode()), Action.KEEP),
    "mistyped-field": (changed(validity_days={"mistyped": True}), Action.KEEP),
    "deep": (added(b"[" * 100_000 + b"]" * 100_000), Action.KEEP),
    "bad-utf8": (added(b'"\xff"'), Action.KEEP),
    "not-json": (response(b"OK"), Action.KEEP),
    "gzip": (response(gzip.compress(TRUE, mtime=0), "Content-Encoding: gzip"), Action.KEEP),
    "gzip-undeclared": (response(gzip.compress(TRUE, mtime=0)), Action.KEEP),
    "huge-head": (response(TRUE, f"Padding: {'x' * 101 * 1024}"), Action.KEEP),
    "huge-body": (response(PADDED), Action.KEEP),
    "huge-chunks": (chunks(PADDED, 64 * 1024), Action.KEEP),
}
RESPONSES = {
    "200-error": envelope(402, 200),
    "204": response(b"", status=204, kind="", framing=""),
    **{str(status): redirect(status) for status in (301, 302, 303, 307, 308)},
    **{str(status): envelope(status) for status in (408, 421, 425, 429)},
    "429-seconds": envelope(429, None, "Retry-After: 1"),
    "429-date": envelope(
        429,
        None,
        "Date: Tue, 12 Aug 2025 14:35:55 GMT",
        "Retry-After: Tue, 12 Aug 2025 14:35:56 GMT",
    ),
    **{str(status): envelope(status) for status in range(500, 512)},
    **{f"{status}-page": page(status) for status in range(500, 512)},
}
EXPECTED: dict[str, Expected] = {
    **dict(drops()),
    **{name: (data, end, True) for name, (data, end) in SHAPES.items()},
    **{name: (data, Action.KEEP, False) for name, data in RESPONSES.items()},
}


def test_every_fault_is_tested() -> None:
    """Each fault has a test and its own description."""
    assert {*EXPECTED, "endless-100", "connect-then-reset"} == {*FAULTS} == {*DESCRIPTIONS}
    assert all(text and "\n" not in text for text in DESCRIPTIONS.values())


@pytest.mark.parametrize(("name", "expected"), EXPECTED.items(), ids=EXPECTED)
def test_fault(server: SandboxServer, name: str, expected: Expected) -> None:
    """A fault sends its bytes, ends the connection as its name says, and the log says what was applied.

    On a connection that stays open, the server responds to the next request as usual.
    """
    data, end, applied = expected
    fault = FAULTS[name]
    server.inject(fault)
    kept = end is Action.KEEP
    with dial(server) as stream:
        send(stream, message() + message("/add", "Connection: close"))
        if end is Action.HANG:
            wait_until(lambda: fault.stage is Stage.CONNECTED or bool(server.log))
            assert not data or stream.recv(1, socket.MSG_PEEK)
            stream.settimeout(0.03)
        came, ended = read_all(stream)
    assert came == data + (LAST if kept else b"")
    assert ended is (Action.CLOSE if kept else end)
    first, *others = server.log or (None,)
    assert [entry.applied for entry in others] == [True] * kept
    assert (fault.stage is Stage.APPLIED) == applied
    if fault.stage is Stage.CONNECTED:
        assert first is None
        return
    assert first is not None
    assert (first.fault, first.applied) == (fault, applied)
    assert (first.status is None) == isinstance(fault, Drop)
    assert (first.body is None) == (fault.stage is Stage.HEAD)


def test_reset_at_once(server: SandboxServer) -> None:
    """A reset can arrive before the client knows that it is connected. No request is logged."""
    server.inject(FAULTS["connect-then-reset"])
    with pytest.raises(ConnectionResetError), dial(server) as stream:
        stream.recv(1)
    with dial(server) as stream:
        stream.sendall(message())
        assert read(stream, len(WHOLE)) == WHOLE
    (entry,) = server.log
    assert entry.fault is None


def test_endless(server: SandboxServer) -> None:
    """Endless responses continue until the client leaves, which is not an error of the server."""
    server.inject(FAULTS["endless-100"])
    with dial(server) as stream:
        stream.sendall(message())
        assert read(stream, 3 * len(CONTINUE)) == 3 * CONTINUE
    (entry,) = server.applied
    assert entry.fault is FAULTS["endless-100"]


@pytest.mark.parametrize("stage", Stage)
@pytest.mark.parametrize("action", [Action.HANG, Action.CLOSE])
def test_close_with_hanging_connections(stage: Stage, action: Action) -> None:
    """Closing the server does not wait for hanging connections."""
    began = time.monotonic()
    with SandboxServer() as server:
        server.inject(Drop(stage, action))
        stream = dial(server)
        stream.sendall(message())
        wait_until(lambda: stage is Stage.CONNECTED or bool(server.log and server.log[0].fault))
    assert time.monotonic() - began < 30
    with stream, suppress(ConnectionResetError):
        assert stream.recv(1) == b""


@pytest.mark.parametrize("name", ["drip", "endless-100", "surplus-later", "huge-body"])
def test_close_during_a_response(name: str) -> None:
    """Closing the server cuts a response that it is sending."""
    with SandboxServer() as server:
        server.inject(FAULTS[name])
        stream = dial(server)
        stream.sendall(message())
        assert stream.recv(1)
    with stream:
        assert read_all(stream)[1] is not Action.HANG


@pytest.mark.parametrize("name", FAULTS)
def test_client_that_leaves_early(server: SandboxServer, name: str) -> None:
    """A client may reset its connection at any time. The server continues, and closes cleanly."""
    server.inject(FAULTS[name])
    with suppress(ConnectionResetError), dial(server) as stream:
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER)
        send(stream, message())
    # What the first did not meet with, because it left too early, waits for the second.
    with suppress(ConnectionResetError), dial(server) as stream:
        send(stream, message())
    with dial(server) as stream:
        stream.sendall(b"nonsense\r\n\r\n")
        assert read_all(stream)[0].startswith(b"HTTP/1.1 400 ")


def test_requests_during_a_slow_response(server: SandboxServer) -> None:
    """The server processes a request that arrives during a slow response after it, and logs it separately."""
    server.inject(Shaped(lambda head, body: (head, body), pause=0.01))
    with dial(server) as stream:
        stream.sendall(message())
        read(stream, HEAD_SIZE)
        last = message("/add", "Connection: close")
        stream.sendall(last)
        assert read_all(stream) == (TRUE + LAST, Action.CLOSE)
    assert [entry.received for entry in server.log] == [len(message()), len(last)]


def test_shaped_canned_response(server: SandboxServer) -> None:
    """With a canned response the server applies nothing. With a pause, each piece is a write of its own."""
    fault = Shaped(
        lambda head, body: (head, body[:1], body[1:]),
        response=CannedResponse(503, (), b"down"),
        pause=0.001,
        then=Action.RESET,
    )
    server.inject(fault)
    with dial(server) as stream:
        stream.sendall(message())
        assert read_all(stream) == (response(b"down", status=503, kind=""), Action.RESET)
    (entry,) = server.log
    assert (entry.fault, entry.applied, entry.status) == (fault, False, 503)


@pytest.mark.parametrize("name", ["wrong-amount", "apply-then-close", "wrong-user"])
def test_refusal_under_a_fault(server: SandboxServer, name: str) -> None:
    """A fault does not make the sandbox apply a request that it rejects."""
    server.inject(FAULTS[name])
    with dial(server) as stream:
        stream.sendall(message("/subtract", "Connection: close"))
        came, _ = read_all(stream)
    assert not came or b"USER_DOES_NOT_EXIST" in came
    assert not server.applied


@pytest.mark.parametrize("pause", [None, 0.001])
def test_shape_that_fails(pause: float | None) -> None:
    """If a shape raises, the client loses its connection, and the test gets the exception."""

    def fail(head: bytes, _: bytes) -> Iterator[bytes]:
        yield head
        raise LookupError("shape")

    server = SandboxServer()
    server.start()
    server.inject(Shaped(fail, pause=pause))
    with dial(server) as stream:
        stream.sendall(message())
        assert read_all(stream)[1] is Action.CLOSE
    with pytest.raises(ExceptionGroup) as caught:
        server.close()
    (error,) = caught.value.exceptions
    assert isinstance(error, LookupError)


def test_stages(server: SandboxServer) -> None:
    """A predicate of a fault at the head sees no body. Each fault counts its own times."""
    seen: list[Request] = []

    def look(request: Request) -> bool:
        seen.append(request)
        return request.url == "/subtract"

    server.inject(CannedResponse(418))
    server.inject(Drop(Stage.HEAD, Action.CLOSE), when=look)
    for path, expected in (("/add", b"HTTP/1.1 418 "), ("/subtract", b""), ("/add", LAST)):
        with dial(server) as stream:
            send(stream, message(path, "Connection: close"))
            assert read_all(stream)[0].startswith(expected)
    assert [(request.url, request.body) for request in seen] == [("/add", b""), ("/subtract", b"")]
    assert ("Authorization", "Bearer key") in seen[0].headers
    assert [entry.number for entry in server.applied] == [3]


def test_head_drop_withholds_100_continue(server: SandboxServer) -> None:
    """A fault at the head sends no 100 Continue."""
    server.inject(FAULTS["head-then-close"])
    with dial(server) as stream:
        stream.sendall(message("/add", "Expect: 100-continue").removesuffix(GOOD))
        assert read_all(stream) == (b"", Action.CLOSE)
    (entry,) = server.log
    assert (entry.path, entry.body) == ("/add", None)


@pytest.mark.parametrize(
    ("given", "hint"), [("503", r': try FAULTS\["503"\]'), ("flood", ""), (FAULTS, "")]
)
def test_inject_rejects_other_objects(server: SandboxServer, given: Any, hint: str) -> None:
    """``inject`` rejects objects that are not faults. For a name, the message says where its fault is."""
    what = "one of FAULTS, a CannedResponse, a Drop or a Shaped"
    with pytest.raises(TypeError, match=rf"^fault must be {what}, not \w+{hint}$"):
        server.inject(given)
    with dial(server) as stream:
        stream.sendall(message())
        assert read(stream, len(response())) == response()


WHEN = "when must be a function of a Request, such as lambda request: request.url == '/add'"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"times": "2"}, "times must be int, not str"),
        ({"times": True}, "times must be int, not bool"),
        ({"times": 0}, "times must be at least 1, not 0"),
        ({"times": -1}, "times must be at least 1, not -1"),
        ({"when": "/add"}, f"{WHEN}, not str"),
    ],
    ids=str,
)
def test_inject_rejects_other_arguments(
    server: SandboxServer, arguments: dict[str, Any], said: str
) -> None:
    """``inject`` rejects a number of times or a condition that could not work, and injects nothing."""
    with pytest.raises((TypeError, ValueError), match=f"^{re.escape(said)}$"):
        server.inject(FAULTS["503"], **arguments)
    with dial(server) as stream:
        stream.sendall(message())
        assert read(stream, len(response())) == response()


PAIRS = "headers must be pairs of str, such as (('Retry-After', '1'),)"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("418",), "status must be int, not str"),
        ((True,), "status must be int, not bool"),
        ((418, (), "text"), "body must be bytes, not str"),
        ((418, (), None), "body must be bytes, not NoneType"),
        ((418, {"Retry-After": "1"}), PAIRS),
        ((418, ("Retry-After", "1")), PAIRS),
        ((418, (("Retry-After", 1),)), PAIRS),
    ],
    ids=str,
)
def test_canned_response_of_other_types(arguments: tuple[Any, ...], message: str) -> None:
    """A canned response rejects what the server could not send."""
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        CannedResponse(*arguments)


TOKEN = "a header's name must be a token such as Retry-After, not "
FIELD = (
    "the value of {} must be Latin-1 text without control characters, and without white space at an "
    "end, not "
)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("Retry After", "1", f"{TOKEN}'Retry After'"),
        ("Retry-After:", "1", f"{TOKEN}'Retry-After:'"),
        ("", "1", f"{TOKEN}''"),
        ("Größe", "1", f"{TOKEN}'Größe'"),
        ("X\n", "1", f"{TOKEN}'X\\n'"),
        *(
            ("X", value, f"{FIELD.format('X')}{value!r}")
            for value in ("a\nb", "a\rb", "a\0b", "a\fb", "a\x7fb", "5 €", " 1", "1\t", "1\n")
        ),
    ],
    ids=repr,
)
def test_canned_response_with_an_invalid_header(name: str, value: str, message: str) -> None:
    """A canned response rejects a header that the server could not send."""
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        CannedResponse(429, ((name, value),))


@pytest.mark.parametrize("value", ["", "1", "a b\tc", "für 5 ¤", "\xa0"], ids=repr)
def test_canned_response_with_any_valid_header(server: SandboxServer, value: str) -> None:
    """The server sends every header that a canned response accepts."""
    server.inject(CannedResponse(429, (("!#$%&'*+-.^_`|~aZ9", value),)))
    with dial(server) as stream:
        stream.sendall(message("/add", "Connection: close"))
        received, _ = read_all(stream)
    assert f"!#$%&'*+-.^_`|~aZ9: {value}\r\n".encode("latin-1") in received


def test_connected_takes_no_predicate(server: SandboxServer) -> None:
    """A fault of a new connection rejects a predicate, since there is no request yet."""
    with pytest.raises(ValueError, match="has no request yet"):
        server.inject(FAULTS["connect-then-hang"], when=lambda _: True)


def test_drop_that_drops_nothing() -> None:
    """A `Drop` that keeps the connection open is rejected."""
    with pytest.raises(ValueError, match="not KEEP"):
        Drop(Stage.REQUEST, Action.KEEP)


OTHER_TYPES: dict[str, tuple[Callable[..., Fault], dict[str, Any], type[Exception], str]] = {
    "stage": (
        Drop,
        {"stage": "head", "action": Action.CLOSE},
        TypeError,
        "stage must be Stage, such as Stage.HEAD, not str",
    ),
    "action": (
        Drop,
        {"stage": Stage.HEAD, "action": "close"},
        TypeError,
        "action must be Action, such as Action.CLOSE, not str",
    ),
    "then": (
        Shaped,
        {"then": "close"},
        TypeError,
        "then must be Action, such as Action.CLOSE, not str",
    ),
    "response": (Shaped, {"response": 503}, TypeError, "response must be CannedResponse, not int"),
    "pause": (Shaped, {"pause": "1"}, TypeError, "pause must be a number of seconds, not str"),
    "negative pause": (
        Shaped,
        {"pause": -1},
        ValueError,
        "pause must be at least 0 and at most 1,000,000 seconds, not -1",
    ),
}


@pytest.mark.parametrize(
    ("kind", "arguments", "error", "message"), OTHER_TYPES.values(), ids=OTHER_TYPES
)
def test_fault_that_could_not_happen(
    kind: Callable[..., Fault], arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    """A fault rejects an argument that the server could not carry out."""
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        kind(**arguments)


@pytest.mark.parametrize(
    "fault", [Drop(Stage.REQUEST, Action.CLOSE), Shaped(), CannedResponse(200)]
)
def test_faults_are_values(fault: Fault) -> None:
    """Faults can be compared and can be keys of a dict."""
    assert {fault: 1}


def test_refusing(server: SandboxServer) -> None:
    """``refusing()`` drops and refuses connections and keeps the port. Afterwards the server works again."""
    at = where(server)
    with dial(server) as kept:
        kept.sendall(message())
        assert read(kept, len(WHOLE)) == WHOLE
        for _ in range(2):
            with server.refusing():
                assert read_all(kept)[0] == b""
                for _ in range(3):
                    with pytest.raises(ConnectionRefusedError):
                        dial(server)
                with pytest.raises(OSError, match="in use"):
                    socket.create_server(at)
            with dial(server) as stream:
                stream.sendall(message("/add", "Connection: close"))
                assert read_all(stream) == (LAST, Action.CLOSE)
    assert where(server) == at
    with pytest.raises(OSError, match="in use"):
        socket.create_server(at)


def test_refusing_wrongly(server: SandboxServer) -> None:
    """``refusing()`` needs a server that runs and does not refuse already."""
    with server.refusing():
        with pytest.raises(RuntimeError, match="already"), server.refusing():
            pass
        with pytest.raises(ConnectionRefusedError):
            dial(server)
    dial(server).close()
    with pytest.raises(RuntimeError, match="does not run"), SandboxServer().refusing():
        pass


def test_stalling(server: SandboxServer) -> None:
    """``stalling()`` makes connections wait, also when it is repeated. Afterwards they are accepted."""
    for _ in range(2):
        with dial(server) as kept, socket.socket() as waiting:
            kept.sendall(message())
            assert read(kept, len(WHOLE)) == WHOLE
            with server.stalling():
                assert read_all(kept)[0] == b""
                waiting.settimeout(0.1)
                with pytest.raises(TimeoutError):
                    waiting.connect(where(server))
            waiting.settimeout(20)
            with suppress(BlockingIOError):  # it goes on with what it had begun
                waiting.connect(where(server))
            send(waiting, message("/add", "Connection: close"))
            assert read_all(waiting) == (LAST, Action.CLOSE)


def test_close_while_refusing(server: SandboxServer) -> None:
    """A server that closes during ``refusing()`` stays closed."""
    with server.refusing():
        server.close()
    with pytest.raises(ConnectionRefusedError):
        dial(server)


def test_serve_with_faults() -> None:
    """Faults that ``serve`` gets apply from the first request, in their order."""
    responses: list[int] = []

    def ready(base_url: str) -> None:
        connection = http.client.HTTPConnection(urlsplit(base_url).netloc, timeout=20)
        for _ in range(4):
            connection.request("POST", "/add", GOOD, {"Authorization": "Bearer key"})
            response = connection.getresponse()
            response.read()
            responses.append(response.status)
        connection.close()
        os.kill(os.getpid(), signal.SIGINT)

    serve("127.0.0.1", 0, None, ready, [(FAULTS["503"], 1), (FAULTS["429"], 2)])
    assert responses == [503, 429, 429, 200]
