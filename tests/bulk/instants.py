"""Counts the instants of a run: before and after each statement of SQLite, and each request.

As a program, it sends a file and kills itself at one instant. Arguments: the file, the URL of the server,
and the number of the instant.
"""

import os
import signal
import sqlite3
import sys
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import creduse_aiohttp
import creduse_bulk
from creduse_core import Response, Send
from tests.common import KEY

CONCURRENCY = 2


class Instants:
    """Calls a function at one instant."""

    def __init__(self, number: int, act: Callable[[], object]) -> None:
        self.left = number
        self._act = act

    def pass_one(self) -> None:
        """Count an instant."""
        self.left -= 1
        if self.left == 0:
            self._act()

    def watch(self) -> Any:
        """Count from here on, until the context ends."""
        instants = self
        connect = sqlite3.connect

        class Connection(sqlite3.Connection):
            def execute(self, *given: Any) -> sqlite3.Cursor:
                instants.pass_one()
                cursor = super().execute(*given)
                instants.pass_one()
                return cursor

        def connect_watched(*given: Any, **options: Any) -> sqlite3.Connection:
            return connect(*given, factory=Connection, **options)

        return patch("sqlite3.connect", connect_watched)

    def watched(self, client: Any) -> Any:
        """Return a client whose requests are counted."""
        transport = client._transport  # noqa: SLF001 - the conformance kit wraps it, too
        send = transport.send

        async def send_watched(it: Send) -> Response | Any:
            self.pass_one()
            response = await send(it)
            self.pass_one()
            return response

        transport.send = send_watched
        return client


def main() -> None:
    """Send the file, and die at the instant."""
    file, base_url, number = sys.argv[1:]
    instants = Instants(int(number), lambda: os.kill(os.getpid(), signal.SIGKILL))

    def make_client(**_: Any) -> Any:
        return instants.watched(creduse_aiohttp.AsyncCreduseClient(KEY, base_url=base_url))

    with instants.watch(), patch("creduse_bulk._run.make_client", make_client):
        progress = creduse_bulk.run("add", file, concurrency=CONCURRENCY)
    sys.exit(progress.exit_status)


if __name__ == "__main__":
    main()
