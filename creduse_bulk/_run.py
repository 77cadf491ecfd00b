"""A run: an input file, its journal, and the client that sends. What the command prints is not here."""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from creduse_core import AsyncCoreClient, CreduseProtocol
from creduse_core.arguments import check_type
from creduse_journal.committer import wait_for

from ._driver import Driver, Settings
from ._input import COLUMNS, Input, Overview, Shard
from ._items import Identity, check_identity, name_of
from ._progress import Progress, check_alone, place_of, read_journal
from ._sending import CONCURRENCY, Reports, Stop, check_settings, make_client, send_here, to_its_end
from ._source import FileSource

if TYPE_CHECKING:
    from typing import Self


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
        self.place = place_of(path, journal, shard)
        self._shard = shard
        self.overview: Overview | None = None
        """What is in the file, if the run has not begun."""
        self.before: Progress | None = None
        """How far it came, if it has begun."""
        with ExitStack() as stack:
            self._input = stack.enter_context(Input(path, method))
            self._identity = Identity(method, self._input.digest, protocol.base_url, name_of(shard))
            found = read_journal(self.place)
            if found is None:
                if journal is None:
                    check_alone(path, shard)
                self.overview = self._input.examine(shard)
                self.items = self.overview.items
            else:
                begun, self.before = found
                check_identity(self.place, begun.identity, self._identity)
                self.items = begun.items
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
        items = await anyio.to_thread.run_sync(self.place.open, self._identity, key, self.overview)
        try:
            report = Reports(self.items, await wait_for(items.counts()), on_progress)
            source = FileSource(self._input, items, self._shard)
            driver = Driver(client, source, items, settings, report.changed)
            stop.attach(driver)
            await wait_for(items.set_stopped("its process ended"))
            await driver.run()
            await wait_for(items.set_stopped(driver.stopped))
            report.ended(driver, await wait_for(items.counts()))
        finally:
            await anyio.to_thread.run_sync(items.close)
        return report.progress


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
    timeout: float | None = None,
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
    - ``journal``: a file, by default beside the input file, or the URL of a PostgreSQL database.
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
    settings = Settings(concurrency, rate, balance_first)

    with Run(client.protocol, method, file, journal, shard) as opened:
        return send_here(opened, client, settings, on_progress)


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
    settings = Settings(concurrency, rate, balance_first)
    make = partial(Run, client.protocol, method, file, journal, shard)

    async def act(stop: Stop) -> Progress:
        with await anyio.to_thread.run_sync(make) as opened:
            return await opened.send_until(stop, client, settings, on_progress)

    return await to_its_end(act)
