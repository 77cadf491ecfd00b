"""The rules of the ledger, with examples of each."""

from datetime import UTC, datetime, timedelta, timezone
from uuid import UUID

import pytest

from creduse_sandbox import Cycle, Ledger, Refused

USER = UUID("12345678-1234-5678-1234-567812345678")
OTHER = UUID("87654321-4321-8765-4321-876543218765")
NOW = datetime(2025, 8, 12, 14, 35, 55, 423145, tzinfo=UTC)
DAY = timedelta(days=1)
MICROSECOND = timedelta(microseconds=1)
CALENDARS_END = datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)


def end_of(year: int, month: int, day: int) -> datetime:
    return datetime(year, month, day, 23, 59, 59, 999999, tzinfo=UTC)


def amounts(ledger: Ledger, now: datetime, user: UUID = USER) -> list[int]:
    return [cycle.amount for cycle in ledger.balance(user, now)]


def refusal(ledger: Ledger, method: str, *args: object) -> str:
    with pytest.raises(Refused) as caught:
        getattr(ledger, method)(*args)
    assert caught.value.message
    return caught.value.error_code


def test_add_opens_a_one_time_cycle() -> None:
    """An added cycle starts now, and ends at the end of the day after ``validity_days``."""
    ledger = Ledger()
    cycle = ledger.add(USER, 15, 2, NOW)
    assert cycle == Cycle(
        recurring=False,
        created_at=NOW,
        start=NOW,
        end=end_of(2025, 8, 14),
        starting_amount=15,
        amount=15,
        validity_days=2,
        canceled=False,
    )
    assert ledger.balance(USER, NOW) == (cycle,)


@pytest.mark.parametrize(("days", "end"), [(None, end_of(2025, 9, 12)), (0, end_of(2025, 8, 12))])
def test_days_of_a_cycle(days: int | None, end: datetime) -> None:
    """The default is 31 days. A cycle of zero days lasts until the end of the day."""
    ledger = Ledger()
    assert ledger.add(USER, 1, days, NOW).end == end
    assert ledger.start_cycle(USER, 1, days, NOW).end == end


def test_both_bounds_belong_to_a_cycle() -> None:
    """Credits can be spent in the last microsecond of a cycle, and not after it."""
    ledger = Ledger()
    end = ledger.add(USER, 5, 1, NOW).end
    assert amounts(ledger, end) == [5]
    assert amounts(ledger, end + MICROSECOND) == []


def test_times_are_read_in_utc() -> None:
    """A day ends in UTC, whatever the zone of ``now``."""
    ledger = Ledger()
    east = timezone(timedelta(hours=14))
    cycle = ledger.add(USER, 5, 0, datetime(2025, 8, 13, 1, 0, tzinfo=east))
    assert cycle.end == end_of(2025, 8, 12)
    assert cycle.start.utcoffset() == timedelta(0)


def test_naive_time_is_an_error() -> None:
    """A ``now`` without a zone is rejected."""
    with pytest.raises(ValueError, match="aware"):
        Ledger().add(USER, 5, 0, NOW.replace(tzinfo=None))


def test_any_number_of_one_time_cycles_in_order_of_ending() -> None:
    """A user may have many one-time cycles, in order of their end. Equal ends keep their order."""
    ledger = Ledger()
    for amount, days in [(1, 9), (2, 3), (3, 9), (4, 0)]:
        ledger.add(USER, amount, days, NOW)
    assert amounts(ledger, NOW) == [4, 2, 1, 3]


def test_start_cycle_makes_a_user_known() -> None:
    """``start_cycle`` creates a user. A recurring cycle is as long as a one-time one."""
    ledger = Ledger()
    cycle = ledger.start_cycle(USER, 50, 2, NOW)
    assert cycle.recurring
    assert not cycle.canceled
    assert (cycle.start, cycle.end) == (NOW, end_of(2025, 8, 14))
    assert ledger.balance(USER, NOW) == (cycle,)


def test_renewal_has_the_full_amount_and_carries_nothing_over() -> None:
    """A renewed cycle begins where the last one ended, with the full amount."""
    ledger = Ledger()
    first = ledger.start_cycle(USER, 50, 10, NOW)
    ledger.subtract(USER, 20, NOW)
    assert amounts(ledger, first.end) == [30]
    (second,) = ledger.balance(USER, first.end + MICROSECOND)
    assert (second.start, second.end) == (first.end, first.end + 10 * DAY)
    assert (second.amount, second.starting_amount, second.created_at) == (50, 50, NOW)


@pytest.mark.parametrize("days", [0, 1])
def test_shortest_round_is_a_day(days: int) -> None:
    """A cycle of zero days is renewed daily."""
    ledger = Ledger()
    first = ledger.start_cycle(USER, 50, days, NOW)
    (later,) = ledger.balance(USER, first.end + 5 * DAY)
    assert (later.start, later.end) == (first.end + 4 * DAY, first.end + 5 * DAY)


