"""What every httpx client does with good answers and with refusals."""

import json
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from creduse import (
    APIError,
    Attempt,
    AuthenticationError,
    CycleStatus,
    CycleType,
    InsufficientFundsError,
    InvalidResponseError,
    Outcome,
    RetryPolicy,
    ServerError,
)
from creduse_core import MAX_BODY_SIZE
from creduse_sandbox import Answer, SandboxServer
from tests.common import NO_WAIT, USER

WRONG: list[tuple[str, tuple[Any, ...], dict[str, Any], type[Exception], str]] = [
    (
        "add",
        ("12345678", 1),
        {},
        ValueError,
        "end_user_id must be a UUID such as .*, not '12345678'",
    ),
    ("add", (12345678, 1), {}, TypeError, "end_user_id must be a UUID or its text, not int"),
    ("add", (USER, True), {}, TypeError, "amount must be an int, not bool"),
    ("add", (USER, 1.0), {}, TypeError, "amount must be an int, not float"),
    ("add", (USER, "1"), {}, TypeError, "amount must be an int, not str"),
    ("add", (USER, -1), {}, ValueError, "amount must not be negative, but is -1"),
    ("add", (USER, 1, True), {}, TypeError, "validity_days must be an int, not bool"),
    ("add", (USER, 1, -1), {}, ValueError, "validity_days must not be negative, but is -1"),
    ("subtract", (USER, -1), {}, ValueError, "amount must not be negative"),
    ("subtract", (USER, 1), {"timeout": 0}, ValueError, "timeout must be above 0"),
    ("subtract", (USER, 1), {"timeout": "1"}, TypeError, "timeout must be a number of seconds"),
    ("start_cycle", (USER, None), {}, TypeError, "amount must be an int, not NoneType"),
    ("stop_cycle", ("",), {}, ValueError, "end_user_id must be a UUID"),
    ("stop_cycle", (USER,), {"idempotency_key": "x"}, ValueError, "would protect nothing"),
    ("get_balance", (None,), {}, TypeError, "end_user_id must be a UUID or its text, not NoneType"),
]


def ours(**fields: Any) -> Answer:
    return Answer(200, (), json.dumps({"end_user_id": str(USER), "amount": 5} | fields).encode())


def test_five_calls(harness: Any, server: SandboxServer) -> None:
    """Each of the five methods does on the server what it says, once, and gives its result."""

    async def main() -> None:
        async with harness.connect(server.base_url) as client:
            added = await client.add(USER, 100)
            assert (added.end_user_id, added.amount, added.validity_days) == (USER, 100, 31)
            taken = await client.subtract(str(USER), 50)
            assert (taken.end_user_id, taken.amount) == (USER, 50)
            started = await client.start_cycle(USER, 1000, validity_days=None)
            assert (started.amount, started.status) == (1000, CycleStatus.ACTIVE)
            assert started.created_at <= datetime.now(UTC) < started.current_cycle_end
            stopped = await client.stop_cycle(USER)
            assert stopped.status is CycleStatus.CANCELED
            balance = await client.get_balance(USER)
            assert balance.active_balance == 1050
            parts = [(part.amount, part.cycle_type) for part in balance.active_balance_by_cycle]
            assert sorted(parts) == [(50, CycleType.ONE_TIME), (1000, CycleType.RECURRING)]
            assert await client.get_active_balance(USER) == balance

    harness.run(main)
    assert [entry.path for entry in server.applied] == [
        "/add",
        "/subtract",
        "/start-cycle",
        "/stop-cycle",
    ]
    assert len(server.log) == 6
    assert {entry.connection for entry in server.log} == {1}


def test_the_request_is_ours_alone(harness: Any, server: SandboxServer) -> None:
    """A request bears the core's headers, Host and Content-Length, and no others."""

    async def main() -> None:
        async with harness.connect(server.base_url + "/") as client:
            await client.add(USER, 1)

    harness.run(main)
    (entry,) = server.log
    assert [name for name, _ in entry.headers] == [
        "Host",
        "Content-Type",
        "Accept",
        "Accept-Encoding",
        "User-Agent",
        "Content-Length",
    ]
    assert dict(entry.headers)["Host"] == server.base_url.removeprefix("http://")


def test_wrong_arguments(harness: Any, server: SandboxServer) -> None:
    """A wrong argument is named in an error, and the server receives nothing."""

    async def main() -> None:
        async with harness.connect(server.base_url) as client:
            for method, arguments, options, kind, said in WRONG:
                with pytest.raises(kind, match=said):
                    await getattr(client, method)(*arguments, **options)

    harness.run(main)
    assert server.log == ()


def test_refusal(harness: Any, server: SandboxServer) -> None:
    """A refusal is an error of its own class, and it is certain that nothing was applied."""

    async def main() -> None:
        async with harness.connect(server.base_url) as client:
            await client.add(USER, 10)
            with pytest.raises(InsufficientFundsError) as caught:
                await client.subtract(USER, 11)
            assert caught.value.outcome is Outcome.NOT_APPLIED
            assert caught.value.status_code == 402
            assert (await client.get_balance(USER)).active_balance == 10

    harness.run(main)
    assert [entry.path for entry in server.applied] == ["/add"]


def test_wrong_key(harness: Any) -> None:
    """A key that the server does not take is an AuthenticationError."""

    async def main() -> None:
        with SandboxServer(api_key="another") as server:
            async with harness.connect(server.base_url) as client:
                with pytest.raises(AuthenticationError):
                    await client.add(USER, 10)
            assert server.applied == ()

    harness.run(main)


