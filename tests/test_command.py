"""Tests of the ``creduse`` command itself, its sandbox and its demo."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pytest

from creduse import AuthenticationError, CreduseClient, __version__
from creduse.__main__ import main
from creduse_sandbox import FAULTS
from tests.common import keep_from_end_of_day

USER = "12345678-1234-5678-1234-567812345678"


def creduse(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "creduse", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


Start = Callable[..., tuple["subprocess.Popen[str]", str]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start ``creduse sandbox``, and yield its process and the URL that it prints first."""
    running: list[subprocess.Popen[str]] = []

    def run(*arguments: str, **environment: str) -> tuple["subprocess.Popen[str]", str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "creduse", "sandbox", "--port", "0", *arguments],
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        assert process.stdout is not None
        return process, process.stdout.readline().strip()

    yield run
    for process in running:
        process.kill()
        process.communicate()


DEMO = """
CreduseClient
  add(user, 100)           100 credits added, for 31 days
  subtract(user, 25)       429, NOT_APPLIED: the client waits 1 s and retries
                           25 credits taken
  subtract(user, 9000)     InsufficientFundsError, NOT_APPLIED: no credits moved
  add(user, 50)            TransportError, UNKNOWN: the response is lost
                           credits may have moved, so the client does not retry
  check(error)             APPLIED: do not call again
                           if nobody else has added 50 credits that are valid
                           for about 31 days to this user since then

AsyncCreduseClient has the same methods
  start_cycle(user, 1000)  1000 credits until DATE, active
  stop_cycle(user)         1000 credits until DATE, canceled
  get_balance(user)        1125 credits:
                               75 until DATE, one-time
                               50 until DATE, one-time
                             1000 until DATE, recurring
The server applied 5 writes, each once."""


def test_demo() -> None:
    """The demo shows all methods, a refusal, a retry, a lost response and what to do, on one screen."""
    keep_from_end_of_day()
    done = creduse("demo")
    assert (done.returncode, done.stderr) == (0, "")
    first, *lines = re.sub(r"\d\d \w{3} \d{4}", "DATE", done.stdout).splitlines()
    assert re.fullmatch(
        r"A local Creduse server for this demonstration: http://127\.0\.0\.1:\d+", first
    )
    assert "\n".join(lines) == DEMO
    assert len(lines) < 24
    assert max(map(len, lines)) <= 80
    steps = [line[:27] for line in lines if line.startswith("  ") and line[2] != " "]
    assert len(steps) == len(set(steps))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_sandbox_serves_and_stops(start: Start, number: signal.Signals) -> None:
    """The sandbox prints its URL, serves, and stops cleanly on Ctrl-C and SIGTERM."""
    process, url = start()
    with CreduseClient("any", base_url=url) as client:
        client.add(USER, 7)
        assert client.get_balance(USER).active_balance == 7
    process.send_signal(number)
    assert process.wait() == 0
    assert process.stdout is not None
    assert process.stderr is not None
    assert "Press Ctrl-C to stop.\n" in process.stdout.read()
    assert process.stderr.read() == ""


def test_sandbox_serves_others(start: Start) -> None:
    """Any HTTP client gets the documented responses, even for GET with a body."""
    _, url = start(CREDUSE_SANDBOX_API_KEY="sesame")

    def ask(method: str, path: str, **body: Any) -> dict[str, Any]:
        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=10)
        with closing(connection):
            connection.request(
                method,
                path,
                json.dumps({"end_user_id": USER} | body),
                {"Authorization": "Bearer sesame", "Content-Type": "application/json"},
            )
            read: dict[str, Any] = json.load(connection.getresponse())
        return read

    assert ask("POST", "/add", amount=5)["amount"] == 5
    assert ask("POST", "/subtract", amount=2)["amount"] == 2
    assert ask("POST", "/start-cycle", amount=10)["status"] == "active"
    assert ask("POST", "/stop-cycle")["status"] == "canceled"
    assert ask("GET", "/get-active-balance")["active_balance"] == 13


