"""All checks of the project. ``nox`` runs the quick tests, and ``nox -l`` lists all sessions."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import nox

nox.needs_version = ">=2026.1"
nox.options.default_venv_backend = "uv"
nox.options.error_on_missing_interpreters = False
nox.options.reuse_venv = "yes"
nox.options.sessions = ["check"]

# Use the Pythons that are installed.
os.environ.setdefault("UV_PYTHON_DOWNLOADS", "never")

# All that the sessions install has these versions, so that a new release of a dependency breaks no
# change of ours. The session "oldest" has its own, and CREDUSE_TEST_NEWEST=1 takes the newest.
PINS = Path(__file__).with_name(".ci") / "pins.txt"
UNPINNED = {"UV_CONSTRAINT": ""}
if os.environ.get("CREDUSE_TEST_NEWEST"):
    nox.options.reuse_venv = "no"
else:
    # As a URL, since uv reads a space as the end of a name.
    os.environ |= dict.fromkeys(("UV_BUILD_CONSTRAINT", "UV_CONSTRAINT"), PINS.as_uri())

PYPROJECT = nox.project.load_toml("pyproject.toml")
BUILD = PYPROJECT["build-system"]["requires"]
PYTHONS = nox.project.python_versions(PYPROJECT)
OLDEST, NEWEST = PYTHONS[0], PYTHONS[-1]
# Python's development mode. It makes asyncio twice as slow, so not all sessions use it. Warnings are
# errors in all sessions, even those about sockets that are left open.
STRICT = {"PYTHONDEVMODE": "1"}
# More than there are processors: most tests wait for servers that misbehave. Six wait for each other.
AT_ONCE = ("-n", "4", "--dist", "worksteal")
USUAL = (*AT_ONCE, "-m", "not exhaustive")
# Tests that take long and do the same on each Python run on the newest one.
LIGHT = (*AT_ONCE, "-m", "not exhaustive and not slow")
# The core and the sandbox need at most h11. Old versions of the other packages cannot break them.
ON_FLOORS = (*LIGHT, "--ignore", "tests/core", "--ignore", "tests/sandbox")
# The newest Python also runs TLS, as "oldest" does, and the slow tests of the conformance kit. The
# example over urllib3 is much like the one over requests.
QUICK = (*LIGHT, "-k", "not over-tls and not conformance_kit and not urllib3")

# What GitHub and Read the Docs ignore or refuse only when they read it.
SCHEMAS = {
    "dependabot": (".github/dependabot.yml",),
    "github-issue-config": (".github/ISSUE_TEMPLATE/config.yml",),
    "github-issue-forms": (".github/ISSUE_TEMPLATE/bug.yml", ".github/ISSUE_TEMPLATE/question.yml"),
    "readthedocs": (".readthedocs.yaml",),
}


def group(name: str) -> tuple[str, ...]:
    """Return the requirements of a dependency group."""
    return nox.project.dependency_groups(PYPROJECT, name)


def covered_tests(session: nox.Session, modules: Sequence[str], *arguments: str) -> None:
    """Run tests, and fail unless they take every branch of ``modules``, in coverage's options."""
    env = {"COVERAGE_FILE": str(Path(session.create_tmp(), "coverage"))}
    session.run("coverage", "erase", env=env)
    session.run("coverage", "run", "-m", "pytest", *arguments, env=env)
    session.run("coverage", "combine", "--quiet", env=env)
    session.run("coverage", "report", *modules, env=env)


@nox.session
def check(session: nox.Session) -> None:
    """Run the quick tests on the Python at hand."""
    session.install("-e", ".", *group("test"))
    session.run("pytest", *QUICK, *session.posargs)


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run the tests except the core's on the newest Python, with coverage; elsewhere the quick ones.

    The session "core" runs the core's own tests on the newest Python.
    """
    session.install("-e", ".", *group("test"))
    if session.python == NEWEST and not session.posargs:
        packages = ("--include=creduse*/*", "--omit=creduse_core/*")
        covered_tests(session, packages, *USUAL, "--ignore", "tests/core")
    else:
        session.run("pytest", *(session.posargs or QUICK))


@nox.session(python=NEWEST)
def exhaustive(session: nox.Session) -> None:
    """Run the tests of clients and faults that differ little from those in the other sessions."""
    session.install("-e", ".", *group("test"))
    session.run("pytest", *AT_ONCE, "-m", "exhaustive", *session.posargs, env=STRICT)


@nox.session(python=NEWEST)
def core(session: nox.Session) -> None:
    """Run the core's own tests without any other package. They cover all of its branches."""
    session.install("--no-deps", "-e", ".")
    session.run("python", "-c", "import creduse_core")
    session.install(*group("core"))
    covered_tests(session, ("--include=creduse_core/*",), "tests/core")


