"""The examples run as scripts, and their transports keep the contract of `creduse_core.Transport`."""

import importlib.util
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import pytest
import requests
import trustme

from creduse_core import (
    CoreClient,
    CreduseError,
    CreduseProtocol,
    Outcome,
    Request,
    RetryPolicy,
    TransportError,
)
from creduse_sandbox import FAULTS, CannedResponse, SandboxServer
from tests.common import KEY, NO_WAIT, USER
from tests.tls import client_context, server_context

EXAMPLES = Path(__file__).parents[2] / "examples"
TRANSPORTS = ["urllib", "urllib3", "requests"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        *((f"{name}_transport", "left: 70\n") for name in TRANSPORTS),
        ("by_hand", "taken: 30 attempts: 2\noutcome: UNKNOWN\n"),
    ],
)
def test_as_a_script(name: str, said: str) -> None:
    """Each example runs as it stands, and leaves nothing open."""
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
    context = server_context(authority) if scheme == "https" else None
    with SandboxServer(ssl_context=context) as running:
        yield running


@pytest.fixture(params=TRANSPORTS)
def library(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def make_transport(library: str, authority: trustme.CA, folder: Path) -> Any:
    """Return a transport that trusts the authority."""
    module = load(f"{library}_transport")
    if library == "requests":
        bundle = folder / "ca.pem"
        authority.cert_pem.write_to_path(str(bundle))
        session = requests.Session()
        session.verify = str(bundle)
        return module.RequestsTransport(session)
    context = client_context(authority)
    transport_class = module.UrllibTransport if library == "urllib" else module.Urllib3Transport
    return transport_class(ssl_context=context)


class Connect(Protocol):
    """Makes a client over the transport of an example, and closes it at the end of the test."""

    def __call__(
        self, base_url: str, retry: RetryPolicy = NO_WAIT, timeout: float = 30
    ) -> CoreClient: ...


@pytest.fixture
def connect(library: str, authority: trustme.CA, tmp_path: Path) -> Iterator[Connect]:
    with ExitStack() as stack:

        def connect(base_url: str, retry: RetryPolicy = NO_WAIT, timeout: float = 30) -> CoreClient:
            protocol = CreduseProtocol(KEY, base_url, retry=retry, timeout=timeout)
            return stack.enter_context(
                CoreClient(protocol, make_transport(library, authority, tmp_path))
            )

        yield connect


@pytest.fixture
def client(server: SandboxServer, connect: Connect) -> CoreClient:
    """Return a client of a server that knows `USER`."""
    made = connect(server.base_url)
    made.add(USER, 100)
    return made


def test_requests(client: CoreClient, server: SandboxServer) -> None:
    """A request arrives as it was made, with the body of a GET and each header once."""
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


def test_kept_connection(client: CoreClient, server: SandboxServer, library: str) -> None:
    """A connection is used again, except by urllib."""
    client.get_balance(USER)
    assert len({entry.connection for entry in server.log}) == (2 if library == "urllib" else 1)


CLOSE: Any = FAULTS["close-after"].then  # type: ignore[union-attr]  # it is a Shaped


@pytest.mark.parametrize("scheme", ["http"])
def test_environment(
    server: SandboxServer,
    connect: Connect,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Proxies and netrc of the environment are not used."""
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

    server.inject(FAULTS["503"], when=see)
    connect(server.base_url).add(USER, 30)
    assert sent == [f"Bearer {KEY}"]


def test_cookies(client: CoreClient, server: SandboxServer) -> None:
    """A cookie is not sent back."""
    server.inject(CannedResponse(429, (("Set-Cookie", "a=b"),)))
    client.subtract(USER, 30)
    assert all(name.lower() != "cookie" for entry in server.log for name, _ in entry.headers)


@pytest.mark.parametrize("scheme", ["http"])
def test_threads(client: CoreClient, server: SandboxServer) -> None:
    """Threads can share a transport."""
    server.inject(FAULTS["request-then-reset"], times=20)
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
    """A closed transport sends nothing, and says so."""
    client.close()
    with pytest.raises(TransportError, match="closed") as caught:
        client.subtract(USER, 30)
    assert [attempt.event for attempt in caught.value.attempts] == ["unsendable"]
    assert len(server.log) == 1
