"""Random histories of one user's credits at the sandbox's ledger, and what is true in each.

A history has our call, whose response is lost, the calls of others and our own other calls. It knows
when the ledger applied which, so it knows whether a verdict is right and whether its assumption held.
The rules of evidence do not belong here: `tests.evidence.test_histories` compares.
"""

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from random import Random
from typing import TYPE_CHECKING

from creduse_core import (
    ActiveBalance,
    BalanceReading,
    CallRecord,
    CycleBalance,
    CycleStatus,
    CycleType,
    Outcome,
)
from creduse_sandbox.ledger import Cycle, Ledger, Refused
from tests.common import USER

if TYPE_CHECKING:
    from collections.abc import Callable

SKEW = 10.0
DAYS = (0, 1, 7, 30, 31, 365)
# Minutes from UTC, and in summer.
ZONES = ((0, 0), (0, 0), (0, 60), (60, 60), (-300, 60), (330, 0), (345, 0), (840, 0), (-720, 0))
ODD_ZONES = (*ZONES, (630, 30), (0, 120))


@dataclass(frozen=True)
class Zone:
    """A time zone. Summer is a part of the year."""

    offset: timedelta
    summer: timedelta

    def local(self, moment: datetime) -> datetime:
        """Return the local time, which the ledger takes for UTC."""
        return moment + self.offset + (self.summer if _is_summer(moment) else timedelta())

    def utc(self, local: datetime) -> datetime:
        """Return the time in UTC."""
        moment = local - self.offset - self.summer
        return moment if _is_summer(moment) else local - self.offset


def _is_summer(moment: datetime) -> bool:
    return 80 <= moment.timetuple().tm_yday < 290


def midnight(moment: datetime, zone: Zone) -> datetime:
    """Return the beginning of a day."""
    local = zone.local(moment).replace(hour=0, minute=0, second=0, microsecond=0)
    return zone.utc(local)


@dataclass(frozen=True)
class World:
    """What the service does, and what others do meanwhile."""

    name: str
    same: bool
    """Whether others also do the same as our call."""
    hides_emptied: bool = False
    """Whether the service lists no cycles without credits."""
    says_so: bool = False
    """Whether it is known that the service lists them."""
    odd: bool = False
    """Whether fields are missing, days end meanwhile, and much time passes."""
    unclear: bool = True
    """Whether our other calls can be unclear, too."""


WORLDS = (
    World("others do other things", same=False, says_so=True, unclear=False),
    World("others do the same, too", same=True, says_so=True),
    World("the same, and emptied cycles hidden", same=True, hides_emptied=True),
    World("the same, near midnight, fields missing", same=True, odd=True),
    World("all of these", same=True, hides_emptied=True, odd=True),
)


@dataclass(eq=False)
class Operation:
    """A call that the ledger carries out at a time of its own clock."""

    at: datetime
    method: str
    amount: int = 0
    days: int | None = None
    who: str = "others"
    accepted: bool = False

    def apply(self, ledger: Ledger, zone: Zone) -> None:
        """Carry it out, and keep whether the ledger accepted it."""
        now = zone.local(self.at)
        calls: dict[str, Callable[[], object]] = {
            "add": lambda: ledger.add(USER, self.amount, self.days, now),
            "subtract": lambda: ledger.subtract(USER, self.amount, now),
            "start_cycle": lambda: ledger.start_cycle(USER, self.amount, self.days, now),
            "stop_cycle": lambda: ledger.stop_cycle(USER, now),
        }
        try:
            calls[self.method]()
            self.accepted = True
        except Refused:
            self.accepted = False


@dataclass
class History:
    """What the client saw, and what was true."""

    call: CallRecord
    after: BalanceReading
    known: list[CallRecord]
    applied: bool
    """Whether the ledger had applied our call when it read the balance."""
    assumption_held: bool
    """Whether what an APPLIED of this method assumes of others was so."""
    operations: list[Operation] = field(repr=False)


def seconds(random: Random, least: float, most: float) -> timedelta:
    """Return a random time, short ones as likely as long ones."""
    return timedelta(seconds=least * (most / least) ** random.random())


@dataclass(frozen=True)
class Service:
    """A ledger that responds as a service of this kind does."""

    world: World
    zone: Zone
    salt: int
    ledger: Ledger

    def run(self, operations: list[Operation], since: datetime, until: datetime) -> None:
        """Carry out the operations of this time."""
        for operation in operations:
            if since < operation.at <= until:
                operation.apply(self.ledger, self.zone)

    def cycles(self, now: datetime) -> tuple[Cycle, ...]:
        """Return all cycles of the user."""
        return self.ledger.balance(USER, self.zone.local(now))

    def balance(self, now: datetime) -> ActiveBalance:
        """Return the balance as a client sees it."""
        whole = self.cycles(now)
        listed = [cycle for cycle in whole if cycle.amount or not self.world.hides_emptied]
        shown = [
            _shown(cycle, self.zone, self.salt if self.world.odd else None) for cycle in listed
        ]
        return ActiveBalance(USER, sum(cycle.amount for cycle in whole), tuple(shown))