@nox.session(python=NEWEST)
def docs(session: nox.Session) -> None:
    """Build the documentation into build/docs, and run the code on its pages."""
    session.install("-e", ".[all]", *group("docs"))
    strictly = ("--fail-on-warning", "--nitpicky", "--keep-going", "--fresh-env", "--quiet")
    session.run("sphinx-build", *strictly, "docs", "build/docs")
    session.run("pytest", "tests/test_docs.py", "tests/test_pages.py", *session.posargs)
    # These start many processes, and mostly wait.
    names = ("celery", "deployment", "notebooks", "observing")
    waiting = (*(f"tests/test_{it}.py" for it in names), "tests/examples/test_frameworks.py")
    session.run("pytest", "--numprocesses", "3", *waiting, *session.posargs)


@nox.session(python=NEWEST)
@nox.parametrize("plugin", ["aiohttp", "asyncio", "django", "mocks", "trio"])
def plugins(session: nox.Session, plugin: str) -> None:
    """Run the tests of the fixture, of mocks and of pages beside another pytest plugin."""
    session.install("-e", ".[all]", *group(f"plugins-{plugin}"))
    # pytest-asyncio warns about its own defaults.
    settings = ("-W", "default::pytest.PytestDeprecationWarning", "-k", plugin)
    files = ("tests/test_mocks.py", "tests/test_pages.py", "tests/test_plugin.py")
    session.run("pytest", *settings, *files)


@nox.session(python=OLDEST)
def oldest(session: nox.Session) -> None:
    """Run the tests on the oldest supported versions of all dependencies."""
    quiet = ("--quiet", "--no-header", "--no-annotate")
    compiling = ("uv", "pip", "compile", *quiet, "pyproject.toml", "--all-extras")
    tmp = Path(session.create_tmp())
    floors, versions = tmp / "floors.txt", tmp / "versions.txt"
    lowest = ("--no-deps", "--resolution", "lowest", "--output-file", str(floors))
    floors.unlink(missing_ok=True)
    session.run(*compiling, *lowest, silent=True, env=UNPINNED)
    # uv prefers the versions that the file has, so all others are the pinned ones.
    shutil.copy(PINS, versions)
    others = ("--group", "test", "--constraint", str(floors))
    session.run(*compiling, *others, "--output-file", str(versions), silent=True, env=UNPINNED)
    session.install("-e", ".", "-r", str(versions), env=UNPINNED)
    installed = session.run("uv", "pip", "freeze", silent=True) or ""
    expected = floors.read_text(encoding="utf-8").split()
    if missing := set(expected) - set(installed.split()):
        session.error(f"not installed: {missing}")
    session.log(f"the floors: {', '.join(expected)}")
    session.run("pytest", *(session.posargs or ON_FLOORS))


@nox.session(python=OLDEST)
def build(session: nox.Session) -> None:
    """Build the sdist, and from it the wheel. Fail if git does not track a file in them.

    With a tag, as in ``-- v0.2.0``, first check that it can be released, and write build/notes.md.
    """
    shutil.rmtree("dist", ignore_errors=True)
    if session.posargs:
        notes = session.run("python", ".ci/release.py", *session.posargs, silent=True) or ""
        Path("build").mkdir(exist_ok=True)
        Path("build", "notes.md").write_text(notes, encoding="utf-8")
    # With the time of the commit, everybody who builds it gets the same bytes.
    commit = session.run("git", "log", "-1", "--format=%ct", external=True, silent=True) or ""
    epoch = {"SOURCE_DATE_EPOCH": commit.strip()}
    session.run("uv", "build", "--quiet", "--no-create-gitignore", env=epoch)
    session.run("python", "-m", "tests.archives", "dist")


