"""No error holds the API key, nor do the frames of what it came of."""

import traceback
from typing import Any
from uuid import UUID

import pytest

from creduse import RetryPolicy, TransportError
from creduse_core import CreduseProtocol
from creduse_sandbox import FAULTS, SandboxServer

KEY = "sk-secret-0123456789abcdef"
USER = UUID("12345678-1234-5678-1234-567812345678")
ONCE = RetryPolicy(max_attempts=1)
MET = ("apply-then-reset", "request-then-close", "not-http", "request-then-hang")


def held(error: BaseException) -> str:
    """Give all that a tool prints which prints the locals of every frame."""
    assert error.__cause__ is not None
    told = traceback.TracebackException.from_exception(error.__cause__, capture_locals=True)
    return "".join(told.format())


@pytest.mark.parametrize("name", MET)
def test_no_key_in_what_frames_hold(sync_kind: Any, name: str, authority: Any) -> None:
    """Tools that print the locals of every frame do not print the key for an error of a library."""
    with SandboxServer() as server:
        server.order(FAULTS[name])
        protocol = CreduseProtocol(KEY, server.base_url, retry=ONCE, timeout=0.5)
        with (
            sync_kind.open(protocol, authority.trust) as client,
            pytest.raises(TransportError) as caught,
        ):
            client.add(USER, 5)
        assert KEY not in held(caught.value)


@pytest.mark.parametrize("name", MET)
def test_no_key_in_what_async_frames_hold(async_kind: Any, name: str, authority: Any) -> None:
    """The same under an event loop."""

    async def main() -> None:
        protocol = CreduseProtocol(KEY, server.base_url, retry=ONCE, timeout=0.5)
        async with async_kind.connect(authority.trust)(protocol) as client:
            with pytest.raises(TransportError) as caught:
                await client.add(USER, 5)
        assert KEY not in held(caught.value)

    with SandboxServer() as server:
        server.order(FAULTS[name])
        async_kind.run(main)
