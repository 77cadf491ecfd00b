"""The ``creduse`` command: the five calls, a local Creduse server to talk to, a demonstration.

The parser lives here. Errors are one line, without a traceback, and repeat no argument: any could
be the API key. ``STATUSES`` tells the exit statuses. A command has two parts: ``prepare`` checks
arguments and settings and sends nothing, so that only its errors have status 2, and what it returns
does the work.
"""

import argparse
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final, NoReturn

from creduse_core import BASE_URL, TIMEOUT, CreduseProtocol, __version__
from creduse_httpx import CreduseClient
from creduse_sandbox import DESCRIPTIONS, FAULTS, Fault, Stage, serve

from ._calls import COMMANDS, STATUSES, Command, prepare, write
from ._demo import demo

_SANDBOX_KEY: Final = "CREDUSE_SANDBOX_API_KEY"

_EPILOG: Final = "\n".join(
    [
        "environment:",
        "  CREDUSE_API_KEY       the API key; no flag takes it, as process lists show those",
        f"  CREDUSE_BASE_URL      where the service is ({BASE_URL})",
        "  CREDUSE_ALLOW_HTTP=1  allow plain http to other machines than this",
        "",
        "exit status:",
        *(f"  {status:<4} {meaning}" for status, meaning in STATUSES.items()),
        "  Any other, such as a kill's, says no more than 3.",
    ]
)

# What a message tells a program to do; here there is the environment alone.
_IN_PYTHON: Final = re.compile(r"\bpass \w+=\S+ or (?=set CREDUSE_)")
# A value in a message: what `repr` makes of a text, with the words that lead to it. Behind it
# argparse may list its choices, which older Pythons quote, too.
_VALUE: Final = re.compile(
    r"""(\ \(choose\ from\ .*\)$) | (?:,\ not|:)? \ (['"])(?:\\.|(?!\2).)*\2""", re.VERBOSE
)

_OTHERS: Final = {
    "sandbox": "serve a local Creduse server",
    "demo": "show all calls, on a sandbox",
}


def _without_value(message: str) -> str:
    """Take out the values that a message repeats: one could be the API key, put in a wrong place."""
    return _VALUE.sub(r"\1", message)


class _Parser(argparse.ArgumentParser):
    """argparse, with errors of one line that repeat no argument, and a refusal of ``--api-key``."""

    def __init__(self, *, key_from: str = "CREDUSE_API_KEY", **settings: Any) -> None:
        # Where flags are abbreviated, an error repeats the value of one that may be two.
        super().__init__(allow_abbrev=False, **settings)

        def refuse(_: str) -> NoReturn:
            raise argparse.ArgumentTypeError(f"process lists show flags: set {key_from} instead")

        self.add_argument("--api-key", type=refuse, help=argparse.SUPPRESS)

    def error(self, message: str) -> NoReturn:
        write(sys.stderr, f"{self.prog}: {_without_value(message)} (see {self.prog} --help)")
        self.exit(2)


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= 65535:
        raise ValueError(text)
    return port


def _whole(text: str) -> int:
    return int(text)


def _seconds(text: str) -> float:
    return float(text)


# argparse says "invalid port value"
_port.__name__ = "port"
_whole.__name__ = "whole number"
_seconds.__name__ = "seconds"


def _order(text: str) -> tuple[Fault, int]:
    name, colon, times = text.partition(":")
    if name not in FAULTS:
        raise argparse.ArgumentTypeError("no fault has this name, see --list-faults")
    if not colon:
        return FAULTS[name], sys.maxsize
    if not times.isdecimal() or int(times) == 0:
        raise argparse.ArgumentTypeError("TIMES must be a whole number above 0")
    return FAULTS[name], int(times)


def _describe(name: str, fault: Fault) -> str:
    applied = " (applied)" if fault.stage is Stage.APPLIED else ""
    return f"{name:<20} {DESCRIPTIONS[name]}{applied}"


def _say_where(url: str) -> None:
    print(f"{url}\nPress Ctrl-C to stop.", flush=True)


def _list_faults() -> int:
    write(sys.stdout, "\n".join(_describe(name, fault) for name, fault in FAULTS.items()))
    return 0


def _sandbox(arguments: argparse.Namespace) -> Callable[[], int]:
    if arguments.list_faults:
        return _list_faults
    if threading.current_thread() is not threading.main_thread():
        raise ValueError(
            "only the main thread receives the signals that end a sandbox; in another thread, use "
            "creduse_sandbox.SandboxServer"
        )
    key = os.environ.get(_SANDBOX_KEY)
    if key is not None:
        try:
            CreduseProtocol(key)  # a key that no client could send would lock all of them out
        except ValueError as error:
            message = str(error).replace("api_key (or CREDUSE_API_KEY)", _SANDBOX_KEY)
            raise ValueError(message) from None
    return partial(_serve, arguments.host, arguments.port, key, arguments.fault)


def _serve(host: str, port: int, key: str | None, faults: list[tuple[Fault, int]]) -> int:
    try:
        serve(host, port, key, _say_where, faults)
    except OSError as error:
        why = str(error.strerror).partition(" (")[0]  # asyncio adds the address once more
        write(sys.stderr, f"creduse: cannot listen on port {port}: {why}")
        return 2
    return 0


def _demo(_: argparse.Namespace) -> Callable[[], int]:
    key = os.environ.get("CREDUSE_API_KEY", "demo-key")
    # Settings in the environment that would stop a program stop the demonstration, too; but it
    # needs none, and calls its own sandbox.
    CreduseClient(key)
    return partial(_show_demo, key)


def _show_demo(key: str) -> int:
    demo(key, partial(write, sys.stdout))
    return 0


