"""The recipes of docs/observing.md are right over every transport, beside what else instruments HTTP.

`test_pages.py` runs the page as it stands. The tests here run its blocks with each client, and the
server's log says what each request carried. ``nox -s docs`` has the packages.
"""

import asyncio
import json
import logging
import re
import runpy
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

import creduse
from creduse_core import CoreClient, CreduseError, CreduseProtocol, TransportError
from creduse_sandbox import FAULTS, SandboxServer
from tests.common import KEY, NO_WAIT, ONCE
from tests.common import USER_ID as USER

aiohttp = pytest.importorskip("aiohttp")
creduse_aiohttp = pytest.importorskip("creduse_aiohttp")
trio = pytest.importorskip("trio")
trace = pytest.importorskip("opentelemetry.trace")
for module in (
    "httpx2",
    "opentelemetry.instrumentation.utils",
    "sentry_sdk",
    "structlog",
):
    pytest.importorskip(module, reason="nox -s docs has it")
otel_httpx = pytest.importorskip("opentelemetry.instrumentation.httpx")
otel_aiohttp = pytest.importorskip("opentelemetry.instrumentation.aiohttp_client")
TracerProvider = pytest.importorskip("opentelemetry.sdk.trace").TracerProvider
export = pytest.importorskip("opentelemetry.sdk.trace.export")
in_memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
baggage = pytest.importorskip("opentelemetry.baggage")
context = pytest.importorskip("opentelemetry.context")
prometheus = pytest.importorskip("prometheus_client")

from tests.kinds import KINDS, PLAIN, Waitable, step_through  # noqa: E402 - it needs some of these

ROOT = Path(__file__).parents[1]
PAGE = ROOT.joinpath("docs", "observing.md").read_text(encoding="utf-8")


def recipe(words: str, language: str = "python") -> str:
    """Return the page's block that has these words."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    (found,) = (block for block in blocks if words in block)
    return str(found)


all_kinds = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
def server() -> Iterator[SandboxServer]:
    with SandboxServer() as server:
        server.direct.add(USER, 1000)
        yield server


def definitions(words: str) -> str:
    """Return the same without what the block does with its definitions, after two empty lines."""
    return recipe(words).rpartition("\n\n\n")[0]


# OpenTelemetry.


class Spans:
    """The spans of one test, and a tracer that makes such spans."""

    def __init__(self) -> None:
        self._exporter = in_memory.InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(export.SimpleSpanProcessor(self._exporter))
        self.tracer = self.provider.get_tracer("tests")

    def all(self) -> list[Any]:
        """Return the spans that have ended, in the order in which they began."""
        return sorted(self._exporter.get_finished_spans(), key=lambda span: int(span.start_time))

    @contextmanager
    def instrumented(self) -> Generator[None]:
        """Turn on OpenTelemetry's own instrumentations of all HTTP libraries that we use."""
        kinds = [otel_httpx.HTTPXClientInstrumentor, otel_aiohttp.AioHttpClientInstrumentor]
        if hasattr(otel_httpx, "HTTPX2ClientInstrumentor"):  # it is new
            kinds.append(otel_httpx.HTTPX2ClientInstrumentor)
        instrumentors = [kind() for kind in kinds]
        for instrumentor in instrumentors:
            instrumentor.instrument(tracer_provider=self.provider)
        try:
            yield
        finally:
            for instrumentor in instrumentors:
                instrumentor.uninstrument()


@pytest.fixture
def spans() -> Spans:
    return Spans()


@pytest.fixture(params=[False, True], ids=["alone", "beside the instrumentations"])
def traced(request: pytest.FixtureRequest, spans: Spans) -> Iterator[dict[str, Any]]:
    """The page's classes that trace calls, and ``add_event``."""
    names: dict[str, Any] = {"CreduseClient": creduse.CreduseClient}
    exec(recipe("def span_of"), names)  # noqa: S102 - our own page
    names["tracer"] = spans.tracer
    classes = {"add_event": names["add_event"], "creduse": names["TracedClient"]}
    for package in ("creduse", "creduse_aiohttp", "creduse_trio"):
        code = recipe("class TracedAsyncClient").replace("from creduse ", f"from {package} ")
        exec(code, names)  # noqa: S102 - our own page
        classes[f"async {package}"] = names["TracedAsyncClient"]
    with ExitStack() as stack:
        if request.param:
            stack.enter_context(spans.instrumented())
        yield classes


