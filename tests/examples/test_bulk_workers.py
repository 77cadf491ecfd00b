"""The example of bulk runs under procrastinate. The server's record says what was applied."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

import creduse_bulk
from creduse_bulk import Shard
from creduse_bulk._driver import AHEAD
from creduse_bulk._sending import CONCURRENCY
from creduse_core import Request
from creduse_sandbox import FAULTS, SandboxServer
from tests.common import KEY, wait_until

pytestmark = pytest.mark.slow

pytest.importorskip("procrastinate", reason="procrastinate is not installed")

EXAMPLE = Path(__file__).parents[2] / "examples" / "bulk_workers"
SHARDS = 4
LINES = 2000
BETWEEN = 0.003
"""Seconds between two requests at least, so that no worker sends all shards before another begins."""
IN_THE_MIDDLE = 100
"""After so many requests, a test does something to the worker."""
WAITING = 0.2
"""Seconds between two requests then, so that the shard does not end before it is done."""


def query(url: str, statement: str, *arguments: object) -> list[Any]:
    """Return the rows of a statement."""
    import psycopg  # noqa: PLC0415 - only where it is installed

    with psycopg.connect(url) as connection:
        return connection.execute(statement.encode(), arguments).fetchall()


class Workers:
    """Workers of the example, a file and the service."""

    def __init__(self, url: str, journal: str, folder: Path, server: SandboxServer) -> None:
        self.url, self.journal, self.server = url, journal, server
        self.path = folder / "grants.csv"
        lines = "".join(f"{UUID(int=2**78 + it)},{it}\n" for it in range(1, LINES + 1))
        self.path.write_text(f"end_user_id,amount\n{lines}")
        self._folder = folder
        self._started: list[subprocess.Popen[bytes]] = []
        self._environment = os.environ | {
            "DATABASE_URL": url,
            "BULK_JOURNAL": journal,
            "BULK_STALLED_AFTER": "5",
            "CREDUSE_API_KEY": KEY,
            "CREDUSE_BASE_URL": server.base_url,
            "PROCRASTINATE_APP": "app.app",
        }
        self.run_python("-m", "procrastinate", "schema", "--apply")
        self._waits = False
        requests = count()

        def wait(_: Request) -> bool:
            is_late = next(requests) >= IN_THE_MIDDLE
            time.sleep(WAITING if is_late and self._waits else BETWEEN)
            return False

        server.inject(FAULTS["503"], when=wait)

    def run_python(self, *arguments: str) -> None:
        """Run Python where the example is."""
        subprocess.run([sys.executable, *arguments], cwd=EXAMPLE, env=self._environment, check=True)

    def enqueue(self) -> None:
        """Enqueue the file."""
        self.run_python("-c", f"import app; app.enqueue({str(self.path)!r}, {SHARDS})")

    def start(self) -> "subprocess.Popen[bytes]":
        """Start a worker."""
        with (self._folder / f"worker-{len(self._started)}.log").open("wb") as log:
            worker = subprocess.Popen(
                [sys.executable, "-m", "procrastinate", "worker"],
                cwd=EXAMPLE,
                env=self._environment,
                stderr=log,
            )
        self._started.append(worker)
        return worker

    @contextmanager
    def in_the_middle(self) -> Generator["subprocess.Popen[bytes]"]:
        """Start a worker, wait until it has sent a part of the first shard, and start another one.

        In the block, the first shard does not end.
        """
        self._waits = True
        first = self.start()
        wait_until(lambda: len(self.server.applied) >= IN_THE_MIDDLE)
        self.start()
        yield first
        self._waits = False

    def jobs(self) -> list[tuple[str, int]]:
        """Return the status and the attempts of each job, in the order in which they were enqueued."""
        return query(
            self.url,
            "SELECT status::text, attempts FROM procrastinate_jobs WHERE task_name = 'send_shard' "
            "ORDER BY id",
        )

    def wait_for_jobs(self) -> Counter[str]:
        """Wait until all jobs have ended, and return how many have each status."""
        wait_until(lambda: not {"todo", "doing"} & {status for status, _ in self.jobs()})
        return Counter(status for status, _ in self.jobs())

    def applied(self) -> Counter[int]:
        """Return the amounts that were applied, each once."""
        self.server.settle()
        counts = Counter(json.loads(it.body or b"")["amount"] for it in self.server.applied)
        assert max(counts.values()) == 1
        return counts

    def check(self) -> Counter[str]:
        """Compare the reports with the server's record, and return how many lines have each state."""
        counts = self.applied()
        states: Counter[str] = Counter()
        for number in range(1, SHARDS + 1):
            report = creduse_bulk.report(
                self.path, journal=self.journal or None, shard=Shard(number, SHARDS)
            )
            for line in csv.DictReader(report):
                states[line["state"]] += 1
                if line["state"] != "unclear":
                    assert (counts[int(line["amount"])] == 1) == (line["state"] == "applied")
        return states

    def close(self) -> None:
        """End all workers, and show what they said."""
        for worker in self._started:
            worker.send_signal(signal.SIGCONT)
            worker.terminate()
        for worker in self._started:
            with suppress(subprocess.TimeoutExpired):
                worker.wait(60)
            worker.kill()
            worker.wait()
        for log in sorted(self._folder.glob("worker-*.log")):
            print(f"{log.name}:\n{log.read_text()}")  # noqa: T201 - pytest shows it if a test fails


