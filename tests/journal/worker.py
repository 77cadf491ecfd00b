"""A program that runs jobs under a journal with some threads, until somebody kills it.

Arguments: the journal, the URL of the server, the number of jobs. A job's amount is its number plus one.
"""

import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from creduse import CreduseClient, CreduseError, RetryPolicy
from creduse_journal import Journal
from tests.common import KEY, USER

THREADS = 4


def main() -> None:
    """Run all jobs once."""
    path, base_url, jobs = sys.argv[1:]
    with (
        CreduseClient(KEY, base_url=base_url, retry=RetryPolicy(max_attempts=1)) as client,
        Journal(path) as journal,
        ThreadPoolExecutor(THREADS) as pool,
    ):
        print("open", flush=True)  # noqa: T201 - for the process that kills this one

        def run(number: int) -> None:
            with suppress(CreduseError):  # it is in the journal
                journal.run(client, f"job-{number}", client.protocol.add(USER, number + 1))

        list(pool.map(run, range(int(jobs))))


if __name__ == "__main__":
    main()
