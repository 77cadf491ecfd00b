"""``creduse sandbox`` as a development server: what it prints and what it keeps."""

import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from creduse import CreduseClient, CreduseError, InsufficientFundsError, _sandbox
from creduse.__main__ import main
from creduse_core import RetryPolicy
from creduse_sandbox import DESCRIPTIONS, OUTCOMES, StateFile
from creduse_sandbox.faults import FIRST
from tests.common import free_port, listens, wait_until

USER = "12345678-1234-5678-1234-567812345678"
KEY = "sk-test-0123456789abcdef"
ONCE = RetryPolicy(max_attempts=1)


class Running:
    """A ``creduse sandbox`` in a process."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "creduse", "sandbox", "--port", "0", *arguments],
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.lines = [self.process.stdout.readline()]
        while self.lines[-1] not in {"Press Ctrl-C to stop.\n", ""}:
            self.lines.append(self.process.stdout.readline())
        self.url = self.lines[0].strip()

    def client(self, key: str = "any", **settings: Any) -> CreduseClient:
        return CreduseClient(key, base_url=self.url, retry=ONCE, **settings)

    def stop(self) -> list[str]:
        """Stop it, and return the lines that it has printed since it listens."""
        self.process.send_signal(signal.SIGTERM)
        out, err = self.process.communicate()
        assert (self.process.returncode, err) == (0, "")
        return str(out).splitlines()


@pytest.fixture
def run() -> Iterator[Any]:
    """Start a sandbox with arguments and an environment."""
    running: list[Running] = []

    def start(*arguments: str, **environment: str) -> Running:
        running.append(Running(*arguments, **environment))
        return running[-1]

    yield start
    for it in running:
        it.process.kill()
        with suppress(ValueError):  # its streams are closed
            it.process.communicate()


def test_first_lines(run: Any) -> None:
    """The command prints its URL, lines to copy into a shell, and the page's address."""
    running = run()
    url = running.url
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+", url)
    assert "".join(running.lines) == (
        f"{url}\n\nexport CREDUSE_BASE_URL={url}\nexport CREDUSE_API_KEY=any\n\n"
        f"In a browser, {url}/ shows users and requests.\nPress Ctrl-C to stop.\n"
    )


