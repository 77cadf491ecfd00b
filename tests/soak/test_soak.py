"""The soak run's own parts: plans, judge, server, and its command."""

import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
from math import inf
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.soak import plans
from tests.soak.drivers import CLIENTS
from tests.soak.judge import (
    CLOCKS,
    Entry,
    Report,
    Resources,
    growth,
    leftovers,
    overrun,
    violations,
)
from tests.soak.plans import FAULTS, FULL_POOL, Script, draw
from tests.soak.run import Server

ROOT = Path(__file__).parents[2]
WRITE = Report(7, read=False, outcome="APPLIED", sent=1)
READ = Report(7, read=True, outcome="NOT_APPLIED", sent=1)
HELD = Resources(1000, 9, 2, 3, 0, 100_000, 50 * 2**20)


def entry(*, applied: bool = True, stray: float = inf) -> Entry:
    return Entry(7, 5.0, 3, "none", applied, stray)


@pytest.mark.parametrize(
    ("report", "entries"),
    [
        (WRITE, [entry()]),
        (WRITE._replace(sent=2), [entry(applied=False), entry()]),
        (WRITE._replace(outcome="NOT_APPLIED"), [entry(applied=False)]),
        (WRITE._replace(outcome="NOT_APPLIED", sent=0), []),
        (WRITE._replace(outcome="UNKNOWN"), [entry()]),
        (WRITE._replace(outcome="UNKNOWN"), []),
        (WRITE._replace(outcome="UNKNOWN", silent_from=5.0), [entry()]),
        (READ, [entry(applied=False)]),
        # No client can know that the stray response is not the response to the request.
        (WRITE._replace(outcome="NOT_APPLIED"), [entry(stray=0.01)]),
        (WRITE._replace(outcome="NOT_APPLIED", lag=0.1), [entry(stray=0.3)]),
    ],
)
def test_true_outcomes(report: Report, entries: list[Entry]) -> None:
    """A true outcome is not reported as wrong."""
    assert not [*violations(report, entries)]


@pytest.mark.parametrize(
    ("report", "entries", "wrong"),
    [
        (WRITE._replace(sent=2), [entry(), entry()], "applied 2 times"),
        (WRITE, [entry(applied=False)], "the outcome is APPLIED, but it was not applied"),
        (WRITE, [], "the outcome is APPLIED, but it was not applied"),
        (
            WRITE._replace(outcome="NOT_APPLIED"),
            [entry()],
            "the outcome is NOT_APPLIED, but it was applied",
        ),
        (
            WRITE,
            [entry(), entry(applied=False)],
            "the server received 2 requests, but the client sent at most 1",
        ),
        (
            READ,
            [entry(applied=False)] * 2,
            "the server received 2 requests, but the client sent at most 1",
        ),
        (
            READ._replace(sent=0),
            [entry(applied=False)],
            "the server received 1 requests, but the client sent at most 0",
        ),
        (READ._replace(outcome="UNKNOWN"), [], "the outcome of a read is UNKNOWN"),
        (
            WRITE._replace(silent_from=4.99),
            [entry()],
            "sent 0.0100 s after the caller got the cancellation",
        ),
        (
            WRITE._replace(outcome="NOT_APPLIED"),
            [entry(stray=0.06)],
            "the outcome is NOT_APPLIED, but",
        ),
        (
            WRITE._replace(silent_from=4.99),
            [entry(stray=0.01)],
            "sent 0.0100 s after the caller got the canc",
        ),
    ],
)
def test_wrong_outcomes(report: Report, entries: list[Entry], wrong: str) -> None:
    """Each broken invariant is found, and nothing else."""
    (found,) = violations(report, entries)
    assert found.startswith(wrong)


def test_overrun() -> None:
    """A call may last a second longer than its timeout, and more on a late machine."""
    assert overrun("its timeout", 1.9, 1.0, 0.0) is None
    assert overrun("its timeout", 2.9, 1.0, 0.31) is None
    found = overrun("its timeout", 2.9, 1.0, 0.25)
    assert found == "lasted 1.90 s beyond its timeout (1.000 s; worst lag 0.250 s)"


