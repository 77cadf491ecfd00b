"""The loop that sends items: it claims them, runs their calls, and writes how they ended.

One task does all bookkeeping. It alone writes to the journal: a transaction has all ends since the last
one, and the next claims. Files, and what a caller sees of a run, do not belong here.
"""

import math
import time
from collections import Counter, deque
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import anyio

from creduse_core import (
    APIError,
    AsyncCoreClient,
    BalanceReading,
    Call,
    CreduseError,
    CreduseProtocol,
    Pace,
)
from creduse_core import State as CallState
from creduse_core.foreign import members
from creduse_core.retry import retry_after
from creduse_journal import Change, JournalError, LostError, UnavailableError, readings
from creduse_journal._states import LONGEST_CLAIM, change_of
from creduse_journal.committer import wait_for

from ._input import Item
from ._items import Claim, Ended, Writer
from ._queue import Queue
from ._records import InputError
from ._source import Source
from ._window import End, Window

if TYPE_CHECKING:
    from uuid import UUID

    from anyio.abc import TaskGroup

AHEAD: Final = 3
"""The largest window, as a multiple of ``concurrency``. After a kill, so many items may be unclear."""
PATIENCE: Final = 900.0
"""The patience of a run that has an end."""

_READ_AHEAD: Final = 3000
"""Items in the queue. A shorter one could hold the items of a single user, sent one at a time."""
_FEW: Final = 1000
"""If fewer items came, there may be no more at the moment."""
FIRST_PROBE: Final = 1.0
"""Seconds before the first balance that finds out whether the service is back. They double."""
_LONGEST_PROBE: Final = 60.0
"""Seconds between two of them at most."""
_PROBE_TIMEOUT: Final = 10.0
"""Seconds for a balance."""
MAX_LATE: Final = 0.1
"""Seconds by which a late timer does not lower the rate."""
_OF_THE_RUN: Final = frozenset({401, 403, 404, 405, 407, 421, 426, 428, 451})
"""Status codes that concern all calls. The service rejects others of its 4xx for the item's sake."""
_REJECTIONS: Final = 10
"""Rejections in a row, after which the run stops: they cannot all be for the item's sake."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How to send."""

    concurrency: int
    rate: float | None
    """The largest number of items a second."""
    balance_first: bool
    patience: float = PATIENCE
    """Seconds without any item that the service has carried out or refused, after which a run stops."""


