"""What balances prove: each cell of the tables in ``docs/evidence.md``, one by one.

`tests/evidence` compares the same function with random histories.
"""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest

from creduse_core import (
    ActiveBalance,
    BalanceReading,
    CallRecord,
    CycleBalance,
    CycleStatus,
    CycleType,
    Evidence,
    Outcome,
    Verdict,
    weigh,
)
from creduse_core.evidence import known_since
from tests.common import USER

SECOND, HOUR, DAY = timedelta(seconds=1), timedelta(hours=1), timedelta(days=1)
BEGAN = datetime(2025, 8, 12, 14, 35, 55, 423145, tzinfo=UTC)
"""When the call began."""
STARTED = BEGAN + SECOND
LONG_AGO = BEGAN - 10 * DAY
ASKED = BEGAN + 5 * SECOND
APPLIED, NOT_YET, OPEN = Verdict


def end(days: int, start: datetime = STARTED) -> datetime:
    """Return the end of a cycle in UTC."""
    return (start + days * DAY).replace(hour=23, minute=59, second=59, microsecond=999999)


def one_time(
    left: int = 50,
    of: int | None = 50,
    *,
    start: datetime = STARTED,
    days: int = 31,
    until: datetime | None = None,
    kind: str | None = CycleType.ONE_TIME,
) -> CycleBalance:
    """Return a cycle that ``add`` opened."""
    return CycleBalance(start, until or end(days, start), left, of, None, kind)


def recurring(
    left: int = 50,
    of: int | None = 50,
    *,
    start: datetime = STARTED,
    days: int = 31,
    status: str | None = CycleStatus.ACTIVE,
    kind: str | None = CycleType.RECURRING,
) -> CycleBalance:
    """Return a cycle that ``start_cycle`` opened."""
    return CycleBalance(start, end(days, start), left, of, status, kind)


def reading(
    *cycles: CycleBalance, at: datetime = ASKED, date: datetime | None = None
) -> BalanceReading:
    """Return a balance with these cycles."""
    balance = ActiveBalance(USER, sum(cycle.amount for cycle in cycles), cycles)
    return BalanceReading(balance, at, at + SECOND, date)


def before(*cycles: CycleBalance) -> BalanceReading:
    """Return a balance from before the call."""
    return reading(*cycles, at=BEGAN - 2 * SECOND)


OLD = one_time(30, 30, start=LONG_AGO, days=20)
"""Credits of long ago that end sooner than those of an ``add`` for 31 days."""
EMPTIED = one_time(0, 20, start=LONG_AGO, days=40)
"""A cycle that shows that the service lists emptied ones."""

ADD = CallRecord("add", USER, 50, 31, Outcome.UNKNOWN, BEGAN)
SUBTRACT = CallRecord("subtract", USER, 50, None, Outcome.UNKNOWN, BEGAN)
START = CallRecord("start_cycle", USER, 50, 31, Outcome.UNKNOWN, BEGAN)
STOP = CallRecord("stop_cycle", USER, None, None, Outcome.UNKNOWN, BEGAN)


def other(call: CallRecord, outcome: Outcome, seconds: float = 1.0) -> CallRecord:
    """Return another call of ours like this one, that began so much later."""
    return replace(call, outcome=outcome, began_at=BEGAN + seconds * SECOND)


