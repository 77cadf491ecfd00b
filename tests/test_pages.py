"""The code in the documentation's pages runs as it stands, and prints what they say.

Some need a framework: ``nox -s docs`` has all of them.
"""

import inspect
import io
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, redirect_stdout
from pathlib import Path
from types import ModuleType
from uuid import uuid4

import pytest

import creduse_core.errors
import creduse_core.models
from creduse import CreduseClient, CreduseError
from creduse._calls import STATUSES
from creduse_core import BASE_URL, EVENTS, TRANSITIONS, Kind
from creduse_core.retry import may_retry
from creduse_sandbox import FAULTS, SandboxServer

pytestmark = pytest.mark.slow

DOCS = Path(__file__).parent.parent.joinpath("docs")
FENCE = re.compile(r"(?:`(\w+\.py)`:\n\n)?^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
SANDBOX = re.compile(r"^creduse sandbox(?: --fault ([\w-]+):(\d+))?$", re.MULTILINE)
# They have tests of their own, or commands that take long.
ELSEWHERE = {"benchmarks", "testing", "transports"}
PAGES = {
    path.stem: FENCE.findall(path.read_text(encoding="utf-8"))
    for path in sorted(DOCS.glob("*.md"))
    if path.stem not in ELSEWHERE
}
# What a page needs besides the package, and the session for it.
NEEDS = {
    "aiohttp": ("aiohttp",),
    "frameworks": ("django", "fastapi", "flask"),
    "observing": ("opentelemetry.sdk", "prometheus_client"),
    "trio": ("trio",),
}


def run_python(text: str, server: SandboxServer, program: ModuleType) -> str:
    with redirect_stdout(io.StringIO()) as printed:
        exec(compile(text, "page", "exec"), vars(program))  # noqa: S102 - it is ours
    return printed.getvalue().replace(server.base_url, BASE_URL)


def run_commands(text: str, server: SandboxServer, _: ModuleType) -> str:
    commands = text.replace("http://127.0.0.1:8000", server.base_url)
    done = subprocess.run(
        ["/bin/bash", "-c", commands], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    assert done.returncode == 0, done.stdout
    return done.stdout.decode()


def start_sandbox(text: str, server: SandboxServer, _: ModuleType) -> str:
    if found := SANDBOX.search(text):
        server.reset()
        fault, times = found.groups()
        if fault:
            server.inject(FAULTS[fault], int(times))
    return ""


RUN = {"python": run_python, "sh": run_commands, "shell": start_sandbox}


@pytest.fixture
def signals() -> Iterator[None]:
    """Restore the handler of SIGTERM after a page."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


@pytest.mark.usefixtures("signals")
@pytest.mark.parametrize("page", [page for page, fences in PAGES.items() if fences])
def test_page(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page's blocks run in order, as one program, and print the text that follows them.

    A block of a file is written; one of ``sh`` is run; one of ``shell`` starts the sandbox anew, if
    it says so. A client and a user are at hand.
    """
    for module in NEEDS.get(page, ()):
        pytest.importorskip(module, reason=f"{module} is in nox -s docs")
    monkeypatch.chdir(tmp_path)
    tmp_path.joinpath("pytest.ini").touch()  # what lies above is none of a page's concern
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:/usr/bin:/bin")
    monkeypatch.setenv("CREDUSE_API_KEY", "any")
    program = ModuleType("__main__")
    with (
        SandboxServer() as server,
        CreduseClient(base_url=server.base_url) as client,
        ExitStack() as stack,
    ):
        monkeypatch.setenv("CREDUSE_BASE_URL", server.base_url)
        user = uuid4()
        client.add(user, 1000)
        vars(program).update(client=client, end_user_id=user, server=server)
        printed = ""
        for file, language, text in PAGES[page]:
            if file:
                tmp_path.joinpath(file).write_text(text, encoding="utf-8")
            elif language == "text":
                assert re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:8000", printed) == text
            elif language != "mermaid":  # a drawing
                printed = RUN[language](text, server, program)
            for value in vars(program).values():  # made at a program's top, and never closed
                if isinstance(value, CreduseClient | SandboxServer | sqlite3.Connection):
                    stack.callback(value.close)


def test_exit_statuses() -> None:
    """The page's table of exit statuses is that of the command."""
    page = DOCS.joinpath("command.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| (.*) \|$", page, re.MULTILINE)
    assert {int(status): meaning for status, meaning in rows} == STATUSES


def test_events() -> None:
    """The page's table of events is that of the code."""
    page = DOCS.joinpath("outcomes.md").read_text(encoding="utf-8")
    cells = r"^\| `(\w+)` \| (.*) \| `(\w+)` \| `(\w+)` \| (\w+) \| (\w+) \|$"
    rows = re.findall(cells, page, re.MULTILINE)
    again = {True: "yes", False: "no"}
    assert rows == [
        (
            event.name,
            event.description,
            str(event.evidence),
            str(event.evidence_with_key),
            *(again[may_retry(event, kind, event.evidence)] for kind in (Kind.READ, Kind.WRITE)),
        )
        for event in EVENTS.values()
    ]


def test_fields() -> None:
    """The page's tables have every field of the results and errors, with its type."""
    page = DOCS.joinpath("reference.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^### (\w+)\n(.*?)(?=^##|\Z)", page, re.MULTILINE | re.DOTALL))
    classes = [
        thing
        for module in (creduse_core.models, creduse_core.errors)
        for thing in vars(module).values()
        if isinstance(thing, type) and thing.__module__ == module.__name__
    ]
    assert len(classes) > 20
    for thing in classes:
        rows = re.findall(
            r"^\| `(\w+)` \| (.+?) \| ", sections.get(thing.__name__, ""), re.MULTILINE
        )
        written = {field: wanted.replace("`", "").replace(" or ", " | ") for field, wanted in rows}
        fields = inspect.get_annotations(thing)
        assert written == {
            field: re.sub(r"\w+\.", "", inspect.formatannotation(kind))
            for field, kind in fields.items()
        }
        assert fields or thing.__name__ in page or not issubclass(thing, CreduseError)


def test_states() -> None:
    """The diagram of a call's states has exactly the moves of the code's table."""
    page = DOCS.joinpath("outcomes.md").read_text(encoding="utf-8")
    arrows = re.findall(r"^    (\w+) --> (\w+): (\w+)$", page, re.MULTILINE)
    assert [
        (before.replace("_", " "), given, after.replace("_", " "))
        for before, after, given in arrows
    ] == [
        (state, given, after)
        for state, inputs in TRANSITIONS.items()
        for given, states in inputs.items()
        for after in states
    ]


def test_there_are_examples() -> None:
    """The pages have examples."""
    assert sum(map(len, PAGES.values())) > 30