def told(server: SandboxServer) -> list[list[str]]:
    """Return the values of the ``traceparent`` headers of each request."""
    return [
        [value for name, value in entry.headers if name.lower() == "traceparent"]
        for entry in server.log
    ]


def parent(span: Any) -> str:
    """Return the ``traceparent`` that names a span, with its flags left out."""
    return f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}"


def check_told(server: SandboxServer, spans: list[Any]) -> None:
    """Check that each request has one ``traceparent``, that of its span."""
    values = told(server)
    assert [len(it) for it in values] == [1] * len(spans)
    assert [value.rpartition("-")[0] for (value,) in values] == [parent(span) for span in spans]


@all_kinds
def test_span_of_each_call(
    kind: str, server: SandboxServer, spans: Spans, traced: dict[str, Any]
) -> None:
    """Each call has one span, with an event for each attempt, and each request carries its context."""

    async def calls(client: Any) -> None:
        server.inject(FAULTS["429"], 2)
        with spans.tracer.start_as_current_span("ours"):
            await client.add(USER, 5)
            await client.get_balance(USER)
            server.inject(FAULTS["apply-then-reset"])
            with pytest.raises(TransportError):
                await client.subtract(USER, 7)

    KINDS[kind](
        traced,
        calls,
        base_url=server.base_url,
        retry=NO_WAIT,
        on_attempt=traced["add_event"],
    )
    ours, add, balance, subtract = spans.all()
    assert [span.name for span in (add, balance, subtract)] == [
        "creduse add",
        "creduse get_balance",
        "creduse subtract",
    ]
    assert {span.parent.span_id for span in (add, balance, subtract)} == {ours.context.span_id}
    assert not ours.events
    assert [
        [event.attributes["creduse.event"] for event in span.events]
        for span in (add, balance, subtract)
    ] == [["rate_limited", "rate_limited", "done"], ["done"], ["no_response"]]
    for span in (add, balance, subtract):
        times = [span.start_time, *(event.timestamp for event in span.events), span.end_time]
        assert times == sorted(times)
        assert span.kind.name == "CLIENT"
        assert span.attributes["server.port"] == int(server.base_url.rpartition(":")[2])
    check_told(server, [add, add, add, balance, subtract])
    assert add.attributes["http.response.status_code"] == 200
    assert add.status.status_code.name == "UNSET"
    assert "http.response.status_code" not in subtract.attributes
    assert subtract.attributes["error.type"] == "TransportError"
    assert subtract.attributes["creduse.outcome"] == "UNKNOWN"
    assert subtract.status.status_code.name == "ERROR"
    shown = "".join(span.to_json() for span in spans.all())
    assert USER not in shown
    assert KEY not in shown


@all_kinds
def test_balance_before_a_call(
    kind: str, server: SandboxServer, spans: Spans, traced: dict[str, Any]
) -> None:
    """A balance that is read first is a call within the call, and each request names its own span."""

    async def calls(client: Any) -> None:
        await client.run(client.protocol.subtract(USER, 7), balance_first=True)

    KINDS[kind](traced, calls, base_url=server.base_url)
    subtract, balance = spans.all()
    assert (subtract.name, balance.name) == ("creduse subtract", "creduse get_balance")
    assert balance.parent.span_id == subtract.context.span_id
    check_told(server, [balance, subtract])