NEW_CYCLE: list[tuple[CallRecord, Verdict, list[CycleBalance]]] = [
    # An add.
    (ADD, APPLIED, [one_time()]),
    (ADD, APPLIED, [one_time(0)]),  # spent, and still listed
    (ADD, APPLIED, [one_time(start=BEGAN - 9 * SECOND)]),  # within the skew
    (ADD, APPLIED, [one_time(until=end(31) + timedelta(microseconds=1))]),
    (ADD, APPLIED, [one_time(until=end(31).replace(microsecond=0))]),
    (ADD, APPLIED, [one_time(until=end(31) - 5 * HOUR)]),  # another zone
    (replace(ADD, validity_days=None), APPLIED, [one_time(days=90)]),
    (ADD, NOT_YET, [OLD]),
    (ADD, NOT_YET, [EMPTIED]),
    (ADD, NOT_YET, [OLD, one_time(49, 49)]),
    (ADD, NOT_YET, [OLD, one_time(days=29)]),
    (ADD, NOT_YET, [OLD, one_time(start=BEGAN - 12 * SECOND)]),
    (ADD, APPLIED, [one_time(start=BEGAN.replace(microsecond=0) - 10 * SECOND)]),  # cut
    (ADD, OPEN, [one_time(), one_time(start=STARTED + SECOND)]),  # others do the same
    (ADD, NOT_YET, [OLD, recurring()]),
    (ADD, NOT_YET, [OLD, one_time(51, None)]),
    (ADD, OPEN, []),  # spent, and not listed
    (ADD, OPEN, [one_time(start=LONG_AGO, days=60)]),  # ends later
    (ADD, OPEN, [one_time(20, 20, start=STARTED, days=20)]),  # not older
    (ADD, OPEN, [replace(OLD, amount=0, starting_amount=None)]),  # used up
    (ADD, OPEN, [OLD, one_time(50, None)]),
    (ADD, OPEN, [OLD, one_time(kind=None)]),
    (ADD, OPEN, [OLD, one_time(kind="trial")]),
    (ADD, OPEN, [OLD, one_time(until=end(31) - timedelta(minutes=1))]),  # not the end of a day
    (ADD, OPEN, [OLD, one_time(start=ASKED + 14 * SECOND)]),  # after the balance
    (replace(ADD, validity_days=None), OPEN, [OLD]),
    (replace(ADD, amount=0), OPEN, [OLD]),
    (replace(ADD, validity_days=0), NOT_YET, [EMPTIED]),
    # A cycle.
    (START, APPLIED, [recurring()]),
    (START, APPLIED, [recurring(status=CycleStatus.CANCELED)]),
    (START, NOT_YET, [OLD]),
    (START, NOT_YET, [OLD, one_time()]),
    (START, NOT_YET, [OLD, recurring(49, 49)]),
    (START, OPEN, []),
]


@pytest.mark.parametrize(("call", "verdict", "cycles"), NEW_CYCLE)
def test_new_cycle(call: CallRecord, verdict: Verdict, cycles: list[CycleBalance]) -> None:
    """A cycle of the call's amount and length that began since shows it; its absence may, too."""
    evidence = weigh(call, reading(*cycles))
    assert evidence.verdict is verdict
    assert (evidence.assumption is not None) is (verdict is APPLIED)


def test_words() -> None:
    """A verdict says why, and what it assumes."""
    assert str(weigh(ADD, reading(one_time()))) == (
        "APPLIED: a one-time cycle of 50 credits for 31 days began after 2025-08-12 14:35:44 UTC by "
        "the service's clock, if nobody else has added 50 credits that are valid for about 31 days to "
        "this user since then"
    )
    assert str(weigh(ADD, reading(OLD))) == (
        "NOT_YET: no one-time cycle of 50 credits for 31 days began after 2025-08-12 14:35:44 UTC by "
        "the service's clock"
    )
    assert str(weigh(replace(START, validity_days=None), reading(recurring()))) == (
        "APPLIED: a recurring cycle of 50 credits began after 2025-08-12 14:35:44 UTC by the service's "
        "clock, if nobody else has started a cycle of 50 credits for this user since then, and none "
        "was renewed"
    )


def test_listed_before() -> None:
    """A cycle that a balance from before the call lists is not the call's. A twin of it can be."""
    call = replace(ADD, before=before(one_time(start=BEGAN - 5 * SECOND), OLD))
    same = one_time(start=BEGAN - 5 * SECOND)
    assert weigh(call, reading(same, OLD)).verdict is NOT_YET
    assert weigh(call, reading(same, same, OLD)).verdict is APPLIED


