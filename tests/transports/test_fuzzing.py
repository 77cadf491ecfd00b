"""Any bytes as an answer: only errors of ours come out, in time, and no result that is not ours."""

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
    """Change a good answer here and there: cut, double, replace, insert."""
    answer = draw(st.sampled_from(tuple(originals)))
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(answer)))
        end = draw(st.integers(start, min(len(answer), start + 20)))
        piece = draw(st.binary(max_size=8) | st.sampled_from([b"\r\n", b"0", b":", answer]))
        answer = answer[:start] + piece + answer[end:]
    return answer[:100_000]


ANSWERS = st.binary(max_size=400) | mutated(GOOD)
FUZZ = settings(
    max_examples=60,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def orders(server: SandboxServer, answer: bytes, pieces: int) -> None:
    """Have the next request answered with these bytes, whole or in pieces, then close."""
    size = max(1, len(answer) // pieces)
    parts = [answer[at : at + size] for at in range(0, len(answer), size)] or [b""]
    pause = None if pieces == 1 else 0.001
    server.reset()
    server.inject(Shaped(lambda _head, _body: parts, pause=pause, then=Action.CLOSE))


def judge(call: Call[Any], result: Any, begun: float) -> None:
    """A result has the user and the amount that were asked for, and came in time."""
    assert time.monotonic() - begun < SECONDS + 3
    if result is not None:
        assert (result.end_user_id, result.amount) == (USER, 7)
    assert len(call.attempts) == 1


@pytest.fixture
def server() -> Any:
    with SandboxServer() as running:
        yield running


def test_fuzzed(sync_kind: Any, server: SandboxServer, authority: Any) -> None:
    """Whatever bytes come, a synchronous call ends in a result of its own or in a CreduseError."""
    protocol = CreduseProtocol(KEY, server.base_url, retry=ONCE, timeout=SECONDS)

    @FUZZ
    @given(ANSWERS, st.sampled_from([1, 1, 3]))
    def run(answer: bytes, pieces: int) -> None:
        orders(server, answer, pieces)
        call, result, begun = protocol.add(USER, 7), None, time.monotonic()
        with sync_kind.open(protocol, authority.trust) as client, suppress(CreduseError):
            result = client.run(call)
        judge(call, result, begun)

    run()


def test_fuzzed_async(async_kind: Any, server: SandboxServer, authority: Any) -> None:
    """The same under an event loop."""
    protocol = CreduseProtocol(KEY, server.base_url, retry=ONCE, timeout=SECONDS)

    @FUZZ
    @given(ANSWERS, st.sampled_from([1, 1, 3]))
    def run(answer: bytes, pieces: int) -> None:
        async def main() -> None:
            call, result, begun = protocol.add(USER, 7), None, time.monotonic()
            async with async_kind.connect(authority.trust)(protocol) as client:
                with suppress(CreduseError):
                    result = await client.run(call)
            judge(call, result, begun)

        orders(server, answer, pieces)
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
    """Whatever Response the core is given, it answers, or raises a CreduseError."""
    protocol = CreduseProtocol(KEY)
    arguments = () if method == "get_balance" else (7,)
    call: Call[Any] = getattr(protocol, method)(USER, *arguments)
    send = call.start(0.0)
    response = Response(status, headers, body)
    belongs = send.belongs(response)
    try:
        action = call.receive_response(response, 1.0)
    except CreduseError as error:
        str(error)
        return
    if isinstance(action, Done):
        assert belongs
        assert action.result.end_user_id == USER
    else:
        assert isinstance(action, Wait)
        assert 0 <= action.seconds < 30


ENDLESS = 4 * MAX_BODY_SIZE


def order_endless(server: SandboxServer) -> None:
    """Have the next request answered with a body of four times the cap."""
    piece = b" " * 65536
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % ENDLESS
    parts = (head, *(piece for _ in range(ENDLESS // len(piece))))
    server.inject(Shaped(lambda _head, _body: parts, pause=0.0, then=Action.CLOSE))


def judge_size(error: InvalidResponseError) -> None:
    """Little more than the cap has been read."""
    assert error.response is not None
    assert MAX_BODY_SIZE < len(error.response.body) < MAX_BODY_SIZE + 2**20


def test_cap(sync_kind: Any, server: SandboxServer, authority: Any) -> None:
    """Of a body that is far larger than the cap, little more than the cap is read."""
    order_endless(server)
    protocol = CreduseProtocol(KEY, server.base_url, retry=ONCE)
    with sync_kind.open(protocol, authority.trust) as client:
        with pytest.raises(InvalidResponseError, match="larger than") as caught:
            client.add(USER, 7)
        judge_size(caught.value)


def test_cap_async(async_kind: Any, server: SandboxServer, authority: Any) -> None:
    """The same under an event loop."""

    async def main() -> None:
        async with async_kind.connect(authority.trust)(protocol) as client:
            with pytest.raises(InvalidResponseError, match="larger than") as caught:
                await client.add(USER, 7)
            judge_size(caught.value)

    order_endless(server)
    protocol = CreduseProtocol(KEY, server.base_url, retry=ONCE)
    async_kind.run(main)
