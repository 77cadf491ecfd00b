"""Counts the instants of a run: before and after each statement of the database, and each request.

As a program, it sends a file and kills itself at one instant. Arguments: the file, the URL of the server,
the number of the instant, and the URL of a journal in PostgreSQL, if it is there.
"""

import os
import signal
import sqlite3
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import psycopg

import creduse_aiohttp
import creduse_bulk
from creduse_core import Response, Send
from tests.common import KEY

CONCURRENCY = 2


class Instants:
    """Calls a function at one instant. It is given the connection whose statement that is, or ``None``."""

    def __init__(self, number: int, act: Callable[[Any], object]) -> None:
        self._left = number
        self._act = act
        self._lock = threading.Lock()
        self.is_over = False
        """Whether the instant has come."""

    def pass_one(self, connection: Any = None) -> None:
        """Count an instant."""
        with self._lock:
            self._left -= 1
            is_now = self._left == 0
        if is_now:
            self.is_over = True
            self._act(connection)

    @contextmanager
    def watch(self) -> Generator[None]:
        """Count from here on, until the context ends."""
        with (
            patch("sqlite3.connect", self._sqlite()),
            patch("psycopg.Connection.wait", self._psycopg()),
        ):
            yield

    def _sqlite(self) -> Callable[..., sqlite3.Connection]:
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

        return connect_watched

    def _psycopg(self) -> Callable[..., object]:
        # Whatever is sent to the server goes through it, and so do BEGIN and COMMIT.
        wait: Callable[..., object] = psycopg.Connection.wait

        def wait_watched(connection: Any, *given: Any, **options: Any) -> object:
            self.pass_one(connection)
            result = wait(connection, *given, **options)
            self.pass_one(connection)
            return result

        return wait_watched

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
    file, base_url, number, *journal = sys.argv[1:]
    instants = Instants(int(number), lambda _: os.kill(os.getpid(), signal.SIGKILL))

    def make_client(**_: Any) -> Any:
        return instants.watched(creduse_aiohttp.AsyncCreduseClient(KEY, base_url=base_url))

    with instants.watch(), patch("creduse_bulk._run.make_client", make_client):
        progress = creduse_bulk.run(
            "add", file, journal=next(iter(journal), None), concurrency=CONCURRENCY
        )
    sys.exit(progress.exit_status)


if __name__ == "__main__":
    main()
