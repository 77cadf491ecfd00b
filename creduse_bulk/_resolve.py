"""Unclear items: what balances prove about them, and decisions.

Nothing is sent but requests for balances. A decision comes from a person, or from evidence that a
person accepts. What a balance proves (`creduse_core.evidence`) does not belong here.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final

import anyio

from creduse_core import (
    AsyncCoreClient,
    CallRecord,
    CreduseError,
    CreduseProtocol,
    Evidence,
    Outcome,
    Verdict,
    weigh,
)
from creduse_core.evidence import CLOCK_SKEW, unreadable
from creduse_journal import RULES, Change, State, weighing

from ._input import Input, Item, Shard
from ._items import Identity, Items, Row, open_to_read, rows, unclear_users
from ._progress import Progress, name_of, progress_of, read_begun
from ._records import Record, Records, Values, check_problems
from ._report import STATES, matched

if TYPE_CHECKING:
    from typing import Self
    from uuid import UUID

_AT_ONCE: Final = 8
"""Balances that are read at a time."""
_DECISIONS: Final = {"applied": Change.SETTLE_APPLIED, "not_applied": Change.SETTLE_FREE}
"""What a decision can be, in a file of decisions."""


@dataclass(frozen=True, slots=True)
class Unclear:
    """An unclear item."""

    line: int
    item: Item
    call: CallRecord
    known: tuple[CallRecord, ...]
    """The run's other calls for the same user."""


@dataclass(frozen=True, slots=True)
class Decision:
    """A decision about an item."""

    number: int
    change: Change
    note: str
    """Who decides, and why."""


