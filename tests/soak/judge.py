"""The invariants of a run, and the functions that find violations.

These functions compare the client's report of a call with the server's record of it. Running calls
does not belong here.
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
"""A call may be late by this many times the worst delay of the machine during the call."""
RACE: Final = 0.05
"""Seconds from a client's check of an idle connection to its write. `LAG` applies, too.

To check, a thread releases Python's lock. Each busy thread that takes it meanwhile keeps it for 5 ms.
With 200 threads, 22 and 25 ms were measured.
"""
CLOCKS: Final = 0.001
"""Seconds by which the kernel's timestamps and the client's clock may differ."""
BLOCKS: Final = 0.05
"""Blocks of memory that may be added for each call: one object in twenty calls."""
BYTES: Final = 256
"""Bytes that the process may grow by for each call."""
MARGIN_BLOCKS: Final = 10_000
"""trio keeps up to 1,400 deadlines of calls that have ended."""
MARGIN: Final = 64 * 1024 * 1024


class Report(NamedTuple):
    """The client's report of a call that has ended."""

    number: int
    read: bool
    outcome: str
    sent: int
    """How many attempts may have been sent, according to the client."""
    silent_from: float = math.inf
    """When the caller got the cancellation, or when ``close()`` returned, in monotonic seconds."""
    lag: float = 0.0
    """The worst delay of the machine during the call, in seconds."""


class Entry(NamedTuple):
    """The server's record of a request."""

    number: int
    sent: float
    connection: int
    fault: str
    applied: bool
    stray: float = math.inf
    """Seconds from a stray response on the connection to the request. Infinite without one."""


def violations(report: Report, entries: Sequence[Entry]) -> Iterator[str]:
    """Return what is wrong about a call."""
    # If a stray response arrives between a client's check of the connection and its write, no client
    # can know that it is not the response to the request.
    if all(entry.stray > RACE + LAG * report.lag for entry in entries):
        yield from _false_statements(report, entries)
    for entry in entries:
        late = entry.sent - report.silent_from
        if late > CLOCKS:
            yield f"sent {late:.4f} s after the caller got the cancellation, or after close()"


def _false_statements(report: Report, entries: Sequence[Entry]) -> Iterator[str]:
    applied = sum(entry.applied for entry in entries)
    if applied > 1:
        yield f"applied {applied} times"
    if report.read and report.outcome != NOT_APPLIED:
        yield f"the outcome of a read is {report.outcome}"
    if not report.read and report.outcome == APPLIED and not applied:
        yield "the outcome is APPLIED, but it was not applied"
    if report.outcome == NOT_APPLIED and applied:
        yield f"the outcome is NOT_APPLIED, but it was applied (worst lag {report.lag:.3f} s)"
    if len(entries) > report.sent:
        yield f"the server received {len(entries)} requests, but the client sent at most {report.sent}"


def overrun(what: str, seconds: float, allowed: float, lag: float) -> str | None:
    """Return how far a call exceeded its time. ``lag`` is the worst delay of the machine meanwhile."""
    beyond = seconds - allowed
    if beyond <= SLACK + LAG * lag:
        return None
    return f"lasted {beyond:.2f} s beyond {what} ({allowed:.3f} s; worst lag {lag:.3f} s)"


class Resources(NamedTuple):
    """The resources that a process holds after its client has been closed."""

    calls: int
    """How many calls have been made so far."""
    descriptors: int
    tasks: int
    threads: int
    connections: int
    """Connections that the server still has open."""
    blocks: int
    size: int
    """Resident memory of the process, in bytes."""


def leftovers(before: Resources, after: Resources) -> Iterator[str]:
    """Return the resources that a closed client has not released."""
    for name in ("descriptors", "tasks", "threads", "connections"):
        was, now = getattr(before, name), getattr(after, name)
        if now != was:
            yield f"{name} not released by a closed client: {now}, before {was}"


def growth(samples: Sequence[Resources]) -> Iterator[str]:
    """Return how memory grows from client to client. The first client warms up."""
    if len(samples) < 3:
        return
    first, last = samples[0], samples[-1]
    calls = last.calls - first.calls
    blocks, size = last.blocks - first.blocks, last.size - first.size
    if blocks > BLOCKS * calls + MARGIN_BLOCKS:
        yield f"memory grows: {blocks / calls:.3f} blocks for each call, {blocks} in all"
    if size > BYTES * calls + MARGIN:
        yield f"memory grows: {size / calls:.0f} bytes for each call, {size / 2**20:.0f} MiB in all"
