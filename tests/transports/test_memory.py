"""Memory does not grow with connections, failures, cancellations and timeouts.

The server is that of ``nox -s soak``. It runs in its own process, so its memory does not count.
"""

import asyncio
import gc
import ssl
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from creduse import CreduseError, RetryPolicy
from creduse_core import Call, CreduseProtocol
from tests.soak.drivers import Asyncio, Trio
from tests.soak.plans import Cancel, Script, full_pool
from tests.soak.run import CallRecord, Server, make_certificate
from tests.transports.kinds import Async, Sync

WARM, MORE = 300, 1000
AT_ONCE = 5
TIMEOUT = 0.5
"""Seconds. Event loops keep the deadline of an ended call until it passes."""
AT_MOST = 0.5
"""Blocks of memory for each call: a leak of one object in every call makes one or more."""
ROUNDS = 4
"""A leak shows in each of them. A delay of a busy machine shows in one or two."""
IN_UVLOOP = "uvloop keeps the objects of a cancelled TLS handshake, with any client"
IN_AIOHTTP = (
    "aiohttp's own connector leaves the socket of a cancelled TLS handshake, with any client"
)


class Use(NamedTuple):
    """What happens to each call."""

    faults: tuple[str, ...]
    """The calls have these in turn."""
    timeout: float = TIMEOUT
    cancel: bool = False

    @property
    def interrupts(self) -> bool:
        """Return whether a call can end in the middle of a handshake."""
        return self.cancel or self.timeout < TIMEOUT


USES = {
    "new-connections": Use(("connection-close",)),
    "failures": Use(
        ("reset", "apply-then-close", "cut-body-then-reset", "408-then-close", "302", "then-close")
    ),
    "refusals": Use(("402", "429", "503", "apply-then-not-json", "twice", "surplus-402")),
    "timeouts": Use(("apply-then-hang", "drip-head", "drip-body"), timeout=0.005),
    "cancellations": Use(("apply-then-hang", "none", "slow"), cancel=True),
}
SYNC_USES = {name: use for name, use in USES.items() if not use.cancel}


@pytest.fixture(params=["plain", pytest.param("tls", marks=pytest.mark.exhaustive)])
def server(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Server]:
    monkeypatch.setenv("SSL_CERT_FILE", "")
    server = Server(0, 0, make_certificate(tmp_path) if request.param == "tls" else None)
    yield server
    server.close()


def protocol(server: Server) -> CreduseProtocol:
    return CreduseProtocol(
        "sk-test", server.url, retry=RetryPolicy(max_attempts=1, attempt_timeout=TIMEOUT)
    )


def made(protocol: CreduseProtocol, number: int, use: Use) -> Call[Any]:
    fault = use.faults[number % len(use.faults)]
    user = Script(number, (fault, fault, fault), number % 256).encode()
    return protocol.subtract(user, 1 + number, timeout=use.timeout)


def blocks() -> int:
    for _ in range(3):
        gc.collect()
    return sys.getallocatedblocks()


def cancel(number: int) -> Cancel:
    """Return when to cancel a call: after so many steps of the loop, or so much time."""
    return Cancel(*(("steps", number % 40) if number % 2 else ("seconds", number % 40 / 10_000)))


def grows(counts: list[int]) -> bool:
    return counts[-1] - counts[-2] >= AT_MOST * MORE


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("use", SYNC_USES.values(), ids=SYNC_USES)
def test_growth_of_synchronous_clients(
    sync_kind: Sync, use: Use, server: Server, tmp_path: Path
) -> None:
    """A synchronous client does not grow over a thousand connections and faults."""
    trust = ssl.create_default_context(cafile=tmp_path / "ca.pem" if "s:" in server.url else None)
    with sync_kind.open(protocol(server), trust) as client:

        def calls(first: int, last: int) -> int:
            for number in range(first, last):
                with suppress(CreduseError):
                    client.run(made(client.protocol, number, use))
            return blocks()

        counts = [calls(0, WARM)]
        for first in range(WARM, WARM + ROUNDS * MORE, MORE):
            counts.append(calls(first, first + MORE))
            if not grows(counts):
                return
        pytest.fail(f"blocks of memory, every {MORE} calls: {counts}")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_growth_of_asynchronous_clients(
    async_kind: Async, use: Use, server: Server, tmp_path: Path
) -> None:
    """An asynchronous client does not grow either, with cancellations too."""
    tls = server.url.startswith("https:")
    if async_kind.loop == "uvloop" and tls and use.interrupts:
        pytest.skip(IN_UVLOOP)
    if async_kind.name == "aiohttp-asyncio-supplied" and tls and use.interrupts:
        pytest.skip(IN_AIOHTTP)
    trust = ssl.create_default_context(cafile=tmp_path / "ca.pem" if tls else None)
    loop = Trio() if async_kind.loop == "trio" else Asyncio(asyncio.new_event_loop)

    record = CallRecord(full_pool(0))

    async def main() -> None:
        async with async_kind.connect(trust)(protocol(server)) as client:

            async def run(call: Call[Any]) -> None:
                with suppress(CreduseError):
                    await client.run(call)

            async def one(number: int) -> None:
                calling = partial(run, made(client.protocol, number, use))
                await (
                    loop.run_and_cancel(calling, cancel(number), record)
                    if use.cancel
                    else calling()
                )

            async def calls(first: int, last: int) -> int:
                for number in range(first, last, AT_ONCE):
                    await loop.run_all([partial(one, number + n) for n in range(AT_ONCE)])
                await loop.sleep(2 * TIMEOUT)
                return blocks()

            counts = [await calls(0, WARM)]
            for first in range(WARM, WARM + ROUNDS * MORE, MORE):
                counts.append(await calls(first, first + MORE))
                if not grows(counts):
                    return
            pytest.fail(f"blocks of memory, every {MORE} calls: {counts}")

    async_kind.run(main)