@pytest.mark.parametrize(
    ("known", "found", "verdict"),
    [
        ([other(ADD, Outcome.APPLIED)], 0, OPEN),  # the balance does not show it
        ([other(ADD, Outcome.APPLIED)], 1, NOT_YET),
        ([other(ADD, Outcome.APPLIED)], 2, APPLIED),
        ([other(ADD, Outcome.APPLIED, -5)], 0, NOT_YET),
        ([other(ADD, Outcome.APPLIED, -5)], 1, OPEN),  # perhaps from before
        ([other(ADD, Outcome.UNKNOWN)], 0, NOT_YET),
        ([other(ADD, Outcome.UNKNOWN)], 1, OPEN),
        ([other(ADD, Outcome.UNKNOWN)], 2, APPLIED),
        ([other(ADD, Outcome.NOT_APPLIED)], 1, APPLIED),
        ([other(replace(ADD, amount=49), Outcome.APPLIED)], 1, APPLIED),
        ([other(replace(ADD, end_user_id=UUID(int=1)), Outcome.APPLIED)], 1, APPLIED),
        ([other(replace(ADD, began_at=None), Outcome.APPLIED)], 1, NOT_YET),
        ([replace(ADD, outcome=Outcome.APPLIED, began_at=None)], 1, OPEN),
        ([other(replace(ADD, validity_days=30), Outcome.APPLIED)], 1, OPEN),
        ([other(replace(ADD, validity_days=7), Outcome.APPLIED)], 1, APPLIED),
        ([other(replace(ADD, validity_days=None), Outcome.APPLIED)], 1, OPEN),
        ([other(ADD, Outcome.APPLIED)] * 2, 2, OPEN),  # the same one twice
        ([other(SUBTRACT, Outcome.APPLIED)], 1, APPLIED),
    ],
)
def test_our_other_adds(known: list[CallRecord], found: int, verdict: Verdict) -> None:
    """Our other calls of the same kind have cycles, too."""
    cycles = [one_time(start=STARTED + number * SECOND) for number in range(found)]
    assert weigh(ADD, reading(OLD, *cycles), known=known).verdict is verdict


LAST_MOMENT = datetime.max.replace(tzinfo=UTC)


@pytest.mark.parametrize("days", [3_000_000, 10**3000])
def test_end_of_the_calendar(days: int) -> None:
    """Cycles can end with the calendar, and days can be more than it has."""
    call = replace(ADD, validity_days=days)
    forever = one_time(until=LAST_MOMENT)
    assert weigh(call, reading(forever, OLD)).verdict is NOT_YET
    assert weigh(replace(ADD, validity_days=None), reading(forever)).verdict is APPLIED


def test_many_credits() -> None:
    """Amounts can be larger than a float."""
    much = 10**3000
    call = replace(
        SUBTRACT, amount=much, before=before(one_time(much, much, start=LONG_AGO), EMPTIED)
    )
    now = one_time(0, much, start=LONG_AGO)
    assert weigh(call, reading(now, EMPTIED)).verdict is APPLIED
    now = one_time(1, much, start=LONG_AGO)
    assert weigh(call, reading(now, EMPTIED)).verdict is NOT_YET


MIDNIGHT = datetime(2025, 8, 13, tzinfo=UTC)


@pytest.mark.parametrize(
    ("days", "began", "asked", "cycles", "verdict"),
    [
        # A cycle of 0 days ends at midnight, wherever that is.
        (0, MIDNIGHT - 30 * SECOND, MIDNIGHT + SECOND, [EMPTIED], OPEN),
        (0, MIDNIGHT - 30 * SECOND, MIDNIGHT - 20 * SECOND, [EMPTIED], NOT_YET),
        (0, MIDNIGHT + 20 * SECOND, MIDNIGHT + 30 * SECOND, [EMPTIED], NOT_YET),
        # On the other side of a change to or from daylight saving time, it is an hour off.
        (0, MIDNIGHT + HOUR - 30 * SECOND, MIDNIGHT + HOUR, [EMPTIED], OPEN),
        # In another zone, midnight is at another time. The listed cycles show it.
        (
            0,
            MIDNIGHT - 30 * SECOND,
            MIDNIGHT,
            [replace(EMPTIED, cycle_end=end(40) - 5 * HOUR)],
            NOT_YET,
        ),
        # Without any cycle, each quarter of an hour can be one.
        (0, MIDNIGHT - 10 * HOUR - 30 * SECOND, MIDNIGHT - 10 * HOUR, [], OPEN),
        (0, MIDNIGHT - 10 * HOUR + 60 * SECOND, MIDNIGHT - 10 * HOUR + 90 * SECOND, [], NOT_YET),
        (0, MIDNIGHT - 2 * DAY, MIDNIGHT - DAY, [EMPTIED], OPEN),
        # Longer ones end later.
        (1, MIDNIGHT - 30 * SECOND, MIDNIGHT + SECOND, [EMPTIED], NOT_YET),
        (1, MIDNIGHT - 30 * SECOND, MIDNIGHT + DAY + SECOND, [EMPTIED], OPEN),
        # A service whose cycles end at any time.
        (
            0,
            MIDNIGHT + 9 * HOUR,
            MIDNIGHT + 9 * HOUR + SECOND,
            [one_time(0, 9, until=end(3) - 100 * SECOND)],
            OPEN,
        ),
    ],
)
def test_end_of_a_day(
    days: int, began: datetime, asked: datetime, cycles: list[CycleBalance], verdict: Verdict
) -> None:
    """A cycle that may have ended since may be missing for that reason."""
    call = replace(ADD, validity_days=days, began_at=began)
    assert weigh(call, reading(*cycles, at=asked), lists_empty_cycles=True).verdict is verdict


