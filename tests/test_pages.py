"""The examples in the README and on the documentation's pages run, and print what the pages say.

Some need a framework, a pytest plugin or a mock: ``nox -s docs plugins`` has them.

Sybil finds the blocks, runs Python, and names the page and line of a failure. Its own pytest plugin
makes a test of each block, and pytest-xdist would give a page's tests to different processes. So
one test here runs all blocks of a program.
"""

import asyncio
import io
import json
import os
import re
import runpy
import signal
import socket
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, redirect_stdout
from functools import partial
from itertools import groupby
from pathlib import Path
from shutil import which
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import pytest
from sybil import Document, Example
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import CodeBlockParser

import creduse_bulk
import creduse_core
from creduse import CreduseClient
from creduse_core import BASE_URL, CoreClient, CreduseProtocol
from creduse_sandbox import FAULTS, SandboxServer
from creduse_sandbox.conformance import SCENARIOS, TLS_SCENARIOS, check
from tests.common import PROGRESS, keep_from_end_of_day, wait_until
from tests.servers import RawServer, raw_servers, relay

ROOT = Path(__file__).parents[1]
ANALYZE = which("systemd-analyze") or ""
FILE = re.compile(r"`([\w.]+\.py)`:\n\n$")
HEADING = re.compile(r"^(##+) (.*)$", re.MULTILINE)
SANDBOX = re.compile(r"^creduse sandbox(?: --fault ([\w-]+):(\d+))?$", re.MULTILINE)
TEST = re.compile(r"^(?:async )?def test_", re.MULTILINE)

# Each section of these pages is a program, and pytest runs the tests there. Another page is one.
IN_SECTIONS = {"README", "testing"}
# The nox session of a program, and the modules that it needs besides the package. The session
# "plugins" selects programs by their names.
NEEDS = {
    "aiohttp": ("docs", "aiohttp"),
    "celery": ("docs", "celery", "redis"),
    "frameworks": ("docs", "django", "fastapi", "flask"),
    "machines": ("tests", "psycopg"),
    "outbox": ("tests", "psycopg"),
    "observing": (
        "docs",
        *("opentelemetry.instrumentation.utils", "opentelemetry.sdk", "prometheus_client"),
        *("sentry_sdk", "structlog"),
    ),
    "tls": ("docs", "trustme", "aiohttp_socks", "python_socks"),
    "testing: Mocks: aioresponses": ("'plugins(plugin=mocks)'", "aioresponses"),
    "testing: Mocks: respx and pytest-httpx": ("'plugins(plugin=mocks)'", "respx", "pytest_httpx"),
    "testing: Mocks: vcrpy": ("'plugins(plugin=mocks)'", "vcr"),
    "testing: Django": ("'plugins(plugin=django)'", "django", "pytest_django"),
    "testing: aiohttp": ("'plugins(plugin=aiohttp)'", "pytest_aiohttp"),
    "testing: trio": ("'plugins(plugin=trio)'", "pytest_trio"),
    "transports": ("tests", "trustme"),
    "trio": ("docs", "trio"),
}


def run_python(example: Example) -> str | None:
    """Write a file, run tests, or run the lines. Return the output of tests that fail."""
    names = example.namespace
    named = FILE.search(example.document.text, 0, example.start)
    tests = len(TEST.findall(example.parsed)) if Path(example.path).stem in IN_SECTIONS else 0
    file = named[1] if named else "test_example.py" if tests else None
    if file:
        Path(file).write_text(example.parsed, encoding="utf-8")
    if tests:
        # Without the sandbox's URL, as where nobody has set one.
        run_bash(f"env -u CREDUSE_BASE_URL pytest -q -W error {file}", names)
        passed = re.search(r"^(\d+) passed in ", names["__printed__"], re.MULTILINE)
        # A parametrized test counts more than once.
        return None if passed and int(passed[1]) >= tests else names["__printed__"]
    if not file:
        with redirect_stdout(io.StringIO()) as printed:
            PythonEvaluator()(example)
        url = names["server"].base_url
        names["__printed__"] = printed.getvalue().replace(url, BASE_URL)
    return None