@pytest.mark.parametrize("what", ["descriptors", "tasks", "threads", "connections"])
def test_leftovers(what: str) -> None:
    """Resources that a closed client does not release are found."""
    after = HELD._replace(**{what: 10}, blocks=10**9, calls=5000)
    (found,) = leftovers(HELD, after)
    assert found == f"{what} not released by a closed client: 10, before {getattr(HELD, what)}"


def test_growth() -> None:
    """A leak of one object in five calls is found, and so is memory that Python does not count."""
    steady = [HELD, HELD._replace(calls=50_000), HELD._replace(calls=101_000, blocks=102_000)]
    assert not [*growth(steady)]
    (found,) = growth([*steady, HELD._replace(calls=101_000, blocks=120_000)])
    assert found == "memory grows: 0.200 blocks for each call, 20000 in all"
    (found,) = growth([*steady, HELD._replace(calls=101_000, size=250 * 2**20)])
    assert found == "memory grows: 2097 bytes for each call, 200 MiB in all"


def test_a_plan_is_drawn_from_the_seed_alone() -> None:
    """The same seed draws the same plans, with every fault among them."""
    drawn = [draw(5, number, 0.5) for number in range(5000)]
    assert drawn == [draw(5, number, 0.5) for number in range(5000)]
    assert drawn != [draw(6, number, 0.5) for number in range(5000)]
    assert {plan.script.faults[0] for plan in drawn} == {*FAULTS}
    for plan in [*drawn, plans.full_pool(3)]:
        assert Script.decode(str(plan.script.encode())) == plan.script
    assert plans.full_pool(3).script.faults[0] == FULL_POOL


def test_the_server_knows_nothing_of_creduse() -> None:
    """The server and the judge share no code with the clients or the sandbox."""
    code = "import sys, tests.soak.server; print(*(it for it in sys.modules if 'creduse' in it))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    assert done.stdout == "\n"


@pytest.mark.parametrize("end", ["stays-open", "is-closed", "is-reset"])
def test_when_a_request_was_sent(end: str) -> None:
    """The record has the time at which a request was sent, even if the server reads it late."""
    server = Server(0, 0, None)
    address = urlsplit(server.url)
    body = f'{{"end_user_id": "{Script(1, ("none", "none", "none"), 0).encode()}", "amount": 1}}'
    with socket.create_connection((address.hostname, address.port)) as connection:
        os.kill(server.pid, signal.SIGSTOP)
        before = time.monotonic()
        connection.sendall(
            f"POST /add HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
        )
        after = time.monotonic()
        time.sleep(0.2)
        if end == "is-reset":
            linger = struct.pack("ii", 1, 0)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        if end != "stays-open":
            connection.close()
        time.sleep(0.1)
        os.kill(server.pid, signal.SIGCONT)
        while not (record := server.ask("record")):
            pass
    server.close()
    (found,) = (Entry(*row) for row in record)
    assert found.number == 1
    assert found.sent <= after + CLOCKS
    if end == "stays-open":
        assert found.sent >= before - CLOCKS


@pytest.mark.slow
@pytest.mark.parametrize("wire", ["--plain", "--tls"])
@pytest.mark.parametrize("client", CLIENTS)
def test_a_short_run(client: str, wire: str) -> None:
    """Each client passes a short run. Calls may end late, since other tests keep the machine busy.

    `nox -s soak` also checks when calls end.
    """
    settings = ("--client", client, wire, "--calls", "300", "--seed", "11")
    # Coverage would make it slow, and finds nothing here that other tests do not reach.
    env = {name: it for name, it in os.environ.items() if not name.startswith("COVERAGE_")}
    done = subprocess.run(
        [sys.executable, "-m", "tests.soak", *settings],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert f"{client} {wire[2:]}: " in done.stdout
    wrong = re.findall(r"^  (?:call \d+: )?(.*)$", done.stdout.partition("WRONG")[2], re.MULTILINE)
    wrong = [line for line in wrong if not line.startswith((" ", "lasted "))]
    assert wrong == [], done.stdout
    assert done.returncode == 0 or "lasted " in done.stdout, done.stdout
