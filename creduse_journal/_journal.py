"""Run calls under a journal, synchronously and on an event loop. SQL (`_store`) does not belong here."""

import time
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4
from weakref import ref

from creduse_core import (
    APIError,
    AsyncCoreClient,
    BalanceReading,
    Call,
    CallRecord,
    CoreClient,
    CreduseError,
    Done,
    Evidence,
    Outcome,
    Response,
)
from creduse_core import State as CallState
from creduse_core.arguments import check_type
from creduse_core.evidence import CLOCK_SKEW, known_since

from ._entries import (
    Entry,
    JournalError,
    Row,
    UnclearError,
    entry_of,
    row_of_call,
)
from ._states import LONGEST_CLAIM, Change, State, change_of
from ._store import Store
from .committer import wait_for
from .urls import is_url, without_password

if TYPE_CHECKING:
    from typing import Self

    from ._postgres_store import PostgresStore

T = TypeVar("T")


class _Claim:
    """A claim. It lives as long as the call that it is for."""

    __slots__ = ("__weakref__", "row")

    def __init__(self, row: Row) -> None:
        self.row = row


class _JournalBase:
    """What both journals share: everything but waiting."""

    def __init__(self, path: str | PathLike[str]) -> None:
        self._name = without_password(str(path))
        self._store = _open(path)
        self._claims: dict[str, tuple[str, ref[_Claim]]] = {}
        """Claims whose ends are not written yet, with the ids of their entries."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._name}>"

    def _claim(
        self,
        client: CoreClient | AsyncCoreClient,
        entry_id: str,
        call: Call[Any],
        before: BalanceReading | None,
    ) -> _Claim:
        """Return a new claim."""
        row = row_of_call(call.record, datetime.now(UTC), before)
        base_url = client.protocol.base_url
        row |= {"id": entry_id, "claim": uuid4().hex, "base_url": base_url}
        claim = _Claim(row)
        self._claims[row["claim"]] = entry_id, ref(claim)
        return claim

    def _end(self, row: Row, call: Call[Any], code: str | None) -> None:
        """Write how a call ended."""
        attempts, response = call.attempts, call.redacted_response
        self._write_end(
            row["id"],
            row["claim"],
            change_of(call),
            event=attempts[-1].event if attempts else None,
            status=None if response is None else response.status,
            error_code=code,
            body=None if response is None else response.body,
        )

    def _write_end(self, entry_id: str, claim: str, change: Change, **columns: Any) -> None:
        """Write an end. It is not awaited: without it, the entry is unclear, which is true.

        If the claim did not succeed, nothing is written. If the call was cancelled while it was
        claimed, its end still comes after its claim.
        """
        it = dict.fromkeys(("event", "status", "error_code", "body")) | columns
        with suppress(JournalError):
            self._store.end(entry_id, change, claim, ended_at=time.time(), **it)
        self._claims.pop(claim, None)  # another thread can have done the same

    def _doubt_lost(self) -> None:
        """Make the entries of calls unclear that are gone without an end.

        A signal handler can raise before the end is written.
        """
        for claim, (entry_id, alive) in self._claims.copy().items():
            # One that has ended properly was removed before it could die.
            if alive() is None and claim in self._claims:
                self._write_end(entry_id, claim, Change.DOUBT)


def _open(path: str | PathLike[str]) -> "Store | PostgresStore":
    if is_url(path):
        from ._postgres_store import PostgresStore  # noqa: PLC0415 - it may not be installed

        return PostgresStore(path)
    return Store(Path(path))


def _check_age(row: Row) -> None:
    """Raise `JournalError` if a claim is so old that others may have decided about it."""
    if time.time() - row["began_at"] > LONGEST_CLAIM:
        raise JournalError(f"nothing was sent: to claim {row['id']!r} took too long")


def _check(entry_id: str, call: Call[Any], *, balance_first: bool) -> None:
    check_type("balance_first", balance_first, bool)
    check_type("entry_id", entry_id, str, '"invoice-42"')
    if not entry_id.strip():
        raise ValueError("entry_id must not be blank")
    check_type("call", call, Call, "client.protocol.add(…)")
    if call.record.method == "get_balance":
        raise ValueError("get_balance moves no credits, so it needs no journal")
    if call.state is not CallState.READY:
        call.start(0.0)  # raises


def _can_be_sent(row: Row | None) -> bool:
    return row is None or row["state"] == State.FREE


def _known_end(row: Row, call: Call[T]) -> T:
    """Return the result of an entry that was sent before, or raise its error."""
    entry = entry_of(row)
    if entry.state in {State.CLAIMED, State.UNCLEAR}:
        advice = (
            "is being sent now: run it again later"
            if entry.state is State.CLAIMED
            else "was sent before, and may have been applied: see check() and settle()"
        )
        raise UnclearError(
            f"{entry.id!r} {advice}",
            outcome=Outcome.UNKNOWN,
            call=entry.call,
        )
    if row["event"] in {"done", "misread", "refused"}:
        response = Response(row["status"], (), row["body"])
    else:  # settled as applied
        response = Response(200, (), _response_to(call))
    # The call reads the stored response as it would read one that has just arrived.
    call.start(0.0)
    done = call.receive_response(response, 0.0)
    assert isinstance(done, Done)  # noqa: S101 - a refusal and a 2xx end a call
    return done.result


def _response_to(call: Call[Any]) -> bytes:
    """Return a response for an entry that was settled as applied."""
    if call.record.method in {"start_cycle", "stop_cycle"}:
        raise CreduseError(
            "the entry was settled as applied, and nobody knows the service's response",
            outcome=Outcome.APPLIED,
            call=call.record,
        )
    return call.request.body  # it has the fields of the response


def _settlement(*, applied: bool, note: str) -> tuple[Change, str]:
    check_type("applied", applied, bool)
    check_type("note", note, str, '"seen at the dashboard by Ada"')
    if not note.strip():
        raise ValueError("note must say who settles the entry, and why")
    return (Change.SETTLE_APPLIED if applied else Change.SETTLE_FREE), note


def _others(
    entry: Entry, rows: Iterable[Row], base_url: str, clock_skew: float
) -> list[CallRecord]:
    """Return those of the user's other calls that can have been applied since the balance before.

    Calls to another service than ``base_url`` change another balance.
    """
    call = entry.call
    if call.began_at is None:  # nothing was sent
        return []
    since = known_since(call.began_at, clock_skew).timestamp()
    if call.before is not None:
        since = call.before.asked_at.timestamp()
    # A call can have been applied until it ended, however early it began.
    return [
        entry_of(row).call
        for row in rows
        if row["id"] != entry.id
        and row["base_url"] in {base_url, None}
        and (row["state"] in {State.CLAIMED, State.UNCLEAR} or (row["ended_at"] or 0.0) >= since)
    ]


class Journal(_JournalBase):
    """A journal for synchronous clients. Threads can share it.

    Use it with ``with``, or call ``close()``. ``path`` is a file on a local disk, which one process has
    open at a time, or the URL of a PostgreSQL database, such as ``postgresql://user@host/database``,
    which many processes share. The journal is made if there is none. If you fork, open it after the
    fork.

    Raises:
        JournalError: The file is in use, is no journal, or is on a network file system; or the
            database cannot be used.
    """

    def __enter__(self) -> "Self":
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Write what is known, and close the journal. End all calls first."""
        self._store.close()

    def run(
        self, client: CoreClient, entry_id: str, call: Call[T], *, balance_first: bool = False
    ) -> T:
        """Run a call, unless one with this id was sent before. Return its result, or raise its error.

        - Without an entry, or if it is free: the call is claimed on the disk, sent, and its end is
          written.
        - If it was applied: the stored result is returned, and nothing is sent.
        - If the service refused it: the same error is raised, and nothing is sent. To try again, use
          another id, or settle it as not applied.
        - If it is unclear: `UnclearError` is raised, whose outcome is UNKNOWN, and nothing is sent.

        ``entry_id``: your own name for the job, such as an invoice's number. An id of another call
        raises ``ValueError``. ``balance_first``: read the balance before, so that ``check`` can tell
        more. If the journal fails before the call is sent, it raises `JournalError`.
        """
        _check(entry_id, call, balance_first=balance_first)
        before = None
        if balance_first and _can_be_sent(self._store.get(entry_id).result()):
            before = client.reading(
                call.record.end_user_id, timeout=call.timeout, extra_headers=call.extra_headers
            )
        claim, code = self._claim(client, entry_id, call, before), None
        try:
            found = self._store.claim(claim.row).result()
            if found["state"] == State.FREE:
                _check_age(claim.row)
                return client.run(call)
        except APIError as error:
            code = error.error_code
            raise
        finally:
            try:
                self._end(claim.row, call, code)
            finally:
                del claim  # a traceback would keep it alive
        return _known_end(found, call)

    def get(self, entry_id: str) -> Entry | None:
        """Return an entry, or ``None`` if there is none."""
        self._doubt_lost()
        row = self._store.get(entry_id).result()
        return None if row is None else entry_of(row)

    def unclear(self) -> list[Entry]:
        """Return all entries that are unclear, the oldest first."""
        self._doubt_lost()
        return [entry_of(row) for row in self._store.unclear().result()]

    def check(
        self,
        client: CoreClient,
        entry_id: str,
        *,
        clock_skew: float = CLOCK_SKEW,
        lists_empty_cycles: bool = False,
        timeout: float | None = None,
    ) -> Evidence:
        """Return what the balance proves about an unclear entry. See `CoreClient.check`.

        The journal's other calls for the same user are taken into account. Begin none meanwhile.
        """
        self._doubt_lost()
        entry = _needed(self._store.get(entry_id).result(), entry_id, client)
        rows = self._store.of_user(str(entry.call.end_user_id)).result()
        return client.check(
            entry.call,
            known=_others(entry, rows, client.protocol.base_url, clock_skew),
            clock_skew=clock_skew,
            lists_empty_cycles=lists_empty_cycles,
            timeout=timeout,
        )

    def settle(self, entry_id: str, *, applied: bool, note: str) -> Entry:
        """Decide that an unclear entry was applied, or that it was not and never will be.

        A refused entry can be settled as not applied, too. Then the id can be sent again. ``note`` says
        who decides, and why. Another state raises `LocalProtocolError`, an unknown id ``KeyError``.
        """
        self._doubt_lost()
        change, note = _settlement(applied=applied, note=note)
        return entry_of(self._store.settle(entry_id, change, note).result())


