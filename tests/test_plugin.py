"""The pytest plugin, in this test run and in some of their own.

Plugins for asynchronous tests get in each other's way: ``nox -s plugins`` has one at a time.
"""

from typing import NamedTuple

import pytest

from creduse import CreduseClient
from creduse_sandbox import SandboxServer

pytest_plugins = ["pytester"]

USER = "12345678-1234-5678-1234-567812345678"

BEGINNING = f"""
import os, socket
from datetime import UTC, datetime, timedelta
import pytest
from creduse import CreduseClient, CreduseError
from creduse_sandbox import FAULTS
USER = "{USER}"
"""

MESS = """
def test_first(creduse_sandbox, request):
    request.config.url = creduse_sandbox.base_url
    with CreduseClient() as client:
        client.add(USER, 100)
    creduse_sandbox.order(FAULTS["500"], 1000)
    creduse_sandbox.advance(days=400)

def test_second(creduse_sandbox, request):
    assert creduse_sandbox.base_url == request.config.url
    assert creduse_sandbox.log == ()
    creduse_sandbox.direct.add(USER, 1)
    with CreduseClient() as client:
        (cycle,) = client.get_balance(USER).active_balance_by_cycle
    assert cycle.amount == 1
    assert cycle.cycle_end < datetime.now(UTC) + timedelta(days=40)

def test_without():
    assert os.environ["CREDUSE_BASE_URL"] == "https://credits.invalid"
    assert "CREDUSE_API_KEY" not in os.environ
"""

WRONG = """
def test_first(creduse_sandbox):
    creduse_sandbox.order(FAULTS["500"], when=lambda _: 1 / 0)
    with CreduseClient() as client, pytest.raises(CreduseError):
        client.add(USER, 100)

def test_second(creduse_sandbox):
    with CreduseClient() as client:
        client.add(USER, 100)
"""

LEFT = r"""
@pytest.mark.parametrize("_", range(20))
def test_in_a_hurry(creduse_sandbox, _):
    assert creduse_sandbox.log == ()
    host, port = creduse_sandbox.base_url.removeprefix("http://").split(":")
    for _ in range(20):
        with socket.create_connection((host, int(port))) as stream:
            stream.sendall(b"GET / HTTP/1.1\r\nHost: sandbox\r\n\r\n")
"""

SHARED = """
async def subtract_and_look(client, creduse_sandbox, amount):
    creduse_sandbox.direct.add(USER, 100)
    creduse_sandbox.order(FAULTS["apply-then-reset"])
    try:
        await client.subtract(USER, amount)
    except CreduseError as error:
        assert error.outcome.name == "UNKNOWN"
    assert creduse_sandbox.direct.get_balance(USER).active_balance == 100 - amount
    assert [entry.path for entry in creduse_sandbox.applied] == ["/subtract"]
    creduse_sandbox.advance(days=100)
    assert (await client.get_balance(USER)).active_balance == 0
"""

MARKED = """
from {package} import AsyncCreduseClient

@pytest.mark.{mark}
@pytest.mark.parametrize("amount", range(1, 6))
async def test_it(creduse_sandbox, amount):
    async with AsyncCreduseClient() as client:
        await subtract_and_look(client, creduse_sandbox, amount)
"""

# An asynchronous fixture beside ours, and no mark.
UNMARKED = """
from {package} import AsyncCreduseClient

@pytest.fixture
async def client(creduse_sandbox):
    async with AsyncCreduseClient() as client:
        yield client

@pytest.mark.parametrize("amount", range(1, 6))
async def test_it(client, creduse_sandbox, amount):
    await subtract_and_look(client, creduse_sandbox, amount)
"""

IN_AN_APP = """
from aiohttp import web
from creduse_aiohttp import CLIENT, setup

@pytest.mark.parametrize("amount", range(1, 6))
async def test_it(aiohttp_client, creduse_sandbox, amount):
    async def handle(request):
        await subtract_and_look(request.app[CLIENT], creduse_sandbox, amount)
        return web.Response()

    app = web.Application()
    app.router.add_get("/", handle)
    setup(app)
    client = await aiohttp_client(app)
    assert (await client.get("/")).status == 200
"""


class Run(NamedTuple):
    """The module of a plugin, the user's tests, how many there are, and settings."""

    plugin: str
    tests: str
    passed: int = 5
    settings: tuple[str, ...] = ()


