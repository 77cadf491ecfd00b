"""Any bytes as a response lead to an error of ours or to a result of ours, in time."""

import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from creduse import CreduseError, InvalidResponseError
from creduse_core import MAX_BODY_SIZE, Call, CreduseProtocol, Done, Response, Wait
from creduse_sandbox import Action, SandboxServer, Shaped
from tests.common import KEY, ONCE, USER, credits_body
from tests.transports.kinds import Async, Authority, Sync

pytestmark = pytest.mark.slow

SECONDS = 5.0

BODY = credits_body(7)
GOOD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
    % (len(BODY), BODY),
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n"
    % (len(BODY), BODY),
    b"HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\nHTTP/1.0 200 OK\r\n\r\n" + BODY,
    b"HTTP/1.1 429 Slow down\r\nRetry-After: 0\r\nContent-Length: 2\r\n\r\n{}",
    b'HTTP/1.1 402 \r\nContent-Length: 37\r\n\r\n{"error_code": "INSUFFICIENT_FUNDS"}\n',
)


@st.composite
def mutated(draw: st.DrawFn, originals: Iterable[bytes]) -> bytes:
    """Mutate a good response: cut, duplicate, replace, insert."""
    response = draw(st.sampled_from(tuple(originals)))
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(response)))
        end = draw(st.integers(start, min(len(response), start + 20)))
        piece = draw(st.binary(max_size=8) | st.sampled_from([b"\r\n", b"0", b":", response]))
        response = response[:start] + piece + response[end:]
    return response[:100_000]


RESPONSES = st.binary(max_size=400) | mutated(GOOD)
FUZZ = settings(
    max_examples=60,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def inject_bytes(server: SandboxServer, response: bytes, pieces: int) -> None:
    """Inject these bytes as the next response, whole or in pieces, then close."""
    size = max(1, len(response) // pieces)
    parts = [response[at : at + size] for at in range(0, len(response), size)] or [b""]
    pause = None if pieces == 1 else 0.001
    server.reset()
    server.inject(Shaped(lambda _head, _body: parts, pause=pause, then=Action.CLOSE))


def judge(call: Call[Any], result: Any, begun: float) -> None:
    """Check that a result has our user and amount, and that the call did not hang."""
    assert time.monotonic() - begun < SECONDS + 60
    if result is not None:
        assert (result.end_user_id, result.amount) == (USER, 7)
    assert len(call.attempts) == 1


def test_fuzzed(sync_kind: Sync, server: SandboxServer, authority: Authority) -> None:
    """For any bytes, a synchronous call returns its own result or raises a CreduseError."""
    protocol = CreduseProtocol(KEY, server.base_url, retry=ONCE, timeout=SECONDS)

    @FUZZ
    @given(RESPONSES, st.sampled_from([1, 1, 3]))
    def run(response: bytes, pieces: int) -> None:
        inject_bytes(server, response, pieces)
        call, result, begun = protocol.add(USER, 7), None, time.monotonic()
        with sync_kind.open(protocol, authority.trust) as client, suppress(CreduseError):
            result = client.run(call)
        judge(call, result, begun)

    run()


def test_fuzzed_async(async_kind: Async, server: SandboxServer, authority: Authority) -> None:
    """For any bytes, an asynchronous call returns its own result or raises a CreduseError."""
    protocol = CreduseProtocol(KEY, server.base_url, retry=ONCE, timeout=SECONDS)

    @FUZZ
    @given(RESPONSES, st.sampled_from([1, 1, 3]))
    def run(response: bytes, pieces: int) -> None:
        async def main() -> None:
            call, result, begun = protocol.add(USER, 7), None, time.monotonic()
            async with async_kind.connect(authority.trust)(protocol) as client:
                with suppress(CreduseError):
                    result = await client.run(call)
            judge(call, result, begun)

        inject_bytes(server, response, pieces)
        async_kind.run(main)

    run()


HEADERS = st.lists(
    st.tuples(
        st.sampled_from(["Content-Type", "Retry-After", "Date", "Content-Encoding"])
        | st.text(max_size=5),
        st.sampled_from(["0", "-1", "1e9", "gzip", "Sun, 06 Nov 1994 08:49:37 GMT"])
        | st.text(max_size=40),
    ),
    max_size=3,
)


@settings(FUZZ, max_examples=1000)
@given(
    st.integers(0, 999) | st.just(200),
    HEADERS,
    st.binary(max_size=200) | mutated([BODY]),
    st.sampled_from(["add", "subtract", "start_cycle", "get_balance"]),
)
def test_fuzzed_core(status: int, headers: list[tuple[str, str]], body: bytes, method: str) -> None:
    """For any `Response`, the core returns an action or raises a CreduseError."""
    protocol = CreduseProtocol(KEY)
    arguments = () if method == "get_balance" else (7,)
    call: Call[Any] = getattr(protocol, method)(USER, *arguments)
    send = call.start(0.0)
    response = Response(status, headers, body)
    allowed = send.allows_reuse(response)
    try:
        action = call.receive_response(response, 1.0)
    except CreduseError as error:
        str(error)
        return
    if isinstance(action, Done):
        assert allowed
        assert action.result.end_user_id == USER
    else:
        assert isinstance(action, Wait)
        assert 0 <= action.seconds < 30


ENDLESS = 4 * MAX_BODY_SIZE


def inject_endless(server: SandboxServer) -> None:
    """Inject a response with a body of four times the limit."""
    piece = b" " * 65536
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % ENDLESS
    parts = (head, *(piece for _ in range(ENDLESS // len(piece))))
    server.inject(Shaped(lambda _head, _body: parts, pause=0.0, then=Action.CLOSE))


def judge_size(error: InvalidResponseError) -> None:
    """Check that little more than the limit was read."""
    assert error.response is not None
    assert MAX_BODY_SIZE < len(error.response.body) < MAX_BODY_SIZE + 2**20


def test_body_limit(sync_kind: Sync, server: SandboxServer, authority: Authority) -> None:
    """Of a body far larger than the limit, little more than the limit is read."""
    inject_endless(server)
    protocol = CreduseProtocol(KEY, server.base_url, retry=ONCE)
    with sync_kind.open(protocol, authority.trust) as client:
        with pytest.raises(InvalidResponseError, match="larger than") as caught:
            client.add(USER, 7)
        judge_size(caught.value)


def test_body_limit_async(async_kind: Async, server: SandboxServer, authority: Authority) -> None:
    """The same on event loops."""

    async def main() -> None:
        async with async_kind.connect(authority.trust)(protocol) as client:
            with pytest.raises(InvalidResponseError, match="larger than") as caught:
                await client.add(USER, 7)
            judge_size(caught.value)

    inject_endless(server)
    protocol = CreduseProtocol(KEY, server.base_url, retry=ONCE)
    async_kind.run(main)
