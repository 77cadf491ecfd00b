"""``creduse bulk follow``: what it prints, and its exit statuses."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from creduse_journal import POSTGRES_SCHEMA
from creduse_sandbox import FAULTS, CannedResponse, SandboxServer
from tests.common import KEY, PROGRESS

psycopg = pytest.importorskip("psycopg", reason="psycopg is not installed")
pytestmark = pytest.mark.slow


@pytest.fixture
def server() -> Iterator[SandboxServer]:
    """A sandbox."""
    with SandboxServer() as server:
        yield server


def start(server: SandboxServer, *options: str) -> "subprocess.Popen[str]":
    """Start the command."""
    return subprocess.Popen(
        [sys.executable, "-m", "creduse", "bulk", "follow", *options],
        env=os.environ | {"CREDUSE_API_KEY": KEY, "CREDUSE_BASE_URL": server.base_url},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    """Wait until it ends. Return its exit status and what it printed."""
    output, errors = process.communicate()
    assert "Traceback" not in errors, errors
    assert KEY not in output + errors
    return process.returncode, output, errors


def insert(url: str, entries: int) -> None:
    """Insert entries that add credits."""
    with psycopg.connect(url, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute(POSTGRES_SCHEMA)
        cursor.executemany(
            "INSERT INTO creduse_entries (id, method, end_user_id, amount) VALUES (%s, 'add', %s, 5)",
            [(f"e{number}", uuid4()) for number in range(entries)],
        )


def wait_until_applied(server: SandboxServer, entries: int) -> None:
    """Wait until the server has applied so many."""
    while len(server.applied) < entries:
        signal.sigtimedwait([], 0.02)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped(server: SandboxServer, postgres_url: str, number: signal.Signals) -> None:
    """A signal stops it with exit status 0, and it says what it has done."""
    insert(postgres_url, 20)
    process = start(server, "--journal", postgres_url)
    assert process.stderr is not None
    line = process.stderr.readline()
    assert line == f"creduse: following {postgres_url} to {server.base_url}\n"
    wait_until_applied(server, 20)
    process.send_signal(number)
    status, output, errors = end(process)
    assert (status, output) == (0, "20 calls: 20 applied\n")
    # The server has applied all, but not all responses need have arrived.
    stopping = r"(20 calls: .*; stopping: waits for \d+ responses?; .*\n)*"
    assert re.fullmatch(stopping, PROGRESS.sub("", errors))


def test_json(server: SandboxServer, postgres_url: str) -> None:
    """With --json, it prints the counts for programs."""
    insert(postgres_url, 3)
    process = start(
        server, "--journal", postgres_url, "--json", "--concurrency", "1", "--rate", "99"
    )
    assert process.stderr is not None
    process.stderr.readline()
    wait_until_applied(server, 3)
    process.terminate()
    status, output, _ = end(process)
    found = json.loads(output)
    assert (status, found["applied"], found["stopped"]) == (0, 3, "SIGTERM")


def test_unclear(server: SandboxServer, postgres_url: str) -> None:
    """If calls are unclear, it says where to find out about them."""
    insert(postgres_url, 3)
    server.inject(FAULTS["apply-then-reset"], 1)
    process = start(server, "--journal", postgres_url)
    assert process.stderr is not None
    process.stderr.readline()
    wait_until_applied(server, 3)
    process.terminate()
    status, output, _ = end(process)
    assert status == 0
    about = "About the unclear ones: creduse_journal.Journal(URL).unclear(), check and settle"
    assert output == f"3 calls: 2 applied, 1 unclear\n{about}\n"


def test_in_use(server: SandboxServer, postgres_url: str) -> None:
    """Another one of the same shard has exit status 75, and one of another shard goes on."""
    first = start(server, "--journal", postgres_url, "--shard", "1/2")
    assert first.stderr is not None
    first.stderr.readline()
    status, output, errors = end(start(server, "--journal", postgres_url, "--shard", "1/2"))
    words = f"shard 1/2 of {postgres_url} is in use: another process sends it"
    assert (status, output, errors) == (75, "", f"creduse: {words}\n")
    other = start(server, "--journal", postgres_url, "--shard", "2/2")
    assert other.stderr is not None
    assert other.stderr.readline().startswith("creduse: following")
    for process in (first, other):
        process.terminate()
        assert end(process)[0] == 0


def test_wrong_key(server: SandboxServer, postgres_url: str) -> None:
    """A fault that a person must mend stops it with exit status 75, and it says why."""
    insert(postgres_url, 1)
    server.inject(CannedResponse(401, (), b""))
    status, output, errors = end(start(server, "--journal", postgres_url))
    assert (status, output) == (75, "1 call: 0 applied, 1 waiting\n")
    assert "creduse: stopped: " in errors
    assert "401" in errors


def test_no_database(server: SandboxServer) -> None:
    """Where no database can be reached, the exit status is 75, and no password is shown."""
    url = "postgresql://ada:secret-word@127.0.0.1:1/db?password=secret-word"
    status, output, errors = end(start(server, "--journal", url))
    assert (status, output) == (75, "")
    assert errors.startswith(
        "creduse: postgresql://ada:***@127.0.0.1:1/db?password=*** cannot be used: "
    )
    assert "secret" not in errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "the following arguments are required: --journal"),
        (("--journal", "f.journal"), "creduse: journal must be a URL such as postgresql://"),
        (("--journal", "mysql://a/b"), "not one that begins with mysql://"),
        (
            ("--journal", "postgresql://a:b c@d"),
            "creduse: postgresql://a:***@d is not a URL such as",
        ),
        (("--journal", "postgresql://", "--concurrency", "0"), "concurrency must be at least 1"),
        (("--journal", "postgresql://", "--shard", "3/2"), "--shard: it must be one of 1/S to S/S"),
    ],
)
def test_wrong_usage(server: SandboxServer, options: tuple[str, ...], message: str) -> None:
    """Wrong usage has exit status 2, and nothing is sent."""
    status, output, errors = end(start(server, *options))
    assert (status, output, server.log) == (2, "", ())
    assert message in errors


def test_without_psycopg(
    server: SandboxServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without psycopg, it says what to install."""
    (tmp_path / "psycopg.py").write_text("raise ImportError('no psycopg')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    status, _, errors = end(start(server, "--journal", "postgresql://"))
    assert (status, errors) == (
        2,
        "creduse: a journal in PostgreSQL needs psycopg: pip install 'creduse[postgres]>=0.2'\n",
    )


def test_database_goes_away(server: SandboxServer, postgres_url: str) -> None:
    """If the table is gone, it stops with exit status 75, and says why."""
    process = start(server, "--journal", postgres_url)
    assert process.stderr is not None
    process.stderr.readline()
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("DROP TABLE creduse_entries")
    status, output, errors = end(process)
    assert (status, output) == (75, "")
    assert "creduse: stopped: " in errors
    assert 'relation "creduse_entries" does not exist' in errors