class Resolution:
    """The journal of a run whose unclear items are to be resolved. Use it with ``with``.

    It owns the journal: the run must have stopped.

    Raises:
        InputError: The file cannot be read.
        JournalError: No run has begun, it is going on, or the journal belongs to something else.
    """

    def __init__(
        self,
        protocol: CreduseProtocol,
        file: str | PathLike[str],
        journal: str | PathLike[str] | None = None,
        shard: Shard | None = None,
    ) -> None:
        self._shard = shard
        self._path, self._begun, _ = read_begun(Path(file), journal, shard)
        kept = self._begun.identity
        with ExitStack() as stack:
            self._input = stack.enter_context(Input(Path(file), kept.method))
            found = Identity(
                kept.method, self._input.digest, protocol.base_url, name_of(shard)
            )
            self._items = Items(self._path, found, protocol.api_key, {})
            stack.callback(self._items.close)
            self.unclear: tuple[Unclear, ...] = tuple(self._find())
            """The unclear items, in the order of the file."""
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

    def _find(self) -> Iterable[Unclear]:
        calls: dict[UUID, dict[int, CallRecord]] = defaultdict(dict)
        unclear: list[tuple[int, Item]] = []
        with open_to_read(self._path) as database:
            users = unclear_users(database)
            for record, row in matched(self._input, rows(database), self._shard):
                if row is None or row.user not in users or row.state not in _OUTCOMES:
                    continue
                item = self._input.item(record)
                calls[row.user][row.number] = _call(self._input.method, item, row)
                if row.state is State.UNCLEAR:
                    unclear.append((record.line, item))
        for line, item in unclear:
            known = dict(calls[item.user])
            call = known.pop(item.number)
            yield Unclear(line, item, call, tuple(known.values()))

    async def weigh(
        self,
        client: AsyncCoreClient,
        *,
        clock_skew: float = CLOCK_SKEW,
        lists_empty_cycles: bool = False,
    ) -> list[Evidence]:
        """Read balances, and return what they prove about each unclear item. The journal keeps it."""
        found: dict[int, Evidence] = {}
        limit = anyio.CapacityLimiter(_AT_ONCE)

        async def weigh_one(it: Unclear) -> None:
            async with limit:
                try:
                    after = await client.reading(it.item.user)
                except CreduseError as error:
                    evidence = unreadable(error)
                else:
                    evidence = weigh(
                        it.call,
                        after,
                        known=weighing.other_calls(it.call, it.known, clock_skew),
                        clock_skew=clock_skew,
                        lists_empty_cycles=lists_empty_cycles,
                    )
                found[it.item.number] = evidence
                self._items.annotate(it.item.number, str(evidence))

        async with anyio.create_task_group() as tasks:
            for it in self.unclear:
                tasks.start_soon(weigh_one, it)
        return [found[it.item.number] for it in self.unclear]

    def by_evidence(
        self, evidence: Iterable[Evidence], settled_after: float | None
    ) -> list[Decision]:
        """Return the decisions that evidence allows.

        APPLIED settles an item as applied. NOT_YET settles it as not applied if its call began
        ``settled_after`` seconds ago or earlier: no request may arrive so late.
        """
        now = datetime.now(UTC)
        decisions: list[Decision] = []
        for it, proved in zip(self.unclear, evidence, strict=True):
            change = _BY_VERDICT[proved.verdict]
            began = it.call.began_at
            assert began is not None  # noqa: S101 - the journal keeps it
            if change is Change.SETTLE_FREE:
                age = (now - began).total_seconds()
                change = None if settled_after is None or age < settled_after else change
            if change is not None:
                decisions.append(Decision(it.item.number, change, str(proved)))
        return decisions

    def by_file(self, path: Path, note: str | None) -> list[Decision]:
        """Return the decisions of a file: CSV or JSON Lines, such as an edited report.

        Its column ``decision`` is ``applied``, ``not_applied``, or empty. ``line``, or else ``id``,
        says which item it is. ``note``, by default its column ``note``, says who decides, and why.

        Raises:
            InputError: Something is wrong in the file. Nothing is decided.
        """
        problems: list[str] = []
        decided: dict[str, tuple[int, Values]] = {}
        with Records(path) as source:
            name = "line" if "line" in source.columns or source.is_json else "id"
            for record in (record for chunk in source.chunks() for record in chunk):
                try:
                    values = source.values(record)
                    if values.get("decision"):
                        decided[str(values[name])] = record.line, values
                except ValueError as error:
                    problems.append(f"line {record.line}: {error}")
        decisions: list[Decision] = []
        with open_to_read(self._path) as database:
            for record, row in matched(self._input, rows(database), self._shard):
                own = record.line if name == "line" else self._input.values(record).get("id")
                if found := decided.pop(str(own), None):
                    line, values = found
                    try:
                        decisions.append(_decision(record, row, values, note))
                    except ValueError as error:
                        problems.append(f"line {line}: {error}")
        problems += [f"line {line}: no item has this {name}" for line, _ in decided.values()]
        check_problems(path, problems)
        return decisions

    def settle(self, decisions: Iterable[Decision]) -> Progress:
        """Write decisions, and return how far the run is."""
        for future in [self._items.settle(it.number, it.change, it.note) for it in decisions]:
            future.result()
        return progress_of(self._begun.items, self._items.counts().result())


def _call(method: str, item: Item, row: Row) -> CallRecord:
    """Return the record of a call that was or may have been applied."""
    return CallRecord(
        method,
        item.user,
        item.amount,
        item.validity_days,
        _OUTCOMES[row.state],
        datetime.fromtimestamp(row.began_at, UTC),
        None if row.before is None else weighing.from_json(row.before, item.user),
    )


def _decision(record: Record, row: Row | None, values: Values, note: str | None) -> Decision:
    """Return the decision that a file makes about an item."""
    change = _DECISIONS.get(values["decision"])
    if change is None:
        raise ValueError(f"decision must be applied or not_applied, not {values['decision']!r}")
    state = State.FREE if row is None else row.state
    if change not in RULES[state]:
        raise ValueError(
            f"the item is {STATES[state]}, so it cannot be settled as {values['decision']}"
        )
    note = note or values.get("note")
    if not note:
        raise ValueError(
            "a note must say who decides, and why: pass --note, or add the column note"
        )
    return Decision(record.number, change, note)


_OUTCOMES: Final = {State.APPLIED: Outcome.APPLIED, State.UNCLEAR: Outcome.UNKNOWN}
"""The outcomes of the calls that evidence must know."""
_BY_VERDICT: Final[Mapping[Verdict, Change | None]] = {
    Verdict.APPLIED: Change.SETTLE_APPLIED,
    Verdict.NOT_YET: Change.SETTLE_FREE,
    Verdict.OPEN: None,
}
