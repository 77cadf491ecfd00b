"""The outbox: entries that apps insert, and who delivers them. The server's record says what was sent."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import anyio
import pytest

import creduse_aiohttp
import creduse_bulk
import creduse_trio
from creduse import AsyncCreduseClient, CreduseClient
from creduse_bulk import Progress, Shard
from creduse_core import InsufficientFundsError, Request, Secret, Verdict
from creduse_journal import POSTGRES_SCHEMA, InUseError, Journal, State, UnclearError
from creduse_sandbox import FAULTS, CannedResponse, SandboxServer
from tests.common import KEY, free_port, wait_until
from tests.cuts import named, terminate
from tests.postgres import Cluster, find_programs

psycopg = pytest.importorskip("psycopg", reason="psycopg is not installed")

ROOT = Path(__file__).parents[2]
CLIENTS: dict[str, tuple[str, Any]] = {
    "aiohttp": ("asyncio", creduse_aiohttp.AsyncCreduseClient),
    "httpx-trio": ("trio", AsyncCreduseClient),
    "trio": ("trio", creduse_trio.AsyncCreduseClient),
}
COLUMNS = ("id", "method", "end_user_id", "amount", "validity_days", "base_url")


@pytest.fixture
def server() -> Iterator[SandboxServer]:
    """A sandbox."""
    with SandboxServer() as server:
        yield server


class Table:
    """The table of entries, as an app sees it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.connection = psycopg.connect(url, autocommit=True)
        self.connection.execute(POSTGRES_SCHEMA)

    def insert(self, **values: Any) -> None:
        """Insert an entry, by default one that adds credits."""
        values = {"method": "add", "end_user_id": user(1), "amount": 5} | values
        names = [name for name in COLUMNS if name in values]
        places = ", ".join(["%s"] * len(names))
        self.connection.execute(
            f"INSERT INTO creduse_entries ({', '.join(names)}) VALUES ({places})".encode(),  # noqa: S608 - ours
            [values[name] for name in names],
        )

    def states(self) -> dict[str, str]:
        """Return the state of each entry."""
        return dict(
            self.connection.execute("SELECT id, state FROM creduse_entries ORDER BY number")
        )

    def counts(self) -> Counter[str]:
        """Return how many entries have each state."""
        return Counter(self.states().values())

    def wait_until(self, condition: Callable[[Counter[str]], bool]) -> None:
        """Wait until the counts are as wanted."""
        wait_until(lambda: condition(self.counts()))


def is_done(counts: Counter[str]) -> bool:
    """Return whether nothing waits and nothing is in flight."""
    return not counts["free"] and not counts["claimed"]


@pytest.fixture
def table(postgres_url: str) -> Iterator[Table]:
    """An empty table."""
    table = Table(postgres_url)
    yield table
    table.connection.close()


def user(number: int) -> UUID:
    """Return a user of these tests."""
    return UUID(int=0x4000_8000_0000_0000_0000 + number)


def amounts(server: SandboxServer) -> list[int]:
    """Return the amounts that the server applied, in its order."""
    return [json.loads(entry.body or b"")["amount"] for entry in server.applied]


@contextmanager
def following(
    server: SandboxServer | str, table: Table, client: str = "aiohttp", **options: Any
) -> Generator[list[Progress]]:
    """Follow in another thread until the context ends. The result is in the list then."""
    backend, client_class = CLIENTS[client]
    base_url = server if isinstance(server, str) else server.base_url
    results: list[Progress] = []
    errors: list[BaseException] = []
    cancel: list[Callable[[], object]] = []
    has_begun = threading.Event()

    async def main() -> None:
        token = anyio.lowlevel.current_token()
        with anyio.CancelScope() as scope:
            cancel.append(lambda: anyio.from_thread.run_sync(scope.cancel, token=token))
            has_begun.set()
            async with client_class(KEY, base_url=base_url) as it:
                results.append(await creduse_bulk.follow_async(it, table.url, **options))

    def run() -> None:
        try:
            anyio.run(main, backend=backend)
        except BaseException as error:  # noqa: BLE001 - raised below
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        has_begun.wait()
        yield results
    finally:
        with suppress(RuntimeError):  # it has ended by itself
            cancel[0]()
        thread.join()
    for error in errors:
        raise error


