"""Journals over every client: what is sent, what is kept, and what is known afterwards."""

import asyncio
import itertools
import json
import os
import pickle
import sqlite3
import stat
import sys
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import anyio
import pytest
import trio

from creduse import AsyncCreduseClient
from creduse_core import (
    Call,
    CoreClient,
    CreduseError,
    CreduseProtocol,
    Delivery,
    Failure,
    InsufficientFundsError,
    InvalidResponseError,
    LocalProtocolError,
    Outcome,
    RateLimitError,
    Response,
    Secret,
    Send,
    Transport,
    Verdict,
)
from creduse_journal import AsyncJournal, Journal, JournalError, State, UnclearError, committer
from creduse_journal._store import Store
from creduse_journal.committer import wait_for
from creduse_sandbox import FAULTS, CannedResponse, SandboxServer
from tests.common import KEY, USER, keep_from_end_of_day
from tests.journal.conftest import Open
from tests.transports.kinds import example


def writes(server: SandboxServer) -> int:
    """Return how many writes the server has received."""
    return sum(entry.method == "POST" for entry in server.log)


UNAUTHORIZED = CannedResponse(401)


def lose(server: SandboxServer, fault: str, times: int = 1) -> None:
    """Let the next writes meet a fault."""
    it = UNAUTHORIZED if fault == "401" else FAULTS[fault]
    server.inject(it, times, when=lambda request: request.method == "POST")


MAKE: dict[str, Callable[[CreduseProtocol], Call[Any]]] = {
    "add": lambda protocol: protocol.add(USER, 50),
    "add without days": lambda protocol: protocol.add(USER, 50, None),
    "subtract": lambda protocol: protocol.subtract(USER, 50),
    "start_cycle": lambda protocol: protocol.start_cycle(USER, 50, 7),
    "stop_cycle": lambda protocol: protocol.stop_cycle(USER),
}


@pytest.mark.parametrize("method", MAKE)
def test_once(open_journal: Open, server: SandboxServer, method: str) -> None:
    """An id is sent once. Later runs return the same result, also after a restart."""
    if method == "stop_cycle":
        server.direct.start_cycle(USER, 5)
    with open_journal() as handle:
        result = handle.run("job", MAKE[method](handle.protocol))
        assert handle.run("job", MAKE[method](handle.protocol)) == result
    with open_journal() as handle:
        assert handle.run("job", MAKE[method](handle.protocol)) == result
        assert handle.state("job") is State.APPLIED
    assert writes(server) == len(server.applied) == 1


@pytest.mark.parametrize(
    ("fault", "error", "outcome", "state", "event"),
    [
        ("apply-then-reset", CreduseError, Outcome.UNKNOWN, State.UNCLEAR, "no_response"),
        ("request-then-reset", CreduseError, Outcome.UNKNOWN, State.UNCLEAR, "no_response"),
        ("503", CreduseError, Outcome.UNKNOWN, State.UNCLEAR, "server_error"),
        ("mistyped-field", InvalidResponseError, Outcome.APPLIED, State.APPLIED, "misread"),
        ("401", CreduseError, Outcome.NOT_APPLIED, State.FREE, "rejected"),
        ("429", RateLimitError, Outcome.NOT_APPLIED, State.FREE, "rate_limited"),
    ],
)
def test_every_end(
    open_journal: Open,
    server: SandboxServer,
    fault: str,
    error: type[CreduseError],
    outcome: Outcome,
    state: State,
    event: str,
) -> None:
    """The state of an entry is that of its call. What may have been applied is not sent again."""
    lose(server, fault, 3 if fault == "429" else 1)
    with open_journal() as handle:

        def run() -> CreduseError | None:
            try:
                handle.run("job", handle.protocol.start_cycle(USER, 50))
            except CreduseError as raised:
                return raised
            return None

        first = run()
        assert isinstance(first, error)
        assert first.outcome is outcome
        assert handle.state("job") is state
        assert handle.do("get", "job").event == event
        sent = writes(server)
        second = run()
        assert (second is None) is (state is State.FREE)
        if second is not None:
            assert type(second) is (UnclearError if state is State.UNCLEAR else type(first))
            assert second.outcome is outcome
            assert writes(server) == sent
            assert pickle.loads(pickle.dumps(second)).outcome is outcome  # noqa: S301 - its own
    assert len(server.applied) <= 1


