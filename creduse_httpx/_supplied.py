"""Requests over a supplied client: its connections are in its own pool, and so are its rules.

What is known of a request comes from httpx's trace, an extension of the request: httpcore calls it
with the name of a step, such as ``http11.send_request_headers.started``. No exception type says as
much. What clients of our own need must not come in here.
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
    Response,
    Send,
    proxy_from_environment,
)

from ._clients import AsyncHTTPXClient, HTTPXClient
from ._clocks import AsyncClock, Clock, current_loop
from ._exchange import CLOSED, Exchange, Heads, Pieces, not_sent
from ._foreign import CLOSING, LIBRARIES
from ._httpcore import (
    are_buffers_empty,
    direct_transport,
    is_response_drained,
    speaks_http2,
    transport_for,
)
from ._sockets import (
    SHORTEST,
    UNASKED,
    check_loopback,
    has_record,
    has_unread,
    read_ticket,
    read_ticket_async,
    shut_down,
)
from ._tasks import Tasks, new_tasks

# The parts of an exchange in which it waits for the network: within one of them it can be
# cancelled, and at the beginning of one it can be refused, without httpcore losing track of the
# connection. Elsewhere it cannot: encode/httpcore, issue 1093.
_STEPS: Final = frozenset(
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

_GRACE: Final = 0.2
"""Seconds for what takes none: what httpcore does between two steps."""

_SENT_AGAIN: Final = "a request is sent once, but the client's transport sent it again"

_NO_HTTP2: Final = (
    "HTTP/2 is not supported, since calls that share a connection share its failures, and httpcore "
    "sends again by itself: pass an http_client without http2=True"
)


def library_of(http_client: object, name: str) -> ModuleType:
    """Return the library of a client, httpx or httpx2; reject what is no client of either."""
    for base in type(http_client).__mro__:
        if base.__module__ in {"httpx", "httpx2"} and base.__name__ == name:
            return sys.modules[base.__module__]
    raise TypeError(
        f"http_client must be an httpx.{name} (or httpx2.{name}), not {type(http_client).__name__}"
    )


class Supplied:
    """A supplied client, and which of its transports our requests take."""

    def __init__(self, http_client: Any, protocol: CreduseProtocol, name: str) -> None:
        """Take a client of either library, called ``name``.

        Raises:
            TypeError: It is none.
            ValueError: It may speak HTTP/2.
        """
        self.library = library_of(http_client, name)
        self.heads = Heads(self.library)
        self.http_client = http_client
        # A proxy of the environment's is not for calls to this machine, the less so as the key may
        # be in the clear. One that the client was made with is.
        self._direct = bool(
            protocol.loopback
            and http_client.trust_env
            and proxy_from_environment(protocol.base_url)
        )
        self._loopback_only = protocol.plain_loopback
        with suppress(self.library.InvalidURL):  # the first call says so
            if speaks_http2(self.transport(self.library.URL(protocol.base_url))):
                raise ValueError(_NO_HTTP2)

    def transport(self, url: Any) -> Any:
        """Return the transport for our requests to a URL."""
        find = direct_transport if self._direct else transport_for
        return find(self.http_client, url)

    def check_peer(self, stream: Any) -> None:
        """Raise if a connection leaves this machine with the key in the clear; see `check_loopback`."""
        if self._loopback_only:
            check_loopback(stream)


class _TimeOuts(dict[str, float]):
    """httpx's timeouts for one request, which tell whether httpcore's pool has looked at them."""

    asked = False

    def get(self, key: str, default: Any = None) -> Any:
        """Return a timeout. httpcore asks for ``pool`` first, and before it waits for anything."""
        self.asked = True
        return super().get(key, default)


@cache
def _body_class(library: ModuleType) -> Any:
    """Return the class of a request's body, for one library or the other."""

    class Body(library.SyncByteStream, library.AsyncByteStream):  # type: ignore[misc,name-defined]  # of one library or the other
        """Can be read once: whoever sends a request again by itself reads it a second time."""

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
            return Pieces(*self._pieces)

    return Body


