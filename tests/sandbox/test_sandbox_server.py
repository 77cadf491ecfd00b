"""The sandbox server over real sockets."""

import asyncio
import errno
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, nullcontext, suppress
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import pytest
import uvloop

from creduse_core import InsufficientFundsError, UserDoesNotExistError
from creduse_core.messages import Request
from creduse_sandbox import CannedResponse, SandboxServer, serve
from tests.common import wait_until

USER = "12345678-1234-5678-1234-567812345678"
KEY = "secret-key"
NOW = datetime(2025, 8, 12, 14, 35, 55, 423145, tzinfo=UTC)
HEADERS = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
GOOD = {"end_user_id": USER, "amount": 5, "validity_days": 2}


@pytest.fixture
def server() -> Iterator[SandboxServer]:
    with SandboxServer() as server:
        yield server


def loopback_hosts() -> list[str]:
    """Return the loopback addresses of this machine, which can lack IPv6."""
    hosts = ["127.0.0.1"]
    with suppress(OSError):
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
        hosts.append("::1")
    return hosts


def where(server: SandboxServer) -> tuple[str, int]:
    parts = urlsplit(server.base_url)
    assert parts.hostname is not None
    assert parts.port is not None
    return parts.hostname, parts.port


def connect(server: SandboxServer) -> http.client.HTTPConnection:
    connection = http.client.HTTPConnection(*where(server), timeout=20)
    connection.connect()
    return connection


def dial(server: SandboxServer) -> socket.socket:
    return socket.create_connection(where(server), timeout=20)


Received = tuple[int, http.client.HTTPMessage, Any]


def ask(
    connection: http.client.HTTPConnection, path: str, body: object = GOOD, method: str = "POST"
) -> Received:
    connection.request(method, path, json.dumps(body), HEADERS)
    response = connection.getresponse()
    return response.status, response.headers, json.loads(response.read() or "null")