class Driver:
    """Sends the items of a run, once."""

    def __init__(
        self,
        client: AsyncCoreClient,
        source: Source,
        items: Writer,
        settings: Settings,
        on_change: Callable[["Driver"], object],
    ) -> None:
        # A claim is for one attempt. What was not applied is claimed again.
        once = replace(client.protocol.retry, max_attempts=1)
        self._protocol = client.protocol.with_retry(once)
        self._client = client
        self._source = source
        self._read_at = -math.inf  # inf at the end
        self._items = items
        self._settings = settings
        self._on_change = on_change
        self._queue = Queue()
        # Claimed items wait for a worker, so that no worker waits for the disk.
        self._window = Window(AHEAD * settings.concurrency)
        self._claimed: deque[tuple[Item, float]] = deque()
        self._idle: list[anyio.Event] = []
        self._pace = Pace()
        self._next_at = 0.0
        self._reading = 0
        self._ready: list[tuple[Item, BalanceReading | None]] = []
        self._ended: list[Ended] = []
        self._rejections = 0  # in a row
        self._problem = ""
        self._bad_since: float | None = None
        self._wake = anyio.Event()
        self._is_ended = False
        self._scope = anyio.CancelScope()
        self._reads: set[anyio.CancelScope] = set()
        self.counts: Counter[Change] = Counter()
        """How calls have ended in this run."""
        self.in_flight = 0
        self.stopped: str | None = None
        """Why the run stops, or ``None``."""
        self.pause: str | None = None
        """Why nothing is sent at the moment, or ``None``."""

    @property
    def waiting(self) -> int:
        """How many items are in the queue."""
        return len(self._queue)

    def stop(self, why: str) -> None:
        """Send no more items, and end when those in flight have ended."""
        if self.stopped is None:
            self.stopped = why
        self._release_claimed()
        for scope in self._reads:
            scope.cancel()
        self._wake.set()

    def abort(self) -> None:
        """Do not wait for items in flight, which become unclear, nor for a lost database."""
        self._items.give_up()
        self._scope.cancel()

    async def run(self) -> None:
        """Send all items, or as many as possible until it is stopped. Do not cancel it.

        Raises:
            JournalError: The journal cannot be written. Nothing more is sent.
        """
        failure: JournalError | None = None
        with self._scope:
            async with _task_group() as tasks:
                for _ in range(self._settings.concurrency):
                    tasks.start_soon(self._work)
                try:
                    while not self._is_over():
                        await self._step(tasks)
                except JournalError as error:
                    failure = error
                    self._release_claimed()
                self._is_ended = True
                self._wake_workers(len(self._idle))
        if failure is not None and not isinstance(failure, UnavailableError):
            with suppress(JournalError):  # one operation may have been wrong
                await self._commit([])
        if failure is not None:
            raise failure
        await self._commit([])

    def _is_over(self) -> bool:
        if self.in_flight or self._claimed or self._reading or self._ended:
            return False
        if self.stopped is not None:
            return True
        return self._read_at == math.inf and not self._queue and not self._ready

    async def _step(self, tasks: "TaskGroup") -> None:
        """Do what can be done now, or wait."""
        self._wake = anyio.Event()
        self._check_patience()
        await self._read_ahead()
        if self._window.is_closed and not self.in_flight and self.stopped is None:
            await self._commit([])
            await self._wait_for_service()
        wait = min(self._choose(tasks), self._until_read())
        ready, self._ready = ([] if self.stopped is not None else self._ready), []
        if ready or self._ended:
            await self._commit(ready)
        elif not self._is_over():
            with anyio.move_on_after(wait):
                await self._wake.wait()
        self._on_change(self)

    async def _read_ahead(self) -> None:
        """Fill the queue with items that must be sent."""
        while (
            len(self._queue) < _READ_AHEAD
            and self._read_at <= time.monotonic()
            and self.stopped is None
        ):
            try:
                items = await self._source.more()
            except InputError as error:
                self.stop(str(error))
                return
            if items is None:
                self._read_at = math.inf
                return
            if len(items) < _FEW:
                self._read_at = time.monotonic() + self._source.interval
            for item in items:
                self._queue.put(item)

    def _until_read(self) -> float:
        """Return the seconds until more items must be read."""
        if self.stopped is not None or len(self._queue) >= _READ_AHEAD:
            return math.inf
        return max(self._read_at - time.monotonic(), 0)

    def _choose(self, tasks: "TaskGroup") -> float:
        """Make items ready to be claimed, and return the seconds until the next one may be."""
        while self.stopped is None and not self._window.is_closed:
            taken = self.in_flight + len(self._claimed) + len(self._ready) + self._reading
            if taken >= self._window.size:
                break
            now = time.monotonic()
            if self._next_at > now:
                return self._next_at - now
            item = self._queue.take()
            if item is None:
                break
            if wait := self._pace.hold(item.number, now):
                self._queue.put_back(item)
                return wait
            if self._settings.rate is not None:
                self._next_at = max(self._next_at, now - MAX_LATE) + 1 / self._settings.rate
            if self._settings.balance_first:
                self._reading += 1
                tasks.start_soon(self._read_first, item)
            else:
                self._ready.append((item, None))
        return math.inf

    async def _read_first(self, item: Item) -> None:
        """Read a balance before an item is claimed."""
        try:
            reading = await self._read(item.user)
            if reading is None:
                self._queue.put_back(item)
            else:
                self._ready.append((item, reading))
        finally:
            self._reading -= 1
            self._wake.set()

    async def _read(self, user: "UUID") -> BalanceReading | None:
        """Return a balance, or ``None`` if the service does not give one, or the run stops."""
        if self.stopped is not None:
            return None
        with anyio.CancelScope() as scope:
            self._reads.add(scope)
            try:
                return await self._client.reading(
                    user, timeout=min(_PROBE_TIMEOUT, self._protocol.timeout)
                )
            except CreduseError as error:
                status = error.status_code if isinstance(error, APIError) else None
                event = error.attempts[-1].event if error.attempts else None
                self._problem = str(error)
                self._bad_since = self._bad_since or time.monotonic()
                if event == "unsendable" or status in _OF_THE_RUN:
                    self.stop(self._problem)
                elif event != "rate_limited":
                    self._window.ended(End.FAILED)
            finally:
                self._reads.discard(scope)
        return None

    async def _wait_for_service(self) -> None:
        """Read a balance again and again, until the service is back or the run stops."""
        item = self._queue.take()
        if item is None:
            self._window.reopen()
            return
        self._queue.put_back(item)
        delay = FIRST_PROBE
        while self.stopped is None:
            self.pause = f"the next try is in {delay:.0f} s: {self._problem}"
            self._on_change(self)
            self._wake = anyio.Event()
            with anyio.move_on_after(delay):
                await self._wake.wait()
            if await self._read(item.user) is not None:
                self._window.reopen()
                break
            delay = min(2 * delay, _LONGEST_PROBE)
            self._check_patience()
        self.pause = None

    def _check_patience(self) -> None:
        """Stop if the service has failed for long, or again and again."""
        if self._window.is_hopeless:
            self.stop("the service reads balances, but fails at each of the last lines")
        elif (
            self._bad_since is not None
            and time.monotonic() - self._bad_since > self._settings.patience
        ):
            self.stop(
                f"the service has carried out nothing for {self._settings.patience:g} seconds"
            )

    async def _commit(self, ready: list[tuple[Item, BalanceReading | None]]) -> None:
        """Write how items have ended, and claim others."""
        ended, self._ended = self._ended, []
        if not ended and not ready:
            return
        now = time.time()
        claims = [
            Claim(item.number, str(item.user), now, None if it is None else readings.to_json(it))
            for item, it in ready
        ]
        numbers = set[int]()
        # After `abort`, what is being claimed is released below.
        with anyio.CancelScope(shield=True):
            try:
                numbers = await wait_for(self._items.write(ended, claims))
            except JournalError as error:
                # The claims may be written. Nothing of them was sent.
                unsent = [Ended(item.number, Change.RELEASE) for item, _ in ready]
                if isinstance(error, LostError):  # the ends are written
                    self._ended += unsent
                    self.stop(str(error))
                else:
                    self._ended = [*ended, *unsent, *self._ended]
                    raise
        for item, _ in ready:
            if item.number in numbers:
                self._claimed.append((item, now))
            else:  # another item of the user is unclear
                self._pace.leave(item.number)
                self._queue.done(item)
        if self.stopped is None and not self._window.is_closed:
            self._wake_workers(len(self._claimed))
        else:
            self._release_claimed()

    def _wake_workers(self, count: int) -> None:
        for _ in range(min(count, len(self._idle))):
            self._idle.pop().set()

    def _release_claimed(self) -> None:
        """Give up the claims of items that were not sent."""
        while self._claimed:
            self._release(self._claimed.pop()[0])

    def _release(self, item: Item) -> None:
        """Give up the claim of an item that was not sent."""
        self._pace.leave(item.number)
        self._ended.append(Ended(item.number, Change.RELEASE))
        self._queue.put_back(item)

    async def _work(self) -> None:
        """Send claimed items until the run is over."""
        while not self._is_ended:
            if not self._claimed:
                event = anyio.Event()
                self._idle.append(event)
                await event.wait()
                continue
            item, claimed_at = self._claimed.popleft()
            if time.time() - claimed_at > LONGEST_CLAIM:
                self._release(item)
                self._wake.set()
                continue
            self.in_flight += 1
            call = _CALLS[item.method](self._protocol, item)
            error: CreduseError | None = None
            try:
                await self._client.run(call)
            except CreduseError as raised:
                error = raised
            finally:
                self.in_flight -= 1
                self._end(item, call, error)
                # The next claims come with many ends, but before the last claimed item is taken.
                if len(self._claimed) <= self._settings.concurrency // 4:
                    self._wake.set()

    def _end(self, item: Item, call: Call[Any], error: CreduseError | None) -> None:
        """Take note of how a call has ended."""
        response, now = call.response, time.monotonic()
        status = None if response is None else response.status
        change, event, code = (
            (Change.APPLY, "done", None)
            if call.state is CallState.SUCCEEDED
            else self._failed(call, status, error)
        )
        wait = retry_after(response) if response and status in {429, 503} else None
        self._pace.ended(item.number, status, wait, now)
        end = _ENDS.get(event, End.FAILED)
        self._window.ended(end)
        if end is End.GOOD:
            self._bad_since = None
        else:
            self._bad_since = self._bad_since or now
        self._rejections = self._rejections + 1 if event == "rejected" else 0
        if self._rejections >= _REJECTIONS:
            self.stop(f"the service rejects one line after another: {self._problem}")
        self.counts[change] += 1
        kept = call.redacted_response
        body = None if kept is None else kept.body
        self._ended.append(Ended(item.number, change, event, status, code, body))
        if change is Change.RELEASE:
            self._queue.put_back(item)
        else:
            self._queue.done(item)
        # Those that are claimed now wait their turn again.
        if self._window.is_closed or event == "rate_limited":
            self._release_claimed()

    def _failed(
        self, call: Call[Any], status: int | None, error: CreduseError | None
    ) -> tuple[Change, str | None, str | None]:
        """Return what a call without a result changes, its event, and the service's code.

        Stop if it is not for the item's sake.
        """
        event = call.attempts[-1].event if call.attempts else None
        change = change_of(call)
        is_rejected = event == "rejected"
        self._problem = str(error)
        if is_rejected and status not in _OF_THE_RUN:
            change = Change.REFUSE
        if event == "unsendable" or (is_rejected and change is Change.RELEASE):
            self.stop(self._problem)
        return change, event, error.error_code if isinstance(error, APIError) else None