class TracedExchange(Exchange):
    """One request over a supplied client, and what httpx's trace tells of it."""

    def __init__(self, send: Send, supplied: Supplied, now: Callable[[], float]) -> None:
        """Begin: the request's time runs from here."""
        super().__init__(send, now)
        self.connected: Any = None
        """The network stream that was connected for this exchange, until it carries it."""
        self._fresh: Any = None
        """The same, TLS included."""
        self._supplied = supplied
        connect, whole = send.connect_by - now(), send.deadline - now()
        self._timeouts = _TimeOuts(pool=connect, connect=connect, write=whole, read=whole)
        self._stopped = False
        self._step: str | None = None

    def traced_request(self, trace: object) -> Any:
        """Return the library's request, which reports to ``trace``."""
        if self._stopped:
            raise TimeoutError("no time was left to send the request")
        supplied = self._supplied
        body = _body_class(supplied.library)(self.send.request.body)
        extensions = {"trace": trace, "timeout": self._timeouts}
        return self.request(supplied.library, supplied.heads, body, extensions)

    def stop(self) -> float:
        """End it, and return how many seconds to leave it before it is cancelled.

        None where that is safe, or where httpcore is not at work. Else it ends at its next step,
        or when its time in the pool is over; but if it does not, a place in the pool is less than
        a call that does not end.
        """
        self._stopped = True
        if self._step is not None or not self._timeouts.asked:
            return 0.0
        return max(self.connect_by - self.now(), _GRACE)

    def trace(self, name: str, info: dict[str, Any]) -> None:
        """Take note of a step; raise where the next one must not be taken."""
        self.observed = True
        protocol, step, stage = _parts(name)
        if step not in _STEPS:
            self._step = None
        elif stage == "started":
            if protocol == "http2":
                raise RuntimeError(_NO_HTTP2)
            self._begin(step, info)
        else:
            self._step = None
            if stage == "complete":
                self._complete(step, info["return_value"])
                # Under trio a task that was ready to go on is cancelled at its next checkpoint,
                # and that is no longer within the step. The last step leads to a safe one.
                if self._stopped and step != "receive_response_body":
                    raise TimeoutError("no time was left to go on")

    def _begin(self, step: str, info: dict[str, Any]) -> None:
        # A timeout of httpx's is for one step; what is left of the whole goes to each anew.
        # ``info`` holds the arguments of the step, a timeout among them if it has been read.
        now = self.now()
        if self._stopped or (now >= self.deadline and not self.sent):
            raise TimeoutError("no time was left to send the request")
        if "timeout" in info:
            info["timeout"] = max(self.connect_by - now, SHORTEST)
        # CONNECT goes to a proxy and carries nothing of the request.
        if step == "send_request_headers" and info["request"].method != b"CONNECT":
            if self.sent:
                raise RuntimeError(_SENT_AGAIN)
            if self._fresh is not None and has_unread(self._fresh):
                raise ConnectionResetError(UNASKED)
            self.sent = True
            self.connected = self._fresh = None
        by = self.deadline if self.sent else self.connect_by
        self._timeouts["write"] = self._timeouts["read"] = max(by - now, SHORTEST)
        self._step = step

    def stream_with_ticket(self, name: str) -> Any:
        """Return a new TLS stream whose socket is readable, if the request is to be written next.

        A session ticket makes it so, which only a read through TLS tells from a response.
        """
        stream = self._fresh
        if (
            stream is None
            or not name.endswith("send_request_headers.started")
            or not self.left()
            or stream.get_extra_info("ssl_object") is None
            or not stream.get_extra_info("is_readable")
        ):
            return None
        return stream

    def _complete(self, step: str, value: Any) -> None:
        if step in {"connect_tcp", "connect_unix_socket"}:
            self.connected = self._fresh = value
        elif step == "start_tls":
            self._fresh = value
        if step == "connect_tcp":
            self._supplied.check_peer(value)

    def may_go_on(self, chunk: bytes) -> bool:
        """Take a piece of the body, and return whether to wait for more.

        If not, `discard` the connection and go on: what has arrived by now still counts, and
        behind it is the end. To leave the iterator where it is would leave it open.
        """
        self.add(chunk)
        return not self.too_large and self.now() < self.deadline

    def finish(self, response: Any) -> Response:
        """Return the whole response, before its stream is closed; discard what is not to be used."""
        whole = self.response()
        stream = response.extensions.get("network_stream")
        if (
            not is_response_drained(response)
            or not are_buffers_empty(stream)
            or has_record(stream)
            or not self.send.belongs(whole)
        ):
            discard(response)
        return whole


@cache
def _parts(name: str) -> tuple[str, str, str]:
    """Return the protocol, the step and the stage that a trace's name, one of a few, tells of."""
    protocol, step, stage = name.split(".")
    return protocol, step, stage


def discard(response: Any) -> bool:
    """See to it that the connection of this response is not used again; for before its close.

    Return whether there was one to be seen. Shutting down the socket is the way that works on every
    backend: the pool finds the connection at its end. Closing the network stream itself makes
    httpcore raise under trio.
    """
    stream = response.extensions.get("network_stream")
    sock = None if stream is None else stream.get_extra_info("socket")
    if sock is not None:
        with suppress(OSError):  # it is closed already
            shut_down(sock)
    return sock is not None


