"""Idempotency keys over every client, against a server that replays."""

from datetime import UTC, datetime, timedelta

import pytest

from creduse import APIError, Outcome, RetryPolicy
from creduse_core import CreduseProtocol
from creduse_sandbox import FAULTS, SandboxServer
from tests.common import KEY, USER
from tests.transports.kinds import Async, Authority, Sync

REPLAYS = RetryPolicy(initial_delay=0, server_replays=True)


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        """Return the time."""
        return self.now


def test_replayed_for_a_day(async_kind: Async, authority: Authority) -> None:
    """A key is applied once in 24 hours, and then forgotten."""
    clock = Clock()

    async def main() -> None:
        protocol = CreduseProtocol(KEY, server.base_url, retry=REPLAYS)
        async with async_kind.connect(authority.trust)(protocol) as client:
            first = await client.add(USER, 5, idempotency_key="a")
            clock.now += timedelta(hours=24, microseconds=-1)
            assert await client.add(USER, 5, idempotency_key="a") == first
            assert len(server.applied) == 1
            with pytest.raises(APIError) as caught:
                await client.add(USER, 6, idempotency_key="a")
            assert caught.value.status_code == 422
            assert caught.value.error_code == "IDEMPOTENCY_KEY_REUSED"
            # The key has been applied, if not with this amount.
            assert caught.value.outcome is Outcome.UNKNOWN
            assert len(server.applied) == 1
            clock.now += timedelta(microseconds=1)
            await client.add(USER, 5, idempotency_key="a")
            assert len(server.applied) == 2

    with SandboxServer(clock=clock) as server:
        async_kind.run(main)


def test_same_key_on_every_attempt(sync_kind: Sync, authority: Authority) -> None:
    """The client retries a call with a key under the same key, and it is applied once."""
    with SandboxServer() as server:
        protocol = CreduseProtocol(KEY, server.base_url, retry=REPLAYS)
        for name in ("apply-then-close", "cut-body-then-reset"):
            server.inject(FAULTS[name])
        with sync_kind.open(protocol, authority.trust) as client:
            assert client.add(USER, 9, idempotency_key="a-b~!").amount == 9
            with pytest.raises(ValueError, match="idempotency_key"):
                client.add(USER, 1, idempotency_key="a\nb")
        keys = [
            value
            for entry in server.log
            for name, value in entry.headers
            if name.lower() == "idempotency-key"
        ]
        assert keys == ["a-b~!"] * 3
        assert len(server.applied) == 1
