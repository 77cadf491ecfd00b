"""Flags before and after a command, strict numbers, help, colours, and exit statuses by event."""

import io
import json
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from creduse.__main__ import main
from creduse._arguments import decimal_number, number_between, whole_number
from creduse._calls import COMMANDS, STATUSES
from creduse._colours import has_colours
from creduse_sandbox import FAULTS, CannedResponse, SandboxServer
from tests.servers import raw_servers, wait_for_end

USER = "12345678-1234-5678-1234-567812345678"
OTHER = "99999999-1234-5678-1234-567812345678"
KEY = "sk-secret-0123456789"
NOW = (("Retry-After", "0"),)

Told = tuple[int, str, str]
Ask = Callable[..., Told]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[SandboxServer]:
    """Yield a sandbox that the environment names, and enter an empty directory."""
    monkeypatch.chdir(tmp_path)
    with SandboxServer(api_key=KEY) as running:
        monkeypatch.setenv("CREDUSE_API_KEY", KEY)
        monkeypatch.setenv("CREDUSE_BASE_URL", running.base_url)
        yield running


@pytest.fixture
def ask(server: SandboxServer, capsys: pytest.CaptureFixture[str]) -> Ask:
    """Run the command in this process, and return its exit status, output and standard error."""
    assert server.base_url

    def run(*arguments: str) -> Told:
        try:
            status: Any = main(arguments)
        except SystemExit as end:
            status = end.code
        out, err = capsys.readouterr()
        return status, out, err

    return run


def test_before_and_after(server: SandboxServer, ask: Ask) -> None:
    """A flag before the command does the same as one after it."""
    assert server.log == ()
    shown = "attempt 1: POST /add: 200 [APPLIED, "
    for arguments in (
        ["-v", "--json", "add", USER, "5"],
        ["add", USER, "5", "-v", "--json"],
        ["add", "--json", USER, "-v", "5"],
        ["--verbose", "add", USER, "5", "--json"],
    ):
        status, out, err = ask(*arguments)
        assert (status, json.loads(out)["amount"]) == (0, 5)
        assert err.startswith(shown)
        assert err.count("\n") == 1
    status, out, err = ask("add", USER, "5")
    assert (status, err) == (0, "")
    assert out == "Added 5 credits, valid for 31 days.\n"


