"""``creduse bulk``: its parsers, and how it shows a run. What a run does (`creduse_bulk`) is not here.

Its messages name files and show their values, unlike those of the other commands, so the API key is
removed from them.
"""

import argparse
import json
import re
import shlex
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import anyio

from creduse_bulk import InputError, Progress, Shard, report, status
from creduse_bulk._probe import Findings, from_json, probe, to_json
from creduse_bulk._resolve import Resolution
from creduse_bulk._run import Run, check_settings, make_client
from creduse_core import TIMEOUT, AsyncCoreClient, CreduseError, Evidence
from creduse_core.arguments import checked_user_id
from creduse_journal import Change, JournalError

from ._calls import show, write

try:
    from tqdm import tqdm
except ImportError:  # the extra "bulk" has it
    tqdm = None

STATUSES: Final = {
    0: "all items are applied",
    1: "some were refused, all others are applied",
    2: "wrong usage, settings or file; nothing was sent",
    3: "some are unclear, or wait for these: see creduse bulk resolve",
    75: "some are waiting: the same command goes on",
}
"""What each exit status means."""

_EPILOG: Final = "\n".join(
    [
        "environment: see creduse --help",
        "",
        "exit status:",
        *(f"  {status:<4} {meaning}" for status, meaning in STATUSES.items()),
        "  Any other status, such as after a kill, means the same as 75.",
    ]
)
_METHODS: Final = {
    "add": "add credits",
    "subtract": "take credits: each amount whole or not at all",
    "start-cycle": "add credits now and again in each cycle",
    "stop-cycle": "stop the renewal of cycles",
}
_WORDS: Final = {Change.SETTLE_APPLIED: "applied", Change.SETTLE_FREE: "not applied"}
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_BETWEEN_LINES: Final = 10.0
"""Seconds between two lines of progress where there is no terminal."""


# Arguments


def _duration(text: str) -> float:
    found = re.fullmatch(r"([0-9]{1,6})([smhd])", text)
    if found is None:
        raise argparse.ArgumentTypeError("it must be a number and s, m, h or d, such as 2h")
    return int(found[1]) * _UNITS[found[2]]


def _shard(text: str) -> Shard:
    found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise argparse.ArgumentTypeError("it must be one of 1/S to S/S, such as 2/4")
    return Shard(int(found[1]), int(found[2]))