# What the five calls take, by the name of the parameter.
_TAKES: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "end_user_id": ("end_user_id", {"metavar": "USER", "help": "the end user's id, a UUID"}),
    "amount": ("amount", {"metavar": "AMOUNT", "type": _whole, "help": "credits, a whole number"}),
    "validity_days": (
        "--validity-days",
        {
            "metavar": "DAYS",
            "type": _whole,
            "default": 31,
            "help": "days that the credits can be spent (%(default)s)",
        },
    ),
    "idempotency_key": (
        "--idempotency-key",
        {
            "metavar": "KEY",
            "help": (
                "sent as Idempotency-Key, and your word that the server applies each key once: a "
                "call that may have been applied is then tried again. Creduse is not known to "
                "heed such keys"
            ),
        },
    ),
}


def _add_call(commands: Any, name: str, command: Command) -> None:
    parser = commands.add_parser(
        name,
        description=f"{command.help[0].upper()}{command.help[1:]}.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=_EPILOG,
    )
    for parameter in command.takes:
        flag, settings = _TAKES[parameter]
        parser.add_argument(flag, **settings)
    parser.add_argument("--base-url", metavar="URL", help="where the service is")
    parser.add_argument(
        "--timeout",
        type=_seconds,
        default=TIMEOUT,
        metavar="SECONDS",
        help="for the whole call, its retries included (%(default)g)",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object, of a failure too"
    )
    parser.add_argument(
        "--verbose", action="store_true", help="show each attempt on standard error"
    )
    parser.set_defaults(prepare=partial(prepare, command))


def _synopsis(name: str, command: Command) -> str:
    taken = (_TAKES[parameter] for parameter in command.takes)
    return " ".join([name, *(it["metavar"] for flag, it in taken if not flag.startswith("-"))])


def _describe_commands() -> str:
    """Give a line for each. argparse's own list would not show what they take."""
    helps = {_synopsis(name, command): command.help for name, command in COMMANDS.items()} | _OTHERS
    width = max(map(len, helps))
    return "\n".join(f"  {name:<{width}}  {what}" for name, what in helps.items())


def _make_parser() -> _Parser:
    parser = _Parser(
        prog="creduse",
        usage="creduse [-h] [--version] COMMAND ...",
        description=(
            "Credits for an app's end users, and always a word on whether they moved.\n\n"
            f"commands:\n{_describe_commands()}"
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=_EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"creduse {__version__}")
    commands = parser.add_subparsers(prog="creduse", metavar="COMMAND", help=argparse.SUPPRESS)
    for name, command in COMMANDS.items():
        _add_call(commands, name, command)

    def no_command(_: argparse.Namespace) -> NoReturn:
        raise ValueError(f"which command? {', '.join(commands.choices)} (see creduse --help)")

    parser.set_defaults(prepare=no_command)
    sandbox = commands.add_parser(
        "sandbox",
        key_from=_SANDBOX_KEY,
        description=(
            "Serve a local Creduse server until Ctrl-C or SIGTERM. The first line printed is its "
            f"URL, for CREDUSE_BASE_URL. It accepts any API key; set {_SANDBOX_KEY} to have it "
            "accept that one alone. It begins empty and forgets all when it stops."
        ),
    )
    sandbox.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    sandbox.add_argument(
        "--port", type=_port, default=8000, help="port to listen on, 0 for a free one (%(default)s)"
    )
    sandbox.add_argument(
        "--fault",
        type=_order,
        action="append",
        default=[],
        metavar="NAME[:TIMES]",
        help="have the next TIMES requests, or all, meet with this fault; may be repeated",
    )
    sandbox.add_argument(
        "--list-faults", action="store_true", help="say which faults there are, and stop"
    )
    sandbox.set_defaults(prepare=_sandbox)

    demonstration = commands.add_parser(
        "demo",
        description="Start a sandbox, call all five methods on it, show what comes back.",
    )
    demonstration.set_defaults(prepare=_demo)
    return parser


def _run(argv: Sequence[str] | None) -> int:
    parser = _make_parser()
    try:
        arguments, unknown = parser.parse_known_args(argv)
        if unknown:
            parser.error(
                "unrecognized arguments; they are not shown, as one could be the API key, which "
                "CREDUSE_API_KEY alone supplies"
            )
        start: Callable[[], int] = arguments.prepare(arguments)
    except ValueError as error:
        write(sys.stderr, f"creduse: {_without_value(_IN_PYTHON.sub('', str(error)))}")
        return 2
    return start()


def _run_until_interrupted(argv: Sequence[str] | None) -> int:
    try:
        return _run(argv)
    except KeyboardInterrupt:  # a call says by itself what this means
        write(sys.stderr, "creduse: interrupted")
        return 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status.

    It can run in any thread, except for ``sandbox``, and leaves signal handlers as they were. As
    with argparse, ``--help`` and arguments that cannot be parsed raise ``SystemExit``.
    """
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        return _run_until_interrupted(argv)
    finally:
        for number, handler in handlers.items():
            # ValueError: only the main thread sets handlers. TypeError: it was not Python's.
            with suppress(ValueError, TypeError):
                signal.signal(number, handler)


def script() -> NoReturn:
    """Run the command as a process of its own, and end it with the exit status."""
    try:
        status = _run_until_interrupted(None)
    finally:
        # Nothing must take the place of the exit status: neither Ctrl-C while Python ends, nor what
        # is left in the buffer of a stream that has failed and would fail again.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for stream in filter(None, (sys.stdout, sys.stderr)):
            try:
                stream.flush()
            except OSError:
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(status)


if __name__ == "__main__":
    script()
