"""The five calls on the command line: what each takes, and how its end is told.

The key comes from the environment alone. Texts, JSON and exit statuses live here; flags and their
help must not.
"""

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime
from operator import attrgetter
from typing import Any, Final, TextIO

from creduse_core import (
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
from creduse_httpx import CreduseClient

STATUSES: Final = {
    0: "done",
    1: "not applied: refused, or not sent; for balance, any failure",
    2: "wrong usage or settings; nothing was sent",
    3: "unknown: it may have been applied; read the balance before doing it again",
    4: "applied, but the answer could not be read or written; do not do it again",
    130: "interrupted (Ctrl-C), with nothing applied",
}
"""What each exit status means. Any other, such as a kill's, says no more than 3."""


class Interrupted(CreduseError):  # noqa: N818 - the user's wish
    """Ctrl-C came before the call had ended."""


@dataclass(frozen=True, slots=True)
class _End:
    """What there is to say of a failed call with this outcome."""

    status: int
    interrupted: str
    advice: str = ""


_ENDS: Final = {
    Outcome.NOT_APPLIED: _End(1, "nothing was applied"),
    Outcome.UNKNOWN: _End(
        3, "it may have been applied", "; read the balance before doing it again"
    ),
    Outcome.APPLIED: _End(4, "it was applied", "; do not do it again"),
}


# A result, as it is told to a person.


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _moment(moment: datetime) -> str:
    # In the zone that it came in: near the end of the calendar there may be no other.
    return f"{moment:%Y-%m-%d %H:%M:%S %Z}"


def _added(result: CreditsAdded) -> str:
    days = result.validity_days
    until = "" if days is None else f", valid for {_count(days, 'day')}"
    return f"Added {_count(result.amount, 'credit')}{until}."


def _subtracted(result: CreditsSubtracted) -> str:
    return f"Took {_count(result.amount, 'credit')}."


def _started(result: Cycle) -> str:
    end = _moment(result.current_cycle_end)
    return f"Started a cycle: {_count(result.amount, 'credit')} until {end}, then anew."


def _stopped(result: Cycle) -> str:
    end = _moment(result.current_cycle_end)
    return f"Stopped the cycle: what is left of it can be spent until {end}."


def _kind(cycle: CycleBalance) -> str:
    words = ", ".join(word for word in (cycle.cycle_type, cycle.status) if word)
    return words.encode("unicode_escape").decode("ascii")  # a word not known may hold anything


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


# And to a program.


def _plain(value: object) -> str:
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
    """One of the five."""

    make: Callable[..., Call[Any]]
    takes: tuple[str, ...]
    """The names of what it takes: ``make``'s, and the parsed arguments'."""
    help: str
    tell: Callable[[Any], str]


COMMANDS: Final = {
    "balance": Command(
        CreduseProtocol.get_balance,
        ("end_user_id",),
        "show what can be spent, and until when",
        _balance,
    ),
    "add": Command(
        CreduseProtocol.add,
        ("end_user_id", "amount", "validity_days", "idempotency_key"),
        "give credits, once",
        _added,
    ),
    "subtract": Command(
        CreduseProtocol.subtract,
        ("end_user_id", "amount", "idempotency_key"),
        "take credits, all of the amount or none",
        _subtracted,
    ),
    "start-cycle": Command(
        CreduseProtocol.start_cycle,
        ("end_user_id", "amount", "validity_days", "idempotency_key"),
        "give credits now, and anew in each cycle",
        _started,
    ),
    "stop-cycle": Command(
        CreduseProtocol.stop_cycle,
        ("end_user_id", "idempotency_key"),
        "do not renew the cycle at its end",
        _stopped,
    ),
}
"""By the name on the command line."""


def write(stream: TextIO | None, text: str) -> OSError | None:
    """Write a line, and give what kept it from being written, if anything did.

    ``stream`` is ``None`` where whoever started the command has closed it.
    """
    if stream is None:
        return None
    try:
        print(text, file=stream, flush=True)
    except OSError as error:
        # What is left in the buffer would fail again at exit, which has a status for that.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return error
    return None


def _show(attempt: Attempt) -> None:
    seconds = attempt.ended - attempt.started
    write(
        sys.stderr,
        f"attempt {attempt.number}: {attempt.method} {attempt.path}: "
        f"{attempt.error or attempt.status} [{attempt.outcome}, {seconds:.3f} s]",
    )


def run(command: Command, arguments: argparse.Namespace) -> int:
    """Make the call, tell its end, and give the exit status: one of `STATUSES`.

    Wrong arguments and settings are a ``ValueError``.
    """
    given = {name: getattr(arguments, name) for name in command.takes}
    client = CreduseClient(
        base_url=arguments.base_url,
        timeout=arguments.timeout,
        # Who gives a key says that it will be honoured.
        retry=RetryPolicy(server_replays=given.get("idempotency_key") is not None),
        on_attempt=_show if arguments.verbose else None,
    )
    call = command.make(client.protocol, **given)
    end = _drive(client, call)
    if isinstance(end, CreduseError):
        return _tell_failure(end, as_json=arguments.json)
    text = json.dumps(asdict(end), default=_plain) if arguments.json else command.tell(end)
    problem = write(sys.stdout, text)
    if problem is None or isinstance(problem, BrokenPipeError):  # its reader has seen enough
        return 0
    what = _ENDS[call.outcome]
    write(sys.stderr, f"creduse: the answer cannot be written: {problem.strerror}{what.advice}")
    return what.status


def _drive(client: CreduseClient, call: Call[Any]) -> Any:
    """Give the result of a call, or the error in which it ends."""
    try:
        try:
            with client:
                return client.run(call)
        except CreduseError as error:
            return error
        finally:
            # It has ended, and nothing must keep that from being told.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
    except KeyboardInterrupt:
        why = f"interrupted: {_ENDS[call.outcome].interrupted}"
        return Interrupted(why, outcome=call.outcome, attempts=call.attempts)


def _tell_failure(error: CreduseError, *, as_json: bool) -> int:
    end = _ENDS[error.outcome]
    if as_json:
        write(sys.stdout, json.dumps(_failure(error)))
    else:
        write(sys.stderr, f"creduse: {error}{end.advice}")
    if isinstance(error, Interrupted) and error.outcome is Outcome.NOT_APPLIED:
        return 130
    return end.status
