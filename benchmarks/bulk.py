"""``python -m benchmarks.bulk``: what a journal costs a bulk run, and what large files cost.

Three tables: lines a second beside the same client without a journal, in turns; the time to open a
journal after a kill, and to go on; and the memory of runs of files of growing length.
"""

import argparse
import asyncio
import os
import platform
import resource
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Final
from unittest.mock import patch

from benchmarks.__main__ import Process
from creduse_aiohttp import AsyncCreduseClient
from creduse_bulk._driver import Settings
from creduse_bulk._input import Overview
from creduse_bulk._items import Claim, Ended
from creduse_bulk._run import Run
from creduse_bulk._sending import CONCURRENCY, Stop
from creduse_bulk._sqlite import SqliteItems
from creduse_core import AsyncCoreClient, CreduseProtocol, Secret
from creduse_journal import State

KEY: Final = "key-of-a-benchmark"
LEFT: Final = 1000
"""Lines that a run with a full journal still has to send."""


def user(number: int) -> str:
    """Return a user of their own for each line."""
    return f"00000000-0000-4000-8000-{number:012x}"


def write_file(path: Path, lines: int) -> None:
    """Write a file of this length."""
    with path.open("w") as file:
        file.write("end_user_id,amount\n")
        file.writelines(f"{user(number)},{number + 1}\n" for number in range(lines))


def remove_journal(path: Path) -> None:
    """Remove the journal of a file."""
    for name in ("", "-wal", "-shm", "-lock"):
        path.with_name(f"{path.name}.journal{name}").unlink(missing_ok=True)


def client_of(base_url: str) -> AsyncCoreClient:
    """Return the client of all measurements."""
    return AsyncCreduseClient(KEY, base_url=base_url)


# Lines a second


async def alone(_: Path, base_url: str, lines: int, concurrency: int) -> float:
    """Send with the client alone: as many tasks as there are lines in flight."""
    numbers = iter(range(lines))
    async with client_of(base_url) as client:

        async def work() -> None:
            for number in numbers:
                await client.add(user(number), number + 1)

        begun = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(concurrency)))
        return lines / (time.perf_counter() - begun)


class NoJournal:
    """Remembers nothing. It shows what the rest of a run costs."""

    def __init__(self, *_: object) -> None:
        self.close = lambda: None
        self._applied = 0

    def write(self, ended: Sequence[Ended], claims: Sequence[Claim]) -> "Future[set[int]]":
        """Claim all."""
        self._applied += len(ended)
        return _done({claim.number for claim in claims})

    def taken(self, *_: int) -> "Future[set[int]]":
        """Return that all lines are waiting."""
        return _done(set[int]())

    def set_stopped(self, _: str | None) -> "Future[None]":
        """Forget why the run stops."""
        return _done(None)

    def counts(self) -> "Future[dict[State, int]]":
        """Return that all have been applied."""
        return _done(dict.fromkeys(State, 0) | {State.APPLIED: self._applied})


def _done(value: Any) -> "Future[Any]":
    future: Future[Any] = Future()
    future.set_result(value)
    return future


async def bulk(path: Path, base_url: str, lines: int, concurrency: int) -> float:
    """Send as a bulk run does."""
    remove_journal(path)
    async with client_of(base_url) as client:
        with Run(client.protocol, "add", path) as run:
            begun = time.perf_counter()
            settings = Settings(concurrency, None, balance_first=False)
            progress = await run.send_until(Stop(), client, settings, None)
            seconds = time.perf_counter() - begun
    assert progress.applied == lines
    return lines / seconds


async def bulk_without_journal(path: Path, base_url: str, lines: int, concurrency: int) -> float:
    """Send as a bulk run does, but write nothing down."""
    with patch("creduse_bulk._sqlite.SqliteItems", NoJournal):
        return await bulk(path, base_url, lines, concurrency)


WAYS: Final[Mapping[str, Callable[[Path, str, int, int], Coroutine[Any, Any, float]]]] = {
    "the client alone": alone,
    "a run without its journal": bulk_without_journal,
    "a run": bulk,
}


def measure_rates(folder: Path, lines: int, rounds: int) -> None:
    """Print lines a second, and the part of the client's own rate."""
    path = folder / "rate.csv"
    write_file(path, lines)
    server = Process(sys.executable, "server")
    base_url = f"http://127.0.0.1:{server.said}/echo"
    print("| in flight | way | lines a second | part of the client's own rate |\n|---|---|---|---|")
    for concurrency in (16, 32, 64):
        rates: dict[str, list[float]] = {name: [] for name in WAYS}
        for _ in range(rounds):
            for name, send in WAYS.items():
                rates[name].append(asyncio.run(send(path, base_url, lines, concurrency)))
        for name, found in rates.items():
            parts = [it / one for it, one in zip(found, rates["the client alone"], strict=True)]
            low, _, high = quantiles(parts, n=4) if rounds > 1 else parts * 3
            print(
                f"| {concurrency} | {name} | {median(found):,.0f} "
                f"| {median(parts):.2f} ({low:.2f}-{high:.2f}) |",
                flush=True,
            )


# Large files


