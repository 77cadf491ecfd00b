"""Mocks and instrumentation for httpx and aiohttp work with our clients.

They are in ``nox -s 'plugins(plugin=mocks)'``. `httpx.MockTransport` is in tests/httpx/test_supplied.py.
"""

import asyncio
import json
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import aiohttp
import httpx
import pytest
import trio

import creduse_aiohttp
import creduse_trio
from creduse import (
    AsyncCreduseClient,
    CreditsAdded,
    CreduseClient,
    CreduseError,
    InsufficientFundsError,
    Outcome,
    RetryPolicy,
    TransportError,
)
from creduse_core import AsyncCoreClient
from creduse_sandbox import SandboxServer

pytestmark = pytest.mark.slow

pytest_plugins = ["pytester"]

respx = pytest.importorskip("respx")
responses = pytest.importorskip("responses")
requests_mock = pytest.importorskip("requests_mock")
pytest.importorskip("pytest_httpx")
aioresponses = pytest.importorskip("aioresponses").aioresponses
aiointercept = pytest.importorskip("aiointercept").aiointercept
vcr = pytest.importorskip("vcr")
HTTPXClientInstrumentor = pytest.importorskip(
    "opentelemetry.instrumentation.httpx"
).HTTPXClientInstrumentor
TracerProvider = pytest.importorskip("opentelemetry.sdk.trace").TracerProvider
export = pytest.importorskip("opentelemetry.sdk.trace.export")
in_memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")

USER = "12345678-1234-5678-1234-567812345678"
URL = "https://api.creduse.com"
NO_WAIT = RetryPolicy(initial_delay=0)

BALANCE: dict[str, Any] = {"end_user_id": USER, "active_balance": 7, "active_balance_by_cycle": []}
ADD = ("add", USER, 5)
CALLS = (ADD, ("subtract", USER, 8), ("get_balance", USER))
# The mocks' responses to these: method, path, status, fields.
RESPONSES = (
    ("POST", "/add", 200, {"end_user_id": USER, "amount": 5}),
    ("POST", "/subtract", 402, {"error_code": "INSUFFICIENT_FUNDS"}),
    ("GET", "/get-active-balance", 200, BALANCE),
)

Calls = Sequence[tuple[Any, ...]]
Ask = Callable[[Calls], list[Any]]
"""Makes calls with a client of one kind, and returns the result or the error of each."""


def ask_sync(calls: Calls, *, supplied: bool) -> list[Any]:
    responses: list[Any] = []
    with (
        httpx.Client() as http_client,
        CreduseClient("any", http_client if supplied else None, retry=NO_WAIT) as client,
    ):
        for name, *arguments in calls:
            try:
                responses.append(getattr(client, name)(*arguments))
            except CreduseError as error:
                responses.append(error)
    return responses


async def ask_async(client: AsyncCoreClient, calls: Calls) -> list[Any]:
    responses: list[Any] = []
    async with client:
        for name, *arguments in calls:
            try:
                responses.append(await getattr(client, name)(*arguments))
            except CreduseError as error:
                responses.append(error)
    return responses


async def ask_httpx(calls: Calls, supplied: bool) -> list[Any]:  # noqa: FBT001 - trio.run takes no keywords
    async with httpx.AsyncClient() as http_client:
        client = AsyncCreduseClient("any", http_client if supplied else None, retry=NO_WAIT)
        return await ask_async(client, calls)


async def ask_aiohttp(calls: Calls, *, supplied: bool) -> list[Any]:
    async with aiohttp.ClientSession() as session:
        client = creduse_aiohttp.AsyncCreduseClient(
            "any", session if supplied else None, retry=NO_WAIT
        )
        return await ask_async(client, calls)


