"""The plan of each call of a soak run, drawn from the run's seed and the number of the call.

Each call has its own user id, which tells the server the number of the call and its faults. So the
server needs no list of calls.
"""

import random
from typing import Final, Literal, NamedTuple
from uuid import UUID

FAULTS: Final = (
    "none",
    # The request is not applied, or applied later.
    "close",
    "reset",
    "hang",
    "apply-later",
    "reset-then-apply",
    # The response does not begin.
    "apply-then-close",
    "apply-then-reset",
    "apply-then-hang",
    # The response does not end.
    "cut-head-then-close",
    "cut-head-then-reset",
    "cut-body-then-close",
    "cut-body-then-reset",
    "drip-head",
    "drip-body",
    "endless-interim",
    "endless-head",
    "endless-body",
    # The response is late, or arrives in pieces.
    "slow",
    "split",
    "drip-quickly",
    "interim",
    "chunked",
    "chunked-with-length",
    "until-close",
    # The response is another one.
    "402",
    "404",
    "408",
    "408-then-close",
    "409",
    "429",
    "429-retry-after-0",
    "429-retry-after-1",
    "500",
    "503",
    "302",
    "apply-then-408",
    "apply-then-500",
    "apply-then-502-html",
    "apply-then-503",
    "apply-then-not-json",
    "apply-then-other-user",
    # Bytes follow the response.
    "twice",
    "twice-a-moment-later",
    "half-a-surplus",
    "surplus-402",
    "surplus-402-a-moment-later",
    "surplus-429-a-moment-later",
    "surplus-503-a-moment-later",
    "surplus-drip",
    # The connection ends after the response.
    "then-close",
    "then-reset",
    "connection-close",
    "close-when-idle",
)
"""What the server can do to a request. ``server.py`` has a function for each."""

ENDLESS: Final = frozenset(
    {
        "hang",
        "apply-later",
        "apply-then-hang",
        "drip-head",
        "drip-body",
        "endless-interim",
        "endless-head",
        "429-retry-after-1",
    }
)
"""Faults that only the timeout of the call ends. The timeout is short then."""

FULL_POOL: Final = "full-pool"
"""Not a fault: the server responds when it has `MAX_CONCURRENT` such requests, or after a while."""
MAX_CONCURRENT: Final = 100
"""The size of a client's connection pool."""

_NAMES: Final = (*FAULTS, FULL_POOL)
_CODES: Final = {name: code for code, name in enumerate(_NAMES)}
_PAUSES: Final = 255


class Script(NamedTuple):
    """What the server does in a call. The user id of the call encodes it."""

    number: int
    faults: tuple[str, str, str]
    """The faults of the three attempts."""
    pause: int
    """From 0 to 255. It decides how long a fault waits, or where it cuts a response."""

    def encode(self) -> UUID:
        """Return the user id that encodes this script."""
        codes = bytes(_CODES[name] for name in self.faults)
        return UUID(bytes=self.number.to_bytes(4) + codes + bytes([self.pause]) + bytes(8))

    @classmethod
    def decode(cls, text: str) -> "Script":
        """Return the script that a user id encodes."""
        data = UUID(text).bytes
        first, second, third = (_NAMES[code] for code in data[4:7])
        return cls(int.from_bytes(data[:4]), (first, second, third), data[7])

    @property
    def fraction(self) -> float:
        """``pause`` as a number from 0 to 1."""
        return self.pause / _PAUSES


class Cancel(NamedTuple):
    """When and how the caller cancels the call."""

    way: Literal["steps", "seconds", "timeout"]
    """After some steps of the event loop, after some time, or by a timeout around the call."""
    after: float


Method = Literal["add", "subtract", "get_balance"]


class Plan(NamedTuple):
    """The plan of one call."""

    script: Script
    method: Method
    shared_user: int | None
    """The user of a call with an idempotency key. Then the key encodes the script."""
    timeout: float
    cancel: Cancel | None

    @property
    def read(self) -> bool:
        """Return whether the call changes nothing."""
        return self.method == "get_balance"

    @property
    def healthy(self) -> bool:
        """Return whether the plan gives the call no reason to fail."""
        return self.script.faults == ("none",) * 3 and self.timeout >= PATIENT and not self.cancel

    @property
    def user(self) -> UUID:
        """The end user of the call."""
        if self.shared_user is None:
            return self.script.encode()
        return UUID(int=2**128 - 1 - self.shared_user)

    @property
    def amount(self) -> int:
        """The amount. Calls with a shared user have the same, as they can get each other's response."""
        return 1 + self.script.number % 1000 if self.shared_user is None else 7


PATIENT: Final = 5.0
"""The timeout, in seconds, of calls that should end before it."""
MORE_PATIENT: Final = 60.0
"""The timeout, in seconds, of calls that wait for each other."""
_SHARED_USERS: Final = 4


def draw(seed: int, number: int, faults: float) -> Plan:
    """Draw the plan of a call. ``faults`` is the share of calls with a fault."""
    dice = random.Random(seed << 32 | number)  # noqa: S311 - nothing is secret here
    chosen = ("none", "none", "none")
    if dice.random() < faults:
        first, second, third = (dice.choice(FAULTS[1:]) for _ in range(3))
        chosen = (
            first,
            second if dice.random() < 0.5 else "none",
            third if dice.random() < 0.5 else "none",
        )
    timeout = dice.uniform(0.2, 1.0) if ENDLESS.intersection(chosen) else PATIENT
    cancel = None
    if dice.random() < faults / 2:
        cancel = dice.choice(
            (
                Cancel("steps", int(40 * dice.random() ** 2)),
                Cancel("seconds", dice.uniform(0, 0.2)),
                Cancel("timeout", dice.uniform(0, 0.2)),
            )
        )
    elif dice.random() < faults / 5:
        timeout = dice.uniform(0.001, 0.1)
    methods: tuple[Method, ...] = ("add", "subtract", "subtract", "get_balance")
    method = dice.choice(methods)
    has_key = method != "get_balance" and dice.random() < 0.3
    return Plan(
        Script(number, chosen, dice.randrange(_PAUSES + 1)),
        method,
        dice.randrange(_SHARED_USERS) if has_key else None,
        timeout,
        cancel,
    )


def full_pool(number: int) -> Plan:
    """Return the plan of a call that waits at the server for others, so that the pool gets full."""
    return Plan(
        Script(number, (FULL_POOL, FULL_POOL, FULL_POOL), 0), "subtract", None, MORE_PATIENT, None
    )
