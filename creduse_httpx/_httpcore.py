"""All uses of private names of httpx, httpx2 and httpcore. No other module uses any.

If a name is missing, each function does what its docstring says. Then its test fails
(tests/httpx/test_httpcore.py).
"""

import socket
from contextlib import nullcontext
from typing import Any

import httpcore

from creduse_core import Proxy, Secret


def transport_for(http_client: Any, url: Any) -> Any:
    """Return the transport that a supplied client uses for a URL: its pool, or a proxy's pool.

    The client's own ``send`` would add auth and cookies and follow redirects. Its event hooks, of
    which ``raise_for_status`` is a common one, could take the response away. httpx has no public
    name for this: https://github.com/encode/httpx/discussions/1681. Without the private name, no
    call works, and the `AttributeError` says so.
    """
    return http_client._transport_for_url(url)  # noqa: SLF001 - see the docstring


def direct_transport(http_client: Any, url: Any) -> Any:
    """Return the transport that a supplied client uses without a proxy of the environment.

    httpx separates ``transport=`` from the environment's proxies only under private names:
    https://github.com/encode/httpx/blob/0.28.1/httpx/_client.py#L680. Without the private name,
    return the same as `transport_for`.
    """
    return getattr(http_client, "_transport", None) or transport_for(http_client, url)


def speaks_http2(transport: Any) -> bool:
    """Return whether a transport is known to allow HTTP/2.

    httpx sets it in its httpcore pool:
    https://github.com/encode/httpcore/blob/1.0.9/httpcore/_sync/connection_pool.py#L114. Without
    the private name, the first call rejects HTTP/2 before it sends its request.
    """
    return bool(getattr(getattr(transport, "_pool", None), "_http2", False))


def proxy_of(transport: Any) -> Proxy | None:
    """Return the proxy of a transport, or ``None``. Its password is not known here.

    Only a private name of httpcore's pools has it:
    https://github.com/encode/httpcore/blob/1.0.9/httpcore/_sync/http_proxy.py#L90. Without it,
    errors do not name the proxy.
    """
    url: Any = getattr(getattr(transport, "_pool", None), "_proxy_url", None)
    if url is None:
        return None
    scheme, host = url.scheme.decode("ascii"), url.host.decode("ascii")
    port = "" if url.port is None else f":{url.port}"
    return Proxy(f"{scheme}://{f'[{host}]' if ':' in host else host}{port}", Secret(""))


def set_backend(transport: Any, backend: object) -> bool:
    """Make a transport of ours use this network backend, and return whether it does.

    httpcore's pools accept a backend, but httpx's transports do not pass one on:
    https://github.com/encode/httpx/discussions/1929. Without the private name, the client works as
    with a mock. Each failure is UNKNOWN, only httpx's timeouts apply, and no connection is reused.
    """
    pool: Any = getattr(transport, "_pool", None)
    if not hasattr(pool, "_network_backend"):
        return False
    pool._network_backend = backend  # noqa: SLF001 - see the docstring
    return True


def remove_lock(transport: Any) -> None:
    """Remove the lock from the pool of a transport of ours. One thread at a time uses that pool.

    A signal handler's exception can leave the lock acquired, and httpcore then waits for it
    forever: https://github.com/encode/httpcore/blob/1.0.9/httpcore/_synchronization.py#L255.
    Without the private name, this can happen.
    """
    pool: Any = getattr(transport, "_pool", None)
    if hasattr(pool, "_optional_thread_lock"):
        pool._optional_thread_lock = nullcontext()  # noqa: SLF001 - see the docstring


def stream_on(sock: socket.socket) -> httpcore.NetworkStream:
    """Return httpcore's stream on a connected socket.

    httpcore's own backend makes its stream itself, and another thread cannot end its connecting:
    https://github.com/encode/httpcore/blob/1.0.9/httpcore/_backends/sync.py#L95. Without the
    private name, no call works, and the `ImportError` says so.
    """
    from httpcore._backends.sync import SyncStream  # noqa: PLC0415 - see the docstring

    return SyncStream(sock)


def is_drained(transport: Any) -> bool:
    """Return whether a transport has one connection, which is idle and holds no unrequested bytes.

    h11 keeps bytes that follow a response, and httpcore would read them as the next response:
    https://h11.readthedocs.io/en/latest/api.html#h11.Connection.trailing_data. Without the private
    names, return ``False``, so the connection is not reused.
    """
    connections: list[Any] = getattr(getattr(transport, "_pool", None), "connections", [])
    return len(connections) == 1 and connections[0].is_idle() and _is_drained(connections[0])