@pytest.mark.parametrize("minutes", [-120, -60, -30, 30, 60, 120])
def test_daylight_saving_time(minutes: int) -> None:
    """Cycles that end on the other side of a change to or from summer time end at another time."""
    moved = MIDNIGHT + timedelta(minutes=minutes)
    call = replace(ADD, validity_days=0, began_at=moved - 30 * SECOND)
    assert weigh(call, reading(EMPTIED, at=moved)).verdict is OPEN
    shifted = one_time(days=31, until=end(31) + timedelta(minutes=minutes))
    assert weigh(ADD, reading(shifted)).verdict is APPLIED


def test_times_of_any_zone() -> None:
    """Times of ours can be in any zone, even where clocks are set back. They need an offset."""
    zone = ZoneInfo("Europe/Berlin")
    began = datetime(2025, 10, 26, 2, 59, 50, tzinfo=zone)
    asked = datetime(2025, 10, 26, 2, 0, 20, tzinfo=zone, fold=1)
    ends_at_one = one_time(0, 20, start=LONG_AGO, until=end(40) + HOUR)
    call = replace(ADD, validity_days=0, began_at=began)
    after = replace(reading(ends_at_one), asked_at=asked, received_at=asked)
    assert weigh(call, after).verdict is OPEN
    for wrong in (
        replace(ADD, began_at=datetime(2025, 10, 26)),  # noqa: DTZ001 - that is the mistake
        replace(ADD, before=replace(before(OLD), received_at=datetime(2025, 10, 26))),  # noqa: DTZ001
    ):
        with pytest.raises(ValueError, match="times must have an offset, unlike 2025-10-26"):
            weigh(wrong, reading(OLD))


def test_older_than_the_first_balance() -> None:
    """A cycle that was there before, and was not listed, shows that the service does something else."""
    call = replace(ADD, before=before(OLD))
    assert weigh(call, reading(OLD, one_time(start=BEGAN - HOUR))).reason == (
        "a cycle that is older than the balance before the call is not listed there"
    )


def test_emptied_cycles_that_are_not_listed_after_all() -> None:
    """A service that drops a cycle before its end does not list all emptied ones."""
    call = replace(ADD, before=before(EMPTIED))
    assert weigh(call, reading(), lists_empty_cycles=True).verdict is OPEN
    assert (
        weigh(replace(ADD, before=before()), reading(), lists_empty_cycles=True).verdict is NOT_YET
    )


@pytest.mark.parametrize(
    ("hour", "verdict"),
    [
        (23, OPEN),
        (22, OPEN),  # before a change to or from daylight saving time
        (13, APPLIED),  # no end of a day, although it is one elsewhere in the world
    ],
)
def test_renewal(hour: int, verdict: Verdict) -> None:
    """A cycle that begins at the end of a day may be a renewal."""
    start = datetime(2025, 8, 12, hour, 59, 59, 999999, tzinfo=UTC)
    call = replace(START, began_at=start - SECOND)
    assert weigh(call, reading(recurring(start=start), OLD, at=start + SECOND)).verdict is verdict


