"""Workers of a run in PostgreSQL that are killed, frozen, or cut off. The server's record says what was applied."""

import random
import signal
import time
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import psycopg
import pytest

import creduse_bulk
from creduse_bulk import Shard
from creduse_bulk._driver import AHEAD
from creduse_bulk._progress import place_of, read_journal
from creduse_bulk._resolve import Decision, Resolution
from creduse_core import CreduseProtocol, Request
from creduse_journal import Change, LostError, postgres
from creduse_sandbox import FAULTS, SandboxServer
from tests.bulk.conftest import begin_run, claim, ended
from tests.bulk.test_crashes import (
    CONCURRENCY,
    applied,
    check,
    end,
    settle_some,
    start,
    wait_until_sending,
    write_file,
)
from tests.common import KEY, wait_until
from tests.cuts import Proxy, named, terminate
from tests.postgres import Cluster, find_programs

if TYPE_CHECKING:
    import subprocess

pytestmark = pytest.mark.slow

SHARDS = ("1/2", "2/2")
WINDOW = AHEAD * CONCURRENCY
LINES = 900
BETWEEN = 0.002
"""Seconds between two requests at least, so that a run does not end before somebody disturbs it."""

ROUNDS = pytest.mark.parametrize(
    "rounds",
    [2, pytest.param(25, marks=[pytest.mark.exhaustive, pytest.mark.timeout(1800)])],
)


@pytest.fixture
def dice() -> random.Random:
    """What decides in random tests."""
    seed = random.randrange(2**32)  # noqa: S311 - no secret
    print(f"seed {seed}")  # noqa: T201 - to run it again
    return random.Random(seed)  # noqa: S311 - no secret


@contextmanager
def slow_server() -> Generator[SandboxServer]:
    """A sandbox that takes its time."""

    def wait(_: Request) -> bool:
        time.sleep(BETWEEN)
        return False

    with SandboxServer() as server:
        server.inject(FAULTS["503"], when=wait)
        yield server


@pytest.fixture
def server() -> Iterator[SandboxServer]:
    """A sandbox that takes its time."""
    with slow_server() as server:
        yield server


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The input file."""
    path = tmp_path / "file.csv"
    write_file(path, LINES, LINES)
    return path


def ended_with(process: "subprocess.Popen[str]") -> tuple[int, str]:
    """Wait until a worker has ended, and return its exit status and what it said."""
    _, errors = process.communicate()
    assert "Traceback" not in errors, errors
    return process.returncode, errors


def go_on(
    path: Path, server: SandboxServer, journal: str, dice: random.Random, lines: int = LINES
) -> None:
    """Send the rest, and settle what is unclear by the server's record, until all is applied."""
    found = Counter({"waiting": 1})
    while found["unclear"] or found["waiting"]:
        end(start("add", path, server, journal))
        server.settle()
        settle_some(path, server, dice, journal)
        found = check(path, server, journal)
    assert applied(server) == Counter(range(1, lines + 1))


def kill(process: "subprocess.Popen[str]") -> None:
    """Kill a worker."""
    process.kill()
    process.communicate()


