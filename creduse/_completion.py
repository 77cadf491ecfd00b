"""``creduse completion``: scripts that complete the command's words in bash, zsh and fish.

`shtab` makes them from the parser. What the words mean (`__main__`, `_bulk`) does not belong here.
"""

import argparse
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from creduse_sandbox import FAULTS

from ._arguments import arguments_of, commands_of
from ._calls import show, write

SHELLS: Final = ("bash", "zsh", "fish")

_EPILOG: Final = """\
example:
  creduse completion bash > ~/.local/share/bash-completion/completions/creduse
  creduse completion zsh > ~/.zfunc/_creduse  # a directory of $fpath
  creduse completion fish > ~/.config/fish/completions/creduse.fish
"""
_FAULTS: Final = " ".join(FAULTS)
_FILE: Final = "file"
# No words, but zsh then still completes flags in the place of this argument.
_NOTHING: Final = {"zsh": "()"}
# What shtab completes the value of an argument with, by its last name.
_VALUES: Final[Mapping[str, object]] = {
    "end_user_id": _NOTHING,
    "amount": _NOTHING,
    "file": _FILE,
    "--journal": _FILE,
    "--findings": _FILE,
    "--decisions": _FILE,
    "--state": _FILE,
    "--fault": {
        "bash": "_creduse_faults",
        "zsh": f"({_FAULTS})",
        "fish": _FAULTS,
        "preamble": {"bash": f'_creduse_faults() {{ compgen -W "{_FAULTS}" -- "$1"; }}'},
    },
}


def add_parser(commands: Any, make_parser: Callable[[], argparse.ArgumentParser]) -> None:
    """Add the parser of ``completion``. ``make_parser`` returns a new parser of the whole command."""
    parser = commands.add_parser(
        "completion",
        description="Print a script that completes the command's words in a shell.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=_EPILOG,
    )
    parser.add_argument("shell", metavar="SHELL", choices=SHELLS, help="bash, zsh or fish")
    parser.set_defaults(prepare=partial(_prepare, make_parser))


def _prepare(
    make_parser: Callable[[], argparse.ArgumentParser], arguments: argparse.Namespace
) -> Callable[[], int]:
    try:
        import shtab  # noqa: PLC0415 - the extra "completion" has it
    except ImportError:
        return _say_what_is_missing
    parser = make_parser()
    for action in arguments_of(parser):
        _describe(action)
    script = shtab.complete(parser, arguments.shell)

    def act() -> int:
        show(script, plain=True)
        return 0

    return act


def _say_what_is_missing() -> int:
    write(sys.stderr, "creduse: this needs shtab: pip install 'creduse[completion]>=0.2'")
    return 2


def _describe(action: Any) -> None:
    """Tell shtab what completes an argument."""
    name = action.option_strings[-1] if action.option_strings else action.dest
    if name in _VALUES:
        action.complete = _VALUES[name]
    if action.metavar:
        action.metavar = action.metavar.partition("[")[0]  # zsh needs a word without a colon
    if commands_of(action):
        # It has no help, as argparse's own list of commands lacks their arguments. shtab would
        # leave out these commands.
        action.help = None
        action._choices_actions = [  # noqa: SLF001 - as shtab does
            action._ChoicesPseudoAction(name, (), parser.description)  # noqa: SLF001 - as above
            for name, parser in commands_of(action).items()
        ]
