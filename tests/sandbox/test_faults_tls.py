"""The server and its faults over TLS."""

import json
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from urllib.parse import urlsplit

import pytest
import trustme

from creduse_core import MAX_BODY_SIZE
from creduse_sandbox import FAULTS, Action, Drop, SandboxServer, Stage
from creduse_sandbox.conformance import TLS_SCENARIOS, check

USER = "12345678-1234-5678-1234-567812345678"
BODY = json.dumps({"end_user_id": USER, "amount": 5, "validity_days": 2}).encode()
HEAD = (
    f"POST /add HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer key\r\nContent-Length: {len(BODY)}\r\n"
)
MESSAGE = f"{HEAD}\r\n".encode() + BODY
LAST_MESSAGE = f"{HEAD}Connection: close\r\n\r\n".encode() + BODY
APPLICATION_DATA = 23  # RFC 8446 5.1


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def server(authority: trustme.CA) -> Iterator[SandboxServer]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)  # pyright: ignore[reportUnknownMemberType]  # it takes pyOpenSSL's contexts too
    with SandboxServer(ssl_context=context) as server:
        yield server


@pytest.fixture(params=[ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=lambda v: v.name)
def context(authority: trustme.CA, request: pytest.FixtureRequest) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.minimum_version = context.maximum_version = request.param
    authority.configure_trust(context)  # pyright: ignore[reportUnknownMemberType]  # as above
    return context


def dial(server: SandboxServer) -> socket.socket:
    parts = urlsplit(server.base_url)
    assert (parts.scheme, parts.hostname) == ("https", "127.0.0.1")
    return socket.create_connection((parts.hostname, parts.port or 0), timeout=20)


def secure(server: SandboxServer, context: ssl.SSLContext) -> ssl.SSLSocket:
    """Connect with TLS. A stream that ends without close_notify is an error."""
    return context.wrap_socket(
        dial(server), server_hostname="127.0.0.1", suppress_ragged_eofs=False
    )


def beneath(stream: ssl.SSLSocket) -> socket.socket:
    """Return the socket below TLS, where records and resets are visible."""
    bare = socket.socket(fileno=socket.dup(stream.fileno()))
    bare.settimeout(20)
    return bare


def read_all(stream: socket.socket) -> bytes:
    data = bytearray()
    while piece := stream.recv(1024 * 1024):
        data += piece
    return bytes(data)


def read_answer(stream: socket.socket) -> bytes:
    data = b""
    while BODY not in data:
        piece = stream.recv(1024 * 1024)
        assert piece
        data += piece
    return data


def test_calls_and_a_clean_close(server: SandboxServer, context: ssl.SSLContext) -> None:
    """The server keeps a connection and ends it with close_notify. The log counts decrypted bytes."""
    with secure(server, context) as stream:
        stream.sendall(MESSAGE)
        assert read_answer(stream).startswith(b"HTTP/1.1 200 ")
        stream.sendall(LAST_MESSAGE)
        assert read_all(stream).endswith(BODY)
    assert [entry.received for entry in server.applied] == [len(MESSAGE), len(LAST_MESSAGE)]


def test_close_notify_of_the_client(server: SandboxServer, context: ssl.SSLContext) -> None:
    """The server responds to close_notify with close_notify."""
    with secure(server, context) as stream:
        stream.sendall(MESSAGE)
        read_answer(stream)
        with stream.unwrap() as bare:
            assert bare.recv(1) == b""


@pytest.mark.parametrize("message", [MESSAGE, LAST_MESSAGE])
def test_request_with_close_notify(
    server: SandboxServer, context: ssl.SSLContext, message: bytes
) -> None:
    """A client may end its stream with its request, as without TLS."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
    with dial(server) as stream:
        while True:
            try:
                client.do_handshake()
                break
            except ssl.SSLWantReadError:
                stream.sendall(outgoing.read())
                incoming.write(stream.recv(1024 * 1024))
        client.write(message)
        with suppress(ssl.SSLWantReadError):
            client.unwrap()
        stream.sendall(outgoing.read())
        incoming.write(read_all(stream))
        assert client.read(1024 * 1024).endswith(BODY)
    assert len(server.applied) == 1


def test_close_notify_during_a_response(server: SandboxServer, context: ssl.SSLContext) -> None:
    """close_notify ends an endless response."""
    server.inject(FAULTS["endless-100"])
    with secure(server, context) as stream:
        stream.sendall(MESSAGE)
        assert stream.recv(1024) == b"HTTP/1.1 100 Continue\r\n\r\n"
        with suppress(ssl.SSLError):  # there is more to read
            stream.unwrap()
        with suppress(ssl.SSLError):
            assert read_all(stream) == b""


@pytest.mark.parametrize("name", ["close-after", "cut-body-then-close", "apply-then-close"])
def test_orderly_end(server: SandboxServer, context: ssl.SSLContext, name: str) -> None:
    """A connection that ends in order ends with close_notify, after any response."""
    server.inject(FAULTS[name])
    with secure(server, context) as stream:
        stream.sendall(MESSAGE)
        read_all(stream)
    assert server.applied[0].fault is FAULTS[name]


def test_cut_after(server: SandboxServer, context: ssl.SSLContext) -> None:
    """The response is whole, and the stream ends without close_notify."""
    server.inject(FAULTS["cut-after"])
    with secure(server, context) as stream:
        stream.sendall(MESSAGE)
        assert read_answer(stream).endswith(BODY)
        with pytest.raises(ssl.SSLEOFError):
            stream.recv(1)


def test_surplus_in_one_segment(server: SandboxServer, authority: trustme.CA) -> None:
    """The response and the surplus are two records that arrive together."""
    context = ssl.create_default_context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2  # whose records tell what is in them
    authority.configure_trust(context)  # pyright: ignore[reportUnknownMemberType]  # as above
    server.inject(FAULTS["surplus"])
    with secure(server, context) as stream:
        stream.sendall(MESSAGE)
        with beneath(stream) as bare:
            data = bare.recv(1024 * 1024)
    records: list[int] = []
    while data:
        size = int.from_bytes(data[3:5], "big")
        records.append(data[0])
        assert len(data) >= 5 + size
        data = data[5 + size :]
    assert records == [APPLICATION_DATA] * 2


@pytest.mark.parametrize("action", [Action.CLOSE, Action.CUT])
def test_closed_before_the_handshake(server: SandboxServer, action: Action) -> None:
    """The server sends no TLS before it closes the connection."""
    server.inject(Drop(Stage.CONNECTED, action))
    with dial(server) as stream:
        assert stream.recv(1) == b""
    assert server.log == ()


def test_reset_before_the_handshake(server: SandboxServer) -> None:
    """A reset can arrive before the client knows that it is connected."""
    server.inject(Drop(Stage.CONNECTED, Action.RESET))
    with pytest.raises(ConnectionResetError), dial(server) as stream:
        stream.recv(1)


def test_reset(server: SandboxServer, context: ssl.SSLContext) -> None:
    """The server resets the socket below TLS."""
    server.inject(FAULTS["apply-then-reset"])
    with secure(server, context) as stream:
        stream.sendall(MESSAGE)
        with beneath(stream) as bare, pytest.raises(ConnectionResetError):
            read_all(bare)
    assert len(server.applied) == 1


def test_not_http(server: SandboxServer, context: ssl.SSLContext) -> None:
    """A request that is not HTTP gets a 400, and its connection ends in order."""
    with secure(server, context) as stream:
        stream.sendall(b"nonsense\r\n\r\n")
        assert read_all(stream).startswith(b"HTTP/1.1 400 ")


def test_large_response(server: SandboxServer, context: ssl.SSLContext) -> None:
    """A response of many records is whole."""
    server.inject(FAULTS["huge-body"])
    with secure(server, context) as stream:
        stream.sendall(MESSAGE)
        data = bytearray()
        while len(data) < MAX_BODY_SIZE:
            data += stream.recv(1024 * 1024)
    assert BODY in data[:1000]


def test_no_tls(server: SandboxServer) -> None:
    """A client that does not speak TLS gets an alert, which is not an error of the server."""
    with dial(server) as stream:
        stream.sendall(MESSAGE)
        assert read_all(stream)[:1] in {b"\x15", b""}
    assert server.log == ()


def test_client_that_does_not_trust(server: SandboxServer) -> None:
    """A failed handshake is not an error of the server."""
    context = ssl.create_default_context()
    with dial(server) as bare, pytest.raises(ssl.SSLCertVerificationError):
        context.wrap_socket(bare, server_hostname="127.0.0.1")


def test_handshakes_do_not_hold_up_close(server: SandboxServer) -> None:
    """Closing does not wait for clients that are silent, stop in the handshake, or are never read."""
    threads = threading.active_count()
    server.inject(FAULTS["connect-then-hang"])
    streams = [dial(server) for _ in range(3)]
    for stream in streams[:2]:
        stream.sendall(b"\x16\x03\x01\x02\x00")
    began = time.monotonic()
    server.close()
    assert time.monotonic() - began < 30
    assert threading.active_count() == threads - 1
    for stream in streams:
        with stream, suppress(ConnectionResetError):
            assert stream.recv(1) == b""


@pytest.mark.parametrize("ssl_contexts", [None, {}], ids=["none", "empty"])
def test_conformance_without_ssl_contexts(ssl_contexts: dict[str, ssl.SSLContext] | None) -> None:
    """`check` says which SSL context a scenario over TLS needs."""
    scenario = TLS_SCENARIOS[0]
    said = f"{scenario} needs ssl_contexts with the key 'good', which is a server's SSLContext"
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        check(scenario, lambda _: pytest.fail("it connects"), ssl_contexts=ssl_contexts)


def test_refusing(server: SandboxServer, context: ssl.SSLContext) -> None:
    """After ``refusing()`` the server speaks TLS again."""
    with server.refusing(), pytest.raises(ConnectionRefusedError):
        dial(server)
    with secure(server, context) as stream:
        stream.sendall(LAST_MESSAGE)
        assert read_all(stream).endswith(BODY)
