"""The pytest plugin: the fixture ``creduse_sandbox``, and a run that keeps clear of the service.

A client at the top of a module is made before any fixture. It would reach the service, with the key
in the environment, from tests that believe to be on the sandbox. So the plugin sets
``CREDUSE_BASE_URL`` and ``CREDUSE_API_KEY`` before pytest imports the first ``conftest.py``. The URL
is a port of this machine that the plugin binds for the whole run and on which nobody listens:
connections are refused. While a test uses the fixture, the sandbox listens on just that port. So a
client reaches the sandbox whenever it was made, and nothing at all in a test that lacks the fixture,
whichever tests ran before. Each process of pytest-xdist has a port of its own.

``CREDUSE_BASE_URL`` set in the environment of the run opts out: both variables stay as they are. At
the end of the run both are put back.

pytest loads this in every run wherever creduse is installed. So it is a package of its own, which
loads nothing of ours, and no event loop, before a test asks for the fixture.
"""

import os
import socket
import sys
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from creduse_sandbox import SandboxServer

__all__ = ["creduse_sandbox"]

_URL = "CREDUSE_BASE_URL"
_KEY = "CREDUSE_API_KEY"
# What the plugin has set the URL to. A process that pytest starts inherits that, which is nobody's
# choice: one of pytest-xdist, or a pytest that a test runs.
_OURS = "_CREDUSE_PYTEST_BASE_URL"

_NOWHERE = "http://127.0.0.1:9"
"""Where there is no port to be had, as in a container without a network: nobody listens there."""

_HINT = """\
{url} refuses connections, and stands in for the service as long as tests run.
Use the fixture creduse_sandbox, which listens there; or mock this URL; or set CREDUSE_BASE_URL for
the whole run, to https://api.creduse.com if tests are to call the service."""

_PORT = pytest.StashKey["socket.socket | None"]()


@pytest.hookimpl(hookwrapper=True, tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> Generator[None, Any, Any]:
    """Keep clients from the service before anything of the project's is imported."""
    # A wrapper, since another plugin may import the project in this hook, as pytest-django does.
    _keep_from_the_service(early_config)
    yield


def pytest_configure(config: pytest.Config) -> None:
    """Do the same where a ``conftest.py`` has loaded the plugin, after that hook."""
    _keep_from_the_service(config)


def _keep_from_the_service(config: pytest.Config) -> None:
    url = os.environ.get(_URL)
    if _PORT in config.stash or (url is not None and url != os.environ.get(_OURS)):
        return
    port = config.stash[_PORT] = _bind(config)
    url = _NOWHERE if port is None else f"http://127.0.0.1:{port.getsockname()[1]}"
    environment = pytest.MonkeyPatch()
    for name, value in {_URL: url, _OURS: url, _KEY: "any"}.items():
        environment.setenv(name, value)
    config.add_cleanup(environment.undo)


def _bind(config: pytest.Config) -> socket.socket | None:
    try:
        port = socket.socket()
        config.add_cleanup(port.close)
        port.bind(("127.0.0.1", 0))
    except OSError:
        return None
    return port


@contextmanager
def _shared(port: socket.socket | None) -> Generator[int, None, None]:
    """Let a server listen on the port, and yield its number; without one, the server's choice."""
    if port is None:
        yield 0
        return
    port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    yield port.getsockname()[1]
    port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)


@pytest.fixture(scope="session")
def _creduse_sandbox_server(  # pyright: ignore[reportUnusedFunction]  # pytest finds it by its name
    pytestconfig: pytest.Config,
) -> Iterator["tuple[SandboxServer, ExitStack]"]:
    """Return the server, and what has it refuse connections until it is closed."""
    from creduse_sandbox import SandboxServer  # noqa: PLC0415 - see above

    with (
        _shared(pytestconfig.stash.get(_PORT, None)) as port,
        SandboxServer(port=port) as server,
        ExitStack() as refusal,
    ):
        refusal.enter_context(server.refusing())
        yield server, refusal


@pytest.fixture
def creduse_sandbox(
    _creduse_sandbox_server: "tuple[SandboxServer, ExitStack]", monkeypatch: pytest.MonkeyPatch
) -> Iterator["SandboxServer"]:
    """A local Creduse server, empty in each test: a running creduse_sandbox.SandboxServer.

    CREDUSE_BASE_URL and CREDUSE_API_KEY are set, so that clients reach it and not the service.
    """
    server, refusal = _creduse_sandbox_server
    monkeypatch.setenv(_URL, server.base_url)
    monkeypatch.setenv(_KEY, "any")
    refusal.close()
    yield server
    server.settle()  # what the test has left under way is still its own
    refusal.enter_context(server.refusing())
    server.reset()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, Any, Any]:
    """Say in the report of a test that lacks the fixture why its calls failed."""
    outcome = yield
    if (
        _PORT in item.config.stash
        and "creduse_sandbox" not in getattr(item, "fixturenames", ())
        and call.excinfo is not None
        and _comes_of_a_transport(call.excinfo.value)
    ):
        hint = _HINT.format(url=os.environ.get(_OURS))
        outcome.get_result().sections.append(("creduse", hint))


def _comes_of_a_transport(error: BaseException | None) -> bool:
    core = sys.modules.get("creduse_core")
    if core is None:
        return False
    while error is not None and not isinstance(error, core.TransportError):
        error = error.__cause__ or error.__context__
    return error is not None