@asynccontextmanager
async def _task_group() -> AsyncGenerator["TaskGroup"]:
    """Yield a task group. An exception that leaves it alone is in no group: callers expect none."""
    try:
        async with anyio.create_task_group() as tasks:
            yield tasks
    except BaseExceptionGroup as group:
        leaves = members(group)
        error = leaves[0] if len(leaves) == 1 else group
        raise error from error.__cause__


_ENDS: Final = {
    "done": End.GOOD,
    "misread": End.GOOD,
    "refused": End.GOOD,
    "rejected": End.NEUTRAL,
    "rate_limited": End.NEUTRAL,
    "unsendable": End.NEUTRAL,
    "abandoned": End.NEUTRAL,
    None: End.NEUTRAL,
}
"""What the end of a call, by its event, says about the service. All other ends are failures."""

_CALLS: Final[Mapping[str, Callable[[CreduseProtocol, Item], Call[Any]]]] = {
    "add": lambda make, it: make.add(it.user, it.amount or 0, it.validity_days),
    "subtract": lambda make, it: make.subtract(it.user, it.amount or 0),
    "start_cycle": lambda make, it: make.start_cycle(it.user, it.amount or 0, it.validity_days),
    "stop_cycle": lambda make, it: make.stop_cycle(it.user),
}
"""How an item becomes a call."""