def test_refused(open_journal: Open, server: SandboxServer) -> None:
    """What the service refuses is not sent again, until it is settled as not applied."""
    with open_journal() as handle:
        for _ in range(2):
            with pytest.raises(InsufficientFundsError) as caught:
                handle.run("job", handle.protocol.subtract(USER, 5000))
            assert caught.value.outcome is Outcome.NOT_APPLIED
        assert writes(server) == 1
        entry = handle.do("get", "job")
        assert (entry.state, entry.status, entry.error_code) == (
            State.REFUSED,
            402,
            "INSUFFICIENT_FUNDS",
        )
        server.direct.add(USER, 5000)
        assert handle.settle("job", applied=False, note="paid in").state is State.FREE
        handle.run("job", handle.protocol.subtract(USER, 5000))
        assert handle.state("job") is State.APPLIED
        assert handle.do("get", "job").note == "paid in"


def test_not_sent(open_journal: Open, server: SandboxServer) -> None:
    """A call that could not be sent can be sent later."""
    with open_journal() as handle:
        with server.refusing(), pytest.raises(CreduseError):
            handle.run("job", handle.protocol.add(USER, 5, timeout=0.3))
        assert handle.state("job") is State.FREE
        handle.run("job", handle.protocol.add(USER, 5))
    assert len(server.applied) == 1


@pytest.mark.parametrize(
    ("fault", "verdict"),
    [("apply-then-reset", Verdict.APPLIED), ("request-then-reset", Verdict.NOT_YET)],
)
def test_check(open_journal: Open, server: SandboxServer, fault: str, verdict: Verdict) -> None:
    """An unclear entry is weighed with the balance from before its claim, also after a restart."""
    keep_from_end_of_day()
    with open_journal() as handle:
        handle.run("earlier", handle.protocol.subtract(USER, 7))
        lose(server, fault)
        with pytest.raises(CreduseError):
            handle.run("job", handle.protocol.subtract(USER, 7), balance_first=True)
        assert handle.unclear() == ["job"]
    with open_journal() as handle:
        # It is taken into account that this one was applied, too.
        handle.run("later", handle.protocol.subtract(USER, 7))
        assert handle.check("job").verdict is verdict
        assert handle.state("job") is State.UNCLEAR


def test_check_what_is_known(open_journal: Open) -> None:
    """An entry that is certain needs no balance, and an unknown id is an error."""
    with open_journal() as handle:
        handle.run("job", handle.protocol.add(USER, 7))
        assert handle.check("job").verdict is Verdict.APPLIED
        with pytest.raises(KeyError, match="other"):
            handle.check("other")


def test_check_with_wrong_skew(open_journal: Open, server: SandboxServer) -> None:
    """A clock skew that is no number of seconds is an error, and no balance is read."""
    with open_journal() as handle:
        lose(server, "503")
        with pytest.raises(CreduseError):
            handle.run("job", handle.protocol.add(USER, 3))
        sent = len(server.log)
        with pytest.raises(TypeError, match="clock_skew must be a number of seconds"):
            handle.check("job", clock_skew="10")
        with pytest.raises(ValueError, match="clock_skew must be"):
            handle.check("job", clock_skew=1e300)
    assert len(server.log) == sent


def test_settle(open_journal: Open, server: SandboxServer) -> None:
    """An unclear entry is settled by a decision, which is kept."""
    with open_journal() as handle:
        for name, applied in (("yes", True), ("no", False)):
            lose(server, "503")
            with pytest.raises(CreduseError):
                handle.run(name, handle.protocol.add(USER, 3, 9))
            entry = handle.settle(name, applied=applied, note=f"Ada says {name}")
            assert entry.note == f"Ada says {name}"
            assert entry.state is (State.APPLIED if applied else State.FREE)
        sent = writes(server)
        result = handle.run("yes", handle.protocol.add(USER, 3, 9))
        assert (result.amount, result.validity_days) == (3, 9)
        assert writes(server) == sent
        handle.run("no", handle.protocol.add(USER, 3, 9))
        assert writes(server) == sent + 1
        with pytest.raises(
            LocalProtocolError, match="cannot settle as applied an entry that is applied"
        ):
            handle.settle("yes", applied=True, note="again")
        with pytest.raises(KeyError, match="other"):
            handle.settle("other", applied=True, note="Ada")
        with pytest.raises(ValueError, match="note must say who settles"):
            handle.settle("yes", applied=True, note=" ")
        with pytest.raises(TypeError, match="applied must be bool, not str"):
            handle.settle("no", applied="no", note="Ada")


