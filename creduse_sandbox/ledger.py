"""Who holds which credits: the sandbox's rules for cycles, as pure bookkeeping.

Cycles, their renewal and the order of spending live here. No I/O, no clock and nothing of the
wire must: every method is told what time it is.
"""

from bisect import insort
from dataclasses import dataclass, replace
from datetime import UTC, datetime, time, timedelta
from operator import attrgetter
from uuid import UUID

DEFAULT_VALIDITY_DAYS = 31
"""Days. What the service's documentation takes when none are given."""

_END_OF_TIME = datetime.max.replace(tzinfo=UTC)
_by_end = attrgetter("end")


class Refused(Exception):  # noqa: N818 - a refusal is an answer of the service, not a defect
    """What was asked for is not done, and nothing has changed.

    ``error_code`` is the service's word for the reason; ``message`` says it to a person.
    """

    def __init__(self, error_code: str, message: str) -> None:
        super().__init__(error_code, message)
        self.error_code = error_code
        self.message = message


@dataclass(frozen=True, slots=True)
class Cycle:
    """A span of time and the credits that can be spent in it, seen at one moment.

    A recurring cycle keeps its ``created_at`` when it is renewed; ``start`` and ``end`` are then
    those of the round that runs now. All times are in UTC, and both bounds belong to the span.
    ``amount`` is what is left of ``starting_amount``.
    """

    recurring: bool
    created_at: datetime
    start: datetime
    end: datetime
    starting_amount: int
    amount: int
    validity_days: int
    canceled: bool = False


@dataclass(frozen=True, slots=True)
class _Account:
    """One user's cycles, the one that ends soonest first."""

    cycles: tuple[Cycle, ...] = ()
    expired: bool = False  # credits were lost at the end of a cycle that was not renewed

    def with_cycle(self, cycle: Cycle) -> "_Account":
        cycles = list(self.cycles)
        insort(cycles, cycle, key=_by_end)
        return replace(self, cycles=tuple(cycles))


def _utc(now: datetime) -> datetime:
    if now.utcoffset() is None:
        raise ValueError("now must be an aware datetime")
    return now.astimezone(UTC)


def _check_amount(amount: int) -> None:
    if amount < 0:
        raise Refused("AMOUNT_NEGATIVE", "The amount must not be negative.")


def _open(amount: int, validity_days: int | None, now: datetime, *, recurring: bool) -> Cycle:
    days = DEFAULT_VALIDITY_DAYS if validity_days is None else validity_days
    if days < 0:
        raise Refused("INVALID_REQUEST", "validity_days must not be negative.")
    try:
        last_day = now + timedelta(days=days)
    except OverflowError:
        raise Refused("INVALID_REQUEST", "The cycle would end after the year 9999.") from None
    return Cycle(
        recurring=recurring,
        created_at=now,
        start=now,
        end=datetime.combine(last_day, time.max, UTC),
        starting_amount=amount,
        amount=amount,
        validity_days=days,
    )


