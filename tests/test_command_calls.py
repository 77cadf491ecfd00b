"""Tests of the five calls on the command line."""

import dataclasses
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pytest

from creduse import ActiveBalance, CreditsAdded, CreditsSubtracted, Cycle, CycleBalance
from creduse.__main__ import main
from creduse_sandbox import FAULTS, CannedResponse, Fault, SandboxServer

pytestmark = pytest.mark.slow

USER = "12345678-1234-5678-1234-567812345678"
KEY = "sk-secret-0123456789"
NOON = datetime(2025, 8, 12, 12, tzinfo=UTC)
BUSY_AT_ONCE = CannedResponse(429, (("Retry-After", "0"),))
FAILED_AT_ONCE = CannedResponse(503, (("Retry-After", "0"),))
BUSY_FOR_LONG = CannedResponse(429, (("Retry-After", "20"),))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[SandboxServer]:
    """Yield a sandbox that the environment names, whose date is 12 August 2025."""
    with SandboxServer(api_key=KEY, clock=lambda: NOON) as running:
        monkeypatch.setenv("CREDUSE_API_KEY", KEY)
        monkeypatch.setenv("CREDUSE_BASE_URL", running.base_url)
        yield running


Told = tuple[int, str, str]
Ask = Callable[..., Told]


@pytest.fixture
def ask(server: SandboxServer, capsys: pytest.CaptureFixture[str]) -> Ask:
    """Run the command in this process, and return its exit status, output and standard error."""
    assert server.base_url

    def run(*arguments: str) -> Told:
        status = main(arguments)
        out, err = capsys.readouterr()
        assert KEY not in out + err
        assert "Traceback" not in err
        return status, out, err

    return run


def test_texts(ask: Ask) -> None:
    """A call that succeeds prints a sentence. A balance is a table."""
    end = "2025-09-12 23:59:59 UTC"
    assert ask("add", USER, "100") == (0, "Added 100 credits, valid for 31 days.\n", "")
    assert ask("add", USER, "1", "--validity-days", "1") == (
        0,
        "Added 1 credit, valid for 1 day.\n",
        "",
    )
    assert ask("subtract", USER, "50") == (0, "Took 50 credits.\n", "")
    started = f"Started a cycle: 1000 credits until {end}, then renewed.\n"
    assert ask("start-cycle", USER, "1000") == (0, started, "")
    stopped = f"Stopped the cycle: its credits can be spent until {end}.\n"
    assert ask("stop-cycle", USER) == (0, stopped, "")
    assert ask("balance", USER) == (
        0,
        (
            "1051 credits:\n"
            "AMOUNT  UNTIL                    CYCLE\n"
            "     0  2025-08-13 23:59:59 UTC  one-time, active\n"
            f"    51  {end}  one-time, active\n"
            f"  1000  {end}  recurring, canceled\n"
        ),
        "",
    )


def _cycle(end: str, amount: int, **more: str) -> dict[str, Any]:
    return {"cycle_start": "2025-08-12T14:35:55Z", "cycle_end": end, "amount": amount} | more


def _answer(**fields: Any) -> CannedResponse:
    return CannedResponse(200, (), json.dumps({"end_user_id": USER} | fields).encode())


def test_balance_of_anything(server: SandboxServer, ask: Ask) -> None:
    """Cycles are sorted by their end. Unknown words, other time zones and missing fields are shown unchanged."""
    cycles = [
        _cycle("9999-12-31T23:59:59-05:00", 5, status="\x1b[31m☃", cycle_type="one-time"),
        _cycle("2025-08-14T23:59:59Z", 43),
    ]
    server.inject(_answer(active_balance=48, active_balance_by_cycle=cycles))
    status, out, _ = ask("balance", USER)
    assert status == 0
    assert out.splitlines()[1:] == [
        "AMOUNT  UNTIL                          CYCLE",
        "    43  2025-08-14 23:59:59 UTC",
        r"     5  9999-12-31 23:59:59 UTC-05:00  one-time, \x1b[31m☃",
    ]
    server.inject(_answer(active_balance=0, active_balance_by_cycle=[]))
    assert ask("balance", USER) == (0, "0 credits\n", "")


def test_days_that_the_service_does_not_tell(server: SandboxServer, ask: Ask) -> None:
    """The output has the days if the response has them."""
    server.inject(_answer(amount=5))
    assert ask("add", USER, "5") == (0, "Added 5 credits.\n", "")


