"""Journals in PostgreSQL: processes that share one, and connections that are lost."""

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import anyio
import psycopg
import pytest

from creduse import CreduseClient, CreduseError
from creduse_core import LocalProtocolError, Request, Verdict
from creduse_journal import (
    POSTGRES_SCHEMA,
    AsyncJournal,
    Change,
    Journal,
    JournalError,
    State,
    UnavailableError,
    UnclearError,
    postgres,
)
from creduse_journal import _journal as calls  # pyright: ignore[reportPrivateUsage]  # it has the limit
from creduse_sandbox import FAULTS, CannedResponse, SandboxServer
from tests.bulk.instants import Instants
from tests.common import KEY, USER, free_port, wait_until
from tests.cuts import CUTS, named, query, terminate
from tests.journal.conftest import Open
from tests.journal.test_crashes import ROOT, amounts, wait_until_ended, wait_until_open
from tests.postgres import Cluster, find_programs

PASSWORD = "s3cret-and-long"


@pytest.fixture
def client(server: SandboxServer) -> Iterator[CreduseClient]:
    """A client of the sandbox."""
    with CreduseClient(KEY, base_url=server.base_url) as client:
        yield client


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A server that can be stopped."""
    if find_programs() is None:
        pytest.skip("PostgreSQL is not installed")
    with Cluster() as cluster:
        yield cluster


def database_of(journal: Journal | AsyncJournal) -> Any:
    """Return what carries out operations for a journal."""
    return journal._store._database  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # to disturb it


def start(url: str, server: SandboxServer, jobs: int) -> "subprocess.Popen[bytes]":
    """Start the worker."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.journal.worker", url, server.base_url, str(jobs)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
    )


def when_sent(server: SandboxServer, act: Callable[[], object]) -> None:
    """Do something when the next request is at the server, before it is carried out."""

    def carry_out(_: Request) -> bool:
        act()
        return False

    server.inject(FAULTS["503"], when=once(carry_out))


def once(act: Callable[[Request], bool]) -> Callable[[Request], bool]:
    """Return a function that acts at its first call alone."""
    left = [act]

    def first(request: Request) -> bool:
        return bool(left) and left.pop()(request)

    return first


def ids(journal: Journal) -> list[str]:
    """Return the ids of all unclear entries."""
    return [entry.id for entry in journal.unclear()]


# Processes that share a journal


def test_two_processes(postgres_url: str) -> None:
    """When two processes run the same ids at the same time, each id is sent once."""
    jobs = 300
    with SandboxServer() as server:
        processes = [start(postgres_url, server, jobs) for _ in range(2)]
        for process in processes:
            assert wait_until_ended(process) == 0
        assert amounts(server) == dict.fromkeys(range(1, jobs + 1), 1)
    with Journal(postgres_url) as journal:
        found = [journal.get(f"job-{number}") for number in range(jobs)]
    assert {entry.state for entry in found if entry is not None} == {State.APPLIED}
    assert None not in found


def test_killed_process(postgres_url: str, server: SandboxServer, client: CreduseClient) -> None:
    """What a killed process was sending is unclear for one that has been open all the time."""
    with Journal(postgres_url) as journal:
        server.inject(FAULTS["apply-then-hang"], 4)
        process = start(postgres_url, server, 4)
        wait_until_open(process)
        wait_until(lambda: len(amounts(server)) == 4)
        entry = journal.get("job-0")
        assert entry is not None
        assert entry.state is State.CLAIMED
        assert journal.unclear() == []
        with pytest.raises(UnclearError):
            journal.run(client, "job-0", client.protocol.add(USER, 1))
        process.kill()
        wait_until_ended(process)
        wait_until(lambda: len(journal.unclear()) == 4)
        assert sorted(ids(journal)) == [f"job-{number}" for number in range(4)]
        entry = journal.get("job-1")
        assert entry is not None
        assert entry.state is State.UNCLEAR
        assert journal.check(client, "job-2").verdict is Verdict.APPLIED
        assert journal.settle("job-3", applied=True, note="the record").state is State.APPLIED
        assert len(ids(journal)) == 3
        assert len(amounts(server)) == 4