def test_the_later_one_wins(
    server: SandboxServer, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a flag is given twice, the later one decides, also between ``-v`` and ``-q``."""
    monkeypatch.setenv("CREDUSE_BASE_URL", "http://127.0.0.1:1")
    url = server.base_url
    nowhere = "http://127.0.0.1:2"
    assert ask("--base-url", nowhere, "add", USER, "5", "--base-url", url)[0] == 0
    assert ask("--base-url", url, "add", USER, "5")[0] == 0
    assert ask("add", USER, "5", "--base-url", nowhere, "--base-url", url)[0] == 0
    # A timeout of 0 is rejected before anything is sent.
    assert ask("--timeout", "0", "--base-url", url, "add", USER, "5", "--timeout", "5")[0] == 0
    assert ask("--timeout", "5", "--base-url", url, "add", USER, "5", "--timeout", "0")[0] == 2
    for flags, is_shown in {("-q", "-v"): True, ("-v", "-q"): False, ("-vq",): False}.items():
        first, *rest = flags
        err = ask(first, "add", USER, "5", *rest, "--base-url", url)[2]
        assert ("attempt 1" in err) == is_shown


def test_in_bulk(server: SandboxServer, ask: Ask) -> None:
    """Flags go before ``bulk``, before its command, and after that."""
    Path("f.csv").write_text(f"end_user_id,amount\n{USER},5\n", encoding="utf-8")
    url = server.base_url
    assert ask("--base-url", url, "bulk", "-q", "add", "f.csv", "--yes", "--json")[0] == 0
    outs = {
        ask(*arguments)
        for arguments in (
            ("--json", "bulk", "status", "f.csv"),
            ("bulk", "--json", "status", "f.csv"),
            ("bulk", "status", "f.csv", "--json"),
        )
    }
    ((status, out, err),) = outs
    assert (status, err) == (0, "")
    assert json.loads(out)["applied"] == 1


NOT_ACCEPTED = {
    "demo": (["--json", "demo"], "--json"),
    "version of a report": (["-v", "bulk", "report", "f.csv"], "--verbose"),
    "completion": (["-q", "completion", "bash"], "--quiet"),
    "between": (["bulk", "--timeout", "5", "status", "f.csv"], "--timeout"),
    "URL": (["--base-url", "http://127.0.0.1:1", "bulk", "report", "f.csv"], "--base-url"),
}


@pytest.mark.parametrize(("arguments", "flag"), NOT_ACCEPTED.values(), ids=NOT_ACCEPTED)
def test_flag_without_a_use(ask: Ask, arguments: list[str], flag: str) -> None:
    """A flag before a command that has no use for it is an error."""
    assert ask(*arguments) == (2, "", f"creduse: this command does not accept {flag}\n")


def test_quiet(server: SandboxServer, ask: Ask) -> None:
    """With ``-q``, an error has no advice. The result stays the same."""
    server.inject(FAULTS["apply-then-reset"], 2)
    status, out, loud = ask("add", USER, "5")
    assert (status, out) == (3, "")
    advice = "; find out whether it was before doing it again\n"
    assert loud.endswith(advice)
    assert ask("add", USER, "5", "-q") == (3, "", loud.removesuffix(advice) + "\n")
    assert ask("-q", "add", USER, "5") == (0, "Added 5 credits, valid for 31 days.\n", "")


class Failing(io.StringIO):
    """A stream that cannot be written."""

    def write(self, text: str) -> int:  # noqa: ARG002 - as a stream has it
        raise OSError(28, "No space left on device")


def test_quiet_and_a_full_disk(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    """With ``-q``, an error about the output has no advice either."""
    with monkeypatch.context() as patched:
        patched.setattr("sys.stdout", Failing())
        status, _, err = ask("-q", "add", USER, "5")
    assert status == 4
    assert err == "creduse: the result cannot be written: No space left on device\n"


def test_quiet_bulk(server: SandboxServer, ask: Ask) -> None:
    """With ``-q``, a bulk run shows its counts alone, at first and when it goes on."""
    Path("f.csv").write_text(f"end_user_id,amount\n{USER},5\n{OTHER},6\n", encoding="utf-8")
    server.inject(FAULTS["apply-then-reset"])
    counts = "2 lines: 1 applied, 1 unclear\n"

    def bulk(command: str, *arguments: str) -> Told:
        status, out, err = ask("bulk", command, "f.csv", *arguments)
        return status, out, re.sub(r"creduse: warning: .* is in memory .*\n", "", err)

    assert bulk("add", "-q", "--yes", "--concurrency", "1") == (3, counts, "")
    assert bulk("add", "-q") == (3, counts, "")
    assert bulk("status", "-q") == (3, counts, "")
    loud = bulk("add")
    assert loud[1].startswith(f"{counts}To find out about the unclear ones: ")
    assert loud[2].startswith("f.csv: going on. 2 lines: ")


def test_quiet_question(ask: Ask) -> None:
    """Without ``--yes``, even ``-q`` shows what somebody is to agree to."""
    Path("f.csv").write_text(f"end_user_id,amount\n{USER},5\n", encoding="utf-8")
    status, out, err = ask("bulk", "add", "f.csv", "-q")
    assert (status, out) == (2, "")
    assert "f.csv: 1 line for 1 user, 5 credits\n" in err
    assert err.endswith("Add these credits? Nobody can be asked here: pass --yes\n")


# Numbers

NO_NUMBERS = {
    "1_000": ", not 1_000",
    "+5": ", not +5",
    "-1": ", not -1",
    "-1_000": ", not -1_000",
    "-.5": ", not -.5",
    "1e3": ", not 1e3",
    "5,000": ", not 5,000",
    "٣": "",
    "-٣": "",
    "\uff15": "",
    "²": "",
    " 5": "",
    "5 ": "",
    "5\n": "",
    "": "",
    "nan": "",
    "inf": "",
    "0x10": "",
    "1e": ", not 1e",
    "9" * 5000: "",
    "1_0" + "0" * 11: "",  # long enough to be a key
    KEY: "",
}
WHOLE = {"5.0": ", not 5.0", "2.5": ", not 2.5"}
DECIMAL = {"1.": ", not 1.", ".5": ", not .5", "1.5.5": ", not 1.5.5", "1_0": ", not 1_0"}


@pytest.mark.parametrize("text", [*NO_NUMBERS, *WHOLE])
@pytest.mark.parametrize(
    "arguments",
    [
        ["add", USER, "{}"],
        ["start-cycle", USER, "5", "--validity-days={}"],
        ["bulk", "add", "f.csv", "--concurrency={}"],
    ],
    ids=["amount", "days", "concurrency"],
)
def test_whole_numbers(server: SandboxServer, ask: Ask, arguments: list[str], text: str) -> None:
    """Only digits are a whole number. The error repeats a wrong one that cannot be the key."""
    status, out, err = ask(*(argument.format(text) for argument in arguments))
    assert (status, out) == (2, "")
    shown = (NO_NUMBERS | WHOLE)[text]
    assert f": it must be a whole number in digits alone, such as 100{shown} (see creduse " in err
    assert err.count("\n") == 1
    assert len(err) < 200
    assert server.log == ()


@pytest.mark.parametrize("text", [*NO_NUMBERS, *DECIMAL])
@pytest.mark.parametrize(
    "arguments",
    [
        ["--timeout={}", "balance", USER],
        ["balance", USER, "--timeout={}"],
        ["bulk", "add", "f.csv", "--rate={}"],
    ],
    ids=["before", "after", "rate"],
)
def test_decimal_numbers(server: SandboxServer, ask: Ask, arguments: list[str], text: str) -> None:
    """Only digits, with a point between them, are a decimal number."""
    status, out, err = ask(*(argument.format(text) for argument in arguments))
    assert (status, out) == (2, "")
    shown = (NO_NUMBERS | DECIMAL)[text]
    assert f": it must be a decimal number from 0 on, such as 2.5{shown} (see creduse" in err
    assert server.log == ()


def test_numbers() -> None:
    """Plain numbers are read, also the largest ones."""
    assert [whole_number(text) for text in ("0", "007", "9" * 3000)] == [0, 7, 10**3000 - 1]
    assert [decimal_number(text) for text in ("0", "2.5", "30", "0.0001")] == [0, 2.5, 30, 0.0001]
    assert [number_between(1, 9)(text) for text in ("1", "9")] == [1, 9]


@pytest.mark.parametrize("text", ["0", "10", "-1", "5.0", "9" * 5000, "x"])
def test_numbers_with_bounds(text: str) -> None:
    """A number outside its bounds is rejected, and the error names them."""
    with pytest.raises(Exception, match=r"it must be a whole number from 1 to 9") as caught:
        number_between(1, 9)(text)
    assert len(str(caught.value)) < 60


ABBREVIATED = {
    "command": ["bal", USER],
    "command of bulk": ["bulk", "stat", "f.csv"],
    "flag": ["balance", USER, "--verb"],
    "flag before": ["--verb", "balance", USER],
    "flag with a value": ["balance", USER, "--time", "5"],
    "choice": ["bulk", "report", "f.csv", "--only", "ref"],
    "shell": ["completion", "ba"],
}


@pytest.mark.parametrize("arguments", ABBREVIATED.values(), ids=ABBREVIATED)
def test_abbreviations(server: SandboxServer, ask: Ask, arguments: list[str]) -> None:
    """Nothing can be abbreviated: a later version could have two such words."""
    status, out, err = ask(*arguments)
    assert (status, out) == (2, "")
    assert "invalid choice" in err or "unrecognized arguments" in err
    assert server.log == ()


# Help


@pytest.mark.parametrize("name", COMMANDS)
def test_help(server: SandboxServer, ask: Ask, name: str) -> None:
    """The help of a call has a usage, a sentence, an example that runs, and where to read the rest."""
    server.direct.add(USER, 1000)
    if name == "stop-cycle":
        server.direct.start_cycle(USER, 1)
    status, out, err = ask(name, "--help")
    assert (status, err) == (0, "")
    assert out.startswith(f"usage: creduse {name} ")
    *_, example, empty, last = out.splitlines()
    assert (empty, last) == ("", "environment and exit statuses: see creduse --help")
    assert "\nexample:\n" in out
    assert "--api-key" not in out
    assert "exit status:" not in out
    assert ask(*shlex.split(example)[1:])[0] == 0


def test_help_of_all(ask: Ask) -> None:
    """``creduse --help`` lists each command, each exit status and the environment, and an example."""
    status, out, _ = ask("--help")
    assert status == 0
    for number, meaning in STATUSES.items():
        assert f"\n  {number:<4} {meaning}\n" in out
    for name in (*COMMANDS, "bulk", "sandbox", "demo", "completion"):
        assert re.search(rf"^  {name} ", out, re.MULTILINE)
    assert f"  creduse balance {USER}\n" in out
    assert "--api-key" not in out
    assert "CREDUSE_API_KEY" in out


# Colours


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


COLOURS = {
    "terminal": ({"TERM": "xterm"}, True, True),
    "file": ({"TERM": "xterm"}, False, False),
    "empty": ({"TERM": "xterm", "NO_COLOR": "", "FORCE_COLOR": ""}, True, True),
    "none": ({"TERM": "xterm", "NO_COLOR": "1"}, True, False),
    "dumb": ({"TERM": "dumb"}, True, False),
    "forced": ({"TERM": "dumb", "FORCE_COLOR": "1"}, False, True),
    "none, and forced": ({"TERM": "xterm", "NO_COLOR": "1", "FORCE_COLOR": "1"}, True, False),
}


@pytest.fixture
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the environment's own settings of colours."""
    for name in "NO_COLOR", "FORCE_COLOR", "TERM":
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("no_settings")
@pytest.mark.parametrize(("settings", "terminal", "expected"), COLOURS.values(), ids=COLOURS)
def test_where_there_are_colours(
    settings: dict[str, str], terminal: object, expected: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A terminal has colours, unless the environment or its kind says otherwise."""
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    assert has_colours(Terminal() if terminal else io.StringIO()) is expected


@pytest.mark.usefixtures("no_settings")
def test_colours(server: SandboxServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal, outcomes and errors have colours, and a table's head is bold. JSON has none."""
    monkeypatch.setenv("TERM", "xterm")
    out, err = Terminal(), Terminal()
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setattr("sys.stderr", err)
    server.inject(CannedResponse(429, NOW))
    assert main(["add", USER, "5", "-v"]) == 0
    assert "429 [\033[32mNOT_APPLIED\033[0m, " in err.getvalue()
    assert "200 [\033[32mAPPLIED\033[0m, " in err.getvalue()
    assert main(["balance", USER]) == 0
    assert re.search(r"^\033\[1mAMOUNT  UNTIL .*CYCLE\033\[0m$", out.getvalue(), re.MULTILINE)
    server.inject(FAULTS["apply-then-reset"], 2)
    assert main(["add", USER, "5", "-v"]) == 3
    assert "[\033[33mUNKNOWN\033[0m, " in err.getvalue()
    assert "\033[31mcreduse:\033[0m add(" in err.getvalue()
    out.truncate(0)
    assert main(["add", USER, "5", "--json"]) == 3
    assert main(["add", USER, "5", "--json"]) == 0
    assert "UNKNOWN" in out.getvalue()
    assert "\033" not in out.getvalue()


# Exit statuses 1 and 5

BUSY = CannedResponse(429, NOW)
FAILED = CannedResponse(503, NOW)
STATUS_OF = {
    "429": (BUSY, 5, 5),
    "5xx": (FAILED, 5, 3),
    "408": (CannedResponse(408, NOW), 5, 3),
    "lost": (FAULTS["request-then-close"], 5, 3),
    "401": (CannedResponse(401), 1, 1),
    "403": (CannedResponse(403), 1, 1),
    "422": (CannedResponse(422), 1, 1),
    "501": (CannedResponse(501), 1, 3),
    "not JSON": (FAULTS["not-json"], 1, 3),
}


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "read", "write"), STATUS_OF.values(), ids=STATUS_OF)
def test_refused_or_worth_another_try(
    server: SandboxServer, ask: Ask, fault: Any, read: int, write: int
) -> None:
    """Status 1 is a refusal, and 5 is a failure that another try can help with."""
    server.direct.add(USER, 5)
    server.inject(fault, 3)
    assert ask("balance", USER)[0] == read
    server.reset()
    server.inject(fault, 3)
    assert ask("add", USER, "5")[0] == write


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["balance", USER], ["add", USER, "5"]])
def test_not_sent(ask: Ask, arguments: list[str]) -> None:
    """What is not sent is worth another try, unless the certificate is rejected."""
    nowhere = ["--base-url", "http://127.0.0.1:1"]
    assert ask(*arguments, *nowhere)[0] == 5
    status, out, _ = ask(*arguments, *nowhere, "--json")
    assert (status, json.loads(out)["outcome"]) == (5, "NOT_APPLIED")
    trustme = pytest.importorskip("trustme")
    from tests.tls import server_context  # noqa: PLC0415 - it needs trustme

    with raw_servers(server_context(trustme.CA())) as start:
        served = start(lambda connection, _: wait_for_end(connection))
        status, _, err = ask(*arguments, "--base-url", served.base_url)
    assert status == 1
    assert "CERTIFICATE_VERIFY_FAILED" in err
    assert served.received == []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ["sandbox", "--falt", "slow"],
            "for that; did you mean --fault? (see creduse sandbox --help)",
        ),
        (["bulk", "add", "f.csv", "--concurency=3"], "did you mean --concurrency?"),
        (["demo", "--json"], "this command does not accept --json (see creduse demo --help)"),
        (["balance", USER, "--validity-days", "3"], "does not accept --validity-days (see"),
        (
            ["--validity-days", "3", "add", USER, "5"],
            "creduse: --validity-days goes after the command",
        ),
        (
            ["--only=failed", "bulk", "report", "f.csv"],
            "creduse: --only goes after the command (see",
        ),
        (["bulk", "--concurrency", "3", "add", "f.csv"], "--concurrency goes after the command"),
        (["balance", USER, "--xyzzy"], "set CREDUSE_API_KEY for that (see creduse balance --help)"),
    ],
)
def test_unknown_flags(ask: Ask, arguments: list[str], told: str) -> None:
    """The error for an unknown flag names the known one that it resembles, or says where it is not known."""
    status, out, err = ask(*arguments)
    assert (status, out) == (2, "")
    assert told in err
