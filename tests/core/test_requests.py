"""The request that each method makes, and the protocol's options."""

import dataclasses
import json
from typing import Any
from uuid import UUID

import pytest

from creduse_core import (
    BASE_URL,
    DEFAULT_RETRY,
    TIMEOUT,
    Call,
    CreduseProtocol,
    Request,
    Response,
    RetryPolicy,
    Secret,
    Send,
    __version__,
)

TEXT = "abcdef01-2345-6789-abcd-ef0123456789"
USER = UUID(TEXT)
REPLAYING = RetryPolicy(server_replays=True)
HEADERS = {
    "Authorization": "Bearer sk-live-0123456789",
    "Content-Type": "application/json",
    "Accept": "application/json",
    "Accept-Encoding": "identity",
    "User-Agent": f"creduse/{__version__}",
}
# The method, its arguments, and what must be sent for them.
REQUESTS: dict[str, tuple[str, tuple[Any, ...], str, str, dict[str, object]]] = {
    "add": (
        "add",
        (USER, 50, 7),
        "POST",
        "/add",
        {"end_user_id": TEXT, "amount": 50, "validity_days": 7},
    ),
    "add by default": (
        "add",
        (TEXT.upper(), 50),
        "POST",
        "/add",
        {"end_user_id": TEXT, "amount": 50, "validity_days": 31},
    ),
    "add without days": (
        "add",
        (USER.hex, 0, None),
        "POST",
        "/add",
        {"end_user_id": TEXT, "amount": 0, "validity_days": None},
    ),
    "subtract": (
        "subtract",
        (USER, 50),
        "POST",
        "/subtract",
        {"end_user_id": TEXT, "amount": 50},
    ),
    "start_cycle": (
        "start_cycle",
        (USER, 50, 7),
        "POST",
        "/start-cycle",
        {"end_user_id": TEXT, "amount": 50, "validity_days": 7},
    ),
    "start_cycle by default": (
        "start_cycle",
        (TEXT, 50),
        "POST",
        "/start-cycle",
        {"end_user_id": TEXT, "amount": 50, "validity_days": 31},
    ),
    "start_cycle without days": (
        "start_cycle",
        (USER, 2**70, None),
        "POST",
        "/start-cycle",
        {"end_user_id": TEXT, "amount": 2**70, "validity_days": None},
    ),
    "stop_cycle": ("stop_cycle", (USER,), "POST", "/stop-cycle", {"end_user_id": TEXT}),
    "get_balance": (
        "get_balance",
        (USER,),
        "GET",
        "/get-active-balance",
        {"end_user_id": TEXT},
    ),
}


def make(name: str, retry: RetryPolicy = DEFAULT_RETRY, **options: Any) -> Call[Any]:
    method, arguments, *_ = REQUESTS[name]
    protocol = CreduseProtocol("sk-live-0123456789", retry=retry)
    call: Call[Any] = getattr(protocol, method)(*arguments, **options)
    return call


@pytest.mark.parametrize("name", REQUESTS)
def test_request(name: str) -> None:
    """Each method sends its request: method, URL, exactly these headers, and its body."""
    _, _, method, path, body = REQUESTS[name]
    call = make(name)
    request = call.request
    assert (request.method, request.url) == (method, BASE_URL + path)
    assert dict(request.headers) == HEADERS
    assert len(request.headers) == len(HEADERS)
    assert json.loads(request.body) == body
    assert list(json.loads(request.body)) == list(body)
    assert call.start(0.0).request is request


@pytest.mark.parametrize("name", [name for name in REQUESTS if name != "get_balance"])
def test_idempotency_key(name: str) -> None:
    """A key is sent in its own header, and nothing else changes."""
    plain = make(name, REPLAYING).request
    keyed = make(name, REPLAYING, idempotency_key="order-1!~").request
    assert dict(keyed.headers) == HEADERS | {"Idempotency-Key": "order-1!~"}
    assert (keyed.method, keyed.url, keyed.body) == (plain.method, plain.url, plain.body)
    longest = make(name, REPLAYING, idempotency_key="k" * 255).request
    assert longest.headers[-1] == ("Idempotency-Key", "k" * 255)


def test_calls_are_independent() -> None:
    """The calls of one protocol are independent."""
    protocol = CreduseProtocol("key")
    first, second = protocol.subtract(USER, 1), protocol.subtract(USER, 2)
    first.start(0.0)
    assert second.start(5.0).deadline == 5.0 + TIMEOUT
    assert first.request.body != second.request.body


