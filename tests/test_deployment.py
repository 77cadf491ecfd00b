"""What servers do to calls when they stop, as the page on deployment says.

The programs are those of the page, in real processes. They need the servers: ``nox -s docs`` has them.
"""

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from creduse_core import Request
from creduse_sandbox import FAULTS, SandboxServer
from tests.common import free_port, wait_until
from tests.pages import blocks_of

pytestmark = pytest.mark.slow

for module in ("fastapi", "flask", "gunicorn", "hypercorn", "uvicorn", "uvicorn_worker"):
    pytest.importorskip(module, reason=f"{module} is in nox -s docs")

PAGE = Path(__file__).parents[1] / "docs" / "deployment.md"
AIOHTTP_APP = """
import sys
from aiohttp import web
from creduse import CreduseError
from creduse_aiohttp import CLIENT, setup
from credits_client import log_unclear

async def summarize(request):
    try:
        await request.app[CLIENT].subtract(request.match_info["user"], 5)
    except CreduseError:
        raise web.HTTPInternalServerError from None
    return web.Response()

app = web.Application()
setup(app, on_call=log_unclear)
app.router.add_post("/summaries/{user}", summarize)
web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), shutdown_timeout=int(sys.argv[2]))
"""

GUNICORN = ("-m", "gunicorn", "--bind", "127.0.0.1:PORT", "--graceful-timeout", "GRACE")
SERVERS: dict[str, tuple[str, ...]] = {
    "gunicorn-sync": (*GUNICORN, "app:app"),
    "gunicorn-gthread": (*GUNICORN, "--threads", "4", "app:app"),
    "gunicorn-asgi": (*GUNICORN, "-c", "none.py", "-k", "asgi", "main:app"),
    "gunicorn-uvicorn": (
        *(*GUNICORN, "-c", "none.py", "-k", "uvicorn_worker.UvicornWorker", "main:app"),
    ),
    "uvicorn": (
        *("-m", "uvicorn", "--port", "PORT", "--timeout-graceful-shutdown", "GRACE", "main:app"),
    ),
    "hypercorn-asyncio": (
        *("-m", "hypercorn", "-b", "127.0.0.1:PORT", "--graceful-timeout", "GRACE", "main:app"),
    ),
    "hypercorn-trio": (
        *("-m", "hypercorn", "-b", "127.0.0.1:PORT", "--graceful-timeout", "GRACE"),
        *("-k", "trio", "main:app"),
    ),
    "aiohttp": ("aiohttp_app.py", "PORT", "GRACE"),
}
KILLS = {name for name in SERVERS if name.startswith("gunicorn")}


