"""The page on Celery: its programs in real workers, over a broker and a backend of files."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from creduse import CreduseClient, CreduseError, Outcome, TransportError
from creduse_journal import UnclearError
from creduse_sandbox import FAULTS, SandboxServer
from tests.common import wait_until
from tests.pages import blocks_of

pytestmark = pytest.mark.slow

pytest.importorskip("celery", reason="celery is in nox -s docs")

PAGE = Path(__file__).parents[1] / "docs" / "celery.md"
BROKER = """
app.conf.broker_transport_options = {
    name: %r for name in ("control_folder", "data_folder_in", "data_folder_out")
}
"""
# Started in the tests' way, since the page's command is for Redis.
WORKER = ("-m", "celery", "--app", "tasks", "worker", "--concurrency", "1", "--loglevel", "INFO")


class Worker:
    """A worker with the page's tasks, and the service."""

    def __init__(self, folder: Path, server: SandboxServer) -> None:
        self.server, self._folder, self._log = server, folder, folder / "log"
        self.user = str(uuid4())
        server.direct.add(self.user, 100)
        for name in ("queue", "results"):
            (folder / name).mkdir()
        files = blocks_of(PAGE)
        self.tasks = folder / "tasks.py"
        self.tasks.write_text(files["tasks.py"] + BROKER % str(folder / "queue"), encoding="utf-8")
        (folder / "ask.py").write_text(files["ask.py"], encoding="utf-8")
        # Without a key, as in an app that only sends tasks.
        self._sender = {
            name: value for name, value in os.environ.items() if not name.startswith("CREDUSE_")
        } | {
            "BROKER_URL": "filesystem://",
            "RESULT_URL": f"file://{folder / 'results'}",
            "PYTHONPATH": os.pathsep.join([str(folder), *sys.path]),
        }
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *more: str) -> None:
        """Start the worker."""
        key = {"CREDUSE_API_KEY": "any", "CREDUSE_BASE_URL": self.server.base_url}
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, *WORKER, *more],
                cwd=self._folder,
                env=self._sender | key,
                stdout=log,
                stderr=log,
            )

    def ask(self, user: str = "") -> "subprocess.Popen[str]":
        """Run the page's program that sends a task and prints its result."""
        return subprocess.Popen(
            [sys.executable, "ask.py", user or self.user],
            cwd=self._folder,
            env=self._sender,
            stdout=subprocess.PIPE,
            text=True,
        )

    def said(self) -> str:
        """Return what the worker has written."""
        return self._log.read_text(encoding="utf-8")

    def close(self) -> None:
        """End the worker, and show what it said."""
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(60)
            finally:
                self.process.kill()
                self.process.wait()
                print(self.said())  # noqa: T201 - pytest shows it if a test fails


def result_of(asking: "subprocess.Popen[str]") -> str:
    return asking.communicate()[0].strip()


@pytest.fixture(params=["solo", "prefork"])
def pool(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    with SandboxServer() as server:
        running = Worker(tmp_path, server)
        try:
            yield running
        finally:
            running.close()


def test_results(worker: Worker, pool: str) -> None:
    """A task returns, is retried after NOT_APPLIED, fails after UNKNOWN, and goes on after APPLIED."""
    worker.start("--pool", pool)
    assert result_of(worker.ask()) == "{'summary': 'A long text.'}"
    assert result_of(worker.ask(str(uuid4()))) == "{'error': 'a summary costs 5 credits'}"
    worker.server.inject(FAULTS["apply-then-reset"])
    outcome, _, message = result_of(worker.ask()).partition(" ")
    assert outcome == "UNKNOWN"
    assert f"subtract({worker.user}, 5)" in message
    worker.server.inject(FAULTS["421"])  # the client itself does not retry it
    assert result_of(worker.ask()) == "{'summary': 'A long text.'}"
    assert "Retry in 10s" in worker.said()
    paid = [entry.path for entry in worker.server.applied]
    assert paid.count("/subtract") == 3


def test_soft_time_limit(worker: Worker) -> None:
    """The soft time limit interrupts a call, and ``on_call`` reports it."""
    worker.start(
        "--pool", "prefork", "--soft-time-limit", "8"
    )  # a slow machine must send within it
    worker.server.inject(FAULTS["apply-then-hang"])
    asking = worker.ask()
    line = f"unclear: subtract({worker.user}, 5): SoftTimeLimitExceeded"
    wait_until(lambda: line in worker.said())
    asking.kill()
    asking.communicate()
    assert len(worker.server.applied) == 1


def test_charged_once(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's ``charge`` charges once for a task's id, from any process, also after UNKNOWN."""
    page = PAGE.read_text(encoding="utf-8")
    found = re.search(r"^import os\n[^`]*^from creduse_journal[^`]*", page, re.MULTILINE)
    assert found is not None
    monkeypatch.setenv("JOURNAL_URL", postgres_url)
    said: list[object] = []
    with SandboxServer() as server, CreduseClient("any", base_url=server.base_url) as client:
        user = uuid4()
        server.direct.add(user, 100)
        for task in "first", "first", "second", "second":
            if said == [5, 5]:
                server.inject(FAULTS["apply-then-reset"])
            names: dict[str, Any] = {}
            exec(found[0], names)  # noqa: S102 - the page's example
            try:
                said.append(names["charge"](client, task, user).amount)
            except CreduseError as error:
                said.append((type(error), error.outcome))
            finally:
                names["get_journal"]().close()
    unknown = [(TransportError, Outcome.UNKNOWN), (UnclearError, Outcome.UNKNOWN)]
    assert said == [5, 5, *unknown]
    assert [entry.path for entry in server.log] == ["/subtract", "/subtract"]


def test_warm_shutdown(worker: Worker, pool: str) -> None:
    """At SIGTERM, a task finishes."""
    tasks = worker.tasks.read_text(encoding="utf-8")
    worker.tasks.write_text(tasks.replace("timeout=20", "timeout=5"), encoding="utf-8")
    worker.start("--pool", pool)
    worker.server.inject(FAULTS["apply-then-hang"])
    asking = worker.ask()
    wait_until(lambda: worker.server.applied)
    assert worker.process is not None
    worker.process.terminate()
    assert result_of(asking).startswith("UNKNOWN subtract(")
    assert worker.process.wait() == 0
    assert "CreduseTimeoutError" in worker.said()


def test_killed(worker: Worker) -> None:
    """After SIGKILL, a task is lost, and nothing says so."""
    worker.start("--pool", "solo")
    worker.server.inject(FAULTS["apply-then-hang"])
    asking = worker.ask()
    wait_until(lambda: worker.server.applied)
    assert worker.process is not None
    worker.process.kill()
    assert worker.process.wait() == -signal.SIGKILL
    worker.start("--pool", "solo")
    assert result_of(worker.ask()) == "{'summary': 'A long text.'}"
    asking.kill()
    asking.communicate()
    assert len(worker.server.applied) == 2
    assert "unclear" not in worker.said()