def _shown(cycle: Cycle, zone: Zone, salt: int | None) -> CycleBalance:
    status = CycleStatus.CANCELED if cycle.canceled else CycleStatus.ACTIVE
    shown = CycleBalance(
        zone.utc(cycle.start),
        zone.utc(cycle.end),
        cycle.amount,
        cycle.starting_amount,
        status if cycle.recurring else None,
        CycleType.RECURRING if cycle.recurring else CycleType.ONE_TIME,
    )
    if salt is None:
        return shown
    # What a service leaves out of a cycle does not change from one balance to the next.
    key = f"{cycle.created_at} {cycle.starting_amount} {salt}"
    lacks = Random(key).random()  # noqa: S311 - nothing is secret here
    if lacks < 0.1:
        return replace(shown, starting_amount=None)
    if lacks < 0.15:
        return replace(shown, cycle_type=None, status=None)
    if lacks < 0.4:
        return replace(
            shown,
            cycle_start=shown.cycle_start.replace(microsecond=0),
            cycle_end=shown.cycle_end.replace(microsecond=0),
        )
    return shown


@dataclass(frozen=True)
class Times:
    """When things happened, by the service's clock."""

    skew: timedelta
    """What the service's clock is ahead of ours."""
    asked_before: datetime
    read_before: datetime
    received_before: datetime
    began: datetime
    asked: datetime
    read: datetime
    received: datetime


def _times(random: Random, world: World, zone: Zone) -> Times:
    asked_before = datetime(2025, 1, 1, tzinfo=UTC) + timedelta(days=random.uniform(0, 300))
    if _is_summer(asked_before - timedelta(hours=3)) != _is_summer(
        asked_before + timedelta(hours=1)
    ):
        # An hour comes twice here, and the ledger cannot tell which one it was.
        asked_before += timedelta(hours=5)
    if world.odd and random.random() < 0.5:
        asked_before = midnight(asked_before, zone) - seconds(random, 0.01, 100)
    longest = 3e6 if world.odd and random.random() < 0.3 else 60
    moments = [asked_before]
    for most in (1, 1, 5, longest, 1, 1):
        moments.append(moments[-1] + seconds(random, 0.001, most))
    skew = random.uniform(-SKEW, SKEW) if random.random() < 0.7 else 0
    return Times(timedelta(seconds=skew), *moments)


def make(random: Random, method: str, world: World) -> History:
    """Return a random history for a call of this method."""
    minutes, summer = random.choice(ODD_ZONES if world.odd else ZONES)
    zone = Zone(timedelta(minutes=minutes), timedelta(minutes=summer))
    times = _times(random, world, zone)
    service = Service(world, zone, random.randrange(1000), Ledger())

    amount, days = random.choice((1, 10, 50)), random.choice((*DAYS, None))
    reaches = random.choices(("soon", "never", "late"), (5, 4, 1))[0]
    since = times.received if reaches == "late" else times.began
    ours = Operation(since + seconds(random, 0.001, 30), method, amount, days, "we")
    mine, records = _ours(random, world, ours, times)
    operations = [
        *_prelude(random, world, ours, times),
        *_others(random, world, ours, times),
        *mine.values(),
        *(() if reaches == "never" else (ours,)),
    ]
    operations.sort(key=lambda operation: operation.at)

    long_ago = times.asked_before - timedelta(days=800)
    service.ledger.add(USER, 0, 0, zone.local(long_ago))
    service.run(operations, long_ago, times.read_before)
    was = service.balance(times.read_before)
    service.run(operations, times.read_before, times.began)
    was_active = any(it.recurring and not it.canceled for it in service.cycles(times.began))
    service.run(operations, times.began, times.read)
    now = service.balance(times.read)
    # What we know of our other calls when we ask for the balance.
    for number, operation in mine.items():
        if operation.at < times.asked and (not world.unclear or random.random() < 0.7):
            outcome = Outcome.APPLIED if operation.accepted else Outcome.NOT_APPLIED
            records[number] = replace(records[number], outcome=outcome)

    skew, before = times.skew, None
    if method == "subtract" or random.random() < 0.5:
        before = BalanceReading(was, times.asked_before - skew, times.received_before - skew)
        was_active = True  # it says whether a cycle was
    applied = [it for it in operations if it.accepted and it.at <= times.read]
    return History(
        _record(ours, Outcome.UNKNOWN, times.began - skew, before),
        BalanceReading(now, times.asked - skew, times.received - skew),
        records,
        applied=ours in applied,
        assumption_held=_held(ours, applied, times, before, zone)
        and (was_active or method != "stop_cycle"),
        operations=operations,
    )