def _renewed(cycle: Cycle, now: datetime) -> Cycle:
    """Give the round that holds ``now`` of a recurring cycle that ended before it."""
    # A round of no days would never get anywhere, so a cycle of zero days is renewed daily.
    period = timedelta(days=max(cycle.validity_days, 1))
    rounds = -((cycle.end - now) // period)  # rounded up
    start = cycle.end + (rounds - 1) * period
    # The calendar's last round is a short one.
    end = start + min(period, _END_OF_TIME - start)
    return replace(cycle, start=start, end=end, amount=cycle.starting_amount)


def _settled(account: _Account, now: datetime) -> _Account:
    """Drop the cycles that are over and renew those that renew themselves."""
    if not account.cycles or now <= account.cycles[0].end:
        return account
    cycles: list[Cycle] = []
    expired = account.expired
    for cycle in account.cycles:
        if now <= cycle.end:
            cycles.append(cycle)
        elif cycle.recurring and not cycle.canceled:
            cycles.append(_renewed(cycle, now))
        else:
            expired = expired or cycle.amount > 0
    return _Account(tuple(sorted(cycles, key=_by_end)), expired)


class Ledger:
    """Every user's cycles, under the rules of the service's documentation.

    Each method takes ``now``, an aware `datetime` (`ValueError` if it is not), and raises
    `Refused`, with nothing changed, where the service would answer with an error. Days end in
    UTC: our reading. The ledger does not go back: to a ``now`` before the last change, cycles
    stand as that change left them. It is not thread-safe; `Sandbox` is.
    """

    def __init__(self) -> None:
        self._accounts: dict[UUID, _Account] = {}

    def add(self, user: UUID, amount: int, validity_days: int | None, now: datetime) -> Cycle:
        """Open a one-time cycle, which makes the user known.

        It starts now and ends ``validity_days`` days later (`None` means 31) with the end of
        that day, 23:59:59.999999; what is left then is lost.

        Raises:
            Refused: ``AMOUNT_NEGATIVE``; ``INVALID_REQUEST`` for days that are negative or lead
                past the year 9999 (the code is our reading).
        """
        now = _utc(now)
        _check_amount(amount)
        cycle = _open(amount, validity_days, now, recurring=False)
        account = _settled(self._accounts.get(user, _Account()), now)
        self._accounts[user] = account.with_cycle(cycle)
        return cycle

    def start_cycle(
        self, user: UUID, amount: int, validity_days: int | None, now: datetime
    ) -> Cycle:
        """Open the recurring cycle, which makes the user known.

        Its first round is the span that `add` would open. Each further one begins at the end of
        the last, takes ``validity_days`` days, at least one, and has the full amount again;
        nothing is carried over. Once a cycle is stopped, another may be started beside what is
        left of it: our reading.

        Raises:
            Refused: ``AMOUNT_NEGATIVE``; ``INVALID_REQUEST`` as in `add`; ``ACTIVE_CYCLE_EXISTS``
                while there is a recurring cycle that has not been stopped.
        """
        now = _utc(now)
        _check_amount(amount)
        cycle = _open(amount, validity_days, now, recurring=True)
        account = _settled(self._accounts.get(user, _Account()), now)
        if any(other.recurring and not other.canceled for other in account.cycles):
            raise Refused("ACTIVE_CYCLE_EXISTS", "The user has an active recurring cycle.")
        self._accounts[user] = account.with_cycle(cycle)
        return cycle

    def stop_cycle(self, user: UUID, now: datetime) -> Cycle:
        """Cancel the recurring cycle: its credits stay until its end, then it is not renewed.

        Raises:
            Refused: ``USER_DOES_NOT_EXIST``; ``NO_ACTIVE_CYCLE`` if none runs, or it was stopped
                before.
        """
        account = self._known(user, now)
        for index, cycle in enumerate(account.cycles):
            if cycle.recurring and not cycle.canceled:
                stopped = replace(cycle, canceled=True)
                cycles = (*account.cycles[:index], stopped, *account.cycles[index + 1 :])
                self._accounts[user] = replace(account, cycles=cycles)
                return stopped
        raise Refused("NO_ACTIVE_CYCLE", "The user has no active recurring cycle.")

    def subtract(self, user: UUID, amount: int, now: datetime) -> None:
        """Spend credits, from the cycle that ends soonest first; all of them or none.

        Raises:
            Refused: ``AMOUNT_NEGATIVE``; ``USER_DOES_NOT_EXIST``; ``INSUFFICIENT_FUNDS`` where
                the active cycles hold less; in its place ``CREDIT_EXPIRED`` where they hold
                nothing and a cycle has ended with credits unspent (our reading; what a renewal
                did not carry over is not counted as expired).
        """
        _check_amount(amount)
        account = self._known(user, now)
        held = sum(cycle.amount for cycle in account.cycles)
        if held < amount:
            if account.expired and not held:
                raise Refused("CREDIT_EXPIRED", "The user's credits have expired.")
            raise Refused("INSUFFICIENT_FUNDS", "The user has fewer credits than asked for.")
        cycles: list[Cycle] = []
        for cycle in account.cycles:
            taken = min(cycle.amount, amount)
            amount -= taken
            cycles.append(replace(cycle, amount=cycle.amount - taken) if taken else cycle)
        self._accounts[user] = replace(account, cycles=tuple(cycles))

    def balance(self, user: UUID, now: datetime) -> tuple[Cycle, ...]:
        """Give the active cycles, empty ones too, the one that ends soonest first.

        Raises:
            Refused: ``USER_DOES_NOT_EXIST``.
        """
        return self._known(user, now).cycles

    def _known(self, user: UUID, now: datetime) -> _Account:
        now = _utc(now)
        if user not in self._accounts:
            raise Refused("USER_DOES_NOT_EXIST", "There is no such user.")
        return _settled(self._accounts[user], now)
