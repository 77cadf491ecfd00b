"""Find out, on a throw-away user, whether the service is as `creduse_core.weigh` assumes.

`probe` adds, subtracts, starts and stops a cycle, and compares the balances. Each fact is a pure function
over balances. What follows from the `Findings` for the items of a run does not belong here.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime, timedelta
from itertools import pairwise, product
from typing import Any, Final, NamedTuple, TypeAlias, TypeGuard
from uuid import UUID

from creduse_core import (
    ActiveBalance,
    AsyncCoreClient,
    BalanceReading,
    Call,
    CreduseProtocol,
    CycleBalance,
    CycleStatus,
    CycleType,
)
from creduse_core.evidence import CLOCK_SKEW, SHIFTS, end_of_day, may_last

READS: Final = 3
"""Balances that are read after each write."""


@dataclass(frozen=True, slots=True)
class Findings:
    """What a probe has found. A fact is true, false, or ``None`` if it was not found out."""

    base_url: str
    probed_at: str
    """When the probe began, in ISO 8601 and UTC."""
    end_user_id: str
    """The throw-away user."""
    reads_own_writes: bool | None
    """Whether each balance that is read after a write shows it."""
    lists_all_credits: bool | None
    """Whether ``active_balance`` is the sum of the listed cycles."""
    cycles_of_their_own: bool | None
    """Whether each add, and each start, opens a cycle of its own, even after an equal one."""
    keeps_starting_amount: bool | None
    """Whether ``starting_amount`` is what the cycle began with, also after credits were taken."""
    keeps_start_and_end: bool | None
    """Whether a cycle that is spent from or stopped keeps its start and its end."""
    cycle_start_is_now: bool | None
    """Whether ``cycle_start`` is when the call was applied, give or take 10 seconds. The service's clock
    counts, if its responses have a ``Date``."""
    ends_with_the_day: bool | None
    """Whether cycles end at the end of a day, in one time zone, ``validity_days`` later."""
    spends_soonest_first: bool | None
    """Whether ``subtract`` takes from the cycle that ends soonest, of whichever kind."""
    says_cycle_types: bool | None
    """Whether ``cycle_type`` tells the cycles of adds from those of starts."""
    shows_canceled: bool | None
    """Whether a started cycle is listed as active and, once it is stopped, as canceled."""
    knows_emptied_users: bool | None
    """Whether the service still knows a user without credits."""
    lists_empty_cycles: bool | None
    """Whether a cycle that is used up is still listed, as long as the probe took."""
    clock_skew: float | None
    """Seconds by which the service's clock and this machine's differ, at least: by ``Date`` and by
    ``cycle_start``. ``None`` if no response has such a time."""

    def problems(self) -> tuple[str, ...]:
        """Return a sentence for each fact that evidence needs, and that is false or not known."""
        values = {name: getattr(self, name) for name in _MEANINGS}
        found = [
            f"{name} {_NOT_TRUE[value]} {_MEANINGS[name]}."
            for name, value in values.items()
            if value is not True
        ]
        if self.clock_skew is None:
            found.append("clock_skew was not found out: no response has a time.")
        elif self.clock_skew > CLOCK_SKEW:
            found.append(
                f"clock_skew is {self.clock_skew:.0f} s: evidence allows {CLOCK_SKEW:g} s, so set this "
                "machine's clock and probe again."
            )
        return tuple(found)


_NOT_TRUE: Final[Mapping[bool | None, str]] = {
    False: "is false:",
    None: "was not found out (probe another new user); if it is false,",
}
_MEANINGS: Final[Mapping[str, str]] = {
    "reads_own_writes": "a balance can lack a call that was applied, so NOT_YET can be wrong",
    "lists_all_credits": "a balance does not list all of its cycles, so each verdict is OPEN",
    "cycles_of_their_own": "two calls can share a cycle, so NOT_YET can be wrong",
    "keeps_starting_amount": (
        "a cycle does not show how many credits it began with, so verdicts can be wrong"
    ),
    "keeps_start_and_end": "an old cycle can seem to be a new one, so verdicts can be wrong",
    "cycle_start_is_now": (
        "a cycle does not show when its call was applied, so verdicts on add and start_cycle can be wrong"
    ),
    "ends_with_the_day": (
        "cycles end at other times than evidence expects, so verdicts can be wrong"
    ),
    "spends_soonest_first": (
        "credits can be left in an older cycle although a newer one is used up, so NOT_YET can be wrong"
    ),
    "says_cycle_types": (
        "a balance does not tell added cycles from started ones, so verdicts can be wrong"
    ),
    "shows_canceled": (
        "a balance does not show that a cycle was stopped, so verdicts on stop_cycle can be wrong"
    ),
    "knows_emptied_users": (
        "the service can forget a user who had credits, so NOT_YET can be wrong for an unknown user"
    ),
}
"""What it means for evidence that a fact is false. The other facts are no problem."""


# JSON


def to_json(findings: Findings) -> str:
    """Return findings as a JSON object."""
    return json.dumps(asdict(findings), indent=2)


def from_json(text: str) -> Findings:
    """Return the findings that `to_json` has written.

    Raises:
        ValueError: The text is something else. The message says what is wrong.
    """
    try:
        data: object = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _not_findings(f"it is not JSON: {error}") from None
    if not _is_object(data):
        raise _not_findings("it is not a JSON object")
    names = [field.name for field in fields(Findings)]
    for name in names:
        if name not in data:
            raise _not_findings(f"it has no {name}")
        is_valid, wanted = _CHECKS.get(name, _FACT)
        if not is_valid(data[name]):
            raise _not_findings(f"{name} must be {wanted}, not {data[name]!r:.100}")
    if unknown := sorted(data.keys() - set(names)):
        raise _not_findings(f"it has the unknown {unknown[0]!r:.100}")
    return Findings(**data)


def _not_findings(why: str) -> ValueError:
    return ValueError(
        f"these are not the findings of a probe: {why}; pass the output of creduse bulk probe"
    )


def _is_object(data: object) -> TypeGuard[dict[str, Any]]:
    return isinstance(data, dict)


def _is_fact(value: object) -> bool:
    return value is None or isinstance(value, bool)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_time(value: object) -> bool:
    try:
        return isinstance(value, str) and datetime.fromisoformat(value).utcoffset() is not None
    except ValueError:
        return False


def _is_user(value: object) -> bool:
    try:
        return isinstance(value, str) and str(UUID(value)) == value
    except ValueError:
        return False


def _is_skew(value: object) -> bool:
    return value is None or (
        isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= _MOST_SKEW
    )


_MOST_SKEW: Final = timedelta.max.total_seconds()
_Check: TypeAlias = tuple[Callable[[object], bool], str]
_FACT: Final[_Check] = (_is_fact, "true, false or null")
_CHECKS: Final[Mapping[str, _Check]] = {
    "base_url": (_is_text, "text"),
    "probed_at": (_is_time, "a time with an offset, in ISO 8601"),
    "end_user_id": (_is_user, "a UUID"),
    "clock_skew": (_is_skew, "a number of seconds, or null"),
}
"""The fields that are not facts."""


# The probe


class Write(NamedTuple):
    """A write of the probe."""

    method: str
    amount: int = 0
    days: int = 0

    @property
    def change(self) -> int:
        """How many credits it gives. If it takes some, the number is negative."""
        return -self.amount if self.method == "subtract" else self.amount


_OPENING: Final = (
    Write("add", 7, days=3),
    Write("add", 7, days=3),
    Write("add", 5, days=1),
    Write("start_cycle", 6, days=2),
)
"""The writes that open cycles. The started one ends between added ones, the first to end is not the first
or the last to begin, and no sum of amounts is another amount. So each rule of spending is another one."""
_TAKE: Final = Write("subtract", 7)
"""It takes all from the cycle that ends soonest, and a part from the next one."""
_STOP: Final = Write("stop_cycle")
_OPENED: Final[Mapping[int, Write]] = {write.amount: write for write in _OPENING}
"""The writes that open cycles, by their amounts."""

_CALLS: Final[Mapping[str, Callable[[CreduseProtocol, UUID, Write], Call[Any]]]] = {
    "add": lambda make, user, it: make.add(user, it.amount, it.days),
    "start_cycle": lambda make, user, it: make.start_cycle(user, it.amount, it.days),
    "subtract": lambda make, user, it: make.subtract(user, it.amount),
    "stop_cycle": lambda make, user, _: make.stop_cycle(user),
}


class Step(NamedTuple):
    """A write that was applied, and what was read after it."""

    write: Write
    asked_at: datetime
    received_at: datetime
    readings: tuple[BalanceReading, ...]

    @property
    def balances(self) -> tuple[ActiveBalance, ...]:
        """The balances of the readings, one after the other."""
        return tuple(map(_balance, self.readings))


async def probe(client: AsyncCoreClient, user: UUID) -> Findings:
    """Find out on a throw-away user how the service keeps balances. It makes about 30 requests.

    ``user`` must be a new one. It gets 25 credits, and loses all of them, unless balances are late by some
    writes. Its cycles may be listed for up to three days.

    Raises:
        ValueError: The user has credits or cycles. Nothing was written.
        CreduseError: A call failed, and was not sent again. The user may keep its credits.
    """
    first = await client.reading(user)
    _check_is_new(user, _balance(first))
    steps = [await _step(client, user, write) for write in (*_OPENING, _TAKE, _STOP)]
    left = sum(step.write.change for step in steps)
    shown = steps[-1].balances[-1].active_balance
    if shown > 0:  # 0 credits are shown only if balances are late
        # A service may drop the credits of a stopped cycle. To take too many would end the probe.
        left = min(left, shown)
    steps.append(await _step(client, user, Write("subtract", left)))
    facts, clock_skew = _findings(steps)
    return Findings(
        base_url=client.protocol.base_url,
        probed_at=first.asked_at.isoformat(),
        end_user_id=str(user),
        clock_skew=clock_skew,
        **facts,
    )


def _check_is_new(user: UUID, balance: ActiveBalance) -> None:
    cycles = len(balance.active_balance_by_cycle)
    if balance.active_balance or cycles:
        raise ValueError(
            f"the user must be a new one, not {user} (credits: {balance.active_balance}, cycles: "
            f"{cycles}): pass a UUID that was never used. The user of an earlier probe keeps cycles for "
            "some days"
        )


async def _step(client: AsyncCoreClient, user: UUID, write: Write) -> Step:
    asked_at = _now()
    call: Call[Any] = _CALLS[write.method](client.protocol, user, write)
    await client.run(call)
    received_at = _now()
    readings = [await client.reading(user) for _ in range(READS)]
    return Step(write, asked_at, received_at, tuple(readings))


def _balance(reading: BalanceReading) -> ActiveBalance:
    return reading.balance or _NOTHING


_NOTHING: Final = ActiveBalance(UUID(int=0), 0, ())


def _now() -> datetime:
    return datetime.now(UTC)


# The facts: of a whole probe


def _findings(steps: Sequence[Step]) -> tuple[dict[str, bool | None], float | None]:
    """Return all facts, and the clock skew."""
    readings = [reading for step in steps for reading in step.readings]
    balances = [balance for step in steps for balance in step.balances]
    full = next(filter(_is_full, balances), None)
    spans = [(it.write.amount, it.asked_at, it.received_at) for it in steps if it.write.days]
    ahead = _clock_difference(readings)
    facts: dict[str, bool | None] = {
        **dict.fromkeys((*_MEANINGS, "lists_empty_cycles")),
        "reads_own_writes": _reads_own_writes(steps),
        "lists_all_credits": _lists_all_credits(steps, is_full=full is not None),
    }
    skews = [] if ahead is None else [ahead]
    if full is not None:
        later = balances[balances.index(full) :]
        facts |= _facts(steps, full, later) | {
            "cycle_start_is_now": cycle_start_is_now(full, spans, ahead)
        }
        if ahead is None or facts["cycle_start_is_now"]:
            skews += _lateness(full, spans)
    if _may_have_ended_a_day(steps, balances, ahead or timedelta()):
        facts = {
            name: None if value is False or name in _WITHIN_A_DAY else value
            for name, value in facts.items()
        }
    return facts, max((abs(skew).total_seconds() for skew in skews), default=None)


_WITHIN_A_DAY: Final = frozenset(
    {"cycles_of_their_own", "ends_with_the_day", "spends_soonest_first"}
)
"""Facts that can seem to be true if a day ends meanwhile: equal adds then end on different days, and a
cycle that should end a day earlier or later lasts about as long as it should."""


def _facts(
    steps: Sequence[Step], full: ActiveBalance, later: Sequence[ActiveBalance]
) -> dict[str, bool | None]:
    """Return the facts that need a balance with all cycles."""
    last = [step.balances[-1] for step in steps]
    *_, opened, taken, stopped, _ = last
    since_stop = (*steps[-2].balances, *steps[-1].balances)
    end = steps[-1].readings[-1].balance
    return {
        "cycles_of_their_own": cycles_of_their_own(full),
        "keeps_starting_amount": all(keeps_starting_amount(full, it) for it in later),
        "keeps_start_and_end": all(keeps_start_and_end(full, it) for it in later),
        "ends_with_the_day": ends_with_the_day(full),
        "spends_soonest_first": _combined(spends_soonest_first(*it) for it in pairwise(last)),
        "says_cycle_types": says_cycle_types(full),
        # If balances are late, those after the last write may show the stop, or not yet.
        "shows_canceled": any(shows_canceled(taken, it) for it in since_stop)
        or (False if _reads_own_writes(steps) else None),
        "knows_emptied_users": knows_emptied_users(end),
        # Not from before the stop to after it: a stopped cycle may not be listed, credits or not.
        "lists_empty_cycles": _combined(
            (lists_empty_cycles(opened, taken), lists_empty_cycles(stopped, end))
        ),
    }


def _combined(values: Iterable[bool | None]) -> bool | None:
    """Return ``False`` if any value is, or else ``True`` if any is."""
    found = set(values)
    return False not in found and (True in found or None)


def _reads_own_writes(steps: Sequence[Step]) -> bool:
    before, end = _NOTHING, steps[-1].balances[-1]
    for step in steps:
        for after in step.balances:
            if not shows_write(step.write, before, after, end):
                return False
        before = step.balances[-1]
    return True


def _lists_all_credits(steps: Sequence[Step], *, is_full: bool) -> bool | None:
    # What happens to a stopped cycle is another fact.
    balances = (balance for step in steps[:-2] for balance in step.balances)
    return all(map(lists_all_credits, balances)) and (is_full or None)


def _may_have_ended_a_day(
    steps: Sequence[Step], balances: Sequence[ActiveBalance], ahead: timedelta
) -> bool:
    """Return whether a day of the service may have ended during the probe."""
    slack = timedelta(seconds=CLOCK_SKEW) + _SECOND
    length = steps[-1].readings[-1].received_at - steps[0].asked_at + 2 * slack
    since = steps[0].asked_at - _EPOCH + ahead - slack
    cycles = (cycle for balance in balances for cycle in balance.active_balance_by_cycle)
    return any(
        (midnight + shift - since) % _DAY <= length
        for midnight in _midnights(cycles)
        for shift in SHIFTS
        if midnight is not None
    )


def _midnights(cycles: Iterable[CycleBalance]) -> set[timedelta | None]:
    """Return the times of day, in UTC, at which cycles end; ``None`` for one that is no midnight."""
    return {end_of_day(cycle.cycle_end) for cycle in cycles}


_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_DAY: Final = timedelta(days=1)
_SECOND: Final = timedelta(seconds=1)


# The facts: of a balance or two


def _is_full(balance: ActiveBalance) -> bool:
    """Return whether a balance has all credits of the probe, before any are taken."""
    given = sum(write.amount for write in _OPENING)
    return balance.active_balance == given and lists_all_credits(balance)


def _known(full: ActiveBalance) -> Iterator[tuple[CycleBalance, Write]]:
    """Yield the cycles that writes have opened, each alone, with a write like that."""
    for cycle in full.active_balance_by_cycle:
        if cycle.amount in _OPENED:
            yield cycle, _OPENED[cycle.amount]


def shows_write(
    write: Write, before: ActiveBalance, after: ActiveBalance, end: ActiveBalance
) -> bool:
    """Return whether the balance ``after`` shows a write that the one ``before`` does not.

    ``end`` is the last balance of all. What it does not show of a stop, the service never does.
    """
    if write.method == "stop_cycle":
        return _statuses(after)[CycleStatus.CANCELED] >= _statuses(end)[CycleStatus.CANCELED]
    return after.active_balance - before.active_balance == write.change


def lists_all_credits(balance: ActiveBalance) -> bool:
    """Return whether the cycles have all credits of a balance."""
    return balance.active_balance == sum(it.amount for it in balance.active_balance_by_cycle)


def cycles_of_their_own(full: ActiveBalance) -> bool:
    """Return whether the balance has a cycle for each write that opens one."""
    amounts = Counter(cycle.amount for cycle in full.active_balance_by_cycle)
    return amounts == Counter(write.amount for write in _OPENING)


def keeps_starting_amount(full: ActiveBalance, later: ActiveBalance) -> bool:
    """Return whether each cycle of both balances has its first amount as ``starting_amount``."""
    amounts = Counter(cycle.amount for cycle in full.active_balance_by_cycle)
    first, now = (
        Counter(cycle.starting_amount for cycle in balance.active_balance_by_cycle)
        for balance in (full, later)
    )
    return first == amounts and now <= first


def keeps_start_and_end(full: ActiveBalance, later: ActiveBalance) -> bool:
    """Return whether each cycle of the later balance is in the full one, with its start and end."""
    first, now = (
        Counter((it.cycle_start, it.cycle_end) for it in balance.active_balance_by_cycle)
        for balance in (full, later)
    )
    return now <= first


def ends_with_the_day(full: ActiveBalance) -> bool | None:
    """Return whether the cycles end with a day, in one time zone, as many days later as they should."""
    known = list(_known(full))
    midnights = _midnights(cycle for cycle, _ in known)
    if not known or not all(_are_of_one_zone(*it) for it in product(midnights, repeat=2)):
        return False if known else None
    lasts = {_lasts(cycle, write.days) for cycle, write in known}
    return False not in lasts and (None not in lasts or None)


def _are_of_one_zone(one: timedelta | None, other: timedelta | None) -> bool:
    """Return whether two midnights differ by no more than the change to daylight saving time."""
    if one is None or other is None:
        return False
    return any((one - other - shift) % _DAY == timedelta() for shift in SHIFTS)


def _lasts(cycle: CycleBalance, days: int) -> bool | None:
    """Return whether a cycle lasts so many days, and the rest of the last one.

    ``None``: only if daylight saving time begins or ends meanwhile.
    """
    length = cycle.cycle_end - cycle.cycle_start
    if days * _DAY - _SECOND <= length <= (days + 1) * _DAY + _SECOND:
        return True
    return None if may_last(cycle, days) else False


def says_cycle_types(full: ActiveBalance) -> bool | None:
    """Return whether each cycle has the type of its write."""
    return _combined(cycle.cycle_type == _TYPES[write.method] for cycle, write in _known(full))


_TYPES: Final = {"add": CycleType.ONE_TIME, "start_cycle": CycleType.RECURRING}


def spends_soonest_first(before: ActiveBalance, after: ActiveBalance) -> bool | None:
    """Return whether credits were taken from the cycles that end soonest.

    ``None``: none were taken, or none of a cycle that ends later are left.
    """
    if after.active_balance >= before.active_balance:
        return None
    was, now = _by_end(before), _by_end(after)
    taken = [end for end, amount in was.items() if now[end] < amount]
    left = [end for end, amount in now.items() if amount]
    if not taken or not left:
        return None
    return max(taken) <= min(left) and (max(taken) < max(left) or None)


def _by_end(balance: ActiveBalance) -> Counter[datetime]:
    """Return how many credits end when."""
    found: Counter[datetime] = Counter()
    for cycle in balance.active_balance_by_cycle:
        found[cycle.cycle_end] += cycle.amount
    return found


def lists_empty_cycles(before: ActiveBalance, after: ActiveBalance | None) -> bool | None:
    """Return whether cycles that were used up are still listed.

    ``None``: none were used up, or the service does not know the user any more.
    """
    if after is None or after.active_balance >= before.active_balance:
        return None
    if len(after.active_balance_by_cycle) < len(before.active_balance_by_cycle):
        return False
    return any(cycle.amount == 0 for cycle in after.active_balance_by_cycle) or None


def shows_canceled(before: ActiveBalance, after: ActiveBalance) -> bool:
    """Return whether one more cycle is canceled, and one less is active."""
    was, now = _statuses(before), _statuses(after)
    return (
        now[CycleStatus.CANCELED] == was[CycleStatus.CANCELED] + 1
        and now[CycleStatus.ACTIVE] == was[CycleStatus.ACTIVE] - 1
    )


def _statuses(balance: ActiveBalance) -> Counter[str | None]:
    return Counter(cycle.status for cycle in balance.active_balance_by_cycle)


def knows_emptied_users(balance: ActiveBalance | None) -> bool | None:
    """Return whether the service knows a user who has just lost all credits."""
    if balance is None:
        return False
    return balance.active_balance == 0 or None


# The facts: of clocks

_Span: TypeAlias = tuple[int, datetime, datetime]
"""The amount of a write that opens a cycle, a moment before it was sent, and one after its response."""


def cycle_start_is_now(
    full: ActiveBalance, spans: Sequence[_Span], ahead: timedelta | None
) -> bool | None:
    """Return whether the cycles start when their writes were applied.

    ``ahead``: by how much the service's clock is ahead of ours, or ``None`` if nothing shows it.
    """
    late = _lateness(full, spans, ahead or timedelta())
    if any(abs(it).total_seconds() > CLOCK_SKEW for it in late):
        return None if ahead is None else False
    # If times were cut to minutes, some would look right in the first seconds of a minute.
    starts = (cycle.cycle_start for cycle, _ in _known(full))
    return any(start.second or start.microsecond for start in starts) or None


def _lateness(
    full: ActiveBalance, spans: Sequence[_Span], ahead: timedelta = timedelta()
) -> list[timedelta]:
    """Return by how much each cycle starts after its write, or before it as a negative time."""
    return [
        min(
            (
                _outside(cycle.cycle_start, asked_at, received_at, ahead)
                for amount, asked_at, received_at in spans
                if amount == cycle.amount
            ),
            key=abs,
        )
        for cycle, _ in _known(full)
    ]


def _clock_difference(readings: Iterable[BalanceReading]) -> timedelta | None:
    """Return by how much the service's clock is ahead of ours, at least. ``None``: nothing shows it."""
    found = (
        _outside(reading.date, reading.asked_at, reading.received_at)
        for reading in readings
        if reading.date is not None
    )
    return max(found, key=abs, default=None)


def _outside(
    moment: datetime, since: datetime, until: datetime, ahead: timedelta = timedelta()
) -> timedelta:
    """Return how long a moment is after ``until``, or before ``since`` as a negative time."""
    # Times can be cut to whole seconds. Differences of times do not overflow, unlike their sums.
    after, before = moment - until - ahead, moment - since - ahead + _SECOND
    return max(after, timedelta()) + min(before, timedelta())
