"""The five calls on the command line: their parameters, and how the command shows how they end.

It has the texts, JSON and exit statuses. The API key comes only from the environment. Flags and
their help texts (`__main__`) do not belong here.
"""

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import partial
from operator import attrgetter
from types import FrameType
from typing import Any, Final, TextIO

from creduse_core import (
    EVENTS,
    ActiveBalance,
    Attempt,
    Call,
    CreditsAdded,
    CreditsSubtracted,
    CreduseError,
    CreduseProtocol,
    Cycle,
    CycleBalance,
    Outcome,
    RetryPolicy,
)
from creduse_entry import INTERRUPTED, exit_at_once
from creduse_httpx import CreduseClient

from ._arguments import QUIET, VERBOSE
from ._colours import has_colours, paint

STATUSES: Final = {
    0: "done",
    1: "not applied: the service refused it, or another try cannot help",
    2: "wrong usage or settings; nothing was sent",
    3: "unknown: it may have been applied; find out whether it was before doing it again",
    4: "applied, but the response could not be read or written; do not do it again",
    5: "not applied, and worth another try: not sent, or 429; for balance, also 5xx or a timeout",
    INTERRUPTED: "interrupted (Ctrl-C); nothing was applied",
}
"""What each exit status means. Any other status, such as after a kill, means the same as 3."""


class Interrupted(CreduseError):  # noqa: N818 - the user asked for it
    """Ctrl-C interrupted the call."""


class UnexpectedError(CreduseError):
    """The call raised an exception that is not the client's, such as a signal handler's."""


@dataclass(frozen=True, slots=True)
class _End:
    """The exit statuses and the texts for a failed call with one outcome."""

    status: int
    status_if_transient: int
    """The exit status if the last attempt ended in a way that another try can help with."""
    interrupted: str
    advice: str = ""


_ENDS: Final = {
    Outcome.NOT_APPLIED: _End(1, 5, "nothing was applied"),
    Outcome.UNKNOWN: _End(
        3, 3, "it may have been applied", "; find out whether it was before doing it again"
    ),
    Outcome.APPLIED: _End(4, 4, "it was applied", "; do not do it again"),
}


# Results as text


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _moment(moment: datetime) -> str:
    # In the response's own time zone: near the year 9999, another may be out of range.
    return f"{moment:%Y-%m-%d %H:%M:%S %Z}"


def _added(result: CreditsAdded) -> str:
    days = result.validity_days
    until = "" if days is None else f", valid for {_count(days, 'day')}"
    return f"Added {_count(result.amount, 'credit')}{until}."


def _subtracted(result: CreditsSubtracted) -> str:
    return f"Took {_count(result.amount, 'credit')}."


def _started(result: Cycle) -> str:
    end = _moment(result.current_cycle_end)
    return f"Started a cycle: {_count(result.amount, 'credit')} until {end}, then renewed."


def _stopped(result: Cycle) -> str:
    end = _moment(result.current_cycle_end)
    return f"Stopped the cycle: its credits can be spent until {end}."


def _kind(cycle: CycleBalance) -> str:
    words = ", ".join(word for word in (cycle.cycle_type, cycle.status) if word)
    # An unknown word of the service may hold control characters.
    return words.encode("unicode_escape").decode("ascii")


def _balance(result: ActiveBalance) -> str:
    if not result.active_balance_by_cycle:
        return _count(result.active_balance, "credit")
    rows = [
        ("AMOUNT", "UNTIL", "CYCLE"),
        *(
            (str(cycle.amount), _moment(cycle.cycle_end), _kind(cycle))
            for cycle in sorted(result.active_balance_by_cycle, key=attrgetter("cycle_end"))
        ),
    ]
    amounts, moments, _ = (max(map(len, column)) for column in zip(*rows, strict=True))
    lines = [
        f"{amount:>{amounts}}  {moment:<{moments}}  {kind}".rstrip()
        for amount, moment, kind in rows
    ]
    return "\n".join([f"{_count(result.active_balance, 'credit')}:", *lines])


