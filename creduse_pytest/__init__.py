"""The pytest plugin: the fixture ``creduse_sandbox``, and protection from calls to the service.

How a client refuses to send a request does not belong here: `creduse_core.client` does that.

Before pytest imports the first ``conftest.py``, the plugin sets ``CREDUSE_API_KEY`` to ``any`` and
``CREDUSE_BASE_URL`` to a port of this machine. The plugin binds the port for the whole run. The
sandbox listens on it while a test uses the fixture. In any other test the port refuses connections.
So a client reaches the sandbox or nothing, even a client that a module creates on import, before
any fixture. Each process of pytest-xdist has a port of its own.

If ``CREDUSE_BASE_URL`` is set when pytest starts, the plugin leaves both variables alone. At the end
of the run the plugin restores both.

A client with a ``base_url`` of its own, or a ``CREDUSE_BASE_URL`` that the user has set, still reaches
the service. With the ini option ``creduse_block_service``, no client does: the plugin replaces a
``CREDUSE_BASE_URL`` that is not this machine, and `creduse_core` fails each call to another machine
before it is sent. Child processes inherit this.

pytest loads this package in every run if creduse is installed. So the package imports no other
package of ours, and no event loop, until a test uses the fixture or the option is on.
"""

import os
import socket
import sys
import warnings
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from creduse_sandbox import SandboxServer

__all__ = ["creduse_sandbox"]

_URL = "CREDUSE_BASE_URL"
_KEY = "CREDUSE_API_KEY"
# The URL that the plugin has set. Child processes inherit CREDUSE_BASE_URL, and this tells them
# that the user did not set it.
_OURS = "_CREDUSE_PYTEST_BASE_URL"

# Tells creduse_core in child processes why calls are blocked.
_BLOCKED = "_CREDUSE_BLOCKED"
_OPTION = "creduse_block_service"

_NOWHERE = "http://127.0.0.1:9"
"""A URL on which nothing listens, if no port can be bound, as in a container without a network."""

_HINT = """\
In tests without the fixture creduse_sandbox, {url} refuses connections.
Use the fixture creduse_sandbox, which listens there. Or mock this URL."""
_HINT_WITHOUT_THE_OPTION = """ Or set CREDUSE_BASE_URL for
the whole run: https://api.creduse.com lets tests call the service."""
_WHY_BLOCKED = (
    f"the pytest option {_OPTION} blocks calls to other machines: use the fixture "
    "creduse_sandbox, and a client without base_url, which reads CREDUSE_BASE_URL"
)

_PORT = pytest.StashKey["socket.socket | None"]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the ini option."""
    parser.addini(
        _OPTION,
        "Creduse clients call only this machine. A call to another fails before it is sent.",
        type="bool",
        default=False,
    )


@pytest.hookimpl(hookwrapper=True, tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> Generator[None, Any, Any]:
    """Set the environment before anything imports the project."""
    # A wrapper runs first. Another plugin may import the project in this hook: pytest-django does.
    _set_environment(early_config)
    yield


def pytest_configure(config: pytest.Config) -> None:
    """Set the environment if a ``conftest.py`` loaded the plugin after the other hook."""
    _set_environment(config)


def pytest_warning_recorded(warning_message: warnings.WarningMessage) -> None:
    """End the run for an option that can only be ours, misspelled: nothing would be blocked."""
    text = str(warning_message.message).strip()
    if text.startswith("Unknown config option: creduse"):
        raise pytest.UsageError(f"{text}; the option of creduse is {_OPTION}")


def _set_environment(config: pytest.Config) -> None:
    if _PORT in config.stash:
        return
    environment = pytest.MonkeyPatch()
    config.add_cleanup(environment.undo)
    blocks = config.getini(_OPTION)
    if blocks:
        _block(environment)
    url = os.environ.get(_URL)
    if url is not None and url != os.environ.get(_OURS) and not (blocks and _is_elsewhere(url)):
        return
    port = config.stash[_PORT] = _bind(config)
    url = _NOWHERE if port is None else f"http://127.0.0.1:{port.getsockname()[1]}"
    for name, value in {_URL: url, _OURS: url, _KEY: "any"}.items():
        environment.setenv(name, value)


def _block(environment: pytest.MonkeyPatch) -> None:
    """Let no client of this process and its children send a request to another machine."""
    # A test can clear the environment, so this process does not depend on the variable.
    from creduse_core import environment as core  # noqa: PLC0415 - see the module's docstring

    environment.setattr(core, "blocked", _WHY_BLOCKED)
    environment.setenv(_BLOCKED, _WHY_BLOCKED)


def _is_elsewhere(url: str) -> bool:
    """Return whether a URL is not one of this machine."""
    from creduse_core import CreduseProtocol  # noqa: PLC0415 - see the module's docstring

    try:
        return not CreduseProtocol("any", url, allow_http=True).loopback
    except ValueError:
        return True


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
    """Let a server listen on the port, and yield its number. Without a port, yield 0."""
    if port is None:
        yield 0  # the server chooses
        return
    port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    yield port.getsockname()[1]
    port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)


@pytest.fixture(scope="session")
def _creduse_sandbox_server(  # pyright: ignore[reportUnusedFunction]  # pytest finds it by its name
    pytestconfig: pytest.Config,
) -> Iterator["tuple[SandboxServer, ExitStack]"]:
    """Return the server, and a stack to close so that the server accepts connections."""
    from creduse_sandbox import SandboxServer  # noqa: PLC0415 - see the module's docstring

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

    CREDUSE_BASE_URL and CREDUSE_API_KEY are set, so clients reach this server, not the service.
    """
    server, refusal = _creduse_sandbox_server
    monkeypatch.setenv(_URL, server.base_url)
    monkeypatch.setenv(_KEY, "any")
    refusal.close()
    yield server
    server.settle()  # requests that the test left in flight must not enter the next test's log
    refusal.enter_context(server.refusing())
    server.reset()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, Any, Any]:
    """Add a hint to the report of a test whose calls failed because it lacks the fixture."""
    outcome = yield
    if (
        _PORT in item.config.stash
        and "creduse_sandbox" not in getattr(item, "fixturenames", ())
        and call.excinfo is not None
        and _is_caused_by_a_refusal(call.excinfo.value)
    ):
        hint = _HINT.format(url=os.environ.get(_OURS))
        if not item.config.getini(_OPTION):
            hint += _HINT_WITHOUT_THE_OPTION
        outcome.get_result().sections.append(("creduse", hint))


def _is_caused_by_a_refusal(error: BaseException) -> bool:
    core = sys.modules.get("creduse_core")
    # The error of a call that was blocked says itself what to do.
    return core is not None and any(
        isinstance(link, core.TransportError)
        and all(attempt.event != "unsendable" for attempt in link.attempts)
        for link in core.exception_chain(error)
    )
