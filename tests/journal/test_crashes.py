"""Journals whose process is killed, whose disk is full, or whose file is not what it should be."""

import json
import os
import random
import resource
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from creduse import CreduseClient, CreduseError
from creduse_core import Request
from creduse_journal import InUseError, Journal, JournalError, State, UnclearError
from creduse_journal import _files as files
from creduse_sandbox import FAULTS, SandboxServer
from tests.common import KEY, USER
from tests.journal import worker

ROOT = Path(__file__).parents[2]


def start(path: Path, server: SandboxServer, jobs: int) -> "subprocess.Popen[bytes]":
    """Start the worker."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.journal.worker", str(path), server.base_url, str(jobs)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
    )


def wait_until_open(process: "subprocess.Popen[bytes]") -> None:
    """Wait until the worker has opened the journal."""
    assert process.stdout is not None
    assert process.stdout.readline() == b"open\n"


def wait_until_ended(process: "subprocess.Popen[bytes]") -> int:
    """Wait until the worker has ended, and return its exit status."""
    process.communicate()
    return process.returncode


def amounts(server: SandboxServer) -> Counter[int]:
    """Return how often each job's amount was applied, by the server's record."""
    return Counter(json.loads(entry.body or b"")["amount"] for entry in server.applied)


@pytest.mark.parametrize(
    ("kills", "jobs"),
    [(3, 150), pytest.param(100, 4000, marks=[pytest.mark.exhaustive, pytest.mark.timeout(900)])],
)
def test_killed(tmp_path: Path, kills: int, jobs: int) -> None:
    """However often the process is killed, no job is applied twice, and no state is wrong."""
    seed = random.randrange(2**32)  # noqa: S311 - no secret
    print(f"seed {seed}")  # noqa: T201 - to run it again
    dice = random.Random(seed)  # noqa: S311 - no secret
    path = tmp_path / "journal"
    with SandboxServer() as server:
        unclear = lost = 0
        for number in range(kills + 1):
            fault = dice.choice(["apply-then-reset", "request-then-reset", "429", "503"])
            server.inject(FAULTS[fault], 2, when=lambda _: dice.random() < 0.02)
            process = start(path, server, jobs)
            if dice.random() < 0.8:  # else it can be killed while it opens the journal
                wait_until_open(process)
            if number < kills:
                time.sleep(dice.random() * 0.4)
                process.kill()
            wait_until_ended(process)
            server.settle()
            lost_before, lost = lost, sum(entry.fault is not None for entry in server.log)
            with Journal(path) as journal:
                found = [entry.id for entry in journal.unclear()]
                # At most the calls in flight, and those that met a fault.
                assert len(found) <= unclear + worker.THREADS + lost - lost_before
                for entry_id in found[:2]:  # a person decides by the server's record
                    amount = int(entry_id.removeprefix("job-")) + 1
                    was_applied = amounts(server)[amount] > 0
                    journal.settle(entry_id, applied=was_applied, note="the server's record")
                unclear = len(found[2:])
        counts = amounts(server)
        assert max(counts.values()) == 1
        with Journal(path) as journal:
            for number in range(jobs):
                entry = journal.get(f"job-{number}")
                applied = counts[number + 1]
                assert entry is not None or not applied
                if entry is not None and entry.state is not State.UNCLEAR:
                    assert applied == (entry.state is State.APPLIED)


def test_two_processes(tmp_path: Path) -> None:
    """A journal is open in one process at a time. The other is told so, and nothing is lost."""
    path = tmp_path / "journal"
    with SandboxServer() as server:
        process = start(path, server, 1500)
        wait_until_open(process)
        with pytest.raises(JournalError, match="is in use: another process, or another Journal"):
            Journal(path)
        assert wait_until_ended(process) == 0
        assert len(server.applied) == 1500
    with Journal(path), pytest.raises(JournalError, match="is in use"):
        Journal(path)


def test_end_without_close(tmp_path: Path) -> None:
    """What was known when the program ended is written, even if nobody closed the journal."""
    code = f"""