def is_response_drained(response: Any) -> bool:
    """Return whether the connection of a supplied client's response holds no unrequested bytes.

    The response's stream must not be closed yet. Without the private names, return ``False``.
    """
    stream = getattr(response.stream, "_httpcore_stream", None)  # httpx's stream wraps the pool's
    stream = getattr(stream, "_stream", None)  # the pool's wraps the connection's
    return _is_drained(getattr(stream, "_connection", None))


def are_buffers_empty(stream: Any) -> bool:
    """Return whether no bytes are buffered between a stream's socket and HTTP.

    Part of a TLS record is an example. Without the private names, return ``False``, so the
    connection is not reused.
    """
    return not has_part_of_record(stream) and _has_read_ahead(stream) is False


def stream_of(transport: Any, timeouts: object) -> Any:
    """Return the stream on which a supplied client's pool is about to send a request, or ``None``.

    ``timeouts`` is the request's extension. A public name has the stream only when the response has
    come: https://github.com/encode/httpcore/blob/1.0.9/httpcore/_async/connection_pool.py#L34.
    Without the private names, return ``None``, and a connection that is used again is not checked.
    """
    for each in [*getattr(getattr(transport, "_pool", None), "_requests", ())]:
        if each.request.extensions.get("timeout") is timeouts:
            connection = each.connection
            # A proxy's connection contains the server's.
            while connection is not None and not hasattr(connection, "_network_stream"):
                connection = getattr(connection, "_connection", None)
            return getattr(connection, "_network_stream", None)
    return None


def has_read_ahead(stream: Any) -> bool:
    """Return whether a stream has read bytes from its socket that are not in its TLS object yet.

    Without the private names, return ``False``. Bytes that the event loop has read before the
    request are then not detected.
    """
    return _has_read_ahead(stream) is True


def _has_read_ahead(stream: Any) -> bool | None:
    """Return whether bytes are buffered below a stream's TLS object, or ``None`` if it is not known.

    The streams of anyio and trio below httpcore's keep what they have read ahead under private
    names: https://github.com/agronholm/anyio/blob/4.16.0/src/anyio/streams/tls.py#L96 and
    https://github.com/python-trio/trio/blob/v0.35.0/src/trio/_ssl.py#L377. So does httpcore's for TLS
    within a proxy's TLS:
    https://github.com/encode/httpcore/blob/1.0.9/httpcore/_backends/sync.py#L35.
    """
    layer = getattr(stream, "_stream", None)  # only httpcore's asynchronous streams have it
    if layer is None:
        # A synchronous stream has a buffer only for TLS within a proxy's TLS.
        encrypted = getattr(stream, "_incoming", None)
        held = encrypted is not None and bool(encrypted.pending)
        return held if hasattr(stream, "_sock") else None
    uppermost = True
    while (below := getattr(layer, "transport_stream", None)) is not None:  # TLS of anyio or trio
        encrypted = getattr(layer, "_read_bio", None) or getattr(layer, "_incoming", None)
        tls = _tls_object(layer)
        if encrypted is None or tls is None:
            return None
        # What the uppermost TLS object itself holds can be a session ticket, so it is read.
        if encrypted.pending or (not uppermost and tls.pending()):
            return True
        layer, uppermost = below, False
    if hasattr(layer, "_protocol"):  # anyio's on asyncio
        queue: Any = getattr(layer._protocol, "read_queue", None)  # noqa: SLF001 - see the docstring
        return None if queue is None else bool(queue)
    # trio's own, or anyio's on trio.
    return False if "trio" in type(layer).__module__ else None


def has_part_of_record(stream: Any) -> bool:
    """Return whether a TLS layer of a stream holds part of a record.

    The layers of anyio and trio have private names; see `_has_read_ahead`. Without them, and with
    TLS objects that are not `creduse_core.tls.WholeRecords`, return ``False``. Part of a record is
    then not detected: see docs/limits.md.
    """
    layer = getattr(stream, "_stream", stream)
    while layer is not None:
        if getattr(_tls_object(layer), "has_part", False):
            return True
        layer = getattr(layer, "transport_stream", None)
    return False


def _tls_object(layer: Any) -> Any:
    return getattr(layer, "_ssl_object", None) or getattr(layer, "ssl_obj", None)


def _is_drained(connection: Any) -> bool:
    # A proxy's connection contains the server's, which contains the HTTP/1.1 connection.
    while connection is not None and not hasattr(connection, "_h11_state"):
        connection = getattr(connection, "_connection", None)
    state = getattr(connection, "_h11_state", None)
    return getattr(state, "trailing_data", None) == (b"", False)
