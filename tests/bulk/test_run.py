"""Runs over each client, against a server that misbehaves. Its record says what was applied."""

import asyncio
import csv
import json
import logging
import os
import re
import signal
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias
from uuid import UUID

import anyio
import pytest
import trustme

import creduse_aiohttp
import creduse_bulk
import creduse_trio
from creduse import AsyncCreduseClient
from creduse_bulk import InputError, Progress, _driver, _sending, _sqlite
from creduse_bulk import _run as runs  # pyright: ignore[reportPrivateUsage]  # it makes the stops
from creduse_bulk._driver import AHEAD, Settings
from creduse_bulk._postgres import PostgresItems
from creduse_bulk._sqlite import SqliteItems
from creduse_bulk._window import FAILURES, FIRST, ROUNDS
from creduse_core import AsyncCoreClient, Request, Secret
from creduse_journal import JournalError
from creduse_sandbox import FAULTS, CannedResponse, SandboxServer
from tests import tls
from tests.common import KEY

CLIENTS: dict[str, tuple[str, Any]] = {
    "aiohttp": ("asyncio", creduse_aiohttp.AsyncCreduseClient),
    "httpx-asyncio": ("asyncio", AsyncCreduseClient),
    "httpx-trio": ("trio", AsyncCreduseClient),
    "trio": ("trio", creduse_trio.AsyncCreduseClient),
}

STORES = ("sqlite", "postgres")

Send: TypeAlias = Callable[..., Progress]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what sends over each client, and what is about the journal over each database."""
    if "send" in metafunc.fixturenames:
        pairs = [(client, "sqlite") for client in CLIENTS]
        pairs += [("aiohttp", "postgres"), ("trio", "postgres")]
        metafunc.parametrize(("send", "journal"), pairs, indirect=True)
    elif "journal" in metafunc.fixturenames:
        metafunc.parametrize("journal", STORES, indirect=True)


@pytest.fixture
def server() -> Any:
    """A sandbox."""
    with SandboxServer() as server:
        yield server


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The input file."""
    return tmp_path / "grants.csv"


@pytest.fixture
def journal(request: pytest.FixtureRequest) -> str | None:
    """Where the journal is: ``None`` is beside the file."""
    if request.param == "sqlite":
        return None
    url: str = request.getfixturevalue("postgres_url")
    return url


@pytest.fixture
def send(
    request: pytest.FixtureRequest, server: SandboxServer, path: Path, journal: str | None
) -> Send:
    """Send the file over a client of each kind."""
    backend, client_class = CLIENTS[request.param]

    def run(method: str = "add", **options: Any) -> Progress:
        async def main() -> Progress:
            async with client_class(KEY, base_url=server.base_url) as client:
                return await creduse_bulk.run_async(
                    client, method, path, journal=journal, **options
                )

        return anyio.run(main, backend=backend)

    return run


def run(server: SandboxServer, path: Path, method: str = "add", **options: Any) -> Progress:
    """Send the file over the default client."""
    return creduse_bulk.run(method, path, api_key=KEY, base_url=server.base_url, **options)


class TimeLimitError(Exception):
    """What a task runner's signal handler raises."""


def user(number: int) -> UUID:
    """Return a user of these tests."""
    return UUID(int=0x4000_8000_0000_0000_0000 + number)


def write(path: Path, items: int, users: int | None = None) -> None:
    """Write a file in which each line has an amount of its own, from 1 on."""
    lines = [f"{user(number % (users or items))},{number + 1}\n" for number in range(items)]
    path.write_text("end_user_id,amount\n" + "".join(lines))


def states(path: Path, journal: str | None = None) -> dict[int, str]:
    """Return the state of each line, by its amount."""
    lines = csv.DictReader(creduse_bulk.report(path, journal=journal))
    return {int(line["amount"]): line["state"] for line in lines}


def amounts(server: SandboxServer) -> list[int]:
    """Return the amounts that the server applied, in its order."""
    return [json.loads(entry.body or b"")["amount"] for entry in server.applied]


def is_write(request: Request) -> bool:
    """Return whether a request moves credits."""
    return request.method == "POST"


def of_amount(*wanted: int) -> Callable[[Request], bool]:
    """Return a condition for requests with one of these amounts."""

    def is_one(request: Request) -> bool:
        return is_write(request) and json.loads(request.body)["amount"] in wanted

    return is_one


