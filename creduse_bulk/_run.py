"""A run: an input file, its journal, and the client that sends. What the command prints is not here."""

import asyncio
import logging
import math
import signal
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Generator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from os import PathLike
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Final

import anyio
import anyio.to_thread

from creduse_core import TIMEOUT, AsyncCoreClient, CreduseProtocol
from creduse_core.arguments import check_at_least_one, check_type
from creduse_journal import RULES, State
from creduse_journal.committer import wait_for

from ._driver import Driver, Settings
from ._input import COLUMNS, Input, Overview, Shard
from ._items import Identity, Items, check_identity
from ._progress import Progress, check_alone, journal_of, name_of, progress_of, read_journal

if TYPE_CHECKING:
    from typing import Self

CONCURRENCY: Final = 16
"""Items in flight at once, by default."""
MAX_CONCURRENCY: Final = 100
"""As many connections as a client has."""

_logger: Final = logging.getLogger("creduse")
_BETWEEN_REPORTS: Final = 0.1
"""Seconds."""


class Run:
    """An input file and its journal. Use it with ``with``.

    It checks the whole file if the run has not begun. Nothing is sent before ``send_until``.

    Raises:
        InputError: Something is wrong in the file.
        JournalError: The journal belongs to something else.
    """

    def __init__(
        self,
        protocol: CreduseProtocol,
        method: str,
        file: str | PathLike[str],
        journal: str | PathLike[str] | None = None,
        shard: Shard | None = None,
    ) -> None:
        if method not in COLUMNS:
            raise ValueError(f"method must be one of {', '.join(COLUMNS)}, not {method!r}")
        if shard is not None:
            check_type("shard", shard, Shard, "Shard(2, 4)")
        path = Path(file)
        self.journal = journal_of(path, journal, shard)
        self._shard = shard
        self.overview: Overview | None = None
        """What is in the file, if the run has not begun."""
        self.before: Progress | None = None
        """How far it came, if it has begun."""
        with ExitStack() as stack:
            self._input = stack.enter_context(Input(path, method))
            self._identity = Identity(method, self._input.digest, protocol.base_url, name_of(shard))
            found = read_journal(self.journal)
            if found is None:
                if journal is None:
                    check_alone(path, shard)
                self.overview = self._input.examine(shard)
                self.items = self.overview.items
                self._kept: dict[str, object] = {
                    "items": self.items,
                    "total": str(self.overview.total),
                }
            else:
                begun, self.before = found
                check_identity(self.journal, begun.identity, self._identity)
                self.items = begun.items
                self._kept = {}
            self._stack = stack.pop_all()

    def __enter__(self) -> "Self":
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    async def send_until(
        self,
        stop: "Stop",
        client: AsyncCoreClient,
        settings: Settings,
        on_progress: Callable[[Progress], object] | None,
    ) -> Progress:
        """Send what is waiting, until somebody stops it. The task must not be cancelled."""
        key = client.protocol.api_key
        items = await anyio.to_thread.run_sync(Items, self.journal, self._identity, key, self._kept)
        try:
            report = _Reports(self.items, await wait_for(items.counts()), on_progress)
            driver = Driver(client, self._input, items, settings, report.changed)
            stop.attach(driver)
            await wait_for(items.set_stopped("its process ended"))
            await driver.run()
            await wait_for(items.set_stopped(driver.stopped))
            report.changed(driver, at_once=True)
        finally:
            await anyio.to_thread.run_sync(items.close)
        return report.progress


class Stop:
    """Whether a run shall stop. The first wish waits for what is in flight, and a second one does not."""

    def __init__(self) -> None:
        self._why: str | None = None
        self._driver: Driver | None = None

    def attach(self, driver: Driver) -> None:
        """Pass on what was wished before the driver was made."""
        self._driver = driver
        if self._why is not None:
            driver.stop(self._why)

    def stop(self, why: str) -> None:
        """Stop the run."""
        if self._driver is not None:
            act = partial(self._driver.stop, why) if self._why is None else self._driver.abort
            act()
        self._why = why

    def handler(self, loop: asyncio.AbstractEventLoop) -> Callable[[int, FrameType | None], None]:
        """Return a signal handler that stops the run, which is on this loop."""

        def handle(number: int, _: FrameType | None) -> None:
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(self.stop, signal.Signals(number).name)

        return handle


async def _to_its_end(act: Callable[[Stop], Awaitable[Progress]]) -> Progress:
    """Send in a task of its own, which no cancellation reaches.

    If the caller is cancelled, stop the run, wait for its end, and be cancelled then.
    """
    stop, ended = Stop(), anyio.Event()
    results: list[Progress] = []
    errors: list[Exception] = []

    async def run() -> None:
        try:
            with anyio.CancelScope(shield=True):
                results.append(await act(stop))
        except Exception as error:  # noqa: BLE001 - raised below, and not in a group
            errors.append(error)
        finally:
            ended.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        try:
            await ended.wait()
        except BaseException:
            stop.stop("cancelled")
            raise
    for error in errors:
        raise error
    return results[0]


