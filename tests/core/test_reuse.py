"""A transport can ask whether its connection can carry another request after a response."""

import contextlib
import json
from typing import Any

import pytest

from creduse_core import Call, CreduseError, CreduseProtocol, Done, Response, Send
from tests.common import USER_ID

OTHER = "12345678-1234-5678-1234-567812345679"
PROTOCOL = CreduseProtocol("key")


class CountedBody(bytes):
    """A body that counts how often it is read as JSON, whose encoding is UTF-8."""

    reads = 0

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Read the body once more."""
        self.reads += encoding == "utf-8"
        return super().decode(encoding, errors)


def response(status: int, **fields: object) -> Response:
    return Response(status, (), CountedBody(json.dumps(fields).encode()))


def subtract() -> tuple[Call[Any], Send]:
    call = PROTOCOL.subtract(USER_ID, 7)
    return call, call.start(0.0)


RESPONSES = {
    "ours": (response(200, end_user_id=USER_ID, amount=7), True),
    "ours in upper case": (response(200, end_user_id=USER_ID.upper(), amount=7), True),
    "another user": (response(200, end_user_id=OTHER, amount=7), False),
    "another amount": (response(200, end_user_id=USER_ID, amount=8), False),
    "no user": (response(200, amount=7), False),
    "no content": (Response(204, (), b""), False),
    "no JSON": (Response(200, (), b"ok"), False),
    "an error under 200": (response(200, end_user_id=USER_ID, amount=7, error_code="X"), False),
    "a refusal": (response(402, error_code="INSUFFICIENT_FUNDS"), True),
    "a refusal without a body": (Response(400, (), b""), True),
    "a server error": (Response(599, (), b"oops"), False),
    "a request timeout": (Response(408, (), b""), False),
    "framed twice": (
        Response(
            200,
            [("content-length", "9"), ("Transfer-encoding", "chunked")],
            response(200, end_user_id=USER_ID, amount=7).body,
        ),
        False,
    ),
    "a refusal that is framed twice": (
        Response(402, [("Content-Length", "9"), ("Transfer-Encoding", "chunked")], b""),
        False,
    ),
    "an interim response": (Response(103, (), b""), False),
    "a redirect": (Response(307, [("Location", "/")], b""), False),
    "ours under a redirect": (response(302, end_user_id=USER_ID, amount=7), False),
    "no status of HTTP": (response(600, end_user_id=USER_ID, amount=7), False),
}


@pytest.mark.parametrize(("response", "allowed"), RESPONSES.values(), ids=RESPONSES)
def test_allows_reuse(response: Response, allowed: bool) -> None:  # noqa: FBT001 - a column
    """A result that names our user and amount allows reuse, and so does a refusal. Nothing else does."""
    _, send = subtract()
    assert send.allows_reuse(response) is allowed


def test_unreadable_response_of_ours() -> None:
    """A response that names our user allows reuse, even if the rest of it cannot be read."""
    send = PROTOCOL.get_balance(USER_ID).start(0.0)
    assert send.allows_reuse(response(200, end_user_id=USER_ID))
    assert not send.allows_reuse(response(200, end_user_id=OTHER))


def test_asking_changes_nothing() -> None:
    """Asking about a response, at any time and any number of times, does not change the call."""
    call, send = subtract()
    for response, allowed in (*RESPONSES.values(), *RESPONSES.values()):
        assert send.allows_reuse(response) is allowed
        assert (call.attempts, call.response) == ((), None)
    ours, _ = RESPONSES["ours"]
    other, _ = RESPONSES["another user"]
    assert send.allows_reuse(other) is False
    assert isinstance(call.receive_response(ours, 1.0), Done)
    assert send.allows_reuse(other) is False


@pytest.mark.parametrize("name", ["ours", "another user", "a refusal"])
def test_decoded_once(name: str) -> None:
    """A response that is asked about and then received is decoded once."""
    found, _ = RESPONSES[name]
    body = CountedBody(found.body)
    response = Response(found.status, (), body)
    call, send = subtract()
    send.allows_reuse(response)
    send.allows_reuse(response)
    with contextlib.suppress(CreduseError):
        call.receive_response(response, 1.0)
    assert body.reads == 1
