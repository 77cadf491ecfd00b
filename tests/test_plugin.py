"""Tests of the pytest plugin, in this test run and in runs of their own.

Plugins for asynchronous tests get in each other's way: ``nox -s plugins`` has one at a time.
"""

import os
from typing import NamedTuple

import pytest

from creduse import CreduseClient
from creduse_sandbox import SandboxServer

pytestmark = pytest.mark.slow

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
    creduse_sandbox.inject(FAULTS["500"], 1000)
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

# What a project has at its top, and the port that this has met.
AT_THE_TOP = """
import os
from creduse import CreduseClient
client = CreduseClient()
PORT = os.environ["CREDUSE_BASE_URL"].rpartition(":")[2]
"""

WITH_AND_WITHOUT = """
import app

@pytest.mark.parametrize("_", range(3))
def test_with(creduse_sandbox, _):
    assert creduse_sandbox.base_url == "http://127.0.0.1:" + app.PORT
    assert app.client.add(USER, 5).amount == 5
    with creduse_sandbox.refusing(), pytest.raises(CreduseError):
        app.client.add(USER, 5)
    assert app.client.get_balance(USER).active_balance == 5
    assert len(creduse_sandbox.log) == 2

@pytest.mark.parametrize("_", range(3))
def test_without(_):
    with pytest.raises(CreduseError) as caught:
        app.client.add(USER, 5)
    assert caught.value.outcome.name == "NOT_APPLIED"
    assert "refused" in str(caught.value)
    assert os.environ["CREDUSE_API_KEY"] == "any"
"""

HINT = """
def test_without():
    CreduseClient().add(USER, 5)

def test_behind_another():
    try:
        CreduseClient().add(USER, 5)
    except CreduseError as error:
        raise ValueError from error

def test_in_a_group():
    try:
        CreduseClient().add(USER, 5)
    except CreduseError as error:
        raise ExceptionGroup("tasks", [error])

def test_with(creduse_sandbox):
    creduse_sandbox.inject(FAULTS["apply-then-close"])
    CreduseClient().add(USER, 5)

def test_of_its_own():
    raise ValueError

def test_its_own_cause():
    error = ValueError()
    raise error from error
"""

# Each client of ours, also over a supplied one and a transport of the user's, for the service's URL.
BLOCKED = """
import asyncio, subprocess, sys
from contextlib import suppress
import aiohttp, httpx, trio
import app
import creduse_aiohttp, creduse_trio
from creduse import AsyncCreduseClient
from creduse_core import CoreClient, CreduseProtocol

SERVICE = "https://api.creduse.com"

@pytest.fixture(autouse=True)
def watched(monkeypatch):
    def connect(*arguments):
        raise AssertionError(f"connects to {arguments}")
    for name in "getaddrinfo", "create_connection":
        monkeypatch.setattr(socket, name, connect)

def check(error):
    assert error.outcome.name == "NOT_APPLIED"
    assert "the pytest option creduse_block_service blocks calls" in str(error)
    assert "use the fixture creduse_sandbox" in str(error)

def check_sync(client):
    with client, pytest.raises(CreduseError) as caught:
        client.add(USER, 5)
    check(caught.value)

async def check_async(client):
    async with client:
        with pytest.raises(CreduseError) as caught:
            await client.add(USER, 5)
    check(caught.value)

@pytest.fixture(params=[False, True], ids=["without", "with"])
def fixture(request):
    if request.param:
        request.getfixturevalue("creduse_sandbox")

@pytest.mark.usefixtures("fixture")
def test_clients():
    check_sync(app.client)
    check_sync(CreduseClient(base_url=SERVICE))
    check_sync(CreduseClient(http_client=httpx.Client(), base_url=SERVICE))

@pytest.mark.usefixtures("fixture")
@pytest.mark.parametrize("make", [AsyncCreduseClient, creduse_aiohttp.AsyncCreduseClient])
def test_asyncio(make):
    async def main():
        await check_async(make(base_url=SERVICE))
    asyncio.run(main())

@pytest.mark.usefixtures("fixture")
@pytest.mark.parametrize("make", [AsyncCreduseClient, creduse_trio.AsyncCreduseClient])
def test_trio(make):
    async def main():
        await check_async(make(base_url=SERVICE))
    trio.run(main)

def test_supplied():
    async def main():
        async with aiohttp.ClientSession() as session:
            await check_async(creduse_aiohttp.AsyncCreduseClient("k", session, base_url=SERVICE))
        async with httpx.AsyncClient() as client:
            await check_async(AsyncCreduseClient("k", client, base_url=SERVICE))
    asyncio.run(main())

class Transport:
    now = float
    def send(self, send):
        raise AssertionError
    def close(self):
        pass

def test_transport_of_the_users():
    check_sync(CoreClient(CreduseProtocol("any"), Transport()))

def test_cleared_environment(monkeypatch):
    for name in os.environ:
        if "CREDUSE" in name:
            monkeypatch.delenv(name)
    check_sync(CreduseClient("any"))

def test_child_process():
    code = f"from creduse import *; CreduseClient('k', base_url={SERVICE!r}).add({USER!r}, 5)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "the pytest option creduse_block_service blocks" in done.stderr

def test_caught():
    with suppress(CreduseError):
        CreduseClient(base_url=SERVICE).add(USER, 5)
    pytest.fail("the log says why")
"""