def _names(model: type) -> list[str]:
    return [field.name for field in dataclasses.fields(model)]


def test_json(ask: Ask) -> None:
    """With ``--json`` a result is one JSON object with the API's names. Its times are ISO 8601."""

    def fields(*arguments: str) -> dict[str, Any]:
        status, out, err = ask(*arguments, "--json")
        assert (status, err) == (0, "")
        read: dict[str, Any] = json.loads(out)
        assert read["end_user_id"] == USER
        return read

    added = fields("add", USER, "100", "--validity-days", "0")
    assert list(added) == _names(CreditsAdded)
    assert (added["amount"], added["validity_days"]) == (100, 0)
    assert list(fields("subtract", USER, "50")) == _names(CreditsSubtracted)
    started = fields("start-cycle", USER, "7", "--validity-days", "1")
    assert list(started) == _names(Cycle)
    assert datetime.fromisoformat(started["created_at"]) == NOON
    assert "T23:59:59.999999" in started["current_cycle_end"]
    stopped = fields("stop-cycle", USER)
    assert stopped == started | {"status": "canceled"}
    balance = fields("balance", USER)
    assert list(balance) == _names(ActiveBalance)
    assert balance["active_balance"] == 57
    first, second = balance["active_balance_by_cycle"]
    assert list(first) == list(second) == _names(CycleBalance)
    assert second["cycle_type"] == "recurring"


@dataclasses.dataclass(frozen=True, slots=True)
class Failing:
    """A command that fails after the user has got a thousand credits, and its output."""

    arguments: list[str]
    fault: Fault | None
    status: int
    outcome: str
    error: str
    told: str
    advice: str = ""


LOOK = "; find out whether it was before doing it again"
FAILURES = {
    "refused": Failing(
        ["subtract", USER, "9000"],
        None,
        1,
        "NOT_APPLIED",
        "InsufficientFundsError",
        "402 INSUFFICIENT_FUNDS: The user has fewer credits than asked for. (",
    ),
    "not sent": Failing(
        ["add", USER, "5", "--base-url", "http://127.0.0.1:1", "--timeout", "0.0001"],
        None,
        5,
        "NOT_APPLIED",
        "TransportError|CreduseTimeoutError",
        "[not applied; 1 attempt]",
    ),
    "balance": Failing(
        ["balance", USER],
        FAULTS["not-json"],
        1,
        "NOT_APPLIED",
        "InvalidResponseError",
        "200, but the response is not JSON (",
    ),
    "lost": Failing(
        ["add", USER, "5"],
        FAULTS["apply-then-close"],
        3,
        "UNKNOWN",
        "TransportError",
        "RemoteProtocolError: ",
        LOOK,
    ),
    "out of time": Failing(
        ["subtract", USER, "5", "--timeout", "3"],
        FAULTS["apply-then-hang"],
        3,
        "UNKNOWN",
        "CreduseTimeoutError",
        "timed out after ",
        LOOK,
    ),
    "server's error": Failing(
        ["start-cycle", USER, "5"],
        FAULTS["503"],
        3,
        "UNKNOWN",
        "ServerError",
        "503 STATUS_503: This response is an injected fault. (",
        LOOK,
    ),
    "misread": Failing(
        ["add", USER, "5"],
        FAULTS["mistyped-field"],
        4,
        "APPLIED",
        "InvalidResponseError",
        "200, but the response has validity_days of another type than integer (",
        "; do not do it again",
    ),
}


@pytest.mark.parametrize("failing", FAILURES.values(), ids=FAILURES)
def test_failures(server: SandboxServer, ask: Ask, failing: Failing) -> None:
    """The exit status shows the outcome. So does a line on stderr, or an object on stdout."""
    ask("add", USER, "1000")
    if failing.fault is not None:
        server.inject(failing.fault, times=2)

    status, out, err = ask(*failing.arguments)
    assert (status, out) == (failing.status, "")
    assert re.fullmatch(r"creduse: \w+\(\S+( \d+)?\): .*\n", err)
    assert failing.told in err
    assert err.endswith(f" attempt]{failing.advice}\n")

    status, out, err = ask(*failing.arguments, "--json")
    assert (status, err) == (failing.status, "")
    assert out.count("\n") == 1
    told = json.loads(out)
    assert list(told)[:5] == ["outcome", "error", "message", "call", "attempts"]
    assert told["outcome"] == failing.outcome
    assert re.fullmatch(failing.error, told["error"])
    assert failing.told in told["message"]
    (attempt,) = told["attempts"]
    assert attempt["number"] == 1
    # The message also says after how many seconds.
    assert f": {attempt['error'].removeprefix('timed out: ')} (127.0.0.1:" in told["message"]
    assert told["call"]["end_user_id"] == USER
    assert attempt["outcome"] == failing.outcome
    assert attempt["seconds"] >= 0