@pytest.fixture(autouse=True)
def service(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make clients call the service's URL, which a mock replaces."""
    monkeypatch.setenv("CREDUSE_BASE_URL", URL)


@pytest.fixture(params=[False, True], ids=["own", "supplied"])
def supplied(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(params=["sync", "asyncio", "trio"])
def over_httpx(request: pytest.FixtureRequest, supplied: bool) -> Ask:  # noqa: FBT001 - a fixture
    ways: dict[str, Ask] = {
        "sync": lambda calls: ask_sync(calls, supplied=supplied),
        "asyncio": lambda calls: asyncio.run(ask_httpx(calls, supplied)),
        "trio": lambda calls: trio.run(ask_httpx, calls, supplied),
    }
    return ways[request.param]


@pytest.fixture
def over_aiohttp(supplied: bool) -> Ask:  # noqa: FBT001 - a fixture
    return lambda calls: asyncio.run(ask_aiohttp(calls, supplied=supplied))


def check(responses: list[Any]) -> None:
    """Compare the responses to `CALLS` with `RESPONSES`."""
    added, refusal, balance = responses
    assert isinstance(added, CreditsAdded)
    assert added.amount == 5
    assert isinstance(refusal, InsufficientFundsError)
    assert refusal.outcome is Outcome.NOT_APPLIED
    assert balance.active_balance == 7


# What an exception of httpx's that is set up in a mock becomes: its outcome, and how many attempts.
SIMULATED = [
    (httpx.ConnectError("simulated"), Outcome.UNKNOWN, 1),
    (httpx.ReadTimeout("simulated"), Outcome.UNKNOWN, 1),
    (httpx.PoolTimeout("simulated"), Outcome.NOT_APPLIED, 3),
    (RuntimeError("simulated"), Outcome.UNKNOWN, 1),
]


def check_simulated(responses: list[Any], outcome: Outcome, attempts: int) -> None:
    (error,) = responses
    assert isinstance(error, TransportError)
    assert "simulated" in str(error)
    assert (error.outcome, len(error.attempts)) == (outcome, attempts)


def test_respx(over_httpx: Ask) -> None:
    """A response of respx is the response, and respx sees the request."""
    with respx.mock(base_url=URL) as mock:
        for method, path, status, fields in RESPONSES:
            mock.request(method, path).respond(status, json=fields)
        check(over_httpx(CALLS))
        assert [json.loads(call.request.content).get("amount") for call in mock.calls] == [
            5,
            8,
            None,
        ]


@pytest.mark.parametrize(("error", "outcome", "attempts"), SIMULATED)
def test_respx_raises(over_httpx: Ask, error: Exception, outcome: Outcome, attempts: int) -> None:
    """An exception of respx is UNKNOWN, except a PoolTimeout."""
    with respx.mock(base_url=URL) as mock:
        mock.post("/add").mock(side_effect=error)
        check_simulated(over_httpx([ADD]), outcome, attempts)


def test_respx_lets_through(over_httpx: Ask, creduse_sandbox: SandboxServer) -> None:
    """A request that respx lets through reaches the sandbox."""
    creduse_sandbox.direct.add(USER, 7)
    with respx.mock as mock:
        mock.route(host="127.0.0.1").pass_through()
        with creduse_sandbox.refusing():
            (error,) = over_httpx([ADD])
        assert error.outcome is Outcome.NOT_APPLIED
        (added,) = over_httpx([ADD])
    assert added.amount == 5
    assert len(creduse_sandbox.applied) == 1


def test_pytest_httpx(over_httpx: Ask, httpx_mock: Any) -> None:
    """A response of pytest-httpx is the response, and pytest-httpx sees the request."""
    for method, path, status, fields in RESPONSES:
        httpx_mock.add_response(method=method, url=URL + path, status_code=status, json=fields)
    check(over_httpx(CALLS))
    sent = [json.loads(request.content).get("amount") for request in httpx_mock.get_requests()]
    assert sent == [5, 8, None]


@pytest.mark.parametrize(("error", "outcome", "attempts"), SIMULATED)
def test_pytest_httpx_raises(
    over_httpx: Ask, httpx_mock: Any, error: Exception, outcome: Outcome, attempts: int
) -> None:
    """An exception of pytest-httpx is UNKNOWN, except a PoolTimeout."""
    httpx_mock.add_exception(error, is_reusable=True)
    check_simulated(over_httpx([ADD]), outcome, attempts)


def elsewhere(request: httpx.Request) -> bool:
    return request.url.host != "127.0.0.1"


@pytest.mark.httpx_mock(should_mock=elsewhere)
@pytest.mark.usefixtures("httpx_mock")
def test_pytest_httpx_lets_through(over_httpx: Ask, creduse_sandbox: SandboxServer) -> None:
    """A request that pytest-httpx lets through reaches the sandbox."""
    with creduse_sandbox.refusing():
        (error,) = over_httpx([ADD])
    assert error.outcome is Outcome.NOT_APPLIED
    (added,) = over_httpx([ADD])
    assert added.amount == 5
    assert len(creduse_sandbox.applied) == 1


class MockedResponse(aiohttp.ClientResponse):
    """A response that aioresponses can make with aiohttp 3.14."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, stream_writer=Mock(output_size=0), **kwargs)


def test_aioresponses(over_aiohttp: Ask) -> None:
    """A response of aioresponses is the response."""
    with aioresponses() as mock:
        for method, path, status, fields in RESPONSES:
            mock.add(
                URL + path, method, status=status, payload=fields, response_class=MockedResponse
            )
        check(over_aiohttp(CALLS))
        bodies = [json.loads(call.kwargs["data"].decode()) for (call,) in mock.requests.values()]
        assert [body.get("amount") for body in bodies] == [5, 8, None]


@pytest.mark.xfail(raises=TransportError, reason="pnuckowski/aioresponses, issue 289")
def test_aioresponses_alone(over_aiohttp: Ask) -> None:
    """Without our response class, aioresponses works too."""
    with aioresponses() as mock:
        mock.post(f"{URL}/add", payload={"end_user_id": USER, "amount": 5})
        (added,) = over_aiohttp([ADD])
        if isinstance(added, TransportError):
            assert "stream_writer" in str(added)
            raise added


@pytest.mark.parametrize(
    ("error", "attempts"),
    [
        (aiohttp.ClientConnectionError("simulated"), 3),
        (aiohttp.ServerDisconnectedError("simulated"), 3),
        (TimeoutError("simulated"), 3),
        (RuntimeError("simulated"), 1),
    ],
)
def test_aioresponses_raises(over_aiohttp: Ask, error: Exception, attempts: int) -> None:
    """An exception of aioresponses is NOT_APPLIED: nothing was sent."""
    with aioresponses() as mock:
        mock.post(f"{URL}/add", exception=error, repeat=True)
        check_simulated(over_aiohttp([ADD]), Outcome.NOT_APPLIED, attempts)


def test_aioresponses_lets_through(over_aiohttp: Ask, creduse_sandbox: SandboxServer) -> None:
    """A request that aioresponses lets through reaches the sandbox."""
    with aioresponses(passthrough=["http://127.0.0.1"]):
        (added,) = over_aiohttp([ADD])
    assert added.amount == 5
    assert len(creduse_sandbox.applied) == 1


def test_aiointercept(supplied: bool) -> None:  # noqa: FBT001 - a fixture
    """A response of aiointercept is the response, and a lost one is UNKNOWN."""

    async def main() -> None:
        async with aiointercept(mock_external_urls=True) as mock:
            for method, path, status, fields in RESPONSES:
                mock.add(URL + path, method, status=status, payload=fields)
            check(await ask_aiohttp(CALLS, supplied=supplied))
            mock.post(f"{URL}/stop-cycle", exception=True)
            (error,) = await ask_aiohttp([("stop_cycle", USER)], supplied=supplied)
            assert error.outcome is Outcome.UNKNOWN

    asyncio.run(main())


def test_aiointercept_lets_through(supplied: bool, creduse_sandbox: SandboxServer) -> None:  # noqa: FBT001 - a fixture
    """A request to an address reaches the sandbox."""

    async def main() -> None:
        async with aiointercept(mock_external_urls=True):
            (added,) = await ask_aiohttp([ADD], supplied=supplied)
            assert added.amount == 5

    asyncio.run(main())
    assert len(creduse_sandbox.applied) == 1


@pytest.fixture
def cassette(tmp_path: Path) -> Callable[[str], Any]:
    """Return vcrpy's recorder or player of a cassette."""
    path = tmp_path / "cassette.yaml"

    def use(record_mode: str) -> Any:
        return vcr.use_cassette(
            str(path), record_mode=record_mode, filter_headers=["authorization"]
        )

    return use


def check_replay(ask: Ask, cassette: Callable[[str], Any], server: SandboxServer) -> None:
    """Record `CALLS` against the sandbox, then replay them from the cassette alone."""
    server.direct.add(USER, 2)
    with cassette("once"):
        recorded = ask(CALLS)
    check(recorded)
    assert len(server.log) == 3
    with server.refusing(), cassette("none") as played:
        replayed = ask(CALLS)
        assert played.play_count == 3
    check(replayed)
    assert (replayed[0], replayed[2]) == (recorded[0], recorded[2])
    assert len(server.log) == 3


def test_vcrpy(
    over_httpx: Ask, cassette: Callable[[str], Any], creduse_sandbox: SandboxServer
) -> None:
    """Calls are recorded by vcrpy, and replayed without a server."""
    check_replay(over_httpx, cassette, creduse_sandbox)


def test_vcrpy_aiohttp(
    over_aiohttp: Ask, cassette: Callable[[str], Any], creduse_sandbox: SandboxServer
) -> None:
    """Calls over aiohttp are recorded and replayed."""
    check_replay(over_aiohttp, cassette, creduse_sandbox)


def test_vcrpy_leaves_out_the_key(
    over_httpx: Ask,
    cassette: Callable[[str], Any],
    creduse_sandbox: SandboxServer,
    tmp_path: Path,
) -> None:
    """A cassette has no key if vcrpy filters the header."""
    with cassette("once"):
        over_httpx([ADD])
    assert len(creduse_sandbox.applied) == 1
    text = (tmp_path / "cassette.yaml").read_text()
    assert "/add" in text
    assert "Bearer" not in text


@contextmanager
def collected_spans() -> Generator[Any]:
    """Instrument httpx with OpenTelemetry, and collect the spans."""
    exporter = in_memory.InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(export.SimpleSpanProcessor(exporter))
    instrumentor = HTTPXClientInstrumentor()
    instrumentor.instrument(tracer_provider=provider)
    yield exporter
    instrumentor.uninstrument()


def test_opentelemetry(over_httpx: Ask, creduse_sandbox: SandboxServer) -> None:
    """Each request has a span, and a header with its context."""
    creduse_sandbox.direct.add(USER, 2)
    with collected_spans() as spans:
        check(over_httpx(CALLS))
    assert [entry.status for entry in creduse_sandbox.log] == [200, 402, 200]
    finished = spans.get_finished_spans()
    assert [span.attributes["http.status_code"] for span in finished] == [200, 402, 200]
    assert [span.attributes["http.url"] for span in finished] == [
        f"{creduse_sandbox.base_url}{path}" for _, path, _, _ in RESPONSES
    ]
    told = [
        [value.split("-")[1:3] for name, value in entry.headers if name.lower() == "traceparent"]
        for entry in creduse_sandbox.log
    ]
    assert told == [
        [[f"{span.context.trace_id:032x}", f"{span.context.span_id:016x}"]] for span in finished
    ]


async def ask_trio(calls: Calls) -> list[Any]:
    return await ask_async(creduse_trio.AsyncCreduseClient("any", retry=NO_WAIT), calls)


def ask_each(client: str) -> list[Any]:
    """Make one call with a client of this kind."""
    if client == "httpx":
        return ask_sync([ADD], supplied=False)
    if client == "aiohttp":
        return asyncio.run(ask_aiohttp([ADD], supplied=False))
    return trio.run(ask_trio, [ADD])


# The clients whose calls a mock sees: the table in docs/testing.md.
SEEN = {
    "respx": {"httpx"},
    "pytest-httpx": {"httpx"},
    "aioresponses": {"aiohttp"},
    "vcrpy": {"httpx", "aiohttp"},
    "responses": set[str](),
    "requests-mock": set[str](),
}


@pytest.mark.httpx_mock(assert_all_requests_were_expected=False)
@pytest.mark.parametrize("client", ["httpx", "aiohttp", "trio"])
@pytest.mark.parametrize("mock", SEEN)
def test_seen(
    mock: str,
    client: str,
    cassette: Callable[[str], Any],
    creduse_sandbox: SandboxServer,
    request: pytest.FixtureRequest,
) -> None:
    """A call that a mock does not see goes past it: so does each call of creduse_trio."""
    if mock == "pytest-httpx":
        request.getfixturevalue("httpx_mock")
    mocks: dict[str, Callable[[], Any]] = {
        "respx": lambda: respx.mock,
        "vcrpy": lambda: cassette("none"),
        "aioresponses": aioresponses,
        "responses": responses.RequestsMock,
        "requests-mock": requests_mock.Mocker,
    }
    # None of them has a response. Some raise an AssertionError, which is not the client's.
    with mocks.get(mock, nullcontext)(), suppress(AssertionError):
        ask_each(client)
    assert len(creduse_sandbox.applied) == (client not in SEEN[mock])


@pytest.mark.parametrize(("host", "passed"), [("127.0.0.1", 3), ("10.0.0.1", 0)])
def test_pytest_socket(host: str, passed: int, pytester: pytest.Pytester) -> None:
    """The calls of each client go through pytest-socket, if it allows this machine."""
    pytest.importorskip("pytest_socket")
    pytester.makeini("[pytest]")
    pytester.makepyfile(CALLS_OF_EACH)
    result = pytester.runpytest_subprocess(f"--allow-hosts={host}")
    result.assert_outcomes(passed=passed, failed=3 - passed)
    assert ('connect() with host "127.0.0.1"' in result.stdout.str()) == (not passed)


CALLS_OF_EACH = f"""
import asyncio, trio
import creduse, creduse_aiohttp, creduse_trio

async def add(package):
    async with package.AsyncCreduseClient() as client:
        await client.add("{USER}", 5)

def test_httpx(creduse_sandbox):
    asyncio.run(add(creduse))

def test_aiohttp(creduse_sandbox):
    asyncio.run(add(creduse_aiohttp))

def test_trio(creduse_sandbox):
    trio.run(add, creduse_trio)
"""