def test_whole_file(send: Send, server: SandboxServer, path: Path, journal: str | None) -> None:
    """Each line is applied once, in the order of the file for each user. Again, nothing is sent."""
    write(path, 300, users=40)
    progress = send(concurrency=8)
    assert (progress.applied, progress.waiting, progress.exit_status) == (300, 0, 0)
    by_user: dict[str, list[int]] = {}
    for entry in server.applied:
        values = json.loads(entry.body or b"")
        by_user.setdefault(values["end_user_id"], []).append(values["amount"])
    assert len(by_user) == 40
    assert all(found == sorted(found) for found in by_user.values())
    assert sorted(amounts(server)) == list(range(1, 301))
    assert send() == progress
    assert len(server.log) == 300
    assert states(path, journal) == dict.fromkeys(range(1, 301), "applied")


@pytest.mark.parametrize("method", ["add", "subtract", "start_cycle", "stop_cycle"])
def test_methods(server: SandboxServer, path: Path, method: str) -> None:
    """Each method sends its own call."""
    server.direct.add(user(0), 5)
    server.direct.start_cycle(user(1), 5)
    path.write_text(
        f"end_user_id\n{user(1)}\n"
        if method == "stop_cycle"
        else f"end_user_id,amount\n{user(0)},3\n"
    )
    assert run(server, path, method).applied == 1
    (entry,) = server.applied
    assert entry.path == f"/{method.replace('_', '-')}"


def test_one_at_a_time(send: Send, server: SandboxServer, path: Path) -> None:
    """A user's next line is sent after the response to the one before."""
    write(path, 30, users=1)
    assert send().applied == 30
    assert amounts(server) == list(range(1, 31))
    assert len({entry.connection for entry in server.log}) == 1


def test_refused(send: Send, server: SandboxServer, path: Path, journal: str | None) -> None:
    """What the service refuses is refused, and the other lines go on."""
    write(path, 20)
    server.direct.add(user(4), 100)
    progress = send("subtract")
    assert (progress.applied, progress.refused, progress.exit_status) == (1, 19, 1)
    assert states(path, journal)[5] == "applied"
    lines = list(csv.DictReader(creduse_bulk.report(path, journal=journal, only="refused")))
    assert {(line["status"], line["error_code"]) for line in lines} == {
        ("404", "USER_DOES_NOT_EXIST")
    }
    assert send("subtract") == progress
    assert len(server.log) == 20


@pytest.mark.parametrize("fault", ["apply-then-reset", "request-then-reset", "503"])
def test_unclear(
    send: Send, server: SandboxServer, path: Path, journal: str | None, fault: str
) -> None:
    """After an unclear line, the user's later ones wait. Those of others go on."""
    write(path, 30, users=10)
    server.inject(FAULTS[fault], when=of_amount(3))
    progress = send()
    assert (progress.applied, progress.unclear, progress.waiting) == (27, 1, 2)
    assert progress.exit_status == 3
    found = states(path, journal)
    assert [found[amount] for amount in (3, 13, 23)] == ["unclear", "waiting", "waiting"]
    assert send() == progress
    assert not {13, 23} & {json.loads(entry.body or b"")["amount"] for entry in server.log}


def test_applied_but_misread(server: SandboxServer, path: Path, journal: str | None) -> None:
    """A response that cannot be read but is the line's own proves that it was applied."""
    write(path, 3)
    server.inject(FAULTS["mistyped-field"], when=of_amount(2))
    progress = run(server, path, "start_cycle", journal=journal)
    assert progress.applied == 3
    lines = list(csv.DictReader(creduse_bulk.report(path, journal=journal)))
    assert [line["event"] for line in lines] == ["done", "misread", "done"]


