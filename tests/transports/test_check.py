"""``check`` over every client, against a server that loses calls and knows what it applied."""

from collections.abc import Callable
from typing import Any

import pytest

from creduse import CreduseError, Outcome, RetryPolicy, Verdict
from creduse_core import Call, CreduseProtocol, Evidence
from creduse_sandbox import FAULTS, SandboxServer
from tests.common import KEY, USER, keep_from_end_of_day
from tests.transports.kinds import Async, Authority, Sync

Make = Callable[[CreduseProtocol], Call[Any]]
WRITES: dict[str, Make] = {
    "add": lambda protocol: protocol.add(USER, 50),
    "subtract": lambda protocol: protocol.subtract(USER, 50),
    "start_cycle": lambda protocol: protocol.start_cycle(USER, 50),
    "stop_cycle": lambda protocol: protocol.stop_cycle(USER),
}
LOST = {"apply-then-reset": Verdict.APPLIED, "request-then-reset": Verdict.NOT_YET}


def prepare(server: SandboxServer, method: str) -> CreduseProtocol:
    """Give the user something to take and to stop, and a cycle without credits."""
    keep_from_end_of_day()
    server.direct.add(USER, 70, 0)
    server.direct.subtract(USER, 70)
    server.direct.add(USER, 100)
    if method == "stop_cycle":
        server.direct.start_cycle(USER, 5)
    return CreduseProtocol(KEY, server.base_url, retry=RetryPolicy(max_attempts=1))


def inject(server: SandboxServer, fault: str) -> None:
    """Lose the next write."""
    server.inject(FAULTS[fault], when=lambda request: request.method == "POST")


def verify(server: SandboxServer, call: Call[Any], evidence: Evidence, verdict: Verdict) -> None:
    """Compare the evidence with the server's record."""
    assert call.outcome is Outcome.UNKNOWN
    assert evidence.verdict is verdict, evidence
    applied = {call.request.body} & {entry.body for entry in server.applied}
    assert bool(applied) is (evidence.verdict is Verdict.APPLIED)
    assert [entry.path for entry in server.log].count("/get-active-balance") == 2


@pytest.mark.parametrize("fault", LOST)
@pytest.mark.parametrize("method", WRITES)
def test_check(sync_kind: Sync, authority: Authority, method: str, fault: str) -> None:
    """The evidence is what the server knows."""
    with SandboxServer() as server:
        protocol = prepare(server, method)
        call = WRITES[method](protocol)
        inject(server, fault)
        with sync_kind.open(protocol, authority.trust) as client:
            with pytest.raises(CreduseError) as caught:
                client.run(call, balance_first=True)
            assert caught.value.call is not None
            verify(server, call, client.check(caught.value.call), LOST[fault])


@pytest.mark.parametrize("fault", LOST)
@pytest.mark.parametrize("method", WRITES)
def test_async_check(async_kind: Async, authority: Authority, method: str, fault: str) -> None:
    """The same under an event loop."""

    async def main() -> None:
        async with async_kind.open(protocol, authority.trust) as client:
            with pytest.raises(CreduseError):
                await client.run(call, balance_first=True)
            verify(server, call, await client.check(call), LOST[fault])

    with SandboxServer() as server:
        protocol = prepare(server, method)
        call = WRITES[method](protocol)
        inject(server, fault)
        async_kind.run(main)


def test_other_clock(sync_kind: Sync, authority: Authority) -> None:
    """If the server's clock is another, the evidence says so, and proves nothing."""
    with SandboxServer() as server:
        protocol = prepare(server, "add")
        server.advance(days=0.01)
        inject(server, "apply-then-reset")
        call = protocol.add(USER, 50)
        with sync_kind.open(protocol, authority.trust) as client:
            with pytest.raises(CreduseError):
                client.run(call)
            evidence = client.check(call)
        assert evidence.verdict is Verdict.OPEN
        assert "clock" in evidence.reason
