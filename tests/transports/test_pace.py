"""One `Pace` for many callers of a service that limits requests: threads, tasks, clients, handlers.

The conformance kit checks that a client sends nothing while its pace holds calls.
"""

import itertools
import random
import re
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest

from creduse import Outcome, RetryPolicy
from creduse_core import AsyncCoreClient, Call, CoreClient, CreduseProtocol, Pace, Request
from creduse_core.pace import MAX_PAUSE
from creduse_sandbox import FAULTS, SandboxServer
from creduse_sandbox.conformance import INTERRUPTIONS, check_interruption
from creduse_sandbox.conformance.checks import run_concurrently
from tests.common import KEY, USER
from tests.sandbox.conformance_kit.broken import SkipsTime
from tests.transports.kinds import NARROW, OWN, SYNC, Async, Authority, Sync

WORKERS = 100
LIMIT = 60
"""Requests a second. Even a busy machine sends more, and fewer than there are workers."""
CALLS = 3 * WORKERS
MOST_REFUSED = 2 * WORKERS
"""The pace learns of the limit when up to all workers are refused. After that, few are, unless the
machine stalls. Without a pace, 360 requests are refused."""

KINDS: tuple[Sync | Async, ...] = (*SYNC, *OWN, *NARROW)
OURS = [it for it in KINDS if re.fullmatch("trio|(httpx|aiohttp)-(sync|asyncio|trio)-own", it.name)]
MIXED = [it for it in OURS if it.name in {"httpx-sync-own", "aiohttp-asyncio-own", "trio"}]


class Limited:
    """A server that carries out so many requests in each second, and refuses the others."""

    def __init__(self, server: SandboxServer) -> None:
        self.server = server
        self._accepted: Counter[int] = Counter()
        server.inject(FAULTS["429-seconds"], 1_000_000, self._refuses)

    def _refuses(self, _: Request) -> bool:
        second = int(time.monotonic())
        self._accepted[second] += 1
        return self._accepted[second] > LIMIT

    def protocol(self) -> CreduseProtocol:
        policy = RetryPolicy(max_attempts=100, initial_delay=0, attempt_timeout=100)
        return CreduseProtocol(KEY, self.server.base_url, retry=policy, timeout=100)

    def judge(self, calls: list[Call[Any]]) -> None:
        """Each call was applied once, and the server refused few."""
        log = self.server.log
        bodies = Counter(entry.body for entry in log if entry.applied)
        assert bodies == Counter(call.request.body for call in calls)
        assert {call.outcome for call in calls} == {Outcome.APPLIED}
        refused = sum(entry.status == 429 for entry in log)
        assert refused == len(log) - len(calls)
        assert refused <= MOST_REFUSED


@pytest.fixture
def limited(server: SandboxServer) -> Limited:
    return Limited(server)


