"""What balances prove about a call whose outcome is UNKNOWN.

`weigh` compares a balance that was read after the call, and one from before it if there is one, with
what the call would have changed. Its `Evidence` is a verdict, the reason, and what it assumes about
other writers. Whatever could make a verdict wrong makes it OPEN instead.

Every verdict assumes what the service's documentation says or implies, and that times can be compared:

- A balance shows each call that was applied before it was read. A cycle is listed until it ends or,
  perhaps, is used up.
- Each ``add`` and ``start_cycle`` has a cycle of its own. ``cycle_start`` is when it was applied, at
  least to the second, and ``starting_amount`` does not change. Times without an offset are UTC.
- Cycles end at the end of a day, in any one time zone. ``subtract`` takes from the cycle that ends
  soonest.
- The service's clock and ours differ by at most ``clock_skew`` seconds. All times of ours are by one
  clock, which is not set back meanwhile.

The functions are pure: reading balances, clocks and decisions about what to do next do not belong here.
"""

import enum
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final, NamedTuple, TypeAlias

from .arguments import check_seconds, check_type
from .models import BalanceReading, CallRecord, CycleBalance, CycleStatus, CycleType, Outcome
from .records import Record, dataclass

CLOCK_SKEW: Final = 10.0
"""Seconds by which the service's clock and ours can differ, by default."""


class Verdict(enum.StrEnum):
    """What balances prove about a call."""

    APPLIED = "APPLIED"
    """The call was applied, under the evidence's assumption."""
    NOT_YET = "NOT_YET"
    """The call had not been applied when the balance was read. Its request can still arrive."""
    OPEN = "OPEN"
    """The balances prove neither."""


@dataclass(frozen=True, slots=True)
class Evidence(Record):
    """What balances prove about a call, why, and under which assumption."""

    verdict: Verdict
    reason: str
    assumption: str | None = None
    """What must be true of other writers, such as ``nobody else subtracted …``. ``None``: the verdict
    does not depend on them."""

    def __str__(self) -> str:
        assumption = "" if self.assumption is None else f", if {self.assumption}"
        return f"{self.verdict}: {self.reason}{assumption}"


def weigh(
    call: CallRecord,
    after: BalanceReading,
    *,
    known: Iterable[CallRecord] = (),
    clock_skew: float = CLOCK_SKEW,
    lists_empty_cycles: bool = False,
) -> Evidence:
    """Return what the balance ``after`` proves about a write.

    - ``call``: the write. ``subtract`` needs ``call.before``. The other methods can use it.
    - ``after``: a balance that was asked for after the call began.
    - ``known``: all other writes of your own for this user that can have been applied between
      ``call.before`` and ``after``; without ``call.before``, from twice ``clock_skew`` and two seconds
      before the call began. Older ones whose outcome is UNKNOWN count, since they can arrive late. If
      another machine made a call, pass it with the outcome UNKNOWN. Make the records before you ask
      for ``after``, and begin no write for the user in between.
    - ``clock_skew``: seconds by which the service's clock and ours can differ.
    - ``lists_empty_cycles``: whether the service is known to list cycles without credits. If a balance
      lists one, that is known anyway.

    Raises:
        ValueError: The call is a balance, no client has run it, ``after`` is another user's, or a time
            has no offset.
    """
    check_type("call", call, CallRecord, "call.record")
    check_type("after", after, BalanceReading, "client.reading(end_user_id)")
    check_type("lists_empty_cycles", lists_empty_cycles, bool)
    check_seconds("clock_skew", clock_skew)
    check_can_be_weighed(call)
    call, after = _in_utc(call), _reading_in_utc(after)
    began, before = call.began_at, call.before
    assert began is not None  # noqa: S101 - checked above
    for reading in (after,) if before is None else (before, after):
        reason = _problem(call, reading, clock_skew)
        if reason:
            return _open(reason)
    if after.asked_at < began or (before is not None and before.received_at > began):
        return _open(
            "by this machine's clock, a balance was read on the wrong side of the call's begin"
        )
    ours = tuple(
        _in_utc(other)
        for other in known
        if other.end_user_id == call.end_user_id and other.outcome is not Outcome.NOT_APPLIED
    )
    if after.balance is None:
        if (before is not None and before.balance is not None) or any(map(_is_applied, ours)):
            return _open("the service does not know the user any more")
        return Evidence(
            Verdict.NOT_YET,
            "the service does not know the user",
            "the service knows each user who has ever had credits",
        )
    was = () if before is None else _cycles(before)
    now = _cycles(after)
    slack = timedelta(seconds=clock_skew) + _SECOND
    return _RULES[call.method](
        _Case(
            call,
            was,
            now,
            ours,
            began,
            first=began if before is None else before.asked_at,
            last=after.received_at,
            slack=slack,
            lists_empty_cycles=(lists_empty_cycles or any(map(_is_emptied, (*was, *now))))
            and not _has_dropped_one(was, now, after.received_at + slack),
        )
    )