def run_bash(commands: str, names: dict[str, Any]) -> str | None:
    """Run commands. Return their output if they fail."""
    done = subprocess.run(
        ["/bin/bash", "-c", commands],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    names["__printed__"] = done.stdout
    return done.stdout if done.returncode else None


def run_commands(example: Example) -> str | None:
    """Run commands against the sandbox. Return their output if they fail."""
    url = example.namespace["server"].base_url
    # A busy machine needs longer to start.
    commands = example.parsed.replace("--preserve-status 6 ", "--preserve-status 20 ")
    failed = run_bash(commands.replace("http://127.0.0.1:8000", url), example.namespace)
    example.namespace["__printed__"] = PROGRESS.sub("", example.namespace["__printed__"])
    return failed


def start_sandbox(example: Example) -> None:
    """Empty the sandbox if the commands start one, and inject its faults."""
    example.namespace["__printed__"] = ""
    if found := SANDBOX.search(example.parsed):
        server = example.namespace["server"]
        server.reset()
        fault, times = found.groups()
        if fault:
            server.inject(FAULTS[fault], int(times))


def compare(example: Example) -> str | None:
    """Return what the block before printed, unless it is this text."""
    printed = re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:8000", example.namespace["__printed__"])
    return None if printed == example.parsed else f"It prints:\n{printed}"


def configure(example: Example) -> None:
    """Write the settings of pytest."""
    Path("pyproject.toml").write_text(example.parsed, encoding="utf-8")


EVALUATORS = {
    "python": run_python,
    "sh": run_commands,
    "shell": start_sandbox,
    "text": compare,
    "toml": configure,
}
PARSERS = [CodeBlockParser(language, evaluator) for language, evaluator in EVALUATORS.items()]
PAGES = [
    Document.parse(str(path), *PARSERS)
    for path in (ROOT / "README.md", *sorted(ROOT.joinpath("docs").glob("*.md")))
]


def program_of(example: Example) -> str:
    """Return the name of a page, and the headings above the example if the page has programs."""
    name = Path(example.path).stem
    headings: dict[str, str] = {}
    if name in IN_SECTIONS:
        for level, title in HEADING.findall(example.document.text, 0, example.start):
            headings = {above: it for above, it in headings.items() if above < level}
            headings[level] = title
    return ": ".join([name, *headings.values()])


PROGRAMS = {name: list(blocks) for page in PAGES for name, blocks in groupby(page, program_of)}


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """The names that examples use, in a directory of their own and with the sandbox's URL set."""
    monkeypatch.chdir(tmp_path)
    Path("pyproject.toml").write_text("[tool.pytest.ini_options]", encoding="utf-8")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:/usr/bin:/bin")
    monkeypatch.setenv("CREDUSE_API_KEY", "any")
    handler = signal.getsignal(signal.SIGTERM)
    with SandboxServer() as server, CreduseClient("any", base_url=server.base_url) as client:
        monkeypatch.setenv("CREDUSE_BASE_URL", server.base_url)
        user = uuid4()
        server.direct.add(user, 1000)
        yield {"__name__": "__main__", "client": client, "end_user_id": user, "server": server}
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def postgres_environment(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables of libpq, for the URL ``postgresql:///``."""
    url = urlsplit(postgres_url)
    monkeypatch.setenv("PGHOST", url.hostname or "")
    monkeypatch.setenv("PGPORT", str(url.port))
    monkeypatch.setenv("PGUSER", url.username or "")
    monkeypatch.setenv("PGDATABASE", url.path[1:])
    monkeypatch.setenv("PGOPTIONS", parse_qs(url.query)["options"][0])


def run(program: str, names: dict[str, Any]) -> None:
    """Run the blocks of a program in order, in one namespace."""
    __tracebackhide__ = True
    session, *modules = NEEDS.get(program, ("tests",))
    for module in modules:
        pytest.importorskip(module, reason=f"{module} is in nox -s {session}")
    with ExitStack() as stack:
        for example in PROGRAMS[program]:
            example.namespace = names
            example.evaluate()
            for value in names.values():  # made at a program's top, and never closed
                if isinstance(value, CreduseClient | SandboxServer | sqlite3.Connection):
                    stack.callback(value.close)
                elif (  # a function of the page's own that has made the client
                    hasattr(value, "cache_info")
                    and value.__module__ == "__main__"
                    and value.cache_info().currsize
                ):
                    stack.callback(value().close)


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(name, marks=() if name.startswith("README") else pytest.mark.slow)
        for name, blocks in PROGRAMS.items()
        if name not in {"notebooks", "transports"}
        and {it.region.evaluator for it in blocks} != {start_sandbox}
    ],
)
def test_program(
    program: str,
    names: dict[str, Any],
    request: pytest.FixtureRequest,
) -> None:
    """A program runs as it stands, and prints the text that follows a block."""
    if program in {"machines", "outbox"}:
        request.getfixturevalue("postgres_environment")
    if program in {"bulk", "evidence", "journal", "machines", "nightly", "outbox"}:
        keep_from_end_of_day()
    if program.startswith("README"):  # its user has few credits
        names["end_user_id"] = "12345678-1234-5678-1234-567812345678"
        names["server"].direct.add(names["end_user_id"], 1)
    run(program, names)