def test_limited(send: Send, server: SandboxServer, path: Path) -> None:
    """After 429, a line is sent again, and all are applied."""
    write(path, 12)
    server.inject(CannedResponse(429, (("Retry-After", "0.1"),), b""), 3)
    progress = send()
    assert (progress.applied, progress.exit_status) == (12, 0)
    assert len(server.log) == 15


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Probe more often than usual."""
    monkeypatch.setattr(_driver, "FIRST_PROBE", 0.01)


@pytest.mark.usefixtures("fast")
def test_failing_service(send: Send, server: SandboxServer, path: Path) -> None:
    """A service that fails at each line makes few of them unclear, and the run stops."""
    write(path, 500)
    server.inject(FAULTS["503"], 10_000, when=is_write)
    progress = send()
    assert progress.stopped == "the service reads balances, but fails at each of the last lines"
    assert FAILURES <= progress.unclear <= FAILURES + FIRST + ROUNDS
    assert progress.exit_status == 75
    assert progress.waiting == 500 - progress.unclear


@pytest.mark.slow
@pytest.mark.usefixtures("fast")
def test_service_that_comes_back(send: Send, server: SandboxServer, path: Path) -> None:
    """While the service fails, balances find out when it is back. Then the run goes on."""
    write(path, 200)
    server.inject(FAULTS["503"], 30)
    progress = send()
    assert progress.stopped is None
    assert progress.applied == 200 - progress.unclear
    assert progress.unclear <= FAILURES + FIRST + ROUNDS


@pytest.mark.usefixtures("fast")
def test_unreachable_service(send: Send, server: SandboxServer, path: Path) -> None:
    """What could not be sent is sent later. Nothing is unclear."""
    write(path, 60)
    reports: list[Progress] = []
    ready = threading.Event()

    def on_progress(progress: Progress) -> None:
        reports.append(progress)
        if progress.pause is not None:
            ready.set()

    def refuse() -> None:
        with server.refusing():
            begun.set()
            ready.wait()

    begun = threading.Event()
    thread = threading.Thread(target=refuse)
    thread.start()
    begun.wait()
    progress = send(on_progress=on_progress)
    thread.join()
    assert (progress.applied, progress.unclear) == (60, 0)
    assert any("the next try is in" in (it.pause or "") for it in reports)
    assert progress.pause is None


@pytest.mark.parametrize("status", [401, 403, 404])
def test_fault_of_the_run(
    send: Send, server: SandboxServer, path: Path, journal: str | None, status: int
) -> None:
    """A rejected key stops the run. The line was not applied, and is sent by the next run."""
    write(path, 100)
    server.inject(CannedResponse(status, (), b""), when=of_amount(20))
    progress = send(concurrency=2)
    assert progress.stopped is not None
    assert str(status) in progress.stopped
    assert (progress.exit_status, progress.unclear, progress.refused) == (75, 0, 0)
    assert states(path, journal)[20] == "waiting"
    assert KEY not in progress.stopped
    assert send().applied == 100


def test_rejected_line(send: Send, server: SandboxServer, path: Path) -> None:
    """Another 4xx without a code of the service's own is about the line: it is refused."""
    write(path, 30)
    server.inject(CannedResponse(422, (), b""), 2, when=of_amount(7, 21))
    progress = send()
    assert (progress.applied, progress.refused, progress.stopped) == (28, 2, None)


def test_rejected_lines_here_and_there(server: SandboxServer, path: Path) -> None:
    """Many rejected lines do not stop a run, as long as others are applied in between."""
    write(path, 60)
    rejected = range(1, 61, 4)
    server.inject(CannedResponse(422, (), b""), len(rejected), when=of_amount(*rejected))
    progress = run(server, path, concurrency=1)
    assert (progress.applied, progress.refused, progress.stopped) == (45, 15, None)


def test_rejected_lines(send: Send, server: SandboxServer, path: Path) -> None:
    """If the service rejects one line after another, the run stops."""
    write(path, 300)
    server.inject(CannedResponse(400, (), b""), 1000)
    progress = send()
    assert progress.stopped is not None
    assert re.match(
        r"the service rejects one line after another: add\(\S+, \d+\): 400 ", progress.stopped
    )
    assert progress.exit_status == 75
    assert progress.refused < 10 + AHEAD * 16


def test_untrusted(path: Path) -> None:
    """A server whose certificate is not trusted stops the run, and nothing is sent."""
    write(path, 3)
    with SandboxServer(ssl_context=tls.server_context(trustme.CA())) as server:
        progress = run(server, path)
        assert not server.log
    assert progress.stopped is not None
    assert "certificate" in progress.stopped
    assert (progress.exit_status, progress.waiting) == (75, 3)


def test_rate(send: Send, path: Path) -> None:
    """With a rate, lines are not sent faster."""
    write(path, 21)
    begun = time.monotonic()
    assert send(rate=40).applied == 21
    assert time.monotonic() - begun >= 20 / 40 - _driver.MAX_LATE