def known_since(began_at: datetime, clock_skew: float) -> datetime:
    """Return since when `weigh` needs other calls, without a balance from before the call."""
    check_seconds("clock_skew", clock_skew)
    return began_at - 2 * (timedelta(seconds=clock_skew) + _SECOND)


def settled(call: CallRecord) -> Evidence | None:
    """Return the evidence for a call whose outcome is certain, or ``None``."""
    if call.outcome is Outcome.APPLIED:
        return Evidence(Verdict.APPLIED, "the outcome is APPLIED: the response proves it")
    if call.outcome is Outcome.NOT_APPLIED:
        return Evidence(
            Verdict.NOT_YET,
            "the outcome is NOT_APPLIED: it was not applied, and cannot arrive later",
        )
    return None


def unreadable(error: Exception) -> Evidence:
    """Return the evidence if no balance could be read."""
    return _open(f"the balance could not be read: {error}")


class _Case(NamedTuple):
    """What a rule looks at."""

    call: CallRecord
    was: tuple[CycleBalance, ...]
    """The cycles before the call."""
    now: tuple[CycleBalance, ...]
    """The cycles after it."""
    known: tuple[CallRecord, ...]
    """Our other calls for this user that were or may have been applied."""
    began: datetime
    first: datetime
    """When the balance before the call was asked for; without one, when the call began."""
    last: datetime
    """When the balance after the call arrived."""
    slack: timedelta
    """By how much a time of the service's and one of ours can differ: the skew, and a second, since a
    ``cycle_start`` can be cut to whole seconds."""
    lists_empty_cycles: bool

    @property
    def amount(self) -> int:
        """The call's amount."""
        return self.call.amount or 0

    @property
    def days(self) -> int:
        """The call's ``validity_days``, 0 if it has none, as far as a calendar goes."""
        return min(self.call.validity_days or 0, _MAX_DAYS)

    def may_end_a_day(self, start: datetime, later: timedelta = timedelta()) -> bool:
        """Return whether a day of the service may end from ``later`` after ``start`` until ``last``."""
        since = start - self.slack - _EPOCH + later
        length = self.last + self.slack - _EPOCH - since
        return length >= timedelta() and self._may_hold_midnight(since, length)

    def may_be_renewal(self, start: datetime) -> bool:
        """Return whether a recurring cycle may continue another: it then starts as a day ends."""
        return self._may_hold_midnight(start - _EPOCH, _SECOND)

    def _may_hold_midnight(self, since: timedelta, length: timedelta) -> bool:
        """Return whether a day of the service may end in a span.

        The span begins ``since`` after the epoch. The ends of the listed cycles show when the service's
        days end. Without any, each quarter of an hour may be an end, since all time zones differ by
        quarters.
        """
        ends = [end_of_day(cycle.cycle_end) for cycle in (*self.was, *self.now)]
        if None in ends or length >= _DAY:
            return True
        # A cycle can end on the other side of a change to or from daylight saving time.
        midnights = {
            midnight + shift for midnight in ends if midnight is not None for shift in SHIFTS
        } or {_QUARTER * number for number in range(96)}
        return any((midnight - since) % _DAY <= length for midnight in midnights)