@pytest.fixture
def workers(postgres_url: str, tmp_path: Path) -> Iterator[Workers]:
    with SandboxServer() as server:
        running = Workers(postgres_url, postgres_url, tmp_path, server)
        try:
            yield running
        finally:
            running.close()


def test_all_sent(workers: Workers) -> None:
    """Two workers share the shards of a file, and send each line once, also if it is enqueued twice."""
    for _ in range(2):
        workers.enqueue()
    for _ in range(2):
        workers.start()
    assert workers.wait_for_jobs() == {"succeeded": 2 * SHARDS}
    assert workers.check() == {"applied": LINES}


def test_killed(workers: Workers) -> None:
    """If a worker is killed, another one takes over. At most the window is unclear."""
    # Its response does not come, so at least this line is unclear.
    workers.server.inject(FAULTS["apply-then-hang"])
    workers.enqueue()
    with workers.in_the_middle() as worker:
        worker.kill()
    assert workers.wait_for_jobs() == {"succeeded": SHARDS - 1, "failed": 1}
    states = workers.check()
    assert 1 <= states["unclear"] <= AHEAD * CONCURRENCY
    assert states["applied"] == LINES - states["unclear"]


def test_stopped(workers: Workers) -> None:
    """SIGTERM stops a worker without an unclear line, and another one does the rest of its job."""
    workers.enqueue()
    with workers.in_the_middle() as worker:
        worker.terminate()
    assert worker.wait() == 0
    assert workers.wait_for_jobs() == {"succeeded": SHARDS}
    assert workers.jobs()[0][1] >= 2
    assert workers.check() == {"applied": LINES}


def test_frozen(workers: Workers) -> None:
    """If a worker is frozen, another one tries to take over. No line is sent twice when it goes on."""
    workers.enqueue()
    with workers.in_the_middle() as worker:
        worker.send_signal(signal.SIGSTOP)
    wait_until(lambda: workers.jobs()[0][1] >= 2)  # taken over, and refused
    worker.send_signal(signal.SIGCONT)
    workers.wait_for_jobs()
    states = workers.check()
    assert states["unclear"] <= AHEAD * CONCURRENCY
    assert states["applied"] == LINES - states["unclear"]


DEFER = """
    SELECT procrastinate_defer_jobs_v1(ARRAY[
        ('default', 'send_shard', 0, NULL, NULL, %s::jsonb, NULL)::procrastinate_job_to_defer_v1
    ])
    FROM generate_series(1, %s)
"""
"""Adds jobs without a lock."""


def test_run_twice(workers: Workers) -> None:
    """Two workers can run the same shard at the same time: one sends, and the other one tries later."""
    for _ in range(2):
        workers.start()
    wait_until(lambda: query(workers.url, "SELECT FROM procrastinate_workers OFFSET 1"))
    arguments = json.dumps({"file": str(workers.path), "number": 1, "count": SHARDS})
    query(workers.url, DEFER, arguments, 2)
    assert workers.wait_for_jobs() == {"succeeded": 2}
    assert max(attempts for _, attempts in workers.jobs()) >= 2
    assert LINES / SHARDS / 2 < len(workers.applied()) < LINES / SHARDS * 2


def test_hopeless(workers: Workers) -> None:
    """A job whose workers have died again and again is not run once more."""
    arguments = json.dumps({"file": str(workers.path), "number": 1, "count": SHARDS})
    query(workers.url, DEFER, arguments, 1)
    query(
        workers.url,
        "UPDATE procrastinate_jobs SET status = 'doing', attempts = 10 RETURNING worker_id",
    )
    workers.start()
    assert workers.wait_for_jobs() == {"failed": 1}
    assert not workers.server.log
