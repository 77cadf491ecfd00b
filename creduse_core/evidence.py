"""What balances prove about a call whose outcome is UNKNOWN.

`weigh` compares a balance that was read after the call, and one from before it if there is one, with
what the call would have changed. Its `Evidence` is a verdict, the reason, and what it assumes about
other writers. Whatever could make a verdict wrong makes it OPEN instead.

Every verdict assumes of the service what its documentation says, or implies:

- A balance shows each call that was applied before it was read.
- Each ``add`` and ``start_cycle`` has a cycle of its own. ``cycle_start`` is when it was applied, and
  ``starting_amount`` does not change.
- Cycles end at the end of a day, in any one time zone. ``subtract`` takes from the cycle that ends
  soonest.
- Its clock and ours differ by at most ``clock_skew`` seconds.

The functions are pure: reading balances, clocks and decisions about what to do next do not belong here.
"""

import enum
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

from .models import CallRecord, CycleBalance, CycleStatus, CycleType, Outcome, Reading
from .records import dataclass

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
class Evidence:
    """What balances prove about a call, why, and under which assumption."""

    verdict: Verdict
    reason: str
    assumption: str | None = None
    """What must be true of other writers, such as ``nobody else subtracted …``. ``None``: the verdict
    is true whoever else writes."""

    def __str__(self) -> str:
        assumption = "" if self.assumption is None else f", if {self.assumption}"
        return f"{self.verdict}: {self.reason}{assumption}"


def weigh(
    call: CallRecord,
    after: Reading,
    *,
    known: Iterable[CallRecord] = (),
    clock_skew: float = CLOCK_SKEW,
    lists_emptied: bool = False,
) -> Evidence:
    """Return what the balance ``after`` proves about a write.

    - ``call``: the write. ``subtract`` needs ``call.before``. The other methods can use it.
    - ``after``: a balance that was asked for after the call began.
    - ``known``: all other writes of your own for this user that can have been applied between
      ``call.before`` and ``after``; without ``call.before``, from twice ``clock_skew`` before the call
      began. Make their records before you ask for ``after``.
    - ``clock_skew``: seconds by which the service's clock and ours can differ.
    - ``lists_emptied``: whether the service lists cycles without credits. If a balance lists one, that
      is known anyway.

    Raises:
        ValueError: The call is a balance, no client has run it, or ``after`` is another user's.
    """
    rule, began_at = check_can_be_weighed(call)
    before, skew = call.before, timedelta(seconds=clock_skew)
    readings = (after,) if before is None else (before, after)
    for reading in readings:
        if reading.balance is not None and reading.balance.end_user_id != call.end_user_id:
            raise ValueError(
                f"the balance is that of {reading.balance.end_user_id}, "
                f"and the call for {call.end_user_id}"
            )
    for reading in readings:
        if (gap := _clock_gap(reading)) > skew:
            return _open(
                f"the service's clock and ours differ by {gap.total_seconds():.0f} s or more, which "
                f"is over clock_skew={clock_skew:g}"
            )
        if not _is_complete(reading):
            return _open("a balance does not list all of its cycles")
    if before is not None and before.received_at > began_at:
        return _open("the balance from before the call was read after the call began")
    ours = tuple(
        other
        for other in known
        if other.end_user_id == call.end_user_id and other.outcome is not Outcome.NOT_APPLIED
    )
    if after.balance is None:
        if ours or (before is not None and before.balance is not None):
            return _open("the service does not know the user any more")
        return Evidence(
            Verdict.NOT_YET,
            "the service does not know the user",
            "the service knows each user who has ever had credits",
        )
    was = () if before is None else _cycles(before)
    now = _cycles(after)
    return rule(
        _Case(
            call,
            was,
            now,
            ours,
            began=began_at,
            first=began_at if before is None else before.asked_at,
            last=after.received_at,
            skew=skew,
            lists_emptied=lists_emptied or any(map(_is_emptied, (*was, *now))),
        )
    )


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
    skew: timedelta
    lists_emptied: bool

    @property
    def amount(self) -> int:
        """The call's amount."""
        return self.call.amount or 0

    @property
    def days(self) -> int:
        """The call's ``validity_days``, 0 if it has none, as far as a calendar goes."""
        return min(self.call.validity_days or 0, _MAX_DAYS)

    def may_end_a_day(self, start: datetime, later: timedelta = timedelta()) -> bool:
        """Return whether a day of the service may end from ``later`` after ``start`` until ``last``.

        The ends of the listed cycles show when its days end. Without any, each quarter of an hour may
        be an end, since all time zones differ by quarters.
        """
        since = start - self.skew - _EPOCH + later
        length = self.last + self.skew - _EPOCH - since
        if length < timedelta():
            return False
        ends = [_end_of_day(cycle.cycle_end) for cycle in (*self.was, *self.now)]
        if None in ends or length >= _DAY:
            return True
        # A cycle can end on the other side of a change to or from daylight saving time.
        midnights = {
            midnight + shift
            for midnight in ends
            if midnight is not None
            for shift in (-_HOUR, timedelta(), _HOUR)
        } or {_QUARTER * number for number in range(96)}
        return any((midnight - since) % _DAY <= length for midnight in midnights)


