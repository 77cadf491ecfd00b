"""Tests of ``creduse bulk``: the command, its messages and its exit statuses."""

import argparse
import csv
import io
import json
import math
import os
import re
import shlex
import signal
import sqlite3
import subprocess
import sys
import termios
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self
from uuid import UUID

import pytest

import creduse_bulk
from creduse import _bulk
from creduse.__main__ import main
from creduse_bulk import Progress
from creduse_bulk._driver import MAX_LATE
from creduse_bulk._probe import Findings
from creduse_bulk._run import Run
from creduse_bulk._sqlite import SqliteItems
from creduse_core import Request
from creduse_sandbox import FAULTS, CannedResponse, SandboxServer
from tests.common import PROGRESS, keep_from_end_of_day

pytestmark = pytest.mark.slow

KEY = "sk-secret-0123456789"
NEW_USER = "99999999-0000-4000-8000-000000000001"
IN_MEMORY = re.compile(r"creduse: warning: .* is in memory \(\w+\): .*\n")
"""The warning where the tests' own directory is in memory."""


def user(number: int) -> UUID:
    """Return a user of these tests."""
    return UUID(int=0x4000_8000_0000_0000_0000 + number)


def write(path: Path, items: int, users: int | None = None) -> None:
    """Write a file in which each line has an amount of its own, from 1 on."""
    lines = [f"{user(number % (users or items))},{number + 1}\n" for number in range(items)]
    path.write_text("end_user_id,amount\n" + "".join(lines))


def amounts(server: SandboxServer) -> list[int]:
    """Return the amounts that the server applied, in its order."""
    return [json.loads(entry.body or b"")["amount"] for entry in server.applied]


def users(server: SandboxServer) -> set[str]:
    """Return the users of all requests."""
    return {json.loads(entry.body or b"")["end_user_id"] for entry in server.log}


def of_amount(*wanted: int) -> Callable[[Request], bool]:
    """Return a condition for requests with one of these amounts."""

    def is_one(request: Request) -> bool:
        return request.method == "POST" and json.loads(request.body)["amount"] in wanted

    return is_one


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[SandboxServer]:
    """Yield a sandbox that the environment names."""
    with SandboxServer(api_key=KEY) as running:
        monkeypatch.setenv("CREDUSE_API_KEY", KEY)
        monkeypatch.setenv("CREDUSE_BASE_URL", running.base_url)
        yield running


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The input file, in the current directory."""
    monkeypatch.chdir(tmp_path)
    return Path("f.csv")


Told = tuple[int, str, str]
Ask = Callable[..., Told]


@pytest.fixture
def ask(
    server: SandboxServer,
    path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Ask:
    """Run the command in this process, and return its exit status, output and standard error.

    However slow the machine, it prints no line because of the time.
    """
    assert server.base_url
    assert not path.exists()
    monkeypatch.setattr(_bulk, "BETWEEN_LINES", math.inf)

    def run(*arguments: str) -> Told:
        try:
            status: Any = main(["bulk", *arguments])
        except SystemExit as end:
            status = end.code
        out, err = capsys.readouterr()
        check_texts(out, err)
        return status, out, IN_MEMORY.sub("", err)

    return run


def check_texts(*texts: str) -> None:
    """Check that there is no API key and no traceback."""
    for text in texts:
        assert KEY not in text
        assert "Traceback" not in text


# Runs


@dataclass(frozen=True, slots=True)
class Kind:
    """One of the four methods: a file for it, and what the command says of that file."""

    columns: str
    line: str
    told: str
    question: str


KINDS = {
    "add": Kind(
        "end_user_id,amount",
        f"{user(1)},100",
        "1 line for 1 user, 100 credits",
        "Add these credits?",
    ),
    "subtract": Kind(
        "end_user_id,amount", f"{user(1)},1", "1 line for 1 user, 1 credit", "Take these credits?"
    ),
    "start-cycle": Kind(
        "end_user_id,amount,validity_days",
        f"{user(1)},5,7",
        "1 line for 1 user, 5 credits",
        "Start these cycles?",
    ),
    "stop-cycle": Kind("end_user_id", f"{user(1)}", "1 line for 1 user", "Stop these cycles?"),
}


@pytest.mark.parametrize("method", KINDS)
def test_methods(server: SandboxServer, ask: Ask, path: Path, method: str) -> None:
    """Each method shows what is in the file, sends it, and sends nothing when it runs again."""
    server.direct.add(user(1), 5)
    if method == "stop-cycle":
        server.direct.start_cycle(user(1), 5)
    kind = KINDS[method]
    path.write_text(f"{kind.columns}\n{kind.line}\n")
    overview = f"f.csv: {kind.told}\nto {server.base_url}\n"
    if method in {"subtract", "stop-cycle"}:
        overview += "without --balance-first, balances prove little if a response is lost\n"
    assert ask(method, "f.csv", "--yes") == (0, "1 line: 1 applied\n", overview)
    assert [entry.path for entry in server.applied] == [f"/{method}"]
    again = "f.csv: going on. 1 line: 1 applied\n"
    assert ask(method, "f.csv") == (0, "1 line: 1 applied\n", again)
    assert len(server.log) == 1


def test_settings(server: SandboxServer, ask: Ask, path: Path) -> None:
    """The flags of a run reach it: the service, the journal, the rate and balances before."""
    write(path, 4)
    flags = ["--base-url", f"{server.base_url}/", "--journal", "j", "--balance-first"]
    begun = time.monotonic()
    assert ask("add", "f.csv", "--yes", *flags, "--rate", "10", "--concurrency", "1")[0] == 0
    assert time.monotonic() - begun >= 3 / 10 - MAX_LATE
    assert Counter(entry.method for entry in server.log) == {"GET": 4, "POST": 4}
    assert Path("j").exists()
    assert not Path("f.csv.journal").exists()


def test_timeout(server: SandboxServer, ask: Ask, path: Path) -> None:
    """A line without a response in time is unclear. A balance without one proves nothing."""
    write(path, 1)
    server.inject(FAULTS["apply-then-hang"], 2)
    assert ask(*ADD, "--timeout", "3")[0] == 3
    status, out, _ = ask("resolve", "f.csv", "--base-url", f"{server.base_url}/", "--timeout", "3")
    assert status == 3
    assert (
        f"line 2, {user(0)}: OPEN: the balance could not be read: "
        f"get_balance({user(0)}): timed out after " in out
    )
    assert len(server.log) == 2


def test_columns_that_are_not_used(ask: Ask, path: Path) -> None:
    """Columns that are not used are listed before the run."""
    path.write_text(f"end_user_id,amount,name,team\n{user(1)},5,Ada,R&D\n")
    assert "\ncolumns that are not used: name, team\n" in ask("add", "f.csv", "--yes")[2]


def lose(server: SandboxServer) -> None:
    server.inject(FAULTS["apply-then-reset"], when=of_amount(2))


def reject(server: SandboxServer) -> None:
    server.inject(CannedResponse(401), when=of_amount(3))


def give_one(server: SandboxServer) -> None:
    server.direct.add(user(0), 1)


def do_nothing(_: SandboxServer) -> None: ...


@dataclass(frozen=True, slots=True)
class Ending:
    """How a run of three lines for two users ends, and what the command prints then."""

    arguments: list[str]
    prepare: Callable[[SandboxServer], None]
    status: int
    lines: list[str]
    counts: dict[str, int]
    told: str = ""

    def told_of(self, server: SandboxServer) -> str:
        """Return what the command prints about a run at this server."""
        return self.told.replace("HOST", server.base_url.removeprefix("http://"))


REPORT = "creduse bulk report f.csv"
RESOLVE = "creduse bulk resolve f.csv"
ENDINGS = {
    "applied": Ending(["add"], do_nothing, 0, ["3 lines: 3 applied"], {"applied": 3}),
    "refused": Ending(
        ["subtract"],
        give_one,
        1,
        ["3 lines: 1 applied, 2 refused", f"The refused ones: {REPORT} --only refused"],
        {"applied": 1, "refused": 2},
    ),
    "unclear": Ending(
        ["add"],
        lose,
        3,
        ["3 lines: 2 applied, 1 unclear", f"To find out about the unclear ones: {RESOLVE}"],
        {"applied": 2, "unclear": 1},
    ),
    "stopped": Ending(
        ["add", "--concurrency", "1"],
        reject,
        75,
        [
            "3 lines: 2 applied, 1 waiting",
            "To go on: send the file again, with the command that began",
        ],
        {"applied": 2, "waiting": 1},
        f"creduse: stopped: add({user(0)}, 3): 401 (HOST) [not applied; 1 attempt]\n",
    ),
}


@pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS)
def test_exit_statuses(server: SandboxServer, ask: Ask, path: Path, ending: Ending) -> None:
    """A run and ``status`` have the same exit status and print the same."""
    write(path, 3, users=2)
    ending.prepare(server)
    method, *flags = ending.arguments
    status, out, err = ask(method, "f.csv", "--yes", *flags)
    assert (status, out.splitlines()) == (ending.status, ending.lines)
    _, _, *told = err.splitlines(keepends=True)
    wanted = ending.told_of(server)
    assert "".join(told).endswith(wanted)
    assert ask("status", "f.csv") == (status, out, wanted)


@pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS)
def test_json(server: SandboxServer, ask: Ask, path: Path, ending: Ending) -> None:
    """With ``--json``, a run and ``status`` print the same object."""
    write(path, 3, users=2)
    ending.prepare(server)
    method, *flags = ending.arguments
    status, out, _ = ask(method, "f.csv", "--yes", "--json", *flags)
    assert status == ending.status
    assert out.count("\n") == 1
    found = json.loads(out)
    wanted = ending.told_of(server)
    assert (found.pop("stopped") or "") == wanted[len("creduse: stopped: ") :].strip()
    counts = dict.fromkeys(("applied", "refused", "unclear", "in_flight", "waiting"), 0)
    more = {"items": 3, "pause": None, "exit_status": status, "is_going_on": False}
    assert found == counts | ending.counts | more
    assert ask("status", "f.csv", "--json") == (status, out, wanted)


def test_stopped_run_goes_on(server: SandboxServer, ask: Ask, path: Path) -> None:
    """The same command goes on where it stopped, without a question, and sends no line again."""
    write(path, 3)
    reject(server)
    assert ask("add", "f.csv", "--yes", "--concurrency", "1")[0] == 75
    status, out, err = ask("add", "f.csv")
    assert (status, out) == (0, "3 lines: 3 applied\n")
    assert err == "f.csv: going on. 3 lines: 2 applied, 1 waiting\n"
    assert amounts(server) == [1, 2, 3]


def test_in_another_thread(server: SandboxServer, path: Path) -> None:
    """The command runs in any thread."""
    write(path, 3)
    with ThreadPoolExecutor() as threads:
        assert threads.submit(main, ["bulk", "add", "f.csv", "--yes"]).result() == 0
    assert len(server.applied) == 3


def test_signal_handlers_are_put_back(ask: Ask, path: Path) -> None:
    """A run in a program leaves its signal handlers as they were."""
    write(path, 3)
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    assert ask("add", "f.csv", "--yes")[0] == 0
    assert [signal.getsignal(number) for number in numbers] == before


def test_journal_fails(
    server: SandboxServer, ask: Ask, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the disk is full during a run, the exit status says that the same command goes on."""
    write(path, 400)

    def limit(database: sqlite3.Connection) -> object:
        return database.execute("PRAGMA max_page_count = 9")

    def limited(*arguments: Any) -> SqliteItems:
        items = SqliteItems(*arguments)
        items._database.submit(limit)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # nothing else limits it
        return items

    with monkeypatch.context() as patched:
        patched.setattr("creduse_bulk._sqlite.SqliteItems", limited)
        status, out, err = ask("add", "f.csv", "--yes", "--json")
    assert (status, out) == (75, "")
    assert err.splitlines()[2:] == ["creduse: stopped: f.csv.journal: the disk is full"]
    assert 0 < len(server.applied) < 400
    ask("add", "f.csv")
    assert max(Counter(amounts(server)).values()) == 1