_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_DAY: Final = timedelta(days=1)
_QUARTER: Final = timedelta(minutes=15)
_SECOND: Final = timedelta(seconds=1)
SHIFTS: Final = tuple(timedelta(minutes=minutes) for minutes in (-120, -60, -30, 0, 30, 60, 120))
"""By how much the end of a day can move with daylight saving time. Troll in Antarctica has 2 hours."""
_MOST_SHIFT: Final = max(SHIFTS)
_MAX_DAYS: Final = 4_000_000
"""Days, more than a calendar has."""


def _open(reason: str) -> Evidence:
    return Evidence(Verdict.OPEN, reason)


def _in_utc(call: CallRecord) -> CallRecord:
    """Return the same record with times that can be subtracted: those of some zones cannot."""
    return CallRecord(
        call.method,
        call.end_user_id,
        call.amount,
        call.validity_days,
        call.outcome,
        None if call.began_at is None else _utc(call.began_at),
        None if call.before is None else _reading_in_utc(call.before),
    )


def _reading_in_utc(reading: BalanceReading) -> BalanceReading:
    date = reading.date
    return BalanceReading(
        reading.balance,
        _utc(reading.asked_at),
        _utc(reading.received_at),
        None if date is None else _utc(date),
    )


def _utc(moment: datetime) -> datetime:
    if moment.utcoffset() is None:
        raise ValueError(f"times must have an offset, unlike {moment}")
    return moment.astimezone(UTC)


def _problem(call: CallRecord, reading: BalanceReading, clock_skew: float) -> str:
    """Return why a balance proves nothing, if so."""
    balance = reading.balance
    if balance is not None and balance.end_user_id != call.end_user_id:
        raise ValueError(
            f"the balance is that of {balance.end_user_id}, and the call for {call.end_user_id}"
        )
    gap = _clock_gap(reading).total_seconds()
    if gap > clock_skew:
        return (
            f"the service's clock and this machine's differ by {gap:.0f} s or more, and clock_skew "
            f"allows {clock_skew:g}"
        )
    return "" if _is_complete(reading) else "a balance does not list all of its cycles"


def _clock_gap(reading: BalanceReading) -> timedelta:
    """Return by how much the server's clock and ours differ at least."""
    if reading.date is None:
        return timedelta()
    # A Date has no fractions of a second.
    return max(
        timedelta(), reading.asked_at - reading.date - _SECOND, reading.date - reading.received_at
    )


def _is_complete(reading: BalanceReading) -> bool:
    balance = reading.balance
    return balance is None or balance.active_balance == sum(
        cycle.amount for cycle in balance.active_balance_by_cycle
    )


def _cycles(reading: BalanceReading) -> tuple[CycleBalance, ...]:
    return () if reading.balance is None else reading.balance.active_balance_by_cycle


def _is_emptied(cycle: CycleBalance) -> bool:
    return (
        cycle.cycle_type == CycleType.ONE_TIME
        and cycle.amount == 0
        and (cycle.starting_amount or 0) > 0
    )


def _is_applied(call: CallRecord) -> bool:
    return call.outcome is Outcome.APPLIED


def _has_dropped_one(
    was: tuple[CycleBalance, ...], now: tuple[CycleBalance, ...], last: datetime
) -> bool:
    """Return whether a cycle is not listed any more although it has not ended: it is used up."""
    gone = Counter(map(_identity, was))
    gone.subtract(map(_identity, now))
    return any(count > 0 and identity[1] > last for identity, count in gone.items())


def end_of_day(end: datetime) -> timedelta | None:
    """Return the time, in UTC, of the midnight at which a cycle ends; or ``None`` at other times."""
    # Ends are written as 23:59:59.999999, as 23:59:59, or as the midnight itself, in whichever zone.
    since = end - _EPOCH
    rest = -since % _QUARTER
    return (since + rest) % _DAY if rest <= _SECOND else None


