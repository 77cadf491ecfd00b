"""``python -m benchmarks.machines URL``: what a second worker brings where the service is the limit.

Workers send one file to a server that responds after 20 ms. They share a journal in the PostgreSQL database
of this URL, in tables that are removed afterwards. One worker and two take turns.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import Final
from urllib.parse import quote
from uuid import uuid4

import psycopg

from benchmarks.bulk import KEY, write_file

DELAY: Final = 0.02
"""Seconds until the server responds."""


async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Respond to each request of a connection with its body, as ``add`` does."""
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = int(head.partition(b"content-length:")[2].split(b"\r\n", 1)[0])
            body = await reader.readexactly(length)
            await asyncio.sleep(DELAY)
            writer.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
                % (length, body)
            )
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


@contextmanager
def serving() -> Generator[str]:
    """Run the server in a thread, and return its URL."""
    loop, ready = asyncio.new_event_loop(), threading.Event()
    ports: list[int] = []

    async def main() -> None:
        server = await asyncio.start_server(respond, "127.0.0.1", 0)
        ports.append(server.sockets[0].getsockname()[1])
        ready.set()
        async with server:
            await stop.wait()

    stop = asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(main(),))
    thread.start()
    ready.wait()
    yield f"http://127.0.0.1:{ports[0]}"
    loop.call_soon_threadsafe(stop.set)
    thread.join()
    loop.close()


@contextmanager
def schema(url: str) -> Generator[str]:
    """Make a schema of the database, and return its URL. Remove it afterwards."""
    name = f"benchmark_{uuid4().hex}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {name}".encode())
    yield f"{url}{'&' if '?' in url else '?'}options={quote(f'-csearch_path={name}')}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"DROP SCHEMA {name} CASCADE".encode())


def send(file: Path, base_url: str, journal: str, workers: int) -> float:
    """Send a file with some workers. Return the lines a second, with the start of the processes."""
    command = [sys.executable, "-m", "creduse", "bulk", "add", str(file), "--yes", "--json"]
    begun = time.perf_counter()
    processes = [
        subprocess.Popen(
            [*command, "--journal", journal, "--shard", f"{number}/{workers}"],
            env=os.environ | {"CREDUSE_API_KEY": KEY, "CREDUSE_BASE_URL": base_url},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for number in range(1, workers + 1)
    ]
    applied: list[int] = [json.loads(process.communicate()[0])["applied"] for process in processes]
    return sum(applied) / (time.perf_counter() - begun)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.machines", description=__doc__)
    parser.add_argument("url", help="of a PostgreSQL database")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--lines", type=int, default=10_000)
    asked = parser.parse_args()
    rates: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory(dir=".") as folder, serving() as base_url:
        for round_number in range(asked.rounds):
            for workers, found in rates.items():
                file = Path(folder, f"{round_number}-{workers}.csv")
                write_file(file, asked.lines)
                with schema(asked.url) as journal:
                    found.append(send(file, base_url, journal, workers))
    print("| workers | lines a second | times the rate of one |\n|---|---|---|")
    for workers, found in rates.items():
        parts = [it / one for it, one in zip(found, rates[1], strict=True)]
        low, _, high = quantiles(parts, n=4) if asked.rounds > 1 else parts * 3
        print(f"| {workers} | {median(found):,.0f} | {median(parts):.2f} ({low:.2f}-{high:.2f}) |")


if __name__ == "__main__":
    main()
