"""Transports over a supplied httpx client, with its connection pool and its settings.

httpx's trace extension reports what was sent. httpcore calls it with the name of each step, such as
``http11.send_request_headers.started``. No exception type says as much. Own connections do not
belong here.
"""

import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from functools import cache
from types import ModuleType
from typing import Any, Final

from creduse_core import (
    CreduseProtocol,
    Failure,
    ForeignError,
    Proxy,
    Response,
    Send,
    proxy_from_environment,
)
from creduse_core.error_texts import CLOSED

from ._clients import AsyncHTTPXClient, HTTPXClient
from ._clocks import AsyncClock, Clock, current_loop
from ._exchange import (
    NO_TIME_TO_SEND,
    NO_WHOLE_RESPONSE,
    BodyIterator,
    Exchange,
    HeaderCache,
    not_sent,
)
from ._foreign import IGNORE_LIBRARY_ERRORS, LIBRARIES
from ._httpcore import (
    are_buffers_empty,
    direct_transport,
    is_response_drained,
    proxy_of,
    speaks_http2,
    stream_of,
    transport_for,
)
from ._sockets import (
    MIN_TIMEOUT,
    UNREQUESTED_DATA,
    check_loopback,
    has_unread_data,
    has_unread_tls_data,
    is_readable,
    read_ticket,
    read_ticket_async,
    shut_down,
)
from ._tasks import Tasks, new_tasks

# The steps in which an exchange waits for the network. Within one, the exchange can be cancelled,
# and at its beginning the trace can raise. Elsewhere httpcore would lose the connection's place in
# its pool: encode/httpcore, issue 1093.
_NETWORK_STEPS: Final = frozenset(
    {
        "connect_tcp",
        "connect_unix_socket",
        "start_tls",
        "setup_socks5_connection",
        "retry",
        "send_request_headers",
        "send_request_body",
        "receive_response_headers",
        "receive_response_body",
    }
)

_STEP_GRACE: Final = 0.2
"""Seconds for httpcore's work between two steps, which takes almost none."""

_SENT_AGAIN: Final = (
    "http_client tried to send the request twice: pass one whose transport does not retry"
)

# Calls that share an HTTP/2 connection share its failures, and httpcore resends requests itself.
_NO_HTTP2: Final = "HTTP/2 is not supported: pass an http_client without http2=True"


def library_of(http_client: object, name: str) -> ModuleType:
    """Return the module of a client, httpx or httpx2, or raise ``TypeError``."""
    for base in type(http_client).__mro__:
        if base.__module__ in {"httpx", "httpx2"} and base.__name__ == name:
            return sys.modules[base.__module__]
    raise TypeError(
        f"http_client must be an httpx.{name} (or httpx2.{name}), not {type(http_client).__name__}"
        + ("; a URL goes to base_url=" if isinstance(http_client, str) else "")
    )


class SuppliedClient:
    """A supplied client, and the choice of its transport for our requests."""

    def __init__(self, http_client: Any, protocol: CreduseProtocol, name: str) -> None:
        """Check a client. Its class must be called ``name``.

        Raises:
            TypeError: It is not a client of httpx or httpx2.
            ValueError: It can use HTTP/2.
        """
        self.library = library_of(http_client, name)
        self.header_cache = HeaderCache(self.library)
        self.http_client = http_client
        # Calls to this machine do not use the environment's proxy, which could read the API key
        # over plain http. They do use a proxy that the client was made with.
        self._direct = bool(
            protocol.loopback
            and http_client.trust_env
            and proxy_from_environment(protocol.base_url)
        )
        self._loopback_only = protocol.plain_loopback
        self.proxy: Proxy | None = None
        with suppress(self.library.InvalidURL):  # the first call raises it
            transport = self.transport(self.library.URL(protocol.base_url))
            self.proxy = proxy_of(transport)
            if speaks_http2(transport):
                raise ValueError(_NO_HTTP2)

    def transport(self, url: Any) -> Any:
        """Return the transport for our requests to a URL."""
        find = direct_transport if self._direct else transport_for
        return find(self.http_client, url)

    def closed_failure(self, *, closed: bool) -> Failure | None:
        """Return a failure if our client is ``closed``, or if the supplied client is."""
        if closed:
            return not_sent(CLOSED)
        return not_sent("http_client is closed") if self.http_client.is_closed else None

    def check_peer(self, stream: Any) -> None:
        """Raise if a connection would show the API key to another machine. See `check_loopback`."""
        if self._loopback_only:
            check_loopback(stream)


