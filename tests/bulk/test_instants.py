"""Runs that are killed, cancelled, or cut off from their database, at each instant.

These are before and after each statement of the database, and each request.
"""

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import anyio
import pytest

import creduse_aiohttp
import creduse_bulk
import creduse_trio
from creduse_bulk._driver import AHEAD
from creduse_bulk._progress import place_of, read_journal
from creduse_journal import UnavailableError
from creduse_sandbox import SandboxServer
from tests.bulk.instants import CONCURRENCY, Instants
from tests.bulk.test_crashes import ROOT, applied, check, settle_some, states, write_file
from tests.common import KEY
from tests.cuts import CUTS, named

pytestmark = pytest.mark.slow

LINES = 7
SOME = 6
"""Instants in the usual run."""
USUAL = {"sqlite": 90, "postgres": 130}
"""About as many as there are."""
MOST = 400
"""More than there are."""


def numbers(journal: str | None, *, exhaustive: bool) -> list[int]:
    """Return the instants to try: all, until a run ends before, or some."""
    if exhaustive:
        return list(range(1, MOST))
    seed = random.randrange(2**32)  # noqa: S311 - no secret
    print(f"seed {seed}")  # noqa: T201 - to run it again
    usual = USUAL["sqlite" if journal is None else "postgres"]
    return random.Random(seed).sample(range(1, usual), SOME)  # noqa: S311 - no secret


EXTENT = pytest.mark.parametrize(
    "exhaustive",
    [False, pytest.param(True, marks=[pytest.mark.exhaustive, pytest.mark.timeout(900)])],
)


def has_begun(path: Path, journal: str | None) -> bool:
    """Return whether the run of the file has begun."""
    return read_journal(place_of(path, journal, None)) is not None


def go_on(path: Path, server: SandboxServer, journal: str | None) -> None:
    """Settle what is unclear by the server's record, and send the rest."""
    while True:
        if has_begun(path, journal):
            settle_some(path, server, random.Random(1), journal)  # noqa: S311 - no secret
        progress = creduse_bulk.run(
            "add", path, journal=journal, api_key=KEY, base_url=server.base_url
        )
        if progress.exit_status == 0:
            break
    assert applied(server) == Counter(range(1, LINES + 1))


@EXTENT
def test_killed_at_each_instant(tmp_path: Path, journal: str | None, *, exhaustive: bool) -> None:
    """Wherever a run is killed, nothing is sent twice, and no state is wrong."""
    for number in numbers(journal, exhaustive=exhaustive):
        path = tmp_path / f"{number}.csv"
        write_file(path, LINES, LINES - 2)
        with SandboxServer() as server:
            arguments = ["-m", "tests.bulk.instants", str(path), server.base_url, str(number)]
            done = subprocess.run(
                [sys.executable, *arguments, *([] if journal is None else [journal])],
                cwd=ROOT,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
                check=False,
            )
            assert done.returncode in {0, -signal.SIGKILL}
            if not has_begun(path, journal):
                assert not server.log
                continue
            server.settle()
            begun = creduse_bulk.run(
                "add", path, journal=journal, api_key=KEY, base_url=server.base_url
            )
            assert begun.unclear <= AHEAD * CONCURRENCY
            check(path, server, journal)
            go_on(path, server, journal)
            if done.returncode == 0:
                return
    assert not exhaustive


@EXTENT
@pytest.mark.parametrize("client_class", [creduse_aiohttp, creduse_trio])
def test_cancelled_at_each_instant(
    tmp_path: Path, journal: str | None, client_class: Any, *, exhaustive: bool
) -> None:
    """Wherever a run is cancelled, nothing is unclear, and the next run sends the rest."""
    for number in numbers(journal, exhaustive=exhaustive):
        path = tmp_path / f"{number}.csv"
        write_file(path, LINES, LINES - 2)
        with SandboxServer() as server:
            backend = "trio" if client_class is creduse_trio else "asyncio"
            ended = anyio.run(
                cancel_at, number, client_class, path, server, journal, backend=backend
            )
            server.settle()
            if not has_begun(path, journal):
                assert not server.log
                continue
            progress = creduse_bulk.status(path, journal=journal)
            assert (progress.unclear, progress.in_flight) == (0, 0)
            assert progress.applied == len(server.applied)
            check(path, server, journal)
            go_on(path, server, journal)
            if ended:
                return
    assert not exhaustive


async def cancel_at(
    number: int, client_class: Any, path: Path, server: SandboxServer, journal: str | None
) -> bool:
    """Cancel a run at an instant. Return whether it ended before."""
    ended = False

    async def act() -> None:
        nonlocal ended
        await send(instants, client_class, path, server, journal)
        ended = True

    if client_class is creduse_trio:
        import trio  # noqa: PLC0415 - as the other branch

        token = trio.lowlevel.current_trio_token()
        scope = trio.CancelScope()
        instants = Instants(number, lambda _: token.run_sync_soon(scope.cancel))
        with instants.watch(), scope:
            await act()
        return ended
    loop = asyncio.get_running_loop()
    instants = Instants(number, lambda _: loop.call_soon_threadsafe(task.cancel))
    with instants.watch():
        task = asyncio.ensure_future(act())
        await asyncio.wait([task])
    return ended


async def send(
    instants: Instants, client_class: Any, path: Path, server: SandboxServer, journal: str | None
) -> creduse_bulk.Progress:
    """Send the file with a client whose requests are counted."""
    async with client_class.AsyncCreduseClient(KEY, base_url=server.base_url) as client:
        return await creduse_bulk.run_async(
            instants.watched(client), "add", path, journal=journal, concurrency=CONCURRENCY
        )


@EXTENT
@pytest.mark.parametrize("cut", CUTS)
def test_cut_at_each_instant(
    tmp_path: Path, postgres_url: str, cut: str, *, exhaustive: bool
) -> None:
    """Wherever a run is cut off from its database, it goes on by itself, and delivers everything."""
    for number in numbers(postgres_url, exhaustive=exhaustive):
        path = tmp_path / f"{number}.csv"
        write_file(path, LINES, LINES - 2)
        name = f"cut-{uuid4()}"
        instants = Instants(number, partial(CUTS[cut], postgres_url, name))
        with SandboxServer() as server:
            url = named(postgres_url, name)
            try:
                with instants.watch():
                    progress = anyio.run(send, instants, creduse_aiohttp, path, server, url)
            except UnavailableError:  # it was opening the journal
                assert not server.log
                go_on(path, server, postgres_url)
                continue
            assert (progress.applied, progress.stopped) == (LINES, None), number
            assert applied(server) == Counter(range(1, LINES + 1))
            assert set(states(path, postgres_url).values()) == {"applied"}
            if not instants.is_over:
                return
    assert not exhaustive