class _Reports:
    """Reports progress, some times a second."""

    def __init__(
        self,
        items: int,
        before: dict[State, int],
        on_progress: Callable[[Progress], object] | None,
    ) -> None:
        self._items = items
        self._before = before
        self._on_progress = on_progress
        self._last = -math.inf
        self._news: tuple[str | None, str | None] = (None, None)
        self.progress = progress_of(items, before)

    def changed(self, driver: Driver, *, at_once: bool = False) -> None:
        """Report how far the driver is."""
        now, news = time.monotonic(), (driver.pause, driver.stopped)
        if now - self._last < _BETWEEN_REPORTS and news == self._news and not at_once:
            return
        self._last, self._news = now, news
        counts = Counter(self._before)
        for change, state in RULES[State.CLAIMED].items():
            counts[state] += driver.counts[change]
        self.progress = progress_of(
            self._items, counts, driver.in_flight, driver.pause, driver.stopped
        )
        if self._on_progress is not None:
            try:
                self._on_progress(self.progress)
            except Exception:
                _logger.exception("on_progress raised; the run goes on")


def make_client(*, api_key: str | None, base_url: str | None, timeout: float) -> AsyncCoreClient:
    """Return a client over aiohttp where it is installed, else over httpx."""
    try:
        from creduse_aiohttp import AsyncCreduseClient  # noqa: PLC0415 - it may not be installed
    except ImportError:
        from creduse_httpx import AsyncCreduseClient as HttpxClient  # noqa: PLC0415

        return HttpxClient(api_key, base_url=base_url, timeout=timeout)
    return AsyncCreduseClient(api_key, base_url=base_url, timeout=timeout)


def check_settings(concurrency: int, rate: object) -> None:
    """Raise for a wrong setting."""
    check_at_least_one("concurrency", concurrency)
    if concurrency > MAX_CONCURRENCY:
        raise ValueError(f"concurrency must be at most {MAX_CONCURRENCY}, not {concurrency}")
    if rate is None:
        return
    if isinstance(rate, bool) or not isinstance(rate, int | float):
        raise TypeError(f"rate must be a number of lines a second, not {type(rate).__name__}")
    if not 0 < rate < math.inf:
        raise ValueError(f"rate must be a number of lines a second above 0, not {rate!r}")


def run(  # noqa: PLR0913 - each but two has a default
    method: str,
    file: str | PathLike[str],
    *,
    journal: str | PathLike[str] | None = None,
    shard: Shard | None = None,
    concurrency: int = CONCURRENCY,
    rate: float | None = None,
    balance_first: bool = False,
    api_key: str | None = None,
    base_url: str | None = None,
    timeout: float = TIMEOUT,
    on_progress: Callable[[Progress], object] | None = None,
) -> Progress:
    """Send all items of a file, each at most once, and return how far the run came.

    Example::

        import creduse_bulk

        progress = creduse_bulk.run("add", "grants.csv")
        print(progress.applied, progress.exit_status)

    Call it again to go on where it stopped. In the main thread, SIGINT and SIGTERM stop it: it sends
    nothing more, waits for the responses to what it has sent, and returns. It asks nobody; the command
    ``creduse bulk`` does.

    - ``method``: ``add``, ``subtract``, ``start_cycle`` or ``stop_cycle``.
    - ``file``: CSV with a header, or JSON Lines, with the columns ``end_user_id``, ``amount``,
      ``validity_days`` and ``id``.
    - ``journal``: the journal's file, by default beside the file.
    - ``shard``: ``Shard(2, 4)`` sends the second of four parts of the users.
    - ``concurrency``: items in flight at once, at most 100.
    - ``rate``: items a second at most.
    - ``balance_first``: read each user's balance before, so that more can be proved afterwards.
    - ``api_key``, ``base_url``, ``timeout``: those of a client. ``timeout`` is that of an item.
    - ``on_progress``: is called with a `Progress`, about ten times a second.

    Raises:
        InputError: Something is wrong in the file. Nothing was sent.
        JournalError: The journal is in use, belongs to something else, or cannot be written.
    """
    check_settings(concurrency, rate)
    client = make_client(api_key=api_key, base_url=base_url, timeout=timeout)
    settings = Settings(concurrency, rate, balance_first, shard)

    async def main() -> Progress:
        stop = Stop()
        with _signals_handled(stop.handler(asyncio.get_running_loop())):
            async with client:
                return await opened.send_until(stop, client, settings, on_progress)

    with Run(client.protocol, method, file, journal, shard) as opened:
        return anyio.run(main)


@contextmanager
def _signals_handled(handler: Callable[[int, FrameType | None], None]) -> Generator[None]:
    """Handle SIGINT and SIGTERM in the main thread. Others leave signals alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler_before in before.items():
            # None: it was not set from Python.
            signal.signal(number, handler_before or signal.SIG_DFL)


async def run_async(  # noqa: PLR0913 - each but three has a default
    client: AsyncCoreClient,
    method: str,
    file: str | PathLike[str],
    *,
    journal: str | PathLike[str] | None = None,
    shard: Shard | None = None,
    concurrency: int = CONCURRENCY,
    rate: float | None = None,
    balance_first: bool = False,
    on_progress: Callable[[Progress], object] | None = None,
) -> Progress:
    """Do what `run` does, on asyncio or trio, with your own asynchronous client.

    If it is cancelled, it sends nothing more, waits for the responses to what it has sent, and is
    then cancelled.
    """
    check_type("client", client, AsyncCoreClient, "AsyncCreduseClient()")
    check_settings(concurrency, rate)
    settings = Settings(concurrency, rate, balance_first, shard)
    make = partial(Run, client.protocol, method, file, journal, shard)

    async def act(stop: Stop) -> Progress:
        with await anyio.to_thread.run_sync(make) as opened:
            return await opened.send_until(stop, client, settings, on_progress)

    return await _to_its_end(act)
