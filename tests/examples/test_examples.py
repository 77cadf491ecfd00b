"""The examples: each runs as a script, and each transport keeps `creduse_core.Transport`'s word."""

import importlib.util
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import requests
import trustme

from creduse_core import (
    AuthenticationError,
    CoreClient,
    CreduseError,
    CreduseProtocol,
    CreduseTimeoutError,
    Delivery,
    InvalidResponseError,
    Outcome,
    Request,
    RetryPolicy,
    Send,
    TransportError,
)
from creduse_sandbox import FAULTS, Answer, SandboxServer, Shaped

EXAMPLES = Path(__file__).parents[2] / "examples"
KEY = "sk-test-0123456789abcdef"
USER = UUID("12345678-1234-5678-1234-567812345678")
NO_WAIT = RetryPolicy(initial_delay=0)
TRANSPORTS = ["urllib", "urllib3", "requests"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        *((f"{name}_transport", "left: 70\n") for name in TRANSPORTS),
        ("by_hand", "taken: 30 attempts: 2\noutcome: UNKNOWN\n"),
    ],
)
def test_as_a_script(name: str, said: str) -> None:
    """Each runs at once as it stands, and leaves nothing open."""
    done = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / f"{name}.py"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, said, "")


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(params=["http", "https"])
def scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def server(scheme: str, authority: trustme.CA) -> Iterator[SandboxServer]:
    context: ssl.SSLContext | None = None
    if scheme == "https":
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        certificate: Any = authority.issue_cert("127.0.0.1")
        certificate.configure_cert(context)
    with SandboxServer(ssl_context=context) as running:
        yield running


