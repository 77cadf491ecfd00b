"""Many calls at once: some cancelled, some timed out, some with faults."""

import asyncio
import gc
import random
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import pytest
import trio

from creduse import CreduseError, Outcome, RetryPolicy
from creduse_core import AsyncCoreClient, Call, CreduseProtocol, Request
from creduse_sandbox import FAULTS, SandboxServer
from tests.common import KEY, USER
from tests.transports.kinds import Async, Authority

pytestmark = pytest.mark.slow

CALLS = 1000
MISFORTUNES = ("apply-then-close", "request-then-reset", "cut-body-then-close", "503", "429")


async def run_asyncio(
    client: AsyncCoreClient, calls: Sequence[Call[Any]], cancel: dict[int, float]
) -> None:
    """Run all calls at once, and cancel some after so many seconds."""

    async def run(call: Call[Any]) -> None:
        with suppress(CreduseError):
            await client.run(call)

    loop = asyncio.get_running_loop()
    tasks = [asyncio.create_task(run(call)) for call in calls]
    for number, seconds in cancel.items():
        loop.call_later(seconds, tasks[number].cancel)
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        assert result is None or isinstance(result, asyncio.CancelledError)


async def run_trio(
    client: AsyncCoreClient, calls: Sequence[Call[Any]], cancel: dict[int, float]
) -> None:
    """Run all calls at once on trio, and cancel some after so many seconds."""

    async def run(number: int, call: Call[Any]) -> None:
        with trio.move_on_after(cancel.get(number, float("inf"))), suppress(CreduseError):
            await client.run(call)

    async with trio.open_nursery() as nursery:
        for number, call in enumerate(calls):
            nursery.start_soon(run, number, call)


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.exhaustive) for seed in range(1, 10))]
)
def test_load(async_kind: Async, seed: int, authority: Authority) -> None:
    """Of a thousand calls at once, half of them cancelled, each says the truth."""
    dice = random.Random(seed)  # noqa: S311 - nothing is secret here

    def unlucky(_: Request) -> bool:
        return dice.random() < 0.03

    async def main() -> None:
        policy = RetryPolicy(initial_delay=0.01, attempt_timeout=30)
        protocol = CreduseProtocol(KEY, server.base_url, retry=policy, timeout=60)
        calls: list[Call[Any]] = [
            protocol.add(USER, 1000 + n, timeout=dice.choice([60, 60, 60, dice.uniform(0.001, 1)]))
            for n in range(CALLS)
        ]
        chosen = dice.sample(range(CALLS), CALLS // 2)
        cancel = {number: dice.uniform(0, 1.5) for number in chosen}
        for name in MISFORTUNES:
            server.inject(FAULTS[name], CALLS, unlucky)
        before = async_kind.tasks()
        async with async_kind.connect(authority.trust)(protocol) as client:
            await (run_trio if async_kind.loop == "trio" else run_asyncio)(client, calls, cancel)
            judge(calls, server)
            server.reset()
            for _ in range(100):
                await client.add(USER, 1)
            assert len(server.applied) == 100
        assert async_kind.tasks() == before

    with SandboxServer() as server:
        async_kind.run(main)
    gc.collect()


def judge(calls: Sequence[Call[Any]], server: SandboxServer) -> None:
    """Compare what each call says with the server's log."""
    server.settle()
    by_body: dict[bytes | None, list[Any]] = {}
    for entry in server.log:
        by_body.setdefault(entry.body, []).append(entry)
    outcomes = dict.fromkeys(Outcome, 0)
    for call in calls:
        entries = by_body.get(call.request.body, [])
        applied = sum(entry.applied for entry in entries)
        refused = sum(attempt.status == 429 for attempt in call.attempts)
        assert applied <= 1
        assert len(entries) <= len(call.attempts)
        assert call.outcome is not Outcome.APPLIED or applied == 1
        assert call.outcome is not Outcome.NOT_APPLIED or len(entries) == refused
        outcomes[call.outcome] += 1
    assert all(outcomes.values()), f"this load is too light, or too heavy: {outcomes}"
