"""The conformance kit over every client, plain and over TLS."""

import gc
import re
import weakref
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from creduse_core import CoreClient, CreduseProtocol
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
    check,
    check_async,
    check_async_closing,
    check_async_concurrency,
    check_async_pace,
    check_cancellation,
    check_closing,
    check_concurrency,
    check_interruption,
    check_interruption_on_asyncio,
    check_interruption_on_trio,
    check_pace,
)
from tests.transports.kinds import Async, Authority, Sync

if TYPE_CHECKING:
    from creduse_core import Attempt

# The core judges statuses and bodies (tests/core/test_events.py and test_misread.py). A transport
# passes them on, so the 5xx that no library treats specially have one representative, and none of
# them is repeated over TLS.
ALIKE = re.compile("-meets-(50[124-9]|51[01]|5[0-9]{2}-page)$")
STATUSES = "20[0-9](-error)?|30[0-9]|4[0-9]{2}(-seconds|-date)?|50[0-9]|51[01]|5[0-9]{2}-page"
BODIES = "bad-utf8|wrong-(user|amount)|mistyped-field|missing-field|deep|not-json|gzip(-unsaid)?"
SAME_OVER_TLS = re.compile(f"-meets-({STATUSES}|{BODIES})-over-tls$")
ALL = (
    *(it for it in SCENARIOS if not ALIKE.search(it.name)),
    *(it for it in TLS_SCENARIOS if not SAME_OVER_TLS.search(it.name)),
)
PLAIN_AND_SECURE = pytest.mark.parametrize(
    "certificate",
    [pytest.param(None, id="plain"), pytest.param("good", id="tls", marks=pytest.mark.slow)],
)
SOMETIMES_SECURE = pytest.mark.parametrize(
    "certificate",
    [pytest.param(None, id="plain"), pytest.param("good", id="tls", marks=pytest.mark.exhaustive)],
)


def interruptions(some: Sequence[Interruption]) -> list[Any]:
    """Mark what takes minutes as exhaustive."""
    return [
        pytest.param(
            it, id=str(it), marks=[] if str(it).endswith("with-nothing") else pytest.mark.exhaustive
        )
        for it in some
    ]


@pytest.mark.parametrize("scenario", ALL, ids=str)
def test_conformance(
    sync_kind: Sync, scenario: Scenario, authority: Authority, request: pytest.FixtureRequest
) -> None:
    """Whatever the server does, the call ends as it must, and its outcome is true."""
    # SSLContext.wrap_socket leaks a socket that is reset as soon as it is connected.
    if scenario.certificate and "connect-then-reset" in scenario.name:
        request.getfixturevalue("leaks")
    check(
        scenario,
        lambda protocol: sync_kind.open(protocol, authority.trust),
        ssl_contexts=authority.certificates,
        limits=sync_kind.limits,
    )


@pytest.mark.parametrize("scenario", ALL, ids=str)
def test_async_conformance(
    async_kind: Async, scenario: Scenario, authority: Authority, request: pytest.FixtureRequest
) -> None:
    """The same under an event loop."""
    # So does aiohttp on uvloop.
    if async_kind.loop == "uvloop" and "connect-then-reset" in scenario.name:
        request.getfixturevalue("leaks")

    async def main() -> None:
        await check_async(
            scenario,
            async_kind.connect(authority.trust),
            ssl_contexts=authority.certificates,
            limits=async_kind.limits,
        )

    async_kind.run(main)


@pytest.mark.slow
@PLAIN_AND_SECURE
@pytest.mark.parametrize("level", CONCURRENCY_LEVELS, ids=str)
def test_concurrency(
    sync_kind: Sync, level: ConcurrencyLevel, certificate: str | None, authority: Authority
) -> None:
    """Threads can share a client."""
    check_concurrency(
        level,
        lambda protocol: sync_kind.open(protocol, authority.trust),
        ssl_context=authority.certificate(certificate),
        limits=sync_kind.limits,
    )


@pytest.mark.slow
@PLAIN_AND_SECURE
@pytest.mark.parametrize("level", CONCURRENCY_LEVELS, ids=str)
def test_async_concurrency(
    async_kind: Async, level: ConcurrencyLevel, certificate: str | None, authority: Authority
) -> None:
    """Tasks can share a client."""

    async def main() -> None:
        await check_async_concurrency(
            level,
            async_kind.connect(authority.trust),
            ssl_context=authority.certificate(certificate),
            limits=async_kind.limits,
        )

    async_kind.run(main)


