"""A program that sends a file, until somebody kills it.

Arguments: the method, the file, the URL of the server, and the concurrency.
"""

import sys

import creduse_bulk
from tests.common import KEY


def main() -> None:
    """Send the file, and exit with the run's exit status."""
    method, file, base_url, concurrency = sys.argv[1:]
    told = False

    def on_progress(progress: creduse_bulk.Progress) -> None:
        nonlocal told
        if progress.in_flight and not told:
            told = True
            print("sending", flush=True)  # noqa: T201 - for the process that kills this one

    progress = creduse_bulk.run(
        method,
        file,
        api_key=KEY,
        base_url=base_url,
        concurrency=int(concurrency),
        timeout=5,
        on_progress=on_progress,
    )
    sys.exit(progress.exit_status)


if __name__ == "__main__":
    main()