class _WatchedTimeouts(dict[str, float]):
    """httpx's timeouts for one request. They know whether httpcore's pool has read them."""

    was_read = False

    def get(self, key: str, default: Any = None) -> Any:
        """Return a timeout. httpcore reads ``pool`` first, before it waits for anything."""
        self.was_read = True
        return super().get(key, default)


@cache
def _body_class(library: ModuleType) -> Any:
    """Return the class of a request's body, for one library or the other."""

    class Body(library.SyncByteStream, library.AsyncByteStream):  # type: ignore[misc,name-defined]  # httpx or httpx2
        """A body that can be read once. A transport that sends a request again reads it twice."""

        def __init__(self, body: bytes) -> None:
            self._pieces = [body]
            self._read = False

        def _once(self) -> None:
            if self._read:
                raise RuntimeError(_SENT_AGAIN)
            self._read = True

        def __iter__(self) -> Iterator[bytes]:
            self._once()
            return iter(self._pieces)

        def __aiter__(self) -> AsyncIterator[bytes]:
            self._once()
            return BodyIterator(*self._pieces)

    return Body


class TracedExchange(Exchange):
    """One request over a supplied client, and what httpx's trace reports about it."""

    def __init__(self, send: Send, supplied: SuppliedClient, now: Callable[[], float]) -> None:
        """Begin the exchange. ``now`` returns the time on the clock of ``send``."""
        super().__init__(send, now)
        self.unused_stream: Any = None
        """The network stream that was connected for this exchange, until it carries the request."""
        self._latest_stream: Any = None
        """The same stream, with TLS if that is on."""
        self._supplied = supplied
        self.transport: Any = None
        """The library's transport, once there is a request."""
        self._timeouts = _WatchedTimeouts()
        self._stopped = False
        self._step: str | None = None

    def traced_request(self, trace: object) -> Any:
        """Return the library's request, which reports to ``trace``."""
        if self._stopped:
            raise TimeoutError(NO_TIME_TO_SEND)
        # The exchange can have waited for its turn since it was made.
        connect, whole = max(self.send.connect_by - self.now(), 0.0), self.time_left()
        self._timeouts = _WatchedTimeouts(pool=connect, connect=connect, write=whole, read=whole)
        supplied = self._supplied
        body = _body_class(supplied.library)(self.send.request.body)
        extensions = {"trace": trace, "timeout": self._timeouts}
        request = self.request(supplied.library, supplied.header_cache, body, extensions)
        self.transport = supplied.transport(request.url)
        return request

    def stop(self) -> float:
        """Stop the exchange, and return after how many seconds to cancel its task.

        Return 0 where a cancellation is safe, or where httpcore is not at work. Otherwise the
        exchange ends at its next step, or when its wait in the pool times out. If it does not, the
        task is cancelled all the same: a lost place is better than a call that never ends.
        """
        self._stopped = True
        if self._step is not None or not self._timeouts.was_read:
            return 0.0
        return max(self.send.connect_by - self.now(), _STEP_GRACE)

    def trace(self, name: str, info: dict[str, Any]) -> None:
        """Record a step, or raise if the next step must not be taken."""
        self.sent_is_known = True
        protocol, step, stage = _split_step_name(name)
        if step not in _NETWORK_STEPS:
            self._step = None
        elif stage == "started":
            if protocol == "http2":
                raise RuntimeError(_NO_HTTP2)
            self._start_step(step, info)
        else:
            self._step = None
            if stage == "complete":
                self._complete_step(step, info["return_value"])
                # Trio cancels a task that can continue at its next checkpoint, which is after the
                # step. After the last step, a cancellation is safe.
                if self._stopped and step != "receive_response_body":
                    raise TimeoutError(NO_WHOLE_RESPONSE if self.sent else NO_TIME_TO_SEND)

    def _start_step(self, step: str, info: dict[str, Any]) -> None:
        # httpx's timeouts are for one step, so each step gets the time that is left for the call.
        # ``info`` holds the arguments of the step, with its timeout if httpcore has read that.
        now = self.now()
        if self._stopped or (now >= self.send.deadline and not self.sent):
            raise TimeoutError(NO_TIME_TO_SEND)
        if "timeout" in info:
            info["timeout"] = max(self.send.connect_by - now, MIN_TIMEOUT)
        # CONNECT goes to a proxy, and contains nothing of the request.
        if step == "send_request_headers" and info["request"].method != b"CONNECT":
            if self.sent:
                raise RuntimeError(_SENT_AGAIN)
            if self._has_unread_data():
                raise ConnectionResetError(UNREQUESTED_DATA)
            self.sent = True
            self.unused_stream = self._latest_stream = None
        by = self.send.deadline if self.sent else self.send.connect_by
        self._timeouts["write"] = self._timeouts["read"] = max(by - now, MIN_TIMEOUT)
        self._step = step

    def _has_unread_data(self) -> bool:
        if self._latest_stream is not None:
            return has_unread_data(self._latest_stream)
        # The pool has looked at the connection, but a busy loop runs other tasks since then.
        stream = stream_of(self.transport, self._timeouts)
        return stream is not None and has_unread_data(stream, new=False)

    def stream_that_may_have_ticket(self, name: str) -> Any:
        """Return a new TLS stream that is readable, if the request is to be written next.

        Only a read through TLS can distinguish a session ticket from a response.
        """
        stream = self._latest_stream
        if (
            stream is None
            or not name.endswith("send_request_headers.started")
            or not self.time_left()
            or stream.get_extra_info("ssl_object") is None
            or not is_readable(stream)
        ):
            return None
        return stream

    def _complete_step(self, step: str, value: Any) -> None:
        if step in {"connect_tcp", "connect_unix_socket"}:
            self.unused_stream = self._latest_stream = value
        elif step == "start_tls":
            self._latest_stream = value
        if step == "connect_tcp":
            self._supplied.check_peer(value)

    def add_and_continue(self, chunk: bytes) -> bool:
        """Add a piece of the body, and return whether to read more.

        If not, call `shut_down_connection` and continue the loop: it reads what has arrived by now,
        then the end. To leave the loop would leave the iterator open.
        """
        self.add_chunk(chunk)
        return not self.too_large and self.now() < self.send.deadline

    def finish(self, response: Any) -> Response:
        """Return the whole response. Shut its connection down if it is not reusable."""
        whole = self.response()
        stream = response.extensions.get("network_stream")
        if (
            not is_response_drained(response)
            or not are_buffers_empty(stream)
            or has_unread_tls_data(stream)
            or not self.send.allows_reuse(whole)
        ):
            shut_down_connection(response)
        return whole


