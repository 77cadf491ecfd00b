"""The five calls on the command line: their parameters, and how the command shows how they end.

It has the texts, JSON and exit statuses. The API key comes only from the environment. Flags and
their help texts (`__main__`) do not belong here.
"""

import argparse
import json
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import Any, Final, TextIO

from creduse_core import (
    Attempt,
    Call,
    CreduseError,
    CreduseProtocol,
    Cycle,
    Outcome,
    RetryPolicy,
)
from creduse_core.tables import counted, moment
from creduse_httpx import CreduseClient

STATUSES: Final = {
    0: "done",
    1: "not applied: refused, or not sent; for balance, any failure",
    2: "wrong usage or settings; nothing was sent",
    3: "unknown: it may have been applied; find out whether it was before doing it again",
    4: "applied, but the response could not be read or written; do not do it again",
    130: "interrupted (Ctrl-C); nothing was applied",
}
"""What each exit status means. Any other status, such as after a kill, means the same as 3."""


class Interrupted(CreduseError):  # noqa: N818 - the user asked for it
    """Ctrl-C interrupted the call."""


class UnexpectedError(CreduseError):
    """The call raised an exception that is not the client's, such as a signal handler's."""


@dataclass(frozen=True, slots=True)
class _End:
    """The exit status and the texts for a failed call with one outcome."""

    status: int
    interrupted: str
    advice: str = ""


_ENDS: Final = {
    Outcome.NOT_APPLIED: _End(1, "nothing was applied"),
    Outcome.UNKNOWN: _End(
        3, "it may have been applied", "; find out whether it was before doing it again"
    ),
    Outcome.APPLIED: _End(4, "it was applied", "; do not do it again"),
}


# Results as text, where the command says it otherwise than the result itself


def _started(result: Cycle) -> str:
    end = moment(result.current_cycle_end)
    return f"Started a cycle: {counted(result.amount, 'credit')} until {end}, then renewed."


def _stopped(result: Cycle) -> str:
    end = moment(result.current_cycle_end)
    return f"Stopped the cycle: its credits can be spent until {end}."


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
        str,
    ),
    "add": Command(
        CreduseProtocol.add,
        ("end_user_id", "amount", "validity_days", "idempotency_key"),
        "add credits",
        str,
    ),
    "subtract": Command(
        CreduseProtocol.subtract,
        ("end_user_id", "amount", "idempotency_key"),
        "take credits: the whole amount or nothing",
        str,
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


def show(stream: TextIO | None, text: str) -> None:
    """Print a line, or raise what the stream raises.

    ``stream`` is ``None`` if the parent process has closed it.
    """
    if stream is not None:
        print(text, file=stream, flush=True)


def write(stream: TextIO | None, text: str) -> None:
    """Print a line, and ignore failures: they must not change the exit status."""
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
        on_attempt=_show_attempt if arguments.verbose else None,
    )
    call = command.make(client.protocol, **given)
    return partial(_make_call, command, client, call, as_json=arguments.json)


def _make_call(command: Command, client: CreduseClient, call: Call[Any], *, as_json: bool) -> int:
    result = _run(client, call)
    if isinstance(result, CreduseError):
        return _show_failure(result, as_json=as_json)
    try:
        if as_json:
            show(sys.stdout, json.dumps(result.as_dict()))
        else:
            show(sys.stdout, command.show_result(result))
    except BrokenPipeError:
        pass  # the reader has all that it wants, as `head` has
    except Exception as error:  # noqa: BLE001 - only the outcome decides the exit status
        end = _ENDS[call.outcome]
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        write(sys.stderr, f"creduse: the result cannot be written: {reason}{end.advice}")
        return end.status
    return 0


def _run(client: CreduseClient, call: Call[Any]) -> Any:
    """Return the result or the error of a call."""
    kind: type[CreduseError]
    _ignore_interrupts_after(call)
    try:
        with client:
            return client.run(call)
    except CreduseError as error:
        return error
    except KeyboardInterrupt:
        kind, reason = Interrupted, "interrupted"
    except Exception as error:  # noqa: BLE001 - only the outcome decides the exit status
        # Not the message: only the client's own messages are sure to omit the API key.
        kind, reason = UnexpectedError, f"ended by {type(error).__name__}"
    message = f"{reason}: {_ENDS[call.outcome].interrupted}"
    return kind(message, outcome=call.outcome, attempts=call.attempts)


def _ignore_interrupts_after(call: Call[Any]) -> None:
    """Ignore Ctrl-C once the call has ended, so that the command always shows its end."""
    handler = signal.getsignal(signal.SIGINT)
    if not callable(handler):
        return  # SIG_IGN or SIG_DFL

    def handle(number: int, frame: FrameType | None) -> None:
        if call.state.live:
            handler(number, frame)

    with suppress(ValueError):  # only the main thread sets handlers
        signal.signal(signal.SIGINT, handle)


def _show_failure(error: CreduseError, *, as_json: bool) -> int:
    end = _ENDS[error.outcome]
    if as_json:
        write(sys.stdout, json.dumps(error.as_dict()))
    else:
        write(sys.stderr, f"creduse: {error}{end.advice}")
    if isinstance(error, Interrupted) and error.outcome is Outcome.NOT_APPLIED:
        return 130
    return end.status