class AsyncJournal(_JournalBase):
    """A journal for asynchronous clients, on asyncio or trio. Tasks can share it.

    It has the methods of `Journal`. Await them. Use ``async with``, or await ``aclose()``. Opening blocks
    the event loop: some milliseconds for a file, some seconds for PostgreSQL.
    """

    async def __aenter__(self) -> "Self":
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Write what is known, and close the journal. End all calls first."""
        await wait_for(self._store.close_soon())

    async def run(
        self, client: AsyncCoreClient, entry_id: str, call: Call[T], *, balance_first: bool = False
    ) -> T:
        """Run a call, unless one with this id was sent before. See `Journal.run`."""
        _check(entry_id, call, balance_first=balance_first)
        before = None
        if balance_first and _can_be_sent(await wait_for(self._store.get(entry_id))):
            before = await client.reading(
                call.record.end_user_id, timeout=call.timeout, extra_headers=call.extra_headers
            )
        claim, code = self._claim(client, entry_id, call, before), None
        try:
            found = await wait_for(self._store.claim(claim.row))
            if found["state"] == State.FREE:
                _check_age(claim.row)
                return await client.run(call)
        except APIError as error:
            code = error.error_code
            raise
        finally:
            try:
                self._end(claim.row, call, code)
            finally:
                del claim  # a traceback would keep it alive
        return _known_end(found, call)

    async def get(self, entry_id: str) -> Entry | None:
        """Return an entry, or ``None`` if there is none."""
        self._doubt_lost()
        row = await wait_for(self._store.get(entry_id))
        return None if row is None else entry_of(row)

    async def unclear(self) -> list[Entry]:
        """Return all entries that are unclear, the oldest first."""
        self._doubt_lost()
        rows = await wait_for(self._store.unclear())
        return [entry_of(row) for row in rows]

    async def check(
        self,
        client: AsyncCoreClient,
        entry_id: str,
        *,
        clock_skew: float = CLOCK_SKEW,
        lists_empty_cycles: bool = False,
        timeout: float | None = None,
    ) -> Evidence:
        """Return what the balance proves about an unclear entry. See `Journal.check`."""
        self._doubt_lost()
        entry = _needed(await wait_for(self._store.get(entry_id)), entry_id, client)
        rows = await wait_for(self._store.of_user(str(entry.call.end_user_id)))
        return await client.check(
            entry.call,
            known=_others(entry, rows, client.protocol.base_url, clock_skew),
            clock_skew=clock_skew,
            lists_empty_cycles=lists_empty_cycles,
            timeout=timeout,
        )

    async def settle(self, entry_id: str, *, applied: bool, note: str) -> Entry:
        """Decide that an unclear entry was applied, or was not. See `Journal.settle`."""
        self._doubt_lost()
        change, note = _settlement(applied=applied, note=note)
        return entry_of(await wait_for(self._store.settle(entry_id, change, note)))


def _needed(row: Row | None, entry_id: str, client: CoreClient | AsyncCoreClient) -> Entry:
    if row is None:
        raise KeyError(entry_id)
    here = client.protocol.base_url
    if (row["base_url"] or here) != here:
        raise ValueError(
            f"{entry_id!r} was sent to {row['base_url']}, and the client is for {here}"
        )
    return entry_of(row)
