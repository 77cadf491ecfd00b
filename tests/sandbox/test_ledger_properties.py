"""The ledger agrees with a simple model, for any sequence of operations over time."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from uuid import UUID

from hypothesis import given, settings
from hypothesis import strategies as st

from creduse_sandbox import Ledger, Refused

USERS = [UUID(int=1), UUID(int=2)]
START = datetime(2024, 2, 27, 22, 0, tzinfo=UTC)
DAY = timedelta(days=1)


@dataclass
class Grant:
    """Credits that end together. With ``every`` they are renewed."""

    end: datetime
    full: int
    left: int
    every: timedelta | None = None


@dataclass
class Model:
    """One user's credits as sums: added, spent and lost."""

    known: bool = False
    added: int = 0
    spent: int = 0
    lost: int = 0
    expired: bool = False
    grants: list[Grant] = field(default_factory=list[Grant])

    def move_to(self, now: datetime) -> None:
        """End every cycle whose time has passed, renewal by renewal."""
        for grant in [*self.grants]:
            while grant.end < now:
                self.lost += grant.left
                if grant.every is None:
                    self.expired |= grant.left > 0
                    self.grants.remove(grant)
                    break
                grant.left = grant.full
                self.added += grant.full
                grant.end += grant.every
        self.sort()

    def sort(self) -> None:
        """Let the grant that ends soonest come first. Those that end together keep their order."""
        self.grants.sort(key=lambda grant: grant.end)

    def give(self, amount: int, days: int | None, now: datetime, *, again: bool) -> str | None:
        """Add credits, or start a cycle."""
        days = 31 if days is None else days
        if amount < 0:
            return "AMOUNT_NEGATIVE"
        if days < 0:
            return "INVALID_REQUEST"
        if again and any(grant.every for grant in self.grants):
            return "ACTIVE_CYCLE_EXISTS"
        midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
        end = midnight + (days + 1) * DAY - timedelta(microseconds=1)
        every = max(days, 1) * DAY if again else None
        self.known = True
        self.added += amount
        self.grants.append(Grant(end, amount, amount, every))
        self.sort()
        return None

    def spend(self, amount: int) -> str | None:
        """Spend credits one by one, each from the first grant that has some."""
        held = sum(grant.left for grant in self.grants)
        if amount < 0:
            return "AMOUNT_NEGATIVE"
        if not self.known:
            return "USER_DOES_NOT_EXIST"
        if amount > held:
            return "CREDIT_EXPIRED" if self.expired and held == 0 else "INSUFFICIENT_FUNDS"
        self.spent += amount
        while amount:
            next(grant for grant in self.grants if grant.left).left -= 1
            amount -= 1
        return None

    def stop(self) -> str | None:
        """End the renewals of the recurring grant."""
        if not self.known:
            return "USER_DOES_NOT_EXIST"
        for grant in self.grants:
            if grant.every:
                grant.every = None
                return None
        return "NO_ACTIVE_CYCLE"


@dataclass(frozen=True)
class Step:
    """An operation after a pause. It ignores the arguments that it does not need."""

    user: UUID
    pause: timedelta
    operation: str
    amount: int
    days: int | None

    def expect(self, model: Model, now: datetime) -> str | None:
        """Apply the step to the model, and return the expected error."""
        match self.operation:
            case "subtract":
                return model.spend(self.amount)
            case "stop_cycle":
                return model.stop()
            case _:
                again = self.operation == "start_cycle"
                return model.give(self.amount, self.days, now, again=again)

    def run(self, ledger: Ledger, now: datetime) -> str | None:
        """Apply the step to the ledger, and return its error."""
        try:
            match self.operation:
                case "subtract":
                    ledger.subtract(self.user, self.amount, now)
                case "stop_cycle":
                    ledger.stop_cycle(self.user, now)
                case "start_cycle":
                    ledger.start_cycle(self.user, self.amount, self.days, now)
                case _:
                    ledger.add(self.user, self.amount, self.days, now)
        except Refused as refused:
            return refused.error_code
        return None


steps = st.lists(
    st.builds(
        Step,
        st.sampled_from(USERS),
        # START is two hours before an end of day, so these meet such ends often.
        st.integers(0, 9).map(lambda thirds: thirds * DAY / 3)
        | st.just(timedelta(hours=2, microseconds=-1))
        | st.timedeltas(timedelta(0), 70 * DAY),
        st.sampled_from(["add", "start_cycle", "stop_cycle", "subtract", "subtract"]),
        st.integers(-1, 40),
        st.none() | st.integers(-1, 6),
    ),
    max_size=40,
)


def view(ledger: Ledger, user: UUID, now: datetime) -> list[tuple[datetime, int]] | None:
    try:
        return [(cycle.end, cycle.amount) for cycle in ledger.balance(user, now)]
    except Refused:
        return None


def total(cycles: list[tuple[datetime, int]]) -> int:
    return sum(left for _, left in cycles)


@given(steps=steps)
@settings(print_blob=True, deadline=None, database=None)
def test_ledger_keeps_the_accounts(steps: list[Step]) -> None:
    """A balance is the sum of added credits less spent and lost ones, and never negative."""
    ledger = Ledger()
    models = {user: Model() for user in USERS}
    now = START
    for step in steps:
        now += step.pause
        for model in models.values():
            model.move_to(now)
        assert step.run(ledger, now) == step.expect(models[step.user], now)
        for user, model in models.items():
            cycles = view(ledger, user, now)
            assert (cycles is not None) == model.known
            if cycles is not None:
                assert total(cycles) == model.added - model.spent - model.lost
                assert cycles == [(grant.end, grant.left) for grant in model.grants]
                assert all(left >= 0 for _, left in cycles)


@given(steps=steps)
@settings(print_blob=True, deadline=None, database=None)
def test_refusals_change_nothing(steps: list[Step]) -> None:
    """A rejected operation changes no cycle, and no operation changes those of other users."""
    ledger = Ledger()
    now = START
    for step in steps:
        now += step.pause
        before = {user: view(ledger, user, now) for user in USERS}
        refused = step.run(ledger, now)
        after = {user: view(ledger, user, now) for user in USERS}
        if refused is None:
            del before[step.user], after[step.user]
        assert after == before


@given(steps=steps)
@settings(print_blob=True, deadline=None, database=None)
def test_spending_leaves_later_cycles_alone(steps: list[Step]) -> None:
    """Spending empties each cycle before it takes from the next."""
    ledger = Ledger()
    now = START
    for step in steps:
        now += step.pause
        before = view(ledger, step.user, now)
        refused = step.run(ledger, now)
        after = view(ledger, step.user, now)
        if step.operation == "subtract" and refused is None:
            assert before is not None
            assert after is not None
            touched = [i for i, pair in enumerate(before) if pair != after[i]]
            assert all(left == 0 for _, left in after[: max(touched, default=0)])
            assert total(before) - total(after) == step.amount