def add_parsers(commands: Any) -> None:
    """Add the parser of ``bulk``, and those of its own commands."""
    bulk = commands.add_parser(
        "bulk",
        usage="creduse bulk [-h] COMMAND ...",
        description=(
            "Make one call for each line of a file, each at most once. The same command again goes "
            "on where it stopped.\n\ncommands:\n"
            + "\n".join(
                f"  {name:<18} {text}"
                for name, text in {
                    **{f"{name} FILE": text for name, text in _METHODS.items()},
                    "status FILE": "show how far a run is",
                    "report FILE": "print the file with what became of each line",
                    "resolve FILE": "find out about unclear lines, and decide",
                    "probe USER": "find out how the service keeps balances, for resolve",
                }.items()
            )
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=_EPILOG,
    )
    parsers = bulk.add_subparsers(prog="creduse bulk", metavar="COMMAND", help=argparse.SUPPRESS)

    def no_command(_: argparse.Namespace) -> Any:
        raise ValueError(f"no command; choose one of {', '.join(parsers.choices)}")

    bulk.set_defaults(prepare=no_command)
    for name, text in _METHODS.items():
        _add_sending(parsers, name, text)
    _add_reading(parsers)
    _add_resolve(parsers)
    _add_probe(parsers)


def _add(parsers: Any, name: str, description: str, prepare: Callable[..., Any]) -> Any:
    parser = parsers.add_parser(
        name,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=_EPILOG,
    )
    parser.set_defaults(prepare=prepare)
    return parser


def _add_file(parser: Any) -> None:
    parser.add_argument("file", metavar="FILE", help="CSV with a header, or JSON Lines")
    parser.add_argument(
        "--journal", metavar="PATH", help="the journal (default: FILE.journal, beside the file)"
    )
    parser.add_argument(
        "--shard", metavar="K/S", type=_shard, help="only part K of S; each has its own journal"
    )


def _add_service(parser: Any) -> None:
    parser.add_argument("--base-url", metavar="URL", help="the service's URL")
    parser.add_argument(
        "--timeout",
        type=float,
        default=TIMEOUT,
        metavar="SECONDS",
        help="timeout of a call (default: %(default)g)",
    )
    parser.add_argument("--yes", action="store_true", help="do not ask")


def _add_sending(parsers: Any, name: str, text: str) -> None:
    columns = {
        "add": "end_user_id, amount, and validity_days (31 where it is empty or not there)",
        "subtract": "end_user_id and amount",
        "start-cycle": "end_user_id, amount, and validity_days (31 where it is empty or not there)",
        "stop-cycle": "end_user_id",
    }[name]
    parser = _add(
        parsers,
        name,
        f"For each line of the file, {text}. Its columns are {columns}. With a column id, each id "
        "must be there once.",
        partial(_prepare_sending, name.replace("-", "_")),
    )
    _add_file(parser)
    _add_service(parser)
    parser.add_argument(
        "--concurrency",
        type=int,
        default=16,
        metavar="N",
        help=(
            "calls in flight at once, at most 100 (default: %(default)s); after a kill, at most so "
            "many lines are unclear"
        ),
    )
    parser.add_argument("--rate", type=float, metavar="N", help="at most N lines a second")
    parser.add_argument(
        "--balance-first",
        action="store_true",
        help="read each balance before, so that resolve can find out more; needed for subtract",
    )
    parser.add_argument("--json", action="store_true", help="print the counts as a JSON object")


def _add_reading(parsers: Any) -> None:
    status = _add(parsers, "status", "Show how far a run is. It may be going on.", _prepare_status)
    _add_file(status)
    status.add_argument("--json", action="store_true", help="print the counts as a JSON object")
    report = _add(
        parsers,
        "report",
        "Print the columns of the file and what became of each line: line, state (applied, refused, "
        "unclear, waiting), outcome, event, status, error_code, evidence.",
        _prepare_report,
    )
    _add_file(report)
    report.add_argument(
        "--only", choices=("applied", "refused", "unclear", "waiting"), help="only these lines"
    )


def _add_resolve(parsers: Any) -> None:
    parser = _add(
        parsers,
        "resolve",
        "Read the balance of each user with an unclear line, and show what it proves. Without "
        "--findings or --decisions, nothing is decided.",
        _prepare_resolve,
    )
    _add_file(parser)
    _add_service(parser)
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
    parser.add_argument("--note", metavar="TEXT", help="who decides, and why")


def _add_probe(parsers: Any) -> None:
    parser = _add(
        parsers,
        "probe",
        "Find out, with a new user, how the service keeps balances: add, subtract, start and stop a "
        "cycle, and read. Prints JSON for resolve --findings.",
        _prepare_probe,
    )
    parser.add_argument("end_user_id", metavar="USER", help="a UUID that no real user has")
    _add_service(parser)


# Commands. Each first checks arguments and settings, and returns what does the work.


def _client(arguments: argparse.Namespace) -> AsyncCoreClient:
    return make_client(api_key=None, base_url=arguments.base_url, timeout=arguments.timeout)


def _guarded(act: Callable[[], int], client: AsyncCoreClient | None = None) -> Callable[[], int]:
    """Return a function that shows warnings, and errors of files and journals, without the key."""

    def tell(message: object) -> None:
        text = str(message)
        write(sys.stderr, "creduse: " + (client.protocol.api_key.redact(text) if client else text))

    def warn(message: Warning | str, *_: Any, **__: Any) -> None:
        tell(f"warning: {message}")

    def run() -> int:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("always", UserWarning)
                warnings.showwarning = warn
                return act()
        except (InputError, JournalError) as error:
            tell(error)
            return 2

    return run


def _agrees(arguments: argparse.Namespace, question: str) -> bool:
    """Ask, unless ``--yes`` was given."""
    if arguments.yes:
        return True
    if not sys.stdin.isatty():
        raise InputError("nobody can be asked here: pass --yes")
    write(sys.stderr, f"{question} [y/N]")
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


def _place(arguments: argparse.Namespace) -> dict[str, Any]:
    return {"journal": arguments.journal, "shard": arguments.shard}


def _again(arguments: argparse.Namespace, command: str) -> str:
    """Return a command about the same run."""
    rest = {"--journal": arguments.journal, "--shard": arguments.shard}
    flags = [part for name, value in rest.items() if value for part in (name, str(value))]
    return shlex.join(["creduse", "bulk", command, arguments.file, *flags])


def _prepare_sending(method: str, arguments: argparse.Namespace) -> Callable[[], int]:
    check_settings(arguments.concurrency, arguments.rate)
    client = _client(arguments)
    return _guarded(partial(_send, method, arguments, client), client)


def _send(method: str, arguments: argparse.Namespace, client: AsyncCoreClient) -> int:
    with Run(client.protocol, method, arguments.file, **_place(arguments)) as run:
        if run.before is None:
            write(sys.stderr, _overview(run, arguments.file, client.protocol.base_url))
            question = f"{_METHODS[method.replace('_', '-')].capitalize()}?"
            if not _agrees(arguments, question):
                write(sys.stderr, "Nothing was sent.")
                return 2
        else:
            write(sys.stderr, f"{arguments.file}: going on. {_counts(run.before)}")

        async def main() -> Progress:
            async with client:
                with _display(run.items) as on_progress:
                    return await run.send(
                        client,
                        concurrency=arguments.concurrency,
                        rate=arguments.rate,
                        balance_first=arguments.balance_first,
                        on_progress=on_progress,
                        signals=threading.current_thread() is threading.main_thread(),
                    )

        progress = anyio.run(main)
    if progress.stopped is not None:
        reason = client.protocol.api_key.redact(progress.stopped)
        write(sys.stderr, f"creduse: stopped: {reason}")
    return _show(arguments, progress)


def _overview(run: Run, file: str, base_url: str) -> str:
    found = run.overview
    assert found is not None  # noqa: S101 - the run is new
    counts = ((found.items, "line"), (found.users, "user"), (found.total, "credit"))
    lines, users, credit = (_number(*it) for it in counts)
    shown = [f"{file}: {lines} for {users}, {credit}", f"to {base_url}"]
    if found.ignored:
        shown.append(f"columns that are not used: {', '.join(found.ignored)}")
    return "\n".join(shown)


def _show(arguments: argparse.Namespace, progress: Progress) -> int:
    """Print how far a run is, and what to do next. Return the exit status."""
    status = progress.exit_status
    if getattr(arguments, "json", False):
        counts = asdict(progress) | {"waiting": progress.waiting, "exit_status": status}
        write(sys.stdout, json.dumps(counts))
        return status
    lines = [_counts(progress)]
    if progress.refused:
        lines.append(f"The refused ones: {_again(arguments, 'report')} --only refused")
    if progress.unclear:
        lines.append(f"To find out about the unclear ones: {_again(arguments, 'resolve')}")
    if status == 75 and not progress.in_flight:
        lines.append("To go on: the same creduse bulk command again")
    write(sys.stdout, "\n".join(lines))
    return status


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _counts(progress: Progress) -> str:
    counts = {
        "applied": progress.applied,
        "refused": progress.refused,
        "unclear": progress.unclear,
        "in flight": progress.in_flight,
        "waiting": progress.waiting,
    }
    parts = [f"{count:,} {name}" for name, count in counts.items() if count or name == "applied"]
    return f"{_number(progress.items, 'line')}: {', '.join(parts)}"


@contextmanager
def _display(items: int) -> Generator[Callable[[Progress], None]]:
    """Show progress while a run goes on: a bar on a terminal, else a line now and then."""
    if sys.stderr is not None and sys.stderr.isatty() and tqdm is not None:
        with tqdm(total=items, unit=" lines", dynamic_ncols=True, leave=False) as bar:
            yield partial(_show_bar, bar)
    else:
        yield _Lines().show


def _is_done(progress: Progress) -> int:
    return progress.applied + progress.refused + progress.unclear


def _show_bar(bar: Any, progress: Progress) -> None:
    if not bar.n:  # what was done before is not part of the rate
        bar.initial = bar.n = bar.last_print_n = _is_done(progress)
    bar.set_postfix_str(progress.pause or _failed(progress), refresh=False)
    bar.update(_is_done(progress) - bar.n)


def _failed(progress: Progress) -> str:
    counts = {"refused": progress.refused, "unclear": progress.unclear}
    return ", ".join(f"{count:,} {name}" for name, count in counts.items() if count)


class _Lines:
    """Lines of progress, with the rate since the last one, and the time left."""

    def __init__(self) -> None:
        self._at = time.monotonic()
        self._done: int | None = None
        self._pause: str | None = None

    def show(self, progress: Progress) -> None:
        """Write a line if it is time."""
        now, done = time.monotonic(), _is_done(progress)
        if self._done is None:
            self._done = done
        if progress.pause != self._pause:
            self._pause = progress.pause
            if self._pause is not None:
                write(sys.stderr, f"{_counts(progress)}; {self._pause}")
            return
        passed = now - self._at
        if passed < _BETWEEN_LINES:
            return
        rate = (done - self._done) / passed
        self._at, self._done = now, done
        left = f"; about {_time(progress.waiting / rate)} left" if rate else ""
        write(sys.stderr, f"{_counts(progress)}; {rate:,.0f} a second{left}")


def _time(seconds: float) -> str:
    unit, length = next(
        ((name, size) for name, size in (("h", 3600), ("min", 60)) if seconds >= 2 * size), ("s", 1)
    )
    return f"{seconds / length:.0f} {unit}"


def _prepare_status(arguments: argparse.Namespace) -> Callable[[], int]:
    return _guarded(lambda: _show(arguments, status(arguments.file, **_place(arguments))))


def _prepare_report(arguments: argparse.Namespace) -> Callable[[], int]:
    def act() -> int:
        try:
            for line in report(arguments.file, only=arguments.only, **_place(arguments)):
                show(sys.stdout, line)
        except BrokenPipeError:
            pass  # the reader has all that it wants, as `head` has
        except OSError as error:
            write(sys.stderr, f"creduse: the report cannot be written: {error.strerror}")
            return 2
        return 0

    return _guarded(act)


def _prepare_resolve(arguments: argparse.Namespace) -> Callable[[], int]:
    if arguments.settled_after is not None and arguments.findings is None:
        raise ValueError("--settled-after needs --findings: see creduse bulk probe --help")
    if arguments.decisions is not None and arguments.findings is not None:
        raise ValueError(
            "--decisions and --findings cannot be combined: a person decides, or evidence"
        )
    client = _client(arguments)
    return _guarded(partial(_resolve, arguments, client), client)


def _resolve(arguments: argparse.Namespace, client: AsyncCoreClient) -> int:
    findings = _findings(arguments.findings, client)
    problems = () if findings is None else findings.problems()
    with Resolution(client.protocol, arguments.file, **_place(arguments)) as resolution:
        if arguments.decisions is not None:
            decisions = resolution.by_file(Path(arguments.decisions), arguments.note)
        else:
            evidence = anyio.run(_weigh, client, resolution, findings)
            for it, proved in zip(resolution.unclear, evidence, strict=True):
                write(sys.stdout, f"line {it.line}, {it.item.user}: {proved}")
            decisions = []
            for problem in problems:
                write(sys.stderr, f"creduse: by evidence, nothing can be decided: {problem}")
            if findings is not None and not problems:
                decisions = resolution.by_evidence(evidence, arguments.settled_after)
        if decisions:
            counts = Counter(_WORDS[it.change] for it in decisions)
            parts = ", ".join(f"{count:,} as {name}" for name, count in counts.items())
            if _agrees(arguments, f"Settle {parts}? It relies on what is assumed above."):
                resolution.settle(decisions)
    return _show(arguments, status(arguments.file, **_place(arguments)))


def _findings(path: str | None, client: AsyncCoreClient) -> Findings | None:
    """Return the findings in a file, if one is given."""
    if path is None:
        return None
    try:
        findings = from_json(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
    if findings.base_url != client.protocol.base_url:
        raise InputError(f"{path} is about {findings.base_url}, not {client.protocol.base_url}")
    return findings


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
    return _guarded(partial(_probe, arguments, client, user), client)


def _probe(arguments: argparse.Namespace, client: AsyncCoreClient, user: UUID) -> int:
    question = f"Add and take a few credits of {user} at {client.protocol.base_url}?"
    if not _agrees(arguments, question):
        return 2

    async def main() -> Findings:
        async with client:
            return await probe(client, user)

    try:
        findings = anyio.run(main)
    except CreduseError as error:
        write(sys.stderr, f"creduse: {error}")
        return 1
    except ValueError as error:
        raise InputError(str(error)) from None
    write(sys.stdout, to_json(findings))
    for problem in findings.problems():
        write(sys.stderr, f"creduse: {problem}")
    return 1 if findings.problems() else 0
