"""What a call returns: its result, its outcome and its attempts; and what is kept of a call.

These are frozen data. Results have the field names of the API. Decoding and decisions do not belong here.
"""

import enum
from datetime import datetime
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from .records import Record, dataclass, json_value
from .tables import Rows, as_html, as_text, counted, moment, printable

_MAX_AMOUNT_BITS: Final = 128
"""A longer amount is not shown: it has up to 3,000 digits."""


class Outcome(enum.IntEnum):
    """Whether a call moved credits, as far as that is proved.

    Outcomes are ordered. The outcome of a call is the greatest of its attempts.
    """

    NOT_APPLIED = 0
    """No credits moved. It is safe to call again."""
    UNKNOWN = 1
    """Credits may have moved. Find out more before you call again. The balance alone is not conclusive."""
    APPLIED = 2
    """Credits moved. Do not call again."""

    def __str__(self) -> str:
        return self.name

    def __format__(self, spec: str) -> str:
        return format(self.name, spec)


class CycleType(enum.StrEnum):
    """The kind of a cycle."""

    ONE_TIME = "one-time"
    """``add`` opened it. It ends once."""
    RECURRING = "recurring"
    """``start_cycle`` opened it. It is renewed at its end until it is stopped."""


class CycleStatus(enum.StrEnum):
    """Whether a recurring cycle will be renewed. A field is ``None`` if the service sends null."""

    ACTIVE = "active"
    CANCELED = "canceled"
    """It is stopped. Its credits can be spent until its end."""


class _Result(Record):
    """A base of the results of calls. ``str`` gives words for people, and notebooks show a table."""

    __slots__ = ()

    def __str__(self) -> str:
        return as_text(self._head(), self._rows())

    def _repr_html_(self) -> str:
        return as_html(self._head(), self._rows())

    if TYPE_CHECKING:

        def _head(self) -> str: ...  # each result has its own

    def _rows(self) -> Rows:
        return ()


@dataclass(frozen=True, slots=True)
class CreditsAdded(_Result):
    """The result of ``add``: ``end_user_id`` got ``amount`` credits."""

    end_user_id: UUID
    amount: int
    validity_days: int | None = None
    """Days in which the credits can be spent, if the service says so."""

    def _head(self) -> str:
        days = self.validity_days
        valid = "" if days is None else f", valid for {counted(days, 'day')}"
        return f"Added {counted(self.amount, 'credit')}{valid}."


@dataclass(frozen=True, slots=True)
class CreditsSubtracted(_Result):
    """The result of ``subtract``: ``amount`` credits were taken from ``end_user_id``."""

    end_user_id: UUID
    amount: int

    def _head(self) -> str:
        return f"Took {counted(self.amount, 'credit')}."


@dataclass(frozen=True, slots=True)
class Cycle(_Result):
    """The result of ``start_cycle`` and ``stop_cycle``: the recurring cycle as it is now.

    Times are aware. A time without an offset is read as UTC.
    """

    end_user_id: UUID
    amount: int
    created_at: datetime
    current_cycle_start: datetime
    current_cycle_end: datetime
    """The last moment at which the credits of this cycle can be spent."""
    status: CycleStatus | str | None = None
    """A plain ``str`` if this version does not know the status."""
    cycle_type: CycleType | str | None = None
    """``None`` if the service does not say. Its documented responses do not."""

    def _head(self) -> str:
        cycle = (
            f"A cycle of {counted(self.amount, 'credit')} until {moment(self.current_cycle_end)}"
        )
        return ", ".join(filter(None, (cycle, _kind(self)))) + "."


@dataclass(frozen=True, slots=True)
class CycleBalance(Record):
    """One cycle's part of an `ActiveBalance`."""

    cycle_start: datetime
    cycle_end: datetime
    amount: int
    """Credits left in the cycle."""
    starting_amount: int | None = None
    """Credits at the beginning of the cycle, if the service says so."""
    status: CycleStatus | str | None = None
    cycle_type: CycleType | str | None = None


