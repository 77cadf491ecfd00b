"""What a server can be ordered to do in place of its work, and a table of ready-made faults.

Faults are plain data and all of them live here, with what they make of an answer's bytes. How the
server carries them out, and its sockets, must not.
"""

import enum
import gzip
import itertools
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from http import HTTPStatus
from types import MappingProxyType
from typing import Any, ClassVar, TypeAlias

from creduse_core.messages import MAX_BODY_SIZE, HeaderPairs, Response


class Stage(enum.Enum):
    """How far the server goes with a request before it stops."""

    CONNECTED = "connected"
    """The connection is accepted and nothing is read, not even for TLS."""
    HEAD = "head"
    """The request's head is read."""
    REQUEST = "request"
    """The whole request is read, and nothing applied."""
    APPLIED = "applied"
    """The request is applied."""


class Action(enum.Enum):
    """What becomes of the connection."""

    KEEP = "keep"
    """It serves on, unless the request or the answer says otherwise."""
    HANG = "hang"
    """Nothing is sent on it any more, until the peer leaves or the server closes."""
    CLOSE = "close"
    """The server ends its stream in order, and reads and drops what the peer still sends."""
    CUT = "cut"
    """As CLOSE, but without TLS's ``close_notify``; without TLS it is the same."""
    RESET = "reset"
    """It is reset. What is not yet with the peer may be lost."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Give this answer; the request does not reach the sandbox, so nothing is applied.

    The server adds ``Date`` where it is missing, and the framing: a ``Content-Length`` or
    ``Transfer-Encoding`` of one's own is a `ValueError`, and so is a status below 200, which
    would be no answer yet, or above 999.
    """

    status: int
    headers: HeaderPairs = ()
    body: bytes = b""
    stage: ClassVar = Stage.REQUEST

    def __post_init__(self) -> None:
        """Refuse what could not be sent, where it is ordered rather than in the server."""
        if not 200 <= self.status <= 999:
            raise ValueError(f"{self.status} is not the status of a final answer")
        framing = {"content-length", "transfer-encoding"}
        if framing.intersection(name.lower() for name, _ in self.headers):
            raise ValueError("the server frames the answer itself")


@dataclass(frozen=True, slots=True)
class Drop:
    """Stop serving at ``stage``, and do ``action`` in place of an answer. It cannot be KEEP."""

    stage: Stage
    action: Action

    def __post_init__(self) -> None:
        """Refuse what would leave the request unanswered on a connection that serves on."""
        if self.action is Action.KEEP:
            raise ValueError("a connection that is dropped cannot be kept")


# What becomes of an answer's bytes

Shape: TypeAlias = Callable[[bytes, bytes], Iterable[bytes]]
"""Makes the pieces to be written from an answer's head, its last empty line included, and body."""


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


# What becomes of what an answer says

Edit: TypeAlias = Callable[[Response], Response]
"""Makes another answer of the sandbox's."""


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
    """Add a field with a value that `json.dumps` would not write."""
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
    return _with_header(_gzipped_unsaid(response), "Content-Encoding", "gzip")


def _gzipped_unsaid(response: Response) -> Response:
    return replace(response, body=gzip.compress(response.body, mtime=0))


def _with_header(response: Response, name: str, value: str) -> Response:
    return replace(response, headers=(*response.headers, (name, value)))


@dataclass(frozen=True, slots=True)
class Shaped:
    """Apply the request, and give the true answer in other bytes.

    ``edit`` makes another answer of the true one, ``shape`` the pieces that are written of its
    bytes, and ``then`` tells what follows them. With ``answer``, that one is given as it would be
    alone, and shaped; nothing is applied, nor edited.

    The pieces make up one write, though over TLS each is a record. With ``pause`` each is a write
    of its own with that many seconds after it; then they may go on without end. They end with the
    peer's stream: for want of knowing better, a client that has ended it has left.
    """

    shape: Shape = _whole
    edit: Edit = _unchanged
    answer: Answer | None = None
    pause: float | None = None
    then: Action = Action.KEEP

    @property
    def stage(self) -> Stage:
        """Whether the request is applied."""
        return Stage.APPLIED if self.answer is None else Stage.REQUEST


Fault: TypeAlias = Answer | Drop | Shaped
"""Any of the faults. What each does with the request is its ``stage``: it is applied at APPLIED."""


# The ready-made


def _envelope(status: int) -> bytes:
    error = {
        "error_code": f"STATUS_{status}",
        "message": "This was ordered.",
        "timestamp": "2025-08-12T14:35:55.000000Z",
    }
    return json.dumps(error).encode()


def _refusal(status: int, *headers: tuple[str, str]) -> Answer:
    return Answer(status, (("Content-Type", "application/json"), *headers), _envelope(status))


def _page(status: int) -> Answer:
    return Answer(status, (("Content-Type", "text/html"),), b"<html>This was ordered.</html>")


def _redirect(status: int) -> Answer:
    return Answer(status, (("Location", "/moved"),))


_STAGES = {
    Stage.CONNECTED: ("connect", "accept the connection, read nothing"),
    Stage.HEAD: ("head", "read the request's head"),
    Stage.REQUEST: ("request", "read the request"),
    Stage.APPLIED: ("apply", "apply the request, withhold the answer"),
}
_ENDS = {
    Action.HANG: ("hang", "then hang"),
    Action.CLOSE: ("close", "then close"),
    Action.RESET: ("reset", "then reset"),
}
_CUTS: dict[str, tuple[str, Shape]] = {
    "cut-head": ("half the answer's head", _cut_head),
    "cut-body": ("half the answer's body", _cut_body),
}
_PHRASES = {status.value: status.phrase for status in HTTPStatus}