def test_centuries_of_renewals_cost_nothing() -> None:
    """Centuries of renewals are fast. The end of the calendar cuts the last cycle."""
    ledger = Ledger()
    first = ledger.start_cycle(USER, 50, 400, NOW)
    (last,) = ledger.balance(USER, CALENDARS_END)
    assert last.end == CALENDARS_END
    assert timedelta(0) < last.end - last.start < 400 * DAY
    assert (last.start - first.end) % (400 * DAY) == timedelta(0)


def test_cycle_renewed_once_in_the_calendar() -> None:
    """A cycle as long as the calendar is renewed up to its end."""
    ledger = Ledger()
    days = (CALENDARS_END - NOW).days - 1
    first = ledger.start_cycle(USER, 50, days, NOW)
    (second,) = ledger.balance(USER, first.end + MICROSECOND)
    assert (second.start, second.end) == (first.end, CALENDARS_END)


@pytest.mark.parametrize("days", [-1, 2_912_889, 10**9, 2**63])
@pytest.mark.parametrize("method", ["add", "start_cycle"])
def test_impossible_days_are_refused(method: str, days: int) -> None:
    """Negative days, and an end after the year 9999, are rejected."""
    ledger = Ledger()
    assert refusal(ledger, method, USER, 1, days, NOW) == "INVALID_REQUEST"
    assert refusal(ledger, "balance", USER, NOW) == "USER_DOES_NOT_EXIST"


def test_one_recurring_cycle_at_a_time() -> None:
    """A second recurring cycle is rejected and changes nothing, before and after a renewal."""
    ledger = Ledger()
    cycle = ledger.start_cycle(USER, 50, 2, NOW)
    for now in (NOW, cycle.end + DAY):
        before = ledger.balance(USER, now)
        assert refusal(ledger, "start_cycle", USER, 9, 2, now) == "ACTIVE_CYCLE_EXISTS"
        assert ledger.balance(USER, now) == before


def test_one_time_cycle_does_not_keep_a_recurring_one_from_starting() -> None:
    """A one-time cycle does not prevent a recurring one."""
    ledger = Ledger()
    ledger.add(USER, 1, 2, NOW)
    ledger.start_cycle(USER, 2, 2, NOW)
    assert amounts(ledger, NOW) == [1, 2]


def test_stopped_cycle_stays_until_its_end() -> None:
    """Credits of a stopped cycle can be spent until its end. Then it is not renewed."""
    ledger = Ledger()
    ledger.add(USER, 1, 0, NOW)
    cycle = ledger.start_cycle(USER, 50, 2, NOW)
    ledger.subtract(USER, 11, NOW)
    stopped = ledger.stop_cycle(USER, NOW + MICROSECOND)
    assert stopped.canceled
    assert (stopped.amount, stopped.end) == (40, cycle.end)
    ledger.subtract(USER, 15, cycle.end)
    assert amounts(ledger, cycle.end) == [25]
    assert amounts(ledger, cycle.end + MICROSECOND) == []


def test_stop_after_renewals_stops_the_present_round() -> None:
    """``stop_cycle`` stops the current renewal."""
    ledger = Ledger()
    first = ledger.start_cycle(USER, 50, 2, NOW)
    stopped = ledger.stop_cycle(USER, first.end + DAY)
    assert (stopped.start, stopped.end) == (first.end, first.end + 2 * DAY)
    assert amounts(ledger, stopped.end + MICROSECOND) == []


def test_new_cycle_may_start_after_a_stop() -> None:
    """A new recurring cycle can start beside the rest of a stopped one."""
    ledger = Ledger()
    ledger.start_cycle(USER, 50, 2, NOW)
    ledger.stop_cycle(USER, NOW)
    ledger.start_cycle(USER, 70, 3, NOW)
    assert [(c.amount, c.canceled) for c in ledger.balance(USER, NOW)] == [(50, True), (70, False)]


def test_nothing_to_stop() -> None:
    """One-time and stopped cycles cannot be stopped."""
    ledger = Ledger()
    ledger.add(USER, 1, None, NOW)
    assert refusal(ledger, "stop_cycle", USER, NOW) == "NO_ACTIVE_CYCLE"
    ledger.start_cycle(USER, 1, None, NOW)
    ledger.stop_cycle(USER, NOW)
    assert refusal(ledger, "stop_cycle", USER, NOW) == "NO_ACTIVE_CYCLE"


def test_spending_takes_from_what_ends_soonest() -> None:
    """Credits that end soonest are spent first, recurring or not."""
    ledger = Ledger()
    ledger.add(USER, 10, 9, NOW)
    ledger.start_cycle(USER, 20, 3, NOW)
    ledger.add(USER, 5, 1, NOW)
    ledger.subtract(USER, 7, NOW)
    assert amounts(ledger, NOW) == [0, 18, 10]
    ledger.subtract(USER, 28, NOW)
    assert amounts(ledger, NOW) == [0, 0, 0]


