"""Ctrl-C at any moment of the command: no traceback, and a documented exit status."""

import os
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from creduse._bulk import STATUSES as OF_BULK
from creduse._calls import STATUSES, _write_at_once  # pyright: ignore[reportPrivateUsage] - see its use
from creduse_entry import exit_at_once
from creduse_sandbox import SandboxServer

pytestmark = pytest.mark.slow

USER = "12345678-1234-5678-1234-567812345678"
SCRIPTS = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))[
    "project"
]["scripts"]
MODULE, FUNCTION = SCRIPTS["creduse"].split(":")

# The installed script, which interrupts itself at an audit event of Python: an import, the opening
# of a file, a connection and the like. It creates the file "interrupted" before. Its first argument
# is the number of the event, among those that have the second argument in their text.
PROGRAM = f"""
import os, signal, sys, threading
from {MODULE} import {FUNCTION}
left, watched = int(sys.argv.pop(1)), sys.argv.pop(1)
def interrupt(event, arguments):
    global left
    if watched and watched not in f"{{event}} {{arguments}}":
        return
    if threading.current_thread() is threading.main_thread():
        left -= 1
        if left == 0:
            os.close(os.open("interrupted", os.O_CREAT))
            signal.raise_signal(signal.SIGINT)
sys.addaudithook(interrupt)
sys.exit({FUNCTION}())
"""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[SandboxServer]:
    """Yield a sandbox that the environment names, and enter a directory with a file for bulk runs."""
    monkeypatch.chdir(tmp_path)
    Path("june.csv").write_text(f"end_user_id,amount\n{USER},5\n", encoding="utf-8")
    with SandboxServer() as running:
        monkeypatch.setenv("CREDUSE_API_KEY", "sk-secret-0123456789")
        monkeypatch.setenv("CREDUSE_BASE_URL", running.base_url)
        yield running


def interrupted_at(event: int, *arguments: str) -> "subprocess.CompletedProcess[str] | None":
    """Run the command and interrupt it at an event. Return ``None`` if it has ended before."""
    Path("interrupted").unlink(missing_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(event), "", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done if Path("interrupted").exists() else None


# The command's arguments, and how many events are between two interruptions.
COMMANDS: dict[str, tuple[list[str], int]] = {
    "help": (["add", "--help"], 401),
    "wrong usage": (["add"], 401),
    "read": (["balance", USER, "--verbose"], 907),
    "write": (["add", USER, "5"], 499),
    "json": (["add", USER, "5", "--json"], 907),
    "completion": (["completion", "fish"], 401),
    "demo": (["demo"], 907),
    "bulk run": (["bulk", "add", "june.csv", "--yes"], 401),
    "bulk status": (["bulk", "status", "june.csv"], 401),
    "bulk resolve": (["bulk", "resolve", "june.csv"], 401),
    "probe": (["bulk", "probe", USER, "--yes"], 401),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_at_any_moment(name: str, server: SandboxServer) -> None:
    """Whenever Ctrl-C comes, there is no traceback, and the exit status says what is applied."""
    arguments, step = COMMANDS[name]
    documented = OF_BULK.keys() | {130} if arguments[0] == "bulk" else STATUSES.keys()
    event = 1
    while True:
        applied = len(server.applied)
        done = interrupted_at(event, *arguments)
        if done is None:
            break
        assert "Traceback" not in done.stderr, (event, done.stderr)
        assert "Exception ignored" not in done.stderr, (event, done.stderr)
        assert done.returncode in documented, (event, done)
        if arguments[0] == "add":
            applied = len(server.applied) - applied
            assert done.returncode == 3 or (done.returncode in {0, 4}) == applied, (event, done)
        event += step
    assert event > step


def test_ignored(server: SandboxServer) -> None:
    """Where Ctrl-C is ignored, as in a background job of a shell, it stays ignored."""
    program = PROGRAM.replace(
        "import os,", "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); import os,"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "5", "", "add", USER, "5"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert Path("interrupted").exists()
    assert len(server.applied) == 1


AT = {
    "before": ("june.csv", "bulk add june.csv --yes", 130, "creduse: interrupted\n"),
    "in flight": (
        "socket.connect",
        f"add {USER} 5 -q",
        3,
        f"creduse: add({USER}, 5): interrupted: it may have been applied\n",
    ),
}


@pytest.mark.parametrize("closed", [">&-", "2>&-", "2>/dev/full"])
@pytest.mark.parametrize(("watched", "arguments", "status", "told"), AT.values(), ids=AT)
def test_streams_that_fail(
    watched: str, arguments: str, status: int, told: str, closed: str, server: SandboxServer
) -> None:
    """A closed or full standard error does not change the exit status, and no other file gets its text."""
    command = f'exec "$0" -c "$1" 1 {watched} {arguments} {closed}'
    done = subprocess.run(
        ["/bin/sh", "-c", command, sys.executable, PROGRAM],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == status
    assert done.stdout == ""
    assert done.stderr == (told if closed == ">&-" else "")
    assert server.applied == ()


def test_held_down(server: SandboxServer) -> None:
    """However often Ctrl-C comes, the exit status says whether the call was applied."""
    statuses = set[int]()
    for _ in range(4):
        applied = len(server.applied)
        with subprocess.Popen(
            [sys.executable, "-c", PROGRAM, "0", "", "add", USER, "5", "--verbose"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            requests = len(server.log)
            while len(server.log) == requests and process.poll() is None:
                pass
            while process.poll() is None:
                process.send_signal(signal.SIGINT)
            _, err = process.communicate()
        assert "Traceback" not in err
        statuses.add(process.returncode)
        assert process.returncode in {0, 3}
        assert process.returncode == 3 or len(server.applied) == applied + 1
    assert statuses


class Ended(BaseException):
    """The process would have ended."""


# Coverage cannot save its data in the processes above, whose standard error fails.
@pytest.mark.parametrize("is_closed", [True, False])
def test_standard_error_that_fails(is_closed: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process ends with the same exit status if nothing can be written."""

    def end(status: int) -> NoReturn:
        raise Ended(status)

    monkeypatch.setattr(os, "_exit", end)
    if is_closed:
        monkeypatch.setattr(sys, "stderr", None)
        _write_at_once(None, "a line")
    before, full = os.dup(2), os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, 2)
    try:
        with pytest.raises(Ended) as ended:
            exit_at_once(signal.SIGINT, None)
    finally:
        os.dup2(before, 2)
        os.close(before)
        os.close(full)
    assert ended.value.args == (130,)