@pytest.mark.parametrize("reader", ["get", "settle", "of_user"])
def test_doubt_comes_first(
    postgres_url: str, server: SandboxServer, client: CreduseClient, reader: str
) -> None:
    """Whatever looks at entries first sees that those of a dead process are unclear."""
    name = f"dead-{uuid4()}"
    dead, journal = Journal(named(postgres_url, name)), Journal(postgres_url)
    look: dict[str, Callable[[], Any]] = {
        "get": lambda: journal.get("job"),
        "settle": lambda: journal.settle("job", applied=True, note="the record"),
        "of_user": lambda: journal._store.of_user(str(USER)).result(),  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    }
    found: list[Any] = []

    def kill() -> None:
        terminate(postgres_url, name)
        found.append(look[reader]())

    when_sent(server, kill)
    dead.run(client, "job", client.protocol.add(USER, 5))
    state = found[0][0]["state"] if reader == "of_user" else found[0].state
    assert state == (State.APPLIED if reader == "settle" else State.UNCLEAR)
    dead.close()
    journal.close()


@pytest.mark.parametrize(
    ("response", "settled", "state"),
    [
        (None, None, State.APPLIED),
        (None, False, State.APPLIED),
        (CannedResponse(401), None, State.FREE),
        (CannedResponse(401), True, State.APPLIED),
        (CannedResponse(503), False, State.UNCLEAR),
    ],
)
def test_late_end(
    postgres_url: str,
    server: SandboxServer,
    client: CreduseClient,
    response: CannedResponse | None,
    settled: bool | None,  # noqa: FBT001 - a parameter
    state: State,
) -> None:
    """A process that others took for dead says how its call has ended, unless it was settled as applied."""
    name = f"late-{uuid4()}"
    with Journal(named(postgres_url, name)) as late, Journal(postgres_url) as other:

        def doubt(_: Request) -> bool:
            terminate(postgres_url, name)
            assert ids(other) == ["job"]
            if settled is not None:
                other.settle("job", applied=settled, note="they say")
            return response is not None

        server.inject(response or FAULTS["503"], when=once(doubt))
        try:
            late.run(client, "job", client.protocol.add(USER, 5))
        except Exception:  # noqa: BLE001 - the state tells
            assert response is not None
        assert late.get("job") == other.get("job")
        entry = other.get("job")
    assert entry is not None
    assert entry.state is state


def test_late_end_of_an_earlier_claim(
    postgres_url: str, server: SandboxServer, client: CreduseClient
) -> None:
    """A late end changes nothing if somebody has claimed the entry since."""
    name = f"late-{uuid4()}"
    claims: list[Any] = []
    with Journal(named(postgres_url, name)) as late, Journal(postgres_url) as other:

        def claim_again() -> None:
            terminate(postgres_url, name)
            other.settle("job", applied=False, note="a mistake")
            call = client.protocol.add(USER, 5)
            claims.append(other._claim(client, "job", call, None))  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # as run does
            other._store.claim(claims[0].row).result()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]

        when_sent(server, claim_again)
        late.run(client, "job", client.protocol.add(USER, 5))
        entry = late.get("job")
        assert entry is not None
        assert entry.state is State.CLAIMED


