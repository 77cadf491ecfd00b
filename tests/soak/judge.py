"""The invariants of a run, and the search for violations.

Nothing here runs a call. The rules take what a client has said of a call and what the server has
recorded of it.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

APPLIED: Final = "APPLIED"
NOT_APPLIED: Final = "NOT_APPLIED"
UNKNOWN: Final = "UNKNOWN"

SLACK: Final = 1.0
"""Seconds that a call may last beyond its timeout or its cancellation on a healthy machine."""
LAG: Final = 3.0
"""How many times the worst delay of the machine meanwhile is forgiven on top."""
RACE: Final = 0.02
"""Seconds that a client may take from looking at an idle connection to writing on it; `LAG` again."""
CLOCKS: Final = 0.001
"""Seconds that the clocks of the kernel's stamps and of the client may differ."""
BLOCKS: Final = 0.05
"""Blocks of memory that may be added for each call: one object in twenty calls."""
BYTES: Final = 256
"""Bytes that the process may grow by for each call."""
MARGIN_BLOCKS: Final = 10_000
"""trio alone keeps up to some fourteen hundred deadlines of calls that are over."""
MARGIN: Final = 64 * 1024 * 1024


class Said(NamedTuple):
    """The client's report of a call that has ended."""

    number: int
    read: bool
    outcome: str
    sent: int
    """Of how many attempts the client says that they may have been sent."""
    silent_from: float = math.inf
    """When the cancellation had reached the caller, or ``close()`` had returned; monotonic."""
    lag: float = 0.0
    """The machine's worst meanwhile, in seconds."""


class Entry(NamedTuple):
    """The server's record of a request."""

    number: int
    sent: float
    connection: int
    fault: str
    applied: bool
    stray: float = math.inf
    """How many seconds before a stray response was sent on the connection, if one was."""


def wrongs(said: Said, entries: Sequence[Entry]) -> Iterator[str]:
    """Return what is wrong about a call."""
    # Where a stray response came between a client's look at the connection and its writing, nobody
    # could have told it from the request's own.
    if all(entry.stray > RACE + LAG * said.lag for entry in entries):
        yield from _untruths(said, entries)
    for entry in entries:
        late = entry.sent - said.silent_from
        if late > CLOCKS:
            yield f"sent {late:.4f} s after the cancellation had reached the caller, or after close()"


def _untruths(said: Said, entries: Sequence[Entry]) -> Iterator[str]:
    applied = sum(entry.applied for entry in entries)
    if applied > 1:
        yield f"applied {applied} times"
    if said.read and said.outcome != NOT_APPLIED:
        yield f"a read is said to be {said.outcome}"
    if not said.read and said.outcome == APPLIED and not applied:
        yield "said to be APPLIED, but never was"
    if said.outcome == NOT_APPLIED and applied:
        yield f"said to be NOT_APPLIED, but was applied (worst lag {said.lag:.3f} s)"
    if len(entries) > said.sent:
        yield f"{len(entries)} requests came in, where {said.sent} can have been sent"


def overrun(what: str, seconds: float, allowed: float, lag: float) -> str | None:
    """Return how far a call exceeded its time; ``lag``: the machine's worst delay meanwhile."""
    beyond = seconds - allowed
    if beyond <= SLACK + LAG * lag:
        return None
    return f"lasted {beyond:.2f} s beyond {what} ({allowed:.3f} s; worst lag {lag:.3f} s)"


class Resources(NamedTuple):
    """The resources that a process holds after its client has been closed."""

    calls: int
    """How many have been made so far."""
    descriptors: int
    tasks: int
    threads: int
    connections: int
    """That the server still has open."""
    blocks: int
    size: int
    """Bytes of the process."""


def leftovers(before: Resources, after: Resources) -> Iterator[str]:
    """Return what a closed client has left behind."""
    for name in ("descriptors", "tasks", "threads", "connections"):
        was, now = getattr(before, name), getattr(after, name)
        if now != was:
            yield f"{name} left behind by a closed client: {now}, before {was}"


def growth(samples: Sequence[Resources]) -> Iterator[str]:
    """Return how memory grows from client to client; the first one warms up."""
    if len(samples) < 3:
        return
    first, last = samples[0], samples[-1]
    calls = last.calls - first.calls
    blocks, size = last.blocks - first.blocks, last.size - first.size
    if blocks > BLOCKS * calls + MARGIN_BLOCKS:
        yield f"memory grows: {blocks / calls:.3f} blocks for each call, {blocks} in all"
    if size > BYTES * calls + MARGIN:
        yield f"memory grows: {size / calls:.0f} bytes for each call, {size / 2**20:.0f} MiB in all"