def message(
    path: str = "/add", body: bytes | None = None, *fields: str, method: str = "POST"
) -> bytes:
    """Return the bytes of a request. Without ``fields``, it has its length."""
    body = json.dumps(GOOD).encode() if body is None else body
    lines = [
        f"{method} {path} HTTP/1.1",
        "Host: sandbox",
        f"Authorization: Bearer {KEY}",
        *(fields or (f"Content-Length: {len(body)}",)),
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


def read_response(stream: socket.socket) -> Received:
    """Read one response byte by byte, so that the next one stays unread."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = stream.recv(1)
        assert byte
        head += byte
    status_line, _, fields = head.partition(b"\r\n")
    headers = http.client.HTTPMessage()
    for line in fields.decode().splitlines():
        name, _, value = line.partition(": ")
        if name:
            headers[name] = value
    body = b""
    while len(body) < int(headers.get("Content-Length", "0")):
        body += stream.recv(1)
    return int(status_line.split()[1]), headers, json.loads(body or b"null")


def test_five_calls(server: SandboxServer) -> None:
    """All five calls work on one connection. The balance is a GET with a body."""
    with closing(connect(server)) as connection:
        sock = connection.sock
        assert ask(connection, "/add")[0] == 200
        assert ask(connection, "/start-cycle")[0] == 200
        assert ask(connection, "/subtract", {"end_user_id": USER, "amount": 7})[0] == 200
        assert ask(connection, "/stop-cycle")[0] == 200
        status, _, balance = ask(connection, "/get-active-balance", method="GET")
        assert status == 200
        assert balance["active_balance"] == 3
        assert connection.sock is sock
    assert [entry.path for entry in server.applied] == [
        "/add",
        "/start-cycle",
        "/subtract",
        "/stop-cycle",
    ]
    assert {entry.connection for entry in server.log} == {1}


def test_date_is_the_clocks() -> None:
    """Every response has a Date, from the supplied clock if there is one."""
    with SandboxServer(clock=lambda: NOW) as server, closing(connect(server)) as connection:
        for path in ("/add", "/nowhere"):
            assert ask(connection, path)[1]["Date"] == "Tue, 12 Aug 2025 14:35:55 GMT"


def test_api_key() -> None:
    """If an API key is set, a request must have it."""
    with SandboxServer(api_key=KEY) as server, closing(connect(server)) as connection:
        assert ask(connection, "/add")[0] == 200
    with SandboxServer(api_key="other") as server, closing(connect(server)) as connection:
        status, headers, _ = ask(connection, "/add")
        assert status == 401
        assert headers["WWW-Authenticate"] == "Bearer"
        assert server.applied == ()


def test_pipelined_requests(server: SandboxServer) -> None:
    """The server responds to pipelined requests in order, and logs each with its own bytes."""
    first, second, third = message(), message("/nowhere"), message("/subtract")
    with dial(server) as stream:
        stream.sendall(first + second + third[:10])
        assert [read_response(stream)[0] for _ in range(2)] == [200, 404]
        assert [entry.received for entry in server.log] == [len(first), len(second), 10]
        assert server.log[2].method is None
        stream.sendall(third[10:])
        assert read_response(stream)[0] == 200
    assert [entry.received for entry in server.log] == [len(first), len(second), len(third)]
    assert [entry.number for entry in server.log] == [1, 2, 3]


def test_expect_100_continue(server: SandboxServer) -> None:
    """A client that waits gets one 100 Continue."""
    body = json.dumps(GOOD).encode()
    whole = message("/add", body, f"Content-Length: {len(body)}", "Expect: 100-continue")
    head = whole.removesuffix(body)
    with dial(server) as stream:
        stream.sendall(head)
        assert read_response(stream)[0] == 100
        assert server.log[0].status is None
        stream.sendall(body[:5])
        stream.sendall(body[5:])
        assert read_response(stream)[0] == 200
        stream.sendall(whole)
        assert read_response(stream)[0] == 200  # it did not wait, so it is not told


def test_connection_close(server: SandboxServer) -> None:
    """The server closes the connection after the response, and ignores bytes after the request."""
    whole = message("/add", b"{}", "Content-Length: 2", "Connection: close")
    with dial(server) as stream:
        stream.sendall(whole + b"more")
        status, headers, _ = read_response(stream)
        assert status == 422
        assert headers["Connection"] == "close"
        assert stream.recv(1) == b""
    assert [entry.received for entry in server.log] == [len(whole)]


def test_http_1_0(server: SandboxServer) -> None:
    """A client of HTTP/1.0 gets its response, and the connection closes."""
    with dial(server) as stream:
        stream.sendall(message().replace(b"HTTP/1.1", b"HTTP/1.0"))
        assert read_response(stream)[0] == 200
        assert stream.recv(1) == b""


def test_half_closed_client(server: SandboxServer) -> None:
    """A client may end its stream with its request."""
    with dial(server) as stream:
        stream.sendall(message())
        stream.shutdown(socket.SHUT_WR)
        assert read_response(stream)[0] == 200
        assert stream.recv(1) == b""


def test_chunked_request(server: SandboxServer) -> None:
    """The log has the body without chunked framing."""
    body = json.dumps(GOOD).encode()
    chunks = b"5\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n" % (body[:5], len(body) - 5, body[5:])
    with dial(server) as stream:
        stream.sendall(message("/add", chunks, "Transfer-Encoding: chunked"))
        assert read_response(stream)[0] == 200
        assert server.log[0].body == body


def test_head_and_other_methods(server: SandboxServer) -> None:
    """HEAD gets a response without a body."""
    with closing(connect(server)) as connection:
        for method in ("HEAD", "PUT", "HEAD"):
            status, headers, body = ask(connection, "/add", method=method)
            assert (status, headers["Allow"]) == (405, "POST")
            assert int(headers["Content-Length"]) > 0
            assert (body is None) == (method == "HEAD")


def test_absolute_target(server: SandboxServer) -> None:
    """The server accepts a request with an absolute URL, as for a proxy."""
    with dial(server) as stream:
        stream.sendall(message("http://elsewhere/add?x"))
        assert read_response(stream)[0] == 200
    assert server.log[0].path == "/add"


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00", 400),
        (b"GET /add HTTP/1.1\r\n\r\n", 400),  # without Host
        (b"GET /add HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer secret-key\0\r\n\r\n", 400),
        (message("/add", b"zz\r\n", "Transfer-Encoding: chunked"), 400),
        (message("/add", b"", "Transfer-Encoding: gzip"), 501),
        (message("/add", b"", f"Field: {'x' * 70_000}")[:-4], 431),
    ],
)
def test_malformed_requests(server: SandboxServer, data: bytes, status: int) -> None:
    """A malformed request gets an error response that repeats no key, and the connection closes."""
    with dial(server) as stream:
        stream.sendall(data)
        responded, headers, body = read_response(stream)
        assert (responded, body["error_code"]) == (status, "BAD_REQUEST")
        assert headers["Connection"] == "close"
        assert headers["Date"]
        assert KEY not in body["message"]
        assert stream.recv(1) == b""
        stream.sendall(message())
    (entry,) = server.log
    assert (entry.status, entry.body, entry.applied) == (status, None, False)
    assert KEY not in repr(entry)


@pytest.mark.parametrize("chunked", [False, True])
def test_too_large_a_body(server: SandboxServer, *, chunked: bool) -> None:
    """A body may have 1 MiB. A client that sends more gets its response after it has sent all."""
    limit = 1024 * 1024
    with closing(connect(server)) as connection:
        connection.request("POST", "/add", b"x" * limit, HEADERS)
        response = connection.getresponse()
        assert response.status == 422
        response.read()
        body = b"x" * 4 * limit
        connection.request(
            "POST", "/add", iter([body]) if chunked else body, HEADERS, encode_chunked=chunked
        )
        response = connection.getresponse()
        assert response.status == 413
        assert json.loads(response.read())["error_code"] == "CONTENT_TOO_LARGE"
        assert response.headers["Connection"] == "close"
    assert [entry.status for entry in server.log] == [422, 413]
    assert server.log[1].body is None


def test_injected_faults(server: SandboxServer) -> None:
    """The first fault that matches and is not used up applies. After the last one, the sandbox responds."""
    busy = CannedResponse(429, (("Retry-After", "1"),))
    server.inject(busy, when=lambda request: request.url == "/subtract")
    down, teapot = (
        CannedResponse(503, (("Content-Type", "text/plain"),), b'"down"'),
        CannedResponse(418),
    )
    server.inject(down, times=2)
    server.inject(teapot)
    with closing(connect(server)) as connection:
        sock = connection.sock
        assert ask(connection, "/add")[::2] == (503, "down")
        status, headers, body = ask(connection, "/subtract")
        assert (status, headers["Retry-After"], body) == (429, "1", None)
        assert [ask(connection, "/subtract")[0] for _ in range(2)] == [503, 418]
        assert ask(connection, "/add")[0] == 200
        assert connection.sock is sock
    assert [entry.fault for entry in server.log] == [down, busy, down, teapot, None]
    assert [entry.number for entry in server.applied] == [5]


def test_predicate_sees_the_whole_request(server: SandboxServer) -> None:
    """A predicate gets the whole request, and can read the server's log."""
    seen: list[tuple[Request, int]] = []

    def look(request: Request) -> bool:
        seen.append((request, len(server.log)))
        return False

    server.inject(CannedResponse(503), when=look)
    with closing(connect(server)) as connection:
        assert ask(connection, "/add")[0] == 200
    ((request, logged),) = seen
    assert logged == 1
    assert (request.method, request.url, json.loads(request.body)) == ("POST", "/add", GOOD)
    assert ("Authorization", f"Bearer {KEY}") in request.headers


def test_framing_of_a_canned_response(server: SandboxServer) -> None:
    """A supplied Date is kept, ``Connection: close`` closes, and 204 and 304 have no body."""
    server.inject(CannedResponse(204, (("Date", "today"),), b"dropped"))
    server.inject(CannedResponse(304))
    server.inject(CannedResponse(200, (("connection", "close"),), b"{}"))
    with dial(server) as stream:
        stream.sendall(message() * 3)
        for expected in (204, 304):
            status, headers, body = read_response(stream)
            assert (status, headers["Content-Length"], body) == (expected, None, None)
            assert (headers["Date"] == "today") == (expected == 204)
        assert read_response(stream)[::2] == (200, {})
        assert stream.recv(1) == b""


@pytest.mark.parametrize("status", [100, 199, 1000, -1])
def test_canned_response_must_be_final(status: int) -> None:
    """A canned response with an interim or invalid status is rejected."""
    with pytest.raises(ValueError, match="final one, from 200 to 999, not"):
        CannedResponse(status)


@pytest.mark.parametrize("name", ["Content-Length", "transfer-encoding"])
def test_canned_response_has_no_framing(name: str) -> None:
    """A canned response with its own framing headers is rejected."""
    with pytest.raises(ValueError, match="the server adds the framing"):
        CannedResponse(200, ((name, "5"),))


def test_log_of_a_whole_request(server: SandboxServer) -> None:
    """An entry says what arrived and what was applied. It never has the key."""
    with dial(server) as stream:
        stream.sendall(message())
        read_response(stream)
    (entry,) = server.log
    body = json.dumps(GOOD).encode()
    assert (entry.number, entry.connection) == (1, 1)
    assert (entry.method, entry.path, entry.body) == ("POST", "/add", body)
    assert entry.headers == (("Host", "sandbox"), ("Content-Length", str(len(body))))
    assert (entry.received, entry.status) == (len(message()), 200)
    assert entry.applied
    assert entry.fault is None
    assert server.applied == (entry,)
    assert KEY not in repr(server.log)


def test_log_of_partial_requests(server: SandboxServer) -> None:
    """A request is in the log from its first byte. A connection without one is not."""
    whole = message()
    with dial(server), dial(server) as stream:
        stream.sendall(whole[:1])
        wait_until(lambda: len(server.log) == 1)
        (entry,) = server.log
        assert (entry.received, entry.method, entry.path) == (1, None, None)
        assert (entry.headers, entry.body, entry.status) == ((), None, None)
        stream.sendall(whole[1:-1])
        wait_until(lambda: server.log[0].received == len(whole) - 1)
        (entry,) = server.log
        assert (entry.method, entry.path, entry.body) == ("POST", "/add", None)
        assert entry.headers
        assert KEY not in repr(entry)
    (entry,) = server.log
    assert not entry.applied


def test_entries_are_snapshots(server: SandboxServer) -> None:
    """An entry that was read does not change."""
    before = server.log
    with closing(connect(server)) as connection:
        ask(connection, "/add")
    assert before == ()


def test_reset(server: SandboxServer) -> None:
    """A reset clears the ledger, the log, the faults and the replays. Connections stay."""
    with closing(connect(server)) as connection:
        sock = connection.sock
        ask(connection, "/add")
        server.inject(CannedResponse(503))
        server.reset()
        emptied = server.log
        assert emptied == ()
        assert ask(connection, "/get-active-balance", method="GET")[0] == 404
        assert connection.sock is sock
    assert [entry.number for entry in server.log] == [2]


def test_request_under_way_at_a_reset_is_logged(server: SandboxServer) -> None:
    """A request that began before a reset and is applied after it is in the log."""
    whole = message()
    with dial(server) as stream:
        stream.sendall(whole[:20])
        wait_until(lambda: len(server.log) == 1)
        server.reset()
        stream.sendall(whole[20:])
        assert read_response(stream)[0] == 200
    (entry,) = server.applied
    assert entry.received == len(whole)


def test_settle(server: SandboxServer) -> None:
    """After ``settle()`` the log has everything that clients have sent, also on connections not accepted before."""
    for number in range(1, 21):
        with dial(server) as stream:
            stream.sendall(message()[:-1])
            server.settle()
            logged = [entry.number for entry in server.log]
            assert logged == [*range(1, number + 1)]
            assert server.log[-1].received == len(message()) - 1


def test_settle_without_a_peer(server: SandboxServer) -> None:
    """``settle()`` without a client returns at once."""
    begun = time.monotonic()
    server.settle()
    assert time.monotonic() - begun < 30
    nothing = server.log
    assert nothing == ()


def test_connections(server: SandboxServer) -> None:
    """``connections`` counts the open connections."""
    assert server.connections == 0
    with dial(server), closing(connect(server)) as connection:
        ask(connection, "/add")
        server.settle()
        assert server.connections == 2
        with server.refusing():
            assert server.connections == 0
    with dial(server):
        server.settle()
        assert server.connections == 1
    wait_until(lambda: server.connections == 0)


def test_handle() -> None:
    """``handle`` uses the same ledger as the socket and checks the key. It does not log."""
    request = Request("POST", "/add", tuple(HEADERS.items()), json.dumps(GOOD).encode())
    with SandboxServer(api_key=KEY) as server, closing(connect(server)) as connection:
        assert server.handle(request).status == 200
        assert server.handle(Request("POST", "/add", (), request.body)).status == 401
        assert server.log == ()
        balance = ask(connection, "/get-active-balance", method="GET")[2]
        assert balance["active_balance"] == 5
        server.reset()
        assert ask(connection, "/get-active-balance", method="GET")[0] == 404


def test_handle_ignores_faults(server: SandboxServer) -> None:
    """An injected fault waits for a request over a connection."""
    server.inject(CannedResponse(503))
    request = Request("POST", "/add", tuple(HEADERS.items()), json.dumps(GOOD).encode())
    assert server.handle(request).status == 200
    with closing(connect(server)) as connection:
        assert ask(connection, "/add")[0] == 503


def test_direct() -> None:
    """``direct`` uses the same ledger with the server's key, without faults and without the log."""
    with SandboxServer(api_key=KEY) as server, closing(connect(server)) as connection:
        server.inject(CannedResponse(503))
        with server.direct as direct:
            direct.add(USER, 5)
        with pytest.raises(InsufficientFundsError):
            direct.subtract(USER, 6)
        assert server.log == ()
        assert ask(connection, "/subtract")[0] == 503
        assert ask(connection, "/subtract")[0] == 200
        assert direct.get_balance(USER).active_balance == 0
        server.reset()
        with pytest.raises(UserDoesNotExistError):
            direct.get_balance(USER)


def test_advance() -> None:
    """After ``advance`` the clock runs on from the new time, also for Date, until a reset."""
    with SandboxServer(clock=lambda: NOW) as server, closing(connect(server)) as connection:
        server.direct.start_cycle(USER, 50, validity_days=2)
        server.direct.add(USER, 7, validity_days=2)
        server.direct.subtract(USER, 1)
        server.advance(days=1.5)
        assert server.direct.get_balance(USER).active_balance == 56
        server.advance(days=1)
        status, headers, balance = ask(connection, "/get-active-balance", method="GET")
        assert (status, headers["Date"]) == (200, "Fri, 15 Aug 2025 02:35:55 GMT")
        assert balance["active_balance"] == 50
        server.reset()
        assert server.direct.start_cycle(USER, 50).created_at == NOW


@pytest.mark.parametrize("days", [-1, float("nan"), 3_000_000, float("inf")])
def test_advance_too_far(server: SandboxServer, days: float) -> None:
    """The clock rejects moves backwards or past the calendar, and stays where it was."""
    with pytest.raises((OverflowError, ValueError)):
        server.advance(days=days)
    assert server.direct.start_cycle(USER, 50).created_at.year < 3000


def test_port_in_use(server: SandboxServer) -> None:
    """``start`` and ``serve`` raise in the caller's thread if the port is in use."""
    host, port = where(server)
    with pytest.raises(OSError, match="in use"):
        SandboxServer(host=host, port=port).start()
    with pytest.raises(OSError, match="in use"):
        serve(host, port, None, print)


@pytest.mark.parametrize("host", loopback_hosts())
def test_hosts(host: str) -> None:
    """An IPv6 host has brackets in the URL."""
    with SandboxServer(host=host) as server, closing(connect(server)) as connection:
        assert urlsplit(server.base_url).hostname == host
        assert ask(connection, "/add")[0] == 200


def test_runs_once() -> None:
    """A server has a URL once it has started, can be closed twice, and does not start again."""
    server = SandboxServer()
    server.close()
    with pytest.raises(RuntimeError, match="not been started"):
        _ = server.base_url
    server.start()
    with pytest.raises(RuntimeError, match="once"):
        server.start()
    server.close()
    server.close()
    with pytest.raises(RuntimeError, match="once"):
        server.start()
    with pytest.raises(ConnectionRefusedError):
        dial(server)


def test_close_drops_connections() -> None:
    """Closing ends idle connections, hanging ones and closing ones. The thread ends."""
    threads = threading.active_count()
    with SandboxServer() as server:
        idle, waiting, rejected = dial(server), dial(server), dial(server)
        waiting.sendall(message()[:-1])
        wait_until(lambda: len(server.log) == 1)
        rejected.sendall(b"nonsense\r\n\r\n")
        assert read_response(rejected)[0] == 400
    assert threading.active_count() == threads
    for stream in (idle, waiting, rejected):
        with stream, suppress(ConnectionResetError):  # a reset is a way to be dropped, too
            assert stream.recv(1) == b""


def test_close_while_clients_arrive() -> None:
    """Closing also ends a connection that was just accepted."""
    for _ in range(20):
        with SandboxServer() as server:
            streams = [dial(server) for _ in range(5)]
        for stream in streams:
            stream.close()


def test_client_that_resets(server: SandboxServer) -> None:
    """A client that resets its connection is not an error of the server."""
    stream = dial(server)
    stream.sendall(message()[:-1])
    wait_until(lambda: len(server.log) == 1)
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    stream.close()
    with closing(connect(server)) as connection:
        assert ask(connection, "/add")[0] == 200


def test_internal_error_at_close() -> None:
    """After an internal error the client loses its connection, and ``close`` raises the error."""

    def fail(request: Request) -> bool:
        raise LookupError(request.url)

    server = SandboxServer()
    server.start()
    server.inject(CannedResponse(503), when=fail)
    with dial(server) as stream:
        stream.sendall(message())
        assert stream.recv(1) == b""
    with pytest.raises(ExceptionGroup, match="sandbox server failed") as caught:
        server.close()
    (error,) = caught.value.exceptions
    assert isinstance(error, LookupError)
    assert server.log[0].status is None


@pytest.mark.parametrize("method", ["settle", "close", "refusing", "stalling"])
def test_waiting_for_the_server_in_its_own_thread(server: SandboxServer, method: str) -> None:
    """A ``when`` function that waits for the server gets an error, not a deadlock."""

    def wait(_: Request) -> bool:
        with getattr(server, method)() or nullcontext():
            return True

    server.inject(CannedResponse(503), when=wait)
    with dial(server) as stream:
        stream.sendall(message())
        assert stream.recv(1) == b""
    with pytest.raises(ExceptionGroup) as caught:
        server.reset()
    assert caught.group_contains(RuntimeError, match="it cannot wait for the server")


def test_internal_error_at_reset(server: SandboxServer) -> None:
    """``reset`` raises an internal error once. Then the server works again."""
    server.inject(CannedResponse(503), when=lambda _: bool(1 / 0))
    with dial(server) as stream:
        stream.sendall(message())
        assert stream.recv(1) == b""
    with pytest.raises(ExceptionGroup, match="sandbox server failed") as caught:
        server.reset()
    assert caught.group_contains(ZeroDivisionError)
    assert server.log == ()
    server.reset()


def test_lost_peer_is_not_an_internal_error() -> None:
    """If asyncio ends the stream of a lost peer, early or late, nothing is raised."""

    def end_the_stream() -> None:
        raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")

    def fail_soon(_: Request) -> bool:
        asyncio.get_running_loop().call_soon(end_the_stream)
        return False

    with SandboxServer() as server:
        server.inject(CannedResponse(503), when=fail_soon)
        with closing(connect(server)) as connection:
            assert ask(connection, "/add")[0] == 200


# Python 3.14 warns that policies will be removed.
@pytest.mark.filterwarnings("ignore:.*slated for removal:DeprecationWarning")
def test_loop_of_its_own() -> None:
    """The server runs on its own asyncio loop, even if a test has set another."""
    loops: list[object] = []

    def look(_: Request) -> bool:
        loops.append(type(asyncio.get_running_loop()))
        return False

    set_policy = asyncio.set_event_loop_policy  # pyright: ignore[reportDeprecated]  # tests do that
    set_policy(uvloop.EventLoopPolicy())
    try:
        with SandboxServer() as server, closing(connect(server)) as connection:
            server.inject(CannedResponse(503), when=look)
            assert ask(connection, "/add")[0] == 200
    finally:
        set_policy(None)
    assert loops == [asyncio.SelectorEventLoop]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serve_ends_with_a_signal(number: signal.Signals) -> None:
    """``serve`` runs from the call of ``ready`` until a signal."""
    before = signal.getsignal(signal.SIGINT)
    responses: list[int] = []

    def ready(base_url: str) -> None:
        parts = urlsplit(base_url)
        with closing(http.client.HTTPConnection(parts.netloc, timeout=20)) as connection:
            responses.append(ask(connection, "/add")[0])
        os.kill(os.getpid(), number)

    serve("127.0.0.1", 0, KEY, ready)
    assert responses == [200]
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serve_in_a_process(number: signal.Signals) -> None:
    """``serve`` stops with open connections, exits with 0 and prints no warning."""
    program = (
        "import sys; from creduse_sandbox import serve;"
        "serve('127.0.0.1', 0, None, lambda url: print(url, flush=True))"
    )
    with subprocess.Popen(
        [sys.executable, "-X", "dev", "-W", "error", "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        base_url: str = process.stdout.readline().strip()
        parts = urlsplit(base_url)
        with closing(http.client.HTTPConnection(parts.netloc, timeout=20)) as connection:
            assert ask(connection, "/add")[0] == 200
            process.send_signal(number)
            _, errors = process.communicate()
    assert process.returncode == 0
    for sign in ("Warning", "Error", "Traceback", "destroyed"):
        assert sign not in errors