def test_fork(postgres_url: str, server: SandboxServer, client: CreduseClient) -> None:
    """The end of a forked process does not harm the parent's connection and locks."""
    with Journal(postgres_url) as journal, Journal(postgres_url) as other:

        def fork() -> None:
            child = os.fork()
            if not child:
                try:
                    journal.get("job")
                except JournalError:
                    journal.close()
                    os._exit(0)
                os._exit(1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            assert other.unclear() == []

        when_sent(server, fork)
        journal.run(client, "job", client.protocol.add(USER, 5))
        assert journal.get("job") == other.get("job")
        entry = other.get("job")
    assert entry is not None
    assert entry.state is State.APPLIED


# Connections that are lost


@pytest.mark.slow
@pytest.mark.parametrize("cut", CUTS)
def test_cut_at_each_instant(
    postgres_url: str, server: SandboxServer, client: CreduseClient, cut: str
) -> None:
    """Wherever the connection is cut, a call is sent once, and its result is kept."""
    for number in range(1, 200):
        name, job = f"cut-{uuid4()}", f"job-{number}"

        def act(connection: Any, name: str = name) -> None:
            CUTS[cut](postgres_url, name, connection)

        instants = Instants(number, act)
        with instants.watch():
            try:
                journal = Journal(named(postgres_url, name))
            except UnavailableError:
                continue
            result = journal.run(client, job, client.protocol.add(USER, number))
            assert journal.run(client, job, client.protocol.add(USER, number)) == result
            journal.close()
        with Journal(postgres_url) as journal:
            entry = journal.get(job)
        assert entry is not None
        assert entry.state is State.APPLIED
        assert amounts(server)[number] == 1
        if not instants.is_over:
            return
    pytest.fail("there are more instants")


@pytest.mark.slow
@pytest.mark.parametrize("cut", CUTS)
def test_cut_while_settling(
    postgres_url: str, server: SandboxServer, client: CreduseClient, cut: str
) -> None:
    """Wherever the connection is cut, a decision is made once."""
    for number in range(1, 100):
        name, job = f"cut-{uuid4()}", f"job-{number}"

        def act(connection: Any, name: str = name) -> None:
            CUTS[cut](postgres_url, name, connection)

        with Journal(named(postgres_url, name)) as journal:
            server.inject(FAULTS["apply-then-reset"])
            with pytest.raises(CreduseError):
                journal.run(client, job, client.protocol.add(USER, number))
            assert ids(journal) == [job]
            instants = Instants(number, act)
            with instants.watch():
                settled = journal.settle(job, applied=True, note="the record")
            assert (settled.state, settled.note) == (State.APPLIED, "the record")
            assert journal.get(job) == settled
            with pytest.raises(LocalProtocolError):
                journal.settle(job, applied=True, note="another person")
        if not instants.is_over:
            return
    pytest.fail("there are more instants")


@pytest.mark.slow
@pytest.mark.parametrize("cut", CUTS)
def test_cut_while_connecting_again(
    postgres_url: str, server: SandboxServer, client: CreduseClient, cut: str
) -> None:
    """A connection that is cut while it is made again is made once more."""
    for number in range(1, 100):
        name, job = f"cut-{uuid4()}", f"job-{number}"

        def act(connection: Any, name: str = name) -> None:
            CUTS[cut](postgres_url, name, connection)

        with Journal(named(postgres_url, name)) as journal:
            assert terminate(postgres_url, name) == 1
            instants = Instants(number, act)
            with instants.watch():
                journal.run(client, job, client.protocol.add(USER, number))
                assert journal.get(job) is not None
            assert amounts(server)[number] == 1
        if not instants.is_over:
            return
    pytest.fail("there are more instants")


def test_keep_alive(monkeypatch: pytest.MonkeyPatch, postgres_url: str) -> None:
    """A process without anything to do shows that it lives, and connects again by itself."""
    monkeypatch.setattr(postgres._Session, "idle_limit", 0.05)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # no setting
    short = postgres._SESSION.replace("'30s'", "'1s'")  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # no setting
    monkeypatch.setattr(postgres, "_SESSION", short)
    name = f"alive-{uuid4()}"

    def processes() -> list[Any]:
        return query(
            postgres_url,
            f"SELECT pid FROM pg_stat_activity WHERE application_name = '{name}'",  # noqa: S608 - ours
        )

    with Journal(named(postgres_url, name)) as journal:
        before = processes()
        assert len(before) == 1
        time.sleep(2)
        assert processes() == before
        terminate(postgres_url, name)
        wait_until(processes)
        assert processes() != before
        assert journal.get("job") is None


def test_idle_session(monkeypatch: pytest.MonkeyPatch, postgres_url: str) -> None:
    """The server ends the session of a process that does not show that it lives."""
    short = postgres._SESSION.replace("'30s'", "'100ms'")  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # no setting
    monkeypatch.setattr(postgres, "_SESSION", short)
    name = f"idle-{uuid4()}"
    with Journal(named(postgres_url, name)) as journal:
        wait_until(lambda: terminate(postgres_url, name) == 0)
        assert journal.get("job") is None


@pytest.mark.slow
def test_server_away(
    monkeypatch: pytest.MonkeyPatch, cluster: Cluster, server: SandboxServer, client: CreduseClient
) -> None:
    """If the server goes away during a call and stays away, its entry is unclear when it is back."""
    monkeypatch.setattr(postgres, "PATIENCE", 0.3)
    monkeypatch.setattr(postgres._Session, "idle_limit", 0.05)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # no setting
    with Journal(cluster.url) as journal:
        when_sent(server, cluster.stop)
        assert journal.run(client, "job", client.protocol.add(USER, 5)).amount == 5
        with pytest.raises(UnavailableError, match="Connection refused"):
            journal.get("job")
        with pytest.raises(UnavailableError):
            journal.run(client, "other", client.protocol.add(USER, 6))
        cluster.start()
        assert ids(journal) == ["job"]
        with pytest.raises(UnclearError):
            journal.run(client, "job", client.protocol.add(USER, 5))
        assert journal.settle("job", applied=True, note="the record").state is State.APPLIED
        assert journal.get("other") is None
        assert journal.run(client, "other", client.protocol.add(USER, 6)).amount == 6
    assert dict(amounts(server)) == {5: 1, 6: 1}


def test_server_back_soon(cluster: Cluster, server: SandboxServer, client: CreduseClient) -> None:
    """If the server is restarted during a call, nobody notices."""
    with Journal(cluster.url) as journal:

        def restart() -> None:
            cluster.stop()
            cluster.start()

        when_sent(server, restart)
        journal.run(client, "job", client.protocol.add(USER, 5, timeout=300))
        entry = journal.get("job")
        assert entry is not None
        assert entry.state is State.APPLIED


# Operations that fail


def test_one_wrong_operation(
    postgres_url: str, server: SandboxServer, client: CreduseClient
) -> None:
    """An operation that fails does not harm those that are carried out with it."""
    with Journal(postgres_url) as journal:
        store, hold = journal._store, threading.Event()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # to hold its thread

        def wait(_: object) -> None:
            hold.wait(30)

        database_of(journal).submit(wait)
        futures = [store.get(entry_id) for entry_id in ("a", "\0", "b", "\0")]
        unknown = store.settle("c", Change.SETTLE_FREE, "nobody")
        hold.set()
        assert (futures[0].result(), futures[2].result()) == (None, None)
        for future in (futures[1], futures[3]):
            error = future.exception()
            assert type(error) is JournalError
            assert "cannot be used: PostgreSQL text fields cannot contain NUL" in str(error)
        assert isinstance(unknown.exception(), KeyError)
        with pytest.raises(JournalError, match="NUL"):
            journal.run(client, "job\0", client.protocol.add(USER, 5))
        assert server.applied == ()
        assert journal.run(client, "job", client.protocol.add(USER, 5)).amount == 5


def test_deadlock(postgres_url: str) -> None:
    """Of two processes in a deadlock, one tries again."""
    with Journal(postgres_url) as one, Journal(postgres_url) as other:
        with psycopg.connect(postgres_url) as connection:
            connection.execute(
                "INSERT INTO creduse_entries (id, method, end_user_id, amount) "
                "VALUES ('a', 'add', %(user)s, 1), ('b', 'add', %(user)s, 1)",
                {"user": USER},
            )
        both = threading.Barrier(2)
        tries: list[tuple[str, ...]] = []

        def change(*order: str) -> Callable[[Any], None]:
            def act(connection: Any) -> None:
                tries.append(order)
                for number, entry_id in enumerate(order):
                    if number == 1 and len(tries) <= 2:  # the first try of each
                        both.wait(30)
                    connection.execute(
                        "UPDATE creduse_entries SET note = coalesce(note, '') || 'x' WHERE id = %s",
                        (entry_id,),
                    )

            return act

        futures = [
            database_of(one).submit(change("a", "b")),
            database_of(other).submit(change("b", "a")),
        ]
        for future in futures:
            future.result()
        assert len(tries) == 3
        assert one._store.of_user(str(USER)).result()[0]["note"] == "xx"  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]