_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_DAY: Final = timedelta(days=1)
_HOUR: Final = timedelta(hours=1)
_QUARTER: Final = timedelta(minutes=15)
_SECOND: Final = timedelta(seconds=1)
_MAX_DAYS: Final = 4_000_000
"""Days, more than a calendar has."""


def _open(reason: str) -> Evidence:
    return Evidence(Verdict.OPEN, reason)


def _clock_gap(reading: Reading) -> timedelta:
    """Return by how much the server's clock and ours differ at least."""
    if reading.date is None:
        return timedelta()
    # A Date has no fractions of a second.
    return max(
        timedelta(), reading.asked_at - reading.date - _SECOND, reading.date - reading.received_at
    )


def _is_complete(reading: Reading) -> bool:
    balance = reading.balance
    return balance is None or balance.active_balance == sum(
        cycle.amount for cycle in balance.active_balance_by_cycle
    )


def _cycles(reading: Reading) -> tuple[CycleBalance, ...]:
    return () if reading.balance is None else reading.balance.active_balance_by_cycle


def _is_emptied(cycle: CycleBalance) -> bool:
    return (
        cycle.cycle_type == CycleType.ONE_TIME
        and cycle.amount == 0
        and (cycle.starting_amount or 0) > 0
    )


def _end_of_day(end: datetime) -> timedelta | None:
    """Return the time, in UTC, of the midnight at which a cycle ends; or ``None`` at other times."""
    # Ends are written as 23:59:59.999999, as 23:59:59, or as the midnight itself, in whichever zone.
    since = end - _EPOCH
    rest = -since % _QUARTER
    return (since + rest) % _DAY if rest <= _SECOND else None


def _may_last(cycle: CycleBalance, days: int) -> bool:
    """Return whether a cycle ends so many days after its start, at the end of that day.

    The zone does not matter: a cycle that lasts n days and a part of a day ends after n days. If it
    begins within an hour of midnight, a change to or from daylight saving time can add a day.
    """
    length = cycle.cycle_end - cycle.cycle_start
    return days * _DAY - _HOUR <= length <= (days + 1) * _DAY + _HOUR


# add and start_cycle: a new cycle


def _weigh_new_cycle(case: _Case, wanted: CycleType) -> Evidence:
    """Look for the cycle that the call opens."""
    call, days = case.call, case.call.validity_days
    found = [_is_opened_by(case, cycle, wanted) for cycle in _new_cycles(case)]
    sure, possible = found.count(True), len(found) - found.count(False)
    ours = [
        other for other in case.known if other.method == call.method and other.amount == call.amount
    ]
    # Of our other calls of this kind, these have a cycle among those found for certain.
    listed = sum(
        other.outcome is Outcome.APPLIED
        and other.validity_days == days
        and other.began_at is not None
        and other.began_at >= case.began
        for other in ours
    )
    what = f"{wanted} cycle of {case.amount} credits"
    if days is not None:
        what += f" for {days} days"
    since = case.began - case.skew
    if sure > len(ours):
        return Evidence(
            Verdict.APPLIED,
            f"a {what} began after {since:%Y-%m-%d %H:%M:%S %Z}",
            _NOBODY_ELSE[wanted].format(
                case.amount, "" if days is None else f" for about {days} days"
            ),
        )
    if possible > listed:
        return _open(f"a cycle may be this call's {what}, or another's")
    if possible < listed:
        return _open("the balance does not show a call that was applied")
    if case.may_end_a_day(case.began, case.days * _DAY - (_HOUR if days else timedelta())):
        return _open("the call's cycle may have ended since")
    if not case.lists_emptied and not _has_older_credits(case):
        return _open("the call's cycle may be used up, and no longer listed")
    return Evidence(Verdict.NOT_YET, f"no {what} began after {since:%Y-%m-%d %H:%M:%S %Z}")


