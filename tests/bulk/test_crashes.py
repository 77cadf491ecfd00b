"""Runs whose process is killed or stopped. The server's record says what was applied."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from uuid import UUID

import pytest

import creduse_bulk
from creduse_bulk._driver import AHEAD
from creduse_bulk._progress import place_of, read_journal
from creduse_bulk._resolve import Decision, Resolution
from creduse_core import CreduseProtocol
from creduse_journal import Change, InUseError, JournalError
from creduse_sandbox import FAULTS, SandboxServer
from tests.common import KEY

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
CONCURRENCY = 8


def user(number: int) -> UUID:
    """Return a user of this test."""
    return UUID(int=0x4000_8000_0000_0000_0000 + number)


def write_file(path: Path, items: int, users: int) -> None:
    """Write a file in which each line has an amount of its own."""
    lines = [f"{user(number % users)},{number + 1}\n" for number in range(items)]
    path.write_text("end_user_id,amount\n" + "".join(lines))


def start(
    method: str,
    path: Path,
    server: SandboxServer,
    journal: str | None = None,
    *more: str,
) -> "subprocess.Popen[str]":
    """Start the worker, with ``more`` of its arguments."""
    arguments = [method, str(path), server.base_url, str(CONCURRENCY), *more]
    if journal is not None:
        arguments += ["--journal", journal]
    return subprocess.Popen(
        [sys.executable, "-m", "tests.bulk.worker", *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until_sending(process: "subprocess.Popen[str]") -> None:
    """Wait until something is in flight, or the worker has ended."""
    assert process.stdout is not None
    process.stdout.readline()


def end(process: "subprocess.Popen[str]") -> int:
    """Wait until the worker has ended, and return its exit status."""
    _, errors = process.communicate()
    assert "Traceback" not in errors, errors
    return process.returncode


def applied(server: SandboxServer) -> Counter[int]:
    """Return how often each line's amount was applied, by the server's record."""
    return Counter(json.loads(entry.body or b"")["amount"] for entry in server.applied)


def states(path: Path, journal: str | None = None) -> dict[int, str]:
    """Return the state of each line, by its amount."""
    lines = csv.DictReader(creduse_bulk.report(path, journal=journal))
    return {int(line["amount"]): line["state"] for line in lines}


def check(path: Path, server: SandboxServer, journal: str | None = None) -> Counter[str]:
    """Compare the report with the server's record, and return how many lines have each state."""
    counts, found = applied(server), states(path, journal)
    assert max(counts.values(), default=0) <= 1
    for amount, state in found.items():
        if state != "unclear":
            assert (counts[amount] == 1) == (state == "applied"), (amount, state)
    return Counter(found.values())


def settle_some(
    path: Path, server: SandboxServer, dice: random.Random, journal: str | None = None
) -> int:
    """Settle most unclear lines, as a person does who knows the record. Return how many are left."""
    counts = applied(server)
    with Resolution(CreduseProtocol(KEY, server.base_url), path, journal) as resolution:
        chosen = [it for it in resolution.unclear if dice.random() < 0.8]
        resolution.settle(
            Decision(
                it.item.number,
                Change.SETTLE_APPLIED if counts[it.item.number] else Change.SETTLE_FREE,
                "the server's record",
            )
            for it in chosen
        )
        return len(resolution.unclear) - len(chosen)


@pytest.mark.parametrize("method", ["add", "subtract"])
@pytest.mark.parametrize(
    ("kills", "items"),
    [(3, 400), pytest.param(50, 6000, marks=[pytest.mark.exhaustive, pytest.mark.timeout(1800)])],
)
def test_killed(tmp_path: Path, journal: str | None, method: str, kills: int, items: int) -> None:
    """However often it is killed, nothing is applied twice, no state is wrong, and all is sent."""
    seed = random.randrange(2**32)  # noqa: S311 - no secret
    print(f"seed {seed}")  # noqa: T201 - to run it again
    dice = random.Random(seed)  # noqa: S311 - no secret
    path = tmp_path / "file.csv"
    users = items // 3
    write_file(path, items, users)
    with SandboxServer() as server:
        if method == "subtract":  # one user in three has too few credits for most lines
            for number in range(users):
                server.direct.add(user(number), items if number % 3 == 0 else 9 * items)
        unclear = lost = 0
        for number in range(kills):
            for fault in ("apply-then-reset", "request-then-reset", "503"):
                server.inject(FAULTS[fault], 2, when=lambda _: dice.random() < 0.02)
            if number % 10 == 0:  # it slows a run down
                server.inject(FAULTS["429"], when=lambda _: dice.random() < 0.02)
            process = start(method, path, server, journal)
            if dice.random() < 0.9:  # else it can be killed before
                wait_until_sending(process)
            time.sleep(dice.random() * 0.25)
            process.kill()
            process.communicate()
            server.settle()
            if read_journal(place_of(path, journal, None)) is None:
                continue
            lost_before, lost = lost, sum(entry.fault is not None for entry in server.log)
            found = check(path, server, journal)
            # At most the window, and those that met a fault.
            assert found["unclear"] <= unclear + AHEAD * CONCURRENCY + lost - lost_before, number
            unclear = settle_some(path, server, dice, journal)
        found = Counter({"waiting": items})
        while found["unclear"] or found["waiting"]:
            end(start(method, path, server, journal))
            server.settle()
            settle_some(path, server, dice, journal)
            found = check(path, server, journal)
        assert found["applied"] + found["refused"] == items
        assert found["refused"] == 0 or method == "subtract"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped(tmp_path: Path, journal: str | None, number: signal.Signals) -> None:
    """A signal stops a run without a single unclear line, and the next run goes on."""
    path = tmp_path / "file.csv"
    write_file(path, 3000, 3000)
    with SandboxServer() as server:
        process = start("add", path, server, journal)
        wait_until_sending(process)
        process.send_signal(number)
        assert end(process) == 75
        found = check(path, server, journal)
        assert found["unclear"] == 0
        assert found["waiting"] > 0
        assert found["applied"] == len(server.applied)
        assert end(start("add", path, server, journal)) == 0
        assert check(path, server, journal) == {"applied": 3000}