@pytest.mark.parametrize("client", CLIENTS)
def test_delivered(server: SandboxServer, table: Table, client: str) -> None:
    """What is there, and what comes later, is delivered once, in its order for each user."""
    for number in range(1, 31):
        table.insert(id=f"first-{number}", end_user_id=user(number % 7), amount=number)
    with following(server, table, client):
        table.wait_until(is_done)
        for number in range(31, 61):
            table.insert(id=f"later-{number}", end_user_id=user(number % 7), amount=number)
        table.wait_until(is_done)
    assert table.counts() == {"applied": 60}
    assert sorted(amounts(server)) == list(range(1, 61))
    by_user: dict[str, list[int]] = {}
    for entry in server.applied:
        values = json.loads(entry.body or b"")
        by_user.setdefault(values["end_user_id"], []).append(values["amount"])
    assert all(found == sorted(found) for found in by_user.values())


def test_each_method(server: SandboxServer, table: Table) -> None:
    """Entries of each method are sent as their columns say. Days are 31 if nothing is given."""
    table.insert(id="1", amount=100, validity_days=7)
    table.insert(id="2", method="start_cycle", amount=10)
    table.insert(id="3", method="subtract", amount=30)
    table.insert(id="4", method="stop_cycle", amount=None)
    table.insert(id="5", amount=7, validity_days=None)
    with following(server, table):
        table.wait_until(is_done)
    sent = [(entry.path, json.loads(entry.body or b"")) for entry in server.log]
    assert [(path, it.get("amount"), it.get("validity_days")) for path, it in sent] == [
        ("/add", 100, 7),
        ("/start-cycle", 10, 31),
        ("/subtract", 30, None),
        ("/stop-cycle", None, None),
        ("/add", 7, None),
    ]
    assert table.counts() == {"applied": 5}


def test_rolled_back(server: SandboxServer, table: Table) -> None:
    """What an app rolls back is not sent, and what it has not committed yet is not either."""
    with following(server, table), psycopg.connect(table.url) as app:
        app.execute(
            "INSERT INTO creduse_entries (id, method, end_user_id, amount) VALUES ('a', 'add', %s, 7)",
            (user(1),),
        )
        table.insert(id="b", end_user_id=user(2))
        table.wait_until(is_done)
        app.rollback()
        table.insert(id="c", end_user_id=user(1), amount=3)
        table.wait_until(lambda counts: counts["applied"] == 2)
    assert amounts(server) == [5, 3]


@pytest.mark.parametrize(
    "values",
    [
        {"amount": -1},
        {"amount": 1.5},
        {"amount": "NaN"},
        {"amount": "Infinity"},
        {"amount": None},
        {"validity_days": -1},
        {"validity_days": "NaN"},
        {"method": "ad"},
        {"method": "stop_cycle"},
        {"id": " "},
        {"end_user_id": "ada"},
    ],
)
def test_wrong_values(table: Table, values: dict[str, object]) -> None:
    """The database refuses what could not be sent."""
    with pytest.raises(psycopg.Error):
        table.insert(**({"id": "a"} | values))
    assert table.states() == {}


def test_check_of_one_that_waits(server: SandboxServer, table: Table) -> None:
    """An entry that waits was certainly not applied, so no balance is read."""
    table.insert(id="e")
    with (
        Journal(table.url) as journal,
        CreduseClient(KEY, base_url=server.base_url) as client,
    ):
        entry = journal.get("e")
        assert entry is not None
        assert (entry.state, entry.call.began_at) == (State.FREE, None)
        assert journal.check(client, "e").verdict is Verdict.NOT_YET
    assert server.log == ()


def test_another_service(server: SandboxServer, table: Table) -> None:
    """An entry that names another service is left alone."""
    table.insert(id="here", base_url=server.base_url)
    table.insert(id="there", end_user_id=user(2), base_url="http://127.0.0.1:1")
    with following(server, table):
        table.wait_until(lambda counts: counts["applied"] == 1)
    assert table.states() == {"here": "applied", "there": "free"}