def test_last_reference(place: str) -> None:
    """A journal that nobody closed, and whose last reference ends in its own thread, is closed."""
    before = set(threading.enumerate())
    hold = threading.Event()

    def act(_: object, journal: Journal) -> None:
        hold.wait(30)
        assert journal is not None

    def submit() -> None:
        journal = Journal(place)
        database_of(journal).submit(partial(act, journal=journal))

    submit()
    (thread,) = (it for it in threading.enumerate() if it not in before)
    hold.set()
    thread.join()
    assert not thread.is_alive()
    Journal(place).close()


def test_conflict_for_long(
    monkeypatch: pytest.MonkeyPatch,
    postgres_url: str,
    server: SandboxServer,
    client: CreduseClient,
) -> None:
    """If an operation meets with others for long, it fails, and the process still shows that it lives."""
    monkeypatch.setattr(postgres, "PATIENCE", 0.2)

    def fail(_: object) -> None:
        raise psycopg.errors.DeadlockDetected

    with Journal(postgres_url) as journal, Journal(postgres_url) as other:
        with pytest.raises(JournalError):
            database_of(journal).submit(fail).result()
        found: list[str] = []
        when_sent(server, lambda: found.extend(ids(other)))
        journal.run(client, "job", client.protocol.add(USER, 5))
        assert found == []


