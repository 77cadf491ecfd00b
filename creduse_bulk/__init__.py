"""Send a call for each line of a file, each at most once, across crashes and lost responses.

Example::

    import creduse_bulk

    progress = creduse_bulk.run("add", "grants.csv")

The command ``creduse bulk add grants.csv`` does the same. The same call, or command, goes on where an
earlier one stopped.
"""

from ._follow import follow, follow_async
from ._input import Shard
from ._progress import Progress, status
from ._records import InputError
from ._report import report
from ._run import run, run_async

__all__ = [
    "InputError",
    "Progress",
    "Shard",
    "follow",
    "follow_async",
    "report",
    "run",
    "run_async",
    "status",
]