CHANGED = """
import app

def test_without():
    for client in app.client, CreduseClient():
        with pytest.raises(CreduseError, match="creduse_block_service") as caught:
            client.add(USER, 5)
        assert caught.value.outcome.name == "NOT_APPLIED"

def test_with(creduse_sandbox):
    with CreduseClient() as client:
        client.add(USER, 5)
    with pytest.raises(CreduseError, match="creduse_block_service"):
        app.client.add(USER, 5)
    assert len(creduse_sandbox.log) == 1
"""

# What is not blocked: the environment's URL, which is this machine.
NOT_BLOCKED = """
import app

def test_with(creduse_sandbox):
    assert app.client.add(USER, 5).amount == 5

def test_without():
    assert os.environ["CREDUSE_API_KEY"] == "any"
    app.client.add(USER, 5)
"""

OPTED_OUT = """
def test_it():
    assert os.environ["CREDUSE_BASE_URL"] == "http://127.0.0.1:1"
    assert os.environ["CREDUSE_API_KEY"] == "sk-real"
    CreduseClient().add(USER, 5)
"""

PROGRAM = """
import os, socket, sys
import pytest
before = dict(os.environ)
status = pytest.main(["-q", "test_module.py"])
changed = [name for name in os.environ if "CREDUSE" in name]
assert changed == [], changed
from creduse_core import environment
assert environment.blocked is None
socket.create_server(("127.0.0.1", int(sys.modules["app"].PORT))).close()
sys.exit(status)
"""

INSIDE = """
pytest_plugins = ["pytester"]

@pytest.mark.parametrize("run", ["runpytest_subprocess", "runpytest_inprocess"])
def test_inside(pytester, creduse_sandbox, run):
    pytester.makepyfile('''
        import os
        def test_it(creduse_sandbox):
            assert os.environ["CREDUSE_BASE_URL"] == creduse_sandbox.base_url
            assert creduse_sandbox.base_url != "%s"
    ''' % creduse_sandbox.base_url)
    getattr(pytester, run)("-p", "no:cacheprovider").assert_outcomes(passed=1)
    assert app.client.add(USER, 7).amount == 7
    assert creduse_sandbox.direct.get_balance(USER).active_balance == 7
"""

NO_NETWORK = """
import socket

class Refusing(socket.socket):
    def bind(self, address):
        raise OSError("Cannot assign requested address")

socket.socket = Refusing
"""

NOWHERE = """
import os

def test_it():
    assert os.environ["CREDUSE_BASE_URL"] == "http://127.0.0.1:9"

def test_that_fails():
    raise ValueError
"""