@pytest.mark.parametrize(
    "name", ["api_key", "base_url", "retry", "timeout", "loopback", "anything"]
)
def test_protocol_is_immutable(name: str) -> None:
    """A protocol cannot change, so threads may share it."""
    with pytest.raises((AttributeError, TypeError)):
        setattr(CreduseProtocol("key"), name, None)


def test_protocols_compare_by_identity() -> None:
    """Protocols compare by identity, so a comparison reveals nothing of a key."""
    assert CreduseProtocol("key") != CreduseProtocol("key")


def test_options_are_kept() -> None:
    """A protocol's options can be read from it."""
    protocol = CreduseProtocol("key", "https://example.com/", retry=REPLAYING, timeout=5)
    assert (protocol.api_key.reveal(), protocol.base_url) == ("key", "https://example.com")
    assert (protocol.retry, protocol.timeout) == (REPLAYING, 5)


def test_with_another_policy() -> None:
    """All but the policy stays."""
    given = {"X-Gateway-Token": Secret("gateway-token")}
    protocol = CreduseProtocol("key", "https://example.com", timeout=5, extra_headers=given)
    made = protocol.with_retry(REPLAYING)
    assert (made.retry, protocol.retry, made.timeout) == (REPLAYING, DEFAULT_RETRY, 5)
    first, second = (it.add(USER, 1).start(0.0) for it in (protocol, made))
    assert isinstance(first, Send)
    assert isinstance(second, Send)
    assert second.request == first.request
    assert ("X-Gateway-Token", "gateway-token") in second.request.headers
    with pytest.raises(TypeError, match="retry must be RetryPolicy"):
        protocol.with_retry(3)  # type: ignore[arg-type]


def test_defaults() -> None:
    """By default a call has 30 seconds and three attempts, and no server replays."""
    assert CreduseProtocol("key").retry == DEFAULT_RETRY == RetryPolicy()
    assert CreduseProtocol("key").timeout == TIMEOUT == 30.0
    assert dataclasses.asdict(RetryPolicy()) == {
        "max_attempts": 3,
        "initial_delay": 0.5,
        "max_delay": 8.0,
        "attempt_timeout": 10.0,
        "server_replays": False,
    }


def test_policy_is_frozen() -> None:
    """A policy cannot change."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        RetryPolicy().max_attempts = 9  # type: ignore[misc] # pyright: ignore[reportAttributeAccessIssue] - that is what is tested


@pytest.mark.parametrize(
    "headers",
    [
        [("A", "1"), ("b", "2"), ("a", "3")],
        (("A", "1"), ("b", "2"), ("a", "3")),
        iter([("A", "1"), ("b", "2"), ("a", "3")]),
    ],
    ids=["list", "tuple", "iterator"],
)
def test_headers_of_a_response(headers: Any) -> None:
    """A response keeps its headers in order, and finds the first of a name in any case."""
    response = Response(200, headers, b"")
    assert response.headers == (("A", "1"), ("b", "2"), ("a", "3"))
    assert [response.header(name) for name in ("a", "A", "B", "c")] == ["1", "1", "2", None]


def test_response_from_bytes() -> None:
    """Header fields as bytes become text, whatever the bytes are."""
    raw = [(b"Date", b"now"), (b"X-\xff", b"\x00\xe9")]
    response = Response.from_raw(200, raw, b"{}")
    assert response == Response(200, [("Date", "now"), ("X-\xff", "\x00\xe9")], b"{}")


def test_messages_show_no_content() -> None:
    """The repr of a request or response shows no content."""
    body = b'{"end_user_id":"secret"}'
    assert repr(Response(200, [("A", "secret")], body)) == "<Response 200, 24 bytes>"
    request = Request("POST", "https://example.com/add", (("A", "secret"),), body)
    assert repr(request) == "<Request POST https://example.com/add, 24 bytes>"


def test_credentials_of_a_request() -> None:
    """A request hides credentials."""
    secret = Secret("Bearer k")
    given: list[tuple[str, str | Secret]] = [
        ("authorization", "Bearer k"),
        ("Proxy-Authorization", secret),
        ("Accept", "*/*"),
    ]
    request = Request("GET", "https://example.com", iter(given), b"")
    hidden = request.hidden_headers
    assert isinstance(hidden[0][1], Secret)
    assert hidden[1:] == (("Proxy-Authorization", secret), ("Accept", "*/*"))
    assert request.headers == (
        ("authorization", "Bearer k"),
        ("Proxy-Authorization", "Bearer k"),
        ("Accept", "*/*"),
    )
