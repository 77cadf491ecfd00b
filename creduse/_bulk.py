"""``creduse bulk``: its parsers, and how it shows a run. What a run does (`creduse_bulk`) is not here.

Its messages name files and show their values, unlike those of the other commands. So it removes the API
key from all that it writes.
"""

import argparse
import asyncio
import json
import os
import re
import select
import shlex
import signal
import socket
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from textwrap import fill
from typing import Any, Final, NamedTuple, TextIO
from uuid import UUID

import anyio

from creduse_bulk import InputError, Progress, Shard, report, status
from creduse_bulk._driver import Settings
from creduse_bulk._follow import Follower, endless_settings
from creduse_bulk._input import COLUMNS
from creduse_bulk._probe import Findings, from_json, probe, to_json
from creduse_bulk._report import STATES
from creduse_bulk._resolve import Decision, Resolution
from creduse_bulk._run import Run
from creduse_bulk._sending import CONCURRENCY, Sends, Stop, check_settings, make_client
from creduse_core import AsyncCoreClient, CreduseError, Evidence
from creduse_core.arguments import checked_user_id
from creduse_core.secret import Secret
from creduse_journal import Change, InUseError, JournalError, UnavailableError
from creduse_journal.urls import is_url, without_password

from ._arguments import QUIET, add_flags, decimal_number, whole_number
from ._calls import opened, write

STATUSES: Final = {
    0: "all lines are applied",
    1: "some were refused, all others are applied",
    2: "wrong usage, settings or file; this run sent nothing",
    3: "some are unclear, or wait for these: see creduse bulk resolve",
    75: "some can be sent, now or later: the same command goes on",
}
"""What each exit status of a run means."""
_OF_FOLLOW: Final = {
    0: "a signal has stopped it",
    2: "wrong usage or settings; nothing was sent",
    75: "another process follows, or the database or the service fails: try again",
}
_OF_REPORT: Final = {
    0: "the report was printed",
    2: "wrong usage or file, or the report cannot be written",
}
_OF_PROBE: Final = {
    0: "the service keeps balances as resolve --findings needs",
    1: "it does not, or a call failed; the user may keep a few credits",
    2: "wrong usage or settings; nothing was sent",
}


class _Method(NamedTuple):
    """A method whose calls a run can make."""

    help: str
    columns: str
    question: str
    """What the command asks before it sends anything."""


_COLUMNS: Final = "end_user_id, amount, and validity_days (31 if it is empty or missing)"
_METHODS: Final[Mapping[str, _Method]] = {
    "add": _Method("add credits", _COLUMNS, "Add these credits?"),
    "subtract": _Method(
        "take credits: each amount whole or not at all",
        "end_user_id and amount",
        "Take these credits?",
    ),
    "start-cycle": _Method(
        "add credits now and again in each cycle", _COLUMNS, "Start these cycles?"
    ),
    "stop-cycle": _Method("stop the renewal of cycles", "end_user_id", "Stop these cycles?"),
}
_OTHER_COMMANDS: Final = {
    "status FILE": "show how far a run is",
    "report FILE": "print the file with what became of each line",
    "resolve FILE": "find out about unclear lines, and decide",
    "probe USER": "find out how the service keeps balances, for resolve",
    "follow": "make the calls that apps insert into PostgreSQL",
}
_SETTLED: Final = {Change.SETTLE_APPLIED: "applied", Change.SETTLE_FREE: "not applied"}
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
BETWEEN_LINES: Final = 10.0
"""Seconds between two lines of progress where there is no terminal."""


# Arguments


def _duration(text: str) -> float:
    found = re.fullmatch(r"([0-9]{1,6})([smhd])", text)
    if found is None:
        raise argparse.ArgumentTypeError("it must be a whole number and s, m, h or d, such as 2h")
    return int(found[1]) * _UNITS[found[2]]


def _shard(text: str) -> Shard:
    found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise argparse.ArgumentTypeError("it must be one of 1/S to S/S, such as 2/4")
    return Shard(int(found[1]), int(found[2]))