def work_in_threads(client: CoreClient, calls: Sequence[Call[Any]], workers: int) -> None:
    """Run the calls in so many threads."""
    left = iter(calls)

    def work() -> None:
        for call in left:
            client.run(call)

    threads = [threading.Thread(target=work) for _ in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


async def work_in_tasks(client: AsyncCoreClient, calls: Sequence[Call[Any]], workers: int) -> None:
    """Run the calls in so many tasks."""
    left = iter(calls)

    async def work(_: int) -> None:
        for call in left:
            await client.run(call)

    await run_concurrently(work, range(workers))


@pytest.mark.slow
@pytest.mark.parametrize("kind", OURS, ids=[kind.name for kind in OURS])
def test_many_workers(kind: Sync | Async, limited: Limited, authority: Authority) -> None:
    """A hundred workers get all their calls done, and few requests are refused."""
    protocol, pace = limited.protocol(), Pace()
    calls = [protocol.add(USER, 1 + number) for number in range(CALLS)]
    if isinstance(kind, Sync):
        with kind.open(protocol, authority.trust, pace) as client:
            work_in_threads(client, calls, WORKERS)
    else:

        async def main() -> None:
            async with kind.open(protocol, authority.trust, pace) as client:
                await work_in_tasks(client, calls, WORKERS)

        kind.run(main)
    limited.judge(calls)
    assert repr(pace).endswith(", 0 waiting>")


@pytest.mark.slow
def test_shared_pace(limited: Limited, authority: Authority) -> None:
    """Threads and two event loops, whose clocks differ, can share one pace."""
    protocol, pace = limited.protocol(), Pace()
    calls = [protocol.add(USER, 1 + number) for number in range(CALLS)]
    shares = {kind.name: calls[number::3] for number, kind in enumerate(MIXED)}

    def run(kind: Sync | Async) -> None:
        share, workers = shares[kind.name], WORKERS // 3
        if isinstance(kind, Sync):
            with kind.open(protocol, authority.trust, pace) as client:
                work_in_threads(client, share, workers)
        else:

            async def main() -> None:
                async with kind.open(protocol, authority.trust, pace) as client:
                    await work_in_tasks(client, share, workers)

            kind.run(main)

    threads = [threading.Thread(target=run, args=(kind,)) for kind in MIXED]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    limited.judge(calls)
    assert repr(pace).endswith(", 0 waiting>")


class FastPace(Pace):
    """A pace that seems to have sent a hundred requests in the second before each refusal."""

    def ended(
        self, caller: object, status: int | None, retry_after: float | None, now: float
    ) -> None:
        for _ in range(100 if status == 429 else 0):
            super().ended(object(), 200, None, now)
        super().ended(caller, status, retry_after, now)

    def hold_all(self, seconds: float) -> None:
        """Hold all calls for so long."""
        self.ended(object(), 429, seconds, time.monotonic())


def test_threads_that_give_up() -> None:
    """If threads take places and give them up, the next caller gets the first place."""
    pace = FastPace()
    pace.hold_all(50)
    now = time.monotonic()
    first_wait = pace.hold(0, now)
    pace.leave(0)

    def hold_and_leave(caller: int) -> None:
        for _ in range(500):
            assert pace.hold(caller, now) >= first_wait
            pace.leave(caller)

    with switching_often(), ThreadPoolExecutor(8) as threads:
        list(threads.map(hold_and_leave, range(8)))
    assert repr(pace).endswith(", 0 waiting>")
    assert pace.hold("later", now) == first_wait


def test_threads_that_send() -> None:
    """If threads send, are refused and give up in any order, nothing is lost."""
    pace = Pace()
    clock = itertools.count()

    def now() -> float:
        return next(clock) / 1000

    def send(caller: int) -> None:
        dice = random.Random(caller)  # noqa: S311 - nothing is secret here
        for _ in range(2000):
            if pace.hold(caller, now()) or dice.random() < 0.1:
                if dice.random() < 0.2:
                    pace.leave(caller)
            else:
                pace.ended(caller, dice.choice([200, 200, 200, 429, None]), None, now())
        pace.leave(caller)

    with switching_often(), ThreadPoolExecutor(8) as threads:
        list(threads.map(send, range(8)))
    assert repr(pace).endswith(", 0 waiting>")
    assert pace.hold("later", now() + MAX_PAUSE + 20) == 0.0


@contextmanager
def switching_often() -> Generator[None]:
    """Make threads take turns after a few instructions."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(usual)


class SignallingPace(FastPace):
    """Once, when the main thread has to wait for its turn, another thread sends it a signal."""

    def __init__(self, signal_number: int) -> None:
        super().__init__()
        self.hold_all(1.0)
        self._holds = threading.Event()
        main = threading.get_ident()

        def send_signal() -> None:
            self._holds.wait()
            signal.pthread_kill(main, signal_number)

        self._thread = threading.Thread(target=send_signal)
        self._thread.start()

    def hold(self, caller: object, now: float) -> float:
        wait = super().hold(caller, now)
        if wait:
            self._holds.set()
        return wait


@contextmanager
def handling(handler: Callable[[], object]) -> Generator[None]:
    """Handle SIGUSR1."""

    def handle(*_: object) -> None:
        handler()

    before = signal.signal(signal.SIGUSR1, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_handler_that_calls(sync_kind: Sync, server: SandboxServer, authority: Authority) -> None:
    """A signal handler can make a call of its own while another call is held."""
    pace = SignallingPace(signal.SIGUSR1)
    protocol = CreduseProtocol(KEY, server.base_url)
    outer, inner = protocol.add(USER, 1), protocol.add(USER, 2)
    with (
        sync_kind.open(protocol, authority.trust, pace) as client,
        handling(lambda: client.run(inner)),
    ):
        client.run(outer)
    assert outer.outcome is inner.outcome is Outcome.APPLIED
    assert [entry.body for entry in server.log] == [inner.request.body, outer.request.body]
    assert repr(pace).endswith(", 0 waiting>")


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_handler_that_raises(
    sync_kind: Sync, error: type[BaseException], server: SandboxServer, authority: Authority
) -> None:
    """If a signal handler raises while a call is held, the call gives up its place."""

    def handler() -> None:
        raise error

    pace = SignallingPace(signal.SIGUSR1)
    protocol = CreduseProtocol(KEY, server.base_url)
    call = protocol.add(USER, 1)
    with sync_kind.open(protocol, authority.trust, pace) as client:
        with handling(handler), pytest.raises(error):
            client.run(call)
        assert repr(pace).endswith(", 0 waiting>")
        later = protocol.add(USER, 2)
        client.run(later)
    assert call.outcome is Outcome.NOT_APPLIED
    assert call.attempts == ()
    assert [entry.body for entry in server.log] == [later.request.body]


def test_ctrl_c(async_kind: Async, server: SandboxServer, authority: Authority) -> None:
    """So it does if Ctrl-C ends the event loop. Another loop can use the same pace."""
    pace = SignallingPace(signal.SIGINT)
    protocol = CreduseProtocol(KEY, server.base_url)
    call, later = protocol.add(USER, 1), protocol.add(USER, 2)

    async def run(call: Call[Any]) -> None:
        async with async_kind.open(protocol, authority.trust, pace) as client:
            await client.run(call)

    with pytest.raises(KeyboardInterrupt):
        async_kind.run(partial(run, call))
    assert repr(pace).endswith(", 0 waiting>")
    async_kind.run(partial(run, later))
    assert call.outcome is Outcome.NOT_APPLIED
    assert call.attempts == ()
    assert [entry.body for entry in server.log] == [later.request.body]


@pytest.mark.slow
@pytest.mark.usefixtures("leaks")
# An object whose initialization was interrupted may fail as it is collected.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    "name", ["ctrl-c-meeting-with-nothing", "ctrl-c-meeting-with-429", "alarm-meeting-with-429"]
)
def test_interrupted_anywhere(name: str) -> None:
    """Wherever a signal handler raises in a call that is held, the call keeps no place."""
    pace = FastPace()
    pace.hold_all(1.0)
    check_interruption(
        next(it for it in INTERRUPTIONS if it.name == name),
        lambda protocol: CoreClient(protocol, SkipsTime(protocol), pace=pace),
    )
    assert repr(pace).endswith(", 0 waiting>")