def _record(
    operation: Operation, outcome: Outcome, began: datetime, before: BalanceReading | None = None
) -> CallRecord:
    return CallRecord(
        operation.method,
        USER,
        None if operation.method == "stop_cycle" else operation.amount,
        operation.days if operation.method in {"add", "start_cycle"} else None,
        outcome,
        began,
        before,
    )


def _held(
    ours: Operation,
    applied: list[Operation],
    times: Times,
    before: BalanceReading | None,
    zone: Zone,
) -> bool:
    """Return whether others did nothing that an APPLIED of this method assumes that they did not."""
    if before is not None:
        since = times.read_before
    elif ours.method == "stop_cycle":
        since = times.began
    else:
        # What began shortly before the call can seem to have begun after it.
        since = times.began - times.skew - timedelta(seconds=SKEW + 2)
    others = [
        it for it in applied if it.who == "others" and it.at >= since and it.method == ours.method
    ]
    if ours.method == "subtract":
        return not any(it.amount for it in others)
    if ours.method == "stop_cycle":
        return not others
    same = any(
        it.amount == ours.amount
        and (ours.days is None or it.days is None or abs(it.days - ours.days) <= 1)
        for it in others
    )
    renewed = ours.method == "start_cycle" and any(
        it.method == "start_cycle"
        and it.amount == ours.amount
        and it.at < since
        and _renews(it, since, times.read, zone)
        for it in applied
    )
    return not same and not renewed


def _renews(start: Operation, since: datetime, read: datetime, zone: Zone) -> bool:
    """Return whether a cycle is renewed between two moments, unless it was stopped."""
    days = 31 if start.days is None else start.days
    # By local time.
    end = zone.local(midnight(start.at, zone)) + timedelta(days=days + 1)
    while end < zone.local(since):
        end += timedelta(days=max(days, 1))
    return end <= zone.local(read)


def _prelude(random: Random, world: World, ours: Operation, times: Times) -> list[Operation]:
    """Return what happened long before the call."""
    day, before = 86400, times.asked_before
    found = [
        Operation(
            before - seconds(random, 60, 40 * day),
            random.choices(("add", "subtract", "start_cycle", "stop_cycle"), (5, 3, 2, 1))[0],
            random.choice((5, 10, 30, 50, 200)),
            random.choice(DAYS),
        )
        for _ in range(random.randrange(5))
    ]
    # Most users have something to subtract, and a cycle to stop.
    found.append(Operation(before - seconds(random, 90, day), "add", random.choice((60, 500)), 31))
    if random.random() < 0.6:
        at = before - seconds(random, 90, 20 * day)
        found.append(Operation(at, "start_cycle", random.choice((10, 70)), random.choice((1, 30))))
    if world.same and random.random() < 0.3:
        at = before - seconds(random, 0.01, 60)
        found.append(Operation(at, "add", ours.amount, ours.days))
    return found


def _others(random: Random, world: World, ours: Operation, times: Times) -> list[Operation]:
    """Return what others do from shortly before the first balance to the last one."""
    first = times.asked_before - timedelta(seconds=30)
    methods = {"add", "subtract", "start_cycle", "stop_cycle"}
    if not world.same and ours.method in {"subtract", "stop_cycle"}:
        methods.remove(ours.method)
    found: list[Operation] = []
    for _ in range(random.randrange(6)):
        operation = Operation(
            first + (times.received - first) * random.random(),
            random.choice(sorted(methods)),
            random.choice((1, 2, 5, 9, 20, 60)),
            random.choice(DAYS),
        )
        if operation.method == ours.method:
            if world.same and random.random() < 0.5:
                operation.amount, operation.days = ours.amount, ours.days
            elif operation.amount == ours.amount:
                operation.amount += 2
        found.append(operation)
    return found


def _ours(
    random: Random, world: World, ours: Operation, times: Times
) -> tuple[dict[int, Operation], list[CallRecord]]:
    """Return other calls of our own that reach the ledger, and the records of all."""
    earliest = times.began
    if world.unclear:
        earliest = times.asked_before - timedelta(seconds=25)
    mine: dict[int, Operation] = {}
    records: list[CallRecord] = []
    for number in range(random.choice((0, 0, 0, 1, 2))):
        began = earliest + (times.asked - earliest) * random.random()
        method = random.choice((ours.method, ours.method, "add", "subtract"))
        same = method == ours.method and random.random() < 0.7
        operation = Operation(
            began + seconds(random, 0.001, 10),
            method,
            ours.amount if same else random.choice((3, 7, 50)),
            ours.days if same else random.choice(DAYS),
            "we",
        )
        outcome = Outcome.UNKNOWN
        if random.random() < 0.6 and (world.unclear or operation.at < times.asked):
            mine[number] = operation
        elif not world.unclear or random.random() < 0.5:
            outcome = Outcome.NOT_APPLIED
        records.append(_record(operation, outcome, began - times.skew))
    return mine, records
