"""The faults that a test can inject into the server, and a table of ready-made ones.

Each fault is plain data. This module says how one changes a response's bytes. Sockets, and how the
server carries a fault out (`connection`), do not belong here.
"""

import enum
import gzip
import itertools
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from http import HTTPStatus
from types import MappingProxyType
from typing import Any, ClassVar, Final, TypeAlias

from creduse_core import MAX_BODY_SIZE, HeaderPairs, Outcome, Response
from creduse_core.arguments import check_seconds, check_type


class Stage(enum.Enum):
    """How far the server processes a request before the fault."""

    CONNECTED = "connected"
    """The server accepts the connection and reads nothing, not even a TLS handshake."""
    HEAD = "head"
    """The server reads the request's head."""
    REQUEST = "request"
    """The server reads the whole request, and does not apply it."""
    APPLIED = "applied"
    """The server reads and applies the request."""


class Action(enum.Enum):
    """What the server does with the connection after the fault."""

    KEEP = "keep"
    """Keep it open, unless the request or the response says otherwise."""
    HANG = "hang"
    """Keep it open and send nothing more, until the peer leaves or the server closes."""
    CLOSE = "close"
    """End the server's stream in order. Read and ignore what the peer still sends."""
    CUT = "cut"
    """As CLOSE, without TLS's ``close_notify``. Without TLS it is the same."""
    RESET = "reset"
    """Reset it. The peer may lose what it has not yet received."""


# RFC 9110, 5.1 and 5.5. h11 sends nothing else.
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_FIELD_VALUE: Final = re.compile(r"(?![ \t])[\t -~\x80-\xff]*(?<![ \t])")


def _check_header(header: object) -> None:
    match header:
        case (str(name), str(value)):
            pass
        case _:
            raise TypeError("headers must be pairs of str, such as (('Retry-After', '1'),)")
    if not _TOKEN.fullmatch(name):
        raise ValueError(f"a header's name must be a token such as Retry-After, not {name!r}")
    if not _FIELD_VALUE.fullmatch(value):
        raise ValueError(
            f"the value of {name} must be Latin-1 text without control characters, and without "
            f"white space at an end, not {value!r}"
        )


@dataclass(frozen=True, slots=True)
class CannedResponse:
    """A fault: the server sends this response and does not apply the request.

    The server adds the framing, and ``Date`` where it is missing.

    Raises:
        TypeError: An argument has another type than its field.
        ValueError: ``status`` is not from 200 to 999, so not a final status code. Or ``headers``
            contain ``Content-Length`` or ``Transfer-Encoding``, or a name or value that is invalid.
            Or ``delay`` is negative or too long.
    """

    status: int
    headers: HeaderPairs = ()
    body: bytes = b""
    delay: float = 0
    """Seconds before the response."""
    stage: ClassVar = Stage.REQUEST

    def __post_init__(self) -> None:
        """Reject what the server could not send."""
        check_type("status", self.status, int)
        check_type("body", self.body, bytes)
        check_seconds("delay", self.delay)
        if not 200 <= self.status <= 999:
            raise ValueError(f"status must be a final one, from 200 to 999, not {self.status}")
        for header in self.headers:
            _check_header(header)
            name, _ = header
            if name.lower() in {"content-length", "transfer-encoding"}:
                raise ValueError(f"headers must not contain {name}: the server adds the framing")


@dataclass(frozen=True, slots=True)
class Drop:
    """A fault: the server stops at ``stage`` and does ``action`` in place of a response.

    Raises:
        TypeError: An argument has another type than its field.
        ValueError: ``action`` is KEEP. The request would never get a response. Or ``delay`` is
            negative or too long.
    """

    stage: Stage
    action: Action
    delay: float = 0
    """Seconds before the action."""

    def __post_init__(self) -> None:
        """Reject KEEP and other types."""
        check_type("stage", self.stage, Stage, "Stage.HEAD")
        check_type("action", self.action, Action, "Action.CLOSE")
        if self.action is Action.KEEP:
            raise ValueError("action of a Drop must be HANG, CLOSE, CUT or RESET, not KEEP")
        check_seconds("delay", self.delay)