def test_old_claim(
    monkeypatch: pytest.MonkeyPatch, open_journal: Open, server: SandboxServer
) -> None:
    """If a claim took so long that others may have decided about it, nothing is sent."""
    with open_journal() as handle:
        sent = len(server.log)
        with monkeypatch.context() as patched:
            patched.setattr(calls, "LONGEST_CLAIM", -1.0)
            with pytest.raises(
                JournalError, match="nothing was sent: to claim 'job' took too long"
            ):
                handle.run("job", handle.protocol.add(USER, 5))
        assert len(server.log) == sent
        assert handle.state("job") is State.FREE
        handle.run("job", handle.protocol.add(USER, 5))
        assert len(server.log) == sent + 1


# Tables, and servers that cannot keep a journal


def test_tables_at_the_same_time(postgres_url: str) -> None:
    """If another process makes the tables at the same time, a journal waits for it."""
    journals: list[Journal] = []
    with psycopg.connect(postgres_url) as connection:
        connection.execute("SELECT pg_advisory_xact_lock(hashtext('creduse tables'))")
        thread = threading.Thread(target=lambda: journals.append(Journal(postgres_url)))
        thread.start()
        waits = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        wait_until(lambda: query(postgres_url, waits))
        connection.execute(POSTGRES_SCHEMA.encode())
    thread.join()
    assert journals[0].get("job") is None
    journals[0].close()


def test_without_driver() -> None:
    """Where psycopg is not installed, a message says what to install."""
    code = """
import sys
sys.modules["psycopg"] = None
from creduse_journal import Journal
try:
    Journal("postgresql://127.0.0.1/postgres")
except ImportError as error:
    assert "needs psycopg: pip install 'creduse[postgres]>=0.2'" in str(error), error
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize(
    "journal",
    ["mysql://a/b", "postgresql+psycopg:///x", "postgresql:/", "PostgreSQL:///", "sqlite:x"],
)
def test_other_url(journal: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What may be a misspelled URL is no name of a file."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="journal must be a path, or a URL such as postgresql://"):
        Journal(journal)
    assert list(tmp_path.iterdir()) == []
    Journal(f"./{journal.replace('/', '')}").close()
    Journal("C").close()


def test_pooler(postgres_url: str, server: SandboxServer, client: CreduseClient) -> None:
    """Where transactions come to different sessions, nothing is sent."""
    with Journal(postgres_url) as journal:
        database_of(journal)._session._process = -1  # noqa: SLF001 - as if it were another one
        with pytest.raises(JournalError, match="is a pooler that changes connections between"):
            journal.run(client, "job", client.protocol.add(USER, 5))
        assert server.applied == ()
        assert journal.get("job") is None  # the next connection is its own


@pytest.mark.slow
def test_pgbouncer(cluster: Cluster, tmp_path: Path) -> None:
    """PgBouncer in transaction mode is recognized as soon as it changes connections."""
    program = shutil.which("pgbouncer")
    if program is None:
        pytest.skip("PgBouncer is not installed")
    port = free_port()
    settings = tmp_path / "pgbouncer.ini"
    settings.write_text(
        f"[databases]\npostgres = host=127.0.0.1 port={cluster.port} user=postgres\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
        "auth_type = any\npool_mode = transaction\n"
    )
    user = "postgres" if os.getuid() == 0 else None
    for folder in (settings, *list(tmp_path.parents)[:3]) if user else ():
        folder.chmod(0o755)
    tmp_path.chmod(0o755)
    process = subprocess.Popen(
        [program, "--quiet", str(settings)], user=user, stderr=subprocess.DEVNULL
    )
    url = cluster.url.replace(f":{cluster.port}", f":{port}")
    try:

        def listens() -> bool:
            with socket.socket() as it:
                return it.connect_ex(("127.0.0.1", port)) == 0

        wait_until(listens)

        def disturb() -> None:
            with Journal(url) as one, psycopg.connect(url) as other:
                other.execute("SELECT 1")  # its transaction has the session now
                one.get("job")

        with pytest.raises(JournalError, match="is a pooler that changes connections between"):
            disturb()
    finally:
        process.terminate()
        process.wait()


def test_without_sync() -> None:
    """A server that does not sync is refused."""
    if find_programs() is None:
        pytest.skip("PostgreSQL is not installed")
    with (
        Cluster("fsync = off") as cluster,
        pytest.raises(JournalError, match="cannot keep a journal: fsync is off there"),
    ):
        Journal(cluster.url)


def test_synchronous_commit(postgres_url: str) -> None:
    """A commit is on the disk, whatever is set elsewhere."""
    url = postgres_url.replace("-csearch_path", "-csynchronous_commit%3Doff%20-csearch_path")
    with Journal(url) as journal:

        def setting(connection: Any) -> Any:
            return connection.execute("SHOW synchronous_commit").fetchone()

        assert database_of(journal).submit(setting).result() == ("on",)


def test_old_version(monkeypatch: pytest.MonkeyPatch, postgres_url: str) -> None:
    """An old server is refused, with its version."""
    monkeypatch.setattr(postgres, "_OLDEST", 990000)
    with pytest.raises(JournalError, match=r"needs PostgreSQL 14 or later; .* has [0-9]+$"):
        Journal(postgres_url)


def test_interrupted_while_opening(monkeypatch: pytest.MonkeyPatch, postgres_url: str) -> None:
    """If somebody interrupts the opening, no connection is left."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(postgres, "make_tables", interrupt)
    name = f"interrupted-{uuid4()}"
    with pytest.raises(KeyboardInterrupt):
        Journal(named(postgres_url, name))
    wait_until(lambda: terminate(postgres_url, name) == 0)


