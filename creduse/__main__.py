"""The ``creduse`` command: the five calls, a local Creduse server, and a demonstration.

It has the parser and its help texts. How the command shows the end of a call (`_calls`), and the
commands ``bulk`` (`_bulk`) and ``sandbox`` (`_sandbox`), do not belong here.

An error is one line, without a traceback. It repeats no text argument, as any could be the API key.
A command has two parts. ``prepare`` checks arguments and settings and sends nothing, so its errors
have exit status 2. The function that it returns does the work.
"""

import argparse
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from difflib import get_close_matches
from functools import partial
from typing import Any, Final, NoReturn

from creduse_core import BASE_URL, TIMEOUT, __version__
from creduse_entry import INTERRUPTED, exit_on_interrupt
from creduse_httpx import CreduseClient

from ._arguments import CALL_FLAGS, add_flags, arguments_of, commands_of, settle_flags, whole_number
from ._bulk import add_parsers as add_bulk
from ._calls import COMMANDS, STATUSES, Command, LostOutputError, prepare, show, write
from ._completion import add_parser as add_completion
from ._demo import demo
from ._sandbox import add_parser as add_sandbox

_EPILOG: Final = "\n".join(
    [
        "environment:",
        "  CREDUSE_API_KEY       the API key; there is no flag for it, as process lists show flags",
        f"  CREDUSE_BASE_URL      the service's URL (default: {BASE_URL})",
        f"  CREDUSE_TIMEOUT       seconds for a whole call, retries included (default: {TIMEOUT:g})",
        "  CREDUSE_ALLOW_HTTP=1  allow plain http to other machines",
        "",
        "exit status:",
        *(f"  {status:<4} {meaning}" for status, meaning in STATUSES.items()),
        "  Any other status, such as after a kill, means the same as 3.",
    ]
)

# The client's advice to pass an argument. The command can only set the environment.
_IN_PYTHON: Final = re.compile(r"\bpass \w+=\S+ or (?=set CREDUSE_)")
# A value in a message: the `repr` of a text, and the words before it. After it argparse may list
# choices, which older Pythons quote.
_VALUE: Final = re.compile(
    r"""(\ \(choose\ from\ .*\)$) | (?:,\ not|:)? \ (['"])(?:\\.|(?!\2).)*\2""", re.VERBOSE
)

_OTHER_COMMANDS: Final = {
    "bulk": "make a call for each line of a file",
    "sandbox": "run a local Creduse server",
    "demo": "run all calls against a sandbox and show the results",
    "completion SHELL": "print a script that completes words in a shell",
}
_SEE: Final = "environment and exit statuses: see creduse --help"
# What argparse reads as a value and not as a flag, so that the error is about a wrong number. Its
# own pattern knows whole and decimal numbers, and differs between Pythons.
_NEGATIVE: Final = re.compile(r"-\.?\d")


def _without_values(message: str) -> str:
    """Remove the values that a message repeats: a misplaced API key could be among them."""
    return _VALUE.sub(r"\1", message)


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line and repeat no text argument. It rejects ``--api-key``."""

    def __init__(self, *, key_variable: str = "CREDUSE_API_KEY", **settings: Any) -> None:
        # The error for an ambiguous abbreviation repeats its value.
        super().__init__(allow_abbrev=False, **settings)
        self._negative_number_matcher = _NEGATIVE
        self.key_variable = key_variable
        self.set_defaults(flags=(), parser=self)  # a command's parser replaces it

        def reject(_: str) -> NoReturn:
            raise argparse.ArgumentTypeError(
                "the key cannot be an argument, because process lists show arguments; "
                f"set {key_variable}"
            )

        self.add_argument("--api-key", type=reject, help=argparse.SUPPRESS)

    def _print_message(self, message: str, file: object = None) -> None:  # noqa: ARG002 - as argparse calls it
        # Of the help and the version. argparse ignores what cannot be written.
        show(message.rstrip("\n"), plain=True)

    def error(self, message: str) -> NoReturn:
        write(sys.stderr, f"{self.prog}: {_without_values(message)} (see {self.prog} --help)")
        self.exit(2)


def _demo(_: argparse.Namespace) -> Callable[[], int]:
    key = os.environ.get("CREDUSE_API_KEY", "demo-key")
    CreduseClient(key)  # raises for wrong settings in the environment, as in any program
    return partial(_run_demo, key)


def _run_demo(key: str) -> int:
    demo(key, show)
    return 0


_EXAMPLE_VALUES: Final = {
    "end_user_id": "12345678-1234-5678-1234-567812345678",
    "amount": "100",
}


# The parser's arguments for the five calls, by the parameter's name.
_ARGUMENTS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "end_user_id": ("end_user_id", {"metavar": "USER", "help": "the end user's id, a UUID"}),
    "amount": (
        "amount",
        {"metavar": "AMOUNT", "type": whole_number, "help": "credits, a whole number"},
    ),
    "validity_days": (
        "--validity-days",
        {
            "metavar": "DAYS",
            "type": whole_number,
            "default": 31,
            "help": "days until the credits expire (default: %(default)s)",
        },
    ),
    "idempotency_key": (
        "--idempotency-key",
        {
            "metavar": "KEY",
            "help": (
                "value of the Idempotency-Key header; only for a server that applies each key "
                "once, as the client then retries a call that may have been applied; Creduse does "
                "not document such keys"
            ),
        },
    ),
}


def _add_call(commands: Any, name: str, command: Command) -> None:
    parser = commands.add_parser(
        name,
        description=f"{command.help[0].upper()}{command.help[1:]}.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"example:\n  creduse {_example(name, command)}\n\n{_SEE}",
    )
    for parameter in command.parameters:
        flag, settings = _ARGUMENTS[parameter]
        parser.add_argument(flag, **settings)
    add_flags(parser, *CALL_FLAGS)
    parser.set_defaults(prepare=partial(prepare, command))


def _synopsis(name: str, command: Command) -> str:
    arguments = (_ARGUMENTS[parameter] for parameter in command.parameters)
    return " ".join([name, *(it["metavar"] for flag, it in arguments if not flag.startswith("-"))])


def _example(name: str, command: Command) -> str:
    values = (_EXAMPLE_VALUES[it] for it in command.parameters if it in _EXAMPLE_VALUES)
    return " ".join([name, *values])


def _describe_commands() -> str:
    """Return a line for each command. argparse's own list lacks their arguments."""
    helps = {_synopsis(name, command): command.help for name, command in COMMANDS.items()}
    helps |= _OTHER_COMMANDS
    width = max(map(len, helps))
    return "\n".join(f"  {name:<{width}}  {text}" for name, text in helps.items())


