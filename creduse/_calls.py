"""The five calls on the command line: what each takes, and how its end is told.

The key comes from the environment alone. Texts, JSON and exit statuses live here; flags and their
help must not.
"""

import argparse
import json
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import partial
from operator import attrgetter
from types import FrameType
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
    4: "applied, but the response could not be read or written; do not do it again",
    130: "interrupted (Ctrl-C), with nothing applied",
}
"""What each exit status means. Any other, such as a kill's, says no more than 3."""


class Interrupted(CreduseError):  # noqa: N818 - the user's wish
    """Ctrl-C came before the call had ended."""


class UnexpectedError(CreduseError):
    """Something else than the call raised an exception, such as a signal handler of the program."""


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


def show(stream: TextIO | None, text: str) -> None:
    """Write a line, or raise what the stream raises.

    ``stream`` is ``None`` where whoever started the command has closed it.
    """
    if stream is not None:
        print(text, file=stream, flush=True)


def write(stream: TextIO | None, text: str) -> None:
    """Write a line if the stream accepts it. Whether it does must not change the exit status."""
    with suppress(Exception):
        show(stream, text)


def _show_attempt(attempt: Attempt) -> None:
    seconds = attempt.ended - attempt.started
    write(
        sys.stderr,
        f"attempt {attempt.number}: {attempt.method} {attempt.path}: "
        f"{attempt.error or attempt.status} [{attempt.outcome}, {seconds:.3f} s]",
    )


def prepare(command: Command, arguments: argparse.Namespace) -> Callable[[], int]:
    """Check arguments and settings. Return what makes the call and returns one of `STATUSES`.

    Raise ``ValueError`` if they are wrong: then nothing has been sent. Once the call has begun, its
    outcome decides the exit status, whatever is raised.
    """
    given = {name: getattr(arguments, name) for name in command.takes}
    client = CreduseClient(
        base_url=arguments.base_url,
        timeout=arguments.timeout,
        # Who gives a key says that it will be honoured.
        retry=RetryPolicy(server_replays=given.get("idempotency_key") is not None),
        on_attempt=_show_attempt if arguments.verbose else None,
    )
    call = command.make(client.protocol, **given)
    return partial(_make_call, command, client, call, as_json=arguments.json)


def _make_call(command: Command, client: CreduseClient, call: Call[Any], *, as_json: bool) -> int:
    end = _drive(client, call)
    if isinstance(end, CreduseError):
        return _tell_failure(end, as_json=as_json)
    try:
        show(sys.stdout, json.dumps(asdict(end), default=_plain) if as_json else command.tell(end))
    except BrokenPipeError:
        pass  # its reader has seen enough
    except Exception as error:  # noqa: BLE001 - the outcome decides, whatever went wrong afterwards
        what = _ENDS[call.outcome]
        why = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        write(sys.stderr, f"creduse: the result cannot be written: {why}{what.advice}")
        return what.status
    return 0


def _drive(client: CreduseClient, call: Call[Any]) -> Any:
    """Return the result of a call, or the error in which it ends."""
    kind: type[CreduseError]
    _interrupt_no_longer_than(call)
    try:
        with client:
            return client.run(call)
    except CreduseError as error:
        return error
    except KeyboardInterrupt:
        kind, why = Interrupted, "interrupted"
    except Exception as error:  # noqa: BLE001 - the outcome decides, whatever was raised
        # Its words are not the client's, which takes out the API key.
        kind, why = UnexpectedError, f"ended by {type(error).__name__}"
    why = f"{why}: {_ENDS[call.outcome].interrupted}"
    return kind(why, outcome=call.outcome, attempts=call.attempts)


def _interrupt_no_longer_than(call: Call[Any]) -> None:
    """Ignore Ctrl-C once the call has ended, so that nothing keeps its end from being told."""
    handler = signal.getsignal(signal.SIGINT)
    if not callable(handler):
        return  # Ctrl-C is ignored, or left to the system

    def handle(number: int, frame: FrameType | None) -> None:
        if call.state.live:
            handler(number, frame)

    with suppress(ValueError):  # only the main thread sets handlers
        signal.signal(signal.SIGINT, handle)


def _tell_failure(error: CreduseError, *, as_json: bool) -> int:
    end = _ENDS[error.outcome]
    if as_json:
        write(sys.stdout, json.dumps(_failure(error)))
    else:
        write(sys.stderr, f"creduse: {error}{end.advice}")
    if isinstance(error, Interrupted) and error.outcome is Outcome.NOT_APPLIED:
        return 130
    return end.status