class App:
    """The page's programs under a server, and the service."""

    def __init__(self, folder: Path, server: SandboxServer) -> None:
        self.server, self._folder, self._log = server, folder, folder / "log"
        self.user = str(uuid4())
        server.direct.add(self.user, 100)
        self._port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self._request: threading.Thread | None = None
        self.responses: list[int | None] = []
        self.sent, self._respond = threading.Event(), threading.Event()

    def start(self, name: str, *more: str, grace: int = 25, timeout: float = 60) -> None:
        """Start a server, and wait until it accepts connections."""
        places = {"PORT": str(self._port), "GRACE": str(grace)}
        arguments = [
            re.sub("PORT|GRACE", lambda found: places[found[0]], it) for it in SERVERS[name]
        ]
        environment = os.environ | {
            "CREDUSE_API_KEY": "any",
            "CREDUSE_BASE_URL": self.server.base_url,
            "CREDUSE_TIMEOUT": str(timeout),
            "PYTHONPATH": os.pathsep.join([str(self._folder), *sys.path]),
        }
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, *arguments, *more],
                cwd=self._folder,
                env=environment,
                stdout=log,
                stderr=log,
            )
        wait_until(self._is_listening)

    def _is_listening(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self._port)).close()
        except OSError:
            return False
        return True

    def hold(self) -> None:
        """Let the service respond to the next request only after ``respond``."""

        def wait(_: Request) -> bool:
            self.sent.set()
            self._respond.wait(60)
            return False

        self.server.inject(FAULTS["503"], when=wait)

    def respond(self) -> None:
        """Let the service respond."""
        self._respond.set()

    def request(self) -> None:
        """Send a request to the app, in a thread."""

        def send() -> None:
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=100)
            try:
                connection.request("POST", f"/summaries/{self.user}", b"")
                self.responses.append(connection.getresponse().status)
            except OSError:
                self.responses.append(None)
            finally:
                connection.close()

        self._request = threading.Thread(target=send)
        self._request.start()

    def stop(self) -> int:
        """Send SIGTERM, and return the exit status."""
        assert self.process is not None
        self.process.terminate()
        return self.ended()

    def ended(self) -> int:
        """Wait until the server and the request have ended, and return the exit status."""
        assert self.process is not None
        status = self.process.wait()
        if self._request is not None:
            self._request.join(60)
        return status

    def said(self) -> str:
        """Return what the server has written."""
        return self._log.read_text(encoding="utf-8")

    def unclear(self) -> list[str]:
        """Return the errors of the calls that ``on_call`` has reported as unclear."""
        wanted = rf"unclear: subtract\({self.user}, 5\): (\w+)"
        return re.findall(wanted, self.said())

    def close(self) -> None:
        """End the server, and show what it said."""
        self.respond()
        if self.process is not None:
            self.process.kill()
            self.ended()
            print(self.said())  # noqa: T201 - pytest shows it if a test fails


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    files = blocks_of(PAGE) | {"aiohttp_app.py": AIOHTTP_APP, "none.py": ""}
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    with SandboxServer() as server:
        running = App(tmp_path, server)
        try:
            yield running
        finally:
            running.close()


@pytest.mark.parametrize("name", SERVERS)
def test_finishes(app: App, name: str) -> None:
    """A request in flight at SIGTERM finishes."""
    app.start(name)
    app.hold()
    app.request()
    app.sent.wait()
    assert app.process is not None
    app.process.terminate()
    time.sleep(0.5)  # so that the signal arrives first
    app.respond()
    assert app.ended() in {0, -signal.SIGTERM}
    assert app.responses == [200]
    assert len(app.server.applied) == 1
    assert "unclear" not in app.said()


@pytest.mark.parametrize("name", SERVERS)
def test_times_out(app: App, name: str) -> None:
    """A call with less time than the server waits ends with an error, which the handler sees."""
    app.start(name, timeout=5)
    app.server.inject(FAULTS["apply-then-hang"])
    app.request()
    wait_until(lambda: app.server.applied)
    app.stop()
    assert app.responses == [500]
    assert app.unclear() == ["CreduseTimeoutError"]


@pytest.mark.parametrize("name", [it for it in SERVERS if it != "hypercorn-asyncio"])
def test_takes_too_long(app: App, name: str) -> None:
    """A call with more time is killed by gunicorn, without a word; other servers cancel it."""
    app.start(name, grace=1)
    app.server.inject(FAULTS["apply-then-hang"])
    app.request()
    wait_until(lambda: app.server.applied)
    app.stop()
    assert app.responses in ([None], [500])
    cancelled = {"hypercorn-trio": ["Cancelled"]}.get(name, ["CancelledError"])
    assert app.unclear() == ([] if name in KILLS else cancelled)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="its servers do not wait for connections")
def test_hypercorn_waits(app: App) -> None:
    """Hypercorn on asyncio waits longer than its ``graceful_timeout``."""
    app.start("hypercorn-asyncio", grace=1)
    app.hold()
    app.request()
    app.sent.wait()
    assert app.process is not None
    app.process.terminate()
    with pytest.raises(subprocess.TimeoutExpired):
        app.process.wait(4)
    app.respond()
    app.ended()
    assert app.responses == [200]