WRONG = """
def test_first(creduse_sandbox):
    creduse_sandbox.inject(FAULTS["500"], when=lambda _: 1 / 0)
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
    creduse_sandbox.inject(FAULTS["apply-then-reset"])
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


IN_DJANGO = """
import views
from django.test import TestCase

class SubtractTest(TestCase):
    @pytest.fixture(autouse=True)
    def _use_sandbox(self, creduse_sandbox):
        self.sandbox = creduse_sandbox

    def test_it(self):
        assert views.client.add(USER, 5).amount == 5
        assert len(self.sandbox.applied) == 1
"""

DJANGO_SETTINGS = """
import views
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
SECRET_KEY = "any"
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
    """Keep pytest from using settings above the temporary directory."""
    pytester.makeini("[pytest]")
    return pytester


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_under_others(run: Run, pytester: pytest.Pytester) -> None:
    """The fixture works under each plugin for asynchronous tests, and under xdist."""
    pytest.importorskip(run.plugin)
    if "-n" in run.settings:
        pytest.importorskip("xdist")
    pytester.makepyfile(BEGINNING + SHARED + run.tests)
    result = pytester.runpytest_subprocess("-W", "error", *run.settings)
    result.assert_outcomes(passed=run.passed)


@pytest.mark.usefixtures("bare")
def test_under_django(pytester: pytest.Pytester) -> None:
    """A Django TestCase can use the fixture, also for a client that Django's settings import."""
    pytest.importorskip("pytest_django")
    pytester.makepyfile(settings=DJANGO_SETTINGS, views=AT_THE_TOP, test_it=BEGINNING + IN_DJANGO)
    result = pytester.runpytest_subprocess("-W", "error", "--ds", "settings", *BLOCK)
    result.assert_outcomes(passed=1)


def test_reaches_the_sandbox(creduse_sandbox: SandboxServer) -> None:
    """A client without arguments uses the sandbox."""
    creduse_sandbox.direct.add(USER, 100)
    with CreduseClient() as client:
        client.subtract(USER, 30)
    assert [entry.path for entry in creduse_sandbox.applied] == ["/subtract"]
    assert creduse_sandbox.direct.get_balance(USER).active_balance == 70