A = one_time(100, 100, start=LONG_AGO, days=20)
B = one_time(80, 80, start=LONG_AGO, days=30)


def spent(cycle: CycleBalance, amount: int) -> CycleBalance:
    """Return a cycle that has lost credits."""
    return replace(cycle, amount=cycle.amount - amount)


TAKEN = [
    (APPLIED, [A, B], [spent(A, 50), B]),
    (APPLIED, [A, B], [spent(A, 20), spent(B, 30)]),
    (APPLIED, [one_time(20, 20, start=LONG_AGO, days=15), A], [spent(A, 30)]),  # used up
    (OPEN, [A, EMPTIED], [spent(A, 60), EMPTIED]),  # others subtract, too
    (APPLIED, [A], [spent(A, 50), one_time(9, 9)]),
    (APPLIED, [A], [spent(A, 30), one_time(5, 25)]),  # from a cycle of others, too
    (APPLIED, [replace(A, starting_amount=None)], [replace(spent(A, 50), starting_amount=None)]),
    (APPLIED, [A, A], [A, spent(A, 50)]),
    (NOT_YET, [A, EMPTIED], [A, EMPTIED]),
    (NOT_YET, [A, EMPTIED], [spent(A, 49), EMPTIED]),
    (NOT_YET, [A, EMPTIED], [A, EMPTIED, one_time()]),
    (OPEN, [A], [A]),  # perhaps from a cycle of others, not listed any more
    (OPEN, [A, B, EMPTIED], [B, EMPTIED]),  # others took more
    (APPLIED, [spent(A, 50), spent(A, 50)], [spent(A, 50)]),
    (OPEN, [A, one_time(0, 9, start=LONG_AGO)], [A]),  # it lists no emptied ones after all
    (OPEN, [A, EMPTIED], [A, EMPTIED, one_time(9, None)]),
    (OPEN, [spent(A, 50)], [A]),  # more than before
    (OPEN, [A], [A, replace(B, amount=30)]),  # not listed before, though it was there
    (OPEN, [one_time(9, None)], [one_time(9, None), one_time(9, None)]),
    (OPEN, [A, EMPTIED], [A, replace(one_time(), starting_amount=40), EMPTIED]),
]


@pytest.mark.parametrize(("verdict", "was", "now"), TAKEN)
def test_subtract(verdict: Verdict, was: list[CycleBalance], now: list[CycleBalance]) -> None:
    """What was taken between two balances shows whether an amount was."""
    evidence = weigh(replace(SUBTRACT, before=before(*was)), reading(*now))
    assert evidence.verdict is verdict
    assert (evidence.assumption is not None) is (verdict is APPLIED)


def test_words_of_subtract() -> None:
    """A verdict says how much was taken."""
    call = replace(SUBTRACT, before=before(A, EMPTIED))
    assert str(weigh(call, reading(spent(A, 50), EMPTIED))) == (
        "APPLIED: as many credits were taken between the balance before the call and this one, if "
        "nobody else subtracted from this user between the two"
    )
    assert str(weigh(call, reading(A, EMPTIED))) == (
        "NOT_YET: fewer credits were taken between the balance before the call and this one"
    )


def test_subtract_without_a_balance_before() -> None:
    """Without a balance from before the call, or with 0 credits, nothing is proved."""
    assert str(weigh(SUBTRACT, reading(A, EMPTIED))) == (
        "OPEN: there is no balance from before the call"
    )
    nothing = replace(SUBTRACT, amount=0, before=before(A, EMPTIED))
    assert weigh(nothing, reading(A, EMPTIED)).verdict is OPEN


def test_subtract_at_the_end_of_a_day() -> None:
    """At the end of a day, cycles can have come and gone."""
    call = replace(
        SUBTRACT,
        began_at=MIDNIGHT - SECOND,
        before=reading(A, EMPTIED, at=MIDNIGHT - 3 * SECOND),
    )
    assert weigh(call, reading(A, EMPTIED, at=MIDNIGHT + SECOND)).verdict is OPEN
    assert weigh(call, reading(spent(A, 50), EMPTIED, at=MIDNIGHT + SECOND)).verdict is APPLIED
    ending = one_time(9, 9, start=LONG_AGO, until=MIDNIGHT - timedelta(microseconds=1))
    call = replace(call, before=reading(A, ending, EMPTIED, at=MIDNIGHT - 3 * SECOND))
    assert weigh(call, reading(A, EMPTIED, at=MIDNIGHT + SECOND)).verdict is OPEN
    assert weigh(call, reading(spent(A, 50), EMPTIED, at=MIDNIGHT + SECOND)).verdict is APPLIED