def test_balance_first(send: Send, server: SandboxServer, path: Path) -> None:
    """With ``balance_first``, a balance is read before each line, and an unclear one keeps it."""
    write(path, 8)
    for number in range(8):
        server.direct.add(user(number), 100)
    server.inject(FAULTS["apply-then-reset"], when=of_amount(5))
    progress = send("subtract", balance_first=True)
    assert (progress.applied, progress.unclear) == (7, 1)
    seen: set[str] = set()
    for entry in server.log:
        name = json.loads(entry.body or b"")["end_user_id"]
        assert (entry.method == "GET") == (name not in seen)
        seen.add(name)


def test_extra_headers(server: SandboxServer, path: Path) -> None:
    """The client's own headers are in each request. A secret that the server repeats is not kept."""
    write(path, 2)
    token = "gateway-token-7"
    echo = f'{{"error_code": "INSUFFICIENT_FUNDS", "message": "not {token}"}}'.encode()
    server.inject(CannedResponse(402, (), echo), 1)

    async def main() -> Progress:
        given = {"X-Gateway-Token": Secret(token)}
        async with AsyncCreduseClient(KEY, base_url=server.base_url, extra_headers=given) as client:
            return await creduse_bulk.run_async(client, "add", path)

    assert asyncio.run(main()).applied == 1
    for entry in server.log:
        assert [value for name, value in entry.headers if name.lower() == "x-gateway-token"] == [
            token
        ]
    assert len(server.log) == 2
    kept = Path(f"{path}.journal").read_bytes()
    assert token.encode() not in kept


@pytest.mark.usefixtures("fast")
def test_balance_first_fails(send: Send, server: SandboxServer, path: Path) -> None:
    """A line whose balance cannot be read is not sent until it can."""
    write(path, 5)
    server.inject(CannedResponse(500, (), b""), 12, when=lambda request: request.method == "GET")
    progress = send(balance_first=True)
    assert progress.applied == 5
    assert len([entry for entry in server.log if entry.method == "POST"]) == 5


def test_balance_first_without_key(send: Send, server: SandboxServer, path: Path) -> None:
    """A rejected key stops the run before anything is claimed."""
    write(path, 50)
    server.inject(CannedResponse(401, (), b""), 100)
    progress = send(balance_first=True)
    assert progress.stopped is not None
    assert (progress.waiting, progress.exit_status) == (50, 75)
    assert all(entry.method == "GET" for entry in server.log)


def test_balance_first_limited(server: SandboxServer, path: Path) -> None:
    """A line whose balance is refused with 429 waits, and is sent."""
    write(path, 3)
    server.inject(CannedResponse(429, (("Retry-After", "0"),), b""), 4)
    assert run(server, path, balance_first=True).applied == 3


def test_nothing_left(server: SandboxServer, path: Path, journal: str | None) -> None:
    """If all lines are unclear when the service fails, nothing is left to wait for."""
    write(path, FAILURES)
    server.inject(FAULTS["503"], FAILURES)
    progress = run(server, path, journal=journal)
    assert (progress.unclear, progress.exit_status, progress.stopped) == (FAILURES, 3, None)


def test_shards(send: Send, server: SandboxServer, path: Path, journal: str | None) -> None:
    """Each line is in one shard."""
    write(path, 60)
    found = [send(shard=creduse_bulk.Shard(number, 3)) for number in (1, 2, 3)]
    assert sum(it.items for it in found) == sum(it.applied for it in found) == 60
    assert all(it.items > 5 for it in found)
    assert sorted(amounts(server)) == list(range(1, 61))
    assert send(shard=creduse_bulk.Shard(2, 3)) == found[1]
    lines = list(creduse_bulk.report(path, journal=journal, shard=creduse_bulk.Shard(2, 3)))
    assert len(lines) == 1 + found[1].items
    assert path.with_name("grants.csv.2-of-3.journal").exists() == (journal is None)
    assert len(server.log) == 60


def cancelled_asyncio(
    act: Callable[[], Coroutine[Any, Any, None]], ready: Callable[[], bool]
) -> None:
    """Cancel a task of asyncio when it is time."""

    async def main() -> None:
        task = asyncio.ensure_future(act())
        while not ready():  # noqa: ASYNC110 - the server's record is in another thread
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())