def may_last(cycle: CycleBalance, days: int) -> bool:
    """Return whether a cycle ends so many days after its start, at the end of that day.

    The zone does not matter: a cycle that lasts n days and a part of a day ends after n days. If it
    begins near midnight, a change to or from daylight saving time can add a day.
    """
    length, tolerance = cycle.cycle_end - cycle.cycle_start, _MOST_SHIFT + _SECOND
    return days * _DAY - tolerance <= length <= (days + 1) * _DAY + tolerance


# add and start_cycle: a new cycle


def _weigh_new_cycle(case: _Case, wanted: CycleType) -> Evidence:
    """Look for the cycle that the call opens."""
    call, days = case.call, case.call.validity_days
    new = list(_new_cycles(case))
    found = [_is_opened_by(case, cycle, wanted) for cycle in new]
    sure, possible = found.count(True), len(found) - found.count(False)
    ours = [other for other in case.known if _does_the_same(other, call)]
    # Of our other calls of this kind, these have a cycle among those found for certain.
    listed = sum(
        other.validity_days == days and _began_since(other, case.began) for other in set(ours)
    )
    what = f"{wanted} cycle of {case.amount} credits"
    length = "" if days is None else f" for {days} days"
    since = f"{case.began - case.slack:%Y-%m-%d %H:%M:%S %Z} by the service's clock"
    if call.before is not None and any(
        cycle.cycle_start < case.first - case.slack for cycle in new
    ):
        return _open("a cycle that is older than the balance before the call is not listed there")
    if sure == len(ours) + 1:
        same = f"{case.amount} credits" + (length and f" that are valid for about {days} days")
        assumption = _NOBODY_ELSE[wanted].format(same)
        return Evidence(Verdict.APPLIED, f"a {what}{length} began after {since}", assumption)
    if possible != listed:
        return _open(
            f"a {what}{length} that began after {since} may be this call's, or another's"
            if possible > listed
            else "the balance does not show a call that was applied"
        )
    return _weigh_absence(case, f"no {what}{length} began after {since}")


def _weigh_absence(case: _Case, reason: str) -> Evidence:
    """Decide whether the call's cycle would be listed if it were there."""
    days = case.days
    if case.may_end_a_day(case.began, days * _DAY - (_MOST_SHIFT if days else timedelta())):
        return _open("the call's cycle may have ended since")
    if not case.lists_empty_cycles and not _has_older_credits(case):
        return _open(f"the call's cycle may be used up, and no longer listed; {_HINT}")
    return Evidence(Verdict.NOT_YET, reason)


_NOBODY_ELSE: Final[Mapping[CycleType, str]] = {
    CycleType.ONE_TIME: "nobody else has added {} to this user since then",
    CycleType.RECURRING: (
        "nobody else has started a cycle of {} for this user since then, and none was renewed"
    ),
}
_HINT: Final = "pass lists_empty_cycles=True if the service is known to list cycles without credits"


def _does_the_same(other: CallRecord, call: CallRecord) -> bool:
    """Return whether another call opens a cycle that can be taken for the call's."""
    if (other.method, other.amount) != (call.method, call.amount):
        return False
    days, others = call.validity_days, other.validity_days
    return days is None or others is None or abs(days - others) <= 1


def _began_since(other: CallRecord, moment: datetime) -> bool:
    """Return whether another call was applied for certain, and after this moment."""
    return _is_applied(other) and other.began_at is not None and other.began_at >= moment


def _new_cycles(case: _Case) -> Iterator[CycleBalance]:
    """Yield the cycles that were not listed before the call."""
    old = Counter(map(_identity, case.was))
    for cycle in case.now:
        if old[_identity(cycle)]:
            old[_identity(cycle)] -= 1
        else:
            yield cycle


_Identity: TypeAlias = tuple[datetime, datetime, str | None, int | None]


def _identity(cycle: CycleBalance) -> _Identity:
    """Return what tells a cycle from others. Its credits and its status can change."""
    return cycle.cycle_start, cycle.cycle_end, cycle.cycle_type, cycle.starting_amount