def test_sync_worker_times_out(app: App) -> None:
    """Gunicorn aborts a sync worker at its ``timeout``, and ``on_call`` reports the call."""
    app.start("gunicorn-sync", "--timeout", "8")  # a slow machine must send within it
    app.server.inject(FAULTS["apply-then-hang"])
    app.request()
    wait_until(lambda: "WORKER TIMEOUT" in app.said())
    wait_until(app.unclear)
    assert app.unclear() == ["SystemExit"]


def test_other_workers_have_no_timeout(app: App) -> None:
    """Gunicorn's ``timeout`` does not end a request of a worker with threads."""
    app.start("gunicorn-gthread", "--timeout", "8")  # on a slow machine it must report within it
    app.hold()
    app.request()
    app.sent.wait()
    time.sleep(12)
    app.respond()
    app.stop()
    assert app.responses == [200]
    assert "WORKER TIMEOUT" not in app.said()


# A handler's call, and one that outlives the request, with the module that it needs.
CALLS = {
    "app.py": (
        "get_client().subtract(user, 5)",
        "threading.Thread(target=get_client().subtract, args=(user, 5), daemon=True).start()",
        "threading",
    ),
    "main.py": (
        "await request.state.creduse.subtract(user, 5)",
        "tasks.add(asyncio.create_task(request.state.creduse.subtract(user, 5)))",
        "asyncio",
    ),
}


@pytest.mark.parametrize("responds", [True, False])
@pytest.mark.parametrize(
    "name", ["gunicorn-sync", "gunicorn-gthread", "gunicorn-asgi", "uvicorn", "hypercorn-asyncio"]
)
def test_drains(app: App, tmp_path: Path, name: str, *, responds: bool) -> None:
    """``drain`` waits for a call that outlives its request, and reports one that does not end."""
    file = f"{SERVERS[name][-1].partition(':')[0]}.py"
    call, instead, module = CALLS[file]
    program = tmp_path / file
    text = program.read_text(encoding="utf-8")
    assert call in text
    changed = f"import {module}\ntasks = set()\n{text.replace(call, instead)}"
    program.write_text(changed, encoding="utf-8")
    app.start(name, timeout=12)  # AsyncCreduseClient closes only when its calls have ended
    app.hold()
    app.request()
    app.sent.wait()
    wait_until(lambda: app.responses)
    assert app.process is not None
    app.process.terminate()
    if responds:
        time.sleep(0.5)  # so that the signal arrives first
        app.respond()
    app.ended()
    assert app.responses == [200]
    record = f"unclear: {{'method': 'subtract', 'end_user_id': '{app.user}', 'amount': 5"
    assert (record in app.said()) is not responds


def test_killed(app: App) -> None:
    """After SIGKILL, nothing says that a call was in flight, and credits have moved."""
    app.start("uvicorn")
    app.server.inject(FAULTS["apply-then-hang"])
    app.request()
    wait_until(lambda: app.server.applied)
    assert app.process is not None
    app.process.kill()
    app.ended()
    assert app.responses == [None]
    assert "unclear" not in app.said()


def test_defaults() -> None:
    """The page's defaults are those of the servers."""
    import gunicorn.config  # type: ignore[import-untyped]  # noqa: PLC0415 - only where it is installed
    import hypercorn.config  # noqa: PLC0415 - the same
    import uvicorn  # noqa: PLC0415 - the same
    from aiohttp.web_runner import BaseRunner  # noqa: PLC0415 - the same

    runner: Any = BaseRunner.__init__
    gunicorn_settings: Any = gunicorn.config
    assert gunicorn_settings.GracefulTimeout.default == 30
    assert gunicorn_settings.Timeout.default == 30
    assert uvicorn.Config("main:app").timeout_graceful_shutdown is None
    assert hypercorn.config.Config().graceful_timeout == 3
    assert runner.__kwdefaults__["shutdown_timeout"] == 60
