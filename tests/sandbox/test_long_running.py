"""A server that runs for long: its limits, what it reports of requests, and delays."""

import json
import re
import socket
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import pytest

from creduse import CreduseClient, CreduseError
from creduse_core import Outcome
from creduse_sandbox import (
    FAULTS,
    OUTCOMES,
    Action,
    CannedResponse,
    Drop,
    LogEntry,
    SandboxServer,
    Shaped,
    Stage,
)
from creduse_sandbox.connection import Limits
from creduse_sandbox.faults import name_of
from creduse_sandbox.server import LongRunningServer
from creduse_sandbox.wording import action_line, line, words
from tests.common import ONCE, USER, USER_ID, wait_until

GOOD = {"end_user_id": USER_ID, "amount": 5}


@contextmanager
def serving(**limits: Any) -> Generator[tuple[SandboxServer, list[LogEntry]], None, None]:
    """Run a server with limits, and yield it and what it reports of requests."""
    told: list[LogEntry] = []
    with LongRunningServer(Limits(**limits), told.append) as server:
        yield server, told


def dial(server: SandboxServer) -> socket.socket:
    parts = urlsplit(server.base_url)
    return socket.create_connection((parts.hostname or "", parts.port or 0), timeout=20)


def message(
    path: str = "/add", fields: object = GOOD, method: str = "POST", padding: int = 0
) -> bytes:
    body = json.dumps(fields).encode() + b" " * padding
    head = f"{method} {path} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer k\r\nContent-Length: {len(body)}"
    return f"{head}\r\n\r\n".encode() + body


def ask(stream: socket.socket, data: bytes) -> int:
    """Send a request, and return the response's status code."""
    stream.sendall(data)
    head = b""
    while b"\r\n\r\n" not in head:
        piece = stream.recv(1)
        assert piece
        head += piece
    length = int(head.lower().partition(b"content-length: ")[2].split()[0])
    while length:
        length -= len(stream.recv(length))
    return int(head.split()[1])


def is_open(stream: socket.socket) -> bool:
    """Return whether the server has not closed the connection yet."""
    stream.settimeout(0)
    try:
        return stream.recv(1) != b""
    except BlockingIOError:
        return True
    except ConnectionResetError:
        return False
    finally:
        stream.settimeout(20)


def wait_for_end(stream: socket.socket) -> None:
    assert stream.recv(1) == b""


# Limits


def test_log_is_bounded() -> None:
    """The log keeps the last requests, and no long body."""
    with serving(requests=3, logged_body=1000) as (server, told), dial(server) as stream:
        for padding in (0, 0, 0, 2000, 0):
            assert ask(stream, message(padding=padding)) == 200
        assert [entry.number for entry in server.log] == [3, 4, 5]
        assert [entry.body is None for entry in server.log] == [False, True, False]
        assert len(told) == 5


def test_limit_of_a_body() -> None:
    """A request with too long a body gets a 413."""
    with serving(request_body=500) as (server, _), dial(server) as stream:
        assert ask(stream, message(padding=300)) == 200
        assert ask(stream, message(padding=500)) == 413
        wait_for_end(stream)


def test_limit_of_connections() -> None:
    """For one connection too many, the server closes the one that is idle for longest."""
    with serving(connections=2) as (server, _), dial(server) as first, dial(server) as second:
        assert ask(first, message()) == 200
        assert ask(second, message()) == 200
        assert ask(first, message()) == 200
        with dial(server) as third:
            wait_for_end(second)
            assert ask(first, message()) == ask(third, message()) == 200


def test_many_connections_at_once() -> None:
    """However many clients connect at once, no more connections stay open than the limit says."""
    with serving(connections=5) as (server, _):
        streams = [dial(server) for _ in range(50)]
        server.settle()
        server.settle()
        assert server.connections <= 5
        assert ask(streams[-1], message()) == 200
        for stream in streams:
            stream.close()


def test_idle_connections() -> None:
    """The server closes a connection that is idle for too long, but none that waits or hangs."""
    with serving(idle_seconds=5) as (server, _):
        server.inject(FAULTS["request-then-hang"])
        server.inject(FAULTS["request-then-hang"], delay=0.1)
        server.inject(delay=7)
        with dial(server) as hangs, dial(server) as hangs_later, dial(server) as waits:
            for stream in (hangs, hangs_later, waits):
                stream.sendall(message())
                server.settle()
            with dial(server) as idle, dial(server) as partial:
                partial.sendall(b"POST")
                wait_for_end(idle)
                wait_for_end(partial)
            assert ask(waits, b"") == 200
            assert is_open(hangs)
            assert is_open(hangs_later)