def test_settled_cycle(open_journal: Open, server: SandboxServer) -> None:
    """A cycle that was settled as applied has no result, and is not sent again."""
    with open_journal() as handle:
        lose(server, "503")
        with pytest.raises(CreduseError):
            handle.run("job", handle.protocol.start_cycle(USER, 3))
        handle.settle("job", applied=True, note="Ada")
        with pytest.raises(CreduseError, match="settled as applied") as caught:
            handle.run("job", handle.protocol.start_cycle(USER, 3))
        assert caught.value.outcome is Outcome.APPLIED
    assert writes(server) == 1


def test_another_call(open_journal: Open, server: SandboxServer) -> None:
    """An id of another call is an error, and nothing is sent."""
    with open_journal() as handle:
        handle.run("job", handle.protocol.add(USER, 3))
        for call in (
            handle.protocol.add(USER, 4),
            handle.protocol.add(USER, 3, 7),
            handle.protocol.subtract(USER, 3),
            handle.protocol.stop_cycle(USER),
        ):
            with pytest.raises(ValueError, match="'job' is the id of another call: add for"):
                handle.run("job", call)
        server.direct.start_cycle(USER, 1)
        handle.run("stop", handle.protocol.stop_cycle(USER))
        with pytest.raises(ValueError, match="'stop' is the id of another call: stop_cycle for"):
            handle.run("stop", handle.protocol.add(USER, 3))
    assert writes(server) == 2


def test_wrong_arguments(open_journal: Open, server: SandboxServer) -> None:
    """A wrong argument is an error, and nothing is claimed or sent."""
    with open_journal() as handle:
        ran = handle.protocol.add(USER, 1)
        ran.abandon(0.0)
        wrong: list[tuple[Any, Any, type[Exception], str]] = [
            (7, handle.protocol.add(USER, 1), TypeError, "entry_id must be str"),
            (" ", handle.protocol.add(USER, 1), ValueError, "entry_id must not be blank"),
            ("job", None, TypeError, "call must be Call"),
            ("job", handle.protocol.get_balance(USER), ValueError, "needs no journal"),
            ("job", ran, LocalProtocolError, "a call runs only once"),
        ]
        for entry_id, call, kind, message in wrong:
            with pytest.raises(kind, match=message):
                handle.run(entry_id, call)
        with pytest.raises(TypeError, match="balance_first must be bool, not str"):
            handle.run("job", handle.protocol.add(USER, 1), balance_first="no")
        other = CreduseProtocol(KEY, "https://else.example").add(USER, 1)
        with pytest.raises(ValueError, match="but the client for"):
            handle.run("other", other)
        assert handle.state("job") is None
        assert handle.state("other") is State.FREE
    assert writes(server) == 0


def test_balance_first_fails(open_journal: Open, server: SandboxServer) -> None:
    """If the balance cannot be read, nothing is claimed or sent."""
    server.inject(UNAUTHORIZED)
    with open_journal() as handle:
        with pytest.raises(CreduseError):
            handle.run("job", handle.protocol.add(USER, 1), balance_first=True)
        assert handle.state("job") is None
    assert writes(server) == 0


def test_balance_first_of_a_known_id(open_journal: Open, server: SandboxServer) -> None:
    """A known end needs no balance, and no service."""
    with open_journal() as handle:
        result = handle.run("job", handle.protocol.subtract(USER, 5), balance_first=True)
        sent = len(server.log)
        again = handle.run("job", handle.protocol.subtract(USER, 5), balance_first=True)
        lose(server, "503")
        with pytest.raises(CreduseError):
            handle.run("lost", handle.protocol.subtract(USER, 5))
        with pytest.raises(UnclearError):
            handle.run("lost", handle.protocol.subtract(USER, 5), balance_first=True)
    assert again == result
    assert len(server.log) == sent + 1


