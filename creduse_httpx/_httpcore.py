"""Whatever reaches below the public API of httpx, httpx2 and httpcore: here, and nowhere else.

Each function falls back, where a name is gone, to what its docstring says. A test of each fails
then (tests/httpx/test_httpcore.py).
"""

import socket
from collections import deque
from contextlib import nullcontext
from typing import Any

import httpcore


def transport_for(http_client: Any, url: Any) -> Any:
    """Return the transport that a supplied client has for a URL: its pool, or that of a proxy.

    Not the client itself, since its auth, cookies and redirects would change what is sent, and its
    event hooks, of which ``raise_for_status`` is a common one, would take the response away. There
    is no public name for it: https://github.com/encode/httpx/discussions/1681.
    Without it no call can be made, and the `AttributeError` says so.
    """
    return http_client._transport_for_url(url)  # noqa: SLF001 - see above


def direct_transport(http_client: Any, url: Any) -> Any:
    """Return the transport that a supplied client has where no proxy is meant.

    httpx keeps what ``transport=`` and the environment make apart, under private names alone:
    https://github.com/encode/httpx/blob/0.28.1/httpx/_client.py#L680. Else as `transport_for`.
    """
    return getattr(http_client, "_transport", None) or transport_for(http_client, url)


def speaks_http2(transport: Any) -> bool:
    """Return whether a transport may speak HTTP/2, as far as can be seen before a call.

    httpx keeps it in its httpcore pool: https://github.com/encode/httpcore/blob/1.0.9/httpcore/_sync/connection_pool.py#L114.
    Without it the first call finds out, before its request is sent.
    """
    return bool(getattr(getattr(transport, "_pool", None), "_http2", False))


def set_backend(transport: Any, backend: object) -> bool:
    """Have a transport of ours use this network backend, and return whether it does.

    httpcore's pools take one, but httpx's transports do not hand it on:
    https://github.com/encode/httpx/discussions/1929. Without it the client works, but knows and
    bounds less, as with a mock: failures are UNKNOWN, and no connection is reused.
    """
    pool: Any = getattr(transport, "_pool", None)
    if not hasattr(pool, "_network_backend"):
        return False
    pool._network_backend = backend  # noqa: SLF001 - see above
    return True


def unlock(transport: Any) -> None:
    """Take the lock off the pool of a transport of ours, which one thread at a time uses.

    An exception of a signal handler that strikes while httpcore acquires it leaves it locked, and
    httpcore then waits for it for ever:
    https://github.com/encode/httpcore/blob/1.0.9/httpcore/_synchronization.py#L255. Without the
    private name that limit is back.
    """
    pool: Any = getattr(transport, "_pool", None)
    if hasattr(pool, "_optional_thread_lock"):
        pool._optional_thread_lock = nullcontext()  # noqa: SLF001 - see above


def stream_on(sock: socket.socket) -> httpcore.NetworkStream:
    """Return httpcore's stream on a connected socket.

    httpcore's own backend connects without a way to end that from another thread, and makes its
    stream by itself: https://github.com/encode/httpcore/blob/1.0.9/httpcore/_backends/sync.py#L95.
    Without it no call can be made, and the `ImportError` says so.
    """
    from httpcore._backends.sync import SyncStream  # noqa: PLC0415 - see above

    return SyncStream(sock)


def is_drained(transport: Any) -> bool:
    """Return whether the one connection of a transport is idle, and nothing is left in it.

    h11 keeps the bytes behind a response, and httpcore takes them for the next one:
    https://h11.readthedocs.io/en/latest/api.html#h11.Connection.trailing_data. Where that cannot be
    seen, nor where there is no connection, the connection is not reused.
    """
    connections: list[Any] = getattr(getattr(transport, "_pool", None), "connections", [])
    return len(connections) == 1 and connections[0].is_idle() and _is_drained(connections[0])


def is_response_drained(response: Any) -> bool:
    """Return the same of a response of a supplied client, whose stream has not been closed yet."""
    stream = getattr(response.stream, "_httpcore_stream", None)  # httpx's, of the pool's
    stream = getattr(stream, "_stream", None)  # the pool's, of the connection's
    return _is_drained(getattr(stream, "_connection", None))


def are_buffers_empty(stream: Any) -> bool:
    """Return whether nothing lies between the socket of a stream and HTTP: part of a record, say.

    The streams of anyio and trio below httpcore's keep what they have read ahead under private names.
    https://github.com/agronholm/anyio/blob/4.16.0/src/anyio/streams/tls.py#L96 and
    https://github.com/python-trio/trio/blob/v0.35.0/src/trio/_ssl.py#L377. A socket of its own reads
    nothing ahead. Where that cannot be seen, a connection is not reused.
    """
    inner = getattr(stream, "_stream", None)  # httpcore's on an event loop
    if inner is None:
        ssl_object = getattr(stream, "ssl_obj", None)  # within a proxy's TLS
        return hasattr(stream, "_sock") and not getattr(ssl_object, "has_part", False)
    while (below := getattr(inner, "transport_stream", None)) is not None:  # TLS, of either
        buffer = getattr(inner, "_read_bio", None) or getattr(inner, "_incoming", None)
        ssl_object = getattr(inner, "_ssl_object", None)
        if getattr(buffer, "pending", True) or getattr(ssl_object, "has_part", False):
            return False
        inner = below
    if hasattr(inner, "_protocol"):  # asyncio's, of anyio
        return getattr(inner._protocol, "read_queue", True) == deque()  # noqa: SLF001 - see above
    return type(inner).__module__.partition(".")[0] == "trio"


def _is_drained(connection: Any) -> bool:
    # A connection to a proxy holds the one to the server, and that one HTTP/1.1's.
    while connection is not None and not hasattr(connection, "_h11_state"):
        connection = getattr(connection, "_connection", None)
    state = getattr(connection, "_h11_state", None)
    return getattr(state, "trailing_data", None) == (b"", False)