@cache
def _split_step_name(name: str) -> tuple[str, str, str]:
    """Return the protocol, the step and the stage in a trace's name. There are few names."""
    protocol, step, stage = name.split(".")
    return protocol, step, stage


def shut_down_connection(response: Any) -> bool:
    """Shut down the socket of a response that is not closed yet, so that it is not used again.

    Return whether the socket was found. This works on every backend: the pool finds that the
    connection has ended. To close the network stream itself makes httpcore raise under trio.
    """
    stream = response.extensions.get("network_stream")
    sock = None if stream is None else stream.get_extra_info("socket")
    if sock is not None:
        with suppress(OSError):  # already closed
            shut_down(sock)
    return sock is not None


class SuppliedTransport(Clock):
    """A synchronous transport over a supplied client."""

    libraries = LIBRARIES

    def __init__(self, protocol: CreduseProtocol, http_client: HTTPXClient) -> None:
        """Accept an `httpx.Client` or an `httpx2.Client`."""
        self._supplied = SuppliedClient(http_client, protocol, "Client")
        self.proxy = self._supplied.proxy
        self._closed = False

    def send(self, send: Send) -> Response | Failure:
        """Send once. See `creduse_core.Transport`."""
        if (failure := self._supplied.closed_failure(closed=self._closed)) is not None:
            return failure
        exchange = TracedExchange(send, self._supplied, self.now)

        def trace(name: str, info: dict[str, Any]) -> None:
            while (stream := exchange.stream_that_may_have_ticket(name)) is not None:
                read_ticket(stream)
            exchange.trace(name, info)

        try:
            request = exchange.traced_request(trace)
            response = exchange.transport.handle_request(request)
            try:
                return self._read(response, exchange)
            finally:
                # An error in closing does not change what has been read.
                with IGNORE_LIBRARY_ERRORS:
                    response.stream.close()
        except Exception as error:  # noqa: BLE001 - the libraries' become failures
            return exchange.result_of(error)
        except BaseException as error:
            exchange.remove_secrets(error)
            raise
        finally:
            # httpcore leaves the stream open if the trace raises after a step of connecting.
            if exchange.unused_stream is not None:
                with IGNORE_LIBRARY_ERRORS:
                    exchange.unused_stream.close()

    def _read(self, response: Any, exchange: TracedExchange) -> Response:
        if exchange.receive_head(response):
            for chunk in response.stream:
                if not exchange.add_and_continue(chunk) and not shut_down_connection(response):
                    raise TimeoutError(NO_WHOLE_RESPONSE)
        return exchange.finish(response)

    def close(self) -> None:
        """Send nothing more. The supplied client stays open."""
        self._closed = True


