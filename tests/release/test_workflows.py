"""What the files of GitHub and of Read the Docs repeat agrees with the project's own files."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
CI = ROOT / ".github" / "workflows" / "ci.yml"


def sessions_of_ci() -> list[str]:
    """Return the sessions of the job that must pass, with their arguments."""
    (listed,) = re.findall(
        r"^        session:\n((?:          - .+\n)+)", CI.read_text(), re.MULTILINE
    )
    return re.findall(r"- (.+)", listed)


def test_sessions() -> None:
    """CI runs every session of ``.ci/run``, with the same arguments, on every Python of the classifiers."""
    script = ROOT.joinpath(".ci", "run").read_text(encoding="utf-8")
    lines = re.findall(r"nox --session ([\w.\- ]+?) *(?:>|\|\||$)", script, re.MULTILINE)
    names = [it for line in lines for it in ([line] if " -- " in line else line.split())]
    assert len(names) > len(lines) > 1
    project = tomllib.loads(ROOT.joinpath("pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = (re.search(r"Python :: (3\.\d+)$", it) for it in project["classifiers"])
    pythons = {f"tests-{it[1]}" for it in found if it}
    assert set(sessions_of_ci()) == {*names, *pythons}


def test_required_jobs() -> None:
    """The job that branch protection requires needs every job that may not fail."""
    jobs = CI.read_text(encoding="utf-8").partition("\njobs:\n")[2]
    parts = re.split(r"^  ([\w-]+):\n", jobs, flags=re.MULTILINE)[1:]
    bodies = dict(zip(parts[::2], parts[1::2], strict=True))
    needed = {it for it, body in bodies.items() if "\n    continue-on-error: true\n" not in body}
    (listed,) = re.findall(r"^    needs: \[(.+)\]$", bodies["all-green"], re.MULTILINE)
    assert {*listed.split(", "), "all-green"} == needed


def test_read_the_docs() -> None:
    """Read the Docs builds the pages as ``nox -s docs`` does, with warnings as errors."""
    session = ROOT.joinpath("noxfile.py").read_text(encoding="utf-8").partition("\ndef docs(")[2]
    (flags,) = re.findall(r"^    strictly = \((.+)\)$", session, re.MULTILINE)
    hosted = ROOT.joinpath(".readthedocs.yaml").read_text(encoding="utf-8")
    assert f"sphinx-build {' '.join(re.findall(r'--[a-z-]+', flags))} docs " in hosted
    assert "--fail-on-warning" in hosted