def test_lines_to_copy(run: Any) -> None:
    """With the lines copied, a shell's next call reaches the sandbox, also with a key of its own."""
    running = run(CREDUSE_SANDBOX_API_KEY=KEY)
    exports = "".join(line for line in running.lines if line.startswith("export "))
    done = subprocess.run(
        ["/bin/sh", "-c", f"{exports}{sys.executable} -m creduse add {USER} 5"],
        env={**os.environ, "CREDUSE_SANDBOX_API_KEY": KEY},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "Added 5 credits, valid for 31 days.\n"
    assert KEY not in "".join([*running.lines, *running.stop()])


def test_line_for_each_request(run: Any) -> None:
    """Each request has a line: local time, call, user, status, what was applied, and the fault."""
    running = run("--fault", "apply-then-reset:1")
    with running.client(KEY) as client:
        with pytest.raises(CreduseError):
            client.add(USER, 100)
        client.subtract(USER, 30)
        with pytest.raises(InsufficientFundsError):
            client.subtract(USER, 1000)
        client.get_balance(USER)
    lines = running.stop()
    assert all(re.match(r"\d\d:\d\d:\d\d  ", line) for line in lines)
    assert [" ".join(line.split()[1:]) for line in lines] == [
        f"add 100 {USER} no response applied fault apply-then-reset",
        f"subtract 30 {USER} 200 applied",
        f"subtract 1000 {USER} 402 not applied",
        f"balance {USER} 200 read",
    ]
    assert KEY not in "".join(lines)


def test_quiet(run: Any) -> None:
    """With --quiet, requests have no lines."""
    running = run("--quiet")
    with running.client() as client:
        client.add(USER, 100)
    assert running.stop() == []


def test_reader_that_leaves(run: Any) -> None:
    """The sandbox goes on when nobody reads its lines anymore."""
    running = run()
    running.process.stdout.close()
    with running.client() as client:
        for _ in range(3):
            client.add(USER, 5)
        assert client.get_balance(USER).active_balance == 15
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait() == 0


def test_reader_that_waits(run: Any) -> None:
    """The sandbox does not wait for a reader of its lines. It says how many it omitted."""
    running = run()
    with running.client() as client:
        client.add(USER, 5)
        for _ in range(1_500):
            client.get_balance(USER)
        while running.process.stdout.readline().split()[1] != "add":
            pass
        read = ""
        while "omitted" not in read:  # until there is room again
            client.get_balance(USER)
            read = running.process.stdout.readline()
    assert re.fullmatch(r"\(\d+ lines omitted, as nobody read these in time\)\n", read)
    running.stop()


def test_no_output() -> None:
    """Without a standard output, a request has no line and gets its response."""
    port = free_port()
    command = f"exec {sys.executable} -m creduse sandbox --port {port} >&-"
    with subprocess.Popen(["/bin/sh", "-c", command], stderr=subprocess.PIPE) as process:
        wait_until(lambda: listens(port))
        with CreduseClient("any", base_url=f"http://127.0.0.1:{port}", retry=ONCE) as client:
            client.add(USER, 5)
        process.terminate()
        _, err = process.communicate()
    assert (process.returncode, err) == (0, b"")


def test_state(run: Any, tmp_path: Path) -> None:
    """With --state, another sandbox begins with what this one held."""
    path = str(tmp_path / "state")
    running = run("--state", path)
    with running.client() as client:
        client.add(USER, 100)
    running.stop()
    running = run("--state", path)
    with running.client() as client:
        assert client.get_balance(USER).active_balance == 100
    running.stop()
    assert [*tmp_path.iterdir()] == [tmp_path / "state"]


@pytest.mark.parametrize("text", ["not a database", "SQLite format 3\0" + "x" * 100])
def test_wrong_state(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that is no state is one line that does not name it, and exit status 2."""
    path = tmp_path / "precious"
    path.write_text(text, encoding="utf-8")
    assert main(["sandbox", "--port", "0", "--state", str(path)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    expected = "argument --state: the file is not the state of a creduse sandbox"
    assert err == f"creduse: {expected}; choose another one\n"
    assert path.read_text(encoding="utf-8") == text


def test_damaged_state(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A state with a value that makes no sense is one line, too."""
    path = tmp_path / "state"
    StateFile(path).close()
    with closing(sqlite3.connect(path)) as file, file:
        file.execute("INSERT INTO kept VALUES ('user', 'x', '{}')")
    assert main(["sandbox", "--port", "0", "--state", str(path)]) == 2
    assert capsys.readouterr().err == (
        "creduse: argument --state: the file's content is damaged; choose another one\n"
    )


def test_state_without_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    """An empty name, as from a variable that is not set, is named as such."""
    assert main(["sandbox", "--port", "0", "--state", ""]) == 2
    expected = "argument --state: it must be the name of a file, not an empty text"
    assert capsys.readouterr() == ("", f"creduse: {expected}\n")


def test_state_that_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A state whose table is missing is one line, too."""
    path = tmp_path / "state"
    StateFile(path).close()
    with closing(sqlite3.connect(path)) as file, file:
        file.execute("DROP TABLE kept")
    assert main(["sandbox", "--port", "0", "--state", str(path)]) == 2
    assert capsys.readouterr().err == (
        "creduse: argument --state: the file's content is damaged; choose another one\n"
    )


@pytest.mark.parametrize(
    ("host", "shown", "is_open"),
    [
        ("127.0.0.1", "127.0.0.1", False),
        ("localhost", "localhost", False),
        ("0.0.0.0", "127.0.0.1", True),  # noqa: S104 - a machine of tests
    ],
)
def test_hosts(run: Any, host: str, shown: str, *, is_open: bool) -> None:
    """On all addresses, the command shows a URL of this machine, and says who can reach it."""
    running = run("--host", host)
    assert running.url.startswith(f"http://{shown}:")
    assert ("Other machines can reach this server." in "".join(running.lines)) == is_open
    with running.client() as client:
        client.add(USER, 5)
    running.stop()


def test_first_five_on_the_page() -> None:
    """The documentation's table of faults to start with is that of the code."""
    page = Path(__file__).parents[1].joinpath("docs", "sandbox.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w-]+)` \| (.+) \| (\w+) \|$", page, re.MULTILINE)
    assert [name for name, _, _ in rows] == [*FIRST]
    for name, does, outcome in rows:
        assert (
            f" {does}".replace(" sends ", " send ")
            .replace(" applies ", " apply ")
            .replace(" resets ", " reset ")
            == f" {DESCRIPTIONS[name]}"
        )
        assert outcome == str(OUTCOMES[name] if OUTCOMES[name] is not None else "succeeds")


def test_system_without_poll(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system cannot say whether a stream takes a line, as on Windows, the line is written."""
    monkeypatch.delattr("select.poll")
    is_ready: Any = vars(_sandbox)["_is_ready"]
    assert is_ready(sys.stdout) is True