def test_many_at_once(open_journal: Open, server: SandboxServer) -> None:
    """Of many runs of an id at once, one is sent. The others wait for nothing."""
    with open_journal() as handle, ThreadPoolExecutor(20) as pool:

        def run(number: int) -> object:
            try:
                return handle.run(f"job-{number % 3}", handle.protocol.add(USER, 1))
            except UnclearError as error:
                return error.outcome

        ends = list(pool.map(run, range(60)))
    assert len(server.applied) == writes(server) == 3
    assert all(end is Outcome.UNKNOWN or getattr(end, "amount", 0) == 1 for end in ends)


def test_closed(server: SandboxServer, place: str) -> None:
    """A closed journal sends nothing."""
    protocol = CreduseProtocol(KEY, server.base_url)
    with CoreClient(protocol, example("urllib")()) as client:
        with Journal(place) as journal:
            pass
        with pytest.raises(JournalError, match="is closed"):
            journal.run(client, "job", protocol.add(USER, 5))
    assert writes(server) == 0


def test_your_own_transport(server: SandboxServer, place: str) -> None:
    """A `CoreClient` over any transport can have a journal."""
    protocol = CreduseProtocol(KEY, server.base_url)
    with CoreClient(protocol, example("urllib")()) as client, Journal(place) as journal:
        for _ in range(2):
            assert journal.run(client, "job", protocol.add(USER, 5)).amount == 5
        assert repr(journal) == f"<Journal {place}>"
    assert writes(server) == 1


def test_async_with(server: SandboxServer, place: str) -> None:
    """An asynchronous journal closes at the end of its block."""

    async def main() -> None:
        async with AsyncCreduseClient(KEY, base_url=server.base_url) as client:
            async with AsyncJournal(place) as journal:
                await journal.run(client, "job", client.protocol.add(USER, 5))
                assert repr(journal) == f"<AsyncJournal {place}>"
            with pytest.raises(JournalError, match="is closed"):
                await journal.get("job")

    asyncio.run(main())


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("when", ["claiming", "sending"])
def test_cancelled(server: SandboxServer, place: str, backend: str, when: str) -> None:
    """A run that is cancelled leaves a true state: free before its request, unclear after it."""

    async def main() -> None:
        journal = AsyncJournal(place)
        store = journal._store  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # to hold its thread
        hold = threading.Event()
        async with AsyncCreduseClient(KEY, base_url=server.base_url) as client:
            if when == "claiming":
                store._database.submit(lambda _: hold.wait(30))  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
            else:
                server.inject(FAULTS["apply-then-hang"])
            async with anyio.create_task_group() as group:
                group.start_soon(journal.run, client, "job", client.protocol.add(USER, 5))
                await anyio.sleep(0.05)
                while when == "sending" and not server.applied:  # noqa: ASYNC110 - the server is a thread
                    await anyio.sleep(0.01)
                group.cancel_scope.cancel()
            hold.set()
            entry = await journal.get("job")
        assert entry is not None
        assert entry.state is (State.FREE if when == "claiming" else State.UNCLEAR)
        await journal.aclose()

    anyio.run(main, backend=backend)
    assert len(server.log) == (when == "sending")


def test_end_of_trio_while_waiting(path: Path) -> None:
    """An operation that ends after trio's run has ended wakes nobody."""

    async def main(store: Store, hold: threading.Event) -> None:
        with trio.move_on_after(0.05):
            await wait_for(store._database.submit(lambda _: hold.wait(30)))  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]

    store, hold = Store(path), threading.Event()
    trio.run(main, store, hold)
    hold.set()
    store.close()


def test_another_service(server: SandboxServer, place: str) -> None:
    """A job that was applied at one service is not taken for one of another."""
    with SandboxServer() as other, Journal(place) as journal:
        for it in (server, other):
            protocol = CreduseProtocol(KEY, it.base_url)
            with CoreClient(protocol, example("urllib")()) as client:
                if it is server:
                    journal.run(client, "job", protocol.add(USER, 5))
                else:
                    with pytest.raises(ValueError, match=f"5 credits, at {server.base_url}$"):
                        journal.run(client, "job", protocol.add(USER, 5))
        assert (writes(server), writes(other)) == (1, 0)


