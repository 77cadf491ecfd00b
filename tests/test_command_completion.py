"""``creduse completion`` in real shells. Those that are not installed are skipped."""

import os
import re
import shutil
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path

import pytest

from creduse.__main__ import main
from creduse._completion import SHELLS

pytestmark = pytest.mark.slow

# What is typed, and the only completion of its last word.
CASES = {
    "command": ("creduse bal", "balance"),
    "command after flags": ("creduse -v --json bal", "balance"),
    "command after a value": ("creduse --timeout 5 --base-url http://x bal", "balance"),
    "flag": ("creduse add --va", "--validity-days"),
    "flag after values": ("creduse add user 5 --idem", "--idempotency-key"),
    "flag before values": ("creduse balance --base", "--base-url"),
    "flag before a command": ("creduse --tim", "--timeout"),
    "command of bulk": ("creduse bulk rep", "report"),
    "flag of bulk": ("creduse bulk add june.csv --conc", "--concurrency"),
    "file": ("creduse bulk add jun", "june.csv"),
    "journal": ("creduse bulk status june.csv --journal oth", "other.journal"),
    "state": ("creduse sandbox --state oth", "other.journal"),
    "choice": ("creduse bulk report june.csv --only ref", "refused"),
    "fault": ("creduse sandbox --fault apply-then-res", "apply-then-reset"),
    "second fault": ("creduse sandbox --fault 503 --fault apply-then-res", "apply-then-reset"),
    "shell": ("creduse completion fi", "fish"),
}


@pytest.fixture(scope="session")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the scripts, and with files to complete."""
    directory = tmp_path_factory.mktemp("completion")
    for shell in SHELLS:
        script = directory / f"script.{shell}"
        done = subprocess.run(
            [sys.executable, "-m", "creduse", "completion", shell],
            capture_output=True,
            text=True,
            check=True,
        )
        script.write_text(done.stdout, encoding="utf-8")
    shutil.copy(directory / "script.zsh", directory / "_creduse")  # zsh finds it by this name
    for name in "june.csv", "other.journal":
        directory.joinpath(name).touch()
    return directory


def run(command: list[str], directory: Path) -> list[str]:
    done = subprocess.run(
        command, cwd=directory, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stderr == ""
    return done.stdout.splitlines()


def in_bash(line: str, directory: Path) -> list[str]:
    """Call the function that bash calls after TAB."""
    program = (
        "source script.bash; COMP_WORDS=($0); COMP_CWORD=$(( ${#COMP_WORDS[@]} - 1 )); "
        "_shtab_creduse; printf '%s\\n' \"${COMPREPLY[@]}\""
    )
    return run(["bash", "--norc", "-c", program, line], directory)


def in_fish(line: str, directory: Path) -> list[str]:
    """Ask fish for the completions of a line. A tab separates each from its description."""
    program = "source script.fish; complete --do-complete $argv[1]"
    shown = run(["fish", "--no-config", "--command", program, line], directory)
    return [it.partition("\t")[0] for it in shown]


def in_zsh(line: str, directory: Path) -> list[str]:
    """Type a line and TAB. zsh writes out the only completion."""
    master, slave = os.openpty()
    termios.tcsetwinsize(slave, (24, 200))
    with subprocess.Popen(
        [shutil.which("zsh") or "zsh", "-f", "-i"],
        cwd=directory,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=os.environ | {"TERM": "dumb"},
        start_new_session=True,
    ) as process:
        os.close(slave)
        setup = (
            "PS1=; fpath=($PWD $fpath); autoload -U compinit; compinit -u -D; "
            "bindkey '^I' expand-or-complete; print read''y\n"
        )
        os.write(master, setup.encode())
        read_until(master, "ready")
        # Enter runs the line. This `creduse` prints its words.
        os.write(master, b"creduse() { print -r -- \"words: $*;\" }; print al''so\n")
        read_until(master, "also")
        os.write(master, f"{line}\t\n".encode())
        shown = read_until(master, "words: [^;]*;")
        process.kill()
    os.close(master)
    return [shown.rpartition("words: ")[2].partition(";")[0].split(" ")[-1]]


def read_until(master: int, pattern: str) -> str:
    shown = ""
    while not re.search(pattern, shown):
        shown += os.read(master, 65536).decode()
    return shown


DRIVERS: dict[str, Callable[[str, Path], list[str]]] = {
    "bash": in_bash,
    "fish": in_fish,
    "zsh": in_zsh,
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shell", SHELLS)
def test_completion(shell: str, case: str, scripts: Path) -> None:
    """Each shell completes commands, flags before and after them, files, choices and faults."""
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    line, completed = CASES[case]
    assert DRIVERS[shell](line, scripts) == [completed]


@pytest.mark.parametrize("shell", SHELLS)
def test_no_flag_for_the_key(shell: str, scripts: Path) -> None:
    """No script offers ``--api-key``, which the command rejects."""
    assert "api-key" not in scripts.joinpath(f"script.{shell}").read_text(encoding="utf-8")


def test_without_shtab(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Without shtab, the error says what to install."""
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 2
    expected = "creduse: this needs shtab: pip install 'creduse[completion]>=0.2'\n"
    assert capsys.readouterr() == ("", expected)


def test_no_colours(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The script has no colours, even if they are wanted."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert main(["completion", "bash"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert re.search(r"^complete .*-F _shtab_creduse creduse$", out, re.MULTILINE)
    assert "\033" not in out