def test_no_limits_in_tests() -> None:
    """A server for tests keeps the whole log."""
    with SandboxServer() as server, dial(server) as stream:
        for _ in range(1_200):
            assert ask(stream, message("/subtract")) == 404
        assert len(server.log) == 1_200
        assert all(entry.body for entry in server.log)


# What it tells


def test_each_request_is_told_once() -> None:
    """Each request is reported once: with its response, or when there will be none."""
    with serving() as (server, told):
        for name in ("503", "apply-then-reset", "head-then-close", "cut-body-then-close", "drip"):
            server.inject(FAULTS[name])
        with CreduseClient("any", base_url=server.base_url, retry=ONCE) as client:
            for _ in range(6):
                with suppress(CreduseError):
                    client.add(USER, 1)
        server.inject(FAULTS["connect-then-close"])
        with dial(server) as stream:
            wait_for_end(stream)
        with dial(server) as stream:
            stream.sendall(b"POST /ad")
            server.settle()
        wait_until(lambda: len(told) == 8)
    shown = [(it["call"], it["status"], it["applied"], it["fault"]) for it in map(words, told)]
    assert shown == [
        ("add", "", "not applied", "head-then-close"),
        ("add 1", "503", "not applied", "503"),
        ("add 1", "", "applied", "apply-then-reset"),
        ("add 1", "200", "applied", "cut-body-then-close"),
        ("add 1", "200", "applied", "drip"),
        ("add 1", "200", "applied", ""),
        ("(connection)", "", "not applied", "connect-then-close"),
        ("(incomplete)", "", "not applied", ""),
    ]
    assert all(it.at for it in told)


def test_actions_of_the_page() -> None:
    """What a button of the page has done is reported in words, and what it has not done is not."""
    told: list[str] = []
    actions: tuple[tuple[str, object], ...] = (
        ("advance", {"hours": 24}),
        ("advance", {"hours": -1}),
        ("give", GOOD),
        ("give", GOOD | {"end_user_id": "x\x1b[2J"}),
        ("inject", {"fault": "503"}),
        ("inject", {"fault": "x\x1b[2J"}),
        ("clear", {}),
    )
    with LongRunningServer(Limits(), on_action=told.append) as server, dial(server) as stream:
        origin = b"Host: localhost\r\nOrigin: http://localhost\r\n"
        for name, fields in actions:
            stream.sendall(message(f"/_page/{name}", fields).replace(b"Host: a\r\n", origin))
            ask(stream, b"")
    assert told == [
        "the clock goes ahead by 1 day, 0:00:00",
        f"user {USER_ID} gets 5 credits",
        "the next request meets the fault 503",
        "no further request meets a fault",
    ]
    assert re.fullmatch(r"\d\d:\d\d:\d\d  page: it did", action_line("it did"))


def test_client_that_leaves_during_a_delay() -> None:
    """A client that leaves before a slow response got none, and the request was applied."""
    with serving() as (server, told):
        server.inject(delay=30)
        with dial(server) as stream:
            stream.sendall(message())
            server.settle()
            assert told == []
            assert server.log[0].applied
        wait_until(lambda: bool(told))
    (entry,) = told
    assert (entry.status, entry.applied) == (None, True)
    assert words(entry)["fault"] == "slow after 30 s"


# Delays


def test_delays() -> None:
    """Each kind of fault can wait before its response or action."""
    with SandboxServer() as server:
        server.inject(FAULTS["429"], delay=0.01)
        server.inject(delay=0.01)
        server.inject(FAULTS["drip"], delay=0.01)
        with dial(server) as stream:
            assert ask(stream, message()) == 429
            assert ask(stream, message() + message()) == 200
            assert ask(stream, b"") == 200
            server.inject(FAULTS["head-then-close"], delay=0.01)
            stream.sendall(message())
            wait_for_end(stream)
        server.inject(FAULTS["connect-then-close"], delay=0.01)
        with dial(server) as stream:
            wait_for_end(stream)
        assert [entry.applied for entry in server.log] == [False, True, True, False]
        assert [entry.fault and entry.fault.delay for entry in server.log] == [0.01] * 4


@pytest.mark.parametrize(
    "name", ["503", "apply-then-reset", "head-then-close", "connect-then-close"]
)
def test_waits(name: str) -> None:
    """A fault that waits neither responds nor closes the connection yet."""
    with SandboxServer() as server:
        server.inject(FAULTS[name], delay=60)
        with dial(server) as stream:
            stream.sendall(message())
            server.settle()
            server.settle()
            assert is_open(stream)
            assert [entry.applied for entry in server.log] == (
                [] if name.startswith("connect") else [name.startswith("apply")]
            )
            assert all(entry.status is None for entry in server.log)