def _unasked(status: int) -> bytes:
    """Return the bytes of a response that nobody asked for."""
    head = b"HTTP/1.1 %d \r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    body = _envelope(status)
    return head % (status, len(body)) + body


SURPLUS = _unasked(402)
"""The refusal that some of the ready-made faults send after the response."""

_Row = tuple[str, str, Fault]

_DROPS: list[_Row] = [
    (f"{stage_name}-then-{name}", f"{what}, {end}", Drop(stage, action))
    for stage, (stage_name, what) in _STAGES.items()
    for action, (name, end) in _ENDS.items()
]
_SHAPES: list[_Row] = [
    *(
        (f"{cut}-then-{name}", f"{what}, {end}", Shaped(shape, then=action))
        for cut, (what, shape) in _CUTS.items()
        for action, (name, end) in _ENDS.items()
    ),
    ("drip", "the answer byte by byte", Shaped(_drip, pause=0.001)),
    ("drip-body", "the head, then the body byte by byte", Shaped(_drip_body, pause=0.001)),
    ("drip-chunks", "a chunked answer byte by byte", Shaped(_drip_chunks, pause=0.001)),
    ("chunks", "a chunked body, each byte a chunk", Shaped(_byte_chunks)),
    ("no-length", "a body that the closing ends", Shaped(_no_length, then=Action.CLOSE)),
    ("endless-100", "100 Continue without end", Shaped(_endless, pause=0.01)),
    ("100-first", "100 Continue before the answer", Shaped(_continue_first)),
    ("103-first", "103 Early Hints before the answer", Shaped(_hints_first)),
    ("not-http", "bytes that are not HTTP, then close", Shaped(_not_http, then=Action.CLOSE)),
    ("surplus", "the response, then a 402 in the same segment", Shaped(_then_a_refusal)),
    ("surplus-later", "the response, a moment later a 402", Shaped(_then_a_refusal, pause=0.02)),
    ("surplus-whole", "the response twice in one segment", Shaped(_then_the_same)),
    (
        "surplus-whole-later",
        "the response, a moment later the same again",
        Shaped(_then_the_same, pause=0.02),
    ),
    ("surplus-half", "the response, then half of it again", Shaped(_then_half_of_it)),
    ("stray-503", "a 503, then the response in the same segment", Shaped(_after_a_503)),
    ("framed-twice", "a chunked body with a Content-Length", Shaped(_framed_twice)),
    ("close-after", "an answer that keeps alive, then close", Shaped(then=Action.CLOSE)),
    ("cut-after", "an answer, then close without close_notify", Shaped(then=Action.CUT)),
]
_EDITS: list[_Row] = [
    ("wrong-user", "another user's answer", Shaped(edit=_wrong_user)),
    ("wrong-amount", "an amount that is off by one", Shaped(edit=_wrong_amount)),
    ("missing-field", "the last field is missing", Shaped(edit=_missing_field)),
    ("mistyped-field", "the last field has another type", Shaped(edit=_mistyped_field)),
    ("deep", "nested 100,000 deep", Shaped(edit=_deep)),
    ("bad-utf8", "JSON that is not UTF-8", Shaped(edit=_bad_utf8)),
    ("not-json", "a body that is not JSON", Shaped(edit=_not_json)),
    ("gzip", "a compressed body", Shaped(edit=_gzipped)),
    ("gzip-unsaid", "a compressed body, which no header says", Shaped(edit=_gzipped_unsaid)),
    ("huge-head", "more than 100 KB of head", Shaped(edit=_padded_head)),
    ("huge-body", f"more than {MAX_BODY_SIZE} bytes of body", Shaped(edit=_padded_body)),
    ("huge-chunks", "the same, chunked", Shaped(_large_chunks, edit=_padded_body)),
]
_ANSWERS: list[_Row] = [
    ("200-error", "200 with an error envelope", replace(_refusal(402), status=200)),
    ("204", "No Content", Answer(204)),
    *((f"{status}", f"{_PHRASES[status]}", _redirect(status)) for status in (301, 302, 303)),
    *((f"{status}", f"{_PHRASES[status]}", _redirect(status)) for status in (307, 308)),
    *((f"{status}", f"{_PHRASES[status]}", _refusal(status)) for status in (408, 421, 425, 429)),
    ("429-seconds", "Retry-After: 1", _refusal(429, ("Retry-After", "1"))),
    (
        "429-date",
        "Retry-After a second after its Date",
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
            (f"{status}", _PHRASES.get(status, "a server's error"), _refusal(status)),
            (f"{status}-page", "the same, an HTML page", _page(status)),
        )
    ),
]
_ROWS = (*_DROPS, *_SHAPES, *_EDITS, *_ANSWERS)

FAULTS: Mapping[str, Fault] = MappingProxyType({name: fault for name, _, fault in _ROWS})
"""Ready-made faults by name. An `Answer` applies nothing, a `Shaped` the request, and a `Drop`
does as its stage says."""

DESCRIPTIONS: Mapping[str, str] = MappingProxyType({name: what for name, what, _ in _ROWS})
"""A line about each of the `FAULTS`."""