_NOBODY_ELSE: Final[Mapping[CycleType, str]] = {
    CycleType.ONE_TIME: "nobody else added {} credits{} to this user since then",
    CycleType.RECURRING: (
        "nobody else started a cycle of {} credits{} for this user since then, and none was renewed"
    ),
}


def _new_cycles(case: _Case) -> Iterator[CycleBalance]:
    """Yield the cycles that were not listed before the call."""
    old = Counter(map(_identity, case.was))
    for cycle in case.now:
        if old[_identity(cycle)]:
            old[_identity(cycle)] -= 1
        else:
            yield cycle


def _identity(cycle: CycleBalance) -> tuple[object, ...]:
    return cycle.cycle_start, cycle.cycle_end, cycle.cycle_type, cycle.starting_amount


def _is_opened_by(case: _Case, cycle: CycleBalance, wanted: CycleType) -> bool | None:
    """Return whether the call, or one like it, opened a cycle. ``None``: perhaps."""
    days = case.call.validity_days
    start, amount = cycle.cycle_start, cycle.starting_amount
    is_renewal = wanted is CycleType.RECURRING and _end_of_day(start) is not None
    if (
        start < case.began - case.skew
        or cycle.cycle_type in set(CycleType) - {wanted}
        or (cycle.amount > case.amount if amount is None else amount != case.amount)
        or not (days is None or is_renewal or _may_last(cycle, case.days))
    ):
        return False
    is_sure = (
        cycle.cycle_type == wanted
        and amount is not None
        and not is_renewal
        and _end_of_day(cycle.cycle_end) is not None
        and start <= case.last + case.skew
    )
    return True if is_sure else None


def _has_older_credits(case: _Case) -> bool:
    """Return whether credits are left that would have been taken before those of the call's cycle."""
    if not case.days or not case.amount:
        return False
    begins = case.began - case.skew
    return any(
        cycle.amount > 0
        and cycle.cycle_start < begins
        and cycle.cycle_end - begins < case.days * _DAY - _HOUR
        for cycle in case.now
    )


def _weigh_add(case: _Case) -> Evidence:
    return _weigh_new_cycle(case, CycleType.ONE_TIME)


def _weigh_start_cycle(case: _Case) -> Evidence:
    return _weigh_new_cycle(case, CycleType.RECURRING)


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


def _weigh_taken(case: _Case, before: Reading, least: int, most: int | None) -> Evidence:
    """Compare what was taken, at least and at most, with the amount and our other calls'."""
    between = "credits were taken between the balance before the call and this one"
    ours = [other for other in case.known if other.method == "subtract"]
    least -= sum(other.amount or 0 for other in ours)
    if least >= case.amount:
        assumption = "nobody else subtracted from this user between the two"
        return Evidence(Verdict.APPLIED, f"at least {least} {between}", assumption)
    if most is None:
        return _open("credits may have been taken from a cycle that the balance does not show")
    # Of our other calls, these were applied between the two for certain.
    most -= sum(
        other.amount or 0
        for other in ours
        if other.outcome is Outcome.APPLIED
        and other.began_at is not None
        and other.began_at >= before.received_at
    )
    if most < 0:
        return _open("the balance does not show a call that was applied")
    if most < case.amount:
        return Evidence(Verdict.NOT_YET, f"at most {most} {between}")
    return _open("another call of ours may have taken the credits")