class AsyncSuppliedTransport(AsyncClock):
    """An asynchronous transport over a supplied client. Each exchange runs in a task."""

    libraries = LIBRARIES

    def __init__(self, protocol: CreduseProtocol, http_client: AsyncHTTPXClient) -> None:
        """Accept an `httpx.AsyncClient` or an `httpx2.AsyncClient`."""
        self._supplied = SuppliedClient(http_client, protocol, "AsyncClient")
        self.proxy = self._supplied.proxy
        self._closed = False
        self._tasks: Tasks | None = None

    async def send(self, send: Send) -> Response | Failure:
        """Send once. See `creduse_core.AsyncTransport`."""
        if (failure := self._supplied.closed_failure(closed=self._closed)) is not None:
            return failure
        if (problem := self.loop_problem()) is not None:
            return not_sent(problem)
        self._tasks = self._tasks or new_tasks()
        exchange = TracedExchange(send, self._supplied, self.now)
        try:
            result = await self._tasks.run(exchange, lambda: self._exchange(exchange))
        except BaseException as error:
            exchange.remove_secrets(error)
            raise
        if isinstance(result, ForeignError):
            raise result
        return result

    async def _exchange(self, exchange: TracedExchange) -> Response | Failure | ForeignError:
        # It can have been closed while the exchange waited for its turn.
        if (failure := self._supplied.closed_failure(closed=self._closed)) is not None:
            return failure
        try:
            return await self._send(exchange)
        except ForeignError as foreign:  # raised by the caller, outside of the task
            return foreign

    async def _send(self, exchange: TracedExchange) -> Response | Failure:
        async def trace(name: str, info: dict[str, Any]) -> None:
            while (stream := exchange.stream_that_may_have_ticket(name)) is not None:
                await read_ticket_async(stream)
            exchange.trace(name, info)

        try:
            request = exchange.traced_request(trace)
            response = await exchange.transport.handle_async_request(request)
            try:
                if exchange.receive_head(response):
                    async for chunk in response.stream:
                        if not exchange.add_and_continue(chunk):
                            shut_down_connection(response)
                return exchange.finish(response)
            finally:
                # An error in closing does not change what has been read.
                with IGNORE_LIBRARY_ERRORS:
                    await response.stream.aclose()
        except Exception as error:  # noqa: BLE001 - the libraries' become failures
            return exchange.result_of(error)
        finally:
            # httpcore leaves the socket open if it is cancelled in a TLS handshake.
            if exchange.unused_stream is not None:
                with IGNORE_LIBRARY_ERRORS:
                    await exchange.unused_stream.aclose()

    async def aclose(self) -> None:
        """Send nothing more, and wait until all calls in flight have ended."""
        self._closed = True
        if self._tasks is not None and self._loop is current_loop():
            await self._tasks.drain()