def cancelled_trio(act: Callable[[], Coroutine[Any, Any, None]], ready: Callable[[], bool]) -> None:
    """Cancel a task of trio when it is time."""

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(act)
            while not ready():  # noqa: ASYNC110 - the same
                await anyio.sleep(0.01)
            tasks.cancel_scope.cancel()

    anyio.run(main, backend="trio")


@pytest.mark.parametrize("cancelled", [cancelled_asyncio, cancelled_trio])
def test_cancelled(
    server: SandboxServer, path: Path, journal: str | None, cancelled: Callable[..., None]
) -> None:
    """A run that is cancelled waits for what is in flight, so that nothing is unclear."""
    write(path, 3000)
    over: list[float] = []

    async def act() -> None:
        async with AsyncCreduseClient(KEY, base_url=server.base_url) as client:
            await creduse_bulk.run_async(client, "add", path, journal=journal)
        over.append(1)

    cancelled(act, lambda: len(server.applied) > 20)
    assert not over
    progress = creduse_bulk.status(path, journal=journal)
    assert (progress.unclear, progress.in_flight) == (0, 0)
    assert 20 < progress.applied == len(server.applied) < 3000
    assert run(server, path, journal=journal).applied == 3000


def test_aborted_while_claiming(
    server: SandboxServer, path: Path, journal: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines that are being claimed when the run is told twice to stop are not unclear."""
    write(path, 30)
    stops: list[_sending.Stop] = []

    class Stop(_sending.Stop):
        def __init__(self) -> None:
            super().__init__()
            stops.append(self)

    items_class = SqliteItems if journal is None else PostgresItems
    write_items = items_class.write

    def write_and_stop(*given: Any) -> Any:
        future = write_items(*given)
        for _ in range(2):
            asyncio.get_running_loop().call_soon(stops[0].stop, "two signals")
        return future

    monkeypatch.setattr(_sending, "Stop", Stop)
    monkeypatch.setattr(items_class, "write", write_and_stop)
    progress = run(server, path, journal=journal)
    assert (progress.stopped, progress.waiting) == ("two signals", 30)
    assert creduse_bulk.status(path, journal=journal).waiting == 30
    assert not server.log


def test_old_claims(
    server: SandboxServer, path: Path, journal: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines whose claims have become old are not sent before they are claimed again."""
    write(path, 30)

    class Longest:
        """A limit that the first claims exceed."""

        left = 5

        def __lt__(self, _: float) -> bool:
            self.left -= 1
            return self.left >= 0

    longest = Longest()
    monkeypatch.setattr(_driver, "LONGEST_CLAIM", longest)
    progress = run(server, path, journal=journal)
    assert longest.left == -30
    assert (progress.applied, progress.unclear) == (30, 0)
    assert sorted(amounts(server)) == list(range(1, 31))


def test_stopped_in_a_pause(
    server: SandboxServer, path: Path, journal: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is stopped while the service fails asks for no further balance."""
    monkeypatch.setattr(_driver, "FIRST_PROBE", 60)
    write(path, 100)
    server.inject(FAULTS["503"], 10_000)
    pauses: list[Progress] = []

    async def act() -> None:
        def on_progress(progress: Progress) -> None:
            pauses.extend([progress] if progress.pause is not None else [])

        async with AsyncCreduseClient(KEY, base_url=server.base_url) as client:
            await creduse_bulk.run_async(
                client, "add", path, journal=journal, on_progress=on_progress
            )

    cancelled_asyncio(act, lambda: bool(pauses))
    assert all(entry.method == "POST" for entry in server.log)
    assert creduse_bulk.status(path, journal=journal).stopped == "cancelled"


def test_stopped_while_reading(server: SandboxServer, path: Path, journal: str | None) -> None:
    """A run that is stopped does not wait for balances."""
    write(path, 3)
    server.inject(FAULTS["request-then-hang"], 3)
    begun = time.monotonic()

    async def act() -> None:
        async with AsyncCreduseClient(KEY, base_url=server.base_url) as client:
            await creduse_bulk.run_async(client, "add", path, journal=journal, balance_first=True)

    cancelled_asyncio(act, lambda: len(server.log) == 3)
    assert time.monotonic() - begun < 10
    assert creduse_bulk.status(path, journal=journal).waiting == 3


def test_changed_file(server: SandboxServer, path: Path) -> None:
    """A file that is changed while it is sent stops the run before anything of the new text is sent."""
    write(path, 9000)
    changed = False

    def change(_: Request) -> bool:
        nonlocal changed
        if not changed:
            changed = True
            path.write_text(path.read_text().replace(",9000\n", ",9999\n"))
            os.utime(path, (1, 1))
        return False

    server.inject(FAULTS["503"], when=change)
    progress = run(server, path)
    assert progress.stopped == f"{path} was changed while it was read"
    assert progress.exit_status == 75
    assert 9999 not in amounts(server)


def test_progress(server: SandboxServer, path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Progress adds up to all lines. A function that raises is logged, and the run goes on."""
    write(path, 200)
    reports: list[Progress] = []

    def on_progress(progress: Progress) -> None:
        reports.append(progress)
        raise KeyError("mine")

    with caplog.at_level(logging.ERROR, "creduse"):
        assert run(server, path, on_progress=on_progress) == reports[-1]
    assert "on_progress raised; the run goes on" in caplog.text
    for it in reports:
        assert it.items == it.applied + it.refused + it.unclear + it.in_flight + it.waiting == 200


def test_handler_that_raises_in_progress(server: SandboxServer, path: Path) -> None:
    """If a signal handler raises in ``on_progress``, its exception leaves the run as it is."""
    write(path, 200)

    def limit(number: int, _: object) -> None:
        raise TimeLimitError(number)

    def on_progress(_: Progress) -> None:
        signal.raise_signal(signal.SIGALRM)

    before = signal.signal(signal.SIGALRM, limit)
    try:
        with pytest.raises(TimeLimitError):
            run(server, path, on_progress=on_progress)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert creduse_bulk.status(path).waiting > 0


def test_journal_fails(server: SandboxServer, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the journal cannot be written, nothing more is claimed, and the next run goes on."""
    write(path, 400)

    def limited(*arguments: Any) -> Any:
        items: Any = SqliteItems(*arguments)

        def limit(database: sqlite3.Connection) -> None:
            database.execute("PRAGMA max_page_count = 9")

        items._database.submit(limit)  # noqa: SLF001
        return items

    monkeypatch.setattr(_sqlite, "SqliteItems", limited)
    with pytest.raises(JournalError, match="the disk is full"):
        run(server, path)
    monkeypatch.undo()
    counts = Counter(amounts(server))
    assert 0 < len(counts) < 400
    assert max(counts.values()) == 1
    for amount, state in states(path).items():
        if state != "unclear":
            assert (counts[amount] == 1) == (state == "applied")
    run(server, path)
    assert max(Counter(amounts(server)).values()) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "get_balance"}, "method must be one of add, subtract, start_cycle, stop_cycle"),
        ({"concurrency": 0}, "concurrency must be at least 1, not 0"),
        ({"concurrency": 101}, "concurrency must be at most 100, not 101"),
        ({"rate": "5"}, "rate must be a number of lines a second, not str"),
        ({"rate": 0}, "rate must be a number of lines a second above 0, not 0"),
        ({"rate": float("nan")}, "rate must be a number of lines a second above 0, not nan"),
    ],
)
def test_wrong_setting(
    server: SandboxServer, path: Path, options: dict[str, Any], message: str
) -> None:
    """A wrong setting raises before anything is read or sent."""
    write(path, 3)
    with pytest.raises((TypeError, ValueError), match=message):
        run(server, path, **options)
    assert not server.log
    assert [it.name for it in path.parent.iterdir()] == ["grants.csv"]


def test_wrong_client(path: Path) -> None:
    """A client that is not asynchronous is named."""
    write(path, 3)
    client: Any = "client"

    async def main() -> None:
        await creduse_bulk.run_async(client, "add", path)

    with pytest.raises(TypeError, match="client must be AsyncCoreClient, such as"):
        anyio.run(main)


def test_wrong_file(server: SandboxServer, path: Path) -> None:
    """If any line is wrong, nothing is sent, and no journal is made."""
    path.write_text(f"end_user_id,amount\n{user(0)},5\n{user(1)},five\n")
    with pytest.raises(
        InputError, match="line 3: amount must be a whole number such as 100, not 'five'"
    ):
        run(server, path)
    assert not server.log
    assert [it.name for it in path.parent.iterdir()] == ["grants.csv"]


def test_wrong_file_on_a_loop(send: Send, server: SandboxServer, path: Path) -> None:
    """On an event loop, a wrong file and a wrong journal are the same errors, in no group."""
    path.write_text(f"end_user_id,amount\n{user(0)},five\n")
    with pytest.raises(InputError, match="line 2"):
        send()
    write(path, 3)
    send()
    with pytest.raises(JournalError, match="it is that of add, not of subtract"):
        send("subtract")
    assert len(server.log) == 3


def test_empty_file(server: SandboxServer, path: Path) -> None:
    """A file with a header and no line is done at once."""
    path.write_text("end_user_id,amount\n")
    progress = run(server, path)
    assert (progress.items, progress.exit_status) == (0, 0)


def test_without_aiohttp(
    server: SandboxServer, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where aiohttp is not installed, httpx sends."""
    write(path, 5)
    monkeypatch.setitem(__import__("sys").modules, "creduse_aiohttp", None)
    made: list[AsyncCoreClient] = []
    make_client = _sending.make_client

    def make(**settings: Any) -> AsyncCoreClient:
        made.append(make_client(**settings))
        return made[0]

    monkeypatch.setattr(runs, "make_client", make)
    assert run(server, path).applied == 5
    assert isinstance(made[0], AsyncCreduseClient)


def test_in_another_thread(server: SandboxServer, path: Path) -> None:
    """A run in another thread leaves signals alone."""
    write(path, 5)
    found: list[Progress] = []
    thread = threading.Thread(target=lambda: found.append(run(server, path)))
    thread.start()
    thread.join()
    assert found[0].applied == 5


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("balance_first", [False, True])
@pytest.mark.parametrize("status", [429, 500])
def test_patience(
    server: SandboxServer,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    *,
    balance_first: bool,
) -> None:
    """If the service carries out nothing for long, the run stops."""
    monkeypatch.setattr(runs, "Settings", partial(Settings, patience=0.5))
    write(path, 50)
    server.inject(CannedResponse(status, (("Retry-After", "0.1"),), b""), 10_000)
    progress = run(server, path, balance_first=balance_first)
    assert progress.stopped == "the service has carried out nothing for 0.5 seconds"
    assert progress.exit_status == 75
    assert progress.applied == 0


def test_status_after_a_stop(server: SandboxServer, path: Path, journal: str | None) -> None:
    """``status`` has the exit status of the run, also if it stopped with an unclear line."""
    write(path, 400, users=100)
    server.inject(FAULTS["apply-then-reset"], when=of_amount(3))
    server.inject(CannedResponse(401, (), b""), when=of_amount(250))
    progress = run(server, path, journal=journal)
    assert (progress.unclear, progress.exit_status) == (1, 75)
    assert creduse_bulk.status(path, journal=journal) == progress
    progress = run(server, path, journal=journal)
    assert (progress.unclear, progress.stopped, progress.exit_status) == (1, None, 3)
    assert creduse_bulk.status(path, journal=journal) == progress


@pytest.mark.usefixtures("fast")
def test_pause_is_reported(server: SandboxServer, path: Path) -> None:
    """A pause is reported when it begins, and when it ends."""
    write(path, 100)
    server.inject(FAULTS["503"], 10, when=is_write)
    reports: list[Progress] = []
    run(server, path, on_progress=reports.append)
    pauses = [it.pause for it in reports]
    begun = next(number for number, it in enumerate(pauses) if it is not None)
    assert "503" in str(pauses[begun])
    assert None in pauses[begun:]


@pytest.mark.parametrize("options", [{}, {"shard": creduse_bulk.Shard(1, 2)}])
def test_status_of_another_shard(
    server: SandboxServer, path: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    """A journal of another shard is refused."""
    write(path, 10)
    journal = tmp_path / "my.journal"
    run(server, path, journal=journal, shard=creduse_bulk.Shard(2, 2))
    with pytest.raises(JournalError, match="it is that of shard 2/2, not of"):
        creduse_bulk.status(path, journal=journal, **options)


@pytest.mark.parametrize("name", ["", ".", "/"])
def test_no_file(server: SandboxServer, path: Path, name: str) -> None:
    """What is no file's name is named, as the input and as the journal."""
    write(path, 1)
    with pytest.raises(InputError, match="must be a file"):
        run(server, Path(name))
    with pytest.raises(InputError, match="must be a file"):
        run(server, path, journal=name)