def _is_opened_by(case: _Case, cycle: CycleBalance, wanted: CycleType) -> bool | None:
    """Return whether the call, or one like it, opened a cycle. ``None``: perhaps."""
    days = case.call.validity_days
    start, amount = cycle.cycle_start, cycle.starting_amount
    is_renewal = wanted is CycleType.RECURRING and case.may_be_renewal(start)
    if (
        start < case.began - case.slack
        or cycle.cycle_type in set(CycleType) - {wanted}
        or (cycle.amount > case.amount if amount is None else amount != case.amount)
        or not (days is None or is_renewal or may_last(cycle, case.days))
    ):
        return False
    is_sure = (
        cycle.cycle_type == wanted
        and amount is not None
        and not is_renewal
        and end_of_day(cycle.cycle_end) is not None
        and start <= case.last + case.slack
    )
    return True if is_sure else None


def _has_older_credits(case: _Case) -> bool:
    """Return whether credits are left that would have been taken before those of the call's cycle."""
    if not case.days or not case.amount:
        return False
    begins = case.began - case.slack
    return any(
        cycle.amount > 0
        and cycle.cycle_start < begins
        and cycle.cycle_end - begins < case.days * _DAY - _MOST_SHIFT
        for cycle in case.now
    )


# subtract: credits that are gone


def _weigh_subtract(case: _Case) -> Evidence:
    """Compare what was taken between the two balances with the amount."""
    if case.call.before is None:
        return _open("there is no balance from before the call")
    if not case.amount:
        return _open("a subtraction of 0 credits leaves no trace")
    taken = _taken(case)
    if taken is None:
        return _open("the cycles have changed in a way that the service does not document")
    return _weigh_taken(case, case.call.before, *taken)


def _weigh_taken(case: _Case, before: BalanceReading, least: int, most: int | None) -> Evidence:
    """Compare what was taken, at least and at most, with the amount and our other calls'."""
    ours = [other for other in case.known if other.method == "subtract"]
    least -= sum(other.amount or 0 for other in ours)
    what = "taken between the balance before the call and this one"
    if least == case.amount:
        assumption = "nobody else subtracted from this user between the two"
        return Evidence(Verdict.APPLIED, f"as many credits were {what}", assumption)
    if least > case.amount:
        return _open(f"more credits were {what}: others subtract, too")
    if most is None:
        unlisted = "credits may have been taken from a cycle that the balance does not list"
        return _open(unlisted if case.lists_empty_cycles else f"{unlisted}; {_HINT}")
    # Of our other calls, these were applied between the two for certain.
    most -= sum(other.amount or 0 for other in set(ours) if _began_since(other, before.received_at))
    if most < 0:
        return _open("the balance does not show a call that was applied")
    if most < case.amount:
        return Evidence(Verdict.NOT_YET, f"fewer credits were {what}")
    return _open("another call of ours may have taken the credits")


def _taken(case: _Case) -> tuple[int, int | None] | None:
    """Return how many credits were taken between the balances, at least, and at most if it is known.

    ``None``: a cycle has more credits than before, or is older than the first balance, which does not
    list it.
    """
    before, after = _by_identity(case.was), _by_identity(case.now)
    shown = 0
    # Others can have opened cycles that are not listed any more.
    is_all = case.lists_empty_cycles and not case.may_end_a_day(case.first)
    for identity in before.keys() | after.keys():
        old, new = before.get(identity, []), after.get(identity, [])
        start, until, _, starting_amount = identity
        opened = len(new) - len(old)
        if opened < 0 and until <= case.last + case.slack:  # ended, with credits or without
            is_all = False
            continue
        if opened > 0 and (start < case.first - case.slack or (old and starting_amount is None)):
            return None
        if opened > 0 and starting_amount is None:  # it has lost an unknown number of credits
            is_all = False
            continue
        # A cycle that is no longer listed although it has not ended is used up.
        taken = sum(old) + max(0, opened) * (starting_amount or 0) - sum(new)
        if taken < 0:
            return None
        shown += taken
    return shown, shown if is_all else None


