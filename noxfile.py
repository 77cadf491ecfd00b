"""Every check of the project: ``nox`` runs the tests on each Python found, ``nox -l`` lists all."""

import os
import shutil
from pathlib import Path

import nox

nox.needs_version = ">=2026.1"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.error_on_missing_interpreters = False
nox.options.reuse_venv = "yes"
nox.options.sessions = ["check"]

# The Pythons that are there are the ones that are meant.
os.environ.setdefault("UV_PYTHON_DOWNLOADS", "never")

PYPROJECT = nox.project.load_toml("pyproject.toml")
PYTHONS = nox.project.python_versions(PYPROJECT)
OLDEST, NEWEST = PYTHONS[0], PYTHONS[-1]
# Python's development mode, where it is not in the way: asyncio's debugging makes all twice as slow.
# Warnings are errors everywhere, those of what was left open included.
STRICT = {"PYTHONDEVMODE": "1"}
# The tests mostly wait, for servers that misbehave.
AT_ONCE = ("-n", "6")
USUAL = (*AT_ONCE, "-m", "not exhaustive")
# What is heavy, and alike everywhere, is left to the newest Python.
LIGHT = (*AT_ONCE, "-m", "not exhaustive and not once")
# Over TLS on the newest Python, and on the oldest in the session of that name.
QUICK = (*LIGHT, "-k", "not over-tls and not conformance_kit")


def group(name: str) -> tuple[str, ...]:
    """Give the requirements of a dependency group."""
    return nox.project.dependency_groups(PYPROJECT, name)


def covered_tests(session: nox.Session, include: str, *arguments: str) -> None:
    """Run tests, and fail unless every branch of ``include`` has been taken."""
    env = {"COVERAGE_FILE": str(Path(session.create_tmp(), "coverage"))}
    session.run("coverage", "erase", env=env)
    session.run("coverage", "run", "-m", "pytest", *arguments, env=env)
    session.run("coverage", "combine", "--quiet", env=env)
    session.run("coverage", "report", f"--include={include}", env=env)


@nox.session
def check(session: nox.Session) -> None:
    """Run the quick tests on the Python at hand."""
    session.install("-e", ".", *group("test"))
    session.run("pytest", *QUICK, *session.posargs)


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run all tests on the newest Python, with branch coverage, and the quick ones on the others."""
    session.install("-e", ".", *group("test"))
    if session.python == NEWEST and not session.posargs:
        covered_tests(session, "creduse*/*", *USUAL)
    else:
        session.run("pytest", *(session.posargs or QUICK))


@nox.session(python=NEWEST)
def exhaustive(session: nox.Session) -> None:
    """Run the suite over the clients that the other sessions leave out, since they are alike."""
    session.install("-e", ".", *group("test"))
    session.run("pytest", *AT_ONCE, "-m", "exhaustive", *session.posargs, env=STRICT)


@nox.session(python=OLDEST)
def core(session: nox.Session) -> None:
    """Run the core's own tests where no other package is, its branches covered by them alone."""
    session.install("--no-deps", "-e", ".")
    session.run("python", "-c", "import creduse_core")
    session.install(*group("core"))
    covered_tests(session, "creduse_core/*", "tests/core")


@nox.session(python=NEWEST)
def docs(session: nox.Session) -> None:
    """Build the documentation into build/docs, and run what its pages show."""
    session.install("-e", ".[all]", *group("docs"))
    strictly = ("--fail-on-warning", "--nitpicky", "--keep-going", "--fresh-env", "--quiet")
    session.run("sphinx-build", *strictly, "docs", "build/docs")
    session.run("pytest", "tests/test_pages.py", *session.posargs)


@nox.session(python=NEWEST)
@nox.parametrize("plugin", ["aiohttp", "asyncio", "mocks", "trio"])
def plugins(session: nox.Session, plugin: str) -> None:
    """Run the fixture and the mocks under what gets in the way of other plugins, one at a time."""
    session.install("-e", ".[all]", *group(f"plugins-{plugin}"))
    # What pytest-asyncio says of its own defaults is not for us to mend.
    settings = ("-W", "default::pytest.PytestDeprecationWarning", "-k", plugin)
    files = ("tests/test_docs.py", "tests/test_mocks.py", "tests/test_plugin.py")
    session.run("pytest", *settings, *files)


@nox.session(python=OLDEST)
def oldest(session: nox.Session) -> None:
    """Run all tests on the oldest versions of the dependencies that are claimed."""
    project = PYPROJECT["project"]
    extras = project["optional-dependencies"]
    claimed = [*project["dependencies"], *extras["aiohttp"], *extras["trio"]]
    floors = [requirement.split(",")[0].replace(">=", "==") for requirement in claimed]
    session.install("-e", ".", *group("test"), *floors)
    session.run("pytest", *(session.posargs or LIGHT))


@nox.session(python=OLDEST)
def build(session: nox.Session) -> None:
    """Build the sdist, and from it the wheel."""
    shutil.rmtree("dist", ignore_errors=True)
    session.install("build")
    session.run("python", "-m", "build", silent=True)


@nox.session(python=[OLDEST, NEWEST], reuse_venv=False, requires=["build"])
def wheel(session: nox.Session) -> None:
    """Use the wheel as a stranger would: in an empty environment, away from the tree."""
    (built,) = Path("dist").absolute().glob("*.whl")
    tests = Path("tests").absolute()
    session.install(str(built))
    with session.chdir(session.create_tmp()):
        session.run("creduse", "demo")
        session.install("pytest", "pytest-timeout", f"{built}[all]")
        session.run("pytest", *map(str, sorted(tests.glob("test_*.py"))), env=STRICT)
        shutil.copy(tests / "typing" / "usage.py", ".")
        session.install(*(it for it in group("types") if it.startswith(("mypy", "pyright"))))
        session.run("mypy", "--strict", "usage.py")
        session.run("pyright", "--pythonpath", str(Path(session.bin, "python")), "usage.py")


@nox.session(python=OLDEST)
def lint(session: nox.Session) -> None:
    """Check style, format, spelling, and which module imports which."""
    session.install(*group("lint"))
    session.run("ruff", "check", *session.posargs)
    session.run("ruff", "format", "--check", *session.posargs)
    session.run("lint-imports")
    # Misspelled words, and words that this project does not use.
    files = session.run("git", "ls-files", "*.py", "*.md", external=True, silent=True)
    session.run("codespell", "-D", "-", "-D", "codespell.txt", *(files or "").split())


@nox.session(python=OLDEST)
def types(session: nox.Session) -> None:
    """Check types, with both checkers at their strictest."""
    session.install("-e", ".", *group("types"))
    session.run("mypy")
    session.run("pyright", "--pythonpath", str(Path(session.bin, "python")))


@nox.session(python=NEWEST)
def soak(session: nox.Session) -> None:
    """Run all clients under random faults, and hold what they say against a server's record."""
    session.install("-e", ".", *group("test"))
    session.run("python", "-m", "tests.soak", *session.posargs)


@nox.session(python=NEWEST)
def bench(session: nox.Session) -> None:
    """Measure all clients beside hand-written code and the published client; docs/benchmarks.md."""
    session.install("-e", ".[all]")
    # It bears our import name, so it has an environment of its own.
    published = Path(session.create_tmp(), "published")
    python = str(published / "bin" / "python")
    if not published.exists():
        session.run("python", "-m", "venv", str(published))
        session.run(python, "-m", "pip", "install", "--quiet", "creduse==0.1.10", external=True)
    session.run("python", "-m", "benchmarks", "--published", python, *session.posargs)
