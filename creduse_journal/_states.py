"""The states of a journal's entry, what changes them, and how a call's end does.

Everything here is pure: files and clients do not belong here.

Why no call is applied twice: (1) a request leaves only after its entry is CLAIMED on the disk; (2) a
new claim follows only FREE, or no entry; (3) an entry becomes FREE only if nothing was applied, or if
somebody decides so; (4) a client never follows an attempt that may have been applied with another.
"""

import enum
from collections.abc import Mapping
from typing import Any, Final

from creduse_core import Call, LocalProtocolError, Outcome

LONGEST_CLAIM: Final = 60.0
"""Seconds after a claim in which its call may start. Its last request can leave a call's timeout later.

A process that was frozen for longer may have lost its journal, and somebody may have decided that the call
is not applied and never will be.
"""


class State(enum.StrEnum):
    """What is known of an entry's call."""

    FREE = "free"
    """It has not been applied, and can be sent."""
    CLAIMED = "claimed"
    """A process is sending it."""
    APPLIED = "applied"
    REFUSED = "refused"
    """The service has refused it, such as for too few credits."""
    UNCLEAR = "unclear"
    """It may have been applied."""


class Change(enum.StrEnum):
    """What happens to an entry."""

    CLAIM = "claim"
    """Its call is about to be sent."""
    APPLY = "apply"
    """The call was applied."""
    REFUSE = "refuse"
    """The service refused the call."""
    RELEASE = "release"
    """Nothing was applied, and the call can be sent again, such as after 429."""
    DOUBT = "doubt"
    """The call may have been applied. It ended as UNKNOWN, or its process died."""
    SETTLE_APPLIED = "settle as applied"
    """A person, or evidence, says that it was applied."""
    SETTLE_FREE = "settle as free"
    """A person, or evidence, says that it was not applied and will not be."""


RULES: Final[Mapping[State, Mapping[Change, State]]] = {
    State.FREE: {Change.CLAIM: State.CLAIMED},
    State.CLAIMED: {
        Change.APPLY: State.APPLIED,
        Change.REFUSE: State.REFUSED,
        Change.RELEASE: State.FREE,
        Change.DOUBT: State.UNCLEAR,
    },
    State.APPLIED: {},
    State.REFUSED: {Change.SETTLE_FREE: State.FREE},
    State.UNCLEAR: {Change.SETTLE_APPLIED: State.APPLIED, Change.SETTLE_FREE: State.FREE},
}
"""The state that follows each state and change. A change without a row is an error. An id without an
entry is FREE.

In PostgreSQL, other processes can make an entry UNCLEAR while its call is in flight, and settle it as FREE.
The end of the call then changes it as if it were still CLAIMED, unless a new claim has followed."""


def state_after(state: State, change: Change) -> State:
    """Return the state that follows, or raise `LocalProtocolError`."""
    after = RULES[state].get(change)
    if after is None:
        raise LocalProtocolError(f"cannot {change} an entry that is {state}")
    return after


def is_settled(state: State, change: Change) -> bool:
    """Return whether this decision was made before."""
    return state is RULES[State.UNCLEAR].get(change)


def change_of(call: Call[Any]) -> Change:
    """Return what the end of a call changes, from its outcome and its last attempt."""
    if call.outcome is Outcome.APPLIED:
        return Change.APPLY
    if call.outcome is Outcome.UNKNOWN:
        return Change.DOUBT
    attempts = call.attempts
    return Change.REFUSE if attempts and attempts[-1].event == "refused" else Change.RELEASE