def test_error_code(server: SandboxServer, ask: Ask) -> None:
    """The object of a failure has the service's own code, if there was a response."""
    assert json.loads(ask("balance", USER, "--json")[1])["error_code"] == "USER_DOES_NOT_EXIST"
    server.inject(FAULTS["apply-then-reset"])
    assert "error_code" not in json.loads(ask("add", USER, "1", "--json")[1])


def test_verbose(server: SandboxServer, ask: Ask) -> None:
    """With ``--verbose`` each attempt is a line on standard error, and the output stays the same."""
    server.inject(BUSY_AT_ONCE)
    status, out, err = ask("add", USER, "5", "--verbose")
    assert (status, out) == (0, "Added 5 credits, valid for 31 days.\n")
    first, second = err.splitlines()
    assert re.fullmatch(r"attempt 1: POST /add: 429 \[NOT_APPLIED, \d\.\d{3} s\]", first)
    assert re.fullmatch(r"attempt 2: POST /add: 200 \[APPLIED, \d\.\d{3} s\]", second)


def test_key_that_is_not_known(
    ask: Ask, monkeypatch: pytest.MonkeyPatch, server: SandboxServer
) -> None:
    """A key that the server refuses and repeats is not shown."""
    monkeypatch.setenv("CREDUSE_API_KEY", "sk-another-0123")
    envelope = {"error_code": "UNAUTHORIZED", "message": "No such key: sk-another-0123"}
    server.inject(CannedResponse(401, (), json.dumps(envelope).encode()), times=2)
    status, _, err = ask("add", USER, "5", "--verbose")
    assert status == 1
    assert err.count("No such key: ***") == 2
    status, out, _ = ask("add", USER, "5", "--json")
    assert status == 1
    assert "sk-another" not in err + out


def test_idempotency_key(server: SandboxServer, ask: Ask) -> None:
    """With ``--idempotency-key`` a call that may have been applied is retried with that key."""
    server.inject(FAILED_AT_ONCE, times=2)
    assert ask("add", USER, "5")[0] == 3
    assert ask("add", USER, "5", "--idempotency-key", "order-17")[0] == 0
    sent = [dict(entry.headers).get("Idempotency-Key") for entry in server.log]
    assert sent == [None, "order-17", "order-17"]
    assert len(server.applied) == 1


WHOLE = "it must be a whole number in digits alone, such as 100"
WRONG: dict[str, tuple[list[str], str]] = {
    "negative amount": (["add", USER, "-5"], f"argument AMOUNT: {WHOLE}, not -5 ("),
    "fraction": (["add", USER, "5.5"], f"argument AMOUNT: {WHOLE}, not 5.5 ("),
    "negative fraction": (["subtract", USER, "-5.5"], f"argument AMOUNT: {WHOLE}, not -5.5 ("),
    "days": (
        ["add", USER, "5", "--validity-days", "-1"],
        f"argument --validity-days: {WHOLE}, not -1 (",
    ),
    "too many": (["add", USER, "9" * 3000 + "9"], f"argument AMOUNT: {WHOLE} ("),
    "user": (
        ["balance", "me"],
        "creduse: end_user_id must be a UUID such as 12345678-1234-5678-1234-567812345678\n",
    ),
    "timeout": (
        ["balance", USER, "--timeout", "soon"],
        "argument --timeout: it must be a decimal number from 0 on, such as 2.5 (",
    ),
    "no time": (["balance", USER, "--timeout", "0"], "creduse: timeout must be above 0 "),
    "idempotency key": (
        ["add", USER, "5", "--idempotency-key", ""],
        "creduse: idempotency_key must be 1 to 255 visible ASCII characters\n",
    ),
    "key as a flag": (
        ["add", USER, "5", "--api-key", KEY],
        "argument --api-key: the key cannot be an argument, because process lists show arguments; set CREDUSE_API_KEY",
    ),
    "base URL": (
        ["add", USER, "5", "--base-url", "http://example.com"],
        "must be https, since over http anyone on the way can read the API key",
    ),
}