@pytest.mark.parametrize(
    ("known", "taken", "verdict"),
    [
        ([other(SUBTRACT, Outcome.APPLIED)], 0, OPEN),  # the balance does not show it
        ([other(SUBTRACT, Outcome.APPLIED)], 50, NOT_YET),
        ([other(SUBTRACT, Outcome.APPLIED)], 99, NOT_YET),
        ([other(SUBTRACT, Outcome.APPLIED)], 100, APPLIED),
        ([other(SUBTRACT, Outcome.APPLIED, -5)], 50, OPEN),  # perhaps from before
        ([other(SUBTRACT, Outcome.UNKNOWN)], 50, OPEN),
        ([other(SUBTRACT, Outcome.UNKNOWN)], 49, NOT_YET),
        ([other(SUBTRACT, Outcome.UNKNOWN)], 100, APPLIED),
        ([other(SUBTRACT, Outcome.NOT_APPLIED)], 50, APPLIED),
        ([other(SUBTRACT, Outcome.APPLIED)] * 2, 100, OPEN),  # the same one twice
        ([other(ADD, Outcome.APPLIED)], 50, APPLIED),
        ([replace(SUBTRACT, outcome=Outcome.APPLIED, began_at=None)], 50, OPEN),
    ],
)
def test_our_other_subtractions(known: list[CallRecord], taken: int, verdict: Verdict) -> None:
    """Our other subtractions are taken out first."""
    call = replace(SUBTRACT, before=before(A, EMPTIED))
    assert weigh(call, reading(spent(A, taken), EMPTIED), known=known).verdict is verdict


RUNNING = recurring(start=LONG_AGO)
STOPPED = replace(RUNNING, status=CycleStatus.CANCELED)


@pytest.mark.parametrize(
    ("verdict", "was", "now"),
    [
        (APPLIED, [RUNNING], [STOPPED]),
        (APPLIED, None, [STOPPED, EMPTIED]),
        (APPLIED, [RUNNING], [STOPPED, one_time()]),
        (NOT_YET, [RUNNING], [RUNNING]),
        (NOT_YET, None, [RUNNING]),
        (NOT_YET, None, [RUNNING, replace(STOPPED, amount=1)]),
        (OPEN, [RUNNING], []),
        (OPEN, None, []),
        (OPEN, None, [EMPTIED, one_time(5, 5, until=end(5) - timedelta(minutes=7))]),
        (NOT_YET, None, [EMPTIED]),  # it would be listed
        (NOT_YET, [recurring(start=BEGAN - SECOND)], [recurring(start=BEGAN - SECOND)]),
        (APPLIED, [RUNNING], [STOPPED, recurring()]),  # and another was started
        (OPEN, [STOPPED, RUNNING], [STOPPED]),  # a twin that was canceled before
        (OPEN, None, [STOPPED, recurring()]),
        (OPEN, None, [STOPPED]),  # another may be active, used up and not listed
        (OPEN, [STOPPED], [STOPPED]),
        (OPEN, [RUNNING], [recurring()]),  # renewed, or a new one
        (OPEN, [RUNNING], [replace(RUNNING, status=None)]),
        (OPEN, [RUNNING], [replace(RUNNING, status="paused")]),
        (OPEN, [RUNNING], [replace(RUNNING, cycle_type=None)]),
    ],
)
def test_stop_cycle(
    verdict: Verdict, was: list[CycleBalance] | None, now: list[CycleBalance]
) -> None:
    """The cycle that was active is canceled, still active, or neither."""
    call = replace(STOP, before=None if was is None else before(*was))
    evidence = weigh(call, reading(*now))
    assert evidence.verdict is verdict
    assert (evidence.assumption is not None) is (verdict is APPLIED)


