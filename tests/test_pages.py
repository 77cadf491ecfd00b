"""What the pages of the documentation show runs as it stands, and prints what they say.

Some need a framework: ``nox -s docs`` has all of them.
"""

import re
import signal
import sqlite3
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from uuid import uuid4

import pytest

from creduse import CreduseClient
from creduse._calls import STATUSES
from creduse_core import BASE_URL
from creduse_sandbox import FAULTS, SandboxServer

DOCS = Path(__file__).parent.parent.joinpath("docs")
FENCE = re.compile(r"(?:`(\w+\.py)`:\n\n)?^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
SANDBOX = re.compile(r"^creduse sandbox(?: --fault ([\w-]+):(\d+))?$", re.MULTILINE)
# They have tests of their own.
ELSEWHERE = {"testing", "transports"}
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


@pytest.mark.parametrize("page", [page for page, fences in PAGES.items() if fences])
def test_page(
    page: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A page's blocks run in their order, as one program, and print the text that follows them.

    A block of a file is written; one of ``sh`` is run; one of ``shell`` starts the sandbox anew, if
    it says so. A client and a user are at hand.
    """
    for module in NEEDS.get(page, ()):
        pytest.importorskip(module, reason=f"{module} is in nox -s docs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:/usr/bin:/bin")
    monkeypatch.setenv("CREDUSE_API_KEY", "any")
    program = ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", program)
    handler = signal.getsignal(signal.SIGTERM)
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
            elif language == "python":
                exec(compile(text, f"{page}.md", "exec"), vars(program))  # noqa: S102 - it is ours
                printed = capsys.readouterr().out.replace(server.base_url, BASE_URL)
                for value in vars(program).values():  # made at a program's top, and never closed
                    if isinstance(value, CreduseClient | sqlite3.Connection):
                        stack.callback(value.close)
            elif language == "sh":
                here = text.replace("http://127.0.0.1:8000", server.base_url)
                done = subprocess.run(
                    ["/bin/bash", "-c", here],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    check=False,
                )
                printed = done.stdout.decode()
                assert done.returncode == 0, printed
            elif language == "text":
                assert printed == text
            elif found := SANDBOX.search(text):
                server.reset()
                fault, times = found.groups()
                if fault:
                    server.order(FAULTS[fault], int(times))
    signal.signal(signal.SIGTERM, handler)


def test_exit_statuses() -> None:
    """The page's table of exit statuses is the command's."""
    page = DOCS.joinpath("command.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| (.*) \|$", page, re.MULTILINE)
    assert {int(status): meaning for status, meaning in rows} == STATUSES


def test_every_language_is_known() -> None:
    """No block goes untested for a misspelt language."""
    languages = {language for fences in PAGES.values() for _, language, _ in fences}
    assert languages <= {"python", "sh", "shell", "text", "ini"}


def test_there_are_examples() -> None:
    """The pages have examples at all."""
    assert sum(map(len, PAGES.values())) > 30
