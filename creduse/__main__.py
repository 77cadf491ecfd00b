"""The ``creduse`` command: a Creduse of one's own to talk to, and a demonstration.

Exit status: 0 done, 2 wrong usage or settings. What is wrong is said in one line, without a
traceback.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from creduse_core import CreduseProtocol, __version__
from creduse_sandbox import DESCRIPTIONS, FAULTS, Fault, Stage, serve

from ._demo import demo


class _Parser(argparse.ArgumentParser):
    """argparse, with errors of one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= 65535:
        raise ValueError(text)
    return port


_port.__name__ = "port"  # argparse says "invalid port value"


def _order(text: str) -> tuple[Fault, int]:
    name, colon, times = text.partition(":")
    if name not in FAULTS:
        raise argparse.ArgumentTypeError(f"no fault is called {name!r}, see --list-faults")
    if not colon:
        return FAULTS[name], sys.maxsize
    if not times.isdecimal():
        raise argparse.ArgumentTypeError(f"{times!r} is not how many times")
    return FAULTS[name], int(times)


def _describe(name: str, fault: Fault) -> str:
    applied = " (applied)" if fault.stage is Stage.APPLIED else ""
    return f"{name:<20} {DESCRIPTIONS[name]}{applied}"


def _say_where(url: str) -> None:
    print(f"{url}\nPress Ctrl-C to stop.", flush=True)


def _sandbox(arguments: argparse.Namespace) -> None:
    if arguments.list_faults:
        print("\n".join(_describe(name, fault) for name, fault in FAULTS.items()))
        return
    host, port, key = arguments.host, arguments.port, arguments.api_key
    if key is not None:
        CreduseProtocol(key)  # a key that no client could send would lock all of them out
    try:
        serve(host, port, key, _say_where, arguments.fault)
    except OSError as error:
        why = str(error.strerror).partition(" (")[0]  # asyncio adds the address once more
        raise ValueError(f"cannot listen on {host} port {port}: {why}") from None


def _demo(_: argparse.Namespace) -> None:
    demo(print)


def _make_parser() -> _Parser:
    parser = _Parser(prog="creduse", description="A client for the Creduse credit-management API.")
    parser.add_argument("--version", action="version", version=f"creduse {__version__}")
    commands = parser.add_subparsers(metavar="command", required=True)

    sandbox = commands.add_parser(
        "sandbox",
        help="serve a Creduse of your own",
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
        help="show all calls, on a sandbox",
        description="Start a sandbox, call all five methods on it, show what comes back.",
    )
    demonstration.set_defaults(run=_demo)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; give its exit status."""
    arguments = _make_parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except ValueError as error:
        print(f"creduse: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
