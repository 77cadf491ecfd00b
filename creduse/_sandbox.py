"""``creduse sandbox``: its parser, and how it shows a local server. What a server does is not here."""

import argparse
import os
import select
import sys
import threading
from collections.abc import Callable
from contextlib import closing, nullcontext
from functools import partial
from ipaddress import ip_address
from typing import Any, Final, TextIO

from creduse_core import CreduseProtocol
from creduse_sandbox import (
    DESCRIPTIONS,
    FAULTS,
    OUTCOMES,
    Fault,
    Stage,
    StateError,
    StateFile,
    serve,
)
from creduse_sandbox.faults import FIRST

from ._arguments import QUIET, add_flags, number_between
from ._calls import show, write

_KEY: Final = "CREDUSE_SANDBOX_API_KEY"
# The addresses that mean all of this machine's, and how this machine reaches the server then.
_EVERYWHERE: Final = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}  # noqa: S104 - nothing binds here
_OPEN: Final = (
    "Other machines can reach this server. They can make calls, see the page and use its buttons."
)


_times: Final = number_between(1, 10**9)


def _fault(text: str) -> tuple[Fault, int]:
    name, colon, times = text.partition(":")
    if name not in FAULTS:
        raise argparse.ArgumentTypeError("no fault has this name; see --list-faults")
    if not colon:
        return FAULTS[name], sys.maxsize
    return FAULTS[name], _times(times)


def _host(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("it must be an address of this machine, such as 127.0.0.1")
    return text


def _describe(name: str) -> str:
    outcome = "succeeds" if OUTCOMES[name] is None else str(OUTCOMES[name])
    applied = " (applied)" if FAULTS[name].stage is Stage.APPLIED else ""
    return f"  {name:<20} {outcome:<12} {DESCRIPTIONS[name]}{applied}"


def _list_faults() -> int:
    lines = (
        "Each line has a fault, the outcome that a client reports for an add whose only attempt",
        "meets it, and what the server does. A client retries after 429 by itself.",
        "",
        "Start with these five:",
        *map(_describe, FIRST),
        "",
        "All others:",
        *(_describe(name) for name in FAULTS if name not in FIRST),
    )
    show("\n".join(lines))
    return 0


def _sandbox(arguments: argparse.Namespace) -> Callable[[], int]:
    if arguments.list_faults:
        return _list_faults
    if threading.current_thread() is not threading.main_thread():
        raise ValueError(
            "the sandbox command needs the main thread, which gets the signals that stop it; in "
            "another thread, use creduse_sandbox.SandboxServer"
        )
    key = os.environ.get(_KEY)
    if key is not None:
        try:
            CreduseProtocol(key)  # reject a key that no client could send
        except ValueError as error:
            message = str(error).replace("api_key (or CREDUSE_API_KEY)", _KEY)
            raise ValueError(message) from None
    try:
        state = None if arguments.state is None else StateFile(arguments.state)
    except StateError as error:
        raise ValueError(f"argument --state: {error}") from None
    return partial(_serve, arguments, key, state)


def _introduce(host: str, key: str | None, base_url: str) -> None:
    """Show how to reach the server. The first line is its URL alone, for programs."""
    url = base_url
    for everywhere, this_machine in _EVERYWHERE.items():
        url = url.replace(f"//{everywhere}:", f"//{this_machine}:")
    shown_key = "any" if key is None else f'"${_KEY}"'
    lines = (
        url,
        "",
        f"export CREDUSE_BASE_URL={url}",
        f"export CREDUSE_API_KEY={shown_key}",
        "",
        *([] if key is None else [f"Where you copy these, set {_KEY} first.", ""]),
        f"In a browser, {url}/ shows users and requests.",
        *([] if _is_loopback(host) else [_OPEN]),
        "Press Ctrl-C to stop.",
    )
    write(sys.stdout, "\n".join(lines))


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_ready(stream: TextIO | None) -> bool:
    """Return whether the stream takes a line at once. A pipe that nobody reads is full some day."""
    if not hasattr(select, "poll"):  # as on Windows
        return True
    poll = select.poll()
    try:
        poll.register(stream.fileno() if stream else -1, select.POLLOUT)
    except (OSError, ValueError):  # it is no file, or closed
        return True
    return bool(poll.poll(0))


class _Lines:
    """Lines on standard output, unless the server would have to wait for them."""

    def __init__(self) -> None:
        self._omitted = 0

    def show(self, text: str) -> None:
        if not _is_ready(sys.stdout):
            self._omitted += 1
            return
        if self._omitted:
            write(sys.stdout, f"({self._omitted} lines omitted, as nobody read these in time)")
            self._omitted = 0
        write(sys.stdout, text)


def _serve(arguments: argparse.Namespace, key: str | None, state: StateFile | None) -> int:
    ready = partial(_introduce, arguments.host, key)
    lines = {} if arguments.verbosity == QUIET else {"show": _Lines().show}
    with closing(state) if state else nullcontext():
        try:
            serve(
                arguments.host,
                arguments.port,
                key,
                ready,
                arguments.fault,
                state=state,
                **lines,
            )
        except StateError as error:
            write(sys.stderr, f"creduse: argument --state: {error}")
            return 2
        except OSError as error:
            reason = str(error.strerror).partition(" (")[0]  # asyncio appends the address
            write(
                sys.stderr,
                f"creduse: cannot listen with this --host and --port {arguments.port}: {reason}",
            )
            return 2
    return 0


def add_parser(commands: Any) -> None:
    """Add the parser of ``sandbox``."""
    sandbox = commands.add_parser(
        "sandbox",
        key_variable=_KEY,
        description=(
            "Run a local Creduse server until Ctrl-C or SIGTERM. It prints its URL, settings to "
            "copy, and without -q a line for each request. In a browser, its URL shows users and requests. "
            f"It accepts any API key. With {_KEY} set, it accepts only that one. It starts without "
            "users and keeps nothing when it stops, except with --state."
        ),
    )
    sandbox.add_argument(
        "--host",
        type=_host,
        default="127.0.0.1",
        help="address to listen on (default: %(default)s)",
    )
    sandbox.add_argument(
        "--port",
        type=number_between(0, 65535),
        default=8000,
        help="port to listen on, 0 for any free one (default: %(default)s)",
    )
    sandbox.add_argument(
        "--state",
        metavar="FILE",
        help=(
            "keep users, the clock and idempotency keys in this file, and begin with what it "
            "holds; a kill loses nothing that a client got a response for"
        ),
    )
    add_flags(sandbox, "quiet", help="print no line for each request")
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