def test_unclear(server: SandboxServer, table: Table) -> None:
    """After an unclear entry, its user's later ones wait until somebody decides."""
    server.inject(FAULTS["apply-then-reset"], 1)
    for number in range(4):
        table.insert(id=f"e{number}", end_user_id=user(number % 2), amount=number + 1)
    with following(server, table, concurrency=1):
        table.wait_until(lambda counts: counts["applied"] == 2 and counts["unclear"] == 1)
        with Journal(table.url) as journal:
            (entry,) = journal.unclear()
            assert (entry.id, entry.event) == ("e0", "no_response")
            with CreduseClient(KEY, base_url=server.base_url) as client:
                assert journal.check(client, "e0").verdict.value == "APPLIED"
            time.sleep(0.7)  # it has looked again meanwhile
            assert table.states()["e2"] == "free"
            journal.settle("e0", applied=True, note="Ada: at the dashboard")
        table.wait_until(is_done)
    assert sorted(amounts(server)) == [1, 2, 3, 4]
    assert table.counts() == {"applied": 4}


def test_refused(server: SandboxServer, table: Table) -> None:
    """What the service refuses stays refused. The journal raises its error."""
    server.direct.add(user(1), 5)
    table.insert(id="e", method="subtract", amount=7)
    with following(server, table):
        table.wait_until(is_done)
    with (
        Journal(table.url) as journal,
        CreduseClient(KEY, base_url=server.base_url) as client,
    ):
        entry = journal.get("e")
        assert entry is not None
        assert (entry.state, entry.status) == (State.REFUSED, 402)
        with pytest.raises(InsufficientFundsError):
            journal.run(client, "e", client.protocol.subtract(user(1), 7))
    assert len(server.log) == 1