def _by_identity(cycles: tuple[CycleBalance, ...]) -> dict[_Identity, list[int]]:
    """Return the amounts left in cycles that cannot be told apart."""
    found: dict[_Identity, list[int]] = {}
    for cycle in cycles:
        found.setdefault(_identity(cycle), []).append(cycle.amount)
    return found


# stop_cycle: a cycle that is canceled


def _weigh_stop_cycle(case: _Case) -> Evidence:
    """Look for the cycle that was active when the call began."""
    recurring = [cycle for cycle in case.now if cycle.cycle_type != CycleType.ONE_TIME]
    active = [cycle for cycle in recurring if cycle.status != CycleStatus.CANCELED]
    if any(
        (cycle.cycle_type, cycle.status) != (CycleType.RECURRING, CycleStatus.ACTIVE)
        for cycle in active
    ):
        return _open("the balance does not say which cycle is recurring and active")
    was_active = {_identity(cycle) for cycle in case.was if cycle.status == CycleStatus.ACTIVE}
    if any(
        cycle.cycle_start < case.began - case.slack or _identity(cycle) in was_active
        for cycle in active
    ):
        return Evidence(Verdict.NOT_YET, "the cycle that was active when the call began still is")
    canceled = [cycle for cycle in recurring if cycle not in active]
    if not canceled and case.lists_empty_cycles and not case.may_end_a_day(case.began):
        return Evidence(Verdict.NOT_YET, "no cycle is canceled")
    if any(other.method == "stop_cycle" for other in case.known):
        return _open("another call of ours may have stopped the cycle")
    if case.call.before is None:
        return _weigh_canceled(case, canceled, is_active=bool(active))
    return _weigh_canceled_since(case, canceled, was_active)


def _weigh_canceled_since(
    case: _Case, canceled: list[CycleBalance], was_active: set[_Identity]
) -> Evidence:
    """Decide whether a cycle that was active in the balance before is canceled now."""
    newly_canceled = Counter(map(_identity, canceled))
    newly_canceled.subtract(
        _identity(cycle) for cycle in case.was if cycle.status == CycleStatus.CANCELED
    )
    if any(count > 0 and identity in was_active for identity, count in newly_canceled.items()):
        reason = "the cycle that was active when the call began is canceled"
        return Evidence(Verdict.APPLIED, reason, "nobody else stopped it")
    return _open("the cycle that was active is not listed any more")


def _weigh_canceled(case: _Case, canceled: list[CycleBalance], *, is_active: bool) -> Evidence:
    """Decide whether a canceled cycle can be the one that was active, without a balance before."""
    if is_active:
        return _open(
            "the active cycle began about when the call did, or later: it may be a renewal or a new "
            "one; with balance_first=True, more can be said"
        )
    if not case.lists_empty_cycles:
        return _open(f"the active cycle may be used up, and not listed; {_HINT}")
    if not canceled:
        return _open("the cycle is not listed any more")
    start = max(cycle.cycle_start for cycle in canceled)
    cycle = f"the cycle that began at {start:%Y-%m-%d %H:%M:%S %Z}"
    assumption = f"{cycle} was active when the call began, and nobody else stopped it"
    return Evidence(Verdict.APPLIED, f"{cycle} is canceled", assumption)


_RULES: Final[Mapping[str, Callable[[_Case], Evidence]]] = {
    "add": partial(_weigh_new_cycle, wanted=CycleType.ONE_TIME),
    "subtract": _weigh_subtract,
    "start_cycle": partial(_weigh_new_cycle, wanted=CycleType.RECURRING),
    "stop_cycle": _weigh_stop_cycle,
}
"""How each write is weighed."""


def check_can_be_weighed(call: CallRecord) -> None:
    """Raise ``ValueError`` if the call is a balance, or no client has run it."""
    if call.method not in _RULES:
        raise ValueError(f"{call.method} moves no credits: there is nothing to find out")
    if call.began_at is None:
        raise ValueError(
            "the record has no began_at: only a client's run() knows when a call began"
        )
