"""The ``creduse`` command: the five calls, a Creduse of one's own to talk to, a demonstration.

The parser lives here. What is wrong is said in one line, without a traceback; ``STATUSES`` tells
the exit statuses.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any, Final, NoReturn

from creduse_core import BASE_URL, TIMEOUT, CreduseProtocol, __version__
from creduse_sandbox import DESCRIPTIONS, FAULTS, Fault, Stage, serve

from ._calls import COMMANDS, STATUSES, Command, run, write
from ._demo import demo

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

_OTHERS: Final = {
    "sandbox": "serve a Creduse of your own",
    "demo": "show all calls, on a sandbox",
}


class _Parser(argparse.ArgumentParser):
    """argparse, with errors of one line."""

    def error(self, message: str) -> NoReturn:
        write(sys.stderr, f"{self.prog}: {message} (see {self.prog} --help)")
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


def _no_key(_: str) -> NoReturn:
    raise argparse.ArgumentTypeError("process lists show flags: set CREDUSE_API_KEY instead")


def _order(text: str) -> tuple[Fault, int]:
    name, colon, times = text.partition(":")
    if name not in FAULTS:
        raise argparse.ArgumentTypeError(f"no fault is called {name!r}, see --list-faults")
    if not colon:
        return FAULTS[name], sys.maxsize
    if not times.isdecimal() or int(times) == 0:
        raise argparse.ArgumentTypeError(f"{times!r} is not how many times")
    return FAULTS[name], int(times)


def _describe(name: str, fault: Fault) -> str:
    applied = " (applied)" if fault.stage is Stage.APPLIED else ""
    return f"{name:<20} {DESCRIPTIONS[name]}{applied}"


def _say_where(url: str) -> None:
    print(f"{url}\nPress Ctrl-C to stop.", flush=True)


def _sandbox(arguments: argparse.Namespace) -> int:
    if arguments.list_faults:
        write(sys.stdout, "\n".join(_describe(name, fault) for name, fault in FAULTS.items()))
        return 0
    host, port, key = arguments.host, arguments.port, arguments.api_key
    if key is not None:
        CreduseProtocol(key)  # a key that no client could send would lock all of them out
    try:
        serve(host, port, key, _say_where, arguments.fault)
    except OSError as error:
        why = str(error.strerror).partition(" (")[0]  # asyncio adds the address once more
        raise ValueError(f"cannot listen on {host} port {port}: {why}") from None
    return 0


def _demo(_: argparse.Namespace) -> int:
    demo(partial(write, sys.stdout))
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
    parser.add_argument("--api-key", type=_no_key, help=argparse.SUPPRESS)
    parser.set_defaults(run=partial(run, command))


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

    parser.set_defaults(run=no_command)
    sandbox = commands.add_parser(
        "sandbox",
        description=(
            "Serve a Creduse of your own until Ctrl-C or SIGTERM. The first line printed is its "
            "URL, for CREDUSE_BASE_URL. It begins empty and forgets all when it stops."
        ),
    )
    sandbox.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    sandbox.add_argument(
        "--port", type=_port, default=8000, help="port to listen on, 0 for a free one (%(default)s)"
    )
    sandbox.add_argument("--api-key", help="the only key to accept (any)")
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
    sandbox.set_defaults(run=_sandbox)

    demonstration = commands.add_parser(
        "demo",
        description="Start a sandbox, call all five methods on it, show what comes back.",
    )
    demonstration.set_defaults(run=_demo)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; give its exit status."""
    try:
        arguments = _make_parser().parse_args(argv)
        status: int = arguments.run(arguments)
    except ValueError as error:
        write(sys.stderr, f"creduse: {_IN_PYTHON.sub('', str(error))}")
        return 2
    except KeyboardInterrupt:
        write(sys.stderr, "creduse: interrupted")
        return 130
    return status


if __name__ == "__main__":
    sys.exit(main())