def test_our_other_stop() -> None:
    """Another stop of ours may have stopped the cycle."""
    known = [other(STOP, Outcome.UNKNOWN)]
    call = replace(STOP, before=before(RUNNING))
    assert weigh(call, reading(STOPPED), known=known).verdict is OPEN
    assert weigh(call, reading(RUNNING), known=known).verdict is NOT_YET


@pytest.mark.parametrize("call", [ADD, SUBTRACT, START, STOP], ids=lambda call: call.method)
class TestEveryMethod:
    """What holds for every method."""

    def test_unknown_user(self, call: CallRecord) -> None:
        """A user that the service does not know has got nothing, and has lost nothing."""
        nobody = BalanceReading(None, ASKED, ASKED)
        evidence = weigh(
            replace(call, before=replace(nobody, asked_at=BEGAN, received_at=BEGAN)), nobody
        )
        assert evidence == Evidence(
            NOT_YET,
            "the service does not know the user",
            "the service knows each user who has ever had credits",
        )
        assert weigh(call, nobody).verdict is NOT_YET
        assert weigh(replace(call, before=before()), nobody).verdict is OPEN
        assert weigh(call, nobody, known=[other(ADD, Outcome.APPLIED)]).verdict is OPEN
        assert weigh(call, nobody, known=[other(ADD, Outcome.UNKNOWN)]).verdict is NOT_YET

    @pytest.mark.parametrize(
        "date", [ASKED - 12 * SECOND, ASKED + 12 * SECOND], ids=["behind", "ahead"]
    )
    def test_clocks_differ(self, call: CallRecord, date: datetime) -> None:
        """Nothing is proved if the clocks differ by more than is allowed."""
        after = reading(A, EMPTIED, date=date)
        evidence = weigh(call, after)
        assert str(evidence) == (
            "OPEN: the service's clock and this machine's differ by 11 s or more, and clock_skew allows 10"
        )
        assert "differ" not in weigh(call, after, clock_skew=12).reason
        assert (
            weigh(
                replace(call, before=replace(before(A), date=BEGAN - 40 * SECOND)), reading(A)
            ).verdict
            is OPEN
        )

    def test_incomplete_balance(self, call: CallRecord) -> None:
        """Nothing is proved by a balance whose cycles do not add up."""
        balance = ActiveBalance(USER, 7, ())
        evidence = weigh(call, BalanceReading(balance, ASKED, ASKED))
        assert str(evidence) == "OPEN: a balance does not list all of its cycles"

    def test_wrong_order(self, call: CallRecord) -> None:
        """A balance that was read after the call began is not one from before."""
        late = replace(call, before=reading(A, at=BEGAN))
        reason = "by this machine's clock, a balance was read on the wrong side of the call's begin"
        assert weigh(late, reading(A)).reason == reason
        assert weigh(call, before(A)).reason == reason

    def test_wrong_arguments(self, call: CallRecord) -> None:
        """Another user's balance, or a call that nobody has run, is an error."""
        with pytest.raises(ValueError, match=f"the balance is that of {USER}, and the call for "):
            weigh(replace(call, end_user_id=UUID(int=1)), reading())
        with pytest.raises(ValueError, match="the record has no began_at"):
            weigh(replace(call, began_at=None), reading())
        with pytest.raises(ValueError, match="get_balance moves no credits"):
            weigh(replace(call, method="get_balance"), reading())
        with pytest.raises(ValueError, match="clock_skew must be at least 0"):
            weigh(call, reading(), clock_skew=float("nan"))
        wrong: list[tuple[object, object, str]] = [
            ("add", reading(), "call must be CallRecord, such as call.record, not str"),
            (call, reading().balance, "after must be BalanceReading, such as client.reading"),
        ]
        for it, after, message in wrong:
            with pytest.raises(TypeError, match=message):
                weigh(it, after)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # the mistakes


def test_known_since() -> None:
    """Other calls count from two clock skews and two seconds before the call."""
    began = datetime(2026, 11, 30, 12, 0, 30, tzinfo=UTC)
    assert known_since(began, 4) == began - timedelta(seconds=10)
    for wrong in ("10", -1, 1e300):
        with pytest.raises((TypeError, ValueError), match="clock_skew must be"):
            known_since(began, wrong)  # type: ignore[arg-type]
