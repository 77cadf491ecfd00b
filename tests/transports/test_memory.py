"""Memory does not grow with connections, failures, cancellations and timeouts.

A benchmark of warm calls on one connection cannot see that. The server is that of ``nox -s soak``,
since it runs in a process of its own: what it remembers does not count.
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
from tests.soak.plans import Cancel, Script, muster
from tests.soak.run import Note, Server, make_certificate
from tests.transports.kinds import Async, Sync

WARM, MORE = 300, 1000
AT_ONCE = 5
TIMEOUT = 0.5
"""Seconds. Event loops keep the deadlines of calls that are over until they have passed."""
AT_MOST = 0.5
"""Blocks of memory for each call: a leak of one object in every call makes one or more."""
ROUNDS = 4
"""What leaks does so in each of them; what a busy machine puts off is there in one or two."""
IN_UVLOOP = "uvloop keeps what is cancelled in a TLS handshake, whoever makes the request"


class Fate(NamedTuple):
    """What happens to each call."""

    faults: tuple[str, ...]
    """One call after the other has one of these."""
    timeout: float = TIMEOUT
    cancel: bool = False

    @property
    def interrupts(self) -> bool:
        """Return whether a call can end in the middle of a handshake."""
        return self.cancel or self.timeout < TIMEOUT


FATES = {
    "new-connections": Fate(("connection-close",)),
    "failures": Fate(
        ("reset", "apply-then-close", "cut-body-then-reset", "408-then-close", "302", "then-close")
    ),
    "refusals": Fate(("402", "429", "503", "apply-then-not-json", "twice", "surplus-402")),
    "timeouts": Fate(("apply-then-hang", "drip-head", "drip-body"), timeout=0.005),
    "cancellations": Fate(("apply-then-hang", "none", "slow"), cancel=True),
}
SYNC_FATES = {name: fate for name, fate in FATES.items() if not fate.cancel}


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


def made(protocol: CreduseProtocol, number: int, fate: Fate) -> Call[Any]:
    fault = fate.faults[number % len(fate.faults)]
    user = Script(number, (fault, fault, fault), number % 256).encode()
    return protocol.subtract(user, 1 + number, timeout=fate.timeout)


def blocks() -> int:
    for _ in range(3):
        gc.collect()
    return sys.getallocatedblocks()


def cancel(number: int) -> Cancel:
    """Return when to cancel a call: after so many steps of the loop, or so much time."""
    return Cancel(*(("steps", number % 40) if number % 2 else ("seconds", number % 40 / 10_000)))


def grows(counts: list[int]) -> bool:
    return counts[-1] - counts[-2] >= AT_MOST * MORE


@pytest.mark.once
@pytest.mark.timeout(300)
@pytest.mark.parametrize("fate", SYNC_FATES.values(), ids=SYNC_FATES)
def test_growth_of_synchronous_clients(
    sync_kind: Sync, fate: Fate, server: Server, tmp_path: Path
) -> None:
    """A synchronous client does not grow over a thousand connections and faults."""
    trust = ssl.create_default_context(cafile=tmp_path / "ca.pem" if "s:" in server.url else None)
    with sync_kind.open(protocol(server), trust) as client:

        def calls(first: int, last: int) -> int:
            for number in range(first, last):
                with suppress(CreduseError):
                    client.run(made(client.protocol, number, fate))
            return blocks()

        counts = [calls(0, WARM)]
        for first in range(WARM, WARM + ROUNDS * MORE, MORE):
            counts.append(calls(first, first + MORE))
            if not grows(counts):
                return
        pytest.fail(f"blocks of memory, every {MORE} calls: {counts}")


@pytest.mark.once
@pytest.mark.timeout(300)
@pytest.mark.parametrize("fate", FATES.values(), ids=FATES)
def test_growth_of_asynchronous_clients(
    async_kind: Async, fate: Fate, server: Server, tmp_path: Path
) -> None:
    """An asynchronous client does not grow either, with cancellations too."""
    tls = server.url.startswith("https:")
    if async_kind.loop == "uvloop" and tls and fate.interrupts:
        pytest.skip(IN_UVLOOP)
    trust = ssl.create_default_context(cafile=tmp_path / "ca.pem" if tls else None)
    style = Trio() if async_kind.loop == "trio" else Asyncio(asyncio.new_event_loop)

    note = Note(muster(0))

    async def main() -> None:
        async with async_kind.connect(trust)(protocol(server)) as client:

            async def run(call: Call[Any]) -> None:
                with suppress(CreduseError):
                    await client.run(call)

            async def one(number: int) -> None:
                calling = partial(run, made(client.protocol, number, fate))
                await (
                    style.cancelling(calling, cancel(number), note) if fate.cancel else calling()
                )

            async def calls(first: int, last: int) -> int:
                for number in range(first, last, AT_ONCE):
                    await style.together([partial(one, number + n) for n in range(AT_ONCE)])
                await style.sleep(2 * TIMEOUT)
                return blocks()

            counts = [await calls(0, WARM)]
            for first in range(WARM, WARM + ROUNDS * MORE, MORE):
                counts.append(await calls(first, first + MORE))
                if not grows(counts):
                    return
            pytest.fail(f"blocks of memory, every {MORE} calls: {counts}")

    async_kind.run(main)
