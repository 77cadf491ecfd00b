"""The asynchronous transport on the page for transport authors keeps the whole contract."""

import asyncio
import ssl
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import trustme

from creduse_core import AsyncCoreClient, CreduseProtocol
from creduse_sandbox.conformance import (
    CANCELLATIONS,
    CLOSINGS,
    CONCURRENCY_LEVELS,
    INTERRUPTIONS,
    SCENARIOS,
    TLS_SCENARIOS,
    Cancellation,
    Closing,
    ConcurrencyLevel,
    Interruption,
    Limit,
    Scenario,
    check_async,
    check_async_closing,
    check_async_concurrency,
    check_cancellation,
    check_interruption_on_asyncio,
)
from tests.pages import blocks_of
from tests.tls import client_context, server_context

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[2] / "docs" / "transports.md"
LIMITS = [Limit.REUSE]
NAMES: dict[str, Any] = {"__name__": "asyncio_transport"}
exec(blocks_of(PAGE)["asyncio_transport.py"], NAMES)  # noqa: S102 - the page's example


def connect(protocol: CreduseProtocol, trust: ssl.SSLContext | None = None) -> AsyncCoreClient:
    return AsyncCoreClient(protocol, NAMES["AsyncioTransport"](trust))


@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
def test_scenario(scenario: Scenario) -> None:
    """A call that meets a misbehaving server reports what it may."""
    asyncio.run(check_async(scenario, connect, limits=LIMITS))


@pytest.mark.parametrize("scenario", TLS_SCENARIOS, ids=str)
def test_tls(scenario: Scenario) -> None:
    """A server's certificate is checked."""
    ours, others = trustme.CA(), trustme.CA()
    past = {"not_before": datetime(2001, 1, 1), "not_after": datetime(2002, 1, 1)}  # noqa: DTZ001 - trustme's
    contexts = {
        "good": server_context(ours),
        "untrusted": server_context(others),
        "misnamed": server_context(ours, "other.invalid"),
        "expired": server_context(ours, **past),
    }
    trust = client_context(ours)
    asyncio.run(
        check_async(
            scenario,
            lambda protocol: connect(protocol, trust),
            limits=LIMITS,
            ssl_contexts=contexts,
        )
    )


@pytest.mark.parametrize("closing", CLOSINGS, ids=str)
def test_closing(closing: Closing) -> None:
    """A closed client sends nothing more."""
    asyncio.run(check_async_closing(closing, connect))


@pytest.mark.parametrize("cancellation", CANCELLATIONS, ids=str)
def test_cancellation(cancellation: Cancellation) -> None:
    """A cancelled call sends nothing more."""
    asyncio.run(check_cancellation(cancellation, connect))


@pytest.mark.parametrize("level", CONCURRENCY_LEVELS, ids=str)
def test_concurrency(level: ConcurrencyLevel) -> None:
    """Tasks can share a client."""
    asyncio.run(check_async_concurrency(level, connect, limits=LIMITS))


@pytest.mark.parametrize("interruption", [it for it in INTERRUPTIONS if not it.alarm], ids=str)
def test_interruption(interruption: Interruption) -> None:
    """Ctrl-C ends a call, and leaves a client that can be used."""
    check_interruption_on_asyncio(interruption, connect)
