"""What runs of files and of an outbox share: settings, the client, stops, signals and progress.

What is sent (`_run`, `_follow`), and how (`_driver`), does not belong here.
"""

import asyncio
import logging
import math
import signal
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager, suppress
from functools import partial
from types import FrameType
from typing import Final, Protocol

import anyio

from creduse_core import AsyncCoreClient
from creduse_core.arguments import check_at_least_one
from creduse_core.foreign import is_from_signal_handler
from creduse_journal import RULES, State

from ._driver import Driver, Settings
from ._progress import Progress, progress_of

CONCURRENCY: Final = 16
"""Items in flight at once, by default."""
MAX_CONCURRENCY: Final = 100
"""As many connections as a client has."""

_logger: Final = logging.getLogger("creduse")
_BETWEEN_REPORTS: Final = 0.1
"""Seconds."""


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


async def to_its_end(act: Callable[[Stop], Awaitable[Progress]]) -> Progress:
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


class Reports:
    """Reports progress, some times a second.

    ``items``: all items, or ``None`` if nobody knows how many there will be.
    """

    def __init__(
        self,
        items: int | None,
        before: dict[State, int],
        on_progress: Callable[[Progress], object] | None,
    ) -> None:
        self._items = items
        self._before = before
        self._on_progress = on_progress
        self._last = -math.inf
        self._news: tuple[str | None, str | None] = (None, None)
        self.progress = progress_of(items or 0, before)

    def changed(self, driver: Driver, *, at_once: bool = False) -> None:
        """Report how far the driver is, as far as it has sent the items itself."""
        now, news = time.monotonic(), (driver.pause, driver.stopped)
        if now - self._last < _BETWEEN_REPORTS and news == self._news and not at_once:
            return
        self._last, self._news = now, news
        counts = Counter(self._before)
        for change, state in RULES[State.CLAIMED].items():
            counts[state] += driver.counts[change]
        self._report(counts, driver.in_flight, driver)

    def ended(self, driver: Driver, counts: dict[State, int]) -> None:
        """Report how far the run is. Another process may have taken over."""
        self._report(counts, counts[State.CLAIMED], driver)

    def _report(self, counts: dict[State, int], in_flight: int, driver: Driver) -> None:
        items = self._items
        if items is None:
            done = counts[State.APPLIED] + counts[State.REFUSED] + counts[State.UNCLEAR]
            items = done + in_flight + driver.waiting
        self.progress = progress_of(items, counts, in_flight, driver.pause, driver.stopped)
        if self._on_progress is not None:
            try:
                self._on_progress(self.progress)
            except Exception as error:
                if is_from_signal_handler(error):
                    raise
                _logger.exception("on_progress raised; the run goes on")


def make_client(
    *, api_key: str | None, base_url: str | None, timeout: float | None
) -> AsyncCoreClient:
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


class Sends(Protocol):
    """What can be sent until somebody stops it."""

    async def send_until(
        self,
        stop: Stop,
        client: AsyncCoreClient,
        settings: Settings,
        on_progress: Callable[[Progress], object] | None,
    ) -> Progress:
        """Send, and return how far it came. The task must not be cancelled."""
        ...


def send_here(
    what: Sends,
    client: AsyncCoreClient,
    settings: Settings,
    on_progress: Callable[[Progress], object] | None,
) -> Progress:
    """Send on an event loop of its own, until a signal stops it."""

    async def main() -> Progress:
        stop = Stop()
        with _signals_handled(stop.handler(asyncio.get_running_loop())):
            async with client:
                return await what.send_until(stop, client, settings, on_progress)

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