@nox.session(python=[OLDEST, NEWEST], reuse_venv=False, requires=["build"])
def wheel(session: nox.Session) -> None:
    """Use the wheel as a user would: in an empty environment, outside the source tree."""
    (built,) = Path("dist").absolute().glob("*.whl")
    tests = Path("tests").absolute()
    session.install(str(built))
    with session.chdir(session.create_tmp()):
        session.run("creduse", "demo")
        session.install(f"{built}[all]", *group("wheel"), *BUILD)
        if session.python == NEWEST:
            files = set(tests.glob("test_*.py"))
            # Ctrl-C at every moment takes minutes, and does not depend on the wheel.
            files.remove(tests / "test_command_interrupts.py")
            session.run("pytest", *map(str, sorted(files)), env=STRICT)
        shutil.copy(tests / "typing" / "usage.py", ".")
        session.install(*(it for it in group("types") if it.startswith(("mypy", "pyright"))))
        session.run("mypy", "--strict", "usage.py")
        session.run("pyright", "--pythonpath", str(Path(session.bin, "python")), "usage.py")


@nox.session(python=OLDEST)
def pins(session: nox.Session) -> None:
    """Renew .ci/pins.txt: the newest versions that work together, for all Pythons and systems."""
    requires = Path(session.create_tmp(), "build.txt")
    requires.write_text("\n".join(BUILD), encoding="utf-8")
    groups = (f"--group={name}" for name in PYPROJECT["dependency-groups"])
    sources = ("--all-extras", *groups, "pyproject.toml", str(requires))
    wanted = ("--universal", "--python-version", OLDEST, "--upgrade", *sources)
    header = ("--no-annotate", "--custom-compile-command", "nox -s pins")
    output = ("--output-file", str(PINS.relative_to(Path.cwd())))
    session.run(
        "uv", "pip", "compile", "--quiet", *wanted, *header, *output, silent=True, env=UNPINNED
    )


@nox.session(python=OLDEST)
def lint(session: nox.Session) -> None:
    """Check style, format, spelling, which module imports which, and the files of GitHub."""
    session.install(*group("lint"))
    session.run("ruff", "check", *session.posargs)
    session.run("ruff", "format", "--check", *session.posargs)
    session.run("lint-imports")
    # Misspelled words, and words that this project does not use.
    kinds = ("*.py", "*.md", "*.toml", "*.yaml", "*.yml", ".ci/run")
    files = session.run("git", "ls-files", *kinds, external=True, silent=True)
    session.run("codespell", "-D", "-", "-D", "codespell.txt", *(files or "").split())
    session.run("shellcheck", ".ci/run")
    # It runs shellcheck on the steps.
    session.run("actionlint")
    everything = ("--persona=auditor", "--collect=all", "--strict-collection")
    session.run("zizmor", "--offline", "--quiet", *everything, ".github", ".pre-commit-config.yaml")
    for schema, checked in SCHEMAS.items():
        session.run("check-jsonschema", "--builtin-schema", f"vendor.{schema}", *checked)


@nox.session(python=OLDEST)
def types(session: nox.Session) -> None:
    """Check types with mypy and pyright, both strict."""
    session.install("-e", ".", *group("types"))
    session.run("mypy")
    session.run("pyright", "--pythonpath", str(Path(session.bin, "python")))


@nox.session(python=NEWEST)
def soak(session: nox.Session) -> None:
    """Run all clients under random faults, and compare their outcomes with a server's record."""
    session.install("-e", ".", *group("test"))
    session.run("python", "-m", "tests.soak", *session.posargs)
    if not session.posargs:
        # Bulk runs and followers, killed some hundred times.
        killed = ("-m", "exhaustive", "-k", "killed", "-s", "tests/bulk")
        session.run("pytest", *killed)


@nox.session(python=NEWEST)
def bench(session: nox.Session) -> None:
    """Compare the speed of all clients with other clients. See docs/benchmarks.md."""
    session.install("-e", ".[all]")
    session.run("python", "-m", "benchmarks.lines")
    if not session.posargs:
        session.run("python", "-m", "benchmarks.bulk")
    # It has our import name, so it needs its own environment.
    published = Path(session.create_tmp(), "published")
    python = str(published / "bin" / "python")
    if not published.exists():
        session.run("python", "-m", "venv", str(published))
        session.run(python, "-m", "pip", "install", "--quiet", "creduse==0.1.10", external=True)
    session.run("python", "-m", "benchmarks", "--published", python, *session.posargs)
