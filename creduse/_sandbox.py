"""``creduse sandbox``: its parser, and how it shows a local server. What a server does is not here."""

import argparse
import os
import sys
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from creduse_core import CreduseProtocol
from creduse_sandbox import DESCRIPTIONS, FAULTS, Fault, Stage, serve

from ._calls import write

_SANDBOX_KEY: Final = "CREDUSE_SANDBOX_API_KEY"


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= 65535:
        raise ValueError(text)
    return port


# For argparse's message "invalid port value"
_port.__name__ = "port"


def _fault(text: str) -> tuple[Fault, int]:
    name, colon, times = text.partition(":")
    if name not in FAULTS:
        raise argparse.ArgumentTypeError("no fault has this name; see --list-faults")
    if not colon:
        return FAULTS[name], sys.maxsize
    if not times.isdecimal() or int(times) == 0:
        raise argparse.ArgumentTypeError("TIMES must be a whole number above 0")
    return FAULTS[name], int(times)


def _describe(name: str, fault: Fault) -> str:
    applied = " (applied)" if fault.stage is Stage.APPLIED else ""
    return f"{name:<20} {DESCRIPTIONS[name]}{applied}"


def _print_url(url: str) -> None:
    write(sys.stdout, f"{url}\nPress Ctrl-C to stop.")


def _list_faults() -> int:
    write(sys.stdout, "\n".join(_describe(name, fault) for name, fault in FAULTS.items()))
    return 0


def _sandbox(arguments: argparse.Namespace) -> Callable[[], int]:
    if arguments.list_faults:
        return _list_faults
    if threading.current_thread() is not threading.main_thread():
        raise ValueError(
            "the sandbox command needs the main thread, which gets the signals that stop it; in "
            "another thread, use creduse_sandbox.SandboxServer"
        )
    key = os.environ.get(_SANDBOX_KEY)
    if key is not None:
        try:
            CreduseProtocol(key)  # reject a key that no client could send
        except ValueError as error:
            message = str(error).replace("api_key (or CREDUSE_API_KEY)", _SANDBOX_KEY)
            raise ValueError(message) from None
    return partial(_serve, arguments.host, arguments.port, key, arguments.fault)


def _serve(host: str, port: int, key: str | None, faults: list[tuple[Fault, int]]) -> int:
    try:
        serve(host, port, key, _print_url, faults)
    except OSError as error:
        reason = str(error.strerror).partition(" (")[0]  # asyncio appends the address
        write(sys.stderr, f"creduse: cannot listen with this --host and --port {port}: {reason}")
        return 2
    return 0


def add_parser(commands: Any) -> None:
    """Add the parser of ``sandbox``."""
    sandbox = commands.add_parser(
        "sandbox",
        key_variable=_SANDBOX_KEY,
        description=(
            "Run a local Creduse server until Ctrl-C or SIGTERM. It prints its URL first; set "
            "CREDUSE_BASE_URL to that. It accepts any API key. With "
            f"{_SANDBOX_KEY} set, it accepts only that one. It starts without users and keeps "
            "nothing when it stops."
        ),
    )
    sandbox.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: %(default)s)"
    )
    sandbox.add_argument(
        "--port",
        type=_port,
        default=8000,
        help="port to listen on, 0 for any free one (default: %(default)s)",
    )
    sandbox.add_argument(
        "--fault",
        type=_fault,
        action="append",
        default=[],
        metavar="NAME[:TIMES]",
        help=(
            "inject this fault for the next TIMES requests, or for all further ones; can be "
            "repeated: each request gets the first fault that is not used up"
        ),
    )
    sandbox.add_argument("--list-faults", action="store_true", help="list all faults and exit")
    sandbox.set_defaults(prepare=_sandbox)