def test_renewed_cycle_is_spent_before_what_ends_with_it() -> None:
    """It comes first however the two came to end together."""
    ledger = Ledger()
    ledger.add(USER, 10, 2, NOW)
    ledger.start_cycle(USER, 20, 0, NOW)
    later = NOW + 2 * DAY
    ledger.add(USER, 5, 0, later)
    assert len({cycle.end for cycle in ledger.balance(USER, later)}) == 1
    assert amounts(ledger, later) == [20, 10, 5]
    ledger.subtract(USER, 21, later)
    assert amounts(ledger, later) == [0, 9, 5]


def test_too_little_takes_nothing() -> None:
    """A rejected ``subtract`` leaves all cycles unchanged."""
    ledger = Ledger()
    ledger.add(USER, 5, 1, NOW)
    ledger.add(USER, 5, 2, NOW)
    assert refusal(ledger, "subtract", USER, 11, NOW) == "INSUFFICIENT_FUNDS"
    assert amounts(ledger, NOW) == [5, 5]


def test_expired_or_insufficient() -> None:
    """CREDIT_EXPIRED needs expired credits and an empty balance."""
    ledger = Ledger()
    end = ledger.add(USER, 5, 0, NOW).end
    ledger.add(USER, 3, 1, NOW)
    later = end + MICROSECOND
    assert refusal(ledger, "subtract", USER, 4, later) == "INSUFFICIENT_FUNDS"
    ledger.subtract(USER, 3, later)
    assert refusal(ledger, "subtract", USER, 1, later) == "CREDIT_EXPIRED"
    ledger.subtract(USER, 0, later)


def test_spent_cycle_does_not_expire() -> None:
    """A cycle that ends empty does not count as expired."""
    ledger = Ledger()
    end = ledger.add(USER, 5, 0, NOW).end
    ledger.subtract(USER, 5, NOW)
    assert refusal(ledger, "subtract", USER, 1, end + DAY) == "INSUFFICIENT_FUNDS"


def test_renewal_does_not_count_as_expiry() -> None:
    """A renewal does not count as expired. The end of a stopped cycle does."""
    ledger = Ledger()
    first = ledger.start_cycle(USER, 5, 1, NOW)
    second_round = first.end + MICROSECOND
    ledger.subtract(USER, 5, second_round)
    assert refusal(ledger, "subtract", USER, 1, second_round) == "INSUFFICIENT_FUNDS"
    third_round = second_round + DAY
    ledger.stop_cycle(USER, third_round)
    assert refusal(ledger, "subtract", USER, 1, third_round + DAY) == "CREDIT_EXPIRED"


@pytest.mark.parametrize(
    ("method", "args"),
    [("add", (-1, 1)), ("start_cycle", (-1, 1)), ("subtract", (-1,))],
)
def test_negative_amounts_are_refused(method: str, args: tuple[int, ...]) -> None:
    """A negative amount is rejected first, also for an unknown user."""
    ledger = Ledger()
    assert refusal(ledger, method, USER, *args, NOW) == "AMOUNT_NEGATIVE"
    assert refusal(ledger, "balance", USER, NOW) == "USER_DOES_NOT_EXIST"


def test_zero_passes() -> None:
    """All three methods accept an amount of zero."""
    ledger = Ledger()
    ledger.add(USER, 0, None, NOW)
    ledger.start_cycle(USER, 0, None, NOW)
    ledger.subtract(USER, 0, NOW)
    assert amounts(ledger, NOW) == [0, 0]


@pytest.mark.parametrize(
    ("method", "args"), [("subtract", (1,)), ("stop_cycle", ()), ("balance", ())]
)
def test_unknown_users(method: str, args: tuple[int, ...]) -> None:
    """Only ``add`` and ``start_cycle`` create users, and only their own."""
    ledger = Ledger()
    ledger.add(OTHER, 5, None, NOW)
    assert refusal(ledger, method, USER, *args, NOW) == "USER_DOES_NOT_EXIST"


def test_known_user_without_credits_stays_known() -> None:
    """A user whose cycles have all ended has an empty balance."""
    ledger = Ledger()
    end = ledger.add(USER, 5, 0, NOW).end
    assert ledger.balance(USER, end + 1000 * DAY) == ()


def test_looking_ahead_changes_nothing() -> None:
    """A balance or a rejected request at a later time does not change the ledger."""
    ledger = Ledger()
    cycle = ledger.add(USER, 5, 0, NOW)
    later = cycle.end + DAY
    assert ledger.balance(USER, later) == ()
    assert refusal(ledger, "subtract", USER, 1, later) == "CREDIT_EXPIRED"
    assert ledger.balance(USER, NOW) == (cycle,)


def test_ledger_does_not_go_back() -> None:
    """At an earlier time, the cycles are as the last change left them."""
    ledger = Ledger()
    first = ledger.start_cycle(USER, 5, 1, NOW)
    ledger.subtract(USER, 1, first.end + MICROSECOND)
    (seen,) = ledger.balance(USER, NOW)
    assert (seen.start, seen.amount) == (first.end, 4)
