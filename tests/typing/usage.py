"""What the types say to users: read by mypy and pyright, from the tree and from an installed wheel.

Each ignore marks a line that the type checkers must reject.
"""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=true

import ssl
from collections.abc import Callable
from datetime import datetime
from typing import assert_type
from uuid import UUID

import aiohttp
import httpx
from aiohttp import web

import creduse
import creduse_aiohttp
import creduse_trio
from creduse import (
    ActiveBalance,
    APIError,
    AsyncCreduseClient,
    Attempt,
    CallRecord,
    CreditsAdded,
    CreditsSubtracted,
    CreduseClient,
    CreduseError,
    Cycle,
    CycleBalance,
    CycleStatus,
    CycleType,
    Evidence,
    Outcome,
    Pace,
    RetryPolicy,
    Verdict,
)
from creduse_core import (
    AsyncCoreClient,
    Call,
    CoreClient,
    CreduseProtocol,
    Done,
    Failure,
    Response,
    Secret,
    Send,
    Wait,
)
from creduse_sandbox import LogEntry, SandboxServer

USER = UUID("12345678-1234-5678-1234-567812345678")


def results(client: CreduseClient) -> None:
    assert_type(client.add(USER, 1), CreditsAdded)
    assert_type(client.add(str(USER), 1, None, timeout=1), CreditsAdded)
    assert_type(client.subtract(USER, amount=1, idempotency_key="a"), CreditsSubtracted)
    assert_type(client.start_cycle(USER, 1, validity_days=31), Cycle)
    assert_type(client.stop_cycle(USER), Cycle)
    balance = assert_type(client.get_balance(USER), ActiveBalance)
    assert_type(client.get_active_balance(USER), ActiveBalance)
    assert_type(balance.end_user_id, UUID)
    assert_type(balance.active_balance, int)
    assert_type(balance.active_balance_by_cycle, tuple[CycleBalance, ...])
    part = balance.active_balance_by_cycle[0]
    assert_type(part.cycle_end, datetime)
    assert_type(part.status, CycleStatus | str | None)
    assert_type(part.cycle_type, CycleType | str | None)


def calls(client: CreduseClient) -> None:
    call = client.protocol.subtract(USER, 1)
    assert_type(call, Call[CreditsSubtracted])
    assert_type(client.run(call), CreditsSubtracted)
    assert_type(call.response, Response | None)
    assert_type(call.attempts, tuple[Attempt, ...])
    assert_type(call.outcome, Outcome)
    assert_type(call.record, CallRecord)
    assert_type(client.run(call, balance_first=True), CreditsSubtracted)
    evidence = assert_type(client.check(call, known=[call, call.record]), Evidence)
    assert_type(evidence.verdict, Verdict)
    assert_type(evidence.assumption, str | None)


def by_hand(protocol: CreduseProtocol, response: Response, failure: Failure) -> None:
    call = protocol.get_balance(USER)
    assert_type(call.start(0.0), Send)
    assert_type(call.receive_response(response, 1.0), Done[ActiveBalance] | Wait)
    assert_type(call.receive_failure(failure, 1.0), Wait)
    assert_type(call.wake(2.0), Send)
    assert_type(call.start(0.0, 0.5), Send | Wait)
    assert_type(call.wake(2.0, 0.5), Send | Wait)


def errors(client: CreduseClient) -> None:
    try:
        client.stop_cycle(USER)
    except APIError as error:
        assert_type(error.status_code, int | None)
        assert_type(error.error_code, str | None)
        assert_type(error.timestamp, datetime | None)
        assert_type(error.retry_after, float | None)
    except CreduseError as error:
        assert_type(error.outcome, Outcome)
        assert_type(error.attempts, tuple[Attempt, ...])
        assert_type(error.call, CallRecord | None)


async def asynchronous(client: AsyncCreduseClient, trusted: ssl.SSLContext) -> None:
    assert_type(await client.add(USER, 1), CreditsAdded)
    assert_type(await client.check(client.protocol.add(USER, 1)), Evidence)
    pace = Pace()
    assert_type(await client.run(client.protocol.stop_cycle(USER)), Cycle)
    # Changing the transport is changing the import.
    clients: list[AsyncCoreClient] = [
        client,
        creduse_aiohttp.AsyncCreduseClient(pace=pace),
        creduse_trio.AsyncCreduseClient(ssl_context=trusted, max_connections=1),
    ]
    async with clients[0] as same:
        assert_type(same, AsyncCoreClient)


def settings(heard: Callable[[Attempt], None]) -> None:
    with CreduseClient(
        "key", httpx.Client(), retry=RetryPolicy(max_attempts=1), on_attempt=heard
    ) as client:
        assert_type(client, CreduseClient)
        core: CoreClient = client
        assert_type(core.protocol, CreduseProtocol)
    AsyncCreduseClient(http_client=httpx.AsyncClient())


def hidden_key(key: Secret) -> None:
    CreduseClient(key)
    AsyncCreduseClient(key)
    creduse_aiohttp.AsyncCreduseClient(key)
    creduse_trio.AsyncCreduseClient(key)
    creduse_aiohttp.setup(web.Application(), key)


async def handler(request: web.Request) -> web.Response:
    client = request.app[creduse_aiohttp.CLIENT]
    assert_type(client, creduse_aiohttp.AsyncCreduseClient)
    return web.Response()


def app(session: web.AppKey[aiohttp.ClientSession]) -> None:
    creduse_aiohttp.setup(web.Application(), session=session, base_url="http://localhost")


def sandbox(server: SandboxServer) -> None:
    assert_type(server.applied, tuple[LogEntry, ...])
    assert_type(server.direct.add(USER, 1), CreditsAdded)


def wrong(client: CreduseClient) -> None:
    client.add(USER, "5")  # type: ignore[arg-type]  # an amount is a whole number
    client.subtract(USER)  # type: ignore[call-arg]  # of how many?
    client.get_balance(5)  # type: ignore[arg-type]  # a user is a UUID or its text
    CreduseClient("key", httpx.AsyncClient())  # type: ignore[arg-type]  # an AsyncClient is for AsyncCreduseClient
    creduse.CreditsAdded(USER, 1).amount = 2  # type: ignore[misc]  # results are frozen
