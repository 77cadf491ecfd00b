"""What a call gives: its result, its outcome and the history of its attempts.

Plain frozen data, named as on the wire. Nothing here decodes, decides or sends.
"""

import enum
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID


class Outcome(enum.IntEnum):
    """Whether a call moved credits: what can be proved, and no more.

    They are ordered: the outcome of a call is the greatest among its attempts.
    """

    NOT_APPLIED = 0
    """It is certain that nothing was applied. Calling again is safe."""
    UNKNOWN = 1
    """It may have been applied. Read the balance before doing it again."""
    APPLIED = 2
    """It was applied. Do not do it again."""

    def __str__(self) -> str:
        return self.name

    def __format__(self, spec: str) -> str:
        return format(self.name, spec)


class CycleType(enum.StrEnum):
    """How a cycle came about."""

    ONE_TIME = "one-time"
    """Opened by ``add``; gone after its end."""
    RECURRING = "recurring"
    """Opened by ``start_cycle``; renews itself at its end until stopped."""


class CycleStatus(enum.StrEnum):
    """Whether a recurring cycle goes on. The service may also send null, read as ``None``."""

    ACTIVE = "active"
    CANCELED = "canceled"
    """Stopped: its credits can be spent until its end, and it is not renewed."""


@dataclass(frozen=True, slots=True)
class CreditsAdded:
    """The answer to ``add``: ``amount`` credits were added for ``end_user_id``."""

    end_user_id: UUID
    amount: int
    validity_days: int | None = None
    """Days that the credits can be spent, where the service says it."""


@dataclass(frozen=True, slots=True)
class CreditsSubtracted:
    """The answer to ``subtract``: ``amount`` credits were taken from ``end_user_id``."""

    end_user_id: UUID
    amount: int


@dataclass(frozen=True, slots=True)
class Cycle:
    """The answer to ``start_cycle`` and ``stop_cycle``: the recurring cycle as it now stands.

    Times are aware; one that the service sends without an offset is read as UTC.
    """

    end_user_id: UUID
    amount: int
    created_at: datetime
    current_cycle_start: datetime
    current_cycle_end: datetime
    """The last moment in which this span's credits can be spent."""
    status: CycleStatus | str | None = None
    """A plain ``str`` where the service sends a status not known here."""
    cycle_type: CycleType | str | None = None
    """``None`` where the service does not say; its documented answers do not."""


@dataclass(frozen=True, slots=True)
class CycleBalance:
    """One cycle's part of an `ActiveBalance`."""

    cycle_start: datetime
    cycle_end: datetime
    amount: int
    """Credits left in the cycle."""
    starting_amount: int | None = None
    """Credits that it began with, where the service says it."""
    status: CycleStatus | str | None = None
    cycle_type: CycleType | str | None = None


@dataclass(frozen=True, slots=True)
class ActiveBalance:
    """The answer to ``get_balance``: what ``end_user_id`` can spend now."""

    end_user_id: UUID
    active_balance: int
    """Credits that can be spent, over all cycles."""
    active_balance_by_cycle: tuple[CycleBalance, ...]
    """The same, cycle by cycle, in the order of the answer."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt of a call: one request sent, or meant to be. It holds no secret."""

    number: int
    """1 for the first."""
    method: str
    path: str
    """As in the API's documentation, such as ``/subtract``."""
    status: int | None
    """The answer's status code, or ``None`` if no head came."""
    event: str
    """What happened: the name of a row of ``creduse_core.EVENTS``."""
    outcome: Outcome
    """What this attempt alone proves."""
    error: str | None
    """What went wrong, in a few words, or ``None`` if nothing did."""
    started: float
    """Seconds on the transport's clock; only differences mean anything."""
    ended: float