from creduse import CreduseClient
from creduse_journal import Journal
client, journal = CreduseClient({KEY!r}, base_url=__import__("sys").argv[1]), Journal("journal")
journal.run(client, "job", client.protocol.add("{USER}", 5))
client.close()
"""
    with SandboxServer() as server:
        subprocess.run([sys.executable, "-c", code, server.base_url], cwd=tmp_path, check=True)
    with Journal(tmp_path / "journal") as journal:
        entry = journal.get("job")
    assert entry is not None
    assert entry.state is State.APPLIED


def test_fork(tmp_path: Path) -> None:
    """A forked process must open its own journal, and its end does not harm the parent's."""
    with (
        SandboxServer() as server,
        CreduseClient(KEY, base_url=server.base_url) as client,
        Journal(tmp_path / "journal") as journal,
    ):
        child = os.fork()
        if not child:
            try:
                journal.get("job")
            except JournalError as error:
                journal.close()
                os._exit(0 if "was opened in another process" in str(error) else 1)
            os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        journal.run(client, "job", client.protocol.add(USER, 5))
        with pytest.raises(JournalError, match="is in use"):
            Journal(tmp_path / "journal")


FORKING = """
import os, sys
from creduse_journal import Journal
journal = Journal(sys.argv[1])
child = os.fork()
if child:
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert journal.get("job") is None
"""


def test_forked_process_ends(tmp_path: Path) -> None:
    """A forked process with an open journal ends, as one of gunicorn's does."""
    subprocess.run([sys.executable, "-c", FORKING, str(tmp_path / "journal")], check=True)


def test_full_disk(tmp_path: Path) -> None:
    """If the journal cannot be written, nothing is sent, then and later."""
    path = tmp_path / "journal"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with (
        SandboxServer() as server,
        CreduseClient(KEY, base_url=server.base_url) as client,
        Journal(path) as journal,
    ):
        journal.run(client, "first", client.protocol.add(USER, 5))
        journal.get("first")
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, before[1]))
        try:
            for _ in range(2):
                with pytest.raises(JournalError, match=r"cannot be used|disk is full"):
                    journal.run(client, "second", client.protocol.add(USER, 5))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, handler)
        with pytest.raises(JournalError):
            journal.get("first")
        assert len(server.log) == 1
    with Journal(path) as journal:
        first, second = journal.get("first"), journal.get("second")
    assert first is not None
    assert first.state is State.APPLIED
    assert second is None


def test_full_file(tmp_path: Path) -> None:
    """If SQLite says that the disk is full, so does the journal."""
    with (
        SandboxServer() as server,
        CreduseClient(KEY, base_url=server.base_url) as client,
        Journal(tmp_path / "journal") as journal,
    ):
        store = journal._store._database  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # to limit its file
        store.submit(lambda database: database.execute("PRAGMA max_page_count = 4"))

        def run_many() -> None:
            for number in range(1000):
                journal.run(client, f"{number} {'x' * 500}", client.protocol.add(USER, 5))

        with pytest.raises(JournalError, match="the disk is full"):
            run_many()
        assert 0 < len(server.log) < 1000


def test_interrupted_while_claiming(tmp_path: Path) -> None:
    """If a signal handler raises while the entry is claimed, nothing is sent, and it is free again."""

    class Interrupt(BaseException):
        pass

    def interrupt(*_: object) -> None:
        raise Interrupt

    with (
        SandboxServer() as server,
        CreduseClient(KEY, base_url=server.base_url) as client,
        Journal(tmp_path / "journal") as journal,
    ):
        store = journal._store._database  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # to hold its thread
        hold = threading.Event()
        held = store.submit(lambda _: hold.wait(30))
        handler = signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        try:
            with pytest.raises(Interrupt):
                journal.run(client, "job", client.protocol.add(USER, 5))
        finally:
            signal.signal(signal.SIGALRM, handler)
            hold.set()
        assert held.result()
        entry = journal.get("job")
        assert entry is not None
        assert entry.state is State.FREE
        journal.run(client, "job", client.protocol.add(USER, 5))
        assert len(server.log) == 1


def closing(journal: Journal) -> Callable[[Request], bool]:
    """Return a condition that closes the journal when the request arrives."""

    def close(_: Request) -> bool:
        journal.close()
        return True

    return close


