"""The benchmarks run. Of their results only the numbers of lines are checked: no test depends on time."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="Python 3.12 introduced sys.monitoring")
def test_lines_of_a_call() -> None:
    """A call of each client runs no more lines than its limit."""
    command = [sys.executable, "-m", "benchmarks.lines"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.timeout(600)  # it starts a process for each client
def test_a_short_run(tmp_path: Path) -> None:
    """A short run measures every client and its reference, and prints all three forms."""
    samples, picture = tmp_path / "samples.json", tmp_path / "picture.svg"
    only = ("--only", "one-subtract", "--only", "core-subtract")
    written = ("--json", str(samples), "--svg", str(picture))
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick", "--rounds", "2", *only, *written],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found = json.loads(samples.read_text())["samples"]
    assert set(found) == {"one-subtract", "core-subtract"}
    assert all(len(rounds) == 2 for subject in found.values() for rounds in subject.values())
    assert "| creduse_trio / h11 on trio by hand | 0.75 |" in done.stdout
    assert picture.read_text().count('class="ours"') == 5


def test_bulk() -> None:
    """The benchmark of bulk runs sends each way, and goes on after a kill."""
    few = ("--rounds", "1", "--lines", "300", "--sizes", "2000")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.bulk", *few],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert "| 64 | a run |" in done.stdout
    assert "| 2,000 |" in done.stdout


def test_machines(postgres_url: str) -> None:
    """The benchmark of workers sends each file with one and with two of them."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "benchmarks.machines",
            postgres_url,
            "--rounds",
            "1",
            "--lines",
            "200",
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert [line[:4] for line in done.stdout.splitlines()[2:]] == ["| 1 ", "| 2 "]