def test_extra_headers(
    server: SandboxServer, table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client's own headers are sent. A secret that the server repeats is not kept."""
    token = "gateway-token-7"
    given = {"X-Gateway-Token": Secret(token)}
    client = partial(AsyncCreduseClient, extra_headers=given)
    monkeypatch.setitem(CLIENTS, "with headers", ("asyncio", client))
    echo = f'{{"error_code": "INSUFFICIENT_FUNDS", "message": "not {token}"}}'.encode()
    server.inject(CannedResponse(402, (), echo), 1)
    table.insert(id="e", amount=7)
    with following(server, table, "with headers"):
        table.wait_until(is_done)
    (entry,) = server.log
    assert ("x-gateway-token", token) in [(name.lower(), value) for name, value in entry.headers]
    ((body,),) = table.connection.execute("SELECT body FROM creduse_entries")
    assert b"not ***" in body


def test_result_is_kept(server: SandboxServer, table: Table) -> None:
    """The journal returns the result of an entry that was delivered, without the API key."""
    table.insert(id="e", amount=7)
    echo = json.dumps(
        {"end_user_id": str(user(1)), "amount": 7, "validity_days": 31, "more": KEY}
    ).encode()
    server.inject(CannedResponse(200, (), echo), 1)
    with following(server, table):
        table.wait_until(is_done)
    with (
        Journal(table.url) as journal,
        CreduseClient(KEY, base_url=server.base_url) as client,
    ):
        assert journal.run(client, "e", client.protocol.add(user(1), 7)).amount == 7
        with pytest.raises(ValueError, match="'e' is the id of another call: add"):
            journal.run(client, "e", client.protocol.add(user(1), 8))
    ((body,),) = table.connection.execute("SELECT body FROM creduse_entries").fetchall()
    assert b"more" in body
    assert KEY.encode() not in body
    assert len(server.log) == 1


@pytest.mark.parametrize("fault", ["429", "503"])
def test_sent_again(server: SandboxServer, table: Table, fault: str) -> None:
    """What was certainly not applied, as after a 429, is sent again, and nothing else is."""
    for number in range(5):
        table.insert(id=f"e{number}", end_user_id=user(number), amount=number + 1)
    server.inject(FAULTS[fault], 2)
    with following(server, table):
        wanted = 5 if fault == "429" else 3
        table.wait_until(lambda counts: counts["applied"] == wanted)
    assert table.counts()["unclear"] == (0 if fault == "429" else 2)
    assert max(Counter(amounts(server)).values()) == 1


def test_wrong_key(server: SandboxServer, table: Table) -> None:
    """A fault that a person must mend stops it, and says why. Nothing is unclear."""
    table.insert(id="e")
    server.inject(CannedResponse(401, (), b""), 1)
    with following(server, table) as results:
        while not results:
            time.sleep(0.02)
    assert results[0].stopped is not None
    assert "401" in results[0].stopped
    assert (results[0].applied, results[0].waiting) == (0, 1)
    assert table.states() == {"e": "free"}


def test_service_is_down(table: Table) -> None:
    """While the service is down, nothing is unclear. When it is back, all is delivered."""
    table.insert(id="e")
    port = free_port()
    server = SandboxServer(port=port)
    seen: list[Progress] = []
    with following(f"http://127.0.0.1:{port}", table, on_progress=seen.append):
        while not any(progress.pause for progress in seen):
            time.sleep(0.02)
        assert table.counts() == {"free": 1}
        with server:
            table.wait_until(is_done)
    assert amounts(server) == [5]


def test_two_followers(server: SandboxServer, table: Table) -> None:
    """One process follows a shard. Others are told so, and can take another one."""
    with following(server, table):
        table.insert(id="a")
        table.wait_until(is_done)
        with pytest.raises(InUseError, match=r"^postgresql://.* is in use"):
            creduse_bulk.follow(table.url, api_key=KEY, base_url=server.base_url)
        with (
            following(server, table, shard=Shard(1, 2)),
            following(server, table, shard=Shard(2, 2)),
        ):
            for number in range(200):
                table.insert(id=f"e{number}", end_user_id=user(number % 20), amount=number + 10)
            table.wait_until(is_done)
    assert max(Counter(amounts(server)).values()) == 1
    assert table.counts() == {"applied": 201}


def test_one_at_a_time(server: SandboxServer, table: Table) -> None:
    """Whoever follows, with whatever shards, a user has one request in flight at a time."""
    busy: Counter[str] = Counter()
    most: list[int] = []
    lock = threading.Lock()

    def enter(request: Request) -> bool:
        values = json.loads(request.body)
        with lock:
            busy[values["end_user_id"]] += 1
            most.append(busy[values["end_user_id"]])
        time.sleep(0.002)
        with lock:
            busy[values["end_user_id"]] -= 1
        return False

    server.inject(FAULTS["503"], when=enter)
    shards = [Shard(1, 1), Shard(1, 2), Shard(2, 2), Shard(1, 3), Shard(2, 3), Shard(3, 3)]
    with ExitStack() as stack:
        for shard in shards:
            stack.enter_context(following(server, table, shard=shard))
        for number in range(150):
            table.insert(id=f"e{number}", end_user_id=user(number % 5), amount=number + 1)
        table.wait_until(is_done)
    assert sorted(amounts(server)) == list(range(1, 151))
    assert max(most) == 1


def test_same_shards(table: Table, server: SandboxServer) -> None:
    """The database finds the users of a shard as `Shard` does."""
    users = [uuid4() for _ in range(300)]
    for number, it in enumerate(users):
        table.insert(id=f"e{number}", end_user_id=it, amount=number + 1)
    shards = [Shard(number, 3) for number in (1, 2, 3)]
    for shard in shards:
        with following(server, table, shard=shard):
            own = sum(shard.has(it) for it in users)
            before = table.counts()["applied"]
            table.wait_until(lambda counts: counts["applied"] >= before + own)  # noqa: B023 - used here
            time.sleep(0.6)  # it has looked again
        assert table.counts()["applied"] == before + own
    assert table.counts() == {"applied": 300}


@pytest.mark.parametrize(
    ("change", "sent"),
    [
        ("UPDATE creduse_entries SET amount = 200 WHERE id = 'b'", [1, 200]),
        ("DELETE FROM creduse_entries WHERE id = 'b'", [1]),
        ("UPDATE creduse_entries SET queued = false WHERE id = 'b'", [1]),
    ],
)
def test_changed_while_it_waits(
    server: SandboxServer, table: Table, change: str, sent: list[int]
) -> None:
    """What an app changes while an entry waits behind another one counts."""
    hold, began = threading.Event(), threading.Event()

    def wait(_: Request) -> bool:
        began.set()
        hold.wait(20)
        return False

    server.inject(FAULTS["503"], when=wait)
    table.insert(id="a", amount=1)
    table.insert(id="b", amount=2)
    table.insert(id="c", amount=3, end_user_id=user(2))
    with following(server, table):
        began.wait()
        time.sleep(0.6)  # it has looked again
        table.connection.execute(change.encode())
        hold.set()
        wanted = len(sent) + 1
        table.wait_until(lambda counts: counts["applied"] == wanted)
        time.sleep(0.6)
    assert sorted(amounts(server)) == sorted([*sent, 3])


def test_locked(server: SandboxServer, table: Table) -> None:
    """An entry that an app has locked waits, and keeps up no others."""
    for number in range(20):
        table.insert(id=f"e{number}", end_user_id=user(number % 10), amount=number + 1)
    with psycopg.connect(table.url) as app:
        app.execute("SELECT FROM creduse_entries WHERE id = 'e3' FOR UPDATE")
        with following(server, table):
            # The user's later entry waits for it.
            table.wait_until(lambda counts: counts["applied"] == 18)
            app.commit()
            table.wait_until(is_done)
    sent = amounts(server)
    assert sorted(sent) == list(range(1, 21))
    assert sent.index(4) < sent.index(14)


def test_order(server: SandboxServer, table: Table) -> None:
    """A later entry of a user is not sent before an earlier one, though that could not be claimed."""
    table.insert(id="first", amount=1)
    table.insert(id="second", amount=2)
    hold, began = threading.Event(), threading.Event()

    def wait(_: Request) -> bool:
        began.set()
        hold.wait(20)
        return False

    server.inject(FAULTS["503"], 1, when=wait)
    with (
        Journal(table.url) as journal,
        CreduseClient(KEY, base_url=server.base_url) as client,
        ThreadPoolExecutor(1) as pool,
        following(server, table, balance_first=True),
    ):
        # While balances are read, somebody else sends for the user.
        call = client.protocol.add(user(1), 9)
        sent = pool.submit(journal.run, client, "own", call)
        began.wait()
        time.sleep(0.6)  # it has looked again
        hold.set()
        sent.result()
        table.wait_until(is_done)
    assert [it for it in amounts(server) if it != 9] == [1, 2]


def test_run_takes_it_out(server: SandboxServer, table: Table) -> None:
    """An entry that the journal runs is not delivered any more, even if it was not applied."""
    table.insert(id="e")
    server.inject(CannedResponse(401, (), b""), 1)
    with (
        Journal(table.url) as journal,
        CreduseClient(KEY, base_url=server.base_url) as client,
    ):
        with pytest.raises(Exception, match="401"):
            journal.run(client, "e", client.protocol.add(user(1), 5))
        journal.run(client, "own", client.protocol.add(user(1), 6))
        with following(server, table):
            table.insert(id="f", amount=7)
            table.wait_until(lambda counts: counts["applied"] == 2)
        assert table.states() == {"e": "free", "own": "applied", "f": "applied"}
        assert journal.run(client, "e", client.protocol.add(user(1), 5)).amount == 5
    assert amounts(server) == [6, 7, 5]


def test_run_while_it_is_delivered(server: SandboxServer, table: Table) -> None:
    """While an entry is being delivered, the journal says that it is unclear, and sends nothing."""
    hold, sent = threading.Event(), threading.Event()

    def wait(_: Request) -> bool:
        sent.set()
        hold.wait(20)
        return False

    server.inject(FAULTS["503"], when=wait)
    table.insert(id="e")
    with (
        following(server, table),
        Journal(table.url) as journal,
        CreduseClient(KEY, base_url=server.base_url) as client,
    ):
        sent.wait()
        try:
            with pytest.raises(UnclearError):
                journal.run(client, "e", client.protocol.add(user(1), 5))
        finally:
            hold.set()
        table.wait_until(is_done)
    assert amounts(server) == [5]


@pytest.mark.parametrize("client", ["aiohttp", "trio"])
def test_cancelled(server: SandboxServer, table: Table, client: str) -> None:
    """To cancel it is to stop it: it waits for responses, and nothing is unclear."""
    for number in range(300):
        table.insert(id=f"e{number}", end_user_id=user(number), amount=number + 1)
    with following(server, table, client) as results:
        table.wait_until(lambda counts: counts["applied"] > 10)
    assert results == []
    counts = table.counts()
    assert counts["unclear"] == counts["claimed"] == 0
    assert sorted(amounts(server)) == sorted(
        int(name[1:]) + 1 for name, state in table.states().items() if state == "applied"
    )


def start(table: Table, server: SandboxServer, *options: str) -> "subprocess.Popen[str]":
    """Start the command."""
    return subprocess.Popen(
        [sys.executable, "-m", "creduse", "bulk", "follow", "--journal", table.url, *options],
        cwd=ROOT,
        env=os.environ | {"CREDUSE_API_KEY": KEY, "CREDUSE_BASE_URL": server.base_url},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def settle(journal: Journal, server: SandboxServer, dice: random.Random, share: float) -> None:
    """Decide about unclear entries, as a person does who knows the server's record."""
    for entry in journal.unclear():
        if dice.random() < share:
            server.settle()
            was_applied = entry.call.amount in amounts(server)
            journal.settle(entry.id, applied=was_applied, note="the server's record")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kills", "entries"),
    [(4, 400), pytest.param(40, 4000, marks=[pytest.mark.exhaustive, pytest.mark.timeout(1800)])],
)
def test_killed(server: SandboxServer, table: Table, kills: int, entries: int) -> None:
    """However often two followers are killed, nothing is sent twice, and all is delivered."""
    seed = random.randrange(2**32)  # noqa: S311 - no secret
    print(f"seed {seed}")  # noqa: T201 - to run it again
    dice = random.Random(seed)  # noqa: S311 - no secret
    for number in range(entries):
        table.insert(id=f"e{number}", end_user_id=user(number % (entries // 4)), amount=number + 1)
    for fault in ("apply-then-reset", "request-then-reset", "429"):
        server.inject(FAULTS[fault], when=lambda _: dice.random() < 0.005)
    processes = [start(table, server, "--shard", f"{number}/2") for number in (1, 2)]
    for number in range(kills):
        which = number % 2
        time.sleep(0.5 + dice.random())
        processes[which].kill()
        processes[which].communicate()
        processes[which] = start(table, server, "--shard", f"{which + 1}/2")
        with Journal(table.url) as journal:
            settle(journal, server, dice, 0.7)
    with Journal(table.url) as journal:
        while not is_done(table.counts()) or journal.unclear():
            settle(journal, server, dice, 1)
            time.sleep(0.2)
    for process in processes:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("creduse: following postgresql://")
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate()
        assert process.returncode == 0, errors
        assert "Traceback" not in errors
    assert table.counts() == {"applied": entries}
    assert sorted(amounts(server)) == list(range(1, entries + 1))


@pytest.mark.slow
def test_connections_cut(server: SandboxServer, table: Table) -> None:
    """However often its connection is cut, it goes on, and nothing is sent twice."""
    seed = random.randrange(2**32)  # noqa: S311 - no secret
    print(f"seed {seed}")  # noqa: T201 - to run it again
    dice = random.Random(seed)  # noqa: S311 - no secret
    for number in range(600):
        table.insert(id=f"e{number}", end_user_id=user(number % 200), amount=number + 1)
    name, url = f"cut-{uuid4()}", table.url
    table.url = named(url, name)  # that of its follower alone
    with following(server, table):
        cuts = cut_at = 0
        while not is_done(counts := table.counts()):
            # If each cut came before anything was delivered, it would never end.
            if counts["applied"] > cut_at:
                cut_at = counts["applied"]
                time.sleep(dice.random() * 0.05)
                cuts += terminate(url, name)
            time.sleep(0.001)
    assert cuts > 2
    assert table.counts() == {"applied": 600}
    assert sorted(amounts(server)) == list(range(1, 601))


@pytest.mark.slow
@pytest.mark.skipif(find_programs() is None, reason="PostgreSQL is not installed")
def test_second_signal_without_database(server: SandboxServer) -> None:
    """The second signal does not wait for a database that is away."""
    with Cluster() as cluster:
        table = Table(cluster.url)
        table.insert(id="e")
        process = start(table, server)
        table.wait_until(is_done)
        table.connection.close()
        cluster.stop("immediate")
        time.sleep(1)  # it has looked again
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate()
        cluster.start()
    assert process.returncode == 0  # nothing was in flight
    assert "Traceback" not in errors


def test_only_postgres(server: SandboxServer) -> None:
    """An outbox is in PostgreSQL."""
    with pytest.raises(ValueError, match="journal must be a URL such as postgresql://"):
        creduse_bulk.follow("outbox.journal", api_key=KEY, base_url=server.base_url)
    shard: Any = "1/2"
    with pytest.raises(TypeError, match=r"shard must be Shard, such as Shard\(2, 4\), not str"):
        creduse_bulk.follow("postgresql://", shard=shard, api_key=KEY, base_url=server.base_url)
