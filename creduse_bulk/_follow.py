"""Deliver the entries that apps insert, until somebody stops it. SQL (`_outbox`) does not belong here."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import anyio.to_thread

from creduse_core import AsyncCoreClient, CreduseProtocol
from creduse_core.arguments import check_type
from creduse_journal import State
from creduse_journal.urls import is_url

from ._driver import Driver, Settings
from ._input import Shard
from ._progress import Progress
from ._sending import (
    CONCURRENCY,
    Reports,
    Stop,
    check_settings,
    make_client,
    send_here,
    to_its_end,
)

if TYPE_CHECKING:
    from ._outbox import Outbox

_WHOLE: Final = Shard(1, 1)


class Follower:
    """Sends what apps insert, for all users or for those of a shard."""

    def __init__(self, journal: str, shard: Shard | None) -> None:
        if not is_url(journal):
            raise ValueError(
                "journal must be a URL such as postgresql://user@host/database: apps insert entries "
                "there"
            )
        if shard is not None:
            check_type("shard", shard, Shard, "Shard(2, 4)")
        self._journal = journal
        self._shard = shard or _WHOLE

    def _open(self, protocol: CreduseProtocol) -> "Outbox":
        # psycopg may not be installed, and to import it takes too long for an event loop.
        from ._outbox import Outbox  # noqa: PLC0415

        return Outbox(self._journal, protocol.base_url, self._shard)

    async def send_until(
        self,
        stop: Stop,
        client: AsyncCoreClient,
        settings: Settings,
        on_progress: Callable[[Progress], object] | None,
    ) -> Progress:
        """Send what comes, until somebody stops it. The task must not be cancelled."""
        outbox = await anyio.to_thread.run_sync(self._open, client.protocol)
        try:
            report = Reports(None, dict.fromkeys(State, 0), on_progress)
            driver = Driver(client, outbox, outbox, settings, report.changed)
            stop.attach(driver)
            await driver.run()
            report.changed(driver, at_once=True)
        finally:
            await anyio.to_thread.run_sync(outbox.close)
        return report.progress


def endless_settings(concurrency: int, rate: float | None, *, balance_first: bool) -> Settings:
    """Return settings without an end of patience: the service may be back tomorrow."""
    check_settings(concurrency, rate)
    return Settings(concurrency, rate, balance_first, patience=math.inf)


def follow(  # noqa: PLR0913 - each but one has a default
    journal: str,
    *,
    shard: Shard | None = None,
    concurrency: int = CONCURRENCY,
    rate: float | None = None,
    balance_first: bool = False,
    api_key: str | None = None,
    base_url: str | None = None,
    timeout: float | None = None,
    on_progress: Callable[[Progress], object] | None = None,
) -> Progress:
    """Send what apps insert into ``creduse_entries``, each entry at most once, until it is stopped.

    In the main thread, SIGINT and SIGTERM stop it: it sends nothing more, waits for the responses to
    what it has sent, and returns what it has done since it began. ``stopped`` of the result says why
    it has stopped: the signal's name, or a fault that a person must mend, such as a rejected API key.

    - ``journal``: the URL of the database, such as ``postgresql://user@host/database``.
    - ``shard``: ``Shard(2, 4)`` sends only for the second of four parts of the users, for four
      processes that share the work. One process follows a shard; others get an `InUseError`.
    - All others are those of `run`.

    Raises:
        JournalError: Another process follows, or the database cannot be used.
    """
    settings = endless_settings(concurrency, rate, balance_first=balance_first)
    client = make_client(api_key=api_key, base_url=base_url, timeout=timeout)
    return send_here(Follower(journal, shard), client, settings, on_progress)


async def follow_async(
    client: AsyncCoreClient,
    journal: str,
    *,
    shard: Shard | None = None,
    concurrency: int = CONCURRENCY,
    rate: float | None = None,
    balance_first: bool = False,
    on_progress: Callable[[Progress], object] | None = None,
) -> Progress:
    """Do what `follow` does, on asyncio or trio, with your own asynchronous client.

    If it is cancelled, it sends nothing more, waits for the responses to what it has sent, and is
    then cancelled.
    """
    check_type("client", client, AsyncCoreClient, "AsyncCreduseClient()")
    settings = endless_settings(concurrency, rate, balance_first=balance_first)
    follower = Follower(journal, shard)
    return await to_its_end(lambda stop: follower.send_until(stop, client, settings, on_progress))