@ROUNDS
def test_killed_again_and_again(
    path: Path, server: SandboxServer, postgres_url: str, dice: random.Random, rounds: int
) -> None:
    """However often workers of two shards are killed, nothing is sent twice, and no state is wrong."""
    unclear, lines = 0, LINES // 2 * rounds
    write_file(path, lines, lines // 2)
    for _ in range(rounds):
        workers = [start("add", path, server, postgres_url, "--shard", it) for it in SHARDS]
        for worker in workers:
            if dice.random() < 0.9:  # else it can be killed before
                wait_until_sending(worker)
        time.sleep(dice.random() * 0.2)
        number = dice.randrange(2)
        kill(workers[number])
        time.sleep(dice.random() * 0.1)
        workers[number] = start("add", path, server, postgres_url, "--shard", SHARDS[number])
        if dice.random() < 0.7:
            wait_until_sending(workers[number])
        time.sleep(dice.random() * 0.1)
        for worker in workers:
            kill(worker)
        server.settle()
        if read_journal(place_of(path, postgres_url, None)) is None:
            continue
        found = check(path, server, postgres_url)
        assert found["unclear"] <= unclear + 3 * WINDOW
        unclear = settle_some(path, server, dice, postgres_url)
    workers = [start("add", path, server, postgres_url, "--shard", it) for it in SHARDS]
    for worker in workers:
        assert end(worker) in {0, 3}
    go_on(path, server, postgres_url, dice, lines)


@pytest.mark.parametrize(
    ("how", "shard", "finishes", "stays"),
    [
        ("terminated", None, True, True),
        ("terminated", Shard(1, 2), True, False),
        ("terminated", None, False, True),
        ("idle", None, True, False),
        ("idle", Shard(1, 2), True, True),
    ],
)
def test_frozen(  # noqa: PLR0913 - fixtures, and what happens
    path: Path,
    server: SandboxServer,
    postgres_url: str,
    dice: random.Random,
    how: str,
    shard: Shard | None,
    *,
    finishes: bool,
    stays: bool,
) -> None:
    """A worker that was frozen longer than its lease sends nothing twice, and says what it knows."""
    name = f"frozen-{uuid4()}"
    options = [] if shard is None else ["--shard", str(shard)]
    late = [*options, "--lease", "2"] if how == "idle" else options

    def status() -> creduse_bulk.Progress:
        return creduse_bulk.status(path, journal=postgres_url, shard=shard)

    with ExitStack() as stack:
        process = start("add", path, server, named(postgres_url, name), *late)
        stack.callback(process.send_signal, signal.SIGCONT)
        wait_until_sending(process)
        time.sleep(dice.random() * 0.2)
        process.send_signal(signal.SIGSTOP)
        if how == "terminated":
            assert terminate(postgres_url, name) == 1
        wait_until(lambda: not status().is_going_on)
        left = status()
        assert 0 < left.unclear <= WINDOW
        assert left.in_flight == 0
        if finishes:
            assert end(start("add", path, server, postgres_url, *options)) == 3
            assert status().unclear == left.unclear
            assert max(applied(server).values()) == 1
        if stays:
            protocol = CreduseProtocol(KEY, server.base_url)
            stack.enter_context(Resolution(protocol, path, postgres_url, shard))
        process.send_signal(signal.SIGCONT)
        exit_status, words = ended_with(process)
    whole = "file.csv" if shard is None else f"shard {shard} of file.csv"
    assert f"another process has taken over {whole} in postgresql://" in words
    server.settle()
    assert max(applied(server).values()) == 1
    after = status()
    assert after.unclear == 0
    assert exit_status == (75 if after.waiting else 0)
    assert after.waiting or finishes
    assert after.applied + after.waiting == after.items
    assert end(start("add", path, server, postgres_url, *options)) == 0
    if shard is not None:
        assert end(start("add", path, server, postgres_url, "--shard", "2/2")) == 0
    assert check(path, server, postgres_url) == {"applied": LINES}


def test_late_owner_says_nothing_of_the_run(path: Path, postgres_url: str) -> None:
    """A late owner does not say why the run stopped: the new one does."""
    name = f"late-{uuid4()}"
    late = begin_run(path, journal=named(postgres_url, name))
    terminate(postgres_url, name)
    owner = begin_run(path, journal=postgres_url)
    owner.set_stopped(None).result()
    late.set_stopped("it is late").result()
    found = read_journal(place_of(path, postgres_url, None))
    assert found is not None
    assert found[0].stopped is None
    with pytest.raises(LostError, match=r"another process has taken over file\.csv in"):
        late.write([], [claim(1, 0)]).result()
    late.close()
    owner.close()


def test_taken_over_during_a_claim(
    path: Path, server: SandboxServer, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A claim whose commit was lost, and whose run was taken over then, is free: nothing was sent."""
    session = postgres._Session  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # to disturb it
    transaction = session._transaction  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # the same

    def lose_once(self: Any, batch: Any) -> Any:
        ends = transaction(self, batch)
        if creduse_bulk.status(path, journal=postgres_url).in_flight:
            monkeypatch.setattr(session, "_transaction", transaction)
            self.close()
            begin_run(path, journal=postgres_url, base_url=server.base_url).close()
            raise psycopg.OperationalError("lost by the test")
        return ends

    monkeypatch.setattr(session, "_transaction", lose_once)
    progress = creduse_bulk.run(
        "add", path, journal=postgres_url, api_key=KEY, base_url=server.base_url
    )
    assert progress.stopped is not None
    assert "another process has taken over file.csv in" in progress.stopped
    assert server.log == ()
    after = creduse_bulk.status(path, journal=postgres_url)
    assert (after.waiting, after.unclear) == (LINES, 0)


def test_late_decision(path: Path, postgres_url: str) -> None:
    """Whoever looked at lines before another process took over decides about none of them."""
    name = f"late-{uuid4()}"
    first = begin_run(path, journal=postgres_url)
    first.write([], [claim(1, 0)]).result()
    first.write([ended(1, Change.DOUBT)], []).result()
    first.close()
    protocol = CreduseProtocol(KEY, "http://127.0.0.1:1")
    decision = Decision(1, Change.SETTLE_FREE, "it was not applied")
    with Resolution(protocol, path, named(postgres_url, name)) as late:
        terminate(postgres_url, name)
        with Resolution(protocol, path, postgres_url) as resolution:
            resolution.settle([decision])
        again = begin_run(path, journal=postgres_url)
        again.write([], [claim(1, 0)]).result()
        again.write([ended(1, Change.DOUBT)], []).result()
        with pytest.raises(LostError):
            late.settle([Decision(1, Change.SETTLE_FREE, "it was not applied, either")])
        again.close()
    assert creduse_bulk.status(path, journal=postgres_url).unclear == 1


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A server that can be stopped."""
    if find_programs() is None:
        pytest.skip("PostgreSQL is not installed")
    with Cluster() as cluster:
        yield cluster


@ROUNDS
def test_restarted(path: Path, cluster: Cluster, dice: random.Random, rounds: int) -> None:
    """When the database crashes and is back soon, the run goes on by itself."""
    for number in range(rounds):
        file = path.with_name(f"restarted-{number}-{rounds}.csv")
        write_file(file, LINES, LINES)
        with slow_server() as server:
            process = start("add", file, server, cluster.url)
            wait_until_sending(process)
            time.sleep(dice.random() * 0.3)
            cluster.stop("immediate")
            time.sleep(dice.random() * 0.3)
            cluster.start()
            assert ended_with(process) == (0, "")
            assert check(file, server, cluster.url) == {"applied": LINES}


def test_stopped_for_long(
    path: Path, server: SandboxServer, cluster: Cluster, dice: random.Random
) -> None:
    """When the database stays away, the run stops and says so, and a later run finishes."""
    file = path.rename(path.with_name("away.csv"))
    process = start("add", file, server, cluster.url, "--patience", "0.5")
    wait_until_sending(process)
    time.sleep(dice.random() * 0.3)
    cluster.stop("immediate")
    try:
        exit_status, words = ended_with(process)
        assert exit_status == 75
        assert "Connection refused" in words
        # Another one says so at once.
        assert ended_with(start("add", file, server, cluster.url)) == (75, words)
    finally:
        cluster.start()
    server.settle()
    assert check(file, server, cluster.url)["unclear"] <= WINDOW
    go_on(file, server, cluster.url, dice)


@ROUNDS
def test_cut_again_and_again(
    path: Path, postgres_url: str, dice: random.Random, rounds: int
) -> None:
    """A run whose connection is cut ten times a second finishes, and sends nothing twice."""
    for number in range(rounds):
        file = path.with_name(f"{number}.csv")
        write_file(file, LINES, LINES)
        name, cuts = f"cut-{uuid4()}", 0
        with slow_server() as server:
            process = start("add", file, server, named(postgres_url, name))
            wait_until_sending(process)
            while process.poll() is None:
                cuts += terminate(postgres_url, name)
                time.sleep(0.05 + 0.1 * dice.random())
            assert cuts > 1
            assert ended_with(process) == (0, "")
            assert check(file, server, postgres_url) == {"applied": LINES}


def test_network_hangs(path: Path, server: SandboxServer, postgres_url: str) -> None:
    """When the network to the database hangs, and comes back soon, the run goes on."""
    with Proxy(postgres_url) as proxy:
        process = start("add", path, server, proxy.url)
        wait_until_sending(process)
        proxy.hang()
        count = -1
        while count < len(server.log):  # what it has claimed can still be sent
            count = len(server.log)
            time.sleep(1)
        assert count < LINES
        proxy.come_back()
        assert ended_with(process) == (0, "")
    assert check(path, server, postgres_url) == {"applied": LINES}


def test_network_hangs_for_long(path: Path, server: SandboxServer, postgres_url: str) -> None:
    """When the network hangs longer than the lease, another process takes over, and sends nothing twice."""
    with ExitStack() as stack:
        proxy = stack.enter_context(Proxy(postgres_url))
        process = start("add", path, server, proxy.url, "--lease", "2")
        wait_until_sending(process)
        proxy.hang()
        wait_until(lambda: not creduse_bulk.status(path, journal=postgres_url).is_going_on)
        assert end(start("add", path, server, postgres_url)) in {0, 3}
        protocol = CreduseProtocol(KEY, server.base_url)
        stack.enter_context(Resolution(protocol, path, postgres_url))
        proxy.come_back()
        _, words = ended_with(process)
        assert "another process has taken over file.csv in " in words
    server.settle()
    # What was being claimed when the network began to hang may be unclear. It was not sent.
    assert check(path, server, postgres_url)["unclear"] <= WINDOW