# Messages


def with_password(url: str) -> str:
    """Return a URL with a password."""
    return url.replace("postgres@", f"postgres:{PASSWORD}@")


def unreachable() -> str:
    """Return the URL of a server that is not there."""
    return f"postgresql://postgres:{PASSWORD}@127.0.0.1:{free_port()}/postgres"


def test_no_server() -> None:
    """A server that is not there is named at once."""
    begun = time.monotonic()
    with pytest.raises(UnavailableError, match=r"postgres:\*\*\*@127\.0\.0\.1:.*refused") as caught:
        Journal(unreachable())
    assert time.monotonic() - begun < 20
    assert PASSWORD not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://postgres:{PASSWORD}%zz@127.0.0.1/postgres",
        f"postgresql://postgres:{PASSWORD}@[::1/postgres",
        f"postgresql://postgres:{PASSWORD}@127.0.0.1:nine/postgres",
        f"postgresql://127.0.0.1/postgres?user=postgres&password={PASSWORD}&color=red",
        f"postgres://postgres:{PASSWORD}/@127.0.0.1/postgres",
    ],
)
def test_wrong_url(url: str) -> None:
    """A wrong URL is an error of its own, which does not show the password."""
    with pytest.raises(JournalError) as caught:
        Journal(url)
    assert PASSWORD not in "".join(traceback.format_exception(caught.value))


def test_password(postgres_url: str, client: CreduseClient) -> None:
    """No message shows the password of the URL."""
    url = with_password(postgres_url)
    assert PASSWORD in url
    told: list[str] = []

    def tell(act: Callable[[], object]) -> None:
        with pytest.raises(JournalError) as caught:
            act()
        told.extend(traceback.format_exception(caught.value))
        told.append(repr(caught.value))

    with Journal(url) as journal:
        told.extend([repr(journal), repr(database_of(journal)), repr(journal._store)])  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
        tell(lambda: journal.get("\0"))
        database_of(journal)._session._process = -1  # noqa: SLF001 - as if there were a pooler
        tell(lambda: journal.get("job"))
    tell(lambda: journal.run(client, "job", client.protocol.add(USER, 5)))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(postgres, "_OLDEST", 990000)
        tell(lambda: Journal(url))
    wrong = url.replace("/postgres?", "/no-such-database?")
    tell(lambda: Journal(wrong))
    text = "".join(told)
    assert PASSWORD not in text
    assert "postgres:***@" in text