# Changes to a response's bytes

Shape: TypeAlias = Callable[[bytes, bytes], Iterable[bytes]]
"""Returns the pieces to write, from a response's head (with its last empty line) and body."""


def _whole(head: bytes, body: bytes) -> Iterable[bytes]:
    return (head + body,)


def _cut_head(head: bytes, _: bytes) -> Iterable[bytes]:
    return (head[: len(head) // 2],)


def _cut_body(head: bytes, body: bytes) -> Iterable[bytes]:
    return (head + body[: len(body) // 2],)


def _drip(head: bytes, body: bytes) -> Iterable[bytes]:
    return _singly(head + body)


def _drip_body(head: bytes, body: bytes) -> Iterable[bytes]:
    return itertools.chain((head,), _singly(body))


def _singly(data: bytes) -> Iterable[bytes]:
    return (data[at : at + 1] for at in range(len(data)))


def _endless(_: bytes, __: bytes) -> Iterable[bytes]:
    return itertools.repeat(_CONTINUE)


def _continue_first(head: bytes, body: bytes) -> Iterable[bytes]:
    return (_CONTINUE, head + body)


def _hints_first(head: bytes, body: bytes) -> Iterable[bytes]:
    return (_EARLY_HINTS, head + body)


def _not_http(_: bytes, __: bytes) -> Iterable[bytes]:
    return (b"SSH-2.0-OpenSSH_9.9\r\n",)


def _then_a_refusal(head: bytes, body: bytes) -> Iterable[bytes]:
    return (head + body, SURPLUS)


def _then_the_same(head: bytes, body: bytes) -> Iterable[bytes]:
    return (head + body, head + body)


def _then_half_of_it(head: bytes, body: bytes) -> Iterable[bytes]:
    return (head + body, head + body[: len(body) // 2])


def _after_a_503(head: bytes, body: bytes) -> Iterable[bytes]:
    return (_unasked(503), head + body)


def _framed_twice(head: bytes, body: bytes) -> Iterable[bytes]:
    both = b"Content-Length: %d\r\nTransfer-Encoding: chunked\r\n" % len(body)
    return (_reframed(head, body, both) + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body),)


def _chunked(size: int, head: bytes, body: bytes) -> bytes:
    parts = (body[at : at + size] for at in range(0, len(body), size))
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)
    return _reframed(head, body, b"Transfer-Encoding: chunked\r\n") + chunks + b"0\r\n\r\n"


def _byte_chunks(head: bytes, body: bytes) -> Iterable[bytes]:
    return (_chunked(1, head, body),)


def _large_chunks(head: bytes, body: bytes) -> Iterable[bytes]:
    return (_chunked(64 * 1024, head, body),)


def _drip_chunks(head: bytes, body: bytes) -> Iterable[bytes]:
    return _singly(_chunked(16, head, body))


def _no_length(head: bytes, body: bytes) -> Iterable[bytes]:
    return (_reframed(head, body, b"") + body,)


def _reframed(head: bytes, body: bytes, framing: bytes) -> bytes:
    return head.replace(b"Content-Length: %d\r\n" % len(body), framing)


_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_EARLY_HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n"


# Changes to a response's content

Edit: TypeAlias = Callable[[Response], Response]
"""Returns the response to send in place of the sandbox's."""


def _unchanged(response: Response) -> Response:
    return response


def _wrong_user(response: Response) -> Response:
    return _with_fields(response, end_user_id="99999999-9999-4999-8999-999999999999")


def _wrong_amount(response: Response) -> Response:
    fields = json.loads(response.body)
    wrong = {name: fields[name] + 1 for name in ("amount", "active_balance") if name in fields}
    return _with_fields(response, **wrong)


def _missing_field(response: Response) -> Response:
    fields = json.loads(response.body)
    fields.popitem()
    return replace(response, body=json.dumps(fields).encode())


def _mistyped_field(response: Response) -> Response:
    *_, name = json.loads(response.body)
    return _with_fields(response, **{name: {"mistyped": True}})


def _with_fields(response: Response, **fields: Any) -> Response:
    return replace(response, body=json.dumps(json.loads(response.body) | fields).encode())


def _with_value(response: Response, value: bytes) -> Response:
    """Add a field with a value that `json.dumps` cannot write."""
    return replace(response, body=response.body[:-1] + b', "added": ' + value + b"}")


def _deep(response: Response) -> Response:
    depth = 100_000
    return _with_value(response, b"[" * depth + b"]" * depth)


def _bad_utf8(response: Response) -> Response:
    return _with_value(response, b'"\xff"')


def _not_json(response: Response) -> Response:
    return replace(response, body=b"OK")


def _padded_body(response: Response) -> Response:
    return replace(response, body=response.body + b" " * MAX_BODY_SIZE)


def _padded_head(response: Response) -> Response:
    return _with_header(response, "Padding", "x" * 101 * 1024)


def _gzipped(response: Response) -> Response:
    return _with_header(_gzipped_undeclared(response), "Content-Encoding", "gzip")


def _gzipped_undeclared(response: Response) -> Response:
    return replace(response, body=gzip.compress(response.body, mtime=0))


def _with_header(response: Response, name: str, value: str) -> Response:
    return replace(response, headers=(*response.headers, (name, value)))


@dataclass(frozen=True, slots=True)
class Shaped:
    """A fault: the server applies the request and changes its response.

    The server writes all pieces at once, over TLS each as a record. With ``pause`` it writes them
    one by one, and there may be endlessly many. It stops when the client ends its stream.

    Raises:
        TypeError: ``response``, ``pause``, ``then`` or ``delay`` has another type than its field.
        ValueError: ``pause`` or ``delay`` is negative or too long.
    """

    shape: Shape = _whole
    """Splits or changes the response's bytes."""
    edit: Edit = _unchanged
    """Changes the response before that."""
    response: CannedResponse | None = None
    """With a response here, the server shapes that one. It neither applies nor edits anything, and
    waits only for its own ``delay``."""
    pause: float | None = None
    """Seconds after each piece."""
    then: Action = Action.KEEP
    """What the server does after the last piece."""
    delay: float = 0
    """Seconds before the first piece. The server applies the request before that."""

    def __post_init__(self) -> None:
        """Reject what the server could not do."""
        if self.response is not None:
            check_type("response", self.response, CannedResponse)
        if self.pause is not None:
            check_seconds("pause", self.pause)
        check_type("then", self.then, Action, "Action.CLOSE")
        check_seconds("delay", self.delay)

    @property
    def stage(self) -> Stage:
        """APPLIED, or REQUEST if there is a ``response``, for which nothing is applied."""
        return Stage.APPLIED if self.response is None else Stage.REQUEST


Fault: TypeAlias = CannedResponse | Drop | Shaped
"""Any fault. The server applies the request if the fault's ``stage`` is APPLIED."""


# Ready-made faults


def _envelope(status: int) -> bytes:
    error = {
        "error_code": f"STATUS_{status}",
        "message": "This response is an injected fault.",
        "timestamp": "2025-08-12T14:35:55.000000Z",
    }
    return json.dumps(error).encode()


def _refusal(status: int, *headers: tuple[str, str]) -> CannedResponse:
    return CannedResponse(
        status, (("Content-Type", "application/json"), *headers), _envelope(status)
    )


def _page(status: int) -> CannedResponse:
    body = b"<html>This response is an injected fault.</html>"
    return CannedResponse(status, (("Content-Type", "text/html"),), body)


def _redirect(status: int) -> CannedResponse:
    return CannedResponse(status, (("Location", "/moved"),))


_STAGES = {
    Stage.CONNECTED: ("connect", "accept the connection and read nothing"),
    Stage.HEAD: ("head", "read the request's head"),
    Stage.REQUEST: ("request", "read the request and do not apply it"),
    Stage.APPLIED: ("apply", "apply the request and send no response"),
}
_ENDS = {
    Action.HANG: ("hang", "then hang"),
    Action.CLOSE: ("close", "then close the connection"),
    Action.RESET: ("reset", "then reset the connection"),
}
_CUTS: dict[str, tuple[str, Shape]] = {
    "cut-head": ("send half the head", _cut_head),
    "cut-body": ("send the head and half the body", _cut_body),
}
_PHRASES = {status.value: f"{status.value} {status.phrase}" for status in HTTPStatus}


def _unasked(status: int) -> bytes:
    """Return the bytes of a response to no request."""
    head = b"HTTP/1.1 %d \r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    body = _envelope(status)
    return head % (status, len(body)) + body


SURPLUS = _unasked(402)
"""The 402 response that some ready-made faults send after the response."""

SLOW: Final = 2.0
"""Seconds that the fault ``slow`` waits. `SandboxServer.inject` accepts another ``delay``."""

_Row = tuple[str, str, Fault]

_DROPS: list[_Row] = [
    (f"{stage_name}-then-{name}", f"{what}, {end}", Drop(stage, action))
    for stage, (stage_name, what) in _STAGES.items()
    for action, (name, end) in _ENDS.items()
]
_SHAPES: list[_Row] = [
    ("slow", f"send the right response after {SLOW:g} seconds", Shaped(delay=SLOW)),
    *(
        (f"{cut}-then-{name}", f"{what}, {end}", Shaped(shape, then=action))
        for cut, (what, shape) in _CUTS.items()
        for action, (name, end) in _ENDS.items()
    ),
    ("drip", "send the response byte by byte", Shaped(_drip, pause=0.001)),
    ("drip-body", "send the head, then the body byte by byte", Shaped(_drip_body, pause=0.001)),
    ("drip-chunks", "send a chunked response byte by byte", Shaped(_drip_chunks, pause=0.001)),
    ("chunks", "send a chunked body, one byte in each chunk", Shaped(_byte_chunks)),
    (
        "no-length",
        "send a body without a length, close the connection at its end",
        Shaped(_no_length, then=Action.CLOSE),
    ),
    ("endless-100", "send 100 Continue again and again", Shaped(_endless, pause=0.01)),
    ("100-first", "send 100 Continue before the response", Shaped(_continue_first)),
    ("103-first", "send 103 Early Hints before the response", Shaped(_hints_first)),
    (
        "not-http",
        "send bytes that are not HTTP, then close the connection",
        Shaped(_not_http, then=Action.CLOSE),
    ),
    ("surplus", "send the response and a 402 in one segment", Shaped(_then_a_refusal)),
    (
        "surplus-later",
        "send the response, and 20 ms later a 402",
        Shaped(_then_a_refusal, pause=0.02),
    ),
    ("surplus-whole", "send the response twice in one segment", Shaped(_then_the_same)),
    (
        "surplus-whole-later",
        "send the response, and 20 ms later the same again",
        Shaped(_then_the_same, pause=0.02),
    ),
    (
        "surplus-half",
        "send the response one and a half times in one segment",
        Shaped(_then_half_of_it),
    ),
    ("stray-503", "send a 503 and the response in one segment", Shaped(_after_a_503)),
    ("framed-twice", "send a chunked body with a Content-Length", Shaped(_framed_twice)),
    (
        "close-after",
        "send a keep-alive response, then close the connection",
        Shaped(then=Action.CLOSE),
    ),
    (
        "cut-after",
        "send the response, then close without TLS's close_notify",
        Shaped(then=Action.CUT),
    ),
]
_EDITS: list[_Row] = [
    ("wrong-user", "send a response that names another user", Shaped(edit=_wrong_user)),
    ("wrong-amount", "send an amount that is one too high", Shaped(edit=_wrong_amount)),
    ("missing-field", "omit the response's last field", Shaped(edit=_missing_field)),
    ("mistyped-field", "send the last field with a wrong type", Shaped(edit=_mistyped_field)),
    ("deep", "send JSON that is nested 100,000 levels deep", Shaped(edit=_deep)),
    ("bad-utf8", "send JSON that is not UTF-8", Shaped(edit=_bad_utf8)),
    ("not-json", "send a body that is not JSON", Shaped(edit=_not_json)),
    ("gzip", "send a gzip body with Content-Encoding", Shaped(edit=_gzipped)),
    (
        "gzip-undeclared",
        "send a gzip body without Content-Encoding",
        Shaped(edit=_gzipped_undeclared),
    ),
    ("huge-head", "send a head of more than 100 KB", Shaped(edit=_padded_head)),
    ("huge-body", f"send a body of more than {MAX_BODY_SIZE} bytes", Shaped(edit=_padded_body)),
    (
        "huge-chunks",
        f"send a chunked body of more than {MAX_BODY_SIZE} bytes",
        Shaped(_large_chunks, edit=_padded_body),
    ),
]
_CANNED_RESPONSES: list[_Row] = [
    ("200-error", "send 200 with an error as its body", replace(_refusal(402), status=200)),
    ("204", "send 204 No Content", CannedResponse(204)),
    *(
        (f"{status}", f"send {_PHRASES[status]}", _redirect(status))
        for status in (301, 302, 303, 307, 308)
    ),
    *(
        (f"{status}", f"send {_PHRASES[status]}", _refusal(status))
        for status in (408, 421, 425, 429)
    ),
    ("429-seconds", "send 429 with Retry-After: 1", _refusal(429, ("Retry-After", "1"))),
    (
        "429-date",
        "send 429 with a Retry-After one second after its Date",
        _refusal(
            429,
            ("Date", "Tue, 12 Aug 2025 14:35:55 GMT"),
            ("Retry-After", "Tue, 12 Aug 2025 14:35:56 GMT"),
        ),
    ),
    *(
        row
        for status in range(500, 512)
        for row in (
            (f"{status}", f"send {_PHRASES.get(status, status)}", _refusal(status)),
            (f"{status}-page", f"send {status} with an HTML body", _page(status)),
        )
    ),
]
_ROWS = (*_DROPS, *_SHAPES, *_EDITS, *_CANNED_RESPONSES)

FAULTS: Mapping[str, Fault] = MappingProxyType({name: fault for name, _, fault in _ROWS})
"""Ready-made faults by name, such as ``"503"``. `DESCRIPTIONS` says what each does."""

DESCRIPTIONS: Mapping[str, str] = MappingProxyType({name: what for name, what, _ in _ROWS})
"""What the server does for each of the `FAULTS`, in words."""

_SUCCEED: Final = {
    *("slow", "drip", "drip-body", "drip-chunks", "chunks", "no-length", "100-first", "103-first"),
    *("surplus", "surplus-later", "surplus-whole", "surplus-whole-later", "surplus-half"),
    *("framed-twice", "close-after", "cut-after", "missing-field", "bad-utf8", "huge-head"),
}
_OUTCOMES: Final = {
    **dict.fromkeys(("421", "425", "429", "429-seconds", "429-date"), Outcome.NOT_APPLIED),
    "mistyped-field": Outcome.APPLIED,
}

OUTCOMES: Mapping[str, Outcome | None] = MappingProxyType(
    {name: None if name in _SUCCEED else _OUTCOMES.get(name, Outcome.UNKNOWN) for name in FAULTS}
)
"""The outcome of an ``add`` whose only attempt meets each of the `FAULTS`. `None`: it succeeds.

This is what a `CreduseClient` reports. Other calls and clients can differ. A client that notices
``connect-then-close`` or ``connect-then-reset`` before it sends reports NOT_APPLIED."""

FIRST: Final = ("429", "503", "apply-then-reset", "slow", "mistyped-field")
"""The names of five faults to start with. Each shows something else."""


def name_of(fault: Fault) -> str:
    """Return a fault's name, and its delay where that is not the name's own."""
    for name, known in FAULTS.items():
        if fault == known:
            return name
    waits = f" after {fault.delay:g} s" if fault.delay else ""
    at_once = replace(fault, delay=0)
    if at_once == Shaped():
        return f"slow{waits}"
    named = (name for name, known in FAULTS.items() if known == at_once)
    return f"{next(named, type(fault).__name__)}{waits}"
