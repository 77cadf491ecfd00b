"""What every transport must do when the network misbehaves: a table, and a way to run it.

    import pytest
    from creduse_core import CoreClient
    from creduse_sandbox.conformance import SCENARIOS, check

    @pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
    def test_my_transport(scenario):
        check(scenario, lambda protocol: CoreClient(protocol, MyTransport()))

Under an event loop it is ``await check_async(…)`` with an `AsyncCoreClient`, and
``await check_cancellation(…)`` besides. Nothing here depends on pytest. Each scenario has a server
of its own, whose log is the witness: of every call it is asked how often it was received, whether
it was applied, and whether what the caller was told is true. What a library cannot do is a
`Limit`; to state it is to say so aloud, and what remains is still held to.
"""

from creduse_sandbox.conformance.cancellation import (
    CANCELLATIONS,
    Cancellation,
    check_cancellation,
)
from creduse_sandbox.conformance.checks import (
    AsyncConnect,
    Certificates,
    Connect,
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
    CROWDS,
    Crowd,
    check_async_crowd,
    check_crowd,
)
from creduse_sandbox.conformance.interruption import (
    INTERRUPTIONS,
    Interruption,
    check_interruption,
    check_interruption_on_asyncio,
    check_interruption_on_trio,
)
from creduse_sandbox.conformance.scenarios import SCENARIOS, TLS_SCENARIOS, Ending, Limit, Scenario

__all__ = [
    "CANCELLATIONS",
    "CLOSINGS",
    "CROWDS",
    "INTERRUPTIONS",
    "SCENARIOS",
    "TLS_SCENARIOS",
    "AsyncConnect",
    "Cancellation",
    "Certificates",
    "Closing",
    "Connect",
    "Crowd",
    "Ending",
    "Interruption",
    "Limit",
    "Scenario",
    "check",
    "check_async",
    "check_async_closing",
    "check_async_crowd",
    "check_cancellation",
    "check_closing",
    "check_crowd",
    "check_interruption",
    "check_interruption_on_asyncio",
    "check_interruption_on_trio",
]