def test_closed_during_a_call(tmp_path: Path) -> None:
    """A call whose journal is closed meanwhile returns its result. Its entry is unclear."""
    path = tmp_path / "journal"
    with SandboxServer() as server, CreduseClient(KEY, base_url=server.base_url) as client:
        journal = Journal(path)
        server.inject(FAULTS["drip"], when=closing(journal))
        assert journal.run(client, "job", client.protocol.add(USER, 5)).amount == 5
        with Journal(path) as again, pytest.raises(UnclearError):
            again.run(client, "job", client.protocol.add(USER, 5))
        with pytest.raises(JournalError, match="is closed"):
            journal.get("job")
        journal.close()


def make_database(path: Path) -> None:
    """Make a database of another program."""
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE theirs (a)")
    database.close()


def make_text(path: Path) -> None:
    """Make a text file."""
    path.write_text("not a database, but a text " * 99)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (make_text, "is not a journal"),
        (Path.mkdir, "is a directory"),
        (make_database, "cannot be a journal: another program made it"),
    ],
)
def test_not_a_journal(tmp_path: Path, make: Callable[[Path], None], message: str) -> None:
    """Another file is refused, and left as it is."""
    path = tmp_path / "journal"
    make(path)
    before = path.read_bytes() if path.is_file() else b""
    with pytest.raises(JournalError, match=message):
        Journal(path)
    assert (path.read_bytes() if path.is_file() else b"") == before


def test_no_directory(tmp_path: Path) -> None:
    """A directory that does not exist is named."""
    with pytest.raises(JournalError, match="cannot be opened: No such file or directory"):
        Journal(tmp_path / "nowhere" / "journal")


def test_no_log(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where SQLite cannot use a write-ahead log, a journal is refused."""

    class Connection(sqlite3.Connection):
        def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
            return super().execute(sql.replace("= WAL", "= MEMORY"), parameters)

    monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=Connection))
    with pytest.raises(JournalError, match="SQLite cannot use a write-ahead log here"):
        Journal(tmp_path / "journal")


MOUNTS = r"""
/dev/root / ext4 rw 0 0
server:/export /data nfs4 rw 0 0
tmpfs /data/in\040memory tmpfs rw 0 0
/dev/sdb /data/local xfs rw 0 0
proc /proc proc rw 0 0
"""


@pytest.mark.parametrize(
    ("place", "kind"),
    [
        ("/", "ext4"),
        ("/data", "nfs4"),
        ("/data/x", "nfs4"),
        ("/data/in memory", "tmpfs"),
        ("/data/local/x", "xfs"),
    ],
)
def test_file_systems(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, place: str, kind: str
) -> None:
    """The deepest mount that holds a directory says what file system it is on."""
    mounts = tmp_path / "mounts"
    mounts.write_text(MOUNTS.lstrip())

    def as_it_is(path: Path, **_: bool) -> Path:
        return path

    monkeypatch.setattr(Path, "resolve", as_it_is)
    assert files.file_system(Path(place), mounts) == kind
    assert files.file_system(Path(place), tmp_path / "none") is None


def test_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A journal on a network file system is refused, and no file is made."""

    def nfs(_: Path) -> str:
        return "nfs4"

    monkeypatch.setattr(files, "file_system", nfs)
    with pytest.raises(JournalError, match=r"is on a network file system \(nfs4\)"):
        Journal(tmp_path / "journal")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="there is no tmpfs")  # noqa: S108 - a real one
def test_in_memory() -> None:
    """On a tmpfs, a warning says that a restart of the machine forgets the journal."""
    path = Path("/dev/shm") / f"creduse-{os.getpid()}"  # noqa: S108 - a real one
    try:
        with pytest.warns(
            UserWarning, match="a restart of the machine forgets the journal"
        ) as caught:
            Journal(path).close()
        assert caught[0].filename == __file__
    finally:
        path.unlink()