@pytest.fixture(params=TRANSPORTS)
def library(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make(library: str, authority: Any, tmp_path: Path) -> Callable[[], Any]:
    """Make transports that trust our certificates."""

    def make() -> Any:
        module = load(f"{library}_transport")
        if library == "requests":
            bundle = tmp_path / "ca.pem"
            authority.cert_pem.write_to_path(bundle)
            session = requests.Session()
            session.verify = str(bundle)
            return module.RequestsTransport(session)
        context = ssl.create_default_context()
        authority.configure_trust(context)
        kind = module.UrllibTransport if library == "urllib" else module.Urllib3Transport
        return kind(ssl_context=context)

    return make


@pytest.fixture
def connect(make: Callable[[], Any]) -> Iterator[Callable[..., CoreClient]]:
    with ExitStack() as stack:

        def connect(base_url: str, retry: RetryPolicy = NO_WAIT, timeout: float = 30) -> CoreClient:
            protocol = CreduseProtocol(KEY, base_url, retry=retry, timeout=timeout)
            return stack.enter_context(CoreClient(protocol, make()))

        yield connect


@pytest.fixture
def client(server: SandboxServer, connect: Callable[..., CoreClient]) -> CoreClient:
    """A client of a server that knows `USER`."""
    made = connect(server.base_url)
    made.add(USER, 100)
    return made


def test_the_calls(client: CoreClient, server: SandboxServer) -> None:
    """What arrives is what was asked, a GET's body and each header once included."""
    client.subtract(USER, 30)
    assert client.get_balance(USER).active_balance == 70
    assert [entry.path for entry in server.log] == ["/add", "/subtract", "/get-active-balance"]
    protocol = client.protocol
    asked = (
        protocol.add(USER, 100).request,
        protocol.subtract(USER, 30).request,
        protocol.get_balance(USER).request,
    )
    for entry, wanted in zip(server.log, asked, strict=True):
        assert (entry.method, entry.body) == (wanted.method, wanted.body)
        names = [name.lower() for name, _ in entry.headers]
        assert len(names) == len(set(names))
        headers = {name.lower(): value for name, value in entry.headers}
        expected = {name.lower(): value for name, value in wanted.headers} | {
            "content-length": str(len(wanted.body)),
            "host": server.base_url.split("/")[2],
        }
        del expected["authorization"]  # which the log leaves out, and the server has asked for
        headers.pop("connection", None)  # urllib's own
        assert headers == expected


OUTCOMES: dict[str, tuple[type[CreduseError], Outcome]] = {
    "head-then-close": (TransportError, Outcome.UNKNOWN),
    "head-then-reset": (TransportError, Outcome.UNKNOWN),
    "request-then-close": (TransportError, Outcome.UNKNOWN),
    "request-then-reset": (TransportError, Outcome.UNKNOWN),
    "apply-then-close": (TransportError, Outcome.UNKNOWN),
    "apply-then-reset": (TransportError, Outcome.UNKNOWN),
    "cut-head-then-close": (TransportError, Outcome.UNKNOWN),
    "cut-body-then-close": (InvalidResponseError, Outcome.UNKNOWN),
    "cut-body-then-reset": (CreduseError, Outcome.UNKNOWN),  # a reset may take the head with it
    "not-http": (TransportError, Outcome.UNKNOWN),
    "wrong-user": (InvalidResponseError, Outcome.UNKNOWN),
    "gzip": (InvalidResponseError, Outcome.UNKNOWN),
    "huge-body": (InvalidResponseError, Outcome.UNKNOWN),
    "huge-chunks": (InvalidResponseError, Outcome.UNKNOWN),
    "103-first": (InvalidResponseError, Outcome.UNKNOWN),
    "302": (InvalidResponseError, Outcome.UNKNOWN),
    "307": (InvalidResponseError, Outcome.UNKNOWN),
    "503": (CreduseError, Outcome.UNKNOWN),
}


@pytest.mark.parametrize("fault", OUTCOMES)
def test_spoilt_write(client: CoreClient, server: SandboxServer, fault: str) -> None:
    """A write that may have been applied ends as UNKNOWN, is sent once, and all goes on."""
    server.order(FAULTS[fault])
    error_class, outcome = OUTCOMES[fault]
    with pytest.raises(error_class) as caught:
        client.subtract(USER, 30)
    assert caught.value.outcome is outcome
    assert len(server.log) == 2
    assert client.get_balance(USER).active_balance == (70 if len(server.applied) == 2 else 100)
    *_, spoilt, last = server.log
    assert spoilt.connection != last.connection or fault == "503"


GOOD = ["drip-body", "drip-chunks", "chunks", "no-length", "100-first", "close-after", "surplus"]


@pytest.mark.parametrize("fault", [*GOOD, "cut-after", "surplus-later"])
def test_odd_but_whole(client: CoreClient, server: SandboxServer, fault: str) -> None:
    """An answer that is whole is taken, whatever its framing, and what follows it is not."""
    server.order(FAULTS[fault])
    assert client.subtract(USER, 30).amount == 30
    if fault == "surplus-later":
        time.sleep(0.1)  # what comes after the next request passes for its answer, as anywhere
    assert client.get_balance(USER).active_balance == 70
    assert len(server.log) == 3


def test_kept_connection(client: CoreClient, server: SandboxServer, library: str) -> None:
    """A connection serves again, except urllib's, which are all for one request."""
    client.get_balance(USER)
    assert len({entry.connection for entry in server.log}) == (2 if library == "urllib" else 1)


@pytest.mark.parametrize("fault", ["503", "request-then-close", "cut-body-then-close", "not-http"])
def test_read_again(client: CoreClient, server: SandboxServer, fault: str) -> None:
    """A read that failed in passing is sent again, by the core alone."""
    server.order(FAULTS[fault])
    assert client.get_balance(USER).active_balance == 100
    assert len(server.log) == 3


def test_too_many_requests(client: CoreClient, server: SandboxServer) -> None:
    """A write that was refused in passing is sent again."""
    server.order(FAULTS["429"])
    client.subtract(USER, 30)
    assert len(server.log) == 3


def test_unauthorized(client: CoreClient, server: SandboxServer) -> None:
    """A challenge is an answer: nobody answers it with other credentials."""
    server.order(Answer(401, (("WWW-Authenticate", 'Basic realm="x"'),)))
    with pytest.raises(AuthenticationError) as caught:
        client.subtract(USER, 30)
    assert caught.value.outcome is Outcome.NOT_APPLIED
    assert len(server.log) == 2


@pytest.mark.parametrize("status", [401, 204])
def test_cut_head_of_a_refusal(client: CoreClient, server: SandboxServer, status: int) -> None:
    """A head that was cut is no answer."""
    server.order(Shaped(lambda head, _: (head[:40],), answer=Answer(status), then=CLOSE))
    with pytest.raises(TransportError) as caught:
        client.subtract(USER, 30)
    assert caught.value.outcome is Outcome.UNKNOWN


CLOSE: Any = FAULTS["close-after"].then  # type: ignore[union-attr]  # it is a Shaped


@pytest.mark.parametrize(
    "fault", ["request-then-hang", "cut-head-then-hang", "cut-body-then-hang", "endless-100"]
)
def test_out_of_time(server: SandboxServer, connect: Callable[..., CoreClient], fault: str) -> None:
    """The time of a call bounds it, and a write that was sent ends as UNKNOWN."""
    server.order(FAULTS[fault])
    begun = time.monotonic()
    with pytest.raises(CreduseTimeoutError) as caught:
        connect(server.base_url, timeout=0.5).add(USER, 30)
    assert 0.45 <= time.monotonic() - begun < 1.5
    assert caught.value.outcome is Outcome.UNKNOWN
    assert len(caught.value.attempts) == 1


@pytest.mark.parametrize("shape", ["drip", "drip-body", "drip-chunks"])
def test_dripping_answer(
    server: SandboxServer, connect: Callable[..., CoreClient], shape: str
) -> None:
    """A time-out is for the answer as a whole: no drop in time makes it longer."""
    fault: Any = FAULTS[shape]
    server.order(Shaped(fault.shape, pause=0.1))
    begun = time.monotonic()
    with pytest.raises(CreduseTimeoutError):
        connect(server.base_url, timeout=0.5).add(USER, 30)
    assert time.monotonic() - begun < 1.5


def test_refused_connection(scheme: str, connect: Callable[..., CoreClient]) -> None:
    """What was never connected is NOT_APPLIED, is tried again, and shows no key."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        base_url = f"{scheme}://127.0.0.1:{listener.getsockname()[1]}"
    with pytest.raises(TransportError) as caught:
        connect(base_url).add(USER, 30)
    assert caught.value.outcome is Outcome.NOT_APPLIED
    assert [attempt.event for attempt in caught.value.attempts] == ["not_sent"] * 3
    cause: Any = caught.value.__cause__
    assert "Authorization" not in getattr(getattr(cause, "request", None), "headers", {})


def test_silent_handshake(connect: Callable[..., CoreClient]) -> None:
    """A server that accepts and says nothing to TLS has got nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        base_url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(CreduseTimeoutError) as caught:
            connect(base_url, timeout=0.3).add(USER, 30)
    assert caught.value.outcome is Outcome.NOT_APPLIED


def test_unknown_name(connect: Callable[..., CoreClient]) -> None:
    """A name that does not exist is NOT_APPLIED; one that cannot is not tried again."""
    with pytest.raises(TransportError) as caught:
        connect("https://nowhere.invalid").add(USER, 30)
    assert caught.value.outcome is Outcome.NOT_APPLIED
    with pytest.raises(TransportError) as caught:
        connect(f"https://{'x' * 64}.invalid").add(USER, 30)
    assert [attempt.event for attempt in caught.value.attempts] == ["unsendable"]


@pytest.mark.parametrize("scheme", ["https"])
def test_untrusted_certificate(server: SandboxServer, library: str) -> None:
    """A certificate that nobody vouches for is NOT_APPLIED, at one attempt."""
    transport = getattr(load(f"{library}_transport"), f"{library.capitalize()}Transport")()
    protocol = CreduseProtocol(KEY, server.base_url, retry=NO_WAIT)
    with CoreClient(protocol, transport) as client, pytest.raises(TransportError) as caught:
        client.add(USER, 30)
    assert caught.value.outcome is Outcome.NOT_APPLIED
    assert [attempt.event for attempt in caught.value.attempts] == ["unsendable"]
    assert not server.log


@pytest.mark.parametrize("scheme", ["http"])
def test_environment(
    server: SandboxServer,
    connect: Callable[..., CoreClient],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """No proxy and no netrc of the environment comes between."""
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login a password b\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    sent: list[str] = []

    def see(request: Request) -> bool:
        sent.extend(value for name, value in request.headers if name.lower() == "authorization")
        return False

    server.order(FAULTS["503"], when=see)
    connect(server.base_url).add(USER, 30)
    assert sent == [f"Bearer {KEY}"]


def test_cookies(client: CoreClient, server: SandboxServer) -> None:
    """A cookie that is set does not come back."""
    server.order(Answer(429, (("Set-Cookie", "a=b"),)))
    client.subtract(USER, 30)
    assert all(name.lower() != "cookie" for entry in server.log for name, _ in entry.headers)


@pytest.mark.parametrize("scheme", ["http"])
def test_threads(client: CoreClient, server: SandboxServer) -> None:
    """Threads share a transport, and none takes another's failure for its own."""
    server.order(FAULTS["request-then-reset"], times=20)
    outcomes: list[Outcome] = []

    def spend() -> None:
        for _ in range(10):
            try:
                client.subtract(USER, 1)
            except CreduseError as error:
                outcomes.append(error.outcome)

    threads = [threading.Thread(target=spend) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == [Outcome.UNKNOWN] * 20
    assert client.get_balance(USER).active_balance == 80


def test_closed(client: CoreClient, server: SandboxServer) -> None:
    """What is closed sends nothing, and says so."""
    client.close()
    with pytest.raises(TransportError, match="closed") as caught:
        client.subtract(USER, 30)
    assert [attempt.event for attempt in caught.value.attempts] == ["unsendable"]
    assert len(server.log) == 1


@pytest.mark.parametrize("scheme", ["http"])
@pytest.mark.parametrize("fault", [*OUTCOMES, *GOOD])
def test_by_hand(server: SandboxServer, fault: str) -> None:
    """The call that is driven by hand tells the truth, too."""
    module = load("by_hand")
    protocol = CreduseProtocol(KEY, server.base_url, timeout=2, retry=NO_WAIT)
    server.order(FAULTS[fault])
    with suppress(CreduseError) if fault in OUTCOMES else ExitStack():
        module.drive(protocol.add(USER, 100))
        assert fault in GOOD
    balance = module.drive(protocol.get_balance(USER)) if server.applied else None
    assert balance is None or balance.active_balance == 100
    assert len(server.log) == 1 + (balance is not None)


@pytest.mark.parametrize("scheme", ["http"])
def test_no_time_left(server: SandboxServer, make: Callable[[], Any]) -> None:
    """A request whose time is over when the connection stands is not sent."""
    transport = make()
    call = CreduseProtocol(KEY, server.base_url).add(USER, 1)
    send = call.start(0)
    late = Send(send.request, connect_timeout=1.0, timeout=1e-9, belongs=send.belongs)
    failure = transport.send(late)
    transport.close()
    assert failure.delivery is Delivery.NOT_SENT
    assert not server.log
