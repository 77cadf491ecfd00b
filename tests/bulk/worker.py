"""A program that sends a file, until somebody kills it. It prints "sending" when something is in flight.

If the journal fails, it prints why, and exits with 75, as the command does.
"""

import argparse
import sys
from contextlib import ExitStack
from unittest.mock import patch

import creduse_bulk
from creduse_bulk import Shard
from creduse_journal import JournalError
from tests.common import KEY


def main() -> None:
    """Send the file, and exit with the run's exit status."""
    parser = argparse.ArgumentParser()
    for name in ("method", "file", "base_url"):
        parser.add_argument(name)
    parser.add_argument("concurrency", type=int)
    parser.add_argument("--journal")
    parser.add_argument("--shard", help="such as 1/2")
    parser.add_argument("--lease", type=float, help="seconds, instead of the usual ones")
    parser.add_argument("--timeout", type=float, default=60)
    parser.add_argument("--patience", type=float, help="seconds, instead of the usual ones")
    arguments = parser.parse_args()
    told = False

    def on_progress(progress: creduse_bulk.Progress) -> None:
        nonlocal told
        if progress.in_flight and not told:
            told = True
            print("sending", flush=True)  # noqa: T201 - for the process that kills this one

    shard = arguments.shard and Shard(*map(int, arguments.shard.split("/")))
    with ExitStack() as stack:
        if arguments.lease is not None:
            shorten_lease(stack, arguments.lease)
        if arguments.patience is not None:
            stack.enter_context(patch("creduse_bulk._postgres.PATIENCE", arguments.patience))
        try:
            progress = creduse_bulk.run(
                arguments.method,
                arguments.file,
                journal=arguments.journal,
                shard=shard,
                api_key=KEY,
                base_url=arguments.base_url,
                concurrency=arguments.concurrency,
                timeout=arguments.timeout,
                on_progress=on_progress,
            )
        except JournalError as error:
            print(error, file=sys.stderr)  # noqa: T201 - for the process that started this one
            sys.exit(75)
    if progress.stopped is not None:
        print(progress.stopped, file=sys.stderr)  # noqa: T201 - the same
    sys.exit(progress.exit_status)


def shorten_lease(stack: ExitStack, lease: float) -> None:
    """Let the server end sessions that are idle for less than the usual lease."""
    from creduse_journal import postgres  # noqa: PLC0415 - its driver may not be installed

    session = postgres._SESSION  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # no setting
    usual = f"'{postgres.LEASE}s'"
    assert usual in session
    short = session.replace(usual, f"'{int(1000 * lease)}ms'")
    stack.enter_context(patch.object(postgres, "_SESSION", short))
    writer = postgres._Session  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # the same
    stack.enter_context(patch.object(writer, "idle_limit", lease / 3))


if __name__ == "__main__":
    main()