def fill(path: Path, base_url: str, lines: int) -> None:
    """Make the journal of a run that has sent all lines but the last ones, and kill its process."""
    child = subprocess.run(
        [
            sys.executable,
            "-m",
            "benchmarks.bulk",
            "--child",
            "fill",
            str(path),
            base_url,
            str(lines),
        ],
        check=False,
    )
    assert child.returncode == -signal.SIGKILL


def open_items(run: Run, overview: Overview | None) -> SqliteItems:
    """Open the journal of a run."""
    items = run.place.open(run._identity, Secret(KEY), overview)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    assert isinstance(items, SqliteItems)
    return items


def child_fill(path: Path, base_url: str, lines: int) -> None:
    """Write rows, claim some lines, and die."""
    with Run(CreduseProtocol(KEY, base_url), "add", path) as run:
        items = open_items(run, Overview(lines, 1))

    def insert(database: sqlite3.Connection) -> None:
        database.execute(
            """
            INSERT INTO items (number, state, user, began_at, changed_at, event, status)
            WITH RECURSIVE numbers (n) AS (
                SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < ?
            )
            SELECT n, 'applied', printf('00000000-0000-4000-8000-%012x', n - 1),
                1.7e9 + n, 1.7e9 + n, 'done', 200
            FROM numbers
            """,
            (lines - LEFT,),
        )

    items._database.submit(insert).result()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    claims = [
        Claim(lines - LEFT + n, user(lines - LEFT + n - 1), 1.8e9, None) for n in range(1, 49)
    ]
    assert len(items.write([], claims).result()) == 48
    os.kill(os.getpid(), signal.SIGKILL)


def child_check(path: Path, base_url: str, _: int) -> None:
    """Check a new file."""
    Run(CreduseProtocol(KEY, base_url), "add", path).__exit__(None, None, None)


def child_open(path: Path, base_url: str, _: int) -> None:
    """Open a journal after a kill."""
    with Run(CreduseProtocol(KEY, base_url), "add", path) as run:
        begun = time.perf_counter()
        items = open_items(run, None)
        print(time.perf_counter() - begun)
    items.close()


def child_go_on(path: Path, base_url: str, _: int) -> None:
    """Run a file again, whose last lines are left."""

    async def main() -> None:
        async with client_of(base_url) as client:
            with Run(client.protocol, "add", path) as run:
                settings = Settings(CONCURRENCY, None, balance_first=False)
                progress = await run.send_until(Stop(), client, settings, None)
                assert (progress.waiting, progress.unclear) == (0, 48), progress

    asyncio.run(main())


CHILDREN: Final = {
    "fill": child_fill,
    "check": child_check,
    "open": child_open,
    "go-on": child_go_on,
}


def in_child(what: str, path: Path, base_url: str, lines: int) -> tuple[str, float, float]:
    """Do something in a fresh process. Return what it printed, its seconds, and its peak of MiB."""
    arguments = ["-m", "benchmarks.bulk", "--child", what, str(path), base_url, str(lines)]
    begun = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *arguments], check=True, stdout=subprocess.PIPE, text=True
    )
    seconds = time.perf_counter() - begun
    printed, peak = (
        done.stdout.split("\n")[-3:-1] if "\n" in done.stdout.strip() else ("", done.stdout)
    )
    return printed, seconds, int(peak) / 1024


def measure_sizes(folder: Path, sizes: Sequence[int]) -> None:
    """Print what files of different length cost."""
    server = Process(sys.executable, "server")
    base_url = f"http://127.0.0.1:{server.said}/echo"
    print(
        "| lines | check the file | open the journal after a kill | go on with the last 1,000 lines "
        "| journal |\n|---|---|---|---|---|"
    )
    for lines in sizes:
        path = folder / f"{lines}.csv"
        write_file(path, lines)
        _, checked, check_peak = in_child("check", path, base_url, lines)
        fill(path, base_url, lines)
        opened, _, _ = in_child("open", path, base_url, lines)
        size = sum(it.stat().st_size for it in folder.glob(f"{lines}.csv.journal*"))
        _, gone_on, run_peak = in_child("go-on", path, base_url, lines)
        print(
            f"| {lines:,} | {checked:.1f} s, {check_peak:.0f} MiB | {float(opened):.2f} s "
            f"| {gone_on:.1f} s, {run_peak:.0f} MiB | {size / lines:.0f} bytes a line |",
            flush=True,
        )
        path.unlink()
        remove_journal(path)


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bulk", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--lines", type=int, default=20_000, help="of the file for the rates")
    parser.add_argument(
        "--sizes", type=int, nargs="*", default=[100_000, 1_000_000, 2_000_000, 10_000_000]
    )
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        what, path, base_url, lines = asked.child
        CHILDREN[what](Path(path), base_url, int(lines))
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        return
    print(
        f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, {os.cpu_count()} CPUs\n"
    )
    with tempfile.TemporaryDirectory(dir=".") as folder:
        if asked.rounds:
            measure_rates(Path(folder), asked.lines, asked.rounds)
        print()
        measure_sizes(Path(folder), asked.sizes)


if __name__ == "__main__":
    main()