FUNCTION = ("-o", "asyncio_default_fixture_loop_scope=function")  # or pytest-asyncio warns
STRICT = (*FUNCTION, "-o", "asyncio_mode=strict")
AUTO = (*FUNCTION, "-o", "asyncio_mode=auto")
TRIO = ("-o", "trio_mode=true")
TWO = ("-n", "2")

# By the session that has the plugin: each alone, and with pytest-xdist.
RUNS = {
    "anyio": Run("anyio", MARKED.format(package="creduse", mark="anyio"), 10),
    "anyio-two": Run("anyio", MARKED.format(package="creduse", mark="anyio"), 10, TWO),
    "asyncio": Run(
        "pytest_asyncio", MARKED.format(package="creduse", mark="asyncio"), settings=STRICT
    ),
    "asyncio-auto": Run(
        "pytest_asyncio", UNMARKED.format(package="creduse"), settings=(*AUTO, *TWO)
    ),
    "aiohttp": Run(
        "pytest_aiohttp", MARKED.format(package="creduse_aiohttp", mark="asyncio"), settings=STRICT
    ),
    "aiohttp-auto": Run("pytest_aiohttp", IN_AN_APP, settings=(*AUTO, *TWO)),
    "trio": Run("pytest_trio", MARKED.format(package="creduse_trio", mark="trio")),
    "trio-auto": Run(
        "pytest_trio", UNMARKED.format(package="creduse_trio"), settings=(*TRIO, *TWO)
    ),
}


@pytest.fixture
def pytester(pytester: pytest.Pytester) -> pytest.Pytester:
    """Give each run a project of its own, wherever temporary files are kept."""
    pytester.makeini("[pytest]")
    return pytester


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_under_others(run: Run, pytester: pytest.Pytester) -> None:
    """The fixture is the same under each plugin for asynchronous tests, and in processes."""
    pytest.importorskip(run.plugin)
    if "-n" in run.settings:
        pytest.importorskip("xdist")
    pytester.makepyfile(BEGINNING + SHARED + run.tests)
    result = pytester.runpytest_subprocess("-W", "error", *run.settings)
    result.assert_outcomes(passed=run.passed)


def test_reaches_the_sandbox(creduse_sandbox: SandboxServer) -> None:
    """A client that is told nothing talks to the sandbox."""
    creduse_sandbox.direct.add(USER, 100)
    with CreduseClient() as client:
        client.subtract(USER, 30)
    assert [entry.path for entry in creduse_sandbox.applied] == ["/subtract"]
    assert creduse_sandbox.direct.get_balance(USER).active_balance == 70


def test_clean_in_each_test(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """One server serves all tests, empty and on time in each, and the environment is put back."""
    monkeypatch.setenv("CREDUSE_BASE_URL", "https://credits.invalid")
    monkeypatch.delenv("CREDUSE_API_KEY", raising=False)
    pytester.makepyfile(BEGINNING + MESS)
    pytester.runpytest_subprocess().assert_outcomes(passed=3)


def test_error_in_its_place(pytester: pytest.Pytester) -> None:
    """What goes wrong inside the server is an error of the test that brought it about."""
    pytester.makepyfile(BEGINNING + WRONG)
    result = pytester.runpytest_subprocess("-v")
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["*::test_first ERROR*", "*ZeroDivisionError*"])


def test_what_is_left_under_way(pytester: pytest.Pytester) -> None:
    """What a test has sent, and not waited for the answer to, does not come in during the next."""
    pytester.makepyfile(BEGINNING + LEFT)
    pytester.runpytest_subprocess().assert_outcomes(passed=20)


def test_costs_nothing_unused(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run in which nobody asks for the fixture loads the plugin's module, and nothing for it."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makepyfile("def test_it():\n    import sys\n    print('loaded', *sys.modules)")

    def loaded(*arguments: str) -> set[str]:
        result = pytester.runpytest_subprocess("-s", *arguments)
        return set(next(line for line in result.outlines if "loaded" in line).split())

    assert loaded("-p", "creduse_pytest") - loaded() == {"creduse_pytest"}


def test_is_found(pytester: pytest.Pytester) -> None:
    """Wherever creduse is installed, ``pytest --fixtures`` tells of the fixture."""
    result = pytester.runpytest_subprocess("--fixtures")
    result.stdout.fnmatch_lines(["creduse_sandbox -- *", "    A Creduse of your own, *"])
