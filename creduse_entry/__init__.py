"""The entry point of the ``creduse`` command. It handles Ctrl-C before anything else is imported.

To import `creduse`, httpx and the rest takes a third of a second. An interrupt in that time would
end in a traceback. So this package is not part of `creduse`, and its own imports are few. The
command itself (`creduse.__main__`) does not belong here.
"""

import os
import signal
import sys
from types import FrameType
from typing import Final, NoReturn

__all__ = ["INTERRUPTED", "exit_at_once", "exit_on_interrupt", "script"]

INTERRUPTED: Final = 130
"""The exit status after Ctrl-C, if nothing was applied."""


def exit_at_once(_number: int, _frame: FrameType | None) -> NoReturn:
    """End the process, as a handler of SIGINT. Nothing is cleaned up, as after a kill."""
    # Without standard error, its descriptor can be another file's. `print` is not reentrant.
    if sys.stderr is not None:  # pyright: ignore[reportUnnecessaryComparison] - None if closed
        try:  # noqa: SIM105 - contextlib takes long to import
            # A terminal shows ^C, and stays on that line.
            os.write(2, b"\n" * os.isatty(2) + b"creduse: interrupted\n")
        except OSError:
            pass
    os._exit(INTERRUPTED)


def exit_on_interrupt() -> None:
    """Let Ctrl-C end the process at once, unless it is ignored, as in a shell's background jobs."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, exit_at_once)


def script() -> NoReturn:
    """Run the command and exit the process with its exit status."""
    exit_on_interrupt()
    from creduse.__main__ import script as run  # noqa: PLC0415 - it takes long

    run()