def _taken(case: _Case) -> tuple[int, int | None] | None:
    """Return how many credits were taken between the balances, at least, and at most if it is known.

    ``None``: a cycle has more credits than before, or is older than the first balance, which does not
    list it.
    """
    before, after = _by_identity(case.was), _by_identity(case.now)
    shown = 0
    # Others can have opened cycles that are not listed any more.
    is_all = case.lists_emptied and not case.may_end_a_day(case.first)
    for identity in before.keys() | after.keys():
        old, new = before.get(identity, []), after.get(identity, [])
        start, _, _, starting_amount = identity
        opened = len(new) - len(old)
        if opened < 0:  # used up and no longer listed, or ended, or removed by somebody
            is_all = False
            continue
        if opened and (start < case.first - case.skew or (old and starting_amount is None)):
            return None
        if opened and starting_amount is None:  # it has lost an unknown number of credits
            is_all = False
            continue
        taken = sum(old) + opened * (starting_amount or 0) - sum(new)
        if taken < 0:
            return None
        shown += taken
    return shown, shown if is_all else None


def _by_identity(
    cycles: tuple[CycleBalance, ...],
) -> dict[tuple[datetime, datetime, str | None, int | None], list[int]]:
    """Return the amounts left in cycles that cannot be told apart."""
    found: dict[tuple[datetime, datetime, str | None, int | None], list[int]] = {}
    for cycle in cycles:
        key = cycle.cycle_start, cycle.cycle_end, cycle.cycle_type, cycle.starting_amount
        found.setdefault(key, []).append(cycle.amount)
    return found


# stop_cycle: a cycle that is canceled


def _weigh_stop_cycle(case: _Case) -> Evidence:
    """Look for the cycle that was active when the call began."""
    recurring = [cycle for cycle in case.now if cycle.cycle_type != CycleType.ONE_TIME]
    going_on = [cycle for cycle in recurring if cycle.status != CycleStatus.CANCELED]
    if any(
        (cycle.cycle_type, cycle.status) != (CycleType.RECURRING, CycleStatus.ACTIVE)
        for cycle in going_on
    ):
        return _open("the balance does not say which cycle is recurring and active")
    if any(cycle.cycle_start < case.began - case.skew for cycle in going_on):
        return Evidence(Verdict.NOT_YET, "the cycle that was active when the call began still is")
    if going_on:
        return _open("the active cycle was renewed or started since the call began")
    if any(other.method == "stop_cycle" for other in case.known):
        return _open("another call of ours may have stopped the cycle")
    canceled = {(cycle.cycle_start, cycle.cycle_end) for cycle in recurring}
    return _weigh_canceled(case, canceled)


def _weigh_canceled(case: _Case, canceled: set[tuple[datetime, datetime]]) -> Evidence:
    """Find the cycle that was active among those that are canceled."""
    if case.call.before is not None:
        assumption = "nobody else stopped it"
        canceled &= {
            (cycle.cycle_start, cycle.cycle_end)
            for cycle in case.was
            if (cycle.cycle_type, cycle.status) == (CycleType.RECURRING, CycleStatus.ACTIVE)
        }
    elif case.lists_emptied:
        assumption = "the cycle was active before the call, and nobody else stopped it"
    else:
        return _open("the active cycle may be used up, and not listed")
    if not canceled:
        return _open("the cycle is not listed any more")
    return Evidence(Verdict.APPLIED, "the cycle is canceled", assumption)


_RULES: Final[Mapping[str, Callable[[_Case], Evidence]]] = {
    "add": _weigh_add,
    "subtract": _weigh_subtract,
    "start_cycle": _weigh_start_cycle,
    "stop_cycle": _weigh_stop_cycle,
}
"""How each write is weighed."""


def check_can_be_weighed(call: CallRecord) -> tuple[Callable[[_Case], Evidence], datetime]:
    """Return how a call is weighed and when it began.

    Raises:
        ValueError: It is a balance, or no client has run it.
    """
    rule = _RULES.get(call.method)
    if rule is None:
        raise ValueError(f"{call.method} moves no credits: there is nothing to find out")
    if call.began_at is None:
        raise ValueError(
            "the record has no began_at: only a client's run() knows when a call began"
        )
    return rule, call.began_at