# Results and failures as JSON


def _to_json(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def _attempt(attempt: Attempt) -> dict[str, Any]:
    return {
        "number": attempt.number,
        "method": attempt.method,
        "path": attempt.path,
        "status": attempt.status,
        "event": attempt.event,
        "outcome": attempt.outcome.name,
        "error": attempt.error,
        "seconds": round(attempt.ended - attempt.started, 6),
    }


def _failure(error: CreduseError) -> dict[str, Any]:
    return {
        "outcome": error.outcome.name,
        "error": type(error).__name__,
        "message": str(error),
        "error_code": getattr(error, "error_code", None),
        "attempts": [_attempt(attempt) for attempt in error.attempts],
    }


@dataclass(frozen=True, slots=True)
class Command:
    """One of the five calls."""

    make: Callable[..., Call[Any]]
    parameters: tuple[str, ...]
    """The names of ``make``'s parameters, which the parsed arguments share."""
    help: str
    show_result: Callable[[Any], str]


COMMANDS: Final = {
    "balance": Command(
        CreduseProtocol.get_balance,
        ("end_user_id",),
        "show a user's credits and when they expire",
        _balance,
    ),
    "add": Command(
        CreduseProtocol.add,
        ("end_user_id", "amount", "validity_days", "idempotency_key"),
        "add credits",
        _added,
    ),
    "subtract": Command(
        CreduseProtocol.subtract,
        ("end_user_id", "amount", "idempotency_key"),
        "take credits: the whole amount or nothing",
        _subtracted,
    ),
    "start-cycle": Command(
        CreduseProtocol.start_cycle,
        ("end_user_id", "amount", "validity_days", "idempotency_key"),
        "add credits now and again in each cycle",
        _started,
    ),
    "stop-cycle": Command(
        CreduseProtocol.stop_cycle,
        ("end_user_id", "idempotency_key"),
        "stop the renewal of the cycle",
        _stopped,
    ),
}
"""The five calls, by their name on the command line."""


def show(stream: TextIO | None, text: str, *, plain: bool = False) -> None:
    """Print a line, or raise what the stream raises.

    ``stream`` is ``None`` if the parent process has closed it. ``plain``: without colours, as
    programs read it.
    """
    if stream is not None:
        print(_painted(stream, text, plain=plain), file=stream, flush=True)


def _painted(stream: TextIO, text: str, *, plain: bool) -> str:
    return paint(text) if not plain and has_colours(stream) else text


def write(stream: TextIO | None, text: str, *, plain: bool = False) -> None:
    """Print a line, and ignore failures: they must not change the exit status."""
    with suppress(Exception):
        show(stream, text, plain=plain)


def _write_at_once(stream: TextIO | None, text: str, *, plain: bool = False) -> None:
    """Print a line in a handler of signals, and ignore failures.

    The stream itself may be in use: what the handler has interrupted may be printing.
    """
    if stream is not None:
        with suppress(Exception):
            line = f"{_painted(stream, text, plain=plain)}\n"
            os.write(stream.fileno(), line.encode(errors="backslashreplace"))


def _show_attempt(attempt: Attempt, put: Callable[..., None] = write) -> None:
    seconds = attempt.ended - attempt.started
    put(
        sys.stderr,
        f"attempt {attempt.number}: {attempt.method} {attempt.path}: "
        f"{attempt.error or attempt.status} [{attempt.outcome}, {seconds:.3f} s]",
    )


def prepare(command: Command, arguments: argparse.Namespace) -> Callable[[], int]:
    """Check arguments and settings. Return a function that runs the call and returns its status.

    Once the call has begun, only its outcome decides the exit status.

    Raises:
        ValueError: An argument or a setting is wrong. Nothing was sent.
    """
    given = {name: getattr(arguments, name) for name in command.parameters}
    client = CreduseClient(
        base_url=arguments.base_url,
        timeout=arguments.timeout,
        # By its help, a key is only for a server that applies each key once.
        retry=RetryPolicy(server_replays=given.get("idempotency_key") is not None),
        on_attempt=_show_attempt if arguments.verbosity == VERBOSE else None,
    )
    call = command.make(client.protocol, **given)
    return partial(_make_call, command, client, call, arguments)


def _make_call(
    command: Command, client: CreduseClient, call: Call[Any], arguments: argparse.Namespace
) -> int:
    result = _run(client, call, arguments)
    if isinstance(result, CreduseError):
        return _show_failure(result, arguments)
    try:
        if arguments.json:
            show(sys.stdout, json.dumps(asdict(result), default=_to_json), plain=True)
        else:
            show(sys.stdout, command.show_result(result))
    except BrokenPipeError:
        pass  # the reader has all that it wants, as `head` has
    except Exception as error:  # noqa: BLE001 - only the outcome decides the exit status
        end = _ENDS[call.outcome]
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        advice = "" if arguments.verbosity == QUIET else end.advice
        write(sys.stderr, f"creduse: the result cannot be written: {reason}{advice}")
        return end.status
    return 0


def _run(client: CreduseClient, call: Call[Any], arguments: argparse.Namespace) -> Any:
    """Return the result or the error of a call."""
    try:
        _handle_interrupts(call, arguments)
        with client:
            return client.run(call)
    except CreduseError as error:
        return error
    except KeyboardInterrupt:
        return _ended_by(Interrupted, "interrupted", call)
    except Exception as error:  # noqa: BLE001 - only the outcome decides the exit status
        # Not the message: only the client's own messages are sure to omit the API key.
        return _ended_by(UnexpectedError, f"ended by {type(error).__name__}", call)


def _ended_by(kind: type[CreduseError], reason: str, call: Call[Any]) -> CreduseError:
    message = f"{reason}: {_ENDS[call.outcome].interrupted}"
    return kind(message, outcome=call.outcome, attempts=call.attempts)


def _handle_interrupts(call: Call[Any], arguments: argparse.Namespace) -> None:
    """Let Ctrl-C end the call. Once it has ended, ignore Ctrl-C, so that the command shows its end."""
    given = signal.getsignal(signal.SIGINT)
    if not callable(given):
        return  # SIG_IGN or SIG_DFL

    def handle(number: int, frame: FrameType | None) -> None:
        if not call.state.live:
            return
        if given is exit_at_once:
            os._exit(_abandon(call, arguments))
        given(number, frame)

    with suppress(ValueError):  # only the main thread sets handlers
        signal.signal(signal.SIGINT, handle)


def _abandon(call: Call[Any], arguments: argparse.Namespace) -> int:
    """End a call in a handler of signals, show that, and return the exit status.

    Nothing is raised, because Python prints what is raised in a finalizer, and goes on.
    """
    before = len(call.attempts)
    call.abandon(time.monotonic())  # the clock of the client
    if arguments.verbosity == VERBOSE:
        for attempt in call.attempts[before:]:
            _show_attempt(attempt, _write_at_once)
    return _show_failure(_ended_by(Interrupted, "interrupted", call), arguments, _write_at_once)


def _show_failure(
    error: CreduseError, arguments: argparse.Namespace, put: Callable[..., None] = write
) -> int:
    end = _ENDS[error.outcome]
    if arguments.json:
        put(sys.stdout, json.dumps(_failure(error)), plain=True)
    else:
        advice = "" if arguments.verbosity == QUIET else end.advice
        put(sys.stderr, f"creduse: {error}{advice}")
    if isinstance(error, Interrupted) and error.outcome is Outcome.NOT_APPLIED:
        return INTERRUPTED
    # Without an attempt, nothing was sent.
    event = EVENTS[error.attempts[-1].event if error.attempts else "not_sent"]
    return end.status_if_transient if event.transient else end.status