def test_other_password() -> None:
    """That of a client certificate is not shown, either."""
    url = f"postgresql://127.0.0.1:1/db?sslpassword={PASSWORD}&connect_timeout=2"
    with pytest.raises(UnavailableError) as caught:
        Journal(url)
    assert PASSWORD not in "".join(traceback.format_exception(caught.value))


def test_fault_in_the_thread(postgres_url: str) -> None:
    """Whatever happens in the thread, no call waits for ever, and the next one can succeed."""
    with Journal(postgres_url) as journal:
        session = database_of(journal)._session  # noqa: SLF001 - to disturb it
        commit = session.commit

        def fail_once(_: object) -> None:
            session.commit = commit
            raise ZeroDivisionError

        session.commit = fail_once
        with pytest.raises(JournalError, match=r"a fault of creduse: ZeroDivisionError\(\)"):
            journal.get("job")
        assert journal.get("job") is None

        def fail_later(batch: Any) -> None:
            commit(batch)
            raise ZeroDivisionError

        session.commit = fail_later
        assert journal.get("job") is None
        session.commit = commit


def test_earlier_connection_does_not_end(
    monkeypatch: pytest.MonkeyPatch, postgres_url: str, server: SandboxServer, client: CreduseClient
) -> None:
    """As long as the server keeps the lost connection, nothing is sent; then all goes on."""
    with Journal(postgres_url) as journal:
        journal.run(client, "first", client.protocol.add(USER, 5))
        journal.get("first")  # its end is written
        session = database_of(journal)._session  # noqa: SLF001 - to disturb it
        lost, session._connection = session._connection, None  # noqa: SLF001
        locked = postgres._LOCKED  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # no setting
        # pg_terminate_backend(0) returns that it could not.
        monkeypatch.setattr(
            postgres, "_LOCKED", "(SELECT 0 AS pid, 0 AS classid, 1 AS objid) AS it WHERE true"
        )
        monkeypatch.setattr(postgres, "_KEY", f"{session.owner}")
        session.patience = 0.5
        with pytest.raises(UnavailableError, match="an earlier connection of this process has not"):
            journal.run(client, "second", client.protocol.add(USER, 5))
        assert len(server.applied) == 1
        monkeypatch.setattr(postgres, "_LOCKED", locked)
        monkeypatch.setattr(postgres, "_KEY", "(classid::bigint << 32) | objid::bigint")
        journal.run(client, "second", client.protocol.add(USER, 5))
        lost.close()
    assert len(server.applied) == 2


def test_read_only_server(postgres_url: str) -> None:
    """A server that cannot be written to, such as a standby, is one that cannot be reached."""
    url = f"{postgres_url}%20-cdefault_transaction_read_only%3Don"
    with pytest.raises(UnavailableError, match="read-only"):
        Journal(url)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_aclose_waits_elsewhere(
    monkeypatch: pytest.MonkeyPatch, cluster: Cluster, backend: str
) -> None:
    """While an asynchronous journal closes without its database, the event loop goes on."""

    async def main() -> None:
        journal = AsyncJournal(cluster.url)
        cluster.stop("immediate")
        pending = database_of(journal).submit(print)
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await anyio.sleep(0.05)
                ticks += 1

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(tick)
            await journal.aclose()
            tasks.cancel_scope.cancel()
        assert ticks > 3
        assert isinstance(pending.exception(), UnavailableError)
        await journal.aclose()
        with pytest.raises(JournalError, match="is closed"):
            await journal.get("job")
        cluster.start()

    monkeypatch.setattr(postgres, "PATIENCE", 3.0)
    anyio.run(main, backend=backend)


def test_migration_meanwhile(postgres_url: str) -> None:
    """While an app makes the table in its own transaction, others wait, and succeed."""
    opened: list[Journal] = []
    with psycopg.connect(postgres_url) as app:
        app.execute(POSTGRES_SCHEMA)
        thread = threading.Thread(target=lambda: opened.append(Journal(postgres_url)))
        thread.start()
        time.sleep(0.5)
        assert not opened
        app.commit()
    thread.join()
    opened[0].close()