def test_sandbox_with_a_key(start: Start) -> None:
    """With CREDUSE_SANDBOX_API_KEY set, the sandbox accepts only that key."""
    _, url = start(CREDUSE_SANDBOX_API_KEY="sesame")
    with CreduseClient("another", base_url=url) as client, pytest.raises(AuthenticationError):
        client.add(USER, 1)
    with CreduseClient("sesame", base_url=url) as client:
        assert client.add(USER, 1).amount == 1


def test_sandbox_with_faults(start: Start) -> None:
    """A fault occurs as often as its number says, and without a number for every request."""
    process, url = start("--fault", "429:2", "--fault", "503")

    def ask() -> int:
        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=10)
        with closing(connection):
            connection.request("POST", "/add", b"{}", {"Authorization": "Bearer any"})
            return connection.getresponse().status

    assert [ask() for _ in range(5)] == [429, 429, 503, 503, 503]
    process.terminate()
    assert process.wait() == 0


def test_list_of_faults(capsys: pytest.CaptureFixture[str]) -> None:
    """Each fault has a line with its outcome and whether it is applied. The first five come first."""
    assert main(["sandbox", "--list-faults"]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [line.split()[0] for line in lines if line.startswith("  ")]
    first = ["429", "503", "apply-then-reset", "slow", "mistyped-field"]
    assert names == [*first, *(name for name in FAULTS if name not in first)]
    assert "Start with these five:" in lines
    for line in (
        "  cut-body-then-reset  UNKNOWN      send the head and half the body, then reset the connection (applied)",
        "  429-seconds          NOT_APPLIED  send 429 with Retry-After: 1",
        "  slow                 succeeds     send the right response after 2 seconds (applied)",
        "  mistyped-field       APPLIED      send the last field with a wrong type (applied)",
    ):
        assert line in lines


def test_version() -> None:
    """The version is the package's."""
    assert creduse("--version").stdout == f"creduse {__version__}\n"


WRONG: dict[str, tuple[list[str], dict[str, str], str]] = {
    "no command": (
        [],
        {},
        (
            "no command; choose one of balance, add, subtract, start-cycle, stop-cycle, bulk, sandbox, "
            "demo, completion (see creduse --help)"
        ),
    ),
    "unknown command": (["frobnicate"], {}, "argument COMMAND: invalid choice (choose from "),
    "port": (
        ["sandbox", "--port", "99999"],
        {},
        "argument --port: it must be a whole number from 0 to 65535, not 99999 (",
    ),
    "host": (
        ["sandbox", "--host", "192.0.2.1"],
        {},
        "cannot listen with this --host and --port 8000: ",
    ),
    "blank host": (
        ["sandbox", "--host", ""],
        {},
        (
            "creduse sandbox: argument --host: it must be an address of this machine, such as 127.0.0.1 "
            "(see creduse sandbox --help)\n"
        ),
    ),
    "one word too many": (
        ["demo", "sk-secret"],
        {},
        (
            "creduse demo: one argument too many, not shown here, as it could be the API key; set "
            "CREDUSE_API_KEY for that (see creduse demo --help)\n"
        ),
    ),
    "words too many": (
        ["sandbox", "sk-secret", "sk-secret"],
        {},
        (
            "creduse sandbox: 2 arguments too many, not shown here, as one could be the API key; set "
            "CREDUSE_SANDBOX_API_KEY for that (see creduse sandbox --help)\n"
        ),
    ),
    "dashes before the command": (
        ["-v", "--", "demo"],
        {},
        "creduse: -- goes after the command (see creduse --help)\n",
    ),
    "sandbox key": (
        ["sandbox"],
        {"CREDUSE_SANDBOX_API_KEY": " "},
        "creduse: CREDUSE_SANDBOX_API_KEY is blank\n",
    ),
    "sandbox key as a flag": (
        ["sandbox", "--api-key", "sk-secret"],
        {},
        "argument --api-key: the key cannot be an argument, because process lists show arguments; set CREDUSE_SANDBOX_API_KEY",
    ),
    "fault": (
        ["sandbox", "--fault", "flood:2"],
        {},
        "argument --fault: no fault has this name; see --list-faults",
    ),
    "fault's times": (
        ["sandbox", "--fault", "503:-1"],
        {},
        "argument --fault: it must be a whole number from 1 to 1000000000, not -1",
    ),
    "no times": (
        ["sandbox", "--fault", "503:0"],
        {},
        "argument --fault: it must be a whole number from 1 to 1000000000, not 0",
    ),
    "blank key": (["demo"], {"CREDUSE_API_KEY": ""}, "api_key (or CREDUSE_API_KEY) is blank"),
    "base URL": (
        ["demo"],
        {"CREDUSE_BASE_URL": "api.creduse.com"},
        "base_url (or CREDUSE_BASE_URL) must begin with https://",
    ),
}


@pytest.mark.parametrize(("arguments", "environment", "said"), WRONG.values(), ids=WRONG)
def test_wrong_usage(
    arguments: list[str],
    environment: dict[str, str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A wrong argument is one line on standard error, without a traceback, and exit status 2."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    try:
        status: object = main(arguments)
    except SystemExit as end:
        status = end.code
    assert status == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert re.fullmatch(r"creduse.*: .*\n", err)


PRINTS = {
    "help": ["--help"],
    "help of a command": ["balance", "--help"],
    "version": ["--version"],
    "list of faults": ["sandbox", "--list-faults"],
    "script": ["completion", "bash"],
    "demo": ["demo"],
}


@pytest.mark.parametrize("arguments", PRINTS.values(), ids=PRINTS)
def test_lost_output(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Output that cannot be written is an error. A reader who has left, as ``head``, is none."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", None)
        assert main(arguments) == 1
    assert capsys.readouterr() == (
        "",
        "creduse: the output cannot be written: standard output is closed\n",
    )
    reader, writer = os.pipe()
    os.close(reader)
    program = [sys.executable, "-m", "creduse", *arguments]
    for stream, status, said in (
        (os.open("/dev/full", os.O_WRONLY), 1, "No space left on device\n"),
        (writer, 0, ""),
    ):
        done = subprocess.run(
            program, stdout=stream, stderr=subprocess.PIPE, text=True, timeout=60, check=False
        )
        os.close(stream)
        assert done.returncode == status
        assert done.stderr == (said and f"creduse: the output cannot be written: {said}")


def test_port_in_use() -> None:
    """A port in use is one line that names the port, and exit status 2."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = creduse("sandbox", "--port", port)
    assert done.returncode == 2
    assert done.stdout == ""
    expected = (
        f"creduse: cannot listen with this --host and --port {port}: Address already in use\n"
    )
    assert done.stderr == expected


def test_sandbox_outside_of_the_main_thread(capsys: pytest.CaptureFixture[str]) -> None:
    """Outside the main thread no signal ends a sandbox, so the command says what to use instead."""
    assert in_a_thread(["sandbox"]) == 2
    assert "use creduse_sandbox.SandboxServer" in capsys.readouterr().err


def test_demo_outside_of_the_main_thread(capsys: pytest.CaptureFixture[str]) -> None:
    """The demonstration runs in any thread."""
    assert in_a_thread(["demo"]) == 0
    assert "The server applied 5 writes, each once." in capsys.readouterr().out


def in_a_thread(arguments: list[str]) -> int:
    with ThreadPoolExecutor() as threads:
        return threads.submit(main, arguments).result()


def test_signal_handlers_are_put_back(capsys: pytest.CaptureFixture[str]) -> None:
    """A sandbox that ends in a program leaves its signal handlers as they were."""
    ours = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

    def before(*_: object) -> None: ...

    signal.signal(signal.SIGTERM, before)
    try:
        with ThreadPoolExecutor() as threads:
            threads.submit(end_once_it_listens, capsys)
            assert main(["sandbox", "--port", "0"]) == 0
        assert signal.getsignal(signal.SIGINT) is ours[0]
        assert signal.getsignal(signal.SIGTERM) is before
    finally:
        signal.signal(signal.SIGTERM, ours[1])


def end_once_it_listens(capsys: pytest.CaptureFixture[str]) -> None:
    while "Ctrl-C" not in capsys.readouterr().out:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGTERM)