def test_check_with_another_service(server: SandboxServer, place: str) -> None:
    """A call to another service is no evidence about one to this service."""
    keep_from_end_of_day()
    with SandboxServer() as other, Journal(place) as journal:
        protocols = [CreduseProtocol(KEY, it.base_url) for it in (server, other)]
        for it in (server, other):
            it.direct.add(USER, 100)
        lose(server, "apply-then-reset")
        for number, protocol in enumerate(protocols):
            with suppress(CreduseError), CoreClient(protocol, example("urllib")()) as client:
                call = protocol.subtract(USER, 10)
                journal.run(client, f"job-{number}", call, balance_first=True)
        with CoreClient(protocols[0], example("urllib")()) as client:
            assert journal.check(client, "job-0").verdict is Verdict.APPLIED


def test_end_that_is_not_written(
    server: SandboxServer, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a signal handler raises before the end of a call is written, the entry is unclear at once."""

    def interrupted(*_: object) -> None:
        raise TimeoutError("a task runner's limit")

    protocol = CreduseProtocol(KEY, server.base_url)
    with Journal(place) as journal, CoreClient(protocol, example("urllib")()) as client:
        with monkeypatch.context() as patch:
            patch.setattr(journal, "_end", interrupted)
            with pytest.raises(TimeoutError) as caught:
                journal.run(client, "job", protocol.add(USER, 5))
        assert caught.value.__traceback__ is not None  # with the frames of the call
        assert [entry.id for entry in journal.unclear()] == ["job"]
        journal.settle("job", applied=True, note="the server's record")


def test_end_while_another_thread_asks(
    server: SandboxServer, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call that ends while another thread looks for lost ends is not taken for a lost one."""
    hold, asked = threading.Event(), threading.Event()

    class Slow(dict[Any, Any]):
        """Claims during whose copying the call ends."""

        def copy(self) -> dict[Any, Any]:
            copied = dict(self)
            hold.set()
            first.exception()
            return copied

    def wait(_: Any) -> bool:
        asked.set()
        hold.wait(30)
        return True

    server.inject(UNAUTHORIZED, when=wait)
    protocol = CreduseProtocol(KEY, server.base_url)
    with (
        Journal(place) as journal,
        CoreClient(protocol, example("urllib")()) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        monkeypatch.setattr(journal, "_claims", Slow())
        first = pool.submit(journal.run, client, "job", protocol.add(USER, 1))
        asked.wait()
        entry = journal.get("job")
    assert entry is not None
    assert entry.state is State.FREE


def test_aclose_after_a_fork(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A forked child can close its copy, which has no thread, and the parent's stays open."""

    async def main() -> None:
        journal = AsyncJournal(place)
        with monkeypatch.context() as child:
            child.setattr(os, "getpid", lambda: 0)
            await journal.aclose()
        assert await journal.get("job") is None
        await journal.aclose()

    asyncio.run(main())


def test_check_at_another_service(server: SandboxServer, place: str) -> None:
    """A balance of another service proves nothing, so it is not read."""
    lose(server, "apply-then-reset")
    with SandboxServer() as other, Journal(place) as journal:
        here = CoreClient(CreduseProtocol(KEY, server.base_url), example("urllib")())
        there = CoreClient(CreduseProtocol(KEY, other.base_url), example("urllib")())
        with here, there:
            with pytest.raises(CreduseError):
                journal.run(here, "job", here.protocol.add(USER, 5))
            with pytest.raises(
                ValueError, match=r"'job' was sent to http.*, and the client is for"
            ):
                journal.check(there, "job")
            assert journal.check(here, "job").verdict is Verdict.APPLIED
        assert other.log == ()


def interrupted_at(step: int, act: Callable[[], object]) -> bool:
    """Raise before this instruction of closing runs. Return whether there are that many."""
    left = step
    files = committer.__file__, weakref.__file__

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal left
        if frame.f_code.co_filename not in files:
            return None
        frame.f_trace_opcodes = True
        if event in {"line", "opcode"}:  # Python 3.12 has no opcodes here
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        act()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)
    return left < 0


def test_interrupted_close(tmp_path: Path) -> None:
    """Wherever SIGINT strikes in ``close()``, a second one closes the file."""
    for step in itertools.count():
        path = tmp_path / str(step)
        journal = Journal(path)
        interrupted = interrupted_at(step, journal.close)
        journal.close()
        Journal(path).close()
        if not interrupted:
            assert step > 5
            break


def test_closed_while_another_thread_asks(path: Path) -> None:
    """What a thread asks for while another closes the journal gets a result, or an error."""
    store = Store(path)
    asking = threading.Event()

    class SlowQueue:
        """The store's queue, in which asking takes long."""

        def __init__(self, queue: Any) -> None:
            self.queue = queue

        def put(self, operation: object) -> None:
            asking.set()
            time.sleep(0.3)
            self.queue.put(operation)

    database: Any = store._database  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # nothing else shows it
    database._queue = SlowQueue(database._queue)  # noqa: SLF001
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(store.get, "job")
        asking.wait()
        store.close()
        assert asked.result().result() is None


def test_big_numbers(server: SandboxServer, place: str) -> None:
    """Numbers of any size are kept."""
    protocol = CreduseProtocol(KEY, server.base_url)
    with CoreClient(protocol, example("urllib")()) as client, Journal(place) as journal:
        with pytest.raises(CreduseError):
            journal.run(client, "job", protocol.add(USER, 10**2000, 10**20))
        entry = journal.get("job")
        assert entry is not None
        assert (entry.call.amount, entry.call.validity_days) == (10**2000, 10**20)


def test_no_key_in_the_file(server: SandboxServer, path: Path) -> None:
    """The file does not hold the API key, nor another secret, even if the server repeats them.

    It is its owner's.
    """
    token = "gateway-token-7"
    echo = b'{"error_code": "INSUFFICIENT_FUNDS", "message": "no %b"}' % f"{KEY} {token}".encode()
    server.inject(CannedResponse(402, (), echo))
    protocol = CreduseProtocol(KEY, server.base_url, extra_headers={"X-Token": Secret(token)})
    with CoreClient(protocol, example("urllib")()) as client, Journal(path) as journal:
        for _ in range(2):
            with pytest.raises(InsufficientFundsError):
                journal.run(client, "job", protocol.subtract(USER, 5))
        journal.get("job")
        held = b"".join(file.read_bytes() for file in path.parent.iterdir())
        assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in path.parent.iterdir())
    assert KEY.encode() not in held
    assert token.encode() not in held
    assert b"INSUFFICIENT_FUNDS" in held


def test_entries_change_together(server: SandboxServer, path: Path) -> None:
    """Threads that claim at the same time share a commit."""
    protocol = CreduseProtocol(KEY, server.base_url)
    with CoreClient(protocol, example("urllib")()) as client, Journal(path) as journal:
        barrier = threading.Barrier(8)

        def run(number: int) -> None:
            barrier.wait()
            journal.run(client, f"job-{number}", protocol.add(USER, 1))

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(run, range(8)))
    database = sqlite3.connect(path)
    assert database.execute("SELECT count(*) FROM entries WHERE state = 'applied'").fetchone() == (
        8,
    )
    database.close()


def test_check_beside_a_slow_call(server: SandboxServer, place: str) -> None:
    """A call that began before the balance and was applied after it is not taken for a lost one."""
    keep_from_end_of_day()

    class Nested(Transport):
        """Sends a second call, whose request is lost, while the first is under way."""

        def send(self, send: Send) -> Response | Failure:
            body = json.loads(send.request.body)
            if body.get("amount") == 7 and not sent:
                sent.append(1)
                with suppress(CreduseError):
                    journal.run(client, "lost", protocol.subtract(USER, 7), balance_first=True)
            elif body.get("amount") == 7:
                return Failure(Delivery.MAYBE_SENT, OSError("lost"), transient=False)
            return server.handle(send.request)

        def sleep(self, seconds: float) -> None:
            pass

        def now(self) -> float:
            return time.monotonic()

        def close(self) -> None:
            pass

    sent: list[int] = []
    protocol = CreduseProtocol(KEY, server.base_url)
    with CoreClient(protocol, Nested()) as client, Journal(place) as journal:
        journal.run(client, "slow", protocol.subtract(USER, 7))
        assert journal.check(client, "lost").verdict is not Verdict.APPLIED