def test_inject_rejects_delays() -> None:
    """A delay is a number of seconds from 0 on, and without a fault it is needed."""
    server = SandboxServer()
    with pytest.raises(TypeError, match="delay must be a number"):
        server.inject(delay="2")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # wrong on purpose
    with pytest.raises(ValueError, match="delay must be at least 0"):
        server.inject(FAULTS["503"], delay=-1)
    with pytest.raises(TypeError, match="fault must be one of FAULTS"):
        server.inject()


@pytest.mark.parametrize(
    "make",
    [
        lambda: CannedResponse(503, delay=-1),
        lambda: Drop(Stage.HEAD, Action.CLOSE, -1),
        lambda: Shaped(delay=-1),
    ],
)
def test_faults_reject_delays(make: Callable[[], object]) -> None:
    """No fault can wait for less than nothing."""
    with pytest.raises(ValueError, match="delay must be at least 0"):
        make()


# Words


@pytest.mark.parametrize(
    ("fault", "name"),
    [
        (FAULTS["503"], "503"),
        (FAULTS["slow"], "slow"),
        (Shaped(delay=5), "slow after 5 s"),
        (CannedResponse(503, delay=2), "CannedResponse after 2 s"),
        (Drop(Stage.APPLIED, Action.RESET, 0.5), "apply-then-reset after 0.5 s"),
        (CannedResponse(201), "CannedResponse"),
        (Shaped(), "slow"),
    ],
)
def test_names_of_faults(fault: Any, name: str) -> None:
    """A fault has the name of the ready-made one, and its delay where it has another."""
    assert name_of(fault) == name


def entry(path: str, body: bytes | None, **more: Any) -> LogEntry:
    return LogEntry(1, 1, "POST", path, body=body, **more)


@pytest.mark.parametrize(
    ("logged", "call", "user", "applied"),
    [
        (
            entry("/add", json.dumps(GOOD).encode(), status=200, applied=True),
            "add 5",
            USER_ID,
            "applied",
        ),
        (entry("/subtract", b'{"amount": 7}', status=402), "subtract 7", "", "not applied"),
        (entry("/add", b'{"amount": 7}', status=200), "add 7", "", "replayed"),
        (entry("/get-active-balance", b"{}", status=200), "balance", "", "read"),
        (entry("/stop-cycle", b"no json", status=422), "stop-cycle", "", "not applied"),
        (entry("/start-cycle", b"[" * 100_000, status=422), "start-cycle", "", "not applied"),
        (entry("/add", b"[1]", status=422), "add", "", "not applied"),
        (entry("/add", None), "add", "", "not applied"),
        (entry("/elsewhere", b""), "POST /elsewhere", "", "not applied"),
        (
            entry(
                "/add", json.dumps({"end_user_id": "\x1b[31m" + "x" * 99, "amount": "\n"}).encode()
            ),
            "add ?",
            "?[31m" + "x" * 55 + "…",
            "not applied",
        ),
    ],
)
def test_words(logged: LogEntry, call: str, user: str, applied: str) -> None:
    """A request in words has its call, user and what was applied, and no control characters."""
    shown = words(logged)
    assert (shown["call"], shown["user"], shown["applied"]) == (call, user, applied)


def test_line() -> None:
    """A line has one column after the other. A request without a time has none."""
    shown = line(
        entry("/add", json.dumps(GOOD).encode(), fault=FAULTS["apply-then-reset"], applied=True)
    )
    assert shown.split() == [
        "add",
        "5",
        USER_ID,
        "no",
        "response",
        "applied",
        "fault",
        "apply-then-reset",
    ]


# Outcomes


@pytest.mark.parametrize("name", FAULTS)
def test_outcomes(name: str) -> None:
    """The outcome of each fault is what a client reports for an add.

    A client may notice that the connection is closed before it sends.
    """
    hangs = "hang" in name or name == "endless-100"
    with (
        SandboxServer() as server,
        CreduseClient(
            "any", base_url=server.base_url, retry=ONCE, timeout=1 if hangs else 30
        ) as client,
    ):
        server.inject(FAULTS[name])
        outcome: Outcome | None = None
        try:
            client.add(USER, 5)
        except CreduseError as error:
            outcome = error.outcome
    is_early = name.startswith("connect") and outcome is Outcome.NOT_APPLIED
    assert outcome is OUTCOMES[name] or is_early
