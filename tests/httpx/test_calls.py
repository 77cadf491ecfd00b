"""Calls over every httpx client."""

from datetime import UTC, datetime

import pytest

from creduse import (
    Attempt,
    CycleStatus,
    CycleType,
    InvalidResponseError,
    Outcome,
)
from creduse_core import MAX_BODY_SIZE
from creduse_sandbox import CannedResponse, SandboxServer
from tests.common import GOOD, USER
from tests.httpx.harness import Harness


def test_five_calls(harness: Harness, server: SandboxServer) -> None:
    """Each of the five methods is applied once, and returns its result."""

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


def test_headers_of_a_request(harness: Harness, server: SandboxServer) -> None:
    """A request has the core's headers, Host and Content-Length, and no others."""

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


def test_rate_limited_write_is_retried(harness: Harness, server: SandboxServer) -> None:
    """A write is retried after a 429, and applied once. ``on_attempt`` runs after both attempts."""
    heard: list[Attempt] = []

    async def main() -> None:
        async with harness.connect(server.base_url, on_attempt=heard.append) as client:
            server.inject(CannedResponse(429, (("Retry-After", "0"),)))
            await client.add(USER, 10)

    harness.run(main)
    assert [entry.status for entry in server.log] == [429, 200]
    assert len(server.applied) == 1
    assert [(it.number, it.status, it.outcome) for it in heard] == [
        (1, 429, Outcome.NOT_APPLIED),
        (2, 200, Outcome.APPLIED),
    ]


def test_misread_response(harness: Harness, server: SandboxServer) -> None:
    """A response of ours that lacks a field is APPLIED, is not retried, and keeps its connection."""

    async def main() -> None:
        async with harness.connect(server.base_url) as client:
            server.inject(CannedResponse(200, (), GOOD))
            with pytest.raises(InvalidResponseError, match="created_at") as caught:
                await client.start_cycle(USER, 5)
            assert caught.value.outcome is Outcome.APPLIED
            await client.add(USER, 5)

    harness.run(main)
    assert [entry.connection for entry in server.log] == [1, 1]


@pytest.mark.parametrize("location", ["https://[", "//:bad:"])
def test_redirect(harness: Harness, server: SandboxServer, location: str) -> None:
    """A redirect whose location is no URL is not followed."""

    async def main() -> None:
        async with harness.connect(server.base_url) as client:
            server.inject(CannedResponse(307, (("Location", location),)))
            with pytest.raises(InvalidResponseError, match="307") as caught:
                await client.get_balance(USER)
            assert caught.value.response is not None
            assert caught.value.response.header("location") == location

    harness.run(main)
    assert len(server.log) == 1


def test_too_large(supplied: Harness, server: SandboxServer) -> None:
    """A supplied client stops reading a response that is larger than the limit."""

    async def main() -> None:
        async with supplied.connect(server.base_url) as client:
            server.inject(CannedResponse(200, (), b" " * (2 * MAX_BODY_SIZE)))
            with pytest.raises(InvalidResponseError, match="larger than 1048576 bytes") as caught:
                await client.subtract(USER, 5)
            assert caught.value.response is not None
            assert len(caught.value.response.body) < 1.5 * MAX_BODY_SIZE
            await client.add(USER, 5)

    supplied.run(main)
    assert [entry.connection for entry in server.log] == [1, 2]