class SuppliedTransport(Clock):
    """Sends over a supplied client, by way of its transports."""

    libraries = LIBRARIES

    def __init__(self, protocol: CreduseProtocol, http_client: HTTPXClient) -> None:
        """Take an `httpx.Client` or an `httpx2.Client`."""
        self._supplied = Supplied(http_client, protocol, "Client")
        self._http_client = http_client
        self._closed = False

    def send(self, send: Send) -> Response | Failure:
        """Send once. See `creduse_core.Transport`."""
        if self._closed or self._http_client.is_closed:
            return not_sent(CLOSED)
        exchange = TracedExchange(send, self._supplied, self.now)

        def trace(name: str, info: dict[str, Any]) -> None:
            while (stream := exchange.stream_with_ticket(name)) is not None:
                read_ticket(stream)
            exchange.trace(name, info)

        try:
            request = exchange.traced_request(trace)
            response = self._supplied.transport(request.url).handle_request(request)
            try:
                return self._read(response, exchange)
            finally:
                # What there is of the response is there by now; closing cannot change it.
                with CLOSING:
                    response.stream.close()
        except Exception as error:  # noqa: BLE001 - none of a library's leaves as itself
            return exchange.failed(error)
        except BaseException as error:
            exchange.forget(error)
            raise
        finally:
            # httpcore leaves it open where a step of connecting is reported as taken and raises.
            if exchange.connected is not None:
                with CLOSING:
                    exchange.connected.close()

    def _read(self, response: Any, exchange: TracedExchange) -> Response:
        if exchange.begin_response(response):
            for chunk in response.stream:
                if not exchange.may_go_on(chunk) and not discard(response):
                    raise TimeoutError("no time was left for the response, or no room")
        return exchange.finish(response)

    def close(self) -> None:
        """Send nothing any more. The supplied client stays as it is."""
        self._closed = True


class AsyncSuppliedTransport(AsyncClock):
    """Sends over a supplied client, by way of its transports, each exchange in a task."""

    libraries = LIBRARIES

    def __init__(self, protocol: CreduseProtocol, http_client: AsyncHTTPXClient) -> None:
        """Take an `httpx.AsyncClient` or an `httpx2.AsyncClient`."""
        self._supplied = Supplied(http_client, protocol, "AsyncClient")
        self._http_client = http_client
        self._closed = False
        self._tasks: Tasks | None = None
        self._loop: object = None

    def _is_closed(self) -> bool:
        return self._closed or self._http_client.is_closed

    async def send(self, send: Send) -> Response | Failure:
        """Send once. See `creduse_core.AsyncTransport`."""
        if self._is_closed():
            return not_sent(CLOSED)
        loop = current_loop()
        self._loop = self._loop or loop
        if self._loop is not loop:
            return not_sent("the client belongs to another event loop: make one client for each")
        self._tasks = self._tasks or new_tasks()
        exchange = TracedExchange(send, self._supplied, self.now)
        try:
            end = await self._tasks.run(exchange, lambda: self._exchange(exchange))
        except BaseException as error:
            exchange.forget(error)
            raise
        if isinstance(end, ForeignError):
            raise end
        return end

    async def _exchange(self, exchange: TracedExchange) -> Response | Failure | ForeignError:
        if self._is_closed():  # while it waited for its turn
            return not_sent(CLOSED)
        try:
            return await self._send(exchange)
        except ForeignError as foreign:  # for the caller to raise, and not in a task of ours
            return foreign

    async def _send(self, exchange: TracedExchange) -> Response | Failure:
        async def trace(name: str, info: dict[str, Any]) -> None:
            while (stream := exchange.stream_with_ticket(name)) is not None:
                await read_ticket_async(stream)
            exchange.trace(name, info)

        try:
            request = exchange.traced_request(trace)
            response = await self._supplied.transport(request.url).handle_async_request(request)
            try:
                if exchange.begin_response(response):
                    async for chunk in response.stream:
                        if not exchange.may_go_on(chunk):
                            discard(response)
                return exchange.finish(response)
            finally:
                # What there is of the response is there by now; closing cannot change it.
                with CLOSING:
                    await response.stream.aclose()
        except Exception as error:  # noqa: BLE001 - none of a library's leaves as itself
            return exchange.failed(error)
        finally:
            # httpcore leaves the socket open when it is cancelled while TLS is being agreed.
            if exchange.connected is not None:
                with CLOSING:
                    await exchange.connected.aclose()

    async def aclose(self) -> None:
        """Send nothing any more, and wait for what cancelled calls have left behind."""
        self._closed = True
        if self._tasks is not None and self._loop is current_loop():
            await self._tasks.drain()