def test_file_changed_during_a_run(server: SandboxServer, ask: Ask, path: Path) -> None:
    """If the file is changed while it is sent, the run stops and says so."""
    write(path, 9000)

    def change(_: Request) -> bool:
        os.utime(path, (1, 1))
        return False

    server.inject(FAULTS["503"], when=change)
    status, out, err = ask("add", "f.csv", "--yes")
    assert status == 75
    assert err.endswith("creduse: stopped: f.csv was changed while it was read\n")
    assert out.endswith("To go on: send the file again, with the command that began\n")


# Wrong usage, settings and files


def wrong_file(path: Path) -> None:
    path.write_text(f"end_user_id,amount\n{user(1)},1.5\nada,7\n")


def write_one(path: Path) -> None:
    write(path, 1)


def sent(path: Path) -> None:
    """Send the file, so that it has a journal."""
    write(path, 1)
    creduse_bulk.run("add", path)


def sent_elsewhere(path: Path) -> None:
    with SandboxServer() as server:
        write(path, 1)
        creduse_bulk.run("add", path, base_url=server.base_url)


def sent_with_another_key(path: Path) -> None:
    write(path, 1)
    creduse_bulk.run("add", path, api_key="sk-another-0123456789")


def changed(path: Path) -> None:
    sent(path)
    write(path, 2)


def another_program(path: Path) -> None:
    write(path, 1)
    database = sqlite3.connect("f.csv.journal")
    database.execute("CREATE TABLE mine (name)")
    database.close()


def no_database(path: Path) -> None:
    write(path, 1)
    Path("f.csv.journal").write_text("my diary\n" * 1000)


@dataclass(frozen=True, slots=True)
class Wrong:
    """A command that is wrong, and what it says."""

    arguments: list[str]
    told: str
    prepare: Callable[[Path], None] = write_one


