"""How the tests cut connections to PostgreSQL: at the server, at the client, or in between."""

import contextlib
import os
import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import psycopg

if TYPE_CHECKING:
    from typing import Self


def named(url: str, name: str) -> str:
    """Return a URL whose connections have a name, by which they can be ended."""
    return f"{url}{'&' if '?' in url else '?'}application_name={name}"


def query(url: str, statement: str) -> list[tuple[Any, ...]]:
    """Return the rows of a statement, over a connection that `psycopg.Connection` does not know."""
    connection = psycopg.pq.PGconn.connect(url.encode())
    try:
        found = connection.exec_(statement.encode())
        assert found.status == psycopg.pq.ExecStatus.TUPLES_OK, found.error_message
        columns = range(found.nfields)
        return [tuple(found.get_value(row, it) for it in columns) for row in range(found.ntuples)]
    finally:
        connection.finish()


def terminate(url: str, name: str) -> int:
    """Let the server end all connections with a name, and return how many it ended."""
    where = f"application_name = '{name}'"
    return len(
        query(url, f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE {where}")  # noqa: S608 - ours
    )


def shut_down(connection: Any) -> None:
    """Close the socket of a connection."""
    if connection is not None and not connection.closed:
        with socket.socket(fileno=os.dup(connection.fileno())) as it:
            it.shutdown(socket.SHUT_RDWR)


def lose(connection: Any) -> None:
    """Lose a connection, so that the response to its last statement does not arrive."""
    # Not between the parts of a pipeline, where psycopg expects no error.
    if connection is not None and connection._pipeline is None:  # noqa: SLF001 - nothing else tells
        connection.close()
        raise psycopg.OperationalError("lost by the test")


CUTS: dict[str, Callable[[str, str, Any], object]] = {
    "terminated": lambda url, name, _: terminate(url, name),
    "shut down": lambda _url, _name, connection: shut_down(connection),
    "response lost": lambda _url, _name, connection: lose(connection),
}
"""Ways to cut a connection. They are given a URL, the name of the connection, and itself."""


class Proxy:
    """A network between a client and a server, which can stop to carry anything. Use it with ``with``."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        self._server = (parts.hostname, parts.port or 5432)
        self._listener = socket.create_server(("127.0.0.1", 0))
        port = self._listener.getsockname()[1]
        self.url = url.replace(f"{parts.hostname}:{parts.port}", f"127.0.0.1:{port}", 1)
        """The URL of the same database behind it."""
        self._carries = threading.Event()
        self._carries.set()
        threading.Thread(target=self._accept, daemon=True).start()

    def hang(self) -> None:
        """Carry nothing more. Connections stay open."""
        self._carries.clear()

    def come_back(self) -> None:
        """Carry all that has waited, and what comes."""
        self._carries.set()

    def __enter__(self) -> "Self":
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.come_back()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # the end
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._server)
                for pair in ((client, server), (server, client)):
                    threading.Thread(target=self._carry, args=pair, daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError), source:  # the other direction has ended
            while data := source.recv(65536):
                self._carries.wait()
                target.sendall(data)
            self._carries.wait()
            target.shutdown(socket.SHUT_RDWR)
