"""The five calls on the command line: their parameters, and how the command shows how they end.

It has the texts, JSON and exit statuses. The API key comes only from the environment. Flags and
their help texts (`__main__`) do not belong here.
"""

import argparse
import errno
import json
import operator
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import Any, Final, TextIO

from creduse_core import (
    EVENTS,
    Attempt,
    Call,
    CreduseError,
    CreduseProtocol,
    Cycle,
    Outcome,
    RetryPolicy,
)
from creduse_core.tables import counted, moment
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


class LostOutputError(Exception):
    """What the command was asked for cannot be written. The message says why."""


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


def opened(stream: TextIO | None) -> TextIO:
    """Return the stream, or raise an ``OSError`` if the parent process has closed it."""
    if stream is None:
        raise OSError(errno.EBADF, "standard output is closed")
    return stream


def show(text: str, *, plain: bool = False) -> None:
    """Print what the command was asked for. A reader who has left, as `head` has, wants no more.

    ``plain``: without colours, as programs read it.

    Raises:
        LostOutputError: It cannot be written.
    """
    try:
        _put(opened(sys.stdout), text, plain=plain)
    except BrokenPipeError:
        pass
    except Exception as error:
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        raise LostOutputError(f"cannot be written: {reason}") from error


def _put(stream: TextIO, text: str, *, plain: bool) -> None:
    # In one piece, since the sandbox's threads share the stream; `print` writes the end apart.
    stream.write(f"{_painted(stream, text, plain=plain)}\n")
    stream.flush()


def _painted(stream: TextIO, text: str, *, plain: bool) -> str:
    return paint(text) if not plain and has_colours(stream) else text


def write(stream: TextIO | None, text: str, *, plain: bool = False) -> None:
    """Print a line, and ignore failures: they must not change the exit status.

    ``stream`` is ``None`` if the parent process has closed it.
    """
    if stream is not None:
        with suppress(Exception):
            _put(stream, text, plain=plain)


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
            show(json.dumps(result.as_dict()), plain=True)
        else:
            show(command.show_result(result))
    except LostOutputError as error:
        end = _ENDS[call.outcome]
        advice = "" if arguments.verbosity == QUIET else end.advice
        write(sys.stderr, f"creduse: the result {error}{advice}")
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
    message = f"{call.record}: {reason}: {_ENDS[call.outcome].interrupted}"
    return kind(message, call.outcome, attempts=call.attempts, call=call.record)


def _handle_interrupts(call: Call[Any], arguments: argparse.Namespace) -> None:
    """Let Ctrl-C end the call. Once it has ended, ignore Ctrl-C, so that the command shows its end."""
    given = signal.getsignal(signal.SIGINT)
    if not callable(given):
        return  # SIG_IGN or SIG_DFL

    def handle(number: int, frame: FrameType | None) -> None:
        if call.state.live and given is not exit_at_once:
            given(number, frame)
        else:
            # Handlers nest while signals come faster than they end, until Python raises
            # RecursionError. This one does nothing, and it is a C function: no signal interrupts it.
            signal.signal(signal.SIGINT, operator.is_)
            if call.state.live:
                os._exit(_abandon(call, arguments))

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
        put(sys.stdout, json.dumps(error.as_dict()), plain=True)
    else:
        advice = "" if arguments.verbosity == QUIET else end.advice
        put(sys.stderr, f"creduse: {error}{advice}")
    if isinstance(error, Interrupted) and error.outcome is Outcome.NOT_APPLIED:
        return INTERRUPTED
    # Without an attempt, nothing was sent.
    event = EVENTS[error.attempts[-1].event if error.attempts else "not_sent"]
    return end.status_if_transient if event.transient else end.status