def test_busy_server_is_tried_again(harness: Any, server: SandboxServer) -> None:
    """After a 429 even a write is sent again, and applied once; on_attempt hears of both."""
    heard: list[Attempt] = []

    async def main() -> None:
        async with harness.connect(server.base_url, on_attempt=heard.append) as client:
            server.inject(Answer(429, (("Retry-After", "0"),)))
            await client.add(USER, 10)

    harness.run(main)
    assert [entry.status for entry in server.log] == [429, 200]
    assert len(server.applied) == 1
    assert [(it.number, it.status, it.outcome) for it in heard] == [
        (1, 429, Outcome.NOT_APPLIED),
        (2, 200, Outcome.APPLIED),
    ]


def test_server_error(harness: Any, server: SandboxServer) -> None:
    """After a 503 a write is not sent again and its outcome is UNKNOWN; a read is."""

    async def main() -> None:
        async with harness.connect(server.base_url, retry=NO_WAIT) as client:
            await client.add(USER, 10)
            server.inject(Answer(503))
            with pytest.raises(ServerError) as caught:
                await client.subtract(USER, 5)
            assert caught.value.outcome is Outcome.UNKNOWN
            server.inject(Answer(503), times=2)
            assert (await client.get_balance(USER)).active_balance == 10

    harness.run(main)
    assert [entry.status for entry in server.log] == [200, 503, 503, 503, 200]


def test_idempotency_key_travels(harness: Any, server: SandboxServer) -> None:
    """With a server that replays, a write is sent again under the same key."""
    policy = RetryPolicy(initial_delay=0, server_replays=True)

    async def main() -> None:
        async with harness.connect(server.base_url, retry=policy) as client:
            server.inject(Answer(500))
            await client.add(USER, 10, idempotency_key="order-1")

    harness.run(main)
    assert [dict(entry.headers)["Idempotency-Key"] for entry in server.log] == ["order-1"] * 2
    assert len(server.applied) == 1


NOT_OURS = {
    "another user": ours(end_user_id=str(UUID(int=7))),
    "another amount": ours(amount=6),
    "not JSON": Answer(200, (), b"<html>"),
    "compressed": Answer(200, (("Content-Encoding", "gzip"),), b"\x1f\x8b\x08\x00"),
    "an error": ours(error_code="INTERNAL"),
}


@pytest.mark.parametrize("answer", NOT_OURS.values(), ids=NOT_OURS)
def test_answer_that_is_not_ours(harness: Any, server: SandboxServer, answer: Answer) -> None:
    """An answer that does not belong to the request is UNKNOWN, its connection not used again."""

    async def main() -> None:
        async with harness.connect(server.base_url) as client:
            server.inject(answer)
            with pytest.raises(InvalidResponseError) as caught:
                await client.subtract(USER, 5)
            assert caught.value.outcome is Outcome.UNKNOWN
            await client.add(USER, 5)

    harness.run(main)
    assert [entry.connection for entry in server.log] == [1, 2]


def test_answer_that_is_ours_but_misread(harness: Any, server: SandboxServer) -> None:
    """An answer that proves the write, with a field missing, says APPLIED; nothing is sent again."""

    async def main() -> None:
        async with harness.connect(server.base_url) as client:
            server.inject(ours())
            with pytest.raises(InvalidResponseError, match="created_at") as caught:
                await client.start_cycle(USER, 5)
            assert caught.value.outcome is Outcome.APPLIED
            await client.add(USER, 5)

    harness.run(main)
    assert [entry.connection for entry in server.log] == [1, 1]


def test_too_large(harness: Any, server: SandboxServer) -> None:
    """Of an answer larger than the cap no more is read than shows it."""

    async def main() -> None:
        async with harness.connect(server.base_url) as client:
            server.inject(Answer(200, (), b" " * (2 * MAX_BODY_SIZE)))
            with pytest.raises(InvalidResponseError, match="larger than 1048576 bytes") as caught:
                await client.subtract(USER, 5)
            assert caught.value.response is not None
            assert len(caught.value.response.body) < 1.5 * MAX_BODY_SIZE
            await client.add(USER, 5)

    harness.run(main)
    assert [entry.connection for entry in server.log] == [1, 2]


@pytest.mark.parametrize("location", ["/elsewhere", "https://[", "//:bad:"])
def test_redirect(harness: Any, server: SandboxServer, location: str) -> None:
    """A redirect is not followed, wherever it leads."""

    async def main() -> None:
        async with harness.connect(server.base_url) as client:
            server.inject(Answer(307, (("Location", location),)))
            with pytest.raises(InvalidResponseError, match="307") as caught:
                await client.get_balance(USER)
            assert caught.value.response is not None
            assert caught.value.response.header("location") == location

    harness.run(main)
    assert len(server.log) == 1


def test_raw_answer(harness: Any, server: SandboxServer) -> None:
    """A call made by hand and run gives the raw answer and the history."""

    async def main() -> None:
        async with harness.connect(server.base_url) as client:
            call = client.protocol.add(USER, 5)
            await client.run(call)
            assert call.response.status == 200
            assert call.response.header("content-type") == "application/json"
            assert call.outcome is Outcome.APPLIED
            assert len(call.attempts) == 1

    harness.run(main)


def test_key_in_no_error(harness: Any, server: SandboxServer) -> None:
    """An answer that repeats the key does not bring it into the error."""

    async def main() -> None:
        async with harness.connect(server.base_url) as client:
            key = client.protocol.api_key.reveal()
            body = json.dumps({"error_code": "BAD_KEY", "message": f"no such key: {key}"}).encode()
            server.inject(Answer(401, (), body))
            with pytest.raises(APIError) as caught:
                await client.add(USER, 5)
            assert key not in str(caught.value)
            assert caught.value.message == "no such key: ***"

    harness.run(main)