def _journal(text: str) -> str:
    try:
        is_url(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _text(*parts: str) -> str:
    """Return paragraphs for argparse, which does not wrap them beside tables."""
    return "\n\n".join(fill(part, 78) for part in parts)


def _epilog(statuses: Mapping[int, str], *more: str) -> str:
    lines = (f"  {status:<4} {meaning}" for status, meaning in statuses.items())
    return "\n".join(["exit status:", *lines, *more, "", "environment: see creduse --help"])


_EPILOG: Final = _epilog(
    STATUSES, "  Any other status, such as after a kill, means the same as 75."
)
_SEE: Final = "exit statuses: see creduse bulk --help; environment: see creduse --help"
_URL: Final = "postgresql://user@host/database"
_EXAMPLES: Final = {
    **{name: f"{name} june.csv" for name in _METHODS},
    "status": "status june.csv",
    "report": "report june.csv --only refused",
    "resolve": "resolve june.csv",
    "probe": "probe 12345678-1234-5678-1234-567812345678",
    "follow": f"follow --journal {_URL}",
}


def add_parsers(commands: Any) -> None:
    """Add the parser of ``bulk``, and those of its own commands."""
    helps = {f"{name} FILE": method.help for name, method in _METHODS.items()} | _OTHER_COMMANDS
    table = "\n".join(f"  {name:<18} {text}" for name, text in helps.items())
    what = _text(
        "Make one call for each line of a file, each at most once. The same command again goes on "
        "where an earlier one stopped."
    )
    bulk = commands.add_parser(
        "bulk",
        usage="creduse bulk [-h] COMMAND ...",
        description=f"{what}\n\ncommands:\n{table}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=_EPILOG,
    )
    add_flags(bulk, "quiet", "json", "base_url", "timeout")
    parsers = bulk.add_subparsers(prog="creduse bulk", metavar="COMMAND", help=argparse.SUPPRESS)

    def no_command(_: argparse.Namespace) -> Any:
        choices = ", ".join(parsers.choices)
        raise ValueError(f"no command; choose one of {choices} (see creduse bulk --help)")

    bulk.set_defaults(prepare=no_command)
    for name, method in _METHODS.items():
        _add_sending(parsers, name, method)
    _add_reading(parsers)
    _add_resolve(parsers)
    _add_probe(parsers)
    _add_follow(parsers)


def _add(
    parsers: Any,
    name: str,
    description: str,
    prepare: Callable[..., Any],
    epilog: str = _SEE,
) -> Any:
    parser = parsers.add_parser(
        name,
        description=_text(description),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"example:\n  creduse bulk {_EXAMPLES[name]}\n\n{epilog}",
    )
    parser.set_defaults(prepare=prepare)
    return parser


def _add_file(parser: Any) -> None:
    parser.add_argument("file", metavar="FILE", help="CSV with a header, or JSON Lines")
    parser.add_argument(
        "--journal",
        metavar="WHERE",
        type=_journal,
        help=(
            "the journal: a file (default: FILE.journal, beside the file), or the URL of a PostgreSQL "
            f"database, such as {_URL}"
        ),
    )
    _add_shard(parser)


def _add_shard(parser: Any) -> None:
    parser.add_argument(
        "--shard", metavar="K/S", type=_shard, help="only part K of S; a user is always in one part"
    )


def _add_yes(parser: Any) -> None:
    parser.add_argument("--yes", action="store_true", help="do not ask")


def _add_sending(parsers: Any, name: str, method: _Method) -> None:
    parser = _add(
        parsers,
        name,
        f"For each line of the file, {method.help}. Its columns are {method.columns}. If it has a "
        "column id, no two lines may have the same one.",
        partial(_prepare_sending, name),
    )
    _add_file(parser)
    _add_yes(parser)
    _add_speed(parser)
    add_flags(parser, "quiet", "json", "base_url", "timeout")


def _add_speed(parser: Any) -> None:
    parser.add_argument(
        "--concurrency",
        type=whole_number,
        default=CONCURRENCY,
        metavar="N",
        help=(
            "calls in flight at once, at most 100 (default: %(default)s); after a kill, at most "
            "three times as many are unclear"
        ),
    )
    parser.add_argument("--rate", type=decimal_number, metavar="N", help="at most N calls a second")
    parser.add_argument(
        "--balance-first",
        action="store_true",
        help="read each balance before; without it, nothing can be proved about a subtraction",
    )


def _add_follow(parsers: Any) -> None:
    parser = _add(
        parsers,
        "follow",
        "Make the calls that apps insert into the table creduse_entries, each at most once, until a "
        "signal stops it.",
        _prepare_follow,
        _epilog(_OF_FOLLOW),
    )
    parser.add_argument(
        "--journal",
        metavar="URL",
        required=True,
        help=f"the PostgreSQL database, such as {_URL}",
    )
    _add_shard(parser)
    _add_speed(parser)
    add_flags(parser, "quiet", "json", "base_url", "timeout")


def _add_reading(parsers: Any) -> None:
    status = _add(parsers, "status", "Show how far a run is. It may be going on.", _prepare_status)
    _add_file(status)
    add_flags(status, "quiet", "json")
    report = _add(
        parsers,
        "report",
        "Print the columns of the file and what became of each line: line, state (applied, refused, "
        "unclear, waiting), outcome, event, status, error_code, evidence.",
        _prepare_report,
        _epilog(_OF_REPORT),
    )
    _add_file(report)
    report.add_argument("--only", choices=sorted(set(STATES.values())), help="only these lines")
    add_flags(report, "quiet")


def _add_resolve(parsers: Any) -> None:
    parser = _add(
        parsers,
        "resolve",
        "Read the balance of each user with an unclear line, and show what it proves. Without "
        "--findings or --decisions, nothing is decided.",
        _prepare_resolve,
    )
    _add_file(parser)
    _add_yes(parser)
    parser.add_argument(
        "--findings",
        metavar="PATH",
        help="the output of creduse bulk probe: lines that are proved to be applied are settled so",
    )
    parser.add_argument(
        "--settled-after",
        type=_duration,
        metavar="TIME",
        help=(
            "such as 1d: lines that are proved not to be applied, and were sent longer ago, are "
            "sent again by the next run"
        ),
    )
    parser.add_argument(
        "--decisions",
        metavar="PATH",
        help="a report with a column decision: applied, not_applied or empty",
    )
    parser.add_argument("--note", metavar="TEXT", help="for --decisions: who decides, and why")
    add_flags(parser, "quiet", "base_url", "timeout")


def _add_probe(parsers: Any) -> None:
    parser = _add(
        parsers,
        "probe",
        "Find out, with a new user, how the service keeps balances: add, subtract, start and stop a "
        "cycle, and read. Prints JSON for resolve --findings.",
        _prepare_probe,
        _epilog(_OF_PROBE),
    )
    parser.add_argument("end_user_id", metavar="USER", help="a UUID that no real user has")
    _add_yes(parser)
    add_flags(parser, "quiet", "base_url", "timeout")


# Output


def _secret() -> Secret:
    """Return the API key. The command gets it from the environment alone."""
    return Secret(os.environ.get("CREDUSE_API_KEY", "").strip())


def _tell(stream: TextIO | None, text: str, *, plain: bool = False) -> None:
    """Print lines without the API key, which a file and its name can hold. Ignore failures."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    shown = _secret().redact(text).encode(encoding, "backslashreplace").decode(encoding)
    write(stream, shown, plain=plain)


def _print(lines: Iterable[str], what: str) -> bool:
    """Print what a program can read, without the API key. Return whether that was possible."""
    secret = _secret()
    try:
        stream = opened(sys.stdout)
        for line in lines:
            print(secret.redact(line), file=stream)
        print(end="", file=stream, flush=True)
    except BrokenPipeError:
        pass  # the reader has all that it wants, as `head` has
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        _tell(sys.stderr, f"creduse: the {what} cannot be written: {reason}")
        return False
    return True


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _as_json(progress: Progress, **more: int) -> str:
    return json.dumps(asdict(progress) | {"waiting": progress.waiting} | more)


def _counts(progress: Progress, noun: str = "line") -> str:
    counts = {
        "applied": progress.applied,
        "refused": progress.refused,
        "unclear": progress.unclear,
        "in flight": progress.in_flight,
        "waiting": progress.waiting,
    }
    parts = [f"{count:,} {name}" for name, count in counts.items() if count or name == "applied"]
    return f"{_count(progress.items, noun)}: {', '.join(parts)}"


def _show(arguments: argparse.Namespace, progress: Progress) -> int:
    """Print how far a run is, and what to do next. Return the exit status."""
    status = progress.exit_status
    if getattr(arguments, "json", False):
        _tell(sys.stdout, _as_json(progress, exit_status=status), plain=True)
        return status
    lines = [_counts(progress)]
    if arguments.verbosity == QUIET:
        _tell(sys.stdout, lines[0])
        return status
    if progress.is_going_on:
        _tell(sys.stdout, f"{lines[0]}\nThe run is going on.")
        return status
    if progress.refused:
        lines.append(f"The refused ones: {_again(arguments, 'report')} --only refused")
    if progress.unclear:
        lines.append(_about_unclear(arguments))
    if status == 75 and not progress.in_flight:
        lines.append("To go on: send the file again, with the command that began")
    _tell(sys.stdout, "\n".join(lines))
    return status


def _about_unclear(arguments: argparse.Namespace) -> str:
    if arguments.prepare is _prepare_resolve:
        return "To decide about the unclear ones: --findings or --decisions, see creduse bulk resolve --help"
    return f"To find out about the unclear ones: {_again(arguments, 'resolve')}"


def _show_end(arguments: argparse.Namespace, progress: Progress) -> int:
    """Print why a run has stopped, too."""
    if progress.stopped is not None and progress.exit_status:
        _tell(sys.stderr, f"creduse: stopped: {progress.stopped}")
    return _show(arguments, progress)


def _again(arguments: argparse.Namespace, command: str) -> str:
    """Return a command about the same run."""
    journal = arguments.journal and without_password(arguments.journal)
    flags = {"--journal": journal, "--shard": arguments.shard}
    if command == "resolve":
        flags["--base-url"] = getattr(arguments, "base_url", None)
    rest = [part for name, value in flags.items() if value for part in (name, str(value))]
    return shlex.join(["creduse", "bulk", command, arguments.file, *rest])


# Progress


def _show_nothing(_: Progress) -> None: ...


@contextmanager
def _display(run: Run, *, quiet: bool) -> Generator[Callable[[Progress], None]]:
    """Show progress while a run goes on: a bar on a terminal, else a line now and then."""
    if quiet:
        yield _show_nothing
        return
    done = 0 if run.before is None else _done(run.before)
    is_terminal = sys.stderr is not None and sys.stderr.isatty()
    bar_class = _find_bar() if is_terminal else None
    if bar_class is None:
        yield Lines(done, 1.0 if is_terminal else BETWEEN_LINES).show
        return
    # What was done before is not part of the rate. Each report redraws the bar: a run makes few.
    with bar_class(
        total=run.items,
        initial=done,
        unit=" lines",
        dynamic_ncols=True,
        leave=False,
        mininterval=0,
        miniters=0,
    ) as bar:
        yield partial(_show_bar, bar)


def _find_bar() -> Any:
    """Return the class of bars, or ``None`` if it is not installed."""
    try:
        from tqdm import tqdm  # noqa: PLC0415 - the extra "bulk" has it
    except ImportError:
        return None
    return tqdm


def _done(progress: Progress) -> int:
    return progress.applied + progress.refused + progress.unclear


def _show_bar(bar: Any, progress: Progress) -> None:
    failed = {"refused": progress.refused, "unclear": progress.unclear}
    counts = ", ".join(f"{count:,} {name}" for name, count in failed.items() if count)
    bar.set_postfix_str(_secret().redact(_held(progress) or counts), refresh=False)
    bar.update(_done(progress) - bar.n)


def _held(progress: Progress) -> str | None:
    """Return why nothing is sent at the moment, or ``None``."""
    if progress.stopped is None or not progress.in_flight:
        return progress.pause
    responses = _count(progress.in_flight, "response")
    return f"stopping: waits for {responses}; without them, these are unclear"


class Lines:
    """Writes a line of progress every ``between`` seconds at most, and one when sending pauses.

    ``has_end=False``: write nothing while no call ends.
    """

    def __init__(
        self, done: int, between: float, *, has_end: bool = True, beginning: str | None = None
    ) -> None:
        self._between = between
        self._at = time.monotonic()
        self._done: int = done
        self._has_end = has_end
        self._beginning = beginning
        self._was_held = False

    def show(self, progress: Progress) -> None:
        """Write a line if it is time."""
        if self._beginning is not None:
            _tell(sys.stderr, self._beginning)
            self._beginning = None
        now, done, held = time.monotonic(), _done(progress), _held(progress)
        passed, is_news = now - self._at, bool(held) and not self._was_held
        self._was_held = bool(held)
        if not is_news and (
            passed < self._between or (not self._has_end and done == self._done and not held)
        ):
            return
        rate = (done - self._done) / passed
        self._at, self._done = now, done
        left = f"; about {_time(progress.waiting / rate)} left" if rate and self._has_end else ""
        what = held or f"{rate:,.0f} a second{left}"
        _tell(sys.stderr, f"{_counts(progress, 'line' if self._has_end else 'call')}; {what}")


def _time(seconds: float) -> str:
    unit, length = next(
        ((name, size) for name, size in (("h", 3600), ("min", 60)) if seconds >= 2 * size), ("s", 1)
    )
    return f"{seconds / length:.0f} {unit}"


# Commands. Each first checks arguments and settings, and returns what does the work.


def _client(arguments: argparse.Namespace) -> AsyncCoreClient:
    return make_client(api_key=None, base_url=arguments.base_url, timeout=arguments.timeout)


def _place(arguments: argparse.Namespace) -> dict[str, Any]:
    return {"journal": arguments.journal, "shard": arguments.shard}


def _guarded(act: Callable[[], int]) -> Callable[[], int]:
    """Return a function that shows warnings, and errors of files and journals."""

    def warn(message: Warning | str, *_: Any, **__: Any) -> None:
        _tell(sys.stderr, f"creduse: warning: {message}")

    def run() -> int:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("always", UserWarning)
                warnings.showwarning = warn
                return act()
        except (ImportError, InputError, JournalError) as error:
            _tell(sys.stderr, f"creduse: {error}")
            return 75 if isinstance(error, InUseError | UnavailableError) else 2

    return run


def _agrees(arguments: argparse.Namespace, question: str, otherwise: str) -> bool:
    """Ask, unless ``--yes`` was given. ``otherwise`` is what a refusal means."""
    if arguments.yes:
        return True
    if not all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stderr)):
        raise InputError(f"{question} Nobody can be asked here: pass --yes")
    reply = ""
    try:
        with suppress(OSError, UnicodeError):  # the terminal has gone, or it is no text
            sys.stderr.write(f"{_secret().redact(question)} [y/N] ")
            sys.stderr.flush()
            _wait_for_line(sys.stdin)
            reply = sys.stdin.readline()
    finally:
        if not reply.endswith("\n"):  # Ctrl-C and Ctrl-D leave the cursor behind the question
            write(sys.stderr, "")
    if reply.strip().lower() in {"y", "yes"}:
        return True
    write(sys.stderr, otherwise)
    return False


def _wait_for_line(stream: TextIO) -> None:
    """Wait until a line can be read or a signal has come.

    Python looks for signals before it reads, and one between the two would wait for the line.
    """
    woken, waker = socket.socketpair()
    # ValueError: only the main thread can be woken. OSError: Windows selects only sockets.
    with woken, waker, suppress(OSError, ValueError):
        waker.settimeout(0)
        before = signal.set_wakeup_fd(waker.fileno())
        try:
            select.select([stream.fileno(), woken.fileno()], [], [])
        finally:
            signal.set_wakeup_fd(before)


def _prepare_sending(name: str, arguments: argparse.Namespace) -> Callable[[], int]:
    check_settings(arguments.concurrency, arguments.rate)
    return _guarded(partial(_send, name, arguments, _client(arguments)))


def _send(name: str, arguments: argparse.Namespace, client: AsyncCoreClient) -> int:
    method, is_quiet = name.replace("-", "_"), arguments.verbosity == QUIET
    with Run(client.protocol, method, arguments.file, **_place(arguments)) as run:
        if run.before is None:
            where, first = client.protocol.base_url, arguments.balance_first
            if not (is_quiet and arguments.yes):  # nobody can agree without it
                overview = _overview(run, method, arguments.file, where, balance_first=first)
                _tell(sys.stderr, overview)
            if not _agrees(arguments, _METHODS[name].question, "Nothing was sent."):
                return 2
        elif not is_quiet:
            _tell(sys.stderr, f"{arguments.file}: going on. {_counts(run.before)}")
        progress = _send_all(arguments, client, run)
    if progress is None:
        return 75
    return _show_end(arguments, progress)


def _overview(run: Run, method: str, file: str, base_url: str, *, balance_first: bool) -> str:
    found = run.overview
    assert found is not None  # noqa: S101 - the run is new
    what = f"{_count(found.items, 'line')} for {_count(found.users, 'user')}"
    if "amount" in COLUMNS[method]:
        what = f"{what}, {_count(found.total, 'credit')}"
    shown = [f"{file}: {what}", f"to {base_url}"]
    if found.ignored:
        shown.append(f"columns that are not used: {', '.join(found.ignored)}")
    if method in {"subtract", "stop_cycle"} and not balance_first:
        shown.append("without --balance-first, balances prove little if a response is lost")
    return "\n".join(shown)


def _send_all(arguments: argparse.Namespace, client: AsyncCoreClient, run: Run) -> Progress | None:
    """Send what is waiting. Return ``None`` if the journal fails once something may have been sent."""
    settings = Settings(arguments.concurrency, arguments.rate, arguments.balance_first)
    with _display(run, quiet=arguments.verbosity == QUIET) as display:
        return _send_until_signal(client, run, settings, display)


def _send_until_signal(
    client: AsyncCoreClient, what: Sends, settings: Settings, display: Callable[[Progress], None]
) -> Progress | None:
    """Send until a signal stops it. Return ``None`` if the journal fails meanwhile."""
    stop, has_begun = Stop(), False

    def on_progress(progress: Progress) -> None:
        nonlocal has_begun
        has_begun = True
        display(progress)

    async def main() -> Progress:
        _handle_signals(stop.handler(asyncio.get_running_loop()))
        async with client:
            return await what.send_until(stop, client, settings, on_progress)

    try:
        return anyio.run(main)
    except JournalError as error:
        if not has_begun:
            raise
        _tell(sys.stderr, f"creduse: stopped: {error}")
        return None
    finally:
        _handle_signals(signal.SIG_IGN)  # how far it came is always shown


def _handle_signals(handler: Any) -> None:
    """Handle Ctrl-C and SIGTERM until the command ends."""
    with suppress(ValueError):  # only the main thread sets handlers
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, handler)


def _prepare_follow(arguments: argparse.Namespace) -> Callable[[], int]:
    settings = endless_settings(
        arguments.concurrency, arguments.rate, balance_first=arguments.balance_first
    )
    follower = Follower(arguments.journal, arguments.shard)
    return _guarded(partial(_follow, arguments, _client(arguments), follower, settings))


def _follow(
    arguments: argparse.Namespace,
    client: AsyncCoreClient,
    follower: Follower,
    settings: Settings,
) -> int:
    where = f"{without_password(arguments.journal)} to {client.protocol.base_url}"
    lines = Lines(0, BETWEEN_LINES, has_end=False, beginning=f"creduse: following {where}")
    is_quiet = arguments.verbosity == QUIET
    display = _show_nothing if is_quiet else lines.show
    progress = _send_until_signal(client, follower, settings, display)
    if progress is None:
        return 75
    is_signal = progress.stopped in signal.Signals.__members__
    if not is_signal:
        _tell(sys.stderr, f"creduse: stopped: {progress.stopped}")
    if arguments.json:
        _tell(sys.stdout, _as_json(progress), plain=True)
    else:
        lines_of_end = [_counts(progress, "call")]
        if progress.unclear and not is_quiet:
            lines_of_end.append(
                "About the unclear ones: creduse_journal.Journal(URL).unclear(), check and settle"
            )
        _tell(sys.stdout, "\n".join(lines_of_end))
    return 0 if is_signal else 75


def _prepare_status(arguments: argparse.Namespace) -> Callable[[], int]:
    return _guarded(lambda: _show_end(arguments, status(arguments.file, **_place(arguments))))


def _prepare_report(arguments: argparse.Namespace) -> Callable[[], int]:
    def act() -> int:
        lines = report(arguments.file, only=arguments.only, **_place(arguments))
        return 0 if _print(lines, "report") else 2

    return _guarded(act)


def _prepare_resolve(arguments: argparse.Namespace) -> Callable[[], int]:
    if arguments.settled_after is not None and arguments.findings is None:
        raise ValueError("--settled-after needs --findings: see creduse bulk probe --help")
    if arguments.note is not None and arguments.decisions is None:
        raise ValueError("--note needs --decisions: see creduse bulk resolve --help")
    if arguments.decisions is not None and arguments.findings is not None:
        raise ValueError(
            "--decisions and --findings cannot be combined: a person decides, or evidence"
        )
    return _guarded(partial(_resolve, arguments, _client(arguments)))


def _resolve(arguments: argparse.Namespace, client: AsyncCoreClient) -> int:
    findings = _findings(arguments.findings, client.protocol.base_url)
    with Resolution(client.protocol, arguments.file, **_place(arguments)) as resolution:
        if arguments.decisions is not None:
            decisions = resolution.by_file(Path(arguments.decisions), arguments.note)
            basis = ""
        else:
            decisions = _by_evidence(arguments, client, resolution, findings)
            basis = " It relies on what is assumed above."
        counts = Counter(_SETTLED[it.change] for it in decisions)
        parts = ", ".join(f"{count:,} as {name}" for name, count in counts.items())
        if parts and _agrees(arguments, f"Settle {parts}?{basis}", "Nothing was decided."):
            resolution.settle(decisions)
    return _show(arguments, status(arguments.file, **_place(arguments)))


def _findings(path: str | None, base_url: str) -> Findings | None:
    """Return the findings in a file, if one is given."""
    if path is None:
        return None
    try:
        findings = from_json(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
    if findings.base_url != base_url:
        raise InputError(f"{path} is about {findings.base_url}, not {base_url}")
    return findings


def _by_evidence(
    arguments: argparse.Namespace,
    client: AsyncCoreClient,
    resolution: Resolution,
    findings: Findings | None,
) -> list[Decision]:
    """Show what balances prove. Return the decisions that the findings allow."""
    evidence = anyio.run(_weigh, client, resolution, findings)
    for it, proved in zip(resolution.unclear, evidence, strict=True):
        _tell(sys.stdout, f"line {it.line}, {it.item.user}: {proved}")
    verdicts = Counter(proved.verdict.value for proved in evidence)
    parts = ", ".join(f"{count:,} {verdict}" for verdict, count in sorted(verdicts.items()))
    _tell(sys.stdout, f"{_count(len(evidence), 'unclear line')}: {parts or 'none'}")
    if findings is None:
        return []
    problems = findings.problems()
    for problem in problems:
        _tell(sys.stderr, f"creduse: by evidence, nothing can be decided: {problem}")
    return [] if problems else resolution.by_evidence(evidence, arguments.settled_after)


async def _weigh(
    client: AsyncCoreClient, resolution: Resolution, findings: Findings | None
) -> list[Evidence]:
    async with client:
        return await resolution.weigh(
            client, lists_empty_cycles=findings is not None and findings.lists_empty_cycles is True
        )


def _prepare_probe(arguments: argparse.Namespace) -> Callable[[], int]:
    client = _client(arguments)
    user, _ = checked_user_id(arguments.end_user_id)
    return _guarded(partial(_probe, arguments, client, user))


def _probe(arguments: argparse.Namespace, client: AsyncCoreClient, user: UUID) -> int:
    question = f"Add and take a few credits of {user} at {client.protocol.base_url}?"
    if not _agrees(arguments, question, "Nothing was sent."):
        return 2

    async def main() -> Findings:
        async with client:
            return await probe(client, user)

    try:
        findings = anyio.run(main)
    except CreduseError as error:
        _tell(sys.stderr, f"creduse: {error}; to probe again, pass another new user")
        return 1
    except ValueError as error:
        raise InputError(str(error)) from None
    is_written = _print([to_json(findings)], "findings")
    for problem in findings.problems():
        _tell(sys.stderr, f"creduse: {problem}")
    return 0 if is_written and not findings.problems() else 1