def test_guide_for_transports(names: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The guide for transport authors works for the example over urllib."""
    over_urllib = runpy.run_path(str(ROOT / "examples" / "urllib_transport.py"))
    names["MyTransport"] = over_urllib["UrllibTransport"]
    monkeypatch.setattr(sys, "path", [str(Path.cwd()), *sys.path])
    at_sandbox = partial(CreduseProtocol, base_url=names["server"].base_url)
    monkeypatch.setattr(creduse_core, "CreduseProtocol", at_sandbox)
    run("transports", names)
    assert len(names["server"].applied) == 2  # by the first example, and by the asynchronous one
    names["test_my_transport"](SCENARIOS[0])
    for scenario in TLS_SCENARIOS[0], TLS_SCENARIOS[-1]:
        check(
            scenario,
            lambda protocol: CoreClient(protocol, names["MyTransport"](names["trust"])),
            ssl_contexts=names["ssl_contexts"],
        )


def socks_proxy(connection: socket.socket, server: RawServer) -> None:
    """Act as a SOCKS proxy (RFC 1928) for IPv4 addresses, without a login."""
    with connection.makefile("rb") as stream:
        _, count = stream.read(2)
        stream.read(count)
        connection.sendall(b"\x05\x00")
        request = stream.read(10)  # version, command, 0, type, address and port
    server.received.append(request)
    address = socket.inet_ntoa(request[4:8]), int.from_bytes(request[8:])
    with socket.create_connection(address) as target:
        connection.sendall(b"\x05\x00\x00\x01" + bytes(6))
        relay(connection, target)


@pytest.mark.slow
def test_socks(names: dict[str, Any]) -> None:
    """The page's clients go through a SOCKS proxy, with the page's TLS settings."""
    run("tls", names)
    import trio  # noqa: PLC0415 - only where it is installed

    with SandboxServer(ssl_context=names["server_side"]) as server, raw_servers() as start:
        os.environ["CREDUSE_BASE_URL"] = server.base_url
        proxy = start(socks_proxy)
        url = proxy.base_url.replace("http:", "socks5:")
        asyncio.run(names["add_over_aiohttp"](url))
        trio.run(names["add_under_trio"], url)
        with CreduseClient(proxy=url, ssl_context=names["context"]) as client:
            client.add(names["user"], 100)
        assert len(server.applied) == len(proxy.received) == 3


@pytest.mark.slow
@pytest.mark.usefixtures("postgres_environment")
def test_indexed_job(names: dict[str, Any]) -> None:
    """The command of the indexed Job sends each line once, though each pod is started twice."""
    page = ROOT.joinpath("docs", "machines.md").read_text(encoding="utf-8")
    found = re.search(r"args: .*\n +- >-\n((?: {14}.*\n)+)", page)
    assert found is not None
    command = " ".join(found[1].split()).replace("/data/", "")
    assert "creduse bulk add grants.csv" in command
    lines = [f"{uuid4()},{number}\n" for number in range(1, 401)]
    Path("grants.csv").write_text("end_user_id,amount\n" + "".join(lines), encoding="utf-8")
    pods = [
        subprocess.Popen(
            ["/bin/sh", "-c", command], env=os.environ | {"JOB_COMPLETION_INDEX": str(index)}
        )
        for index in (0, 1, 2, 3, 0, 1, 2, 3)
    ]
    # The second one of an index finds the shard in use, or nothing to send.
    assert {pod.wait() for pod in pods} <= {0, 75}
    sent = sorted(json.loads(entry.body)["amount"] for entry in names["server"].applied)
    assert sent == list(range(1, 401))
    run_bash("creduse bulk status grants.csv --journal postgresql:///", names)
    assert names["__printed__"] == "400 lines: 400 applied\n"


@pytest.mark.slow
@pytest.mark.skipif(not ANALYZE, reason="systemd is not installed")
def test_systemd_units(tmp_path: Path) -> None:
    """Systemd accepts the units of the page on a nightly job."""
    page = ROOT.joinpath("docs", "nightly.md").read_text(encoding="utf-8")
    units = re.findall(
        r"`/etc/systemd/system/([\w.]+)`:\n\n```ini\n(.*?)^```", page, re.MULTILINE | re.DOTALL
    )
    for name, text in units:
        # It looks for the program.
        there = text.replace("/opt/credits/bin/nightly.sh", "/bin/true")
        tmp_path.joinpath(name).write_text(there, encoding="utf-8")
    files = [str(tmp_path / name) for name, _ in units]
    assert len(files) == 2
    done = subprocess.run([ANALYZE, "verify", *files], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="it is a shell script")
def test_nightly_script_is_stopped(tmp_path: Path) -> None:
    """After a SIGTERM to all, as of systemd, nothing is left that a second one could interrupt."""
    page = ROOT.joinpath("docs", "nightly.md").read_text(encoding="utf-8")
    (script,) = re.findall(
        r"^cat > nightly\.sh <<'END'\n(.*?)^END$", page, re.MULTILINE | re.DOTALL
    )
    tmp_path.joinpath("nightly.sh").write_text(script, encoding="utf-8")
    for number, day in enumerate(("2025-01-01", "2025-01-02"), 1):
        lines = "".join(f"{uuid4()},{number}\n" for _ in range(2000))
        tmp_path.joinpath(f"grants-{day}.csv").write_text(f"end_user_id,amount\n{lines}")
    with SandboxServer() as server:
        server.inject(times=2000, delay=0.2)
        settings = {"CREDUSE_API_KEY": "any", "CREDUSE_BASE_URL": server.base_url}
        process = subprocess.Popen(
            ["/bin/sh", "nightly.sh", "."],
            cwd=tmp_path,
            env=os.environ | settings,
            start_new_session=True,
        )
        wait_until(lambda: server.applied)
        os.killpg(process.pid, signal.SIGTERM)
        assert process.wait() == 75
        with pytest.raises(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        amounts = {json.loads(entry.body or b"")["amount"] for entry in server.applied}
    assert amounts == {1}
    status = creduse_bulk.status(tmp_path / "grants-2025-01-01.csv")
    assert (status.unclear, status.applied) == (0, len(server.applied))


def test_there_are_examples() -> None:
    """The pages have examples, all in languages that run, and what needs a module is among them."""
    blocks = [block for blocks in PROGRAMS.values() for block in blocks]
    assert len(blocks) == sum(len(list(page)) for page in PAGES)  # no two programs have one name
    counts = Counter(
        Path(block.path).stem for block in blocks if block.region.evaluator is run_python
    )
    assert counts["README"] >= 4
    assert counts["testing"] > 10
    assert counts.total() > 60
    assert NEEDS.keys() <= PROGRAMS.keys()
    languages = {it for page in PAGES for it in re.findall(r"^```(\w+)$", page.text, re.MULTILINE)}
    assert languages == {*EVALUATORS, "console", "ini", "mermaid", "sql", "yaml"}
