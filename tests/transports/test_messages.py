"""What the errors of every client say about a connection that is refused."""

import errno
import re

import pytest

from creduse import CreduseError, Outcome, RetryPolicy
from creduse_core import CreduseProtocol
from creduse_sandbox import SandboxServer
from tests.common import KEY, USER
from tests.transports.kinds import Async, Authority, Sync


def make_protocol(server: SandboxServer) -> CreduseProtocol:
    return CreduseProtocol(KEY, server.base_url, retry=RetryPolicy(max_attempts=1))


def verify(server: SandboxServer, error: CreduseError) -> None:
    """The message has the reason that the system gives, and the address."""
    host = re.escape(server.base_url.removeprefix("http://"))
    reason = f"(Errno {errno.ECONNREFUSED}|ECONNREFUSED)"
    assert re.search(rf"{reason}.* \({host}\) \[not applied; ", str(error)), error
    assert error.outcome is Outcome.NOT_APPLIED


def test_refused(sync_kind: Sync, authority: Authority, server: SandboxServer) -> None:
    """A synchronous client says that the connection was refused, and where."""
    protocol = make_protocol(server)
    with (
        sync_kind.open(protocol, authority.trust) as client,
        server.refusing(),
        pytest.raises(CreduseError) as caught,
    ):
        client.run(protocol.add(USER, 1))
    verify(server, caught.value)


def test_refused_async(async_kind: Async, authority: Authority, server: SandboxServer) -> None:
    """An asynchronous client says that the connection was refused, and where."""
    protocol = make_protocol(server)

    async def main() -> None:
        async with async_kind.open(protocol, authority.trust) as client:
            with server.refusing(), pytest.raises(CreduseError) as caught:
                await client.run(protocol.add(USER, 1))
            verify(server, caught.value)

    async_kind.run(main)