@pytest.mark.parametrize(("arguments", "said"), WRONG.values(), ids=WRONG)
def test_wrong_usage(
    server: SandboxServer, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A wrong argument is one line, even with ``--json``. The exit status is 2, and nothing is sent."""
    try:
        status: object = main([*arguments, "--json"])
    except SystemExit as end:
        status = end.code
    out, err = capsys.readouterr()
    assert (status, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1
    assert KEY not in err
    assert server.log == ()


def test_no_key(
    server: SandboxServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a key in the environment, the error names the variable."""
    monkeypatch.delenv("CREDUSE_API_KEY")
    assert main(["balance", USER]) == 2
    expected = "creduse: no API key: set CREDUSE_API_KEY in the environment\n"
    assert capsys.readouterr() == ("", expected)
    assert server.log == ()


def test_plain_http(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The error about plain http names what to set on the command line."""
    monkeypatch.setenv("CREDUSE_API_KEY", "any")
    assert main(["balance", USER, "--base-url", "http://api.creduse.com"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.endswith("; to send it all the same, set CREDUSE_ALLOW_HTTP=1\n")


# Keys as the flags of other programs have them, and as they are when they are put in a wrong place.
SECRETS = (KEY, "sk-'secret\"\\0123", "sk-secret (choose from 0123", "-sk-secret-0123")
MISPLACED: dict[str, list[str]] = {
    "flag before": ["--apikey", "{}", "balance", USER],
    "flag": ["balance", USER, "--token", "{}"],
    "flag with =": ["balance", USER, "--key={}"],
    "short flag": ["balance", USER, "-k", "{}"],
    "our flag": ["balance", USER, "--api-key", "{}"],
    "our flag with =": ["balance", USER, "--api-key={}"],
    "our flag before": ["--api-key={}", "balance", USER],
    "flag of two": ["add", USER, "5", "--v={}"],
    "flag without value": ["balance", USER, "--verbose={}"],
    "command": ["{}"],
    "command and more": ["{}", "balance", USER],
    "one too many": ["balance", USER, "{}"],
    "user": ["balance", "{}"],
    "amount": ["subtract", USER, "{}"],
    "days": ["add", USER, "5", "--validity-days={}"],
    "timeout": ["balance", USER, "--timeout={}"],
    "idempotency key": ["add", USER, "5", "--idempotency-key={}\n"],
    "base URL": ["balance", USER, "--base-url={}"],
    "base URL's scheme": ["balance", USER, "--base-url={}://example.com"],
    "base URL's user": ["balance", USER, "--base-url=https://user:{}@example.com"],
    "base URL's port": ["balance", USER, "--base-url=https://example.com:{}"],
    "base URL's query": ["balance", USER, "--base-url=https://example.com/?key={}"],
    "base URL's brackets": ["balance", USER, "--base-url=https://[{}]"],
    "port": ["sandbox", "--port={}"],
    "host": ["sandbox", "--host={}"],
    "fault": ["sandbox", "--fault={}"],
    "fault's times": ["sandbox", "--fault=503:{}"],
    "demo": ["demo", "{}"],
}


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("arguments", MISPLACED.values(), ids=MISPLACED)
def test_key_in_a_wrong_place(
    server: SandboxServer, arguments: list[str], secret: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """No error repeats an argument, wherever the key has been put."""
    try:
        status: object = main([argument.format(secret) for argument in arguments])
    except SystemExit as end:
        status = end.code
    out, err = capsys.readouterr()
    assert (status, out) == (2, "")
    assert re.fullmatch(r"creduse.*: .*\n", err)
    assert "secret" not in err
    assert "0123" not in err
    assert server.log == ()


@pytest.mark.parametrize("flag", ["--apikey", "--token", "--key"])
def test_key_in_an_unknown_flag(
    server: SandboxServer, flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """If an option looks like one for the key, the error names the variable."""
    with pytest.raises(SystemExit):
        main(["balance", USER, flag, KEY])
    assert "set CREDUSE_API_KEY for that" in capsys.readouterr().err
    assert server.log == ()


@pytest.mark.parametrize(
    "url",
    [
        KEY,
        f"https://user:{KEY}@example.com",
        f"https://example.com:{KEY}",
        f"https://example.com/?api_key={KEY}",
        f"https://[{KEY}]",
        f"'https://user:{KEY}@example.com'",
    ],
)
@pytest.mark.parametrize("arguments", [["balance", USER], ["demo"]], ids=["balance", "demo"])
def test_secret_in_the_base_url(
    url: str,
    arguments: list[str],
    ask: Ask,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An error about CREDUSE_BASE_URL names it, and repeats no key or password of it."""
    monkeypatch.setenv("CREDUSE_BASE_URL", url)
    status, out, err = ask(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith("creduse: base_url (or CREDUSE_BASE_URL) ")
    assert "secret" not in err


@pytest.mark.parametrize(
    "proxy",
    [
        "http://user:secret@127.0.0.1:1",
        "http://user:secret@127.0.0.1:port",
        "none://user:secret@127.0.0.1:1",
        "http://user:secret#0@127.0.0.1:1",
        "'http://user:secret@127.0.0.1:1'",
    ],
)
def test_password_of_a_proxy(
    proxy: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """An error about a proxy does not show its password."""
    monkeypatch.setenv("CREDUSE_API_KEY", KEY)
    monkeypatch.setenv("CREDUSE_BASE_URL", "https://credits.invalid")
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    monkeypatch.delenv("https_proxy", raising=False)
    for flags in [["--verbose"], ["--json"]]:
        assert main(["add", USER, "5", "--timeout", "0.5", *flags]) in {1, 2, 5}
        out, err = capsys.readouterr()
        assert "secret" not in out + err


# What is raised after the call has begun.


class Acting(io.StringIO):
    """A stream that calls a function when a line is written."""

    def __init__(self, act: Callable[[str], object]) -> None:
        super().__init__()
        self._act = act

    def write(self, text: str) -> int:
        self._act(text)
        return super().write(text)


def interrupt(_: str) -> None:
    signal.raise_signal(signal.SIGINT)


def fail(_: str) -> None:
    raise ValueError("the stream is closed")


def in_a_thread(*arguments: str) -> int:
    with ThreadPoolExecutor() as threads:
        return threads.submit(main, arguments).result()


def test_outside_of_the_main_thread(
    server: SandboxServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """In any thread the exit status shows the outcome, and the result is printed."""
    before = signal.getsignal(signal.SIGINT)
    assert in_a_thread("add", USER, "5") == 0
    assert in_a_thread("subtract", USER, "6") == 1
    assert in_a_thread("subtract", "me", "6") == 2
    server.inject(FAULTS["apply-then-reset"])
    assert in_a_thread("subtract", USER, "4") == 3
    server.inject(FAULTS["mistyped-field"])
    assert in_a_thread("add", USER, "5") == 4
    out, err = capsys.readouterr()
    assert out == "Added 5 credits, valid for 31 days.\n"
    assert err.count("\n") == 4
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("handler", [signal.default_int_handler, signal.SIG_IGN, signal.SIG_DFL])
def test_signal_handler_is_put_back(ask: Ask, handler: Any) -> None:
    """The command restores the program's handler for Ctrl-C."""
    before = signal.signal(signal.SIGINT, handler)
    try:
        assert ask("add", USER, "5")[0] == 0
        assert signal.getsignal(signal.SIGINT) is handler
        assert ask("subtract", USER, "9")[0] == 1
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_interrupted_once_it_has_ended(
    server: SandboxServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C after the call's end does not keep the result from being printed."""
    out, err = Acting(interrupt), Acting(interrupt)
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setattr("sys.stderr", err)
    assert main(["add", USER, "5", "--verbose"]) == 0
    assert out.getvalue() == "Added 5 credits, valid for 31 days.\n"
    assert err.getvalue().startswith("attempt 1: POST /add: 200 [APPLIED, ")
    assert len(server.applied) == 1


@pytest.mark.parametrize(
    ("arguments", "status"),
    [(["balance", USER], 1), (["add", USER, "5"], 4)],
    ids=["read", "write"],
)
def test_stream_that_fails(
    ask: Ask, arguments: list[str], status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ValueError of the program's own stream is not reported as a wrong argument."""
    ask("add", USER, "5")
    err = io.StringIO()
    with monkeypatch.context() as patched:
        patched.setattr("sys.stdout", Acting(fail))
        patched.setattr("sys.stderr", err)
        assert main(arguments) == status
        why = "creduse: the result cannot be written: ValueError: the stream is closed"
        assert err.getvalue().startswith(why)
        patched.setattr("sys.stderr", Acting(fail))
        assert main([*arguments, "--verbose"]) == status


@pytest.fixture
def alarm() -> Iterator[None]:
    """Make SIGALRM raise a ValueError, as a program's own time limit can."""

    def handle(*_: object) -> None:
        raise ValueError("out of time")

    before = signal.signal(signal.SIGALRM, handle)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("alarm")
@pytest.mark.parametrize("flags", [[], ["--json"]], ids=["text", "json"])
def test_exception_of_a_signal_handler_while_waiting(
    server: SandboxServer,
    flags: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """An exception between two attempts ends the call, and the exit status shows its outcome."""
    server.inject(BUSY_FOR_LONG)

    def arm(text: str) -> None:  # the wait of 20 seconds begins when this has been written
        if text.startswith("attempt 1"):
            signal.setitimer(signal.ITIMER_REAL, 0.1)

    err = Acting(arm)
    monkeypatch.setattr("sys.stderr", err)
    assert main(["add", USER, "5", "--verbose", *flags]) == 5
    why = f"add({USER}, 5): ended by ValueError: nothing was applied"
    out, said = capsys.readouterr().out, err.getvalue()
    if flags:
        told = json.loads(out)
        assert (told["outcome"], told["error"]) == ("NOT_APPLIED", "UnexpectedError")
        assert told["message"] == why
    else:
        assert said.endswith(f"creduse: {why}\n")
    assert server.applied == ()


@pytest.mark.usefixtures("alarm")
def test_exception_of_a_signal_handler_in_flight(
    server: SandboxServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """An exception while a request is in flight does not hide that it may have been applied."""
    server.inject(FAULTS["apply-then-hang"])

    def ring() -> None:
        _arrived(server)
        os.kill(os.getpid(), signal.SIGALRM)

    with ThreadPoolExecutor() as threads:
        threads.submit(ring)
        assert main(["add", USER, "5"]) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert "ValueError" in err
    assert err.endswith("; find out whether it was before doing it again\n")


def test_interrupted_in_a_program(
    server: SandboxServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where a program calls the command, Ctrl-C raises in the call, which then shows its outcome."""
    server.inject(FAULTS["apply-then-hang"])

    def press() -> None:
        _arrived(server)
        os.kill(os.getpid(), signal.SIGINT)

    with ThreadPoolExecutor() as threads:
        threads.submit(press)
        assert main(["add", USER, "5", "-q"]) == 3
    expected = f"creduse: add({USER}, 5): interrupted: it may have been applied\n"
    assert capsys.readouterr() == ("", expected)


# From here on each is a process of its own.


def creduse(*arguments: str, **streams: Any) -> "subprocess.Popen[str]":
    settings: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
    # Its streams have buffers, as they usually have.
    settings["env"] = os.environ | {"PYTHONUNBUFFERED": ""} | settings.get("env", {})
    return subprocess.Popen([sys.executable, "-m", "creduse", *arguments], text=True, **settings)


def _arrived(server: SandboxServer) -> None:
    """Wait until a whole request has arrived."""
    while not any(entry.body is not None for entry in server.log):
        time.sleep(0.01)


INTERRUPTED: dict[str, tuple[list[str], Fault, int, str]] = {
    "in flight": (
        ["add", USER, "5"],
        FAULTS["apply-then-hang"],
        3,
        f"add({USER}, 5): interrupted: it may have been applied; find out whether it was before doing it again",
    ),
    "waiting": (
        ["add", USER, "5"],
        BUSY_FOR_LONG,
        130,
        f"add({USER}, 5): interrupted: nothing was applied",
    ),
    "reading": (
        ["balance", USER],
        FAULTS["request-then-hang"],
        130,
        f"get_balance({USER}): interrupted: nothing was applied",
    ),
}


@pytest.mark.parametrize(
    ("arguments", "fault", "status", "said"), INTERRUPTED.values(), ids=INTERRUPTED
)
def test_interrupted(
    server: SandboxServer, arguments: list[str], fault: Fault, status: int, said: str
) -> None:
    """After Ctrl-C during a call, the text and the exit status say whether it may have been applied."""
    server.inject(fault)
    with creduse(*arguments, "--verbose") as process:
        assert process.stderr is not None
        if isinstance(fault, CannedResponse):
            assert "attempt 1: POST /add: 429" in process.stderr.readline()
            attempts = 0
        else:
            _arrived(server)
            attempts = 1
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert (process.returncode, out) == (status, "")
    *shown, last = err.splitlines()
    assert last == f"creduse: {said}"
    assert len(shown) == attempts
    assert all("abandoned by the caller" in line for line in shown)


def test_interrupted_json(server: SandboxServer) -> None:
    """With ``--json`` an interrupted call prints an object, too."""
    server.inject(FAULTS["request-then-hang"])
    with creduse("add", USER, "5", "--json") as process:
        _arrived(server)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert (process.returncode, err) == (3, "")
    told = json.loads(out)
    assert (told["outcome"], told["error"]) == ("UNKNOWN", "Interrupted")
    assert [attempt["event"] for attempt in told["attempts"]] == ["abandoned"]


def test_interrupted_elsewhere() -> None:
    """Ctrl-C outside a call is one line and exit status 130."""
    with creduse("demo") as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    assert (process.returncode, err) == (130, "creduse: interrupted\n")


@pytest.mark.parametrize("arguments", [["balance", USER], ["add", USER, "5"]])
def test_reader_has_left(server: SandboxServer, ask: Ask, arguments: list[str]) -> None:
    """If the reader of the output ends early, as ``head`` does, the exit status stays the same."""
    ask("add", USER, "1000")
    reader, writer = os.pipe()
    os.close(reader)
    with creduse(*arguments, stdout=writer) as process:
        os.close(writer)
        assert process.communicate()[1] == ""
    assert process.returncode == 0
    assert len(server.log) == 2


@pytest.mark.parametrize(
    ("arguments", "status", "advice"),
    [(["balance", USER], 1, ""), (["add", USER, "5"], 4, "; do not do it again")],
)
def test_full_disk(ask: Ask, arguments: list[str], status: int, advice: str) -> None:
    """A result that cannot be written has the exit status of a response that could not be read."""
    ask("add", USER, "1000")
    with open("/dev/full", "w") as full, creduse(*arguments, stdout=full) as process:  # noqa: PTH123 - a device
        expected = f"creduse: the result cannot be written: No space left on device{advice}\n"
        assert process.communicate()[1] == expected
    assert process.returncode == status


def test_standard_error_that_fails(server: SandboxServer) -> None:
    """If standard error cannot be written, the call and the exit status stay the same."""
    server.inject(FAULTS["503"])
    with open("/dev/full", "w") as full:  # noqa: PTH123 - a device
        for status in 3, 0:
            with creduse("add", USER, "5", "--verbose", stderr=full) as process:
                out, _ = process.communicate()
            assert process.returncode == status
        with creduse("add", USER, stderr=full) as process:
            assert process.wait() == 2
    assert out == "Added 5 credits, valid for 31 days.\n"


def test_streams_that_are_closed(server: SandboxServer) -> None:
    """The text for a closed stream does not go to the other one. A result for it is lost."""
    lost = "creduse: the result cannot be written: standard output is closed"
    attempt = "attempt 1: "
    for arguments, closed, status, told in (
        (f"add {USER} 5 --verbose", ">&-", 4, [attempt, f"{lost}; do not do it again"]),
        (f"add {USER} 5 --verbose", "2>&-", 0, ["Added 5"]),
        (f"balance {USER}", ">&-", 1, [lost]),
        (f"balance {USER}", "2>&-", 0, ["10 credits:", "AMOUNT", " "]),
    ):
        done = subprocess.run(
            ["/bin/sh", "-c", f"'{sys.executable}' -m creduse {arguments} {closed}"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == status
        for line, start in zip((done.stdout + done.stderr).splitlines(), told, strict=False):
            assert line.startswith(start)
    assert len(server.applied) == 2


def test_interrupted_until_the_process_has_ended(server: SandboxServer) -> None:
    """Ctrl-C while Python exits does not replace the exit status."""
    with creduse("add", USER, "5") as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("Added")
        while process.poll() is None:
            process.send_signal(signal.SIGINT)
        assert process.communicate() == ("", "")
    assert process.returncode == 0
    assert len(server.applied) == 1