def test_stopped_twice(tmp_path: Path, journal: str | None) -> None:
    """The second signal does not wait for responses. What was in flight is unclear, and nothing else."""
    path = tmp_path / "file.csv"
    write_file(path, 100, 100)
    with SandboxServer() as server:
        server.inject(FAULTS["apply-then-hang"], 1)
        process = start("add", path, server, journal)
        wait_until_sending(process)
        while len(server.applied) < 1:
            time.sleep(0.01)
        for _ in range(2):
            process.send_signal(signal.SIGTERM)
            time.sleep(0.5)
        assert end(process) in {3, 75}  # others may be done by then
        found = check(path, server, journal)
        assert 1 <= found["unclear"] <= AHEAD * CONCURRENCY


def test_two_processes(tmp_path: Path, journal: str | None) -> None:
    """A second run of the same file is refused while the first goes on, and anybody can look."""
    path = tmp_path / "file.csv"
    write_file(path, 3000, 3000)
    with SandboxServer() as server:
        process = start("add", path, server, journal)
        wait_until_sending(process)
        progress = creduse_bulk.status(path, journal=journal)
        assert progress.waiting > 0
        assert progress.unclear == 0
        with pytest.raises(InUseError, match="is in use"):
            creduse_bulk.run("add", path, journal=journal, api_key=KEY, base_url=server.base_url)
        assert end(process) == 0
        assert check(path, server, journal) == {"applied": 3000}


def test_killed_between(tmp_path: Path, journal: str | None) -> None:
    """Claims of a process that died are unclear, in the report and for the next run."""
    path = tmp_path / "file.csv"
    write_file(path, 500, 500)
    with SandboxServer() as server:
        server.inject(FAULTS["apply-then-hang"], 4)
        process = start("add", path, server, journal)
        wait_until_sending(process)
        while len(server.applied) < 4:
            time.sleep(0.01)
        process.kill()
        process.communicate()
        found = check(path, server, journal)
        assert found["unclear"] >= 4
        while creduse_bulk.status(path, journal=journal).is_going_on:  # the server finds out soon
            time.sleep(0.01)
        assert creduse_bulk.status(path, journal=journal).unclear == found["unclear"]
        assert end(start("add", path, server, journal)) == 3
        assert check(path, server, journal)["unclear"] == found["unclear"]


def test_another_run(tmp_path: Path, journal: str | None) -> None:
    """A journal is that of one file, one call, one service and one key. Others are refused."""
    path = tmp_path / "file.csv"
    write_file(path, 3, 3)
    with SandboxServer() as server, SandboxServer() as other:

        def run(method: str = "add", base_url: str = server.base_url, key: str = KEY) -> None:
            creduse_bulk.run(method, path, journal=journal, api_key=key, base_url=base_url)

        run()
        with pytest.raises(JournalError, match="it is that of add, not of start_cycle"):
            run("start_cycle")
        with pytest.raises(JournalError, match="the run began at http"):
            run(base_url=other.base_url)
        with pytest.raises(JournalError, match="another API key") as caught:
            run(key="another-key")
        assert "another-key" not in str(caught.value)
        path.write_text(path.read_text().replace(",3", ",4"))
        with pytest.raises(JournalError, match="the file was changed since the run began"):
            run()
        assert (len(server.applied), len(other.log)) == (3, 0)


def test_owner_of_the_journal(tmp_path: Path, journal: str | None) -> None:
    """Whoever owns the journal keeps a run out."""
    path = tmp_path / "file.csv"
    write_file(path, 3, 3)
    with SandboxServer() as server:
        creduse_bulk.run("add", path, journal=journal, api_key=KEY, base_url=server.base_url)
        protocol = CreduseProtocol(KEY, server.base_url)
        with (
            Resolution(protocol, path, journal),
            pytest.raises(InUseError, match="is in use: another process"),
        ):
            creduse_bulk.run("add", path, journal=journal, api_key=KEY, base_url=server.base_url)
