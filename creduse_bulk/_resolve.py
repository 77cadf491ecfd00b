"""Unclear items: what balances prove about them, and decisions.

Nothing is sent but requests for balances. A decision comes from a person, or from evidence that a
person accepts. What a balance proves (`creduse_core.evidence`) does not belong here.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, TypeAlias

import anyio

from creduse_core import (
    AsyncCoreClient,
    CallRecord,
    CreduseError,
    CreduseProtocol,
    Evidence,
    LocalProtocolError,
    Outcome,
    Verdict,
    weigh,
)
from creduse_core.evidence import CLOCK_SKEW, known_since, unreadable
from creduse_journal import RULES, Change, JournalError, State, readings
from creduse_journal._states import is_settled
from creduse_journal.committer import wait_for

from ._input import Input, Item, Shard
from ._items import Row
from ._progress import Progress, progress_of, read_begun
from ._records import InputError, Records, Values, check_problems, shown
from ._report import STATES, matched

if TYPE_CHECKING:
    from typing import Self
    from uuid import UUID

    from creduse_journal.future import Future

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
    others: tuple[tuple[CallRecord, datetime], ...]
    """The run's other calls for the same user, and when they ended at the latest."""


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
        self._place, self._begun, _ = read_begun(Path(file), journal, shard)
        kept = self._begun.identity
        with ExitStack() as stack:
            self._input = stack.enter_context(Input(Path(file), kept.method))
            found = replace(kept, digest=self._input.digest, base_url=protocol.base_url)
            self._items = self._place.open(found, protocol.api_key, None)
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
        calls: dict[UUID, dict[int, tuple[CallRecord, datetime]]] = defaultdict(dict)
        unclear: list[tuple[int, Item]] = []
        with self._place.read() as reader:
            assert reader is not None  # noqa: S101 - it is open
            users = reader.unclear_users()
            for record, row in matched(self._input, reader.rows(), self._shard):
                if row is None or row.user not in users or row.state not in _OUTCOMES:
                    continue
                item = self._input.item(record)
                ended_at = datetime.fromtimestamp(row.changed_at, UTC)
                calls[row.user][row.number] = _call(self._input.method, item, row), ended_at
                if row.state is State.UNCLEAR:
                    unclear.append((record.line, item))
        for line, item in unclear:
            others = dict(calls[item.user])
            call, _ = others.pop(item.number)
            yield Unclear(line, item, call, tuple(others.values()))

    async def weigh(
        self,
        client: AsyncCoreClient,
        *,
        clock_skew: float = CLOCK_SKEW,
        lists_empty_cycles: bool = False,
    ) -> list[Evidence]:
        """Read balances, and return what they prove about each unclear item. The journal keeps it."""
        found: dict[int, Evidence] = {}
        kept: list[Future[None]] = []
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
                        known=_known(it, clock_skew),
                        clock_skew=clock_skew,
                        lists_empty_cycles=lists_empty_cycles,
                    )
                found[it.item.number] = evidence
                kept.append(self._items.annotate(it.item.number, str(evidence)))

        async with anyio.create_task_group() as tasks:
            for it in self.unclear:
                tasks.start_soon(weigh_one, it)
        for future in kept:
            await wait_for(future)
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
        says which item it is, and ``end_user_id``, if it is there, must be the item's. ``note``, by
        default the column ``note``, says who decides, and why.

        Raises:
            InputError: Something is wrong in the file. Nothing is decided.
        """
        decided, problems = _read_decisions(path)
        decisions: list[Decision] = []
        with self._place.read() as reader:
            assert reader is not None  # noqa: S101 - it is open
            for record, row in matched(self._input, reader.rows(), self._shard):
                own = self._input.values(record)
                keys = ("line", str(record.line)), ("id", str(own.get("id", "")))
                found = [decided.pop(key) for key in keys if key in decided]
                for line, values in found[:1]:
                    try:
                        if made := _decision(own, row, values, note):
                            decisions.append(Decision(record.number, *made))
                    except ValueError as error:
                        problems.append((line, str(error)))
                problems += [(line, _TWICE.format(found[0][0])) for line, _ in found[1:]]
        problems += [
            (line, f"no line has the {name} {shown(value)}")
            for (name, value), (line, _) in decided.items()
        ]
        check_problems(path, [f"line {line}: {problem}" for line, problem in sorted(problems)])
        return decisions

    def settle(self, decisions: Iterable[Decision]) -> Progress:
        """Write all decisions, or none of them. Return how far the run is.

        Raises:
            JournalError: A line has changed meanwhile, or the journal cannot be written.
        """
        try:
            self._items.settle([(it.number, it.change, it.note) for it in decisions]).result()
        except LocalProtocolError as error:  # its process was frozen, and has woken up
            raise JournalError(
                f"nothing was decided, since a line has ended meanwhile: {error}. Resolve again"
            ) from None
        return progress_of(self._begun.items, self._items.counts().result())


_Key: TypeAlias = tuple[str, str]
"""How a file of decisions calls an item: by its ``line`` or ``id``."""
_TWICE: Final = "line {} decides about the same one"


def _read_decisions(path: Path) -> tuple[dict[_Key, tuple[int, Values]], list[tuple[int, str]]]:
    """Return the lines of a file that decide, and what is wrong in others."""
    decided: dict[_Key, tuple[int, Values]] = {}
    problems: list[tuple[int, str]] = []
    with Records(path) as source:
        has_decisions = "decision" in source.columns
        for record in (record for chunk in source.chunks() for record in chunk):
            try:
                values = source.values(record)
                has_decisions |= "decision" in values
                if not _is_empty(values.get("decision")):
                    key = _key(values)
                    if key in decided:
                        raise ValueError(_TWICE.format(decided[key][0]))  # noqa: TRY301 - as the others
                    decided[key] = record.line, values
            except ValueError as error:
                problems.append((record.line, str(error)))
    if not has_decisions and not problems:
        raise InputError(f"{path}: there is no column decision")
    return decided, problems


def _key(values: Values) -> _Key:
    for name in ("line", "id"):
        if not _is_empty(values.get(name)):
            return name, str(values[name])
    raise ValueError("line or id must say which item it is")


def _is_empty(value: object) -> bool:
    return value is None or value == ""


def _call(method: str, item: Item, row: Row) -> CallRecord:
    """Return the record of a call that was or may have been applied."""
    return CallRecord(
        method,
        item.user,
        item.amount,
        item.validity_days,
        _OUTCOMES[row.state],
        datetime.fromtimestamp(row.began_at, UTC),
        None if row.before is None else readings.from_json(row.before, item.user),
    )


def _known(it: Unclear, clock_skew: float) -> list[CallRecord]:
    """Return the other calls that can have been applied since the balance before."""
    began, before = it.call.began_at, it.call.before
    assert began is not None  # noqa: S101 - the journal keeps it
    # A user's calls are made one at a time: all others ended before that balance was read. A call can
    # be applied until it ends, so without that balance, its end counts.
    since = known_since(began, clock_skew)
    return [
        call
        for call, ended_at in it.others
        if call.outcome is Outcome.UNKNOWN or (before is None and ended_at >= since)
    ]


def _decision(
    own: Values, row: Row | None, values: Values, note: str | None
) -> tuple[Change, str] | None:
    """Return the decision that a line of a file makes about an item, and its note.

    ``None``: it was made before.
    """
    user = values.get("end_user_id")
    if not _is_empty(user) and user != own["end_user_id"]:
        raise ValueError(
            f"the line is for {shown(own['end_user_id'])}, not for {shown(user)}: this may be the "
            "report of another file"
        )
    decision: object = values["decision"]
    change = _DECISIONS.get(decision) if isinstance(decision, str) else None
    if change is None:
        raise ValueError(f"decision must be applied or not_applied, not {shown(decision)}")
    state = State.FREE if row is None else row.state
    if row is not None and is_settled(state, change):
        return None
    if change not in RULES[state]:
        raise ValueError(f"it is {STATES[state]}, so it cannot be settled as {decision}")
    why: object = note or values.get("note")
    if not isinstance(why, str) or not why.strip():
        raise ValueError(
            "a note must say who decides, and why: pass --note, or add the column note"
        )
    return change, why


_OUTCOMES: Final = {State.APPLIED: Outcome.APPLIED, State.UNCLEAR: Outcome.UNKNOWN}
"""The outcomes of the calls that evidence must know."""
_BY_VERDICT: Final[Mapping[Verdict, Change | None]] = {
    Verdict.APPLIED: Change.SETTLE_APPLIED,
    Verdict.NOT_YET: Change.SETTLE_FREE,
    Verdict.OPEN: None,
}
