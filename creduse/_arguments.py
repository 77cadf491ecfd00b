"""What the commands' parsers share: strict numbers, and flags that go before or after a command.

What one command alone accepts (`__main__`, `_bulk`) does not belong here.
"""

import argparse
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from creduse_core import TIMEOUT

QUIET: Final = -1
NORMAL: Final = 0
VERBOSE: Final = 1

# More than any number of credits that the client accepts.
_WHOLE: Final = re.compile(r"[0-9]{1,3000}")
_DECIMAL: Final = re.compile(r"[0-9]{1,12}(\.[0-9]{1,12})?")
# A wrong number that a message may repeat: too short and too plain to be an API key.
_QUOTABLE: Final = re.compile(r"[-+]?\.?[0-9][0-9_.,e+-]{0,11}")


def _wrong(expected: str, text: str) -> argparse.ArgumentTypeError:
    found = f", not {text}" if _QUOTABLE.fullmatch(text) else ""
    return argparse.ArgumentTypeError(f"it must be {expected}{found}")


def whole_number(text: str) -> int:
    """Return a number of digits from 0 to 9 alone. ``int`` also reads ``1_000``, ``+5`` and ``٣``."""
    if not _WHOLE.fullmatch(text):
        raise _wrong("a whole number in digits alone, such as 100", text)
    return int(text)


def number_between(least: int, most: int) -> Callable[[str], int]:
    """Return a function that reads a whole number from ``least`` to ``most``."""

    def read(text: str) -> int:
        if not _WHOLE.fullmatch(text) or not least <= int(text) <= most:
            raise _wrong(f"a whole number from {least} to {most}", text)
        return int(text)

    return read


def decimal_number(text: str) -> float:
    """Return a plain decimal number. ``float`` also reads ``nan``, ``inf``, ``1e3`` and ``1_0``."""
    if not _DECIMAL.fullmatch(text):
        raise _wrong("a decimal number from 0 on, such as 2.5", text)
    return float(text)


class _Flag(NamedTuple):
    """A flag that goes before a command and after it. The later one wins."""

    names: tuple[str, ...]
    destination: str
    default: Any
    settings: Mapping[str, Any]

    def is_in(self, arguments: argparse.Namespace) -> bool:
        """Return whether the command line has this flag."""
        given = vars(arguments)
        # Two flags can share a destination.
        return self.destination in given and (
            self.settings.get("const") in {None, given[self.destination]}
        )


_FLAGS: Final[Mapping[str, _Flag]] = {
    "verbose": _Flag(
        ("-v", "--verbose"),
        "verbosity",
        NORMAL,
        {
            "action": "store_const",
            "const": VERBOSE,
            "help": "show each attempt on standard error",
        },
    ),
    "quiet": _Flag(
        ("-q", "--quiet"),
        "verbosity",
        NORMAL,
        {
            "action": "store_const",
            "const": QUIET,
            "help": "show the result or the error alone: no progress and no advice",
        },
    ),
    "json": _Flag(
        ("--json",),
        "json",
        False,  # noqa: FBT003 - the default of this flag
        {
            "action": "store_const",
            "const": True,
            "help": "print one JSON object instead of text",
        },
    ),
    "base_url": _Flag(
        ("--base-url",), "base_url", None, {"metavar": "URL", "help": "the service's URL"}
    ),
    "timeout": _Flag(
        ("--timeout",),
        "timeout",
        None,
        {
            "metavar": "SECONDS",
            "type": decimal_number,
            "help": f"timeout of a whole call, retries included (default: CREDUSE_TIMEOUT, or {TIMEOUT:g})",
        },
    ),
}
CALL_FLAGS: Final = tuple(_FLAGS)
"""The names of all these flags. The five calls accept each."""


def arguments_of(parser: argparse.ArgumentParser) -> Iterator[Any]:
    """Yield all arguments of a parser and of its commands' parsers."""
    for action in parser._actions:  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] - as shtab does
        yield action
        for inner in commands_of(action).values():
            yield from arguments_of(inner)


def commands_of(action: Any) -> Mapping[str, argparse.ArgumentParser]:
    """Return the parsers of the commands, if the argument is a command."""
    return action.choices if action.nargs == argparse.PARSER else {}


def add_flags(parser: Any, *names: str, **changed: str) -> None:
    """Let a parser accept these flags. All other flags of the table are then errors.

    ``changed`` replaces settings of the table, such as ``help``.
    """
    for name in names:
        flag = _FLAGS[name]
        # The default of a command's parser would replace what was given before the command.
        parser.add_argument(
            *flag.names,
            dest=flag.destination,
            default=argparse.SUPPRESS,
            **{**flag.settings, **changed},
        )
    parser.set_defaults(flags=names)


def settle_flags(arguments: argparse.Namespace) -> None:
    """Set the defaults of the flags that the command accepts.

    Raises:
        ValueError: A flag was given that the command does not accept.
    """
    accepted = [_FLAGS[name] for name in arguments.flags]
    for flag in _FLAGS.values():
        if flag not in accepted and flag.is_in(arguments):
            raise ValueError(f"this command does not accept {flag.names[-1]}")
    for flag in accepted:
        if flag.destination not in arguments:
            setattr(arguments, flag.destination, flag.default)