def _make_parser() -> _Parser:
    parser = _Parser(
        prog="creduse",
        usage="creduse [FLAGS] COMMAND ...",
        description=(
            "Manage end users' credits. Every error says whether credits moved.\n\n"
            f"commands:\n{_describe_commands()}\n\n"
            "example:\n"
            f"  creduse {_example('balance', COMMANDS['balance'])}\n\n"
            "creduse COMMAND --help has an example of each. Flags go before or after the command."
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=_EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"creduse {__version__}")
    add_flags(parser, *CALL_FLAGS)
    commands = parser.add_subparsers(prog="creduse", metavar="COMMAND", help=argparse.SUPPRESS)
    for name, command in COMMANDS.items():
        _add_call(commands, name, command)

    def no_command(_: argparse.Namespace) -> NoReturn:
        choices = ", ".join(commands.choices)
        raise ValueError(f"no command; choose one of {choices} (see creduse --help)")

    parser.set_defaults(prepare=no_command)
    add_bulk(commands)
    add_sandbox(commands)
    demonstration = commands.add_parser(
        "demo",
        description=(
            "Start a sandbox, call all methods on it and show the results, also of a call whose "
            "response is lost."
        ),
    )
    demonstration.set_defaults(prepare=_demo)
    add_completion(commands, _make_parser)
    return parser


def _describe_unknown(arguments: Sequence[str], flags: set[str], key_variable: str) -> str:
    """Return a message on unknown arguments that repeats none of them, but can name a flag."""
    close: list[str] = []
    for name in (argument.partition("=")[0] for argument in arguments):
        if name in flags:
            return f"this command does not accept {name}"
        if name.startswith("-"):
            close += get_close_matches(name, flags, 1, 0.75)
    hint = f"; did you mean {close[0]}?" if close else ""
    what, which = "unrecognized arguments", "one"
    if not any(it.startswith("-") for it in arguments):
        what = f"{len(arguments)} arguments too many"
        if len(arguments) == 1:
            what, which = "one argument too many", "it"
    return f"{what}, not shown here, as {which} could be the API key; set {key_variable} for that{hint}"


def _flag_before_command(parser: argparse.ArgumentParser, words: Sequence[str]) -> str | None:
    """Return a flag of a command that stands before it, whose value argparse takes for the command.

    It takes ``--`` itself for the command.
    """
    for word in words:
        actions = parser._actions  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] - as shtab does
        commands = {name: it for action in actions for name, it in commands_of(action).items()}
        if not commands:
            return None
        flag = word.partition("=")[0]
        own = {flag for action in actions for flag in action.option_strings}
        flags = {"--", *(flag for it in arguments_of(parser) for flag in it.option_strings)}
        if flag in flags - own:
            return flag
        parser = commands.get(word, parser)
    return None


def _run(argv: Sequence[str] | None) -> int:
    parser = _make_parser()
    try:
        early = _flag_before_command(parser, sys.argv[1:] if argv is None else argv)
        if early is not None:
            parser.error(f"{early} goes after the command")
        arguments, unknown = parser.parse_known_args(argv)
        if unknown:
            flags = {flag for it in arguments_of(parser) for flag in it.option_strings}
            command: _Parser = arguments.parser
            command.error(_describe_unknown(unknown, flags - {"--api-key"}, command.key_variable))
        settle_flags(arguments)
        start: Callable[[], int] = arguments.prepare(arguments)
    except ValueError as error:
        write(sys.stderr, f"creduse: {_without_values(_IN_PYTHON.sub('', str(error)))}")
        return 2
    return start()


def _run_until_interrupted(argv: Sequence[str] | None) -> int:
    try:
        return _run(argv)
    except LostOutputError as error:
        write(sys.stderr, f"creduse: the output {error}")
        return 1
    except KeyboardInterrupt:  # not during a call: that reports its outcome
        write(sys.stderr, "creduse: interrupted")
        return INTERRUPTED


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status.

    It is safe to call in any thread, except for ``sandbox``, and restores signal handlers. As with
    argparse, ``--help`` and arguments that cannot be parsed raise ``SystemExit``.
    """
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        return _run_until_interrupted(argv)
    finally:
        for number, handler in handlers.items():
            # ValueError: only the main thread sets handlers. TypeError: it is not a Python handler.
            with suppress(ValueError, TypeError):
                signal.signal(number, handler)


def script() -> NoReturn:
    """Run the command and exit the process with its exit status."""
    exit_on_interrupt()
    try:
        status = _run_until_interrupted(None)
    finally:
        # Neither Ctrl-C while Python exits nor a failed stream, which Python flushes again, may
        # change the exit status.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for stream in filter(None, (sys.stdout, sys.stderr)):
            try:
                stream.flush()
            except OSError:
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(status)


if __name__ == "__main__":
    script()