def test_directory_without_sync(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where a directory cannot be synced, as on Windows, the file alone is."""

    def fail(_: int) -> None:
        raise AssertionError

    monkeypatch.setattr(files, "_CAN_SYNC_DIRECTORIES", False)
    monkeypatch.setattr("creduse_journal._files.os.fsync", fail)
    path = tmp_path / "journal"
    files.prepare(path)
    assert path.is_file()


def test_store_that_is_busy(tmp_path: Path) -> None:
    """More operations than a transaction holds are carried out in several."""
    with Journal(tmp_path / "journal") as journal:
        store = journal._store  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # to hold its thread
        hold = threading.Event()
        store._database.submit(lambda _: hold.wait(30))  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
        futures = [store.get(str(number)) for number in range(2500)]
        hold.set()
        assert all(future.result() is None for future in futures)


def test_call_fails_while_unclear(tmp_path: Path) -> None:
    """What the client raises is raised, whatever the journal does."""
    with SandboxServer() as server, CreduseClient(KEY, base_url=server.base_url) as client:
        journal = Journal(tmp_path / "journal")
        server.inject(FAULTS["503"], when=closing(journal))
        with pytest.raises(CreduseError, match="503"):
            journal.run(client, "job", client.protocol.add(USER, 5))


def read_elsewhere(path: Path) -> None:
    """Let another program read the file and close it, as a backup or a person does."""
    code = (
        "import sqlite3, sys; sqlite3.connect(sys.argv[1]).execute('SELECT * FROM entries').close()"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)


@pytest.mark.parametrize("is_replaced", [False, True], ids=["removed", "replaced"])
def test_log_removed(tmp_path: Path, is_replaced: bool) -> None:  # noqa: FBT001
    """If another program removes the log, nothing more is sent.

    A copy of the file gives up this process's locks. What it claims after that would be lost with it.
    """
    path = tmp_path / "journal"
    with (
        SandboxServer() as server,
        CreduseClient(KEY, base_url=server.base_url) as client,
        Journal(path) as journal,
    ):
        journal.run(client, "first", client.protocol.add(USER, 1))
        read_elsewhere(path)
        journal.run(client, "second", client.protocol.add(USER, 2))
        path.read_bytes()
        read_elsewhere(path)
        log = Path(f"{path}-wal")
        assert not log.exists()
        if is_replaced:
            log.touch()  # as the next program does that opens the file
        for entry_id in ("third", "fourth"):
            with pytest.raises(JournalError, match=r"another program has removed its log \(-wal\)"):
                journal.run(client, entry_id, client.protocol.add(USER, 3))
        assert amounts(server) == {1: 1, 2: 1}
    with Journal(path) as journal:
        for entry_id in ("first", "second"):
            entry = journal.get(entry_id)
            assert entry is not None
            assert entry.state is State.APPLIED
        assert journal.get("fourth") is None


def test_link(tmp_path: Path) -> None:
    """A journal has one lock and one log, by whatever link it is opened; a dangling link makes it private."""
    path, link, hard = (tmp_path / name for name in ("journal", "link", "hard"))
    link.symlink_to(path)
    with Journal(link):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with pytest.raises(InUseError):
            Journal(path)
    hard.hardlink_to(path)
    with pytest.raises(JournalError, match="has several names"):
        Journal(path)


def test_moved_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process can change its directory, and a link to the journal's directory can be replaced."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    current = tmp_path / "current"
    current.symlink_to(tmp_path / "one")
    monkeypatch.chdir(tmp_path)
    with (
        SandboxServer() as server,
        CreduseClient(KEY, base_url=server.base_url) as client,
        Journal("journal") as relative,
        Journal(current / "journal") as linked,
    ):
        monkeypatch.chdir("/")
        current.unlink()
        current.symlink_to(tmp_path / "two")
        for number, journal in enumerate((relative, linked)):
            assert journal.run(client, "job", client.protocol.add(USER, number)).amount == number


def test_log_that_cannot_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the system does not say whether the log is there, the error says so, and nothing is sent."""
    real = Path.stat

    def stat(path: Path, **options: Any) -> os.stat_result:
        if path.name.endswith("-wal"):
            raise PermissionError(13, "Permission denied")
        return real(path, **options)

    path = tmp_path / "journal"
    with SandboxServer() as server, CreduseClient(KEY, base_url=server.base_url) as client:
        with Journal(path) as journal:
            monkeypatch.setattr(Path, "stat", stat)
            with pytest.raises(JournalError, match=r"cannot be used: .*Permission denied"):
                journal.run(client, "job", client.protocol.add(USER, 1))
        with pytest.raises(JournalError, match=r"cannot be used: .*Permission denied"):
            Journal(path)
        monkeypatch.undo()
        Journal(path).close()
        assert server.log == ()


def test_name_that_is_too_long(tmp_path: Path) -> None:
    """A path that the system rejects is a `JournalError`."""
    with pytest.raises(JournalError, match="cannot be opened: File name too long"):
        Journal(tmp_path / ("x" * 300))
