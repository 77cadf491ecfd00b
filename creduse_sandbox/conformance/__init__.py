"""Checks that any transport must pass: what a client does under faults, cancellation and threads.

Example::

    import pytest
    from creduse_core import CoreClient
    from creduse_sandbox.conformance import SCENARIOS, check

    @pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
    def test_my_transport(scenario):
        check(scenario, lambda protocol: CoreClient(protocol, MyTransport()))

An asynchronous transport needs `AsyncCoreClient` and ``await check_async(...)``, and also
``await check_cancellation(...)``. `check_pace` and `check_async_pace` check the same transports with
a `Pace`. These checks need no pytest.

Each check starts its own server and compares the server's log with what each call says: how often
the server received it, whether the server applied it, and whether its outcome is true. If the HTTP
library cannot keep a promise, pass the `Limit` in ``limits``. The check then still tests the rest.
"""

from creduse_sandbox.conformance.cancellation import (
    CANCELLATIONS,
    Cancellation,
    check_cancellation,
)
from creduse_sandbox.conformance.checks import (
    AsyncConnect,
    Connect,
    SSLContexts,
    check,
    check_async,
)
from creduse_sandbox.conformance.closing import (
    CLOSINGS,
    Closing,
    check_async_closing,
    check_closing,
)
from creduse_sandbox.conformance.concurrency import (
    CONCURRENCY_LEVELS,
    ConcurrencyLevel,
    check_async_concurrency,
    check_concurrency,
)
from creduse_sandbox.conformance.interruption import (
    INTERRUPTIONS,
    Interruption,
    check_interruption,
    check_interruption_on_asyncio,
    check_interruption_on_trio,
)
from creduse_sandbox.conformance.pacing import (
    AsyncPacedConnect,
    PacedConnect,
    check_async_pace,
    check_pace,
)
from creduse_sandbox.conformance.scenarios import SCENARIOS, TLS_SCENARIOS, Ending, Limit, Scenario

__all__ = [
    "CANCELLATIONS",
    "CLOSINGS",
    "CONCURRENCY_LEVELS",
    "INTERRUPTIONS",
    "SCENARIOS",
    "TLS_SCENARIOS",
    "AsyncConnect",
    "AsyncPacedConnect",
    "Cancellation",
    "Closing",
    "ConcurrencyLevel",
    "Connect",
    "Ending",
    "Interruption",
    "Limit",
    "PacedConnect",
    "SSLContexts",
    "Scenario",
    "check",
    "check_async",
    "check_async_closing",
    "check_async_concurrency",
    "check_async_pace",
    "check_cancellation",
    "check_closing",
    "check_concurrency",
    "check_interruption",
    "check_interruption_on_asyncio",
    "check_interruption_on_trio",
    "check_pace",
]