@dataclass(frozen=True, slots=True)
class ActiveBalance(_Result):
    """The result of ``get_balance``: what ``end_user_id`` can spend now."""

    end_user_id: UUID
    active_balance: int
    """Credits that can be spent, in all cycles."""
    active_balance_by_cycle: tuple[CycleBalance, ...]
    """The same for each cycle, in the order of the response."""

    def _head(self) -> str:
        colon = ":" if self.active_balance_by_cycle else ""
        return f"{counted(self.active_balance, 'credit')}{colon}"

    def _rows(self) -> Rows:
        cycles = sorted(self.active_balance_by_cycle, key=attrgetter("cycle_end"))
        rows = [(str(it.amount), moment(it.cycle_end), _kind(it)) for it in cycles]
        return [("AMOUNT", "UNTIL", "CYCLE"), *rows] if rows else ()


def _kind(cycle: Cycle | CycleBalance) -> str:
    return ", ".join(printable(word) for word in (cycle.cycle_type, cycle.status) if word)


@dataclass(frozen=True, slots=True)
class Attempt(Record):
    """One attempt of a call: one request. It does not hold the API key."""

    number: int
    """1 for the first."""
    method: str
    path: str
    """As in the API's documentation, such as ``/subtract``."""
    status: int | None
    """The status code of the response, or ``None`` if no head arrived."""
    event: str
    """The name of the event, a key of ``creduse_core.EVENTS``."""
    outcome: Outcome
    """What this attempt alone proves."""
    error: str | None
    """What went wrong, or ``None``."""
    started: float
    """Seconds on the transport's clock. Only differences have a meaning."""
    ended: float

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as a dictionary that ``json.dumps`` accepts.

        In place of ``started`` and ``ended``, it has the ``seconds`` between them.
        """
        attempt = Record.as_dict(self)
        attempt["seconds"] = json_value(round(self.ended - self.started, 6))
        del attempt["started"], attempt["ended"]
        return attempt


@dataclass(frozen=True, slots=True)
class FinishedCall(Record):
    """A call that has ended, for ``on_call``. It does not hold the API key."""

    method: str
    """The name of the client's method, such as ``add``."""
    end_user_id: UUID
    amount: int | None
    """``None`` for a method without an amount."""
    outcome: Outcome
    error: str | None
    """The name of the class of the exception that the call raised, or ``None``."""
    seconds: float
    """How long the call took, with its retries and waits. NaN if the clock failed."""
    attempts: tuple[Attempt, ...]
    """The attempts, in order."""


@dataclass(frozen=True, slots=True)
class BalanceReading(Record):
    """A balance, and when it was read. Times are aware, by the clock of the machine that read it."""

    balance: ActiveBalance | None
    """``None``: the service does not know the user."""
    asked_at: datetime
    """A moment before the request was sent."""
    received_at: datetime
    """A moment after the response arrived."""
    date: datetime | None = None
    """The response's ``Date``, by the server's clock."""


@dataclass(frozen=True, slots=True)
class CallRecord(Record):
    """What a call was, when it began, and its outcome. It does not hold the API key."""

    method: str
    """The name of the client's method, such as ``add``."""
    end_user_id: UUID
    amount: int | None
    """``None`` for a method without an amount."""
    validity_days: int | None
    """``None`` for a method without it, and if it is left to the service."""
    outcome: Outcome
    """What was certain about the credits when the record was made."""
    began_at: datetime | None
    """When a client began the call, before its first request. It is aware, by that machine's clock.
    ``None`` if no client has run the call."""
    before: BalanceReading | None = None
    """A balance that was read before the call began."""

    def __str__(self) -> str:
        """Return the call as its caller wrote it, such as ``subtract(12345678-…, 50)``."""
        arguments = [str(self.end_user_id)]
        if self.amount is not None:
            is_long = self.amount.bit_length() > _MAX_AMOUNT_BITS
            arguments.append("…" if is_long else str(self.amount))
        return f"{self.method}({', '.join(arguments)})"
