"""The check before a release: tag, version and changelog."""

import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / ".ci" / "release.py"

CHANGELOG = """\
# Changelog

Words.

## [Unreleased]

## [1.1.0] - 2031-02-03

### Added

- One thing, in a line
  that goes on. See [1.0.0].
  - Its detail.

[here]: is no link

## [1.0.0] - 2030-01-02

- The first.

[1.0.0]: https://example.com/v1.0.0
"""


def release(directory: Path, tag: str, changelog: str) -> subprocess.CompletedProcess[str]:
    """Run the script in a project of version 1.1.0."""
    (directory / ".ci").mkdir()
    shutil.copy(SCRIPT, directory / ".ci")
    (directory / "creduse_core").mkdir()
    version = directory / "creduse_core" / "_version.py"
    version.write_text('"""The version."""\n\n__version__ = "1.1.0"\n', encoding="utf-8")
    (directory / "CHANGELOG.md").write_text(changelog, encoding="utf-8")
    command = [sys.executable, "-X", "utf8", ".ci/release.py", tag]
    return subprocess.run(
        command, cwd=directory, capture_output=True, check=False, encoding="utf-8"
    )


def test_notes(tmp_path: Path) -> None:
    """The notes are the version's section of the changelog, with each item in one line."""
    done = release(tmp_path, "v1.1.0", CHANGELOG)
    assert (done.returncode, done.stderr) == (0, "")
    items = "- One thing, in a line that goes on. See [1.0.0].\n  - Its detail.\n"
    assert done.stdout == f"### Added\n\n{items}\n[here]: is no link\n"


def test_notes_of_the_oldest(tmp_path: Path) -> None:
    """The notes of the last section end before the definitions of links."""
    oldest = CHANGELOG.replace("[1.1.0] -", "[1.2.0] -").replace("## [1.0.0]", "## [1.1.0]")
    assert release(tmp_path, "v1.1.0", oldest).stdout == "- The first.\n"


@pytest.mark.parametrize(
    ("tag", "before", "after", "message"),
    [
        ("v1.2.0", "", "", "the tag of version 1.1.0 must be v1.1.0, not v1.2.0"),
        ("1.1.0", "", "", "the tag of version 1.1.0 must be v1.1.0, not 1.1.0"),
        (
            "v1.1.0",
            "[1.1.0]",
            "[1.1]",
            "CHANGELOG.md must have one section ## [1.1.0] - YYYY-MM-DD, not 0",
        ),
        (
            "v1.1.0",
            "[1.0.0] -",
            "[1.1.0] -",
            "CHANGELOG.md must have one section ## [1.1.0] - YYYY-MM-DD, not 2",
        ),
        (
            "v1.1.0",
            " - 2031-02-03",
            "",
            "CHANGELOG.md must have ## [1.1.0] - YYYY-MM-DD, not ## [1.1.0]",
        ),
        (
            "v1.1.0",
            "2031-02-03",
            "20310203",
            "CHANGELOG.md must have ## [1.1.0] - YYYY-MM-DD, not ## [1.1.0] - 20310203",
        ),
        (
            "v1.1.0",
            "2031-02-03",
            "2031-02-30",
            "CHANGELOG.md must have ## [1.1.0] - YYYY-MM-DD, not ## [1.1.0] - 2031-02-30",
        ),
        (
            "v1.1.0",
            "- One thing, in a line\n  that goes on. See [1.0.0].\n  - Its detail.\n\n[here]: is no link\n",
            "",
            "the section of 1.1.0 in CHANGELOG.md is empty",
        ),
        (
            "v1.1.0",
            "## [Unreleased]\n",
            "## [Unreleased]\n\n- Another thing.\n",
            "CHANGELOG.md still has lines under [Unreleased]: move them to ## [1.1.0] - YYYY-MM-DD",
        ),
    ],
)
def test_refusals(tmp_path: Path, tag: str, before: str, after: str, message: str) -> None:
    """A release ends before its build, and says why, unless tag, version and changelog agree."""
    done = release(tmp_path, tag, CHANGELOG.replace(before, after) if before else CHANGELOG)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"release.py: {message}\n"


def test_candidate() -> None:
    """A version that is not final is not released."""
    script = runpy.run_path(str(SCRIPT))
    with pytest.raises(
        ValueError, match=r"a release has a version such as 0\.2\.0, not 0\.2\.0rc1"
    ):
        script["notes_of"]("v0.2.0rc1", "0.2.0rc1", CHANGELOG)


def test_no_tag() -> None:
    """Without a tag, the script says how to use it."""
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, check=False)
    assert done.stderr.decode().strip() == "usage: python .ci/release.py TAG"


def test_own_version() -> None:
    """The script reads the version of this project."""
    done = subprocess.run([sys.executable, str(SCRIPT), "v0"], capture_output=True, check=False)
    (line,) = ROOT.joinpath("creduse_core", "_version.py").read_text().splitlines()[2:]
    version = line.split('"')[1]
    expected = f"release.py: the tag of version {version} must be v{version}, not v0"
    assert done.stderr.decode().strip() == expected