def test_clean_in_each_test(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """One server serves all tests. It is empty and at the present time in each. The environment is restored."""
    monkeypatch.setenv("CREDUSE_BASE_URL", "https://credits.invalid")
    monkeypatch.delenv("CREDUSE_API_KEY", raising=False)
    pytester.makepyfile(BEGINNING + MESS)
    pytester.runpytest_subprocess().assert_outcomes(passed=3)


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove creduse's variables from the environment."""
    for name in os.environ:
        if "CREDUSE" in name:
            monkeypatch.delenv(name)


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize(
    ("key", "order", "settings"),
    [
        (None, "test_with test_without", ()),
        ("sk-real", "test_without test_with", ()),
        (None, "test_without test_with", TWO),
    ],
    ids=["with-first", "without-first", "two"],
)
def test_client_at_the_top_of_a_module(
    key: str | None,
    order: str,
    settings: tuple[str, ...],
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A client made at import uses the sandbox in tests with the fixture, and reaches nothing in others."""
    if settings:
        pytest.importorskip("xdist")
    if key is not None:
        monkeypatch.setenv("CREDUSE_API_KEY", key)
    pytester.makeconftest("import app")  # the earliest that a project's modules are imported
    pytester.makepyfile(app=AT_THE_TOP, test_module=BEGINNING + WITH_AND_WITHOUT)
    tests = [f"test_module.py::{name}" for name in order.split()]
    pytester.runpytest_subprocess(*settings, *tests).assert_outcomes(passed=6)


@pytest.mark.usefixtures("bare")
def test_hint(pytester: pytest.Pytester) -> None:
    """Only a test that fails because it lacks the fixture gets the hint."""
    pytester.makepyfile(BEGINNING + HINT)
    result = pytester.runpytest_subprocess()
    result.assert_outcomes(failed=6)
    assert result.stdout.str().count("Use the fixture creduse_sandbox, which listens there") == 3
    result.stdout.fnmatch_lines(
        ["In tests without the fixture creduse_sandbox, http://127.0.0.1:* refuses connections."]
    )


def test_opting_out(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plugin changes neither URL nor key if the environment of the run sets the URL."""
    monkeypatch.setenv("CREDUSE_BASE_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("CREDUSE_API_KEY", "sk-real")
    pytester.makepyfile(BEGINNING + OPTED_OUT)
    result = pytester.runpytest_subprocess()
    result.assert_outcomes(failed=1)
    result.stdout.no_fnmatch_line("*Use the fixture creduse_sandbox*")


BLOCK = ("-o", "creduse_block_service=true")


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize("settings", [(), TWO], ids=["one", "two"])
def test_block_service(settings: tuple[str, ...], pytester: pytest.Pytester) -> None:
    """With the option, no client sends a request to the service, however it was made."""
    for module in ("aiohttp", "trio", *(("xdist",) if settings else ())):
        pytest.importorskip(module)
    # Before the plugin, as where pytest.main() runs in an app's process.
    client = (
        "from creduse import CreduseClient\nclient = CreduseClient('k', base_url='https://a.test')"
    )
    pytester.makepyfile(app=client, test_module=BEGINNING + BLOCKED)
    pytester.syspathinsert()
    result = pytester.runpytest_subprocess("-p", "app", *BLOCK, *settings)
    result.assert_outcomes(passed=14, failed=1)
    result.stdout.fnmatch_lines(
        [
            "*Captured log call*",
            "ERROR *creduse:*",
            "*.RefusalError: the pytest option creduse_block_*",
        ]
    )
    result.stdout.no_fnmatch_line("*refuses connections*")


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize("url", ["https://api.creduse.com", "http://sandbox:80", "no URL", None])
def test_block_service_overrides(
    url: str | None, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the option, clients do not read a URL and a key that the environment has for another machine."""
    if url is not None:
        monkeypatch.setenv("CREDUSE_BASE_URL", url)
        monkeypatch.setenv("CREDUSE_API_KEY", "sk-real")
    pytester.makepyfile(app=AT_THE_TOP, test_module=BEGINNING + NOT_BLOCKED)
    result = pytester.runpytest_subprocess(*BLOCK)
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*which listens there. Or mock this URL."])
    result.stdout.no_fnmatch_line("*lets tests call the service*")


@pytest.mark.usefixtures("bare")
def test_block_service_in_a_changed_environment(pytester: pytest.Pytester) -> None:
    """With the option, a URL that is set after pytest has started leads to nothing."""
    setting = "import os\nos.environ['CREDUSE_BASE_URL'] = 'https://api.creduse.com'\n"
    pytester.makeconftest(setting + "import app")
    pytester.makepyfile(app=AT_THE_TOP.replace("PORT =", "# "), test_module=BEGINNING + CHANGED)
    pytester.runpytest_subprocess(*BLOCK).assert_outcomes(passed=2)


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize("arguments", [(), ("-o", "creduse_blok=true")], ids=["file", "argument"])
def test_misspelled_option(arguments: tuple[str, ...], pytester: pytest.Pytester) -> None:
    """An option that is misspelled ends the run. pytest would only warn, and block nothing."""
    pytester.makeini(f"[pytest]\n{'' if arguments else 'creduse_blok = true'}")
    pytester.makepyfile("def test_it():\n    pass")
    result = pytester.runpytest_subprocess(*arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        [
            "ERROR: Unknown config option: creduse_blok; the option of creduse is creduse_block_service"
        ]
    )


@pytest.mark.usefixtures("bare")
def test_warning_about_something_else(pytester: pytest.Pytester) -> None:
    """Other warnings end no run."""
    pytester.makepyfile(
        "import warnings\n\ndef test_it():\n    warnings.warn('creduse is mentioned')"
    )
    pytester.runpytest_subprocess().assert_outcomes(passed=1, warnings=1)


@pytest.mark.usefixtures("bare")
def test_option_of_another_plugin(pytester: pytest.Pytester) -> None:
    """An option of another plugin may begin like ours."""
    pytester.makeini("[pytest]\ncreduse_of_the_app = 1")
    pytester.makeconftest(
        "def pytest_addoption(parser):\n    parser.addini('creduse_of_the_app', '')"
    )
    pytester.makepyfile("def test_it():\n    pass")
    pytester.runpytest_subprocess().assert_outcomes(passed=1)


@pytest.mark.usefixtures("bare")
def test_block_service_keeps_loopback(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the option, a URL of this machine in the environment stays."""
    monkeypatch.setenv("CREDUSE_BASE_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("CREDUSE_API_KEY", "sk-real")
    pytester.makepyfile(BEGINNING + OPTED_OUT)
    result = pytester.runpytest_subprocess(*BLOCK)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*Connection refused (127.0.0.1:1)*"])


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize("settings", ["", "creduse_block_service = true"], ids=["off", "on"])
def test_environment_is_put_back(settings: str, pytester: pytest.Pytester) -> None:
    """After pytest.main() the environment is as before, the port is free, and nothing is blocked."""
    pytester.makeini(f"[pytest]\n{settings}")
    pytester.makepyfile(app=AT_THE_TOP, test_module=BEGINNING + WITH_AND_WITHOUT, program=PROGRAM)
    assert pytester.runpython(pytester.path / "program.py").ret == 0


@pytest.mark.usefixtures("bare")
def test_pytest_inside_pytest(pytester: pytest.Pytester) -> None:
    """A pytest that a test starts has its own port, and does not change that of the outer run."""
    pytester.makepyfile(app=AT_THE_TOP, test_module=BEGINNING + WITH_AND_WITHOUT + INSIDE)
    pytester.runpytest_subprocess().assert_outcomes(passed=8)


@pytest.mark.usefixtures("bare")
def test_without_a_network(pytester: pytest.Pytester) -> None:
    """If no port can be bound, tests that do not need one still run."""
    pytester.syspathinsert()
    pytester.makepyfile(no_network=NO_NETWORK, test_module=NOWHERE)
    result = pytester.runpytest_subprocess("-p", "no_network", "-W", "error")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.no_fnmatch_line("*creduse_sandbox*")


@pytest.mark.usefixtures("bare")
def test_loaded_by_a_conftest(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a conftest.py loads the plugin, modules imported later do not reach the service."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makeconftest("pytest_plugins = ['creduse_pytest']")
    pytester.makepyfile(app=AT_THE_TOP, test_module=BEGINNING + WITH_AND_WITHOUT)
    pytester.runpytest_subprocess(*BLOCK).assert_outcomes(passed=6)


def test_error_in_its_place(pytester: pytest.Pytester) -> None:
    """An internal error of the server is an error of the test that caused it."""
    pytester.makepyfile(BEGINNING + WRONG)
    result = pytester.runpytest_subprocess("-v")
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["*::test_first ERROR*", "*ZeroDivisionError*"])


def test_what_is_left_under_way(pytester: pytest.Pytester) -> None:
    """A request whose response a test did not await is not in the next test's log."""
    pytester.makepyfile(BEGINNING + LEFT)
    pytester.runpytest_subprocess().assert_outcomes(passed=20)


def test_costs_nothing_unused(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run without the fixture loads only the plugin's module and sockets."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makepyfile("def test_it():\n    import sys\n    print('loaded', *sys.modules)")

    def loaded(*arguments: str) -> set[str]:
        result = pytester.runpytest_subprocess("-s", *arguments)
        return set(next(line for line in result.outlines if "loaded" in line).split())

    sockets = {"socket", "_socket", "array"}
    others = {"_ast_unparse"}  # Python 3.14 loads it to read the fixture's signature
    new = loaded("-p", "creduse_pytest") - loaded()
    assert new - sockets - others == {"creduse_pytest"}


def test_is_found(pytester: pytest.Pytester) -> None:
    """``pytest --fixtures`` lists the fixture."""
    result = pytester.runpytest_subprocess("--fixtures")
    result.stdout.fnmatch_lines(["creduse_sandbox -- *", "    A local Creduse server, *"])
