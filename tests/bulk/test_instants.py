"""Runs that are killed, or cancelled, at each instant: each statement of SQLite and each request."""

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import anyio
import pytest

import creduse_aiohttp
import creduse_bulk
import creduse_trio
from creduse_bulk._driver import AHEAD
from creduse_bulk._progress import read_journal
from creduse_sandbox import SandboxServer
from tests.bulk.instants import CONCURRENCY, Instants
from tests.bulk.test_crashes import ROOT, applied, check, settle_some, write_file
from tests.common import KEY

pytestmark = pytest.mark.slow

LINES = 7
SOME = 6
"""Instants in the usual run."""
MOST = 400
"""More than there are."""


def numbers(*, exhaustive: bool) -> list[int]:
    """Return the instants to try: all, until a run ends before, or some."""
    if exhaustive:
        return list(range(1, MOST))
    seed = random.randrange(2**32)  # noqa: S311 - no secret
    print(f"seed {seed}")  # noqa: T201 - to run it again
    return random.Random(seed).sample(range(1, 90), SOME)  # noqa: S311 - no secret


EXTENT = pytest.mark.parametrize(
    "exhaustive",
    [False, pytest.param(True, marks=[pytest.mark.exhaustive, pytest.mark.timeout(900)])],
)


def go_on(path: Path, server: SandboxServer) -> None:
    """Settle what is unclear by the server's record, and send the rest."""
    while True:
        settle_some(path, server, random.Random(1))  # noqa: S311 - no secret
        progress = creduse_bulk.run("add", path, api_key=KEY, base_url=server.base_url)
        if progress.exit_status == 0:
            break
    assert applied(server) == Counter(range(1, LINES + 1))


@EXTENT
def test_killed_at_each_instant(tmp_path: Path, *, exhaustive: bool) -> None:
    """Wherever a run is killed, nothing is sent twice, and no state is wrong."""
    for number in numbers(exhaustive=exhaustive):
        path = tmp_path / f"{number}.csv"
        write_file(path, LINES, LINES - 2)
        with SandboxServer() as server:
            arguments = ["-m", "tests.bulk.instants", str(path), server.base_url, str(number)]
            done = subprocess.run(
                [sys.executable, *arguments],
                cwd=ROOT,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
                check=False,
            )
            assert done.returncode in {0, -signal.SIGKILL}
            if not path.with_name(f"{path.name}.journal").exists():
                assert not server.log
                continue
            server.settle()
            begun = creduse_bulk.run("add", path, api_key=KEY, base_url=server.base_url)
            assert begun.unclear <= AHEAD * CONCURRENCY
            check(path, server)
            go_on(path, server)
            if done.returncode == 0:
                return
    assert not exhaustive


@EXTENT
@pytest.mark.parametrize("client_class", [creduse_aiohttp, creduse_trio])
def test_cancelled_at_each_instant(tmp_path: Path, client_class: Any, *, exhaustive: bool) -> None:
    """Wherever a run is cancelled, nothing is unclear, and the next run sends the rest."""
    for number in numbers(exhaustive=exhaustive):
        path = tmp_path / f"{number}.csv"
        write_file(path, LINES, LINES - 2)
        with SandboxServer() as server:
            backend = "trio" if client_class is creduse_trio else "asyncio"
            ended = anyio.run(cancel_at, number, client_class, path, server, backend=backend)
            server.settle()
            if read_journal(path.with_name(f"{path.name}.journal")) is None:
                assert not server.log
                continue
            progress = creduse_bulk.status(path)
            assert (progress.unclear, progress.in_flight) == (0, 0)
            assert progress.applied == len(server.applied)
            check(path, server)
            go_on(path, server)
            if ended:
                return
    assert not exhaustive


async def cancel_at(number: int, client_class: Any, path: Path, server: SandboxServer) -> bool:
    """Cancel a run at an instant. Return whether it ended before."""
    ended = False

    async def act() -> None:
        nonlocal ended
        async with client_class.AsyncCreduseClient(KEY, base_url=server.base_url) as client:
            await creduse_bulk.run_async(
                instants.watched(client), "add", path, concurrency=CONCURRENCY
            )
        ended = True

    if client_class is creduse_trio:
        import trio  # noqa: PLC0415 - as the other branch

        token = trio.lowlevel.current_trio_token()
        scope = trio.CancelScope()
        instants = Instants(number, lambda: token.run_sync_soon(scope.cancel))
        with instants.watch(), scope:
            await act()
        return ended
    loop = asyncio.get_running_loop()
    instants = Instants(number, lambda: loop.call_soon_threadsafe(task.cancel))
    with instants.watch():
        task = asyncio.ensure_future(act())
        await asyncio.wait([task])
    return ended