@all_kinds
def test_concurrent_calls(
    kind: str, server: SandboxServer, spans: Spans, traced: dict[str, Any]
) -> None:
    """Calls that run at the same time, and share connections, each send their own context."""
    amounts = range(1, 31)

    async def calls(client: Any) -> None:
        async def call(amount: int) -> None:
            with spans.tracer.start_as_current_span(str(amount)):
                await client.add(USER, amount)

        if isinstance(client, Waitable):
            with ThreadPoolExecutor(10) as threads:
                list(threads.map(step_through, map(call, amounts)))
        elif "trio" in kind:
            async with trio.open_nursery() as nursery:
                for amount in amounts:
                    nursery.start_soon(call, amount)
        else:
            await asyncio.gather(*map(call, amounts))

    KINDS[kind](traced, calls, base_url=server.base_url)
    made = {span.context.span_id: span for span in spans.all()}
    named = {
        parent(span): int(made[span.parent.span_id].name)
        for span in made.values()
        if span.name == "creduse add"
    }
    sent = {
        value.rpartition("-")[0]: json.loads(entry.body or "")["amount"]
        for entry, (value,) in zip(server.log, told(server), strict=True)
    }
    assert sent == named
    assert sorted(named.values()) == [*amounts]


@all_kinds
def test_instrumentations_alone(kind: str, server: SandboxServer, spans: Spans) -> None:
    """Without code of ours, each attempt over httpx and aiohttp has one span, and sends its context."""

    async def calls(client: Any) -> None:
        server.inject(FAULTS["429"])
        with spans.tracer.start_as_current_span("ours"):
            await client.add(USER, 5)
            await client.add(USER, 6)

    with spans.instrumented():
        KINDS[kind](PLAIN, calls, base_url=server.base_url, retry=NO_WAIT)
    ours, *attempts = spans.all()
    if kind == "trio" or (
        kind == "supplied httpx2" and not hasattr(otel_httpx, "HTTPX2ClientInstrumentor")
    ):
        assert not attempts
        assert told(server) == [[], [], []]
        return
    assert {span.parent.span_id for span in attempts} == {ours.context.span_id}
    check_told(server, attempts)
    assert len(attempts) == 3


def test_instrumented_client(server: SandboxServer, spans: Spans) -> None:
    """The instrumentation of a supplied client alone sees its requests, and no other client's."""
    with (
        httpx.Client() as http_client,
        creduse.CreduseClient(KEY, http_client, base_url=server.base_url) as client,
        creduse.CreduseClient(KEY, base_url=server.base_url) as other,
    ):
        otel_httpx.HTTPXClientInstrumentor.instrument_client(http_client, spans.provider)
        other.add(USER, 5)
        server.reset()
        client.add(USER, 5)
        client.add(USER, 5)
    assert len(spans.all()) == 2
    check_told(server, spans.all())


def test_trace_configs_of_a_session(server: SandboxServer, spans: Spans) -> None:
    """The client over aiohttp does not use the trace configs of a supplied session."""

    async def main() -> None:
        config = otel_aiohttp.create_trace_config(tracer_provider=spans.provider)
        async with aiohttp.ClientSession(trace_configs=[config]) as session:
            await session.get(server.base_url)
            assert len(spans.all()) == 1
            async with creduse_aiohttp.AsyncCreduseClient(
                KEY, session, base_url=server.base_url
            ) as client:
                await client.add(USER, 5)

    asyncio.run(main())
    assert len(spans.all()) == 1