@pytest.mark.slow
@PLAIN_AND_SECURE
@pytest.mark.parametrize("closing", CLOSINGS, ids=str)
def test_closing(
    sync_kind: Sync, closing: Closing, certificate: str | None, authority: Authority
) -> None:
    """A client can be closed while threads call."""
    check_closing(
        closing,
        lambda protocol: sync_kind.open(protocol, authority.trust),
        ssl_context=authority.certificate(certificate),
        limits=sync_kind.limits,
    )


@pytest.mark.slow
@PLAIN_AND_SECURE
@pytest.mark.parametrize("closing", CLOSINGS, ids=str)
def test_async_closing(
    async_kind: Async, closing: Closing, certificate: str | None, authority: Authority
) -> None:
    """A client can be closed while tasks call."""

    async def main() -> None:
        await check_async_closing(
            closing,
            async_kind.connect(authority.trust),
            ssl_context=authority.certificate(certificate),
        )

    async_kind.run(main)


@pytest.mark.slow
@PLAIN_AND_SECURE
@pytest.mark.parametrize("closing", CLOSINGS, ids=str)
def test_closing_with_one_connection(
    narrow_kind: Async, closing: Closing, certificate: str | None, authority: Authority
) -> None:
    """A client can be closed while a call waits for another's connection."""

    async def main() -> None:
        await check_async_closing(
            closing,
            narrow_kind.connect(authority.trust, connections=1),
            ssl_context=authority.certificate(certificate),
        )

    narrow_kind.run(main)


@pytest.mark.slow
def test_pace(sync_kind: Sync, authority: Authority) -> None:
    """While its pace holds calls, a client sends nothing."""
    check_pace(lambda protocol, pace: sync_kind.open(protocol, authority.trust, pace))


@pytest.mark.slow
def test_async_pace(async_kind: Async, authority: Authority) -> None:
    """The same under an event loop, and for calls that are cancelled."""

    async def main() -> None:
        await check_async_pace(
            lambda protocol, pace: async_kind.open(protocol, authority.trust, pace)
        )

    async_kind.run(main)


@pytest.mark.slow
@pytest.mark.usefixtures("leaks")
# An object whose initialization was interrupted may fail as it is collected.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@SOMETIMES_SECURE
@pytest.mark.parametrize("interruption", interruptions(INTERRUPTIONS))
def test_interruption(
    sync_kind: Sync, interruption: Interruption, certificate: str | None, authority: Authority
) -> None:
    """Wherever a signal handler raises, the outcome is true, and the client still works."""
    if Limit.SIGNAL in sync_kind.limits:
        pytest.skip("its library may wait for ever for a lock that a signal has left locked")
    opened: weakref.WeakSet[CoreClient] = weakref.WeakSet()

    @contextmanager
    def connect(protocol: CreduseProtocol) -> Generator[CoreClient]:
        with sync_kind.open(protocol, authority.trust) as client:
            opened.add(client)
            yield client

    check_interruption(
        interruption,
        connect,
        ssl_context=authority.certificate(certificate),
        limits=sync_kind.limits,
    )
    gc.collect()
    assert not opened, "a client that the check has kept warns of its sockets in another test"


@pytest.mark.slow
@pytest.mark.usefixtures("leaks")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@SOMETIMES_SECURE
@pytest.mark.parametrize(
    "interruption", interruptions([it for it in INTERRUPTIONS if not it.alarm])
)
def test_async_interruption(
    narrow_kind: Async, interruption: Interruption, certificate: str | None, authority: Authority
) -> None:
    """The same under an event loop."""
    if narrow_kind.loop == "uvloop":
        pytest.skip("its steps cannot be counted")
    check = (
        check_interruption_on_trio if narrow_kind.loop == "trio" else check_interruption_on_asyncio
    )
    check(
        interruption,
        narrow_kind.connect(authority.trust, connections=1),
        ssl_context=authority.certificate(certificate),
    )


@PLAIN_AND_SECURE
@pytest.mark.parametrize("cancellation", CANCELLATIONS, ids=str)
def test_cancellation(
    narrow_kind: Async, cancellation: Cancellation, certificate: str | None, authority: Authority
) -> None:
    """Wherever a call is cancelled, the outcome is true, and the client still works."""
    heard: list[Attempt] = []

    async def main() -> None:
        before = narrow_kind.tasks()
        calls = await check_cancellation(
            cancellation,
            narrow_kind.connect(authority.trust, heard.append, connections=1),
            ssl_context=authority.certificate(certificate),
        )
        for call in calls:
            assert all(attempt in heard for attempt in call.attempts)
        assert narrow_kind.tasks() == before

    narrow_kind.run(main)
    gc.collect()  # what was left open warns now, and a warning is an error