ADD = ["add", "f.csv", "--yes"]
FINDINGS = ["resolve", "f.csv", "--findings", "findings.json"]
DECISIONS = ["resolve", "f.csv", "--decisions", "decisions.csv"]
WRONG = {
    "no command": Wrong(
        [],
        "creduse: no command; choose one of add, subtract, start-cycle, stop-cycle, status, report, "
        "resolve, probe, follow (see creduse bulk --help)\n",
    ),
    "unknown command": Wrong(["multiply"], "creduse bulk: argument COMMAND: invalid choice"),
    "no file": Wrong(["add"], "creduse bulk add: the following arguments are required: FILE"),
    "journal": Wrong(
        [*ADD, "--journal", "postgresql:/"],
        "creduse bulk add: argument --journal: journal must be a path, or a URL such as "
        "postgresql://user@host/database, not one that begins with postgresql:/; a file of that name is "
        "./postgresql:/… (see ",
    ),
    "shard": Wrong(
        [*ADD, "--shard", "5/4"],
        "creduse bulk add: argument --shard: it must be one of 1/S to S/S, such as 2/4 (see ",
    ),
    "shard's form": Wrong(
        ["status", "f.csv", "--shard", "first"],
        "creduse bulk status: argument --shard: it must be one of 1/S to S/S, such as 2/4 (see ",
    ),
    "rate's form": Wrong(
        [*ADD, "--rate", "x"],
        "argument --rate: it must be a decimal number from 0 on, such as 2.5 (",
    ),
    "rate": Wrong(
        [*ADD, "--rate", "0"], "creduse: rate must be a number of lines a second above 0, not 0.0\n"
    ),
    "concurrency's form": Wrong(
        [*ADD, "--concurrency", "1.5"], "argument --concurrency: it must be a whole number "
    ),
    "no concurrency": Wrong(
        [*ADD, "--concurrency", "0"], "creduse: concurrency must be at least 1, not 0\n"
    ),
    "concurrency": Wrong(
        [*ADD, "--concurrency", "101"], "creduse: concurrency must be at most 100, not 101\n"
    ),
    "timeout's form": Wrong(
        [*ADD, "--timeout", "soon"],
        "argument --timeout: it must be a decimal number from 0 on, such as 2.5 (",
    ),
    "timeout": Wrong([*ADD, "--timeout", "0"], "creduse: timeout must be above 0 "),
    "base URL": Wrong([*ADD, "--base-url", "http://example.com"], "creduse: base_url "),
    "only": Wrong(["report", "f.csv", "--only", "some"], "argument --only: invalid choice"),
    "form of settled-after": Wrong(
        [*FINDINGS, "--settled-after", "1 day"],
        "argument --settled-after: it must be a whole number and s, m, h or d, such as 2h (see ",
    ),
    "settled-after without findings": Wrong(
        ["resolve", "f.csv", "--settled-after", "1d"],
        "creduse: --settled-after needs --findings: see creduse bulk probe --help\n",
    ),
    "decisions and findings": Wrong(
        [*FINDINGS, "--decisions", "decisions.csv"],
        "creduse: --decisions and --findings cannot be combined: a person decides, or evidence\n",
    ),
    "note without decisions": Wrong(
        ["resolve", "f.csv", "--note", "Ada"],
        "creduse: --note needs --decisions: see creduse bulk resolve --help\n",
    ),
    "user": Wrong(["probe", "me", "--yes"], "creduse: end_user_id must be a UUID such as "),
    "no such file": Wrong(
        ["add", "none.csv", "--yes"],
        "creduse: none.csv cannot be read: No such file or directory\n",
    ),
    "no such run": Wrong(
        ["status", "none.csv"], "creduse: none.csv.journal: no run of none.csv has begun\n"
    ),
    "report of nothing": Wrong(
        ["report", "f.csv"], "creduse: f.csv.journal: no run of f.csv has begun\n"
    ),
    "resolve of nothing": Wrong(
        ["resolve", "f.csv"], "creduse: f.csv.journal: no run of f.csv has begun\n"
    ),
    "directory": Wrong(["add", "..", "--yes"], "creduse: .. must be a file"),
    "this directory": Wrong(["add", ".", "--yes"], "creduse: . must be a file"),
    "no name": Wrong(["status", ""], "creduse: . must be a file"),
    "no name of a journal": Wrong([*ADD, "--journal", ""], "creduse: . must be a file"),
    "lines": Wrong(
        ADD,
        "creduse: f.csv:\n"
        "line 2: amount must be a whole number such as 100, not '1.5'\n"
        "line 3: end_user_id must be a UUID such as 12345678-1234-5678-1234-567812345678, not 'ada'\n",
        wrong_file,
    ),
    "no findings": Wrong(
        FINDINGS, "creduse: findings.json cannot be read: No such file or directory\n", sent
    ),
    "no decisions": Wrong(
        DECISIONS, "creduse: decisions.csv cannot be read: No such file or directory\n", sent
    ),
    "service": Wrong(
        ["add", "f.csv"], "creduse: f.csv.journal: the run began at http://", sent_elsewhere
    ),
    "service of resolve": Wrong(
        ["resolve", "f.csv"], "creduse: f.csv.journal: the run began at http://", sent_elsewhere
    ),
    "method": Wrong(
        ["start-cycle", "f.csv"],
        "creduse: f.csv.journal: it is that of add, not of start_cycle\n",
        sent,
    ),
    "changed file": Wrong(
        ["add", "f.csv"],
        "creduse: f.csv.journal: the file was changed since the run began, and lines of it may have "
        "been sent. Restore it to go on. Put new lines into a file of their own\n",
        changed,
    ),
    "report of a changed file": Wrong(
        ["report", "f.csv"], "creduse: f.csv.journal: the file was changed", changed
    ),
    "another program's journal": Wrong(
        ["add", "f.csv"],
        "creduse: f.csv.journal cannot be a journal: another program made it\n",
        another_program,
    ),
    "no journal": Wrong(
        ["status", "f.csv"], "creduse: f.csv.journal is not a journal\n", no_database
    ),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_wrong_usage(server: SandboxServer, ask: Ask, path: Path, wrong: Wrong) -> None:
    """What is wrong is said at once. The exit status is 2, and nothing is sent."""
    wrong.prepare(path)
    before = len(server.log)
    status, out, err = ask(*wrong.arguments)
    assert (status, out) == (2, "")
    assert wrong.told in err
    assert err.startswith("creduse")
    assert err.count("\n") == max(wrong.told.count("\n"), 1)
    assert len(server.log) == before


def test_no_key(
    server: SandboxServer, ask: Ask, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a key, nothing is sent. ``status`` and ``report`` need none."""
    sent(path)
    monkeypatch.delenv("CREDUSE_API_KEY")
    expected = "creduse: no API key: set CREDUSE_API_KEY in the environment\n"
    for arguments in ADD, ["resolve", "f.csv"], ["probe", NEW_USER, "--yes"]:
        assert ask(*arguments) == (2, "", expected)
    assert ask("status", "f.csv")[0] == 0
    assert ask("report", "f.csv")[0] == 0
    assert len(server.log) == 1


def journal_in_the_way(_: Path) -> list[str]:
    Path("d").mkdir()
    return ["--journal", "d"]


def journal_where_nobody_can_write(_: Path) -> list[str]:
    return ["--journal", "/proc/j"]


UNUSABLE: dict[str, tuple[Callable[[Path], list[str]], str]] = {
    "directory": (journal_in_the_way, "creduse: d is a directory"),
    "unwritable": (journal_where_nobody_can_write, "creduse: /proc/j cannot be opened: "),
}


@pytest.mark.parametrize(("prepare", "told"), UNUSABLE.values(), ids=UNUSABLE)
def test_journal_that_cannot_be_used(
    server: SandboxServer,
    ask: Ask,
    path: Path,
    prepare: Callable[[Path], list[str]],
    told: str,
) -> None:
    """A journal that cannot be written is an error of one line."""
    write(path, 1)
    flags = prepare(path)
    status, out, err = ask(*ADD, *flags)
    assert (status, out) == (2, "")
    *_, last = err.splitlines()
    assert last.startswith(told)
    assert err.count("creduse") == 1
    assert server.applied == ()


def test_journal_in_use(server: SandboxServer, ask: Ask, path: Path) -> None:
    """While a run goes on, another one and ``resolve`` are refused, and ``status`` shows the run."""
    write(path, 4)
    server.inject(FAULTS["apply-then-hang"], 4)
    with creduse(*ADD) as process:
        while len(server.log) < 4:
            time.sleep(0.01)
        going_on = "4 lines: 0 applied, 4 in flight"
        assert ask("status", "f.csv") == (75, f"{going_on}\nThe run is going on.\n", "")
        in_use = (
            "creduse: f.csv.journal is in use: another process, or another Journal, has it open\n"
        )
        told = f"f.csv: going on. {going_on}\n{in_use}"
        assert ask("add", "f.csv") == (75, "", told)
        assert ask("resolve", "f.csv") == (75, "", in_use)
        process.kill()
        process.communicate()
    resolve = f"To find out about the unclear ones: {RESOLVE}\n"
    told = "creduse: stopped: its process ended\n"
    assert ask("status", "f.csv") == (3, f"4 lines: 0 applied, 4 unclear\n{resolve}", told)
    assert len(server.log) == 4


def test_killed(server: SandboxServer, ask: Ask, path: Path) -> None:
    """After a kill, what was in flight is unclear, and the same command sends the other lines."""
    write(path, 6)
    server.inject(FAULTS["apply-then-hang"], 4)
    with creduse(*ADD) as process:
        while len(server.log) < 4:
            time.sleep(0.01)
        process.kill()
        process.communicate()
    status, out, err = ask("status", "f.csv")
    assert (status, err) == (75, "creduse: stopped: its process ended\n")
    assert out.splitlines()[0] == "6 lines: 0 applied, 4 unclear, 2 waiting"
    assert out.endswith("\nTo go on: send the file again, with the command that began\n")
    status, out, _ = ask("add", "f.csv")
    assert (status, out.splitlines()[0]) == (3, "6 lines: 2 applied, 4 unclear")
    assert sorted(amounts(server)) == [1, 2, 3, 4, 5, 6]


def test_memory(ask: Ask, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A journal in memory is one line of warning, and the run goes on."""
    write(path, 1)

    def in_memory(_: Path) -> str:
        return "tmpfs"

    monkeypatch.setattr("creduse_journal._files.file_system", in_memory)
    monkeypatch.setattr(sys.modules[__name__], "IN_MEMORY", re.compile("no such line"))
    status, out, err = ask(*ADD)
    assert (status, out) == (0, "1 line: 1 applied\n")
    (warning,) = (line for line in err.splitlines() if line.startswith("creduse"))
    assert warning == (
        "creduse: warning: f.csv.journal is in memory (tmpfs): a restart of the machine forgets the "
        "journal"
    )


# The API key


def in_a_cell(path: Path) -> list[list[str]]:
    path.write_text(f"end_user_id,amount,name\n{user(1)},5,{KEY}\n")
    return [ADD, ["report", "f.csv"]]


def in_json(path: Path) -> list[list[str]]:
    path.write_text(json.dumps({"end_user_id": str(user(1)), "amount": 5, KEY: KEY}))
    return [ADD, ["report", "f.csv"]]


def in_a_wrong_cell(path: Path) -> list[list[str]]:
    path.write_text(f"end_user_id,amount\n{user(1)},{KEY}\n{KEY},7\n")
    return [ADD]


def in_an_id(path: Path) -> list[list[str]]:
    path.write_text(f"end_user_id,amount,id\n{user(1)},5,{KEY}\n{user(1)},5,{KEY}\n")
    return [ADD]


def in_a_column(path: Path) -> list[list[str]]:
    path.write_text(f"end_user_id,amount,{KEY}\n{user(1)},5,x\n")
    return [ADD, ["report", "f.csv"]]


def in_a_header(path: Path) -> list[list[str]]:
    path.write_text(f"{KEY},amount\n{user(1)},5\n")
    return [ADD]


def in_the_name(_: Path) -> list[list[str]]:
    write(Path(KEY), 2)
    names = [KEY, "--journal", f"{KEY}.journal"]
    return [
        ["status", KEY],
        ["report", KEY],
        ["resolve", KEY],
        ["add", KEY],
        ["add", *names, "--yes", "--concurrency", "1"],
        ["add", *names],
        ["status", *names],
        ["report", *names[1:], f"no-{KEY}"],
        ["resolve", *names, "--decisions", KEY],
    ]


def in_findings(path: Path) -> list[list[str]]:
    sent(path)
    data = dict.fromkeys(field.name for field in fields(Findings))
    texts: dict[str, Any] = {"probed_at": "2026-01-01T00:00:00+00:00", "end_user_id": NEW_USER}
    for name, found in (
        ("data", data | texts | {"base_url": f"http://{KEY}.example"}),
        ("names", data | texts | {"base_url": "x", KEY: 5}),
        ("values", data | texts | {"base_url": "x", "reads_own_writes": KEY}),
    ):
        Path(name).write_text(json.dumps(found))
    files = ("data", "names", "values", KEY)
    return [["resolve", "f.csv", "--findings", name] for name in files]


def in_decisions(path: Path) -> list[list[str]]:
    sent(path)
    Path("lines").write_text(f"line,decision,note\n2,{KEY},{KEY}\n")
    Path("columns").write_text(f"{KEY},{KEY}\n2,applied\n")
    return [["resolve", "f.csv", "--decisions", name] for name in ("lines", "columns")]


def in_a_note(path: Path) -> list[list[str]]:
    write(path, 2)
    Path("d.csv").write_text("line,decision\n3,applied\n")
    return [
        ADD,
        ["resolve", "f.csv", "--decisions", "d.csv", "--note", f"Ada knew {KEY}", "--yes"],
        ["report", "f.csv"],
    ]


def in_the_url(path: Path) -> list[list[str]]:
    write(path, 2)
    return [
        [*ADD, "--base-url", f"{os.environ['CREDUSE_BASE_URL']}/{KEY}"],
        ["add", "f.csv"],
        ["probe", NEW_USER, "--base-url", f"{os.environ['CREDUSE_BASE_URL']}/{KEY}"],
    ]


PLACES = (
    in_a_cell,
    in_json,
    in_a_wrong_cell,
    in_an_id,
    in_a_column,
    in_a_header,
    in_the_name,
    in_findings,
    in_decisions,
    in_a_note,
    in_the_url,
)


@pytest.mark.parametrize("put", PLACES, ids=[it.__name__ for it in PLACES])
def test_key(
    server: SandboxServer, ask: Ask, path: Path, put: Callable[[Path], list[list[str]]]
) -> None:
    """The API key is in no output, wherever somebody has put it."""
    server.inject(FAULTS["apply-then-reset"], when=of_amount(2))
    texts = ["".join(ask(*arguments)[1:]) for arguments in put(path)]
    assert "***" in texts[-1]
    assert not any(KEY[:8] in text for text in texts)


def test_key_that_the_service_repeats(server: SandboxServer, ask: Ask, path: Path) -> None:
    """A run that is stopped does not show the key that a response repeats."""
    write(path, 3)
    body = json.dumps({"error_code": KEY, "message": f"No such key: {KEY}"}).encode()
    server.inject(CannedResponse(401, (), body), 99)
    assert "***" in ask(*ADD)[2]
    assert "***" in ask("add", "f.csv", "--json")[1]


def test_blank_key(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    """A blank key removes nothing from messages."""
    monkeypatch.setenv("CREDUSE_API_KEY", " ")
    told = "creduse: a - b.csv.journal: no run of a - b.csv has begun\n"
    assert ask("status", "a - b.csv") == (2, "", told)


# Reports, and other output


def test_report(server: SandboxServer, ask: Ask, path: Path) -> None:
    """A report has the file's lines in order, with what became of each. ``--only`` selects some."""
    path.write_text(
        f'end_user_id,amount,name\n{user(1)},1,"Lovelace, Ada"\n{user(2)},2,Charles\n{user(2)},4,\n'
    )
    server.inject(FAULTS["apply-then-reset"], when=of_amount(2))
    assert ask(*ADD)[0] == 3
    header = "end_user_id,amount,name,line,state,outcome,event,status,error_code,evidence"
    rows = [
        f'{user(1)},1,"Lovelace, Ada",2,applied,APPLIED,done,200,,',
        f"{user(2)},2,Charles,3,unclear,UNKNOWN,no_response,,,",
        f"{user(2)},4,,4,waiting,NOT_APPLIED,,,,",
    ]
    status, out, err = ask("report", "f.csv")
    assert (status, err) == (0, "")
    assert out.splitlines() == [header, *rows]
    for number, state in enumerate(("applied", "unclear", "waiting")):
        assert ask("report", "f.csv", "--only", state)[1].splitlines() == [header, rows[number]]
    assert ask("report", "f.csv", "--only", "refused") == (0, f"{header}\n", "")


def test_shards(server: SandboxServer, ask: Ask, path: Path) -> None:
    """Each part of a file has its own journal, and the advice names the flags that it needs."""
    write(path, 40)
    server.inject(FAULTS["apply-then-reset"], 8, when=of_amount(*range(1, 9)))
    found: list[int] = []
    for number in "12":
        flags = ["--journal", f"my {number}.journal", "--shard", f"{number}/2"]
        resolve = f"creduse bulk resolve {shlex.join(['f.csv', *flags])}"
        url = ["--base-url", server.base_url]
        status, out, _ = ask(*ADD, *flags, *url)
        assert status == 3
        assert out.endswith(f"To find out about the unclear ones: {resolve} {shlex.join(url)}\n")
        assert ask("status", "f.csv", *flags)[1].endswith(f" unclear ones: {resolve}\n")
        counts = json.loads(ask("status", "f.csv", *flags, "--json")[1])
        assert len(ask("report", "f.csv", *flags)[1].splitlines()) == 1 + counts["items"]
        found.append(counts["items"])
        proved = ask("resolve", "f.csv", *flags)[1].count(": APPLIED: ")
        assert proved == counts["unclear"] > 0
    assert sum(found) == 40
    assert sorted(amounts(server)) == list(range(1, 41))
    for command in "status", "report", "resolve":
        told = ask(command, "f.csv", "--journal", "my 1.journal", "--shard", "2/2")
        assert told == (2, "", "creduse: my 1.journal: it is that of shard 1/2, not of shard 2/2\n")


def test_name_that_is_no_text(ask: Ask) -> None:
    """The summary is shown even if the name of the file cannot be written."""
    name = os.fsdecode(b"\xff.csv")
    write(Path(name), 1)
    ask("subtract", name, "--yes")
    status, out, _ = ask("status", name)
    assert status == 1
    assert out.startswith("1 line: 0 applied, 1 refused\nThe refused ones: creduse bulk report ")


# Questions


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


QUESTIONS = {name: [name, "f.csv"] for name in KINDS} | {"probe": ["probe", NEW_USER]}


@pytest.mark.parametrize("name", QUESTIONS)
def test_nobody_can_be_asked(server: SandboxServer, ask: Ask, path: Path, name: str) -> None:
    """Without a terminal, the command says what it would have asked, and what to pass."""
    question = f"Add and take a few credits of {NEW_USER} at {server.base_url}?"
    if name != "probe":
        kind = KINDS[name]
        path.write_text(f"{kind.columns}\n{kind.line}\n")
        question = kind.question
    status, out, err = ask(*QUESTIONS[name])
    assert (status, out) == (2, "")
    assert err.endswith(f"creduse: {question} Nobody can be asked here: pass --yes\n")
    assert server.log == ()
    assert not Path("f.csv.journal").exists()


REPLIES = {"y\n": 0, "YES\n": 0, " y \n": 0, "n\n": 2, "\n": 2, "": 2, "yes, please\n": 2}


@pytest.mark.parametrize(("reply", "status"), REPLIES.items())
def test_replies(
    server: SandboxServer,
    ask: Ask,
    path: Path,
    reply: str,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only ``y`` and ``yes`` send. All other replies, and the end of input, send nothing."""
    write(path, 1)
    err = Terminal()
    monkeypatch.setattr("sys.stdin", Terminal(reply))
    monkeypatch.setattr("sys.stderr", err)
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert ask("add", "f.csv")[0] == status
    end = "" if reply.endswith("\n") else "\n"
    told = "" if status == 0 else f"{end}Nothing was sent.\n"
    asked = f"f.csv: 1 line for 1 user, 1 credit\nto {server.base_url}\nAdd these credits? [y/N] "
    assert IN_MEMORY.sub("", err.getvalue()) == asked + told
    assert len(server.applied) == (status == 0)
    assert Path("f.csv.journal").exists() == (status == 0)


# From here on, many are processes of their own.


@contextmanager
def creduse(*arguments: str, **streams: Any) -> Generator["subprocess.Popen[str]"]:
    """Start the command, and kill it at the end."""
    settings: dict[str, Any] = {
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "env": os.environ | {"PYTHONUNBUFFERED": ""},
    }
    command = [sys.executable, "-m", "creduse", "bulk", *arguments]
    with subprocess.Popen(command, text=True, **settings | streams) as process:
        try:
            yield process
        finally:
            process.kill()


class OnTerminal:
    """The command on a terminal of its own. Use it with ``with``."""

    # A leader of a session gets the first terminal that it opens.
    _START = 'terminal=$1; shift; exec "$@" <"$terminal" >"$terminal" 2>"$terminal"'

    def __init__(self, *arguments: str, program: Sequence[str] = ("-m", "creduse")) -> None:
        self._master, slave = os.openpty()
        termios.tcsetwinsize(slave, (24, 200))
        self.shown = ""
        command = [sys.executable, *program, "bulk", *arguments]
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", self._START, "sh", os.ttyname(slave), *command],
            env=os.environ | {"NO_COLOR": "1"},
            stdin=slave,
            start_new_session=True,
        )
        os.close(slave)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._master)

    def _read(self) -> bool:
        """Read what is there, and return whether there may be more."""
        try:
            data = os.read(self._master, 65536)
        except OSError:  # the command has ended
            return False
        self.shown += data.decode(errors="replace")
        return bool(data)

    def wait_for(self, pattern: str) -> None:
        """Wait until the terminal has shown something."""
        while not re.search(pattern, self.shown):
            assert self._read(), self.shown

    def type(self, text: bytes) -> None:
        os.write(self._master, text)

    def end(self) -> int:
        """Wait until the command has ended, and return its exit status."""
        while self._read():
            pass
        check_texts(self.shown)
        return self._process.wait()

    @property
    def lines(self) -> list[str]:
        """What the terminal shows at last, without bars that were overwritten."""
        return [
            line.rsplit("\r", 1)[-1]
            for line in self.shown.replace("\r\n", "\n").rstrip("\n").split("\n")
        ]


TYPED: dict[str, tuple[bytes, int, list[str]]] = {
    "yes": (b"y\n", 0, ["1 line: 1 applied"]),
    "no": (b"n\n", 2, ["Nothing was sent."]),
    "nothing": (b"\n", 2, ["Nothing was sent."]),
    "end of file": (b"\x04", 2, ["Nothing was sent."]),
    "no text": (b"\xff\n", 2, ["Nothing was sent."]),
    "Ctrl-C": (b"\x03", 130, ["creduse: interrupted"]),
}


@pytest.mark.parametrize(("typed", "status", "told"), TYPED.values(), ids=TYPED)
def test_question(
    server: SandboxServer, path: Path, typed: bytes, status: int, told: list[str]
) -> None:
    """On a terminal, the command asks. Nothing is sent unless somebody agrees."""
    write(path, 1)
    with OnTerminal("add", "f.csv") as terminal:
        terminal.wait_for(r"\[y/N\] $")
        assert server.log == ()
        terminal.type(typed)
        assert terminal.end() == status
    assert terminal.lines[-1:] == told
    assert terminal.lines[:2] == ["f.csv: 1 line for 1 user, 1 credit", f"to {server.base_url}"]
    assert len(server.log) == (status == 0)
    assert Path("f.csv.journal").exists() == (status == 0)


# A signal that another thread takes does not interrupt a read, as one that comes just before it.
UNNOTICED = """
import signal, threading
threading.Thread(target=threading.Event().wait, daemon=True).start()
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
from creduse.__main__ import script
script()
"""


def test_interrupt_just_before_the_answer_is_read(server: SandboxServer, path: Path) -> None:
    """Ctrl-C need not wait for Enter, whenever it comes."""
    write(path, 1)
    with OnTerminal("add", "f.csv", program=("-c", UNNOTICED)) as terminal:
        terminal.wait_for(r"\[y/N\] $")
        terminal.type(b"\x03")
        assert terminal.end() == 130
    assert terminal.lines[-1:] == ["creduse: interrupted"]
    assert server.log == ()


def test_standard_input_that_is_closed(server: SandboxServer, path: Path) -> None:
    """If standard input is closed, nobody can be asked."""
    write(path, 1)
    done = subprocess.run(
        ["/bin/sh", "-c", f"'{sys.executable}' -m creduse bulk add f.csv <&-"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith("Nobody can be asked here: pass --yes\n")
    assert server.log == ()


# Interruptions


def counts_of(out: str) -> dict[str, int]:
    """Return the counts in a summary."""
    found = re.findall(r"([\d,]+) (lines|applied|unclear|waiting)", out.splitlines()[0])
    return {name: int(count.replace(",", "")) for count, name in found}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped(server: SandboxServer, ask: Ask, path: Path, number: signal.Signals) -> None:
    """A signal stops a run. It waits for responses, so no line is unclear, and all others wait."""
    write(path, 3000)
    with creduse(*ADD, "--rate", "300") as process:  # so that it takes ten seconds
        while len(server.applied) < 20:
            time.sleep(0.01)
        process.send_signal(number)
        out, err = process.communicate()
    check_texts(out, err)
    assert process.returncode == 75
    assert f"creduse: stopped: {number.name}\n" in err
    applied = len(server.applied)
    assert counts_of(out) == {"lines": 3000, "applied": applied, "waiting": 3000 - applied}
    assert out.endswith("\nTo go on: send the file again, with the command that began\n")
    assert ask("status", "f.csv") == (75, out, f"creduse: stopped: {number.name}\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_twice(server: SandboxServer, ask: Ask, path: Path, number: signal.Signals) -> None:
    """A second signal does not wait for responses. Lines in flight are unclear."""
    write(path, 100)
    server.inject(FAULTS["apply-then-hang"], 100, when=of_amount(*range(21, 101)))
    with creduse(*ADD) as process:
        assert process.stderr is not None
        while len(server.log) < 36:  # 16 are in flight
            time.sleep(0.01)
        process.send_signal(number)
        waits = "; stopping: waits for 16 responses; without them, these are unclear\n"
        while not process.stderr.readline().endswith(waits):
            pass
        process.send_signal(number)
        out, err = process.communicate()
    check_texts(out, err)
    assert process.returncode == 75
    last = f"creduse: stopped: {number.name}\n"
    assert err.endswith(last)
    assert out.startswith("100 lines: 20 applied, 16 unclear, 64 waiting\n")
    assert ask("status", "f.csv") == (75, out, last)
    assert len(server.log) == 36


def test_stopped_on_a_terminal(server: SandboxServer, ask: Ask, path: Path) -> None:
    """Ctrl-C on a terminal says what the run waits for, and a second one ends it."""
    write(path, 20)
    server.inject(FAULTS["apply-then-hang"], 20)
    with OnTerminal(*ADD) as terminal:
        while len(server.log) < 4:
            time.sleep(0.01)
        terminal.type(b"\x03")
        terminal.wait_for("stopping: waits for 4 responses; without them, these are unclear")
        terminal.type(b"\x03")
        assert terminal.end() == 75
    expected = (
        "creduse: stopped: SIGINT",
        "20 lines: 0 applied, 4 unclear, 16 waiting",
        f"To find out about the unclear ones: {RESOLVE}",
        "To go on: send the file again, with the command that began",
    )
    assert tuple(terminal.lines[-4:]) == expected
    status, out, err = ask("status", "f.csv")
    assert (status, *(err + out).splitlines()) == (75, *expected)


def test_interrupted_again_and_again(server: SandboxServer, ask: Ask, path: Path) -> None:
    """However often a run is interrupted, it shows how far it came."""
    write(path, 3)
    with creduse(*ADD) as process:
        while len(server.applied) < 3:
            time.sleep(0.001)
        while process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.send_signal(signal.SIGTERM)
            time.sleep(0.001)
        out, err = process.communicate()
    check_texts(out, err)
    assert process.returncode in {0, 3}
    assert out.splitlines()[0] == ask("status", "f.csv")[1].splitlines()[0]


class Interrupting(io.StringIO):
    """A stream that is interrupted when a line is written."""

    def write(self, text: str) -> int:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        return super().write(text)


def test_interrupted_at_the_end(
    server: SandboxServer, ask: Ask, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Signals after the end of a run do not hide how far it came."""
    write(path, 3)
    send = Run.send_until

    async def send_and_interrupt(*arguments: Any) -> Progress:
        progress = await send(*arguments)
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        return progress

    monkeypatch.setattr(Run, "send_until", send_and_interrupt)
    out = Interrupting()
    monkeypatch.setattr("sys.stdout", out)
    status, _, err = ask(*ADD)
    assert (status, out.getvalue()) == (0, "3 lines: 3 applied\n")
    assert "SIGINT" not in err
    assert len(server.applied) == 3


def test_interrupted_before_it_begins(
    server: SandboxServer, ask: Ask, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C before anything is sent is one line, as for the other commands."""
    write(path, 3)

    def interrupt(*_: object) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("creduse_bulk._run.Input.examine", interrupt)
    assert ask(*ADD) == (130, "", "creduse: interrupted\n")
    assert server.log == ()
    assert not Path("f.csv.journal").exists()


# Progress

BAR = re.compile(r"(\d+)/(\d+) \[\d\d:\d\d<[\d:?]+, +([\d.]+) lines/s(?:, (.*?))?\]")


def test_bar(server: SandboxServer, path: Path) -> None:
    """On a terminal, a bar shows how many lines are done, and what failed. At last it is removed."""
    write(path, 60, users=30)
    server.inject(FAULTS["apply-then-reset"], when=of_amount(59))
    with OnTerminal(*ADD, "--rate", "40") as terminal:
        assert terminal.end() == 3
    found = BAR.findall(terminal.shown)
    counts = [int(count) for count, *_ in found]
    assert 0 < counts[0] < 30 < counts[-1] <= 60
    assert counts == sorted(counts)
    assert {total for _, total, *_ in found} == {"60"}
    assert "0/60 [00:00<?, ? lines/s]" in terminal.shown
    assert found[-1][3] == "1 unclear"
    assert "lines/s" not in "".join(terminal.lines)
    assert terminal.lines[-2] == "60 lines: 59 applied, 1 unclear"


def test_bar_of_a_run_that_goes_on(server: SandboxServer, ask: Ask, path: Path) -> None:
    """What was done before is counted in the bar, but not in its rate."""
    write(path, 500)
    server.inject(CannedResponse(401), when=of_amount(450))
    assert ask(*ADD)[0] == 75
    before = len(server.applied)
    with OnTerminal("add", "f.csv", "--rate", "40") as terminal:
        assert terminal.end() == 0
    found = BAR.findall(terminal.shown)
    assert f"| {before}/500 [00:00<?, ? lines/s]" in terminal.shown
    assert all(before < int(count) <= 500 for count, *_ in found)
    assert all(0 < float(rate) < 200 for *_, rate, _ in found)
    assert len(found) > 3


def is_read(request: Request) -> bool:
    return request.method == "GET"


def fail_for_some_time(server: SandboxServer) -> None:
    """Fail until the run pauses, and for some more tries."""
    server.inject(CannedResponse(500), 10, when=lambda request: not is_read(request))
    server.inject(CannedResponse(500), 3, when=is_read)


def test_pause_on_a_terminal(server: SandboxServer, path: Path) -> None:
    """While the service fails, the bar says what the run waits for."""
    write(path, 100)
    fail_for_some_time(server)
    with OnTerminal(*ADD) as terminal:
        terminal.wait_for(r"0/100 .*the next try is in \d s: ")
        terminal.type(b"\x03")
        assert terminal.end() == 75


def test_lines(ask: Ask, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a terminal, a line now and then has the counts, the rate and the time that is left."""
    monkeypatch.setattr(_bulk, "BETWEEN_LINES", 0.3)
    write(path, 40)
    begun = time.monotonic()
    status, _, err = ask(*ADD, "--rate", "40")
    passed = time.monotonic() - begun
    assert status == 0
    _, _, *lines = err.splitlines()
    assert 1 <= len(lines) <= passed / 0.3
    line = re.compile(
        r"40 lines: \d+ applied(, \d+ (in flight|waiting))*; \d+ a second(; about \d+ s left)?"
    )
    assert all(map(line.fullmatch, lines))


def test_pause(
    server: SandboxServer, ask: Ask, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a run pauses since the service fails, a line says so, once for all tries."""
    monkeypatch.setattr("creduse_bulk._driver.FIRST_PROBE", 0.11)
    write(path, 100)
    fail_for_some_time(server)
    status, _, err = ask(*ADD)
    assert status == 3
    (line,) = (line for line in err.splitlines()[2:] if "next try" in line)
    assert re.match(
        r"100 lines: 0 applied, \d+ unclear, \d+ waiting; the next try is in \d s: ", line
    )
    assert len(err.splitlines()) == 3


@pytest.mark.parametrize("is_terminal", [False, True])
def test_without_tqdm(
    ask: Ask, path: Path, monkeypatch: pytest.MonkeyPatch, *, is_terminal: bool
) -> None:
    """Where tqdm is not installed, there are lines on a terminal, too."""
    err = Terminal() if is_terminal else io.StringIO()
    monkeypatch.setattr("sys.stderr", err)
    monkeypatch.setattr(_bulk, "BETWEEN_LINES", 0.1)
    monkeypatch.setitem(sys.modules, "tqdm", None)
    write(path, 20)
    assert ask(*ADD, "--rate", "15")[:2] == (0, "20 lines: 20 applied\n")
    assert " a second; about " in err.getvalue()
    assert "\r" not in err.getvalue()


def test_times_of_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line comes in ten seconds at most, or when a run pauses. Its rate is since the last line."""
    now = 1000.0
    monkeypatch.setattr(_bulk, "time", argparse.Namespace(monotonic=lambda: now))
    shown: list[str] = []
    lines = _bulk.Lines(5000, _bulk.BETWEEN_LINES)
    for seconds, applied, pause, stopped in (
        (0, 5000, None, None),
        (9.9, 6980, None, None),
        (10, 7000, None, None),
        (19.9, 7000, None, None),
        (20, 7000, None, None),
        (21, 7010, "a reason", None),
        (23, 7010, "another reason", None),
        (32, 7010, "a third reason", None),
        (33, 7010, None, None),
        (42, 7010 + 80, None, None),
        (43, 7010 + 80, "a reason", None),
        (44, 7010 + 80, None, None),
        (45, 7010 + 80, None, "SIGINT"),
        (46, 7010 + 80, None, "SIGINT"),
    ):
        now = 1000.0 + seconds
        flying = 0 if pause else 10
        lines.show(Progress(100_000, applied, 0, 0, flying, pause, stopped))
        shown += capsys.readouterr().err.splitlines()
    assert shown == [
        "100,000 lines: 7,000 applied, 10 in flight, 92,990 waiting; 200 a second; about 8 min left",
        "100,000 lines: 7,000 applied, 10 in flight, 92,990 waiting; 0 a second",
        "100,000 lines: 7,010 applied, 92,990 waiting; a reason",
        "100,000 lines: 7,010 applied, 92,990 waiting; a third reason",
        "100,000 lines: 7,090 applied, 10 in flight, 92,900 waiting; 8 a second; about 3 h left",
        "100,000 lines: 7,090 applied, 92,910 waiting; a reason",
        (
            "100,000 lines: 7,090 applied, 10 in flight, 92,900 waiting; stopping: waits for 10 "
            "responses; without them, these are unclear"
        ),
    ]


# Streams that fail


def of_a_run(path: Path) -> int:
    write(path, 3)
    return 0


def of_an_unclear_run(path: Path) -> int:
    write(path, 3)
    return 3


def of_a_sent_run(path: Path) -> int:
    write(path, 3)
    return creduse_bulk.run("add", path).exit_status


OUTPUTS: dict[str, tuple[list[str], Callable[[Path], int], int, str]] = {
    "run": (ADD, of_a_run, 0, ""),
    "unclear run": (ADD, of_an_unclear_run, 0, ""),
    "status": (["status", "f.csv"], of_a_sent_run, 0, ""),
    "resolve": (["resolve", "f.csv"], of_a_sent_run, 0, ""),
    "report": (["report", "f.csv"], of_a_sent_run, 2, "creduse: the report cannot be written: "),
    "probe": (
        ["probe", NEW_USER, "--yes"],
        of_a_run,
        1,
        "creduse: the findings cannot be written: ",
    ),
}


@pytest.mark.parametrize(("arguments", "prepare", "full", "told"), OUTPUTS.values(), ids=OUTPUTS)
def test_output_that_cannot_be_written(
    server: SandboxServer,
    path: Path,
    arguments: list[str],
    prepare: Callable[[Path], int],
    full: int,
    told: str,
) -> None:
    """A reader who has left changes no exit status. A full disk changes that of what is lost."""
    expected = prepare(path)
    if arguments[0] == "probe":
        keep_from_end_of_day()
    if expected == 3:
        server.inject(FAULTS["apply-then-reset"], when=of_amount(2))
    reader, writer = os.pipe()
    os.close(reader)
    with creduse(*arguments, stdout=writer) as process:
        os.close(writer)
        err = process.communicate()[1]
    assert (process.returncode, err.count("creduse")) == (expected, 0)
    again = [NEW_USER.replace("1", "2") if it == NEW_USER else it for it in arguments]
    with open("/dev/full", "w") as disk, creduse(*again, stdout=disk) as process:  # noqa: PTH123 - a device
        err = process.communicate()[1]
    check_texts(err)
    assert process.returncode == (expected or full)
    assert err.endswith(f"{told}No space left on device\n" if told else err)


def test_head(server: SandboxServer, ask: Ask, path: Path) -> None:
    """``report | head -1`` is silent, and has the exit status 0."""
    write(path, 3000)
    assert ask(*ADD)[0] == 0
    done = subprocess.run(
        [
            "/bin/bash",
            "-c",
            f"'{sys.executable}' -m creduse bulk report f.csv | head -1; echo ${{PIPESTATUS[0]}}",
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    header, status = done.stdout.splitlines()
    assert header.startswith("end_user_id,amount,line,")
    assert (status, done.stderr) == ("0", "")
    assert len(server.log) == 3000


def test_standard_error_that_fails(server: SandboxServer, path: Path) -> None:
    """If standard error cannot be written, the run and its exit status stay the same."""
    write(path, 3)
    with open("/dev/full", "w") as full:  # noqa: PTH123 - a device
        with creduse(*ADD, stderr=full) as process:
            out, _ = process.communicate()
        assert (process.returncode, out) == (0, "3 lines: 3 applied\n")
        with creduse("add", "none.csv", stderr=full) as process:
            assert process.wait() == 2
    assert len(server.applied) == 3


def test_streams_that_are_closed(server: SandboxServer, path: Path) -> None:
    """Nothing is written to closed streams, and their text does not go to the other stream."""
    write(path, 3)
    command = f"'{sys.executable}' -m creduse bulk add f.csv --yes"
    shown = [
        subprocess.run(
            ["/bin/sh", "-c", f"{command} {closed}"],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        for closed in (">&-", "2>&-")
    ]
    first, second = (
        PROGRESS.sub("", IN_MEMORY.sub("", done.stdout + done.stderr)) for done in shown
    )
    assert first == f"f.csv: 3 lines for 3 users, 6 credits\nto {server.base_url}\n"
    assert second == "3 lines: 3 applied\n"
    assert len(server.applied) == 3
    command = f"'{sys.executable}' -m creduse bulk report"
    for file, status in ("f.csv", 2), ("none.csv", 2):
        done = subprocess.run(["/bin/sh", "-c", f"{command} {file} >&-"], timeout=60, check=False)
        assert done.returncode == status


def test_report_in_another_encoding(
    server: SandboxServer, ask: Ask, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A report that the output's encoding does not have is an error of one line."""
    path.write_text(f"end_user_id,amount,name\n{user(1)},5,\N{SNOWMAN}\n")
    assert ask(*ADD)[0] == 0
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), "ascii"))
    status, _, err = ask("report", "f.csv")
    assert status == 2
    assert err.startswith("creduse: the report cannot be written: 'ascii' codec can't encode ")
    assert err.count("\n") == 1
    assert len(server.log) == 1


# Unclear lines


@pytest.fixture
def unclear(server: SandboxServer, ask: Ask, path: Path) -> None:
    """A run whose second line was applied and third line was not, and both are unclear."""
    keep_from_end_of_day()
    write(path, 3)
    server.inject(FAULTS["apply-then-reset"], when=of_amount(2))
    server.inject(FAULTS["request-then-reset"], when=of_amount(3))
    assert ask(*ADD)[0] == 3


@pytest.fixture
def findings(ask: Ask, unclear: None) -> dict[str, Any]:
    """Probe the service, and write what is found to findings.json."""
    assert unclear is None
    status, out, err = ask("probe", NEW_USER, "--yes")
    assert (status, err) == (0, "")
    Path("findings.json").write_text(out)
    found: dict[str, Any] = json.loads(out)
    return found


def states(ask: Ask) -> list[str]:
    """Return the state of each line."""
    return [line["state"] for line in csv.DictReader(ask("report", "f.csv")[1].splitlines())]


UNCLEAR = f"3 lines: 1 applied, 2 unclear\nTo find out about the unclear ones: {RESOLVE}\n"
TO_DECIDE = """3 lines: 1 applied, 2 unclear
To decide about the unclear ones: --findings or --decisions, see creduse bulk resolve --help
"""


@pytest.mark.usefixtures("unclear")
def test_resolve(server: SandboxServer, ask: Ask) -> None:
    """``resolve`` shows what balances prove, which the report keeps, and decides nothing."""
    before = len(server.log)
    status, out, err = ask("resolve", "f.csv")
    first, second, *rest = out.splitlines()
    assert (status, err) == (3, "")
    assert first.startswith(f"line 3, {user(1)}: APPLIED: ")
    assert second.startswith(f"line 4, {user(2)}: NOT_YET: ")
    assert rest == ["2 unclear lines: 1 APPLIED, 1 NOT_YET", *TO_DECIDE.splitlines()]
    assert [entry.method for entry in server.log[before:]] == ["GET", "GET"]
    assert states(ask) == ["applied", "unclear", "unclear"]
    lines = csv.DictReader(ask("report", "f.csv", "--only", "unclear")[1].splitlines())
    assert [line["evidence"] for line in lines] == [it.split(": ", 1)[1] for it in (first, second)]
    assert ask("add", "f.csv")[:2] == (3, UNCLEAR)
    assert amounts(server) == [1, 2]


SETTLED: dict[str, tuple[list[str], str, list[int]]] = {
    "applied": ([], "1 as applied", [1, 2]),
    "not old enough": (["--settled-after", "1d"], "1 as applied", [1, 2]),
    "both": (["--settled-after", "0s"], "1 as applied, 1 as not applied", [1, 2, 3]),
}


@pytest.mark.parametrize(("flags", "what", "applied"), SETTLED.values(), ids=SETTLED)
@pytest.mark.usefixtures("findings")
def test_resolve_by_evidence(
    server: SandboxServer,
    ask: Ask,
    flags: list[str],
    what: str,
    applied: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With findings, proved lines are settled after a question. The next run sends what was not applied."""
    arguments = [*FINDINGS, *flags]
    question = f"Settle {what}? It relies on what is assumed above."
    status, out, err = ask(*arguments)
    assert (status, out.count("\n")) == (2, 3)
    assert err == f"creduse: {question} Nobody can be asked here: pass --yes\n"
    assert states(ask) == ["applied", "unclear", "unclear"]

    shown = Terminal()
    with monkeypatch.context() as patched:
        patched.setattr("sys.stderr", shown)
        patched.setattr("sys.stdin", Terminal("n\n"))
        status, out, _ = ask(*arguments)
        assert status == 3
        assert out.endswith(TO_DECIDE)
        assert IN_MEMORY.sub("", shown.getvalue()) == f"{question} [y/N] Nothing was decided.\n"
        assert states(ask) == ["applied", "unclear", "unclear"]
        patched.setattr("sys.stdin", Terminal("y\n"))
        status, out, _ = ask(*arguments)
    assert status == (75 if 3 in applied else 3)
    assert states(ask) == ["applied", "applied", "waiting" if 3 in applied else "unclear"]
    server.reset()
    assert ask("add", "f.csv")[0] == (0 if 3 in applied else 3)
    assert amounts(server) == applied[2:]
    assert not ask("resolve", "f.csv")[0] or 3 not in applied


def test_findings_with_problems(ask: Ask, findings: dict[str, Any]) -> None:
    """If the service is not as evidence needs, each problem is a line, and nothing is decided."""
    problems = {"reads_own_writes": False, "shows_canceled": None}
    Path("findings.json").write_text(json.dumps(findings | problems))
    status, out, err = ask(*FINDINGS, "--settled-after", "0s", "--yes")
    assert status == 3
    assert out.endswith(TO_DECIDE)
    first, second = err.splitlines()
    told = "creduse: by evidence, nothing can be decided: "
    assert first.startswith(f"{told}reads_own_writes is false: ")
    assert second.startswith(f"{told}shows_canceled was not found out ")
    assert states(ask) == ["applied", "unclear", "unclear"]


def test_findings_of_another_service(
    server: SandboxServer, ask: Ask, findings: dict[str, Any]
) -> None:
    """Findings count for the service that was probed alone."""
    Path("findings.json").write_text(json.dumps(findings | {"base_url": "https://example.com"}))
    before = len(server.log)
    told = f"creduse: findings.json is about https://example.com, not {server.base_url}\n"
    assert ask(*FINDINGS) == (2, "", told)
    assert len(server.log) == before


NO_FINDINGS = {
    "no JSON": ("{", "it is not JSON: "),
    "no object": ("[]", "it is not a JSON object; "),
    "no text": ("\udcff", "'utf-8' codec can't decode byte 0xff "),
    "another object": ('{"amount": 5}', "it has no base_url; "),
}


@pytest.mark.parametrize(("text", "told"), NO_FINDINGS.values(), ids=NO_FINDINGS)
def test_wrong_findings(ask: Ask, path: Path, text: str, told: str) -> None:
    """A file that is no output of a probe is an error of one line, which names the file."""
    sent(path)
    Path("findings.json").write_text(text, errors="surrogateescape")
    status, out, err = ask(*FINDINGS)
    assert (status, out) == (2, "")
    assert err.startswith("creduse: findings.json: ")
    assert told in err
    assert err.count("\n") == 1


@pytest.mark.usefixtures("unclear")
def test_resolve_by_a_person(server: SandboxServer, ask: Ask) -> None:
    """Decisions of a file are settled after a question, and the report says who decided."""
    lines = ask("report", "f.csv")[1].splitlines()
    decisions = (
        "decision,note",
        ",",
        "applied,Ada: at the dashboard",
        "not_applied,Ada: not there",
    )
    Path("decisions.csv").write_text(
        "".join(f"{line},{more}\n" for line, more in zip(lines, decisions, strict=True))
    )
    told = "creduse: Settle 1 as applied, 1 as not applied? Nobody can be asked here: pass --yes\n"
    assert ask(*DECISIONS) == (2, "", told)
    assert states(ask) == ["applied", "unclear", "unclear"]
    server.reset()
    out = "3 lines: 2 applied, 1 waiting\nTo go on: send the file again, with the command that began\n"
    assert ask(*DECISIONS, "--yes") == (75, out, "")
    assert server.log == ()
    lines = ask("report", "f.csv")[1].splitlines()
    assert [line.rsplit(",", 1)[1] for line in lines[2:]] == [
        "Ada: at the dashboard",
        "Ada: not there",
    ]
    assert ask("add", "f.csv")[0] == 0
    assert amounts(server) == [3]


def test_refused_line_is_sent_again(server: SandboxServer, ask: Ask, path: Path) -> None:
    """A refused line that somebody decides to be not applied is sent by the next run."""
    write(path, 1)
    assert ask("subtract", "f.csv", "--yes")[0] == 1
    Path("decisions.csv").write_text("line,decision\n2,not_applied\n")
    assert ask(*DECISIONS, "--note", "Ada: the user has paid", "--yes")[0] == 75
    server.direct.add(user(0), 5)
    assert ask("subtract", "f.csv")[0] == 0
    assert [entry.status for entry in server.log] == [404, 200]


WRONG_DECISIONS = {
    "word": (
        ["2,,", "3,perhaps,x"],
        "line 3: decision must be applied or not_applied, not 'perhaps'",
    ),
    "note": (
        ["3,applied,"],
        "line 2: a note must say who decides, and why: pass --note, or add the ",
    ),
    "applied line": (
        ["2,not_applied,x"],
        "line 2: it is applied, so it cannot be settled as not_applied",
    ),
    "no such line": (["7,applied,x"], "line 2: no line has "),
    "values": (["3,applied"], "line 2: 2 values, but 3 columns"),
}


@pytest.mark.parametrize(("lines", "told"), WRONG_DECISIONS.values(), ids=WRONG_DECISIONS)
@pytest.mark.usefixtures("unclear")
def test_wrong_decisions(ask: Ask, lines: list[str], told: str) -> None:
    """An error in a file of decisions names the file and the line, and nothing is decided."""
    Path("decisions.csv").write_text("\n".join(["line,decision,note", *lines]))
    status, out, err = ask(*DECISIONS, "--yes")
    assert (status, out) == (2, "")
    first, second = err.splitlines()
    assert first == "creduse: decisions.csv:"
    assert second.startswith(told)
    assert states(ask) == ["applied", "unclear", "unclear"]


def test_nothing_to_resolve(server: SandboxServer, ask: Ask, path: Path) -> None:
    """If no line is unclear, ``resolve`` says how far the run is, and asks nothing."""
    write(path, 1)
    assert ask(*ADD)[0] == 0
    told = "0 unclear lines: none\n1 line: 1 applied\n"
    assert ask("resolve", "f.csv") == (0, told, "")
    Path("decisions.csv").write_text("line,decision\n2,\n")
    assert ask(*DECISIONS) == (0, "1 line: 1 applied\n", "")
    assert len(server.log) == 1


def test_resolve_is_interrupted(server: SandboxServer, ask: Ask, unclear: None) -> None:
    """Ctrl-C while balances are read is one line, and nothing is decided."""
    assert unclear is None
    before = len(server.log)
    server.inject(FAULTS["request-then-hang"], 2)
    with creduse("resolve", "f.csv") as process:
        while len(server.log) < before + 2:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert (process.returncode, out, IN_MEMORY.sub("", err)) == (130, "", "creduse: interrupted\n")
    assert states(ask) == ["applied", "unclear", "unclear"]


# Probes


def test_probe(server: SandboxServer, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    """``probe`` asks, and prints what it finds as a JSON object."""
    keep_from_end_of_day()
    shown = Terminal()
    monkeypatch.setattr("sys.stderr", shown)
    monkeypatch.setattr("sys.stdin", Terminal("n\n"))
    assert ask("probe", NEW_USER)[:2] == (2, "")
    question = f"Add and take a few credits of {NEW_USER} at {server.base_url}? [y/N] "
    assert shown.getvalue() == f"{question}Nothing was sent.\n"
    assert server.log == ()
    monkeypatch.setattr("sys.stdin", Terminal("y\n"))
    status, out, _ = ask("probe", NEW_USER)
    assert status == 0
    found = json.loads(out)
    assert (found["base_url"], found["end_user_id"]) == (server.base_url, NEW_USER)
    assert found["reads_own_writes"] is True
    assert users(server) == {NEW_USER}


def test_probe_of_a_clock(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service that is not as evidence needs has the exit status 1, and each problem is a line."""
    keep_from_end_of_day()
    now = datetime.now(UTC) - timedelta(hours=3)
    with SandboxServer(clock=lambda: now) as server:
        monkeypatch.setenv("CREDUSE_BASE_URL", server.base_url)
        status, out, err = ask("probe", NEW_USER, "--yes")
    assert status == 1
    assert json.loads(out)["clock_skew"] > 10000
    assert "creduse: clock_skew is 10" in err


def test_probe_of_a_user_with_credits(server: SandboxServer, ask: Ask) -> None:
    """A user who has credits is not probed."""
    server.direct.add(NEW_USER, 5)
    status, out, err = ask("probe", NEW_USER, "--yes")
    assert (status, out) == (2, "")
    assert err.startswith(f"creduse: the user must be a new one, not {NEW_USER} (credits: 5, ")
    assert err.count("\n") == 1
    assert [entry.method for entry in server.log] == ["GET"]


@pytest.mark.parametrize(("requests", "status"), [(0, 401), (5, 500)])
def test_probe_that_fails(server: SandboxServer, ask: Ask, requests: int, status: int) -> None:
    """A call that fails ends the probe. It is one line, and the exit status is 1."""
    seen = 0

    def is_late(_: Request) -> bool:
        nonlocal seen
        seen += 1
        return seen > requests

    body = json.dumps({"message": f"not with {KEY}"}).encode()
    server.inject(CannedResponse(status, (("Retry-After", "0"),), body), 99, when=is_late)
    found, out, err = ask("probe", NEW_USER, "--yes")
    assert (found, out) == (1, "")
    assert re.fullmatch(
        rf"creduse: \w+\(\S+( \d+)?\): {status}.*; to probe again, pass another new user\n", err
    )


def test_probe_is_interrupted(server: SandboxServer, path: Path) -> None:
    """Ctrl-C while a probe runs is one line, and the exit status is 130."""
    assert not path.exists()
    server.inject(FAULTS["apply-then-hang"], when=lambda request: not is_read(request))
    with creduse("probe", NEW_USER, "--yes") as process:
        while not server.applied:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert (process.returncode, out, err) == (130, "", "creduse: interrupted\n")


# Help


HELPS: dict[str, dict[int, str]] = {
    **{name: {} for name in (*KINDS, "status", "resolve")},
    "": _bulk.STATUSES,
    "report": {0: "the report was printed", 2: "wrong usage or file"},
    "probe": {1: "it does not, or a call failed", 2: "wrong usage or settings"},
}


@pytest.mark.parametrize("name", HELPS)
def test_help(name: str, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    """The help of each command fits into 80 columns. Exit statuses are listed where they are its own."""
    monkeypatch.setenv("COLUMNS", "80")
    status, out, err = ask(*name.split(), "--help")
    assert (status, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 80
    for number, meaning in HELPS[name].items():
        assert f"\n  {number:<4} {meaning}" in out
    assert ("see creduse bulk --help" in out) == (not HELPS[name])
    assert f"creduse bulk {name}".strip() in out.splitlines()[0]
    assert "--api-key" not in out


def test_lists_of_commands(ask: Ask, capsys: pytest.CaptureFixture[str]) -> None:
    """``creduse --help`` lists bulk, and ``creduse bulk --help`` its commands."""
    out = ask("--help")[1]
    for name in (*KINDS, "status", "report", "resolve"):
        assert f"\n  {name} FILE " in out
    assert "\n  probe USER " in out
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "\n  bulk " in capsys.readouterr().out


def test_another_key(
    server: SandboxServer, ask: Ask, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was begun with one key does not go on with another one."""
    write(path, 1)
    assert ask(*ADD)[0] == 0
    monkeypatch.setenv("CREDUSE_API_KEY", "sk-another-0123456789")
    for command in "add", "resolve":
        status, out, err = ask(command, "f.csv")
        assert (status, out) == (2, "")
        *_, last = err.splitlines()
        assert last.startswith("creduse: f.csv.journal: the run began with another API key")
    assert len(server.log) == 1


def test_wrong_key_first(ask: Ask, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a key that was rejected at once, the right one sends the file."""
    write(path, 2)
    with monkeypatch.context() as patched:
        patched.setenv("CREDUSE_API_KEY", "sk-wrong-0123456789")
        assert ask(*ADD)[0] == 75
    assert ask("add", "f.csv")[:2] == (0, "2 lines: 2 applied\n")


def test_shards_and_the_whole(server: SandboxServer, ask: Ask, path: Path) -> None:
    """A file that was begun in shards is sent in these shards alone, and a whole one as a whole."""
    write(path, 8)
    assert ask(*ADD, "--shard", "1/2")[0] == 0
    sent = len(server.log)
    told = (
        "creduse: f.csv.1-of-2.journal: a run of shard 1/2 has begun, so {} cannot be sent: lines "
        "would be sent twice\n"
    )
    assert ask(*ADD) == (2, "", told.format("the whole file"))
    assert ask(*ADD, "--shard", "1/3") == (2, "", told.format("shard 1/3"))
    assert len(server.log) == sent
    assert ask(*ADD, "--shard", "2/2")[0] == 0
    assert sorted(amounts(server)) == [1, 2, 3, 4, 5, 6, 7, 8]
    path.with_name("g.csv").write_text(path.read_text())
    assert ask("add", "g.csv", "--yes")[0] == 0
    status, _, err = ask("add", "g.csv", "--yes", "--shard", "1/2")
    assert status == 2
    assert "a run of the whole file has begun, so shard 1/2 cannot be sent" in err