@pytest.mark.parametrize("kind", ["httpx", "aiohttp"])
def test_captured_headers(
    kind: str, server: SandboxServer, spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An instrumentation that captures all headers shows the API key, unless told to hide it."""

    async def calls(client: Any) -> None:
        await client.get_balance(USER)

    prefix = "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS"
    monkeypatch.setenv(f"{prefix}_CLIENT_REQUEST", ".*")
    with spans.instrumented():
        KINDS[kind](PLAIN, calls, base_url=server.base_url)
    monkeypatch.setenv(f"{prefix}_SANITIZE_FIELDS", "authorization")
    with spans.instrumented():
        KINDS[kind](PLAIN, calls, base_url=server.base_url)
    assert [KEY in span.to_json() for span in spans.all()] == [True, False]


@all_kinds
@pytest.mark.parametrize("traced", [False], indirect=True)
def test_span_of_listeners(
    kind: str, server: SandboxServer, spans: Spans, traced: dict[str, Any]
) -> None:
    """Both listeners run within the span of the call."""
    seen: list[Any] = []

    async def calls(client: Any) -> None:
        await client.add(USER, 5)

    def listen(news: object) -> None:  # noqa: ARG001 - only where it runs counts
        seen.append(trace.get_current_span().get_span_context())

    options = {"base_url": server.base_url, "on_attempt": listen, "on_call": listen}
    KINDS[kind](traced, calls, **options)
    (span,) = spans.all()
    assert seen == [span.context, span.context]


@pytest.mark.parametrize("traced", [False], indirect=True)
def test_baggage(server: SandboxServer, traced: dict[str, Any]) -> None:
    """Baggage of any text goes along with the call."""

    async def calls(client: Any) -> None:
        token = context.attach(baggage.set_baggage("shop", "Zürich, 2\n"))
        await client.get_balance(USER)
        context.detach(token)

    KINDS["httpx"](traced, calls, base_url=server.base_url)
    (entry,) = server.log
    assert ("baggage", "shop=Z%C3%BCrich%2C+2%0A") in entry.headers


@pytest.mark.parametrize("traced", [False], indirect=True)
def test_own_transport(server: SandboxServer, spans: Spans, traced: dict[str, Any]) -> None:
    """The recipe works for a client over your own transport."""
    transport = runpy.run_path(str(ROOT / "examples" / "urllib_transport.py"))["UrllibTransport"]
    names: dict[str, Any] = {"CreduseClient": CoreClient}
    exec(recipe("def span_of"), names)  # noqa: S102 - our own page
    names["tracer"] = spans.tracer
    protocol = CreduseProtocol(KEY, base_url=server.base_url)
    with names["TracedClient"](protocol, transport(), on_attempt=traced["add_event"]) as client:
        client.add(USER, 5)
    (span,) = spans.all()
    assert [event.attributes["creduse.event"] for event in span.events] == ["done"]
    check_told(server, [span])


def test_cancelled_call(server: SandboxServer, spans: Spans, traced: dict[str, Any]) -> None:
    """The span of a cancelled call ends with the outcome, and with the attempt that was sent."""

    async def calls(client: Any) -> None:
        server.inject(FAULTS["apply-then-hang"])
        task = asyncio.create_task(client.add(USER, 5))
        while not server.applied:  # noqa: ASYNC110 - another thread applies it
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    options = {"base_url": server.base_url, "on_attempt": traced["add_event"]}
    KINDS["httpx on asyncio"](traced, calls, **options)
    (span,) = spans.all()
    assert span.attributes["creduse.outcome"] == "UNKNOWN"
    assert span.attributes["error.type"] == "CancelledError"
    assert [event.attributes["creduse.event"] for event in span.events] == ["abandoned"]


# Listeners: Prometheus, structlog, logging.


def test_alerts(server: SandboxServer) -> None:
    """Each metric and label in the alerts exists, and an unclear call counts from 0 to 1."""
    registry = prometheus.CollectorRegistry()
    # Not the process's own registry, which has these metrics if the page has run here.
    names: dict[str, Any] = {
        kind: partial(getattr(prometheus, kind), registry=registry)
        for kind in ("Counter", "Histogram")
    }
    code = definitions("def count").replace("from prometheus_client import", "# import")
    exec(code, names)  # noqa: S102 - our own page
    unclear = {"method": "add", "outcome": "UNKNOWN"}
    assert registry.get_sample_value("creduse_calls_total", unclear) == 0
    with creduse.CreduseClient(
        KEY, base_url=server.base_url, retry=ONCE, on_call=names["count"]
    ) as client:
        for fault in ("429", "503", "apply-then-reset"):
            server.inject(FAULTS[fault])
            with pytest.raises(CreduseError):
                client.add(USER, 5)
    assert registry.get_sample_value("creduse_calls_total", unclear) == 2
    rules = recipe("alert:", "yaml")
    samples = {sample.name for metric in registry.collect() for sample in metric.samples}
    assert set(re.findall(r"creduse_\w+", rules)) <= samples
    labels = {
        (key, value)
        for metric in registry.collect()
        for sample in metric.samples
        for key, value in sample.labels.items()
    }
    assert set(re.findall(r'(\w+)="(\w+)"', rules)) - labels == {("error", "AuthenticationError")}
    assert issubclass(creduse.AuthenticationError, CreduseError)
    (pattern,) = re.findall(r'error!~"(.*?)"', rules)
    expected = {kind.__name__ for kind in creduse.CannotPayError.__subclasses__()}
    assert expected == {name for name in creduse.__all__ if re.fullmatch(pattern, name)}


def test_structlog(server: SandboxServer, capsys: pytest.CaptureFixture[str]) -> None:
    """With structlog, a client writes one line of JSON for each call."""
    names: dict[str, Any] = {}
    exec(definitions("def log_call("), names)  # noqa: S102 - our own page
    with creduse.CreduseClient(KEY, base_url=server.base_url, on_call=names["log_call"]) as client:
        client.subtract(USER, 7)
        with pytest.raises(creduse.InsufficientFundsError):
            client.subtract(USER, 5000)
    done, failed = map(json.loads, capsys.readouterr().out.splitlines())
    assert (
        done.items()
        >= {
            "event": "creduse call",
            "level": "info",
            "method": "subtract",
            "end_user_id": USER,
            "amount": 7,
            "outcome": "APPLIED",
            "error": None,
        }.items()
    )
    assert failed["level"] == "warning"
    assert failed["error"] == "InsufficientFundsError"
    assert [attempt["event"] for attempt in failed["attempts"]] == ["refused"]


def test_extra(server: SandboxServer, caplog: pytest.LogCaptureFixture) -> None:
    """The standard library's record has the call as one value that JSON accepts."""
    caplog.set_level(logging.INFO)
    names: dict[str, Any] = {"logging": logging}
    exec(definitions("def log_call_as_extra"), names)  # noqa: S102 - our own page
    with creduse.CreduseClient(
        KEY, base_url=server.base_url, on_call=names["log_call_as_extra"]
    ) as client:
        client.subtract(USER, 7)
        with pytest.raises(creduse.InsufficientFundsError) as raised:
            client.subtract(USER, 5000)
    records = [it for it in caplog.records if it.name == "my_app"]
    assert [it.levelname for it in records] == ["INFO", "WARNING"]
    assert json.loads(json.dumps(vars(records[1])["creduse"]))["amount"] == 5000
    with pytest.raises(KeyError, match="message"):
        logging.getLogger("my_app").info("creduse", extra=raised.value.as_dict())


def test_lines_without_users(server: SandboxServer) -> None:
    """The page's formatter removes users and amounts from messages and tracebacks of all errors."""
    names: dict[str, Any] = {"logging": logging}
    exec(definitions("class WithoutUsers"), names)  # noqa: S102 - our own page
    formatter = names["WithoutUsers"]("%(message)s")
    user = uuid4()
    calls: tuple[Callable[[Any], Any], ...] = (
        lambda client: client.add(user, 987_654, 33),
        lambda client: client.subtract(user, 987_654),
        lambda client: client.start_cycle(user, 987_654),
        lambda client: client.stop_cycle(user),
        lambda client: client.get_balance(user),
    )
    with creduse.CreduseClient(KEY, base_url=server.base_url, retry=ONCE) as client:
        for call in calls:
            server.inject(FAULTS["503"])
            with pytest.raises(CreduseError) as raised:
                call(client)
            assert str(user) in str(raised.value)
            record = logging.LogRecord(
                "app",
                logging.ERROR,
                "",
                1,
                "%s",
                (raised.value,),
                (raised.type, raised.value, raised.tb),
            )
            text = formatter.format(record)
            assert str(user) not in text
            assert "987654" not in text
            assert text.count("(…): 503") == 2


# Sentry. It patches the interpreter for good, so it runs in another process.


@pytest.fixture(scope="module")
def under_sentry() -> dict[str, Any]:
    """What Sentry and the server got from each kind of client."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.under_sentry"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_sentry_shows_variables(under_sentry: dict[str, Any]) -> None:
    """Sentry does send a key that a variable of the failing frame holds, so the next test can fail."""
    assert KEY in json.dumps(under_sentry["a key in a variable"])


@all_kinds
def test_sentry_has_no_key(kind: str, under_sentry: dict[str, Any]) -> None:
    """No event of a failed call has the API key, though it has the variables of all frames."""
    events = under_sentry[kind]["events"]
    assert len(events) == 6
    for event in events:
        holders = event.get("exception", event.get("threads"))["values"]
        stacks = [it["stacktrace"] for it in holders if "stacktrace" in it]  # a cause has none
        frames = [frame for stack in stacks for frame in stack["frames"]]
        assert any(frame["module"].startswith("creduse_core") for frame in frames)
        assert any(frame["vars"] for frame in frames)
    shown = json.dumps(under_sentry[kind])
    assert USER in shown
    for part in (KEY, KEY[:10], KEY[-10:]):
        assert part not in shown


@all_kinds
def test_headers_of_sentry(kind: str, under_sentry: dict[str, Any]) -> None:
    """Sentry sees attempts over aiohttp alone. Each then sends the context of its own span."""
    (transaction,) = under_sentry[kind]["transactions"]
    attempts = [span for span in transaction["spans"] if span["op"] == "http.client"]
    headers = under_sentry[kind]["headers"]
    if "aiohttp" not in kind:
        assert not attempts
        assert not any(headers)
        return
    trace = transaction["contexts"]["trace"]["trace_id"]
    assert all([name for name, _ in fields] == ["sentry-trace", "baggage"] for fields in headers)
    sent = [fields[0][1].split("-")[:2] for fields in headers]
    assert len({span for _, span in sent}) == len(sent)
    # Sentry does not report the span of the attempt that got no response.
    with_response = sent[:1] + sent[2:]
    assert with_response == [[trace, span["span_id"]] for span in attempts]


# How a program reports the call's error to Sentry.
REPORTS = {
    "itself": "sentry_sdk.capture_exception(error)",
    "a cause": """try:
            raise LookupError("job 17") from error
        except LookupError as other:
            sentry_sdk.capture_exception(other)""",
    "a group": 'sentry_sdk.capture_exception(ExceptionGroup("of tasks", [error]))',
    "a log line": 'import logging; logging.getLogger("app").exception("failed: %s", error)',
}


@pytest.mark.parametrize("report", REPORTS.values(), ids=REPORTS)
def test_sentry_without_users(tmp_path: Path, report: str) -> None:
    """With the page's settings, no part of an event has the user's id or the amount."""
    code = recipe("class Printer")
    for old, new in (
        (f'"{USER}", 5', '*map(eval, open("arguments"))'),
        ("event = envelope.get_event()", "event = envelope.get_event(); print(event)"),
        ('"any-key"', 'open("key").read()'),
        ('FAULTS["wrong-user"]', 'FAULTS["503"]'),
        ("sentry_sdk.capture_exception(error)", report),
    ):
        assert code.count(old) == 1
        code = code.replace(old, new)
    assert USER not in code  # Sentry sends lines of the source, too
    tmp_path.joinpath("sentry_app.py").write_text(code, encoding="utf-8")
    tmp_path.joinpath("key").write_text(KEY, encoding="utf-8")
    tmp_path.joinpath("arguments").write_text(f"'{USER}'\n987654\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "sentry_app.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "add(…): 503 STATUS_503: This response is an injected fault." in done.stdout
    assert "{'creduse.outcome': 'UNKNOWN'}" in done.stdout
    for secret in (USER, "987654", KEY):
        assert secret not in done.stdout
