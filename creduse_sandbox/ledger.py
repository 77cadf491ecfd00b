"""The sandbox's bookkeeping: who holds which credits, by the rules of Creduse's documentation.

It has the cycles, their renewal, and the order in which credits are spent. Callers pass the time to
each method. I/O, a clock and the wire's format do not belong here.
"""

from bisect import insort
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, time, timedelta
from operator import attrgetter
from typing import Any
from uuid import UUID

DEFAULT_VALIDITY_DAYS = 31
"""Days. The service's default, by its documentation."""

_END_OF_TIME = datetime.max.replace(tzinfo=UTC)
_by_end = attrgetter("end")


class Refused(Exception):  # noqa: N818 - the service refuses by its rules; nothing is wrong
    """The ledger refused an operation and changed nothing.

    ``error_code`` is the service's code for the reason. ``message`` is the reason in words.
    """

    def __init__(self, error_code: str, message: str) -> None:
        super().__init__(error_code, message)
        self.error_code = error_code
        self.message = message


@dataclass(frozen=True, slots=True)
class Cycle:
    """Credits and the time in which they can be spent, as of one moment. Times are in UTC."""

    recurring: bool
    """Whether the cycle renews itself at its end."""
    created_at: datetime
    """When the user got the cycle. A renewal does not change it."""
    start: datetime
    """When the current round started."""
    end: datetime
    """The last moment of the current round."""
    starting_amount: int
    """The credits at ``start``."""
    amount: int
    """The credits that are left."""
    validity_days: int
    """The days of a round."""
    canceled: bool = False
    """Whether a recurring cycle was stopped, so that it ends with the current round."""


@dataclass(frozen=True, slots=True)
class _Account:
    """One user's cycles, the one that ends soonest first."""

    cycles: tuple[Cycle, ...] = ()
    expired: bool = False  # a cycle ended without renewal and with credits left

    def with_cycle(self, cycle: Cycle) -> "_Account":
        cycles = list(self.cycles)
        insort(cycles, cycle, key=_by_end)
        return replace(self, cycles=tuple(cycles))


