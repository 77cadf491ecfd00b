"""A server on a socket that can misbehave in any way."""

import itertools
import select
import socket
import ssl
import threading
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager, suppress
from typing import TypeAlias


class RawServer:
    """A server in threads of its own, which runs a function on each connection, then closes it.

    With ``ssl_context``, the function gets the connection after the TLS handshake.
    """

    def __init__(self, behave: "Behave", ssl_context: ssl.SSLContext | None = None) -> None:
        self._behave = behave
        self._ssl_context = ssl_context
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._numbers: dict[socket.socket, int] = {}
        self._threads: set[threading.Thread] = set()
        self.stopping = threading.Event()
        self.received: list[bytes] = []
        """The requests."""
        self.received_on: list[int] = []
        """The number of each request's connection. The first one is 1."""
        self.connections = 0
        """How many connections the server has accepted."""
        scheme = "http" if ssl_context is None else "https"
        self.base_url = f"{scheme}://127.0.0.1:{self._listener.getsockname()[1]}"
        self._accepting = threading.Thread(target=self._accept)
        self._accepting.start()

    def number(self, connection: socket.socket) -> int:
        """Return the number of a connection, from 1; 0 for a socket that ``behave`` made of it."""
        return self._numbers.get(connection, 0)

    def request(self, connection: socket.socket, end: bytes = b"}") -> bytes:
        """Read one whole request, and return it; ``b""`` if the client has closed."""
        data = b""
        while not data.endswith(end):
            piece = connection.recv(65536)
            if not piece:
                break
            data += piece
        if data:
            self.received.append(data)
            self.received_on.append(self.number(connection))
        return data

    def close(self) -> None:
        """End every connection, and wait for the threads."""
        self.stopping.set()
        for it in (self._listener, *tuple(self._numbers)):
            with suppress(OSError):
                it.shutdown(socket.SHUT_RDWR)
        for thread in (self._accepting, *tuple(self._threads)):
            thread.join()
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            for number in itertools.count(1):
                connection, _ = self._listener.accept()
                self.connections = number
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                thread = threading.Thread(target=self._serve, args=(connection, number))
                self._threads.add(thread)
                thread.start()

    def _serve(self, connection: socket.socket, number: int) -> None:
        with suppress(OSError), self._numbered(connection, number):
            if self._ssl_context is None:
                self._behave(connection, self)
            else:
                connection.settimeout(30)
                secure = self._ssl_context.wrap_socket(connection, server_side=True)
                with self._numbered(secure, number):
                    self._behave(secure, self)
        self._threads.discard(threading.current_thread())

    @contextmanager
    def _numbered(self, connection: socket.socket, number: int) -> Generator[None]:
        self._numbers[connection] = number
        try:
            with connection:
                yield
        finally:
            del self._numbers[connection]


Behave: TypeAlias = Callable[[socket.socket, RawServer], None]
Start: TypeAlias = Callable[[Behave], RawServer]


@contextmanager
def raw_servers(ssl_context: ssl.SSLContext | None = None) -> Generator[Start]:
    """Return a function that starts a server. The servers close at the end."""
    with ExitStack() as stack:

        def start(behave: Behave) -> RawServer:
            server = RawServer(behave, ssl_context)
            stack.callback(server.close)
            return server

        yield start


def never_respond(connection: socket.socket, server: RawServer) -> None:
    """Read one request, and wait until the client closes the connection."""
    server.request(connection)
    wait_for_end(connection)


def relay(one: socket.socket, other: socket.socket) -> None:
    """Carry bytes both ways until one of the connections ends.

    A thread for each way would be wrong: where one writes to a TLS connection while the other reads
    from it, the reader can take the writer's state for a failure.
    """
    with suppress(OSError):
        while True:
            for source in select.select([one, other], [], [])[0]:
                if not (data := source.recv(65536)):
                    return
                (other if source is one else one).sendall(data)


def wait_for_end(connection: socket.socket) -> None:
    """Read until the client closes the connection."""
    while connection.recv(65536):
        pass