def _utc(now: datetime) -> datetime:
    if now.utcoffset() is None:
        raise ValueError(f"now must be an aware datetime, not {now!r}")
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
    """Return a recurring cycle that has ended, renewed up to the round that contains ``now``."""
    # Rounds of zero days would never reach now, so a cycle of zero days renews daily.
    period = timedelta(days=max(cycle.validity_days, 1))
    rounds = -((cycle.end - now) // period)  # rounded up
    start = cycle.end + (rounds - 1) * period
    # Python's calendar ends with the year 9999.
    end = start + min(period, _END_OF_TIME - start)
    return replace(cycle, start=start, end=end, amount=cycle.starting_amount)


def _settled(account: _Account, now: datetime) -> _Account:
    """Drop or renew the cycles that have ended."""
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


_TIMES = ("created_at", "start", "end")


def _exported(cycle: Cycle) -> dict[str, Any]:
    fields = asdict(cycle)
    return fields | {name: fields[name].isoformat() for name in _TIMES}


def _restored(fields: Mapping[str, Any]) -> Cycle:
    times: dict[str, Any] = {name: datetime.fromisoformat(fields[name]) for name in _TIMES}
    return Cycle(**{**fields, **times})


class Ledger:
    """Every user's cycles, by the rules of Creduse's documentation.

    Each method needs ``now``, an aware `datetime`, and raises `ValueError` for a naive one. Where
    the service would respond with an error, a method raises `Refused` and changes nothing.

    Days end in UTC: our reading. Time never runs back: a ``now`` before the last change sees the
    cycles as that change left them. The ledger is not thread-safe. `Sandbox` is.
    """

    def __init__(self) -> None:
        self._accounts: dict[UUID, _Account] = {}

    def add(self, user: UUID, amount: int, validity_days: int | None, now: datetime) -> Cycle:
        """Open and return a one-time cycle. A user exists from the first cycle on.

        The cycle starts now and ends ``validity_days`` days later, at 23:59:59.999999. `None`
        means 31. Credits that are left then expire.

        Raises:
            Refused: ``AMOUNT_NEGATIVE``. ``INVALID_REQUEST`` if ``validity_days`` is negative or
                the cycle would end after the year 9999 (the code is our reading).
        """
        now = _utc(now)
        _check_amount(amount)
        cycle = _open(amount, validity_days, now, recurring=False)
        account = _settled(self._accounts.get(user, _Account()), now)
        self._put(user, account.with_cycle(cycle))
        return cycle

    def start_cycle(
        self, user: UUID, amount: int, validity_days: int | None, now: datetime
    ) -> Cycle:
        """Open and return a recurring cycle. A user exists from the first cycle on.

        Its first round lasts as long as a cycle of `add`. Each later round starts at the end of
        the one before, lasts ``validity_days`` days, at least one, and has the full amount. No
        credits carry over. After a stop, another cycle can start beside the stopped one: our
        reading.

        Raises:
            Refused: ``AMOUNT_NEGATIVE``. ``INVALID_REQUEST`` as in `add`. ``ACTIVE_CYCLE_EXISTS``
                if the user has a recurring cycle that has not been stopped.
        """
        now = _utc(now)
        _check_amount(amount)
        cycle = _open(amount, validity_days, now, recurring=True)
        account = _settled(self._accounts.get(user, _Account()), now)
        if any(other.recurring and not other.canceled for other in account.cycles):
            raise Refused("ACTIVE_CYCLE_EXISTS", "The user has an active recurring cycle.")
        self._put(user, account.with_cycle(cycle))
        return cycle

    def stop_cycle(self, user: UUID, now: datetime) -> Cycle:
        """Stop the renewal of the recurring cycle, and return the cycle.

        Its credits can be spent until its end.

        Raises:
            Refused: ``USER_DOES_NOT_EXIST``. ``NO_ACTIVE_CYCLE`` if there is no recurring cycle
                or it has been stopped.
        """
        account = self._account(user, now)
        for index, cycle in enumerate(account.cycles):
            if cycle.recurring and not cycle.canceled:
                stopped = replace(cycle, canceled=True)
                cycles = (*account.cycles[:index], stopped, *account.cycles[index + 1 :])
                self._put(user, replace(account, cycles=cycles))
                return stopped
        raise Refused("NO_ACTIVE_CYCLE", "The user has no active recurring cycle.")

    def subtract(self, user: UUID, amount: int, now: datetime) -> None:
        """Take all of ``amount`` or nothing, first from the cycle that `balance` lists first.

        Raises:
            Refused: ``AMOUNT_NEGATIVE``. ``USER_DOES_NOT_EXIST``. ``INSUFFICIENT_FUNDS`` if the
                active cycles hold less. ``CREDIT_EXPIRED`` instead if they hold nothing and a
                cycle has ended with credits left. Credits that a renewal did not carry over do
                not count as expired. Both are our reading.
        """
        _check_amount(amount)
        account = self._account(user, now)
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
        self._put(user, replace(account, cycles=tuple(cycles)))

    def balance(self, user: UUID, now: datetime) -> tuple[Cycle, ...]:
        """Return the active cycles, empty ones too. The one that ends first comes first.

        A renewed cycle comes before one-time cycles that end with it: our reading.

        Raises:
            Refused: ``USER_DOES_NOT_EXIST``.
        """
        return self._account(user, now).cycles

    def users(self, now: datetime) -> dict[UUID, tuple[Cycle, ...]]:
        """Return every user's active cycles, as `balance` does. The user who changed last is last."""
        return {user: self.balance(user, now) for user in self._accounts}

    def _put(self, user: UUID, account: _Account) -> None:
        self._accounts.pop(user, None)  # so that the user comes last
        self._accounts[user] = account

    def export(self, user: UUID) -> dict[str, Any]:
        """Return all that the ledger knows of a user, for `restore`, as values of JSON."""
        account = self._accounts[user]
        return {
            "expired": account.expired,
            "cycles": [_exported(cycle) for cycle in account.cycles],
        }

    def restore(self, user: UUID, exported: Mapping[str, Any]) -> None:
        """Take over what `export` returned."""
        cycles = tuple(_restored(cycle) for cycle in exported["cycles"])
        self._put(user, _Account(cycles, exported["expired"]))

    def _account(self, user: UUID, now: datetime) -> _Account:
        now = _utc(now)
        if user not in self._accounts:
            raise Refused("USER_DOES_NOT_EXIST", "There is no such user.")
        return _settled(self._accounts[user], now)
